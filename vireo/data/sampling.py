"""Which frames of a video the model sees: pure functions of (frame count, T, random generator).

A video of F frames is cut into T equal parts, the segments, and one frame is taken from each. All of
it is exact integer arithmetic, so the same video gives the same frames on every machine.

    F = 10, T = 4     frame     0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9
                      segments  └────0────┴────1────┴────2────┴────3────┘
                      centres         1         3         6         8

For several clips of one video, each is a view of its own: clip k of n takes the point (k+½)/n of each segment, or the
k-th of n windows of dense sampling. Temporal jitter cuts a random part out of the video first and samples that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vireo.errors import UsageError

Indices = npt.NDArray[np.int64]

DENSE_WINDOW = 64
"""Length of the window of dense sampling, frames."""


def segment_indices(
    frame_count: int, num_frames: int, rng: np.random.Generator | None = None, *, clip: int = 0, clips: int = 1
) -> Indices:
    """One frame from each of ``num_frames`` equal parts of a video, as in TSN.

    Segment i is the real interval [i·F/T, (i+1)·F/T) and frame k the interval [k, k+1). Without a
    generator the frame at the segment's centre is taken, ⌊(i+½)·F/T⌋; with one, the frame at a
    uniformly drawn point of the segment. A video shorter than T repeats frames, in order.

    The centres of a video and of its reversal are the same frames unless some (2i+1)·F is a multiple
    of 2T; for odd F they always are.

    Args:
        frame_count: F, frames of the video.
        num_frames: T, frames wanted.
        rng: where the points are drawn from; None: they are fixed.
        clip: which of ``clips`` views is wanted: its points lie (clip+½)/clips into the segments.
        clips: how many views of the video there are. Together they take the centres of clips · T segments.

    Returns:
        (T,) int64, sorted, in [0, F).

    Raises:
        UsageError: a number is below 1, there is no such clip, or several clips are to be drawn at random.
    """
    _check(frame_count, num_frames, clip, clips, rng)
    segments = np.arange(num_frames, dtype=np.int64)
    if rng is None:
        return (2 * (segments * clips + clip) + 1) * frame_count // (2 * num_frames * clips)
    # A point of segment i in units of 1/T frame: i·F + r with 0 <= r < F.
    return (segments * frame_count + rng.integers(frame_count, size=num_frames)) // num_frames


def dense_indices(
    frame_count: int,
    num_frames: int,
    rng: np.random.Generator | None = None,
    window: int = DENSE_WINDOW,
    *,
    clip: int = 0,
    clips: int = 1,
) -> Indices:
    """``num_frames`` evenly spaced frames of a window of ``window`` frames.

    The window is the middle one without a generator, a uniformly drawn one with it; in it the
    centres of T equal parts are taken. In a video shorter than the window, it is the whole video.

    Args:
        frame_count: F, frames of the video.
        num_frames: T, frames wanted.
        rng: where the window's place is drawn from; None: it is fixed.
        window: its length, frames.
        clip: which of ``clips`` views is wanted.
        clips: how many windows there are; two or more are spread evenly from the video's first frame to its last.

    Returns:
        (T,) int64, sorted, in [0, F).

    Raises:
        UsageError: a number is below 1, there is no such clip, or several clips are to be drawn at random.
    """
    _check(frame_count, num_frames, clip, clips, rng)
    if window < 1:
        raise UsageError(f"the window is {window} frames; it must be at least 1")
    length = min(window, frame_count)
    spare = frame_count - length
    if rng is not None:
        first = int(rng.integers(spare + 1))
    else:
        first = spare // 2 if clips == 1 else spare * clip // (clips - 1)
    return first + segment_indices(length, num_frames)


def jittered_part(frame_count: int, jitter: float, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the part of a video that temporal jitter keeps.

    Its length is drawn uniformly from the whole frames in [(1 - jitter) · F, F], then its place. So what is
    sampled from it begins and ends elsewhere, and is up to 1 / (1 - jitter) times as slow.

    Args:
        frame_count: F, frames of the video.
        jitter: the largest share that is cut away, in [0, 1). 0 draws nothing.
        rng: the generator.

    Returns:
        (first frame, number of frames), the latter at least 1.

    Raises:
        UsageError: ``frame_count`` is below 1, or ``jitter`` outside [0, 1).
    """
    _check(frame_count)
    if not 0 <= jitter < 1:
        raise UsageError(f"temporal_jitter is {jitter}; it must be in [0, 1)")
    if jitter == 0:
        return 0, frame_count
    shortest = max(1, math.ceil((1 - jitter) * frame_count))
    length = int(rng.integers(shortest, frame_count + 1))
    return int(rng.integers(frame_count - length + 1)), length


