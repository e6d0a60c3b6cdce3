"""`explore.html`: the exact optimum as lambda moves, and what the prompter wrote while it was trained.

One file, the template beside this module with the run's numbers in it as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from alignpro_mini.lab.optimum import Listing

TEMPLATE = Path(__file__).with_name("explore.html")


def page_data(listing: Listing | None, fixed: int | None, lam: float, snapshots: Sequence[dict]) -> dict:
    """What the page shows: tables (N requests, K rewrites), and the rows of `snapshots.jsonl`.

    `fixed` is the place of the fixed rewrite among the K, `kind` of a snapshot that of its rewrite; None where unknown.
    """
    rewrites = {} if listing is None else dict(zip(listing.requests, listing.rewrites))
    place = lambda x, x_prime: rewrites[x].index(x_prime) if x_prime in rewrites.get(x, ()) else None
    rows = [row | {"kind": place(row["x"], row["x_prime"])} for row in snapshots]
    return {"lam": lam, "listing": None if listing is None else _tables(listing, fixed), "snapshots": rows}


def _tables(listing: Listing, fixed: int | None) -> dict:
    return {
        "requests": listing.requests,
        "rewrites": listing.rewrites,
        "R": _rounded(listing.R),
        "V": None if listing.is_pooled else _rounded(listing.V),  # pooled: no variance of single answers is known
        "answers": listing.answers.tolist(),
        "logSft": _rounded(listing.log_sft),
        "logRho": _rounded(listing.log_rho),
        "fixed": fixed,
    }


def _rounded(table: Tensor) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in table.tolist()]


def write_page(path: Path, data: dict) -> None:
    """Write the page. Its Content-Security-Policy lets the template's own script run, and nothing else load or run."""
    html = TEMPLATE.read_text(encoding="utf-8")
    script = re.search("<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no model's text can end the element
    path.write_text(html.replace("__SCRIPT_HASH__", digest).replace("__DATA__", text), encoding="utf-8", newline="\n")
