"""One look for every progress bar: what, how far, clips per second, time left. Always on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class RateColumn(ProgressColumn):
    """Items per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The rate over the last half minute, as rich estimates it."""
        rate = task.finished_speed or task.speed
        return Text(f"{rate:.1f} {self.unit}/s" if rate else "", style="dim")


def make_progress(unit: str = "clips") -> Progress:
    """A rich progress display on stderr that leaves nothing behind when it ends."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim"),
        console=Console(stderr=True),
        transient=True,
    )


@contextmanager
def bar(title: str, total: int, unit: str = "clips") -> Iterator[Callable[[int], None]]:
    """A bar for one loop; yields the function to call with the number of items done since."""
    with make_progress(unit) as display:
        task = display.add_task(title, total=total, note="")
        yield lambda done: display.update(task, advance=done)
