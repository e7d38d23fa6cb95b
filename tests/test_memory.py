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
