"""Where a loop's time goes, and what is said about it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest

from vireo.pace import Pace, verdict


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("vireo.pace.time.perf_counter", clock)
    return clock


def load(clock: Clock, seconds: float, count: int = 4) -> Iterator[int]:
    for number in range(count):
        clock.now += seconds
        yield number


def test_waiting_is_told_from_working(clock: Clock) -> None:
    pace, seen = Pace(), []
    for number in pace.go_through(load(clock, 3.0)):
        seen.append(number)
        clock.now += 1.0
    assert seen == [0, 1, 2, 3]
    assert (pace.waited, pace.seconds, pace.wait_share) == (12.0, 16.0, 0.75)


def test_a_loop_left_early_knows_its_time(clock: Clock) -> None:
    pace = Pace()
    for number in pace.go_through(load(clock, 3.0)):
        clock.now += 1.0
        if number == 1:
            break
    assert (pace.waited, pace.seconds) == (6.0, 7.0)  # up to where it was left, but for the last piece of work


def test_nothing_has_no_share() -> None:
    pace = Pace()
    assert list(pace.go_through([])) == []
    assert math.isnan(pace.wait_share) and pace.enough_workers == 1


@pytest.mark.parametrize(
    ("reading", "enough"),
    [(0.0, 1), (5.9, 1), (6.0, 1), (6.1, 2), (18.0, 3), (60.0, 10)],
)
def test_enough_workers_read_as_fast_as_the_network_works(reading: float, enough: int) -> None:
    # Six seconds of work: that much reading can one process do beside it.
    assert Pace(seconds=10, waited=4, reading=reading).enough_workers == enough


def test_enough_workers_by_playing_it_through() -> None:
    # 100 clips, each 0.06 s of work and 0.2 s to read: with n workers a clip is ready every 0.2 / n s.
    def waits(workers: int) -> float:
        clock = waited = 0.0
        for clip in range(100):
            ready = (clip // workers + 1) * 0.2
            waited += max(0.0, ready - clock)
            clock = max(clock, ready) + 0.06
        return waited / clock

    slow = waits(1)
    seconds = 100 * 0.06 / (1 - slow)
    enough = Pace(seconds=seconds, waited=slow * seconds, reading=100 * 0.2).enough_workers
    assert enough == 4
    assert waits(enough) < 0.05 < waits(enough - 1)


@pytest.mark.parametrize(
    ("pace", "workers", "cores", "told"),
    [
        (Pace(seconds=10, waited=0.4, reading=90), 1, 8, ""),
        (Pace(), 1, 8, ""),
        (Pace(seconds=9, waited=4, reading=18), 1, 8, ""),
        (Pace(seconds=10, waited=4, reading=18), 1, 8, "40 % of the time.*3 workers.*there is 1; use --workers 3"),
        (Pace(seconds=10, waited=4, reading=60), 4, 8, "10 workers.*8 cores; make clips cheaper.*vireo data optimize"),
        (Pace(seconds=10, waited=4, reading=4), 0, 8, "use --workers 1, which reads while the network works"),
        (Pace(seconds=10, waited=1, reading=6), 2, 2, ""),
        (Pace(seconds=10, waited=3, reading=6), 2, 2, "though 1 of 2 workers should keep up: the cores are busy"),
    ],
)
def test_the_verdict_names_a_remedy(pace: Pace, workers: int, cores: int, told: str) -> None:
    line = verdict(pace, workers=workers, cores=cores)
    assert re.search(told, line) if told else line == ""
