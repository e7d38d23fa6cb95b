"""The dataset doctor: reads every clip from beginning to end and says what should be mended before training.

Nothing is changed or deleted. What is found is of three kinds: faults, which must be mended because clips are lost
or scores come out wrong; warnings, worth a look; notes, good to know.
"""

from __future__ import annotations

import itertools
import json as jsonlib
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from rich.text import Text

from vireo import progress
from vireo.data import duplicates
from vireo.data.annotations import read_table, split_format
from vireo.data.doctor_page import write_page
from vireo.data.doctor_report import SEVERITIES, SHOWN, Report, Summary, print_report
from vireo.data.examine import FileFacts, Journal, examine, examine_flow, stamp
from vireo.data.findings import FINDERS, Examined, decode_costs
from vireo.data.outputs import claim_outside, listed_names, note_source, source_of, write_text
from vireo.data.pool import Crash, map_in_processes
from vireo.data.table import ClipTable, counted
from vireo.errors import DataError, UsageError
from vireo.progress import printable


def check_data(
    table: ClipTable,
    *,
    journal: Path | None = None,
    workers: int = -1,
    timeout: float = 300.0,
    num_frames: int = 8,
    modality: Literal["rgb", "flow"] = "rgb",
    done: Callable[[int], None] = lambda count: None,
) -> Report:
    """Examine all files of a table, and what the table says of them.

    Args:
        table: labelled clips; a file of several clips is read once.
        journal: file in which results are kept, so that a second run reads only what is new or was changed.
        workers: processes that decode; -1 = one per core, 0 = none but this one.
        timeout: seconds after which a file is given up, 0 = none.
        num_frames: T, frames that a model takes of each clip.
        modality: what the clips are.
        done: told how many files were finished since it was last called.

    Raises:
        UsageError: ``num_frames`` is below 1 or ``timeout`` below 0.
        StorageError: the journal can't be written.
    """
    if num_frames < 1:
        raise UsageError(f"num_frames is {num_frames}; it must be at least 1")
    if not timeout >= 0:
        raise UsageError(f"timeout is {timeout}; it must be a number of seconds, or 0 for none")
    paths = list(table.paths)
    place = {path: i for i, path in enumerate(dict.fromkeys(paths))}
    files = list(place)
    signatures = np.zeros((len(files), duplicates.FRAMES, duplicates.CELLS, duplicates.CELLS), dtype=np.uint8)
    facts: list[FileFacts] = [FileFacts(path=path) for path in files]
    for i, fact in _examine_all(files, journal, workers, timeout, flow=modality == "flow"):
        if fact.signature:
            signatures[i] = np.frombuffer(fact.signature, dtype=np.uint8).reshape(signatures.shape[1:])
        facts[i] = replace(fact, signature=b"")  # kept in one array: objects cost more
        done(1)
    data = Examined(
        table=table,
        files=files,
        names=listed_names(files, table.base),
        file_of=np.fromiter((place[path] for path in paths), dtype=np.int64, count=len(paths)),
        facts=facts,
        signatures=signatures,
        num_frames=num_frames,
        is_flow=modality == "flow",
    )
    findings = [finding for finder in FINDERS for finding in finder(data) if finding.items]
    return Report(
        clips=len(table),
        files=len(files),
        classes=tuple(data.classes),
        summary=_summarise(data),
        findings=tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity))),
        num_frames=num_frames,
        modality=modality,
    )


def _examine_all(
    files: Sequence[str], journal: Path | None, workers: int, timeout: float, *, flow: bool
) -> Iterator[tuple[int, FileFacts]]:
    with ExitStack() as stack:
        known = stack.enter_context(Journal(journal)) if journal else None
        todo = []
        for i, path in enumerate(files):
            fact = known.known(path, flow=flow) if known else None
            if fact is None:
                todo.append(i)
            else:
                yield i, fact
        look = partial(_examine_stamped, flow=flow)
        results = map_in_processes(look, [files[i] for i in todo], workers=workers, timeout=timeout)
        for k, result in results:
            if isinstance(result, Crash):
                yield todo[k], FileFacts(path=files[todo[k]], fault=result.reason)
                continue
            now, fact = result
            if known:
                known.add(fact, now)
            yield todo[k], fact


