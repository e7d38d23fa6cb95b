"""What the dataset doctor looks for in the facts of the files and in the list of clips."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vireo.data import duplicates
from vireo.data.doctor_report import SHORT_GOP, SHOWN, ClassCount, Finding, Item, Severity
from vireo.data.examine import FileFacts
from vireo.data.lookalikes import lookalikes, says_nothing
from vireo.data.sampling import segment_indices
from vireo.data.table import SPLITS, ClipTable, counted

SHORTEST = 0.3
"""Clips shorter than this are called too short, seconds."""
FEW_CLIPS = 10
"""Labels with fewer clips to train on are called small."""
IMBALANCE = 10
"""Classes are called unequal when the largest has this many times the clips of the smallest."""
WASTE = 1.5
"""Groups of pictures are called long when they take this many times the decoding that short ones of H.264 take."""
LARGE_SIDE = 384
"""Pictures whose short side is above this are called large, pixels."""
NO_MOTION = 0.5
"""Root mean square change of coarse grey cells below which nothing moves in a clip, grey levels."""
_CHEAP_CODECS = frozenset({"flv", "h263", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4v3"})
_CHEAP = 1 / 3  # of a frame of H.264, what one of these takes


@dataclass(frozen=True, kw_only=True, eq=False)
class Examined:
    """A list of N clips, and what is known of their files."""

    table: ClipTable
    files: list[str]
    names: list[str]
    """Of files, as they are shown."""
    file_of: npt.NDArray[np.int64]
    """(N,) each clip's file."""
    facts: list[FileFacts]
    signatures: npt.NDArray[np.uint8]
    num_frames: int
    is_flow: bool = False
    """Whether the clips are optical flow."""

    @functools.cached_property
    def healthy(self) -> npt.NDArray[np.int64]:
        """Indices of the files that could be read."""
        return np.array([i for i, fact in enumerate(self.facts) if not fact.fault], dtype=np.int64)

    @functools.cached_property
    def rows_of(self) -> list[npt.NDArray[np.int64]]:
        """Each file's clips."""
        order = np.argsort(self.file_of, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.file_of, minlength=len(self.files)))[:-1])

    @functools.cached_property
    def splits(self) -> list[str]:
        """Of each clip; "" where none are named."""
        return [""] * len(self.table) if self.table.splits is None else list(self.table.splits)

    @functools.cached_property
    def classes(self) -> list[ClassCount]:
        """Clips of each class."""
        names, labels = self.table.label_names, self.table.labels
        columns = [np.bincount(labels, minlength=len(names))]
        if self.table.splits is not None:
            part = np.array([SPLITS.index(split) for split in self.splits])
            columns += [np.bincount(labels[part == i], minlength=len(names)) for i in range(len(SPLITS))]
        return [
            ClassCount(name, count, tuple(rest))
            for name, (count, *rest) in zip(names, np.stack(columns, axis=1).tolist(), strict=True)
        ]

    @functools.cached_property
    def copies(self) -> list[tuple[list[int], str]]:
        """Groups of files that show the same, and how alike they are."""
        by_content: dict[str, list[int]] = {}
        for i in self.healthy.tolist():
            if self.facts[i].digest:
                by_content.setdefault(self.facts[i].digest, []).append(i)
        exact = [pair for same in by_content.values() for pair in itertools.pairwise(same)]
        near = duplicates.near_duplicates(self.signatures[self.healthy])
        first, second = self.healthy[near.first].tolist(), self.healthy[near.second].tolist()
        groups = duplicates.connected(len(self.files), [*exact, *zip(first, second, strict=True)])
        group_of = {i: k for k, group in enumerate(groups) for i in group}
        least = [1.0] * len(groups)
        for i, similarity in zip(first, near.similarity.tolist(), strict=True):
            least[group_of[i]] = min(least[group_of[i]], similarity)
        return [
            (group, _how_alike([self.facts[i].digest for i in group], similarity))
            for group, similarity in zip(groups, least, strict=True)
        ]

    def row_name(self, row: int) -> str:
        """A clip's file, and its cut if it is one."""
        name, record = self.names[int(self.file_of[row])], self.table.record(row)
        if record.start is None and record.end is None:
            return name
        return f"{name} [{record.start or 0:g}–{'' if record.end is None else f'{record.end:g}'} s]"

    def row_item(self, row: int, detail: str) -> Item:
        """Something to be said of a clip."""
        return Item((self.row_name(row),), (), detail)

    def file_item(self, file: int, detail: str) -> Item:
        """Something to be said of a file."""
        return Item((self.names[file],), (), detail)

    def labelled(self, files: Sequence[int], detail: str) -> Item:
        """Files with their splits and labels."""
        notes = []
        for file in files:
            rows = self.rows_of[file].tolist()
            labels = dict.fromkeys(self.table.label_names[label] for label in self.table.labels[rows].tolist())
            parts = dict.fromkeys(self.splits[row] for row in rows if self.splits[row])
            notes.append(": ".join(filter(None, ("+".join(parts), ", ".join(labels)))))
        return Item(tuple(self.names[i] for i in files), tuple(notes), detail)


