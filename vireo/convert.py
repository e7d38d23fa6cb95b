"""Public checkpoints of other projects as Vireo's own: `vireo convert`.

A file is recognised by the names of its tensors, never by its own name. Read as data, no code in it runs.

    project                       names                                                     becomes
    TSN, TSM (mit-han-lab)        base_model.layer1.0.conv1[.net].weight, new_fc            tsn, tsm on ResNets
                                  base_model.features.2.conv.0[.net].weight                 … on MobileNetV2
    MMAction2                     backbone.layer1.0.conv1.conv[.net].weight, cls_head…      tsn, tsm on ResNets
                                  backbone.layer2.1.conv.0[.net].conv.weight                … on MobileNetV2
                                  backbone.layer1.0.conv1[.net].weight, cls_head…           … on MMPretrain's ResNets
    MFNet-3D (cypw)               conv2.B01.conv_i1.bn.weight, classifier                   tsn on mfnet
    torchvision, timm             layer1.0.conv1.weight, fc                                 ResNets, see below
    torchvision, tonylins         features.2.conv.0[.0].weight, classifier                  MobileNetV2, see below

What is written depends on what the file holds:

- With a classifier of videos: a checkpoint, ready for eval, predict and fine-tuning. The names of the classes
  are in no such file, so they must be given, as a text file of one per line (``--labels``).
- An image model (no classifier, or ImageNet's of 1,000 classes) without labels: a weights file that
  ``--pretrained`` takes. With labels, its names can't tell TSN from TSM, and ``--temporal`` must.
- ``--weights-only``: the backbone's weights, whatever the file holds.

A network that Vireo can't compute exactly is refused, and the message says why; its backbone alone can still be
had by ``--weights-only``:

1. TANet. Its TAM resembles the module `te`, but neither its place nor its arithmetic is the same: it stands
   before the 3×3 convolution, TE after it; and its local branch has a ReLU between the two convolutions, TE's
   has none. (What else differs would fit: the norms fold into the layers before them, missing biases are 0.)
2. TSM with shifts in only some blocks of a stage: the published ResNet-101s shift in every second block. Whole
   stages without shifts are fine (option `stages`).
3. Shifts in front of whole blocks instead of their residual branches, non-local blocks, pooling over time.
4. Networks with 3D convolutions other than MFNet-3D, such as I3D and SlowOnly.

What names can't tell: the part of the channels that is shifted (``fold_div``, 8 in every published file), how
videos are sampled, the number of frames, and whether the stages' stride is in the 3×3 convolution (the rule) or in
the 1×1 before it (Caffe's style, ``stride_in_1x1``). The online demo of TSM on MobileNetV2 shifts from the past
only; its names are an image model's, and as `tsm` its scores would be wrong.
"""

from __future__ import annotations

