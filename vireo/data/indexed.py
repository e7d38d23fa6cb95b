"""Decoding some frames of a video by its index, with the packets left out that they don't need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import av
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from vireo.data.container import prepare
from vireo.data.index import Coding, Int64, NotAsIndexedError, VideoIndex

PacketGetter: TypeAlias = "Callable[[int], Packet[Any]]"
"""Gives packet k of a video, asked for in ascending order."""


def decode_wanted(
    context: VideoCodecContext, index: VideoIndex, packet: PacketGetter, wanted: Int64
) -> Iterator[VideoFrame]:
    """Decode some frames of a video and as few others as possible; they come in order.

    Args:
        context: a decoder at its beginning.
        index: of a fast video.
        packet: gives packet k, asked for in ascending order.
        wanted: (W,) frames, sorted, without repetition.

    Raises:
        NotAsIndexedError: the frames are not those that the index says, or damaged.
    """
    left = set(wanted.tolist())
    for turn, (first, last) in enumerate(index.stretches(wanted)):
        if turn:
            context.flush_buffers()
        context.reorder_depth = index.coding.delay  # as if the decoder had seen the beginning
        ranks = index.ranks[first : last + 1].tolist()
        floor = max(ranks[0], 0)
        due, newest = 0, -1
        # All that is decoded is also fetched and looked at, the last frames too: one that others were predicted from
        # may be damaged where they are not. FFmpeg mends damage with pixels of frames that may be left out here.
        for number in [*index.needed(first, last, wanted), None]:
            if number is None:
                frames = context.decode(None)
            else:
                item = packet(number)
                item.pts = number  # comes back as the time stamp of the frame
                frames = context.decode(item)
                due += ranks[number - first] >= floor
            for frame in frames:
                at = frame.pts
                if at is None or not first <= at <= last:
                    raise NotAsIndexedError
                rank = ranks[at - first]
                if rank < floor:  # not shown, or shown before the start and without what it needs
                    continue
                if frame.is_corrupt or rank <= newest:
                    raise NotAsIndexedError
                due, newest = due - 1, rank
                if rank in left:
                    left.remove(rank)
                    yield frame
        if due:
            raise NotAsIndexedError
    if left:
        raise NotAsIndexedError


def new_context(coding: Coding) -> VideoCodecContext:
    """A decoder that knows what the container would have told it."""
    context: Any = av.CodecContext.create(coding.codec, "r")
    if coding.extradata:
        context.extradata = coding.extradata
    context.codec_tag = coding.tag
    context.width, context.height = coding.width, coding.height
    context.bits_per_coded_sample = coding.bits
    context.color_range, context.color_primaries, context.color_trc, context.colorspace = coding.colors
    return prepare(context)


def packet_reader(file: int, index: VideoIndex) -> PacketGetter:
    """Reads packets of an open file from where its index says they are."""

    def read(number: int) -> Packet[Any]:
        size = int(index.sizes[number])
        packet: Packet[Any] = Packet(size)
        if os.preadv(file, [packet], int(index.offsets[number])) != size:
            raise NotAsIndexedError
        return packet

    return read
