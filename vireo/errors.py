"""Every error Vireo raises on purpose, on one screen.

Messages are one or two lines that name the file, the value and the remedy. The command line prints
them without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class VireoError(Exception):
    """Base of all errors that Vireo raises on purpose."""

    exit_code = 1


class UsageError(VireoError, ValueError):
    """An argument, option or configuration value is wrong; the caller can mend it."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not in a registry; the message suggests the nearest ones, or the command that lists them."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, lists: str = "vireo models") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            remedy = f"Did you mean {' or '.join(repr(n) for n in near)}?"
        elif len(known) <= 20:
            remedy = f"Known: {', '.join(known)}."
        else:
            remedy = f"`{lists}` lists what there is."
        super().__init__(f"Unknown {kind} {name!r}. {remedy}")


class UnsupportedPairError(UsageError):
    """A temporal module that cannot be inserted into this backbone; the message says what works."""


class WeightsError(VireoError):
    """Pretrained weights that cannot be fetched, read, or fitted to the model."""


class CheckpointError(VireoError):
    """A file that is not a Vireo checkpoint, or one that is damaged or does not fit."""


class StorageError(VireoError):
    """A file that could not be written (full disk, no permission). What was there before is intact."""


class DataError(VireoError):
    """A data set, folder or annotation file that cannot be used."""


class DecodeError(DataError):
    """A video that cannot be read.

    Attributes:
        path: the file.
        reason: what is wrong with it, in a few words, without the path.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return type(self), (self.path, self.reason)  # crosses process borders with both fields


class TrainingError(VireoError):
    """Training that cannot go on (no usable clips, loss not finite)."""


class MissingDependencyError(VireoError):
    """An optional package is needed for this and is not installed; the message names the extra."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn a failed write into an error that names the file.

    Raises:
        StorageError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: could not be written: {error.strerror or error}") from error
