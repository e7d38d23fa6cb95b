"""Starts training in processes of their own, and kills them at chosen moments.

The processes are forked from a server that has imported everything and computed nothing: they start at once.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import vireo.checkpoint
from vireo.config import TrainConfig
from vireo.errors import VireoError

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["vireo.train", "torch.utils.tensorboard", "tests.resume_tools"])

Moment = tuple[str, int]
"""An event, and how often it happens before the process is killed."""
EVENTS = ("step", "loss", "half written", "written", "renamed")


def small_run(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """Settings of a run that takes seconds: two epochs of batches of six clips."""
    settings: dict[str, Any] = {"temporal": "tsm", "backbone": "test_resnet", "pretrained": False, "num_frames": 4}
    settings |= {"size": 32, "batch_size": 6, "epochs": 2, "workers": 0, "precision": "32-true"}
    return TrainConfig(data=str(data), out=str(out), **settings | changes)


def stop_after(patch: pytest.MonkeyPatch, steps: int, number: int = signal.SIGINT) -> None:
    """Send this process a signal during its n-th training step."""
    training = importlib.import_module("vireo.train")
    step, done = training.Session.step, 0

    def counted(*args: Any) -> None:
        nonlocal done
        step(*args)
        done += 1
        if done == steps:
            os.kill(os.getpid(), number)

    patch.setattr(training.Session, "step", counted)


def start(
    config: TrainConfig,
    told: Path,
    *,
    kill: Moment | None = None,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> BaseProcess:
    """Train in a process of its own.

    Args:
        config: the run.
        told: file for what it prints.
        kill: when it kills itself.
        environment: variables that it sets first.
        prepare: called before training, e.g. to patch something.
    """
    process = _SERVER.Process(target=_train, args=(config, told, kill, dict(environment or {}), prepare))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the process did not end")
    return process.exitcode


def together(number: int) -> list[dict[str, str]]:
    """The environment of each of several processes, as torchrun sets it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"} for rank in range(number)]


def _train(
    config: TrainConfig,
    told: Path,
    kill: Moment | None,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with told.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    training = importlib.import_module("vireo.train")
    if prepare:
        prepare()
    if kill:
        _kill_at(kill, training)
    try:
        training.train(config, console=Console(file=sys.stdout, width=200))
    except VireoError as error:
        print(f"error: {error}", flush=True)
        os._exit(error.exit_code)


def _kill_at(moment: Moment, training: Any) -> None:
    """Have this process killed when an event happens for the n-th time."""
    event, left = moment

    def happened(what: str) -> None:
        nonlocal left
        if what == event:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    step, loss, fsync, rename = training.Session.step, training.total_loss, os.fsync, os.replace

    class HalfWritten:
        def __init__(self, *args: Any) -> None:
            self._file = open(*args)  # noqa: SIM115  # closed at the end of the caller's block

        def __enter__(self) -> HalfWritten:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, content: bytes) -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            happened("half written")
            self._file.write(content[len(content) // 2 :])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    def stepped(*args: Any) -> None:
        step(*args)
        happened("step")

    def in_the_middle(*args: Any) -> Any:
        happened("loss")
        return loss(*args)

    def synced(handle: int) -> None:
        fsync(handle)
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{handle}").endswith(".tmp"):
                happened("written")

    def renamed(source: str, target: str) -> None:
        rename(source, target)
        happened("renamed")

    training.Session.step, training.total_loss = stepped, in_the_middle
    vireo.checkpoint.open = HalfWritten  # type: ignore[attr-defined]  # the module's own, before the built-in one
    vireo.checkpoint.os.fsync, vireo.checkpoint.os.replace = synced, renamed
