"""Two models on the same clips: is one better, or is it chance; at which classes; and what does that look like.

    wins and losses      clips that one model has right and the other wrong: all that a comparison rests on
    McNemar's test       whether they are more one-sided than a coin would throw them (McNemar, 1947)
    interval             of the difference, 95 %, by drawing clips again, both models' answers to a clip together

A is the model before, B the one after: differences are B minus A. Clips are matched by name, as in `vireo fuse`.
"""

from __future__ import annotations

import csv
import json as jsonlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

import vireo
from vireo import plots
from vireo.data.annotations import read_table
from vireo.data.outputs import shorter_names
from vireo.data.table import SPLITS, ClipTable
from vireo.errors import DataError, UsageError
from vireo.files import replacing, replacing_together, write_json
from vireo.progress import make_console, printable
from vireo.run_files import check_results_folder
from vireo.scores import (
    ScoreTable,
    clip_names,
    differing_lists,
    match_clips,
    match_tables,
    ranks,
    read_facts,
    read_scores,
)
from vireo.statistics import Interval, bootstrap_mean, wilson_interval
from vireo.strips import Answer, Strip, clip_frames, strips_png

Bools = npt.NDArray[np.bool_]

EXACT_BELOW = 25
"""Clips on which the models differ, below which the test is the exact one: for fewer, chi-square is too rough."""
CHANCE = 0.05
"""A p-value below this is called more than chance."""
_MOST_BARS = 40  # of gains, and of losses, in a picture


# --- what two models said -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """What two models, A and B, said of the same M clips, K classes."""

    clips: tuple[str, ...]
    """Names of the clips, as A has them."""
    label_names: tuple[str, ...]
    """In A's order."""
    labels: Tensor
    """(M,) int64, true classes."""
    scores: tuple[Tensor, Tensor]
    """(M, K) float32 of each model, before softmax."""

    def right(self, model: int) -> Bools:
        """(M,) whether a model's highest score is the true class."""
        return (self.scores[model].argmax(1) == self.labels).numpy()


def align(a: ScoreTable, b: ScoreTable, names: tuple[str, str] = ("A", "B")) -> Pair:
    """The clips that both models scored, with the classes in A's order.

    Raises:
        DataError: they don't fit together, see `vireo.scores.match_tables`.
    """
    rows, labels, (of_a, of_b) = match_tables((a, b), names)
    clips = tuple(a.clips[i] for i in rows[0].tolist())
    return Pair(clips=clips, label_names=a.label_names, labels=labels, scores=(of_a, of_b))


# --- what that amounts to -----------------------------------------------------------------------------


class McNemar(NamedTuple):
    """Whether two models' accuracies on the same clips differ by more than chance (McNemar, 1947)."""

    only_a: int
    """Clips that A alone has right."""
    only_b: int
    statistic: float | None
    """Chi-square with one degree of freedom, continuity corrected (Edwards, 1948); None: the test was exact."""
    p: float
    """Probability of a difference as large, or larger, if both were equally good."""

    @property
    def more_than_chance(self) -> bool:
        """Whether p is below `CHANCE`."""
        return self.p < CHANCE


def mcnemar(only_a: int, only_b: int) -> McNemar:
    """McNemar's test, two-sided: exact (binomial) for fewer than `EXACT_BELOW` clips, else by chi-square.

    Args:
        only_a: clips that A alone has right.
        only_b: clips that B alone has right.
    """
    count = only_a + only_b
    if count < EXACT_BELOW:
        tail = sum(math.comb(count, i) for i in range(min(only_a, only_b) + 1))
        return McNemar(only_a, only_b, None, min(1.0, 2 * tail / 2**count))
    statistic = max(0, abs(only_a - only_b) - 1) ** 2 / count
    return McNemar(only_a, only_b, statistic, math.erfc(math.sqrt(statistic / 2)))  # of χ² with one degree of freedom


