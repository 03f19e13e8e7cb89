"""The lock of a run folder, which one training at a time holds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from botvision.errors import UserError

# A process that was killed holds the lock until its data loading processes have noticed, in
# seconds.
_ORPHANS = 30.0


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder.

    The lock belongs to the process, not to the file ``.lock``, which a process that is killed
    leaves: when the process ends, the lock is free.

    Args:
        folder: the run folder, which exists.

    Raises:
        UserError: another process holds it, or the folder is read-only.
    """
    file = folder / ".lock"
    lock: BaseFileLock = FileLock(file)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = _holder(file)
            lock.acquire(timeout=0 if holder else _ORPHANS)
        # A file system without locks has a lock that consists of the same lines.
        if not isinstance(lock, SoftFileLock):
            file.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
    except Timeout as error:
        raise UserError(
            f"{folder}: {_holder(file) or 'another process'} is training in this folder; wait for "
            "it, or give another `out`"
        ) from error
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror}); correct the permissions, or give "
            "another `out`"
        ) from error
    try:
        yield
    finally:
        if not isinstance(lock, SoftFileLock):  # which removes its file itself
            file.unlink(missing_ok=True)
        lock.release()


def _holder(file: Path) -> str:
    """Return the process that the file names, or an empty string if it has ended."""
    try:
        number, host = file.read_text(encoding="utf-8").split()[:2]
    except (OSError, ValueError):
        return "another process"
    if host != socket.gethostname():
        return f"process {number} on {host}"
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return ""
    except PermissionError:
        pass
    return f"process {number}"
