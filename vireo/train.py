"""Train a model: one loop on Lightning Fabric that reads from top to bottom.

    prepare   data, split, flips, network, optimizer, loaders     → Session
    train     epochs of steps; validate; keep best and last       → TrainResult

``vireo.optim`` has the parameter groups and the schedule, ``vireo.runs`` the run's folder, ``vireo.distributed``
what several processes tell each other. Each of them has the same `Place` after every step and takes its part of
every batch, so that a step is the same whatever their number: the mean of the loss over the batch's clips.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from lightning_fabric import seed_everything
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from timm.layers.norm_act import convert_sync_batchnorm
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]  # re-exported without __all__
from torch import Tensor
from torch.nn.functional import cross_entropy

from vireo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vireo.config import AugmentConfig, ModelConfig, ReadConfig, TrainConfig, ViewConfig, part
from vireo.data.annotations import read_table
from vireo.data.clips import reader_name
from vireo.data.dataset import Batch, ClipDataset, EpochBatches
from vireo.data.faults import Failure, FailureCount, TooManyFailuresError
from vireo.data.flips import FlipRule, flip_rule
from vireo.data.labels import check_label_map, write_label_map
from vireo.data.loader import ClipLoader, make_loader
from vireo.data.mixing import mix_clips
from vireo.data.pool import resolve_workers, usable_cores
from vireo.data.splits import Split, split_table
from vireo.data.table import ClipTable, counted
from vireo.distill import Teacher, load_teacher
from vireo.distributed import Team, launch, make_fabric, peers_may_be_gone, unused_parameters
from vireo.errors import TrainingError, UsageError, VireoError
from vireo.evaluation import Evaluation, join_scores, measure
from vireo.files import write_failures
from vireo.model import Outputs, Recognizer, compile_outputs, from_config, is_classifier
from vireo.optim import (
    class_weights,
    freeze_norms,
    lr_factor,
    make_optimizer,
    scaled_lr,
    set_learning_rate,
    train_mode,
)
from vireo.pace import Pace, verdict
from vireo.progress import console_beside, make_console, make_progress, printable
from vireo.provenance import describe_source, write_environment
from vireo.recompute import recompute_blocks
from vireo.run_files import BEST, LABELS, LAST, RESUME
from vireo.run_page import ENVIRONMENT, RunFacts, RunPage
from vireo.runs import (
    MetricsLog,
    Place,
    begun_with,
    claim_folder,
    describe_run,
    is_of,
    keep_newest,
    read_state,
    restore,
    save_state,
    write_clips,
    write_config,
)
from vireo.scoring import frames_of, score_clips

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

    Ctrl-C and SIGTERM save at the next step and end the run in order; ``resume=True`` goes on from there, or
    from what was saved last if the run was killed (exactly, on a CPU with the same number of threads).

    Raises:
        DataError: unusable data, or more clips can't be read than `max_failed` and `on_error` allow.
        TrainingError: the loss is not finite, no clip of an epoch could be read, the device's memory is too
            small, or another process of the run has ended.
        StorageError: a file could not be written; earlier checkpoints are intact.
        UsageError: the folder holds a run already and `resume` is off, or a setting is wrong.
    """
    console = console or make_console()
    there = Path(config.out).exists()
    try:
        session = Session(config, console)
    except BaseException:
        if not there:  # nothing has come of it
            with suppress(OSError):
                Path(config.out).rmdir()  # fails unless it is empty
        raise
    began = time.monotonic()
    team, console = session.team, session.console
    with closing(session), stop_signals() as stop_requested, make_progress() if team.first else no_bars() as bars:
        session.console = console_beside(bars, console)
        try:
            with peers_may_be_gone() if team.size > 1 else nullcontext():
                finished = session.run(bars, stop_requested)
        except VireoError as error:
            if error is team.agreed and not team.first:
                raise SystemExit(error.exit_code) from None
            raise
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
    """One training run, as one of its processes sees it: what was prepared, where it stands, and the loop."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.console, self.out = console, Path(config.out)
        start = load_checkpoint(config.init) if config.init and not config.resume else None
        if start:
            config = settings_of(config, start.model.config, start.view)
        elif config.init and config.resume:  # the file may be gone; the run knows its network
            config = settings_of(config, *begun_with(self.out / RESUME))
        self.config = config
        table = read_table(config.data, modality=config.modality)
        decoder = reader_name(table, modality=config.modality, mode=config.decode, backend=config.decoder)
        self.fabric = make_fabric(config)
        self.team = team = launch(self.fabric)
        if not team.first:
            self.console = Console(quiet=True)
        team.on_first(lambda: claim_folder(self.out, resume=config.resume))
        if config.resume and (self.out / LABELS).exists():
            check_label_map(self.out / LABELS, table.label_names)
        self.split = split_table(table, val_fraction=config.val_fraction, seed=config.seed)
        self.labels, self.data_hash = table.label_names, table.digest()
        if len(set(team.gather(self.data_hash))) > 1:
            raise UsageError(f"The processes see different clips in {config.data}; give all machines the same files")
        flips = flip_rule(self.labels, config.flip)
        self.teacher: Teacher | None = None
        if config.teacher:
            device, precision = self.fabric.device, self.fabric.autocast
            self.teacher = load_teacher(config, self.labels, device=device, precision=precision)
        self.teacher_hash = self.teacher.digest if self.teacher else ""
        if len(set(team.gather(self.teacher_hash))) > 1:
            raise UsageError(f"The processes see different teachers in {config.teacher}; give all machines the same")
        state = None
        if config.resume:
            teacher = self.teacher_hash
            state = read_state(self.out / RESUME, config, self.data_hash, processes=team.size, teacher=teacher)

        seed_everything(config.seed, verbose=False)
        self.model = from_config(
            state.model if state else config,
            num_classes=len(self.labels),
            pretrained=False if state else config.pretrained,
        )
        if start:
            continue_from(self.model, start, self.labels, config)
        if config.sync_bn and team.size > 1:
            self.model = convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        freeze_norms(self.model, config.freeze_norms)
        if config.grad_checkpointing:
            recompute_blocks(self.model.backbone, config.backbone)
        self.nothing = no_clips(self.model, config)
        if team.size > 1:
            self.model._ddp_params_and_buffers_to_ignore = unused_parameters(self.model, self.probe)  # type: ignore[assignment]
        optimizer = make_optimizer(self.model, config)
        self.net, self.optimizer = self.fabric.setup(self.model, optimizer)
        self.net.mark_forward_method("forward_outputs")
        self.ema = ModelEmaV3(self.model, decay=config.ema_decay) if config.ema_decay else None
        self.batches, self.train_loader, self.val_loader = make_loaders(config, self.split, flips, team)
        read = part(ReadConfig, config)
        self.train_failures = FailureCount("training", len(self.split.train), read)
        self.val_failures = FailureCount("validation", len(self.split.val), read)
        self.class_weights: Tensor | None = None  # (K,)
        if config.class_balance == "loss":
            self.class_weights = class_weights(self.split.train.labels, flips.mirrored).to(self.fabric.device)
        self.steps = -(-len(self.split.train) // config.batch_size)  # of an epoch
        self.place = restore(state, self.model, self.optimizer, self.ema) if state else Place()
        self.pace = Pace()  # of the epoch under way
        if state:
            self.fabric.strategy.precision.load_state_dict(state.scaler)
        if config.compile:  # the average, made before, stays as it is: it is only looked at
            compile_outputs(self.model)
            if self.teacher:
                compile_outputs(self.teacher.model)

        self.provenance = describe_run(
            config, self.data_hash, self.fabric.device, self.fabric._precision.precision, decoder=decoder
        )
        self.provenance["processes"] = team.size
        if self.teacher:
            self.provenance["teacher"] = self.teacher.provenance()
        self.log: MetricsLog | None = None
        self.page: RunPage | None = None
        team.on_first(self.prepare_folder)
        notes = (*table.notes, *([self.teacher.line(config.size)] if self.teacher else []))
        self.announce(notes, flips.lines(), state.warnings if state else ())

    @property
    def kept(self) -> Recognizer:
        """The weights that are validated and saved: the moving average where there is one."""
        return self.ema.module if self.ema else self.model

    @property
    def steps_done(self) -> int:
        """Steps of the run so far."""
        return self.place.epoch * self.steps + self.place.batch

    def probe(self) -> Tensor:
        """The loss of a clip that shows nothing."""
        outputs = self.model.forward_outputs(self.nothing)
        return total_loss(outputs, torch.zeros(1, dtype=torch.int64), self.model.loss_weights, 0.0)

    def prepare_folder(self) -> None:
        """Write what explains the run, and what a kill kept from being written when the state was."""
        self.log = MetricsLog(self.out, keep_epochs=self.place.epoch)
        write_config(self.out, self.config)
        write_label_map(self.out / LABELS, self.labels)
        write_clips(self.out, self.split)
        write_environment(self.out / ENVIRONMENT)
        self.provenance["git"] = describe_source()
        if self.config.resume and not is_of(self.out / LAST, self.steps_done):
            self.save(LAST)
        self.page = RunPage(self.out, self.facts(), warn=self.warn)
        self.page.update(self.place.epoch, self.place.batch, len(self.place.failures))

    def facts(self) -> RunFacts:
        """What the run is, for its page."""
        config, parts = self.config, self.split._asdict()
        return RunFacts(
            config=config,
            network=f"{config.temporal} × {config.backbone}, {frames_of(self.model)} of {config.size}²",
            parameters=sum(p.numel() for p in self.model.parameters()),
            classes=len(self.labels),
            clips={name: len(table) for name, table in parts.items() if table is not None},
            data_hash=self.data_hash,
            device=self.fabric.device.type,
            provenance=self.provenance,
            folder=Path.cwd(),
        )

    def warn(self, message: str) -> None:
        """Tell of trouble that ends nothing."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(printable(message))}", highlight=False, soft_wrap=True)

    def run(self, bars: Progress, stop_requested: StopRequested) -> bool:
        """All epochs that are left; False if a signal ended them early. Everything is saved either way."""
        config, place, clips = self.config, self.place, len(self.split.train)
        told = False
        whole = bars.add_task("run", total=config.epochs * clips, completed=place.epoch * clips + place.seen, note="")
        while place.epoch < config.epochs:
            if config.patience and place.best_epoch and place.epoch - place.best_epoch >= config.patience:
                self.console.print(
                    f"no better validation top-1 for {counted(config.patience, 'epoch')}: the run ends here"
                )
                return True
            began = time.monotonic()
            try:
                finished = self.train_epoch(bars, whole, stop_requested)
            except TooManyFailuresError:
                if place.epoch or place.seen:  # else there is nothing to save, and the folder is free for another try
                    self.keep_after_failures()
                raise
            if not finished:
                self.keep()
                return False
            row: dict[str, float] = {
                "epoch": place.epoch + 1,
                "lr": scaled_lr(config) * lr_factor(place.epoch, config),
                "loss": place.loss_sum / place.seen,
                "train_top1": place.correct / place.seen,
                "data_wait": float(self.team.table([self.pace.wait_share]).max()),
            }
            better = False
            if (place.epoch + 1) % config.eval_every == 0 or place.epoch + 1 == config.epochs:
                try:
                    validation = self.validate(bars)
                except TooManyFailuresError:  # the epoch's steps are not lost with it
                    self.keep_after_failures()
                    raise
                except BaseException:  # a second Ctrl-C, another process that is gone: nobody to wait for
                    if self.team.first:
                        self.write()
                    raise
                row |= {"top1": validation.top1, "mean_class": validation.mean_class}
                better = place.note_validation(validation.top1)
            place.next_epoch()
            row["seconds"] = time.monotonic() - began
            self.keep(row, better=better)
            self.console.print(epoch_line(row, config.epochs, better), highlight=False)
            if not told and (advice := self.advise_on_data()):
                self.console.print(f"[yellow]data:[/yellow] {escape(advice)}", highlight=False)
                told = True
            if self.team.any(stop_requested()) and place.epoch < config.epochs:
                return False
        return True

    def advise_on_data(self) -> str:
        """What to do if this process waited for its clips in the epoch that has ended; nothing if it hardly did."""
        return verdict(self.pace, workers=self.train_loader.workers, cores=usable_cores() // self.config.devices)

    def train_epoch(self, bars: Progress, whole: TaskID, stop_requested: StopRequested) -> bool:
        """The steps that are left of the epoch under way; False if a signal asks to stop."""
        config, place = self.config, self.place
        title = f"epoch {place.epoch + 1}/{config.epochs}"
        task = bars.add_task(title, total=len(self.split.train), completed=place.seen, note="")
        # The last batch may leave nothing for some processes, which take the step all the same.
        self.batches.set_epoch(place.epoch, start_batch=min(place.batch, self.batches.batches_per_epoch))
        nothing = Batch(self.nothing[:0], torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), ())
        train_mode(self.model, freeze_norms=config.freeze_norms)
        seen, moved = place.seen, 0.0
        pace = self.pace = Pace(reading=-self.train_loader.reading)
        loaded = pace.go_through(self.train_loader)
        try:
            for batch, _ in zip_longest(loaded, range(self.steps - place.batch), fillvalue=nothing):
                assert isinstance(batch, Batch)
                moved += batch.moved * len(batch.labels)
                counts = self.team.table([len(batch.labels), len(batch.failures)])
                clips, failed = counts.sum(0).int().tolist()
                if failed:
                    failures = [failure for part in self.team.gather(batch.failures) for failure in part]
                    self.note_failures(failures, self.split.train, self.train_failures)
                # Norms over all devices need something from each; else the few clips left wait for the next epoch.
                if clips and not (self.config.sync_bn and counts[:, 0].min() < config.accumulate):
                    set_learning_rate(self.optimizer, lr_factor(place.epoch + place.batch / self.steps, config))
                    self.step(batch, clips)
                place.batch, place.top1 = place.batch + 1, math.nan
                bars.update(task, advance=clips + failed, note=self.standing())
                bars.advance(whole, clips + failed)
                if self.team.any(stop_requested()):
                    return False
                if config.save_every and self.steps_done % config.save_every == 0:
                    self.keep()
        finally:
            bars.remove_task(task)
            pace.reading += self.train_loader.reading
        if not place.seen:
            self.team.on_first(self.write_failures)
            path, reason = next(iter(place.failures.items()))
            raise self.team.agree(TrainingError(f"No training clip could be read; the first: {path}: {reason}"))
        if config.decode == "keyframe" and place.epoch == 0 and place.seen > seen:
            moved /= place.seen - seen
            self.console.print(f"decode keyframe: frames lie {moved:.1f} frames from those wanted, on average")
        return True

    def standing(self) -> str:
        """The epoch so far, in a few words."""
        place, group = self.place, self.optimizer.param_groups[0]
        if not place.seen:
            return ""
        return (
            f"loss {place.loss_sum / place.seen:.3f}  top-1 {100 * place.correct / place.seen:.0f} %  "
            f"lr {group['lr'] / group['lr_scale']:.1e}  data wait {100 * self.pace.wait_share:.0f} %"
        )

    def step(self, batch: Batch, together: int) -> None:
        """One update of the weights.

        Args:
            batch: this process's clips, none too.
            together: clips of the step in all processes, at least 1.

        Raises:
            TrainingError: the loss is not finite; the message names the batch's clips. Or memory is too small.
        """
        config, place, team = self.config, self.place, self.team
        # From the step's place in the run alone, so that a resumed run draws the same.
        own = np.random.default_rng((config.seed, place.epoch, place.batch, 2, team.rank))
        torch.manual_seed(int(own.integers(1 << 63)))
        clips = batch.clips.to(self.fabric.device, non_blocking=True)
        labels = batch.labels.to(self.fabric.device, non_blocking=True)
        targets, count = labels, len(labels)
        if count:
            clips, targets = mix_clips(
                clips, labels, num_classes=len(self.labels), mixup=config.mixup, cutmix=config.cutmix, rng=own
            )
        else:  # the others wait for this process's gradients; in evaluation mode its clip leaves no trace
            clips, labels = self.nothing.to(self.fabric.device), torch.zeros(1, dtype=torch.int64)
            targets = labels = labels.to(self.fabric.device)
            self.model.eval()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            found, short = self.gradients(clips, targets, labels, batch, together), False
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            short = True  # what follows needs the memory that the error's traceback holds
        if short:
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(self.what_fits(clips))
        if config.clip_grad:
            # float16 overflows now and then and its scaler skips the step; elsewhere infinite gradients are an end.
            norm = self.fabric.clip_gradients(
                self.net, self.optimizer, max_norm=config.clip_grad, error_if_nonfinite=False
            )
            if norm is not None and not norm.isfinite() and self.provenance["precision"] != "16-mixed":
                self.blame(torch.zeros(team.size, dtype=torch.bool), batch, f"The gradients are {float(norm)}")
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model)
        if not count:
            train_mode(self.model, freeze_norms=config.freeze_norms)
        place.loss_sum += float(found[:, 0].sum())
        place.correct += int(found[:, 1].sum())
        place.seen += together

    def gradients(self, clips: Tensor, targets: Tensor, labels: Tensor, batch: Batch, together: int) -> Tensor:
        """Compute the gradients of a step, in as many parts as the settings say.

        Args:
            clips: this process's clips on the device, at least one: that shows nothing where it has none.
            targets: what they are trained on, (N,) labels or (N, K) shares.
            labels: (N,) their own labels.
            batch: whose clips are named where the loss is not finite.
            together: clips of the step in all processes.

        Returns:
            (processes, 2): each one's sum of losses and number of right answers.
        """
        config, team, count = self.config, self.team, len(batch.labels)
        loss_sum, correct, parts = 0.0, 0, min(config.accumulate, len(labels))
        chunks = zip(*(torch.tensor_split(whole, parts) for whole in (clips, targets, labels)), strict=True)
        for number, (shown, wanted, known) in enumerate(chunks, 1):
            with self.fabric.no_backward_sync(self.net, enabled=number < parts):
                with self.fabric.autocast():  # Fabric's own is passed by where there is but one device
                    outputs: Outputs = self.net.forward_outputs(shown)
                loss = total_loss(outputs, wanted, self.model.loss_weights, config.label_smoothing, self.class_weights)
                if self.teacher:
                    loss = self.teacher.teach(loss, outputs.logits, shown)
                if count:
                    loss_sum += loss.item() * len(known)
                    # Against the clips' own labels, so mixing lowers it.
                    correct += int((outputs.logits.argmax(1) == known).sum())
                if number == parts:
                    found = team.table([loss_sum, correct])
                    if not found.isfinite().all():
                        self.blame(found[:, 0].isfinite(), batch, f"The loss is {float(found[:, 0].sum())}")
                # Gradients are averaged over processes: so each clip counts the same, however many a process has.
                self.fabric.backward(loss * ((len(known) if count else 0) * team.size / together))
        return found

    def what_fits(self, clips: Tensor) -> str:
        """What to do where the device's memory was too small for the clips of a step: found by trying.

        Args:
            clips: those of the step, on the device.
        """
        config, whole = self.config, len(clips)
        at_once = -(-whole // config.accumulate)
        most = largest_that_fits(self.try_clips, clips, at_once)
        told = f"The device's memory is too small for {at_once} clips at once"
        less = "" if config.grad_checkpointing else "; --grad-checkpointing true needs less memory"
        if not most:
            return f"{told}, and even for one; use a smaller --size, fewer --num-frames or a smaller network{less}"
        fit = "1 fits" if most == 1 else f"{most} fit"
        return (
            f"{told}; {fit}: --accumulate {-(-whole // most)} computes the same steps in parts (batch norm sees fewer "
            f"clips together), --batch-size {most * self.team.size} takes smaller steps{less}"
        )

    def try_clips(self, clips: Tensor) -> None:
        """Compute gradients that nobody needs. Not those of the other processes: they are gone."""
        with self.fabric.autocast():
            outputs = self.model.forward_outputs(clips)
        labels = torch.zeros(len(clips), dtype=torch.int64, device=clips.device)
        loss = total_loss(outputs, labels, self.model.loss_weights, 0.0)
        if self.teacher:
            loss = self.teacher.teach(loss, outputs.logits, clips)
        torch.autograd.grad(loss, [p for p in self.model.parameters() if p.requires_grad], allow_unused=True)

    def blame(self, fine: Tensor, batch: Batch, what: str) -> NoReturn:
        """End the run in all processes, naming the clips of those that are not fine.

        Raises:
            TrainingError: always.
        """
        every = zip(self.team.gather(self.names_of(batch)), fine.tolist(), strict=True)
        names = ", ".join(names for names, good in every if names and not good)
        raise self.team.agree(TrainingError(f"{what} for the clips {names}; lower lr, or use precision 32-true"))

    def names_of(self, batch: Batch) -> str:
        """The files of a batch of training clips, eight at most."""
        return ", ".join(self.split.train.record(int(i)).path for i in batch.indices[:8])

    def validate(self, bars: Progress) -> Evaluation:
        """Accuracy on the validation part, in the run's precision; each process scores its share of the clips."""
        team, val = self.team, self.split.val
        task = bars.add_task("validate", total=len(range(team.rank, len(val), team.size)), note="")
        team.spread_buffers(self.kept)

        def note(failures: Sequence[Failure]) -> None:
            if team.size == 1:  # else they are told to all, below
                self.note_failures(failures, val, self.val_failures)

        (scores,) = score_clips(
            self.kept,
            self.val_loader,
            num_classes=len(self.labels),
            device=self.fabric.device,
            precision=self.fabric.autocast,
            advance=lambda done: bars.update(task, advance=done),
            note=note,
        )
        bars.remove_task(task)
        if team.size > 1:
            scores = join_scores(team.gather(scores))
            self.note_failures(scores.failures, val, self.val_failures)
        try:
            return measure(scores, self.labels, {})
        except TooManyFailuresError as error:
            raise team.agree(error) from None

    def note_failures(self, failures: Sequence[Failure], table: ClipTable, count: FailureCount) -> None:
        """Remember clips of a part that could not be read, those of all processes.

        Raises:
            TooManyFailuresError: more than the settings allow; ``failed.csv`` names them.
        """
        self.place.note_failures(failures, table)
        try:
            count.note(failures)
        except TooManyFailuresError as error:
            self.team.on_first(self.write_failures)
            raise self.team.agree(error) from None

    def write_failures(self) -> None:
        """Name the clips that could not be read in ``failed.csv``, if there are any."""
        if self.place.failures:
            write_failures(self.out / "failed.csv", self.place.failures.items())

    def close(self) -> None:
        """End the processes that decode, close the log."""
        self.train_loader.close()
        self.val_loader.close()
        if self.log:
            self.log.close()
        if self.page:
            self.page.close()

    def keep(self, row: dict[str, float] | None = None, *, better: bool = False) -> None:
        """Have the first process write the run as it stands; the others wait, and end if it can't.

        Args:
            row: of the log, at the end of an epoch.
            better: whether these weights are the best so far.
        """
        self.team.on_first(lambda: self.write(row, better=better))

    def write(self, row: dict[str, float] | None = None, *, better: bool = False) -> None:
        """Write the run as it stands, as :meth:`keep` does, alone.

        Whatever moment it is killed at, the run can go on from its state: an epoch that is done again
        writes the best weights and its row of the log again, and ``last`` is written when the run goes on.
        """
        if better:
            self.save(BEST)
        if row and self.log:
            self.log.write(row)
        self.save_state()
        self.save(LAST)
        if self.config.keep_last > 1:
            keep_newest(self.out, self.steps_done, self.config.keep_last)
        if self.page:  # after all that the run needs
            self.page.update(self.place.epoch, self.place.batch, len(self.place.failures))

    def keep_after_failures(self) -> None:
        """As :meth:`keep` where too many clips can't be read, and say what that run needs to go on."""
        self.keep()
        more = "--on-error skip" if self.config.on_error == "fail" else "a higher --max-failed, e.g. 50%,"
        say_how_to_resume(self.console, self.out, self.place, f"With these clips mended, or with {more} go on with")

    def save(self, name: str) -> None:
        """Write a checkpoint that `vireo predict` can use alone."""
        save_checkpoint(
            self.out / name,
            self.kept,
            labels=self.labels,
            view=part(ViewConfig, self.config),
            provenance={
                **self.provenance,
                "epochs": self.place.epoch,
                "steps": self.steps_done,
                "failed_clips": len(self.place.failures),
                **({} if math.isnan(self.place.top1) else {"val_top1": self.place.top1}),
            },
        )
        self.write_failures()

    def save_state(self) -> None:
        """Write what the next step depends on."""
        save_state(
            self.out / RESUME,
            self.config,
            self.model,
            self.optimizer,
            self.ema,
            self.place,
            self.data_hash,
            processes=self.team.size,
            scaler=self.fabric.strategy.precision.state_dict(),
            teacher=self.teacher_hash,
        )

    def announce(self, notes: Sequence[str], flips: Sequence[str], warnings: Sequence[str]) -> None:
        """What is about to happen, in a few lines."""
        config, split = self.config, self.split
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        lines = [
            f"[bold]{escape(config.temporal)} × {escape(config.backbone)}[/bold], {frames_of(self.model)} of "
            f"{config.size}², {parameters:.2f} M parameters, {self.provenance['precision']} on "
            f"{f'{self.team.size} × ' if self.team.size > 1 else ''}{self.fabric.device.type}",
            f"{counted(len(self.labels), 'class')}: {counted(len(split.train), 'training clip')}, "
            f"{len(split.val):,} validation"
            + (f", {len(split.test):,} test" if split.test is not None and len(split.test) else ""),
            *(f"[dim]{escape(printable(note))}[/dim]" for note in (*notes, *flips)),
            *changed_by_batch_and_classes(config, split.train, self.class_weights),
        ]
        lines += [f"[yellow]warning:[/yellow] {escape(printable(warning))}" for warning in warnings]
        if config.resume:
            lines.append(f"going on in epoch {self.place.epoch + 1}, after {counted(self.place.batch, 'batch')}")
        self.console.print("\n".join(lines), highlight=False)


def total_loss(
    outputs: Outputs,
    labels: Tensor,
    weights: tuple[float, float],
    label_smoothing: float,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the logits, plus that of a branch's own logits where there is one (eq. 4 of MSTSM-TFDEM).

    Args:
        outputs: of N clips.
        labels: (N,) indices, or (N, K) shares that sum to 1.
        weights: of the two losses.
        label_smoothing: share of the target that is spread over all classes.
        class_weights: (K,) how much a clip of each class counts; its whole loss is multiplied by that of its label,
            or of its labels by their shares. None: all alike.

    Returns:
        The mean over clips. It is not divided by the sum of their weights, so that parts of a batch add up to it.
    """
    main, own = weights
    exact = torch.promote_types(outputs.logits.dtype, torch.float32)

    def over_clips(logits: Tensor) -> Tensor:
        if class_weights is None:
            return cross_entropy(logits.to(exact), labels, label_smoothing=label_smoothing)
        each = cross_entropy(logits.to(exact), labels, label_smoothing=label_smoothing, reduction="none")
        counts = class_weights.to(exact)
        return (each * (counts[labels] if labels.ndim == 1 else (labels * counts).sum(1))).mean()

    loss = main * over_clips(outputs.logits)
    if outputs.auxiliary is not None:
        loss = loss + own * over_clips(outputs.auxiliary)
    return loss


# --- preparing ----------------------------------------------------------------------------------


def settings_of(config: TrainConfig, network: ModelConfig, view: ViewConfig) -> TrainConfig:
    """The settings of a run that starts from a checkpoint: its network, and its view where no other is asked for.

    A recipe asks for the whole of its view.

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
        if config.recipe == defaults["recipe"] and getattr(config, field.name) == defaults[field.name]:
            taken[field.name] = getattr(view, field.name)
    return replace(config, **taken)


def same_options(asked: Any, its: Any) -> bool:
    """Whether what is asked for is what a checkpoint has; of a mapping of options, some may be left out."""
    if isinstance(asked, dict):
        return all(key in its and str(its[key]) == str(value) for key, value in asked.items())
    return bool(asked == its)


def continue_from(model: Recognizer, start: Checkpoint, labels: tuple[str, ...], config: TrainConfig) -> None:
    """Give the model the weights of the checkpoint `init`; with `reset_head` its classifiers start anew.

    Raises:
        UsageError: the checkpoint's classes are others, and `reset_head` is off.
    """
    tensors = start.model.state_dict()
    if config.reset_head:
        tensors = {name: tensor for name, tensor in tensors.items() if not is_classifier(name)}
    elif start.labels != labels:
        raise UsageError(
            f"{config.data} has {counted(len(labels), 'class')}, {config.init} has {len(start.labels)}: "
            f"{describe_difference(labels, start.labels)}; --reset-head true starts the classifier anew and keeps "
            "all other weights"
        )
    model.load_state_dict(tensors, strict=False)


def describe_difference(labels: tuple[str, ...], before: tuple[str, ...]) -> str:
    """Which classes are new and which are gone, in a few words."""
    gone, new = set(before) - set(labels), set(labels) - set(before)
    told = [f"{len(names)} {what} ({min(names)!r})" for names, what in ((new, "new"), (gone, "gone")) if names]
    return " and ".join(told) or "the same ones in another order"


def no_clips(model: Recognizer, config: TrainConfig) -> Tensor:
    """A clip that shows nothing, (1, T, C, S, S) uint8, for a step in which a process has none."""
    channels = 3 if config.modality == "rgb" else 2 * config.flow_fields
    shape = (1, model.num_frames, config.size, config.size, channels)
    return torch.zeros(shape, dtype=torch.uint8).permute(0, 1, 4, 2, 3)


def make_loaders(
    config: TrainConfig, split: Split, flips: FlipRule, team: Team
) -> tuple[EpochBatches, ClipLoader, ClipLoader]:
    """Batches and loader of the training part, and the loader of the validation part, for one process."""
    view, augment = part(ViewConfig, config), part(AugmentConfig, config)
    common: dict[str, Any] = {"view": view, "num_frames": config.num_frames, "seed": config.seed}
    common |= {"decode": config.decode, "decoder": config.decoder}
    common["flow_fields"] = config.flow_fields if config.modality == "flow" else 0
    train_set = ClipDataset(split.train, augment=augment, flips=flips, **common)
    val_set = ClipDataset(split.val, **common)
    share: dict[str, Any] = {"batch_size": config.batch_size // team.size, "seed": config.seed}
    share |= {"rank": team.rank, "world_size": team.size}
    balanced = split.train.labels if config.class_balance == "sampling" else None
    batches = EpochBatches(len(split.train), shuffle=True, balanced=balanced, **share)
    val_batches = EpochBatches(len(split.val), shuffle=False, **share)
    workers = config.workers
    if workers < 0:
        workers = max(1, resolve_workers(workers) // config.devices)
    return (
        batches,
        make_loader(train_set, batches, workers, timeout=config.decode_timeout),
        make_loader(val_set, val_batches, workers, timeout=config.decode_timeout),
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's memory, or the machine's, was too small."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def largest_that_fits(attempt: Callable[[Tensor], None], clips: Tensor, too_many: int) -> int:
    """How many of the clips can be computed at once: halves of `too_many`, down to one; 0 if none can."""
    count = too_many // 2
    while count:
        if clips.is_cuda:
            torch.cuda.empty_cache()  # in pieces that were right for the larger number
        try:
            attempt(clips[:count])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            return count
        count //= 2
    return 0


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


def no_bars() -> Progress:
    """For processes that show nothing."""
    return Progress(disable=True)


def epoch_line(row: dict[str, float], epochs: int, better: bool) -> str:
    """One epoch in one line."""
    validation = f"  val top-1 {100 * row['top1']:5.1f} %" if "top1" in row else ""
    return (
        f"epoch {row['epoch']:3.0f}/{epochs}  loss {row['loss']:.3f}  train {100 * row['train_top1']:5.1f} %"
        f"{validation}{' *' if better else '  '}  {row['seconds']:.0f} s"
    )


def say_how_to_resume(console: Console, out: Path, place: Place, how: str = "Go on with") -> None:
    """What is saved of a run that was stopped, and the way to go on."""
    console.print(
        f"Stopped in epoch {place.epoch + 1} after {counted(place.batch, 'batch')}; everything is saved in "
        f"{escape(str(out))}.\n{how}: vireo train --config {escape(shlex.quote(str(out / 'config.yaml')))} --resume",
        highlight=False,
        soft_wrap=True,
    )


def changed_by_batch_and_classes(config: TrainConfig, clips: ClipTable, weights: Tensor | None) -> list[str]:
    """The learning rate where the batch size changes it, and what is done about unequal classes, in a line each."""
    lines, lr = [], scaled_lr(config)
    if config.base_batch_size not in (0, config.batch_size):
        lines.append(
            f"learning rate {lr:.4g}: {config.lr:g} × {config.batch_size} / {config.base_batch_size}, as the batch has "
            f"{counted(config.batch_size, 'clip')} and base_batch_size is {config.base_batch_size}"
        )
    if weights is not None:
        some = weights[weights > 0]
        lines.append(f"class balance: a clip counts {some.min():.3g} to {some.max():.3g} times, by its class")
    elif config.class_balance == "sampling":
        classes = len(np.unique(clips.labels))
        lines.append(f"class balance: each of {classes} classes is drawn {len(clips) / classes:.4g} times per epoch")
    return lines


def announce_end(console: Console, out: Path, place: Place, seconds: float) -> None:
    """The result and where it is."""
    if place.failures:
        clips, failed = counted(len(place.failures), "clip"), escape(str(out / "failed.csv"))
        console.print(f"[red]{clips} could not be read[/red]; {failed} has the reasons", soft_wrap=True)
    console.print(
        f"best validation top-1 [bold]{100 * place.best:.1f} %[/bold] in {seconds / 60:.1f} min → "
        f"{escape(str(out / BEST))}",
        highlight=False,
        soft_wrap=True,
    )
