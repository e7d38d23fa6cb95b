"""Data sets: what is read, what is refused and in which words, and how it is split."""

from __future__ import annotations

import math
import os
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vireo.data.annotations import read_table
from vireo.data.folders import is_video
from vireo.data.labels import check_label_map, natural_order, read_label_map, write_label_map
from vireo.data.rows import missing_rows, repeated_rows
from vireo.data.splits import split_table
from vireo.data.table import ClipTable, StringColumn
from vireo.errors import DataError, StorageError, UsageError


def make_folders(root: Path, files: dict[str, int]) -> Path:
    """Empty files with the names of videos: nothing here opens them."""
    for label, count in files.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / label / f"{i}.mp4").touch()
    return root


def make_csv(folder: Path, text: str, *, encoding: str = "utf-8", name: str = "clips.csv") -> Path:
    (folder / "a.mp4").touch()
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def make_table(labels: list[int] | np.ndarray, **columns: object) -> ClipTable:
    nothing = np.full(len(labels), np.nan)
    given = {
        "paths": StringColumn(f"{i:04}.mp4" for i in range(len(labels))),
        "labels": np.array(labels, dtype=np.int64),
        "label_names": tuple(f"class {i}" for i in range(max(labels) + 1)),
        "starts": nothing,
        "ends": nothing,
    }
    return ClipTable(**(given | columns))  # type: ignore[arg-type]


