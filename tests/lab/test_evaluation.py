"""The arms and their statistics: against simulated data with known parts, sums by plain loops, and fake models.

Shape legend:  N inputs   K rewrites per input   M answers per rewrite
"""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alignpro_mini.frozen import Answer, SamplingConfig
from alignpro_mini.generation import Completion
from alignpro_mini.lab import evaluation
from alignpro_mini.lab.config import EvalConfig
from alignpro_mini.lab.evaluation import (
    Arm,
    Evaluator,
    against_fixed,
    headroom,
    ratio_within_requests,
    sequence_kl,
    summarise,
)
from alignpro_mini.lab.statistics import (
    bootstrap_interval,
    interval,
    resampled_moments,
    t_interval,
    variance_parts,
    win_shares,
    within_requests,
)
from alignpro_mini.transformer import Transformer, TransformerConfig

# ---------------------------------------------------------------- variance in three parts


def nested(rng, N, K, M, inputs=2.0, rewrites=1.0, within=0.5) -> np.ndarray:
    """(N, K, M) rewards whose parts have the given variances."""
    return (
        math.sqrt(inputs) * rng.standard_normal((N, 1, 1))
        + math.sqrt(rewrites) * rng.standard_normal((N, K, 1))
        + math.sqrt(within) * rng.standard_normal((N, K, M))
    )


def anova(r: np.ndarray) -> tuple[float, float, float]:
    """Mean squares between inputs, between rewrites, within, by the textbook's sums (plain loops)."""
    N, K, M = r.shape
    grand = math.fsum(r.ravel()) / r.size
    ssx = ssp = ssw = 0.0
    for i in range(N):
        mean_i = sum(r[i, k, m] for k in range(K) for m in range(M)) / (K * M)
        for k in range(K):
            mean_ik = sum(r[i, k, m] for m in range(M)) / M
            for m in range(M):
                ssx += (mean_i - grand) ** 2
                ssp += (mean_ik - mean_i) ** 2
                ssw += (r[i, k, m] - mean_ik) ** 2
    div = lambda total, df: total / df if df else math.nan
    return div(ssx, N - 1), div(ssp, N * (K - 1)), div(ssw, N * K * (M - 1))


@pytest.mark.parametrize(("N", "K", "M"), [(2, 2, 2), (5, 3, 4), (7, 2, 3)])
def test_variance_parts_against_anova_by_loops(N, K, M):
    r = nested(np.random.default_rng(N), N, K, M) + 3
    msx, msp, msw = anova(r)
    parts = variance_parts(r)
    assert parts["within"] == pytest.approx(msw)
    assert parts["between_rewrites"] == pytest.approx((msp - msw) / M)
    assert parts["between_inputs"] == pytest.approx((msx - msp) / (K * M))


def test_variance_parts_by_hand():
    # two inputs, two rewrites, two answers; means of the rewrites 1, 3 | 6, 8; of the inputs 2 | 7; grand 4.5
    r = np.array([[[0, 2], [2, 4]], [[5, 7], [7, 9]]], dtype=float)
    # SSW = 8 x 1, df 4: 2.  SSP = 8 x 1, df 2: 4.  SSX = 8 x 6.25, df 1: 50
    assert variance_parts(r) == pytest.approx(
        {"within": 2, "between_rewrites": (4 - 2) / 2, "between_inputs": (50 - 4) / 4}
    )


def test_variance_parts_find_the_parts_that_made_the_data_and_are_unbiased():
    rng = np.random.default_rng(0)
    found = [variance_parts(nested(rng, 6, 3, 2)) for _ in range(4000)]  # small arrays: a bias of 1/n would show
    for name, true in {"between_inputs": 2.0, "between_rewrites": 1.0, "within": 0.5}.items():
        values = np.array([f[name] for f in found])
        assert abs(values.mean() - true) < 4 * values.std() / math.sqrt(len(values)), name
    # A part whose true value is 0 comes out as 0 on average, and so is sometimes negative.
    none = np.array([variance_parts(nested(rng, 6, 3, 2, rewrites=0.0))["between_rewrites"] for _ in range(2000)])
    assert abs(none.mean()) < 4 * none.std() / math.sqrt(len(none)) and (none < 0).any()


def test_the_parts_add_up_to_the_variance_of_a_reward():
    rng = np.random.default_rng(1)
    r = nested(rng, 4000, 2, 2)
    assert sum(variance_parts(r).values()) == pytest.approx(r.var(ddof=1), rel=0.01)


def test_one_rewrite_has_nothing_between_rewrites():
    r = nested(np.random.default_rng(2), 5, 1, 4)
    msx, _, msw = anova(r)
    assert variance_parts(r) == pytest.approx(
        {"between_inputs": (msx - msw) / 4, "between_rewrites": 0.0, "within": msw}
    )


def test_one_answer_reports_both_lower_levels_as_within():
    r = nested(np.random.default_rng(3), 5, 4, 1)
    msx, msp, _ = anova(r)
    assert variance_parts(r) == pytest.approx(
        {"between_inputs": (msx - msp) / 4, "between_rewrites": 0.0, "within": msp}
    )


def test_variance_parts_ignore_an_offset_and_scale_with_the_square():
    r = nested(np.random.default_rng(4), 6, 3, 2)
    plain, moved = variance_parts(r), variance_parts(10 - 3 * r)
    assert moved == pytest.approx({name: 9 * value for name, value in plain.items()})


@pytest.mark.parametrize("shape", [(1, 3, 3), (5, 1, 1)])
def test_variance_parts_refuse_what_has_no_variance_to_part(shape):
    with pytest.raises(ValueError, match="at least 2"):
        variance_parts(np.zeros(shape))


# ---------------------------------------------------------------- the variance within requests

SHAPES = [(K, M) for K in (1, 2, 3) for M in (1, 2, 3) if K * M > 1]


@pytest.mark.parametrize(("K", "M"), SHAPES)
def test_the_variance_within_requests_is_that_of_the_parts_below_the_inputs(K, M):
    r = nested(np.random.default_rng(10 * K + M), 7, K, M)
    found, parts = within_requests(r), variance_parts(r)
    assert found.shape == (7,) and found.std() > 0.01
    assert found.mean() == pytest.approx(parts["between_rewrites"] + parts["within"])
    for i in range(7):  # of each request alone, whatever the others are
        assert within_requests(r[i : i + 1]) == pytest.approx(found[i : i + 1])


@pytest.mark.parametrize(("K", "M"), SHAPES)
def test_no_offset_of_a_request_changes_the_variance_within_it(K, M):
    draw = np.random.default_rng(10 * K + M)
    r, b = nested(draw, 7, K, M), 100 * draw.standard_normal((7, 1, 1))
    assert within_requests(r + b) == pytest.approx(within_requests(r))
    assert within_requests(5 - 3 * r) == pytest.approx(9 * within_requests(r))
    assert within_requests(np.broadcast_to(b, r.shape)) == pytest.approx(np.zeros(7))


