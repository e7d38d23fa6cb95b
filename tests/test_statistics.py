"""Intervals, calibration and confusions: against slow references, torchmetrics and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torchmetrics.functional.classification import multiclass_calibration_error

from vireo.statistics import bootstrap_class_mean, bootstrap_mean, calibrate, most_confused, wilson_interval


def test_wilson_interval_against_its_definition() -> None:
    # The interval's ends p solve (share − p)² = z² p (1 − p) / n.
    for correct, total in [(0, 10), (3, 10), (43, 43), (90, 129)]:
        for end in wilson_interval(correct, total):
            assert (correct / total - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / total, abs=1e-9)
    low, high = wilson_interval(8, 10)
    assert low < 0.8 < high
    assert wilson_interval(0, 0) == (0, 1)


# --- bootstrap ------------------------------------------------------------------------------------


def drawn_one_by_one(statistic: object, clips: int, resamples: int = 4000) -> tuple[float, float]:
    """Percentiles of a statistic of clips drawn with replacement, the plain way."""
    rng = np.random.default_rng(7)
    values = [statistic(rng.integers(clips, size=clips)) for _ in range(resamples)]  # type: ignore[operator]
    return tuple(np.percentile(values, [2.5, 97.5]))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["hits", "differences"])
def test_the_interval_of_a_mean_is_that_of_clips_drawn_one_by_one(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = (rng.random(150) < 0.7).astype(float) if kind == "hits" else rng.integers(-4, 5, size=150) / 4
    found = bootstrap_mean(values, resamples=4000)
    assert found == pytest.approx(drawn_one_by_one(lambda at: values[at].mean(), 150), abs=0.012)
    assert found == bootstrap_mean(values[::-1], resamples=4000)  # whatever the order of clips
    assert found != bootstrap_mean(values, resamples=4000, seed=1)


def test_the_interval_of_the_classes_mean_is_that_of_clips_drawn_one_by_one() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(6, size=90, p=[0.5, 0.3, 0.1, 0.06, 0.04, 0.0])  # class 5 has no clips, class 4 few
    correct = rng.random(90) < np.array([0.9, 0.5, 0.2, 0.7, 0.4, 0.0])[labels]

    def mean_class(at: np.ndarray) -> float:
        classes = np.unique(labels[at])
        return float(np.mean([correct[at][labels[at] == c].mean() for c in classes]))

    found = bootstrap_class_mean(labels, correct, resamples=4000)
    assert found == pytest.approx(drawn_one_by_one(mean_class, 90), abs=0.015)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for seed in range(300):
        low, high = bootstrap_mean(rng.random(120) < 0.6, seed=seed, resamples=400)
        inside += low <= 0.6 <= high
    assert 0.90 <= inside / 300 <= 0.985  # 95 % ± three deviations


def test_intervals_of_what_never_varies_and_of_nothing() -> None:
    assert bootstrap_mean(np.ones(20)) == (1.0, 1.0)
    assert bootstrap_class_mean([3, 3], [False, False]) == (0.0, 0.0)
    assert all(math.isnan(end) for end in (*bootstrap_mean([]), *bootstrap_class_mean([], [])))


# --- calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bins", [15, 4])
def test_calibration_error_agrees_with_torchmetrics(seed: int, bins: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 7, (400,), generator=generator)
    logits = 2 * torch.randn(400, 7, generator=generator) + 2.0 * torch.nn.functional.one_hot(labels, 7)
    probabilities = logits.double().softmax(1)
    found = calibrate(probabilities.numpy(), labels.numpy(), bins=bins)
    expected = multiclass_calibration_error(probabilities, labels, num_classes=7, n_bins=bins, norm="l1")
    assert found.error == pytest.approx(float(expected), abs=1e-6)
    assert found.error > 0.01
    assert sum(one.clips for one in found.bins) == 400
    mean = sum(one.clips * one.confidence for one in found.bins if one.clips) / 400
    assert found.confidence == pytest.approx(mean)
    right = sum(one.clips * one.accuracy for one in found.bins if one.clips)
    assert right == pytest.approx(int((probabilities.argmax(1) == labels).sum()))


def test_calibration_worked_out_by_hand() -> None:
    # Two bins: below ½ nobody; of 0.5, 0.9 and 1.0 two are right: |2/3 − 0.8|.
    probabilities = [[0.5, 0.5, 0.0], [0.05, 0.9, 0.05], [0.0, 0.0, 1.0]]
    found = calibrate(probabilities, [0, 1, 0], bins=2)
    assert found.error == pytest.approx(0.8 - 2 / 3)
    assert [one.clips for one in found.bins] == [0, 3] and math.isnan(found.bins[0].accuracy)
    told = found.as_dict()
    assert told["bins"] == 2 and len(told["filled_bins"]) == 1  # nothing that JSON can't hold
    certain = calibrate([[1.0, 0.0]] * 4, [0, 0, 0, 0])
    assert certain.error == 0 and certain.bins[-1].clips == 4


# --- confusions -----------------------------------------------------------------------------------


def test_most_confused_pairs() -> None:
    rng = np.random.default_rng(3)
    true, predicted = rng.integers(8, size=(2, 500))
    confusion = confusion_matrix(true, predicted, labels=range(8))
    pairs = {(t, p): int(((true == t) & (predicted == p)).sum()) for t in range(8) for p in range(8) if t != p}
    found = most_confused(confusion, limit=12)
    assert [pair.clips for pair in found] == sorted(pairs.values(), reverse=True)[:12]
    for pair in found:
        assert pairs[pair.true, pair.predicted] == pair.clips
        assert pair.share == pytest.approx(pair.clips / (true == pair.true).sum())
    assert most_confused(np.diag([3, 4])) == ()
