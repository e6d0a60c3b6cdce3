"""Models in and out of folders in the Hugging Face layout, under their published names.

    config.json          the shape, under Hugging Face's keys     model_type gpt2, llama, qwen2 or qwen3
    model.safetensors    the weights, under the published names   h.0.attn.c_attn.weight, model.layers.0....
    tokenizer.json       the vocabulary, where there is one

A folder written here opens in `transformers`, and one from there opens here. Our weights differ in three ways:
one matrix `qkv` holds what Llama publishes as q, k and v; in q and k the two rows of a rotary pair lie side by
side, published they are half a head apart; and GPT-2 publishes its matrices transposed.

A folder is written beside its place and renamed into it as a whole, so a kill leaves nothing that loads half.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from alignpro_mini.options import UserError, one_line
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.weights.chat import SYSTEM, PublishedTokenizer, load_tokenizer, save_template
from alignpro_mini.weights.tensors import read_json, read_tensors, write_tensors
from alignpro_mini.weights.vocabulary import CONFIG, VOCABULARY

WEIGHTS = "model.safetensors"
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LARGEST = 1 << 26  # any whole number of config.json
MODEL_TYPES = ("gpt2", "llama", "qwen2", "qwen3")
# Keys of config.json: ours, GPT-2's, Llama's.
_KEYS = """
vocab_size  vocab_size          vocab_size
max_len     n_positions         max_position_embeddings
d_model     n_embd              hidden_size
n_layers    n_layer             num_hidden_layers
n_heads     n_head              num_attention_heads
n_kv_heads  -                   num_key_value_heads
d_ff        n_inner             intermediate_size
norm_eps    layer_norm_epsilon  rms_norm_eps
rope_theta  -                   rope_theta
head_dim    -                   head_dim
"""
# Modules: ours, GPT-2's, Llama's; {} is the layer, q|k|v stand for three modules that are stacked in this order.
_NAMES = """
embed      wte               model.embed_tokens
positions  wpe               -
norm       ln_f              model.norm
unembed    lm_head           lm_head
norm1      h.{}.ln_1         model.layers.{}.input_layernorm
norm2      h.{}.ln_2         model.layers.{}.post_attention_layernorm
attn.qkv   h.{}.attn.c_attn  model.layers.{}.self_attn.q_proj|k_proj|v_proj
attn.out   h.{}.attn.c_proj  model.layers.{}.self_attn.o_proj
attn.q_norm  -               model.layers.{}.self_attn.q_norm
attn.k_norm  -               model.layers.{}.self_attn.k_norm
mlp.gate   -                 model.layers.{}.mlp.gate_proj
mlp.up     h.{}.mlp.c_fc     model.layers.{}.mlp.up_proj
mlp.down   h.{}.mlp.c_proj   model.layers.{}.mlp.down_proj
"""


def _table(text: str) -> dict[str, dict[str, str]]:
    """family -> our name -> published name."""
    rows = [line.split() for line in text.strip().splitlines()]
    return {f: {row[0]: row[i] for row in rows if row[i] != "-"} for i, f in enumerate(("gpt2", "llama"), 1)}


KEYS, NAMES = _table(_KEYS), _table(_NAMES)
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # of rope_scaling
# Keys whose other values would load and then compute something else, and the values we compute.
HONOURED = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "hidden_act": ("silu",)}
HONOURED |= {"quantization_config": (), "is_causal": (True,), "tie_word_embeddings": (True, False)}
HONOURED |= {"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)}
HONOURED |= dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window", "add_cross_attention"), (False,))
# Buffers that old checkpoints carry: GPT-2's causal triangle, Llama's rotary frequencies. We compute both.
BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def save_pretrained(model: Transformer, directory: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write `model` (and `tokenizer`) as a new folder that this package and `transformers` can open.

    Raises FileExistsError for a folder that holds files already, UserError when the tokenizer has more tokens than the
    model, and OSError when the disk refuses.
    """
    directory = Path(directory).absolute()
    _check_fit(directory, tokenizer, model.config)
    check_new(directory)
    draft = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    for left in directory.parent.glob(f".{directory.name}.*.tmp"):  # of a save that was killed
        shutil.rmtree(left)
    draft.mkdir(parents=True)
    (draft / CONFIG).write_text(json.dumps(_published_config(model, tokenizer), indent=2) + "\n", encoding="utf-8")
    write_tensors(draft / WEIGHTS, to_published(model), {"format": "pt"})  # transformers refuses it without "format"
    if tokenizer is not None:
        tokenizer.save(draft / VOCABULARY)
        save_template(tokenizer, draft)
    if directory.exists():
        directory.rmdir()  # an empty folder: not every system renames over one
    os.replace(draft, directory)


