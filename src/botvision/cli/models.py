"""``botvision models``: list the paper's models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from botvision.cli.parsers import Parser
from botvision.terminal import terminal

if TYPE_CHECKING:
    from botvision.models.published import Published
    from botvision.models.summary import ModelSummary


def models_parser() -> Parser:
    """``botvision models``."""
    parser = Parser(
        description="List the paper's models with parameters, multiply-adds and top-1 accuracy."
    )
    parser.add_argument(
        "--json", action="store_true", help="Print JSON, with the evidence for each figure."
    )
    return parser


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Print the table, or its rows as JSON."""
    options = parser.parse_args(list(arguments))
    from botvision.models import list_models
    from botvision.models.summary import summarize

    rows = [summarize(name) for name in list_models()]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        terminal().print(_table(rows), soft_wrap=False)


def _table(rows: Sequence[ModelSummary]) -> Table:
    table = Table(
        caption="--model also accepts any model of timm; --json has the evidence",
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("model", no_wrap=True)
    for heading in ("parameters", "multiply-\nadds", "px"):
        table.add_column(heading, justify="right")
    for heading in ("the paper's", "multiply-\nadds", "top-1"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.parameters / 1e6:.3f} M",
            f"{row.multiply_adds / 1e9:.2f} G",
            str(row.image_size),
            *_published(row.paper),
        )
    return table


def _published(paper: Published | None) -> tuple[str, str, str]:
    if paper is None:
        return "", "", ""
    multiply_adds = f"{paper.multiply_adds:g} G" if paper.multiply_adds else ""
    return f"{paper.parameters:g} M", multiply_adds, f"{paper.top1:g} %" if paper.top1 else ""
