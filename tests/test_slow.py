"""Figures that the documentation states, measured again. Minutes each: `make test-slow`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vireo.data.order import OrderConfig, make_order
from vireo.demo import PAIRS, demo

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_demo_reaches_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert demo(out) == 0
    top1 = {name: json.loads((out / name / "eval" / "evaluation.json").read_text())["top1"] for name in ("tsn", "tei")}
    assert top1["tsn"] <= 0.5
    assert top1["tei"] >= 0.9


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("order")
    return make_order(folder, OrderConfig(clips=1440, size=72, pairs=PAIRS, val_fraction=0.05, test_fraction=0.15))


@pytest.mark.slow
@pytest.mark.parametrize(
    "temporal",
    ["tsm", "tim", "tei", "te", "fe", "tefe", "mstsm", "tfdem", "mstsm_tfdem", "stfm", "twm", "stw", "kpsem"],
)
def test_a_module_learns_the_order_of_frames(temporal: str, order: Path, tmp_path: Path) -> None:
    command = ["benchmarks/order.py", "--data", str(order), "--out", str(tmp_path), "--temporal", temporal]
    subprocess.run([sys.executable, *command, "--permutations", "1"], cwd=ROOT, check=True)
    scores = json.loads((tmp_path / temporal / "order.json").read_text())
    assert scores["interval"][0] > 0.6  # without order 50 % at most; the figures are in docs/results.md
    assert max(scores["shuffled"]) < scores["top1"] - 0.2
