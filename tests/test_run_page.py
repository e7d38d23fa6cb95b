"""The folder of a run explains itself: its page, its curves, and that neither costs a run anything."""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.resume_tools import small_run, stop_after
from vireo import cli, run_page
from vireo.checkpoint import load_checkpoint
from vireo.config import TrainConfig
from vireo.data.order import OrderConfig, make_order
from vireo.errors import UsageError
from vireo.run_files import read_metrics
from vireo.run_page import MARK, code, may_replace
from vireo.train import train

QUIET = Console(quiet=True)
training = importlib.import_module("vireo.train")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_order(tmp_path_factory.mktemp("order"), OrderConfig(clips=24, size=32, pairs=("push",)), workers=0)


def config(clips: Path, out: Path, **changes: Any) -> TrainConfig:
    """Two epochs of three steps."""
    return small_run(clips, out, **changes)


def page_of(run: Path) -> str:
    return (run / "README.md").read_text(encoding="utf-8")


def commands(page: str) -> list[list[str]]:
    (block,) = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def test_a_finished_run_explains_itself(clips: Path, tmp_path: Path) -> None:
    run = train(config(clips, tmp_path / "my run"), console=QUIET).run
    page, rows = page_of(run), read_metrics(run)
    assert "# `my run`" in page and "`tsm × test_resnet, 4 frames of 32²`" in page
    assert "14 training, 4 validation, 6 test clips of 2 classes" in page
    loaded = load_checkpoint(run / "last.safetensors")
    assert f"(list {loaded.provenance['data_hash']})" in page
    assert "**Finished**: 2 of 2 epochs" in page
    assert f"| last | {100 * rows[-1]['top1']:.1f} % |" in page and "optimistic" in page
    named = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert {path.name for path in run.iterdir()} - {"README.md"} == set(named)  # every file, and no other
    assert loaded.provenance["git"].keys() == {"here", "vireo"}
    assert (run / "environment.txt").read_text().startswith("vireo ")
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_its_commands_do_what_they_say(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(config(clips, Path("runs/my run's")), console=QUIET).run
    again, score, say = commands(page_of(run))
    assert again[:2] == ["vireo", "train"] and score[1] == "eval" and say[1] == "predict"
    assert cli.main(again[1:]) == 0
    one, other = (load_checkpoint(Path(p) / "last.safetensors").model.state_dict() for p in (run, again[-1]))
    assert all(bool((one[k] == other[k]).all()) for k in one)  # as the page promises
    assert cli.main([*score[1:], "--workers", "0", "--out", "e"]) == 0
    video = next(clips.parent.rglob("*.mp4"))
    assert cli.main([*say[1:-1], str(video), "--workers", "0"]) == 0 and say[-1] == "VIDEO"
    capsys.readouterr()


def test_an_interrupted_run_says_how_to_go_on(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        run = train(config(clips, tmp_path / "run"), console=QUIET).run
    page = page_of(run)
    assert "**Stopped**: 1 of 2 epochs" in page and "and 1 batch of the next one" in page
    assert (run / "curves.png").exists()
    going_on = commands(page)[0]
    assert going_on[-1] == "--resume" and cli.main(going_on[1:]) == 0
    assert "**Finished**: 2 of 2 epochs" in page_of(run) and "--resume" not in page_of(run)
    capsys.readouterr()


def test_the_page_stands_before_the_first_step(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = training.Session.step

    def look(*args: Any) -> None:
        seen.append(page_of(tmp_path / "run"))
        step(*args)

    monkeypatch.setattr(training.Session, "step", look)
    train(config(clips, tmp_path / "run"), console=QUIET)
    assert "**Under way when this was written, or killed since**: 0 of 2 epochs." in seen[0]
    assert [words[1] for words in commands(seen[0])] == ["train"]  # there are no weights yet
    assert "1 of 2 epochs" in seen[-1] and len(commands(seen[-1])) == 4


def test_curves_are_not_drawn_all_the_time(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    real = run_page.run_png
    monkeypatch.setattr(run_page, "run_png", lambda rows, **k: (drawn.append(len(rows)), real(rows, **k))[1])
    monkeypatch.setattr(run_page, "SECONDS_BETWEEN", 1e9)
    train(config(clips, tmp_path / "run", epochs=5), console=QUIET)
    assert drawn == [5]  # at the end
    monkeypatch.setattr(run_page, "SECONDS_BETWEEN", 0.0)
    drawn.clear()
    train(config(clips, tmp_path / "run2", epochs=3, save_every=1), console=QUIET)
    assert drawn == [1, 2, 3]


@pytest.mark.parametrize("what", ["disk", "picture"])
def test_trouble_with_the_page_costs_no_run(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    replace_file = os.replace

    def full(source: str, target: str | Path) -> None:
        if Path(target).name in ("README.md", "curves.png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(source, target)

    def fails(*_: object, **__: object) -> bytes:
        raise RuntimeError("no font")

    console = Console(file=io.StringIO(), width=300)
    with monkeypatch.context() as patch:
        if what == "disk":
            patch.setattr("vireo.files.os.replace", full)
        else:
            patch.setattr(run_page, "run_png", fails)
        result = train(config(clips, tmp_path / "run"), console=console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert (result.epochs, result.interrupted) == (2, False)
    assert told.count("warning:") == 1 and ("No space left" if what == "disk" else "no font") in told
    assert not list(result.run.glob(".*"))
    assert load_checkpoint(result.last).provenance["epochs"] == 2


def test_a_page_of_the_users_own_is_left_alone(clips: Path, tmp_path: Path) -> None:
    run = train(config(clips, tmp_path / "run", epochs=1), console=QUIET).run
    (run / "README.md").write_text("my notes")
    train(config(clips, tmp_path / "run", epochs=1, resume=True), console=QUIET)
    assert page_of(run) == "my notes"
    (run / "README.md").unlink()
    train(config(clips, tmp_path / "run", epochs=1, resume=True), console=QUIET)
    assert page_of(run).startswith(MARK)
    assert not may_replace(run)  # a folder


def test_what_a_kill_left_half_written_is_cleaned(clips: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "tensorboard").mkdir(parents=True)
    left = [run / f".{name}.123.tmp" for name in ("README.md", "curves.png", "environment.txt", "resume.safetensors")]
    for path in (*left, run / "README.md", run / "environment.txt"):
        path.write_text(MARK)
    (run / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"not empty"):
        train(config(clips, run, epochs=1), console=QUIET)
    (run / "mine.txt").unlink()
    train(config(clips, run, epochs=1), console=QUIET)
    assert not list(run.glob(".*")) and "**Finished**" in page_of(run)


def test_a_run_that_patience_ended_is_finished(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = training.measure
    monkeypatch.setattr(training, "measure", lambda *args: replace(measure(*args), top1=0.5))
    run = train(config(clips, tmp_path / "run", epochs=9, patience=1), console=QUIET).run
    assert "**Finished**: 2 of 9 epochs" in page_of(run) and "`patience` ended it" in page_of(run)


@pytest.mark.parametrize("text", ["plain", "a`b", "``", "`", "a\nb", "\x1b[31m", "|", "x ``` y"])
def test_code_spans_hold_any_text(text: str) -> None:
    found = code(text)
    fence = re.match("`+", found)[0]  # type: ignore[index]
    inner = found[len(fence) : -len(fence)]
    assert found.endswith(fence) and fence not in re.findall("`+", inner.strip(" ") or " ")
    assert "\n" not in found and "\x1b" not in found
    assert np.isin(list(text.replace("\n", "?").replace("\x1b", "?")), list(inner)).all()
