"""How sure one can be of an accuracy, how far probabilities can be trusted, and which classes are confused.

Wilson interval      of a share of clips; a formula, sound also for few clips and near 0 or 1
bootstrap interval   of any mean over clips, of the mean over classes too; by drawing the clips again
calibration error    how far a model's probabilities lie from how often it is right
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 1000
"""Sets of clips that a bootstrap interval rests on."""
CALIBRATION_BINS = 15
"""As in Guo et al., ICML 2017."""


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> Interval:
    """Interval of a proportion, sound also for few clips and near 0 or 1 (Wilson, 1927).

    Args:
        correct: successes.
        total: trials; with 0 trials the interval is (0, 1).
        z: normal quantile, 1.96 for 95 %.
    """
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap_mean(values: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """95 % interval of a mean over clips: percentiles of the means of sets drawn with replacement (Efron, 1979).

    Args:
        values: (N,) one per clip, e.g. 1 where it is right and 0 where not, or the difference of two models.
        seed: of the draws.
        resamples: sets that are drawn.

    Returns:
        The 2.5th and 97.5th percentile; of no values, two nan.
    """
    found, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if not len(found):
        return math.nan, math.nan
    return _percentiles(_draw(counts, seed, resamples) @ found / counts.sum())


def bootstrap_class_mean(
    labels: npt.ArrayLike, correct: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """As :func:`bootstrap_mean`, of the mean of the classes' accuracies.

    Clips are drawn from all of them, so a class may have more or fewer in a set, or none: then it doesn't count there.

    Args:
        labels: (N,) true classes.
        correct: (N,) whether each clip is right.
        seed: of the draws.
        resamples: sets that are drawn.
    """
    kinds = 2 * np.asarray(labels, dtype=np.int64) + np.asarray(correct, dtype=np.int64)
    if not len(kinds):
        return math.nan, math.nan
    cells = np.bincount(kinds, minlength=2 * (int(kinds.max()) // 2 + 1))
    drawn = _draw(cells, seed, resamples).reshape(resamples, -1, 2)  # wrong and right clips of each class
    totals = drawn.sum(axis=2)
    shares = np.divide(drawn[..., 1], totals, out=np.zeros(totals.shape), where=totals > 0)
    return _percentiles(shares.sum(axis=1) / (totals > 0).sum(axis=1))


def _draw(counts: npt.NDArray[np.int64], seed: int, resamples: int) -> npt.NDArray[np.int64]:
    """(resamples, C) how many clips of each kind are in each set.

    Clips of a kind are alike, so only their number matters, and it is multinomial: to draw it takes as long for a
    million clips as for a hundred.
    """
    total = int(counts.sum())
    return np.random.default_rng(seed).multinomial(total, counts / total, size=resamples)


def _percentiles(values: Floats) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


class CalibrationBin(NamedTuple):
    """The clips whose highest probability lies in an interval."""

    low: float
    high: float
    clips: int
    confidence: float
    """Mean of their highest probabilities; nan without clips."""
    accuracy: float
    """Share of them that is right; nan without clips."""


class Calibration(NamedTuple):
    """Whether a model that is 80 % sure is right four times in five."""

    error: float
    """Expected calibration error: the bins' |accuracy - confidence|, each weighted by its share of the clips."""
    confidence: float
    """Mean of all highest probabilities; above the accuracy: the model is too sure of itself."""
    bins: tuple[CalibrationBin, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        full = [one._asdict() for one in self.bins if one.clips]  # JSON has no nan
        return {"error": self.error, "confidence": self.confidence, "bins": len(self.bins), "filled_bins": full}


def calibrate(probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = CALIBRATION_BINS) -> Calibration:
    """Expected calibration error, of bins of equal width (Guo et al., ICML 2017).

    Args:
        probabilities: (N, K), N at least 1.
        labels: (N,) true classes.
        bins: their number. Bin i holds highest probabilities in [i / bins, (i + 1) / bins), the last one 1 too.
    """
    given = np.asarray(probabilities, dtype=np.float64)
    confidence, right = given.max(axis=1), given.argmax(axis=1) == np.asarray(labels)
    edges = np.linspace(0, 1, bins + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    clips = np.bincount(places, minlength=bins)
    sums = (np.bincount(places, weights=value, minlength=bins) for value in (confidence, right))
    means = [np.divide(total, clips, out=np.full(bins, np.nan), where=clips > 0) for total in sums]
    gaps = np.abs(np.nan_to_num(means[1] - means[0]))
    return Calibration(
        error=float(gaps @ clips / len(given)),
        confidence=float(confidence.mean()),
        bins=tuple(
            CalibrationBin(float(edges[i]), float(edges[i + 1]), int(clips[i]), float(means[0][i]), float(means[1][i]))
            for i in range(bins)
        ),
    )


class Confused(NamedTuple):
    """Clips of one class that are taken for another."""

    true: int
    predicted: int
    clips: int
    share: float
    """Of all clips of the true class."""


def most_confused(confusion: npt.NDArray[np.int64], *, limit: int = 10) -> tuple[Confused, ...]:
    """The pairs of classes that most clips are lost to, most clips first, then the larger share.

    Args:
        confusion: (K, K) counts, true class first.
        limit: most pairs.
    """
    totals = confusion.sum(axis=1)
    pairs = [
        Confused(int(true), int(other), int(confusion[true, other]), float(confusion[true, other] / totals[true]))
        for true, other in zip(*np.nonzero(confusion), strict=True)
        if true != other
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.clips, -pair.share, pair.true, pair.predicted))[:limit])
