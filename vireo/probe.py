"""The order probe: how much of a model's accuracy comes from the order of frames.

The same decoded clips are scored again with their frames in another order:

    as they come    0 1 2 3 4 5 6 7
    shuffled        5 0 7 2 6 1 3 4     drawn for each clip, as often as asked for
    reversed        7 6 5 4 3 2 1 0
    single          4 4 4 4 4 4 4 4     the middle frame at every position: what one picture gives

What is lost is what the model owes to order; of a single frame, to there being several. A model that ignores order,
such as TSN, loses nothing when frames are shuffled or reversed.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from torch import Tensor

from vireo.files import replacing
from vireo.plots import shorten
from vireo.progress import printable
from vireo.statistics import Interval, bootstrap_mean

Order = Literal["shuffled", "reversed", "single"]
FrameOrder = Callable[[Tensor], Tensor]
"""Clip indices (N,) → the frames that each shows, (N, T)."""
SHOWN = 10
"""Classes in the table that is printed; order.csv has all."""
_WIDE = 100  # columns of a terminal that has room for two names of classes

_HEADINGS = {"shuffled": "shuffled", "reversed": "reversed", "single": "one frame"}
_LOSES = {"shuffled": "when shuffled", "reversed": "when reversed", "single": "with one frame"}
_SENTENCES = {
    "shuffled": "with frames in random order",
    "reversed": "with frames in reverse",
    "single": "with the middle frame alone, at every position",
}


def shuffled_order(num_frames: int, seed: int, round_: int) -> FrameOrder:
    """Frame permutations drawn uniformly, one per clip, from (seed, round, clip index) alone."""

    def order(indices: Tensor) -> Tensor:
        draw = [np.random.default_rng((seed, round_, int(i))).permutation(num_frames) for i in indices]
        return torch.from_numpy(np.stack(draw))

    return order


def reversed_order(num_frames: int) -> FrameOrder:
    """The last frame first."""
    return lambda indices: torch.arange(num_frames - 1, -1, -1).expand(len(indices), num_frames)


def single_frame(num_frames: int) -> FrameOrder:
    """Frame ⌊T/2⌋ at every position: the middle one, of an even number the later of the two."""
    return lambda indices: torch.full((len(indices), num_frames), num_frames // 2)


def frame_orders(
    num_frames: int, *, shuffle: int = 0, reverse: bool = False, single: bool = False, seed: int = 0
) -> list[tuple[Order, FrameOrder]]:
    """What is asked for, by name; shuffled ones once per permutation."""
    orders: list[tuple[Order, FrameOrder]] = [("shuffled", shuffled_order(num_frames, seed, k)) for k in range(shuffle)]
    orders += [("reversed", reversed_order(num_frames))] if reverse else []
    orders += [("single", single_frame(num_frames))] if single else []
    return orders


@dataclass(frozen=True, kw_only=True)
class Reordered:
    """Accuracy with frames in another order. All accuracies are in [0, 1]."""

    order: Order
    top1: tuple[float, ...]
    """One value per permutation; of the other orders there is one."""
    lost: float
    """Mean top-1 that is lost to this order; negative where it is better."""
    interval: Interval
    """95 % interval of ``lost``: percentiles of the bootstrap over clips, each clip paired with itself."""
    classes: tuple[float, ...]
    """(K,) the classes' accuracies, the mean of all permutations; nan without clips."""
    taken_for: tuple[int, ...]
    """(K,) the class that each one's clips are taken for most often; of several the first, -1 without clips."""
    taken_share: tuple[float, ...]
    """(K,) share of its clips; nan without clips."""

    @property
    def mean(self) -> float:
        """Mean top-1."""
        return float(np.mean(self.top1))


@dataclass(frozen=True, kw_only=True)
class OrderProbe:
    """What order means to a model, all in all and class by class."""

    labels: tuple[str, ...]
    clips: tuple[int, ...]
    """(K,) of each class that were scored."""
    top1: float
    """With frames as they come, in [0, 1]."""
    classes: tuple[float, ...]
    """(K,) accuracies with frames as they come; nan without clips."""
    orders: tuple[Reordered, ...]

    def by_loss(self) -> list[int]:
        """Classes that have clips, that which loses most to the first order first."""
        lost = [own - other for own, other in zip(self.classes, self.orders[0].classes, strict=True)]
        return sorted((i for i, n in enumerate(self.clips) if n), key=lambda i: (-lost[i], -self.clips[i], i))

    def sentences(self) -> list[str]:
        """What was found, in plain words, a line per order."""
        return [_sentence(self.top1, found) for found in self.orders]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "top1": self.top1,
            "text": self.sentences(),
            "orders": {
                found.order: {
                    "top1": list(found.top1),
                    "mean_top1": found.mean,
                    "lost": found.lost,
                    "lost_interval95": list(found.interval),
                    "share_of_top1": found.lost / self.top1 if self.top1 else None,
                }
                for found in self.orders
            },
            "classes": [
                {
                    "label": self.labels[i],
                    "clips": self.clips[i],
                    "accuracy": self.classes[i],
                    **{
                        found.order: {
                            "accuracy": found.classes[i],
                            "lost": self.classes[i] - found.classes[i],
                            "taken_for": self.labels[found.taken_for[i]],
                            "taken_share": found.taken_share[i],
                        }
                        for found in self.orders
                    },
                }
                for i in self.by_loss()
            ],
        }


