"""What a model said of a list of clips, what that amounts to, and how it is printed and written.

Scores → :func:`measure` → Evaluation → :func:`print_evaluation`, :func:`write_evaluation`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

from vireo import plots
from vireo.data.faults import Failure, TooManyFailuresError
from vireo.data.table import ClipTable
from vireo.files import replacing, replacing_together, write_failures, write_json
from vireo.probe import OrderProbe, print_probe, write_probe
from vireo.progress import printable
from vireo.scores import (
    EVALUATION,
    PARQUET,
    SCORES,
    ScoreTable,
    can_write_parquet,
    clip_names,
    ranks,
    write_parquet,
    write_scores,
)
from vireo.statistics import (
    CALIBRATION_BINS,
    RESAMPLES,
    Calibration,
    Confused,
    Interval,
    bootstrap_class_mean,
    bootstrap_mean,
    calibrate,
    most_confused,
    wilson_interval,
)

ORDER, SLOWEST, FAILED = "order.csv", "slowest.csv", "failed.csv"
ABORTED = "failed-aborted.csv"
"""Clips that ended an evaluation, beside the result of an earlier one."""
_FILES = (EVALUATION, "per_class.csv", "confusion.png", SCORES, PARQUET, ORDER, SLOWEST, FAILED, ABORTED)
MOST_SLOWEST = 100
"""Clips that slowest.csv names."""
MOST_DENSE = 1000
"""Classes up to which a confusion matrix is stated row by row; of more, only the cells that are not 0."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model said of a list of clips.

    Attributes:
        logits: (M, K) float32, one row per clip that could be read.
        labels: (M,) int64, true classes.
        indices: (M,) int64, rows of the clip table.
        failures: the clips that could not be read.
        moved: how far the frames lay from those wanted, mean, frames; 0 unless decoding is that of keyframes.
        seconds: that reading each clip took; empty where that was not measured.
    """

    logits: Tensor
    labels: Tensor
    indices: Tensor
    failures: tuple[Failure, ...]
    moved: float = 0.0
    seconds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.logits) == len(self.labels) == len(self.indices):
            raise ValueError("logits, labels and indices differ in length")
        if len(self.seconds) not in (0, len(self.labels)):
            raise ValueError(f"{len(self.seconds)} seconds of {len(self.labels)} clips")

    @property
    def expected(self) -> int:
        """Clips that should have been scored."""
        return len(self.labels) + len(self.failures)


def join_scores(parts: Iterable[Scores]) -> Scores:
    """The scores of several processes as one would have them: in the order of the table."""
    parts = list(parts)
    indices = torch.cat([part.indices for part in parts])
    order = indices.argsort()
    seconds = [second for part in parts for second in part.seconds]
    return Scores(
        logits=torch.cat([part.logits for part in parts])[order],
        labels=torch.cat([part.labels for part in parts])[order],
        indices=indices[order],
        failures=tuple(sorted((failure for part in parts for failure in part.failures), key=lambda f: f.index)),
        moved=sum(part.moved * len(part.labels) for part in parts) / max(1, len(indices)),
        seconds=tuple(seconds[i] for i in order.tolist()) if seconds else (),
    )


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One row of the per-class table."""

    label: str
    clips: int
    correct: int

    @property
    def accuracy(self) -> float:
        """In [0, 1]; nan for a class without clips."""
        return self.correct / self.clips if self.clips else math.nan


class Slow(NamedTuple):
    """A clip that took long to read."""

    path: str
    label: str
    seconds: float
    times_median: float
    """Its seconds over the median of all clips, which were read under the same load; nan where that is 0."""


