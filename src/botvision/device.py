"""In which precision a model multiplies: training, evaluation and benchmarks say it alike."""

from __future__ import annotations

import torch

from botvision.config import Device, Dtype, Precision

DTYPES: dict[Dtype, torch.dtype] = {
    "32": torch.float32,
    "bf16": torch.bfloat16,
    "16": torch.float16,
}


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