@dataclass(frozen=True, kw_only=True)
class ModelScore:
    """How good one of the models is on the clips in common. Accuracies are in [0, 1]."""

    name: str
    clips: int
    """That it was to score, in common or not."""
    failed: int
    """Of those, clips that could not be read."""
    unmatched: int
    """Clips it scored that the other one lacks or could not read; they are left out."""
    correct: int
    top1: float
    interval: Interval
    """95 % Wilson interval of top1."""
    top5: float
    mean_class: float
    """Mean of the classes' accuracies, over classes that have clips."""
    facts: Mapping[str, str]
    """From the evaluation.json beside its scores: checkpoint, protocol, data_hash; empty where there is none."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        counts = {"clips": self.clips, "failed": self.failed, "unmatched": self.unmatched, "correct": self.correct}
        accuracies = {"top1": self.top1, "top5": self.top5, "mean_class": self.mean_class}
        return {"scores": self.name, **self.facts, **counts, **accuracies, "interval95": list(self.interval)}


class ClassChange(NamedTuple):
    """A class and both models."""

    label: str
    clips: int
    correct_a: int
    correct_b: int

    @property
    def points(self) -> float:
        """Accuracy of B minus that of A, in points of percent; 0 without clips."""
        return 100 * (self.correct_b - self.correct_a) / max(1, self.clips)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON and CSV; accuracies in [0, 1], None without clips."""
        a, b = (n / self.clips if self.clips else None for n in (self.correct_a, self.correct_b))
        return {**self._asdict(), "accuracy_a": a, "accuracy_b": b, "points": self.points if self.clips else None}


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What :func:`compare` finds."""

    pair: Pair
    a: ModelScore
    b: ModelScore
    interval: Interval
    """95 % bootstrap interval of `difference`."""
    test: McNemar
    classes: tuple[ClassChange, ...]
    """In the order of the labels."""
    seed: int
    """Of the bootstrap."""
    notes: tuple[str, ...] = ()
    """What makes the comparison less than it seems."""

    @property
    def difference(self) -> float:
        """Top-1 of B minus that of A."""
        return (self.b.correct - self.a.correct) / len(self.pair.clips)

    @property
    def neither(self) -> int:
        """Clips that both have wrong."""
        return len(self.pair.clips) - self.a.correct - self.test.only_b

    @property
    def both(self) -> int:
        """Clips that both have right."""
        return self.a.correct - self.test.only_a

    def verdict(self) -> str:
        """Whether the difference is more than chance, in a sentence."""
        test = self.test
        if test.only_a + test.only_b == 0:
            return "Both are right on the same clips: there is no difference."
        sign = -1 if test.more_than_chance and self.difference < 0 else 1  # of the better one's lead
        low, high = (plots.signed(x) for x in sorted(100 * sign * x for x in self.interval))
        kind = "McNemar's exact test" if test.statistic is None else "McNemar's test"
        p = "p < 0.0001" if test.p < 0.0001 else f"p = {test.p:.2g}"
        how = f"{kind} on the {test.only_a + test.only_b} clips where they differ: {p}"
        if test.more_than_chance:
            better = "B" if self.difference > 0 else "A"
            by = f"{100 * abs(self.difference):.1f} points"
            return f"{better} is better by {by}, which is more than chance ({how}; 95 % interval {low} to {high})."
        by = f"{plots.signed(100 * self.difference)} points"
        return f"The difference, {by}, may be chance ({how}; 95 % interval {low} to {high})."

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        test = self.test
        return {
            "a": self.a.as_dict(),
            "b": self.b.as_dict(),
            "clips": len(self.pair.clips),
            "right": {"both": self.both, "only_a": test.only_a, "only_b": test.only_b, "neither": self.neither},
            "difference": self.difference,
            "difference95": list(self.interval),
            "mcnemar": {
                "p": test.p,
                "statistic": test.statistic,
                "exact": test.statistic is None,
                "more_than_chance": test.more_than_chance,
            },
            "verdict": self.verdict(),
            "classes": [change.as_dict() for change in self.classes],
            "notes": list(self.notes),
            "seed": self.seed,
            "vireo": vireo.__version__,
        }


def compare(
    a: ScoreTable,
    b: ScoreTable,
    names: tuple[str, str] = ("A", "B"),
    *,
    facts: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    seed: int = 0,
) -> Comparison:
    """Compare two models on the clips that both scored.

    Args:
        a: what the model before said.
        b: what the one after said.
        names: of the two, for messages.
        facts: what their scores rest on, for notes.
        seed: of the bootstrap.

    Raises:
        DataError: they can't be compared, see :func:`align`.
    """
    pair = align(a, b, names)
    right, truth = (pair.right(0), pair.right(1)), pair.labels.numpy()
    count = len(pair.label_names)
    totals, *correct = (np.bincount(of, minlength=count) for of in (truth, truth[right[0]], truth[right[1]]))
    models = [
        _model_score(name, table, pair, i, correct[i], totals, facts[i])
        for i, (name, table) in enumerate(zip(names, (a, b), strict=True))
    ]
    return Comparison(
        pair=pair,
        a=models[0],
        b=models[1],
        interval=bootstrap_mean(right[1].astype(int) - right[0].astype(int), seed=seed),
        test=mcnemar(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())),
        classes=tuple(
            ClassChange(label, int(n), int(of_a), int(of_b))
            for label, n, of_a, of_b in zip(pair.label_names, totals, *correct, strict=True)
        ),
        seed=seed,
        notes=tuple(_notes(models[0], models[1], len(pair.clips), differing_lists(facts))),
    )


def _model_score(
    name: str,
    table: ScoreTable,
    pair: Pair,
    model: int,
    correct: npt.NDArray[np.int64],
    totals: npt.NDArray[np.int64],
    facts: Mapping[str, str],
) -> ModelScore:
    scores, scored = pair.scores[model], len(pair.clips)
    hits, read = int(correct.sum()), int(table.read.sum())
    return ModelScore(
        name=name,
        clips=len(table.clips),
        failed=len(table.clips) - read,
        unmatched=read - scored,
        correct=hits,
        top1=hits / scored,
        interval=wilson_interval(hits, scored),
        top5=float((ranks(scores, pair.labels) < 5).double().mean()),
        mean_class=float((correct[totals > 0] / totals[totals > 0]).mean()),
        facts={key: facts[key] for key in ("checkpoint", "protocol", "data_hash") if key in facts},
    )


def _notes(a: ModelScore, b: ModelScore, common: int, lists: str) -> list[str]:
    notes = []
    for model, called in ((a, "A"), (b, "B")):
        if left := model.clips - common:
            notes.append(f"{left} of {called}'s {model.clips} clips are left out: not scored by both")
    if lists:
        notes.append(lists)
    protocols = [m.facts.get("protocol") for m in (a, b)]
    if all(protocols) and protocols[0] != protocols[1]:
        notes.append(f"the protocols differ: {protocols[0]}; {protocols[1]}")
    return notes


def choose_changes(
    classes: Sequence[ClassChange], *, min_points: float = 0.0, most: int = 12
) -> tuple[list[ClassChange], list[ClassChange]]:
    """The classes that gain, most first, and those that lose, most first.

    Args:
        classes: all of them.
        min_points: only those that change by at least so many points; then there may be any number.
        most: of either, where no ``min_points`` are given.
    """
    ordered = sorted(classes, key=lambda c: (-abs(c.points), -c.clips))
    gains = [c for c in ordered if c.correct_b > c.correct_a and _reaches(c, min_points)]
    losses = [c for c in ordered if c.correct_b < c.correct_a and _reaches(c, min_points)]
    return (gains, losses) if min_points > 0 else (gains[:most], losses[:most])


def _reaches(change: ClassChange, points: float) -> bool:
    # Whole numbers, as a quotient of floats may miss it by a hair: 3 of 50 are 6 points.
    return 100 * abs(change.correct_b - change.correct_a) >= points * change.clips


# --- examples -----------------------------------------------------------------------------------------

Kind = Literal["only_a", "only_b", "neither"]
HEADINGS: dict[Kind, str] = {"only_a": "Right by A only", "only_b": "Right by B only", "neither": "Wrong by both"}


def choose_examples(pair: Pair, each: int = 2) -> dict[Kind, list[int]]:
    """Clips that show how the models differ: of every kind the clearest ones, of different classes as far as possible.

    Where one model is right, clearest is where it gives the true class most more than the other one does; where both
    are wrong, where both are surest of what they say.

    Args:
        pair: the models' scores.
        each: most clips of a kind.

    Returns:
        Rows of the clips, the clearest first.
    """
    chances = [scores.double().softmax(1) for scores in pair.scores]
    true = [chance.gather(1, pair.labels[:, None])[:, 0].numpy() for chance in chances]
    sure = torch.minimum(chances[0].amax(1), chances[1].amax(1)).numpy()
    a, b = pair.right(0), pair.right(1)
    kinds: dict[Kind, tuple[Bools, npt.NDArray[np.float64]]] = {
        "only_a": (a & ~b, true[0] - true[1]),
        "only_b": (b & ~a, true[1] - true[0]),
        "neither": (~a & ~b, sure),
    }
    labels = pair.labels.numpy()
    return {kind: _clearest(np.flatnonzero(of), how, labels, each) for kind, (of, how) in kinds.items()}


def _clearest(
    rows: npt.NDArray[np.int64], clear: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], most: int
) -> list[int]:
    ordered: list[int] = rows[np.argsort(-clear[rows], kind="stable")].tolist()
    first: dict[int, int] = {}  # class → its clearest clip
    for row in ordered:
        first.setdefault(int(labels[row]), row)
    chosen = set(first.values())
    return [*first.values(), *(row for row in ordered if row not in chosen)][:most]


def describe_example(pair: Pair, kind: Kind, row: int, *, top: int = 3) -> dict[str, Any]:
    """A clip with both models' most probable classes, as plain data."""
    answers = {}
    for name, scores in zip("ab", pair.scores, strict=True):
        classes = scores[row].sort(descending=True, stable=True).indices[:top]
        pairs = zip(classes.tolist(), scores[row].double().softmax(0)[classes].tolist(), strict=True)
        answers[name] = [{"label": pair.label_names[c], "probability": p} for c, p in pairs]
    return {"kind": kind, "clip": pair.clips[row], "label": pair.label_names[int(pair.labels[row])], **answers}


