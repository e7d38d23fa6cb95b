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
from vireo.data.flow import read_all_flow
from vireo.data.frames import is_frame_folder, read_all_frames, read_frame_folder
from vireo.data.images import is_folder
from vireo.data.journal import JsonLines
from vireo.data.sampling import Indices, segment_indices
from vireo.errors import DecodeError

_REST = 128  # no motion, in an image of flow
FORMAT = 1  # raise it whenever the same file would give other facts


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What is known of one video or folder of frame images."""

    path: str
    fault: str = ""
    """Why it can't be read, or not to its end; "" = it can. The facts below are then not known."""
    readable: int = 0
    """Frames that a lenient player shows of a file with a fault; 0 = none."""
    kind: Literal["video", "folder", "flow"] = "video"
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
    """SHA-256 of the content, hexadecimal; "" = the content says nothing, as flow of 0 everywhere."""
    signature: bytes = b""
    """FRAMES · CELLS² grey values, none of flow; see `vireo.data.duplicates`."""


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
    except (DecodeError, OSError, MemoryError) as error:
        readable = _readable_frames(path) if isinstance(error, DecodeError) else 0
        return FileFacts(path=path, fault=_fault(error), readable=readable)


def examine_flow(path: str) -> FileFacts:
    """Read a clip of flow, a folder of images or an array, from beginning to end; else as `examine`."""
    try:
        digest, count, height, width, still = hashlib.sha256(), 0, 0, 0, True
        for fields in read_all_flow(path):
            height, width = fields.shape[1:3]
            count += len(fields)
            still = still and int(fields.min()) >= _REST - 1 and int(fields.max()) <= _REST + 1
            digest.update(str(fields.shape[1:]).encode() + fields.tobytes())
        return FileFacts(
            path=path,
            kind="flow",
            frame_count=count,
            width=width,
            height=height,
            codec="flow images" if os.path.isdir(path) else "flow arrays",
            keyframes=count,
            longest_gop=1,
            fast=True,
            size=_bytes_below(path),
            digest="" if still else digest.hexdigest(),
        )
    except (DecodeError, OSError, MemoryError) as error:
        return FileFacts(path=path, kind="flow", fault=_fault(error))


def _fault(error: Exception) -> str:
    if isinstance(error, DecodeError):
        return error.reason
    if isinstance(error, OSError):
        return f"can't be read ({error.strerror or error})"
    return "not enough memory for its frames"


def _bytes_below(path: str) -> int:
    """Size of a file, or of the files in a folder and its subfolders, bytes."""
    if not os.path.isdir(path):
        return os.stat(path).st_size
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)


def stamp(path: str) -> tuple[int, int] | None:
    """A file's size and the time of its last change, which name its content; of folders, the number of entries.

    Flow may lie in subfolders, which count as well. None if there is no such file.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size, status.st_mtime_ns
        with os.scandir(path) as entries:
            below = [entry.path for entry in entries if is_folder(entry)]
        changed = [status.st_mtime_ns, *(os.stat(folder).st_mtime_ns for folder in below)]
        return sum(len(os.listdir(folder)) for folder in (path, *below)), max(changed)
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
        entries = (entry for line in self._lines.entries() if (entry := _parse(line)) is not None)
        self._known = {(entry[1].path, entry[1].kind == "flow"): entry for entry in entries}

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.__exit__()

    def known(self, path: str, *, flow: bool = False) -> FileFacts | None:
        """What was found before, read as flow or not, if the file is still the same.

        It is handed out once, as memory is dear.
        """
        entry = self._known.pop((os.path.abspath(path), flow), None)
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
    ok = isinstance(size, int) and isinstance(changed, int) and not facts.fault
    ok = ok and facts.kind in ("video", "folder", "flow")
    for field in fields(facts):
        value, wanted = getattr(facts, field.name), _TYPES.get(str(field.type))
        if wanted is not None:
            ok = ok and isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)
        if isinstance(value, int | float):
            ok = ok and math.isfinite(value) and value >= 0
    cells = 0 if facts.kind == "flow" else FRAMES * CELLS * CELLS
    if not ok or facts.frame_count < 1 or len(facts.signature) != cells:
        return None
    return (size, changed), facts
