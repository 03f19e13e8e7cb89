"""The processes of a training run: they start together and end together, with one message."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from botvision.errors import UserError
from botvision.launcher import Launcher

# How long a process that fails waits for the others to notice, in seconds.
PATIENCE = 15.0

# A program may train several times, with the same processes and in the same order in all of them.
_runs = itertools.count()
_children: list[subprocess.Popen[bytes]] = []  # that this process has started


class Processes:
    """The processes of a run, as a context around everything that the run does.

    If one of them fails, all end, and one of them raises the error: the one in which it occurred,
    or another one if the process was lost. The others exit with status 2 and without a message.
    Lightning's own launcher kills the first process when another one is lost, without a message.
    """

    def __init__(self) -> None:
        launcher = Launcher.current()
        self._launcher = launcher if launcher is not None and launcher.count > 1 else None
        self._store: Store | None = None
        self._ended = threading.Event()
        self._run = next(_runs)

    def __enter__(self) -> Self:
        return self

    def start(self, devices: int) -> None:
        """Wait until every process is ready to train, at most 30 minutes.

        The first process starts the others if there is no launcher. They run the same program.

        Args:
            devices: number of processes on this machine.

        Raises:
            SystemExit: another process has failed and reports the reason.
            UserError: the processes cannot connect.
        """
        if self._launcher is None and devices > 1:
            self._start_children(devices)
        if self._launcher is None:
            return
        threading.Thread(target=self._watch, daemon=True).start()
        if any(self._exchange("")):
            sys.exit(2)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._launcher is None:
            return
        if error is not None and threading.current_thread() is threading.main_thread():
            # A launcher sends SIGTERM to the other processes as soon as one has ended, which may be
            # before this one has printed the reason.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if error is None or isinstance(error, SystemExit | KeyboardInterrupt):
            self._end()
            return
        try:
            self._fail(error)
        finally:
            _end_children()

    def _end(self) -> None:
        """Wait until all processes end: a launcher may kill the others when the first one ends."""
        assert self._launcher is not None
        if self._store is not None:
            with contextlib.suppress(dist.DistError):
                self._count("ended", 1)
                self._wait_for("ended", self._launcher.count)

    def _fail(self, error: BaseException) -> None:
        """Let one process report the error, which occurs in one process or in several."""
        assert self._launcher is not None
        if self._store is None:  # the others are ready, or fail for the same reason
            try:
                messages = self._exchange(str(error) or type(error).__name__)
            except UserError:
                return
            reports = next(rank for rank, message in enumerate(messages) if message)
            if reports != self._launcher.rank:
                raise SystemExit(2) from error
            return
        lost = _is_lost_connection(error)
        if not self._is_first():
            raise SystemExit(2) from error
        if self._launcher.rank == 0:  # whose store the others ask
            self._wait_for("failed", self._launcher.count - lost)
        if lost:
            raise UserError(self._loss()) from error

    def _is_first(self) -> bool:
        """Whether no other process has failed yet."""
        assert self._launcher is not None
        try:
            return self._count("failed", 1) == 1
        except dist.DistError:  # the first process, which has the store, is lost
            return self._launcher.rank == 1

    def _count(self, what: str, more: int = 0) -> int:
        """Add to a number that all processes share."""
        assert self._store is not None
        return int(self._store.add(what, more))

    def _wait_for(self, what: str, count: int) -> None:
        """Wait until that number of processes has ended, or failed."""
        with contextlib.suppress(dist.DistError):
            _wait(lambda: self._count(what) >= count)

    def _watch(self) -> None:
        """End this process if another one has failed and the main thread does not notice it."""
        while not self._ended.wait(0.5):
            try:
                if self._store is not None and self._count(
                    "failed"
                ):  # by a process that reports the reason
                    self._count("failed", 1)
                    os._exit(2)
                lost = any(child.poll() for child in _children)
            except dist.DistError:
                lost = True
            if lost and not self._ended.wait(PATIENCE):
                if self._is_first():
                    print(f"botvision: error: {self._loss()}", file=sys.stderr, flush=True)
                _end_children(0)
                os._exit(2)

    def _loss(self) -> str:
        """Return which process was lost, as far as it is known."""
        if _children:  # the system ends a process after it has closed its connections
            _wait(lambda: any(child.poll() is not None for child in _children), 2.0)
        reason = "the connection to another process was lost, whose output may show the reason"
        for rank, child in enumerate(_children, 1):
            if child.returncode:
                code = child.returncode
                how = (
                    f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended: {code}"
                )
                reason = f"process {rank} of {len(_children) + 1} {how}"
                break
        return f"{reason}; resume the run from its last checkpoint"

    def _start_children(self, devices: int) -> None:
        """Start the other processes of this machine, with the variables of torchrun."""
        if hasattr(sys, "ps1"):
            raise UserError(
                "an interactive session runs one process; use a script or the command",
                parameter="devices",
                value=devices,
            )
        # The system selects a free port, which belongs to the run as long as this store exists.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True)
        if "OMP_NUM_THREADS" not in os.environ:
            threads = max(1, torch.get_num_threads() // devices)
            os.environ["OMP_NUM_THREADS"] = str(threads)
            torch.set_num_threads(threads)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        self._launcher = Launcher("botvision", rank=0, local_rank=0, devices=devices, nodes=1)
        _export(self._launcher)
        spec = sys.modules["__main__"].__spec__
        program = [str(Path(sys.argv[0]).absolute())] if spec is None else ["-m", spec.name]
        for rank in range(1, devices):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, *program, *sys.argv[1:]]
            _children.append(subprocess.Popen(command, env={**os.environ, **own}))
        self._store = store  # until `_exchange` connects to it
        atexit.register(_end_children)

    def _exchange(self, message: str) -> list[str]:
        """Exchange messages with all processes: the reason of a failure, or empty if ready."""
        launcher = self._launcher
        assert launcher is not None
        if launcher.name == "srun":
            os.environ.setdefault("MASTER_ADDR", _first_host())
            os.environ.setdefault("MASTER_PORT", _slurm_port())
            _export(launcher)
        try:
            base, _, _ = next(rendezvous("env://", launcher.rank, launcher.count))
            self._store = store = PrefixStore(f"botvision/{self._run}", base)
            store.set(f"message/{launcher.rank}", message)
            ranks = range(launcher.count)
            messages = [store.get(f"message/{rank}").decode() for rank in ranks]
            store.set(f"read/{launcher.rank}", "")
            if launcher.rank == 0:
                store.wait([f"read/{rank}" for rank in ranks])
        except dist.DistError as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise UserError(
                f"the {launcher.count} processes of the run cannot connect at {where}; see whether "
                "all are running and reach this address, or set MASTER_ADDR and MASTER_PORT"
            ) from error
        return messages


def _end_children(seconds: float = PATIENCE) -> None:
    """Wait for the other processes of this machine, and kill those that do not end."""
    _wait(lambda: all(child.poll() is not None for child in _children), seconds)
    for child in _children:
        child.kill()


def _wait(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until a condition holds, at most for some time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an error of torch means that another process does not answer any more."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)
    )


def _export(launcher: Launcher) -> None:
    """Set the variables of torchrun, which torch and Lightning read."""
    os.environ |= {
        "RANK": str(launcher.rank),
        "LOCAL_RANK": str(launcher.local_rank),
        "WORLD_SIZE": str(launcher.count),
        "LOCAL_WORLD_SIZE": str(launcher.devices),
    }


def _first_host() -> str:
    return str(SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"]))


def _slurm_port() -> str:
    """A port for a step of a job, outside the range from which systems select free ones."""
    job, step = (int(os.environ[f"SLURM_{name}"]) for name in ("JOB_ID", "STEP_ID"))
    return str(15000 + (10 * job + step) % 10000)
