"""Optical flow of a data set, TV-L1 or DIS by OpenCV, stored as the images that `vireo.data.flow` reads.

    OUT/flow.csv              path,label[,split][,group]: one row per clip of the data, those that failed too
    OUT/failed.csv            path,reason of clips that could not be read, if any
    OUT/flow.json             how all flow in OUT was computed
    OUT/wave/anna_3/          the flow of wave/anna_3.mp4: F frames give F - 1 fields
        flow_x_00001.jpg flow_y_00001.jpg …
        flow.json             how many fields, of what, and the share of values beyond the bound

Every frame of a clip is used. Frames are made grey and brought to the wanted short side before, so flow is in pixels
of those smaller (or larger) frames, per frame. A clip's folder is filled under another name and renamed when it is
whole: a run that was cut off leaves no half clip, and the same command again goes on where it ended.

TV-L1 (Zach, Pock, Bischof, DAGM 2007) is what the temporal streams of TSN and its successors were trained on; a
field of 340×256 pixels takes it about a second. DIS (Kroeger et al., ECCV 2016) takes a hundredth of that and is a
little coarser. Both have OpenCV's default parameters.
"""

from __future__ import annotations

import csv
import json as jsonlib
import os
import shlex
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.text import Text

from vireo import progress
from vireo.data.annotations import read_table, split_format
from vireo.data.clips import read_clip
from vireo.data.flow import BOUND, to_uint8
from vireo.data.folders import is_video
from vireo.data.images import UInt8, is_sane
from vireo.data.outputs import LOCK, SOURCE, claim_outside, locked, made_from
from vireo.data.pool import Crash, map_in_processes
from vireo.data.table import ClipRecord, ClipTable, counted
from vireo.errors import (
    DataError,
    DecodeError,
    MissingDependencyError,
    UnknownNameError,
    UsageError,
    writing,
)
from vireo.files import replacing, write_failures
from vireo.progress import printable

METHODS = ("tvl1", "dis")
LIST, FAILED, FACTS = "flow.csv", "failed.csv", "flow.json"
_PARTIAL = ".partial"
_WINDOW = 64  # frames of a clip's first reading, before their size is known
_HELD = 256 << 20  # bytes of frames decoded at a time
_LONGEST_FACTS = 1 << 16  # bytes of a flow.json

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class FlowReport:
    """What `extract_flow` did."""

    csv: Path
    """The list of the set, which `vireo train --modality flow --data` takes."""
    clips: int
    """Rows of the data."""
    extracted: int
    """Clips computed by this run."""
    kept: int
    """Clips that an earlier run had computed."""
    failures: tuple[tuple[str, str], ...]
    """Path and reason of each clip that could not be read."""
    fields: int
    """Of the whole set."""
    bytes: int
    """Of the whole set's images."""
    saturated: float
    """Share of the set's values beyond ±20 pixels, which are clipped."""
    seconds: float
    """That this run took."""


