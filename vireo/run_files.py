"""What the folder of a training run says, read without its network: a run is config.yaml and metrics.csv.

Nothing heavy is imported, and nothing is believed: sizes are bounded, YAML makes plain data only, and what does
not fit is an error or a run called broken.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vireo.config import TrainConfig
from vireo.errors import DataError, UsageError
from vireo.files import read_bounded

CONFIG, METRICS, CLIPS = "config.yaml", "metrics.csv", "clips.csv"
LABELS = "labels.txt"
"""The classes in the classifier's order, one per line; checked whenever the run goes on."""
WRITTEN = (CONFIG, LABELS, CLIPS, METRICS, "failed.csv", "README.md", "curves.png", "environment.txt")
"""What a run writes beside its checkpoints."""
BEST, LAST, RESUME = "best.safetensors", "last.safetensors", "resume.safetensors"
CHECKPOINTS = (LAST, BEST, RESUME)
"""Files that state of which list of clips a run is, newest first."""
MOST_BYTES = {CONFIG: 1 << 18, METRICS: 1 << 24, CLIPS: 1 << 26}
"""Largest files that are read: settings, 100 000 epochs, half a million clips."""
MOST_VALUES = 20_000
"""Values in a config.yaml; a short one can stand for millions, by references."""
MOST_RUNS, MOST_FOLDERS = 1000, 100_000
"""How much is searched through for runs."""


class Spread(NamedTuple):
    """Several runs' figures in three numbers."""

    mean: float
    deviation: float
    """Sample deviation, with n - 1; nan of one run."""
    number: int


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and sample deviation of figures, those that are nan left out; None if there is none."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else math.nan, len(known))


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its folder tells it."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """All of them: those that config.yaml leaves out have their defaults. Empty where it can't be read."""
    rows: tuple[dict[str, float], ...] = ()
    """Of metrics.csv, one per epoch."""
    data_hash: str = ""
    """Names the list of clips; empty where no checkpoint says it."""
    clips: dict[str, int] = field(default_factory=dict)
    """Clips of the parts train, val and test; empty where clips.csv can't be read."""
    val_hash: str = ""
    """Names the validation clips; empty where clips.csv can't be read."""
    fault: str = ""
    """Why the run can't be compared; empty where it can."""

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    @property
    def planned(self) -> int:
        """Epochs that the settings ask for; 0 where they can't be read."""
        return int(self.settings.get("epochs", 0))

    @cached_property
    def best(self) -> tuple[int, float]:
        """Epoch with the highest validation top-1, the first of equals, and this top-1; 0 and nan before any."""
        known = [(row["top1"], -row["epoch"]) for row in self.rows if not math.isnan(row["top1"])]
        top1, epoch = max(known, default=(math.nan, 0.0))
        return int(-epoch), top1

    @property
    def last(self) -> float:
        """Validation top-1 of the latest epoch that was validated; nan before any."""
        return next((row["top1"] for row in reversed(self.rows) if not math.isnan(row["top1"])), math.nan)

    @property
    def minutes(self) -> float:
        """Training and validation of all its epochs."""
        return math.fsum(row.get("seconds", math.nan) for row in self.rows) / 60

    @property
    def finished(self) -> bool:
        """Whether no epoch is left: all are done, or `patience` has ended it."""
        if self.fault or not self.rows:
            return False
        patience, best = self.settings.get("patience", 0), self.best[0]
        return self.epochs >= self.planned or bool(patience and best and self.epochs - best >= patience)

    @property
    def state(self) -> str:
        """finished, unfinished or broken."""
        return "broken" if self.fault else "finished" if self.finished else "unfinished"


def check_folder(out: Path, *, resume: bool) -> None:
    """Check that a run may write in a folder, which need not be there.

    Raises:
        UsageError: it holds a run and `resume` is off, `resume` is on and it holds none, or it holds
            files that no run wrote.
    """
    if resume and not (out / RESUME).exists():
        raise UsageError(f"{out} has no {RESUME} to go on from; start without --resume")
    if resume or not out.exists():
        return
    if any((out / name).exists() for name in CHECKPOINTS):
        raise UsageError(f"{out} holds a run already; go on with --resume, or choose another --out")
    if not out.is_dir():
        raise UsageError(f"{out} is a file; choose another --out")
    found = {path.name for path in out.iterdir()} - {path.name for path in leftovers(out)}
    # A run that ended before its first save; the folder of the log is made before all else.
    begun = {*WRITTEN, "tensorboard"}
    if found and not (found <= begun and "tensorboard" in found):
        raise UsageError(f"{out} is not empty ({min(found)}, ...); choose another --out")


