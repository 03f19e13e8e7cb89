"""Checkpoints of training: written safely, and checked before they are resumed from."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from botvision.errors import UserError
from botvision.files import atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints with ``atomic``, in the folder of their destination.

    Lightning's own plugin writes into the folder for temporary files. From there it copies over
    the last checkpoint, if the two are on different file systems.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: content of the checkpoint.
            path: file to write.
            storage_options: not used.

        Raises:
            UserError: the disk is full, or the folder is read-only.
        """
        with atomic(Path(path)) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch reports a wrong position after the file's own error, such as a full disk.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, lazily, after every byte of its tensors has been checked.

    Args:
        path: the checkpoint. Its file may be replaced afterwards.

    Returns:
        The content: tensors and plain values, since a file of a stranger is not to run code.

    Raises:
        UserError: the file is damaged, or is no checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares the checksums of all entries
        if damaged is None:
            content: dict[str, Any] = torch.load(
                path, map_location="cpu", mmap=True, weights_only=True
            )
            if {"global_step", "state_dict", "callbacks"} <= content.keys():
                return content
    except OSError as error:
        # The file may be sound, unless this is zipfile's seek to a place before its beginning.
        if error.errno not in (None, errno.EINVAL):
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (
        # zipfile's of other content, of encrypted entries and of other kinds of compression
        *(zipfile.BadZipFile, RuntimeError, NotImplementedError),
        *(UnpicklingError, AttributeError, EOFError, KeyError, TypeError, ValueError),
    ):
        pass
    raise UserError(
        f"{path}: not a readable checkpoint of tensors and plain values, or damaged; replace it by "
        "a copy, or delete it to start the run again"
    )
