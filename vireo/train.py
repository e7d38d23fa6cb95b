"""Train a model: one loop on Lightning Fabric that reads from top to bottom.

    prepare   data, split, flips, network, optimizer, loaders     → Session
    train     epochs of steps; validate; keep best and last       → TrainResult

``vireo.optim`` has the parameter groups and the schedule, ``vireo.runs`` the run's folder.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric, seed_everything
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]  # re-exported without __all__
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from vireo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vireo.config import AugmentConfig, ModelConfig, TrainConfig, ViewConfig, part
from vireo.data.annotations import Split, read_table, split_table
from vireo.data.dataset import Batch, ClipDataset, EpochBatches, make_loader
from vireo.data.transforms import flip_allowed
from vireo.devices import choose_precision
from vireo.errors import TrainingError, UsageError
from vireo.evaluate import Evaluation, frames_of, measure, score_clips
from vireo.model import Outputs, Recognizer, from_config, is_classifier
from vireo.optim import freeze_norms_but_first, lr_factor, make_optimizer, set_learning_rate, train_mode
from vireo.progress import console_beside, make_progress
from vireo.runs import (
    BEST,
    LAST,
    RESUME,
    MetricsLog,
    Place,
    begun_with,
    claim_folder,
    describe_run,
    read_state,
    restore,
    save_state,
    write_clips,
    write_config,
    write_failures,
)

StopRequested = Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run leaves.

    Attributes:
        run: the run's folder.
        best: checkpoint of the epoch with the highest validation top-1.
        last: checkpoint of the last step.
        top1: validation top-1 of `best`, in [0, 1]; nan before the first validation.
        epochs: epochs done, those before a resume included.
        seconds: wall time of this call, without preparation.
        interrupted: stopped by a signal before the last epoch; `resume` goes on from there.
    """

    run: Path
    best: Path
    last: Path
    top1: float
    epochs: int
    seconds: float
    interrupted: bool = False


def train(config: TrainConfig, *, console: Console | None = None) -> TrainResult:
    """Train one model, validate it after each epoch, keep the best and the last weights.

    Ctrl-C and SIGTERM save at the next step and end the run in order; ``resume=True`` goes on from
    there (exactly, on a CPU with the same number of threads).

    Raises:
        DataError: unusable data.
        TrainingError: the loss is not finite, or no clip of an epoch could be read.
        StorageError: a file could not be written; earlier checkpoints are intact.
        UsageError: the folder holds a run already and `resume` is off, or a setting is wrong.
    """
    console = console or Console()
    session = Session(config, console)
    began = time.monotonic()
    with stop_signals() as stop_requested, name_dead_workers(), make_progress() as bars:
        session.console = console_beside(bars, console)
        finished = session.run(bars, stop_requested)
    session.log.close()
    seconds, place, out = time.monotonic() - began, session.place, session.out
    if finished:
        announce_end(console, out, place, seconds)
    else:
        say_how_to_resume(console, out, place)
    return TrainResult(
        run=out,
        best=out / (BEST if (out / BEST).exists() else LAST),
        last=out / LAST,
        top1=place.best if place.best >= 0 else math.nan,
        epochs=place.epoch,
        seconds=seconds,
        interrupted=not finished,
    )


