"""Results that are means over several splits of a data set, as those on UCF101 and HMDB51 are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vireo.checkpoint import Checkpoint
from vireo.data.annotations import read_table, split_format
from vireo.data.table import ClipTable
from vireo.errors import UsageError, writing
from vireo.evaluation import Evaluation
from vireo.files import write_json
from vireo.progress import printable

OFFICIAL = {name: (name, f"{name}-split2", f"{name}-split3") for name in ("ucf101", "hmdb51")}
"""Data sets with several splits, as formats of `vireo.data.formats`."""
SPLITS = "splits.json"
_MEASURES = ("top1", "top5", "mean_class")


@dataclass(frozen=True, kw_only=True)
class SplitsResult:
    """One evaluation per split, and their means."""

    data: tuple[str, ...]
    """(S,) as `read_table` takes them."""
    checkpoints: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]

    def mean(self, measure: str) -> float:
        """Of top1, top5 or mean_class, over the splits; each counts the same, whatever its number of clips."""
        return float(statistics.mean(getattr(e, measure) for e in self.evaluations))

    def deviation(self, measure: str) -> float:
        """Sample standard deviation over the splits; 0 of a single one."""
        values = [getattr(e, measure) for e in self.evaluations]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "mean": {name: self.mean(name) for name in _MEASURES},
            "deviation": {name: self.deviation(name) for name in _MEASURES},
            "splits": [
                {"data": data, "file": file, **evaluation.as_dict()}
                for data, file, evaluation in zip(self.data, self.checkpoints, self.evaluations, strict=True)
            ],
        }


def splits_of(data: str, checkpoints: int) -> tuple[str, ...]:
    """The splits that several checkpoints are scored on, in their order.

    Args:
        data: ``ucf101:PATH`` or ``hmdb51:PATH``, or any data with ``{}`` in place of the split's number, from 1.
        checkpoints: their number.

    Raises:
        UsageError: no such data, or another number of splits.
    """
    if "{}" in data:
        return tuple(data.replace("{}", str(number)) for number in range(1, checkpoints + 1))
    name, path = split_format(data)
    if name not in OFFICIAL:
        hint = f"; write {name.split('-')[0]}:{path}" if name.split("-")[0] in OFFICIAL else ""
        raise UsageError(
            f"{checkpoints} checkpoints need as many splits, and {data} is one list{hint}. "
            f"Give {' or '.join(f'{known}:PATH' for known in OFFICIAL)}, or write {{}} where the number of the split "
            "stands; `vireo fuse` lets models vote on one list"
        )
    if len(OFFICIAL[name]) != checkpoints:
        raise UsageError(
            f"{name} has {len(OFFICIAL[name])} splits, and these are {checkpoints} checkpoints; give one for each, in "
            f"the order of the splits, or one alone for --data {OFFICIAL[name][1]}:{path}"
        )
    return tuple(f"{split}:{path}" for split in OFFICIAL[name])


def read_splits(data: Sequence[str], checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> list[ClipTable]:
    """The lists of all splits, each with its model's labels.

    Raises:
        UsageError: a checkpoint was trained on another of the splits.
        DataError: unusable data.
    """
    tables = [
        read_table(one, label_names=checkpoint.labels, modality=checkpoint.model.config.modality)
        for one, checkpoint in zip(data, checkpoints, strict=True)
    ]
    digests = [table.digest() for table in tables]
    for place, (checkpoint, name) in enumerate(zip(checkpoints, names, strict=True)):
        trained = checkpoint.provenance.get("data_hash")
        if trained in digests and digests[place] != trained:
            raise UsageError(
                f"{name} was trained on {data[digests.index(trained)]}, and is given for {data[place]}, whose test "
                "clips it may have seen; give the checkpoints in the order of the splits"
            )
    return tables


def print_splits(result: SplitsResult, console: Console) -> None:
    """A row per split, and the mean."""
    console.print(f"[bold]{escape(result.evaluations[0].header['checkpoint'])}[/bold]", highlight=False)
    header = result.evaluations[0].header
    cost = f"\n{header['cost']['text']}" if "cost" in header else ""
    console.print(f"[dim]{escape(header['protocol'])}{cost}[/dim]\n", highlight=False, soft_wrap=True)
    top = min(5, len(result.evaluations[0].classes))
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("split", "clips", "failed", "top-1", f"top-{top}", "mean-class", "checkpoint"):
        justify = "left" if title in ("split", "checkpoint") else "right"
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for number, (file, e) in enumerate(zip(result.checkpoints, result.evaluations, strict=True), start=1):
        values = (f"{100 * getattr(e, name):.1f} %" for name in _MEASURES)
        table.add_row(str(number), str(e.header["scored"]), str(e.header["failed"]), *values, escape(printable(file)))
    means = (f"{100 * result.mean(name):.1f} %" for name in _MEASURES)
    table.add_row("[bold]mean[/bold]", "", "", *means, "", style="bold")
    console.print(table)
    console.print(
        f"\nmean of {len(result.evaluations)} splits: top-1 [bold]{100 * result.mean('top1'):.2f} %[/bold] "
        f"± {100 * result.deviation('top1'):.2f} (standard deviation between splits)",
        highlight=False,
    )


def write_splits(result: SplitsResult, path: Path) -> Path:
    """Write the means and all evaluations as JSON.

    Raises:
        StorageError: it can't be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    return write_json(path, result.as_dict())
