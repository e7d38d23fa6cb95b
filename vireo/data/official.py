"""What the data sets of the field have in common as they are distributed: lists in usual places, and clips below them.

`vireo.data.formats` reads each of them with these parts.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vireo.data.flow import is_flow_clip
from vireo.data.folders import is_video
from vireo.data.images import is_folder
from vireo.data.labels import natural_order
from vireo.data.lists import bounded_lines, opened
from vireo.data.rows import Block, Faults, Rows
from vireo.data.splits import SPLIT_WORDS
from vireo.data.table import ClipTable, counted
from vireo.errors import DataError

ANNOTATION_FOLDERS = ("", "annotations", "annotation", "labels", "label", "splits", "lists", "metadata", "csv")
"""Where annotation files are looked for, below the folder given."""
_MEDIA_WORDS = frozenset(
    {"clips", "compress", "data", "frames", "images", "img", "jpeg", "jpegs", "jpg", "raw", "rawframes"}
    | {"replacement", "resized", "rgb", "video", "videos"}
)
"""A folder whose name has one of these words, or that of a split, may hold clips."""
_DEEPEST = 4
_MOST_FOLDERS = 20_000  # that are searched for clips
_LARGEST_JSON = 1 << 29  # bytes; Something-Something's have 33 million
CLIP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What data sets name their clips by."""


class Clip(NamedTuple):
    """One line of an annotation file."""

    line: int
    names: tuple[str, ...]
    """What the file or folder may be called, without ending, most likely first."""
    label: str
    expected: str
    """Where it would usually be, below the data set's folder."""
    group: str = ""


class Part(NamedTuple):
    """An annotation file that has been read."""

    split: str
    file: Path
    clips: list[Clip]
    unit: str = "line"


def find_clips(
    root: Path,
    parts: Sequence[Part],
    label_names: Sequence[str] | None,
    modality: str,
    *,
    order: Sequence[str],
    words: Sequence[str],
    fold: bool = False,
    classes: Sequence[str] = (),
    notes: Sequence[str] = (),
    faults: Faults | None = None,
) -> ClipTable:
    """Find the clips and make the table.

    Args:
        root: the data set's folder.
        parts: what was read.
        label_names: as in `read_table`.
        modality: rgb or flow.
        order: the official labels.
        words: of the names of folders that hold this data set's clips.
        fold: whether upper and lower case are the same in names of clips.
        classes: names of folders that hold one class each.
        notes: to be shown to the user.
        faults: found while reading.

    Raises:
        DataError: a fault, or no clip was found.
    """
    if faults is not None:
        faults.check(root)
    clips = [clip for part in parts for clip in part.clips]
    if not clips:
        raise DataError(f"{root}: {' and '.join(part.file.name for part in parts[:3])} list no clips with labels")
    wanted = {_key(name, fold) for clip in clips for name in clip.names}
    media = find_media(root, wanted, (*classes, *words), modality, fold)
    rows, missing = Rows(root), []
    grouped = any(clip.group for clip in clips)
    for part in parts:
        paths: list[str] = []
        for clip in part.clips:
            path = media.path(clip, fold)
            if path is None:
                missing.append(len(rows) + len(paths))
            paths.append(path or os.path.join(root, clip.expected))
        rows.begin(part.file.name, part.unit)
        rows.extend(
            Block(
                paths=paths,
                labels=[clip.label for clip in part.clips],
                lines=[clip.line for clip in part.clips],
                splits=[part.split] * len(paths),
                groups=[clip.group for clip in part.clips] if grouped else None,
            )
        )
    if len(missing) == len(clips):
        searched = ", ".join(media.searched[:8]) + (" …" if len(media.searched) > 8 else "")
        raise DataError(
            f"{root}: none of the {len(clips)} clips is there, e.g. {clips[0].expected}; put them below it, as videos "
            f"or folders of frames (looked in {searched})"
        )
    table = rows.table(label_names, order=order, official=True, missing=missing, notes=notes)
    return replace(table, base=str(root))


# Clips


class Media(NamedTuple):
    """Where clips are, by their keys; of a clip in a folder of its class also by (folder, key)."""

    places: dict[str | tuple[str, str], str]
    searched: list[str]

    def path(self, clip: Clip, fold: bool) -> str | None:
        """Where a clip is; None = nowhere."""
        for name in clip.names:
            key = _key(name, fold)
            if found := self.places.get((_plain(clip.label), key)) or self.places.get(key):
                return found
        return None


