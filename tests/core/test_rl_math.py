"""Every formula of alignpro_mini/rl_math.py against an oracle that shares no code with it.

The oracles: sums over every outcome of a tiny distribution, integers worked by hand, plain Python loops, the
textbook definition where the code uses a recursion, finite differences, and changes of the input that must
not change the answer (pad it, permute it, split it). tests/mutants/ breaks the source one defect at a
time and checks that the tests named there notice.

Shape legend:  B rows   T tokens of the completion   V vocabulary
"""

import math
import statistics

import pytest
import torch

from alignpro_mini import rl_math as M

INF, NAN = math.inf, math.nan
GARBAGE = [0.0, 7.0, 1e30, -1e30, INF, -INF, NAN]  # what may stand in the padding


def f64(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def bools(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def close(got: torch.Tensor, want, atol: float = 1e-12) -> None:
    """Elementwise, finite and of one shape: a signed sum or a broadcast could pass by accident."""
    want = want if isinstance(want, torch.Tensor) else f64(want)
    assert got.shape == want.shape, f"{tuple(got.shape)} is not {tuple(want.shape)}"
    assert torch.isfinite(got).all(), got
    torch.testing.assert_close(got.double(), want.double(), rtol=1e-9, atol=atol)


def ragged(seed: int = 0, lengths: tuple[int, ...] = (6, 1, 3, 4), dtype=torch.float64):
    """A batch as the trainer sees it: right-padded, one row full, one row of a single token."""
    rng = torch.Generator().manual_seed(seed)
    B, T = len(lengths), max(lengths)

    def draw() -> torch.Tensor:
        return torch.randn(B, T, generator=rng, dtype=torch.float64).to(dtype)

    mask = torch.arange(T) < torch.tensor(lengths)[:, None]  # (B, T)
    logp_old = -draw().abs()
    case = {"logp": logp_old + 0.3 * draw(), "logp_old": logp_old, "advantages": draw(), "rewards": draw()}
    values_old = draw()
    case |= {"values_old": values_old, "values": values_old + 0.3 * draw(), "returns": draw(), "kl": draw()}
    return case, mask, torch.randn(B, generator=rng, dtype=torch.float64).to(dtype)  # (B, T) each, (B, T), (B,)


# The functions of (B, T) rows, each as (case, mask, scores) -> its results: row by row, or pooled over the batch.
ROWWISE = {
    "masked_sum": lambda c, m, s: (M.masked_sum(c["logp"], m),),
    "masked_mean dim=1": lambda c, m, s: (M.masked_mean(c["logp"], m, dim=1),),
    "assemble_rewards": lambda c, m, s: (M.assemble_rewards(s, c["kl"], m, 0.3),),
    "gae": lambda c, m, s: M.gae(c["rewards"], c["values"], m, 0.9, 0.8),
    "policy_loss": lambda c, m, s: (lambda l, d: (l, d["clipped"].double()))(
        *M.policy_loss(c["logp"], c["logp_old"], c["advantages"], m, 0.2)
    ),
    "value_loss": lambda c, m, s: M.value_loss(c["values"], c["values_old"], c["returns"], m, 0.2),
}
POOLED = {
    "masked_mean": lambda c, m, s: (M.masked_mean(c["logp"], m),),
    "masked_var": lambda c, m, s: (M.masked_var(c["logp"], m),),
    "whiten": lambda c, m, s: (M.whiten(c["advantages"], m),),
    "whiten, mean kept": lambda c, m, s: (M.whiten(c["advantages"], m, shift_mean=False),),
    "explained_variance": lambda c, m, s: (M.explained_variance(c["values"], c["returns"], m),),
}
ALL = ROWWISE | POOLED


# ---------------------------------------------------------------- metamorphic: pad, permute, split, dtype
@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_padding_never_reaches_a_result(name, garbage):
    case, mask, scores = ragged()
    want = ALL[name]({k: v.where(mask, 0.0) for k, v in case.items()}, mask, scores)
    # The same batch with garbage in its padding, then two columns of garbage more.
    wide_mask = torch.nn.functional.pad(mask, (0, 2))
    wide = {k: torch.nn.functional.pad(v.where(mask, garbage), (0, 2), value=garbage) for k, v in case.items()}
    for got, expected in zip(ALL[name](wide, wide_mask, scores), want, strict=True):
        if got.ndim == 2:
            close(got.masked_fill(wide_mask, 0.0), torch.zeros(wide_mask.shape))  # exactly 0 on padding
            got = got[:, : mask.shape[1]]
        close(got, expected)


@pytest.mark.parametrize("name", ALL)
def test_order_of_the_rows_does_not_matter(name):
    case, mask, scores = ragged()
    order = torch.tensor([2, 0, 3, 1])
    want = ALL[name](case, mask, scores)
    shuffled = ALL[name]({k: v[order] for k, v in case.items()}, mask[order], scores[order])
    for got, expected in zip(shuffled, want, strict=True):
        close(got, expected[order] if expected.ndim else expected)


@pytest.mark.parametrize("name", ROWWISE)
def test_a_split_batch_gives_the_same_rows(name):
    case, mask, scores = ragged()
    want = ROWWISE[name](case, mask, scores)
    halves = [ROWWISE[name]({k: v[i] for k, v in case.items()}, mask[i], scores[i]) for i in (slice(1), slice(1, 4))]
    for expected, *parts in zip(want, *halves, strict=True):
        close(torch.cat(parts), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_dtype_is_kept_and_the_answer_agrees_with_float64(name, dtype):
    exact = ALL[name](*ragged())
    for got, expected in zip(ALL[name](*ragged(dtype=dtype)), exact, strict=True):
        if got.is_floating_point() and not name.startswith("policy_loss"):  # its flags were made float64 above
            assert got.dtype == dtype
        close(got, expected, atol=1e-5)


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
@pytest.mark.parametrize(
    "name", "masked_mean|masked_mean dim=1|masked_sum|assemble_rewards|policy_loss|value_loss".split("|")
)
def test_gradient_is_finite_and_exactly_zero_on_padding(name, garbage):
    clean, mask, scores = ragged()
    learned = {"value_loss": "values", "assemble_rewards": "kl"}.get(name, "logp")
    for dirty in [set(clean), *({key} for key in clean)]:  # all at once, or one alone: inf - inf is not inf - 0
        case = {k: v.where(mask, garbage) if k in dirty else v.clone() for k, v in clean.items()}
        case[learned].requires_grad_()
        ALL[name](case, mask, scores)[0].sum().backward()
        grad = case[learned].grad
        assert torch.isfinite(grad).all() and grad[~mask].eq(0).all() and grad[mask].ne(0).any()


@pytest.mark.parametrize(
    "call",
    [
        lambda row, col: M.masked_mean(row, col.bool()),
        lambda row, col: M.masked_sum(row, col.bool()),
        lambda row, col: M.whiten(row, col.bool()),
        lambda row, col: M.kl_estimate(row, col),
        lambda row, col: M.exact_kl(row, col),
        lambda row, col: M.gae(row, col, row.bool(), 1.0, 1.0),
        lambda row, col: M.policy_loss(row, row, col, row.bool(), 0.2),
        lambda row, col: M.value_loss(row, row, col, row.bool(), 0.2),
        lambda row, col: M.explained_variance(row, col, row.bool()),
        lambda row, col: M.bradley_terry_loss(row, col),
        lambda row, col: M.assemble_rewards(torch.ones(3), row, col.bool(), 1.0),
    ],
)
def test_column_against_row_is_refused_not_broadcast(call):
    with pytest.raises(ValueError, match="shape"):
        call(torch.ones(1, 3), torch.ones(3, 1))


# ---------------------------------------------------------------- masked statistics
def test_masked_mean_sum_and_variance_against_python_loops():
    case, mask, _ = ragged(seed=1)
    kept = [[v for v, on in zip(row, keep) if on] for row, keep in zip(case["logp"].tolist(), mask.tolist())]
    flat = [v for row in kept for v in row]
    close(M.masked_sum(case["logp"], mask), [math.fsum(row) for row in kept])
    close(M.masked_mean(case["logp"], mask, dim=1), [statistics.fmean(row) for row in kept])
    close(M.masked_mean(case["logp"], mask), statistics.fmean(flat))
    close(M.masked_var(case["logp"], mask), statistics.pvariance(flat))


def test_masked_mean_by_hand_and_without_a_token():
    x, mask = f64([[1, 2], [5, 9]]), bools([[1, 1], [1, 0]])
    close(M.masked_mean(x, mask), 8 / 3)  # the mean over tokens, not the mean of the rows' means (3.25)
    close(M.masked_mean(x, mask, dim=1), [1.5, 5])
    close(M.masked_mean(x, mask, dim=0), [3, 2])
    close(M.masked_mean(x, bools([[0, 0], [0, 1]]), dim=1), [0, 9])
    close(M.masked_mean(x, torch.zeros_like(mask)), 0.0)


def test_whiten_against_the_statistics_module():
    case, mask, _ = ragged(seed=2)
    x = 5 + 3 * case["advantages"]
    kept = x[mask].tolist()
    mean, std = statistics.fmean(kept), statistics.pstdev(kept)
    want = [[(v - mean) / std if on else 0.0 for v, on in zip(*pair)] for pair in zip(x.tolist(), mask.tolist())]
    close(M.whiten(x, mask), want, atol=1e-7)  # eps = 1e-8 inside the root
    close(M.whiten(x, mask, shift_mean=False), f64(want) + mean * mask.double(), atol=1e-7)


def test_whiten_ignores_scale_and_offset_and_survives_a_constant():
    case, mask, _ = ragged(seed=2)
    close(M.whiten(4 * case["advantages"] - 9, mask), M.whiten(case["advantages"], mask), atol=1e-6)
    close(M.whiten(torch.full((2, 2), 3.0), bools([[1, 1], [1, 0]])), [[0, 0], [0, 0]])
    close(M.whiten(f64([[3, 8]]), bools([[1, 0]]), shift_mean=False), [[3, 0]])


# ---------------------------------------------------------------- KL and entropy
P, Q = [0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]  # far apart, so that no two divergences agree


def kl_by_hand(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


@pytest.mark.parametrize(("p", "q"), [(P, Q), (Q, P), (P, P)])
@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_average_to_the_kl_under_p(kind, p, q):
    estimate = M.kl_estimate(f64(p).log(), f64(q).log(), kind)  # (V,) one value an outcome
    close((f64(p) * estimate).sum(), kl_by_hand(p, q))
    if p is not q:  # neither the swapped divergence nor its negative is anywhere near
        assert abs(kl_by_hand(p, q) - kl_by_hand(q, p)) > 0.05


def test_kl_estimates_by_hand():
    logp, logq = f64([0.5, 0.25, 0.25]).log(), f64([0.25, 0.5, 0.25]).log()
    ln2 = math.log(2)
    close(M.kl_estimate(logp, logq), [ln2, -ln2, 0])  # k1 is the default
    close(M.kl_estimate(logp, logq, "k2"), [ln2**2 / 2, ln2**2 / 2, 0])
    close(M.kl_estimate(logp, logq, "k3"), [0.5 - 1 + ln2, 2 - 1 - ln2, 0])
    assert (M.kl_estimate(f64([-0.01, -9, -3]), f64([-7, -0.02, -3]), "k3") >= 0).all()
    with pytest.raises(ValueError, match="k4.*k1, k2, k3"):
        M.kl_estimate(logp, logq, "k4")


def test_exact_kl_and_entropy_against_sums_over_the_vocabulary():
    logits = f64([P, Q, P]).log() + f64([[3.0], [-2.0], [0.0]])  # a shift of the logits changes nothing
    ref = f64([Q, P, P]).log()
    close(M.exact_kl(logits, ref), [kl_by_hand(P, Q), kl_by_hand(Q, P), 0])
    close(M.entropy(logits), [-math.fsum(a * math.log(a) for a in row) for row in (P, Q, P)])
    assert (M.exact_kl(logits, ref)[0] - M.exact_kl(logits, ref)[1]).abs() > 0.05


@pytest.mark.parametrize("V", [1, 2, 7, 1000])
def test_entropy_of_the_uniform_distribution_is_ln_v(V):
    close(M.entropy(torch.full((2, 3, V), -4.0, dtype=torch.float64)), torch.full((2, 3), math.log(V)), atol=1e-6)


def test_forbidden_tokens_leave_kl_and_entropy_finite():
    logits = f64([[0.0, 1.0, -INF, -INF]]).requires_grad_()
    ref = f64([[1.0, 0.0, -INF, 2.0]])
    p = [1 / (1 + math.e), math.e / (1 + math.e), 0.0, 0.0]
    z = 1 + math.e + math.e**2
    q = [math.e / z, 1 / z, 0.0, math.e**2 / z]
    kl, entropy = M.exact_kl(logits, ref), M.entropy(logits)
    close(kl, [kl_by_hand(p, q)])
    close(entropy, [-math.fsum(a * math.log(a) for a in p if a)])
    # dKL/dlogit_j = p_j (ln p_j/q_j - KL) and dH/dlogit_j = -p_j (ln p_j + H): 0, not NaN, where p_j = 0
    close(
        torch.autograd.grad(kl.sum(), logits)[0],
        [[a * (math.log(a / b) - kl.item()) if a else 0.0 for a, b in zip(p, q)]],
    )
    close(
        torch.autograd.grad(entropy.sum(), logits)[0], [[-a * (math.log(a) + entropy.item()) if a else 0.0 for a in p]]
    )
    assert M.exact_kl(ref, logits.detach()).item() == INF  # p takes a token that the reference forbids


def test_k1_summed_over_a_sequence_averages_to_the_kl_of_the_sequences():
    """Every completion of a two-token vocabulary {EOS, a} with at most two tokens: E, aE, aa."""
    eos_p, eos_q = [0.3, 0.6], [0.5, 0.1]  # P(EOS) at each step
    logp = f64([[eos_p[0], 1], [1 - eos_p[0], eos_p[1]], [1 - eos_p[0], 1 - eos_p[1]]]).log()  # (3, T)
    logq = f64([[eos_q[0], 1], [1 - eos_q[0], eos_q[1]], [1 - eos_q[0], 1 - eos_q[1]]]).log()  # (3, T)
    mask = bools([[1, 0], [1, 1], [1, 1]])
    p = [0.3, 0.7 * 0.6, 0.7 * 0.4]
    q = [0.5, 0.5 * 0.1, 0.5 * 0.9]
    kl = M.kl_estimate(logp, logq).masked_fill(~mask, 99.0)  # (3, T)
    close((f64(p) * M.masked_sum(kl, mask)).sum(), kl_by_hand(p, q))
    rewards = M.assemble_rewards(f64([1, 0, 2]), kl, mask, lam=0.5)  # E[r] - lam KL, the objective
    close((f64(p) * rewards.sum(1)).sum(), p[0] + 2 * p[2] - 0.5 * kl_by_hand(p, q))


# ---------------------------------------------------------------- rewards
def test_the_score_lands_on_the_last_sampled_token():
    kl = f64([[1, 2, 3], [4, 99, 99], [5, 6, 99]])
    mask = bools([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    rewards = M.assemble_rewards(f64([10, 20, 30]), kl, mask, lam=2.0)
    close(rewards, [[-2, -4, 4], [12, 0, 0], [-10, 18, 0]])
    close(M.assemble_rewards(f64([10, 20, 30]), kl, mask, lam=0.0), [[0, 0, 10], [20, 0, 0], [0, 30, 0]])


def test_rewards_of_a_row_sum_to_score_minus_lam_kl():
    case, mask, scores = ragged(seed=3)
    got = M.assemble_rewards(scores, case["kl"], mask, 0.7).sum(1)
    kl = [math.fsum(v for v, on in zip(*pair) if on) for pair in zip(case["kl"].tolist(), mask.tolist())]
    close(got, [s - 0.7 * k for s, k in zip(scores.tolist(), kl)])


def test_assemble_rewards_refuses_an_empty_row_and_misshapen_scores():
    kl, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for scores in (torch.ones(2, 1), torch.ones(1, 2), torch.ones(2, 3), torch.ones(3), torch.ones(())):
        with pytest.raises(ValueError, match="scores have shape"):
            M.assemble_rewards(scores, kl, mask, 1.0)
    with pytest.raises(ValueError, match="no sampled token"):
        M.assemble_rewards(torch.ones(2), kl, bools([[1, 1, 0], [0, 0, 0]]), 1.0)


# ---------------------------------------------------------------- GAE
@pytest.mark.parametrize(
    ("gamma", "lam", "rewards", "values", "mask", "advantages", "returns"),
    [
        pytest.param(1, 1, [[0, 0, 1]], [[1, 2, 3]], [[1, 1, 1]], [[0, -1, -2]], [[1, 1, 1]], id="plain"),
        # lam = 0, the one-step error: 1 + 2*4 - 3 = 6, then 2 + 0 - 4 = -2
        pytest.param(2, 0, [[1, 2]], [[3, 4]], [[1, 1]], [[6, -2]], [[9, 2]], id="one-step"),
        # the same errors with gamma lam = 6: 6 + 6*(-2) = -6
        pytest.param(2, 3, [[1, 2]], [[3, 4]], [[1, 1]], [[-6, -2]], [[-3, 2]], id="gamma-and-lam"),
        # errors 8 + 2 - 4 = 6, 6, 8 - 4 = 4; gamma lam = 1/4: 4, 6 + 1 = 7, 6 + 7/4
        pytest.param(0.5, 0.5, [[8, 8, 8]], [[4, 4, 4]], [[1, 1, 1]], [[7.75, 7, 4]], [[11.75, 11, 8]], id="halves"),
        # row 0 ends at t = 1: 5 - 3 = 2, then (0 + 3 - 2) + 2 = 3; row 1 at t = 0: 7 - 4 = 3; the 99s are padding
        pytest.param(
            1,
            1,
            [[0, 5, 99], [7, 99, 99]],
            [[2, 3, 99], [4, 99, 99]],
            [[1, 1, 0], [1, 0, 0]],
            [[3, 2, 0], [3, 0, 0]],
            [[5, 5, 0], [7, 0, 0]],
            id="ragged",
        ),
    ],
)
def test_gae_by_hand(gamma, lam, rewards, values, mask, advantages, returns):
    got = M.gae(f64(rewards), f64(values), bools(mask), gamma, lam)
    close(got[0], advantages)
    close(got[1], returns)


def gae_by_definition(rewards, values, length: int, gamma: float, lam: float) -> list[float]:
    """A_t = sum_l (gamma lam)^l delta_{t+l}, eq. 16 of the paper as it stands, one row, O(T^2)."""
    v = list(values[:length]) + [0.0]  # the episode ends: V(s_length) = 0
    delta = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(length)]
    return [math.fsum((gamma * lam) ** l * delta[t + l] for l in range(length - t)) for t in range(length)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 1.0), (0.97, 0.8), (0.5, 0.0), (0.0, 0.7)])
def test_gae_against_the_sum_of_the_definition(gamma, lam):
    lengths = (9, 1, 4, 7, 2)
    case, mask, _ = ragged(seed=4, lengths=lengths)
    advantages, returns = M.gae(case["rewards"], case["values"], mask, gamma, lam)
    for b, length in enumerate(lengths):
        want = gae_by_definition(case["rewards"][b].tolist(), case["values"][b].tolist(), length, gamma, lam)
        close(advantages[b], want + [0.0] * (9 - length))
        close(returns[b, :length], f64(want) + case["values"][b, :length])
        assert returns[b, length:].eq(0).all()


def test_gae_with_lam_one_returns_the_discounted_rewards_to_go_whatever_the_critic_says():
    case, mask, _ = ragged(seed=5, lengths=(4, 4))
    _, returns = M.gae(case["rewards"], case["values"], mask, 0.5, 1.0)
    a, b, c, d = case["rewards"].unbind(1)
    close(returns, torch.stack([a + b / 2 + c / 4 + d / 8, b + c / 2 + d / 4, c + d / 2, d], dim=1))


# ---------------------------------------------------------------- policy loss
@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient", "clipped"),
    [
        # clip 0.2. loss = -min(ratio A, clamp(ratio) A); gradient = dloss/dlogp = -ratio A, or 0 once cut
        (+2.0, 0.50, -1.0, -1.0, False),  # the good token became rarer: the loss counts in full, however far
        (+2.0, 0.90, -1.8, -1.8, False),
        (+2.0, 1.00, -2.0, -2.0, False),
        (+2.0, 1.10, -2.2, -2.2, False),
        (+2.0, 1.50, -2.4, 0.0, True),  # already 1.2 times likelier: no further gain
        (-2.0, 0.50, +1.6, 0.0, True),  # the bad token is already rarer than 0.8: no further gain
        (-2.0, 0.90, +1.8, +1.8, False),
        (-2.0, 1.00, +2.0, +2.0, False),
        (-2.0, 1.10, +2.2, +2.2, False),
        (-2.0, 1.50, +3.0, +3.0, False),  # the bad token became likelier: the loss counts in full, however far
    ],
)
def test_policy_loss_sign_table(advantage, ratio, loss, gradient, clipped):
    logp_old = f64([[-3.0]])
    logp = (logp_old + math.log(ratio)).requires_grad_()
    got, info = M.policy_loss(logp, logp_old, f64([[advantage]]), bools([[1]]), clip=0.2)
    got.sum().backward()
    close(got.detach(), [[loss]])
    close(logp.grad, [[gradient]])
    close(info["ratio"], [[ratio]])
    assert info["clipped"].tolist() == [[clipped]] and not info["ratio"].requires_grad


def test_policy_loss_never_counts_padding_as_clipped():
    logp, old = f64([[0.0, 50.0]]), f64([[0.0, -50.0]])
    _, info = M.policy_loss(logp, old, f64([[1.0, 1.0]]), bools([[1, 0]]), 0.2)
    assert info["clipped"].tolist() == [[False, False]] and info["ratio"].tolist() == [[1.0, 1.0]]


def test_first_step_is_the_policy_gradient():
    """With logp == logp_old the gradient of the loss is -A, and swapping old for new is not the same."""
    case, mask, _ = ragged(seed=6)
    logp = case["logp"].clone().requires_grad_()
    M.policy_loss(logp, case["logp"], case["advantages"], mask, 0.2)[0].sum().backward()
    close(logp.grad, -case["advantages"] * mask)


def test_losses_against_finite_differences():
    case, mask, _ = ragged(seed=7)
    fixed = {k: v.clone() for k, v in case.items()}
    x = {k: v.requires_grad_() for k, v in case.items()}
    check = torch.autograd.gradcheck
    assert check(lambda t: M.policy_loss(t, fixed["logp_old"], fixed["advantages"], mask, 0.2)[0], (x["logp"],))
    assert check(lambda t: M.value_loss(t, fixed["values_old"], fixed["returns"], mask, 0.2)[0], (x["values"],))
    assert check(M.exact_kl, (x["logp"], x["kl"])) and check(M.entropy, (x["kl"],))
    assert check(M.bradley_terry_loss, (x["rewards"], x["values"]))
    for kind in M.KL_KINDS:
        assert check(lambda t, k=kind: M.kl_estimate(t, fixed["logp_old"], k), (x["logp"],))


# ---------------------------------------------------------------- value loss, explained variance
@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient", "clipped"),
    [
        # V_old = 0, clip 0.2. loss = max((V - R)^2, (V_c - R)^2) / 2; gradient = V - R, or 0 once cut
        (+0.1, +1.0, 0.405, -0.9, False),
        (-0.1, +1.0, 0.605, -1.1, False),
        (+0.5, +1.0, 0.320, 0.0, True),  # moved towards R by more than 0.2: judged as if at 0.2, no further gain
        (-0.5, -1.0, 0.320, 0.0, True),
        (+0.5, -1.0, 1.125, 1.5, False),  # moved away: the whole error counts
        (-0.5, +1.0, 1.125, -1.5, False),
    ],
)
def test_value_loss_table(value, target, loss, gradient, clipped):
    values = f64([[value]]).requires_grad_()
    got, was_clipped = M.value_loss(values, f64([[0.0]]), f64([[target]]), bools([[1]]), clip=0.2)
    got.sum().backward()
    close(got.detach(), [[loss]])
    close(values.grad, [[gradient]])
    assert was_clipped.tolist() == [[clipped]]


def test_value_loss_does_not_take_rounding_for_clipping():
    rng = torch.Generator().manual_seed(0)
    old, new, target = (0.05 * torch.randn(100, 100, generator=rng) for _ in range(3))  # steps far below the clip
    loss, clipped = M.value_loss(new, old, target, torch.ones(100, 100, dtype=torch.bool), clip=1.0)
    assert not clipped.any()
    torch.testing.assert_close(loss, (new - target).square() / 2)


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([1, 2, 3, -6], 1.0),  # perfect
        ([11, 12, 13, 4], 1.0),  # a constant offset is not variance
        ([4, 4, 4, 4], 0.0),  # a constant critic
        ([-1, -2, -3, 6], -3.0),  # the wrong sign: Var(2R) = 4 Var(R)
        ([0.5, 1, 1.5, -3], 0.75),  # half of it: Var(R/2) = Var(R)/4
    ],
)
def test_explained_variance_known_cases(values, want):
    returns, mask = f64([[1, 2, 3, -6, 50]]), bools([[1, 1, 1, 1, 0]])
    close(M.explained_variance(f64([values + [-70]]), returns, mask), want)