import hashlib
import json as jsonlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from vireo.backbones import (
    Weights,
    build_backbone,
    fit_weights,
    name_faults,
    pretrained_config,
    read_weights,
)
from vireo.backbones.weights import tensor_fault
from vireo.checkpoint import save_checkpoint, write_atomically
from vireo.config import ViewConfig
from vireo.errors import UsageError, WeightsError, writing
from vireo.model import Recognizer, create_model
from vireo.progress import make_console

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a project names its tensors."""

    name: str
    """For people."""
    signature: str
    """Regular expression that the beginning of one name matches, in files of this format only."""
    naming: Literal["flat", "nested", "torchvision", "mfnet"]
    """Of the parts of a block: conv1, bn1 or 0, 1, 3 in a row; conv1.conv, conv1.bn; 0.0, 0.1; conv_i1.bn."""
    family: Literal["resnet", "mobilenetv2", "mfnet", "timm"]
    prefix: str = ""
    """What the names of the backbone's tensors begin with."""
    rgb: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and deviation of frames, of [0, 1], as the project normalises them; None: as timm states them."""
    flow: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """The same of optical flow."""


_TSM_FLOW = (0.5,), (0.226,)
_MMACTION_FLOW = (128 / 255,), (128 / 255,)

FORMATS: tuple[Format, ...] = (
    Format(name="MFNet-3D (cypw)", signature=r"conv2\.B01\.conv_i1\.", naming="mfnet", family="mfnet"),
    Format(
        name="TSN/TSM (mit-han-lab), ResNet",
        signature=r"base_model\.layer1\.0\.(net\.)?conv1\.",
        naming="flat",
        family="resnet",
        prefix="base_model.",
        rgb=_IMAGENET,
        flow=_TSM_FLOW,
    ),
    Format(
        name="TSN/TSM (mit-han-lab), MobileNetV2",
        signature=r"base_model\.features\.1\.conv\.0\.weight",
        naming="flat",
        family="mobilenetv2",
        prefix="base_model.",
        rgb=_IMAGENET,
        flow=_TSM_FLOW,
    ),
    Format(
        name="MMAction2, ResNet",
        signature=r"backbone\.layer1\.0\.((block|net)\.)?conv1\.conv\.",
        naming="nested",
        family="resnet",
        prefix="backbone.",
        rgb=_IMAGENET,
        flow=_MMACTION_FLOW,
    ),
    Format(
        name="MMAction2, MobileNetV2",
        signature=r"backbone\.layer1\.0\.conv\.0\.conv\.",
        naming="nested",
        family="mobilenetv2",
        prefix="backbone.",
        rgb=_IMAGENET,
        flow=_MMACTION_FLOW,
    ),
    Format(
        name="MMAction2 or MMPretrain, MMPretrain's ResNet",
        signature=r"backbone\.layer1\.0\.((block|net)\.)?conv1\.(net\.)?weight",
        naming="flat",
        family="resnet",
        prefix="backbone.",
        rgb=_IMAGENET,
        flow=_MMACTION_FLOW,
    ),
    Format(
        name="torchvision or timm, ResNet",
        signature=r"layer1\.0\.((block|net)\.)?conv1\.(net\.)?weight",
        naming="flat",
        family="resnet",
    ),
    Format(
        name="torchvision, MobileNetV2",
        signature=r"features\.1\.conv\.0\.0\.weight",
        naming="torchvision",
        family="mobilenetv2",
    ),
    Format(
        name="tonylins, MobileNetV2",
        signature=r"features\.1\.conv\.0\.weight",
        naming="flat",
        family="mobilenetv2",
    ),
)
"""Every format, the most telling first."""

_TIMM = Format(name="timm", signature="", naming="flat", family="timm")
_VIDEO_CLASSIFIERS = ("new_fc", "base_model.fc", "base_model.classifier", "cls_head.fc_cls")
_CLASSIFIERS = (*_VIDEO_CLASSIFIERS, "head.fc", "fc", "classifier", "classifier.1")
_STEMS = ("conv1.weight", "conv1.0.weight", "conv_stem.weight", "stem.conv.weight")

# What stands in front of a convolution (a shift, or its wrapper), then the parts that Vireo lacks: what a
# name looks like, what is left of it (None: nothing), and what the part is.
_SHIFT = re.compile(r"^(layer\d\.\d+\.conv1(?:\.conv)?|layer\d\.\d+\.conv\.0|features\.\d+\.conv\.0)\.net\.")
_FOREIGN: tuple[tuple[re.Pattern[str], str | None, str], ...] = (
    (
        re.compile(r"^layer\d\.\d+\.tam\..*"),
        None,
        "TANet's temporal adaptive modules (TAM), which stand elsewhere than te and have another local branch",
    ),
    (re.compile(r"^layer\d\.\d+\.(nl|non_local_block)\..*"), None, "non-local blocks"),
    (re.compile(r"^(layer\d)\.net\."), r"\1.", "pooling over time between its stages"),
    (re.compile(r"^(layer\d\.\d+)\.net\."), r"\1.", "shifts in front of whole blocks, not of their residual branches"),
    (re.compile(r"^(layer\d\.\d+)\.block\."), r"\1.", ""),
)
_WHOLE_BLOCKS = _FOREIGN[3][2]


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """A file's tensors under the names of Vireo's state dict, and what they show of the network."""

    format: Format
    tensors: Mapping[str, Tensor]
    """``backbone.…``, ``classifier.weight`` and ``classifier.bias``; floating point ones in float32."""
    backbone: str
    """Name for `create_model`."""
    temporal: Literal["tsn", "tsm", ""]
    """"": the names don't tell."""
    num_classes: int
    """0: the file has no classifier."""
    in_channels: int
    """Of the first convolution: 3 for frames, 10 for five fields of optical flow."""
    shifted: frozenset[str] = frozenset()
    """Convolutions of the backbone that have a shift in front of them."""
    foreign: tuple[str, ...] = ()
    """Parts of the network that Vireo lacks; their tensors are left out."""

    @property
    def of_videos(self) -> bool:
        """Whether the file's classifier is one of videos for sure."""
        return self.num_classes > 0 and self.temporal != ""

    @property
    def describes(self) -> str:
        """The network, for people."""
        network = f"{self.temporal} on {self.backbone}" if self.temporal else self.backbone
        return f"{network}, {self.num_classes} classes" if self.num_classes else network


