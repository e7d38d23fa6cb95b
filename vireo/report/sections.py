"""The parts of a run's page, each as HTML."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vireo.evaluation import Slow
from vireo.report import charts
from vireo.report.parts import data_block, image, name, percent, text
from vireo.report.pictures import Example, Examples
from vireo.report.reading import ORDERS, EvaluationRecord, Failed, RunFolder
from vireo.run_page import source_in_words
from vireo.scores import EVALUATION
from vireo.statistics import Confused, Interval, wilson_interval

MOST_ROWS = 5000
"""Classes in the table; of more, those with the lowest accuracy."""
MOST_FAILED = 200
"""Failed clips that are listed."""
MOST_SLOW = 10
"""Clips that are listed because reading them takes long."""
MOST_DROPS = 12
"""Classes that are shown to lose most with frames in another order."""


def header(run: RunFolder) -> str:
    """What this is about."""
    about = " · ".join(filter(None, [network(run), trained_on(run)]))
    return (
        f'<header><p class="brand">Vireo <span>report</span></p><h1>{text(run.path.absolute().name)}</h1>'
        f'<p class="lead">{text(about)}</p></header>'
    )


def network(run: RunFolder) -> str:
    """The network in a few words; empty where nothing says it."""
    for evaluation in run.evaluations:
        if told := evaluation.facts.get("checkpoint"):
            return told
    settings = run.record.settings if run.record else {}
    if not settings:
        return ""
    return f"{settings.get('temporal')} × {settings.get('backbone')}, {settings.get('num_frames')} frames"


def trained_on(run: RunFolder) -> str:
    """How far training went, and on what."""
    record = run.record
    if record is None or not record.settings:
        return ""
    done = f"{record.epochs} of {record.planned} epochs"
    spent = f" in {minutes(record.minutes)}" if math.isfinite(record.minutes) and record.rows else ""
    return f"trained on {record.settings.get('data') or 'unnamed data'}, {done}{spent}"


def minutes(number: float) -> str:
    """A time in words."""
    return f"{number:.1f} minutes" if number < 90 else f"{number / 60:.1f} hours"


def navigation(links: Sequence[tuple[str, str]]) -> str:
    """Links to sections: their ids and names."""
    return (
        '<nav aria-label="Sections">'
        + "".join(f'<a href="#{text(to)}">{text(told)}</a>' for to, told in links)
        + "</nav>"
    )


def tabs(evaluations: Sequence[EvaluationRecord]) -> str:
    """One button per evaluation; without the script all are shown below each other, and this is not."""
    if len(evaluations) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-tab="{i}" aria-pressed="{"true" if i == 0 else "false"}">{text(one.name, 40)} '
        f"<b>{percent(one.top1)}</b></button>"
        for i, one in enumerate(evaluations)
    )
    return f'<div class="tabs" role="group" aria-label="Evaluation" hidden>{buttons}</div>'


def section(identity: str, title: str, body: str, about: str = "") -> str:
    """A section with its heading."""
    told = f'<p class="muted">{about}</p>' if about else ""
    return f'<section id="{text(identity)}"><h2>{text(title)}</h2>{told}{body}</section>'


def notice(told: str, commands: Iterable[str] = (), look: str = "") -> str:
    """What is missing, and what to type."""
    typed = "\n".join(map(text, commands))
    return f'<div class="notice {look}"><p>{text(told)}</p>{f"<pre>{typed}</pre>" if typed else ""}</div>'


# --- one evaluation -----------------------------------------------------------------------------------


def figures(one: EvaluationRecord) -> str:
    """The accuracies with their intervals."""
    count = len(one.labels)
    chance = 1 / count
    cards = [_figure("Top-1 accuracy", one.top1, one.interval, "Wilson", chance, first=True)]
    if count > 5:  # of five classes every clip's is among the first five
        among5 = wilson_interval(round(one.top5 * one.scored), one.scored)
        cards.append(_figure("Top-5 accuracy", one.top5, among5, "Wilson", 5 * chance))
    # Where every class is all right or all wrong, drawing the clips again changes nothing, and says nothing.
    drawn = one.mean_interval if one.mean_interval and one.mean_interval[0] < one.mean_interval[1] else None
    cards.append(_figure("Mean-class accuracy", one.mean_class, drawn, "bootstrap", chance))
    lost = f'<span class="tag bad">{one.failed:,} could not be read</span>' if one.failed else "none failed"
    split = one.facts.get("split")
    classes = f"{count:,} class{'' if count == 1 else 'es'}"
    told = f"{one.scored:,} of {one.expected:,} clips of the {text(split) if split else '?'} part scored, {lost}."
    return (
        f'<div class="figures">{"".join(cards)}</div><p class="counted">{told} '
        f'<span class="muted">The red mark is what guessing among {classes} gives.</span></p>'
    )


def _figure(
    title: str, share: float, interval: Interval | None, method: str, chance: float, *, first: bool = False
) -> str:
    told = f"95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f} ({method})" if interval else "&nbsp;"
    return (
        f'<div class="figure{" first" if first else ""}"><h3>{text(title)}</h3>'
        f'<p class="value">{100 * share:.1f}<small> %</small></p>{charts.gauge(share, interval, chance=chance)}'
        f'<p class="muted">{told}</p></div>'
    )


def confusion(one: EvaluationRecord, number: int) -> str:
    """The matrix, and beside it what the cell under the pointer says."""
    drawn = charts.matrix(one.confusion, one.labels)
    cut = ""
    if drawn.shown < len(one.labels):
        cut = f" Shown are the {drawn.shown} of {len(one.labels):,} classes that lose or attract most clips."
    return (
        f'<div class="confusion" data-matrix="matrix-{number}"><div class="scroller">{drawn.svg}</div>'
        '<div class="readout"><p class="told" aria-live="polite">'
        f"<b>{np.trace(one.confusion):,} of {one.scored:,}</b>clips are right."
        "<span>Point at a cell, or choose the matrix and move with the arrow keys.</span></p>"
        '<p class="key"><i class="right"></i>right <i class="wrong"></i>wrong</p>'
        '<p class="muted">Rows are true classes, columns what the model says. Shades are square roots of the share of '
        f"a row, so that rare errors can be seen.{cut}</p></div></div>{data_block(f'matrix-{number}', drawn.data)}"
    )


def confused(one: EvaluationRecord, pairs: Sequence[Confused], examples: Examples, why: str) -> str:
    """The pairs of classes that most clips are lost to, with clips where there are pictures."""
    if not pairs:
        return notice("No clip was taken for another class.", look="good")
    most = pairs[0].clips
    rows = []
    for pair in pairs:
        strips = "".join(_strip(one, pair, example) for example in examples.get((pair.true, pair.predicted), ()))
        rows.append(
            f"<li><div><b>{name(one.labels[pair.true])}</b><span>taken for</span><b>"
            f"{name(one.labels[pair.predicted])}</b></div>"
            f'<p class="many"><span class="track"><i style="width:{100 * pair.clips / most:.1f}%"></i></span>'
            f"{pair.clips:,} clip{'' if pair.clips == 1 else 's'}, {percent(pair.share)} of the class</p>{strips}</li>"
        )
    if examples and len(examples) < len(pairs):
        why = why or f"Clips are shown of the first {len(examples)} pairs."
    return f'<ol class="pairs">{"".join(rows)}</ol>' + (f'<p class="muted">{text(why)}</p>' if why else "")


def _strip(one: EvaluationRecord, pair: Confused, example: Example) -> str:
    label, other = one.labels[pair.predicted], one.labels[pair.true]
    pictures = "".join(image(jpeg, f"frame {i}", "jpeg") for i, jpeg in enumerate(example.frames, start=1))
    told = f"{percent(example.probability)} {label[:60]}, {percent(example.true_probability)} {other[:60]}"
    return (
        f'<figure class="clip">{f"<div>{pictures}</div>" if pictures else ""}'
        f"<figcaption>{name(example.clip)} <span>{text(told)}</span></figcaption></figure>"
    )


def order(one: EvaluationRecord, command: str) -> str:
    """What the order of frames is worth."""
    if not one.orders:
        return notice("How much of this comes from the order of frames has not been measured. It is, with", [command])
    rows = [charts.Row("frames as they come", one.top1, "own", "")]
    for found in one.orders:
        change = f"{-100 * found.lost:+.1f} points".replace("-", "−")
        rows.append(charts.Row(ORDERS[found.order], found.top1, "other", change))
    told = "".join(f"<li>{text(line[:1].upper() + line[1:])}.</li>" for line in one.sentences)
    first = one.orders[0]
    lost = _losses(one)
    lists = ""
    if lost:
        lists = (
            f'<h3>Classes that lose most with {text(ORDERS[first.order])}</h3><p class="legend"><span>'
            '<i class="dot a"></i>frames as they come</span><span><i class="dot b"></i>'
            f"{text(ORDERS[first.order])}</span></p>{charts.drops(lost)}"
        )
    return f'<div class="card">{charts.bars(rows)}<ul class="sentences">{told}</ul>{lists}</div>'


def _losses(one: EvaluationRecord) -> list[charts.Drop]:
    found = one.orders[0]
    accuracy = dict(zip(one.labels, one.accuracies.tolist(), strict=True))
    rows = []
    for label, then in found.classes.items():
        if label in accuracy and accuracy[label] > then.accuracy:
            taken = "still right" if then.taken_for == label else f"taken for {then.taken_for[:60]}"
            rows.append(charts.Drop(label, accuracy[label], then.accuracy, f"{100 * then.share:.0f} % {taken}"))
    return sorted(rows, key=lambda row: row.after - row.before)[:MOST_DROPS]


def trust(one: EvaluationRecord) -> str:
    """Whether a model that is 80 % sure is right four times in five."""
    found = one.trust
    if found is None:
        return ""
    low, high = one.interval
    kind = "no difference beyond chance"
    if not low <= found.confidence <= high:
        kind = "it is too sure of itself" if found.confidence > one.top1 else "it is too modest"
    return (
        f'<div class="card trust">{charts.reliability(found.bins)}<div><p class="value">{100 * found.error:.1f}'
        "<small> % calibration error</small></p>"
        f"<p>On average it is {percent(found.confidence)} sure and {percent(one.top1)} right: {kind}.</p>"
        '<p class="muted">Each dot is the clips of about the same highest probability, larger for more clips. On the '
        "line, a model that is 80 % sure is right four times in five; below it, it promises too much.</p></div></div>"
    )


def classes(one: EvaluationRecord, number: int) -> str:
    """A row per class; its headings sort, a box filters."""
    clips, accuracy = one.clips, one.accuracies
    shown: Sequence[int] = range(len(one.labels))
    cut = ""
    if len(one.labels) > MOST_ROWS:
        worst = np.argsort(np.where(clips > 0, accuracy, 2.0), kind="stable")[:MOST_ROWS]
        shown = sorted(worst.tolist())
        cut = f"The {MOST_ROWS:,} of {len(one.labels):,} classes with the lowest accuracy; per_class.csv has all."
    heads = [
        "Class",
        "Clips",
        "Right",
        "Accuracy",
        "Most often taken for",
        *(ORDERS[o.order].capitalize() for o in one.orders),
    ]
    rows = []
    for i in shown:
        cells = [
            _td(name(one.labels[i])),
            _td(f"{clips[i]:,}", clips[i]),
            _td(f"{one.confusion[i, i]:,}", one.confusion[i, i]),
        ]
        cells.append(_bar(float(accuracy[i])))
        wrong = one.confusion[i].copy()
        wrong[i] = 0
        most = int(wrong.argmax())
        lost = int(wrong[most])
        cells.append(_td(f"{name(one.labels[most])} <small>{lost:,}</small>" if lost else "–"))
        for found in one.orders:
            then = found.classes.get(one.labels[i])
            cells.append(_td(percent(then.accuracy), then.accuracy) if then else _td("–", -1))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{text(title)}</button></th>' for title in heads
    )
    return (
        f'<div class="tools"><label for="filter-{number}">Filter</label><input id="filter-{number}" type="search" '
        f'placeholder="part of a name" data-filter="table-{number}" autocomplete="off" spellcheck="false">'
        f'<output for="filter-{number}">{len(rows):,} class{"" if len(rows) == 1 else "es"}</output></div>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Accuracy of each class">'
        f'<table class="classes" id="table-{number}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{f'<p class=muted>{text(cut)}</p>' if cut else ''}"
    )


def _td(shown: str, value: Any = None) -> str:
    return f"<td>{shown}</td>" if value is None else f'<td data-v="{float(value):.6g}">{shown}</td>'


def _bar(share: float) -> str:
    if math.isnan(share):
        return _td("–", -1)
    return (
        f'<td data-v="{share:.6g}"><span class="meter"><i style="width:{100 * share:.1f}%"></i></span>'
        f"<span>{percent(share)}</span></td>"
    )


def failed(rows: Sequence[Failed], where: str) -> str:
    """Clips that could not be read, with the reasons."""
    cells = "".join(
        f"<tr><td>{_place(row.path)}</td><td>{text(row.reason, 300)}</td></tr>" for row in rows[:MOST_FAILED]
    )
    more = len(rows) - MOST_FAILED
    left = f'<p class="muted">and {more:,} more: {text(where)} names them all.</p>' if more > 0 else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Clips that could not be read">'
        '<table class="failed"><thead><tr><th scope="col">Clip</th><th scope="col">Why</th></tr></thead>'
        f"<tbody>{cells}</tbody></table></div>{left}"
    )


def slowest(rows: Sequence[Slow]) -> str:
    """Clips that took longest to read, beside the median of all."""
    if not rows:
        return ""
    most = rows[0].seconds or 1.0
    cells = "".join(
        f'<tr><td>{_place(row.path)}</td><td>{name(row.label)}</td><td><span class="meter"><i style="width:'
        f'{100 * min(1.0, row.seconds / most):.1f}%"></i></span><span>{seconds(row.seconds)}</span></td>'
        f"<td>{'–' if math.isnan(row.times_median) else f'{row.times_median:,.1f} ×'}</td></tr>"
        for row in rows[:MOST_SLOW]
    )
    medians = [row.seconds / row.times_median for row in rows[:1] if row.times_median > 0]
    usual = f" The median of all clips is {seconds(medians[0])}." if medians else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Clips that took longest to read">'
        '<table class="slowest"><thead><tr><th scope="col">Clip</th><th scope="col">Class</th>'
        '<th scope="col">Time to read</th><th scope="col">Times the median</th></tr></thead>'
        f'<tbody>{cells}</tbody></table></div><p class="muted">Decoding and cropping, on the clock of the process '
        f"that did it.{usual} <code>vireo data optimize</code> writes videos so that they are read quickly.</p>"
    )


def _place(path: str) -> str:
    """The end of a path, which tells the clip: the page is passed on, and where the data lay is nobody's business."""
    return text("/".join(path.rsplit("/", 3)[-3:]), 300)