def _key(name: str, fold: bool) -> str:
    return name.casefold() if fold else name


def _plain(name: str) -> str:
    """Names of classes are written in many ways as folders: air_drumming, massaging person's head."""
    return re.sub(r"[\W_]+", "", name).casefold()


def find_media(root: Path, wanted: set[str], likely: Sequence[str], modality: str, fold: bool) -> Media:
    """Look for clips below a folder, where clips may be.

    A video goes before a folder of frames of the same name. Folders are searched breadth first in natural order, so
    that the result does not depend on the file system.
    """
    names = {_plain(name) for name in likely}
    videos: dict[str | tuple[str, str], str] = {}
    folders: dict[str | tuple[str, str], str] = {}
    waiting, seen, searched = deque([(str(root), 0)]), set[str](), list[str]()
    while waiting and len(seen) < _MOST_FOLDERS:
        folder, depth = waiting.popleft()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        searched.append(folder)
        below, parent = [], _plain(os.path.basename(folder))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                holds_more = is_folder(entry)
                stem = entry.name if holds_more else os.path.splitext(entry.name)[0]
                key = _key(stem, fold)
                if key in wanted and _is_clip(entry.path, holds_more, modality):
                    places = folders if holds_more else videos
                    places.setdefault(key, entry.path)
                    if parent in names:
                        places.setdefault((parent, key), entry.path)
                elif holds_more and key not in wanted and depth < _DEEPEST and _may_hold_clips(entry.name, names):
                    below.append(entry.path)
        waiting.extend((path, depth + 1) for path in natural_order(below))
    return Media({**folders, **videos}, searched)


def _is_clip(path: str, is_folder: bool, modality: str) -> bool:
    if modality == "flow":
        return is_flow_clip(path)
    return is_folder or is_video(path)


def _may_hold_clips(name: str, likely: set[str]) -> bool:
    if _plain(name) in likely:
        return True
    words = set(re.findall(r"[a-z]+", name.lower()))
    return bool(words & _MEDIA_WORDS) or any(word in SPLIT_WORDS for word in words) or "flow" in words


# Annotation files


def locate(root: Path, names: Sequence[str], folders: Sequence[str] = ()) -> Path | None:
    """The first of some files that is there, directly in a folder or in a usual subfolder."""
    for folder in (*ANNOTATION_FOLDERS, *folders):
        for name in names:
            path = root / folder / name
            if path.is_file():
                return path
    return None


def require(root: Path, names: Sequence[str], folders: Sequence[str] = ()) -> Path:
    """As `locate`.

    Raises:
        DataError: none is there; the message says what was looked for, and where.
    """
    path = locate(root, names, folders)
    if path is None:
        places = ", ".join(f"{folder}/" for folder in (*folders, *ANNOTATION_FOLDERS[1:]))
        raise DataError(f"{root} has no {' or '.join(names)}; put it there or into a subfolder ({places})")
    return path


def locate_splits(root: Path, names: Mapping[str, Sequence[str]], folders: Sequence[str] = ()) -> dict[str, Path]:
    """The annotation file of each split that is there.

    Raises:
        DataError: none is.
    """
    found = {split: path for split in names if (path := locate(root, names[split], folders))}
    if not found:
        require(root, [name for split in names for name in names[split][:2]], folders)
    return found


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    with opened(path) as file:
        for number, line in enumerate(bounded_lines(path, file), 1):
            if line := line.strip():
                yield number, line


def left_out(path: Path, count: int) -> list[str]:
    """A note on clips without labels, if there are any."""
    have = "has" if count == 1 else "have"
    return [f"{path}: left out {counted(count, 'clip')}, which {have} no label there"] if count else []


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: it can't be read, is too large, or is no JSON.
    """
    try:
        if os.path.getsize(path) > _LARGEST_JSON:
            raise DataError(f"{path} is larger than {_LARGEST_JSON >> 20} MiB; this is not a list of clips")
        with path.open("rb") as file:
            return json.loads(file.read(_LARGEST_JSON))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one, too
        what = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{path} is not JSON ({what}); fetch or unpack it again") from None
