"""Comparing two models: against numbers by hand and by SciPy, clips matched by name, tables that do not fit."""

from __future__ import annotations

import csv
import json
import math
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from tests.score_tools import CLASSES, table
from tests.video_tools import write_class_folders
from vireo import cli
from vireo.compare import (
    ClassChange,
    Pair,
    align,
    choose_changes,
    choose_examples,
    compare,
    compare_command,
    find_clips,
    mcnemar,
    read_facts,
)
from vireo.data.annotations import read_table
from vireo.errors import DataError, StorageError, UsageError
from vireo.plots import Change, changes_png
from vireo.scores import ScoreTable, can_write_parquet, write_parquet, write_scores
from vireo.strips import Strip, clip_frames, strips_png

NAN = float("nan")


def reordered(given: ScoreTable, classes: tuple[str, ...]) -> ScoreTable:
    """The same table with its classes in another order."""
    order = [given.label_names.index(name) for name in classes]
    labels = torch.tensor([order.index(int(label)) for label in given.labels])
    return replace(given, label_names=classes, labels=labels, scores=given.scores[:, order])


# By hand:    truth   A          B
#   clap/a    clap    clap ✓     clap ✓
#   clap/b    clap    jump       clap ✓
#   clap/c    clap    wave       clap ✓
#   jump/a    jump    jump ✓     wave
#   wave/a    wave    clap       jump
A = {
    "clap/a": ("clap", [2.0, 1.0, 0.0]),
    "clap/b": ("clap", [0.0, 1.0, 0.5]),
    "clap/c": ("clap", [0.0, 0.5, 1.0]),
    "jump/a": ("jump", [0.0, 3.0, 1.0]),
    "wave/a": ("wave", [2.0, 0.0, 1.0]),
}
B = {
    "clap/a": ("clap", [1.0, 0.0, 0.0]),
    "clap/b": ("clap", [4.0, 1.0, 0.0]),
    "clap/c": ("clap", [2.0, 1.0, 0.0]),
    "jump/a": ("jump", [0.0, 1.0, 1.5]),
    "wave/a": ("wave", [0.0, 2.5, 1.0]),
}


def random_tables(seed: int, clips: int = 300, classes: int = 7) -> tuple[ScoreTable, ScoreTable]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (clips,), generator=generator)
    truth = torch.nn.functional.one_hot(labels, classes)
    shared = torch.randn(clips, classes, generator=generator)
    both = [shared + 0.7 * torch.randn(clips, classes, generator=generator) + w * truth for w in (1.0, 1.5)]
    names = tuple(f"class {i}" for i in range(classes))
    called = tuple(f"c/{i}" for i in range(clips))
    a, b = (ScoreTable(clips=called, labels=labels, label_names=names, scores=scores) for scores in both)
    return a, b


# --- the test -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("only_a", [0, 1, 3, 9, 12, 24])
@pytest.mark.parametrize("only_b", [0, 1, 2, 12, 13, 40, 300])
def test_mcnemar_is_what_scipy_says(only_a: int, only_b: int) -> None:
    found, count = mcnemar(only_a, only_b), only_a + only_b
    if count < 25:
        expected = stats.binomtest(only_a, count, 0.5).pvalue if count else 1.0
        assert found.statistic is None
    else:
        corrected = max(0, abs(only_a - only_b) - 1) ** 2 / count
        assert found.statistic == pytest.approx(corrected)
        expected = stats.chi2.sf(corrected, df=1)
    assert found.p == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert mcnemar(only_b, only_a).p == found.p


def test_by_hand() -> None:
    assert mcnemar(1, 5).p == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(10, 30).statistic == pytest.approx(19**2 / 40)  # 9.025: between 0.1 % (10.83) and 1 % (6.63)
    assert 0.001 < mcnemar(10, 30).p < 0.01
    assert mcnemar(20, 20).p == 1


def test_chance_is_seldom_called_more() -> None:
    # Of equally good models every clip on which they differ is a coin: over all that may come out, the test may be
    # wrong in one case of twenty, no more; and with many clips not much less.
    for count in range(1, 25):
        wrong = sum(math.comb(count, k) for k in range(count + 1) if mcnemar(k, count - k).more_than_chance)
        assert wrong / 2**count <= 0.05
    shares = stats.binom.pmf(range(401), 400, 0.5)
    wrong = sum(share for k, share in enumerate(shares) if mcnemar(k, 400 - k).more_than_chance)
    assert 0.03 < wrong <= 0.05


# --- the comparison -------------------------------------------------------------------------------------------


