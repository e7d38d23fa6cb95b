"""Scores of every clip, as CSV and Parquet: what `vireo eval` writes and `vireo fuse` reads.

    clip,label,clap,wave          the clip's name, its true class, and one column per class
    clap/a,clap,2.1309,-0.25
    wave/b,wave,,                 a clip that could not be read has no scores

Scores are the network's outputs before softmax. Nine digits give every float32 back exactly. A Parquet file has the
same columns, with float32 in place of digits; it needs pyarrow (the extra `parquet`).
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import vireo
from vireo.checkpoint import write_atomically
from vireo.data.folders import is_video
from vireo.data.table import ClipRecord, ClipTable, counted, some
from vireo.errors import DataError, MissingDependencyError, UsageError
from vireo.files import read_bounded, replacing

SCORES = "scores.csv"
PARQUET = "scores.parquet"
EVALUATION = "evaluation.json"
SUBMISSION = "predictions.csv"
"""What `vireo eval` writes of clips without labels: answers for a server, which are no scores."""
_FIXED = ["clip", "label"]
_MOST_CELLS = 1 << 30  # of a Parquet file, which may claim to hold anything
_MOST_FACTS = 1 << 26  # bytes of an evaluation.json


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
    """What the model saw, rgb or flow; "": not known. A CSV doesn't say: see :func:`read_scores`."""

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
    keep it, and so does ``a.avi.mp4`` beside ``a.avi``.
    """
    paths = [os.path.abspath(path) for path in table.paths]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    below = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    bare = {name: _without_ending(name) for name in below}
    shared = Counter(bare.values())
    return tuple(
        (name if shared[bare[name]] > 1 or bare[name] in bare else bare[name]) + _cut(table.record(i))
        for i, name in enumerate(below)
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
    with replacing(path) as file:
        writer = csv.writer(file)
        writer.writerow([*_FIXED, *table.label_names])
        for clip, label, read, scores in rows:
            cells = [f"{score:.9g}" for score in scores] if read else [""] * len(scores)
            writer.writerow([clip, table.label_names[label], *cells])
    return path


def can_write_parquet(table: ScoreTable | None = None) -> bool:
    """Whether pyarrow is installed, and classes are called what columns can be: UTF-8, and neither clip nor label."""
    names = table.label_names if table is not None else ()
    fit = all(_is_text(name) and name not in _FIXED for name in names)
    return fit and importlib.util.find_spec("pyarrow") is not None


def write_parquet(path: Path, table: ScoreTable) -> Path:
    """Write a table of scores as Parquet.

    The columns are those of the CSV. Names of clips are text; where one is no UTF-8, all of them are bytes. A clip
    that could not be read has no scores (null). What the model saw stands in the schema's metadata, ``vireo``, as JSON.

    Raises:
        MissingDependencyError: pyarrow is not installed.
        StorageError: it could not be written.
    """
    arrow, parquet = _pyarrow()
    unread = ~table.read.numpy()
    clips: Sequence[Any] = table.clips
    if not all(_is_text(clip) for clip in clips):
        clips = [os.fsencode(clip) for clip in clips]
    labels = arrow.DictionaryArray.from_arrays(table.labels.to(torch.int32).numpy(), list(table.label_names))
    columns = [arrow.array(column, mask=unread) for column in table.scores.numpy().T]
    stated = json.dumps({"version": vireo.__version__, "modality": table.modality})
    whole = arrow.Table.from_arrays(
        [arrow.array(clips), labels, *columns], names=[*_FIXED, *table.label_names], metadata={"vireo": stated}
    )
    buffer = BytesIO()
    parquet.write_table(whole, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())
    return path


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _pyarrow() -> tuple[Any, Any]:
    """The package pyarrow and its Parquet part.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingDependencyError("Parquet files need pyarrow: pip install pyarrow") from None
    return pyarrow, parquet


