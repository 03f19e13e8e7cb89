"""Failures of the machine during training, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from botvision.config import TrainConfig
from botvision.device import is_out_of_memory
from botvision.errors import UserError


@contextmanager
def in_one_line(config: TrainConfig, folder: Path) -> Iterator[None]:
    """Turn a failure of the machine into a ``UserError``.

    Args:
        config: settings of the run.
        folder: the run folder.

    Raises:
        UserError: there is not enough memory, a data loading process has ended, or a file cannot be
            read or written.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            checkpointing = " or set `grad_checkpointing`" * hasattr(config, "grad_checkpointing")
            raise UserError(
                f"the {config.device} is out of memory; raise `accumulate` (now "
                f"{config.accumulate}), which computes the same step in smaller parts, lower "
                f"`batch_size` (now {config.batch_size}){',' * bool(checkpointing)}{checkpointing}"
            ) from error
        ended = re.search(
            r"DataLoader worker \(pid.*?\) (?:exited|is killed by signal: ([\w ]+))", str(error)
        )
        if ended:
            reason = f" ({ended[1].lower().strip()})" if ended[1] else ""
            raise UserError(
                f"a process that loads data has ended unexpectedly{reason}, often for lack of "
                "memory; lower `workers`, and continue with `resume`"
            ) from error
        raise
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):
            raise
        raise UserError(f"{error.filename or folder}: {error.strerror}") from error
