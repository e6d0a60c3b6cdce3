"""Reward against the answers used in training: the selector on fakes, what each method pays, and one run in small."""

import json
from types import SimpleNamespace

import pytest
import torch
from cells import cell_config, refused

from alignpro_mini import theory
from alignpro_mini.alignpro import Prompter
from alignpro_mini.experiments import budget, study
from alignpro_mini.frozen import Answer, FrozenLM
from alignpro_mini.lab import optimum
from alignpro_mini.lab.config import EvalConfig, preset
from alignpro_mini.lab.optimum import RatedRewrites
from alignpro_mini.weights.pretrained import load_pretrained
from alignpro_mini.weights.tensors import load_state

PNG = b"\x89PNG\r\n\x1a\n"
SHARES = [0.5, 1.0]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- features and ridge regression


def test_features_are_words_and_a_constant():
    found = budget.features(["b a b", "unknown", "c other", ""], ["a", "b", "c"])
    assert found.dtype == torch.float64
    assert found.tolist() == [[1, 1, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert budget.features(["ab", "A"], ["a", "b"])[:, :2].sum() == 0, "whole words, as they are written"
    assert budget.features(["a b"], []).tolist() == [[1]]


def test_ridge_by_hand():
    """Only a constant: the sum over one more than there are. Then a word and a constant."""
    one = torch.ones(3, 1).double()
    weights = budget.ridge(one, torch.tensor([0, 0, 1]), torch.tensor([1.0, 2.0, 8.0]).double(), 2)
    torch.testing.assert_close(weights, torch.tensor([[1.0], [4.0]]).double())
    phi = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).double()
    weights = budget.ridge(phi, torch.tensor([0, 0]), torch.tensor([5.0, -3.0]).double(), 1)
    # (1 1; 1 2) + I = (2 1; 1 3), whose inverse is (3 -1; -1 2) / 5; the right side is (5; 2)
    torch.testing.assert_close(weights, torch.tensor([[13 / 5, -1 / 5]]).double())


def test_ridge_is_least_squares_with_a_row_of_zeros_for_each_weight():
    phi = torch.randn(30, 6, generator=rng()).double()
    r, kinds = torch.randn(30, generator=rng(1)).double(), torch.randint(3, (30,), generator=rng(2))
    weights = budget.ridge(phi, kinds, r, 3)
    for k in range(3):
        rows = torch.cat((phi[kinds == k], budget.RIDGE**0.5 * torch.eye(6).double()))
        right = torch.cat((r[kinds == k], torch.zeros(6).double()))
        torch.testing.assert_close(weights[k], torch.linalg.lstsq(rows, right).solution)


def test_ridge_recovers_a_linear_model_of_each_kind():
    true = torch.randn(4, 5, generator=rng()).double()
    phi = torch.cat((torch.randint(2, (8000, 4), generator=rng(1)), torch.ones(8000, 1)), 1).double()
    kinds = torch.randint(4, (8000,), generator=rng(2))
    r = (phi * true[kinds]).sum(1) + 0.3 * torch.randn(8000, generator=rng(3)).double()
    torch.testing.assert_close(budget.ridge(phi, kinds, r, 4), true, rtol=0, atol=0.05)


def test_a_kind_without_answers_has_no_weights():
    phi = torch.ones(4, 2).double()
    weights = budget.ridge(phi, torch.tensor([0, 2, 2, 0]), torch.ones(4).double(), 4)
    assert weights.shape == (4, 2) and weights[[1, 3]].abs().max() == 0 and weights[[0, 2]].min() > 0.2
    assert budget.ridge(phi[:0], torch.zeros(0).long(), torch.zeros(0).double(), 2).tolist() == [[0, 0], [0, 0]]


# ---------------------------------------------------------------- the selector and the fixed rewrite, on fakes

WISHES = ("short", "long", "warm", "exact")


class FourWishes:
    """Requests with a wish among other words; four kinds of rewrites, each of which serves one wish."""

    train_requests = [f"{verb} {wish} {town}" for verb in ("say", "tell") for wish in WISHES for town in "ABCDEFGHIJ"]
    eval_requests = [f"{verb} {wish} {town}" for verb in ("say", "write") for wish in WISHES for town in "XYZ"]

    def rewrites(self, x):
        return [f"{x} {kind}" for kind in range(4)]


def worth(x: str, kind: int) -> float:
    """1 if the kind serves the request's wish; kind 2 is a little better than the others for all."""
    return float(WISHES.index(x.split()[1]) == kind) + 0.1 * (kind == 2)


def fakes(noise=0.0):
    """(what the methods read of `study.Stages`, all that the frozen model is asked); rewards have `noise`."""
    world, asked, draw = FourWishes(), [], rng(7)

    def answer(prompts, generator):
        asked.extend(prompts)
        return [Answer(p, truncated=False) for p in prompts]

    def reward(prompts, completions):
        assert all(y[:-2] == x for x, y in zip(prompts, completions, strict=True)), "rated against the request"
        exact = torch.tensor([worth(x, int(y[-1])) for x, y in zip(prompts, completions)])
        return exact + noise * torch.randn(len(exact), generator=draw)

    requests = world.eval_requests
    R = torch.tensor([[worth(x, kind) for kind in range(4)] for x in requests]).double()
    rated = RatedRewrites(requests, [world.rewrites(x) for x in requests], R[:, :, None].repeat(1, 1, 2))
    never = lambda x, y: pytest.fail("the reward as it is reported was asked")
    reward = SimpleNamespace(train=reward, report=never)
    run = SimpleNamespace(generator=lambda name: rng(len(name)))
    frozen = SimpleNamespace(answer=answer)
    return SimpleNamespace(run=run, world=world, pi_f=frozen, reward=reward, rated=rated), asked


def test_the_selector_reads_the_request():
    """Its held-out requests have towns and a verb that it never saw; the wish decides, whatever else is said."""
    shared, asked = fakes(noise=0.5)
    found = budget._selector(shared, 1500, None)
    best, oracle = float(shared.rated.R.mean(0).max()), float(shared.rated.R.max(1).values.mean())
    assert (best, oracle) == pytest.approx((0.35, 1.025))
    assert found["mean"] > best + 0.9 * (oracle - best)
    assert found["answers"] == 1500 == len(asked), "no more is paid than is told"
    assert {text[:-2] for text in asked} == set(shared.world.train_requests), "no held-out request"
    counts = [sum(text.endswith(str(kind)) for text in asked) for kind in range(4)]
    assert min(counts) > 300, "all kinds are tried"


def test_the_selector_takes_the_best_kind_of_each_request_and_learns_from_its_answers():
    exact, few = (budget._selector(fakes()[0], answers, None)["mean"] for answers in (1500, 4))
    assert exact == pytest.approx(1.025) and few < 0.8


@pytest.mark.parametrize("answers", [8, 40, 400])
def test_the_fixed_rewrite_is_found_on_training_requests_and_rated_on_the_listing(answers):
    shared, asked = fakes()
    found = budget._fixed(shared, shared.rated.R, answers, None)
    assert found["answers"] == len(asked) <= answers
    assert {text[:-2] for text in asked} <= set(shared.world.train_requests)
    assert found["mean"] == pytest.approx(float(shared.rated.R[:, found["kind"]].mean()))
    assert answers < 400 or found["kind"] == 2


def test_best_of_n_answers_the_listed_requests():
    """Nothing is trained, and the rating is of all the requests that the other methods are rated on."""
    shared, _ = fakes()
    shared.run.config = SimpleNamespace(eval=EvalConfig(inputs=500, best_of_n=3))
    shared.rho_sft = "the SFT prompter"
    seen = []

    def evaluator(run, purpose, requests, counts):
        seen.append((requests, counts.inputs, counts.best_of_n))
        arm = lambda value: SimpleNamespace(reward=torch.tensor([[[value]], [[value + 1]]]))
        of = {"the SFT prompter": 1.0}
        return SimpleNamespace(best_of_n=lambda rho: arm(of[rho]), best_of_n_answers=lambda: arm(4.0))

    shared.evaluator = evaluator
    assert budget._best_of_n(shared, None) == {"best-of-3 rewrites": 1.5, "best-of-3 answers": 4.5}
    assert seen == [(shared.world.eval_requests, 24, 3)]


def test_ppo_uses_each_iterations_rewrites_times_the_answers_to_each():
    config = cell_config("anywhere", **{"ppo.iterations": 7, "ppo.batch_size": 16, "ppo.answers": 3})
    assert budget.answers_of(config) == 7 * 16 * 3
    tiny = preset("tiny").ppo
    assert budget.answers_of(preset("tiny")) == tiny.iterations * tiny.batch_size * tiny.answers


# ---------------------------------------------------------------- one run in small


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """(configuration, results, [(method, answers told, answers asked)]) of one cell."""
    config = budget.STUDY.named(cell_config(tmp_path_factory.mktemp("budget"), name="", **{"ppo.iterations": 4}))
    asked, used, answer = [], [], FrozenLM.answer

    def counted(self, prompts, generator=None):
        asked.extend(prompts)
        return answer(self, prompts, generator)

    def paid(method):
        def measured(*given):
            before = len(asked)
            found = method(*given)
            used.append((method.__name__, found["answers"], len(asked) - before))
            return found

        return measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenLM, "answer", counted)
        for name in ("_trained", "_fixed", "_selector"):
            patch.setattr(budget, name, paid(getattr(budget, name)))
        results = budget.STUDY.cell(config, False, shares=SHARES)
    budget.STUDY.leave([config], [results], {"shares": SHARES})
    return config, results, used


