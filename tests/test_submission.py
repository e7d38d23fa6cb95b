"""Test sets without labels: the file that their server takes, and nothing scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.video_tools import write_video
from vireo import cli
from vireo.checkpoint import save_checkpoint
from vireo.config import ViewConfig
from vireo.data.unlabelled import read_unlabelled
from vireo.errors import DataError
from vireo.evaluate import evaluate
from vireo.model import create_model
from vireo.submission import write_submission

OFFICIAL = (
    "Turning something",
    "Approaching something",
    "Closing something",
    "Folding something",
    "Hitting",
    "Lifting",
)
LABELS = tuple(sorted(OFFICIAL))  # the model's order is another one
IDS = ("31", "4", "15", "9", "26")


def data_set(root: Path, format: str, *, clips: tuple[str, ...] = IDS) -> str:
    """A test set in its official layout, and a labelled validation part of the same clips' names + 900."""
    root.mkdir(exist_ok=True)
    if format == "ssv2":
        name, media, ending = "something-something-v2", "20bn-something-something-v2", ".webm"
        (root / f"{name}-labels.json").write_text(json.dumps({label: str(i) for i, label in enumerate(OFFICIAL)}))
        (root / f"{name}-test.json").write_text(json.dumps([{"id": one} for one in IDS]))
        (root / f"{name}-validation.json").write_text(json.dumps([{"id": "900", "template": "Turning [something]"}]))
    else:
        name, media = (
            ("something-something-v1", "20bn-something-something-v1")
            if format == "ssv1"
            else ("jester-v1", "20bn-jester-v1")
        )
        ending = ".mp4"
        (root / f"{name}-labels.csv").write_text("\n".join(OFFICIAL))
        (root / f"{name}-test.csv").write_text("\n".join(IDS) + "\n")
        (root / f"{name}-validation.csv").write_text("900;Turning something\n")
    for i, one in enumerate((*clips, "900")):
        write_video(root / media / f"{one}{ending}", 5 + 3 * i, codec="libvpx" if ending == ".webm" else "libx264")
    return f"{format}:{root}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("tsn", "resnet10t", num_classes=6, num_frames=2)
    torch.nn.init.normal_(model.classifier.weight)
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_checkpoint(path, model, labels=LABELS, view=ViewConfig(size=32), provenance={})
    return path


