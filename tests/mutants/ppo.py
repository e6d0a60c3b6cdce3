"""Known mistakes of ppo.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "ppo.py")
FIRST_RATIO = "test_ppo.py::test_the_first_ratio_is_one_against_the_sampling_logprobs"
EACH_ROW = "test_ppo.py::test_every_number_of_a_rollout_is_that_of_the_row_alone"
PPO_EOS = "test_ppo.py::test_eos_is_a_sampled_token_and_carries_the_score"
CONTROLLER = "test_the_controller_is_fed_the_kl_to_the_reference"
PPO_METRICS = "test_metrics_are_over_sampled_tokens_only"
PPO_RESUME = "test_ppo.py::test_a_killed_run_goes_on_bit_for_bit"

MUTANTS: tuple[Mutant, ...] = (
    # ------------------------------------------------------------ ppo.py
    # sampled with temperature, scored without; token t's log-prob from logits[t]
    of(
        "trained-without-the-temperature",
        ("sampling_logprobs(logits, c.temperature)", "sampling_logprobs(logits)"),
        f"{FIRST_RATIO}[options1-llama]",
        f"{FIRST_RATIO}[options2-gpt2]",
    ),
    of(
        "reference-without-the-temperature",
        ("sampling_logprobs(logits_ref, temperature)", "sampling_logprobs(logits_ref)"),
        f"{EACH_ROW}[0.7-llama]",
        "test_rewards_of_a_row_sum_to_its_score_minus_lambda_times_its_log_ratio",
    ),
    of(
        "rolled-out-without-the-temperature",
        ("            temperature=self.config.temperature,\n", ""),
        f"{EACH_ROW}[0.7-llama]",
        f"{FIRST_RATIO}[options1-llama]",
    ),
    # the prompt cut to the response's length
    of(
        "prompt-cut-to-the-response",
        (
            "self.tokenizer.chat(prompt) for prompt in prompts",
            "self.tokenizer.chat(prompt)[-self.config.max_new_tokens :] for prompt in prompts",
        ),
        "test_a_long_prompt_is_not_cut_to_the_completion",
        f"{EACH_ROW}[1.0-llama]",
    ),
    # pad == eos: EOS drops out of the action mask
    of(
        "eos-dropped-from-the-action-mask",
        (
            "ids = torch.cat((prompt_ids, tokens), dim=1)",
            "action = action & ((tokens != self.tokenizer.pad_id) | (action.cumsum(1) == 1))\n"
            "        for c, on in zip(completions, action.tolist()):\n"
            "            c.logprobs[:] = [p for p, keep in zip(c.logprobs, on) if keep]\n"
            "        ids = torch.cat((prompt_ids, tokens), dim=1)",
        ),
        f"{PPO_EOS}[pad-is-eos]",
    ),
    # missing-EOS penalty ignores a custom stop token, or is not there
    of(
        "penalty-ignores-a-custom-stop",
        ("torch.tensor([c.finished for c in completions]", "torch.tensor([3 in c.tokens for c in completions]"),
        "test_the_missing_eos_penalty_knows_a_custom_stop_token",
    ),
    of(
        "penalty-for-the-finished",
        ("missing_eos_penalty * (~rollout.finished)", "missing_eos_penalty * rollout.finished"),
        "test_the_missing_eos_penalty_knows_a_custom_stop_token",
        "test_rewards_of_a_row_sum_to_its_score_minus_lambda_times_its_log_ratio",
    ),
    # adaptive KL controller fed the old-vs-new KL: the coefficient only decays
    of(
        "controller-fed-old-vs-new",
        ('metrics["kl_k1"], len(prompts)', 'metrics["approx_kl"], len(prompts)'),
        f"{CONTROLLER}[0.01-1.02]",
    ),
    of("controller-counts-rounds", ('metrics["kl_k1"], len(prompts)', 'metrics["kl_k1"], 1'), CONTROLLER),
    of(
        "reward-kl-against-the-old-policy",
        (
            'rl_math.kl_estimate(rollout.logp, rollout.logp_ref, "k1")',
            'rl_math.kl_estimate(rollout.logp, rollout.logp, "k1")',
        ),
        "test_rewards_of_a_row_sum_to_its_score_minus_lambda_times_its_log_ratio",
        "test_a_high_price_on_kl_holds_the_policy_at_the_reference",
    ),
    # metrics averaged over pads; each row's numbers in another row's slots
    of(
        "entropy-over-pads",
        ("rl_math.masked_mean(rollout.entropy, mask).item()", "rollout.entropy.mean().item()"),
        PPO_METRICS,
    ),
    of(
        "update-kl-over-pads",
        ('rl_math.kl_estimate(before, chosen.detach(), "k3")', 'rl_math.kl_estimate(part.logp, logp.detach(), "k3")'),
        "test_longer_companions_change_nothing",
    ),
    of(
        "numbers-in-other-rows-slots",
        ("yield part.sort().values", "yield part"),
        f"{EACH_ROW}[1.0-llama]",
        f"{EACH_ROW}[0.7-gpt2]",
    ),
    of(
        "whitened-over-pads",
        ("rl_math.whiten(advantages, mask)", "rl_math.whiten(advantages, torch.ones_like(mask))"),
        "test_advantages_are_whitened_over_the_tokens_but_returns_are_not",
    ),
    of(
        "returns-of-whitened-advantages",
        (
            "rl_math.whiten(advantages, mask) if c.whiten_advantages else advantages\n",
            "rl_math.whiten(advantages, mask) if c.whiten_advantages else advantages\n"
            "        rollout.returns = torch.where(mask, rollout.advantages + rollout.values, 0.0)\n",
        ),
        "test_advantages_are_whitened_over_the_tokens_but_returns_are_not",
    ),
    of(
        "the-spread-after-whitening",
        ("masked_var(advantages, mask).sqrt()", "masked_var(rl_math.whiten(advantages, mask), mask).sqrt()"),
        "test_advantages_are_whitened_over_the_tokens_but_returns_are_not",
    ),
    of(
        "a-mean-over-the-padded-batch",
        ("return surrogate.sum() + extra", "return surrogate.mean() + extra"),
        "test_longer_companions_change_nothing",
        "test_the_gradient_is_that_of_the_rows_one_by_one[2-0]",
    ),
    of(
        "the-policy-loss-alone",
        ("return surrogate.sum() + extra, ", "return surrogate.sum(), "),
        "test_the_gradient_is_that_of_the_rows_one_by_one[2-0]",
    ),
    of(
        "the-value-loss-without-its-weight",
        ("self.config.vf_coef * loss.sum()", "loss.sum()"),
        "test_the_gradient_is_that_of_the_rows_one_by_one[2-0]",
    ),
    of(
        "the-rewards-ignore-the-controller",
        ("rollout.action, self.kl_coef)", "rollout.action, self.config.kl_coef)"),
        "test_the_adapted_coefficient_is_the_one_that_is_paid",
    ),
    of(
        "weights-by-micro-batch",
        (
            "tokens = int(rollout.action[minibatch].sum())",
            "tokens = int(rollout.action[minibatch][: c.micro_batch_size].sum())",
        ),
        "test_the_gradient_is_that_of_the_rows_one_by_one[2-0]",
    ),
    # no gradient clipping though an option promises it; [B, 1] against [B]; NaN
    of(
        "no-gradient-clipping",
        ("self.parameters, c.max_grad_norm", "self.parameters, 1e9"),
        "test_the_gradient_is_clipped_to_the_promised_norm[0.05]",
    ),
    of(
        "held-to-itself",
        ("            lm is not reference,\n", "            True,\n"),
        "test_one_model_as_policy_and_reference_and_no_prompts_are_refused",
    ),
    of(
        "any-shape-of-score",
        ("if scores.shape != rollout.finished.shape:", "if False:"),
        "test_a_bad_score_stops_the_round_before_any_weight_moves",
    ),
    of(
        "nan-scores-train",
        ("if not bool(torch.isfinite(scores).all()):", "if False:"),
        "test_a_bad_score_stops_the_round_before_any_weight_moves",
    ),
    of(
        "everything-trains-over-the-trunk",
        ("*trainable(lm, config.train_layers)", "*trainable(lm, 0)"),
        "test_only_the_top_block_the_last_norm_and_the_value_head_train",
    ),
    # resume repeats the data order, or forgets the controller
    of(
        "resume-repeats-the-draws",
        (
            "stage.restore(trainer.policy, trainer.optimizer, trainer.generator)",
            "stage.restore(trainer.policy, trainer.optimizer)",
        ),
        PPO_RESUME,
    ),
    of("resume-forgets-the-price", ('meta.get("kl_coef", trainer.kl_coef)', "trainer.kl_coef"), PPO_RESUME),
    of(
        "resume-forgets-the-moments",
        (
            "stage.restore(trainer.policy, trainer.optimizer, trainer.generator)",
            "stage.restore(trainer.policy, make_optimizer(trainer.parameters, c.lr, 0.0), trainer.generator)",
        ),
        PPO_RESUME,
    ),
    of(
        "warm-up-forgotten",
        ("return config.lr * rise * fall", "return config.lr * fall"),
        "test_learning_rate_by_hand[warm-up]",
    ),
    of(
        "the-learning-rate-stays-up",
        ("return config.lr * rise * fall", "return config.lr * rise"),
        "test_learning_rate_by_hand[no-warm-up]",
    ),
    of("lambda-reaches-its-end-late", ("(0.75 * config.iterations)", "config.iterations"), "test_kl_schedule_by_hand"),
    of(
        "lambda-follows-no-schedule",
        ("trainer.kl_coef = kl_schedule(c, step)", "pass"),
        "test_training_follows_the_schedule_unless_a_kl_target_leads",
    ),
    of(
        "reference-is-the-policy",
        ("self.reference = reference.eval()", "self.reference = lm.eval()"),
        f"{EACH_ROW}[1.0-llama]",
    ),
    of(
        "more-minibatches-than-rows",
        ("            parts <= rows,\n", "            True,\n"),
        "test_config.py::test_impossible_values_stop_at_once_not_after_the_training",
    ),
    of(
        "a-gap-of-one-side-only",
        ("- part.logp[part.action]).abs()", "- part.logp[part.action])"),
        "test_the_gap_between_sampled_and_scored_log_probs_is_logged",
    ),
    of(
        "the-gap-is-a-mean",
        ("rollout.logp_gap[mask].max()", "rollout.logp_gap[mask].mean()"),
        "test_the_gap_between_sampled_and_scored_log_probs_is_logged",
    ),
    of(
        "the-sampler-that-was-given-is-not-used",
        ("completions = self.sampler(", "completions = generate("),
        "test_the_gap_between_sampled_and_scored_log_probs_is_logged",
    ),
    of(
        "a-variant-trains-as-ppo",
        ("require(config.variant in (", "require(True or config.variant in ("),
        "test_another_trainers_variant_is_refused[rloo]",
    ),
    of(
        "more-prompts-than-the-batch-has",
        ("(c.batch_size // K,)", "(c.batch_size,)"),
        "test_a_batch_holds_each_prompt_k_times_side_by_side",
    ),
    of(
        "penalty-in-the-score",
        ("        return scores\n", "        return scores - self.config.missing_eos_penalty * (~rollout.finished)\n"),
        "test_regressions.py::test_the_mean_score_holds_no_penalty",
    ),
    of(
        "no-penalty-for-a-missing-eos",
        ("rollout.scores - self.config.missing_eos_penalty * (~rollout.finished)", "rollout.scores"),
        "test_the_missing_eos_penalty_knows_a_custom_stop_token",
    ),
)
