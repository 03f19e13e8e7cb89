"""What every command takes; nothing heavy loads here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser

from botvision.config import (
    ClassificationConfig,
    DetectionConfig,
    DetectorConfig,
    Device,
    MaskFormat,
    Precision,
    TableResize,
    TrainConfig,
)
from botvision.errors import UserError

Kind = Literal["detection", "classification"]

RECIPES = Path(__file__).parents[1] / "recipes"

_CONFIGS: dict[Kind, type[TrainConfig]] = {
    "detection": DetectionConfig,
    "classification": ClassificationConfig,
}


class Parser(ArgumentParser):
    """Options with dashes, and errors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        line = " ".join(str(message).split())
        print(f"{self.prog}: error: {line}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def add_train_config(self, config: type[TrainConfig]) -> None:
        """Every field of ``config`` as an option, DATA as the positional."""
        self.add_class_arguments(config, as_group=False, as_positional=True)
        for action in self._actions:
            dashed = [option.replace("_", "-") for option in action.option_strings]
            for option in set(dashed) - set(action.option_strings):
                self._option_string_actions[option] = action
            action.option_strings = dashed


def recipe_names(kind: Kind) -> list[str]:
    """Names of the recipes for a kind of data."""
    return sorted(path.stem for path in (RECIPES / kind).glob("*.yaml"))


def train_parser(kind: Kind = "detection") -> Parser:
    """``botvision train`` on COCO-format data, or on class folders."""
    descriptions = {
        "detection": "Train Mask R-CNN or Faster R-CNN on COCO-format data. For class folders see "
        "botvision train --task classification --help.",
        "classification": "Train an image classifier on class folders.",
    }
    parser = Parser(description=descriptions[kind])
    parser.add_argument(
        "--recipe", help=f"settings to start from: {', '.join(recipe_names(kind))}", type=str
    )
    parser.add_argument(
        "--config", action="config", help="YAML of settings; it beats the recipe, a flag beats it"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in --out, if any"
    )
    parser.add_train_config(_CONFIGS[kind])
    return parser


def _kind(arguments: Sequence[str]) -> Kind:
    """What ``--task`` says, or what DATA is."""
    from botvision.data.formats import is_classification_data  # Loads NumPy, which --help need not.

    rest, tasks = _take(list(arguments), "--task")
    if tasks:
        return "classification" if tasks[-1] == "classification" else "detection"
    remaining = iter(rest)
    for argument in remaining:
        if not argument.startswith("-"):
            return "classification" if is_classification_data(argument) else "detection"
        if "=" not in argument and argument not in ("--resume", "--help", "-h"):
            next(remaining, None)
    return "detection"


def parse_train(arguments: Sequence[str], epilog: str = "") -> tuple[TrainConfig, bool]:
    """The settings of ``botvision train ARGUMENTS``, and whether to resume.

    Later beats earlier: the defaults, the recipe, the config file, the flags; when resuming, the
    run's own config stands for the recipe.
    """
    kind = _kind(arguments)
    parser = train_parser(kind)
    parser.prog, parser.epilog = "botvision train", epilog
    # jsonargparse lets the later of two options win, so the layers are put in that order.
    layers: list[str] = []
    flags, recipes = _take(list(arguments), "--recipe")
    flags, configs = _take(flags, "--config")
    _, outs = _take(flags, "--out")
    if "--resume" in flags and not outs:
        raise UserError("--resume needs --out, the run folder to go on with")
    run_config = Path(outs[-1]) / "config.yaml" if outs else None
    if "--resume" in flags and run_config is not None and run_config.is_file():
        settings = yaml.safe_load(run_config.read_text(encoding="utf-8"))
        own = {k: v for k, v in settings.items() if k not in ("resolved", "versions")}
        layers, recipes = [json.dumps(own)], []
    for name in recipes:
        path = RECIPES / kind / f"{name}.yaml"
        if not path.is_file():
            raise UserError(
                f"--recipe {name}: no such recipe for {kind}; choose one of "
                f"{', '.join(recipe_names(kind))}, or give a file with --config"
            )
        layers.append(str(path))
    for config in configs:
        if not Path(config).is_file():
            raise UserError(f"--config {config}: no such file")
        layers.append(config)
    layered = [part for layer in layers for part in ("--config", layer)]
    parsed = parser.parse_args([*layered, *flags])
    fields = parsed.as_dict()
    resume = fields.pop("resume")
    for name in ("recipe", "config"):
        fields.pop(name, None)
    if kind == "detection":
        fields["detector"] = DetectorConfig(**fields["detector"])
    return _CONFIGS[kind](**fields), resume


def _take(arguments: list[str], option: str) -> tuple[list[str], list[str]]:
    """The arguments without ``option``, and its values."""
    rest, values = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name != option:
            rest.append(argument)
            continue
        following = value if equals else next(remaining, None)
        if following is None:
            raise UserError(f"{option} needs a value")
        values.append(following)
    return rest, values


def _add_device(parser: Parser) -> None:
    parser.add_argument("--device", type=Device, default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--precision",
        type=Precision,
        default="auto",
        help="32, bf16 or 16; auto is bf16 on CUDA and on CPUs with AMX, else 32",
    )


def _add_views(parser: Parser) -> None:
    parser.add_argument(
        "--flip", action="store_true", help="of a detector: look at every image mirrored, too"
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        help="of a detector: look at every image at these shares of its image size: 0.75 1 1.25",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="of a detector: besides the whole image look at overlapping tiles of so many of its "
        "pixels a side, each at the model's image size",
    )


def eval_parser() -> Parser:
    """``botvision eval``."""
    parser = Parser(description="Metrics of a run on a data set: COCO's, or accuracy.")
    parser.add_argument("run", type=Path, help="run folder or best.safetensors")
    parser.add_argument("data", type=str, help="COCO or class folders, an archive, a built-in set")
    parser.add_argument("--split", type=str, help="by default val, else test, else the only one")
    parser.add_argument("--limit", type=int, help="evaluate so many images, drawn at random")
    parser.add_argument(
        "--max-detections", type=int, help="kept an image (100 in COCO; more for crowded images)"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="of a detector: 0.001 by default; 0.05 in the paper's code base",
    )
    _add_views(parser)
    parser.add_argument(
        "--image-size", type=int, help="of a classifier: pixels, by default the run's"
    )
    parser.add_argument(
        "--table-resize",
        type=TableResize,
        help="of a classifier: how position tables fit another size: slice or interpolate",
    )
    parser.add_argument(
        "--batch-size", type=int, help="images at once, of a detector also views: 32, of it 1"
    )
    parser.add_argument("--workers", type=int, default=-1, help="processes that load; -1 chooses")
    parser.add_argument("--out", type=Path, help="where to write; the run folder by default")
    _add_device(parser)
    return parser


def predict_parser() -> Parser:
    """``botvision predict``."""
    parser = Parser(description="Detect or classify: pictures of it and a JSON file.")
    parser.add_argument("run", type=Path, help="run folder or best.safetensors")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument(
        "--score-threshold", type=float, help="of a detector: draw and list from it, 0.5 by default"
    )
    parser.add_argument(
        "--max-detections", type=int, help="of a detector: kept an image; by default the run's"
    )
    _add_views(parser)
    parser.add_argument(
        "--batch-size", type=int, default=1, help="images, or views of them, at once"
    )
    parser.add_argument(
        "--mask-format",
        type=MaskFormat,
        help="of a segmentation model: rle, by default, or polygon: outer contours, no holes",
    )
    parser.add_argument("--out", type=Path, help="where to write; RUN/predictions by default")
    _add_device(parser)
    return parser


def models_parser() -> Parser:
    """``botvision models``."""
    parser = Parser(description="The paper's models: parameters, multiply-adds, published figures.")
    parser.add_argument("--json", action="store_true", help="for other programs")
    return parser


def doctor_parser() -> Parser:
    """``botvision doctor``."""
    return Parser(description="Versions, devices, whether the operators load, and what to do.")


def demo_parser() -> Parser:
    """``botvision demo``."""
    parser = Parser(description="Train on the built-in shapes, evaluate, and draw what came of it.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder")
    return parser
