"""Listed rewrites: their probabilities, what they earn, and the bounds, against enumeration."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from doubles import Letters, random_lm
from finite_problem import FiniteProblem

from alignpro_mini import theory
from alignpro_mini.alignpro import Prompter
from alignpro_mini.frozen import Answer, FrozenLM, SamplingConfig
from alignpro_mini.lab import optimum
from alignpro_mini.lab.optimum import Listing
from alignpro_mini.lab.statistics import variance_parts

REQUESTS = ["a", "bc", "h"]
REWRITES = [["a", "ab", "hgf", "c"], ["bc", "d", "bcbc", "e"], ["h", "a", "bd", "hh"]]  # the request itself first
WORTH = dict(zip("abcdefgh", (0.0, 3.0, -1.0, 0.5, 2.0, -2.0, 1.0, 0.2)))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prompter(seed: int, temperature: float = 1.0, ends: tuple[int, ...] = (3,)) -> Prompter:
    tokenizer = Letters()
    tokenizer.end_ids = ends
    return Prompter(random_lm(seed=seed), tokenizer, 8, temperature)


def one_letter(seed: int, temperature: float = 1.0, top_p: float = 1.0) -> FrozenLM:
    """A model whose answers are one token: all of them can be enumerated."""
    return FrozenLM(random_lm(seed=seed), Letters(), SamplingConfig(temperature, top_p, max_new_tokens=1))


def nudged(lm: FrozenLM, by: float) -> FrozenLM:
    """A copy of the model with every weight moved a little: an oracle that differs a little."""
    twin = copy.deepcopy(lm.model)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(by * torch.randn(p.shape, generator=rng(2)))
    return FrozenLM(twin, Letters(), lm.sampling)


def worth(prompts, completions) -> torch.Tensor:
    """The letter's worth, more for the request "h"; an answer without a letter is worth -3."""
    return torch.tensor(
        [WORTH.get(y, -3.0) * (2.0 if x == "h" else 1.0) for x, y in zip(prompts, completions, strict=True)]
    )


