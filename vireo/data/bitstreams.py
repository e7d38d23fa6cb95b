"""What the packets of a video stream say about themselves, read without decoding them.

For each packet of a stream: can decoding begin here, does any other frame need it, does it show a frame at
all? The answers let a decoder leave out what nobody asked for and still give the same frames, bit for bit.
They are trusted only where the format promises them; a stream with anything unusual in it (fields,
parameter sets that change, pictures that are never shown) is named with the reason and left to be decoded in
sequence.

Sources: ITU-T H.264 (7.3, D.1.8) and H.265 (7.3, 7.4.2.2), the VP9 bitstream specification (6.2, Annex B), RFC 6386
(VP8), the AV1 bitstream specification (5.3, 5.9), ISO/IEC 14496-2 (MPEG-4 Visual, 6.2.5), ITU-T T.81 (JPEG).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

START = 1
"""Decoding may begin with this packet: frames shown after its own need nothing before it."""
DROP = 2
"""No other frame needs this packet."""
HIDDEN = 4
"""The packet shows no frame."""


class UnusualError(Exception):
    """The stream is not one whose packets can be left out; the message says why."""


class Reader(Protocol):
    """Reads the packets of one stream in the order of the file."""

    def role(self, data: bytes) -> int:
        """`START`, `DROP` and `HIDDEN`, joined, of the next packet.

        Raises:
            UnusualError: packets of this stream must not be left out.
        """

    def droppable_layer(self) -> int | None:
        """Of codecs with temporal layers: the highest one. `DROP` holds only in it, see `layer`."""

    @property
    def layer(self) -> int:
        """The temporal layer of the packet read last."""


def reader(codec: str, extradata: bytes) -> Reader | None:
    """A reader for a decoder's format; None = packets of this format are not understood.

    Args:
        codec: FFmpeg's name of the decoder.
        extradata: the stream's header, as FFmpeg gives it to the decoder.

    Raises:
        UnusualError: packets of this stream must not be left out.
    """
    match codec:
        case "h264":
            return _H264(extradata)
        case "hevc":
            return _Hevc(extradata)
        case "vp8":
            return _Vp8()
        case "vp9":
            return _Vp9()
        case "av1" | "libdav1d":
            return _Av1()
        case "mjpeg":
            return _Mjpeg()
    return None


class _Base:
    layer = 0

    def droppable_layer(self) -> int | None:
        return None


class _Bits:
    """Bits of a header from the front; zeros behind its end."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")  # the byte that keeps start codes out of the payload
        self._bits, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def u(self, count: int) -> int:
        """An unsigned number of so many bits."""
        self._left -= count
        if self._left < 0:
            raise UnusualError("a header of its pictures is damaged")
        return self._bits >> self._left & ((1 << count) - 1)

    def ue(self) -> int:
        """An unsigned Exp-Golomb number."""
        zeros = 0
        while not self.u(1):
            zeros += 1
            if zeros > 32:
                raise UnusualError("a header of its pictures is damaged")
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        """A signed Exp-Golomb number."""
        code = self.ue()
        return (code + 1) // 2 if code & 1 else -(code // 2)


