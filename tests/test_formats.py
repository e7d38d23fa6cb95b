"""Data sets in their official layouts, in miniature: which clips, labels, splits and groups are read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vireo.data.annotations import read_table, split_format
from vireo.data.formats import FORMATS
from vireo.data.table import ClipTable
from vireo.errors import DataError, UsageError

Row = tuple[str, str, str]


def touch(root: Path, *names: str) -> None:
    """Empty files, and folders with one empty frame for names that end in a slash."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            (path / "00001.jpg").touch()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")


def rows(table: ClipTable, root: Path) -> list[Row]:
    """Path below the root, label and split of each clip."""
    paths = (os.path.relpath(path, root) for path in table.paths)
    labels = (table.label_names[label] for label in table.labels)
    return list(zip(paths, labels, table.splits or [""] * len(table), strict=True))


def refusal(data: str | Path) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        read_table(data)
    message = str(caught.value)
    assert message.count("\n") < 12 and all(len(line) < 500 for line in message.split("\n"))
    return message


# Something-Something and Jester

SSV1 = {
    "something-something-v1-labels.csv": "Holding something\nTurning it upside down\nDropping something, slowly\n",
    "something-something-v1-train.csv": "100218;Holding something\n24413;Dropping something, slowly\n",
    "something-something-v1-validation.csv": "7;Turning it upside down\r\n",
    "something-something-v1-test.csv": "1420\n3\n",
}
SSV1_ROWS = [
    ("20bn-something-something-v1/100218", "Holding something", "train"),
    ("20bn-something-something-v1/24413", "Dropping something, slowly", "train"),
    ("20bn-something-something-v1/7", "Turning it upside down", "val"),
]


@pytest.mark.parametrize("folder", ["", "annotations/", "labels/"])
def test_ssv1(tmp_path: Path, folder: str) -> None:
    write(tmp_path, {folder + name: text for name, text in SSV1.items()})
    touch(tmp_path, *(f"20bn-something-something-v1/{name}/" for name in ("7", "24413", "100218", "1420", "3")))
    table = read_table(f"ssv1:{tmp_path}")
    assert rows(table, tmp_path) == SSV1_ROWS
    assert table.label_names == tuple(SSV1["something-something-v1-labels.csv"].splitlines())
    assert table.groups is None and table.frame_counts is None
    assert len(table.notes) == 1 and "left out 2 clips, which have no label" in table.notes[0]
    again = read_table(f"ssv1:{tmp_path}", label_names=list(reversed(table.label_names)))
    assert [again.label_names[i] for i in again.labels] == [label for _, label, _ in SSV1_ROWS]


def test_ssv1_with_clips_missing(tmp_path: Path) -> None:
    write(tmp_path, SSV1)
    touch(tmp_path, "frames/24413/")
    table = read_table(f"ssv1:{tmp_path}")
    assert [row[0] for row in rows(table, tmp_path)] == [SSV1_ROWS[0][0], "frames/24413", SSV1_ROWS[2][0]]
    assert "2 of 3 files are missing" in table.notes[-1]
    assert "(something-something-v1-train.csv, line 1)" in table.notes[-1]
    assert "(something-something-v1-validation.csv, line 1)" in table.notes[-1]
    (tmp_path / "frames" / "24413" / "00001.jpg").unlink()
    (tmp_path / "frames" / "24413").rmdir()
    message = refusal(f"ssv1:{tmp_path}")
    assert "none of the 3 clips is there" in message and "20bn-something-something-v1/100218" in message


def test_lists_of_something_that_cannot_be_used(tmp_path: Path) -> None:
    assert "something-something-v1-labels.csv or labels.csv" in refusal(f"ssv1:{tmp_path}")
    name = "something-something-v1-train.csv"
    write(tmp_path, {next(iter(SSV1)): SSV1[next(iter(SSV1))]})
    assert name in refusal(f"ssv1:{tmp_path}") and "annotations/" in refusal(f"ssv1:{tmp_path}")
    touch(tmp_path, "frames/1/")
    write(tmp_path, {name: "1;Holding something\n2;Holding nothing\n3;Holding nobody\n"})
    message = refusal(f"ssv1:{tmp_path}")
    assert f"{name}, line 2: label 'Holding nothing' is not in the list of labels" in message and "2 faults" in message
    write(tmp_path, {name: "1;Holding something\n../../etc/passwd;Holding something\n1,Holding something\n"})
    message = refusal(f"ssv1:{tmp_path}")
    assert "line 2: '../../etc/passwd" in message and "line 3: '1,Holding" in message and "id;label" in message


