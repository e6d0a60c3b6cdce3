"""Known mistakes of rl_math.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "rl_math.py")
PAD_GRAD = "test_gradient_is_finite_and_exactly_zero_on_padding"
PADDING = "test_padding_never_reaches_a_result"
SHAPES = "test_column_against_row_is_refused_not_broadcast"

MUTANTS: tuple[Mutant, ...] = (
    # KL ratio swapped: k1 averages -KL, k3 estimates another divergence
    of(
        "k1-swapped",
        ('if kind == "k1":\n        return d\n', 'if kind == "k1":\n        return -d\n'),
        "test_k1_and_k3_average_to_the_kl_under_p[k1-p0-q0]",
        "test_kl_estimates_by_hand",
        "test_k1_in_the_reward_has_the_gradient_of_the_kl",
    ),
    of(
        "k3-swapped",
        ("torch.expm1(-d) + d", "torch.expm1(d) - d"),
        "test_k1_and_k3_average_to_the_kl_under_p[k3-p0-q0]",
        "test_kl_estimates_by_hand",
        "test_what_each_estimator_would_do_inside_the_loss[k3]",
    ),
    of(
        "exact-kl-swapped",
        ("return (logp.exp() * log_ratio)", "return (logq.exp() * -log_ratio)"),
        "test_exact_kl_and_entropy_against_sums_over_the_vocabulary",
    ),
    of(
        "kl-bonus-for-penalty",
        ("mask, -lam * kl", "mask, lam * kl"),
        "test_the_score_lands_on_the_last_sampled_token",
        "test_k1_in_the_reward_has_the_gradient_of_the_kl",
        "test_policy_gradient_of_score_and_kl_points_to_the_closed_form",
    ),
    # k1 inside the loss, whose expected gradient is zero: the half of it that lives here, no KL in the reward
    of(
        "k1-not-in-the-reward",
        ("torch.where(mask, -lam * kl, 0.0)", "torch.zeros_like(kl)"),
        "test_k1_in_the_reward_has_the_gradient_of_the_kl",
        "test_the_score_lands_on_the_last_sampled_token",
        "test_k1_summed_over_a_sequence_averages_to_the_kl_of_the_sequences",
        "test_policy_gradient_of_score_and_kl_points_to_the_closed_form",
    ),
    # clip inverted for negative advantages; the ratio upside down; the minimum turned optimistic
    of(
        "clip-inverted-for-negative-advantages",
        (
            "-torch.minimum(plain, limited)",
            "-torch.where(advantages > 0, torch.minimum(plain, limited), torch.maximum(plain, limited))",
        ),
        "test_policy_loss_sign_table[-2.0-0.5-1.6-0.0-True]",
        "test_policy_loss_sign_table[-2.0-1.5-3.0-3.0-False]",
    ),
    of(
        "clip-without-the-minimum",
        ("-torch.minimum(plain, limited)", "-limited"),
        "test_policy_loss_sign_table[2.0-0.5--1.0--1.0-False]",
        "test_policy_loss_sign_table[-2.0-1.5-3.0-3.0-False]",
    ),
    of(
        "ratio-upside-down",
        ("logp - logp_old, 0.0", "logp_old - logp, 0.0"),
        "test_policy_loss_sign_table",
        "test_first_step_is_the_policy_gradient",
    ),
    of(
        "padding-overflows-the-ratio",
        ("torch.where(mask, logp - logp_old, 0.0)", "logp - logp_old"),
        f"{PAD_GRAD}[policy_loss-nan]",
        f"{PAD_GRAD}[policy_loss--inf]",
    ),
    of("padding-counted-as-clipped", ("(limited < plain) & mask", "limited != plain"), f"{PADDING}[policy_loss-nan]"),
    # metrics averaged over pads; a sentinel in the padding summed
    of(
        "mean-over-pads",
        ("/ count.clamp(min=1)", "/ (x.numel() if dim is None else x.shape[dim])"),
        "test_masked_mean_by_hand_and_without_a_token",
        f"{PADDING}[masked_mean-0.0]",
        f"{PADDING}[masked_mean dim=1-0.0]",
    ),
    of(
        "pads-in-the-mean",
        ("kept = torch.where(mask, x, 0.0)", "kept = x"),
        f"{PADDING}[masked_mean-7.0]",
        "test_masked_mean_sum_and_variance_against_python_loops",
    ),
    of(
        "pads-in-the-sum",
        ("return torch.where(mask, x, 0.0).sum(-1)", "return x.sum(-1)"),
        f"{PADDING}[masked_sum-7.0]",
        "test_masked_mean_sum_and_variance_against_python_loops",
    ),
    of(
        "mask-by-product",
        ("kept = torch.where(mask, x, 0.0)", "kept = x * mask"),
        f"{PADDING}[masked_mean-nan]",
        f"{PADDING}[masked_mean-inf]",
    ),
    # whitening over pads
    of(
        "whiten-over-pads",
        (
            "mean = masked_mean(x, mask)\n    var = masked_var(x, mask)\n    white",
            "var, mean = torch.var_mean(x)\n    white",
        ),
        "test_whiten_against_the_statistics_module",
        f"{PADDING}[whiten-7.0]",
    ),
    of(
        "whiten-fills-pads",
        ("torch.where(mask, white if shift_mean else white + mean, 0.0)", "white if shift_mean else white + mean"),
        f"{PADDING}[whiten-7.0]",
        "test_whiten_against_the_statistics_module",
    ),
    of(
        "whiten-always-shifts",
        ("white if shift_mean else white + mean", "white"),
        "test_whiten_against_the_statistics_module",
        "test_whiten_ignores_scale_and_offset_and_survives_a_constant",
    ),
    # score written one slot after EOS, or always in the last column
    of(
        "score-one-after-eos",
        ("scatter_add(1, last[:, None]", "scatter_add(1, (last[:, None] + 1).clamp(max=T - 1)"),
        "test_the_score_lands_on_the_last_sampled_token",
        f"{PADDING}[assemble_rewards-0.0]",
    ),
    of(
        "the-score-replaces-the-penalty",
        ("rewards.scatter_add(1, last[:, None]", "rewards.scatter(1, last[:, None]"),
        "test_the_score_lands_on_the_last_sampled_token",
    ),
    of(
        "score-in-the-last-column",
        ("scatter_add(1, last[:, None]", "scatter_add(1, torch.full_like(last[:, None], T - 1)"),
        "test_the_score_lands_on_the_last_sampled_token",
        f"{PADDING}[assemble_rewards-0.0]",
    ),
    of(
        "score-of-an-empty-row",
        ("if not bool(mask.any(dim=1).all()):", "if False:"),
        "test_assemble_rewards_refuses_an_empty_row_and_misshapen_scores",
    ),
    # [B, 1] against [B] broadcast
    of("no-shape-check", ("if len(set(shapes.values())) > 1:", "if False:"), SHAPES),
    of(
        "no-shape-check-of-scores",
        ("if scores.shape != mask.shape[:1]:", "if scores.shape[:1] != mask.shape[:1]:"),
        "test_assemble_rewards_refuses_an_empty_row_and_misshapen_scores",
    ),
    # GAE: bootstrapping past the end; returns without the mask; the recursion itself
    of(
        "gae-bootstraps-from-padding",
        ("values = torch.where(mask, values, 0.0)", "raw, values = values, torch.where(mask, values, 0.0)"),
        ("torch.cat((values[:, 1:]", "torch.cat((raw[:, 1:]"),
        "test_gae_by_hand[ragged]",
        f"{PADDING}[gae-7.0]",
        "test_gae_against_the_sum_of_the_definition",
    ),
    of(
        "gae-bootstraps-past-a-full-row",
        ("torch.zeros_like(values[:, :1])", "values[:, -1:]"),
        "test_gae_by_hand[plain]",
        "test_gae_against_the_sum_of_the_definition",
        "test_gae_with_lam_one_returns_the_discounted_rewards_to_go_whatever_the_critic_says",
    ),
    of(
        "returns-without-mask",
        ("values = torch.where(mask, values, 0.0)", "raw, values = values, torch.where(mask, values, 0.0)"),
        ("advantages, advantages + values", "advantages, advantages + raw"),
        "test_gae_by_hand[ragged]",
        f"{PADDING}[gae-7.0]",
    ),
    of(
        "gae-pays-rewards-of-padding",
        ("rewards = torch.where(mask, rewards, 0.0)", "rewards = rewards + 0.0"),
        "test_gae_by_hand[ragged]",
        f"{PADDING}[gae-nan]",
    ),
    of(
        "gae-without-gamma-in-the-decay",
        ("gamma * lam * running", "lam * running"),
        "test_gae_by_hand[gamma-and-lam]",
        "test_gae_by_hand[halves]",
    ),
    of(
        "gae-without-gamma-in-the-error",
        ("gamma * next_value", "next_value"),
        "test_gae_by_hand[one-step]",
        "test_gae_by_hand[halves]",
    ),
    # value clip: minimum instead of maximum
    of(
        "value-clip-optimistic",
        ("torch.maximum(plain_error", "torch.minimum(plain_error"),
        "test_value_loss_table[0.5-1.0-0.32-0.0-True]",
        "test_value_loss_table[0.5--1.0-1.125-1.5-False]",
    ),
    of(
        "value-clip-counts-rounding",
        ("values.clamp(values_old - clip, values_old + clip)", "values_old + (values - values_old).clamp(-clip, clip)"),
        "test_value_loss_does_not_take_rounding_for_clipping",
    ),
    of(
        "value-padding-squared",
        ("torch.where(mask, values - returns, 0.0) ** 2", "torch.where(mask, (values - returns) ** 2, 0.0)"),
        f"{PAD_GRAD}[value_loss-nan]",
        f"{PAD_GRAD}[value_loss-inf]",
    ),
    of(
        "clipped-value-padding-squared",
        ("torch.where(mask, limited - returns, 0.0) ** 2", "torch.where(mask, (limited - returns) ** 2, 0.0)"),
        f"{PAD_GRAD}[value_loss-nan]",
        f"{PAD_GRAD}[value_loss-inf]",
    ),
    # entropy divided twice; forbidden tokens turn the entropy bonus into NaN
    of(
        "entropy-divided-twice",
        (
            "-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)",
            "-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).mean(-1)",
        ),
        "test_entropy_of_the_uniform_distribution_is_ln_v[7]",
        "test_exact_kl_and_entropy_against_sums_over_the_vocabulary",
    ),
    of(
        "entropy-gradient-nan",
        (
            "-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0))",
            "-torch.where(logp.isinf(), 0.0, logp.exp() * logp)",
        ),
        "test_forbidden_tokens_leave_kl_and_entropy_finite",
    ),
    of(
        "exact-kl-gradient-nan",
        ("(logp - logq).masked_fill(logp == -torch.inf, 0.0)", "logp - logq"),
        ("(logp.exp() * log_ratio)", "torch.where(logp.isinf(), 0.0, logp.exp() * log_ratio)"),
        "test_forbidden_tokens_leave_kl_and_entropy_finite",
    ),
    # adaptive KL controller: the coefficient that only decays, or runs the wrong way
    of(
        "controller-wrong-way",
        ("max(kl / target - 1", "max(1 - kl / target"),
        "test_adaptive_kl_coef_by_hand[4.4-10.1]",
        "test_adaptive_kl_coef_steers_the_kl_to_its_target",
    ),
    of(
        "controller-only-decays",
        ("min(max(kl / target - 1, -0.2), 0.2)", "min(max(kl / target - 1, -0.2), 0.0)"),
        "test_adaptive_kl_coef_by_hand[4.4-10.1]",
        "test_adaptive_kl_coef_steers_the_kl_to_its_target[0.001]",
    ),
    # the rest of the file
    of(
        "preference-swapped",
        ("logsigmoid(chosen - rejected)", "logsigmoid(rejected - chosen)"),
        "test_bradley_terry_by_hand",
    ),
    of(
        "preference-loss-without-its-sign",
        ("return -torch.nn.functional.logsigmoid(", "return torch.nn.functional.logsigmoid("),
        "test_bradley_terry_by_hand",
    ),
    of(
        "log-of-the-sigmoid",
        ("-torch.nn.functional.logsigmoid(chosen - rejected)", "-torch.sigmoid(chosen - rejected).log()"),
        "test_bradley_terry_by_hand",
    ),
    of(
        "preference-loss-is-a-mean",
        ("logsigmoid(chosen - rejected)", "logsigmoid(chosen - rejected).mean()"),
        "test_bradley_terry_by_hand",
    ),
    of("no-shape-check-of-preferences", ("    _same_shape(chosen=chosen, rejected=rejected)\n", ""), SHAPES),
    of(
        "explained-variance-of-the-values",
        ("masked_var(returns - values, mask)", "masked_var(values, mask)"),
        "test_explained_variance_known_cases",
    ),
    of(
        "explained-variance-counts-an-offset",
        ("masked_var(returns - values, mask)", "masked_mean((returns - values) ** 2, mask)"),
        "test_explained_variance_known_cases[values1-1.0]",
    ),
)
