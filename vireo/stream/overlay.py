"""A video written again as an MP4 with the label of each moment drawn on it."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

from vireo.data.encode import part_of
from vireo.data.pictures import quarter_turns
from vireo.errors import DecodeError, MissingDependencyError, StorageError, writing
from vireo.plots import shorten
from vireo.stream.plan import SECOND
from vireo.stream.reading import Recording, upright
from vireo.stream.timeline import Segment

UInt8 = npt.NDArray[np.uint8]

_SMALLEST = 360  # pixels; smaller pictures are enlarged, so that the text on them can be read
_TICKS = 90_000  # per second, as MPEG has it
_LONGEST = 40  # characters of a label
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "WenQuanYi Zen Hei", "Arial Unicode MS")
_PANEL, _TEXT, _BAR, _TRACK = "#11171f", "#ffffff", "#2fb6c6", "#4a5563"


def draw_labels(
    video: str | os.PathLike[str],
    target: Path,
    segments: Sequence[Segment],
    *,
    advance: Callable[[float], object] = lambda seconds: None,
) -> int:
    """Write a video with its labels drawn on it: H.264 in MP4, upright, without sound; whole or not at all.

    Frames keep their times and their colours; pixels become square. What lies behind the last segment, and behind
    damage, is left out. Pictures with a short side below 360 pixels are enlarged to it.

    Args:
        video: the file.
        target: the .mp4 file.
        segments: the timeline, in order.
        advance: told of the seconds done.

    Returns:
        Frames written.

    Raises:
        DecodeError: no frame can be read.
        StorageError: the target can't be written.
        MissingDependencyError: this PyAV can't encode H.264.
    """
    if "libx264" not in av.codecs_available:
        raise MissingDependencyError("this build of PyAV has no libx264 encoder; `pip install av` brings one")
    part = part_of(target)
    reader = Recording.of_file(video)
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            count = _encode(reader, part, segments, advance)
            if not count:
                raise DecodeError(os.fspath(video), "no frame can be decoded")
            os.replace(part, target)
    finally:
        reader.close()
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return count


def _encode(reader: Recording, part: Path, segments: Sequence[Segment], advance: Callable[[float], object]) -> int:
    drawer = _Drawer(segments, reader.pixel_aspect)
    count, last = 0, -1
    with av.open(f"file:{part}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any = None
        frames = reader.frames()
        while True:
            try:
                timed = next(frames)
            except (StopIteration, DecodeError):  # the damage has been reported when the windows were scored
                break
            if segments and timed.begin / SECOND >= segments[-1].end - 5e-7:
                break
            image = drawer.draw(timed.frame, timed.begin / SECOND)
            try:
                if stream is None:
                    options = {"preset": "veryfast", "crf": "20"}
                    stream = container.add_stream("libx264", rate=_rate(reader.fps), options=options)
                    stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
                    stream.codec_context.time_base = Fraction(1, _TICKS)
                    stream.codec_context.sample_aspect_ratio = Fraction(1)
                    drawer.colours.tag(stream.codec_context)
                new = drawer.to_yuv(image)
                last = max(last + 1, timed.begin * _TICKS // SECOND)
                new.pts, new.time_base = last, Fraction(1, _TICKS)
                container.mux(stream.encode(new))
            except av.error.FFmpegError as error:
                if isinstance(error, OSError):
                    raise
                raise StorageError(f"{part}: could not be written as H.264: {error}") from error
            count += 1
            advance(timed.end / SECOND)
        if stream is not None:
            container.mux(stream.encode(None))
    return count


def _rate(fps: float) -> Fraction:
    """For the encoder's choices only; the frames have times."""
    return Fraction(fps).limit_denominator(1001) if 1 <= fps <= 1000 else Fraction(25)


class _Colours(NamedTuple):
    """What the YUV of a video means, by FFmpeg's numbers."""

    matrix: int
    """For swscale."""
    space: int
    primaries: int
    transfer: int

    @classmethod
    def of(cls, frame: VideoFrame) -> _Colours:
        """As it says; where it doesn't, as players take it: BT.709 for HD, BT.601 for what is smaller."""
        space = frame.colorspace
        if space not in _MATRICES:
            small = frame.width < 1280 and frame.height <= 576
            space = 1 if not small else 6 if frame.height <= 480 else 5
        matrix, primaries, transfer = _MATRICES[space]
        said = [value if value not in (0, 2) else None for value in (frame.color_primaries, frame.color_trc)]
        return cls(matrix, space, said[0] or primaries, said[1] or transfer)

    def tag(self, target: Any) -> None:
        """Say it of an encoder or a frame; both are of limited range."""
        target.colorspace, target.color_range = self.space, ColorRange.MPEG.value
        target.color_primaries, target.color_trc = self.primaries, self.transfer


_MATRICES = {1: (1, 1, 1), 4: (4, 4, 4), 5: (5, 5, 6), 6: (5, 6, 6), 7: (7, 7, 7), 9: (9, 9, 14)}
"""AVColorSpace → swscale's matrix, and the primaries and transfer that usually go with it: BT.709, FCC, BT.601 of 625
lines and of 525, SMPTE 240M, BT.2020."""


