"""``botvision models``: the paper's models and their figures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import timm
from rich.console import Console
from rich.table import Table

from botvision.models import create_model, list_models
from botvision.models.figures import count

# As printed in the paper (version 2); its Table 9 multiply-adds do not follow from its own
# counter, which gives 5.26 or 5.42 G for the model of 4.27 G.
_PAPER = {
    "botnet50": "20.8 M; 102.98 B at 1024 px (Table 1), 3.79 G at 224 px (Table 9)",
    "botnet50_s1": "20.8 M; 4.27 G at 224 px (Table 9)",
}


@dataclass(frozen=True)
class ModelFigures:
    """One model, measured on its own input size."""

    name: str
    parameters: int
    multiply_adds: int
    image_size: int
    paper: str


def model_figures(name: str, image_size: int | None = None) -> ModelFigures:
    """Count the parameters, and the multiply-adds of one image (convolutions and products)."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    size = image_size or cfg.input_size[-1]
    parameters, multiply_adds = count(lambda: create_model(name, image_size=size), size)
    return ModelFigures(
        name=name,
        parameters=parameters,
        multiply_adds=multiply_adds,
        image_size=size,
        paper=_PAPER.get(name, ""),
    )


def show_models(*, as_json: bool = False) -> None:
    """Print the table, or its rows as JSON."""
    figures = [model_figures(name) for name in list_models()]
    if as_json:
        print(json.dumps([asdict(row) for row in figures], indent=2))
        return
    table = Table(caption="any timm model with a feature pyramid also works as --model")
    table.add_column("model")
    for heading in ("parameters", "multiply-adds", "px"):
        table.add_column(heading, justify="right")
    table.add_column("the paper prints")
    for row in figures:
        table.add_row(
            row.name,
            f"{row.parameters / 1e6:.3f} M",
            f"{row.multiply_adds / 1e9:.2f} G",
            str(row.image_size),
            row.paper,
        )
    Console().print(table)
