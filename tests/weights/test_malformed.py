"""Broken models, tokenizers and JSONL files: each is read as it is or refused in one line that names its place."""

import json
import random
import shutil
import struct
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_chat import published

from alignpro_mini.jsonl import LONGEST_LINE, read_checked
from alignpro_mini.options import UserError
from alignpro_mini.weights.pretrained import load_pretrained

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return published("headers", tmp_path_factory.mktemp("whole") / "m")


def refusal(read, place: Path) -> str | None:
    """The one line of a refusal; None when it was read. Any other exception fails the test."""
    try:
        read()
    except (UserError, OSError) as error:
        message = str(error)
        assert "\n" not in message and str(place) in message, message
        return message
    return None


def loaded(folder: Path):
    model, tokenizer = load_pretrained(folder)
    return model, tokenizer and tokenizer.chat("hello")


def damaged(data: bytes, kind: str, draw: random.Random) -> bytes:
    """The bytes of a file after one accident."""
    at = draw.randrange(len(data))
    if kind == "truncated":
        return data[:at]
    if kind == "flipped":
        return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
    if kind == "zeros":
        return data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]
    if kind == "invalid UTF-8":
        return data[:at] + b"\xff\xfe" + data[at:]
    return data[:at] + data[at // 2 :]  # a part twice


def test_accidents_to_a_folder(whole, tmp_path):
    """200 accidents: most are refused; a flipped bit in a weight or a text cannot be seen."""
    draw, refused = random.Random(0), 0
    for i in range(200):
        folder = tmp_path / "m"
        shutil.copytree(whole, folder)
        file = folder / FILES[i % len(FILES)]
        kind = ("truncated", "flipped", "zeros", "invalid UTF-8", "twice")[i // len(FILES) % 5]
        file.write_bytes(damaged(file.read_bytes(), kind, draw))
        refused += refusal(partial(loaded, folder), folder) is not None
        shutil.rmtree(folder)
    assert refused >= 120, refused


def test_accidents_to_a_jsonl_file(tmp_path):
    rows = [{"prompt": f"What is {i}?", "chosen": "ü" * 20, "rejected": "no"} for i in range(20)]
    data, draw, refused = "\n".join(map(json.dumps, rows)).encode(), random.Random(1), 0
    file = tmp_path / "p.jsonl"
    for i in range(100):
        file.write_bytes(damaged(data, ("truncated", "flipped", "zeros", "invalid UTF-8", "twice")[i % 5], draw))
        refused += refusal(lambda: list(read_checked(file, ("prompt", "chosen", "rejected"))), file) is not None
    assert refused >= 60, refused


@pytest.mark.parametrize("value", [None, "", "x", -1, 0, 1.5, True, [], {}, 10**9, "9" * 5000])
@pytest.mark.parametrize(
    "key",
    "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim max_position_embeddings"
    " rope_theta rms_norm_eps tie_word_embeddings rope_scaling model_type torch_dtype".split(),
)
def test_odd_values_in_a_config(whole, tmp_path, key, value):
    folder = Path(shutil.copytree(whole, tmp_path / "m"))
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {key: value}))
    refusal(lambda: loaded(folder), folder)


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"vocab_size": 3, "vocab_size": 4}', "key 'vocab_size' comes twice"),
        ("[1]", "holds a list"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"model_type": "llama", "x": ' + '{"a":' * 100_000, "not JSON"),
    ],
)
def test_a_config_that_is_no_object(whole, tmp_path, text, said):
    folder = Path(shutil.copytree(whole, tmp_path / "m"))
    for name in ("config.json", "tokenizer_config.json"):
        before = (folder / name).read_text()
        (folder / name).write_text(text)
        assert said in refusal(partial(loaded, folder), folder / name)
        (folder / name).write_text(before)


@pytest.mark.parametrize("shard", ["../m/model.safetensors", "/etc/passwd", "", ".", "..", None, 3, "gone.safetensors"])
def test_a_shard_index_that_names_no_file_of_the_folder(whole, tmp_path, shard):
    folder = Path(shutil.copytree(whole, tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, tmp_path / "elsewhere.safetensors", {"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, shard)}))
    assert refusal(lambda: loaded(folder), folder)


@pytest.mark.parametrize("length", [0, 7, 2**20, 2**40, 2**63])
def test_a_header_that_lies_about_its_length(whole, tmp_path, length):
    folder = Path(shutil.copytree(whole, tmp_path / "m"))
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    assert refusal(lambda: loaded(folder), file)


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"prompt": "a", "prompt": "b"}', "key 'prompt' comes twice"),
        (b'{"prompt": "' + b"x" * LONGEST_LINE + b'"}', "a line of more than 16 MiB"),
        (b"[" * 100_000, "not JSON"),
        (b'{"prompt": 3}', "field 'prompt' is 3"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b"null", "a NoneType"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    message = refusal(lambda: list(read_checked(file, ("prompt",))), file)
    assert said in message and f"{file}:2" in message