class Session:
    """One training run: what was prepared, where it stands, and the loop."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.console, self.out = console, Path(config.out)
        start = load_checkpoint(config.init) if config.init and not config.resume else None
        if start:
            config = settings_of(config, start.model.config, start.view)
        elif config.init and config.resume:  # the file may be gone; the run knows its network
            config = settings_of(config, *begun_with(self.out / RESUME))
        self.config = config
        table = read_table(config.data, modality=config.modality)
        claim_folder(self.out, resume=config.resume)
        self.split = split_table(table, val_fraction=config.val_fraction, seed=config.seed)
        self.labels, self.data_hash = table.label_names, table.digest()
        flip, flip_reason = decide_flip(config, self.labels)
        state = read_state(self.out / RESUME, config, self.data_hash) if config.resume else None

        seed_everything(config.seed, verbose=False)
        self.fabric = make_fabric(config)
        self.model = from_config(
            state.model if state else config,
            num_classes=len(self.labels),
            pretrained=False if state else config.pretrained,
        )
        if start:
            continue_from(self.model, start, self.labels)
        if config.partial_bn:
            freeze_norms_but_first(self.model)
        optimizer = make_optimizer(self.model, config)
        self.net, self.optimizer = self.fabric.setup(self.model, optimizer)
        self.net.mark_forward_method("forward_outputs")
        self.ema = ModelEmaV3(self.model, decay=config.ema_decay) if config.ema_decay else None
        self.batches, self.train_loader, self.val_loader = make_loaders(config, self.split, flip)
        # Last of all, for it sets the random state that the first step draws from.
        self.place = restore(state, self.model, self.optimizer, self.ema) if state else Place()

        self.provenance = describe_run(config, self.data_hash, self.fabric.device, self.fabric._precision.precision)
        write_config(self.out, config)
        write_clips(self.out, self.split)
        self.log = MetricsLog(self.out, keep_epochs=self.place.epoch)
        self.announce(table.notes, flip_reason)

    @property
    def kept(self) -> Recognizer:
        """The weights that are validated and saved: the moving average where there is one."""
        return self.ema.module if self.ema else self.model

    def run(self, bars: Progress, stop_requested: StopRequested) -> bool:
        """All epochs that are left; False if a signal ended them early. Everything is saved either way."""
        config, place = self.config, self.place
        while place.epoch < config.epochs:
            began = time.monotonic()
            if not self.train_epoch(bars, stop_requested):
                self.save(LAST)
                self.save_state()
                return False
            row: dict[str, float] = {
                "epoch": place.epoch + 1,
                "lr": config.lr * lr_factor(place.epoch, config),
                "loss": place.loss_sum / place.seen,
                "train_top1": place.correct / place.seen,
            }
            better = False
            if (place.epoch + 1) % config.eval_every == 0 or place.epoch + 1 == config.epochs:
                try:
                    validation = self.validate(bars)
                except BaseException:  # unreadable clips, a second Ctrl-C: the epoch's steps are not lost with it
                    self.save(LAST)
                    self.save_state()
                    raise
                row |= {"top1": validation.top1, "mean_class": validation.mean_class}
                better = validation.top1 > place.best
                place.best = max(place.best, validation.top1)
            place.next_epoch()
            row["seconds"] = time.monotonic() - began
            if better:
                self.save(BEST, val_top1=row["top1"])
            self.save(LAST, **({"val_top1": row["top1"]} if "top1" in row else {}))
            # The log before the state: on resuming, a row of an epoch that is done again is dropped.
            self.log.write(row)
            self.save_state()
            self.console.print(epoch_line(row, config.epochs, better), highlight=False)
            if stop_requested() and place.epoch < config.epochs:
                return False
        return True

    def train_epoch(self, bars: Progress, stop_requested: StopRequested) -> bool:
        """The steps that are left of the epoch under way; False if a signal asks to stop."""
        config, place = self.config, self.place
        title = f"epoch {place.epoch + 1}/{config.epochs}"
        task = bars.add_task(title, total=len(self.split.train), completed=place.seen, note="")
        steps = self.batches.batches_per_epoch
        self.batches.set_epoch(place.epoch, start_batch=place.batch)
        train_mode(self.model, partial_bn=config.partial_bn)
        try:
            for batch in self.train_loader:
                place.note_failures(batch.failures, self.split.train)
                if len(batch.labels):
                    set_learning_rate(self.optimizer, lr_factor(place.epoch + place.batch / steps, config))
                    self.step(batch)
                place.batch += 1
                done = len(batch.labels) + len(batch.failures)
                bars.update(task, advance=done, note=f"loss {place.loss_sum / max(place.seen, 1):.3f}")
                if stop_requested():
                    return False
        finally:
            bars.remove_task(task)
        if not place.seen:
            path, reason = next(iter(place.failures.items()))
            raise TrainingError(f"No training clip could be read; the first: {path}: {reason}")
        return True

    def step(self, batch: Batch) -> None:
        """One update of the weights.

        Raises:
            TrainingError: the loss is not finite; the message names the batch's clips.
        """
        clips = batch.clips.to(self.fabric.device, non_blocking=True)
        labels = batch.labels.to(self.fabric.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        outputs: Outputs = self.net.forward_outputs(clips)
        loss = total_loss(outputs, labels, self.model.loss_weights, self.config.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss is {value} for the clips {self.names_of(batch)}; lower lr, or use precision 32-true"
            )
        self.fabric.backward(loss)
        if self.config.clip_grad:
            # float16 overflows now and then and its scaler skips the step; elsewhere infinite gradients are an end.
            norm = self.fabric.clip_gradients(
                self.net, self.optimizer, max_norm=self.config.clip_grad, error_if_nonfinite=False
            )
            if norm is not None and not norm.isfinite() and self.provenance["precision"] != "16-mixed":
                raise TrainingError(f"The gradients are {float(norm)} for the clips {self.names_of(batch)}; lower lr")
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model)
        self.place.loss_sum += value * len(labels)
        self.place.correct += int((outputs.logits.argmax(1) == labels).sum())
        self.place.seen += len(labels)

    def names_of(self, batch: Batch) -> str:
        """The files of a batch of training clips, eight at most."""
        return ", ".join(self.split.train.record(int(i)).path for i in batch.indices[:8])

    def validate(self, bars: Progress) -> Evaluation:
        """Accuracy on the validation part, in the run's precision."""
        task = bars.add_task("validate", total=len(self.split.val), note="")
        (scores,) = score_clips(
            self.kept,
            self.val_loader,
            num_classes=len(self.labels),
            device=self.fabric.device,
            precision=self.fabric.autocast,
            advance=lambda done: bars.update(task, advance=done),
        )
        bars.remove_task(task)
        self.place.note_failures(scores.failures, self.split.val)
        return measure(scores, self.labels, {})

    def save(self, name: str, **results: float) -> None:
        """Write a checkpoint that `vireo predict` can use alone."""
        save_checkpoint(
            self.out / name,
            self.kept,
            labels=self.labels,
            view=part(ViewConfig, self.config),
            provenance={
                **self.provenance,
                "epochs": self.place.epoch,
                "failed_clips": len(self.place.failures),
                **results,
            },
        )
        if self.place.failures:
            write_failures(self.out / "failed.csv", self.place.failures.items())

    def save_state(self) -> None:
        """Write what the next step depends on."""
        save_state(self.out / RESUME, self.config, self.model, self.optimizer, self.ema, self.place, self.data_hash)

    def announce(self, notes: Sequence[str], flip_reason: str) -> None:
        """What is about to happen, in a few lines."""
        config, split = self.config, self.split
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        lines = [
            f"[bold]{escape(config.temporal)} × {escape(config.backbone)}[/bold], {frames_of(self.model)} of "
            f"{config.size}², {parameters:.2f} M parameters, {self.provenance['precision']} on "
            f"{self.fabric.device.type}",
            f"{len(self.labels)} classes: {len(split.train)} training clips, {len(split.val)} validation"
            + (f", {len(split.test)} test" if split.test is not None and len(split.test) else ""),
            *(f"[dim]{escape(note)}[/dim]" for note in (*notes, flip_reason)),
        ]
        if config.resume:
            lines.append(f"going on in epoch {self.place.epoch + 1}, after {self.place.batch} batches")
        self.console.print("\n".join(lines), highlight=False)


