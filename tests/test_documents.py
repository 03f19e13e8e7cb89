"""What the documents tell a user to type is what the command takes."""

import re
import shlex
from pathlib import Path

import pytest

from botvision.cli.bench import bench_parser
from botvision.cli.main import COMMANDS
from botvision.cli.train import train_parser
from botvision.settings import RECIPES as RECIPES_FOLDER
from botvision.settings import recipe_names

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide.md"
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
RECIPES = sorted(RECIPES_FOLDER.rglob("*.yaml"))
OF_LAUNCHERS = {  # torchrun and srun
    *("--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"),
    *("--ntasks-per-node", "--gpus-per-node", "--gpus-per-task", "--kill-on-bad-exit"),
}
OF_BENCHMARKS = {"--plan", "--detections", "--classes"}  # of the scripts in benchmarks/


def documented_commands():
    """(document, command line) for every command in a block, in `code` or in a recipe's comment."""
    for path in [*DOCUMENTS, *RECIPES]:
        text = re.sub(r"\s*\\\n\s*", " ", path.read_text(encoding="utf-8"))  # continued lines
        start = r"^(?:#\s+|(?:torchrun|srun) [^`\n]*?)?botvision "
        lines = re.findall(start + r"(\w+ .+)$", text, re.MULTILINE)
        lines = [re.split(r"\s{2,}|#", line)[0] for line in lines]
        lines += re.findall(r"`botvision (\w+\s[^`]+)`", text)
        for line in lines:
            yield pytest.param(line, id=f"{path.name}: {' '.join(line.split())}")


@pytest.mark.parametrize("line", list(documented_commands()))
def test_the_command_takes_it(line, capsys):
    name, *arguments = shlex.split(line)
    if name == "train":
        errors = [train_error(kind, arguments, capsys) for kind in ("detection", "classification")]
        assert None in errors, errors
    else:
        assert parse_error(COMMANDS[name][0](), arguments, capsys) is None


def train_error(kind, arguments, capsys):
    """What is wrong with ``botvision train ARGUMENTS`` on data of a kind, or None."""
    error = parse_error(train_parser(kind), arguments, capsys)
    if error is None and "--recipe" in arguments:
        recipe = arguments[arguments.index("--recipe") + 1]
        return None if recipe in recipe_names(kind) else f"no recipe {recipe} of {kind}"
    return error


def parse_error(parser, arguments, capsys):
    try:
        parser.parse_args(arguments)
    except SystemExit as stopped:
        return capsys.readouterr().err if stopped.code else None
    return None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_exists(path):
    made = [train_parser("detection"), train_parser("classification")]
    made += [make() for make, _, _ in COMMANDS.values()]
    made += bench_parser()._subcommands_action.choices.values()
    options = {option for parser in made for option in parser._option_string_actions}
    options |= {"--debug", *OF_LAUNCHERS}  # --debug is an option of every command
    mentioned = re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", path.read_text(encoding="utf-8"))
    if path.parent.name == "benchmarks":
        options |= OF_BENCHMARKS
    assert set(mentioned) - options == set()


def test_the_guide_lists_every_recipe():
    section = GUIDE.read_text(encoding="utf-8").split("## Recipes\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted({path.stem for path in RECIPES})
