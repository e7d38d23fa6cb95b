"""The folder of a training run: what is written there, and how a run goes on where it stopped."""

from __future__ import annotations

import csv
import math
import os
import platform
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
from vireo.checkpoint import read_tensors, write_atomically, write_tensors
from vireo.config import ModelConfig, TrainConfig, ViewConfig, from_dict, to_dict
from vireo.data.faults import Failure
from vireo.data.splits import Split
from vireo.data.table import ClipTable
from vireo.errors import CheckpointError, UsageError, writing
from vireo.files import replacing
from vireo.model import Recognizer
from vireo.run_files import LAST, check_folder, leftovers
from vireo.run_files import read_metrics as read_metrics  # here, too, for whoever looks for it


@dataclass(kw_only=True)
class Place:
    """Where a run stands; saved with the optimizer, so that resuming goes on exactly there."""

    epoch: int = 0
    """Epochs completed."""
    batch: int = 0
    """Batches done in the epoch that is under way."""
    top1: float = math.nan
    """Validation top-1 after the last epoch that was validated; nan before the first."""
    best: float = -1.0
    """Highest validation top-1 so far; -1 before the first."""
    best_epoch: int = 0
    """Epochs completed when it was reached."""
    loss_sum: float = 0.0
    """Sum over clips of the loss in the epoch under way."""
    correct: int = 0
    """Right answers among them."""
    seen: int = 0
    """Clips seen in the epoch under way."""
    failures: dict[str, str] = field(default_factory=dict)
    """Clips that could not be read: path, with the cut if there is one → reason."""

    def note_validation(self, top1: float) -> bool:
        """Remember the accuracy after the epoch under way; True if it is the best so far."""
        self.top1, better = top1, top1 > self.best
        if better:
            self.best, self.best_epoch = top1, self.epoch + 1
        return better

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
    check_folder(out, resume=resume)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for path in leftovers(out):
            path.unlink(missing_ok=True)


