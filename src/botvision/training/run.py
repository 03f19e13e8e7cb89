"""The run folder: settings, events, metrics, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from torch import nn

from botvision.config import TrainConfig
from botvision.environment import versions
from botvision.errors import UserError
from botvision.files import write_text
from botvision.settings import plain


class Run:
    """The files of one run.

    ``config.yaml`` (all settings, what was resolved from them, versions), ``metrics.jsonl`` (one
    event per line), ``metrics.json`` (the last evaluation), ``checkpoints/last.ckpt``,
    ``best.safetensors`` (weights and all that ``predict`` needs), ``plots/`` and ``predictions/``.

    Args:
        path: the folder, whether it exists or not.
        writes: whether this process is the one that writes into it.
    """

    def __init__(self, path: Path | str, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.config_file = self.path / "config.yaml"
        self.events_file = self.path / "metrics.jsonl"
        self.metrics_file = self.path / "metrics.json"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.weights = self.path / "best.safetensors"
        self.plots = self.path / "plots"
        self.predictions = self.path / "predictions"

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def metrics(self) -> dict[str, Any]:
        """The last evaluation; empty if there was none."""
        if not self.metrics_file.exists():
            return {}
        metrics: dict[str, Any] = json.loads(self.metrics_file.read_text(encoding="utf-8"))
        return metrics

    @property
    def history(self) -> list[dict[str, Any]]:
        """One flat row per event, ready for ``pandas.DataFrame``.

        Each has ``event`` (``"train"``, ``"eval"`` or ``"end"``) and ``step``; nested metrics are
        joined by a slash, such as ``bbox/AP50``.
        """
        return [dict(_flat(event)) for event in self._events()]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in ``config.yaml``; empty if there is none."""
        if not self.config_file.is_file():
            return {}
        settings = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        return {k: v for k, v in settings.items() if k not in ("resolved", "versions")}

    def begin(self, *, resume: bool) -> int:
        """Make the folder, or find where its run stopped.

        Returns:
            The step to resume from; 0 without a checkpoint.

        Raises:
            UserError: it holds a run already and ``resume`` is not wanted, or the checkpoint cannot
                be read.
        """
        if not resume and self.events_file.exists():
            raise UserError(
                f"{self.path}: holds a run already; add `resume` to continue it, or give another "
                "`out`"
            )
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        step = int(self._checkpoint("global_step")) if self.checkpoint.exists() else 0
        if self.writes and self.events_file.exists():
            # What came after the checkpoint will come again.
            kept = [json.dumps(event) + "\n" for event in self._events() if event["step"] <= step]
            write_text(self.events_file, "".join(kept))
        return step

    def check_model(self, module: nn.Module) -> None:
        """Refuse to resume with another model than the checkpoint's.

        Raises:
            UserError: a tensor of the checkpoint or of ``module`` is missing in the other, or has
                another shape.
        """
        theirs, own = self._checkpoint("state_dict"), module.state_dict()
        for name in sorted(theirs.keys() | own.keys()):
            if name not in theirs or name not in own or theirs[name].shape != own[name].shape:
                raise UserError(
                    f"{self.checkpoint}: is of another model, which differs in {name}; resume with "
                    "the settings and objects that it was trained with, or give another `out`"
                )

    def _checkpoint(self, entry: str) -> Any:
        """An entry of the checkpoint, on the CPU."""
        try:
            # A checkpoint of a stranger is not to run code.
            content = torch.load(self.checkpoint, map_location="cpu", mmap=True, weights_only=True)
            return content[entry]
        except (RuntimeError, KeyError, EOFError, OSError, UnpicklingError) as error:
            raise UserError(
                f"{self.checkpoint}: not a readable checkpoint of tensors and plain values; delete "
                "it to start the run again"
            ) from error

    def write_config(self, config: TrainConfig, resolved: Mapping[str, Any]) -> None:
        """Write all settings, what was resolved from them, and the versions that ran."""
        if not self.writes:
            return
        content = {**plain(config), "resolved": resolved, "versions": versions()}
        write_text(self.config_file, yaml.safe_dump(content, sort_keys=False))

    def log(self, event: str, step: int, **values: Any) -> None:
        """Append one event, a line of JSON."""
        if not self.writes:
            return
        with self.events_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write the last evaluation."""
        if not self.writes:
            return
        write_text(self.metrics_file, json.dumps(metrics, indent=2) + "\n")

    def end(self, step: int, steps: int, patience: int) -> None:
        """Note that everything of a run of ``steps`` steps was written, which ended at ``step``.

        Args:
            step: number of completed steps, less than ``steps`` after early stopping.
            steps: number of steps in the settings.
            patience: evaluations without a better one before early stopping. 0 disables it.
        """
        self.log("end", step, steps=steps, patience=patience)

    def has_ended(self, steps: int, patience: int) -> bool:
        """Whether a run of these settings was not only trained but also evaluated and written."""
        ends = [event for event in self._events() if event["event"] == "end"]
        return any(
            end["step"] >= steps or (end["steps"] >= steps and 0 < patience <= end["patience"])
            for end in ends
        )

    def _events(self) -> Iterator[dict[str, Any]]:
        if not self.events_file.exists():
            return
        for line in self.events_file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # cut off by a kill
                continue


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
