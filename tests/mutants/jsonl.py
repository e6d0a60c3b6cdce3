"""Known mistakes of jsonl.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "jsonl.py",
        "odd-line-breaks-cut-the-log",
        ("path.read_bytes().splitlines()", "path.read_text().splitlines()"),
        "test_run.py::test_a_text_with_odd_line_breaks_is_one_row",
    ),
    mutant(
        "jsonl.py",
        "a-cut-line-swallows-the-next",
        ('("\\n" * incomplete + jsonl(rows))', "jsonl(rows)"),
        "test_a_row_after_one_that_a_kill_cut_is_not_lost",
    ),
    mutant(
        "jsonl.py",
        "a-key-that-comes-twice",
        ("json.loads(line, object_pairs_hook=unique)", "json.loads(line)"),
        "test_malformed.py::test_a_bad_line_is_named",
    ),
    mutant(
        "jsonl.py",
        "a-byte-order-mark-is-a-word",
        ('.strip("\\ufeff")', ""),
        "test_a_byte_order_mark_is_no_part_of_a_file_nor_of_a_text",
    ),
    mutant(
        "jsonl.py",
        "half-a-character-reaches-the-tokenizer",
        ("if found := NO_TEXT.search(text):", "if found := None:"),
        "test_half_a_character_and_a_nul_are_refused_where_they_stand",
    ),
)
