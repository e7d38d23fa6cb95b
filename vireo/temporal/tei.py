"""Temporal Enhancement-and-Interaction (TEINet): MEM, TIM, and TEI = MEM then TIM.

Liu, Luo, Wang, Wang, Tai, Wang, Li, Huang, Lu: "TEINet: Towards an Efficient Architecture for Video
Recognition", AAAI 2020 (arXiv:1911.09435). Written from the paper's text; eq. numbers are its own.

Site: the input of the residual branch's first convolution, C = the block's input channels, in blocks
with a shortcut. Every part maps (N·T, C, H, W) → (N·T, C, H, W).

    x ──► pool ──► Conv1, Conv2 ──► s_t ──► Conv3, σ ──►(×)──► u ──► depthwise conv over t ──► y
    └───────────────────────────────────────────────────┘
                          MEM                                              TIM

What the paper leaves open, and deviations:
1. MEM's three 1×1 convolutions have biases: the published 30.4 M parameters of TEINet-50 at 400
   classes come out only so (30,356,896), and only at this site.
2. TIM has no bias and starts as TSM's shift (1/8 of the channels from t+1, 1/8 from t−1, the rest the
   identity); the paper names neither. It is trained from there.
3. Frames beyond the clip's ends are zeros in TIM, as in TSM.
4. "SE + TIM" of Table 1 states no reduction ratio; ours is 16, SE's own.
5. With T = 1 there is no next frame: MEM passes its only frame unchanged, so it has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireo.contracts import Site, SiteModule, prepend
from vireo.shapes import split_time
from vireo.temporal.base import Chain, Gated, check_at_least_one, check_stages, gate, pool_space, temporal_modules

_SOURCE = "Liu et al., TEINet: Towards an Efficient Architecture for Video Recognition, AAAI 2020"


@temporal_modules.register("tei")
@dataclass(frozen=True, kw_only=True)
class TEI(SiteModule):
    """Motion-enhanced channels, then a learned depthwise convolution over time."""

    summary: ClassVar[str] = "motion-gated channels (MEM), then a depthwise temporal convolution (TIM)"
    source: ClassVar[str] = _SOURCE

    reduction: int = 8
    """r of eq. 1: MEM's hidden width is C / reduction."""

    def __post_init__(self) -> None:
        check_stages(self.stages)
        check_at_least_one(reduction=self.reduction)

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The leaf with MEM and TIM in front of it."""
        mem = MotionEnhanced(site.channels, site.frames, self.reduction)
        return prepend(site, leaf, Chain(mem, TemporalInteraction(site.channels, site.frames)))


@temporal_modules.register("mem")
@dataclass(frozen=True, kw_only=True)
class MEM(SiteModule):
    """TEINet's motion-enhanced module alone."""

    summary: ClassVar[str] = "channels gated by the difference to the next frame (half of TEI)"
    source: ClassVar[str] = _SOURCE

    reduction: int = 8
    """r of eq. 1: the hidden width is C / reduction."""

    def __post_init__(self) -> None:
        check_stages(self.stages)
        check_at_least_one(reduction=self.reduction)

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The leaf with MEM in front of it."""
        return prepend(site, leaf, MotionEnhanced(site.channels, site.frames, self.reduction))


@temporal_modules.register("tim")
@dataclass(frozen=True, kw_only=True)
class TIM(SiteModule):
    """TEINet's temporal interaction module alone: a learned TSM."""

    summary: ClassVar[str] = "depthwise temporal convolution that starts as TSM's shift (half of TEI)"
    source: ClassVar[str] = _SOURCE

    def __post_init__(self) -> None:
        check_stages(self.stages)

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The leaf with TIM in front of it."""
        return prepend(site, leaf, TemporalInteraction(site.channels, site.frames))


@temporal_modules.register("se_tim")
@dataclass(frozen=True, kw_only=True)
class SETIM(SiteModule):
    """Squeeze-and-excitation in MEM's place, then TIM (the paper's Table 1)."""

    summary: ClassVar[str] = "squeeze-and-excitation, then TIM (TEINet's ablation)"
    source: ClassVar[str] = _SOURCE

    se_reduction: int = 16
    """SE's hidden width is C / se_reduction."""

    def __post_init__(self) -> None:
        check_stages(self.stages)
        check_at_least_one(se_reduction=self.se_reduction)

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The leaf with SE and TIM in front of it."""
        excite = SqueezeExcitation(site.channels, self.se_reduction)
        return prepend(site, leaf, Chain(excite, TemporalInteraction(site.channels, site.frames)))


class MotionEnhanced(Gated):
    """MEM: (N·T, C, H, W) → the same; channels weighed by how they change to the next frame."""

    def __init__(self, channels: int, frames: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.frames = frames
        # 1×1 convolutions of 1×1 maps: linear layers.
        self.conv1 = nn.Linear(channels, hidden)
        self.conv2 = nn.Linear(channels, hidden)
        self.conv3 = nn.Linear(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C, H, W)."""
        if self.frames == 1:
            return features
        return gate(features, self.gates(features))  # (3)

    def gates(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → ŝ, (N·T, C)."""
        if self.frames == 1:
            return features.new_ones(features.shape[:2])
        pooled = split_time(pool_space(features), self.frames)  # x̂ (N, T, C)
        s = self.conv1(pooled[:, :-1]) - self.conv2(pooled[:, 1:])  # (1): (N, T−1, C/r)
        weights = torch.sigmoid(self.conv3(s))  # (2): ŝ (N, T−1, C)
        return F.pad(weights, (0, 0, 0, 1), value=1.0).flatten(0, 1)  # u_T = x_T


class TemporalInteraction(nn.Module):
    """TIM: (N·T, C, H, W) → the same; each channel convolved over time with its own 3 weights."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        fold = channels // 8
        weight = torch.zeros(channels, 1, 3, 1)  # V[c, 0, i+1, 0] multiplies x[t+i]
        weight[:fold, :, 2] = 1.0  # from t+1
        weight[fold : 2 * fold, :, 0] = 1.0  # from t−1
        weight[2 * fold :, :, 1] = 1.0  # stays
        self.weight = nn.Parameter(weight)

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C, H, W)."""
        # A 2D depthwise convolution over (T, H·W): in channels_last memory this map is a view, and the
        # kernels for it are several times faster than conv3d's or than sums of shifted slices.
        height, width = features.shape[-2:]
        x = split_time(features.permute(0, 2, 3, 1), self.frames).flatten(2, 3)  # (N, T, H·W, C)
        y = F.conv2d(x.permute(0, 3, 1, 2), self.weight, padding=(1, 0), groups=x.shape[-1])  # (4)
        y = torch.unflatten(y.permute(0, 2, 3, 1), 2, (height, width))  # (N, T, H, W, C)
        return y.flatten(0, 1).permute(0, 3, 1, 2)


class SqueezeExcitation(Gated):
    """SE: (N·T, C, H, W) → the same; every frame's channels weighed by its own pooled features."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C, H, W)."""
        return gate(features, self.gates(features))

    def gates(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C)."""
        return torch.sigmoid(self.excite(F.relu(self.squeeze(pool_space(features)))))
