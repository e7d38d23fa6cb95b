"""Self-contained files: weights with labels, the view of a video, and where they come from.

A checkpoint is one safetensors file. Its header carries, under the key ``vireo``, one JSON text:

    {"format": 1, "version": "0.1.0", "model": {ModelConfig's fields, "num_classes"},
     "labels": [...], "view": {ViewConfig's fields}, "provenance": {...}}

Reading one never runs code stored in it. Writing is atomic: whoever reads the path sees the old file
or the new one, whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vireo.backbones import name_faults
from vireo.config import ModelConfig, ViewConfig, from_dict, to_dict
from vireo.errors import CheckpointError, StorageError, UsageError, VireoError
from vireo.model import Recognizer, from_config, to_channels_last

FORMAT = 1
_KEY = "vireo"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds."""

    model: Recognizer
    """In evaluation mode."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    view: ViewConfig
    """How a video becomes the model's input."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it comes from: settings, data, seed, scores."""


def save_checkpoint(
    path: str | Path, model: Recognizer, *, labels: Iterable[str], view: ViewConfig, provenance: Mapping[str, Any]
) -> None:
    """Write a checkpoint, atomically.

    Raises:
        StorageError: it could not be written; a file that was there before is intact.
        UsageError: labels that aren't one text per class, or provenance that JSON can't hold.
    """
    import vireo

    labels = list(labels)
    if len(labels) != model.num_classes or not all(isinstance(name, str) for name in labels):
        raise UsageError(f"{len(labels)} labels for a model of {model.num_classes} classes; it needs a text per class")
    meta = {
        "format": FORMAT,
        "version": vireo.__version__,
        "model": {**to_dict(model.config), "num_classes": model.num_classes},
        "labels": labels,
        "view": to_dict(view),
        "provenance": dict(provenance),
    }
    write_tensors(path, model.state_dict(), meta)


def load_checkpoint(path: str | Path, *, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint and rebuild its model, in evaluation mode and channels_last memory.

    The global random state is left as it was.

    Raises:
        CheckpointError: the file is missing, damaged, of an unknown version, or no checkpoint.
    """
    path = Path(path)
    tensors, meta = read_tensors(path)
    try:
        if meta.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: a checkpoint of format {meta.get('format')!r}, written by Vireo {meta.get('version', '?')}; "
                f"this version reads format {FORMAT}."
            )
        facts = dict(meta["model"])
        num_classes, labels = facts.pop("num_classes"), tuple(meta["labels"])
        config, view = from_dict(ModelConfig, facts), from_dict(ViewConfig, meta["view"])
        provenance = dict(meta["provenance"])
        if len(labels) != num_classes or not all(isinstance(name, str) for name in labels):
            raise CheckpointError(f"{path}: damaged: {len(labels)} labels for {num_classes} classes")
        with torch.random.fork_rng(devices=[]):
            model = from_config(config, num_classes=num_classes)
    except CheckpointError:
        raise
    except (VireoError, KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: its description of the model can't be used: {what}") from error
    _fill(path, model, tensors)
    model = to_channels_last(model, device).eval()
    return Checkpoint(model=model, labels=labels, view=view, provenance=provenance)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a description as one safetensors file, atomically.

    Args:
        path: where; its folder must exist.
        tensors: on any device, in any memory format (the file holds them contiguous).
        meta: plain data that JSON can hold.

    Raises:
        StorageError: it could not be written; a file that was there before is intact.
        UsageError: meta that JSON can't hold.
    """
    path = Path(path)
    try:
        header = {_KEY: json.dumps(dict(meta), allow_nan=True)}
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: what is to be stored beside the tensors is not plain data: {error}") from error
    write_atomically(path, safetensors.torch.save(_apart(tensors), metadata=header))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, safe against interrupts and loss of power: the old file or the new one stands there, whole.

    Raises:
        StorageError: it could not be written; a file that was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt too must not leave rubbish behind
        _remove(temporary)
        if isinstance(error, OSError):
            raise StorageError(
                f"{path}: could not be written: {error.strerror or error}."
                + (" What was there before is intact." if path.exists() else "")
            ) from error
        raise
    _sync_folder(path.parent)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote: tensors on the CPU and the description.

    Raises:
        CheckpointError: missing, damaged, or a file of another kind.
    """
    path = Path(path)
    if not path.is_file():
        best = path / "best.safetensors"
        if best.is_file():
            raise CheckpointError(f"{path} is the folder of a run; did you mean {best}?")
        raise CheckpointError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if _KEY not in header:
                raise CheckpointError(f"{path}: a safetensors file, but not one that Vireo wrote")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        meta = json.loads(header[_KEY])
    except (SafetensorError, OSError, ValueError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a Vireo checkpoint, or a damaged one ({error})") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}: damaged: its description is not a JSON object")
    return tensors, meta


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, no two of them in the same memory (safetensors refuses that)."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        apart[name] = tensor
    return apart


def _fill(path: Path, model: Recognizer, tensors: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    faults = name_faults(own, tensors)
    if faults:
        raise CheckpointError(f"{path}: its tensors don't fit its model: {faults}")
    model.load_state_dict(dict(tensors))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # the error that led here says more
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # not every system opens folders
    with contextlib.suppress(OSError):  # nor syncs them; the file itself is safe
        os.fsync(handle)
    os.close(handle)
