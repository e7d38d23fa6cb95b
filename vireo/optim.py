"""Optimizer, learning-rate schedule and partial batch norm, as TSN and TSM train."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vireo.config import OptimConfig, TrainConfig
from vireo.model import Recognizer, is_classifier


def make_optimizer(model: Recognizer, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameter groups of TSN.

    learning rate × / weight decay ×: convolution and linear weights 1/1, their biases 2/0, norms
    1/0, the classifiers' weights ``head_lr_scale``/1 and their biases twice that/0.
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
    settings = [
        {"params": params, "lr": config.lr * lr, "lr_scale": lr, "weight_decay": config.weight_decay * decay}
        for lr, decay, params in groups.values()
        if params
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(settings, lr=config.lr)


def lr_factor(epochs_done: float, config: TrainConfig) -> float:
    """The learning rate as a fraction of ``lr``: linear warm-up from 0.1, then cosine or steps.

    A pure function of the place in the run, so that resuming needs no scheduler state.
    """
    if epochs_done < config.warmup_epochs:
        return 0.1 + 0.9 * epochs_done / config.warmup_epochs
    if config.schedule == "steps":
        return float(0.1 ** sum(epochs_done >= fraction * config.epochs for fraction in config.lr_steps))
    progress = (epochs_done - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its highest."""
    for group in optimizer.param_groups:
        group.setdefault("base_lr", group["lr"])
        group["lr"] = group["base_lr"] * factor


def freeze_norms_but_first(model: Recognizer) -> None:
    """Partial batch norm of TSN: the affine parameters of every batch norm but the first stay fixed."""
    for norm in batch_norms(model)[1:]:
        norm.requires_grad_(False)


def train_mode(model: Recognizer, *, partial_bn: bool) -> None:
    """Training mode; with partial batch norm every norm but the first keeps its running statistics."""
    model.train()
    if partial_bn:
        for norm in batch_norms(model)[1:]:
            norm.eval()


def batch_norms(model: Recognizer) -> list[nn.Module]:
    """The backbone's batch norms, in the order in which the modules are registered; a branch's are new, and trained."""
    return [m for m in model.backbone.modules() if isinstance(m, _BatchNorm)]
