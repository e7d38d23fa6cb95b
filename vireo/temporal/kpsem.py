"""Key Point Shifts Embedding Module (KPSEM): how each channel's maxima move from frame to frame.

Cao, Xu, Yang, Mao, Yin, See: "Effective Action Recognition with Embedded Key Point Shifts", 2020
(arXiv:2008.11378). Written from the paper's text; eq. numbers are its own.

A branch: it reads the output of a stage, (N·T, C, H, W) or (N, C, T, H, W), and gives features
(N, C/4 · (T − 1)) that join the classifier's. Per set g of G, frame and channel, with K = k² regions:

    stage ─► channel mean, 14×14 ─► Linear ─► centre of the regions ──┐ G sets
       └───► regions ─► maximum of each: key points I, values V ◄─────┤ hard regions
             │              └─► shift weights (V) ─► shifts S of I ───┼─► RKPS = W_R · S   (N, T−1, G, K, 2, C)
             └────► mean of each ─► softmax over K: W_R ◄─────────────┘ soft regions
    RKPS ─► Linear 2K → d_e per set, summed ─► conv (1,3), s2, C → C/4 ─► conv (1,3), s2 ─► mean ─► C/4 · (T−1)
                   (N, C, T−1, 24)                      12                    6

With MFNet-3D, K = 4, G = 8, d_e = 24, 200 classes: 672 features, 8,120,088 parameters (published: 8.11 M) and
11.07 GMACs at 16×224² (published: 11.21 G; MFNet itself 11.05 by this count, 11.1 G published).

What the paper leaves open, and deviations:
1. The MLP of eq. 4 isn't given. Ours is one linear layer on the channel-mean map, averaged to 14×14 (which
   it has after MFNet's conv4): 394 parameters per set. The bias of eq. 5 is tanh of it times half the spacing
   of the regular grid, so that no region gets lower or narrower than half; and none is ever empty.
2. K = 9 and 16: the lines of a regular grid, all moved by the bias. A pixel belongs to where its centre is.
3. Key points and their values are exact, with hard regions (eqs 6–7); of equal maxima the first in reading
   order counts. A hard border has no gradient, so the means of eq. 11 are taken over soft regions (sigmoids
   across the lines, half a pixel wide): through them the centre learns.
4. Coordinates are in the unit square, x to the right and y down, pixel centres at (i + 1/2) / size.
5. Eqs 8 and 10 in one: the weights add up to 1, so S is the weighted mean of the next frame's key points
   minus the key point. The same values, without the K² differences.
6. Fixed regions (Table 2b): each set's centre is drawn at initialisation, uniformly in the range of 1, and kept.
   One key point (Table 2a) is K = 1, where there is no centre to learn.
7. Nothing stands between the two convolutions, and they have no bias. At other stages C reduces to C/4 as well.
8. Default: stage 4, the paper's place on MFNet (conv4). For its Table 2d (R3D, res3) give stage 3.
9. A stage that holds one frame has no shifts: the model is then built without the branch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireo.contracts import Anchor, Branch, BranchOutputs, Tap, TemporalModule
from vireo.errors import UnsupportedPairError, UsageError
from vireo.shapes import Layout, split_time
from vireo.temporal.base import STAGES, check_at_least_one, temporal_modules


@temporal_modules.register("kpsem")
@dataclass(frozen=True, kw_only=True)
class KPSEM(TemporalModule):
    """A branch that embeds the shifts of each channel's regional maxima."""

    summary: ClassVar[str] = "a branch: shifts of every channel's key points, features joined (goes with any other)"
    source: ClassVar[str] = "Cao et al., Effective Action Recognition with Embedded Key Point Shifts, 2020"

    regions: int = 4
    """K, regions and thus key points per frame and channel: 1, 4, 9 or 16."""
    sets: int = 8
    """G, sets of regions, each with a centre of its own."""
    embedding: int = 24
    """d_e, width of the linear embedding of a set's shifts."""
    stage: int = 4
    """The stage whose output is read, 2..5 (on MFNet conv2..conv5)."""
    adaptive: bool = True
    """Whether the centres of the regions are found per frame; false: drawn once, then fixed."""

    def __post_init__(self) -> None:
        check_at_least_one(sets=self.sets, embedding=self.embedding)
        if type(self.regions) is not int or self.regions not in (1, 4, 9, 16):
            raise UsageError(f"regions is {self.regions!r}; use 1, 4, 9 or 16")
        if type(self.stage) is not int or self.stage not in STAGES:
            raise UsageError(f"stage is {self.stage!r}; use one of 2, 3, 4, 5")
        if type(self.adaptive) is not bool:
            raise UsageError(f"adaptive is {self.adaptive!r}; it must be true or false")

    def branch(self, taps: Sequence[Tap], num_classes: int) -> Branch | None:
        """The branch on the output of ``stage``; None where that holds a single frame.

        Raises:
            UnsupportedPairError: the backbone publishes no such output.
        """
        outputs = [tap for tap in taps if tap.anchor == Anchor.STAGE_OUT]
        tap = next((tap for tap in outputs if tap.stage == self.stage), None)
        if tap is None:
            there = sorted({tap.stage for tap in outputs})
            raise UnsupportedPairError(
                f"kpsem reads the output of stage {self.stage}; this backbone publishes "
                + (f"those of stages {there}: give one of them as stage" if there else "the output of no stage")
            )
        if tap.frames == 1:
            return None
        return KeyPointShifts(
            tap, regions=self.regions, sets=self.sets, embedding=self.embedding, adaptive=self.adaptive
        )