def refusal(data: Path, **options: object) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        read_table(data, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.count("\n") < 12 and all(len(line) < 400 for line in message.split("\n"))
    return message


# Columns


def test_a_string_column_is_like_a_list_of_strings() -> None:
    texts = ["a", "", "ümläut", "動画 b", os.fsdecode(b"\xff.mp4"), "a"]
    column = StringColumn(texts)
    assert list(column) == texts and [column[i] for i in range(-6, 6)] == texts * 2
    assert len(column) == 6 and column == StringColumn(texts) and column != StringColumn(texts[:5])
    assert list(column.take([5, 2, 2])) == ["a", "ümläut", "ümläut"]
    assert list(pickle.loads(pickle.dumps(column))) == texts
    assert list(StringColumn([])) == [] and list(column.take([])) == []
    with pytest.raises(IndexError):
        column[6]


def test_a_string_column_stores_folders_and_words_once() -> None:
    paths = [f"/a long way down to/the folder of class {i % 3}/{i:05}.mp4" for i in range(3000)]
    column = StringColumn(paths)
    assert list(column) == paths and column.nbytes < 20 * len(paths)
    order = np.random.default_rng(0).integers(-3000, 3000, size=5000)
    assert list(column.take(order)) == [paths[i] for i in order]
    assert column.take(order) == StringColumn(paths[i] for i in order)
    assert list(column.map_heads(lambda head: "x/" + head)) == ["x/" + path for path in paths]
    words = StringColumn((path[-9:-6] for path in paths), words=True)
    assert words == StringColumn(path[-9:-6] for path in paths) and words != column
    names, codes = words.distinct()
    assert [names[i] for i in codes] == list(words) and len(names) == len(set(words))
    assert list(words.take([7, 2999])) == [words[7], words[2999]]


def test_a_string_column_of_many_blocks() -> None:
    texts = [f"{i // 7}/{'é' * (i % 4)}{i}" for i in range(150_000)]
    column = StringColumn(texts)
    assert list(column) == texts and list(column.take(range(149_999, -1, -1))) == texts[::-1]
    hashes = column.hashes()
    assert len(np.unique(hashes)) == len(texts) and hashes[9] == StringColumn([texts[9]]).hashes()[0]


def test_a_table_checks_itself() -> None:
    make_table([0, 1])
    wrong = [
        {"paths": StringColumn(["a.mp4"])},
        {"labels": np.array([0, 2])},
        {"labels": np.array([-1, 1])},
        {"label_names": ("a", "a")},
        {"starts": np.array([2.0, np.nan]), "ends": np.array([1.0, np.nan])},
        {"starts": np.array([-1.0, np.nan])},
        {"splits": StringColumn(["train", "other"])},
        {"groups": StringColumn(["g"])},
        {"frame_counts": np.array([1])},
        {"frame_counts": np.array([1, -1])},
    ]
    for change in wrong:
        with pytest.raises(DataError):
            make_table(**({"labels": [0, 1], "label_names": ("a", "b")} | change))  # type: ignore[arg-type]


def test_selecting_keeps_rows_together() -> None:
    table = make_table(
        [0, 1, 0],
        starts=np.array([np.nan, 1.5, 0.0]),
        splits=StringColumn(["train", "val", "test"]),
        groups=StringColumn(["x", "", "y"]),
        frame_counts=np.array([30, 0, 12]),
    )
    assert [table.record(i).frame_count for i in range(3)] == [30, None, 12]
    assert table.select([2, 0]).frame_counts.tolist() == [12, 30]  # type: ignore[union-attr]
    assert make_table([0, 1]).record(0).frame_count is None
    chosen = table.select([2, 1])
    assert chosen.record(0)[:3] == ("0002.mp4", 0, 0.0) and chosen.record(1)[:3] == ("0001.mp4", 1, 1.5)
    assert chosen.record(0).end is None and table.record(0).start is None
    assert list(chosen.splits or []) == ["test", "val"] and list(chosen.groups or []) == ["y", ""]
    assert len(table.select([])) == 0
    assert table.in_split("val").record(0).path == "0001.mp4"
    with pytest.raises(DataError, match="no clip in split 'val'"):
        table.select([0, 2]).in_split("val")
    with pytest.raises(DataError, match="no split column"):
        make_table([0, 1]).in_split("val")


def test_the_digest_names_the_list_and_not_its_place_or_order(tmp_path: Path) -> None:
    first = read_table(make_folders(tmp_path / "one", {"a": 3, "b": 2}))
    second = read_table(make_folders(tmp_path / "two" / "deeper", {"a": 3, "b": 2}))
    digest = first.digest()
    assert len(digest) == 16 and digest == second.digest() == first.select([4, 2, 0, 1, 3]).digest()
    others = [
        first.select([0, 1, 2, 3]),
        read_table(make_folders(tmp_path / "three", {"a": 2, "b": 3})),
        read_table(tmp_path / "one", label_names=["b", "a"]),
    ]
    assert digest not in {other.digest() for other in others}


def test_digests_of_earlier_versions_hold() -> None:
    """They are in checkpoints, and say whether data is what a model was trained on."""
    nan = math.nan
    table = make_table(
        [0, 1, 0],
        paths=StringColumn(["/data/x/a.mp4", "/data/y/ü b.mp4", "/data/x/../x/c"]),
        label_names=("wave", "push"),
        starts=np.array([nan, 1.5, 0]),
        ends=np.array([nan, nan, 2]),
        splits=StringColumn(["train", "val", "test"]),
        groups=StringColumn(["g", "", "h"]),
    )
    assert table.digest() == "da231e8f23b1c761"
    top = make_table([0, 1], paths=StringColumn(["/a.mp4", "/b.mp4"]), label_names=("wave", "push"))
    assert top.digest() == "dce6770f4787fb5a"
    assert top.select([]).digest() == "083c04e6063863aa"
    counted = make_table(
        [0, 1], paths=top.paths, label_names=("wave", "push"), frame_counts=np.array([1, 2], dtype=np.int64)
    )
    assert counted.digest() != top.digest()


# Folders


def test_a_folder_per_class(tmp_path: Path) -> None:
    make_folders(tmp_path, {"class_10": 1, "class_2": 2, "Übung": 1, "class_2/deep/deeper": 1, ".hidden": 1})
    (tmp_path / "class_2" / "notes.txt").touch()
    (tmp_path / "class_2" / ".hidden.mp4").touch()
    (tmp_path / "class_2" / "LOUD.MKV").touch()
    (tmp_path / "class_10" / "folder.mp4").mkdir()  # that it is no video is told when it is read
    (tmp_path / "class_10" / "gone.mp4").symlink_to(tmp_path / "nothing")
    (tmp_path / "class_10" / "up").symlink_to(tmp_path / "class_10")
    (tmp_path / "readme.txt").touch()
    table = read_table(tmp_path)
    assert table.label_names == ("class_2", "class_10", "Übung")
    paths = [os.path.relpath(path, tmp_path) for path in table.paths]
    assert paths == [
        "class_2/0.mp4", "class_2/1.mp4", "class_2/deep/deeper/0.mp4", "class_2/LOUD.MKV",
        "class_10/0.mp4", "class_10/folder.mp4", "class_10/gone.mp4", "Übung/0.mp4",
    ]  # fmt: skip
    assert table.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert table.splits is None and np.isnan(table.starts).all() and np.isnan(table.ends).all()
    assert len(table.notes) == 1 and "ignored 1 file that is no video (1 × .txt)" in table.notes[0]
    assert read_table(str(tmp_path)).digest() == table.digest()


def test_folders_of_splits_hold_folders_of_classes(tmp_path: Path) -> None:
    for split, count in {"train": 3, "Validation": 2, "test": 1}.items():
        make_folders(tmp_path / split, {"a": count, "b": count})
    table = read_table(tmp_path)
    assert table.label_names == ("a", "b")
    split = split_table(table, val_fraction=0.5, seed=0)
    assert (len(split.train), len(split.val), len(split.test or [])) == (6, 4, 2)


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    assert read_table(make_folders(tmp_path, {"train": 2, "test": 2})).label_names == ("test", "train")


def test_a_folder_with_one_list_of_clips_stands_for_it(tmp_path: Path) -> None:
    make_folders(tmp_path, {"videos": 3})
    make_csv(tmp_path, "path,label\nvideos/0.mp4,x\nvideos/1.mp4,y\n")
    (tmp_path / "other.csv").write_text("name,size\na,1\n")
    assert read_table(tmp_path).label_names == ("x", "y")


def test_folders_of_frames_are_clips(tmp_path: Path) -> None:
    for clip in ("wave/1", "wave/2", "push/deep/3"):
        (tmp_path / clip).mkdir(parents=True)
        for i in range(1, 3):
            (tmp_path / clip / f"{i:05}.jpg").touch()
    (tmp_path / "push" / "a.mp4").touch()
    (tmp_path / "push" / "with pictures").mkdir()
    (tmp_path / "push" / "with pictures" / "b.mp4").touch()
    (tmp_path / "push" / "with pictures" / "thumb_1.jpg").touch()
    table = read_table(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in table.paths] == [
        "push/a.mp4", "push/deep/3", "push/with pictures/b.mp4", "wave/1", "wave/2",
    ]  # fmt: skip
    assert "1 × .jpg" in table.notes[0]


def test_classes_called_like_splits_may_hold_folders_of_frames(tmp_path: Path) -> None:
    for clip in ("train/1", "test/1"):
        (tmp_path / clip).mkdir(parents=True)
        (tmp_path / clip / "1.jpg").touch()
    assert read_table(tmp_path).label_names == ("test", "train")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing")
    assert "no subfolders" in refusal(tmp_path)
    (tmp_path / "loose.mp4").touch()
    assert "1 video lies directly" in refusal(tmp_path)
    assert "is a video" in refusal(tmp_path / "loose.mp4")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert "no videos in its 2 class folders" in refusal(tmp_path)
    (tmp_path / "a" / "0.jpg").touch()
    assert "1 × .jpg" in refusal(tmp_path)
    make_folders(tmp_path, {"a": 2})
    message = refusal(tmp_path)
    assert "'b'" in message and "'a'" not in message and "remove" in message
    (tmp_path / "b").rmdir()
    assert "one class only, 'a'" in refusal(tmp_path)
    assert len(read_table(tmp_path, label_names=["z", "a"])) == 2


def test_videos_beside_the_class_folders_are_named(tmp_path: Path) -> None:
    make_folders(tmp_path, {"a": 1, "b": 1})
    assert read_table(tmp_path).notes == ()
    (tmp_path / "stray.mp4").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.mp4").touch()
    table = read_table(tmp_path)
    assert len(table) == 2
    assert table.notes == (f"{tmp_path}: 1 video lies beside the class folders and is left out: 'stray.mp4'",)
    for i in range(12):
        (tmp_path / f"{i}.mp4").touch()
    (note,) = read_table(tmp_path).notes
    assert "13 videos lie beside the class folders and are left out: '0.mp4', '1.mp4'" in note
    assert note.endswith("'9.mp4' and 3 more")


def test_videos_beside_the_class_folders_of_a_split_are_named(tmp_path: Path) -> None:
    make_folders(tmp_path / "train", {"a": 1, "b": 1})
    make_folders(tmp_path / "val", {"a": 1, "b": 1})
    (tmp_path / "val" / "stray.mp4").touch()
    table = read_table(tmp_path)
    assert len(table) == 4 and table.notes[0].endswith("is left out: 'val/stray.mp4'")


def test_two_lists_in_a_folder_without_classes_are_named(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / f"{name}.csv").write_text("path,label\na.mp4,x\nb.mp4,y\n")
    assert "It holds 2 lists, 'new.csv', 'old.csv': give one of them." in refusal(tmp_path)


def test_a_table_knows_what_stands_before_the_paths_that_its_list_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folders(tmp_path / "clips", {"a": 1, "b": 1})
    assert read_table(tmp_path / "clips").base == str(tmp_path / "clips")
    (tmp_path / "d.csv").write_text("path,label\nclips/a/0.mp4,x\nclips/b/0.mp4,y\n")
    assert read_table(tmp_path / "d.csv").base == str(tmp_path)
    absolute = "".join(f"{tmp_path}/clips/{label}/0.mp4,{label}\n" for label in "ab")
    (tmp_path / "d.csv").write_text(f"path,label\n{absolute}")
    table = read_table(tmp_path / "d.csv")
    assert table.base == "" and table.select([1]).base == ""
    monkeypatch.chdir(tmp_path)
    assert read_table("clips").base == "clips"


def test_links_in_a_circle_and_folders_named_like_videos_cost_themselves_alone(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "data", {"wave": 2, "push": 2})
    (root / "wave" / "loop.mp4").symlink_to("loop.mp4")
    (root / "wave" / "loop").symlink_to("loop")
    (root / "loop").symlink_to("loop")
    (root / "wave" / "folder.mp4").mkdir()  # reported when it is read, not overlooked
    (root / "wave" / "more.mp4").mkdir()
    (root / "wave" / "more.mp4" / "more.mp4").touch()
    table = read_table(root)
    assert table.label_names == ("push", "wave")
    assert [os.path.basename(path) for path in table.paths] == [
        *("0.mp4", "1.mp4", "0.mp4", "1.mp4", "folder.mp4", "loop.mp4", "more.mp4")
    ]
    lines = make_csv(tmp_path, "path,label\na.mp4,x\ndata/wave/loop.mp4,y\n")
    assert len(read_table(lines)) == 2


def test_paths_that_name_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data is named; give a folder"):
        read_table("")
    for name in ("x" * 300, "x/" * 3000, "a\0b"):
        with pytest.raises(UsageError, match="does not exist"):
            read_table(name)


def test_given_labels_set_the_order(tmp_path: Path) -> None:
    make_folders(tmp_path, {"wave": 1, "push": 1})
    table = read_table(tmp_path, label_names=["wave", "jump", "push"])
    assert table.label_names == ("wave", "jump", "push") and table.labels.tolist() == [2, 0]
    message = refusal(tmp_path, label_names=["waves", "push", "jump"])
    assert "'wave'" in message and "nearest to 'wave': 'waves'" in message


def test_natural_order_and_endings() -> None:
    assert natural_order(["b", "a10", "a2", "A3", "10", "9", "a"]) == ["9", "10", "a", "a2", "A3", "a10", "b"]
    assert natural_order(["9" * 5000, "a01", "a1", "a2"]) == ["9" * 5000, "a01", "a1", "a2"]
    assert is_video("x/y.WebM") and not is_video("y.txt") and not is_video("mp4")


# CSV


def test_a_csv_with_everything(tmp_path: Path) -> None:
    text = (
        "path,label,split,group,start,end\r\n"
        "a.mp4,wave,train,s1,0.5,2\r\n"
        '"sub dir/ä, b.mp4", jump ,VALID,s2,,3.25\r\n'
        "\r\n"
        "/abs/c.mp4,wave,test,,4,\r\n"
    )
    table = read_table(make_csv(tmp_path, text, encoding="utf-8-sig"))
    assert list(table.paths) == [f"{tmp_path}/a.mp4", f"{tmp_path}/sub dir/ä, b.mp4", "/abs/c.mp4"]
    assert table.label_names == ("jump", "wave") and table.labels.tolist() == [1, 0, 1]
    assert list(table.splits or []) == ["train", "val", "test"] and list(table.groups or []) == ["s1", "s2", ""]
    assert np.array_equal(table.starts, [0.5, np.nan, 4], equal_nan=True)
    assert np.array_equal(table.ends, [2, 3.25, np.nan], equal_nan=True)


def test_a_csv_announces_frames(tmp_path: Path) -> None:
    table = read_table(make_csv(tmp_path, "path,label,frames\na.mp4,x,12\nb.mp4,y,\n"))
    assert table.frame_counts is not None and table.frame_counts.tolist() == [12, 0]
    assert table.record(1).frame_count is None
    assert read_table(make_csv(tmp_path, "path,label\na.mp4,x\nb.mp4,y\n")).frame_counts is None


@pytest.mark.parametrize("count", ["0", "-3", "12.0", "many", "1_0", "٣", "9" * 13])
def test_wrong_numbers_of_frames(tmp_path: Path, count: str) -> None:
    message = refusal(make_csv(tmp_path, f"path,label,frames\na.mp4,x,5\na.mp4,y,{count}\n"))
    assert f"line 3: frames is {count!r}" in message and "1 or more, or empty" in message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "ä b.mp4").touch()
    path = make_csv(tmp_path, end.join(["path,label", "ä b.mp4,größer", "a.mp4,y", ""]), encoding=encoding)
    table = read_table(path)
    assert list(table.paths) == [f"{tmp_path}/ä b.mp4", f"{tmp_path}/a.mp4"] and table.label_names == ("größer", "y")
    assert table.notes == ()


