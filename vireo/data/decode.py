"""Videos to frames with PyAV: exact, one thread, only what was asked for, and honest about damage.

How a file is read, in `exact` mode:

    first time   demux it all (cheap) and learn what its packets are for  ─►  index, kept in a cache
    afterwards   no demuxing: read the packets that are needed from where the index says they are

    packets      I  P  b  B  b  P  b  B  b  │ I  P  b  B  b  …       wanted: one frame b
                 ▲  ▲     ▲     ▲  ▲          decoded: from the start of its group of pictures, the
                                              frames others need, and itself; then it stops

Packets are left out only where the format promises that no other frame needs them and where the stream is
unremarkable (`vireo.data.bitstreams`): H.264, HEVC, VP8, VP9, AV1, MJPEG, and MPEG-4 after its first reading has
proved that the short way gives the same. Everything else is decoded in sequence: interlaced video, intra
refresh, streams without time stamps, other formats. Their number of frames is counted once and then known.
Whenever a frame comes out damaged, unexpected or not at all, the video is decoded again in sequence. Either way
the result equals decoding everything in sequence with PyAV, frame for frame and bit for bit.

`keyframe` mode takes the nearest frames at which decoding can begin instead of the frames asked for, and says how
far off they are. It is for a quick look and for training on long videos, not for results: videos of one group of
pictures give one and the same frame.

A video found to be damaged raises `DecodeError`, also when some of its frames could be had: frames from
the first half of an action are not a sample of the action. Damage behind the last wanted frame, and in frames
that were left out, is not looked for; `probe` looks at every frame.

FFmpeg is silent here because PyAV's logging is off unless somebody switches it on.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import av
import av.error
import numpy as np
import numpy.typing as npt
import torch
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from vireo.data import bitstreams
from vireo.data.bitstreams import DROP, HIDDEN, START, UnusualError
from vireo.data.index import Coding, FileKey, Picture, VideoIndex, load_index, store_index
from vireo.errors import DecodeError

Int64 = npt.NDArray[np.int64]
Plan = Callable[[int], npt.NDArray[np.int64]]
"""From a video's frame count F (at least 1) to the wanted frames: sorted indices in [0, F), at least one.
It may be asked more than once and must answer the same count the same way."""
Mode = Literal["exact", "keyframe"]
Backend = Literal["auto", "pyav", "torchcodec"]

MAX_SIDE = 16384
MAX_PIXELS = 1 << 28
_HELD_PACKETS = 64 << 20  # bytes of packets kept between demuxing and decoding; larger files are read twice
_HELD_FRAMES = 128 << 20  # bytes of decoded frames kept while counting; longer videos are decoded twice
_PROOFS = 12  # frames compared before packets of MPEG-4 are left out
_NEVER_SKIPPED: Any = ("new_extradata", "param_change", "palette", "encryption_info")  # side data others depend on


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
    seconds: float
    """From the first frame to the end of the last, s; 0 = unknown."""
    variable_rate: bool
    """Whether frames stay for times that differ by more than a tenth."""
    longest_gop: int
    """Frames of the longest group of pictures: about so many may have to be decoded for one."""
    keyframes: int
    """Frames at which decoding can begin; by the container's word where `fast` is false."""
    fast: bool
    """Whether packets may be left out; otherwise all frames up to the last wanted one are decoded."""


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
    moved: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    """(T,) how many frames after the wanted one each lies (before it: negative); all 0 in exact mode, the default."""
    backend: str = "pyav"
    """What decoded them."""

    def __post_init__(self) -> None:
        data, indices = self.data, self.indices
        if data.dtype != torch.uint8 or data.ndim != 4 or data.shape[1] != 3:
            raise ValueError(f"frames must be (T, 3, H, W) uint8, not {tuple(data.shape)} {data.dtype}")
        if not data.permute(0, 2, 3, 1).is_contiguous():
            raise ValueError("the memory of frames must be T, H, W, 3")
        _check_indices(indices, self.frame_count)
        if len(indices) != len(data):
            raise ValueError(f"{len(indices)} indices for {len(data)} frames")
        if not len(self.moved):
            object.__setattr__(self, "moved", np.zeros(len(indices), np.int64))
        if self.moved.shape != indices.shape:
            raise ValueError(f"{len(self.moved)} distances for {len(data)} frames")


