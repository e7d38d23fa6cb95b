"""Cameras, URLs and pipes: sources that don't wait, and that come and go.

    camera:0, camera:/dev/video2        Video4Linux
    rtsp:// rtsps:// http:// https://   a URL that says how long it is is a recording, and read like a file
    pipe:PATH, pipe:-                   a named pipe, or standard input: only if asked for by that word

What is read is believed as little as a file: no URL, and no playlist behind one, reaches files of this machine, since
FFmpeg is told which protocols it may use.

A frame is late if the source had more frames waiting and none of them had to be waited for within the latency budget.
Then packets are thrown away undecoded until the source has to be waited for again and a picture begins that needs no
other. A source that ends or goes silent is connected again, after waits that double.
"""

from __future__ import annotations

import errno
import math
import os
import re
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal
from urllib.parse import urlsplit

import av
import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vireo.config import ViewConfig
from vireo.data.container import is_repeat, prepare
from vireo.data.images import MAX_PIXELS
from vireo.data.pictures import check_size
from vireo.errors import DecodeError, UsageError
from vireo.stream.plan import SECOND, Window, WindowPlan, Windows
from vireo.stream.reading import SILENCE, Preparer, TimedFrame, rate_of

_NETWORK = {
    "rtsp": "rtsp,rtp,rtcp,srtp,tcp,udp,tls",
    "rtsps": "rtsp,rtsps,rtp,rtcp,srtp,tcp,udp,tls",
    "http": "http,https,httpproxy,tcp,tls",
    "https": "http,https,httpproxy,tcp,tls",
}  # scheme → protocols that FFmpeg may use for it, playlists included
_REFUSED = {
    "avisynth",
    "concat",
    "concatf",
    "dvdvideo",
    "image2",
    "imf",
    "lavfi",
    "mlv",
    "rtp",
    "sap",
    "sdp",
    "vapoursynth",
}
_LONGEST_URL = 4096
_WAITED = 0.002  # s; a packet that takes longer to come had to be waited for
_JUMP = 10 * SECOND  # time stamps further apart are not believed; the clock is
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0  # s between attempts to connect
_MOST_DAMAGED = 250  # packets in a row that can't be decoded: then the source is taken for gone


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where live video comes from."""

    kind: Literal["camera", "url", "pipe"]
    address: str
    """Device, URL, or path of the pipe."""
    shown: str
    """As the user wrote it, without a password."""


def parse_source(text: str) -> Source | None:
    """The source that a text names; None: it names a file.

    Raises:
        UsageError: a URL of another scheme, or a malformed one; a camera that is no number and no device.
    """
    if found := re.fullmatch(r"camera:(.*)", text):
        if found[1].isdecimal() and len(found[1]) <= 3:
            return Source(kind="camera", address=f"/dev/video{int(found[1])}", shown=text)
        if not found[1].startswith("/dev/"):
            raise UsageError(f"{text!r} is no camera; write camera:0, or camera:/dev/video0")
        return Source(kind="camera", address=found[1], shown=text)
    if found := re.fullmatch(r"pipe:(.*)", text):
        if not found[1]:
            raise UsageError("pipe: needs a path, or - for standard input")
        return Source(kind="pipe", address=found[1], shown=text)
    if not (found := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)):
        return None
    scheme = found[1].lower()
    refused = _masked(text, len(text))  # where it ends in one that is no URL, nobody knows
    if scheme not in _NETWORK:
        raise UsageError(
            f"{refused[:200]!r}: URLs begin with {', '.join(f'{name}://' for name in _NETWORK)}; files have a path"
        )
    try:
        parts = urlsplit(text)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or len(text) > _LONGEST_URL or not text.isprintable() or " " in text:
        raise UsageError(f"{refused[:200]!r} is not a valid URL")
    begin = text.index("//") + 2
    return Source(kind="url", address=text, shown=_masked(text, begin + len(parts.netloc)))


def _masked(url: str, end: int) -> str:
    """A URL without its password: from the first colon behind // to the last @ before a place."""
    begin, at = url.find(":", url.index("//")), url.rfind("@", 0, end)
    return f"{url[:begin]}:***{url[at:]}" if 0 <= begin < at else url


