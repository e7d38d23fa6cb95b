"""Structural pruning: makes the convolution behind a temporal shift smaller, and all that hangs on its width.

What was taken away is plain data, by the path of the convolution (`ModelConfig.pruned`, so it travels in the
checkpoint, and a network that is built anew gets the shape of the one that was pruned):

    {"layer1.0.conv1": {"keep": [0, 1, 3, …], "merge": [5, 9, 17]}}

    keep    output channels that stay, ascending
    merge   input channels that are averaged into one, ascending; none: []

    C ──► mean of merge ──► shift ──► conv1 ──► norm ──► consumer          a bottleneck block
          C' = C − m + 1    C' + 2·f2'   keep      keep      keep → all

Nothing is masked: the tensors are smaller. Which channels to take away is chosen in ``vireo.prune``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.models import _efficientnet_blocks as efficientnet
from timm.models import resnet
from torch import Tensor, nn

from vireo.contracts import Site, occupied
from vireo.errors import UsageError
from vireo.temporal.mstsm_tfdem import MultiScaleShift
from vireo.temporal.tsm import TemporalShift


@dataclass(frozen=True, kw_only=True)
class CutFacts:
    """Which submodules of one block class depend on the width of its first convolution, in the order they run."""

    conv: str
    norms: tuple[str, ...]
    depthwise: str | None = None
    passing: tuple[str, ...] = ()
    """Modules on the way that must not depend on the width (activations, pooling)."""
    excite: str | None = None
    consumer: str
    """The dense convolution that reads them."""


CUTS: Mapping[type[nn.Module], CutFacts] = {
    resnet.Bottleneck: CutFacts(conv="conv1", norms=("bn1",), passing=("act1",), consumer="conv2"),
    resnet.BasicBlock: CutFacts(conv="conv1", norms=("bn1",), passing=("drop_block", "act1", "aa"), consumer="conv2"),
    efficientnet.InvertedResidual: CutFacts(
        conv="conv_pw", norms=("bn1", "bn2"), depthwise="conv_dw", passing=("aa",), excite="se", consumer="conv_pwl"
    ),
    efficientnet.EdgeResidual: CutFacts(
        conv="conv_exp", norms=("bn1",), passing=("aa",), excite="se", consumer="conv_pwl"
    ),
}


def count_pruned(inputs: int, outputs: int, *, ratio_in: float, ratio_out: float) -> tuple[int, int]:
    """How many inputs of a layer are averaged into one, and how many of its kernels go.

    Args:
        inputs: C, channels before the shift.
        outputs: kernels.
        ratio_in: share of the inputs, in [0, 1); fewer than two are none.
        ratio_out: share of the kernels, in [0, 1).
    """
    merged, dropped = (math.floor(n * ratio + 1e-9) for n, ratio in ((inputs, ratio_in), (outputs, ratio_out)))
    return merged if merged >= 2 else 0, dropped  # 1e-9, as 100 · 0.29 is a little less than 29


_PLAIN = (nn.Conv2d, Conv2dSame)
"""Exact classes: a subclass may compute something else of the same weights."""


def prunable_sites(network: nn.Module, sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites where a temporal shift stands, every one in a block that can be pruned.

    Args:
        network: the backbone, with temporal modules inserted.
        sites: where they stand.

    Raises:
        UsageError: there is no shift, or one stands in a block that can't be pruned; the message says why.
    """
    shifted = [site for site in sites if _shift(network.get_submodule(site.path)) is not None]
    if not shifted:
        raise UsageError("this model has no temporal shift; pruning works for tsm, mstsm and mstsm_tfdem")
    for site in shifted:
        reason = _obstacle(network, site)
        if reason is not None:
            raise UsageError(f"{site.path} can't be pruned: {reason}")
    return tuple(shifted)


