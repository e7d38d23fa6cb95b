"""The rows of a list of clips while it is read: gathered by blocks, checked, then made into columns.

Whatever is wrong is told with its line, its value and what to do; the first ten are shown, the others counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vireo.data.labels import A_LABEL, did_you_mean, is_label, natural_order
from vireo.data.table import ClipTable, ColumnBuilder, Float64, Int64, StringColumn, counted, some
from vireo.errors import DataError

SHOWN = 10
"""Faults that are shown; the others are counted."""
_FEW = 8  # files of one folder that are looked up one by one rather than by listing it


def quote(value: str, limit: int = 80) -> str:
    """A value in quotes, shortened."""
    return repr(value if len(value) <= limit else value[:limit] + "…")


class Faults:
    """What is wrong with a list."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[tuple[str, str]] = []

    def add(self, where: str, what: str) -> None:
        """Note one fault, e.g. ``line 3`` and ``path is empty``."""
        self.count += 1
        if len(self._first) < SHOWN:
            self._first.append((where, what))

    def check(self, source: str | Path) -> None:
        """Refuse the list if there are any.

        Raises:
            DataError: there are; one line each.
        """
        if self.count == 1:
            where, what = self._first[0]
            raise DataError(f"{source}, {where}: {what}")
        if self.count:
            lines = [f"{source}: {self.count} faults", *(f"  {where}: {what}" for where, what in self._first)]
            more = self.count - len(self._first)
            raise DataError("\n".join(lines + [f"  and {more} more"] * (more > 0)))


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows. A column that one block has, all must have."""

    paths: Sequence[str]
    """As the list has them: relative to ``base`` of `Rows.table`, or absolute."""
    labels: Sequence[str]
    lines: npt.ArrayLike
    """Where each row is in its file, from 1."""
    splits: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    starts: npt.ArrayLike | None = None
    """Seconds; nan = not said."""
    ends: npt.ArrayLike | None = None
    frames: npt.ArrayLike | None = None
    """Announced frames; 0 = not said."""


class Rows:
    """The rows read so far."""

    def __init__(self, source: Path) -> None:
        self.source = source
        """The list, as messages name it."""
        self.faults = Faults()
        self._texts = {name: ColumnBuilder(words=name != "paths") for name in ("paths", "splits", "groups")}
        self._numbers: dict[str, tuple[np.dtype[Any], bytearray]] = {}  # growing, as in ColumnBuilder
        self._labels: dict[str, int] = {}
        self._has: set[str] = set()
        self._renamed: tuple[str, ...] | None = None
        self._files: list[tuple[int, str]] = []  # first row of each file, and what its rows are called
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels found."""
        return tuple(self._labels) if self._renamed is None else self._renamed

    def rename_labels(self, names: Mapping[str, str]) -> None:
        """Put other names in place of the labels found, once all rows are there."""
        self._renamed = tuple(names[label] for label in self._labels)

    def sample(self, count: int) -> list[str]:
        """Some paths from all over the list, as they were given."""
        paths = self._texts["paths"].column()
        return (
            [paths[int(i)] for i in np.unique(np.linspace(0, len(paths) - 1, count).astype(int))] if len(paths) else []
        )

    def begin(self, file: str, unit: str = "line") -> None:
        """Say which of several files the next rows are from, and what its lines are called."""
        self._files.append((self._count, f"{file}, {unit}"))

    def extend(self, block: Block) -> None:
        """Append rows.

        Raises:
            DataError: a path that can be no file name.
        """
        count = len(block.paths)
        try:
            self._texts["paths"].extend(block.paths)
        except UnicodeEncodeError as error:
            raise DataError(f"{self.source}: {quote(error.object)} can be no file name") from None
        labels = self._labels
        codes = np.fromiter((labels.setdefault(text, len(labels)) for text in block.labels), np.int64, count)
        self._append("labels", codes.astype(np.int32))
        self._append("lines", np.asarray(block.lines, dtype=np.int32))
        for name, texts in (("splits", block.splits), ("groups", block.groups)):
            if texts is not None:
                self._has.add(name)
                self._texts[name].extend(texts)
        for name, values in (("starts", block.starts), ("ends", block.ends), ("frames", block.frames)):
            if values is not None:
                self._has.add(name)
                self._append(name, np.asarray(values, dtype=np.int64 if name == "frames" else np.float64))
        self._count += count

    def _append(self, name: str, values: npt.NDArray[Any]) -> None:
        self._numbers.setdefault(name, (values.dtype, bytearray()))[1].extend(values.tobytes())

    def _joined(self, name: str, otherwise: float) -> npt.NDArray[Any]:
        if name not in self._numbers:
            return np.full(self._count, otherwise)
        kind, data = self._numbers.pop(name)
        return np.frombuffer(data, dtype=kind).copy()  # without the room to grow

    def table(
        self,
        label_names: Sequence[str] | None,
        *,
        order: Sequence[str] | None = None,
        base: str = "",
        official: bool = False,
        missing: Sequence[int] | None = None,
        relative_to: str = "",
        unlisted: str = "add it",
        notes: Sequence[str] = (),
    ) -> ClipTable:
        """Check all rows and make a table of them.

        Args:
            label_names: labels and their order, e.g. a model's; a label that is not among them is refused.
            order: of the labels otherwise; None = natural order of those found.
            base: folder that relative paths are relative to.
            official: the list is nobody's to mend: of rows that contradict each other the first counts.
            missing: rows whose file is known to be missing; None = look for the files.
            relative_to: what paths are relative to, for the message when all files are missing.
            unlisted: what to do about a label that is not in ``order``, and not like one that is.
            notes: to be shown to the user, before those found here.

        Raises:
            DataError: the list can't be used; the message names line, value and remedy.
        """
        self.faults.check(self.source)
        lines = self._joined("lines", 0)
        names, labels = self._name_labels(label_names, order, lines, unlisted)
        self.faults.check(self.source)
        given = self._texts["paths"].column()
        paths = given.map_heads(lambda head: os.path.join(base, head))
        starts, ends = self._joined("starts", np.nan), self._joined("ends", np.nan)
        frames = self._joined("frames", 0).astype(np.int64) if "frames" in self._has else None
        splits, groups = (self._texts[name].column() if name in self._has else None for name in ("splits", "groups"))
        gone = missing_rows(paths) if missing is None else np.asarray(missing, dtype=np.int64)
        found_notes = self._missing_note(gone, paths, base, lines, relative_to)
        if groups is not None and splits is not None and not official:
            self._check_groups(groups, splits, lines)
        keep, note = self._without_repeats(paths, starts, ends, labels, names, splits, lines, official)
        table = ClipTable(
            paths=paths,
            labels=labels,
            label_names=names,
            starts=starts,
            ends=ends,
            splits=splits,
            groups=groups,
            frame_counts=frames,
            notes=(*notes, *found_notes, *note),
            base="" if all(map(os.path.isabs, given.heads())) else base,
        )
        if len(keep) == len(table):
            return table
        return replace(table.select(keep), notes=table.notes)

    def where(self, row: int, lines: npt.NDArray[Any]) -> str:
        """``line 12``, with the file if there are several."""
        name = "line"
        for first, file in self._files:
            if first <= row:
                name = file
        return f"{name} {lines[row]}"

    def _name_labels(
        self,
        label_names: Sequence[str] | None,
        order: Sequence[str] | None,
        lines: npt.NDArray[Any],
        unlisted: str,
    ) -> tuple[tuple[str, ...], Int64]:
        found = self.labels
        codes = self._joined("labels", 0)
        wrong = {label for label in found if not is_label(label)}
        self._refuse_labels(codes, lines, wrong, lambda label: f"label is {quote(label)}; {A_LABEL}")
        if order is not None:

            def not_listed(label: str) -> str:
                return f"label {quote(label)} is not in the list of labels; {did_you_mean(label, order, unlisted)}"

            self._refuse_labels(codes, lines, set(found) - set(order), not_listed)
        if label_names is not None:
            self._refuse_unknown(codes, lines, label_names)
            names = tuple(label_names)
        else:
            names = tuple(natural_order(found) if order is None else order)
            if len(names) < 2:
                raise DataError(f"{self.source} has one class only, {names[0]!r}; recognition needs at least two")
        index = {name: i for i, name in enumerate(names)}
        return names, np.array([index.get(label, -1) for label in found], dtype=np.int64)[codes]

    def _refuse_labels(
        self, codes: Int64, lines: npt.NDArray[Any], wrong: set[str], what: Callable[[str], str]
    ) -> None:
        """Refuse the list if rows have one of these labels; ``what`` says of a label what is wrong with it."""
        if wrong:
            found = self.labels
            rows = np.flatnonzero(np.isin(codes, [code for code, label in enumerate(found) if label in wrong]))
            for row in rows.tolist():
                shown = self.faults.count < SHOWN
                self.faults.add(self.where(row, lines), what(found[codes[row]]) if shown else "")
            self.faults.check(self.source)

    def _refuse_unknown(self, codes: Int64, lines: npt.NDArray[Any], known: Sequence[str]) -> None:
        """Refuse the list if it has labels that a model does not know; each is told once, where it is first."""
        unknown = set(self.labels) - set(known)
        if not unknown:
            return
        found, first, counts = np.unique(codes, return_index=True, return_counts=True)
        rows = sorted(zip(first.tolist(), found.tolist(), counts.tolist(), strict=True))
        for row, label, count in ((r, self.labels[code], n) for r, code, n in rows if self.labels[code] in unknown):
            remedy = did_you_mean(label, known, f"it knows {some(known)}") if self.faults.count < SHOWN else ""
            times = f" ({count} rows)" if count > 1 else ""
            self.faults.add(
                self.where(row, lines), f"the model does not know the label {quote(label)}{times}; {remedy}"
            )
        self.faults.check(self.source)

    def _check_groups(self, groups: StringColumn, splits: StringColumn, lines: npt.NDArray[Any]) -> None:
        """Refuse the list if a group is in two splits."""
        (names, group), (parts, part) = groups.distinct(), splits.distinct()
        homes: dict[str, tuple[str, int]] = {}
        pairs, first = np.unique(group * len(parts) + part, return_index=True)
        for row, pair in sorted(zip(first.tolist(), pairs.tolist(), strict=True)):
            name, split = names[pair // len(parts)], parts[pair % len(parts)]
            home, there = homes.setdefault(name, (split, row))
            if name and home != split:
                self.faults.add(
                    self.where(row, lines),
                    f"group {quote(name)} is in split {split} here and {home} in {self.where(there, lines)}; "
                    "a group must stay in one",
                )
        self.faults.check(self.source)

    def _missing_note(
        self, gone: Int64, paths: StringColumn, base: str, lines: npt.NDArray[Any], relative_to: str
    ) -> list[str]:
        if not len(gone):
            return []
        names = [paths[row] for row in gone[:SHOWN].tolist()]
        for row in gone.tolist():
            if not is_utf8(name := paths[row]):
                raise DataError(
                    f"{self.source}, {self.where(row, lines)}: {quote(name)} does not exist, and the list is not in "
                    "UTF-8; save it as CSV (UTF-8)"
                )
        hint = "; folders are separated by / here, not by \\" if any("\\" in name for name in names) else ""
        if len(gone) == len(paths):
            others = f", nor does any other of the {len(paths)} files" if len(paths) > 1 else ""
            raise DataError(
                f"{self.source}: {names[0]} does not exist{others}; "
                f"paths are relative to {relative_to or 'the current folder'}{hint}"
            )
        inside = os.path.join(base or self.source, "")
        shown = ", ".join(
            f"{name.removeprefix(inside)} ({self.where(row, lines)})"
            for name, row in zip(names, gone.tolist(), strict=False)
        )
        more = f" and {len(gone) - len(names)} more" if len(gone) > len(names) else ""
        return [
            f"{self.source}: {len(gone)} of {counted(len(paths), 'file')} {'is' if len(gone) == 1 else 'are'} missing "
            "and will count as failed: "
            f"{shown}{more}{hint}"
        ]

    def _without_repeats(
        self,
        paths: StringColumn,
        starts: Float64,
        ends: Float64,
        labels: Int64,
        names: Sequence[str],
        splits: StringColumn | None,
        lines: npt.NDArray[Any],
        official: bool,
    ) -> tuple[Int64, list[str]]:
        """The rows to keep, and a note on the others."""
        keep = np.ones(len(paths), dtype=np.bool_)
        dropped: list[int] = []
        for row, first in repeated_rows(paths, starts, ends):
            there = self.where(first, lines)
            if labels[row] != labels[first] and not official:
                here, before = (quote(names[labels[i]]) for i in (row, first))
                self.faults.add(
                    self.where(row, lines), f"{quote(paths[row])} is {here} here and {before} in {there}; keep one"
                )
            elif splits is not None and splits[row] != splits[first] and not official:
                self.faults.add(
                    self.where(row, lines),
                    f"{quote(paths[row])} is in split {splits[row]} here and {splits[first]} in {there}; keep one, "
                    "or the model is tested on what it was trained on",
                )
            else:
                keep[row] = False
                dropped.append(row)
        self.faults.check(self.source)
        if not dropped:
            return np.arange(len(paths), dtype=np.int64), []
        shown = ", ".join(self.where(row, lines) for row in dropped[:SHOWN])
        more = f" and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
        repeat = f"{counted(len(dropped), 'row')} that repeat{'s' * (len(dropped) == 1)} an earlier one"
        note = f"{self.source}: left out {repeat} ({shown}{more})"
        return np.flatnonzero(keep).astype(np.int64), [note]


def missing_rows(paths: StringColumn) -> Int64:
    """The rows whose file or folder does not exist, ascending.

    A folder that holds many of them is listed once in place of a question per file. A link counts as a file whatever
    it points to: what can't be read is told when it is read.
    """
    missing: list[int] = []
    for folder, rows, names in paths.by_folder():
        listed = _listing(folder) if len(rows) > _FEW else None
        for row, name in zip(rows.tolist(), names, strict=True):
            if listed is None or name in (b"", b".", b".."):  # these three are in no listing
                there = os.path.lexists(folder + name)
            else:
                there = name in listed
            if not there:
                missing.append(row)
    return np.sort(np.array(missing, dtype=np.int64))


def _listing(folder: bytes) -> set[bytes] | None:
    """The names in a folder; None = it can't be listed."""
    try:
        with os.scandir(folder or b".") as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError:
        return None


def repeated_rows(paths: StringColumn, starts: Float64, ends: Float64) -> list[tuple[int, int]]:
    """The rows with file and cut of an earlier one, ascending, each with the first such row."""
    if paths.plain:
        same = paths.map_heads(lambda head: os.path.join(os.path.normpath(head or "."), ""))
    else:
        same = StringColumn(os.path.normpath(path) for path in paths)
    begin, end = np.nan_to_num(starts, nan=0.0) + 0.0, np.nan_to_num(ends, nan=np.inf)
    key = same.hashes()
    for times in (begin, end):
        key = (key ^ times.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    order = np.argsort(key, kind="stable")
    alike = key[order][1:] == key[order][:-1]
    if not alike.any():
        return []
    candidates = np.unique(np.concatenate([order[1:][alike], order[:-1][alike]]))  # nearly all are true repeats
    first: dict[tuple[str, float, float], int] = {}
    found = []
    for row in candidates.tolist():
        earlier = first.setdefault((same[row], float(begin[row]), float(end[row])), row)
        if earlier != row:
            found.append((row, earlier))
    return found


def is_utf8(text: str) -> bool:
    """Whether a text is fit for a file in UTF-8, without bytes of another encoding in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
