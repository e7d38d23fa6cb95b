"""One JPEG or PNG of a clip, read with care: frames of a video and fields of flow.

Nothing about a file is believed before it is checked: that it is a regular file, how large it is, and, before memory
is taken for them, how many pixels its header announces. A file cut short is refused, wherever the cut. Bits that
changed inside a JPEG's pixels can't be told from a picture of other content, and pass.

JPEGs are decoded by libjpeg-turbo, which torchvision brings. (From 0.29 on it recommends TorchCodec's decoders, an
optional package here; this is the place to change.)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchvision.io import ImageReadMode, decode_image

from vireo.errors import DecodeError

UInt8 = npt.NDArray[np.uint8]

ENDING = r"\.(?:jpe?g|png)"
"""Pattern of the endings of images' names, to be compiled with IGNORECASE."""
MAX_SIDE = 16384
"""Longest side of a frame, pixels."""
MAX_PIXELS = 1 << 26
"""Most pixels of a frame: 8K for both eyes, 8192×8192."""
MAX_ASPECT = 64
"""How many times as long as the other a side of a frame may be: a resize of the short side lengthens both."""
MAX_FILE = 64 << 20
"""Largest image file, bytes."""
MAX_ENTRIES = 400_000
"""Most entries of a clip's folder: a frame and its flow for more than an hour."""


def read_image(file: str, *, clip: str, gray: bool = False) -> UInt8:
    """Read one image.

    Args:
        file: the JPEG or PNG, below ``clip``.
        clip: the folder, which errors name.
        gray: whether its luminance is wanted, as stored; else RGB, turned upright as its EXIF header says.

    Returns:
        (H, W), or (H, W, 3). Transparency is dropped, grey repeated, CMYK converted.

    Raises:
        DecodeError: of ``clip``; the reason names the file.
    """
    fault = partial(image_fault, file, clip)
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            raise fault("not a regular file")
        if not 0 < status.st_size <= MAX_FILE:
            raise fault("empty file (0 bytes)" if not status.st_size else "too large for an image")
        data = bytearray(status.st_size)
        with open(file, "rb", buffering=0) as opened:
            complete = opened.readinto(data) == len(data)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise fault("no such file" if missing else f"can't be read ({error.strerror})") from None
    if not complete:
        raise fault("changed while it was read")
    size = picture_size(data)
    if size is None:
        raise fault("not a JPEG or PNG image, or its header is damaged")
    if not is_sane(*size):  # before memory is taken for it
        raise fault(f"{size[1]}×{size[0]} pixels; no real video has such frames")
    mode = ImageReadMode.GRAY if gray else ImageReadMode.RGB
    try:
        image = decode_image(torch.frombuffer(data, dtype=torch.uint8), mode, apply_exif_orientation=not gray)
    except RuntimeError:
        raise fault("damaged or cut short") from None
    if image.dtype != torch.uint8:
        raise fault("16 bits per pixel; images of clips have 8")
    found = tuple(image.shape[1:])
    if found != size and (gray or found != size[::-1]):  # a decoder that reads headers otherwise would pass the bound
        raise fault(f"{found[1]}×{found[0]} pixels where its header says {size[1]}×{size[0]}")
    array: UInt8 = image[0].numpy() if gray else image.permute(1, 2, 0).numpy()
    return array


def list_folder(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a clip's folder, in no order, without hidden ones.

    Raises:
        DecodeError: there are more than `MAX_ENTRIES`.
        OSError: it can't be listed.
    """
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count == MAX_ENTRIES:
                raise DecodeError(folder, f"holds more than {MAX_ENTRIES:,} entries; that is no clip")
            if not entry.name.startswith("."):
                yield entry


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; links that lead in a circle or nowhere are none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def image_fault(file: str, clip: str, what: str) -> DecodeError:
    """The error of a clip in whose folder one file is wrong."""
    return DecodeError(clip, f"{os.path.relpath(file, clip)}: {what}")


def is_sane(height: int, width: int) -> bool:
    """Whether a picture of a video can have this size."""
    short, long = sorted((height, width))
    return short > 0 and long <= min(MAX_SIDE, MAX_ASPECT * short) and height * width <= MAX_PIXELS


def picture_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """Height and width that the header of a JPEG or PNG states; None if it is neither, or could be read two ways.

    Decoders skip damage in the header of a JPEG, each in its own way; any damage refuses the image here, so that
    the size found is the one that will be decoded.
    """
    if data[:16] == b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # stands alone
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        elif marker in (0x00, 0xD8, 0xD9, 0xDA):  # no marker; a second start; the end or pixels, and no frame yet
            return None
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if length < 2:  # it counts itself
                return None
            at += 2 + length
    return None
