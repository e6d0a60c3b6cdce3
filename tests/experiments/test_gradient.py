"""The policy gradient against the enumerated one (experiments/gradient.py prints the whole table)."""

import numpy as np
import pytest
import torch

from alignpro_mini import theory
from alignpro_mini.experiments.gradient import (
    AS_IT_IS,
    CONFIG,
    ESTIMATORS,
    PENALTIES,
    compare,
    enumerated_logprobs,
    estimates,
    exact_gradient,
    models,
    rewards,
    table,
)

BY_NAME = {estimator.name: estimator for estimator in ESTIMATORS}


def test_the_list_is_complete():
    for lm in models():
        torch.testing.assert_close(enumerated_logprobs(lm).exp().sum(1), torch.ones(2), rtol=0, atol=1e-5)


def test_the_exact_gradient_equals_finite_differences():
    reference, policy, _ = models()
    policy, reference = policy.double(), reference.double()
    rho_sft = enumerated_logprobs(reference).exp().detach()
    gradient, size = exact_gradient(policy, reference, 0.2), 0.0
    direction = torch.Generator().manual_seed(1)
    for _ in range(3):
        nudge = [torch.randn(p.shape, generator=direction) for p in policy.parameters()]
        values = []
        for step in (1e-3, -2e-3):
            with torch.no_grad():
                for p, d in zip(policy.parameters(), nudge):
                    p.add_(step * d)
                values.append(
                    theory.regularised_value(enumerated_logprobs(policy).double().exp(), rho_sft, rewards(), 0.2).item()
                )
        with torch.no_grad():
            for p, d in zip(policy.parameters(), nudge):
                p.add_(1e-3 * d)
        slope = float(np.concatenate([d.flatten().numpy() for d in nudge]) @ gradient)
        size = max(size, abs(slope))
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(slope, abs=0.02 * size)
    assert size > 0.1


@pytest.mark.parametrize("name", ["REINFORCE, M = 1", "PPO, first step, M = 1", "PPO, first step, M = 4"])
def test_the_expected_estimate_is_the_exact_gradient(name):
    found = compare(*estimates(BY_NAME[name], 60, 512))
    assert found["noise_floor"] < 0.05  # enough batches to tell
    assert found["bias"] < 1.7 * found["noise_floor"], found
    assert found["cosine_ci95"][1] > 0.998 and found["length_ci95"][0] < 1 < found["length_ci95"][1] + 0.02


def test_more_answers_a_rewrite_lower_the_noise_and_move_nothing():
    one, four = (compare(*estimates(BY_NAME[f"PPO, first step, M = {m}"], 25, 512))["noise"] for m in (1, 4))
    assert four < 0.95 * one


def test_a_low_lambda_of_gae_is_seen_as_bias():
    """Without a value head it takes credit from a rewrite's first token: bias, in the wrong direction too."""
    found = compare(*estimates(BY_NAME["PPO, first step, GAE's λ 0.5"], 25, 512))
    low, high = found["bias_ci95"]
    assert 0.1 < low < found["bias"] < high and found["cosine_ci95"][1] < 1


def test_bias_and_noise_are_what_they_are_said_to_be():
    rng, exact, off = np.random.default_rng(5), np.zeros(50), np.zeros(50)
    exact[0], off[1] = 2.0, 0.6  # off by 0.3 lengths
    found = compare(exact + off + 0.4 * rng.normal(size=(4000, 50)) / 50**0.5, exact)
    assert found["bias"] == pytest.approx(0.3, abs=0.01) and found["bias_ci95"][0] < 0.3 < found["bias_ci95"][1]
    assert found["noise"] == pytest.approx(0.2, abs=0.01)  # 0.4 over a length of 2


def test_whitening_keeps_the_direction():
    found = compare(*estimates(BY_NAME["PPO, first step, whitened"], 25, 512))
    assert found["cosine"] > 0.99 and not 0.9 < found["length"] < 1.1  # a change of step size


def test_later_steps_point_the_right_way_and_clipping_adds_bias():
    none, wide, narrow = (
        compare(*estimates(BY_NAME[f"PPO, later step, {c}"], 25, 512)) for c in ("no clip", "clip 0.2", "clip 0.05")
    )
    assert none["cosine"] > 0.97 and wide["cosine"] > 0.9
    assert none["bias"] <= wide["bias"] < 0.5 * narrow["bias"]
    assert CONFIG.clip_range == 0.2


def test_a_kl_in_the_loss_has_the_gradient_of_the_other_kl():
    """k3 in the loss, without a score: the gradient of KL(rho_sft || rho), not that of KL(rho || rho_sft)."""
    by_name = {penalty.name: penalty for penalty in PENALTIES}
    reference, policy, _ = models()
    reverse = exact_gradient(policy, reference, CONFIG.kl_coef, kl_only=True, reverse=True)
    gradients, exact = estimates(by_name["KL as k3 in the loss"], 25, 512)
    towards, away = compare(gradients, reverse)["cosine"], compare(gradients, exact)["cosine"]
    assert towards > 0.98 > 0.96 > away
    gradients, exact = estimates(by_name[AS_IT_IS], 25, 512)
    assert compare(gradients, exact)["cosine"] > 0.99 > 0.97 > compare(gradients, reverse)["cosine"]


def test_the_table_has_a_row_an_estimate():
    found = compare(np.random.default_rng(0).normal(size=(9, 3)) + 1, np.ones(3)) | {"extra": 0.5}
    rows = table({"a": found, "b": found}, ["extra"]).splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| a", "| b"] and {row.count("|") for row in rows} == {8}
