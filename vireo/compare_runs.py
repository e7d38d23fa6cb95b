"""`vireo compare-runs`: what differs between runs, and what came out; runs that differ in the seed alone together."""

from __future__ import annotations

import csv
import json as jsonlib
import math
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vireo.errors import writing
from vireo.files import replacing
from vireo.plots import comparison_png, shorten, write_png
from vireo.progress import make_console, printable
from vireo.run_files import RunRecord, Spread, find_runs, read_run, spread
from vireo.run_page import code

WITHOUT_EFFECT = frozenset(
    ("out", "resume", "workers", "decode_timeout", "save_every", "keep_last", "on_error", "max_failed")
)
"""Settings that do not make a run another one."""
MEMBER = "  "
"""What a group's runs are set in by, below it."""
HOW_TO_READ = (
    "best: the highest of a run's epochs, chosen on the clips it is scored on, so optimistic; last: not chosen",
    "±: sample deviation over the seeds; unfinished runs are left out of means",
)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs whose settings are equal but for the seed; often it is one run."""

    name: str
    runs: tuple[RunRecord, ...]
    """In the order of their seeds."""

    @property
    def finished(self) -> list[RunRecord]:
        """Those that count in means."""
        return [run for run in self.runs if run.finished]

    @cached_property
    def best(self) -> Spread | None:
        """Highest validation top-1 of the finished runs; None where none is."""
        return spread(run.best[1] for run in self.finished)

    @cached_property
    def last(self) -> Spread | None:
        """Validation top-1 after the last epoch of the finished runs; None where none is."""
        return spread(run.last for run in self.finished)

    @property
    def rank(self) -> tuple[bool, bool, float, str]:
        """Its place: the highest last top-1 first, then unfinished runs, then broken ones."""
        broken = all(run.fault for run in self.runs)
        tops = [run.last for run in self.runs if not math.isnan(run.last)]
        top = self.last.mean if self.last else max(tops, default=-1.0)
        return broken, not self.finished, -top, self.name


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs, side by side."""

    groups: tuple[Group, ...]
    """The best first."""
    names: Mapping[Path, str]
    """Of the runs, by their folders."""
    differing: tuple[str, ...]
    """Settings that are not the same in all of them, the seed last."""
    warnings: tuple[str, ...]
    """What makes figures incomparable, or a run unreadable."""

    @property
    def runs(self) -> list[RunRecord]:
        """All of them, in the order of their groups."""
        return [run for group in self.groups for run in group.runs]

    @property
    def comparable(self) -> bool:
        """Whether all runs whose list of clips is known were trained on the same."""
        return len({run.data_hash for run in self.runs if run.data_hash}) < 2

    def shown(self, run: RunRecord, name: str) -> str:
        """A setting of a run as text; nothing of a broken run, or where a run of another version has no such one."""
        if run.fault or name not in run.settings:
            return ""
        text = in_words(run.settings[name])
        return f"{text} ({run.data_hash[:8] or 'unknown'})" if name == "data" else text

    def usual(self) -> dict[str, str]:
        """The most frequent value of each differing setting, as text; nothing of the seed."""
        sound = [run for run in self.runs if not run.fault]
        most = {name: Counter(self.shown(run, name) for run in sound).most_common(1)[0][0] for name in self.differing}
        return {name: value for name, value in most.items() if name != "seed"}

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what was not measured is None."""
        return {
            "differing": list(self.differing),
            "comparable": self.comparable,
            "warnings": list(self.warnings),
            "groups": [
                {
                    "name": group.name,
                    "runs": [self.names[run.path] for run in group.runs],
                    "best_top1": as_numbers(group.best),
                    "last_top1": as_numbers(group.last),
                }
                for group in self.groups
            ],
            "runs": [
                {
                    **self.row(run),
                    "settings": {name: run.settings.get(name) for name in self.differing if not run.fault},
                }
                for run in self.runs
            ],
        }

    def row(self, run: RunRecord) -> dict[str, Any]:
        """The facts and figures of a run; what was not measured is None."""
        epoch, top1 = run.best
        return {
            "run": self.names[run.path],
            "state": run.state,
            "seed": run.settings.get("seed"),
            "best_top1": known(top1),
            "best_epoch": epoch or None,
            "last_top1": known(run.last),
            "epochs": run.epochs,
            "planned": run.planned or None,
            "minutes": known(run.minutes),
            "train_clips": run.clips.get("train"),
            "val_clips": run.clips.get("val"),
            "data_hash": run.data_hash or None,
            "path": str(run.path),
            "fault": run.fault or None,
        }


def known(value: float) -> float | None:
    """The value, or None for nan and the infinite, which JSON can't hold."""
    return value if math.isfinite(value) else None


