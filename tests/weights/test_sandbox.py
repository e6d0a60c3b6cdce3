"""Folders that would hang, or take all memory: one line, soon."""

import json
from pathlib import Path

import pytest
from published import bytes_of, write
from tokenizers import Tokenizer as Backend

from alignpro_mini.options import UserError
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.weights import sandbox
from alignpro_mini.weights.chat import load_tokenizer

TEMPLATE = "%s{% for m in messages %}{{ m.content }}{% endfor %}"
SAID = "needs more than 1 s of computing or 2 GiB of memory"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 1)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as told:
        load_tokenizer(folder)
    message = str(told.value)
    assert "\n" not in message and str(folder) in message
    return message


@pytest.mark.parametrize(
    "template, said",
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", SAID),
        ("{{ (10 ** 100000000) % 7 }}", SAID),
        ("{% set x = 'a' * 3000000000 %}", "fails (MemoryError)"),
        ("{{ '%9999999999d' % 1 }}", "fails (MemoryError)"),
        ("{{ 'a' * 2000000 }}", "writes more than 1 MiB"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails (maximum recursion"),
        ("{{ 5 | wordwrap }}", "fails ("),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "fails"),
        ("{% include '/etc/passwd' %}", "fails ("),
        ("{{ ''.__class__.__mro__ }}", "fails ("),
    ],
)
def test_a_template_that_does_not_end(tmp_path, template, said):
    settings = {"eos_token": "<e>", "chat_template": TEMPLATE.replace("%s", template)}
    message = refusal(write(tmp_path / "m", bytes_of(["<e>"]), settings))
    assert "the chat template" in message and (said in message or SAID in message)


def replaced(by: str, times: int) -> dict:
    one = {"type": "Replace", "pattern": {"String": "e"}, "content": by}
    return {"normalizer": {"type": "Sequence", "normalizers": [one] * times}}


@pytest.mark.parametrize(
    "change, said",
    [
        (replaced("e" * 2000, 3), "the vocabulary needs more than"),
        (replaced("ee", 30), "the vocabulary needs more than"),
        (replaced("e" * 1000, 1), "its rules make a text more than 64 times as long"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}}, "retry-limit"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "precompiled_charsmap"),
        ({"model": {"type": "Unigram", "unk_id": 99, "vocab": [["<e>", 0.0]]}}, "UnkIdNotInVocabulary"),
    ],
)
def test_a_vocabulary_that_does_not_end(tmp_path, change, said, capfd):
    folder = write(tmp_path / "m", bytes_of(["<e>"]), {"eos_token": "<e>"})
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert said in refusal(folder)
    assert capfd.readouterr().err == "", "the library's own complaint is kept apart"


def test_a_panic_of_the_library_is_one_line(tmp_path):
    file = tmp_path / "tokenizer.json"
    change = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    file.write_text(json.dumps(json.loads(bytes_of(["<e>"]).to_str()) | change))
    with pytest.raises(UserError, match="tokenizer.json: not a usable tokenizer.json .Precompiled"):
        Tokenizer.load(file)


def test_a_truncation_in_the_file_does_not_reach_a_prompt(tmp_path):
    folder = write(tmp_path / "m", bytes_of(["<e>"]), {"eos_token": "<e>"})
    made = Backend.from_file(str(folder / "tokenizer.json"))
    made.enable_truncation(2)
    made.enable_padding(length=7)
    made.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.chat("tell me about the sea")) == "tell me about the sea\n\n"