def ssv2(folder: str, train: str, validation: str, test: str, labels: str) -> dict[str, str]:
    def entry(name: str, template: str, **more: object) -> dict[str, object]:
        return {"id": name, "label": "holding a pen", "template": template, "placeholders": ["a pen"], **more}

    lists = {
        train: [
            entry("78687", "Holding [something] next to [something]"),
            entry("-42326", "Putting [something that cannot actually stand upright] upright on the table"),
        ],
        validation: [entry("41775", "Turning [something] upside down")],
        test: [{"id": "1420"}],
    }
    numbers = {
        "Turning something upside down": "2",
        "Holding something next to something": "0",
        "Putting something that cannot actually stand upright upright on the table": "1",
    }
    return {folder + name: json.dumps(value) for name, value in (lists | {labels: numbers}).items()}


@pytest.mark.parametrize(
    "files",
    [
        ssv2("labels/", "train.json", "validation.json", "test.json", "labels.json"),
        ssv2("", *(f"something-something-v2-{part}.json" for part in ("train", "validation", "test", "labels"))),
    ],
)
def test_ssv2(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    touch(tmp_path, *(f"20bn-something-something-v2/{name}.webm" for name in ("78687", "-42326", "41775", "1420")))
    table = read_table(f"ssv2:{tmp_path}")
    standing = "Putting something that cannot actually stand upright upright on the table"
    assert rows(table, tmp_path) == [
        ("20bn-something-something-v2/78687.webm", "Holding something next to something", "train"),
        ("20bn-something-something-v2/-42326.webm", standing, "train"),
        ("20bn-something-something-v2/41775.webm", "Turning something upside down", "val"),
    ]
    assert table.label_names[0].startswith("Holding") and table.label_names[2].startswith("Turning")
    assert len(table.notes) == 1 and "left out 1 clip, which has no label there" in table.notes[0]


def test_a_label_of_ssv2_that_is_a_typo_gets_the_nearest(tmp_path: Path) -> None:
    files = ssv2("", "train.json", "validation.json", "test.json", "labels.json")
    wrong = files["train.json"].replace("Holding [something]", "holding [somthing]")
    assert wrong != files["train.json"]
    write(tmp_path, files | {"train.json": wrong})
    touch(tmp_path, *(f"20bn-something-something-v2/{name}.webm" for name in ("78687", "-42326", "41775", "1420")))
    message = refusal(f"ssv2:{tmp_path}")
    assert "train.json, entry " in message
    assert "is not in the list of labels; did you mean 'Holding something next to something'?" in message


def test_ssv2_test_answers_and_frames(tmp_path: Path) -> None:
    write(tmp_path, ssv2("labels/", "train.json", "validation.json", "test.json", "labels.json"))
    write(tmp_path, {"labels/test-answers.csv": "1420;Turning something upside down\n"})
    touch(tmp_path, "frames/78687/", "frames/-42326/", "frames/41775/", "frames/1420/", "videos/41775.webm")
    table = read_table(f"ssv2:{tmp_path}")
    assert rows(table, tmp_path)[2:] == [
        ("videos/41775.webm", "Turning something upside down", "val"),  # a video goes before frames
        ("frames/1420", "Turning something upside down", "test"),
    ]
    assert table.notes == ()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("labels.json", "[1, 2]", "not a map of labels"),
        ("labels.json", '{"a": "0", "b": "0"}', "not a map of labels"),
        ("labels.json", "{", "not JSON (line 1"),
        ("labels.json", "[" * 100_000, "not JSON"),
        ("train.json", '{"id": 1}', "not a list of clips"),
        ("train.json", '[{"id": "a/b", "template": "x"}]', "train.json, entry 1: id is 'a/b'"),
        ("train.json", '["x"]', "entry 1: id is ''"),
        ("train.json", '[{"id": 3, "template": ["x"]}]', "entry 1: template is"),
        ("train.json", '[{"id": 3, "template": "[Nothing] at all"}]', "entry 1: label 'Nothing at all' is not in"),
        ("train.json", '[{"id": 3, "template": "\\ud800"}]', "is not in the list of labels"),
    ],
)
def test_json_that_cannot_be_used(tmp_path: Path, name: str, text: str, words: str) -> None:
    write(tmp_path, ssv2("labels/", "train.json", "validation.json", "test.json", "labels.json"))
    write(tmp_path, {f"labels/{name}": text})
    touch(tmp_path, "videos/3.webm", "videos/41775.webm")
    assert words in refusal(f"ssv2:{tmp_path}")