# ---------------------------------------------------------------- KL controller, preference model
@pytest.mark.parametrize(
    ("kl", "want"),
    [
        # coefficient 10, target 4, 64 episodes of a horizon of 640: 10 (1 + error / 10), error within +-0.2
        (4.0, 10.0),
        (4.4, 10.1),
        (3.6, 9.9),
        (400.0, 10.2),
        (0.0, 9.8),
        (-5.0, 9.8),
    ],
)
def test_adaptive_kl_coef_by_hand(kl, want):
    assert M.adaptive_kl_coef(10.0, kl, target=4.0, horizon=640, steps=64) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("coef", [0.001, 50.0])
def test_adaptive_kl_coef_steers_the_kl_to_its_target(coef):
    """A policy whose KL is 1/coef: from either side the KL reaches its target."""
    for _ in range(2000):
        coef = M.adaptive_kl_coef(coef, 1 / coef, target=4.0, horizon=100, steps=10)
    assert 1 / coef == pytest.approx(4.0, rel=1e-3)


def test_bradley_terry_by_hand():
    chosen = f64([math.log(3), 0, 2, 800, -800]).requires_grad_()
    rejected = f64([0, math.log(3), 2, -800, 800]).requires_grad_()
    loss = M.bradley_terry_loss(chosen, rejected)
    # sigmoid(ln 3) = 3/4; far apart the loss is the margin itself, with neither inf nor NaN
    close(loss.detach(), [math.log(4 / 3), math.log(4), math.log(2), 0, 1600])
    loss.sum().backward()
    close(chosen.grad, [-1 / 4, -3 / 4, -1 / 2, 0, -1])  # -(1 - P(chosen wins))
    close(rejected.grad, [1 / 4, 3 / 4, 1 / 2, 0, 1])


