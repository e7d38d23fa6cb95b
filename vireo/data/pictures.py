"""Decoded frames become pictures: RGB, upright, all of one size, in one array."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from vireo.data.images import is_sane
from vireo.data.index import Int64, NotAsIndexedError, Picture
from vireo.errors import DecodeError

MAX_BYTES = 4 << 30
"""Most bytes of the frames of one read: 160 of 4K."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """Decoded frames of one clip."""

    data: Tensor
    """(T, 3, H, W) uint8 RGB whose memory is T, H, W, 3 (channels last)."""
    indices: Int64
    """(T,) their positions in the video or its cut, sorted; a frame may occur more than once."""
    frame_count: int
    """F, frames of the video or its cut."""
    path: str
    moved: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    """(T,) how many frames after the wanted one each lies (before it: negative); all 0 in exact mode, the default."""
    backend: str = "pyav"
    """What decoded them."""

    def __post_init__(self) -> None:
        data, indices = self.data, self.indices
        if data.dtype != torch.uint8 or data.ndim != 4 or data.shape[1] != 3:
            raise ValueError(f"frames must be (T, 3, H, W) uint8, not {tuple(data.shape)} {data.dtype}")
        if not data.permute(0, 2, 3, 1).is_contiguous():
            raise ValueError("the memory of frames must be T, H, W, 3")
        check_indices(indices, self.frame_count)
        if len(indices) != len(data):
            raise ValueError(f"{len(indices)} indices for {len(data)} frames")
        if not len(self.moved):
            object.__setattr__(self, "moved", np.zeros(len(indices), np.int64))
        if self.moved.shape != indices.shape:
            raise ValueError(f"{len(self.moved)} distances for {len(data)} frames")


def check_indices(indices: Int64, frame_count: int) -> None:
    """Raise ValueError unless they are a plan's answer: sorted integers in [0, ``frame_count``), one at least."""
    ok = indices.ndim == 1 and len(indices) > 0 and np.issubdtype(indices.dtype, np.integer)
    if not (ok and indices[0] >= 0 and indices[-1] < frame_count and np.all(np.diff(indices) >= 0)):
        raise ValueError(f"indices must be a sorted row of integers in [0, {frame_count}), not {indices}")


class Choice(NamedTuple):
    """The frames to decode."""

    first: int
    """Position in the video at which the cut begins."""
    wanted: Int64
    """(U,) positions in the video, sorted, without repetition."""
    indices: Int64
    """(T,) positions in the cut."""
    moved: Int64
    """(T,)"""
    frame_count: int
    """F of the cut."""


class Pictures:
    """Collects the frames of a choice; each has the size of the first.

    Args:
        choice: the frames.
        path: of the video, for errors.
    """

    def __init__(self, choice: Choice, path: str) -> None:
        self.looks: set[Picture] = set()
        self.choice, self._path, self._filled, self._size = choice, path, 0, (0, 0)
        # A frame that is wanted several times has neighbouring places.
        self._places = [*np.searchsorted(choice.indices, choice.wanted - choice.first).tolist(), len(choice.indices)]
        self._data: npt.NDArray[np.uint8] | None = None
        self._reformatter = VideoReformatter()

    def __len__(self) -> int:
        return self._filled

    def add(self, frame: VideoFrame, expected: Picture | None = None) -> None:
        """Convert the next frame wanted.

        Args:
            frame: as decoded.
            expected: what the container's frames look like, where this one does not come from the container.

        Raises:
            NotAsIndexedError: it looks different.
            DecodeError: all frames wanted would take too much memory.
            FFmpegError, ValueError: it can't be converted.
        """
        look = look_of(frame)
        if expected is not None:
            if look.rotation == 0:  # the container's flag, which frames made without it don't carry
                look = look._replace(rotation=expected.rotation)
            if look != expected:
                raise NotAsIndexedError
        self.looks.add(look)
        if self._data is None:
            self._size = (frame.width, frame.height)
            check_memory(self._path, len(self.choice.indices), frame.width, frame.height)
        width, height = self._size
        # threads=1: by default swscale starts threads of its own, which costs more than it saves.
        rgb: Any = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        turns = quarter_turns(look.rotation)
        shape = (width, height) if turns % 2 else (height, width)
        if self._data is None:
            self._data = np.empty((len(self.choice.indices), *shape, 3), dtype=np.uint8)
        first, last = self._places[self._filled : self._filled + 2]
        if shape != self._data.shape[1:3]:
            turns += 1  # turned by a quarter in the middle
        _turn_into(self._data[first], rgb, turns)
        self._data[first + 1 : last] = self._data[first]
        self._filled += 1

    def arrange(self) -> Frames:
        """What was asked for, once all frames are there."""
        assert self._data is not None and self._filled == len(self.choice.wanted)
        return arranged(self._data, self.choice, self._path, "pyav")


def look_of(frame: VideoFrame) -> Picture:
    """What a frame looks like, apart from its content."""
    return Picture(
        frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range), frame.rotation
    )


def quarter_turns(rotation: int) -> int:
    """Degrees as quarter turns, 0 to 3."""
    return round(rotation / 90) % 4


def check_size(path: str, width: int, height: int) -> None:
    """Raise DecodeError if frames of this size can be no video's."""
    if (width or height) and not is_sane(height, width):  # some headers leave it to the first frame
        raise DecodeError(path, f"frames of {width}×{height} pixels; no real video has such frames")


def check_memory(path: str, count: int, width: int, height: int) -> None:
    """Raise DecodeError if so many frames of this size are too much to hold."""
    if 3 * count * width * height > MAX_BYTES:
        size = f"{count} frames of {width}×{height} pixels"
        raise DecodeError(path, f"{size} take more than {MAX_BYTES >> 30} GiB; make it smaller first")


def _turn_into(target: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8], turns: int) -> None:
    """Write an (H, W, 3) image, turned counterclockwise by some quarters, into an array of its own size."""
    # Copying the view of np.rot90 in one go takes three to twenty times as long.
    if turns % 4 == 0:
        target[...] = image
    elif turns % 4 == 2:
        torch.from_numpy(target).copy_(torch.from_numpy(image).flip(0, 1))
    else:
        turned = np.rot90(image, turns)
        for channel in range(3):
            target[..., channel] = turned[..., channel]


def arranged(data: npt.NDArray[np.uint8], choice: Choice, path: str, backend: str) -> Frames:
    """Frames from (T, H, W, 3) pictures."""
    return Frames(
        data=torch.from_numpy(data).permute(0, 3, 1, 2),
        indices=choice.indices,
        frame_count=choice.frame_count,
        path=path,
        moved=choice.moved,
        backend=backend,
    )
