"""Figures that the documentation states, measured again. Minutes each: `make test-slow`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vireo.demo import demo


@pytest.mark.slow
def test_the_demo_reaches_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert demo(out) == 0
    top1 = {name: json.loads((out / name / "eval" / "evaluation.json").read_text())["top1"] for name in ("tsn", "tei")}
    assert top1["tsn"] <= 0.5
    assert top1["tei"] >= 0.9
