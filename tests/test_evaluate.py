"""Scores: agreement with scikit-learn, honest counting, and no dependence on how clips are batched."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from tests.video_tools import write_class_folders, write_video
from vireo import cli, plots
from vireo.checkpoint import Checkpoint, save_checkpoint
from vireo.config import ViewConfig
from vireo.data.annotations import read_table
from vireo.data.dataset import Batch, Failure
from vireo.data.splits import split_table
from vireo.data.table import ClipTable, StringColumn
from vireo.devices import choose_device
from vireo.errors import DataError, StorageError, UsageError
from vireo.evaluate import evaluate
from vireo.evaluation import Scores, find_slowest, measure, print_evaluation, print_header, write_evaluation
from vireo.files import write_json
from vireo.model import create_model
from vireo.report.reading import read_evaluation
from vireo.runs import write_clips
from vireo.scores import ranks, read_facts
from vireo.scoring import choose_split, count_trained_on, score_clips
from vireo.statistics import bootstrap_mean

LABELS = tuple("abcdefg")


def random_scores(seed: int, clips: int = 60, failures: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (clips,), generator=generator)  # class "g" has no clips
    logits = torch.randn(clips, 7, generator=generator) + 1.5 * nn.functional.one_hot(labels, 7)
    return Scores(
        logits=logits,
        labels=labels,
        indices=torch.arange(clips),
        failures=tuple(Failure(clips + i, f"broken{i}.mp4", "no video stream") for i in range(failures)),
    )


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_agree_with_scikit_learn(seed: int) -> None:
    scores = random_scores(seed)
    found = measure(scores, LABELS, {})
    predicted, true = scores.logits.argmax(1).numpy(), scores.labels.numpy()
    assert found.top1 == pytest.approx(np.mean(predicted == true))
    assert found.top5 == pytest.approx(top_k_accuracy_score(true, scores.logits.numpy(), k=5, labels=range(7)))
    with pytest.warns(UserWarning) if set(predicted) - set(true) else _nothing():
        assert found.mean_class == pytest.approx(balanced_accuracy_score(true, predicted))
    np.testing.assert_array_equal(found.confusion, confusion_matrix(true, predicted, labels=range(7)))


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("seed", range(3))
def test_intervals_and_calibration_are_those_of_the_clips(seed: int) -> None:
    scores = random_scores(seed)
    found = measure(scores, LABELS, {}, seed=3)
    right = (scores.logits.argmax(1) == scores.labels).numpy()
    assert found.bootstrap.top1 == bootstrap_mean(right, seed=3)
    for value, (low, high) in zip((found.top1, found.top5, found.mean_class), found.bootstrap[:3], strict=True):
        assert low <= value <= high and high - low < 0.4
    expected = multiclass_calibration_error(
        scores.logits.softmax(1), scores.labels, num_classes=7, n_bins=15, norm="l1"
    )
    assert found.calibration.error == pytest.approx(float(expected), abs=1e-5)


def test_scores_that_say_nothing_are_refused(tmp_path) -> None:
    data = write_class_folders(tmp_path, {"a": 2, "b": 1}, frames=4)
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=2)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    checkpoint = Checkpoint(model=model, labels=("a", "b"), view=ViewConfig(size=32))
    with pytest.raises(DataError, match=r"scores of 3 of 3 clips are infinite or not a number, the first of .*a_0"):
        evaluate(checkpoint, data, workers=0)


def test_a_clip_of_one_frame_is_scored(tmp_path) -> None:
    data = write_class_folders(tmp_path, {"a": 2, "b": 1}, frames=1)
    model = create_model("tsm", "resnet10t", num_classes=2, num_frames=4)
    checkpoint = Checkpoint(model=model, labels=("a", "b"), view=ViewConfig(size=32))
    found = evaluate(checkpoint, data, workers=0, protocol="2x3-full", shuffle_frames=1, reverse_frames=True)
    assert found.header["scored"] == 3 and found.order is not None
    assert all(order.lost == 0 for order in found.order.orders)  # all frames are the same


def test_failed_clips_are_counted_and_named_never_scored() -> None:
    clean, dirty = measure(random_scores(0), LABELS, {}), measure(random_scores(0, failures=3), LABELS, {})
    assert (dirty.header["expected"], dirty.header["scored"], dirty.header["failed"]) == (63, 60, 3)
    assert dirty.top1 == clean.top1
    assert dirty.as_dict()["failures"][0] == {"path": "broken0.mp4", "reason": "no video stream"}


def test_nothing_scored_is_an_error_that_names_a_reason() -> None:
    nothing = Scores(
        logits=torch.empty(0, 7),
        labels=torch.empty(0, dtype=torch.int64),
        indices=torch.empty(0, dtype=torch.int64),
        failures=(Failure(0, "x.mp4", "no video stream"),),
    )
    with pytest.raises(DataError, match=r"None of 1 clips.*x\.mp4: no video stream"):
        measure(nothing, LABELS, {})


class FirstFrame(nn.Module):
    """Scores a clip by the value of its first frame: class = that value."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(clips[:, 0, 0, 0, 0].long(), 7).float()


