"""A recorded video from its first frame to its last: decoded once, in order, and nothing of it kept."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from vireo.config import ViewConfig
from vireo.data.container import check_complete, faults, is_repeat, matroska_seconds, open_video, regular_file
from vireo.data.pictures import check_size, quarter_turns
from vireo.data.transforms import eval_transform
from vireo.errors import DecodeError
from vireo.stream.plan import SECOND, Window, WindowPlan, Windows

SILENCE = 10.0
"""Seconds without an answer, or without data, after which a source is taken for gone."""
_LONGEST_SHOW = 3600 * SECOND  # of one frame; a longer gap is a damaged time stamp
_USUAL_STEP = SECOND // 25  # where neither time stamps nor a rate say how long a frame is on show


class TimedFrame(NamedTuple):
    """A decoded frame."""

    begin: int
    """When its show begins, ticks after the first frame."""
    end: int
    """When the next one's begins, ticks."""
    frame: VideoFrame


class Recording:
    """A video that has an end: a file, or a URL that says how long it is.

    Args:
        name: for errors.
        container: open; it is closed with the recording.
        stream: its video.
    """

    def __init__(self, name: str, container: InputContainer, stream: VideoStream) -> None:
        self.name, self._container, self._stream = name, container, stream
        self._is_file = False
        self._packets = self._last_pts = 0  # packets read, and the highest of their time stamps

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Recording:
        """Open a file.

        Raises:
            DecodeError: it is no file that holds a video.
        """
        name = os.fspath(path)
        regular_file(name)
        recording = cls(name, *open_video(name))
        recording._is_file = True
        return recording

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    @property
    def fps(self) -> float:
        """Average frame rate, 1/s; 0 = unknown."""
        return float(rate_of(self._stream))

    @property
    def length(self) -> Fraction:
        """How long it says it is, s; 0 = it does not."""
        return announced_length(self._container, self._stream)

    @property
    def seconds(self) -> float:
        """The same, rounded."""
        return float(self.length)

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of its pixels, as they are stored, over their height."""
        found = self._stream.sample_aspect_ratio
        return found if found and Fraction(1, 8) <= found <= 8 else Fraction(1)

    def frames(self) -> Iterator[TimedFrame]:
        """All frames, in order.

        Raises:
            DecodeError: it is damaged or cut short, or its time stamps can't be right; said behind the frames before.
        """
        count = 0
        for timed in with_times(self._decoded(), rate_of(self._stream), self.name):
            count += 1
            yield timed
        if not count:
            raise DecodeError(self.name, "no frame can be decoded")
        check_complete(self.name, self._container, self._stream, self._packets, self._last_pts, is_file=self._is_file)

    def _decoded(self) -> Iterator[VideoFrame]:
        """The frames, without their times.

        Raises:
            DecodeError: FFmpeg reports damage, or a URL gives nothing more.
        """
        silent = DecodeError(self.name, f"no data for {SILENCE:g} s")
        with faults(self.name):
            try:
                asked = time.monotonic()
                for packet in self._container.demux(self._stream):
                    if packet.is_corrupt:
                        # What had come of a packet when a URL fell silent is given before the silence is told.
                        waited = not self._is_file and time.monotonic() - asked > 0.99 * SILENCE
                        raise silent if waited else DecodeError(self.name, "damaged or cut short")
                    again = is_repeat(packet)
                    self._packets += packet.size > 0 or again
                    self._last_pts = max(self._last_pts, packet.pts or 0)
                    for frame in () if again else packet.decode():
                        if frame.is_corrupt:
                            raise DecodeError(self.name, "damaged frames")
                        check_size(self.name, frame.width, frame.height)
                        yield frame
                    asked = time.monotonic()
            except av.error.ExitError:  # files have no such limit
                raise silent from None


def rate_of(stream: VideoStream) -> Fraction:
    """Average frame rate, 1/s; 0 = unknown."""
    return Fraction(stream.average_rate or stream.guessed_rate or 0)


def announced_length(container: InputContainer, stream: VideoStream) -> Fraction:
    """How long a video says it is, s; 0 = it does not, or can't be believed."""
    if stream.duration and stream.time_base:
        seconds = stream.duration * stream.time_base
    else:
        own = matroska_seconds(container, stream) if "matroska" in container.format.name else Fraction(0)
        seconds = own or Fraction(container.duration or 0, av.time_base)  # the latter of the longest stream
    return seconds if 0 < seconds < 10_000_000 else Fraction(0)


