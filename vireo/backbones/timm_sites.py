"""Sites in timm's backbones, by facts per block type.

One row of `BLOCKS` describes one block class: which submodules stand at the anchors, and when the
block has a shortcut. Nothing here looks at a model's name, so every timm model built from these
blocks is supported, those of the future too.

Strides, and with them the stages, are measured by one run on the meta device (no arithmetic).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import _efficientnet_blocks as efficientnet
from timm.models import convnext, regnet, resnet
from torch import Tensor, nn

from vireo.contracts import Anchor, ConvFacts, Site
from vireo.errors import UnknownNameError, UnsupportedPairError, UsageError
from vireo.shapes import Layout


@dataclass(frozen=True, kw_only=True)
class BlockFacts:
    """Where the anchors are in one block class: paths, best first; one that is missing or Identity is skipped."""

    branch_in: tuple[str, ...]
    spatial: tuple[str, ...]
    project_in: tuple[str, ...]
    has_skip: Callable[[Any], bool]


def _flag(block: Any) -> bool:
    return bool(block.has_skip)


def _always(block: Any) -> bool:
    return True


def _shortcut_module(block: Any) -> bool:
    return block.downsample is not None  # RegNet: None means no shortcut, an identity one is an nn.Identity


_RESNET = BlockFacts(
    branch_in=("conv1",), spatial=("conv2",), project_in=("aa", "conv3"), has_skip=_always
)  # a downsample of None is the identity; what follows the spatial convolution goes before `aa`, its pooling

BLOCKS: Mapping[type[nn.Module], BlockFacts] = {
    resnet.Bottleneck: _RESNET,
    resnet.BasicBlock: BlockFacts(
        branch_in=("conv1",), spatial=("conv1",), project_in=("aa", "conv2"), has_skip=_always
    ),
    regnet.Bottleneck: BlockFacts(
        branch_in=("conv1.conv",), spatial=("conv2.conv",), project_in=("se", "conv3.conv"), has_skip=_shortcut_module
    ),
    regnet.PreBottleneck: BlockFacts(
        branch_in=("conv1",), spatial=("conv2",), project_in=("se", "conv3"), has_skip=_shortcut_module
    ),
    efficientnet.InvertedResidual: BlockFacts(
        branch_in=("conv_s2d", "conv_pw"), spatial=("conv_dw",), project_in=("conv_pwl",), has_skip=_flag
    ),
    efficientnet.DepthwiseSeparableConv: BlockFacts(
        branch_in=("conv_s2d", "conv_dw"), spatial=("conv_dw",), project_in=("conv_pw",), has_skip=_flag
    ),
    efficientnet.EdgeResidual: BlockFacts(
        branch_in=("conv_exp",), spatial=("conv_exp",), project_in=("conv_pwl",), has_skip=_flag
    ),
    efficientnet.ConvBnAct: BlockFacts(branch_in=("conv",), spatial=("conv",), project_in=(), has_skip=_flag),
    efficientnet.UniversalInvertedResidual: BlockFacts(
        branch_in=("dw_start.conv", "pw_exp.conv"),
        spatial=("dw_mid.conv", "dw_start.conv"),
        project_in=("pw_proj.conv",),
        has_skip=_flag,
    ),
    convnext.ConvNeXtBlock: BlockFacts(
        branch_in=("conv_dw",), spatial=("conv_dw",), project_in=("mlp.fc1",), has_skip=_always
    ),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Backbones built from the same blocks."""

    name: str
    examples: tuple[str, ...]
    """timm names, small to large; the first is the one that the tests run."""