def total_loss(outputs: Outputs, labels: Tensor, weights: tuple[float, float], label_smoothing: float) -> Tensor:
    """Cross-entropy of the logits, plus that of a branch's own logits where there is one (eq. 4 of MSTSM-TFDEM)."""
    main, own = weights
    loss = main * cross_entropy(outputs.logits.float(), labels, label_smoothing=label_smoothing)
    if outputs.auxiliary is not None:
        loss = loss + own * cross_entropy(outputs.auxiliary.float(), labels, label_smoothing=label_smoothing)
    return loss


# --- preparing ----------------------------------------------------------------------------------


def settings_of(config: TrainConfig, network: ModelConfig, view: ViewConfig) -> TrainConfig:
    """The settings of a run that starts from a checkpoint: its network, and its view where no other is asked for.

    Raises:
        UsageError: a setting of the network that is neither the default nor the checkpoint's.
    """
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    taken: dict[str, Any] = {"pretrained": False}
    for field in fields(ModelConfig):
        if field.name == "dropout":
            continue
        asked, its = getattr(config, field.name), getattr(network, field.name)
        empty = asked in ({}, None) or asked == defaults[field.name]
        if not empty and field.name not in ("mean", "std") and not same_options(asked, its):
            raise UsageError(
                f"{field.name} is {asked!r}, but the network of {config.init} has {its!r}: leave it out, or start from "
                "backbone weights (--pretrained)"
            )
        taken[field.name] = its
    for field in fields(ViewConfig):
        if getattr(config, field.name) == defaults[field.name]:
            taken[field.name] = getattr(view, field.name)
    return replace(config, **taken)


def same_options(asked: Any, its: Any) -> bool:
    """Whether what is asked for is what a checkpoint has; of a mapping of options, some may be left out."""
    if isinstance(asked, dict):
        return all(key in its and str(its[key]) == str(value) for key, value in asked.items())
    return bool(asked == its)


