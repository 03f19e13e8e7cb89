"""The run folder: settings, events, checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml

from botvision.config import TrainConfig
from botvision.environment import versions
from botvision.errors import UserError
from botvision.files import write_text


class RunFolder:
    """Paths and files of one run.

    ``config.yaml`` (all settings, what was resolved from them, versions), ``metrics.jsonl`` (an
    event a line), ``metrics.json`` (the last evaluation), ``checkpoints/last.ckpt``,
    ``best.safetensors`` (weights and all that ``predict`` needs), ``plots/`` and ``predictions/``.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Take the folder's path, whether it exists or not; of several processes one writes."""
        self.path = path
        self.writes = writes
        self.config = path / "config.yaml"
        self.events = path / "metrics.jsonl"
        self.metrics = path / "metrics.json"
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        self.weights = path / "best.safetensors"
        self.plots = path / "plots"
        self.predictions = path / "predictions"

    def begin(self, *, resume: bool) -> int:
        """Make the folder, or find where its run stopped; returns the step to go on from.

        Raises:
            UserError: it holds a run already and ``resume`` is not wanted.
        """
        if not resume and self.events.exists():
            raise UserError(
                f"{self.path}: holds a run already; add --resume to continue it, or give another "
                "--out"
            )
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        step = 0
        if self.checkpoint.exists():
            try:
                # A checkpoint of a stranger is not to run code.
                content = torch.load(
                    self.checkpoint, map_location="cpu", mmap=True, weights_only=True
                )
                step = int(content["global_step"])
            except (RuntimeError, KeyError, EOFError, OSError, UnpicklingError) as error:
                raise UserError(
                    f"{self.checkpoint}: not a readable checkpoint of tensors and plain values; "
                    "delete it to start the run again"
                ) from error
        if self.writes:
            self._forget_after(step)
        return step

    def _forget_after(self, step: int) -> None:
        """Drop the events that came after the checkpoint: they will come again."""
        if not self.events.exists():
            return
        kept = []
        for line in self.events.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:  # cut off by the kill
                continue
            if event["step"] <= step:
                kept.append(line + "\n")
        write_text(self.events, "".join(kept))

    def write_config(self, config: TrainConfig, resolved: dict[str, Any]) -> None:
        """Write all settings, what was resolved from them, and the versions that ran."""
        if not self.writes:
            return
        content = {**_plain(asdict(config)), "resolved": resolved, "versions": versions()}
        write_text(self.config, yaml.safe_dump(content, sort_keys=False))

    def log(self, event: str, step: int, **values: Any) -> None:
        """Append one event, a line of JSON."""
        if not self.writes:
            return
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the last evaluation."""
        if not self.writes:
            return
        write_text(self.metrics, json.dumps(metrics, indent=2) + "\n")

    def end(self, step: int, steps: int, patience: int) -> None:
        """Note that all was written of a run of ``steps`` steps, which ended at ``step``."""
        self.log("end", step, steps=steps, patience=patience)

    def has_ended(self, steps: int, patience: int) -> bool:
        """Whether a run of these settings was not only trained but also evaluated and written."""
        if not self.events.exists():
            return False
        lines = self.events.read_text(encoding="utf-8").splitlines()
        ends = [event for event in map(json.loads, lines) if event["event"] == "end"]
        return any(
            end["step"] >= steps or (end["steps"] >= steps and 0 < patience <= end["patience"])
            for end in ends
        )


def _plain(value: Any) -> Any:
    """Only what YAML knows: tuples become lists, paths strings."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
