"""Small tables of scores, written down by hand."""

from __future__ import annotations

import torch

from vireo.scores import ScoreTable

CLASSES = ("clap", "jump", "wave")


def table(rows: dict[str, tuple[str, list[float]]], classes: tuple[str, ...] = CLASSES) -> ScoreTable:
    """From clip → (label, scores)."""
    return ScoreTable(
        clips=tuple(rows),
        labels=torch.tensor([classes.index(label) for label, _ in rows.values()]),
        label_names=classes,
        scores=torch.tensor([scores for _, scores in rows.values()]),
    )