def decoder_name(mode: Mode = "exact", backend: Backend = "auto") -> str:
    """The decoder and its version, for the record of a result.

    Raises:
        MissingDependencyError: `torchcodec` is asked for and is not installed, or does not work.
    """
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    name = f"PyAV {av.__version__} (libavcodec {codec})"
    if backend == "torchcodec":
        from vireo.data.torchcodec import torchcodec_version

        name = f"TorchCodec {torchcodec_version()}, {name} where they differ"
    return f"{name}, {'exact' if mode == 'exact' else 'nearest keyframes'}"


def probe(path: str | Path) -> VideoInfo:
    """Decode a whole video, without converting it, and report what it is.

    Raises:
        DecodeError: it can't be read, or is damaged.
    """
    with _Video(path) as video:
        seen = _Seen()
        for frame in video.frames(video.packets()):
            seen.add(frame)
        if seen.first is None:
            raise DecodeError(path, "no frame can be decoded")
        index = _learn(video, seen)
        store_index(video.key, index)
        turns = _quarter_turns(seen.first.rotation)
        width, height = seen.first.width, seen.first.height
        seconds, steps = _length(index)
        gaps = index.gaps() if index.fast else video.scan.gaps
        return VideoInfo(
            path=str(path),
            frame_count=index.frame_count,
            fps=float(index.fps or 0),
            width=height if turns % 2 else width,
            height=width if turns % 2 else height,
            rotation=90 * turns,
            codec=index.coding.codec,
            seconds=seconds,
            variable_rate=bool(len(steps)) and bool(np.ptp(steps) > max(2, 0.1 * np.median(steps))),
            longest_gop=int(max(gaps, default=index.frame_count)),
            keyframes=len(gaps),
            fast=index.fast,
        )


def read_frames(
    path: str | Path,
    plan: Plan,
    *,
    start: float | None = None,
    end: float | None = None,
    mode: Mode = "exact",
    backend: Backend = "auto",
) -> Frames:
    """Decode the frames of a video that a plan asks for.

    A cut holds the frames with start <= t < end, where t is a frame's time after the video's first frame,
    by the container's time stamps (by frame number and average rate where it has none, or none in order).

    Args:
        path: a regular file in any format that FFmpeg reads.
        plan: called with the number of frames F of the cut, gives the wanted indices in [0, F).
        start: beginning of the cut, seconds; None = the video's.
        end: end of the cut, seconds; None = the video's.
        mode: "exact" gives the frames asked for, equal to decoding everything in sequence. "keyframe" gives the
            nearest frames within the cut at which decoding can begin, which is faster, and says in `Frames.moved`
            how far off they are; a cut without any, and a video that must be decoded in sequence, is read exactly.
        backend: "pyav"; or "torchcodec" for videos whose index is known and fast and where both give the same
            frames, and PyAV for all others (`Frames.backend` says which); "auto" is PyAV, the faster one.

    Returns:
        Upright RGB frames. Where a video changes its size, they all have that of the first frame wanted.

    Raises:
        DecodeError: the file can't be read, is damaged, or has no frame in the cut.
        MissingDependencyError: TorchCodec is asked for and is not installed, or does not work.
    """
    name = os.fspath(path)
    key = FileKey.of(name, _regular(name))
    ask = _Ask(plan, start, end, mode == "keyframe")
    in_sequence = False
    if (index := load_index(key)) is not None:
        try:
            if backend == "torchcodec" and (frames := _read_torchcodec(name, index, ask)) is not None:
                return frames
            return _read_indexed(name, key, index, ask)
        except _NotAsIndexedError:
            in_sequence = True
        except DecodeError:
            pass  # said again below, or the file has changed, or was out of reach for a moment
    elif backend == "torchcodec":
        from vireo.data.torchcodec import torchcodec_version

        torchcodec_version()
    if not in_sequence:
        with _Video(name) as video:
            if video.index.fast:
                try:
                    return _read_scanned(video, ask)
                except _NotAsIndexedError:
                    in_sequence = True
    with _Video(name) as video:
        return _read_counting(video, ask, distrust=in_sequence)


