"""Devices, precisions and processes: settled once, passed down to what runs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch

from botvision.config import Device, Dtype, Precision, TrainConfig
from botvision.errors import UserError

DTYPES: dict[Dtype, torch.dtype] = {
    "32": torch.float32,
    "bf16": torch.bfloat16,
    "16": torch.float16,
}


def resolve_device(device: Device) -> Device:
    """``"auto"`` is the accelerator that is available, else the CPU.

    Raises:
        UserError: the device that was asked for is not available.
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
            "not available here; `botvision doctor` says why", parameter="device", value=device
        )
    return device


def resolve_precision(precision: Precision, device: Device) -> Dtype:
    """``"auto"`` is bf16 on CUDA and on CPUs that multiply bf16 matrices (AMX), else 32."""
    if precision != "auto":
        return precision
    # Older versions of torch lack it; without it nothing is known of the CPU.
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    amx = device == "cpu" and capabilities.get("amx_bf16", False)
    return "bf16" if device == "cuda" or amx else "32"


def autocast(device: str, precision: Dtype) -> torch.autocast:
    """Torch's automatic mixed precision, which ``"32"`` switches off."""
    return torch.autocast(device, dtype=DTYPES[precision], enabled=precision != "32")


@dataclass(frozen=True)
class Process:
    """One of the processes that train together: number ``rank`` of ``count``."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls, config: TrainConfig) -> Process:
        """This process, as torchrun, Slurm or Lightning number it.

        Lightning starts the other processes of a machine itself, unless torchrun or Slurm did.
        """
        count = config.devices * config.nodes
        if count == 1:
            return cls()
        names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
        number = {name: int(os.environ[name]) for name in names if name in os.environ}
        rank = number.get("NODE_RANK", 0) * config.devices + number.get("LOCAL_RANK", 0)
        if "LOCAL_RANK" not in number:
            rank = number.get("SLURM_PROCID", rank)
        return cls(number.get("RANK", rank), count)


def worker_count(workers: int, device: str) -> int:
    """Number of processes that load data; ``-1`` chooses it.

    The choice is all cores but one (8 at most) for an accelerator, none for a CPU: there the
    training itself uses every core, and another process only slows both.
    """
    if workers >= 0:
        return workers
    return min(8, max(1, (os.cpu_count() or 2) - 1)) if device != "cpu" else 0


def peak_memory(device: str) -> float:
    """Peak memory of this process so far in bytes, of the GPU or of the machine.

    0 where the operating system does not report it.
    """
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