class KeyPointShifts(Branch):
    """KPSEM: a stage's output, (N·T, C, H, W) or (N, C, T, H, W), to features (N, C/4 · (T − 1)).

    Attributes:
        sets: G.
        splits: k, regions per axis; K = k².
    """

    fixed: Tensor
    grid: ClassVar[int] = 14
    """Rows and columns of the map from which the centres are found."""

    def __init__(self, tap: Tap, *, regions: int, sets: int, embedding: int, adaptive: bool) -> None:
        reduced = max(1, tap.channels // 4)
        super().__init__(tap, features=reduced * (tap.frames - 1))
        self.sets, self.splits = sets, math.isqrt(regions)
        self.centre: nn.Linear | None = None
        if regions > 1 and adaptive:
            self.centre = nn.Linear(self.grid**2, 2 * sets)  # G linear layers, side by side
        elif regions > 1:
            self.register_buffer("fixed", torch.empty(sets, 2).uniform_(-1, 1))
        self.embed = nn.ModuleList(nn.Linear(2 * regions, embedding) for _ in range(sets))
        self.reduce1 = nn.Conv2d(tap.channels, reduced, (1, 3), stride=(1, 2), padding=(0, 1), bias=False)
        self.reduce2 = nn.Conv2d(reduced, reduced, (1, 3), stride=(1, 2), padding=(0, 1), bias=False)

    def forward(self, tapped: Tensor, visuals: bool = False) -> BranchOutputs:
        """The stage's output to features (N, C/4 · (T − 1)).

        Args:
            tapped: (N·T, C, H, W), or (N, C, T, H, W) on a 3D backbone.
            visuals: also give, coordinates (x, y) being in the unit square:
                ``key_points`` (N, T, G, K, C, 2): I of eq. 6, the regions in reading order;
                ``shifts`` (N, T − 1, G, K, C, 2): S of eq. 10, from frame t to t + 1;
                ``centres`` (N, T, G, 2): O_a of eq. 5, where the regions' grid has its middle;
                ``regional_weights`` (N, T − 1, G, K, C): W_R of eq. 11.

        Raises:
            UsageError: fewer rows or columns than regions along an axis.
        """
        if self.tap.layout == Layout.N_C_T_H_W:
            tapped = tapped.transpose(1, 2).flatten(0, 1)
        x = tapped.permute(0, 2, 3, 1).contiguous()  # (N·T, H, W, C): a view of channels_last memory
        self._check_size(x.shape[1], x.shape[2])

        offsets = self._offsets(x)
        columns, rows = self._lines(offsets[..., 0], x.shape[2]), self._lines(offsets[..., 1], x.shape[1])
        row, column = find_maxima(x.detach(), _intervals(rows, x.shape[1]), _intervals(columns, x.shape[2]))
        values, points = _read_points(x, row, column)
        shifts = self._shifts(values, points)
        weights = self._regional_weights(x, rows, columns)
        rkps = weights.unsqueeze(4) * shifts  # (12): (N, T−1, G, K, 2, C)
        features = self._embed(rkps.flatten(2, 4).to(x.dtype))
        if not visuals:
            return BranchOutputs(features=features)
        pictures = {
            "key_points": split_time(points, self.tap.frames).transpose(-1, -2),
            "shifts": shifts.transpose(-1, -2),
            "centres": split_time(0.5 + offsets, self.tap.frames),
            "regional_weights": weights,
        }
        return BranchOutputs(features=features, visuals=pictures)

    def _offsets(self, x: Tensor) -> Tensor:
        """B of eq. 4: (N·T, H, W, C) → (N·T, G, 2), (Δx, Δy) in the unit square."""
        height, width = x.shape[1:3]
        dtype = _at_least_float32(x.dtype)
        if self.splits == 1:
            return torch.zeros(x.shape[0], self.sets, 2, dtype=dtype, device=x.device)
        if self.centre is None:
            fraction = self.fixed.to(dtype).expand(x.shape[0], -1, -1)
        else:
            mean = x.mean(dim=3)
            if (height, width) != (self.grid, self.grid):
                mean = F.adaptive_avg_pool2d(mean.unsqueeze(1), self.grid).squeeze(1)
            fraction = torch.tanh(torch.unflatten(self.centre(mean.flatten(1)), 1, (-1, 2)).to(dtype))
            fraction = torch.nan_to_num(fraction)  # or places beyond the map are looked up; the scores are NaN anyway
        # Lines move by at most half their spacing; on maps of few pixels less, so that there is a pixel's centre
        # beyond the outermost lines, a quarter of a pixel away (rounding can't lose it).
        k = self.splits
        reach = [min(1 / (2 * k), 1 / k - 0.75 / size) for size in (width, height)]
        return torch.stack([fraction[..., axis] * reach[axis] for axis in (0, 1)], dim=-1)

    def _lines(self, offset: Tensor, size: int) -> Tensor:
        """Lines between regions along an axis, the grid moved as in eq. 5: (N·T, G) → (N·T, G, k − 1), in pixels."""
        grid = torch.arange(1, self.splits, dtype=offset.dtype, device=offset.device) / self.splits
        return (grid + offset.unsqueeze(2)) * size

    def _shifts(self, values: Tensor, points: Tensor) -> Tensor:
        """S: V (N·T, G, K, C) and I (N·T, G, K, 2, C) → (N, T − 1, G, K, 2, C)."""
        v, p = split_time(values, self.tap.frames), split_time(points, self.tap.frames)
        gap = (v[:, :-1].unsqueeze(4) - v[:, 1:].unsqueeze(3)).abs()  # (N, T−1, G, K, K_next, C)
        weights = torch.softmax(1 / (gap + 0.1), dim=4)  # (9)
        following = (weights.unsqueeze(5) * p[:, 1:].unsqueeze(3)).sum(dim=4)
        return following - p[:, :-1]  # (8), (10)

    def _regional_weights(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """W_R of eq. 11: (N·T, H, W, C) → (N, T − 1, G, K, C)."""
        height, width = (_soft_intervals(lines, size) for lines, size in ((rows, x.shape[1]), (columns, x.shape[2])))
        means = torch.matmul(height.flatten(1, 2).to(x.dtype), x.flatten(2))  # over rows: (N·T, G·k, W·C)
        means = torch.unflatten(torch.unflatten(means, 2, (x.shape[2], -1)), 1, (self.sets, -1))  # (N·T, G, k, W, C)
        means = torch.matmul(width.unsqueeze(2).to(means.dtype), means).flatten(2, 3)  # P_R: (N·T, G, K, C)
        m = split_time(means.to(rows.dtype), self.tap.frames)
        return torch.softmax((m[:, :-1] + m[:, 1:]) / 2, dim=3)  # P_T, then over K

    def _embed(self, rkps: Tensor) -> Tensor:
        """(N, T − 1, G·K·2, C) → (N, C/4 · (T − 1))."""
        # (3): a sum of linear layers is one of all their inputs. From the left, so that C stays innermost:
        # channels_last memory of what the convolutions take, (N, C, T−1, d_e).
        weight = torch.cat([layer.weight for layer in self.embed], dim=1)  # type: ignore[misc]  # stubs: ModuleList
        bias = torch.stack([layer.bias for layer in self.embed]).sum(dim=0)  # type: ignore[misc]
        embedded = torch.matmul(weight, rkps) + bias.unsqueeze(1)  # (N, T−1, d_e, C)
        reduced: Tensor = self.reduce2(self.reduce1(embedded.permute(0, 3, 1, 2)))
        return reduced.mean(dim=3).flatten(1)

    def _check_size(self, height: int, width: int) -> None:
        k = self.splits
        if height < k or width < k:
            stride = 2**self.tap.stage
            raise UsageError(
                f"kpsem splits maps of {height} × {width} into {k} × {k} regions; give images of at least "
                f"{k * stride} × {k * stride} pixels, or fewer regions."
            )


def find_maxima(x: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Where each channel has its maximum in each region: intervals of rows × intervals of columns.

    Args:
        x: (B, H, W, C), without gradient.
        rows: starts and ends, (B, G, k) each: a region begins at its start and stops before its end.
        columns: likewise.

    Returns:
        Row and column, (B, G, k, k, C) each: set, region along the height, along the width. Of equal maxima
        the first in reading order.
    """
    # The maximum of an interval is that of two windows of 2^level columns, one at either end. So maxima over 1,
    # 2, 4, … columns are made once, and G·k intervals are two look-ups each. Then the same regions' rows are
    # compared. Masks on x itself would be G·K copies of it.
    width = x.shape[2]
    tables, span = [x], 1
    while 2 * span <= width:
        tables.append(torch.maximum(tables[-1][:, :, :-span], tables[-1][:, :, span:]))
        span *= 2
    table = torch.cat(tables, dim=2)  # (B, H, S, C); the first entry of level q is at q·(W + 1) + 1 − 2^q

    starts, ends = columns
    level, window = torch.zeros_like(starts), torch.ones_like(starts)  # window = 2^level ≤ length < 2 · window
    for q in range(1, len(tables)):
        reaches = ends - starts >= 2**q
        level, window = level + reaches, window + reaches * 2 ** (q - 1)
    first = level * (width + 1) + 1 - window
    left, right = first + starts, first + ends - window  # (B, G, k)
    best = torch.maximum(_pick(table, left.flatten(1)), _pick(table, right.flatten(1)))  # (B, H, G·k, C)

    starts, ends = (edges.unsqueeze(1) for edges in rows)
    line = torch.arange(x.shape[1], device=x.device)[:, None, None]
    penalty = torch.zeros((), dtype=x.dtype, device=x.device).where((line >= starts) & (line < ends), -torch.inf)
    best = torch.unflatten(best, 2, (-1, 1, starts.shape[3]))  # (B, H, G, 1, k, C)
    most, row = (best + penalty[..., None, None]).max(dim=1)  # (B, G, k, k, C)

    # In that row: the left window, or else the right one; then its left half, or else the right one; and so on.
    # (A step too long for a window isn't taken: the maximum is among the step's entries.)
    flat, base = table.flatten(1, 2), row * table.shape[2]

    def misses(place: Tensor) -> Tensor:  # whether the maximum isn't in that entry of the table
        return torch.gather(flat, 1, (base + place).flatten(1, 3)).view_as(row) < most

    first, left, right = (t[:, :, None, :, None] for t in (first, left, right))
    column = torch.where(misses(left), right, left) - first
    for q in reversed(range(len(tables) - 1)):
        entry = q * (width + 1) + 1 - 2**q + column.clamp(max=width - 2**q)
        column = column + 2**q * misses(entry)
    return row, column


def _pick(table: Tensor, places: Tensor) -> Tensor:
    """(B, H, S, C) at (B, M), for every row alike → (B, H, M, C)."""
    batch, height, size, channels = table.shape
    lines = torch.arange(batch * height, device=table.device).view(batch, height, 1) * size
    found = torch.index_select(table.flatten(0, 2), 0, (lines + places.unsqueeze(1)).flatten())
    return found.view(batch, height, -1, channels)


def _read_points(x: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """V of eq. 7, (N·T, G, K, C), and I of eq. 6, (N·T, G, K, 2, C), from (N·T, H, W, C) and rows and columns."""
    height, width = x.shape[1:3]
    values = torch.gather(x.flatten(1, 2), 1, (row * width + column).flatten(1, 3))
    values = torch.unflatten(values, 1, (row.shape[1], -1))
    dtype = _at_least_float32(x.dtype)
    points = torch.stack([(column.to(dtype) + 0.5) / width, (row.to(dtype) + 0.5) / height], dim=4)
    return values.to(dtype), points.flatten(2, 3)


def _intervals(lines: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Lines (B, G, k − 1), in pixels, to the regions' starts and ends (B, G, k), by the pixels' centres."""
    before = _centres(lines, size) < lines.unsqueeze(3)
    splits = before.sum(dim=3)
    return F.pad(splits, (1, 0)), F.pad(splits, (0, 1), value=size)


def _soft_intervals(lines: Tensor, size: int) -> Tensor:
    """Lines (B, G, k − 1), in pixels, to what each pixel counts in the regions' means, (B, G, k, size)."""
    after = torch.sigmoid((_centres(lines, size) - lines.unsqueeze(3)) / 0.5)
    share = F.pad(after, (0, 0, 1, 0), value=1.0) - F.pad(after, (0, 0, 0, 1))
    return share / share.sum(dim=3, keepdim=True)


def _centres(lines: Tensor, size: int) -> Tensor:
    return torch.arange(size, dtype=lines.dtype, device=lines.device) + 0.5


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