FAMILIES: tuple[Family, ...] = (
    Family(
        name="ResNet",
        examples=(
            *("resnet10t", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("resnet50d", "resnext50_32x4d", "wide_resnet50_2", "seresnet50"),
        ),
    ),
    Family(name="RegNet", examples=("regnetx_002", "regnety_002", "regnety_008", "regnety_032")),
    Family(name="MobileNetV2", examples=("mobilenetv2_035", "mobilenetv2_100", "mobilenetv2_140")),
    Family(name="MobileNetV3", examples=("mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv3_large_100")),
    Family(
        name="MobileNetV4", examples=("mobilenetv4_conv_small_035", "mobilenetv4_conv_small", "mobilenetv4_conv_medium")
    ),
    Family(name="EfficientNet", examples=("efficientnet_b0", "efficientnet_b1", "efficientnetv2_rw_t")),
    Family(name="ConvNeXt", examples=("convnext_atto", "convnext_femto", "convnext_nano", "convnext_tiny")),
)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What one run of a backbone on the meta device shows."""

    features: int
    """D, width of the pooled features."""
    strides: Mapping[str, int]
    """Output stride of every known block, by path, in the order in which they run."""


def build_backbone(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A timm network without its classifier and with random weights.

    Args:
        name: timm's name of it, with or without a pretrained tag (``resnet50.a1_in1k``).
        options: extra keyword arguments of timm's constructor.

    Raises:
        UnknownNameError: timm has no such model.
        UsageError: options that timm refuses.
    """
    if not isinstance(name, str) or not timm.is_model(name):
        raise UnknownNameError("backbone", str(name), timm.list_models())
    reserved = {"num_classes", "pretrained", "features_only", "checkpoint_path"} & set(options)
    if reserved:
        raise UsageError(f"backbone_options can't hold {', '.join(sorted(reserved))}; create_model sets that itself")
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        given = f" with {dict(options)}" if options else ""
        raise UsageError(f"timm can't build backbone {name!r}{given}: {reason}") from error


def pretrained_config(backbone: nn.Module) -> Mapping[str, Any]:
    """What timm states of the backbone's pretrained weights: mean, std, input_size, classifier, first_conv, ..."""
    config: Any = backbone.pretrained_cfg
    stated: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    return stated


def input_size(backbone: nn.Module) -> tuple[int, int]:
    """Height and width that timm's configuration states, pixels."""
    size = pretrained_config(backbone).get("input_size") or (3, 224, 224)
    return size[-2], size[-1]


def measure(backbone: nn.Module, name: str, in_chans: int) -> Geometry:
    """Width of the features and strides of the blocks, by one run on the meta device.

    Raises:
        UnsupportedPairError: the network does not turn (B, C, H, W) into pooled features (B, D).
    """
    height, width = input_size(backbone)
    meta = {k: v.to("meta") for k, v in (*backbone.named_parameters(), *backbone.named_buffers())}
    strides: dict[str, int] = {}

    def hook_for(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(block: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                strides[path] = 2 ** round(math.log2(height / output.shape[2]))  # 176 pixels end in 6, not 5.5

        return hook

    hooks = [block.register_forward_hook(hook_for(path)) for path, block in _blocks(backbone)]
    training = backbone.training
    try:
        with torch.no_grad():
            clip = torch.empty(2, in_chans, height, width, device="meta")
            output = torch.func.functional_call(backbone.eval(), meta, (clip,))
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedPairError(f"Backbone {name!r} can't take {in_chans}-channel images: {reason}") from error
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise UnsupportedPairError(f"Backbone {name!r} gives no pooled features (B, D); Vireo needs a classifier.")
    return Geometry(features=output.shape[1], strides=strides)


def publish_sites(backbone: nn.Module, geometry: Geometry, frames: int) -> tuple[Site, ...]:
    """Every site of the backbone's known blocks, in the order in which they run.

    Args:
        backbone: a timm network.
        geometry: from :func:`measure`.
        frames: T, the same at every site of a 2D network.
    """
    sites: list[Site] = []
    blocks_seen: dict[int, int] = {}
    blocks = dict(_blocks(backbone))
    for path, stride in geometry.strides.items():
        block = blocks[path]
        facts = BLOCKS[type(block)]
        stage = stride.bit_length() - 1
        index = blocks_seen[stage] = blocks_seen.get(stage, -1) + 1
        for anchor, candidates in (
            (Anchor.BRANCH_IN, facts.branch_in),
            (Anchor.SPATIAL_IN, facts.spatial),
            (Anchor.SPATIAL, facts.spatial),
            (Anchor.PROJECT_IN, facts.project_in),
        ):
            found = [c for c in candidates if _present(block, c)]
            conv = next((m for m in map(block.get_submodule, found) if isinstance(m, nn.Conv2d | nn.Linear)), None)
            if conv is None:
                continue  # e.g. a universal inverted block without any spatial convolution
            conv_facts = _conv_facts(conv)
            sites.append(
                Site(
                    path=f"{path}.{found[0]}",
                    anchor=anchor,
                    channels=conv_facts.in_channels,
                    frames=frames,
                    stage=stage,
                    block=index,
                    has_skip=facts.has_skip(block),
                    conv=conv_facts,
                    layout=Layout.NT_H_W_C if isinstance(conv, nn.Linear) else Layout.NT_C_H_W,
                )
            )
    return tuple(sites)


def supported_blocks() -> str:
    """Names of the block classes that publish sites, for messages."""
    return ", ".join(sorted({kind.__name__ for kind in BLOCKS}))


def _blocks(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # The exact class: a subclass may compute something else (CondConv routes by the unshifted input).
    return ((path, m) for path, m in backbone.named_modules() if type(m) in BLOCKS)


def _present(block: nn.Module, path: str) -> bool:
    module: Any = block
    for name in path.split("."):
        module = getattr(module, name, None)
    return isinstance(module, nn.Module) and not isinstance(module, nn.Identity)


def _conv_facts(conv: nn.Conv2d | nn.Linear) -> ConvFacts:
    if isinstance(conv, nn.Linear):
        return ConvFacts(
            in_channels=conv.in_features, out_channels=conv.out_features, kernel_size=(1, 1), stride=(1, 1), groups=1
        )
    return ConvFacts(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=tuple(conv.kernel_size),
        stride=tuple(conv.stride),
        groups=conv.groups,
    )
