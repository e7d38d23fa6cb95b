"""The mean of three splits in one command, on UCF101's layout in miniature."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch

from tests.video_tools import write_video
from vireo import cli
from vireo.checkpoint import save_checkpoint
from vireo.config import ViewConfig
from vireo.data.annotations import read_table
from vireo.errors import UsageError
from vireo.evaluate import evaluate
from vireo.model import create_model
from vireo.official_splits import splits_of

CLASSES = ("Bowling", "Diving")


@pytest.fixture(scope="module")
def ucf101(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes; in split n two of them are the test."""
    root = tmp_path_factory.mktemp("ucf101")
    (root / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(CLASSES, 1)))
    names = [f"{c}/v_{c}_g{g:02d}_c01.avi" for c in CLASSES for g in range(1, 7)]
    for i, name in enumerate(names):
        write_video(root / "UCF-101" / name, 6 + i, codec="mpeg4")
    for split in (1, 2, 3):
        test = [name for name in names if int(name.split("_g")[1][:2]) in (2 * split - 1, 2 * split)]
        train = [name for name in names if name not in test]
        (root / f"testlist0{split}.txt").write_text("".join(f"{name}\n" for name in test[: len(test) - split + 1]))
        lines = (f"{name} {CLASSES.index(name.split('/')[0]) + 1}\n" for name in train)
        (root / f"trainlist0{split}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, ucf101: Path) -> list[Path]:
    """A network for each split, which knows what it was trained on."""
    folder, found = tmp_path_factory.mktemp("runs"), []
    for split, name in enumerate(("ucf101", "ucf101-split2", "ucf101-split3"), start=1):
        torch.manual_seed(split)
        model = create_model("tsn", "resnet10t", num_classes=2, num_frames=2)
        torch.nn.init.normal_(model.classifier.weight)
        provenance = {"data_hash": read_table(f"{name}:{ucf101}").digest(), "config": {}}
        found.append(folder / f"s{split}.safetensors")
        save_checkpoint(found[-1], model, labels=CLASSES, view=ViewConfig(size=32), provenance=provenance)
    return found


def test_three_checkpoints_give_the_mean(
    ucf101: Path,
    checkpoints: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # the files' paths in one piece
    line = ["eval", *map(str, checkpoints), "--data", f"ucf101:{ucf101}", "--workers", "0", "--out", str(tmp_path)]
    assert cli.main([*line, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    alone = [
        evaluate(file, f"{name}:{ucf101}", workers=0)
        for file, name in zip(checkpoints, ("ucf101", "ucf101-split2", "ucf101-split3"), strict=True)
    ]
    assert [one["top1"] for one in said["splits"]] == [one.top1 for one in alone]
    assert [one["scored"] for one in said["splits"]] == [4, 3, 2]
    for name in ("top1", "top5", "mean_class"):
        values = [getattr(one, name) for one in alone]
        assert said["mean"][name] == pytest.approx(statistics.mean(values))
        assert said["deviation"][name] == pytest.approx(statistics.stdev(values))
    assert json.loads((tmp_path / "splits.json").read_text()) == said
    for number in (1, 2, 3):
        written = json.loads((tmp_path / f"split-{number}" / "evaluation.json").read_text())
        assert written["top1"] == said["splits"][number - 1]["top1"]

    assert cli.main(line) == 0
    shown = capsys.readouterr().out
    assert "mean of 3 splits: top-1" in shown and "s3.safetensors" in shown


def test_checkpoints_in_the_wrong_order_are_refused(
    ucf101: Path, checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = [checkpoints[1], checkpoints[0], checkpoints[2]]
    line = ["eval", *map(str, turned), "--data", f"ucf101:{ucf101}", "--workers", "0", "--out", str(tmp_path / "o")]
    assert cli.main(line) == 2
    shown = capsys.readouterr().err
    assert "s2.safetensors was trained on ucf101-split2:" in shown and "in the order of the splits" in shown
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("data", "count", "says"),
    [
        ("ucf101:/d", 2, "ucf101 has 3 splits, and these are 2 checkpoints"),
        ("ucf101-split2:/d", 3, "write ucf101:/d"),
        ("clips.csv", 2, r"2 checkpoints need as many splits, and clips.csv is one list"),
    ],
)
def test_data_that_is_no_set_of_splits(data: str, count: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        splits_of(data, count)


def test_splits_of_one_s_own() -> None:
    assert splits_of("fold{}.csv", 4) == ("fold1.csv", "fold2.csv", "fold3.csv", "fold4.csv")
    assert splits_of("hmdb51:/d", 3) == ("hmdb51:/d", "hmdb51-split2:/d", "hmdb51-split3:/d")
