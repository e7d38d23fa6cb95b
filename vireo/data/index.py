"""Facts of a video file that make reading it fast, and a cache that keeps them.

An index says where in the file each packet of the video lies, which frame it gives and which packets are needed
to decode it. It is made while a file is first read and kept in one SQLite file, by absolute path, size and time
of change; a later read then needs neither the container's header nor packets of frames nobody asked for.

The cache is a convenience that must never cost a read: whatever goes wrong with it (no home, read-only, full, locked,
damaged), the read goes on without. Its place: ``$VIREO_CACHE/index.sqlite``, or ``vireo/index.sqlite`` in
``$XDG_CACHE_HOME``, or in ``~/.cache``. ``VIREO_CACHE=""`` switches it off. It can be deleted at any time. What is in
it is checked before use; nothing in it can name another file or run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import threading
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt

from vireo.data.bitstreams import DROP, START

Int64 = npt.NDArray[np.int64]

_VERSION = f"2 {av.__version__} {av.library_versions['libavcodec']}"  # another decoder may need other facts
_LARGEST_ROW = 64 << 20  # bytes, unpacked; about 2 million packets
_BUSY_SECONDS = 0.2
_TRIES = 5  # to open it


class NotAsIndexedError(Exception):
    """A file gives other packets or frames than its index says."""


class FileKey(NamedTuple):
    """Which state of which file an index belongs to."""

    path: bytes
    """Absolute."""
    size: int
    """Bytes."""
    changed: int
    """Time of the last change, ns."""

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> FileKey:
        """The key of a file with that status."""
        return cls(os.fsencode(os.path.abspath(path)), status.st_size, status.st_mtime_ns)


class Picture(NamedTuple):
    """What the frames of a video look like; all its frames alike."""

    width: int
    """As stored, pixels."""
    height: int
    """As stored, pixels."""
    pixel_format: str
    colorspace: int
    color_range: int
    rotation: int
    """Counterclockwise, degrees."""


class Coding(NamedTuple):
    """What a decoder must be told before its first packet."""

    codec: str
    """FFmpeg's name of the decoder."""
    tag: str
    """The container's name of the format, four characters."""
    extradata: bytes
    width: int
    height: int
    bits: int
    """Bits per sample as the container says; 0 = not said."""
    delay: int
    """Frames that arrive before those shown earlier."""
    colors: tuple[int, int, int, int]
    """Range, primaries, transfer and matrix as the container says."""


