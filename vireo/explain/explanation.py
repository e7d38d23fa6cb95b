"""All that is found out about one video and one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vireo.checkpoint import Checkpoint
from vireo.config import ModelConfig, ViewConfig
from vireo.data.clips import read_clip
from vireo.data.flow import read_flow
from vireo.data.sampling import Indices, sample_indices
from vireo.data.table import ClipRecord
from vireo.data.transforms import eval_transform
from vireo.errors import UnknownNameError, UsageError
from vireo.explain.cam import METHODS, Method, NoMapsError, grad_cam
from vireo.explain.occlude import occlusion
from vireo.model import Recognizer, evaluating
from vireo.predict import Prediction, prediction_of
from vireo.temporal.base import Gated
from vireo.temporal.kpsem import KeyPointShifts
from vireo.temporal.mstsm_tfdem import TemporalFeatureDifference

WHAT = ("heat", "occlusion", "keypoints", "gates", "features")
"""What can be looked at: heat of every model with feature maps, occlusion of every model, the others where it has
them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """The frames of a video that a model sees."""

    clip: Tensor
    """(T, C, S, S) uint8, the model's input."""
    positions: tuple[int, ...]
    """(T,) which frames of the video they are, from 0; for flow, where their stacks begin."""
    frame_count: int
    """Frames of the video; for flow, places where a stack can begin."""

    @property
    def is_flow(self) -> bool:
        """Whether these are stacks of optical flow."""
        return self.clip.shape[1] != 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What one model says of a video, and why."""

    model: str
    """The model in words."""
    prediction: Prediction
    target: str
    """The class that is explained."""
    probability: float
    """Of that class, in [0, 1]."""
    seen: Seen
    method: str
    """How the heat was found, e.g. Grad-CAM."""
    heat: Tensor | None = None
    """(T, S, S) float32 in [0, 1]; None unless asked for, or where there is none."""
    no_heat: str = ""
    """Why there is no heat among all that was to be looked at, if so."""
    drops: Tensor | None = None
    """(T,) float32: by how much the probability falls without each frame; None unless asked for."""
    visuals: dict[str, Tensor] = field(default_factory=dict)
    """Of the model's modules: gates, key points, differences; as `Outputs.visuals`, of the one clip."""

    @property
    def is_cold(self) -> bool:
        """Whether heat was asked for and there is none anywhere: nothing speaks for the class."""
        return self.heat is not None and not bool(self.heat.any())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; heat as each frame's share of it."""
        plain: dict[str, Any] = {
            "model": self.model,
            "prediction": self.prediction.as_dict()["top"],
            "target": self.target,
            "probability": self.probability,
            "frames": list(self.seen.positions),
            "frame_count": self.seen.frame_count,
        }
        if self.heat is not None:
            plain["method"] = self.method
            total = self.heat.sum(dim=(1, 2))
            plain["heat"] = (total / total.sum().clamp_min(1e-12)).tolist()
        if self.no_heat:
            plain["no_heat"] = self.no_heat
        if self.drops is not None:
            plain["occlusion"] = self.drops.tolist()
        return plain


