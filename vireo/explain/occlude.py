"""Which frames an answer needs: each in turn is taken away, and the answer compared.

Occlusion as in Zeiler, Fergus: "Visualizing and Understanding Convolutional Networks", ECCV 2014 (section 4.2), along
time instead of space.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vireo.errors import UsageError
from vireo.explain.cam import choose_targets
from vireo.model import Recognizer, evaluating

Replacement = Literal["neighbour", "grey"]
REPLACEMENTS = ("neighbour", "grey")
BATCH = 8  # clips per pass, unless asked for otherwise


class Occlusion(NamedTuple):
    """What :func:`occlusion` gives, for a clip of T frames."""

    drops: Tensor
    """(T,) float32: by how much the class's probability falls without the frame; below 0 where it rises."""
    probability: float
    """Of the class, with all frames, in [0, 1]."""
    target: int
    """The class."""


@torch.no_grad()
def occlusion(
    model: Recognizer,
    clip: Tensor,
    target: int | None = None,
    *,
    replace: Replacement = "neighbour",
    batch_size: int = BATCH,
) -> Occlusion:
    """How much of a class's probability is lost without each frame.

    A frame is replaced by its neighbours, by the one before and by the one after it, and the mean of both drops is
    taken: what time holds still takes the frame's news away and adds nothing. Or it is replaced by grey, which takes
    away what it shows as well but is a picture that the model has never seen.

    Args:
        model: run in evaluation mode and left in its own.
        clip: (T, C, H, W) as the model takes it, on its device.
        target: the class; None: the one with the highest score.
        replace: neighbour or grey (the mean colour; in flow no motion).
        batch_size: clips per pass.

    Raises:
        UsageError: no such class or replacement, or neighbours of a single frame.
    """
    frames = len(clip)
    if replace not in REPLACEMENTS:
        raise UsageError(f"replace is {replace!r}; use {' or '.join(REPLACEMENTS)}")
    if replace == "neighbour" and frames < 2:
        raise UsageError("a clip of one frame has no neighbours to put in its place; use replace='grey'")
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
    if replace == "grey":
        scale = 1 if clip.is_floating_point() else 255
        grey = torch.tensor([scale * m for m in model.mean], device=clip.device).view(-1, 1, 1)
        grey = grey.round().clamp(0, 255).to(clip.dtype) if scale == 255 else grey.to(clip.dtype)
        changes = [(t, grey.expand_as(clip[t])) for t in range(frames)]
    else:
        changes = [(t, clip[other]) for t in range(frames) for other in (t - 1, t + 1) if 0 <= other < frames]
    with evaluating(model):
        logits = model(clip[None])
        number = int(choose_targets(target, logits))
        probability = float(logits.float().softmax(dim=1)[0, number])
        found = []
        for start in range(0, len(changes), batch_size):
            part = changes[start : start + batch_size]
            batch = clip.expand(len(part), *clip.shape).clone()
            for row, (t, picture) in zip(batch, part, strict=True):
                row[t] = picture
            found.append(model(batch).float().softmax(dim=1)[:, number].cpu())
    places = torch.tensor([t for t, _ in changes])
    left = torch.zeros(frames).index_add_(0, places, torch.cat(found)) / torch.bincount(places)
    return Occlusion(drops=probability - left, probability=probability, target=number)
