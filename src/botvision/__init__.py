"""botvision: Bottleneck Transformers for visual recognition (BoTNet, CVPR 2021).

Importing the package registers the paper's models with timm. Heavy libraries load on first use, so
the command starts quickly.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from botvision import (
        attention,
        bench,
        data,
        detection,
        evaluation,
        models,
        tasks,
        training,
        visualize,
    )
    from botvision.data.categories import Categories
    from botvision.data.classification import ClassificationData
    from botvision.data.detection import DetectionData, Objects
    from botvision.detection import build_detector
    from botvision.errors import UserError
    from botvision.evaluation.evaluator import Evaluator
    from botvision.models import create_model, list_models, load_weights, to_botnet
    from botvision.settings import load_recipe
    from botvision.tasks.check import check
    from botvision.tasks.evaluate import evaluate
    from botvision.tasks.load import load
    from botvision.tasks.train import train
    from botvision.training.run import Run

__version__ = "0.2.0.dev0"

# The module that defines each public name. It loads on first use.
_HOME = {
    "Categories": "botvision.data.categories",
    "ClassificationData": "botvision.data.classification",
    "DetectionData": "botvision.data.detection",
    "Evaluator": "botvision.evaluation.evaluator",
    "Objects": "botvision.data.detection",
    "Run": "botvision.training.run",
    "UserError": "botvision.errors",
    "build_detector": "botvision.detection",
    "check": "botvision.tasks.check",
    "create_model": "botvision.models",
    "evaluate": "botvision.tasks.evaluate",
    "list_models": "botvision.models",
    "load": "botvision.tasks.load",
    "load_recipe": "botvision.settings",
    "load_weights": "botvision.models",
    "to_botnet": "botvision.models",
    "train": "botvision.tasks.train",
}
_SUBMODULES = (
    *("attention", "bench", "data", "detection", "evaluation", "models", "tasks", "training"),
    "visualize",
)

__all__ = [
    "Categories",
    "ClassificationData",
    "DetectionData",
    "Evaluator",
    "Objects",
    "Run",
    "UserError",
    "attention",
    "bench",
    "build_detector",
    "check",
    "create_model",
    "data",
    "detection",
    "evaluate",
    "evaluation",
    "list_models",
    "load",
    "load_recipe",
    "load_weights",
    "models",
    "tasks",
    "to_botnet",
    "train",
    "training",
    "visualize",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"botvision.{name}")
    raise AttributeError(f"module 'botvision' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _RegisterWithTimm(MetaPathFinder):
    """Registers the models as soon as timm is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            importlib.import_module("botvision.models")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    importlib.import_module("botvision.models")
else:
    sys.meta_path.insert(0, _RegisterWithTimm())
