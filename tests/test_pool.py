"""Processes that are killed, hang or cannot start: every item is answered once, and nothing is left behind."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from vireo.data import pool as pools
from vireo.data.pool import Crash, WorkerPool, map_in_processes, resolve_workers
from vireo.errors import DataError, UsageError

pytestmark = pytest.mark.skipif(not pools.FORKED, reason="the functions of these tests reach the processes by fork")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process and no open file more than before."""
    resource_tracker.ensure_running()  # multiprocessing's own, which stays once it was needed
    before = open_files()
    yield
    gc.collect()
    assert multiprocessing.active_children() == []
    assert open_files() == before


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_every_item_has_its_own_result(workers: int) -> None:
    found = list(map_in_processes(lambda x: x * x, range(50), workers=workers))
    assert sorted(found) == [(i, i * i) for i in range(50)]
    assert list(map_in_processes(str, [], workers=workers)) == []


def _lethal(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if item in (4, 11):
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 6:
        os._exit(7)
    if item == 8:
        time.sleep(600)
    return -item


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_costs_its_item_alone(workers: int) -> None:
    answers = list(map_in_processes(_lethal, range(12), workers=workers, timeout=0.5))
    assert len(answers) == 12
    found = dict(answers)
    crashes = {i: answer.reason for i, answer in found.items() if isinstance(answer, Crash)}
    assert "SIGSEGV" in crashes.pop(3) and "exit code 7" in crashes.pop(6)
    assert "SIGKILL" in crashes.pop(4) and "SIGKILL" in crashes.pop(11)
    assert crashes.pop(8) == "no answer within 0.5 s"
    assert not crashes
    assert all(found[i] == -i for i in (0, 1, 2, 5, 7, 9, 10))


def test_waiting_in_the_parent_is_not_the_items_time() -> None:
    answers = []
    for answer in map_in_processes(lambda x: x, range(6), workers=1, timeout=0.3):
        time.sleep(0.5)  # each item is long done, or waits for its turn
        answers.append(answer)
    assert sorted(answers) == [(i, i) for i in range(6)]


def test_a_process_killed_from_outside_while_idle_costs_nothing() -> None:
    pool: WorkerPool[int, int] = WorkerPool(lambda x: x, 1)
    with pool:
        pool.submit(0, 0)
        assert pool.wait() == [(0, 0)]
        multiprocessing.active_children()[0].kill()
        for i in range(1, 5):
            pool.submit(i, i)
        found = []
        while pool.outstanding:
            found += pool.wait()
        assert sorted(found) == [(i, i) for i in range(1, 5)]
        assert pool.wait() == []  # nothing to wait for


def test_large_items_and_results_do_not_block_each_other() -> None:
    large = b"x" * (1 << 22)  # more than a pipe holds
    found = dict(map_in_processes(lambda x: x[::-1], [large] * 8, workers=2))
    assert len(found) == 8 and all(answer == large for answer in found.values())


class _TwoArgumentsError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def _raise(item: int) -> None:
    if item == 1:
        raise KeyError("a bug")
    if item == 2:
        raise _TwoArgumentsError(1, 2)  # can't be unpickled


@pytest.mark.parametrize(("item", "kind", "told"), [(1, KeyError, "a bug"), (2, RuntimeError, "1 and 2")])
def test_an_unexpected_error_is_raised_with_its_traceback(item: int, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind) as caught:
        list(map_in_processes(_raise, [0, item], workers=1))
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    assert told in text and "in _raise" in text


def test_a_result_that_cannot_be_sent_is_an_error() -> None:
    with pytest.raises((AttributeError, RuntimeError, TypeError)):
        list(map_in_processes(lambda x: lambda: x, [0], workers=1))


def test_processes_that_cannot_start_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.ForkProcess.start", refuse)
    with pytest.raises(DataError, match=r"no worker process can be started .*--workers 0"):
        list(map_in_processes(str, [1], workers=2))


def test_processes_that_all_die_at_once_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_use_one_thread", lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match=r"3 processes in a row .*SIGKILL"):
        list(map_in_processes(str, range(10), workers=2))


def test_one_process_is_enough_where_others_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = multiprocessing.get_context("fork").Process.start, []

    def once(self: multiprocessing.process.BaseProcess) -> None:
        if started:
            raise OSError(12, "Cannot allocate memory")
        started.append(self)
        start(self)  # type: ignore[arg-type]

    monkeypatch.setattr("multiprocessing.context.ForkProcess.start", once)
    assert len(list(map_in_processes(str, range(10), workers=3))) == 10


def test_ctrl_c_and_sigterm_are_the_parents_business() -> None:
    def signalled(item: int) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return item

    assert sorted(map_in_processes(signalled, range(5), workers=2)) == [(i, i) for i in range(5)]


def _slow_with_cleanup(folder: Path, item: int) -> None:
    path = folder / f"{item}.part"
    path.touch()
    try:
        while True:
            time.sleep(0.01)
    finally:
        path.unlink()


def test_leaving_early_ends_the_processes_and_lets_them_clean_up(tmp_path: Path) -> None:
    pool: WorkerPool[int, None] = WorkerPool(functools.partial(_slow_with_cleanup, tmp_path), 2)
    with pool:
        pool.submit(0, 0)
        pool.submit(1, 1)
        assert within(20, lambda: len(list(tmp_path.iterdir())) == 2)
    assert not list(tmp_path.iterdir()) and multiprocessing.active_children() == []


def test_a_forgotten_iterator_ends_its_processes() -> None:
    found = map_in_processes(str, range(100), workers=2)
    next(found)
    assert multiprocessing.active_children()
    del found
    gc.collect()
    assert within(5, lambda: multiprocessing.active_children() == [])


def _script(body: str) -> subprocess.Popen[str]:
    head = "import os, sys, time\nfrom pathlib import Path\nfrom vireo.data.pool import map_in_processes\n"
    return subprocess.Popen([sys.executable, "-c", head + body], stdout=subprocess.PIPE, text=True)


def test_an_open_iterator_does_not_keep_a_program_from_ending() -> None:
    process = _script("found = map_in_processes(str, range(100), workers=2)\nprint(next(found)[1])\n")
    try:
        assert process.communicate(timeout=60)[0] in ("0\n", "1\n") and process.returncode == 0
    finally:
        process.kill()


def test_workers_end_when_the_parent_is_killed_even_those_that_are_stuck() -> None:
    process = _script(
        "def work(item):\n"
        "    if item == 1:\n"
        "        time.sleep(600)\n"
        "    return os.getpid()\n"
        "for _, pid in map_in_processes(work, range(200), workers=2):\n"
        "    print(pid, flush=True)\n"
        "    time.sleep(0.05)\n"
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert str(pid) in children and len(children) == 2
    process.kill()
    process.communicate()
    assert within(20, lambda: not any(_lives(int(child)) for child in children))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_many_pools_and_many_crashes_leave_nothing() -> None:
    def fragile(item: int) -> int:
        if item % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    before = open_files()
    for _ in range(10):
        answers = dict(map_in_processes(fragile, range(12), workers=2))
        assert sum(isinstance(answer, Crash) for answer in answers.values()) == 4
    assert open_files() == before


def test_where_processes_are_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "FORKED", False)
    assert sorted(map_in_processes(abs, [-1, -2], workers=1)) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("wrong", [{"workers": -2}, {"timeout": -1.0}, {"timeout": float("nan")}])
def test_senseless_arguments_are_refused_at_once(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        map_in_processes(str, [1], **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        WorkerPool(str, 0)


def test_one_process_per_core() -> None:
    assert resolve_workers(3) == 3 and resolve_workers(0) == 0
    assert 1 <= resolve_workers(-1) <= 8
