"""The plane of mean and variance: RLHF's optimum and the prompters against known moments, and one run in small."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from cells import cell_config, refused, started

from alignpro_mini import theory
from alignpro_mini.alignpro import Prompter
from alignpro_mini.experiments import plane, study
from alignpro_mini.frozen import Answer, FrozenLM
from alignpro_mini.lab import optimum, rewards
from alignpro_mini.lab.config import TheoryConfig
from alignpro_mini.lab.optimum import moments
from alignpro_mini.weights.pretrained import load_pretrained
from alignpro_mini.weights.tensors import load_state

PNG = b"\x89PNG\r\n\x1a\n"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table_of(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------- RLHF's optimum from answers of the frozen LM


def test_rlhf_by_hand():
    """Weights 1/4 and 3/4 of the first request's answers, of which 1.6 count; the second's are alike, and both do."""
    ln3 = math.log(3)
    found = plane.rlhf(table_of([[0.0, ln3], [1.0, 1.0]]), beta=1.0)
    assert list(found) == ["mean", "variance", "effective"]
    assert found["mean"] == pytest.approx((0.75 * ln3 + 1) / 2)
    within, between = (3 / 16 * ln3**2 + 0) / 2, (1 - 0.75 * ln3) ** 2 / 2
    assert found["variance"] == pytest.approx(within + between)
    assert found["effective"] == pytest.approx(1 / (1 / 16 + 9 / 16))
    softer = plane.rlhf(table_of([[0.0, 2 * ln3], [2.0, 2.0]]), beta=2.0)
    assert softer["mean"] == pytest.approx(2 * found["mean"]) and softer["effective"] == pytest.approx(1.6)


@pytest.mark.parametrize("beta", [0.05, 0.4, 3.0])
def test_rlhf_is_the_optimal_policy_over_the_answers_that_were_drawn(beta):
    """Three distinct answers, drawn as often as `counts` says: pi_F is known, and so is pi* ~ pi_F exp(r / beta)."""
    counts, r = torch.tensor([[1, 5, 2], [4, 0, 4], [6, 1, 1]]), draw(3, 3)
    plain = torch.stack([row.repeat_interleave(times) for row, times in zip(r, counts)])  # (3, 8)
    star = theory.optimal_prompter(counts.double() / 8, r, beta)
    each = (star * r).sum(1)
    found = plane.rlhf(plain, beta)
    assert found["mean"] == pytest.approx(float(theory.value(star, r)))
    within = (star * (r - each[:, None]) ** 2).sum(1)
    assert found["variance"] == pytest.approx(float(within.mean() + each.var()))
    assert 1 <= found["effective"] <= 8


def test_rlhf_of_normal_rewards_moves_the_mean_and_keeps_the_variance():
    """r ~ N(mu, s^2) tilted by exp(r / beta) is N(mu + s^2 / beta, s^2)."""
    mu, s, beta = 0.5 * draw(200, 1, seed=1), 0.8, 0.8
    found = plane.rlhf(mu + s * draw(200, 3000, seed=2), beta)
    assert found["mean"] == pytest.approx(float(mu.mean()) + s**2 / beta, abs=0.02)
    assert found["variance"] == pytest.approx(s**2 + float(mu.var()), abs=0.03)
    usual = 3000 * math.exp(-((s / beta) ** 2))  # of one request
    assert 0.4 * usual < found["effective"] < 0.95 * usual, "the least of 200"


def test_the_effective_answers_are_all_or_one():
    assert plane.rlhf(torch.full((3, 7), 0.3).double(), 0.1)["effective"] == pytest.approx(7)
    dominated = torch.zeros(3, 7).double()
    dominated[:, 4] = 5.0
    found = plane.rlhf(dominated, 0.1)
    assert found == pytest.approx({"mean": 5.0, "variance": 0.0, "effective": 1.0})
    half = plane.rlhf(torch.cat((dominated, torch.zeros(3, 7).double())), 0.1)
    assert half["effective"] == pytest.approx(1), "one request is enough to be too few"


def test_a_large_beta_is_no_fine_tuning():
    plain = draw(5, 9) + draw(5, 1, seed=1)
    found = plane.rlhf(plain, 1e9)
    only = moments(torch.ones(5, 1).double(), plain[:, None])
    want = {"mean": float(plain.mean()), "variance": only["total"], "effective": 9.0}
    assert found == pytest.approx(want)


# ---------------------------------------------------------------- the points of the plane


def rated(N=6, K=5, M=4, more=0, seed=0):
    """(rho_sft (N, K), r (N, K, M + more)); of `more` answers two rewrites get none."""
    r = torch.cat((draw(N, K, M, seed=seed), draw(N, K, more, seed=seed + 1)), 2) + draw(N, K, 1, seed=seed + 2)
    r[:, 1:3, M:] = torch.nan
    return draw(N, K, seed=seed + 3).softmax(1), r


@pytest.mark.parametrize("more", [0, 6])
def test_a_fixed_rewrite_is_a_prompter_that_always_writes_it(more):
    rho_sft, r = rated(more=more)
    points = plane.points(rho_sft, r, draw(6, 10))["fixed"]
    assert [point["kind"] for point in points] == list(range(5))
    for k, point in enumerate(points):
        always = torch.zeros(6, 5).double()
        always[:, k] = 1.0
        found = moments(always, r)
        assert (point["mean"], point["variance"]) == (found["mean"], found["total"])
        own = [row[~row.isnan()] for row in r[:, k]]
        mean, within = (torch.stack([f(row) for row in own]) for f in (torch.mean, torch.var))
        assert point["mean"] == pytest.approx(float(mean.mean()))
        assert point["variance"] == pytest.approx(float(mean.var() + within.mean() - within.mean() / len(own[0])))


def test_no_fine_tuning_by_hand():
    """Means 1 and 4, variances 2 and 0, so the noise of a mean has the variance 2 / 2 or 0."""
    rho_sft, r = rated(N=2)
    (point,) = plane.points(rho_sft, r, table_of([[0.0, 2.0], [4.0, 4.0]]))["plain"]
    assert point == pytest.approx({"mean": 2.5, "variance": 4.5 - 0.5 + 1.0})


def test_a_prompter_is_rated_by_answers_that_did_not_choose_it(monkeypatch):
    rho_sft, r = rated(more=6)
    monkeypatch.setattr(plane, "LAMBDAS", (0.1, 0.7))
    points = plane.points(rho_sft, r, draw(6, 10))["prompter"]
    assert [point["lam"] for point in points] == [0.1, 0.7]
    even, odd = r[:, :, ::2], r[:, :, 1::2]
    for point in points:
        crossed = []
        for chose, rates in ((even, odd), (odd, even)):
            tilted = rho_sft * (chose.nanmean(2) / point["lam"]).exp()
            crossed.append(moments(tilted / tilted.sum(1, keepdim=True), rates))
        assert point["mean"] == pytest.approx((crossed[0]["mean"] + crossed[1]["mean"]) / 2)
        assert point["variance"] == pytest.approx((crossed[0]["total"] + crossed[1]["total"]) / 2)


def test_a_prompter_gains_nothing_from_noise():
    """All rewrites alike: what came out high by chance does not when it is answered again."""
    uniform = torch.full((400, 8), 1 / 8).double()
    found = plane.points(uniform, draw(400, 8, 4), draw(400, 16, seed=1))
    for point in found["prompter"]:
        assert abs(point["mean"]) < 0.1 and point["variance"] == pytest.approx(1.0, abs=0.1)
    assert max(point["mean"] for point in found["fixed"]) < 0.1


def test_with_a_large_lambda_the_prompter_is_rho_sft(monkeypatch):
    rho_sft, r = rated()
    monkeypatch.setattr(plane, "LAMBDAS", (1e9,))
    (point,) = plane.points(rho_sft, r, draw(6, 10))["prompter"]
    assert point["mean"] == pytest.approx(float(theory.value(rho_sft, r.mean(2))))
    totals = [moments(rho_sft, half)["total"] for half in (r[:, :, ::2], r[:, :, 1::2])]
    assert point["variance"] == pytest.approx(sum(totals) / 2)


def test_every_rewrite_and_the_request_itself_are_answered_and_rated_against_the_request():
    """A rewrite adds its kind, a digit; the answer is the prompt; the reward is that digit, 7 for the bare request."""
    world = SimpleNamespace(eval_requests=["a", "b", "left out"], rewrites=lambda x: [f"{x} {k}" for k in range(3)])
    asked = []

    def answer(prompts, generator):
        asked.extend(prompts)
        return [Answer(p, truncated=False) for p in prompts]

    def score(prompts, completions):
        assert all(y.split()[0] == x for x, y in zip(prompts, completions, strict=True))
        return [float(y.split()[1]) if " " in y else 7.0 for y in completions]

    run = SimpleNamespace(
        config=SimpleNamespace(theory=TheoryConfig(inputs=2, answers=4, more_answers=0)),
        generator=lambda name: torch.Generator().manual_seed(0),
    )
    shared = SimpleNamespace(run=run, world=world, pi_f=SimpleNamespace(answer=answer))
    requests = world.eval_requests[:2]
    found = plane.rate(shared, requests, [world.rewrites(x) for x in requests], score, 5)
    torch.testing.assert_close(found["r"], torch.arange(3.0).double()[None, :, None].expand(2, 3, 4))
    torch.testing.assert_close(found["plain"], torch.full((2, 5), 7.0).double())
    assert len(asked) == 2 * 3 * 4 + 2 * 5 and asked.count("b") == 5 and "left out" not in asked


# ---------------------------------------------------------------- where both orderings hold


def three(plain=(0.0, 1.0), ours=(1.0, 0.5), oracle=(2.0, 0.8), effective=20.0) -> dict:
    """(mean, variance) of each: by default the prompter lies between in mean, and below both in variance."""
    at = lambda pair: dict(zip(("mean", "variance"), pair))
    return {
        "plain": [at(plain)],
        "prompter": [{"lam": 0.1} | at(ours)],
        "rlhf": [{"beta": 0.3} | at(oracle) | {"effective": effective}],
        "fixed": [{"kind": 0} | at(plain), {"kind": 1} | at((0.7, 0.6))],
    }


def test_both_orderings_hold_together():
    assert plane.both_orderings(three()) == [(0.1, 0.3)]
    assert plane.both_orderings(three(effective=plane.LEAST_EFFECTIVE)) == [(0.1, 0.3)]
    assert plane.both_orderings(three(oracle=(2.0, 1.8))) == [(0.1, 0.3)], "RLHF may vary more than no fine-tuning"


@pytest.mark.parametrize(
    "changed",
    [
        {"ours": (-0.5, 0.5)},
        {"ours": (0.0, 0.5)},
        {"oracle": (0.9, 0.8)},
        {"oracle": (1.0, 0.8)},
        {"oracle": (2.0, 0.4)},
        {"oracle": (2.0, 0.5)},
        {"plain": (0.0, 0.4)},
        {"plain": (0.0, 0.5)},
        pytest.param({"effective": 7.9}, id="too few"),
    ],
)
def test_one_condition_that_fails_is_enough(changed):
    """No gain, a mean not below RLHF's, a variance not below RLHF's or no fine-tuning's, too few effective answers."""
    assert plane.both_orderings(three(**changed)) == []