def connect(source: Source) -> tuple[InputContainer, VideoStream]:
    """Open a source.

    Raises:
        DecodeError: it does not answer, refuses, or gives no video.
    """
    try:
        container = _open(source)
    except av.error.ExitError:
        raise DecodeError(source.shown, f"no answer within {SILENCE:g} s") from None
    except av.error.InvalidDataError:
        raise DecodeError(source.shown, "gives no video that can be read") from None
    except av.error.ArgumentError:  # a format or protocol that is not allowed
        raise DecodeError(source.shown, "gives no video that is allowed here") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(source.shown, _plain(error, source)) from None
    try:
        streams = list(container.streams.video)
        if not streams or streams[0].codec_context is None:
            raise DecodeError(source.shown, "has no video that can be decoded")
        stream = streams[0]
        check_size(source.shown, stream.codec_context.width, stream.codec_context.height)
        prepare(stream.codec_context)
        return container, stream
    except BaseException:
        container.close()
        raise


def _open(source: Source) -> InputContainer:
    formats = ",".join(sorted(av.formats_available.difference(_REFUSED)))
    options = {"max_pixels": str(2 * MAX_PIXELS), "format_whitelist": formats, "analyzeduration": str(2 * av.time_base)}
    open_it = partial(av.open, mode="r", timeout=(SILENCE, SILENCE), metadata_errors="replace")
    if source.kind == "camera":
        with suppress(FileNotFoundError):
            if stat.S_ISCHR(os.stat(source.address).st_mode):
                return open_it(source.address, format="video4linux2,v4l2")
        raise DecodeError(source.shown, f"there is no camera at {source.address}")
    if source.kind == "pipe":
        options["protocol_whitelist"] = "none"  # an empty list would allow everything
        return open_it(_Pipe(source.address), options=options)
    scheme = source.address.partition(":")[0].lower()
    options["protocol_whitelist"] = _NETWORK[scheme]
    if scheme.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # nothing is lost on the way
    else:
        options["reconnect"] = "1"  # of recordings: goes on where the connection broke
        options["reconnect_delay_max"] = "4"
    return open_it(source.address, options=options)


