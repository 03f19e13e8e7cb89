"""``botvision eval``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from botvision.cli.parsers import Parser, config_parser
from botvision.config import EvaluateConfig

GROUPS = {
    "data": ["split", "limit", "batch_size", "pixel_range", "page", "workers"],
    "detectors only": ["score_threshold", "max_detections", "flip", "scales", "tile"],
    "classifiers only": ["image_size", "table_resize"],
    "hardware": ["device", "precision"],
    "output": ["out"],
}


def eval_parser() -> Parser:
    """``botvision eval``."""
    parser = config_parser(EvaluateConfig)
    parser.description = "Evaluate a run on a data set: COCO metrics, or accuracy."
    parser.add_argument("run", type=Path, help="Run folder or best.safetensors.")
    parser.add_argument(
        "data", type=str, help="COCO folder, class folders, an archive or a built-in set."
    )
    parser.usage = "botvision eval [options] RUN DATA"
    parser.set_groups(GROUPS)
    return parser


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Evaluate."""
    options = parser.given(arguments)
    from botvision.tasks.evaluate import evaluate

    evaluate(options.pop("run"), options.pop("data"), **options)
