"""How calls are timed: in turns, each until the device has finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; nothing on a processor."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, until the device has finished."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    device: torch.device,
    warmup: int = 3,
    timer: Callable[[Callable[[], object], torch.device], float] = seconds_of,
    done: Callable[[int], object] = lambda count: None,
) -> dict[str, list[float]]:
    """Seconds per call, of several calls in turns: what else the machine does hits all of them alike.

    Args:
        calls: by name.
        repeats: times that each is timed.
        device: where they compute.
        warmup: untimed calls of each, before.
        timer: how one call is timed.
        done: told of every timed call.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        names = list(calls) if turn % 2 == 0 else list(calls)[::-1]  # none is always the first
        for name in names:
            times[name].append(timer(calls[name], device))
            done(1)
    return times


def noise(shape: tuple[int, int, int, int, int], device: torch.device) -> Tensor:
    """(N, T, C, H, W) uint8 noise, in memory as decoders give it: N, T, H, W, C."""
    count, frames, channels, height, width = shape
    values = torch.randint(0, 256, (count, frames, height, width, channels), dtype=torch.uint8, device=device)
    return values.permute(0, 1, 4, 2, 3)
