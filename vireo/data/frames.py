"""Folders of frames: a clip as numbered JPEG or PNG images, as Something-Something and Jester come.

    00001.jpg 00002.jpg …      000001.jpg …      img_00001.jpg …      frame_000000.png …

All images of a clip have one name but for the number, which gives the order and begins at 0 or 1; numbers may have
leading zeros, or not. Images of its flow (`vireo.data.flow`), images without a number and hidden files may lie beside
them. A number that is missing, or there twice, makes the clip unreadable: frames from the rest of an action are not
a sample of the action.

Only the images wanted are opened.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision

from vireo.data.decode import Frames, Int64, Plan
from vireo.data.flow import FLOW_PREFIXES
from vireo.data.images import ENDING, UInt8, image_fault, list_folder, read_image
from vireo.errors import DecodeError

_NUMBERED = re.compile(rf"(|.*[^0-9])([0-9]{{1,18}}){ENDING}", re.IGNORECASE)  # of int64
_SHOWN = 5  # gaps in the numbering that a message names


def frame_reader_name() -> str:
    """What reads frames, and its version, for the record of a result."""
    return f"frame images by torchvision {torchvision.__version__}"


def is_frame_folder(path: str | Path) -> bool:
    """Whether a path is laid out like a clip of frame images; no image is opened.

    Raises:
        OSError: a folder that can't be listed.
    """
    if not os.path.isdir(path) or _is_axis(path):
        return False
    with contextlib.suppress(DecodeError):  # too many entries for a clip
        return any(True for _ in _images(path))
    return False


def _is_axis(path: str | Path) -> bool:
    """Whether a folder is one of the two that hold a clip's horizontal and vertical flow."""
    parent, name = os.path.split(os.path.abspath(path))
    other = {"x": "y", "y": "x", "u": "v", "v": "u"}.get(name)
    return other is not None and os.path.isdir(os.path.join(parent, other))


def read_frame_folder(path: str | Path, plan: Plan, *, frame_count: int | None = None) -> Frames:
    """Read the frames that a plan asks for from a folder of images.

    Args:
        path: the folder.
        plan: called with the number of frames F, gives the wanted indices in [0, F), sorted; 0 is the lowest number.
        frame_count: F as a list announces it; images behind are left alone. None = all there are.

    Returns:
        Upright RGB frames.

    Raises:
        DecodeError: it can't be read, has gaps in its numbering, holds fewer images than announced, or an image that
            is wanted is damaged or of another size than the first.
    """
    path = os.fspath(path)
    try:
        files = _list_frames(path)
        if frame_count is not None and not 0 < frame_count <= len(files):
            raise DecodeError(path, f"{frame_count} frames announced, {len(files)} images there")
        count = len(files) if frame_count is None else frame_count
        indices = plan(count)
        unique, places = np.unique(indices, return_inverse=True)
        data = _read(path, [files[i] for i in unique.tolist()])
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise DecodeError(path, "no such folder" if missing else f"can't be read ({error.strerror})") from None
    if len(unique) < len(indices):
        data = data[places]
    tensor = torch.from_numpy(data).permute(0, 3, 1, 2)
    return Frames(data=tensor, indices=indices.astype(np.int64), frame_count=count, path=path, backend="images")


def _read(path: str, files: list[str]) -> UInt8:
    """(U, H, W, 3)."""
    frames: UInt8 | None = None
    for i, file in enumerate(files):
        image = read_image(os.path.join(path, file), clip=path)
        if frames is None:
            frames = np.empty((len(files), *image.shape), dtype=np.uint8)
        if image.shape != frames.shape[1:]:
            sizes = "×".join(map(str, image.shape[1::-1])), "×".join(map(str, frames.shape[2:0:-1]))
            raise image_fault(os.path.join(path, file), path, f"{sizes[0]} pixels where {files[0]} has {sizes[1]}")
        frames[i] = image
    assert frames is not None  # a plan asks for one frame at least
    return frames


def _list_frames(path: str) -> list[str]:
    """Names of the images in the order of their numbers."""
    found: dict[int, str] = {}
    first: tuple[str, str] | None = None
    for prefix, number, name in _images(path):
        first = first or (prefix, name)
        if prefix != first[0]:
            names = " and ".join(sorted((first[1], name)))
            raise DecodeError(path, f"holds images of two kinds, {names}; a folder of frames holds one")
        if number in found:
            names = " and ".join(sorted((found[number], name)))
            raise DecodeError(path, f"frame {number} is there twice: {names}")
        found[number] = name
    if not found:
        raise DecodeError(path, "holds no frames (00001.jpg, 00002.jpg, …)")
    numbers = np.fromiter(found, dtype=np.int64, count=len(found))
    numbers.sort()
    if gaps := _gaps(numbers):
        raise DecodeError(path, f"missing frames: {gaps} (of {numbers[0]} to {numbers[-1]})")
    if numbers[0] > 1:
        raise DecodeError(path, f"begins at frame {numbers[0]}; a folder of frames begins at 0 or 1")
    return [found[number] for number in numbers.tolist()]


def _gaps(numbers: Int64) -> str:
    """Numbers that are missing, in words: ``3, 7–9``; "" if none."""
    breaks = np.flatnonzero(np.diff(numbers) > 1)
    shown = []
    for at in breaks[:_SHOWN]:
        low, high = int(numbers[at]) + 1, int(numbers[at + 1]) - 1
        shown.append(str(low) if low == high else f"{low}–{high}")
    return ", ".join(shown) + (f" and {len(breaks) - _SHOWN} more gaps" if len(breaks) > _SHOWN else "")


def _images(folder: str | Path) -> Iterator[tuple[str, int, str]]:
    """What stands before its number, the number and the name of every image of a frame, in no order."""
    matched, flow = _NUMBERED.fullmatch, FLOW_PREFIXES
    for entry in list_folder(folder):
        if (match := matched(entry.name)) and (prefix := match[1]).lower() not in flow:
            yield prefix, int(match[2]), entry.name
