"""Nothing is lost: a run that is killed at any moment and resumed ends as if it had never stopped, bit for bit."""

from __future__ import annotations

import importlib
import os
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.resume_tools import EVENTS, Moment, finish, small_run, start
from vireo.checkpoint import read_tensors
from vireo.config import TrainConfig
from vireo.data.order import OrderConfig, make_order
from vireo.errors import StorageError, TrainingError, UsageError
from vireo.model import Outputs
from vireo.runs import keep_newest, read_metrics
from vireo.train import train

QUIET = Console(quiet=True)
training = importlib.import_module("vireo.train")
STEPS = 3  # of an epoch


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of two classes, 16 of them for training."""
    return make_order(tmp_path_factory.mktemp("order"), OrderConfig(clips=24, size=32, pairs=("push",)), workers=0)


def config(clips: Path, out: Path, **changes: Any) -> TrainConfig:
    """Three epochs of three steps, the third with four clips, and all that is random."""
    settings: dict[str, Any] = {"epochs": 3, "workers": 2, "optimizer": "sgd", "lr": 0.02, "ema_decay": 0.9}
    settings |= {"dropout": 0.5, "mixup": 0.4, "cutmix": 1.0, "color_jitter": 0.3, "random_erasing": 0.3}
    settings |= {"temporal_jitter": 0.2, "rand_augment": 5, "save_every": 1}
    return small_run(clips, out, **settings | changes)


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, and that saved nothing within its epochs."""
    out = tmp_path_factory.mktemp("whole")
    assert finish(start(config(clips, out / "run", save_every=0), out / "told")) == 0
    return out / "run"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return read_tensors(path)[0]


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, averages, optimizer, best weights and the log's figures are equal, to the last bit."""
    for name in ("resume.safetensors", "last.safetensors", "best.safetensors"):
        one, other = tensors(a / name), tensors(b / name)
        assert one.keys() == other.keys()
        assert [k for k in one if not torch.equal(one[k], other[k])] == []
    rows, others = read_metrics(a), read_metrics(b)
    for row in (*rows, *others):
        del row["seconds"], row["data_wait"]  # the clock
    assert rows == others
    assert [read_tensors(p / "best.safetensors")[1]["provenance"]["val_top1"] for p in (a, b)] == [
        max(row["top1"] for row in rows)
    ] * 2


def place_of(run: Path) -> int:
    """Steps after which the state of a run was saved; 0 before that."""
    if not (run / "resume.safetensors").exists():
        return 0
    place = read_tensors(run / "resume.safetensors")[1]["place"]
    return int(place["epoch"]) * STEPS + int(place["batch"])


def train_through(settings: TrainConfig, told: Path, kills: list[Moment]) -> list[int]:
    """Train with kills; the steps that were saved at each of them."""
    run, places = Path(settings.out), []
    for kill in [*kills, None]:
        settings = replace(settings, resume=(run / "resume.safetensors").exists())
        code = finish(start(settings, told, kill=kill))
        assert code == (-signal.SIGKILL if kill else 0), told.read_text()
        places.append(place_of(run))
    return places


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_three_kills_change_no_bit(clips: Path, whole: Path, tmp_path: Path, optimizer: str) -> None:
    settings = config(clips, tmp_path / "run", optimizer=optimizer)
    if optimizer == "adamw":  # in parts, and without saving at every step
        settings = replace(settings, save_every=2, workers=0, lr=1e-3)
        assert finish(start(replace(settings, out=str(tmp_path / "whole")), tmp_path / "told")) == 0
        whole = tmp_path / "whole"
        places = train_through(settings, tmp_path / "told", [("step", 2), ("loss", 3), ("step", 5)])
        assert places == [0, 2, 6, 9]
    else:
        kills = [("loss", 3), ("half written", 4), ("renamed", 4)]
        places = train_through(settings, tmp_path / "told", kills)
        assert sorted(places) == places and places[-1] == 9 and places[0] == 2
    assert_same_run(whole, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))  # nothing half written is left


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(clips: Path, whole: Path, tmp_path: Path) -> None:
    rng, run, told, kills = random.Random(0), tmp_path / "run", tmp_path / "told", 0
    settings, moments = config(clips, run), set()
    while kills < 20:  # several runs: each may be killed until it is done
        kill = rng.choice(EVENTS), rng.randint(1, 8)
        process = start(
            replace(settings, resume=(run / "resume.safetensors").exists()), told, kill=None if kills % 4 == 3 else kill
        )
        if kills % 4 == 3:  # any moment, this time, from the start of the process on
            time.sleep(rng.uniform(0.1, 2.5))
            process.kill()
        code = finish(process)
        assert code in (0, -signal.SIGKILL), told.read_text()
        kills += code != 0
        moments.add(place_of(run))
        if code == 0:
            assert_same_run(whole, run)
            run = tmp_path / f"run{kills}"
            settings = replace(settings, out=str(run))
    assert finish(start(replace(settings, resume=(run / "resume.safetensors").exists()), told)) == 0
    assert_same_run(whole, run)
    assert len(moments) > 4  # not always the same one


