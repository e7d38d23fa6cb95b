"""Lists of clips in text files: CSV with a header, and the space-separated lists of TSN, TSM and MMAction."""

from __future__ import annotations

import contextlib
import csv
import difflib
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from vireo.data.labels import natural_order, read_label_map
from vireo.data.rows import Block, Rows, is_utf8, missing_rows, quote
from vireo.data.splits import SPLIT_WORDS
from vireo.data.table import SPLITS, ClipTable, Float64, Int64, StringColumn, counted, some
from vireo.errors import DataError

COLUMNS = ("path", "label", "split", "group", "start", "end", "frames")
_SEPARATORS = ",;\t"
LONGEST_LINE = 1 << 16
"""Characters; a path has at most 4096."""
# Rows at a time. Python's garbage collector runs when 700 more lists were made than freed: so it never runs here, and a
# million rows take a third of the time.
_BLOCK = 512
_MOST_DIGITS = 12  # of a number of frames


def bounded_lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file, with their ends.

    Raises:
        DataError: a line that is too long for a list.
    """
    return itertools.chain.from_iterable(_line_blocks(path, file))


def _line_blocks(path: Path, file: TextIO) -> Iterator[list[str]]:
    lines = iter(partial(file.readline, LONGEST_LINE), "")
    number = 0
    while block := list(itertools.islice(lines, 256)):
        if max(map(len, block)) == LONGEST_LINE:
            number += next(i for i, line in enumerate(block, 1) if len(line) == LONGEST_LINE)
            raise DataError(
                f"{path}, line {number}: longer than {LONGEST_LINE} characters; this is not a list of clips"
            )
        number += len(block)
        yield block


@contextlib.contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A text file in UTF-8, or in UTF-16 if it says so, with any byte that is neither kept for a file name.

    Raises:
        DataError: it can't be read, or is no regular file.
    """
    if not path.is_file():  # a FIFO would block
        raise DataError(f"{path} is no regular file")
    try:
        with path.open("rb") as file:
            start = file.read(2)
        encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        errors = "strict" if encoding == "utf-16" else "surrogateescape"
        with path.open(encoding=encoding, errors=errors, newline="") as file:
            yield file
    except UnicodeError:
        raise DataError(f"{path} is not a text file in UTF-8 or UTF-16; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None


# CSV


def read_csv(path: Path, label_names: Sequence[str] | None) -> ClipTable:
    """Read a CSV with the header ``path,label[,split][,group][,start,end][,frames]``.

    Raises:
        DataError: it can't be used; the message names the line, the value and the remedy.
    """
    with opened(path) as file:
        return _parse_csv(path, file, label_names)


def csv_lists_in(folder: Path) -> list[Path]:
    """The CSV files directly in a folder whose header names a path and a label."""
    found = []
    for path in sorted(folder.glob("[!.]*.csv")):
        with contextlib.suppress(DataError, csv.Error), opened(path) as file:
            if {"path", "label"} <= set(_split_header(file.readline(LONGEST_LINE))[0]):
                found.append(path)
    return found


def _split_header(line: str) -> tuple[list[str], str]:
    """Names of the columns and the separator."""
    delimiter = max(_SEPARATORS, key=line.count)
    return [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])], delimiter


def _parse_csv(path: Path, file: TextIO, label_names: Sequence[str] | None) -> ClipTable:
    lines = bounded_lines(path, file)
    header_line = next(lines, "")
    if not header_line.strip():
        raise DataError(f"{path} is empty; the first line must be a header like path,label")
    if not is_utf8(header_line):
        raise DataError(_not_utf8(path))
    columns, delimiter = _split_header(header_line)
    _check_header(path, columns)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows = Rows(path)
    before = 0
    try:
        while block := list(itertools.islice(reader, _BLOCK)):
            if reader.line_num - before == len(block):
                numbers = list(range(before + 2, reader.line_num + 2))  # the header is line 1
            else:  # values with line breaks in them
                numbers = list(itertools.accumulate(map(_line_count, block), initial=before + 1))[1:]
            before = reader.line_num
            _add_block(rows, block, numbers, columns, delimiter)
    except csv.Error as error:
        rows.faults.check(path)
        raise DataError(f"{path}, line {_torn_line(path, file, delimiter)}: {_torn_row(error)}") from None
    rows.faults.check(path)
    if not len(rows):
        raise DataError(f"{path} lists no clips: there is nothing below its header")
    if not is_utf8("".join(rows.labels)):
        raise DataError(_not_utf8(path))
    return rows.table(label_names, base=str(path.parent), relative_to="the CSV's folder")


