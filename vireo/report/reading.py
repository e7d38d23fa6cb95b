"""What a run's folder and its evaluations say, checked before anything of it is shown.

    RUN/config.yaml, metrics.csv, *.safetensors   the run: settings, curves, where the weights come from
    RUN/failed.csv                                clips that training could not read
    RUN/NAME.eval/evaluation.json                 what `vireo eval` found of RUN/NAME.safetensors
    RUN/NAME.eval/slowest.csv                     clips that took it longest to read

Nothing is believed: files are bounded, of their JSON only what has the right form is taken.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vireo.errors import DataError, UsageError
from vireo.evaluation import SLOWEST, Slow
from vireo.files import read_bounded
from vireo.run_files import CONFIG, METRICS, RunRecord, read_run
from vireo.scores import EVALUATION
from vireo.statistics import Interval

MOST_EVALUATIONS = 6
"""Evaluations of a run that a page shows."""
MOST_BYTES = 1 << 28
"""Of an evaluation.json: a confusion matrix of some 6000 classes."""
MOST_CLASSES = 1 << 17
MOST_MATRIX = 1 << 14
"""Classes of a confusion matrix that a page has room for: 2 GiB of counts."""
MOST_TABLE_BYTES, MOST_FAILURES, MOST_SLOWEST = 1 << 24, 1 << 18, 1000
ORDERS = {"shuffled": "frames shuffled", "reversed": "frames reversed", "single": "one frame only"}
"""Orders of frames that a probe may have tried, in the order in which they are shown."""

Ints = NDArray[np.int64]


class Failed(NamedTuple):
    """A clip that could not be read."""

    path: str
    reason: str


class Bin(NamedTuple):
    """Clips of about the same highest probability; see `vireo.statistics.CalibrationBin`."""

    clips: int
    confidence: float
    accuracy: float


class Trust(NamedTuple):
    """How far probabilities can be trusted."""

    error: float
    confidence: float
    bins: tuple[Bin, ...]


class OrderClass(NamedTuple):
    """A class with frames in another order."""

    accuracy: float
    taken_for: str
    share: float
    """Of its clips that are taken for that class, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class OrderFound:
    """Accuracy with frames in another order, in [0, 1]."""

    order: str
    """One of `ORDERS`."""
    top1: float
    lost: float
    interval: Interval
    """95 %, of what is lost."""
    classes: Mapping[str, OrderClass] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationRecord:
    """An evaluation as its folder tells it. Accuracies are in [0, 1]."""

    folder: Path
    facts: Mapping[str, str]
    """Texts and numbers of the header as texts: checkpoint, split, protocol, decoder, seed, data_hash, ..."""
    notes: tuple[str, ...] = ()
    """What was left out while the list of clips was read."""
    expected: int
    scored: int
    failed: int
    top1: float
    top5: float
    mean_class: float
    interval: Interval
    """95 %, of top1."""
    mean_interval: Interval | None = None
    trust: Trust | None = None
    labels: tuple[str, ...]
    confusion: Ints
    """(K, K) counts, true class first."""
    orders: tuple[OrderFound, ...] = ()
    sentences: tuple[str, ...] = ()
    """What the order probe found, in words."""
    failures: tuple[Failed, ...] = ()
    slowest: tuple[Slow, ...] = ()
    """The slowest first; empty in evaluations that did not measure it."""
    outdated: bool = False
    """Whether the checkpoint beside it was written after it."""

    @property
    def name(self) -> str:
        """Of the checkpoint's file, e.g. ``best``."""
        return self.folder.name.removesuffix(".eval")

    @property
    def clips(self) -> Ints:
        """(K,) scored clips of each class."""
        found: Ints = self.confusion.sum(axis=1)
        return found

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """(K,) of the classes; nan without clips."""
        clips = self.clips
        found = np.full(len(clips), np.nan)
        np.divide(np.diagonal(self.confusion), clips, out=found, where=clips > 0)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFolder:
    """All that a page about a run shows, but pictures of clips."""

    path: Path
    record: RunRecord | None
    """None: the folder holds evaluations only."""
    weights: Mapping[str, Any] = field(default_factory=dict)
    """What the newest checkpoint says of itself; empty where none can be read."""
    checkpoints: tuple[str, ...] = ()
    """Names of the files, best.safetensors first."""
    evaluations: tuple[EvaluationRecord, ...] = ()
    left_out: int = 0
    """Evaluations that are not among these, as they are too many."""
    faults: tuple[str, ...] = ()
    """What can't be read, and why."""
    failures: tuple[Failed, ...] = ()
    """Clips that training could not read."""