def apply_pruning(network: nn.Module, sites: Sequence[Site], pruned: Mapping[str, Any]) -> None:
    """Make a network smaller, in place, with its weights.

    Args:
        network: the backbone, with temporal modules inserted, not pruned yet.
        sites: where they stand.
        pruned: what to take away, see this module's docstring; empty: nothing.

    Raises:
        UsageError: ``pruned`` doesn't fit the network.
    """
    if not pruned:
        return
    there = {site.path: site for site in prunable_sites(network, sites)}
    for path, entry in pruned.items():
        if path not in there:
            raise UsageError(f"pruned names {path!r}, where this network has no temporal shift")
        conv = network.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        if not isinstance(entry, Mapping) or set(entry) != {"keep", "merge"}:
            raise UsageError(f"pruned[{path!r}] is {entry!r}; it must hold keep and merge")
        _check_channels(f"pruned[{path!r}]['keep']", entry["keep"], conv.out_channels)
        _check_channels(f"pruned[{path!r}]['merge']", entry["merge"], there[path].channels)
        if not entry["keep"] or len(entry["merge"]) == 1:
            raise UsageError(f"pruned[{path!r}] keeps no output or merges a single input: {entry!r}")
    for path, entry in pruned.items():
        _merge_inputs(network.get_submodule(path), there[path], entry["merge"])
        _drop_outputs(network.get_submodule(path.rpartition(".")[0]), entry["keep"])


def _shift(leaf: nn.Module) -> TemporalShift | MultiScaleShift | None:
    if not occupied(leaf):
        return None
    shift = leaf.get_submodule("temporal")
    return shift if isinstance(shift, TemporalShift | MultiScaleShift) else None


def _obstacle(network: nn.Module, site: Site) -> str | None:
    parent, _, name = site.path.rpartition(".")
    block: Any = network.get_submodule(parent)
    facts = CUTS.get(type(block))
    if facts is None or facts.conv != name:
        known = ", ".join(kind.__name__ for kind in CUTS)
        return f"it is {name} of a {type(block).__name__}; pruning knows the first convolution of {known}"
    behind = (*facts.norms, facts.depthwise, *facts.passing, facts.excite, facts.consumer)
    for path in behind:  # what another module computes hangs on the width too
        layer = getattr(block, path, None) if path is not None else None
        if layer is not None and any(occupied(part) for part in layer.modules()):
            return f"{path}, which reads what {name} gives, has a temporal module too, made for its width"
    conv, consumer = block.get_submodule(name), block.get_submodule(facts.consumer)
    for path, layer in ((name, conv), (facts.consumer, consumer)):
        if type(layer) not in _PLAIN or layer.groups != 1:
            return f"{path} is not a plain dense convolution but {_described(layer)}"
    for path in facts.norms:
        if not isinstance(block.get_submodule(path), nn.BatchNorm2d):
            return f"{path} is a {type(block.get_submodule(path)).__name__}, not a batch norm"
    if facts.depthwise is not None:
        depthwise = block.get_submodule(facts.depthwise)
        if type(depthwise) not in _PLAIN or not depthwise.groups == depthwise.in_channels == depthwise.out_channels:
            return f"{facts.depthwise} is not a plain depthwise convolution but {_described(depthwise)}"
    for path in facts.passing:
        layer = getattr(block, path, None)
        if layer is not None and any(True for _ in (*layer.parameters(), *layer.buffers())):
            return f"{path} depends on the number of channels: {_described(layer)}"
    if facts.excite is not None:
        excite = block.get_submodule(facts.excite)
        if not isinstance(excite, nn.Identity | efficientnet.SqueezeExcite):
            return f"{facts.excite} is a {type(excite).__name__}, not a squeeze-and-excitation of timm's EfficientNet"
    return None


def _described(layer: nn.Module) -> str:
    # In one line, whatever stands in it.
    return f"{type(layer).__name__}({layer.extra_repr()})"


def _check_channels(name: str, channels: Any, total: int) -> None:
    good = isinstance(channels, list | tuple) and all(type(c) is int and 0 <= c < total for c in channels)
    if not good or list(channels) != sorted(set(channels)):
        raise UsageError(f"{name} is {channels!r}; it must list channels from 0 to {total - 1}, ascending")