@pytest.mark.parametrize("official", [True, False])
def test_jester(tmp_path: Path, official: bool) -> None:
    names = "jester-v1-{}.csv" if official else "labels/{}.csv"
    header = "" if official else "label\n"
    write(
        tmp_path,
        {
            names.format("labels"): header + "Swiping Left\nSwiping Right\nNo gesture\n",
            names.format("train"): "34870;Swiping Right\n56557;No gesture\n",
            names.format("validation"): "9;Swiping Left\n",
            names.format("test"): "15\n",
        },
    )
    touch(tmp_path, *(f"20bn-jester-v1/{name}/" for name in ("34870", "56557", "9", "15")))
    table = read_table(f"jester:{tmp_path}")
    assert table.label_names == ("Swiping Left", "Swiping Right", "No gesture")
    assert rows(table, tmp_path) == [
        ("20bn-jester-v1/34870", "Swiping Right", "train"),
        ("20bn-jester-v1/56557", "No gesture", "train"),
        ("20bn-jester-v1/9", "Swiping Left", "val"),
    ]


# Kinetics

KINETICS = {
    "train.csv": "label,youtube_id,time_start,time_end,split,is_cc\n"
    '"massaging person\'s head",-3B32lodo2M,59,69,train,0\n'
    "air drumming,_dbcJuKJQNs,4,14,train,0\n"
    "air drumming,aaaaaaaaaaa,0,10,train,0\n",
    "validate.csv": "label,youtube_id,time_start,time_end,split\nabseiling,bbbbbbbbbbb,120,130,validate\n",
    "test.csv": "youtube_id,time_start,time_end,split\nccccccccccc,1,11,test\n",
}
LONG = {"-3B32lodo2M": "000059_000069", "_dbcJuKJQNs": "000004_000014", "bbbbbbbbbbb": "000120_000130"}


@pytest.mark.parametrize(
    "places",
    [
        # as downloaded, flat; folders of classes, spelt in different ways; files named by the id alone; frames
        [f"{split}/{name}_{LONG[name]}.mp4" for name, split in zip(LONG, ("train", "train", "val"), strict=True)],
        [
            f"train_256/massaging_person's_head/-3B32lodo2M_{LONG['-3B32lodo2M']}.mp4",
            f"train_256/air drumming/_dbcJuKJQNs_{LONG['_dbcJuKJQNs']}.mkv",
            f"val_256/abseiling/bbbbbbbbbbb_{LONG['bbbbbbbbbbb']}.mp4",
        ],
        ["videos/-3B32lodo2M.mp4", "videos/_dbcJuKJQNs.webm", "videos/bbbbbbbbbbb.mp4"],
        [f"rawframes_train/{name}_{LONG[name]}/" for name in LONG],
    ],
)
@pytest.mark.parametrize("folder", ["", "annotations/kinetics_"])
def test_kinetics400(tmp_path: Path, places: list[str], folder: str) -> None:
    write(tmp_path, {folder + name: text for name, text in KINETICS.items()})
    touch(tmp_path, *places)
    table = read_table(f"kinetics400:{tmp_path}")
    assert table.label_names == ("abseiling", "air drumming", "massaging person's head")
    places = [place.rstrip("/") for place in places]
    assert rows(table, tmp_path) == [
        (places[0], "massaging person's head", "train"),
        (places[1], "air drumming", "train"),
        ("train/aaaaaaaaaaa_000000_000010.mp4", "air drumming", "train"),
        (places[2], "abseiling", "val"),
    ]
    left_out, missing = table.notes
    assert "test.csv: left out 1 clip," in left_out and "1 of 4 files is missing" in missing and "line 4)" in missing


