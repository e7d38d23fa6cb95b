"""The data sets of the field, as their authors distribute them.

A format takes the folder that holds the official annotation files, directly or in a usual subfolder, and the clips,
as video files or folders of frames. Nothing has to be renamed or moved: clips are found by the names that the
annotations give them, below the folders they usually are in.

    Something-Something V1, Jester   id;label                      frames ID/00001.jpg
    Something-Something V2           JSON {id, template, …}         ID.webm, or frames ID/000001.jpg
    Kinetics-400                     label,youtube_id,time_start,…  ID_000010_000020.mp4, or ID.mp4
    UCF101                           Class/v_Class_g01_c01.avi      the same, three splits
    HMDB51                           CLASS_test_split1.txt          CLASS/name.avi, three splits

Labels keep their official text and order. Clips without a label (test sets whose labels are kept by a server) are
left out with a note.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vireo.data.folders import read_folder
from vireo.data.labels import did_you_mean, read_label_map
from vireo.data.lists import bounded_lines, csv_lists_in, opened, read_csv, read_list
from vireo.data.official import (
    ANNOTATION_FOLDERS,
    CLIP_ID,
    Clip,
    Part,
    find_clips,
    left_out,
    lines_of,
    locate,
    locate_splits,
    read_json,
    require,
)
from vireo.data.rows import Faults, is_utf8, quote
from vireo.data.table import SPLITS, ClipTable, counted, some
from vireo.errors import DataError

Reader = Callable[[Path, Sequence[str] | None, str], ClipTable]


class Format(NamedTuple):
    """How a data set is read."""

    read: Reader
    """Called with the folder, the label names wanted (None = the official ones) and the modality."""
    description: str


# Something-Something and Jester

SSV1_WORDS = ("20bn-something-something-v1", "something-something-v1", "ssv1", "sthv1")
SSV2_WORDS = ("20bn-something-something-v2", "something-something-v2", "ssv2", "sthv2")
JESTER_WORDS = ("20bn-jester-v1", "jester-v1", "jester")
"""Names of folders that hold clips; the first is the official one."""


def _read_something(
    root: Path, label_names: Sequence[str] | None, modality: str, *, name: str, words: Sequence[str]
) -> ClipTable:
    """Files of lines ``id;label``; clips are folders of frames named by id."""
    lists = {
        "train": (f"{name}-train.csv", "train.csv"),
        "val": (f"{name}-validation.csv", "validation.csv"),
        "test": (f"{name}-test-answers.csv", "test-answers.csv", f"{name}-test.csv", "test.csv"),
    }
    labels_file = require(root, (f"{name}-labels.csv", "labels.csv"))
    order = [label for label in read_label_map(labels_file) if label != "label"]  # some copies have a header
    faults, parts, notes = Faults(), [], []
    for split, file in locate_splits(root, lists).items():
        clips, unlabelled = _pairs(file, faults, words[0])
        parts.append(Part(split, file, clips))
        notes += left_out(file, unlabelled)
    return find_clips(root, parts, label_names, modality, order=order, words=words, notes=notes, faults=faults)


def _pairs(path: Path, faults: Faults, folder: str, ending: str = "") -> tuple[list[Clip], int]:
    """Clips of lines ``id;label``, and the number of lines that have no label."""
    clips, unlabelled = [], 0
    for number, line in lines_of(path):
        name, separator, label = (piece.strip() for piece in line.partition(";"))
        if number == 1 and re.fullmatch(r"(video_?)?id(;.*)?", line, re.IGNORECASE):
            continue
        if not CLIP_ID.fullmatch(name):
            faults.add(f"{path.name}, line {number}", f"{quote(line)} does not begin with a clip's id; write id;label")
        elif separator and label:
            clips.append(Clip(number, (name,), label, f"{folder}/{name}{ending}"))
        else:
            unlabelled += 1
    return clips, unlabelled


def read_ssv2(root: Path, label_names: Sequence[str] | None, modality: str) -> ClipTable:
    """Something-Something V2: JSON lists whose templates, without brackets, are the labels."""
    name, folder = "something-something-v2", SSV2_WORDS[0]
    labels_file = require(root, (f"{name}-labels.json", "labels.json"))
    order = ssv2_labels(labels_file)
    lists = {
        "train": (f"{name}-train.json", "train.json"),
        "val": (f"{name}-validation.json", "validation.json"),
        "test": (f"{name}-test-answers.csv", "test-answers.csv", f"{name}-test.json", "test.json"),
    }
    faults, parts, notes = Faults(), [], []
    for split, file in locate_splits(root, lists).items():
        if file.suffix == ".csv":
            clips, unlabelled = _pairs(file, faults, folder, ".webm")
        else:
            clips, unlabelled = _ssv2_clips(file, faults, folder)
        parts.append(Part(split, file, clips, "line" if file.suffix == ".csv" else "entry"))
        notes += left_out(file, unlabelled)
    return find_clips(root, parts, label_names, modality, order=order, words=SSV2_WORDS, notes=notes, faults=faults)


def ssv2_labels(path: Path) -> list[str]:
    """Something-Something V2's labels in their order.

    Raises:
        DataError: the file is not the official one.
    """
    labels = read_json(path)
    if not isinstance(labels, dict) or sorted(map(str, labels.values())) != sorted(map(str, range(len(labels)))):
        raise DataError(f'{path} is not a map of labels to "0", "1", …; it must be the official file')
    if not is_utf8("".join(labels)):
        raise DataError(f"{path} holds half of a surrogate pair; it must be the official file")
    return sorted(labels, key=lambda label: int(labels[label]))


def _ssv2_clips(path: Path, faults: Faults, folder: str) -> tuple[list[Clip], int]:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path} is not a list of clips; it must be the official file")
    clips, unlabelled = [], 0
    for number, entry in enumerate(entries, 1):
        where, entry = f"{path.name}, entry {number}", entry if isinstance(entry, dict) else {}
        name, template = str(entry.get("id", "")), entry.get("template")
        if not CLIP_ID.fullmatch(name):
            faults.add(where, f"id is {quote(name)}; it must be a clip's number")
        elif template is None:
            unlabelled += 1
        elif not isinstance(template, str):
            faults.add(where, f"template is {quote(str(template))}; it must be a text")
        else:
            label = template.replace("[", "").replace("]", "").strip()
            clips.append(Clip(number, (name,), label, f"{folder}/{name}.webm"))
    return clips, unlabelled


# Kinetics

_KINETICS_PREFIXES = ("", "kinetics400_", "kinetics_400_", "kinetics-400_", "kinetics_", "k400_")
_KINETICS_FOLDERS = ("kinetics400", "kinetics_400", "kinetics-400", "k400", "k400/annotations", "mini-kinetics")
_KINETICS_WORDS = ("kinetics400", "kinetics", "k400", "minikinetics", "minikinetics200")


class _Segment(NamedTuple):
    line: int
    label: str
    start: int
    end: int


def read_kinetics400(root: Path, label_names: Sequence[str] | None, modality: str) -> ClipTable:
    """Kinetics-400: CSV with a header; a file named by the id alone is taken to be the clip, cut already."""
    faults, notes, parts = Faults(), [], []
    for split, file in locate_splits(root, _kinetics_files(), _KINETICS_FOLDERS).items():
        segments, unlabelled = _kinetics_segments(file, faults)
        notes += left_out(file, unlabelled)
        clips = [_kinetics_clip(name, segment, split) for name, segment in segments]
        parts.append(Part(split, file, clips))
    return _kinetics_table(root, parts, label_names, modality, notes, faults)


def read_mini_kinetics200(root: Path, label_names: Sequence[str] | None, modality: str) -> ClipTable:
    """Mini-Kinetics-200 (Xie et al., ECCV 2018): lists of YouTube ids, which Kinetics-400's CSVs describe."""
    faults, notes, parts = Faults(), [], []
    known = {
        split: dict(_kinetics_segments(file, faults)[0])
        for split, file in locate_splits(root, _kinetics_files(), _KINETICS_FOLDERS).items()
    }
    prefixes = ("", "minikinetics_", "mini_kinetics_", "mini-kinetics_")
    lists = {split: [f"{prefix}{split}_ytid_list.txt" for prefix in prefixes] for split in ("train", "val")}
    folders = (*_KINETICS_FOLDERS, "Mini-Kinetics-200", "mini-kinetics-200", "mini_kinetics200")
    for split, file in locate_splits(root, lists, folders).items():
        clips, unknown = [], []
        for line, name in lines_of(file):
            homes = [known[home] for home in (split, *SPLITS) if home in known and name in known[home]]
            if homes:
                clips.append(_kinetics_clip(name, homes[0][name]._replace(line=line), split))
            else:
                unknown.append(f"{name} (line {line})")
        if unknown:
            shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
            notes.append(
                f"{file}: left out {counted(len(unknown), 'id')} that the CSVs of Kinetics-400 do not name: {shown}"
            )
        parts.append(Part(split, file, clips))
    return _kinetics_table(root, parts, label_names, modality, notes, faults)


