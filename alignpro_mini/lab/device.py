"""What `--device` and `--dtype` mean on this machine, and which of its cores a run uses.

`--dtype auto` is bfloat16 where the processor has instructions for it; elsewhere float32 is many times faster.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from alignpro_mini.lab.config import RunConfig
from alignpro_mini.options import UserError
from alignpro_mini.weights.tensors import read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPUINFO = Path("/proc/cpuinfo")
SLOW = "this processor has no instructions for it: --dtype float32 is faster"
CORES = torch.get_num_threads()  # that a run may use: OMP_NUM_THREADS, or those of the machine
SMALL = 128  # width of a model, up to which a second thread does not pay
LEAST_ANSWERS = 2000  # of PPO, from which a second process pays: it takes seconds to start
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, ARM


def resolve_device(name: str) -> torch.device:
    """The torch device of `--device`; raises UserError when it is not there or not supported."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "mps":
        raise UserError(f"--device {name}: this code was never run on an Apple GPU: use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        count = torch.cuda.device_count()
        raise UserError(f"--device {name}: this machine has {count} usable CUDA devices; use --device cpu")
    return device


def with_dtype(config: RunConfig) -> RunConfig:
    """The configuration with a dtype in place of "auto".

    float32 for the embedded world. For real models that of the run in this configuration's folder, so that a run goes
    on as it began, also on another machine; for a new run what the processor computes fast.
    """
    if config.dtype != "auto":
        return config
    if not config.real_model:
        return replace(config, dtype="float32")
    saved = Path(config.out) / config.run_name / "config.json"
    dtype = read_json(saved).get("dtype") if saved.exists() else None
    if dtype not in DTYPES:
        dtype = "bfloat16" if has_bfloat16(resolve_device(config.device)) else "float32"
    return replace(config, dtype=dtype)


def dtype_line(config: RunConfig) -> str:
    """For the screen: the dtype of a run of real models, and what the processor has to do with it."""
    fast = has_bfloat16(resolve_device(config.device))
    reasons = {
        ("float32", False): "this processor has no instructions for bfloat16",
        ("float32", True): "as asked for or begun; this processor would be faster with --dtype bfloat16",
        ("bfloat16", False): f"as asked for or begun; {SLOW}",
        ("bfloat16", True): "this processor has instructions for it",
    }
    return f"dtype: {config.dtype}, {reasons[config.dtype, fast]}"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies in bfloat16 itself; False where nothing tells."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    told_by_torch = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(told_by_torch()) or not BFLOAT16_FLAGS.isdisjoint(_cpu_flags())


def _cpu_flags() -> set[str]:
    """The processor's features as Linux lists them; nothing on another system."""
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPUINFO.exists() else []
    parts = (line.partition(":") for line in lines)
    return {flag for name, _, flags in parts if name.strip() in ("flags", "Features") for flag in flags.split()}


def shares(c: RunConfig) -> tuple[int, int]:
    """How a run on a CPU uses the cores: (threads of a process, processes); (0, 1): PyTorch decides.

    A small model's step is hundreds of small operations. A second thread is of little use to them; a second process
    is (measured: tutorials/results/speed.md, "Which cores?"). With one thread results are also the same on any number
    of cores. So a small model gets one thread, and where there is a second core and enough to do, some stages go to a
    second process (lab/beside.py). OMP_NUM_THREADS=1 leaves it out, and so do runs side by side that have a core each.
    """
    width = max(c.frozen_model.d_model, c.prompter_model.d_model)
    if c.real_model or width > SMALL or resolve_device(c.device).type != "cpu":
        return 0, 1
    long = c.ppo.iterations * c.ppo.batch_size * c.ppo.answers >= LEAST_ANSWERS
    return 1, 2 if CORES > 1 and not dist.is_initialized() and long else 1


def use_threads(c: RunConfig) -> None:
    """Let this process compute with as many threads as `shares` says."""
    threads, _ = shares(c)
    if threads:
        torch.set_num_threads(threads)
