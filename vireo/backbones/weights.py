"""Pretrained weights: from timm's hub or from a file, fitted to a backbone.

A file is read as data and never as code: safetensors, or a PyTorch file through ``weights_only``.
"""

from __future__ import annotations

import json
import logging
import pickle
import struct
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vireo.backbones.timm_sites import REMEDY, pretrained_config
from vireo.errors import UsageError, WeightsError

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors by name, with the normalisation they were trained for where the source states it."""

    tensors: Mapping[str, Tensor]
    source: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    describes: str = ""
    """Of a Vireo checkpoint: its network, e.g. ``'tei' on 'resnet50'``. Its tensors are then the whole model's."""

    @property
    def whole(self) -> bool:
        """Whether the tensors are those of a whole Vireo model, temporal modules and classifier included."""
        return bool(self.describes)


def fetch_weights(name: str, options: Mapping[str, Any]) -> Weights:
    """Pretrained weights that timm knows of a backbone, from its hub or the local cache of it.

    Args:
        name: timm's name.
        options: of timm's constructor.

    Raises:
        WeightsError: the hub can't be reached, or has no weights for this backbone.
    """
    try:
        with _offline_unless_reachable():
            source = timm.create_model(name, pretrained=True, num_classes=0, **options)
    except Exception as error:  # the hub's client, its transport and timm each have their own kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, OSError) or "offline" in reason.lower():
            reason = "the hub can't be reached and they are not in its local cache"
        raise WeightsError(
            f"No pretrained weights for {name!r} from timm's hub: {reason.rstrip('.')}.\nTo go on, {REMEDY}."
        ) from error
    return Weights(tensors=source.state_dict(), source=f"timm's {name}")


def read_weights(path: str | Path) -> Weights:
    """Weights from a .safetensors file (a Vireo checkpoint too) or a PyTorch file (.pth, .pt, .bin).

    Wrappers ("state_dict", "model") and prefixes ("module.") are removed.

    Raises:
        WeightsError: no such file, not such a file, or one that would need code to be run.
    """
    path = Path(path)
    if not path.exists():
        error = WeightsError(f"{path}: no such file (pretrained takes true, false or the path of a weights file)")
        error.exit_code = UsageError.exit_code  # a wrong argument, as a missing path is everywhere
        raise error
    if not path.is_file():
        raise WeightsError(f"{path}: not a file; pretrained takes a .safetensors or .pth file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin", ".tar"):
        return _read_torch(path)
    raise WeightsError(f"{path}: unknown kind of weights file; use .safetensors, .pth, .pt or .bin")


def fit_weights(backbone: nn.Module, weights: Weights, *, average_stem: bool = False) -> None:
    """Load ``weights`` into ``backbone``; those of an ImageNet classifier are left out.

    Args:
        backbone: without temporal modules.
        weights: of the backbone alone.
        average_stem: for inputs other than RGB see :func:`fit_stem`.

    Raises:
        WeightsError: tensors are missing, left over, or of another shape; the message names a few.
    """
    tensors = dict(weights.tensors)
    config = pretrained_config(backbone)
    own = backbone.state_dict()
    for classifier in _names(config.get("classifier")):
        for key in (f"{classifier}.weight", f"{classifier}.bias"):
            if key not in own:
                tensors.pop(key, None)
    stem = f"{first_convolution(backbone)}.weight"
    if stem in own and stem in tensors:
        tensors[stem] = fit_stem(tensors[stem], own[stem], average=average_stem)
    for key in own:
        if key.endswith("num_batches_tracked"):
            tensors.setdefault(key, own[key])  # a counter that older files lack
    faults = name_faults(own, tensors)
    if faults:
        name = config.get("architecture", type(backbone).__name__)
        raise WeightsError(f"{weights.source} does not fit backbone {name!r}: of its tensors {faults}.")
    backbone.load_state_dict(tensors)


def first_convolution(backbone: nn.Module) -> str:
    """Path of the convolution that sees the input; "" where timm states none."""
    return next(iter(_names(pretrained_config(backbone).get("first_conv"))), "")


