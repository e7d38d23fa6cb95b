"""Spatio-Temporal-Wise network (STW): STFM, TWM, and STW = STFM + TWM.

Cai: "A Novel Spatio-Temporal-Wise Network for Action Recognition", IEEE Access 11, 2023. Written from
the paper's text; eq. numbers are its own.

Site: the input of the residual branch's spatial convolution, in blocks with a shortcut; or, as an option,
that of the branch's first convolution. Every part maps (N·T, C, H, W) → (N·T, C, H, W).

    x[t−1] ──► conv, C/4 ──┐
    x[t] ────► conv, C/2 ──┼─ concat ─► y                       STFM
    x[t+1] ──► conv, C/4 ──┘

    x ─┬─► conv 3×1×1, one map ──► σ ──► S ──► 1 − S ──►(×)──► Z          TWM
       └─────────────────────────────────────────────────┘
                                                                STW = y + Z

What the paper leaves open, and deviations:
1. Site and kernel. The paper says "inside the residual branch" and "similar to TSM", names no kernel, and
   sums STFM and TWM "before the residual branch". Of what fits its cost, less than 2 % over TSN (33.5, 67
   and 100 GMACs for 8, 16 and 8+16 frames), ours is a 3×3 before the spatial convolution: 33.16, 66.32 and
   99.47 on ResNet-50 (TSN: 32.70, 65.40, 98.10), 1.4 % more. Before the first convolution STW adds 0.8 % with a
   1×1 kernel and 4.1 % with a 3×3. Options `site` and `kernel`.
2. Groups. Dense convolutions would double the network's cost, against the paper's own figures. So each
   output channel reads C/groups input channels, with groups = gcd(C, C_out): 4, 2 and 4 of them in the
   default shares. Which, is our choice: output channel p reads input channels p, p + groups, p + 2·groups, …
   (modulo C), so that it always reads channel p. Option `grouping`.
3. Such a grouped convolution is computed as a depthwise one of all C channels whose runs of `groups`
   channels are then summed: the same numbers and the same count, in kernels that are fast.
4. STFM's start: output channel p reads channel p of its frame and nothing else, i.e. a temporal shift like
   TSM's, with C/4 of the channels each way. No biases.
5. TWM starts with λ = 0, so S = 1/2 everywhere and Z = X/2; it has one bias, the threshold of the sigmoid.
   To keep the scale of pretrained features, STFM's weights start at 1/2 in the parallel combination, where
   STW is then the mean of the shifted features and X (X itself where nothing moves), and at 2 in the serial
   ones. TWM alone halves the features at first, which the next norm makes good; the plain average of Table 5
   has no weights to scale.
6. Frames beyond the clip's ends are zeros, in STFM, in TWM and in the average of three frames (Table 5).
7. Where shares of C are no whole numbers, the widths of t−1 and t+1 are rounded down and t gets the rest.
8. With T = 1 the parts for t−1 and t+1 see zeros and have no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireo.contracts import Anchor, Site, SiteModule, prepend
from vireo.errors import UsageError
from vireo.shapes import split_time
from vireo.temporal.base import Chain, Gated, check_stages, temporal_modules

_SOURCE = "Cai, A Novel Spatio-Temporal-Wise Network for Action Recognition, IEEE Access 2023"

SITES = (Anchor.SPATIAL_IN.value, Anchor.BRANCH_IN.value)
COMBINATIONS = ("parallel", "stfm_first", "twm_first")
FUSIONS = ("conv", "average")
GROUPINGS = ("channel", "dense")


@dataclass(frozen=True, kw_only=True)
class _AtSite(SiteModule):
    """What the three recipes share: the place."""

    anchor: ClassVar[Anchor] = Anchor.SPATIAL_IN
    source: ClassVar[str] = _SOURCE

    site: str = "spatial_in"
    """Before which convolution of the branch: spatial_in (the 3×3 or depthwise one) or branch_in (the first)."""

    def __post_init__(self) -> None:
        check_stages(self.stages)
        _check_choice("site", self.site, SITES)

    def choose(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        """The sites of the anchor that the option names, in the stages, in blocks with a shortcut."""
        found = (s for s in sites if s.anchor == self.site and s.stage in self.stages and s.has_skip)
        return tuple(s for s in found if not self.refuses(s))


@dataclass(frozen=True, kw_only=True)
class _Fuses(_AtSite):
    """The options of STFM."""

    shares: tuple[float, ...] = (0.25, 0.5, 0.25)
    """1/α, 1/β, 1/γ of eq. 1: parts of the channels made from t−1, t and t+1; their sum is 1."""
    fusion: str = "conv"
    """conv: eqs. 1 and 2; average: the plain mean of the three frames (Table 5)."""
    kernel: int = 3
    """Height and width of eq. 1's convolutions: 1 or 3."""
    grouping: str = "channel"
    """channel: groups = gcd(C, C_out); dense: every output channel reads all C."""

    def __post_init__(self) -> None:
        super().__post_init__()
        good = isinstance(self.shares, tuple) and len(self.shares) == 3
        if not good or not all(type(s) in (int, float) and 0 < s < 1 for s in self.shares):
            shown = list(self.shares) if isinstance(self.shares, tuple) else self.shares
            raise UsageError(f"shares is {shown!r}; it must be three numbers between 0 and 1, for t−1, t and t+1")
        if not math.isclose(sum(self.shares), 1.0, abs_tol=1e-3):
            raise UsageError(f"shares is {list(self.shares)}; their sum is {sum(self.shares):g} and must be 1")
        _check_choice("fusion", self.fusion, FUSIONS)
        _check_choice("grouping", self.grouping, GROUPINGS)
        if type(self.kernel) is not int or self.kernel not in (1, 3):
            raise UsageError(f"kernel is {self.kernel!r}; it must be 1 or 3")

    def refuses(self, site: Site) -> str | None:
        """Three frames need three channels."""
        return "it has fewer than 3 channels" if site.channels < 3 else None

    def _stfm(self, site: Site, gain: float) -> nn.Module:
        if self.fusion == "average":
            return FrameAverage(site.frames)
        side = [max(1, int(site.channels * share + 1e-6)) for share in (self.shares[0], self.shares[2])]
        return SpatioTemporalFusion(
            site.frames,
            (side[0], site.channels - sum(side), side[1]),
            kernel=self.kernel,
            dense=self.grouping == "dense",
            gain=gain,
        )


