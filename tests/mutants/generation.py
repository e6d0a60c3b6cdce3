"""Known mistakes of generation.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "generation.py")
LOGPROBS = "test_logprobs_are_those_of_the_distribution_sampled_from"
FIRST_RATIO = "test_ppo.py::test_the_first_ratio_is_one_against_the_sampling_logprobs"
NUCLEUS = "test_nucleus_by_hand[0.76-want4]"
TEMPERATURE = "test_temperature_by_hand_and_before_the_nucleus"
PAD_BY_HAND = "test_padding_by_hand"
PAIRS_BY_HAND = "test_pairs_are_padded_by_hand"
SFT_LOSS = (
    "test_sft.py::test_the_loss_is_the_mean_over_answer_tokens_row_by_row",
    "test_sft.py::test_the_loss_by_hand_counts_the_eos_and_no_prompt_token",
)
GREEDY = "test_greedy_equals_each_row_alone_without_a_cache"
OWN_NUMBERS = "test_each_row_takes_the_tokens_that_its_own_numbers_choose"
COMPANIONS = "test_another_companion_does_not_change_what_a_row_samples"
IN_ORDER = "test_completions_come_back_in_the_order_of_the_prompts"
EOS_BY_HAND = "test_eos_is_kept_as_the_last_token_and_the_limit_cuts"
LEAVE = "test_rows_that_are_done_leave_at_once"
GENERATOR = "test_the_generator_decides_everything"
ZERO = "test_a_token_of_probability_zero_is_never_drawn"
INTERVAL = "test_the_uniform_interval_of_a_token_is_as_wide_as_its_probability"
SCORER = "test_scorer_gives_the_samplers_log_probs"
ROW_KL = "test_evaluation.py::test_sequence_kl_against_each_row_alone"
PPO_EOS = "test_ppo.py::test_eos_is_a_sampled_token_and_carries_the_score"
NEW = "logp.argmax(-1) if greedy else draw(logp, uniforms[rows, t])"

MUTANTS: tuple[Mutant, ...] = (
    # ------------------------------------------------------------ the distribution
    # sampled with temperature / a nucleus, scored without
    of(
        "greedy-scored-at-another-temperature",
        (
            "if temperature not in (0.0, 1.0):\n        logits = logits / temperature",
            "logits = logits / (temperature or 0.5)",
        ),
        f"{LOGPROBS}[readable-0.0-1.0-llama]",
        TEMPERATURE,
    ),
    of(
        "temperature-ignored",
        ("logits = logits / temperature", "pass"),
        TEMPERATURE,
        f"{LOGPROBS}[readable-0.7-1.0-llama]",
        "test_sampled_frequencies_match_the_probabilities[readable-0.5-1.0-want1]",
    ),
    of("nucleus-too-small", ("better >= top_p", "better + mass >= top_p"), "test_nucleus_by_hand[0.51-want2]", NUCLEUS),
    of(
        "nucleus-not-put-back-in-place",
        ("torch.empty_like(logits).scatter_(-1, index, ordered)", "ordered"),
        NUCLEUS,
        f"{LOGPROBS}[readable-1.5-0.8-gpt2]",
    ),
    of(
        "nucleus-not-scaled-to-1",
        (
            "ordered = ordered.masked_fill(better >= top_p, -torch.inf)",
            "ordered = ordered.log_softmax(-1).masked_fill(better >= top_p, -torch.inf)\n"
            "        return torch.empty_like(logits).scatter_(-1, index, ordered)",
        ),
        NUCLEUS,
        f"{LOGPROBS}[readable-1.5-0.8-gpt2]",
    ),
    of(
        "nucleus-before-the-temperature",
        ("mass = ordered.softmax(-1)", "mass = (temperature * ordered).softmax(-1)"),
        TEMPERATURE,
    ),
    of("nucleus-of-the-greedy", ("if top_p < 1.0 and temperature > 0:", "if top_p < 1.0:"), TEMPERATURE),
    # ------------------------------------------------------------ the draw
    of("first-token-of-no-probability", ("u, right=True", "u, right=False"), ZERO),
    of("draw-beyond-the-end", ("uniform.clamp(max=1 - 2**-20)", "uniform"), ZERO),
    of(
        "draw-not-scaled-to-the-mass",
        ("uniform.clamp(max=1 - 2**-20)[:, None] * cdf[:, -1:]", "uniform.clamp(max=1 - 2**-20)[:, None]"),
        ZERO,
    ),
    of("draw-one-token-late", ("torch.searchsorted(cdf, u", "torch.searchsorted(cdf - logp.exp(), u"), ZERO, INTERVAL),
    of(
        "one-draw-for-the-whole-batch",
        ("uniform.clamp(max=1 - 2**-20)[:, None] *", "uniform[:1].clamp(max=1 - 2**-20)[:, None] *"),
        INTERVAL,
        OWN_NUMBERS,
    ),
    # ------------------------------------------------------------ the loop: the next token
    of("sampled-at-temperature-0", (NEW, "draw(logp, uniforms[rows, t])"), f"{GREEDY}[readable-1-llama]"),
    of(
        "numbers-by-the-place-in-the-batch",
        ("uniforms[rows, t]", "uniforms[: len(rows), t]"),
        f"{OWN_NUMBERS}[readable-1.0-1.0-llama]",
        f"{COMPANIONS}[readable-llama]",
    ),
    of(
        "numbers-drawn-in-the-loop",
        ("uniforms[rows, t]", "draw_uniforms(len(rows), 1, generator).to(model.device)[:, 0]"),
        f"{OWN_NUMBERS}[readable-1.0-1.0-llama]",
        f"{COMPANIONS}[readable-llama]",
    ),
    of(
        "one-draw-for-all-rows",
        ("uniforms[rows, t]", "uniforms[[0] * len(rows), t]"),
        f"{OWN_NUMBERS}[readable-1.0-1.0-llama]",
        f"{GENERATOR}[readable]",
    ),
    of(
        "one-draw-for-all-tokens",
        ("uniforms[rows, t]", "uniforms[rows, 0]"),
        f"{OWN_NUMBERS}[readable-1.0-1.0-gpt2]",
        "test_sampled_frequencies_match_the_probabilities[readable-1.0-1.0-want0]",
    ),
    of(
        "seed-ignored",
        ("torch.rand(rows, columns, generator=generator, device=device)", "torch.rand(rows, columns, device=device)"),
        f"{GENERATOR}[readable]",
        f"{GENERATOR}[fast]",
    ),
    # the loop: what is noted
    of(
        "noted-without-the-temperature",
        ("taken = logp.gather", "taken = sampling_logprobs(logits).gather"),
        f"{LOGPROBS}[readable-0.7-1.0-gpt2]",
        f"{LOGPROBS}[readable-1.5-0.8-llama]",
        "test_ppo.py::test_every_number_of_a_rollout_is_that_of_the_row_alone[0.7-llama]",
        f"{FIRST_RATIO}[options1-llama]",
    ),
    of(
        "logprobs-of-the-likeliest",
        ("logp.gather(-1, new[:, None])[:, 0]", "logp.max(-1).values"),
        f"{LOGPROBS}[readable-1.0-1.0-llama]",
    ),
    of(
        "noted-by-the-place-in-the-batch",
        ("zip(rows, new.tolist(), taken.tolist())", "zip(range(len(rows)), new.tolist(), taken.tolist())"),
        f"{GREEDY}[readable-1-llama]",
        f"{IN_ORDER}[readable]",
        LEAVE,
    ),
    of(
        "eos-dropped-from-the-completion",
        (
            "[Completion(*completion) for completion in zip(tokens, logprobs, ended)]",
            "[Completion(row[: len(row) - end], p[: len(row) - end], end) for row, p, end in zip(tokens, logprobs, ended)]",
        ),
        f"{EOS_BY_HAND}[readable]",
        f"{PPO_EOS}[own]",
        f"{PPO_EOS}[pad-is-eos]",
    ),
    of(
        "an-eos-at-the-limit-is-truncated",
        ("len(row) > 0 and row[-1] in ends for row", "len(row) < max_new_tokens for row"),
        f"{EOS_BY_HAND}[readable]",
    ),
    of(
        "one-end-of-several",
        (
            "    return (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)\n",
            "    return (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)[:1]\n",
        ),
        "test_generation.py::test_a_row_stops_at_each_of_several_ends[readable]",
    ),
    # the loop: rows that leave, and the step to the next token
    of(
        "a-living-row-leaves",
        ("if tokens[i][-1] not in ends]", "if tokens[i][-1] in ends]"),
        f"{GREEDY}[readable-1-llama]",
        f"{EOS_BY_HAND}[readable]",
    ),
    of(
        "rows-write-on-after-their-eos",
        ("[b for b, i in enumerate(rows) if tokens[i][-1] not in ends]", "list(range(len(rows)))"),
        f"{GREEDY}[readable-1-llama]",
        f"{EOS_BY_HAND}[readable]",
    ),
    of(
        "rows-that-are-done-go-through-the-model",
        (
            "                tokens[i].append(token)\n",
            "                if tokens[i] and tokens[i][-1] in ends:\n                    continue\n"
            "                tokens[i].append(token)\n",
        ),
        ("if len(alive) < len(rows):", "if False:"),
        ("decode(model, new[alive], cache)", "decode(model, new, cache)"),
        LEAVE,
    ),
    of(
        "rows-that-stay-get-the-wrong-cache",
        ("cache.keep(torch.tensor(alive, ", "cache.keep(torch.arange(len(alive), "),
        f"{GREEDY}[readable-1-llama]",
        f"{OWN_NUMBERS}[readable-1.0-1.0-llama]",
    ),
    of(
        "another-rows-token-goes-on",
        ("new[alive], cache", "new[: len(alive)], cache"),
        f"{GREEDY}[readable-1-llama]",
        f"{OWN_NUMBERS}[readable-1.0-1.0-llama]",
    ),
    of(
        "the-likeliest-token-goes-on",
        ("new[alive], cache", "logp.argmax(-1)[alive], cache"),
        f"{LOGPROBS}[readable-1.0-1.0-llama]",
        f"{OWN_NUMBERS}[readable-1.0-1.0-llama]",
    ),
    of(
        "one-token-too-few",
        ("for t in range(max_new_tokens):", "for t in range(max_new_tokens - 1):"),
        f"{EOS_BY_HAND}[readable]",
        f"{GREEDY}[readable-1-gpt2]",
    ),
    of(
        "all-rows-in-one-batch",
        ("max_batch or 256):", "max(1, len(prompts))):"),
        "test_no_more_than_max_batch_rows_go_through_the_model_at_once[readable]",
    ),
    of(
        "left-in-eval-mode",
        ("    ends = end_ids(eos_id)\n", "    ends = end_ids(eos_id)\n    model.eval()\n"),
        "test_the_models_mode_stays_and_no_gradient_is_kept[readable-True]",
    ),
    # ------------------------------------------------------------ prefill, decode, and what is refused
    of(
        "prompts-padded-on-the-right",
        ("pad_left(prompts, 0, model.device)", "pad_right(prompts, 0, model.device)"),
        f"{GREEDY}[readable-1-llama]",
        f"{GREEDY}[readable-1-gpt2]",
    ),
    of(
        "new-tokens-are-not-seen",
        ("cache.mask[:, P:] = True", "cache.mask[:, P:] = False"),
        f"{GREEDY}[readable-1-llama]",
        f"{GREEDY}[readable-1-gpt2]",
    ),
    of(
        "padding-of-the-prompts-is-seen",
        ("cache.mask[:, :P] = mask", "cache.mask[:, :P] = True"),
        f"{GREEDY}[readable-1-llama]",
        f"{GREEDY}[readable-1-gpt2]",
    ),
    of(
        "a-prompt-that-just-fits-is-refused",
        ("len(prompt) + max_new_tokens <= longest", "len(prompt) + max_new_tokens < longest"),
        "test_bad_prompts_are_refused_by_number",
    ),
    # ------------------------------------------------------------ padding
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
    of("padded-with-zeros", ("[pad_id] *", "[0] *"), PAD_BY_HAND),
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
    of(
        "prompt-in-the-loss", ("mask[:, : prompt.shape[1]] &= ~prompt", "mask[:, :1] = False"), *SFT_LOSS, PAIRS_BY_HAND
    ),
    of(
        "loss-over-pads",
        ("mask[:, : prompt.shape[1]] &= ~prompt", "mask[:] = True\n    mask[:, : prompt.shape[1]] &= ~prompt"),
        *SFT_LOSS,
        PAIRS_BY_HAND,
    ),
    # ------------------------------------------------------------ the scorer
    of(
        "scorer-states-one-to-the-right",
        ("model.hidden(ids)[:, :-1][action]", "model.hidden(ids)[:, 1:][action]"),
        ROW_KL,
        SCORER,
    ),
    of(
        "scorer-ignores-the-temperature",
        (
            "_token_logprobs(model, states, taken, temperature, top_p)",
            "_token_logprobs(model, states, taken, 1.0, 1.0)",
        ),
        ROW_KL,
        SCORER,
    ),
    of("scorer-forgets-the-order", ("sums[rows] = logp", "sums[sorted(rows)] = logp"), SCORER),
    of(
        "scorer-takes-the-mean",
        ("sums[rows] = logp.sum(1).cpu()", "sums[rows] = (logp.sum(1) / action.sum(1).clamp(min=1)).cpu()"),
        ROW_KL,
        SCORER,
    ),
    of(
        "scorer-lets-the-lists-differ",
        ("zip(prompts, completions, strict=True)", "zip(prompts, completions)"),
        "test_bad_prompts_are_refused_by_number",
    ),
    of(
        "all-logits-at-once",
        (
            "_token_logprobs(model, states, taken, temperature, top_p)",
            "sampling_logprobs(model.unembed(states), temperature, top_p).gather(1, taken)[:, 0]",
        ),
        "test_regressions.py::test_logits_of_a_large_vocabulary_are_made_a_few_tokens_at_a_time",
    ),
)
