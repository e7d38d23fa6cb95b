"""A data set written again as videos that are quick to read at random.

Each file becomes one that `vireo.data.encode` writes. Frames stay the same in number and in time, so cuts (start and
end) hold as they are and a file is written once however many clips are cut from it. The source is left alone.

    OUT/clips.csv          path, label, and split, group, start, end where the source has them; every clip of the source
    OUT/failed.csv         files that can't be read, with the reason: their clips are missing, and count as failed
    OUT/optimize.jsonl     what is done, so that an interrupted run goes on
    OUT/<path>.mp4         below the deepest folder that holds all files of the source
"""

from __future__ import annotations

import csv
import io
import json as jsonlib
import math
import os
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np
from rich.table import Table
from rich.text import Text

from vireo import progress
from vireo.data.annotations import read_table, split_format
from vireo.data.decode import Plan, read_frames
from vireo.data.encode import OptimizeConfig, Written, encode_video, part_of
from vireo.data.examine import stamp
from vireo.data.frames import read_frame_folder
from vireo.data.journal import JsonLines
from vireo.data.outputs import LOCK, SOURCE, claim_outside, locked, made_from, shorter_names, write_text
from vireo.data.pool import Crash, map_in_processes
from vireo.data.sampling import Indices, segment_indices
from vireo.data.table import ClipTable, counted
from vireo.errors import DataError, DecodeError, MissingDependencyError, UsageError, writing
from vireo.files import write_failures
from vireo.progress import printable

FORMAT = 1
_JOURNAL = "optimize.jsonl"
SAMPLE = 20
"""Most files whose reading is timed, before and after."""
_SAMPLE_SECONDS = 10.0  # after which no further file is timed
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Optimized:
    """What a run did."""

    csv: Path
    files: int
    """Written, now or by a run before."""
    failed: tuple[tuple[str, str], ...]
    """Source files that could not be read, and why."""
    clips: int
    """Rows of ``csv``."""
    frames: int
    bytes_before: int
    bytes_after: int
    ms_before: float
    """Of reading 8 frames of a clip from the source, median over a sample; nan if nothing was written."""
    ms_after: float
    """The same from what was written."""
    sample: int
    """Files in the sample."""


