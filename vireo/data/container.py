"""An open video file: its packets, its frames, and what is wrong with it in plain words.

What a file is allowed to do is decided here. It is a regular file; it opens no other file (no playlists, no lists of
pictures) and no connection; its frames have a size that a real video can have, which FFmpeg checks before it takes
memory for them; and one thread decodes it. FFmpeg is silent because PyAV's logging is off unless somebody switches it
on.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vireo.data import bitstreams
from vireo.data.bitstreams import DROP, HIDDEN, START, UnusualError
from vireo.data.images import MAX_PIXELS
from vireo.data.index import Coding, FileKey, NotAsIndexedError, VideoIndex
from vireo.data.pictures import check_size
from vireo.errors import DecodeError

_HELD_PACKETS = 64 << 20  # bytes of packets kept between demuxing and decoding; larger files are read twice
_NEVER_SKIPPED: Any = ("new_extradata", "param_change", "palette", "encryption_info")  # side data others depend on
_REACHING = """
    avisynth concat concatf dash dvdvideo hls image2 imf lavfi mlv rtp rtsp sap sdp vapoursynth webm_dash_manifest
"""  # formats that open other files or connections than the file given; some of them are waited for for ever
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(sorted(av.formats_available.difference(_REACHING.split()))),
    "max_pixels": str(2 * MAX_PIXELS),  # of coded frames, whose sides are rounded up
}


class Video:
    """An open file and its first video stream, with one decoder of one thread.

    Raises:
        DecodeError: it is no file that holds a video.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        # All packets, once `scan` has seen that they are few.
        self.held: list[Packet[VideoStream]] | None = None
        self._used = False
        self.key = FileKey.of(self.path, regular_file(self.path))
        self._container, self._stream = open_video(self.path)

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.held = None
        self._container.close()

    @property
    def context(self) -> VideoCodecContext:
        """The decoder."""
        return self._stream.codec_context

    @property
    def codec(self) -> str:
        """FFmpeg's name of the decoder."""
        return str(self.context.name)

    @property
    def fps(self) -> Fraction | None:
        """Average frame rate, 1/s."""
        return self._stream.average_rate or self._stream.guessed_rate

    @property
    def time_base(self) -> Fraction | None:
        """Of its time stamps, s."""
        return self._stream.time_base

    @functools.cached_property
    def scan(self) -> Scan:
        """Demux the file once, keeping its packets if they are few.

        Raises:
            DecodeError: the file is damaged or cut short.
        """
        scan = Scan(self.codec, self.context.extradata or b"")
        held: list[Packet[VideoStream]] | None = []
        size = repeated = 0
        with opened_file(self.path) as file:
            for packet in self._demux():
                if not packet.size:
                    repeated += is_repeat(packet)
                    continue
                scan.add(packet, file)
                size += packet.size
                if held is not None:
                    held.append(packet)
                    if size > _HELD_PACKETS:
                        held = None
        scan.has_empty = repeated > 0
        check_complete(self.path, self._container, self._stream, scan.count + repeated, scan.last_pts)
        self.held = held
        return scan

    @functools.cached_property
    def index(self) -> VideoIndex:
        """What is known before anything is decoded.

        Raises:
            DecodeError: the file is damaged or cut short.
        """
        return self.scan.index(self.context, self.time_base, self.fps)

    def _demux(self) -> Iterator[Packet[VideoStream]]:
        self._used = True
        with faults(self.path):
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
        self._container, self._stream = open_video(self.path)
        yield from self._demux()

    def packet_getter(self) -> Callable[[int], Packet[VideoStream]]:
        """Gives packet k, asked for in ascending order."""
        if self.held is not None:
            return self.held.__getitem__
        if self._used:
            self._container.close()
            self._container, self._stream = open_video(self.path)
        packets = enumerate(packet for packet in self._demux() if packet.size)

        def get(number: int) -> Packet[VideoStream]:
            for at, packet in packets:
                if at == number:
                    return packet
            raise NotAsIndexedError

        return get

    def frames(self, packets: Iterable[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """Decode packets.

        Raises:
            DecodeError: FFmpeg reports damage.
        """
        with faults(self.path):
            for packet in packets:
                for frame in () if is_repeat(packet) else self.context.decode(packet if packet.size else None):
                    if frame.is_corrupt:
                        raise DecodeError(self.path, "damaged frames")
                    check_size(self.path, frame.width, frame.height)
                    yield frame


def check_complete(
    path: str, container: InputContainer, stream: VideoStream, count: int, last_pts: int, *, is_file: bool = True
) -> None:
    """Compare what was read with what the header announces, where it does: many formats just end when they are cut.

    Args:
        path: for errors.
        container: read to its end.
        stream: its video.
        count: packets of it that hold a frame, or repeat one. Not frames: those before an edit list's cut aren't shown.
        last_pts: the highest time stamp.
        is_file: whether ``path`` can be opened.

    Raises:
        DecodeError: something is missing.
    """
    if count == 0:
        raise DecodeError(path, "holds no frames")
    kind = container.format.name
    announced = len(stream.index_entries) if "mov" in kind else stream.frames
    if count < announced * 0.95 - 1 and (kind != "avi" or (is_file and _riff_is_cut(path))):
        raise DecodeError(path, f"cut short: {count} of {announced} frames are there")
    if "matroska" in kind and stream.time_base:
        seconds, there = float(matroska_seconds(container, stream)), float(last_pts * stream.time_base)
        if there < seconds - max(0.5, 0.1 * seconds):
            raise DecodeError(path, f"cut short: {there:.1f} of {seconds:.1f} s are there")


def matroska_seconds(container: InputContainer, stream: VideoStream) -> Fraction:
    """The length of a Matroska's video by its header, s; 0 = not said."""
    tag = re.fullmatch(r"(\d{1,9}):(\d{1,9}):(\d{1,9}(?:\.\d{1,9})?)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])
    whole = container.duration  # of the longest stream
    return Fraction(whole, av.time_base) if whole and len(container.streams) == 1 else Fraction(0)


def regular_file(path: str) -> os.stat_result:
    """The status of a file that can be read like a video.

    Raises:
        DecodeError: it is none, is empty, or isn't there.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise DecodeError(path, "no such file" if missing else _plain(error, "can't be read")) from None
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
        raise DecodeError(path, "a folder, not a video" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size == 0:
        raise DecodeError(path, "empty file (0 bytes)")
    return status


@contextmanager
def opened_file(path: str) -> Iterator[int]:
    """A file's descriptor, for as long as the block runs.

    Raises:
        DecodeError: it can't be opened.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise DecodeError(path, _plain(error, "can't be read")) from None
    try:
        yield file
    finally:
        os.close(file)


def open_video(path: str) -> tuple[InputContainer, VideoStream]:
    """Open a regular file, and find its first video stream.

    Raises:
        DecodeError: it is no file that holds a video.
    """
    try:
        # "file:": names may hold colons.
        container = av.open("file:" + path, metadata_errors="replace", options=_OPTIONS)
    except (av.error.InvalidDataError, av.error.ArgumentError):  # the latter also of formats that are not allowed
        raise DecodeError(path, "not a video, or its header is damaged or missing") from None
    except av.error.EOFError:
        raise DecodeError(path, "cut short: it ends before its first frame") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(path, _plain(error, "can't be read")) from None
    try:
        return container, _video_stream(path, container)
    except BaseException:
        container.close()
        raise


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not _is_cover(s)]
    if not streams:
        why = "sound only" if container.streams.audio else "its header may be damaged"
        raise DecodeError(path, f"no video stream ({why})")
    stream = streams[0]
    context: Any = stream.codec_context
    if context is None:
        raise DecodeError(path, "its header is damaged, its format is unknown, or it is encrypted")
    check_size(path, context.width, context.height)
    prepare(stream.codec_context)
    return stream


def prepare(context: VideoCodecContext) -> VideoCodecContext:
    """Set what holds for all decoders, before they are opened."""
    context.thread_type = "NONE"
    context.thread_count = 1
    context.options = {"max_pixels": _OPTIONS["max_pixels"]}
    return context


def is_repeat(packet: Packet[Any]) -> bool:
    """Whether a packet says "show the last frame again"; a decoder would take it for the end of the stream."""
    return packet.size == 0 and packet.dts is not None


def _riff_is_cut(path: str) -> bool:
    """Whether an AVI is shorter than its first chunk says; frame counts in AVI headers alone are not reliable."""
    with opened_file(path) as file, faults(path):
        announced = int.from_bytes(os.pread(file, 8, 0)[4:], "little")
        return os.fstat(file).st_size < 8 + announced < 0xFFFFFFFF  # a live recorder does not fill it in


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


@contextmanager
def faults(path: str) -> Iterator[None]:
    """Turn FFmpeg's errors into `DecodeError`."""
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(path, _plain(error)) from None


def _plain(error: Exception, otherwise: str = "can't be read to its end") -> str:
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, av.error.InvalidDataError):
        return "damaged: FFmpeg can't decode part of it"
    return f"{otherwise} ({getattr(error, 'strerror', None) or error})"


# What its packets say


class Scan:
    """What demuxing tells of a video, packet by packet.

    Args:
        codec: FFmpeg's name of the decoder.
        extradata: the stream's header.
    """

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
        """Whether frames are repeated without being stored."""

    def add(self, packet: Packet[VideoStream], file: int) -> None:
        """Look at the next packet that is not empty, of the open file."""
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
        """Packets that are not empty."""
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
        """The highest time stamp; 0 = there are none."""
        return max((p for p in self._pts if p is not None), default=0)

    def index(self, context: Any, time_base: Fraction | None, fps: Fraction | None) -> VideoIndex:
        """What is known before anything is decoded."""
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
        index = VideoIndex(coding=coding, time_base=time_base, fps=fps, slow=self._slow or self._trouble(coding))
        if index.slow:
            return index
        pts = np.array(self._pts, dtype=np.int64)
        roles = np.array(self._roles, dtype=np.uint8)
        if self._reader is not None and (highest := self._reader.droppable_layer()) is not None:
            roles[np.array(self._layers) < highest] &= ~np.uint8(DROP)
        order = np.argsort(pts)
        order = order[~np.array(self._hidden)[order] & ((roles[order] & HIDDEN) == 0)]
        direct = self.offsets if tag is not None else []
        return dataclasses.replace(
            index,
            frame_count=len(order),
            pts=pts[order],
            order=order,
            roles=roles,
            offsets=np.array(direct, dtype=np.int64),
            sizes=np.array(self._sizes if direct else [], dtype=np.int64),
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
