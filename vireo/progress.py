"""One look for every progress bar: what, how far, clips per second, time left. Always on stderr.

While a bar lives on a terminal, lines for the same terminal must go through its console, or the bar is
left standing between them; lines for a file or a pipe must not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LONGEST_LINE = 10_000
"""Characters of a line that is for no screen."""


def make_console(*, stderr: bool = False, highlight: bool = True) -> Console:
    """A console on stdout or stderr. In a file or a pipe its lines are as long as they are, unless COLUMNS is set."""
    console = Console(stderr=stderr, highlight=highlight)
    if not (console.is_terminal or console.is_jupyter or os.environ.get("COLUMNS")):
        console.width = LONGEST_LINE  # rich would wrap at 80
    return console


def printable(text: str) -> str:
    """Text for a screen or page: without control characters, and with ? where a file name is no UTF-8."""
    return "".join(c if c.isprintable() else "?" for c in text)


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
    """A rich progress display on stderr that leaves nothing behind when it ends; nothing at all in a file or pipe."""
    console = make_console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console,
        transient=True,
        disable=not console.is_interactive,  # rich would end it with an empty line
        redirect_stdout=_one_terminal(),
    )


class Bar:
    """A bar on the screen: a function to call with the number of items done since.

    Attributes:
        done: items done so far.
        output: the console for results, while the bar lives: stdout.
        errors: the console for complaints, while the bar lives: stderr.
    """

    def __init__(self, display: Progress, task: TaskID) -> None:
        self._display, self._task = display, task
        self.done = 0
        self.errors = display.console
        self.output = console_beside(display, make_console())

    def __call__(self, done: int) -> None:
        """Advance the bar by so many items."""
        self.reach(self.done + done)

    def reach(self, done: int, total: int | None = None) -> None:
        """Set the number of items done since the beginning, and of all if it has changed."""
        self.done = done
        self._display.update(self._task, completed=done, total=total)


@contextmanager
def bar(title: str, total: int, unit: str = "clips") -> Iterator[Bar]:
    """A bar for one loop."""
    with make_progress(unit) as display:
        yield Bar(display, display.add_task(title, total=total, note=""))


def console_beside(display: Progress, console: Console) -> Console:
    """The console to use in place of `console` while a display lives: the display's, if both write to one terminal."""
    shared = console.stderr or _one_terminal()
    return display.console if shared and display.console.is_terminal and not console.quiet else console


def _one_terminal() -> bool:
    """Whether stdout and stderr are one and the same terminal."""
    try:
        return sys.stdout.isatty() and os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something that is no file
        return False
