"""Batches of clips from processes that may die: no clip is lost, none is waited for for ever.

    batches ─► (ticket, key, slot) ─► pool of processes ─► clip into its slot of shared memory
                                                             │
    Batch  ◄── builders, one per batch ◄── copied once ◄─────┘ (ticket, shape, label)

The shared memory is anonymous: there is no file in /dev/shm, which containers keep too small. A clip
whose process crashed or was stuck is tried once more in another one; then it is a `Failure`.
"""

from __future__ import annotations

import mmap
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from vireo.data.dataset import Batch, BatchBuilder, ClipDataset, collate
from vireo.data.faults import Failure
from vireo.data.pool import FORKED, Crash, WorkerPool, resolve_workers

_MOST_SHARED = 1 << 30  # bytes of shared memory; clips beyond go through the pipes

Key = tuple[int, int]
"""(epoch, index)."""


class ClipLoader:
    """An iterable of batches; `make_loader` makes it.

    Every iteration yields what its sampler of batches says at that moment. The processes live on for the
    next iteration; those of an iteration that is left early end.

    Attributes:
        reading: seconds that went into reading clips so far, those of all processes added up.
    """

    def __init__(self, dataset: ClipDataset, batches: Sampler[list[Key]], workers: int, timeout: float) -> None:
        self.dataset, self.batches, self.workers, self.timeout = dataset, batches, workers, timeout
        self.reading = 0.0
        self._pinned = torch.cuda.is_available()
        self._idle: _Crew | None = None
        self._crews: weakref.WeakSet[_Crew] = weakref.WeakSet()
        self._hopeless: dict[int, Failure] = {}  # clips that cost two processes; once per run is enough

    def __len__(self) -> int:
        """Batches of the next iteration."""
        return len(self.batches)  # type: ignore[arg-type]  # samplers of batches have a length

    def __iter__(self) -> Iterator[Batch]:
        if self.workers:
            return self._from_processes()
        return (self._read_here(keys) for keys in self.batches)

    def close(self) -> None:
        """End the processes, and with them any iteration under way; the next one starts others."""
        for crew in list(self._crews):
            crew.pool.close()
        self._idle = None

    def _read_here(self, keys: list[Key]) -> Batch:
        began = time.perf_counter()
        batch = collate([self.dataset[key] for key in keys], pinned=self._pinned)
        self.reading += time.perf_counter() - began
        return batch

    def _from_processes(self) -> Iterator[Batch]:
        todo = iter(self.batches)
        keys = next(todo, None)
        if keys is None:
            return
        ahead = self._batches_ahead(len(keys))
        crew, self._idle = self._idle or _Crew(self.dataset, self.workers, self.timeout, ahead * len(keys)), None
        self._crews.add(crew)
        building: deque[BatchBuilder] = deque()
        before = crew.reading
        try:
            while True:
                while keys is not None and len(building) < ahead:
                    building.append(self._begin(keys, crew))
                    keys = next(todo, None)
                if not building:
                    break
                while building[0].missing:
                    self._hopeless.update((failure.index, failure) for failure in crew.collect())
                    self.reading, before = self.reading + crew.reading - before, crew.reading
                batch = building.popleft().batch()
                if keys is not None:  # before the caller takes its time over this one
                    building.append(self._begin(keys, crew))
                    keys = next(todo, None)
                yield batch
        except BaseException:  # left early, or broken
            crew.pool.close()
            raise
        self._rest(crew)

    def _rest(self, crew: _Crew) -> None:
        """Keep processes for the next iteration, in place of those of one that ran at the same time."""
        if self._idle is not None:
            self._idle.pool.close()
        self._idle = crew

    def _batches_ahead(self, size: int) -> int:
        """Batches under way at a time: the next while one is used, and four clips for every process."""
        return max(2, -(-4 * self.workers // max(1, size)))

    def _begin(self, keys: list[Key], crew: _Crew) -> BatchBuilder:
        """Order the clips of a batch."""
        builder = BatchBuilder(len(keys), pinned=self._pinned)
        for place, key in enumerate(keys):
            if (known := self._hopeless.get(key[1])) is not None:
                builder.put(place, known)
            else:
                crew.order(_Order(builder, place, key))
        return builder


def make_loader(dataset: ClipDataset, batches: Sampler[list[Key]], workers: int, *, timeout: float = 0.0) -> ClipLoader:
    """A loader of batches.

    Args:
        dataset: the clips.
        batches: what each batch holds, e.g. `EpochBatches`.
        workers: processes that decode; 0 = decode in this one, which dies if a decoder crashes; -1 = see
            `resolve_workers`.
        timeout: seconds after which a process is taken for stuck at its clip, and replaced; 0 = never.

    Returns:
        A loader that keeps its processes from epoch to epoch and leaves torch's global generator alone.
    """
    return ClipLoader(dataset, batches, resolve_workers(workers), timeout)


@dataclass
class _Order:
    """A clip that a batch waits for."""

    builder: BatchBuilder
    place: int
    key: Key
    crash: str = ""
    """What became of the first try."""


class _Loaded(NamedTuple):
    """A process's answer: the clip's shape if it lies in the slot, else the clip, (T, S, S, C)."""

    clip: tuple[int, ...] | np.ndarray[Any, np.dtype[np.uint8]]
    label: int
    index: int  # type: ignore[assignment]  # hides tuple.index
    moved: float
    seconds: float
    """That reading it took."""


class _Crew:
    """Processes, the memory they share with this one, and what they were asked for."""

    def __init__(self, dataset: ClipDataset, workers: int, timeout: float, slots: int) -> None:
        self.reading = 0.0  # seconds, those of all processes added up
        self._table, size = dataset.table, dataset.clip_bytes
        slots = min(slots, _MOST_SHARED // size) if FORKED else 0  # others can't share memory that has no name
        self._memory = (
            torch.frombuffer(mmap.mmap(-1, slots * size), dtype=torch.uint8).view(slots, size) if slots else None
        )
        self._free = list(range(slots))
        self._orders: dict[int, tuple[_Order, int | None]] = {}
        self._tickets = 0
        load = _Load(dataset, self._memory)
        # All is handed out at once: while the network takes its step, nobody is here to hand out more.
        self.pool: WorkerPool[tuple[Key, int | None], _Loaded | Failure] = WorkerPool(
            load, workers, timeout=timeout, ahead=1 << 16
        )

    def order(self, order: _Order) -> None:
        """Have a clip read."""
        slot = self._free.pop() if self._free else None
        self._tickets += 1
        self._orders[self._tickets] = order, slot
        self.pool.submit(self._tickets, (order.key, slot))

    def collect(self) -> list[Failure]:
        """Wait for clips and put them into their batches; those that failed by a second crash."""
        hopeless = []
        for ticket, answer in self.pool.wait():
            order, slot = self._orders.pop(ticket)
            if isinstance(answer, _Loaded):
                clip = answer.clip
                self.reading += answer.seconds
                facts = answer.label, answer.index, answer.moved, answer.seconds
                order.builder.put_clip(order.place, self._slot(slot, clip), *facts)
            elif isinstance(answer, Failure):
                order.builder.put(order.place, answer)
            elif order.crash:
                both = (
                    f"{answer.reason}, twice"
                    if answer.reason == order.crash
                    else f"{order.crash}; then {answer.reason}"
                )
                failure = Failure(order.key[1], self._table.record(order.key[1]).path, both)
                order.builder.put(order.place, failure)
                hopeless.append(failure)
            if slot is not None:
                self._free.append(slot)
            if isinstance(answer, Crash) and not order.crash:
                order.crash = answer.reason
                self.order(order)
        return hopeless

    def _slot(self, slot: int | None, clip: Any) -> Tensor:
        if isinstance(clip, np.ndarray):
            return torch.from_numpy(clip)
        assert self._memory is not None and slot is not None
        return self._memory[slot, : int(np.prod(clip))].view(clip)


class _Load:
    """What a process does with an item."""

    def __init__(self, dataset: ClipDataset, memory: Tensor | None) -> None:
        self._dataset, self._memory = dataset, memory

    def __call__(self, item: tuple[Key, int | None]) -> _Loaded | Failure:
        key, slot = item
        began = time.perf_counter()
        sample = self._dataset[key]
        if isinstance(sample, Failure):
            return sample
        clip = sample.clip.permute(0, 2, 3, 1)
        if self._memory is None or slot is None or clip.numel() > self._memory.shape[1]:
            shown: Any = clip.contiguous().numpy()
        else:
            self._memory[slot, : clip.numel()].view(clip.shape).copy_(clip)
            shown = tuple(clip.shape)
        return _Loaded(shown, sample.label, sample.index, sample.moved, time.perf_counter() - began)
