"""TorchCodec as a second decoder, for videos on which it gives the frames that PyAV gives."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

import torch
from torch import Tensor

from vireo.data.index import Int64, VideoIndex
from vireo.errors import MissingDependencyError

# Both convert these with the same code of swscale. In MPEG-4 with packed B-frames TorchCodec counts other frames.
_SAME_PIXELS = frozenset({"yuv420p"})
_SAME_FRAMES = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "libdav1d"})


def _decoders() -> Any:
    import torchcodec.decoders

    return torchcodec.decoders


@functools.cache
def torchcodec_version() -> str:
    """The version of TorchCodec, once it is known to work.

    Raises:
        MissingDependencyError: it is not installed, or finds no FFmpeg libraries.
    """
    try:
        _decoders().VideoDecoder(b"no video")
    except ImportError:
        raise MissingDependencyError(
            "The decoder 'torchcodec' is not installed. pip install torchcodec, or use the decoder 'pyav'."
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        if "libtorchcodec" in str(error):  # otherwise it said that this is no video, so it works
            raise MissingDependencyError(_NO_FFMPEG) from None
    return importlib.metadata.version("torchcodec")


_NO_FFMPEG = (
    "The decoder 'torchcodec' finds no shared libraries of FFmpeg. Install FFmpeg, or use "
    "the decoder 'pyav', which brings its own."
)


def read_positions(path: str, positions: Int64, index: VideoIndex) -> Tensor | None:
    """Decode frames with TorchCodec on one thread.

    Args:
        path: a readable video.
        positions: (T,) frames, sorted.
        index: of the video.

    Returns:
        (T, H, W, 3) uint8, upright; None where they may differ from PyAV's, or TorchCodec can't read them.
    """
    picture = index.picture
    if picture is None or not index.fast:
        return None
    if index.coding.codec not in _SAME_FRAMES or picture.pixel_format not in _SAME_PIXELS:
        return None
    try:
        decoder = _decoders().VideoDecoder(
            "file:" + path, num_ffmpeg_threads=1, seek_mode="exact", dimension_order="NHWC", device="cpu"
        )
        if decoder.metadata.num_frames != index.frame_count:
            return None
        data: Tensor = decoder.get_frames_at(positions.tolist()).data
    except (RuntimeError, ValueError, IndexError, OSError):
        return None
    turned = picture.rotation % 180 != 0
    size = (picture.width, picture.height) if turned else (picture.height, picture.width)
    return data if data.dtype == torch.uint8 and tuple(data.shape[1:]) == (*size, 3) else None
