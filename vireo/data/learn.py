"""What decoding a whole video teaches: how many frames it has, and whether packets of it may be left out after all."""

from __future__ import annotations

import dataclasses

import av.error
import numpy as np
from av.video.frame import VideoFrame

from vireo.data import bitstreams
from vireo.data.bitstreams import DROP, START, UnusualError
from vireo.data.container import Video, opened_file
from vireo.data.index import NotAsIndexedError, Picture, VideoIndex
from vireo.data.indexed import decode_wanted, new_context, packet_reader
from vireo.data.pictures import look_of
from vireo.errors import DecodeError

_PROOFS = 12  # frames compared before packets of MPEG-4 are left out


class Seen:
    """What decoding everything in sequence shows of a video, without keeping its frames."""

    def __init__(self) -> None:
        self.count = 0
        self.first: VideoFrame | None = None
        self.looks: set[Picture] = set()
        """Two are enough to know that frames differ."""
        self.stamps: list[int | None] = []
        self.kinds: list[int] = []
        self.samples: dict[int, VideoFrame] = {}
        """A few frames from all over the video, by their numbers."""
        self._every = 1

    def add(self, frame: VideoFrame) -> None:
        """Look at the next frame."""
        self.first = self.first or frame
        if len(self.looks) < 2:
            self.looks.add(look_of(frame))
        self.stamps.append(frame.pts)
        self.kinds.append(int(frame.pict_type))
        if self.count % self._every == 0:
            self.samples[self.count] = frame
            if len(self.samples) > _PROOFS:
                # Odd steps: frames that are left out often come at every second or fourth place.
                self._every = 2 * self._every + 1
                self.samples = {i: kept for i, kept in self.samples.items() if i % self._every == 0}
        self.count += 1


def learn(video: Video, seen: Seen, *, distrust: bool = False) -> VideoIndex:
    """The index of a video that was decoded from its beginning to its end.

    Args:
        video: the file, whose packets have been read.
        seen: all its frames.
        distrust: whether leaving packets out went wrong before, so that it is not to be tried again.
    """
    index = video.index
    if index.fast:
        if not distrust and index.frame_count == seen.count and index.pts.tolist() == seen.stamps:
            return index.with_looks(seen.looks)
        index = index.slowed("its frames are not those that its packets announce")
    known = np.array([s for s in seen.stamps if s is not None], dtype=np.int64)
    ordered = len(known) == seen.count and bool(np.all(np.diff(known) > 0)) and video.time_base is not None
    index = dataclasses.replace(index, frame_count=seen.count, pts=known if ordered else np.empty(0, np.int64))
    if index.coding.codec == "mpeg4" and not distrust and len(seen.looks) == 1:
        candidate = _mpeg4_index(video, index, seen)
        if candidate is not None and _is_proved(video, candidate, seen.samples):
            return candidate
    return index


def _mpeg4_index(video: Video, index: VideoIndex, seen: Seen) -> VideoIndex | None:
    """How an MPEG-4 video could be read with packets left out, or None."""
    held, offsets = video.held, video.scan.offsets
    if held is None or len(offsets) != len(held):
        return None
    try:
        units = bitstreams.mpeg4_units([bytes(packet) for packet in held], index.coding.extradata)
    except UnusualError:
        return None
    kinds = [unit.kind for unit in units]
    order = bitstreams.mpeg4_order(kinds)
    # FFmpeg counts picture types from 1, in the same order.
    if not kinds or kinds[0] != 0 or [kinds[i] + 1 for i in order] != seen.kinds:
        return None
    roles = [START * (kind == 0) | DROP * (kind == 2) for kind in kinds]
    return dataclasses.replace(
        index,
        slow="",
        picture=next(iter(seen.looks)),
        order=np.array(order, dtype=np.int64),
        roles=np.array(roles, dtype=np.uint8),
        offsets=np.array([offsets[unit.packet] + unit.begin for unit in units], dtype=np.int64),
        sizes=np.array([unit.end - unit.begin for unit in units], dtype=np.int64),
    )


def _is_proved(video: Video, index: VideoIndex, samples: dict[int, VideoFrame]) -> bool:
    """Whether frames read by an index are those that decoding in sequence gave."""
    try:
        index.check(video.key.size)
        with opened_file(video.path) as file:
            wanted = np.array(sorted(samples), dtype=np.int64)
            decoded = decode_wanted(new_context(index.coding), index, packet_reader(file, index), wanted)
            return all(
                np.array_equal(frame.to_ndarray(), samples[position].to_ndarray())
                for position, frame in zip(wanted.tolist(), decoded, strict=True)
            )
    except (NotAsIndexedError, DecodeError, av.error.FFmpegError, OSError, ValueError):
        return False
