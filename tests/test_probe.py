"""The order probe: by hand, on a network that sees order and on one that does not."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.video_tools import write_class_folders
from vireo.checkpoint import Checkpoint
from vireo.config import ViewConfig
from vireo.errors import UsageError
from vireo.evaluate import evaluate
from vireo.evaluation import write_evaluation
from vireo.model import create_model
from vireo.probe import (
    frame_orders,
    print_probe,
    probe_order,
    reversed_order,
    shuffled_order,
    single_frame,
    write_probe,
)

LABELS = ("close", "open", "wave", "never")


def test_orders() -> None:
    clips = torch.tensor([4, 9])
    assert reversed_order(5)(clips).tolist() == [[4, 3, 2, 1, 0]] * 2
    assert single_frame(5)(clips).tolist() == [[2] * 5] * 2 and single_frame(8)(clips)[0, 0] == 4
    assert single_frame(1)(clips).tolist() == [[0], [0]]
    names = [name for name, _ in frame_orders(4, shuffle=2, reverse=True, single=True)]
    assert names == ["shuffled", "shuffled", "reversed", "single"] and frame_orders(4) == []


def test_shuffled_order_depends_on_seed_round_and_clip_alone() -> None:
    whole = shuffled_order(8, 3, 1)(torch.arange(20))
    parts = torch.cat([shuffled_order(8, 3, 1)(torch.tensor([i])) for i in range(20)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole.sort(1).values, torch.arange(8).expand(20, 8))
    assert not torch.equal(whole, shuffled_order(8, 3, 2)(torch.arange(20)))
    assert not torch.equal(whole, shuffled_order(8, 4, 1)(torch.arange(20)))


# Eight clips; each line is one order's answers:
TRUTH = np.array([0, 0, 0, 0, 1, 1, 2, 2])
STRAIGHT = np.array([0, 0, 0, 1, 1, 1, 2, 0])  # right: 3 of 4, 2 of 2, 1 of 2
SHUFFLED = [np.array([0, 1, 1, 1, 1, 0, 2, 2]), np.array([0, 0, 1, 1, 0, 0, 2, 2])]  # ¼ ½ 1 and ½ 0 1
REVERSED = np.array([1, 1, 1, 0, 0, 0, 2, 2])  # ¼, 0, 1


def by_hand() -> object:
    answers = [("shuffled", SHUFFLED[0]), ("shuffled", SHUFFLED[1]), ("reversed", REVERSED)]
    return probe_order(STRAIGHT, answers, TRUTH, LABELS)  # type: ignore[arg-type]


def test_a_probe_worked_out_by_hand() -> None:
    probe = by_hand()
    shuffled, reversed_ = probe.orders
    assert probe.top1 == 6 / 8 and probe.clips == (4, 2, 2, 0)
    assert shuffled.top1 == (4 / 8, 4 / 8) and shuffled.lost == pytest.approx(2 / 8)
    assert shuffled.classes[:3] == pytest.approx((3 / 8, 1 / 4, 1)) and np.isnan(shuffled.classes[3])
    assert probe.classes[:3] == (0.75, 1.0, 0.5)
    assert shuffled.taken_for == (1, 0, 2, -1)  # close 3 of 8 right, 5 taken for open
    assert shuffled.taken_share[:3] == pytest.approx((5 / 8, 3 / 4, 1))
    assert reversed_.top1 == (3 / 8,) and reversed_.classes[:3] == (0.25, 0.0, 1.0)
    assert reversed_.taken_for[:3] == (1, 0, 2)
    assert probe.by_loss() == [1, 0, 2]  # open loses 75 points, close 37.5; wave gains
    low, high = reversed_.interval
    assert low < reversed_.lost < high and reversed_.lost == pytest.approx(3 / 8)


def test_what_is_said_is_in_the_numbers(tmp_path: Path) -> None:
    probe = by_hand()
    told = json.loads(json.dumps(probe.as_dict(), allow_nan=False))
    assert told["orders"]["reversed"]["lost"] == pytest.approx(0.375)
    assert told["orders"]["shuffled"]["share_of_top1"] == pytest.approx(1 / 3)
    assert [row["label"] for row in told["classes"]] == ["open", "close", "wave"]
    assert told["classes"][0]["reversed"]["taken_for"] == "close"
    rows = list(csv.DictReader(write_probe(tmp_path / "order.csv", probe).open()))
    assert [row["label"] for row in rows] == ["open", "close", "wave"]
    assert float(rows[0]["shuffled_lost"]) == 0.75 and rows[1]["reversed_taken_for"] == "open"
    text = StringIO()
    print_probe(probe, Console(width=120, file=text))
    shown = text.getvalue()
    assert "top-1 50.0 % in place of 75.0 %" in shown and "75 %: open" in shown
    assert "wave" not in shown  # it loses nothing
    text = StringIO()
    print_probe(probe, Console(width=80, file=text))
    assert "taken for" not in text.getvalue() and max(map(len, text.getvalue().splitlines())) <= 80


def test_sentences_say_when_there_is_nothing() -> None:
    truth = np.arange(200) % 2
    same = probe_order(truth, [("shuffled", truth)], truth, ("a", "b"))
    assert "no difference beyond chance" in same.sentences()[0]
    worse = probe_order(truth, [("reversed", 1 - truth)], truth, ("a", "b"))
    assert (
        "100.0 points (95 % interval 100.0 to 100.0), 100 % of what is right, come from the order"
        in (worse.sentences()[0])
    )
    better = probe_order(1 - truth, [("single", truth)], truth, ("a", "b"))
    assert "better by 100.0 points" in better.sentences()[0]
    single = probe_order(truth, [("single", 1 - truth)], truth, ("a", "b"))
    assert "come from seeing several frames" in single.sentences()[0]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("clips"), {"a": 4, "b": 4}, frames=9)


def network(temporal: str, num_frames: int = 4) -> Checkpoint:
    torch.manual_seed(0)
    model = create_model(temporal, "resnet10t", num_classes=2, num_frames=num_frames)
    torch.nn.init.normal_(model.classifier.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return Checkpoint(model=model.eval(), labels=("a", "b"), view=ViewConfig(size=32))


def test_a_network_that_ignores_order_loses_nothing(clips: Path, tmp_path: Path) -> None:
    found = evaluate(network("tsn"), clips, workers=0, shuffle_frames=2, reverse_frames=True, single_frame=True)
    assert found.order is not None
    shuffled, reversed_, _ = found.order.orders
    assert shuffled.lost == 0 == reversed_.lost and found.shuffled == (found.top1,) * 2
    assert write_evaluation(found, tmp_path)["order"] == tmp_path / "order.csv"
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(written["order"]["orders"]) == {"shuffled", "reversed", "single"}
    plain = evaluate(network("tsn"), clips, workers=0)
    write_evaluation(plain, tmp_path)
    assert not (tmp_path / "order.csv").exists()  # no leftover of another evaluation
    assert "order" not in json.loads((tmp_path / "evaluation.json").read_text())


def test_each_clip_is_read_once(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vireo.data.dataset as dataset

    read, reads = dataset.read_clip, []
    monkeypatch.setattr(
        dataset, "read_clip", lambda record, *a, **k: reads.append(record.path) or read(record, *a, **k)
    )
    evaluate(network("tsm"), clips, workers=0, shuffle_frames=3, reverse_frames=True, single_frame=True)
    assert len(reads) == len(set(reads)) == 8


def test_one_frame_has_no_order(clips: Path) -> None:
    with pytest.raises(UsageError, match="one frame of a clip"):
        evaluate(network("tsn", 1), clips, workers=0, reverse_frames=True)
