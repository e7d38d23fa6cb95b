"""Faults stay small: whatever happens to a file or to the process that reads it costs that clip and no other."""

from __future__ import annotations

import csv
import functools
import gc
import io
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torchvision.io import write_jpeg

from vireo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vireo.config import AugmentConfig, ReadConfig, TrainConfig, ViewConfig
from vireo.data import dataset as datasets
from vireo.data import loader as loaders
from vireo.data import pool as pools
from vireo.data.annotations import read_table
from vireo.data.dataset import Batch, ClipDataset, EpochBatches, Sample
from vireo.data.faults import Failure, FailureCount, TooManyFailuresError
from vireo.data.loader import ClipLoader, make_loader
from vireo.data.pool import FORKED
from vireo.data.splits import split_table
from vireo.data.table import ClipTable, StringColumn
from vireo.errors import DecodeError, UsageError
from vireo.evaluate import evaluate, evaluate_command
from vireo.model import create_model
from vireo.predict import predict_many
from vireo.train import train

from .video_tools import write_class_folders, write_sound, write_video

VIEW = ViewConfig(size=32, short_side=32)
QUIET = Console(quiet=True)
forked = pytest.mark.skipif(not FORKED, reason="what these tests plant reaches the processes by fork")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten readable clips of two classes."""
    return write_class_folders(tmp_path_factory.mktemp("clips"), {"a": 5, "b": 5}, frames=12)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=2)
    return Checkpoint(model=model, labels=("a", "b"), view=VIEW)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert multiprocessing.active_children() == []


def plant(patch: pytest.MonkeyPatch, act: Callable[[Path], None], *names: str) -> None:
    """Have something happen where files of these names are read."""
    read = datasets.read_clip

    def planted(record: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(record.path).name in names:
            act(Path(record.path))
        return read(record, *args, **kwargs)

    patch.setattr(datasets, "read_clip", planted)


def once(mark: Path, act: Callable[[Path], None], path: Path) -> None:
    """Do it the first time only, whichever process asks."""
    if not mark.exists():
        mark.touch()
        act(path)


def die(number: int, path: Path) -> None:
    os.kill(os.getpid(), number)


def loader_of(table: ClipTable, workers: int, timeout: float = 0.0, batch: int = 3) -> ClipLoader:
    dataset = ClipDataset(table, VIEW, 4, AugmentConfig(color_jitter=0.2), seed=1)
    return make_loader(dataset, EpochBatches(len(table), batch, shuffle=True, seed=0), workers, timeout=timeout)


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.clips, b.clips)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
        and a.failures == b.failures
        for a, b in zip(first, second, strict=True)
    )


# --- the loader


@forked
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_decoder_that_crashes_once_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, workers: int
) -> None:
    table = read_table(folder)
    whole = list(loader_of(table, 0))
    plant(monkeypatch, functools.partial(once, tmp_path / "mark", functools.partial(die, number)), "b_2.mp4")
    loader = loader_of(table, workers)
    assert equal(list(loader), whole) and (tmp_path / "mark").exists()
    loader.close()


@forked
@pytest.mark.parametrize("workers", [1, 2])
def test_a_clip_that_always_crashes_its_decoder_costs_itself_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    table = read_table(folder)
    whole = [index for batch in loader_of(table, 0) for index in batch.indices.tolist()]
    plant(monkeypatch, functools.partial(die, signal.SIGSEGV), "b_2.mp4")
    loader = loader_of(table, workers)
    batches = list(loader)
    (failure,) = [failure for batch in batches for failure in batch.failures]
    assert failure.path.endswith("b_2.mp4") and failure.reason == "the process crashed (SIGSEGV), twice"
    assert [i for batch in batches for i in batch.indices.tolist()] == [i for i in whole if i != failure.index]
    loader.close()


@forked
def test_a_clip_that_hangs_is_given_up_twice_and_not_tried_in_the_next_epoch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(path: Path) -> None:
        with (tmp_path / "tries").open("a") as file:
            file.write("x")
        time.sleep(600)

    plant(monkeypatch, hang, "a_1.mp4")
    loader = loader_of(read_table(folder), 2, timeout=0.7)
    batches = list(loader)
    (failure,) = [failure for batch in batches for failure in batch.failures]
    assert failure.path.endswith("a_1.mp4") and failure.reason == "no answer within 0.7 s, twice"
    assert sum(len(batch.indices) for batch in batches) == 9
    again = list(loader)
    assert [failure for batch in again for failure in batch.failures] == [failure]
    assert (tmp_path / "tries").read_text() == "xx"
    loader.close()


@forked
def test_processes_killed_from_outside_while_they_work(folder: Path) -> None:
    table = read_table(folder)
    whole, found = list(loader_of(table, 0, batch=1)), []
    loader = loader_of(table, 2, batch=1)
    for number, batch in enumerate(loader):
        found.append(batch)
        if number in (0, 3, 6):
            multiprocessing.active_children()[-1].kill()
    assert equal(found, whole)
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_read_that_fails_once_is_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    if workers and not FORKED:
        pytest.skip("planted by fork")
    table = read_table(folder)
    whole = list(loader_of(table, 0))

    def fail(path: Path) -> None:
        raise DecodeError(path, "the network disk is away")

    plant(monkeypatch, functools.partial(once, tmp_path / "mark", fail), "a_0.mp4")
    loader = loader_of(table, workers)
    assert equal(list(loader), whole) and (tmp_path / "mark").exists()
    loader.close()


def test_memory_that_is_not_enough_is_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise MemoryError

    plant(monkeypatch, fail, "a_0.mp4")
    failure = ClipDataset(read_table(folder), VIEW, 4)[0, 0]
    assert isinstance(failure, Failure) and "memory" in failure.reason


@forked
def test_a_bug_is_not_taken_for_a_bad_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError("a bug")

    plant(monkeypatch, fail, "a_0.mp4")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(loader_of(read_table(folder), 2))


@forked
def test_epochs_use_the_same_processes_and_leave_no_file_open(folder: Path) -> None:
    loader = loader_of(read_table(folder), 2)
    list(loader)
    children = {child.pid for child in multiprocessing.active_children()}
    files = len(os.listdir("/proc/self/fd"))
    for epoch in range(1, 30):
        loader.batches.set_epoch(epoch)  # type: ignore[attr-defined]
        assert sum(len(batch.indices) for batch in loader) == 10
    assert {child.pid for child in multiprocessing.active_children()} == children and len(children) == 2
    assert len(os.listdir("/proc/self/fd")) == files
    loader.close()
    assert multiprocessing.active_children() == []
    assert len(os.listdir("/proc/self/fd")) < files


@forked
def test_an_epoch_left_early_ends_its_processes_and_the_next_one_is_whole(folder: Path) -> None:
    loader = loader_of(read_table(folder), 2)
    for _ in range(3):
        for _ in loader:
            break
        assert multiprocessing.active_children() == []
    assert equal(list(loader), list(loader_of(read_table(folder), 0)))
    first, second = iter(loader), iter(loader)  # at once
    assert equal([next(first), next(second), *first], [next(iter(loader_of(read_table(folder), 0))), *list(loader)])
    list(second)
    third = iter(loader)
    next(third)
    loader.close()
    assert multiprocessing.active_children() == []
    with pytest.raises(RuntimeError, match="closed"):
        list(third)


@forked
@pytest.mark.parametrize("shared", [0, 4 * 3 * 32 * 32])
def test_clips_that_find_no_shared_memory_go_through_the_pipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shared: int
) -> None:
    table = read_table(folder)
    monkeypatch.setattr(loaders, "_MOST_SHARED", shared)  # none, one clip
    loader = loader_of(table, 2)
    assert equal(list(loader), list(loader_of(table, 0)))
    loader.close()


@pytest.mark.slow
def test_where_processes_are_started_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pools, loaders):
        monkeypatch.setattr(module, "FORKED", False)
    table = read_table(folder)
    loader = loader_of(table, 1)
    assert equal(list(loader), list(loader_of(table, 0)))
    loader.close()


class _Wide(ClipDataset):
    """Clips larger than was announced."""

    def __getitem__(self, key: tuple[int, int]) -> Sample | Failure:
        sample = super().__getitem__(key)
        assert isinstance(sample, Sample)
        clip = torch.cat([sample.clip, sample.clip], dim=3).contiguous(memory_format=torch.channels_last)
        return sample._replace(clip=clip)


@forked
def test_clips_larger_than_their_slot(folder: Path) -> None:
    table = read_table(folder)
    runs = []
    for workers in (0, 2):
        loader = make_loader(_Wide(table, VIEW, 4), EpochBatches(10, 3, False, 0), workers)
        runs.append(list(loader))
        loader.close()
    assert equal(*runs) and runs[0][0].clips.shape == (3, 4, 3, 32, 64)


# --- how many may fail


@pytest.mark.parametrize(
    ("max_failed", "clips", "allowed"),
    [
        ("10%", 1000, 100),
        ("1%", 1000, 10),
        ("0.5 %", 1000, 5),
        ("10%", 5, 2),  # two always may
        ("1%", 0, 2),
        ("0%", 1000, 0),
        ("0", 1000, 0),
        ("1", 1000, 1),
        ("20", 5, 20),
        ("100%", 1000, 1000),
    ],
)
def test_how_many_clips_may_fail(max_failed: str, clips: int, allowed: int) -> None:
    assert ReadConfig(max_failed=max_failed).allowed_failures(clips) == allowed
    assert ReadConfig(max_failed=max_failed, on_error="fail").allowed_failures(clips) == 0
    count = FailureCount("training", clips, ReadConfig(max_failed=max_failed))
    for index in [*range(allowed), *range(allowed)]:  # twice: a clip counts once
        count.note([Failure(index, f"{index}.mp4", "cut short")])
    with pytest.raises(TooManyFailuresError) as caught:
        count.note([Failure(allowed, "last.mp4", "cut short")])
    assert len(caught.value.failures) == allowed + 1
    assert f"{allowed + 1} of {clips} training clips could not be read" in str(caught.value)
    assert f"max_failed {max_failed} allows" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_failed", wrong) for wrong in ("", "-1", "101%", "ten", "1/2", "%", "1e3", "10%%")),
        ("decode_timeout", -1.0),
        ("decode_timeout", float("nan")),
        ("decode_timeout", float("inf")),
        ("on_error", "stop"),
        ("decode", "fast"),
        ("decoder", "opencv"),
    ],
)
def test_senseless_settings_name_themselves(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name} is"):
        ReadConfig(**{name: value})  # type: ignore[arg-type]


# --- evaluation, prediction, training


@pytest.fixture
def dirty(folder: Path, tmp_path: Path) -> tuple[Path, set[str]]:
    """The good clips, and one bad file of every kind; the names of the bad ones."""
    root = tmp_path / "dirty"
    shutil.copytree(folder, root)
    bad = root / "b"
    (bad / "empty.mp4").touch()
    (bad / "cut.mp4").write_bytes((folder / "a" / "a_0.mp4").read_bytes()[:700])
    (bad / "text.avi").write_text("not a video")
    write_sound(bad / "sound.mp4")
    (bad / "directory.mp4").mkdir()
    os.mkfifo(bad / "fifo.mkv")
    (bad / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    shutil.copy(folder / "a" / "a_0.mp4", bad / "right_but_misnamed.avi")  # readable: what is in it counts
    names = {"empty.mp4", "cut.mp4", "text.avi", "sound.mp4", "fifo.mkv", "gone.mp4"}
    rows = [f"a/a_{i}.mp4,a" for i in range(5)] + [f"b/b_{i}.mp4,b" for i in range(5)]
    rows += [f"b/{name},b" for name in sorted(names | {"directory.mp4", "right_but_misnamed.avi"})]
    (root / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    return root / "list.csv", names | {"directory.mp4"}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_bad_file_is_counted_and_named(
    checkpoint: Checkpoint, dirty: tuple[Path, set[str]], workers: int
) -> None:
    data, bad = dirty
    found = evaluate(checkpoint, data, split="all", workers=workers, batch_size=4, read=ReadConfig(max_failed="50%"))
    assert (found.header["expected"], found.header["scored"], found.header["failed"]) == (18, 11, 7)
    assert {Path(failure.path).name for failure in found.failures} == bad
    assert all(failure.reason for failure in found.failures)
    assert sum(row.clips for row in found.classes) == 11


@forked
def test_evaluation_survives_crashes_and_counts_them(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = evaluate(checkpoint, folder, workers=0)
    plant(monkeypatch, functools.partial(die, signal.SIGKILL), "a_3.mp4")
    found = evaluate(checkpoint, folder, workers=2, batch_size=3)
    assert (found.header["expected"], found.header["scored"], found.header["failed"]) == (10, 9, 1)
    assert found.failures[0].path.endswith("a_3.mp4") and "SIGKILL" in found.failures[0].reason
    assert found.clip_scores is not None and plain.clip_scores is not None
    scored = [i for i in range(10) if i != found.failures[0].index]
    assert torch.allclose(found.clip_scores.scores[scored], plain.clip_scores.scores[scored], atol=1e-5)
    assert found.clip_scores.scores[found.failures[0].index].isnan().all()


def test_evaluation_stops_beyond_the_ceiling_and_names_the_clips(
    checkpoint: Checkpoint, dirty: tuple[Path, set[str]], tmp_path: Path
) -> None:
    data, bad = dirty
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, checkpoint.model, labels=("a", "b"), view=VIEW, provenance={})
    with pytest.raises(TooManyFailuresError, match=r"3 of 18 evaluation clips could not be read, more than max_failed"):
        evaluate_command(path, str(data), out=tmp_path / "e", workers=0, batch_size=1)
    rows = list(csv.DictReader((tmp_path / "e" / "failed.csv").open()))
    assert len(rows) == 3 and {Path(row["path"]).name for row in rows} < bad and all(row["reason"] for row in rows)
    assert not (tmp_path / "e" / "evaluation.json").exists()
    with pytest.raises(TooManyFailuresError, match=r"/b/.*: .* \(on_error is fail"):
        evaluate_command(path, str(data), out=tmp_path / "f", workers=0, read=ReadConfig(on_error="fail"))
    assert (tmp_path / "f" / "failed.csv").exists()
    assert evaluate_command(path, str(data), out=tmp_path / "e", workers=0, read=ReadConfig(max_failed="7")) == 0
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["failed"] == 7
    assert len(list(csv.DictReader((tmp_path / "e" / "failed.csv").open()))) == 7


@forked
def test_prediction_goes_on_after_a_crash(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = sorted(folder.rglob("*.mp4"))[:4]
    plain = list(predict_many(checkpoint, videos, workers=0))
    plant(monkeypatch, functools.partial(die, signal.SIGSEGV), videos[1].name)
    found = list(predict_many(checkpoint, videos, workers=1))
    assert isinstance(found[1], DecodeError) and "SIGSEGV" in found[1].reason
    assert [found[i] for i in (0, 2, 3)] == [plain[i] for i in (0, 2, 3)]


def settings(data: Path, out: Path, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {"data": str(data), "out": str(out), "temporal": "tsn", "backbone": "resnet10t"}
    options |= {"pretrained": False, "num_frames": 2, "size": 32, "short_side": 32, "batch_size": 4, "epochs": 1}
    options |= {"precision": "32-true", "accelerator": "cpu", "workers": 2, "seed": 0}
    return TrainConfig(**(options | changes))


def failed(run: Path) -> dict[str, str]:
    return {Path(row["path"]).name: row["reason"] for row in csv.DictReader((run / "failed.csv").open())}


@forked
def test_training_goes_on_past_crashes_hangs_and_bad_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "a" / "a_1.mp4").write_bytes(b"not a video")

    def act(path: Path) -> None:
        if path.name == "a_2.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(600)

    plant(monkeypatch, act, "a_2.mp4", "b_3.mp4")
    result = train(settings(data, tmp_path / "run", decode_timeout=1.0, max_failed="3"), console=QUIET)
    named = failed(result.run)
    assert set(named) == {"a_1.mp4", "a_2.mp4", "b_3.mp4"}
    assert "SIGSEGV" in named["a_2.mp4"] and "no answer within 1 s" in named["b_3.mp4"]
    assert load_checkpoint(result.last).provenance["failed_clips"] == 3


@forked
def test_training_with_crashes_that_pass_gives_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(settings(folder, tmp_path / "whole", workers=0), console=QUIET)
    crash = functools.partial(once, tmp_path / "mark", functools.partial(die, signal.SIGKILL))
    plant(monkeypatch, crash, "a_2.mp4")
    again = train(settings(folder, tmp_path / "again"), console=QUIET)
    assert (tmp_path / "mark").exists()
    first, second = (load_checkpoint(run.last).model.state_dict() for run in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (again.run / "failed.csv").exists()


@pytest.mark.parametrize("changes", [{"on_error": "fail"}, {"max_failed": "0"}])
def test_training_stops_where_no_clip_may_fail_and_the_folder_is_free_again(
    folder: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    bad = data / "a" / "a_0.mp4"
    content = bad.read_bytes()
    bad.write_bytes(b"not a video")
    # One batch holds all: the run ends before its first step.
    config = settings(data, tmp_path / "run", workers=0, batch_size=16, seed=_seed_with_training_clip(data), **changes)
    with pytest.raises(TooManyFailuresError, match=r"a_0\.mp4: not a video"):
        train(config, console=QUIET)
    assert set(failed(tmp_path / "run")) == {"a_0.mp4"}
    bad.write_bytes(content)
    assert train(config, console=QUIET).epochs == 1


def _seed_with_training_clip(data: Path) -> int:
    """A seed whose split has the first clip in its training part."""
    table = read_table(data)
    first = table.record(0).path
    return next(s for s in range(50) if first in list(split_table(table, val_fraction=0.2, seed=s).train.paths))


def test_what_was_trained_before_the_ceiling_is_saved(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    config = settings(data, tmp_path / "run", workers=0, batch_size=1, max_failed="1")
    order = list(EpochBatches(8, 1, shuffle=True, seed=0))
    training = split_table(read_table(data), val_fraction=0.2, seed=0).train
    originals = {}
    for position in (3, 5):
        path = Path(training.record(order[position][0][1]).path)
        originals[path] = path.read_bytes()
        path.write_bytes(b"not a video")
    told = io.StringIO()
    with pytest.raises(TooManyFailuresError, match="2 of 8 training clips"):
        train(config, console=Console(file=told, width=1000))
    settings_file = tmp_path / "run" / "config.yaml"
    assert (
        "With these clips mended, or with a higher --max-failed, e.g. 50%, go on with: "
        f"vireo train --config {settings_file} --resume\n"
    ) in told.getvalue()
    assert set(failed(tmp_path / "run")) == {path.name for path in originals}
    for path, content in originals.items():
        path.write_bytes(content)
    # It goes on with the batch that it stopped at, under another ceiling if asked.
    changed = TrainConfig(**{**vars(config), "resume": True, "max_failed": "50%", "on_error": "skip"})
    result = train(changed, console=QUIET)
    assert result.epochs == 1
    assert set(failed(result.run)) == {path.name for path in originals}  # nothing is forgotten


def test_a_frame_count_that_is_wrong_is_the_clips_own_fault(tmp_path: Path) -> None:
    """A folder of images and its cut."""
    for i in range(4):
        (tmp_path / "clip").mkdir(exist_ok=True)
        write_jpeg(torch.full((3, 40, 40), 60 * i, dtype=torch.uint8), str(tmp_path / "clip" / f"{i + 1:05d}.jpg"))

    def table(**columns: Any) -> ClipTable:
        plain = {"starts": np.full(1, np.nan), "ends": np.full(1, np.nan)}
        return ClipTable(
            paths=StringColumn([str(tmp_path / "clip")]),
            labels=np.zeros(1, dtype=np.int64),
            label_names=("a",),
            **(plain | columns),
        )

    sample = ClipDataset(table(), VIEW, 4)[0, 0]
    assert isinstance(sample, Sample)
    assert [round(float(frame.float().mean()) / 60) for frame in sample.clip] == [0, 1, 2, 3]
    cut = ClipDataset(table(starts=np.zeros(1)), VIEW, 4)[0, 0]
    assert isinstance(cut, Failure) and "has no times" in cut.reason
    nine = ClipDataset(table(frame_counts=np.array([9])), VIEW, 4)[0, 0]
    assert isinstance(nine, Failure) and "9 frames announced, 4 images there" in nine.reason


def test_keyframes_say_how_far_they_lie_from_the_frames_wanted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for label in "ab":
        write_video(tmp_path / "long" / label / "v.mp4", 40, options={"g": "10", "bf": "0", "sc_threshold": "0"})
    table = read_table(tmp_path / "long")
    dataset = ClipDataset(table, VIEW, 4, decode="keyframe")
    sample = dataset[0, 0]
    assert isinstance(sample, Sample) and sample.moved == pytest.approx(np.mean([5, 5, 5, 5]))  # 5, 15, 25, 35
    assert isinstance(exact := ClipDataset(table, VIEW, 4)[0, 0], Sample) and exact.moved == 0
    loader = make_loader(dataset, EpochBatches(2, 2, shuffle=False, seed=0), 1)
    assert [batch.moved for batch in loader] == [5.0]
    loader.close()
    found = evaluate(checkpoint, table, workers=0, read=ReadConfig(decode="keyframe"))
    assert found.header["frames_moved"] == 0  # two frames: 10 and 30 are keyframes
    assert (
        "keyframes" in found.header["decoder"] and "exact" in evaluate(checkpoint, table, workers=0).header["decoder"]
    )
