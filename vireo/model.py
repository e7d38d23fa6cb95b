"""create_model: a temporal module on a backbone, pretrained, ready to classify clips.

A clip's frames are normalised and go through the backbone, which has temporal modules at its sites. A
branch reads what passes at a tap of it; its features join the classifier's, or it has logits of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vireo.backbones import (
    FAMILIES,
    Weights,
    build_backbone,
    fetch_weights,
    first_convolution,
    fit_stem,
    fit_weights,
    flow_of,
    hub_model,
    measure,
    name_faults,
    pretrained_config,
    publish_sites,
    read_weights,
    run,
    supported_blocks,
)
from vireo.config import ModelConfig
from vireo.contracts import Branch, BranchOutputs, Site, SiteModule, Tap, TemporalModule, occupied
from vireo.errors import UnsupportedPairError, UsageError, WeightsError
from vireo.shapes import Layout, consensus, fold_time, split_time
from vireo.surgery import apply_pruning
from vireo.temporal import build_temporal, temporal_modules
from vireo.temporal.base import note_gates


class Outputs(NamedTuple):
    """What :meth:`Recognizer.forward_outputs` gives, for N clips and K classes."""

    logits: Tensor
    """(N, K)."""
    auxiliary: Tensor | None
    """(N, K) logits of a second path that has a loss of its own; None without one."""
    features: Tensor
    """(N, D): what the classifier sees: the frames' pooled features, averaged over time, and a branch's features."""
    visuals: dict[str, Tensor] | None
    """Pictures of what the modules do (gates, key points), by name; None unless asked for."""


class Recognizer(nn.Module):
    """A clip classifier: normalise, run the backbone over all frames, average the frames' logits.

    Clips are (N, T, C, H, W), uint8 or floating point in [0, 1]; C is 3, or 10 for stacked flow. They are
    best held in memory as N, T, H, W, C, which is what decoders give: then no copy is made before the
    first convolution.

    Attributes:
        config: what `create_model` needs to build the same network; mean and std are filled in.
        num_classes: K.
        sites: where temporal modules were inserted.
        loss_weights: of the loss on the logits, and of that on a branch's own logits.
        backbone: the network, with the temporal modules in it.
        branches: paths beside it, by the name of their module.
        dropout, classifier: the head, applied to each frame's features.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_classes: int,
        backbone: nn.Module,
        features: int,
        rows: int,
        layout: Layout = Layout.NT_C_H_W,
        sites: tuple[Site, ...] = (),
        branches: Mapping[str, Branch] | None = None,
        loss_weights: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        assert config.mean is not None and config.std is not None  # create_model fills them in
        self.config, self.num_classes, self.sites, self.loss_weights = config, num_classes, sites, loss_weights
        self.backbone = backbone
        self.branches = nn.ModuleDict(dict(branches or {}))
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(features + sum(b.features for b in self._branches()), num_classes)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        self._rows, self._layout = rows, layout  # rows of pooled features per clip: T, or 1
        self._taps = tuple(branch.tap.path for branch in self._branches())
        self._flow = flow_of(backbone)
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
        """Clips (N, T, C, H, W) to logits (N, K); for dtypes see the class.

        Raises:
            UsageError: clips of another shape or dtype, or too small for the network.
        """
        return self.forward_outputs(clips).logits

    def forward_outputs(self, clips: Tensor, visuals: bool = False) -> Outputs:
        """As :meth:`forward`, with a branch's own logits, features and, on request, visuals."""
        images = self._images(clips)
        gates: dict[str, Tensor] = {}
        try:
            with note_gates(self.backbone, len(clips), gates) if visuals else nullcontext():
                pooled, tapped = run(self.backbone, images, self._flow, self._taps)
        except RuntimeError as error:
            if not _TOO_SMALL.search(str(error)):
                raise
            height, width = clips.shape[-2:]
            raise UsageError(f"Images of {height} × {width} pixels are too small for {self.config.backbone}") from error
        given = [branch(tap, visuals) for branch, tap in zip(self._branches(), tapped, strict=True)]
        features = split_time(pooled, self._rows).mean(dim=1)
        joining = [g.features for g in given if g.features is not None]
        if joining:
            features = torch.cat((features, *(f.to(features.dtype) for f in joining)), dim=1)
            logits = self._score(features)
        else:
            logits = consensus(self._score(pooled), self._rows)
        auxiliary: Tensor | None = None
        for g in given:
            if g.logits is not None:
                own = _at_least_float32(g.logits)
                auxiliary = own if auxiliary is None else auxiliary + own
        return Outputs(
            logits=logits if auxiliary is None else logits + auxiliary,
            auxiliary=auxiliary,
            features=features,
            visuals=gates | _named_visuals(self.branches.keys(), given) if visuals else None,
        )

    def _branches(self) -> tuple[Branch, ...]:
        return tuple(self.branches.values())  # type: ignore[arg-type]  # stubs: a ModuleDict of modules

    def _score(self, features: Tensor) -> Tensor:  # (…, D) → (…, K)
        return _at_least_float32(self.classifier(self.dropout(features)))  # the mean of T rounded scores isn't

    def _images(self, clips: Tensor) -> Tensor:  # (N, T, C, H, W) → what the backbone takes, normalised
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
        images = (frames * scale).add_(self.shift).contiguous(memory_format=torch.channels_last)
        if self._layout == Layout.N_C_T_H_W:
            return split_time(images, self.num_frames).transpose(1, 2)  # a view: channels_last is channels_last_3d
        return images