def check_results_folder(out: Path) -> None:
    """Check that results may be written to a folder, which need not be there; to be asked before they are made.

    Raises:
        UsageError: it is a file, or the folder of a training run, whose own records have the same names.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; results go to a folder")
    if (out / CONFIG).exists() or (out / METRICS).exists():
        raise UsageError(f"{out} is the folder of a training run, whose files would be replaced; choose another --out")


def leftovers(out: Path) -> list[Path]:
    """Files half written by a run that was killed; they have the names of no others."""
    return [path for name in (*CHECKPOINTS, *WRITTEN) for path in out.glob(f".{name}.*") if path.is_file()]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders of runs among these folders and below them, each once, in the order of their names.

    Links to folders are not followed.

    Raises:
        UsageError: a folder that isn't there, no run, or too much to search through.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; give folders of runs")
        for number, (place, inside, files) in enumerate(os.walk(folder)):
            if number == MOST_FOLDERS:
                raise UsageError(f"{folder} holds more than {MOST_FOLDERS} folders; name those of the runs")
            inside[:] = sorted(name for name in inside if name != "tensorboard" and not name.startswith("."))
            if CONFIG in files and METRICS in files:
                found.setdefault(os.path.realpath(place), Path(place))
        if len(found) > MOST_RUNS:
            raise UsageError(f"{folder} holds more than {MOST_RUNS} runs; name fewer")
    if not found:
        raise UsageError(f"no run in {', '.join(map(str, folders))}; a run's folder holds {CONFIG} and {METRICS}")
    return list(found.values())


def read_run(path: Path) -> RunRecord:
    """What a run's folder says. What can't be read is left empty; without settings or epochs `fault` says why."""
    try:
        settings = read_settings(path)
        rows = tuple(read_metrics(path))
    except DataError as error:
        return RunRecord(path=path, fault=str(error))
    clips, val_hash = count_clips(path)
    return RunRecord(
        path=path, settings=settings, rows=rows, data_hash=read_data_hash(path), clips=clips, val_hash=val_hash
    )


def read_settings(run: Path) -> dict[str, Any]:
    """The settings in a run's ``config.yaml``, those that it leaves out by their defaults.

    Raises:
        DataError: missing, too large, or no settings of a run.
    """
    path = run / CONFIG
    try:
        found = yaml.safe_load(read_text(path))
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise ValueError("it is no mapping of names")
        if any(islice(_values(found), MOST_VALUES, None)):
            raise ValueError(f"it has more than {MOST_VALUES} values")
        epochs, patience = found.get("epochs", 1), found.get("patience", 0)
        if not (type(epochs) is int and 1 <= epochs <= 10**9 and type(patience) is int and patience >= 0):
            raise ValueError(f"epochs is {epochs!r:.40}, patience {patience!r:.40}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"{path}: not the settings of a run ({told:.200})") from None
    return {**_defaults(), **found}


def _defaults() -> dict[str, Any]:
    made = {
        f.name: f.default
        if f.default is not MISSING
        else f.default_factory()
        if f.default_factory is not MISSING
        else ""
        for f in fields(TrainConfig)
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in made.items()}


def _values(found: Any) -> Iterator[bool]:
    """True for each value in plain data, in whatever is nested, as often as it is referred to."""
    todo = [found]
    while todo:
        value = todo.pop()
        yield True
        if isinstance(value, dict):
            todo += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            todo += value


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``, [] without one; a value that was not measured in an epoch is nan.

    Raises:
        DataError: damaged, or too large.
    """
    path = run / METRICS
    if not path.exists():
        return []
    rows: list[dict[str, float]] = []
    try:
        for line in csv.DictReader(io.StringIO(read_text(path), newline="")):
            row = {name: float(value) if value else math.nan for name, value in line.items()}
            epoch, top1 = row["epoch"], row.setdefault("top1", math.nan)
            if not (epoch.is_integer() and 1 <= epoch <= 10**9) or top1 < 0 or top1 > 1:
                raise ValueError(f"epoch {epoch:g}, top1 {top1:g}")
            rows.append(row)
    except (csv.Error, ValueError, TypeError, KeyError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DataError(f"{path}, row {len(rows) + 1}: not the log of a run ({told:.200})") from None
    return rows


def read_data_hash(run: Path) -> str:
    """The name of the list of clips that a run's checkpoints state; empty where none does."""
    from safetensors import SafetensorError, safe_open

    for name in CHECKPOINTS:
        path = run / name
        if not path.is_file():
            continue
        try:
            with safe_open(path, framework="np") as file:  # reads the header only, no tensor
                meta = json.loads((file.metadata() or {})["vireo"])
            found = str(meta.get("provenance", meta)["data_hash"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if re.fullmatch("[0-9a-f]{1,64}", found):
            return found
    return ""


def count_clips(run: Path) -> tuple[dict[str, int], str]:
    """Clips of each part in a run's ``clips.csv``, and a name for its validation clips; nothing if it can't be read.

    The name comes from the last two parts of the paths: the data may lie elsewhere on another machine.
    """
    counts: dict[str, int] = {}
    chosen = []
    try:
        rows = csv.DictReader(io.StringIO(read_text(run / CLIPS), newline=""))
        for row in rows:
            part = row["split"]
            if part not in ("train", "val", "test"):
                return {}, ""
            counts[part] = counts.get(part, 0) + 1
            if part == "val":
                chosen.append("\0".join([*row["path"].split("/")[-2:], row["label"], row["start"], row["end"]]))
    except (DataError, csv.Error, KeyError, TypeError, AttributeError):
        return {}, ""
    return counts, hashlib.sha256("\n".join(sorted(chosen)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


class Trained(NamedTuple):
    """A clip that a run was trained on."""

    path: str
    label: str
    start: str
    """Seconds, as `repr` writes them; empty: none."""
    end: str


def read_trained(run: Path) -> list[Trained]:
    """The clips of the training part in a run's ``clips.csv``; none if it can't be read."""
    try:
        rows = csv.DictReader(io.StringIO(read_text(run / CLIPS), newline=""))
        found = [Trained(*(row[name] for name in Trained._fields)) for row in rows if row["split"] == "train"]
    except (DataError, csv.Error, KeyError):
        return []
    return found if all(isinstance(cell, str) for row in found for cell in row) else []


def read_text(path: Path) -> str:
    """A file of a run as text.

    Raises:
        DataError: missing, no file, larger than `MOST_BYTES` says, or no text.
    """
    content = read_bounded(path, MOST_BYTES[path.name])
    try:
        return content.decode("utf-8", "surrogateescape" if path.name == CLIPS else "strict")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file") from None
