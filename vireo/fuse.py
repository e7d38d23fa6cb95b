"""Late fusion: models that saw the same clips, as RGB and flow or as 8 and 16 frames, vote together.

Fused scores are the weighted sum of the streams' class scores before softmax, as in the code published with TSN
(Wang et al., ECCV 2016), which gives flow a weight of 1.5 beside RGB's 1. Clips are matched by name.
"""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

import vireo
from vireo.errors import DataError, UsageError
from vireo.evaluate import Evaluation, Scores, measure, write_evaluation
from vireo.scores import ScoreTable, read_scores


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One model's part in a fusion.

    Attributes:
        name: where its scores are from.
        weight: of its scores.
        clips: clips it was to score.
        failed: those of them that could not be read.
        unmatched: clips it scored that another stream lacks or could not read; they are left out.
        evaluation: its accuracy on the clips that all streams scored.
    """

    name: str
    weight: float
    clips: int
    failed: int
    unmatched: int
    evaluation: Evaluation

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        e = self.evaluation
        accuracies = {"top1": e.top1, "top5": e.top5, "mean_class": e.mean_class}
        counts = {"clips": self.clips, "failed": self.failed, "unmatched": self.unmatched}
        return {"scores": self.name, "weight": self.weight, **counts, **accuracies}


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """What :func:`fuse_tables` gives."""

    streams: tuple[Stream, ...]
    evaluation: Evaluation
    """Of the fused scores; its header counts a clip as failed where any stream has no scores of it."""


def fuse_scores(scores: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The weighted sum of class scores.

    Args:
        scores: one (..., K) tensor per stream, before softmax.
        weights: one per stream; by default all 1. RGB and flow in TSN: 1, 1.5.

    Returns:
        (..., K), a float type of the streams.

    Raises:
        UsageError: no streams, shapes that differ, or weights that don't fit.
    """
    weights = check_weights(weights, len(scores))
    shapes = sorted({tuple(s.shape) for s in scores})
    if len(shapes) > 1:
        raise UsageError(f"scores of shapes {' and '.join(map(str, shapes))} can't be fused; all must have the same")
    fused = scores[0] * weights[0]
    for score, weight in zip(scores[1:], weights[1:], strict=True):
        fused = fused + score * weight
    return fused


def check_weights(weights: Sequence[float] | None, streams: int) -> tuple[float, ...]:
    """One weight per stream.

    Raises:
        UsageError: no streams, another number of weights, one that is negative or not finite, or all 0.
    """
    if not streams:
        raise UsageError("there are no scores to fuse")
    if not weights:
        return (1.0,) * streams
    if len(weights) != streams:
        raise UsageError(f"weights are {list(weights)} for {streams} streams; give one for each, in their order")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise UsageError(f"weights are {list(weights)}; each must be 0 or more, and one above 0")
    return tuple(map(float, weights))


def fuse_tables(
    tables: Sequence[ScoreTable], weights: Sequence[float] | None = None, names: Sequence[str] | None = None
) -> Fusion:
    """Fuse what several models said, clip by clip.

    A clip is matched by its whole name; or by the last part of it, if that tells the clips of every stream apart
    and finds more pairs: ``wave/anna_3`` and ``anna_3`` are then the same.

    Args:
        tables: one per stream.
        weights: see :func:`fuse_scores`.
        names: of the streams, for messages.

    Raises:
        UsageError: weights that don't fit.
        DataError: streams of other classes, of other labels for a clip, or without a clip in common.
    """
    weights = check_weights(weights, len(tables))
    names = list(names or (f"stream {i + 1}" for i in range(len(tables))))
    classes = tables[0].label_names
    for table, name in zip(tables, names, strict=True):
        if other := sorted(set(table.label_names) ^ set(classes)):
            raise DataError(f"{name} and {names[0]} have different classes; {other[0]!r} is in one of them only")
    rows = match_clips(tables)
    if not len(rows[0]):
        raise DataError(
            f"{names[0]} and the others have no clip in common; the first clips are "
            + ", ".join(repr(table.clips[0]) for table in tables)
        )
    # Classes in the order of the first stream.
    orders = [torch.tensor([table.label_names.index(label) for label in classes]) for table in tables]
    scores = [table.scores[at][:, order] for table, at, order in zip(tables, rows, orders, strict=True)]
    truth = [order.argsort()[table.labels[at]] for table, at, order in zip(tables, rows, orders, strict=True)]
    for labels, name in zip(truth, names, strict=True):
        if len(wrong := (labels != truth[0]).nonzero()[:, 0]):
            clip = tables[0].clips[int(rows[0][wrong[0]])]
            told = classes[int(truth[0][wrong[0]])], classes[int(labels[wrong[0]])]
            raise DataError(f"clip {clip!r} is {told[0]!r} in {names[0]} and {told[1]!r} in {name}")

    def evaluation(logits: Tensor) -> Evaluation:
        indices = torch.arange(len(logits))
        return measure(Scores(logits=logits, labels=truth[0], indices=indices, failures=()), classes, {})

    fused = fuse_scores(scores, weights)
    every = len(set().union(*_keys(tables)))
    header = {
        "checkpoint": " + ".join(f"{w:g} × {n}" for w, n in zip(weights, names, strict=True)),
        "vireo": vireo.__version__,
    }
    whole = evaluation(fused)
    return Fusion(
        streams=tuple(
            Stream(
                name=name,
                weight=weight,
                clips=len(table.clips),
                failed=int((~table.read).sum()),
                unmatched=int(table.read.sum()) - len(at),
                evaluation=evaluation(score),
            )
            for name, weight, table, at, score in zip(names, weights, tables, rows, scores, strict=True)
        ),
        evaluation=replace(
            whole,
            header={**header, "expected": every, "scored": len(fused), "failed": every - len(fused)},
            clip_scores=ScoreTable(
                clips=tuple(tables[0].clips[i] for i in rows[0].tolist()),
                labels=truth[0],
                label_names=classes,
                scores=fused,
            ),
        ),
    )


