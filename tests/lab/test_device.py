"""`--dtype auto` on processors that are not there: what is chosen, told, saved, and kept by a run that goes on."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from alignpro_mini.lab import device
from alignpro_mini.lab.config import preset
from alignpro_mini.lab.device import dtype_line, has_bfloat16, with_dtype
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.options import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# /proc/cpuinfo, as far as it matters
ZEN2 = "model name\t: AMD EPYC 7B12\nflags\t\t: fpu sse2 avx2 fma bmi2\nbugs\t\t: spectre_v1\n"
SAPPHIRE_RAPIDS = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16\n"
GRAVITON = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd i8mm bf16 dgh\n"


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """A function that sets what torch says of this processor (None: that torch does not ask) and Linux lists of it."""

    def put(by_torch: bool | None, cpuinfo: str | None) -> None:
        if by_torch is None:
            monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
        else:
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: by_torch, raising=False)
        monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
        if cpuinfo is not None:
            (tmp_path / "cpuinfo").write_text(cpuinfo)

    return put


@pytest.mark.parametrize(
    ("by_torch", "cpuinfo", "found"),
    [
        (False, ZEN2, False),
        (True, ZEN2, True),
        (True, None, True),
        (False, SAPPHIRE_RAPIDS, True),
        (False, GRAVITON, True),
        (None, SAPPHIRE_RAPIDS, True),
        (None, ZEN2, False),
        (None, None, False),  # nothing tells: another system, an older torch
        (None, "vendor_id\t: bf16\n", False),
    ],
)
def test_a_processor_has_bfloat16_where_torch_or_linux_says_so(processor, by_torch, cpuinfo, found):
    processor(by_torch, cpuinfo)
    assert has_bfloat16(CPU) is found
    config = replace(preset("smollm2"), device="cpu", out="nowhere")
    assert with_dtype(config).dtype == ("bfloat16" if found else "float32")


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_does_not_count(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert has_bfloat16(GPU) is native


def test_the_embedded_world_stays_in_float32_and_what_is_asked_for_stays(processor):
    processor(True, SAPPHIRE_RAPIDS)
    for name in ("micro", "tiny", "small", "gpt2"):
        assert preset(name).dtype == "auto" and setup_of(preset(name)).config.dtype == "float32"
    processor(False, ZEN2)
    for name in ("tiny", "smollm2"):
        assert setup_of(replace(preset(name), dtype="bfloat16", device="cpu")).config.dtype == "bfloat16"


def test_a_run_keeps_the_dtype_that_it_began_with(processor, tmp_path):
    """Begun on a processor with bfloat16, it goes on in bfloat16 on one without; another dtype is refused."""
    config = replace(preset("smollm2"), device="cpu", out=str(tmp_path), name="r")
    processor(True, None)
    run = Run(config)
    assert run.config.dtype == json.loads((run.path / "config.json").read_text())["dtype"] == "bfloat16"
    (run.path / "stages.json").write_text("{}")
    del run  # it works in the folder no more
    processor(False, None)
    again = Run(config, resume=True)
    assert again.config.dtype == setup_of(config).config.dtype == "bfloat16"
    del again
    with pytest.raises(UserError, match="dtype was 'bfloat16', now 'float32'"):
        Run(replace(config, dtype="float32"), resume=True)
    assert Run(replace(config, name="other")).config.dtype == "float32"


def test_the_line_says_what_the_processor_has_to_do_with_it(processor):
    line = lambda name: dtype_line(replace(preset("smollm2"), device="cpu", dtype=name))
    processor(False, ZEN2)
    assert line("float32") == "dtype: float32, this processor has no instructions for bfloat16"
    assert "no instructions for it: --dtype float32 is faster" in line("bfloat16")
    processor(True, ZEN2)
    assert line("bfloat16") == "dtype: bfloat16, this processor has instructions for it"
    assert "would be faster with --dtype bfloat16" in line("float32")
