"""Test protocols: how often a video is looked at when it is scored, and what that costs.

A protocol is so many clips of a video and so many views of every clip, by name or by numbers; the video's scores are
the mean over all of them. A name is ``CLIPSxCROPS``, with what differs from the usual behind it:

    10x3            10 clips × 3 crops along the long side, of the model's size
    2x3-full        crops as large as the frame's short side (256² of 256) in place of 224²
    4x1-dense       frames of each clip from a window, whatever the model was trained with; -segment: from all the video

and there are those of the papers, which `PROTOCOLS` lists. In ``twice`` and ``2x3-full`` the two clips are those of
TSM's code: the segments' centres and their first frames. All other clips stand at even places
(`vireo.data.sampling`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vireo.config import ViewConfig
from vireo.data.flips import flip_rule
from vireo.data.views import average_views, view_set
from vireo.errors import UnknownNameError, UsageError
from vireo.model import Recognizer, count_macs

Average = Literal["logits", "probabilities"]

_CROPS = {"1": "center", "3": "3crop", "5": "5crop", "10": "10crop"}


class Named(NamedTuple):
    """A protocol of a paper."""

    change: dict[str, Any]
    """Fields of `ViewConfig`."""
    about: str
    full: bool = False
    """Whether crops are as large as the frame's short side."""
    twice: bool = False
    """Whether the two clips are the segments' centres and their first frames."""


PROTOCOLS: dict[str, Named] = {
    "1x1-center": Named(
        {"clips": 1, "views": "center"}, "one centre crop of one clip: TSN, TSM, TEINet and STW on Something-Something"
    ),
    "tefe": Named(
        {"clips": 1, "views": "squeezed", "short_side": 0},
        "the whole frame squeezed to size × 8/7 size (224 × 256), one clip: TEFE",
    ),
    "twice": Named(
        {"clips": 2, "views": "center", "sampling": "segment"},
        "centre crops of two clips, the segments' centres and their first frames: TSM's code",
        twice=True,
    ),
    "2x3-full": Named(
        {"clips": 2, "views": "3crop", "sampling": "segment"},
        "the two clips of twice, 3 crops as large as the short side: TSM's code, for its best figures",
        full=True,
        twice=True,
    ),
    "10x3": Named({"clips": 10, "views": "3crop"}, "10 clips × 3 crops: TEINet and STW on Kinetics, UCF101 and HMDB51"),
    "10x3-full": Named(
        {"clips": 10, "views": "3crop"}, "10 clips × 3 crops as large as the short side: TSM's code", full=True
    ),
}
"""By name; any other CLIPSxCROPS works too."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How each video of a list is scored."""

    view: ViewConfig
    """Clips, views and sizes."""
    twice: bool = False
    """Whether the two clips are the segments' centres and their first frames."""
    average: Average = "logits"
    """What is averaged over clips and views: scores before softmax, or after it."""

    def __post_init__(self) -> None:
        if self.average not in ("logits", "probabilities"):
            raise UsageError(f"average is {self.average!r}; use logits or probabilities")

    @property
    def views_per_clip(self) -> int:
        """Pictures of each clip."""
        return len(view_set(self.view.views).names)


def choose_protocol(
    view: ViewConfig,
    name: str = "",
    *,
    views: str = "auto",
    clips: int = 0,
    sampling: str = "auto",
    average: str = "logits",
) -> Protocol:
    """The protocol that is asked for.

    Args:
        view: the checkpoint's, which says what is not asked for.
        name: one of `PROTOCOLS`, or CLIPSxCROPS; "": the checkpoint's own.
        views: one of `vireo.data.views.VIEWS`, goes before the name; auto: as the name says.
        clips: of each video, goes before the name; 0: as the name says.
        sampling: segment or dense, goes before the name; auto: as the name says.
        average: logits or probabilities.

    Raises:
        UnknownNameError: no such protocol; the message suggests the nearest.
        UsageError: a setting is wrong.
    """
    named = find_protocol(name) if name else Named({}, "")
    change = dict(named.change)
    change |= {"views": views} if views != "auto" else {}
    change |= {"clips": clips} if clips else {}
    change |= {"sampling": sampling} if sampling != "auto" else {}
    view = replace(view, **change)
    if named.full:
        view = replace(view, size=view.resize_to, short_side=view.resize_to)
    twice = named.twice and (view.clips, view.sampling) == (2, "segment")
    return Protocol(view=view, twice=twice, average=average)  # type: ignore[arg-type]  # checked there


