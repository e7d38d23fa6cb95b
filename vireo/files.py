"""Files that are written whole or not at all, and files that are read without believing how large they are."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from vireo.errors import DataError, writing


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A new file that takes the place of `path` when the block ends well; file names that are no UTF-8 survive in it.

    Against loss of power there is `vireo.checkpoint.write_atomically`.

    Raises:
        StorageError: it can't be written; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                yield file
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


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
    """Write plain data as JSON for people: a member per line, lists of numbers and texts on one line each.

    Raises:
        StorageError: it can't be written; what was there before is intact.
    """
    with replacing(path) as file:
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
