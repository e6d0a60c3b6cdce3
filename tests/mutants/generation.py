"""Known mistakes of generation.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "generation.py")
LOGPROBS = "test_logprobs_are_those_of_the_distribution_sampled_from"
FIRST_RATIO = "test_ppo.py::test_the_first_ratio_is_one_against_the_sampling_logprobs"
PAD_BY_HAND = "test_padding_by_hand"
PAIRS_BY_HAND = "test_pairs_are_padded_by_hand"
SFT_LOSS = (
    "test_sft.py::test_the_loss_is_the_mean_over_answer_tokens_row_by_row",
    "test_sft.py::test_the_loss_by_hand_counts_the_eos_and_no_prompt_token",
)
BATCHING = "test_neither_compaction_nor_the_batching_changes_what_a_row_samples"
GREEDY = "test_greedy_equals_each_row_alone_without_a_cache"
FIXED = "test_steps_of_fixed_shapes_give_the_same_answers[1.0-True-llama]"
COMMON = "test_what_all_prompts_begin_with_goes_through_the_model_once"
SAVES_LITTLE = "test_a_beginning_that_saves_little_gets_no_pass_of_its_own"
PPO_EOS = "test_ppo.py::test_eos_is_a_sampled_token_and_carries_the_score"

MUTANTS: tuple[Mutant, ...] = (
    # ------------------------------------------------------------ generation.py
    # sampled with temperature / a nucleus, scored without
    of(
        "greedy-scored-at-another-temperature",
        (
            "if temperature not in (0.0, 1.0):\n        logits = logits / temperature",
            "logits = logits / (temperature or 0.5)",
        ),
        f"{LOGPROBS}[0.0-1.0-llama]",
        "test_temperature_by_hand_and_before_the_nucleus",
    ),
    of(
        "temperature-ignored",
        ("logits = logits / temperature", "pass"),
        "test_temperature_by_hand_and_before_the_nucleus",
        f"{LOGPROBS}[0.7-1.0-llama]",
        "test_sampled_frequencies_match_the_probabilities[0.5-1.0-want1]",
    ),
    of(
        "noted-without-the-temperature",
        ("logps[rows[part], t] = logp.gather", "logps[rows[part], t] = sampling_logprobs(logits[which[part]]).gather"),
        f"{LOGPROBS}[0.7-1.0-gpt2]",
        f"{LOGPROBS}[1.5-0.8-llama]",
        "test_ppo.py::test_every_number_of_a_rollout_is_that_of_the_row_alone[0.7-llama]",
        f"{FIRST_RATIO}[options1-llama]",
    ),
    of(
        "nucleus-too-small",
        ("before >= top_p", "before + ordered.softmax(-1) >= top_p"),
        "test_nucleus_by_hand[0.51-want2]",
        "test_nucleus_by_hand[0.76-want4]",
    ),
    of(
        "nucleus-not-put-back-in-place",
        ("torch.empty_like(logits).scatter_(-1, index, ordered)", "ordered"),
        "test_nucleus_by_hand[0.76-want4]",
        f"{LOGPROBS}[1.5-0.8-gpt2]",
    ),
    of(
        "nucleus-not-scaled-to-1",
        (
            "ordered = ordered.masked_fill(before >= top_p, -torch.inf)",
            "ordered = ordered.log_softmax(-1).masked_fill(before >= top_p, -torch.inf)\n"
            "        return torch.empty_like(logits).scatter_(-1, index, ordered)",
        ),
        "test_nucleus_by_hand[0.76-want4]",
        f"{LOGPROBS}[1.5-0.8-gpt2]",
    ),
    of(
        "nucleus-before-the-temperature",
        (
            "ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)",
            "(p := (temperature * ordered).softmax(-1)).cumsum(-1) - p",
        ),
        "test_temperature_by_hand_and_before_the_nucleus",
    ),
    of(
        "nucleus-of-the-greedy",
        ("if top_p < 1.0 and temperature > 0:", "if top_p < 1.0:"),
        "test_temperature_by_hand_and_before_the_nucleus",
    ),
    # padding
    of(
        "mask-on-the-other-side",
        (
            "column >= width - lengths if left else column < lengths",
            "column < lengths if left else column >= width - lengths",
        ),
        f"{PAD_BY_HAND}[pad_left-ids0-mask0]",
        f"{PAD_BY_HAND}[pad_right-ids1-mask1]",
    ),
    of(
        "padded-on-the-other-side",
        ("[*pads, *row] if left else [*row, *pads]", "[*row, *pads] if left else [*pads, *row]"),
        f"{PAD_BY_HAND}[pad_left-ids0-mask0]",
        f"{PAD_BY_HAND}[pad_right-ids1-mask1]",
    ),
    of(
        "a-token-like-the-padding-is-padding",
        (
            "mask = column >= width - lengths if left else column < lengths",
            "mask = torch.tensor(padded, dtype=torch.long).view(len(rows), width) != pad_id",
        ),
        PAD_BY_HAND,
    ),
    of("padded-with-zeros", ("[[pad_id] *", "[[0] *"), PAD_BY_HAND),
    of("no-rows-to-pad", ("max(map(len, rows), default=0)", "max(map(len, rows))"), PAD_BY_HAND),
    of(
        "last-prompt-token-counts-as-an-answer",
        ("pad_right([p for p, _ in pairs], 0, device)", "pad_right([p[:-1] for p, _ in pairs], 0, device)"),
        *SFT_LOSS,
        PAIRS_BY_HAND,
    ),
    of(
        "a-token-0-is-no-answer",
        ("mask[:, : prompt.shape[1]] &= ~prompt", "mask[:, : prompt.shape[1]] &= ~prompt\n    mask &= ids != 0"),
        PAIRS_BY_HAND,
    ),
    # compaction writes to the wrong rows, or gives a row another row's draws
    of(
        "compaction-writes-to-the-wrong-rows",
        ("tokens[rows, t] = new", "tokens[torch.arange(len(new)), t] = new"),
        f"{GREEDY}[1-llama]",
        BATCHING,
    ),
    of(
        "compaction-notes-logprobs-in-the-wrong-rows",
        ("logps[rows[part], t] =", "logps[part, t] ="),
        BATCHING,
        f"{LOGPROBS}[1.0-1.0-llama]",
    ),
    of("compaction-mixes-up-the-draws", ("uniforms[rows[part], t]", "uniforms[part, t]"), f"{BATCHING}[1.0-llama]"),
    of(
        "compaction-keeps-the-wrong-cache",
        ("cache.keep(source)", "cache.keep(torch.arange(len(source), device=device))"),
        f"{GREEDY}[1-llama]",
        BATCHING,
    ),
    of("compaction-drops-a-living-row", ("(~done).nonzero()", "done.nonzero()"), f"{GREEDY}[1-llama]", BATCHING),
    of(
        "equal-prompts-mixed-up",
        ("place[tuple(prompt)] for prompt in prompts]", "place[tuple(prompt)] for prompt in prompts[::-1]]"),
        f"{GREEDY}[1-llama]",
    ),
    of(
        "rows-that-draw-different-tokens-stay-one",
        ("(which * model.config.vocab_size + new)[alive]", "which[alive]"),
        f"{BATCHING}[1.0-llama]",
    ),
    of(
        "rows-part-at-once",
        ("which * model.config.vocab_size + new", "rows"),
        "test_rows_go_through_the_model_once_as_long_as_they_are_the_same",
    ),
    of(
        "rows-in-no-order",
        ("in_order = which.argsort()", "in_order = torch.arange(len(which))"),
        f"{BATCHING}[1.0-llama]",
    ),
    of(
        "finished-rows-stay",
        ("len(alive) <= (0.5 * len(rows) - 64 if fixed else 0.9 * len(rows))", "False"),
        "test_finished_rows_leave_and_a_few_are_carried_along",
    ),
    # steps that a GPU replays
    of("empty-slots-of-any-content", ("self.whole[..., cache.length :, :] = 0", "pass"), FIXED),
    of("empty-slots-are-attended-to", ("self.mask[:, cache.length : -1] = False", "pass"), FIXED),
    of("a-token-is-forgotten", ("self.mask.index_fill_(1, self.slots[:1], True)", "pass"), FIXED),
    of("one-slot-for-all-tokens", ("self.slots[:1] += 1", "pass"), FIXED),
    of("slots-stay-where-padding-left", ("self.slots -= before - self.length", "pass"), FIXED),
    of(
        "recorded-anew-for-each-row-that-leaves",
        ("(0.5 * len(rows) - 64 if fixed else 0.9 * len(rows))", "0.9 * len(rows)"),
        FIXED,
    ),
    of(
        "a-batch-that-never-grows",
        ("min(max_batch * len(chunk) // most, 4 * max_batch)", "max_batch"),
        "test_more_rows_at_once_where_they_share_the_models",
    ),
    of(
        "a-batch-that-grows-for-ever",
        ("min(max_batch * len(chunk) // most, 4 * max_batch)", "max_batch * len(chunk) // most"),
        "test_more_rows_at_once_where_they_share_the_models",
    ),
    of(
        "every-prompt-anew",
        ("enumerate(dict.fromkeys(map(tuple, prompts)))", "enumerate(map(tuple, prompts))"),
        "test_rows_go_through_the_model_once_as_long_as_they_are_the_same",
    ),
    of(
        "draws-follow-the-batch",
        ("uniforms[chunk].to(", "uniforms[: len(chunk)].to("),
        "test_another_companion_does_not_change_what_a_row_samples",
    ),
    of(
        "results-in-sorted-order",
        ("results[i] = Completion", "results[results.index(None)] = Completion"),
        "test_completions_come_back_in_the_order_of_the_prompts",
        f"{GREEDY}[1-llama]",
    ),
    of(
        "prompts-padded-on-the-right",
        ("pad_left([prompt[C:] for", "pad_right([prompt[C:] for"),
        f"{GREEDY}[1-llama]",
        f"{GREEDY}[1-gpt2]",
    ),
    of(
        "common-beginning-run-twice",
        ("pad_left([prompt[C:] for", "pad_left([prompt[C - bool(C) :] for"),
        f"{COMMON}[False-llama]",
        f"{COMMON}[True-gpt2]",
    ),
    of(
        "nothing-left-of-the-shortest-prompt",
        ("min(map(len, place)) - 1)", "min(map(len, place)))"),
        f"{COMMON}[False-llama]",
    ),
    of(
        "padding-after-the-common-beginning-is-seen",
        ("    cache.mask[:, C:] = mask\n", "    cache.mask[:, C:] = mask | (C > 0)\n"),
        f"{COMMON}[False-llama]",
        f"{COMMON}[False-gpt2]",
    ),
    of(
        "a-pass-of-its-own-for-a-few-tokens",
        ("C if C >= 16 and len(place) > 1 else 0", "C"),
        f"{SAVES_LITTLE}[one]",
        f"{SAVES_LITTLE}[few]",
    ),
    of(
        "all-rows-drawn-at-once",
        ("max(1, 2**20 // model.config.vocab_size)", "N"),
        "test_a_large_vocabulary_is_drawn_from_a_few_rows_at_a_time",
    ),
    of(
        "drawn-with-the-first-rows-numbers",
        ("uniforms[rows[part], t]", "uniforms[rows[: len(part)], t]"),
        "test_a_large_vocabulary_is_drawn_from_a_few_rows_at_a_time",
    ),
    # EOS lost; the draw takes what it must not; the seed; a wait in the loop; the mode
    of(
        "eos-dropped-from-the-completion",
        ("row.index(eos_id) + 1 if", "row.index(eos_id) if"),
        "test_eos_is_kept_as_the_last_token_and_the_limit_cuts",
        f"{PPO_EOS}[own]",
        f"{PPO_EOS}[pad-is-eos]",
    ),
    of(
        "first-token-of-no-probability",
        ("u, right=True", "u, right=False"),
        "test_a_token_of_probability_zero_is_never_drawn",
    ),
    of(
        "draw-beyond-the-end",
        ("uniform.clamp(max=1 - 2**-20)", "uniform"),
        "test_a_token_of_probability_zero_is_never_drawn",
    ),
    of(
        "draw-not-scaled-to-the-mass",
        ("uniform.clamp(max=1 - 2**-20)[:, None] * cdf[:, -1:]", "uniform.clamp(max=1 - 2**-20)[:, None]"),
        "test_a_token_of_probability_zero_is_never_drawn",
    ),
    of(
        "draw-one-token-late",
        ("torch.searchsorted(cdf, u", "torch.searchsorted(cdf - logp.exp(), u"),
        "test_a_token_of_probability_zero_is_never_drawn",
        "test_the_uniform_interval_of_a_token_is_as_wide_as_its_probability",
    ),
    of(
        "one-draw-for-the-whole-batch",
        ("uniform.clamp(max=1 - 2**-20)[:, None] *", "uniform[:1].clamp(max=1 - 2**-20)[:, None] *"),
        "test_the_uniform_interval_of_a_token_is_as_wide_as_its_probability",
    ),
    of(
        "seed-ignored",
        ("max_new_tokens, generator=generator, device=draw_on", "max_new_tokens, device=draw_on"),
        "test_the_generator_decides_everything",
    ),
    of(
        "one-draw-for-all-rows",
        ("_draw(logp, uniforms[rows[part], t])", "_draw(logp, uniforms[rows[part] * 0, t])"),
        "test_the_generator_decides_everything",
    ),
    of(
        "a-wait-in-the-token-loop",
        (
            "            new = draw(model.hidden(new[:, None], ",
            "            new = draw(model.hidden(new[:, None] + 0 * new[0].item(), ",
        ),
        "test_the_token_loop_never_waits_for_a_number",
    ),
    of(
        "left-in-eval-mode",
        ("    model.train(was_training)\n", ""),
        "test_the_models_mode_is_put_back_and_no_gradient_is_kept[True]",
    ),
    # ------------------------------------------------------------ sft.py
    of("prompt-in-the-loss", ("mask[:, : prompt.shape[1]] &= ~prompt", "mask[:, :1] = False"), *SFT_LOSS),
    of(
        "loss-over-pads",
        ("mask[:, : prompt.shape[1]] &= ~prompt", "mask[:] = True\n    mask[:, : prompt.shape[1]] &= ~prompt"),
        *SFT_LOSS,
    ),
    of(
        "scorer-states-one-to-the-right",
        ("model.hidden(ids)[:, :-1][action]", "model.hidden(ids)[:, 1:][action]"),
        "test_evaluation.py::test_sequence_kl_against_each_row_alone",
        "test_scorer_gives_the_samplers_log_probs",
    ),
    of(
        "scorer-ignores-the-temperature",
        ("model.unembed(s), temperature, top_p)", "model.unembed(s))"),
        "test_evaluation.py::test_sequence_kl_against_each_row_alone",
        "test_scorer_gives_the_samplers_log_probs",
    ),
    of(
        "scorer-forgets-the-order",
        ("found[chunk] = logp", "found[sorted(chunk)] = logp"),
        "test_scorer_gives_the_samplers_log_probs",
    ),
    of(
        "scorer-takes-the-mean",
        ("found[chunk] = logp.sum(1).cpu()", "found[chunk] = (logp.sum(1) / action.sum(1).clamp(min=1)).cpu()"),
        "test_evaluation.py::test_sequence_kl_against_each_row_alone",
        "test_scorer_gives_the_samplers_log_probs",
    ),
    of(
        "scorer-lets-the-lists-differ",
        ("zip(prompts, completions, strict=True)", "zip(prompts, completions)"),
        "test_bad_prompts_are_refused_by_number",
    ),
    of(
        "all-logits-at-once",
        ("max(1, 2**24 // model.config.vocab_size)", "10**9"),
        "test_regressions.py::test_logits_of_a_large_vocabulary_are_made_a_few_tokens_at_a_time",
    ),
)
