"""Signals that stop a training run: the current step is finished and saved first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from botvision.launcher import Launcher

# The interrupt of a terminal or notebook, the request to end, and Slurm's warning before it ends a
# job. Windows has no SIGUSR1.
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# A launcher repeats the signal of a terminal, which has reached its processes already.
_REPETITION_SECONDS = 0.5


def resume_in_python(data: str | None, out: str) -> str:
    """Return how to resume a run in Python; ``data`` is None for objects."""
    return f"botvision.train({data!r}, out={out!r}, resume=True)".replace("(None,", "(data,")


class Stopped(SystemExit):
    """A signal has stopped the run; the exit status is 128 + ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class StopSignals:
    """Stop a training run on SIGINT, SIGTERM and SIGUSR1, as a context around the run.

    A signal raises ``Stopped`` where the program is. While ``deferred`` is set, the first one is
    only stored in ``received``: the training loop finishes its step, saves, and raises
    ``Stopped``. A second signal, at least half a second later, ends the process at once.

    At the end of the context the earlier handlers are back, ``Stopped`` has printed ``message``,
    and SIGINT has become KeyboardInterrupt. In another thread than the main one, and for a signal
    that is ignored, no handler is installed.

    Args:
        resume_with: from the name of the data, or None for objects, and the run folder to the
            ``command`` that resumes the run.
    """

    def __init__(self, resume_with: Callable[[str | None, str], str] = resume_in_python) -> None:
        self.resume_with = resume_with
        self.received = 0
        # The signal for which all processes of the run have agreed to stop, or 0.
        self.agreed = 0
        self.deferred = False
        self.command = ""
        self.message = "stopped before the first step"
        launcher = Launcher.current()
        self.print: Callable[[str], None] = print
        if launcher is not None and launcher.rank > 0:
            self.print = lambda line: None  # one process reports
        self._received_at = 0.0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.install()
        return self

    def install(self) -> None:
        """Install the handlers, also again where a library has replaced them."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            # None is a handler that is not Python's, such as faulthandler's.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                earlier = signal.signal(number, self._receive)
                self._earlier.setdefault(number, earlier)

    def stopped_at(self, step: int, steps: int) -> None:
        """Set ``message``: the run would stop with ``step`` of its ``steps`` steps saved."""
        self.message = f"stopped at step {step} of {steps}; resume with: {self.command}"

    def raise_if_received(self) -> None:
        """Raise ``Stopped`` if a signal was received while ``deferred`` was set."""
        self.deferred = False
        if self.agreed or self.received:
            raise Stopped(self.agreed or self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received:
            if now - self._received_at > _REPETITION_SECONDS:
                self._end_at_once()
            return
        self.received, self._received_at = number, now
        if not self.deferred:
            raise Stopped(number)

    def _end_at_once(self) -> NoReturn:
        if sys.stderr.isatty():  # where a progress bar has hidden the cursor
            os.write(sys.stderr.fileno(), b"\x1b[?25h\n")
        os._exit(128 + self.received)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._earlier.items():
            if signal.getsignal(number) == self._receive:  # else `Processes` ignores it
                signal.signal(number, handler)
        if isinstance(error, Stopped):
            self.print(self.message)
            if error.number == signal.SIGINT:
                raise KeyboardInterrupt(self.message) from None