def seconds(number: float) -> str:
    """A short time in words."""
    if number >= 1:
        return f"{number:,.1f} s"
    return f"{1000 * number:.0f} ms" if number >= 0.01 else f"{1000 * number:.2g} ms"


# --- where it comes from ------------------------------------------------------------------------------


def evaluation_facts(one: EvaluationRecord) -> list[tuple[str, str]]:
    """What a result rests on."""
    facts = one.facts
    known = [
        ("evaluated", str(one.folder)),
        ("part", facts.get("split", "")),
        ("clips", f"{one.expected:,} expected, {one.scored:,} scored, {one.failed:,} failed"),
        ("list of clips", facts.get("data_hash", "")),
        ("protocol", facts.get("protocol", "")),
        ("averaged", facts.get("average", "")),
        ("cost", facts.get("cost", "")),
        ("decoder", facts.get("decoder", "")),
        ("precision", facts.get("precision", "")),
        ("seed", facts.get("seed", "")),
        ("frames moved", f"{facts['frames_moved']} on average" if "frames_moved" in facts else ""),
        ("Vireo", facts.get("vireo", "")),
    ]
    return [*known, *(("note", note) for note in one.notes[:5])]


def run_facts(run: RunFolder) -> list[tuple[str, str]]:
    """Where the weights come from."""
    record, origin = run.record, run.weights.get("provenance")
    origin = origin if isinstance(origin, dict) else {}
    settings = record.settings if record else {}
    versions = origin.get("versions")
    told = [f"{key} {value}" for key, value in versions.items()] if isinstance(versions, dict) else []
    clips = record.clips if record else {}
    found = [
        ("run", str(run.path)),
        ("model", network(run)),
        ("data", str(settings.get("data") or "")),
        ("clips", ", ".join(f"{number:,} {part}" for part, number in clips.items())),
        ("list of all clips", record.data_hash if record else ""),
        ("decoder", str(origin.get("decoder") or "")),
        ("precision", str(origin.get("precision") or "")),
        ("device", str(origin.get("device") or "")),
        ("seed", str(settings.get("seed", ""))),
        ("begun", str(origin.get("started") or "")),
        ("versions", ", ".join(told[:8])),
    ]
    return [*found, *_sources(origin.get("git"))]