def _kinetics_files() -> dict[str, list[str]]:
    words = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}
    return {s: [f"{prefix}{word}.csv" for word in words[s] for prefix in _KINETICS_PREFIXES] for s in words}


def _kinetics_segments(path: Path, faults: Faults) -> tuple[list[tuple[str, _Segment]], int]:
    """Ids and what is known of them, and the number of rows without a label."""
    found, unlabelled = [], 0
    with opened(path) as file:
        reader = csv.reader(bounded_lines(path, file))
        try:
            header = [name.strip().lower() for name in next(reader, [])]
            needed = ("youtube_id", "time_start", "time_end")
            if not set(needed) <= set(header):
                raise DataError(f"{path} has no columns {', '.join(needed)}; it must be Kinetics' official CSV")
            for row in reader:
                if not row:
                    continue
                cells = dict(zip(header, map(str.strip, row), strict=False))
                where = f"{path.name}, line {reader.line_num}"
                name, times = cells["youtube_id"], [cells.get(key, "") for key in needed[1:]]
                if not CLIP_ID.fullmatch(name):
                    faults.add(where, f"youtube_id is {quote(name)}; it must be a video's id")
                elif not all(re.fullmatch(r"\d{1,9}(\.\d*)?", time) for time in times):
                    faults.add(where, f"time_start and time_end are {quote(' and '.join(times))}; they must be seconds")
                elif label := cells.get("label", ""):
                    start, end = (int(float(time)) for time in times)
                    found.append((name, _Segment(reader.line_num, label, start, end)))
                else:
                    unlabelled += 1
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    return found, unlabelled


