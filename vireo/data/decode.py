"""Videos to frames with PyAV: exact, one thread, and honest about damage.

The order of work: demux (cheap, nothing is decoded) to learn how many frames there are and when; ask
the plan which of them are wanted; decode in sequence up to the last wanted one; convert only those.

Where packets and frames are known to correspond one to one, that is all. Elsewhere (MPEG-4 with packed
B-frames, VP8 with hidden frames, streams that begin between keyframes) the whole video is decoded once
to count its frames before the plan is asked. Either way the result equals decoding everything in
sequence.

A video found to be damaged raises `DecodeError`, also when some of its frames could be had: frames from
the first half of an action are not a sample of the action. Damage behind the last wanted frame is not
looked for; `probe` looks at every frame.

FFmpeg is silent here because PyAV's logging is off unless somebody switches it on.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt
import torch
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from vireo.errors import DecodeError

Int64 = npt.NDArray[np.int64]
Plan = Callable[[int], npt.NDArray[np.int64]]
"""From a video's frame count F (at least 1) to the wanted frames: sorted indices in [0, F), at least one.
It may be asked more than once and must answer the same count the same way."""

MAX_SIDE = 16384
MAX_PIXELS = 1 << 28
_HELD_PACKETS = 64 << 20  # bytes of packets kept between demuxing and decoding; larger files are read twice
_HELD_FRAMES = 128 << 20  # bytes of decoded frames kept while counting; longer videos are decoded twice

# One packet, one frame, whenever all packets have time stamps. Not VP8 (hidden frames have packets of their own),
# not MPEG-4 (packed B-frames, frames that are not coded).
_ONE_TO_ONE = frozenset({"h264", "hevc", "vp9", "av1", "mjpeg"})


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Facts of a video."""

    path: str
    frame_count: int
    """Frames that decode, counted."""
    fps: float
    """Average frame rate, 1/s; 0 = unknown."""
    width: int
    """As shown, after rotation, pixels."""
    height: int
    """As shown, after rotation, pixels."""
    rotation: int
    """Quarter turns of the stored picture, counterclockwise, degrees: 0, 90, 180 or 270."""
    codec: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """Decoded frames of one clip."""

    data: Tensor
    """(T, 3, H, W) uint8 RGB whose memory is T, H, W, 3 (channels last)."""
    indices: Int64
    """(T,) their positions in the video or its cut, sorted; a frame may occur more than once."""
    frame_count: int
    """F, frames of the video or its cut."""
    path: str

    def __post_init__(self) -> None:
        data, indices = self.data, self.indices
        if data.dtype != torch.uint8 or data.ndim != 4 or data.shape[1] != 3:
            raise ValueError(f"frames must be (T, 3, H, W) uint8, not {tuple(data.shape)} {data.dtype}")
        if not data.permute(0, 2, 3, 1).is_contiguous():
            raise ValueError("the memory of frames must be T, H, W, 3")
        _check_indices(indices, self.frame_count)
        if len(indices) != len(data):
            raise ValueError(f"{len(indices)} indices for {len(data)} frames")


def decoder_name() -> str:
    """The decoder and its version, for the record of a result."""
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"PyAV {av.__version__} (libavcodec {codec}), sequential"


def probe(path: str | Path) -> VideoInfo:
    """Decode a whole video, without converting it, and report what it is.

    Raises:
        DecodeError: it can't be read, or is damaged.
    """
    with _Video(path) as video:
        count = 0
        first: VideoFrame | None = None
        for frame in video.frames(video.packets()):
            first = first or frame
            count += 1
        if first is None:
            raise DecodeError(path, "no frame can be decoded")
        turns = _quarter_turns(first)
        width, height = (first.height, first.width) if turns % 2 else (first.width, first.height)
        return VideoInfo(
            path=str(path),
            frame_count=count,
            fps=float(video.fps or 0),
            width=width,
            height=height,
            rotation=90 * turns,
            codec=video.codec,
        )


def read_frames(path: str | Path, plan: Plan, *, start: float | None = None, end: float | None = None) -> Frames:
    """Decode the frames of a video that a plan asks for.

    A cut holds the frames with start <= t < end, where t is a frame's time after the video's first frame,
    by the container's time stamps (by frame number and average rate where it has none, or none in order).

    Args:
        path: a regular file in any format that FFmpeg reads.
        plan: called with the number of frames F of the cut, gives the wanted indices in [0, F).
        start: beginning of the cut, seconds; None = the video's.
        end: end of the cut, seconds; None = the video's.

    Returns:
        Upright RGB frames. Where a video changes its size, they all have that of the first frame wanted.

    Raises:
        DecodeError: the file can't be read, is damaged, or has no frame in the cut.
    """
    with _Video(path) as video:
        index = video.index
        if index.one_to_one:
            try:
                return _read_indexed(video, index, plan, start, end)
            except _NotAsIndexedError:
                pass
    with _Video(path) as video:
        return _read_counting(video, plan, start, end)


