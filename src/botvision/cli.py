"""The command ``botvision``; heavy libraries load only once a subcommand is known."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

import botvision
from botvision.config import DetectorConfig, Device, TrainConfig
from botvision.errors import UserError

RECIPES = Path(__file__).parent / "recipes"

EPILOG = """DATA is a folder in COCO format (annotations/*.json and image folders), a zip or tar
of one, or a built-in set: shapes, shapes-context. RUN is a folder that `botvision train` wrote,
or its best.safetensors."""


class Parser(ArgumentParser):
    """Options with dashes, and errors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        line = " ".join(str(message).split())
        print(f"{self.prog}: error: {line}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def add_train_config(self) -> None:
        """Every field of ``TrainConfig`` as an option, DATA as the positional."""
        self.add_class_arguments(TrainConfig, as_group=False, as_positional=True)
        for action in self._actions:
            dashed = [option.replace("_", "-") for option in action.option_strings]
            for option in set(dashed) - set(action.option_strings):
                self._option_string_actions[option] = action
            action.option_strings = dashed


def recipe_names() -> list[str]:
    """Names of the recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _train_parser() -> Parser:
    parser = Parser(description="Train Mask R-CNN or Faster R-CNN on COCO-format data.")
    parser.add_argument(
        "--recipe", help=f"settings to start from: {', '.join(recipe_names())}", type=str
    )
    parser.add_argument(
        "--config", action="config", help="YAML of settings; it beats the recipe, a flag beats it"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in --out, if any"
    )
    parser.add_train_config()
    return parser


def parse_train(parser: Parser, arguments: Sequence[str]) -> tuple[TrainConfig, bool]:
    """The settings of ``botvision train ARGUMENTS``, and whether to resume.

    Later beats earlier: the defaults, the recipe, the config file, the flags; when resuming, the
    run's own config stands for the recipe.
    """
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
        path = RECIPES / f"{name}.yaml"
        if not path.is_file():
            raise UserError(
                f"--recipe {name}: no such recipe; choose one of {', '.join(recipe_names())}, or "
                "give a file with --config"
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
    fields["detector"] = DetectorConfig(**fields["detector"])
    return TrainConfig(**fields), resume


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


def _eval_parser() -> Parser:
    parser = Parser(description="COCO metrics of a run on a data set.")
    parser.add_argument("run", type=Path, help="run folder or best.safetensors")
    parser.add_argument("data", type=str, help="COCO folder, archive or built-in set")
    parser.add_argument("--split", type=str, help="by default val, else test, else the only one")
    parser.add_argument(
        "--max-detections", type=int, help="kept an image (100 in COCO; more for crowded images)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.001, help="0.05 in the paper's code base"
    )
    parser.add_argument("--workers", type=int, default=-1, help="processes that load; -1 chooses")
    parser.add_argument("--out", type=Path, help="where to write; the run folder by default")
    _add_device(parser)
    return parser


def _predict_parser() -> Parser:
    parser = Parser(description="Detect on images: overlays and a JSON file.")
    parser.add_argument("run", type=Path, help="run folder or best.safetensors")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="draw and list from it")
    parser.add_argument("--max-detections", type=int, help="kept an image")
    parser.add_argument("--out", type=Path, help="where to write; RUN/predictions by default")
    _add_device(parser)
    return parser


def _models_parser() -> Parser:
    parser = Parser(description="The paper's models: parameters, multiply-adds, published figures.")
    parser.add_argument("--json", action="store_true", help="for other programs")
    return parser


def _doctor_parser() -> Parser:
    return Parser(description="Versions, devices, whether the operators load, and what to do.")


def _demo_parser() -> Parser:
    parser = Parser(description="Train on the built-in shapes, evaluate, and draw what came of it.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder")
    return parser


def _train(parser: Parser, arguments: Sequence[str]) -> None:
    config, resume = parse_train(parser, arguments)
    from botvision.commands.train import train

    train(config, resume=resume)


def _eval(parser: Parser, arguments: Sequence[str]) -> None:
    options = _options(parser, arguments)
    from botvision.commands.evaluate import evaluate

    evaluate(**options)


def _predict(parser: Parser, arguments: Sequence[str]) -> None:
    options = _options(parser, arguments)
    from botvision.commands.predict import predict

    predict(**options)


def _models(parser: Parser, arguments: Sequence[str]) -> None:
    options = _options(parser, arguments)
    from botvision.commands.models import show_models

    show_models(as_json=options["json"])


def _doctor(parser: Parser, arguments: Sequence[str]) -> None:
    _options(parser, arguments)
    from botvision.commands.doctor import doctor

    doctor()


def _demo(parser: Parser, arguments: Sequence[str]) -> None:
    options = _options(parser, arguments)
    settings = [*("shapes", "--recipe", "demo", "--out", str(options["out"])), "--resume"]
    config, _ = parse_train(_train_parser(), settings)
    from botvision.commands.demo import demo

    demo(config)


def _options(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    parsed: Namespace = parser.parse_args(list(arguments))
    return dict(parsed.as_dict())


Command = tuple[Callable[[], Parser], Callable[[Parser, Sequence[str]], None], str]

COMMANDS: dict[str, Command] = {
    "train": (_train_parser, _train, "DATA: train a detector"),
    "eval": (_eval_parser, _eval, "RUN DATA: COCO metrics of a run"),
    "predict": (_predict_parser, _predict, "RUN IMAGE...: masks, boxes and names on images"),
    "models": (_models_parser, _models, "the paper's models and their figures"),
    "doctor": (_doctor_parser, _doctor, "is everything installed as it should be?"),
    "demo": (_demo_parser, _demo, "train, evaluate and draw on built-in data, in minutes"),
}


def _usage() -> str:
    lines = [f"  {name:9}{text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: botvision COMMAND ...",
            "",
            "Bottleneck Transformers (BoTNet) for detection and instance segmentation.",
            "",
            "commands (each has --help):",
            *lines,
            "",
            "options:",
            "  --version  print the version",
            "  --debug    show the traceback of an error",
            "",
            EPILOG,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit status 0 on success, 2 for a fault in what was given."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in args
    args = [argument for argument in args if argument != "--debug"]
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        sys.exit(0 if args else 2)
    if args[0] == "--version":
        print(f"botvision {botvision.__version__}")
        return
    if args[0] not in COMMANDS:
        print(
            f"botvision: error: no command is named {args[0]!r}; choose one of "
            f"{', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        sys.exit(2)
    # Threads that wait by spinning slow every other process, and each other where there are more
    # of them than idle cores. Has to be set before torch loads its OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    make_parser, run, _ = COMMANDS[args[0]]
    parser = make_parser()
    parser.prog = f"botvision {args[0]}"
    parser.epilog = EPILOG
    try:
        run(parser, args[1:])
    except UserError as error:
        if debug:
            traceback.print_exc()
        # One that crossed from a loading process brings its traceback along, the message last.
        line = str(error).strip().splitlines()[-1].removeprefix("botvision.errors.UserError: ")
        print(f"botvision {args[0]}: error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
