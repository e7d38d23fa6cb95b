"""How fast a loop goes over its clips, and whether it waits for them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

B = TypeVar("B")

WORTH_SAYING = 0.05
"""Share of the time, spent waiting for clips, from which on the loader is called the bottleneck."""

MUCH = 0.2
"""The same where the workers should keep up and don't: on a busy machine some waiting can't be helped."""

LONG_ENOUGH = 10.0
"""Seconds of a loop that can be judged: in shorter ones the first batch, always waited for, is much of the time."""


@dataclass(kw_only=True)
class Pace:
    """Where the time of a loop over batches went.

    `go_through` keeps `seconds` and `waited`; the loop itself counts `clips`, and its loader knows `reading`.
    """

    seconds: float = 0.0
    """Of the loop so far."""
    waited: float = 0.0
    """Seconds of those in which it had no batch to work on."""
    clips: int = 0
    """That it worked on."""
    reading: float = 0.0
    """Seconds that reading these clips took, those of all processes added up."""

    @property
    def wait_share(self) -> float:
        """Share of the time that was spent waiting, in [0, 1]; nan before the first batch."""
        return self.waited / self.seconds if self.seconds > 0 else math.nan

    @property
    def enough_workers(self) -> int:
        """Processes that would read as fast as the loop works, were each as fast as those there were; at least 1.

        In the time that the loop works on a clip, so many processes read one.
        """
        working = self.seconds - self.waited
        return max(1, math.ceil(self.reading / working)) if working > 0 else 1

    def go_through(self, batches: Iterable[B]) -> Iterator[B]:
        """The batches, while the clock runs."""
        iterator = iter(batches)
        began = asked = time.perf_counter()
        before = self.seconds
        for batch in iterator:
            now = time.perf_counter()
            self.waited += now - asked
            self.seconds = before + now - began
            yield batch
            asked = time.perf_counter()
            self.seconds = before + asked - began
        # The end of the loader is no clip to wait for.


def verdict(pace: Pace, *, workers: int, cores: int) -> str:
    """One line on a loop that waits for its clips, and what helps; nothing if it hardly does, or is too short to tell.

    Args:
        pace: of an epoch.
        workers: processes that read, 0 = the loop itself did.
        cores: of this machine.
    """
    share, enough = pace.wait_share, pace.enough_workers
    if pace.seconds < LONG_ENOUGH or not share >= WORTH_SAYING:
        return ""
    found = f"{100 * share:.0f} % of the time went into waiting for clips"
    cheaper = "make clips cheaper to read (`vireo data optimize`)"
    if enough > max(workers, 1):
        remedy = f"about {enough} workers would keep up with the network"
        if enough > cores:
            has = f"{cores} core{'s' * (cores != 1)}"
            return f"{found}: {remedy}, and this machine has {has}; {cheaper}, or use --decode keyframe"
        now = f"there {'is' if workers == 1 else 'are'} {workers}"
        return f"{found}: {remedy}, {now}; use --workers {enough}, or {cheaper}"
    if not workers:
        return f"{found}: use --workers 1, which reads while the network works"
    if share < MUCH:
        return ""
    return f"{found}, though {enough} of {workers} workers should keep up: the cores are busy otherwise; {cheaper}"