class _NotAsIndexedError(Exception):
    """Decoding gave other frames than the packets announced."""


class _Ask(NamedTuple):
    """What `read_frames` was asked for."""

    plan: Plan
    start: float | None
    end: float | None
    keyframes: bool


class _Choice(NamedTuple):
    """The frames to decode."""

    first: int
    """Position in the video at which the cut begins."""
    wanted: Int64
    """(U,) positions in the video, sorted, without repetition."""
    indices: Int64
    """(T,) positions in the cut."""
    moved: Int64
    """(T,)"""
    frame_count: int
    """F of the cut."""


def _choose(path: str, index: VideoIndex, ask: _Ask) -> _Choice:
    first, last = 0, index.frame_count
    if ask.start is not None or ask.end is not None:
        seconds = index.seconds()
        if seconds is None:
            raise DecodeError(path, "has neither time stamps nor a frame rate, so start and end can't be found")
        first, last = _cut(path, seconds, ask.start, ask.end)
    indices = ask.plan(last - first)
    _check_indices(indices, last - first)
    indices = indices.astype(np.int64)
    moved = np.zeros(len(indices), np.int64)
    if ask.keyframes and index.fast:
        nearest = index.nearest_starts(indices + first, first, last)
        if nearest is not None:
            indices, moved = nearest - first, nearest - first - indices
    return _Choice(first, np.unique(indices) + first, indices, moved, last - first)


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


def _check_indices(indices: Int64, frame_count: int) -> None:
    ok = indices.ndim == 1 and len(indices) > 0 and np.issubdtype(indices.dtype, np.integer)
    if not (ok and indices[0] >= 0 and indices[-1] < frame_count and np.all(np.diff(indices) >= 0)):
        raise ValueError(f"indices must be a sorted row of integers in [0, {frame_count}), not {indices}")


# The ways to read


def _read_indexed(path: str, key: FileKey, index: VideoIndex, ask: _Ask) -> Frames:
    """Read a file whose index is known.

    Raises:
        _NotAsIndexedError: it gives other frames than its index says.
    """
    choice = _choose(path, index, ask)
    pictures = _Pictures(choice)
    if not len(index.offsets):
        with _Video(path) as video:
            if index.fast:
                return _collect(video.context, index, video.packet_getter(), choice, pictures, path)
            return _collect_in_sequence(video, choice, pictures)
    with _opened(path) as file:
        if FileKey.of(path, os.fstat(file)) != key:
            raise DecodeError(path, "changed while it was read")
        return _collect(_new_context(index.coding), index, _packet_reader(file, index), choice, pictures, path)


def _read_scanned(video: _Video, ask: _Ask) -> Frames:
    """Read a file for the first time, leaving out packets, and keep what was learnt."""
    index = video.index
    choice = _choose(video.path, index, ask)
    pictures = _Pictures(choice)
    frames = _collect(video.context, index, video.packet_getter(), choice, pictures, video.path)
    store_index(video.key, _with_picture(index, pictures.looks))
    return frames


def _read_counting(video: _Video, ask: _Ask, *, distrust: bool) -> Frames:
    """Decode everything, then ask for the frames, and keep what was learnt."""
    seen, held, size = _Seen(), [], 0
    holding = True
    for frame in video.frames(video.packets()):
        seen.add(frame)
        if holding:
            held.append(frame)
            size += sum(plane.buffer_size for plane in frame.planes)
            if size > _HELD_FRAMES:
                holding, held = False, []
    if not seen.count:
        raise DecodeError(video.path, "no frame can be decoded")
    index = _learn(video, seen, distrust=distrust)
    choice = _choose(video.path, index, ask)
    pictures = _Pictures(choice)
    if holding:
        for position in choice.wanted:
            pictures.add(held[position])
        frames = pictures.arrange(video.path)
    else:
        with _Video(video.path) as again:
            try:
                frames = _collect_in_sequence(again, choice, pictures)
            except _NotAsIndexedError:
                raise DecodeError(video.path, "changed while it was read") from None
    store_index(video.key, index)
    return frames


