"""Clips for training and evaluation: one item is one clip, one batch is one tensor.

A sample's randomness depends on (seed, epoch, index) alone, so results depend neither on the number of
workers nor on where a run was resumed. A clip that can't be read, twice, becomes a `Failure` that travels
with the batch; it is never replaced by another. `vireo.data.loader` makes the batches, in processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vireo.config import AugmentConfig, ViewConfig
from vireo.data.clips import read_clip
from vireo.data.decode import Backend, Mode, Plan
from vireo.data.faults import Failure
from vireo.data.flips import FlipRule, flip_rule
from vireo.data.flow import read_flow
from vireo.data.sampling import Indices, clip_indices, sample_indices
from vireo.data.table import ClipRecord, ClipTable
from vireo.data.transforms import eval_transform, train_transform
from vireo.data.views import make_views, view_set
from vireo.errors import DataError, DecodeError, UsageError

_BLOCK = 1 << 12  # draws of a class that are made together


class Sample(NamedTuple):
    """One clip, ready for the model."""

    clip: Tensor
    """(T, C, S, S) uint8, channels last; C is 3, or 2 · fields of stacked flow. With several clips of a video, or
    views of a clip, they follow each other: (clips · V · T, C, S, S)."""
    label: int
    index: int  # type: ignore[assignment]  # hides tuple.index
    """Its row in the table."""
    moved: float = 0.0
    """How far its frames lie from those wanted, mean over T, frames; 0 unless decoding is that of keyframes."""
    seconds: float = 0.0
    """That reading it took."""


class Batch(NamedTuple):
    """Clips of a batch, and those that failed."""

    clips: Tensor
    """(N, T, C, S, S) uint8 whose memory is N, T, S, S, C; N may be smaller than the batch size, or 0."""
    labels: Tensor
    """(N,) int64."""
    indices: Tensor
    """(N,) int64, rows of the table."""
    failures: tuple[Failure, ...]
    moved: float = 0.0
    """Mean of the samples' `moved`."""
    seconds: tuple[float, ...] = ()
    """(N,) the samples' `seconds`; empty where they were not read by a loader."""


