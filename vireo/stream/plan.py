"""Which moments a sliding window looks at, and the few pictures that are kept for that.

A window of W seconds that begins at s looks at the T moments s + (i + ½)·W/T: the frame on show at each is what the
model sees. For a constant frame rate that is the segment sampling of the window's frames, for any other it goes by the
time stamps. A window begins every E seconds:

    frames        ││ │ │││  │  │ │ ││  │ │ │  ││ │ │       as they come, at any rate
    window 0      [ ×   ×   ×   × ]                        T = 4 moments
    window 1              [ ×   ×   ×   × ]
    last window                [ ×   ×   ×   × ]           ends with the video

So it is known of each frame, as it comes, whether any window looks at it; only then is it made into a picture, once,
and it is kept until the last window that may look at it is past. Times are whole ticks, so fine that the frames of
usual rates begin at whole ones: all of this is exact.
"""

from __future__ import annotations

import bisect
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor

from vireo.errors import UsageError

SECOND = 2**14 * 3**4 * 5**6 * 37
"""Ticks. The usual frame rates, 24000/1001, 30000/1001 and 29.97 among them, and the time bases that go with them all
divide it; in microseconds, a moment that is a frame's time could fall before that frame."""
LONGEST_WINDOW = 3600.0
"""Seconds."""
_ROUNDING = SECOND // 500  # of announced lengths, which some containers give in milliseconds
_FIRST_FRAMES = 256  # kept whatever the windows look at, so that a short video of unannounced length is sampled exactly


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Windows over time."""

    window: int
    """Length of a window, ticks."""
    every: int
    """From the beginning of one to that of the next, ticks; at most ``window``, so that nothing lies between them."""
    num_frames: int
    """T, moments that a window looks at."""

    @classmethod
    def of(cls, window: float, every: float | None, num_frames: int) -> WindowPlan:
        """The plan for lengths in seconds; ``every`` None = a quarter of the window.

        Raises:
            UsageError: a length is not positive, or ``every`` longer than the window.
        """
        if not 0.01 <= window <= LONGEST_WINDOW:
            raise UsageError(f"window is {window:g} seconds; it must be from 0.01 to {LONGEST_WINDOW:g}")
        step = window / 4 if every is None else every
        if not 0.001 <= step <= window:
            raise UsageError(
                f"every is {step:g} seconds; it must be from 0.001 to the window's {window:g}, or some of the video "
                "would be in no window"
            )
        return cls(window=round(window * SECOND), every=max(1, round(step * SECOND)), num_frames=num_frames)

    def moments(self, start: int, length: int) -> list[int]:
        """(T,) the moments that a window looks at, ticks."""
        return [start + (2 * i + 1) * length // (2 * self.num_frames) for i in range(self.num_frames)]

    def looks_at(self, begin: int, end: int) -> bool:
        """Whether any window, of those without end that begin at 0, looks at a moment in [begin, end)."""
        for offset in self.moments(0, self.window):
            number = max(0, -((offset - begin) // self.every))  # of the first window whose moment isn't before `begin`
            if number * self.every + offset < end:
                return True
        return False


class Window(NamedTuple):
    """What the model is to see."""

    start: int
    """Ticks."""
    end: int
    """Ticks."""
    pictures: list[Tensor]
    """(T,) pictures (S, S, 3) uint8; windows that overlap share them."""
    frames: int
    """Frames of the source that have come since the window before."""
    ready: float
    """When the last of them had come, s on the monotonic clock."""


class _Held(NamedTuple):
    begin: int
    end: int
    picture: Tensor


class Windows:
    """Makes windows of frames that come in order.

    Args:
        plan: the windows.
        seconds: how long the video says it is; 0 = unknown. Only the choice of the last window's pictures depends on
            it: without it, or where it is wrong, they are those nearest to its moments that other windows look at.
        eager: give a window as soon as all it looks at has come, half a T-th of it before its end. Then the last one
            may end behind the video's end.
    """

    def __init__(self, plan: WindowPlan, *, seconds: float | Fraction = 0, eager: bool = False) -> None:
        self.plan, self._eager = plan, eager
        self._held: deque[_Held] = deque()
        self._next = self._count = self._new = 0
        self.end = 0
        """Where the last frame's show ends, ticks."""
        announced = round(seconds * SECOND) if math.isfinite(seconds) and seconds > 0 else 0
        length = min(plan.window, announced)
        self._last_moments = plan.moments(announced - length, length) if announced else []

    def push(self, begin: int, end: int, picture: Callable[[], Tensor]) -> Iterator[Window]:
        """Take the next frame; gives the windows that are complete with it.

        Args:
            begin: when its show begins, ticks after the first frame.
            end: when the next frame's begins, ticks.
            picture: makes (S, S, 3) uint8 of it, called only if a window looks at it.
        """
        first = self._count < _FIRST_FRAMES and begin < self.plan.window
        last = any(begin - _ROUNDING <= moment < end + _ROUNDING for moment in self._last_moments)
        if first or last or self.plan.looks_at(begin, end):
            self._held.append(_Held(begin, end, picture()))
        self._count, self._new, self.end = self._count + 1, self._new + 1, end
        while True:
            start = self._next * self.plan.every
            stop = start + self.plan.window
            if (self.plan.moments(start, self.plan.window)[-1] >= end) if self._eager else (stop > end):
                return
            while self._held and self._held[0].end <= start:
                self._held.popleft()
            self._next += 1
            yield self._window(start, stop)

    def finish(self) -> Iterator[Window]:
        """Gives the last window, which ends with the video, if there is something that no window has covered."""
        covered = (self._next - 1) * self.plan.every + self.plan.window if self._next else 0
        if covered < self.end:
            yield self._window(max(0, self.end - self.plan.window), self.end)
        self._held.clear()

    def _window(self, start: int, end: int) -> Window:
        begins = [held.begin for held in self._held]
        pictures = [self._on_show(moment, begins) for moment in self.plan.moments(start, end - start)]
        new, self._new = self._new, 0
        return Window(start, end, pictures, new, time.monotonic())

    def _on_show(self, moment: int, begins: list[int]) -> Tensor:
        """The picture of a moment; the nearest one where its frame was not kept."""
        at = max(0, bisect.bisect_right(begins, moment) - 1)
        if at + 1 < len(begins) and begins[at + 1] - moment <= moment - self._held[at].end:
            at += 1
        return self._held[at].picture