def recognise(tensors: Mapping[str, Tensor]) -> Format:
    """The format of a file, by the names of its tensors.

    Raises:
        WeightsError: no known one; the message names a few tensors and what is known.
    """
    for known in FORMATS:
        signature = re.compile(known.signature)
        if any(signature.match(name) for name in tensors):
            return known
    if any(name.startswith(("conv1_7x7_s2.", "base_model.conv1_7x7_s2.")) for name in tensors):
        raise WeightsError("A BN-Inception network; Vireo has no such backbone.")
    names = ", ".join(list(tensors)[:3]) + (", ..." if len(tensors) > 3 else "")
    raise WeightsError(
        f"Names of no known format: {names or 'there are none'}.\nKnown: {'; '.join(f.name for f in FORMATS)}. "
        "For another network of timm, give its name as the backbone (--backbone)."
    )


def rename(tensors: Mapping[str, Tensor], *, backbone: str = "auto") -> Renamed:
    """Give a file's tensors the names of Vireo's state dict.

    Args:
        tensors: by their names in the file, wrappers and ``module.`` removed.
        backbone: name for `create_model`; auto: what the names and shapes show.

    Raises:
        WeightsError: no known format, a network that Vireo lacks, or tensors that aren't weights.
    """
    try:
        known = recognise(tensors)
    except WeightsError:
        if backbone == "auto":
            raise
        known = _TIMM
    classifier = next((name for name in _CLASSIFIERS if _is_matrix(tensors.get(f"{name}.weight"))), "")
    body: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    shifted: set[str] = set()
    foreign: list[str] = []
    for name, tensor in tensors.items():
        if name in (f"{classifier}.weight", f"{classifier}.bias"):
            rest[f"classifier.{name.rpartition('.')[2]}"] = _weights(name, tensor)
        elif not name.startswith(known.prefix):
            rest[name] = tensor  # left over; whoever fits the tensors says so
        else:
            inner = name.removeprefix(known.prefix)
            own, parts, shift = _own_name(inner, known)
            foreign += parts
            if own is None:
                continue
            if own in body:
                raise WeightsError(f"{known.name}: two tensors are {own}; one of them is {name}.")
            body[own] = _weights(name, tensor)
            if shift and tensor.ndim == 4:
                shifted.add(own.removesuffix(".weight"))
    foreign = list(dict.fromkeys(part for part in foreign if part))
    if any(part.startswith("TANet") for part in foreign) and _WHOLE_BLOCKS in foreign:
        foreign.remove(_WHOLE_BLOCKS)  # the original TAM wraps blocks under the same name as shifts do
    if known.family != "mfnet" and any(t.ndim == 5 for n, t in body.items() if n.endswith(".weight")):
        raise WeightsError(
            f"{known.name}: a network with 3D convolutions (I3D, SlowOnly, ...); of these, Vireo has only MFNet-3D."
        )
    head = rest.get("classifier.weight")
    video = known.family == "mfnet" or classifier in _VIDEO_CLASSIFIERS
    temporal: Literal["tsn", "tsm", ""] = "tsm" if shifted else "tsn" if video else ""
    found = _backbone_name(body, known) if backbone == "auto" else backbone
    stem = next((body[n] for n in _STEMS if n in body and body[n].ndim in (4, 5)), None)
    return Renamed(
        format=known,
        tensors={**{f"backbone.{n}": t for n, t in body.items()}, **rest},
        backbone=found,
        temporal=temporal,
        num_classes=len(head) if head is not None else 0,
        in_channels=stem.shape[1] if stem is not None else 3,
        shifted=frozenset(shifted),
        foreign=tuple(foreign),
    )


