"""Figures. Each function draws one picture and writes it as PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vireo.errors import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PAPER, ACCENT, MUTED = "#1d2733", "#ffffff", "#0f7b8a", "#8a96a3"


def _figure(width: float, height: float) -> Figure:
    # The object interface, not pyplot: no global state, no display, safe in worker threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # labels in scripts that the font lacks: boxes in the picture say so
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def shorten(text: str, length: int = 24) -> str:
    """The text cut to `length` characters, with an ellipsis where something is missing."""
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
    figure = _figure(side + 0.9, side)
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
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_color("#d5dbe1")
    if title:
        axes.set_title(title, fontsize=10, color=INK, parse_math=False)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"], fontsize=8)
    bar.outline.set_visible(False)
    return _png(figure)


def curves_png(runs: Mapping[str, Mapping[str, Sequence[float]]], *, epochs: int) -> bytes:
    """Learning curves as PNG: training loss on the left, validation accuracy on the right.

    Args:
        runs: name → {"epoch": [...], "loss": [...], "top1": [...]} with accuracy in [0, 1]; an
            epoch without validation holds nan.
        epochs: end of the x axis.
    """
    figure = _figure(8.4, 2.9)
    loss, accuracy = figure.subplots(1, 2)
    for number, (name, run) in enumerate(runs.items()):
        colour = (ACCENT, "#d0603a", "#6b5ca5", "#5a8f3c")[number % 4]
        epoch, top1 = np.asarray(run["epoch"], float), np.asarray(run["top1"], float)
        loss.plot(epoch, run["loss"], color=colour, label=name, linewidth=1.8)
        seen = ~np.isnan(top1)
        accuracy.plot(epoch[seen], 100 * top1[seen], color=colour, label=name, linewidth=1.8)
    for axes, title in ((loss, "training loss"), (accuracy, "validation top-1, %")):
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        axes.set_xlabel("epoch", fontsize=8, color=MUTED)
        axes.set_xlim(1, max(epochs, 2))
        axes.tick_params(labelsize=8, colors=MUTED)
        axes.grid(color="#e8ecf0", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#d5dbe1")
    accuracy.set_ylim(0, 102)
    if len(runs) > 1:
        for text in accuracy.legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)
    return _png(figure)


def write_png(path: Path, png: bytes) -> Path:
    """Write a picture; returns its path.

    Raises:
        StorageError: it could not be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    return path
