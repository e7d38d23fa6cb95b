"""Where a result comes from besides its settings: the state of the source, the machine, the packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import vireo
from vireo.files import replacing

GIT_SECONDS = 5.0
"""Patience with git; on a slow network disk it looks at every file."""
MOST_TEXT = 1 << 16
"""Bytes of git's answer that are read, and of files of the system."""
VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED"),
    *("WORLD_SIZE", "SLURM_JOB_ID"),
)
"""Environment variables that change results or say where they were made; others may hold secrets."""


@dataclass(frozen=True, kw_only=True)
class GitState:
    """Which source a folder of a repository holds."""

    commit: str
    """In full; empty before the first commit."""
    branch: str
    """Empty where no branch is checked out, or it isn't known."""
    dirty: bool | None
    """Whether tracked files differ from the commit; None where git took too long."""

    def __str__(self) -> str:
        """In words, e.g. ``0123456789ab (branch main, with changes that are not committed)``."""
        changes = {True: "with changes that are not committed", False: "", None: "changes unknown"}[self.dirty]
        notes = ", ".join(note for note in (f"branch {self.branch}" if self.branch else "", changes) if note)
        return (self.commit[:12] or "no commit") + (f" ({notes})" if notes else "")


def git_state(folder: Path) -> GitState | None:
    """The state of the repository that a folder lies in; None where it lies in none, or git is absent.

    Reads only: takes no lock, runs no hook, and asks for no address of another repository, which may hold a password.
    """
    status = ("status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=all")
    try:
        answer = _git(folder, *status)
    except subprocess.TimeoutExpired:
        try:
            commit = (_git(folder, "rev-parse", "--verify", "HEAD") or "").strip()
        except subprocess.TimeoutExpired:
            return None
        return GitState(commit=commit, branch="", dirty=None) if _is_commit(commit) else None
    if answer is None:
        return None
    facts = dict(re.findall(r"^# branch\.(oid|head) (.*)$", answer, re.MULTILINE))
    commit, branch = facts.get("oid", ""), facts.get("head", "")
    return GitState(
        commit=commit if _is_commit(commit) else "",
        branch="" if branch == "(detached)" else branch,
        dirty=any(line and not line.startswith("#") for line in answer.splitlines()),
    )


def vireo_state() -> GitState | None:
    """The state of the repository that holds Vireo's source; None where Vireo is installed otherwise."""
    source = Path(vireo.__file__).resolve()
    try:  # an environment's folder may lie in somebody's repository, which then says nothing of Vireo
        if _git(source.parent, "ls-files", "--error-unmatch", "--", source.name) is None:
            return None
    except subprocess.TimeoutExpired:
        return None
    return git_state(source.parent)


def describe_source() -> dict[str, Any]:
    """The state of the repository the command runs in and of that of Vireo, as plain data; None where there is none."""
    states = {"here": git_state(Path.cwd()), "vireo": vireo_state()}
    return {name: asdict(state) if state else None for name, state in states.items()}


def _git(folder: Path, *words: str) -> str | None:
    """What git prints, at most `MOST_TEXT` bytes of it; None if it fails.

    Raises:
        TimeoutExpired: it took too long.
    """
    about_others = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_NAMESPACE")  # set while git runs a hook
    environment = {name: value for name, value in os.environ.items() if name not in about_others}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-C", os.fspath(folder), "-c", "core.fsmonitor=false", *words]
    try:
        with tempfile.TemporaryFile() as answer:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                env=environment,
                timeout=GIT_SECONDS,
                check=False,
            )
            answer.seek(0)
            return answer.read(MOST_TEXT).decode("utf-8", "replace") if done.returncode == 0 else None
    except OSError:  # no git, no folder for the answer
        return None


def _is_commit(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{40,64}", text) is not None


def write_environment(path: Path) -> None:
    """Write what the run is computed with: Python, machine, GPUs, and all installed packages with their versions.

    Raises:
        StorageError: it can't be written; what was there before is intact.
    """
    with replacing(path) as file:
        file.writelines(f"{line}\n" for line in (*machine(), "", *packages()))


def machine() -> Iterator[str]:
    """Python, system, processor and GPUs, a line each."""
    import torch

    yield f"vireo {vireo.__version__}"
    yield f"python {platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    yield f"system {platform.platform()}"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"processor {processor()}, {os.cpu_count()} cores, {usable} usable"
    yield f"threads of torch {torch.get_num_threads()}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield f"gpu {index} {facts.name}, {facts.total_memory / 2**30:.1f} GiB"
        yield f"cuda {torch.version.cuda}, cudnn {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    for line in _lines(Path("/proc/driver/nvidia/version"))[:1]:
        yield f"driver {line.removeprefix('NVRM version:').strip()}"
    for name in VARIABLES:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"


def processor() -> str:
    """The processor's name, or else its architecture."""
    names = (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            return file.read(MOST_TEXT).decode("utf-8", "replace").splitlines()
    except OSError:  # another system, no such driver
        return []


@cache
def packages() -> tuple[str, ...]:
    """The installed packages as ``name==version``, sorted, each once."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        try:
            name, version = distribution.metadata["Name"], distribution.version
        except (KeyError, OSError, ValueError):  # half removed
            continue
        if name and version:
            found.setdefault(name.lower(), f"{' '.join(name.split())}=={' '.join(version.split())}")
    return tuple(found[name] for name in sorted(found))
