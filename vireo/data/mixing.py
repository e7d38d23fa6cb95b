"""MixUp and CutMix on a batch of clips: pairs of clips are joined, and so are their labels.

MixUp (Zhang et al., ICLR 2018) blends two clips, pixel by pixel; CutMix (Yun et al., ICCV 2019) takes a box, the
same in all frames, from the second. A label counts as much as its clip is seen:

    MixUp      share · first + (1 - share) · second            share drawn from Beta(alpha, alpha)
    CutMix     second inside the box, first around it          share = the first clip's pixels / all pixels
    target     share · one-hot(label of first) + (1 - share) · one-hot(label of second)

torchvision's transforms of these names take floating point only and draw from torch's global generator; here the
batch stays uint8, on the device where it lies, and every choice comes from the generator that is given.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vireo.errors import UsageError


def mix_clips(
    clips: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    mixup: float,
    cutmix: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Mix every clip of a shuffled batch with its neighbour, one draw of the share and of the box for the batch.

    Args:
        clips: (N, T, C, H, W) uint8, in any memory order, which is kept. Not changed.
        labels: (N,) int64.
        num_classes: K.
        mixup: alpha of MixUp; 0 = none.
        cutmix: alpha of CutMix; 0 = none. With both, a fair coin decides for the batch.
        rng: where all choices are drawn from.

    Returns:
        Clips like the given ones, and targets (N, K) float32 whose rows sum to 1, for `cross_entropy`. Without any
        mixing the clips and labels themselves.

    Raises:
        UsageError: an alpha is negative, or not a number.
    """
    if not (mixup >= 0 and cutmix >= 0):
        raise UsageError(f"mixup is {mixup} and cutmix {cutmix}; neither can be negative (0 = none)")
    if not (mixup or cutmix):
        return clips, labels
    blend = bool(mixup) if not (mixup and cutmix) else bool(rng.random() < 0.5)
    alpha = mixup if blend else cutmix
    share = float(rng.beta(alpha, alpha))
    if blend:
        mixed = _blend(clips, share)
    else:
        top, left, bottom, right = cutmix_box(clips.shape[-2], clips.shape[-1], share, rng)
        mixed = clips.clone()
        mixed[..., top:bottom, left:right] = _neighbours(clips[..., top:bottom, left:right])
        share = 1 - (bottom - top) * (right - left) / (clips.shape[-2] * clips.shape[-1])
    targets = one_hot(labels, num_classes).float()
    return mixed, torch.lerp(_neighbours(targets), targets, share)


def cutmix_box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the box that CutMix takes from the second clip.

    Its sides are √(1 - share) of the frame's; its centre is any pixel, and what lies outside the frame is cut off.

    Returns:
        (top, left, bottom, right), pixels; it may be empty.
    """
    half = 0.5 * math.sqrt(1 - share)
    row, column = int(rng.integers(height)), int(rng.integers(width))
    down, across = int(half * height), int(half * width)
    return max(0, row - down), max(0, column - across), min(height, row + down), min(width, column + across)


def _neighbours(batch: Tensor) -> Tensor:
    """The clip before each clip, the last one before the first."""
    return torch.cat([batch[-1:], batch[:-1]])


def _blend(clips: Tensor, share: float) -> Tensor:
    mixed = torch.empty_like(clips)
    for i in range(len(clips)):  # clip by clip: the floating point copies stay small
        mixed[i] = torch.lerp(clips[i - 1].float(), clips[i].float(), share).round_()
    return mixed
