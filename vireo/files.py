"""Text files that are written whole or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from vireo.errors import writing


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