def extract_flow(
    table: ClipTable,
    out: str | Path,
    *,
    method: str = "tvl1",
    short_side: int = 256,
    quality: int = 90,
    workers: int = -1,
    timeout: float = 300.0,
    done: Callable[[int], object] = lambda count: None,
) -> FlowReport:
    """Compute the optical flow of all clips of a table.

    A clip that can't be read is tried once more, then named in ``failed.csv``; its row stays in ``flow.csv``, so
    that scores on the flow count it as failed, as those on the videos do.

    Args:
        table: videos, cuts of videos or folders of frames.
        out: folder for the set: a new or empty one, or that of an earlier run with the same settings, which goes on.
        method: ``tvl1`` or ``dis``.
        short_side: of the frames that flow is computed on, pixels; 0 = as they are.
        quality: of the JPEGs, 1 to 100.
        workers: processes; -1 = one per core, 0 = none but this one.
        timeout: seconds without a new frame after which a clip is given up; 0 = no limit. Only with workers.
        done: told of every clip that is finished.

    Returns:
        What was done. The list of the set is written last.

    Raises:
        UsageError: settings out of range, or a folder that holds something else.
        MissingDependencyError: no OpenCV, or one without TV-L1.
        DataError: no clip could be read; ``failed.csv`` says why.
        StorageError: the disk is full, or the folder can't be written.
    """
    start = time.monotonic()
    _check_settings(method, short_side, quality, workers, timeout)
    extract = _Extract(os.path.abspath(out), method, short_side, quality, patience=timeout if workers else 0.0)
    if not len(table):
        raise DataError("there are no clips to compute the flow of")
    folders = clip_folders(table)
    jobs = list({folder: _Job(folder, table.record(row)) for row, folder in enumerate(folders)}.values())
    rows = Counter(folders)  # a clip may be listed twice; its flow is computed once
    with _opened(extract) as root:
        outcomes: dict[str, _Outcome] = {}
        for attempt in range(2):
            todo = [job for job in jobs if job.folder not in outcomes]
            for at, found in map_in_processes(extract, todo, workers=workers):
                outcome = _Outcome(reason=extract.explain(found)) if isinstance(found, Crash) else found
                if not outcome.reason or attempt:
                    outcomes[todo[at].folder] = outcome
                    done(rows[todo[at].folder])
        failures = tuple((job.record.path, reason) for job in jobs if (reason := outcomes[job.folder].reason))
        write_failures(root / FAILED, failures)
        if len(failures) == len(jobs):
            raise DataError(
                f"no clip of {len(jobs)} could be read; {root / FAILED} says why, of the first: "
                f"{failures[0][0]}: {failures[0][1]}"
            )
        _write_list(root / LIST, table, folders)
    made = [outcome for outcome in outcomes.values() if not outcome.reason]
    fields = sum(outcome.fields for outcome in made)
    return FlowReport(
        csv=Path(out) / LIST,
        clips=len(table),
        extracted=sum(not outcome.kept for outcome in made),
        kept=sum(outcome.kept for outcome in made),
        failures=failures,
        fields=fields,
        bytes=sum(outcome.bytes for outcome in made),
        saturated=sum(outcome.saturated * outcome.fields for outcome in made) / fields,
        seconds=time.monotonic() - start,
    )


def clip_folders(table: ClipTable) -> list[str]:
    """Where the flow of each row goes, below the folder of the set.

    A name is the path below the deepest folder that holds all clips, without a video's ending and with the cut if
    there is one: ``wave/anna_3``, ``day1/a [12.5, 17.0) s``. Names that would be taken twice, or lie inside another
    clip's folder, keep their ending.

    Raises:
        DataError: two clips would still share a folder.
    """
    paths = [os.path.abspath(path) for path in table.paths]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    below = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    bare = {name: os.path.splitext(name)[0] if is_video(name) else name for name in below}
    shared = Counter(bare.values())
    parents = {str(parent) for name in bare.values() for parent in Path(name).parents}
    kept = {name: short if shared[short] == 1 and short not in parents else name for name, short in bare.items()}
    if clash := next((name for name in kept.values() if name in parents), None):
        raise DataError(f"{os.path.join(root, clash)} is a clip and holds clips too; rename it, or the folder")
    return [kept[name] + _cut(table.record(row)) for row, name in enumerate(below)]


def _cut(record: ClipRecord) -> str:
    if record.start is None and record.end is None:
        return ""
    return f" [{record.start or 0.0}, {'end' if record.end is None else record.end}) s"


# One clip, in a worker


class _Job(NamedTuple):
    folder: str
    """Of the clip's flow, below the set's."""
    record: ClipRecord


class _Outcome(NamedTuple):
    """A clip's flow, or the reason why there is none."""

    fields: int = 0
    bytes: int = 0
    saturated: float = 0.0
    kept: bool = False
    reason: str = ""


