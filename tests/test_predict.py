"""Prediction from a checkpoint alone: files, folders, faults, and agreement with evaluation."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from vireo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vireo.config import ViewConfig
from vireo.data.annotations import read_table
from vireo.data.order import OrderConfig, make_order
from vireo.errors import CheckpointError, DataError, DecodeError, UsageError
from vireo.evaluate import evaluate
from vireo.model import create_model
from vireo.plots import comparison_png, confusion_png
from vireo.predict import find_videos, predict, predict_command, predict_many
from vireo.report import ModelSection, Strip, write_report
from vireo.scoring import clip_loader, score_clips

LABELS = ("push left to right", "push right to left")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_order(tmp_path_factory.mktemp("order"), OrderConfig(clips=24, size=32, pairs=("push",)), workers=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("tsm", "resnet10t", num_classes=2, num_frames=4)
    torch.nn.init.normal_(model.classifier.weight)
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, model, labels=LABELS, view=ViewConfig(size=32), provenance={})
    return path


def test_prediction_agrees_with_evaluation(data: Path, checkpoint: Path) -> None:
    loaded, table = load_checkpoint(checkpoint), read_table(data)
    loader = clip_loader(loaded.model, loaded, table, batch_size=5, workers=0)
    (scores,) = score_clips(loaded.model, loader, num_classes=2)
    for index in range(0, len(table), 5):
        found = predict(checkpoint, table.record(index).path)
        expected = scores.logits[index].softmax(0)
        assert found.label == LABELS[int(expected.argmax())]
        assert found.probability == pytest.approx(float(expected.max()), abs=1e-4)
        assert [label for label, _ in found.top] == [LABELS[i] for i in expected.argsort(descending=True)]


def test_order_blind_model_is_right_on_exactly_half_of_order(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=4)
    torch.nn.init.normal_(model.classifier.weight)
    view = ViewConfig(size=32)
    tsn = Checkpoint(model=model.eval(), labels=LABELS, view=view, provenance={})
    found = evaluate(tsn, data, split="all", workers=0, shuffle_frames=2)
    assert found.top1 == 0.5  # two classes: it says one of them of both twins
    assert found.shuffled == (0.5, 0.5)
    assert (found.header["expected"], found.header["failed"]) == (24, 0)


def test_splits(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert evaluate(checkpoint, data, workers=0).header["split"] == "test"
    assert evaluate(checkpoint, data, split="val", workers=0).header["split"] == "val"
    folder = data.parent / "videos"  # a folder per class: no split, and not what the model was trained on
    assert evaluate(checkpoint, folder, workers=0).header["split"] == "all"
    with pytest.raises(DataError, match="names no split"):
        evaluate(checkpoint, folder, split="val", workers=0)
    with pytest.raises(UsageError, match="'tets'"):
        evaluate(checkpoint, data, split="tets", workers=0)


def test_labels_the_model_does_not_know_are_refused(data: Path, tmp_path: Path) -> None:
    model = create_model("tsm", "resnet10t", num_classes=2, num_frames=4)
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, model, labels=("push left to right", "wave"), view=ViewConfig(size=32), provenance={})
    with pytest.raises(DataError, match="push right to left"):
        evaluate(path, data, workers=0)


def test_a_file_that_fails_is_reported_and_the_rest_go_on(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = read_table(data).record(0).path
    bad = tmp_path / "[red]broken.mp4"
    bad.write_bytes(b"not a video")
    results = list(predict_many(checkpoint, [good, bad, good]))
    assert isinstance(results[1], DecodeError) and results[0] == results[2]
    assert predict_command(checkpoint, [Path(good), bad], json=True) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["label"] in LABELS and lines[1]["path"] == str(bad) and lines[1]["error"]
    assert predict_command(checkpoint, [Path(good), bad]) == 1
    shown = capsys.readouterr()
    assert "broken.mp4" in shown.err and "[red]" in shown.err  # the name is printed, not read as markup


def test_what_is_not_a_checkpoint_or_a_video(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        predict(read_table(data).record(0).path, read_table(data).record(0).path)
    with pytest.raises(UsageError, match=r"no\.mp4 does not exist; give videos"):
        find_videos([tmp_path / "no.mp4"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no video files"):
        find_videos([tmp_path / "empty"])
    with pytest.raises(UsageError, match="top_k"):
        predict(checkpoint, read_table(data).record(0).path, top_k=0)
    assert len(find_videos([data.parent])) == 24


def test_the_report_is_self_contained_and_escapes_names(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    found = evaluate(checkpoint, data, workers=0)
    prediction = predict(checkpoint, read_table(data).record(0).path)
    section = ModelSection(
        name="<b>TSM", about="a & b", evaluation=found, metrics=[{"epoch": 1, "loss": 1.0, "top1": 0.5}], seconds=3
    )
    strip = Strip(
        title="clip",
        label=LABELS[0],
        clip=torch.zeros(4, 3, 32, 32, dtype=torch.uint8),
        predictions={"TSM": prediction},
    )
    page = write_report(
        tmp_path / "new" / "report.html", title="T", intro=["i"], models=[section], strips=[strip], ceiling=0.5
    ).read_text()
    assert "&lt;b&gt;TSM" in page and "<b>TSM" not in page
    assert "://" not in page and "<script" not in page
    assert page.count('<svg class="matrix') == 1 and page.count('class="chart"') == 2
    assert page.count("data:image/jpeg") == 4
    assert f"{100 * found.top1:.1f} %" in page


def test_folders_are_read_as_data_sets_are(tmp_path: Path) -> None:
    names = ["clip_10.mp4", "clip_2.mp4", "._clip_2.mp4", ".trash/old.mp4", "deep/er/a.MOV", "notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_videos([tmp_path])]
    assert found == ["clip_2.mp4", "clip_10.mp4", "deep/er/a.MOV"]


# --- on a terminal ------------------------------------------------------------------------------------------


def on_a_terminal(code: str, *, stdout: bool) -> tuple[str, str]:
    """Run code with stderr, and stdout if asked, on a terminal: what the screen shows at last, and what stdout got."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=theirs if stdout else subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    piped = process.stdout.read().decode() if process.stdout else ""
    assert process.wait(60) == 0, shown
    os.close(ours)
    return screen(shown.decode()), piped