def test_names_that_are_not_utf8_are_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    path = tmp_path / "clips.csv"
    path.write_text(f"path,label\n{name},x\n{tmp_path}/a.mp4,y\n", encoding="utf-8", errors="surrogateescape")
    (tmp_path / "a.mp4").touch()
    table = read_table(path)
    assert list(table.paths) == [f"{tmp_path}/{name}", f"{tmp_path}/a.mp4"] and table.notes == ()
    (tmp_path / name).unlink()
    assert "not in UTF-8" in refusal(path)


def test_missing_files_stay_and_are_named_with_their_lines(tmp_path: Path) -> None:
    names = [f"clip {i}.mp4" for i in range(40)]
    for name in names[:25]:
        (tmp_path / name).touch()
    (tmp_path / names[0]).unlink()
    (tmp_path / names[0]).symlink_to("nowhere")  # a broken link is told when it is read
    (tmp_path / "frames").mkdir()
    (tmp_path / "more frames").mkdir()
    rows = [*(f"{name},{i % 2}" for i, name in enumerate(names)), "frames,0", "more frames/,1", "none/x.mp4,0"]
    table = read_table(make_csv(tmp_path, "path,label\n" + "\n".join(rows) + "\n"))
    assert len(table) == 43
    (note,) = table.notes
    assert "16 of 43 files are missing and will count as failed" in note and "6 more" in note
    assert "clip 25.mp4 (line 27)" in note and "clip 34.mp4 (line 36)" in note and "clip 35" not in note


