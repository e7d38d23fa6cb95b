"""Data sets as folders: a subfolder per class, with its clips at any depth."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vireo.data.flow import is_flow_clip, is_flow_file
from vireo.data.frames import is_frame_folder
from vireo.data.images import is_folder, list_folder
from vireo.data.labels import check_known, natural_order
from vireo.data.splits import SPLIT_WORDS
from vireo.data.table import ClipTable, StringColumn, counted, some
from vireo.errors import DataError

_ENDINGS = """
    3g2 3gp amv asf avi divx dv f4v flv gif h264 h265 hevc ivf m1v m2p m2t m2ts m2v m4v mjpeg mjpg mkv mod mov mp4 mpe
    mpeg mpg mpv mts mxf nut obu ogg ogm ogv qt rm rmvb tod ts vob webm wmv xvid y4m
"""
VIDEO_EXTENSIONS = frozenset("." + ending for ending in _ENDINGS.split())
"""File name endings taken for videos in a folder per class; a CSV may name any file."""


def is_video(path: str | Path) -> bool:
    """Whether a file is named like a video; nothing is opened."""
    return os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS


def read_folder(root: Path, label_names: Sequence[str] | None, modality: str) -> ClipTable:
    """Read a folder with one subfolder per class, or with such folders in train, val and test.

    Args:
        root: the folder.
        label_names: labels and their order; None = those found, in natural order.
        modality: rgb or flow.

    Raises:
        DataError: it holds no clips, a class without any, or a class that is not in ``label_names``.
    """
    kind = clips_called(modality)
    try:
        top, loose = _subfolders(root), _loose(root, modality)
        split_of = {name: SPLIT_WORDS.get(name.lower()) for name in top}
        classes: list[tuple[str, Path, str | None]]  # label, folder, split
        if top and all(split_of.values()) and any(_holds_classes(root / name, modality) for name in top):
            classes = [(c, root / s / c, split_of[s]) for s in top for c in _subfolders(root / s)]
            loose += [os.path.join(s, name) for s in top for name in _loose(root / s, modality)]
        else:
            classes = [(name, root / name, None) for name in top]
        found = [(label, split, *clips_below(folder, modality)) for label, folder, split in classes]
    except OSError as error:
        raise DataError(f"{error.filename or root} can't be read: {error.strerror}") from None
    if not classes:
        where = f"{_lying(loose, modality)} directly in {root}" if loose else f"{root} holds no subfolders"
        raise DataError(f"{where}; put the {kind} of each class into a subfolder named after it, or list them in a CSV")
    ignored = Counter[str]()
    for _, _, _, others in found:
        ignored.update(others)
    notes = []
    if ignored:
        kinds = ", ".join(f"{n} × {ending or 'without ending'}" for ending, n in ignored.most_common(5))
        what = f"that is no {clips_called(modality, 1)}" if ignored.total() == 1 else f"that are not {kind}"
        notes.append(f"{root}: ignored {counted(ignored.total(), 'file')} {what} ({kinds})")
    if loose:
        left_out = (
            f"{_lying(loose, modality)} beside the class folders and {'is' if len(loose) == 1 else 'are'} left out"
        )
        notes.append(f"{root}: {left_out}: {some(loose, 10)}")
    if not any(videos for _, _, videos, _ in found):
        raise DataError(
            f"{root} holds no {kind} in its {counted(len(classes), 'class folder')}"
            + (f" (only {kinds})" if ignored else "")
            + _other_clips([folder for _, folder, _ in classes], modality)
        )
    filled = {label for label, _, videos, _ in found if videos}
    empty = natural_order({label for label, _, _, _ in found} - filled)
    if empty and label_names is None:
        raise DataError(
            f"{root}: no {kind} in class folder{'s' * (len(empty) > 1)} {some(empty)}; "
            "add some, or remove the folder or start its name with a dot"
        )
    rows = [(path, label, split) for label, split, videos, _ in found for path in videos]
    names = tuple(natural_order(filled) if label_names is None else label_names)
    check_known(filled, names, root)
    if label_names is None and len(names) < 2:
        raise DataError(f"{root} has one class only, {names[0]!r}; recognition needs at least two")
    index = {name: i for i, name in enumerate(names)}
    return ClipTable(
        paths=StringColumn(path for path, _, _ in rows),
        labels=np.fromiter((index[label] for _, label, _ in rows), dtype=np.int64, count=len(rows)),
        label_names=names,
        starts=np.full(len(rows), np.nan),
        ends=np.full(len(rows), np.nan),
        splits=StringColumn((split or "" for _, _, split in rows), words=True) if rows[0][2] else None,
        notes=tuple(notes),
        base=str(root),
    )


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return natural_order(e.name for e in entries if not e.name.startswith(".") and is_folder(e))


def _loose(folder: Path, modality: str) -> list[str]:
    """The names of clips that lie in a folder as files."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and not is_folder(e)]
    return natural_order(name for name in names if (is_video(name) if modality == "rgb" else is_flow_file(name)))