def find_clips(pair: Pair | ScoreTable, rows: Sequence[int], table: ClipTable) -> tuple[list[int], ClipTable]:
    """Where clips stand in a data set, by their names.

    The scores may be those of one split, whose clips are named by the path below the folder that holds these alone; so
    each split is looked through as well as the whole.

    Args:
        pair: whose clips.
        rows: of the clips that are wanted.
        table: the data set.

    Returns:
        Those of ``rows`` that were found, and as many rows of the data set.
    """
    parts = [table]
    if table.splits is not None:
        named = set(table.splits.distinct()[0])
        parts += [table.in_split(split) for split in SPLITS if split in named]
    own = _names_only(pair.clips)
    matched = [(match_clips([own, _names_only(clip_names(part))]), part) for part in parts]
    (mine, theirs), part = max(matched, key=lambda one: len(one[0][0]))
    place = dict(zip(mine.tolist(), theirs.tolist(), strict=True))
    label = {row: pair.label_names[int(pair.labels[row])] for row in rows}
    found = [row for row in rows if row in place and part.label_names[int(part.labels[place[row]])] == label[row]]
    return found, part.select([place[row] for row in found])


def _names_only(clips: Sequence[str]) -> ScoreTable:
    """Clips as `match_clips` takes them."""
    count = len(clips)
    labels, scores = torch.zeros(count, dtype=torch.int64), torch.zeros(count, 1)
    return ScoreTable(clips=tuple(clips), labels=labels, label_names=("",), scores=scores)


