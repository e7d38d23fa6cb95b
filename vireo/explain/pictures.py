"""The pictures of `vireo explain`, as PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.utils import flow_to_image

from vireo.data.flow import BOUND
from vireo.explain.explanation import Explanation, Seen
from vireo.plots import ACCENT, COLOURS, DPI, INK, MUTED, PAPER, missing_glyphs, new_figure, shorten, to_png
from vireo.progress import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UInt8 = NDArray[np.uint8]

MOST_COLUMNS = 10  # frames beside each other; of longer clips every so-manieth is shown
AGAINST = COLOURS[1]
_MARGIN, _GUTTER, _GAP = 0.22, 1.2, 0.05  # inches
_COLD = 0.5  # of a row that says that there is no heat


# --- frames -----------------------------------------------------------------------------------------------------------


def frames_of(clip: Tensor) -> UInt8:
    """A model's input, (T, C, H, W) uint8, as pictures (T, H, W, 3): flow by the colour of its direction.

    Of a stack of flow its middle field is shown. White is no motion, the strongest motion of the clip has full colour.
    """
    if clip.shape[1] != 3:  # stacks of flow
        middle = 2 * (clip.shape[1] // 4)
        clip = flow_to_image((clip[:, middle : middle + 2].float() - 128) * (2 * BOUND / 255))
    pictures: UInt8 = clip.permute(0, 2, 3, 1).contiguous().numpy()
    return pictures


def overlay(frames: UInt8, heat: Tensor) -> UInt8:
    """Heat (T, H, W) in [0, 1] over frames (T, H, W, 3): where there is none, the frame is grey and a little dark."""
    from matplotlib import colormaps

    hot: NDArray[np.float32] = heat.numpy()[..., None]
    colours = np.asarray(colormaps["turbo"](0.15 + 0.77 * hot[..., 0]), np.float32)[..., :3]
    grey = np.dot(frames.astype(np.float32), np.array([0.299, 0.587, 0.114], np.float32))
    share = 0.75 * np.minimum(1.0, hot / 0.35) * (0.35 + 0.65 * hot)
    mixed = (1 - share) * 0.85 * grey[..., None] + share * 255 * colours
    return np.asarray(np.clip(mixed + 0.5, 0, 255), np.uint8)


# --- one sheet of paper -----------------------------------------------------------------------------------------------


class Sheet:
    """A figure on which things are put in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = new_figure(width, height)
        self._canvas: Any = self.figure.canvas  # Agg's, which has a renderer and a buffer

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """A place for a plot."""
        return self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )

    def picture(self, left: float, top: float, width: float, height: float, image: Any, **look: Any) -> Axes:
        """A picture without axes."""
        axes = self.axes(left, top, width, height)
        axes.imshow(image, aspect="auto", **look)
        axes.set_axis_off()
        return axes

    def text(self, left: float, top: float, text: str, **look: Any) -> float:
        """Lines of text, no formula, whatever signs are in them; returns where they end on the right."""
        given: dict[str, Any] = {"color": INK, "fontsize": 9, "va": "top", "parse_math": False, **look}
        lines = "\n".join(printable(line) for line in text.split("\n"))
        written = self.figure.text(left / self.width, 1 - top / self.height, lines, **given)
        with missing_glyphs():
            return float(written.get_window_extent(self._canvas.get_renderer()).x1) / DPI

    def png(self) -> bytes:
        """As a PNG file."""
        return to_png(self.figure)

    def pixels(self) -> UInt8:
        """As a picture (H, W, 3)."""
        with missing_glyphs():
            self._canvas.draw()
        rgba: UInt8 = np.asarray(self._canvas.buffer_rgba())
        return np.ascontiguousarray(rgba[..., :3])