def test_every_pair_of_coefficients_is_tried():
    found = three()
    found["prompter"] += [{"lam": 0.2, "mean": 0.5, "variance": 0.3}, {"lam": 0.5, "mean": 0.4, "variance": 1.2}]
    found["rlhf"] += [
        {"beta": 1.0, "mean": 0.6, "variance": 0.9, "effective": 30.0},
        {"beta": 0.1, "mean": 3.0, "variance": 2.0, "effective": 2.0},
    ]
    assert plane.both_orderings(found) == [(0.1, 0.3), (0.2, 0.3), (0.2, 1.0)]


# ---------------------------------------------------------------- one run in small


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """(configuration, results) of one cell; the common files lie beside its folder."""
    config = plane.STUDY.named(cell_config(tmp_path_factory.mktemp("plane"), name=""))
    results = plane.STUDY.cell(config, False, plain_answers=12)
    plane.STUDY.leave([config], [results], {"plain_answers": 12})
    return config, results


def saved(config, stage: str) -> dict[str, torch.Tensor]:
    return load_state(study.folder(config) / "base" / "checkpoints" / f"{stage}.safetensors")[0]


def test_a_plane_has_all_points_of_both_rewards(micro):
    config, results = micro
    assert (results["task"], results["seed"]) == ("quality", 0) and list(results["rewards"]) == ["learned", "gold"]
    assert json.loads(json.dumps(results, allow_nan=False)) == results, "it can be written"
    for name, found in results["rewards"].items():
        assert [p["lam"] for p in found["prompter"]] == list(plane.LAMBDAS)
        assert [p["beta"] for p in found["rlhf"]] == list(plane.BETAS)
        assert [p["kind"] for p in found["fixed"]] == list(range(24)) and len(found["plain"]) == 1
        assert all(1 <= p["effective"] <= 12 for p in found["rlhf"])
        means = [p["mean"] for p in found["rlhf"]]
        assert means == sorted(means, reverse=True) and means[-1] > found["plain"][0]["mean"]
        rated = saved(config, f"plane_{name}_12")
        assert rated["r"].shape == (4, 24, 8) and rated["plain"].shape == (4, 12)
        assert found["plain"][0]["mean"] == pytest.approx(float(rated["plain"].mean()))


