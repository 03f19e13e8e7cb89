"""``botvision bench``: time and memory on this machine, as tables, JSON and a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from botvision.attention import implementations
from botvision.bench import attention, models
from botvision.bench import data as data_speed
from botvision.bench.attention import AttentionRow, AttentionSettings
from botvision.bench.data import DataRow
from botvision.bench.models import ModelRow
from botvision.bench.plot import plot_attention
from botvision.bench.report import (
    attention_table,
    collect,
    data_table,
    header,
    model_table,
)
from botvision.config import Device, Dtype, Mode
from botvision.data.coco import find_splits, load_split
from botvision.data.formats import is_classification_data, open_data
from botvision.data.image_folder import find_classification_splits
from botvision.errors import UserError
from botvision.files import write_text
from botvision.models import create_model
from botvision.training.trainer import resolve_device


def bench_attention(
    *,
    sizes: list[str],
    dim: int = 512,
    heads: int = 4,
    batch_size: int | None = None,
    impl: list[str] | None = None,
    precision: Sequence[Dtype] = ("32", "bf16"),
    mode: Sequence[Mode] = ("forward", "train"),
    seconds: float = 5.0,
    compile: bool = False,
    device: Device = "auto",
    json: Path | None = None,
    plot: Path | None = None,
    console: Console | None = None,
) -> list[AttentionRow]:
    """Measure one layer in every implementation, beside timm's and a 3x3 convolution.

    An interrupted run has printed, saved and drawn what it had measured.

    Args:
        sizes: maps, ``"14"`` or ``"50x84"`` (height x width), cells.
        dim: channels in and out.
        heads: attention heads.
        batch_size: images; by default as many as have 2048 cells, from 1 to 8.
        impl: implementations; by default all that run on the device.
        precision: of the products.
        mode: inference, forward and backward pass, or both.
        seconds: to spend on timing each row.
        compile: everything by ``torch.compile``.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA if it is there.
        json: file for the rows, written after each map.
        plot: PNG to draw.
        console: where to print the tables; the terminal by default.

    Raises:
        UserError: a fault in the settings, or a file that cannot be written.
    """
    device = _device(device)
    known = implementations(device)
    for name in impl or ():
        if name not in known:
            raise UserError(f"--impl {name}: on {device} there are {', '.join(known)}")
    _check_positive(dim=dim, heads=heads, batch_size=batch_size, seconds=seconds)
    if dim % 8 or dim % heads:
        raise UserError(
            f"--dim {dim}: give a multiple of 8 and of --heads {heads}; timm's layer rounds others"
        )
    if plot is not None and plot.suffix != ".png":
        raise UserError(f"--plot {plot}: give a file that ends in .png")
    _check_writable(json=json, plot=plot)
    settings = AttentionSettings(
        sizes=[_map_size(size) for size in sizes],
        dim=dim,
        heads=heads,
        batch_size=batch_size,
        device=device,
        precision=precision,
        mode=mode,
        impl=impl or known,
        seconds=seconds,
        compile=compile,
    )
    rows: list[AttentionRow] = []
    try:
        collect(
            rows,
            partial(attention.bench_attention, settings),
            header=header("attention", asdict(settings)),
            table=attention_table,
            json=json,
            console=console or Console(),
        )
    finally:
        if plot is not None and rows:
            plot_attention(rows, plot)
    return rows


def bench_model(
    *,
    names: list[str],
    image_size: int = 224,
    batch_size: int = 1,
    precision: Sequence[Dtype] = ("32",),
    mode: Sequence[Mode] = ("forward",),
    seconds: float = 20.0,
    compile: bool = False,
    device: Device = "auto",
    json: Path | None = None,
    console: Console | None = None,
) -> list[ModelRow]:
    """Measure whole models in turn; the first is what the others are compared to.

    Args:
        names: models of botvision or timm; ``NAME@PX`` for another image size.
        image_size: side of the images, pixels.
        batch_size: images a run.
        precision: of the products.
        mode: inference, forward and backward pass, or both.
        seconds: to spend on each mode and precision.
        compile: by ``torch.compile``.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA if it is there.
        json: file for the rows, written after each mode and precision.
        console: where to print the tables; the terminal by default.

    Raises:
        UserError: no such model, or it does not take such images; a fault in the settings, or a
            file that cannot be written.
    """
    device = _device(device)
    _check_positive(batch_size=batch_size, image_size=image_size, seconds=seconds)
    _check_writable(json=json)
    settings = {
        "models": names,
        "image_size": image_size,
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "mode": mode,
        "seconds": seconds,
        "compile": compile,
    }
    measure = partial(
        models.bench_models,
        {name: _model(name, image_size) for name in names},
        batch_size=batch_size,
        device=device,
        precision=precision,
        mode=mode,
        seconds=seconds,
        compile=compile,
    )
    rows: list[ModelRow] = []
    collect(
        rows,
        measure,
        header=header("model", settings),
        table=model_table,
        json=json,
        console=console or Console(),
    )
    return rows


def bench_data(
    *,
    data: str,
    image_size: int | None = None,
    images: int = 256,
    policy: str = "rand-m10-n2-p1",
    jitter: tuple[float, float] = (0.1, 2.0),
    seconds: float = 20.0,
    json: Path | None = None,
    console: Console | None = None,
) -> list[DataRow]:
    """Measure how fast one process on one core makes training images.

    Args:
        data: what ``train`` takes; the training split is read.
        image_size: side of what comes out, pixels; by default 224, of COCO-format data 1024.
        images: of the split, the same for every pipeline.
        policy: augmentation policy of a classifier, in timm's words.
        jitter: range of the scale of large-scale jitter, of COCO-format data.
        seconds: to spend.
        json: file for the rows.
        console: where to print the table; the terminal by default.

    Raises:
        UserError: a fault in the data or the settings, or a file that cannot be written.
    """
    _check_positive(image_size=image_size, images=images, seconds=seconds)
    _check_writable(json=json)
    console = console or Console()
    settings: dict[str, Any] = {"data": Path(data).name, "images": images, "seconds": seconds}
    if is_classification_data(data):
        splits = find_classification_splits(data)
        classes = splits.get("train", next(iter(splits.values())))(None)
        console.print(classes.summary(), highlight=False, soft_wrap=True)
        size = image_size or 224
        settings |= {"image_size": size, "policy": policy}
        rows = data_speed.bench_class_data(
            classes, image_size=size, images=images, policy=policy, seconds=seconds
        )
    else:
        coco = find_splits(open_data(data))
        split = load_split(coco.get("train", next(iter(coco.values()))))
        console.print(split.summary(), highlight=False, soft_wrap=True)
        size = image_size or 1024
        settings |= {"image_size": size, "jitter": jitter}
        rows = data_speed.bench_coco(
            split, image_size=size, images=images, scale=jitter, seconds=seconds
        )
    console.print(data_table(rows, size))
    if json is not None:
        content = {**header("data", settings), "rows": [asdict(row) for row in rows]}
        write_text(json, dumps(content, indent=2) + "\n")
    return rows


def _device(device: Device) -> Device:
    # There is no peak memory to be read from other accelerators.
    if device == "auto" and not torch.cuda.is_available():
        return "cpu"
    return resolve_device(device)


def _map_size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise UserError(f"--sizes {text}: give cells, as 14 or 50x84 (height x width)")
    return int(sides[0]), int(sides[-1])


def _model(text: str, image_size: int) -> tuple[Callable[[], nn.Module], int]:
    name, at, pixels = text.partition("@")
    if at and not (pixels.isdecimal() and int(pixels)):
        raise UserError(f"{text}: give NAME, or NAME@PX with the side of the images in pixels")
    size = int(pixels) if at else image_size
    return partial(create_model, name, image_size=size), size


def _check_positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and number <= 0:
            raise UserError(f"--{name.replace('_', '-')} {number}: give more than 0")


def _check_writable(**paths: Path | None) -> None:
    """Better to know before measuring than after."""
    for name, path in paths.items():
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--{name} {path}: no such folder, nor can it be made") from error
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(f"--{name} {path}: cannot be written")
