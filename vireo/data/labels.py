"""Names of classes: their order, and the file that keeps it."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vireo.data.table import counted, some
from vireo.errors import DataError
from vireo.files import replacing

_MOST_LABELS = 1 << 20
LONGEST_LABEL = 1000
"""Characters of a label's text."""
A_LABEL = f"a label is one line of text, at most {LONGEST_LABEL:,} characters, without spaces around it"
_LONGEST_LINE = 2 * LONGEST_LABEL


def is_label(text: str) -> bool:
    """Whether a text can be the name of a class, see `A_LABEL`."""
    return len(text) <= LONGEST_LABEL and text.splitlines() == [text] and text == text.strip()


def natural_order(names: Iterable[str]) -> list[str]:
    """Sorted as people do: class_2 before class_10."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        pieces = re.split(r"([0-9]+)", name)
        # A number by its digits: int() refuses very long ones.
        numbers = (piece.lstrip("0") if i % 2 else piece.casefold() for i, piece in enumerate(pieces))
        return [(0, len(p), p) if i % 2 else (1, 0, p) for i, p in enumerate(numbers) if pieces[i]], name

    return sorted(names, key=key)


def check_known(found: Iterable[str], names: Sequence[str], source: str | Path) -> None:
    """Refuse labels that a model does not know.

    Args:
        found: labels of the data.
        names: the model's.
        source: the list they are from, for the message.

    Raises:
        DataError: there are some; the message gives the nearest name.
    """
    unknown = natural_order(set(found) - set(names))
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f" (nearest to {unknown[0]!r}: {near[0]!r})" if near else ""
        raise DataError(
            f"{source} has {len(unknown)} label{'s' * (len(unknown) > 1)} that the model does not know: "
            f"{some(unknown)}{hint}. It knows {some(names)}."
        )


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """What to do about a name that is not among the known ones: take the nearest, if one is near."""
    folded = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"did you mean {folded[near[0]]!r}?" if near else otherwise


def write_label_map(path: str | Path, names: Sequence[str]) -> Path:
    """Write the names of classes, one per line in the order of their indices, in one step.

    Raises:
        DataError: a name that is empty, occurs twice or holds a line break.
        StorageError: it could not be written.
    """
    path = Path(path)
    for index, name in enumerate(names):
        if not is_label(name):
            raise DataError(f"label {index} is {name[:80]!r}; {A_LABEL}")
    if len(set(names)) < len(names):
        raise DataError(f"a label name occurs twice in {some(names)}")
    with replacing(path) as file:
        file.writelines(f"{name}\n" for name in names)
    return path


def read_label_map(path: str | Path) -> tuple[str, ...]:
    """The names of classes in a text file, one per line; empty lines at its end don't count.

    Raises:
        DataError: it can't be read, is no such file, or names a class twice.
    """
    if not os.path.isfile(path):  # a FIFO would block
        raise DataError(f"{path} is no regular file; it must be a list of labels, one per line")
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = list(itertools.islice(iter(lambda: file.readline(_LONGEST_LINE), ""), _MOST_LABELS))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    cut = any(len(line) == _LONGEST_LINE for line in lines)
    lines = [line.strip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    if cut or not 0 < len(lines) < _MOST_LABELS or any(len(line) > LONGEST_LABEL or "\0" in line for line in lines):
        raise DataError(f"{path} is no list of labels; it must hold the name of one class per line")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            raise DataError(f"{path}, line {number}: empty; each line names a class")
        if seen.setdefault(line, number) != number:
            raise DataError(f"{path}, line {number}: {line!r} is in line {seen[line]} already; name each class once")
    return tuple(lines)


def check_label_map(path: str | Path, names: Sequence[str]) -> None:
    """Make sure that a label map is the one that was written.

    Raises:
        DataError: it can't be read, or differs; the message gives the first difference.
    """
    kept = read_label_map(path)
    if kept == tuple(names):
        return
    remedy = "use the data it was written for, or start anew elsewhere"
    for index, (old, new) in enumerate(zip(kept, names, strict=False)):
        if old != new:
            if set(kept) == set(names):
                what = "the same classes in another order"
                raise DataError(f"{path}: {what}; {index} was {old!r} and is {new!r} now; {remedy}")
            raise DataError(f"{path}: class {index} was {old!r} and is {new!r} now; {remedy}")
    raise DataError(f"{path} names {counted(len(kept), 'class')} and the data {len(names)}; {remedy}")