def test_variance_within_requests_by_hand():
    # request 1: answers 0, 2 | 2, 4, means 1, 3 with variance 2; within 2 and 2, of which half is noise of the means
    # request 2: answers 5, 5 | 5, 9, means 5, 7 with variance 2; within 0 and 8
    r = np.array([[[0, 2], [2, 4]], [[5, 5], [5, 9]]], dtype=float)
    assert within_requests(r) == pytest.approx([2 + 2 / 2, 2 + 4 / 2])
    assert within_requests(r.reshape(2, 1, 4)) == pytest.approx([8 / 3, 12 / 3])  # one rewrite: its answers' variance
    assert within_requests(r.reshape(2, 4, 1)) == pytest.approx([8 / 3, 12 / 3])  # one answer each: the same numbers


def test_the_variance_within_requests_is_unbiased():
    rng = np.random.default_rng(0)
    for K, M in SHAPES:
        rewrites = 1.0 if K > 1 else 0.0
        found = within_requests(nested(rng, 20_000, K, M, rewrites=rewrites))
        assert abs(found.mean() - (rewrites + 0.5)) < 4 * found.std() / math.sqrt(20_000), (K, M)


# ---------------------------------------------------------------- intervals and win rates


def test_bootstrap_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits, count = 0, 500
    for _ in range(count):
        low, high = bootstrap_interval(rng.exponential(1.0, 200), 400)
        hits += low <= 1.0 <= high
    assert 0.91 <= hits / count <= 0.98


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).standard_normal(400)
    low, high = bootstrap_interval(values, 4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)


@pytest.mark.parametrize("resamples", [1, 499, 500, 501, 1200])
def test_bootstrap_of_a_constant_is_the_constant(resamples):
    assert bootstrap_interval(np.full(30, 2.5), resamples) == [2.5, 2.5]


def test_bootstrap_is_repeatable_and_the_same_resamples_serve_every_arm():
    values = np.random.default_rng(2).standard_normal(50)
    low, high = bootstrap_interval(values, 700)
    assert bootstrap_interval(values, 700) == [low, high]
    assert bootstrap_interval(values + 5, 700) == pytest.approx([low + 5, high + 5])


def clustered(rng, N: int = 150, K: int = 2, M: int = 2, spread: float = 1.0) -> np.ndarray:
    """Rewards whose variance has three parts: inputs 1, rewrites 1, answers `spread` squared."""
    parts = rng.standard_normal((N, 1, 1)), rng.standard_normal((N, K, 1)), spread * rng.standard_normal((N, K, M))
    return sum(parts)


def test_resampled_moments_are_those_of_the_resampled_requests():
    rng = np.random.default_rng(5)
    rewards = clustered(rng, N=7) + 100  # far from 0: squares would lose digits
    mean, variance = resampled_moments(rewards, 30)
    weights = np.random.default_rng(0).multinomial(7, np.full(7, 1 / 7), size=30)
    for w, m, v in zip(weights, mean, variance):
        drawn = np.repeat(rewards, w, axis=0)  # a request drawn twice is there twice, all its answers with it
        assert (m, v) == pytest.approx((drawn.mean(), drawn.var(ddof=1)))


def test_requests_of_one_group_are_drawn_together():
    rewards, groups = clustered(np.random.default_rng(7), N=6) + 10, list("abbaca")
    mean, variance = resampled_moments(rewards, 30, groups)
    weights = np.random.default_rng(0).multinomial(3, np.full(3, 1 / 3), size=30)  # a, b, c
    for w, m, v in zip(weights, mean, variance):
        drawn = np.repeat(rewards, [w["abc".index(label)] for label in groups], axis=0)
        assert (m, v) == pytest.approx((drawn.mean(), drawn.var(ddof=1)))
    for alone in (None, list("fedcba")):  # labels of requests that are alone change nothing
        assert np.array_equal(resampled_moments(rewards, 30, alone), resampled_moments(rewards, 30))


def test_an_interval_over_topics_covers_what_one_over_requests_does_not():
    rng, hits, naive, count = np.random.default_rng(8), 0, 0, 300
    groups = [str(i % 20) for i in range(200)]
    for _ in range(count):
        values = np.tile(rng.normal(size=20), 10) + rng.normal(size=200)
        low, high = bootstrap_interval(values, 300, groups)
        hits += low <= 0 <= high
        low, high = bootstrap_interval(values, 300)
        naive += low <= 0 <= high
    assert hits / count > 0.88 and naive / count < 0.7


def test_the_interval_of_a_variance_covers_the_truth_where_answers_are_clustered():
    """By request it covers; over single answers it would be too narrow: two of three parts are shared by answers."""
    rng, hits, naive, count = np.random.default_rng(6), 0, 0, 400
    for _ in range(count):
        rewards = clustered(rng)
        low, high = interval(resampled_moments(rewards, 300)[1])
        hits += low <= 3.0 <= high
        low, high = interval(resampled_moments(rewards.reshape(-1, 1, 1), 300)[1])
        naive += low <= 3.0 <= high
    assert 0.91 <= hits / count <= 0.98 and naive / count < 0.88


def test_the_interval_of_a_variance_ratio_covers_the_truth_and_is_paired():
    rng, hits, count, paired, apart = np.random.default_rng(7), 0, 300, [], []
    for _ in range(count):
        ours, theirs = clustered(rng, spread=0.0), clustered(rng, spread=2.0)
        shared = 2 * rng.standard_normal((150, 1, 1))  # an ease of the request that both arms have
        arms = {"no_finetuning": arm(theirs + shared), "align_pro": arm(ours + shared)}
        found = summarise(arms, EvalConfig(bootstrap=300))
        low, high = found["variance_ratio_ci95"]
        assert low < found["variance_ratio"] < high
        hits += low <= (1 + 1 + 4) / (1 + 1 + 4 + 4) <= high
        paired.append(high - low)
        moved = resampled_moments(np.roll(theirs + shared, 1, axis=0), 300)[1]  # other requests' answers
        apart.append(np.diff(interval(resampled_moments(ours + shared, 300)[1] / moved))[0])
    assert 0.90 <= hits / count <= 0.98 and np.mean(paired) < 0.9 * np.mean(apart)


def test_paired_interval_is_narrower_than_the_arms_apart():
    rng = np.random.default_rng(3)
    ease = 3 * rng.standard_normal(200)  # some requests are easier: common to both arms
    ours, theirs = ease + 0.5 + 0.1 * rng.standard_normal(200), ease + 0.1 * rng.standard_normal(200)
    low, high = bootstrap_interval(ours - theirs, 1000)
    assert 0 < low < 0.5 < high
    a, b = bootstrap_interval(ours, 1000), bootstrap_interval(theirs, 1000)
    assert high - low < 0.2 * min(a[1] - a[0], b[1] - b[0])