def test_missing_rows_are_those_that_do_not_exist(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [f"{tmp_path}/{rng.integers(5)}/{i}" for i in rng.integers(60, size=300)] + [f"{tmp_path}/..", "no", ""]
    for i, path in enumerate(paths[:300]):
        if i % 3:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).touch()
    expected = [i for i, path in enumerate(paths) if not os.path.lexists(path)]
    assert missing_rows(StringColumn(paths)).tolist() == expected


def test_rows_that_repeat_an_earlier_one_are_left_out(tmp_path: Path) -> None:
    text = "path,label,start,end\na.mp4,x,,2\na.mp4,x,2,\n./a.mp4,x,0,2.0\nb.mp4,y,,\n"
    table = read_table(make_csv(tmp_path, text))
    assert [table.record(i).start for i in range(3)] == [None, 2, None] and len(table) == 3
    assert "left out 1 row that repeats an earlier one (line 4)" in table.notes[-1]


def test_repeated_rows_are_those_a_dictionary_finds() -> None:
    rng = np.random.default_rng(0)
    paths = [f"{'./' * (i % 2)}f{rng.integers(3)}/{rng.integers(9)}" for i in range(400)]
    starts, ends = rng.choice([math.nan, 0.0, 1.0], size=400), rng.choice([math.nan, 2.0], size=400)
    first: dict[tuple[str, float, float], int] = {}
    expected = []
    for row in range(400):
        key = (os.path.normpath(paths[row]), starts[row] if starts[row] == 1 else 0, ends[row] if ends[row] == 2 else 9)
        if first.setdefault(key, row) != row:
            expected.append((row, first[key]))
    assert repeated_rows(StringColumn(paths), starts, ends) == expected


