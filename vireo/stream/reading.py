"""A recorded video from its first frame to its last: decoded once, in order, and nothing of it kept."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from vireo.config import ViewConfig
from vireo.data.container import faults, is_repeat, open_video, regular_file
from vireo.data.pictures import check_size, quarter_turns
from vireo.data.transforms import eval_transform
from vireo.errors import DecodeError
from vireo.stream.plan import SECOND, Window, WindowPlan, Windows

_LONGEST_SHOW = 3600 * SECOND  # of one frame; a longer gap is a damaged time stamp
_USUAL_STEP = SECOND // 25  # where neither time stamps nor a rate say how long a frame is on show


class TimedFrame(NamedTuple):
    """A decoded frame."""

    begin: int
    """When its show begins, µs after the first frame."""
    end: int
    """When the next one's begins, µs."""
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

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Recording:
        """Open a file.

        Raises:
            DecodeError: it is no file that holds a video.
        """
        name = os.fspath(path)
        regular_file(name)
        return cls(name, *open_video(name))

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    @property
    def fps(self) -> float:
        """Average frame rate, 1/s; 0 = unknown."""
        return rate_of(self._stream)

    @property
    def seconds(self) -> float:
        """How long it says it is, s; 0 = it does not."""
        return announced_seconds(self._container, self._stream)

    def frames(self) -> Iterator[TimedFrame]:
        """All frames, in order.

        Raises:
            DecodeError: it is damaged or cut short, or its time stamps can't be right; said behind the frames before.
        """
        count, seconds = 0, 0.0
        for timed in with_times(decoded(self._container, self._stream, self.name), self.fps, self.name):
            count, seconds = count + 1, timed.end / SECOND
            yield timed
        if not count:
            raise DecodeError(self.name, "no frame can be decoded")
        self._check_complete(count, seconds)

    def _check_complete(self, count: int, seconds: float) -> None:
        """Compare with the header, where its word can be trusted: many formats just end when they are cut."""
        if "mov" in self._container.format.name:
            announced = len(self._stream.index_entries)
            if count < announced * 0.95 - 1:
                raise DecodeError(self.name, f"cut short: {count} of {announced} frames are there")
        elif "matroska" in self._container.format.name and seconds < self.seconds - max(1.0, 0.1 * self.seconds):
            raise DecodeError(self.name, f"cut short: {seconds:.1f} of {self.seconds:.1f} s are there")


def rate_of(stream: VideoStream) -> float:
    """Average frame rate, 1/s; 0 = unknown."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def announced_seconds(container: InputContainer, stream: VideoStream) -> float:
    """How long a video says it is, s; 0 = it does not, or can't be believed."""
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    else:
        seconds = (container.duration or 0) / SECOND
    return seconds if 0 < seconds < 1e7 else 0.0


def decoded(container: InputContainer, stream: VideoStream, path: str) -> Iterator[VideoFrame]:
    """The frames of an open video.

    Raises:
        DecodeError: FFmpeg reports damage.
    """
    with faults(path):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DecodeError(path, "damaged or cut short")
            for frame in () if is_repeat(packet) else packet.decode():
                if frame.is_corrupt:
                    raise DecodeError(path, "damaged frames")
                check_size(path, frame.width, frame.height)
                yield frame


def with_times(frames: Iterator[VideoFrame], fps: float, path: str) -> Iterator[TimedFrame]:
    """Frames with the times of their show, by their time stamps; by the rate where they have none, or none in order.

    Raises:
        DecodeError: one frame would be on show for more than an hour.
    """
    step = int(SECOND / fps) if 1 <= fps <= 1000 else _USUAL_STEP
    first: int | None = None
    held: VideoFrame | None = None
    begin = 0
    try:
        for frame in frames:
            stamp = _microseconds(frame.pts, frame.time_base)
            if held is not None:
                time = begin + step if stamp is None or first is None else stamp - first
                if time <= begin:
                    time = begin + step
                if time - begin > _LONGEST_SHOW:
                    raise DecodeError(path, f"damaged: its time stamps jump by {(time - begin) / SECOND:.0f} s")
                yield TimedFrame(begin, time, held)
                begin = time
            if first is None and stamp is not None:
                first = stamp - begin
            held = frame
    except DecodeError:
        if held is not None:
            yield TimedFrame(begin, begin + step, held)
        raise
    if held is not None:
        last = _microseconds(held.duration, held.time_base) or step
        yield TimedFrame(begin, begin + max(1, min(last, _LONGEST_SHOW)), held)


def _microseconds(ticks: int | None, base: Fraction | None) -> int | None:
    # Rounded down, as the moments of a window are, so that a moment that is a frame's time finds that frame.
    return None if ticks is None or not base else math.floor(ticks * base * SECOND)


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
    windows = Windows(plan, seconds=min(reader.seconds, limit))
    trouble: DecodeError | None = None
    try:
        for begin, end, frame in reader.frames():
            if begin >= limit * SECOND:
                break
            yield from windows.push(begin, end, lambda frame=frame: prepare(frame))  # type: ignore[misc]
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


def upright(frame: VideoFrame, reformatter: VideoReformatter) -> Any:
    """A frame as (H, W, 3) uint8 RGB, turned as the container's flag says."""
    image = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.ascontiguousarray(np.rot90(image, quarter_turns(frame.rotation)))