def batch_of(values: list[list[int]], labels: list[int], start: int = 0) -> Batch:
    clips = torch.tensor(values, dtype=torch.uint8)[:, :, None, None, None].expand(-1, -1, 3, 4, 4)
    return Batch(clips, torch.tensor(labels), torch.arange(start, start + len(labels)), ())


def test_frame_orders_are_applied_to_the_same_clips() -> None:
    batches = [batch_of([[0, 1, 2], [3, 4, 5]], [0, 3]), batch_of([[6, 5, 4]], [6], start=2)]
    straight, reversed_ = score_clips(
        FirstFrame(),
        batches,
        num_classes=7,
        frame_orders=(None, lambda indices: torch.tensor([2, 1, 0]).expand(len(indices), 3)),
    )
    assert straight.logits.argmax(1).tolist() == [0, 3, 6]
    assert reversed_.logits.argmax(1).tolist() == [2, 5, 4]
    assert straight.indices.tolist() == [0, 1, 2]


def test_scoring_restores_the_mode_and_takes_no_gradients() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(7))

    class AsFloat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return self.inner(clips.float())

    outer = AsFloat().train()
    (scores,) = score_clips(outer, [batch_of([[0, 1, 2]], [0])], num_classes=7)
    assert outer.training and not scores.logits.requires_grad


def test_files_hold_the_same_numbers(tmp_path) -> None:
    found = measure(random_scores(1, failures=1), LABELS, {"checkpoint": "tei × x", "split": "val"})
    files = write_evaluation(found, tmp_path)
    read = json.loads(files["json"].read_text())
    assert read["top1"] == found.top1 and read["failed"] == 1
    assert read["bootstrap95"]["top1"] == list(found.bootstrap.top1) and read["bootstrap95"]["resamples"] == 1000
    assert read["calibration"]["error"] == found.calibration.error and read["calibration"]["bins"] == 15
    assert read["most_confused"][0]["clips"] == found.confused[0].clips
    assert read["most_confused"][0]["true"] in LABELS
    rows = list(csv.DictReader(files["per_class"].open()))
    assert sum(int(r["correct"]) for r in rows) == round(found.top1 * 60)
    assert math.isnan(float(rows[6]["accuracy"]))
    assert files["confusion"].read_bytes().startswith(b"\x89PNG")
    assert "broken0.mp4,no video stream" in files["failed"].read_text()


