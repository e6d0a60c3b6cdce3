"""Known mistakes of frozen.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "frozen.py")

MUTANTS: tuple[Mutant, ...] = (
    of(
        "checksum-of-the-shapes-only",
        ("        digest.update(numbers.view(torch.uint8).numpy().tobytes())\n", ""),
        "test_one_bit_changes_the_checksum",
        "test_a_changed_model_is_noticed_and_the_stage_named",
    ),
    of(
        "checksum-without-buffers",
        ("sorted(model.state_dict().items())", "sorted(model.named_parameters())"),
        "test_names_shapes_and_buffers_count_too",
    ),
    of(
        "checksum-without-names",
        ('f"{name} {tensor.dtype} {', 'f"{tensor.dtype} {'),
        "test_names_shapes_and_buffers_count_too",
    ),
    of(
        "checksum-without-shapes",
        (' {tuple(tensor.shape)}".encode()', '".encode()'),
        "test_names_shapes_and_buffers_count_too",
    ),
    of("checksum-without-dtypes", ("{name} {tensor.dtype} {", "{name} {"), "test_dtypes_and_places_count_too"),
    of(
        "checksum-of-the-first-numbers",
        (".contiguous().flatten()", ".contiguous().flatten()[:8]"),
        "test_one_bit_changes_the_checksum",
    ),
    of(
        "checksum-of-the-printed-weights",
        ("numbers.view(torch.uint8).numpy().tobytes()", "str(tensor).encode()"),
        "test_one_bit_changes_the_checksum",
    ),
    of(
        "checksum-of-the-sums",
        ("numbers.view(torch.uint8).numpy().tobytes()", "str(tensor.double().sum().item()).encode()"),
        "test_dtypes_and_places_count_too",
    ),
    of(
        "checksum-of-rounded-weights",
        ("tensor.detach().cpu().contiguous()", "tensor.detach().cpu().half().contiguous()"),
        "test_one_bit_changes_the_checksum",
    ),
    of(
        "a-change-is-not-looked-for",
        ("if checksum(self.model) != self._checksum:", "if False:"),
        "test_a_changed_model_is_noticed_and_the_stage_named",
    ),
    of(
        "a-change-is-noticed-once",
        (
            '            raise RuntimeError(f"the frozen LM changed',
            '            self._checksum = checksum(self.model)\n            raise RuntimeError(f"the frozen LM changed',
        ),
        "test_a_changed_model_stays_changed",
    ),
    of(
        "a-change-without-its-stage",
        ('f"the frozen LM changed during {after}: {', 'f"the frozen LM changed: {'),
        "test_a_changed_model_is_noticed_and_the_stage_named",
    ),
    of(
        "a-change-is-an-assertion",
        ('raise RuntimeError(f"the frozen LM changed', 'raise AssertionError(f"the frozen LM changed'),
        "test_a_changed_model_is_noticed_and_the_stage_named",
    ),
    of(
        "gradients-are-not-looked-for",
        ("if any(p.requires_grad for p in self.model.parameters()):", "if False:"),
        "test_a_model_set_free_is_noticed",
    ),
    of(
        "only-a-whole-model-set-free-is-noticed",
        ("if any(p.requires_grad for", "if all(p.requires_grad for"),
        "test_a_model_set_free_is_noticed",
    ),
    of(
        "a-model-set-free-without-its-stage",
        ('f"after {after} the frozen LM has', 'f"the frozen LM has'),
        "test_a_model_set_free_is_noticed",
    ),
    of("not-frozen", ("model.eval().requires_grad_(False)", "model"), "test_no_gradient_and_no_training_mode"),
    of(
        "the-sampler-that-was-given-does-not-answer",
        ("completions = self.sampler(", "completions = generate("),
        "test_another_sampler_gets_the_same_arguments",
    ),
    of(
        "cut-counted-as-finished",
        ("not c.finished, c.tokens", "c.finished, c.tokens"),
        "test_texts_in_answers_out_and_the_truncated_ones_marked",
    ),
    of(
        "a-truncated-answer-is-a-plain-text",
        ("        if self.truncated:\n", "        if False:\n"),
        "test_reward.py::test_a_truncated_answer_is_read_at_its_last_token_without_an_eos",
    ),
)
