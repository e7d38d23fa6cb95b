"""A list of clips as columns: a handful of arrays, not a list of objects.

So a million rows fit in every worker's memory, and a forked worker shares them with its parent: there is no Python
object per row whose reference count would copy the page it lies on.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vireo.errors import DataError

SPLITS = ("train", "val", "test")

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
_Unsigned = npt.NDArray[np.unsignedinteger[Any]]
_BLOCK = 1 << 16  # strings handled at a time, so that what is needed for a moment stays small


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first names in quotes, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def counted(n: int, thing: str) -> str:
    """A number of things, in the singular or plural."""
    return f"{n:,} {thing if n == 1 else thing + ('es' if thing.endswith(('s', 'batch')) else 's')}"


class _Packed(NamedTuple):
    """N byte strings end to end."""

    buffer: bytes
    offsets: npt.NDArray[Any]
    """(N + 1,), 4 bytes each where that is enough."""

    @classmethod
    def of(cls, buffer: bytes, lengths: npt.ArrayLike) -> _Packed:
        ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
        offsets = np.zeros(len(ends) + 1, dtype=np.uint32 if len(buffer) < 1 << 32 else np.uint64)
        if buffer:  # zeros that are never written to take no memory
            offsets[1:] = ends
        return cls(buffer, offsets)

    def get(self, index: int) -> bytes:
        return self.buffer[self.offsets[index] : self.offsets[index + 1]]

    def strings(self) -> Iterator[bytes]:
        for begin in range(0, len(self.offsets) - 1, _BLOCK):
            for first, last in itertools.pairwise(self.offsets[begin : begin + _BLOCK + 1].tolist()):
                yield self.buffer[first:last]

    def take(self, indices: Int64) -> _Packed:
        starts = self.offsets[indices].astype(np.int64)
        lengths = self.offsets[indices + 1].astype(np.int64) - starts
        data, pieces = np.frombuffer(self.buffer, dtype=np.uint8), []
        for begin in range(0, len(indices), _BLOCK):
            first, length = starts[begin : begin + _BLOCK], lengths[begin : begin + _BLOCK]
            new: Int64 = np.cumsum(length) - length  # where each string begins in this piece
            pieces.append(data[np.repeat(first - new, length) + np.arange(length.sum())].tobytes())
        return _Packed.of(b"".join(pieces), lengths)


class StringColumn(Sequence[str]):
    """An immutable column of strings, made for paths: a folder that many of them begin with is stored once.

    ::

        "train/wave/17.mp4" = heads[codes[i]] + names[i]      head: all up to the last "/"
                               "train/wave/"    "17.mp4"

    Heads are numbered in the order in which they first occur. File names that are not UTF-8 are kept as they are.

    Args:
        values: the strings.
        words: they repeat, as names of splits do: all of a string is its head, and stored once.
    """

    __slots__ = ("_codes", "_heads", "_names")

    _heads: _Packed
    _codes: _Unsigned
    _names: _Packed

    def __init__(self, values: Iterable[str], *, words: bool = False) -> None:
        builder = ColumnBuilder(words=words)
        values = iter(values)
        while block := list(itertools.islice(values, _BLOCK)):
            builder.extend(block)
        self._heads, self._codes, self._names = builder.parts()

    @classmethod
    def _of(cls, heads: _Packed, codes: npt.NDArray[Any], names: _Packed) -> StringColumn:
        column = cls.__new__(cls)
        column._heads, column._codes, column._names = heads, codes.astype(_code_type(len(heads.offsets) - 1)), names
        return column

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices: `take` does that
        index = range(len(self))[index]
        return _text(self._heads.get(int(self._codes[index])) + self._names.get(index))

    def __iter__(self) -> Iterator[str]:
        heads, names = self.heads(), self._names.strings()
        for begin in range(0, len(self), _BLOCK):
            codes = self._codes[begin : begin + _BLOCK].tolist()
            if self._names.buffer:
                yield from [heads[code] + _text(name) for code, name in zip(codes, names, strict=False)]
            else:
                yield from [heads[code] for code in codes]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StringColumn):
            return NotImplemented
        if len(self) != len(other):
            return False
        mine, theirs = ((c._heads, c._names) for c in (self, other))
        alike = np.array_equal(self._codes, other._codes) and all(
            a.buffer == b.buffer and np.array_equal(a.offsets, b.offsets) for a, b in zip(mine, theirs, strict=True)
        )
        return alike or all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StringColumn({len(self)} strings)"

    @property
    def nbytes(self) -> int:
        """Memory it takes, bytes."""
        packed = (self._heads, self._names)
        return self._codes.nbytes + sum(len(part.buffer) + part.offsets.nbytes for part in packed)

    def take(self, indices: npt.ArrayLike) -> StringColumn:
        """The strings at ``indices``, in that order."""
        at = np.asarray(indices, dtype=np.int64).reshape(-1)
        at = np.where(at < 0, at + len(self), at)
        used, first, codes = np.unique(self._codes[at], return_index=True, return_inverse=True)
        order = np.argsort(first)
        renumbered = np.empty(len(used), dtype=np.int64)
        renumbered[order] = np.arange(len(used))
        return self._of(self._heads.take(used[order].astype(np.int64)), renumbered[codes], self._names.take(at))

    def heads(self) -> list[str]:
        """The different heads."""
        return [_text(head) for head in self._heads.strings()]

    def map_heads(self, function: Callable[[str], str]) -> StringColumn:
        """The column with every head, e.g. ``train/wave/`` or "", replaced by what ``function`` makes of it.

        What it returns must be empty or end with a slash.
        """
        new: dict[str, int] = {}
        codes = np.fromiter(
            (new.setdefault(function(_text(head)), len(new)) for head in self._heads.strings()), dtype=np.int64
        )
        return self._of(_packed(list(new)), codes[self._codes], self._names)

    def distinct(self) -> tuple[list[str], Int64]:
        """The different strings, and (N,) which of them each row has."""
        if not self._names.buffer:
            return self.heads(), self._codes.astype(np.int64)
        numbers: dict[str, int] = {}
        codes = np.fromiter((numbers.setdefault(text, len(numbers)) for text in self), dtype=np.int64, count=len(self))
        return list(numbers), codes

    def by_folder(self) -> Iterator[tuple[bytes, Int64, list[bytes]]]:
        """Every head, the rows that have it, and what follows it in each."""
        order = np.argsort(self._codes, kind="stable").astype(np.int64)
        ends = np.cumsum(np.bincount(self._codes, minlength=len(self._heads.offsets) - 1)).tolist()
        begins, buffer = [0, *ends[:-1]], self._names.buffer
        for head, begin, end in zip(self._heads.strings(), begins, ends, strict=True):
            rows = order[begin:end]
            places = zip(self._names.offsets[rows].tolist(), self._names.offsets[rows + 1].tolist(), strict=True)
            yield head, rows, [buffer[first:last] for first, last in places]

    @property
    def plain(self) -> bool:
        """Whether no string ends in a slash, /. or /.., so that its head is its folder."""
        short = np.flatnonzero(np.diff(self._names.offsets.astype(np.int64)) <= 2)
        return not any(self._names.get(int(i)) in (b"", b".", b"..") for i in short)

    def hashes(self) -> npt.NDArray[np.uint64]:
        """(N,) numbers that are equal where strings are equal; they hold in this process alone."""
        parts = (self._heads.strings(), self._names.strings())
        heads, names = (np.fromiter(map(hash, part), dtype=np.int64).view(np.uint64) for part in parts)
        return heads[self._codes] * np.uint64(0x9E3779B97F4A7C15) + names


class ColumnBuilder:
    """Makes a `StringColumn` from pieces, so that the strings need not all be there at once."""

    def __init__(self, *, words: bool = False) -> None:
        self._words = words
        self._heads: dict[str, int] = {}
        # Bytes that grow: many small arrays would leave the memory they took in pieces.
        self._codes, self._lengths, self._buffer = bytearray(), bytearray(), bytearray()

    def extend(self, values: Sequence[str]) -> None:
        """Append strings.

        Raises:
            UnicodeEncodeError: a string that can be no file name (half of a surrogate pair); nothing was appended.
        """
        heads = self._heads
        if self._words:
            codes, names = [heads.setdefault(value, len(heads)) for value in values], [""] * len(values)
        else:
            codes, names = [], []
            for value in values:
                at = value.rfind("/") + 1
                codes.append(heads.setdefault(value[:at], len(heads)))
                names.append(value[at:])
        packed = _packed(names)
        self._buffer += packed.buffer
        self._lengths += np.diff(packed.offsets).astype(np.uint32).tobytes()
        self._codes += np.array(codes, dtype=np.uint32).tobytes()

    def parts(self) -> tuple[_Packed, _Unsigned, _Packed]:
        """What a column is made of."""
        codes, lengths = (np.frombuffer(data, dtype=np.uint32) for data in (self._codes, self._lengths))
        heads = _packed(list(self._heads))
        return heads, codes.astype(_code_type(len(self._heads))), _Packed.of(bytes(self._buffer), lengths)

    def column(self) -> StringColumn:
        """All strings appended so far."""
        return StringColumn._of(*self.parts())


def _packed(texts: Sequence[str]) -> _Packed:
    joined = "".join(texts)
    buffer = joined.encode("utf-8", "surrogateescape")
    if len(buffer) == len(joined):
        return _Packed.of(buffer, [len(text) for text in texts])
    return _Packed.of(buffer, [len(text.encode("utf-8", "surrogateescape")) for text in texts])


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")  # file names need not be UTF-8


def _code_type(count: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if count <= 1 << 8 else np.uint16 if count <= 1 << 16 else np.uint32


class ClipRecord(NamedTuple):
    """One row of a `ClipTable`; start and end in seconds, None = the video's own."""

    path: str
    label: int
    start: float | None
    end: float | None
    frame_count: int | None = None
    """How many frames the list says there are; None = it does not say."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipTable:
    """A list of N labelled clips, as columns."""

    paths: StringColumn
    """Video files or folders of frames, absolute or relative to the current folder."""
    labels: Int64
    """(N,) indices into ``label_names``."""
    label_names: tuple[str, ...]
    starts: Float64
    """(N,) seconds from the video's first frame; nan = its beginning."""
    ends: Float64
    """(N,) seconds; nan = the video's end. A frame at exactly this time is outside."""
    splits: StringColumn | None = None
    """Each one of `SPLITS`; None where the data names no split."""
    groups: StringColumn | None = None
    """Clips that must stay together in a split; "" = a group of its own."""
    frame_counts: Int64 | None = None
    """(N,) frames that the list says a clip has; 0 = it does not say. None = it says so of none."""
    notes: tuple[str, ...] = ()
    """What was left out while reading, one line each, to be shown to the user."""
    base: str | None = None
    """Folder that stands before the paths that the data itself gives; "" = none does. None = it is not known."""

    def __post_init__(self) -> None:
        n = len(self.paths)
        for name in ("labels", "starts", "ends", "splits", "groups", "frame_counts"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise DataError(f"column {name} has {len(column)} rows where paths has {n}")
        if len(set(self.label_names)) != len(self.label_names):
            raise DataError(f"a label name occurs twice in {some(self.label_names)}")
        if n and not (self.labels.min() >= 0 and self.labels.max() < len(self.label_names)):
            raise DataError(f"a label index is outside 0..{len(self.label_names) - 1}")
        if np.any(self.starts >= self.ends) or np.any(self.starts < 0) or np.any(self.ends <= 0):
            raise DataError("a clip ends before it starts, or starts before 0")
        if self.splits is not None and (wrong := set(self.splits.distinct()[0]) - set(SPLITS)):
            raise DataError(f"unknown split {some(sorted(wrong))}; use {', '.join(SPLITS)}")
        if self.frame_counts is not None and np.any(self.frame_counts < 0):
            raise DataError("a clip has fewer than 0 frames; 0 = not said")

    @classmethod
    def of_paths(cls, paths: Iterable[str]) -> ClipTable:
        """Whole videos that have no labels: each is of the one class ""."""
        column = StringColumn(paths)
        none = np.full(len(column), np.nan)
        labels = np.zeros(len(column), dtype=np.int64)
        return cls(paths=column, labels=labels, label_names=("",), starts=none, ends=none)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def nbytes(self) -> int:
        """Memory that the columns take, bytes."""
        columns = (
            self.paths,
            self.labels,
            self.starts,
            self.ends,
            self.splits,
            self.groups,
            self.frame_counts,
        )
        return sum(column.nbytes for column in columns if column is not None)

    def record(self, index: int) -> ClipRecord:
        """Row ``index`` as plain Python values."""
        start, end = float(self.starts[index]), float(self.ends[index])
        frames = 0 if self.frame_counts is None else int(self.frame_counts[index])
        return ClipRecord(
            self.paths[index],
            int(self.labels[index]),
            None if math.isnan(start) else start,
            None if math.isnan(end) else end,
            frames or None,
        )

    def select(self, indices: npt.ArrayLike) -> ClipTable:
        """The rows at ``indices``, in that order, with the same label names."""
        at = np.asarray(indices, dtype=np.int64).reshape(-1)
        return ClipTable(
            paths=self.paths.take(at),
            labels=self.labels[at],
            label_names=self.label_names,
            starts=self.starts[at],
            ends=self.ends[at],
            splits=None if self.splits is None else self.splits.take(at),
            groups=None if self.groups is None else self.groups.take(at),
            frame_counts=None if self.frame_counts is None else self.frame_counts[at],
            base=self.base,
        )

    def in_split(self, split: str) -> ClipTable:
        """The rows of one split.

        Raises:
            DataError: the data names no splits, or has no clip in this one.
        """
        if self.splits is None:
            raise DataError(f"there is no split {split!r}: the data has no split column")
        names, codes = self.splits.distinct()
        if split not in names:
            raise DataError(f"there is no clip in split {split!r}; there are some in {some(sorted(names))}")
        return self.select(np.flatnonzero(codes == names.index(split)))

    def digest(self) -> str:
        """16 hexadecimal digits that name this list: its files, cuts, labels, splits and groups, in any order.

        Files count by their path below the deepest folder that holds them all, so the same list
        gives the same digest wherever the data lies; their content is not read.
        """
        none = [""] * len(self)
        columns: list[Iterable[str]] = [
            _below_common_folder(self.paths),
            (self.label_names[label] for label in self.labels.tolist()),
            map(repr, self.starts.tolist()),
            map(repr, self.ends.tolist()),
            none if self.splits is None else self.splits,
            none if self.groups is None else self.groups,
        ]
        if self.frame_counts is not None:  # without the column, the digest is that of a list that never had one
            columns.append(map(str, self.frame_counts.tolist()))
        rows = sorted("\0".join(row) for row in zip(*columns, strict=True))
        digest = hashlib.sha256("\0".join(self.label_names).encode("utf-8", "surrogateescape"))
        for row in rows:
            digest.update(b"\n" + row.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


def _below_common_folder(paths: StringColumn) -> StringColumn:
    """Absolute paths without the deepest folder that holds them all."""
    if not len(paths):
        return paths
    if not paths.plain:
        paths = StringColumn(os.path.abspath(path) for path in paths)
    absolute = paths.map_heads(lambda head: os.path.join(os.path.abspath(head), ""))
    folders = [os.path.dirname(head) for head in absolute.heads()]
    root = os.path.commonpath(folders)
    return absolute.map_heads(lambda head: head[len(root) :])