class _NotAsIndexedError(Exception):
    """Decoding gave other frames than the packets announced."""


@dataclass(frozen=True, eq=False)
class _Index:
    """What demuxing alone tells."""

    one_to_one: bool
    """Whether frame i has time stamp pts[i], to the best of this knowledge."""
    pts: Int64
    """Time stamps of the frames, in order of presentation; empty unless one_to_one."""
    keys: Int64
    """Those of them that belong to keyframes, sorted."""


class _Video:
    """An open file and its first video stream, with one decoder of one thread.

    Raises:
        DecodeError: it is no file that holds a video.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        self._held: list[Packet[VideoStream]] | None = None
        self._used = False
        self._container, self._stream = _open(self.path)

    def __enter__(self) -> _Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._held = None
        self._container.close()

    @property
    def codec(self) -> str:
        return str(self._stream.codec_context.name)

    @property
    def fps(self) -> Fraction | None:
        return self._stream.average_rate or self._stream.guessed_rate

    @property
    def time_base(self) -> Fraction | None:
        return self._stream.time_base

    @functools.cached_property
    def index(self) -> _Index:
        """Demux the file once, keeping its packets if they are few.

        Raises:
            DecodeError: the file is damaged or cut short.
        """
        pts: list[int | None] = []
        keys: list[int] = []
        held: list[Packet[VideoStream]] | None = []
        size = count = 0
        for packet in self._demux():
            size += packet.size
            if held is not None:
                held.append(packet)
                if size > _HELD_PACKETS:
                    held = None
            if not packet.size:
                count += _is_empty(packet)
                continue
            count += 1
            if packet.is_discard:  # outside the edit list: the decoder reads it and shows nothing
                continue
            pts.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
        self._held = held
        known = [p for p in pts if p is not None]
        self._check_complete(count, max(known, default=0))
        if self.codec not in _ONE_TO_ONE or not pts or len(set(known)) != len(pts):
            return _Index(False, np.empty(0, np.int64), np.empty(0, np.int64))
        return _Index(True, np.sort(np.array(known, dtype=np.int64)), np.sort(np.array(keys, dtype=np.int64)))

    def _check_complete(self, count: int, last_pts: int) -> None:
        """Compare with what the header announces, where it does: many formats just end when they are cut."""
        if count == 0:
            raise DecodeError(self.path, "holds no frames")
        container, stream = self._container, self._stream
        announced = len(stream.index_entries) if "mov" in container.format.name else stream.frames
        if count < announced * 0.95 - 1 and (container.format.name != "avi" or _riff_is_cut(self.path)):
            raise DecodeError(self.path, f"cut short: {count} of {announced} frames are there")
        if "matroska" in container.format.name and self.time_base:
            seconds, there = self._matroska_seconds(), float(last_pts * self.time_base)
            if there < seconds - max(0.5, 0.1 * seconds):
                raise DecodeError(self.path, f"cut short: {there:.1f} of {seconds:.1f} s are there")

    def _matroska_seconds(self) -> float:
        """The video's length by the header; 0 = not said."""
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", self._stream.metadata.get("DURATION", ""))
        if tag:
            hours, minutes, seconds = map(float, tag.groups())
            return hours * 3600 + minutes * 60 + seconds
        whole = self._container.duration  # of the longest stream
        return whole / 1e6 if whole and len(self._container.streams) == 1 else 0.0

    def _demux(self) -> Iterator[Packet[VideoStream]]:
        self._used = True
        with _faults(self.path):
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    raise DecodeError(self.path, "damaged or cut short")
                yield packet

    def packets(self, key: int | None = None) -> Iterator[Packet[VideoStream]]:
        """All packets in file order, or those from the keyframe with time stamp ``key`` on.

        Raises:
            _NotAsIndexedError: the container does not lead to that keyframe.
        """
        if self._held is not None:
            first = 0 if key is None else next(i for i, p in enumerate(self._held) if p.pts == key and p.is_keyframe)
            yield from self._held[first:]
            return
        if self._used:
            self._container.close()
            self._container, self._stream = _open(self.path)
        if key is not None:
            try:
                self._container.seek(key, stream=self._stream, backward=True)
            except (av.error.FFmpegError, OSError):
                raise _NotAsIndexedError from None
        packets = self._demux()
        if key is not None:
            first_packet = next(packets)
            if first_packet.pts != key:
                raise _NotAsIndexedError
            yield first_packet
        yield from packets

    def frames(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """Decode packets.

        Raises:
            DecodeError: FFmpeg reports damage.
        """
        with _faults(self.path):
            for packet in packets:
                for frame in () if _is_empty(packet) else packet.decode():
                    if frame.is_corrupt:
                        raise DecodeError(self.path, "damaged frames")
                    _check_size(self.path, frame.width, frame.height)
                    yield frame


def _open(path: str) -> tuple[InputContainer, VideoStream]:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise DecodeError(path, "no such file" if missing else _plain(error)) from None
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
        raise DecodeError(path, "a folder, not a video" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size == 0:
        raise DecodeError(path, "empty file (0 bytes)")
    try:
        # "file:" and the whitelist: no name with a colon and no playlist reaches beyond this machine's files.
        container = av.open("file:" + path, metadata_errors="replace", options={"protocol_whitelist": "file"})
    except av.error.InvalidDataError:
        raise DecodeError(path, "not a video, or its header is damaged or missing") from None
    except av.error.EOFError:
        raise DecodeError(path, "cut short: it ends before its first frame") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(path, _plain(error)) from None
    try:
        return container, _video_stream(path, container)
    except BaseException:
        container.close()
        raise


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not _is_cover(s)]
    if not streams:
        raise DecodeError(path, "no video stream" + (" (sound only)" if container.streams.audio else ""))
    stream = streams[0]
    context: Any = stream.codec_context
    if context is None:
        raise DecodeError(path, "its header is damaged, or its video format is unknown")
    _check_size(path, context.width, context.height)
    stream.thread_type = "NONE"
    context.thread_count = 1
    return stream


def _is_empty(packet: Packet[VideoStream]) -> bool:
    """Whether a packet says "show the last frame again"; a decoder would take it for the end of the stream."""
    return packet.size == 0 and packet.dts is not None


def _riff_is_cut(path: str) -> bool:
    """Whether an AVI is shorter than its first chunk says; frame counts in AVI headers alone are not reliable."""
    with open(path, "rb") as file:
        announced = int.from_bytes(file.read(8)[4:], "little")
        return os.fstat(file.fileno()).st_size < 8 + announced < 0xFFFFFFFF  # a live recorder does not fill it in


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


@contextmanager
def _faults(path: str) -> Iterator[None]:
    """Turn FFmpeg's errors into `DecodeError`."""
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(path, _plain(error)) from None


def _plain(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, av.error.InvalidDataError):
        return "damaged: FFmpeg can't decode part of it"
    return f"can't be read to its end ({getattr(error, 'strerror', None) or error})"


def _check_size(path: str, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DecodeError(path, f"frames of {width}×{height} pixels are larger than any real video's")


def _check_indices(indices: Int64, frame_count: int) -> None:
    ok = indices.ndim == 1 and len(indices) > 0 and np.issubdtype(indices.dtype, np.integer)
    if not (ok and indices[0] >= 0 and indices[-1] < frame_count and np.all(np.diff(indices) >= 0)):
        raise ValueError(f"indices must be a sorted row of integers in [0, {frame_count}), not {indices}")


def _quarter_turns(frame: VideoFrame) -> int:
    return round(frame.rotation / 90) % 4


def _cut(path: str, seconds: npt.NDArray[np.float64], start: float | None, end: float | None) -> tuple[int, int]:
    """First and one past the last frame with start <= t < end; at least one frame."""
    # Times are rounded on their way here: a frame a microsecond off is at that time.
    first = 0 if start is None else int(np.searchsorted(seconds, start - 1e-6, side="left"))
    last = len(seconds) if end is None else int(np.searchsorted(seconds, end - 1e-6, side="left"))
    if last <= first:
        raise DecodeError(
            path,
            f"no frame between {start or 0:g} and {'its end' if end is None else f'{end:g}'} s "
            f"(its last frame is at {seconds[-1]:.2f} s)",
        )
    return first, last


def _read_indexed(video: _Video, index: _Index, plan: Plan, start: float | None, end: float | None) -> Frames:
    seconds = (index.pts - index.pts[0]) * float(video.time_base or 1)
    first, last = _cut(video.path, seconds, start, end)
    indices = plan(last - first)
    _check_indices(indices, last - first)
    wanted = np.unique(indices) + first
    # A late cut is decoded from the last keyframe before it; whole videos from their beginning.
    key: int | None = None
    if first and (at := int(np.searchsorted(index.keys, index.pts[wanted[0]], side="right"))) > 1:
        key = int(index.keys[at - 1])
    position = 0 if key is None else int(np.searchsorted(index.pts, key))
    pictures = _Pictures(len(wanted))
    for frame in video.frames(video.packets(key)):
        if key is not None:
            if frame.pts is not None and frame.pts < key:  # leading frames of an open group of pictures
                continue
            # Some streams refresh step by step and flag keyframes that can't be decoded alone.
            if frame.pts == key and frame.pict_type != PictureType.I:
                raise _NotAsIndexedError
            key = None
        if position >= len(index.pts) or frame.pts != index.pts[position]:
            raise _NotAsIndexedError
        if position == wanted[len(pictures)]:
            pictures.add(frame)
            if len(pictures) == len(wanted):
                return pictures.arrange(indices, last - first, video.path)
        position += 1
    raise _NotAsIndexedError


def _read_counting(video: _Video, plan: Plan, start: float | None, end: float | None) -> Frames:
    _ = video.index  # demuxing finds files that are cut short
    held: list[VideoFrame] | None = []
    size = 0
    stamps: list[int | None] = []
    for frame in video.frames(video.packets()):
        stamps.append(frame.pts)
        if held is not None:
            held.append(frame)
            size += sum(plane.buffer_size for plane in frame.planes)
            if size > _HELD_FRAMES:
                held = None
    if not stamps:
        raise DecodeError(video.path, "no frame can be decoded")
    first, last = 0, len(stamps)
    if start is not None or end is not None:
        first, last = _cut(video.path, _seconds(video, stamps), start, end)
    indices = plan(last - first)
    _check_indices(indices, last - first)
    wanted = np.unique(indices) + first
    pictures = _Pictures(len(wanted))
    if held is not None:
        for i in wanted:
            pictures.add(held[i])
        return pictures.arrange(indices, last - first, video.path)
    with _Video(video.path) as again:
        for position, frame in enumerate(again.frames(again.packets())):
            if position == wanted[len(pictures)]:
                pictures.add(frame)
                if len(pictures) == len(wanted):
                    return pictures.arrange(indices, last - first, video.path)
    raise DecodeError(video.path, "changed while it was read")


def _seconds(video: _Video, stamps: list[int | None]) -> npt.NDArray[np.float64]:
    known = np.array([s for s in stamps if s is not None], dtype=np.int64)
    if len(known) == len(stamps) and np.all(np.diff(known) > 0) and video.time_base:
        seconds: npt.NDArray[np.float64] = (known - known[0]) * float(video.time_base)
        return seconds
    if not video.fps:
        raise DecodeError(video.path, "has neither time stamps nor a frame rate, so start and end can't be found")
    return np.arange(len(stamps)) / float(video.fps)


class _Pictures:
    """Collects frames as RGB in one (U, H, W, 3) array, upright, all of the first one's size."""

    def __init__(self, count: int) -> None:
        self._count, self._filled, self._size = count, 0, (0, 0)
        self._data: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return self._filled

    def add(self, frame: VideoFrame) -> None:
        if self._data is None:
            self._size = (frame.width, frame.height)
        width, height = self._size
        # threads=1: by default swscale starts threads of its own, which costs more than it saves.
        rgb = frame.reformat(width=width, height=height, format="rgb24", threads=1).to_ndarray()
        upright = np.rot90(rgb, k=_quarter_turns(frame))
        if self._data is None:
            self._data = np.empty((self._count, *upright.shape), dtype=np.uint8)
        if upright.shape != self._data.shape[1:]:  # turned by a quarter in the middle
            upright = np.rot90(upright)
        self._data[self._filled] = upright
        self._filled += 1

    def arrange(self, indices: Int64, frame_count: int, path: str) -> Frames:
        assert self._data is not None and self._filled == self._count
        unique, inverse = np.unique(indices, return_inverse=True)
        data = self._data if len(unique) == len(indices) else self._data[inverse]
        tensor = torch.from_numpy(data).permute(0, 3, 1, 2)
        return Frames(data=tensor, indices=indices.astype(np.int64), frame_count=frame_count, path=path)
