"""Run a model over lists of clips: which clips, by which protocol, in which process.

ClipTable → :func:`clip_loader` → :func:`score_clips` → Scores; :func:`score_table` is all of it.
A clip that cannot be read is counted and named; it is never replaced by another one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vireo
from vireo import progress
from vireo.checkpoint import Checkpoint
from vireo.config import ReadConfig
from vireo.data.clips import reader_name
from vireo.data.dataset import Batch, ClipDataset, EpochBatches
from vireo.data.faults import Failure, FailureCount
from vireo.data.loader import ClipLoader, make_loader
from vireo.data.pool import resolve_workers
from vireo.data.splits import split_table
from vireo.data.table import ClipTable
from vireo.devices import choose_device
from vireo.distributed import Team
from vireo.errors import DataError, UsageError, VireoError
from vireo.evaluation import Scores, join_scores
from vireo.model import Recognizer
from vireo.probe import FrameOrder
from vireo.protocols import (
    ManyViews,
    Protocol,
    choose_protocol,
    cost_of,
    describe_protocol,
    find_protocol,
    many_views,
)
from vireo.run_files import CLIPS, read_trained


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How clips are scored; the fields are those of :func:`evaluate`."""

    batch_size: int = 8
    workers: int = -1
    shuffle_frames: int = 0
    reverse_frames: bool = False
    single_frame: bool = False
    seed: int = 0
    device: str = "auto"
    protocol: str = ""
    views: str = "auto"
    clips: int = 0
    sampling: str = "auto"
    average: str = "logits"
    read: ReadConfig = field(default_factory=ReadConfig)

    def __post_init__(self) -> None:
        if self.shuffle_frames < 0:
            raise UsageError(f"shuffle_frames is {self.shuffle_frames}; it must be 0 or the number of permutations")
        if self.batch_size < 1 or self.seed < 0:
            raise UsageError(
                f"batch_size is {self.batch_size} and seed is {self.seed}; at least 1 and at least 0 are needed"
            )
        if self.protocol:  # before data are read, which may take its time
            find_protocol(self.protocol)


@contextmanager
def all_alike(team: Team | None) -> Iterator[None]:
    """Mark an error that every process of a team raises in the block: one of them is enough to print it."""
    try:
        yield
    except VireoError as error:
        if team:
            team.agree(error)
        raise


def score_table(
    checkpoint: Checkpoint,
    table: ClipTable,
    config: ScoreConfig,
    team: Team | None = None,
    *,
    orders: Sequence[FrameOrder | None] = (None,),
) -> tuple[list[Scores], dict[str, Any]]:
    """Score all clips of a table, each process of a team its share.

    Returns:
        One Scores per frame order, of all clips; and what they rest on, for the header of a result.

    Raises:
        TooManyFailuresError: more clips failed than the settings allow.
        DataError: scores that are not finite; or the team's processes see different clips.
    """
    model, read = checkpoint.model, config.read
    target = team.device if team else choose_device(config.device)
    model.to(target)
    protocol = choose_protocol(
        checkpoint.view,
        config.protocol,
        views=config.views,
        clips=config.clips,
        sampling=config.sampling,
        average=config.average,
    )
    many = many_views(protocol, checkpoint.labels, at_once=config.batch_size)
    loader = clip_loader(
        model,
        checkpoint,
        table,
        batch_size=many.videos if many else config.batch_size,
        workers=_workers_of(config.workers, team),
        read=read,
        protocol=protocol,
        share=(team.rank, team.size) if team else (0, 1),
    )
    header = {
        "checkpoint": describe(checkpoint),
        "modality": model.config.modality,
        "protocol": describe_protocol(protocol, frames_of(model)),
        "average": protocol.average,
        "decoder": reader_name(table, modality=model.config.modality, mode=read.decode, backend=read.decoder),
        "precision": "32-true",
        "seed": config.seed,
        "data_hash": table.digest(),
        "processes": team.size if team else 1,
        "vireo": vireo.__version__,
    }
    if team and len(set(team.gather(header["data_hash"]))) > 1:
        raise team.agree(DataError("The processes see different clips; give all machines the same files"))
    count = FailureCount("evaluation", len(table), read)
    alone = team is None or team.size == 1
    share = len(table) if team is None else len(range(team.rank, len(table), team.size))
    sizes: Counter[tuple[int, int]] = Counter()
    with closing(loader), _bar(share, shown=team is None or team.first) as advance:
        scores = score_clips(
            model,
            _noting_sizes(loader, sizes),
            num_classes=len(checkpoint.labels),
            device=target,
            frame_orders=orders,
            many=many,
            advance=advance,
            note=count.note if alone else lambda failures: None,  # else all are told, below
        )
    found = list(scores)
    if team and not alone:
        found = [join_scores(parts) for parts in zip(*team.gather(found), strict=True)]
        sizes = sum(team.gather(sizes), Counter())
        with all_alike(team):
            count.note(found[0].failures)
    with all_alike(team):
        _check_finite(found[0], table)
    if read.decode == "keyframe":
        header["frames_moved"] = round(found[0].moved, 2)
    cost = cost_of(model, protocol, sizes.most_common(1)[0][0] if sizes else None)
    return found, {**header, "cost": {**cost.as_dict(), "text": str(cost)}}