def test_rows_that_contradict_each_other(tmp_path: Path) -> None:
    message = refusal(make_csv(tmp_path, "path,label\na.mp4,x\nb.mp4,x\na.mp4,y\n"))
    assert "line 4: " in message and "'y' here and 'x' in line 2" in message
    message = refusal(make_csv(tmp_path, "path,label,split\na.mp4,x,train\nb.mp4,y,train\na.mp4,x,val\n"))
    assert "line 4" in message and "split val here and train in line 2" in message and "keep one" in message


def test_ten_faults_are_shown_and_the_rest_is_counted(tmp_path: Path) -> None:
    rows = ["a.mp4,x", *(f",{i}" for i in range(600)), "a.mp4;y"]
    message = refusal(make_csv(tmp_path, "path,label\n" + "\n".join(rows)))
    assert "601 faults" in message and "and 591 more" in message
    assert "line 3: path is empty" in message and "line 12:" in message and "line 13:" not in message


def test_mixed_separators_are_told(tmp_path: Path) -> None:
    message = refusal(make_csv(tmp_path, "path,label\na.mp4,x\na.mp4;y\n"))
    assert "line 3: values are separated by ';' here and by ',' in the header" in message


def test_separators_of_windows_are_told(tmp_path: Path) -> None:
    message = refusal(make_csv(tmp_path, "path,label\nsub\\b.mp4,x\nsub\\c.mp4,y\n"))
    assert "separated by / here" in message


def test_labels_that_a_model_does_not_know(tmp_path: Path) -> None:
    path = make_csv(tmp_path, "path,label\na.mp4,wave\nb.mp4,push\n")
    assert read_table(path, label_names=["push", "jump", "wave"]).labels.tolist() == [2, 0]
    assert refusal(path, label_names=["pushed", "wave"]) == (
        f"{path}, line 3: the model does not know the label 'push'; did you mean 'pushed'?"
    )
    rows = "".join(f"a.mp4,label {i // 2}\n" for i in range(40))
    told = refusal(make_csv(tmp_path, "path,label\n" + rows), label_names=["x", "y"]).split("\n")
    assert told[0].endswith(": 20 faults") and told[-1] == "  and 10 more" and len(told) == 12
    assert told[2] == "  line 4: the model does not know the label 'label 1' (2 rows); it knows 'x', 'y'"


