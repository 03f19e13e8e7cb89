"""``botvision doctor``: check the installation and report how to repair it.

Heavy imports are inside the functions, because they may fail in a broken installation.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence

from botvision.cli.parsers import Parser
from botvision.environment import machine
from botvision.errors import UserError

_PACKAGES = (
    "botvision",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "faster-coco-eval",
    "jsonargparse",
    "safetensors",
    "numpy",
    "pillow",
)


def doctor_parser() -> Parser:
    """``botvision doctor``."""
    return Parser(description="Check the installation: versions, devices and operators.")


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Describe the installation."""
    parser.parse_args(list(arguments))
    doctor()


def doctor() -> None:
    """Print versions and devices, and try torchvision's operators.

    Raises:
        UserError: a check fails. The message explains how to repair the installation.
    """
    print(f"{'python':18}{platform.python_version()}  {platform.platform()}")
    missing = []
    for package in _PACKAGES:
        try:
            print(f"{package:18}{importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package:18}missing")
            missing.append(package)
    if missing:
        names = " ".join(missing)
        raise UserError(f"not installed: {names}; run `pip install {names}`")
    _check_operators()
    _print_devices()
    _print_choices()
    print("all is well")


def _check_operators() -> None:
    mend = (
        "torch and torchvision are not a matching pair; run "
        "`pip install --force-reinstall torch torchvision`"
    )
    try:
        import torch
        import torchvision
        from torchvision.ops import nms

        kept = nms(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]]), torch.tensor([0.9, 0.8]), 0.5)
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"torchvision's operators do not load ({first}): {mend}") from error
    if kept.tolist() != [0]:
        raise UserError(f"torchvision's non-maximum suppression gives {kept.tolist()}: {mend}")
    print(
        f"{'operators':18}torchvision {torchvision.__version__} on torch {torch.__version__}: work"
    )


def _print_devices() -> None:
    import torch

    here = machine()
    print(f"{'cpu':18}{here['cpu']}, {here['cores']} cores, {here['threads']} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            print(f"{f'cuda:{index}':18}{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    elif torch.version.cuda is not None and sys.platform != "darwin":
        print(f"{'cuda':18}no GPU that torch can use (it was built for CUDA {torch.version.cuda})")
    if torch.backends.mps.is_available():
        print(f"{'mps':18}available")


def _print_choices() -> None:
    import torch

    from botvision.attention.functional import fastest
    from botvision.device import bf16_instructions, resolve_device, resolve_precision

    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    instructions = bf16_instructions()
    if device != "cpu":
        reason = f"the device is {device}"
    elif instructions is None:
        reason = "the CPU has no bf16 instructions (amx_bf16, avx512_bf16)"
    else:
        reason = f"the CPU has {instructions}"
    print(f"{'precision auto':18}{precision}, because {reason}")
    impl = fastest(torch.empty(1, 4, 32 * 32, 128, device=device), trained=True)
    if impl == "onednn":
        reason = "the CPU has AVX-512 and no AMX"
    elif device == "cpu":
        reason = "the CPU has AMX, or no AVX-512"
    else:
        reason = f"the device is {device}"
    print(f"{'attention auto':18}{impl} on a 32x32 map, because {reason}")