def _examine_stamped(path: str, *, flow: bool) -> tuple[tuple[int, int] | None, FileFacts]:
    now = stamp(path)  # before it is read: what changes meanwhile is read again next time
    return now, examine_flow(path) if flow else examine(path)


def _summarise(data: Examined) -> Summary:
    facts = [data.facts[i] for i in data.healthy.tolist()]
    frames = sorted(fact.frame_count for fact in facts)
    costs = np.array([decode_costs(fact, data.num_frames) for fact in facts]).reshape(-1, 2)

    def common(values: Iterator[str]) -> tuple[tuple[str, int], ...]:
        return tuple(Counter(values).most_common())

    return Summary(
        seconds=sum(fact.seconds for fact in facts),
        bytes=sum(fact.size for fact in facts),
        frames=(frames[0], frames[len(frames) // 2], frames[-1]) if frames else (0, 0, 0),
        sizes=common(f"{fact.width}×{fact.height}" for fact in facts),
        codecs=common(fact.codec for fact in facts),
        rates=common(f"{fact.fps:.0f}" for fact in facts if fact.fps),
        cost=float(costs[:, 0].mean()) if facts else 0.0,
        short_cost=float(costs[:, 1].mean()) if facts else 0.0,
    )


def check_command(
    data: str,
    out: Path | None = None,
    *,
    workers: int = -1,
    timeout: float = 300.0,
    num_frames: int = 8,
    modality: Literal["auto", "rgb", "flow"] = "auto",
    json: bool = False,
) -> int:
    """What `vireo data check` does; returns 0 when nothing must be mended, else 1."""
    kind, place = split_format(data)
    name = (place.resolve().name if place.is_dir() else place.stem) or "data"
    out = _folder_for(place, name) if out is None else out
    claim_outside(out, place)
    table, found = _read(data, modality)
    with progress.bar("check", len(set(table.paths))) as advance:
        try:
            report = check_data(
                table,
                journal=out / "check.jsonl",
                workers=workers,
                timeout=timeout,
                num_frames=num_frames,
                modality=found,
                done=advance,
            )
        except KeyboardInterrupt:
            advance.errors.print(
                f"{counted(advance.done, 'file')} checked; the same command again goes on from there "
                f"({out}/check.jsonl)",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            raise
    plain = {"data": data, **report.as_dict()}
    stem = f"check-{kind}" if kind else "check"  # other splits of one data set have reports of their own
    written = out / f"{stem}.json", out / f"{stem}.html"
    write_text(written[0], jsonlib.dumps(plain, indent=1) + "\n")
    if not source_of(out):
        note_source(out, place)
    page = write_page(
        report,
        title=place.resolve().name,
        notes=table.notes,
        files=list(dict.fromkeys(table.paths)),
        base=table.base,
        workers=workers,
    )
    write_text(written[1], page)
    if json:
        short = {"data": data, **report.as_dict(limit=SHOWN), "json": str(written[0]), "html": str(written[1])}
        print(jsonlib.dumps(short))
    else:
        print_report(report, progress.make_console(highlight=False), title=place.resolve().name, notes=table.notes)
        console = progress.make_console(highlight=False)
        for path in written:
            console.print(Text(printable(str(path))), soft_wrap=True)
        if found == "rgb" and any(f.kind in ("long-gop", "large") for f in report.findings):
            command = f"vireo data optimize {shlex.quote(data)} --out {shlex.quote(name + '-256')}"
            console.print(Text(f"next: {printable(command)}", "dim"), soft_wrap=True)
    return 0 if report.sound else 1


def _folder_for(place: Path, name: str) -> Path:
    """Where the results of a data set go by themselves: not where those of another one of its name are."""
    folders = (Path(f"{name}{number}.check") for number in itertools.chain([""], (f"-{i}" for i in itertools.count(2))))
    return next(folder for folder in folders if source_of(folder) in ("", os.path.realpath(place)))


def _read(data: str, modality: Literal["auto", "rgb", "flow"]) -> tuple[ClipTable, Literal["rgb", "flow"]]:
    """The clips, and what they are: flow where that is said, or where they can't be read as anything else."""
    if modality != "auto":
        return read_table(data, modality=modality), modality
    try:
        return read_table(data), "rgb"
    except (DataError, UsageError):
        with suppress(DataError, UsageError):
            return read_table(data, modality="flow"), "flow"
        raise
