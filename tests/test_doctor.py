"""The dataset doctor on sets with planted faults, and its parts against slow references."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import tracemalloc
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torchvision.io import encode_png

from tests.video_tools import shared, write_sound, write_video
from vireo.data import doctor, duplicates
from vireo.data import examine as examining
from vireo.data.annotations import read_table
from vireo.data.clips import read_clip
from vireo.data.doctor import check_command, check_data
from vireo.data.doctor_page import write_page
from vireo.data.doctor_report import Finding, Report, print_report
from vireo.data.examine import FileFacts, examine
from vireo.data.findings import decode_cost
from vireo.data.journal import JsonLines
from vireo.data.lookalikes import lookalikes, says_nothing
from vireo.data.sampling import segment_indices
from vireo.data.table import ClipTable, StringColumn
from vireo.errors import DecodeError, StorageError, UsageError

SMOOTH = {"g": "12", "bf": "0", "crf": "18"}


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIREO_CACHE", str(tmp_path_factory.mktemp("cache")))


def scene(seed: int, frames: int = 30, size: tuple[int, int] = (96, 72), background: int | None = None) -> np.ndarray:
    """(frames, height, width, 3) uint8: two bright discs on their way across a background of patches."""
    width, height = size
    rng = np.random.default_rng(seed)
    patches = np.random.default_rng(seed if background is None else background).uniform(30, 170, (6, 8, 3))
    image = np.kron(patches, np.ones((height // 6, width // 8, 1)))
    y, x = np.mgrid[:height, :width]
    clip = np.repeat(image[None], frames, axis=0)
    for _ in range(2):
        begin, end = rng.uniform(0.1, 0.9, 2), rng.uniform(0.1, 0.9, 2)
        end += np.sign(end - begin) * 0.3  # some way at least
        for i, at in enumerate(np.linspace(0, 1, frames)):
            cx, cy = (begin + at * (end - begin)) * (width, height)
            clip[i][(x - cx) ** 2 + (y - cy) ** 2 < (height / 6) ** 2] = 240
    return clip.astype(np.uint8)


def table_of(root: Path, rows: list[tuple[str, str, str]], **columns: object) -> ClipTable:
    """A table of path, label, split."""
    names = tuple(dict.fromkeys(label for _, label, _ in rows))
    n = len(rows)
    return ClipTable(
        paths=StringColumn(str(root / path) for path, _, _ in rows),
        labels=np.array([names.index(label) for _, label, _ in rows]),
        label_names=names,
        starts=columns.pop("starts", np.full(n, np.nan)),  # type: ignore[arg-type]
        ends=columns.pop("ends", np.full(n, np.nan)),  # type: ignore[arg-type]
        splits=StringColumn(split for _, _, split in rows) if rows[0][2] else None,
        **columns,  # type: ignore[arg-type]
    )


def found(report: Report) -> dict[str, Finding]:
    return {finding.kind: finding for finding in report.findings}


def paths_of(finding: Finding) -> list[set[str]]:
    return [set(item.paths) for item in finding.items]


def snapshot(root: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------- a set with faults


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of clips, most of them with a fault of their own."""
    root = tmp_path_factory.mktemp("planted")
    for i in range(6):
        write_video(root / f"good/{i}.mp4", scene(i), size=(96, 72), options=SMOOTH)
    write_video(root / "copy/small.mp4", scene(0, size=(64, 48)), size=(64, 48), options={"crf": "34", "g": "12"})
    shutil.copy(root / "good/1.mp4", root / "copy/exact.mp4")
    shutil.copy(root / "good/2.mp4", root / "copy/other_label.mp4")
    write_video(root / "near/reversed.mp4", scene(3)[::-1], size=(96, 72), options=SMOOTH)
    write_video(root / "near/same_place.mp4", scene(103, background=3), size=(96, 72), options=SMOOTH)
    whole = (root / "good/4.mp4").read_bytes()
    (root / "bad").mkdir()
    (root / "bad/cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(root / "bad/cut.mkv", scene(4, 60), size=(96, 72), options=SMOOTH)
    os.truncate(root / "bad/cut.mkv", os.stat(root / "bad/cut.mkv").st_size // 2)
    (root / "bad/empty.mp4").touch()
    write_sound(root / "bad/sound.mp4")
    os.mkfifo(root / "bad/pipe.mp4")
    write_video(root / "odd/short.mp4", scene(11, 4), size=(96, 72), options=SMOOTH)
    write_video(root / "odd/turned.mp4", scene(12), size=(96, 72), rotation=90, options=SMOOTH)
    times = list(itertools.accumulate([0, *([8, 14, 8] * 10)]))[:30]
    write_video(root / "odd/uneven.mp4", scene(13), size=(96, 72), times=times, options=SMOOTH)
    write_video(root / "odd/long.mp4", scene(14, 120), size=(96, 72), options={"g": "250", "keyint_min": "250"})
    for i, grey in enumerate((20, 128)):
        write_video(root / f"odd/plain{i}.mp4", np.full((30, 48, 64, 3), grey, np.uint8), options=SMOOTH)
    write_video(root / "odd/frozen.mp4", np.repeat(scene(15, 1), 30, axis=0), size=(96, 72), options=SMOOTH)
    rows = [
        *((f"good/{i}.mp4", "waving", "train") for i in range(6)),
        ("copy/small.mp4", "waving", "test"),
        ("copy/exact.mp4", "waving", "test"),
        ("copy/other_label.mp4", "pointing", "train"),
        ("near/reversed.mp4", "Pointing", "test"),
        ("near/same_place.mp4", "pointing", "test"),
        *(
            (f"bad/{n}", "pointing", "train")
            for n in ("cut.mp4", "cut.mkv", "empty.mp4", "sound.mp4", "pipe.mp4", "gone.mp4")
        ),
        *(
            (f"odd/{n}.mp4", "wavings", "train")
            for n in ("short", "turned", "uneven", "long", "plain0", "plain1", "frozen")
        ),
    ]
    lines = ["path,label,split", *(",".join(row) for row in rows)]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def report(planted: Path) -> Report:
    return check_data(read_table(planted / "list.csv"), workers=2, timeout=60)


def test_every_planted_fault_is_found_and_nothing_else(report: Report) -> None:
    kinds = found(report)
    assert paths_of(kinds["leak"]) == [{"good/0.mp4", "copy/small.mp4"}, {"good/1.mp4", "copy/exact.mp4"}]
    assert paths_of(kinds["conflict"]) == [{"good/2.mp4", "copy/other_label.mp4"}]
    assert "duplicates" not in kinds
    assert paths_of(kinds["short"]) == [{"odd/short.mp4"}]
    assert paths_of(kinds["rotated"]) == [{"odd/turned.mp4"}]
    assert paths_of(kinds["variable-rate"]) == [{"odd/uneven.mp4"}]
    assert paths_of(kinds["long-gop"]) == [{"odd/long.mp4"}]
    assert paths_of(kinds["blank"]) == [{"odd/plain0.mp4"}, {"odd/plain1.mp4"}]
    assert paths_of(kinds["still"]) == [{"odd/frozen.mp4"}]
    bad = {f"bad/{name}" for name in ("cut.mp4", "cut.mkv", "empty.mp4", "sound.mp4", "pipe.mp4", "gone.mp4")}
    lost = set().union(*paths_of(kinds["unreadable"]))
    damaged = set().union(*paths_of(kinds["damaged"]))
    assert "bad/cut.mkv" in damaged and lost | damaged == bad and not lost & damaged
    reasons = {item.paths[0]: item.detail for item in kinds["unreadable"].items}
    assert "no such file" in reasons["bad/gone.mp4"] and "sound" in reasons["bad/sound.mp4"]
    assert not report.sound


def test_labels_that_look_alike_and_labels_without_training_clips(report: Report) -> None:
    kinds = found(report)
    assert [item.detail for item in kinds["label-spelling"].items] == ["'Pointing' (1 clip) and 'pointing' (8 clips)"]
    assert [item.detail for item in kinds["label-lookalike"].items] == ["'waving' (8 clips) and 'wavings' (7 clips)"]
    assert [item.detail for item in kinds["label-untrained"].items] == ["'Pointing': 1 clip elsewhere"]
    assert {item.detail for item in kinds["label-absent"].items} == {"'wavings': none in test"}


def test_copies_say_where_they_are_and_how_alike(report: Report) -> None:
    near, exact = found(report)["leak"].items
    assert near.notes == ("train: waving", "test: waving")
    assert near.detail.endswith("% alike") and exact.detail == "the same content"


def test_nothing_in_the_data_changes_and_a_second_run_decodes_only_what_is_new(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, journal = snapshot(planted), tmp_path / "check.jsonl"
    table = read_table(planted / "list.csv")
    first = check_data(table, journal=journal, workers=0)
    journal.write_bytes(journal.read_bytes()[:-40])  # a kill in the middle of a line
    examined: list[str] = []

    def counting(path: str) -> FileFacts:
        examined.append(os.path.relpath(path, planted))
        return examining.examine(path)

    monkeypatch.setattr(doctor, "examine", counting)
    second = check_data(table, journal=journal, workers=0)
    bad = {f"bad/{name}" for name in ("cut.mp4", "cut.mkv", "empty.mp4", "sound.mp4", "pipe.mp4", "gone.mp4")}
    assert bad < set(examined) and len(examined) == len(bad) + 1  # what has faults, and the line that was cut off
    assert second.as_dict() == first.as_dict()
    examined.clear()
    changed = tmp_path / "changed"
    shutil.copytree(planted / "good", changed / "good")
    some = table_of(changed, [(f"good/{i}.mp4", "ab"[i % 2], "") for i in range(6)])
    check_data(some, journal=journal, workers=0)
    write_video(changed / "good/3.mp4", scene(33), size=(96, 72))
    examined.clear()
    check_data(some, journal=journal, workers=0)
    assert examined == [os.path.relpath(changed / "good/3.mp4", planted)]
    assert snapshot(planted) == before


def test_a_journal_full_of_nonsense_is_passed_over(tmp_path: Path) -> None:
    write_video(tmp_path / "data/a/0.mp4", scene(1), size=(96, 72))
    write_video(tmp_path / "data/b/0.mp4", scene(2), size=(96, 72))
    table, journal = read_table(tmp_path / "data"), tmp_path / "check.jsonl"
    clean = check_data(table, journal=journal, workers=0)
    line = json.loads(journal.read_text().splitlines()[0])
    wrong = [
        {**line, key: value} for key, value in (("frame_count", "9"), ("signature", "AA=="), ("stamp", 3), ("x", 1))
    ]
    wrong += [
        {**line, "frame_count": -1},
        {**line, "seconds": float("nan")},
        {**line, "fast": 1},
        {**line, "format": 0},
    ]
    nonsense = [b"\xff\xfe\x00", b"[" * 100_000, b"{}", b"[]", b"3", *(json.dumps(entry).encode() for entry in wrong)]
    journal.write_bytes(b"\n".join(nonsense))
    assert check_data(table, journal=journal, workers=0).as_dict() == clean.as_dict()
    assert len(journal.read_bytes().splitlines()) == len(nonsense) + 2


def test_lines_are_whole_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with JsonLines(tmp_path / "j") as lines:
            lines.append({"a": 1})
            resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))  # room for a part of the next line
            with pytest.raises(StorageError, match="could not be written"):
                lines.append({"b": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    with JsonLines(tmp_path / "j") as lines:
        assert list(lines.entries()) == [{"a": 1}]
        lines.append({"c": 3})
        assert list(lines.entries()) == [{"a": 1}, {"c": 3}]


def test_files_that_take_too_much_memory_are_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")

    def greedy(path: str) -> None:
        raise MemoryError

    monkeypatch.setattr(examining, "probe", greedy)
    assert examine(str(path)).fault == "not enough memory for its frames"


def test_a_video_with_frames_of_absurd_size_is_not_decoded_to_count_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr("vireo.data.images.MAX_SIDE", 63)
    fact = examine(str(path))
    assert "64×48" in fact.fault and fact.readable == 0


def test_the_command_writes_json_and_a_page_and_says_by_its_code_whether_all_is_well(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert check_command(str(planted / "list.csv"), out, workers=1) == 1
    printed = capsys.readouterr().out
    assert "Not sound" in printed and "good/1.mp4 (train: waving) = copy/exact.mp4 (test: waving)" in printed
    written = json.loads((out / "check.json").read_text())
    assert written["sound"] is False and {f["kind"] for f in written["findings"]} >= {"leak", "damaged"}
    page = (out / "check.html").read_text("utf-8")
    assert page.count("data:image/jpeg;base64,") >= 12 and 'src="http' not in page and "<script" not in page
    assert check_command(str(planted / "list.csv"), out, workers=1, json=True) == 1
    assert json.loads(capsys.readouterr().out)["findings"] == written["findings"]
    for split in ("a", "b"):
        for i in range(10):
            write_video(tmp_path / f"sound/{split}/{i}.mp4", scene(100 * ord(split) + i), size=(96, 72), options=SMOOTH)
    assert check_command(str(tmp_path / "sound"), out, workers=1) == 0
    assert "Sound: nothing must be mended, nothing else to look at." in capsys.readouterr().out


def test_results_do_not_go_into_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "data/a/0.mp4")
    write_video(tmp_path / "data/b/0.mp4", 15)
    monkeypatch.setenv("HOME", str(tmp_path))
    for out in ("data", "data/a/x", "data/a/0.mp4"):
        for data in (str(tmp_path / "data"), f"folder:{tmp_path / 'data'}", "folder:~/data"):
            with pytest.raises(UsageError, match="folder"):
                check_command(data, tmp_path / out)
    assert not list((tmp_path / "data").rglob("check*"))


def test_names_are_shown_as_text_whatever_they_hold(tmp_path: Path) -> None:
    names = ["<b>&amp;.mp4", "[red]x.mp4", "caf\udce9.mp4", "new\nline.mp4", "ü b.mp4"]
    plain = write_video(tmp_path / "d/a" / "plain.mp4", scene(7), size=(96, 72))  # once: encoders' threads differ
    for name in names:
        shutil.copy(plain, tmp_path / "d/a" / name)
    rows = [(f"d/a/{name}", "<i>x</i>" if i % 2 else "[bold]y", "train") for i, name in enumerate(names)]
    report = check_data(table_of(tmp_path, rows), journal=tmp_path / "j", workers=0)
    assert found(report)["conflict"].items[0].detail == "the same content"
    again = check_data(table_of(tmp_path, rows), journal=tmp_path / "j", workers=0)
    assert again.as_dict() == report.as_dict()
    page = write_page(report, title="<t>", files=[str(tmp_path / path) for path, _, _ in rows])
    assert "<b>" not in page.replace("<b>5</b>", "").replace("<b>2</b>", "") or "&lt;b&gt;" in page
    assert "<i>x</i>" not in page and "&lt;i&gt;x" in page
    page.encode("utf-8")
    screen = StringIO()
    print_report(report, Console(file=screen, width=200), title="t")
    assert "[bold]y" in screen.getvalue() and "new?line" in screen.getvalue()


def test_cuts_counts_and_recordings(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", scene(1, 100), size=(96, 72), options=SMOOTH)  # 4 s
    write_video(tmp_path / "other.mp4", scene(2, 100), size=(96, 72), options=SMOOTH)
    write_video(tmp_path / "third.mp4", scene(3, 50), size=(96, 72), options=SMOOTH)
    rows = [
        ("long.mp4", "a", "train"),
        ("long.mp4", "b", "train"),
        ("long.mp4", "a", "test"),
        ("other.mp4", "a", "train"),
        ("other.mp4", "b", "test"),
        ("other.mp4", "b", "test"),
        ("other.mp4", "b", "test"),
        ("third.mp4", "b", "train"),
    ]
    starts = np.array([0.0, 1.5, 1.0, 0.0, 2.0, 9.0, 3.0, np.nan])
    ends = np.array([2.0, 1.6, 3.0, 2.0, 4.0, 10.0, 8.0, np.nan])
    table = table_of(tmp_path, rows, starts=starts, ends=ends, frame_counts=np.array([0, 0, 0, 0, 0, 0, 0, 55]))
    kinds = found(check_data(table, workers=0))
    assert paths_of(kinds["leak"]) == [{"long.mp4"}]  # 0–2 s and 1–3 s
    assert paths_of(kinds["recordings"]) == [{"other.mp4"}]  # what touches does not overlap
    assert [item.paths[0] for item in kinds["cut-outside"].items] == ["other.mp4 [9–10 s]"]
    assert [item.paths[0] for item in kinds["cut-over"].items] == ["other.mp4 [3–8 s]"]
    assert [item.paths[0] for item in kinds["short"].items] == ["long.mp4 [1.5–1.6 s]"]
    assert kinds["frame-count"].items[0].detail == "the list says 55, there are 50"


def test_unequal_classes_and_small_ones(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", scene(1), size=(96, 72))
    rows = [("a.mp4", "big", "")] * 30 + [("a.mp4", "small", "")] * 3 + [("a.mp4", "unknown", "")] * 12
    n = len(rows)
    table = table_of(tmp_path, rows, starts=np.arange(n) * 0.01, ends=np.arange(n) * 0.01 + 0.5)
    kinds = found(check_data(table, workers=0))
    assert "10 times" in kinds["imbalance"].title
    assert [item.detail for item in kinds["few-clips"].items] == ["'small': 3 clips"]
    assert [item.detail for item in kinds["label-empty"].items] == ["'unknown' (12 clips)"]


def test_folders_of_frames(tmp_path: Path) -> None:
    from torchvision.io import write_jpeg

    def write(name: str, frames: np.ndarray) -> None:
        (tmp_path / name).mkdir()
        for i, image in enumerate(frames):
            write_jpeg(torch.from_numpy(image).permute(2, 0, 1), str(tmp_path / name / f"{i + 1:05d}.jpg"))

    for i in range(3):
        write(f"clip{i}", scene(i, 20))
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip2/00007.jpg").write_bytes(b"\xff\xd8\xff")
    write_video(tmp_path / "video.mp4", scene(0, 20), size=(96, 72), options=SMOOTH)
    rows = [(name, "ab"[i % 2], "") for i, name in enumerate(("clip0", "clip1", "clip2", "empty", "video.mp4"))]
    table = table_of(tmp_path, rows, frame_counts=np.array([20, 25, 20, 0, 0]))
    kinds = found(check_data(table, workers=0))
    assert paths_of(kinds["unreadable"]) == [{"clip2"}, {"empty"}]
    assert paths_of(kinds["frames-missing"]) == [{"clip1"}]
    assert paths_of(kinds["frame-folder"]) == [{"clip0"}, {"clip1"}]
    assert paths_of(kinds["duplicates"]) == [{"clip0", "video.mp4"}]


def test_cuts_of_folders_can_not_be_read_and_are_told(tmp_path: Path) -> None:
    from torchvision.io import write_jpeg

    for name in ("clip0", "clip1"):
        (tmp_path / name).mkdir()
        for i, image in enumerate(scene(int(name[-1]), 10)):
            write_jpeg(torch.from_numpy(image).permute(2, 0, 1), str(tmp_path / name / f"{i + 1:05d}.jpg"))
    cuts = np.array([0.5, np.nan])
    table = table_of(tmp_path, [("clip0", "a", ""), ("clip1", "b", "")], starts=cuts)
    assert paths_of(found(check_data(table, workers=0))["cut-timeless"]) == [{"clip0 [0.5– s]"}]
    with pytest.raises(DecodeError, match="start and end are seconds of a video"):
        read_clip(table.record(0), lambda count: np.zeros(1, np.int64))


# ------------------------------------------------------------------------------------------- where reports go


def small_set(root: Path, seed: int = 0) -> Path:
    for i, label in enumerate("ab"):
        write_video(root / label / "0.mp4", scene(seed + i, 12, (48, 36)), size=(48, 36), options=SMOOTH)
    return root


def test_files_are_named_as_the_list_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small_set(tmp_path / "clips")
    (root / "a/0.mp4").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for given, shown in (("clips/", "clips/"), (f"{tmp_path}/clips/", f"{tmp_path}/clips/"), ("./clips/", "./clips/")):
        (tmp_path / "d.csv").write_text(f"path,label\n{given}a/0.mp4,a\n{given}b/0.mp4,b\n")
        for data in ("d.csv", str(tmp_path / "d.csv")):
            assert check_command(data, Path("out"), workers=0, json=True) == 1
            (lost,) = (f for f in json.loads(capsys.readouterr().out)["findings"] if f["kind"] == "unreadable")
            assert [item["paths"] for item in lost["items"]] == [[f"{shown}a/0.mp4"]]
    assert check_command("clips", Path("out"), workers=0) == 1
    assert "    a/0.mp4: " in capsys.readouterr().out


def test_copies_are_shown_with_pictures_whatever_the_list_calls_them(tmp_path: Path) -> None:
    root = small_set(tmp_path / "clips")
    shutil.copy(root / "a/0.mp4", root / "b/copy.mp4")
    for place in ("clips/", f"{root}/"):
        (tmp_path / "d.csv").write_text(f"path,label\n{place}a/0.mp4,a\n{place}b/copy.mp4,b\n")
        check_command(str(tmp_path / "d.csv"), tmp_path / "out", workers=0)
        assert (tmp_path / "out/check.html").read_text("utf-8").count("data:image/jpeg;base64,") == 12


def test_reports_of_other_data_and_other_splits_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i, place in enumerate(("one/clips", "two/clips")):
        small_set(tmp_path / place, 10 * i)
        for _ in range(2):  # the same set again goes to the same place
            check_command(place, workers=0, num_frames=20)
    check_command("folder:two/clips", workers=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips-2.check", "clips.check", "one", "two"]
    said = {path: json.loads(path.read_text())["data"] for path in tmp_path.glob("*/check*.json")}
    assert {str(path.relative_to(tmp_path)): data for path, data in said.items()} == {
        "clips.check/check.json": "one/clips",
        "clips-2.check/check.json": "two/clips",
        "clips-2.check/check-folder.json": "folder:two/clips",
    }
    assert len((tmp_path / "clips-2.check/check.jsonl").read_text().splitlines()) == 2  # files are read once
    printed = capsys.readouterr().out
    assert "clips-2.check/check.html" in printed and "clips-2.check/check-folder.html" in printed


# ----------------------------------------------------------------------------------------------- optical flow


def write_flow(folder: Path, values: np.ndarray) -> None:
    """(F, H, W, 2) uint8 as PNGs, which keep every value."""
    folder.mkdir(parents=True)
    for i, field in enumerate(torch.from_numpy(values).permute(0, 3, 1, 2), start=1):
        for axis, image in zip("xy", field, strict=True):
            (folder / f"flow_{axis}_{i:05d}.png").write_bytes(bytes(encode_png(image[None].clone()).numpy()))


@pytest.fixture
def flow_set(tmp_path: Path) -> Path:
    """A CSV of clips of flow, some of them with faults."""
    root = tmp_path / "flow"
    rng = np.random.default_rng(0)
    some = {name: rng.integers(0, 256, (12, 24, 32, 2), dtype=np.uint8) for name in "abcdefg"}
    for name in "abcdef":
        write_flow(root / name, some[name])
    write_flow(root / "rest", np.full((12, 24, 32, 2), 128, np.uint8))
    write_flow(root / "rest2", np.full((12, 24, 32, 2), 128, np.uint8))
    np.save(root / "copy.npy", some["a"])
    np.save(root / "short.npy", some["g"][:3])
    (root / "b/flow_y_00007.png").unlink()
    (root / "c/flow_x_00003.png").write_bytes((root / "c/flow_x_00003.png").read_bytes()[:60])
    shutil.copy(root / "rest/flow_x_00001.png", root / "d/flow_x_00012.png")
    image = encode_png(torch.zeros(1, 8, 8, dtype=torch.uint8))
    (root / "d/flow_x_00012.png").write_bytes(bytes(image.numpy()))
    names = ["a", "b", "c", "d", "e", "f", "rest", "rest2", "copy.npy", "short.npy", "gone"]
    parts = ["train"] * 8 + ["test"] * 3
    rows = [f"{name},{'xy'[i % 2]},{part}" for i, (name, part) in enumerate(zip(names, parts, strict=True))]
    (root / "flow.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return root / "flow.csv"


@pytest.mark.parametrize("modality", ["auto", "flow"])
def test_flow_is_checked_as_flow(
    flow_set: Path, tmp_path: Path, modality: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert check_command(str(flow_set), out, workers=1, modality=modality, json=True) == 1  # type: ignore[arg-type]
    report = json.loads(capsys.readouterr().out)
    kinds = {finding["kind"]: finding["items"] for finding in report["findings"]}
    lost = {item["paths"][0]: item["detail"] for item in kinds["unreadable"]}
    assert report["modality"] == "flow" and set(lost) == {"b", "c", "d", "gone"}
    assert "12 x images and 11 y images" in lost["b"] and "flow_x_00003.png: damaged" in lost["c"]
    assert "8×8 pixels where others have 32×24" in lost["d"] and "no such file or folder" in lost["gone"]
    assert [item["paths"] for item in kinds["leak"]] == [["a", "copy.npy"]]  # the same fields, stored otherwise
    assert [(item["paths"], item["detail"]) for item in kinds["short"]] == [
        (["short.npy"], "3 fields, where 8 are taken")
    ]
    assert [item["paths"] for item in kinds["still"]] == [["rest"], ["rest2"]]
    assert not {"blank", "long-gop", "duplicates", "conflict", "damaged", "frame-folder"} & set(kinds)
    assert check_command(str(flow_set.parent), out, workers=0) == 1  # the folder stands for its list
    printed = capsys.readouterr().out
    assert "11 clips of optical flow in 2 classes" in printed and "fields (median" in printed
    assert "3 to 12 fields" in printed and "0.0 s" not in printed and "optimize" not in printed
    page = (out / "check.html").read_text("utf-8")
    assert "11 clips of optical flow" in page and "Decoding costs" not in page and "of video" not in page


def test_flow_that_was_checked_is_not_read_again(
    flow_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, journal = read_table(flow_set, modality="flow"), tmp_path / "check.jsonl"
    first = check_data(table, journal=journal, workers=0, modality="flow")
    read: list[str] = []

    def counting(path: str) -> FileFacts:
        read.append(os.path.basename(path))
        return examining.examine_flow(path)

    monkeypatch.setattr(doctor, "examine_flow", counting)
    assert check_data(table, journal=journal, workers=0, modality="flow").as_dict() == first.as_dict()
    assert set(read) == {"b", "c", "d", "gone"}
    (flow_set.parent / "e/flow_x_00012.png").unlink()
    (flow_set.parent / "e/flow_y_00012.png").unlink()
    read.clear()
    check_data(table, journal=journal, workers=0, modality="flow")
    assert "e" in read and "f" not in read


def test_frames_and_their_flow_in_one_folder_are_told_apart_in_the_journal(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_flow(tmp_path / name, np.random.default_rng(ord(name)).integers(0, 256, (9, 24, 32, 2), dtype=np.uint8))
        for i in range(1, 11):
            shutil.copy(tmp_path / name / "flow_x_00001.png", tmp_path / name / f"img_{i:05d}.png")
    table, journal = table_of(tmp_path, [("a", "x", ""), ("b", "y", "")]), tmp_path / "check.jsonl"
    for _ in range(2):
        assert check_data(table, journal=journal, workers=0).summary.frames == (10, 10, 10)
        assert check_data(table, journal=journal, workers=0, modality="flow").summary.frames == (9, 9, 9)
    assert len(journal.read_text().splitlines()) == 4


def test_flow_in_subfolders_that_has_changed_is_read_again(tmp_path: Path) -> None:
    for axis in "xy":
        (tmp_path / "a" / axis).mkdir(parents=True)
        (tmp_path / "a" / axis / "1.png").touch()
    before = examining.stamp(str(tmp_path / "a"))
    (tmp_path / "a/y/2.png").touch()
    assert before is not None and examining.stamp(str(tmp_path / "a")) not in (before, None)


def test_a_decoder_that_crashes_or_hangs_costs_one_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal
    import time

    for i in range(6):
        write_video(tmp_path / f"{i}.mp4", scene(i), size=(96, 72))

    def hostile(path: str) -> FileFacts:
        if path.endswith("2.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        if path.endswith("4.mp4"):
            time.sleep(600)
        return examining.examine(path)

    monkeypatch.setattr(doctor, "examine", hostile)
    table = table_of(tmp_path, [(f"{i}.mp4", "ab"[i % 2], "") for i in range(6)])
    lost = found(check_data(table, workers=2, timeout=3.0))["unreadable"]
    assert paths_of(lost) == [{"2.mp4"}, {"4.mp4"}]
    assert "killed" in lost.items[0].detail and "3 s" in lost.items[1].detail


def test_real_clips_are_sound() -> None:
    """Hand gestures before the same wall: the same scene many times, and no copy among them."""
    root = shared("gestures")
    rows = [(f"{label}/{label}_{i:02d}.mp4", label, "") for label in ("left", "right", "up") for i in range(1, 9)]
    rows = [row for row in rows if (root / row[0]).exists()]
    report = check_data(table_of(root, rows), workers=2)
    assert report.sound and not {"duplicates", "still", "blank", "short"} & set(found(report)) and len(rows) > 12


# ---------------------------------------------------------------------------------------------------- its parts


@pytest.mark.parametrize("frame_count", [1, 2, 7, 8, 30, 97, 250])
@pytest.mark.parametrize("group", [1, 5, 12, 250, 1000])
def test_decode_cost_is_what_decoding_group_by_group_takes(frame_count: int, group: int) -> None:
    for wanted in (1, 3, 8, 16):
        indices = sorted(set(segment_indices(frame_count, wanted).tolist()))
        decoded = 0
        for begin in range(0, frame_count, group):
            inside = [i for i in indices if begin <= i < begin + group]
            decoded += max(inside) - begin + 1 if inside else 0
        assert decode_cost(frame_count, group, wanted) == pytest.approx(decoded / len(indices))


def signatures(count: int, seed: int = 0) -> np.ndarray:
    """Clips of ten fixed cameras, with smooth motion of their own."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(30, 220, (10, 1, 64))
    paths = np.sin(np.linspace(0, 3, duplicates.FRAMES)[:, None] * np.arange(1, 5)) @ rng.standard_normal((count, 4, 3))
    motion = 10 * paths @ rng.standard_normal((count, 3, 64))
    cells = places[rng.integers(10, size=count)] + motion
    return np.clip(cells, 0, 255).astype(np.uint8).reshape(count, duplicates.FRAMES, duplicates.CELLS, duplicates.CELLS)


def pairs_by_loops(clips: np.ndarray) -> set[tuple[int, int]]:
    def parts(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cells = clip.reshape(len(clip), -1).astype(float)
        picture = cells - cells.mean(axis=1, keepdims=True)
        return picture - picture.mean(axis=0), picture

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))

    split = [parts(clip) for clip in clips]
    return {
        (i, j)
        for i, j in itertools.combinations(range(len(clips)), 2)
        if cosine(split[i][0], split[j][0]) >= duplicates.SAME_CHANGE
        and cosine(split[i][1], split[j][1]) >= duplicates.SAME_PICTURE
    }


def test_copies_are_found_as_comparing_all_with_all_finds_them() -> None:
    clips = signatures(150)
    rng = np.random.default_rng(1)
    noisy = np.clip(clips[:20].astype(int) + rng.integers(-3, 4, clips[:20].shape), 0, 255).astype(np.uint8)
    clips = np.concatenate([clips, noisy])
    pairs = duplicates.near_duplicates(clips)
    got = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert got == pairs_by_loops(clips) == {(i, 150 + i) for i in range(20)}
    assert (pairs.similarity > 0.9).all()


def test_reversed_clips_and_plain_clips_are_no_copies_of_each_other() -> None:
    clips = signatures(40)
    grey = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), duplicates.FRAMES * duplicates.CELLS**2)
    plain = grey.reshape(-1, *clips.shape[1:])
    flicker = plain + np.random.default_rng(0).integers(0, 2, plain.shape).astype(np.uint8)
    fading = np.repeat(np.arange(12, dtype=np.uint8)[None, :, None, None] * 20, 5, axis=0) + np.zeros_like(plain[:5])
    assert len(duplicates.near_duplicates(np.concatenate([clips, clips[:, ::-1], plain, flicker, fading])).first) == 0


def test_many_copies_of_one_clip_are_one_group() -> None:
    clips = np.concatenate([signatures(300), np.repeat(signatures(1, seed=9), 500, axis=0)])
    pairs = duplicates.near_duplicates(clips)
    groups = duplicates.connected(len(clips), zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert groups == [list(range(300, 800))]
    assert len(pairs.first) < 500 * 499 / 2


def test_the_signature_is_the_mean_of_cells() -> None:
    frames = torch.randint(0, 256, (duplicates.FRAMES, 3, 33, 50), dtype=torch.uint8)
    expected = np.empty((duplicates.FRAMES, 8, 8))
    grey = frames.float().mean(1).numpy()
    for row, column in itertools.product(range(8), range(8)):
        top, bottom = row * 33 // 8, -(-(row + 1) * 33 // 8)
        left, right = column * 50 // 8, -(-(column + 1) * 50 // 8)
        expected[:, row, column] = grey[:, top:bottom, left:right].mean(axis=(1, 2))
    assert np.abs(duplicates.signature(frames) - expected).max() <= 0.51


def damerau(a: str, b: str) -> int:
    """Optimal string alignment distance."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, j in itertools.product(range(len(a) + 1), range(len(b) + 1)):
        if not i or not j:
            rows[i][j] = i + j
            continue
        rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
        if i > 1 and j > 1 and a[i - 2 : i] == b[j - 2 : j][::-1]:
            rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


def slips(word: str) -> Iterator[str]:
    for i in range(1, len(word)):
        yield word[:i] + word[i + 1 :]
        yield word[:i] + "q" + word[i:]
        yield word[:i] + "q" + word[i + 1 :]
        yield word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :] if i > 1 else word + "q"


def test_every_slip_of_one_letter_is_seen_and_no_two() -> None:
    word = "throwing"
    for other in slips(word):
        if other != word:
            assert damerau(word, other) == 1
            assert lookalikes([f"{word} a ball", f"{other} a ball"]) == [(0, 1, False)], other
    for other in {two for one in slips(word) for two in slips(one) if damerau(word, two) > 1}:
        assert lookalikes([word, other]) == [], other


def test_which_labels_look_alike() -> None:
    same = [
        ("Wave Hand", "wave_hand"),
        ("HandstandPushups", "Handstand pushups"),
        ("turn-left", "TurnLeft"),
        ("a  b", "a b"),
    ]
    for pair in same:
        assert lookalikes(pair) == [(0, 1, True)], pair
    for pair in [("pass dish", "pass dishes"), ("clap hand", "clap hands"), ("jumpnig", "jumping")]:
        assert lookalikes(pair) == [(0, 1, False)], pair
    different = ["class_1", "class_2", "baking", "making", "put onto", "put into", "walk", "talk", "shaking head"]
    different += [
        "shaking hands",
        "Pushing something up",
        "Pulling something up",
        "turn clockwise",
        "turn anticlockwise",
    ]
    different += [
        "Moving something up",
        "Moving something down",
        "手を振る",
        "手を叩く",
        "seq01",
        "seq02",
        "pass",
        "kiss",
    ]
    assert lookalikes(different) == []
    assert [says_nothing(name) for name in ("", "-", "N/A", "nan", "Unknown", "no", "手")] == [True] * 5 + [False] * 2
    many = [f"label number {i}" for i in range(3000)]
    assert lookalikes([*many, "Label Number 77"]) == [(77, 3000, True)]
    tracemalloc.start()
    assert lookalikes(["x y" * 10_000, "X_Y" * 10_000, "x y" * 9_999 + "xz"]) == [(0, 1, True)]
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
