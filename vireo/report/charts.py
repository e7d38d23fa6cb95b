"""Charts as HTML and SVG that take their colours from the style sheet, so that they follow light and dark.

Text lies beside the drawing, not in it: it keeps its size however wide the page is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vireo.report.parts import name, percent, text
from vireo.statistics import Interval

MOST_POINTS = 400
"""Of a curve; of longer ones every n-th is drawn."""
MOST_CLASSES = 300
"""In a confusion matrix; of more classes, those that err most are shown."""
NAMED, NUMBERED = 40, 16
"""Classes up to which a matrix has names, and numbers in its cells."""
LEVELS = 8
"""Shades of a matrix."""

Ints = NDArray[np.int64]


class Line(NamedTuple):
    """A curve: a value per epoch, nan where none was measured."""

    title: str
    look: str
    """Class in the style sheet: a, b or c."""
    values: Sequence[float]


def curve(
    title: str,
    epochs: Sequence[float],
    lines: Sequence[Line],
    *,
    end: int,
    most: float,
    unit: str = "",
    mark: tuple[float, float, str] | None = None,
) -> str:
    """Lines over epochs.

    Args:
        title: of the chart.
        epochs: one per value of the lines.
        lines: at most three.
        end: of the x axis, epochs.
        most: end of the y axis, which begins at 0.
        unit: behind the values.
        mark: a point (epoch, value) and what it is.
    """
    first, last = 1.0, float(max(end, 2))
    drawn = [line for line in lines if not all(map(math.isnan, line.values))]

    def x(epoch: float) -> float:
        return 100 * (epoch - first) / (last - first)

    def y(value: float) -> float:
        return 100 * min(1.05, value / most)

    paths, points = [], {}
    for line in drawn:
        known = [(e, v) for e, v in zip(epochs, line.values, strict=True) if math.isfinite(v)]
        step = math.ceil(len(known) / MOST_POINTS)
        known = [*known[:-1:step], *known[-1:]]
        places = " ".join(f"{x(e):.2f},{100 - y(v):.2f}" for e, v in known)
        paths.append(f'<g class="{line.look}"><polyline points="{places}"/></g>')
        points[line.title] = [[round(e), round(x(e), 2), _figures(v)] for e, v in known]
    dots = "".join(
        f'<i class="dot {line.look}" style="left:{points[line.title][0][1]}%;bottom:{y(_only(line)):.2f}%"></i>'
        for line in drawn
        if len(points[line.title]) == 1
    )
    if mark:
        dots += f'<i class="dot a" style="left:{x(mark[0]):.2f}%;bottom:{y(mark[1]):.2f}%"></i>'
    legend = "".join(f'<span><i class="{line.look}"></i>{text(line.title)}</span>' for line in drawn if len(drawn) > 1)
    legend += f'<span><i class="dot a"></i>{text(mark[2])}</span>' if mark else ""
    ends = ", ".join(f"{line.title} at last {points[line.title][-1][2]}{unit}" for line in drawn)
    return (
        f'<figure class="chart"><figcaption>{text(title)}<span class="legend">{legend}</span></figcaption>'
        f'<div class="plot" tabindex="0" role="img" aria-label="{text(f"{title}: {ends}")}" '
        f'data-unit="{text(unit)}" data-lines="{text(json.dumps(points))}">{_grid(0, most, unit)}'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{"".join(paths)}</svg>{dots}'
        f"</div>{_axis(first, last, 'epoch', whole=True)}</figure>"
    )


def _only(line: Line) -> float:
    return next(value for value in line.values if math.isfinite(value))


def _figures(value: float) -> float:
    return float(f"{value:.4g}")


def _ticks(low: float, high: float, number: int = 5, *, whole: bool = False) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(nbins=number, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(value) for value in found if low <= value <= high]


def _grid(low: float, high: float, unit: str) -> str:
    return "".join(
        f'<span class="y" style="bottom:{100 * (value - low) / (high - low):.2f}%"><b>{value:g}{text(unit)}</b></span>'
        for value in _ticks(low, high, 4)
    )


def _axis(low: float, high: float, title: str, *, unit: str = "", whole: bool = False) -> str:
    ticks = _ticks(low, high, 6, whole=whole)
    if whole and 1 not in ticks:
        ticks = [1.0, *(tick for tick in ticks if (tick - low) / (high - low) > 0.08)]
    marks = "".join(
        f'<span style="left:{100 * (tick - low) / (high - low):.2f}%">{tick:g}{text(unit)}</span>' for tick in ticks
    )
    return f'<div class="x" aria-hidden="true">{marks}</div><div class="xtitle">{text(title)}</div>'


def gauge(share: float, interval: Interval | None, *, chance: float | None = None) -> str:
    """A bar from 0 to 100 % with a value, its interval, and what guessing gives."""
    band = ""
    if interval:
        low, high = interval
        band = f'<i class="band" style="left:min({100 * low:.2f}%,100% - 3px);width:{100 * (high - low):.2f}%"></i>'
    guess = f'<i class="chance" style="left:{100 * chance:.2f}%"></i>' if chance is not None else ""
    fill = f'<i class="fill" style="width:{100 * share:.2f}%"></i>'
    return f'<div class="gauge" aria-hidden="true">{fill}{band}{guess}</div>'


class Row(NamedTuple):
    """A bar: accuracies in [0, 1]."""

    title: str
    share: float
    look: str
    about: str


def bars(rows: Sequence[Row]) -> str:
    """Horizontal bars from 0 to 100 %."""
    cells = "".join(
        f'<dt>{text(row.title)}</dt><dd><span class="track"><i class="{row.look}" '
        f'style="width:{100 * row.share:.2f}%"></i></span><b>{percent(row.share)}</b>'
        f"<span>{text(row.about)}</span></dd>"
        for row in rows
    )
    return f'<dl class="bars">{cells}</dl>'


class Drop(NamedTuple):
    """A class's accuracy before and after, in [0, 1]."""

    label: str
    before: float
    after: float
    about: str


