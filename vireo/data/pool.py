"""Processes that do the work a video decoder may die of.

A decoder is a large C library that reads hostile files: it can crash, or never come back. A pool of
Python's own or of torch ends with the first process that is killed and waits for ever for one that is
stuck. Here a process that is lost is replaced, the item it was at is named, and the rest goes on.

Every process has a pipe of its own and nothing is shared, since a lock that a killed process holds is
never let go:

    parent ── item, item ──►  worker 0      reads ahead in a thread, works in order
           ◄─ begun, done ──                so the first item without an answer is the one it is at

Processes are forked on Linux (they start at once and share the parent's memory), started anew elsewhere.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from vireo.errors import DataError, UsageError
from vireo.memory import drop_free_memory

T = TypeVar("T")
R = TypeVar("R")

FORKED = sys.platform == "linux"
"""Whether processes are forked, so that they see all that the parent has, anonymous shared memory too."""

_BEGUN, _DONE, _RAISED = range(3)  # what a worker says
_START_SECONDS = 30.0  # in which a worker that has an item must have begun it
_GRACE_SECONDS = 2.0  # from the request to end to SIGKILL
_LOOK_SECONDS = 1.0  # between looks at who lives
_STILLBORN = 3  # processes in a row that died before they had begun an item

# The parent's ends of all pipes. A forked worker closes the copies it gets: while one is open, the worker at the
# other end would not notice that the parent is gone.
_parents_ends: weakref.WeakSet[Connection[Any, Any]] = weakref.WeakSet()
_starting = threading.Lock()
_pools: weakref.WeakSet[WorkerPool[Any, Any]] = weakref.WeakSet()
_closed = threading.Event()  # in a worker: the parent wants no more of it


class Crash(NamedTuple):
    """What stands for the result of an item whose process died or was stuck."""

    reason: str


def resolve_workers(workers: int) -> int:
    """Number of processes; -1 = one per core this process may use, at most 8."""
    if workers < -1:
        raise UsageError(f"workers is {workers}; it must be -1, 0 or more")
    if workers >= 0:
        return workers
    return min(8, usable_cores())


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    function: Callable[[T], R], items: Iterable[T], *, workers: int = -1, timeout: float = 0.0
) -> Iterator[tuple[int, R | Crash]]:
    """Apply a function to items in processes that may crash.

    Args:
        function: called with one item; its result must be picklable, and so must the function and the items
            where processes are not forked. Errors that are expected it should return, not raise.
        items: taken as needed; small things such as paths.
        workers: processes; -1 = see `resolve_workers`; 0 = none: a crash then ends this process, and
            `timeout` is not watched.
        timeout: seconds that one item may take; 0 = no limit.

    Returns:
        Pairs of an item's number and its result or `Crash`, one per item, in order of completion. Closing
        the iterator ends the processes, which get a moment to clean up.

    Raises:
        UsageError: `workers` or `timeout` makes no sense.
        DataError: while iterating, no process can be started.
        Exception: while iterating, whatever the function raised.
    """
    count = resolve_workers(workers)
    _check_timeout(timeout)
    return _map_in_processes(function, items, count, timeout)


def _map_in_processes(
    function: Callable[[T], R], items: Iterable[T], count: int, timeout: float
) -> Iterator[tuple[int, R | Crash]]:
    todo = enumerate(items)
    if not count:
        for key, item in todo:
            yield key, function(item)
        return
    with WorkerPool(function, count, timeout=timeout, ahead=2) as pool:
        while True:
            while pool.outstanding < 2 * count and (pair := next(todo, None)) is not None:
                pool.submit(*pair)
            if not pool.outstanding:
                return
            yield from pool.wait()


class WorkerPool(Generic[T, R]):
    """Processes that apply one function to items, each replaced when it dies or is stuck.

    Args:
        function: as in `map_in_processes`.
        count: processes, at least 1; started when there is work for them.
        timeout: seconds that one item may take; 0 = no limit.
        ahead: items that one process may hold. They are few and small enough to lie in its pipe, or none of
            them is large: the parent waits while it writes one that isn't.

    Raises:
        UsageError: an argument makes no sense.
    """

    def __init__(self, function: Callable[[T], R], count: int, *, timeout: float = 0.0, ahead: int = 2) -> None:
        if count < 1 or ahead < 1:
            raise UsageError(f"a pool of {count} processes, {ahead} items each, makes no sense")
        _check_timeout(timeout)
        self._function, self._count, self._timeout, self._ahead = function, count, timeout, ahead
        self._pending: deque[tuple[int, T]] = deque()
        self._workers: list[_Worker[T]] = []
        self._stillborn, self._closed = 0, False
        self._owner = os.getpid()
        weakref.finalize(self, _end, self._workers, self._owner).atexit = False  # at exit: _end_all
        _pools.add(self)

    def __enter__(self) -> WorkerPool[T, R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; those that are at work get a moment to clean up."""
        self._closed = True
        self._pending.clear()
        _end(self._workers, self._owner)

    @property
    def outstanding(self) -> int:
        """Items that have no answer yet."""
        return len(self._pending) + sum(len(worker.tasks) for worker in self._workers)

    def submit(self, key: int, item: T) -> None:
        """Add an item; `wait` tells its result together with the key.

        Raises:
            DataError: no process can be started.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        self._pending.append((key, item))
        self._assign()

    def wait(self) -> list[tuple[int, R | Crash]]:
        """Wait until an item is done: the answers that are there, none if nothing is outstanding.

        Raises:
            DataError: no process can be started, or each dies at once.
            Exception: whatever the function raised, with the process's traceback as a note.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        answers: list[tuple[int, R | Crash]] = []
        while not answers and self.outstanding:
            self._assign()
            watched = list(self._workers)
            ready = set(wait([worker.pipe for worker in watched], self._patience()))
            for worker in watched:
                if worker.pipe in ready or worker.pipe.poll():
                    self._listen(worker, answers)
                elif self._is_stuck(worker):
                    self._bury(worker, answers, f"no answer within {self._timeout:g} s")
                elif not ready and worker.process.exitcode is not None:  # somebody else keeps its pipe open
                    self._bury(worker, answers)
        self._assign()
        return answers

    def _assign(self) -> None:
        """Hand items to the processes that have the fewest, and start processes while all have some."""
        while self._pending:
            least = min(self._workers, key=lambda worker: len(worker.tasks), default=None)
            if (least is None or least.tasks) and len(self._workers) < self._count:
                least = self._start() or least
            if least is None or len(least.tasks) >= self._ahead:
                return
            least.give(self._pending.popleft())

    def _start(self) -> _Worker[T] | None:
        """A new process; None if there can't be another."""
        try:
            worker: _Worker[T] = _Worker(self._function)
        except OSError as error:
            if self._workers:
                return None
            raise DataError(
                f"no worker process can be started ({error.strerror or error}); free some memory, or use --workers 0"
            ) from None
        self._workers.append(worker)
        return worker

    def _patience(self) -> float:
        """Seconds until something must be looked at, whatever the pipes say."""
        if not self._timeout:
            return _LOOK_SECONDS
        deadlines = [worker.since + self._timeout for worker in self._workers if worker.tasks and worker.begun]
        return min(_LOOK_SECONDS, max(0.0, min(deadlines, default=_LOOK_SECONDS + time.monotonic()) - time.monotonic()))

    def _is_stuck(self, worker: _Worker[T]) -> bool:
        if not worker.tasks or not self._timeout:
            return False
        limit = self._timeout if worker.begun else max(self._timeout, _START_SECONDS)
        return time.monotonic() - worker.since > limit

    def _listen(self, worker: _Worker[T], answers: list[tuple[int, R | Crash]]) -> None:
        """Take all that a process has said."""
        try:
            while worker.pipe.poll():
                kind, content = worker.pipe.recv()
                if kind == _BEGUN:
                    worker.begun, worker.since, self._stillborn = True, content, 0
                    continue
                key, _ = worker.tasks.popleft()
                worker.begun, worker.since = False, time.monotonic()
                if kind == _RAISED:
                    raise _RaisedError(content)
                answers.append((key, content))
        except _RaisedError as raised:
            raise raised.error from None
        except Exception:  # the pipe's end, or half a message: it is dead, or out of its mind
            self._bury(worker, answers)

    def _bury(self, worker: _Worker[T], answers: list[tuple[int, R | Crash]], reason: str = "") -> None:
        """Remove a process that is lost; what it had not begun goes to others."""
        self._workers.remove(worker)
        code = worker.end(wait_seconds=0.0 if reason else _GRACE_SECONDS)
        if worker.begun:
            key, _ = worker.tasks.popleft()
            answers.append((key, Crash(reason or _cause(code))))
        elif worker.tasks:
            self._stillborn += 1
            if self._stillborn >= _STILLBORN:
                raise DataError(
                    f"{_STILLBORN} processes in a row ended before they had begun; of the last: {_cause(code)}. "
                    "Free some memory, or use fewer --workers"
                )
        self._pending.extendleft(reversed(worker.tasks))
        worker.tasks.clear()


