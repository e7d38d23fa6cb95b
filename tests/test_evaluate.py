"""Scores: agreement with scikit-learn, honest counting, and no dependence on how clips are batched."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from tests.video_tools import write_class_folders
from vireo.checkpoint import Checkpoint
from vireo.config import ViewConfig
from vireo.data.annotations import read_table
from vireo.data.dataset import Batch, Failure
from vireo.data.splits import split_table
from vireo.data.table import ClipTable, StringColumn
from vireo.devices import choose_device
from vireo.errors import DataError, UsageError
from vireo.evaluate import evaluate
from vireo.evaluation import Scores, find_slowest, measure, write_evaluation
from vireo.model import create_model
from vireo.scoring import choose_split, score_clips
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