def fit_stem(weight: Tensor, own: Tensor, *, average: bool) -> Tensor:
    """The first convolution's RGB weights for inputs of another number of channels.

    Args:
        weight: (C_out, 3, ...).
        own: (C_out, C_in, ...), for its shape.
        average: the mean over RGB for every channel (cross-modality initialisation, for optical flow; Wang et
            al., ECCV 2016); otherwise timm's way: RGB repeated and scaled by 3/C_in, or summed for one channel.
    """
    if weight.shape == own.shape or weight.shape != (own.shape[0], 3, *own.shape[2:]):
        return weight
    if average:
        return weight.mean(dim=1, keepdim=True).expand_as(own).clone()
    channels = own.shape[1]
    if channels == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    # timm's own function takes 2D convolutions only.
    repeated = weight.float()[:, [i % 3 for i in range(channels)]]
    return (repeated * (3 / channels)).to(weight.dtype)


def name_faults(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What keeps the given tensors from filling ``own``, with a few names and shapes; "" if nothing does."""
    shapes = [
        f"{k} {tuple(given[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in given and given[k].shape != own[k].shape
    ]
    groups = (
        ("missing", [k for k in own if k not in given]),
        ("left over", [k for k in given if k not in own]),
        ("of another shape", shapes),
    )
    return "; ".join(
        f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for what, found in groups
        if found
    )


def _names(value: object) -> tuple[str, ...]:
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        describes = ""
        if "vireo" in header:
            facts = json.loads(header["vireo"])["model"]
            mean, std = facts["mean"], facts["std"]
            describes = f"{facts['temporal']!r} on {facts['backbone']!r}"
        else:
            mean, std = (json.loads(header[key]) if key in header else None for key in ("mean", "std"))
        mean, std = (tuple(map(float, v)) if v is not None else None for v in (mean, std))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    return Weights(tensors=_strip(tensors), source=str(path), mean=mean, std=std, describes=describes)


def _read_torch(path: Path) -> Weights:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused: reading it would run code stored in the file, or it is no PyTorch file.\n"
            "Save only tensors (torch.save(model.state_dict(), ...)), or better, safetensors."
        ) from error
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        AssertionError,
        AttributeError,
        TypeError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a readable PyTorch file ({reason})") from error
    for _ in range(2):  # {"model": {"state_dict": ...}} occurs
        if isinstance(content, Mapping):
            content = next((content[w] for w in _WRAPPERS if isinstance(content.get(w), Mapping)), content)
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        raise WeightsError(f"{path}: holds no state_dict (tensors by name)")
    for name, tensor in content.items():
        if fault := tensor_fault(tensor):
            raise WeightsError(f"{path}: {name} {fault}")
    return Weights(tensors=_strip(content), source=str(path))


def tensor_fault(tensor: Tensor) -> str:
    """What keeps a tensor's values from being copied into a network, after its name; "" if nothing does."""
    if tensor.is_meta:
        return "has a shape but no values (it was saved from the meta device)."
    if tensor.is_quantized:
        return "is quantised; weights are plain floating point numbers."
    if tensor.layout != torch.strided:
        return f"is stored as {str(tensor.layout).removeprefix('torch.')}; weights are dense tensors."
    return ""


def _strip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    clean = dict(tensors)
    for prefix in _PREFIXES * 2:  # they are nested in either order
        if clean and all(key.startswith(prefix) for key in clean):
            clean = {key.removeprefix(prefix): value for key, value in clean.items()}
    return clean


@contextmanager
def _offline_unless_reachable() -> Iterator[None]:
    """Spare the hub's client its minute of retries where there is no network: let it use its cache only."""
    import huggingface_hub.constants as hub

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    levels = [logger.level for logger in loggers]
    offline = hub.HF_HUB_OFFLINE
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        if not offline and not _reachable(hub.ENDPOINT):
            hub.HF_HUB_OFFLINE = True
        yield
    finally:
        hub.HF_HUB_OFFLINE = offline
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reachable(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False
    return True