@pytest.mark.parametrize("format", ["ssv1", "ssv2", "jester"])
def test_the_server_s_file(format: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_set(tmp_path / "data", format)
    line = ["eval", str(checkpoint), "--data", data, "--workers", "0", "--out", str(tmp_path / "out")]
    assert cli.main([*line, "--split", "test", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["labelled"] is False and "top1" not in said and (said["scored"], said["failed"]) == (5, 0)
    assert Path(said["file"]) == tmp_path / "out" / "predictions.csv"
    # The same clips as a folder of classes, scored the usual way.
    suffix = ".webm" if format == "ssv2" else ".mp4"
    media = next((tmp_path / "data").glob("20bn*"))
    rows = "".join(f"{media / one}{suffix},{OFFICIAL[0]}\n" for one in IDS)
    (tmp_path / "same.csv").write_text("path,label\n" + rows)
    scores = evaluate(checkpoint, tmp_path / "same.csv", workers=0).clip_scores
    assert scores is not None
    expected = []
    for one, row in zip(IDS, scores.scores, strict=True):
        names = [LABELS[i] for i in row.argsort(descending=True).tolist()]
        answer = [str(OFFICIAL.index(name)) for name in names[:5]] if format == "ssv2" else names[:1]
        expected.append(";".join([one, *answer]))
    assert Path(said["file"]).read_text() == "\n".join(expected) + "\n"
    assert not (tmp_path / "out" / "evaluation.json").exists()
    about = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert about["protocol"].startswith("1x1-center") and about["cost"]["macs"] > 0

    assert cli.main([*line, "--split", "test"]) == 0
    assert "no labels, so nothing is scored" in capsys.readouterr().out
    assert cli.main([*line, "--json"]) == 0  # the validation part, as ever
    assert json.loads(capsys.readouterr().out)["split"] == "val"


def test_clips_that_cannot_be_read_have_no_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_set(tmp_path / "data", "jester", clips=IDS[:-1])  # one is missing
    (tmp_path / "data" / "20bn-jester-v1" / "4.mp4").write_bytes(b"broken")
    line = ["eval", str(checkpoint), "--data", data, "--workers", "0", "--out", str(tmp_path / "out")]
    assert cli.main([*line, "--split", "test"]) == 0
    shown = capsys.readouterr().out
    assert "5 expected, 3 scored, 2 failed" in shown and "2 clips without a line in it" in shown and "26" in shown
    assert "on the test part, without labels" in shown
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert [line.partition(";")[0] for line in lines] == ["31", "15", "9"]
    assert (tmp_path / "out" / "predictions-failed.csv").read_text().count("\n") == 3
    assert not (tmp_path / "out" / "failed.csv").exists()  # that of an evaluation in this folder
    assert cli.main([*line, "--split", "test", "--on-error", "fail"]) == 1


def test_models_vote_on_clips_without_labels(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = data_set(tmp_path / "data", "ssv2"), tmp_path / "both"
    torch.manual_seed(1)
    model = create_model("tsm", "resnet10t", num_classes=6, num_frames=4)
    torch.nn.init.normal_(model.classifier.weight)
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, model, labels=OFFICIAL, view=ViewConfig(size=32), provenance={})  # in another order
    line = ["fuse", str(checkpoint), str(other), "--data", data, "--split", "test", "--workers", "0"]
    assert cli.main([*line, "--weights", "1,0.5", "--out", str(out)]) == 0
    assert f"1 × {checkpoint} + 0.5 × {other}" in capsys.readouterr().out.replace("\n", "")
    # The same clips as a list with labels, each model on its own, added up by hand.
    media = tmp_path / "data" / "20bn-something-something-v2"
    (tmp_path / "same.csv").write_text("path,label\n" + "".join(f"{media / one}.webm,{OFFICIAL[0]}\n" for one in IDS))
    tables = [evaluate(file, tmp_path / "same.csv", workers=0).clip_scores for file in (checkpoint, other)]
    assert tables[0] is not None and tables[1] is not None
    first, second = ({name: of.scores[:, i] for i, name in enumerate(of.label_names)} for of in tables)
    expected = []
    for i, one in enumerate(IDS):
        total = {name: float(first[name][i] + 0.5 * second[name][i]) for name in OFFICIAL}
        best = sorted(OFFICIAL, key=lambda name: -total[name])[:5]
        expected.append(";".join([one, *(str(OFFICIAL.index(name)) for name in best)]))
    assert (out / "predictions.csv").read_text() == "\n".join(expected) + "\n"
    about = json.loads((out / "predictions.json").read_text())
    assert (about["weights"], about["expected"], about["scored"], about["failed"]) == ([1.0, 0.5], 5, 5, 0)

    (media / "4.webm").write_bytes(b"broken")
    assert cli.main([*line, "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["scored"], said["failed"], len(said["failures"])) == (4, 1, 1)
    lines = (out / "predictions.csv").read_text().splitlines()
    assert [row.partition(";")[0] for row in lines] == [one for one in IDS if one != "4"]

    assert cli.main(line) == 2
    assert "say with --out where the answers, predictions.csv, go" in capsys.readouterr().err
    (tmp_path / "s.csv").write_text("clip,label," + ",".join(LABELS) + "\nx,Hitting,1,2,3,4,5,6\n")
    assert cli.main(["fuse", str(tmp_path / "s.csv"), *line[2:], "--out", str(out)]) == 2
    assert "s.csv holds scores; where clips have no labels" in capsys.readouterr().err
    for given in (out, out / "predictions.csv"):
        assert cli.main(["fuse", str(given), str(given)]) == 2
        assert "holds answers for a server, not scores" in capsys.readouterr().err


def test_a_labelled_list_is_scored_as_ever(checkpoint: Path, tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", "ssv1")
    assert read_unlabelled(data, label_names=LABELS) is not None
    answers = "".join(f"{one};Hitting\n" for one in IDS)
    (tmp_path / "data" / "something-something-v1-test-answers.csv").write_text(answers)
    assert read_unlabelled(data, label_names=LABELS) is None
    assert evaluate(checkpoint, data, split="test", workers=0).header["scored"] == 5
    assert read_unlabelled(str(tmp_path), label_names=LABELS) is None  # no format
    assert read_unlabelled(f"ucf101:{tmp_path}", label_names=LABELS) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("31\n../etc\n", "'../etc' is no clip's id"),
        ("31\n4\n31\n", "clip 31 occurs twice"),
        ("", "lists no clips"),
        ("77\n78\n", "none of the 2 clips of something-something-v1-test.csv is there"),
    ],
)
def test_lists_that_cannot_be_used(text: str, says: str, tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", "ssv1", clips=("31",))
    (tmp_path / "data" / "something-something-v1-test.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_unlabelled(data, label_names=LABELS)
    assert says in str(caught.value)


def test_other_classes_than_the_model_s_are_refused(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", "ssv2", clips=("31",))
    with pytest.raises(DataError, match="'Lifting', 'Wagging' in one of them only"):
        read_unlabelled(data, label_names=(*LABELS[:-2], "Turning something", "Wagging"))


def test_answers_worked_out_by_hand(tmp_path: Path) -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [float("nan")] * 3, [0.5, 0.5, 0.0]])
    given = {"official": ("c", "b", "a"), "label_names": ("a", "b", "c")}
    path = write_submission(tmp_path / "p.csv", ["7", "8", "9"], scores, numbers=True, **given)
    assert path.read_text() == "7;1;0;2\n9;2;1;0\n"
    assert write_submission(path, ["7", "8", "9"], scores, numbers=False, **given).read_text() == "7;b\n9;a\n"
