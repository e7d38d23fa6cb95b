"""The seam between backbones and temporal modules.

A backbone adapter *publishes sites*: places in its residual blocks, described by facts. A temporal
module *names the anchor it wants* and makes, for each site, the map of features that goes there.
``vireo.model`` brings the two together after pretrained weights are loaded, so that no weight of the
backbone is ever renamed.

    x ──┬─► conv1 ─► conv2 ─► conv3 ──(+)──►      a bottleneck block
        │   ▲        ▲   ▲    ▲        │
        │   branch_in│ spatial project_in
        │        spatial_in            │
        └──────────────────────────────┘
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar

from torch import nn

from vireo.shapes import Layout


class Anchor(StrEnum):
    """A place in a residual block or a tap of the network, whatever the family calls it."""

    BRANCH_IN = "branch_in"
    """Input of the residual branch's first convolution."""
    SPATIAL_IN = "spatial_in"
    """Input of the branch's spatial (3×3 or depthwise) convolution."""
    SPATIAL = "spatial"
    """That convolution itself, to be replaced."""
    PROJECT_IN = "project_in"
    """Input of the convolution after the spatial one."""
    STEM_OUT = "stem_out"
    """Tap: output of the stem, pooling included."""
    STAGE_OUT = "stage_out"
    """Tap: output of a stage."""


@dataclass(frozen=True, kw_only=True)
class ConvFacts:
    """What a module may need to know about the convolution (or linear layer) at a site."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved on its own."""
        return self.groups > 1 and self.groups == self.in_channels


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place where a temporal module can go, published by a backbone adapter."""

    path: str
    """Submodule of the backbone, e.g. ``layer3.0.conv1``."""
    anchor: Anchor
    channels: int
    """Channels of the features that pass here."""
    frames: int
    """T at this site."""
    stage: int
    """log2 of the stage's output stride: 2..5, the papers' res2..res5."""
    block: int
    """Index of the block within its stage, from 0."""
    has_skip: bool
    """Whether the block adds a shortcut (an identity or a projection)."""
    conv: ConvFacts
    layout: Layout = Layout.NT_C_H_W


@dataclass(frozen=True, kw_only=True)
class TemporalModule(ABC):
    """Recipe of a temporal module: its options are the fields, its place is ``anchor``.

    A subclass is a frozen dataclass; every field is an option of ``create_model`` with a default
    and a docstring. ``insert`` is called once per chosen site.
    """

    anchor: ClassVar[Anchor | None] = Anchor.BRANCH_IN
    """Where the module goes; None for a module that inserts nothing (TSN)."""
    summary: ClassVar[str] = ""
    """One line for ``vireo models``."""
    source: ClassVar[str] = ""
    """The paper: authors, title, year."""

    stages: tuple[int, ...] = (2, 3, 4, 5)
    """Stages that get the module, any subset of 2..5 (the papers' res2..res5)."""

    @abstractmethod
    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The module that stands at ``site.path`` afterwards.

        Args:
            site: facts of the place.
            leaf: the backbone's module there, with its weights.

        Returns:
            ``leaf`` itself, with a map of features in front of it (see :func:`prepend`), or a new
            module made from it.
        """

    def options(self) -> dict[str, Any]:
        """The fields as plain data, for the checkpoint."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


_CHILD = "temporal"


def prepend(leaf: nn.Module, features: nn.Module) -> nn.Module:
    """Put a map of features in front of ``leaf``: from now on leaf(x) computes leaf(features(x)).

    The leaf *owns* the map as a child called ``temporal`` and a module-level hook calls it. So the
    leaf's own parameters keep their names (pretrained weights still load), and ``copy.deepcopy``,
    EMA, ``torch.compile(fullgraph=True)`` and ``torch.export`` see an ordinary module. A hook that
    closed over ``features`` would survive a deepcopy pointing at the original.

    Raises:
        ValueError: the leaf has a map already.
    """
    if hasattr(leaf, _CHILD):
        raise ValueError("this leaf has a temporal module already")
    leaf.add_module(_CHILD, features)
    leaf.register_forward_pre_hook(_call_child)
    return leaf


def _call_child(leaf: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (getattr(leaf, _CHILD)(inputs[0]), *inputs[1:])
