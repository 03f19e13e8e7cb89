"""``botvision models``: the paper's models and their figures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import timm
import torch
from rich.console import Console
from rich.table import Table

from botvision.models import create_model, list_models
from botvision.models.flops import count_multiply_adds, count_parameters
from botvision.models.published import PUBLISHED, Published


@dataclass(frozen=True)
class ModelFigures:
    """One model, counted at its own input size, and what the paper prints of it."""

    name: str
    parameters: int
    multiply_adds: int
    image_size: int
    paper: Published | None


def model_figures(name: str, image_size: int | None = None) -> ModelFigures:
    """Count the parameters, and the multiply-adds of one image (convolutions and products)."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    size = image_size or cfg.input_size[-1]
    with torch.device("meta"):
        model = create_model(name, image_size=size)
    return ModelFigures(
        name=name,
        parameters=count_parameters(model),
        multiply_adds=count_multiply_adds(model, size),
        image_size=size,
        paper=PUBLISHED.get(name),
    )


def show_models(*, as_json: bool = False) -> None:
    """Print the table, or its rows as JSON."""
    figures = [model_figures(name) for name in list_models()]
    if as_json:
        print(json.dumps([asdict(row) for row in figures], indent=2))
        return
    table = Table(
        caption="any model of timm also works as --model; evidence and doubts: --json",
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("model", no_wrap=True)
    for heading in ("parameters", "multiply-\nadds", "px"):
        table.add_column(heading, justify="right")
    for heading in ("the paper's", "multiply-\nadds", "top-1"):
        table.add_column(heading, justify="right")
    for row in figures:
        table.add_row(
            row.name,
            f"{row.parameters / 1e6:.3f} M",
            f"{row.multiply_adds / 1e9:.2f} G",
            str(row.image_size),
            *_published(row.paper),
        )
    Console().print(table)


def _published(paper: Published | None) -> tuple[str, str, str]:
    if paper is None:
        return "", "", ""
    multiply_adds = f"{paper.multiply_adds:g} G" if paper.multiply_adds else ""
    return f"{paper.parameters:g} M", multiply_adds, f"{paper.top1:g} %" if paper.top1 else ""
