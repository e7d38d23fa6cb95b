"""Knowledge distillation: a network learns what a trained one, its teacher, answers to the same clips.

Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531). Of a clip for which the
network has the logits s and its teacher t, with the temperature τ and the teacher's share w:

    p = softmax(t / τ)      q = softmax(s / τ)                          section 2, eq. 1
    loss = (1 - w) · loss on the label  +  w · τ² · Σ_k p_k · (log p_k - log q_k)

τ² keeps the gradients' size whatever the temperature (section 2). Their cross-entropy Σ -p_k · log q_k has the same
gradients as the divergence here, which is 0 where both answer alike.

The teacher sees what the network sees: the same frames, crop, colours and mixture of clips (as Beyer et al., "Knowledge
distillation: A good teacher is patient and consistent", CVPR 2022), resized to its own size and normalised by its own
mean and deviation. It is in evaluation mode, has no gradients and is no part of what a run saves.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torchvision.transforms.v2.functional import resize

from vireo.checkpoint import Checkpoint, load_checkpoint
from vireo.config import ModelConfig, Settings
from vireo.errors import CheckpointError, UsageError
from vireo.model import Recognizer


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network whose answers another one learns."""

    path: str
    """Its checkpoint."""
    digest: str
    """SHA-256 of that file, hexadecimal."""
    model: Recognizer
    """In evaluation mode, without gradients."""
    columns: Tensor
    """(K,) where each of the run's classes stands among the teacher's."""
    size: int
    """Height and width of its input, pixels."""
    weight: float
    """w, its share of the loss, in (0, 1]."""
    temperature: float
    """τ."""
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Context in which it runs, e.g. autocast."""

    @torch.no_grad()
    def answers(self, clips: Tensor) -> Tensor:
        """Clips (N, T, C, H, W) of any size, uint8 or in [0, 1], to logits (N, K) of the run's classes."""
        with self.precision():
            logits: Tensor = self.model(resize(clips, [self.size, self.size], antialias=True))
        return logits[:, self.columns]

    def teach(self, loss: Tensor, logits: Tensor, clips: Tensor) -> Tensor:
        """Give the teacher its share of a loss.

        Args:
            loss: on the labels, mean over the clips.
            logits: (N, K) of the network that learns.
            clips: (N, T, C, H, W) what it saw.

        Returns:
            (1 - w) · loss + w · the mean of :func:`divergence` over the clips.
        """
        apart = divergence(logits, self.answers(clips), self.temperature).mean()
        return (1 - self.weight) * loss + self.weight * apart

    def line(self, size: int) -> str:
        """Who teaches and how, in a line.

        Args:
            size: of the network that learns, pixels.
        """
        config = self.model.config
        resized = "" if size == self.size else f", which sees the clips resized from {size}² to {self.size}²"
        return (
            f"teacher: {config.temporal} × {config.backbone} of {self.path}, {self.weight:g} of the loss at "
            f"temperature {self.temperature:g}{resized}"
        )

    def provenance(self) -> dict[str, Any]:
        """What a checkpoint says of it, as plain data."""
        config = self.model.config
        return {"path": self.path, "sha256": self.digest, "temporal": config.temporal, "backbone": config.backbone}


def divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """τ² · KL(teacher ‖ student) of each clip.

    Args:
        logits: (N, K) of the student.
        wanted: (N, K) of the teacher.
        temperature: τ.

    Returns:
        (N,), at least float32.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    student, teacher = (log_softmax(scores.to(exact) / temperature, dim=1) for scores in (logits, wanted))
    return temperature**2 * kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


def load_teacher(
    config: Settings,
    labels: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Teacher:
    """The teacher that the settings name, ready to be asked.

    Args:
        config: of the run; its network must take clips of the same kind.
        labels: the run's classes.
        device: where the network that learns is.
        precision: context in which that one runs.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        UsageError: it lacks classes of the run, or sees other clips: the message says which.
    """
    found = load_checkpoint(config.teacher, device=device)
    check_clips(config, found.model.config)
    columns = torch.tensor(columns_of(found, labels, config.teacher), device=device)
    return Teacher(
        path=config.teacher,
        digest=digest_of(config.teacher),
        model=found.model.requires_grad_(False),
        columns=columns,
        size=found.view.size,
        weight=config.teacher_weight,
        temperature=config.teacher_temperature,
        precision=precision,
    )


def check_clips(config: Settings, its: ModelConfig) -> None:
    """Check that a teacher can see what the network sees.

    Raises:
        UsageError: it takes another modality, number of frames or of flow fields.
    """
    same = ["modality", "num_frames"] + (["flow_fields"] if config.modality == "flow" else [])
    for name in same:
        if getattr(its, name) != getattr(config, name):
            raise UsageError(
                f"teacher {config.teacher} was trained with {name} {getattr(its, name)}, this run has "
                f"{getattr(config, name)}; both see the same clips, so they must agree"
            )


def columns_of(teacher: Checkpoint, labels: Sequence[str], path: str) -> list[int]:
    """Where each label stands among the teacher's; it may know more classes, in any order.

    Raises:
        UsageError: it lacks one, or has one twice.
    """
    times = Counter(teacher.labels)
    missing = [label for label in labels if label not in times]
    if missing:
        named = ", ".join(map(repr, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise UsageError(
            f"teacher {path} does not know {len(missing)} of the {len(labels)} classes: {named}; it must have been "
            "trained on all of them"
        )
    twice = next((label for label in labels if times[label] > 1), None)
    if twice is not None:
        raise UsageError(f"teacher {path} has several classes called {twice!r}; which one is meant can't be told")
    place = {label: column for column, label in enumerate(teacher.labels)}
    return [place[label] for label in labels]


def digest_of(path: str) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        CheckpointError: it can't be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