def test_a_run_killed_before_its_first_save_starts_anew(clips: Path, tmp_path: Path) -> None:
    settings = config(clips, tmp_path / "run", epochs=1, workers=0)
    for kill in (("half written", 1), ("renamed", 1), ("step", 1), ("half written", 2)):
        assert finish(start(settings, tmp_path / "told", kill=kill)) == -signal.SIGKILL
        with pytest.raises(UsageError, match="to go on from"):
            train(replace(settings, resume=True), console=QUIET)
    assert finish(start(settings, tmp_path / "told")) == 0, (tmp_path / "told").read_text()


def test_the_last_weights_are_written_if_a_kill_kept_them_from_it(clips: Path, whole: Path, tmp_path: Path) -> None:
    settings = config(clips, tmp_path / "run", save_every=0)
    # config.yaml, then best (if better), state and last of each epoch: the state is the last but one of the writes
    writes = len([r for r in range(3) if is_better(whole, r)]) + 1 + 2 * 3
    assert finish(start(settings, tmp_path / "told", kill=("written", writes))) == -signal.SIGKILL
    assert place_of(tmp_path / "run") == 9
    assert finish(start(replace(settings, resume=True), tmp_path / "told")) == 0
    assert_same_run(whole, tmp_path / "run")


def is_better(run: Path, epoch: int) -> bool:
    top1 = [row["top1"] for row in read_metrics(run)]
    return top1[epoch] > max([-1.0, *top1[:epoch]])


