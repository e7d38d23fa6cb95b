"""Score a model on labelled clips, and say honestly what the score rests on.

Scores flow as: ClipTable → loader → :func:`score_clips` → Scores → :func:`measure` → Evaluation.
A clip that cannot be read is counted and named; it is never replaced by another one.
"""

from __future__ import annotations

import csv
import json as jsonlib
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

import vireo
from vireo import plots, progress
from vireo.checkpoint import Checkpoint, load_checkpoint
from vireo.config import ReadConfig, ViewConfig
from vireo.data.annotations import read_table
from vireo.data.clips import reader_name
from vireo.data.dataset import Batch, ClipDataset, EpochBatches
from vireo.data.faults import Failure, FailureCount, TooManyFailuresError
from vireo.data.flips import flip_rule
from vireo.data.loader import ClipLoader, make_loader
from vireo.data.splits import split_table
from vireo.data.table import ClipTable
from vireo.data.views import average_views, view_set
from vireo.devices import choose_device
from vireo.errors import DataError, UsageError, writing
from vireo.files import write_failures
from vireo.model import Recognizer
from vireo.scores import EVALUATION, SCORES, ScoreTable, clip_names, write_scores


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model said of a list of clips.

    Attributes:
        logits: (M, K) float32, one row per clip that could be read.
        labels: (M,) int64, true classes.
        indices: (M,) int64, rows of the clip table.
        failures: the clips that could not be read.
        moved: how far the frames lay from those wanted, mean, frames; 0 unless decoding is that of keyframes.
    """

    logits: Tensor
    labels: Tensor
    indices: Tensor
    failures: tuple[Failure, ...]
    moved: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.logits) == len(self.labels) == len(self.indices):
            raise ValueError("logits, labels and indices differ in length")

    @property
    def expected(self) -> int:
        """Clips that should have been scored."""
        return len(self.labels) + len(self.failures)


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One row of the per-class table."""

    label: str
    clips: int
    correct: int

    @property
    def accuracy(self) -> float:
        """In [0, 1]; nan for a class without clips."""
        return self.correct / self.clips if self.clips else math.nan


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracy of one model on one list of clips. All accuracies are in [0, 1].

    Attributes:
        header: what the score rests on: clips expected, scored and failed, protocol, decoder, seed,
            and a hash of the list of clips; with decode keyframe how far frames moved, on average.
        top1: share of the scored clips whose highest score is the true class.
        top5: share whose true class is among the five highest (top-K where there are fewer classes).
        mean_class: mean of the classes' accuracies, over classes that have clips.
        interval: 95 % Wilson interval of top1.
        classes: one row per class.
        confusion: (K, K) counts, true class first.
        shuffled: top1 with each clip's frames in random order, one value per permutation asked for.
        failures: clips that could not be read, with reasons.
        clip_scores: the scores of every clip, for `vireo fuse`.
    """

    header: dict[str, Any]
    top1: float
    top5: float
    mean_class: float
    interval: tuple[float, float]
    classes: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]
    shuffled: tuple[float, ...] = ()
    failures: tuple[Failure, ...] = ()
    clip_scores: ScoreTable | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **self.header,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class": self.mean_class,
            "interval95": list(self.interval),
            "shuffled_top1": list(self.shuffled),
            "classes": [
                {
                    "label": c.label,
                    "clips": c.clips,
                    "correct": c.correct,
                    "accuracy": c.accuracy if c.clips else None,  # JSON has no nan
                }
                for c in self.classes
            ],
            "confusion": self.confusion.tolist(),
            "failures": [{"path": f.path, "reason": f.reason} for f in self.failures],
        }


FrameOrder = Callable[[Tensor], Tensor]
"""Clip indices (N,) → frame permutations (N, T)."""


class ManyViews(NamedTuple):
    """How a batch holds several pictures of each video, and what becomes of their scores."""

    pictures: int
    """P, clips × views; in a batch they follow each other: (N, P · T, C, S, S)."""
    at_once: int
    """Pictures per forward pass."""
    videos: int
    """Videos per batch."""
    average: Callable[[Tensor], Tensor]
    """Scores (N, P, K) → (N, K)."""


def score_clips(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    *,
    num_classes: int,
    device: torch.device | str = "cpu",
    frame_orders: Sequence[FrameOrder | None] = (None,),
    many: ManyViews | None = None,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    advance: Callable[[int], None] = lambda clips: None,
    note: Callable[[tuple[Failure, ...]], None] = lambda failures: None,
) -> tuple[Scores, ...]:
    """Run the model over all batches, in evaluation mode, without gradients.

    Args:
        model: maps (N, T, 3, H, W) uint8 clips to (N, K) logits.
        batches: what :func:`vireo.data.loader.make_loader` yields. Read and decoded once, however
            many frame orders there are.
        num_classes: K.
        device: where the model is.
        frame_orders: the orders in which each clip's frames are shown; None = as they come.
        many: of batches with several pictures of each video; None = one.
        precision: context in which the model runs, e.g. autocast.
        advance: called with the number of clips done, for a progress bar.
        note: called with the failures of every batch; may raise to end it all.

    Returns:
        One Scores per frame order.
    """
    was_training = model.training
    model.eval()
    logits: list[list[Tensor]] = [[torch.empty(0, num_classes)] for _ in frame_orders]
    empty = torch.empty(0, dtype=torch.int64)
    labels, indices, failures, moved = [empty], [empty], list[Failure](), 0.0
    try:
        with torch.inference_mode(), precision():
            for batch in batches:
                failures.extend(batch.failures)
                note(batch.failures)
                if len(batch.labels):
                    moved += batch.moved * len(batch.labels)
                    labels.append(batch.labels)
                    indices.append(batch.indices)
                    clips = batch.clips if many is None else apart(batch.clips, many.pictures)
                    for order, found in zip(frame_orders, logits, strict=True):
                        shown = clips
                        if order is not None:
                            frames = order(batch.indices)  # the same for all pictures of a video
                            shown = reorder(clips, frames.repeat_interleave(many.pictures if many else 1, dim=0))
                        scores = [
                            model(some.to(device, non_blocking=True)).float().cpu()
                            for some in torch.split(shown, many.at_once if many else len(shown))
                        ]
                        joined = torch.cat(scores)
                        found.append(many.average(joined.view(-1, many.pictures, num_classes)) if many else joined)
                advance(len(batch.labels) + len(batch.failures))
    finally:
        model.train(was_training)
    return tuple(
        Scores(
            logits=torch.cat(found),
            labels=torch.cat(labels),
            indices=torch.cat(indices),
            failures=tuple(failures),
            moved=moved / max(1, sum(map(len, labels))),
        )
        for found in logits
    )


def apart(clips: Tensor, pictures: int) -> Tensor:
    """Clips (N, P · T, C, S, S) with P pictures each as (N · P, T, C, S, S), without a copy."""
    return clips.reshape(-1, clips.shape[1] // pictures, *clips.shape[2:])


def reorder(clips: Tensor, order: Tensor) -> Tensor:
    """Clips (N, T, 3, H, W) with the frames of each in the order given, (N, T)."""
    return torch.stack([clip[frames] for clip, frames in zip(clips, order, strict=True)])


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a proportion, sound also for few clips and near 0 or 1 (Wilson, 1927).

    Args:
        correct: successes.
        total: trials; with 0 trials the interval is (0, 1).
        z: normal quantile, 1.96 for 95 %.
    """
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def measure(scores: Scores, labels: tuple[str, ...], header: dict[str, Any]) -> Evaluation:
    """Turn scores into an evaluation.

    Raises:
        TooManyFailuresError: not one clip could be scored.
    """
    count, scored = len(labels), len(scores.labels)
    if not scored:
        why = f"; the first: {scores.failures[0].path}: {scores.failures[0].reason}" if scores.failures else ""
        raise TooManyFailuresError(f"None of {scores.expected} clips could be scored{why}", scores.failures)
    confusion = multiclass_confusion_matrix(scores.logits.argmax(1), scores.labels, num_classes=count).numpy()
    correct, totals = np.diagonal(confusion), confusion.sum(axis=1)
    top5 = multiclass_accuracy(scores.logits, scores.labels, num_classes=count, top_k=min(5, count), average="micro")
    return Evaluation(
        header={**header, "expected": scores.expected, "scored": scored, "failed": len(scores.failures)},
        top1=int(correct.sum()) / scored,
        top5=float(top5),
        mean_class=float((correct[totals > 0] / totals[totals > 0]).mean()),
        interval=wilson_interval(int(correct.sum()), scored),
        classes=tuple(
            ClassScore(label=label, clips=int(n), correct=int(c))
            for label, n, c in zip(labels, totals, correct, strict=True)
        ),
        confusion=confusion,
        failures=scores.failures,
    )


