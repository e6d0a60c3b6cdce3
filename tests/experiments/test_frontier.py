"""The frontier: nothing lies above the closed form, and one whole run in small."""

import json
import math
import re

import numpy as np
import pytest
import torch
from cells import cell_config

from alignpro_mini import theory
from alignpro_mini.alignpro import Prompter
from alignpro_mini.experiments import frontier
from alignpro_mini.lab import optimum
from alignpro_mini.lab.optimum import Listing
from alignpro_mini.weights.pretrained import load_pretrained
from alignpro_mini.weights.tensors import load_state
from alignpro_mini.worlds.toy import ToyWorld


def listing(N: int = 3, K: int = 6, M: int = 2, seed: int = 0, noise: float = 1.0) -> Listing:
    rng = np.random.default_rng(seed)
    log_p = torch.from_numpy(rng.dirichlet(np.ones(K), N)).log()
    r = rng.normal(size=(N, K, 1)) + noise * rng.normal(size=(N, K, M))
    return Listing(["x"] * N, [["x'"] * K] * N, torch.from_numpy(r), log_p, log_p)


def test_no_prompter_lies_above_the_closed_form():
    """Means over inputs at one KL coefficient: prompters whose KL differs from input to input lie below too."""
    found, rng = listing(), np.random.default_rng(1)
    curve = frontier.closed_form_curve(found, [0.05, 2.0], points=400)
    kl, mean = (np.array([p[k] for p in curve]) for k in ("kl", "mean"))
    assert (np.diff(kl) > -1e-12).all() and (
        np.diff(mean) > -1e-12
    ).all()  # a smaller coefficient: more KL, a higher mean
    near = 0
    for _ in range(300):
        tilt = (
            found.log_sft
            + torch.from_numpy(rng.uniform(0, 3, (3, 1))) * found.R
            + 0.3 * torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
        )
        p = tilt.softmax(1)
        at, J = float(theory.kl(p, found.rho_sft).mean()), float(theory.value(p, found.R))
        if at <= kl[-1]:
            assert J <= np.interp(at, kl, mean) + 1e-3
            near += J > np.interp(at, kl, mean) - 0.1
    assert near > 20  # some come close, otherwise the test could not fail


def test_the_two_curves_lie_on_either_side_of_the_truth():
    """Noise in R raises the optimum that it chose; the same optimum rated by other answers is below the true one."""
    truth = listing(N=200, M=2, noise=0.0)
    noise = 0.7 * np.random.default_rng(4).normal(size=(200, 6, 8))
    noisy = Listing(
        truth.requests, truth.rewrites, truth.r[:, :, :1] + torch.from_numpy(noise), truth.log_sft, truth.log_rho
    )
    curve = frontier.closed_form_curve(noisy, [0.1, 0.3], points=5)
    assert [p["lam"] for p in curve] == pytest.approx(np.geomspace(3.0, 0.1, 5))
    for p in curve[1:]:
        best = theory.optimal_prompter(truth.rho_sft, truth.R, p["lam"])
        J = lambda mean, kl, lam=p["lam"]: mean - lam * kl
        at = J(float(theory.value(best, truth.R)), float(theory.kl(best, truth.rho_sft).mean()))
        assert J(p["mean"], p["kl"]) > at > J(p["mean_held_out"], p["kl_held_out"])
        assert J(p["mean"], p["kl"]) - J(p["mean_held_out"], p["kl_held_out"]) < 0.5


def test_a_frontier_end_to_end_and_again_with_resume(tmp_path):
    config = cell_config(tmp_path, **{"name": "f", "eval.inputs": 12})
    results = frontier.run_frontier(config, resume=False, lambdas=[0.1, 1.0])
    folder = tmp_path / "f"
    assert json.loads(json.dumps(results)) == results, "it can be written"
    assert (folder / "frontier.png").stat().st_size > 1000
    assert [p["lam"] for p in results["align_pro"]] == [0.1, 1.0]
    saved = load_state(folder / "base" / "checkpoints" / "listing.safetensors")[0]
    assert results["no_finetuning"] == pytest.approx(float(saved["r"][:, 0].nanmean(1).mean()))
    requests = ToyWorld("quality", config.world).eval_requests[: config.theory.inputs]
    rewrites = [ToyWorld("quality", config.world).rewrites(x) for x in requests]
    for p in results["align_pro"]:
        places = (
            folder / f"lam-{p['lam']:g}" / "checkpoints" / "align_pro",
            folder / "base" / "checkpoints" / "prompter_sft",
        )
        rho, sft = (
            optimum.log_probabilities(Prompter(*load_pretrained(place), 20), requests, rewrites).softmax(1)
            for place in places
        )
        assert p["kl"] == pytest.approx(float(theory.kl(rho, sft).mean()), rel=1e-3) and p["kl"] > 1e-9
        saved_config = json.loads((folder / f"lam-{p['lam']:g}" / "config.json").read_text())
        assert saved_config["ppo"]["kl_coef"] == saved_config["oracle"]["kl_coef"] == p["lam"]
        assert p["regularised_gap"] == pytest.approx(p["lambda_kl_to_optimum"], abs=1e-6) and p["rlhf_kl"] is not None
        assert p["rlhf_gain"] == pytest.approx(p["rlhf_mean"] - results["no_finetuning"], abs=1e-6)
        assert p["rlhf_gain_ci95"][0] <= p["rlhf_gain"] <= p["rlhf_gain_ci95"][1]
    again = frontier.run_frontier(
        config, resume=True, lambdas=[0.1, 1.0, 0.3]
    )  # one more coefficient; the others are loaded
    assert again["align_pro"][:2] == results["align_pro"] and again["align_pro"][2]["lam"] == 0.3
    assert all(p["answer_kl"] is not None for p in again["align_pro"])
    text = frontier.table({"runs": [again]})
    assert "oracle's share" in text and len(re.findall(r"\nquality +0.3 ", text)) == 2
    bare = [{k: v for k, v in p.items() if "rlhf" not in k} for p in again["align_pro"]]
    frontier.run_figure({**again, "align_pro": bare}, tmp_path / "p.png")


