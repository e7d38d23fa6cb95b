"""Transforms: sizes, one choice per clip, memory layout, labels of mirror images, and each operation by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from vireo.config import AugmentConfig, ViewConfig, from_dict, to_dict
from vireo.data.flips import flip_rule
from vireo.data.flow import mirror_flow
from vireo.data.transforms import (
    crop_box,
    crop_places,
    eval_transform,
    train_transform,
    train_transform_batch,
)
from vireo.errors import UsageError

VIEW = ViewConfig(size=32)
ON, OFF = flip_rule(["walk"], "on"), flip_rule(["walk"], "off")
PLAIN = AugmentConfig(scales=(1.0,))
EVERYTHING = AugmentConfig(crop="resized", color_jitter=0.4, rand_augment=9, random_erasing=0.5)


def clip(frames: int, height: int, width: int, seed: int = 0, channels: int = 3) -> Tensor:
    """Random (T, C, H, W) uint8 in T, H, W, C memory."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (frames, height, width, channels), dtype=torch.uint8, generator=generator)
    return data.permute(0, 3, 1, 2)


def still(height: int, width: int, frames: int = 5, channels: int = 3) -> Tensor:
    """One random picture, several times."""
    return (
        clip(1, height, width, channels=channels).repeat(frames, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    )


def run(frames: Tensor, augment: AugmentConfig, seed: int, *, flow: bool = False) -> Tensor:
    """Without mirror images, from a generator of its own."""
    return train_transform(frames, VIEW, augment, np.random.default_rng(seed), OFF, 0, flow=flow)[0]


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (32, 32), (20, 500), (500, 20), (1, 1), (37, 37)])
def test_any_size_becomes_the_models(height: int, width: int) -> None:
    frames = clip(3, height, width)
    rng = np.random.default_rng(0)
    jitter = AugmentConfig(color_jitter=0.4)
    for augment in (AugmentConfig(), jitter, EVERYTHING, replace(EVERYTHING, crop_area=(0.001, 0.001))):
        result, label = train_transform(frames, VIEW, augment, rng, ON, 0)
        assert label == 0 and result.shape == (3, 3, 32, 32) and result.dtype == torch.uint8
        assert result.permute(0, 2, 3, 1).is_contiguous()
    result = eval_transform(frames, VIEW)
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


@pytest.mark.parametrize("augment", [AugmentConfig(color_jitter=0.4), EVERYTHING])
def test_all_frames_of_a_clip_get_the_same(augment: AugmentConfig) -> None:
    frames = still(48, 64)
    for seed in range(20):
        result, _ = train_transform(frames, VIEW, augment, np.random.default_rng(seed), ON, 0)
        assert torch.equal(result, result[:1].expand_as(result))


@pytest.mark.parametrize("augment", [AugmentConfig(color_jitter=0.4), EVERYTHING])
def test_the_generator_alone_decides(augment: AugmentConfig) -> None:
    frames = clip(2, 48, 64)
    torch.manual_seed(0)
    np.random.seed(0)
    first = [run(frames, augment, seed) for seed in range(8)]
    torch.manual_seed(1)
    np.random.seed(1)
    assert all(torch.equal(run(frames, augment, seed), result) for seed, result in enumerate(first))
    assert sum(torch.equal(result, first[0]) for result in first[1:]) <= 1


def test_torchs_own_generator_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for seed in range(5):
        run(clip(2, 48, 64), EVERYTHING, seed)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [32, 48])
def test_the_clip_that_is_given_is_not_changed(size: int) -> None:
    for channels, flow in ((3, False), (10, True)):
        frames = clip(3, size, size, channels=channels)
        before = frames.clone()
        for augment in (PLAIN, replace(EVERYTHING, random_erasing=1.0), replace(PLAIN, random_erasing=1.0)):
            for seed in range(5):
                train_transform(frames, VIEW, augment, np.random.default_rng(seed), ON, 0, flow=flow)
        eval_transform(frames, VIEW)
        assert torch.equal(frames, before)


# --- crops ------------------------------------------------------------------------------------------------------


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


