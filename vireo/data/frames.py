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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torchvision

from vireo.data.decode import Plan
from vireo.data.flow import FLOW_PREFIXES, is_flow_clip
from vireo.data.images import ENDING, UInt8, image_fault, list_folder, read_image
from vireo.data.index import Int64
from vireo.data.pictures import Frames, check_memory
from vireo.data.table import counted
from vireo.errors import DecodeError

_NUMBERED = re.compile(rf"(|.*[^0-9])([0-9]{{1,18}}){ENDING}", re.IGNORECASE)  # of int64
_SHOWN = 5  # gaps in the numbering that a message names
_WINDOW = 32  # images in memory at a time when all are read


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
    with _faults(path):
        files = _list_frames(path, frame_count)
        return _read(path, files, plan(len(files)))


def read_all_frames(path: str | Path, *, frame_count: int | None = None) -> Iterator[Frames]:
    """Read all frames of a folder of images, a few at a time; it is listed once.

    Args:
        path: the folder.
        frame_count: as in `read_frame_folder`.

    Raises:
        DecodeError: while iterating, as `read_frame_folder`.
    """
    path = os.fspath(path)
    with _faults(path):
        files = _list_frames(path, frame_count)
        size: torch.Size | None = None
        for begin in range(0, len(files), _WINDOW):
            frames = _read(path, files, np.arange(begin, min(begin + _WINDOW, len(files)), dtype=np.int64))
            size = size or frames.data.shape[2:]
            if frames.data.shape[2:] != size:
                raise _other_size(path, files[begin], frames.data.shape[2:], files[0], size)
            yield frames


@contextmanager
def _faults(path: str) -> Iterator[None]:
    """Turn the system's errors into `DecodeError`."""
    try:
        yield
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise DecodeError(path, "no such folder" if missing else f"can't be read ({error.strerror})") from None


def _read(path: str, files: list[str], indices: Int64) -> Frames:
    unique, places = np.unique(indices, return_inverse=True)
    data = _images_of(path, [files[i] for i in unique.tolist()], len(indices))
    if len(unique) < len(indices):
        data = data[places]
    tensor = torch.from_numpy(data).permute(0, 3, 1, 2)
    return Frames(data=tensor, indices=indices.astype(np.int64), frame_count=len(files), path=path, backend="images")


def _images_of(path: str, files: list[str], count: int) -> UInt8:
    """(U, H, W, 3); ``count`` of them are wanted, repetitions included."""
    frames: UInt8 | None = None
    for i, file in enumerate(files):
        image = read_image(os.path.join(path, file), clip=path)
        if frames is None:
            check_memory(path, count, image.shape[1], image.shape[0])
            frames = np.empty((len(files), *image.shape), dtype=np.uint8)
        if image.shape != frames.shape[1:]:
            raise _other_size(path, file, image.shape[:2], files[0], frames.shape[1:3])
        frames[i] = image
    assert frames is not None  # a plan asks for one frame at least
    return frames


def _other_size(path: str, file: str, size: Sequence[int], first: str, its: Sequence[int]) -> DecodeError:
    what = f"{size[1]}×{size[0]} pixels where {first} has {its[1]}×{its[0]}"
    return image_fault(os.path.join(path, file), path, what)


def _list_frames(path: str, announced: int | None) -> list[str]:
    """Names of the images in the order of their numbers, as many as a list announces."""
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
        if is_flow_clip(path):
            raise DecodeError(path, "holds optical flow and no frames; a model of --modality flow takes it")
        raise DecodeError(path, "holds no frames (00001.jpg, 00002.jpg, …)")
    numbers = np.fromiter(found, dtype=np.int64, count=len(found))
    numbers.sort()
    if gaps := _gaps(numbers):
        raise DecodeError(path, f"missing frames: {gaps} (of {numbers[0]} to {numbers[-1]})")
    if numbers[0] > 1:
        raise DecodeError(path, f"begins at frame {numbers[0]}; a folder of frames begins at 0 or 1")
    if announced is not None and not 0 < announced <= len(found):
        raise DecodeError(path, f"{counted(announced, 'frame')} announced, {counted(len(found), 'image')} there")
    return [found[number] for number in numbers[:announced].tolist()]


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
