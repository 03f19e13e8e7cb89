"""Whether a run may be resumed with other settings or data, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from botvision.config import TrainConfig
from botvision.errors import UserError
from botvision.settings import Task, load_recipe, plain
from botvision.tasks.checkpoint import upgrade_model_args
from botvision.training.run import Run

# What the weights and the optimizer's state depend on.
_FIXED = (
    *("task", "model", "model_args", "norm", "image_size", "detector"),
    *("freeze_stages", "optimizer", "decay_all"),
)
# What may change without a word.
_FREE = (
    *("data", "out", "epochs", "max_steps", "patience", "eval_steps", "workers", "devices"),
    *("nodes", "checkpoint_steps", "checkpoint_minutes"),
)
# Compared as the learning rate that follows from them.
_RATES = ("lr", "base_lr", "base_batch_size")
_SPLITS = {"train": "training data", "val": "validation data", "test": "test data"}


def check_resume(
    run: Run,
    config: TrainConfig,
    resolved: Mapping[str, Any],
    recipe: str | None,
    settings: Mapping[str, Any],
) -> list[str]:
    """Compare the settings and data of a resumed run with those before.

    Args:
        run: the run, with the config of before.
        config: settings now.
        resolved: what was resolved from them, see ``Task.resolved``.
        recipe: the recipe that was given now, if any. The settings of the run replace it.
        settings: the settings that were given now.

    Returns:
        A line about what differs, and one about the recipe, where there is something to report.

    Raises:
        UserError: the classes, the model, the image size or the optimizer differ.
    """
    before = run.config
    resolved_before = before.pop("resolved", None) or {}
    if not resolved_before:  # no config, or one that somebody has written
        return []
    before["model_args"] = upgrade_model_args(before.get("model_args") or {})
    now = plain(config)
    for values, found in ((before, resolved_before), (now, resolved)):
        # None means the default of the model or of the data.
        values.update({name: found[name] for name in ("task", "image_size") if name in found})
    _check_classes(run, config, resolved_before, resolved)
    differences = []
    for name, value, earlier in _changed(before, now):
        if name.partition(".")[0] in _FIXED:
            raise UserError(
                f"the run in {run.path} has {_text(earlier)}; leave it out to continue that run, "
                "or give another `out`",
                parameter=name,
                value=_text(value),
            )
        if name == "ema_decay" and not (value and earlier):
            raise UserError(
                f"the run in {run.path} has {_text(earlier)}, and a moving average begins with "
                "the run; leave it out to continue that run, or give another `out`",
                parameter=name,
                value=_text(value),
            )
        if name not in (*_FREE, *_RATES):
            differences.append(f"{name} {_text(value)} (was {_text(earlier)})")
    rate = resolved_before.get("learning_rate", config.peak_lr)
    if rate != config.peak_lr:
        differences.append(f"lr {config.peak_lr:.4g} (was {rate:.4g})")
    differences += _changed_data(resolved_before.get("data"), resolved.get("data"))
    lines = []
    if differences:
        lines.append(f"resuming with other settings or data: {', '.join(differences)}")
    if recipe is not None:
        kind: Task = "classification" if now["task"] == "classification" else "detection"
        unused = [
            f"{name} {_text(value)} (recipe: {_text(other)})"
            for name, value, other in _changed(load_recipe(recipe, kind), now)
            if name.partition(".")[0] not in (*_FREE, *settings)
        ]
        if unused:
            lines.append(f"the settings of the run apply, not the recipe's: {', '.join(unused)}")
    return lines


def _changed(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, value and earlier value of the settings that both have and that differ."""
    for name, value in now.items():
        earlier = before.get(name, value)
        if name == "detector" and isinstance(earlier, Mapping):
            yield from _changed(earlier, value, f"{name}.")
        elif value != earlier:
            yield prefix + name, value, earlier


def _check_classes(
    run: Run, config: TrainConfig, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raise UserError for other classes, or the same ones in another order."""
    old, new = _classes(before), _classes(now)
    if old and old != new:
        number = next(
            (k for k, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
            min(len(old), len(new)),
        )
        was, is_ = (repr(names[number]) if number < len(names) else "none" for names in (old, new))
        raise UserError(
            f"{config.data}: has {len(new)} classes and the run in {run.path} was trained with "
            f"{len(old)}, class {number + 1} is {is_} and was {was}; resume with the same classes, "
            "or give another `out`"
        )


def _classes(resolved: Mapping[str, Any]) -> Sequence[str]:
    categories = resolved.get("categories")
    return list(categories.values()) if categories else list(resolved.get("classes", ()))


def _changed_data(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> Iterator[str]:
    """Describe how the splits differ; nothing for a run that has not recorded its data."""
    if not before or not now:
        return
    for split, title in _SPLITS.items():
        old, new = before.get(split), now.get(split)
        if old == new:
            continue
        if not old or not new:
            yield f"{'new ' if new else 'no '}{title}"
        elif old["images"] != new["images"]:
            yield f"{title} {new['images']} images (was {old['images']})"
        else:
            yield f"{title} with other file names, labels or boxes"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
