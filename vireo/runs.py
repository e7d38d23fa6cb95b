"""The folder of a training run: what is written there, and how a run goes on where it stopped."""

from __future__ import annotations

import csv
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]  # re-exported without __all__
from torch import Tensor

import vireo
from vireo.checkpoint import read_tensors, write_tensors
from vireo.config import ModelConfig, TrainConfig, ViewConfig, from_dict, to_dict
from vireo.data.annotations import ClipTable, Split
from vireo.data.dataset import Failure
from vireo.data.decode import decoder_name
from vireo.data.flow import flow_reader_name
from vireo.errors import CheckpointError, UsageError, writing
from vireo.model import Recognizer

BEST, LAST, RESUME = "best.safetensors", "last.safetensors", "resume.safetensors"


@dataclass(kw_only=True)
class Place:
    """Where a run stands; saved with the optimizer, so that resuming goes on exactly there."""

    epoch: int = 0
    """Epochs completed."""
    batch: int = 0
    """Batches done in the epoch that is under way."""
    best: float = -1.0
    """Highest validation top-1 so far; -1 before the first."""
    loss_sum: float = 0.0
    """Sum over clips of the loss in the epoch under way."""
    correct: int = 0
    """Right answers among them."""
    seen: int = 0
    """Clips seen in the epoch under way."""
    failures: dict[str, str] = field(default_factory=dict)
    """Clips that could not be read: path, with the cut if there is one → reason."""

    def next_epoch(self) -> None:
        """The epoch under way is complete."""
        self.epoch += 1
        self.batch, self.loss_sum, self.correct, self.seen = 0, 0.0, 0, 0

    def note_failures(self, failures: Iterable[Failure], table: ClipTable) -> None:
        """Remember clips of the table that could not be read."""
        for failure in failures:
            record = table.record(failure.index)
            whole = record.start is None and record.end is None
            name = failure.path if whole else f"{failure.path} [{record.start}, {record.end}) s"
            self.failures[name] = failure.reason


def claim_folder(out: Path, *, resume: bool) -> None:
    """Make the run's folder, or check that it is one we may write in.

    Raises:
        UsageError: it holds a run and `resume` is off, `resume` is on and it holds none, or it holds
            files that no run wrote.
        StorageError: it cannot be made.
    """
    has_run = (out / RESUME).exists() or (out / LAST).exists()
    if resume and not (out / RESUME).exists():
        raise UsageError(f"{out} has no {RESUME} to go on from; start without --resume")
    if has_run and not resume:
        raise UsageError(f"{out} holds a run already; go on with --resume, or choose another --out")
    if out.exists() and not resume:
        found = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
        begun = {"config.yaml", "clips.csv", "metrics.csv", "tensorboard"}  # a run that ended before its first save
        if found and not (found <= begun and "tensorboard" in found):
            raise UsageError(f"{out} is not empty ({sorted(found)[0]}, ...); choose another --out")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)


def describe_run(config: TrainConfig, data_hash: str, device: torch.device, precision: str) -> dict[str, Any]:
    """Where weights come from: settings, data, versions, machine. Travels in the checkpoint."""
    return {
        "config": {k: v for k, v in to_dict(config).items() if k not in ("out", "resume")},
        "data_hash": data_hash,
        "decoder": decoder_name() if config.modality == "rgb" else flow_reader_name(),
        "precision": precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"vireo": vireo.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_config(out: Path, config: TrainConfig) -> None:
    """The settings as ``config.yaml``, which `vireo train --config` takes back."""
    path = out / "config.yaml"
    with writing(path):
        plain = to_dict(replace(config, resume=False))
        if config.init:
            plain["pruned"] = {}  # long, and the checkpoint that `init` names has it
        path.write_text(yaml.safe_dump(plain, sort_keys=False), "utf-8")


def write_clips(out: Path, split: Split) -> None:
    """Which clip was in which part, as ``clips.csv``, which `vireo eval --data` takes."""
    path = out / "clips.csv"
    with writing(path), path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "start", "end"])
        for name, table in split._asdict().items():
            for index in range(len(table) if table is not None else 0):
                record = table.record(index)
                cut = ["" if t is None else repr(t) for t in (record.start, record.end)]
                writer.writerow([os.path.abspath(record.path), table.label_names[record.label], name, *cut])


def write_failures(path: Path, failures: Iterable[tuple[str, str]]) -> Path:
    """Name the clips that could not be read, with the reasons, as CSV."""
    with writing(path), path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(failures)
    return path