def _collect_in_sequence(video: _Video, choice: _Choice, pictures: _Pictures) -> Frames:
    wanted = choice.wanted.tolist()
    for position, frame in enumerate(video.frames(video.packets())):
        if position == wanted[len(pictures)]:
            pictures.add(frame)
            if len(pictures) == len(wanted):
                return pictures.arrange(video.path)
    raise _NotAsIndexedError


def _collect(
    context: VideoCodecContext,
    index: VideoIndex,
    packet: Callable[[int], Packet[Any]],
    choice: _Choice,
    pictures: _Pictures,
    path: str,
) -> Frames:
    try:
        for frame in _decode(context, index, packet, choice.wanted):
            pictures.add(frame, index.picture)
    except (av.error.FFmpegError, OSError, ValueError):
        raise _NotAsIndexedError from None
    return pictures.arrange(path)


def _decode(
    context: VideoCodecContext, index: VideoIndex, packet: Callable[[int], Packet[Any]], wanted: Int64
) -> Iterator[VideoFrame]:
    """Decode some frames of a video and as few others as possible.

    Args:
        context: a decoder at its beginning.
        index: of a fast video.
        packet: gives packet k, asked for in ascending order.
        wanted: (W,) frames, sorted, without repetition.

    Raises:
        _NotAsIndexedError: the frames are not those that the index says, or damaged.
    """
    left = set(wanted.tolist())
    for turn, (first, last) in enumerate(index.stretches(wanted)):
        if turn:
            context.flush_buffers()
        context.reorder_depth = index.coding.delay  # as if the decoder had seen the beginning
        ranks = index.ranks[first : last + 1].tolist()
        floor = max(ranks[0], 0)
        due, newest = 0, -1
        # All that is decoded is also fetched and looked at, the last frames too: one that others were predicted from
        # may be damaged where they are not. FFmpeg mends damage with pixels of frames that may be left out here.
        for number in [*index.needed(first, last, wanted), None]:
            if number is None:
                frames = context.decode(None)
            else:
                item = packet(number)
                item.pts = number  # comes back as the time stamp of the frame
                frames = context.decode(item)
                due += ranks[number - first] >= floor
            for frame in frames:
                at = frame.pts
                if at is None or not first <= at <= last:
                    raise _NotAsIndexedError
                rank = ranks[at - first]
                if rank < floor:  # not shown, or shown before the start and without what it needs
                    continue
                if frame.is_corrupt or rank <= newest:
                    raise _NotAsIndexedError
                due, newest = due - 1, rank
                if rank in left:
                    left.remove(rank)
                    yield frame
        if due:
            raise _NotAsIndexedError
    if left:
        raise _NotAsIndexedError


def _new_context(coding: Coding) -> VideoCodecContext:
    """A decoder that knows what the container would have told it."""
    context: Any = av.CodecContext.create(coding.codec, "r")
    if coding.extradata:
        context.extradata = coding.extradata
    context.codec_tag = coding.tag
    context.width, context.height = coding.width, coding.height
    context.bits_per_coded_sample = coding.bits
    context.color_range, context.color_primaries, context.color_trc, context.colorspace = coding.colors
    context.thread_type = "NONE"
    context.thread_count = 1
    return context  # type: ignore[no-any-return]


def _packet_reader(file: int, index: VideoIndex) -> Callable[[int], Packet[Any]]:
    def read(number: int) -> Packet[Any]:
        size = int(index.sizes[number])
        packet: Packet[Any] = Packet(size)
        if os.preadv(file, [packet], int(index.offsets[number])) != size:
            raise _NotAsIndexedError
        return packet

    return read


def _read_torchcodec(path: str, index: VideoIndex, ask: _Ask) -> Frames | None:
    """Read with TorchCodec, or None where it would not give the frames that PyAV gives."""
    from vireo.data.torchcodec import read_positions, torchcodec_version

    torchcodec_version()
    if not index.fast or index.picture is None or ask.keyframes:
        return None
    choice = _choose(path, index, ask)
    data = read_positions(path, choice.indices + choice.first, index)
    if data is None:
        return None
    return _arrange(data.numpy(), choice, path, "torchcodec")


# Learning