def shuffled_order(num_frames: int, seed: int, round_: int) -> FrameOrder:
    """Frame permutations drawn uniformly, one per clip, from (seed, round, clip index) alone."""

    def order(indices: Tensor) -> Tensor:
        draw = [np.random.default_rng((seed, round_, int(i))).permutation(num_frames) for i in indices]
        return torch.from_numpy(np.stack(draw))

    return order


def evaluate(
    checkpoint: Checkpoint | str | Path,
    data: str | Path | ClipTable,
    *,
    split: str = "auto",
    batch_size: int = 8,
    workers: int = -1,
    shuffle_frames: int = 0,
    seed: int = 0,
    device: str = "auto",
    views: str = "auto",
    clips: int = 0,
    read: ReadConfig | None = None,
) -> Evaluation:
    """Accuracy of a checkpoint on labelled clips, by the checkpoint's own protocol unless told otherwise.

    A video's scores are the mean, over its clips and their views, of the logits.

    Args:
        checkpoint: a file that `vireo train` wrote, or one already loaded.
        data: a folder per class, a CSV, or a table.
        split: ``test``, ``val``, ``train`` or ``all``. ``auto``: the data's test part if it names
            one, else its validation part; where the data names no split: the part that training on
            the same data set aside, and all clips of any other data.
        batch_size: clips per forward pass.
        workers: processes that decode; -1 = one per core, at most 8.
        shuffle_frames: how often to score the same clips again with their frames in random order.
        seed: of these permutations.
        device: ``auto``, ``cpu``, ``cuda``, ...
        views: pictures of each clip, one of `vireo.data.views.VIEWS`; ``auto``: the checkpoint's.
        clips: of each video, at places spread evenly; 0: as many as the checkpoint says.
        read: how clips are read, and how many may fail; None = the defaults.

    Raises:
        DataError: unusable data, a label the model does not know, or no readable clip.
        TooManyFailuresError: a DataError; more clips failed than ``read`` allows.
        CheckpointError: not a checkpoint.
        UsageError: a setting is wrong, or mirrored views of classes that have no mirror image.
    """
    if shuffle_frames < 0:
        raise UsageError(f"shuffle_frames is {shuffle_frames}; it must be 0 or the number of permutations")
    if batch_size < 1 or seed < 0:
        raise UsageError(f"batch_size is {batch_size} and seed is {seed}; at least 1 and at least 0 are needed")
    read, target = read or ReadConfig(), choose_device(device)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    model = checkpoint.model.to(target)
    if isinstance(data, ClipTable):
        table = data
    else:
        table = read_table(data, label_names=checkpoint.labels, modality=model.config.modality)
    if table.label_names != checkpoint.labels:
        raise DataError(
            "The table's label names, or their order, are not the model's; read it with "
            "read_table(data, label_names=checkpoint.labels)"
        )
    view = replace(
        checkpoint.view,
        views=checkpoint.view.views if views == "auto" else views,  # type: ignore[arg-type]  # checked there
        clips=clips or checkpoint.view.clips,
    )
    many = many_views(view, checkpoint.labels, at_once=batch_size)
    notes = table.notes
    table, part = choose_split(table, split, checkpoint.provenance)

    header = {
        "checkpoint": describe(checkpoint),
        "modality": model.config.modality,
        "split": part,
        "protocol": describe_protocol(view, frames_of(model)),
        "decoder": reader_name(table, modality=model.config.modality, mode=read.decode, backend=read.decoder),
        "precision": "32-true",
        "seed": seed,
        "data_hash": table.digest(),
        "data_notes": list(notes),
        "vireo": vireo.__version__,
    }
    orders = [shuffled_order(model.num_frames, seed, round_) for round_ in range(shuffle_frames)]
    loader = clip_loader(
        model,
        checkpoint,
        table,
        batch_size=many.videos if many else batch_size,
        workers=workers,
        read=read,
        view=view,
    )
    count = FailureCount("evaluation", len(table), read)
    with closing(loader), progress.bar("evaluate", len(table)) as advance:
        straight, *shuffled = score_clips(
            model,
            loader,
            num_classes=len(checkpoint.labels),
            device=target,
            frame_orders=(None, *orders),
            many=many,
            advance=advance,
            note=count.note,
        )
    if read.decode == "keyframe":
        header["frames_moved"] = round(straight.moved, 2)
    return replace(
        measure(straight, checkpoint.labels, header),
        shuffled=tuple(measure(scores, checkpoint.labels, header).top1 for scores in shuffled),
        clip_scores=tabulate(straight, table, model.config.modality),
    )