def positions(height: int, width: int) -> Tensor:
    """(1, 3, H, W) uint8 that says of every pixel where it is: row, column, 0."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (
        torch.stack([rows, columns, torch.zeros_like(rows)])
        .to(torch.uint8)[None]
        .contiguous(memory_format=torch.channels_last)
    )


def test_a_resized_crop_is_a_box_of_the_area_and_shape_asked_for() -> None:
    frames = positions(120, 160)
    augment = AugmentConfig(crop="resized", crop_area=(0.2, 0.5), crop_ratio=(0.5, 2.0))
    areas, ratios, corners = [], [], set()
    for seed in range(300):
        result = run(frames, augment, seed)[0].float()
        # The linear ramp goes on linearly through the resize: a step of it is side / 32 pixels.
        height = float(result[0, 24, 16] - result[0, 8, 16]) * 2
        width = float(result[1, 16, 24] - result[1, 16, 8]) * 2
        areas.append(height * width / (120 * 160))
        ratios.append(width / height)
        corners.add((int(result[0, 0, 0]), int(result[1, 0, 0])))
    assert 0.17 < min(areas) < 0.23 and 0.47 < max(areas) < 0.54
    assert 0.45 < min(ratios) < 0.6 and 1.7 < max(ratios) < 2.2
    assert len(corners) > 200


def test_a_resized_crop_of_everything_is_the_whole_frame() -> None:
    frames = clip(2, 32, 32)
    augment = AugmentConfig(crop="resized", crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert torch.equal(run(frames, augment, 0), frames)


# --- mirror images ----------------------------------------------------------------------------------------------


def test_flip_mirrors_about_half_of_the_clips() -> None:
    frames = clip(1, 32, 32)
    results = [train_transform(frames, VIEW, PLAIN, np.random.default_rng(i), ON, 0)[0] for i in range(200)]
    mirrored = sum(torch.equal(r, frames.flip(-1)) for r in results)
    assert mirrored + sum(torch.equal(r, frames) for r in results) == 200
    assert 70 < mirrored < 130
    for i in range(20):
        assert torch.equal(run(frames, PLAIN, i), frames)


@pytest.mark.parametrize("flow", [False, True])
def test_the_label_goes_with_the_mirror_image(flow: bool) -> None:
    frames = clip(2, 32, 32, channels=10 if flow else 3)
    mirrored = mirror_flow(frames) if flow else frames.flip(-1)
    rule = flip_rule(["swipe left", "wave", "swipe right"])
    doubtful = flip_rule(["swipe left", "wave", "swipe right", "circle cw"])
    seen = set()
    for seed in range(60):
        for label, other in ((0, 2), (1, 1), (2, 0)):
            result, found = train_transform(frames, VIEW, PLAIN, np.random.default_rng(seed), rule, label, flow=flow)
            turned = torch.equal(result, mirrored)
            assert turned or torch.equal(result, frames)
            assert found == (other if turned else label)
            seen.add((label, turned))
        for label in (1, 3):
            rng = np.random.default_rng(seed)
            result, found = train_transform(frames, VIEW, PLAIN, rng, doubtful, label, flow=flow)
            assert torch.equal(result, frames) and found == label
    assert len(seen) == 6


def test_twice_mirrored_is_the_clip_and_the_label_again() -> None:
    frames = clip(2, 32, 32)
    rule = flip_rule(["left", "right"])
    seed = next(s for s in range(99) if train_transform(frames, VIEW, PLAIN, np.random.default_rng(s), rule, 0)[1])
    once, label = train_transform(frames, VIEW, PLAIN, np.random.default_rng(seed), rule, 0)
    twice, label = train_transform(once, VIEW, PLAIN, np.random.default_rng(seed), rule, label)
    assert label == 0 and torch.equal(twice, frames) and not torch.equal(once, frames)


# --- colours and boxes ------------------------------------------------------------------------------------------


def test_jitter_changes_brightness_by_at_most_its_strength() -> None:
    grey = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8).permute(0, 3, 1, 2)
    means = [run(grey, replace(PLAIN, color_jitter=0.2), i).float().mean() for i in range(50)]
    assert min(means) >= 76 and max(means) <= 121 and max(means) - min(means) > 20


def test_rand_augment_does_what_torchvisions_does_to_each_frame_alone() -> None:
    frames = clip(4, 32, 32)
    changed = 0
    for seed in range(40):
        result = run(frames, replace(PLAIN, rand_augment=9), seed)
        rng = np.random.default_rng(seed)
        crop_box(32, 32, (1.0,), rng)
        drawn = int(rng.integers(2**63))
        for frame, expected in zip(result, frames, strict=True):
            with torch.random.fork_rng():
                torch.manual_seed(drawn)
                expected = v2.RandAugment(2, 9, fill=128)(expected[None].contiguous(memory_format=torch.channels_last))
            assert torch.equal(frame, expected[0])
        changed += not torch.equal(result, frames)
    assert changed > 30


def test_a_larger_magnitude_changes_more() -> None:
    frames = still(32, 32, frames=1)
    changes = [
        np.mean(
            [float((run(frames, replace(PLAIN, rand_augment=m), s).float() - frames).abs().mean()) for s in range(60)]
        )
        for m in (1, 10, 25)
    ]
    assert changes[0] < changes[1] < changes[2]


@pytest.mark.parametrize(("channels", "flow"), [(3, False), (10, True)])
def test_erasing_greys_one_box_in_all_frames_and_nothing_else(channels: int, flow: bool) -> None:
    frames = clip(4, 32, 32, channels=channels)
    frames[frames == 128] = 127
    boxes = set()
    for seed in range(60):
        result = run(frames, replace(PLAIN, random_erasing=1.0), seed, flow=flow)
        erased = result != frames
        box = erased[0, 0]
        assert torch.equal(erased, box.expand_as(erased)) and bool((result[erased] == 128).all())
        rows, columns = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
        assert int(box.sum()) == len(rows) * len(columns) and 0.01 < box.float().mean() < 0.36
        boxes.add((int(rows[0]), int(columns[0]), len(rows), len(columns)))
    assert len(boxes) > 50


def test_erasing_strikes_its_share_of_the_clips() -> None:
    frames = clip(1, 32, 32)
    struck = sum(not torch.equal(run(frames, replace(PLAIN, random_erasing=0.3), seed), frames) for seed in range(400))
    assert 80 < struck < 160


def test_flow_keeps_its_values_but_for_crop_mirror_and_erasing() -> None:
    frames = clip(3, 40, 40, channels=10)
    coloured = replace(PLAIN, color_jitter=0.4, rand_augment=9)
    for seed in range(10):
        assert torch.equal(run(frames, coloured, seed, flow=True), run(frames, PLAIN, seed, flow=True))


# --- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [False, True])
def test_a_batch_is_its_clips(flow: bool) -> None:
    clips = torch.stack([clip(2, 40, 56, seed=i, channels=10 if flow else 3).permute(0, 2, 3, 1) for i in range(6)])
    clips = clips.permute(0, 1, 4, 2, 3)
    rule = flip_rule(["left", "up", "right"])
    labels = torch.tensor([0, 1, 2, 2, 1, 0])

    def rngs() -> list[np.random.Generator]:
        return [np.random.default_rng((3, i)) for i in range(6)]

    batch, found = train_transform_batch(clips, VIEW, EVERYTHING, rngs(), rule, labels, flow=flow)
    assert batch.permute(0, 1, 3, 4, 2).is_contiguous() and found.dtype == torch.int64
    for i, rng in enumerate(rngs()):
        alone, label = train_transform(clips[i], VIEW, EVERYTHING, rng, rule, int(labels[i]), flow=flow)
        assert torch.equal(batch[i], alone) and int(found[i]) == label
    evaluated = eval_transform(clips, VIEW)
    assert evaluated.permute(0, 1, 3, 4, 2).is_contiguous()
    assert torch.equal(evaluated, torch.stack([eval_transform(one, VIEW) for one in clips]))


def test_on_a_gpu_as_on_the_processor() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    clips = torch.stack([clip(2, 40, 56, seed=i).permute(0, 2, 3, 1) for i in range(4)]).permute(0, 1, 4, 2, 3)
    labels = torch.zeros(4, dtype=torch.int64)
    before = torch.cuda.get_rng_state()
    for augment in (
        AugmentConfig(),
        AugmentConfig(crop="resized", random_erasing=1.0),
        AugmentConfig(color_jitter=0.4),
    ):
        results = [
            train_transform_batch(
                clips.to(device), VIEW, augment, [np.random.default_rng(i) for i in range(4)], ON, labels.to(device)
            )[0]
            for device in ("cpu", "cuda")
        ]
        assert (results[0].int() - results[1].cpu().int()).abs().max() <= 2
    assert torch.equal(torch.cuda.get_rng_state(), before)


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", "center"),
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (0.5, 0.2)),
        ("crop_area", (0.5, 1.1)),
        ("crop_area", (0.5,)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (2.0, 1.0)),
        ("crop_ratio", (1.0, float("inf"))),
        ("rand_augment", -1),
        ("rand_augment", 31),
        ("random_erasing", 1.1),
        ("random_erasing", float("nan")),
        ("temporal_jitter", 1.0),
        ("temporal_jitter", -0.1),
        ("mixup", -1.0),
        ("mixup", float("nan")),
        ("cutmix", float("inf")),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        AugmentConfig(**{field: value})  # type: ignore[arg-type]


def test_settings_survive_being_written() -> None:
    assert from_dict(AugmentConfig, to_dict(EVERYTHING)) == EVERYTHING
