"""Selection of the device, the precision and the processes of a run."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

import torch

from botvision.config import Device, Dtype, Precision, TrainConfig
from botvision.environment import cpu_capabilities
from botvision.errors import UserError
from botvision.launcher import Launcher

DTYPES: dict[Dtype, torch.dtype] = {
    "32": torch.float32,
    "bf16": torch.bfloat16,
    "16": torch.float16,
}


def resolve_device(device: Device) -> Device:
    """Return the device to use. ``"auto"`` selects an available accelerator, else the CPU.

    Raises:
        UserError: the requested device is not available.
    """
    available: dict[Device, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available[device]:
        raise UserError(
            "not available on this machine; run `botvision doctor` to see the reason",
            parameter="device",
            value=device,
        )
    return device


def check_device_count(device: Device, devices: int) -> None:
    """Check that each process of this machine has a device.

    Args:
        device: device of the processes, not ``"auto"``.
        devices: number of processes on this machine.

    Raises:
        UserError: this process sees fewer devices.
    """
    seen = {"cpu": devices, "cuda": torch.cuda.device_count(), "mps": 1}[device]
    if seen < devices:
        raise UserError(
            f"every process must see one {device} device per process on its machine, and this one "
            f"sees {seen}",
            parameter="devices",
            value=devices,
        )


def resolve_precision(precision: Precision, device: Device) -> Dtype:
    """Return the precision. ``"auto"`` selects bf16 on CUDA and on CPUs that multiply it, else 32.

    On a CPU with avx512_bf16 and without AMX, a ResNet-50 or BoTNet-50 takes 1.6 to 2.1 times as
    long in float32 as in bf16, in training and in inference (benchmarks/README.md).
    """
    if precision != "auto":
        return precision
    fast = device == "cuda" or (device == "cpu" and bf16_instructions() is not None)
    return "bf16" if fast else "32"


def bf16_instructions() -> str | None:
    """Return the name of the CPU's fastest instructions for bf16 products, or None."""
    names = ("amx_bf16", "avx512_bf16")
    return next((name for name in names if cpu_capabilities().get(name)), None)


def autocast(device: str, precision: Dtype) -> torch.autocast:
    """Return torch's context for automatic mixed precision, disabled for ``"32"``."""
    return torch.autocast(device, dtype=DTYPES[precision], enabled=precision != "32")


@dataclass(frozen=True)
class Process:
    """One of the processes of a training run: its rank and the number of processes."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls, config: TrainConfig) -> Process:
        """Return this process. The first one starts the others if there is no launcher."""
        launcher = Launcher.current()
        return cls(launcher.rank if launcher else 0, config.devices * config.nodes)


def worker_count(workers: int, device: str) -> int:
    """Return the number of processes that load data. ``-1`` selects it automatically.

    The automatic choice is the number of cores minus one, at most 8, for an accelerator. It is 0
    for a CPU, where training uses every core and further processes would slow it down.
    """
    if workers >= 0:
        return workers
    return min(8, max(1, (os.cpu_count() or 2) - 1)) if device != "cpu" else 0


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation has failed, on a GPU or on the machine."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(
        re.search(r"can't allocate memory|out of memory|ALLOC_FAILED", str(error))
    )


def peak_memory(device: str) -> float:
    """Return the peak memory of this process so far in bytes, on the GPU or on the machine.

    Returns 0 where the operating system does not report it.
    """
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