def many_views(view: ViewConfig, labels: tuple[str, ...], *, at_once: int) -> ManyViews | None:
    """How to score the clips and views that a `ViewConfig` asks for; None for the centre of a single clip.

    Raises:
        UsageError: unknown views, or mirrored ones of labels that have no mirror image.
    """
    if (view.views, view.clips) == ("center", 1):
        return None
    count, rule = len(view_set(view.views).names), flip_rule(labels, "auto")

    def average(scores: Tensor) -> Tensor:
        return average_views(view.views, scores.view(-1, view.clips, count, len(labels)), rule).mean(1)

    pictures = view.clips * count
    average(torch.zeros(1, pictures, len(labels)))  # what can't be averaged shows before the work, not after it
    # Whole frames of two videos may differ in size.
    return ManyViews(pictures, at_once, 1 if view.views == "full" else max(1, at_once // pictures), average)


_SHOWN = {
    "center": "centre crop {S}²",
    "3crop": "3 crops {S}² along the long side",
    "5crop": "crops {S}² of corners and centre",
    "10crop": "crops {S}² of corners and centre, and mirrored",
    "full": "whole frames",
}


def describe_protocol(view: ViewConfig, frames: str) -> str:
    """What a score rests on, e.g. ``10x3-crop: 8 frames (dense, 64), short side 256, 3 crops 224² …``."""
    count = len(view_set(view.views).names)
    sampling = "segment" if view.sampling == "segment" else f"dense, {view.window}"
    if view.views == "squeezed":
        shown = f"whole frames squeezed to {view.size} × {view.resize_to}"
    else:
        shown = f"short side {view.resize_to}, {_SHOWN[view.views].format(S=view.size)}"
    name = f"{view.clips}x{count}-{'crop' if count > 1 else view.views}"
    return f"{name}: {frames} ({sampling}), {shown}"


def tabulate(scores: Scores, table: ClipTable, modality: str) -> ScoreTable:
    """Scores by the clips' names, failed clips with nan."""
    rows = torch.full((len(table), len(table.label_names)), torch.nan)
    rows[scores.indices] = scores.logits
    return ScoreTable(
        clips=clip_names(table),
        labels=torch.from_numpy(table.labels),
        label_names=table.label_names,
        scores=rows,
        modality=modality,
    )


def describe(checkpoint: Checkpoint) -> str:
    """The network in a few words, e.g. ``tei × resnet50, 8 frames``."""
    config = checkpoint.model.config
    return f"{config.temporal} × {config.backbone}, {frames_of(checkpoint.model)}"


def frames_of(model: Recognizer) -> str:
    """What a model sees of a clip: its frames, or stacks of flow fields."""
    config = model.config
    return f"{config.num_frames} " + ("frames" if config.modality == "rgb" else f"× {config.flow_fields} flow fields")


def choose_split(table: ClipTable, split: str, provenance: dict[str, Any]) -> tuple[ClipTable, str]:
    """The clips to score and the name of the part they are, by the rules of :func:`evaluate`."""
    if split not in ("auto", "train", "val", "test", "all"):
        raise UsageError(f"split is {split!r}; use auto, train, val, test or all")
    if split == "all":
        return table, "all"
    named = set(table.splits) if table.splits is not None else set()
    trained_on = provenance.get("data_hash") == table.digest()
    if split == "auto":
        if not named and not trained_on:
            return table, "all"
        split = "test" if "test" in named else "val"
    if trained_on:  # the parts that training used, also where it drew the validation part itself
        settings = provenance.get("config", {})
        parts = split_table(table, val_fraction=settings.get("val_fraction", 0.2), seed=settings.get("seed", 0))
        part = parts._asdict()[split]
        if part is not None:
            return part, split
    if named:
        return table.in_split(split), split
    raise DataError(
        f"The data names no split and is not the list of clips the model was trained on, so it has no part "
        f"{split!r}; use --split all, or a CSV with a split column"
    )


def clip_loader(
    model: Recognizer,
    checkpoint: Checkpoint,
    table: ClipTable,
    *,
    batch_size: int,
    workers: int,
    read: ReadConfig | None = None,
    view: ViewConfig | None = None,
) -> ClipLoader:
    """Batches of all clips of the table, in order, prepared as ``view`` says; None: the centre, as in training."""
    read, view = read or ReadConfig(), view or replace(checkpoint.view, views="center", clips=1)
    dataset = ClipDataset(
        table,
        view=view,
        views=view.views,
        clips=view.clips,
        num_frames=model.num_frames,
        flow_fields=model.config.flow_fields if model.config.modality == "flow" else 0,
        decode=read.decode,
        decoder=read.decoder,
    )
    batches = EpochBatches(len(table), batch_size=batch_size, shuffle=False, seed=0)
    return make_loader(dataset, batches, workers, timeout=read.decode_timeout)


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """The honest header, the accuracies and the per-class table."""
    header = evaluation.header
    console.print(f"[bold]{escape(header['checkpoint'])}[/bold]  on the {header['split']} part")
    console.print(
        f"clips: {header['expected']} expected, {header['scored']} scored, "
        + (f"[red]{header['failed']} failed[/red]" if header["failed"] else "0 failed")
    )
    console.print(
        f"[dim]{escape(header['protocol'])}, {header['precision']}\n"
        f"decoder {header['decoder']} · seed {header['seed']} · data {header['data_hash']}[/dim]",
        soft_wrap=True,
    )
    if (moved := header.get("frames_moved")) is not None:
        console.print(f"[dim]frames shown lie {moved:g} frames from those wanted, on average[/dim]", highlight=False)
    for note in header["data_notes"]:
        console.print(Text(note, "dim"), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("class", "clips", "correct", "accuracy"):
        table.add_column(title, justify="left" if title == "class" else "right")
    for row in evaluation.classes:
        accuracy = f"{100 * row.accuracy:.1f} %" if row.clips else "–"
        table.add_row(escape(row.label), str(row.clips), str(row.correct), accuracy)
    console.print()
    console.print(table)
    low, high = evaluation.interval
    console.print(
        f"\n[bold]top-1 {100 * evaluation.top1:.1f} %[/bold] (95 % interval {100 * low:.1f}–{100 * high:.1f})   "
        f"top-{min(5, len(evaluation.classes))} {100 * evaluation.top5:.1f} %   "
        f"mean-class {100 * evaluation.mean_class:.1f} %"
    )
    if evaluation.shuffled:
        values = 100 * np.asarray(evaluation.shuffled)
        console.print(
            f"frames shuffled: top-1 {values.mean():.1f} % ± {values.std():.1f} over {len(values)} permutations"
        )
    for failure in evaluation.failures[:10]:
        console.print(f"[red]failed[/red] {escape(failure.path)}: {escape(failure.reason)}")
    if len(evaluation.failures) > 10:
        console.print(f"[red]… and {len(evaluation.failures) - 10} more[/red], see failed.csv or --json")


def write_evaluation(evaluation: Evaluation, out: Path) -> dict[str, Path]:
    """Write ``evaluation.json``, ``per_class.csv``, ``confusion.png``, ``scores.csv`` and, if any, ``failed.csv``."""
    files = {"json": out / EVALUATION, "per_class": out / "per_class.csv"}
    with writing(files["json"]):
        out.mkdir(parents=True, exist_ok=True)
        files["json"].write_text(jsonlib.dumps(evaluation.as_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    with writing(files["per_class"]), files["per_class"].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "clips", "correct", "accuracy"])
        writer.writerows([c.label, c.clips, c.correct, c.accuracy] for c in evaluation.classes)
    title = f"{evaluation.header['checkpoint']}: top-1 {100 * evaluation.top1:.1f} %"
    labels = [c.label for c in evaluation.classes]
    files["confusion"] = plots.write_png(
        out / "confusion.png", plots.confusion_png(evaluation.confusion, labels, title)
    )
    if evaluation.clip_scores is not None:
        files["scores"] = write_scores(out / SCORES, evaluation.clip_scores)
    failed = write_failures(out / "failed.csv", [(f.path, f.reason) for f in evaluation.failures])
    if evaluation.failures:
        files["failed"] = failed
    return files


def evaluate_command(
    checkpoint: Path,
    data: str,
    *,
    out: Path | None = None,
    split: str = "auto",
    batch_size: int = 8,
    workers: int = -1,
    shuffle_frames: int = 0,
    seed: int = 0,
    device: str = "auto",
    views: str = "auto",
    clips: int = 0,
    read: ReadConfig | None = None,
    json: bool = False,
) -> int:
    """What `vireo eval` does: evaluate, print, write the files (default: ``NAME.eval/`` beside the checkpoint)."""
    out = out or Path(checkpoint).with_suffix("").with_suffix(".eval")
    try:
        evaluation = evaluate(
            checkpoint,
            data,
            split=split,
            batch_size=batch_size,
            workers=workers,
            shuffle_frames=shuffle_frames,
            seed=seed,
            device=device,
            views=views,
            clips=clips,
            read=read,
        )
    except TooManyFailuresError as error:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        write_failures(out / "failed.csv", [(failure.path, failure.reason) for failure in error.failures])
        raise
    # First the result, then the files: a full disk must not take the figures along.
    console = Console()
    if json:
        print(jsonlib.dumps(evaluation.as_dict(), ensure_ascii=False), flush=True)
    else:
        print_evaluation(evaluation, console)
    files = write_evaluation(evaluation, out)
    if not json:
        console.print(f"confusion matrix: {escape(str(files['confusion']))}", highlight=False, soft_wrap=True)
    return 0
