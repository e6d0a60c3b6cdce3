"""Known mistakes of fast/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

sampler = partial(mutant, "fast/sampling.py")
model = partial(mutant, "fast/transformer.py")
LOGPROBS = "test_generation.py::test_logprobs_are_those_of_the_distribution_sampled_from"
BATCHING = "test_generation.py::test_the_fast_sampler_gives_the_readable_ones_tokens_however_they_are_batched"
GREEDY = "test_generation.py::test_greedy_equals_each_row_alone_without_a_cache"
OWN_NUMBERS = "test_generation.py::test_each_row_takes_the_tokens_that_its_own_numbers_choose"
COMPANIONS = "test_generation.py::test_another_companion_does_not_change_what_a_row_samples"
IN_ORDER = "test_generation.py::test_completions_come_back_in_the_order_of_the_prompts"
EOS_BY_HAND = "test_generation.py::test_eos_is_kept_as_the_last_token_and_the_limit_cuts"
FIXED = "test_steps_of_fixed_shapes_give_the_same_answers[1.0-True-llama]"
COMMON = "test_what_all_prompts_begin_with_goes_through_the_model_once"
SAVES_LITTLE = "test_a_beginning_that_saves_little_gets_no_pass_of_its_own"
ONCE = "test_rows_go_through_the_model_once_as_long_as_they_are_the_same"
IN_PARTS = "test_a_large_vocabulary_is_drawn_from_a_few_rows_at_a_time"
GROWS = "test_more_rows_at_once_where_they_share_the_models"
SWELLS = "test_rows_that_shared_much_do_not_swell_the_batch_of_those_that_share_nothing"
KEEP = "test_cache_keep_takes_rows_in_any_order_and_more_than_once"
BY_DRAW = "self.which * self.model.config.vocab_size + self.new"
AS_PLAIN = "test_fast_transformer.py::test_the_fast_transformer_gives_the_plain_ones_logits"
STEPS = "test_fast_transformer.py::test_a_step_of_one_token_equals_the_plain_ones"
MIXED = "test_fast_transformer.py::test_what_trains_has_float32_weights_and_computes_as_before"
GRADIENT = "test_fast_transformer.py::test_attention_in_bfloat16_keeps_its_value_and_has_a_gradient_as_in_float32"

MUTANTS: tuple[Mutant, ...] = (
    # ------------------------------------------------------------ what is drawn, and what is noted
    sampler(
        "fast-notes-without-the-temperature",
        ("= logp.gather(-1,", "= sampling_logprobs(logits[self.which[part]]).gather(-1,"),
        f"{LOGPROBS}[fast-0.7-1.0-gpt2]",
        f"{LOGPROBS}[fast-1.5-0.8-llama]",
    ),
    sampler(
        "fast-samples-at-temperature-0",
        ("logp.argmax(-1) if self.temperature == 0 else draw(logp, uniform)", "draw(logp, uniform)"),
        f"{GREEDY}[fast-1-llama]",
    ),
    sampler(
        "compaction-writes-to-the-wrong-rows",
        ("self.tokens[self.rows, self.column] = new", "self.tokens[torch.arange(len(new)), self.column] = new"),
        f"{GREEDY}[fast-1-llama]",
        BATCHING,
    ),
    sampler(
        "compaction-notes-logprobs-in-the-wrong-rows",
        ("self.logprobs[self.rows[part], self.column]", "self.logprobs[part, self.column]"),
        BATCHING,
        f"{LOGPROBS}[fast-1.0-1.0-llama]",
    ),
    sampler(
        "compaction-mixes-up-the-draws",
        ("self.uniforms[self.rows[part], self.column]", "self.uniforms[part, self.column]"),
        f"{BATCHING}[1.0-llama]",
        f"{OWN_NUMBERS}[fast-1.0-1.0-llama]",
    ),
    sampler(
        "drawn-with-the-first-rows-numbers",
        ("self.uniforms[self.rows[part], self.column]", "self.uniforms[self.rows[: len(part)], self.column]"),
        IN_PARTS,
    ),
    sampler(
        "draws-follow-the-batch",
        ("uniforms[chunk], temperature", "uniforms[: len(chunk)], temperature"),
        f"{COMPANIONS}[fast-llama]",
    ),
    sampler(
        "results-in-sorted-order",
        ("results[i] = completion", "results[results.index(None)] = completion"),
        f"{IN_ORDER}[fast]",
        f"{GREEDY}[fast-1-llama]",
    ),
    sampler("fast-eos-dropped-from-the-completion", ("next((t + 1 for t", "next((t for t"), f"{EOS_BY_HAND}[fast]"),
    sampler(
        "fast-one-end-of-several",
        ("for end in self.ends:", "for end in self.ends[:1]:"),
        "test_sampling.py::test_a_row_leaves_at_each_of_several_ends",
    ),
    sampler("all-rows-drawn-at-once", ("max(1, 2**20 // model.config.vocab_size)", "N"), IN_PARTS),
    sampler(
        "a-wait-in-the-token-loop",
        ("self.model.hidden(self.new[:, None],", "self.model.hidden(self.new[:, None] + 0 * self.new[0].item(),"),
        "test_the_token_loop_never_waits_for_a_number",
    ),
    # ------------------------------------------------------------ rows that leave, and rows that part
    sampler(
        "compaction-keeps-the-wrong-cache",
        ("self.cache.keep(source)", "self.cache.keep(torch.arange(len(source)))"),
        f"{GREEDY}[fast-1-llama]",
        BATCHING,
    ),
    sampler(
        "compaction-drops-a-living-row", ("alive[~self.done]", "alive[self.done]"), f"{GREEDY}[fast-1-llama]", BATCHING
    ),
    sampler("rows-that-draw-different-tokens-stay-one", (BY_DRAW, "self.which"), f"{BATCHING}[1.0-llama]"),
    sampler("rows-part-at-once", (BY_DRAW, "self.rows"), ONCE),
    sampler(
        "rows-in-no-order",
        ("in_order = which.argsort()", "in_order = torch.arange(len(which))"),
        f"{BATCHING}[1.0-llama]",
    ),
    sampler(
        "finished-rows-stay",
        ("len(alive) <= (0.5 * len(self.rows) - 64 if fixed else 0.9 * len(self.rows))", "False"),
        "test_finished_rows_leave_and_a_few_are_carried_along",
    ),
    sampler(
        "recorded-anew-for-each-row-that-leaves",
        ("(0.5 * len(self.rows) - 64 if fixed else 0.9 * len(self.rows))", "0.9 * len(self.rows)"),
        FIXED,
    ),
    sampler(
        "a-batch-that-never-grows",
        ("min(max_batch * len(chunk) // batch.most_rows, 4 * max_batch)", "max_batch"),
        GROWS,
    ),
    sampler(
        "a-batch-that-grows-for-ever",
        ("min(max_batch * len(chunk) // batch.most_rows, 4 * max_batch)", "max_batch * len(chunk) // batch.most_rows"),
        GROWS,
    ),
    sampler("a-batch-that-stays-large", ("if distinct > max_batch:", "if False:"), f"{SWELLS}[0.1]"),
    # ------------------------------------------------------------ the prompts
    sampler(
        "equal-prompts-mixed-up",
        ("for prompt in self.prompts], device=device)", "for prompt in self.prompts[::-1]], device=device)"),
        f"{GREEDY}[fast-1-llama]",
    ),
    sampler(
        "every-prompt-anew",
        ("enumerate(dict.fromkeys(map(tuple, self.prompts)))", "enumerate(map(tuple, self.prompts))"),
        ONCE,
    ),
    sampler(
        "fast-prompts-padded-on-the-right",
        (
            "pad_left([prompt[C:] for prompt in distinct], 0, device)",
            "(x.flip(1) for x in pad_left([prompt[C:][::-1] for prompt in distinct], 0, device))",
        ),
        f"{GREEDY}[fast-1-llama]",
        f"{GREEDY}[fast-1-gpt2]",
    ),
    sampler(
        "common-beginning-run-twice",
        ("pad_left([prompt[C:] for", "pad_left([prompt[C - bool(C) :] for"),
        f"{COMMON}[False-llama]",
        f"{COMMON}[True-gpt2]",
    ),
    sampler(
        "nothing-left-of-the-shortest-prompt",
        ("min(map(len, prompts)) - 1)", "min(map(len, prompts)))"),
        f"{COMMON}[False-llama]",
    ),
    sampler(
        "padding-after-the-common-beginning-is-seen",
        ("        cache.mask[:, C:] = mask\n", "        cache.mask[:, C:] = mask | (C > 0)\n"),
        f"{COMMON}[False-llama]",
        f"{COMMON}[False-gpt2]",
    ),
    sampler(
        "a-pass-of-its-own-for-a-few-tokens",
        ("common if common >= SHORTEST_SHARED_BEGINNING and len(prompts) > 1 else 0", "common"),
        f"{SAVES_LITTLE}[one]",
        f"{SAVES_LITTLE}[few]",
    ),
    # ------------------------------------------------------------ the caches
    sampler(
        "moved-rows-of-the-cache-are-not-copied",
        ("moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]", "moved = rows[:0]"),
        f"{KEEP}[rows1-llama]",
        f"{KEEP}[rows4-gpt2]",
    ),
    sampler(
        "the-mask-stays-with-the-former-rows",
        ("        mask = self.mask[rows]  # (B', S_max)\n", "        mask = self.mask[: len(rows)]\n"),
        "test_cache_keep_drops_rows_and_shared_padding",
    ),
    sampler(
        "padding-leaves-but-its-slots-count",
        ("self.length -= lead", "self.length -= 0"),
        "test_cache_keep_drops_rows_and_shared_padding",
    ),
    sampler("empty-slots-of-any-content", ("self.whole[..., cache.length :, :] = 0", "pass"), FIXED),
    sampler("empty-slots-are-attended-to", ("self.mask[:, cache.length : -1] = False", "pass"), FIXED),
    sampler("a-token-is-forgotten", ("self.mask.index_fill_(1, self.slots[:1], True)", "pass"), FIXED),
    sampler("one-slot-for-all-tokens", ("self.slots[:1] += 1", "pass"), FIXED),
    sampler("slots-stay-where-padding-left", ("self.slots -= before - self.length", "pass"), FIXED),
    # ------------------------------------------------------------ fast/transformer.py
    model(
        "queries-of-a-group-one-key-head-further",
        ("q = q.reshape(B, self.kv_heads, -1, E)", "q = q.view(B, -1, self.kv_heads, E).transpose(1, 2)"),
        STEPS,
    ),
    model("grouped-queries-not-put-back", ("return y.reshape(B, H, T, E)", "return y"), STEPS),
    model(
        "one-query-sees-the-padding",
        ("y = super().attend(q, k, v, allowed)", "y = super().attend(q, k, v, allowed if T > 1 else None)"),
        STEPS,
    ),
    model(
        "gradient-in-bfloat16",
        ('if q.dtype == torch.bfloat16 and q.device.type == "cpu" and y.requires_grad:', "if False:"),
        GRADIENT,
    ),
    model("attention-computed-in-float32", ("(exact + (y - exact).detach())", "exact"), GRADIENT),
    model(
        "exact-attention-under-autocast",
        ('with torch.autocast("cpu", enabled=False):', 'with torch.autocast("cpu", torch.bfloat16):'),
        GRADIENT,
    ),
    model(
        "mixed-weights-outlive-the-step",
        ("cache_enabled=False", "cache_enabled=True"),
        "test_fast_transformer.py::test_a_mixed_model_sees_a_step_of_the_optimiser_inside_an_autocast",
    ),
    model(
        "mixed-states-in-float32",
        (".hidden(x, mask, cache, start, stop).to(dtype)", ".hidden(x, mask, cache, start, stop).float()"),
        MIXED,
    ),
    model(
        "sampling-changes-the-weights-dtype",
        ("copy.deepcopy(self).to(", "self.to("),
        "test_fast_transformer.py::test_sampling_takes_a_copy_in_one_dtype",
    ),
)
