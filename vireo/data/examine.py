"""One media file looked at from beginning to end, and a journal of what was found.

The journal is JSON, one line per file, appended as files are done, so that an interrupted check goes on where it
stopped. A line counts as long as the file's size and modification time are those that it names; files that could not
be read are tried again every time.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import os
import stat
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import av.error

from vireo.data.container import open_video, regular_file
from vireo.data.decode import probe, read_frames
from vireo.data.duplicates import CELLS, FRAMES, signature
from vireo.data.frames import is_frame_folder, read_all_frames, read_frame_folder
from vireo.data.journal import JsonLines
from vireo.data.sampling import Indices, segment_indices
from vireo.errors import DecodeError

FORMAT = 1  # raise it whenever the same file would give other facts


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What is known of one video or folder of frame images."""

    path: str
    fault: str = ""
    """Why it can't be read, or not to its end; "" = it can. The facts below are then not known."""
    readable: int = 0
    """Frames that a lenient player shows of a file with a fault; 0 = none."""
    kind: Literal["video", "folder"] = "video"
    frame_count: int = 0
    seconds: float = 0.0
    """0 = not known, as of folders."""
    fps: float = 0.0
    """1/s; 0 = not known."""
    width: int = 0
    """As shown, pixels."""
    height: int = 0
    """As shown, pixels."""
    rotation: int = 0
    """Degrees: 0, 90, 180 or 270."""
    codec: str = ""
    variable_rate: bool = False
    longest_gop: int = 0
    """Frames; 0 = each frame can be read alone."""
    keyframes: int = 0
    fast: bool = False
    """Whether frames can be had without decoding all those before."""
    size: int = 0
    """Bytes."""
    digest: str = ""
    """SHA-256 of the content, hexadecimal."""
    signature: bytes = b""
    """FRAMES · CELLS² grey values; see `vireo.data.duplicates`."""


def examine(path: str) -> FileFacts:
    """Decode a video, or a folder of frame images, from beginning to end.

    Nothing is raised for what is wrong with it: that is a fact like others.
    """
    try:
        if os.path.isdir(path):
            if not is_frame_folder(path):
                raise DecodeError(path, "a folder without frame images, not a video")
            return _examine_folder(path)
        return _examine_video(path)
    except DecodeError as error:
        return FileFacts(path=path, fault=error.reason, readable=_readable_frames(path))
    except OSError as error:
        return FileFacts(path=path, fault=f"can't be read ({error.strerror or error})")
    except MemoryError:
        return FileFacts(path=path, fault="not enough memory for its frames")


def stamp(path: str) -> tuple[int, int] | None:
    """A file's size and the time of its last change, which name its content; of folders, the number of entries.

    None if there is no such file.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size, status.st_mtime_ns
        with os.scandir(path) as entries:
            return sum(1 for _ in entries), status.st_mtime_ns
    except (OSError, ValueError):
        return None


def _examine_video(path: str) -> FileFacts:
    info = probe(path)
    seen = read_frames(path, _spread)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return FileFacts(
        path=path,
        frame_count=info.frame_count,
        seconds=info.seconds,
        fps=info.fps,
        width=info.width,
        height=info.height,
        rotation=info.rotation,
        codec=info.codec,
        variable_rate=info.variable_rate,
        longest_gop=info.longest_gop,
        keyframes=info.keyframes,
        fast=info.fast,
        size=size,
        digest=digest,
        signature=signature(seen.data).tobytes(),
    )


def _spread(frame_count: int) -> Indices:
    return segment_indices(frame_count, FRAMES)


def _examine_folder(path: str) -> FileFacts:
    seen = read_frame_folder(path, _spread)
    for _ in read_all_frames(path):
        pass
    content, size = _folder_content(path)
    return FileFacts(
        path=path,
        kind="folder",
        frame_count=seen.frame_count,
        width=seen.data.shape[3],
        height=seen.data.shape[2],
        codec="images",
        keyframes=seen.frame_count,
        longest_gop=1,
        fast=True,
        size=size,
        digest=content,
        signature=signature(seen.data).tobytes(),
    )


def _folder_content(path: str) -> tuple[str, int]:
    """A digest of the files in a folder, in the order of their names, and their size in bytes."""
    digest, size = hashlib.sha256(), 0
    with os.scandir(path) as entries:
        files = sorted(e.path for e in entries if not e.name.startswith(".") and e.is_file())
    for name in files:
        with open(name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
            size += file.tell()
    return digest.hexdigest(), size


def _readable_frames(path: str) -> int:
    """How many frames a player that goes on after damage would show up to the first error; 0 of what is no video."""
    count = 0
    with contextlib.suppress(DecodeError, av.error.FFmpegError, OSError, ValueError, MemoryError):
        regular_file(path)
        container, stream = open_video(path)
        with container:
            for frame in container.decode(stream):
                count += not frame.is_corrupt
    return count


# ------------------------------------------------------------------------------------------------- the journal


class Journal:
    """Facts of files that were examined before, and the file to which new ones are appended.

    Raises:
        UsageError: its path is something else than a file.
        StorageError: it can't be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)
        self._known = {entry[1].path: entry for line in self._lines.entries() if (entry := _parse(line)) is not None}

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.__exit__()

    def known(self, path: str) -> FileFacts | None:
        """What was found before, if the file is still the same. It is handed out once, as memory is dear."""
        entry = self._known.pop(os.path.abspath(path), None)
        return replace(entry[1], path=path) if entry is not None and entry[0] == stamp(path) else None

    def add(self, facts: FileFacts, now: tuple[int, int] | None) -> None:
        """Append what was found; ``now`` is the file's `stamp` from before it was examined."""
        if facts.fault or now is None:
            return
        plain = asdict(facts)
        plain["signature"] = base64.b64encode(facts.signature).decode()
        plain["path"] = os.path.abspath(facts.path)
        self._lines.append({"format": FORMAT, "stamp": now, **plain})


_TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}


def _parse(line: dict[str, Any]) -> tuple[tuple[int, int], FileFacts] | None:
    """One line of a journal; None if it is not one that this version wrote."""
    try:
        if line.pop("format") != FORMAT:
            return None
        size, changed = line.pop("stamp")
        line["signature"] = base64.b64decode(line["signature"], validate=True)
        facts = FileFacts(**line)
    except (ValueError, KeyError, TypeError):
        return None
    ok = isinstance(size, int) and isinstance(changed, int) and facts.kind in ("video", "folder") and not facts.fault
    for field in fields(facts):
        value, wanted = getattr(facts, field.name), _TYPES.get(str(field.type))
        if wanted is not None:
            ok = ok and isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)
        if isinstance(value, int | float):
            ok = ok and math.isfinite(value) and value >= 0
    if not ok or facts.frame_count < 1 or len(facts.signature) != FRAMES * CELLS * CELLS:
        return None
    return (size, changed), facts
