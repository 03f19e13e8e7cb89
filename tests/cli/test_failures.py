"""Failures of the machine are one line, whatever the command."""

import resource
import signal
import subprocess
import sys

import pytest

from commandline import fail

COMMAND = [sys.executable, "-m", "botvision"]


def test_a_file_that_cannot_be_written_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    report = tmp_path / "file" / "report.json"
    arguments = ["bench", "attention", "--sizes", "2", "--seconds", "0.01", "--json", report]
    line = fail(capsys, *arguments)
    assert str(tmp_path / "file") in line and "Errno" not in line


def test_output_into_a_pipe_that_ends_is_no_error():
    with subprocess.Popen(
        [*COMMAND, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits the memory on Linux only")
def test_lack_of_memory_is_one_line(tiny_run, tiny_data, tmp_path):
    """The limit is far above what the program needs, and far below what this batch needs."""
    done = subprocess.run(
        [
            *(*COMMAND, "predict", tiny_run, tiny_data / "val", "--out", tmp_path / "out"),
            *("--scales", "400", "--device", "cpu"),
        ],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("botvision predict: error: out of memory")