def explain(
    checkpoint: Checkpoint,
    video: str | Path,
    *,
    target: str | None = None,
    what: Sequence[str] | None = None,
    method: Method = "gradcam",
    layer: str | None = None,
    top_k: int = 3,
    device: torch.device | str = "cpu",
    name: str | None = None,
    seen: Seen | None = None,
) -> Explanation:
    """Look at what a model sees in a video and what its answer rests on.

    Args:
        checkpoint: its model is on ``device``.
        video: what `vireo.predict` takes.
        target: name of the class to explain; None: the most probable one.
        what: any of `WHAT`; None: all that the model has.
        method: of the heat maps.
        layer: of the heat maps, see `grad_cam`.
        top_k: classes in the prediction.
        device: where to compute.
        name: what the model is called in pictures; None: its module and backbone.
        seen: the frames, if they have been read already.

    Raises:
        DecodeError: the video can't be read.
        UsageError: no such class, or something to look at that the model doesn't have.
    """
    model, labels = checkpoint.model, checkpoint.labels
    number = None if target is None else class_number(target, labels)
    there = parts_of(model)
    parts = there if what is None else tuple(what)
    if missing := [part for part in parts if part not in there]:
        raise UsageError(f"{missing[0]}: {describe(model)} has none; it has {', '.join(there)}")
    seen = seen or read_seen(model.config, checkpoint.view, video)
    clip = seen.clip.to(device)
    heat = drops = None
    no_heat = ""
    visuals: dict[str, Tensor] = {}
    with torch.no_grad(), evaluating(model):
        found = model.forward_outputs(clip[None], visuals=any(part in parts for part in WHAT[2:]))
    chances = found.logits[0].float().softmax(dim=0)
    number = int(chances.argmax()) if number is None else number
    if "heat" in parts:
        try:
            heat = grad_cam(model, clip[None], number, method=method, layer=layer).maps[0].cpu()
        except NoMapsError as error:
            if what is not None:
                raise
            no_heat = error.reason
    if "occlusion" in parts:
        replace = "neighbour" if len(clip) > 1 else "grey"
        drops = occlusion(model, clip, number, replace=replace).drops  # type: ignore[arg-type]  # mypy widens it
    if found.visuals:
        visuals = {name: value[0].float().cpu() for name, value in found.visuals.items() if _part(name) in parts}
    return Explanation(
        model=name or describe(model),
        prediction=prediction_of(found.logits[0], labels, str(video), top_k=top_k),
        target=labels[number],
        probability=float(chances[number]),
        seen=seen,
        method=METHODS[method],
        heat=heat,
        no_heat=no_heat,
        drops=drops,
        visuals=visuals,
    )


def read_seen(config: ModelConfig, view: ViewConfig, video: str | Path) -> Seen:
    """The frames that a model sees of a video.

    Raises:
        DecodeError: it can't be read.
    """
    asked: list[tuple[int, Indices]] = []

    def plan(frame_count: int) -> Indices:
        asked.append((frame_count, sample_indices(view.sampling, frame_count, config.num_frames, window=view.window)))
        return asked[-1][1]

    if config.modality == "flow":
        frames = read_flow(video, plan, fields=config.flow_fields)
    else:
        frames = read_clip(ClipRecord(str(video), 0, None, None), plan).data
    count, indices = asked[-1]
    return Seen(clip=eval_transform(frames, view), positions=tuple(indices.tolist()), frame_count=count)


def class_number(name: str, labels: Sequence[str]) -> int:
    """Which class a name means.

    Raises:
        UnknownNameError: none; the message suggests the nearest names.
    """
    if name not in labels:
        raise UnknownNameError("class", name, labels, lists="vireo predict --top-k 1000")
    return labels.index(name)


def parts_of(model: Recognizer) -> tuple[str, ...]:
    """What of `WHAT` a model has."""
    there = list(model.modules())
    has = {kind: any(isinstance(module, sort) for module in there) for kind, sort in _MAKERS.items()}
    return tuple(kind for kind in WHAT if has.get(kind, True))


def describe(model: Recognizer) -> str:
    """A model in a few words."""
    config = model.config
    return f"{config.temporal} on {config.backbone}"


_MAKERS: dict[str, type] = {"keypoints": KeyPointShifts, "gates": Gated, "features": TemporalFeatureDifference}
_KEYPOINTS = ("key_points", "shifts", "centres", "regional_weights")


def _part(visual: str) -> str:
    """Which of `WHAT` a picture of ``Outputs.visuals`` belongs to."""
    kind = visual.rpartition(".")[2]
    return "gates" if kind == "gates" else "keypoints" if kind in _KEYPOINTS else "features"
