"""The run folder: full disks, read-only folders, damaged files, two trainings at once."""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from botvision.cli.main import main
from botvision.data.coco import CocoData
from botvision.errors import UserError
from botvision.tasks.checkpoint import load_model
from botvision.tasks.detection import DetectionModule
from botvision.training.checkpoints import AtomicCheckpointIO, read_checkpoint
from botvision.training.lock import lock_folder
from botvision.training.run import Run
from commandline import fail
from killed import THREADS
from tiny import TINY_SETTINGS, python_train

MORE = ["--max-steps", "4", "--eval-steps", "2"]


def train(data, out, *more):
    main(["train", str(data), *TINY_SETTINGS, *MORE, "--out", str(out), *map(str, more)])


@contextmanager
def full_disk(size):
    """As on a disk with ``size`` bytes left. Weights have 520 kB, a checkpoint 1 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def deny_writing():
    """Without the capability of root to write into every folder."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def run_command(prepare, *arguments):
    """The one line on standard error of the real command, which fails with status 2."""
    done = subprocess.run(
        [sys.executable, "-m", "botvision", *map(str, arguments)],
        env={**os.environ, **THREADS},
        capture_output=True,
        text=True,
        preexec_fn=prepare,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if not line.startswith("step ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def half(tiny_data, tmp_path_factory):
    """A run that has failed after 2 of 4 steps; tests copy what they damage."""
    out, step = tmp_path_factory.mktemp("half") / "run", DetectionModule.training_step

    def fail_in_the_third(self, *arguments):
        if self.global_step == 2:
            raise UserError("half of it")
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(DetectionModule, "training_step", fail_in_the_third)
        train(tiny_data, out)
    return out


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    """A folder on the file system of temporary files, and on another one."""
    if request.param == "disk":
        yield tmp_path
        return
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no file system other than that of temporary files")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        yield Path(other)


@pytest.mark.parametrize(("size", "name"), [(300_000, "best.safetensors"), (700_000, "last.ckpt")])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_survives(
    tiny_data, half, folder, tmp_path, monkeypatch, capsys, size, name
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    run = copy(half, folder / "run")
    before = (run / "checkpoints/last.ckpt").read_bytes()
    with full_disk(size):
        more = ["--resume", "--checkpoint-steps", 1]
        line = fail(capsys, "train", tiny_data, "--out", run, *more)
    assert f"{name}: cannot be written (" in line and "File too large" in line
    assert (run / "checkpoints/last.ckpt").read_bytes() == before
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not list(run.glob(".tmp-*"))
    assert not [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]
    train(tiny_data, run, "--resume")
    assert Run(run).metrics["step"] == 4


def copy(run, to):
    for path, content in files(run).items():
        target = to / path.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return to


def test_a_kill_in_a_save_leaves_the_last_checkpoint(folder, monkeypatch):
    path = folder / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, path)
    before = path.read_bytes()
    save = torch.save

    def save_and_die(content, file):
        save(content, file)
        file.flush()
        os._exit(9)

    monkeypatch.setattr(torch, "save", save_and_die)
    child = os.fork()
    if child == 0:
        AtomicCheckpointIO().save_checkpoint({"global_step": 2}, path)
    os.waitpid(child, 0)
    assert path.read_bytes() == before
    assert [file.name for file in folder.iterdir() if file != path] == [".tmp-last.ckpt"]


def test_what_a_killed_save_has_left_is_removed(tiny_data, half, tmp_path):
    run = copy(half, tmp_path / "run")
    for name in ("checkpoints/.tmp-last.ckpt", ".tmp-best.safetensors"):
        (run / name).write_text("half a file")
    train(tiny_data, run, "--resume")
    assert not [path for path in run.rglob("*") if ".tmp" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_a_read_only_folder_is_one_line(tiny_data, half, tmp_path, resumed):
    run = copy(half, tmp_path / "run") if resumed else tmp_path / "run"
    run.mkdir(exist_ok=True)
    before = {path: content for path, content in files(run).items() if path.name != ".lock"}
    run.chmod(0o555)
    try:
        arguments = ["--resume"] if resumed else [*TINY_SETTINGS, *MORE]
        line = run_command(deny_writing, "train", tiny_data, *arguments, "--out", run)
    finally:
        run.chmod(0o755)
    assert f"{run}/" in line and "cannot be written (Permission denied); " in line
    assert {path: content for path, content in files(run).items() if path in before} == before


def test_the_run_folder_is_a_file(tiny_data, tmp_path, capsys):
    (tmp_path / "run").write_text("text")
    for out in (tmp_path / "run", tmp_path / "run" / "inside"):
        line = fail(capsys, "train", tiny_data, *TINY_SETTINGS, "--out", out)
        assert "file" in line and "give another --out" in line


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"{: [", b"- 1\n", b"", b"a: 2001-99-99\n", b"a: &a [1]\nb: *a\n"],
)
def test_a_damaged_config(tiny_data, half, tmp_path, capsys, content):
    run = copy(half, tmp_path / "run")
    (run / "config.yaml").write_bytes(content)
    line = fail(capsys, "train", tiny_data, "--out", run, "--resume")
    assert f"{run}/config.yaml: damaged; restore it, or delete it" in line
    assert (run / "config.yaml").read_bytes() == content


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1, 2]", b'{"event": "train"}', b'"text"', b"{"])
def test_damaged_events(tiny_data, half, tmp_path, capsys, line):
    run = copy(half, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    (run / "metrics.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[1:], b""]))
    error = fail(capsys, "train", tiny_data, "--out", run, "--resume")
    assert f"{run}/metrics.jsonl: line 2 is damaged" in error
    # A last line may be cut, even to zeros, when a machine loses its power.
    (run / "metrics.jsonl").write_bytes(b"\n".join([*lines, b"\0\0\0"]))
    assert len(Run(run).history) == len(lines)


def test_flipped_bytes_of_a_checkpoint_are_noticed(tiny_data, half, tmp_path, capsys):
    run = copy(half, tmp_path / "run")
    checkpoint = run / "checkpoints/last.ckpt"
    content = checkpoint.read_bytes()
    with zipfile.ZipFile(checkpoint) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size > 100]
    assert read_checkpoint(checkpoint)["global_step"] == 2
    for entry in entries[:: max(1, len(entries) // 20)]:
        # A local header has 30 bytes, then the name and a padding.
        name, padding = (
            content[entry.header_offset + at : entry.header_offset + at + 2] for at in (26, 28)
        )
        start = (
            entry.header_offset
            + 30
            + int.from_bytes(name, "little")
            + int.from_bytes(padding, "little")
        )
        damaged = bytearray(content)
        damaged[start + entry.file_size // 2] ^= 1
        checkpoint.write_bytes(damaged)
        with pytest.raises(UserError, match="not a readable checkpoint"):
            read_checkpoint(checkpoint)
    line = fail(capsys, "train", tiny_data, "--out", run, "--resume")
    assert (
        f"{checkpoint}: not a readable checkpoint of tensors and plain values, or damaged" in line
    )
    for size in (0, 1, 1000, len(content) - 1):
        checkpoint.write_bytes(content[:size])
        with pytest.raises(UserError, match="not a readable checkpoint"):
            read_checkpoint(checkpoint)


def test_resume_where_nothing_is_starts_at_step_0(tiny_data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        out = tmp_path / name
        train(tiny_data, out, "--resume", "--max-steps", 1)
        lines = capsys.readouterr().out.splitlines()
        assert f"{out}: no checkpoint to resume from, starting at step 0" in lines


def test_a_run_is_not_resumed_without_a_word(tiny_data, half, tmp_path, capsys):
    """A checkpoint that somebody else has put into the folder is not loaded."""
    run = copy(half, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    line = fail(capsys, "train", tiny_data, *TINY_SETTINGS, "--out", run)
    assert "holds a run already; add --resume to continue it" in line


HOLDER = """
import sys, time
from pathlib import Path
from botvision.training.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_trainings_do_not_share_a_folder(tiny_data, half, tmp_path, capsys):
    run = copy(half, tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    before = files(run)
    line = fail(capsys, "train", tiny_data, "--out", run, "--resume")
    assert f"{run}: process {holder.pid} is training in this folder" in line
    assert files(run) == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    train(tiny_data, run, "--resume")
    assert not FileLock(run / ".lock").is_locked
    assert Run(run).metrics["step"] == 4


ORPHAN = """
import os, sys, time
from pathlib import Path
from botvision.training.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
    os.kill(os.getpid(), 9)
"""


def test_the_lock_of_a_dead_holder_is_taken_over(tmp_path):
    """Even while a process that loaded its data has not noticed yet."""
    subprocess.run([sys.executable, "-c", ORPHAN, str(tmp_path)], check=False)
    with lock_folder(tmp_path):
        assert (tmp_path / ".lock").read_text().splitlines()[0] == str(os.getpid())


def test_a_killed_data_process_is_one_line(tiny_data, tmp_path, capsys, monkeypatch):
    parent, read = os.getpid(), CocoData.image

    def read_and_die(self, index):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(CocoData, "image", read_and_die)
    arguments = ["train", tiny_data, *TINY_SETTINGS, *MORE, "--out", tmp_path, "--workers", 1]
    line = fail(capsys, *arguments)
    assert "a process that loads data has ended unexpectedly" in line
    assert "lower --workers, and continue with --resume" in line


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError("Unable to allocate 8 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_lack_of_memory_is_one_line(tiny_data, tmp_path, capsys, monkeypatch, error):
    def forward(*arguments):
        raise error

    monkeypatch.setattr("botvision.tasks.detection.DetectionModule.training_step", forward)
    line = fail(capsys, "train", tiny_data, *TINY_SETTINGS, *MORE, "--out", tmp_path / "run")
    assert line == (
        "botvision train: error: the cpu is out of memory; raise --accumulate (now 1), which "
        "computes the same step in smaller parts, lower --batch-size (now 3), or set "
        "--grad-checkpointing"
    )


def test_an_evaluation_that_fails_leaves_weights(tiny_data, tmp_path):
    class Failing:
        def reset(self):
            pass

        def update(self, predictions, batch):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        python_train(tiny_data, tmp_path / "run", evaluators=[Failing()], eval_steps=0)
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 4


def test_the_last_model_is_kept_where_validation_has_no_objects(tiny_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for part in ("train", "val"):
        (data / part).symlink_to(tiny_data / part)
    (data / "annotations").mkdir()
    for file in (tiny_data / "annotations").iterdir():
        content = json.loads(file.read_text())
        if "val" in file.name:
            content["annotations"] = []
        (data / "annotations" / file.name).write_text(json.dumps(content))
    run = tmp_path / "run"
    train(data, run, "--task", "segmentation")
    assert Run(run).metrics["segm"]["AP"] == -1
    model, _ = load_model(run)
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, last[f"detector.{name}"])


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path):
    """Somebody would delete it."""
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be read \(Is a directory\)"):
        (tmp_path / "last.ckpt").mkdir()
        read_checkpoint(tmp_path / "last.ckpt")