def check_new(directory: Path) -> None:
    """Raises FileExistsError for a file, or a folder that holds files: nothing is overwritten."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory}: already there; choose a new folder, or delete this one first")


def load_pretrained(
    directory: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    model_class: type[Transformer] = Transformer,
) -> tuple[Transformer, Tokenizer | None]:
    """Open a folder: the model in eval mode, and its tokenizer (with the system prompt it was saved with) or None.

    Every published tensor must be there, in the shape that config.json asks for, and finite. Raises
    FileNotFoundError for a missing folder or file, and UserError for anything that does not fit.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder; name one that holds {CONFIG} and {WEIGHTS}")
    config = _read_config(directory / CONFIG)
    if adapter := next((name for name in ADAPTERS if (directory / name).exists()), None):
        advice = "merge it into the weights, or take it out of the folder"
        raise UserError(f"{directory / adapter}: an adapter beside a model, which would not be used; {advice}")
    weights, index = directory / WEIGHTS, directory / f"{WEIGHTS}.index.json"
    if index.exists() and not weights.exists():  # a big model, published in several files
        weights, shards = index, read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{index}: no weight_map in it; copy the file again")
        for shard in shards.values():
            if not isinstance(shard, str) or Path(shard).name != shard:  # a file elsewhere is not this model's
                raise UserError(f"{index}: {shard!r:.60} is no file of this folder; copy the index again")
        parts = [read_tensors(directory / shard)[0] for shard in sorted(set(shards.values()))]
    else:
        parts = [read_tensors(weights)[0]]
    tensors = {name: tensor for part in parts for name, tensor in part.items()}
    model = from_published(config, tensors, str(weights), device, dtype, model_class)
    tokenizer = load_tokenizer(directory)
    _check_fit(directory / VOCABULARY, tokenizer, config)
    return model, tokenizer


def _check_fit(where: Path, tokenizer: Tokenizer | None, config: TransformerConfig) -> None:
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        counts = f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}"
        raise UserError(f"{where}: {counts}; use the model's own tokenizer")


def _names(config: TransformerConfig, ours: str) -> list[str]:
    """Published names of our parameter: `blocks.3.norm1.weight` -> [`model.layers.3.input_layernorm.weight`]."""
    layer = re.match(r"blocks\.(\d+)\.", ours)
    module, kind = ours[layer.end() if layer else 0 :].rsplit(".", 1)
    parent, dot, parts = NAMES[config.family][module].format(layer and layer[1]).rpartition(".")
    return [f"{parent}{dot}{part}.{kind}" for part in parts.split("|")]


def _transposed(config: TransformerConfig, ours: str) -> bool:
    # GPT-2 was published with Conv1D matrices (in, out); nn.Linear keeps (out, in). Only blocks have them.
    return config.family == "gpt2" and ours.startswith("blocks") and ours.endswith("weight") and "norm" not in ours


def _rows(config: TransformerConfig, names: list[str], rows: int) -> list[int]:
    """How many of a parameter's `rows` each published name holds: all, or H*E, G*E, G*E of q, k and v."""
    kv = config.n_kv_heads * config.head_dim
    return [rows] if len(names) == 1 else [rows - 2 * kv, kv, kv]


def pairs_moved(config: TransformerConfig, name: str, rows: Tensor, layout: tuple[int, int]) -> Tensor:
    """The two rows of a rotary pair: (E/2, 2) within a head here, (2, E/2) as published; from `layout` to the other.

    In a head of E = 6 the pairs are (0,3), (1,4), (2,5): here the rows are 0 3 1 4 2 5, published 0 1 2 3 4 5. `name` is
    the published one; rows of other parameters stay.
    """
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads, "q_norm": 1, "k_norm": 1}.get(name.split(".")[-2])
    return rows.unflatten(0, (heads, *layout)).transpose(1, 2).flatten(0, 2) if heads else rows


