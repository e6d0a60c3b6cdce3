"""The frontier: nothing lies above the closed form, best-of-n against its exact law, and one whole run in small."""

import json

import numpy as np
import pytest
import torch
from test_grid import small  # noqa: F401  one thread, small models
from test_grid import small_grid

from alignpro_mini import frontier, plots, tables, theory
from alignpro_mini.cli import parse_command_line
from alignpro_mini.optimum import Listing


def listing(N: int = 3, K: int = 6, M: int = 1, seed: int = 0) -> Listing:
    rng = np.random.default_rng(seed)
    p = torch.from_numpy(rng.dirichlet(np.ones(K), N))
    return Listing(["x"] * N, [["x'"] * K] * N, torch.from_numpy(rng.normal(size=(N, K, M))), p, p)


def test_best_of_n_follows_the_law_of_the_largest_of_n():
    """With one answer a rewrite, P(pick = k) = F(k)^n - F(k-)^n, F the cumulative mass in the order of the rewards."""
    found = listing()
    for point in frontier.best_of_n(found, seed=0, draws=20_000):
        law = np.zeros((3, 6))
        for i in range(3):
            order = np.argsort(found.R[i].numpy())
            mass = np.concatenate(([0.0], np.cumsum(found.rho_sft[i].numpy()[order])))
            law[i, order] = mass[1:] ** point["n"] - mass[:-1] ** point["n"]
        assert point["mean"] == pytest.approx((law * found.R.numpy()).sum(1).mean(), abs=0.02)
        kl = np.where(law > 0, law * np.log(np.maximum(law, 1e-300) / found.rho_sft.numpy()), 0).sum(1).mean()
        assert point["kl"] == pytest.approx(kl, abs=0.01)
        assert point["kl"] <= point["kl_bound"] + 0.01


def test_noisy_answers_make_best_of_n_weaker():
    """Chosen by one lucky answer each, rewrites gain less than the winning answers seem to say."""
    noisy = listing(M=50)  # R varies by 1 / sqrt(50), single answers by 1
    last = frontier.best_of_n(noisy, seed=0)[-1]
    assert last["mean"] < float(noisy.R.max(1).values.mean()) - 0.05 and last["kl"] < 0.5 * last["kl_bound"]


def test_no_prompter_lies_above_the_closed_form():
    found, rng = listing(N=1, M=2), np.random.default_rng(1)
    curve = frontier.closed_form_curve(found, [0.05, 2.0], points=400)
    kl, mean = (np.array([p[k] for p in curve]) for k in ("kl", "mean"))
    assert (np.diff(kl) > -1e-12).all() and (np.diff(mean) > -1e-12).all()  # cheaper KL buys more
    points = [rng.dirichlet(np.full(6, 0.5), 1) for _ in range(300)]
    for p in points:
        at = float(theory.kl(p, found.rho_sft).mean())
        assert at > kl[-1] or float(theory.value(p, found.R)) <= np.interp(at, kl, mean) + 1e-3


def test_a_frontier_end_to_end_and_again_with_resume(tmp_path, small):  # noqa: F811
    config = small_grid(tmp_path, **{"name": "f", "eval.inputs": 12})
    results = frontier.run_frontier(config, [0.1, 1.0], resume=False)
    folder = tmp_path / "f"
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (folder / "frontier.png").stat().st_size > 1000
    assert [p["lam"] for p in results["align_pro"]] == [0.1, 1.0] and len(results["best_of_n"]) == len(frontier.BEST_OF)
    for p in results["align_pro"]:
        saved = json.loads((folder / f"lam-{p['lam']:g}" / "config.json").read_text())
        assert saved["ppo"]["kl_coef"] == saved["oracle"]["kl_coef"] == p["lam"]
        assert p["regularised_gap"] == pytest.approx(p["lambda_kl_to_optimum"], abs=1e-6) and p["rlhf_kl"] is not None
    again = frontier.run_frontier(config, [0.1, 1.0, 0.3], resume=True)  # a further price; the others are loaded
    assert again["align_pro"][:2] == results["align_pro"] and again["align_pro"][2]["lam"] == 0.3
    text = tables.frontier_table([again])
    assert "task quality, seed 0" in text and "best-of-n" in text and text.count("\n0.3 ") == 1
    plots.frontier_figure({**again, "align_pro": [{k: v for k, v in p.items() if "rlhf" not in k} for p in again["align_pro"]]}, tmp_path / "p.png")


@pytest.mark.parametrize(("argv", "told"), [
    (["--frontier", "0.1,0"], "--frontier: give prices above 0"),
    (["--frontier", "0.1", "--grid", "all"], "no --grid"),
    (["--frontier", "a"], "could not convert"),
])  # fmt: skip
def test_prices_that_cannot_be_are_refused(argv, told, capsys):
    with pytest.raises(SystemExit):
        parse_command_line(argv)
    assert told in capsys.readouterr().err


def test_prices_on_the_command_line():
    (run,), how = parse_command_line(["--frontier", "0.05,0.2", "--task", "attributes"])
    assert how.lams == [0.05, 0.2] and run.run_name == "frontier-tiny-attributes-seed0" and how.cells == ()