def test_the_true_reward_has_the_unit_of_the_learned_one(micro):
    """Both have mean 0 and variance 1 on the same answers, those to rho_sft's rewrites; and its order is gold's."""
    shared = study.Stages(micro[0], True)
    requests, answers = rewards.answers_to_rewrites(shared.run, shared.world, shared.pi_f, shared.rho_sft)
    true, gold = plane.true_reward(shared), torch.tensor(shared.world.gold(requests, answers))
    for score in (true, shared.reward.train):
        values = torch.as_tensor(score(requests, answers))
        assert values.mean().item() == pytest.approx(0, abs=1e-4) and values.std().item() == pytest.approx(1, abs=1e-4)
    own = true(requests[:7], answers[:7])
    torch.testing.assert_close(own, ((gold - gold.mean()) / gold.std())[:7], rtol=1e-4, atol=1e-4)


def test_a_plane_that_goes_on_loads_what_was_rated(micro, monkeypatch):
    config, results = micro
    asked, answer = [], FrozenLM.answer

    def counted(self, prompts, generator=None):
        asked.extend(prompts)
        return answer(self, prompts, generator)

    monkeypatch.setattr(FrozenLM, "answer", counted)
    monkeypatch.setattr(plane, "rate", lambda *given: pytest.fail("it was rated again"))
    assert plane.STUDY.cell(config, True, plain_answers=12) == results
    assert not asked, "no reward needs its unit"