class _Seen:
    """What decoding everything in sequence shows of a video, without keeping its frames."""

    def __init__(self) -> None:
        self.count = 0
        self.first: VideoFrame | None = None
        self.looks: set[Picture] = set()
        self.stamps: list[int | None] = []
        self.kinds: list[int] = []
        self.samples: dict[int, VideoFrame] = {}
        self._every = 1

    def add(self, frame: VideoFrame) -> None:
        self.first = self.first or frame
        if len(self.looks) < 2:
            self.looks.add(_look(frame))
        self.stamps.append(frame.pts)
        self.kinds.append(int(frame.pict_type))
        if self.count % self._every == 0:
            self.samples[self.count] = frame
            if len(self.samples) > _PROOFS:
                # Odd steps: frames that are left out often come at every second or fourth place.
                self._every = 2 * self._every + 1
                self.samples = {i: kept for i, kept in self.samples.items() if i % self._every == 0}
        self.count += 1


def _learn(video: _Video, seen: _Seen, *, distrust: bool = False) -> VideoIndex:
    """The index of a video that was decoded from its beginning to its end."""
    index = video.index
    if index.fast:
        if not distrust and index.frame_count == seen.count and index.pts.tolist() == seen.stamps:
            return _with_picture(index, seen.looks)
        index = _slowed(index, "its frames are not those that its packets announce")
    known = np.array([s for s in seen.stamps if s is not None], dtype=np.int64)
    ordered = len(known) == seen.count and bool(np.all(np.diff(known) > 0)) and video.time_base is not None
    index = dataclasses.replace(index, frame_count=seen.count, pts=known if ordered else np.empty(0, np.int64))
    if index.coding.codec == "mpeg4" and not distrust and len(seen.looks) == 1:
        candidate = _mpeg4_index(video, index, seen)
        if candidate is not None and _is_proved(video, candidate, seen.samples):
            return candidate
    return index


def _with_picture(index: VideoIndex, looks: set[Picture]) -> VideoIndex:
    """With what all its frames look like; without that the container must be asked each time."""
    if len(looks) == 1:
        return dataclasses.replace(index, picture=next(iter(looks)))
    empty = np.empty(0, np.int64)
    return dataclasses.replace(index, picture=None, offsets=empty, sizes=empty)


def _slowed(index: VideoIndex, reason: str) -> VideoIndex:
    empty = np.empty(0, np.int64)
    return dataclasses.replace(
        index, slow=reason, order=empty, roles=empty.astype(np.uint8), offsets=empty, sizes=empty, pts=empty
    )


def _mpeg4_index(video: _Video, index: VideoIndex, seen: _Seen) -> VideoIndex | None:
    """How an MPEG-4 video could be read with packets left out, or None."""
    held, offsets = video.held, video.scan.offsets
    if held is None or len(offsets) != len(held):
        return None
    try:
        units = bitstreams.mpeg4_units([bytes(packet) for packet in held], index.coding.extradata)
    except UnusualError:
        return None
    kinds = [unit.kind for unit in units]
    order = bitstreams.mpeg4_order(kinds)
    # FFmpeg counts picture types from 1, in the same order.
    if not kinds or kinds[0] != 0 or [kinds[i] + 1 for i in order] != seen.kinds:
        return None
    roles = [START * (kind == 0) | DROP * (kind == 2) for kind in kinds]
    return dataclasses.replace(
        index,
        slow="",
        picture=next(iter(seen.looks)),
        order=np.array(order, dtype=np.int64),
        roles=np.array(roles, dtype=np.uint8),
        offsets=np.array([offsets[unit.packet] + unit.begin for unit in units], dtype=np.int64),
        sizes=np.array([unit.end - unit.begin for unit in units], dtype=np.int64),
    )


def _is_proved(video: _Video, index: VideoIndex, samples: dict[int, VideoFrame]) -> bool:
    """Whether frames read by an index are those that decoding in sequence gave."""
    try:
        index.check(video.key.size)
        with _opened(video.path) as file:
            wanted = np.array(sorted(samples), dtype=np.int64)
            decoded = _decode(_new_context(index.coding), index, _packet_reader(file, index), wanted)
            return all(
                np.array_equal(frame.to_ndarray(), samples[position].to_ndarray())
                for position, frame in zip(wanted.tolist(), decoded, strict=True)
            )
    except (_NotAsIndexedError, DecodeError, av.error.FFmpegError, OSError, ValueError):
        return False


