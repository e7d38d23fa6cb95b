"""Temporal Extraction and Feature Enhancement (TEFE): TE, FE, and their placement in a network.

Jiang, Zhang: "An Improved Action Recognition Network With Temporal Extraction and Feature
Enhancement", IEEE Access 10, 2022. Written from the paper's text; eq. numbers are its own.

Sites: TE stands before the residual branch's last convolution, C = the branch's inner width; FE takes
the place of the branch's spatial convolution. Both (N·T, C, H, W) → (N·T, C', H', W').

    x ─► conv1 ─► conv2 ─► TE ─► conv3 ─►      a TE block
    x ─► conv1 ─►   FE   ──────► conv3 ─►      an FE block, FE in place of conv2; norms and activations as before

    x ──► pool ─┬─► Conv1d, Conv1d, σ ──────► M ──►(×)──► X⁰ ──►(⊗)──► y          TE
    │           └─► FC, ReLU, FC, softmax ──► q ─────────────────┘ over t
    └───────────────────────────────────────────────┘

    x ──┬─► Conv1, 3×k×k ──►(×)──► y                                              FE
        └─► Conv2, 3×k×k ────┘

What the paper leaves open, and deviations:
1. The long-term branch's hidden width is 2T, with a ReLU between its two layers (without one they would
   be a single layer), and the short-term branch expands with a kernel of 1: our choices.
2. The layers of TE have biases and the framework's usual random start. The published cost does not tell:
   with or without them the network has 64.8 M parameters (174 classes) and takes 90.2 GMACs for 8 frames of
   224×256, and 180.4 for 16 (the paper: 90 and 181). So TE, unlike FE, changes a pretrained network's features
   from the start: it about halves them and averages neighbouring frames; the next norm restores the scale.
3. Frames beyond the clip's ends are zeros, for both modules.
4. Conv1 of FE has a bias only where the convolution that it replaces has one. A network with fresh FE
   blocks equals the one without them.
5. U of eq. 10 is the block's last convolution; the norm and the activation after the spatial convolution
   stay where they are, after the product.
6. Table 5 gives the number of TE and FE blocks of every stage; their order within a stage is ours: first the
   TE blocks, then the FE blocks, then the plain ones. Its rows "TE=3" and "TE=2" are named `te3` and `te2`.
7. X⁰ is not formed: M and q, each a number per frame or clip and channel, are multiplied first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from vireo.contracts import Anchor, Site, SiteModule, prepend
from vireo.errors import UnsupportedPairError, UsageError
from vireo.shapes import Layout, split_time
from vireo.temporal.base import STAGES, Gated, check_stages, pool_space, temporal_modules

_SOURCE = (
    "Jiang, Zhang, An Improved Action Recognition Network With Temporal Extraction and Feature Enhancement, "
    "IEEE Access 2022"
)

_Counts = tuple[int, int, int, int]

PLACEMENTS: Mapping[str, tuple[_Counts, _Counts]] = {
    "te_only": ((3, 4, 6, 3), (0, 0, 0, 0)),
    "fe_only": ((0, 0, 0, 0), (0, 4, 6, 3)),
    "te3": ((3, 3, 3, 3), (0, 1, 3, 0)),
    "te2": ((2, 2, 2, 2), (0, 2, 4, 1)),
    "te1": ((1, 1, 1, 1), (0, 3, 5, 2)),
}
"""The rows of Table 5: blocks with TE and blocks with FE, in stages 2..5. The last is the best."""


@temporal_modules.register("tefe")
@dataclass(frozen=True, kw_only=True)
class TEFE(SiteModule):
    """In every stage some blocks with TE, then some with FE."""

    anchor: ClassVar[Anchor] = Anchor.PROJECT_IN
    summary: ClassVar[str] = "blocks with temporal extraction (TE), then blocks with 3D feature enhancement (FE)"
    source: ClassVar[str] = _SOURCE

    placement: str = "te1"
    """Which row of the paper's Table 5: te_only, fe_only, te3, te2 or te1 (the best)."""
    te_blocks: tuple[int, ...] = ()
    """How many blocks of stages 2, 3, 4 and 5 get TE, instead of the placement's; more than there are means all."""
    fe_blocks: tuple[int, ...] = ()
    """How many of the blocks after these get FE, likewise."""

    def __post_init__(self) -> None:
        check_stages(self.stages)
        if self.placement not in PLACEMENTS:
            raise UsageError(f"placement is {self.placement!r}; it must be one of {', '.join(PLACEMENTS)}")
        _check_counts("te_blocks", self.te_blocks)
        _check_counts("fe_blocks", self.fe_blocks)
        wanted = [te + fe for stage, te, fe in self._counts() if stage in self.stages]
        if not any(wanted):
            raise UsageError(
                f"te_blocks is {list(self.te_blocks)} and fe_blocks {list(self.fe_blocks)}; with placement "
                f"{self.placement!r} and stages {list(self.stages)} not one block gets TE or FE"
            )

    def _counts(self) -> Iterator[tuple[int, int, int]]:
        te, fe = PLACEMENTS[self.placement]
        return zip(STAGES, self.te_blocks or te, self.fe_blocks or fe, strict=True)

    def refuses(self, site: Site) -> str | None:
        """FE needs a convolution; TE goes anywhere."""
        return _no_convolution(site) if site.anchor == Anchor.SPATIAL else None

    def choose(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        """The inputs of the TE blocks' last convolutions, the spatial convolutions of the FE blocks."""
        chosen: list[Site] = []
        for stage, te, fe in self._counts():
            for block in _blocks(site for site in sites if stage in self.stages and site.stage == stage):
                places = {site.anchor: site for site in block if site.has_skip and not self.refuses(site)}
                if te and Anchor.PROJECT_IN in places:
                    chosen.append(places[Anchor.PROJECT_IN])
                    te -= 1
                elif fe and Anchor.SPATIAL in places:
                    chosen.append(places[Anchor.SPATIAL])
                    fe -= 1
        return tuple(chosen)

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The leaf with TE in front of it, or FE made from it."""
        if site.anchor == Anchor.SPATIAL:
            return FeatureEnhancement(_copyable(site, leaf), site.frames)
        return prepend(site, leaf, TemporalExtraction(site.channels, site.frames))


@temporal_modules.register("te")
@dataclass(frozen=True, kw_only=True)
class TE(SiteModule):
    """Temporal extraction alone, in every block."""

    anchor: ClassVar[Anchor] = Anchor.PROJECT_IN
    summary: ClassVar[str] = "motion gate, then a temporal kernel made for each clip (half of TEFE)"
    source: ClassVar[str] = _SOURCE

    def __post_init__(self) -> None:
        check_stages(self.stages)

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The leaf with TE in front of it."""
        return prepend(site, leaf, TemporalExtraction(site.channels, site.frames))


@temporal_modules.register("fe")
@dataclass(frozen=True, kw_only=True)
class FE(SiteModule):
    """Feature enhancement alone, in every block of its stages."""

    anchor: ClassVar[Anchor] = Anchor.SPATIAL
    summary: ClassVar[str] = "the product of two 3D convolutions for the spatial one (half of TEFE)"
    source: ClassVar[str] = _SOURCE

    stages: tuple[int, ...] = (3, 4, 5)
    """Stages that get the module, any subset of 2..5; the paper puts none into stage 2, to save computation."""

    def __post_init__(self) -> None:
        check_stages(self.stages)

    def refuses(self, site: Site) -> str | None:
        """It needs a convolution."""
        return _no_convolution(site)

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """FE made from the leaf."""
        return FeatureEnhancement(_copyable(site, leaf), site.frames)


class TemporalExtraction(Gated):
    """TE: (N·T, C, H, W) → the same; channels gated, then mixed over time by a kernel of the clip's own."""

    def __init__(self, channels: int, frames: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.frames = frames
        self.reduce = nn.Conv1d(channels, hidden, 3, padding=1)
        self.expand = nn.Conv1d(hidden, channels, 1)
        self.fc1 = nn.Linear(frames, 2 * frames)  # shared by all channels
        self.fc2 = nn.Linear(2 * frames, 3)

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C, H, W)."""
        pooled = split_time(pool_space(features), self.frames)  # (1): X^S (N, T, C)
        motion = self._motion(pooled).transpose(1, 2)  # M (N, C, T)
        kernel = torch.softmax(self.fc2(F.relu(self.fc1(pooled.transpose(1, 2)))), dim=-1)  # (5): q (N, C, 3)
        # (4) and (6): y[t] = Σ_i q[i+1] · M[t+i] · x[t+i]; the two small factors first.
        weights = torch.stack([kernel[..., i + 1, None] * _moved(motion, i) for i in (-1, 0, 1)])
        weights = weights.to(features.dtype).permute(3, 0, 1, 2)[..., None, None, :]  # (T, 3, N, 1, 1, C)
        # Frame by frame: what is read twice is still in the cache, and backward makes no zero-filled tensors.
        x = split_time(features.permute(0, 2, 3, 1), self.frames).unbind(dim=1)  # T × (N, H, W, C)
        y = []
        for t, weight in enumerate(weights.unbind()):
            before, now, after = weight.unbind()
            mixed = now * x[t]
            if t > 0:
                mixed = torch.addcmul(mixed, before, x[t - 1])
            if t < self.frames - 1:
                mixed = torch.addcmul(mixed, after, x[t + 1])
            y.append(mixed)
        return torch.stack(y, dim=1).flatten(0, 1).permute(0, 3, 1, 2)

    def gates(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → M, (N·T, C)."""
        return self._motion(split_time(pool_space(features), self.frames)).flatten(0, 1)

    def _motion(self, pooled: Tensor) -> Tensor:
        """(2), (3): (N, T, C) → (N, T, C)."""
        # As matrix products: a convolution of so few numbers spends its time on preparations.
        windows = torch.cat((F.pad(pooled, (0, 0, 1, -1)), pooled, F.pad(pooled, (0, 0, -1, 1))), dim=-1)
        reduced = F.linear(windows, self.reduce.weight.permute(0, 2, 1).flatten(1), self.reduce.bias)  # (2)
        return torch.sigmoid(F.linear(reduced, self.expand.weight.squeeze(2), self.expand.bias))  # (3)


class FeatureEnhancement(nn.Module):
    """FE: (N·T, C, H, W) → (N·T, C', H', W'); the product of two 3×k×k convolutions, made from a k×k one."""

    def __init__(self, conv: nn.Conv2d, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.same = isinstance(conv, Conv2dSame)  # pads by the input's size, as TensorFlow does
        self.conv1 = _inflate(conv, bias=conv.bias is not None)
        self.conv2 = _inflate(conv, bias=True)
        with torch.no_grad():
            self.conv1.weight.zero_()
            self.conv1.weight[:, :, 1].copy_(conv.weight)
            if conv.bias is not None and self.conv1.bias is not None:
                self.conv1.bias.copy_(conv.bias)
            self.conv2.weight.zero_()
            assert self.conv2.bias is not None
            self.conv2.bias.fill_(1.0)  # (11)
        self.depthwise = 1 < conv.groups == conv.in_channels == conv.out_channels

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C', H', W')."""
        if self.same:
            height, width = self.conv1.kernel_size[1:]
            stride, dilation = self.conv1.stride[1:], self.conv1.dilation[1:]
            features = pad_same(features, [height, width], list(stride), list(dilation))
        if self.depthwise:
            y = self._frame_by_frame(features, self.conv1) * self._frame_by_frame(features, self.conv2)  # (10)
            return y.flatten(0, 1).permute(0, 3, 1, 2)
        clips = split_time(features, self.frames).transpose(1, 2)  # (N, C, T, H, W); channels_last_3d, a view
        if self.frames == 2:  # here oneDNN's bfloat16 gradient of a 3D kernel that pads time itself is garbage
            product = _with_time_padded(clips, self.conv1) * _with_time_padded(clips, self.conv2)
        else:
            product = self.conv1(clips) * self.conv2(clips)  # (10)
        return product.transpose(1, 2).flatten(0, 1)

    def _frame_by_frame(self, features: Tensor, conv: nn.Conv3d) -> Tensor:
        # (N·T, C, H, W) → (N, T, H', W', C). The backward pass of a depthwise 3D convolution is several times
        # slower than those of three 2D ones, each with one slice of the kernel.
        padding = [int(p) for p in conv.padding[1:]]
        y: list[Tensor] = []
        for i, kernel in zip((-1, 0, 1), conv.weight.unbind(dim=2), strict=True):
            bias = conv.bias if i == 0 else None
            part = F.conv2d(features, kernel, bias, conv.stride[1:], padding, conv.dilation[1:], conv.groups)
            part = split_time(part.permute(0, 2, 3, 1), self.frames)
            y.append(part if i == 0 else F.pad(part, (0, 0, 0, 0, 0, 0, -i, i)))  # t takes t+i, zeros beyond
        return y[0] + y[1] + y[2]


def _with_time_padded(clips: Tensor, conv: nn.Conv3d) -> Tensor:
    padding = [0, *(int(p) for p in conv.padding[1:])]
    clips = F.pad(clips, (0, 0, 0, 0, 1, 1))
    return F.conv3d(clips, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)


def _moved(series: Tensor, by: int) -> Tensor:  # (…, T): t takes t+by, zeros beyond the ends
    return F.pad(series, (-by, by)) if by else series


def _inflate(conv: nn.Conv2d, *, bias: bool) -> nn.Conv3d:
    height, width = conv.kernel_size
    return nn.Conv3d(
        conv.in_channels,
        conv.out_channels,
        (3, height, width),
        stride=(1, conv.stride[0], conv.stride[1]),
        padding=(1, int(conv.padding[0]), int(conv.padding[1])),
        dilation=(1, conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
        bias=bias,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )


def _no_convolution(site: Site) -> str | None:
    return "its spatial mixing is a linear layer" if site.layout == Layout.NT_H_W_C else None


def _copyable(site: Site, leaf: nn.Module) -> nn.Conv2d:
    # Exact classes: another subclass may compute something else, e.g. standardise its weights.
    if type(leaf) not in (nn.Conv2d, Conv2dSame):
        raise UnsupportedPairError(
            f"FE can't replace {site.path!r}, a {type(leaf).__name__}; it can replace a Conv2d or a Conv2dSame. "
            f"'te' works on this backbone."
        )
    assert isinstance(leaf, nn.Conv2d)
    if leaf.padding_mode != "zeros" or isinstance(leaf.padding, str):
        raise UnsupportedPairError(
            f"FE can't replace {site.path!r}: its padding is {leaf.padding!r} of mode {leaf.padding_mode!r}, and FE "
            f"pads a stated number of zeros. 'te' works on this backbone."
        )
    return leaf


def _blocks(sites: Iterable[Site]) -> Iterator[list[Site]]:
    # The sites of one stage, block by block.
    for _, block in groupby(sites, key=lambda site: site.block):
        yield list(block)


def _check_counts(name: str, counts: object) -> None:
    good = isinstance(counts, tuple) and len(counts) in (0, 4)
    if not good or any(type(c) is not int or c < 0 for c in counts):  # type: ignore[attr-defined]
        shown = list(counts) if isinstance(counts, tuple) else counts
        raise UsageError(f"{name} is {shown!r}; it must be four numbers of blocks, of stages 2, 3, 4 and 5, or empty")