def test_the_slowest_clips_are_named(tmp_path) -> None:
    labels = np.array([0, 1, 0, 1, 1])
    paths = tuple(f"/d/{'ab'[label]}/\udcff{i}.mp4" for i, label in enumerate(labels))
    nan = np.full(5, np.nan)
    table = ClipTable(paths=StringColumn(paths), labels=labels, label_names=("a", "b"), starts=nan, ends=nan)
    rows = torch.tensor([0, 1, 3, 4])  # the third could not be read
    scores = Scores(
        logits=torch.rand(4, 2),
        labels=torch.from_numpy(labels)[rows],
        indices=rows,
        failures=(Failure(2, paths[2], "broken"),),
        seconds=(0.1, 0.2, 1.5, 0.2),
    )
    slow = find_slowest(scores, table)
    assert [(clip.path, clip.label) for clip in slow] == [(paths[i], "ab"[labels[i]]) for i in (3, 1, 4, 0)]
    assert [clip.seconds for clip in slow] == [1.5, 0.2, 0.2, 0.1]
    assert [clip.times_median for clip in slow] == pytest.approx([7.5, 1, 1, 0.5])
    assert len(find_slowest(scores, table, most=2)) == 2
    found = measure(scores, ("a", "b"), {"checkpoint": "x"})
    file = write_evaluation(replace(found, slowest=slow), tmp_path)["slowest"]
    lines = file.read_text(errors="surrogateescape").splitlines()
    assert lines[:2] == ["path,label,seconds,times_median", f"{paths[3]},b,1.5,7.5"] and len(lines) == 5
    assert "slowest" not in write_evaluation(found, tmp_path) and not file.exists()  # of an evaluation without times
    untimed = replace(scores, seconds=())
    assert find_slowest(untimed, table) == ()
    with pytest.raises(ValueError, match="3 seconds of 4 clips"):
        replace(scores, seconds=(1.0,) * 3)


def run_of(folder: Path, data: Path, **provenance: object) -> Path:
    """A checkpoint in the folder of a run that was trained on this data, a third of it set aside."""
    folder.mkdir()
    torch.manual_seed(0)
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=2)
    file, table = folder / "best.safetensors", read_table(data)
    settings = {"val_fraction": 0.3, "seed": 0}
    facts = {"data_hash": table.digest(), "config": settings, **provenance}
    save_checkpoint(file, model, labels=("a", "b"), view=ViewConfig(size=32), provenance=facts)
    write_clips(folder, split_table(table, **settings))
    return file


