"""Files that are written whole or not at all, and files that are read without believing how large they are."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from vireo.errors import DataError, writing


@contextmanager
def replacing(path: Path, errors: str = "surrogateescape") -> Iterator[TextIO]:
    """A new file that takes the place of `path` when the block ends well; file names that are no UTF-8 survive in it.

    Against loss of power there is `vireo.checkpoint.write_atomically`.

    Raises:
        StorageError: it can't be written; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("w", encoding="utf-8", errors=errors, newline="") as file:
                yield file
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_together(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """A new folder whose files take their places in the folder `out` when the block ends well, and all at once.

    Args:
        out: made if missing.
        names: files of a result, the one first that stands for the whole of it: it goes before the others are
            replaced and comes after them, so that what it says is never beside files of another result. Those that
            the block does not write are removed.

    Raises:
        StorageError: one can't be written; what was there before is intact.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        temporary = out / f".{names[0]}.{os.getpid()}.tmp"
        try:
            temporary.mkdir(exist_ok=True)
            yield temporary
            new = {path.name for path in temporary.iterdir()}
            for name in (names[0], *sorted({*names[1:]} - new)):
                (out / name).unlink(missing_ok=True)
            for name in sorted(new, key=lambda name: name == names[0]):
                os.replace(temporary / name, out / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_failures(path: Path, failures: Iterable[tuple[str, str]]) -> Path:
    """Name what could not be read, with the reasons, as CSV. With nothing to name, an earlier file goes.

    Raises:
        StorageError: it can't be written, or removed.
    """
    rows = list(failures)
    if not rows:
        with writing(path):
            path.unlink(missing_ok=True)
        return path
    with replacing(path) as file:
        csv.writer(file).writerows([("path", "reason"), *rows])
    return path


def write_json(path: Path, value: Any) -> Path:
    r"""Write plain data as JSON for people: a member per line, lists of numbers and texts on one line each.

    It is valid JSON whatever names are in it: a byte that is no UTF-8 stands as ``\udcXX``, which Python reads back.

    Raises:
        StorageError: it can't be written; what was there before is intact.
    """
    with replacing(path, errors="backslashreplace") as file:
        file.writelines(_json(value, "\n"))
        file.write("\n")
    return path


def _json(value: Any, line: str) -> Iterator[str]:
    """The text piece by piece; `line` is what begins a line at this depth."""
    inner = line + " "
    if isinstance(value, dict) and value:  # whose keys are texts
        for number, (name, of) in enumerate(value.items()):
            yield f"{',' if number else '{'}{inner}{json.dumps(name, ensure_ascii=False)}: "
            yield from _json(of, inner)
        yield line + "}"
    elif isinstance(value, list | tuple) and any(isinstance(of, dict | list | tuple) for of in value):
        for number, of in enumerate(value):
            yield ("," if number else "[") + inner
            yield from _json(of, inner)
        yield line + "]"
    else:
        yield json.dumps(value, ensure_ascii=False)


def read_bounded(path: Path, most: int) -> bytes:
    """A regular file's content.

    Raises:
        DataError: missing, no file, or larger than ``most`` bytes.
    """
    try:
        # Without a writer, opening a pipe would wait for one.
        with open(path, "rb", opener=lambda file, flags: os.open(file, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError(f"{path}: not a file")
            content = file.read(most + 1)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if len(content) > most:
        raise DataError(f"{path}: larger than {most >> 10:,} KiB")
    return content