def optimize_data(
    table: ClipTable,
    out: Path,
    config: OptimizeConfig,
    *,
    workers: int = -1,
    timeout: float = 600.0,
    done: Callable[[int], None] = lambda count: None,
) -> Optimized:
    """Write a data set again.

    Args:
        table: its clips.
        out: folder for the new set; empty, missing, or begun by a run with the same settings.
        config: how.
        workers: processes that encode; -1 = one per core, 0 = none but this one.
        timeout: seconds after which a file is given up, 0 = none.
        done: told how many files were finished since it was last called.

    Raises:
        UsageError: ``out`` holds something else, lies where the source is, or another run is at work there.
        DataError: not a single file can be read.
        StorageError: the disk is full, or ``out`` can't be written.
        MissingDependencyError: PyAV comes without an H.264 encoder.
    """
    if "libx264" not in av.codecs_available:
        raise MissingDependencyError("this build of PyAV has no libx264 encoder; `pip install av` brings one")
    sources = list(dict.fromkeys(table.paths))
    counts = _announced(table)
    targets = [out / name for name in target_names(shorter_names(sources))]
    _check_apart(sources, targets, out)
    _is_begun(out, config)  # before anything is written there
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        tasks = [_Task(source, target, counts.get(source)) for source, target in zip(sources, targets, strict=True)]
        written, failed = _write_videos(tasks, out, config, workers, timeout, done)
        write_failures(out / "failed.csv", failed)
        if not written:
            raise DataError(f"no file of {len(sources)} can be read; {out / 'failed.csv'} says why")
        _write_table(out / "clips.csv", table, {task.source: os.path.relpath(task.target, out) for task in tasks})
    pairs = [(task.source, task.target) for task in tasks if task.source in written]
    sample, ms_before, ms_after = _time_reading(pairs[:: -(-len(pairs) // SAMPLE)])
    return Optimized(
        csv=out / "clips.csv",
        files=len(written),
        failed=tuple(failed),
        clips=len(table),
        frames=sum(w.frames for w in written.values()),
        bytes_before=sum(w.source_bytes for w in written.values()),
        bytes_after=sum(w.bytes for w in written.values()),
        ms_before=ms_before,
        ms_after=ms_after,
        sample=sample,
    )


def _write_videos(
    tasks: Sequence[_Task],
    out: Path,
    config: OptimizeConfig,
    workers: int,
    timeout: float,
    done: Callable[[int], None],
) -> tuple[dict[str, Written], list[tuple[str, str]]]:
    """Write the videos that are not there yet: what was written of each source, and the sources that failed."""
    written: dict[str, Written] = {}
    failed: dict[str, str] = {}
    with JsonLines(out / _JOURNAL) as journal:
        if not _is_begun(out, config):
            journal.append({"format": FORMAT, "settings": asdict(config)})
        before = _done_before(journal)
        todo = []
        for task in tasks:
            earlier = before.get((os.path.abspath(task.source), os.path.relpath(task.target, out)))
            same = earlier and earlier[0] == stamp(task.source) and task.frame_count in (None, earlier[1].frames)
            if earlier and same and _size(task.target) == earlier[1].bytes:
                written[task.source] = earlier[1]
                done(1)
            else:
                todo.append(task)
        results = map_in_processes(partial(_optimize_one, config), todo, workers=workers, timeout=timeout)
        for k, result in results:
            source, target, _ = todo[k]
            if isinstance(result, Crash | str):
                failed[source] = result.reason if isinstance(result, Crash) else result
                with writing(target):  # nor may what was made of an earlier state of the source stand for it
                    part_of(target).unlink(missing_ok=True)
                    target.unlink(missing_ok=True)
            else:
                now, written[source] = result
                place = {"source": os.path.abspath(source), "target": os.path.relpath(target, out)}
                journal.append({"format": FORMAT, "stamp": now, **place, **written[source]._asdict()})
            done(1)
    return written, [(task.source, failed[task.source]) for task in tasks if task.source in failed]


class _Task(NamedTuple):
    source: str
    target: Path
    frame_count: int | None
    """Images of a frame folder that the list announces; None = all."""


def _announced(table: ClipTable) -> dict[str, int]:
    """How many images of each frame folder the list says there are, the largest number if it says several."""
    counts: dict[str, int] = {}
    if table.frame_counts is not None:
        for path, count in zip(table.paths, table.frame_counts.tolist(), strict=True):
            if count and os.path.isdir(path):
                counts[path] = max(count, counts.get(path, 0))
    return counts


def target_names(names: Sequence[str]) -> list[str]:
    """Relative paths of the new files: .mp4 in place of the ending, behind it where two would be the same."""
    plain = [os.path.splitext(name)[0] + ".mp4" for name in names]
    common = Counter(name.casefold() for name in plain)  # there are disks that ignore case
    chosen: list[str] = []
    taken: set[str] = set()
    for name, short in zip(names, plain, strict=True):
        new, number = short if common[short.casefold()] == 1 else f"{name}.mp4", 1
        while new.casefold() in taken:
            new, number = f"{name}.{number}.mp4", number + 1
        chosen.append(new)
        taken.add(new.casefold())
    return chosen


def _optimize_one(config: OptimizeConfig, task: _Task) -> tuple[tuple[int, int] | None, Written] | str:
    now = stamp(task.source)
    try:
        return now, encode_video(task.source, task.target, config, frame_count=task.frame_count)
    except DecodeError as error:
        return error.reason
    except MemoryError:
        return "not enough memory for its frames"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _check_apart(sources: Sequence[str], targets: Sequence[Path], out: Path) -> None:
    """Check that nothing that is written is, or lies among, what is read."""
    real = out.resolve()
    folders = {os.path.realpath(os.path.dirname(os.path.abspath(source))) for source in sources}
    inside = next((folder for folder in sorted(folders) if Path(folder).is_relative_to(real)), None)
    if inside is not None:
        raise UsageError(f"{out} holds files of the source ({inside}); choose an empty folder")
    same = {os.path.realpath(source) for source in sources} & {os.path.realpath(target) for target in targets}
    if same:
        raise UsageError(f"{sorted(same)[0]} would be written over itself; choose another folder")


def _is_begun(out: Path, config: OptimizeConfig) -> bool:
    """Whether a run with these settings has begun in a folder.

    Raises:
        UsageError: the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; give a folder")
    journal = out / _JOURNAL
    if not journal.is_file():
        if out.exists() and any(entry.name not in (LOCK, SOURCE, _JOURNAL) for entry in out.iterdir()):
            raise UsageError(f"{out} is not empty; choose an empty folder")
        return False
    with JsonLines(journal) as lines:
        settings = next((entry["settings"] for entry in lines.entries() if "settings" in entry), None)
    if settings not in (None, asdict(config)):
        told = ", ".join(f"{k} {v}" for k, v in settings.items()) if isinstance(settings, dict) else settings
        raise UsageError(f"{out} holds clips made with other settings ({told}); use those, or another folder")
    return settings is not None


def _done_before(journal: JsonLines) -> dict[tuple[str, str], tuple[tuple[int, int], Written]]:
    """What runs before have written: source and target → the source's stamp and what was written."""
    found = {}
    for entry in journal.entries():
        try:
            size, changed = entry["stamp"]
            written = Written(entry["frames"], entry["bytes"], entry["source_bytes"])
            key = entry["source"], entry["target"]
        except (KeyError, TypeError, ValueError):
            continue
        ok = all(isinstance(n, int) for n in written) and all(isinstance(name, str) for name in key)
        if entry.get("format") == FORMAT and ok:
            found[key] = ((size, changed), written)
    return found


def _write_table(path: Path, table: ClipTable, names: dict[str, str]) -> None:
    columns = ["path", "label"]
    columns += ["split"] * (table.splits is not None) + ["group"] * (table.groups is not None)
    cut = not (np.isnan(table.starts).all() and np.isnan(table.ends).all())
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns + ["start", "end"] * cut)
    for row in range(len(table)):
        record = table.record(row)
        cells = [Path(names[record.path]).as_posix(), table.label_names[record.label]]
        cells += [column[row] for column in (table.splits, table.groups) if column is not None]
        times = ["" if t is None else repr(t) for t in (record.start, record.end)]
        writer.writerow(cells + times * cut)
    write_text(path, text.getvalue())


def _time_reading(sample: Sequence[tuple[str, Path]]) -> tuple[int, float, float]:
    """Number of files timed, and median milliseconds of reading 8 frames of a source and of what was made of it.

    In turns, so that both meet the same machine; without the sample's rest where that would take long.
    """

    def plan(frame_count: int) -> Indices:
        return segment_indices(frame_count, 8)

    times: tuple[list[float], list[float]] = [], []
    begun = time.perf_counter()
    for source, target in sample:
        if time.perf_counter() - begun > _SAMPLE_SECONDS:
            break
        best = [math.inf, math.inf]
        for turn in range(3):
            for k, path in enumerate((source, str(target))):
                started = time.perf_counter()
                try:
                    _read(path, plan)
                except DecodeError:
                    return 0, math.nan, math.nan  # changed or removed meanwhile
                if turn:  # the first reading also learns where the key frames are
                    best[k] = min(best[k], time.perf_counter() - started)
        for k in (0, 1):
            times[k].append(1000 * best[k])
    if not times[0]:
        return 0, math.nan, math.nan
    return len(times[0]), statistics.median(times[0]), statistics.median(times[1])


def _read(path: str, plan: Plan) -> None:
    if os.path.isdir(path):
        read_frame_folder(path, plan)
    else:
        read_frames(path, plan)


# ------------------------------------------------------------------------------------------------- the command


def optimize_command(
    data: str,
    out: Path,
    *,
    short_side: int = 256,
    gop: int = 12,
    crf: int = 18,
    workers: int = -1,
    timeout: float = 600.0,
    json: bool = False,
) -> int:
    """What `vireo data optimize` does."""
    config = OptimizeConfig(short_side=short_side, gop=gop, crf=crf)
    place = split_format(data)[1]
    claim_outside(out, place)
    table = read_table(data)
    for note in table.notes:
        progress.make_console(stderr=True, highlight=False).print(Text(printable(note), "dim"), soft_wrap=True)
    total = len(set(table.paths))
    with progress.bar("optimize", total) as advance, made_from(place, out, out / _JOURNAL):
        try:
            result = optimize_data(table, out, config, workers=workers, timeout=timeout, done=advance)
        except KeyboardInterrupt:
            advance.errors.print(
                f"{advance.done} of {counted(total, 'file')} done; the same command again does the rest",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            raise
    if json:
        plain = {**asdict(result), "csv": str(result.csv), "failed": [list(f) for f in result.failed], **asdict(config)}
        print(jsonlib.dumps({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in plain.items()}))
        return 0
    console = progress.make_console(highlight=False)
    size = f"short side {config.short_side}" if config.short_side else "sizes kept"
    setting = f"H.264, {size}, groups of {config.gop} frames, CRF {config.crf}, without sound"
    console.print(
        Text.assemble(
            ("Optimized", "bold"),
            f"  {counted(result.files, 'file')}, {counted(result.clips, 'clip')}  ",
            (setting, "dim"),
        )
    )
    console.print(_comparison(result))
    if result.failed:
        files = counted(len(result.failed), "file")
        what = f"{files} can't be read; their clips stay in the list and count as failed (failed.csv):"
        console.print(Text(what, "yellow"))
        for path, reason in result.failed[:_SHOWN]:
            console.print(Text(printable(f"  {path}: {reason}")), soft_wrap=True)
        if len(result.failed) > _SHOWN:
            console.print(Text(f"  … and {len(result.failed) - _SHOWN:,} more", "dim"))
    console.print(Text(printable(str(result.csv))), soft_wrap=True)
    console.print(
        Text(f"next: vireo train --data {printable(shlex.quote(str(result.csv)))} --out RUN", "dim"), soft_wrap=True
    )
    return 0


def _comparison(result: Optimized) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    rows = [
        ("MB", result.bytes_before / 1e6, result.bytes_after / 1e6),
        (f"ms to read 8 frames, median of {counted(result.sample, 'file')}", result.ms_before, result.ms_after),
    ]
    for name, before, after in rows:
        if before and not math.isnan(before):
            table.add_row(name, f"{before:,.1f}", f"{after:,.1f}", f"{100 * (after / before - 1):+.0f} %")
    return table
