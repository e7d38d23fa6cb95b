"""README.md and curves.png of a run's folder: what it is, how it went, what each file is for, what to type next."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vireo.config import TrainConfig
from vireo.data.table import counted
from vireo.errors import VireoError
from vireo.files import replacing
from vireo.plots import run_png, write_png
from vireo.progress import printable
from vireo.run_files import RunRecord, read_metrics

PAGE, CURVES, ENVIRONMENT = "README.md", "curves.png", "environment.txt"
MARK = "<!-- Written by Vireo, which replaces this file: keep notes in another one. -->"
"""First line of a page that may be replaced."""
SECONDS_BETWEEN = 10.0
"""Least time from one drawing of the curves to the next while a run goes on."""

FILES = {
    "best.safetensors": "the weights with the highest validation top-1: all that `vireo predict` and `eval` need",
    "last.safetensors": "the weights after the last step, likewise complete",
    "step-*.safetensors": "earlier ones of these",
    "resume.safetensors": "what going on needs: weights, optimizer, place in the epoch",
    "config.yaml": "all settings; `vireo train --config` takes it",
    "labels.txt": "the classes, in the order of the network's answers",
    "clips.csv": "which clip was in which part; `vireo eval --data` takes it",
    "metrics.csv": "learning rate, loss and accuracy of every epoch",
    CURVES: "the same as a picture",
    "tensorboard": "the same for TensorBoard",
    "failed.csv": "clips that could not be read, with the reasons",
    "report.html": "all of this and its evaluations as one page, by `vireo report`",
    ENVIRONMENT: "Python, machine, and all packages with their versions",
}
"""What a run's folder may hold, and what for."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run is: settled before its first step."""

    config: TrainConfig
    network: str
    """In a few words, e.g. ``tei × mobilenetv2_100, 8 frames of 224²``."""
    parameters: int
    classes: int
    clips: Mapping[str, int]
    """Clips of the parts train, val and test."""
    data_hash: str
    device: str
    """cpu, cuda, ..."""
    provenance: Mapping[str, Any]
    """As in the checkpoints: versions, device, precision, threads, source."""
    folder: Path
    """Where the command was run; relative paths in the settings begin there."""


class RunPage:
    """Keeps ``README.md`` and ``curves.png`` of a run up to date.

    Trouble with them is told once and ends nothing: the run is in its checkpoints.
    """

    def __init__(self, out: Path, facts: RunFacts, warn: Callable[[str], object]) -> None:
        self._out, self._facts, self._warn = out, facts, warn
        self._drawn, self._drawn_at = 0, time.monotonic()  # epochs in the picture; when it was made, or might have been
        self._place, self._told = (0, 0, 0), False

    def update(self, epoch: int, batch: int, failed: int, *, ended: bool = False) -> None:
        """Write the page as the run stands, and the curves if that is due.

        Args:
            epoch: epochs done.
            batch: batches done in the epoch under way.
            failed: clips that could not be read so far.
            ended: whether the process stops training now, whatever is left.
        """
        self._place = epoch, batch, failed
        try:
            rows = read_metrics(self._out)
            due = ended or time.monotonic() - self._drawn_at >= SECONDS_BETWEEN
            if due and rows and len(rows) != self._drawn:
                write_png(self._out / CURVES, run_png(rows, epochs=max(self._facts.config.epochs, len(rows))))
                self._drawn, self._drawn_at = len(rows), time.monotonic()
            if may_replace(self._out / PAGE):
                record = RunRecord(path=self._out, settings=vars(self._facts.config), rows=tuple(rows))
                write_page(self._out / PAGE, page_lines(self._out, self._facts, record, batch, failed, ended=ended))
        except Exception as error:  # whatever it is, a page or picture is not worth a night's training
            if not self._told:
                self._warn(f"{error if isinstance(error, VireoError) else f'{PAGE} or {CURVES}: {error!r}'}")
            self._told = True

    def close(self) -> None:
        """The process stops training: the last state of it all."""
        self.update(*self._place, ended=True)


def may_replace(path: Path) -> bool:
    """Whether a page is absent or ours."""
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK.encode()
    except FileNotFoundError:
        return True
    except OSError:
        return False


def write_page(path: Path, lines: Iterable[str]) -> None:
    """Write Markdown, whole or not at all, with the mark that it may be replaced.

    Raises:
        StorageError: it can't be written; what was there before is intact.
    """
    with replacing(path) as file:
        file.writelines(f"{line}\n" for line in (MARK, *lines))