def _sources(git: Any) -> list[tuple[str, str]]:
    try:
        return list(source_in_words(git).items()) if isinstance(git, dict) else []
    except (TypeError, KeyError, AttributeError):  # not what `vireo train` writes
        return []


def facts(title: str, rows: Sequence[tuple[str, str]], evaluation: int | None = None) -> str:
    """Names and values; those without a value are left out."""
    cells = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value, 400)}</dd></div>" for key, value in rows if value)
    own = "" if evaluation is None else f' data-evaluation="{evaluation}"'
    return f'<div class="card facts"{own}><h3>{text(title)}</h3><dl>{cells}</dl></div>'


# --- what is missing ----------------------------------------------------------------------------------


def evaluation_command(run: RunFolder, weights: str, *more: str) -> str:
    """What to type to score a checkpoint."""
    settings = run.record.settings if run.record else {}
    data = str(settings.get("data") or "DATA")
    return shlex.join(["vireo", "eval", str(run.path / weights), "--data", data, *more])


PROBE = ("--shuffle-frames", "10", "--reverse-frames", "--single-frame")


def probe_command(run: RunFolder, one: EvaluationRecord) -> str:
    """What to type to measure what order is worth."""
    folder: Path = one.folder
    weights = f"{one.name}.safetensors"
    if run.path == folder:
        return shlex.join(["vireo", "eval", str(folder.with_name(weights)), "--data", "DATA", *PROBE])
    return evaluation_command(run, weights if weights in run.checkpoints else "best.safetensors", *PROBE)


def missing(run: RunFolder) -> str:
    """Which checkpoints have not been evaluated; empty where all have, or there are none."""
    names = {one.folder.name for one in run.evaluations}
    todo = [weights for weights in run.checkpoints if f"{Path(weights).stem}.eval" not in names]
    if run.evaluations or run.record is None:
        return ""
    if not todo:
        return notice("There are no weights yet: training has not come to its first checkpoint.")
    told = f"There is no evaluation yet (no {EVALUATION}). It is made, and this page then has its result, with"
    return notice(told, [evaluation_command(run, todo[0]), shlex.join(["vireo", "report", str(run.path)])])
