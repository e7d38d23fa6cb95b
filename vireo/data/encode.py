"""One video written again so that it is quick to read at random.

H.264 in MP4, groups of pictures of a few frames (closed), pictures upright and no larger than a model needs, the
index at the file's beginning. Three of four frames are B-frames that no other frame refers to, so that a reader may
leave out those it does not want; what is costly to decode (CABAC, the deblocking filter) is off. Frames stay the
same in number and in time. Sound is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

from vireo.data.container import Video
from vireo.data.decode import probe
from vireo.data.frames import is_frame_folder, read_all_frames
from vireo.data.pictures import quarter_turns
from vireo.errors import DecodeError, UsageError, writing

FOLDER_FPS = 25
"""Frame rate given to folders of images, which have none; nothing but a player's speed depends on it."""
B_FRAMES = 3
"""Successive frames that no other refers to: on 342×256 clips, reading 8 took 7.9 ms with 3, 8.8 with 1, 10.2 with
none; with CABAC and deblocking 15.0 and 19.0 ms."""


@dataclass(frozen=True, kw_only=True)
class OptimizeConfig:
    """How videos are written."""

    short_side: int = 256
    """Short side of the pictures, pixels; smaller ones keep their size. 0 = all keep theirs."""
    gop: int = 12
    """Most frames in a group of pictures; 1 = each frame can be read alone."""
    crf: int = 18
    """x264's constant rate factor, 0 to 51; 18 looks like the source, 23 is half the size."""

    def __post_init__(self) -> None:
        if self.short_side and not 16 <= self.short_side <= 4320:
            raise UsageError(f"short_side is {self.short_side}; it must be 16 to 4320 pixels, or 0 to keep sizes")
        if not 1 <= self.gop <= 1000:
            raise UsageError(f"gop is {self.gop}; it must be 1 to 1000 frames")
        if not 0 <= self.crf <= 51:
            raise UsageError(f"crf is {self.crf}; it must be 0 to 51")


class Written(NamedTuple):
    """One file that was written."""

    frames: int
    bytes: int
    source_bytes: int


def encode_video(source: str, target: Path, config: OptimizeConfig, *, frame_count: int | None = None) -> Written:
    """Write one video, or folder of frame images, again; whole or not at all.

    Args:
        source: a file that FFmpeg reads, or a folder of images.
        target: the .mp4 file.
        config: how it is written.
        frame_count: of a folder, how many images make up the clip; None = all.

    Raises:
        DecodeError: the source can't be read to its end.
        StorageError: the target can't be written.
    """
    part = part_of(target)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if os.path.isdir(source):
            stamps = _encode(source, part, _folder_frames(source, frame_count), config, Fraction(FOLDER_FPS))
            count = len(stamps)
        else:
            info = probe(source)  # finds all damage before anything is written
            count = info.frame_count
            try:
                stamps = _encode(source, part, _video_frames(source), config, None)
            except _NoTimesError:
                rate = Fraction(info.fps).limit_denominator(1001) or Fraction(FOLDER_FPS)
                stamps = _encode(source, part, _video_frames(source), config, rate)
        _check_written(source, part, count, stamps)
        with writing(target):
            with part.open("rb") as file:
                os.fsync(file.fileno())
            size = part.stat().st_size
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return Written(count, size, _bytes_of(source))


