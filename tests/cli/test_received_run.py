"""A run folder of a stranger: what is written into it is written nowhere else."""

import os
import shutil

import pytest

from commandline import fail, run

STEPS = ["--resume", "--max-steps", "9"]


@pytest.fixture
def received(tiny_run, tmp_path):
    folder = tmp_path / "received"
    shutil.copytree(tiny_run, folder)
    return folder


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


def names_of_files(folder):
    return [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]


def test_temporary_files_that_are_links_are_not_followed(capsys, received, tiny_data, victim):
    for name in names_of_files(received):
        path = received / name
        for temporary in (f"{path.name}.tmp", f"{path.stem}.tmp", f".tmp-{path.name}"):
            if not os.path.lexists(path.with_name(temporary)):
                path.with_name(temporary).symlink_to(victim)
    run(capsys, "train", tiny_data, "--out", received, *STEPS)


def test_files_that_are_links_are_replaced(capsys, received, tiny_data, victim, tmp_path):
    replaced = [received / name for name in ("metrics.json", "plots/loss.png")]
    replaced += (received / "predictions").iterdir()
    for path in replaced:
        path.unlink()
        path.symlink_to(victim)
    config = tmp_path / "config.yaml"  # which is read first
    (received / "config.yaml").rename(config)
    (received / "config.yaml").symlink_to(config)
    before = config.read_bytes()
    run(capsys, "train", tiny_data, "--out", received, *STEPS)
    assert not any(path.is_symlink() for path in received.rglob("*"))
    assert config.read_bytes() == before


def test_events_are_not_written_through_a_link(capsys, received, tiny_data, tmp_path):
    (received / "metrics.jsonl").rename(tmp_path / "events")
    before = (tmp_path / "events").read_bytes()
    (received / "metrics.jsonl").symlink_to(tmp_path / "events")
    run(capsys, "train", tiny_data, "--out", received, *STEPS)
    assert (tmp_path / "events").read_bytes() == before


@pytest.mark.parametrize("name", ["checkpoints", "plots", "predictions"])
def test_folders_that_are_links_are_refused(capsys, received, tiny_data, tmp_path, name):
    (received / name).rename(tmp_path / "victims")
    before = {p: p.read_bytes() for p in (tmp_path / "victims").iterdir()}
    (received / name).symlink_to(tmp_path / "victims")
    line = fail(capsys, "train", tiny_data, "--out", received, *STEPS)
    assert f"{received}/{name}: is a link to {tmp_path}/victims" in line
    assert {p: p.read_bytes() for p in (tmp_path / "victims").iterdir()} == before


def test_the_lock_is_no_link(capsys, received, tiny_data, victim):
    for name in ("lock", ".lock", "run.lock"):
        (received / name).unlink(missing_ok=True)
        (received / name).symlink_to(victim)
    try:
        run(capsys, "train", tiny_data, "--out", received, *STEPS)
    except SystemExit as stopped:
        assert stopped.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