def read_scores(path: str | Path) -> ScoreTable:
    """Read a table of scores, and the model's modality from the ``evaluation.json`` that `vireo eval` wrote beside it.

    Args:
        path: the CSV or Parquet file, or the folder that `vireo eval` wrote, whose CSV goes before its Parquet file.

    Raises:
        UsageError: it does not exist.
        DataError: it is no such table; the message names the line.
        MissingDependencyError: a Parquet file, and pyarrow is not installed.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (SCORES, PARQUET, SUBMISSION) if (path / name).exists()]
        if not found:
            below = sorted(folder for folder in path.glob("*.eval") if (folder / SCORES).exists())
            hint = f"did you mean {below[0]}?" if below else "give a folder that `vireo eval` wrote, or a CSV"
            raise UsageError(f"{path} holds no {SCORES}; {hint}")
        path = found[0]
    if not path.is_file():
        raise UsageError(f"{path} " + ("is not a file" if path.exists() else "does not exist"))
    if path.name == SUBMISSION:
        raise UsageError(
            f"{path} holds answers for a server, not scores; `vireo fuse` adds up models on such a test set if all are "
            "given as checkpoints, with --data, --split test and --out"
        )
    if path.suffix == ".safetensors":
        own = path.with_suffix(".eval")
        hint = (
            f"did you mean {own}?"
            if own.is_dir()
            else "score it with `vireo eval`, and give the folder that this writes"
        )
        raise UsageError(f"{path} is a checkpoint; {hint}")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file, strict=True)
            try:
                return replace(_parse(path, reader), modality=_modality(read_facts(path)))
            except csv.Error as error:
                raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None


def _read_parquet(path: Path) -> ScoreTable:
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            names, stated = file.schema_arrow.names, (file.schema_arrow.metadata or {}).get(b"vireo", b"")
            if names[:2] != _FIXED or len(names) < 3:
                raise DataError(f"{path} is no table of scores; its columns must be clip, label, CLASS, CLASS, …")
            if file.metadata.num_rows * len(names) > _MOST_CELLS:
                raise DataError(f"{path} has {file.metadata.num_rows} rows of {len(names)} columns; that is too large")
            columns = file.read().columns
        clips, labels = (column.to_pylist() for column in columns[:2])
    except (arrow.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{path} can't be read as Parquet: {str(error).splitlines()[0]:.200}") from None
    kinds = [column.type for column in columns[2:]]
    if wrong := [kind for kind in kinds if not (arrow.types.is_floating(kind) or arrow.types.is_integer(kind))]:
        raise DataError(f"{path}: a column of scores holds {wrong[0]}, not numbers")
    if not all(isinstance(name, str | bytes) for name in (*clips, *labels)):
        raise DataError(f"{path}: a clip or a label is empty or no text")
    scores = np.stack([column.to_numpy() for column in columns[2:]], axis=1)  # null becomes nan
    empty = np.stack([column.is_null().to_numpy() for column in columns[2:]], axis=1)
    unread: list[bool] = [bool(row.all()) for row in empty]
    rows = zip(map(_as_text, clips), map(_as_text, labels), scores, unread, strict=True)
    found = _collect(path, tuple(names[2:]), enumerate(rows, start=1))
    return replace(found, modality=_modality(_texts(stated)) or _modality(read_facts(path)))


def _as_text(name: str | bytes) -> str:
    return name if isinstance(name, str) else os.fsdecode(name)


def read_facts(path: Path) -> dict[str, str]:
    """What `vireo eval` noted beside scores, texts only; empty where it noted nothing usable.

    Args:
        path: as of `read_scores`.
    """
    if path.is_dir():
        path = path / SCORES
    if path.name not in (SCORES, PARQUET):  # several tables may lie in one folder, and the evaluation is of one
        return {}
    try:
        return _texts(read_bounded(path.parent / EVALUATION, _MOST_FACTS))
    except DataError:
        return {}


def _texts(text: bytes) -> dict[str, str]:
    try:
        stated = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {key: value for key, value in stated.items() if isinstance(value, str)} if isinstance(stated, dict) else {}


def _modality(facts: Mapping[str, str]) -> str:
    """Which of rgb and flow is noted; empty: neither, as scores can be fused without."""
    modality = facts.get("modality", "")
    return modality if modality in ("rgb", "flow") else ""


_Row = tuple[str, str, "np.ndarray[Any, np.dtype[np.floating[Any]]]", bool]
"""Clip, label, scores, and whether there are none."""


def _parse(path: Path, reader: Iterator[list[str]]) -> ScoreTable:
    header = next(reader, [])
    if header[:2] != _FIXED or not header[2:]:
        raise DataError(f"{path} is no table of scores; its first line must be clip,label,CLASS,CLASS,…")

    def rows() -> Iterator[tuple[int, _Row]]:
        for number, row in enumerate(reader, start=2):
            if not row:
                continue
            where = f"{path}, row {number}"
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} values for {len(header)} columns")
            yield number, (row[0], row[1], _numbers(where, row[2:]), not any(row[2:]))

    return _collect(path, tuple(header[2:]), rows())


def _collect(path: Path, names: tuple[str, ...], rows: Iterable[tuple[int, _Row]]) -> ScoreTable:
    """Numbered rows as a table.

    Raises:
        DataError: a class or a clip that occurs twice, an unknown label, scores that are no numbers, or no rows.
    """
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a class occurs twice in its first line")
    index = {name: i for i, name in enumerate(names)}
    first: dict[str, int] = {}  # clip → its row
    labels: list[int] = []
    found: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    for number, (clip, label, given, empty) in rows:
        where = f"{path}, row {number}"
        if label not in index:
            raise DataError(f"{where}: label {label[:80]!r} is not among the classes of the first line")
        if first.setdefault(clip, number) != number:
            raise DataError(f"{where}: clip {clip[:200]!r} stands in row {first[clip]} already")
        with np.errstate(over="ignore"):
            scores = given.astype(np.float32)
        if not empty and not np.isfinite(scores).all():  # also 1e300, which float32 can't hold
            raise DataError(f"{where}: a score is infinite or not a number")
        labels.append(index[label])
        found.append(scores)
    if not found:
        raise DataError(f"{path} lists no clips: there is nothing below its first line")
    return ScoreTable(
        clips=tuple(first),
        labels=torch.tensor(labels),
        label_names=names,
        scores=torch.from_numpy(np.stack(found)),
    )


def _numbers(where: str, cells: list[str]) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    if not any(cells):
        return np.full(len(cells), np.nan)
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


# --- clips that several models scored -----------------------------------------------------------------


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes go before the true one: those with a higher score, and of equal ones those first in the list.

    Args:
        scores: (M, K).
        labels: (M,) true classes.

    Returns:
        (M,) int64: 0 where a model is right, below 5 where the true class is one of its five first.
    """
    true = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1]) < labels[:, None]
    return ((scores > true) | ((scores == true) & earlier)).sum(1)


