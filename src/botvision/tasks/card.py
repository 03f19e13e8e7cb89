"""Validation of a model card: the specification that a weights file contains as JSON.

A weights file may come from anybody. Every field must be there, have the right type and be in a
range that a real model can have, before anything of that size is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from botvision.config import DetectionTask, Norm
from botvision.errors import UserError
from botvision.text import shortened

# What a value must be, in words, and whether it is.
Rule = tuple[str, Callable[[Any], bool]]
Rules = Mapping[str, "Rule | Rules"]

_CLASSES = 100_000
_LAYERS = 500
# Values in the arguments of a model.
_VALUES = 1000
# Arguments of models whose numbers count layers, such as `layers`, `depths` and `num_blocks`.
_COUNTS_LAYERS = re.compile("layer|depth|block|repeat")


def _whole(low: int, high: int) -> Rule:
    return (
        f"a whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def _number(low: float, high: float) -> Rule:
    return (
        f"a number from {low} to {high}",
        lambda value: type(value) in (int, float) and low <= value <= high,
    )


def _text(longest: int) -> Rule:
    return (
        f"text of at most {longest} characters",
        lambda value: isinstance(value, str) and len(value) <= longest,
    )


def _one_of(*choices: str) -> Rule:
    return f"one of {', '.join(choices)}", lambda value: value in choices


def _list(rule: Rule, shortest: int, longest: int, unique: bool = False) -> Rule:
    words, holds = rule
    count = str(longest) if shortest == longest else f"{shortest} to {longest}"
    return (
        f"a list of {count} entries, each {words}{', all different' * unique}",
        lambda value: (
            isinstance(value, list)
            and shortest <= len(value) <= longest
            and all(map(holds, value))
            and (not unique or len(set(value)) == len(value))
        ),
    )


def _is_model_args(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_plain(value)
        and all(_total(v) <= _LAYERS for name, v in value.items() if _COUNTS_LAYERS.search(name))
    )


def _is_plain(value: Any) -> bool:
    """Whether a value consists of few numbers and short text, in lists and mappings."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if isinstance(item, list | dict):
            parts = [*item, *item.values()] if isinstance(item, dict) else item
            if depth > 4 or seen + len(waiting) + len(parts) > _VALUES:
                return False
            waiting += [(part, depth + 1) for part in parts]
        elif isinstance(item, str):
            if len(item) > 200:
                return False
        elif not (item is None or (isinstance(item, int | float) and abs(item) <= 65536)):
            return False
    return True


def _total(value: Any) -> float:
    if isinstance(value, list):
        return sum(map(_total, value))
    if isinstance(value, dict):
        return _total(list(value.values()))
    return abs(value) if isinstance(value, int | float) else 0


_PIXEL_RANGE: Rule = (
    "two increasing numbers, or null",
    lambda value: (
        value is None
        or (
            isinstance(value, list)
            and [type(number) in (int, float) and abs(number) < 1e38 for number in value]
            == [True, True]
            and value[0] < value[1]
        )
    ),
)
_FLAG: Rule = ("true or false", lambda value: type(value) is bool)
_MODEL: Rules = {
    "model": _text(200),
    "image_size": _whole(1, 8192),
    "norm": _one_of(*get_args(Norm)),
    "model_args": (
        f"arguments of a model: numbers up to 65536 and text, in at most {_LAYERS} layers",
        _is_model_args,
    ),
    "objects": _list(_one_of("impl", "box_head"), 0, 2),
    "pixel_range": _PIXEL_RANGE,
    "page": _whole(0, 1_000_000),
}
_DETECTOR: Rules = {
    **_MODEL,
    "task": _one_of(*get_args(DetectionTask)),
    "detector": {
        "fpn_channels": _whole(1, 4096),
        "anchor_sizes": _list(_whole(1, 16384), 5, 5),
        "anchor_ratios": _list(_number(0.001, 1000), 1, 100),
        "rpn_convs": _whole(0, 100),
        "rpn_pre_nms": _list(_whole(1, 1_000_000), 2, 2),
        "rpn_post_nms": _list(_whole(1, 1_000_000), 2, 2),
        "rpn_samples": _whole(1, 1_000_000),
        "roi_samples": _whole(1, 1_000_000),
        "box_convs": _whole(0, 100),
        "box_head_dim": _whole(1, 65536),
        "mask_convs": _whole(0, 100),
        "mask_channels": _whole(1, 4096),
        "head_norm": _FLAG,
        "score_threshold": _number(0, 1),
        "nms_threshold": _number(0, 1),
        "max_detections": _whole(1, 1_000_000),
    },
    "categories": {
        "ids": _list(_whole(-(2**63), 2**63 - 1), 1, _CLASSES, unique=True),
        "names": _list(_text(1000), 1, _CLASSES, unique=True),
    },
}
_CLASSIFIER: Rules = {
    **_MODEL,
    "task": _one_of("classification"),
    "classes": _list(_text(1000), 1, _CLASSES),
    "mean": _list(_number(-1000, 1000), 3, 3),
    "std": _list(_number(1e-6, 1000), 3, 3),
    "crop_share": _number(0.01, 1),
}
# Fields that files of earlier versions do not have.
_OPTIONAL = {"objects", "pixel_range", "page"}


def check_card(card: Mapping[str, Any]) -> None:
    """Check the fields of a model's specification.

    Args:
        card: the specification in JSON types, without ``schema`` and ``version``.

    Raises:
        UserError: a field is missing, unknown, of the wrong type or out of range.
    """
    if not isinstance(card, dict):
        raise UserError("it is not a mapping of fields")
    _check(card, _CLASSIFIER if card.get("task") == "classification" else _DETECTOR)
    if "categories" in card:
        ids, names = card["categories"]["ids"], card["categories"]["names"]
        if len(ids) != len(names):
            raise UserError(
                f"there are {len(ids)} ids and {len(names)} names", parameter="categories"
            )


def _check(fields: Mapping[str, Any], rules: Rules, prefix: str = "") -> None:
    for name in fields:
        if name not in rules:
            raise UserError(f"there is an unknown field {prefix}{shortened(name, 60)}")
    for name, rule in rules.items():
        field = f"{prefix}{name}"
        if name not in fields:
            if name in _OPTIONAL:
                continue
            raise UserError(f"the field {field} is missing")
        value = fields[name]
        if isinstance(rule, tuple):
            words, holds = rule
            if not holds(value):
                shown = shortened(json.dumps(value, ensure_ascii=False, default=str), 60)
                raise UserError(f"must be {words}", parameter=field, value=shown)
        elif isinstance(value, dict):
            _check(value, rule, f"{field}.")
        else:
            raise UserError("must be a mapping of fields", parameter=field)