def read_folder(path: Path) -> RunFolder:
    """Read a run's folder, or one that `vireo eval` wrote.

    Raises:
        UsageError: it does not exist or holds neither a run nor an evaluation.
    """
    if path.name in ("", ".."):  # an evaluation is called as its folder
        path = Path(os.path.abspath(path))
    if not path.is_dir():
        raise UsageError(f"{path} {'is a file' if path.exists() else 'does not exist'}; give the folder of a run")
    is_run = (path / CONFIG).exists() or (path / METRICS).exists()
    found = [path] if (path / EVALUATION).is_file() else _evaluation_folders(path)
    if not is_run and not found:
        raise UsageError(
            f"{path} is no run's folder: it holds neither {CONFIG} nor an evaluation (NAME.eval/{EVALUATION})"
        )
    faults, evaluations = [], []
    for folder in found[:MOST_EVALUATIONS]:
        try:
            evaluations.append(read_evaluation(folder))
            if (folder / SLOWEST).exists():
                evaluations[-1] = replace(evaluations[-1], slowest=read_slowest(folder / SLOWEST))
        except DataError as error:
            faults.append(str(error))
    record = read_run(path) if is_run else None
    if record is not None and record.fault:
        faults.append(record.fault)
    names = [file for file in ("best.safetensors", "last.safetensors") if (path / file).is_file()]
    failures: tuple[Failed, ...] = ()
    if is_run and (path / "failed.csv").exists():
        try:
            failures = read_failures(path / "failed.csv")
        except DataError as error:
            faults.append(str(error))
    return RunFolder(
        path=path,
        record=record,
        weights=next(filter(None, (read_weights(path / file) for file in reversed(names))), {}),
        checkpoints=tuple(names),
        evaluations=tuple(evaluations),
        left_out=max(0, len(found) - MOST_EVALUATIONS),
        faults=tuple(faults),
        failures=failures,
    )


def _evaluation_folders(run: Path) -> list[Path]:
    """Those of the best weights first, then those of the last."""
    rank = {"best.eval": 0, "last.eval": 1, "eval": 2}
    try:
        with os.scandir(run) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and (run / entry.name / EVALUATION).is_file()]
    except OSError as error:
        raise DataError(f"{run}: {error.strerror}") from None
    return [run / name for name in sorted(names, key=lambda name: (rank.get(name, 3), name))]