def to_model(
    renamed: Renamed,
    *,
    temporal: str = "auto",
    num_frames: int | None = None,
    fold_div: int = 8,
    stride_in_1x1: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Recognizer:
    """The model that a file holds, in evaluation mode.

    The global random state is left as it was.

    Args:
        renamed: from :func:`rename`, with a classifier.
        temporal: tsn or tsm; auto: what the names show.
        num_frames: T; None: 8, or 16 for MFNet-3D.
        fold_div: of tsm: one part in fold_div of the channels is shifted each way.
        stride_in_1x1: the stages' stride is in the 1×1 convolution (ResNets in Caffe's style).
        mean: channel means of the input, of [0, 1]; None: those of the project.
        std: channel deviations, likewise.

    Raises:
        UsageError: the names don't tell tsn from tsm, or contradict what is given.
        WeightsError: a network that Vireo can't compute exactly, or tensors that don't fit it.
    """
    _refuse_foreign(renamed)
    if not renamed.num_classes:
        raise UsageError(f"{renamed.format.name}: the file has no classifier; --weights-only writes its backbone alone")
    temporal = _choose_temporal(renamed, temporal)
    flow = renamed.in_channels != 3
    if flow and renamed.in_channels % 2:
        raise WeightsError(
            f"{renamed.format.name}: its input has {renamed.in_channels} channels; Vireo takes frames (3) or optical "
            "flow (two per field)."
        )
    if num_frames is None:
        num_frames = 16 if renamed.format.family == "mfnet" else 8
    options: dict[str, Any] = {}
    if temporal == "tsm":
        options = {"fold_div": fold_div, **_stages_with_shifts(renamed)}
    normalisation = renamed.format.flow if flow else renamed.format.rgb
    with torch.random.fork_rng(devices=[]):
        model = create_model(
            temporal,
            renamed.backbone,
            num_classes=renamed.num_classes,
            num_frames=num_frames,
            modality="flow" if flow else "rgb",
            flow_fields=renamed.in_channels // 2 if flow else 5,
            mean=mean or (normalisation[0] if normalisation else None),
            std=std or (normalisation[1] if normalisation else None),
            backbone_options={"stride_in_1x1": True} if stride_in_1x1 else {},
            **options,
        )
    tensors, own = dict(renamed.tensors), model.state_dict()
    for name in own:
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, own[name])  # a counter that older files lack
    faults = name_faults(own, tensors)
    if faults:
        raise WeightsError(
            f"{renamed.format.name}: its tensors don't fit {temporal!r} on {renamed.backbone!r}: {faults}. "
            "If it is another network, --backbone names it."
        )
    model.load_state_dict(tensors)
    return model.eval()