def test_a_comparison_worked_out_by_hand() -> None:
    found = compare(table(A), table(B))
    assert (found.a.correct, found.b.correct) == (2, 3)
    assert (found.both, found.test.only_a, found.test.only_b, found.neither) == (1, 1, 2, 1)
    assert found.difference == pytest.approx(0.2)
    assert found.a.mean_class == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert found.classes == (ClassChange("clap", 3, 1, 3), ClassChange("jump", 1, 1, 0), ClassChange("wave", 1, 0, 0))
    assert [change.points for change in found.classes] == pytest.approx([200 / 3, -100, 0])
    assert found.verdict().startswith(
        "The difference, +20.0 points, may be chance (McNemar's exact test on the 3 clips"
    )
    assert found.notes == ()


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_agree_with_scikit_learn(seed: int) -> None:
    a, b = random_tables(seed)
    found, truth = compare(a, b), a.labels.numpy()
    for model, scores in ((found.a, a.scores.numpy()), (found.b, b.scores.numpy())):
        assert model.top1 == pytest.approx(accuracy_score(truth, scores.argmax(1)))
        assert model.top5 == pytest.approx(top_k_accuracy_score(truth, scores, k=5, labels=range(7)))
        assert model.mean_class == pytest.approx(balanced_accuracy_score(truth, scores.argmax(1)))
    for i, change in enumerate(found.classes):
        of = truth == i
        points = 100 * (accuracy_score(truth[of], b.scores.numpy().argmax(1)[of])) - 100 * (
            accuracy_score(truth[of], a.scores.numpy().argmax(1)[of])
        )
        assert change.points == pytest.approx(points)


def test_the_interval_draws_both_models_answers_together() -> None:
    a, b = random_tables(0)
    found = compare(a, b)
    right = [(t.scores.argmax(1) == t.labels).numpy() for t in (a, b)]
    rng = np.random.default_rng(7)
    drawn = [rng.integers(0, 300, 300) for _ in range(4000)]
    paired = np.percentile([right[1][d].mean() - right[0][d].mean() for d in drawn], [2.5, 97.5])
    assert found.interval == pytest.approx(paired, abs=0.012)
    others = [rng.integers(0, 300, 300) for _ in range(4000)]
    apart = [right[1][d].mean() - right[0][e].mean() for d, e in zip(drawn, others, strict=True)]
    assert np.diff(np.percentile(apart, [2.5, 97.5])) > 1.2 * np.diff(found.interval)


def test_a_clear_difference_and_none() -> None:
    a, _ = random_tables(1)
    perfect = replace(a, scores=10.0 * torch.nn.functional.one_hot(a.labels, 7))
    better = compare(a, perfect)
    assert better.verdict().startswith("B is better by ") and "more than chance (McNemar's test" in better.verdict()
    assert compare(perfect, a).verdict().startswith("A is better by ")
    assert compare(perfect, a).verdict()[1:] == better.verdict()[1:]  # the interval is that of the better one's lead
    assert compare(perfect, a).difference == -better.difference
    assert compare(a, a).verdict() == "Both are right on the same clips: there is no difference."
    assert compare(a, a).interval == (0, 0) and compare(a, a).test.p == 1


def test_neither_the_order_of_labels_nor_of_clips_matters() -> None:
    straight = compare(table(A), table(B))
    turned = reordered(table(dict(reversed(B.items()))), ("wave", "clap", "jump"))
    found = compare(table(A), turned)
    assert found.as_dict() == straight.as_dict()
    assert torch.equal(found.pair.scores[1], straight.pair.scores[1])


def test_clips_that_one_of_them_lacks_are_left_out_and_said() -> None:
    a = table({**A, "clap/z": ("clap", [1.0, 0.0, 0.0])})
    b = table({**B, "jump/a": ("jump", [NAN] * 3), "wave/z": ("wave", [0.0, 0.0, 1.0])})
    found = compare(a, b, ("runs/a", "runs/b"))
    assert found.pair.clips == ("clap/a", "clap/b", "clap/c", "wave/a")
    assert (found.a.clips, found.a.failed, found.a.unmatched) == (6, 0, 2)
    assert (found.b.clips, found.b.failed, found.b.unmatched) == (6, 1, 1)
    assert found.notes == (
        "2 of A's 6 clips are left out: not scored by both",
        "2 of B's 6 clips are left out: not scored by both",
    )
    assert next(change for change in found.classes if change.label == "jump").as_dict() == {
        **{"label": "jump", "clips": 0, "correct_a": 0, "correct_b": 0},
        **{"accuracy_a": None, "accuracy_b": None, "points": None},
    }