def _lying(names: Sequence[str], modality: str) -> str:
    return f"{len(names):,} {clips_called(modality, len(names))} {'lies' if len(names) == 1 else 'lie'}"


def _holds_classes(folder: Path, modality: str) -> bool:
    """Whether a folder holds folders that are not clips themselves."""
    return any(not _is_clip_folder(os.path.join(folder, name), modality) for name in _subfolders(folder)[:1])


def _is_clip_folder(path: str, modality: str) -> bool:
    """Whether a folder is one clip: of flow images, or of frame images; or is to be one and empty, by its name."""
    if modality == "flow":
        return is_flow_clip(path)
    if not is_frame_folder(path):
        return is_video(path) and not any(True for _ in list_folder(path))
    with os.scandir(path) as entries:
        return not any(is_video(entry.name) for entry in entries)  # then the images are pictures of them


def clips_called(modality: str, count: int = 2) -> str:
    """What clips are, in a sentence: videos, or clips of flow; video, or clip of flow, where there is one."""
    one, rest = {"rgb": ("video", ""), "flow": ("clip", " of flow")}[modality]
    return one + "s" * (count != 1) + rest


_LOOKS = {
    "rgb": "; a video's name ends in .mp4, .avi, .mkv, .webm, …; frames lie in a folder per clip, 00001.jpg, …",
    "flow": "; a clip of flow is a folder of flow_x_00001.jpg, flow_y_00001.jpg, …, or a .npy array",
}


def _other_clips(folders: Sequence[Path], modality: str) -> str:
    """What to do where no clips were found: those that are there are of the other modality, or what clips look like."""
    other = "flow" if modality == "rgb" else "rgb"
    try:
        there = any(clips_below(folder, other)[0] for folder in folders)
    except OSError:
        there = False
    return f"; there are {clips_called(other)}: {USE_OTHER[other]}" if there else _LOOKS[modality]


USE_OTHER = {
    "rgb": "`vireo flow` makes clips of flow of them",
    "flow": "a model of --modality flow takes them",
}
"""What to do with clips of a modality where those of the other one are wanted."""


def clips_below(folder: Path, modality: str = "rgb") -> tuple[list[str], Counter[str]]:
    """The clips in a folder at any depth, in natural order, and the endings of the other files.

    Whatever has a video's name counts, broken links and empty folders too: a clip that can't be read is to be
    reported, not overlooked. So do folders of frame images, but not ``folder`` itself. Of flow, .npy files and folders
    of flow images count.
    """
    clips: list[str] = []
    others = Counter[str]()
    waiting, seen = [folder], set()
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in seen:  # a link that leads back up
            continue
        seen.add(real)
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                below = is_folder(entry)
                if below:
                    is_clip = _is_clip_folder(entry.path, modality)
                else:
                    is_clip = is_flow_clip(entry.path) if modality == "flow" else is_video(entry.name)
                if is_clip:
                    clips.append(entry.path)
                elif below:
                    waiting.append(Path(entry.path))
                else:
                    others[os.path.splitext(entry.name)[1].lower()] += 1
    return natural_order(clips), others
