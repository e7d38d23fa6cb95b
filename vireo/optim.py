"""Optimizers, learning-rate schedules, frozen batch norms and class weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.optim import Lamb  # type: ignore[attr-defined]  # re-exported without __all__
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vireo.config import Settings
from vireo.model import Recognizer, is_classifier

_RISE, _FROM, _TO = 0.3, 1 / 25, 1 / 25e4  # of one cycle, as in torch's OneCycleLR: share of the run, factors of lr


def make_optimizer(model: Recognizer, config: Settings) -> torch.optim.Optimizer:
    """SGD, AdamW or LAMB over the parameter groups of TSN, with the learning rate of :func:`scaled_lr`.

    learning rate × / weight decay ×: convolution and linear weights 1/1, their biases 2/0, norms
    1/0, the classifiers' weights ``head_lr_scale``/1 and their biases twice that/0.

    SGD has a momentum of 0.9, AdamW torch's defaults. LAMB (You et al., ICLR 2020, arXiv 1904.00962) is timm's, with
    its defaults (betas 0.9 and 0.999, eps 1e-6, bias correction, trust ratios that are not clipped, and that parameters
    without weight decay do not have), except that it does not clip gradients of its own: ``clip_grad`` does.
    """
    groups: dict[str, tuple[float, float, list[nn.Parameter]]] = {
        "weight": (1, 1, []),
        "bias": (2, 0, []),
        "norm": (1, 0, []),
        "head_weight": (config.head_lr_scale, 1, []),
        "head_bias": (2 * config.head_lr_scale, 0, []),
    }
    head = {parameter for name, parameter in model.named_parameters() if is_classifier(name)}
    for module in model.modules():
        weighty = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            kind = "bias" if weighty and name == "bias" else "norm" if parameter.ndim < 2 else "weight"
            groups[f"head_{kind}" if parameter in head else kind][2].append(parameter)
    highest = scaled_lr(config)
    settings = [
        {"params": params, "lr": highest * lr, "lr_scale": lr, "weight_decay": config.weight_decay * decay}
        for lr, decay, params in groups.values()
        if params
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=highest, momentum=0.9)
    if config.optimizer == "lamb":
        return _SteppedLamb(settings, lr=highest, max_grad_norm=None)
    return torch.optim.AdamW(settings, lr=highest)


class _SteppedLamb(Lamb):
    """LAMB whose state has the number of steps too, as torch's optimizers have it, so that a run can go on exactly.

    timm's keeps that number in its parameter groups, among the settings.
    """

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = super().state_dict()
        for group in found["param_groups"]:
            for index in group["params"]:
                if index in found["state"]:
                    step = torch.tensor(float(group["step"]))
                    found["state"][index] = {**found["state"][index], "step": step}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state, groups = {index: dict(own) for index, own in state_dict["state"].items()}, []
        for group in state_dict["param_groups"]:
            steps = [int(state[index].pop("step")) for index in group["params"] if "step" in state.get(index, {})]
            groups.append({**group, "step": max(steps)} if steps else group)
        super().load_state_dict({**state_dict, "state": state, "param_groups": groups})


# --- learning rate --------------------------------------------------------------------------------


def scaled_lr(config: Settings) -> float:
    """The highest learning rate for the run's batch size: ``lr`` × ``batch_size`` / ``base_batch_size``.

    The linear scaling rule of Goyal et al., "Accurate, Large Minibatch SGD" (arXiv 1706.02677), section 2.1.
    """
    return config.lr * config.batch_size / config.base_batch_size if config.base_batch_size else config.lr


def lr_factor(epochs_done: float, config: Settings) -> float:
    """The learning rate as a fraction of the highest: linear warm-up from 0.1, then cosine or steps; or one cycle.

    One cycle (Smith and Topin, arXiv 1708.07120) is that of torch's OneCycleLR with two phases, both along a cosine:
    up from 1/25 during ``warmup_epochs`` (0: 30 % of the epochs), then down to 1/250000 at the end of the run. The
    momentum stays as it is.

    A pure function of the place in the run, so that resuming needs no scheduler state.
    """
    if config.schedule == "one_cycle":
        rise = config.warmup_epochs or _RISE * config.epochs
        if epochs_done < rise:
            return _along_cosine(_FROM, 1.0, epochs_done / rise)
        return _along_cosine(1.0, _TO, (epochs_done - rise) / max(config.epochs - rise, 1e-9))
    if epochs_done < config.warmup_epochs:
        return 0.1 + 0.9 * epochs_done / config.warmup_epochs
    if config.schedule == "steps":
        return float(0.1 ** sum(epochs_done >= fraction * config.epochs for fraction in config.lr_steps))
    progress = (epochs_done - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return _along_cosine(1.0, 0.0, progress)


def _along_cosine(first: float, last: float, progress: float) -> float:
    """From ``first`` to ``last`` as ``progress`` goes from 0 to 1."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its highest."""
    for group in optimizer.param_groups:
        group.setdefault("base_lr", group["lr"])
        group["lr"] = group["base_lr"] * factor


# --- frozen batch norms ---------------------------------------------------------------------------


def freeze_norms(model: Recognizer, which: str) -> None:
    """Fix the affine parameters of batch norms, one of `OptimConfig.freeze_norms`; :func:`train_mode` does the rest."""
    for norm in frozen_norms(model, which):
        norm.requires_grad_(False)


def train_mode(model: Recognizer, *, freeze_norms: str) -> None:
    """Training mode; norms that are frozen keep their running statistics, and use them."""
    model.train()
    for norm in frozen_norms(model, freeze_norms):
        norm.eval()


def frozen_norms(model: Recognizer, which: str) -> list[nn.Module]:
    """The batch norms that are frozen.

    Args:
        model: the network.
        which: none; partial: every one of the backbone but the first, as TSN does; all: every one of the network.
    """
    if which == "all":
        return [m for m in model.modules() if isinstance(m, _BatchNorm)]
    return batch_norms(model)[1:] if which == "partial" else []


def batch_norms(model: Recognizer) -> list[nn.Module]:
    """The backbone's batch norms, in the order in which the modules are registered; a branch's are new, and trained."""
    return [m for m in model.backbone.modules() if isinstance(m, _BatchNorm)]


# --- class weights --------------------------------------------------------------------------------


def class_weights(labels: npt.ArrayLike, mirrored: Sequence[int | None]) -> Tensor:
    """How much a clip of each class counts, so that all classes count alike: in inverse proportion to its clips.

    Half of the clips are mirrored where their class has a mirror image, and are then of that class: what counts is
    the number of clips a class has in training, on average. Weights have a mean of 1 over the training clips.

    Args:
        labels: (N,) classes of the training clips.
        mirrored: (K,) the class of a mirror image; None: clips of this class are not mirrored.

    Returns:
        (K,) in torch's default type; 0 for a class of which training has no clip.
    """
    listed = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(mirrored)).astype(np.float64)
    seen = np.zeros_like(listed)
    for label, (image, clips) in enumerate(zip(mirrored, listed, strict=True)):
        seen[label] += clips / 2
        seen[label if image is None else image] += clips / 2
    present = seen > 0
    weights = np.divide(listed.sum() / max(present.sum(), 1), seen, out=np.zeros_like(seen), where=present)
    return torch.tensor(weights.tolist())
