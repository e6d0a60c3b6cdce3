"""Theory: identities to 1e-9 and bounds never violated, on thousands of random finite problems."""

import itertools
import math

import numpy as np
import pytest
import torch
from finite_problem import FiniteProblem

from alignpro_mini import theory

RUNS = 2000


def simplex(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random distributions over the last axis, from even to almost certain."""
    return rng.dirichlet(np.full(shape[-1], 10 ** rng.uniform(-1, 1)), shape[:-1]) + 0.0


def problem(seed: int) -> FiniteProblem:
    """Every third problem has x itself as rewrite 0; lam, beta and the reward's scale are drawn from 0.1 to 10."""
    rng = np.random.default_rng(seed)
    N, K, Y = rng.integers(1, 4), rng.integers(2, 6), rng.integers(2, 7)
    pi_f = simplex(rng, N, K, Y)
    plain = pi_f[:, 0] if seed % 3 == 0 else simplex(rng, N, Y)
    # Dirichlet draws can underflow to 0; the floor keeps every KL finite, as in float64 softmax outputs.
    rho_sft = 0.99 * simplex(rng, N, K) + 0.01 / K
    r = rng.uniform(-1, 1) + 10 ** rng.uniform(-1, 1) * rng.random((N, Y))
    return FiniteProblem(rho_sft, pi_f, plain, r, lam=10 ** rng.uniform(-1, 1), beta=10 ** rng.uniform(-1, 1))


PROBLEMS = [problem(seed) for seed in range(RUNS)]


def by_hand(p: FiniteProblem, rho: np.ndarray) -> tuple[float, float]:
    """(J, KL to rho_sft) of a prompter, one term after the other."""
    pi_f, r, rho_sft = p.pi_f.numpy(), p.r.numpy(), p.rho_sft.numpy()
    N, K, Y = pi_f.shape
    J = sum(rho[n, k] * pi_f[n, k, y] * r[n, y] for n, k, y in itertools.product(range(N), range(K), range(Y))) / N
    KL = sum(rho[n, k] * math.log(rho[n, k] / rho_sft[n, k]) for n, k in itertools.product(range(N), range(K))) / N
    return J, KL


# ---------------------------------------------------------------- the optimum


def test_the_optimum_by_hand():
    log3 = math.log(3)
    torch.testing.assert_close(
        theory.optimal_prompter([[0.5, 0.5], [0.2, 0.8]], [[0.0, log3], [log3, 0.0]], 1.0),
        torch.tensor([[0.25, 0.75], [3 / 7, 4 / 7]], dtype=torch.float64),
    )
    half_price = theory.optimal_prompter([[0.5, 0.5]], [[0.0, log3]], 0.5)  # exp(2 ln 3) = 9
    torch.testing.assert_close(half_price, torch.tensor([[0.1, 0.9]], dtype=torch.float64))


def test_a_rewrite_that_is_never_offered_stays_so_and_a_small_price_does_not_overflow():
    rho = theory.optimal_prompter([[0.0, 0.3, 0.7]], [[9e3, 1e3, 2e3]], 1e-3)
    assert rho.tolist() == [[0.0, 0.0, 1.0]]
    assert theory.closeness(rho, [[0.0, 0.3, 0.7]], [[9e3, 1e3, 2e3]], 1e-3)["attainable_gain_share"] == pytest.approx(
        1
    )


def test_values_equal_sums_written_out():
    for p in PROBLEMS[:200]:
        rho = simplex(np.random.default_rng(1), *p.rho_sft.shape) * 0.9 + 0.1 / p.rho_sft.shape[1]
        J, KL = by_hand(p, rho)
        assert float(theory.value(rho, p.R)) == pytest.approx(J, abs=1e-12)
        assert float(theory.regularised_value(rho, p.rho_sft, p.R, p.lam)) == pytest.approx(J - p.lam * KL, abs=1e-12)
        assert p.J(p.induced(rho)) == pytest.approx(J, abs=1e-12)


def test_nothing_beats_the_optimum_and_gradient_ascent_arrives_there():
    rng = np.random.default_rng(5)
    rho_sft, R, lam = simplex(rng, 2, 4) * 0.9 + 0.025, torch.tensor(rng.normal(size=(2, 4))), 0.3
    best = theory.regularised_value(theory.optimal_prompter(rho_sft, R, lam), rho_sft, R, lam)
    logits = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=300, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = -theory.regularised_value(logits.softmax(-1), rho_sft, R, lam)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.softmax(-1).detach(), theory.optimal_prompter(rho_sft, R, lam), rtol=0, atol=1e-7)
    for _ in range(200):
        assert theory.regularised_value(simplex(rng, 2, 4), rho_sft, R, lam) <= best