class Bootstrap(NamedTuple):
    """95 % intervals by drawing clips with replacement, see `vireo.statistics`."""

    top1: Interval
    top5: Interval
    mean_class: Interval
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        intervals = {name: list(getattr(self, name)) for name in ("top1", "top5", "mean_class")}
        return {**intervals, "method": "percentile, over clips", "resamples": RESAMPLES, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracy of one model on one list of clips. All accuracies are in [0, 1].

    Attributes:
        header: what the score rests on: clips expected, scored and failed, protocol and its cost, decoder, seed,
            and a hash of the list of clips; with decode keyframe how far frames moved, on average.
        top1: share of the scored clips whose highest score is the true class.
        top5: share whose true class is among the five highest (top-K where there are fewer classes).
        mean_class: mean of the classes' accuracies, over classes that have clips.
        interval: 95 % Wilson interval of top1.
        bootstrap: intervals of all three, of clips drawn again.
        calibration: how far the probabilities, the softmax of the scores, can be trusted.
        classes: one row per class.
        confusion: (K, K) counts, true class first.
        confused: the pairs of classes that most clips are lost to.
        order: what the order of frames is worth, where that was asked for.
        failures: clips that could not be read, with reasons.
        clip_scores: the scores of every clip, for `vireo fuse`.
        slowest: the clips that reading took longest, the slowest first, where that was measured.
    """

    header: dict[str, Any]
    top1: float
    top5: float
    mean_class: float
    interval: Interval
    bootstrap: Bootstrap
    calibration: Calibration
    classes: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]
    confused: tuple[Confused, ...] = ()
    order: OrderProbe | None = None
    failures: tuple[Failure, ...] = ()
    clip_scores: ScoreTable | None = None
    slowest: tuple[Slow, ...] = ()

    @property
    def shuffled(self) -> tuple[float, ...]:
        """Top1 with each clip's frames in random order, one value per permutation asked for."""
        orders = self.order.orders if self.order else ()
        return next((found.top1 for found in orders if found.order == "shuffled"), ())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **self.header,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class": self.mean_class,
            "interval95": list(self.interval),
            "bootstrap95": self.bootstrap.as_dict(),
            "calibration": self.calibration.as_dict(),
            "shuffled_top1": list(self.shuffled),
            **({"order": self.order.as_dict()} if self.order else {}),
            "classes": [
                {
                    "label": c.label,
                    "clips": c.clips,
                    "correct": c.correct,
                    "accuracy": c.accuracy if c.clips else None,  # JSON has no nan
                }
                for c in self.classes
            ],
            "most_confused": [
                {
                    **pair._asdict(),
                    "true": self.classes[pair.true].label,
                    "predicted": self.classes[pair.predicted].label,
                }
                for pair in self.confused
            ],
            "confusion": self.confusion.tolist() if len(self.classes) <= MOST_DENSE else _cells(self.confusion),
            "failures": [{"path": f.path, "reason": f.reason} for f in self.failures],
        }


def _cells(confusion: NDArray[np.int64]) -> dict[str, Any]:
    """A matrix that is almost empty, as its other cells."""
    true, predicted = np.nonzero(confusion)
    cells = np.stack([true, predicted, confusion[true, predicted]], axis=1)
    return {"classes": len(confusion), "cells": cells.tolist()}


def measure(scores: Scores, labels: tuple[str, ...], header: dict[str, Any], *, seed: int = 0) -> Evaluation:
    """Turn scores into an evaluation.

    Args:
        scores: of the clips.
        labels: names of the classes.
        header: what they rest on; numbers of clips are added.
        seed: of the bootstrap.

    Raises:
        TooManyFailuresError: not one clip could be scored.
    """
    # Loading it takes longer than loading torch; a report does without it.
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    count, scored = len(labels), len(scores.labels)
    if not scored:
        why = f"; the first: {scores.failures[0].path}: {scores.failures[0].reason}" if scores.failures else ""
        raise TooManyFailuresError(f"None of {scores.expected} clips could be scored{why}", scores.failures)
    confusion = multiclass_confusion_matrix(scores.logits.argmax(1), scores.labels, num_classes=count).numpy()
    correct, totals = np.diagonal(confusion), confusion.sum(axis=1)
    first = (scores.logits.argmax(1) == scores.labels).numpy()
    among5 = (ranks(scores.logits, scores.labels) < 5).numpy()
    truth = scores.labels.numpy()
    return Evaluation(
        header={**header, "expected": scores.expected, "scored": scored, "failed": len(scores.failures)},
        top1=int(correct.sum()) / scored,
        top5=float(among5.mean()),
        mean_class=float((correct[totals > 0] / totals[totals > 0]).mean()),
        interval=wilson_interval(int(correct.sum()), scored),
        bootstrap=Bootstrap(
            bootstrap_mean(first, seed=seed),
            bootstrap_mean(among5, seed=seed),
            bootstrap_class_mean(truth, first, seed=seed),
            seed,
        ),
        calibration=calibrate(scores.logits.double().softmax(1).numpy(), truth),
        classes=tuple(
            ClassScore(label=label, clips=int(n), correct=int(c))
            for label, n, c in zip(labels, totals, correct, strict=True)
        ),
        confusion=confusion,
        confused=most_confused(confusion),
        failures=scores.failures,
    )