class ClipDataset(Dataset[Sample | Failure]):
    """Decoded and transformed clips of a table.

    Items are addressed by (epoch, index). With ``augment`` frames are drawn at random and varied, as in
    training; without, the sampling and the crop are those of evaluation and the epoch does not matter. What
    `EpochBatches` puts in the place of the epoch where classes are balanced is the number of earlier draws.
    With ``flow_fields`` the clips are optical flow, and that many successive fields are stacked; 0 = videos.

    Args:
        table: the clips.
        view: sampling and size.
        num_frames: T, frames of a clip, or stacks of flow.
        augment: how clips are varied; None = not at all.
        flips: which clips may be mirrored, and what their labels become; None = none.
        seed: of all that is random.
        flow_fields: flow fields stacked at each of the T positions; 0 = videos.
        views: how to look at a clip, one of `vireo.data.views.VIEWS`; with ``augment`` at the centre only.
        clips: clips of each video; with ``augment`` a single one.
        twice: of `vireo.data.sampling.clip_indices`, for two clips.
        decode: mode of `vireo.data.decode.read_frames`.
        decoder: backend of `vireo.data.decode.read_frames`.

    Raises:
        UsageError: ``num_frames`` or ``clips`` is below 1, or ``flow_fields`` below 0; unknown views, or several
            pictures of clips that are drawn at random.
        DataError: cuts of flow clips, which have no time stamps.
    """

    def __init__(
        self,
        table: ClipTable,
        view: ViewConfig,
        num_frames: int,
        augment: AugmentConfig | None = None,
        flips: FlipRule | None = None,
        seed: int = 0,
        *,
        flow_fields: int = 0,
        views: str = "center",
        clips: int = 1,
        twice: bool = False,
        decode: Mode = "exact",
        decoder: Backend = "auto",
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
        self.table, self.view, self.num_frames = table, view, num_frames
        self.augment, self.flips, self.seed = augment, flips or flip_rule(table.label_names, "off"), seed
        self.flow_fields, self.decode, self.decoder = flow_fields, decode, decoder
        if clips < 1:
            raise UsageError(f"clips is {clips}; it must be at least 1")
        self.views, self.clips, self.pictures = views, clips, clips * len(view_set(views).names)
        self.twice = twice
        if augment is not None and (views, clips) != ("center", 1):
            raise UsageError(f"{clips} clips, views {views!r}: clips that are drawn at random have one view")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def clip_bytes(self) -> int:
        """Bytes of one sample's clip; a whole frame may have more."""
        return self.pictures * self.num_frames * (2 * self.flow_fields or 3) * self.view.size**2

    def __getitem__(self, key: tuple[int, int]) -> Sample | Failure:
        epoch, index = key
        began = time.perf_counter()
        record = self.table.record(index)
        # Two streams: the plan may be asked twice, which must not shift what the transform draws.
        seeds, augment = (self.seed, epoch, index), self.augment

        places: Indices = np.empty((0, 0), dtype=np.int64)  # of each clip's frames among those that are read
        sampling, window, twice = self.view.sampling, self.view.window, self.twice

        def plan(frame_count: int) -> Indices:
            nonlocal places
            if augment is None:
                clips, frames = self.clips, self.num_frames
                wanted, places = clip_indices(sampling, frame_count, frames, clips, window=window, twice=twice)
                return wanted
            rng, jitter = np.random.default_rng((*seeds, 0)), augment.temporal_jitter
            return sample_indices(sampling, frame_count, self.num_frames, rng, jitter=jitter, window=window)

        found = self._read(record, plan)
        if isinstance(found, str):
            return Failure(index, record.path, found)
        frames, moved = found
        if augment is None:
            clip = self._look(frames, places)
            return Sample(clip, record.label, index, moved, time.perf_counter() - began)
        rng, flow = np.random.default_rng((*seeds, 1)), self.flow_fields > 0
        clip, label = train_transform(frames, self.view, augment, rng, self.flips, record.label, flow=flow)
        return Sample(clip, label, index, moved, time.perf_counter() - began)

    def _look(self, frames: Tensor, places: Indices) -> Tensor:
        """All views of all clips, one after the other, (clips · V · T, C, S, S)."""
        if self.pictures == 1 and self.views == "center":
            return eval_transform(frames, self.view)
        images, flow = frames.permute(0, 2, 3, 1), self.flow_fields > 0
        clips = [images[torch.from_numpy(place)].permute(0, 3, 1, 2) for place in places]
        seen = [make_views(self.views, clip, self.view, flow=flow).permute(0, 1, 3, 4, 2) for clip in clips]
        return torch.cat(seen).flatten(0, 1).permute(0, 3, 1, 2)

    def _read(self, record: ClipRecord, plan: Plan) -> tuple[Tensor, float] | str:
        """The frames and how far they moved, or why they can't be had.

        Tried twice: a network disk may have been away for a moment.
        """
        reason = ""
        for _ in range(2):
            try:
                if self.flow_fields:
                    return read_flow(record.path, plan, fields=self.flow_fields), 0.0
                frames = read_clip(record, plan, mode=self.decode, backend=self.decoder)
                return frames.data, float(np.abs(frames.moved).mean())
            except DecodeError as error:
                reason = error.reason
            except MemoryError:
                reason = "not enough memory for its frames"
        return reason


class BatchBuilder:
    """A batch that is filled in any order.

    Args:
        count: clips expected, failures included.
        pinned: whether its memory is pinned, for copies to a GPU that wait for nobody.
    """

    def __init__(self, count: int, *, pinned: bool = False) -> None:
        self._clips: Tensor | None = None  # (count, T, S, S, C)
        self._items: list[tuple[int, int, float, float] | Failure | None] = [None] * count
        self._pinned = pinned
        self.missing = count

    def put(self, place: int, item: Sample | Failure) -> None:
        """Set one of the batch's items; the clip is copied."""
        if isinstance(item, Failure):
            self._items[place] = item
        else:
            self.put_clip(place, item.clip.permute(0, 2, 3, 1), item.label, item.index, item.moved, item.seconds)
            return
        self.missing -= 1

    def put_clip(
        self, place: int, clip: Tensor, label: int, index: int, moved: float = 0.0, seconds: float = 0.0
    ) -> None:
        """Set one of the batch's items, the clip given as (T, S, S, C) uint8."""
        if self._clips is None:
            # In the clips' own memory order, so that folding time gives channels last for free.
            self._clips = torch.empty(len(self._items), *clip.shape, dtype=torch.uint8, pin_memory=self._pinned)
        if clip.shape != self._clips.shape[1:]:
            raise ValueError(f"clips of {tuple(clip.shape)} and {tuple(self._clips.shape[1:])} in one batch")
        self._clips[place] = clip
        self._items[place] = label, index, moved, seconds
        self.missing -= 1

    def batch(self) -> Batch:
        """The samples in their order, the failures apart. Without samples, clips is (0, 0, 3, 0, 0)."""
        good = [(place, *item) for place, item in enumerate(self._items) if item and not isinstance(item, Failure)]
        if self._clips is None:
            clips = torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8)
        else:
            whole = len(good) == len(self._items)
            clips = (self._clips if whole else self._clips[[place for place, *_ in good]]).permute(0, 1, 4, 2, 3)
        return Batch(
            clips,
            torch.tensor([label for _, label, *_ in good], dtype=torch.int64),
            torch.tensor([index for _, _, index, *_ in good], dtype=torch.int64),
            tuple(item for item in self._items if isinstance(item, Failure)),
            sum(moved for *_, moved, _ in good) / max(1, len(good)),
            tuple(seconds for *_, seconds in good),
        )