class _Extract:
    """Computes the flow of one clip at a time; picklable, so OpenCV's objects are made where they are used."""

    def __init__(self, out: str, method: str, short_side: int, quality: int, *, patience: float) -> None:
        self.out, self.method, self.short_side, self.quality = out, method, short_side, quality
        self._patience = patience if hasattr(signal, "setitimer") else 0.0

    @property
    def settings(self) -> dict[str, object]:
        """What must be equal for all clips of a set."""
        return {"method": self.method, "short_side": self.short_side, "quality": self.quality, "bound": BOUND}

    @cached_property
    def _algorithm(self) -> Any:
        cv2 = import_opencv(self.method)
        cv2.setNumThreads(0)
        if self.method == "tvl1":
            return cv2.optflow.DualTVL1OpticalFlow_create()
        return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_algorithm"}

    def __call__(self, job: _Job) -> _Outcome:
        target = os.path.join(self.out, job.folder)
        try:
            self._watch(self._patience)
            source = _Source.of(job.record.path)
            if os.path.lexists(target) and (there := self._there(target, source)):
                return there
            return self._fill(target, job.record, source)
        except DecodeError as error:
            return _Outcome(reason=error.reason)
        except MemoryError:
            return _Outcome(reason="not enough memory for its frames")
        finally:
            self._watch(0.0)

    def _watch(self, seconds: float) -> None:
        """End this process if it does not call again in time: a clip may take hours, but not its next frame."""
        if self._patience:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # also where C code never comes back
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def explain(self, crash: Crash) -> str:
        """The reason of a clip whose process died."""
        return f"stuck: no frame within {self._patience:g} s" if "SIGALRM" in crash.reason else crash.reason

    def _there(self, target: str, source: _Source) -> _Outcome | None:
        """What an earlier run left, if it is whole and of this clip."""
        facts = _read_facts(os.path.join(target, FACTS))
        if facts is None or "source" not in facts:
            raise DecodeError(target, f"{target} is in the way: no flow of an earlier run")
        if facts.get("source_bytes") != source.bytes:
            if facts["source"] != source.path:
                raise DecodeError(target, f"{target} holds the flow of another clip, {facts['source']}")
            return None  # the video was replaced
        fields, size, saturated = facts.get("fields"), facts.get("bytes"), facts.get("saturated")
        if not (isinstance(fields, int) and isinstance(size, int) and isinstance(saturated, float)):
            return None
        if sum(name.endswith(".jpg") for name in os.listdir(target)) != 2 * fields:
            return None
        return _Outcome(fields, size, saturated, kept=True)

    def _fill(self, target: str, record: ClipRecord, source: _Source) -> _Outcome:
        part = os.path.join(self.out, _PARTIAL, f"{os.getpid()}-{time.monotonic_ns()}")
        try:
            with writing(target):
                os.mkdir(part)
            fields, size, saturated, shape = 0, 0, 0.0, (0, 0)
            for flow in self._fields(record):
                self._watch(self._patience)
                fields += 1
                shape = flow.shape[:2]
                saturated += float((np.abs(flow) > BOUND).mean())
                for axis, image in zip("xy", np.moveaxis(to_uint8(flow), 2, 0), strict=True):
                    encoded = self._encode(image)
                    size += len(encoded)
                    with writing(target), open(f"{part}/flow_{axis}_{fields:05d}.jpg", "wb") as file:
                        file.write(encoded)
            outcome = _Outcome(fields, size, saturated / fields)
            facts = {
                **self.settings,
                "fields": fields,
                "width": shape[1],
                "height": shape[0],
                "bytes": size,
                "saturated": outcome.saturated,
                "source": source.path,
                "source_bytes": source.bytes,
            }
            with writing(target):
                Path(part, FACTS).write_text(jsonlib.dumps(facts) + "\n", encoding="utf-8")
                os.makedirs(os.path.dirname(target), exist_ok=True)
                if os.path.lexists(target):
                    os.rename(target, part + "-old")
                os.rename(part, target)
                shutil.rmtree(part + "-old", ignore_errors=True)
            return outcome
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _fields(self, record: ClipRecord) -> Iterator[Float32]:
        """(H, W, 2) from every frame to the next, pixels."""
        cv2 = import_opencv(self.method)
        before: UInt8 | None = None
        try:
            for frame in gray_frames(record, self.short_side):
                if before is not None:
                    yield self._algorithm.calc(before, frame, None)
                before = frame
        except cv2.error as error:
            raise DecodeError(record.path, f"OpenCV found no flow: {' '.join(str(error).split())}") from None

    def _encode(self, image: UInt8) -> bytes:
        cv2 = import_opencv(self.method)
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        return bytes(encoded)


