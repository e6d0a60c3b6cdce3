"""Checkpoints against those that `transformers` wrote (tests/fixtures), bad input, kills half-way; the tokenizer."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.weights import pretrained as checkpoint
from alignpro_mini.weights import tensors
from alignpro_mini.weights.chat import PublishedTokenizer
from alignpro_mini.weights.pretrained import load_pretrained, save_pretrained
from alignpro_mini.weights.smollm2 import build_tokenizer
from alignpro_mini.weights.template import SMOLLM2_SYSTEM
from alignpro_mini.weights.tensors import load_state, save_state

FIXTURES = Path(__file__).parents[1] / "fixtures"
FAMILIES = ("gpt2", "llama", "qwen2", "llama3", "qwen3", "qwen2_untied", "smollm2")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
IDS = torch.tensor([[1, 5, 2, 60, 7]])


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the Llama fixture that a test may change."""
    return Path(shutil.copytree(FIXTURES / "llama", tmp_path / "llama"))


def published(folder: Path) -> dict[str, torch.Tensor]:
    return {name.removeprefix("transformer."): t for name, t in load_file(folder / "model.safetensors").items()}


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_pretrained(folder)[0](IDS)


def refusal(folder: Path, kind: type[Exception] = ValueError) -> str:
    """The message of the refusal to load, which must be one line and name a place inside the folder."""
    with pytest.raises(kind) as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message, message
    return message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_a_model_is_not_left_out_in_silence(folder, name):
    (folder / name).write_text("{}")
    assert f"{name}: an adapter beside a model" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("part", ["self_attn.q_proj", "mlp.down_proj", "input_layernorm"])
def test_a_part_in_eight_bits(folder, dtype, part):
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.0.{part}.weight"
    save_file(tensors | {name: tensors[name].to(dtype)}, folder / "model.safetensors", {"format": "pt"})
    assert f"tensor {name!r} holds {dtype}; use the weights that are not quantised" in refusal(folder)


def set_config(folder: Path, **changes) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))


def set_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


# ---------------------------------------------------------------- folders: there and back


def test_saving_writes_what_transformers_wrote(family, tmp_path):
    model, tokenizer = load_pretrained(FIXTURES / family)
    assert tokenizer is None and not model.training
    save_pretrained(model, tmp_path / "new" / "deep")
    ours, theirs = published(tmp_path / "new" / "deep"), published(FIXTURES / family)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    folders = (tmp_path / "new" / "deep", FIXTURES / family)
    config, their_config = (json.loads((folder / "config.json").read_text()) for folder in folders)
    rope = their_config.pop("rope_parameters", {})
    their_config |= {"rope_theta": rope.pop("rope_theta", None), "rope_scaling": rope}
    new = {"torch_dtype", "attn_pdrop", "embd_pdrop", "resid_pdrop"}  # the old name of dtype; we have no dropout
    assert {key: value for key, value in config.items() if key not in new} == {
        key: their_config[key] for key in config if key not in new
    }
    assert sorted(p.name for p in (tmp_path / "new/deep").iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(logits(tmp_path / "new" / "deep"), logits(FIXTURES / family)), "and it loads back"


def test_round_trip_keeps_config_weights_tokenizer_and_random_state(family, tmp_path):
    model, _ = load_pretrained(FIXTURES / family)
    tokenizer = Tokenizer.train(["a cat sat"], 300)
    bigger = Transformer(TransformerConfig(300, d_model=16, n_layers=2, n_heads=4, family=model.config.family))
    save_pretrained(bigger, tmp_path, tokenizer)
    state = torch.get_rng_state()
    again, its_tokenizer = load_pretrained(tmp_path)
    assert torch.equal(state, torch.get_rng_state()), "loading must not draw from the global generator"
    assert again.config == bigger.config
    assert its_tokenizer.encode("a cat") == tokenizer.encode("a cat")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), bigger.parameters(), strict=True))
    assert all(p.requires_grad for p in again.parameters())
    raw = json.loads((tmp_path / "config.json").read_text())
    assert (raw["eos_token_id"], raw["pad_token_id"], raw["bos_token_id"]) == (3, 0, None)