def _merge_inputs(leaf: nn.Module, site: Site, merge: Sequence[int]) -> None:
    if not merge:
        return
    conv, old = _conv(leaf), _shift(leaf)
    assert old is not None
    new = _merging(old, site.channels, merge)
    gone = set(merge[1:])
    kept = [c for c in range(site.channels) if c not in gone]  # the old channel that each of the C' stands for
    weight, mean_at = conv.weight.detach(), merge[0]
    base = weight[:, kept]
    base[:, mean_at] = weight[:, list(merge)].sum(dim=1)
    # A copy that was there before keeps its weights; a new one starts as it does where MSTSM is inserted.
    columns = {} if isinstance(old, TemporalShift) else {copy: site.channels + i for i, copy in enumerate(old.copies())}
    sources = torch.cat((weight, base.mean(dim=1, keepdim=True)), dim=1)
    fresh = weight.shape[1]
    added = sources[:, [fresh if c == mean_at else columns.get((kept[c], way), fresh) for c, way in new.copies()]]
    for i, (c, way) in enumerate(new.copies()):
        members = [columns.get((m, way), fresh) for m in merge] if c == mean_at else [fresh]
        if fresh not in members:
            added[:, i] = weight[:, members].sum(dim=1)
    _set_weight(conv, torch.cat((base, added), dim=1))
    conv.in_channels = conv.weight.shape[1]
    leaf.add_module("temporal", new.to(conv.weight.device).train(leaf.training))


def _merging(old: TemporalShift | MultiScaleShift, channels: int, merge: Sequence[int]) -> MultiScaleShift:
    if isinstance(old, MultiScaleShift):
        one_div, two_div, scales = old.one_div, old.two_div, old.scales
    else:  # of C parts none is shifted, or every C / fold-th
        one_div, two_div, scales = channels // old.fold if old.fold else channels + 1, channels + 1, "1"
    return MultiScaleShift(channels, old.frames, one_div=one_div, two_div=two_div, scales=scales, merge=merge)


def _drop_outputs(block: nn.Module, keep: Sequence[int]) -> None:
    facts = CUTS[type(block)]
    conv, consumer = _conv(block.get_submodule(facts.conv)), _conv(block.get_submodule(facts.consumer))
    if len(keep) == conv.out_channels:
        return
    index = torch.tensor(keep, device=conv.weight.device)
    _take_outputs(conv, index)
    for path in facts.norms:
        norm = block.get_submodule(path)
        assert isinstance(norm, nn.BatchNorm2d)
        for name in ("weight", "bias"):
            _set(norm, name, index)
        for name in ("running_mean", "running_var"):
            buffer = getattr(norm, name)
            if buffer is not None:
                setattr(norm, name, buffer[index])
        norm.num_features = len(keep)
    if facts.depthwise is not None:
        depthwise = _conv(block.get_submodule(facts.depthwise))
        _take_outputs(depthwise, index)
        depthwise.in_channels = depthwise.groups = len(keep)
    excite = block.get_submodule(facts.excite) if facts.excite is not None else None
    if isinstance(excite, efficientnet.SqueezeExcite):
        _take_inputs(_conv(excite.conv_reduce), index)
        _take_outputs(_conv(excite.conv_expand), index)
    _take_inputs(consumer, index)


def _conv(module: nn.Module) -> nn.Conv2d:
    assert isinstance(module, nn.Conv2d)
    return module


def _take_outputs(conv: nn.Conv2d, index: Tensor) -> None:
    _set(conv, "weight", index)
    _set(conv, "bias", index)
    conv.out_channels = len(index)


def _take_inputs(conv: nn.Conv2d, index: Tensor) -> None:
    _set_weight(conv, conv.weight.detach()[:, index])
    conv.in_channels = len(index)


def _set(module: nn.Module, name: str, index: Tensor) -> None:
    parameter = getattr(module, name)
    if parameter is not None:
        setattr(module, name, nn.Parameter(parameter.detach()[index], requires_grad=parameter.requires_grad))


def _set_weight(conv: nn.Conv2d, weight: Tensor) -> None:
    conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