def drops(rows: Sequence[Drop]) -> str:
    """Two dots on a line for each class."""
    cells = []
    for row in rows:
        low, high = sorted((row.before, row.after))
        cells.append(
            f"<li><span>{name(row.label)}</span>"
            f'<span class="rail" role="img" aria-label="from {percent(row.before)} to {percent(row.after)}">'
            f'<i class="bar" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
            f'<i class="after" style="left:{100 * row.after:.2f}%"></i>'
            f'<i class="before" style="left:{100 * row.before:.2f}%"></i></span>'
            f"<b>{100 * row.before:.0f} → {100 * row.after:.0f} %</b><small>{text(row.about)}</small></li>"
        )
    return f'<ol class="drops">{"".join(cells)}</ol>'


def reliability(bins: Sequence[tuple[int, float, float]]) -> str:
    """How often a model is right when it is so sure: a dot per (clips, confidence, accuracy), larger for more clips."""
    most = max((clips for clips, _, _ in bins), default=1)
    dots = "".join(
        f'<i class="ball" style="left:{100 * sure:.2f}%;bottom:{100 * right:.2f}%;'
        f'--size:{6 + 20 * math.sqrt(clips / max(1, most)):.1f}px" '
        f'title="{clips:,} clips: {percent(sure)} sure, {percent(right)} right"></i>'
        for clips, sure, right in bins
        if clips
    )
    told = "; ".join(f"{percent(sure)} sure, {percent(right)} right" for _, sure, right in bins)
    return (
        '<figure class="chart square"><figcaption>How often it is right when it is so sure</figcaption>'
        f'<div class="plot" role="img" aria-label="{text(told)}">{_grid(0, 100, " %")}'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true"><g class="ideal">'
        f'<polyline points="0,100 100,0"/></g></svg>{dots}</div>{_axis(0, 100, "mean probability", unit=" %")}</figure>'
    )


# --- the confusion matrix -----------------------------------------------------------------------------


