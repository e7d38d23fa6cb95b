"""Dividing a list of clips into training, validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vireo.data.table import SPLITS, ClipTable, Int64
from vireo.errors import DataError, UsageError

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What splits are called in lists and folder names, in lower case, and which of `SPLITS` is meant."""


class Split(NamedTuple):
    """A data set's parts; ``test`` is None where none is named."""

    train: ClipTable
    val: ClipTable
    test: ClipTable | None


def split_table(table: ClipTable, *, val_fraction: float, seed: int) -> Split:
    """Split a table into train, validation and test.

    Where the data names splits they are used; validation clips are then drawn from the training clips
    only if none are named. A draw is stratified: each class gives ``val_fraction`` of its clips to
    validation, but at least one, and keeps at least one, if it has two or more. Groups stay together,
    and so do clips cut from one file. The draw depends on the seed and the set of clips, not on their order.

    Raises:
        UsageError: ``val_fraction`` is not between 0 and 1.
        DataError: nothing to train on, or nothing could be set aside for validation.
    """
    if not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
    rows = np.arange(len(table), dtype=np.int64)
    parts: dict[str, Int64] = {"train": rows, "val": rows[:0], "test": rows[:0]}
    if table.splits is not None:
        names, codes = table.splits.distinct()
        parts = {name: rows[codes == names.index(name)] if name in names else rows[:0] for name in SPLITS}
    if len(parts["train"]) == 0:
        raise DataError("no clip is in the split 'train'; there is nothing to train on")
    if len(parts["val"]) == 0:
        in_val = _draw_validation(table.select(parts["train"]), val_fraction, np.random.default_rng(seed))
        if not in_val.any():
            raise DataError(
                "no clip can be set aside for validation: every class has one clip or group only; "
                "add clips, or name a validation split in a CSV"
            )
        parts["train"], parts["val"] = parts["train"][~in_val], parts["train"][in_val]
    return Split(
        table.select(parts["train"]),
        table.select(parts["val"]),
        table.select(parts["test"]) if len(parts["test"]) else None,
    )


def _draw_validation(table: ClipTable, fraction: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """(N,) whether a clip goes to validation."""
    unit_of = _units(table)
    labels = len(table.label_names)
    pairs, clips = np.unique(unit_of * labels + table.labels, return_counts=True)
    ends = np.cumsum(np.bincount(pairs // labels, minlength=int(unit_of.max()) + 1))
    return _choose_units(ends, pairs % labels, clips.astype(np.int64), fraction, rng)[unit_of]


def _units(table: ClipTable) -> Int64:
    """(N,) clips that must stay together have the same number.

    The order of rows must not matter: units are numbered in the order of their first paths, sorted.
    """
    paths = list(table.paths)
    numbers = {path: i for i, path in enumerate(sorted(set(paths)))}
    unit_of = np.fromiter((numbers[path] for path in paths), dtype=np.int64, count=len(paths))
    del paths, numbers
    if table.groups is None:
        return unit_of
    parent = list(range(int(unit_of.max(initial=-1)) + 1))

    def find(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    first_of: dict[str, int] = {}
    for unit, group in zip(unit_of.tolist(), table.groups, strict=True):
        if group:
            one, other = find(unit), find(first_of.setdefault(group, unit))
            parent[max(one, other)] = min(one, other)  # the lowest number is the unit's root, and keeps its place
    roots = np.fromiter(map(find, range(len(parent))), dtype=np.int64, count=len(parent))
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)[unit_of]


def _choose_units(
    ends: Int64, labels: Int64, clips: Int64, fraction: float, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which units go to validation, so that classes come near their share.

    Args:
        ends: (U,) a unit has the entries up to here, from where the one before it ends.
        labels: (E,) class of an entry.
        clips: (E,) how many clips of that class are in the unit.
        fraction: of clips, to validation.
        rng: draws the order in which units are considered.
    """
    total = np.bincount(labels, weights=clips).astype(np.int64).tolist()  # clips of each class
    left = np.bincount(labels).tolist()  # units of each class that are still in training
    share = [max(1, round(fraction * n)) if homes > 1 else 0 for n, homes in zip(total, left, strict=True)]
    taken = [0] * len(total)  # clips in validation
    chosen = np.zeros(len(ends), dtype=np.bool_)
    last, label_list, clip_list = ends.tolist(), labels.tolist(), clips.tolist()

    def entries(unit: int) -> Sequence[tuple[int, int]]:
        at = slice(last[unit - 1] if unit else 0, last[unit])
        return list(zip(label_list[at], clip_list[at], strict=True))

    def costs(unit: Sequence[tuple[int, int]]) -> Iterator[float]:
        for c, n in unit:
            yield ((taken[c] + n - share[c]) ** 2 - (taken[c] - share[c]) ** 2) / total[c]

    def take(i: int, unit: Sequence[tuple[int, int]]) -> None:
        chosen[i] = True
        for c, n in unit:
            taken[c] += n
            left[c] -= 1

    order = rng.permutation(len(ends)).tolist()
    for i in order:
        unit = entries(i)
        if all(left[c] > 1 for c, _ in unit) and sum(costs(unit)) < 0:
            take(i, unit)
    waiting = {c for c, wanted in enumerate(share) if wanted and not taken[c]}  # their groups are large
    for i in order if waiting else ():
        unit = entries(i)
        if not chosen[i] and all(left[c] > 1 for c, _ in unit) and any(c in waiting and not taken[c] for c, _ in unit):
            take(i, unit)
    return chosen
