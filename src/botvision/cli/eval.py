"""``botvision eval``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from botvision.cli.parsers import Parser, config_parser
from botvision.config import EvaluateConfig


def eval_parser() -> Parser:
    """``botvision eval``."""
    parser = config_parser(EvaluateConfig)
    parser.description = "Metrics of a run on a data set: COCO's, or accuracy."
    parser.add_argument("run", type=Path, help="run folder or best.safetensors")
    parser.add_argument("data", type=str, help="COCO or class folders, an archive, a built-in set")
    return parser


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Evaluate."""
    options = parser.given(arguments)
    from botvision.tasks.evaluate import evaluate

    evaluate(options.pop("run"), options.pop("data"), **options)
