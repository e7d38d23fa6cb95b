"""Multi-Scale Temporal Shift (MSTSM) and Temporal Feature Difference Extraction (TFDEM).

Wu, Chiu: "Action Recognition Using Multi-Scale Temporal Shift Module and Temporal Feature Difference
Extraction Based on 2D CNN", Journal of Software Engineering and Applications 14, 2021. Written from
the paper's text; eq. numbers are its own. Its pruning method stands in ``vireo.prune``.

MSTSM. Site: the input of the residual branch's first convolution, in blocks with a shortcut. Shapes:
(N·T, C, H, W) → (N·T, C + 2·f2, H, W), f1 = C·R_one, f2 = C·R_two; the convolution gets 2·f2 more inputs.

    channels   f1        f1        C − 2·f1                      f2        f2
    at t       x[t+1]    x[t−1]    x[t]                       |  x[t+2]    x[t−2]   of the last 2·f2 channels
               └─ one-unit block: replaced ─┘                    └─ two-unit block: concatenated ─┘

TFDEM. A second path that reads the stem's output, (N·T, C, 56, 56) of 224² inputs, and gives (N, K) scores:

    stem ─► conv 3, s2 ─► conv 3, s2 ─► norm ─► difference, ×2 ─► tanh ─► conv 3 ─► conv 2 ─► norm, ReLU ─► pool ─► FC
       C, 56²     64, 28²      64, 14²               64, 28²             128, 28²  128, 27²               128, 2²   K

What the paper leaves open, and deviations:
1. The copies of the two-unit block are taken from the last 2·f2 channels, which the one-unit block left in
   place, and stand behind the others. Frames beyond the clip's ends are zeros.
2. The convolution's new columns start as the kernel's mean over its input channels; its old ones keep
   the pretrained weights. With it the published sizes come out: 24,256,165 parameters at 101 classes
   (24.25 M), and for R_two = 1/8, 1/12, 1/20: 24,797,349, 24,432,933, 24,145,189.
3. Three scales (Fig. 9b): the same 2·f2 channels are copied from t+3 and t−3 as well, behind the rest. In
   Fig. 9a's variant (2var) a missing t−2 is filled from t+3 and a missing t+2 from t−3; zeros where that
   isn't in the clip either. Both give Table 3's temporal receptive fields.
4. EfficientNet-B0 has 4,249,537 parameters with MSTSM in its blocks with a shortcut (paper: 4.23 M).
5. TFDEM: the text names strided convolutions, a bilinear upsampling, the subtraction, then convolution,
   pooling and a fully connected layer. Widths, kernels, norms, tanh, ReLU, the pooling to 2×2 and the
   missing biases are inferred: with them TFDEM has 265,189 parameters at 101 classes and the network the
   published 24.5 M (24,521,354), EfficientNet-B0 4.49 M (4,496,294). The 3×3 convolutions are padded, the
   2×2 one isn't: 0.142 GMACs per frame. (Without padding, 0.110; the published GFLOPs, cut off after one
   decimal, allow both.)
6. The difference is taken before the upsampling, which is linear: the same result at a quarter of the work.
   It is x[t−1] − x[t]; the first frame stays as it is, as in Fig. 6.
7. A stem that ends at 112² is pooled to 56² first (max, 3×3, stride 2).
8. The scores of both paths are added; L_main is the loss of that sum. By eq. 2 it would be the loss of
   the main path alone, and Table 4's row without L_TFDEM would leave TFDEM untrained.
9. How the path's T scores become one is not said: the mean (default), or T learned weights.
10. The classifier starts with weights of deviation 0.001 and no bias, as the main path's does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from vireo.contracts import Anchor, Branch, BranchOutputs, Site, SiteModule, Tap, TemporalModule, prepend
from vireo.errors import UnsupportedPairError, UsageError
from vireo.shapes import Layout, consensus, fold_time, split_time
from vireo.temporal.base import check_at_least_one, check_stages, temporal_modules
from vireo.temporal.tsm import TemporalShift

_SOURCE = (
    "Wu and Chiu, Action Recognition Using Multi-Scale Temporal Shift Module and Temporal Feature Difference "
    "Extraction Based on 2D CNN, JSEA 2021"
)
_SCALES: tuple[int | str, ...] = (1, 2, "2var", 3)
_CONSENSUS = ("mean", "learned")


@temporal_modules.register("mstsm")
@dataclass(frozen=True, kw_only=True)
class MSTSM(SiteModule):
    """Channels shifted by one frame, and copies shifted by two beside them."""

    summary: ClassVar[str] = "channels shifted by one frame, copies shifted by two beside them"
    source: ClassVar[str] = _SOURCE

    scales: int | str = 2
    """1: one-unit shift alone (TSM); 2; 2var: 2 with the clip's ends filled; 3: a three-unit shift as well."""
    one_div: int = 8
    """1 / R_one: one part in one_div of the channels is shifted one frame each way; at least 2."""
    two_div: int = 16
    """1 / R_two: one part in two_div is copied from two frames away each way (and from three, with scales 3)."""

    def __post_init__(self) -> None:
        check_stages(self.stages)
        check_at_least_one(one_div=self.one_div, two_div=self.two_div)
        if self.scales in ("1", "2", "3"):  # as YAML reads them, or a run's settings would differ from its config.yaml
            object.__setattr__(self, "scales", int(self.scales))
        if type(self.scales) not in (int, str) or self.scales not in _SCALES:
            raise UsageError(f"scales is {self.scales!r}; use {', '.join(map(str, _SCALES))}")
        if self.one_div < 2:
            raise UsageError(f"one_div is {self.one_div}; it must be at least 2 (two parts are shifted)")
        if self.scales != 1 and 2 / self.one_div + 2 / self.two_div > 1:
            raise UsageError(
                f"one_div is {self.one_div} and two_div is {self.two_div}; together they take more than all channels: "
                f"2/one_div + 2/two_div can be at most 1"
            )

    def refuses(self, site: Site) -> str | None:
        """Why there is no convolution that can be widened; None if there is one."""
        if self.scales == 1:
            return None
        if site.layout != Layout.NT_C_H_W:
            return f"mstsm widens a 2D convolution, and features here are {site.layout}"
        if site.conv.groups != 1:
            return f"mstsm widens a dense convolution, and this one has {site.conv.groups} groups"
        return None

    def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
        """A wider copy of the leaf with the shift in front of it; with scales 1 the leaf with TSM's shift."""
        shift = MultiScaleShift(
            site.channels, site.frames, one_div=self.one_div, two_div=self.two_div, scales=str(self.scales)
        )
        if shift.two == 0:  # scales 1, or too few channels to copy any
            return prepend(site, leaf, TemporalShift(site.frames, shift.one))
        return prepend(site, widen(leaf, shift.added), shift)