def _length(index: VideoIndex) -> tuple[float, Int64]:
    """A video's length, s, and the steps between its time stamps, where it has some."""
    if len(index.pts) > 1 and index.time_base:
        steps = np.diff(index.pts)
        return float((index.pts[-1] - index.pts[0] + np.median(steps)) * float(index.time_base)), steps
    return (index.frame_count / float(index.fps) if index.fps else 0.0), np.empty(0, np.int64)


class _Scan:
    """What demuxing tells of a video, packet by packet."""

    def __init__(self, codec: str, extradata: bytes) -> None:
        self._reader: bitstreams.Reader | None = None
        self._slow = ""
        try:
            self._reader = bitstreams.reader(codec, extradata)
            if self._reader is None:
                self._slow = f"{codec} is decoded in sequence"
        except (UnusualError, IndexError) as error:
            self._slow = _why(error)
        self._pts: list[int | None] = []
        self._hidden: list[bool] = []
        self._keys: list[bool] = []
        self._roles: list[int] = []
        self._layers: list[int] = []
        self._sizes: list[int] = []
        self._offsets: list[int] | None = []
        self.has_empty = False

    def add(self, packet: Packet[VideoStream], file: int) -> None:
        """A packet that is not empty."""
        self._pts.append(packet.pts)
        self._hidden.append(packet.is_discard)  # outside the edit list: the decoder reads it and shows nothing
        self._keys.append(packet.is_keyframe)
        self._sizes.append(packet.size)
        data = bytes(packet)
        if self._reader is not None and not self._slow:
            try:
                self._roles.append(self._reader.role(data))
                self._layers.append(self._reader.layer)
            except (UnusualError, IndexError) as error:
                self._slow = _why(error)
            if any(packet.has_sidedata(kind) for kind in _NEVER_SKIPPED):
                self._slow = "its parameters change on the way"
        if self._offsets is not None:
            at = _place(file, packet.pos, data)
            if at is None:
                self._offsets = None
            else:
                self._offsets.append(at)

    @property
    def count(self) -> int:
        return len(self._pts)

    @property
    def offsets(self) -> list[int]:
        """Where each packet begins in the file, bytes; none = they are not there in one piece."""
        return self._offsets or []

    @property
    def gaps(self) -> list[int]:
        """Packets from each keyframe to the next, by the container's word."""
        keys = [i for i, key in enumerate(self._keys) if key]
        return [b - a for a, b in zip(keys, [*keys[1:], self.count], strict=True)]

    @property
    def last_pts(self) -> int:
        return max((p for p in self._pts if p is not None), default=0)

    def index(self, context: Any, time_base: Fraction | None, fps: Fraction | None) -> VideoIndex:
        """What is known before anything is decoded."""
        empty = np.empty(0, np.int64)
        tag = _tag(context)
        coding = Coding(
            context.name,
            tag or "",
            context.extradata or b"",
            context.width,
            context.height,
            context.bits_per_coded_sample,
            context.reorder_depth,
            (context.color_range, context.color_primaries, context.color_trc, context.colorspace),
        )
        index = VideoIndex(
            coding=coding,
            picture=None,
            time_base=time_base,
            fps=fps,
            frame_count=0,
            pts=empty,
            slow=self._slow or self._trouble(coding),
            order=empty,
            roles=empty.astype(np.uint8),
            offsets=empty,
            sizes=empty,
        )
        if index.slow:
            return index
        pts = np.array(self._pts, dtype=np.int64)
        roles = np.array(self._roles, dtype=np.uint8)
        if self._reader is not None and (highest := self._reader.droppable_layer()) is not None:
            roles[np.array(self._layers) < highest] &= ~np.uint8(DROP)
        order = np.argsort(pts)
        order = order[~np.array(self._hidden)[order] & ((roles[order] & HIDDEN) == 0)]
        direct = self._offsets is not None and tag is not None
        return dataclasses.replace(
            index,
            frame_count=len(order),
            pts=pts[order],
            order=order,
            roles=roles,
            offsets=np.array(self._offsets, dtype=np.int64) if direct else empty,
            sizes=np.array(self._sizes, dtype=np.int64) if direct else empty,
        )

    def _trouble(self, coding: Coding) -> str:
        """Why packets must not be left out, beyond what each of them says."""
        if self.has_empty:
            return "some of its frames are repeated without being stored"
        if None in self._pts or len(set(self._pts)) != len(self._pts):
            return "its time stamps are missing or not unique"
        if not self.count or not self._roles[0] & START:
            return "it begins in the middle of a group of pictures"
        if all(hidden or role & HIDDEN for hidden, role in zip(self._hidden, self._roles, strict=True)):
            return "none of its frames is shown"
        ranks = np.empty(self.count, np.int64)
        ranks[np.argsort(np.array(self._pts, dtype=np.int64))] = np.arange(self.count)
        if coding.codec == "h264" and int(np.max(np.arange(self.count) - ranks)) > coding.delay:
            return "it announces fewer reordered frames than it has"  # FFmpeg then drops some
        return ""


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, UnusualError) else "its headers are damaged"