def test_a_long_list_takes_little_memory(tmp_path: Path) -> None:
    n = 200_000
    path = tmp_path / "clips.csv"
    with path.open("w") as file:
        file.write("path,label,split,group,start,end,frames\n")
        for i in range(n):
            clip, second = f"videos/class_{i % 400:03}/-0H3T2B{i % 2000:07}_000010_000020.mp4", i // 2000
            split = "train" if i % 2000 < 1500 else "val"
            file.write(f"{clip},label {i % 400},{split},,{second},{second + 1},{i % 99 + 1}\n")
    (tmp_path / "videos" / "class_000").mkdir(parents=True)
    (tmp_path / "videos" / "class_000" / "-0H3T2B0000000_000010_000020.mp4").touch()
    tracemalloc.start()
    table = read_table(path)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == n and table.record(123_456).path.endswith("class_256/-0H3T2B0001456_000010_000020.mp4")
    assert table.nbytes < 100 * n and now < 150 * n and peak < 500 * n
    assert len(pickle.dumps(table)) < 110 * n
    assert len(table.in_split("val")) == n // 4


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_in_any_order_and_separator(tmp_path: Path, separator: str) -> None:
    text = "Label,end,PATH\nx,1,a.mp4\ny,,a.mp4\n".replace(",", separator)
    table = read_table(make_csv(tmp_path, text))
    assert table.label_names == ("x", "y") and table.splits is None and table.groups is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty", "path,label"]),
        ("\n\n", ["is empty"]),
        ("path,label\n", ["lists no clips"]),
        ("a.mp4,x\nb.mp4,y\n", ["no header", "path,label"]),
        ("path,lable\na.mp4,x\n", ["unknown column 'lable'", "Did you mean 'label'"]),
        (
            "path,label,fold,begin\na.mp4,x,1,2\n",
            [
                "unknown columns 'fold', 'begin'",
                "known: path, label, split",
                "'start' for 'begin'? Rename or remove 'fold'.",
            ],
        ),
        (
            "filename,class,note\na.mp4,x,\n",
            [
                "unknown columns 'filename', 'class', 'note'; known: path, label, split, group, start, end, frames.",
                "Did you mean 'path' for 'filename'? Did you mean 'label' for 'class'? Rename or remove 'note'.",
            ],
        ),
        ("path,split\na.mp4,train\n", ["'label' is missing"]),
        ("path,label,label\na.mp4,x,y\n", ["twice"]),
        ("path,label\na.mp4,x\n,y\n", ["line 3", "path is empty"]),
        ("path,label\na.mp4,x\na.mp4, \n", ["line 3", "label is empty"]),
        ("path,label\na.mp4,x\nb, c.mp4,y\n", ["line 3", "3 values for 2 columns"]),
        ('path,label\na.mp4,x\nb.mp4,"y\nz"\n', ["line 4", "label is 'y\\nz'; a label is one line"]),
        ("path,label\na.mp4,x\na.mp4\n", ["line 3", "1 value for 2 columns"]),
        ("path,label,start,end\na.mp4,x,one,2\n", ["line 2", "start is 'one'"]),
        ("path,label,start,end\na.mp4,x,-1,2\n", ["line 2", "start is '-1'", "0 or more"]),
        ("path,label,start,end\na.mp4,x,0,inf\n", ["line 2", "end is 'inf'"]),
        ("path,label,start,end\na.mp4,x,nan,2\n", ["line 2", "start is 'nan'"]),
        ("path,label,start,end\na.mp4,x,3,2\na.mp4,x,2,2\n", ["line 2", "end (2) is not after start (3)", "line 3"]),
        ("path,label,end\na.mp4,x,0\n", ["line 2", "end (0)"]),
        ("path,label,split\na.mp4,x,trian\n", ["line 2", "'trian'", "did you mean 'train'"]),
        ("path,label,split\na.mp4,x,\n", ["line 2: split is empty; write train, val or test"]),
        ("path,label\na.mp4,x\n", ["one class only, 'x'"]),
        ("path,label\nb.mp4,x\nc.mp4,y\n", ["b.mp4 does not exist", "relative to the CSV's folder"]),
        ('path,label\n"a.mp4,x\n', ["line 2: a quote", "opens here and is not closed"]),
        ('path,label\na.mp4,x\n\n"a\nb.mp4",y\nb.mp4,"y\n' + "c.mp4,x\n" * 30_000, ["line 6: a quote", "not closed"]),
        ('path,label\na.mp4,x\nb.mp4,"y"z\n', ["line 3: something follows a closing quote"]),
        ("path,label\na.mp4,x\na.mp4," + "y" * 1001 + "\n", ["line 3", "at most 1,000 characters"]),
        ("path,label\n" + "a" * 70_000 + ",x\n", ["line 2", "longer than"]),
        ("a" * 70_000, ["line 1", "longer than"]),
        (
            "path,label,split,group\na.mp4,x,train,g1\na.mp4,y,val,g1\n",
            ["line 3: group 'g1' is in split val here and train in line 2"],
        ),
    ],
)
def test_csvs_that_cannot_be_used(tmp_path: Path, text: str, words: list[str]) -> None:
    path = make_csv(tmp_path, text)
    message = refusal(path)
    assert str(path) in message
    for word in words:
        assert word in message


