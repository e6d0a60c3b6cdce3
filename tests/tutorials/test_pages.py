"""The teaching pages: their numbers are the package's, and they react."""

import pytest
import torch
from browser import browser, opened, slide  # noqa: F401, the fixture
from doubles import ROOT

from alignpro_mini import rl_math

PAGES = ROOT / "tutorials" / "pages"


@pytest.fixture(scope="module")
def gae_page(browser):  # noqa: F811
    return opened(browser, PAGES / "gae.html")


@pytest.fixture(scope="module")
def clip_page(browser):  # noqa: F811
    return opened(browser, PAGES / "clip.html")


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_the_advantages_are_the_packages(gae_page, gamma, lam):
    rewards, values = torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = [rewards[0].tolist(), values[0].tolist(), gamma, lam]
    found = gae_page.evaluate("given => gae(...given)", given)
    advantages, returns = rl_math.gae(rewards, values, torch.ones(1, 7, dtype=torch.bool), gamma, lam)
    assert found["advantages"] == pytest.approx(advantages[0].tolist(), abs=1e-12)
    assert found["returns"] == pytest.approx(returns[0].tolist(), abs=1e-12)
    grid = gae_page.evaluate("([delta, gamma, lam]) => contributions(delta, gamma, lam)", [found["delta"], gamma, lam])
    assert [sum(row) for row in grid] == pytest.approx(found["advantages"], abs=1e-12)


def test_the_sliders_of_gae_move_the_table(gae_page):
    slide(gae_page, "#lam", 0)
    assert gae_page.locator("#lamLabel").inner_text() == "λ = 0.00"
    told = lambda row: gae_page.locator(f"#{row} td").all_inner_texts()
    assert told("advantages") == told("delta")
    slide(gae_page, "#lam", 1)
    assert told("returns")[-1] == "1.500" and told("returns")[0] == "1.180"  # all rewards that are still to come
    assert not gae_page.errors


@pytest.mark.parametrize("clip", [0.2, 0.05])
def test_the_clip_is_the_packages(clip_page, clip):
    ratios = [0.0625, 0.5, 0.85, 1.0, 1.15, 1.75]  # exact, or away from the edges
    for advantage in (1.0, -1.0, 0.5):
        ratio = torch.tensor([ratios], dtype=torch.float64, requires_grad=True)
        same = torch.ones_like(ratio)
        loss, seen = rl_math.policy_loss(ratio.log(), 0 * same, advantage * same, same.bool(), clip)
        (slope,) = torch.autograd.grad(-loss.sum(), ratio)
        found = clip_page.evaluate("([r, a, c]) => r.map((ratio) => surrogate(ratio, a, c))", [ratios, advantage, clip])
        assert [f["value"] for f in found] == pytest.approx((-loss[0]).tolist(), abs=1e-12)
        assert [f["clipped"] for f in found] == seen["clipped"][0].tolist()
        assert [f["slope"] for f in found] == pytest.approx(slope[0].tolist(), abs=1e-9)


def test_the_ratio_can_be_dragged(clip_page):
    box = clip_page.locator("#better").bounding_box()
    x = lambda ratio: box["x"] + box["width"] * (30 + ratio / 2 * 315) / 360
    clip_page.mouse.move(x(1.0), box["y"] + 50)
    clip_page.mouse.down()
    clip_page.mouse.move(x(1.5), box["y"] + 50)
    clip_page.mouse.up()
    clip_page.mouse.move(x(0.2), box["y"] + 50)  # no button is down
    assert clip_page.locator("#ratioLabel").inner_text() == "ratio = 1.50"
    assert clip_page.locator("#betterTold").inner_text() == "Objective 1.20. The gradient is 0: clipped."
    assert "Objective -1.50. The gradient is −1" in clip_page.locator("#worseTold").inner_text()
    assert not clip_page.errors


@pytest.mark.parametrize("name", ["gae.html", "clip.html"])
def test_a_page_fits_a_phone(browser, name):  # noqa: F811
    page = opened(browser, PAGES / name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390 and not page.errors
    page.close()
