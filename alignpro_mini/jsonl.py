"""JSONL, one JSON object in a line: our own logs, which a kill may cut, and a user's files.

`user_text` says what a text of a user may hold. Every file of a user is read by it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignpro_mini.options import UserError, one_line, unique

LONGEST_LINE = 16 << 20  # bytes of a line in a user's file
NO_TEXT = re.compile(
    r"[\0\ud800-\udfff]"
)  # NUL; a lone surrogate: one half of a character in UTF-16


def jsonl(rows: Sequence[dict]) -> str:
    """The rows as text, a line each."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def append_jsonl(path: Path, rows: Sequence[dict]) -> None:
    """Add rows to a log, on lines of their own also after one that a kill left incomplete."""
    with path.open("a+b") as out:  # what is written goes to the end, wherever was read
        length = out.seek(0, os.SEEK_END)
        out.seek(max(0, length - 1))
        incomplete = out.read(1) not in (b"", b"\n")
        out.write(("\n" * incomplete + jsonl(rows)).encode())


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a log (none without a file); a line that a kill left incomplete is dropped."""
    rows = []
    # Lines of bytes: those of a str also end at U+2028 or U+0085, which a model may write.
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:  # no JSON, or no UTF-8: a kill can end a line inside a character
            continue
    return rows


def user_text(text: str, where: str) -> str:
    """A text as it is used: its lines end as on Linux, and no byte order mark is around it.

    Raises UserError, beginning with `where`, for what no tokenizer and no UTF-8 file can hold.
    """
    if found := NO_TEXT.search(text):
        problem = f"{found[0]!a} is no whole character"
        raise UserError(f"{where}: {problem}; write this text again, and save it as UTF-8")
    return text.strip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """The lines of a user's text file with where each stands, "file:line"; empty ones are left out.

    Raises OSError for a file that cannot be opened, and UserError as `user_text` does.
    """
    for line, where in _numbered_lines(Path(path)):
        if line.strip():
            yield line.strip(), where


def read_checked(path: str | Path, fields: Sequence[str]) -> Iterator[tuple[dict, str]]:
    """The rows of a user's file (`.gz` too) with where each stands, "file:line".

    Raises FileNotFoundError for a missing file, and UserError naming file and line for a line that
    is no JSON object, or lacks one of the `fields` as a text that is not empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a .jsonl or .jsonl.gz file")
    for line, where in _numbered_lines(path):
        if line.strip():
            yield _checked(line, fields, where), where


def _numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Read as bytes: a text file is decoded by the block, and its error names no line."""
    opener = gzip.open if path.suffix == ".gz" else open
    number = 1
    try:
        with opener(path, "rb") as file:
            while line := file.readline(LONGEST_LINE + 1):
                where = f"{path}:{number}"
                if len(line) > LONGEST_LINE:
                    problem = f"a line of more than {LONGEST_LINE >> 20} MiB"
                    hint = "is this JSONL, with one object in each line?"
                    raise UserError(f"{where}: {problem}; {hint}")
                yield user_text(line.decode("utf-8"), where), where
                number += 1
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        hint = "is it UTF-8 text, or a whole .gz?"
        raise UserError(f"{path}:{number}: cannot be read ({error}); {hint}") from None


def _checked(line: str, fields: Sequence[str], where: str) -> dict:
    """The object of one line. Raises UserError, beginning with `where`, if it does not fit."""
    try:
        row = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({one_line(error)})") from None
    needed = ", ".join(fields)
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__}, not an object with {needed}")
    for field in fields:
        value = row.get(field)
        text = user_text(value, f"{where}: field {field!r}") if isinstance(value, str) else ""
        if not text.strip():
            problem = f"is {value!r:.40}, not a text" if field in row else "is missing"
            raise UserError(f"{where}: field {field!r} {problem}; each line needs {needed}")
        row[field] = text
    return row
