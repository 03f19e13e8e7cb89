"""The command ``botvision doctor``: versions, choices with their reasons, and repairs."""

import pytest
import torch

from botvision import device as device_module
from botvision.cli import doctor as doctor_module
from commandline import fail, run


def test_doctor_is_content_here(capsys):
    text = run(capsys, "doctor")
    assert torch.__version__ in text
    assert text.strip().endswith("all is well")


@pytest.mark.parametrize(
    ("exact", "line"),
    [
        (True, "onednn on a 32x32 map, because the CPU has AVX-512 and no AMX"),
        (False, "chunked on a 32x32 map, because the CPU has AMX, or no AVX-512"),
    ],
)
def test_doctor_names_the_attention_and_its_reason(capsys, monkeypatch, exact, line):
    monkeypatch.setattr("botvision.device.torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("botvision.device.torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("botvision.attention.products._keeps_float32", lambda: exact)
    assert f"attention auto    {line}\n" in run(capsys, "doctor")


@pytest.mark.parametrize(
    ("cpu", "line"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16, because the CPU has amx_bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bf16, because the CPU has avx512_bf16"),
        ({"avx2": True}, "32, because the CPU has no bf16 instructions (amx_bf16, avx512_bf16)"),
        ({}, "32, because the CPU has no bf16 instructions (amx_bf16, avx512_bf16)"),
    ],
)
def test_doctor_names_the_precision_and_its_reason(capsys, monkeypatch, cpu, line):
    monkeypatch.setattr(device_module, "cpu_capabilities", lambda: cpu)
    monkeypatch.setattr(device_module.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device_module.torch.backends.mps, "is_available", lambda: False)
    assert f"precision auto    {line}\n" in run(capsys, "doctor")
    precision = device_module.resolve_precision("auto", "cpu")
    assert precision == line.split(",")[0]
    assert device_module.resolve_precision("auto", "mps") == "32"
    assert device_module.resolve_precision("16", "cpu") == "16"


def test_doctor_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr("torchvision.ops.nms", lambda *_: torch.tensor([0, 1]))
    line = fail(capsys, "doctor")
    assert "not a matching pair; run `pip install --force-reinstall torch torchvision`" in line
    monkeypatch.setattr(doctor_module, "_PACKAGES", ("no-such-package",))
    assert "not installed: no-such-package" in fail(capsys, "doctor")
