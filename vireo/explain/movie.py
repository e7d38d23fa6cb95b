"""A clip with the heat of one or two models beside it, as an MP4 that every player plays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vireo.data.encode import part_of
from vireo.errors import MissingDependencyError, StorageError, writing
from vireo.explain.explanation import Explanation
from vireo.explain.pictures import AGAINST, Sheet, UInt8, frames_of, overlay
from vireo.plots import ACCENT, DPI, INK, MUTED, shorten

FPS = 12
_PANEL, _MARGIN, _GAP, _HEAD, _TIMES = 320, 16, 12, 74, 46  # pixels
_CRF = "18"  # x264's constant rate factor: looks like the source


def write_mp4(path: Path, pictures: Iterator[UInt8], fps: int = FPS) -> Path:
    """Write pictures (H, W, 3), all of one even size, as H.264; whole or not at all.

    Raises:
        StorageError: it could not be written.
        MissingDependencyError: this PyAV can't encode H.264.
    """
    if "libx264" not in av.codecs_available:
        raise MissingDependencyError("this build of PyAV has no libx264 encoder; `pip install av` brings one")
    part = part_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with av.open(f"file:{part}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
                stream = container.add_stream("libx264", rate=fps, options={"crf": _CRF, "preset": "medium"})
                stream.pix_fmt = "yuv420p"
                stream.thread_count = 1
                for number, picture in enumerate(pictures):
                    if number == 0:
                        stream.height, stream.width = picture.shape[:2]
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p", threads=1)
                    frame.pts, frame.time_base = number, Fraction(1, fps)
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            os.replace(part, path)
        except av.error.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise StorageError(f"{path}: could not be written: {error}") from error
        finally:
            part.unlink(missing_ok=True)
    return path


def heat_movie(name: str, both: Sequence[Explanation]) -> Iterator[UInt8]:
    """Pictures (H, W, 3) at `FPS`: the clip, and each model's heat over the frames that it sees.

    Every frame stands for a third of a second, of long clips shorter. Where the models see different numbers of
    frames, those of the same time stand beside each other.

    Args:
        name: of the video.
        both: explanations with heat, of one or two models.
    """
    panels = [_enlarged(frames_of(both[0].seen.clip))]
    panels += [_enlarged(overlay(frames_of(e.seen.clip), e.heat)) for e in both if e.heat is not None]
    steps = max(len(panel) for panel in panels)
    canvas = _background(name, both)
    for step in range(steps):
        picture = canvas.copy()
        for i, panel in enumerate(panels):
            left = _MARGIN + i * (_PANEL + _GAP)
            picture[_HEAD : _HEAD + _PANEL, left : left + _PANEL] = panel[step * len(panel) // steps]
        _draw_times(picture, both, step / steps)
        for _ in range(4 if steps <= 12 else 2 if steps <= 24 else 1):
            yield picture


def _enlarged(frames: UInt8) -> UInt8:
    """(T, H, W, 3) → (T, 320, 320, 3)."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    images = F.interpolate(images, size=(_PANEL, _PANEL), mode="bicubic", antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _background(name: str, both: Sequence[Explanation]) -> UInt8:
    """All that does not move."""
    count = 1 + len(both)
    width, height = 2 * _MARGIN + count * _PANEL + (count - 1) * _GAP, _HEAD + _PANEL + _TIMES
    sheet = Sheet(width / DPI, height / DPI)

    def left(i: int) -> float:
        return (_MARGIN + i * (_PANEL + _GAP)) / DPI

    sheet.text(left(0), 0.1, shorten(name, 34), fontsize=9.5, weight="bold")
    first = both[0]
    sheet.text(left(0), 0.3, f"{first.method} for {shorten(first.target, 30)}", fontsize=7.5, color=MUTED)
    for i, (e, colour) in enumerate(zip(both, (ACCENT, AGAINST), strict=False), start=1):
        sheet.text(left(i), 0.1, shorten(e.model, 36), fontsize=9.5, weight="bold", color=colour)
        label, probability = e.prediction.top[0]
        sheet.text(left(i), 0.3, f"says {shorten(label, 32)}, {100 * probability:.0f} %", fontsize=8, color=INK)
        told = ""
        if e.is_cold:
            told = f"no heat: nothing speaks for {shorten(e.target, 32)}"
        elif e.target != label or e.target != first.target:
            told = f"{shorten(e.target, 32)}: {100 * e.probability:.0f} %"
        sheet.text(left(i), 0.45, told, fontsize=7.5, color=MUTED)
    return sheet.pixels()


def _draw_times(picture: UInt8, both: Sequence[Explanation], now: float) -> None:
    """Below each panel a bar per frame, its share of the heat; the one that is shown is dark."""
    for i, (e, colour) in enumerate(zip(both, (ACCENT, AGAINST), strict=False), start=1):
        assert e.heat is not None
        share = e.heat.sum(dim=(1, 2))
        share = share / share.max().clamp_min(1e-12)
        _draw_bars(picture, _MARGIN + i * (_PANEL + _GAP), share, int(now * len(share) + 1e-6), colour)
    count = len(both[0].seen.clip)
    _draw_bars(picture, _MARGIN, torch.full((count,), 0.12), int(now * count + 1e-6), MUTED)


def _draw_bars(picture: UInt8, left: int, heights: Tensor, current: int, colour: str) -> None:
    room, bottom = _TIMES - 18, _HEAD + _PANEL + _TIMES - 8
    shade = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    pale = (0.35 * shade + 0.65 * 255).astype(np.uint8)
    count = len(heights)
    for t, height in enumerate(heights.tolist()):
        x0, x1 = left + _PANEL * t // count, left + _PANEL * (t + 1) // count
        gap = min(2, (x1 - x0) // 3)
        top = bottom - max(2, round(room * height))
        picture[top:bottom, x0 + gap : max(x0 + gap + 1, x1 - gap)] = shade if t == current else pale
