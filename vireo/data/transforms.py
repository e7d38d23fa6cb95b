"""Frames to model input, on uint8 tensors: the same random choice for all frames of a clip.

Frames are (T, C, H, W) uint8 whose memory is T, H, W, C (channels last), as the decoder writes them,
and stay so: torchvision's fast uint8 resize wants it, and so does the network. C is 3, or 2 · fields of
stacked flow (`vireo.data.flow`); the values of flow are not rescaled with its images, as in TSN.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vireo.config import AugmentConfig, ViewConfig
from vireo.data.flow import mirror_flow

_FAST_CHANNELS = 4  # torch's fast resize of channels_last uint8 takes no more; 10 at once take three times as long

# Texts that name a direction which a mirror image turns round.
_WORDS = """
    left leftward leftwards lefthand lefthanded leftmost right rightward rightwards righthand righthanded rightmost
    clockwise counterclockwise anticlockwise cw ccw acw
"""
_DIRECTIONS = frozenset(_WORDS.split())
_TOKEN = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def eval_transform(frames: Tensor, view: ViewConfig) -> Tensor:
    """Resize the short side to ``view.resize_to`` and cut the centre square of side ``view.size``.

    Args:
        frames: (T, C, H, W) uint8.
        view: the sizes, pixels.

    Returns:
        (T, C, size, size) uint8, channels last.
    """
    height, width = frames.shape[-2:]
    short = min(height, width)
    height, width = max(1, height * view.resize_to // short), max(1, width * view.resize_to // short)
    frames = _resize(frames, height, width)
    top, left = (height - view.size) // 2, (width - view.size) // 2
    return _channels_last(frames[..., top : top + view.size, left : left + view.size])


def train_transform(
    frames: Tensor,
    view: ViewConfig,
    augment: AugmentConfig,
    rng: np.random.Generator,
    flip: bool,
    *,
    flow: bool = False,
) -> Tensor:
    """Multi-scale crop, resize, colour jitter and flip, one draw for the whole clip.

    The crop is TSN's: its height and width are fractions of the frame's short side that lie at most
    one step apart in ``augment.scales``; it stands at one of 13 fixed places.

    Args:
        frames: (T, C, H, W) uint8.
        view: size of the result, pixels.
        augment: the scales and the strength of the jitter.
        rng: where all choices are drawn from.
        flip: whether half of the clips are mirrored.
        flow: whether these are stacks of optical flow: then there is no colour jitter, and a mirror image
            moves the other way.

    Returns:
        (T, C, size, size) uint8, channels last.
    """
    top, left, height, width = crop_box(frames.shape[-2], frames.shape[-1], augment.scales, rng)
    frames = _resize(frames[..., top : top + height, left : left + width], view.size, view.size)
    if augment.color_jitter and not flow:
        frames = _jitter(frames, augment.color_jitter, rng)
    if flip and rng.random() < 0.5:
        frames = mirror_flow(frames) if flow else frames.flip(-1)
    return _channels_last(frames)


def crop_box(height: int, width: int, scales: Sequence[float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the crop of `train_transform`.

    Args:
        height: of the frame, pixels.
        width: of the frame, pixels.
        scales: sides as fractions of the short side, from large to small.
        rng: the generator.

    Returns:
        (top, left, height, width), pixels.
    """
    short = min(height, width)
    sides = [max(1, min(short, round(short * scale))) for scale in scales]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    crop_height, crop_width = pairs[rng.integers(len(pairs))]
    places = crop_places(height - crop_height, width - crop_width)
    top, left = places[rng.integers(len(places))]
    return top, left, crop_height, crop_width


def crop_places(spare_height: int, spare_width: int) -> list[tuple[int, int]]:
    """The 13 places (top, left) of a crop, in quarters of the spare room.

    Corners, middles of the sides, the centre, and the four places halfway between centre and corners:

        × · × · ×
        · × · × ·
        × · × · ×
        · × · × ·
        × · × · ×
    """
    down, right = spare_height // 4, spare_width // 4
    return [(down * i, right * j) for i in range(5) for j in range(5) if (i + j) % 2 == 0]


def flip_allowed(label_names: Sequence[str]) -> tuple[bool, str]:
    """Whether mirror images keep their labels, judged by the text of the labels.

    A label that contains left, right, clockwise, cw, … as a word of its own ("turn_left",
    "TurnLeft", "counter-clockwise") forbids it; "bright" and "copyright" do not.

    Returns:
        The verdict and its reason, one line to print.
    """
    found = [name for name in label_names if _names_direction(name)]
    if not found:
        return True, "horizontal flip is on: no label names a direction"
    shown = ", ".join(repr(name) for name in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return False, f"horizontal flip is off: a mirror image would change the meaning of {shown}"


def _names_direction(label: str) -> bool:
    words = _TOKEN.findall(label)
    parts = [part for word in words for part in _CAMEL.findall(word)]
    return any(word.lower() in _DIRECTIONS for word in (*words, *parts))


def _resize(frames: Tensor, height: int, width: int) -> Tensor:
    if frames.shape[-2:] == (height, width):
        return frames
    if frames.shape[1] > _FAST_CHANNELS:
        parts = torch.split(frames, _FAST_CHANNELS, dim=1)
        return torch.cat([_resize(_channels_last(part), height, width) for part in parts], dim=1)
    size = [height, width]
    resized: Tensor = F.resize(frames, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized


def _jitter(frames: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation, each by a factor drawn from [1 - strength, 1 + strength]."""
    brightness, contrast, saturation = (float(f) for f in rng.uniform(1 - strength, 1 + strength, size=3))
    frames = F.adjust_brightness(frames, brightness)
    frames = F.adjust_contrast(frames, contrast)
    jittered: Tensor = F.adjust_saturation(frames, saturation)
    return jittered


def _channels_last(frames: Tensor) -> Tensor:
    return frames.contiguous(memory_format=torch.channels_last)
