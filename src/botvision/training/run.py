"""The run folder: settings, events, metrics, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from botvision.config import TrainConfig
from botvision.environment import versions
from botvision.errors import UserError
from botvision.files import append_text, make_folder, refuse_link, remove_temporaries, write_text
from botvision.settings import load_yaml, plain
from botvision.training.checkpoints import read_checkpoint
from botvision.training.lock import lock_folder


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
        # Of the checkpoint to resume from, until the run is resumed.
        self._content: dict[str, Any] = {}

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def metrics(self) -> dict[str, Any]:
        """The last evaluation; empty if there was none."""
        if not self.metrics_file.exists():
            return {}
        try:
            metrics: dict[str, Any] = json.loads(self.metrics_file.read_bytes())
        except ValueError as error:
            raise UserError(f"{self.metrics_file}: damaged; evaluate the run again") from error
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
        return {k: v for k, v in self.config.items() if k not in ("resolved", "versions")}

    @property
    def config(self) -> dict[str, Any]:
        """The content of ``config.yaml``; empty if there is none."""
        if not self.config_file.is_file():
            return {}
        try:
            config = load_yaml(self.config_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            raise UserError(
                f"{self.config_file}: damaged; restore it, or delete it and give the settings of "
                "the run again"
            )
        return config

    def check(self, *, resume: bool) -> None:
        """Check that the run can be started here, without a change to anything.

        Raises:
            UserError: the folder is a file, a folder in it is a link, or it holds a run already and
                ``resume`` is not wanted.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; give another `out`")
        for folder in (self.checkpoint.parent, self.plots, self.predictions):
            refuse_link(folder)
        if not resume and (self.events_file.exists() or self.checkpoint.exists()):
            raise UserError(
                f"{self.path}: holds a run already; add `resume` to continue it, or give another "
                "`out`"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other trainings out of it.

        Raises:
            UserError: another process trains in the folder, or it cannot be made.
        """
        if not self.writes:
            yield
            return
        make_folder(self.path.resolve())  # it may be a link, since the user has named it
        with lock_folder(self.path):
            for folder in (self.path, self.checkpoint.parent, self.plots, self.predictions):
                remove_temporaries(folder)
            make_folder(self.checkpoint.parent)
            yield

    def begin(self) -> int:
        """Read and check the last checkpoint.

        Returns:
            The step to resume from; 0 without a checkpoint.

        Raises:
            UserError: the checkpoint is damaged.
        """
        if not self.checkpoint.exists():
            return 0
        self._content = read_checkpoint(self.checkpoint)
        return int(self._content["global_step"])

    @property
    def parameter_groups(self) -> list[list[int]]:
        """The parameter groups of the checkpoint's optimizer, as numbers of parameters."""
        return [group["params"] for group in self._content["optimizer_states"][0]["param_groups"]]

    def check_model(self, module: nn.Module) -> None:
        """Refuse to resume with another model than the checkpoint's.

        Raises:
            UserError: a tensor of the checkpoint or of ``module`` is missing in the other, or has
                another shape.
        """
        theirs, own = self._content["state_dict"], module.state_dict()
        for name in sorted(theirs.keys() | own.keys()):
            if name not in theirs or name not in own or theirs[name].shape != own[name].shape:
                raise UserError(
                    f"{self.checkpoint}: is of another model, which differs in {name}; resume with "
                    "the settings and objects that it was trained with, or give another `out`"
                )

    def evaluated_steps(self) -> set[int]:
        """The steps whose evaluation is in ``metrics.jsonl``."""
        return {event["step"] for event in self._events() if event["event"] == "eval"}

    def rewind(self) -> None:
        """Remove the events after the checkpoint, which will occur again.

        A checkpoint may precede the evaluation of its step.
        """
        step = evaluated = -1
        if self._content:
            step = int(self._content["global_step"])
            evaluated = self._content["callbacks"].get("Evaluation", {}).get("step", -1)
        self._content = {}
        if not self.writes or not self.events_file.exists():
            return
        kept = [
            json.dumps(event) + "\n"
            for event in self._events()
            if event["step"] <= (evaluated if event["event"] == "eval" else step)
        ]
        write_text(self.events_file, "".join(kept))

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
        append_text(self.events_file, json.dumps({"event": event, "step": step, **values}) + "\n")

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
        lines = self.events_file.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                if not isinstance(event["event"], str) or not isinstance(event["step"], int):
                    raise ValueError
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                if number == len(lines):  # cut off by a kill
                    return
                raise UserError(
                    f"{self.events_file}: line {number} is damaged; restore it, or delete the line"
                ) from error
            yield event


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