def _kinetics_clip(name: str, segment: _Segment, split: str) -> Clip:
    full = f"{name}_{segment.start:06d}_{segment.end:06d}"
    return Clip(segment.line, (full, name), segment.label, f"{split}/{full}.mp4")


def _kinetics_table(
    root: Path,
    parts: Sequence[Part],
    label_names: Sequence[str] | None,
    modality: str,
    notes: Sequence[str],
    faults: Faults,
) -> ClipTable:
    order = sorted({clip.label for part in parts for clip in part.clips})  # as everybody numbers them
    return find_clips(
        root,
        parts,
        label_names,
        modality,
        order=order,
        words=_KINETICS_WORDS,
        classes=order,
        notes=notes,
        faults=faults,
    )


# UCF101 and HMDB51

_UCF_FOLDERS = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "TrainTestlist")
_HMDB_FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits", "test_train_splits/testTrainMulti_7030_splits")


def read_ucf101(root: Path, label_names: Sequence[str] | None, modality: str, *, split: int) -> ClipTable:
    """UCF101: ``classInd.txt``, ``trainlist0N.txt`` and ``testlist0N.txt``; groups are the scenes the clips are from.

    Upper and lower case are the same: the class HandstandPushups has files named v_HandStandPushups.
    """
    index_file = require(root, ("classInd.txt",), _UCF_FOLDERS)
    faults = Faults()
    index: dict[str, int] = {}
    for number, line in lines_of(index_file):
        match = re.fullmatch(r"(\d{1,4})\s+(\S.*)", line)
        if match is None:
            faults.add(f"{index_file.name}, line {number}", f"{quote(line)} is not a number and a name")
        else:
            index[match[2]] = int(match[1])
    order = sorted(index, key=index.__getitem__)
    names = {name.casefold(): name for name in order}
    lists = {"train": [f"trainlist0{split}.txt"], "test": [f"testlist0{split}.txt"]}
    parts = []
    for part, file in locate_splits(root, lists, _UCF_FOLDERS).items():
        clips = []
        for number, line in lines_of(file):
            where, pieces = f"{file.name}, line {number}", line.rsplit(None, 1)
            name, said = pieces if len(pieces) == 2 and re.fullmatch(r"\d{1,4}", pieces[1]) else (line, "")
            folder, _, video = name.partition("/")
            label = names.get(folder.casefold())
            if not video or "/" in video:
                faults.add(where, f"{quote(line)} is not Class/video.avi")
            elif label is None:
                remedy = did_you_mean(folder, order, "add it")
                faults.add(where, f"class {quote(folder)} is not in {index_file.name}; {remedy}")
            elif said and int(said) != index[label]:
                faults.add(where, f"{label} is class {said} here and {index[label]} in {index_file.name}; mend one")
            else:
                stem = os.path.splitext(video)[0]
                scene = re.fullmatch(r"v_.+_g(\d+)_c\d+", stem)
                group = f"{label}_g{scene[1]}" if scene else ""
                clips.append(Clip(number, (stem,), label, f"UCF-101/{folder}/{video}", group))
        parts.append(Part(part, file, clips))
    words = ("UCF-101", "UCF101")
    return find_clips(
        root, parts, label_names, modality, order=order, words=words, fold=True, classes=order, faults=faults
    )


