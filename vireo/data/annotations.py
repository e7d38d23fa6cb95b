"""What is in a data set: folders of classes, lists, and the files that the field's data sets come with.

`read_table` is the one way in. A data set is named as ``PATH`` or as ``FORMAT:PATH``; the formats are in
`vireo.data.formats`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vireo.data.flow import is_flow_clip
from vireo.data.folders import USE_OTHER, clips_called, is_video, read_folder
from vireo.data.formats import FORMATS, guess_format
from vireo.data.frames import is_frame_folder
from vireo.data.lists import csv_lists_in, read_csv
from vireo.data.table import ClipTable, some
from vireo.errors import DataError, UsageError

_SAMPLE = 10  # clips looked at to see whether they are videos or flow
_WANTED = "give a folder with one subfolder per class, or a CSV file, or FORMAT:PATH"


def read_table(data: str | Path, *, label_names: Sequence[str] | None = None, modality: str = "rgb") -> ClipTable:
    """Read a data set: a folder with one subfolder per class, a CSV file, or a data set in its official layout.

    In a folder the class is the name of the immediate subfolder; clips lie in it at any depth, as video files or as
    folders of numbered frames. If all subfolders are called train, val or test, the classes are the folders in those.
    A CSV has the header ``path,label[,split][,group][,start,end][,frames]``; paths are relative to its folder, start
    and end in seconds, frames is how many there should be. A folder with exactly one such CSV directly in it stands
    for that CSV. With ``modality="flow"`` clips are folders of flow images or .npy arrays (`vireo.data.flow`) in place
    of videos.

    ``FORMAT:PATH`` says how to read PATH: ``folder`` and ``csv`` as above, ``list``, ``ssv2``, ``kinetics400``, …,
    all in `vireo.data.formats.FORMATS`. Where a file or folder of that whole name exists, that is meant.

    Files that are missing stay in the table, so that they are counted as failed when they are read; a note says which.

    Args:
        data: the folder or CSV file, or ``FORMAT:PATH``.
        label_names: labels and their order, e.g. a checkpoint's; by default the official order, or those found, in
            natural order.
        modality: rgb or flow, what clips are.

    Raises:
        UsageError: the path does not exist or is neither folder nor CSV, the format is unknown, or the clips are
            those of the other modality.
        DataError: what is there can't be used; the message names the file, the line and the remedy.
    """
    name, path = split_format(data)
    if not os.path.exists(path):  # (not Path.exists, which raises for names that are too long)
        raise UsageError(f"{path} does not exist; {_WANTED}")
    if not path.is_dir() and not path.is_file():
        raise UsageError(f"{path} is neither a folder nor a regular file")
    if name not in ("", "csv", "list") and not path.is_dir():
        raise UsageError(
            f"{path} is a file, and {name}: takes a folder; csv:{path} or list:{path} reads a list of clips"
        )
    try:
        table = _read(name, path, label_names, modality)
        _check_modality(path, table, modality)
    except OSError as error:
        raise DataError(f"{error.filename or path} can't be read: {error.strerror}") from None
    return table


def _read(name: str, path: Path, label_names: Sequence[str] | None, modality: str) -> ClipTable:
    if name:
        return FORMATS[name].read(path, label_names, modality)
    if not path.is_dir():
        if is_video(path):
            raise UsageError(f"{path} is a video; {_WANTED}")
        return read_csv(path, label_names)
    lists = csv_lists_in(path)
    if len(lists) == 1:
        return read_csv(lists[0], label_names)
    try:
        return read_folder(path, label_names, modality)
    except DataError as error:
        if found := guess_format(path):
            raise DataError(f"{error}\nIt looks like {FORMATS[found].description}: {found}:{path} reads it.") from None
        if lists:
            names = some([file.name for file in lists])
            raise DataError(f"{error}\nIt holds {len(lists)} lists, {names}: give one of them.") from None
        raise


def _check_modality(path: Path, table: ClipTable, modality: str) -> None:
    """Refuse a list of clips that are all of the other modality, judged by some of them."""
    sample = np.unique(np.linspace(0, len(table) - 1, _SAMPLE).astype(np.int64))
    found = {_modality_of(table.paths[row]) for row in sample.tolist()} - {""}
    other = "flow" if modality == "rgb" else "rgb"
    if found == {other}:
        raise UsageError(
            f"{path} lists {clips_called(other)}, where {clips_called(modality)} are wanted: {USE_OTHER[other]}"
        )


def _modality_of(path: str) -> str:
    """What a clip is; "" = it isn't there, is neither, or both."""
    try:
        frames = is_frame_folder(path) or (is_video(path) and os.path.isfile(path))
        flow = is_flow_clip(path) and os.path.exists(path)
    except OSError:  # reading it will say what is wrong
        return ""
    return "" if frames == flow else "rgb" if frames else "flow"


def split_format(data: str | Path) -> tuple[str, Path]:
    """``ssv2:/data/ssv2`` as (``ssv2``, path); the name is "" where ``data`` is a path alone.

    Raises:
        UsageError: nothing at all, or an unknown format; the message gives the nearest names.
    """
    text = os.fspath(data)
    if not text:  # Path would take it for the current folder
        raise UsageError(f"no data is named; {_WANTED}")
    # One letter is a drive: C:\clips.
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9_.-]+):(.*)", text, re.DOTALL)
    if not match or os.path.lexists(text):
        return "", Path(text)
    name = match[1].lower()
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(FORMATS)}"
        raise UsageError(f"{text} does not exist, and there is no data format {match[1]!r}; {known}")
    if not match[2]:
        raise UsageError(f"{text} names no folder; write {name}:PATH")
    return name, Path(os.path.expanduser(match[2]))  # a shell expands ~ at the beginning of a word only
