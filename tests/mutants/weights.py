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
        ("backend, system if isinstance(system, str) else None,", "backend, None,"),
        "test_checkpoint.py::test_the_system_prompt_comes_back",
    ),
    mutant(
        "weights/vocabulary.py",
        "control-tokens-as-text",
        ("parts += [text[at:start], self.names[i]]", "parts += [text[at:start], written]"),
        "test_chat.py::test_chatml_by_its_template",
    ),
    mutant(
        "weights/chat.py",
        "the-templates-end-is-not-followed",
        ("ends = [shape.end, ", "ends = ["),
        "test_vocabulary.py::test_an_answer_ends_at_each_of_its_ends",
    ),
    mutant(
        "weights/vocabulary.py",
        "generation-config-unread",
        ("(folder / GENERATION, folder / CONFIG)", "(folder / CONFIG,)"),
        "test_vocabulary.py::test_an_answer_ends_at_each_of_its_ends",
    ),
    mutant(
        "weights/vocabulary.py",
        "only-special-tokens-are-control-tokens",
        ("token.special or MARKUP.fullmatch(token.content) or i in written", "token.special"),
        "test_vocabulary.py::test_no_words_become_control_tokens",
    ),
    mutant(
        "weights/vocabulary.py",
        "a-control-token-is-spelled-from-its-parts",
        ("if not names.keys() & made(pair)", "if not names.keys() & {*pair}"),
        "test_vocabulary.py::test_a_control_token_of_the_vocabulary_is_not_spelled_from_parts",
    ),
    mutant(
        "weights/vocabulary.py",
        "a-hole-is-filled",
        ("    _check_ids(file, backend, raw)\n", ""),
        "test_vocabulary.py::test_holes_in_the_ids",
    ),
    mutant(
        "weights/template.py",
        "an-ignored-system-message-is-lost",
        ("if system and strip_system is None:", "if False:"),
        "test_template.py::test_a_system_message_without_a_place_goes_before_the_request",
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