def to_weights(renamed: Renamed) -> dict[str, Tensor]:
    """The backbone's tensors under timm's names, as ``pretrained`` of `create_model` takes them.

    Raises:
        WeightsError: they don't fit the backbone.
    """
    tensors = {name.removeprefix("backbone."): t for name, t in renamed.tensors.items() if name.startswith("backbone.")}
    left_over = [n for n in renamed.tensors if not n.startswith(("backbone.", "classifier."))]
    tensors |= {name: renamed.tensors[name] for name in left_over}
    with torch.random.fork_rng(devices=[]):
        options = {} if renamed.in_channels == 3 else {"in_chans": renamed.in_channels}
        network = build_backbone(renamed.backbone, options, 1)
    fit_weights(network, Weights(tensors=tensors, source=renamed.format.name))
    return dict(network.state_dict())


def convert_command(
    source: Path,
    out: Path,
    *,
    labels: Path | None = None,
    temporal: Literal["auto", "tsn", "tsm"] = "auto",
    backbone: str = "auto",
    num_frames: int | None = None,
    fold_div: int = 8,
    stride_in_1x1: bool = False,
    size: int = 224,
    short_side: int = 0,
    sampling: Literal["segment", "dense"] = "segment",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    weights_only: bool = False,
    json: bool = False,
) -> int:
    """What `vireo convert` does; the module's docstring says what is written when.

    Args:
        source: a .pth, .pt, .pth.tar, .bin or .safetensors file.
        out: the .safetensors file to write; its folder is made if missing.
        labels: text file with the names of the classes in the order of the classifier, one per line.
        temporal: tsn or tsm; auto: what the names show.
        backbone: name for `create_model`; auto: what names and shapes show.
        num_frames: T; None: 8, or 16 for MFNet-3D.
        fold_div: of tsm, see :func:`to_model`.
        stride_in_1x1: see :func:`to_model`.
        size: height and width of the model's input, pixels.
        short_side: short side of frames before the crop, pixels; 0 = size × 256/224.
        sampling: segment or dense, see `ViewConfig`.
        mean: channel means of the input, of [0, 1]; None: those of the project.
        std: channel deviations, likewise.
        weights_only: write the backbone's weights alone.
        json: print JSON.

    Raises:
        UsageError: arguments that are wrong or don't suffice.
        WeightsError: a file that can't be read, isn't known, or holds what Vireo can't compute.
        StorageError: ``out`` could not be written.
    """
    if not source.is_file():
        raise UsageError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: what is written is a .safetensors file; give it that ending")
    if out.exists() and out.samefile(source):
        raise UsageError(f"{out}: would overwrite its own source; give another name")
    view = ViewConfig(size=size, short_side=short_side, sampling=sampling)
    names = read_labels(labels) if labels is not None else None
    if weights_only and names is not None:
        raise UsageError("--weights-only writes no classifier, so --labels has no use; leave one of them out")
    weights = read_weights(source)
    if weights.whole:
        raise UsageError(f"{source}: a Vireo checkpoint already ({weights.describes})")
    try:
        renamed = rename(weights.tensors, backbone=backbone)
        model: Recognizer | None = None
        if not weights_only and (names is not None or not _is_image_model(renamed)):
            _refuse_foreign(renamed)
            _check_labels(renamed, names)
            model = to_model(
                renamed,
                temporal=temporal,
                num_frames=num_frames,
                fold_div=fold_div,
                stride_in_1x1=stride_in_1x1,
                mean=mean or weights.mean,
                std=std or weights.std,
            )
            tensors = {}
        else:
            tensors = to_weights(renamed)
    except (UsageError, WeightsError) as error:
        kind = UsageError if isinstance(error, UsageError) else WeightsError
        raise kind(f"{source}: {error}") from error
    provenance = {"converted_from": source.name, "sha256": _hash(source), "format": renamed.format.name}
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"out": str(out), "format": renamed.format.name, "backbone": renamed.backbone}
    if model is not None:
        assert names is not None  # _check_labels
        save_checkpoint(out, model, labels=names, view=view, provenance=provenance)
        facts |= {
            "kind": "checkpoint",
            "temporal": model.config.temporal,
            "num_classes": model.num_classes,
            "num_frames": model.num_frames,
            "modality": model.config.modality,
            "temporal_options": model.config.temporal_options,
            "mean": list(model.mean),
            "std": list(model.std),
            "left_out": [],
        }
    else:
        stated = _normalisation(renamed, mean or weights.mean, std or weights.std)
        header = {k: jsonlib.dumps(v) for k, v in stated.items()}
        _write_weights(out, tensors, {**provenance, "backbone": renamed.backbone, **header})
        left_out = [*renamed.foreign, *(["its classifier"] if renamed.num_classes else [])]
        if renamed.shifted:
            left_out.append("its shifts (they have no weights)")
        facts |= {"kind": "weights", **stated, "left_out": left_out}
    _say(facts, source, json)
    return 0


