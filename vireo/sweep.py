"""`vireo train --seeds`: the same run with several seeds, one after another, and their mean and deviation."""

from __future__ import annotations

import gc
import json as jsonlib
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import vireo
from vireo.compare_runs import as_numbers, known, percent, with_deviation
from vireo.config import TrainConfig, to_dict
from vireo.data.annotations import read_table
from vireo.errors import TrainingError, UsageError, VireoError, writing
from vireo.files import replacing
from vireo.plots import comparison_png, write_png
from vireo.progress import make_console
from vireo.run_files import BEST, CONFIG, LAST, RESUME, RunRecord, Spread, read_run, read_settings, spread
from vireo.run_page import CURVES, PAGE, code, may_replace, write_page
from vireo.runs import begun_with, check_settings, write_config
from vireo.train import settings_of, train

SUMMARY = "seeds.json"
OURS = (CONFIG, SUMMARY, PAGE, CURVES)
"""What stands beside the runs."""


@dataclass(frozen=True, kw_only=True)
class SeedsResult:
    """What runs that differ in the seed alone came to."""

    out: Path
    seeds: tuple[int, ...]
    runs: tuple[RunRecord, ...]
    """One for each seed, as far as it is."""
    faults: Mapping[int, str] = field(default_factory=dict)
    """Why a seed's training failed, where it did."""
    interrupted: bool = False
    """Stopped by a signal; `resume` does what is left."""

    @cached_property
    def best(self) -> Spread | None:
        """Highest validation top-1 of each finished seed, in [0, 1]; optimistic, since chosen by it."""
        return spread(run.best[1] for run in self.runs if run.finished)

    @cached_property
    def last(self) -> Spread | None:
        """Validation top-1 of each finished seed after its last epoch, in [0, 1]."""
        return spread(run.last for run in self.runs if run.finished)

    @property
    def same_clips(self) -> bool:
        """Whether all seeds were validated on the same clips: not where the seed sets them aside."""
        return len({run.val_hash for run in self.runs if run.val_hash}) < 2

    def state(self, seed: int) -> str:
        """finished, unfinished, failed, or not begun."""
        run = self.runs[self.seeds.index(seed)]
        if seed in self.faults:
            return "failed"
        return run.state if (run.path / CONFIG).exists() else "not begun"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what was not measured is None."""
        return {
            "seeds": [
                {
                    "seed": seed,
                    "run": run.path.name,
                    "state": self.state(seed),
                    "best_top1": known(run.best[1]),
                    "best_epoch": run.best[0] or None,
                    "last_top1": known(run.last),
                    "epochs": run.epochs,
                    "minutes": known(run.minutes),
                    "fault": self.faults.get(seed),
                }
                for seed, run in zip(self.seeds, self.runs, strict=True)
            ],
            "best_top1": as_numbers(self.best),
            "last_top1": as_numbers(self.last),
            "same_validation_clips": self.same_clips,
            "data_hash": next((run.data_hash for run in self.runs if run.data_hash), None),
            "interrupted": self.interrupted,
            "vireo": vireo.__version__,
        }


def train_seeds(config: TrainConfig, seeds: Sequence[int], *, console: Console | None = None) -> SeedsResult:
    """Train one run per seed into ``out/seed-N``, one after another, and sum them up.

    Writes ``seeds.json``, ``README.md`` and ``curves.png`` beside the runs after each of them. A seed whose training
    fails (its loss is not finite, ...) costs that seed alone. With ``resume``, seeds that are done are left as they
    are, one that was interrupted goes on, the others begin.

    Args:
        config: the run; its seed is not used.
        seeds: different ones, none negative.
        console: where progress is told.

    Raises:
        UsageError: the folder holds other things or other seeds, or is of a run with other settings or clips.
        DataError, StorageError, ...: as in :func:`vireo.train.train`; what was done is summed up all the same.
    """
    console, seeds = console or make_console(), tuple(seeds)
    check_seeds(config, seeds)
    out = Path(config.out)
    claim(out, seeds, config)
    write_config(out, config)
    faults: dict[int, str] = {}
    interrupted = True  # until the last seed is done
    try:
        for number, seed in enumerate(seeds, 1):
            own = replace(config, seed=seed, out=str(out / f"seed-{seed}"))
            own = replace(own, resume=config.resume and (out / f"seed-{seed}" / RESUME).exists())
            console.print(f"\n[bold]seed {seed}[/bold] ({number} of {len(seeds)})", highlight=False)
            if own.resume and is_done(own):
                console.print("done before", style="dim")
                continue
            try:
                if train(own, console=console).interrupted:
                    return summed_up(out, seeds, faults, console, interrupted=True)
            except TrainingError as error:
                faults[seed] = str(error)
                console.print(f"[red]seed {seed} failed:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
            gc.collect()  # a session refers to itself; its memory is the next one's
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if number < len(seeds):
                write_summary(collect(out, seeds, faults), console)
        interrupted = False
    finally:
        if interrupted:  # an error, or a signal while nothing was trained
            write_summary(collect(out, seeds, faults, interrupted=True), console)
    return summed_up(out, seeds, faults, console)


def check_seeds(config: TrainConfig, seeds: Sequence[int]) -> None:
    """Check the seeds, and that one process trains them.

    Raises:
        UsageError: they can't be used.
    """
    told = ",".join(map(str, seeds))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds is {told or 'empty'}; give different whole numbers from 0 on, e.g. 0,1,2")
    if config.devices * config.num_nodes > 1:
        raise UsageError(
            "--seeds trains in one process; with several devices start a run per seed (--seed 0, --seed 1, ...), and "
            "`vireo compare-runs` gives their mean"
        )


def claim(out: Path, seeds: Sequence[int], config: TrainConfig) -> None:
    """Make the folder, or check that it is one we may write in, before anything is trained.

    Raises:
        UsageError: it holds a run, other seeds, or other things; or `resume` is on and it holds nothing.
        StorageError: it can't be made.
    """
    holds = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; choose another --out")
    if holds & {BEST, LAST, RESUME}:
        raise UsageError(f"{out} holds a run of one seed; choose another --out")
    before = sorted(int(name[5:]) for name in holds if re.fullmatch(r"seed-\d{1,18}", name) and begun(out / name))
    told = f"{'seeds' if len(before) > 1 else 'seed'} {', '.join(map(str, before))}"
    if before and not config.resume:
        raise UsageError(f"{out} holds {told} already; go on with --resume, or choose another --out")
    if more := sorted(set(before) - set(seeds)):
        every = ",".join(map(str, sorted({*seeds, *more})))
        raise UsageError(f"{out} holds {told}; name all that are to be summed up: --seeds {every}")
    if config.resume and CONFIG not in holds:
        raise UsageError(f"{out} has no seeds to go on from; start without --resume")
    strange = [name for name in sorted(holds) if name not in OURS and not name.startswith(("seed-", "."))]
    if not config.resume and (strange or (PAGE in holds and not may_replace(out / PAGE))):
        raise UsageError(f"{out} is not empty ({[*strange, PAGE][0]}, ...); choose another --out")
    if config.resume:
        check_settings({**to_dict(config), "seed": 0}, {**read_settings(out), "seed": 0})
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for path in (path for name in OURS for path in out.glob(f".{name}.*") if path.is_file()):
            path.unlink(missing_ok=True)  # half written by a process that was killed


def begun(run: Path) -> bool:
    """Whether a run has saved anything."""
    return any((run / name).exists() for name in (BEST, LAST, RESUME))


def is_done(config: TrainConfig) -> bool:
    """Whether no epoch is left of a run, which is of these settings and clips.

    Raises:
        UsageError: it is of others.
    """
    run = Path(config.out)
    record = read_run(run)
    if not (replace(record, settings=to_dict(config)).finished and (run / LAST).exists()):
        return False
    if config.init:
        config = settings_of(config, *begun_with(run / RESUME))
    check_settings({k: v for k, v in to_dict(config).items() if k != "pruned"}, record.settings)
    if record.data_hash != read_table(config.data, modality=config.modality).digest():
        raise UsageError(f"The list of clips in {config.data} is not the one that {run} was trained on")
    return True


def collect(out: Path, seeds: tuple[int, ...], faults: Mapping[int, str], *, interrupted: bool = False) -> SeedsResult:
    """The runs as they are now."""
    runs = tuple(read_run(out / f"seed-{seed}") for seed in seeds)
    return SeedsResult(out=out, seeds=seeds, runs=runs, faults=dict(faults), interrupted=interrupted)


def summed_up(
    out: Path, seeds: tuple[int, ...], faults: Mapping[int, str], console: Console, *, interrupted: bool = False
) -> SeedsResult:
    """Print and write what there is."""
    result = collect(out, seeds, faults, interrupted=interrupted)
    print_summary(result, console)
    write_summary(result, console)
    return result


def train_seeds_command(config: TrainConfig, seeds: Sequence[int], *, json: bool = False) -> int:
    """What `vireo train --seeds` does; returns the exit code."""
    result = train_seeds(config, seeds, console=make_console(stderr=json))
    if json:
        print(jsonlib.dumps(result.as_dict(), ensure_ascii=False), flush=True)
    return 130 if result.interrupted else 1 if result.faults else 0


# --- what a person sees ---------------------------------------------------------------------------


COLUMNS = ("seed", "best, %", "last, %", "epochs", "min", "state")


def table_rows(result: SeedsResult) -> Iterable[tuple[str, ...]]:
    """A row for each seed, and one for all."""
    for seed, run in zip(result.seeds, result.runs, strict=True):
        state = result.state(seed)
        done = f"{run.epochs}/{run.planned}" if run.planned else "–"
        minutes = f"{run.minutes:.1f}" if run.rows and math.isfinite(run.minutes) else "–"
        yield str(seed), percent(run.best[1]), percent(run.last), done, minutes, "" if state == "finished" else state
    if result.last:
        number = f"{result.last.number} finished" if result.last.number < len(result.seeds) else ""
        yield "mean ± deviation", with_deviation(result.best), with_deviation(result.last), "", "", number


def remarks(result: SeedsResult) -> list[str]:
    """How the table is to be read."""
    lines = ["best: chosen on the clips it is scored on, so optimistic; last: not chosen, the one to report"]
    if result.last and result.last.number > 1:
        lines.append(f"±: sample deviation over n = {result.last.number} seeds")
    if not result.same_clips:
        lines.append("each seed set its own validation part aside: the deviation is also that of the clips")
    return lines


def go_on(result: SeedsResult) -> str:
    """The command that does what is left."""
    settings, seeds = shlex.quote(str(result.out / CONFIG)), ",".join(map(str, result.seeds))
    return f"vireo train --config {settings} --seeds {seeds} --resume"


def print_summary(result: SeedsResult, console: Console) -> None:
    """The table, what is to be known of it, and what to do about what is left."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("seed", "state") else "right", no_wrap=name != "state")
    for row in table_rows(result):
        table.add_row(*row, style="bold" if row[0].startswith("mean") else "")
    console.print()
    console.print(table)
    for line in remarks(result):
        console.print(line, style="dim", highlight=False)
    if not all(run.finished for run in result.runs):
        command = f"All seeds go on with: {go_on(result)}"
        console.print(command, markup=False, highlight=False, soft_wrap=True)