def test_files_that_are_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "noise.csv"
    path.write_bytes(np.random.default_rng(0).bytes(10_000))
    assert "not a CSV" in refusal(path) or "line" in refusal(path)
    assert "not a CSV in UTF-8" in refusal(make_csv(tmp_path, "path,label\na.mp4,ü\n", encoding="latin-1"))
    os.mkfifo(tmp_path / "fifo.csv")
    assert "neither a folder nor a regular file" in refusal(tmp_path / "fifo.csv")


def test_numbers_in_messages_are_those_of_the_file(tmp_path: Path) -> None:
    text = 'path,label\n\n"a\n.mp4",x\n\na.mp4,\n'
    assert "line 6: label is empty" in refusal(make_csv(tmp_path, text))


# Splits


def test_a_draw_is_stratified_and_repeatable() -> None:
    labels = [0] * 50 + [1] * 20 + [2] * 2 + [3] + [4] * 3
    table = make_table(labels)
    split = split_table(table, val_fraction=0.2, seed=0)
    assert np.bincount(split.val.labels, minlength=5).tolist() == [10, 4, 1, 0, 1]
    assert np.bincount(split.train.labels, minlength=5).tolist() == [40, 16, 1, 1, 2]
    assert split.test is None
    assert not set(split.train.paths) & set(split.val.paths)
    np.random.seed(3)
    again = split_table(table, val_fraction=0.2, seed=0)
    assert list(again.val.paths) == list(split.val.paths)
    assert list(split_table(table, val_fraction=0.2, seed=1).val.paths) != list(split.val.paths)


def test_the_draw_does_not_depend_on_the_order_of_rows() -> None:
    table = make_table([i % 3 for i in range(60)], groups=StringColumn(f"g{i // 4}" for i in range(60)))
    shuffled = table.select(np.random.default_rng(0).permutation(60))
    for seed in range(3):
        first, second = (split_table(t, val_fraction=0.25, seed=seed) for t in (table, shuffled))
        assert set(first.val.paths) == set(second.val.paths)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
def test_every_class_with_two_clips_is_in_both_parts(fraction: float) -> None:
    labels = [*np.random.default_rng(0).integers(20, size=60).tolist(), *range(20), *range(20), 20]
    split = split_table(make_table(labels), val_fraction=fraction, seed=0)
    for part in (split.train, split.val):
        assert set(part.labels.tolist()) >= set(range(20))
    assert 20 in split.train.labels and 20 not in split.val.labels


@pytest.mark.parametrize("seed", range(5))
def test_groups_never_straddle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 300
    groups = [f"g{g}" if g else "" for g in rng.integers(40, size=n)]  # "" = on its own
    labels = rng.integers(6, size=n).tolist()
    split = split_table(make_table(labels, groups=StringColumn(groups)), val_fraction=0.2, seed=seed)
    named = [set(part.groups or []) - {""} for part in (split.train, split.val)]
    assert not named[0] & named[1]
    assert set(split.train.labels) == set(split.val.labels) == set(range(6))
    assert 0.1 < len(split.val) / n < 0.3


def test_large_groups_still_give_each_class_a_validation_clip() -> None:
    labels = [c for c in range(4) for _ in range(20)]
    groups = [f"{c}.{i // 10}" for c in range(4) for i in range(20)]  # two groups of ten per class
    split = split_table(make_table(labels, groups=StringColumn(groups)), val_fraction=0.1, seed=0)
    assert np.bincount(split.val.labels).tolist() == [10] * 4


def test_twins_stay_together() -> None:
    labels = [0, 1] * 50
    groups = StringColumn(f"scene{i // 2}" for i in range(100))
    split = split_table(make_table(labels, groups=groups), val_fraction=0.2, seed=0)
    assert np.bincount(split.val.labels).tolist() == [10, 10]


def test_cuts_of_one_file_stay_together() -> None:
    paths = [f"match{i // 10}.mp4" for i in range(60)]
    starts = np.arange(60, dtype=float)
    table = make_table([i % 2 for i in range(60)], paths=StringColumn(paths), starts=starts)
    split = split_table(table, val_fraction=0.2, seed=0)
    assert len(split.val) and not set(split.train.paths) & set(split.val.paths)