def next_token(lm: FrozenLM, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        logits = lm.model(torch.tensor([Letters().chat(prompt)]))[0, -1].double() / lm.sampling.temperature
    return logits.softmax(-1)  # (12,)


def listed(r, p_sft, p) -> Listing:
    r, p_sft, p = (torch.as_tensor(x, dtype=torch.float64) for x in (r, p_sft, p))
    return Listing(["x"] * len(p), [["x'"] * p.shape[1]] * len(p), r, p_sft.log(), p.log())


# ---------------------------------------------------------------- what a prompter thinks of a listed rewrite


@pytest.mark.parametrize("temperature, ends", [(1.0, (3,)), (0.6, (3,)), (1.0, (3, 0, 1))])
def test_probabilities_are_products_over_the_tokens_and_an_end(temperature, ends):
    rho = prompter(3, temperature, ends)
    want = []
    for x, row in zip(REQUESTS, REWRITES):
        for x_prime in row:
            ids, p = Letters().chat(x), 1.0
            for tokens in [*([token] for token in Letters().encode(x_prime)), ends]:
                with torch.no_grad():
                    following = (rho.model(torch.tensor([ids]))[0, -1].double() / temperature).softmax(-1)
                p *= sum(following[token].item() for token in tokens)
                ids.append(tokens[0])
            want.append(p)
    found = optimum.log_probabilities(rho, REQUESTS, REWRITES).exp()
    assert found.dtype == torch.float64 and found.shape == (3, 4)
    np.testing.assert_allclose(found.flatten(), want, rtol=1e-4)


def test_each_rewrite_is_asked_and_rates_against_the_request():
    lm, seen = one_letter(1), []

    def reward(prompts, completions):
        seen.extend(prompts)
        return worth(prompts, completions)

    found = optimum.rate(REQUESTS, REWRITES, lm, reward, 4000, rng()).under(prompter(3), prompter(4))
    assert 3 < len(seen) <= 3 * 12 and sorted(set(seen)) == sorted(
        REQUESTS
    )  # at most 12 answers exist: each is rated once
    each = torch.stack(
        [worth([x] * 12, [Letters().decode([t]) for t in range(12)]).double() for x in REQUESTS]
    )  # (N, 12)
    exact = torch.stack([torch.stack([next_token(lm, p) @ each[n] for p in row]) for n, row in enumerate(REWRITES)])
    torch.testing.assert_close(found.R, exact, rtol=0, atol=5 * float(found.r.std(2).max()) / math.sqrt(4000))
    assert (exact.max(1).values - exact.min(1).values).min() > 0.5  # which rewrite is asked does matter
    torch.testing.assert_close(found.log_rho, optimum.log_probabilities(prompter(4), REQUESTS, REWRITES))
    torch.testing.assert_close(found.log_sft, optimum.log_probabilities(prompter(3), REQUESTS, REWRITES))


# ---------------------------------------------------------------- how near PPO came


def test_mass_outside_is_told_and_the_rest_scaled_to_one():
    r = np.array([[[0.0, 0.0], [2.0, 4.0]]])  # R = 0, 3
    facts = optimum.describe(listed(r, [[0.4, 0.4]], [[0.1, 0.6]]), lam=1.0)
    assert facts["mass_outside"] == pytest.approx(0.3) and facts["mass_outside_sft"] == pytest.approx(0.2)
    best = math.log(0.5 + 0.5 * math.exp(3))
    ours = 3 * 6 / 7 - (1 / 7 * math.log(2 / 7) + 6 / 7 * math.log(12 / 7))
    assert facts["attainable_gain_share"] == pytest.approx((ours - 1.5) / (best - 1.5))
    assert facts["regularised_gap"] == pytest.approx(best - ours)
    assert facts["lambda_kl_to_optimum"] == pytest.approx(best - ours, abs=1e-12)


def test_what_moving_mass_off_the_list_costs_is_told():
    """The listed part is optimal, yet 60 % has left the list: KL of (.4, .6) to (.8, .2), by hand."""
    facts = optimum.describe(listed([[[0.0, 0.0], [0.0, 0.0]]], [[0.4, 0.4]], [[0.2, 0.2]]), lam=0.5)
    assert facts["regularised_gap"] == pytest.approx(0, abs=1e-12)
    assert facts["unlisted_cost"] == pytest.approx(0.5 * (0.4 * math.log(0.4 / 0.8) + 0.6 * math.log(0.6 / 0.2)))


def test_a_prompter_that_has_left_the_list_is_described_all_the_same():
    gone = Listing(
        ["x"],
        [["a", "b"]],
        torch.zeros(1, 2, 2),
        torch.tensor([[0.5, 0.5]]).double().log(),
        torch.tensor([[-900.0, -901.0]]).double(),
    )
    facts = optimum.describe(gone, 1.0)
    assert (
        facts["mass_outside"] == pytest.approx(1)
        and math.isfinite(facts["regularised_gap"])
        and facts["unlisted_cost"] > 5
    )


def test_the_noise_in_R_flatters_the_optimum_by_what_is_told():
    draw = np.random.default_rng(0)
    truth, p, lam, M = draw.normal(size=(4, 6)), np.full((4, 6), 1 / 6), 0.5, 40
    optimum_ = theory.optimal_prompter(p, truth, lam)
    exact = float(theory.regularised_value(optimum_, p, truth, lam))
    excess, told = [], []
    for _ in range(300):
        found = listed(truth[..., None] + draw.normal(size=(4, 6, M)), p, p)
        star = theory.optimal_prompter(p, found.R, lam)
        # Less what the noise does to the true optimum's own value: that averages to 0, and only adds variance.
        luck = float((optimum_ * (found.R - torch.from_numpy(truth))).sum(1).mean())
        excess.append(float(theory.regularised_value(star, p, found.R, lam)) - exact - luck)
        told.append(optimum.describe(found, lam)["optimum_noise"])
    error = np.std(excess) / math.sqrt(300)
    assert np.mean(excess) > 20 * error  # the effect is not 0
    assert np.mean(told) == pytest.approx(np.mean(excess), rel=0.1)


# ---------------------------------------------------------------- Delta and its bounds


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_deltas_and_bounds_equal_the_enumerated_ones(temperature):
    lm, lam = one_letter(1, temperature), 0.7
    oracle = nudged(lm, 0.15)
    found = optimum.rate(REQUESTS, REWRITES, lm, worth, 3000, rng()).under(prompter(3), prompter(4))
    told = optimum.describe(found, lam) | optimum.suboptimality(
        found, optimum.sample_oracle(found, lm, oracle, worth, 3000, rng(1)), lam
    )

    each = torch.stack(
        [worth([x] * 12, [Letters().decode([t]) for t in range(12)]).double() for x in REQUESTS]
    )  # (N, 12)
    pi_f = torch.stack([torch.stack([next_token(lm, p) for p in row]) for row in REWRITES])  # (N, K, 12)
    pi_star = torch.stack([next_token(oracle, x) for x in REQUESTS])  # (N, 12)
    world = FiniteProblem(found.rho_sft, pi_f, pi_f[:, 0], each, lam, beta=1.0)
    J = [
        world.J(pi_star),
        world.J(world.pi_plain),
        world.J(world.induced(world.rho_sft)),
        world.J(world.induced(world.rho_star)),
    ]
    for i in range(3):
        assert told[f"delta{i + 1}"] == pytest.approx(J[i] - J[i + 1], abs=0.1)
    star, r_max = world.rho_star, world.r_max
    assert told["r_max"] == pytest.approx(r_max)
    kl_star, kl_back = theory.kl(star, world.rho_sft).mean().item(), theory.kl(world.rho_sft, star).mean().item()
    tv = [
        theory.total_variation(pi_star, pi_f[:, 0]).mean().item(),
        (world.rho_sft * theory.total_variation(pi_f[:, :1], pi_f)).sum(1).mean().item(),
        theory.total_variation(pi_star, world.induced(world.rho_sft)).mean().item(),
    ]
    assert min(tv) > 0.1 and abs(tv[0] - tv[2]) > 0.05  # which of them is used does matter
    assert told["bound_paper"] == pytest.approx(r_max * (tv[0] + tv[1]) - lam * kl_star, abs=0.03 * r_max)
    assert told["bound_sharp"] == pytest.approx(r_max * tv[2] - lam * (kl_star + kl_back), abs=0.03 * r_max)
    assert sum(told[f"delta{i + 1}"] for i in range(3)) <= told["bound_sharp"] <= told["bound_paper"]


def test_an_answer_that_rounding_puts_outside_the_nucleus_weighs_nothing():
    half = torch.zeros(1, 2, dtype=torch.float64).log_softmax(1)  # (N, K)
    listing = optimum.Listing(["x"], [["x", "y"]], torch.zeros(1, 2, 4, dtype=torch.float64), half, half)
    under = torch.tensor([[[-math.inf, -1.0], [-1.0, -math.inf]]], dtype=torch.float64)  # (N, S, K)
    samples = optimum.OracleSamples(
        r=torch.zeros(1, 2), own=torch.tensor([[-math.inf, -1.0]]), oracle_under=under, plain_under=under
    )
    told = optimum.suboptimality(listing, samples, 1.0)
    assert all(map(math.isfinite, told.values()))


def test_a_nucleus_counts_as_what_it_is():
    """With top_p, tokens outside the nucleus have probability 0: then two models may share no answer at all."""
    lm, oracle = one_letter(1, top_p=0.05), one_letter(9, top_p=0.05)  # both always give their favourite
    found = optimum.rate(REQUESTS, REWRITES, lm, worth, 2, rng()).under(prompter(3), prompter(4))
    favourites = [[int(next_token(m, p).argmax()) for p in ps] for m, ps in ((oracle, REQUESTS), (lm, REQUESTS))]
    differ = np.mean([a != b for a, b in zip(*favourites)])
    told = optimum.suboptimality(found, optimum.sample_oracle(found, lm, oracle, worth, 3, rng(1)), 0.7)
    rewrites_differ = [[int(next_token(lm, p).argmax()) != f for p in row] for row, f in zip(REWRITES, favourites[1])]
    tv = (found.rho_sft * torch.tensor(rewrites_differ)).sum(1).mean().item()
    star = theory.optimal_prompter(found.rho_sft, found.R, 0.7)
    want = told["r_max"] * (differ + tv) - 0.7 * theory.kl(star, found.rho_sft).mean().item()
    assert told["bound_paper"] == pytest.approx(want, abs=1e-5)


# ---------------------------------------------------------------- more answers for the best rewrites


def test_the_best_third_gets_more_answers_and_every_table_counts_them():
    lm = one_letter(1)
    rewrites = [["h", "a", "b", "c", "d", "e", "f", "g"], ["b", "a", "c", "d", "e", "f", "g", "h"]]
    found = optimum.rate(REQUESTS[:2], rewrites, lm, worth, 40, rng(), more=60)
    assert found.r.shape == (2, 8, 100)
    exact = torch.tensor(
        [
            [
                float(next_token(lm, p) @ worth([x] * 12, [Letters().decode([t]) for t in range(12)]).double())
                for p in row
            ]
            for x, row in zip(REQUESTS, rewrites)
        ]
    )  # (2, 8)
    for n in range(2):
        assert sorted(found.answers[n].tolist()) == [40] * 6 + [100] * 2
    more = found.answers == 100
    assert exact[more].mean() > exact.mean() + 0.5, "the better ones, as far as a pilot can tell"
    for n, k in ((0, 0), (1, 5)):
        given = found.r[n, k][~found.r[n, k].isnan()]
        assert found.R[n, k] == pytest.approx(float(given.mean())) and len(given) in (40, 100)
        assert found.V[n, k] == pytest.approx(float(given.var()))
    even, odd = (half.nanmean(2) for half in found.halves)
    given = found.answers.double()
    torch.testing.assert_close((even + odd) / 2, found.R, rtol=0, atol=1e-9)
    assert (given % 2 == 0).all()
    assert optimum.rate(REQUESTS[:2], rewrites, lm, worth, 3, rng()).r.shape == (2, 8, 3)  # none more by default


def test_the_answers_that_choose_are_not_counted():
    """All rewrites alike, rewards pure noise: answers that chose would make the chosen rewrites look better."""
    draw = torch.Generator().manual_seed(0)
    noise = lambda xs, ys: torch.randn(len(xs), generator=draw)

    class Names:  # every answer another text, so that each gets a reward of its own
        count = 0

        def answer(self, prompts, generator):
            Names.count += len(prompts)
            return [Answer(str(Names.count - i), truncated=False) for i in range(len(prompts))]

    rewrites = [[f"x {k}" for k in range(6)]] * 400
    found = optimum.rate(["x"] * 400, rewrites, Names(), noise, 4, rng(), more=4)
    more = found.answers == 8
    assert more.sum() == 800
    for values in (found.R[more], found.R[~more], *(half.nanmean(2)[more] for half in found.halves)):
        assert abs(float(values.mean())) < 4 * float(values.std()) / len(values) ** 0.5


def test_the_truth_lies_between_the_two_optima():
    """R with known noise: by the same answers the share comes out too low, cross-fitted too high."""
    draw = np.random.default_rng(0)
    truth, p, lam, M = draw.normal(size=(5, 8)), np.full((5, 8), 1 / 8), 0.5, 16
    rho = theory.optimal_prompter(p, truth, 0.7).numpy()  # not the optimum at lam 0.5
    exact = theory.closeness(rho, p, truth, lam)["attainable_gain_share"]
    plain, crossed = [], []
    for _ in range(200):
        found = listed(truth[..., None] + draw.normal(size=(5, 8, M)), p, rho)
        told = optimum.describe(found, lam)
        plain.append(told["attainable_gain_share"])
        crossed.append(told["attainable_gain_share_cross_fitted"])
    assert np.mean(plain) < exact - 0.01 < exact + 0.01 < np.mean(crossed)


def test_each_half_chooses_once_and_rates_once():
    """chose - 2 rates: 1 - 4 and 2 - 2; of two pairs the mean over all four ways."""
    first, second = torch.tensor(1.0), torch.tensor(2.0)
    measure = lambda chose, rates: {"x": float(chose - 2 * rates), "y": float(chose)}
    assert optimum.cross_fitted(measure, (first, second)) == {"x": -1.5, "y": 1.5}
    assert optimum.cross_fitted(measure, (first, second), (first * 3, second * 3)) == {"x": -3.0, "y": 3.0}


def test_moments_of_the_reward_by_hand():
    """Two requests, two rewrites, two answers; one rewrite of the second request has a third answer."""
    nan = math.nan
    r = torch.tensor([[[0.0, 2.0, nan], [4.0, 4.0, nan]], [[1.0, 1.0, nan], [5.0, 7.0, 9.0]]], dtype=torch.float64)
    rho = torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)
    # R: 1, 4 | 1, 7; V: 2, 0 | 0, 4; squared errors of R: 1, 0 | 0, 4/3; means: 2.5 | 5.5
    found = optimum.moments(rho, r)
    assert found["mean"] == pytest.approx(4) and found["within"] == pytest.approx((1 + 3) / 2)
    noise = (0.25 * 1 + 0.1875 * 4 / 3) / 2
    assert found["between_rewrites"] == pytest.approx((2.25 + 0.25 * 4.5**2 + 0.75 * 1.5**2) / 2 - noise)
    assert found["between_inputs"] == pytest.approx(4.5 - (0.25 * 1 + 0.5625 * 4 / 3) / 2)
    assert found["total"] == pytest.approx(sum(found[key] for key in ("between_inputs", "between_rewrites", "within")))


