"""Metrics for people, results for other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from botvision.evaluation.evaluator import Metrics
from botvision.files import make_folder, write_text
from botvision.terminal import cell, print_text

_TITLES = {"bbox": "box", "segm": "mask"}
# Longer lists of classes are left to metrics.json.
_CLASSES_SHOWN = 20


def write_results(folder: Path, results: list[dict[str, Any]]) -> Path:
    """Write ``results.json`` in COCO's result format."""
    make_folder(folder)
    path = folder / "results.json"
    write_text(path, json.dumps(results))
    return path


def print_limit(console: Console, images: int, of: int) -> None:
    """Print that not all images of the split are evaluated, if so.

    Args:
        console: console to print to.
        images: number of images that are evaluated.
        of: number of images of the split.
    """
    if images < of:
        line = f"limit: {images:,} of the {of:,} images, a quick look drawn at random"
        print_text(console, line)


def print_metrics(console: Console, metrics: Metrics) -> None:
    """Print a table of AP by IoU and size, and one of the classes if they are few."""
    kinds = [kind for kind in _TITLES if kind in metrics]
    # Every COCO metric is in metrics.json; these fit a terminal.
    names = [name for name in metrics[kinds[0]] if name.startswith("AP")]
    table = _table("", names=names)
    for kind in kinds:
        table.add_row(_TITLES[kind], *(_number(metrics[kind][name]) for name in names))
    console.print(table, soft_wrap=False)
    classes = metrics["per_class"]
    if not 1 < len(classes) <= _CLASSES_SHOWN:
        return
    table = _table("class", "", names=names)
    for name, values in classes.items():
        for kind in kinds:
            cells = (_number(values[kind][metric]) for metric in names)
            table.add_row(cell(name if kind == kinds[0] else ""), _TITLES[kind], *cells)
    console.print(table, soft_wrap=False)


def _table(*left: str, names: list[str]) -> Table:
    table = Table(*(Column(name, overflow="fold") for name in left))
    for name in names:
        table.add_column(name, justify="right")
    return table


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"
