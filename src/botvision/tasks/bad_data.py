"""Training without the annotations and images that cannot be read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar

from botvision.config import TrainConfig
from botvision.data.inspection import inspect_all
from botvision.data.json_values import load_json
from botvision.data.skipped import Skipped
from botvision.errors import UserError
from botvision.files import write_text
from botvision.training.run import Run

S = TypeVar("S")


class BadData:
    """The entries and images that a run leaves out, listed in its ``skipped.json``.

    A resumed run leaves out the same images, so they are not searched for again.

    Args:
        config: settings of the run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.skip, self.workers = config.bad_data == "skip", config.workers
        self.lists: dict[str, list[Skipped]] = {}
        self._run = None if config.out is None else Run(config.out)
        self._known = self._read()

    def open(self, name: str, opener: Callable[[list[Skipped] | None], S]) -> S:
        """Open a split, without what cannot be read if that is wanted.

        Args:
            name: name of the split.
            opener: opens the split. Its argument is a list that it may append malformed entries
                to, which it leaves out, or None if they are errors.

        Returns:
            The split.

        Raises:
            UserError: the split cannot be opened, or none of its images can be read.
        """
        if not self.skip:
            return opener(None)
        skipped: list[Skipped] = []
        split: Any = opener(skipped)
        if not hasattr(split, "without_images"):
            raise UserError(
                "applies to COCO files, class folders and shards; leave it out",
                parameter="bad_data",
                value="skip",
            )
        if name in self._known:
            names = {entry.what for entry in self._known[name]}
            bad = {i for i in range(len(split)) if split.image_name(i) in names}
            self.lists[name] = self._known[name]
        else:
            errors = {
                index: Skipped(image.name, image.error)
                for index, image in enumerate(inspect_all(split, self.workers))
                if image.error is not None
            }
            bad = set(errors)
            self.lists[name] = [*skipped, *errors.values()]
        if len(bad) == len(split):
            raise UserError(f"{name}: none of its {len(bad):,} images can be read; replace them")
        kept: S = split.without_images(bad)
        return kept

    def summary(self) -> list[str]:
        """One line per split about what was skipped, if anything was."""
        return [
            f"{name}: {len(skipped):,} skipped, listed in skipped.json; the first is "
            f"{skipped[0].what} ({skipped[0].reason})"
            for name, skipped in self.lists.items()
            if skipped
        ]

    def write(self) -> None:
        """Write ``skipped.json`` into the run folder, if entries are to be skipped."""
        if self.skip and self._run is not None:
            lists = {
                name: [dataclasses.asdict(entry) for entry in skipped]
                for name, skipped in self.lists.items()
            }
            write_text(self._run.path / "skipped.json", json.dumps(lists, indent=2) + "\n")

    def _read(self) -> dict[str, list[Skipped]]:
        """The lists of the run that is resumed."""
        if not self.skip or self._run is None or not self._run.checkpoint.exists():
            return {}
        path = self._run.path / "skipped.json"
        if not path.exists():
            return {}
        content = load_json(path)
        try:
            return {
                str(name): [Skipped(str(e["what"]), str(e["reason"])) for e in entries]
                for name, entries in content.items()
            }
        except (AttributeError, KeyError, TypeError):
            raise UserError(
                f"{path}: is not a list of what the run skips; delete it to search again"
            ) from None