def read_labels(path: Path) -> tuple[str, ...]:
    """The names of the classes, from a text file with one per line.

    Raises:
        UsageError: no such file, no text, an empty line between names, or a name that comes twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    seen: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        if not name:
            raise UsageError(f"{path}: line {number} is empty; it needs the name of a class on every line")
        if name in seen:
            raise UsageError(f"{path}: {name!r} stands on lines {seen[name]} and {number}; names must differ")
        seen[name] = number
    return tuple(lines)


# ---- names


def _own_name(name: str, known: Format) -> tuple[str | None, list[str], bool]:
    """Vireo's name (None: it has none), parts that Vireo lacks, and whether a shift stands in front of it."""
    foreign: list[str] = []
    for pattern, left, part in _FOREIGN if known.family == "resnet" else ():
        if pattern.match(name):
            foreign.append(part)
            if left is None:
                return None, foreign, False
            name = pattern.sub(left, name)
    shift = _SHIFT.match(name) is not None
    name = _SHIFT.sub(r"\1.", name)
    own = {"resnet": _resnet, "mobilenetv2": _mobilenetv2, "mfnet": _mfnet}.get(known.family, _as_it_is)
    return own(name, known), foreign, shift


def _as_it_is(name: str, known: Format) -> str:
    return name


def _resnet(name: str, known: Format) -> str:
    if known.naming == "flat":
        return name  # timm's names are torchvision's
    name = re.sub(r"downsample\.(conv|bn)\.", lambda m: f"downsample.{'01'[m[1] == 'bn']}.", name)
    return re.sub(r"conv(\d)\.(conv|bn)\.", r"\2\1.", name)


# Blocks of each of MobileNetV2's stages; torchvision counts them through, after the stem.
_MOBILENETV2_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
_WIDENING = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")  # timm's names
_FIRST = ("conv_dw", "bn1", "conv_pw", "bn2")  # the first block has no widening convolution
_PLACES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # in a block with and without widening
    "flat": (("0", "1", "3", "4", "6", "7"), ("0", "1", "3", "4")),
    "torchvision": (("0.0", "0.1", "1.0", "1.1", "2", "3"), ("0.0", "0.1", "1", "2")),
    "nested": (("0.conv", "0.bn", "1.conv", "1.bn", "2.conv", "2.bn"), ("0.conv", "0.bn", "1.conv", "1.bn")),
}


def _mobilenetv2(name: str, known: Format) -> str:
    ends = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.18.0": "conv_head", "features.18.1": "bn2"}
    ends |= {"conv1.conv": "conv_stem", "conv1.bn": "bn1", "conv2.conv": "conv_head", "conv2.bn": "bn2"}
    path, _, leaf = name.rpartition(".")
    if path in ends:
        return f"{ends[path]}.{leaf}"
    if found := re.fullmatch(r"layer(\d)\.(\d+)\.conv\.(.+)", path):
        stage, block = int(found[1]) - 1, int(found[2])
    elif found := re.fullmatch(r"features\.(\d+)()\.conv\.(.+)", path):
        stage, block = 0, int(found[1]) - 1
        while stage < len(_MOBILENETV2_BLOCKS) - 1 and block >= _MOBILENETV2_BLOCKS[stage]:
            block -= _MOBILENETV2_BLOCKS[stage]
            stage += 1
    else:
        return name  # unknown: it will be left over
    places, parts = _PLACES[known.naming][stage == 0], _FIRST if stage == 0 else _WIDENING
    part = dict(zip(places, parts, strict=True)).get(found[3])
    return f"blocks.{stage}.{block}.{part}.{leaf}" if part else name


