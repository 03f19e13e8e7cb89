"""Versions of the software and description of the machine, stored with each result."""

from __future__ import annotations

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


def machine() -> dict[str, Any]:
    """Return a description of the machine.

    Returns:
        ``cpu`` (name), ``cores`` (available to this process), ``threads`` (of torch), ``gpu`` (name
        of the first GPU that torch can use, or None) and ``platform``.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
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
