"""``botvision predict``."""

from __future__ import annotations

from collections.abc import Sequence

from botvision.cli.parsers import Parser, config_parser
from botvision.config import PredictConfig

GROUPS = {
    "data": ["pixel_range", "page"],
    "detectors only": [
        *("score_threshold", "max_detections", "flip", "scales", "tile", "mask_format"),
    ],
    "hardware": ["device", "precision", "batch_size"],
    "output": ["out"],
}


def predict_parser() -> Parser:
    """``botvision predict``."""
    parser = config_parser(PredictConfig)
    parser.description = "Detect objects in images, or classify them. Writes pictures and JSON."
    # Text: a path would be parsed as YAML, which not every file name is.
    parser.add_argument("run", type=str, help="Run folder or best.safetensors.")
    parser.add_argument(
        "images", type=str, nargs="+", help="Image files, or folders of image files."
    )
    parser.usage = "botvision predict [options] RUN IMAGE [IMAGE ...]"
    parser.set_groups(GROUPS)
    return parser


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Predict."""
    options = parser.given(arguments)
    from botvision.tasks.predict import predict

    predict(options.pop("run"), options.pop("images"), **options)