@temporal_modules.register("tfdem")
@dataclass(frozen=True, kw_only=True)
class TFDEM(TemporalModule):
    """A second path that classifies differences between the frames' early features."""

    summary: ClassVar[str] = (
        "a second path: differences of early features, scores added (goes with any other: tsm+tfdem)"
    )
    source: ClassVar[str] = _SOURCE

    consensus: str = "mean"
    """How the path's T scores become one: mean, or learned (T weights that start at 1/T)."""
    main_loss: bool = True
    """Whether L_main, the loss of both paths' scores together, is minimised."""
    tfdem_loss: bool = True
    """Whether L_TFDEM, the loss of this path's own scores, is minimised."""

    def __post_init__(self) -> None:
        if self.consensus not in _CONSENSUS:
            raise UsageError(f"consensus is {self.consensus!r}; use {' or '.join(_CONSENSUS)}")
        for name in ("main_loss", "tfdem_loss"):
            if type(getattr(self, name)) is not bool:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        if not self.main_loss and not self.tfdem_loss:
            raise UsageError("main_loss and tfdem_loss are both false; with neither there is nothing to train")

    def branch(self, taps: Sequence[Tap], num_classes: int) -> Branch | None:
        """The path on the stem's output.

        Raises:
            UnsupportedPairError: the backbone publishes no such tap.
        """
        stem = next((tap for tap in taps if tap.anchor == Anchor.STEM_OUT), None)
        if stem is None:
            there = ", ".join(tap.path for tap in taps) or "none"
            raise UnsupportedPairError(f"tfdem reads the output of a backbone's stem; this one publishes: {there}")
        return TemporalFeatureDifference(stem, num_classes, self.consensus)

    @property
    def loss_weights(self) -> tuple[float, float]:
        """(4): 1 or 0 for L_main and for L_TFDEM."""
        return float(self.main_loss), float(self.tfdem_loss)


