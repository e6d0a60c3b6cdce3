"""Tensors and JSON in files that a kill cannot leave half written. Safetensors only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignpro_mini.options import UserError, one_line, unique


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; at the end it is renamed over `path`.

    A kill leaves the old file or the new one. The name holds the process number: two processes never share it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    """Write JSON to `path`, all or nothing. Raises ValueError for NaN."""
    with replacing(path) as beside:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8")


def read_json(file: Path) -> dict:
    """The object in a JSON file. Raises FileNotFoundError, or UserError for anything else than one object."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; the folder is incomplete, copy or save it again")
    try:
        raw = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # bad JSON, or bytes that are not UTF-8
        raise UserError(f"{file}: not JSON ({one_line(error)}); copy the file again") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}: holds a {type(raw).__name__}, not an object; copy the file again")
    return raw


def save_state(path: str | Path, tensors: Mapping[str, Tensor], meta: dict) -> None:
    """Write tensors of any dtype and size, and `meta` (JSON values), as one file, atomically.

    JSON turns tuples into lists and integer keys into strings. Raises ValueError for a meta that JSON cannot
    hold, and OSError when the disk refuses; what the file held before is then still there.
    """
    path = Path(path)
    try:
        text = json.dumps(meta)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: meta is not JSON ({one_line(error)}); tensors belong in `tensors`") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        write_tensors(beside, tensors, {"meta": text})


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Read what `save_state` wrote: the tensors, on the CPU, and the meta.

    Raises FileNotFoundError, or UserError for a truncated or foreign file.
    """
    tensors, metadata = read_tensors(Path(path))
    if "meta" not in metadata:
        raise UserError(f"{path}: weights without training state; name a file that save_state wrote")
    return {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(metadata["meta"])


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write, and flush to the disk: a rename may otherwise survive a power cut that the content did not."""
    # safetensors refuses views and tensors that share memory
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    try:
        file.touch()
        mode = file.stat().st_mode  # the user's own default; save_file would make it unreadable to the group
        save_file(own, file, metadata)
        file.chmod(mode)
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
    except SafetensorError as error:
        raise OSError(f"{file}: could not be written ({one_line(error)}); is the disk full?") from None


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; the folder is incomplete, or the name is another")
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({one_line(error)}); copy or save it again") from None
