"""Scores of every clip, as a CSV: what `vireo eval` writes and `vireo fuse` reads.

    clip,label,clap,wave          the clip's name, its true class, and one column per class
    clap/a,clap,2.1309,-0.25
    wave/b,wave,,                 a clip that could not be read has no scores

Scores are the network's outputs before softmax. Nine digits give every float32 back exactly.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vireo.data.folders import is_video
from vireo.data.table import ClipRecord, ClipTable
from vireo.errors import DataError, UsageError, writing

SCORES = "scores.csv"
EVALUATION = "evaluation.json"
_FIXED = ["clip", "label"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreTable:
    """What one model said of a list of M clips, K classes."""

    clips: tuple[str, ...]
    """Names of the clips."""
    labels: Tensor
    """(M,) int64, true classes."""
    label_names: tuple[str, ...]
    scores: Tensor
    """(M, K) float32, before softmax; a row of nan is a clip that could not be read."""
    modality: str = ""
    """What the model saw, rgb or flow; "": not known. No part of the CSV: see :func:`read_scores`."""

    def __post_init__(self) -> None:
        m, k = len(self.clips), len(self.label_names)
        if self.scores.shape != (m, k) or self.labels.shape != (m,):
            raise ValueError(f"{tuple(self.scores.shape)} scores of {m} clips and {k} classes")

    @property
    def read(self) -> Tensor:
        """(M,) bool, whether the clip could be read."""
        return ~self.scores.isnan().all(dim=1)


def clip_names(table: ClipTable) -> tuple[str, ...]:
    """Names of clips that are the same wherever the data lies, and for videos as for their flow.

    A name is the path below the deepest folder that holds all clips, without the ending of a video or .npy, and with
    the cut if there is one: ``wave/anna_3``, ``day1/a [12.5, 17.0) s``. Files that differ in nothing but their ending
    keep it.
    """
    paths = [os.path.abspath(path) for path in table.paths]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    below = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    bare = {name: _without_ending(name) for name in below}
    shared = Counter(bare.values())
    return tuple(
        (bare[name] if shared[bare[name]] == 1 else name) + _cut(table.record(i)) for i, name in enumerate(below)
    )


def _without_ending(name: str) -> str:
    return os.path.splitext(name)[0] if is_video(name) or name.lower().endswith(".npy") else name


def _cut(record: ClipRecord) -> str:
    if record.start is None and record.end is None:
        return ""
    return f" [{record.start or 0.0}, {'end' if record.end is None else record.end}) s"


def write_scores(path: Path, table: ScoreTable) -> Path:
    """Write a table of scores as CSV.

    Raises:
        StorageError: it could not be written.
    """
    rows = zip(table.clips, table.labels.tolist(), table.read.tolist(), table.scores.tolist(), strict=True)
    with writing(path), path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*_FIXED, *table.label_names])
        for clip, label, read, scores in rows:
            cells = [f"{score:.9g}" for score in scores] if read else [""] * len(scores)
            writer.writerow([clip, table.label_names[label], *cells])
    return path


def read_scores(path: str | Path) -> ScoreTable:
    """Read a table of scores, and the model's modality from the ``evaluation.json`` that `vireo eval` wrote beside it.

    Args:
        path: the CSV, or the folder that `vireo eval` wrote.

    Raises:
        UsageError: it does not exist.
        DataError: it is no such table; the message names the line.
    """
    path = Path(path)
    if path.is_dir():
        path = path / SCORES
        if not path.exists():
            raise UsageError(f"{path.parent} holds no {SCORES}; give a folder that `vireo eval` wrote, or a CSV")
    if not path.is_file():
        raise UsageError(f"{path} " + ("is not a file" if path.exists() else "does not exist"))
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file, strict=True)
            try:
                return replace(_parse(path, reader), modality=_modality_beside(path))
            except csv.Error as error:
                raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None


def _modality_beside(path: Path) -> str:
    """What `vireo eval` noted, rgb or flow; empty where nothing usable is noted, as scores can be fused without."""
    if path.name != SCORES:  # several tables may lie in one folder, and the evaluation is of one
        return ""
    try:
        stated = json.loads(path.with_name(EVALUATION).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    modality = stated.get("modality") if isinstance(stated, dict) else None
    return modality if modality in ("rgb", "flow") else ""


def _parse(path: Path, reader: Iterator[list[str]]) -> ScoreTable:
    header = next(reader, [])
    names = tuple(header[2:])
    if header[:2] != _FIXED or not names:
        raise DataError(f"{path} is no table of scores; its first line must be clip,label,CLASS,CLASS,…")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a class occurs twice in its first line")
    index = {name: i for i, name in enumerate(names)}
    first: dict[str, int] = {}  # clip → its line
    labels: list[int] = []
    rows: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []
    for number, row in enumerate(reader, start=2):
        if not row:
            continue
        where = f"{path}, row {number}"
        if len(row) != len(header):
            raise DataError(f"{where}: {len(row)} values for {len(header)} columns")
        clip, label, *cells = row
        if label not in index:
            raise DataError(f"{where}: label {label[:80]!r} is not among the classes of the first line")
        if first.setdefault(clip, number) != number:
            raise DataError(f"{where}: clip {clip[:200]!r} stands in row {first[clip]} already")
        labels.append(index[label])
        rows.append(_numbers(where, cells))
    if not rows:
        raise DataError(f"{path} lists no clips: there is nothing below its first line")
    return ScoreTable(
        clips=tuple(first),
        labels=torch.tensor(labels),
        label_names=names,
        scores=torch.from_numpy(np.stack(rows)),
    )


def _numbers(where: str, cells: list[str]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    if not any(cells):
        return np.full(len(cells), np.nan, dtype=np.float32)
    try:
        values = [float(cell) for cell in cells]
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    with np.errstate(over="ignore"):
        scores = np.array(values, dtype=np.float32)
    if not np.isfinite(scores).all():  # also 1e300, which float32 can't hold
        raise DataError(f"{where}: a score is infinite or not a number")
    return scores