def _annex_b(data: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of the NAL units between start codes; a unit may end in zeros that are not its own."""
    begin = data.find(b"\0\0\1")
    while begin >= 0:
        end = data.find(b"\0\0\1", begin + 3)
        yield begin + 3, len(data) if end < 0 else end
        begin = end


def _sized(data: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the NAL units that follow their lengths."""
    at = 0
    while at + length_size <= len(data):
        begin = at + length_size
        at = begin + int.from_bytes(data[at:begin], "big")
        if at > len(data):
            raise UnusualError("a packet is damaged")
        yield begin, at


class _Nal(_Base):
    """What H.264 and H.265 share: NAL units, and parameter sets that must not change."""

    _head: int  # bytes before a NAL unit's payload

    def __init__(self) -> None:
        self._length_size = 0  # 0 = start codes
        self._sets: set[bytes] = set()
        self._packets = 0

    def _units(self, data: bytes) -> Iterator[tuple[int, int]]:
        return _sized(data, self._length_size) if self._length_size else _annex_b(data)

    def _add_set(self, unit: bytes) -> None:
        """A parameter set: a skipped packet must not be the one that brings it."""
        unit = unit.rstrip(b"\0")
        if not unit:
            raise UnusualError("its header is damaged")
        if unit not in self._sets:
            if self._packets > 1:
                raise UnusualError("its parameter sets change on the way")
            self._check_set(unit)
            self._sets.add(unit)

    def _check_set(self, unit: bytes) -> None:
        raise NotImplementedError

    def _listed_sets(self, data: bytes, at: int, count: int) -> int:
        for _ in range(count):
            size = int.from_bytes(data[at : at + 2], "big")
            self._add_set(data[at + 2 : at + 2 + size])
            at += 2 + size
        return at


class _H264(_Nal):
    def __init__(self, extradata: bytes) -> None:
        super().__init__()
        self._sequence: _Sequence | None = None
        self._last = 0  # frame_num of the last picture that others may need
        if len(extradata) > 6 and extradata[0] == 1:
            self._length_size = (extradata[4] & 3) + 1
            at = self._listed_sets(extradata, 6, extradata[5] & 31)
            self._listed_sets(extradata, at + 1, extradata[at] if at < len(extradata) else 0)
        else:
            for begin, end in _annex_b(extradata):
                if extradata[begin] & 31 in (7, 8):
                    self._add_set(extradata[begin:end])

    def _check_set(self, unit: bytes) -> None:
        if unit[0] & 31 == 7:
            sequence = _h264_sequence(unit)
            if sequence != (self._sequence or sequence):
                raise UnusualError("its parameter sets differ")
            self._sequence = sequence

    def role(self, data: bytes) -> int:
        self._packets += 1
        pictures, number, needed, recovers, has_sets = 0, 0, False, False, False
        idr = intra = True
        for begin, end in self._units(data):
            if begin >= end:
                continue
            kind = data[begin] & 31
            if kind in (1, 5):
                if self._sequence is None:
                    raise UnusualError("its parameter sets are missing")
                slice_header = _Bits(data[begin + 1 : min(end, begin + 24)])
                pictures += slice_header.ue() == 0
                intra &= slice_header.ue() % 5 in (2, 4)
                slice_header.ue()
                slice_header.u(2 * self._sequence.has_planes)
                number = slice_header.u(self._sequence.number_bits)
                idr = idr and kind == 5
                needed = needed or data[begin] & 0x60 != 0
            elif kind in (2, 3, 4):
                raise UnusualError("its pictures are split by importance")
            elif kind in (7, 8, 13, 15):
                has_sets = True
                if kind in (7, 8):
                    self._add_set(data[begin:end])
            elif kind == 6:
                recovers = recovers or _recovers_at_once(data[begin + 1 : end])
        if pictures != 1:
            raise UnusualError("a packet holds no picture, or several")
        if self._packets == 1 and not idr:
            raise UnusualError("it begins in the middle of a group of pictures")
        # Pictures that others need are counted (7.4.3): none must be missing. The one expected may be of either kind.
        if not idr and self._sequence and number != (self._last + 1) % (1 << self._sequence.number_bits):
            raise UnusualError("pictures are missing in it")
        if needed:
            self._last = number
        start = idr or (intra and recovers)
        return START * start | DROP * (not needed and not has_sets)


class _Sequence(NamedTuple):
    """What a sequence parameter set of H.264 says."""

    number_bits: int
    """Of frame_num in the headers of slices."""
    has_planes: bool
    """Whether these headers name a colour plane."""


def _h264_sequence(unit: bytes) -> _Sequence:
    """Read a sequence parameter set (7.3.2.1.1) up to frame_mbs_only_flag."""
    bits = _Bits(unit[1:])
    profile = bits.u(8)
    bits.u(16)
    bits.ue()
    has_planes = False
    if profile in (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244):
        chroma = bits.ue()
        if chroma == 3:
            has_planes = bool(bits.u(1))
        bits.ue(), bits.ue(), bits.u(1)
        if bits.u(1):
            for i in range(8 if chroma != 3 else 12):
                if bits.u(1):
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
    number_bits = bits.ue() + 4
    order_type = bits.ue()
    if order_type == 0:
        bits.ue()
    elif order_type == 1:
        bits.u(1), bits.se(), bits.se()
        for _ in range(min(bits.ue(), 255)):
            bits.se()
    bits.ue()
    if bits.u(1) or number_bits > 16:  # gaps_in_frame_num_value_allowed_flag
        raise UnusualError("pictures may be missing in it")
    bits.ue(), bits.ue()
    if not bits.u(1):
        raise UnusualError("interlaced")
    return _Sequence(number_bits, has_planes)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _recovers_at_once(sei: bytes) -> bool:
    """Whether an SEI unit says that all frames shown from this one on come out exactly (D.1.8)."""
    at = 0
    while at + 2 < len(sei):
        kind = size = 0
        while at < len(sei) and sei[at] == 255:
            kind, at = kind + 255, at + 1
        kind, at = kind + (sei[at] if at < len(sei) else 0), at + 1
        while at < len(sei) and sei[at] == 255:
            size, at = size + 255, at + 1
        size, at = size + (sei[at] if at < len(sei) else 0), at + 1
        if kind == 6 and at < len(sei):
            # recovery_frame_cnt ue(v) = 0 is one bit 1; then exact_match_flag, broken_link_flag.
            return sei[at] & 0b11100000 == 0b11000000
        at += size
    return False


class _Hevc(_Nal):
    def __init__(self, extradata: bytes) -> None:
        super().__init__()
        self._highest, self._ended, self._starts = 0, False, 0
        if len(extradata) > 23 and extradata[0] == 1:
            self._length_size = (extradata[21] & 3) + 1
            at = 23
            for _ in range(extradata[22]):
                at = self._listed_sets(extradata, at + 3, int.from_bytes(extradata[at + 1 : at + 3], "big"))
        else:
            for begin, end in _annex_b(extradata):
                if extradata[begin] >> 1 & 63 in (32, 33, 34):
                    self._add_set(extradata[begin:end])

    def _check_set(self, unit: bytes) -> None:
        if unit[0] >> 1 & 63 == 34:
            bits = _Bits(unit[2:])
            bits.ue(), bits.ue(), bits.u(1)
            if bits.u(1):  # output_flag_present_flag
                raise UnusualError("it may hold pictures that are not shown")

    def droppable_layer(self) -> int | None:
        return self._highest

    def role(self, data: bytes) -> int:
        self._packets += 1
        if self._ended:
            raise UnusualError("it consists of several streams")
        pictures, kind_of_picture, has_sets = 0, -1, False
        for begin, end in self._units(data):
            if end - begin < 3:
                continue
            kind, in_base = data[begin] >> 1 & 63, not (data[begin] & 1 or data[begin + 1] >> 3)
            if not in_base:
                continue
            if kind < 32:
                if data[begin + 2] & 0x80:  # first_slice_segment_in_pic_flag
                    pictures += 1
                    if 16 <= kind <= 23 and self._packets > 1 and data[begin + 2] & 0x40:
                        raise UnusualError("it may hold pictures that are not shown")
                kind_of_picture, self.layer = kind, (data[begin + 1] & 7) - 1
            elif kind in (32, 33, 34):
                has_sets = True
                self._add_set(data[begin:end])
            elif kind in (36, 37):
                self._ended = True
        if pictures != 1:
            raise UnusualError("a packet holds no picture, or several")
        if 16 <= kind_of_picture <= 18 or 22 <= kind_of_picture <= 31 or 10 <= kind_of_picture <= 15:
            raise UnusualError("it holds splices, or pictures of an unknown kind")
        start = kind_of_picture in (19, 20, 21)
        self._starts += start
        if self._packets == 1 and not start:
            raise UnusualError("it begins in the middle of a group of pictures")
        if kind_of_picture in (8, 9) and self._starts == 1:
            raise UnusualError("it begins with pictures that can't be shown")
        self._highest = max(self._highest, self.layer)
        return START * start | DROP * (kind_of_picture < 16 and kind_of_picture % 2 == 0 and not has_sets)


class _Vp8(_Base):
    def role(self, data: bytes) -> int:
        return START * (not data[0] & 1) | HIDDEN * (not data[0] >> 4 & 1)


class _Vp9(_Base):
    def role(self, data: bytes) -> int:
        shown, at = 0, 0
        sizes = _superframe(data)
        for size in sizes:
            if not size:
                raise UnusualError("a packet is damaged")
            key, shows = _vp9_head(data[at])
            if at == 0:
                start = key
            shown += shows
            at += size
        if shown > 1:
            raise UnusualError("a packet holds several frames")
        return START * start | HIDDEN * (not shown)


def _superframe(data: bytes) -> list[int]:
    """Sizes of the frames in a VP9 packet, bytes (Annex B)."""
    marker = data[-1]
    if marker & 0xE0 == 0xC0:
        count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
        index = data[-(2 + count * width) :]
        if len(index) == 2 + count * width and index[0] == marker:
            sizes = [int.from_bytes(index[1 + i * width : 1 + (i + 1) * width], "little") for i in range(count)]
            if sum(sizes) > len(data):
                raise UnusualError("a packet is damaged")
            return sizes
    return [len(data)]


def _vp9_head(byte: int) -> tuple[bool, bool]:
    """Whether a frame is a keyframe, and whether it is shown (6.2)."""
    if byte >> 6 != 2:
        raise UnusualError("a packet is damaged")
    if byte & 0x30 == 0x30:  # profile 3 has one more bit
        byte <<= 1
    show_existing, key, show = bool(byte & 8), not byte & 4, bool(byte & 2)
    return key and not show_existing, show or show_existing


class _Av1(_Base):
    def role(self, data: bytes) -> int:
        at = shown = 0
        start: bool | None = None
        has_sequence = False
        while at < len(data):
            head = data[at]
            kind, at = head >> 3 & 15, at + (2 if head & 4 else 1)
            size = len(data) - at
            if head & 2:
                size, at = _leb128(data, at)
            if at + size > len(data):
                raise UnusualError("a packet is damaged")
            if kind == 1 and size:
                has_sequence = True
                if data[at] >> 3 & 1:  # reduced_still_picture_header
                    raise UnusualError("a still picture")
            if kind in (3, 6) and size:  # frame header, frame
                show_existing, frame_type, show = data[at] >> 7, data[at] >> 5 & 3, data[at] >> 4 & 1
                if start is None:
                    start = has_sequence and not show_existing and frame_type == 0 and bool(show)
                shown += show_existing | show
            at += size
        if shown > 1:
            raise UnusualError("a packet holds several frames")
        return START * bool(start) | HIDDEN * (not shown)


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 127) << 7 * i
        if not data[at + i] & 128:
            return value, at + i + 1
    raise UnusualError("a packet is damaged")


