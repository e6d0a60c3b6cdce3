"""Known mistakes of weights/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "weights/pretrained.py",
        "rotary-rows-the-wrong-way-back",
        ("where), (2, -1))", "where), (-1, 2))"),
        "test_smollm2.py::test_a_files_rows_become_the_models_rows",
    ),
    mutant(
        "weights/pretrained.py",
        "rotary-rows-as-published",
        (".flatten(0, 2) if heads else rows", ".flatten(0, 2) if False else rows"),
        "test_transformer.py::test_logits_equal_those_of_transformers[llama]",
    ),
    mutant(
        "weights/pretrained.py",
        "a-saved-model-is-overwritten",
        ("    check_new(directory)\n", ""),
        "test_a_folder_that_holds_files_is_not_overwritten",
    ),
    mutant(
        "weights/chat.py",
        "system-prompt-lost",
        ("tokenizer.with_system(system)", "tokenizer"),
        "test_checkpoint.py::test_the_system_prompt_comes_back",
    ),
    mutant(
        "weights/chat.py",
        "control-tokens-as-text",
        ("[[self._special[part]] if part in self._special else self._encode(part)", "[self._encode(part)"),
        "test_chat.py::test_chatml_by_its_template",
    ),
    mutant(
        "weights/chat.py",
        "the-end-of-a-text-ends-an-answer",
        ("template, template.end or end)", "template, end)"),
        ('end = names.get("eos_token", "")\n    if', 'end = "<|end_of_text|>"\n    if'),
        "test_chat.py::test_headers_by_their_template",
    ),
    mutant(
        "weights/tensors.py",
        "json-written-in-place",
        ('beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")', "beside = path"),
        "test_run.py::test_write_json_killed_before_the_rename_keeps_the_old_file",
    ),
    mutant(
        "weights/tensors.py",
        "one-temporary-name-for-all",
        ('f".{path.name}.{os.getpid()}.tmp"', 'f".{path.name}.tmp"'),
        "test_regressions.py::test_two_processes_may_write_one_file",
    ),
)
