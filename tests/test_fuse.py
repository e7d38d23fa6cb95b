"""Fusion of scores: against numbers worked out by hand, clips matched by name, tables that can't be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vireo import cli
from vireo.checkpoint import Checkpoint, save_checkpoint
from vireo.config import ViewConfig
from vireo.data.annotations import read_table
from vireo.data.decode import read_frames
from vireo.data.sampling import segment_indices
from vireo.data.table import ClipTable, StringColumn
from vireo.data.transforms import eval_transform
from vireo.errors import DataError, StorageError, UsageError
from vireo.evaluate import evaluate
from vireo.evaluation import write_evaluation
from vireo.fuse import default_weights, fuse_scores, fuse_tables
from vireo.model import create_model
from vireo.scores import ScoreTable, clip_names, match_clips, read_scores, write_scores

from .score_tools import CLASSES, table
from .video_tools import write_class_folders

NAN = [float("nan")] * 3


# Worked out by hand with the weights 1 and 1.5:
#   clip     truth   RGB              flow             RGB + 1.5 · flow
#   clap/a   clap    2  1    0    ✓   0  1  0          2  2.5  0
#   clap/b   clap    0  1    0        2  1  0   ✓      3  2.5  0       ✓
#   jump/a   jump    0  0.5  1        0  1  0   ✓      0  2    1       ✓
#   wave/a   wave    1  0    2.75 ✓   2  0  1          4  0    4.25    ✓
RGB = {
    "clap/a": ("clap", [2.0, 1.0, 0.0]),
    "clap/b": ("clap", [0.0, 1.0, 0.0]),
    "jump/a": ("jump", [0.0, 0.5, 1.0]),
    "wave/a": ("wave", [1.0, 0.0, 2.75]),
}
FLOW = {
    "clap/a": ("clap", [0.0, 1.0, 0.0]),
    "clap/b": ("clap", [2.0, 1.0, 0.0]),
    "jump/a": ("jump", [0.0, 1.0, 0.0]),
    "wave/a": ("wave", [2.0, 0.0, 1.0]),
}
FUSED = [[2.0, 2.5, 0.0], [3.0, 2.5, 0.0], [0.0, 2.0, 1.0], [4.0, 0.0, 4.25]]


# --- the sum --------------------------------------------------------------------------------------------------


def test_scores_are_summed_before_softmax() -> None:
    rgb, flow = table(RGB).scores, table(FLOW).scores
    assert fuse_scores([rgb, flow], (1.0, 1.5)).tolist() == FUSED
    assert fuse_scores([rgb, flow]).tolist() == (rgb + flow).tolist()  # by default all weigh the same
    assert fuse_scores([rgb]).tolist() == rgb.tolist()
    assert fuse_scores([rgb, flow, rgb], (0.5, 0, 0.25)).tolist() == (0.75 * rgb).tolist()
    # A sum of probabilities would answer otherwise: here one stream is sure of itself by a large margin.
    sure, doubtful = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert fuse_scores([sure, doubtful], (1, 2)).argmax() == 0
    assert (sure.softmax(1) + 2 * doubtful.softmax(1)).argmax() == 1


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ((1.0,), "for 2 streams; give one for each"),
        ((1.0, 1.0, 1.0), "for 2 streams"),
        ((1.0, -1.0), "0 or more"),
        ((1.0, float("nan")), "0 or more"),
        ((1.0, float("inf")), "0 or more"),
        ((0.0, 0.0), "one above 0"),
    ],
)
def test_weights_that_make_no_sense(weights: tuple[float, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fuse_scores([torch.zeros(2, 3)] * 2, weights)


def test_shapes_must_agree() -> None:
    with pytest.raises(UsageError, match=r"\(2, 3\) and \(2, 4\)"):
        fuse_scores([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(UsageError, match="no scores"):
        fuse_scores([])


@pytest.mark.parametrize(
    ("modalities", "weights", "says"),
    [
        (("rgb", "flow"), (1, 1.5), "TSN's for RGB and flow"),
        (("flow", "rgb"), (1.5, 1), "TSN's for RGB and flow"),
        (("rgb", "rgb"), (1, 1), "equal, as all saw RGB"),
        (("flow", "flow", "flow"), (1, 1, 1), "equal, as all saw flow"),
        (("rgb", "rgb", "flow"), (1, 1, 1), "equal, as there are more than one RGB and one flow stream"),
        (("rgb", ""), (1, 1), "equal, as no evaluation.json says whether s1 saw RGB or flow"),
        (("", "rgb", ""), (1, 1, 1), "equal, as no evaluation.json says whether s0 and 1 more saw RGB or flow"),
    ],
)
def test_default_weights(modalities: tuple[str, ...], weights: tuple[float, ...], says: str) -> None:
    names = [f"s{i}" for i in range(len(modalities))]
    assert default_weights(modalities, names) == (weights, says)
    tables = [replace(table(RGB if m == "rgb" else FLOW), modality=m) for m in modalities]
    fusion = fuse_tables(tables, names=names)
    assert tuple(stream.weight for stream in fusion.streams) == weights and fusion.weighting == says
    assert fusion.evaluation.clip_scores is not None
    expected = sum(w * t.scores for w, t in zip(weights, tables, strict=True))
    assert torch.equal(fusion.evaluation.clip_scores.scores, expected)
    given = fuse_tables(tables, [2.0] * len(tables))
    assert given.weighting == "as given" and {stream.weight for stream in given.streams} == {2.0}


# --- clips ----------------------------------------------------------------------------------------------------


def test_a_fusion_worked_out_by_hand() -> None:
    fusion = fuse_tables([table(RGB), table(FLOW)], (1, 1.5), ["rgb", "flow"])
    assert fusion.evaluation.clip_scores is not None
    assert fusion.evaluation.clip_scores.scores.tolist() == FUSED
    rgb, flow = fusion.streams
    assert (rgb.evaluation.top1, flow.evaluation.top1, fusion.evaluation.top1) == (0.5, 0.5, 0.75)
    # Of the classes clap, jump, wave: RGB ½, 0, 1; flow ½, 1, 0; together ½, 1, 1.
    assert rgb.evaluation.mean_class == pytest.approx(0.5)
    assert flow.evaluation.mean_class == pytest.approx(0.5)
    assert fusion.evaluation.mean_class == pytest.approx(2.5 / 3)
    assert fusion.evaluation.top5 == 1.0
    assert (rgb.clips, rgb.failed, rgb.unmatched) == (4, 0, 0)
    header = fusion.evaluation.header
    assert (header["expected"], header["scored"], header["failed"]) == (4, 4, 0)
    assert header["checkpoint"] == "1 × rgb + 1.5 × flow"


def test_clips_that_not_all_scored_are_counted() -> None:
    rgb = {**RGB, "wave/only_rgb": ("wave", [0.0, 0.0, 1.0]), "jump/a": ("jump", NAN)}
    flow = {"jump/only_flow": ("jump", [0.0, 1.0, 0.0]), **dict(reversed(FLOW.items())), "wave/bad": ("wave", NAN)}
    fusion = fuse_tables([table(rgb), table(flow)], (1, 1.5))
    first, second = fusion.streams
    assert (first.clips, first.failed, first.unmatched) == (5, 1, 1)  # only_rgb
    assert (second.clips, second.failed, second.unmatched) == (6, 1, 2)  # only_flow, and jump/a
    header = fusion.evaluation.header
    assert (header["expected"], header["scored"], header["failed"]) == (7, 3, 4)
    assert fusion.evaluation.clip_scores is not None
    assert fusion.evaluation.clip_scores.clips == ("clap/a", "clap/b", "wave/a")
    assert fusion.evaluation.clip_scores.scores.tolist() == [FUSED[0], FUSED[1], FUSED[3]]
    assert first.evaluation.top1 == pytest.approx(2 / 3)  # on these three clips


def test_three_streams_with_classes_in_other_orders() -> None:
    turned = ("wave", "clap", "jump")
    other = table({clip: (label, [s[2], s[0], s[1]]) for clip, (label, s) in FLOW.items()}, turned)
    fusion = fuse_tables([table(RGB), other, table(FLOW)], (1, 1, 0.5))
    assert fusion.evaluation.clip_scores is not None
    assert fusion.evaluation.clip_scores.scores.tolist() == FUSED
    assert fusion.evaluation.clip_scores.label_names == CLASSES
    assert [stream.evaluation.top1 for stream in fusion.streams] == [0.5, 0.5, 0.5]


def test_names_are_matched_by_their_last_part_where_that_tells_clips_apart() -> None:
    flat = {name.replace("/", "_"): row for name, row in FLOW.items()}
    nested = {f"{row[0]}/{name.replace('/', '_')}": row for name, row in RGB.items()}
    assert [r.tolist() for r in match_clips([table(nested), table(flat)])] == [[0, 1, 2, 3]] * 2
    twice = {"day1/clap/a": RGB["clap/a"], "day1/jump/a": RGB["jump/a"]}  # "a" could be either
    assert [r.tolist() for r in match_clips([table(twice), table(FLOW)])] == [[], []]
    with pytest.raises(DataError, match=r"no clip in common.*'day1/clap/a' and 'clap/a'"):
        fuse_tables([table(twice), table(FLOW)])


def test_streams_that_contradict_each_other() -> None:
    with pytest.raises(
        DataError, match=r"1 of 4 clips has another label in flow; 'jump/a' is 'jump' in rgb and 'wave' in flow"
    ):
        fuse_tables([table(RGB), table({**FLOW, "jump/a": ("wave", [0.0] * 3)})], names=["rgb", "flow"])
    with pytest.raises(
        DataError, match="stream 1 and stream 2 have different classes: 'jump' only in stream 1; 'run' only in stream 2"
    ):
        fuse_tables([table(RGB), table({"clap/a": ("clap", [0.0] * 3)}, ("clap", "run", "wave"))])


def test_one_class_is_refused() -> None:
    alone = table({"clap/a": ("clap", [1.0])}, ("clap",))
    with pytest.raises(DataError, match="rgb has one class only, 'clap'"):
        fuse_tables([alone, alone], names=["rgb", "flow"])


def test_sums_that_overflow_are_refused() -> None:
    huge = {**RGB, "jump/a": ("jump", [0.0, 2e38, -2e38])}
    assert fuse_tables([table(huge), table(FLOW)], (1, 1.5)).evaluation.top1 == 0.75
    with pytest.raises(DataError, match="scores of clip 'jump/a' are too large for float32"):
        fuse_tables([table(huge), table(huge)], (1, 1.5))
    with pytest.raises(DataError, match="too large"):
        fuse_tables([table(RGB), table(FLOW)], (1, 1e300))


def test_names_are_the_same_for_videos_and_their_flow() -> None:
    def named(*paths: str, starts: tuple[float, ...] | None = None) -> tuple[str, ...]:
        nan = np.full(len(paths), np.nan)
        first = nan if starts is None else np.array(starts)
        labels = np.zeros(len(paths), dtype=np.int64)
        return clip_names(
            ClipTable(paths=StringColumn(paths), labels=labels, label_names=("a",), starts=first, ends=nan)
        )

    assert named("/d/rgb/wave/a.v2.mp4", "/d/rgb/clap/b.AVI") == ("wave/a.v2", "clap/b")
    assert named("flow/wave/a.v2", "flow/clap/b.npy") == ("wave/a.v2", "clap/b")
    assert named("x/a.mp4") == ("a",)
    assert named("x/a.mp4", "x/a.avi", "x/b.avi") == ("a.mp4", "a.avi", "b")
    assert named("x/a.mp4", "x/a.mp4", starts=(0.5, 2)) == ("a [0.5, end) s", "a [2.0, end) s")


# --- files ----------------------------------------------------------------------------------------------------


def test_a_table_comes_back_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    classes = ("clap", 'say "a, b"', "日本\nx", "=1+1")
    scores = torch.randn(50, 4, generator=generator) * 10 ** torch.randint(-30, 30, (50, 1), generator=generator)
    scores[7] = torch.nan
    clips = tuple(f"a, {i}/\udcff{i}" for i in range(50))  # names of files need not be UTF-8
    labels = torch.randint(0, 4, (50,), generator=generator)
    written = ScoreTable(clips=clips, labels=labels, label_names=classes, scores=scores)
    for place in (write_scores(tmp_path / "scores.csv", written), tmp_path):
        found = read_scores(place)
        assert found.clips == clips and found.label_names == classes and torch.equal(found.labels, labels)
        assert torch.equal(found.scores.view(torch.int32), scores.view(torch.int32))
        assert found.read.tolist() == [i != 7 for i in range(50)]
    with pytest.raises(StorageError, match=r"gone.*could not be written"):
        write_scores(tmp_path / "gone" / "scores.csv", written)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "its first line must be clip,label,CLASS"),
        ("path,label\nx,y\n", "its first line must be clip,label,CLASS"),
        ("clip,label\n", "its first line must be"),
        ("clip,label,a,b\n", "lists no clips"),
        ("clip,label,a,a\nx,a,1,2\n", "a class occurs twice"),
        ("clip,label,a,b\nx,a,1\n", "row 2: 3 values for 4 columns"),
        ("clip,label,a,b\nx,a,1,2\ny,c,1,2\n", "row 3: label 'c' is not among"),
        ("clip,label,a,b\nx,a,1,2\nx,a,1,2\n", "row 3: clip 'x' stands in row 2 already"),
        ("clip,label,a,b\nx,a,1,wave\n", "row 2: could not convert string to float: 'wave'"),
        ("clip,label,a,b\nx,a,1,\n", "row 2: could not convert string to float: ''"),
        ("clip,label,a,b\nx,a,1,nan\n", "row 2: a score is infinite or not a number"),
        ("clip,label,a,b\nx,a,1,1e999\n", "row 2: a score is infinite or not a number"),
        ("clip,label,a,b\nx,a,1,1e300\n", "row 2: a score is infinite or not a number"),
        ("clip,label,a,b\nx,a,1,-3.5e38\n", "row 2: a score is infinite or not a number"),
        ('clip,label,a,b\nx,a,1,"2\n', "line"),
        ("clip,label,a,b\n" + "x" * 200_000, "field larger than field limit"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=str(path)) as caught:
        read_scores(path)
    assert says in str(caught.value)


def test_binary_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 20)
    with pytest.raises(DataError, match=r"x\.npz"):
        read_scores(tmp_path / "x.npz")
    with pytest.raises(UsageError, match="does not exist"):
        read_scores(tmp_path / "gone.csv")
    (tmp_path / "run").mkdir()
    with pytest.raises(UsageError, match=r"run holds no scores\.csv"):
        read_scores(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "modality"),
    [
        (b'{"modality": "flow"}', "flow"),
        (b'{"modality": "rgb", "top1": 0.5}', "rgb"),
        (b'{"modality": "rgb + flow"}', ""),
        (b'{"modality": ["rgb"]}', ""),
        (b"{}", ""),
        (b"[1]", ""),
        (b"{", ""),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_what_a_model_saw_stands_beside_its_scores(tmp_path: Path, content: bytes, modality: str) -> None:
    write_scores(tmp_path / "scores.csv", table(RGB))
    assert read_scores(tmp_path).modality == ""
    (tmp_path / "evaluation.json").write_bytes(content)
    assert read_scores(tmp_path).modality == read_scores(tmp_path / "scores.csv").modality == modality
    assert read_scores(write_scores(tmp_path / "other.csv", table(RGB))).modality == ""  # of another evaluation


def test_the_command_weighs_rgb_and_flow_as_tsn_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for modality, rows in (("rgb", RGB), ("flow", FLOW)):
        (tmp_path / modality).mkdir()
        write_scores(tmp_path / modality / "scores.csv", table(rows))
        (tmp_path / modality / "evaluation.json").write_text(json.dumps({"modality": modality}))
    rgb, flow, out = (str(tmp_path / name) for name in ("rgb", "flow", "out"))
    assert cli.main(["fuse", flow, rgb, "--out", out]) == 0
    assert "weights 1.5 : 1, TSN's for RGB and flow" in capsys.readouterr().out
    assert read_scores(out).scores.tolist() == FUSED and read_scores(out).modality == ""
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (written["modality"], written["weights"]) == ("flow + rgb", [1.5, 1.0])
    assert cli.main(["fuse", rgb, rgb, "--out", out]) == 0
    assert "weights 1 : 1, equal, as all saw RGB" in capsys.readouterr().out
    assert read_scores(out).modality == "rgb"
    assert cli.main(["fuse", rgb, flow, "--weights", "1,1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["weighting"] == "as given" and [stream["weight"] for stream in said["streams"]] == [1, 1]


# --- the command ----------------------------------------------------------------------------------------------


def test_evaluations_are_fused_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_class_folders(tmp_path / "clips", {"clap": 3, "wave": 3}, frames=8)
    (data / "wave" / "bad.mp4").write_bytes(b"not a video")
    evaluations, folders = [], []
    for frames in (2, 4):
        torch.manual_seed(frames)
        model = create_model("tsn", "resnet10t", num_classes=2, num_frames=frames)
        torch.nn.init.normal_(model.classifier.weight)
        checkpoint = Checkpoint(model=model.eval(), labels=("clap", "wave"), view=ViewConfig(size=32))
        evaluations.append(evaluate(checkpoint, read_table(data), workers=0))
        folders.append(tmp_path / f"{frames}f.eval")
        write_evaluation(evaluations[-1], folders[-1])
    tables = [read_scores(folder) for folder in folders]
    assert tables[0].clips == tables[1].clips
    assert tables[0].clips[0] == "clap/clap_0" and tables[0].read.tolist() == [True] * 3 + [False] + [True] * 3
    for found, evaluation in zip(tables, evaluations, strict=True):
        scores, labels = found.scores[found.read], found.labels[found.read]
        assert float((scores.argmax(1) == labels).float().mean()) == pytest.approx(evaluation.top1)
        assert found.modality == evaluation.header["modality"] == "rgb"

    capsys.readouterr()
    assert cli.main(["fuse", *map(str, folders), "--weights", "1,1.5", "--json", "--out", str(tmp_path / "both")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [stream["top1"] for stream in said["streams"]] == [evaluation.top1 for evaluation in evaluations]
    assert [(s["clips"], s["failed"], s["unmatched"], s["weight"]) for s in said["streams"]] == [
        (7, 1, 0, 1.0),
        (7, 1, 0, 1.5),
    ]
    assert (said["fusion"]["expected"], said["fusion"]["scored"], said["fusion"]["failed"]) == (7, 6, 1)
    fused = read_scores(tmp_path / "both")
    expected = tables[0].scores + 1.5 * tables[1].scores
    assert torch.equal(fused.scores, expected[tables[0].read])
    right = (fused.scores.argmax(1) == fused.labels).float().mean()
    assert said["fusion"]["top1"] == pytest.approx(float(right))

    assert cli.main(["fuse", *map(str, folders)]) == 0
    shown = capsys.readouterr().out
    assert "together" in shown and "1 of 7 clips left out" in shown and "before softmax" in shown


def test_the_sum_of_score_files_is_the_ensemble_of_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_class_folders(tmp_path / "clips", {"clap": 3, "wave": 4}, frames=12)
    files, models = [], []
    for frames in (4, 8):
        torch.manual_seed(frames)
        model = create_model("tsm", "resnet10t", num_classes=2, num_frames=frames).eval()
        torch.nn.init.normal_(model.classifier.weight)
        files.append(tmp_path / f"{frames}f.safetensors")
        save_checkpoint(files[-1], model, labels=("clap", "wave"), view=ViewConfig(size=32), provenance={})
        models.append(model)
    line = ["--workers", "0", "--data", str(data)]
    for file in files:
        assert cli.main(["eval", str(file), *line]) == 0
    both = tmp_path / "both"
    weights = ["--weights", "1,0.75"]
    # Every clip through both networks at once, without any file between them:
    expected = []
    for path in read_table(data).paths:
        scores = []
        for model in models:
            plan = lambda count, model=model: segment_indices(count, model.num_frames)  # noqa: E731
            clip = eval_transform(read_frames(path, plan).data, ViewConfig(size=32))
            with torch.inference_mode():
                scores.append(model(clip[None])[0])
        expected.append(scores[0] + 0.75 * scores[1])
    streams = {
        "files": [str(tmp_path / "4f.eval"), str(tmp_path / "8f.eval" / "scores.parquet")],
        "models": [*map(str, files), *line],
        "mixed": [str(files[0]), str(tmp_path / "8f.eval" / "scores.csv"), *line],
    }
    sums = {}
    for name, words in streams.items():
        assert cli.main(["fuse", *words, *weights, "--out", str(both), "--json"]) == 0, name
        sums[name] = read_scores(both).scores
        torch.testing.assert_close(sums[name], torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert torch.equal(sums["files"], sums["models"]) and torch.equal(sums["files"], sums["mixed"])
    capsys.readouterr()
    assert cli.main(["fuse", *map(str, files)]) == 2
    assert "4f.safetensors is a checkpoint of RGB; give the clips to score it on with --data" in capsys.readouterr().err


def test_probabilities_can_be_averaged() -> None:
    rgb, flow = table(RGB).scores, table(FLOW).scores
    mean = (rgb.double().softmax(1) + 1.5 * flow.double().softmax(1)) / 2.5
    fused = fuse_scores([rgb, flow], (1, 1.5), average="probabilities")
    torch.testing.assert_close(fused.double().softmax(1), mean)
    assert fused.dtype == rgb.dtype
    fusion = fuse_tables([table(RGB), table(FLOW)], (1, 1.5), average="probabilities")
    assert fusion.evaluation.header["average"] == "probabilities"
    assert fusion.evaluation.top1 == pytest.approx(float((mean.argmax(1) == table(RGB).labels).float().mean()))
    with pytest.raises(UsageError, match="average is 'median'"):
        fuse_scores([rgb, flow], average="median")


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = str(write_scores(tmp_path / "one.csv", table(RGB)))
    for words, says in [
        ([one], "two models or more"),
        ([one, str(tmp_path / "gone.csv")], "gone.csv does not exist"),
        ([one, one, "--weights", "1"], "weights are [1.0] for 2 streams"),
        ([one, one, "--weights", "1,x"], "--weights"),
    ]:
        assert cli.main(["fuse", *words]) == 2
        shown = capsys.readouterr().err
        assert says in shown and 1 <= len(shown.splitlines()) <= 2 and "Traceback" not in shown