def describe_run(
    config: TrainConfig, data_hash: str, device: torch.device, precision: str, *, decoder: str
) -> dict[str, Any]:
    """Where weights come from: settings, data, versions, machine. Travels in the checkpoint."""
    return {
        "config": {k: v for k, v in to_dict(config).items() if k not in ("out", "resume")},
        "data_hash": data_hash,
        "decoder": decoder,
        "precision": precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"vireo": vireo.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_config(out: Path, config: TrainConfig) -> None:
    """The settings as ``config.yaml``, which `vireo train --config` takes back."""
    plain = to_dict(replace(config, resume=False))
    if config.init:
        plain["pruned"] = {}  # long, and the checkpoint that `init` names has it
    write_atomically(out / "config.yaml", yaml.safe_dump(plain, sort_keys=False).encode())


def write_clips(out: Path, split: Split) -> None:
    """Which clip was in which part, as ``clips.csv``, which `vireo eval --data` takes."""
    with replacing(out / "clips.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "group", "start", "end", "frames"])
        for name, table in split._asdict().items():
            for index in range(len(table) if table is not None else 0):
                record = table.record(index)
                cut = ["" if t is None else repr(t) for t in (record.start, record.end)]
                group = "" if table.groups is None else table.groups[index]
                place, label = os.path.abspath(record.path), table.label_names[record.label]
                writer.writerow([place, label, name, group, *cut, record.frame_count or ""])


class MetricsLog:
    """``metrics.csv`` and TensorBoard, one row per epoch; a resumed run goes on in the same files."""

    COLUMNS = ("epoch", "lr", "loss", "train_top1", "top1", "mean_class", "data_wait", "seconds")

    def __init__(self, out: Path, *, keep_epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / "metrics.csv"
        with writing(out / "tensorboard"):
            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=keep_epochs + 1)
        rows = [row for row in read_metrics(out) if row["epoch"] <= keep_epochs] if keep_epochs else []
        with replacing(self.path) as file:  # a full disk must not cost the history
            writer = csv.DictWriter(file, self.COLUMNS)
            writer.writeheader()
            writer.writerows({k: "" if math.isnan(v) else v for k, v in row.items()} for row in rows)

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


def is_of(path: Path, steps: int) -> bool:
    """Whether a checkpoint is that of a run after so many steps."""
    try:
        return bool(read_tensors(path)[1]["provenance"]["steps"] == steps)
    except (CheckpointError, KeyError, TypeError):
        return False


def keep_newest(out: Path, steps: int, keep: int) -> None:
    """Keep ``last.safetensors`` as ``step-N.safetensors`` too, and of those the newest ``keep``.

    The newest one is the same file under two names, where the file system can do that.

    Raises:
        StorageError: it could not be written.
    """
    path = out / f"step-{steps:08d}.safetensors"
    with writing(path):
        path.unlink(missing_ok=True)  # from before a resume, which has come here again
        try:
            os.link(out / LAST, path)
        except OSError:  # no such links here
            write_atomically(path, (out / LAST).read_bytes())
        for old in sorted(out.glob("step-*.safetensors"))[:-keep]:
            old.unlink()


def save_state(
    path: Path,
    config: TrainConfig,
    model: Recognizer,
    optimizer: torch.optim.Optimizer,
    ema: ModelEmaV3 | None,
    place: Place,
    data_hash: str,
    *,
    processes: int = 1,
    scaler: Mapping[str, Any] | None = None,
    teacher: str = "",
) -> None:
    """Everything that the next step depends on, as tensors and JSON (no pickle), written atomically.

    Random states are not among it: each step draws from its own place in the run.

    Args:
        path: the file.
        config: the run's settings.
        model: the network.
        optimizer: its optimizer.
        ema: the moving average of its weights, if there is one.
        place: where the run stands.
        data_hash: of the list of clips.
        processes: that train together.
        scaler: state of float16's loss scaling.
        teacher: digest of the teacher's file, if there is one.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{k}": v for k, v in ema.module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    meta = {
        "place": vars(place),
        "config": to_dict(config),
        "model": to_dict(model.config),  # complete, with the mean and deviation that the weights stated
        "data_hash": data_hash,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "scaler": dict(scaler or {}),
        "teacher": teacher,
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
    scaler: dict[str, Any]
    """State of float16's loss scaling; empty in other precisions."""
    warnings: tuple[str, ...] = ()
    """Why the run can't go on exactly as it would have."""

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


MAY_CHANGE = frozenset(
    (
        *("resume", "workers", "out", "data", "accelerator", "eval_every", "pretrained"),
        *("decoder", "on_error", "max_failed", "decode_timeout"),
        *("recipe", "views", "clips"),  # a recipe's settings are compared one by one; views and clips are eval's
        *("devices", "num_nodes", "strategy", "save_every", "keep_last", "patience"),
        *("grad_checkpointing", "teacher"),  # the former changes no result; of the latter the file's content counts
    )
)
"""Settings that a run may go on without."""


def check_settings(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Check that a run goes on with the settings it began with, all but those that may change.

    Raises:
        UsageError: some differ; it names them.
    """
    changed = [k for k in now if k not in MAY_CHANGE and now[k] != then.get(k, now[k])]
    if changed:
        told = ", ".join(f"{k} (was {then[k]!s:.60}, now {now[k]!s:.60})" for k in changed)
        raise UsageError(f"A resumed run must keep its settings; these differ: {told}")


def read_state(path: Path, config: TrainConfig, data_hash: str, *, processes: int = 1, teacher: str = "") -> SavedState:
    """Read the state of a run, and check that it is the run that `config` describes.

    Another number of threads or processes is no obstacle, but a warning.

    Raises:
        CheckpointError: missing, damaged, or no such state.
        UsageError: the clips, the teacher, or settings that matter, are not the run's.
    """
    tensors, meta = read_tensors(path)
    check_settings(to_dict(config), meta.get("config", {}))
    if meta.get("data_hash") != data_hash:
        raise UsageError(f"The list of clips in {config.data} is not the one this run began with; start a new run")
    if meta.get("teacher", "") != teacher:
        its = f"teacher {config.teacher} is not what" if config.teacher else "no teacher is given, but one is what"
        raise UsageError(f"{its} this run began with; resume it with the same, or start a new run")
    warnings = []
    if meta.get("threads") != torch.get_num_threads():
        warnings.append(
            f"the number of threads was {meta.get('threads')} when the run began and is {torch.get_num_threads()} now: "
            "results will differ in the last bits"
        )
    before = meta.get("processes", 1)
    if before != processes:
        warnings.append(
            f"the number of processes was {before} when the run began and is {processes} now: batch norm sees other "
            "clips together, dropout and mixup draw other numbers"
        )
    try:
        return SavedState(
            path=path,
            tensors=tensors,
            place=Place(**meta["place"]),
            model=from_dict(ModelConfig, meta["model"]),
            scaler=dict(meta.get("scaler", {})),
            warnings=tuple(warnings),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not the state of a training run: {error}") from None


def restore(state: SavedState, model: Recognizer, optimizer: torch.optim.Optimizer, ema: ModelEmaV3 | None) -> Place:
    """Put the weights and the optimizer back; returns where the run stood.

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
        for parameter, own in optimizer.state.items():
            for name, value in own.items():
                if isinstance(value, Tensor) and parameter.ndim and value.shape == parameter.shape:
                    # In the parameter's memory order: another one is slower, and rounds otherwise.
                    own[name] = torch.empty_like(parameter).copy_(value)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{state.path} does not fit this run: {str(error).splitlines()[0]}") from None
    return state.place
