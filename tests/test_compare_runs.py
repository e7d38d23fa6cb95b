"""Runs side by side: figures against plain arithmetic, hostile and broken folders, what a person sees."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from safetensors.numpy import save_file

from vireo import cli
from vireo.compare_runs import Comparison, compare, freeze, group_name, in_words, print_comparison
from vireo.config import TrainConfig, to_dict
from vireo.errors import DataError, UsageError
from vireo.plots import COLOURS, comparison_png, run_png
from vireo.run_files import find_runs, read_metrics, read_run, read_settings, spread

NAN = math.nan


def make_run(
    path: Path,
    tops: Sequence[float] = (0.5, 0.75),
    *,
    data_hash: str = "a" * 16,
    val: Sequence[str] = ("x.mp4",),
    **changes: Any,
) -> Path:
    """A run's folder as train leaves it, without weights; nan in `tops`: an epoch without validation."""
    path.mkdir(parents=True)
    settings = {"data": "clips", "out": str(path), "epochs": len(tops), **changes}
    (path / "config.yaml").write_text(yaml.safe_dump(to_dict(TrainConfig(**settings)), sort_keys=False))
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "lr", "loss", "train_top1", "top1", "mean_class", "seconds"])
        for epoch, top1 in enumerate(tops, 1):
            shown = "" if math.isnan(top1) else top1
            writer.writerow([epoch, 0.01, 2 / epoch, 0.4, shown, shown, 30.0])
    with (path / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "group", "start", "end", "frames"])
        writer.writerows(["/data/a/t.mp4", "a", "train", "", "", "", ""] for _ in range(3))
        writer.writerows([f"/data/b/{name}", "b", "val", "", "", "", ""] for name in val)
    meta = {"vireo": json.dumps({"provenance": {"data_hash": data_hash}})}
    save_file({"w": np.zeros(2, np.float32)}, path / "last.safetensors", metadata=meta)
    return path