def screen(shown: str) -> str:
    """The text that stands on a terminal after these characters."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", shown):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece.startswith("\x1b"):
            if piece.endswith("A"):
                row -= int(piece[2:-1] or 1)
            elif piece.endswith("K"):
                lines[row] = ""
        else:
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + len(piece) :]
            column += len(piece)
    return "\n".join(line.rstrip() for line in lines).strip()


LOOP = """
import time
from vireo import progress
with progress.bar("work", 3) as advance:
    for i in range(3):
        time.sleep(0.15)
        advance(1)
        {say}
"""


def test_results_reach_a_pipe_while_a_bar_is_on_the_terminal() -> None:
    for say in ("print(i, flush=True)", "advance.output.print(i)"):
        shown, piped = on_a_terminal(LOOP.format(say=say), stdout=False)
        assert piped.split() == ["0", "1", "2"]
        assert shown == ""  # the bar has gone


def test_the_bar_leaves_nothing_between_results_on_one_terminal() -> None:
    for say in ("print('result', i)", "advance.output.print('result', i)", "advance.errors.print('result', i)"):
        shown, _ = on_a_terminal(LOOP.format(say=say), stdout=True)
        assert shown.split("\n") == ["result 0", "result 1", "result 2"]


def test_predictions_as_json_reach_a_pipe(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    files = [read_table(data).record(0).path, str(bad)]
    code = f"from vireo.cli import main; assert main(['predict', {str(checkpoint)!r}, *{files!r}, '--json']) == 1"
    shown, piped = on_a_terminal(code, stdout=False)
    assert [json.loads(line)["path"] for line in piped.splitlines()] == files
    assert shown == ""
    shown, _ = on_a_terminal(code.replace(", '--json'", ""), stdout=True)
    assert "work" not in shown and "predict " not in shown
    assert shown.startswith(files[0][:80]) and "bad.mp4: " in shown


# --- pictures -----------------------------------------------------------------------------------------------


def test_names_in_pictures_are_no_formulas() -> None:
    names = [r"a $\frac$ b", "c $_$", "日本"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = confusion_png(np.eye(3, dtype=np.int64), names, title=names[0])
        run = [{"epoch": 1.0, "loss": 1.0, "top1": 0.1}, {"epoch": 2.0, "loss": 0.5, "top1": 0.2}]
        curves = comparison_png({name: [run] for name in names}, epochs=2)
    assert picture.startswith(b"\x89PNG") and curves.startswith(b"\x89PNG")
