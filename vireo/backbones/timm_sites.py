"""Sites and taps of backbones, by facts per class: timm's networks, and two of our own.

One row of `BLOCKS` describes one block class: which submodules stand at the anchors, and when the
block has a shortcut. One row of `FLOWS` describes one network class: its parts in the order in which
they run, so that a branch can read what passes between them. Nothing here looks at a timm model's
name: every one built from these classes is supported, those of the future too.

Strides and frames, and with them the stages, are measured by one run on the meta device (no arithmetic).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import _efficientnet_blocks as efficientnet
from timm.models import convnext, mobilenetv3, regnet, resnet
from timm.models import efficientnet as efficientnets
from torch import Tensor, nn

from vireo.backbones.c2d import C2D, c2d_resnet50
from vireo.backbones.mfnet import MFNet3D, mfnet
from vireo.contracts import Anchor, ConvFacts, Site, Tap
from vireo.errors import UnknownNameError, UnsupportedPairError, UsageError, WeightsError
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

REMEDY = (
    "give a file instead: pretrained='weights.safetensors' (on the command line: --pretrained PATH); or "
    "pretrained=False (--pretrained false) starts from random weights, which need more clips and epochs"
)
"""What to do without pretrained weights."""

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
class Flow:
    """The parts of one network class in the order in which they run; then comes ``forward_head``.

    ``blocks.*`` stands for every child of ``blocks``.
    """

    stem: tuple[str, ...]
    stages: tuple[str, ...]
    tail: tuple[str, ...] = ()
    layout: Layout = Layout.NT_C_H_W
    """What the network takes and hands on from part to part."""


_RESNET_STEM = ("conv1", "bn1", "act1", "maxpool")

FLOWS: Mapping[type[nn.Module], Flow] = {
    resnet.ResNet: Flow(stem=_RESNET_STEM, stages=("layer1", "layer2", "layer3", "layer4")),
    C2D: Flow(stem=_RESNET_STEM, stages=("layer1", "pool2", "layer2", "layer3", "layer4")),
    regnet.RegNet: Flow(stem=("stem",), stages=("s1", "s2", "s3", "s4"), tail=("final_conv",)),
    efficientnets.EfficientNet: Flow(stem=("conv_stem", "bn1"), stages=("blocks.*",), tail=("conv_head", "bn2")),
    mobilenetv3.MobileNetV3: Flow(stem=("conv_stem", "bn1"), stages=("blocks.*",)),
    convnext.ConvNeXt: Flow(stem=("stem",), stages=("stages.*",), tail=("norm_pre",)),
    MFNet3D: Flow(
        stem=("stem", "pool"),
        stages=("conv2", "conv3", "conv4", "conv5"),
        tail=("tail",),
        layout=Layout.N_C_T_H_W,
    ),
}

OWN: Mapping[str, Callable[..., nn.Module]] = {"mfnet": mfnet, "c2d_resnet50": c2d_resnet50}
"""Backbones that timm lacks: constructors that take the number of frames first."""


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
    Family(name="C2D", examples=("c2d_resnet50",)),
    Family(name="MFNet-3D", examples=("mfnet",)),
)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What one run of a backbone on the meta device shows."""

    features: int
    """D, width of the pooled features."""
    rows: int
    """Rows of pooled features per clip: T of a 2D network, 1 of one that averages over time itself."""
    layout: Layout
    """What the network takes: (N·T, C, H, W), or (N, C, T, H, W)."""
    strides: Mapping[str, int]
    """Output stride of every known block, by path, in the order in which they run."""
    frames: Mapping[str, int]
    """T of every known block's output."""
    taps: tuple[Tap, ...]
    """What branches can read, in the order in which they run."""


def build_backbone(name: str, options: Mapping[str, Any], frames: int) -> nn.Module:
    """A network without its classifier and with random weights.

    Args:
        name: timm's name of it, with or without a pretrained tag (``resnet50.a1_in1k``), or one of `OWN`.
        options: extra keyword arguments of the constructor. ``stride_in_1x1`` (ResNets of bottlenecks): the
            stages' stride in the first convolution of their first block, as in He et al. 2016 and Caffe's weights.
        frames: T; only networks that pool over time depend on it.

    Raises:
        UnknownNameError: there is no such model.
        UsageError: options that the constructor refuses.
    """
    if not isinstance(name, str) or not (name in OWN or timm.is_model(name)):
        raise UnknownNameError("backbone", str(name), [*OWN, *timm.list_models()])
    reserved = {"num_classes", "pretrained", "features_only", "checkpoint_path", "num_frames"} & set(options)
    if reserved:
        raise UsageError(f"backbone_options can't hold {', '.join(sorted(reserved))}; create_model sets that itself")
    given = dict(options)
    early_stride = given.pop("stride_in_1x1", False)
    try:
        if name in OWN:
            network = OWN[name](frames, **given)
        else:
            network = timm.create_model(name, pretrained=False, num_classes=0, **given)
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        shown = f" with {dict(options)}" if options else ""
        raise UsageError(f"backbone {name!r} can't be built{shown}: {reason}") from error
    if early_stride:
        _move_stride(network, name)
    return network