def test_master_identity_holds_for_every_prompter():
    worst = 0.0
    for seed, p in enumerate(PROBLEMS):
        mu = simplex(np.random.default_rng(seed), *p.rho_sft.shape)
        star = theory.optimal_prompter(p.rho_sft, p.R, p.lam).numpy()
        (J_star, KL_star), best = by_hand(p, star) if seed < 300 else (0, 0), None
        found = theory.closeness(mu, p.rho_sft, p.R, p.lam)
        worst = max(worst, abs(found["regularised_gap"] - found["lambda_kl_to_optimum"]))
        assert found["regularised_gap"] >= -1e-9
        if seed < 300:  # the gap's first term against a sum written out
            best = J_star - p.lam * KL_star
            ours = float(theory.regularised_value(mu, p.rho_sft, p.R, p.lam))
            assert found["regularised_gap"] == pytest.approx(best - ours, abs=1e-9)
    assert worst < 1e-9


def test_share_of_the_attainable_gain_runs_from_untrained_to_optimal():
    rho_sft, R, lam = [[0.5, 0.25, 0.25]], [[0.0, 1.0, 3.0]], 0.5
    star = theory.optimal_prompter(rho_sft, R, lam)
    assert theory.closeness(rho_sft, rho_sft, R, lam)["attainable_gain_share"] == 0
    assert theory.closeness(star, rho_sft, R, lam)["attainable_gain_share"] == pytest.approx(1)
    # By hand: J_lam(rho*) = lam ln sum rho_sft exp(R / lam); all mass on the last rewrite gives 3 - lam ln 4.
    best = lam * math.log(0.5 + 0.25 * math.exp(2) + 0.25 * math.exp(6))
    want = (3 - lam * math.log(4) - 1.0) / (best - 1.0)
    assert theory.closeness([[0.0, 0.0, 1.0]], rho_sft, R, lam)["attainable_gain_share"] == pytest.approx(want)
    assert theory.closeness(rho_sft, rho_sft, [[1.0, 1.0, 1.0]], lam)["attainable_gain_share"] is None