class Matrix(NamedTuple):
    """A drawn confusion matrix."""

    svg: str
    data: dict[str, Any]
    """For the script: what each cell says."""
    shown: int
    """Classes that are drawn."""


def matrix(confusion: Ints, labels: Sequence[str], *, still: bool = False) -> Matrix:
    """A confusion matrix: true classes in rows, one colour for what is right and one for errors.

    A cell's shade is the square root of its share of the row, so that rare errors can be seen too.

    Args:
        confusion: (K, K) counts, true class first.
        labels: of the classes.
        still: for pages without the script that answers the pointer.
    """
    chosen = _choose(confusion)
    counts, totals = confusion[np.ix_(chosen, chosen)], confusion.sum(axis=1)[chosen]
    names = [labels[i] for i in chosen]
    number, named = len(chosen), len(chosen) <= NAMED
    cell = float(next((c for k, c in ((4, 76), (8, 56), (12, 44), (20, 30), (NAMED, 19)) if number <= k), 0))
    cell = cell or max(2.0, min(8.0, 720 / number))
    longest = min(24, max(map(len, names), default=0))
    left, top = (round(14 + 7.2 * longest), round(16 + 5.2 * longest)) if named else (22, 22)
    side = cell * number
    right = round(5.2 * longest) if named else 8  # the last name above leans out to the right
    inside = [_cells(counts, totals, cell, gap=1.0 if number <= NAMED else 0.0)]
    if named:
        inside.append(_names(names, cell))
    if number <= NUMBERED:
        inside.append(_numbers(counts, totals, cell))
    told = f"Confusion matrix of {number} class{'' if number == 1 else 'es'}"
    kind = f'role="img" aria-label="{told}"'
    if not still:
        kind = f'tabindex="0" role="application" aria-label="{told}; arrow keys move through its cells"'
        inside += [
            f'<rect class="row" width="{side:.1f}" height="{cell:.2f}" visibility="hidden"/>'
            f'<rect class="column" width="{cell:.2f}" height="{side:.1f}" visibility="hidden"/>'
            f'<rect class="cell" width="{cell:.2f}" height="{cell:.2f}" visibility="hidden"/>'
        ]
    svg = (
        f'<svg class="matrix{" still" if still else ""}" {kind} width="{left + side + right:.0f}" '
        f'height="{top + side + 10:.0f}" viewBox="{-left} {-top} {left + side + right:.1f} {top + side + 10:.1f}">'
        f'<rect class="sheet" width="{side:.1f}" height="{side:.1f}"/>{"".join(inside)}</svg>'
    )
    at = np.argwhere(counts)
    data = {
        "labels": [label[:200] for label in names],
        "totals": totals.tolist(),
        "cells": np.column_stack([at, counts[at[:, 0], at[:, 1]]]).ravel().tolist(),
        "cell": cell,
    }
    return Matrix(svg, data, number)


def _choose(confusion: Ints) -> Ints:
    """Classes to draw, in their own order: all, or those that lose or attract most clips."""
    if len(confusion) <= MOST_CLASSES:
        return np.arange(len(confusion))
    diagonal = np.diagonal(confusion)
    wrong = confusion.sum(axis=1) + confusion.sum(axis=0) - 2 * diagonal
    return np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])


def _level(counts: Ints, totals: Ints) -> Ints:
    """Shade of each cell, 1 to LEVELS; 0 for an empty one."""
    share = counts / np.maximum(1, totals)[:, None]
    found: Ints = np.where(counts > 0, np.clip(np.ceil(np.sqrt(share) * LEVELS), 1, LEVELS), 0).astype(np.int64)
    return found


