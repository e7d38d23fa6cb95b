"""Pictures of clips below each other: a few frames side by side, and what is said of the clip."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from vireo.config import ViewConfig
from vireo.data.dataset import ClipDataset, EpochBatches
from vireo.data.loader import make_loader
from vireo.data.table import ClipTable
from vireo.explain.pictures import Sheet, UInt8, frames_of
from vireo.plots import ACCENT, INK, MUTED, shorten

_SIDE = 144  # of the frames, pixels: what a row's height shows
_MARGIN, _CELL, _GAP = 0.22, 0.95, 0.05  # inches
_TITLE, _HEADING, _BETWEEN = 0.22, 0.42, 0.2
_LETTERS, _LETTER = 80, 0.065  # of a name, longer ones are cut; inches of one, in an answer
_RIGHT, _WRONG = "#bfe0e4", "#e6eaee"  # pale enough for text on them


class Answer(NamedTuple):
    """A class that a model thinks of."""

    label: str
    probability: float
    right: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Strip:
    """A clip in a picture."""

    title: str
    frames: UInt8 | None
    """(T, H, W, 3); None: they could not be read."""
    about: str = ""
    """Behind the title."""
    colour: str = MUTED
    """Of what is behind the title."""
    answers: tuple[tuple[Answer, ...], ...] = ()
    """A column per model, the most probable class first."""
    heading: str = ""
    """Above this clip and those that follow."""


def clip_frames(
    table: ClipTable, *, frames: int = 4, modality: str = "rgb", workers: int = 1, timeout: float = 60.0
) -> list[UInt8 | None]:
    """A few frames of every clip, evenly spread, whole and small; None where it can't be read.

    Args:
        table: the clips.
        frames: of each.
        modality: rgb or flow, what clips are.
        workers: processes that decode, so that a file may crash a decoder; 0 = none but this one.
        timeout: seconds after which such a process is taken for stuck; 0 = none.

    Returns:
        One (frames, H, W, 3) uint8 array per clip.
    """
    view = ViewConfig(size=_SIDE, short_side=_SIDE)
    fields = 1 if modality == "flow" else 0
    dataset = ClipDataset(table, view, frames, views="full", flow_fields=fields)
    batches = EpochBatches(len(table), batch_size=1, shuffle=False, seed=0)
    found: list[UInt8 | None] = [None] * len(table)
    with closing(make_loader(dataset, batches, workers if len(table) else 0, timeout=timeout)) as loader:
        for batch in loader:
            for clip, index in zip(batch.clips, batch.indices.tolist(), strict=True):
                found[index] = frames_of(clip)
    return found


def strips_png(title: str, strips: Sequence[Strip], *, models: Sequence[str] = (), notes: Sequence[str] = ()) -> bytes:
    """Clips below each other.

    Args:
        title: of the picture.
        strips: at least one.
        models: names above the columns of answers.
        notes: lines below all.
    """
    cells = [_cells(strip) for strip in strips]
    wide = max(len(widths) * _GAP + sum(widths) for widths in cells)
    columns = max(len(strip.answers) for strip in strips)
    labels = [len(answer.label) for strip in strips for answers in strip.answers for answer in answers]
    column = 0.75 + _LETTER * min(60, max(30, *labels, 0))
    longest = max(len(shorten(strip.title, _LETTERS)) + len(shorten(strip.about, _LETTERS)) for strip in strips)
    width = 2 * _MARGIN + max(wide + columns * (column + 0.25), 0.3 + 0.072 * longest, 4.0)
    header, foot = 0.55 + 0.22 * bool(models), 0.16 * len(notes) + 0.2
    body = sum(_TITLE + _CELL + _BETWEEN + _HEADING * bool(strip.heading) for strip in strips)
    sheet = Sheet(width, header + body + foot)
    sheet.text(_MARGIN, _MARGIN, shorten(title, int(width * 8)), fontsize=11, weight="bold")
    for i, name in enumerate(models):
        at = _MARGIN + wide + 0.25 + i * (column + 0.25)
        sheet.text(at, _MARGIN + 0.27, shorten(name, int(column * 13)), fontsize=8.5, weight="bold")
    top = header
    for strip, widths in zip(strips, cells, strict=True):
        if strip.heading:
            sheet.text(_MARGIN, top + 0.08, strip.heading, fontsize=10, weight="bold", color=ACCENT)
            top += _HEADING
        _draw(sheet, top, strip, widths)
        for i, answers in enumerate(strip.answers):
            _answers(sheet, _MARGIN + wide + 0.25 + i * (column + 0.25), top + _TITLE, column, answers)
        top += _TITLE + _CELL + _BETWEEN
    for i, note in enumerate(notes):
        sheet.text(_MARGIN, top + 0.16 * i, note, fontsize=7.5, color=MUTED)
    return sheet.png()


def _cells(strip: Strip) -> list[float]:
    """Widths of a clip's frames, inches; very wide ones are drawn smaller."""
    if strip.frames is None:
        return [4 * _CELL]
    count, height, width, _ = strip.frames.shape
    return [_CELL * min(1.8, max(0.4, width / height))] * count


def _draw(sheet: Sheet, top: float, strip: Strip, widths: Sequence[float]) -> None:
    end = sheet.text(_MARGIN, top, shorten(strip.title, _LETTERS), fontsize=8.5)
    sheet.text(end + 0.12, top, shorten(strip.about, _LETTERS), fontsize=8.5, color=strip.colour)
    top += _TITLE
    left = _MARGIN
    if strip.frames is None:
        sheet.text(left, top + _CELL / 2, "could not be read", color=MUTED, va="center")
    else:
        for frame, width in zip(strip.frames, widths, strict=True):
            sheet.picture(left, top, width, _CELL, frame).set_aspect("equal")
            left += width + _GAP


def _answers(sheet: Sheet, left: float, top: float, width: float, answers: Sequence[Answer]) -> None:
    """Bars as long as the probabilities, the right class in colour."""
    step = _CELL / 3
    axes = sheet.axes(left, top, width, step * len(answers))
    places = range(len(answers))
    axes.barh(places, [a.probability for a in answers], 0.84, color=[_RIGHT if a.right else _WRONG for a in answers])
    axes.set_xlim(0, 1)
    axes.set_ylim(len(answers) - 0.5, -0.5)
    axes.set_axis_off()
    for i, answer in enumerate(answers):
        look: dict[str, Any] = {"fontsize": 8, "va": "center", "color": INK if answer.right or i == 0 else MUTED}
        at = top + (i + 0.5) * step
        sheet.text(left + 0.06, at, shorten(answer.label, round((width - 0.75) / _LETTER)), **look)
        sheet.text(left + width - 0.04, at, f"{100 * answer.probability:.1f} %", ha="right", **look)
