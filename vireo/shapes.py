"""Folding the time axis into the batch and out of it: the one place where it is done.

N = clips, T = frames per clip, C = channels, H×W = space. A 2D network sees (N·T, C, H, W); a
temporal module needs to know where one clip ends and the next begins. All functions return views
when the input's memory allows it, and none of them changes the memory format.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class Layout(StrEnum):
    """How a feature map is laid out at a site of a backbone."""

    NT_C_H_W = "(N·T, C, H, W)"
    NT_H_W_C = "(N·T, H, W, C)"
    N_C_T_H_W = "(N, C, T, H, W)"


def fold_time(clips: Tensor) -> Tensor:
    """(N, T, C, H, W) → (N·T, C, H, W)."""
    return clips.flatten(0, 1)


def split_time(features: Tensor, frames: int) -> Tensor:
    """(N·T, …) → (N, T, …), with T = ``frames``."""
    return torch.unflatten(features, 0, (-1, frames))


def consensus(scores: Tensor, frames: int) -> Tensor:
    """Segment consensus of TSN: (N·T, K) → (N, K), the mean over a clip's T frames."""
    return split_time(scores, frames).mean(dim=1)