def test_named_splits_are_used() -> None:
    splits = StringColumn(["train", "val", "test", "train"])
    split = split_table(make_table([0, 1, 0, 1], splits=splits), val_fraction=0.9, seed=0)
    assert [list(part.paths) for part in split if part] == [["0000.mp4", "0003.mp4"], ["0001.mp4"], ["0002.mp4"]]


def test_validation_is_drawn_from_training_where_only_test_is_named() -> None:
    splits = StringColumn(["train"] * 20 + ["test"] * 10)
    split = split_table(make_table([i % 2 for i in range(30)], splits=splits), val_fraction=0.2, seed=0)
    assert (len(split.train), len(split.val), len(split.test or [])) == (16, 4, 10)


def test_splits_that_cannot_be_drawn() -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        split_table(make_table([0, 1], splits=StringColumn(["test", "val"])), val_fraction=0.2, seed=0)
    with pytest.raises(DataError, match="set aside"):
        split_table(make_table([0, 1]), val_fraction=0.2, seed=0)
    for fraction in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(UsageError):
            split_table(make_table([0, 1]), val_fraction=fraction, seed=0)


def slow_draw(table: ClipTable, fraction: float, seed: int) -> set[str]:
    """The rules of `split_table`, one clip at a time: paths in validation."""
    home: dict[str, set[str]] = {path: {path} for path in table.paths}
    by_group: dict[str, str] = {}
    for path, group in zip(table.paths, table.groups or [""] * len(table), strict=True):
        other = by_group.setdefault(group, path) if group else path
        merged = home[path] | home[other]
        for member in merged:
            home[member] = merged
    units = sorted({min(unit): unit for unit in home.values()}.items())
    labels = [Counter(int(c) for p, c in zip(table.paths, table.labels, strict=True) if p in unit) for _, unit in units]
    total = sum(labels, Counter[int]())
    homes = Counter(c for unit in labels for c in unit)
    share = {c: max(1, round(fraction * n)) if homes[c] > 1 else 0 for c, n in total.items()}
    taken, chosen = Counter[int](), set[int]()
    order = np.random.default_rng(seed).permutation(len(units)).tolist()
    for late in (False, True):
        for i in order:
            change = sum(
                ((taken[c] + n - share[c]) ** 2 - (taken[c] - share[c]) ** 2) / total[c] for c, n in labels[i].items()
            )
            wanted = any(share[c] and not taken[c] for c in labels[i]) if late else change < 0
            if i not in chosen and wanted and all(homes[c] > 1 for c in labels[i]):
                chosen.add(i)
                taken.update(labels[i])
                homes.subtract(labels[i].keys())
    return {path for i in chosen for path in units[i][1]}


@pytest.mark.parametrize("seed", range(12))
def test_a_draw_follows_the_rules(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 50
    paths = StringColumn(f"p{i}/é{i}.mp4" for i in rng.integers(40, size=n))
    groups = StringColumn(f"g{g}" if g else "" for g in rng.integers(15, size=n)) if seed % 3 else None
    table = make_table(rng.integers(4, size=n), paths=paths, groups=groups)
    for fraction in (0.1, 0.4):
        split = split_table(table, val_fraction=fraction, seed=seed)
        assert set(split.val.paths) == slow_draw(table, fraction, seed)
        assert len(split.train) + len(split.val) == n


# Label maps


def test_a_label_map_is_read_back_and_checked(tmp_path: Path) -> None:
    names = ("swipe left", "swipe right", "größer", "a, b; c")
    path = write_label_map(tmp_path / "labels.txt", names)
    assert path.read_text("utf-8") == "swipe left\nswipe right\ngrößer\na, b; c\n"
    assert read_label_map(path) == names and os.listdir(tmp_path) == ["labels.txt"]
    check_label_map(path, list(names))
    for other, words in {
        names[:3]: "names 4 classes and the data 3",
        (names[1], names[0], *names[2:]): "in another order; 0 was 'swipe left' and is 'swipe right' now",
        (names[0], "swipe down", *names[2:]): "class 1 was 'swipe right' and is 'swipe down' now",
    }.items():
        with pytest.raises(DataError, match=words):
            check_label_map(path, other)


@pytest.mark.parametrize("names", [["a", ""], ["a\nb", "c"], ["a", "a"], [" a", "b"], ["a\u2028b", "c"]])
def test_labels_that_no_line_can_hold(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DataError):
        write_label_map(tmp_path / "labels.txt", names)
    assert not os.listdir(tmp_path)


def test_label_maps_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    for text, words in {"": "no list of labels", "a\n\nb\n": "line 2", "a\nb\na\n": "in line 1 already"}.items():
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_label_map(path)
    path.write_text("x" * 100_000)
    with pytest.raises(DataError, match="no list of labels"):
        read_label_map(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="no regular file"):
        read_label_map(path)
    with pytest.raises(StorageError, match="could not be written"):
        write_label_map(tmp_path / "none" / "labels.txt", ["a", "b"])
