"""Freed blocks are kept: counted in page faults, which the system reports."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from vireo.memory import keep_memory
told = keep_memory() if sys.argv[1] == "keep" else None
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(16 << 20, dtype=torch.uint8)  # 4096 pages each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(40)  # aligned blocks find their places in the first few rounds
print(told, faults(20))
"""


def page_faults(mode: str, **environment: str) -> tuple[str, int]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", SCRIPT, mode]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    told, count = done.stdout.split()
    return told, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_are_not_faulted_in_again() -> None:
    _, plain = page_faults("plain")
    told, kept = page_faults("keep")
    if told == "False":
        pytest.skip("no glibc here")
    assert kept < 0.2 * plain or plain < 1000  # with huge pages there is nothing to gain


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_tuned_environment_stands() -> None:
    assert page_faults("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"


FORKED = """
import os, torch
from vireo.data.pool import map_in_processes
from vireo.memory import keep_memory
told = keep_memory()
def resident(_):
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20
blocks = [torch.ones(16 << 20, dtype=torch.uint8) for _ in range(24)]
before = resident(0)
del blocks
[(_, after)] = map_in_processes(resident, [0], workers=1)
print(told, before, resident(0), after)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_worker_has_no_share_in_what_its_parent_keeps() -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    done = subprocess.run([sys.executable, "-c", FORKED], env=inherited, capture_output=True, text=True, check=True)
    told, *sizes = done.stdout.split()
    if told == "False":
        pytest.skip("no glibc here")
    full, parent, worker = map(int, sizes)  # MB; the blocks are 384
    assert parent > full - 50  # kept
    assert worker < full - 300
