"""Which frames are taken: against the definition in exact fractions, and its properties."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from vireo.data.sampling import dense_indices, jittered_part, sample_indices, segment_indices
from vireo.errors import UsageError

COUNTS = [*range(1, 70), 100, 299, 300, 1001, 10**7 + 1]


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 16])
def test_test_frames_are_the_floors_of_the_segment_centres(frames: int) -> None:
    for count in COUNTS:
        expected = [floor((i + Fraction(1, 2)) * Fraction(count, frames)) for i in range(frames)]
        assert segment_indices(count, frames).tolist() == expected


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_random_frames_are_sorted_in_range_and_one_per_segment(frames: int) -> None:
    rng = np.random.default_rng(0)
    for count in COUNTS:
        for _ in range(5):
            indices = segment_indices(count, frames, rng)
            assert indices.shape == (frames,) and indices.dtype == np.int64
            for i, index in enumerate(indices.tolist()):  # the frame's interval meets the segment's
                assert index < Fraction((i + 1) * count, frames) and index + 1 > Fraction(i * count, frames)
            assert np.all(np.diff(indices) >= 0) and indices[0] >= 0 and indices[-1] < count


def test_random_frames_reach_every_frame_equally() -> None:
    rng = np.random.default_rng(0)
    taken = np.bincount(np.concatenate([segment_indices(20, 8, rng) for _ in range(5000)]), minlength=20)
    assert np.all(np.abs(taken / taken.mean() - 1) < 0.1)


def test_centres_are_symmetric_under_reversal_iff_no_centre_falls_between_two_frames() -> None:
    for frames in (1, 2, 3, 7, 8, 16):
        for count in range(1, 200):
            indices = segment_indices(count, frames)
            symmetric = np.array_equal(indices, count - 1 - indices[::-1])
            between = any((2 * i + 1) * count % (2 * frames) == 0 for i in range(frames))
            assert symmetric == (not between)
            assert symmetric or count % 2 == 0


def test_a_short_video_repeats_its_frames_in_order() -> None:
    assert segment_indices(3, 8).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert segment_indices(1, 4).tolist() == [0, 0, 0, 0]
    assert dense_indices(2, 4).tolist() == [0, 0, 1, 1]


def test_dense_frames_are_evenly_spaced_in_one_window() -> None:
    assert dense_indices(100, 8).tolist() == [18 + 4 + 8 * i for i in range(8)]
    assert dense_indices(64, 8).tolist() == [4 + 8 * i for i in range(8)]
    rng = np.random.default_rng(0)
    firsts = set()
    for _ in range(500):
        indices = dense_indices(70, 8, rng)
        assert np.all(np.diff(indices) == 8) and indices[0] >= 4 and indices[-1] < 70
        firsts.add(int(indices[0]))
    assert firsts == set(range(4, 11))


def test_the_name_chooses_the_function() -> None:
    assert np.array_equal(sample_indices("segment", 100, 8), segment_indices(100, 8))
    assert np.array_equal(sample_indices("dense", 100, 8), dense_indices(100, 8))
    with pytest.raises(UsageError, match="'uniform'"):
        sample_indices("uniform", 100, 8)


@pytest.mark.parametrize(("count", "frames"), [(0, 8), (-1, 8), (8, 0)])
def test_counts_below_one_are_refused(count: int, frames: int) -> None:
    for function in (segment_indices, dense_indices):
        with pytest.raises(UsageError):
            function(count, frames)


def test_the_generator_alone_decides() -> None:
    np.random.seed(0)
    first = segment_indices(300, 8, np.random.default_rng(7))
    np.random.seed(1)
    assert np.array_equal(first, segment_indices(300, 8, np.random.default_rng(7)))
    assert not np.array_equal(first, segment_indices(300, 8, np.random.default_rng(8)))


@pytest.mark.parametrize("clips", [1, 2, 3, 10])
def test_clips_of_a_video_take_the_points_of_its_segments_in_turn(clips: int) -> None:
    for count in COUNTS:
        found = [segment_indices(count, 8, clip=clip, clips=clips) for clip in range(clips)]
        for clip, indices in enumerate(found):
            points = [(i + (clip + Fraction(1, 2)) / clips) * Fraction(count, 8) for i in range(8)]
            assert indices.tolist() == [floor(point) for point in points]
        together = np.stack(found, axis=1).reshape(-1)  # segment by segment
        assert np.array_equal(together, segment_indices(count, 8 * clips))


def test_windows_of_a_video_are_spread_from_its_start_to_its_end() -> None:
    found = [dense_indices(364, 8, clip=clip, clips=10) for clip in range(10)]
    firsts = [int(indices[0]) - 4 for indices in found]
    assert firsts == [0, 33, 66, 100, 133, 166, 200, 233, 266, 300]
    assert all(np.all(np.diff(indices) == 8) for indices in found)
    assert np.array_equal(dense_indices(364, 8, clip=0, clips=1), dense_indices(364, 8))
    assert all(np.array_equal(dense_indices(20, 8, clip=c, clips=3), dense_indices(20, 8)) for c in range(3))
    named = sample_indices("dense", 364, 8, clip=9, clips=10)
    assert np.array_equal(named, found[9])


@pytest.mark.parametrize(("clip", "clips"), [(1, 1), (-1, 2), (3, 3), (0, 0)])
def test_a_clip_that_is_not_there_is_refused(clip: int, clips: int) -> None:
    for function in (segment_indices, dense_indices):
        with pytest.raises(UsageError, match="no clip"):
            function(100, 8, clip=clip, clips=clips)
        with pytest.raises(UsageError, match="at random"):
            function(100, 8, np.random.default_rng(0), clip=0, clips=2)


def test_temporal_jitter_keeps_a_part_of_any_allowed_length_anywhere() -> None:
    rng = np.random.default_rng(0)
    parts = {jittered_part(10, 0.4, rng) for _ in range(3000)}
    assert parts == {(first, length) for length in range(6, 11) for first in range(10 - length + 1)}
    assert {jittered_part(1, 0.9, rng) for _ in range(20)} == {(0, 1)}
    assert min(length for _, length in (jittered_part(3, 0.999, rng) for _ in range(200))) == 1


@pytest.mark.parametrize("sampling", ["segment", "dense"])
def test_temporal_jitter_samples_that_part(sampling: str) -> None:
    for seed in range(50):
        jittered = sample_indices(sampling, 200, 8, np.random.default_rng(seed), jitter=0.5)
        rng = np.random.default_rng(seed)
        first, length = jittered_part(200, 0.5, rng)
        assert length >= 100 and 0 <= first <= 200 - length
        assert np.array_equal(jittered, first + sample_indices(sampling, length, 8, rng))
        assert jittered.dtype == np.int64 and np.all(np.diff(jittered) >= 0) and 0 <= jittered[0] <= jittered[-1] < 200


def test_no_temporal_jitter_draws_nothing() -> None:
    for sampling in ("segment", "dense"):
        with_it = sample_indices(sampling, 200, 8, np.random.default_rng(1), jitter=0.0)
        assert np.array_equal(with_it, sample_indices(sampling, 200, 8, np.random.default_rng(1)))
        assert np.array_equal(sample_indices(sampling, 200, 8, jitter=0.5), sample_indices(sampling, 200, 8))
    assert np.array_equal(
        sample_indices("segment", 200, 8, np.random.default_rng(1)), segment_indices(200, 8, np.random.default_rng(1))
    )


@pytest.mark.parametrize("jitter", [-0.1, 1.0, float("nan")])
def test_temporal_jitter_is_checked(jitter: float) -> None:
    with pytest.raises(UsageError, match="temporal_jitter"):
        jittered_part(10, jitter, np.random.default_rng(0))