def sample_indices(
    sampling: str,
    frame_count: int,
    num_frames: int,
    rng: np.random.Generator | None = None,
    *,
    jitter: float = 0.0,
    window: int = DENSE_WINDOW,
    **options: Any,
) -> Indices:
    """`segment_indices` or `dense_indices`, by the name that a `ViewConfig` carries.

    Args:
        sampling: segment or dense.
        frame_count: F, frames of the video.
        num_frames: T, frames wanted.
        rng: for training; None: the frames of evaluation.
        jitter: sample a random part of the video only (`jittered_part`); without a generator there is none.
        window: of dense sampling, frames; segment sampling has none.
        **options: of the function, e.g. ``clip=k, clips=n``.

    Returns:
        (T,) int64, sorted, in [0, F).

    Raises:
        UsageError: an unknown name, a count below 1, or as the function says.
    """
    if sampling not in _SAMPLERS:
        raise UsageError(f"sampling is {sampling!r}; use segment or dense")
    if sampling == "dense":
        options["window"] = window
    first, length = (0, frame_count) if rng is None else jittered_part(frame_count, jitter, rng)
    return first + _SAMPLERS[sampling](length, num_frames, rng, **options)


def clip_indices(
    sampling: str, frame_count: int, num_frames: int, clips: int, *, window: int = DENSE_WINDOW, twice: bool = False
) -> tuple[Indices, Indices]:
    """The frames of several clips of a video, as one list that a decoder takes.

    Args:
        sampling: segment or dense.
        frame_count: F, frames of the video.
        num_frames: T, frames of a clip.
        clips: how many there are, at their fixed places.
        window: of dense sampling, frames.
        twice: the two clips are the segments' centres and their first frames, as TSM's code samples twice.

    Returns:
        (clips · T,) int64, all frames wanted, sorted, in [0, F); and (clips, T) int64, where in that list the
        frames of each clip are.

    Raises:
        UsageError: as `sample_indices`, or ``twice`` with other than two clips of segment sampling.
    """
    if clips < 1:
        raise UsageError(f"clips is {clips}; it must be at least 1")
    if twice and (sampling, clips) != ("segment", 2):
        raise UsageError(f"{clips} clips of {sampling} sampling are not the two of segment sampling")
    if twice:
        starts = np.arange(num_frames, dtype=np.int64) * frame_count // num_frames
        wanted = np.concatenate([segment_indices(frame_count, num_frames), starts])
    else:
        wanted = np.concatenate(
            [
                sample_indices(sampling, frame_count, num_frames, window=window, clip=k, clips=clips)
                for k in range(clips)
            ]
        )
    order = np.argsort(wanted, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return wanted[order], places.reshape(clips, num_frames)


_SAMPLERS: dict[str, Callable[..., Indices]] = {"segment": segment_indices, "dense": dense_indices}


def _check(
    frame_count: int, num_frames: int = 1, clip: int = 0, clips: int = 1, rng: np.random.Generator | None = None
) -> None:
    if frame_count < 1:
        raise UsageError(f"a video of {frame_count} frames can't be sampled")
    if num_frames < 1:
        raise UsageError(f"num_frames is {num_frames}; it must be at least 1")
    if not 0 <= clip < clips:
        raise UsageError(f"there is no clip {clip} of {clips}; clips are counted from 0")
    if rng is not None and clips > 1:
        raise UsageError(f"{clips} clips of a video stand at fixed places; they can't be drawn at random as well")
