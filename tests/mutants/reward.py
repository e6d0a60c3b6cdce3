"""Known mistakes of reward.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "reward.py")
RATED_AT_EOS = "test_the_reward_is_read_at_the_eos_whoever_shares_the_batch"

MUTANTS: tuple[Mutant, ...] = (
    of(
        "reward-read-in-the-last-column",
        ("last = mask.sum(1) - 1", "last = mask.sum(1) * 0 + mask.shape[1] - 1"),
        RATED_AT_EOS,
    ),
    of("reward-read-before-the-eos", ("last = mask.sum(1) - 1", "last = mask.sum(1) - 2"), RATED_AT_EOS),
    of(
        "reward-of-the-mean-state",
        (
            "ends = hidden[torch.arange(len(last), device=last.device), last]",
            "ends = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
        ),
        RATED_AT_EOS,
    ),
    of("rewards-in-a-column", (".squeeze(-1).float()", ".float()"), RATED_AT_EOS),
    of(
        "raw-rewards-are-normalised",
        ("return self.head(ends", "return (lambda r: (r - self.mean) / self.std)(self.head(ends"),
        (".squeeze(-1).float()", ".squeeze(-1).float())"),
        "test_normalise_gives_mean_zero_and_std_one_and_keeps_the_order",
    ),
    of("rewards-in-the-precision-of-the-model", (".squeeze(-1).float()", ".squeeze(-1)"), "test_rewards_are_float32"),
    of("rewards-in-sorted-order", ("rewards[part] = ", "rewards[: len(part)] = "), RATED_AT_EOS),
    of(
        "prefers-the-rejected",
        ("rl_math.bradley_terry_loss(chosen, rejected)", "rl_math.bradley_terry_loss(rejected, chosen)"),
        "test_bradley_terry_training_learns_a_preference",
    ),
    of(
        "micro-batches-add-up",
        (".sum() / pairs_of_step)", ".mean())"),
        "test_cutting_a_batch_into_micro_batches_changes_nothing",
    ),
    of(
        "an-answer-of-several-pairs-is-rated-again",
        ("trunk(list(place))", "trunk(chosen + rejected)"),
        "test_an_answer_of_several_pairs_is_rated_once",
    ),
    of(
        "every-pass-in-the-same-order",
        ("order += torch.randperm(len(groups), generator=generator).tolist()", "order += range(len(groups))"),
        "test_every_pass_trains_on_all_pairs_in_a_new_order",
    ),
    of(
        "pairs-of-a-prompt-on-their-own",
        (
            "return [list(group) for _, group in groupby(pairs, key=lambda pair: pair.prompt)]",
            "return [[pair] for pair in pairs]",
        ),
        "test_neighbouring_pairs_of_a_prompt_stay_together",
    ),
    of(
        "offsets-left-free",
        ("config.center_coef * centered", "0 * centered"),
        "test_the_gradient_is_that_of_bradley_terry_and_of_the_squared_sums",
    ),
    of(
        "differences-centred-for-sums",
        ("centered = (chosen + rejected) ** 2", "centered = (chosen - rejected) ** 2"),
        "test_the_gradient_is_that_of_bradley_terry_and_of_the_squared_sums",
    ),
    of(
        "labels-without-noise",
        ("torch.rand(len(prompts), generator=generator) < p_first", "p_first > 0.5"),
        "test_preferences_follow_bradley_terry",
    ),
    of(
        "labels-upside-down",
        ("generator=generator) < p_first", "generator=generator) > p_first"),
        "test_preferences_follow_bradley_terry",
    ),
    of(
        "labels-without-their-scale",
        ("torch.sigmoid(scale * difference.float())", "torch.sigmoid(difference.float())"),
        "test_preferences_follow_bradley_terry",
    ),
    of(
        "certainty-of-the-first",
        ("Preference(x, b, a, 1 - p,", "Preference(x, b, a, p,"),
        "test_preferences_follow_bradley_terry",
    ),
    of(
        "labels-ignore-their-generator",
        ("torch.rand(len(prompts), generator=generator)", "torch.rand(len(prompts))"),
        "test_the_generator_decides_the_labels",
    ),
    of(
        "the-mismatch-is-not-marked",
        ("a, b, p, mismatched)", "a, b, p)"),
        ("b, a, 1 - p, mismatched)", "b, a, 1 - p)"),
        "test_rewards.py::test_preferences_are_between_answers_that_ppo_would_get",
    ),
    of(
        "prompts-on-both-sides",
        ("train = [pair for pair in pairs if pair.prompt not in heldout_prompts]", "train = list(pairs)"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    of(
        "sides-of-the-split-swapped",
        ("return train, heldout", "return heldout, train"),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    of(
        "a-small-share-holds-out-nothing",
        ("max(1, round(share * len(prompts)))", "round(share * len(prompts))"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    of(
        "share-of-the-pairs",
        ("round(share * len(prompts))", "round(share * len(pairs))"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    of(
        "split-ignores-its-generator",
        ("torch.randperm(len(prompts), generator=generator)", "torch.randperm(len(prompts))"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    of(
        "the-first-prompts-are-held-out",
        ("torch.randperm(len(prompts), generator=generator).tolist()", "list(range(len(prompts)))"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    of(
        "ties-count-as-right",
        ("(chosen > rejected).float() + 0.5 * (chosen == rejected).float()", "(chosen >= rejected).float()"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    of(
        "ties-count-as-wrong",
        ("(chosen > rejected).float() + 0.5 * (chosen == rejected).float()", "(chosen > rejected).float()"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    of(
        "accuracy-of-the-rejected",
        ("right = (chosen > rejected)", "right = (chosen < rejected)"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    of(
        "accuracy-is-a-mean-margin",
        ("(chosen > rejected).float() + 0.5 * (chosen == rejected).float()", "(chosen - rejected)"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    of(
        "resume-repeats-the-pairs",
        ("sorted(batches[step],", "sorted(batches[step - start],"),
        "test_a_killed_run_goes_on_bit_for_bit",
    ),
    of(
        "loaded-weights-are-rounded",
        ("        training.trainable(lm, train_layers)  # what trains becomes float32, as saved weights are\n", ""),
        "test_fast_transformer.py::test_a_reward_model_rates_the_same_after_it_is_loaded",
    ),
    # a reward that does not read x; a truncated answer with an EOS that nobody wrote
    of(
        "eos-on-a-truncated-answer",
        ("if isinstance(completion, Truncated):", "if False:"),
        "test_a_truncated_answer_is_read_at_its_last_token_without_an_eos",
    ),
    of(
        "mismatched-pairs-held-out",
        ("if pair.prompt in heldout_prompts and not pair.mismatched]", "if pair.prompt in heldout_prompts]"),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    of(
        "mismatched-pairs-teach-nothing",
        ("if pair.prompt not in heldout_prompts]", "if pair.prompt not in heldout_prompts and not pair.mismatched]"),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    of(
        "mismatched-pairs-move-the-split",
        ("{pair.prompt for pair in pairs if not pair.mismatched}", "{pair.prompt for pair in pairs}"),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    # which pairs may be trained on
    of(
        "pairs-beyond-the-context",
        ("min(config.max_tokens, model.lm.config.max_len)", "config.max_tokens"),
        "test_pairs_beyond_the_models_context_are_left_out_too",
    ),
    of(
        "pairs-of-equal-answers-teach",
        ("if pair.chosen != pair.rejected and fits(pair)", "if fits(pair)"),
        "test_pairs_that_cannot_teach_are_left_out",
    ),
    of(
        "the-longer-answer-need-not-fit",
        ("return all(len(", "return any(len("),
        "test_pairs_that_cannot_teach_are_left_out",
        "test_pairs_beyond_the_models_context_are_left_out_too",
    ),
    of(
        "one-batch-of-pairs-is-enough",
        ("least = 2 * config.batch_size", "least = config.batch_size"),
        "test_pairs_that_cannot_teach_are_left_out",
    ),
    # ------------------------------------------------------------ the frozen blocks' states, kept
    mutant(
        "fast/reward.py",
        "cache-mixes-up-rows",
        ("self.states[tuple(row)] for row in rows", "states for _, states in zip(rows, self.states.values())"),
        "test_the_trunk_cache_gives_the_direct_rewards[1]",
        "test_training_on_a_trunk_cache_is_the_same_training",
    ),
    mutant(
        "fast/reward.py",
        "padding-is-kept-as-text",
        ("states[place, : len(rows[i])].clone()", "states[place].clone()"),
        ("len(row) for row in rows], device=", "len(state) for state in kept], device="),
        "test_the_trunk_cache_gives_the_direct_rewards[1]",
    ),
    mutant(
        "fast/reward.py",
        "an-answer-of-several-pairs-is-kept-again",
        ("rows = list(dict.fromkeys(encoded))", "rows = encoded"),
        "test_the_trunk_cache_computes_each_row_once_and_before_the_training",
    ),
)
