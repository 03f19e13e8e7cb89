"""The number of processes of a run is that of torchrun or srun, whose variables are set here."""

import re
import shlex
from pathlib import Path

import pytest

from botvision.cli.train import train_parser
from botvision.errors import UserError
from botvision.launcher import Launcher
from botvision.settings import recipe_names
from botvision.tasks.config import settle

# As torchrun --nnodes 2 --nproc-per-node 4 sets them for the last process.
TORCHRUN = {"RANK": 7, "LOCAL_RANK": 3, "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4}
# As sbatch --nodes 2 --ntasks-per-node 4 sets them in the script's own shell.
BATCH = {
    **{"SLURM_NTASKS": 8, "SLURM_NTASKS_PER_NODE": 4, "SLURM_NNODES": 2, "SLURM_JOB_ID": 1},
    **{"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NODEID": 0, "SLURM_JOB_NAME": "train"},
}
# As srun sets them in such a script for the last process.
SRUN = {
    **BATCH,
    **{"SLURM_PROCID": 7, "SLURM_LOCALID": 3, "SLURM_NODEID": 1, "SLURM_STEP_ID": 0},
    **{"SLURM_STEP_NUM_TASKS": 8, "SLURM_STEP_NUM_NODES": 2, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
}
ONE_TASK = {"SLURM_STEP_NUM_TASKS": 1, "SLURM_STEP_NUM_NODES": 1, "SLURM_STEP_TASKS_PER_NODE": "1"}


@pytest.fixture
def variables(monkeypatch):
    def set_variables(values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return set_variables


@pytest.fixture
def settings(tmp_path):
    return {"out": tmp_path / "run", "batch_size": 8, "device": "cpu"}


def settled(settings):
    return settle("shapes", recipe=None, config=None, resume=False, settings=settings)


def fail(settings):
    with pytest.raises(UserError) as error:
        settled(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("name", "values"), [("torchrun", TORCHRUN), ("srun", SRUN)])
def test_the_launcher_decides(name, values, variables, settings):
    variables(values)
    assert Launcher.current() == Launcher(name, rank=7, local_rank=3, devices=4, nodes=2)
    config, process = settled(settings)
    assert (config.devices, config.nodes) == (4, 2)
    assert (process.rank, process.count) == (7, 8)


@pytest.mark.parametrize("values", [{}, BATCH, {**SRUN, **ONE_TASK}], ids=["", "sbatch", "1 task"])
def test_one_process_without_a_launcher(values, variables, settings):
    variables(values)
    config, process = settled(settings)
    assert (config.devices, config.nodes) == (1, 1)
    assert (process.rank, process.count) == (0, 1)


@pytest.mark.parametrize("values", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_settings_must_not_contradict_the_launcher(values, variables, settings):
    variables(values)
    settled({**settings, "devices": 4, "nodes": 2})
    # The product is the same.
    message = fail({**settings, "devices": 2, "nodes": 4})
    assert message.startswith("devices 2: ")
    assert "4 processes per machine on 2 machines" in message
    assert fail({**settings, "nodes": 1}).startswith("nodes 1: ")


def test_an_earlier_run_may_have_had_another_number(variables, settings):
    settings["out"].mkdir()
    (settings["out"] / "config.yaml").write_text("devices: 2\nnodes: 1\nbatch_size: 8\n")
    variables(TORCHRUN)
    config, _ = settle("shapes", recipe=None, config=None, resume=True, settings=settings)
    assert (config.devices, config.nodes) == (4, 2)


def test_the_batch_is_split_over_the_launchers_processes(variables, settings):
    variables(TORCHRUN)
    assert "must be a multiple of 8" in fail({**settings, "batch_size": 4})


def test_all_processes_need_one_run_folder(variables, settings):
    variables(SRUN)
    assert "give `out`" in fail({**settings, "out": None})


def test_machines_with_different_numbers_of_processes(variables):
    variables({**TORCHRUN, "WORLD_SIZE": 7, "LOCAL_WORLD_SIZE": 3})
    with pytest.raises(UserError, match="3 of 7 processes"):
        Launcher.current()


def test_tasks_that_slurm_has_spread_unevenly(variables):
    variables({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "5,3"})
    with pytest.raises(SystemExit) as stopped:
        Launcher.current()
    assert stopped.value.code == 2
    variables({"SLURM_PROCID": 0})
    with pytest.raises(UserError, match="5,3 tasks"):
        Launcher.current()


def test_several_machines_need_a_launcher(settings):
    message = fail({**settings, "nodes": 2})
    assert message.startswith("nodes 2: ")
    assert "torchrun or srun" in message


def test_each_process_needs_a_device(variables, settings, monkeypatch):
    """A task that sees only its own GPU, as with srun --gpus-per-task 1."""
    variables(SRUN)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert fail({**settings, "device": "cuda"}) == (
        "devices 4: every process must see one cuda device per process on its machine, and this "
        "one sees 1"
    )


def test_the_example_for_slurm_is_a_command():
    text = (Path(__file__).parents[1] / "examples" / "train.sbatch").read_text()
    (line,) = re.findall(r"^train=\(botvision train (.*)\)$", text, re.MULTILINE)
    settings = train_parser("detection").given(shlex.split(line))
    assert settings["resume"]
    assert settings["recipe"] in recipe_names("detection")
    assert text.count("# CHANGE ") == 3