def target_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height of the new pictures: even, of the same shape, never larger; 0 keeps sizes."""
    short = min(width, height)
    scale = Fraction(min(short_side or short, short), short)
    return _even(width, scale), _even(height, scale)


def _even(side: int, scale: Fraction) -> int:
    return max(2, min(2 * round(side * scale / 2), side - side % 2))


def part_of(target: Path) -> Path:
    """What a file is called until it is whole."""
    return target.with_name(f".{target.name}.part")


class _NoTimesError(Exception):
    """Frames without time stamps, or out of order."""


def _video_frames(source: str) -> Iterator[VideoFrame]:
    with Video(source) as video:
        base = video.time_base
        for frame in video.frames(video.packets()):
            if base:
                frame.time_base = base  # those that the decoder held back at the end come without
            yield frame


def _folder_frames(source: str, announced: int | None) -> Iterator[VideoFrame]:
    if not is_frame_folder(source):
        raise DecodeError(source, "a folder without frame images, not a video")
    for frames in read_all_frames(source, frame_count=announced):
        for image in frames.data.permute(0, 2, 3, 1).numpy():
            yield VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def _encode(
    source: str, part: Path, frames: Iterator[VideoFrame], config: OptimizeConfig, rate: Fraction | None
) -> list[Fraction]:
    """Write frames, at a constant rate if one is given; returns their times after the first, seconds.

    Raises:
        _NoTimesError: no rate is given, and frames have no time stamps, or not in order.
    """
    first = next(frames, None)
    if first is None:
        raise DecodeError(source, "no frame can be decoded")
    tick = 1 / rate if rate else first.time_base
    if not tick or (rate is None and first.pts is None):
        raise _NoTimesError
    stamps: list[Fraction] = []
    convert = _Converter(first, config.short_side)
    with writing(part):  # FFmpeg's errors of the disk are OSErrors as well; those of the source are not
        try:
            # "file:": a name up to its first colon would be taken for a protocol.
            with av.open(f"file:{part}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
                stream = container.add_stream("libx264", rate=rate or FOLDER_FPS, options=_options(config))
                stream.width, stream.height, stream.pix_fmt = *convert.size, "yuv420p"
                context = stream.codec_context
                context.time_base, context.gop_size = tick, config.gop
                context.thread_count = 1
                convert.tag(context)
                frame: VideoFrame | None = first
                while frame is not None:
                    new = convert(frame)
                    number = len(stamps) if rate else _number(frame, first)
                    if stamps and number * tick <= stamps[-1]:
                        raise _NoTimesError
                    new.pts, new.time_base = number, tick
                    stamps.append(number * tick)
                    container.mux(stream.encode(new))
                    frame = next(frames, None)
                container.mux(stream.encode(None))
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, OSError):
                raise
            raise DecodeError(source, f"can't be written as H.264 ({error})") from None
    return stamps


def _number(frame: VideoFrame, first: VideoFrame) -> int:
    """Ticks since the first frame."""
    if frame.pts is None or first.pts is None or frame.time_base != first.time_base:
        raise _NoTimesError
    return frame.pts - first.pts


def _options(config: OptimizeConfig) -> dict[str, str]:
    return {
        "preset": "medium",
        "tune": "fastdecode",  # half the time to decode, a tenth more bytes
        "crf": str(config.crf),
        "bf": str(B_FRAMES),
        "b_strategy": "0",  # always as many
        "x264-params": "b-pyramid=none",  # and none that others refer to
        "keyint_min": "1",  # key frames at cuts of the scene are IDR frames too: no group leans on the one before
        "flags": "+cgop",
    }


class _Converter:
    """Frames to upright yuv420p of one size."""

    def __init__(self, first: VideoFrame, short_side: int) -> None:
        width, height = first.width, first.height
        if quarter_turns(first.rotation) % 2:
            width, height = height, width
        self.size = target_size(width, height, short_side)
        self._first = first
        self._reformatter = VideoReformatter()

    def tag(self, context: Any) -> None:
        """Say of the stream what its colours mean, as the source does."""
        context.color_range = ColorRange.MPEG
        for name in ("colorspace", "color_primaries", "color_trc"):
            setattr(context, name, int(getattr(self._first, name)))

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        turns = quarter_turns(frame.rotation)
        width, height = self.size if turns % 2 == 0 else self.size[::-1]
        new = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            interpolation="BICUBIC",
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        if turns:
            new = _turned(new, turns)
        elif new is frame:  # untouched, but its time stamp will be set
            new = VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
        new.pict_type = 0  # the encoder decides
        return new


def _turned(frame: VideoFrame, turns: int) -> VideoFrame:
    """Each plane of yuv420p turned by itself, which loses nothing."""
    width, height = frame.width, frame.height
    planes = frame.to_ndarray()
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    rows = [np.rot90(planes[:height], k=turns), *(np.rot90(plane, k=turns) for plane in chroma)]
    width = rows[0].shape[1]
    flat = np.concatenate([np.ascontiguousarray(plane).reshape(-1) for plane in rows])
    return VideoFrame.from_ndarray(flat.reshape(-1, width), format="yuv420p")


def _check_written(source: str, part: Path, count: int, stamps: Sequence[Fraction]) -> None:
    """Compare what lies on the disk with what went in.

    Raises:
        DecodeError: it differs.
    """
    if len(stamps) != count:
        raise DecodeError(source, f"gives {len(stamps)} frames where {count} were counted")
    with av.open(f"file:{part}", format="mp4") as container:
        stream = container.streams.video[0]
        base = stream.time_base or Fraction(1)
        there = sorted(p.pts * base for p in container.demux(stream) if p.size and p.pts is not None)
    if there != list(stamps):
        raise DecodeError(source, "its time stamps can't be written in an MP4 file")


def _bytes_of(source: str) -> int:
    if not os.path.isdir(source):
        return os.stat(source).st_size
    with os.scandir(source) as entries:
        return sum(e.stat().st_size for e in entries if e.is_file())