def read_weights(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, without its tensors; empty where it can't be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            found = json.loads((file.metadata() or {})["vireo"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_failures(path: Path) -> tuple[Failed, ...]:
    """The rows of a ``failed.csv``.

    Raises:
        DataError: too large, or no such table.
    """
    try:
        return tuple(Failed(row["path"], row["reason"] or "") for row in islice(_rows(path), MOST_FAILURES))
    except (csv.Error, KeyError) as error:
        raise DataError(f"{path}: not a list of failed clips ({error})") from None


def read_slowest(path: Path) -> tuple[Slow, ...]:
    """The rows of a ``slowest.csv``.

    Raises:
        DataError: too large, or no such table.
    """
    found = []
    try:
        for row in islice(_rows(path), MOST_SLOWEST):
            seconds, times = float(row["seconds"] or ""), float(row["times_median"] or "nan")
            if not 0 <= seconds < 1e6 or not (0 <= times < 1e9 or math.isnan(times)):
                raise _Unfit(f"{seconds} seconds, {times} times the median")
            found.append(Slow(row["path"], row["label"] or "", seconds, times))
    except (csv.Error, KeyError, ValueError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not a list of slow clips ({told:.200})") from None
    return tuple(found)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table of clips; names of files that are no UTF-8 survive."""
    content = read_bounded(path, MOST_TABLE_BYTES).decode("utf-8", "surrogateescape")
    return csv.DictReader(io.StringIO(content, newline=""))


# --- evaluation.json ----------------------------------------------------------------------------------


class _Unfit(ValueError):
    """What is stated has not the form that `vireo eval` writes."""


def read_evaluation(folder: Path) -> EvaluationRecord:
    """Read the ``evaluation.json`` of a folder.

    Raises:
        DataError: missing, too large, damaged, or not written by `vireo eval`.
    """
    path = folder / EVALUATION
    try:
        stated = json.loads(read_bounded(path, MOST_BYTES))
        if not isinstance(stated, dict):
            raise _Unfit("it is no mapping")
        return _parse(folder, stated)
    except (ValueError, KeyError, RecursionError, OverflowError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DataError(f"{path}: not the result of an evaluation ({told:.200}); run `vireo eval` again") from None


def _parse(folder: Path, stated: dict[str, Any]) -> EvaluationRecord:
    rows = _list(stated["classes"], "classes")
    if not 1 <= len(rows) <= MOST_CLASSES:
        raise _Unfit(f"{len(rows)} classes")
    labels = tuple(_text(_mapping(row, "a class")["label"], "a label") for row in rows)
    confusion = _matrix(stated["confusion"])
    if confusion.shape != (len(labels), len(labels)) or confusion.dtype.kind != "i" or (confusion < 0).any():
        raise _Unfit(f"a confusion matrix of {confusion.shape} for {len(labels)} classes")
    confusion = confusion.astype(np.int64)
    expected, scored, failed = (_count(stated[key], key) for key in ("expected", "scored", "failed"))
    if scored != confusion.sum() or scored < 1:
        raise _Unfit(f"{scored} clips scored, {confusion.sum()} in the confusion matrix")
    drawn = _mapping(stated.get("bootstrap95", {}), "bootstrap95")
    orders, sentences = _orders(stated.get("order"))
    notes = stated.get("data_notes", [])
    return EvaluationRecord(
        folder=folder,
        facts={key: str(value) for key, value in stated.items() if isinstance(value, str | int | float)}
        | _cost(stated.get("cost")),
        notes=tuple(note for note in notes if isinstance(note, str)) if isinstance(notes, list) else (),
        expected=expected,
        scored=scored,
        failed=failed,
        top1=_share(stated["top1"], "top1"),
        top5=_share(stated["top5"], "top5"),
        mean_class=_share(stated["mean_class"], "mean_class"),
        interval=_interval(stated["interval95"]),
        mean_interval=_interval(drawn["mean_class"]) if "mean_class" in drawn else None,
        trust=_trust(stated.get("calibration")),
        labels=labels,
        confusion=confusion,
        orders=orders,
        sentences=sentences,
        failures=_failures(stated.get("failures", [])),
        outdated=_is_outdated(folder),
    )


def _matrix(stated: Any) -> NDArray[Any]:
    """A confusion matrix, stated by its rows; or, of many classes, by the cells that are not 0."""
    if not isinstance(stated, dict):
        return np.asarray(stated)
    count, cells = _count(stated["classes"], "classes"), np.asarray(_list(stated["cells"], "cells"))
    if count > MOST_MATRIX or cells.ndim != 2 or cells.shape[1] != 3 or cells.dtype.kind != "i" or (cells < 0).any():
        raise _Unfit(f"a confusion matrix of {count} classes with cells of {cells.shape}")
    if (cells[:, :2] >= count).any():
        raise _Unfit(f"a cell outside the confusion matrix of {count} classes")
    confusion = np.zeros((count, count), dtype=np.int64)
    confusion[cells[:, 0], cells[:, 1]] = cells[:, 2]
    return confusion


def _is_outdated(folder: Path) -> bool:
    if not folder.name.endswith(".eval"):
        return False
    try:
        weights = folder.with_name(f"{folder.name.removesuffix('.eval')}.safetensors").stat().st_mtime
        return weights > (folder / EVALUATION).stat().st_mtime
    except OSError:
        return False


def _cost(stated: Any) -> dict[str, str]:
    told = stated.get("text") if isinstance(stated, dict) else None
    return {"cost": told} if isinstance(told, str) else {}


def _trust(stated: Any) -> Trust | None:
    if stated is None:
        return None
    given = _mapping(stated, "calibration")
    bins = tuple(
        Bin(_count(one["clips"], "clips"), _share(one["confidence"], "confidence"), _share(one["accuracy"], "accuracy"))
        for one in (_mapping(row, "a bin") for row in _list(given["filled_bins"], "filled_bins")[:1000])
    )
    return Trust(_share(given["error"], "error"), _share(given["confidence"], "confidence"), bins)


def _orders(stated: Any) -> tuple[tuple[OrderFound, ...], tuple[str, ...]]:
    if stated is None:
        return (), ()
    given = _mapping(stated, "order")
    tried = _mapping(given["orders"], "orders")
    rows = [_mapping(row, "a class") for row in _list(given["classes"], "classes")[:MOST_CLASSES]]
    found = []
    for order in (order for order in ORDERS if order in tried):
        facts = _mapping(tried[order], order)
        classes = {}
        for row in rows:
            if order in row:
                one = _mapping(row[order], order)
                classes[_text(row["label"], "a label")] = OrderClass(
                    _share(one["accuracy"], "accuracy"),
                    _text(one["taken_for"], "a label"),
                    _share(one["taken_share"], "taken_share"),
                )
        found.append(
            OrderFound(
                order=order,
                top1=_share(facts["mean_top1"], "mean_top1"),
                lost=_number(facts["lost"], "lost", -1, 1),
                interval=_interval(facts["lost_interval95"], -1),
                classes=classes,
            )
        )
    told = given.get("text", [])
    return tuple(found), tuple(line for line in told if isinstance(line, str)) if isinstance(told, list) else ()


def _failures(stated: Any) -> tuple[Failed, ...]:
    rows = [_mapping(row, "a failure") for row in _list(stated, "failures")[:MOST_FAILURES]]
    return tuple(Failed(_text(row["path"], "a path"), _text(row["reason"], "a reason")) for row in rows)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Unfit(f"{what} is no mapping")
    return value


def _list(value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise _Unfit(f"{what} is no list")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _Unfit(f"{what} is no text: {value!r:.60}")
    return value


def _count(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise _Unfit(f"{what} is {value!r:.60}")
    return value


def _number(value: Any, what: str, low: float, high: float) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not low - 1e-6 <= value <= high + 1e-6:
        raise _Unfit(f"{what} is {value!r:.60}, not from {low} to {high}")
    return float(value)


def _share(value: Any, what: str) -> float:
    return _number(value, what, 0, 1)


def _interval(value: Any, least: float = 0) -> Interval:
    ends = [_number(end, "an interval's end", least, 1) for end in _list(value, "an interval")]
    if len(ends) != 2 or ends[0] > ends[1]:
        raise _Unfit(f"an interval is {value!r:.60}")
    return ends[0], ends[1]
