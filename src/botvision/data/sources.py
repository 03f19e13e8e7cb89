"""Data sources: a folder, an archive of one, or a built-in set; and the task they are for."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from botvision.data.archives import unpack
from botvision.data.listing import is_hidden
from botvision.data.shapes import write_shapes
from botvision.errors import UserError

BUILT_IN = ("shapes", "shapes-context")
_LAYOUTS = (
    "neither COCO format (annotations/instances_train.json and image folders) nor class folders "
    "(train/CLASS/*.jpg and val/ or test/ likewise) nor shards (train-000.tar)"
)
# Before the name of a data set on the Hugging Face Hub, or of a folder that its library reads.
HUGGING_FACE = "hfds/"
# Names of the splits' folders and shards.
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")
# In the cache's folder names: a set made by another version of the generator is made anew.
_SHAPES_VERSION = 1


def open_data(data: str, *, cache: Path | None = None) -> Path:
    """The folder behind ``data``, made or unpacked into the cache when it is not there yet.

    Args:
        data: a folder; a zip or tar of one; or one of ``BUILT_IN``.
        cache: where sets are made and archives unpacked; by default the environment's
            ``BOTVISION_CACHE``, else ``~/.cache/botvision``.

    Returns:
        The path of the folder. For an archive that wraps its content in one folder, the path of
        that inner folder.

    Raises:
        UserError: no such folder or archive, or an archive that cannot be read.
    """
    cache = cache or Path(os.environ.get("BOTVISION_CACHE", "~/.cache/botvision")).expanduser()
    if data in BUILT_IN:
        context = data == "shapes-context"
        name = f"{data}-v{_SHAPES_VERSION}"
        return _made_once(cache / name, lambda root: write_shapes(root, context=context))
    path = Path(data).expanduser()
    if path.is_dir():
        return path
    if not path.is_file():
        raise UserError(
            f"{path}: no such folder or archive; give a folder in COCO format or of class "
            f"folders, a zip or tar of one, or a built-in set: {', '.join(BUILT_IN)}"
        )
    stat = path.stat()
    identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    # A file name may have 255 bytes, which four bytes per character reach at 63.
    name = f"{path.name[:50]}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return _inner(_made_once(cache / name, lambda root: unpack(path, root)))


def task_of(data: str) -> Literal["detection", "classification"]:
    """The task that ``data`` is for: COCO annotations, or images of one class each.

    Args:
        data: a folder, an archive of one, one of ``BUILT_IN``, or ``hfds/NAME``.

    Returns:
        ``"detection"`` for COCO annotations and the built-in sets. ``"classification"`` for class
        folders, shards and data sets of the Hugging Face Hub.

    Raises:
        UserError: as ``open_data``, or it is of no known format.
    """
    if data in BUILT_IN:
        return "detection"
    if data.startswith(HUGGING_FACE):
        return "classification"
    root = open_data(data)
    if any((root / "annotations").glob("*.json")):
        return "detection"
    for split in SPLIT_FOLDERS:
        if class_folders(root / split) or find_shards(root, split):
            return "classification"
    raise UserError(f"{root}: {_LAYOUTS}; {_found(root)}")


def _found(root: Path) -> str:
    """Describe what a folder of no known layout contains, and how to change it."""
    exports = [*root.glob("_annotations.coco.json"), *root.glob("*/_annotations.coco.json")]
    exports += [*root.glob("result.json"), *root.glob("instances_*.json")]
    yolo = [*root.glob("data.yaml"), *root.glob("labels/")]
    names = [str(path.relative_to(root)) for path in sorted([*exports, *yolo])]
    if exports:
        return (
            f"found {' and '.join(names)}: move COCO files to annotations/instances_train.json and "
            "annotations/instances_val.json, and their images to train/ and val/"
        )
    if yolo:
        return f"found {' and '.join(names)}: export the data in COCO format instead of YOLO's"
    entries = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    shown = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    return f"found {shown}" if entries else "the folder is empty"


def class_folders(split: Path) -> list[Path]:
    """The folders in ``split`` that are not hidden, if there is one."""
    if not split.is_dir():
        return []
    return [path for path in split.iterdir() if path.is_dir() and not is_hidden(path.name)]


def find_shards(root: Path, split: str) -> list[Path]:
    """``SPLIT*.tar`` in the folder, or ``SPLIT/*.tar``. ``valid-0.tar`` is not of ``val``."""
    longer = tuple(n for n in SPLIT_FOLDERS if n.startswith(split) and n != split)
    beside = [path for path in root.glob(f"{split}*.tar") if not path.name.startswith(longer)]
    inside = [path for path in root.glob(f"{split}/*.tar") if not is_hidden(path.name)]
    return sorted([*beside, *inside])


def _made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Fill a temporary folder and rename it to ``folder``, so that no folder is incomplete."""
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: cannot be created ({error.strerror}); set BOTVISION_CACHE to "
            "another folder"
        ) from error
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        make(made)
        try:
            made.rename(folder)
        except OSError:  # another process was quicker
            if not folder.is_dir():
                raise
    return folder


def _inner(folder: Path) -> Path:
    """Step into the one folder that an archive often wraps its content in."""
    entries = [e for e in folder.iterdir() if not is_hidden(e.name)]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder
