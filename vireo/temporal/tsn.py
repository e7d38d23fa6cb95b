"""Temporal Segment Networks (TSN): frames on their own, scores averaged.

Wang, Xiong, Wang, Qiao, Lin, Tang, Van Gool: "Temporal Segment Networks: Towards Good Practices for
Deep Action Recognition", ECCV 2016. Its segment sampling and consensus are meant here (the 2D baseline
that later papers compare with); its flow stream is a model of its own (modality flow).

The consensus, the mean over T of the frames' logits, is the model's own (`vireo.model`): every
temporal module shares it. So this module inserts nothing, and its networks ignore the order of
frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vireo.contracts import TemporalModule
from vireo.temporal.base import temporal_modules


@temporal_modules.register("tsn")
@dataclass(frozen=True, kw_only=True)
class TSN(TemporalModule):
    """Nothing between frames; works on any backbone that gives pooled features."""

    summary: ClassVar[str] = "frame by frame, logits averaged; blind to order (the baseline)"
    source: ClassVar[str] = "Wang et al., Temporal Segment Networks, ECCV 2016"