# --- the command --------------------------------------------------------------------------------------


def compare_command(
    a: Path,
    b: Path,
    *,
    data: str = "",
    out: Path | None = None,
    min_points: float = 0.0,
    most: int = 12,
    examples: int = 2,
    seed: int = 0,
    workers: int = 1,
    json: bool = False,
) -> int:
    """What `vireo compare` does: read the scores, compare, print, and write files and pictures where asked.

    Raises:
        UsageError: wrong arguments; nothing is written then.
        DataError: scores that can't be compared, or unusable data.
    """
    if not 0 <= min_points <= 100:
        raise UsageError(f"min_points is {min_points}; it must be from 0 to 100")
    if most < 1 or examples < 0 or seed < 0:
        raise UsageError(f"most is {most}, examples {examples} and seed {seed}; at least 1, 0 and 0 are needed")
    if out is not None:
        check_results_folder(out)
    if data and out is None:
        raise UsageError("--data is for the pictures of example clips; say with --out where they go")
    tables, facts = (read_scores(a), read_scores(b)), (read_facts(a), read_facts(b))
    found = compare(tables[0], tables[1], (str(a), str(b)), facts=facts, seed=seed)
    changes = choose_changes(found.classes, min_points=min_points, most=most)
    chosen = choose_examples(found.pair, examples)
    record = [describe_example(found.pair, kind, row) for kind, rows in chosen.items() for row in rows]
    if out is None:
        _tell(found, changes, min_points, {**found.as_dict(), "examples": record}, json=json)
        return 0
    modality = "flow" if all(table.modality == "flow" for table in tables) else "rgb"
    picture, why = None, ""
    if record:
        picture, why = _draw_examples(found, chosen, data, facts, modality, workers)
    if why:
        found = replace(found, notes=(*found.notes, why))
    whole = {**found.as_dict(), "examples": record}
    try:
        _write(out, found, whole, changes, min_points, picture)
    finally:  # a full disk does not take the figures along, nor `| head` the files
        _tell(found, changes, min_points, whole, json=json)
    if not json:
        make_console().print(f"[dim]written to {escape(printable(str(out)))}[/dim]", highlight=False, soft_wrap=True)
    return 0


