"""Ask the child process of sandbox.py, and say in one line what went wrong there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from alignpro_mini.options import UserError
from alignpro_mini.weights import sandbox

PATIENCE = 30 if os.name == "nt" else 600  # seconds; elsewhere the child's own computing is bounded, not its waiting
Conversation = tuple[list[dict[str, str]], bool]  # messages, and whether the model's turn follows
_tried: set[str] = set()  # digests of vocabularies that passed


def check_vocabulary(file: Path) -> None:
    """Raises UserError for a tokenizer.json that a short text shows to be of no use."""
    text = file.read_text(encoding="utf-8")
    digest = sha256(text.encode(errors="replace")).hexdigest()
    if digest in _tried:
        return
    replies = _ask({"vocabulary": text, "template": None})
    if not replies:
        raise UserError(f"{file}: the vocabulary {too_much()}")
    (failed,) = replies
    if failed is not None:
        raise UserError(f"{file}: not a usable tokenizer.json ({failed}); copy it again")
    _tried.add(digest)


def render(template: str, names: dict[str, str], conversations: list[Conversation], where: str) -> dict:
    """What a chat template makes of conversations, {"literals": texts, "texts": [{"text"} or {"error"}, ...]}.

    Raises UserError, beginning with `where`, for one that does not end.
    """
    replies = json.loads(_render(template, json.dumps(names), json.dumps(conversations)))
    if not replies:
        raise UserError(f"{where}: the chat template {too_much()}")
    return replies[0]


def too_much() -> str:
    most = f"{sandbox.SECONDS} s of computing or {sandbox.BYTES >> 30} GiB of memory"
    return f"needs more than {most} for a short text, or ends the program; use another copy"


@lru_cache(maxsize=64)
def _render(template: str, names: str, conversations: str) -> str:
    request = {"vocabulary": None, "template": template, "names": json.loads(names)}
    return json.dumps(_ask(request | {"conversations": json.loads(conversations)}))


def _ask(request: dict) -> list:
    """The child's replies; [] where it did not live to give them."""
    path = os.pathsep.join(place for place in sys.path if place)  # the same libraries as here
    environment = os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-P", sandbox.__file__]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request | {"seconds": sandbox.SECONDS}).encode(),
            capture_output=True,
            timeout=PATIENCE,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        return []
    return [json.loads(line) for line in done.stdout.splitlines()]
