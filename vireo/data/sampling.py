"""Which frames of a video the model sees: pure functions of (frame count, T, random generator).

A video of F frames is cut into T equal parts, the segments, and one frame is taken from each. All of
it is exact integer arithmetic, so the same video gives the same frames on every machine.

    F = 10, T = 4     frame     0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9
                      segments  └────0────┴────1────┴────2────┴────3────┘
                      centres         1         3         6         8
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vireo.errors import UsageError

Indices = npt.NDArray[np.int64]

DENSE_WINDOW = 64
"""Length of the window of dense sampling, frames."""


def segment_indices(frame_count: int, num_frames: int, rng: np.random.Generator | None = None) -> Indices:
    """One frame from each of ``num_frames`` equal parts of a video, as in TSN.

    Segment i is the real interval [i·F/T, (i+1)·F/T) and frame k the interval [k, k+1). Without a
    generator the frame at the segment's centre is taken, ⌊(i+½)·F/T⌋; with one, the frame at a
    uniformly drawn point of the segment. A video shorter than T repeats frames, in order.

    The centres of a video and of its reversal are the same frames unless some (2i+1)·F is a multiple
    of 2T; for odd F they always are.

    Returns:
        (T,) int64, sorted, in [0, F).

    Raises:
        UsageError: ``frame_count`` or ``num_frames`` is below 1.
    """
    _check(frame_count, num_frames)
    segments = np.arange(num_frames, dtype=np.int64)
    if rng is None:
        return (2 * segments + 1) * frame_count // (2 * num_frames)
    # A point of segment i in units of 1/T frame: i·F + r with 0 <= r < F.
    return (segments * frame_count + rng.integers(frame_count, size=num_frames)) // num_frames


def dense_indices(
    frame_count: int, num_frames: int, rng: np.random.Generator | None = None, window: int = DENSE_WINDOW
) -> Indices:
    """``num_frames`` evenly spaced frames of a window of ``window`` frames.

    The window is the middle one without a generator, a uniformly drawn one with it; in it the
    centres of T equal parts are taken. In a video shorter than the window, it is the whole video.

    Returns:
        (T,) int64, sorted, in [0, F).

    Raises:
        UsageError: an argument is below 1.
    """
    _check(frame_count, num_frames)
    if window < 1:
        raise UsageError(f"the window is {window} frames; it must be at least 1")
    length = min(window, frame_count)
    spare = frame_count - length
    first = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return first + segment_indices(length, num_frames)


def sample_indices(
    sampling: str, frame_count: int, num_frames: int, rng: np.random.Generator | None = None, **options: Any
) -> Indices:
    """`segment_indices` or `dense_indices`, by the name that a `ViewConfig` carries.

    Raises:
        UsageError: an unknown name, or a count below 1.
    """
    if sampling == "segment":
        return segment_indices(frame_count, num_frames, rng, **options)
    if sampling == "dense":
        return dense_indices(frame_count, num_frames, rng, **options)
    raise UsageError(f"sampling is {sampling!r}; use segment or dense")


def _check(frame_count: int, num_frames: int) -> None:
    if frame_count < 1:
        raise UsageError(f"a video of {frame_count} frames can't be sampled")
    if num_frames < 1:
        raise UsageError(f"num_frames is {num_frames}; it must be at least 1")
