"""Writes tiny real videos for the tests. Every frame carries its number as a row of black and white squares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WIDTH, HEIGHT, FPS, BITS = 64, 48, 25, 8
_SQUARE = WIDTH // BITS


def shared(*parts: str) -> Path:
    """A file of the real clips beside the project; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {'/'.join(parts)} beside the project")
    return path


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(height, width, 3) uint8: a gradient, and the number's bits at the top, lowest left."""
    ramp = np.linspace(40, 200, width)[None, :, None] * np.ones((height, 1, 3))
    image = ramp.astype(np.uint8)
    image[height // 2 :, :, 2] = 30  # top and bottom differ
    square = width // BITS
    for bit in range(BITS):
        image[:square, bit * square : (bit + 1) * square] = 255 * (number >> bit & 1)
    return image


def number_of(image: np.ndarray) -> int:
    """The number in a picture, (H, W, 3), after any lossy encoding."""
    square = image.shape[1] // BITS
    bits = [image[:square, bit * square : (bit + 1) * square].mean() > 127 for bit in range(BITS)]
    return sum(1 << bit for bit, on in enumerate(bits) if on)


def numbers_of(frames: object) -> list[int]:
    """The numbers in (T, 3, H, W) frames."""
    return [number_of(image.permute(1, 2, 0).numpy()) for image in frames]  # type: ignore[attr-defined]


def write_video(
    path: Path,
    frames: int | Iterable[np.ndarray] = 20,
    *,
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Path:
    """Write numbered frames.

    Args:
        frames: how many, or the pictures themselves.
        times: of the frames, in units of 1/(10·FPS) s; by default evenly spaced.
        rotation: flag for players, degrees.
        options: of the encoder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [picture(i, *size) for i in range(frames)] if isinstance(frames, int) else list(frames)
    with av.open(str(path), "w", format=format, container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=FPS, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 10 * FPS)
        if rotation:
            stream.set_display_rotation(rotation)
        for i, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, FPS) if times is None else Fraction(1, 10 * FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for i in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, i * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_class_folders(root: Path, clips: dict[str, int], frames: int = 12) -> Path:
    """A folder per class with that many clips each."""
    for label, count in clips.items():
        (root / label).mkdir(parents=True)
        for i in range(count):
            write_video(root / label / f"{label}_{i}.mp4", frames)
    return root
