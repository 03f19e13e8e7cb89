"""The command ``botvision``. Heavy libraries load only when a subcommand runs."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

import botvision
from botvision.cli import bench, check, demo, doctor, eval, models, predict, train
from botvision.cli.parsers import Parser
from botvision.errors import UserError
from botvision.text import printable

EPILOG = """DATA is one of: a folder in COCO format (annotations/*.json and image folders); a
folder of class folders (train/CLASS/*.jpg, val/CLASS/*.jpg); a zip or tar archive of one of these;
a folder of webdataset shards (train-*.tar, val-*.tar); hfds/NAME on the Hugging Face Hub; a
built-in set, shapes or shapes-context. RUN is a folder that `botvision train` wrote, or its
best.safetensors."""


Run = Callable[[Parser, Sequence[str]], None]

# The parser of each command, the function that runs it, and its summary.
COMMANDS: dict[str, tuple[Callable[[], Parser], Run, str]] = {
    "train": (train.train_parser, train.run, "DATA: train a detector or a classifier"),
    "eval": (eval.eval_parser, eval.run, "RUN DATA: evaluate a run, COCO metrics or accuracy"),
    "predict": (
        predict.predict_parser,
        predict.run,
        "RUN IMAGE...: masks, boxes and classes of images",
    ),
    "check": (check.check_parser, check.run, "DATA: check a data set before training"),
    "models": (models.models_parser, models.run, "list the paper's models"),
    "bench": (
        bench.bench_parser,
        bench.run,
        "measure attention layers, models or data pipelines",
    ),
    "doctor": (doctor.doctor_parser, doctor.run, "check the installation"),
    "demo": (demo.demo_parser, demo.run, "train, evaluate and draw on built-in data, in minutes"),
}


def _let_idle_threads_sleep() -> None:
    """Let OpenMP's waiting threads sleep early, unless the user has configured how they wait.

    By default they spin, which multiplies the time of a run as soon as another process needs one of
    the cores (benchmarks/README.md). GNU's OpenMP reads this when torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "2000"


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


def _with_flags(error: UserError, options: set[str]) -> str:
    """Return the message of an error in one line, with flags for the names of parameters."""

    def flag(name: str) -> str | None:
        option = f"--{name.replace('_', '-')}"
        return option if option in options else None

    line = str(error)
    if error.parameter is not None and (option := flag(error.parameter)):
        line = option + line.removeprefix(error.parameter)
    return re.sub(r"`([a-z_.]+)`", lambda match: flag(match[1]) or match[0], line)


def _failure_of_the_machine(error: Exception) -> str | None:
    """Describe lack of memory, or a file that cannot be read or written; None for other errors."""
    if isinstance(error, OSError):
        where = f"{printable(error.filename)}: " if error.filename else ""
        return f"{where}{error.strerror}" if error.strerror else None
    from botvision.device import is_out_of_memory  # Loads torch, which has raised the error.

    if is_out_of_memory(error):
        return "out of memory; lower --batch-size, or use smaller images or a smaller model"
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: without the program name; ``sys.argv`` by default.

    Raises:
        SystemExit: with status 2 for wrong input, 130 after Ctrl-C, 143 after SIGTERM.
    """
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
    # Without torch's stack trace of a lost connection to another process.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if args[0] != "bench":  # which measures what users of the library have
        _let_idle_threads_sleep()
    make_parser, run, _ = COMMANDS[args[0]]
    parser = make_parser()
    parser.prog = f"botvision {args[0]}"
    parser.epilog = EPILOG
    try:
        run(parser, args[1:])
    except UserError as error:
        if debug:
            traceback.print_exc()
        options = parser.options()
        if args[0] == "train":  # whose parser depends on the task
            options |= train.train_parser("classification").options()
        print(f"botvision {args[0]}: error: {_with_flags(error, options)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (OSError, MemoryError, RuntimeError) as error:
        line = _failure_of_the_machine(error)
        if debug or line is None:
            raise
        print(f"botvision {args[0]}: error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        if not interrupt.args:  # a training run has printed where it stopped
            print("interrupted", file=sys.stderr)
        sys.exit(130)