class _Drawer:
    """Puts the label on frames that come in order; all become as large as the first.

    Args:
        segments: the timeline.
        aspect: width of a stored pixel over its height.
    """

    def __init__(self, segments: Sequence[Segment], aspect: Fraction) -> None:
        self._segments, self._at, self._aspect = segments, 0, aspect
        self._size: tuple[int, int] | None = None  # width, height
        self._read, self._scale, self._write = VideoReformatter(), VideoReformatter(), VideoReformatter()
        self.colours = _Colours(5, 6, 6, 6)
        """Of what `to_yuv` gives: those of the first frame drawn."""

    def draw(self, frame: VideoFrame, seconds: float) -> UInt8:
        """(H, W, 3), even sides, with the label of that time."""
        colours = _Colours.of(frame)
        image: UInt8 = upright(frame, self._read, colours.matrix)
        if self._size is None:
            self.colours = colours
            self._size = _square_size(image, 1 / self._aspect if quarter_turns(frame.rotation) % 2 else self._aspect)
        width, height = self._size
        if image.shape[:2] != (height, width):
            scaled = self._scale.reformat(
                VideoFrame.from_ndarray(image, format="rgb24"), width, height, interpolation="BICUBIC", threads=1
            )
            image = np.asarray(scaled.to_ndarray(), np.uint8)
        while self._at + 1 < len(self._segments) and self._segments[self._at].end <= seconds:
            self._at += 1
        if self._segments:
            segment = self._segments[self._at]
            if segment.start <= seconds < segment.end:
                _blend(image, caption(width, height, segment.label, round(100 * segment.probability)))
        return image

    def to_yuv(self, image: UInt8) -> VideoFrame:
        """As the encoder takes it."""
        frame = self._write.reformat(
            VideoFrame.from_ndarray(image, format="rgb24"),
            format="yuv420p",
            dst_colorspace=self.colours.matrix,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        self.colours.tag(frame)
        return frame


def _square_size(image: UInt8, aspect: Fraction) -> tuple[int, int]:
    """Even width and height at which an upright picture with pixels of an aspect is shown, large enough for text."""
    height, width = (float(side) for side in image.shape[:2])
    width, height = width * max(1.0, float(aspect)), height * max(1.0, float(1 / aspect))  # nothing is lost
    factor = max(1.0, _SMALLEST / min(height, width))
    factor = min(factor, 16384 / max(height, width))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


class Caption(NamedTuple):
    """What is drawn on frames."""

    top: int
    left: int
    colour: npt.NDArray[np.float32]
    """(h, w, 3), already multiplied by its opacity."""
    clear: npt.NDArray[np.float32]
    """(h, w, 1) how much of the frame shows through, in [0, 1]."""


def _blend(image: UInt8, caption: Caption) -> None:
    height, width = caption.clear.shape[:2]
    part = image[caption.top : caption.top + height, caption.left : caption.left + width]
    part[...] = (part * caption.clear + caption.colour + 0.5).astype(np.uint8)


@functools.cache
def _fonts() -> list[str]:
    """Those that are installed; the first is matplotlib's own, the others have the signs of more scripts."""
    from matplotlib.font_manager import get_font_names

    return [name for name in _FONTS if name in get_font_names()]


@functools.lru_cache(maxsize=64)
def caption(width: int, height: int, label: str | None, percent: int) -> Caption:
    """A panel at the bottom left with the label, its probability, and that as a bar.

    Args:
        width: of the frame, pixels.
        height: of the frame, pixels.
        label: None = none of these, which is drawn fainter.
        percent: the probability.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, Rectangle

    figure = Figure(figsize=(width / 100, height / 100), dpi=100)  # 100 pixels to the inch: sizes below are pixels
    figure.patch.set_alpha(0)
    canvas = FigureCanvasAgg(figure)
    short = min(width, height)
    size = max(13.0, short / 20)  # of the text
    pad, margin = 0.6 * size, 0.7 * size
    known = label is not None
    words = shorten(" ".join((label or "none of these").split()), _LONGEST)
    style: dict[str, Any] = {"parse_math": False, "family": _fonts(), "va": "baseline", "transform": None}
    base = margin + pad + 0.85 * size if known else margin + pad + 0.1 * size
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        left = margin + pad
        text = figure.text(
            left, base, words, fontsize=0.72 * size, color=_TEXT, weight="bold" if known else "normal", **style
        )
        text.set_alpha(1.0 if known else 0.75)
        renderer: Any = canvas.get_renderer()  # type: ignore[no-untyped-call]
        room = width - 2 * left - (4.6 * size if known else 0)
        while (long := text.get_window_extent(renderer).width) > room and len(words) > 4:
            words = words[: max(4, int(len(words) * room / long) - 1)].rstrip("… ") + "…"
            text.set_text(words)
        right = left + max(long, 4 * size if known else 0)
        if known:
            number = figure.text(right + 0.8 * size, base, f"{percent} %", fontsize=0.72 * size, color=_TEXT, **style)
            right = number.get_window_extent(renderer).x1
            for share, colour in ((1.0, _TRACK), (percent / 100, _BAR)):
                track = Rectangle((left, margin + pad), share * (right - left), max(3.0, 0.22 * size), color=colour)
                track.set_transform(None)
                track.set_linewidth(0)
                figure.add_artist(track)
        top = base + 0.85 * size + 0.5 * pad
        panel = FancyBboxPatch(
            (margin + 0.35 * size, margin + 0.35 * size),
            right + pad - margin - 0.7 * size,
            top - margin - 0.7 * size,
            boxstyle=f"round,pad={0.35 * size}",
            facecolor=_PANEL,
            linewidth=0,
            alpha=0.72,
            transform=None,
            zorder=-1,
        )
        figure.add_artist(panel)
        canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba(), np.float32)[:height, :width]  # type: ignore[no-untyped-call]
    rows, columns = (np.flatnonzero(rgba[..., 3].any(axis=axis)) for axis in (1, 0))
    box = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = box[..., 3:] * np.float32(1 / 255)
    return Caption(int(rows[0]), int(columns[0]), box[..., :3] * alpha, np.float32(1) - alpha)
