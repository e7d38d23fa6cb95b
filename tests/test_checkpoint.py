"""Checkpoints: what comes back, what is refused, and what a failing disk leaves behind."""

from __future__ import annotations

import builtins
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.model_tools import clips, network
from vireo.checkpoint import load_checkpoint, read_tensors, save_checkpoint, write_tensors
from vireo.config import ViewConfig
from vireo.errors import CheckpointError, StorageError, UsageError

LABELS = ("open", "close", "turn left", "turn right", "größer")
VIEW = ViewConfig(size=96, short_side=100, sampling="dense")


@pytest.fixture
def model():
    return network("tei", "mobilenetv2_035")


@pytest.fixture
def saved(model, tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, model, labels=LABELS, view=VIEW, provenance={"seed": 3, "top1": float("nan"), "x": [1, "b"]})
    return path


def rewrite(path: Path, change) -> None:
    """Change a checkpoint's description."""
    tensors, meta = read_tensors(path)
    change(meta)
    write_tensors(path, tensors, meta)


def test_everything_comes_back(model, saved: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    checkpoint = load_checkpoint(saved)
    assert torch.equal(torch.get_rng_state(), state)
    assert checkpoint.labels == LABELS and checkpoint.view == VIEW
    assert checkpoint.provenance["seed"] == 3 and checkpoint.provenance["x"] == [1, "b"]
    assert checkpoint.model.config == model.config and not checkpoint.model.training
    assert checkpoint.model.backbone.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(checkpoint.model(clips(model, 2)), model(clips(model, 2)))
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_the_description_is_in_the_header(saved: Path) -> None:
    raw = saved.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    meta = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["vireo"])
    assert set(meta) == {"format", "version", "model", "labels", "view", "provenance"}
    assert meta["model"]["temporal"] == "tei" and meta["model"]["num_classes"] == 5
    assert meta["model"]["mean"] == [0.485, 0.456, 0.406]


def test_tensors_of_any_kind_and_shared_ones(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    tensors = {
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "bool": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "a": base,
        "b": base,
        "part": base[2:4],
        "transposed": torch.randn(3, 4).t(),
    }
    write_tensors(tmp_path / "t", tensors, {"step": 7})
    back, meta = read_tensors(tmp_path / "t")
    assert meta == {"step": 7} and set(back) == set(tensors)
    assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors.items())


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"not a checkpoint at all" * 50, b"\xff" * 1000, struct.pack("<Q", 1 << 62), b"PK\x03\x04" * 30],
    ids=["empty", "one byte", "text", "ff", "endless header", "zip"],
)
def test_rubbish_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        load_checkpoint(path)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        data = torch.randint(0, 256, (500,), dtype=torch.uint8, generator=generator)
        (tmp_path / "r").write_bytes(struct.pack("<Q", int(data[0])) + bytes(data.tolist()))
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "r")


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    raw = saved.read_bytes()
    saved.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)


def test_missing_file_folder_pickle_and_other_safetensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="not a file"):
        load_checkpoint(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"the folder of a run; did you mean .*best\.safetensors\?"):
        load_checkpoint(tmp_path / "run")
    torch.save({"w": torch.zeros(3)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "m.pth")
    save_file({"w": torch.zeros(3)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not one that Vireo wrote"):
        load_checkpoint(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2, version="9.0"), "written by Vireo 9.0"),
        (lambda m: m.clear(), "format None"),
        (lambda m: m.pop("model"), "no 'model'"),
        (lambda m: m.update(labels=["a"]), "1 labels for 5 classes"),
        (lambda m: m.update(labels=[1, 2, 3, 4, 5]), "labels"),
        (lambda m: m.update(labels=None), "can't be used"),
        (lambda m: m["model"].update(backbone="resnet9999"), "resnet9999"),
        (lambda m: m["model"].update(temporal="kpsem"), "kpsem"),
        (lambda m: m["model"].update(num_frames="8"), "can't be used"),
        (lambda m: m["model"].update(surplus=1), "surplus"),
        (lambda m: m["model"].update(num_classes=10**9), "labels"),
        (lambda m: m["model"].update(temporal_options={"stages": [9]}), "stages"),
        (lambda m: m["model"].update(temporal="tsn", temporal_options={}), "left over"),
        (lambda m: m["model"].update(temporal_options={"reduction": 4}), "instead of"),
        (lambda m: m["model"].update(backbone="mobilenetv2_100"), "instead of"),
        (lambda m: m["view"].update(size=3), "size is 3"),
        (lambda m: m.update(view=[]), "can't be used"),
        (lambda m: m.update(provenance=5), "can't be used"),
    ],
)
def test_a_description_that_does_not_fit(saved: Path, change, message: str) -> None:
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_labels_and_provenance_are_checked_before_anything_is_written(model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 labels for a model of 5"):
        save_checkpoint(tmp_path / "m", model, labels=["a", "b"], view=VIEW, provenance={})
    with pytest.raises(UsageError, match="plain data"):
        save_checkpoint(tmp_path / "m", model, labels=LABELS, view=VIEW, provenance={"x": object()})
    assert list(tmp_path.iterdir()) == []


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


class FullDisk:
    """A file that takes half of what is written."""

    def __init__(self, file) -> None:
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        full()


@pytest.mark.parametrize("where", ["open", "write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(model, saved: Path, where: str, monkeypatch) -> None:
    before = saved.read_bytes()
    if where == "open":
        monkeypatch.setattr("vireo.checkpoint.open", full, raising=False)
    elif where == "write":
        real = builtins.open
        monkeypatch.setattr("vireo.checkpoint.open", lambda *a: FullDisk(real(*a)), raising=False)
    else:
        monkeypatch.setattr(os, where, full)
    with pytest.raises(StorageError, match=r"best\.safetensors.*No space left on device.*intact"):
        save_checkpoint(saved, model, labels=LABELS, view=VIEW, provenance={})
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_an_interrupt_leaves_the_old_file_and_no_rubbish(model, saved: Path, monkeypatch) -> None:
    before = saved.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, model, labels=LABELS, view=VIEW, provenance={})
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


def test_a_folder_that_is_missing(model, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be written"):
        save_checkpoint(tmp_path / "none" / "m.safetensors", model, labels=LABELS, view=VIEW, provenance={})