def tabulate(scores: Scores, table: ClipTable, modality: str) -> ScoreTable:
    """Scores by the clips' names, failed clips with nan."""
    rows = torch.full((len(table), len(table.label_names)), torch.nan)
    rows[scores.indices] = scores.logits
    return ScoreTable(
        clips=clip_names(table),
        labels=torch.from_numpy(table.labels),
        label_names=table.label_names,
        scores=rows,
        modality=modality,
    )


def find_slowest(scores: Scores, table: ClipTable, *, most: int = MOST_SLOWEST) -> tuple[Slow, ...]:
    """The clips that reading took longest, the slowest first; none where that was not measured."""
    if not scores.seconds:
        return ()
    seconds = np.asarray(scores.seconds)
    median = float(np.median(seconds))
    found = []
    for i in np.argsort(-seconds, kind="stable")[:most].tolist():
        record = table.record(int(scores.indices[i]))
        ratio = float(seconds[i]) / median if median else math.nan
        found.append(Slow(record.path, table.label_names[record.label], float(seconds[i]), ratio))
    return tuple(found)


# --- what a person sees ---------------------------------------------------------------------------


def print_header(header: dict[str, Any], console: Console) -> None:
    """What a result rests on."""
    part, _, without = header["split"].partition(", ")  # e.g. "test, without labels"
    of = "all clips" if part == "all" else f"the {part} part" + (f", {without}" if without else "")
    console.print(f"[bold]{escape(printable(header['checkpoint']))}[/bold]  on {of}", soft_wrap=True)
    console.print(
        f"clips: {header['expected']} expected, {header['scored']} scored, "
        + (f"[red]{header['failed']} failed[/red]" if header["failed"] else "0 failed")
    )
    cost = f"\n{header['cost']['text']}" if "cost" in header else ""
    console.print(
        f"[dim]{escape(header['protocol'])}, {header['precision']}{cost}\n"
        f"decoder {header['decoder']} · seed {header['seed']} · data {header['data_hash']}[/dim]",
        soft_wrap=True,
        highlight=False,
    )
    if (moved := header.get("frames_moved")) is not None:
        console.print(f"[dim]frames shown lie {moved:g} frames from those wanted, on average[/dim]", highlight=False)
    *notes, last = header["data_notes"] or [""]
    for note in notes:
        console.print(Text(printable(note), "dim"), soft_wrap=True)
    if last:
        console.print(Text(printable(last), "yellow" if "trained_on" in header else "dim"), soft_wrap=True)


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """The honest header, the accuracies and the per-class table."""
    print_header(evaluation.header, console)
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("class", "clips", "correct", "accuracy"):
        table.add_column(title, justify="left" if title == "class" else "right")
    for row in evaluation.classes:
        accuracy = f"{100 * row.accuracy:.1f} %" if row.clips else "–"
        table.add_row(escape(printable(row.label)), str(row.clips), str(row.correct), accuracy)
    console.print()
    console.print(table)
    print_confused(evaluation, console)
    if evaluation.order:
        print_probe(evaluation.order, console)
    low, high = evaluation.interval
    console.print(
        f"\n[bold]top-1 {100 * evaluation.top1:.1f} %[/bold] (95 % interval {100 * low:.1f}–{100 * high:.1f})   "
        f"top-{min(5, len(evaluation.classes))} {100 * evaluation.top5:.1f} %   "
        f"mean-class {100 * evaluation.mean_class:.1f} %"
    )
    found, (low, high) = evaluation.calibration, evaluation.bootstrap.mean_class
    # Where every class is all right or all wrong, drawing the clips again changes nothing, and says nothing.
    drawn = f"mean-class 95 % interval {100 * low:.1f}–{100 * high:.1f} (bootstrap) · " if low < high else ""
    console.print(
        f"[dim]{drawn}on average {100 * found.confidence:.1f} % sure; calibration error {100 * found.error:.1f} % "
        f"({CALIBRATION_BINS} bins)[/dim]",
        highlight=False,
    )
    for failure in evaluation.failures[:10]:
        told = printable(f" {failure.path}: {failure.reason}")
        console.print(Text.assemble(("failed", "red"), told), soft_wrap=True)
    if len(evaluation.failures) > 10:
        console.print(f"[red]… and {len(evaluation.failures) - 10} more[/red], see failed.csv or --json")