def _mfnet(name: str, known: Format) -> str:
    name = re.sub(r"^conv1\.", "stem.", name)
    name = re.sub(r"^(conv\d)\.B(\d+)\.conv_", lambda m: f"{m[1]}.{int(m[2]) - 1}.", name)
    return re.sub(r"\.bn\.", ".norm.", name)


# ---- what shapes show

_RESNETS: Mapping[tuple[bool, tuple[int, ...], tuple[int, ...]], str] = {
    # bottlenecks?, blocks of each stage, (outputs, inputs of a group) of the first 3×3 convolution
    (False, (2, 2, 2, 2), (64, 64)): "resnet18",
    (False, (3, 4, 6, 3), (64, 64)): "resnet34",
    (True, (2, 2, 2, 2), (64, 64)): "resnet26",
    (True, (3, 4, 6, 3), (64, 64)): "resnet50",
    (True, (3, 4, 23, 3), (64, 64)): "resnet101",
    (True, (3, 8, 36, 3), (64, 64)): "resnet152",
    (True, (3, 4, 6, 3), (128, 4)): "resnext50_32x4d",
    (True, (3, 4, 23, 3), (128, 4)): "resnext101_32x4d",
    (True, (3, 4, 23, 3), (256, 8)): "resnext101_32x8d",
    (True, (3, 4, 6, 3), (128, 128)): "wide_resnet50_2",
    (True, (3, 4, 23, 3), (128, 128)): "wide_resnet101_2",
}
_MOBILENETS = {16: "mobilenetv2_050", 32: "mobilenetv2_100", 48: "mobilenetv2_140"}  # by the stem's width


def _backbone_name(body: Mapping[str, Tensor], known: Format) -> str:
    if known.family == "mfnet":
        return "mfnet"
    if known.family == "mobilenetv2":
        stem = body.get("conv_stem.weight")
        width = len(stem) if stem is not None and stem.ndim else 0
        if width in _MOBILENETS:
            return _MOBILENETS[width]
        raise WeightsError(f"{known.name}: its first convolution has {width} channels; known: 16, 32 and 48.")
    stages = [{m[1] for n in body if (m := re.match(rf"layer{i}\.(\d+)\.", n))} for i in (1, 2, 3, 4)]
    blocks = tuple(map(len, stages))
    spatial = body.get("layer1.0.conv2.weight")
    shape = tuple(spatial.shape[:2]) if spatial is not None else ()
    name = _RESNETS.get(("layer1.0.conv3.weight" in body, blocks, shape))
    if name is None or "conv1.weight" not in body:
        raise WeightsError(
            f"{known.name}: with {', '.join(map(str, blocks))} blocks, none of the usual ResNets. "
            "--backbone says which network of timm it is."
        )
    return name


def _stages_with_shifts(renamed: Renamed) -> dict[str, Any]:
    """The option `stages` that gives the shifts which the names show; {} for all, or where they show none."""
    if not renamed.shifted:
        return {}
    with torch.device("meta"):
        options = {} if renamed.in_channels == 3 else {"in_chans": renamed.in_channels}
        probe = create_model("tsm", renamed.backbone, num_classes=1, num_frames=2, backbone_options=options)
    paths = {stage: {s.path for s in probe.sites if s.stage == stage} for stage in {s.stage for s in probe.sites}}
    stages = sorted(stage for stage, inside in paths.items() if inside <= renamed.shifted)
    if set().union(*(paths[stage] for stage in stages)) != renamed.shifted:
        shown = ", ".join(sorted(renamed.shifted)[:3])
        raise WeightsError(
            f"{renamed.format.name}: it shifts in front of {len(renamed.shifted)} of {len(probe.sites)} blocks "
            f"({shown}, ...); Vireo's tsm shifts in every block of a stage, so its scores would be wrong. "
            "--weights-only writes the backbone's weights alone, for fine-tuning."
        )
    return {} if len(stages) == len(paths) else {"stages": stages}