def shown(comparison: Comparison, width: int) -> list[str]:
    """What the terminal shows."""
    console = Console(file=io.StringIO(), width=width)
    print_comparison(comparison, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


# --- one run ----------------------------------------------------------------------------------------


def test_what_a_run_says(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", (0.25, 0.75, NAN, 0.75, 0.5), epochs=6, val=("x", "y")))
    assert (run.epochs, run.planned, run.best, run.last, run.minutes) == (5, 6, (2, 0.75), 0.5, 2.5)
    assert (run.clips, run.data_hash, run.state) == ({"train": 3, "val": 2}, "a" * 16, "unfinished")
    assert run.settings["lr"] == TrainConfig(data="d", out="o").lr


def test_patience_ends_a_run_and_without_it_epochs_are_missing(tmp_path: Path) -> None:
    tops = (0.5, 0.75, 0.7, 0.75)  # two epochs without a better one
    assert read_run(make_run(tmp_path / "a", tops, epochs=9, patience=2)).finished
    assert not read_run(make_run(tmp_path / "b", tops, epochs=9, patience=3)).finished
    assert not read_run(make_run(tmp_path / "c", tops, epochs=9)).finished
    assert read_run(make_run(tmp_path / "d", tops)).finished


def test_settings_that_a_file_leaves_out_have_their_defaults(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text("{data: d, out: o, epochs: 2}")
    settings, defaults = read_settings(run), to_dict(TrainConfig(data="d", out="o", epochs=2))
    assert settings == defaults


BOMB = ["a: &a [1,1,1,1,1,1,1,1,1]"]
BOMB += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
SETTINGS = {
    "cut": "a: [1, 2",
    "a list": "- 1\n- 2",
    "code": "!!python/object/apply:os.system ['touch ran']",
    "text": "epochs: many",
    "infinite": "epochs: 1e400",
    "bool": "epochs: true",
    "zero": "epochs: 0",
    "negative": "patience: -1",
    "numbers": "1: 2",
    "nul": "\x00",
    "deep": "[" * 5000,
    "bomb": "\n".join(BOMB),
    "endless": "a: &a [*a]",
    "long": "x: " + "y" * (1 << 18),
}


@pytest.mark.parametrize("text", SETTINGS.values(), ids=SETTINGS)
def test_hostile_settings_are_a_broken_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "bad")
    good = make_run(tmp_path / "runs" / "good")
    (run / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=r"config\.yaml: "):
        read_settings(run)
    comparison = compare([tmp_path / "runs"])
    assert [r.path for r in comparison.runs] == [good, run] and comparison.runs[1].state == "broken"
    assert any("bad: " in warning for warning in comparison.warnings)
    assert not (tmp_path / "ran").exists()
    assert max(map(len, shown(comparison, 80))) <= 80


@pytest.mark.parametrize(
    "text",
    [
        "epoch,top1\n1,0.5,7,8\n",
        "epoch,top1\nnan,0.5\n",
        "epoch,top1\n1e300,0.5\n",
        "epoch,top1\n1,7\n",
        "epoch,top1\n1.5,0.5\n",
        "top1\n0.5\n",
        "epoch,top1\none,0.5\n",
        'epoch,top1\n"' + "x" * 200_000 + '",0.5\n',
        "epoch,top1\n" + "1,0.5\n" * 3_000_000,
    ],
    ids=lambda text: f"{text[:20]!r}",
)
def test_a_hostile_log_is_a_broken_run(text: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").write_text(text)
    with pytest.raises(DataError, match=r"metrics\.csv"):
        read_metrics(run)
    assert read_run(run).state == "broken"


def test_a_half_written_row_is_an_epoch_without_validation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.csv").open("a") as file:
        file.write("3,0.01,0.5")
    rows = read_metrics(run)
    assert rows[2]["loss"] == 0.5 and math.isnan(rows[2]["top1"])


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "binary"])
def test_what_is_no_file_is_not_waited_for(name: str, kind: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "folder":
        (run / name).mkdir()
    else:
        (run / name).write_bytes(b"\xff\xfe\xff")
    assert read_run(run).state == "broken"


def test_damaged_checkpoints_and_lists_leave_their_facts_empty(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "last.safetensors").write_bytes(b"\xff" * 100)
    (run / "clips.csv").write_text("path,label\nx,y\n")
    record = read_run(run)
    assert (record.data_hash, record.clips, record.val_hash, record.state) == ("", {}, "", "finished")
    meta = {"vireo": json.dumps({"data_hash": "b" * 16})}  # as in a state
    save_file({"w": np.zeros(1)}, run / "resume.safetensors", metadata=meta)
    assert read_run(run).data_hash == "b" * 16
    meta = {"vireo": json.dumps({"data_hash": "<script>"})}
    save_file({"w": np.zeros(1)}, run / "resume.safetensors", metadata=meta)
    assert read_run(run).data_hash == ""


# --- finding ----------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b/c", "b/d/e", "b/d/e/nested")]
    make_run(tmp_path / ".hidden")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "no_log").mkdir()
    (tmp_path / "no_log" / "config.yaml").touch()
    assert find_runs([tmp_path]) == runs
    assert find_runs([tmp_path / "b" / "c", tmp_path]) == [runs[1], runs[0], *runs[2:]]


def test_nothing_to_compare_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, told in ((tmp_path, "no run in"), (tmp_path / "gone", "does not exist")):
        assert cli.main(["compare-runs", str(path)]) == 2
        assert told in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        find_runs([tmp_path / "file"])


def test_too_many_runs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        make_run(tmp_path / str(number))
    monkeypatch.setattr("vireo.run_files.MOST_RUNS", 3)
    with pytest.raises(UsageError, match="more than 3 runs"):
        find_runs([tmp_path])
    monkeypatch.setattr("vireo.run_files.MOST_FOLDERS", 2)
    with pytest.raises(UsageError, match="more than 2 folders"):
        find_runs([tmp_path])


# --- comparing --------------------------------------------------------------------------------------


def test_the_spread_is_the_textbooks() -> None:
    values = [0.9, 0.95, 0.85, NAN]
    found = spread(values)
    assert found is not None and found.number == 3
    assert found.mean == pytest.approx(np.mean(values[:3])) and found.deviation == pytest.approx(
        np.std(values[:3], ddof=1)
    )
    alone = spread([0.5])
    assert alone is not None and alone.mean == 0.5 and math.isnan(alone.deviation)
    assert spread([NAN]) is None


def test_seeds_are_summed_up_and_unfinished_ones_left_out(tmp_path: Path) -> None:
    for seed, last in enumerate((0.9, 0.8, 0.7)):
        make_run(tmp_path / f"tei-{seed}", (0.95, last), seed=seed, temporal="tei", workers=seed)
    make_run(tmp_path / "tei-3", (0.1,), epochs=2, seed=3, temporal="tei")
    make_run(tmp_path / "tsn-0", (0.4, 0.5), temporal="tsn")
    comparison = compare([tmp_path])
    assert comparison.differing == ("temporal", "seed") and comparison.comparable and not comparison.warnings
    tei, tsn = comparison.groups
    assert (tei.name, len(tei.runs), tsn.name) == ("tei (4 seeds)", 4, "tsn-0")
    assert tei.best == pytest.approx((0.95, 0.0, 3), abs=1e-12)
    assert tei.last == pytest.approx((0.8, 0.1, 3))
    lines = shown(comparison, 100)
    assert lines[0].split() == ["run", "temporal", "seed", "best,", "%", "last,", "%", "epochs", "min", "state"]
    whole = "tei (4 seeds) tei 0, 1, 2, 3 95.0 ± 0.0 80.0 ± 10.0 2/2, 1/2 1.0 1 of 4 unfinished"
    assert " ".join(lines[1].split()) == whole
    assert lines[5].split() == ["tei-3", "3", "10.0", "10.0", "1/2", "0.5", "unfinished"]
    assert lines[6].split() == ["tsn-0", "tsn", "0", "50.0", "50.0", "2/2", "1.0"]
    assert any("sample deviation" in line for line in lines) and any("optimistic" in line for line in lines)


def test_a_seed_trained_twice_is_no_second_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_run(tmp_path / name, seed=seed)
    comparison = compare([tmp_path])
    assert [[run.path.name for run in group.runs] for group in comparison.groups] == [["a", "c"], ["b"]]


def test_other_clips_are_not_comparable(tmp_path: Path) -> None:
    make_run(tmp_path / "a", data="old/clips")
    make_run(tmp_path / "b", data="moved/clips")  # the same list
    assert compare([tmp_path]).differing == () and compare([tmp_path]).comparable
    make_run(tmp_path / "c", data_hash="b" * 16)
    comparison = compare([tmp_path])
    assert comparison.differing == ("data",) and not comparison.comparable
    assert any("NOT COMPARABLE: the runs have 2 different lists" in line for line in shown(comparison, 120))
    assert not comparison.as_dict()["comparable"]
    assert "clips (bbbbbbbb)" in " ".join(shown(comparison, 120))


def test_other_validation_clips_are_said(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0, val=("x.mp4",))
    make_run(tmp_path / "b", seed=1, val=("y.mp4",))
    (warning,) = compare([tmp_path]).warnings
    assert "validated on different clips" in warning


def test_runs_without_epochs_come_last_but_for_broken_ones(tmp_path: Path) -> None:
    make_run(tmp_path / "begun", (), epochs=2)
    make_run(tmp_path / "done", (0.1, 0.1))
    (make_run(tmp_path / "broken") / "config.yaml").write_text("[")
    comparison = compare([tmp_path])
    assert [group.name for group in comparison.groups] == ["done", "begun", "broken"]
    states = [line.split()[-1] for line in shown(comparison, 100)[1:4]]
    assert states[1:] == ["unfinished", "broken"]


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("many", [False, True])
def test_the_table_fits_the_screen_and_loses_nothing(tmp_path: Path, width: int, many: bool) -> None:
    changes: dict[str, Any] = {"temporal": "tsm", "lr": 0.125, "temporal_options": {"stages": [4, 5]}}
    if many:
        changes |= {"epochs": 9, "dropout": 0.25, "size": 112, "warmup_epochs": 3.0, "label_smoothing": 0.0625}
        changes |= {"weight_decay": 0.375, "backbone": "resnet50", "scales": (1.0, 0.9, 0.8), "optimizer": "sgd"}
    make_run(tmp_path / "plain", (0.5, 0.5))
    make_run(tmp_path / "plain2", (0.5, 0.5), seed=1)
    make_run(tmp_path / ("long_name_" * 5 + "end"), (0.625, 0.625), **changes)
    comparison = compare([tmp_path])
    lines = shown(comparison, width)
    assert max(map(len, lines)) <= width
    text = "".join("".join(lines).split())
    for name, value in changes.items():
        assert name in text and in_words(value).replace(" ", "") in text
    assert "62.5" in text and "50.0±0.0" in text
    assert "long_name_end" in text and "…" not in text


def test_names_are_no_markup_no_control_codes_and_no_table_rows(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a|b[red]`x`\x1b[31m\n|y", temporal="tsm")
    make_run(tmp_path / "runs" / "$x$_plain", temporal="tsn")
    make_run(tmp_path / "runs" / "_hidden\udcff", temporal="stw")
    assert cli.main(["compare-runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    lines = shown(compare([tmp_path / "runs"]), 120)
    assert "\x1b" not in "".join(lines) and any("a|b[red]`x`?[31m?|y" in line for line in lines)
    page = (tmp_path / "out" / "compare.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 5 and len({line.replace("\\|", "").count("|") for line in table}) == 1
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").open(newline="", errors="surrogateescape")))
    assert len(rows) == 3 and {row["setting temporal"] for row in rows} == {"tsm", "tsn", "stw"}


def test_files_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        make_run(tmp_path / "runs" / f"s{seed}", (0.5, 0.25 * (seed + 1)), seed=seed)
    make_run(tmp_path / "runs" / "begun", (), epochs=2, lr=0.5)
    out = tmp_path / "out"
    assert cli.main(["compare-runs", str(tmp_path / "runs"), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert sorted(p.name for p in out.iterdir()) == ["compare.csv", "compare.md", "compare.png"]
    rows = list(csv.DictReader((out / "compare.csv").open(newline="")))
    assert [row["run"] for row in rows] == [run["run"] for run in found["runs"]] == ["s0", "s1", "s2", "begun"]
    assert [float(row["last_top1"] or "nan") for row in rows[:3]] == [run["last_top1"] for run in found["runs"][:3]]
    assert found["groups"][0]["last_top1"] == pytest.approx({"mean": 0.5, "deviation": 0.25, "n": 3})
    assert found["runs"][3]["best_top1"] is None and found["runs"][3]["state"] == "unfinished"
    before = (out / "compare.csv").read_bytes()
    (out / "mine.txt").write_text("notes")
    assert cli.main(["compare-runs", str(tmp_path / "runs"), "--out", str(out)]) == 0  # replaces its own files
    assert (out / "compare.csv").read_bytes() == before and (out / "mine.txt").read_text() == "notes"


def test_out_that_is_a_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert cli.main(["compare-runs", str(run), "--out", str(run / "config.yaml")]) == 1
    assert "could not be written" in capsys.readouterr().err


def test_a_thousand_runs_take_seconds(tmp_path: Path) -> None:
    first = make_run(tmp_path / "0000", lr=0.001)
    content = {path.name: path.read_bytes() for path in first.iterdir()}
    for number in range(1, 400):
        run = tmp_path / f"{number:04}"
        run.mkdir()
        for name, data in content.items():
            (run / name).write_bytes(data.replace(b"lr: 0.001", f"lr: {number}.0".encode()))
    comparison = compare([tmp_path])
    assert len(comparison.groups) == 400 and comparison.differing == ("lr",)
    assert len(shown(comparison, 80)) < 420


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    code = "import sys; from vireo.cli import main; main(sys.argv[1:]); print('IMPORTED', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "compare-runs", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert not {"torch", "timm", "av", "torchvision"} & set(done.stdout.rpartition("IMPORTED")[2].split())


# --- parts ------------------------------------------------------------------------------------------


def test_equal_settings_are_equal_whatever_their_type() -> None:
    assert freeze(1) == freeze(1.0) and freeze([1, 2]) == freeze((1.0, 2.0))
    assert freeze({"a": 1, "b": [2]}) == freeze({"b": [2.0], "a": 1})
    assert freeze(NAN) == freeze(NAN)
    different = [freeze(v) for v in (1, "1", True, None, "None", [1], {"1": 1}, 10**400, "", [])]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["tei-0", "tei-1"], "tei (2 seeds)"),
        (["a/seed-0", "a/seed-10", "a/seed-2"], "a (3 seeds)"),
        (["tei_s0", "tei_s1"], "tei (2 seeds)"),
        (["seed-0", "seed-1"], "seed-0 … seed-1 (2 seeds)"),
        (["glass0", "glass1"], "glass (2 seeds)"),
        (["alone-7"], "alone-7"),
    ],
)
def test_a_group_s_name(names: list[str], name: str) -> None:
    assert group_name(names) == name


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return np.rint(255 * imread(io.BytesIO(png))[..., :3]).astype(int)


def has_colour(png: bytes, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(png) == wanted).all(-1).sum() > 20)


def test_a_dozen_runs_have_colours_and_the_rest_are_grey() -> None:
    rows = [{"epoch": e, "loss": 1 / e, "top1": 0.5} for e in (1.0, 2.0)]
    runs = {f"run {i}": [[{**row, "top1": 0.02 * i + 0.1} for row in rows]] for i in range(30)}
    png = comparison_png(runs, epochs=2)
    assert all(has_colour(png, colour) for colour in (*COLOURS, "#c9d0d7"))
    few = comparison_png(dict(list(runs.items())[:2]), epochs=2)
    assert has_colour(few, COLOURS[1]) and not has_colour(few, COLOURS[2]) and not has_colour(few, "#c9d0d7")


@pytest.mark.parametrize("epochs", [1, 20])
def test_the_dot_of_a_single_epoch_is_whole(epochs: int) -> None:
    one = [{"epoch": 1.0, "loss": 0.5, "train_top1": 0.1, "top1": 1.0}]
    for png in (run_png(one, epochs=epochs), comparison_png({"a": [one]}, epochs=epochs)):
        seen = pixels(png)
        dot = (seen == [15, 123, 138]).all(-1)[:, : seen.shape[1] // 3]  # that of the loss
        height, width = (np.ptp(np.flatnonzero(dot.any(axis))) for axis in (1, 0))
        assert height >= 3 and abs(height - width) <= 1


def test_pictures_of_little_and_of_absurd_logs() -> None:
    absurd = [{"epoch": 1.0, "loss": math.inf, "top1": NAN}, {"epoch": 2.0, "loss": 1e300, "top1": 1.0}]
    one = [{"epoch": 1.0, "loss": 0.5, "train_top1": 0.5, "top1": 0.5}]
    for rows in ([], one, absurd, [{"epoch": 1.0}]):
        for png in (run_png(rows, epochs=3), comparison_png({"_x": [rows]}, epochs=3)):
            assert pixels(png).std() > 1
    assert has_colour(run_png(one, epochs=3), COLOURS[0])  # a single epoch is a dot, not nothing