def _draw_examples(
    found: Comparison,
    chosen: Mapping[Kind, Sequence[int]],
    data: str,
    facts: Sequence[Mapping[str, str]],
    modality: str,
    workers: int,
) -> tuple[bytes | None, str]:
    """The picture of the examples; or None, and why there is none.

    Raises:
        UsageError: the data that was asked for do not exist.
        DataError: they can't be used.
    """
    rows = [row for of in chosen.values() for row in of]
    table: ClipTable | None = None
    if data:
        table = read_table(data, modality=modality)
    else:
        stated = next((fact["data"] for fact in facts if fact.get("data")), "")
        try:
            table = read_table(stated, modality=modality) if stated else None
        except (UsageError, DataError):
            table = None
    if table is None:
        return None, "no examples.png: give the clips with --data"
    there, clips = find_clips(found.pair, rows, table)
    if not there:
        return None, "no examples.png: none of the clips is in the data"
    frames = dict(zip(there, clip_frames(clips, modality=modality, workers=workers), strict=True))
    if all(of is None for of in frames.values()):
        return None, "no examples.png: none of the clips can be read"
    strips: list[Strip] = []
    counts = {"only_a": found.test.only_a, "only_b": found.test.only_b, "neither": found.neither}
    for kind, of in chosen.items():
        for row in of:
            if row not in frames:
                continue
            heading = "" if any(s.heading.startswith(HEADINGS[kind]) for s in strips) else _heading(kind, counts[kind])
            strips.append(_strip(found.pair, kind, row, frames[row], heading))
    names = [f"{letter}: {name}" for letter, name in zip("AB", _short(found), strict=True)]
    note = "The clearest clips of each kind, not drawn at random. In colour: the true class."
    return strips_png("Where the models differ", strips, models=names, notes=[note]), ""


def _heading(kind: Kind, count: int) -> str:
    return f"{HEADINGS[kind]} · {count:,} clip{'s' * (count != 1)}"


def _strip(pair: Pair, kind: Kind, row: int, frames: Any, heading: str) -> Strip:
    told = describe_example(pair, kind, row)
    answers = [
        tuple(Answer(one["label"], one["probability"], one["label"] == told["label"]) for one in told[model])
        for model in "ab"
    ]
    return Strip(
        title=told["clip"], about=f"is {told['label']}", frames=frames, answers=tuple(answers), heading=heading
    )


def _short(found: Comparison) -> tuple[str, str]:
    """The models' names without what they share."""
    short = shorter_names([found.a.name, found.b.name])
    return (short[0], short[1]) if short[0] != short[1] else (found.a.name, found.b.name)


