"""The registry of temporal modules, and what they share."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from vireo.contracts import TemporalModule
from vireo.errors import UsageError
from vireo.registry import Registry

temporal_modules: Registry[type[TemporalModule]] = Registry("temporal module")

STAGES = (2, 3, 4, 5)


def build_temporal(name: str, options: Mapping[str, Any]) -> tuple[TemporalModule, ...]:
    """The temporal module called ``name``, or several: ``tsm+tfdem`` is both, in this order.

    Args:
        name: names of modules, joined by plus signs.
        options: go to every one of them that has such an option (lists count as tuples, one stage as a
            tuple of it).

    Raises:
        UnknownNameError: no such module; the message suggests the nearest names.
        UsageError: no such option, a value that does not fit, or the same module twice.
    """
    names = name.split("+") if isinstance(name, str) else [name]
    kinds = [temporal_modules.get(part) for part in names]
    if len(set(names)) < len(names):
        raise UsageError(f"temporal is {name!r}; each module can stand there once")
    known = list(dict.fromkeys(f.name for kind in kinds for f in fields(kind)))
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            raise UsageError(
                f"Temporal module {name!r} has no option {option!r}."
                + (f" Did you mean {near[0]!r}?" if near else "")
                + (f" Its options: {', '.join(known)}." if known else " It has none.")
            )
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    if type(given.get("stages")) is int:
        given["stages"] = (given["stages"],)
    parts = tuple(kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given}) for kind in kinds)
    for option in known:
        values = [getattr(part, option) for part in parts if hasattr(part, option)]
        if any(value != values[0] for value in values):  # one name, one value: a checkpoint stores it once
            raise UsageError(f"The modules of {name!r} differ in their default of {option}; state it")
    return parts


def check_stages(stages: object) -> None:
    """Accept any non-empty subset of 2..5, without repeats.

    Raises:
        UsageError: anything else.
    """
    good = isinstance(stages, tuple) and len(stages) > 0 and len(set(stages)) == len(stages)
    if not good or any(type(s) is not int or s not in STAGES for s in stages):  # type: ignore[attr-defined]
        shown = list(stages) if isinstance(stages, tuple) else stages
        raise UsageError(f"stages is {shown!r}; it must be a subset of [2, 3, 4, 5], the papers' res2..res5")


def check_at_least_one(**values: object) -> None:
    """Accept integers of at least 1.

    Raises:
        UsageError: anything else; the message names the value.
    """
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise UsageError(f"{name} is {value!r}; it must be an integer of at least 1")


def pool_space(features: Tensor) -> Tensor:
    """(N·T, C, H, W) → (N·T, C): global average over space."""
    # A sum, then a small division: the gradient of `mean` writes a tensor of the whole size, that of
    # `sum` is a view. 56² values can overflow float16, so its sums are float32. (bfloat16 can't overflow, and its
    # sums are accumulated in float32 anyway; to ask for that type would cost a float32 copy of the features.)
    total = features.sum(dim=(2, 3), dtype=torch.float32 if features.dtype == torch.float16 else None)
    return (total / (features.shape[2] * features.shape[3])).to(features.dtype)


def gate(features: Tensor, weights: Tensor) -> Tensor:
    """(N·T, C, H, W) × (N·T, C) → (N·T, C, H, W): every channel of every frame by its own weight."""
    return features * weights[:, :, None, None]


class Gated(nn.Module, ABC):
    """A map of features, (N·T, C, H, W) → the same, that opens and closes gates. Pictures show them."""

    @abstractmethod
    def gates(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → what passes, in [0, 1]: (N·T, C) of channels, or (N·T, 1, H, W) of positions."""


@contextmanager
def note_gates(network: nn.Module, clips: int, found: dict[str, Tensor]) -> Iterator[None]:
    """Put the gates of a network's modules into ``found`` while it runs.

    Args:
        network: it or parts of it run inside the block, at most once.
        clips: N.
        found: gets the gates, (N, T, C) or (N, T, H, W), by the path of the layer before which they stand, with
            ``.gates`` behind it.
    """

    def hook_for(path: str) -> Callable[[Gated, tuple[Tensor, ...]], None]:
        def hook(module: Gated, inputs: tuple[Tensor, ...]) -> None:
            gates = torch.unflatten(module.gates(inputs[0]), 0, (clips, -1))
            found[f"{path}.gates"] = gates.squeeze(2) if gates.ndim == 5 else gates

        return hook

    gated = [(path.partition(".temporal")[0], m) for path, m in network.named_modules() if isinstance(m, Gated)]
    hooks = [module.register_forward_pre_hook(hook_for(path)) for path, module in gated]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Chain(nn.Sequential):
    """Feature maps one after the other, each (N·T, C, H, W) → (N·T, C, H, W)."""