def _torn_line(path: Path, file: TextIO, delimiter: str) -> int:
    """Where the row begins that can't be taken apart."""
    file.seek(0)
    lines = bounded_lines(path, file)
    next(lines, "")
    reader, begin = csv.reader(lines, delimiter=delimiter, strict=True), 2
    with contextlib.suppress(csv.Error):
        for _ in reader:
            begin = reader.line_num + 2
    return begin


def _torn_row(error: csv.Error) -> str:
    """What is wrong with it, in plain words."""
    text = str(error)
    if "field limit" in text or "end of data" in text:
        return 'a quote (") opens here and is not closed; close it, or write "" for a quote inside a value'
    if "expected after" in text:
        return 'something follows a closing quote ("); write "" for a quote inside a value'
    return text


def _line_count(row: list[str]) -> int:
    return 1 + sum(len(re.findall(r"\r\n|\r|\n", cell)) for cell in row if "\n" in cell or "\r" in cell)


def _not_utf8(path: Path) -> str:
    return f"{path} is not a CSV in UTF-8; save it as CSV (UTF-8)"


_OTHER_NAMES = {
    **dict.fromkeys(("clip", "file", "file_name", "filename", "filepath", "video", "video_name", "video_path"), "path"),
    **dict.fromkeys(("action", "activity", "category", "class", "class_name", "classname", "gesture"), "label"),
    **dict.fromkeys(("partition", "phase", "set", "subset"), "split"),
    **dict.fromkeys(("begin", "time_start", "t_start"), "start"),
    **dict.fromkeys(("stop", "time_end", "t_end"), "end"),
    **dict.fromkeys(("num_frames", "total_frames"), "frames"),
}
"""What columns are often called elsewhere, and what they are called here."""


def _check_header(path: Path, columns: list[str]) -> None:
    wanted = f"path,label[,split][,group][,start,end][,frames], not {','.join(columns)[:80]!r}"
    unknown = [name for name in columns if name not in COLUMNS]
    missing = [name for name in COLUMNS[:2] if name not in columns]
    meant = {name: _meant(name) for name in unknown}
    if missing and len(unknown) == len(columns) and not any(meant.values()):
        other = f"; list:{path} reads lists of `path label` with spaces" if len(columns) == 1 else ""
        raise DataError(f"{path} has no header line; the first line must be {wanted}{other}")
    if unknown:
        hints = [f"Did you mean {near!r} for {name!r}?" for name, near in meant.items() if near]
        if strange := [name for name, near in meant.items() if not near]:
            hints.append(f"Rename or remove {some(strange)}.")
        what = f"unknown column{'s' * (len(unknown) > 1)} {some(unknown)}"
        raise DataError(f"{path}: {what}; known: {', '.join(COLUMNS)}. {' '.join(hints)}")
    if missing:
        raise DataError(f"{path}: column {some(missing)} is missing; the header must be {wanted}")
    if len(set(columns)) < len(columns):
        raise DataError(f"{path}: a column occurs twice in the header {','.join(columns)[:80]!r}")


def _meant(name: str) -> str:
    """The column that an unknown one is probably meant to be; "" = none."""
    near = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.5)
    return _OTHER_NAMES.get(name) or (near[0] if near else "")


def _add_block(rows: Rows, block: list[list[str]], lines: list[int], columns: list[str], delimiter: str) -> None:
    """Add the rows of a block that are right, and note what is wrong with the others."""
    width = {len(columns)}
    try:
        if set(map(len, block)) == width:
            rows.extend(_columns(block, lines, columns))
            return
    except _Doubt:
        pass
    good = []
    for row, line in zip(block, lines, strict=True):
        if not row or not any(cell.strip() for cell in row):
            continue
        if fault := _fault(row, columns, delimiter):
            rows.faults.add(f"line {line}", fault)
        else:
            good.append((row, line))
    if good:
        rows.extend(_columns([row for row, _ in good], [line for _, line in good], columns))


