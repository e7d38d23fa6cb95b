"""Networks to test on, and the contracts that every module on every backbone must keep."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vireo.backbones import FAMILIES, build_backbone
from vireo.model import Recognizer, create_model
from vireo.temporal import temporal_modules

MODULES = (
    *("tsn", "tsm", "mem", "tim", "tei", "se_tim", "te", "fe", "tefe"),
    *("mstsm", "tfdem", "mstsm_tfdem", "stfm", "twm", "stw", "kpsem", "tsm+tfdem"),
)
# The smallest backbone of each family, then what these lack: bottlenecks with squeeze-and-excitation
# (RegNetY) and without, fused inverted residuals and plain convolutions.
BACKBONES = (*(family.examples[0] for family in FAMILIES), "regnety_002", "test_resnet", "tf_efficientnetv2_b0")
_NOT_DENSE = ("mstsm", "mstsm_tfdem")  # they widen a dense convolution; ConvNeXt's first one is depthwise
_ON_3D = ("tsn", "tfdem", "kpsem")
SUPPORTED = [
    (temporal, backbone)
    for temporal in MODULES
    for backbone in BACKBONES
    if not (backbone == "convnext_atto" and temporal in _NOT_DENSE)
    and not (backbone == "mfnet" and temporal not in _ON_3D)
]
OPTIONS: dict[str, dict[str, Any]] = {"c2d_resnet50": {"layers": [1, 1, 1, 1]}}  # small ones, for speed
# The paper's placement has TE alone where a stage has one block, as here.
TEMPORAL_OPTIONS: dict[str, dict[str, Any]] = {"tefe": {"te_blocks": (1, 1, 0, 0), "fe_blocks": (0, 0, 2, 2)}}
SIZE = 64
CLASSES = 5


def randomise(model: Recognizer, seed: int = 0) -> Recognizer:
    """Make every path of a fresh network count.

    timm starts the last norm of a residual block at 0 and ConvNeXt's layer scale at 1e-6, so that on a
    fresh network a shift changes nothing and most gradients are zero; our own modules start as the identity
    or as a plain shift. A test on such a network proves nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    plain = {name for name, _ in plain_backbone(model).named_parameters(prefix="backbone")}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rpartition(".")[2]
            ours = name not in plain
            # (and the few hidden units behind a ReLU are to be alive)
            if (parameter.ndim == 1 and leaf in ("weight", "gamma")) or (ours and leaf == "bias"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif ours:  # gates away from 1/2, a TIM that isn't a plain shift, an FE that isn't the plain convolution
                spread = max(0.3 if parameter[0].numel() < 64 else 0.0, float(parameter[0].numel()) ** -0.5)
                spread *= 0.2 if parameter.ndim == 5 else 1.0  # FE multiplies its two: activations explode soon
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)
        model.classifier.weight.normal_(generator=generator)
        model.classifier.bias.normal_(generator=generator)
    # Running statistics that fit the data, or activations fade or explode with depth.
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(clips(model, 8, seed=seed))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def plain_backbone(model: Recognizer) -> nn.Module:
    """The backbone as it is without temporal modules, on the meta device."""
    with torch.device("meta"):
        return build_backbone(model.config.backbone, model.config.backbone_options, model.num_frames)


def added_parameters(model: Recognizer) -> dict[str, nn.Parameter]:
    """Parameters that the plain backbone and the classifier don't have."""
    plain = {name for name, _ in plain_backbone(model).named_parameters(prefix="backbone")}
    return {n: p for n, p in model.named_parameters() if n not in plain and not n.startswith("classifier.")}


@cache
def _template(temporal: str, backbone: str, frames: int) -> Recognizer:
    torch.manual_seed(0)
    model = create_model(
        temporal,
        backbone,
        num_classes=CLASSES,
        num_frames=frames,
        dropout=0.0,
        backbone_options=OPTIONS.get(backbone, {}),
        **TEMPORAL_OPTIONS.get(temporal, {}),
    )
    return randomise(model)


def network(temporal: str, backbone: str, frames: int = 4) -> Recognizer:
    """A randomised network in evaluation mode, the caller's own."""
    return copy.deepcopy(_template(temporal, backbone, frames))


def planted(monkeypatch: Any, recipe: type, backbone: str = "resnet10t", frames: int = 4) -> Recognizer:
    """As `network`, with a module that isn't registered."""
    monkeypatch.setitem(temporal_modules._entries, "planted", recipe)
    torch.manual_seed(0)
    return randomise(create_model("planted", backbone, num_classes=CLASSES, num_frames=frames, dropout=0.0))


def clips(model: Recognizer, count: int, *, seed: int = 1, size: int = SIZE) -> Tensor:
    """(count, T, 3, size, size) uint8 noise, in memory as N, T, H, W, C."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, model.num_frames, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 1, 4, 2, 3)


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the size of b."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def assert_clips_stay_apart(model: Recognizer) -> None:
    """No frame of one clip reaches another."""
    x = clips(model, 3)
    before = model(x)
    for touched in range(3):
        y = x.clone()
        y[touched] = 255 - y[touched]
        after = model(y)
        others = [i for i in range(3) if i != touched]
        assert distance(after[touched], before[touched]) > 1e-3, "the network ignores its input"
        leaked = distance(after[others], before[others])
        assert leaked <= 1e-6, f"leak: clip {touched} changes the others' logits by {leaked:.1e}"


@torch.no_grad()
def assert_batch_size_is_irrelevant(model: Recognizer) -> None:
    x = clips(model, 3)
    together = model(x)
    alone = torch.cat([model(clip[None]) for clip in x])
    assert distance(alone, together) < 1e-4


def assert_every_parameter_counts(model: Recognizer, *, but: tuple[str, ...] = ()) -> None:
    """Every parameter has a gradient that isn't zero, except those whose name holds one of `but`."""
    model(clips(model, 2)).square().sum().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    idle = [n for n in idle if not any(part in n for part in but)]
    assert not idle, f"parameters without gradient: {idle}"
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def order_matters(model: Recognizer) -> float:
    """How far the logits move when the frames come in reverse."""
    x = clips(model, 2)
    return distance(model(x.flip(1)), model(x))