def test_tables_that_do_not_fit() -> None:
    other = table({"clap/a": ("clap", [1.0, 0.0, 0.0, 0.0])}, ("clap", "jump", "run", "sit"))
    with pytest.raises(DataError, match=r"different classes: 'wave' only in x; 'run', 'sit' only in y"):
        align(table(A), other, ("x", "y"))
    strange = table({f"other/{name[-1]}{i}": row for i, (name, row) in enumerate(B.items())})
    with pytest.raises(DataError, match=r"no clip in common; the first clips are 'clap/a' and 'other/a0'"):
        align(table(A), strange)
    wrong = table({**B, "clap/b": ("wave", [0.0, 0.0, 1.0]), "wave/a": ("clap", [0.0, 0.0, 1.0])})
    with pytest.raises(
        DataError, match=r"2 of 5 clips have other labels in y; 'clap/b' is 'clap' in x and 'wave' in y"
    ):
        align(table(A), wrong, ("x", "y"))
    one = ScoreTable(clips=("a",), labels=torch.tensor([0]), label_names=("a",), scores=torch.ones(1, 1))
    with pytest.raises(DataError, match="one class only"):
        align(one, one)


# --- what is shown --------------------------------------------------------------------------------------------


def test_classes_that_change_by_as_many_points_as_asked_for() -> None:
    classes = [
        ClassChange("by six", 50, 10, 13),
        ClassChange("by less", 51, 10, 13),
        ClassChange("not at all", 50, 10, 10),
        ClassChange("empty", 0, 0, 0),
        ClassChange("down by six", 50, 13, 10),
        ClassChange("down by ten", 10, 5, 4),
        ClassChange("down by ten of many", 100, 50, 40),
        ClassChange("up by half", 2, 0, 1),
    ]
    gains, losses = choose_changes(classes, min_points=6)
    assert [c.label for c in gains] == ["up by half", "by six"]
    assert [c.label for c in losses] == ["down by ten of many", "down by ten", "down by six"]
    gains, losses = choose_changes(classes, most=1)
    assert [c.label for c in (*gains, *losses)] == ["up by half", "down by ten of many"]
    gains, _ = choose_changes(classes)
    assert [c.label for c in gains] == ["up by half", "by six", "by less"]


def test_examples_are_the_clearest_of_different_classes() -> None:
    #  clip  truth  A's probability of the truth   B's
    #  0     0      0.1                            0.9    B only, the clearest
    #  1     0      0.2                            0.9    B only, of the same class
    #  2     1      0.4                            0.5    B only, not clear
    #  3     1      0.8                            0.3    A only
    #  4     2      0.1                            0.2    neither, A 90 % sure, B 80 %
    #  5     2      0.05                           0.45   neither, A 95 % sure, B 55 %
    chances = [(0.1, 0.9), (0.2, 0.9), (0.4, 0.5), (0.8, 0.3), (0.1, 0.2), (0.05, 0.45)]
    labels = [0, 0, 1, 1, 2, 2]
    both = torch.zeros(2, 6, 3)
    for i, (label, pair) in enumerate(zip(labels, chances, strict=True)):
        for model, p in enumerate(pair):
            others = [1 - p, 1e-9] if p < 0.5 else [(1 - p) / 2] * 2
            row = [*others[:label], p, *others[label:]]
            both[model, i] = torch.tensor(row).log()
    pair = Pair(clips=tuple("abcdef"), label_names=CLASSES, labels=torch.tensor(labels), scores=(both[0], both[1]))
    assert choose_examples(pair, 2) == {"only_a": [3], "only_b": [0, 2], "neither": [4, 5]}
    assert choose_examples(pair, 3)["only_b"] == [0, 2, 1]
    assert choose_examples(pair, 0) == {"only_a": [], "only_b": [], "neither": []}


