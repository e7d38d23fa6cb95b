"""Several processes train as one does: two on the CPU, started as torchrun starts them."""

from __future__ import annotations

import csv
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.resume_tools import finish, small_run, start, together
from vireo.checkpoint import read_tensors
from vireo.config import TrainConfig
from vireo.data.order import OrderConfig, make_order
from vireo.distributed import Team, make_fabric, peers_may_be_gone, unused_parameters
from vireo.errors import TrainingError, UsageError
from vireo.model import create_model
from vireo.runs import read_metrics
from vireo.train import train

QUIET = Console(quiet=True)
CLOCK = ("seconds", "data_wait")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of two classes; of batches of eight the last one of an epoch has a single clip."""
    path = make_order(tmp_path_factory.mktemp("order"), OrderConfig(clips=24, size=32, pairs=("push",)), workers=0)
    rows = list(csv.DictReader(path.open()))
    with path.with_name("seventeen.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for number, row in enumerate(rows):
            writer.writerow([row["path"], row["label"], "train" if number < 17 else "val"])
    return path.with_name("seventeen.csv")


def config(clips: Path, out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"backbone": "test_convnext", "batch_size": 8}  # without batch norm
    settings |= {"accelerator": "cpu", "dropout": 0.0, "optimizer": "sgd", "lr": 0.02}
    settings |= {"warmup_epochs": 0.0, "color_jitter": 0.2}
    return small_run(clips, out, **settings | changes)


def double() -> None:
    torch.set_default_dtype(torch.float64)


def same_weights_everywhere() -> None:
    """Have every process stop unless all hold the same weights and averages at each validation."""
    from vireo.train import Session

    validate = Session.validate

    def checked(session: Session, *args: object) -> object:
        found = validate(session, *args)  # type: ignore[arg-type]
        for module in (session.model, session.kept):
            sums = [float(p.double().sum()) for p in module.parameters()]
            assert len(set(map(tuple, session.team.gather(sums)))) == 1
        sums = [float(b.double().sum()) for b in session.kept.buffers()]
        assert len(set(map(tuple, session.team.gather(sums)))) == 1
        assert len({repr(place) for place in session.team.gather(vars(session.place))}) == 1
        return found

    Session.validate = checked  # type: ignore[method-assign,assignment]


def run_two(settings: TrainConfig, told: Path, **options: object) -> list[int]:
    """Train with two processes; their exit codes."""
    settings = replace(settings, devices=2)
    processes = [start(settings, told, environment=variables, **options) for variables in together(2)]  # type: ignore[arg-type]
    return [finish(process) for process in processes]


def tensors(run: Path, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return read_tensors(run / name)[0]


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max()) for k in one)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 2, "label_smoothing": 0.1},
        {"ema_decay": 0.5, "clip_grad": 0.1, "optimizer": "adamw", "lr": 1e-3},
    ],
)
def test_two_times_four_is_one_times_eight(clips: Path, tmp_path: Path, options: dict[str, object]) -> None:
    one, two = config(clips, tmp_path / "one", **options), config(clips, tmp_path / "two", **options)
    told = tmp_path / "told"
    assert finish(start(one, told, prepare=double)) == 0, told.read_text()
    assert run_two(two, told, prepare=double) == [0, 0], told.read_text()
    a, b = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert any(v.dtype == torch.float64 for v in a.values())
    assert furthest(a, b) < 1e-10
    rows, others = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    for row, other in zip(rows, others, strict=True):
        assert {k: v for k, v in row.items() if k not in CLOCK} == pytest.approx(
            {k: v for k, v in other.items() if k not in CLOCK}, abs=1e-9
        )
    assert told.read_text().count("17 training clips") == 2  # the first process of each run, and no other


def test_what_each_process_holds_is_the_same(clips: Path, tmp_path: Path) -> None:
    settings = config(
        clips, tmp_path / "run", backbone="test_resnet", ema_decay=0.9, dropout=0.5, mixup=0.4, cutmix=1.0, workers=1
    )
    settings = replace(settings, temporal="tsm+tfdem")  # a branch with a loss of its own
    assert run_two(settings, tmp_path / "told", prepare=same_weights_everywhere) == [0, 0], (
        tmp_path / "told"
    ).read_text()


def test_killed_together_and_resumed_changes_no_bit(clips: Path, tmp_path: Path) -> None:
    options = {"backbone": "test_resnet", "ema_decay": 0.9, "dropout": 0.5, "mixup": 0.4, "save_every": 1}
    whole, told = config(clips, tmp_path / "whole", **options), tmp_path / "told"
    assert run_two(whole, told) == [0, 0], told.read_text()
    part = replace(whole, out=str(tmp_path / "part"))
    first, second = together(2)
    processes = [
        start(replace(part, devices=2), told, environment=first),
        start(
            replace(part, devices=2), told, environment=second, kill=("loss", 4)
        ),  # in its third step: the first loss is a probe
    ]
    codes = [finish(process) for process in processes]
    assert codes == [1, -signal.SIGKILL]
    assert "error: Another process of this run has ended" in told.read_text()
    place = read_tensors(tmp_path / "part" / "resume.safetensors")[1]["place"]
    assert (place["epoch"], place["batch"]) == (0, 2)  # the last periodic one
    assert run_two(replace(part, resume=True), told) == [0, 0], told.read_text()
    for name in ("last.safetensors", "resume.safetensors", "best.safetensors"):
        a, b = tensors(tmp_path / "whole", name), tensors(tmp_path / "part", name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_clips_that_fail_are_counted_once_and_end_the_run_everywhere(clips: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(clips.open()))
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for number, row in enumerate(rows):
            path = tmp_path / f"broken{number}.mp4" if number % 6 == 0 else clips.parent / row["path"]
            if number % 6 == 0:
                path.write_bytes(b"nothing")
            writer.writerow([path, row["label"], row["split"]])
    told = tmp_path / "told"
    settings = config(tmp_path / "clips.csv", tmp_path / "run", max_failed="50%")
    assert run_two(settings, told) == [0, 0], told.read_text()
    named = {Path(row["path"]).name for row in csv.DictReader((tmp_path / "run" / "failed.csv").open())}
    assert named == {"broken0.mp4", "broken6.mp4", "broken12.mp4", "broken18.mp4"}  # three to train, one to validate
    alone = train(replace(settings, out=str(tmp_path / "alone")), console=QUIET)
    figures = [row[name] for row in read_metrics(tmp_path / "run") for name in ("top1", "mean_class")]
    assert figures == pytest.approx([row[name] for row in read_metrics(alone.run) for name in ("top1", "mean_class")])

    told = tmp_path / "told too"
    assert run_two(replace(settings, out=str(tmp_path / "few"), max_failed="1"), told) == [1, 1]
    assert told.read_text().count("more than max_failed 1 allows") == 1  # said once


def test_a_signal_to_one_process_stops_both_at_the_same_step(clips: Path, tmp_path: Path) -> None:
    settings, told = config(clips, tmp_path / "run", epochs=500, eval_every=500, devices=2), tmp_path / "told"
    processes = [start(settings, told, environment=variables) for variables in together(2)]
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes[1].pid
    processes[1].terminate()  # not the one that writes
    assert [finish(process) for process in processes] == [0, 0], told.read_text()
    assert "everything is saved in" in told.read_text()
    assert read_tensors(tmp_path / "run" / "resume.safetensors")[1]["processes"] == 2


def test_a_folder_that_holds_a_run_is_refused_once(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    told = tmp_path / "told"
    assert run_two(config(clips, tmp_path / "run"), told) == [2, 1]
    assert told.read_text().count("error:") == 1 and "is not empty" in told.read_text()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_numbers_that_do_not_fit_are_said(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="batch_size is 8; it must be a multiple of devices × num_nodes, which is 3"):
        config(clips, Path("x"), devices=3)
    with pytest.raises(UsageError, match="sync_bn needs GPUs"):
        make_fabric(config(clips, Path("x"), sync_bn=True))
    for name, value in together(2)[0].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="2 processes were started, but devices is 1 and num_nodes 1"):
        make_fabric(config(clips, Path("x")))


def test_parameters_without_a_gradient_are_found() -> None:
    model = create_model("tsn", "test_resnet", num_classes=2, num_frames=2)
    model.spare = nn.Linear(2, 2)
    model.train()
    clip = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert unused_parameters(model, lambda: model(clip).sum()) == ["spare.weight", "spare.bias"]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_alone_nothing_is_sent() -> None:
    team = Team(make_fabric(TrainConfig(data="x", out="x", accelerator="cpu")))
    assert (team.rank, team.size, team.first) == (0, 1, True)
    assert team.table([1, 2.5]).tolist() == [[1, 2.5]] and team.gather("a") == ["a"]
    assert team.any(True) is True and team.any(False) is False


def test_only_what_comes_from_the_network_is_a_lost_process() -> None:
    with pytest.raises(TrainingError, match="Another process of this run has ended"), peers_may_be_gone():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:3521")
    with pytest.raises(RuntimeError, match="shape"), peers_may_be_gone():
        raise RuntimeError("shape mismatch")