def read_hmdb51(root: Path, label_names: Sequence[str] | None, modality: str, *, split: int) -> ClipTable:
    """HMDB51: a file per class of lines ``video flag``: 1 = training, 2 = test, 0 = in neither.

    Groups are the films that clips are from, as far as names tell.
    """
    ending = f"_test_split{split}.txt"
    for folder in (*ANNOTATION_FOLDERS, *_HMDB_FOLDERS):
        files = [file for file in (root / folder).glob(f"*{ending}") if file.is_file()]
        if files:
            break
    else:
        places = ", ".join(f"{folder}/" for folder in (*_HMDB_FOLDERS, *ANNOTATION_FOLDERS[1:]))
        raise DataError(f"{root} has no CLASS{ending}; put those files there or into a subfolder ({places})")
    faults, parts = Faults(), []
    by_label = {file.name.removesuffix(ending): file for file in files}
    order = sorted(by_label)  # not as the files are: kick_ball_test_… comes before kick_test_…
    for label in order:
        file = by_label[label]
        clips: dict[str, list[Clip]] = {"train": [], "test": []}
        for number, line in lines_of(file):
            name, _, flag = line.rpartition(" ")
            name = name.strip()
            if not name or "/" in name or flag not in ("0", "1", "2"):
                faults.add(
                    f"{file.name}, line {number}", f"{quote(line)} is not a video and 0, 1 or 2, separated by a space"
                )
            elif flag != "0":
                stem = os.path.splitext(name)[0]
                film, mark, _ = stem.partition(f"_{label}_")
                group = f"{label}/{film}" if mark else ""
                clips["train" if flag == "1" else "test"].append(Clip(number, (stem,), label, f"{label}/{name}", group))
        parts += [Part(part, file, found) for part, found in clips.items() if found]
    words = ("hmdb51_org", "hmdb51", "HMDB51")
    return find_clips(
        root, parts, label_names, modality, order=order, words=words, fold=True, classes=order, faults=faults
    )


# Formats without a data set of their own


def _read_one_csv(path: Path, label_names: Sequence[str] | None, modality: str) -> ClipTable:
    if path.is_dir():
        lists = csv_lists_in(path)
        if not lists:
            raise DataError(
                f"{path} holds no CSV with the columns path and label; give the file itself, or folder:{path} if its "
                "subfolders are the classes"
            )
        if len(lists) > 1:
            names = some([file.name for file in lists])
            raise DataError(f"{path} holds {len(lists)} lists, {names}; give one of them, e.g. csv:{lists[0]}")
        path = lists[0]
    return read_csv(path, label_names)


FORMATS: dict[str, Format] = {
    "folder": Format(read_folder, "a subfolder per class, with videos or folders of frames at any depth"),
    "csv": Format(_read_one_csv, "a file with the header path,label[,split][,group][,start,end][,frames]"),
    "list": Format(read_list, "lists of TSN, TSM and MMAction: path label, or path num_frames label"),
    "ssv1": Format(partial(_read_something, name="something-something-v1", words=SSV1_WORDS), "Something-Something V1"),
    "ssv2": Format(read_ssv2, "Something-Something V2"),
    "jester": Format(partial(_read_something, name="jester-v1", words=JESTER_WORDS), "Jester V1"),
    "kinetics400": Format(read_kinetics400, "Kinetics-400"),
    "mini_kinetics200": Format(read_mini_kinetics200, "Mini-Kinetics-200, lists of ids beside Kinetics-400's CSVs"),
    "ucf101": Format(partial(read_ucf101, split=1), "UCF101, split 1"),
    "ucf101-split2": Format(partial(read_ucf101, split=2), "UCF101, split 2"),
    "ucf101-split3": Format(partial(read_ucf101, split=3), "UCF101, split 3"),
    "hmdb51": Format(partial(read_hmdb51, split=1), "HMDB51, split 1"),
    "hmdb51-split2": Format(partial(read_hmdb51, split=2), "HMDB51, split 2"),
    "hmdb51-split3": Format(partial(read_hmdb51, split=3), "HMDB51, split 3"),
}
"""All data formats, by the name that stands before the path: ``ssv2:/data/ssv2``."""

_MARKS = {
    "ssv1": "something-something-v1-labels.csv",
    "ssv2": "something-something-v2-labels.json",
    "jester": "jester-v1-labels.csv",
    "mini_kinetics200": "train_ytid_list.txt",
    "kinetics400": "kinetics_train.csv",
    "ucf101": "classInd.txt",
    "hmdb51": "brush_hair_test_split1.txt",
}


def guess_format(root: Path) -> str:
    """The format of a folder that holds a data set's official files, or ""."""
    folders = (*_UCF_FOLDERS, *_HMDB_FOLDERS, *_KINETICS_FOLDERS)
    return next((name for name, mark in _MARKS.items() if locate(root, [mark], folders)), "")