def test_clips_are_found_in_the_data_by_name(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_class_folders(tmp_path / split, {"clap": 2, "wave": 1}, frames=2)
    data = read_table(tmp_path)
    # Names as they are where the split alone was scored; the same ones are in both splits.
    pair = Pair(
        clips=("clap/clap_0", "clap/clap_1", "wave/wave_0", "wave/gone"),
        label_names=("wave", "clap"),
        labels=torch.tensor([1, 0, 0, 0]),  # clap_1 is a wave here: not the same clip then
        scores=(torch.zeros(4, 2), torch.zeros(4, 2)),
    )
    found, clips = find_clips(pair, [3, 2, 1, 0], data)
    assert found == [2, 0]
    assert [Path(path).relative_to(tmp_path).as_posix() for path in clips.paths] == [
        "train/wave/wave_0.mp4",
        "train/clap/clap_0.mp4",
    ]
    whole = replace(pair, clips=("val/clap/clap_0", "val/clap/clap_1", "val/wave/wave_0", "val/wave/gone"))
    assert [Path(path).name for path in find_clips(whole, [0], data)[1].paths] == ["clap_0.mp4"]
    assert find_clips(whole, [0], data)[1].paths[0].startswith(str(tmp_path / "val"))


def size_of(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_pictures_take_any_names_and_many_classes() -> None:
    odd = ["$x$ [dim]", "a" * 500, "手を振る", "line\nbreak", "wave"]
    bars = [Change(odd[i % 5], 0.5, 0.5 + (1 if i % 2 else -1) * i / 400, i) for i in range(1, 90)]
    width, height = size_of(changes_png(bars, "title", ("$a$", "b" * 300), "note"))
    assert 800 < width < 2000 and 2500 < height < 5000
    frames = np.zeros((4, 90, 160, 3), np.uint8)
    strips = [Strip(title=name, about=name, frames=frames, heading=name) for name in odd]
    low, high = (size_of(strips_png("title", strips[:n], notes=["note"]))[1] for n in (1, 5))
    assert low * 3 < high
    size_of(strips_png("$a$", [Strip(title="gone", frames=None)]))


def test_a_clip_that_can_not_be_read_has_no_frames(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path, {"a": 2, "b": 1}, frames=6)
    (data / "a" / "a_1.mp4").write_bytes(b"no video")
    found = clip_frames(read_table(data), workers=0, frames=3)
    assert [None if of is None else of.shape for of in found] == [(3, 144, 192, 3), None, (3, 144, 192, 3)]


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), {"clap": 3, "jump": 1, "wave": 1}, frames=4)


def named(rows: dict[str, tuple[str, list[float]]]) -> ScoreTable:
    """The table above with the names of the fixture's clips."""
    numbers = {"a": 0, "b": 1, "c": 2}
    return table({f"{label}/{label}_{numbers[clip[-1]]}": (label, s) for clip, (label, s) in rows.items()})


