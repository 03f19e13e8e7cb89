"""Help on a terminal of 80 columns: it fits, and options are in named groups."""

from dataclasses import fields

import pytest

from botvision.cli.main import COMMANDS, main
from botvision.cli.train import GROUPS, train_parser
from botvision.config import ClassificationConfig, DetectionConfig
from botvision.models import list_models
from commandline import run

BENCHMARKS = [["bench", name] for name in ("attention", "model", "data")]
CONFIGS = {"detection": DetectionConfig, "classification": ClassificationConfig}


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [*([name] for name in COMMANDS), *BENCHMARKS, ["train", "--task", "classification"]],
    ids=" ".join,
)
def test_help_fits_80_columns(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(capsys, *command)
    assert f"usage: botvision {command[0]}" in text
    assert max(map(len, text.splitlines())) <= 80
    # Python's names of types and values do not help a user.
    for word in ("typing", "<class", "Literal", "null", "Optional", "NoneType"):
        assert word not in text


@pytest.mark.parametrize("task", CONFIGS)
def test_every_option_of_train_is_in_one_named_group(task):
    parser = train_parser(task)
    places = {}
    for group in parser._action_groups:
        for action in group._group_actions:
            for option in action.option_strings:
                places.setdefault(option, []).append(group.title)
    del places["-h"], places["--help"]
    assert {option: titles for option, titles in places.items() if len(titles) > 1} == {}
    assert {titles[0] for titles in places.values()} <= set(GROUPS)
    names = {field.name for field in fields(CONFIGS[task])} - {"data"}
    assert {f"--{name.replace('_', '-')}" for name in names} <= set(places)


def test_defaults_and_flags_are_readable(capsys):
    text = " ".join(help_of(capsys, "train").split())
    assert "(default: 0.6667 0.8889)" in text
    assert "instead of --epochs" in text and "over --accumulate micro-batches" in text


def test_the_table_of_models_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = run(capsys, "models")
    assert max(map(len, table.splitlines())) <= 80
    for name in list_models():
        assert f"{name} " in table
    assert "…" not in table


@pytest.mark.parametrize("command", [["eval"], ["predict"], *BENCHMARKS], ids=" ".join)
def test_options_of_the_other_commands_are_in_named_groups(capsys, command):
    text = help_of(capsys, *command)
    _, _, rest = text.partition("\noptions:\n")
    ungrouped, *groups = rest.split("\n\n")
    assert [line.split()[0] for line in ungrouped.splitlines() if line.startswith("  -")] == ["-h,"]
    titles = [group.partition(":\n")[0] for group in groups if ":\n" in group]
    assert "output" in titles
    assert ("hardware" in titles) == (command != ["bench", "data"])