@temporal_modules.register("mstsm_tfdem")
@dataclass(frozen=True, kw_only=True)
class MSTSMTFDEM(MSTSM, TFDEM):
    """MSTSM in the blocks and TFDEM beside them: the paper's network."""

    summary: ClassVar[str] = "MSTSM in the blocks, TFDEM beside them"

    def __post_init__(self) -> None:
        MSTSM.__post_init__(self)
        TFDEM.__post_init__(self)


_VECTOR_BYTES = 64  # of AVX-512


class MultiScaleShift(nn.Module):
    """(N·T, C, H, W) → (N·T, C' + added, H, W): one-unit shift, and copies shifted further behind it.

    In a pruned network (see ``vireo.prune``) the channels ``merge`` become one, their mean, before all shifts,
    where the first of them stood; C' = C without them, plus 1. Otherwise C' = C.

    Attributes:
        channels: C.
        frames: T.
        one_div, two_div: divisors of C' that give the widths.
        scales: 1, 2, 2var or 3.
        merge: channels that are averaged, ascending.
        width: C'.
        one: f1, channels shifted by one frame, each way.
        two: f2, channels copied from two (three) frames away, each way; 0 with scales 1.
        added: channels that the copies add.
    """

    index: Tensor
    places: Tensor

    def __init__(
        self, channels: int, frames: int, *, one_div: int, two_div: int, scales: str, merge: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.channels, self.frames, self.one_div, self.two_div, self.scales = channels, frames, one_div, two_div, scales
        self.merge = tuple(merge)
        self.width = channels - max(0, len(self.merge) - 1)
        self.one, self.two = self.width // one_div, 0 if scales == "1" else self.width // two_div
        self.added = (4 if scales == "3" else 2) * self.two
        self._sizes = [self.one, self.one, self.width - 2 * self.one - 2 * self.two, self.two, self.two]
        if self.merge:
            apart = [c for c in range(channels) if c not in set(self.merge)]
            first = self.merge[0]  # as many channels stand before the mean
            self.register_buffer("index", torch.tensor([*apart, *self.merge]), persistent=False)
            places = [*apart[:first], first, *apart[first:], *[0] * self.added]
            self.register_buffer("places", torch.tensor(places), persistent=False)
            start, self._holder = 0, 0  # the part in which the mean stands
            while start + self._sizes[self._holder] <= first:
                start += self._sizes[self._holder]
                self._holder += 1
            left = first - start
            self._sizes[self._holder : self._holder + 1] = [left, self._sizes[self._holder] - 1 - left]

    @property
    def ways(self) -> tuple[int, ...]:
        """How many frames away the copies are, in the order in which they stand."""
        return (2, -2, 3, -3) if self.scales == "3" else (2, -2)

    def copies(self) -> list[tuple[int, int]]:
        """For each added channel, in order: the channel of C' that it copies, and how many frames away."""
        return [(self._copied(way) + i, way) for way in self.ways for i in range(self.two)]

    def _copied(self, way: int) -> int:  # the first of the channels of C' that are copied
        return self.width - (2 if way > 0 else 1) * self.two

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C' + added, H, W); channels_last in, channels_last out."""
        # In (N, T, H, W, C) the parts are runs of the innermost axis, and all are written by one `cat`.
        x = split_time(features.permute(0, 2, 3, 1), self.frames)
        if self.merge and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._in_place(x).flatten(0, 1).permute(0, 3, 1, 2)
        after, before, kept, later, earlier = self._parts(x)
        parts = [*self._from(after, 1), *self._from(before, -1), *kept]
        if self.two:
            if self.scales == "2var":
                parts += self._filled(later, 2, -3) + self._filled(earlier, -2, 3)
            else:
                parts += self._copied_from(later, earlier, 2)
            if self.scales == "3":
                parts += self._copied_from(later, earlier, 3)
        return torch.cat(parts, dim=-1).flatten(0, 1).permute(0, 3, 1, 2)

    def _parts(self, x: Tensor) -> list[list[Tensor]]:
        """Pieces of C': shifted from t+1, from t−1, kept in place; of the last, those copied to t−k, and to t+k."""
        if not self.merge:
            after, before, kept = torch.split(x, [self.one, self.one, self.width - 2 * self.one], dim=-1)
            later, earlier = torch.split(kept, [kept.shape[-1] - 2 * self.two, self.two, self.two], dim=-1)[1:]
            return [[after], [before], [kept], [later], [earlier]]
        # `gather` along the innermost axis runs at the memory's speed; index_select is several times slower.
        x = torch.gather(x, -1, self.index.expand(*x.shape[:-1], -1))
        *pieces, members = torch.split(x, [*self._sizes, len(self.merge)], dim=-1)
        parts, at = [[piece] for piece in pieces], self._holder
        parts[at : at + 2] = [[pieces[at], members.mean(dim=-1, keepdim=True), pieces[at + 1]]]
        *shifted, rest, to_left, to_right = parts
        return [*shifted, rest + to_left + to_right, to_left, to_right]

    def _in_place(self, x: Tensor) -> Tensor:
        # One pass in place of two, which is what makes a pruned network faster in eager inference. With a
        # gradient it would cost copies, and compilers fuse the two passes by themselves.
        y = torch.gather(x, -1, self.places.expand(*x.shape[:-1], -1))  # (N, T, H, W, C' + added)
        members = self.index[-len(self.merge) :]
        y[..., self.merge[0]] = torch.gather(x, -1, members.expand(*x.shape[:-1], -1)).mean(dim=-1)
        if self.two:
            for i, way in enumerate(self.ways):
                start, source = self.width + i * self.two, self._copied(way)
                copied = y[..., source : source + self.two]
                for t in range(self.frames):
                    self._put(y[..., start : start + self.two], t, copied, self._source(t, way))
        after, before = y[..., : self.one], y[..., self.one : 2 * self.one]
        for t in range(self.frames):  # in an order in which no frame is overwritten before it is read
            self._put(after, t, after, t + 1)
            self._put(before, self.frames - 1 - t, before, self.frames - 2 - t)
        return y

    def _source(self, t: int, way: int) -> int:
        if self.scales == "2var" and not 0 <= t + way < self.frames:
            return t - 3 if way > 0 else t + 3
        return t + way

    def _put(self, to: Tensor, t: int, given: Tensor, source: int) -> None:
        if 0 <= source < self.frames:
            to[:, t].copy_(given[:, source])
        else:
            to[:, t].zero_()

    def _from(self, part: list[Tensor], offset: int) -> list[Tensor]:  # t takes t + offset; zeros beyond the ends
        return [self._window(x, offset, self.frames) for x in part]

    def _copied_from(self, later: list[Tensor], earlier: list[Tensor], frames: int) -> list[Tensor]:
        """Copies from t + frames of one part and t − frames of the other, frames > 0."""
        if len(later) > 1 or len(earlier) > 1 or self.two * later[0].element_size() >= _VECTOR_BYTES:
            return self._from(later, frames) + self._from(earlier, -frames)
        # Runs shorter than a vector register keep torch's compiler from vectorising the whole `cat` behind this:
        # in bf16 it then takes four times as long (256 channels). Joined by themselves they are long enough.
        ((after,), (before,)), missing = (later, earlier), min(frames, self.frames)
        zeros = after.new_zeros(()).expand(after.shape[0], missing, *after.shape[2:])
        later_ones = torch.cat((after[:, missing:], zeros), dim=1)
        return [torch.cat((later_ones, torch.cat((zeros, before[:, : self.frames - missing]), dim=1)), dim=-1)]

    def _filled(self, part: list[Tensor], offset: int, other: int) -> list[Tensor]:  # t + other where that is missing
        missing = min(abs(offset), self.frames)
        there = self.frames - missing
        if offset > 0:
            windows = (offset, there), (there + other, missing)
        else:
            windows = (other, missing), (0, there)
        return [torch.cat([self._window(x, *window) for window in windows], dim=1) for x in part]

    def _window(self, x: Tensor, start: int, length: int) -> Tensor:  # frames start .. start + length, zeros outside
        left, right = -start, start + length - self.frames  # a negative pad cuts
        if left <= -self.frames or right <= -self.frames:  # all of it is outside: cut everything, pad the rest
            left, right = -self.frames, length
        return F.pad(x, (0, 0, 0, 0, 0, 0, left, right))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        merged = f", merge={list(self.merge)}" if self.merge else ""
        return f"{self.channels}, frames={self.frames}, one={self.one}, two={self.two}, scales={self.scales}{merged}"


def widen(conv: nn.Module, added: int) -> nn.Conv2d:
    """A copy of a dense 2D convolution with ``added`` more input channels, each the mean of the others.

    Raises:
        UnsupportedPairError: a layer whose weights can't be widened so.
    """
    if type(conv) not in (nn.Conv2d, Conv2dSame) or conv.groups != 1:
        raise UnsupportedPairError(f"mstsm widens a dense 2D convolution; it can't widen {conv}")
    assert isinstance(conv, nn.Conv2d)
    wide = copy.deepcopy(conv)  # with its stride, padding, bias and class
    weight = conv.weight.detach()
    columns = weight.mean(dim=1, keepdim=True).expand(-1, added, -1, -1)
    wide.weight = nn.Parameter(torch.cat((weight, columns), dim=1), requires_grad=conv.weight.requires_grad)
    wide.in_channels += added
    return wide


class TemporalFeatureDifference(Branch):
    """TFDEM: the stem's output, (N·T, C, H, W) or (N, C, T, H, W), to scores (N, K)."""

    width: ClassVar[int] = 64

    def __init__(self, tap: Tap, num_classes: int, consensus_kind: str) -> None:
        super().__init__(tap)
        width = self.width
        self.conv1 = nn.Conv2d(tap.channels, width, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 2, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.classifier = nn.Linear(4 * 2 * width, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        self.fusion = nn.Parameter(torch.full((tap.frames,), 1 / tap.frames)) if consensus_kind == "learned" else None

    def forward(self, tapped: Tensor, visuals: bool = False) -> BranchOutputs:
        """The tap's output to this path's own scores.

        Args:
            tapped: (N·T, C, H, W), or (N, C, T, H, W) on a 3D backbone.
            visuals: also give ``differences``, (N, T, h, w): how far each frame's features are from those of
                the frame before, the mean over channels of the absolute values, in [0, 1] (Fig. 6); and
                ``features``, the same of the features themselves. Of the first frame both are equal.
        """
        frames = self.tap.frames
        x = tapped if self.tap.layout == Layout.NT_C_H_W else fold_time(tapped.transpose(1, 2))
        for _ in range(self.tap.stage, 2):
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = split_time(self.norm1(self.conv2(self.conv1(x))), frames)  # (N, T, 64, 14, 14)
        first, rest = torch.split(x, [1, frames - 1], dim=1)
        difference = self._widened(torch.cat((first, x[:, :-1] - rest), dim=1))
        y = F.relu(self.norm2(self.conv4(self.conv3(difference))))
        scores = self.classifier(F.adaptive_avg_pool2d(y, 2).flatten(1))  # (N·T, K)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.fusion is None:
            fused = consensus(scores, frames)
        else:
            fused = (split_time(scores, frames) * self.fusion[:, None]).sum(dim=1)
        if not visuals:
            return BranchOutputs(logits=fused)
        maps = {"features": self._widened(x), "differences": difference}
        pictures = {name: split_time(y.abs().mean(dim=1), frames) for name, y in maps.items()}
        return BranchOutputs(logits=fused, visuals=pictures)

    def _widened(self, x: Tensor) -> Tensor:  # (N, T, C, h, w) → (N·T, C, 2·h, 2·w), in [-1, 1]
        return torch.tanh(F.interpolate(fold_time(x), scale_factor=2.0, mode="bilinear"))
