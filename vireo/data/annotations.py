"""What is in a data set: folders of classes and CSV files, read into columns.

A list of clips is a handful of arrays, not a list of objects, so that a million rows fit in every
worker's memory.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from vireo.data.flow import is_flow_clip
from vireo.errors import DataError, UsageError

_ENDINGS = """
    3g2 3gp amv asf avi divx dv f4v flv gif h264 h265 hevc ivf m1v m2p m2t m2ts m2v m4v mjpeg mjpg mkv mod mov mp4 mpe
    mpeg mpg mpv mts mxf nut obu ogg ogm ogv qt rm rmvb tod ts vob webm wmv xvid y4m
"""
VIDEO_EXTENSIONS = frozenset("." + ending for ending in _ENDINGS.split())
"""File name endings taken for videos in a folder per class; a CSV may name any file."""

COLUMNS = ("path", "label", "split", "group", "start", "end")
SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_LONGEST_LINE = 1 << 16  # characters; a path has at most 4096

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


def is_video(path: str | Path) -> bool:
    """Whether a file is named like a video; nothing is opened."""
    return os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS


class StringColumn(Sequence[str]):
    """An immutable column of strings: one buffer of UTF-8 bytes and the offsets into it."""

    __slots__ = ("_buffer", "_offsets")

    def __init__(self, values: Iterable[str]) -> None:
        pieces = [value.encode("utf-8", "surrogateescape") for value in values]  # file names need not be UTF-8
        offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        self._buffer, self._offsets = b"".join(pieces), offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices: `take` does that
        index = range(len(self))[index]
        return self._buffer[self._offsets[index] : self._offsets[index + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        offsets = self._offsets.tolist()
        for begin, end in itertools.pairwise(offsets):
            yield self._buffer[begin:end].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StringColumn):
            return NotImplemented
        return self._buffer == other._buffer and np.array_equal(self._offsets, other._offsets)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StringColumn({len(self)} strings)"

    def take(self, indices: npt.ArrayLike) -> StringColumn:
        """The strings at ``indices``, in that order."""
        return StringColumn(self[int(i)] for i in np.asarray(indices))


class ClipRecord(NamedTuple):
    """One row of a `ClipTable`; start and end in seconds, None = the video's own."""

    path: str
    label: int
    start: float | None
    end: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipTable:
    """A list of N labelled clips, as columns."""

    paths: StringColumn
    """Files, absolute or relative to the current folder."""
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
    notes: tuple[str, ...] = ()
    """What was left out while reading, one line each, to be shown to the user."""

    def __post_init__(self) -> None:
        n = len(self.paths)
        for name in ("labels", "starts", "ends", "splits", "groups"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise DataError(f"column {name} has {len(column)} rows where paths has {n}")
        if len(set(self.label_names)) != len(self.label_names):
            raise DataError(f"a label name occurs twice in {_some(self.label_names)}")
        if n and not (self.labels.min() >= 0 and self.labels.max() < len(self.label_names)):
            raise DataError(f"a label index is outside 0..{len(self.label_names) - 1}")
        if np.any(self.starts >= self.ends) or np.any(self.starts < 0) or np.any(self.ends <= 0):
            raise DataError("a clip ends before it starts, or starts before 0")
        if self.splits is not None and (wrong := set(self.splits) - set(SPLITS)):
            raise DataError(f"unknown split {_some(sorted(wrong))}; use {', '.join(SPLITS)}")

    def __len__(self) -> int:
        return len(self.paths)

    def record(self, index: int) -> ClipRecord:
        """Row ``index`` as plain Python values."""
        start, end = float(self.starts[index]), float(self.ends[index])
        return ClipRecord(
            self.paths[index],
            int(self.labels[index]),
            None if math.isnan(start) else start,
            None if math.isnan(end) else end,
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
        )

    def in_split(self, split: str) -> ClipTable:
        """The rows of one split.

        Raises:
            DataError: the data names no splits, or has no clip in this one.
        """
        if self.splits is None:
            raise DataError(f"there is no split {split!r}: the data has no split column")
        chosen = [i for i, name in enumerate(self.splits) if name == split]
        if not chosen:
            raise DataError(f"there is no clip in split {split!r}; there are some in {_some(sorted(set(self.splits)))}")
        return self.select(chosen)

    def digest(self) -> str:
        """16 hexadecimal digits that name this list: its files, cuts, labels, splits and groups, in any order.

        Files count by their path below the deepest folder that holds them all, so the same list
        gives the same digest wherever the data lies; their content is not read.
        """
        paths = [Path(os.path.abspath(path)).as_posix() for path in self.paths]
        root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
        none = [""] * len(self)
        columns = zip(
            (path[len(root) :] for path in paths),
            (self.label_names[label] for label in self.labels.tolist()),
            map(repr, self.starts.tolist()),
            map(repr, self.ends.tolist()),
            none if self.splits is None else self.splits,
            none if self.groups is None else self.groups,
            strict=True,
        )
        rows = sorted("\0".join(row) for row in columns)
        names = "\0".join(self.label_names)
        text = "\n".join((names, *rows))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class Split(NamedTuple):
    """A data set's parts; ``test`` is None where none is named."""

    train: ClipTable
    val: ClipTable
    test: ClipTable | None


def read_table(data: str | Path, *, label_names: Sequence[str] | None = None, modality: str = "rgb") -> ClipTable:
    """Read a data set: a folder with one subfolder per class, or a CSV file.

    In a folder the class is the name of the immediate subfolder; videos lie in it at any depth. If all
    subfolders are called train, val or test, the classes are the folders in those. A CSV has the header
    ``path,label[,split][,group][,start,end]``; paths are relative to its folder, start and end in seconds.
    A folder with exactly one such CSV directly in it stands for that CSV. With ``modality="flow"`` clips are
    folders of flow images or .npy arrays (`vireo.data.flow`) in place of videos.

    Args:
        data: the folder or CSV file.
        label_names: labels and their order, e.g. a checkpoint's; by default those found, in natural order.
        modality: rgb or flow, what the clips of a folder are.

    Raises:
        UsageError: the path does not exist or is neither folder nor CSV.
        DataError: what is there can't be used; the message names the file, the line and the remedy.
    """
    path = Path(data)
    if path.is_dir():
        lists = _lists_in(path)
        return _read_csv(lists[0], label_names) if len(lists) == 1 else _read_folder(path, label_names, modality)
    if path.is_file():
        if is_video(path):
            raise UsageError(f"{path} is a video; give a folder with one subfolder per class, or a CSV file")
        return _read_csv(path, label_names)
    if path.exists():
        raise UsageError(f"{path} is neither a folder nor a regular file")
    raise UsageError(f"{path} does not exist; give a folder with one subfolder per class, or a CSV file")


def natural_order(names: Iterable[str]) -> list[str]:
    """Sorted as people do: class_2 before class_10."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        pieces = re.split(r"([0-9]+)", name)
        return [(0, int(p), "") if i % 2 else (1, 0, p.casefold()) for i, p in enumerate(pieces) if p], name

    return sorted(names, key=key)


# Folders


def _read_folder(root: Path, label_names: Sequence[str] | None, modality: str) -> ClipTable:
    kind = clips_called(modality)
    try:
        top = _subfolders(root)
        split_of = {name: _SPLIT_WORDS.get(name.lower()) for name in top}
        classes: list[tuple[str, Path, str | None]]  # label, folder, split
        if top and all(split_of.values()) and any(_subfolders(root / name) for name in top):
            classes = [(c, root / s / c, split_of[s]) for s in top for c in _subfolders(root / s)]
        else:
            classes = [(name, root / name, None) for name in top]
        found = [(label, split, *clips_below(folder, modality)) for label, folder, split in classes]
    except OSError as error:
        raise DataError(f"{error.filename or root} can't be read: {error.strerror}") from None
    if not classes:
        loose = clips_below(root, modality)[0]
        where = f"{len(loose)} {kind} lie directly in {root}" if loose else f"{root} holds no subfolders"
        raise DataError(f"{where}; put the {kind} of each class into a subfolder named after it, or list them in a CSV")
    ignored = Counter[str]()
    for _, _, _, others in found:
        ignored.update(others)
    notes = []
    if ignored:
        kinds = ", ".join(f"{n} × {ending or 'without ending'}" for ending, n in ignored.most_common(5))
        notes.append(f"{root}: ignored {ignored.total()} files that are not {kind} ({kinds})")
    if not any(videos for _, _, videos, _ in found):
        raise DataError(
            f"{root} holds no {kind} in its {len(classes)} class folders"
            + (f" (only {kinds})" if ignored else "")
            + _LOOKS[modality]
        )
    filled = {label for label, _, videos, _ in found if videos}
    empty = natural_order({label for label, _, _, _ in found} - filled)
    if empty and label_names is None:
        raise DataError(
            f"{root}: no {kind} in class folder{'s' * (len(empty) > 1)} {_some(empty)}; "
            "add some, or remove the folder or start its name with a dot"
        )
    rows = [(path, label, split) for label, split, videos, _ in found for path in videos]
    names, labels = _label_indices([label for _, label, _ in rows], label_names, root)
    return ClipTable(
        paths=StringColumn(path for path, _, _ in rows),
        labels=labels,
        label_names=names,
        starts=np.full(len(rows), np.nan),
        ends=np.full(len(rows), np.nan),
        splits=StringColumn(split or "" for _, _, split in rows) if rows[0][2] else None,
        notes=tuple(notes),
    )


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return natural_order(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def clips_called(modality: str) -> str:
    """What clips are, in a sentence: videos, or clips of flow."""
    return {"rgb": "videos", "flow": "clips of flow"}[modality]


_LOOKS = {
    "rgb": "; a video's name ends in .mp4, .avi, .mkv, .webm, …",
    "flow": "; a clip of flow is a folder of flow_x_00001.jpg, flow_y_00001.jpg, …, or a .npy array",
}


def clips_below(folder: Path, modality: str = "rgb") -> tuple[list[str], Counter[str]]:
    """The clips in a folder at any depth, in natural order, and the endings of the other files.

    Whatever has a video's name and is no folder counts, broken links too: a clip that can't be read
    is to be reported, not overlooked. Of flow, .npy files and folders of flow images count.
    """
    clips: list[str] = []
    others = Counter[str]()
    waiting, seen = [folder], set()
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in seen:  # a link that leads back up
            continue
        seen.add(real)
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                is_folder = entry.is_dir()
                if is_flow_clip(entry.path) if modality == "flow" else not is_folder and is_video(entry.name):
                    clips.append(entry.path)
                elif is_folder:
                    waiting.append(Path(entry.path))
                else:
                    others[os.path.splitext(entry.name)[1].lower()] += 1
    return natural_order(clips), others


# CSV


def _read_csv(path: Path, label_names: Sequence[str] | None) -> ClipTable:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parse_csv(path, file, label_names)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a CSV in UTF-8; save it as CSV (UTF-8)") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None


def _lists_in(folder: Path) -> list[Path]:
    """The CSV files directly in a folder whose header names a path and a label."""
    found = []
    for path in sorted(folder.glob("[!.]*.csv")):
        with contextlib.suppress(OSError, UnicodeDecodeError, csv.Error), path.open(encoding="utf-8-sig") as file:
            if {"path", "label"} <= set(_split_header(file.readline(_LONGEST_LINE))[0]):
                found.append(path)
    return found


def _split_header(line: str) -> tuple[list[str], str]:
    """Names of the columns and the separator."""
    delimiter = max(",;\t", key=line.count)
    return [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])], delimiter


def _bounded_lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise DataError(
                f"{path}, line {number}: longer than {_LONGEST_LINE} characters; this is not a list of clips"
            )
        yield line


def _parse_csv(path: Path, file: TextIO, label_names: Sequence[str] | None) -> ClipTable:
    lines = _bounded_lines(path, file)
    header_line = next(lines, "")
    if not header_line.strip():
        raise DataError(f"{path} is empty; the first line must be a header like path,label")
    columns, delimiter = _split_header(header_line)
    _check_header(path, columns)
    values: dict[str, list[str]] = {name: [] for name in columns}
    numbers: dict[str, list[float]] = {"start": [], "end": []}
    faults: list[str] = []
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if not row or not any(cell.strip() for cell in row):
                continue
            fault = _check_row(row, columns, numbers)
            if fault:
                faults.append(f"line {reader.line_num + 1}: {fault}")
                continue
            for name, cell in zip(columns, row, strict=True):
                values[name].append(cell.strip())
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + 1}: {error}") from None
    if faults:
        more = f" ({len(faults) - 1} more lines are wrong)" if len(faults) > 1 else ""
        raise DataError(f"{path}, {faults[0]}{more}")
    if not values["path"]:
        raise DataError(f"{path} lists no clips: there is nothing below its header")
    names, labels = _label_indices(values["label"], label_names, path)
    paths = [os.path.join(path.parent, value) for value in values["path"]]
    if not any(os.path.exists(p) for p in paths[:20]):
        raise DataError(
            f"{path}: {paths[0]} does not exist, nor do those after it; paths are relative to the CSV's folder"
        )
    groups = StringColumn(values["group"]) if "group" in columns else None
    splits = StringColumn(_SPLIT_WORDS[s.lower()] for s in values["split"]) if "split" in columns else None
    if groups is not None and splits is not None:
        _check_groups_in_one_split(path, groups, splits)
    return ClipTable(
        paths=StringColumn(paths),
        labels=labels,
        label_names=names,
        starts=np.array(numbers["start"], dtype=np.float64),
        ends=np.array(numbers["end"], dtype=np.float64),
        splits=splits,
        groups=groups,
    )


def _check_header(path: Path, columns: list[str]) -> None:
    wanted = f"path,label[,split][,group][,start,end], not {','.join(columns)[:80]!r}"
    unknown = [name for name in columns if name not in COLUMNS]
    missing = [name for name in COLUMNS[:2] if name not in columns]
    if missing and len(unknown) == len(columns):
        raise DataError(f"{path} has no header line; the first line must be {wanted}")
    if unknown:
        near = [difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.5) for name in unknown]
        hint = " ".join(f"Did you mean {n[0]!r} for {name!r}?" for name, n in zip(unknown, near, strict=True) if n)
        what = f"unknown column{'s' * (len(unknown) > 1)} {_some(unknown)}"
        raise DataError(f"{path}: {what}; known: {', '.join(COLUMNS)}. {hint}".strip())
    if missing:
        raise DataError(f"{path}: column {_some(missing)} is missing; the header must be {wanted}")
    if len(set(columns)) < len(columns):
        raise DataError(f"{path}: a column occurs twice in the header {','.join(columns)[:80]!r}")


def _check_row(row: list[str], columns: list[str], numbers: dict[str, list[float]]) -> str:
    """What is wrong with a row, or "" after noting its start and end."""
    if len(row) != len(columns):
        return f"{len(row)} values for {len(columns)} columns; quote values that hold a separator"
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
    for name in ("path", "label"):
        if not cells[name]:
            return f"{name} is empty"
    if "\0" in cells["path"]:
        return "path holds a null character"
    if "split" in cells and cells["split"].lower() not in _SPLIT_WORDS:
        near = difflib.get_close_matches(cells["split"].lower(), _SPLIT_WORDS, n=1, cutoff=0.5)
        return f"unknown split {cells['split']!r}; use " + (
            f"train, val or test (did you mean {_SPLIT_WORDS[near[0]]!r}?)" if near else "train, val or test"
        )
    times = {}
    for name in ("start", "end"):
        text = cells.get(name, "")
        try:
            times[name] = float(text) if text else math.nan
        except ValueError:
            return f"{name} is {text!r}; it must be a number of seconds"
        if text and not (math.isfinite(times[name]) and times[name] >= 0):
            return f"{name} is {text!r}; it must be a number of seconds, 0 or more"
    if times["start"] >= times["end"] or times["end"] == 0:
        return f"end ({cells['end']}) is not after start ({cells.get('start') or 0})"
    for name, value in times.items():
        numbers[name].append(value)
    return ""


def _check_groups_in_one_split(path: Path, groups: StringColumn, splits: StringColumn) -> None:
    home: dict[str, str] = {}
    for group, split in zip(groups, splits, strict=True):
        if group and home.setdefault(group, split) != split:
            raise DataError(
                f"{path}: group {group!r} is in the splits {home[group]!r} and {split!r}; a group must stay in one"
            )


def _label_indices(texts: list[str], label_names: Sequence[str] | None, source: Path) -> tuple[tuple[str, ...], Int64]:
    found = set(texts)
    names = tuple(natural_order(found)) if label_names is None else tuple(label_names)
    unknown = natural_order(found - set(names))
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f" (nearest to {unknown[0]!r}: {near[0]!r})" if near else ""
        raise DataError(
            f"{source} has {len(unknown)} label{'s' * (len(unknown) > 1)} that the model does not know: "
            f"{_some(unknown)}{hint}. It knows {_some(names)}."
        )
    if label_names is None and len(names) < 2:
        raise DataError(f"{source} has one class only, {names[0]!r}; recognition needs at least two")
    index = {name: i for i, name in enumerate(names)}
    return names, np.fromiter((index[text] for text in texts), dtype=np.int64, count=len(texts))


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


# Splits


def split_table(table: ClipTable, *, val_fraction: float, seed: int) -> Split:
    """Split a table into train, validation and test.

    Where the data names splits they are used; validation clips are then drawn from the training clips
    only if none are named. A draw is stratified: each class gives ``val_fraction`` of its clips to
    validation, but at least one, and keeps at least one, if it has two or more. Groups stay together,
    and so do clips cut from one file. The draw depends on the seed and the set of clips, not on their order.

    Raises:
        UsageError: ``val_fraction`` is not between 0 and 1.
        DataError: nothing to train on, or nothing could be set aside for validation.
    """
    if not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
    rows = np.arange(len(table), dtype=np.int64)
    parts: dict[str, Int64] = {"train": rows, "val": rows[:0], "test": rows[:0]}
    if table.splits is not None:
        names = np.array([SPLITS.index(name) for name in table.splits], dtype=np.int64)
        parts = {name: rows[names == i] for i, name in enumerate(SPLITS)}
    if len(parts["train"]) == 0:
        raise DataError("no clip is in the split 'train'; there is nothing to train on")
    if len(parts["val"]) == 0:
        in_val = _draw_validation(table.select(parts["train"]), val_fraction, np.random.default_rng(seed))
        if not in_val.any():
            raise DataError(
                "no clip can be set aside for validation: every class has one clip or group only; "
                "add clips, or name a validation split in a CSV"
            )
        parts["train"], parts["val"] = parts["train"][~in_val], parts["train"][in_val]
    return Split(
        table.select(parts["train"]),
        table.select(parts["val"]),
        table.select(parts["test"]) if len(parts["test"]) else None,
    )


def _draw_validation(table: ClipTable, fraction: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """(N,) whether a clip goes to validation."""
    # The order must not matter: units are numbered in the order of their sorted paths.
    paths = list(table.paths)
    order = sorted(range(len(paths)), key=lambda i: (paths[i], table.starts[i], table.ends[i], table.labels[i]))
    unit_of = np.empty(len(paths), dtype=np.int64)
    numbers: dict[tuple[str, str], int] = {}
    parent: list[int] = []

    def find(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    def number(key: tuple[str, str]) -> int:
        if key not in numbers:
            numbers[key] = len(parent)
            parent.append(len(parent))
        return numbers[key]

    for i in order:
        unit = number(("path", paths[i]))
        if table.groups is not None and (group := table.groups[i]):
            parent[find(number(("group", group)))] = find(unit)
        unit_of[i] = unit
    unit_of = np.array([find(int(unit)) for unit in unit_of], dtype=np.int64)
    units: dict[int, Counter[int]] = {}
    for i in order:
        units.setdefault(int(unit_of[i]), Counter())[int(table.labels[i])] += 1
    chosen = _choose_units(list(units.values()), fraction, rng)
    in_val = {unit for unit, taken in zip(units, chosen, strict=True) if taken}
    return np.fromiter((int(unit) in in_val for unit in unit_of), dtype=np.bool_, count=len(unit_of))


def _choose_units(units: list[Counter[int]], fraction: float, rng: np.random.Generator) -> list[bool]:
    """Which units (clips per class in each) go to validation, so that classes come near their share."""
    clips, homes = Counter[int](), Counter[int]()  # clips and units of each class
    for unit in units:
        clips.update(unit)
        homes.update(unit.keys())
    share = {c: max(1, round(fraction * n)) if homes[c] > 1 else 0 for c, n in clips.items()}
    taken, left = Counter[int](), Counter(homes)  # clips in validation; units still in training
    chosen = [False] * len(units)

    def cost_change(unit: Counter[int]) -> float:
        return sum(((taken[c] + n - share[c]) ** 2 - (taken[c] - share[c]) ** 2) / clips[c] for c, n in unit.items())

    def take(i: int) -> None:
        chosen[i] = True
        taken.update(units[i])
        left.subtract(units[i].keys())

    order = rng.permutation(len(units)).tolist()
    for i in order:
        if all(left[c] > 1 for c in units[i]) and cost_change(units[i]) < 0:
            take(i)
    for i in order:  # classes that are left without validation because their groups are large
        unit = units[i]
        if not chosen[i] and all(left[c] > 1 for c in unit) and any(share[c] and not taken[c] for c in unit):
            take(i)
    return chosen