def write_summary(result: SeedsResult, console: Console) -> None:
    """Write ``seeds.json``, ``README.md`` and ``curves.png``; trouble with them is told, and costs no seed."""
    try:
        with replacing(result.out / SUMMARY) as file:
            file.write(jsonlib.dumps(result.as_dict(), indent=1, ensure_ascii=False) + "\n")
        curves = {f"seed {s}": [run.rows] for s, run in zip(result.seeds, result.runs, strict=True) if run.rows}
        if curves:
            epochs = max(max(run.planned, run.epochs) for run in result.runs)
            write_png(result.out / CURVES, comparison_png(curves, epochs=epochs))
        if may_replace(result.out / PAGE):
            write_page(result.out / PAGE, page_lines(result))
    except VireoError as error:
        console.print(f"[yellow]warning:[/yellow] {escape(str(error))}", highlight=False, soft_wrap=True)


def page_lines(result: SeedsResult) -> Iterable[str]:
    """The folder's page."""
    yield from (f"# {code(result.out.absolute().name)}", "")
    yield f"The same run with seeds {', '.join(map(str, result.seeds))}, each in its own folder, which says more."
    yield from ("", f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---:|---:|---|")
    for row in table_rows(result):
        first = f"[{row[0]}](seed-{row[0]}/{PAGE})" if row[0].isdigit() else f"**{row[0]}**"
        yield f"| {' | '.join([first, *row[1:]])} |"
    yield from ("", *(f"- {line}" for line in remarks(result)))
    yield from (f"- seed {seed} failed: {code(fault)}" for seed, fault in result.faults.items())
    if (result.out / CURVES).exists():
        yield from ("", f"![Learning curves]({CURVES})")
    run, seeds = shlex.quote(str(result.out)), ",".join(map(str, result.seeds))
    yield from ("", f"In {code(str(Path.cwd()))}:", "", "```bash")
    if not all(run.finished for run in result.runs):
        yield f"{go_on(result)}  # what is left"
    yield f"vireo train --config {run}/{CONFIG} --seeds {seeds} --out {shlex.quote(f'{result.out}-again')}  # once more"
    yield from (f"vireo compare-runs {run}", "```")