def test_the_share_less_the_cost_of_other_rewrites_by_hand():
    r = np.array([[[0.0, 0.0], [2.0, 4.0]]])
    told = optimum.describe(listed(r, [[0.4, 0.4]], [[0.1, 0.6]]), lam=1.0)
    gain = math.log(0.5 + 0.5 * math.exp(3)) - 1.5
    cost = 0.7 * math.log(0.7 / 0.8) + 0.3 * math.log(0.3 / 0.2)
    assert told["unlisted_cost"] == pytest.approx(cost)
    assert told["attainable_gain_share_less_unlisted"] == pytest.approx(told["attainable_gain_share"] - cost / gain)


def test_the_kl_of_the_answers_is_the_enumerated_one():
    """Answers of one token: the induced policy and its KL to no fine-tuning are finite sums."""
    lm = one_letter(1)
    found = optimum.rate(REQUESTS, REWRITES, lm, worth, 2, rng()).under(prompter(3), prompter(4))
    pi_f = torch.stack([torch.stack([next_token(lm, p) for p in row]) for row in REWRITES])  # (N, K, 12)
    induced = (found.rho[:, :, None] * pi_f).sum(1)
    exact = theory.kl(induced, pi_f[:, 0]).mean().item()
    assert exact > 0.05
    assert optimum.induced_kl(found, lm, 6000, rng(1)) == pytest.approx(exact, abs=0.02)
    assert exact <= theory.kl(found.rho, torch.eye(len(REWRITES[0]))[0].double().expand_as(found.rho) + 1e-12).mean()