def test_win_rate_by_hand():
    rate = lambda *arms: tuple(shares.mean() for shares in win_shares(*arms))
    ours = np.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 5.0], [0.0, 1.0]]])  # (2, 2, 2)
    base = np.array([[[0.0, 2.0, 9.0, 4.0]], [[5.0 + 1e-12, 6.0, 0.0, 0.0]]])  # (2, 1, 4): the same answers, K = 1
    # input 1: win, tie, loss, tie   input 2: tie (rounding), loss, tie, win   -> 2 wins, 4 ties of 8
    assert rate(ours, base) == (2 / 8 + 4 / 16, 4 / 8)
    assert rate(base, ours) == (2 / 8 + 4 / 16, 4 / 8)
    assert rate(ours, ours) == (0.5, 1.0)
    assert rate(np.tile(ours.reshape(2, 4), 2), base) == rate(ours, base)  # twice as many answers
    assert [list(shares) for shares in win_shares(ours, base)] == [[0.5, 0.5], [0.5, 0.5]]  # by input
    assert rate(ours + 1, ours) == (1.0, 0.0) and rate(ours - 1, ours) == (0.0, 0.0)


def test_a_tie_is_a_tie_at_any_size_of_the_rewards():
    """numpy's isclose would call rewards of a million equal that differ by 0.001."""
    ours = np.array([[[1e6 + 0.001, 1e6]]])
    assert [shares.tolist() for shares in win_shares(ours, ours[:, :, ::-1])] == [[0.5], [0.0]]
    assert [shares.tolist() for shares in win_shares(ours, ours[:, :, 1:])] == [[0.75], [0.5]]