class _Doubt(Exception):
    """Something is wrong in a block; its rows have to be looked at one by one."""


def _columns(block: list[list[str]], lines: list[int], columns: list[str]) -> Block:
    """A block by columns.

    This is what reading a million rows takes its time for: no Python code runs per row here, but calls per column.

    Raises:
        _Doubt: a row is blank or wrong.
    """
    cells = {name: list(map(str.strip, column)) for name, column in zip(columns, zip(*block, strict=True), strict=True)}
    if not all(cells["path"]) or not all(cells["label"]) or "\0" in "".join(cells["path"]):
        raise _Doubt
    splits = None
    if "split" in cells:
        words = {word: SPLIT_WORDS.get(word.lower(), "") for word in set(cells["split"])}
        if not all(words.values()):
            raise _Doubt
        splits = [words[word] for word in cells["split"]]
    try:
        starts, ends = (_seconds(cells.get(name)) for name in ("start", "end"))
        frames = _counts(cells.get("frames"))
    except ValueError:
        raise _Doubt from None
    for name, times in (("start", starts), ("end", ends)):
        # More nan than empty cells: somebody wrote nan.
        if times is not None and (
            np.isinf(times).any() or (times < 0).any() or np.isnan(times).sum() != cells[name].count("")
        ):
            raise _Doubt
    if ends is not None and ((ends <= 0).any() or (starts is not None and (starts >= ends).any())):
        raise _Doubt
    return Block(
        paths=cells["path"],
        labels=cells["label"],
        lines=lines,
        splits=splits,
        groups=cells.get("group"),
        starts=starts,
        ends=ends,
        frames=frames,
    )


def _seconds(cells: list[str] | None) -> Float64 | None:
    """(N,) what the cells say, nan where they are empty.

    Raises:
        ValueError: a cell is no number.
    """
    if cells is None:
        return None
    return np.array([float(cell) if cell else math.nan for cell in cells], dtype=np.float64)


def _counts(cells: list[str] | None) -> Int64 | None:
    """(N,) numbers of frames, 0 where cells are empty.

    Raises:
        ValueError: a cell is no such number.
    """
    if cells is None:
        return None
    joined = "".join(cells)
    if joined and not (joined.isascii() and joined.isdigit() and max(map(len, cells)) <= _MOST_DIGITS):
        raise ValueError
    counts = np.array([int(cell) if cell else 0 for cell in cells], dtype=np.int64)
    if (counts == 0).sum() != cells.count(""):
        raise ValueError
    return counts


def _fault(row: list[str], columns: list[str], delimiter: str) -> str:
    """What is wrong with a row, or ""."""
    if len(row) != len(columns):
        other = next(
            (s for s in _SEPARATORS if s != delimiter and delimiter.join(row).count(s) == len(columns) - 1), ""
        )
        if other and len(columns) > 1:
            return f"values are separated by {other!r} here and by {delimiter!r} in the header; use one of them"
        there = f"{counted(len(row), 'value')} for {counted(len(columns), 'column')}"
        return f"{there}; quote values that hold a separator"
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
    for name in ("path", "label"):
        if not cells[name]:
            return f"{name} is empty"
    if "\0" in cells["path"]:
        return "path holds a null character"
    if not cells.get("split", "-"):
        return "split is empty; write train, val or test in each row, or take the column out"
    if "split" in cells and cells["split"].lower() not in SPLIT_WORDS:
        near = difflib.get_close_matches(cells["split"].lower(), SPLIT_WORDS, n=1, cutoff=0.5)
        return f"unknown split {quote(cells['split'])}; use " + (
            f"train, val or test (did you mean {SPLIT_WORDS[near[0]]!r}?)" if near else "train, val or test"
        )
    times = {}
    for name in ("start", "end"):
        text = cells.get(name, "")
        try:
            times[name] = float(text) if text else math.nan
        except ValueError:
            return f"{name} is {quote(text)}; it must be a number of seconds"
        if text and not (math.isfinite(times[name]) and times[name] >= 0):
            return f"{name} is {quote(text)}; it must be a number of seconds, 0 or more"
    if times["start"] >= times["end"] or times["end"] == 0:
        return f"end ({cells['end']}) is not after start ({cells.get('start') or 0})"
    return _frames_fault(cells.get("frames", ""))