def test_mini_kinetics200(tmp_path: Path) -> None:
    write(tmp_path, {f"annotations/{name}": text for name, text in KINETICS.items()})
    lists = {"train_ytid_list.txt": "_dbcJuKJQNs\n-3B32lodo2M\nzzzzzzzzzzz\n", "val_ytid_list.txt": "bbbbbbbbbbb\n"}
    write(tmp_path, lists)
    touch(tmp_path, *(f"videos/{name}.mp4" for name in LONG))
    table = read_table(f"mini_kinetics200:{tmp_path}")
    assert rows(table, tmp_path) == [
        ("videos/_dbcJuKJQNs.mp4", "air drumming", "train"),
        ("videos/-3B32lodo2M.mp4", "massaging person's head", "train"),
        ("videos/bbbbbbbbbbb.mp4", "abseiling", "val"),
    ]
    (note,) = (note for note in table.notes if "ytid" in note)
    assert "left out 1 id that" in note and "zzzzzzzzzzz (line 3)" in note
    assert "train_ytid_list.txt" in refusal(f"mini_kinetics200:{moved(tmp_path, *lists)}")


def moved(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).unlink()
    return root


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,id\nx,y\n", "no columns youtube_id"),
        ("", "no columns youtube_id"),
        ("label,youtube_id,time_start,time_end\nx,a/b,1,2\n", "line 2: youtube_id is 'a/b'"),
        ("label,youtube_id,time_start,time_end\nx,ab,1,-2\n", "line 2: time_start and time_end are '1 and -2'"),
        ("label,youtube_id,time_start,time_end\nx,ab\n", "line 2: time_start and time_end"),
        ("label,youtube_id,time_start,time_end\n,ab,1,2\n", "no clips with labels"),
    ],
)
def test_kinetics_lists_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path, {"train.csv": text})
    assert words in refusal(f"kinetics400:{tmp_path}")


# UCF101 and HMDB51


def ucf101(root: Path, folder: str) -> None:
    write(
        root,
        {
            f"{folder}classInd.txt": "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n3 YoYo\r\n",
            f"{folder}trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
            "HandstandPushups/v_HandStandPushups_g08_c02.avi 2\r\nYoYo/v_YoYo_g09_c01.avi 3\r\n",
            f"{folder}testlist01.txt": "HandStandPushups/v_HandStandPushups_g01_c01.avi\r\nYoYo/v_YoYo_g01_c03.avi\r\n",
            f"{folder}trainlist02.txt": "YoYo/v_YoYo_g01_c03.avi 3\n",
            f"{folder}testlist02.txt": "YoYo/v_YoYo_g09_c01.avi\n",
        },
    )


@pytest.mark.parametrize("folder", ["ucfTrainTestlist/", "annotations/", ""])
@pytest.mark.parametrize(
    ("place", "ending"), [("UCF-101/{}/", ".avi"), ("videos/{}/", ".avi"), ("UCF-101/", ".avi"), ("rawframes/{}/", "/")]
)
def test_ucf101(tmp_path: Path, folder: str, place: str, ending: str) -> None:
    ucf101(tmp_path, folder)
    clips = {
        "v_ApplyEyeMakeup_g08_c01": ("ApplyEyeMakeup", "train"),
        "v_HandStandPushups_g08_c02": ("HandstandPushups", "train"),
        "v_YoYo_g09_c01": ("YoYo", "train"),
        "v_HandStandPushups_g01_c01": ("HandstandPushups", "test"),
        "v_YoYo_g01_c03": ("YoYo", "test"),
    }
    paths = [place.format(label) + name + ending for name, (label, _) in clips.items()]
    touch(tmp_path, *paths)
    table = read_table(f"ucf101:{tmp_path}")
    expected = [(path.rstrip("/"), *clip) for path, clip in zip(paths, clips.values(), strict=True)]
    assert rows(table, tmp_path) == expected and table.notes == ()
    assert table.label_names == ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
    assert list(table.groups or [])[1:4] == ["HandstandPushups_g08", "YoYo_g09", "HandstandPushups_g01"]
    second = read_table(f"ucf101-split2:{tmp_path}")
    assert [(label, split) for _, label, split in rows(second, tmp_path)] == [("YoYo", "train"), ("YoYo", "test")]
    assert "trainlist03.txt" in refusal(f"ucf101-split3:{tmp_path}")


