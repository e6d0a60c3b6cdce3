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
        "weights/chat.py",
        "system-prompt-lost",
        ("tokenizer.with_system(system)", "tokenizer"),
        "test_checkpoint.py::test_the_system_prompt_comes_back",
    ),
)