@pytest.fixture
def evaluations(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders as `vireo eval` writes them."""
    for name, rows, about in (("a.eval", A, "1x1-center"), ("b.eval", B, "10x3-crop")):
        (tmp_path / name).mkdir()
        write_scores(tmp_path / name / "scores.csv", named(rows))
        stated = {"checkpoint": f"net of {name}", "protocol": about, "data_hash": "0f", "modality": "rgb", "top1": 0.5}
        (tmp_path / name / "evaluation.json").write_text(json.dumps(stated), encoding="utf-8")
    return tmp_path / "a.eval", tmp_path / "b.eval"


def test_the_command(
    evaluations: tuple[Path, Path], clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = map(str, evaluations)
    out = tmp_path / "new" / "out"
    args = ["compare", a, b, "--out", str(out), "--data", str(clips), "--workers", "0"]
    assert cli.main([*args, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert (told["a"]["top1"], told["b"]["top1"], told["clips"]) == (0.4, 0.6, 5)
    assert told["a"]["checkpoint"] == "net of a.eval"
    assert told["right"] == {"both": 1, "only_a": 1, "only_b": 2, "neither": 1}
    assert told["mcnemar"] == {"p": 1.0, "statistic": None, "exact": True, "more_than_chance": False}
    assert told["notes"] == ["the protocols differ: 1x1-center; 10x3-crop"]
    assert [(e["kind"], e["clip"]) for e in told["examples"]] == [
        ("only_a", "jump/jump_0"),
        ("only_b", "clap/clap_1"),
        ("only_b", "clap/clap_2"),
        ("neither", "wave/wave_0"),
    ]
    first = told["examples"][0]
    assert [answer["label"] for answer in first["a"]] == ["jump", "wave", "clap"]
    assert first["a"][0]["probability"] == pytest.approx(math.exp(3) / (math.exp(3) + math.exp(1) + 1))
    with (out / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["clips"], row["correct_b"]) for row in rows] == [
        ("clap", "3", "3"),
        ("jump", "1", "0"),
        ("wave", "1", "0"),
    ]
    assert size_of((out / "gains.png").read_bytes())[0] > 600
    assert size_of((out / "examples.png").read_bytes())[1] > 600
    # In words; and pictures that this comparison lacks go.
    assert cli.main(["compare", a, a, "--out", str(out)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "there is no difference" in words and "no examples.png: give the clips with --data" in words
    assert sorted(path.name for path in out.iterdir()) == ["classes.csv", "compare.json"]


def test_the_command_finds_the_clips_where_the_evaluation_says(
    evaluations: tuple[Path, Path], clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = evaluations
    stated = json.loads((b / "evaluation.json").read_text(encoding="utf-8"))
    for place, drawn in ((str(clips), True), (str(tmp_path / "gone"), False), (str(a), False)):
        (b / "evaluation.json").write_text(json.dumps({**stated, "data": place}), encoding="utf-8")
        assert compare_command(a, b, out=tmp_path / "out", workers=0) == 0
        assert (tmp_path / "out" / "examples.png").exists() == drawn
    other = write_class_folders(tmp_path / "other", {"clap": 1, "run": 1}, frames=2)
    (other / "clap" / "clap_0.mp4").rename(other / "clap" / "x.mp4")
    assert compare_command(a, b, data=str(other), out=tmp_path / "out", workers=0) == 0
    assert "none of the clips is in the data" in capsys.readouterr().out
    broken = tmp_path / "broken"
    shutil.copytree(clips, broken)
    for video in broken.rglob("*.mp4"):
        video.write_bytes(b"no video")
    assert compare_command(a, b, data=str(broken), out=tmp_path / "out", workers=0) == 0
    assert "none of the clips can be read" in capsys.readouterr().out


def test_without_out_nothing_is_written(evaluations: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    a, b = evaluations
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["compare", str(a / "scores.csv"), str(b), "--min-points", "6"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    words = " ".join(capsys.readouterr().out.split())
    assert "of 5 clips in common: both right 1, A alone 1, B alone 2, both wrong 1" in words
    assert "clap +66.7 33.3 % 100.0 % 3" in words and "jump −100.0 100.0 % 0.0 % 1" in words


@pytest.mark.skipif(not can_write_parquet(), reason="pyarrow is not installed")
def test_parquet_is_as_good_as_csv(evaluations: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = evaluations
    write_parquet(b / "scores.parquet", named(B))
    assert compare_command(a, b, json=True) == 0
    plain = json.loads(capsys.readouterr().out)
    (b / "scores.csv").unlink()
    for place in (b, b / "scores.parquet"):
        assert compare_command(a, place, json=True) == 0
        told = json.loads(capsys.readouterr().out)
        assert {**told, "b": {**told["b"], "scores": ""}} == {**plain, "b": {**plain["b"], "scores": ""}}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"min_points": -1}, "min_points is -1"),
        ({"min_points": NAN}, "min_points is nan"),
        ({"most": 0}, "most is 0"),
        ({"examples": -1}, "examples -1"),
        ({"data": "clips"}, "say with --out"),
    ],
)
def test_arguments_that_make_no_sense(evaluations: tuple[Path, Path], given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compare_command(*evaluations, **given)


def test_nothing_is_written_where_something_is_wrong(evaluations: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = evaluations
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="gone does not exist"):
        compare_command(a, b, out=out, data=str(tmp_path / "gone"))
    write_scores(b / "scores.csv", table({"run/a": ("run", [1.0, 0.0])}, ("run", "sit")))
    with pytest.raises(DataError, match="different classes"):
        compare_command(a, b, out=out)
    (a / "scores.csv").write_text("clip,label,x\n", encoding="utf-8")
    with pytest.raises(DataError, match="lists no clips"):
        compare_command(a, b, out=out)
    assert not out.exists()
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="out is a file"):
        compare_command(a, b, out=out)
    assert cli.main(["compare", str(a), str(tmp_path / "gone")]) == 2


def test_a_folder_that_can_not_be_written(evaluations: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="could not be written"):
        compare_command(*evaluations, out=tmp_path / "file" / "out")


def test_facts_beside_scores_are_texts_or_none(evaluations: tuple[Path, Path]) -> None:
    a, _ = evaluations
    assert read_facts(a) == {
        **{"checkpoint": "net of a.eval", "protocol": "1x1-center", "data_hash": "0f", "modality": "rgb"}
    }
    assert read_facts(a / "scores.csv") == read_facts(a) and read_facts(a / "mine.csv") == {}
    for text in (b"[1]", b"\xff", b"{", b"[" * 100_000, b"null"):
        (a / "evaluation.json").write_bytes(text)
        assert read_facts(a) == {}
    (a / "evaluation.json").unlink()
    assert read_facts(a) == {}
