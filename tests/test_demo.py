"""The demonstration, smaller still: it runs to the end, twice, and never deletes what is not its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vireo.demo import demo
from vireo.errors import UsageError


def test_the_demo_runs_to_its_report_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    for _ in range(2):  # the second time it takes the clips that are there and trains anew
        assert demo(out, clips=36, size=32, epochs=1) == 0
        page = (out / "report.html").read_text("utf-8")
        assert page.count("data:image/jpeg") == 6 * 8  # both twins of one scene per pair, eight frames each
        tsn = json.loads((out / "tsn" / "eval" / "evaluation.json").read_text())
        assert tsn["top1"] <= 0.5 and tsn["split"] == "test" and tsn["failed"] == 0
    assert str(out / "report.html") in capsys.readouterr().out.replace("\n", "")


def test_sigterm_ends_it_as_ctrl_c_does(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    process = subprocess.Popen(
        [sys.executable, "-m", "vireo", "demo", "--out", str(out), "--clips", "20000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 120
    while not any(out.rglob("*.mp4")) and time.monotonic() < until:
        time.sleep(0.1)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"interrupted" in said
    assert not [path for path in out.rglob("*") if path.name.endswith((".part", ".tmp"))]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        demo(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
