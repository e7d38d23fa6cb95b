"""Training: what a run leaves, that nothing is lost, and that resuming is exact."""

from __future__ import annotations

import csv
import errno
import importlib
import io
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

import vireo.checkpoint
from tests.resume_tools import small_run, stop_after
from vireo import cli
from vireo.checkpoint import load_checkpoint, read_tensors
from vireo.config import Settings, TrainConfig, from_dict
from vireo.data.order import OrderConfig, make_order
from vireo.errors import DataError, StorageError, TrainingError, UsageError
from vireo.model import create_model
from vireo.optim import batch_norms, freeze_norms, lr_factor, make_optimizer, train_mode
from vireo.runs import read_metrics
from vireo.train import TrainResult, train

QUIET = Console(quiet=True)
training = importlib.import_module("vireo.train")  # `vireo.train` itself is the public function


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 real clips of two classes, with train, val and test parts."""
    out = tmp_path_factory.mktemp("order")
    return make_order(out, OrderConfig(clips=24, size=32, pairs=("push",)), workers=0)


def config(clips: Path, out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"backbone": "resnet10t", "batch_size": 4, "optimizer": "sgd", "lr": 0.02}
    settings |= {"warmup_epochs": 1.0, "color_jitter": 0.2}
    return small_run(clips, out, **settings | changes)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_a_folder_that_explains_itself(clips: Path, tmp_path: Path) -> None:
    settings = config(clips, tmp_path / "run")
    result = train(settings, console=QUIET)
    assert (result.epochs, result.interrupted) == (2, False)
    loaded = load_checkpoint(result.best)
    assert loaded.labels == ("push left to right", "push right to left")
    assert loaded.provenance["config"]["seed"] == 0 and loaded.provenance["failed_clips"] == 0
    assert not loaded.model.training
    rows = read_metrics(result.run)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert max(row["top1"] for row in rows) == result.top1
    assert from_dict(TrainConfig, yaml.safe_load((result.run / "config.yaml").read_text())) == settings
    parts = [row["split"] for row in csv.DictReader((result.run / "clips.csv").open())]
    assert len(parts) == 24 and set(parts) == {"train", "val", "test"}
    assert list((result.run / "tensorboard").glob("events*"))
    assert not (result.run / "failed.csv").exists()
    assert not list(result.run.glob("*.tmp*"))


def test_same_seed_same_weights_other_seed_other_weights(clips: Path, tmp_path: Path) -> None:
    runs = [
        train(config(clips, tmp_path / str(i), epochs=1, seed=seed, workers=workers), console=QUIET)
        for i, (seed, workers) in enumerate([(0, 0), (0, 2), (1, 0)])
    ]
    first, workers, other = (weights(run.last) for run in runs)
    assert same(first, workers)  # the number of workers plays no part
    assert not same(first, other)


@pytest.fixture(scope="module", params=[{}, {"optimizer": "adamw", "ema_decay": 0.9, "workers": 2, "lr": 1e-3}])
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> TrainResult:
    """A run that nothing stops."""
    return train(config(clips, tmp_path_factory.mktemp("whole") / "run", **request.param), console=QUIET)


@pytest.mark.parametrize("steps", [1, 3, 5])  # an epoch has four steps
def test_resume_is_exact(whole: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    settings = from_dict(TrainConfig, yaml.safe_load((whole.run / "config.yaml").read_text(encoding="utf-8")))
    part = replace(settings, out=str(tmp_path / "part"))
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        stopped = train(part, console=QUIET)
    assert stopped.interrupted and stopped.epochs == steps // 4
    assert stopped.last.exists()
    torch.manual_seed(123)  # whatever the process drew since
    resumed = train(replace(part, resume=True), console=QUIET)
    assert same(weights(whole.last), weights(resumed.last))
    assert same(weights(whole.best), weights(resumed.best))
    assert [r["loss"] for r in read_metrics(whole.run)] == [r["loss"] for r in read_metrics(resumed.run)]


def test_sigterm_saves_too(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 2, signal.SIGTERM)
    result = train(config(clips, tmp_path / "run"), console=QUIET)
    assert result.interrupted
    _, meta = read_tensors(tmp_path / "run" / "resume.safetensors")
    assert (meta["place"]["epoch"], meta["place"]["batch"]) == (0, 2)


def test_ctrl_c_in_a_terminal_saves_says_how_to_resume_and_shows_no_traceback(clips: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "vireo", "train", "--data", str(clips), "--out", str(run)]
    command += ["--temporal", "tsm", "--backbone", "resnet10t", "--pretrained", "false", "--num-frames", "4"]
    command += ["--size", "32", "--batch-size", "4", "--epochs", "500", "--workers", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 90
        while not (run / "last.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # the whole group, decoding workers too, as a terminal does
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "--resume" in out and "Stopped in epoch" in out
    assert "Traceback" not in out + err
    assert process.returncode == 130
    assert load_checkpoint(run / "last.safetensors").labels


@pytest.mark.parametrize("temporal", ["mstsm_tfdem", "tsm"])
def test_a_run_that_starts_from_a_checkpoints_network(
    temporal: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(config(clips, tmp_path / "first", epochs=1, temporal=temporal, size=48), console=QUIET)
    small = tmp_path / "small.safetensors"
    assert cli.main(["prune", str(first.last), "--out", str(small), "--json"]) == 0
    start = load_checkpoint(small)
    assert start.model.config.pruned

    defaults = TrainConfig(data=str(clips), out="")
    settings = config(clips, tmp_path / "whole", epochs=2, init=str(small))
    network = ("temporal", "backbone", "num_frames", "temporal_options", "backbone_options", "size", "short_side")
    settings = replace(settings, **{name: getattr(defaults, name) for name in network})
    whole = train(settings, console=QUIET)
    trained = load_checkpoint(whole.last)
    assert trained.model.config.pruned == start.model.config.pruned and trained.view.size == 48
    assert [p.shape for p in trained.model.parameters()] == [p.shape for p in start.model.parameters()]
    assert len((whole.run / "config.yaml").read_text().splitlines()) < 120  # without the lists of channels

    part = replace(settings, out=str(tmp_path / "part"))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert train(part, console=QUIET).interrupted
    small.unlink()  # the run knows its network
    again = ["train", "--config", str(tmp_path / "part" / "config.yaml"), "--resume"]
    assert cli.main(again) == 0
    assert same(weights(whole.last), weights(tmp_path / "part" / "last.safetensors"))


def test_a_checkpoints_network_and_other_settings_of_the_network(clips: Path, tmp_path: Path) -> None:
    first = train(config(clips, tmp_path / "first", epochs=1), console=QUIET)
    with pytest.raises(UsageError, match=r"temporal is 'stw', but the network of .*last.safetensors has"):
        train(config(clips, tmp_path / "x", init=str(first.last), temporal="stw"), console=QUIET)


def test_resume_refuses_other_settings_and_other_clips(clips: Path, tmp_path: Path) -> None:
    first = config(clips, tmp_path / "run", epochs=1)
    train(first, console=QUIET)
    with pytest.raises(UsageError, match="holds a run already"):
        train(first, console=QUIET)
    with pytest.raises(UsageError, match=r"lr \(was 0.02, now 0.5\)"):
        train(replace(first, resume=True, lr=0.5), console=QUIET)
    fewer = clips.with_name("fewer.csv")
    lines = clips.read_text().splitlines()
    fewer.write_text("\n".join(line for line in lines if "push-00000" not in line) + "\n")
    with pytest.raises(UsageError, match="not the one this run began with"):
        train(replace(first, resume=True, data=str(fewer)), console=QUIET)
    with pytest.raises(UsageError, match="to go on from"):
        train(config(clips, tmp_path / "nothing", resume=True), console=QUIET)


def test_clips_that_cannot_be_read_are_counted_and_named(clips: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(clips.parent, data)
    rows = list(csv.DictReader((data / "order.csv").open()))
    broken = [next(data / r["path"] for r in rows if r["split"] == part) for part in ("train", "val")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    result = train(config(data / "order.csv", tmp_path / "run", epochs=1), console=QUIET)
    named = list(csv.DictReader((result.run / "failed.csv").open()))
    assert {Path(row["path"]).resolve() for row in named} == {p.resolve() for p in broken}
    assert all(row["reason"] for row in named)
    assert load_checkpoint(result.last).provenance["failed_clips"] == 2


def test_no_readable_clip_ends_with_the_reason(clips: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(clips.parent, data)
    for path in data.rglob("*.mp4"):
        path.write_bytes(b"nothing")
    beyond = r"3 of \d+ training clips could not be read, more than max_failed 10% .*the first: .*\.mp4: "
    with pytest.raises(DataError, match=beyond):
        train(config(data / "order.csv", tmp_path / "run", batch_size=3), console=QUIET)
    with pytest.raises(TrainingError, match=r"No training clip could be read; the first: .*\.mp4: "):
        train(config(data / "order.csv", tmp_path / "run", max_failed="100%"), console=QUIET)
    assert len(list(csv.DictReader((tmp_path / "run" / "failed.csv").open()))) > 3


def test_a_loss_that_is_not_finite_names_the_clips(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "cross_entropy", lambda *_, **__: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(TrainingError, match=r"The loss is nan for the clips .*\.mp4"):
        train(config(clips, tmp_path / "run"), console=QUIET)


def test_a_decoder_process_that_dies_is_replaced_and_changes_nothing(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, step, steps = config(clips, tmp_path / "run", workers=1, epochs=3), training.Session.step, 0

    def kill_a_worker(*args: Any) -> None:
        nonlocal steps
        step(*args)
        steps += 1
        if steps == 6:
            for child in multiprocessing.active_children():
                child.kill()
            time.sleep(0.2)

    with monkeypatch.context() as patch:
        patch.setattr(training.Session, "step", kill_a_worker)
        result = train(settings, console=QUIET)
    assert steps == 12 and not (result.run / "failed.csv").exists()
    assert same(weights(result.last), weights(train(config(clips, tmp_path / "whole", epochs=3), console=QUIET).last))


def test_a_full_disk_leaves_the_last_good_checkpoint(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, full, replace_file = config(clips, tmp_path / "run"), False, os.replace

    def full_after_first_epoch(source: str, target: str | Path) -> None:
        nonlocal full
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(source, target)
        full = Path(target).name == "last.safetensors"  # the last thing that is written of an epoch

    with monkeypatch.context() as patch:
        patch.setattr(vireo.checkpoint.os, "replace", full_after_first_epoch)
        with pytest.raises(StorageError, match="No space left on device"):
            train(settings, console=QUIET)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").provenance["epochs"] == 1
    resumed = train(replace(settings, resume=True), console=QUIET)
    whole = train(config(clips, tmp_path / "whole"), console=QUIET)
    assert same(weights(resumed.last), weights(whole.last))


def test_in_another_thread_training_leaves_signals_alone(clips: Path, tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train(config(clips, tmp_path / "run", epochs=1), console=QUIET))
    )
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert results[0].epochs == 1 and signal.getsignal(signal.SIGINT) is before


def test_parameter_groups_are_those_of_tsn() -> None:
    model = create_model("tei", "resnet18", num_classes=5, num_frames=4)
    optimizer = make_optimizer(model, Settings(lr=0.1, weight_decay=0.01, head_lr_scale=5))
    found = {id(p): (g["lr"] / 0.1, g["weight_decay"] / 0.01) for g in optimizer.param_groups for p in g["params"]}
    assert len(found) == sum(1 for _ in model.parameters())  # each in exactly one group

    def of(parameter: nn.Parameter) -> tuple[float, float]:
        lr, decay = found[id(parameter)]
        return round(lr, 6), round(decay, 6)

    block = model.backbone.layer1[0]
    assert of(block.conv1.weight) == (1, 1)
    assert of(block.bn1.weight) == (1, 0) and of(block.bn1.bias) == (1, 0)
    mem, tim = block.conv1.temporal
    assert of(mem.conv1.weight) == (1, 1) and of(mem.conv1.bias) == (2, 0)
    assert of(tim.weight) == (1, 1)
    assert of(model.classifier.weight) == (5, 1) and of(model.classifier.bias) == (10, 0)


def test_schedules_at_their_corners(clips: Path) -> None:
    cosine = config(clips, Path("x"), epochs=10, warmup_epochs=1.0)
    assert lr_factor(0, cosine) == pytest.approx(0.1)
    assert lr_factor(0.5, cosine) == pytest.approx(0.55)
    assert lr_factor(1, cosine) == pytest.approx(1)
    assert lr_factor(5.5, cosine) == pytest.approx(0.5)
    assert lr_factor(10, cosine) == pytest.approx(0)
    steps = config(clips, Path("x"), epochs=50, warmup_epochs=0.0, schedule="steps")
    at = [lr_factor(epoch, steps) for epoch in (0, 29.9, 30, 39.9, 40, 44.9, 45, 49.9)]
    assert at == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_partial_batch_norm_freezes_all_but_the_first() -> None:
    model = create_model("tsm+tfdem", "resnet10t", num_classes=3, num_frames=2)
    freeze_norms(model, "partial")
    train_mode(model, freeze_norms="partial")
    first, *rest = batch_norms(model)
    assert first.training and first.weight.requires_grad
    assert not any(norm.training or norm.weight.requires_grad or norm.bias.requires_grad for norm in rest)
    fresh = model.branches["tfdem"].norm1  # it has no statistics to keep
    assert fresh.training and fresh.weight.requires_grad and fresh not in rest
    before = [norm.running_mean.clone() for norm in rest]
    model(torch.rand(2, 2, 3, 32, 32))
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(rest, before, strict=True))


@pytest.mark.parametrize(
    ("flip", "told"), [("auto", "'push left to right' ↔ 'push right to left'"), ("off", "horizontal flip is off")]
)
def test_flips_follow_the_labels_and_say_so(clips: Path, tmp_path: Path, flip: str, told: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    train(config(clips, tmp_path / "run", epochs=1, flip=flip), console=console)
    assert told in console.file.getvalue()  # type: ignore[attr-defined]


def test_float16_on_a_processor_is_refused(clips: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="needs a GPU"):
        train(config(clips, tmp_path / "run", precision="16-mixed"), console=QUIET)
    with pytest.raises(UsageError, match="accelerator 'tpu"):
        train(config(clips, tmp_path / "run2", accelerator="tpux"), console=QUIET)


def test_a_folder_with_other_files_is_refused_and_left_alone(clips: Path, tmp_path: Path) -> None:
    mine = tmp_path / "clips.csv"
    mine.write_text("my own list")
    with pytest.raises(UsageError, match=r"not empty \(clips\.csv"):
        train(config(clips, tmp_path), console=QUIET)
    assert mine.read_text() == "my own list" and len(list(tmp_path.iterdir())) == 1


def test_unreadable_validation_clips_do_not_cost_the_epoch(clips: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(clips.parent, data)
    originals = {}
    for row in csv.DictReader((data / "order.csv").open()):
        if row["split"] == "val":
            originals[data / row["path"]] = (data / row["path"]).read_bytes()
            (data / row["path"]).write_bytes(b"nothing")
    settings = config(data / "order.csv", tmp_path / "run", epochs=1)
    with pytest.raises(DataError, match=r"No validation clip could be read; the first: .*\.mp4: "):
        train(settings, console=QUIET)
    assert len(list(csv.DictReader((tmp_path / "run" / "failed.csv").open()))) == len(originals)
    for path, content in originals.items():
        path.write_bytes(content)
    resumed = train(replace(settings, resume=True), console=QUIET)  # goes straight to the validation
    whole = train(config(clips, tmp_path / "whole", epochs=1), console=QUIET)
    assert same(weights(resumed.best), weights(whole.best))


def test_resuming_needs_no_pretrained_weights_and_keeps_their_mean(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start.safetensors"
    backbone = create_model("tsn", "resnet10t", num_classes=2, num_frames=4).backbone
    save_file(
        {k: v.contiguous() for k, v in backbone.state_dict().items()},
        start,
        metadata={"mean": "[0.4, 0.4, 0.4]", "std": "[0.3, 0.3, 0.3]"},
    )
    settings = config(clips, tmp_path / "run", pretrained=str(start))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        train(settings, console=QUIET)
    whole = train(replace(settings, out=str(tmp_path / "whole")), console=QUIET)
    start.unlink()
    resumed = train(replace(settings, resume=True, pretrained=False), console=QUIET)
    assert load_checkpoint(resumed.last).model.mean == pytest.approx((0.4, 0.4, 0.4))
    assert same(weights(resumed.last), weights(whole.last))


def test_gradients_that_are_not_finite_name_the_clips(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Explodes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return grad * math.inf

    loss = training.cross_entropy
    monkeypatch.setattr(training, "cross_entropy", lambda *a, **k: Explodes.apply(loss(*a, **k)))
    with pytest.raises(TrainingError, match=r"The gradients are (nan|inf) for the clips .*\.mp4"):
        train(config(clips, tmp_path / "run"), console=QUIET)


def test_two_unreadable_cuts_of_one_file_are_two(clips: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(clips.open()))
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    with (tmp_path / "cuts.csv").open("w") as file:
        file.write("path,label,split,start,end\n")
        for row in rows[:16]:
            file.write(f"{clips.parent / row['path']},{row['label']},{'val' if row['split'] == 'val' else 'train'},,\n")
        file.write(f"{bad},{rows[0]['label']},train,0,1\n{bad},{rows[0]['label']},train,1,2\n")
    result = train(config(tmp_path / "cuts.csv", tmp_path / "run", epochs=1), console=QUIET)
    assert load_checkpoint(result.last).provenance["failed_clips"] == 2
    assert len(list(csv.DictReader((result.run / "failed.csv").open()))) == 2