def _at_least_float32(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _named_visuals(names: Iterable[str], given: Sequence[BranchOutputs]) -> dict[str, Tensor]:
    pairs = zip(names, given, strict=True)
    return {f"{name}.{key}": value for name, g in pairs for key, value in (g.visuals or {}).items()}


def create_model(
    temporal: str,
    backbone: str,
    *,
    num_classes: int,
    num_frames: int = 8,
    pretrained: bool | str | Path = False,
    modality: Literal["rgb", "flow"] = "rgb",
    flow_fields: int = 5,
    dropout: float = 0.5,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    pruned: Mapping[str, Any] | None = None,
    **temporal_options: Any,
) -> Recognizer:
    """A temporal module on a backbone.

    Args:
        temporal: name of the temporal module, e.g. ``tei``, or several joined by +, e.g. ``tsm+tfdem``;
            `vireo models` lists them.
        backbone: timm's name of a 2D backbone, e.g. ``resnet50``; or ``mfnet`` or ``c2d_resnet50``.
        num_classes: K.
        num_frames: T, frames per clip.
        pretrained: True for timm's weights (from its hub or the local cache of it), or the path of a
            .safetensors or .pth file, or of a Vireo checkpoint to fine-tune from.
        modality: rgb, or flow: stacked optical flow. Pretrained RGB weights of the first convolution are then
            averaged over RGB and repeated (cross-modality initialisation, Wang et al., ECCV 2016).
        flow_fields: flow fields stacked at each of the T positions; clips then have 2 · flow_fields channels.
        dropout: probability of dropping a feature before the classifier.
        mean: channel means of the input, of [0, 1]. By default those that the weights file states,
            else those of timm's configuration of the backbone.
        std: channel deviations, likewise.
        backbone_options: further arguments of the backbone's constructor, e.g. ``{"drop_path_rate": 0.1}``.
        pruned: what `vireo prune` took away, as a checkpoint states it.
        **temporal_options: options of the temporal module, e.g. ``stages=(4, 5)``.

    Returns:
        The model in training mode, in channels_last memory.

    Raises:
        UnknownNameError: no such module or backbone; the message suggests the nearest names.
        UnsupportedPairError: this module can't go into this backbone.
        UsageError: any other wrong argument.
        WeightsError: pretrained weights that can't be had or don't fit.
    """
    modules = build_temporal(temporal, temporal_options)
    if type(num_classes) is not int or num_classes < 1:
        raise UsageError(f"num_classes is {num_classes!r}; it must be an integer of at least 1")
    if type(num_frames) is not int or num_frames < 1:
        raise UsageError(f"num_frames is {num_frames!r}; it must be an integer of at least 1")
    if modality not in ("rgb", "flow"):
        raise UsageError(f"modality is {modality!r}; use rgb or flow")
    options = dict(backbone_options or {})
    given = {**options, "in_chans": 2 * flow_fields} if modality == "flow" else options
    in_chans = given.get("in_chans", 3)
    network = build_backbone(backbone, given, num_frames)
    geometry = measure(network, backbone, in_chans, num_frames)
    plan = plan_insertion(modules, temporal, backbone, publish_sites(network, geometry), geometry.layout)

    weights: Weights | None = None
    if pretrained == "":
        raise UsageError("pretrained is empty; it takes true, false or the path of a weights file")
    if pretrained is True:
        weights = fetch_weights(*hub_model(backbone, network, options))
    elif pretrained:
        weights = read_weights(str(pretrained))
    plain: set[str] = set()  # the backbone's tensors, where a Vireo checkpoint had them
    if weights is not None:  # before the surgery, so no weight needs a new name
        average = modality == "flow"
        if not weights.whole:
            fit_weights(network, weights, average_stem=average)
        elif backbone_fits(network, weights, average_stem=average):
            fit_weights(network, backbone_of(weights), average_stem=average)
            plain = {f"backbone.{name}" for name in network.state_dict()}
    stated = pretrained_config(network)
    _insert(plan, network)
    sites = tuple(site for _, sites in plan for site in sites)
    apply_pruning(network, sites, pruned or {})
    branches = make_branches(modules, temporal, backbone, geometry.taps, num_classes)

    rgb = modality == "rgb"
    config = ModelConfig(
        temporal=temporal,
        backbone=backbone,
        num_frames=num_frames,
        modality=modality,
        flow_fields=flow_fields,
        dropout=dropout,
        temporal_options={
            k: list(v) if isinstance(v, tuple) else v for module in modules for k, v in module.options().items()
        },
        backbone_options=options,
        pruned=dict(pruned or {}),
        mean=_per_channel(
            "mean", mean, weights.mean if weights else None, stated.get("mean") if rgb else _FLOW_MEAN, in_chans
        ),
        std=_per_channel(
            "std", std, weights.std if weights else None, stated.get("std") if rgb else _FLOW_STD, in_chans
        ),
    )
    losses = [module.loss_weights for module in modules]
    model = Recognizer(
        config,
        num_classes=num_classes,
        backbone=network,
        features=geometry.features,
        rows=geometry.rows,
        layout=geometry.layout,
        sites=sites,
        branches=branches,
        loss_weights=(min(main for main, _ in losses), min(own for _, own in losses)),
    )
    if weights is not None and weights.whole:
        _continue_from(model, weights, plain)
    return to_channels_last(model)


def to_channels_last(model: Recognizer, device: str | torch.device | None = None) -> Recognizer:
    """Move a model, in place, to a device and to channels_last memory (channels_last_3d where it has five axes)."""
    with torch.no_grad():
        if device is not None:
            model.to(device)
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim in (4, 5):
                form = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
                tensor.data = tensor.data.contiguous(memory_format=form)
    return model


def from_config(config: ModelConfig, *, num_classes: int, pretrained: bool | str | Path = False) -> Recognizer:
    """The model that a configuration describes; see :func:`create_model`, also for errors."""
    return create_model(
        config.temporal,
        config.backbone,
        num_classes=num_classes,
        num_frames=config.num_frames,
        pretrained=pretrained,
        modality=config.modality,
        flow_fields=config.flow_fields,
        dropout=config.dropout,
        mean=config.mean,
        std=config.std,
        backbone_options=config.backbone_options,
        pruned=config.pruned,
        **config.temporal_options,
    )


Plan = tuple[tuple[SiteModule, tuple[Site, ...]], ...]
"""Which module goes to which sites."""


def plan_insertion(
    modules: Sequence[TemporalModule], temporal: str, backbone: str, sites: Sequence[Site], layout: Layout
) -> Plan:
    """The sites where each module goes, in a backbone that takes this layout.

    Raises:
        UnsupportedPairError: there are none for one of them, or two want the same; the message says why and what works.
    """
    plan = tuple(
        (module, choose_sites(module, temporal, backbone, sites, layout))
        for module in modules
        if isinstance(module, SiteModule)
    )
    paths = [site.path for _, chosen in plan for site in chosen]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise UnsupportedPairError(f"{temporal!r}: two modules want the same place, {twice} of {backbone!r}; use one")
    return plan


def choose_sites(
    module: SiteModule, temporal: str, backbone: str, sites: Sequence[Site], layout: Layout
) -> tuple[Site, ...]:
    """The sites where a module goes: by default its anchor, its stages, blocks with a shortcut.

    Raises:
        UnsupportedPairError: there are none; the message says why and what works.
    """
    chosen = module.choose(sites)
    if chosen:
        return chosen
    there = [site for site in sites if site.anchor == module.anchor and site.has_skip]
    refused = [(site.path, reason) for site in there if (reason := module.refuses(site))]
    if layout == Layout.N_C_T_H_W:
        why = "it is a 3D network, whose own convolutions see several frames"
    elif not sites:
        why = f"none of its blocks is of a type that Vireo knows ({supported_blocks()})"
    elif not there:
        why = f"none of its blocks with a shortcut has a place of the kind {module.anchor}"
    elif len(refused) == len(there):
        why = "{1} ({0}, for one)".format(*refused[0])
    else:
        why = f"it is to go into stages {list(module.stages)}; there is room in {sorted({s.stage for s in there})}"
    raise _unsupported(temporal, backbone, why)


def _unsupported(temporal: str, backbone: str, why: str) -> UnsupportedPairError:
    return UnsupportedPairError(
        f"Temporal module {temporal!r} can't go into backbone {backbone!r}: {why}.\n"
        "'tsn' works on it, and `vireo models --pairs` shows what works where."
    )


def make_branches(
    modules: Sequence[TemporalModule], temporal: str, backbone: str, taps: Sequence[Tap], num_classes: int
) -> dict[str, Branch]:
    """The branches of those modules that have one, by the module's name.

    Raises:
        UnsupportedPairError: the backbone has no tap that a branch needs.
    """
    found = {}
    for name, module in zip(temporal.split("+"), modules, strict=True):
        try:
            branch = module.branch(taps, num_classes)
        except UnsupportedPairError as error:
            raise _unsupported(temporal, backbone, str(error)) from None
        if branch is not None:
            found[name] = branch
    return found


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A temporal module and a backbone."""

    temporal: str
    backbone: str
    reason: str | None
    """Why they don't go together; None if they do."""


def supported_pairs(
    backbones: Sequence[str] | None = None, modules: Sequence[str] | None = None, num_frames: int = 8
) -> Iterator[Pair]:
    """Which temporal module works on which backbone, found by building them on the meta device: no weights are made.

    Args:
        backbones: names; by default every example of the tested families.
        modules: names of temporal modules; by default all.
        num_frames: T.

    Raises:
        UnknownNameError: no such module or backbone.
    """
    for backbone in backbones or [name for family in FAMILIES for name in family.examples]:
        for name in modules or temporal_modules.names():
            reason: str | None = None
            try:
                with torch.device("meta"):
                    create_model(name, backbone, num_classes=2, num_frames=num_frames)
            except UnsupportedPairError as error:
                reason = str(error)
            yield Pair(temporal=name, backbone=backbone, reason=reason)


def count_parameters(model: nn.Module) -> int:
    """Parameters, trainable or not; running statistics of norms don't count."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: Recognizer, size: int | tuple[int, int] = 224) -> int:
    """Multiply-accumulates of one clip.

    Convolutions, linear layers and matrix products, as torch's own counter has them (its FLOPs / 2);
    norms, activations, pooling, shifts and gates aren't counted. Runs on the meta device: nothing is
    computed, and the model's weights aren't touched.

    Args:
        model: in any mode.
        size: height and width of the frames, pixels; or one number for both.
    """
    height, width = (size, size) if isinstance(size, int) else size
    meta = {k: torch.empty_like(v, device="meta") for k, v in (*model.named_parameters(), *model.named_buffers())}
    clip = torch.empty(1, model.num_frames, len(model.mean), height, width, device="meta")
    with torch.no_grad(), evaluating(model), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, meta, (clip,))
    return int(counter.get_total_flops()) // 2


def compile_outputs(model: Recognizer) -> None:
    """Have :meth:`Recognizer.forward_outputs` of this one compiled by torch.compile when it is first used."""
    compiled = torch.compile(Recognizer.forward_outputs)
    model.forward_outputs = MethodType(compiled, model)  # type: ignore[method-assign]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:  # one by one: partly frozen models mix both
            module.training = training


def _insert(plan: Plan, network: nn.Module) -> None:
    for module, sites in plan:
        for site in sites:
            leaf = network.get_submodule(site.path)
            assert not occupied(leaf)  # plan_insertion sees to it
            new = module.insert(site, leaf)
            if new is not leaf:
                network.set_submodule(site.path, new)


def backbone_of(weights: Weights) -> Weights:
    """The backbone's part of a Vireo checkpoint, by the plain backbone's names, temporal modules left out."""
    tensors = {k.removeprefix("backbone."): v for k, v in weights.tensors.items() if k.startswith("backbone.")}
    return replace(weights, tensors={k: v for k, v in tensors.items() if ".temporal." not in k}, describes="")


def backbone_fits(network: nn.Module, weights: Weights, *, average_stem: bool) -> bool:
    """Whether a Vireo checkpoint holds the plain backbone, so that any module can be put into it."""
    own, given = network.state_dict(), dict(backbone_of(weights).tensors)
    stem = f"{first_convolution(network)}.weight"
    if stem in given and stem in own:
        given[stem] = fit_stem(given[stem], own[stem], average=average_stem)
    return not name_faults(own, given)


def _continue_from(model: Recognizer, weights: Weights, loaded: set[str]) -> None:
    """Load what a Vireo checkpoint holds beyond the plain backbone: its temporal modules, if the model has the same.

    A model with modules that the file lacks starts them anew, and one without any leaves the file's behind.
    Where modules changed the backbone's own layers (mstsm, fe, pruning), the file must fit as a whole.

    Args:
        model: after the surgery.
        weights: of a Vireo checkpoint.
        loaded: names of the backbone's tensors if they are in the model already, else nothing.
    """
    own = {k: v for k, v in model.state_dict().items() if not is_classifier(k) and k not in loaded}
    given = {k: v for k, v in weights.tensors.items() if not is_classifier(k) and k not in loaded}
    if loaded and (not own or not given):
        return
    stem = f"backbone.{first_convolution(model.backbone)}.weight"
    if stem in given and stem in own:
        given[stem] = fit_stem(given[stem], own[stem], average=model.config.modality == "flow")
    faults = name_faults(own, given)
    if faults:
        raise WeightsError(
            f"{weights.source} holds {weights.describes}; that does not fit {model.config.temporal!r} on "
            f"{model.config.backbone!r} with these options: {faults}.\n"
            "`--init` goes on with the file's own network; weights of the backbone alone fit any module."
        )
    model.load_state_dict(given, strict=False)


def is_classifier(name: str) -> bool:
    """Whether a tensor of a model's state depends on the classes."""
    return _CLASSIFIER.search(name) is not None


_TOO_SMALL = re.compile(r"[Kk]ernel size can't be greater|[Oo]utput size is too small")
_CLASSIFIER = re.compile(r"^(branches\..+\.)?classifier\.")
_FLOW_MEAN, _FLOW_STD = (128 / 255,), (0.226,)  # TSN's: flow images are centred on 128; the mean of RGB's deviations


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
        if of_weights is not None and len(of_weights) != channels and of_timm in (_FLOW_MEAN, _FLOW_STD):
            of_weights = None  # RGB weights state nothing about flow
        values = tuple(of_weights or of_timm or ({"mean": (0.0,), "std": (1.0,)}[name]))
        if len(values) != channels:  # RGB values for other inputs: their average
            values = (sum(values) / len(values),)
    return values if len(values) == channels else values * channels