_NONE: Int64 = np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoIndex:
    """Facts of one video. P packets in the order of the file, F frames in the order in which they are shown."""

    coding: Coding
    picture: Picture | None = None
    """None = not known, or not the same for all frames seen."""
    time_base: Fraction | None
    """Of the time stamps, s."""
    fps: Fraction | None
    """Average frame rate, 1/s."""
    frame_count: int = 0
    """F; 0 = not known yet."""
    pts: Int64 = field(default_factory=lambda: _NONE)
    """(F,) time stamps of the frames, increasing; or none, where the file has none in order."""
    slow: str
    """Why the video must be decoded in sequence; "" = it need not."""
    order: Int64 = field(default_factory=lambda: _NONE)
    """(F,) the packet that each frame comes from; of slow videos none."""
    roles: npt.NDArray[np.uint8] = field(default_factory=lambda: _NONE.astype(np.uint8))
    """(P,) what each packet is good for, see `vireo.data.bitstreams`; of slow videos none."""
    offsets: Int64 = field(default_factory=lambda: _NONE)
    """(P,) where each packet begins in the file, bytes; none = packets can only be had from the container."""
    sizes: Int64 = field(default_factory=lambda: _NONE)
    """(P,) bytes; as `offsets`."""

    @property
    def fast(self) -> bool:
        """Whether packets may be left out."""
        return not self.slow

    def with_looks(self, looks: set[Picture]) -> VideoIndex:
        """With what all its frames look like; where they differ, the container must be asked each time."""
        if len(looks) == 1:
            return replace(self, picture=next(iter(looks)))
        return replace(self, picture=None, offsets=_NONE, sizes=_NONE)

    def slowed(self, reason: str) -> VideoIndex:
        """Without what is known of its packets, so that it is decoded in sequence."""
        return VideoIndex(coding=self.coding, picture=self.picture, time_base=self.time_base, fps=self.fps, slow=reason)

    @cached_property
    def ranks(self) -> Int64:
        """(P,) the frame that each packet gives; -1 = none."""
        ranks = np.full(len(self.roles), -1, np.int64)
        ranks[self.order] = np.arange(self.frame_count)
        return ranks

    @cached_property
    def starts(self) -> Int64:
        """Packets at which decoding may begin, ascending; the first is packet 0."""
        # Of a packet outside the edit list it is not known which frames are shown after it, except of the first.
        seen = self.ranks >= 0
        seen[0] = True
        return np.flatnonzero(((self.roles & START) > 0) & seen)

    def gaps(self) -> list[int]:
        """Frames from each start to the next, in the order in which they are shown."""
        ranks = np.unique(np.maximum(self.ranks[self.starts], 0))
        gaps: list[int] = np.diff(np.append(ranks, self.frame_count)).tolist()
        return gaps

    def seconds(self) -> npt.NDArray[np.float64] | None:
        """(F,) when each frame is shown after the first, s; None = neither time stamps nor a rate are known."""
        if len(self.pts) and self.time_base:
            return np.asarray((self.pts - self.pts[0]) * float(self.time_base), dtype=np.float64)
        return np.arange(self.frame_count) / float(self.fps) if self.fps else None

    def stretches(self, wanted: Int64) -> list[tuple[int, int]]:
        """Packets to decode for some frames.

        Args:
            wanted: (W,) frames, sorted, without repetition.

        Returns:
            First and last packets, in order, without overlap; each first one is a start.
        """
        starts, ranks, found = self.starts, self.ranks, []
        for frame, packet in zip(wanted.tolist(), self.order[wanted].tolist(), strict=True):
            at = int(np.searchsorted(starts, packet, side="right")) - 1
            # Frames shown before a start but stored behind it may need what lies before it.
            while at > 0 and ranks[starts[at]] > frame:
                at -= 1
            found.append((int(starts[at]), packet))
        found.sort()
        merged = [found[0]]
        for first, last in found[1:]:
            if first <= merged[-1][1] or first == merged[-1][0]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return merged

    def needed(self, first: int, last: int, wanted: Int64) -> list[int]:
        """The packets of a stretch that must be decoded to see some of its frames."""
        keep = (self.roles[first : last + 1] & DROP) == 0
        packets = self.order[wanted]
        keep[packets[(packets >= first) & (packets <= last)] - first] = True
        numbers: list[int] = (np.flatnonzero(keep) + first).tolist()
        return numbers

    def nearest_starts(self, wanted: Int64, first: int, last: int) -> Int64 | None:
        """For frames in [first, last) the nearest there at which decoding may begin; None = there is none."""
        ranks = np.sort(self.ranks[self.starts])
        ranks = ranks[(ranks >= first) & (ranks < last)]
        if not len(ranks):
            return None
        right = np.clip(np.searchsorted(ranks, wanted), 0, len(ranks) - 1)
        left = np.maximum(right - 1, 0)
        return np.asarray(np.where(wanted - ranks[left] <= ranks[right] - wanted, ranks[left], ranks[right]))

    def check(self, file_size: int) -> None:
        """Raise ValueError where the facts can't be those of a file of that many bytes."""
        packets, frames, pts = len(self.roles), self.frame_count, self.pts
        ok = frames > 0 and len(pts) in (0, frames) and bool((pts[1:] > pts[:-1]).all())
        if self.fast:
            ok = ok and packets > 0 and bool(self.roles[0] & START)
            ok = ok and len(self.order) == frames and self.order.min() >= 0 and self.order.max() < packets
            ok = ok and np.count_nonzero(self.ranks >= 0) == frames
            if len(self.offsets):
                ok = ok and self.picture is not None and len(self.offsets) == len(self.sizes) == packets
                ok = ok and self.sizes.min() > 0 and self.offsets.min() >= 0
                ok = ok and (self.offsets + self.sizes).max() <= file_size and self.offsets.max() < file_size
        if not ok:
            raise ValueError("not an index")


def load_index(key: FileKey) -> VideoIndex | None:
    """What the cache knows of a file in this state; None = nothing."""
    with _lock:
        connection = _connection()
        if connection is None:
            return None
        try:
            row = connection.execute(
                "SELECT facts FROM videos WHERE id = ? AND size = ? AND changed = ?",
                (_row_id(key), key.size, key.changed),
            ).fetchone()
        except (sqlite3.Error, OverflowError) as error:
            _start_again(error)
            return None
    if row is None or not isinstance(row[0], bytes):
        return None
    try:
        return _unpack(row[0], key)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, zlib.error, ZeroDivisionError, RecursionError):
        return None


def store_index(key: FileKey, index: VideoIndex) -> None:
    """Keep what is known of a file, if that can be done."""
    row = _pack(index, key)
    with _lock:
        connection = _connection()
        if connection is None:
            return
        try:
            connection.execute(
                "INSERT OR REPLACE INTO videos VALUES (?, ?, ?, ?)", (_row_id(key), key.size, key.changed, row)
            )
        except (sqlite3.Error, OverflowError) as error:
            _start_again(error)