def test_the_predicted_ratios_are_those_of_the_optimum_rated_by_other_answers():
    draw = torch.Generator().manual_seed(4)
    r = torch.randn(6, 3, 8, generator=draw, dtype=torch.float64) + torch.tensor([0.0, 1.0, -1.0])[None, :, None]
    log_sft = torch.randn(6, 3, generator=draw).double().log_softmax(1)
    found = optimum.Listing([f"x{i}" for i in range(6)], [["a", "b", "c"]] * 6, r, log_sft, log_sft)
    told = optimum.predicted_ratios(found, 0.3)
    halves = (r[:, :, ::2], r[:, :, 1::2])
    ways = []
    for chose, rates in (halves, halves[::-1]):
        weights = log_sft.exp() * (chose.mean(2) / 0.3).exp()
        ways.append(optimum.moments(weights / weights.sum(1, keepdim=True), rates))
    mean = {part: (ways[0][part] + ways[1][part]) / 2 for part in ways[0]}
    plain = optimum.moments(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(6, -1), r)
    within = lambda parts: parts["between_rewrites"] + parts["within"]
    assert told["predicted_variance_ratio"] == pytest.approx(mean["total"] / plain["total"])
    assert told["predicted_variance_ratio_within_requests"] == pytest.approx(within(mean) / within(plain))
    # An offset b(x) of a request changes neither the optimum nor the variance within requests.
    shifted = replace(found, r=r + 10 * torch.arange(6)[:, None, None])
    moved = optimum.predicted_ratios(shifted, 0.3)
    name = "predicted_variance_ratio_within_requests"
    assert moved[name] == pytest.approx(told[name]) and moved["predicted_variance_ratio"] == pytest.approx(1, abs=0.05)


