"""The seam between backbones and temporal modules.

A backbone adapter *publishes sites*: places in its residual blocks, described by facts. A temporal
module *names the anchor it wants* and makes, for each site, the map of features that goes there.
``vireo.model`` brings the two together after pretrained weights are loaded, so that no weight of the
backbone is ever renamed. A module may also read a *tap*, the output of the stem or of a stage, through a
`Branch`: a path beside the backbone whose features join the classifier's, or which has scores of its own.

    x ──┬─► conv1 ─► conv2 ─► conv3 ──(+)──►      a bottleneck block
        │   ▲        ▲   ▲    ▲        │
        │   branch_in│ spatial project_in
        │        spatial_in            │
        └──────────────────────────────┘

    stem ─► stage 2 ─► … ─► stage 5 ─► pool ─► classifier ─► logits
        └─ stem_out   └─ stage_out              ▲ features    ▲ logits of a branch
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

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
class Tap:
    """An output of the backbone that a branch can read, published by a backbone adapter."""

    path: str
    """Submodule whose output it is, e.g. ``maxpool`` or ``layer3``."""
    anchor: Anchor
    """``stem_out`` or ``stage_out``."""
    channels: int
    frames: int
    """T of this output (3D backbones may have pooled time)."""
    stage: int
    """log2 of the output's stride: 2 is 56² of 224²."""
    layout: Layout = Layout.NT_C_H_W


class BranchOutputs(NamedTuple):
    """What a branch gives, for N clips."""

    features: Tensor | None = None
    """(N, D): features that join the classifier's input."""
    logits: Tensor | None = None
    """(N, K): scores that are added to the main path's and have a loss of their own."""
    visuals: dict[str, Tensor] | None = None
    """Pictures of what it does, by name; None unless asked for."""


class Branch(nn.Module, ABC):
    """A path beside the backbone. A part that depends on the classes is a child called ``classifier``."""

    def __init__(self, tap: Tap, *, features: int = 0) -> None:
        super().__init__()
        self.tap = tap
        self.features = features
        """D, width of the features that join the classifier's; 0 for a branch with scores."""

    @abstractmethod
    def forward(self, tapped: Tensor, visuals: bool = False) -> BranchOutputs:
        """The tap's output, in the tap's layout, to features or scores."""


@dataclass(frozen=True, kw_only=True)
class TemporalModule:
    """Recipe of a temporal module; its options are the fields.

    A subclass is a frozen dataclass; every field is an option of ``create_model`` with a default
    and a docstring. This one alone inserts nothing: a module that goes into blocks is a `SiteModule`, and
    one that stands beside the backbone overrides ``branch``.
    """

    summary: ClassVar[str] = ""
    """One line for ``vireo models``."""
    source: ClassVar[str] = ""
    """The paper: authors, title, year."""

    def branch(self, taps: Sequence[Tap], num_classes: int) -> Branch | None:
        """A path beside the backbone, or None for a module without one. Called once per model.

        Args:
            taps: what the backbone publishes, in the order in which they run.
            num_classes: K.

        Raises:
            UnsupportedPairError: no tap fits; the message says what it needs and what there is.
        """
        return None

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weights of the loss on the logits and of the loss on a branch's own logits."""
        return 1.0, 1.0

    def options(self) -> dict[str, Any]:
        """The fields as plain data, for the checkpoint."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class SiteModule(TemporalModule):
    """Recipe of a module that goes into the backbone's blocks, at its anchor.

    ``insert`` is called once per site that ``choose`` picks.
    """

    anchor: ClassVar[Anchor] = Anchor.BRANCH_IN
    """Where the module goes."""

    stages: tuple[int, ...] = (2, 3, 4, 5)
    """Stages that get the module, any subset of 2..5 (the papers' res2..res5)."""

    def refuses(self, site: Site) -> str | None:
        """Why the module can't go to a site of its anchor, in a few words; None if it can."""
        return None

    def choose(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        """The sites that get the module: by default those of its anchor, in its stages, in blocks with a shortcut."""
        return tuple(
            site
            for site in sites
            if site.anchor == self.anchor and site.stage in self.stages and site.has_skip and not self.refuses(site)
        )

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The module that stands at ``site.path`` afterwards.

        Args:
            site: facts of the place.
            leaf: the backbone's module there, with its weights.

        Returns:
            ``leaf`` itself, with a map of features in front of it (see :func:`prepend`), or a new
            module made from it.
        """
        raise NotImplementedError


_CHILD = "temporal"


def prepend(site: Site, leaf: nn.Module, features: nn.Module) -> nn.Module:
    """Put a map of features in front of ``leaf``: from now on leaf(x) computes leaf(features(x)).

    The leaf *owns* the map as a child called ``temporal`` and a module-level hook calls it. So the
    leaf's own parameters keep their names (pretrained weights still load), and ``copy.deepcopy``,
    EMA, ``torch.compile(fullgraph=True)`` and ``torch.export`` see an ordinary module. A hook that
    closed over ``features`` would survive a deepcopy pointing at the original.

    ``features`` always sees (N·T, C, H, W), also where the site holds channels last.

    Raises:
        ValueError: the leaf has a map already.
    """
    if occupied(leaf):
        raise ValueError("this leaf has a temporal module already")
    leaf.add_module(_CHILD, features)
    leaf.register_forward_pre_hook(_call_child_channels_last if site.layout == Layout.NT_H_W_C else _call_child)
    return leaf


def occupied(leaf: nn.Module) -> bool:
    """Whether a temporal module stands in front of ``leaf``."""
    return hasattr(leaf, _CHILD)


def _call_child(leaf: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (getattr(leaf, _CHILD)(inputs[0]), *inputs[1:])


def _call_child_channels_last(leaf: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # Views both ways: the map sees channels_last memory, and gives such memory back.
    features = getattr(leaf, _CHILD)(inputs[0].permute(0, 3, 1, 2))
    return (features.permute(0, 2, 3, 1), *inputs[1:])
