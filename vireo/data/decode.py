"""Videos to frames with PyAV: exact, one thread, only what was asked for, and honest about damage.

How a file is read, in `exact` mode:

    first time   demux it all (cheap) and learn what its packets are for  ─►  index, kept in a cache
    afterwards   no demuxing: read the packets that are needed from where the index says they are

    packets      I  P  b  B  b  P  b  B  b  │ I  P  b  B  b  …       wanted: one frame b
                 ▲  ▲     ▲     ▲  ▲          decoded: from the start of its group of pictures, the
                                              frames others need, and itself; then it stops

Packets are left out only where the format promises that no other frame needs them and where the stream is
unremarkable (`vireo.data.bitstreams`): H.264, HEVC, VP8, VP9, AV1, MJPEG, and MPEG-4 after its first reading has
proved that the short way gives the same. Everything else is decoded in sequence: interlaced video, streams
without time stamps, other formats. Their number of frames is counted once and then known.
Whenever a frame comes out damaged, unexpected or not at all, the video is decoded again in sequence. Either way
the result equals decoding everything in sequence with PyAV, frame for frame and bit for bit.

`keyframe` mode takes the nearest frames at which decoding can begin instead of the frames asked for, and says how
far off they are. It is for a quick look and for training on long videos, not for results: videos of one group of
pictures give one and the same frame.

A video found to be damaged raises `DecodeError`, also when some of its frames could be had: frames from
the first half of an action are not a sample of the action. Damage behind the last wanted frame, and in frames
that were left out, is not looked for; `probe` looks at every frame.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from vireo.data.container import Video, faults, opened_file, regular_file
from vireo.data.index import FileKey, Int64, NotAsIndexedError, VideoIndex, load_index, store_index
from vireo.data.indexed import PacketGetter, decode_wanted, new_context, packet_reader
from vireo.data.learn import Seen, learn
from vireo.data.pictures import Choice, Frames, Pictures, arranged, check_indices, check_memory, quarter_turns
from vireo.errors import DecodeError

__all__ = ["Backend", "Frames", "Mode", "Plan", "VideoInfo", "decoder_name", "probe", "read_frames"]

Plan = Callable[[int], npt.NDArray[np.int64]]
"""From a video's frame count F (at least 1) to the wanted frames: sorted indices in [0, F), at least one.
It may be asked more than once and must answer the same count the same way."""
Mode = Literal["exact", "keyframe"]
Backend = Literal["auto", "pyav", "torchcodec"]

_HELD_FRAMES = 128 << 20  # bytes of decoded frames kept while counting; longer videos are decoded twice


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
    with Video(path) as video:
        seen = Seen()
        for frame in video.frames(video.packets()):
            seen.add(frame)
        if seen.first is None:
            raise DecodeError(path, "no frame can be decoded")
        index = learn(video, seen)
        store_index(video.key, index)
        turns = quarter_turns(seen.first.rotation)
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


def _length(index: VideoIndex) -> tuple[float, Int64]:
    """A video's length, s, and the steps between its time stamps, where it has some."""
    if len(index.pts) > 1 and index.time_base:
        steps = np.diff(index.pts)
        return float((index.pts[-1] - index.pts[0] + np.median(steps)) * float(index.time_base)), steps
    return (index.frame_count / float(index.fps) if index.fps else 0.0), np.empty(0, np.int64)


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
    key = FileKey.of(name, regular_file(name))
    ask = _Ask(plan, start, end, mode == "keyframe")
    in_sequence = False
    if (index := load_index(key)) is not None:
        try:
            if backend == "torchcodec" and (frames := _read_torchcodec(name, index, ask)) is not None:
                return frames
            return _read_indexed(name, key, index, ask)
        except NotAsIndexedError:
            in_sequence = True
        except DecodeError:
            pass  # said again below, or the file has changed, or was out of reach for a moment
    elif backend == "torchcodec":
        from vireo.data.torchcodec import torchcodec_version

        torchcodec_version()
    if not in_sequence:
        with Video(name) as video:
            if video.index.fast:
                try:
                    return _read_scanned(video, ask)
                except NotAsIndexedError:
                    in_sequence = True
    with Video(name) as video:
        return _read_counting(video, ask, distrust=in_sequence)


class _Ask(NamedTuple):
    """What `read_frames` was asked for."""

    plan: Plan
    start: float | None
    end: float | None
    keyframes: bool