def test_the_system_prompt_comes_back(tmp_path):
    """A prompter trained with a system prompt of its own must get the same one when it is used."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    plain = build_tokenizer(words, [], [3] * 3 + [1] * 256)
    told = plain.with_system("Rewrite it.")
    lm = Transformer(TransformerConfig(vocab_size=len(words), d_model=16, n_layers=1, n_heads=2), torch.Generator())
    save_pretrained(lm, tmp_path / "told", told)
    assert load_pretrained(tmp_path / "told")[1].chat("x") == told.chat("x") != plain.chat("x")
    save_pretrained(lm, tmp_path / "plain", plain)
    assert load_pretrained(tmp_path / "plain")[1].chat("x") == plain.chat("x")


def test_tying_is_kept(tmp_path):
    for tied in (True, False):
        save_pretrained(Transformer(TransformerConfig(61, d_model=16, tied=tied)), tmp_path / str(tied))
        model, _ = load_pretrained(tmp_path / str(tied))
        assert model.config.tied is tied and (model.unembed.weight is model.embed.weight) is tied
        assert ("lm_head.weight" in published(tmp_path / str(tied))) is not tied


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_shared_matrix_may_have_either_name(family, tmp_path):
    """huggingface/transformers #38870: safetensors keeps one of the names, as it comes."""
    shutil.copytree(FIXTURES / family, tmp_path, dirs_exist_ok=True)
    set_config(tmp_path, tie_word_embeddings=True)
    both = published(tmp_path)
    name = next(name for name in both if name.endswith(("wte.weight", "embed_tokens.weight")))
    both.pop("lm_head.weight", None)
    save_file(both, tmp_path / "model.safetensors")
    expected = logits(tmp_path)
    both["lm_head.weight"] = both.pop(name)
    save_file(both, tmp_path / "model.safetensors")
    assert torch.equal(logits(tmp_path), expected)


def test_gpt2_loads_with_and_without_prefix_and_with_old_buffers(tmp_path):
    expected = logits(FIXTURES / "gpt2")
    shutil.copytree(FIXTURES / "gpt2", tmp_path, dirs_exist_ok=True)
    bare = published(tmp_path) | {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(bare, tmp_path / "model.safetensors")
    assert torch.equal(logits(tmp_path), expected)
    save_file({f"transformer.{name}": t for name, t in bare.items()}, tmp_path / "model.safetensors")
    assert torch.equal(logits(tmp_path), expected)


def test_old_style_config_means_the_same(folder):
    expected = logits(folder)
    set_config(folder, rope_parameters=None, rope_theta=500.0, rope_scaling=None, head_dim=None, dtype=None)
    assert torch.equal(logits(folder), expected)
    set_config(folder, rope_theta=10_000)
    assert not torch.equal(logits(folder), expected), "the test would see a theta that is not read"


def test_published_defaults_stand_for_missing_keys(folder):
    raw = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "tie_word_embeddings", "rms_norm_eps", "hidden_act"):
        del raw[key]
    (folder / "config.json").write_text(json.dumps(raw))
    config = load_pretrained(folder)[0].config
    assert (config.rope_theta, config.tied, config.norm_eps) == (10_000.0, False, 1e-6)


