"""Versions of the software and description of the machine, stored with each result."""

from __future__ import annotations

import functools
import importlib
import os
import platform
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    packages = ("botvision", "torch", "torchvision", "timm", "lightning")
    imported = {name: str(importlib.import_module(name).__version__) for name in packages}
    return {"python": platform.python_version(), **imported}


# The instruction sets on which speed depends, as torch names them.
_INSTRUCTION_SETS = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16")


@functools.cache
def cpu_capabilities() -> dict[str, Any]:
    """Return what torch detects of the CPU, such as ``amx_bf16``; empty for an older torch."""
    import torch

    return dict(getattr(torch.cpu, "get_capabilities", dict[str, Any])())


def machine() -> dict[str, Any]:
    """Return a description of the machine.

    Returns:
        ``cpu`` (name), ``instruction_sets`` (those of the CPU on which speed depends), ``cores``
        (available to this process), ``threads`` (of torch), ``gpu`` (name of the first GPU that
        torch can use, or None) and ``platform``.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if cpu_capabilities().get(name)],
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "platform": platform.platform(),
    }


def _cpu_name() -> str:
    # On Linux, platform.processor() is empty or only the architecture.
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