class _Pipe:
    """A named pipe, or standard input, from which is read without waiting for ever."""

    def __init__(self, path: str) -> None:
        self.name = path
        if path == "-":
            if sys.stdin is None:
                raise OSError("standard input is closed")
            self._file = os.dup(sys.stdin.fileno())
            return
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(self._file).st_mode):
            self.close()
            raise OSError("it is no pipe; files have a path without pipe:")

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes; none = the writer has closed it."""
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        for _ in range(2):  # without a writer yet, a pipe looks closed
            if not poll.poll(SILENCE * 1000):
                raise OSError(f"no data within {SILENCE:g} s")
            with suppress(BlockingIOError):
                return os.read(self._file, count)
        return b""

    def close(self) -> None:
        os.close(self._file)


def _plain(error: Exception, source: Source) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if getattr(error, "errno", None) == errno.EIO:
        return "broken off, or no video"
    reason = str(getattr(error, "strerror", None) or error)
    return reason.replace(source.address, source.shown) if source.kind == "url" else reason


class LiveReader:
    """An open live source.

    Args:
        source: what it is.
        opened: what `connect` gave for it.
        latency: how long a frame may wait to be decoded, s.
        retry: how long a source may be gone, s; 0 = it must not.
        tell: is told in words when the source goes and comes; called from the thread that reads.
    """

    def __init__(
        self,
        source: Source,
        opened: tuple[InputContainer, VideoStream],
        *,
        latency: float,
        retry: float,
        tell: Callable[[str], None],
    ) -> None:
        self._source, self._latency, self._retry, self._tell = source, latency, retry, tell
        self._container, self._stream = opened
        self.fps = float(rate_of(self._stream))
        """Frame rate, 1/s; 0 = unknown."""
        self.stop = threading.Event()
        """Set it to end `windows`."""
        self.skipped = 0
        """Packets thrown away undecoded so far."""
        self.returned = 0
        """How often the source has come back so far."""

    def close(self) -> None:
        """Close the source."""
        self._container.close()

    def windows(self, plan: WindowPlan, view: ViewConfig, limit: float = math.inf) -> Iterator[Window]:
        """Windows as they come; times are those since the first frame. None spans a time without the source.

        Behind such a time they go on with the clock, or, where the source had given more than time had passed, with
        the end of that.

        Raises:
            DecodeError: the source has been gone for longer than it may.
        """
        prepare_picture = Preparer(view)
        began = last = math.nan  # set by the first frame
        given, most = 0, round(limit * SECOND) if limit < math.inf else math.inf
        gone = ""
        while True:
            windows = Windows(plan, eager=True)
            origin = 0
            reason = "it ended"
            try:
                for begin, end, frame in self._frames():
                    last = time.monotonic()
                    began = last if math.isnan(began) else began
                    if windows.end == 0:
                        origin = max(given, int((last - began) * SECOND))
                        if origin >= most:
                            self.stop.set()
                            break
                        if gone:
                            self.returned += 1
                            self._tell("back")
                            gone = ""
                    end = int(min(end, most - origin))
                    for window in windows.push(begin, end, lambda frame=frame: prepare_picture(frame)):  # type: ignore[misc]
                        given = origin + window.end
                        yield _moved(window, origin)
                    if origin + end >= most:
                        self.stop.set()
                    if self.stop.is_set():
                        break
            except DecodeError as error:
                reason = error.reason
                if self._source.kind == "pipe":  # what was written to it is lost
                    yield from (_moved(window, origin) for window in windows.finish())
                    raise
            for window in windows.finish():
                yield _moved(window, origin)
            given = max(given, origin + windows.end)
            if self.stop.is_set() or self._source.kind == "pipe":
                return
            if not gone:
                self._tell(f"lost: {reason}" + (f"; trying again for {self._retry:g} s" if self._retry else ""))
            gone = reason
            last = time.monotonic() if math.isnan(last) else last
            if not self._connect_again(last, reason):
                return

    def _connect_again(self, last: float, reason: str) -> bool:
        """Connect, however often it takes; False if it is to stop."""
        self._container.close()
        wait = _FIRST_WAIT
        while True:
            left = self._retry - (time.monotonic() - last)
            if left <= 0:
                since = f" for {time.monotonic() - last:.0f} s" if self._retry else ""
                raise DecodeError(self._source.shown, f"gone{since}: {reason}")
            if self.stop.wait(min(wait, left)):
                return False
            try:
                self._container, self._stream = connect(self._source)
                return True
            except DecodeError as error:
                reason = error.reason
                wait = min(2 * wait, _LONGEST_WAIT)

    def _frames(self) -> Iterator[TimedFrame]:
        """Frames with their times since the first one, ticks: by their time stamps while those can be believed."""
        held: VideoFrame | None = None
        begin = first = step = 0
        opened = 0.0
        for frame in self._decoded():
            stamp = None
            if frame.pts is not None and frame.time_base:
                stamp = math.floor(frame.pts * frame.time_base * SECOND)
            if held is None:
                opened, first = time.monotonic(), stamp or 0
            else:
                now = -1 if stamp is None else stamp - first
                if not begin < now <= begin + _JUMP:
                    now = max(begin + 1, int((time.monotonic() - opened) * SECOND))
                    first = (stamp or 0) - now
                step = now - begin
                yield TimedFrame(begin, now, held)
                begin = now
            held = frame
        if held is not None:
            yield TimedFrame(begin, begin + max(1, min(step, _JUMP)), held)

    def _decoded(self) -> Iterator[VideoFrame]:
        waited = time.monotonic()
        skipping, damaged = False, 0
        try:
            packets = self._container.demux(self._stream)
            while not self.stop.is_set():
                before = time.monotonic()
                packet = next(packets, None)
                if packet is None:
                    return
                now = time.monotonic()
                waited = now if now - before > _WAITED else waited
                late = now - waited > self._latency
                if packet.size and (late or skipping):
                    if late or not packet.is_keyframe:
                        skipping = True
                        self.skipped += 1
                        continue
                    skipping = False
                    self._stream.codec_context.flush_buffers()
                try:
                    frames = [] if is_repeat(packet) else packet.decode()
                    damaged = 0
                except av.error.InvalidDataError:  # as happens on the way from a camera
                    damaged += 1
                    if damaged > _MOST_DAMAGED:
                        raise
                    continue
                for frame in frames:
                    check_size(self._source.shown, frame.width, frame.height)
                    yield frame
        except av.error.ExitError:
            raise DecodeError(self._source.shown, f"no data for {SILENCE:g} s") from None
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise DecodeError(self._source.shown, _plain(error, self._source)) from None


def _moved(window: Window, origin: int) -> Window:
    return window._replace(start=window.start + origin, end=window.end + origin)
