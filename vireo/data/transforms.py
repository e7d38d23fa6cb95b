"""Frames to model input, on uint8 tensors: the same random choice for all frames of a clip.

Frames are (T, C, H, W) uint8 whose memory is T, H, W, C (channels last), as the decoder writes them,
and stay so: torchvision's fast uint8 resize wants it, and so does the network. C is 3, or 2 · fields of
stacked flow (`vireo.data.flow`); the values of flow are not rescaled with its images, as in TSN.

A training clip is cut and resized first, then what is left of it is varied, in this order:

    crop · resize · colour jitter · RandAugment · mirror image · random erasing         flow: no colours

All of it is drawn from the one NumPy generator that is given. torchvision's own random transforms draw from torch's
generator, which is seeded from it for their time and put back. Clips may lie on any device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from vireo.config import AugmentConfig, ViewConfig
from vireo.data.flips import FlipRule
from vireo.data.flow import mirror_flow

_FAST_CHANNELS = 4  # torch's fast resize of channels_last uint8 takes no more; 10 at once take three times as long
_GREY = 128  # what erased boxes and rotated corners show: about the mean of a picture, and no motion in flow
_RAND_LAYERS = 2


def eval_transform(frames: Tensor, view: ViewConfig) -> Tensor:
    """Resize the short side to ``view.resize_to`` and cut the centre square of side ``view.size``.

    Args:
        frames: (T, C, H, W) or (N, T, C, H, W) uint8.
        view: the sizes, pixels.

    Returns:
        (T, C, size, size) or (N, T, C, size, size) uint8, channels last.
    """
    clips, frames = frames.shape[:-3], frames.flatten(0, -4)
    height, width = eval_size(frames.shape[-2], frames.shape[-1], view)
    frames = resize(frames, height, width)
    top, left = (height - view.size) // 2, (width - view.size) // 2
    frames = channels_last(frames[..., top : top + view.size, left : left + view.size])
    return frames.view(*clips, *frames.shape[1:])


def eval_size(height: int, width: int, view: ViewConfig) -> tuple[int, int]:
    """Height and width, pixels, of a frame whose short side is resized to ``view.resize_to``."""
    short = min(height, width)
    return max(1, height * view.resize_to // short), max(1, width * view.resize_to // short)


def train_transform(
    frames: Tensor,
    view: ViewConfig,
    augment: AugmentConfig,
    rng: np.random.Generator,
    flips: FlipRule,
    label: int,
    *,
    flow: bool = False,
) -> tuple[Tensor, int]:
    """Crop, resize, vary and mirror a training clip, one draw for the whole of it.

    Args:
        frames: (T, C, H, W) uint8. Not changed.
        view: size of the result, pixels.
        augment: what is drawn, and from which range.
        rng: where all choices are drawn from.
        flips: the label of each label's mirror image. Half of the clips that have one are mirrored.
        label: of the clip.
        flow: whether these are stacks of optical flow: then colours are left alone, and a mirror image
            moves the other way.

    Returns:
        (T, C, size, size) uint8, channels last, and its label, another one if a mirror image has another.
    """
    top, left, height, width = _draw_crop(frames.shape[-2], frames.shape[-1], view.size, augment, rng)
    frames = resize(frames[..., top : top + height, left : left + width], view.size, view.size)
    if augment.color_jitter and not flow:
        frames = _jitter(frames, augment.color_jitter, rng)
    if augment.rand_augment and not flow:
        with _torch_draws_from(rng):
            frames = v2.RandAugment(_RAND_LAYERS, augment.rand_augment, fill=_GREY)(frames)
    mirrored = flips.mirrored[label]
    if mirrored is not None and rng.random() < 0.5:
        frames, label = mirror_flow(frames) if flow else frames.flip(-1), mirrored
    if augment.random_erasing and rng.random() < augment.random_erasing:
        with _torch_draws_from(rng):
            frames = v2.RandomErasing(p=1, value=_GREY)(frames)
    return channels_last(frames), label


def train_transform_batch(
    clips: Tensor,
    view: ViewConfig,
    augment: AugmentConfig,
    rngs: Sequence[np.random.Generator],
    flips: FlipRule,
    labels: Tensor,
    *,
    flow: bool = False,
) -> tuple[Tensor, Tensor]:
    """`train_transform` of every clip of a batch, on the device where it lies.

    Args:
        clips: (N, T, C, H, W) uint8.
        view: size of the result, pixels.
        augment: what is drawn, and from which range.
        rngs: (N,) one generator per clip, so that a clip comes out the same in whichever batch it is.
        flips: the label of each label's mirror image.
        labels: (N,) int64.
        flow: whether these are stacks of optical flow.

    Returns:
        (N, T, C, size, size) uint8 whose memory is N, T, size, size, C, and labels (N,) int64.
    """
    size = (*clips.shape[:2], view.size, view.size, clips.shape[2])
    batch = torch.empty(size, dtype=torch.uint8, device=clips.device).permute(0, 1, 4, 2, 3)
    found = []
    for place, clip, rng, label in zip(batch, clips, rngs, labels.tolist(), strict=True):
        transformed, label = train_transform(clip, view, augment, rng, flips, label, flow=flow)
        place.copy_(transformed)
        found.append(label)
    return batch, torch.tensor(found, dtype=torch.int64, device=labels.device)


def _draw_crop(
    height: int, width: int, size: int, augment: AugmentConfig, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the crop, pixels."""
    if augment.crop == "multiscale":
        return crop_box(height, width, augment.scales, rng)
    if augment.crop == "random":
        return random_box(height, width, size, augment.short_range, rng)
    crop = v2.RandomResizedCrop(1, scale=augment.crop_area, ratio=augment.crop_ratio)
    with _torch_draws_from(rng):
        box = crop.make_params([torch.empty(1, height, width, device="meta")])
    return box["top"], box["left"], box["height"], box["width"]


def crop_box(height: int, width: int, scales: Sequence[float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the multi-scale crop of TSN.

    Its height and width are fractions of the frame's short side that lie at most one step apart in ``scales``; it
    stands at one of the 13 `crop_places`.

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


def random_box(
    height: int, width: int, size: int, short_range: Sequence[int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a square that has ``size`` pixels once the frame's short side is resized to one of ``short_range``.

    Args:
        height: of the frame, pixels.
        width: of the frame, pixels.
        size: side of the crop in the resized frame, pixels.
        short_range: smallest and largest short side, pixels. All between are equally likely.
        rng: the generator.

    Returns:
        (top, left, height, width) in the frame as it is, pixels; all places are equally likely.
    """
    smallest, largest = short_range
    short = min(height, width)
    side = max(1, min(short, round(short * size / int(rng.integers(smallest, largest + 1)))))
    return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side


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


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize (T, C, H, W) uint8 frames, bilinear with antialiasing; frames of that size are given back themselves."""
    if frames.shape[-2:] == (height, width):
        return frames
    if frames.shape[1] > _FAST_CHANNELS:
        parts = torch.split(frames, _FAST_CHANNELS, dim=1)
        return torch.cat([resize(channels_last(part), height, width) for part in parts], dim=1)
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


def channels_last(frames: Tensor) -> Tensor:
    """(T, C, H, W) frames in T, H, W, C memory, copied only where they are not."""
    return frames.contiguous(memory_format=torch.channels_last)


@contextmanager
def _torch_draws_from(rng: np.random.Generator) -> Iterator[None]:
    """Let torch's processor generator draw what ``rng`` determines, and put it back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        yield