def continue_from(model: Recognizer, start: Checkpoint, labels: tuple[str, ...]) -> None:
    """Give the model the weights of a checkpoint; classifiers start anew where the classes are others."""
    tensors = start.model.state_dict()
    if start.labels != labels:
        tensors = {name: tensor for name, tensor in tensors.items() if not is_classifier(name)}
    model.load_state_dict(tensors, strict=False)


def make_fabric(config: TrainConfig) -> Fabric:
    """Fabric with the device and precision asked for.

    Raises:
        UsageError: this machine has no such device, or cannot compute in this precision.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces what our own lines say
    try:
        device = Fabric(accelerator=config.accelerator, devices=1).device
        precision = choose_precision(config.precision, device)
        return Fabric(accelerator=config.accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
    except UsageError:
        raise
    except Exception as error:  # Fabric raises its own MisconfigurationException and others
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"accelerator {config.accelerator!r}: {first}") from None


def decide_flip(config: AugmentConfig, labels: tuple[str, ...]) -> tuple[bool, str]:
    """Whether training clips may be mirrored, and why."""
    allowed, reason = flip_allowed(labels)
    if config.flip == "auto":
        return allowed, reason
    wanted = config.flip == "on"
    return wanted, f"flip {config.flip}, as asked" + (f", although: {reason}" if wanted and not allowed else "")


def make_loaders(
    config: TrainConfig, split: Split, flip: bool
) -> tuple[EpochBatches, DataLoader[Batch], DataLoader[Batch]]:
    """Batches and loader of the training part, and the loader of the validation part."""
    view, augment = part(ViewConfig, config), part(AugmentConfig, config)
    common: dict[str, Any] = {"view": view, "num_frames": config.num_frames, "seed": config.seed}
    common["flow_fields"] = config.flow_fields if config.modality == "flow" else 0
    train_set = ClipDataset(split.train, augment=augment, flip=flip, **common)
    val_set = ClipDataset(split.val, augment=None, flip=False, **common)
    batches = EpochBatches(len(split.train), batch_size=config.batch_size, shuffle=True, seed=config.seed)
    val_batches = EpochBatches(len(split.val), batch_size=config.batch_size, shuffle=False, seed=config.seed)
    return (
        batches,
        make_loader(train_set, batches, workers=config.workers),
        make_loader(val_set, val_batches, workers=config.workers),
    )


@contextmanager
def name_dead_workers() -> Iterator[None]:
    """Turn the death of a decoding process into a clear error.

    torch raises it from a signal handler, so at any point of the loop, not only while waiting for a batch.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"A process that decodes videos died ({str(error).splitlines()[0].rstrip(' .')}). "
            "What was saved is intact; go on with --resume, and with --workers 0 if it happens again"
        ) from error


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a request to stop at the next step; a second Ctrl-C stops at once."""
    requested = False

    def request(number: int, frame: object) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        os.write(2, b"\nstopping after this step; once more to stop at once\n")

    try:
        before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us handles signals
        before = {}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- what a person sees -------------------------------------------------------------------------


def epoch_line(row: dict[str, float], epochs: int, better: bool) -> str:
    """One epoch in one line."""
    validation = f"  val top-1 {100 * row['top1']:5.1f} %" if "top1" in row else ""
    return (
        f"epoch {row['epoch']:3.0f}/{epochs}  loss {row['loss']:.3f}  train {100 * row['train_top1']:5.1f} %"
        f"{validation}{' *' if better else '  '}  {row['seconds']:.0f} s"
    )


def say_how_to_resume(console: Console, out: Path, place: Place) -> None:
    """After a signal: what is saved and the way to go on."""
    console.print(
        f"Stopped in epoch {place.epoch + 1} after {place.batch} batches; everything is saved in {escape(str(out))}.\n"
        f"Go on with: vireo train --config {escape(shlex.quote(str(out / 'config.yaml')))} --resume",
        highlight=False,
        soft_wrap=True,
    )


def announce_end(console: Console, out: Path, place: Place, seconds: float) -> None:
    """The result and where it is."""
    if place.failures:
        failed = escape(str(out / "failed.csv"))
        console.print(f"[red]{len(place.failures)} clips could not be read[/red]; {failed} names them", soft_wrap=True)
    console.print(
        f"best validation top-1 [bold]{100 * place.best:.1f} %[/bold] in {seconds / 60:.1f} min → "
        f"{escape(str(out / BEST))}",
        highlight=False,
        soft_wrap=True,
    )
