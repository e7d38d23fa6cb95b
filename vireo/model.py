"""create_model: a temporal module on a 2D backbone, pretrained, ready to classify clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vireo.backbones import (
    FAMILIES,
    Weights,
    build_backbone,
    fetch_weights,
    fit_weights,
    measure,
    pretrained_config,
    publish_sites,
    read_weights,
    supported_blocks,
)
from vireo.config import ModelConfig
from vireo.contracts import Site, TemporalModule
from vireo.errors import UnsupportedPairError, UsageError, WeightsError
from vireo.shapes import consensus, fold_time, split_time
from vireo.temporal import build_temporal, temporal_modules


class Outputs(NamedTuple):
    """What :meth:`Recognizer.forward_outputs` gives, for N clips and K classes."""

    logits: Tensor
    """(N, K)."""
    auxiliary: Tensor | None
    """(N, K) logits of a second path that has a loss of its own; None without one."""
    features: Tensor
    """(N, D): the frames' pooled features, averaged over time."""
    visuals: dict[str, Tensor] | None
    """Pictures of what the modules do (gates, key points), by name; None unless asked for."""


class Recognizer(nn.Module):
    """A clip classifier: normalise, run the 2D backbone over all frames, average the frames' logits.

    Clips are (N, T, 3, H, W), uint8 or floating point in [0, 1]. They are best held in memory as
    N, T, H, W, C, which is what decoders give: then no copy is made before the first convolution.

    Attributes:
        config: what `create_model` needs to build the same network; mean and std are filled in.
        num_classes: K.
        sites: where temporal modules were inserted.
        backbone: the timm network, with the temporal modules in it.
        dropout, classifier: the head, applied to each frame's features.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, config: ModelConfig, *, num_classes: int, backbone: nn.Module, features: int, sites: tuple[Site, ...]
    ) -> None:
        super().__init__()
        assert config.mean is not None and config.std is not None  # create_model fills them in
        self.config, self.num_classes, self.sites = config, num_classes, sites
        self.backbone = backbone
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(features, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        # (x − mean) / std as x · scale + shift. Not in the state dict: the values are the config's.
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.mean, config.std))
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    @property
    def num_frames(self) -> int:
        """T, frames per clip."""
        return self.config.num_frames

    @property
    def mean(self) -> tuple[float, ...]:
        """Channel means subtracted from inputs in [0, 1]."""
        assert self.config.mean is not None
        return self.config.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Channel deviations by which inputs are divided."""
        assert self.config.std is not None
        return self.config.std

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, T, 3, H, W) to logits (N, K); for dtypes see the class.

        Raises:
            UsageError: clips of another shape or dtype.
        """
        return consensus(self._score(self._pooled(clips)), self.num_frames)

    def forward_outputs(self, clips: Tensor, visuals: bool = False) -> Outputs:
        """As :meth:`forward`, with features and, on request, visuals."""
        pooled = self._pooled(clips)
        return Outputs(
            logits=consensus(self._score(pooled), self.num_frames),
            auxiliary=None,
            features=split_time(pooled, self.num_frames).mean(dim=1),
            visuals={} if visuals else None,
        )

    def _score(self, pooled: Tensor) -> Tensor:  # (N·T, D) → (N·T, K)
        scores: Tensor = self.classifier(self.dropout(pooled))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))  # the mean of T rounded scores isn't

    def _pooled(self, clips: Tensor) -> Tensor:  # (N, T, C, H, W) → (N·T, D)
        channels = self.scale.shape[1]
        if clips.ndim != 5 or clips.shape[1] != self.num_frames or clips.shape[2] != channels:
            raise UsageError(
                f"Clips of shape {tuple(clips.shape)}; this model takes (N, {self.num_frames}, {channels}, H, W): "
                f"clips, frames, channels, height, width."
            )
        if clips.dtype != torch.uint8 and not clips.is_floating_point():
            raise UsageError(f"Clips of dtype {clips.dtype}; this model takes uint8, or floating point in [0, 1].")
        frames, scale = fold_time(clips), self.scale
        if clips.dtype == torch.uint8:
            scale = scale / 255
        else:
            frames = frames.to(scale.dtype)  # the model's own: float64 or float16 clips come from NumPy and elsewhere
        normalised = (frames * scale).add_(self.shift)
        features: Tensor = self.backbone(normalised.contiguous(memory_format=torch.channels_last))
        return features


def create_model(
    temporal: str,
    backbone: str,
    *,
    num_classes: int,
    num_frames: int = 8,
    pretrained: bool | str | Path = False,
    dropout: float = 0.5,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    **temporal_options: Any,
) -> Recognizer:
    """A temporal module on a 2D backbone.

    Args:
        temporal: name of the temporal module: tsn, tsm, tei, mem, tim, se_tim.
        backbone: timm's name of the backbone, e.g. ``resnet50``.
        num_classes: K.
        num_frames: T, frames per clip.
        pretrained: True for timm's weights (from its hub or the local cache of it), or the path of a
            .safetensors or .pth file, or of a Vireo checkpoint to fine-tune from.
        dropout: probability of dropping a feature before the classifier.
        mean: channel means of the input, of [0, 1]. By default those that the weights file states,
            else those of timm's configuration of the backbone.
        std: channel deviations, likewise.
        backbone_options: further arguments of timm's constructor, e.g. ``{"drop_path_rate": 0.1}``.
        **temporal_options: options of the temporal module, e.g. ``stages=(4, 5)``.

    Returns:
        The model in training mode, in channels_last memory.

    Raises:
        UnknownNameError: no such module or backbone; the message suggests the nearest names.
        UnsupportedPairError: this module can't go into this backbone.
        UsageError: any other wrong argument.
        WeightsError: pretrained weights that can't be had or don't fit.
    """
    module = build_temporal(temporal, temporal_options)
    if type(num_classes) is not int or num_classes < 1:
        raise UsageError(f"num_classes is {num_classes!r}; it must be an integer of at least 1")
    if type(num_frames) is not int:
        raise UsageError(f"num_frames is {num_frames!r}; it must be an integer of at least 1")
    options = dict(backbone_options or {})
    network = build_backbone(backbone, options)
    in_chans = options.get("in_chans", 3)
    geometry = measure(network, backbone, in_chans)
    sites = choose_sites(module, temporal, backbone, publish_sites(network, geometry, num_frames))

    weights: Weights | None = None
    if pretrained == "":
        raise UsageError("pretrained is empty; it takes true, false or the path of a weights file")
    if pretrained is True:
        weights = fetch_weights(backbone, options)
    elif pretrained:
        weights = read_weights(str(pretrained))
    if weights is not None:
        fit_weights(network, weights)  # before the surgery, so no weight needs a new name
    _insert(module, network, sites)
    if weights is not None and weights.temporal:
        _fit_temporal(network, weights)

    stated = pretrained_config(network)
    config = ModelConfig(
        temporal=temporal,
        backbone=backbone,
        num_frames=num_frames,
        dropout=dropout,
        temporal_options={k: list(v) if isinstance(v, tuple) else v for k, v in module.options().items()},
        backbone_options=options,
        mean=_per_channel("mean", mean, weights.mean if weights else None, stated.get("mean"), in_chans),
        std=_per_channel("std", std, weights.std if weights else None, stated.get("std"), in_chans),
    )
    model = Recognizer(config, num_classes=num_classes, backbone=network, features=geometry.features, sites=sites)
    return model.to(memory_format=torch.channels_last)


def from_config(config: ModelConfig, *, num_classes: int, pretrained: bool | str | Path = False) -> Recognizer:
    """The model that a configuration describes; see :func:`create_model`, also for errors."""
    return create_model(
        config.temporal,
        config.backbone,
        num_classes=num_classes,
        num_frames=config.num_frames,
        pretrained=pretrained,
        dropout=config.dropout,
        mean=config.mean,
        std=config.std,
        backbone_options=config.backbone_options,
        **config.temporal_options,
    )


def choose_sites(module: TemporalModule, temporal: str, backbone: str, sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites where a module goes: its anchor, its stages, blocks with a shortcut.

    Raises:
        UnsupportedPairError: there are none; the message says why and what works.
    """
    if module.anchor is None:
        return ()
    known = [site for site in sites if site.anchor == module.anchor]
    if not known:
        raise UnsupportedPairError(
            f"Temporal module {temporal!r} can't go into backbone {backbone!r}: none of its blocks is of a type "
            f"that Vireo knows ({supported_blocks()}).\n'tsn' works on it, and `vireo models` lists what else does."
        )
    chosen = tuple(site for site in known if site.stage in module.stages and site.has_skip)
    if not chosen:
        there = sorted({site.stage for site in known if site.has_skip})
        raise UnsupportedPairError(
            f"Temporal module {temporal!r} finds no place in stages {list(module.stages)} of backbone {backbone!r}: "
            f"its blocks with a shortcut are in stages {there}."
        )
    return chosen