def test_every_method_pays_what_is_told_and_about_the_same(micro):
    config, results, used = micro
    whole = budget.answers_of(config)
    assert whole == 4 * 16 * config.ppo.answers and list(results["methods"]) == list(budget.COLOURS)
    assert [name for name, _, _ in used] == ["_trained"] * 4 + ["_fixed"] * 2 + ["_selector"] * 2
    for (name, told, asked), share in zip(used, SHARES * 4, strict=True):
        own = share * whole
        # five rounds for 24 kinds, then 12, 6, 3, 2; each is asked at least once, which may be more than its fifth
        most = sum(max(kinds, own / 5) for kinds in (24, 12, 6, 3, 2)) if name == "_fixed" else own
        assert told == asked and own <= told <= most, name
    told = [point["answers"] for points in results["methods"].values() for point in points]
    assert told == [told for _, told, _ in used]
    assert told[:4] == told[-2:] * 2 == [whole // 2, whole] * 2


def test_trained_runs_have_their_share_of_the_iterations_and_their_variant(micro):
    config, results, _ = micro
    for name, variant, group in (("PPO", "ppo", 1), ("RLOO", "rloo", 4)):
        for iterations in (2, 4):
            saved = json.loads((study.folder(config) / f"{name}-{iterations}" / "config.json").read_text())["ppo"]
            found = [saved[key] for key in ("variant", "rewrites_per_request", "iterations", "batch_size")]
            assert found == [variant, group, iterations, 16]


def test_all_methods_are_rated_on_one_listing(micro):
    config, results, _ = micro
    base = study.folder(config) / "base" / "checkpoints"
    r = load_state(base / "listing.safetensors")[0]["r"]  # (4, 24, 8)
    R = r.nanmean(2)  # (4, 24)
    shared = study.Stages(config, True)
    of = lambda folder: optimum.log_probabilities(
        Prompter(*load_pretrained(folder), 20), shared.rated.requests, shared.rated.rewrites
    ).softmax(1)
    start = of(base / "prompter_sft")
    for name in budget.TRAINED:
        for point, iterations in zip(results["methods"][name], (2, 4)):
            rho = of(study.folder(config) / f"{name}-{iterations}" / "checkpoints" / "align_pro")
            assert point["mean"] == pytest.approx(float(theory.value(rho, R)), abs=1e-5)
            assert point["kl"] == pytest.approx(float(theory.kl(rho, start).mean()), rel=1e-2) and point["kl"] > 1e-9
    for point in results["methods"]["fixed rewrite"]:
        assert point["mean"] == pytest.approx(float(R[:, point["kind"]].mean()))
    lines = results["lines"]
    assert list(lines) == ["no fine-tuning", "closed form", "best-of-4 rewrites", "best-of-4 answers"]
    assert lines["no fine-tuning"] == pytest.approx(float(R[:, 0].mean()))
    crossed = []
    for chose, rates in (halves := [r[:, :, ::2].nanmean(2), r[:, :, 1::2].nanmean(2)], halves[::-1]):
        tilted = start * (chose / config.ppo.kl_coef).exp()
        crossed.append(float((tilted / tilted.sum(1, keepdim=True) * rates).sum(1).mean()))
    assert lines["closed form"] == pytest.approx(sum(crossed) / 2, abs=1e-5), "rated by answers that did not choose it"


def test_a_budget_that_goes_on_asks_the_frozen_model_nothing(micro, monkeypatch):
    config, results, _ = micro
    assert json.loads(json.dumps(results, allow_nan=False)) == results, "it can be written"
    monkeypatch.setattr(FrozenLM, "answer", lambda *given: pytest.fail("it was asked"))
    assert budget.STUDY.cell(config, True, shares=SHARES) == results
    whole = budget.STUDY.cell(config, True, shares=[1.0])
    assert whole["methods"] == {name: points[1:] for name, points in results["methods"].items()}
    alike = budget.STUDY.cell(config, True, shares=[1.0, 0.5, 0.45, 0.55])
    assert alike == results, "shares of equally many iterations are one, from few to many"


def test_a_tiny_share_is_one_iteration_for_every_method(micro):
    config, results, _ = micro
    found = budget.STUDY.cell(config, True, shares=[1e-4, 0.01, 1.0])["methods"]
    assert [len(points) for points in found.values()] == [2] * 4
    assert {name: points[1] for name, points in found.items()} == {
        name: points[1] for name, points in results["methods"].items()
    }
    one = 16 * config.ppo.answers
    assert [found[name][0]["answers"] for name in ("PPO", "RLOO", "selector")] == [one] * 3
    assert found["fixed rewrite"][0]["answers"] <= max(one, 24 + 12 + 6 + 3 + 2), "each kind is asked at least once"
    saved = json.loads((study.folder(config) / "PPO-1" / "config.json").read_text())["ppo"]
    assert saved["iterations"] == 1


def test_the_common_files_hold_the_results_and_the_figure(micro):
    config, results, _ = micro
    stem = study.folder(config).with_name("budget-micro")
    assert json.loads(stem.with_name("budget-micro.json").read_text()) == {"runs": [results]}
    assert stem.with_name("budget-micro.png").read_bytes().startswith(PNG)


# ---------------------------------------------------------------- table and figure


def by_hand(seed=0, task="quality", low=1.0, high=3.0) -> dict:
    """No fine-tuning earns 1 and the closed form 3; a method at half and at all of its answers."""
    lines = {"no fine-tuning": low, "closed form": high, "best-of-4 rewrites": 1.5, "best-of-4 answers": 4.0}
    points = lambda *means: [{"answers": 100.0 * (i + 1), "mean": mean} for i, mean in enumerate(means)]
    methods = {"PPO": points(2.0, 2.5), "RLOO": points(2.0, 3.0), "fixed rewrite": points(0.5, 1.0)}
    return {"task": task, "seed": seed, "lines": lines, "methods": methods | {"selector": points(1.5, 3.5)}}


def test_the_share_of_the_closed_forms_gain_by_hand():
    lines = budget.table({"runs": [by_hand()]}).splitlines()
    assert lines[0].split()[:4] == ["task", "method", "budget", "answers"]
    rows = {tuple(line.split()[1:-3]): line.split()[-3:] for line in lines[1:]}
    assert rows["no", "fine-tuning", "–"] == ["–", "1.00", "0.00"]
    assert rows["closed", "form", "–"] == ["–", "3.00", "1.00"]
    assert rows["best-of-4", "rewrites", "–"] == ["–", "1.50", "0.25"]
    assert rows["best-of-4", "answers", "–"] == ["–", "4.00", "1.50"], "answers may earn more than rewrites can"
    told = {name: [rows[*name.split(), f"{i}", "of", "2"][1:] for i in (1, 2)] for name in budget.COLOURS}
    assert told["PPO"] == [["2.00", "0.50"], ["2.50", "0.75"]] and told["RLOO"][1] == ["3.00", "1.00"]
    assert told["fixed rewrite"] == [["0.50", "-0.25"], ["1.00", "0.00"]] and told["selector"][1] == ["3.50", "1.25"]
    assert rows["PPO", "2", "of", "2"][0] == "200" and len(lines) == 1 + 4 + 8


def test_each_seed_is_measured_by_its_own_lines():
    """2 of 1 to 3 is a half, 2 of 0 to 2 the whole: 0.75."""
    lines = budget.table({"runs": [by_hand(), by_hand(1, low=0.0, high=2.0)]}).splitlines()
    rows = {tuple(line.split()[1:3]): [c for c in line.split() if "±" not in c] for line in lines}
    assert rows["PPO", "1"][-2:] == ["2.00", "0.75"]
    assert rows["no", "fine-tuning"][-2:] == ["0.50", "0.00"] and rows["closed", "form"][-2:] == ["2.50", "1.00"]


@pytest.mark.parametrize("high", [1.0, 0.9])
def test_a_share_of_no_gain_is_none(high):
    """A cross-fitted closed form may earn no more than no fine-tuning; then the rewards stand alone."""
    lines = budget.table({"runs": [by_hand(high=high)]}).splitlines()
    assert len(lines) == 1 + 4 + 8 and all(line.endswith("–") for line in lines[1:])
    assert [c for c in lines[5].split() if c != "–"][-2:] == ["100", "2.00"]
    (both,) = [x for x in budget.table({"runs": [by_hand(), by_hand(1, high=high)]}).splitlines() if "PPO  1 of" in x]
    assert both.endswith("0.50 (n 1)"), "the seeds that have one"


def test_the_figure_has_a_panel_a_task(tmp_path):
    widths = []
    for tasks in (["quality"], ["quality", "reasoning"]):
        runs = [by_hand(seed, task) for task in tasks for seed in (0, 1)]
        budget.figure({"runs": runs}, tmp_path / "b.png")
        picture = (tmp_path / "b.png").read_bytes()
        assert picture.startswith(PNG)
        widths.append(int.from_bytes(picture[16:20], "big"))
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--shares", "0.5,0"], "--shares: '0.5,0' is not a list of numbers above 0"),
        (["--shares", "half"], "--shares: 'half' is not a list of numbers above 0"),
        (["--shares", "0.5,"], "--shares: '0.5,' is not a list of numbers above 0"),
        (["--shares", "-1"], "--shares: '-1' is not a list of numbers above 0"),
        (["--ppo.variant", "reinforce"], "--ppo.variant: it is varied here; leave it out"),
        (["--ppo.rewrites_per_request", "4"], "--ppo.rewrites_per_request: it is varied here; leave it out"),
        (["--oracle.lr", "1"], "--oracle.lr: this study does not read it; leave it out"),
        (["--eval.untrained_arms", "false"], "--eval.untrained_arms: this study does not read it; leave it out"),
        (["--eval.headroom_inputs", "4"], "--eval.headroom_inputs: this study does not read it; leave it out"),
        (["--theory.samples", "4"], "--theory.samples: this study does not read it; leave it out"),
        (["--ppo.batch_size", "18"], "--ppo.batch_size is 18; RLOO takes a multiple of 4"),
        (["--theory.inputs", "0"], "the optimum is known for the embedded world"),
        (["--ppo.kl_coef", "0"], "the optimum is known for the embedded world"),
    ],
)
def test_what_cannot_be_done_is_told_before_any_work(argv, told, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, budget.STUDY, argv=argv)
    assert line.startswith("alignpro_mini.experiments.budget: error: ") and told in line