def as_numbers(found: Spread | None) -> dict[str, float | None] | None:
    """Mean, deviation and number as plain data."""
    return {"mean": found.mean, "deviation": known(found.deviation), "n": found.number} if found else None


def compare(folders: Sequence[Path]) -> Comparison:
    """Read all runs in some folders, and find what differs.

    Args:
        folders: of runs, or that hold such folders at any depth.

    Raises:
        UsageError: a folder that isn't there, no run, or too many.
    """
    runs = [read_run(path) for path in find_runs(folders)]
    names = short_names([run.path for run in runs])
    sound = [run for run in runs if not run.fault]
    settings = list(dict.fromkeys(name for run in sound for name in run.settings if name not in WITHOUT_EFFECT))
    differing = [name for name in settings if len({setting_key(run, name) for run in sound}) > 1]
    if "seed" in differing:
        differing = [*(name for name in differing if name != "seed"), "seed"]

    members: dict[Hashable, list[RunRecord]] = {}
    seen: Counter[Hashable] = Counter()
    for run in runs:
        same = tuple(setting_key(run, name) for name in differing if name != "seed")
        seed = setting_key(run, "seed")
        seen[same, seed] += 1  # a seed trained twice is no second seed: each group has it once
        members.setdefault(str(run.path) if run.fault else (same, seen[same, seed]), []).append(run)
    groups: dict[str, Group] = {}
    for found in members.values():
        found.sort(key=lambda run: (isinstance(run.settings.get("seed"), int), str(run.settings.get("seed")).zfill(12)))
        name = group_name([names[run.path] for run in found])
        while name in groups:
            name += "'"
        groups[name] = Group(name=name, runs=tuple(found))
    return Comparison(
        groups=tuple(sorted(groups.values(), key=lambda group: group.rank)),
        names=names,
        differing=tuple(differing),
        warnings=tuple(find_trouble(sound)) + tuple(f"{names[run.path]}: {run.fault}" for run in runs if run.fault),
    )


def find_trouble(runs: Sequence[RunRecord]) -> Iterable[str]:
    """Why the runs' figures can't be compared, or only with care."""
    lists = sorted({run.data_hash for run in runs if run.data_hash})
    if len(lists) > 1:
        yield f"NOT COMPARABLE: the runs have {len(lists)} different lists of clips ({', '.join(lists[:4])})"
    elif len({run.val_hash for run in runs if run.val_hash}) > 1:
        yield (
            "the runs were validated on different clips, as the seed or val_fraction set them aside: their differences "
            "are also those of the clips"
        )
    if lists and (unknown := sum(not run.data_hash for run in runs)):
        yield f"which clips {unknown} of the runs had is not known: they have no checkpoint"


def setting_key(run: RunRecord, name: str) -> Hashable:
    """A setting, for telling whether two runs have the same; the data by its clips, wherever they lie."""
    if name == "data" and run.data_hash:
        return "list", run.data_hash
    return freeze(run.settings.get(name))


def freeze(value: Any) -> Hashable:
    """Plain data as something that can be compared: equal numbers are equal, whatever their type."""
    if isinstance(value, dict):
        return tuple(sorted(((str(k), freeze(v)) for k, v in value.items()), key=str))
    if isinstance(value, list | tuple | set):
        return tuple(freeze(item) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value!r}" if value != value or abs(value) > 1e15 else float(value)
    return f"{type(value).__name__} {value}"


def in_words(value: Any) -> str:
    """A setting as one would type it, at most 40 characters."""
    if isinstance(value, dict):
        text = ", ".join(f"{k}: {in_words(v)}" for k, v in list(value.items())[:20])
    elif isinstance(value, list | tuple):
        text = ",".join(in_words(item) for item in value[:20])
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    text = printable(text)
    return "…" + text[-39:] if "/" in text and len(text) > 40 else shorten(text, 40)  # of a path the end tells more


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The folders' paths below the deepest one that holds them all."""
    places = [os.path.abspath(path) for path in paths]
    base = os.path.commonpath([os.path.dirname(place) for place in places])
    return {path: printable(os.path.relpath(place, base)) for path, place in zip(paths, places, strict=True)}


