"""``python killed.py LINES ARGUMENTS``: the command, killed when its run has logged LINES lines."""

import os
import signal
import subprocess
import sys

import torch

from botvision.cli.main import main
from botvision.training.run import Run

LOG = Run.log
# One number of threads here and there: the order of a sum must not differ by machine load.
THREADS = {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def run_and_kill(lines, *arguments):
    """Run the command in a process that is killed when its run has logged so many lines."""
    done = subprocess.run(
        [sys.executable, __file__, str(lines), *map(str, arguments)],
        env={**os.environ, **THREADS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def log_and_die(run, *event, **values):
    """Die of the signal that nothing can catch, as when a machine is taken away."""
    LOG(run, *event, **values)
    if run.events_file.read_bytes().count(b"\n") >= int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Run.log = log_and_die
    main(sys.argv[2:])
