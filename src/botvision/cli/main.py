"""The command ``botvision``; heavy libraries load only once a subcommand is known."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import Namespace

import botvision
from botvision.cli import bench
from botvision.cli.parsers import (
    Parser,
    demo_parser,
    doctor_parser,
    eval_parser,
    models_parser,
    parse_train,
    predict_parser,
    train_parser,
)
from botvision.config import DetectionConfig
from botvision.errors import UserError

EPILOG = """DATA is a folder in COCO format (annotations/*.json and image folders), of class folders
(train/CLASS/*.jpg, val/CLASS/*.jpg) or of webdataset shards (train-*.tar, val-*.tar), a zip or tar
of one of the first two, hfds/NAME of the Hugging Face Hub, or a built-in set: shapes,
shapes-context. RUN is a folder that `botvision train` wrote,
or its best.safetensors."""


def _train(parser: Parser, arguments: Sequence[str]) -> None:
    config, resume = parse_train(arguments, EPILOG)
    from botvision.tasks.train import train

    train(config, resume=resume)


def _eval(parser: Parser, arguments: Sequence[str]) -> None:
    options = _options(parser, arguments)
    from botvision.tasks.evaluate import evaluate

    evaluate(**options)


def _predict(parser: Parser, arguments: Sequence[str]) -> None:
    options = _options(parser, arguments)
    from botvision.tasks.predict import predict

    predict(**options)


def _models(parser: Parser, arguments: Sequence[str]) -> None:
    options = _options(parser, arguments)
    from botvision.cli.models import show_models

    show_models(as_json=options["json"])


def _doctor(parser: Parser, arguments: Sequence[str]) -> None:
    _options(parser, arguments)
    from botvision.cli.doctor import doctor

    doctor()


def _demo(parser: Parser, arguments: Sequence[str]) -> None:
    options = _options(parser, arguments)
    settings = [*("shapes", "--recipe", "demo", "--out", str(options["out"])), "--resume"]
    config, _ = parse_train(settings)
    assert isinstance(config, DetectionConfig)
    from botvision.tasks.demo import demo

    demo(config)


def _options(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    parsed: Namespace = parser.parse_args(list(arguments))
    return dict(parsed.as_dict())


Command = tuple[Callable[[], Parser], Callable[[Parser, Sequence[str]], None], str]

COMMANDS: dict[str, Command] = {
    "train": (train_parser, _train, "DATA: train a detector or a classifier"),
    "eval": (eval_parser, _eval, "RUN DATA: COCO metrics or accuracy of a run"),
    "predict": (predict_parser, _predict, "RUN IMAGE...: masks, boxes and names, or the class"),
    "models": (models_parser, _models, "the paper's models and their figures"),
    "bench": (
        bench.bench_parser,
        bench.run,
        "attention layers, models or reading images, timed here",
    ),
    "doctor": (doctor_parser, _doctor, "is everything installed as it should be?"),
    "demo": (demo_parser, _demo, "train, evaluate and draw on built-in data, in minutes"),
}


def _usage() -> str:
    lines = [f"  {name:9}{text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: botvision COMMAND ...",
            "",
            "Bottleneck Transformers (BoTNet): classification, detection, instance segmentation.",
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


def _with_options(parser: Parser, arguments: Sequence[str]) -> Parser:
    """The parser that has the options: that of the subcommand, such as ``bench model``, if any."""
    subcommands = parser._subcommands_action
    return parser if subcommands is None else subcommands.choices[arguments[0]]


def _with_flags(error: UserError, parser: Parser) -> str:
    """The message of an error in one line, with options of the command for parameters."""

    def flag(name: str) -> str | None:
        option = f"--{name.replace('_', '-')}"
        return option if option in parser._option_string_actions else None

    # One that crossed from a loading process brings its traceback along, the message last.
    line = str(error).strip().splitlines()[-1].removeprefix("botvision.errors.UserError: ")
    if error.parameter is not None and (option := flag(error.parameter)):
        line = option + line.removeprefix(error.parameter)
    return re.sub(r"`([a-z_.]+)`", lambda match: flag(match[1]) or match[0], line)


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
    make_parser, run, _ = COMMANDS[args[0]]
    parser = make_parser()
    parser.prog = f"botvision {args[0]}"
    parser.epilog = EPILOG
    try:
        run(parser, args[1:])
    except UserError as error:
        if debug:
            traceback.print_exc()
        line = _with_flags(error, _with_options(parser, args[1:]))
        print(f"botvision {args[0]}: error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
