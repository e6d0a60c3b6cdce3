"""Known mistakes of variants.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "variants.py")
ROW_BY_ROW = "test_advantages_row_by_row_whatever_stands_in_the_padding"
WHITENED = "test_whitening_is_for_those_that_no_group_has_centred"
PLACE = "test_the_kl_penalty_is_in_the_reward_or_in_the_loss"

MUTANTS: tuple[Mutant, ...] = (
    # advantages without a value head
    of(
        "rloo-counts-itself",
        (" * K / (K - 1)", ""),
        "test_rloo_against_the_mean_of_the_others",
        f"{ROW_BY_ROW}[rloo-0.0]",
    ),
    of(
        "grpo-divides-by-the-variance",
        ("(rewards.std(1, keepdim=True) + eps)", "(rewards.var(1, keepdim=True) + eps)"),
        "test_grpo_by_hand_with_and_without_its_standard_deviation",
    ),
    of(
        "one-completion-makes-a-group",
        ("rewards.shape[1] < 2", "rewards.shape[1] < 1"),
        "test_group_advantages_need_two_completions_a_prompt",
    ),
    of(
        "groups-across-prompts",
        ("total.view(-1, self.config.rewrites_per_request)", "total.view(self.config.rewrites_per_request, -1).T"),
        f"{ROW_BY_ROW}[rloo-0.0]",
    ),
    of(
        "the-batch-baseline-is-its-own",
        ("rloo(total[None])[0]", "total - total.mean()"),
        f"{ROW_BY_ROW}[reinforce-0.0]",
    ),
    of(
        "reinforce-plus-plus-without-what-follows",
        ("gamma=1.0, lam=1.0", "gamma=1.0, lam=0.0"),
        f"{ROW_BY_ROW}[reinforce++-0.0]",
    ),
    of(
        "advantages-on-padding",
        ("torch.where(mask, advantages[:, None], 0.0)", "advantages[:, None].expand(mask.shape)"),
        f"{ROW_BY_ROW}[rloo-0.0]",
    ),
    of("groups-are-whitened", ("    whitens = False\n", ""), f"{WHITENED}[rloo-True]"),
    of(
        "no-group-no-whitening",
        ("if self.whitens else advantages", "if False else advantages"),
        f"{WHITENED}[reinforce-True]",
    ),
    of(
        "the-spread-of-whitened-advantages",
        ("masked_var(advantages, mask).sqrt()", "masked_var(rl_math.whiten(advantages, mask), mask).sqrt()"),
        f"{WHITENED}[rloo-False]",
    ),
    of(
        "the-value-head-trains-without-gae",
        ("return logp.new_zeros(()), {}", "return values.sum(), {}"),
        "test_without_gae_there_is_no_value_loss[rloo]",
    ),
    of(
        "the-value-head-waits-for-a-gradient",
        ("self.policy.value_head.requires_grad_(False)", "pass"),
        "test_the_value_head_trains_only_where_gae_reads_it[rloo]",
    ),
    of(
        "a-group-of-one-is-accepted",
        ("        require(K >= 2, message)\n", ""),
        "test_a_variant_that_compares_completions_needs_two_of_each_prompt[grpo]",
    ),
    of(
        "a-batch-of-one-is-accepted",
        ("require(rows >= 2,", "require(True,"),
        "test_a_batch_baseline_needs_a_batch[reinforce]",
    ),
    # one ratio for a whole completion
    of(
        "the-ratio-of-a-row-is-a-sum",
        ("partial(rl_math.masked_mean, mask=part.action, dim=1)", "partial(rl_math.masked_sum, mask=part.action)"),
        "test_one_ratio_a_row_is_the_geometric_mean_of_its_tokens",
        "test_the_gradient_of_one_ratio_a_row_is_that_of_the_whole_sequence",
        "test_the_trainers_loss_takes_the_ratio_of_the_whole_completion[rloo-sequence]",
    ),
    of(
        "the-ratio-of-the-batch",
        ("mask=part.action, dim=1)", "mask=part.action, dim=1).mean(0, keepdim=True)"),
        ("mean = partial(rl_math.masked_mean", "mean = lambda x: rl_math.masked_mean(x"),
        "test_one_ratio_a_row_is_the_geometric_mean_of_its_tokens",
    ),
    of(
        "the-class-order-hides-the-ratio",
        ("class RLOOSequence(SequenceRatio, RLOO)", "class RLOOSequence(RLOO, SequenceRatio)"),
        "test_the_trainers_loss_takes_the_ratio_of_the_whole_completion[rloo-sequence]",
    ),
    # the KL penalty
    of(
        "the-kl-penalty-counts-twice",
        ("torch.zeros_like(rollout.logp)", "rl_math.kl_estimate(rollout.logp, rollout.logp_ref)"),
        f"{PLACE}[kl-loss-k2]",
    ),
    of(
        "another-estimator-in-the-reward",
        (
            "rl_math.kl_estimate(rollout.logp, rollout.logp_ref, self.kind)",
            "rl_math.kl_estimate(rollout.logp, rollout.logp_ref)",
        ),
        f"{PLACE}[kl-k2]",
    ),
    of(
        "no-penalty-for-a-missing-eos-in-a-variant",
        ("scores = rollout.scores - penalty", "scores = rollout.scores"),
        f"{PLACE}[kl-k3]",
    ),
    of(
        "a-variants-rewards-ignore-the-controller",
        ("rollout.action, trainer.kl_coef)", "rollout.action, trainer.config.kl_coef)"),
        "test_the_adapted_coefficient_is_the_one_that_is_paid[kl-k2]",
    ),
    of(
        "the-kl-loss-of-the-old-policy",
        (
            "rl_math.kl_estimate(logp, part.logp_ref, self.kind)",
            "rl_math.kl_estimate(part.logp, part.logp_ref, self.kind)",
        ),
        "test_the_gradient_of_a_kl_loss_is_that_of_the_policy_now[kl-loss-k2]",
    ),
    of(
        "the-loss-ignores-the-controller",
        ("self.kl_coef / spread", "self.config.kl_coef / spread"),
        "test_the_adapted_coefficient_is_the_one_that_is_paid[kl-loss-k2]",
    ),
    of(
        "the-kl-loss-weighs-more-beside-whitened-advantages",
        ("max(part.advantage_std, 1e-4) if self.config.whiten_advantages else 1.0", "1.0"),
        "test_a_kl_loss_keeps_its_weight_beside_whitened_advantages[kl-loss-k2]",
    ),
    of(
        "a-kl-loss-instead-of-the-value-loss",
        ("return value + self.kl_coef", "return self.kl_coef"),
        "test_a_kl_loss_stands_beside_the_value_loss",
    ),
    # where the reward is read
    of(
        "a-mean-over-padding",
        ("(hidden * mask[..., None]).float().sum(1)", "hidden.float().sum(1)"),
        "test_reward.py::test_the_mean_of_the_rows_states_whoever_shares_the_batch[1]",
    ),
    of(
        "k3-in-the-loss-is-k2",
        ('variant = "kl-loss-k3"\n    kind = "k3"', 'variant = "kl-loss-k3"\n    kind = "k2"'),
        "test_policy_gradient.py::test_k3_in_the_loss_has_the_gradient_of_the_other_kl",
    ),
)