def test_a_sharded_checkpoint_loads(family, tmp_path):
    folder = Path(shutil.copytree(FIXTURES / family, tmp_path / family))
    expected, tensors = logits(folder), load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, its in shards.items():
        save_file({name: tensors[name] for name in its}, folder / file)
    index = {"weight_map": {name: file for file, its in shards.items() for name in its}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(logits(folder), expected)
    (folder / "b.safetensors").unlink()
    assert "b.safetensors" in refusal(folder, FileNotFoundError)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in refusal(folder)


def test_weights_of_another_dtype_are_converted(folder, tmp_path):
    model, _ = load_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    folder = tmp_path / "in bfloat16"
    save_pretrained(model, folder)
    assert {t.dtype for t in published(folder).values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again, _ = load_pretrained(folder)
    assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_a_loaded_model_does_not_hang_on_its_file(folder):
    model, _ = load_pretrained(folder)
    before = model.embed.weight.clone()
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(b"\0" * size)  # in place: no rename, the same inode
    assert torch.equal(model.embed.weight, before)


# ---------------------------------------------------------------- folders: bad input


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "model.safetensors: not a whole safetensors file" in refusal(folder)


def test_missing_unknown_and_misshapen_tensors(folder):
    q = "model.layers.1.self_attn.q_proj.weight"
    set_weights(folder, lambda t: t.update({q: t[q][:8].clone()}))
    assert f"{q!r} has shape (8, 16), config.json asks for (16, 16)" in refusal(folder)
    set_weights(folder, lambda t: t.pop(q))
    assert f"{q!r} is missing" in refusal(folder)
    set_weights(folder, lambda t: t.update({q: torch.zeros(16, 16, dtype=torch.int8)}))
    assert f"{q!r} holds torch.int8" in refusal(folder)
    set_weights(folder, lambda t: t.update({q: torch.full((16, 16), torch.nan)}))
    assert f"{q!r} is not finite" in refusal(folder)
    set_weights(folder, lambda t: t.update({q: torch.zeros(16, 16), "extra.weight": torch.zeros(1)}))
    assert "'extra.weight' is unknown" in refusal(folder)


def test_a_config_of_another_model(folder):
    set_config(folder, num_hidden_layers=1)
    assert "model.layers.1" in refusal(folder)
    set_config(folder, num_hidden_layers=3)
    assert "'model.layers.2" in refusal(folder)
    set_config(folder, num_hidden_layers=2, model_type="qwen2")
    assert "q_proj.bias' is missing" in refusal(folder)


def test_a_tied_checkpoint_with_two_matrices(folder):
    set_config(folder, tie_word_embeddings=True)
    assert "lm_head.weight is not the embedding" in refusal(folder)
    set_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    model, _ = load_pretrained(folder)
    assert model.unembed.weight is model.embed.weight


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(model_type="mamba"), "model_type is 'mamba'; use a model of one of gpt2, llama, qwen2"),
        (dict(model_type=None), "gpt2, llama, qwen2"),
        (dict(hidden_size=None), "hidden_size is None"),
        (dict(num_hidden_layers="two"), "num_hidden_layers is 'two'"),
        (dict(num_hidden_layers=True), "num_hidden_layers is True"),
        (dict(num_key_value_heads=3), "not a multiple of n_kv_heads 3"),
        (
            dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
            "it needs factor, low_freq_factor, high_freq_factor",
        ),
        (dict(rope_scaling=LLAMA3 | {"low_freq_factor": 0}), "rope_scaling is"),
        (dict(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling"),
        (dict(rope_scaling={"full_attention": {"rope_type": "yarn"}}), "rope_scaling holds others for full_attention"),
        (dict(rope_parameters={"a": {}, "rope_type": "default"}), "rope_scaling holds others for a;"),
        (dict(is_causal=False), "is_causal is False"),
        (dict(rope_parameters={"rope_type": "yarn", "rope_theta": 500.0}), "rope_scaling"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
        (dict(use_sliding_window=True), "use_sliding_window is True, but only False"),
        (dict(layer_types=["full_attention", "sliding_attention"]), "layer_types"),
        (dict(layer_types=3), "layer_types"),
        (dict(layer_types=[["x"]]), "layer_types"),
        (dict(rms_norm_eps=math.nan), "rms_norm_eps is nan"),
        (dict(rms_norm_eps=-1.0), "rms_norm_eps is -1.0"),
        (dict(rope_parameters={"rope_type": "default", "rope_theta": 0}), "rope_theta is 0"),
        (dict(rope_parameters={"rope_type": "default", "rope_theta": math.inf}), "rope_theta is inf"),
        (dict(attention_bias=True), "attention_bias is True"),
        (dict(mlp_bias=True), "mlp_bias is True"),
        (dict(hidden_act="gelu"), "hidden_act is 'gelu', but only 'silu'"),
        (dict(quantization_config={"bits": 4}), "quantization_config"),
        (dict(rope_scaling={"rope_type": "yarn", "attn_factor": 0.87}), "attn_factor"),  # deepseek-ai/DeepSeek-R1 #684
        (dict(tie_word_embeddings="false"), "tie_word_embeddings is 'false', but only True or False"),  # would tie
        (dict(rope_parameters={"rope_theta": "10000"}), "rope_theta is '10000'"),
    ],
)
def test_what_the_config_asks_for_and_we_do_not_have(folder, changes, words):
    set_config(folder, **changes)
    message = refusal(folder)
    assert "config.json" in message and words in message


def test_corrupt_config(folder):
    for text in (b'{"model_type": "llama"', b"\xff\xfe{}", b""):
        (folder / "config.json").write_bytes(text)
        assert "config.json: not JSON" in refusal(folder)
    (folder / "config.json").write_text("[1]")
    assert "holds a list, not an object" in refusal(folder)


def test_missing_files(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: no such file" in refusal(folder, FileNotFoundError)
    (folder / "config.json").unlink()
    assert "config.json: no such file" in refusal(folder, FileNotFoundError)
    assert "no such folder" in refusal(folder / "elsewhere", FileNotFoundError)


def test_a_tokenizer_that_is_not_the_models(folder):
    tokenizer = Tokenizer.train(["a"], 300)
    model, _ = load_pretrained(folder)
    with pytest.raises(ValueError, match="tokenizer has 26. tokens, the model 61"):
        save_pretrained(model, folder, tokenizer)
    tokenizer.save(folder / "tokenizer.json")
    assert "the model 61" in refusal(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: not a usable tokenizer.json" in refusal(folder)


# ---------------------------------------------------------------- kills half-way


class Killed(BaseException):
    """Stands for a kill: no handler of Exception catches it."""


def kill_at(monkeypatch, what: str, call: int) -> None:
    """The `call`-th call (from 0) of `save_file` or `os.replace` raises `Killed` instead of doing its work."""
    owner, name = (checkpoint.os, "replace") if what == "os.replace" else (tensors, what)
    real, calls = getattr(owner, name), []

    def dying(*args):
        calls.append(args)
        if len(calls) > call:
            raise Killed
        return real(*args)

    monkeypatch.setattr(owner, name, dying)


def two_models() -> tuple[Transformer, Transformer]:
    shape = dict(vocab_size=300, d_model=16, n_layers=1, n_heads=2)
    return tuple(
        Transformer(TransformerConfig(**shape, norm_eps=eps), torch.Generator().manual_seed(1)) for eps in (1e-5, 1e-2)
    )


@pytest.mark.parametrize("what", ["save_file", "os.replace"])
def test_a_killed_save_leaves_nothing_that_loads_and_the_next_one_works(tmp_path, monkeypatch, what):
    model, folder = two_models()[0], tmp_path / "model"
    with monkeypatch.context() as patch:
        kill_at(patch, what, 0)
        with pytest.raises(Killed):
            save_pretrained(model, folder, Tokenizer.train(["new new new"], 270))
    refusal(folder, FileNotFoundError)
    [draft] = tmp_path.iterdir()
    draft.rename(tmp_path / ".model.1.tmp")  # as another process would have left it
    save_pretrained(model, folder, Tokenizer.train(["new new new"], 270))
    again, tokenizer = load_pretrained(folder)
    assert torch.equal(again.embed.weight, model.embed.weight) and len(tokenizer.encode("new")) < 3
    assert [p.name for p in tmp_path.iterdir()] == ["model"], "the draft of the killed save is gone"


def test_a_folder_that_holds_files_is_not_overwritten(tmp_path):
    old, new = two_models()
    save_pretrained(old, tmp_path / "model")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("a file")
    for name in ("model", "notes", "file"):
        with pytest.raises(FileExistsError, match=f"{name}: already there; choose a new folder"):
            save_pretrained(new, tmp_path / name)
    assert load_pretrained(tmp_path / "model")[0].config == old.config
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine" and (tmp_path / "file").read_text() == "a file"
    (tmp_path / "empty").mkdir()
    save_pretrained(new, tmp_path / "empty")
    assert load_pretrained(tmp_path / "empty")[0].config == new.config


def test_a_saved_folder_is_there_only_when_it_is_whole(tmp_path, monkeypatch):
    """The folder appears under its name only after the last file is written."""
    seen, write = [], checkpoint.write_tensors
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *a: (write(*a), seen.append((tmp_path / "m").exists()))[0])
    monkeypatch.setattr(Tokenizer, "save", lambda self, path: seen.append((tmp_path / "m").exists()))
    save_pretrained(two_models()[0], tmp_path / "m", Tokenizer.train(["a"], 270))
    assert seen == [False, False] and (tmp_path / "m").exists()


# ---------------------------------------------------------------- training state


@pytest.mark.parametrize("own", [dict(), dict(qkv_bias=True), dict(qk_norm=True)])
def test_heads_of_another_width_come_back(own, tmp_path):
    config = TransformerConfig(31, d_model=24, n_layers=1, n_heads=4, head_dim=8, max_len=8, **own)
    save_pretrained(Transformer(config), tmp_path / "wide")
    assert load_pretrained(tmp_path / "wide")[0].config == config


def test_state_round_trip_of_every_dtype_size_and_layout(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "mask": torch.tensor([True, False]),
        "rng": torch.get_rng_state(),
        "step": torch.tensor(7),
        "empty": torch.zeros(0, 5),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "transposed": base.T,
        "same": base,
        "same again": base,
        "row": base[1],
        "grad": torch.ones(2, requires_grad=True),
    }
    meta = {"step": 7, "text": "naïve ✓", "nested": {"list": [1, 2.5, None, True]}}
    save_state(tmp_path / "new" / "state.safetensors", tensors, meta)
    again, its_meta = load_state(tmp_path / "new" / "state.safetensors")
    assert its_meta == meta and set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype and again[name].shape == tensor.shape
        assert torch.equal(again[name], tensor)
    again["same"].zero_()
    assert torch.equal(again["same again"], base), "what was read shares no memory"
    file = tmp_path / "new" / "state.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert torch.equal(again["same again"], base), "nor does it change with its file"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["state.safetensors"]


def test_state_keeps_the_users_file_mode(tmp_path):
    (tmp_path / "plain").touch()
    save_state(tmp_path / "s", {"a": torch.ones(1)}, {})
    assert (tmp_path / "s").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("what", ["save_file", "os.replace"])
def test_a_killed_state_save_leaves_the_old_one(tmp_path, monkeypatch, what):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.ones(1)}, {"step": 1})
    with monkeypatch.context() as patch:
        kill_at(patch, what, 0)
        with pytest.raises(Killed):
            save_state(path, {"a": torch.zeros(1)}, {"step": 2})
    tensors, meta = load_state(path)
    assert tensors["a"].item() == 1 and meta == {"step": 1}
    save_state(path, {"a": torch.zeros(1)}, {"step": 2})
    assert load_state(path)[1] == {"step": 2} and [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_state_errors(tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_state(path)
    with pytest.raises(ValueError, match="meta is not JSON .*; tensors belong in"):
        save_state(path, {}, {"loss": torch.ones(1)})
    assert not path.exists()
    save_state(path, {"a": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_state(path)
    with pytest.raises(ValueError, match="weights without training state"):
        load_state(FIXTURES / "llama" / "model.safetensors")


def test_every_file_says_that_it_is_pytorchs(tmp_path):
    """`transformers` refuses a safetensors file without this."""
    save_pretrained(two_models()[0], tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as handle:
        assert handle.metadata()["format"] == "pt"


# ---------------------------------------------------------------- tokenizer

CORPUS = ["Tell me about rivers, please. " * 3, "12 + 34 = 46, step by step", "naïve café"]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.train(CORPUS * 5, 320)


@pytest.fixture(scope="module")
def chatml() -> Tokenizer:
    """256 bytes and ChatML's control tokens, made as from a GGUF."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    return build_tokenizer(tokens, [], [3, 3, 3] + [1] * 256)


@pytest.mark.parametrize(
    "text", ["Tell me of rivers", "naïve 你好 🙂 Привет", "  two\n\n\ttabs ", "", " ", "\x00\x7f", "<|end|>", "3.14"]
)
def test_any_text_comes_back(ours, chatml, text):
    assert ours.decode(ours.encode(text)) == text
    assert chatml.decode(chatml.encode(text)) == text


def test_special_text_that_a_user_types_stays_text(ours, chatml, tmp_path):
    ours.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    for tokenizer in (ours, loaded, chatml.with_system(""), PublishedTokenizer(ours.backend, "")):
        for name in ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"):
            ids = tokenizer.encode(f"say {name}{name} now")
            assert tokenizer.backend.token_to_id(name) not in ids
            assert tokenizer.decode(ids) == f"say {name}{name} now"
        turns = 2 if tokenizer.backend is chatml.backend else 0  # ends of turns that `chat` itself writes
        assert tokenizer.chat("<|im_end|>\n<|end|>").count(tokenizer.eos_id) == turns


def test_special_ids_and_sizes(ours, chatml, tmp_path):
    names = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"]
    assert [ours.backend.token_to_id(name) for name in names] == [0, 1, 2, 3]
    assert (ours.pad_id, ours.eos_id) == (0, 3) and 260 < ours.vocab_size <= 320
    assert (chatml.pad_id, chatml.eos_id, chatml.vocab_size) == (2, 2, 259)
    assert ours.decode([1, *ours.encode("hi"), 2, 3, 0, 0]) == "hi"


def test_smollm2_digits_are_tokens_of_their_own():
    """Even where the vocabulary could join them: SmolLM2 was trained on single digits."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|im_end|>", *sorted(ByteLevel.alphabet()), "12", "ab"]
    tokenizer = build_tokenizer(tokens, ["1 2", "a b"], [3] + [1] * 258)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("ab 12,12")] == ["ab", " ", "1", "2", ",", "1", "2"]


def test_training_joins_what_is_frequent():
    tokenizer = Tokenizer.train(["this and that " * 20], 400)
    assert len(tokenizer.encode(" and")) == 1


def test_training_is_deterministic_and_survives_a_file(ours, tmp_path):
    again = Tokenizer.train(iter(CORPUS * 5), 320)
    ours.save(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert Tokenizer.load(tmp_path / "a.json").encode(CORPUS[0]) == ours.encode(CORPUS[0])


def test_our_conversation(ours):
    assert ours.chat("2+2") == [1, *ours.encode("2+2"), 2]
    told = PublishedTokenizer(ours.backend, "Be kind.")
    assert told.chat("2+2") == [1, *ours.encode("Be kind.\n\n2+2"), 2]
    assert PublishedTokenizer(ours.backend).chat("2+2") == ours.chat("2+2")
    prompt, answer = ours.chat_with_answer("2+2", "4")
    assert prompt == ours.chat("2+2") and answer == [*ours.encode("4"), 3]


def test_chatml_conversation(chatml):
    shown = lambda ids: chatml.backend.decode(ids, skip_special_tokens=False)
    assert shown(chatml.with_system("Be kind.").chat("Hi <|im_end|>")) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert shown(chatml.chat("Hi")).startswith(f"<|im_start|>system\n{SMOLLM2_SYSTEM}<|im_end|>\n")
    assert SMOLLM2_SYSTEM == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert chatml.chat("Hi").count(1) == 3 and chatml.chat("Hi").count(2) == 2
    assert chatml.chat_with_answer("Hi", "Ho")[1] == [*chatml.encode("Ho"), 2]


def test_plain_conversation():
    from tokenizers.pre_tokenizers import ByteLevel

    plain = build_tokenizer(["<|endoftext|>", *sorted(ByteLevel.alphabet())], [], [3] + [1] * 256)
    assert plain.decode(plain.chat("Hi")) == "Hi\n\n" and plain.eos_id == plain.pad_id == 0


def test_tokenizer_errors(tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 259; .* need 260"):
        Tokenizer.train(["a"], 259)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"version":')
    with pytest.raises(ValueError, match="tokenizer.json: not a usable"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="none of <|end|>"):
        build_tokenizer(["a"], [], [1])


def test_a_file_with_truncation_and_padding_cuts_nothing(ours, tmp_path):
    ours.save(tmp_path / "t.json")
    raw = json.loads((tmp_path / "t.json").read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "t.json").write_text(json.dumps(raw))
    assert len(Tokenizer.load(tmp_path / "t.json").encode("x y z " * 9)) > 4