class Matched(NamedTuple):
    """What several models said of the M clips that all of them scored, K classes."""

    rows: list[Tensor]
    """(M,) per table."""
    labels: Tensor
    """(M,) int64, true classes, in the first table's order."""
    scores: list[Tensor]
    """(M, K) per table, classes in the first one's order."""


def differing_lists(facts: Sequence[Mapping[str, Any]]) -> str:
    """Says that scores are of different lists of clips, which are matched by name; empty where nothing tells so.

    Args:
        facts: of each table, as `read_facts` gives them.
    """
    parts, hashes = (list(dict.fromkeys(of[key] for of in facts if of.get(key))) for key in ("split", "data_hash"))
    if len(parts) > 1:
        return f"the parts of the data differ ({' and '.join(parts)}): clips of one name need not be the same"
    if len(hashes) > 1 and len({of.get("modality") for of in facts}) == 1:  # flow has files of its own
        return f"the lists of clips differ ({' and '.join(hashes)}); clips were matched by name"
    return ""


def match_tables(tables: Sequence[ScoreTable], names: Sequence[str]) -> Matched:
    """Bring together what several models said; clips are matched as `match_clips` says.

    Args:
        tables: one per model.
        names: of the models, for messages.

    Raises:
        DataError: tables of one class, of other classes, of other labels for a clip, or without a clip in common.
    """
    first, classes = tables[0], tables[0].label_names
    if len(classes) < 2:
        raise DataError(f"{names[0]} has one class only, {classes[0]!r}; recognition needs at least two")
    for table, name in zip(tables, names, strict=True):
        own, known = set(classes), set(table.label_names)
        missing = [label for label in classes if label not in known]
        more = [label for label in table.label_names if label not in own]
        if missing or more:
            told = [f"{some(of, 3)} only in {place}" for of, place in ((missing, names[0]), (more, name)) if of]
            raise DataError(f"{names[0]} and {name} have different classes: {'; '.join(told)}")
    for table, name in zip(tables, names, strict=True):
        if not bool(table.read.any()):
            raise DataError(f"{name} has scores of no clip: none could be read")
    rows = match_clips(tables)
    if not len(rows[0]):
        raise DataError(
            f"{' and '.join(names)} have no clip in common; the first clips are "
            + " and ".join(repr(table.clips[0]) for table in tables)
        )
    labels, scores = first.labels[rows[0]], []
    for table, name, at in zip(tables, names, rows, strict=True):
        place = {label: i for i, label in enumerate(table.label_names)}
        order = torch.tensor([place[label] for label in classes])
        others = order.argsort()[table.labels[at]]
        if len(wrong := (labels != others).nonzero()[:, 0]):
            clip = first.clips[int(rows[0][wrong[0]])]
            here, there = (repr(classes[int(of[wrong[0]])]) for of in (labels, others))
            differ = "has another label" if len(wrong) == 1 else "have other labels"
            raise DataError(
                f"{len(wrong)} of {counted(len(labels), 'clip')} {differ} in {name}; "
                f"{clip!r} is {here} in {names[0]} and {there} in {name}"
            )
        scores.append(table.scores[at][:, order])
    return Matched(rows, labels, scores)


def match_clips(tables: Sequence[ScoreTable]) -> list[Tensor]:
    """The clips that every table has scores of: one (M,) tensor of rows per table, in the first one's order.

    A clip is matched by its whole name; or by the last part of it, if that tells the clips of every table apart
    and finds more pairs: ``wave/anna_3`` and ``anna_3`` are then the same.
    """
    keys = match_keys(tables)
    places = [
        {key: i for i, (key, read) in enumerate(zip(own, table.read.tolist(), strict=True)) if read}
        for own, table in zip(keys, tables, strict=True)
    ]
    common = [key for key in keys[0] if all(key in place for place in places)]
    return [torch.tensor([place[key] for key in common], dtype=torch.int64) for place in places]


def match_keys(tables: Sequence[ScoreTable]) -> list[list[str]]:
    """By what clips are matched, per table; see :func:`match_clips`."""
    whole = [list(table.clips) for table in tables]
    last = [[name.rsplit("/", 1)[-1] for name in names] for names in whole]
    if any(len(set(names)) < len(names) for names in last):
        return whole
    in_common = [len(set.intersection(*map(set, keys))) for keys in (whole, last)]
    return last if in_common[1] > in_common[0] else whole
