"""Test sets whose labels a server keeps: Something-Something V1 and V2, Jester.

Their lists name clips alone: ``something-something-v1-test.csv`` and ``jester-v1-test.csv`` an id per line,
``something-something-v2-test.json`` a list of {id}. Clips are found where those of the labelled parts are.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vireo.data.annotations import split_format
from vireo.data.formats import JESTER_WORDS, SSV1_WORDS, SSV2_WORDS, ssv2_labels
from vireo.data.labels import read_label_map
from vireo.data.official import CLIP_ID, Clip, find_media, lines_of, locate, read_json, require
from vireo.data.table import ClipTable, StringColumn, counted, some
from vireo.errors import DataError


class _Server(NamedTuple):
    """What a data set's files are called."""

    lists: tuple[str, ...]
    answers: tuple[str, ...]
    """Of the labelled list, which some copies have: then there is nothing to hand in."""
    labels: tuple[str, ...]
    words: tuple[str, ...]
    """Names of folders that hold clips."""
    ending: str


_SERVERS = {
    "ssv1": _Server(
        ("something-something-v1-test.csv", "test.csv"),
        ("something-something-v1-test-answers.csv", "test-answers.csv"),
        ("something-something-v1-labels.csv", "labels.csv"),
        SSV1_WORDS,
        "",
    ),
    "ssv2": _Server(
        ("something-something-v2-test.json", "test.json"),
        ("something-something-v2-test-answers.csv", "test-answers.csv"),
        ("something-something-v2-labels.json", "labels.json"),
        SSV2_WORDS,
        ".webm",
    ),
    "jester": _Server(
        ("jester-v1-test.csv", "test.csv"),
        ("jester-v1-test-answers.csv", "test-answers.csv"),
        ("jester-v1-labels.csv", "labels.csv"),
        JESTER_WORDS,
        "",
    ),
}


class UnlabelledTest(NamedTuple):
    """The clips of a test set without labels."""

    format: str
    """ssv1, ssv2 or jester."""
    ids: tuple[str, ...]
    """(N,) the names that the server knows the clips by, in the order of its list."""
    table: ClipTable
    """The same clips. Its labels are all 0 and mean nothing."""
    official: tuple[str, ...]
    """The data set's classes, in its own order."""


def read_unlabelled(data: str, *, label_names: Sequence[str], modality: str = "rgb") -> UnlabelledTest | None:
    """The test set of ``FORMAT:PATH``; None where it is no such data set, has no such list, or has the answers.

    Args:
        data: as `read_table` takes it.
        label_names: the model's classes.
        modality: rgb or flow, what clips are.

    Raises:
        DataError: a list that can't be used, none of the clips is there, or other classes than the model's.
    """
    name, root = split_format(data)
    if name not in _SERVERS or not root.is_dir():
        return None
    server = _SERVERS[name]
    try:
        file = locate(root, server.lists)
        if file is None or locate(root, server.answers) is not None:
            return None
        ids = _ids_of(file)
        if ids is None:
            return None
        labels_file = require(root, server.labels)
        if name == "ssv2":
            official = ssv2_labels(labels_file)
        else:
            official = [label for label in read_label_map(labels_file) if label != "label"]
        if other := sorted(set(official) ^ set(label_names)):
            raise DataError(
                f"{labels_file}: the model's classes are not the data set's ({some(other)} in one of them only), so "
                "the server could not read its answers"
            )
        clips = [Clip(i, (one,), "", f"{server.words[0]}/{one}{server.ending}") for i, one in enumerate(ids, 1)]
        media = find_media(root, set(ids), server.words, modality, False)
        paths = [media.path(clip, False) for clip in clips]
    except OSError as error:
        raise DataError(f"{error.filename or root} can't be read: {error.strerror}") from None
    if not any(paths):
        raise DataError(
            f"{root}: none of the {len(ids)} clips of {file.name} is there, e.g. {clips[0].expected}; put them below "
            "it, as videos or folders of frames"
        )
    missing = [one for one, path in zip(ids, paths, strict=True) if path is None]
    are = "is" if len(missing) == 1 else "are"
    notes = (f"{file}: {counted(len(missing), 'clip')} {are} not there: {some(missing)}",) if missing else ()
    nowhere = np.full(len(ids), np.nan)
    table = ClipTable(
        paths=StringColumn(path or os.path.join(root, clip.expected) for path, clip in zip(paths, clips, strict=True)),
        labels=np.zeros(len(ids), dtype=np.int64),
        label_names=tuple(label_names),
        starts=nowhere,
        ends=nowhere,
        notes=notes,
    )
    return UnlabelledTest(name, ids, table, tuple(official))


def _ids_of(file: Path) -> tuple[str, ...] | None:
    """The ids that a list names; None where it has labels.

    Raises:
        DataError: one that is none, or occurs twice; or there are none.
    """
    found: list[str] = []
    if file.suffix == ".json":
        entries = read_json(file)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{file} is not a list of clips; it must be the official file")
        if any("template" in entry for entry in entries):
            return None
        found = [str(entry.get("id", "")) for entry in entries]
    else:
        for number, line in lines_of(file):
            name, _, label = (piece.strip() for piece in line.partition(";"))
            if number == 1 and name.lower() in ("id", "video_id", "videoid"):
                continue
            if label:
                return None
            found.append(name)
    if wrong := [name for name in found if not CLIP_ID.fullmatch(name)]:
        raise DataError(f"{file}: {wrong[0][:80]!r} is no clip's id; it must be the official file")
    if twice := [name for name, times in Counter(found).items() if times > 1]:
        raise DataError(f"{file}: clip {twice[0]} occurs twice; it must be the official file")
    if not found:
        raise DataError(f"{file} lists no clips")
    return tuple(found)
