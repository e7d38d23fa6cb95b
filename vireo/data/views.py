"""Test views: the pictures of one clip whose scores are averaged.

All start from the clip resized to ``view.resize_to`` on its short side; S is ``view.size``:

    center      the centre square of S, as in training's validation
    3crop       squares of S at the start, the centre and the end of the long side
    5crop       squares of S in the four corners and the centre
    10crop      those five, and the mirror images of the five, as in TSN
    full        no crop: the whole frame. Clips of other shapes don't fit the same batch
    squeezed    no crop: the whole frame, S high and view.resize_to wide whatever its shape, as in TEFE (224 × 256)

The protocols that crop as large as the short side ("full resolution, three crops": squares of 256 of a short side of
256) are these with ``size = short_side``. In a mirror image left is right: its scores belong to the labels that
`FlipRule.score_order` names, which `average_views` puts right. Several clips in time are another matter, that of
`vireo.data.sampling`; 10 clips × 3 crops are 30 views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vireo.config import ViewConfig
from vireo.data.flips import FlipRule
from vireo.data.flow import mirror_flow
from vireo.data.transforms import channels_last, eval_size, resize
from vireo.errors import UsageError

_Places = Callable[[int, int], list[tuple[int, int]]]  # of the spare height and width, pixels: (top, left) of each crop


@dataclass(frozen=True, kw_only=True)
class ViewSet:
    """A way to look at a clip several times."""

    names: tuple[str, ...]
    """(V,) of the views, to print."""
    mirrored: tuple[bool, ...]
    """(V,) whether a view is a mirror image; the mirrored ones follow the others."""
    places: _Places | None
    """Where the crops stand; None: the whole frame."""
    squeezed: bool = False
    """Whether the whole frame is made as high and wide as any other's."""


def _center(height: int, width: int) -> list[tuple[int, int]]:
    return [(height // 2, width // 2)]


def _three(height: int, width: int) -> list[tuple[int, int]]:
    if height > width:
        return [(0, width // 2), (height // 2, width // 2), (height, width // 2)]
    return [(height // 2, 0), (height // 2, width // 2), (height // 2, width)]


def _five(height: int, width: int) -> list[tuple[int, int]]:
    return [(0, 0), (0, width), (height, 0), (height, width), (height // 2, width // 2)]


_FIVE = ("top left", "top right", "bottom left", "bottom right", "center")
VIEWS = {
    "center": ViewSet(names=("center",), mirrored=(False,), places=_center),
    "3crop": ViewSet(names=("start", "center", "end"), mirrored=(False,) * 3, places=_three),
    "5crop": ViewSet(names=_FIVE, mirrored=(False,) * 5, places=_five),
    "10crop": ViewSet(
        names=(*_FIVE, *(f"{name}, mirrored" for name in _FIVE)), mirrored=(False,) * 5 + (True,) * 5, places=_five
    ),
    "full": ViewSet(names=("whole frame",), mirrored=(False,), places=None),
    "squeezed": ViewSet(names=("whole frame",), mirrored=(False,), places=None, squeezed=True),
}
"""By the name that a command takes."""


def view_set(name: str) -> ViewSet:
    """The views of a name.

    Raises:
        UsageError: there are none.
    """
    if name not in VIEWS:
        raise UsageError(f"views {name!r} are unknown; use {', '.join(VIEWS)}")
    return VIEWS[name]


def make_views(name: str, frames: Tensor, view: ViewConfig, *, flow: bool = False) -> Tensor:
    """Look at a clip several times.

    Args:
        name: one of `VIEWS`.
        frames: (T, C, H, W) uint8.
        view: the sizes, pixels.
        flow: whether these are stacks of optical flow: then a mirror image moves the other way.

    Returns:
        (V, T, C, S, S) uint8 whose memory is V, T, S, S, C; of the whole frame (1, T, C, H', W') with a short side of
        ``view.resize_to``, or squeezed to S × ``view.resize_to``.

    Raises:
        UsageError: an unknown name.
    """
    views = view_set(name)
    height, width = eval_size(frames.shape[-2], frames.shape[-1], view)
    if views.squeezed:
        height, width = view.size, view.resize_to
    frames = resize(frames, height, width)
    if views.places is None:
        return channels_last(frames)[None]
    places = views.places(height - view.size, width - view.size)
    crops = [frames[..., top : top + view.size, left : left + view.size] for top, left in places]
    if any(views.mirrored):
        crops += [mirror_flow(crop) if flow else crop.flip(-1) for crop in crops]
    # Stacked in the memory's order, so that folding time is free.
    return torch.stack([crop.permute(0, 2, 3, 1) for crop in crops]).permute(0, 1, 4, 2, 3)


def average_views(name: str, scores: Tensor, rule: FlipRule) -> Tensor:
    """The mean of the views' scores, those of mirror images put to the labels that they are about.

    Args:
        name: one of `VIEWS`.
        scores: (..., V, K): probabilities, or logits.
        rule: of the K labels, from `flip_rule`; only mirrored views need it.

    Returns:
        (..., K).

    Raises:
        UsageError: an unknown name, another number of views, or mirrored views of labels that have no mirror image.
    """
    mirrored = view_set(name).mirrored
    if scores.ndim < 2 or scores.shape[-2] != len(mirrored):
        raise UsageError(f"scores of shape {tuple(scores.shape)} are not those of {len(mirrored)} views ({name})")
    if not any(mirrored):
        return scores.mean(-2)
    order = rule.score_order()
    if order is None:
        alone = (rule.unpaired or rule.left_alone)[0]
        raise UsageError(f"{name} has mirrored views, and no label fits the mirror image of {alone!r}; use 5crop")
    if scores.shape[-1] != len(order):
        raise UsageError(f"scores of {scores.shape[-1]} classes don't fit a flip rule of {len(order)}")
    plain = mirrored.index(True)
    return torch.cat([scores[..., :plain, :], scores[..., plain:, list(order)]], dim=-2).mean(-2)