# ---- checks


def _is_matrix(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.ndim == 2


def _weights(name: str, tensor: Tensor) -> Tensor:
    if fault := tensor_fault(tensor):
        raise WeightsError(f"{name} {fault}")
    if name.endswith("num_batches_tracked"):
        return tensor
    if not tensor.is_floating_point():
        raise WeightsError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}; weights are floating point numbers.")
    tensor = tensor.float()
    if not bool(tensor.isfinite().all()):
        raise WeightsError(f"{name} holds values that are not finite.")
    return tensor


def _refuse_foreign(renamed: Renamed) -> None:
    if renamed.foreign:
        raise WeightsError(
            f"{renamed.format.name}: it has {' and '.join(renamed.foreign)}; Vireo can't compute that. "
            "--weights-only writes the backbone's weights alone, for fine-tuning."
        )


def _is_image_model(renamed: Renamed) -> bool:
    return not renamed.num_classes or (not renamed.of_videos and renamed.num_classes == 1000)


def _check_labels(renamed: Renamed, names: tuple[str, ...] | None) -> None:
    classes = renamed.num_classes
    if names is None:
        raise UsageError(
            f"{renamed.format.name}: its classifier has {classes} classes, whose names are not in the file; give them "
            "in a text file, one per line (--labels), or write the backbone alone (--weights-only)"
        )
    if classes and len(names) != classes:
        raise UsageError(f"{len(names)} labels for a classifier of {classes} classes; it needs one line per class")


def _choose_temporal(renamed: Renamed, given: str) -> str:
    if given not in ("auto", "tsn", "tsm"):
        raise UsageError(f"temporal is {given!r}; use auto, tsn or tsm")
    if given == "tsn" and renamed.temporal == "tsm":
        raise UsageError(f"{renamed.format.name}: temporal is 'tsn', but its names show shifts; use tsm or auto")
    if given != "auto":
        return given
    if not renamed.temporal:
        raise UsageError(
            f"{renamed.format.name}: its names don't tell whether it averages frames or shifts features between them; "
            "--temporal tsn or --temporal tsm says it"
        )
    return renamed.temporal


# ---- files


def _normalisation(
    renamed: Renamed, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of every channel, as far as they are known."""
    project = renamed.format.rgb if renamed.in_channels == 3 else renamed.format.flow
    if project is None and renamed.in_channels == 3:
        with torch.device("meta"):
            stated = pretrained_config(build_backbone(renamed.backbone, {}, 1))
        project = tuple(stated["mean"]), tuple(stated["std"])
    known = {"mean": mean or (project[0] if project else None), "std": std or (project[1] if project else None)}
    return {k: v * renamed.in_channels if len(v) == 1 else v for k, v in known.items() if v}


def _write_weights(out: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    content = safetensors.torch.save({k: t.contiguous() for k, t in tensors.items()}, metadata=dict(header))
    write_atomically(out, content)


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(facts: Mapping[str, Any], source: Path, json: bool) -> None:
    if json:
        print(jsonlib.dumps(facts, ensure_ascii=False))
        return
    console = make_console()

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    line(f"{source}: {facts['format']}")
    if facts["kind"] == "checkpoint":
        line(
            f"{facts['out']}: {facts['temporal']} on {facts['backbone']}, {facts['num_classes']} classes, "
            f"{facts['num_frames']} frames"
        )
        line(f"next: vireo predict {facts['out']} clip.mp4", "dim")
    else:
        line(f"{facts['out']}: weights of the backbone {facts['backbone']}")
        if facts["left_out"]:
            line(f"left out: {', '.join(facts['left_out'])}")
        line(f"next: vireo train --backbone {facts['backbone']} --pretrained {facts['out']} ...", "dim")
