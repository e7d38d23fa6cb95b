"""`vireo report`: one training run and its evaluations as one page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape

import vireo
from vireo.data.outputs import write_text
from vireo.errors import UsageError
from vireo.progress import make_console
from vireo.report import sections
from vireo.report.charts import learning_curves
from vireo.report.parts import data_block, page, text
from vireo.report.pictures import Examples, draw_examples
from vireo.report.reading import EvaluationRecord, RunFolder, read_folder
from vireo.scores import EVALUATION
from vireo.statistics import Confused, most_confused

REPORT = "report.html"
MARK = "<!-- Written by `vireo report`, which replaces this file. -->"
"""Last line of a page that may be replaced."""
PAIRS = 10
"""Pairs of confused classes that are listed."""


class Written(NamedTuple):
    """A page that was written."""

    path: Path
    notes: tuple[str, ...]
    """What is missing in it, and why."""


def write_run_report(run: Path, *, out: Path | None = None, data: str = "", workers: int = 1) -> Written:
    """Write a page about a run and its evaluations.

    Args:
        run: folder that `vireo train` wrote, or one of `vireo eval`.
        out: the .html file; None: ``report.html`` in the folder. An earlier page is replaced, no other file.
        data: the clips, as in `vireo eval`, for pictures; empty: those that the run names, if they can be reached.
        workers: processes that decode pictures, so that a file may crash a decoder; 0: none but this one.

    Raises:
        UsageError: no such run, or the file is something else; nothing is written then.
        DataError: data that was asked for can't be used.
        StorageError: the page can't be written.
    """
    path = out or run / REPORT
    if workers < 0:
        raise UsageError(f"workers is {workers}; it must be at least 0")
    found = read_folder(run)
    check_target(path)
    notes = [*found.faults]
    drawn = []
    for one in found.evaluations:
        pairs = most_confused(one.confusion, limit=PAIRS)
        examples, why = draw_examples(one, pairs, found, data, workers)
        drawn.append((pairs, examples, why))
        notes += [f"{one.name}: {why}"] if why else []
    write_text(path, _page(found, drawn))
    return Written(path, tuple(notes))


def check_target(path: Path) -> None:
    """Check that a page may be written here.

    Raises:
        UsageError: the name doesn't end in .html, or something else is there.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: the page is HTML; choose a name that ends in .html")
    if not path.exists():
        return
    if not path.is_file():
        raise UsageError(f"{path} is there already and is no file; choose another name with --out")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * len(MARK)))
        if MARK.encode() not in file.read(2 * len(MARK)):
            raise UsageError(
                f"{path} is there already and is no report of `vireo report`; choose another name with --out"
            )


def _page(run: RunFolder, drawn: list[tuple[tuple[Confused, ...], Examples, str]]) -> str:
    shown = run.evaluations
    parts = [sections.header(run), sections.tabs(shown)]
    parts += [sections.notice(f"Left out: {fault}.", look="bad") for fault in run.faults]
    parts.append(sections.missing(run))
    parts += [_evaluation(i, one, "figures", _top(run, one)) for i, one in enumerate(shown)]
    links = []
    if run.record is not None:
        rows = run.record.rows
        curves = learning_curves(rows, run.record.planned) if rows else sections.notice("No epoch has ended yet.")
        parts.append(sections.section("learning", "Learning curves", curves))
        links.append(("learning", "Learning curves"))
    for i, (one, (pairs, examples, why)) in enumerate(zip(shown, drawn, strict=True)):
        told = [
            ("confusion", "Confusion matrix", sections.confusion(one, i)),
            ("confused", "Most confused", sections.confused(one, pairs, examples, why)),
            ("order", "What the order of frames is worth", sections.order(one, sections.probe_command(run, one))),
            ("trust", "Can its probabilities be trusted?", sections.trust(one)),
            ("classes", "Classes", sections.classes(one, i)),
        ]
        told.append(("slowest", "Clips that took longest to read", sections.slowest(one.slowest)))
        if one.failures:
            told.append(("failed", "Clips that could not be read", sections.failed(one.failures, "failed.csv")))
        body = "".join(sections.section(f"{key}-{i}", title, html) for key, title, html in told if html)
        parts.append(_evaluation(i, one, "details", body))
        if i == 0:
            names = {
                "confusion": "Confusion",
                "confused": "Most confused",
                "order": "Order of frames",
                "trust": "Trust",
                "slowest": "Slowest clips",
                "failed": "Failed clips",
            }
            links += [(f"{key}-0", names.get(key, title)) for key, title, html in told if html]
    if run.failures:
        about = f"{len(run.failures):,} clip{'' if len(run.failures) == 1 else 's'} failed while the model was trained."
        body = sections.failed(run.failures, str(run.path / "failed.csv"))
        parts.append(sections.section("failed", "Clips that training could not read", body, about))
    parts.append(sections.section("origin", "Where it comes from", _origin(run)))
    links.append(("origin", "Where it comes from"))
    parts.insert(1, sections.navigation(links))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    by = f"Made by Vireo {text(vireo.__version__)}, {made}."
    parts.append(f"<footer>{by} Accuracies are of the clips that were scored.</footer>")
    parts.append(data_block("page", {"evaluations": len(shown)}))
    title = f"{run.path.absolute().name}: report"
    return page(title, "".join(parts), styles=["run.css"], scripts=["run.js"], look="themes") + MARK + "\n"


def _evaluation(number: int, one: EvaluationRecord, what: str, body: str) -> str:
    """A part of the page that belongs to one evaluation."""
    return f'<div class="{what}-of" data-evaluation="{number}"><p class="which">{text(one.name, 60)}</p>{body}</div>'


def _top(run: RunFolder, one: EvaluationRecord) -> str:
    old = ""
    if one.outdated:
        again = sections.evaluation_command(run, f"{one.name}.safetensors")
        told = f"{EVALUATION} is older than {one.name}.safetensors, so it may be of earlier weights. Evaluate again:"
        old = sections.notice(told, [again], look="bad")
    keys = {"part", "list of clips", "protocol", "decoder", "seed"}
    rows = [row for row in sections.evaluation_facts(one) if row[0] in keys]
    cells = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value, 200)}</dd></div>" for key, value in rows if value)
    return f'{old}{sections.figures(one)}<dl class="strip-facts">{cells}</dl>'


def _origin(run: RunFolder) -> str:
    cards = [sections.facts("The weights", sections.run_facts(run))] if run.record else []
    for i, one in enumerate(run.evaluations):
        cards.append(sections.facts(f"The evaluation {one.name}", sections.evaluation_facts(one), i))
    left = ""
    if run.left_out:
        left = f'<p class="muted">{run.left_out} more evaluations in this folder are left out.</p>'
    return f'<div class="columns">{"".join(cards)}</div>{left}'


def report_command(run: Path, *, out: Path | None = None, data: str = "", workers: int = 1) -> int:
    """What `vireo report` does: write the page, say where it is and what is missing in it."""
    written = write_run_report(run, out=out, data=data, workers=workers)
    console = make_console()
    for note in written.notes:
        console.print(f"[dim]{escape(note)}[/dim]", highlight=False, soft_wrap=True)
    size = written.path.stat().st_size / 1024
    told = f"{size:.0f} KiB" if size < 1024 else f"{size / 1024:.1f} MiB"
    console.print(f"[bold]{escape(str(written.path))}[/bold]  {told}", highlight=False, soft_wrap=True)
    return 0