def test_t_interval_against_a_printed_table_of_students_t():
    # [1, 2, 3, 4]: mean 2.5, s = 1.29099, t(0.975, 3) = 3.182, half-width 3.182 * 1.29099 / 2
    mean, half = t_interval([1, None, 2, 3, 4])
    assert mean == 2.5 and half == pytest.approx(3.182 * 1.29099 / 2, abs=1e-3)
    assert t_interval([7.0]) == (7.0, None) and t_interval([None]) == (None, None)
    for df, t in ((10, 2.228), (15, 2.131), (30, 2.042), (60, 2.000)):  # beyond the table, from a formula
        values = [0.0, 1.0] * ((df + 1) // 2) + [0.5] * ((df + 1) % 2)
        assert t_interval(values)[1] == pytest.approx(t * np.std(values, ddof=1) / (df + 1) ** 0.5, rel=0.01)


# ---------------------------------------------------------------- the summary


def arm(reward, kl=0.0, gold=None) -> Arm:
    reward = np.asarray(reward, dtype=float)
    N, K, M = reward.shape
    texts = np.full((N, K, M), "y", dtype=object)
    return Arm(reward, gold, np.full((N, K), kl), {}, ["x"] * N, [["x'"] * K] * N, texts)


def three_arms():
    base = np.array([[[0.0, 4.0]], [[1.0, 3.0]]])  # mean 2, sum of squares 4+4+1+1 = 10, variance 10/3
    return {
        "no_finetuning": arm(base),
        "align_pro": arm([[[3.0], [5.0]], [[4.0], [4.0]]], kl=2.0),  # mean 4, variance 2/3
        "rlhf_oracle": arm(base + 3),  # mean 5
    }


def test_gap_closed_variance_ratio_and_differences_by_hand():
    found = summarise(three_arms(), EvalConfig(bootstrap=50))
    arms = found["arms"]
    assert [arms[n]["mean"] for n in arms] == [2, 4, 5]
    assert arms["no_finetuning"]["variance"] == pytest.approx(10 / 3)
    assert arms["align_pro"]["variance"] == pytest.approx(2 / 3) and arms["align_pro"]["kl"] == 2.0
    assert found["gap_closed"] == pytest.approx(2 / 3) and found["variance_ratio"] == pytest.approx(0.2)
    assert arms["no_finetuning"]["difference"] is None
    assert arms["rlhf_oracle"]["difference"] == {"mean": 3.0, "ci95": [3.0, 3.0]}  # paired: it is 3 at every input
    assert arms["align_pro"]["difference"]["mean"] == 2.0
    assert found["judge"] == "reward" and arms["align_pro"]["gold_mean"] is None


def test_gap_closed_is_not_told_without_an_oracle_or_when_it_gained_nothing():
    arms = three_arms()
    unclear = arms["no_finetuning"].reward + np.array([[[-1.0]], [[3.0]]])  # mean gain 1, interval -1 to 3
    for oracle in (arms["no_finetuning"].reward - 1, unclear):
        found = summarise(arms | {"rlhf_oracle": arm(oracle)}, EvalConfig(bootstrap=50))
        assert found["gap_closed"] is None and found["gap_closed_ci95"] is None
        assert found["difference_to_oracle"]["mean"] == pytest.approx(4 - oracle.mean())
    del arms["rlhf_oracle"]
    found = summarise(arms, EvalConfig(bootstrap=50))
    assert found["gap_closed"] is None and found["difference_to_oracle"] is None


def test_the_interval_of_the_gap_closed_is_over_the_same_resamples_of_all_three_arms():
    rng = np.random.default_rng(8)
    base, ease = rng.standard_normal((60, 1, 4)), 5 * rng.standard_normal((60, 1, 1))
    arms = {"no_finetuning": arm(base + ease), "align_pro": arm(base + ease + 1), "rlhf_oracle": arm(base + ease + 2)}
    found = summarise(arms, EvalConfig(bootstrap=200))
    assert found["gap_closed"] == pytest.approx(0.5)
    assert found["gap_closed_ci95"] == pytest.approx([0.5, 0.5])  # the gains are 1 and 2 for every request


def test_the_variance_ratio_is_not_told_where_no_fine_tuning_has_no_variance():
    arms = three_arms()
    arms["no_finetuning"] = arm(np.full((2, 1, 2), 2.0))
    found = summarise(arms, EvalConfig(bootstrap=50))
    assert found["variance_ratio"] is None and found["arms"]["no_finetuning"]["variance"] == 0
    assert found["gap_closed"] == pytest.approx(2 / 3)
    assert summarise(three_arms(), EvalConfig(bootstrap=50))["variance_ratio"] is not None


def test_the_ratio_within_requests_by_hand():
    three = {n: replace(a, reward=a.reward + [[[0.0]], [[10.0]]]) for n, a in three_arms().items()}
    found = summarise(three, EvalConfig(bootstrap=50))
    arms, name = found["arms"], "variance_ratio_within_requests"
    # no fine-tuning: variances 8 and 2; Align-Pro: 2 and 0
    assert [arms[n]["variance_within_requests"] for n in arms] == pytest.approx([5, 1, 5])
    assert found[name] == pytest.approx(1 / 5)
    # a resample holds request 1 alone, request 2 alone or both: 2 / 8, 0 / 2, 2 / 10
    assert found[f"{name}_ci95"] == pytest.approx([0, 0.25])
    assert found[f"gold_{name}"] is None and arms["align_pro"]["gold_variance_within_requests"] is None


def test_the_ratio_within_requests_of_the_gold_reward_is_of_the_gold_reward():
    arms = three_arms()
    for name, scale in {"no_finetuning": 1.0, "align_pro": 2.0, "rlhf_oracle": 3.0}.items():
        arms[name].gold = scale * arms[name].reward
    found = summarise(arms, EvalConfig(bootstrap=50))
    assert found["gold_variance_ratio_within_requests"] == pytest.approx(4 / 5)
    assert found["gold_variance_ratio_within_requests_ci95"] == pytest.approx([0, 1])
    values = [found["arms"][n]["gold_variance_within_requests"] for n in arms]
    assert values == pytest.approx([5, 4, 45])


def test_no_offset_of_the_requests_changes_the_ratio_within_them_and_its_interval():
    rng = np.random.default_rng(3)
    ours, theirs = clustered(rng, N=40, spread=0.5), clustered(rng, N=40, spread=2.0)
    offset = 9 * rng.standard_normal((40, 1, 1))
    plain, moved = (
        summarise({"no_finetuning": arm(theirs + b), "align_pro": arm(ours + b)}, EvalConfig(bootstrap=200))
        for b in (0, offset)
    )
    name = "variance_ratio_within_requests"
    assert plain[name] == pytest.approx(within_requests(ours).mean() / within_requests(theirs).mean())
    assert moved[name] == pytest.approx(plain[name]) and moved[f"{name}_ci95"] == pytest.approx(plain[f"{name}_ci95"])
    low, high = plain[f"{name}_ci95"]
    assert low < plain[name] < high
    assert abs(moved["variance_ratio"] - 1) < 0.1 < abs(plain["variance_ratio"] - moved["variance_ratio"])


def test_the_interval_of_the_ratio_within_requests_covers_the_truth():
    rng, hits, count = np.random.default_rng(9), 0, 300
    for _ in range(count):
        ours, theirs = clustered(rng, spread=1.0), clustered(rng, spread=2.0)
        low, high = ratio_within_requests("r", ours, theirs, 300)["r_ci95"]
        hits += low <= (1 + 1) / (1 + 4) <= high
    assert 0.90 <= hits / count <= 0.98


def test_the_ratio_within_requests_of_groups_resamples_groups():
    rng, groups = np.random.default_rng(4), [str(i % 4) for i in range(40)]
    ours, theirs = clustered(rng, N=40), clustered(rng, N=40)
    found = ratio_within_requests("r", ours, theirs, 100, groups)
    a, b = (within_requests(r).reshape(10, 4).sum(0) for r in (ours, theirs))  # of each group
    weights = np.random.default_rng(0).multinomial(4, np.full(4, 1 / 4), size=100)
    assert found["r_ci95"] == pytest.approx(interval((weights @ a) / (weights @ b)))
    assert found["r"] == pytest.approx(a.sum() / b.sum())
    assert found["r_ci95"] != pytest.approx(ratio_within_requests("r", ours, theirs, 100)["r_ci95"])


def test_the_ratio_within_requests_is_not_told_where_no_fine_tuning_always_answers_alike():
    """Requests may differ: their variance is no denominator."""
    ours, base = np.arange(8.0).reshape(2, 2, 2), np.array([[[1.0, 1.0]], [[7.0, 7.0]]])
    assert ratio_within_requests("r", ours, base, 50) == {"r": None, "r_ci95": None}
    assert ratio_within_requests("r", None, None, 50) == {"r": None, "r_ci95": None}
    arms = three_arms() | {"no_finetuning": arm(base)}
    found = summarise(arms, EvalConfig(bootstrap=50))
    assert found["variance_ratio_within_requests"] is None and found["variance_ratio"] is not None
    base[0, 0, 0] += 1  # a resample may hold the second request alone, which has no variance
    low, high = ratio_within_requests("r", ours, base, 50)["r_ci95"]
    assert 0 < low <= high < math.inf


# ---------------------------------------------------------------- Align-Pro against the fixed rewrite

FIXED_KEYS = ["over_fixed", "over_fixed_ci95", "gold_over_fixed", "gold_over_fixed_ci95"]
SHARE_KEYS = ["request_share", "request_share_ci95"]


def against(ours, theirs, best=None, count: int = 100, groups=None) -> dict:
    """Align-Pro's, the fixed rewrite's and the closed form's lead over an ease of each request that is common to all."""
    ease = 50 * np.random.default_rng(1).standard_normal(len(ours))
    of = lambda leads, K, M: arm(np.repeat(ease[: len(leads)] + leads, K * M).reshape(-1, K, M))
    arms = {"align_pro": of(ours, 2, 3), "fixed_rewrite": of(theirs, 1, 6)}
    if best is not None:
        arms["closed_form"] = of(best, 8, 3)
    return against_fixed(arms, count, groups)


def test_align_pro_minus_the_fixed_rewrite_is_paired():
    found = against([1.5, 2.5, 3.5, 4.5], [1.0, 2.0, 3.0, 4.0])
    assert found["over_fixed"] == pytest.approx(0.5) and found["over_fixed_ci95"] == pytest.approx([0.5, 0.5])
    assert list(found) == FIXED_KEYS + SHARE_KEYS
    assert [found[key] for key in FIXED_KEYS[2:] + SHARE_KEYS] == [None] * 4, "no gold reward, no closed form"
    found = against([1.0, 5.0], [2.0, 3.0])  # -1 and 2: resamples have -1, 0.5 or 2
    assert found["over_fixed"] == pytest.approx(0.5) and found["over_fixed_ci95"] == pytest.approx([-1, 2])


def test_the_lead_of_the_gold_reward_is_of_the_gold_reward():
    rng = np.random.default_rng(2)
    base, gold = rng.standard_normal((4, 2, 2)), 9 * rng.standard_normal((4, 1, 1))
    arms = {"align_pro": arm(base + 1, gold=np.tile(gold, (1, 2, 2)) - 0.25)}
    arms["fixed_rewrite"] = arm(base.reshape(4, 1, 4), gold=np.tile(gold, (1, 1, 4)))
    found = against_fixed(arms, 50)
    assert (found["over_fixed"], found["gold_over_fixed"]) == pytest.approx((1, -0.25))
    assert found["over_fixed_ci95"] == pytest.approx([1, 1])
    assert found["gold_over_fixed_ci95"] == pytest.approx([-0.25, -0.25])
    assert (arms["align_pro"].reward == base + 1).all(), "the arms are left as they are"
    table = summarise(arms | {"no_finetuning": arms["fixed_rewrite"]}, EvalConfig(bootstrap=50))
    assert {key: table[key] for key in found} == found, "the summary holds it"


def test_the_share_of_what_reading_the_request_can_gain_by_hand():
    """On the closed form's two requests: Align-Pro leads by 1 and 3, the closed form by 4 and 6; later ones count not."""
    ours, theirs, best = [1.0, 3.0, 70.0, -90.0], [0.0, 0.0, 10.0, 10.0], [4.0, 6.0]
    found = against(ours, theirs, best)
    assert found["request_share"] == pytest.approx((1 + 3) / (4 + 6))
    # a resample holds the first request alone, the second, or both
    assert found["request_share_ci95"] == pytest.approx([1 / 4, 3 / 6])
    assert found["over_fixed"] == pytest.approx((1 + 3 + 60 - 100) / 4)
    half = against([0.5, 2.0, 1.0, 9.0], [0.0, 0.0, 0.0, 0.0], [1.0, 4.0, 2.0])
    assert half["request_share"] == pytest.approx(0.5) and half["request_share_ci95"] == pytest.approx([0.5, 0.5])


def test_the_share_is_not_told_where_the_closed_forms_lead_is_not_shown():
    """Its mean is above 0 and its interval covers 0: one sentence is then enough."""
    found = against([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 3.0])
    assert [found[key] for key in SHARE_KEYS] == [None, None] and found["over_fixed"] == pytest.approx(1)
    assert against([1.0, 1.0], [0.0, 0.0], [0.0, 0.0])["request_share"] is None
    assert against([1.0, 1.0], [0.0, 0.0], [-1.0, -2.0])["request_share"] is None
    assert against([1.0, 1.0], [0.0, 0.0], [1.0, 2.0])["request_share"] == pytest.approx(2 / 3)


def test_a_share_may_lie_above_1_or_below_0():
    assert against([3.0, 3.0], [0.0, 0.0], [1.0, 2.0])["request_share"] == pytest.approx(2)
    assert against([-3.0, 0.0], [0.0, 0.0], [1.0, 2.0])["request_share"] == pytest.approx(-1)


def test_groups_of_requests_are_resampled_together_in_the_comparison_with_the_fixed_rewrite():
    """Two groups: each interval runs from one group's mean to the other's."""
    ours, theirs, best = [1.0, 3.0, 1.0, 3.0, 1.0, 3.0], [0.0] * 6, [2.0, 4.0, 2.0, 4.0]
    found = against(ours, theirs, best, groups=list("ababab"))
    assert found["over_fixed_ci95"] == pytest.approx([1, 3])
    assert found["request_share_ci95"] == pytest.approx([1 / 2, 3 / 4])
    assert against(ours, theirs, best)["over_fixed_ci95"] != pytest.approx([1, 3])


def test_there_is_nothing_to_compare_with_without_a_fixed_rewrite():
    assert against_fixed(three_arms(), 50) == dict.fromkeys(FIXED_KEYS + SHARE_KEYS)
    found = summarise(three_arms(), EvalConfig(bootstrap=50))
    assert [found[key] for key in FIXED_KEYS + SHARE_KEYS] == [None] * 6


def test_wins_are_judged_by_the_gold_reward_where_there_is_one():
    arms = three_arms()
    for name, gold in {"no_finetuning": 1.0, "align_pro": 0.0, "rlhf_oracle": 1.0}.items():
        arms[name].gold = np.full(arms[name].reward.shape, gold)
    found = summarise(arms, EvalConfig(bootstrap=50))
    assert found["judge"] == "gold"
    # the learned reward says Align-Pro wins, the true one that it loses
    assert [found["arms"][n]["win_rate"] for n in arms] == [0.5, 0.0, 0.5]
    assert [found["arms"][n]["win_rate_ci95"] for n in arms] == [[0.5, 0.5], [0.0, 0.0], [0.5, 0.5]]
    assert found["arms"]["align_pro"]["gold_mean"] == 0.0


# ---------------------------------------------------------------- the arms, on fakes


class Text:
    """A tokenizer whose tokens are characters."""

    eos_id = 0
    end_ids = (0,)

    def decode(self, tokens):
        return "".join(chr(t) for t in tokens if t)

    def chat(self, text):
        return [ord(c) for c in text]


def completion(text: str, finished: bool = True) -> Completion:
    return Completion([*map(ord, text), 0], [0.0] * (len(text) + 1), finished)


class Frozen:
    """Answers with the prompt and the number of the call: "x1 c|3" is the answer of the third call to "x1 c".

    Without `tokens` it is a model that returns texts only. Every answer to a text that ends in "b" is truncated.
    """

    tokenizer, sampling, model = Text(), SamplingConfig(), None

    def __init__(self, tokens: bool = True):
        self.tokens = tokens
        self.calls = 0
        self.asked: list[list[str]] = []

    def fits(self, prompt):
        return len(prompt) < 40

    def answer(self, prompts, generator=None):
        self.calls += 1
        self.asked.append(list(prompts))
        texts = [f"{p}|{self.calls}" for p in prompts]
        kept = [completion(text).tokens if self.tokens else None for text in texts]
        return [Answer(text, p.endswith("b"), tokens) for p, text, tokens in zip(prompts, texts, kept)]


@dataclass
class Rewriter:
    """The j-th rewrite of "x1" is "x1 " and the j-th letter of a cycle."""

    cycle: str = "abcd"
    tokenizer: Text = Text()
    temperature: float = 1.0
    model = None

    def complete(self, requests, generator=None):
        seen: dict[str, int] = {}
        out = []
        for x in requests:
            j = seen[x] = seen.get(x, -1) + 1
            letter = self.cycle[j % len(self.cycle)]
            out.append(completion("" if letter == "_" else "z" * 50 if letter == "~" else f"{x} {letter}"))
        return out


def evaluator(reward, N=3, gold=None, frozen=None, **config) -> Evaluator:
    config = EvalConfig(inputs=N, **({"rewrites": 2, "answers": 3, "best_of_n": 4} | config))
    return Evaluator(
        [f"x{i}" for i in range(N)], frozen or Frozen(), reward, gold, config, torch.Generator().manual_seed(0)
    )


def letters(value: dict):
    """A reward that reads the rewrite's letter out of the fake answer."""

    def reward(prompts, completions):
        assert all(
            y.startswith(x) for x, y in zip(prompts, completions, strict=True)
        )  # each answer with its own request
        assert not any(" " in x for x in prompts), "scored against the rewrite, not the request"
        return torch.tensor([float(value.get(y.split("|")[0][-1], 0)) for y in completions])

    return reward


def test_every_arm_gives_each_input_the_same_number_of_answers():
    e = evaluator(letters({}), gold=lambda x, y: [1.0] * len(x))
    arms = {"plain": e.plain(), "prompter": e.prompter(Rewriter(), None), "best": e.best_of_n(Rewriter())}
    arms |= {"answers": e.best_of_n_answers(), "fixed": e.fixed(["x0 a", "x1 a", "x2 a"], np.zeros((3, 1)))}
    assert {arms[name].reward.shape for name in ("plain", "answers", "fixed")} == {(3, 1, 6)}
    assert arms["prompter"].reward.shape == arms["best"].reward.shape == (3, 2, 3)
    for a in arms.values():
        assert a.reward.shape == a.gold.shape == a.y.shape and a.x == ["x0", "x1", "x2"] and (a.gold == 1).all()


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_reward_may_give_a_list_an_array_or_a_tensor(kind):
    e = evaluator(lambda x, y: kind([float("b" in text) for text in y]))
    assert (e.prompter(Rewriter("ab"), None).reward == np.array([0.0, 1.0])[None, :, None]).all()
    assert {text[-1] for pair in e.best_of_n(Rewriter()).x_prime for text in pair} == {"b"}


def test_the_true_reward_sees_the_request_and_never_the_rewrite():
    seen = []
    e = evaluator(letters({}), gold=lambda x, y: seen.extend(zip(x, y, strict=True)) or [0.0] * len(x))
    e.prompter(Rewriter(), None), e.best_of_n(Rewriter()), e.plain()
    assert {x for x, _ in seen} == {"x0", "x1", "x2"} and all(y.startswith(x) for x, y in seen)


def test_plain_asks_the_request_itself():
    e = evaluator(letters({}))
    e.plain()
    assert e.frozen.asked == [[x for x in ("x0", "x1", "x2") for _ in range(6)]]


def test_the_prompters_rewrites_reach_the_model_and_the_request_reaches_the_reward():
    e = evaluator(letters({"a": 1, "b": 2}))
    found = e.prompter(Rewriter("ab"), None)
    assert found.x_prime == [[f"x{i} a", f"x{i} b"] for i in range(3)]
    assert e.frozen.asked == [[f"x{i} {c}" for i in range(3) for c in "aaabbb"]]
    assert (found.reward == np.array([1.0, 2.0])[None, :, None]).all()  # (N, K, M): rewrites along K


def test_a_rewrite_with_an_objection_is_counted_and_replaced_only_with_the_guard(monkeypatch):
    monkeypatch.setattr("alignpro_mini.lab.guards.objection", lambda x, x_prime: "content" if "b" in x_prime else None)
    for guard, second in ((False, "x0 b"), (True, "x0")):
        found = replace(evaluator(letters({})), guard=guard).prompter(Rewriter("ab"), None)
        assert found.x_prime[0] == ["x0 a", second] and found.extra["objection_rate"] == 0.5


def test_empty_and_overlong_rewrites_fall_back_to_the_request_and_are_counted():
    found = evaluator(letters({})).prompter(Rewriter("a_b~"), None)
    assert found.x_prime == [["x0 a", "x0"], ["x1 a", "x1"], ["x2 a", "x2"]]
    assert found.extra["fallback_rate"] == 0.5
    assert evaluator(letters({}), rewrites=4).prompter(Rewriter("a_b~"), None).x_prime[0] == [
        "x0 a",
        "x0",
        "x0 b",
        "x0",
    ]


def test_truncated_answers_and_lengths_are_told():
    found = evaluator(letters({})).prompter(Rewriter("ab"), None)  # "x0 a|1" and EOS; every second rewrite ends in "b"
    assert found.extra["truncated"] == 0.5 and found.extra["answer_length"] == 7.0
    assert found.extra["rewrite_length"] == 5.0  # "x0 a" and EOS
    plain = evaluator(letters({})).plain()
    assert plain.extra == {"rewrite_length": None, "answer_length": 5.0, "truncated": 0.0}


def test_a_model_that_returns_texts_only_can_be_evaluated():
    e = evaluator(letters({"a": 1, "b": 2}), frozen=Frozen(tokens=False))
    arms = [e.plain(), e.prompter(Rewriter("ab"), None), e.best_of_n(Rewriter())]
    assert [a.extra["answer_length"] for a in arms] == [None] * 3
    assert (arms[1].reward == np.array([1.0, 2.0])[None, :, None]).all() and arms[1].extra["truncated"] == 0.5


def test_best_of_n_picks_by_the_first_answers():
    e = evaluator(letters({"a": 1, "b": 2, "c": 9, "d": 3}))
    assert e.best_of_n(Rewriter()).x_prime == [[f"x{i} c", f"x{i} c"] for i in range(3)]
    # eight rewrites an input: the first four make pick 1, the others pick 2
    picks = evaluator(letters(dict(zip("abcdefgh", (1, 5, 2, 0, 3, 2, 1, 8))))).best_of_n(Rewriter("abcdefgh")).x_prime
    assert picks == [[f"x{i} b", f"x{i} h"] for i in range(3)]


def test_best_of_n_counts_fresh_answers_not_the_winning_ones():
    def reward(prompts, completions):
        first = [y.endswith("|1") for y in completions]
        return torch.tensor([10.0 if once and "c" in y else 0.0 for once, y in zip(first, completions)])

    found = evaluator(reward).best_of_n(Rewriter())
    assert all(
        x_prime[-1] == "c" for row in found.x_prime for x_prime in row
    )  # chosen for a first answer that happened to be good
    assert (found.reward == 0).all()  # which does not count
    assert all(y.endswith("|2") for y in found.y.flat)


def test_best_of_n_of_pure_noise_gains_nothing():
    noise = torch.Generator().manual_seed(1)
    e = evaluator(lambda x, y: torch.randn(len(x), generator=noise), N=400)
    assert abs(e.best_of_n(Rewriter()).reward.mean()) < 4 / math.sqrt(2400)  # the winners' mean is about 1.03


def test_best_of_n_bounds_its_kl():
    found = evaluator(letters({})).best_of_n(Rewriter())
    assert found.kl == pytest.approx(np.full((3, 2), math.log(4) - 3 / 4))
    assert evaluator(letters({}), best_of_n=1).best_of_n(Rewriter()).kl == pytest.approx(np.zeros((3, 2)))


def test_the_best_of_n_answers_is_picked_by_the_reward_and_the_true_reward_follows():
    """Two requests; of eight answers each, the first four make answer 1, the others answer 2."""
    rewards = {"x0": [1, 5, 2, 0, 3, 3, -1, 2], "x1": [-4, -3, -2, -1, 0, 0, 0, 0.5]}
    golds = {"x0": [10, 11, 12, 13, 14, 15, 16, 17], "x1": [20, 21, 22, 23, 24, 25, 26, 27]}
    in_order = lambda table, kind: lambda x, y: kind([table[name][i % 8] for i, name in enumerate(x)])
    gold = in_order(golds, list)
    e = evaluator(in_order(rewards, torch.tensor), N=2, gold=gold, rewrites=2, answers=1, best_of_n=4)
    found = e.best_of_n_answers()
    assert e.frozen.asked == [["x0"] * 8 + ["x1"] * 8], "n times the answers, each to the request itself"
    assert found.reward.tolist() == [[[5, 3]], [[-1, 0.5]]]
    assert found.gold.tolist() == [[[11, 14]], [[23, 27]]], "of equal answers the first"
    assert found.x_prime == [["x0"], ["x1"]] and found.x == ["x0", "x1"]
    assert found.kl == pytest.approx(np.full((2, 1), math.log(4) - 3 / 4))
    no_gold = evaluator(in_order(rewards, torch.tensor), N=2, rewrites=2, answers=1, best_of_n=4).best_of_n_answers()
    assert no_gold.gold is None and (no_gold.reward == found.reward).all()


class Counting(Frozen):
    """Numbers its answers one after the other, whatever it is asked."""

    def answer(self, prompts, generator=None):
        return [replace(a, text=f"{a.text}.{i}") for i, a in enumerate(super().answer(prompts, generator))]


def test_the_text_of_the_best_answer_is_the_one_that_was_picked():
    number = lambda y: int(y.rpartition(".")[2])
    worth = lambda y: (7 * number(y)) % 24  # a permutation: no two answers are equal
    e = evaluator(lambda x, y: [worth(t) for t in y], N=2, gold=lambda x, y: [number(t) for t in y], frozen=Counting())
    found = e.best_of_n_answers()  # 2 x 3 answers a request, each the best of 4
    assert found.y.shape == found.reward.shape == found.gold.shape == (2, 1, 6)
    assert [number(y) for y in found.y.flat] == found.gold.ravel().tolist()
    assert [worth(y) for y in found.y.flat] == found.reward.ravel().tolist()
    for i, y in enumerate(found.y.flat):
        assert number(y) // 4 == i and worth(y) == max((7 * j) % 24 for j in range(4 * i, 4 * i + 4))


def test_the_best_of_one_answer_is_no_fine_tuning():
    arms = []
    for make in (Evaluator.best_of_n_answers, Evaluator.plain):
        gold = lambda x, y: [float(len(t)) for t in y]
        e = evaluator(lambda x, y: [sum(map(ord, t)) % 7 for t in y], gold=gold, frozen=Counting(), best_of_n=1)
        arms.append((make(e), e.frozen.asked))
    (best, asked), (plain, as_plain) = arms
    assert asked == as_plain and best.extra == plain.extra and best.x_prime == plain.x_prime
    for name in ("reward", "gold", "kl", "y"):
        assert (getattr(best, name) == getattr(plain, name)).all(), name


def test_best_of_n_answers_gains_what_order_statistics_say():
    """Of standard normal rewards: the best of 4 has the mean 1.0294 and the variance 0.4917."""
    noise = torch.Generator().manual_seed(1)
    e = evaluator(lambda x, y: torch.randn(len(x), generator=noise), N=1000)
    found = e.best_of_n_answers().reward
    assert found.mean() == pytest.approx(1.0294, abs=4 * math.sqrt(0.4917 / found.size))
    assert found.var() == pytest.approx(0.4917, rel=0.1)


def test_a_fixed_rewrite_is_asked_in_the_place_of_each_request():
    e = evaluator(letters({"a": 1, "b": 2}), gold=lambda x, y: [float(t[1]) for t in x])
    kl = np.array([[0.5], [1.5], [2.5]])
    found = e.fixed([f"x{i} {'aba'[i]}" for i in range(3)], kl)
    assert e.frozen.asked == [["x0 a"] * 6 + ["x1 b"] * 6 + ["x2 a"] * 6], "as many answers as every arm"
    assert found.reward.tolist() == [[[1.0] * 6], [[2.0] * 6], [[1.0] * 6]]
    assert found.gold.tolist() == [[[float(i)] * 6] for i in range(3)], "judged against the request"
    assert found.kl is kl and found.x_prime == [["x0 a"], ["x1 b"], ["x2 a"]] and found.x == ["x0", "x1", "x2"]


# ---------------------------------------------------------------- headroom


def test_headroom_is_none_when_the_reward_ignores_the_rewrite():
    noise = torch.Generator().manual_seed(0)
    e = evaluator(lambda x, y: torch.randn(len(x), generator=noise), N=300, headroom_inputs=300)
    found = headroom(e, Rewriter("abcdefgh"))
    assert found["icc"] < 0.03
    assert abs(found["best_rewrite_gain"]) < 0.15  # judged and measured on the same answers it would be about 1


def test_headroom_is_all_when_only_the_rewrite_matters():
    found = headroom(evaluator(letters(dict(zip("abcdefgh", range(8)))), N=20), Rewriter("abcdefgh"))
    assert found["icc"] == pytest.approx(1.0) and found["within"] == 0
    assert found["between_rewrites"] == pytest.approx(6.0)  # the sample variance of 0..7
    assert found["best_rewrite_gain"] == pytest.approx(3.5)  # the best is 7, the mean 3.5


def test_the_icc_leaves_the_inputs_out():
    answers = {}

    def reward(x, y):  # requests differ by 100 and more
        return torch.tensor([100.0 * int(text[1:]) for text in x]) + torch.tensor(answers["of one request"]).repeat(3)

    def found(*of_a_pair_of_rewrites):
        answers["of one request"] = list(of_a_pair_of_rewrites) * 4  # 8 rewrites, 4 answers each
        return headroom(evaluator(reward), Rewriter("abcdefgh"))

    equal = found(0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0)  # every rewrite has the mean 1/2: below 0 once corrected
    assert equal["between_rewrites"] < 0 and equal["icc"] == 0
    apart = found(0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 3.0)
    assert apart["between_inputs"] > 1000 and apart["icc"] > 0.5


def test_headroom_looks_at_no_more_requests_than_asked():
    e = evaluator(letters({}), N=6, headroom_inputs=3)
    headroom(e, Rewriter("abcdefgh"))
    assert {p.split()[0] for p in e.frozen.asked[0]} == {"x0", "x1", "x2"} and len(e.frozen.asked[0]) == 3 * 8 * 4


def test_headroom_mixes_half_and_half():
    noise = torch.Generator().manual_seed(0)
    by_letter = letters(dict(zip("abcdefgh", range(8))))  # variance 6 between rewrites

    def reward(x, y):
        return by_letter(x, y) + math.sqrt(6) * torch.randn(len(x), generator=noise)

    found = headroom(evaluator(reward, N=300, headroom_inputs=300), Rewriter("abcdefgh"))
    assert found["icc"] == pytest.approx(0.5, abs=0.05)


# ---------------------------------------------------------------- the KL of whole sequences


def tiny(seed: int) -> Transformer:
    config = TransformerConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, max_len=32)
    model = Transformer(config, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for p in model.parameters():  # weights so large that two models disagree
            p.mul_(3)
    return model.eval()


PROMPTS = [[1, 2], [3], [4, 5, 6, 7, 8], [9, 1, 2]]
COMPLETIONS = [Completion(t, [0.0] * len(t), True) for t in ([3, 4, 0], [0], [5, 5, 5, 0], [10, 9, 8, 7, 6, 0])]


def direct(model, prompt, tokens, temperature):
    """log P(tokens | prompt), a row alone, a token at a time, without padding or cache."""
    total, ids = 0.0, list(prompt)
    for token in tokens:
        with torch.no_grad():
            logits = model.unembed(model.hidden(torch.tensor([ids]))[0, -1]).double()
        total += ((logits / temperature) - torch.logsumexp(logits / temperature, 0))[token].item()
        ids.append(token)
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sequence_kl_against_each_row_alone(temperature):
    a, b = tiny(0), tiny(1)
    want = [
        direct(a, p, c.tokens, temperature) - direct(b, p, c.tokens, temperature) for p, c in zip(PROMPTS, COMPLETIONS)
    ]
    assert max(map(abs, want)) > 0.5  # the models do disagree
    assert sequence_kl(a, b, PROMPTS, COMPLETIONS, temperature) == pytest.approx(want, abs=1e-4)


def test_sequence_kl_of_a_model_to_itself_is_zero():
    assert sequence_kl(tiny(0), tiny(0), PROMPTS, COMPLETIONS, 0.7) == [0.0] * 4


def test_sequence_kl_keeps_order_across_its_batches():
    a, b = tiny(0), tiny(1)
    few = sequence_kl(a, b, PROMPTS, COMPLETIONS, 1.0)
    many = sequence_kl(a, b, PROMPTS * 70, COMPLETIONS * 70, 1.0)
    assert many == pytest.approx(few * 70, abs=1e-4)


def test_sequence_kl_averages_to_the_enumerated_kl():
    """Over all 11 one-token completions, weighted by their probability, the mean is the KL of the two distributions."""
    a, b = tiny(0), tiny(1)
    p, q = (torch.tensor([direct(m, [1, 2], [t], 1.0) for t in range(11)], dtype=torch.float64) for m in (a, b))
    want = (p.exp() * (p - q)).sum().item()
    logs = sequence_kl(a, b, [[1, 2]] * 11, [Completion([t], [0.0], False) for t in range(11)], 1.0)
    assert (p.exp() * torch.tensor(logs, dtype=torch.float64)).sum().item() == pytest.approx(want, abs=1e-5)


def test_the_prompters_kl_is_that_of_its_own_tokens_per_input_and_rewrite(monkeypatch):
    seen = {}

    def fake_kl(model, reference, prompts, completions, temperature):
        seen.update(models=(model, reference), prompts=prompts, temperature=temperature)
        return [float(len(c.tokens)) for c in completions]

    monkeypatch.setattr(evaluation, "sequence_kl", fake_kl)
    rho, sft = Rewriter("a_", temperature=0.7), Rewriter()
    rho.model, sft.model = SimpleNamespace(name="rho"), SimpleNamespace(name="sft")
    found = evaluator(letters({})).prompter(rho, sft)
    assert seen["models"] == (rho.model, sft.model) and seen["temperature"] == 0.7
    assert seen["prompts"] == [Text().chat(x) for x in ("x0", "x0", "x1", "x1", "x2", "x2")]
    # of what the prompter wrote (4 letters and EOS; only EOS), not of what was sent in its place
    assert (found.kl == np.array([[5.0, 1.0]] * 3)).all()


def test_the_oracles_kl_is_that_of_its_own_answers(monkeypatch):
    seen = {}

    def fake_kl(model, reference, prompts, answers, temperature):
        seen.update(models=(model, reference), prompts=prompts, temperature=temperature)
        return [float(i + len(a.tokens)) for i, a in enumerate(answers)]

    monkeypatch.setattr(evaluation, "sequence_kl", fake_kl)
    oracle, pi_f = Frozen(), Frozen()
    oracle.model, pi_f.model = SimpleNamespace(name="oracle"), SimpleNamespace(name="pi_f")
    oracle.sampling = SamplingConfig(temperature=0.6)
    found = evaluator(letters({}), frozen=pi_f).oracle(oracle, pi_f)
    assert seen["models"] == (oracle.model, pi_f.model) and seen["temperature"] == 0.6
    assert seen["prompts"] == [Text().chat(x) for x in ("x0", "x1", "x2") for _ in range(6)]
    assert (found.kl == np.arange(18).reshape(3, 6) + 5).all()  # "x0|1" and EOS
    assert found.reward.shape == (3, 1, 6) and found.x_prime == [["x0"], ["x1"], ["x2"]]
    assert pi_f.asked == [] and oracle.asked == [[x for x in ("x0", "x1", "x2") for _ in range(6)]]


def test_no_finetuning_has_no_kl():
    assert (evaluator(letters({})).plain().kl == 0).all()


# ---------------------------------------------------------------- the closed form: rewrites drawn from a table


def test_listed_rewrites_are_drawn_from_the_table_for_the_first_requests():
    e = evaluator(letters({"a": 1, "b": 2, "c": 3}), N=4, gold=lambda x, y: [0.5] * len(x), rewrites=500, answers=1)
    rho = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 1.0]])
    found = e.enumerated(
        [[f"x{i} {c}" for c in "abc"] for i in range(2)], rho, torch.tensor([[0.4, 0.4, 0.2], [0.25, 0.25, 0.5]])
    )
    assert found.x == ["x0", "x1"] and found.reward.shape == found.gold.shape == (2, 2000, 1)
    assert {t for t in found.x_prime[1]} == {"x1 c"} and (found.kl[1] == pytest.approx(math.log(2)))
    share = np.mean([t == "x0 b" for t in found.x_prime[0]])
    assert share == pytest.approx(0.8, abs=0.04) and "x0 c" not in found.x_prime[0]
    assert found.reward[0].mean() == pytest.approx(1 + share)
    want = {"x0 a": math.log(0.5), "x0 b": math.log(2)}
    np.testing.assert_allclose(found.kl[0], [want[t] for t in found.x_prime[0]], rtol=1e-5)


def test_an_arm_over_fewer_inputs_is_compared_on_its_own_inputs():
    base = np.array([[[0.0, 2.0]], [[10.0, 10.0]], [[50.0, 90.0]]])
    few = arm([[[4.0], [4.0]], [[13.0], [13.0]]])
    found = summarise(
        {"no_finetuning": arm(base), "align_pro": arm(base), "closed_form": few}, EvalConfig(bootstrap=50)
    )["arms"]
    assert found["closed_form"]["difference"]["mean"] == pytest.approx(3.0) and found["closed_form"]["inputs"] == 2
    assert found["closed_form"]["win_rate"] == 1.0 and found["align_pro"]["inputs"] == 3
