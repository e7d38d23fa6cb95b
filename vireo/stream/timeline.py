"""Scores of windows become a timeline: smoothed over time, then labels from one change to the next.

The time is cut into moments of E seconds, the windows' step. The probabilities of a moment are the mean over the
windows whose centres lie less than ``smooth`` seconds from its centre, weighted by a triangle over that distance:

    weight = 1 - |centre of the window - centre of the moment| / smooth

With ``smooth`` = half a window, the default, these are the windows that cover the moment. With 0 it is the window
nearest to it. A live source does not wait for windows to come: each window's own time, as far as none before has
covered it, is a moment, and the mean is over that window and those before it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vireo.errors import UsageError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowScore:
    """What a model says of one window of a video."""

    start: float
    """Seconds after the first frame; of a live source by the clock."""
    end: float
    """Seconds."""
    labels: tuple[str, ...]
    """Names of the K classes."""
    probabilities: Floats
    """(K,) softmax."""

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """Its probability, in [0, 1]."""
        return float(self.probabilities.max())

    def top(self, count: int = 5) -> tuple[tuple[str, float], ...]:
        """The most probable classes with their probabilities, best first."""
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return tuple((self.labels[i], float(self.probabilities[i])) for i in best.tolist())

    def as_dict(self, top_k: int = 5) -> dict[str, Any]:
        """Plain data for JSON."""
        top = [{"label": label, "probability": p} for label, p in self.top(top_k)]
        return {"start": round(self.start, 6), "end": round(self.end, 6), **top[0], "top": top}


class Moment(NamedTuple):
    """Smoothed scores of a short time."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    probabilities: Floats
    """(K,)"""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A time with one label."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    label: str | None
    """None: none of these, for no class was as probable as the threshold."""
    probability: float
    """Mean over its time of the smoothed probability of the label, or without one of the likeliest class, in [0, 1]."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        start, end = round(self.start, 6), round(self.end, 6)
        return {"start": start, "end": end, "label": self.label, "probability": self.probability}


class Smoother:
    """Turns windows, in order, into moments, as soon as each is known.

    Args:
        every: length of a moment, s.
        smooth: half the base of the triangle, s; 0 = none.
        live: do not wait for windows to come.

    Raises:
        UsageError: ``smooth`` is negative or not finite.
    """

    def __init__(self, every: float, smooth: float, *, live: bool = False) -> None:
        check_smooth(smooth)
        self._every, self._smooth, self._live = every, smooth, live
        self._windows: deque[WindowScore] = deque()
        self._done = 0  # moments of a file that are out
        self._given: Floats | None = None  # the last of them
        self._end = -math.inf  # of the last moment of a live source

    def add(self, window: WindowScore) -> Iterator[Moment]:
        """Take the next window; gives the moments that are known with it."""
        self._windows.append(window)
        if self._live:
            self._forget(_centre(window))
            start = max(self._end, window.start)
            if start < window.end:
                yield Moment(start, window.end, self._mean(_centre(window)))
                self._end = window.end
            return
        # Windows to come have their centres behind this one.
        while _centre(window) >= (centre := (self._done + 0.5) * self._every) + self._smooth:
            yield from self._moment(centre, (self._done + 1) * self._every)

    def finish(self) -> Iterator[Moment]:
        """Gives the rest, up to the end of the last window."""
        if self._live or not self._windows:
            return
        start, end = self._done * self._every, self._windows[-1].end
        short = 1e-3 * self._every  # what is shorter is no moment of its own
        if self._given is not None and end - start < short:
            if end > start:
                yield Moment(start, end, self._given)
            return
        while start < end:
            stop = (self._done + 1) * self._every
            if end - stop < short:
                stop = end
            yield from self._moment((start + stop) / 2, stop)
            start = stop

    def _moment(self, centre: float, stop: float) -> Iterator[Moment]:
        self._forget(centre)
        self._given = self._mean(centre)
        yield Moment(self._done * self._every, stop, self._given)
        self._done += 1

    def _forget(self, centre: float) -> None:
        """Let go of windows that count neither here nor later: too far back, and not the nearest."""
        windows = self._windows
        while (
            len(windows) > 1
            and _centre(windows[0]) <= centre - self._smooth
            and abs(_centre(windows[1]) - centre) < abs(_centre(windows[0]) - centre)
        ):
            windows.popleft()

    def _mean(self, centre: float) -> Floats:
        distances = [abs(_centre(w) - centre) for w in self._windows]
        weights = [max(0.0, 1 - d / self._smooth) if self._smooth else 0.0 for d in distances]
        total = sum(weights)
        if total <= 0:
            return self._windows[distances.index(min(distances))].probabilities
        mean = sum(w.probabilities * (weight / total) for w, weight in zip(self._windows, weights, strict=True))
        return np.asarray(mean, dtype=np.float32)


class Segmenter:
    """Merges moments, in order, into segments of one label.

    Args:
        labels: names of the K classes.
        threshold: the least probability for a label, in [0, 1].

    Raises:
        UsageError: the threshold is outside.
    """

    def __init__(self, labels: tuple[str, ...], threshold: float = 0.0) -> None:
        check_threshold(threshold)
        self._labels, self._threshold = labels, threshold
        self._now: tuple[float, float, str | None] | None = None  # start, end, label
        self._sum = 0.0
        self._told: tuple[float, str | None] | None = None

    def began(self) -> Segment | None:
        """The segment that is going on, if it has begun since this was asked the last time."""
        if self._now is None or self._told == (self._now[0], self._now[2]):
            return None
        start, end, label = self._now
        self._told = start, label
        return Segment(start=start, end=end, label=label, probability=min(1.0, self._sum / (end - start)))

    def add(self, moment: Moment) -> Iterator[Segment]:
        """Take the next moment; gives the segment that ends with its beginning, if one does."""
        probability = float(moment.probabilities.max())
        label = self._labels[int(moment.probabilities.argmax())] if probability >= self._threshold else None
        start = moment.start
        if self._now is not None:
            began, ended, before = self._now
            if label == before and abs(moment.start - ended) < 1e-6:
                start = began
            else:
                yield from self.finish()
        self._now = (start, moment.end, label)
        self._sum += probability * (moment.end - moment.start)

    def finish(self) -> Iterator[Segment]:
        """Gives the last segment."""
        if self._now is not None:
            start, end, label = self._now
            mean = self._sum / (end - start) if end > start else 0.0
            self._now, self._sum = None, 0.0
            yield Segment(start=start, end=end, label=label, probability=min(1.0, mean))


def check_threshold(threshold: float) -> None:
    """Raise UsageError unless it is a probability."""
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold is {threshold}; it is a probability, from 0 to 1")


def check_smooth(smooth: float) -> None:
    """Raise UsageError unless it is a length of time, or 0."""
    if not 0 <= smooth < math.inf:
        raise UsageError(f"smooth is {smooth} seconds; it must be positive, or 0 for none")


def _centre(window: WindowScore) -> float:
    return (window.start + window.end) / 2