class _RaisedError(Exception):
    """Carries what the function raised past the handler of broken pipes."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _Worker(Generic[T]):
    """A process and the parent's end of its pipe."""

    def __init__(self, function: Callable[[T], Any]) -> None:
        self.tasks: deque[tuple[int, T]] = deque()  # without an answer, in its order
        self.begun = False  # the first of them
        self.since = time.monotonic()  # when it began, or there was last a sign of life
        context: Any = multiprocessing.get_context("fork" if FORKED else "spawn")
        with _starting:  # or a process forked by another thread gets the worker's end, and its death goes unnoticed
            self.pipe, theirs = context.Pipe()
            _parents_ends.add(self.pipe)
            self.process: BaseProcess = context.Process(target=_work, args=(function, theirs), daemon=True)
            try:
                self.process.start()
            except BaseException:
                self.pipe.close()
                raise
            finally:
                theirs.close()

    def give(self, task: tuple[int, T]) -> None:
        """Send an item; if the process is dead, reading its pipe will tell."""
        if not self.tasks:
            self.since = time.monotonic()
        self.tasks.append(task)
        with contextlib.suppress(OSError):
            self.pipe.send(task[1])

    def end(self, wait_seconds: float) -> int | None:
        """Make sure that it is gone, after a wait for it to end by itself; its exit code."""
        self.pipe.close()
        self.process.join(wait_seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(_GRACE_SECONDS)
        code = self.process.exitcode
        if code is not None:  # None: it sits in the kernel (a dead network disk) and will go when that lets it
            self.process.close()
        return code


def _end(workers: list[_Worker[Any]], owner: int) -> None:
    """End all processes of a pool."""
    if os.getpid() != owner:  # a forked copy of the pool
        return
    for worker in workers:
        worker.pipe.close()  # it takes this for a request to end
    deadline = time.monotonic() + _GRACE_SECONDS
    for worker in workers:
        worker.end(max(0.0, deadline - time.monotonic()))
    workers.clear()


@atexit.register
def _end_all() -> None:
    """At exit, ahead of multiprocessing, which would wait for workers that nobody told to end.

    (Both are called in reverse order of registration, and multiprocessing registered when it was imported above.)
    """
    for pool in list(_pools):
        pool.close()


def _cause(code: int | None) -> str:
    """What an exit code says."""
    if code is None or code >= 0:
        return "the process ended" + (f" with exit code {code}" if code else "")
    if -code == signal.SIGKILL:
        return "the process was killed (SIGKILL; out of memory?)"
    try:
        return f"the process crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"the process was killed by signal {-code}"


def _check_timeout(timeout: float) -> None:
    if not 0 <= timeout < float("inf"):
        raise UsageError(f"the time limit is {timeout} seconds; it must be positive, or 0 for none")


# --- in the worker --------------------------------------------------------------------------------


def _work(function: Callable[[Any], Any], pipe: Connection[Any, Any]) -> None:
    """A worker's life. It ends without Python's usual farewells: what it holds is the parent's."""
    try:
        if FORKED:
            for end in list(_parents_ends):
                end.close()
        drop_free_memory()
        # Ctrl-C and a scheduler's SIGTERM reach all processes; the parent decides when to end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _leave)
        _use_one_thread()
        inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
        while True:
            item = inbox.get()
            pipe.send((_BEGUN, time.monotonic()))
            try:
                answer = (_DONE, function(item))
            except Exception as error:
                answer = (_RAISED, _portable(error))
            try:
                pipe.send(answer)
            except OSError:
                raise
            except Exception as error:  # a result that can't be pickled
                pipe.send((_RAISED, _portable(error)))
    except (SystemExit, KeyboardInterrupt, OSError):  # asked to end, stopped while it started, or the parent is gone
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _receive(pipe: Connection[Any, Any], inbox: SimpleQueue[Any]) -> None:
    """Read items as they come, so that the parent never waits; end the process when the parent closes or dies."""
    try:
        while True:
            inbox.put(pipe.recv())
    except BaseException:
        _closed.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(2 * _GRACE_SECONDS)
        os._exit(1)


def _leave(number: int, frame: object) -> None:
    """SIGTERM once the pipe is closed: leave through the function's own cleaning up."""
    if _closed.is_set():
        _closed.clear()
        raise SystemExit


def _use_one_thread() -> None:
    """One thread per process; those of the parent's libraries did not survive the fork."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}  # for what is loaded later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note; another one if it can't cross to the parent."""
    told = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"in a worker process:\n{told}")
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"in a worker process:\n{told}")