def _sentence(top1: float, found: Reordered) -> str:
    low, high = (100 * end for end in found.interval)
    begin = f"{_SENTENCES[found.order]}: top-1 {100 * found.mean:.1f} % in place of {100 * top1:.1f} %"
    if low <= 0 <= high:
        return f"{begin}; no difference beyond chance (95 % interval of the loss {low:.1f} to {high:.1f} points)"
    if found.lost < 0:
        return f"{begin}; better by {-100 * found.lost:.1f} points (95 % interval {-high:.1f} to {-low:.1f})"
    return (
        f"{begin}; {100 * found.lost:.1f} points (95 % interval {low:.1f} to {high:.1f}), "
        f"{100 * found.lost / top1:.0f} % of what is right, come from "
        + ("seeing several frames" if found.order == "single" else "the order of frames")
    )


def probe_order(
    straight: npt.NDArray[np.int64],
    reordered: Sequence[tuple[Order, npt.NDArray[np.int64]]],
    truth: npt.NDArray[np.int64],
    labels: tuple[str, ...],
    *,
    seed: int = 0,
) -> OrderProbe:
    """Compare answers to the same clips.

    Args:
        straight: (M,) classes predicted with frames as they come, M at least 1.
        reordered: the same for other orders, one entry per permutation.
        truth: (M,) true classes.
        labels: names of the K classes.
        seed: of the bootstrap.
    """
    count, right = len(labels), straight == truth
    clips = np.bincount(truth, minlength=count)

    def per_class(values: npt.NDArray[Any]) -> tuple[float, ...]:
        sums = np.bincount(truth, weights=values, minlength=count)
        return tuple(np.divide(sums, clips, out=np.full(count, np.nan), where=clips > 0).tolist())

    found = []
    for order in dict.fromkeys(name for name, _ in reordered):
        answers = [answer for name, answer in reordered if name == order]
        share = np.mean([answer == truth for answer in answers], axis=0)  # (M,) of the permutations
        taken = np.zeros((count, count), dtype=np.int64)
        for answer in answers:
            np.add.at(taken, (truth, answer), 1)
        most = taken.argmax(axis=1)
        found.append(
            Reordered(
                order=order,
                top1=tuple(float((answer == truth).mean()) for answer in answers),
                lost=float((right - share).mean()),
                interval=bootstrap_mean(right - share, seed=seed),
                classes=per_class(share),
                taken_for=tuple(int(most[i]) if n else -1 for i, n in enumerate(clips)),
                taken_share=tuple(
                    float(taken[i, most[i]] / (n * len(answers))) if n else math.nan for i, n in enumerate(clips)
                ),
            )
        )
    return OrderProbe(
        labels=labels,
        clips=tuple(clips.tolist()),
        top1=float(right.mean()),
        classes=per_class(right),
        orders=tuple(found),
    )


def print_probe(probe: OrderProbe, console: Console) -> None:
    """What was found in words, and the classes that lose most."""
    console.print("\n[bold]What the order of frames is worth[/bold]")
    for line in probe.sentences():
        console.print(Padding(line, (0, 0, 0, 2), expand=False), highlight=False)
    rows = [i for i in probe.by_loss() if probe.classes[i] > probe.orders[0].classes[i]]
    if not rows:
        return
    told = next((found for found in probe.orders if found.order == "reversed"), probe.orders[0])
    wide = console.width >= _WIDE
    # What the columns of numbers leave, for one name of a class or two, the second behind a share of clips.
    room = console.width - 33 - 11 * len(probe.orders)
    title = f"loses most {_LOSES[probe.orders[0].order]}"
    room = max(len(title), (room - 10) // 2 if wide else room)
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column(title, no_wrap=True, overflow="ellipsis")
    for heading in ("clips", "as it is", *(_HEADINGS[found.order] for found in probe.orders), "lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        table.add_column(f"{_HEADINGS[told.order]}: taken for", no_wrap=True, overflow="ellipsis")
    for i in rows[:SHOWN]:
        values = [probe.classes[i], *(found.classes[i] for found in probe.orders)]
        lost = 100 * (probe.classes[i] - probe.orders[0].classes[i])
        other = (
            "itself" if told.taken_for[i] == i else escape(printable(shorten(probe.labels[told.taken_for[i]], room)))
        )
        table.add_row(
            escape(printable(shorten(probe.labels[i], room))),
            str(probe.clips[i]),
            *(f"{100 * value:.1f} %" for value in values),
            f"{lost:.1f}",
            *([f"{100 * told.taken_share[i]:.0f} %: {other}"] if wide else []),
        )
    console.print()
    console.print(table)
    if len(rows) > SHOWN:
        console.print(f"[dim]and {len(rows) - SHOWN} more classes that lose: order.csv[/dim]", highlight=False)


def write_probe(path: Path, probe: OrderProbe) -> Path:
    """Write a row per class as CSV, that which loses most first.

    Raises:
        StorageError: it could not be written.
    """
    with replacing(path) as file:
        writer = csv.writer(file)
        columns = [
            f"{found.order}{what}" for found in probe.orders for what in ("", "_lost", "_taken_for", "_taken_share")
        ]
        writer.writerow(["label", "clips", "accuracy", *columns])
        for i in probe.by_loss():
            cells: list[object] = []
            for found in probe.orders:
                lost = probe.classes[i] - found.classes[i]
                cells += [found.classes[i], lost, probe.labels[found.taken_for[i]], found.taken_share[i]]
            writer.writerow([probe.labels[i], probe.clips[i], probe.classes[i], *cells])
    return path