def gray_frames(record: ClipRecord, short_side: int) -> Iterator[UInt8]:
    """All frames of a clip, upright, grey, as (H, W) with the short side given (0 = as they are); few are held.

    Raises:
        DecodeError: the clip can't be read, or has fewer than two frames.
    """
    cv2 = import_opencv()
    at, window, size = 0, _WINDOW, (0, 0)
    count: int | None = None
    while count is None or at < count:
        frames = read_clip(record, partial(_window, at, at + window), mode="exact", backend="pyav")
        if count not in (None, frames.frame_count):
            raise DecodeError(record.path, "changed while it was read")
        count = frames.frame_count
        if count < 2:
            raise DecodeError(record.path, "has one frame; flow needs two at least")
        images = frames.data.permute(0, 2, 3, 1).numpy()
        if not at:
            size = _resized(record.path, images.shape[2], images.shape[1], short_side)
        for image in images:
            gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            if gray.shape != size[::-1]:
                smaller = size[0] < gray.shape[1]
                gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
            yield gray
        at += len(images)
        window = max(2, _HELD // images[0].nbytes)


def _window(begin: int, end: int, count: int) -> Int64:
    """The frames from ``begin`` to before ``end``, of ``count``; one at least."""
    return np.arange(min(begin, count - 1), min(end, count), dtype=np.int64)


def _resized(path: str, width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height that frames get."""
    scale = short_side / min(width, height) if short_side else 1.0
    size = round(width * scale), round(height * scale)
    if not is_sane(size[1], size[0]):
        raise DecodeError(path, f"frames of {width}×{height} pixels would become {size[0]}×{size[1]}")
    return size


def import_opencv(method: str = "dis") -> Any:
    """The module cv2.

    Raises:
        MissingDependencyError: it is not installed, or has not this method.
    """
    try:
        import cv2
    except ImportError:
        raise MissingDependencyError("optical flow needs OpenCV; pip install opencv-contrib-python-headless") from None
    if method == "tvl1" and not hasattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create"):
        raise MissingDependencyError(
            f"this OpenCV, {cv2.__version__}, has no TV-L1, which only its contrib packages have; "
            "pip uninstall it and pip install opencv-contrib-python-headless, or use the method dis"
        )
    return cv2


class _Source(NamedTuple):
    """Tells a clip from another one of its name; not by its time of change, which copying alters."""

    path: str
    bytes: int
    """0 for a folder of frames."""

    @classmethod
    def of(cls, path: str) -> _Source:
        path = os.path.abspath(path)
        try:
            size = 0 if os.path.isdir(path) else os.stat(path).st_size
        except (OSError, ValueError):
            size = 0  # reading it will say what is wrong
        return cls(path, size)


# The set


def _check_settings(method: str, short_side: int, quality: int, workers: int, timeout: float) -> None:
    if method not in METHODS:
        raise UnknownNameError("flow method", method, METHODS)
    if short_side != 0 and not 32 <= short_side <= 4096:
        raise UsageError(f"short_side is {short_side}; it must be from 32 to 4096 pixels, or 0 = as it is")
    if not 1 <= quality <= 100:
        raise UsageError(f"quality is {quality}; it must be from 1 to 100")
    if workers < -1:
        raise UsageError(f"workers is {workers}; it must be at least 0, or -1 = one per core")
    if not 0 <= timeout < float("inf"):  # (nan neither)
        raise UsageError(f"timeout is {timeout}; it must be a number of seconds, or 0 = no limit")
    import_opencv(method)


@contextmanager
def _opened(extract: _Extract) -> Iterator[Path]:
    """The folder of a set, for this run alone.

    Raises:
        UsageError: it holds something else, or another run is at work there.
    """
    root = Path(extract.out)
    _check_folder(root, extract.settings)
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        shutil.rmtree(root / _PARTIAL, ignore_errors=True)  # what a killed run left
        facts = {"kind": "vireo flow", **extract.settings}
        with writing(root / _PARTIAL):
            (root / _PARTIAL).mkdir()
        with replacing(root / FACTS) as file:
            file.write(jsonlib.dumps(facts, indent=1) + "\n")
        try:
            yield root
        finally:
            shutil.rmtree(root / _PARTIAL, ignore_errors=True)


def _check_folder(root: Path, settings: dict[str, object]) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; give a new one for the flow")
    facts = _read_facts(str(root / FACTS))
    if facts is None or facts.get("kind") != "vireo flow":
        if any(name not in (LOCK, SOURCE, _PARTIAL) for name in os.listdir(root)):
            raise UsageError(f"{root} is not empty and holds no flow of an earlier run; give another folder")
        return
    for name, value in settings.items():
        if facts.get(name) != value:
            raise UsageError(
                f"{root} holds flow with {name.replace('_', ' ')} {facts.get(name)}, not {value}; "
                "give another folder, or the same settings"
            )


def _read_facts(path: str) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, RecursionError):
        if os.path.isfile(path) and os.path.getsize(path) <= _LONGEST_FACTS:
            facts = jsonlib.loads(Path(path).read_text(encoding="utf-8"))
            return facts if isinstance(facts, dict) else None
    return None


def _write_list(path: Path, table: ClipTable, folders: Sequence[str]) -> None:
    columns: dict[str, Iterable[str]] = {
        "path": folders,
        "label": (table.label_names[label] for label in table.labels.tolist()),
    }
    if table.splits is not None:
        columns["split"] = table.splits
    if table.groups is not None:
        columns["group"] = table.groups
    with replacing(path) as file:
        csv.writer(file).writerows([tuple(columns), *zip(*columns.values(), strict=True)])


# The command


def flow_command(
    data: str,
    out: Path,
    *,
    method: str = "tvl1",
    short_side: int = 256,
    quality: int = 90,
    workers: int = -1,
    timeout: float = 300.0,
    json: bool = False,
) -> int:
    """What `vireo flow` does: read the list, extract, say what it cost."""
    place = split_format(data)[1]
    claim_outside(out, place)
    table = read_table(data)
    console, errors = progress.make_console(highlight=False), progress.make_console(stderr=True, highlight=False)
    for note in table.notes:
        errors.print(Text(printable(note), "dim"), soft_wrap=True)
    with progress.bar("flow", len(table)) as advance, made_from(place, out, out / FACTS):
        try:
            report = extract_flow(
                table,
                out,
                method=method,
                short_side=short_side,
                quality=quality,
                workers=workers,
                timeout=timeout,
                done=advance,
            )
        except KeyboardInterrupt:
            line = (
                f"{out} holds {advance.done} of {counted(len(table), 'clip')}; the same command again completes the set"
            )
            advance.errors.print(Text(printable(line)), soft_wrap=True)
            raise
    if json:
        print(jsonlib.dumps(_as_dict(report, method, short_side, quality)))
        return 0
    for line, style in _lines(report, method, short_side):
        console.print(Text(printable(line), style), soft_wrap=True)
    return 0


def _as_dict(report: FlowReport, method: str, short_side: int, quality: int) -> dict[str, Any]:
    return {
        "csv": str(report.csv),
        "method": method,
        "short_side": short_side,
        "quality": quality,
        "bound": BOUND,
        "clips": report.clips,
        "extracted": report.extracted,
        "kept": report.kept,
        "failed": len(report.failures),
        "failures": [{"path": path, "reason": reason} for path, reason in report.failures],
        "fields": report.fields,
        "bytes": report.bytes,
        "saturated": report.saturated,
        "seconds": report.seconds,
    }


def _lines(report: FlowReport, method: str, short_side: int) -> Iterator[tuple[str, str]]:
    """What to print, each with its style."""
    made = report.extracted + report.kept
    size = f"short side {short_side}" if short_side else "frames as they are"
    kept = f" ({report.kept} of them were there already)" if report.kept else ""
    rate = f", {report.seconds / report.extracted:.1f} s/clip" if report.extracted else ""
    yield f"flow of {counted(made, 'clip')} by {method}, {size}, in {report.seconds:.0f} s{rate}{kept}", ""
    disk = f"{report.bytes / 1e6:,.1f} MB, {report.bytes / made / 1e6:.2f} MB/clip"
    clipped = f"{100 * report.saturated:.2g} % of the values lay beyond ±{BOUND:g} pixels and were clipped"
    yield f"{counted(report.fields, 'field')} on disk: {disk}; {clipped}", ""
    if report.failures:
        failed = report.csv.with_name(FAILED)
        them = "it" if len(report.failures) == 1 else "them"
        yield f"{counted(len(report.failures), 'clip')} could not be read; {failed} names {them}", "red"
    listed = shlex.quote(str(report.csv))
    yield f"next: vireo train --modality flow --data {listed} --out RUN", "dim"
