"""`vireo train --seeds`: the same as single runs, summed up as a textbook would, and nothing lost."""

from __future__ import annotations

import importlib
import io
import json
import os
import shlex
import signal
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.resume_tools import small_run
from vireo import cli
from vireo.checkpoint import load_checkpoint, read_tensors
from vireo.config import TrainConfig
from vireo.data.order import OrderConfig, make_order
from vireo.errors import StorageError, TrainingError, UsageError
from vireo.run_files import read_metrics
from vireo.sweep import SeedsResult, train_seeds
from vireo.train import train

QUIET = Console(quiet=True)
training = importlib.import_module("vireo.train")
STEPS = 3  # of an epoch
SMALL = [
    *("--temporal", "tsm", "--backbone", "test_resnet", "--pretrained", "false", "--size", "32", "--num-frames", "4"),
    *("--epochs", "1", "--workers", "0", "--batch-size", "6", "--precision", "32-true"),
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of two classes, with train, val and test parts."""
    return make_order(tmp_path_factory.mktemp("order"), OrderConfig(clips=24, size=32, pairs=("push",)), workers=0)


@pytest.fixture
def plain(clips: Path) -> Path:
    """The same clips without parts: each seed sets its own validation part aside."""
    rows = [line.split(",") for line in clips.read_text().splitlines()]
    keep = [rows[0].index(name) for name in ("path", "label")]
    path = clips.with_name("plain.csv")
    path.write_text("".join(",".join(row[i] for i in keep) + "\n" for row in rows))
    return path


def config(clips: Path, out: Path, **changes: Any) -> TrainConfig:
    return small_run(clips, out, **{"lr": 0.05, "optimizer": "sgd"} | changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.safetensors").model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Any) -> list[int]:
    """Call `act` in the n-th training step; the list grows by one in each step."""
    steps: list[int] = []
    step = training.Session.step

    def counted(session: Any, *args: Any) -> None:
        step(session, *args)
        steps.append(session.config.seed)
        if len(steps) == number:
            act()

    monkeypatch.setattr(training.Session, "step", counted)
    return steps


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_each_seed_is_the_run_that_it_is_alone(clips: Path, tmp_path: Path) -> None:
    result = train_seeds(config(clips, tmp_path / "three", seed=7), (0, 2, 1), console=QUIET)
    assert [run.path.name for run in result.runs] == ["seed-0", "seed-2", "seed-1"]
    alone = train(config(clips, tmp_path / "alone", seed=2), console=QUIET)  # nothing of seed 0 is left in it
    assert same(weights(alone.run), weights(tmp_path / "three" / "seed-2"))
    assert not same(weights(alone.run), weights(tmp_path / "three" / "seed-1"))

    rows = [read_metrics(tmp_path / "three" / f"seed-{seed}") for seed in (0, 2, 1)]
    last, best = [r[-1]["top1"] for r in rows], [max(row["top1"] for row in r) for r in rows]
    assert result.last == pytest.approx((statistics.mean(last), statistics.stdev(last), 3))
    assert result.best == pytest.approx((statistics.mean(best), statistics.stdev(best), 3))
    assert result.same_clips and not result.interrupted and not result.faults
    assert json.loads((tmp_path / "three" / "seeds.json").read_text()) == json.loads(json.dumps(result.as_dict()))
    assert result.as_dict()["data_hash"] == alone_hash(alone.last)
    names = sorted(path.name for path in (tmp_path / "three").iterdir())
    assert names == ["README.md", "config.yaml", "curves.png", "seed-0", "seed-1", "seed-2", "seeds.json"]


def alone_hash(path: Path) -> str:
    return str(load_checkpoint(path).provenance["data_hash"])


def test_the_table_says_what_is_chosen_and_what_is_not(plain: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    result = train_seeds(config(plain, tmp_path / "two", epochs=1), (0, 1), console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    table = next(i for i, line in enumerate(lines) if line.split()[:3] == ["seed", "best,", "%"])
    assert [line.split()[0] for line in lines[table + 1 : table + 4]] == ["0", "1", "mean"]
    assert result.last is not None
    assert f"{100 * result.last.mean:.1f} ± {100 * result.last.deviation:.1f}" in lines[table + 3]
    told = " ".join(" ".join(lines[table + 4 :]).split())
    assert "best: chosen on the clips it is scored on, so optimistic; last: not chosen" in told
    assert not result.same_clips and "each seed set its own validation part aside" in told
    page = (tmp_path / "two" / "README.md").read_text()
    assert "[0](seed-0/README.md)" in page and f"± {100 * result.last.deviation:.1f}" in page


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> SeedsResult:
    """Two seeds that nobody disturbed."""
    return train_seeds(config(clips, tmp_path_factory.mktemp("whole") / "out"), (0, 1), console=QUIET)


@pytest.mark.parametrize("steps", [STEPS + 1, 2 * STEPS + 2])  # in the first seed's second epoch, in the second seed
def test_ctrl_c_stops_and_the_same_command_does_what_is_left(
    clips: Path, whole: SeedsResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    settings = config(clips, tmp_path / "part")
    console = Console(file=io.StringIO(), width=300)
    with monkeypatch.context() as patch:
        at_step(patch, steps, interrupt)
        stopped = train_seeds(settings, (0, 1), console=console)
    assert stopped.interrupted and json.loads((tmp_path / "part" / "seeds.json").read_text())["interrupted"]
    hint = next(x for x in console.file.getvalue().splitlines() if x.startswith("All seeds"))  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        done = at_step(patch, 99, interrupt)
        assert cli.main(shlex.split(hint.partition(": ")[2])[1:]) == 0
    assert len(done) == 4 * STEPS - steps  # no step twice, none left out
    for run in whole.runs:
        assert same(weights(run.path), weights(tmp_path / "part" / run.path.name))
    found = json.loads((tmp_path / "part" / "seeds.json").read_text())
    assert found["last_top1"] == json.loads(json.dumps(whole.as_dict()))["last_top1"] and not found["interrupted"]


def test_an_interrupt_between_two_seeds_is_summed_up_too(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = training.read_table, 0

    def read_table(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:  # the second seed has not begun to train
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "read_table", read_table)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(config(clips, tmp_path / "out", epochs=1), (0, 1), console=QUIET)
    found = json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert [seed["state"] for seed in found["seeds"]] == ["finished", "not begun"] and found["interrupted"]


def test_seeds_that_are_done_stay_as_they_are_and_new_ones_are_added(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(clips, tmp_path / "out", epochs=1)
    train_seeds(settings, (0,), console=QUIET)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out" / "seed-0").glob("*.*")}
    steps = at_step(monkeypatch, 99, interrupt)
    result = train_seeds(replace(settings, resume=True), (0, 5), console=QUIET)
    assert steps == [5] * STEPS and result.last is not None and result.last.number == 2
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before} == before


def test_a_seed_that_fails_costs_that_seed(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge() -> None:
        raise TrainingError("The loss is nan for the clips x.mp4")

    at_step(monkeypatch, STEPS + 1, diverge)
    words = ["train", "--data", str(clips), "--out", str(tmp_path / "out"), *SMALL, "--seeds", "0,1,2", "--json"]
    assert cli.main(words) == 1
    found = json.loads(capsys.readouterr().out)
    assert [seed["state"] for seed in found["seeds"]] == ["finished", "failed", "finished"]
    assert found["last_top1"]["n"] == 2 and "loss is nan" in found["seeds"][1]["fault"]
    assert "seed 1 failed: `The loss is nan" in (tmp_path / "out" / "README.md").read_text()


def test_an_error_that_all_seeds_would_meet_ends_it_with_what_was_done(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise StorageError("the disk is full")

    at_step(monkeypatch, STEPS + 1, full)
    with pytest.raises(StorageError):
        train_seeds(config(clips, tmp_path / "out", epochs=1), (0, 1, 2), console=QUIET)
    found = json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert found["seeds"][0]["state"] == "finished" and found["seeds"][2]["state"] == "not begun"


def test_a_summary_that_cannot_be_written_costs_nothing(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def full(source: str, target: str | Path) -> None:
        if Path(target).name == "seeds.json":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("vireo.files.os.replace", full)
    console = Console(file=io.StringIO(), width=200)
    result = train_seeds(config(clips, tmp_path / "out", epochs=1), (0,), console=console)
    assert result.last is not None and result.last.number == 1
    assert "warning: " in console.file.getvalue() and "No space left" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_refused_before_anything_is_trained(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(clips), "--out", str(tmp_path / "out"), *SMALL]

    def refused(*more: str, told: str) -> None:
        assert cli.main([*words, *more]) == 2
        assert told in capsys.readouterr().err

    refused("--seeds", "0,1", "--seed", "0", told="--seed and --seeds exclude each other")
    refused("--seeds=0,1", "--seed=3", told="--seed and --seeds exclude each other")
    refused("--seeds", "0,0", told="give different whole numbers")
    refused("--seeds=-1,0", told="give different whole numbers")
    refused("--seeds", "a,b", told="--seeds: ")
    refused("--seeds", "0,1", "--resume", told="no seeds to go on from")
    refused("--seeds", "0,1", "--devices", "2", told="in one process")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    refused("--seeds", "0,1", told="not empty (README.md")
    (tmp_path / "out" / "README.md").unlink()
    assert cli.main([*words, "--seeds", "0,1"]) == 0
    refused("--seeds", "2", told="holds seeds 0, 1 already; go on with --resume")
    refused("--seeds", "1,2", "--resume", told="name all that are to be summed up: --seeds 0,1,2")
    refused("--seeds", "0,1", "--resume", "--lr", "0.7", told="lr (was 0.001, now 0.7)")
    single = ["train", "--data", str(clips), "--out", str(tmp_path / "single"), *SMALL]
    assert cli.main(single) == 0
    assert cli.main([*single, "--seeds", "0,1"]) == 2
    assert "holds a run of one seed" in capsys.readouterr().err


def test_other_clips_are_refused_for_a_seed_that_is_done(clips: Path, tmp_path: Path) -> None:
    data = clips.with_name("changing.csv")
    data.write_text(clips.read_text())
    settings = config(data, tmp_path / "out", epochs=1)
    train_seeds(settings, (0,), console=QUIET)
    data.write_text("\n".join(clips.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UsageError, match=r"The list of clips in .*changing.csv is not the one"):
        train_seeds(replace(settings, resume=True), (0, 1), console=QUIET)


def test_a_config_file_s_seed_is_not_in_the_way(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(config(clips, tmp_path / "first", epochs=1, seed=3), console=QUIET)
    settings = ["--config", str(first.run / "config.yaml"), "--out", str(tmp_path / "out")]
    assert cli.main(["train", *settings, "--seeds", "3"]) == 0
    assert same(weights(first.run), weights(tmp_path / "out" / "seed-3"))
    assert read_tensors(tmp_path / "out" / "seed-3" / "last.safetensors")[1]["provenance"]["config"]["seed"] == 3
    capsys.readouterr()


def test_runs_that_begin_with_a_checkpoint_go_on(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = train(config(clips, tmp_path / "start", epochs=1), console=QUIET).last
    settings = config(clips, tmp_path / "out", init=str(start))
    with monkeypatch.context() as patch:
        at_step(patch, 2 * STEPS + 1, interrupt)
        assert train_seeds(settings, (0, 1), console=QUIET).interrupted
    result = train_seeds(replace(settings, resume=True), (0, 1), console=QUIET)
    assert [run.state for run in result.runs] == ["finished", "finished"]