def test_ucf101_files_of_the_other_spelling(tmp_path: Path) -> None:
    ucf101(tmp_path, "")
    touch(tmp_path, "UCF-101/HandStandPushups/v_HandstandPushups_g08_c02.avi")
    paths = list(read_table(f"ucf101:{tmp_path}").paths)
    assert f"{tmp_path}/UCF-101/HandStandPushups/v_HandstandPushups_g08_c02.avi" in paths


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "classInd.txt",
            "1 YoYo\nApplyEyeMakeup\n",
            "classInd.txt, line 2: 'ApplyEyeMakeup' is not a number and a name",
        ),
        ("trainlist01.txt", "v_YoYo_g01_c03.avi 3\n", "trainlist01.txt, line 1: 'v_YoYo_g01_c03.avi 3' is not Class/"),
        (
            "trainlist01.txt",
            "\nYoyoYo/v_YoYo_g01_c03.avi 3\n",
            "line 2: class 'YoyoYo' is not in classInd.txt; did you mean 'YoYo'?",
        ),
        (
            "trainlist01.txt",
            "\nKnitting/v_YoYo_g01_c03.avi 3\n",
            "line 2: class 'Knitting' is not in classInd.txt; add it",
        ),
        ("trainlist01.txt", "YoYo/v_YoYo_g01_c03.avi 2\n", "line 1: YoYo is class 2 here and 3 in classInd.txt"),
    ],
)
def test_ucf101_lists_that_cannot_be_used(tmp_path: Path, name: str, text: str, words: str) -> None:
    ucf101(tmp_path, "")
    write(tmp_path, {name: text})
    touch(tmp_path, "UCF-101/YoYo/v_YoYo_g01_c03.avi")
    assert words in refusal(f"ucf101:{tmp_path}")


HMDB_KICK = "50_FIRST_DATES_kick_f_cm_np1_ba_med_19.avi"
HMDB_PICK = "#122_Cleaning_Up_The_Beach_At_Chapel_Point_pick_f_nm_np1_le_med_0.avi"
HMDB_ODD = "(HQ)_Rock_Me_Amadeus_-_Falco_kick_ball_f_cm_np1_ba_goo_3 copy.avi"


@pytest.mark.parametrize("folder", ["", "testTrainMulti_7030_splits/", "annotations/"])
@pytest.mark.parametrize("place", ["{}/{}.avi", "videos/{}/{}.avi", "hmdb51_org/{}/{}.avi", "rawframes/{}/{}/"])
def test_hmdb51(tmp_path: Path, folder: str, place: str) -> None:
    write(
        tmp_path,
        {
            f"{folder}kick_test_split1.txt": f"{HMDB_KICK} 1 \nunused_kick_f_nm_np1_ba_goo_0.avi 0 \n",
            f"{folder}kick_ball_test_split1.txt": f"{HMDB_ODD} 2 \n",
            f"{folder}pick_test_split1.txt": f"{HMDB_PICK} 2 \n",
            f"{folder}pick_test_split2.txt": f"{HMDB_PICK} 1 \n",
            f"{folder}kick_test_split2.txt": f"{HMDB_KICK} 2 \n",
        },
    )
    clips = {"kick": HMDB_KICK, "kick_ball": HMDB_ODD, "pick": HMDB_PICK}
    paths = {label: place.format(label, name.removesuffix(".avi")) for label, name in clips.items()}
    touch(tmp_path, *paths.values())
    table = read_table(f"hmdb51:{tmp_path}")
    found = {label: (path, split) for path, label, split in rows(table, tmp_path)}
    assert found == {label: (path.rstrip("/"), "train" if label == "kick" else "test") for label, path in paths.items()}
    assert table.label_names == ("kick", "kick_ball", "pick")
    assert sorted(table.groups or []) == [
        "kick/50_FIRST_DATES", "kick_ball/(HQ)_Rock_Me_Amadeus_-_Falco",
        "pick/#122_Cleaning_Up_The_Beach_At_Chapel_Point",
    ]  # fmt: skip
    second = read_table(f"hmdb51-split2:{tmp_path}")
    assert [(label, split) for _, label, split in rows(second, tmp_path)] == [("kick", "test"), ("pick", "train")]