def by_hand(task="quality", seed=0, shift=0.0):
    """No fine-tuning earns 0, the oracle 1 and 2 at 1 and 3 nats; Align-Pro 0.5 and 1.5 at 0.5 and 2 nats."""
    points = [
        {
            "lam": 1.0,
            "mean": 0.5 + shift,
            "answer_kl": 0.5,
            "rlhf_mean": 1.0,
            "rlhf_kl": 1.0,
            "rlhf_gain": 1.0,
            "rlhf_gain_ci95": [0.9, 1.1],
        },
        {
            "lam": 0.1,
            "mean": 1.5 + shift,
            "answer_kl": 2.0,
            "rlhf_mean": 2.0,
            "rlhf_kl": 3.0,
            "rlhf_gain": 2.0,
            "rlhf_gain_ci95": [1.9, 2.1],
        },
    ]
    return {"task": task, "seed": seed, "no_finetuning": 0.0, "align_pro": points}


def test_the_oracle_is_met_at_equal_coefficient_and_at_equal_kl_of_answers(tmp_path):
    run = by_hand()
    # straight lines in the root of the KL: at 0.5 of 0..1, and at 2 of 1..3
    want = [0.5**0.5, 1 + (2**0.5 - 1) / (3**0.5 - 1)]
    assert [frontier.at_matched_kl(run, p) for p in run["align_pro"]] == pytest.approx(want)
    beyond = run["align_pro"][0] | {"answer_kl": 3.5}
    assert frontier.at_matched_kl(run, beyond) is None
    assert frontier.at_matched_kl(run, {"answer_kl": None}) is None
    rows = frontier.table({"runs": [by_hand(), by_hand(seed=1, shift=0.5)]}).split("\n\n")[0].splitlines()
    first, second = (line.split() for line in rows[1:])
    # equal coefficient: 0.5 and 1.0 of 1, 1.5 and 2.0 of 2; equal KL: 0.75 - 0.707, 1.75 - 1.566
    assert first[:3] == ["quality", "1", "0.75"] and first[-4:-2] == ["0.75", "±3.18"] and first[-2] == "0.04"
    assert second[1] == "0.1" and second[-4] == "0.88" and second[-2] == "0.18"
    frontier.figure({"runs": [by_hand(), by_hand("reasoning")]}, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 1000
    bare = by_hand()
    for p in bare["align_pro"]:
        del p["rlhf_mean"], p["rlhf_kl"], p["rlhf_gain"], p["rlhf_gain_ci95"]
    assert "–" in frontier.table({"runs": [bare]})
    frontier.figure({"runs": [bare]}, tmp_path / "c.png")


def test_shares_by_hand():
    point = by_hand()["align_pro"][1] | {"start": 0.5, "rlhf_optimum": 2.5, "lam": 0.1}
    assert frontier.gap_closed(point) == 0.5  # 1.5 - 0.5 of 2
    assert frontier.gap_closed(point | {"rlhf_gain_ci95": [-0.1, 2.1]}) is None, "a gain that is not shown"
    assert frontier.objective("mean", "answer_kl")(point) == pytest.approx(1.5 - 0.1 * 2)
    assert frontier.oracle_share(point) == pytest.approx((2.0 - 0.1 * 3 - 0.5) / (2.5 - 0.5))
    assert frontier.oracle_share(point | {"rlhf_optimum": 0.4}) is None, "an optimum that gains nothing"


def test_a_callable_is_drawn_in_the_units_of_lambda(tmp_path, monkeypatch):
    """A reward about 100: the curve, the points and RLHF all lie where PPO saw them, about 0."""
    (tmp_path / "hundred.py").write_text(
        "def reward(prompts, completions):\n    return [100.0 + len(y) for y in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = cell_config(tmp_path, **{"name": "f", "reward": "hundred:reward"})
    results = frontier.run_frontier(config, resume=False, lambdas=[0.3])
    point = results["align_pro"][0]
    assert all(abs(v) < 5 for v in (results["no_finetuning"], point["mean"], point["rlhf_mean"]))


def test_the_value_of_the_best_policy_is_that_of_its_weights_and_never_above_the_true_one():
    g = torch.Generator().manual_seed(0)
    r = torch.randn(3, 7, generator=g, dtype=torch.float64)
    r[1, 5:] = torch.nan  # a request with fewer answers
    for beta in (0.02, 0.3, 4.0):
        wanted = 0.0
        for row in ([v for v in of if v == v] for of in r.tolist()):
            weights = [math.exp((v - max(row)) / beta) for v in row]  # of pi* ~ pi_F exp(r / beta), pi_F uniform here
            pi = [w / sum(weights) for w in weights]
            kl = sum(p * math.log(p * len(row)) for p in pi if p > 0)
            wanted += (sum(p * v for p, v in zip(pi, row)) - beta * kl) / 3
        assert frontier.rlhf_optimum(r, beta) == pytest.approx(wanted, abs=1e-12)
    drawn = torch.randn(4000, 16, generator=g, dtype=torch.float64)  # r ~ N(0, 1): the true value is 1 / (2 beta)
    assert 0.4 < frontier.rlhf_optimum(drawn, 1.0) < 0.5
