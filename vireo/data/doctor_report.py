"""What the dataset doctor says, and how it is printed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.text import Text

from vireo.data.table import SPLITS, counted
from vireo.progress import printable

Severity = Literal["fault", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")
SHOWN = 10
"""Items of a finding that are printed."""
SHORT_GOP = 12
"""Frames in a group of pictures that `vireo data optimize` writes by default."""


class Item(NamedTuple):
    """One thing that a finding is about."""

    paths: tuple[str, ...]
    """The files; () = none, as of a label."""
    notes: tuple[str, ...]
    """What is to be said of each file, e.g. its split and label; () = nothing."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of trouble, and everything that has it."""

    kind: str
    """A short name that stays the same: unreadable, damaged, leak, …"""
    severity: Severity
    title: str
    """What was found, with the number, one line."""
    remedy: str
    """What to do, one or two sentences."""
    items: tuple[Item, ...]


class ClassCount(NamedTuple):
    """Clips of one class."""

    label: str
    clips: int
    splits: tuple[int, ...]
    """Clips in train, val and test; () where the data names no splits."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the data is, over the files that could be read."""

    seconds: float
    """Of all files together; frame folders have no time stamps and count nothing."""
    bytes: int
    frames: tuple[int, int, int]
    """Fewest, median and most frames of a file; (0, 0, 0) where no file could be read."""
    sizes: tuple[tuple[str, int], ...]
    """Picture sizes, as shown, and how many files have them, most frequent first."""
    codecs: tuple[tuple[str, int], ...]
    rates: tuple[tuple[str, int], ...]
    """Frame rates, 1/s, rounded."""
    cost: float
    """Frames decoded for each frame wanted, mean over the files."""
    short_cost: float
    """The same if all groups of pictures had `SHORT_GOP` frames."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor says of a data set."""

    clips: int
    files: int
    classes: tuple[ClassCount, ...]
    summary: Summary
    findings: tuple[Finding, ...]
    """Faults first, then warnings, then notes."""
    num_frames: int
    """T, frames per clip that the check was made for."""
    modality: str = "rgb"
    """rgb or flow, what the clips are."""

    @property
    def sound(self) -> bool:
        """Whether nothing must be mended."""
        return self.count("fault") == 0

    def count(self, severity: Severity) -> int:
        """Number of findings of this kind."""
        return sum(finding.severity == severity for finding in self.findings)

    def as_dict(self, *, limit: int | None = None) -> dict[str, Any]:
        """As JSON takes it, with at most ``limit`` items of each finding."""
        findings = [
            {
                "kind": f.kind,
                "severity": f.severity,
                "title": f.title,
                "remedy": f.remedy,
                "count": len(f.items),
                "items": [item._asdict() for item in f.items[:limit]],
            }
            for f in self.findings
        ]
        return {
            "sound": self.sound,
            "clips": self.clips,
            "files": self.files,
            "num_frames": self.num_frames,
            "modality": self.modality,
            "summary": vars(self.summary),
            "findings": findings,
            "classes": [row._asdict() for row in self.classes],
        }


_MARKS: dict[Severity, tuple[str, str]] = {
    "fault": ("✗", "bold red"),
    "warning": ("!", "bold yellow"),
    "note": ("·", "dim"),
}


def print_report(report: Report, console: Console, *, title: str, notes: Sequence[str] = ()) -> None:
    """Print what the doctor says, at most ten items of each finding."""
    console.print(Text.assemble((printable(title), "bold"), "  ", in_short(report)), soft_wrap=True)
    console.print(Text(in_numbers(report), "dim"), soft_wrap=True)
    for note in notes:
        console.print(Text(f"note: {printable(note)}", "yellow"), soft_wrap=True)
    for finding in report.findings:
        mark, style = _MARKS[finding.severity]
        console.print(Text.assemble("\n", (mark, style), " ", (printable(finding.title), "bold")), soft_wrap=True)
        limit = 3 if finding.severity == "note" else SHOWN
        for item in finding.items[:limit]:
            console.print(Text(f"    {item_line(item)}"), soft_wrap=True)
        if len(finding.items) > limit:
            console.print(Text(f"    … and {len(finding.items) - limit:,} more", "dim"))
        remedy = textwrap.wrap(finding.remedy, max(30, console.width - 6))
        console.print(Text("  → " + "\n    ".join(remedy), "dim"), soft_wrap=True)
    style = "bold green" if report.sound else "bold red"
    console.print(Text.assemble("\n", (verdict(report), style)))


def verdict(report: Report) -> str:
    """The doctor's verdict in a sentence."""
    faults, warnings = report.count("fault"), report.count("warning")
    look = f"{counted(warnings, 'thing')} worth a look" if warnings else "nothing else to look at"
    if report.sound:
        return f"Sound: nothing must be mended, {look}."
    return f"Not sound: {counted(faults, 'thing')} must be mended before training, {look}."


def in_short(report: Report) -> str:
    """Numbers of clips, classes and files, and the size of all."""
    of_flow = " of optical flow" * (report.modality == "flow")
    parts = [counted(report.clips, "clip") + of_flow, f"in {counted(len(report.classes), 'class')}"]
    if report.files != report.clips:
        parts.append(f"of {counted(report.files, 'file')}")
    splits = [sum(row.splits[i] for row in report.classes if row.splits) for i in range(len(SPLITS))]
    named = ", ".join(f"{n:,} {split}" for n, split in zip(splits, SPLITS, strict=True) if n)
    return " ".join(parts) + (f" ({named})" if named else ", no splits named")


def in_numbers(report: Report) -> str:
    """Length, size, pictures, rates and codecs."""
    s = report.summary
    few, median, most = s.frames
    parts = [
        duration(s.seconds) if s.seconds else "",
        f"{s.bytes / 1e6:,.1f} MB" if s.bytes < 1e9 else f"{s.bytes / 1e9:,.1f} GB",
        f"{few:,} to {most:,} {'fields' if report.modality == 'flow' else 'frames'} (median {median:,})",
        _most(s.sizes, "sizes"),
        _most(s.rates, "rates", " fps"),
        _most(s.codecs, "codecs"),
    ]
    return " · ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _most(values: tuple[tuple[str, int], ...], what: str, unit: str = "") -> str:
    if not values:
        return ""
    return (
        values[0][0]
        + unit
        + (
            f" and {len(values) - 1} other {what}"
            if len(values) > 2
            else f", {values[1][0]}{unit}"
            if len(values) == 2
            else ""
        )
    )


def item_line(item: Item, limit: int = 4) -> str:
    """One line of text for an item."""
    notes = item.notes or ("",) * len(item.paths)
    paths = [f"{path} ({note})" if note else path for path, note in zip(item.paths, notes, strict=True)]
    shown = " = ".join(paths[:limit]) + (f" = … {len(paths) - limit} more" if len(paths) > limit else "")
    return printable(f"{shown}: {item.detail}" if shown else item.detail)