def why_unsupported(temporal: str, backbone: str) -> str | None:
    """Why a module can't go into a backbone, or None if it can.

    Raises:
        UnknownNameError: no such module or backbone.
    """
    return next(iter(supported_pairs([backbone], [temporal]))).reason


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A temporal module and a backbone."""

    temporal: str
    backbone: str
    reason: str | None
    """Why they don't go together; None if they do."""


def supported_pairs(backbones: Sequence[str] | None = None, modules: Sequence[str] | None = None) -> Iterator[Pair]:
    """Which temporal module works on which backbone, found by looking for sites; no weights are made.

    Args:
        backbones: timm names; by default every example of the tested families.
        modules: names of temporal modules; by default all.

    Raises:
        UnknownNameError: no such module or backbone.
    """
    for backbone in backbones or [name for family in FAMILIES for name in family.examples]:
        reason: str | None = None
        sites: tuple[Site, ...] = ()
        try:
            with torch.device("meta"):
                network = build_backbone(backbone, {})
                sites = publish_sites(network, measure(network, backbone, 3), 2)
        except UnsupportedPairError as error:
            reason = str(error)
        for name in modules or temporal_modules.names():
            why = reason
            if why is None:
                try:
                    choose_sites(build_temporal(name, {}), name, backbone, sites)
                except UnsupportedPairError as error:
                    why = str(error)
            yield Pair(temporal=name, backbone=backbone, reason=why)