def _move_stride(network: nn.Module, name: str) -> None:
    blocks = [block for block in network.modules() if type(block) is resnet.Bottleneck]
    if not blocks:
        raise UsageError(f"stride_in_1x1 is an option of ResNets made of bottlenecks; {name!r} has none")
    if all(block.conv2.stride == (1, 1) for block in blocks):
        raise UsageError(f"stride_in_1x1: the 3×3 convolutions of {name!r} have no stride to move (pooling has it)")
    for block in blocks:
        first, spatial = block.conv1, block.conv2
        first.stride, spatial.stride = spatial.stride, first.stride


def pretrained_config(backbone: nn.Module) -> Mapping[str, Any]:
    """What timm states of the backbone's pretrained weights: mean, std, input_size, classifier, first_conv, ..."""
    config: Any = backbone.pretrained_cfg
    stated: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    return stated


def hub_model(name: str, network: nn.Module, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The timm model whose pretrained weights fit a backbone, and its options: ``c2d_resnet50`` takes ``resnet50``'s.

    Raises:
        WeightsError: timm has no such model.
    """
    if name in OWN:
        name = str(pretrained_config(network).get("architecture"))
        if not timm.is_model(name):
            raise WeightsError(f"No hub has weights for {name!r}; {REMEDY}.")
    return name, {option: value for option, value in options.items() if option != "stride_in_1x1"}


def input_size(backbone: nn.Module) -> tuple[int, int]:
    """Height and width that timm's configuration states, pixels."""
    size = pretrained_config(backbone).get("input_size") or (3, 224, 224)
    return size[-2], size[-1]


def flow_of(backbone: nn.Module) -> tuple[str, ...]:
    """Paths of the parts of a network in the order in which they run; () for a class without a row in `FLOWS`."""
    flow = FLOWS.get(type(backbone))
    if flow is None:
        return ()
    return tuple(path for part in (*flow.stem, *flow.stages, *flow.tail) for path in _expand(backbone, part))


def run(
    backbone: nn.Module, images: Tensor, flow: Sequence[str], taps: Sequence[str]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Pooled features, as ``backbone(images)`` gives them, and what passes at ``taps``.

    Args:
        backbone: a network whose class has a row in `FLOWS` (any network, if there are no taps).
        images: in the network's layout.
        flow: from :func:`flow_of`.
        taps: paths out of it.
    """
    if not taps:
        return backbone(images), ()
    x, seen = images, {}
    for path in flow:
        x = backbone.get_submodule(path)(x)
        if path in taps:
            seen[path] = x
    head: Any = backbone.forward_head
    return head(x, pre_logits=True), tuple(seen[path] for path in taps)


def measure(backbone: nn.Module, name: str, in_chans: int, frames: int) -> Geometry:
    """Width of the features, strides and frames of the blocks and taps, by one run on the meta device.

    Raises:
        UnsupportedPairError: the network does not turn images into pooled features (B, D).
    """
    height, width = input_size(backbone)
    facts = FLOWS.get(type(backbone))
    layout = facts.layout if facts else Layout.NT_C_H_W
    shape = (frames, in_chans, height, width) if layout == Layout.NT_C_H_W else (1, in_chans, frames, height, width)
    meta = {k: v.to("meta") for k, v in (*backbone.named_parameters(), *backbone.named_buffers())}
    strides: dict[str, int] = {}
    times: dict[str, int] = {}
    channels: dict[str, int] = {}

    def hook_for(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(block: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == len(shape):
                strides[path] = 2 ** round(math.log2(height / output.shape[-2]))  # 176 pixels end in 6, not 5.5
                times[path] = output.shape[0 if layout == Layout.NT_C_H_W else 2]
                channels[path] = output.shape[1]

        return hook

    flow = flow_of(backbone)
    blocks = [path for path, _ in _blocks(backbone)]
    hooks = [
        backbone.get_submodule(path).register_forward_hook(hook_for(path)) for path in dict.fromkeys([*blocks, *flow])
    ]
    training = backbone.training
    try:
        with torch.no_grad():
            clip = torch.empty(shape, device="meta")
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

    def tap(path: str, anchor: Anchor) -> Tap:
        stage = strides[path].bit_length() - 1
        return Tap(path=path, anchor=anchor, channels=channels[path], frames=times[path], stage=stage, layout=layout)

    taps: list[Tap] = []
    if facts:
        taps.append(tap(_expand(backbone, facts.stem[-1])[-1], Anchor.STEM_OUT))
        last_of_stage = {
            strides[path]: path for part in facts.stages for path in _expand(backbone, part) if path in strides
        }
        taps += [tap(path, Anchor.STAGE_OUT) for path in last_of_stage.values()]
    return Geometry(
        features=output.shape[1],
        rows=output.shape[0],
        layout=layout,
        strides={path: strides[path] for path in strides if path in set(blocks)},
        frames={path: times[path] for path in times if path in set(blocks)},
        taps=tuple(taps),
    )


def publish_sites(backbone: nn.Module, geometry: Geometry) -> tuple[Site, ...]:
    """Every site of the backbone's known blocks, in the order in which they run.

    Args:
        backbone: the network.
        geometry: from :func:`measure`.
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
                    frames=geometry.frames[path],
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


def _expand(backbone: nn.Module, part: str) -> tuple[str, ...]:
    parent, star, _ = part.partition(".*")
    if not star:
        return (part,)
    return tuple(f"{parent}.{name}" for name, _ in backbone.get_submodule(parent).named_children())


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