def _choose(path: str, index: VideoIndex, ask: _Ask) -> Choice:
    first, last = 0, index.frame_count
    if ask.start is not None or ask.end is not None:
        seconds = index.seconds()
        if seconds is None:
            raise DecodeError(path, "has neither time stamps nor a frame rate, so start and end can't be found")
        first, last = _cut(path, seconds, ask.start, ask.end)
    indices = ask.plan(last - first)
    check_indices(indices, last - first)
    indices = indices.astype(np.int64)
    moved = np.zeros(len(indices), np.int64)
    if ask.keyframes and index.fast:
        nearest = index.nearest_starts(indices + first, first, last)
        if nearest is not None:
            indices, moved = nearest - first, nearest - first - indices
    return Choice(first, np.unique(indices) + first, indices, moved, last - first)


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


# The ways to read


def _read_indexed(path: str, key: FileKey, index: VideoIndex, ask: _Ask) -> Frames:
    """Read a file whose index is known.

    Raises:
        NotAsIndexedError: it gives other frames than its index says.
    """
    pictures = Pictures(_choose(path, index, ask), path)
    if not len(index.offsets):
        with Video(path) as video:
            if index.fast:
                return _collect(video.context, index, video.packet_getter(), pictures)
            return _collect_in_sequence(video, pictures)
    with opened_file(path) as file:
        if FileKey.of(path, os.fstat(file)) != key:
            raise DecodeError(path, "changed while it was read")
        return _collect(new_context(index.coding), index, packet_reader(file, index), pictures)


def _read_scanned(video: Video, ask: _Ask) -> Frames:
    """Read a file for the first time, leaving out packets, and keep what was learnt."""
    index = video.index
    pictures = Pictures(_choose(video.path, index, ask), video.path)
    frames = _collect(video.context, index, video.packet_getter(), pictures)
    store_index(video.key, index.with_looks(pictures.looks))
    return frames


def _read_counting(video: Video, ask: _Ask, *, distrust: bool) -> Frames:
    """Decode everything, then ask for the frames, and keep what was learnt."""
    seen, size = Seen(), 0
    held: list[VideoFrame] | None = []
    for frame in video.frames(video.packets()):
        seen.add(frame)
        if held is not None:
            held.append(frame)
            size += sum(plane.buffer_size for plane in frame.planes)
            if size > _HELD_FRAMES:
                held = None
    if not seen.count:
        raise DecodeError(video.path, "no frame can be decoded")
    index = learn(video, seen, distrust=distrust)
    pictures = Pictures(_choose(video.path, index, ask), video.path)
    if held is not None:
        with faults(video.path):
            for position in pictures.choice.wanted:
                pictures.add(held[position])
        frames = pictures.arrange()
    else:
        with Video(video.path) as again:
            try:
                frames = _collect_in_sequence(again, pictures)
            except NotAsIndexedError:
                raise DecodeError(video.path, "changed while it was read") from None
    store_index(video.key, index)
    return frames


def _collect_in_sequence(video: Video, pictures: Pictures) -> Frames:
    wanted = pictures.choice.wanted.tolist()
    for position, frame in enumerate(video.frames(video.packets())):
        if position == wanted[len(pictures)]:
            with faults(video.path):
                pictures.add(frame)
            if len(pictures) == len(wanted):
                return pictures.arrange()
    raise NotAsIndexedError


def _collect(context: VideoCodecContext, index: VideoIndex, packet: PacketGetter, pictures: Pictures) -> Frames:
    try:
        for frame in decode_wanted(context, index, packet, pictures.choice.wanted):
            pictures.add(frame, index.picture)
    except (av.error.FFmpegError, OSError, ValueError):
        raise NotAsIndexedError from None
    return pictures.arrange()


def _read_torchcodec(path: str, index: VideoIndex, ask: _Ask) -> Frames | None:
    """Read with TorchCodec, or None where it would not give the frames that PyAV gives."""
    from vireo.data.torchcodec import read_positions, torchcodec_version

    torchcodec_version()
    if not index.fast or index.picture is None or ask.keyframes:
        return None
    choice = _choose(path, index, ask)
    check_memory(path, len(choice.indices), index.picture.width, index.picture.height)
    data = read_positions(path, choice.indices + choice.first, index)
    if data is None:
        return None
    return arranged(data.numpy(), choice, path, "torchcodec")