def _frames_fault(text: str) -> str:
    if not text or (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text)):
        return ""
    return f"frames is {quote(text)}; it must be the number of frames, 1 or more, or empty"


# Space-separated lists

LABEL_FILES = ("labels.txt", "classInd.txt", "category.txt", "categories.txt", "classes.txt", "label_map.txt")
"""Names of classes beside a list, in the order in which they are looked for."""
MEDIA_FOLDERS = ("", "videos", "frames", "rawframes", "data", "clips", "images", "jpg")
"""Where the clips of a list may be, below its folder."""


def read_list(path: Path, label_names: Sequence[str] | None, modality: str) -> ClipTable:
    """Read lists of ``path label`` or ``path num_frames label``, separated by spaces or tabs.

    Labels are whole numbers, the names of which are in a file of `LABEL_FILES` beside the list or above it, or texts
    without spaces. In a folder all lists count whose names say which split they are.

    Args:
        path: a list, or a folder with lists like ``train_videofolder.txt`` and ``val_videofolder.txt``.
        label_names: labels and their order; None = those of the file of names, or those found.
        modality: what clips are; it makes no difference here.

    Raises:
        DataError: a list can't be used.
    """
    lists = _lists_by_split(path) if path.is_dir() else {"": path}
    folder = next(iter(lists.values())).parent
    layout = _layout(next(iter(lists.values())))
    rows = Rows(path)
    for split, file in lists.items():
        if split:
            rows.begin(file.name)
        for block in _blocks(file, layout.tabs):
            _add_pieces(rows, block, layout, split, file)
    rows.faults.check(path)
    if not len(rows):
        raise DataError(f"{path} lists no clips")
    order, unlisted = _name_numbers(rows, folder)
    base = _media_folder(folder, rows)
    return rows.table(label_names, order=order, base=base, relative_to="the list's folder", unlisted=unlisted)


class _Layout(NamedTuple):
    tabs: bool
    """Values are separated by tabs, so that paths and labels may hold spaces."""
    frames: bool
    """``path num_frames label``, not ``path label``."""


