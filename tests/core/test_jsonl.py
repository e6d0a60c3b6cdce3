"""JSONL: logs that a kill may have cut, and a user's files, whose bad lines are told by file and line."""

import gzip
import json
import random

import pytest

from alignpro_mini.jsonl import append_jsonl, read_checked, read_jsonl, read_lines, user_text
from alignpro_mini.options import UserError


def write(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- logs


def test_a_cut_last_line_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    whole = '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    for cut, count in [(0, 3), (1, 3), (2, 2), (len('{"step": 3}\n') - 1, 2), (len('{"step": 3}\n'), 2)]:
        path.write_text(whole[: len(whole) - cut])
        assert [r["step"] for r in read_jsonl(path)] == [1, 2, 3][:count]
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_a_line_cut_inside_a_character_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes('{"y": "a"}\n{"y": "é'.encode()[:-1])
    assert read_jsonl(path) == [{"y": "a"}]


def test_a_row_after_one_that_a_kill_cut_is_not_lost(tmp_path):
    file = tmp_path / "a.jsonl"
    append_jsonl(file, [{"i": 0}, {"i": 1}])
    file.write_bytes(file.read_bytes()[:-4])
    append_jsonl(file, [{"i": 2, "text": "\u2028 ü"}])
    append_jsonl(file, [])
    assert read_jsonl(file) == [{"i": 0}, {"i": 2, "text": "\u2028 ü"}]


# ---------------------------------------------------------------- files of a user


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_rows_come_with_where_they_stand(tmp_path, name):
    path = write(tmp_path / name, [{"prompt": "One é 日本", "more": 1}, "", {"prompt": "Two\u2028lines"}])
    assert list(read_checked(path, ("prompt",))) == [
        ({"prompt": "One é 日本", "more": 1}, f"{path}:1"),
        ({"prompt": "Two\u2028lines"}, f"{path}:3"),
    ]


def test_windows_line_ends_and_a_missing_last_newline(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "a"}\r\n{"prompt": "b"}')
    assert [(row["prompt"], where) for row, where in read_checked(path, ("prompt",))] == [
        ("a", f"{path}:1"),
        ("b", f"{path}:2"),
    ]


GOOD = {"prompt": "fine", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ('{"prompt": "cut', "not JSON"),
        ("prompt: x", "not JSON"),
        ('["prompt"]', "a list, not an object"),
        ('"prompt"', "a str, not an object"),
        ("null", "not an object"),
        ({"prompt": "x", "chosen": "a"}, "'rejected' is missing"),
        ({"prompt": "x", "chosen": 3, "rejected": "b"}, "'chosen' is 3, not a text"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt' is None"),
        ({"prompt": ["x"], "chosen": "a", "rejected": "b"}, "'prompt' is"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "'prompt' is ''"),
        ({"prompt": " \n\t", "chosen": "a", "rejected": "b"}, "'prompt' is"),
    ],
)
def test_a_bad_line_is_told_by_file_and_line(tmp_path, bad, told, suffix):
    path = write(tmp_path / f"prefs.jsonl{suffix}", [GOOD, "", GOOD, bad, GOOD])
    with pytest.raises(ValueError) as error:
        list(read_checked(path, ("prompt", "chosen", "rejected")))
    assert str(error.value).startswith(f"{path}:4: ") and told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("before", [0, 3, 2000])
def test_bytes_that_are_not_utf8_are_told_by_file_and_line(tmp_path, suffix, before):
    path = tmp_path / f"latin.jsonl{suffix}"
    raw = b'{"prompt": "fine"}\n' * before + '{"prompt": "café"}\n'.encode("latin-1") + b'{"prompt": "fine"}\n' * 3
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    with pytest.raises(ValueError, match="UTF-8") as error:
        list(read_checked(path, ("prompt",)))
    assert str(error.value).startswith(f"{path}:{before + 1}: ")


def test_a_truncated_gz_is_told(tmp_path):
    rng = random.Random(0)  # not compressible, so that half the bytes are about half the lines
    raw = "".join(f'{{"prompt": "{rng.getrandbits(200):x}"}}\n' for _ in range(4000)).encode()
    path = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress(raw)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz:\d+: cannot be read.*whole \.gz"):
        list(read_checked(path, ("prompt",)))


def test_a_corrupt_or_mislabelled_gz_is_told(tmp_path):
    path = tmp_path / "plain.jsonl.gz"
    path.write_text('{"prompt": "I am not compressed"}\n')
    with pytest.raises(ValueError, match=r"plain\.jsonl\.gz:1: cannot be read"):
        list(read_checked(path, ("prompt",)))
    rng = random.Random(0)
    whole = bytearray(
        gzip.compress("".join(f'{{"prompt": "{rng.getrandbits(200):x}"}}\n' for _ in range(4000)).encode())
    )
    whole[len(whole) // 2 : len(whole) // 2 + 200] = bytes(200)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"plain\.jsonl\.gz:\d+: "):
        list(read_checked(path, ("prompt",)))


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file; give a .jsonl"):
            list(read_checked(path, ("prompt",)))


# ---------------------------------------------------------------- what a text may hold (reports of other projects)

MARK = b"\xef\xbb\xbf"  # Notepad and PowerShell 5 write it (microsoft/promptflow #4172, mkdocstrings/griffe #386)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_is_no_part_of_a_file_nor_of_a_text(tmp_path, suffix):
    path = tmp_path / f"p.jsonl{suffix}"
    raw = (
        MARK + b'{"prompt": "a"}\n' + MARK + b'{"prompt": "\\ufeffb"}\n' + b'{"prompt": "c\xe2\x80\xa8d"}'
    )  # c U+2028 d
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    assert [row["prompt"] for row, _ in read_checked(path, ("prompt",))] == ["a", "b", "c\u2028d"]
    path.write_bytes(gzip.compress(MARK + b"\n") if suffix else MARK + b"\n")
    assert list(read_lines(path)) == []
    path.write_text('{"prompt": "\\ufeff"}')
    if not suffix:
        with pytest.raises(UserError, match="p.jsonl:1: field 'prompt' is .*, not a text"):
            list(read_checked(path, ("prompt",)))


def test_the_lines_of_a_text_file(tmp_path):
    path = tmp_path / "requests.txt"
    path.write_bytes(MARK + "One é\r\n\r\n  Two\u2028lines \n\x0bThree".encode())
    assert list(read_lines(path)) == [("One é", f"{path}:1"), ("Two\u2028lines", f"{path}:3"), ("Three", f"{path}:4")]
    with pytest.raises(FileNotFoundError):
        list(read_lines(tmp_path / "none.txt"))


@pytest.mark.parametrize("half", ["\\ud83d", "\\udcb2 more", "\\ude00\\ud83d", "\\u0000"])
def test_half_a_character_and_a_nul_are_refused_where_they_stand(tmp_path, half):
    """Of an emoji that UTF-16 programs cut: openai/tiktoken #82, huggingface/transformers #8886."""
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "fine \\ud83d\\ude00"}}\n{{"other": "{half}", "prompt": "Why {half}?"}}\n')
    rows = read_checked(path, ("prompt",))
    assert next(rows)[0]["prompt"] == "fine \U0001f600"
    with pytest.raises(UserError) as error:
        next(rows)
    assert str(error.value).startswith(f"{path}:2: field 'prompt': '\\") and "save it as UTF-8" in str(error.value)
    assert str(error.value).isascii() and "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused_in_the_first_line(tmp_path, encoding):
    path = tmp_path / "p.jsonl"  # what `>` of PowerShell 5 writes
    path.write_bytes('{"prompt": "What is up?"}\r\n'.encode(encoding))
    for read in (lambda: read_checked(path, ("prompt",)), lambda: read_lines(path)):
        with pytest.raises(UserError, match=r"p\.jsonl:1: .*UTF-8"):
            list(read())


def test_line_ends_of_windows_and_of_old_macs_are_those_of_linux(tmp_path):
    assert user_text("\ufeffa\r\nb\rc\n\r\nd\u2028e\ufeff", "x") == "a\nb\nc\n\nd\u2028e"
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\\r\\nb", "chosen": "c\\r\\n", "more": "d\\r\\n"}')
    ((row, _),) = read_checked(path, ("prompt", "chosen"))
    assert row == {"prompt": "a\nb", "chosen": "c\n", "more": "d\r\n"}