def test_a_full_disk_within_an_epoch_leaves_what_was_saved(
    clips: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, sync, writes = config(clips, tmp_path / "run", workers=0), os.fsync, 0

    def full(handle: int) -> None:
        nonlocal writes
        writes += 1
        if writes > 8:  # of files and folders: in the second save
            raise OSError(28, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr("vireo.checkpoint.os.fsync", full)
        with pytest.raises(StorageError, match=r"No space left on device.*intact"):
            train(settings, console=QUIET)
    saved = place_of(tmp_path / "run")
    assert saved % STEPS  # in the middle of an epoch
    assert not list((tmp_path / "run").glob(".*"))
    assert finish(start(replace(settings, resume=True), tmp_path / "told")) == 0
    assert place_of(tmp_path / "run") == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_in_the_middle_of_an_epoch(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    step, done = training.Session.step, 0

    def signalled(*args: object) -> None:
        nonlocal done
        step(*args)
        done += 1
        if done == 4:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(training.Session, "step", signalled)
    result = train(config(clips, tmp_path / "run", save_every=50, workers=0), console=QUIET)
    assert result.interrupted and place_of(tmp_path / "run") == 4
    assert read_tensors(result.last)[1]["provenance"]["steps"] == 4
    assert "val_top1" not in read_tensors(result.last)[1]["provenance"]  # those weights were not validated


def test_the_newest_checkpoints_and_the_best_are_kept(clips: Path, tmp_path: Path) -> None:
    settings = config(clips, tmp_path / "run", epochs=2, save_every=2, keep_last=2, workers=0)
    result = train(settings, console=QUIET)
    kept = sorted(path.name for path in result.run.glob("*.safetensors"))
    newest = ["step-00000004.safetensors", "step-00000006.safetensors"]
    assert kept == ["best.safetensors", "last.safetensors", "resume.safetensors", *newest]
    assert read_tensors(result.run / newest[0])[1]["provenance"]["steps"] == 4
    assert (result.run / newest[1]).read_bytes() == result.last.read_bytes()
    assert os.path.samefile(result.run / newest[1], result.last)  # no second copy on the disk


def test_where_there_are_no_hard_links_checkpoints_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("vireo.runs.os.link", refuse)
    for steps in (2, 4, 6):
        (tmp_path / "last.safetensors").write_bytes(bytes([steps]))
        keep_newest(tmp_path, steps, 2)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("step*")} == {
        "step-00000004.safetensors": b"\4",
        "step-00000006.safetensors": b"\6",
    }


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:  # root may write anywhere but where nothing can be
        folder = Path("/proc/run")
    else:
        folder = tmp_path / "locked" / "run"
        folder.parent.mkdir(mode=0o500)
    with pytest.raises(StorageError, match=f"{folder}: could not be written"):
        train(config(clips, folder), console=QUIET)


def test_a_clock_that_jumps_changes_nothing(
    clips: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, rng = time.time, random.Random(1)
    monkeypatch.setattr(time, "time", lambda: real() + rng.choice([-1e9, 1e9, 0.0]))
    settings = config(clips, tmp_path / "run", workers=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(settings, console=QUIET)
    finally:
        torch.set_num_threads(threads)
    assert_same_run(whole, tmp_path / "run")


def test_another_number_of_threads_or_processes_is_said(clips: Path, tmp_path: Path) -> None:
    from vireo.runs import read_state

    settings = config(clips, tmp_path / "run", epochs=1, workers=0)
    run = train(settings, console=QUIET).run
    _, meta = read_tensors(run / "resume.safetensors")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        state = read_state(run / "resume.safetensors", settings, meta["data_hash"], processes=3)
    finally:
        torch.set_num_threads(threads)
    assert f"the number of threads was {threads} when the run began and is {threads + 1} now" in state.warnings[0]
    assert "the number of processes was 1 when the run began and is 3 now" in state.warnings[1]


def test_in_parts_a_step_is_the_same(clips: Path, tmp_path: Path) -> None:
    plain = {"epochs": 2, "workers": 0, "dropout": 0.0, "backbone": "test_convnext", "save_every": 0, "ema_decay": 0.0}
    runs = [
        train(config(clips, tmp_path / str(n), accumulate=n, **plain), console=QUIET)  # type: ignore[arg-type]
        for n in (1, 2, 4)
    ]
    one, *parts = (tensors(run.last) for run in runs)
    start_ = tensors(train(config(clips, tmp_path / "0", lr=1e-12, **plain), console=QUIET).last)  # type: ignore[arg-type]
    moved = max(float((one[k] - start_[k]).abs().max()) for k in one)
    for other in parts:
        assert max(float((one[k] - other[k]).abs().max()) for k in one) < 1e-4 * moved
    rows = [read_metrics(run.run)[-1] for run in runs]
    assert [row["loss"] for row in rows] == pytest.approx([rows[0]["loss"]] * 3, rel=1e-4)


def test_a_run_that_gets_no_better_ends(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tops = iter([0.5, 0.75, 0.5, 0.75, 1.0])
    measure = training.measure
    monkeypatch.setattr(training, "measure", lambda *args: replace(measure(*args), top1=next(tops)))
    settings = config(clips, tmp_path / "run", epochs=9, patience=2, workers=0, save_every=0)
    result = train(settings, console=QUIET)
    assert (result.epochs, result.top1, result.interrupted) == (4, 0.75, False)
    assert train(replace(settings, resume=True), console=QUIET).epochs == 4  # and stays where it is


@pytest.mark.parametrize(
    ("fits", "told"),
    [
        (3, r"too small for 6 clips at once; 3 fit: --accumulate 2 computes .*, --batch-size 3 takes"),
        (2, r"6 clips at once; 1 fits: --accumulate 6 computes .*, --batch-size 1 takes"),
        (0, r"6 clips at once, and even for one; use a smaller --size"),
    ],
)
def test_too_little_memory_says_what_fits(
    fits: int, told: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training.total_loss

    def narrow(outputs: Outputs, labels: Tensor, *rest: Any) -> Tensor:
        if len(outputs.logits) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(outputs, labels, *rest)

    monkeypatch.setattr(training, "total_loss", narrow)
    with pytest.raises(TrainingError, match=told):
        train(config(clips, tmp_path / "run", batch_size=6, workers=0), console=QUIET)
    # What is proposed works.
    if fits:
        parts = int(re.findall(r"--accumulate (\d)", told)[0])
        run = train(
            config(clips, tmp_path / "parts", batch_size=6, accumulate=parts, epochs=1, workers=0), console=QUIET
        )
        assert run.epochs == 1


def test_a_processors_memory_counts_too() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert training.is_out_of_memory(caught.value)
    assert not training.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.slow
def test_compiled_training_is_the_same_but_for_rounding(clips: Path, tmp_path: Path) -> None:
    plain = {"epochs": 1, "workers": 0, "dropout": 0.0, "ema_decay": 0.0}
    eager = train(config(clips, tmp_path / "eager", **plain), console=QUIET)  # type: ignore[arg-type]
    compiled = train(config(clips, tmp_path / "compiled", compile=True, **plain), console=QUIET)  # type: ignore[arg-type]
    one, other = tensors(eager.last), tensors(compiled.last)
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[k].float(), other[k].float(), atol=1e-3, rtol=1e-2) for k in one)


def test_mixed_precision_computes_in_bf16(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    loss = training.total_loss

    def look(outputs: object, *rest: object) -> torch.Tensor:
        seen.add(torch.is_autocast_enabled("cpu"))
        seen.add(outputs.features.dtype)  # type: ignore[attr-defined]
        return loss(outputs, *rest)

    monkeypatch.setattr(training, "total_loss", look)
    train(config(clips, tmp_path / "run", epochs=1, workers=0, precision="bf16-mixed"), console=QUIET)
    assert torch.bfloat16 in seen
