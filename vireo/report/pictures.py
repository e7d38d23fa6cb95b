"""Pictures of the clips that confused pairs of classes lose, where the scores and the videos can be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.io import encode_jpeg
from torchvision.transforms.v2.functional import resize

from vireo.compare import find_clips
from vireo.data.annotations import read_table
from vireo.data.table import ClipTable
from vireo.errors import DataError, MissingDependencyError, UsageError
from vireo.report.reading import EvaluationRecord, RunFolder
from vireo.run_files import CLIPS
from vireo.scores import PARQUET, SCORES, ScoreTable, can_write_parquet, read_scores
from vireo.statistics import Confused
from vireo.strips import clip_frames

PAIRS, EACH, FRAMES = 6, 2, 6
"""Pairs of classes of which clips are shown, clips of each, frames of each clip."""
HEIGHT, WIDEST = 108, 240
"""Of a frame, pixels."""
MOST_SCORES = 1 << 28
"""Bytes of a scores.csv that is read for this; Parquet is not limited here, it is quick to read."""


class Example(NamedTuple):
    """A clip that a model takes for one of another class."""

    clip: str
    probability: float
    """Of the class that it is taken for, in [0, 1]."""
    true_probability: float
    frames: tuple[bytes, ...] = ()
    """JPEG; none where they can't be read."""


Examples = Mapping[tuple[int, int], Sequence[Example]]
"""(True class, predicted class) → clips, the most certain first."""


def draw_examples(
    evaluation: EvaluationRecord, pairs: Sequence[Confused], run: RunFolder, data: str, workers: int
) -> tuple[Examples, str]:
    """The clips of the most confused pairs with their frames, and why frames are missing, if they are.

    Args:
        evaluation: whose scores are read.
        pairs: the most confused first.
        run: names the data where ``data`` doesn't.
        data: as in `vireo eval`; empty: the clips that the run names.
        workers: processes that decode.

    Raises:
        UsageError: the data that was asked for does not exist.
        DataError: it can't be used.
    """
    if not pairs:
        return {}, ""
    try:
        scores = _scores(evaluation.folder)
    except (DataError, UsageError, MissingDependencyError) as error:
        return {}, f"No example clips: {error}."
    if scores.label_names != evaluation.labels:
        return {}, "No example clips: the scores are of other classes than the evaluation beside them."
    rows = _choose(scores, pairs[:PAIRS])
    wanted = [row for of in rows.values() for row in of]
    frames, why = _frames(scores, wanted, evaluation, run, data, workers)
    probabilities = scores.scores[wanted].double().softmax(1)
    place = {row: i for i, row in enumerate(wanted)}
    return {
        (true, taken): [
            Example(
                scores.clips[row],
                float(probabilities[place[row], taken]),
                float(probabilities[place[row], true]),
                frames.get(row, ()),
            )
            for row in of
        ]
        for (true, taken), of in rows.items()
    }, why


def _scores(folder: Path) -> ScoreTable:
    if (folder / PARQUET).is_file() and can_write_parquet():
        return read_scores(folder / PARQUET)
    if (folder / SCORES).is_file() and (folder / SCORES).stat().st_size > MOST_SCORES:
        raise DataError(f"{folder / SCORES} is larger than {MOST_SCORES >> 20} MiB")
    return read_scores(folder)


def _choose(scores: ScoreTable, pairs: Sequence[Confused]) -> dict[tuple[int, int], list[int]]:
    """Rows of the clips of each pair about which the model is most certain."""
    answers = torch.where(scores.read, scores.scores.nan_to_num(-torch.inf).argmax(1), -1)
    found = {}
    for pair in pairs:
        rows = ((scores.labels == pair.true) & (answers == pair.predicted)).nonzero()[:, 0]
        certain = scores.scores[rows].double().softmax(1)[:, pair.predicted]
        found[pair.true, pair.predicted] = rows[certain.argsort(descending=True, stable=True)[:EACH]].tolist()
    return found


def _frames(
    scores: ScoreTable, rows: Sequence[int], evaluation: EvaluationRecord, run: RunFolder, data: str, workers: int
) -> tuple[dict[int, tuple[bytes, ...]], str]:
    """Row → its frames, of those that can be read; and why there are none."""
    modality = "flow" if scores.modality == "flow" else "rgb"
    unread = False
    for table in _tables(evaluation, run, data, modality):
        there, clips = find_clips(scores, rows, table)
        if not there:
            continue
        found = clip_frames(clips, frames=FRAMES, modality=modality, workers=workers)
        strips = {
            row: _jpegs(torch.from_numpy(of).movedim(-1, 1))
            for row, of in zip(there, found, strict=True)
            if of is not None
        }
        if strips:
            return strips, ""
        unread = True
    if unread:
        return {}, "No pictures: none of these clips can be read any more."
    if data:
        return {}, f"No pictures: none of these clips is in {data}."
    return {}, "No pictures: the clips are not where they were; say with --data where they lie."


def _tables(evaluation: EvaluationRecord, run: RunFolder, data: str, modality: str) -> list[ClipTable]:
    """What clips may be found in: the data asked for, else those that the evaluation or the run names."""
    if data:
        return [read_table(data, modality=modality)]
    stated = run.record.settings.get("data") if run.record else None
    # A folder that holds an evaluation only may lie in a run's folder.
    places = [str(folder / CLIPS) for folder in (run.path, run.path.absolute().parent)]
    found = []
    for place in [evaluation.facts.get("data"), *places, stated]:
        try:
            found += [read_table(place, modality=modality)] if isinstance(place, str) and place else []
        except (UsageError, DataError):
            continue
    return found


def _jpegs(frames: Tensor) -> tuple[bytes, ...]:
    """(T, 3, H, W) uint8 as small pictures."""
    height, width = frames.shape[-2:]
    small = resize(frames, [HEIGHT, min(WIDEST, max(8, round(width * HEIGHT / height)))], antialias=True)
    return tuple(bytes(encode_jpeg(frame.contiguous(), quality=78).numpy()) for frame in small)