def match_clips(tables: Sequence[ScoreTable]) -> list[Tensor]:
    """The clips that every table has scores of: one (M,) tensor of rows per table, in the first one's order."""
    keys = _keys(tables)
    places = [
        {key: i for i, (key, read) in enumerate(zip(own, table.read.tolist(), strict=True)) if read}
        for own, table in zip(keys, tables, strict=True)
    ]
    common = [key for key in keys[0] if all(key in place for place in places)]
    return [torch.tensor([place[key] for key in common], dtype=torch.int64) for place in places]


def _keys(tables: Sequence[ScoreTable]) -> list[list[str]]:
    """By what clips are matched, per table; see :func:`fuse_tables`."""
    whole = [list(table.clips) for table in tables]
    last = [[name.rsplit("/", 1)[-1] for name in names] for names in whole]
    if any(len(set(names)) < len(names) for names in last):
        return whole
    in_common = [len(set.intersection(*map(set, keys))) for keys in (whole, last)]
    return last if in_common[1] > in_common[0] else whole


def fuse_command(
    scores: Sequence[Path], *, weights: Sequence[float] = (), out: Path | None = None, json: bool = False
) -> int:
    """What `vireo fuse` does: read the scores, fuse, print, and write the fused evaluation where asked."""
    if len(scores) < 2:
        raise UsageError("fusion needs the scores of two models or more")
    weights = check_weights(weights, len(scores))
    fusion = fuse_tables([read_scores(path) for path in scores], weights, [str(path) for path in scores])
    if json:
        streams = [stream.as_dict() for stream in fusion.streams]
        whole = {"streams": streams, "fusion": fusion.evaluation.as_dict()}
        print(jsonlib.dumps(whole, ensure_ascii=False), flush=True)
    else:
        print_fusion(fusion, Console())
    if out is not None:
        write_evaluation(fusion.evaluation, out)
    return 0


def print_fusion(fusion: Fusion, console: Console) -> None:
    """A row per stream and one for all together, and what was left out."""
    count = min(5, len(fusion.evaluation.classes))
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("scores", "weight", "clips", "failed", "unmatched", "top-1", f"top-{count}", "mean-class"):
        table.add_column(title, justify="left" if title == "scores" else "right", overflow="fold")
    for s in fusion.streams:
        counts = str(s.clips), str(s.failed), str(s.unmatched)
        table.add_row(escape(s.name), f"{s.weight:g}", *counts, *_accuracies(s.evaluation))
    e = fusion.evaluation
    table.add_row("[bold]together[/bold]", "", str(e.header["scored"]), "", "", *_accuracies(e), style="bold")
    console.print(table)
    low, high = e.interval
    console.print(
        f"\ntop-1 on the {e.header['scored']} clips that all have scores of, 95 % interval "
        f"{100 * low:.1f}–{100 * high:.1f}; scores are added before softmax",
        highlight=False,
    )
    if e.header["failed"]:
        console.print(f"[red]{e.header['failed']} of {e.header['expected']} clips left out[/red]: not scored by all")


def _accuracies(evaluation: Evaluation) -> tuple[str, str, str]:
    values = evaluation.top1, evaluation.top5, evaluation.mean_class
    return tuple(f"{100 * value:.1f} %" for value in values)  # type: ignore[return-value]
