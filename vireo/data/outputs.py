"""Where results of work on a data set go, and how they are written and named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vireo.errors import StorageError, UsageError, writing
from vireo.files import replacing

LOCK = ".lock"
"""Name of the file that `locked` leaves in a folder."""

SOURCE = ".source"
"""Name of the file in which `made_from` says of which data set a folder holds the results."""

_LONGEST_PATH = 1 << 16  # characters


def shorter_names(files: Sequence[str]) -> list[str]:
    """The files' paths below the deepest folder that holds them all."""
    paths = [os.path.abspath(path) for path in files]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [os.path.relpath(path, root) for path in paths]


def listed_names(files: Sequence[str], base: str | None) -> list[str]:
    """The files' paths as their list gives them, see `ClipTable.base`; as `shorter_names` where that isn't known."""
    if base is None:
        return shorter_names(files)
    inside = os.path.join(base, "") if base else ""
    return [path.removeprefix(inside) for path in files]


def claim_outside(out: Path, place: Path) -> None:
    """Check that a folder for results lies outside the data.

    Raises:
        UsageError: it is the data's folder or lies in it, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; results go to a folder")
    if place.is_dir() and out.resolve().is_relative_to(place.resolve()):
        raise UsageError(f"{out} lies in the data's own folder, which is left as it is; choose a folder elsewhere")


@contextmanager
def made_from(place: Path, out: Path, begun: Path) -> Iterator[None]:
    """Keep a folder for the results of one data set: those of another would take its lists' place.

    Args:
        place: the data set.
        out: the folder.
        begun: a file of it that is there as soon as results are.

    Raises:
        UsageError: it holds results of another data set.
    """
    before = source_of(out)
    if before and before != os.path.realpath(place):
        raise UsageError(
            f"{out} holds what was made from {before}; choose another folder, or delete {out / SOURCE} if that is the "
            "same data set in another place"
        )
    try:
        yield
    finally:
        if begun.is_file() and not before:
            note_source(out, place)


def source_of(folder: Path) -> str:
    """The data set, by its real path, whose results a folder holds; "" = it does not say."""
    with suppress(OSError), open(folder / SOURCE, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read(_LONGEST_PATH)
    return ""


def note_source(folder: Path, place: Path) -> None:
    """Say in a folder of which data set it holds the results, if that can be written."""
    with suppress(StorageError):  # no reason to lose results, or to hide why there are none
        write_text(folder / SOURCE, os.path.realpath(place))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; where the system or the file system has no locks, do without.

    The lock ends with the block, or with this process.

    Raises:
        UsageError: another run is at work there.
        StorageError: the folder can't be written.
    """
    with ExitStack() as stack:
        with writing(folder / LOCK):
            file = stack.enter_context(open(folder / LOCK, "a"))
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another run is writing to {folder}; wait for it, or give another folder") from None
        except (ImportError, OSError):
            pass
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; file names that are no UTF-8 survive.

    Raises:
        StorageError: it can't be written; what was there before is intact.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text)