def test_clips_that_were_trained_on_are_counted(tmp_path, capsys) -> None:
    data = write_class_folders(tmp_path / "clips", {"a": 5, "b": 5}, frames=4)
    file = run_of(tmp_path / "run", data)
    line = ["eval", str(file), "--workers", "0"]
    assert "trained_on" not in evaluate(file, data, workers=0).header  # what training set aside, by the hash
    for name in ("a", "b"):
        write_video(data / name / "new.mp4", 4)
    in_val = [clip for clip in (tmp_path / "run" / "clips.csv").read_text().splitlines() if ",val," in clip]
    trained_on = 10 - len(in_val)
    assert cli.main([*line, "--data", str(data), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["split"], said["expected"], said["trained_on"]) == ("all", 12, trained_on)
    assert f"{trained_on} of the 12 clips were trained on" in said["data_notes"][-1]
    assert cli.main([*line, "--data", str(data)]) == 0
    remedy = f"--data {tmp_path / 'run' / 'clips.csv'} --split val takes those that training set aside"
    assert remedy in capsys.readouterr().out
    assert cli.main(["fuse", str(file), str(file), "--data", str(data), "--workers", "0"]) == 0
    assert capsys.readouterr().out.replace("\n", "").count("were trained on") == 2  # each model says it
    assert cli.main([*line, *remedy.split(" takes")[0].split(), "--json"]) == 0  # and it does
    said = json.loads(capsys.readouterr().out)
    assert said["scored"] == len(in_val) and "trained_on" not in said and not said["data_notes"]
    assert cli.main([*line, "--data", str(data), "--split", "val"]) == 1
    told = capsys.readouterr().err
    assert f"--data {tmp_path / 'run' / 'clips.csv'} has the parts" in told and "--split all" not in told


def test_clips_that_were_trained_on_are_known_where_the_data_lies_elsewhere(tmp_path) -> None:
    data = write_class_folders(tmp_path / "clips", {"a": 5, "b": 5}, frames=2)
    run = run_of(tmp_path / "run", data).parent
    rows = list(csv.DictReader((run / "clips.csv").open()))
    trained = sum(row["split"] == "train" for row in rows)
    (tmp_path / "link").symlink_to(data)
    assert count_trained_on(read_table(data), run) == count_trained_on(read_table(tmp_path / "link"), run) == trained
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    assert count_trained_on(read_table(copy), run) == 0  # other files, while those of the run are there
    shutil.rmtree(data)
    assert count_trained_on(read_table(copy), run) == trained
    (copy / "b").rename(copy / "c")
    assert count_trained_on(read_table(copy), run) == sum(row["split"] + row["label"] == "traina" for row in rows)
    assert count_trained_on(read_table(copy), tmp_path) == 0  # no run's folder
    for text in ("path,label\nx,y\n", "path,label,split,start,end\nx,y,train\n", "\0", ""):
        (run / "clips.csv").write_text(text)
        assert count_trained_on(read_table(copy), run) == 0


def test_cuts_of_one_file_are_told_apart(tmp_path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"x")
    (tmp_path / "d.csv").write_text(
        "path,label,start,end,split\nv.mp4,a,0,1.5,train\nv.mp4,b,2,,train\nv.mp4,a,4,5,val\n"
    )
    table = read_table(tmp_path / "d.csv")
    write_clips(tmp_path, split_table(table, val_fraction=0.5, seed=0))
    assert [count_trained_on(table.select([i]), tmp_path) for i in range(3)] == [1, 1, 0]


def test_an_evaluation_that_ends_early_leaves_the_earlier_one_whole(tmp_path) -> None:
    data = write_class_folders(tmp_path / "clips", {"a": 4, "b": 4}, frames=4)
    (data / "a" / "a_0.mp4").write_bytes(b"broken")
    line = ["eval", str(run_of(tmp_path / "run", data)), "--data", str(data), "--split", "all", "--workers", "0"]
    out = tmp_path / "run" / "best.eval"
    assert cli.main(line) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"evaluation.json", "failed.csv"} < set(before)
    for i in range(1, 4):
        (data / "a" / f"a_{i}.mp4").write_bytes(b"broken")
    assert cli.main(line) == 1
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.pop("failed-aborted.csv") and after == before
    assert len((out / "failed-aborted.csv").read_text().splitlines()) == 5  # the heading, and a batch with four
    assert cli.main([*line, "--max-failed", "4"]) == 0
    assert not (out / "failed-aborted.csv").exists()
    assert len((out / "failed.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("split", "says"),
    [("all", "x  on all clips\n"), ("val", "on the val part\n"), ("test, without labels", "on the test part, without")],
)
def test_the_part_is_said_in_words(split: str, says: str, capsys) -> None:
    facts = {
        "expected": 1,
        "scored": 1,
        "failed": 0,
        "protocol": "p",
        "precision": "32-true",
        "decoder": "d",
        "seed": 0,
    }
    print_header({**facts, "checkpoint": "x", "split": split, "data_hash": "0", "data_notes": []}, Console())
    assert says in capsys.readouterr().out


def test_confusion_of_many_classes_is_stated_by_its_cells(tmp_path) -> None:
    count = 1001
    labels = torch.randint(0, count, (300,), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot((labels + torch.arange(300) % 3) % count, count).float()
    scores = Scores(logits=logits, labels=labels, indices=torch.arange(300), failures=())
    found = measure(scores, tuple(f"class {i}" for i in range(count)), {"checkpoint": "x"})
    files = write_evaluation(found, tmp_path)
    stated = json.loads(files["json"].read_text())["confusion"]
    assert stated["classes"] == count and sum(n for *_, n in stated["cells"]) == 300
    assert all(found.confusion[true, predicted] == n > 0 for true, predicted, n in stated["cells"])
    np.testing.assert_array_equal(read_evaluation(tmp_path).confusion, found.confusion)
    for change, says in (
        ({"cells": [[0, count, 300]]}, "a cell outside"),
        ({"cells": [[0, 0, -1]]}, "a confusion matrix of 1001 classes"),
        ({"cells": [[0, 0]]}, "a confusion matrix of 1001 classes"),
        ({"classes": 1 << 40}, "a confusion matrix of 1099511627776 classes"),
        ({"cells": [[0, 0, 299]]}, "300 clips scored, 299 in the confusion matrix"),
    ):
        whole = json.loads(files["json"].read_text())
        whole["confusion"] |= change
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / "evaluation.json").write_text(json.dumps(whole))
        with pytest.raises(DataError, match=says):
            read_evaluation(tmp_path / "bad")


def test_rows_of_numbers_are_lines(tmp_path) -> None:
    found = measure(random_scores(1), LABELS, {"checkpoint": "x"})
    text = write_evaluation(found, tmp_path)["json"].read_text()
    assert json.loads(text)["confusion"] == found.confusion.tolist()
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    assert all(json.dumps(row) in lines for row in found.confusion.tolist())


@pytest.mark.parametrize(
    "value",
    [
        {"a": [], "b": {}, "c": [[], {}], "d": [1, [2, 'x\n"é']], "e": None, "f": {"g": [{"h": (1.5, True)}, "i"]}},
        [],
        [[1, 2], [3]],
        {"path": "\udcff.mp4"},
        "text",
    ],
)
def test_json_is_what_the_library_writes(tmp_path, value: object) -> None:
    text = write_json(tmp_path / "x.json", value).read_text(encoding="utf-8", errors="surrogateescape")
    assert json.loads(text) == json.loads(json.dumps(value)) and text.endswith("\n")


ESCAPE = "x\x1b]0;y\x07\x9b2J"  # would set the title of a terminal, and clear it


def test_names_of_files_do_not_steer_the_terminal(tmp_path, capsys) -> None:
    data = write_class_folders(tmp_path / f"clips{ESCAPE}", {"a": 3, "b": 3}, frames=4)
    good, bad = (data / "a" / f"{name}{ESCAPE}.mp4" for name in ("good", "bad"))
    write_video(good, 4)
    bad.write_bytes(b"broken")
    file = str(run_of(tmp_path / f"run{ESCAPE}", data))
    told, found = "", str(Path(file).with_name("best.eval"))
    decoding = ["--device", "cpu", "--workers", "0"]
    for line, code in (
        (["eval", file, "--data", str(data), "--split", "all", *decoding], 0),
        (["eval", file, "--data", str(data), "--split", "all", "--on-error", "fail", *decoding], 1),
        (["predict", file, str(good), str(bad), *decoding], 1),
        (["predict", file, str(good), "--window", "0.1", *decoding], 0),
        (["predict", file, str(bad), "--window", "0.1", *decoding], 1),
        (["embed", file, "--data", str(data), "--map", "none", "--query", "b/b_0", *decoding], 0),
        (["fuse", found, found], 0),
        (["compare", found, found], 0),
    ):
        assert cli.main(line) == code
        captured = capsys.readouterr()
        told += captured.out + captured.err
    assert not {"\x1b", "\x07", "\x9b"} & set(told)
    for name in ("good", "bad", "clips", "run"):
        assert f"{name}x?]0;y??2J" in told.replace("\n", "")


def test_unknown_device_is_a_usage_error() -> None:
    for device in ("gpu", "cuda:99"):
        with pytest.raises(UsageError, match="not available here"):
            choose_device(device)


def test_the_part_that_training_drew_is_found_again(tmp_path) -> None:
    rows = [f"v{i}.mp4,{'ab'[i % 2]},{'train' if i < 16 else 'test'}" for i in range(20)]
    for i in range(20):
        (tmp_path / f"v{i}.mp4").write_bytes(b"x")
    (tmp_path / "d.csv").write_text("\n".join(["path,label,split", *rows]))
    table = read_table(tmp_path / "d.csv")
    parts = split_table(table, val_fraction=0.3, seed=5)
    provenance = {"data_hash": table.digest(), "config": {"val_fraction": 0.3, "seed": 5}}
    assert list(choose_split(table, "val", provenance)[0].paths) == list(parts.val.paths)
    assert list(choose_split(table, "train", provenance)[0].paths) == list(parts.train.paths)
    assert choose_split(table, "auto", provenance)[1] == "test"
    with pytest.raises(DataError, match="'val'"):  # another model knows of no validation part
        choose_split(table, "val", {})
    assert len(choose_split(table, "test", {})[0]) == 4


def test_the_data_hash_tells_splits_apart(tmp_path) -> None:
    for i in range(4):
        (tmp_path / f"v{i}.mp4").write_bytes(b"x")
    digests = set()
    for splits in (("train", "train", "test", "test"), ("test", "test", "train", "train")):
        rows = [f"v{i}.mp4,{'ab'[i % 2]},{split}" for i, split in enumerate(splits)]
        (tmp_path / "d.csv").write_text("\n".join(["path,label,split", *rows]))
        digests.add(read_table(tmp_path / "d.csv").digest())
    assert len(digests) == 2


def test_a_table_with_other_labels_is_refused(tmp_path) -> None:
    for i in range(4):
        (tmp_path / f"v{i}.mp4").write_bytes(b"x")
    (tmp_path / "d.csv").write_text("path,label\n" + "\n".join(f"v{i}.mp4,{'ab'[i % 2]}" for i in range(4)))
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=2)
    checkpoint = Checkpoint(model=model, labels=("b", "a"), view=ViewConfig(size=32))
    with pytest.raises(DataError, match="order"):
        evaluate(checkpoint, read_table(tmp_path / "d.csv"), workers=0)