def _write(
    out: Path,
    found: Comparison,
    whole: Mapping[str, Any],
    changes: tuple[Sequence[ClassChange], Sequence[ClassChange]],
    min_points: float,
    examples: bytes | None,
) -> None:
    """Write all there is; files of an earlier comparison that this one lacks go.

    Raises:
        StorageError: one can't be written.
    """
    with replacing_together(out, ("compare.json", "classes.csv", "gains.png", "examples.png")) as folder:
        write_json(folder / "compare.json", whole)
        with replacing(folder / "classes.csv") as file:
            writer = csv.DictWriter(file, list(found.classes[0].as_dict()))
            writer.writeheader()
            writer.writerows(change.as_dict() for change in found.classes)
        for name, png in (("gains.png", _gains(found, changes, min_points)), ("examples.png", examples)):
            if png is not None:
                plots.write_png(folder / name, png)


def _gains(
    found: Comparison, changes: tuple[Sequence[ClassChange], Sequence[ClassChange]], min_points: float
) -> bytes | None:
    gains, losses = changes[0][:_MOST_BARS], changes[1][:_MOST_BARS]
    shown = [*gains, *reversed(losses)]
    if not shown:
        return None
    bars = [plots.Change(c.label, c.correct_a / c.clips, c.correct_b / c.clips, c.clips) for c in shown]
    title = "Classes that gain and lose most"
    if min_points > 0:
        title = f"Classes that change by at least {min_points:g} points"
    left = sum(map(len, changes)) - len(shown)
    note = f"{left} more in classes.csv. " if left else ""
    note += "Of a class with few clips, one more or less is many points."
    return plots.changes_png(bars, title, _short(found), note)


def _tell(
    found: Comparison,
    changes: tuple[Sequence[ClassChange], Sequence[ClassChange]],
    min_points: float,
    whole: Mapping[str, Any],
    *,
    json: bool,
) -> None:
    if json:
        print(jsonlib.dumps(whole, ensure_ascii=False), flush=True)
    else:
        print_comparison(found, changes, make_console(), min_points=min_points)


def print_comparison(
    found: Comparison,
    changes: tuple[Sequence[ClassChange], Sequence[ClassChange]],
    console: Console,
    *,
    min_points: float = 0.0,
    limit: int = 8,
) -> None:
    """Both models, the verdict, and the classes that gain and lose most."""
    count = min(5, len(found.pair.label_names))
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("", "scores", "clips", "failed", "top-1", "95 % interval", f"top-{count}", "mean-class"):
        table.add_column(title, justify="left" if title in ("", "scores") else "right", overflow="fold")
    for letter, name, m in zip("AB", _short(found), (found.a, found.b), strict=True):
        low, high = m.interval
        interval = f"{100 * low:.1f}–{100 * high:.1f}"
        figures = (f"{100 * m.top1:.1f} %", interval, f"{100 * m.top5:.1f} %", f"{100 * m.mean_class:.1f} %")
        table.add_row(f"[bold]{letter}[/bold]", escape(printable(name)), str(m.clips), str(m.failed), *figures)
    console.print(table)
    test = found.test
    console.print(
        f"\nof {len(found.pair.clips)} clips in common: both right {found.both}, A alone {test.only_a}, "
        f"B alone {test.only_b}, both wrong {found.neither}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(Text(found.verdict(), "bold"), soft_wrap=True)
    gains, losses = changes
    if gains or losses:
        console.print()
        console.print(_class_table(gains[:limit], losses[:limit]))
        if (left := len(gains[limit:]) + len(losses[limit:])) > 0:
            console.print(f"[dim]… and {left} more[/dim]", highlight=False)
    elif min_points > 0:
        console.print(f"no class changes by {min_points:g} points", highlight=False)
    for note in found.notes:
        console.print(Text(printable(note), "dim"), soft_wrap=True)


def _class_table(gains: Sequence[ClassChange], losses: Sequence[ClassChange]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("class", overflow="fold")
    for title in ("points", "A", "B", "clips"):
        table.add_column(title, justify="right")
    for change in (*gains, *reversed(losses)):
        accuracies = (f"{100 * n / change.clips:.1f} %" for n in (change.correct_a, change.correct_b))
        points = Text(plots.signed(change.points), "cyan" if change.points > 0 else "red")
        table.add_row(escape(printable(change.label)), points, *accuracies, str(change.clips))
    return table
