"""Stacked optical flow: folders of flow images and NumPy arrays to the input of a temporal stream.

A field of flow says how far every pixel moves from one frame to the next, x to the right and y down. As an
image it is uint8 with 128 for no motion: v pixels are round(255 · (v + 20) / 40), clipped at ±20 pixels, as in
TSN (Wang et al., ECCV 2016). A model sees ``fields`` successive ones at each of its T positions:

    F = 10 fields, fields = 5: 6 possible starts     starts       0   1   2   3   4   5
    T = 2: the sampler takes starts 1 and 4          stack 0      1 2 3 4 5
                                                     stack 1      4 5 6 7 8
    channels of a stack, in TSN's order              x1 y1 x2 y2 x3 y3 x4 y4 x5 y5

A clip of fewer than ``fields`` fields gives one stack, in which fields are repeated in order, as frames are in a
video shorter than T.

Images of a field, JPEG or PNG, in one folder per clip; u stands for x and v for y:

    flow_x_00001.jpg flow_y_00001.jpg …      x_00001.jpg y_00001.jpg …      x/00001.jpg … y/00001.jpg …

Their numbers give the order. Arrays are ``.npy`` files of shape (F, 2, H, W) or (F, H, W, 2), uint8 as above or
floating point in pixels; they are read as data, never as code.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import Tensor

from vireo.data.images import ENDING, UInt8, image_fault, is_folder, is_sane, list_folder, read_image
from vireo.data.sampling import Indices, segment_indices
from vireo.data.table import counted
from vireo.errors import DecodeError

BOUND = 20.0
"""Flow at which images saturate, pixels."""
_FLAT = re.compile(rf"(?:flow_)?([xyuv])_?([0-9]+){ENDING}", re.IGNORECASE)
FLOW_PREFIXES = frozenset(f"{start}{axis}{end}" for start in ("", "flow_") for axis in "xyuv" for end in ("", "_"))
"""What stands before the number of a flow image that lies directly in a clip's folder, in small letters."""
_NUMBERED = re.compile(rf"(?:.*[^0-9])?([0-9]+){ENDING}", re.IGNORECASE)
_AXIS = {"x": 0, "u": 0, "y": 1, "v": 1}
_WINDOW = 64  # fields in memory at a time when all are read
_MAKE = "`vireo flow` computes the flow of videos and of folders of frames"


def flow_reader_name() -> str:
    """What reads flow, and its version, for the record of a result."""
    return f"flow fields by torchvision {torchvision.__version__}, NumPy {np.__version__}"


def is_flow_clip(path: str | Path) -> bool:
    """Whether a path is laid out like a clip of flow, a folder of flow images or a .npy file; no image is opened.

    Raises:
        OSError: a folder that can't be listed.
    """
    if os.path.isdir(path):
        with contextlib.suppress(DecodeError):  # too many entries for a clip
            return any(True for _ in _images(path))
        return False
    return is_flow_file(path)


def is_flow_file(path: str | Path) -> bool:
    """Whether a file is named like a clip of flow, a .npy array; nothing is opened."""
    return os.fspath(path).lower().endswith(".npy")


def read_flow(path: str | Path, plan: Callable[[int], Indices], *, fields: int) -> Tensor:
    """Read the stacks of flow that a plan asks for.

    Args:
        path: a folder of flow images, or a .npy file.
        plan: called with the number of possible starts, max(1, F - fields + 1), gives the T starts wanted, sorted.
        fields: successive fields in a stack.

    Returns:
        (T, 2 · fields, H, W) uint8 whose memory is T, H, W, 2 · fields (channels last).

    Raises:
        DecodeError: it can't be read, is damaged, or holds no flow.
    """
    path = os.fspath(path)
    with _faults(path):
        source = _Folder(path) if os.path.isdir(path) else _Array(path)
        count = len(source)
        starts = plan(max(1, count - fields + 1))
        within = segment_indices(min(count, fields), fields)  # 0 … fields - 1, or fewer with repeats
        wanted, places = np.unique(starts[:, None] + within, return_inverse=True)
        read = source.read(wanted)
    stacks = read[places.reshape(len(starts), fields)].transpose(0, 2, 3, 1, 4)  # (T, H, W, fields, 2)
    frames = np.ascontiguousarray(stacks).reshape(*stacks.shape[:3], 2 * fields)
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def read_all_flow(path: str | Path) -> Iterator[UInt8]:
    """All fields of a clip, some at a time, each (n, H, W, 2) uint8, x and y.

    Raises:
        DecodeError: while iterating, as `read_flow`.
    """
    path = os.fspath(path)
    with _faults(path):
        source = _Folder(path) if os.path.isdir(path) else _Array(path)
        size: tuple[int, ...] | None = None
        for begin in range(0, len(source), _WINDOW):
            fields = source.read(np.arange(begin, min(begin + _WINDOW, len(source)), dtype=np.int64))
            size = size or fields.shape[1:3]
            if fields.shape[1:3] != size:
                sizes = "×".join(map(str, fields.shape[2:0:-1])), "×".join(map(str, size[::-1]))
                raise DecodeError(path, f"field {begin + 1}: {sizes[0]} pixels where others have {sizes[1]}")
            yield fields


@contextlib.contextmanager
def _faults(path: str) -> Iterator[None]:
    """Turn the system's errors into `DecodeError`."""
    try:
        yield
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise DecodeError(path, "no such file or folder" if missing else f"can't be read ({error.strerror})") from None