@temporal_modules.register("stw")
@dataclass(frozen=True, kw_only=True)
class STW(_Fuses):
    """Fused neighbouring frames plus what moves."""

    summary: ClassVar[str] = "convolutions over three frames (STFM) plus gated motion (TWM)"

    combine: str = "parallel"
    """parallel: STFM(x) + TWM(x); stfm_first: TWM(STFM(x)); twm_first: STFM(TWM(x)) (Table 8)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("combine", self.combine, COMBINATIONS)

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The leaf with STFM and TWM in front of it."""
        twm = TemporalWise(site.channels, site.frames)
        if self.combine == "parallel":
            return prepend(site, leaf, SpatioTemporalWise(self._stfm(site, 0.5), twm))
        stfm = self._stfm(site, 2.0)
        return prepend(site, leaf, Chain(stfm, twm) if self.combine == "stfm_first" else Chain(twm, stfm))


@temporal_modules.register("stfm")
@dataclass(frozen=True, kw_only=True)
class STFM(_Fuses):
    """STW's spatio-temporal fusion module alone: a learned TSM."""

    summary: ClassVar[str] = "grouped convolutions of three frames, concatenated (half of STW)"

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The leaf with STFM in front of it."""
        return prepend(site, leaf, self._stfm(site, 1.0))


@temporal_modules.register("twm")
@dataclass(frozen=True, kw_only=True)
class TWM(_AtSite):
    """STW's temporal-wise module alone."""

    summary: ClassVar[str] = "positions weighed by a gate that sees three frames (half of STW)"

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The leaf with TWM in front of it."""
        return prepend(site, leaf, TemporalWise(site.channels, site.frames))


class SpatioTemporalWise(Gated):
    """STFM and TWM in parallel: (N·T, C, H, W) → the same."""

    def __init__(self, stfm: nn.Module, twm: TemporalWise) -> None:
        super().__init__()
        self.stfm, self.twm = stfm, twm

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C, H, W)."""
        # TWM's product and the sum in one pass.
        return torch.addcmul(self.stfm(features), features, self.twm.gates(features))

    def gates(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → TWM's, (N·T, 1, H, W)."""
        return self.twm.gates(features)


class SpatioTemporalFusion(nn.Module):
    """STFM: (N·T, C, H, W) → the same; some channels made from t−1, some from t, some from t+1.

    Args:
        frames: T.
        widths: channels made from t−1, t and t+1; their sum is C.
        kernel: height and width of the convolutions, odd.
        dense: every output channel reads all input channels.
        gain: weight of an output channel's own channel at the start.
    """

    def __init__(self, frames: int, widths: tuple[int, int, int], *, kernel: int, dense: bool, gain: float) -> None:
        super().__init__()
        self.frames = frames
        channels, (before, now, after) = sum(widths), widths
        self.theta = GroupedConv(channels, before, first=0, kernel=kernel, dense=dense, gain=gain)
        self.phi = GroupedConv(channels, now, first=before, kernel=kernel, dense=dense, gain=gain)
        self.varphi = GroupedConv(channels, after, first=before + now, kernel=kernel, dense=dense, gain=gain)

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C, H, W)."""
        before, now, after = (
            [split_time(run, self.frames) for run in conv(features)] for conv in (self.theta, self.phi, self.varphi)
        )
        # (1): convolve, then shift, as what is shifted is a part of the channels.
        before = [F.pad(run, (0, 0, 0, 0, 0, 0, 1, -1)) for run in before]  # l: t takes t−1
        after = [F.pad(run, (0, 0, 0, 0, 0, 0, -1, 1)) for run in after]  # r: t takes t+1
        return torch.cat([*before, *now, *after], dim=-1).flatten(0, 1).permute(0, 3, 1, 2)  # (2)


class GroupedConv(nn.Module):
    """One convolution of eq. 1, for the output channels from ``first`` on; without bias.

    Output channel p (of STFM's C) reads the input channels that equal p modulo groups = gcd(C, outputs).
    There are outputs/groups rounds of output channels, each of them a depthwise convolution and sums:

        weight[r·C + i] is the kernel between input channel i and that output channel of round r
        which equals i modulo groups

    With one group (``dense``, or widths without a common factor) the weight is that of an ordinary convolution.
    """

    def __init__(self, channels: int, outputs: int, *, first: int, kernel: int, dense: bool, gain: float) -> None:
        super().__init__()
        self.groups = 1 if dense else math.gcd(channels, outputs)
        self.rounds = outputs // self.groups
        self.start = first % self.groups  # the residue of the first output channel
        shape = (outputs, channels) if self.groups == 1 else (self.rounds * channels, 1)
        weight = torch.zeros(*shape, kernel, kernel)
        j = torch.arange(outputs)
        own = (j, first + j) if self.groups == 1 else (j // self.groups * channels + first + j, 0)
        weight[(*own, kernel // 2, kernel // 2)] = gain  # channel p = first + j reads channel p
        self.weight = nn.Parameter(weight)

    def forward(self, features: Tensor) -> list[Tensor]:
        """(N·T, C, H, W) → runs of channels (N·T, H, W, ·), in order, ``outputs`` in all."""
        channels, padding = features.shape[1], self.weight.shape[-1] // 2
        if self.groups == 1:
            return [F.conv2d(features, self.weight, padding=padding).permute(0, 2, 3, 1)]
        runs: list[Tensor] = []
        for weight in torch.split(self.weight, channels):
            products = F.conv2d(features, weight, padding=padding, groups=channels).permute(0, 2, 3, 1)
            total, *others = torch.split(products, self.groups, dim=-1)
            for other in others:
                total = total + other
            # total[…, g] belongs to the output channel ≡ g; the round starts with the one ≡ start.
            if self.start:
                head, tail = torch.split(total, [self.start, self.groups - self.start], dim=-1)
                runs += [tail, head]
            else:
                runs.append(total)
        return runs

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"outputs={self.rounds * self.groups}, groups={self.groups}, kernel={self.weight.shape[-1]}"


class FrameAverage(nn.Module):
    """Table 5's plain fusion: (N·T, C, H, W) → the mean of x[t−1], x[t] and x[t+1]."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C, H, W)."""
        # A pooling over (T, H·W), a view in channels_last memory, reads the features once.
        height, width = features.shape[-2:]
        x = split_time(features.permute(0, 2, 3, 1), self.frames).flatten(2, 3)  # (N, T, H·W, C)
        y = F.avg_pool2d(x.permute(0, 3, 1, 2), (3, 1), stride=1, padding=(1, 0))  # zeros count
        y = torch.unflatten(y.permute(0, 2, 3, 1), 2, (height, width))  # (N, T, H, W, C)
        return y.flatten(0, 1).permute(0, 3, 1, 2)


class TemporalWise(Gated):
    """TWM: (N·T, C, H, W) → the same; every position of every frame weighed by a gate that sees three frames."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        # λ of eq. 4, of shape (1, C, 3, 1, 1), as three 1×1 convolutions: frame by frame, they read x once.
        self.weight = nn.Parameter(torch.zeros(3, channels, 1, 1))  # weight[i+1] multiplies x[t+i]
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C, H, W)."""
        return features * self.gates(features)  # (5), (6): Z = X − X·S

    def gates(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → 1 − S, (N·T, 1, H, W)."""
        maps = split_time(F.conv2d(features, self.weight).permute(0, 2, 3, 1), self.frames)  # (N, T, H, W, 3)
        before, now, after = torch.split(maps, 1, dim=-1)
        before = F.pad(before, (0, 0, 0, 0, 0, 0, 1, -1))
        after = F.pad(after, (0, 0, 0, 0, 0, 0, -1, 1))
        u = (before + now + after + self.bias).flatten(0, 1).permute(0, 3, 1, 2)  # (4)
        return torch.sigmoid(-u).to(features.dtype)  # 1 − S: 1 − sigmoid(u) = sigmoid(−u)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