def test_hmdb51_takes_a_clip_from_the_folder_of_its_class(tmp_path: Path) -> None:
    write(tmp_path, {"a_test_split1.txt": "x.avi 1\n", "b_test_split1.txt": "x.avi 2\n"})
    touch(tmp_path, "videos/a/x.avi", "videos/b/x.avi")
    assert rows(read_table(f"hmdb51:{tmp_path}"), tmp_path) == [
        ("videos/a/x.avi", "a", "train"),
        ("videos/b/x.avi", "b", "test"),
    ]


def test_hmdb51_lists_that_cannot_be_used(tmp_path: Path) -> None:
    assert "CLASS_test_split1.txt" in refusal(f"hmdb51:{tmp_path}")
    write(tmp_path, {"a_test_split1.txt": "x.avi 1\ny.avi\n../z.avi 1\nx y.avi 3\n", "b_test_split1.txt": "x.avi 2\n"})
    message = refusal(f"hmdb51:{tmp_path}")
    assert "3 faults" in message and "a_test_split1.txt, line 2: 'y.avi'" in message and "line 4" in message


# Lists


def test_a_list_of_numbered_frames(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "train_videofolder.txt": "100218 42 1\n24 413 12 0\r\n",
            "val_videofolder.txt": "/abs/7 30 2\n",
            "category.txt": "Holding something\nDropping something\nTurning something\n",
        },
    )
    touch(tmp_path, "frames/100218/", "frames/24 413/")
    table = read_table(f"list:{tmp_path}")
    assert rows(table, tmp_path)[:2] == [
        ("frames/100218", "Dropping something", "train"),
        ("frames/24 413", "Holding something", "train"),
    ]
    assert table.paths[2] == "/abs/7" and list(table.splits or [])[2] == "val"
    assert table.frame_counts is not None and table.frame_counts.tolist() == [42, 12, 30]
    assert table.label_names == ("Holding something", "Dropping something", "Turning something")
    assert "1 of 3 files is missing" in table.notes[0] and "(val_videofolder.txt, line 1)" in table.notes[0]


@pytest.mark.parametrize("first", [0, 1])
def test_a_list_beside_numbered_names(tmp_path: Path, first: int) -> None:
    write(
        tmp_path,
        {
            "lists/ucf101_train_split_1_videos.txt": f"a b/x.avi {first}\nc.avi {first + 1}\n",
            "classInd.txt": "1 Archery\n2 YoYo\n",
        },
    )
    touch(tmp_path, "lists/a b/x.avi", "lists/c.avi")
    table = read_table(f"list:{tmp_path}/lists/ucf101_train_split_1_videos.txt")
    assert table.label_names == ("Archery", "YoYo") and table.labels.tolist() == [0, 1]
    assert table.splits is None and table.frame_counts is None
    assert [os.path.relpath(path, tmp_path) for path in table.paths] == ["lists/a b/x.avi", "lists/c.avi"]