def test_another_number_of_plain_answers_is_answered_anew(micro):
    """--resume may give another number, which is no option of a run; what the first number left stays."""
    config, results = micro
    found = plane.STUDY.cell(config, True, plain_answers=5)
    for name in ("learned", "gold"):
        few, many = (saved(config, f"plane_{name}_{count}") for count in (5, 12))
        assert few["plain"].shape == (4, 5) and many["plain"].shape == (4, 12)
        torch.testing.assert_close(few["r"], many["r"], equal_nan=True)
        points = found["rewards"][name]
        assert points["plain"][0]["mean"] == pytest.approx(float(few["plain"].mean()))
        assert all(p["effective"] <= 5 for p in points["rlhf"])
        assert points["prompter"] == results["rewards"][name]["prompter"], "they never see a plain answer"
    assert plane.STUDY.cell(config, True, plain_answers=12) == results


def test_the_points_are_those_of_the_sft_prompter(micro):
    """Its exact probabilities of every listed rewrite; nothing else is rated for them."""
    config, results = micro
    base = study.folder(config) / "base" / "checkpoints"
    world = study.Stages(config, True).world
    requests = world.eval_requests[: config.theory.inputs]
    prompter = Prompter(*load_pretrained(base / "prompter_sft"), 20)
    log_sft = optimum.log_probabilities(prompter, requests, [world.rewrites(x) for x in requests])
    for name, found in results["rewards"].items():
        rated = saved(config, f"plane_{name}_12")
        want = plane.points(log_sft.softmax(1), rated["r"], rated["plain"])["prompter"]
        for ours, expected in zip(found["prompter"], want, strict=True):
            assert ours == pytest.approx(expected, abs=1e-4)
    assert not (base / "listing.safetensors").exists(), "a listing is rated for nothing"


def test_the_common_files_hold_the_pairs_and_the_figure(micro):
    config, results = micro
    stem = study.folder(config).with_name("plane-micro")
    (run,) = json.loads(stem.with_name("plane-micro.json").read_text())["runs"]
    for name, found in results["rewards"].items():
        assert run["rewards"][name].pop("both") == [list(pair) for pair in plane.both_orderings(found)]
    assert run == results
    picture = stem.with_name("plane-micro.png").read_bytes()
    assert picture.startswith(PNG) and len(picture) > 1000


# ---------------------------------------------------------------- table and figure