def with_times(frames: Iterator[VideoFrame], rate: Fraction, path: str) -> Iterator[TimedFrame]:
    """Frames with the times of their show, by their time stamps; by the rate where they have none, or none in order.

    Many containers round time stamps. As long as all of them are those of the rate but for that, the times are the
    rate's, exactly.

    Args:
        frames: in order.
        rate: 1/s; 0 = unknown.
        path: for errors.

    Raises:
        DecodeError: one frame would be on show for more than an hour.
    """
    rate = rate if 1 <= rate <= 1000 else Fraction(0)
    step = int(SECOND / rate) if rate else _USUAL_STEP
    steady = bool(rate)
    first: int | None = None
    held: VideoFrame | None = None
    begin = due = 0  # `due` is when the frame behind the held one begins by the rate
    try:
        for count, frame in enumerate(frames):
            stamp = _ticks(frame.pts, frame.time_base)
            if held is not None:
                now = begin + step if stamp is None or first is None else stamp - first
                steady = steady and (stamp is None or first is None or _is_rounded(now, due, step, frame))
                if steady:
                    now = due
                elif now <= begin:
                    now = begin + step
                if now - begin > _LONGEST_SHOW:
                    raise DecodeError(path, f"damaged: its time stamps jump by {(now - begin) / SECOND:.0f} s")
                yield TimedFrame(begin, now, held)
                begin = now
            if first is None and stamp is not None:
                first = stamp - begin
            held = frame
            due = int((count + 1) * SECOND / rate) if rate else 0
    except DecodeError:
        if held is not None:
            yield TimedFrame(begin, begin + step, held)
        raise
    if held is not None:
        shown = _ticks(held.duration, held.time_base) or step
        if steady and _is_rounded(shown, due - begin, step, held):
            shown = due - begin
        yield TimedFrame(begin, begin + max(1, min(shown, _LONGEST_SHOW)), held)


def _is_rounded(time: int, due: int, step: int, frame: VideoFrame) -> bool:
    """Whether a time differs from what is due by no more than rounding to the frame's time base, which is fine."""
    unit = SECOND * frame.time_base if frame.time_base else 0
    return time == due or abs(time - due) <= unit <= step / 4


def _ticks(count: int | None, base: Fraction | None) -> int | None:
    # Rounded down, as the moments of a window are, so that a moment that is a frame's time finds that frame.
    return None if count is None or not base else math.floor(count * base * SECOND)


def recording_windows(
    reader: Recording, plan: WindowPlan, view: ViewConfig, *, limit: float = math.inf
) -> Iterator[Window]:
    """The windows of a video, in order; the last one ends with it.

    Args:
        reader: the open video.
        plan: the windows.
        view: the sizes of the model's input.
        limit: seconds of the video after which it ends.

    Raises:
        DecodeError: it can't be read to its end; said behind the windows of what could be read.
    """
    prepare = Preparer(view)
    windows = Windows(plan, seconds=reader.length if reader.length < limit else limit)
    last = round(limit * SECOND) if limit < math.inf else math.inf
    trouble: DecodeError | None = None
    try:
        for begin, end, frame in reader.frames():
            yield from windows.push(begin, int(min(end, last)), lambda frame=frame: prepare(frame))  # type: ignore[misc]
            if end >= last:
                break
    except DecodeError as error:
        trouble = error
    yield from windows.finish()
    if trouble is not None:
        raise trouble


class Preparer:
    """Makes the model's input of a frame, as `eval_transform` does of a clip."""

    def __init__(self, view: ViewConfig) -> None:
        self._view, self._reformatter = view, VideoReformatter()

    def __call__(self, frame: VideoFrame) -> Tensor:
        """(S, S, 3) uint8, upright."""
        image = torch.from_numpy(upright(frame, self._reformatter)).permute(2, 0, 1)[None]
        return eval_transform(image, self._view)[0].permute(1, 2, 0)


def upright(frame: VideoFrame, reformatter: VideoReformatter, matrix: int | None = None) -> Any:
    """A frame as (H, W, 3) uint8 RGB, turned as the container's flag says.

    Args:
        frame: as decoded.
        reformatter: for frames like it.
        matrix: swscale's number of the matrix behind its YUV; None = what the frame says, else BT.601.
    """
    image = reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, threads=1).to_ndarray()
    return np.ascontiguousarray(np.rot90(image, quarter_turns(frame.rotation)))