def group_name(names: Sequence[str]) -> str:
    """One name for a group's runs: the first one's without the seed at its end, and how many they are."""
    if len(names) == 1:
        return names[0]
    stem = re.sub(r"[-_/ ]*(seed|run|(?<![a-z])s)?[-_ ]?\d+$", "", names[0])
    return f"{stem or f'{names[0]} … {names[-1]}'} ({len(names)} seeds)"


def compare_command(folders: Sequence[Path], *, out: Path | None = None, json: bool = False) -> int:
    """What `vireo compare-runs` does: compare, print, and write files where asked."""
    comparison = compare(folders)
    console = make_console()
    if json:
        print(jsonlib.dumps(comparison.as_dict(), ensure_ascii=False, default=str), flush=True)
    else:
        print_comparison(comparison, console)
    if out is not None:
        written = write_comparison(comparison, out)
        if not json:
            told = ", ".join(path.name for path in written)
            console.print(f"written to {out}: {told}", markup=False, highlight=False, soft_wrap=True)
    return 0


# --- what a person sees ---------------------------------------------------------------------------


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The table, what differs below it where that is too wide, and what is to be known of it."""
    wide = table_of(comparison, comparison.differing)
    fits = console.measure(wide, options=console.options.update(max_width=10_000)).maximum <= console.width
    console.print(wide if fits else table_of(comparison, [name for name in comparison.differing if name == "seed"]))
    console.print()
    if not fits:
        print_settings(comparison, console)
    if len(every := {clips_of(run) for run in comparison.runs if not run.fault}) == 1 and "" not in every:
        console.print(f"training + validation clips of each run: {every.pop()}", style="dim", highlight=False)
    for line in HOW_TO_READ if any(len(group.runs) > 1 for group in comparison.groups) else HOW_TO_READ[:1]:
        console.print(line, style="dim", highlight=False)
    for warning in comparison.warnings[:20]:
        console.print(Text.assemble(("warning: ", "yellow"), printable(warning)), highlight=False)
    if len(comparison.warnings) > 20:
        console.print(f"… and {len(comparison.warnings) - 20} more, see --json", style="yellow", highlight=False)


def print_settings(comparison: Comparison, console: Console) -> None:
    """What most runs have, and for each group the settings that are others."""
    usual = comparison.usual()
    console.print(Text.assemble(("most runs: ", "bold"), in_pairs(usual)))
    for group in comparison.groups:
        shown = {name: comparison.shown(group.runs[0], name) for name in usual}
        others = in_pairs({name: value for name, value in shown.items() if value != usual[name]})
        if others:
            console.print(Text.assemble((f"{shorten(group.name, 60)}: ", "bold"), others))
    console.print()


def table_of(comparison: Comparison, settings: Sequence[str]) -> Table:
    """The runs as a table, with a column for each of some settings."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    table.add_column("run", overflow="fold", min_width=10)
    for name in settings:
        table.add_column(name, overflow="fold")
    figures = figure_columns(comparison)
    for name in figures:
        table.add_column(name, justify="right" if name != "state" else "left", no_wrap=True)
    for label, runs, style in lines_of(comparison):
        # Text, not markup: names are the user's.
        row = [shorten(label, 60), *settings_of(comparison, label, runs, settings), *figures_of(runs, figures)]
        table.add_row(*(Text(cell, style) for cell in row))
    return table


def settings_of(comparison: Comparison, label: str, runs: Sequence[RunRecord], settings: Sequence[str]) -> list[str]:
    """Some settings in a line of the table; that of a group's member has but the seed."""
    only = ("seed",) if label.startswith(MEMBER) else settings
    return [joined(comparison.shown(run, name) for run in runs) if name in only else "" for name in settings]


def in_pairs(settings: Mapping[str, str]) -> str:
    """``lr 0.01, size 64``."""
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value)


def lines_of(comparison: Comparison) -> Iterable[tuple[str, tuple[RunRecord, ...], str]]:
    """The lines of the table: what they are called, the runs they are of, their style."""
    for group in comparison.groups:
        many = len(group.runs) > 1
        broken = all(run.fault for run in group.runs)
        yield group.name, group.runs, "bold" if many else "dim" if broken else ""
        for run in group.runs if many else ():
            yield f"{MEMBER}{comparison.names[run.path]}", (run,), "dim"


