"""Vireo recognises actions in video: any temporal module on any 2D backbone.

Names load when they are first used, so ``import vireo`` costs nothing. ``vireo.train``,
``vireo.evaluate`` and ``vireo.predict`` are the functions, whatever was imported before; what else is in
the modules of those names comes by ``from vireo.predict import ...``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vireo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from vireo.config import TrainConfig
    from vireo.errors import (
        CheckpointError,
        DataError,
        DecodeError,
        MissingDependencyError,
        StorageError,
        TrainingError,
        UnknownNameError,
        UnsupportedPairError,
        UsageError,
        VireoError,
        WeightsError,
    )
    from vireo.evaluate import evaluate
    from vireo.listing import list_backbones, list_modules, list_recipes
    from vireo.memory import keep_memory
    from vireo.model import Outputs, Recognizer, create_model
    from vireo.predict import predict
    from vireo.stream.scoring import predict_windows
    from vireo.train import train

_HOMES = {
    "vireo.checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
    "vireo.config": ("TrainConfig",),
    "vireo.errors": (
        *("CheckpointError", "DataError", "DecodeError", "MissingDependencyError", "StorageError", "TrainingError"),
        *("UnknownNameError", "UnsupportedPairError", "UsageError", "VireoError", "WeightsError"),
    ),
    "vireo.evaluate": ("evaluate",),
    "vireo.listing": ("list_backbones", "list_modules", "list_recipes"),
    "vireo.memory": ("keep_memory",),
    "vireo.model": ("Outputs", "Recognizer", "create_model"),
    "vireo.predict": ("predict",),
    "vireo.stream.scoring": ("predict_windows",),
    "vireo.train": ("train",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DataError",
    "DecodeError",
    "MissingDependencyError",
    "Outputs",
    "Recognizer",
    "StorageError",
    "TrainConfig",
    "TrainingError",
    "UnknownNameError",
    "UnsupportedPairError",
    "UsageError",
    "VireoError",
    "WeightsError",
    "__version__",
    "create_model",
    "evaluate",
    "keep_memory",
    "list_backbones",
    "list_modules",
    "list_recipes",
    "load_checkpoint",
    "predict",
    "predict_windows",
    "save_checkpoint",
    "train",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'vireo' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})


class _Package(ModuleType):
    """The package. The import system sets every imported submodule on it: not over a public name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
