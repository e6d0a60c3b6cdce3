"""Known mistakes of reward.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "reward.py")
RATED_AT_EOS = "test_the_reward_is_read_at_the_eos_whoever_shares_the_batch"

MUTANTS: tuple[Mutant, ...] = (
    # ------------------------------------------------------------ reward.py, frozen.py, alignpro.py
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
        ("(loss.sum() / len(batch))", "loss.mean()"),
        "test_cutting_a_batch_into_micro_batches_changes_nothing",
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
    of("certainty-of-the-first", ("(b, a, 1 - p)", "(b, a, p)"), "test_preferences_follow_bradley_terry"),
    of(
        "labels-ignore-their-generator",
        ("torch.rand(len(prompts), generator=generator)", "torch.rand(len(prompts))"),
        "test_the_generator_decides_the_labels",
    ),
    of(
        "the-mismatch-is-not-marked",
        ("(b, a, 1 - p)), mismatched)", "(b, a, 1 - p)))"),
        "test_pipeline.py::test_preferences_are_between_answers_that_ppo_would_get",
    ),
    of(
        "prompts-on-both-sides",
        ("if p.prompt not in kept_out], heldout", "], heldout"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    of(
        "sides-of-the-split-swapped",
        (
            "return [p for p in pairs if p.prompt not in kept_out], heldout",
            "return heldout, [p for p in pairs if p.prompt not in kept_out]",
        ),
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
        ("((chosen > rejected).float() + 0.5 * (chosen == rejected).float())", "(chosen >= rejected).float()"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    of(
        "ties-count-as-wrong",
        ("((chosen > rejected).float() + 0.5 * (chosen == rejected).float())", "(chosen > rejected).float()"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    of(
        "accuracy-of-the-rejected",
        ("((chosen > rejected).float() + 0.5", "((chosen < rejected).float() + 0.5"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    of(
        "accuracy-is-a-mean-margin",
        ("((chosen > rejected).float() + 0.5 * (chosen == rejected).float())", "(chosen - rejected)"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    of(
        "cache-mixes-up-rows",
        ("found[tuple(row)] for row in self.ids", "found[row] for row in found"),
        "test_the_trunk_cache_gives_the_direct_rewards[1]",
    ),
    of(
        "resume-repeats-the-pairs",
        ("for _ in range(start):\n        next(batches)", "for _ in range(0):\n        next(batches)"),
        "test_a_killed_run_goes_on_bit_for_bit",
    ),
    of(
        "a-mean-over-padding",
        ("(hidden * mask[..., None]).float().sum(1) / mask", "hidden.float().sum(1) / mask"),
        "test_the_mean_of_the_rows_states_whoever_shares_the_batch[1]",
    ),
    of(
        "loaded-weights-are-rounded",
        ("        training.trainable(lm, train_layers)  # their dtype, also where finished weights are loaded\n", ""),
        "test_fast_transformer.py::test_a_reward_model_rates_the_same_after_it_is_loaded",
    ),
    # a reward that does not read x; a truncated answer with an EOS that nobody wrote
    of(
        "eos-on-a-truncated-answer",
        ("answer_ids[:-1] if isinstance(completion, Truncated) else answer_ids", "answer_ids"),
        "test_a_truncated_answer_is_read_at_its_last_token_without_an_eos",
    ),
    of(
        "mismatched-pairs-held-out",
        ("if p.prompt in kept_out and not p.mismatched]", "if p.prompt in kept_out]"),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    of(
        "mismatched-pairs-teach-nothing",
        ("if p.prompt not in kept_out], heldout", "if p.prompt not in kept_out and not p.mismatched], heldout"),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    of(
        "mismatched-pairs-move-the-split",
        ("{p.prompt for p in pairs if not p.mismatched}", "{p.prompt for p in pairs}"),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    of(
        "equal-texts-count-as-swaps",
        ("strict=True) if y != other]\n    if not kept", "strict=True)]\n    if not kept"),
        "test_swap_accuracy_by_hand",
    ),
)