# ---------------------------------------------------------------- where the KL penalty belongs
LOGITS, LOGQ = [0.3, -1.0, 0.8, 0.1], torch.log(f64([[a] for a in Q]))  # (V,), (V, 1)


def kl_gradient(p: list[float], q: list[float]) -> list[float]:
    """dKL(p||q)/dlogit_j = p_j (ln p_j/q_j - KL), derived by hand from p = softmax(logits)."""
    return [a * (math.log(a / b) - kl_by_hand(p, q)) for a, b in zip(p, q)]


def every_outcome():
    """A bandit whose batch is its V outcomes, one row and one token each, weighted by their probability."""
    logits = f64(LOGITS).requires_grad_()
    logp = logits.log_softmax(0)[:, None]  # (V, 1)
    return logits, logp, logp.detach().exp()


def test_k1_in_the_reward_has_the_gradient_of_the_kl():
    logits, logp, p = every_outcome()
    mask, zeros = torch.ones_like(p, dtype=torch.bool), torch.zeros_like(p)
    rewards = M.assemble_rewards(zeros[:, 0], M.kl_estimate(logp.detach(), LOGQ), mask, lam=0.7)
    advantages, _ = M.gae(rewards, zeros, mask, 1.0, 1.0)
    loss, _ = M.policy_loss(logp, logp.detach(), advantages, mask, 0.2)
    (p * loss).sum().backward()
    close(logits.grad, 0.7 * f64(kl_gradient(p[:, 0].tolist(), Q)))
    assert logits.grad.abs().max() > 0.05


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_what_each_estimator_would_do_inside_the_loss(kind):
    """k1: nothing at all on average, since E[grad log p] = 0. k2: the gradient of KL(p||ref). k3: of KL(ref||p)."""
    logits, logp, p = every_outcome()
    (p * M.kl_estimate(logp, LOGQ, kind)).sum().backward()
    probs = p[:, 0].tolist()
    reverse = [a - b for a, b in zip(probs, Q)]  # dKL(q||p)/dlogit_j = p_j - q_j
    close(logits.grad, {"k1": [0.0] * 4, "k2": kl_gradient(probs, Q), "k3": reverse}[kind])


def test_policy_gradient_of_score_and_kl_points_to_the_closed_form():
    """At rho*(v) proportional to ref(v) exp(R(v)/lam) the expected gradient vanishes; elsewhere it does not."""
    scores, lam = f64([1.0, 0.0, -0.5, 2.0]), 0.5
    best = LOGQ[:, 0] + scores / lam
    for at_optimum in (True, False):
        logits = (best if at_optimum else best.flip(0)).clone().requires_grad_()
        logp = logits.log_softmax(0)[:, None]
        p, mask = logp.detach().exp(), torch.ones(4, 1, dtype=torch.bool)
        rewards = M.assemble_rewards(scores, M.kl_estimate(logp.detach(), LOGQ), mask, lam)
        (p * M.policy_loss(logp, logp.detach(), rewards, mask, 0.2)[0]).sum().backward()
        assert (logits.grad.abs().max() < 1e-12) == at_optimum