def _cells(counts: Ints, totals: Ints, cell: float, gap: float) -> str:
    """All cells of a shade as one path: thousands stay small and quick."""
    levels = _level(counts, totals)
    own = np.eye(len(counts), dtype=bool)
    paths = []
    for look, kind in (("right", own), ("wrong", ~own)):
        for level in range(1, LEVELS + 1):
            places = np.argwhere((levels == level) & kind)
            if len(places):
                size = f"{cell - gap:.4g}"
                steps = "".join(f"M{c * cell:.5g} {r * cell:.5g}h{size}v{size}h-{size}z" for r, c in places.tolist())
                paths.append(f'<path class="{look}" style="--mix:{8 + 92 * level // LEVELS}%" d="{steps}"/>')
    return "".join(paths)


def _names(names: Sequence[str], cell: float) -> str:
    rows = "".join(
        f'<text class="end" x="-8" y="{(i + 0.5) * cell:.1f}">{text(label, 24)}</text>' for i, label in enumerate(names)
    )
    columns = "".join(
        f'<text transform="translate({(i + 0.5) * cell:.1f} -8) rotate(-45)">{text(label, 24)}</text>'
        for i, label in enumerate(names)
    )
    return f'<g class="names">{rows}{columns}</g>'


def _numbers(counts: Ints, totals: Ints, cell: float) -> str:
    levels = _level(counts, totals)
    found = "".join(
        f'<text{" class=on" if levels[r, c] > 5 else ""} x="{(c + 0.5) * cell:.1f}" y="{(r + 0.5) * cell:.1f}">'
        f"{counts[r, c]}</text>"
        for r, c in np.argwhere(counts).tolist()
    )
    return f'<g class="numbers">{found}</g>'


Curves = Sequence[Mapping[str, float]]
"""Rows of a run's log."""


def learning_curves(rows: Curves, planned: int) -> str:
    """Training loss, and accuracy in training and validation, over the epochs."""
    epochs = [row["epoch"] for row in rows]
    loss = [_finite(row.get("loss")) for row in rows]
    trained, top1 = ([100 * _finite(row.get(key)) for row in rows] for key in ("train_top1", "top1"))
    known = [value for value in loss if math.isfinite(value)]
    best = max(((v, -e) for e, v in zip(epochs, top1, strict=True) if math.isfinite(v)), default=None)
    mark = (-best[1], best[0], f"best: {best[0]:.1f} %, epoch {-best[1]:.0f}") if best else None
    end = max([planned, *map(int, epochs)])
    return (
        '<div class="charts">'
        + "".join(
            [
                curve("Training loss", epochs, [Line("loss", "a", loss)], end=end, most=_top(known)),
                curve(
                    "Top-1 accuracy",
                    epochs,
                    [Line("training", "b", trained), Line("validation", "a", top1)],
                    end=end,
                    most=100.0,
                    unit=" %",
                    mark=mark,
                ),
            ]
        )
        + "</div>"
    )


LOOKS = ("b", "a", "c")
"""Of runs in one chart."""


def compared_curves(runs: Mapping[str, Curves]) -> str:
    """Training loss and validation accuracy of at most three runs, by name."""
    epochs = sorted({row["epoch"] for rows in runs.values() for row in rows})

    def lines(key: str, scale: float) -> list[Line]:
        found = []
        for (title, rows), look in zip(runs.items(), LOOKS, strict=False):
            known = {row["epoch"]: scale * _finite(row.get(key)) for row in rows}
            found.append(Line(title, look, [known.get(epoch, math.nan) for epoch in epochs]))
        return found

    loss, top1, end = lines("loss", 1.0), lines("top1", 100.0), int(max(epochs, default=1))
    known = [value for line in loss for value in line.values if math.isfinite(value)]
    return (
        f'<div class="charts">{curve("Training loss", epochs, loss, end=end, most=_top(known))}'
        f"{curve('Top-1 accuracy in validation', epochs, top1, end=end, most=100.0, unit=' %')}</div>"
    )


def _top(values: Sequence[float]) -> float:
    """End of the loss's axis: one epoch that went astray must not flatten all others."""
    most = 1.08 * min(max(values), 3 * float(np.median(values))) if values else 0.0
    return most if most > 0 else 1.0


def _finite(value: float | None) -> float:
    return value if value is not None and abs(value) < 1e12 else math.nan