class MetricsLog:
    """``metrics.csv`` and TensorBoard, one row per epoch; a resumed run goes on in the same files."""

    COLUMNS = ("epoch", "lr", "loss", "train_top1", "top1", "mean_class", "seconds")

    def __init__(self, out: Path, *, keep_epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / "metrics.csv"
        rows = [row for row in read_metrics(out) if row["epoch"] <= keep_epochs] if keep_epochs else []
        temporary = out / ".metrics.csv.tmp"  # renamed when whole: a full disk must not cost the history
        with writing(self.path):
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.COLUMNS)
                writer.writeheader()
                writer.writerows({k: "" if math.isnan(v) else v for k, v in row.items()} for row in rows)
            temporary.replace(self.path)
            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=keep_epochs + 1)

    def write(self, row: Mapping[str, float]) -> None:
        """Append one epoch; it is on disk when this returns."""
        with writing(self.path):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.COLUMNS).writerow(row)
            for name, value in row.items():
                if name != "epoch":
                    self.board.add_scalar(name, value, int(row["epoch"]))
            self.board.flush()

    def close(self) -> None:
        """Close the TensorBoard file."""
        self.board.close()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``; a value that was not measured in an epoch is nan."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) if v else math.nan for k, v in row.items()} for row in csv.DictReader(file)]


def save_state(
    path: Path,
    config: TrainConfig,
    model: Recognizer,
    optimizer: torch.optim.Optimizer,
    ema: ModelEmaV3 | None,
    place: Place,
    data_hash: str,
) -> None:
    """Everything that the next step depends on, as tensors and JSON (no pickle), written atomically."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{k}": v for k, v in ema.module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    meta = {
        "place": vars(place),
        "config": to_dict(config),
        "model": to_dict(model.config),  # complete, with the mean and deviation that the weights stated
        "data_hash": data_hash,
        "threads": torch.get_num_threads(),
    }
    write_tensors(path, tensors, meta)


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """What :func:`save_state` wrote, checked against the run that wants to go on."""

    path: Path
    tensors: dict[str, Tensor]
    place: Place
    model: ModelConfig
    """The network, complete: resuming needs no pretrained weights."""

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with the prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def begun_with(path: Path) -> tuple[ModelConfig, ViewConfig]:
    """The network and the view of the run whose state this is.

    Raises:
        CheckpointError: missing, damaged, or no such state.
    """
    _, meta = read_tensors(path)
    try:
        known = {f.name for f in fields(ViewConfig)}
        view = {k: v for k, v in meta["config"].items() if k in known}
        return from_dict(ModelConfig, meta["model"]), from_dict(ViewConfig, view)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not the state of a training run: {error}") from None


def read_state(path: Path, config: TrainConfig, data_hash: str) -> SavedState:
    """Read the state of a run, and check that it is the run that `config` describes.

    Raises:
        CheckpointError: missing, damaged, or no such state.
        UsageError: the clips, or settings that matter, are not the run's.
    """
    tensors, meta = read_tensors(path)
    free = {"resume", "workers", "out", "data", "accelerator", "eval_every", "pretrained"}
    now, then = to_dict(config), meta.get("config", {})
    changed = [k for k in now if k not in free and now[k] != then.get(k, now[k])]
    if changed:
        told = ", ".join(f"{k} (was {then[k]!s:.60}, now {now[k]!s:.60})" for k in changed)
        raise UsageError(f"A resumed run must keep its settings; these differ: {told}")
    if meta.get("data_hash") != data_hash:
        raise UsageError(f"The list of clips in {config.data} is not the one this run began with; start a new run")
    if meta.get("threads") != torch.get_num_threads():
        print(
            f"warning: the run used {meta.get('threads')} threads, this process {torch.get_num_threads()}: "
            "results will differ in the last bits",
            file=sys.stderr,
        )
    try:
        return SavedState(
            path=path, tensors=tensors, place=Place(**meta["place"]), model=from_dict(ModelConfig, meta["model"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not the state of a training run: {error}") from None


def restore(state: SavedState, model: Recognizer, optimizer: torch.optim.Optimizer, ema: ModelEmaV3 | None) -> Place:
    """Put the weights, the optimizer and the random state back; returns where the run stood.

    Raises:
        CheckpointError: from a run whose network or optimizer differs.
    """
    try:
        model.load_state_dict(state.under("model."))
        if ema is not None:
            ema.module.load_state_dict(state.under("ema."))
        slots = optimizer.state_dict()
        slots["state"] = {}
        for key, value in state.under("optimizer.").items():
            index, name = key.split(".", 1)
            slots["state"].setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(slots)
        torch.set_rng_state(state.tensors["random.cpu"])
        if torch.cuda.is_available() and "random.cuda" in state.tensors:
            torch.cuda.set_rng_state(state.tensors["random.cuda"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{state.path} does not fit this run: {str(error).splitlines()[0]}") from None
    return state.place