def print_confused(evaluation: Evaluation, console: Console, *, limit: int = 5) -> None:
    """The pairs of classes that most clips are lost to; nothing where no clip is."""
    if not evaluation.confused:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("most confused", overflow="fold")
    table.add_column("taken for", overflow="fold")
    table.add_column("clips", justify="right")
    table.add_column("of its clips", justify="right")
    for pair in evaluation.confused[:limit]:
        names = (escape(printable(evaluation.classes[i].label)) for i in (pair.true, pair.predicted))
        table.add_row(*names, str(pair.clips), f"{100 * pair.share:.1f} %")
    console.print()
    console.print(table)


def write_evaluation(evaluation: Evaluation, out: Path) -> dict[str, Path]:
    """Write an evaluation's files to a folder; those of an earlier one that this one lacks go.

    ``evaluation.json``, ``per_class.csv``, ``confusion.png``, ``scores.csv``, with pyarrow ``scores.parquet``, after an
    order probe ``order.csv``, ``slowest.csv`` where reading was timed, and ``failed.csv`` if clips failed.

    Returns:
        What was written, by the names above without ending; ``json`` and ``parquet`` by these.

    Raises:
        StorageError: one can't be written; the files of the earlier one are intact.
    """
    with replacing_together(out, _FILES) as folder:
        files = _write_files(evaluation, folder)
    return {key: out / path.name for key, path in files.items()}


def _write_files(evaluation: Evaluation, out: Path) -> dict[str, Path]:
    files = {"json": write_json(out / EVALUATION, evaluation.as_dict()), "per_class": out / "per_class.csv"}
    with replacing(files["per_class"]) as file:
        writer = csv.writer(file)
        writer.writerow(["label", "clips", "correct", "accuracy"])
        writer.writerows([c.label, c.clips, c.correct, c.accuracy] for c in evaluation.classes)
    title = f"{evaluation.header['checkpoint']}: top-1 {100 * evaluation.top1:.1f} %"
    labels = [c.label for c in evaluation.classes]
    files["confusion"] = plots.write_png(
        out / "confusion.png", plots.confusion_png(evaluation.confusion, labels, title)
    )
    if evaluation.clip_scores is not None:
        files["scores"] = write_scores(out / SCORES, evaluation.clip_scores)
        if can_write_parquet(evaluation.clip_scores):
            files["parquet"] = write_parquet(out / PARQUET, evaluation.clip_scores)
    if evaluation.order:
        files["order"] = write_probe(out / ORDER, evaluation.order)
    if evaluation.slowest:
        files["slowest"] = _write_slowest(out / SLOWEST, evaluation.slowest)
    if evaluation.failures:
        files["failed"] = write_failures(out / FAILED, [(f.path, f.reason) for f in evaluation.failures])
    return files


def _write_slowest(path: Path, slowest: Iterable[Slow]) -> Path:
    # Not in evaluation.json: what that says of the same clips is the same from run to run.
    with replacing(path) as file:
        writer = csv.writer(file)
        writer.writerow(Slow._fields)
        for clip in slowest:
            ratio = "" if math.isnan(clip.times_median) else f"{clip.times_median:.3g}"
            writer.writerow([clip.path, clip.label, f"{clip.seconds:.4g}", ratio])
    return path