def _tag(context: Any) -> str | None:
    try:
        tag: str = context.codec_tag
    except UnicodeDecodeError:
        return None
    return tag if len(tag) == 4 else None


def _place(file: int, about: int | None, data: bytes) -> int | None:
    """Where a packet's bytes lie in the file: at its position or right behind a header of its own."""
    if about is None or about < 0:
        return None
    found = os.pread(file, len(data) + 64, about).find(data)
    return None if found < 0 else about + found


class _Video:
    """An open file and its first video stream, with one decoder of one thread.

    Raises:
        DecodeError: it is no file that holds a video.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        self.held: list[Packet[VideoStream]] | None = None
        self._used = False
        self.key = FileKey.of(self.path, _regular(self.path))
        self._container, self._stream = _open(self.path)

    def __enter__(self) -> _Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.held = None
        self._container.close()

    @property
    def context(self) -> VideoCodecContext:
        return self._stream.codec_context

    @property
    def codec(self) -> str:
        return str(self.context.name)

    @property
    def fps(self) -> Fraction | None:
        return self._stream.average_rate or self._stream.guessed_rate

    @property
    def time_base(self) -> Fraction | None:
        return self._stream.time_base

    @functools.cached_property
    def scan(self) -> _Scan:
        """Demux the file once, keeping its packets if they are few.

        Raises:
            DecodeError: the file is damaged or cut short.
        """
        scan = _Scan(self.codec, self.context.extradata or b"")
        held: list[Packet[VideoStream]] | None = []
        size = repeated = 0
        with _opened(self.path) as file:
            for packet in self._demux():
                if not packet.size:
                    repeated += _is_repeat(packet)
                    continue
                scan.add(packet, file)
                size += packet.size
                if held is not None:
                    held.append(packet)
                    if size > _HELD_PACKETS:
                        held = None
        scan.has_empty = repeated > 0
        self._check_complete(scan.count + repeated, scan.last_pts)
        self.held = held
        return scan

    @functools.cached_property
    def index(self) -> VideoIndex:
        """What is known before anything is decoded.

        Raises:
            DecodeError: the file is damaged or cut short.
        """
        return self.scan.index(self.context, self.time_base, self.fps)

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

    def packets(self) -> Iterator[Packet[VideoStream]]:
        """All packets in the order of the file, and an empty one that ends the stream."""
        _ = self.scan  # finds files that are cut short
        if self.held is not None and not self.scan.has_empty:
            yield from self.held
            yield cast("Packet[VideoStream]", Packet())
            return
        self._container.close()
        self._container, self._stream = _open(self.path)
        yield from self._demux()

    def packet_getter(self) -> Callable[[int], Packet[VideoStream]]:
        """Gives packet k, asked for in ascending order."""
        if self.held is not None:
            return self.held.__getitem__
        if self._used:
            self._container.close()
            self._container, self._stream = _open(self.path)
        packets = enumerate(packet for packet in self._demux() if packet.size)

        def get(number: int) -> Packet[VideoStream]:
            for at, packet in packets:
                if at == number:
                    return packet
            raise _NotAsIndexedError

        return get

    def frames(self, packets: Iterable[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """Decode packets.

        Raises:
            DecodeError: FFmpeg reports damage.
        """
        with _faults(self.path):
            for packet in packets:
                for frame in () if _is_repeat(packet) else self.context.decode(packet if packet.size else None):
                    if frame.is_corrupt:
                        raise DecodeError(self.path, "damaged frames")
                    _check_size(self.path, frame.width, frame.height)
                    yield frame


def _regular(path: str) -> os.stat_result:
    """The status of a file that can be read like a video."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise DecodeError(path, "no such file" if missing else _plain(error)) from None
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
        raise DecodeError(path, "a folder, not a video" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size == 0:
        raise DecodeError(path, "empty file (0 bytes)")
    return status


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise DecodeError(path, _plain(error)) from None
    try:
        yield file
    finally:
        os.close(file)


def _open(path: str) -> tuple[InputContainer, VideoStream]:
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


def _is_repeat(packet: Packet[Any]) -> bool:
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


# Pictures


def _look(frame: VideoFrame) -> Picture:
    return Picture(
        frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range), frame.rotation
    )