def figure_columns(comparison: Comparison) -> list[str]:
    """The columns after the settings; what is the same in all runs has none."""
    runs = comparison.runs
    columns = ["best, %", "last, %", "epochs", "min"]
    if len({clips_of(run) for run in runs if not run.fault}) > 1:
        columns.append("clips")
    if not all(run.finished for run in runs):
        columns.append("state")
    return columns


def figures_of(runs: tuple[RunRecord, ...], columns: Sequence[str]) -> list[str]:
    """What came out of a run, or of runs that differ in the seed."""
    if len(runs) == 1:
        run = runs[0]
        minutes = f"{run.minutes:.1f}" if math.isfinite(run.minutes) and run.rows else "–"
        done = f"{run.epochs}/{run.planned}" if run.planned else "–"
        cells = {"best, %": percent(run.best[1]), "last, %": percent(run.last), "epochs": done, "min": minutes}
        cells["state"] = "" if run.finished else run.state
    else:
        group = Group(name="", runs=runs)
        spent = spread(run.minutes for run in group.finished)
        cells = {"best, %": with_deviation(group.best), "last, %": with_deviation(group.last)}
        cells["epochs"] = joined(f"{run.epochs}/{run.planned}" for run in runs)
        cells["min"] = f"{spent.mean:.1f}" if spent and math.isfinite(spent.mean) else "–"
        left = len(runs) - len(group.finished)
        cells["state"] = f"{left} of {len(runs)} unfinished" if left else ""
    cells["clips"] = joined(clips_of(run) for run in runs)
    return [cells[name] for name in columns]


def percent(value: float) -> str:
    """A share as percent, – where it was not measured."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def with_deviation(found: Spread | None) -> str:
    """``97.7 ± 1.3``, in percent."""
    if found is None:
        return "–"
    return percent(found.mean) + ("" if math.isnan(found.deviation) else f" ± {100 * found.deviation:.1f}")


def clips_of(run: RunRecord) -> str:
    """``177 + 45``: training and validation."""
    return f"{run.clips.get('train', 0)} + {run.clips.get('val', 0)}" if run.clips else ""


def joined(values: Iterable[str]) -> str:
    """The different ones of some texts, shortened."""
    return shorten(", ".join(dict.fromkeys(value for value in values if value)), 40)


# --- files ----------------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Write ``compare.csv`` (a row per run), ``compare.md`` and ``compare.png``; earlier ones are replaced.

    Raises:
        StorageError: one can't be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    rows = [
        {**comparison.row(run), **{f"setting {n}": comparison.shown(run, n) for n in comparison.differing}}
        for run in comparison.runs
    ]
    with replacing(out / "compare.csv") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    curves = {group.name: [run.rows for run in group.runs] for group in comparison.groups if group.runs[0].rows}
    epochs = max((max(run.planned, run.epochs) for run in comparison.runs if run.rows), default=1)
    write_png(out / "compare.png", comparison_png(curves, epochs=epochs))
    with replacing(out / "compare.md") as file:
        file.writelines(f"{line}\n" for line in page_lines(comparison))
    return [out / "compare.csv", out / "compare.md", out / "compare.png"]


def page_lines(comparison: Comparison) -> Iterable[str]:
    """The comparison as Markdown."""
    yield from ("# Runs compared", "")
    for warning in comparison.warnings:
        yield from (f"**Warning:** {code(warning)}", "")
    figures = figure_columns(comparison)
    yield f"| run | {' | '.join([*map(cell, comparison.differing), *figures])} |"
    yield f"|---|{'---|' * len(comparison.differing)}{'---:|' * len(figures)}"
    for label, runs, style in lines_of(comparison):
        shown = settings_of(comparison, label, runs, comparison.differing)
        name = f"**{cell(label)}**" if style == "bold" else cell(label.strip())
        yield f"| {' | '.join([name, *map(cell, shown), *figures_of(runs, figures)])} |"
    yield from ("", *(f"- {line}" for line in HOW_TO_READ), "", "![Learning curves](compare.png)")


def cell(text: str) -> str:
    """Any text in a cell of a Markdown table."""
    return code(text).replace("|", "\\|") if text else ""