def mirror_flow(stacks: Tensor) -> Tensor:
    """Stacks of flow of the mirrored video: images mirrored left to right, horizontal motion negated.

    A value q of a horizontal channel becomes 256 - q: no motion, 128, stays 128, and the model's input, centred
    there, is negated exactly. 0 becomes 255, the nearest there is. (TSN's 255 - q turns stillness into motion.)

    Args:
        stacks: (..., 2 · fields, H, W) uint8, channels x1, y1, x2, y2, …

    Returns:
        The same shape, new memory.
    """
    mirrored = stacks.flip(-1)
    horizontal = mirrored[..., 0::2, :, :]
    # In uint8, -q is 256 - q for every q but 0.
    horizontal.copy_(horizontal.clamp(min=1).neg())
    return mirrored


def to_uint8(flow: npt.NDArray[np.floating]) -> UInt8:
    """Flow in pixels as TSN's images: clipped to ±20, scaled to 0..255, rounded to nearest, ties to even."""
    clipped = np.clip(flow.astype(np.float32), -BOUND, BOUND)
    scaled: UInt8 = np.rint((clipped + np.float32(BOUND)) * np.float32(255 / (2 * BOUND))).astype(np.uint8)
    return scaled


# Folders of images


class _Folder:
    """A clip as images; its length is its number of fields."""

    def __init__(self, path: str) -> None:
        self._path = path
        found: tuple[dict[int, str], dict[int, str]] = ({}, {})
        for axis, number, file in _images(path):
            if number in found[axis]:
                raise DecodeError(path, f"{'xy'[axis]} image number {number} occurs twice")
            found[axis][number] = file
        across, down = found
        if not across and not down:
            raise DecodeError(path, "holds no flow images (flow_x_00001.jpg, flow_y_00001.jpg, …): " + _MAKE)
        if len(across) != len(down):
            raise DecodeError(
                path,
                f"{counted(len(across), 'x image')} and {counted(len(down), 'y image')}; a field needs one of each",
            )
        numbers = sorted(across)
        if alone := [n for n in numbers if n not in down]:
            raise DecodeError(path, f"x image number {alone[0]} has no y image")
        self._files = [(across[n], down[n]) for n in numbers]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Indices) -> UInt8:
        """(U, H, W, 2) uint8."""
        fields: UInt8 | None = None
        for i, index in enumerate(indices.tolist()):
            for axis, file in enumerate(self._files[index]):
                image = read_image(file, clip=self._path, gray=True)
                if fields is None:
                    fields = np.empty((len(indices), *image.shape, 2), dtype=np.uint8)
                if image.shape != fields.shape[1:3]:
                    sizes = "×".join(map(str, image.shape[::-1])), "×".join(map(str, fields.shape[2:0:-1]))
                    raise image_fault(file, self._path, f"{sizes[0]} pixels where others have {sizes[1]}")
                fields[i, :, :, axis] = image
        assert fields is not None  # a plan asks for one field at least
        return fields


def _images(folder: str | Path) -> Iterator[tuple[int, int, str]]:
    """Axis (0 = x, 1 = y), number and path of every flow image, in no order."""
    for entry in list_folder(folder):
        if match := _FLAT.fullmatch(entry.name):
            yield _AXIS[match[1].lower()], int(match[2]), entry.path
        elif entry.name.lower() in _AXIS and is_folder(entry):
            for file in list_folder(entry.path):
                if match := _NUMBERED.fullmatch(file.name):
                    yield _AXIS[entry.name.lower()], int(match[1]), file.path


# Arrays


class _Array:
    """A clip as a memory-mapped .npy file; its length is its number of fields."""

    def __init__(self, path: str) -> None:
        self._path = path
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError(path, "not a regular file")
        if not is_flow_file(path):
            raise DecodeError(path, "not a clip of flow, which is a folder of flow images or a .npy array: " + _MAKE)
        shape, fortran, dtype, offset = self._header()
        if dtype != np.uint8 and dtype.kind != "f":  # of objects too, which only unpickling could read
            raise DecodeError(path, f"values of type {dtype}; flow is uint8 (128 = no motion) or float32 (pixels)")
        if len(shape) != 4 or (shape[1] == 2) == (shape[3] == 2):
            raise DecodeError(path, f"shape {shape}; flow is (F, 2, H, W) or (F, H, W, 2)")
        self._first = shape[1] == 2
        if shape[0] < 1 or not is_sane(*(shape[2:] if self._first else shape[1:3])):
            raise DecodeError(path, f"shape {shape} is empty, or larger than any real flow's")
        needed = offset + dtype.itemsize * shape[0] * shape[1] * shape[2] * shape[3]
        if status.st_size < needed:
            raise DecodeError(path, f"cut short: {status.st_size} bytes where its shape {shape} needs {needed}")
        order = "F" if fortran else "C"
        self._values = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)  # type: ignore[call-overload]

    def _header(self) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
        """Shape, whether in Fortran's order, type, and where the values begin, bytes."""
        with open(self._path, "rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, fortran, dtype = read[version](file)
            except OSError:
                raise
            # The header is text, parsed as a literal: damage shows itself in many ways.
            except (ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError):
                raise DecodeError(self._path, "not a .npy array, or its header is damaged") from None
            if not all(type(n) is int for n in shape):  # NumPy lets True pass, which counts for nothing later
                raise DecodeError(self._path, f"shape {shape} is not of whole numbers")
            return shape, fortran, dtype, file.tell()

    def __len__(self) -> int:
        return int(self._values.shape[0])

    def read(self, indices: Indices) -> UInt8:
        """(U, H, W, 2) uint8."""
        values = np.asarray(self._values[indices])  # a copy of the fields wanted
        if self._first:
            values = values.transpose(0, 2, 3, 1)
        if values.dtype == np.uint8:
            return values
        if not np.isfinite(values).all():
            raise DecodeError(self._path, "holds values that are infinite or not a number")
        return to_uint8(values)
