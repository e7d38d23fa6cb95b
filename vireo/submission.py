"""The file of answers that the server of a test set without labels takes.

    Something-Something V1, Jester      id;label                            the text of the most probable class
    Something-Something V2              id;index;index;index;index;index    official numbers of the five most probable

So TSM's public code writes them (``test_models.py``, ``--csv_file``). A clip that could not be read has no line: no
answer is made up for it, and the server may refuse the file.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vireo.files import replacing

ANSWERS = 5
"""Classes of a line of Something-Something V2."""


def write_submission(
    path: Path,
    ids: Sequence[str],
    scores: Tensor,
    label_names: Sequence[str],
    *,
    official: Sequence[str],
    numbers: bool,
) -> Path:
    """Write the answers.

    Args:
        path: the CSV.
        ids: (N,) of the clips.
        scores: (N, K); the higher, the more probable. A row of nan is a clip that could not be read.
        label_names: (K,) of the scores.
        official: the same names in the data set's order, which numbers them.
        numbers: whether a line has the numbers of five classes, or the text of one.

    Raises:
        StorageError: it could not be written.
    """
    number = [official.index(name) for name in label_names]
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :ANSWERS].tolist()
    with replacing(path) as file:
        writer = csv.writer(file, delimiter=";", lineterminator="\n", quoting=csv.QUOTE_NONE, escapechar="\\")
        for one, read, order in zip(ids, (~scores.isnan().any(dim=1)).tolist(), best, strict=True):
            if read:
                writer.writerow([one, *([number[i] for i in order] if numbers else [label_names[order[0]]])])
    return path