def count_parameters(model: nn.Module) -> int:
    """Parameters, trainable or not; running statistics of norms don't count."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: Recognizer, size: int = 224) -> int:
    """Multiply-accumulates of one clip of size × size pixels.

    Convolutions, linear layers and matrix products, as torch's own counter has them (its FLOPs / 2);
    norms, activations, pooling, shifts and gates aren't counted. Runs on the meta device: nothing is
    computed, and the model's weights aren't touched.
    """
    meta = {k: torch.empty_like(v, device="meta") for k, v in (*model.named_parameters(), *model.named_buffers())}
    clip = torch.empty(1, model.num_frames, len(model.mean), size, size, device="meta")
    with torch.no_grad(), _eval_mode(model), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, meta, (clip,))
    return int(counter.get_total_flops()) // 2


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:  # one by one: partly frozen models mix both
            module.training = training


def _insert(module: TemporalModule, network: nn.Module, sites: Sequence[Site]) -> None:
    for site in sites:
        leaf = network.get_submodule(site.path)
        new = module.insert(site, leaf)
        if new is not leaf:
            parent, _, name = site.path.rpartition(".")
            setattr(network.get_submodule(parent), name, new)


def _fit_temporal(network: nn.Module, weights: Weights) -> None:
    own = {k: v for k, v in network.state_dict().items() if ".temporal." in k}
    if not own:
        return  # e.g. a TSM made from a TEINet's backbone
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.temporal.items()}:
        raise WeightsError(
            f"{weights.source} holds another temporal module, or the same with other options: "
            f"{len(weights.temporal)} tensors where this model has {len(own)}."
        )
    network.load_state_dict(dict(weights.temporal), strict=False)


def _per_channel(
    name: str,
    given: Sequence[float] | None,
    of_weights: Sequence[float] | None,
    of_timm: Sequence[float] | None,
    channels: int,
) -> tuple[float, ...]:
    if given is not None:
        values = tuple(float(v) for v in given)
        if len(values) not in (1, channels):
            raise UsageError(f"{name} is {list(values)}; it must hold {channels} numbers (one per channel) or one")
    else:
        values = tuple(of_weights or of_timm or ({"mean": (0.0,), "std": (1.0,)}[name]))
        if len(values) != channels:  # RGB values for other inputs: their average
            values = (sum(values) / len(values),)
    return values if len(values) == channels else values * channels
