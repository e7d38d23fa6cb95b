"""Figures. Each function draws one picture and writes it as PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vireo.errors import writing
from vireo.files import replacing
from vireo.progress import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PAPER, ACCENT, MUTED = "#1d2733", "#ffffff", "#0f7b8a", "#667380"
DPI = 130
"""Pixels per inch of every picture."""


def new_figure(width: float, height: float, *, fitted: bool = False) -> Figure:
    """An empty figure; sides in inches. A fitted one makes room for its texts by itself."""
    # The object interface, not pyplot: no global state, no display, safe in worker threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Inches at the edges, and no room that square axes leave: the names of axes would be pushed over the edge.
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, compress=True) if fitted else None
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    with missing_glyphs():
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


@contextmanager
def missing_glyphs() -> Iterator[None]:
    """No warnings of labels in scripts that the font lacks: boxes in the picture say so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def shorten(text: str, length: int = 24) -> str:
    """The text, printable, cut to `length` characters, with an ellipsis where something is missing."""
    text = printable(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def confusion_png(confusion: NDArray[np.int64], labels: Sequence[str], title: str = "") -> bytes:
    """Confusion matrix as PNG: rows are true classes and sum to 100 %, columns are predictions.

    Args:
        confusion: (K, K) counts, true class first.
        labels: K names. Beyond 40 classes names and numbers are left out, since nobody could read them.
        title: a line above the matrix.
    """
    count = len(labels)
    side = min(max(3.6, 1.6 + 0.42 * count), 12.0)
    figure = new_figure(side + 0.9, side, fitted=True)
    axes = figure.add_subplot()
    totals = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    image = axes.imshow(share, cmap="GnBu", vmin=0, vmax=1)
    if count <= 40:
        names = [shorten(label) for label in labels]
        plain: dict[str, Any] = {"fontsize": 8, "parse_math": False}  # a label with two dollar signs is no formula
        axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor", **plain)
        axes.set_yticks(range(count), names, **plain)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            axes.text(
                column,
                row,
                str(confusion[row, column]),
                ha="center",
                va="center",
                fontsize=8 if count <= 20 else 5,
                color=PAPER if share[row, column] > 0.55 else INK,
            )
    axes.set_xlabel("predicted", color=MUTED, fontsize=9)
    axes.set_ylabel("true", color=MUTED, fontsize=9)
    axes.tick_params(length=0, colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color("#d5dbe1")
    if title:
        axes.set_title(title, fontsize=10, color=INK, parse_math=False)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, aspect=20 if count <= 12 else 40)
    bar.ax.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"], fontsize=8)
    bar.ax.tick_params(length=0, colors=MUTED)
    bar.outline.set_visible(False)
    return to_png(figure)


COLOURS = (
    *(ACCENT, "#d0603a", "#6b5ca5", "#5a8f3c", "#c2478a", "#2f6fb5"),
    *("#b8860b", "#7a4a2b", "#1f9e89", "#a23b3b", "#4a4f8f", "#8aa51f"),
)
"""For lines: a dozen that can be told apart; more would only seem to be."""

Rows = Sequence[Mapping[str, float]]
"""Of a run's log: one mapping per epoch, with epoch, loss, and train_top1 and top1 in [0, 1]; nan: not measured."""


def run_png(rows: Rows, *, epochs: int) -> bytes:
    """How one run went, as PNG: training loss on the left, accuracy in training and validation on the right.

    Args:
        rows: of its log; there may be none.
        epochs: end of the x axis.
    """
    figure = new_figure(8.4, 2.9)  # a run draws this again and again; a fixed place for all costs a third less
    loss, accuracy = figure.subplots(
        1, 2, gridspec_kw={"left": 0.055, "right": 0.985, "bottom": 0.15, "top": 0.91, "wspace": 0.13}
    )
    _line(loss, rows, "loss", color=ACCENT, linewidth=1.8)
    _line(accuracy, rows, "train_top1", percent=True, color=MUTED, linewidth=1.4, label="training")
    _line(accuracy, rows, "top1", percent=True, color=ACCENT, linewidth=1.8, label="validation")
    top1 = 100 * _column(rows, "top1")
    if not np.isnan(top1).all():
        best = int(np.nanargmax(top1))
        place = rows[best]["epoch"], top1[best]
        accuracy.plot(*place, "o", color=ACCENT, markersize=5, label=f"best: {top1[best]:.1f} %")
    _style(loss, "training loss", epochs)
    _style(accuracy, "top-1, %", epochs)
    top = float(np.nanmax(_column(rows, "loss"), initial=0.0))
    loss.set_ylim(0, 1.05 * top if top > 0 else 1)
    accuracy.set_ylim(0, 102)
    if len(rows):
        accuracy.legend(frameon=False, fontsize=8, loc="best")
    return to_png(figure)


def comparison_png(runs: Mapping[str, Sequence[Rows]], *, epochs: int) -> bytes:
    """Many runs in one PNG: training loss on the left, validation top-1 on the right, their names beside it.

    Args:
        runs: name → the logs of the runs that share it and its colour, e.g. those that differ in the seed alone. The
            first dozen have a colour each, all others are grey.
        epochs: end of the x axis.
    """
    names = list(runs)
    shown, others = names[: len(COLOURS)], names[len(COLOURS) :]
    figure = new_figure(11.4, max(3.2, 0.9 + 0.21 * (len(shown) + bool(others))), fitted=True)
    loss, accuracy = figure.subplots(1, 2)
    tops: list[float] = []
    for name in reversed(names):  # the first are drawn last, on top
        colour = COLOURS[shown.index(name)] if name in shown else "#c9d0d7"
        for rows in runs[name]:
            look: dict[str, Any] = {"color": colour, "linewidth": 1.6 if name in shown else 1.0}
            _line(loss, rows, "loss", **look)
            _line(accuracy, rows, "top1", percent=True, **look)
            lost = _column(rows, "loss")
            tops += [float(np.nanmax(lost))] if not np.isnan(lost).all() else []
    _style(loss, "training loss", epochs)
    _style(accuracy, "validation top-1, %", epochs)
    # A run that went astray must not flatten all others.
    loss.set_ylim(0, 1.05 * min(max(tops), 2 * float(np.median(tops))) if tops and max(tops) > 0 else 1)
    accuracy.set_ylim(0, 102)
    handles = [_key(COLOURS[i], shorten(name, 40)) for i, name in enumerate(shown)]
    if others:
        handles.append(_key("#c9d0d7", f"{len(others)} others"))
    legend = figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name with two dollar signs is no formula
    return to_png(figure)


def _line(axes: Any, rows: Rows, name: str, *, percent: bool = False, **look: Any) -> None:
    """A value over the epochs; epochs in which it was not measured are left out, and one alone is a dot."""
    epoch, value = _column(rows, "epoch"), _column(rows, name) * (100 if percent else 1)
    seen = ~np.isnan(value)
    axes.plot(epoch[seen], value[seen], marker="o" if seen.sum() == 1 else "", markersize=3.5, **look)


def _column(rows: Rows, name: str) -> NDArray[np.float64]:
    """One value of every row; what is no finite number, or too large to draw, is nan."""
    values = np.asarray([row.get(name, np.nan) for row in rows], float)
    values[~(np.abs(values) < 1e12)] = np.nan
    return values


def _style(axes: Any, title: str, epochs: int) -> None:
    """The look of a curve over epochs."""
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("epoch", fontsize=8, color=MUTED)
    room = 0.02 * (epochs - 1) or 0.5  # or a dot in the first or last epoch would be cut in half
    axes.set_xlim(1 - room, epochs + room)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if epochs == 1:
        axes.set_xticks([1])
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.grid(color="#e8ecf0", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d5dbe1")


def _key(colour: str, name: str) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    # A name that begins with an underscore is none to matplotlib.
    return Line2D([], [], color=colour, linewidth=2, label=f" {name}" if name.startswith("_") else name)


class Change(NamedTuple):
    """What became of a class's accuracy from one model to another; accuracies in [0, 1]."""

    label: str
    before: float
    after: float
    clips: int


WORSE = COLOURS[1]


def changes_png(changes: Sequence[Change], title: str, models: tuple[str, str], note: str = "") -> bytes:
    """Classes that one model knows better or worse than another, as horizontal bars.

    Args:
        changes: at least one; from top to bottom, gains and losses.
        title: of the picture.
        models: names of the model before and the one after.
        note: a line below.
    """
    points = [100 * (change.after - change.before) for change in changes]
    names = [shorten(change.label, 60) for change in changes]
    step, top, bottom, right = 0.27, 0.86, 0.62 + 0.16 * bool(note), 1.75  # inches
    left = max(1.2, 0.35 + 0.062 * max(map(len, names)))
    height, width = top + step * len(changes) + bottom, 6.0 + left
    figure = new_figure(width, height)  # a layout that measures text makes the bars' scale depend on the names
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    axes.barh(range(len(changes)), points, 0.68, color=[ACCENT if p > 0 else WORSE for p in points], zorder=2)
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=3)
    axes.set_ylim(len(changes) - 0.5, -0.5)
    reach = max(1.0, *map(abs, points))
    low, high = min(0.0, *points), max(0.0, *points)
    axes.set_xlim(1.16 * low - 0.1 * reach * (low < 0), 1.16 * high + 0.1 * reach * (high > 0))
    plain: dict[str, Any] = {"parse_math": False, "fontsize": 8}
    axes.set_yticks(range(len(changes)), names, **plain)
    for i, (change, value) in enumerate(zip(changes, points, strict=True)):
        side: dict[str, Any] = {"ha": "left" if value > 0 else "right", "va": "center_baseline"}
        axes.text(value + (0.012 if value > 0 else -0.012) * reach, i, signed(value), fontsize=7.5, color=INK, **side)
        told = f"{100 * change.before:.0f} → {100 * change.after:.0f} %"
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center_baseline", "fontsize": 7.5}
        axes.text(1.2, i, told, ha="right", color=INK, **place)
        axes.text(1.31, i, f"{change.clips:,}", ha="right", color=MUTED, **place)
    above: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "fontsize": 7.5, "color": MUTED}
    line = 1 + 0.06 / (height - top - bottom)
    axes.text(1.2, line, "accuracy", **above)
    axes.text(1.31, line, "clips", **above)
    axes.tick_params(length=0, colors=INK)
    axes.tick_params(axis="x", labelsize=8, colors=MUTED)
    axes.grid(axis="x", color="#e8ecf0", linewidth=0.8, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#d5dbe1")
    axes.set_xlabel("points of accuracy", fontsize=8, color=MUTED)
    edge: dict[str, Any] = {"va": "top", "parse_math": False}
    figure.text(0.22 / width, 1 - 0.18 / height, title, fontsize=11, color=INK, weight="bold", **edge)
    told = f"from {shorten(models[0], 50)} to {shorten(models[1], 50)}"
    figure.text(0.22 / width, 1 - 0.43 / height, told, fontsize=8.5, color=MUTED, **edge)
    if note:
        figure.text(0.22 / width, 0.2 / height, note, fontsize=7.5, color=MUTED, va="center", parse_math=False)
    return to_png(figure)


def signed(points: float) -> str:
    """A difference with its sign: +2.5, −3.0."""
    return f"{points:+.1f}".replace("-", "−")


def map_png(
    points: NDArray[np.floating[Any]],
    classes: NDArray[np.int64],
    names: Sequence[str],
    *,
    shown: Sequence[int],
    title: str,
    axes_names: tuple[str, str] = ("", ""),
    marked: Sequence[tuple[str, float, float]] = (),
    note: str = "",
) -> bytes:
    """Clips as dots on a map, some classes in colour, all others grey.

    Args:
        points: (N, 2).
        classes: (N,) of the dots.
        names: of the classes.
        shown: classes that have a colour, at most a dozen.
        title: of the picture.
        axes_names: of the two directions; "": without a scale, as for maps on which only nearness counts.
        marked: (name, x, y) of stars.
        note: a line below.
    """
    longest = max((len(shorten(names[number], 60)) for number in shown), default=0)
    figure = new_figure(7.8 + 0.062 * max(14, longest), 5.9, fitted=True)
    axes = figure.add_subplot()
    size = float(np.clip(6000 / max(1, len(points)), 4, 34))
    look: dict[str, Any] = {"s": size, "linewidths": 0.3 if size > 10 else 0, "edgecolors": PAPER, "rasterized": True}
    others = ~np.isin(classes, list(shown))
    axes.scatter(*points[others].T, color="#c9d0d7", **look)
    # All colours in one go, in random order: of classes drawn one by one, the last would hide the others.
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(~others))
    colour_of = {number: COLOURS[i] for i, number in enumerate(shown)}
    axes.scatter(*points[drawn].T, color=[colour_of[int(number)] for number in classes[drawn]], **look)
    handles = [_dot(COLOURS[i], shorten(names[number], 60)) for i, number in enumerate(shown)]
    if others.any():
        count = len(np.unique(classes[others]))
        handles.append(_dot("#c9d0d7", f"{count} other{'s' * (count > 1)}"))
    for name, *place in marked:
        axes.plot(*place, "*", color="#ffd23f", markersize=15, markeredgecolor=INK, markeredgewidth=1.0, zorder=5)
        axes.annotate(
            shorten(name, 30),
            (place[0], place[1]),
            xytext=(8, 8),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            parse_math=False,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": PAPER, "alpha": 0.8, "edgecolor": "none"},
            zorder=6,
        )
    if any(axes_names):
        axes.set_xlabel(axes_names[0], fontsize=8, color=MUTED)
        axes.set_ylabel(axes_names[1], fontsize=8, color=MUTED)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    axes.grid(color="#eef1f4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d5dbe1")
    axes.set_title(title, fontsize=11, color=INK, loc="left", weight="bold", parse_math=False)
    legend = figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=7.5, color=MUTED, parse_math=False)
    return to_png(figure)


def _dot(colour: str, name: str) -> Any:
    """An entry of a map's legend."""
    handle = _key(colour, name)
    handle.set(linestyle="", marker="o", markersize=5)
    return handle


def write_png(path: Path, png: bytes) -> Path:
    """Write a picture whole or not at all; returns its path.

    Raises:
        StorageError: it can't be written; what was there before is intact.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.buffer.write(png)
    return path
