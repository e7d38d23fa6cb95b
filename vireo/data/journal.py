"""A file of JSON lines that survives being cut off: the memory of a job that may be interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vireo.errors import UsageError, writing

_LONGEST_LINE = 1 << 16


class JsonLines:
    """Appends one JSON object per line; each is on its way to the disk when `append` returns.

    Lines that can't be read, e.g. one cut off by a crash, are passed over.

    Raises:
        UsageError: there is something else than a file in its place.
        StorageError: it can't be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a file; choose another folder for the results")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def entries(self) -> Iterator[dict[str, Any]]:
        """All objects that were written, in order; to be read to the end before anything is appended."""
        end = b"\n"
        with writing(self.path), self.path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                end = line[-1:]
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(entry, dict):
                    yield entry
        if end != b"\n":  # what follows must not be glued to a line that was cut off
            self._write(b"\n")

    def append(self, entry: dict[str, Any]) -> None:
        """Write one object; strings of any kind survive, file names that are no UTF-8 too."""
        self._write(json.dumps(entry).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        with writing(self.path):
            while line:  # on a disk that is nearly full, a part is written first
                line = line[self._file.write(line) :]
