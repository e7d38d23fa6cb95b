"""What is installed: pins, declared dependencies, versions, layers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name, maxsplit=1)[0]).lower()


def pins() -> dict[str, list[str]]:
    """Package → its entries in constraints.txt, each with its hashes."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            found.setdefault(normal(line), []).append(line)
    return found


def test_every_pin_has_a_version_and_hashes() -> None:
    assert len(pins()) > 50
    for entries in pins().values():
        for entry in entries:
            assert re.match(r"^[\w.-]+==[\w.+!-]+ .*--hash=sha256:[0-9a-f]{64}", entry), entry


def test_constraints_hold_no_address() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-", re.sub(r"^\s+--hash=\S+( \\)?$", "", text, flags=re.M), re.M)  # index options


def test_every_declared_package_is_pinned(project: dict[str, Any]) -> None:
    declared = [
        *project["project"]["dependencies"],
        *(r for extra in project["project"]["optional-dependencies"].values() for r in extra),
        *project["build-system"]["requires"],
        "uv",
    ]
    assert {normal(r) for r in declared} - set(pins()) == set()


def test_versions_agree(project: dict[str, Any]) -> None:
    import vireo

    assert vireo.__version__ == project["project"]["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {vireo.__version__}" in changes


def imports(file: Path) -> set[str]:
    """Top-level packages that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_every_import_is_declared(project: dict[str, Any]) -> None:
    """What the package imports comes from its dependencies or extras, not from a package that happens to be there."""
    extras = project["project"]["optional-dependencies"]
    declared = [*project["project"]["dependencies"], *(r for k, v in extras.items() if k != "dev" for r in v)]
    names = {normal(r) for r in declared}
    owners = packages_distributions()
    missing = {
        f"{file.relative_to(ROOT)}: {module}"
        for file in (ROOT / "vireo").rglob("*.py")
        for module in imports(file) - set(sys.stdlib_module_names) - {"vireo"}
        if not {normal(d) for d in owners.get(module, [module])} & names
    }
    assert missing == set()


def test_every_dependency_is_used(project: dict[str, Any]) -> None:
    indirect = {"tensorboard", "typeshed-client"}  # torch's SummaryWriter and jsonargparse import these
    used = {module for file in (ROOT / "vireo").rglob("*.py") for module in imports(file)}
    owners = packages_distributions()
    distributions = {normal(d) for module in used for d in owners.get(module, [module])}
    assert {normal(r) for r in project["project"]["dependencies"]} - indirect - distributions == set()


def test_importing_vireo_is_light() -> None:
    code = "import sys, vireo; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "timm", "av", "matplotlib"} & set(done.stdout.split())


@pytest.mark.parametrize("before", ["vireo.report", "vireo.demo, vireo.train"])
def test_public_functions_are_functions_whatever_was_imported_before(before: str) -> None:
    code = (
        f"import {before}; import vireo, inspect, types\n"
        "for name in vireo.__all__: assert not isinstance(getattr(vireo, name), types.ModuleType), name\n"
        "for name in ('train', 'evaluate', 'predict'): assert inspect.isfunction(getattr(vireo, name)), name\n"
        "from vireo.predict import find_videos, predict\n"
        "from vireo import progress, predict as public\n"
        "assert public is predict is vireo.predict and isinstance(progress, types.ModuleType)\n"
        "assert vireo.TrainConfig(data='d', out='o').epochs"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_setup_refuses_a_python_out_of_range(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.13 && exit 0\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    script = [str(ROOT / "tools" / "venv.sh")]
    done = subprocess.run(
        script, env={"PATH": "/usr/bin:/bin", "PYTHON": str(old)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is not a Python 3.11, 3.12 or 3.13 (Python 3.10.13)" in done.stderr