@functools.lru_cache(maxsize=1 << 16)
def decode_cost(frame_count: int, group: int, wanted: int) -> float:
    """Frames decoded for each of ``wanted`` frames, evenly spaced, if only the groups that hold some are decoded.

    An upper bound where a group has frames that no other refers to: those may be left out.

    Args:
        frame_count: F, at least 1.
        group: frames in a group of pictures, at least 1.
        wanted: T, at least 1.
    """
    indices = np.unique(segment_indices(frame_count, wanted))
    last_in_group = np.append(indices[:-1] // group != indices[1:] // group, True)
    return float((indices[last_in_group] % group + 1).sum() / len(indices))


def _how_alike(digests: Sequence[str], similarity: float) -> str:
    return "the same content" if len(set(digests)) == 1 else f"{100 * similarity:.0f} % alike"


def _is_are(n: int) -> str:
    return "is" if n == 1 else "are"


def _finding(kind: str, severity: Severity, items: Sequence[Item], title: str, remedy: str) -> Finding:
    return Finding(kind=kind, severity=severity, items=tuple(items), title=title, remedy=remedy)


def _find_faults(data: Examined) -> Iterator[Finding]:
    bad = [(i, fact) for i, fact in enumerate(data.facts) if fact.fault]
    lost = [data.file_item(i, fact.fault) for i, fact in bad if not fact.readable]
    part = [
        data.file_item(i, f"{fact.fault}; {counted(fact.readable, 'frame')} can be seen")
        for i, fact in bad
        if fact.readable
    ]
    yield _finding(
        "unreadable",
        "fault",
        lost,
        f"{counted(len(lost), 'file')} can't be read",
        "Get them again, or take them out of the list; training leaves them out and counts them.",
    )
    yield _finding(
        "damaged",
        "fault",
        part,
        f"{counted(len(part), 'file')} {_is_are(len(part))} damaged",
        "Get them again: training leaves out the whole clip, since half of an action is another one.",
    )


def _find_short(data: Examined) -> Iterator[Finding]:
    items = []
    for row, file in enumerate(data.file_of.tolist()):
        fact = data.facts[file]
        if fact.fault:
            continue
        start, end = data.table.starts[row], data.table.ends[row]
        cut = not (math.isnan(start) and math.isnan(end))
        frames, seconds = fact.frame_count, fact.seconds
        if cut and seconds:
            share = _overlap(start, end, seconds) / seconds
            frames, seconds = round(share * frames), share * seconds
            if share == 0:
                continue  # that is another finding
        if frames < data.num_frames:
            thing = "field" if fact.kind == "flow" else "frame"
            items.append(data.row_item(row, f"{counted(frames, thing)}, where {data.num_frames} are taken"))
        elif seconds and seconds < SHORTEST:
            items.append(data.row_item(row, f"{seconds:.2f} s"))
    yield _finding(
        "short",
        "warning",
        items,
        f"{counted(len(items), 'clip')} {_is_are(len(items))} too short",
        f"Frames are repeated to make {data.num_frames}. Check where such clips were cut, or leave them out.",
    )


def _overlap(start: float, end: float, seconds: float) -> float:
    return max(0.0, min(seconds, seconds if math.isnan(end) else end) - (0.0 if math.isnan(start) else start))


def _find_cuts_outside(data: Examined) -> Iterator[Finding]:
    beyond, over, timeless = [], [], []
    for row, file in enumerate(data.file_of.tolist()):
        seconds, start, end = data.facts[file].seconds, data.table.starts[row], data.table.ends[row]
        if data.facts[file].fault:
            continue
        if data.facts[file].kind != "video":
            if not (math.isnan(start) and math.isnan(end)):
                timeless.append(data.row_item(row, "images and arrays have no times"))
        elif not seconds:
            continue
        elif start >= seconds:
            beyond.append(data.row_item(row, f"the file ends at {seconds:.2f} s"))
        elif end > seconds + 0.5:
            over.append(data.row_item(row, f"the file ends at {seconds:.2f} s"))
    yield _finding(
        "cut-outside",
        "fault",
        beyond,
        f"{counted(len(beyond), 'cut')} begin{'s' * (len(beyond) == 1)} after the file's end",
        "Correct start and end in the list: they are seconds from the file's first frame. Such clips can't be read.",
    )
    yield _finding(
        "cut-timeless",
        "fault",
        timeless,
        f"{counted(len(timeless), 'cut')} of clips that are no videos",
        "Leave start and end empty, and give every cut a folder of its own. Such clips can't be read.",
    )
    yield _finding(
        "cut-over",
        "warning",
        over,
        f"{counted(len(over), 'cut')} reach{'es' * (len(over) == 1)} beyond the file's end",
        "Check that these are the files that the list was made for; the clips end where the files do.",
    )


def _find_wrong_counts(data: Examined) -> Iterator[Finding]:
    counts = data.table.frame_counts
    absent: list[Item] = []
    other: list[Item] = []
    if counts is not None:
        whole = np.isnan(data.table.starts) & np.isnan(data.table.ends)
        for row in np.flatnonzero((counts > 0) & whole).tolist():
            fact = data.facts[data.file_of[row]]
            if fact.fault or fact.kind == "flow" or counts[row] == fact.frame_count:  # of flow nothing is made of it
                continue
            item = data.row_item(
                row, f"the list says {counts[row]}, there {_is_are(fact.frame_count)} {fact.frame_count}"
            )
            (absent if fact.kind == "folder" and counts[row] > fact.frame_count else other).append(item)
    yield _finding(
        "frames-missing",
        "fault",
        absent,
        f"{counted(len(absent), 'frame folder')} hold{'s' * (len(absent) == 1)} fewer images than the list says",
        "Extract the frames again, or correct the list; such clips are not read.",
    )
    yield _finding(
        "frame-count",
        "warning",
        other,
        f"{counted(len(other), 'clip')} with another number of frames than the list says",
        "Check that these are the files that the list was made for. Of a video all frames count, of a folder "
        "those that the list says.",
    )


def _find_copies(data: Examined) -> Iterator[Finding]:
    leaks, conflicts, others, recordings = [], [], [], []
    for files, alike in data.copies:
        item = data.labelled(files, alike)
        labels = {tuple(sorted(set(data.table.labels[data.rows_of[i]].tolist()))) for i in files}
        leak = _crosses_splits(data, files)
        if leak:
            leaks.append(item)
        if len(labels) > 1:
            conflicts.append(item)
        if not leak and len(labels) == 1:
            others.append(item)
    in_group = {i for files, _ in data.copies for i in files}
    for file, rows in enumerate(data.rows_of):
        if len(rows) < 2 or file in in_group or len({data.splits[row] for row in rows.tolist()}) < 2:
            continue
        if _crosses_splits(data, [file]):
            leaks.append(data.labelled([file], "one file, cuts that overlap"))
        else:
            recordings.append(data.labelled([file], counted(len(rows), "cut")))
    yield _finding(
        "leak",
        "fault",
        leaks,
        f"{counted(len(leaks), 'clip')} {_is_are(len(leaks))} in more than one split",
        "Keep each in one split only, best in train: a test on clips that the model was trained on measures memory.",
    )
    yield _finding(
        "conflict",
        "fault",
        conflicts,
        f"{counted(len(conflicts), 'clip')} {_is_are(len(conflicts))} there under different labels",
        "Watch them and keep one label.",
    )
    drawn = "" if data.table.splits is not None else " Otherwise validation may draw a copy of what training has."
    yield _finding(
        "duplicates",
        "warning",
        others,
        f"{counted(len(others), 'clip')} {_is_are(len(others))} there more than once",
        f"Keep one of each, or give the copies the same `group` in the list.{drawn}",
    )
    yield _finding(
        "recordings",
        "warning",
        recordings,
        f"Cuts of {counted(len(recordings), 'file')} lie in several splits",
        "Scores come out too high when the same person and scene are in training and test: split by file.",
    )


def _crosses_splits(data: Examined, files: Sequence[int]) -> bool:
    """Whether clips of these files, which show the same, overlap in time and lie in different splits."""
    rows = np.concatenate([data.rows_of[i] for i in files])
    starts, ends = np.nan_to_num(data.table.starts[rows], nan=0.0), np.nan_to_num(data.table.ends[rows], nan=np.inf)
    until: dict[str, float] = {}
    for k in np.argsort(starts, kind="stable").tolist():
        split = data.splits[rows[k]]
        if any(end > starts[k] + 1e-6 for other, end in until.items() if other != split):
            return True
        until[split] = max(until.get(split, 0.0), float(ends[k]))
    return False


def _find_blank(data: Examined) -> Iterator[Finding]:
    is_flow = np.array([data.facts[i].kind == "flow" for i in data.healthy.tolist()], dtype=bool)
    shown = data.healthy[~is_flow]
    signatures = data.signatures[shown]
    motion, contrast = duplicates.motion_of(signatures), duplicates.contrast_of(signatures)
    plain = contrast < duplicates.PLAIN
    long_enough = np.array([data.facts[i].frame_count > 1 for i in shown.tolist()], dtype=bool)
    blank = [data.file_item(i, "one colour, or nearly") for i in shown[plain].tolist()]
    still = [
        data.file_item(i, "all frames are alike") for i in shown[~plain & (motion < NO_MOTION) & long_enough].tolist()
    ]
    no_flow = [i for i in data.healthy[is_flow].tolist() if not data.facts[i].digest]
    still += [data.file_item(i, "the flow is 0 everywhere") for i in no_flow]
    yield _finding(
        "blank",
        "warning",
        blank,
        f"{counted(len(blank), 'clip')} show{'s' * (len(blank) == 1)} nothing",
        "Watch them; leave out those in which there is nothing to see.",
    )
    yield _finding(
        "still",
        "warning",
        still,
        f"In {counted(len(still), 'clip')} nothing moves",
        "Watch them: a frozen camera, a picture saved as video, or a very small action.",
    )


def _find_label_faults(data: Examined) -> Iterator[Finding]:
    counts = {row.label: row.clips for row in data.classes}
    names = data.table.label_names

    def shown(name: str) -> str:
        return f"{name!r} ({counted(counts[name], 'clip')})"

    same: list[Item] = []
    near: list[Item] = []
    for a, b, certain in lookalikes(names):
        (same if certain else near).append(Item((), (), f"{shown(names[a])} and {shown(names[b])}"))
    empty = [Item((), (), shown(name)) for name in names if says_nothing(name)]
    yield _finding(
        "label-spelling",
        "fault",
        same,
        f"{counted(len(same), 'pair')} of labels differ{'s' * (len(same) == 1)} in case, spaces or punctuation only",
        "Give both the same name: the model is now taught to tell them apart.",
    )
    yield _finding(
        "label-lookalike",
        "warning",
        near,
        f"{counted(len(near), 'pair')} of labels may be misspelt",
        "If they mean the same, give both the same name.",
    )
    yield _finding(
        "label-empty",
        "warning",
        empty,
        f"{counted(len(empty), 'label')} say{'s' * (len(empty) == 1)} nothing",
        "Label these clips, or leave them out; a class of everything else deserves a name that says so.",
    )


def _find_balance(data: Examined) -> Iterator[Finding]:
    named = data.table.splits is not None
    present = set(data.splits)
    untrained, absent, few = [], [], []
    for row in data.classes:
        training = row.splits[0] if named else row.clips
        if named and row.clips and not training and "train" in present:
            untrained.append(Item((), (), f"{row.label!r}: {counted(row.clips, 'clip')} elsewhere"))
        elif not row.clips:
            absent.append(Item((), (), f"{row.label!r}: none at all"))
        elif training < FEW_CLIPS and (not named or "train" in present):
            few.append((training, Item((), (), f"{row.label!r}: {counted(training, 'clip')}")))
        if named and training:
            missing = [s for s, n in zip(SPLITS, row.splits, strict=True) if s in present and not n]
            if missing:
                absent.append(Item((), (), f"{row.label!r}: none in {' and '.join(missing)}"))
    yield _finding(
        "label-untrained",
        "fault",
        untrained,
        f"{counted(len(untrained), 'label')} {'has' if len(untrained) == 1 else 'have'} no clips to train on",
        "Move some of their clips to the split train, or leave these labels out.",
    )
    yield _finding(
        "label-absent",
        "warning",
        absent,
        f"{counted(len(absent), 'label')} {'is' if len(absent) == 1 else 'are'} missing from a split",
        "What is not in a split is not measured there.",
    )
    yield _finding(
        "few-clips",
        "warning",
        [item for _, item in sorted(few, key=lambda pair: pair[0])],
        f"{counted(len(few), 'label')} with fewer than {FEW_CLIPS} clips to train on",
        "Record more, or join labels; scores of so few clips say little.",
    )
    sizes = sorted(((r.splits[0] if named and r.splits[0] else r.clips), r.label) for r in data.classes if r.clips)
    if sizes and sizes[-1][0] >= IMBALANCE * sizes[0][0]:
        ends = sizes[: SHOWN // 2] + sizes[-SHOWN // 2 :] if len(sizes) > SHOWN else sizes
        yield _finding(
            "imbalance",
            "warning",
            [Item((), (), f"{label!r}: {counted(n, 'clip')}") for n, label in reversed(ends)],
            f"The largest class has {sizes[-1][0] / sizes[0][0]:.0f} times the clips of the smallest",
            "Compare models by mean-class accuracy, which does not reward guessing the large classes; "
            "record more of the small ones.",
        )


def _find_costs(data: Examined) -> Iterator[Finding]:
    items = []
    for i in data.healthy.tolist():
        fact = data.facts[i]
        cost, short = decode_costs(fact, data.num_frames)
        weight = _CHEAP if fact.codec in _CHEAP_CODECS else 1.0
        if fact.longest_gop > 2 * SHORT_GOP and weight * cost >= WASTE * short:
            why = (
                f"groups of up to {fact.longest_gop} frames"
                if fact.fast
                else f"{fact.codec} is decoded from the beginning"
            )
            items.append((cost, short, data.file_item(i, f"{why}: {cost:.0f} frames decoded for each one wanted")))
    items.sort(key=lambda entry: -entry[0])
    mean, short = (float(np.mean([e[k] for e in items])) if items else 0.0 for k in (0, 1))
    yield _finding(
        "long-gop",
        "warning",
        [item for _, _, item in items],
        f"{counted(len(items), 'file')} {_is_are(len(items))} slow to read: {mean:.0f} frames decoded for each one "
        f"wanted, {short:.0f} would do",
        f"`vireo data optimize` writes groups of {SHORT_GOP} frames and smaller pictures, which are read in a fraction "
        "of the time.",
    )
    large = [
        data.file_item(i, f"{data.facts[i].width}×{data.facts[i].height}")
        for i in data.healthy.tolist()
        if min(data.facts[i].width, data.facts[i].height) > LARGE_SIDE
    ]
    yield _finding(
        "large",
        "warning",
        large,
        f"{counted(len(large), 'file')} with pictures larger than any model here takes",
        "Decoding time grows with the pixels: "
        + ("`vireo flow --short-side 256`." if data.is_flow else "`vireo data optimize --short-side 256`."),
    )


def decode_costs(fact: FileFacts, wanted: int) -> tuple[float, float]:
    """Frames decoded for each one wanted, as the file is and with short groups of pictures."""
    group = max(1, round(fact.frame_count / max(1, fact.keyframes))) if fact.fast else fact.frame_count
    return (
        decode_cost(fact.frame_count, group, wanted),
        decode_cost(fact.frame_count, SHORT_GOP, wanted) if fact.kind == "video" else 1.0,
    )


def _find_oddities(data: Examined) -> Iterator[Finding]:
    facts = [(i, data.facts[i]) for i in data.healthy.tolist()]
    rotated = [data.file_item(i, f"{f.rotation}° counterclockwise") for i, f in facts if f.rotation]
    uneven = [data.file_item(i, f"{f.fps:.2f} frames per second on average") for i, f in facts if f.variable_rate]
    folders = [data.file_item(i, counted(f.frame_count, "image")) for i, f in facts if f.kind == "folder"]
    yield _finding(
        "rotated",
        "note",
        rotated,
        f"{counted(len(rotated), 'file')} {_is_are(len(rotated))} stored turned, with a flag for players",
        "Nothing to do: Vireo turns them upright. Tools that ignore the flag show them lying.",
    )
    yield _finding(
        "variable-rate",
        "note",
        uneven,
        f"{counted(len(uneven), 'file')} with a variable frame rate",
        "Nothing to do: cuts go by time stamps, frames are taken by number. Where the rate varies a lot, frames are "
        "unevenly spaced in time.",
    )
    yield _finding(
        "frame-folder",
        "note",
        folders,
        f"{counted(len(folders), 'clip')} {_is_are(len(folders))} folders of frame images",
        "Nothing to do. Videos with short groups of pictures take a fraction of the space.",
    )


FINDERS: tuple[Callable[[Examined], Iterator[Finding]], ...] = (
    _find_faults,
    _find_copies,
    _find_cuts_outside,
    _find_wrong_counts,
    _find_label_faults,
    _find_balance,
    _find_short,
    _find_blank,
    _find_costs,
    _find_oddities,
)