def _quarter_turns(rotation: int) -> int:
    return round(rotation / 90) % 4


class _Pictures:
    """Collects frames as RGB in one (T, H, W, 3) array, upright, all of the first one's size."""

    def __init__(self, choice: _Choice) -> None:
        self.looks: set[Picture] = set()
        self._choice, self._filled, self._size = choice, 0, (0, 0)
        # A frame that is wanted several times has neighbouring places.
        self._places = [*np.searchsorted(choice.indices, choice.wanted - choice.first).tolist(), len(choice.indices)]
        self._data: npt.NDArray[np.uint8] | None = None
        self._reformatter = VideoReformatter()

    def __len__(self) -> int:
        return self._filled

    def add(self, frame: VideoFrame, expected: Picture | None = None) -> None:
        """Convert the next frame wanted.

        Args:
            frame: as decoded.
            expected: what the container's frames look like, where this one does not come from the container.

        Raises:
            _NotAsIndexedError: it looks different.
        """
        look = _look(frame)
        if expected is not None:
            if look.rotation == 0:  # the container's flag, which frames made without it don't carry
                look = look._replace(rotation=expected.rotation)
            if look != expected:
                raise _NotAsIndexedError
        self.looks.add(look)
        if self._data is None:
            self._size = (frame.width, frame.height)
        width, height = self._size
        # threads=1: by default swscale starts threads of its own, which costs more than it saves.
        rgb: Any = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        turns = _quarter_turns(look.rotation)
        shape = (width, height) if turns % 2 else (height, width)
        if self._data is None:
            self._data = np.empty((len(self._choice.indices), *shape, 3), dtype=np.uint8)
        first, last = self._places[self._filled : self._filled + 2]
        if shape != self._data.shape[1:3]:
            turns += 1  # turned by a quarter in the middle
        _turn_into(self._data[first], rgb, turns)
        self._data[first + 1 : last] = self._data[first]
        self._filled += 1

    def arrange(self, path: str) -> Frames:
        assert self._data is not None and self._filled == len(self._choice.wanted)
        return _arrange(self._data, self._choice, path, "pyav")


def _turn_into(target: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8], turns: int) -> None:
    """Write an (H, W, 3) image, turned counterclockwise by some quarters, into an array of its own size."""
    # Copying the view of np.rot90 in one go takes three to twenty times as long.
    if turns % 4 == 0:
        target[...] = image
    elif turns % 4 == 2:
        torch.from_numpy(target).copy_(torch.from_numpy(image).flip(0, 1))
    else:
        turned = np.rot90(image, turns)
        for channel in range(3):
            target[..., channel] = turned[..., channel]


def _arrange(data: npt.NDArray[np.uint8], choice: _Choice, path: str, backend: str) -> Frames:
    """Frames from (T, H, W, 3) pictures."""
    return Frames(
        data=torch.from_numpy(data).permute(0, 3, 1, 2),
        indices=choice.indices,
        frame_count=choice.frame_count,
        path=path,
        moved=choice.moved,
        backend=backend,
    )
