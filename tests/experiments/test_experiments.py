"""The studies of many runs, on models far too small to learn: what is varied, what is shared, what is told."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_grid import small, small_grid  # noqa: F401

from alignpro_mini import theory
from alignpro_mini.experiments import ablation, estimators, overoptimisation, variance
from alignpro_mini.lab.cli import chosen, with_options
from alignpro_mini.lab.config import preset
from alignpro_mini.lab.evaluation import Arm, Evaluator
from alignpro_mini.lab.optimum import Listing
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.statistics import variance_parts
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig


def config_of(tmp_path, **changes):
    few = {"eval.inputs": 8, "theory.inputs": 4, "reward_model.pairs": 64, "reward_model.batch_size": 16}
    return small_grid(tmp_path, **(few | {"name": "e"} | changes))


# ---------------------------------------------------------------- estimators


def test_every_variant_can_be_built_and_differs_from_the_others():
    seen = set()
    for name, options in estimators.OPTIONS.items():
        config = PPOConfig(**options)
        assert config.batch_size == PPOConfig().batch_size, "the same number of rewrites"
        changed = estimators.variants([name])[name](PPOConfig())
        assert {f"ppo.{key}" for key in options} <= changed.keys()
        seen.add(json.dumps(changed, sort_keys=True))
    assert len(seen) == len(estimators.OPTIONS)
    assert len({ablation.folder_of(name) for name in estimators.OPTIONS}) == len(estimators.OPTIONS)


def test_estimators_end_to_end_and_one_variant_more(tmp_path, small):  # noqa: F811
    config = config_of(tmp_path)
    first = estimators.compare(config, False, [estimators.AS_IT_IS, "RLOO, K 4"])
    assert list(first["variants"]) == [estimators.AS_IT_IS, "RLOO, K 4"] and first["kl_coef"] == 0.1
    saved = json.loads((tmp_path / "e" / "RLOO-K-4" / "config.json").read_text())["ppo"]
    assert (saved["variant"], saved["rewrites_per_request"]) == ("rloo", 4)
    both = estimators.compare(config, True, ["KL as k3 in the loss"])
    assert list(both["variants"]) == [estimators.AS_IT_IS, "RLOO, K 4", "KL as k3 in the loss"]
    assert both["variants"]["RLOO, K 4"] == first["variants"]["RLOO, K 4"], "loaded, not done again"
    grads = estimators.gradients(list(both["variants"]), 4, batch=32)
    text = estimators.table([both], grads)
    rows = [line for line in text.splitlines() if line.startswith("| RLOO, K 4 |")]
    assert len(rows) == 1 and rows[0].count("|") == 11
    assert "KL as k3 in the loss" in text.split("KL penalty alone")[1]


def test_the_difference_to_ppo_is_paired_by_seed():
    def run(share, other):
        row = {"kl": 1.0, "mass_outside": 0.0, "lambda_kl_to_optimum": 0.02, "kl_to_reverse_optimum": 0.5}
        of = lambda s: row | {"attainable_gain_share": s}
        return {"kl_coef": 0.1, "variants": {estimators.AS_IT_IS: of(share), "clip 0.1": of(other)}}

    later = {"later": {"cosine": 0.9}}
    one = later | {"cosine": 1.0, "cosine_ci95": [1.0, 1.0], "length": 2.0, "noise": 1.0}
    one |= {"bias": 0.25, "bias_ci95": [0.125, 0.5]}
    grads = {estimators.AS_IT_IS: one | {"kl": one | {"cosine_reverse": 0.5}}, "clip 0.1": one}
    text = estimators.table([run(0.9, 0.91), run(0.95, 0.96), run(0.97, 0.98)], grads)
    row = next(line for line in text.splitlines() if line.startswith("| clip 0.1"))
    assert "+0.010 [0.010, 0.010]" in row and "| 0.250 [0.125, 0.500] | 0.50 |" in row  # noise 1 / length 2
    assert "0.200 [0.200, 0.200] | 0.500" in text, "KL to the optimum is the gap over lambda"


def test_unknown_variants_worlds_and_numbers_are_refused():
    with pytest.raises(UserError, match="'RLOO, K 3' is not one of .*did you mean RLOO, K"):
        chosen("RLOO, K 3", estimators.OPTIONS, "variants", ";")
    assert chosen("RLOO, K 4; clip 0.1", estimators.OPTIONS, "variants", ";") == ["RLOO, K 4", "clip 0.1"]
    assert chosen("all", variance.WORLDS, "worlds") == list(variance.WORLDS)
    with pytest.raises(UserError, match="'quality-plain-0.8' is not one of"):
        chosen("quality-plain-0.8", variance.WORLDS, "worlds")
    for text in ("a", "10,", "3"):
        with pytest.raises(UserError, match="--pairs: .* is not a list of whole numbers from 4 to"):
            overoptimisation.numbers(text, "pairs", 4)
    assert overoptimisation.numbers("8,16,8", "pairs", 4) == [8, 16]


@pytest.mark.parametrize("study", [variance, overoptimisation, estimators])
@pytest.mark.parametrize(
    "argv", [["--lambdas", "x"], ["--ppo.kl_coef", "0.2"], ["--variants", "y"], ["--task", "nothing"]]
)
def test_a_bad_command_line_ends_before_any_training(study, argv, monkeypatch, capsys):
    if (study, argv[0]) in ((estimators, "--ppo.kl_coef"), (estimators, "--lambdas")):
        pytest.skip("an option of the run, or unknown, here")
    monkeypatch.setattr(study, "run_all", lambda *given: pytest.fail("it began"))
    monkeypatch.setattr("sys.argv", ["study", *argv])
    with pytest.raises(SystemExit) as stop:
        study.main()
    assert stop.value.code


@pytest.mark.parametrize("study, guarded", [(s, g) for s in (variance, overoptimisation) for g in (True, False)])
def test_what_is_measured_is_what_the_guard_would_send(study, guarded, tmp_path, monkeypatch):
    """Align-Pro was trained with it, and `train.py` evaluates with it."""
    seen = []

    class Watched(Evaluator):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            seen.append(self.guard)

        def prompter(self, prompter, reference):
            r = np.arange(64.0).reshape(2, 8, 4)
            return Arm(r, r, np.zeros((2, 8)), {})

    monkeypatch.setattr(study, "Evaluator", Watched)
    run = Run(with_options(preset("tiny"), {"out": str(tmp_path), "name": "r", "guard": guarded}))
    reward, world = SimpleNamespace(train=None, report=None), SimpleNamespace(eval_requests=["a", "b"], gold=None)
    if study is variance:
        found = variance.measured(run, ["a", "b"], None, "rho", "rho_sft", reward)
    else:
        found = overoptimisation.measured(run, world, None, "rho", "rho_sft", reward)
    assert found["mean"] == 31.5 and seen == [guarded]


# ---------------------------------------------------------------- variance


def test_too_few_answers_for_a_variance_of_each_half_are_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(variance, "run_all", lambda *given: pytest.fail("it began"))
    monkeypatch.setattr("sys.argv", ["variance", "--theory.answers", "2", "--out", str(tmp_path)])
    with pytest.raises(
        SystemExit, match="^alignpro_mini.experiments.variance: error: --theory.answers is 2; .*least 4$"
    ):
        variance.main()


def drawn(N=40, K=6, M=40, seed=0, noise=1.0):
    """Rated rewrites with known means and standard deviations: (listing, true means (N, K), true variances (N, K))."""
    draw = np.random.default_rng(seed)
    means, spread = draw.normal(size=(N, K)), noise * draw.uniform(0.5, 1.5, size=(N, K))
    r = means[..., None] + spread[..., None] * draw.standard_normal((N, K, M))
    log_sft = torch.full((N, K), 1 / K, dtype=torch.float64).log()
    listing = Listing(["x"] * N, [["x'"] * K] * N, torch.from_numpy(r), log_sft, log_sft)
    return listing, torch.from_numpy(means), torch.from_numpy(spread**2)


@pytest.mark.parametrize("lam", [0.3, 1.0, math.inf])
def test_the_prediction_is_the_variance_that_the_optimum_has(lam):
    listing, means, variances = drawn(N=300, M=400)
    rho = listing.rho_sft if lam == math.inf else theory.optimal_prompter(listing.rho_sft, means, lam)
    each = (rho * means).sum(1)
    want = {
        "mean": each.mean(),
        "between_inputs": each.var(),
        "between_rewrites": (rho * (means - each[:, None]) ** 2).sum(1).mean(),
        "within": (rho * variances).sum(1).mean(),
    }
    told = variance.predicted(listing, lam)
    for key, value in want.items():
        assert told[key] == pytest.approx(float(value), abs=0.02), key
    assert told["total"] == pytest.approx(sum(told[k] for k in list(want)[1:]))


def test_the_prediction_agrees_with_the_components_of_new_answers():
    """The law of total variance against nested ANOVA on rewrites drawn from rho* and new answers to them."""
    listing, means, variances = drawn(N=400, M=200, seed=1)
    rho = theory.optimal_prompter(listing.rho_sft, means, 0.5)
    picks = torch.multinomial(rho, 8, replacement=True, generator=torch.Generator().manual_seed(0))
    noise = torch.from_numpy(np.random.default_rng(2).standard_normal((400, 8, 4)))
    new = means.gather(1, picks)[..., None] + variances.sqrt().gather(1, picks)[..., None] * noise
    told, found = variance.predicted(listing, 0.5), variance_parts(new.numpy())
    for key, value in found.items():
        assert told[key] == pytest.approx(value, abs=0.08), key
    assert variance.plain(listing)["between_rewrites"] == pytest.approx(0.0, abs=1e-9)
    assert variance.plain(listing)["within"] == pytest.approx(float(variances[:, 0].mean()), abs=0.05)


def test_noise_in_R_does_not_pass_for_variance():
    """Rewrites that are all alike: with few answers the plain estimate would show a spread that is not there."""
    listing, _, _ = drawn(N=200, M=6, seed=3)
    alike = Listing(
        listing.requests, listing.rewrites, listing.r - listing.r.mean(2, keepdim=True), *(listing.log_sft,) * 2
    )
    noise = torch.from_numpy(np.random.default_rng(4).standard_normal((200, 6, 6)))
    alike = Listing(alike.requests, alike.rewrites, noise, listing.log_sft, listing.log_sft)
    told = variance.predicted(alike, math.inf)
    assert abs(told["between_rewrites"]) < 0.02 and abs(told["between_inputs"]) < 0.03
    assert told["within"] == pytest.approx(1.0, abs=0.03)


def test_a_world_end_to_end(tmp_path, small):  # noqa: F811
    worlds = ["quality-plain-0.9", "attributes-cue-0.5"]
    run = variance.run_worlds(config_of(tmp_path), False, worlds, [0.1, 1.0])
    assert list(run["worlds"]) == worlds
    for world, found in run["worlds"].items():
        task, spread, follow = world.split("-")
        saved = json.loads((tmp_path / "e" / world / "lam-0.1" / "config.json").read_text())
        assert (saved["task"], saved["world"]["spread"], saved["world"]["follow"]) == (task, spread, float(follow))
        assert [p["lam"] for p in found["points"]] == [p["lam"] for p in found["predicted"]] == [0.1, 1.0]
    again = variance.run_worlds(config_of(tmp_path), True, worlds[:1], [0.1, 1.0])
    assert again == run, "the other world is loaded"
    text = variance.table([run, run])
    start = json.loads((tmp_path / "e" / worlds[0] / "no-finetuning" / "checkpoints" / "evaluation.json").read_text())
    assert start == run["worlds"][worlds[0]]["start"] and start["between_rewrites"] == 0 and start["kl"] == 0
    assert "predicted and measured ratio on the same side of 1" in text and "attributes-cue-0.5" in text
    variance.figure([run, run], tmp_path / "v.png")
    assert (tmp_path / "v.png").stat().st_size > 1000


# ---------------------------------------------------------------- over-optimisation


def test_over_optimisation_end_to_end(tmp_path, small):  # noqa: F811
    run = overoptimisation.run_cells(config_of(tmp_path), False, [64, 80], [0.1], [0, 1])
    assert [(c["pairs"], c["mismatched"]) for c in run["cells"]] == [(64, 0), (64, 1), (80, 0), (80, 1)]
    saved = json.loads((tmp_path / "e" / "pairs-80-mismatched-0-lam-0.1" / "config.json").read_text())
    assert (saved["reward_model"]["pairs"], saved["reward_model"]["mismatched"], saved["ppo"]["kl_coef"]) == (
        80,
        0.0,
        0.1,
    )
    for cell in run["cells"]:
        name = f"pairs-{cell['pairs']}-mismatched-{cell['mismatched']}"
        start, end = (
            json.loads((tmp_path / "e" / folder / "checkpoints" / "evaluation.json").read_text())
            for folder in (name, f"{name}-lam-0.1")
        )
        assert cell["gain"] == pytest.approx((end["mean"] - start["mean"]) / start["std"])
        assert cell["gold_gain"] == pytest.approx((end["gold_mean"] - start["gold_mean"]) / start["gold_std"])
        assert cell["kl"] == end["kl"] and start["kl"] == pytest.approx(0.0, abs=1e-6), "from the SFT prompter on"
    text = overoptimisation.table([run, run])
    assert len(text.splitlines()) == 5 and "±" in text
    overoptimisation.figure([run], tmp_path / "o.png")
    assert (tmp_path / "o.png").stat().st_size > 1000


# ---------------------------------------------------------------- the optimum of the reverse KL


def test_the_reverse_optimum_beats_its_neighbours():
    g = torch.Generator().manual_seed(0)
    R, ref = torch.randn(3, 5, generator=g).double(), torch.rand(3, 5, generator=g).double()
    ref[0, 2] = 0.0
    ref /= ref.sum(1, keepdim=True)
    value = lambda q: float(theory.value(q, R) - 0.3 * theory.kl(ref, q).mean())
    best = theory.reverse_kl_optimum(ref, R, 0.3)
    torch.testing.assert_close(best.sum(1), torch.ones(3, dtype=torch.float64))
    assert best[0, 2] == 0 and value(best) > value(theory.optimal_prompter(ref, R, 0.3)) + 1e-3
    for _ in range(300):
        other = best * (0.2 * torch.randn(3, 5, generator=g)).exp()
        assert value(other / other.sum(1, keepdim=True)) <= value(best) + 1e-12
    flat = theory.reverse_kl_optimum(ref, torch.zeros(3, 5), 0.3)
    torch.testing.assert_close(flat, ref, rtol=0, atol=1e-9)