def to_published(model: Transformer) -> dict[str, Tensor]:
    """The weights under their published names, in the published orientation and order; views where that can be."""
    published: dict[str, Tensor] = {}
    for ours, parameter in model.named_parameters():  # a tied `unembed` is not named a second time
        names = _names(model.config, ours)
        tensor = parameter.detach().T if _transposed(model.config, ours) else parameter.detach()
        for name, part in zip(names, tensor.split(_rows(model.config, names, tensor.shape[0])), strict=True):
            published[name] = pairs_moved(model.config, name, part, (-1, 2))
    return published


def from_published(
    config: TransformerConfig,
    tensors: Mapping[str, Tensor],
    where: str = "weights",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    model_class: type[Transformer] = Transformer,
) -> Transformer:
    """A model made of published tensors, in eval mode; `where` is the file to name in errors.

    Raises UserError for a tensor that is missing, unexpected, of another shape or not finite.
    """
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}  # GPT-2: with and without
    if config.n_layers > len(tensors):
        raise UserError(
            f"{where}: {len(tensors)} tensors, but {CONFIG} asks for {config.n_layers} layers: copy both again"
        )
    with torch.device("meta"):  # shapes without memory, and without drawing from anybody's random generator
        model = model_class(config)
    embedding = _names(config, "embed.weight")[0]
    # A shared matrix may be kept under its other name only.
    if config.tied and embedding not in tensors and "lm_head.weight" in tensors:
        tensors[embedding] = tensors.pop("lm_head.weight")
    state: dict[str, Tensor] = {}
    for ours, parameter in model.named_parameters():
        names, flip = _names(config, ours), _transposed(config, ours)
        shape = (parameter.T if flip else parameter).shape
        parts = [
            pairs_moved(config, name, _take(tensors, name, (rows, *shape[1:]), where), (2, -1))
            for name, rows in zip(names, _rows(config, names, shape[0]), strict=True)
        ]
        whole = torch.cat(parts)  # a copy: tensors read from a file are windows on it, and files get replaced
        state[ours] = (whole.T if flip else whole).to(device, dtype).contiguous()
        if not state[ours].isfinite().all():
            raise UserError(f"{where}: tensor {names[0]!r} is not finite in {dtype}; use other weights or dtype")
    if config.tied:
        output = tensors.pop("lm_head.weight", None)  # some checkpoints store the shared matrix twice
        if output is not None and not torch.equal(output.to(device, dtype), state["embed.weight"]):
            raise UserError(f"{where}: lm_head.weight is not the embedding; set tie_word_embeddings false in {CONFIG}")
        state["unembed.weight"] = state["embed.weight"]
    if unknown := sorted(name for name in tensors if not BUFFERS.fullmatch(name)):
        kind = f"{config.family} of {config.n_layers} layers"
        raise UserError(f"{where}: tensor {unknown[0]!r} is unknown to a {kind}; put the right {CONFIG} beside it")
    model.load_state_dict(state, assign=True)
    if config.tied:
        model.unembed.weight = model.embed.weight  # assign made two parameters of one tensor
    return model.eval()


def _take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], where: str) -> Tensor:
    """Take a tensor out of the dict (its memory can go once it is converted), checked."""
    if name not in tensors:
        raise UserError(f"{where}: tensor {name!r} is missing; copy the file, or the {CONFIG} of its model, again")
    tensor = tensors.pop(name)
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"{where}: tensor {name!r} has shape {tuple(tensor.shape)}, {CONFIG} asks for {shape}; "
            f"put these weights' own {CONFIG} beside them"
        )
    if tensor.dtype not in DTYPES:
        raise UserError(f"{where}: tensor {name!r} holds {tensor.dtype}; use the weights that are not quantised")
    return tensor