class _Mjpeg(_Base):
    def __init__(self) -> None:
        self._with_tables: bool | None = None

    def role(self, data: bytes) -> int:
        # Tables outlive a picture: each must bring its own, or (Huffman tables only) none ever does.
        kinds = set(_jpeg_markers(data))
        with_tables = 0xC4 in kinds
        if 0xDB not in kinds or (self._with_tables is not None and with_tables != self._with_tables):
            raise UnusualError("its pictures share tables")
        self._with_tables = with_tables
        return START | DROP


def _jpeg_markers(data: bytes) -> Iterator[int]:
    """The markers before a JPEG picture's first scan."""
    at = 2
    if data[:2] != b"\xff\xd8":
        raise UnusualError("a packet is damaged")
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:
            at += 1
            continue
        yield kind
        if kind == 0xDA:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise UnusualError("a packet is damaged")


class Unit(NamedTuple):
    """One picture of an MPEG-4 stream within its packet."""

    packet: int
    begin: int
    """Of the picture in its packet, with the headers before it, bytes."""
    end: int
    kind: int
    """0, 1, 2, 3 = I, P, B, S."""


_PLACE_HOLDER = 19  # bytes of the largest packet that FFmpeg takes for the place of a packed frame


def mpeg4_units(packets: list[bytes], extradata: bytes) -> list[Unit]:
    """The pictures of an MPEG-4 Visual stream, each packed B-frame one of its own.

    Encoders for AVI pack a B-frame into the packet of the frame after it and leave a place holder, or the next
    B-frame, where it belongs:

        packets   I   P+B1   B2   -   P+B1   B2   -        pictures   I   P   B1   B2   P   B1   B2

    FFmpeg's decoder puts such a frame aside and decodes it in place of the next packet, which it puts aside in
    its turn if that is a B-frame; one that is left at the end is lost. The pictures here are those that it
    decodes. Taken apart, each can be decoded or left out by itself.

    Returns:
        The pictures in the order in which they are decoded. To be believed only when decoding agrees.

    Raises:
        UnusualError: the stream is packed in some other way.
    """
    packed = re.search(rb"DivX\d+(?:b|Build)\d+p", extradata + packets[0][:1024]) is not None
    units: list[Unit] = []
    aside: Unit | None = None
    for number, data in enumerate(packets):
        found = list(_pictures(number, data))
        is_holder = len(found) == 1 and found[0].kind == 1 and len(data) <= _PLACE_HOLDER
        if aside is not None:
            units.append(aside)
            aside = None
            if not (is_holder or (len(found) == 1 and found[0].kind == 2)):
                raise UnusualError("its frames are packed in an unknown way")
            if not is_holder:
                aside = found[0]
        elif found and not (packed and is_holder):
            units.append(found[0])
            if len(found) > 1:
                if not packed or len(found) > 2 or found[1].kind != 2:
                    raise UnusualError("its frames are packed in an unknown way")
                aside = found[1]
    return units


def _pictures(number: int, data: bytes) -> Iterator[Unit]:
    begin, at = 0, data.find(b"\0\0\1\xb6")
    while 0 <= at < len(data) - 4:
        following = data.find(b"\0\0\1\xb6", at + 4)
        end = len(data) if following < 0 else following
        yield Unit(number, begin, end, data[at + 4] >> 6)
        begin, at = end, following


def mpeg4_order(kinds: list[int]) -> list[int]:
    """Numbers of MPEG-4 pictures in the order in which they are shown: others wait for the next that is no B-frame."""
    order: list[int] = []
    waiting = -1
    for number, kind in enumerate(kinds):
        if kind == 2:
            order.append(number)
            continue
        if waiting >= 0:
            order.append(waiting)
        waiting = number
    return [*order, waiting] if waiting >= 0 else order