def test_nothing_is_predicted_from_too_few_answers_or_from_one_table_for_all():
    r = torch.randn(4, 2, 3, dtype=torch.float64)
    log_sft = torch.full((4, 2), 0.5).double().log()
    few = optimum.Listing(["x"] * 4, [["a", "b"]] * 4, r, log_sft, log_sft)
    many = replace(few, r=torch.randn(4, 2, 4, dtype=torch.float64))
    for found in (
        few,
        replace(many, is_pooled=True),
        optimum.Listing(["x"], [["a", "b"]], r[:1], log_sft[:1], log_sft[:1]),
    ):
        assert set(optimum.predicted_ratios(found, 0.1).values()) == {None}
    assert None not in optimum.predicted_ratios(many, 0.1).values()


# ---------------------------------------------------------------- moments under the optimum


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
    predicted = optimum.moments_at_optimum(listing.rho_sft, listing.r, lam)
    for key, value in want.items():
        assert predicted[key] == pytest.approx(float(value), abs=0.02), key
    assert predicted["total"] == pytest.approx(sum(predicted[k] for k in list(want)[1:]))


def test_the_prediction_agrees_with_the_components_of_new_answers():
    """The law of total variance against nested ANOVA on rewrites drawn from rho* and new answers to them."""
    listing, means, variances = drawn(N=400, M=200, seed=1)
    rho = theory.optimal_prompter(listing.rho_sft, means, 0.5)
    picks = torch.multinomial(rho, 8, replacement=True, generator=torch.Generator().manual_seed(0))
    noise = torch.from_numpy(np.random.default_rng(2).standard_normal((400, 8, 4)))
    new = means.gather(1, picks)[..., None] + variances.sqrt().gather(1, picks)[..., None] * noise
    told, found = optimum.moments_at_optimum(listing.rho_sft, listing.r, 0.5), variance_parts(new.numpy())
    for key, value in found.items():
        assert told[key] == pytest.approx(value, abs=0.08), key
    assert optimum.moments_of_kind(listing.r, 0)["between_rewrites"] == pytest.approx(0.0, abs=1e-9)
    assert optimum.moments_of_kind(listing.r, 0)["within"] == pytest.approx(float(variances[:, 0].mean()), abs=0.05)


def test_noise_in_R_does_not_pass_for_variance():
    """Rewrites that are all alike: with few answers the plain estimate would show a spread that is not there."""
    listing, _, _ = drawn(N=200, M=6, seed=3)
    alike = Listing(
        listing.requests, listing.rewrites, listing.r - listing.r.mean(2, keepdim=True), *(listing.log_sft,) * 2
    )
    noise = torch.from_numpy(np.random.default_rng(4).standard_normal((200, 6, 6)))
    alike = Listing(alike.requests, alike.rewrites, noise, listing.log_sft, listing.log_sft)
    told = optimum.moments_at_optimum(alike.rho_sft, alike.r, math.inf)
    assert abs(told["between_rewrites"]) < 0.02 and abs(told["between_inputs"]) < 0.03
    assert told["within"] == pytest.approx(1.0, abs=0.03)
