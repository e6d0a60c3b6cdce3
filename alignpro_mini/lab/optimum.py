"""How near a trained prompter comes to the optimum, where the rewrites of a request can be enumerated.

    rho, rho_sft   the probability of each enumerated rewrite, its EOS included: exact, read off the model
    R(x, x')       mean reward of many answers of pi_F to each rewrite: estimated, with its standard error
    theory.py      the optimum of *these* tables and the distance to it: exact

The share of the attainable gain is reported in three forms, because the tables differ from the world in two ways:

    attainable_gain_share   R is noisy, and rho* prefers what came out high: the optimum is too high (by about
                            `optimum_noise`), and so the share too low
    ..._cross_fitted        the optimum by one half of the answers, all values by the other half. This optimum is a real
                            prompter, so its value is too low on average and the share too high; the truth lies between
    ..._less_unlisted       the first, less the cost of what a prompter writes that is not enumerated, or spells by
                            other tokens (`mass_outside`, `unlisted_cost`); the other two leave this cost out

Shape legend:  N inputs   K enumerated rewrites   M answers to each   S answers per input used for total variations
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from alignpro_mini import theory
from alignpro_mini.alignpro import Prompter
from alignpro_mini.frozen import Answer, FrozenLM, FrozenModel
from alignpro_mini.generation import sequence_logprobs
from alignpro_mini.options import require
from alignpro_mini.training import Score

PILOT = 8  # answers to a rewrite that decide which rewrites get more of them


@dataclass(frozen=True, slots=True)
class RatedRewrites:
    """Requests, their enumerated rewrites (the plain request first), and the rewards: independent of any prompter."""

    requests: list[str]  # N
    rewrites: list[list[str]]  # (N, K)
    r: Tensor  # (N, K, M) rewards of answers to each rewrite; NaN: the rewrite got fewer than M answers
    is_pooled: bool = field(default=False, kw_only=True)  # the same for all requests of a kind

    @property
    def R(self) -> Tensor:
        return self.r.nanmean(2)  # (N, K)

    @property
    def V(self) -> Tensor:
        """Variance of the reward over the answers to a rewrite, (N, K)."""
        return _variance(self.r)

    @property
    def answers(self) -> Tensor:
        return _count(self.r)  # (N, K)

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """The rewards of every other answer, and of the rest, for `cross_fitted`: (N, K, M/2) each."""
        return _halves(self.r)

    def under(self, rho_sft: Prompter, rho: Prompter) -> Listing:
        """The same, with the probabilities that two prompters give to each rewrite."""
        logs = (log_probabilities(prompter, self.requests, self.rewrites) for prompter in (rho_sft, rho))
        return Listing(self.requests, self.rewrites, self.r, *logs)


@dataclass(frozen=True, slots=True)
class Listing(RatedRewrites):
    """Rated rewrites, and their log-probabilities under two prompters."""

    log_sft: Tensor  # (N, K) log-probabilities under rho_sft; a row's probabilities sum to at most 1
    log_rho: Tensor  # (N, K) the same of the trained prompter

    @property
    def rho_sft(self) -> Tensor:
        return self.log_sft.softmax(1)  # (N, K)

    @property
    def rho(self) -> Tensor:
        return self.log_rho.softmax(1)  # (N, K) finite even where the prompter writes none of them


def pooled(
    requests: list[str], rewrites: list[list[str]], r: Tensor, listed: Sequence[str], kinds: Sequence[str]
) -> RatedRewrites:
    """Rewrites rated by what the same rewrites got at other requests, of the same kind.

    r (L, K, M) are rewards at L other requests, whose kinds are `listed`; `kinds` are those of `requests`. The mean
    rewards of the requests of a kind stand in the place of a request's answers, so R is their mean, and the optimum is
    one distribution over the K rewrites for each kind. `halves` are every other request. Raises UserError for a kind of
    which fewer than four requests are listed.
    """
    means = r.mean(2)  # (L, K): answers to one request are not independent
    of_kind = {kind: means[[i for i, other in enumerate(listed) if other == kind]] for kind in dict.fromkeys(kinds)}
    fewest = min(len(rows) for rows in of_kind.values())
    mend = "raise --theory.inputs"
    require(fewest >= 4, f"{fewest} requests of a kind are listed, and its optimum takes at least 4: {mend}")
    each = [of_kind[kind] for kind in kinds]  # N times (requests of the kind, K)
    return RatedRewrites(requests, rewrites, pad_sequence(each, True, torch.nan).mT, is_pooled=True)


def rate(
    requests: Sequence[str],
    rewrites: Sequence[Sequence[str]],
    frozen: FrozenModel,
    reward: Score,
    answers: int,
    generator: torch.Generator,
    more: int = 0,
) -> RatedRewrites:
    """Answer every enumerated rewrite `answers` times, and rate the answers against the request.

    The best third of a request's rewrites gets `more` answers: rho* is made of these, so their noise matters most.
    Which rewrites these are is decided by PILOT other answers, which are then dropped: answers that were chosen for
    their reward would bias R, and would be part of both `halves`.
    """

    def rated(rows: Sequence[Sequence[str]], times: int) -> Tensor:
        asked = [x_prime for row in rows for x_prime in row for _ in range(times)]
        x = [x for x, row in zip(requests, rows, strict=True) for _ in range(len(row) * times)]
        return _rate_once(reward, x, frozen.answer(asked, generator)).view(len(rows), -1, times)

    first = rated(rewrites, answers)  # (N, K, M)
    second = torch.full((*first.shape[:2], more), torch.nan, dtype=first.dtype)
    if more:
        best = rated(rewrites, PILOT).mean(2).topk(max(1, first.shape[1] // 3)).indices  # (N, K/3)
        again = [[row[j] for j in picked] for row, picked in zip(rewrites, best.tolist())]
        second.scatter_(1, best[:, :, None].expand(-1, -1, more), rated(again, more))
    return RatedRewrites(list(requests), [list(row) for row in rewrites], torch.cat((first, second), 2))


def _rate_once(reward: Score, x: Sequence[str], y: Sequence[Answer]) -> Tensor:
    """Rewards (B,) float64; a reward that differs from call to call is taken as fixed."""
    rate_texts = lambda x, y: torch.as_tensor(reward(x, [text for text, _ in y]), dtype=torch.float64)
    return _each_once(rate_texts, x, [(a.text, a.truncated) for a in y])  # equal texts may differ in their end


def _each_once(f: Callable[[list, list], Tensor], first: Sequence, second: Sequence) -> Tensor:
    """f over pairs, each distinct pair computed once: a small LM often gives the same answer again."""
    pairs = list(zip(first, second, strict=True))
    distinct = list(dict.fromkeys(pairs))
    found, place = f(*map(list, zip(*distinct))), {pair: i for i, pair in enumerate(distinct)}  # (distinct,)
    return found[[place[pair] for pair in pairs]]


def log_probabilities(prompter: Prompter, requests: Sequence[str], rewrites: Sequence[Sequence[str]]) -> Tensor:
    """log rho(x'|x) of each enumerated rewrite as the tokenizer spells it, with any of its ends: (N, K) float64."""
    spell, ends = prompter.tokenizer.chat_with_answer, prompter.tokenizer.end_ids
    pairs = [spell(x, x_prime) for x, row in zip(requests, rewrites, strict=True) for x_prime in row]
    each = [(before, [*tokens[:-1], end]) for before, tokens in pairs for end in ends]  # (N*K*ends)
    logs = sequence_logprobs(prompter.model, *zip(*each), prompter.temperature).double()
    return logs.view(len(requests), -1, len(ends)).logsumexp(2)


def describe(listing: Listing, lam: float) -> dict[str, float]:
    """`theory.closeness` of the trained prompter at KL coefficient lam, and what limits the comparison.

        attainable_gain_share, ..._cross_fitted, ..._less_unlisted: see the top of this module
        mass_outside, mass_outside_sft   what the two prompters give to rewrites that are not enumerated
        unlisted_cost                    lam times the least KL that moves probability off these rewrites or onto
                                         them; the share leaves this cost out
        r_standard_error                 of R: root mean square over the enumerated rewrites
        optimum_noise                    by how much the noise in R is expected to raise J_lam(rho*), in reward; to
                                         second order, and so too low where R's standard errors are not well below lam
        predicted_variance_ratio         of the optimum to no fine-tuning, cross-fitted: known before any PPO; and its
                                         part within requests. None where all requests share one table, or have too few answers
        delta2, delta3                   J(pi_F) - J(rho_sft), J(rho_sft) - J(rho*); R also chose rho*, which
                                         raises it by about twice `optimum_noise`

    Rewards, and so everything but the masses and the share, are in the units that PPO sees, those of lam.
    """
    rho_sft, R, error2 = listing.rho_sft, listing.R, listing.V / listing.answers
    star = theory.optimal_prompter(rho_sft, R, lam)  # (N, K)
    # J_lam(rho*) = lam ln sum rho_sft exp(R / lam) is convex in R: second derivative rho* (1 - rho*) / lam.
    noise = (star * (1 - star) * error2).sum(1).mean() / (2 * lam)
    # Rounding can put a row's sum above 1 by 1e-7, and a log needs some mass on either side.
    ours, start = (x.exp().sum(1).clamp(1e-9, 1 - 1e-9) for x in (listing.log_rho, listing.log_sft))  # (N,) on the list
    two = lambda on: torch.stack((on, 1 - on), dim=1)  # (N, 2)
    cost = lam * float(theory.kl(two(ours), two(start)).mean())
    found = theory.closeness(listing.rho, rho_sft, R, lam)
    share = found["attainable_gain_share"]
    less = None if share is None else share - cost / found["attainable_gain"]
    return {
        **found,
        **predicted_ratios(listing, lam),
        "attainable_gain_share_cross_fitted": crossed_share(listing, lam),
        "attainable_gain_share_less_unlisted": less,
        "mass_outside": 1 - float(ours.mean()),
        "mass_outside_sft": 1 - float(start.mean()),
        "r_standard_error": float(error2.mean().sqrt()),
        "unlisted_cost": cost,
        "optimum_noise": float(noise),
        "delta2": float(R[:, 0].mean() - theory.value(rho_sft, R)),
        "delta3": float(theory.value(rho_sft, R) - theory.value(star, R)),
    }


def predicted_ratios(listing: Listing, lam: float) -> dict[str, float | None]:
    """Variance of the reward under rho* over that of plain answers: whole, and within requests."""
    names = ("predicted_variance_ratio", "predicted_variance_ratio_within_requests")
    if listing.is_pooled or len(listing.r) < 2 or int(listing.answers.min()) < 4:  # a variance in each half
        return dict.fromkeys(names)
    best = moments_at_optimum(listing.rho_sft, listing.r, lam)
    plain = moments_of_kind(listing.r, 0)
    return dict(zip(names, variance_ratios(best, plain)))


def variance_ratios(values: dict[str, float], start: dict[str, float]) -> tuple[float | None, float | None]:
    """Of two results of `moments`: the ratio of the whole variances, and of those within requests; None over nothing."""
    within = lambda parts: parts["between_rewrites"] + parts["within"]
    pairs = ((values["total"], start["total"]), (within(values), within(start)))
    return tuple(a / b if b > 1e-12 else None for a, b in pairs)


def crossed_share(listing: Listing, lam: float) -> float | None:
    """The share of the gain of a cross-fitted optimum, with all values by the answers that did not choose it.

    None where this optimum gains nothing.
    """

    def gains(chose: Tensor, rates: Tensor) -> dict[str, float]:
        R = rates.nanmean(2)  # (N, K)
        star = theory.optimal_prompter(listing.rho_sft, chose.nanmean(2), lam)  # (N, K)
        start = theory.value(listing.rho_sft, R)
        gain = lambda rho: float(theory.regularised_value(rho, listing.rho_sft, R, lam) - start)
        return {"ours": gain(listing.rho), "best": gain(star)}

    mean = cross_fitted(gains, listing.halves)
    return mean["ours"] / mean["best"] if mean["best"] > 1e-12 else None


def cross_fitted(
    measure: Callable[[Tensor, Tensor], dict[str, float]], *pairs: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """measure(chose, rates) for two halves of the rewards: each half once chooses and once rates; the mean of all.

    An optimum leans on what came out high, so the rewards that chose it rate it too high. Rated by other rewards it is
    a prompter that exists, and so too low on average. The truth lies between.
    """
    both_ways = [way for pair in pairs for way in (pair, pair[::-1])]
    measured = [measure(chose, rates) for chose, rates in both_ways]
    return {key: sum(values[key] for values in measured) / len(measured) for key in measured[0]}


def moments(rho: Tensor, r: Tensor) -> dict[str, float]:
    """Mean and variance components of the reward under rho (N, K), from the rewards r (N, K, M) of the answers.

        between inputs     Var_x(sum_x' rho R)         less what the noise of R adds to it
        between rewrites   E_x Var_x'(R)               less what the noise of R adds to it
        within a rewrite   E_x sum_x' rho V
    R and V are mean and variance over the answers to a rewrite, so the error of R has the variance V / M.
    """
    R, V = r.nanmean(2), _variance(r)  # (N, K) each
    error2 = V / _count(r)  # (N, K)
    mean = (rho * R).sum(1)  # (N,)
    noise = (rho * (1 - rho) * error2).sum(1).mean()
    parts = {
        "between_inputs": float(mean.var() - (rho**2 * error2).sum(1).mean()),
        "between_rewrites": float((rho * (R - mean[:, None]) ** 2).sum(1).mean() - noise),
        "within": float((rho * V).sum(1).mean()),
    }
    return parts | {"mean": float(mean.mean()), "total": sum(parts.values())}


def moments_of_kind(r: Tensor, kind: int) -> dict[str, float]:
    """The same of one fixed rewrite for all requests: `kind` is its place among the K. 0 is the plain request."""
    return moments(torch.ones(len(r), 1, dtype=torch.float64), r[:, [kind]])


def moments_at_optimum(rho_sft: Tensor, r: Tensor, lam: float) -> dict[str, float]:
    """The same of rho* at lam, cross-fitted; lam = inf: of rho_sft (N, K)."""
    star = lambda chose: theory.optimal_prompter(rho_sft, chose.nanmean(2), lam)  # (N, K)
    return cross_fitted(lambda chose, rates: moments(star(chose), rates), _halves(r))


def _halves(r: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K, M) rewards -> those of every other answer, and of the rest."""
    return r[:, :, ::2], r[:, :, 1::2]


def _count(r: Tensor) -> Tensor:
    """(N, K, M) rewards -> how many answers each rewrite got, (N, K): NaN stands for none."""
    return (~r.isnan()).sum(2)


def _variance(r: Tensor) -> Tensor:
    """(N, K, M) rewards -> their variance over the answers to a rewrite, (N, K)."""
    return (r - r.nanmean(2, keepdim=True)).square().nansum(2) / (_count(r) - 1)


@dataclass(frozen=True, slots=True)
class OracleSamples:
    """What the bounds need of the oracle and the frozen LM, for any prompter. Log-probabilities of whole answers."""

    r: Tensor  # (N, M) rewards of the oracle's answers
    own: Tensor  # (N, S) the oracle's answers under the oracle itself
    oracle_under: Tensor  # (N, S, K) the same answers under the frozen LM, after each rewrite
    plain_under: Tensor  # (N, S, K) the frozen LM's answers to x under the frozen LM, after each rewrite


def sample_oracle(
    rated: RatedRewrites, frozen: FrozenLM, oracle: FrozenLM, reward: Score, answers: int, generator: torch.Generator
) -> OracleSamples:
    """As many rated oracle answers as a rewrite has at least, and S = `answers` of both models for the bounds."""
    N, K, M = *rated.r.shape[:2], int(rated.answers.min())
    repeated = [x for x in rated.requests for _ in range(M)]
    r = _rate_once(reward, repeated, oracle.answer(repeated, generator)).view(N, M)
    chat = frozen.tokenizer.chat
    plain = [x for x in rated.requests for _ in range(answers)]  # (N*S)
    enumerated = [chat(x_prime) for row in rated.rewrites for _ in range(answers) for x_prime in row]  # (N*S*K)
    by_oracle, by_frozen = ([a.tokens for a in lm.answer(plain, generator)] for lm in (oracle, frozen))
    own = _under(oracle, [chat(x) for x in plain], by_oracle).view(N, answers)
    repeat = lambda tokens: [t for t in tokens for _ in range(K)]
    each = (_under(frozen, enumerated, repeat(tokens)).view(N, answers, K) for tokens in (by_oracle, by_frozen))
    return OracleSamples(r, own, *each)


def _under(model: FrozenLM, prompts: list, tokens: list, nucleus: bool = True) -> Tensor:
    """Log-probabilities (B,) float64 of answers, as the model samples them; each distinct pair computed once."""
    how = (model.sampling.temperature, model.sampling.top_p if nucleus else 1.0)
    score = lambda p, t: sequence_logprobs(model.model, p, t, *how).double()
    return _each_once(score, [tuple(p) for p in prompts], [tuple(t) for t in tokens])


def induced_kl(listing: Listing, frozen: FrozenLM, answers: int, generator: torch.Generator) -> float:
    """KL of the answers that the trained prompter induces to those of no fine-tuning, nats; k1 from sampled answers.

        pi_rho(y|x) = sum_x' rho(x'|x) pi_F(y|x')        E_x KL(pi_rho(.|x) || pi_F(.|x))
    It is the quantity that RLHF's KL penalty holds down, so prompter and oracle can be compared at equal KL of answers.
    As in `evaluation.sequence_kl` a nucleus (top_p) is left out: an answer outside it would make the KL infinite. So is
    what the prompter writes that is not enumerated.
    """
    N, K, _ = listing.r.shape
    picks = torch.multinomial(listing.rho, answers, replacement=True, generator=generator)  # (N, S)
    asked = [row[j] for row, picked in zip(listing.rewrites, picks.tolist()) for j in picked]  # (N*S)
    tokens = [answer.tokens for answer in frozen.answer(asked, generator)]
    chats = [frozen.tokenizer.chat(x_prime) for row in listing.rewrites for _ in range(answers) for x_prime in row]
    each = _under(frozen, chats, [t for t in tokens for _ in range(K)], nucleus=False).view(N, answers, K)
    induced = (listing.log_rho.log_softmax(1)[:, None] + each).logsumexp(2)  # (N, S)
    return float((induced - each[:, :, 0]).mean())  # the first rewrite is x itself


def suboptimality(listing: Listing, samples: OracleSamples, lam: float) -> dict[str, float]:
    """Delta1 and the two bounds on Delta1 + Delta2 + Delta3, with the trained oracle in the place of pi*.

    The bounds hold for *any* pi*, and the oracle is the best policy at hand. Total variations are estimated from
    samples by TV(p, q) = E_{y ~ p}[max(0, 1 - q(y) / p(y))], unbiased and between 0 and 1; r_max is the range of the
    rewards seen. The first rewrite is x itself.
    """
    star = theory.optimal_prompter(listing.rho_sft, listing.R, lam)  # (N, K)
    log_mixture = (listing.log_sft.log_softmax(1)[:, None] + samples.oracle_under).logsumexp(2)  # (N, S)
    # max(0, 1 - q/p); p = 0 for a sampled y is rounding at the edge of a nucleus (top_p), and weighs nothing.
    short = lambda log_p, log_q: torch.where(log_p.isinf(), 0.0, 1 - (log_q - log_p).exp()).clamp(min=0)
    tv_rewrites = (listing.rho_sft[:, None] * short(samples.plain_under[:, :, :1], samples.plain_under)).sum(2).mean()
    seen = torch.cat((listing.r[~listing.r.isnan()], samples.r.flatten()))
    r_max = float(seen.max() - seen.min())
    kl_star = float(theory.kl(star, listing.rho_sft).mean())
    gain = float(theory.value(star, listing.R) - theory.value(listing.rho_sft, listing.R))  # -Delta3
    kl_back = gain / lam - kl_star  # by Delta3's identity; rho* may underflow, and its log with it
    tv_oracle = float(short(samples.own, samples.oracle_under[:, :, 0]).mean())
    tv_induced = float(short(samples.own, log_mixture).mean())
    return {
        "delta1": float(samples.r.mean() - listing.R[:, 0].mean()),
        "bound_paper": theory.bound_paper(r_max, tv_oracle, float(tv_rewrites), kl_star, lam),
        "bound_sharp": theory.bound_sharp(r_max, tv_induced, kl_star, kl_back, lam),
        "r_max": r_max,
    }
