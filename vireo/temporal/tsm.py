"""Temporal Shift Module (TSM).

Lin, Gan, Han: "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019. Written
from the paper's description: the residual, offline (bidirectional) shift, in every residual block.

Site: the input of the residual branch's first convolution, in blocks with a shortcut (a projection
counts), where the unshifted features stay reachable. Shapes: (N·T, C, H, W) → (N·T, C, H, W).

    channels   0 .. C/8    C/8 .. 2C/8    rest
    at t       x[t+1]      x[t−1]         x[t]        zeros beyond the clip's ends

No parameters, no multiplications.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireo.contracts import Site, SiteModule, prepend
from vireo.errors import UsageError
from vireo.shapes import split_time
from vireo.temporal.base import check_at_least_one, check_stages, temporal_modules


@temporal_modules.register("tsm")
@dataclass(frozen=True, kw_only=True)
class TSM(SiteModule):
    """Shifts an eighth of the channels from the next frame and an eighth from the one before."""

    summary: ClassVar[str] = "channels shifted to neighbouring frames; no parameters"
    source: ClassVar[str] = "Lin et al., TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019"

    fold_div: int = 8
    """One part in fold_div of the channels is shifted each way; at least 2."""

    def __post_init__(self) -> None:
        check_stages(self.stages)
        check_at_least_one(fold_div=self.fold_div)
        if self.fold_div < 2:
            raise UsageError(f"fold_div is {self.fold_div}; it must be at least 2 (two parts are shifted)")

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """The leaf with a shift in front of it."""
        return prepend(site, leaf, TemporalShift(site.frames, site.channels // self.fold_div))


class TemporalShift(nn.Module):
    """(N·T, C, H, W) → the same: ``fold`` channels from t+1, the next ``fold`` from t−1, the rest stay."""

    def __init__(self, frames: int, fold: int) -> None:
        super().__init__()
        self.frames, self.fold = frames, fold

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C, H, W); channels_last in, channels_last out, without permuted copies."""
        # In (N, T, H, W, C) the parts are runs of the innermost axis. `split` and `pad` (a negative pad
        # cuts) rather than slices: the gradient of a slice is a zero-filled tensor of the whole size.
        x = split_time(features.permute(0, 2, 3, 1), self.frames)
        after, before, rest = torch.split(x, [self.fold, self.fold, x.shape[-1] - 2 * self.fold], dim=-1)
        after = F.pad(after, (0, 0, 0, 0, 0, 0, -1, 1))  # t takes t+1; zeros at the last frame
        before = F.pad(before, (0, 0, 0, 0, 0, 0, 1, -1))  # t takes t−1; zeros at the first frame
        return torch.cat((after, before, rest), dim=-1).flatten(0, 1).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"frames={self.frames}, fold={self.fold}"
