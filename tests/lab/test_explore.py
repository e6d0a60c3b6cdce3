"""explore.html: its numbers are those of theory.py and optimum.py, its texts are never read as HTML, and it reacts."""

import base64
import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch
from browser import browser, opened, slide  # noqa: F401, the fixture

from alignpro_mini import theory
from alignpro_mini.lab import explore, optimum
from alignpro_mini.lab.optimum import Listing

BAD = "</script><b>bold</b>"


def make_listing(N=3, K=4, M=8) -> Listing:
    draw = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    r = random(N, K, 1) + random(N, K, M)
    r[:, ::2, 5:] = torch.nan  # rewrites that got fewer answers
    logs = [(2 * random(N, K)).log_softmax(1) for _ in range(2)]
    rewrites = [[f"request {i}", *(f"request {i}, kind {k}" for k in range(1, K))] for i in range(N)]
    return Listing([row[0] for row in rewrites], rewrites, r, *logs)


def make_snapshots() -> list[dict]:
    tokens = ["request", " 1", BAD, ""]
    row = {"stage": "align_pro", "x": "request 1", "x_prime": "request 1, kind 2", "tokens": tokens}
    start = row | {"step": 0, "log_ratio": [0.0, 0.0, 0.0, 0.0]}
    return [start, row | {"step": 5, "log_ratio": [1.5, -0.25, 0.0, 0.5]}, start | {"step": 5, "x_prime": "unlisted"}]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "explore.html"
    explore.write_page(path, explore.page_data(make_listing(), 2, 0.1, make_snapshots()))
    return path


@pytest.fixture(scope="module")
def page(browser, file):  # noqa: F811
    return opened(browser, file)


# ---------------------------------------------------------------- the file


def test_a_snapshot_is_found_among_the_listed_rewrites():
    data = explore.page_data(make_listing(), None, 0.1, make_snapshots())
    assert [row["kind"] for row in data["snapshots"]] == [2, 2, None]
    assert [row["kind"] for row in explore.page_data(None, None, 0.1, make_snapshots())["snapshots"]] == [None] * 3
    pooled = replace(make_listing(), is_pooled=True)
    assert explore.page_data(pooled, None, 0.1, [])["listing"]["V"] is None


def test_no_text_of_a_model_ends_the_data_and_only_the_templates_script_may_run(file):
    html = file.read_text(encoding="utf-8")
    found = re.findall(r"<script(.*?)>(.*?)</script>", html, re.DOTALL)
    (_, data), (attributes, script) = found
    assert json.loads(data) == explore.page_data(make_listing(), 2, 0.1, make_snapshots())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert attributes == "" and f"script-src 'sha256-{digest}'" in html and "default-src 'none'" in html
    assert BAD not in html and "__" not in html.replace(script, "").replace(data, "")


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("lam", [0.01, 0.1, 3.0])
def test_optimum_kl_and_moments_are_the_packages(page, lam):
    listing = make_listing()
    given = {
        "logSft": listing.log_sft.tolist(),
        "R": listing.R.tolist(),
        "V": listing.V.tolist(),
        "answers": listing.answers.tolist(),
        "lam": lam,
    }
    code = """t => { const star = optimalPrompter(t.logSft, t.R, t.lam);
                     return [star, kl(star, t.logSft.map(softmax)), moments(star, t)]; }"""
    found, kl, parts = page.evaluate(code, given)
    star = theory.optimal_prompter(listing.rho_sft, listing.R, lam)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), star, rtol=1e-9, atol=1e-12)
    assert kl == pytest.approx(float(theory.kl(star, listing.rho_sft).mean()), rel=1e-9)
    wanted = optimum.moments(star, listing.r)
    names = {"between_inputs": "betweenInputs", "between_rewrites": "betweenRewrites", "within": "within"}
    names |= {"mean": "mean", "total": "variance"}
    assert {name: parts[name] for name in names.values()} == pytest.approx({names[k]: v for k, v in wanted.items()})
    assert parts["withinRequests"] == pytest.approx(wanted["between_rewrites"] + wanted["within"])


def test_the_small_example_is_tutorial_01s(page):
    table = page.evaluate("(() => { const t = tableOfTutorial01(); return [t.R, t.V, t.logSft]; })()")
    R, V, log_sft = (torch.tensor(value, dtype=torch.float64) for value in table)
    assert R[0].tolist() == pytest.approx([0.6, 1.0, 1.0, 1.6, 0.1, 0.4])  # printed by the tutorial
    parts = page.evaluate(
        "(() => { const t = tableOfTutorial01(); return moments(optimalPrompter(t.logSft, t.R, 0.3), t); })()"
    )
    wanted = theory.along_eta(log_sft.exp(), R, V, 1 / 0.3)
    assert parts["mean"] == pytest.approx(wanted["mean"]) and parts["within"] == pytest.approx(wanted["within"])
    assert parts["betweenRewrites"] == pytest.approx(wanted["between_rewrites"]) and parts["betweenInputs"] == 0


# ---------------------------------------------------------------- the page


def numbers_of(page, prompter):
    cells = page.locator("#run tr", has_text=prompter).locator("td").all_inner_texts()[1:]
    return [float(cell.replace("–", "nan")) for cell in cells]


@pytest.mark.parametrize("lam", [0.1, 1.0])
def test_the_slider_moves_the_optimum_and_leaves_the_fixed_sentence(page, lam):
    listing = make_listing()
    slide(page, "#run input", torch.tensor(lam).log10().item())
    star = theory.optimal_prompter(listing.rho_sft, listing.R, lam)
    wanted = optimum.moments(star, listing.r)
    kl = float(theory.kl(star, listing.rho_sft).mean())
    shown = numbers_of(page, "optimum")
    assert shown[:4] == pytest.approx([wanted["mean"], kl, wanted["mean"] - lam * kl, wanted["total"]], abs=6e-4)
    fixed = optimum.moments_of_kind(listing.r, 2)
    assert numbers_of(page, "fixed sentence")[::3] == pytest.approx(
        [fixed["mean"], fixed["total"], fixed["within"]], abs=6e-4
    )
    assert not page.errors


def test_the_player_shows_the_tokens_of_an_iteration(page):
    slide(page, "#player input", 0)
    assert page.locator("#player .token").count() == 4 and "iteration 0" in page.locator("#player").inner_text()
    slide(page, "#player input", 1)
    told = page.locator("#player").inner_text()
    reward = float(make_listing().R[1, 2])
    assert "iteration 5" in told and f"in all: 1.75 nats · mean reward of its answers: {reward:.2f}" in told
    assert "mean reward of its answers: –" in told and "⟨end⟩" in told
    assert BAD in told and page.locator("b", has_text="bold").count() == 0
    assert not page.errors


def test_it_fits_a_phone_and_says_what_is_missing(browser, file, tmp_path):  # noqa: F811
    phone = opened(browser, file, width=390)
    assert phone.evaluate("document.documentElement.scrollWidth") == 390 and not phone.errors
    explore.write_page(tmp_path / "bare.html", explore.page_data(None, None, 0.0, []))
    phone.goto((tmp_path / "bare.html").as_uri())
    assert "no exact optimum" in phone.inner_text("#run") and "no snapshots" in phone.inner_text("#player")
    assert not phone.errors
    phone.close()