def page_lines(out: Path, facts: RunFacts, record: RunRecord, batch: int, failed: int, *, ended: bool) -> list[str]:
    """The page of one run."""
    config, clips, origin = facts.config, facts.clips, facts.provenance
    parts = [f"{clips[name]} {title}" for name, title in PARTS.items() if clips.get(name)]
    kept = " (the moving average of its weights is kept)" if config.ema_decay else ""
    lines = [
        f"# {code(out.absolute().name)}",
        "",
        f"{code(facts.network)}, {facts.parameters / 1e6:.2f} M parameters{kept}, trained on {code(config.data)}: "
        f"{', '.join(parts)} clips of {counted(facts.classes, 'class')} (list {facts.data_hash}).",
        "",
        *standing(record, batch, failed, ended=ended),
        "",
        *([f"![Loss and accuracy over the epochs]({CURVES})", ""] if (out / CURVES).exists() else []),
        "## Commands",
        "",
        f"In {code(str(facts.folder))}:",
        "",
        "```bash",
        *commands(out, config, finished=record.finished, begun=bool(record.rows or batch)),
        "```",
        "",
    ]
    if config.devices * config.num_nodes > 1:
        machines = f" on each of {config.num_nodes} machines" if config.num_nodes > 1 else ""
        lines += [f"`train` needs {config.devices} devices{machines}, and to be started as it was then.", ""]
    elif facts.device == "cpu":
        threads = counted(origin["threads"], "thread")
        lines.append(
            f"On a CPU, with {threads} and the packages in `{ENVIRONMENT}`, the same run gives the same weights,"
        )
        lines += ["bit for bit.", ""]
    return [*lines, *file_table(out), "", "## Where it comes from", "", *source_lines(origin, config.seed)]


PARTS = {"train": "training", "val": "validation", "test": "test"}


def standing(record: RunRecord, batch: int, failed: int, *, ended: bool) -> list[str]:
    """How far the run is, and its accuracy."""
    (epoch, best), last, rows = record.best, record.last, record.rows
    spent = f", {record.minutes:.1f} minutes" if math.isfinite(record.minutes) and rows else ""
    done = f"{record.epochs} of {counted(record.planned, 'epoch')}{spent}"
    if record.finished:
        early = ": `patience` ended it" if record.epochs < record.planned else ""
        lines = [f"**Finished**: {done}{early}."]
    else:
        within = f" and {counted(batch, 'batch')} of the next one" if batch else ""
        state = "Stopped" if ended else "Under way when this was written, or killed since"
        lines = [f"**{state}**: {done}{within}."]
    if epoch:
        lines += [
            "",
            "| Weights | Validation top-1 |",
            "|---|---|",
            f"| best, epoch {epoch} | {100 * best:.1f} % |",
            f"| last | {100 * last:.1f} % |",
            "",
            f"The best of {number_validated(rows)} epochs was chosen on the clips it is scored on, so its figure is "
            "optimistic; the last one was not chosen.",
        ]
    if failed:
        lines += ["", f"{counted(failed, 'clip')} could not be read; `failed.csv` has the reasons."]
    return lines


def number_validated(rows: Sequence[Mapping[str, float]]) -> int:
    """Epochs that were validated."""
    return sum(not math.isnan(row["top1"]) for row in rows)


def commands(out: Path, config: TrainConfig, *, finished: bool, begun: bool) -> list[str]:
    """What to type next, a line each."""
    run, data = shlex.quote(str(out)), shlex.quote(config.data)
    settings = shlex.quote(str(out / "config.yaml"))
    found = [(f"vireo train --config {settings} --out {shlex.quote(f'{out}-again')}", "the same run once more")]
    if not finished:
        going_on = (f"vireo train --config {settings} --resume", "go on where it stopped")
        found = [going_on, *found] if begun else found
    if begun:
        found.append((f"vireo eval {run}/last.safetensors --data {data}", "score it"))
        best = "best" if (out / "best.safetensors").exists() else "last"
        found.append((f"vireo predict {run}/{best}.safetensors VIDEO", "say what happens in a video"))
    width = max(len(line) for line, _ in found)
    return [f"{line:{width}}  # {what}" for line, what in found]


def file_table(out: Path) -> list[str]:
    """The files that are there, and what each is for."""
    rows = [f"| `{name}` | {what} |" for name, what in FILES.items() if any(out.glob(name))]
    return ["## Files", "", "| File | |", "|---|---|", *rows]


def source_lines(origin: Mapping[str, Any], seed: int) -> list[str]:
    """Versions, source and machine."""
    versions = origin.get("versions", {})
    lines = [f"- Vireo {versions.get('vireo')}, torch {versions.get('torch')}, Python {versions.get('python')}"]
    told = source_in_words(origin.get("git") or {})
    lines += [f"- {what}: {code(state)}" for what, state in told.items()]
    about = (printable(str(origin.get("device"))), f"precision {origin.get('precision')}", f"seed {seed}")
    lines.append(f"- {', '.join(about)}; decoder {origin.get('decoder')}; begun {origin.get('started')}")
    return lines


def source_in_words(git: Mapping[str, Any]) -> dict[str, str]:
    """The states of repositories by what they are of; one line where both are the same."""
    from vireo.provenance import GitState

    found = {name: str(GitState(**state)) for name, state in git.items() if state}
    if len(found) == 2 and len(set(found.values())) == 1:
        return {"source of Vireo, and where the command was run": found["vireo"]}
    titles = {"vireo": "source of Vireo", "here": "where the command was run"}
    return {titles[name]: found[name] for name in titles if name in found}


def code(text: str) -> str:
    """Any text as a Markdown code span, in one line."""
    text = printable(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"
