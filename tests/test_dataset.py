"""Samples, batches and their order: repeatable whatever the workers, and no clip lost or replaced."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vireo.config import AugmentConfig, ViewConfig
from vireo.data.annotations import read_table
from vireo.data.dataset import Batch, BatchBuilder, ClipDataset, EpochBatches, Sample, collate
from vireo.data.faults import Failure
from vireo.data.flips import flip_rule
from vireo.data.loader import make_loader
from vireo.data.sampling import segment_indices
from vireo.data.table import ClipTable, StringColumn
from vireo.errors import UsageError

from .video_tools import numbers_of, write_class_folders, write_video

VIEW = ViewConfig(size=32, short_side=32)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ClipTable:
    """Five readable clips of two classes and one that is not a video."""
    root = write_class_folders(tmp_path_factory.mktemp("clips"), {"a": 3, "b": 2}, frames=30)
    (root / "b" / "bad.mp4").write_text("not a video")
    return read_table(root)


def training_set(table: ClipTable, seed: int = 0) -> ClipDataset:
    return ClipDataset(table, VIEW, 4, AugmentConfig(color_jitter=0.2), flip_rule(table.label_names, "on"), seed)


def test_a_sample_is_a_clip_its_label_and_its_row(table: ClipTable) -> None:
    sample = ClipDataset(table, ViewConfig(size=48, short_side=48), 4)[0, 3]
    assert isinstance(sample, Sample)
    assert sample.clip.shape == (4, 3, 48, 48) and sample.clip.dtype == torch.uint8
    assert (sample.label, sample.index) == (1, 3)


def test_cuts_reach_the_decoder(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", 50))
    table = ClipTable(
        paths=StringColumn([path] * 3),
        labels=np.zeros(3, dtype=np.int64),
        label_names=("a",),
        starts=np.array([np.nan, 0.4, 1.0]),
        ends=np.array([np.nan, 0.8, np.nan]),
    )
    # Frames of 64×48 without a resize; the numbers need the whole width.
    dataset = ClipDataset(table, ViewConfig(size=48, short_side=48), 4)
    from vireo.data.decode import read_frames  # the same cut, straight from the decoder

    for index, (start, end, first, count) in enumerate([(None, None, 0, 50), (0.4, 0.8, 10, 10), (1.0, None, 25, 25)]):
        frames = read_frames(path, lambda n: segment_indices(n, 4), start=start, end=end)
        assert numbers_of(frames.data) == (first + segment_indices(count, 4)).tolist()
        sample = dataset[0, index]
        assert isinstance(sample, Sample) and torch.equal(sample.clip, frames.data[..., 8:56])


def test_evaluation_ignores_seed_and_epoch(table: ClipTable) -> None:
    first = ClipDataset(table, VIEW, 4, seed=0)[0, 0]
    second = ClipDataset(table, VIEW, 4, seed=1)[5, 0]
    assert torch.equal(first[0], second[0])  # type: ignore[arg-type]


def test_randomness_depends_on_seed_epoch_and_index_alone(table: ClipTable) -> None:
    def clip(seed: int, epoch: int, index: int) -> torch.Tensor:
        sample = training_set(table, seed)[epoch, index]
        assert isinstance(sample, Sample)
        return sample.clip

    first = clip(0, 0, 0)
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(first, clip(0, 0, 0))
    assert not torch.equal(first, clip(1, 0, 0))
    assert not torch.equal(first, clip(0, 1, 0))
    assert not torch.equal(first, clip(0, 0, 1))  # the clips show the same pictures


def test_a_clip_that_cannot_be_read_is_reported_and_not_replaced(table: ClipTable) -> None:
    failure = training_set(table)[0, 5]
    assert isinstance(failure, Failure)
    assert failure.index == 5 and failure.path.endswith("bad.mp4") and "not a video" in failure.reason
    batch = collate([training_set(table)[0, i] for i in (4, 5, 0)])
    assert batch.indices.tolist() == [4, 0] and batch.labels.tolist() == [1, 0] and batch.failures == (failure,)
    nothing = collate([failure])
    assert len(nothing.clips) == len(nothing.labels) == 0 and nothing.failures == (failure,)


def test_other_errors_are_not_swallowed(table: ClipTable) -> None:
    dataset = training_set(table)
    dataset.view = None  # type: ignore[assignment]  # a bug, not a bad file
    with pytest.raises(AttributeError):
        dataset[0, 0]
    with pytest.raises(UsageError):
        ClipDataset(table, VIEW, 0)


def test_a_batch_folds_to_channels_last_without_a_copy(table: ClipTable) -> None:
    batch = collate([training_set(table)[0, i] for i in range(3)])
    assert batch.clips.shape == (3, 4, 3, 32, 32)
    folded = batch.clips.flatten(0, 1)
    assert folded.data_ptr() == batch.clips.data_ptr()
    assert folded.is_contiguous(memory_format=torch.channels_last)


def test_batches_are_the_same_whatever_the_workers(table: ClipTable) -> None:
    runs: list[list[Batch]] = []
    state = torch.get_rng_state()
    for workers in (0, 1, 2):
        batches = EpochBatches(len(table), 2, shuffle=True, seed=3)
        loader = make_loader(training_set(table), batches, workers)
        run: list[Batch] = []
        for epoch in range(2):
            batches.set_epoch(epoch)
            run += list(loader)
        runs.append(run)
    assert torch.equal(state, torch.get_rng_state())  # loading draws nothing from the global generator
    assert len(runs[0]) == len(runs[1]) == len(runs[2]) == 6
    for first, second in zip(runs[0] * 2, runs[1] + runs[2], strict=True):
        assert torch.equal(first.clips, second.clips) and torch.equal(first.indices, second.indices)
        assert second.clips.permute(0, 1, 3, 4, 2).is_contiguous()
        assert list(first.failures) == list(second.failures)
    assert not torch.equal(runs[0][0].clips, runs[0][3].clips)


class _Interrupted(ClipDataset):
    def __getitem__(self, key: tuple[int, int]) -> Sample | Failure:
        os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(key)


def test_workers_outlive_ctrl_c_and_start_after_the_network_has_run(table: ClipTable) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.nn.functional.conv2d(torch.randn(4, 8, 64, 64), torch.randn(8, 8, 3, 3))  # threads that a fork lacks
        loader = make_loader(_Interrupted(table, VIEW, 4), EpochBatches(len(table), 2, False, 0), 1)
        assert sum(len(batch.indices) for batch in loader) == 5
    finally:
        torch.set_num_threads(threads)


def rows(batches: EpochBatches) -> list[list[int]]:
    return [[index for _, index in batch] for batch in batches]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    batches = EpochBatches(100, 8, shuffle=True, seed=1)
    first = rows(batches)
    assert sorted(index for batch in first for index in batch) == list(range(100)) and len(first) == len(batches) == 13
    assert rows(batches) == first == rows(EpochBatches(100, 8, shuffle=True, seed=1))
    assert rows(EpochBatches(100, 8, shuffle=True, seed=2)) != first
    batches.set_epoch(1)
    assert rows(batches) != first
    assert {epoch for batch in batches for epoch, _ in batch} == {1}
    assert rows(EpochBatches(5, 2, shuffle=False, seed=1)) == [[0, 1], [2, 3], [4]]
    assert rows(EpochBatches(5, 2, shuffle=False, seed=1, drop_last=True)) == [[0, 1], [2, 3]]
    assert rows(EpochBatches(0, 2, shuffle=True, seed=1)) == []


def test_an_epoch_can_begin_in_its_middle() -> None:
    batches = EpochBatches(100, 8, shuffle=True, seed=1)
    batches.set_epoch(4)
    whole = rows(batches)
    batches.set_epoch(4, start_batch=5)
    assert rows(batches) == whole[5:] and len(batches) == 8 and batches.batches_per_epoch == 13
    batches.set_epoch(4, start_batch=13)
    assert rows(batches) == []
    batches.set_epoch(5)
    assert len(rows(batches)) == 13
    for wrong in (14, -1):
        with pytest.raises(UsageError):
            batches.set_epoch(4, start_batch=wrong)


@pytest.mark.parametrize("n", [0, 1, 7, 16, 100, 101])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_processes_share_an_epoch_without_overlap(n: int, processes: int) -> None:
    def parts(drop_last: bool) -> list[EpochBatches]:
        return [EpochBatches(n, 4, True, 0, drop_last, rank=r, world_size=processes) for r in range(processes)]

    seen = [index for part in parts(False) for batch in rows(part) for index in batch]
    assert sorted(seen) == list(range(n))
    assert all(len(rows(part)) == len(part) for part in parts(False))
    assert max(map(len, parts(False))) - min(map(len, parts(False))) <= 1
    full = [rows(part) for part in parts(True)]
    assert {len(part) for part in full} == {n // (4 * processes)}
    assert all(len(batch) == 4 for part in full for batch in part)
    together = [index for part in full for batch in part for index in batch]
    assert len(set(together)) == len(together)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"n": -1}, {"rank": 1}, {"rank": -1}, {"world_size": 0}])
def test_senseless_batches_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        EpochBatches(**({"n": 5, "batch_size": 2, "shuffle": True, "seed": 0} | wrong))  # type: ignore[arg-type]


UNEQUAL = {  # clips of each class
    "two": [9, 2],
    "equal": [5, 5, 5],
    "one clip": [1, 40, 7],
    "with a gap": [3, 0, 11, 6],
    "single": [4],
    "many rare ones": [1, 1, 1, 1, 30],
}


@pytest.mark.parametrize("numbers", UNEQUAL.values(), ids=UNEQUAL)
def test_balanced_classes_take_turns_and_so_do_their_clips(numbers: list[int]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(numbers)), numbers))
    n, present = len(labels), [label for label, number in enumerate(numbers) if number]
    batches = EpochBatches(n, 4, shuffle=True, seed=5, balanced=labels)
    clips: Counter[int] = Counter()
    classes: Counter[int] = Counter()
    items: list[tuple[int, int]] = []
    for epoch in range(25):
        batches.set_epoch(epoch)
        drawn = [item for batch in batches for item in batch]
        assert len(drawn) == n and [len(batch) for batch in batches] == [4] * (n // 4) + [n % 4] * (n % 4 > 0)
        of_epoch = Counter(int(labels[index]) for _, index in drawn)
        assert set(of_epoch) <= set(present) and set(of_epoch.values()) <= {n // len(present), n // len(present) + 1}
        for turn, index in sorted(drawn):
            assert turn == clips[index]  # how often it was drawn before: so no two draws are the same item
            clips[index] += 1
        classes += of_epoch
        items += drawn
        assert max(classes.values()) - min(classes[label] for label in present) <= 1
        for label in present:
            times = [clips[index] for index in np.flatnonzero(labels == label)]
            assert max(times) - min(times) <= 1
    assert len(set(items)) == 25 * n


def test_a_balanced_order_is_random_and_depends_on_seed_and_epoch_alone() -> None:
    labels = [0] * 90 + [1] * 10
    batches = EpochBatches(100, 8, shuffle=True, seed=1, balanced=labels)
    epochs = []
    for epoch in range(4):
        batches.set_epoch(epoch)
        epochs.append(list(batches))
    other = EpochBatches(100, 8, shuffle=True, seed=1, balanced=labels)
    other.set_epoch(3)
    assert list(other) == epochs[3] != epochs[2]
    other.set_epoch(3, start_batch=5)
    assert list(other) == epochs[3][5:] and len(other) == 8
    another = EpochBatches(100, 8, shuffle=True, seed=2, balanced=labels)
    another.set_epoch(3)
    assert list(another) != epochs[3]
    first = [[labels[index] for _, index in batch] for batch in epochs[0]]
    assert all(0 < sum(batch) < 8 for batch in first[:-1])  # not class by class
    frequent = [[index for batch in epoch for _, index in batch if index < 90] for epoch in epochs]
    assert len(set(map(tuple, frequent))) == 4 and frequent[0] != sorted(frequent[0])
    assert len(set(frequent[0])) == 50 and set(frequent[0] + frequent[1]) == set(range(90))


def test_balanced_classes_of_equal_size_are_the_whole_set_each_epoch() -> None:
    batches = EpochBatches(30, 8, shuffle=True, seed=1, balanced=[0, 1, 2] * 10)
    for epoch in range(3):
        batches.set_epoch(epoch)
        assert sorted(item for batch in batches for item in batch) == [(epoch, index) for index in range(30)]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_balanced_epoch(processes: int) -> None:
    labels = [0] * 20 + [1] * 3

    def drawn(**share: int) -> list[tuple[int, int]]:
        batches = EpochBatches(23, 4, True, 0, balanced=labels, **share)
        batches.set_epoch(2)
        return [item for batch in batches for item in batch]

    parts = [drawn(rank=rank, world_size=processes) for rank in range(processes)]
    whole = drawn()
    assert all(part == whole[rank::processes] for rank, part in enumerate(parts))


def test_a_class_of_one_clip_among_many_is_drawn_without_effort() -> None:
    batches = EpochBatches(200_001, 1000, shuffle=True, seed=0, balanced=[0] * 200_000 + [1])
    drawn = Counter(index for batch in batches for _, index in batch)
    assert drawn[200_000] == 100_000 and len(drawn) == 100_002


@pytest.mark.parametrize(
    "wrong", [{"balanced": [0, 1]}, {"balanced": [0] * 5, "shuffle": False}, {"balanced": [[0] * 5]}]
)
def test_classes_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="balanced needs shuffle and one class for each of 5 items"):
        EpochBatches(**({"n": 5, "batch_size": 2, "shuffle": True, "seed": 0} | wrong))
    assert list(EpochBatches(0, 2, shuffle=True, seed=0, balanced=[])) == []


def test_a_clip_that_is_drawn_again_is_varied_anew(table: ClipTable) -> None:
    clips = training_set(table)
    batches = EpochBatches(len(table), 1, shuffle=True, seed=0, balanced=[0] + [1] * (len(table) - 1))
    [first, second, *_] = [item for [item] in batches if item[1] == 0]
    one, other, again = clips[first], clips[second], clips[first]
    assert isinstance(one, Sample) and isinstance(other, Sample) and isinstance(again, Sample)
    assert torch.equal(one.clip, again.clip) and not torch.equal(one.clip, other.clip)


def test_a_mirror_image_changes_the_label(table: ClipTable) -> None:
    named = replace(table, label_names=("swipe left", "swipe right"))
    mirrored = ClipDataset(named, VIEW, 4, AugmentConfig(), flip_rule(named.label_names))
    plain = ClipDataset(named, VIEW, 4, AugmentConfig())
    swapped = 0
    for epoch in range(12):
        first, second = mirrored[epoch, 0], plain[epoch, 0]
        assert isinstance(first, Sample) and isinstance(second, Sample) and second.label == 0
        assert torch.equal(first.clip, second.clip.flip(-1) if first.label else second.clip)
        swapped += first.label
    assert 0 < swapped < 12


def test_batches_can_be_filled_in_any_order(table: ClipTable) -> None:
    items = [training_set(table)[0, i] for i in (5, 4, 0, 2)]
    builder = BatchBuilder(4)
    for place in (2, 0, 3, 1):
        assert builder.missing
        builder.put(place, items[place])
    assert not builder.missing
    found, expected = builder.batch(), collate(items)
    assert torch.equal(found.clips, expected.clips) and found.indices.tolist() == [4, 0, 2]
    assert found.failures == expected.failures
    small = ClipDataset(table, ViewConfig(size=16, short_side=16), 4)[0, 0]
    with pytest.raises(ValueError, match="in one batch"):
        collate([items[1], small])


def test_temporal_jitter_reaches_the_plan(table: ClipTable) -> None:
    def clip(jitter: float) -> torch.Tensor:
        sample = ClipDataset(table, VIEW, 4, AugmentConfig(scales=(1.0,), temporal_jitter=jitter), seed=2)[0, 0]
        assert isinstance(sample, Sample)
        return sample.clip

    assert torch.equal(clip(0.0), clip(0.0)) and not torch.equal(clip(0.0), clip(0.9))