def test_an_evaluation_takes_the_place_of_another_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    found, other = (measure(random_scores(seed, failures=seed), LABELS, {"checkpoint": "x"}) for seed in (1, 0))
    write_evaluation(found, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(plots, "confusion_png", full)
        with pytest.raises(StorageError, match="No space"):
            write_evaluation(other, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    replaced: list[str] = []
    move = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (replaced.append(Path(b).name), move(a, b)))
    files = write_evaluation(other, tmp_path)
    assert replaced[-1] == "evaluation.json"  # until then, nothing says what the other files are of
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", *(path.name for path in files.values())}
    assert "failed" not in files and not (tmp_path / "failed.csv").exists()
    assert json.loads(files["json"].read_text())["top1"] == other.top1


def test_results_have_a_folder_of_their_own(tmp_path, capsys) -> None:
    data = write_class_folders(tmp_path / "clips", {"a": 3, "b": 3}, frames=4)
    file = run_of(tmp_path / "run", data)
    (tmp_path / "run" / "config.yaml").write_text("data: clips\n")
    (tmp_path / "notes.txt").write_text("mine")
    line = ["--data", str(data), "--split", "all", "--workers", "0"]
    for out, says in ((tmp_path / "notes.txt", "is a file"), (tmp_path / "run", "the folder of a training run")):
        for command in (["eval", str(file)], ["fuse", str(file), str(file)]):
            assert cli.main([*command, *line, "--out", str(out)]) == 2
            out_, err = capsys.readouterr()
            assert says in err and not out_  # before anything is scored
    for name in ("acc0.85.safetensors", "acc0.91.safetensors"):
        shutil.copy(file, tmp_path / name)
        assert cli.main(["eval", str(tmp_path / name), *line]) == 0
    assert (tmp_path / "acc0.85.eval").is_dir() and (tmp_path / "acc0.91.eval").is_dir()


@pytest.mark.parametrize("count", [3, 7, 50])
def test_the_first_of_equals_goes_before_the_others(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    logits = torch.randint(0, 3, (200, count), generator=generator).float()
    labels = torch.randint(0, count, (200,), generator=generator)
    ordered = [sorted(range(count), key=lambda k, row=row: (-row[k], k)) for row in logits.tolist()]
    expected = [order.index(label) for order, label in zip(ordered, labels.tolist(), strict=True)]
    assert ranks(logits, labels).tolist() == expected
    found = measure(
        Scores(logits=logits, labels=labels, indices=torch.arange(200), failures=()), tuple(map(str, range(count))), {}
    )
    assert found.top1 == pytest.approx(np.mean(np.array(expected) == 0))
    assert found.top5 == pytest.approx(np.mean(np.array(expected) < 5)) and found.top5 >= found.top1


def test_names_that_are_no_utf8_are_evaluated_reported_and_fused(tmp_path, capsys) -> None:
    data = write_class_folders(tmp_path / "clips", {"a\udcff": 3, "b": 3}, frames=4)
    (data / "b" / "bad\udcfe.mp4").write_bytes(b"broken")
    run = tmp_path / "run"
    run.mkdir()
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=2)
    save_checkpoint(run / "x.safetensors", model, labels=("a\udcff", "b"), view=ViewConfig(size=32), provenance={})
    assert cli.main(["eval", str(run / "x.safetensors"), "--data", str(data), "--workers", "0"]) == 0
    stated = json.loads((run / "x.eval" / "evaluation.json").read_text("utf-8"))  # as any other program reads it
    assert stated["classes"][0]["label"] == "a\udcff" and stated["failures"][0]["path"].endswith("bad\udcfe.mp4")
    assert read_evaluation(run / "x.eval").labels == ("a\udcff", "b")
    assert read_facts(run / "x.eval")["modality"] == "rgb"
    assert not (run / "x.eval" / "scores.parquet").exists()  # whose columns have names in UTF-8
    assert cli.main(["report", str(run / "x.eval")]) == 0
    assert cli.main(["fuse", str(run / "x.eval"), str(run / "x.eval")]) == 0
    out = str(tmp_path / "both")
    assert cli.main(["compare", str(run / "x.eval"), str(run / "x.eval"), "--out", out, "--data", str(data)]) == 0


def test_a_part_that_training_had_not_is_said(tmp_path) -> None:
    data = write_class_folders(tmp_path / "clips", {"a": 4, "b": 4}, frames=2)
    table = read_table(data)
    provenance = {"data_hash": table.digest(), "config": {"val_fraction": 0.5, "seed": 0}}
    with pytest.raises(DataError, match=r"those of the training, which had no part 'test'; it had train and val"):
        choose_split(table, "test", provenance)


def test_a_pipe_that_is_closed_early_or_a_full_disk_loses_no_result(tmp_path, capsys, monkeypatch) -> None:
    data = write_class_folders(tmp_path / "clips", {"a": 3, "b": 3}, frames=4)
    line = ["eval", str(run_of(tmp_path / "run", data)), "--data", str(data), "--split", "all", "--workers", "0"]
    head = "from vireo import cli; import sys; sys.exit(cli.main(sys.argv[1:]))"
    with subprocess.Popen([sys.executable, "-c", head, *line], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()  # as `| head` does when it has seen enough
    files = {path.name for path in (tmp_path / "run" / "best.eval").iterdir()}
    assert {"evaluation.json", "scores.csv", "confusion.png"} <= files

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plots, "confusion_png", full)
    assert cli.main(line) == 1
    out, err = capsys.readouterr()
    assert "top-1" in out and "No space left" in err


def test_other_sizes_than_those_of_training_are_told(tmp_path, capsys) -> None:
    data = write_class_folders(tmp_path / "clips", {"a": 3, "b": 3}, frames=4)
    file = run_of(tmp_path / "run", data)
    told = "the network sees 37 × 37 pixels here; it was trained on 32 × 32"
    assert told in evaluate(file, data, split="all", workers=0, protocol="2x3-full").header["data_notes"]
    for protocol in ("", "2x3", "1x1-center"):
        found = evaluate(file, data, split="all", workers=0, protocol=protocol)
        assert not any("pixels here" in note for note in found.header["data_notes"])


def test_an_interval_that_says_nothing_is_not_printed(capsys) -> None:
    facts = {"checkpoint": "x", "split": "all", "data_notes": [], "protocol": "p", "precision": "32", "decoder": "d"}
    logits, labels = torch.eye(2).repeat(5, 1), torch.tensor([0, 1] * 5)
    for right in (10, 9):
        labels[-1] = right == 10
        scores = Scores(logits=logits, labels=labels.clone(), indices=torch.arange(10), failures=())
        print_evaluation(measure(scores, ("a", "b"), {**facts, "seed": 0, "data_hash": "0"}), Console())
        assert ("(bootstrap)" in capsys.readouterr().out) == (right == 9)
