"""``botvision predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from botvision.cli.parsers import Parser, config_parser
from botvision.config import PredictConfig


def predict_parser() -> Parser:
    """``botvision predict``."""
    parser = config_parser(PredictConfig)
    parser.description = "Detect or classify: pictures of it and a JSON file."
    parser.add_argument("run", type=Path, help="run folder or best.safetensors")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    return parser


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Predict."""
    options = parser.given(arguments)
    from botvision.tasks.predict import predict

    predict(options.pop("run"), options.pop("images"), **options)
