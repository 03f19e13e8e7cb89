"""botvision: Bottleneck Transformers for visual recognition (BoTNet, CVPR 2021).

Importing it makes the paper's models known to timm. The heavy libraries load when they are first
needed, so that the command answers at once.
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
    from botvision.models import create_model, list_models, load_weights, to_botnet

__version__ = "0.1.0"
__all__ = ["create_model", "list_models", "load_weights", "to_botnet"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("botvision.models"), name)
    raise AttributeError(f"module 'botvision' has no attribute {name!r}")


class _RegisterWithTimm(MetaPathFinder):
    """Registers the models right after timm's own import, whenever that comes."""

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