def _workers_of(workers: int, team: Team | None) -> int:
    """Of each process: the machine's are shared."""
    if workers >= 0 or team is None:
        return workers
    return max(1, resolve_workers(workers) // int(os.environ.get("LOCAL_WORLD_SIZE", team.size)))


def _bar(total: int, *, shown: bool) -> AbstractContextManager[Callable[[int], None]]:
    return progress.bar("evaluate", total) if shown else nullcontext(lambda clips: None)


def _noting_sizes(batches: Iterable[Batch], sizes: Counter[tuple[int, int]]) -> Iterator[Batch]:
    """The batches as they are; counts the sizes of frames, which those of whole frames alone don't share."""
    for batch in batches:
        if len(batch.labels):
            sizes[batch.clips.shape[-2], batch.clips.shape[-1]] += len(batch.labels)
        yield batch


def _check_finite(scores: Scores, table: ClipTable) -> None:
    """Refuse scores that say nothing: a file of them would read as clips that failed.

    Raises:
        DataError: some are infinite or not a number.
    """
    wrong = (~scores.logits.isfinite().all(1)).nonzero()[:, 0]
    if len(wrong):
        path = table.record(int(scores.indices[wrong[0]])).path
        raise DataError(
            f"The model's scores of {len(wrong)} of {len(scores.labels)} clips are infinite or not a number, the first "
            f"of {path}; its weights are damaged, or training went astray"
        )


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
    labels, indices, failures, moved, seconds = [empty], [empty], list[Failure](), 0.0, list[float]()
    try:
        with torch.inference_mode(), precision():
            for batch in batches:
                failures.extend(batch.failures)
                note(batch.failures)
                if len(batch.labels):
                    moved += batch.moved * len(batch.labels)
                    seconds += batch.seconds
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
            seconds=tuple(seconds),
        )
        for found in logits
    )


def apart(clips: Tensor, pictures: int) -> Tensor:
    """Clips (N, P · T, C, S, S) with P pictures each as (N · P, T, C, S, S), without a copy."""
    return clips.reshape(-1, clips.shape[1] // pictures, *clips.shape[2:])


def reorder(clips: Tensor, order: Tensor) -> Tensor:
    """Clips (N, T, 3, H, W) with the frames of each in the order given, (N, T)."""
    return torch.stack([clip[frames] for clip, frames in zip(clips, order, strict=True)])


def describe(checkpoint: Checkpoint) -> str:
    """The network in a few words, e.g. ``tei × resnet50, 8 frames``."""
    config = checkpoint.model.config
    return f"{config.temporal} × {config.backbone}, {frames_of(checkpoint.model)}"


def frames_of(model: Recognizer) -> str:
    """What a model sees of a clip: its frames, or stacks of flow fields."""
    config = model.config
    return f"{config.num_frames} " + ("frames" if config.modality == "rgb" else f"× {config.flow_fields} flow fields")


def choose_split(
    table: ClipTable, split: str, provenance: dict[str, Any], run: Path | None = None
) -> tuple[ClipTable, str]:
    """The clips to score and the name of the part they are, by the rules of :func:`evaluate`.

    ``run`` is the folder of the run that the model is from, for a message.
    """
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
    if trained_on:
        there = " and ".join(name for name, part in parts._asdict().items() if part is not None)
        raise DataError(f"The clips are those of the training, which had no part {split!r}; it had {there}")
    remedy = "use a CSV with a split column, or --split all if the model has seen none of the clips"
    if run is not None and (run / CLIPS).is_file():
        remedy = f"--data {run / CLIPS} has the parts of the training"
    raise DataError(
        f"The data names no split and is not the list of clips the model was trained on, so it has no part "
        f"{split!r}; {remedy}"
    )


def count_trained_on(table: ClipTable, run: Path) -> int:
    """How many clips of a table a run was trained on, by its ``clips.csv``; 0 where it has none that can be read.

    Clips are the same by their path and cut. Where none of the run's files is there any more, as on another machine,
    the last two parts of the path and the label stand for the path.
    """
    trained = read_trained(run)
    if not trained:
        return 0
    moved = not any(os.path.exists(clip.path) for clip in trained[:: max(1, len(trained) // 100)])
    real = cache(os.path.realpath)  # of folders: there are far fewer of them

    def key(path: str, label: str, start: str, end: str) -> tuple[str, ...]:
        folder, name = os.path.split(path)
        return (os.path.basename(folder) if moved else real(folder), name, label if moved else "", start, end)

    known, count = {key(*clip) for clip in trained}, 0
    for index in range(len(table)):
        clip = table.record(index)
        cut = ("" if time is None else repr(time) for time in (clip.start, clip.end))
        count += key(os.path.abspath(clip.path), table.label_names[clip.label], *cut) in known
    return count


def clip_loader(
    model: Recognizer,
    checkpoint: Checkpoint,
    table: ClipTable,
    *,
    batch_size: int,
    workers: int,
    read: ReadConfig | None = None,
    protocol: Protocol | None = None,
    share: tuple[int, int] = (0, 1),
) -> ClipLoader:
    """Batches of all clips of the table, in order, prepared as the protocol says; None: the centre, as in training.

    Of ``share``, (k, n), they are every n-th clip from the k-th.
    """
    read = read or ReadConfig()
    protocol = protocol or Protocol(view=replace(checkpoint.view, views="center", clips=1))
    view = protocol.view
    dataset = ClipDataset(
        table,
        view=view,
        views=view.views,
        clips=view.clips,
        twice=protocol.twice,
        num_frames=model.num_frames,
        flow_fields=model.config.flow_fields if model.config.modality == "flow" else 0,
        decode=read.decode,
        decoder=read.decoder,
    )
    batches = EpochBatches(len(table), batch_size=batch_size, shuffle=False, seed=0, rank=share[0], world_size=share[1])
    return make_loader(dataset, batches, workers, timeout=read.decode_timeout)
