"""Where a run comes from: git's answer against repositories made for it, the environment against what is installed."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import vireo
from vireo import provenance
from vireo.errors import StorageError
from vireo.provenance import GitState, describe_source, git_state, packages, vireo_state, write_environment


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=trunk"]
    done = subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit on the branch trunk."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.py").write_text("a = 1\n")
    git(folder, "add", "a.py")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_commit_branch_and_changes(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    clean = GitState(commit=commit, branch="trunk", dirty=False)
    assert git_state(repository) == clean
    (repository / "new.txt").touch()  # not tracked
    (repository / "sub").mkdir()
    assert git_state(repository / "sub") == clean
    (repository / "a.py").write_text("a = 2\n")
    assert git_state(repository) == GitState(commit=commit, branch="trunk", dirty=True)
    git(repository, "add", "a.py")
    assert git_state(repository).dirty  # type: ignore[union-attr]
    git(repository, "commit", "-q", "-m", "second")
    git(repository, "checkout", "-q", commit)
    assert git_state(repository) == GitState(commit=commit, branch="", dirty=False)


def test_a_repository_without_a_commit_and_a_folder_without_a_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == GitState(commit="", branch="trunk", dirty=False)
    assert git_state(Path("/proc")) is None
    assert git_state(tmp_path / "gone") is None


def test_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state(repository) is None
    assert describe_source() == {"here": None, "vireo": None}


def test_nothing_of_the_repository_is_run_or_written(repository: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hook = repository / ".git" / "monitor"
    hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
    hook.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(hook))
    os.utime(repository / "a.py", (1, 1))  # the index is out of date: git would refresh it
    index = (repository / ".git" / "index").read_bytes()
    state = git_state(repository)
    assert state is not None and not state.dirty
    assert not ran.exists() and (repository / ".git" / "index").read_bytes() == index
    git(repository, "status")  # the plain command does both
    assert ran.exists() and (repository / ".git" / "index").read_bytes() != index


def test_addresses_of_other_repositories_are_not_told(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(repository, "remote", "add", "origin", "https://anna:hunter2@example.org/x.git")
    git(repository, "config", "branch.trunk.remote", "origin")
    git(repository, "config", "branch.trunk.merge", "refs/heads/trunk")
    monkeypatch.chdir(repository)
    assert "hunter2" not in repr(describe_source()) and "example.org" not in repr(describe_source())


def test_a_hook_s_variables_do_not_lead_elsewhere(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    commit = git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    state = git_state(repository)
    assert state is not None and state.commit == commit


def test_a_slow_git_costs_seconds_at_most(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ncase "$*" in *status*) exec sleep 30;; esac\necho {commit}\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.5)
    began = time.monotonic()
    assert git_state(repository) == GitState(commit=commit, branch="", dirty=None)
    assert time.monotonic() - began < 20  # not the half minute that git would have taken


def test_an_environment_inside_somebodys_repository_says_nothing_of_vireo(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = repository / ".venv" / "vireo" / "__init__.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setattr(vireo, "__file__", str(installed))
    assert vireo_state() is None
    git(repository, "add", "-f", str(installed))
    assert vireo_state() is not None


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (GitState(commit="0123456789abcdef" * 3, branch="main", dirty=False), "0123456789ab (branch main)"),
        (GitState(commit="", branch="main", dirty=False), "no commit (branch main)"),
        (
            GitState(commit="0123456789abcdef" * 3, branch="", dirty=True),
            "0123456789ab (with changes that are not committed)",
        ),
    ],
)
def test_in_words(state: GitState, told: str) -> None:
    assert str(state) == told


def test_the_environment_names_every_package_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    write_environment(tmp_path / "environment.txt")
    text = (tmp_path / "environment.txt").read_text()
    lines = text.splitlines()
    assert f"torch=={importlib.metadata.version('torch')}" in lines
    assert f"numpy=={importlib.metadata.version('numpy')}" in lines
    names = [line.partition("==")[0].lower() for line in packages()]
    assert names == sorted(set(names)) and len(names) > 20
    assert lines[0] == f"vireo {vireo.__version__}" and any(line.startswith("processor ") for line in lines)
    assert "hunter2" not in text


def test_gpus_and_their_driver_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.1\nGCC version: 12\n")
    lines = provenance._lines
    monkeypatch.setattr(provenance, "_lines", lambda path: lines(driver if "nvidia" in str(path) else path))
    facts = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: facts)
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 91000)
    found = list(provenance.machine())
    assert "gpu 1 NVIDIA H100, 80.0 GiB" in found and "driver NVIDIA UNIX x86_64 Kernel Module  570.1" in found
    assert any(line.startswith("cuda ") for line in found)


def test_an_environment_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "environment.txt"
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vireo.files.os.replace", full)
    with pytest.raises(StorageError, match="No space left"):
        write_environment(path)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
