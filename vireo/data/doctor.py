"""The dataset doctor: reads every clip from beginning to end and says what should be mended before training.

Nothing is changed or deleted. What is found is of three kinds: faults, which must be mended because clips are lost
or scores come out wrong; warnings, worth a look; notes, good to know.
"""

from __future__ import annotations

import json as jsonlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from vireo import progress
from vireo.data import duplicates
from vireo.data.annotations import read_table, split_format
from vireo.data.doctor_page import write_page
from vireo.data.doctor_report import SEVERITIES, SHOWN, Report, Summary, print_report
from vireo.data.examine import FileFacts, Journal, examine, stamp
from vireo.data.findings import FINDERS, Examined, decode_costs
from vireo.data.outputs import claim_outside, printable, shorter_names, write_text
from vireo.data.pool import Crash, map_in_processes
from vireo.data.table import ClipTable
from vireo.errors import UsageError


def check_data(
    table: ClipTable,
    *,
    journal: Path | None = None,
    workers: int = -1,
    timeout: float = 300.0,
    num_frames: int = 8,
    done: Callable[[int], None] = lambda count: None,
) -> Report:
    """Examine all files of a table, and what the table says of them.

    Args:
        table: labelled clips; a file of several clips is read once.
        journal: file in which results are kept, so that a second run reads only what is new or was changed.
        workers: processes that decode; -1 = one per core, 0 = none but this one.
        timeout: seconds after which a file is given up, 0 = none.
        num_frames: T, frames that a model takes of each clip.
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
    for i, fact in _examine_all(files, journal, workers, timeout):
        if fact.signature:
            signatures[i] = np.frombuffer(fact.signature, dtype=np.uint8).reshape(signatures.shape[1:])
        facts[i] = replace(fact, signature=b"")  # kept in one array: objects cost more
        done(1)
    data = Examined(
        table=table,
        files=files,
        names=shorter_names(files),
        file_of=np.fromiter((place[path] for path in paths), dtype=np.int64, count=len(paths)),
        facts=facts,
        signatures=signatures,
        num_frames=num_frames,
    )
    findings = [finding for finder in FINDERS for finding in finder(data) if finding.items]
    return Report(
        clips=len(table),
        files=len(files),
        classes=tuple(data.classes),
        summary=_summarise(data),
        findings=tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity))),
        num_frames=num_frames,
    )


def _examine_all(
    files: Sequence[str], journal: Path | None, workers: int, timeout: float
) -> Iterator[tuple[int, FileFacts]]:
    with ExitStack() as stack:
        known = stack.enter_context(Journal(journal)) if journal else None
        todo = []
        for i, path in enumerate(files):
            fact = known.known(path) if known else None
            if fact is None:
                todo.append(i)
            else:
                yield i, fact
        results = map_in_processes(_examine_stamped, [files[i] for i in todo], workers=workers, timeout=timeout)
        for k, result in results:
            if isinstance(result, Crash):
                yield todo[k], FileFacts(path=files[todo[k]], fault=result.reason)
                continue
            now, fact = result
            if known:
                known.add(fact, now)
            yield todo[k], fact


def _examine_stamped(path: str) -> tuple[tuple[int, int] | None, FileFacts]:
    now = stamp(path)  # before it is read: what changes meanwhile is read again next time
    return now, examine(path)


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
    json: bool = False,
) -> int:
    """What `vireo data check` does; returns 0 when nothing must be mended, else 1."""
    place = split_format(data)[1]
    name = place.resolve().name if place.is_dir() else place.stem
    out = Path(f"{name or 'data'}.check") if out is None else out
    claim_outside(out, place)
    table = read_table(data)
    with progress.bar("check", len(set(table.paths))) as advance:
        try:
            report = check_data(
                table,
                journal=out / "check.jsonl",
                workers=workers,
                timeout=timeout,
                num_frames=num_frames,
                done=advance,
            )
        except KeyboardInterrupt:
            advance.errors.print(
                f"{advance.done} files are checked; the same command again goes on from there ({out}/check.jsonl)",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            raise
    plain = {"data": data, **report.as_dict()}
    written = out / "check.json", out / "check.html"
    write_text(written[0], jsonlib.dumps(plain, indent=1) + "\n")
    page = write_page(
        report, title=place.resolve().name, notes=table.notes, files=list(dict.fromkeys(table.paths)), workers=workers
    )
    write_text(written[1], page)
    if json:
        short = {"data": data, **report.as_dict(limit=SHOWN), "json": str(written[0]), "html": str(written[1])}
        print(jsonlib.dumps(short))
    else:
        print_report(report, Console(highlight=False), title=place.resolve().name, notes=table.notes)
        console = Console(highlight=False)
        for path in written:
            console.print(Text(printable(str(path))), soft_wrap=True)
        if any(f.kind in ("long-gop", "large") for f in report.findings):
            command = f"vireo data optimize {shlex.quote(data)} --out {shlex.quote(name + '-256')}"
            console.print(Text(f"next: {printable(command)}", "dim"), soft_wrap=True)
    return 0 if report.sound else 1