def content(*seeds: dict, task="quality") -> dict:
    """What the study's JSON file holds: a run a seed, its learned reward as given, its gold one as by default."""
    runs = [{"task": task, "seed": i, "rewards": {"learned": found, "gold": three()}} for i, found in enumerate(seeds)]
    return json.loads(json.dumps(plane.together([], runs)))


def test_the_table_has_a_row_a_coefficient_and_the_pairs_of_all_seeds():
    second = three(ours=(1.4, 0.7), oracle=(3.0, 1.0), effective=40.0)
    second["prompter"] += [{"lam": 0.5, "mean": 0.1, "variance": 0.9}]
    first = three()
    first["prompter"] += [{"lam": 0.5, "mean": 0.1, "variance": 2.0}]  # too much: no pair of both seeds
    text = plane.table(content(first, second))
    rows, _, held = text.partition("\n\n")
    learned = [line.split() for line in rows.splitlines() if " learned " in line]
    assert [row[2] for row in learned] == ["plain", "prompter", "prompter", "rlhf", "best"]
    mean = lambda row: [cell for cell in row if not cell.startswith("±")]
    assert mean(learned[0])[2:] == ["plain", "–", "0.00", "1.00", "–"]
    assert mean(learned[1])[2:] == ["prompter", "0.1", "1.20", "0.60", "–"]
    assert mean(learned[3])[2:] == ["rlhf", "0.3", "2.50", "0.90", "30.0"]
    assert mean(learned[4])[2:] == ["best", "fixed", "rewrite", "–", "0.70", "0.60", "–"], "kind 1 of both seeds"
    assert held.splitlines() == [
        "quality, learned reward: both orderings of the paper hold in every seed for λ 0.1 with β 0.3",
        "quality, gold reward: both orderings of the paper hold in every seed for λ 0.1 with β 0.3",
    ]


def test_pairs_of_one_seed_only_are_none():
    held = plane.table(content(three(), three(effective=3.0))).partition("\n\n")[2].splitlines()
    assert held[0].endswith("learned reward: both orderings of the paper hold in every seed for no pair of λ and β")
    assert held[1].endswith("gold reward: both orderings of the paper hold in every seed for λ 0.1 with β 0.3")


def test_the_figure_has_a_row_a_task(tmp_path):
    both = {"runs": content(three())["runs"] + content(three(), three(), task="reasoning")["runs"]}
    heights = []
    for name, of in (("one", content(three())), ("two", both)):
        plane.figure(of, tmp_path / f"{name}.png")
        picture = (tmp_path / f"{name}.png").read_bytes()
        assert picture.startswith(PNG)
        heights.append(int.from_bytes(picture[20:24], "big"))
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.01)
    assert "reasoning" in plane.table(both)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--plain_answers", "1.5"], "--plain_answers: '1.5' is not a whole number"),
        (["--plain_answers", "0"], "--plain_answers is 0: a variance takes at least 2"),
        (["--plain_answers", "1"], "--plain_answers is 1: a variance takes at least 2"),
        (["--theory.answers", "2"], "--theory.answers is 2: half of them choose and half rate, so it takes at least 4"),
        (["--theory.answers", "3"], "--theory.answers is 3: half of them choose and half rate, so it takes at least 4"),
        (["--eval.answers", "3"], "--eval.answers: this study does not read it; leave it out"),
        (["--oracle.lr", "1"], "--oracle.lr: this study does not read it; leave it out"),
        (["--theory.inputs", "0"], "the optimum is known for the embedded world"),
    ],
)
def test_what_cannot_be_done_is_told_before_any_work(argv, told, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, plane.STUDY, argv=argv)
    assert line.startswith("alignpro_mini.experiments.plane: error: ") and told in line


def test_the_fewest_answers_and_the_prompters_own_options_are_taken(monkeypatch):
    """The prompter samples as --ppo says, and the answers to its rewrites set the rewards' unit."""
    argv = ["--plain_answers", "2", "--theory.answers", "4", "--ppo.temperature", "0.7"]
    assert started(monkeypatch, plane.STUDY, argv=argv)[3] == {"plain_answers": 2}
    found = plane.points(*rated(N=2, M=4), draw(2, 2))
    for point in (*found["plain"], *found["prompter"], *found["rlhf"], *found["fixed"]):
        assert math.isfinite(point["mean"]) and math.isfinite(point["variance"]), "the fewest have a variance"