def _published_config(model: Transformer, tokenizer: Tokenizer | None) -> dict:
    config = model.config
    other = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    kind = "gpt2" if config.family == "gpt2" else other
    architecture = {"gpt2": "GPT2LMHeadModel"}.get(kind, f"{kind.title()}ForCausalLM")
    raw = {"model_type": kind, "architectures": [architecture], "tie_word_embeddings": config.tied}
    if config.rope_scaling:
        raw["rope_scaling"] = {"rope_type": "llama3"} | dict(zip(LLAMA3, config.rope_scaling))
    raw |= {key: getattr(config, field) for field, key in KEYS[config.family].items()}
    if kind == "qwen2" and config.head_dim * config.n_heads == config.d_model:
        del raw["head_dim"]  # it has no such key
    raw |= {"torch_dtype": str(model.embed.weight.dtype).removeprefix("torch.")}
    if kind == "gpt2":  # published defaults drop out, we do not
        raw |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    # Always written: the published defaults of these ids belong to other vocabularies.
    raw |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if tokenizer is not None:
        raw["eos_token_id"] = tokenizer.eos_id if len(tokenizer.end_ids) == 1 else list(tokenizer.end_ids)
        raw["pad_token_id"] = tokenizer.pad_id if tokenizer.pad_id != tokenizer.eos_id else None
        if isinstance(tokenizer, PublishedTokenizer) and tokenizer.system is not None:
            raw[SYSTEM] = tokenizer.system
    return raw


def _read_config(file: Path) -> TransformerConfig:
    """A `TransformerConfig` from a published config.json; a missing optional key means the published default."""
    raw = read_json(file)
    kind = raw.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"{file}: model_type is {kind!r}; use a model of one of {', '.join(MODEL_TYPES)}")
    new, old = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}  # two names of the same thing
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise UserError(f"{file}: rope_scaling is {old or new!r:.60}; it must be an object: copy the file again")
    rope = new | old
    if nested := [key for key, value in rope.items() if isinstance(value, dict)]:
        raise UserError(
            f"{file}: rope_scaling holds others for {', '.join(nested)}; use a model with one for all layers"
        )
    raw |= {key: rope[key] for key in rope if key == "rope_theta"}
    family = "gpt2" if kind == "gpt2" else "llama"
    optional = {
        "n_kv_heads": 0,
        "d_ff": 0,
        "head_dim": 0,
        "rope_theta": 10_000.0,
        "norm_eps": 1e-5 if family == "gpt2" else 1e-6,
    }
    fields = {}
    for field, key in KEYS[family].items():
        value = raw[key] if raw.get(key) is not None else optional.get(field)
        if type(value) not in ((int, float) if field in ("norm_eps", "rope_theta") else (int,)):
            raise UserError(f"{file}: {key} is {value!r:.60}; it must be a number: copy the file again")
        good = 0 <= value <= LARGEST if type(optional.get(field)) is not float else 0 < value < math.inf
        if not good:
            raise UserError(f"{file}: {key} is {value}; no model has that: copy the file again")
        fields[field] = value
    fields["rope_scaling"] = _rope_scaling(file, rope)
    tied = raw["tie_word_embeddings"] if raw.get("tie_word_embeddings") is not None else family == "gpt2"
    try:
        config = TransformerConfig(
            **fields, family=family, tied=tied, qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3"
        )
    except ValueError as error:
        raise UserError(f"{file}: {one_line(error)}") from None
    _refuse_unsupported(file, raw, rope, config)
    return config


def _rope_scaling(file: Path, rope: dict) -> tuple[float, ...]:
    """Llama 3's four numbers, () without scaling. Raises UserError for one that is missing or useless."""
    if "llama3" not in (rope.get("rope_type"), rope.get("type")):
        return ()
    found = tuple(rope.get(key) for key in LLAMA3)
    if not all(type(value) in (int, float) and value > 0 for value in found) or found[1] == found[2]:
        raise UserError(f"{file}: rope_scaling is {rope}; it needs {', '.join(LLAMA3)}: copy the file again")
    return found


def _refuse_unsupported(file: Path, raw: dict, rope: dict, config: TransformerConfig) -> None:
    honoured = HONOURED | {"partial_rotary_factor": (1,)}
    asked = {key: raw[key] for key in honoured if raw.get(key) is not None and raw[key] not in honoured[key]}
    kinds = {rope.get("rope_type"), rope.get("type")} - {None, "default", "llama3"}  # "type" is the older name
    if kinds or rope.get("partial_rotary_factor", 1) != 1:
        asked["rope_scaling"] = rope
    kinds = raw.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        asked["layer_types"] = kinds
    if asked:
        key, value = next(iter(asked.items()))
        values = " or ".join(repr(value) for value in honoured.get(key, ("the default",))) or "none"
        raise UserError(f"{file}: {key} is {value!r}, but only {values} is supported; use another model")