def test_lists_of_texts_numbers_and_tabs(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b c.mp4")
    write(tmp_path, {"l.txt": "a.mp4 wave\nb c.mp4 push\n"})
    assert [row[1:] for row in rows(read_table(f"list:{tmp_path}/l.txt"), tmp_path)] == [("wave", ""), ("push", "")]
    write(tmp_path, {"l.txt": "a.mp4 10\nb c.mp4 9\n"})
    assert read_table(f"list:{tmp_path}/l.txt").label_names == ("9", "10")
    write(tmp_path, {"l.txt": "\ufeffa.mp4\t8\twave left\nb c.mp4\t9\tpush it\n"})
    table = read_table(f"list:{tmp_path}/l.txt")
    assert table.label_names == ("push it", "wave left") and table.record(0).frame_count == 8
    assert os.path.relpath(table.paths[0], tmp_path) == "a.mp4"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.mp4 1\nb.mp4\n", "line 2: 'b.mp4' is not path label"),
        ("a.mp4,1\nb.mp4,2\n", "line 1: 'a.mp4,1' is not path label, separated by spaces"),
        ("a 3 1\nb 4 0\nc many 1\n", "line 3: frames is 'many'; it must be the number of frames, 1 or more"),
        ("a 3 1\nb 4 0\nc 0 1\n", "line 3: frames is '0'"),
        ("a 3 1\nb -4 0\nc 5 1\n", "line 2: frames is '-4'"),
        ("a.mp4 0\na.mp4 1\n", "line 2: "),
        ("a.mp4 0\nb.mp4 0\n", "one class only"),
        ("\n\n", "lists no clips"),
        ("q.mp4 0\nr.mp4 1\n", "does not exist, nor does any other of the 2 files"),
        ("x" * 70_000, "line 1: longer than"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path, {"l.txt": text})
    assert words in refusal(f"list:{tmp_path}/l.txt")


def test_one_wrong_label_of_a_list_is_told_alone(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.mp4" for i in range(6)))
    right = "".join(f"{i}.mp4 {i % 2}\n" for i in range(5))
    write(tmp_path, {"labels.txt": "wave\npush\n", "l.txt": right})
    assert read_table(f"list:{tmp_path}/l.txt").label_names == ("wave", "push")
    for wrong, remedy in (("l", "the others are numbers of the classes in"), ("Wavve", "did you mean 'wave'?")):
        write(tmp_path, {"l.txt": f"{right}5.mp4 {wrong}\n"})
        message = refusal(f"list:{tmp_path}/l.txt")
        assert f"l.txt, line 6: label '{wrong}' is not in the list of labels; {remedy}" in message


def test_folders_of_lists_that_cannot_be_used(tmp_path: Path) -> None:
    assert "holds no list like train_videofolder.txt" in refusal(f"list:{tmp_path}")
    write(tmp_path, {"train_split_1.txt": "a 0\n", "train_split_2.txt": "a 0\n"})
    assert "2 lists for train, train_split_1.txt and train_split_2.txt" in refusal(f"list:{tmp_path}")
    write(moved(tmp_path, "train_split_2.txt"), {"labels.txt": "x\ny\n", "train_split_1.txt": "a 0\nb 2\n"})
    assert "has label 2, which" in refusal(f"list:{tmp_path}")


# Names of data sets


def test_a_format_and_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.mp4", "b/1.mp4")
    assert len(read_table(f"folder:{tmp_path}")) == len(read_table(f"FOLDER:{tmp_path}")) == len(read_table(tmp_path))
    write(tmp_path, {"l.csv": "path,label\na/1.mp4,x\nb/1.mp4,y\n"})
    for data in (f"csv:{tmp_path}/l.csv", f"csv:{tmp_path}", Path(f"csv:{tmp_path}/l.csv"), tmp_path):
        assert read_table(data).label_names == ("x", "y")
    assert read_table(f"folder:{tmp_path}").label_names == ("a", "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_table("folder:~").label_names == ("a", "b")
    monkeypatch.chdir(tmp_path)
    os.rename("b", "ssv2:b")
    touch(tmp_path, "ssv2:b/c/1.mp4", "ssv2:b/d/1.mp4", "C:\\clips/e/1.mp4", "C:\\clips/f/1.mp4")
    assert read_table("ssv2:b").label_names == ("c", "d") and read_table("C:\\clips").label_names == ("e", "f")
    assert split_format("D:\\clips") == ("", Path("D:\\clips"))


def test_a_format_that_does_not_take_what_it_is_given_says_what_does(tmp_path: Path) -> None:
    write(tmp_path, {"l.csv": "path,label\na/1.mp4,x\nb/1.mp4,y\n"})
    for name in ("folder", "ucf101", "ssv2"):
        message = refusal(f"{name}:{tmp_path}/l.csv")
        assert f"is a file, and {name}: takes a folder; csv:{tmp_path}/l.csv" in message
    touch(tmp_path, "classes/a/1.mp4", "classes/b/1.mp4")
    message = refusal(f"csv:{tmp_path}/classes")
    assert "no CSV with the columns path and label" in message and f"folder:{tmp_path}/classes" in message
    write(tmp_path, {"m.csv": "path,label\na/1.mp4,x\n"})
    message = refusal(f"csv:{tmp_path}")
    assert "2 lists, 'l.csv', 'm.csv'; give one of them" in message


def test_names_that_no_format_has(tmp_path: Path) -> None:
    assert "no data format 'ssv3'; did you mean" in refusal("ssv3:/data") and "ssv2" in refusal("ssv3:/data")
    assert "did you mean kinetics400 or" in refusal("kinetics:/data")
    assert "known: folder, csv, list" in refusal("https://example.org/x")
    assert f"{tmp_path}/none does not exist" in refusal(f"ssv2:{tmp_path}/none")
    assert "write ssv2:PATH" in refusal("ssv2:")
    os.mkfifo(tmp_path / "fifo")
    assert "neither a folder nor a regular file" in refusal(f"csv:{tmp_path}/fifo")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_refuses_what_it_cannot_read(tmp_path: Path, name: str) -> None:
    """A file where a folder is needed, an empty folder, a folder in place of each file it looks for."""
    assert re.fullmatch(r"[a-z0-9_]+(-split\d)?", name) and FORMATS[name].description
    (tmp_path / "file").write_bytes(b"\xff\x00\xfe")
    (tmp_path / "empty").mkdir()
    for data in ("file", "empty"):
        with pytest.raises((DataError, UsageError)):
            read_table(f"{name}:{tmp_path}/{data}")


@pytest.mark.parametrize("make", [lambda path: os.mkfifo(path), lambda path: path.mkdir()])
def test_no_fifo_is_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    for name in (
        "train.csv",
        "train.json",
        "labels.json",
        "labels.csv",
        "classInd.txt",
        "a_test_split1.txt",
        "train.txt",
    ):
        make(tmp_path / name)
    for name in FORMATS:
        with pytest.raises((DataError, UsageError)):
            read_table(f"{name}:{tmp_path}")


def test_a_folder_of_an_official_data_set_is_told(tmp_path: Path) -> None:
    ucf101(tmp_path, "ucfTrainTestlist/")
    touch(tmp_path, "UCF-101/YoYo/v_YoYo_g01_c03.avi")
    assert f"It looks like UCF101, split 1: ucf101:{tmp_path} reads it" in refusal(tmp_path)


def test_no_line_takes_long(tmp_path: Path) -> None:
    """A pattern that goes back over spaces for each of 60,000 would take minutes."""
    line = "YoYo/a" + " " * 60_000 + "x"
    ucf101(tmp_path, "")
    write(tmp_path, {"trainlist01.txt": line + "\n", "jester-v1-labels.csv": "x\ny\n", "jester-v1-train.csv": line})
    write(
        tmp_path,
        {"a_test_split1.txt": line, "l.txt": line, "train.csv": f"youtube_id,time_start,time_end\n{line},1,2\n"},
    )
    touch(tmp_path, "UCF-101/YoYo/v_YoYo_g01_c03.avi")
    for data in ("jester:", "hmdb51:", "kinetics400:"):
        refusal(f"{data}{tmp_path}")
    refusal(f"list:{tmp_path}/l.txt")
    assert len(read_table(f"ucf101:{tmp_path}")) == 3
