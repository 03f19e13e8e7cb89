"""The command as a user calls it, inside this process."""

import pytest

from botvision.cli.main import main
from botvision.cli.train import parse_train, task_of_arguments, train_parser
from botvision.tasks.config import training_config


def run(capsys, *arguments):
    """Standard output of a command that succeeds."""
    main(list(map(str, arguments)))
    return capsys.readouterr().out


def fail(capsys, *arguments):
    """The one line on standard error of a command that fails with status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, arguments)))
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def train_config(*arguments):
    """All settings of ``botvision train ARGUMENTS``."""
    arguments = list(map(str, arguments))
    return training_config(**parse_train(train_parser(task_of_arguments(arguments)), arguments))