def _plain(axes: Axes) -> None:
    """The look of a small plot."""
    axes.tick_params(labelsize=7, colors=MUTED, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d5dbe1")


def answer(explanation: Explanation, length: int) -> str:
    """The most probable classes in a line, as many as fit into so many characters."""
    line = ""
    for label, p in explanation.prediction.top:
        more = f"{shorten(label, 40)} {100 * p:.1f} %"
        if line and len(line) + 5 + len(more) > length:
            break
        line += f"  ·  {more}" if line else more
    return line


# --- the strip --------------------------------------------------------------------------------------------------------


def strip_png(name: str, explanation: Explanation, against: Explanation | None = None) -> bytes:
    """Frames, heat below them, and what each frame is worth as bars; of two models if there are two.

    Args:
        name: of the video.
        explanation: with heat, drops or both.
        against: of another model, which may see other frames of another size.
    """
    both = [explanation, *([against] if against else [])]
    columns = chosen(len(explanation.seen.clip))
    count = len(columns)
    cell = min(1.45, max(0.9, 11.6 / count))
    low = all(e.drops is None or float(e.drops.abs().max()) < 0.02 for e in both)  # nothing to see
    bars = 0.36 if low else 0.72
    heats = [_COLD if e.is_cold else cell if e.heat is not None else -_GAP for e in both]
    width = max(2 * _MARGIN + _GUTTER + count * (cell + _GAP), 7.0)
    notes = [part for note in _notes(both) for part in textwrap.wrap(note, int((width - 2 * _MARGIN) / 0.068))]
    header, foot = 0.52 + 0.24 * len(both), 0.24 + 0.16 * len(notes)
    height = header + cell + 0.24 + sum(h + _GAP for h in heats) + foot
    height += sum(bars + 0.14 for e in both if e.drops is not None)
    sheet = Sheet(width, height)
    _header(sheet, name, both)
    top = header
    left = _MARGIN + _GUTTER
    shown = frames_of(explanation.seen.clip)
    _row_title(sheet, top, cell, "what the\nmodel sees" if len(both) == 1 else "the clip")
    for column, t in enumerate(columns):
        at = left + column * (cell + _GAP)
        sheet.picture(at, top, cell, cell, shown[t])
        sheet.text(at + cell / 2, top + cell + 0.05, _place(explanation, t), ha="center", fontsize=7, color=MUTED)
    top += cell + 0.24
    for e, colour, tall in zip(both, (ACCENT, AGAINST), heats, strict=False):
        own = [
            min(len(e.seen.clip) - 1, int((t + 0.5) * len(e.seen.clip) / len(explanation.seen.clip))) for t in columns
        ]
        if e.heat is not None:
            _row_title(sheet, top, tall, _words(e.model), colour)
            if e.is_cold:
                told = f"no heat: nothing in this layer speaks for “{shorten(e.target, 40)}”"
                sheet.text(left + 0.05, top + tall / 2, told, va="center", color=MUTED)
            else:
                hot = overlay(frames_of(e.seen.clip), e.heat)
                for column, t in enumerate(own):
                    sheet.picture(left + column * (cell + _GAP), top, cell, cell, hot[t])
            top += tall + _GAP
        if e.drops is not None:
            axes = sheet.axes(left, top + 0.04, count * (cell + _GAP) - _GAP, bars)
            _bars(axes, e.drops, colour)
            _row_title(sheet, top, bars, "lost without\nthe frame", MUTED if e.heat is not None else colour)
            top += bars + 0.14
    _footer(sheet, top + 0.08, notes)
    return sheet.png()


def chosen(frames: int, most: int = MOST_COLUMNS) -> list[int]:
    """Which of T frames are shown: all, or the middle ones of so many equal parts."""
    count = min(frames, most)
    return [(2 * i + 1) * frames // (2 * count) for i in range(count)]


def _place(explanation: Explanation, t: int) -> str:
    return f"{explanation.seen.positions[t] + 1}"


def _words(model: str) -> str:
    """The model's name on lines of its own."""
    return "\n".join(shorten(part, 20) for part in model.replace(" on ", "\non ").replace(" (", "\n(").split("\n"))


def _header(sheet: Sheet, name: str, both: Sequence[Explanation]) -> None:
    sheet.text(_MARGIN, _MARGIN, shorten(name, 100), fontsize=11, weight="bold")
    ends = []
    for i, (e, colour) in enumerate(zip(both, (ACCENT, AGAINST), strict=False)):
        at = _MARGIN + 0.27 + 0.24 * i
        ends.append(sheet.text(_MARGIN, at, shorten(e.model, 60), color=colour, weight="bold"))
    for i, e in enumerate(both):
        left = max(ends) + 0.25
        line = answer(e, int((sheet.width - _MARGIN - left) / 0.075))  # about what a letter takes, inches
        sheet.text(left, _MARGIN + 0.27 + 0.24 * i, line)


def _notes(both: Sequence[Explanation]) -> list[str]:
    first = both[0]
    same = all(e.target == first.target for e in both)
    targets = " and ".join(dict.fromkeys(f"“{shorten(e.target, 40)}”" for e in both))
    chances = [e.probability for e in both]
    asked = any(e.target != e.prediction.label for e in both)
    sure = f" ({' and '.join(f'{100 * p:.1f} %' for p in chances)})" if asked else ""
    order = "" if same or len(both) == 1 else ", in this order"
    notes = []
    if any(e.heat is not None for e in both):
        one = " The strongest is red, however little it is." if min(chances) < 0.1 else ""
        notes.append(f"Heat: {first.method}, what speaks for {targets}{sure}{order}.{one}")
    notes += [f"No heat: {reason}." for reason in dict.fromkeys(e.no_heat for e in both) if reason]
    if any(e.drops is not None for e in both):
        drops = [e.drops for e in both if e.drops is not None]
        plain = all(float(d.max()) < 0.01 for d in drops)
        notes.append(
            f"Bars: how many points of its probability {targets} loses when a frame is replaced by "
            + ("its neighbours." if len(drops[0]) > 1 else "grey.")
            + (" Here no single frame is needed." if plain and min(chances) > 0.1 else "")
            + (" There is next to nothing to lose." if max(chances) < 0.01 else "")
        )
    notes[-1] += f" {_numbers(first.seen)}"
    return notes


def _numbers(seen: Seen) -> str:
    """What the numbers below frames are."""
    if seen.is_flow:
        return (
            f"Numbers: which of the clip's {seen.frame_count} stacks of flow; of each the middle field is shown, its "
            "direction as colour, no motion white."
        )
    return f"Numbers: which of the video's {seen.frame_count} frames."


def _footer(sheet: Sheet, top: float, lines: Sequence[str]) -> None:
    for i, line in enumerate(lines):
        sheet.text(_MARGIN, top + 0.16 * i, line, fontsize=7.5, color=MUTED)


def _row_title(sheet: Sheet, top: float, height: float, text: str, colour: str = MUTED) -> None:
    look: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8, "linespacing": 1.35}
    sheet.text(_MARGIN + _GUTTER - 0.1, top + height / 2, text, color=colour, **look)


def _bars(axes: Axes, drops: Tensor, colour: str) -> None:
    """A bar per frame, in points of probability."""
    points = 100 * drops.numpy()
    count = len(points)
    reach = max(10.0, float(np.abs(points).max()))  # of less, little is to be seen
    low = float(min(0.0, points.min()))
    axes.bar(range(count), points, width=0.62, color=[colour if p >= 0 else "#c9d0d7" for p in points])
    axes.axhline(0, color="#d5dbe1", linewidth=0.8)
    axes.set_xlim(-0.5, count - 0.5)
    high = max(float(points.max()), reach + low)
    axes.set_ylim(low - 0.28 * reach * (low < -0.5), high + 0.28 * reach)
    axes.set_axis_off()
    if count <= 32:
        for t, p in enumerate(points):
            up = p > -0.5
            look: dict[str, Any] = {"fontsize": 7, "ha": "center", "va": "bottom" if up else "top"}
            axes.text(t, max(p, 0.0) if up else p, f"{abs(round(p)):d}" if up else f"−{-p:.0f}", color=INK, **look)


# --- key points -------------------------------------------------------------------------------------------------------


def keypoints_png(name: str, explanation: Explanation, *, points: int = 2) -> bytes:
    """KPSEM's key points as crosses and their shifts as arrows, one colour per region (Cao et al., Fig. 10).

    Of the G sets the one whose regions are the most equal is drawn; of a region's C channels those whose shifts lead
    to key points of the next frame (where eq. 9 is undecided, they lead between them): of the eighth for which
    they do so best, those whose embedded shifts (eq. 12) add up to the longest way.

    Args:
        name: of the video.
        explanation: with KPSEM's visuals.
        points: channels per region.
    """
    visuals = {key.rpartition(".")[2]: value for key, value in explanation.visuals.items()}
    drawn = choose_points(visuals, points)
    columns = chosen(len(explanation.seen.clip), 8)
    cell, per_row = 2.3, min(4, len(columns))
    rows = -(-len(columns) // per_row)
    width = 2 * _MARGIN + per_row * (cell + _GAP)
    lines = textwrap.wrap(
        "Crosses: where channels have their maximum in a region (a colour per region). Arrows: where it moves to by "
        f"the next frame seen. Dotted: the regions' borders. {_numbers(explanation.seen)}",
        int((width - 2 * _MARGIN) / 0.068),
    )
    header, foot = 0.76, 0.18 + 0.16 * len(lines)
    sheet = Sheet(width, header + rows * (cell + 0.24) + foot)
    _header(sheet, name, [explanation])
    frames = frames_of(explanation.seen.clip)
    shifts = drawn["shifts"]
    side = frames.shape[1]
    times = drawn["key_points"].shape[0]
    for i, t in enumerate(columns):
        left, top = _MARGIN + i % per_row * (cell + _GAP), header + i // per_row * (cell + 0.24)
        axes = sheet.picture(left, top, cell, cell, _paler(frames[t]), interpolation="bilinear")
        sheet.text(left + cell / 2, top + cell + 0.05, _place(explanation, t), ha="center", fontsize=7, color=MUTED)
        at = t * times // len(frames)
        _borders(axes, drawn["centre"][at], side, round(len(drawn["key_points"][at]) ** 0.5))
        _crosses(axes, drawn["key_points"][at], shifts[at] if at < len(shifts) else None, side)
    _footer(sheet, header + rows * (cell + 0.24) + 0.08, lines)
    return sheet.png()


def _paler(frame: UInt8) -> UInt8:
    return np.asarray(255 - (255 - frame.astype(np.float32)) * 0.75, dtype=np.uint8)


def choose_points(visuals: dict[str, Tensor], points: int) -> dict[str, Tensor]:
    """Of KPSEM's visuals what is drawn: key_points (T, K, points, 2), shifts (T − 1, K, points, 2), centre (T, 2)."""
    shifts, weights = visuals["shifts"], visuals["regional_weights"]
    g = int((visuals["centres"].mean(dim=0) - 0.5).norm(dim=-1).argmin())
    key_points, shifts = visuals["key_points"][:, g], shifts[:, g]  # (T, K, C, 2), (T − 1, K, C, 2)
    length = (weights[:, g].unsqueeze(-1) * shifts).mean(dim=0).norm(dim=-1)  # (K, C): what comes back cancels
    ends = key_points[:-1] + shifts
    misses = (ends.unsqueeze(2) - key_points[1:].unsqueeze(1)).norm(dim=-1).amin(dim=2).mean(dim=0)  # (K, C)
    channels = length.shape[1]
    hits = misses.topk(min(channels, max(points, channels // 8)), dim=1, largest=False).indices
    best = hits.gather(1, length.gather(1, hits).topk(min(points, channels), dim=1).indices)  # (K, points)
    k = torch.arange(len(best))[:, None]
    return {"key_points": key_points[:, k, best], "shifts": shifts[:, k, best], "centre": visuals["centres"][:, g]}


def _borders(axes: Axes, centre: Tensor, side: int, splits: int) -> None:
    """Lines between k × k regions whose grid has its middle at ``centre``."""
    for i in range(1, splits):
        x, y = ((i / splits - 0.5 + centre) * side - 0.5).tolist()
        look: dict[str, Any] = {"color": PAPER, "linewidth": 0.9, "linestyle": (0, (1.5, 2.5))}
        axes.axvline(x, **look)
        axes.axhline(y, **look)


def _crosses(axes: Axes, points: Tensor, shifts: Tensor | None, side: int) -> None:
    for k, spots in enumerate(points):
        colour = COLOURS[k % len(COLOURS)]
        x, y = (spots * side - 0.5).unbind(dim=-1)
        axes.plot(x, y, "x", color=PAPER, markersize=7.5, markeredgewidth=3)
        axes.plot(x, y, "x", color=colour, markersize=6.5, markeredgewidth=1.6)
        for i, shift in enumerate(shifts[k] if shifts is not None else ()):
            if float(shift.norm()) > 0.02:
                to = (float(x[i] + shift[0] * side), float(y[i] + shift[1] * side))
                look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", to, (float(x[i]), float(y[i])), arrowprops={**look, "mutation_scale": 8})


# --- features before and after subtraction ----------------------------------------------------------------------------


def features_png(name: str, explanation: Explanation) -> bytes:
    """TFDEM's features of each frame, and their difference to those of the frame before (Wu and Chiu, Fig. 6)."""
    visuals = {key.rpartition(".")[2]: value for key, value in explanation.visuals.items()}
    features, differences = visuals["features"], visuals["differences"]
    frames = frames_of(explanation.seen.clip)
    columns = chosen(len(frames))
    cell = min(1.45, max(0.9, 11.6 / len(columns)))
    header = 0.76
    sheet = Sheet(max(2 * _MARGIN + _GUTTER + len(columns) * (cell + _GAP), 7.0), header + 3 * (cell + 0.12) + 0.62)
    _header(sheet, name, [explanation])
    left = _MARGIN + _GUTTER
    maps = [features, differences]
    tops = [float(m[1:].max()) if len(m) > 1 else float(m.max()) for m in maps]
    for row, title in enumerate(("what the\nmodel sees", "features", "minus those\nof the frame\nbefore")):
        top = header + row * (cell + 0.12)
        _row_title(sheet, top, cell, title)
        for column, t in enumerate(columns):
            at = left + column * (cell + _GAP)
            if row == 0:
                sheet.picture(at, top, cell, cell, frames[t])
                continue
            own = t * len(features) // len(frames)
            peak = float(features.max()) if own == 0 and row == 2 else tops[row - 1]
            look = {"cmap": "magma", "vmin": 0, "vmax": max(peak, 1e-6), "interpolation": "bilinear"}
            sheet.picture(at, top, cell, cell, maps[row - 1][own].numpy(), **look)
    _footer(
        sheet,
        header + 3 * (cell + 0.12) + 0.08,
        [
            "Mean over channels of the absolute values; each row has a scale of its own. Nothing is subtracted from",
            "the first frame. What stands still is dark in the last row, what moves is bright.",
        ],
    )
    return sheet.png()


# --- gates ------------------------------------------------------------------------------------------------------------


def gates_png(name: str, explanation: Explanation) -> bytes:
    """Gates of MEM, SE, TE and TWM: one small plot per layer, channels or positions over the frames."""
    gates = {k.removesuffix(".gates"): v for k, v in explanation.visuals.items() if k.endswith(".gates")}
    per_row = min(4, len(gates))
    rows = -(-len(gates) // per_row)
    width, plot, line = 2.35, 1.15, 0.5
    header, step = 0.92, plot + line + 0.5
    sheet = Sheet(max(2 * _MARGIN + per_row * (width + 0.3), 7.0), header + rows * step + 0.5)
    _header(sheet, name, [explanation])
    for i, (path, values) in enumerate(gates.items()):
        left, top = _MARGIN + 0.25 + i % per_row * (width + 0.3), header + i // per_row * step
        sheet.text(left, top - 0.17, shorten(path, 34), fontsize=8, weight="bold")
        if values.ndim == 2:
            ordered = values[:, values.mean(dim=0).argsort(descending=True)]
            axes = sheet.axes(left, top, width, plot)
            axes.imshow(ordered.T.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
        else:
            _tiles(sheet, left, top, width, plot, values)
        _band(sheet.axes(left, top + plot + 0.04, width, line), values.flatten(1))
    spatial = any(v.ndim == 3 for v in gates.values())
    what = "positions of the frames" if spatial else "channels (rows, most open first) of the frames (columns)"
    _footer(
        sheet,
        header + rows * step - 0.05,
        [
            f"Gates of {what}: dark lets nothing pass, bright everything (0 to 1).",
            "Below: mean gate of each frame, and the band that holds 80 % of them.",
        ],
    )
    return sheet.png()


def _tiles(sheet: Sheet, left: float, top: float, width: float, height: float, values: Tensor) -> None:
    columns = chosen(len(values), 8)
    step = min(width / min(4, len(columns)), height / (1 + (len(columns) > 4)))
    for i, t in enumerate(columns):
        at = left + i % 4 * step, top + i // 4 * step
        sheet.picture(*at, step - 0.03, step - 0.03, values[t].numpy(), cmap="viridis", vmin=0, vmax=1)


def _band(axes: Axes, values: Tensor) -> None:
    """Mean and the middle 80 % of (T, M) gates over the frames."""
    times = np.arange(len(values))
    low, high = (torch.quantile(values, q, dim=1).numpy() for q in (0.1, 0.9))
    axes.fill_between(times, low, high, color=ACCENT, alpha=0.18, linewidth=0)
    axes.plot(times, values.mean(dim=1).numpy(), color=ACCENT, linewidth=1.5, marker="o", markersize=2.5)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0, 1])
    axes.set_xticks([])
    _plain(axes)
