"""Gradient checkpointing: what is inside a block is computed again for the gradients instead of being kept.

Chen, Xu, Zhang, Guestrin: "Training Deep Nets with Sublinear Memory Cost", 2016 (arXiv:1604.06174).

    plain           x ─► conv ─► norm ─► act ─► conv ─► … ─► y     all between x and y waits for the gradients
    recomputed      x ─────────────────────────────────────► y     x waits; the rest is made from it a second time

The second computation leaves no trace and finds what the first one found: dropout and stochastic depth draw the same
numbers, and batch norms write their running statistics into copies, so that a step counts once. (With plain
``torch.utils.checkpoint``, and so with timm's own ``set_grad_checkpointing``, it counts twice.) So losses, gradients
and running statistics are those of a network without it, bit for bit where the kernels are deterministic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vireo.backbones.mfnet import MultiFiberUnit
from vireo.backbones.timm_sites import BLOCKS
from vireo.errors import UsageError

KNOWN = (*BLOCKS, MultiFiberUnit)
"""Block classes of the families that Vireo tests."""


def recompute_blocks(network: nn.Module, name: str) -> tuple[str, ...]:
    """Have the blocks of a network computed twice while it is trained, in place.

    Nothing changes where no gradients are wanted, nor in evaluation mode. No parameter is renamed, and copies
    (``copy.deepcopy``, a moving average) do as the original. A second call changes nothing.

    Args:
        network: the backbone, with temporal modules inserted.
        name: the backbone's name, for the message.

    Returns:
        The blocks' paths.

    Raises:
        UsageError: no part of it can be told to be a block.
    """
    paths = find_blocks(network)
    if not paths:
        raise UsageError(f"grad_checkpointing works block by block, and {name!r} has no blocks; leave it out")
    for path in paths:
        block = network.get_submodule(path)
        block.forward = MethodType(_forward, block)  # this block's, not its class's
    return paths


def find_blocks(network: nn.Module) -> tuple[str, ...]:
    """The paths of a network's blocks, none inside another.

    They are those of the classes that Vireo knows. A network without any has for its blocks the outermost parts
    of a class that occurs at least twice and holds at least two convolutions or linear layers.
    """
    known = _outermost(network, lambda part: isinstance(part, KNOWN))
    if known:
        return known
    count = Counter(type(part) for part in network.modules())
    holders = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return _outermost(network, lambda part: count[type(part)] > 1 and type(part) not in holders and _layers(part) > 1)


def _outermost(network: nn.Module, wanted: Callable[[nn.Module], bool]) -> tuple[str, ...]:
    def below(path: str, part: nn.Module) -> Iterator[str]:
        for name, child in part.named_children():
            inner = f"{path}.{name}" if path else name
            if wanted(child):
                yield inner
            else:
                yield from below(inner, child)

    return tuple(below("", network))


def _layers(part: nn.Module) -> int:
    return sum(isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) for layer in part.modules())


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # A function of this module, bound to the block: a copy of the block gets one that is bound to the copy.
    plain = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return plain(*args, **kwargs)
    if torch.compiler.is_compiling():  # the compiler copies what is to be computed twice, and no change of a buffer
        return checkpoint(plain, *args, use_reentrant=False, **kwargs)
    return checkpoint(plain, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _Copies(block)


class _Copies:
    """While it is entered, the block's batch norms keep their running statistics in copies.

    Copies, not none at all: the second computation must save for the gradients just what the first one saved.
    """

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._own: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        norms = [part for part in self._block.modules() if isinstance(part, _BatchNorm) and part.training]
        self._own = [(norm, name, own) for norm in norms for name, own in norm.named_buffers(recurse=False)]
        for norm, name, own in self._own:
            setattr(norm, name, own.clone())

    def __exit__(self, *_: object) -> None:
        for norm, name, own in self._own:
            setattr(norm, name, own)
        self._own = []