def test_averaging_after_exponentiating_is_another_optimum():
    """E[exp(r/lam)] would prefer the rewrite of higher variance; the paper's optimum gives equal means equal weight."""
    p = FiniteProblem(
        [[0.5, 0.5]], [[[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]], [[1 / 3] * 3], [[-1.0, 0.0, 1.0]], lam=0.5, beta=1.0
    )
    assert p.R.tolist() == [[0.0, 0.0]] and p.V.tolist() == [[0.0, 1.0]]
    torch.testing.assert_close(p.rho_star, torch.tensor([[0.5, 0.5]], dtype=torch.float64))


# ---------------------------------------------------------------- along eta


def test_derivatives_along_eta_equal_finite_differences():
    h = 1e-4
    for p in PROBLEMS[:300]:
        eta = 1 / p.lam
        middle, up, down = (theory.along_eta(p.rho_sft, p.R, p.V, e) for e in (eta, eta + h, eta - h))
        scale = max(1.0, p.r_max**4)
        for name in ("mean", "between_rewrites", "within"):
            slope = (up[name] - down[name]) / (2 * h)
            assert middle[f"d_{name}"] == pytest.approx(slope, abs=2e-6 * scale), name


def test_along_eta_at_zero_is_the_untrained_prompter_and_at_one_over_lam_the_optimum():
    p = PROBLEMS[7]
    assert theory.along_eta(p.rho_sft, p.R, p.V, 0.0)["mean"] == pytest.approx(float(theory.value(p.rho_sft, p.R)))
    star = theory.optimal_prompter(p.rho_sft, p.R, p.lam)
    assert theory.along_eta(p.rho_sft, p.R, p.V, 1 / p.lam)["mean"] == pytest.approx(float(theory.value(star, p.R)))
    # The total variance of one input: sum over rewrites and answers, written out.
    one = FiniteProblem(p.rho_sft[:1], p.pi_f[:1], p.pi_plain[:1], p.r[:1], p.lam, p.beta)
    mixed = one.induced(one.rho_star)[0]
    total = float((mixed * (one.r[0] - (mixed * one.r[0]).sum()) ** 2).sum())
    parts = theory.along_eta(one.rho_sft, one.R, one.V, 1 / one.lam)
    assert parts["between_rewrites"] + parts["within"] == pytest.approx(total, abs=1e-12)


def test_variance_between_rewrites_rises_first_where_good_ones_are_rare():
    rare = theory.along_eta([[0.95, 0.05]], [[0.0, 1.0]], [[0.0, 0.0]], 0.0)
    common = theory.along_eta([[0.05, 0.95]], [[0.0, 1.0]], [[0.0, 0.0]], 0.0)
    assert rare["d_between_rewrites"] > 0 > common["d_between_rewrites"] and rare["d_mean"] > 0


def test_a_small_eta_gains_the_variance_over_lam():
    """Small 1/lam: gain = Var_sft(R) / lam and KL = Var_sft(R) / (2 lam^2), to first and second order."""
    lam = 1e4
    for p in PROBLEMS[:50]:
        star = theory.optimal_prompter(p.rho_sft, p.R, lam)
        spread = theory.along_eta(p.rho_sft, p.R, p.V, 0.0)["between_rewrites"]
        tolerance = 10 * p.r_max / lam * spread + 1e-13
        assert float(theory.value(star, p.R) - theory.value(p.rho_sft, p.R)) * lam == pytest.approx(
            spread, abs=tolerance + 1e-9 * lam * 1e-3
        )
        assert float(theory.kl(star, p.rho_sft).mean()) * 2 * lam**2 == pytest.approx(spread, abs=tolerance + 1e-7)


# ---------------------------------------------------------------- bounds


def test_delta3_is_exactly_the_two_kls():
    for p in PROBLEMS:
        star = p.rho_star
        two = float((theory.kl(star, p.rho_sft) + theory.kl(p.rho_sft, star)).mean())
        assert p.deltas()["delta3"] == pytest.approx(-p.lam * two, abs=1e-9)


def test_no_bound_is_ever_violated():
    negative = 0
    for p in PROBLEMS:
        deltas, bounds = p.deltas(), p.bounds()
        total = sum(deltas.values())
        assert total == pytest.approx(p.J(p.pi_star) - p.J(p.induced(p.rho_star)), abs=1e-12)
        negative += total < 0
        assert total <= bounds["bound_sharp"] + 1e-9 <= bounds["bound_paper"] + 2e-9
        assert total >= p.J(p.pi_star) - p.ceiling() - 1e-9
        gain = p.J(p.induced(p.rho_star)) - p.J(p.induced(p.rho_sft))
        assert (
            -1e-12 <= gain <= p.r_max * math.sqrt(float(theory.kl(p.rho_star, p.rho_sft).mean()) / 2) + 1e-9
        )  # Pinsker
    assert negative > 100, "Delta may be negative: these problems must hold such cases"


def test_the_bounds_are_not_idle():
    """A bound far above every Delta, or one without its KL term, would pass the test above too."""
    slack = [p.bounds()["bound_sharp"] - sum(p.deltas().values()) for p in PROBLEMS]
    assert np.mean([s < 0.05 * p.r_max for s, p in zip(slack, PROBLEMS)]) > 0.05
    assert theory.bound_sharp(2.0, 0.5, 0.125, 0.25, lam=0.5) == 1 - 0.1875
    assert theory.bound_paper(2.0, 0.5, 0.25, 0.125, lam=0.5) == 1.5 - 0.0625


def test_a_trained_prompter_keeps_the_bound_with_its_own_kl():
    for seed, p in enumerate(PROBLEMS[:1000]):
        mix = np.random.default_rng(seed).random()
        rho = (mix * p.rho_star + (1 - mix) * p.rho_sft).numpy()  # J_lam is concave: on the way it is above rho_sft's
        J, KL = by_hand(p, rho)
        assert J - p.lam * KL >= p.J(p.induced(p.rho_sft)) - 1e-12
        tv = float(theory.total_variation(p.pi_star, p.induced(p.rho_sft)).mean())
        assert p.J(p.pi_star) - J <= theory.bound_sharp(p.r_max, tv, KL, 0.0, p.lam) + 1e-9


def test_a_prompter_that_may_leave_x_alone_does_no_harm():
    tight = math.inf
    for p in PROBLEMS[::3]:  # rewrite 0 is x itself
        slack = p.J(p.induced(p.rho_star)) - p.no_harm_floor()
        assert slack >= -1e-9
        tight = min(tight, slack)
    assert tight < 0.05
    never = FiniteProblem([[0.0, 1.0]], [[[1.0, 0.0], [0.0, 1.0]]], [[1.0, 0.0]], [[0.0, 1.0]], 1.0, 1.0)
    assert never.no_harm_floor() == -math.inf
    with pytest.raises(ValueError, match="rewrite 1 is not x itself"):
        never.no_harm_floor(identity=1)


def test_the_ceiling_is_of_what_is_offered():
    never = FiniteProblem([[0.0, 1.0]], [[[0.0, 1.0], [0.5, 0.5]]], [[1.0, 0.0]], [[0.0, 1.0]], 1.0, 1.0)
    assert never.ceiling() == 0.5  # the first rewrite would earn 1


def test_total_variation_and_kl_by_hand():
    assert theory.total_variation([0.5, 0.5, 0.0], [0.0, 0.5, 0.5]).item() == 0.5
    assert theory.kl([0.5, 0.5], [0.25, 0.75]).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert theory.kl([0.0, 1.0], [0.5, 0.5]).item() == pytest.approx(math.log(2))
    assert theory.kl([0.5, 0.5], [1.0, 0.0]).item() == math.inf
    assert theory.kl([[0.5, 0.5]], [[0.5, 0.5]]).tolist() == [0.0]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("rho_sft", "R", "lam", "told"),
    [
        ([[0.5, 0.5]], [[0.0, 1.0]], 0.0, "lam is 0.0"),
        ([[0.5, 0.5]], [[0.0, 1.0]], math.nan, "lam is nan"),
        ([[0.5, 0.6]], [[0.0, 1.0]], 1.0, "rho_sft: row 0 is not a distribution"),
        ([[0.5, 0.5], [1.5, -0.5]], [[0.0, 1.0]] * 2, 1.0, "rho_sft: row 1"),
        ([[0.5, 0.5]], [[0.0, 1.0, 2.0]], 1.0, r"R \(1, 3\), rho_sft \(1, 2\)"),
        ([0.5, 0.5], [0.0, 1.0], 1.0, "N inputs, K rewrites"),
        ([[0.5, 0.5]], [[0.0, math.inf]], 1.0, "not finite"),
        ([[math.nan, 0.5]], [[0.0, 1.0]], 1.0, "rho_sft: row 0"),
        (0.5, [[0.0, 1.0]], 1.0, "rho_sft is a single number"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(rho_sft, R, lam, told):
    with pytest.raises(ValueError, match=told):
        theory.optimal_prompter(rho_sft, R, lam)


def test_a_problem_whose_parts_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="pi_plain has shape"):
        FiniteProblem([[0.5, 0.5]], [[[1.0], [1.0]]], [[0.5, 0.5]], [[1.0]], 1.0, 1.0)
    with pytest.raises(ValueError, match=r"pi_f has shape \(1, 2\); it must be \(N inputs, K rewrites, Y answers\)"):
        FiniteProblem([[0.5, 0.5]], [[0.5, 0.5]], [[0.5, 0.5]], [[1.0, 0.0]], 1.0, 1.0)
    with pytest.raises(ValueError, match=r"V has shape \(2,\); it must be R's, \(1, 2\)"):
        theory.along_eta([[0.5, 0.5]], [[0.0, 1.0]], [1.0, 1.0], 1.0)


def test_arrays_and_tensors_are_the_same_to_it():
    rho_sft, R = np.array([[0.5, 0.5]]), np.array([[0.0, 1.0]], dtype=np.float32)
    a, b = (theory.optimal_prompter(f(rho_sft), f(R), 0.5) for f in (np.asarray, torch.from_numpy))
    assert a.dtype == torch.float64 and torch.equal(a, b)


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