def cache_path() -> Path | None:
    """Where the cache is; None = switched off, or there is no home for it."""
    chosen = os.environ.get("VIREO_CACHE")
    if chosen is not None:
        return Path(chosen) / "index.sqlite" if chosen else None
    base = os.environ.get("XDG_CACHE_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "vireo" / "index.sqlite"
    try:
        return Path.home() / ".cache" / "vireo" / "index.sqlite"
    except RuntimeError:
        return None


_lock = threading.RLock()
_opened: tuple[tuple[object, ...], Path | None, sqlite3.Connection | None] | None = None  # for which settings
_inherited: list[object] = []  # connections of the parent process: SQLite forbids even closing them after a fork


def _connection() -> sqlite3.Connection | None:
    """This process's connection, opened when first asked for; that it can't be opened is final."""
    global _opened
    get = os.environ.get
    settings = (os.getpid(), get("VIREO_CACHE"), get("XDG_CACHE_HOME"), get("HOME"))
    if _opened is not None:
        if _opened[0] == settings:
            return _opened[2]
        if _opened[2] is not None:
            if _opened[0][0] == settings[0]:
                _opened[2].close()
            else:
                _inherited.append(_opened[2])
    path = cache_path()
    _opened = (settings, path, None if path is None else _open(path))
    return _opened[2]


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)


def _open(path: Path) -> sqlite3.Connection | None:
    """A connection; None = there can't be one.

    It is tried again where other processes are making the cache at this moment, which happens when all workers of a
    first run begin at once, and where it is broken.
    """
    for _ in range(_TRIES):
        try:
            return _connect(path)
        except (sqlite3.Error, OSError, ValueError) as error:
            if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                time.sleep(_BUSY_SECONDS)
            elif not (_is_broken(error) and _remove(path)):
                return None
    return None


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no regular file")  # SQLite would wait for a FIFO
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=8
    )
    try:
        for pragma in ("trusted_schema = OFF", "journal_mode = WAL", "synchronous = OFF", "mmap_size = 0"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute(
            "CREATE TABLE IF NOT EXISTS videos (id INTEGER PRIMARY KEY, size INTEGER, changed INTEGER, facts BLOB)"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _is_broken(error: Exception) -> bool:
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _start_again(error: Exception) -> None:
    """Where the cache is broken (a crash can do that), make a new one; where it is merely busy, leave it."""
    global _opened
    settings, path, connection = _opened or ((), None, None)
    if _is_broken(error) and path is not None and connection is not None:
        connection.close()
        _opened = (settings, path, _open(path) if _remove(path) else None)


def _remove(path: Path) -> bool:
    try:
        for ending in ("", "-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _row_id(key: FileKey) -> int:
    return int.from_bytes(hashlib.blake2b(key.path, digest_size=8).digest(), "big", signed=True)


_COLUMNS = 5  # of numbers in a row: time stamps, frames' packets, packets' roles, offsets and sizes


def _pack(index: VideoIndex, key: FileKey) -> bytes:
    coding = index.coding
    columns = [index.pts, index.order, index.roles.astype(np.int64), index.offsets, index.sizes]
    counts = [len(column) for column in columns]
    facts = [
        _VERSION,
        key.path.hex(),
        [coding.codec, coding.tag, coding.extradata.hex(), *coding[3:]],
        index.picture,
        _ratio(index.time_base),
        _ratio(index.fps),
        index.frame_count,
        index.slow,
        counts,
    ]
    # Differences are small and repeat, so they take little space; one sum brings all columns back.
    table = np.zeros((_COLUMNS, max(counts)), dtype="<i8")
    for line, column in zip(table, columns, strict=True):
        line[: len(column)] = column
    table[:, 1:] -= table[:, :-1].copy()
    return zlib.compress(json.dumps(facts, separators=(",", ":")).encode() + b"\n" + table.tobytes(), 1)


def _unpack(row: bytes, key: FileKey) -> VideoIndex | None:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(row, _LARGEST_ROW)
    end = data.index(b"\n")
    version, path, coding, picture, time_base, fps, frame_count, slow, counts = json.loads(data[:end])
    if version != _VERSION or path != key.path.hex():
        return None
    codec, tag, extradata, width, height, bits, delay, colors = coding
    numbers = [width, height, bits, delay, *colors, frame_count, *counts]
    ok = unpacker.eof and all(isinstance(text, str) for text in (codec, tag, extradata, slow))
    ok = ok and all(type(n) is int and 0 <= n < 1 << 31 for n in numbers) and delay <= 32
    if not ok or len(colors) != 4 or len(counts) != _COLUMNS:
        raise ValueError("not an index")
    table = np.frombuffer(data, "<i8", offset=end + 1).reshape(_COLUMNS, max(counts)).cumsum(axis=1)
    pts, order, roles, offsets, sizes = (line[:count] for line, count in zip(table, counts, strict=True))
    index = VideoIndex(
        coding=Coding(codec, tag, bytes.fromhex(extradata), width, height, bits, delay, tuple(colors)),
        picture=Picture(*picture) if picture else None,
        time_base=_fraction(time_base),
        fps=_fraction(fps),
        frame_count=frame_count,
        pts=pts,
        slow=slow,
        order=order,
        roles=roles.astype(np.uint8),
        offsets=offsets,
        sizes=sizes,
    )
    index.check(key.size)
    return index


def _ratio(value: Fraction | None) -> list[int] | None:
    return None if value is None else [value.numerator, value.denominator]


def _fraction(pair: Iterable[int] | None) -> Fraction | None:
    return None if pair is None else Fraction(*pair)