def find_protocol(name: str) -> Named:
    """A protocol by its name.

    Raises:
        UnknownNameError: there is none; the message suggests the nearest.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    found = re.fullmatch(r"(\d{1,4})x(1|3|5|10)(-center|-crop|-full)?(-segment|-dense)?", name)
    if not found or int(found[1]) == 0 or found[3] == ("-crop" if found[2] == "1" else "-center"):
        known = (*PROTOCOLS, "CLIPSxCROPS[-full][-segment|-dense] with 1, 3, 5 or 10 crops")
        raise UnknownNameError("protocol", name, known)
    change = {"clips": int(found[1]), "views": _CROPS[found[2]]}
    if found[4]:
        change["sampling"] = found[4][1:]
    return Named(change, "", full=found[3] == "-full")


# --- the mean of the scores -----------------------------------------------------------------------


class ManyViews(NamedTuple):
    """How a batch holds several pictures of each video, and what becomes of their scores."""

    pictures: int
    """P, clips × views; in a batch they follow each other: (N, P · T, C, S, S)."""
    at_once: int
    """Pictures per forward pass."""
    videos: int
    """Videos per batch."""
    average: Callable[[Tensor], Tensor]
    """Scores (N, P, K) → (N, K)."""


def many_views(protocol: Protocol, labels: tuple[str, ...], *, at_once: int) -> ManyViews | None:
    """How to score the clips and views of a protocol; None for a single picture of each video.

    Where probabilities are averaged, a video's scores are the logarithms of the mean probabilities: their softmax
    gives these back, so everything that takes scores before softmax takes them, too.

    Raises:
        UsageError: unknown views, or mirrored ones of labels that have no mirror image.
    """
    view, count = protocol.view, protocol.views_per_clip
    if (view.views, view.clips) == ("center", 1):
        return None
    rule = flip_rule(labels, "auto")

    def average(scores: Tensor) -> Tensor:
        if protocol.average == "probabilities":
            scores = scores.double().softmax(-1)
        mean = average_views(view.views, scores.view(-1, view.clips, count, len(labels)), rule).mean(1)
        if protocol.average == "probabilities":
            mean = mean.clamp_min(torch.finfo(torch.float64).tiny).log().float()
        return mean

    pictures = view.clips * count
    average(torch.zeros(1, pictures, len(labels)))  # what can't be averaged shows before the work, not after it
    # Whole frames of two videos may differ in size.
    return ManyViews(pictures, at_once, 1 if view.views == "full" else max(1, at_once // pictures), average)


# --- in words and numbers -------------------------------------------------------------------------

_SHOWN = {
    "center": "centre crop {S}²",
    "3crop": "3 crops {S}² along the long side",
    "5crop": "crops {S}² of corners and centre",
    "10crop": "crops {S}² of corners and centre, and mirrored",
    "full": "whole frames",
}


def describe_protocol(protocol: Protocol, frames: str) -> str:
    """What a score rests on, e.g. ``10x3-crop: 8 frames (dense, 64), short side 256, 3 crops 224² …``."""
    view, count = protocol.view, protocol.views_per_clip
    sampling = "segment" if view.sampling == "segment" else f"dense, {view.window}"
    if protocol.twice:
        sampling += "; centres and starts"
    if view.views == "squeezed":
        shown = f"whole frames squeezed to {view.size} × {view.resize_to}"
    else:
        shown = f"short side {view.resize_to}, {_SHOWN[view.views].format(S=view.size)}"
    kinds = {"full": "whole", "squeezed": "squeezed"}  # -full are crops as large as the short side
    kind = kinds.get(view.views) or ("full" if view.size == view.resize_to else "center" if count == 1 else "crop")
    name = f"{view.clips}x{count}-{kind}"
    mean = ", mean of probabilities" if protocol.average == "probabilities" and view.clips * count > 1 else ""
    return f"{name}: {frames} ({sampling}), {shown}{mean}"


class Cost(NamedTuple):
    """What it takes to score a video. MACs are multiply-accumulates, which papers call FLOPs."""

    macs_per_view: int
    """Of one forward pass; see `vireo.model.count_macs` for what is counted."""
    clips: int
    views: int
    """Of each clip."""
    frame_size: tuple[int, int]
    """Height and width of the frames that the network sees, pixels; of whole frames those of most videos."""

    @property
    def macs(self) -> int:
        """Of a video: those of one view × views × clips."""
        return self.macs_per_view * self.clips * self.views

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self._asdict(), "frame_size": list(self.frame_size), "macs": self.macs}

    def __str__(self) -> str:
        giga = f"{self.macs_per_view / 1e9:.4g} GMACs"
        if self.clips * self.views == 1:
            return f"{giga} a video"
        return f"{giga} × {self.clips} clips × {self.views} views = {self.macs / 1e9:.4g} GMACs a video"


def cost_of(model: Recognizer, protocol: Protocol, frame_size: tuple[int, int] | None = None) -> Cost:
    """The cost of a protocol.

    Args:
        model: on any device.
        protocol: whose clips and views are counted.
        frame_size: height and width of whole frames, pixels; those of crops are known.
    """
    view = protocol.view
    size = (view.size, view.resize_to) if view.views == "squeezed" else (view.size, view.size)
    if view.views == "full":
        size = frame_size or (view.resize_to, view.resize_to)
    return Cost(count_macs(model, size), view.clips, protocol.views_per_clip, size)
