"""Transforms: sizes, one choice per clip, memory layout, and which labels forbid a flip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vireo.config import AugmentConfig, ViewConfig
from vireo.data.transforms import crop_box, crop_places, eval_transform, flip_allowed, train_transform

VIEW = ViewConfig(size=32)


def clip(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Random (T, 3, H, W) uint8 in T, H, W, 3 memory."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator)
    return data.permute(0, 3, 1, 2)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (32, 32), (20, 500), (500, 20), (1, 1), (37, 37)])
def test_any_size_becomes_the_models(height: int, width: int) -> None:
    frames = clip(3, height, width)
    rng = np.random.default_rng(0)
    for result in (
        eval_transform(frames, VIEW),
        train_transform(frames, VIEW, AugmentConfig(), rng, flip=True),
        train_transform(frames, VIEW, AugmentConfig(color_jitter=0.4), rng, flip=True),
    ):
        assert result.shape == (3, 3, 32, 32) and result.dtype == torch.uint8
        assert result.permute(0, 2, 3, 1).is_contiguous()


def test_evaluation_resizes_the_short_side_and_cuts_the_centre() -> None:
    frames = clip(2, 48, 80)
    resized = interpolate(frames.float(), (37, 61), mode="bilinear", antialias=True).round()
    expected = resized[..., 2:34, 14:46]
    assert VIEW.resize_to == 37
    assert (eval_transform(frames, VIEW).float() - expected).abs().max() <= 1


def test_a_frame_of_the_right_size_is_not_touched() -> None:
    frames = clip(2, 32, 32)
    assert torch.equal(eval_transform(frames, ViewConfig(size=32, short_side=32)), frames)


def test_all_frames_of_a_clip_get_the_same_crop_flip_and_jitter() -> None:
    still = clip(1, 48, 64).expand(5, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        result = train_transform(still, VIEW, AugmentConfig(color_jitter=0.4), rng, flip=True)
        assert torch.equal(result, result[:1].expand_as(result))


def test_the_generator_alone_decides() -> None:
    frames = clip(2, 48, 64)

    def run(seed: int) -> Tensor:
        torch.manual_seed(np.random.randint(1000))
        return train_transform(frames, VIEW, AugmentConfig(color_jitter=0.4), np.random.default_rng(seed), flip=True)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_crops_are_those_of_tsn() -> None:
    rng = np.random.default_rng(0)
    scales = (1.0, 0.875, 0.75, 0.66)
    sides = [256, 224, 192, 169]
    boxes = {crop_box(256, 340, scales, rng) for _ in range(20000)}
    pairs = {(h, w) for _, _, h, w in boxes}
    assert pairs == {(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1}
    for top, left, height, width in boxes:
        assert (top, left) in crop_places(256 - height, 340 - width)
        assert top + height <= 256 and left + width <= 340
    assert {(t, left) for t, left, h, w in boxes if (h, w) == (192, 192)} == set(crop_places(64, 148))


def test_there_are_13_places() -> None:
    places = crop_places(40, 80)
    assert len(set(places)) == 13
    assert {(0, 0), (0, 80), (40, 0), (40, 80), (20, 40), (0, 40), (20, 0), (10, 20), (30, 60)} <= set(places)


def test_flip_mirrors_about_half_of_the_clips() -> None:
    frames = clip(1, 32, 32)
    augment = AugmentConfig(scales=(1.0,))
    results = [train_transform(frames, VIEW, augment, np.random.default_rng(i), flip=True) for i in range(200)]
    mirrored = sum(torch.equal(r, frames.flip(-1)) for r in results)
    assert mirrored + sum(torch.equal(r, frames) for r in results) == 200
    assert 70 < mirrored < 130
    for i in range(20):
        assert torch.equal(train_transform(frames, VIEW, augment, np.random.default_rng(i), flip=False), frames)


def test_jitter_changes_brightness_by_at_most_its_strength() -> None:
    grey = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8).permute(0, 3, 1, 2)
    augment = AugmentConfig(scales=(1.0,), color_jitter=0.2)
    means = [
        train_transform(grey, VIEW, augment, np.random.default_rng(i), flip=False).float().mean() for i in range(50)
    ]
    assert min(means) >= 76 and max(means) <= 121 and max(means) - min(means) > 20


@pytest.mark.parametrize(
    "label",
    [
        "left", "Right", "swipe_left", "turnLeft", "TurnRight2", "circle_ccw", "rotate CW", "left2right", "LEFT",
        "Pushing [something] from left to right", "counter-clockwise", "anticlockwise", "Turning Hand Clockwise",
        "moving leftwards", "nach-left",
    ],
)  # fmt: skip
def test_directions_forbid_the_flip(label: str) -> None:
    allowed, reason = flip_allowed(["walk", label])
    assert not allowed and "off" in reason and label in reason


@pytest.mark.parametrize(
    "label", ["copyright", "bright", "cleft", "clock", "up", "upright", "wright", "acwx", "birthright"]
)
def test_other_words_do_not(label: str) -> None:
    assert flip_allowed([label, "walk"])[0]


def test_many_directions_are_counted_not_listed() -> None:
    reason = flip_allowed([f"left {i}" for i in range(100)])[1]
    assert len(reason) < 200 and "97 more" in reason