def collate(items: Sequence[Sample | Failure], *, pinned: bool = False) -> Batch:
    """Stack the samples, set the failures apart. Without samples, clips is (0, 0, 3, 0, 0)."""
    builder = BatchBuilder(len(items), pinned=pinned)
    for place, item in enumerate(items):
        builder.put(place, item)
    return builder.batch()


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), in an order that depends on (seed, epoch) alone.

    With several processes each takes every ``world_size``-th item of that order, so that each item is
    seen exactly once; their numbers of batches may then differ by one. With ``drop_last`` all
    processes get the same number of full batches and the items left over are dropped.

    With ``balanced`` the classes take turns, over the epochs too: in any epoch, and in all so far, no class is drawn
    more than once more often than another. So do the clips of a class: each is drawn once, in random order, then
    each once more. Where an epoch would have its number, an item has the number of times that this clip was drawn
    before, so that no two draws of it are varied alike::

        n = 6, classes a (0, 1, 2, 3), b (4, 5)     epoch 0: 3 of a, 4 and 5, 4 or 5 again
                                                    epoch 1: the fourth of a, then two of any; ...

    Args:
        n: number of items.
        batch_size: items of a batch.
        shuffle: whether the order is random.
        seed: of the order.
        drop_last: as above.
        balanced: (n,) classes of the items, which are then drawn equally often, n in all; None: each item once.
        rank: of this process.
        world_size: number of processes.

    Raises:
        UsageError: numbers that make no sense; ``balanced`` without ``shuffle`` or of another length.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        drop_last: bool = False,
        *,
        balanced: npt.ArrayLike | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if n < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise UsageError(f"n={n}, batch_size={batch_size}, rank={rank} of {world_size} make no sense")
        self._classes: list[Indices] | None = None
        if balanced is not None:
            labels = np.asarray(balanced)
            if labels.shape != (n,) or not shuffle:
                raise UsageError(f"balanced needs shuffle and one class for each of {n} items, not {labels.shape}")
            by_class = np.argsort(labels, kind="stable").astype(np.int64)
            begins = np.flatnonzero(np.diff(labels[by_class])) + 1
            self._classes = np.split(by_class, begins) if n else []
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
        turns = np.full(self.n, epoch)
        if self._classes:
            order, turns = (drawn[order] for drawn in self._take_turns(epoch))
        mine, when = (whole[self.rank :: self.world_size] for whole in (order, turns))
        for batch in range(self.start_batch, self.batches_per_epoch):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield list(zip(when[part].tolist(), mine[part].tolist(), strict=True))

    def _take_turns(self, epoch: int) -> tuple[Indices, Indices]:
        """The items of a balanced epoch and how often each was drawn before, (n,) each, class by class."""
        assert self._classes
        drawn: list[tuple[Indices, Indices]] = []
        classes = len(self._classes)
        for place, items in enumerate(self._classes):
            # Draws are dealt to the classes like cards, over all epochs: the n-th of all to class n mod their number.
            first, last = ((n + classes - 1 - place) // classes for n in (epoch * self.n, (epoch + 1) * self.n))
            drawn.append(_draws(items, first, last, (self.seed, place)))
        found, before = zip(*drawn, strict=True)
        return np.concatenate(found), np.concatenate(before)


def _draws(items: Indices, first: int, last: int, seeds: tuple[int, int]) -> tuple[Indices, Indices]:
    """The draws of a class from the ``first`` to that before the ``last``, and how often each item was drawn before."""
    passes = max(1, _BLOCK // len(items))  # several permutations at a time: a class may have but one item
    length = passes * len(items)
    blocks = range(first // length, -(-last // length))
    tiled = np.tile(items, (passes, 1))
    # The 3 keeps these apart from what clips and steps are varied by.
    drawn = [np.random.default_rng((*seeds, block, 3)).permuted(tiled, axis=1).ravel() for block in blocks]
    begin = first % length
    found = np.concatenate([*drawn, items[:0]])[begin : begin + last - first]
    return found, np.arange(first, last) // len(items)
