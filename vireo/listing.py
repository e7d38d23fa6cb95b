"""Names by pattern: what `create_model` and `vireo train --recipe` can be given."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from vireo.backbones import FAMILIES
from vireo.recipes import RECIPES
from vireo.temporal import temporal_modules


def list_modules(pattern: str = "*") -> list[str]:
    """Temporal modules, the first argument of :func:`vireo.create_model`; several are joined by a plus sign.

    Args:
        pattern: shell wildcards, such as ``"*tfdem"``; upper and lower case are the same.

    Returns:
        Names in alphabetical order; empty where none fits.
    """
    return _matching(temporal_modules.names(), pattern)


def list_backbones(pattern: str = "*") -> list[str]:
    """The backbones that the tests cover; any other timm network made of the same blocks works, too.

    Args:
        pattern: shell wildcards, such as ``"resnet*"``; upper and lower case are the same.

    Returns:
        Names in alphabetical order; empty where none fits.
    """
    return _matching((name for family in FAMILIES for name in family.examples), pattern)


def list_recipes(pattern: str = "*") -> list[str]:
    """Recipes: training as a paper did, for :func:`vireo.recipes.configure` and ``vireo train --recipe``.

    Args:
        pattern: shell wildcards, such as ``"*-ssv2-*"``; upper and lower case are the same.

    Returns:
        Names in alphabetical order; empty where none fits.
    """
    return _matching(RECIPES, pattern)


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return sorted(name for name in names if fnmatchcase(name.lower(), pattern.lower()))
