"""The doctor's report as one self-contained HTML page: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from html import escape
from importlib import resources

import torch
from torchvision.io import encode_jpeg
from torchvision.transforms.v2.functional import resize

import vireo
from vireo.data.decode import read_frames
from vireo.data.doctor_report import (
    SHORT_GOP,
    ClassCount,
    Finding,
    Item,
    Report,
    duration,
    in_numbers,
    in_short,
    verdict,
)
from vireo.data.frames import read_frame_folder
from vireo.data.outputs import listed_names
from vireo.data.pool import Crash, map_in_processes
from vireo.data.sampling import Indices, segment_indices
from vireo.data.table import counted
from vireo.errors import DecodeError
from vireo.progress import printable

_STRIP = 6  # frames of a clip that are shown
_HEIGHT = 72  # of those, pixels
_GROUPS = 24  # groups of copies of which pictures are shown
_COPIES = 3  # files of a group of which pictures are shown
_ROWS = 100  # items of a finding that are listed
_CLASSES = 60  # classes that are drawn
_PICTURED = ("leak", "conflict", "duplicates", "recordings")

_STYLE = """
.verdict { border-left:5px solid var(--good); padding:14px 20px; font-size:18px; font-weight:620 }
.verdict.bad { border-color:var(--bad) }
.numbers { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:12px; margin:18px 0 }
.numbers .card { padding:12px 16px }
.numbers b { display:block; font-size:22px; font-weight:650; letter-spacing:-.02em }
.finding { background:#fff; border:1px solid var(--line); border-radius:12px; padding:14px 20px; margin:0 0 12px }
.finding h3 { font-size:16px; margin:0 0 4px }
.finding p { margin:0 0 8px; max-width:none }
.finding details { margin-top:4px }
.finding table { font-size:13.5px; margin-top:6px; width:auto }
.finding tr:last-child td { border-bottom:0 }
.finding td { text-align:left; padding:4px 28px 4px 0; vertical-align:top; overflow-wrap:anywhere }
.tag.fault { background:#fbeae6; color:var(--bad) }
.tag.warning { background:#fdf3dc; color:#8a6100 }
.copies { border-top:1px solid var(--line); padding:10px 0 2px }
.copies .frames { justify-content:flex-start; margin:3px 0 8px }
.copies .frames img { flex:none; height:72px; width:auto }
.bars { display:grid; grid-template-columns:minmax(80px,max-content) 1fr max-content; gap:3px 12px;
  align-items:center; font-size:13.5px }
.bars .label { overflow:hidden; text-overflow:ellipsis; white-space:nowrap; max-width:340px }
.bars .bar { display:flex; height:12px; background:#edf1f4; border-radius:4px; overflow:hidden }
.bars i { display:block; background:var(--accent) }
.bars i.val { background:#e0a030 }
.bars i.test { background:#6b5ca5 }
.legend i { display:inline-block; width:11px; height:11px; border-radius:3px; margin:0 5px 0 14px;
  background:var(--accent) }
.legend i:first-child { margin-left:0 }
.legend i.val { background:#e0a030 }
.legend i.test { background:#6b5ca5 }
"""


def write_page(
    report: Report,
    *,
    title: str,
    files: Sequence[str] = (),
    base: str | None = None,
    notes: Sequence[str] = (),
    workers: int = 0,
) -> str:
    """The page's HTML.

    Args:
        report: what it is about.
        title: the data's name.
        files: all files of the data; of copies among them pictures are shown.
        base: what stands before the paths that the data gives, as `ClipTable.base`.
        notes: what was left out while reading the list.
        workers: processes that decode these pictures.
    """
    strips = _strips(report, dict(zip(listed_names(files, base), files, strict=True)), workers)
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="muted">{_text(in_short(report))}<br>{_text(in_numbers(report))}</p>',
    ]
    parts.append(f'<div class="card verdict{"" if report.sound else " bad"}">{_text(verdict(report))}</div>')
    parts.append(_numbers(report))
    parts += [f'<p class="muted">Note: {_text(note)}</p>' for note in notes]
    if report.findings:
        parts.append("<h2>What was found</h2>")
        parts += [_finding(finding, strips) for finding in report.findings]
    parts.append(f"<h2>Clips per class</h2>{_classes(report.classes)}")
    parts.append(
        "<footer>Every file was decoded from beginning to end; nothing was changed. "
        + (f"Decoding costs are for {report.num_frames} frames, evenly spaced. " if report.modality == "rgb" else "")
        + f"Vireo {vireo.__version__}</footer>"
    )
    style = resources.files("vireo").joinpath("report.css").read_text("utf-8") + _STYLE
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}: data check</title><style>{style}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _text(text: str) -> str:
    return escape(printable(text))


def _code(text: str) -> str:
    """Text in which commands stand between backquotes."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", _text(text))


def _numbers(report: Report) -> str:
    s = report.summary
    unread = sum(len(f.items) for f in report.findings if f.kind in ("unreadable", "damaged"))
    cells = [
        _cell(report.clips, "clip", "" if report.files == report.clips else f" of {counted(report.files, 'file')}"),
        _cell(len(report.classes), "class"),
        _cell(unread, "file", " lost or damaged"),
    ]
    if report.modality == "rgb":
        cost = f"frames decoded for each one wanted; {s.short_cost:.1f} with groups of {SHORT_GOP}"
        cells = [*cells[:2], (duration(s.seconds), "of video"), *cells[2:], (f"{s.cost:.1f}", cost)]
    return (
        '<div class="numbers">'
        + "".join(
            f'<div class="card"><b>{_text(n)}</b><span class="muted">{_text(what)}</span></div>' for n, what in cells
        )
        + "</div>"
    )


def _cell(n: int, thing: str, rest: str = "") -> tuple[str, str]:
    number, words = counted(n, thing).split(" ", 1)
    return number, words + rest


_WORDS = {"fault": "must be mended", "warning": "worth a look", "note": "good to know"}


def _finding(finding: Finding, strips: dict[str, tuple[bytes, ...]]) -> str:
    pictured = [item for item in finding.items if any(path in strips for path in item.paths)][:_GROUPS]
    if finding.kind not in _PICTURED:
        pictured = []
    groups = "".join(_copies(item, strips) for item in pictured)
    rest = [item for item in finding.items if item not in pictured]
    listed = "".join(_row(item) for item in rest[:_ROWS])
    more = (
        f'<p class="muted">… and {len(rest) - _ROWS:,} more; the JSON file beside this page has them all.</p>'
        if len(rest) > _ROWS
        else ""
    )
    table = f"<table>{listed}</table>{more}"
    if len(rest) > 12:
        table = (
            f"<details><summary>{'Show' if not pictured else 'Show the other'} {len(rest):,}</summary>{table}</details>"
        )
    return (
        f'<div class="finding"><h3>{_text(finding.title)}</h3>'
        f'<p><span class="tag {finding.severity}">{_WORDS[finding.severity]}</span>'
        f'<span class="muted">{_code(finding.remedy)}</span></p>{groups}{table if rest else ""}</div>'
    )


def _row(item: Item) -> str:
    names = "<br>".join(_named(item))
    return (
        f"<tr><td>{names}</td><td>{_text(item.detail)}</td></tr>"
        if names
        else f"<tr><td>{_text(item.detail)}</td></tr>"
    )


def _named(item: Item) -> list[str]:
    notes = item.notes or ("",) * len(item.paths)
    return [
        _text(path) + (f' <span class="muted">{_text(note)}</span>' if note else "")
        for path, note in zip(item.paths, notes, strict=True)
    ]


def _copies(item: Item, strips: dict[str, tuple[bytes, ...]]) -> str:
    rows = []
    for path, name in list(zip(item.paths, _named(item), strict=True))[:_COPIES]:
        images = "".join(
            f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
            for jpeg in strips.get(path, ())
        )
        rows.append(f'{name}<div class="frames">{images}</div>')
    left = len(item.paths) - _COPIES
    more = f'<p class="muted">and {left:,} more</p>' if left > 0 else ""
    return f'<div class="copies"><span class="tag">{_text(item.detail)}</span>{"".join(rows)}{more}</div>'


def _classes(classes: Sequence[ClassCount]) -> str:
    largest = max((row.clips for row in classes), default=0)
    shown = sorted(classes, key=lambda row: -row.clips)
    half = _CLASSES // 2
    rows = shown if len(shown) <= _CLASSES else [*shown[:half], None, *shown[-half:]]
    cells = []
    for row in rows:
        if row is None:
            cells.append(f'<span class="muted">… {len(shown) - 2 * half:,} classes …</span><span></span><span></span>')
            continue
        parts = zip(("train", "val", "test"), row.splits, strict=True) if row.splits else [("all", row.clips)]
        bar = "".join(
            f'<i class="{name}" style="width:{100 * n / max(1, largest):.2f}%"></i>' for name, n in parts if n
        )
        cells.append(
            f'<span class="label">{_text(row.label)}</span><span class="bar">{bar}</span><span>{row.clips:,}</span>'
        )
    legend = ""
    if any(row.splits for row in classes):
        legend = '<p class="muted legend"><i></i>train<i class="val"></i>val<i class="test"></i>test</p>'
    return f'<div class="card">{legend}<div class="bars">{"".join(cells)}</div></div>'


def _strips(report: Report, by_name: dict[str, str], workers: int) -> dict[str, tuple[bytes, ...]]:
    """A few frames as JPEG of each file that is shown, by the name it is shown with."""
    if report.modality == "flow":  # pictures of which say little
        return {}
    wanted: dict[str, None] = {}
    for finding in report.findings:
        if finding.kind in _PICTURED:
            for item in finding.items[:_GROUPS]:
                wanted.update(dict.fromkeys(item.paths[:_COPIES]))
    if not wanted:
        return {}
    names = [name for name in wanted if name in by_name][: _GROUPS * _COPIES]
    strips = {}
    for k, strip in map_in_processes(_strip, [by_name[name] for name in names], workers=workers, timeout=60.0):
        if not isinstance(strip, Crash):  # no picture is no fault here
            strips[names[k]] = strip
    return strips


def _strip(path: str) -> tuple[bytes, ...]:
    def plan(frame_count: int) -> Indices:
        return segment_indices(frame_count, _STRIP)

    try:
        frames = read_frame_folder(path, plan) if os.path.isdir(path) else read_frames(path, plan)
    except DecodeError:
        return ()
    height, width = frames.data.shape[-2:]
    small = resize(frames.data, [_HEIGHT, min(4 * _HEIGHT, max(8, round(width * _HEIGHT / height)))], antialias=True)
    return tuple(bytes(encode_jpeg(frame.contiguous().to(torch.uint8), quality=80).numpy()) for frame in small)
