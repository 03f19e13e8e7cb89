"""Checks of the options, before anything is measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from botvision.bench.config import BenchDevice
from botvision.device import resolve_device
from botvision.errors import UserError


def bench_device(device: BenchDevice) -> Literal["cpu", "cuda"]:
    """Return the device to measure on. ``"auto"`` selects CUDA if it is available, else the CPU.

    Raises:
        UserError: CUDA is not available.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    resolve_device(device)
    return device


def check_positive(**numbers: float | None) -> None:
    """Check that every number is greater than 0 or None.

    Raises:
        UserError: A number is not greater than 0. The message names the first one.
    """
    for name, number in numbers.items():
        if number is not None and number <= 0:
            raise UserError("must be greater than 0", parameter=name, value=number)


def check_writable(**paths: Path | None) -> None:
    """Check that every file can be written, and create its folder.

    Raises:
        UserError: A file cannot be written. The message names the first one.
    """
    for name, path in paths.items():
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = "the folder does not exist and cannot be created"
            raise UserError(message, parameter=name, value=path) from error
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError("cannot be written", parameter=name, value=path)
