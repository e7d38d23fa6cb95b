"""Clips for training and evaluation: one item is one clip, one batch is one tensor.

A sample's randomness depends on (seed, epoch, index) alone, so results depend neither on the number of
workers nor on where a run was resumed. A clip that can't be read becomes a `Failure` that travels with
the batch; it is never replaced by another.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vireo.config import AugmentConfig, ViewConfig
from vireo.data.annotations import ClipTable
from vireo.data.decode import read_frames
from vireo.data.flow import read_flow
from vireo.data.sampling import Indices, sample_indices
from vireo.data.transforms import eval_transform, train_transform
from vireo.errors import DataError, DecodeError, UsageError


class Sample(NamedTuple):
    """One clip, ready for the model."""

    clip: Tensor
    """(T, C, S, S) uint8, channels last; C is 3, or 2 · fields of stacked flow."""
    label: int
    index: int  # type: ignore[assignment]  # hides tuple.index
    """Its row in the table."""


class Failure(NamedTuple):
    """One clip that can't be read."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    path: str
    reason: str


class Batch(NamedTuple):
    """Clips of a batch, and those that failed."""

    clips: Tensor
    """(N, T, C, S, S) uint8 whose memory is N, T, S, S, C; N may be smaller than the batch size, or 0."""
    labels: Tensor
    """(N,) int64."""
    indices: Tensor
    """(N,) int64, rows of the table."""
    failures: Sequence[Failure]
    """A tuple; pinning memory makes it a list."""


class ClipDataset(Dataset[Sample | Failure]):
    """Decoded and transformed clips of a table.

    Items are addressed by (epoch, index). With ``augment`` frames are drawn at random and varied, as in
    training; without, the sampling and the crop are those of evaluation and the epoch does not matter.
    With ``flow_fields`` the clips are optical flow, and that many successive fields are stacked; 0 = videos.

    Raises:
        UsageError: ``num_frames`` is below 1, or ``flow_fields`` below 0.
        DataError: cuts of flow clips, which have no time stamps.
    """

    def __init__(
        self,
        table: ClipTable,
        view: ViewConfig,
        num_frames: int,
        augment: AugmentConfig | None = None,
        flip: bool = False,
        seed: int = 0,
        *,
        flow_fields: int = 0,
    ) -> None:
        if num_frames < 1:
            raise UsageError(f"num_frames is {num_frames}; it must be at least 1")
        if flow_fields < 0:
            raise UsageError(f"flow_fields is {flow_fields}; it must be at least 1, or 0 for videos")
        if flow_fields and not (np.isnan(table.starts).all() and np.isnan(table.ends).all()):
            raise DataError(
                "start and end are seconds of a video, and clips of flow have no times; "
                "leave both empty and give every cut a folder or array of its own"
            )
        self.flow_fields = flow_fields
        self.table, self.view, self.num_frames = table, view, num_frames
        self.augment, self.flip, self.seed = augment, flip, seed

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: tuple[int, int]) -> Sample | Failure:
        epoch, index = key
        record = self.table.record(index)
        # Two streams: the plan may be asked twice, which must not shift what the transform draws.
        seeds = (self.seed, epoch, index)

        def plan(frame_count: int) -> Indices:
            rng = np.random.default_rng((*seeds, 0)) if self.augment else None
            return sample_indices(self.view.sampling, frame_count, self.num_frames, rng)

        try:
            if self.flow_fields:
                frames = read_flow(record.path, plan, fields=self.flow_fields)
            else:
                frames = read_frames(record.path, plan, start=record.start, end=record.end).data
        except DecodeError as error:
            return Failure(index, record.path, error.reason)
        if self.augment:
            rng = np.random.default_rng((*seeds, 1))
            clip = train_transform(frames, self.view, self.augment, rng, self.flip, flow=self.flow_fields > 0)
        else:
            clip = eval_transform(frames, self.view)
        return Sample(clip, record.label, index)


def collate(items: Sequence[Sample | Failure]) -> Batch:
    """Stack the samples, set the failures apart. Without samples, clips is (0, 0, 3, 0, 0)."""
    samples = [item for item in items if isinstance(item, Sample)]
    if samples:
        # One copy, in the clips' own memory order, so that folding time gives channels last for free.
        clips = torch.stack([sample.clip.permute(0, 2, 3, 1) for sample in samples]).permute(0, 1, 4, 2, 3)
    else:
        clips = torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8)
    return Batch(
        clips,
        torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        tuple(item for item in items if isinstance(item, Failure)),
    )


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), in an order that depends on (seed, epoch) alone.

    With several processes each takes every ``world_size``-th item of that order, so that each item is
    seen exactly once; their numbers of batches may then differ by one. With ``drop_last`` all
    processes get the same number of full batches and the items left over are dropped.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        drop_last: bool = False,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if n < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise UsageError(f"n={n}, batch_size={batch_size}, rank={rank} of {world_size} make no sense")
        self.n, self.batch_size, self.shuffle, self.seed, self.drop_last = n, batch_size, shuffle, seed, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose what the next iteration yields: the batches of ``epoch`` from ``start_batch`` on."""
        if epoch < 0 or not 0 <= start_batch <= self.batches_per_epoch:
            raise UsageError(f"epoch {epoch} has no batch {start_batch}; it has {self.batches_per_epoch}")
        self.epoch, self.start_batch = epoch, start_batch

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch of this process."""
        if self.drop_last:
            return self.n // (self.batch_size * self.world_size)
        mine = len(range(self.rank, self.n, self.world_size))
        return -(-mine // self.batch_size)

    def __len__(self) -> int:
        """Batches that the next iteration yields."""
        return self.batches_per_epoch - self.start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.n) if self.shuffle else np.arange(self.n)
        mine = order[self.rank :: self.world_size]
        for batch in range(self.start_batch, self.batches_per_epoch):
            part = mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, index) for index in part.tolist()]


def resolve_workers(workers: int) -> int:
    """Number of decoding processes; -1 = one per core this process may use, at most 8."""
    if workers >= 0:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the main one decides when to stop, its workers go on till then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked worker has the main process's handlers


def make_loader(dataset: ClipDataset, batches: Sampler[list[tuple[int, int]]], workers: int) -> DataLoader[Batch]:
    """A loader of batches.

    Args:
        dataset: the clips.
        batches: what each batch holds, e.g. `EpochBatches`.
        workers: processes that decode; 0 = decode in this one, -1 = see `resolve_workers`.

    Returns:
        A loader that keeps its workers from epoch to epoch and leaves torch's global generator alone.
    """
    workers = resolve_workers(workers)
    # Forked workers start at once and share the table's memory. It is safe: a worker has one thread (torch sees to
    # that), opens its decoders itself and never touches a GPU.
    context = "fork" if workers and sys.platform == "linux" else None
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # the collated type is Batch
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # an epoch's first act is to draw a seed; not from the global generator
        multiprocessing_context=context,
        persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_ignore_interrupt,
    )
