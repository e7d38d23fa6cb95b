"""A timeline as files: JSON lines, CSV, and SRT subtitles."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from vireo.errors import UsageError, writing
from vireo.files import replacing
from vireo.stream.timeline import Segment

Format = Literal["json", "csv", "srt", "mp4"]
FORMATS: tuple[Format, ...] = get_args(Format)
_ENDINGS: dict[Format, str] = {"json": ".jsonl", "csv": ".csv", "srt": ".srt", "mp4": ".labels.mp4"}
_FORMAT_OF: dict[str, Format] = {".json": "json", ".jsonl": "json", ".csv": "csv", ".srt": "srt", ".mp4": "mp4"}


def output_paths(
    names: Sequence[str], write: Sequence[Format], out: Path | None, inputs: Sequence[Path] = ()
) -> list[dict[Format, Path]]:
    """Which files are written for each video.

    Args:
        names: of the videos, for the names of the files: clip gives clip.csv and clip.labels.mp4. Videos of one name
            get numbers.
        write: the formats.
        out: a folder; or, for a single video, a file whose ending is one more format, and beside which the others lie.
            None = the current folder.
        inputs: files that must not be written over.

    Raises:
        UsageError: a file for several videos, a folder without formats, or a file that is an input.
    """
    own = _FORMAT_OF.get(out.suffix.lower()) if out is not None and not out.is_dir() else None
    if out is not None and own is None and not write:
        raise UsageError(f"{out}: which files? Add --write {','.join(FORMATS)}, or give a name that ends like one")
    if own is not None and len(names) > 1:
        raise UsageError(f"{out} is one file, and there are {len(names)} videos; give a folder, and --write")
    found: list[dict[Format, Path]] = []
    taken: set[str] = set()
    for name in names:
        stem, number = name, 1
        while stem in taken:
            number += 1
            stem = f"{name}-{number}"
        taken.add(stem)
        folder = out or Path()
        if own is not None and out is not None:
            folder, stem = out.parent, out.stem
        paths = {kind: folder / (stem + _ENDINGS[kind]) for kind in write}
        if own is not None and out is not None:
            paths[own] = out
        for path in paths.values():
            if path.exists() and any(item.exists() and path.samefile(item) for item in inputs):
                raise UsageError(f"{path} is one of the videos; it would be written over")
        found.append(paths)
    return found


class JsonWriter:
    """JSON lines, each written out at once: whoever reads along sees it, and a crash loses none.

    Raises:
        StorageError: it can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("w", encoding="utf-8", errors="backslashreplace")

    def line(self, data: dict[str, Any]) -> None:
        """Write one line."""
        with writing(self._path):
            self._file.write(json.dumps(data, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """No more lines."""
        with writing(self._path):
            self._file.close()


class _TextWriter:
    """A text file that is there when it is finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._context: AbstractContextManager[TextIO] = replacing(path)
        self._file = self._context.__enter__()

    def close(self, *, keep: bool = True) -> None:
        """Put the file in its place; or leave what was there before."""
        if keep:
            self._context.__exit__(None, None, None)
            return
        with suppress(_GivenUpError):
            self._context.__exit__(_GivenUpError, _GivenUpError(), None)


class _GivenUpError(Exception):
    """Tells `replacing` to leave what was there before."""


class CsvWriter(_TextWriter):
    """A row per segment: start, end (seconds), label (empty: none of these), probability."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rows = csv.writer(self._file)
        self._rows.writerow(("start", "end", "label", "probability"))

    def segment(self, segment: Segment) -> None:
        """Write the next segment."""
        with writing(self._path):
            self._rows.writerow(
                (f"{segment.start:.3f}", f"{segment.end:.3f}", segment.label or "", f"{segment.probability:.4f}")
            )


class SrtWriter(_TextWriter):
    """A subtitle per segment that has a label."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._count = 0

    def segment(self, segment: Segment) -> None:
        """Write the next segment."""
        if segment.label is None:
            return
        self._count += 1
        times = f"{srt_time(segment.start)} --> {srt_time(segment.end)}"
        text = f"{srt_text(segment.label)}  {100 * segment.probability:.0f} %"
        with writing(self._path):
            self._file.write(f"{self._count}\n{times}\n{text}\n\n")


def srt_time(seconds: float) -> str:
    """``01:02:03,456``."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{second:02d},{thousandths:03d}"


def srt_text(label: str) -> str:
    """A label in one line that players take for text, not for tags: ``<`` and ``{`` are followed by a word joiner."""
    line = " ".join("".join(c if c.isprintable() else " " for c in label).split())
    return line.replace("<", "<\u2060").replace("{", "{\u2060").replace("-->", "→")


def clock(seconds: float) -> str:
    """``1:02:03.4``."""
    tenths = round(10 * seconds)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


def label_of(segment: Segment) -> str:
    """Its label and probability, as people read them."""
    return "none of these" if segment.label is None else f"{segment.label}  {100 * segment.probability:.0f} %"