def _lists_by_split(folder: Path) -> dict[str, Path]:
    """The list of each split in a folder."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("[!.]*.txt")):
        words = set(re.split(r"[^a-z]+", re.sub("list|video|folder", " ", file.stem.lower())))
        splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if len(splits) == 1 and file.is_file() and file.name not in LABEL_FILES:
            found.setdefault(splits.pop(), []).append(file)
    for split, files in found.items():
        if len(files) > 1:
            raise DataError(
                f"{folder} holds {len(files)} lists for {split}, {files[0].name} and {files[1].name}; "
                "give one file, or move the others away"
            )
    if not found:
        raise DataError(f"{folder} holds no list like train_videofolder.txt or val_list.txt; give the file itself")
    return {split: found[split][0] for split in SPLITS if split in found}


def _blocks(path: Path, tabs: bool) -> Iterator[list[tuple[int, list[str]]]]:
    """Line number and pieces of each line that is not blank, many at a time."""
    with opened(path) as file:
        lines = ((i, line.rstrip("\r\n")) for i, line in enumerate(bounded_lines(path, file), 1) if line.strip())
        while block := list(itertools.islice(lines, _BLOCK)):
            yield [(i, [*map(str.strip, line.split("\t"))] if tabs else line.rstrip().split(" ")) for i, line in block]


def _layout(path: Path) -> _Layout:
    """What most of the first lines look like: spaces in a path make single lines ambiguous."""
    lines = [" ".join(pieces) for _, pieces in next(_blocks(path, False), [])]
    tabs = sum("\t" in line for line in lines) * 2 > len(lines)
    rows = [line.split("\t" if tabs else None) for line in lines]
    counts = sum(len(row) > 2 and row[-2].strip().lstrip("-").isdigit() for row in rows)
    return _Layout(tabs, counts * 2 > len(rows))


def _add_pieces(rows: Rows, block: list[tuple[int, list[str]]], layout: _Layout, split: str, file: Path) -> None:
    """Add the rows that are right, and note what is wrong with the others."""
    needed = 3 if layout.frames else 2
    wanted = "path num_frames label" if layout.frames else "path label"
    paths, labels, lines, frames = [], [], [], []
    for line, pieces in block:
        path = " ".join(pieces[: 1 - needed]).strip()
        if len(pieces) < needed or not path or not pieces[-1]:
            fault = f"{quote(' '.join(pieces))} is not {wanted}, separated by {'tabs' if layout.tabs else 'spaces'}"
        elif "\0" in path:
            fault = "path holds a null character"
        else:
            fault = _frames_fault(pieces[-2]).removesuffix(", or empty") if layout.frames else ""
        if fault:
            rows.faults.add(f"{file.name}, line {line}" if split else f"line {line}", fault)
            continue
        paths.append(path)
        labels.append(pieces[-1])
        lines.append(line)
        frames.append(int(pieces[-2] or 0) if layout.frames else 0)
    if paths:
        splits = [split] * len(paths) if split else None
        counts = frames if layout.frames else None
        rows.extend(Block(paths=paths, labels=labels, lines=lines, splits=splits, frames=counts))


def _name_numbers(rows: Rows, folder: Path) -> tuple[list[str], str]:
    """Put names in place of label numbers, if a file gives them.

    Returns:
        The order of labels, and what to do about one that is not among them.
    """
    file = next(_label_files(folder), None)
    numbers = {label for label in rows.labels if label.isascii() and label.isdigit() and len(label) < 10}
    if file is None:
        all_numbers = len(numbers) == len(rows.labels)
        return sorted(rows.labels, key=int) if all_numbers else natural_order(rows.labels), ""
    names, unlisted = _numbered_names(file), f"add it to {file}"
    if 2 * len(numbers) > len(rows.labels):  # the few that are none are wrong, and will be told with their lines
        unlisted = f"the others are numbers of the classes in {file}"
        if "0" in rows.labels and min(names) == 1:  # a list from 0 beside UCF101's classInd.txt, from 1
            names = {number - 1: name for number, name in names.items()}
        wrong = sorted((label for label in numbers if int(label) not in names), key=int)
        if wrong:
            raise DataError(f"{rows.source} has label {wrong[0]}, which {file} does not name; add it there")
        rows.rename_labels({label: names[int(label)] if label in numbers else label for label in rows.labels})
    return [names[number] for number in sorted(names)], unlisted


def _label_files(folder: Path) -> Iterator[Path]:
    for place in (folder, folder.parent):
        yield from (place / name for name in LABEL_FILES if (place / name).is_file())


def _numbered_names(path: Path) -> dict[int, str]:
    """Names of classes by their numbers: those before the names, as in ``1 Archery``, or those of the lines from 0."""
    lines = read_label_map(path)
    pairs = [re.fullmatch(r"(\d{1,9})[ \t,;]+(.+)", line) for line in lines]
    if all(pairs):
        found = {int(pair[1]): pair[2] for pair in pairs if pair}
        if len(found) < len(lines):
            raise DataError(f"{path}: a number occurs twice; each class has one of its own")
        return found
    return dict(enumerate(lines))


def _media_folder(folder: Path, rows: Rows) -> str:
    """The folder below which most of some of the clips are."""
    sample = rows.sample(100)

    def found(base: str) -> int:
        return len(sample) - len(missing_rows(StringColumn(os.path.join(base, path) for path in sample)))

    bases = [os.path.join(folder, name) if name else str(folder) for name in MEDIA_FOLDERS]
    return max(bases, key=found)  # the first of equals, the list's own folder
