"""Optical flow: layouts, sampling, stack order, mirror images, hostile files, and a temporal stream end to end."""

from __future__ import annotations

import csv
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models import adapt_input_conv
from torch import Tensor
from torch.nn.functional import conv2d
from torchvision.io import encode_jpeg, encode_png

from vireo import cli
from vireo.backbones import Weights, fit_stem, fit_weights
from vireo.backbones.mfnet import mfnet
from vireo.checkpoint import load_checkpoint
from vireo.config import AugmentConfig, ViewConfig
from vireo.data.annotations import read_table
from vireo.data.dataset import ClipDataset, Failure, Sample, collate
from vireo.data.flips import flip_rule
from vireo.data.flow import is_flow_clip, mirror_flow, read_flow, to_uint8
from vireo.data.images import MAX_PIXELS
from vireo.data.sampling import segment_indices
from vireo.data.table import ClipTable, StringColumn
from vireo.data.transforms import eval_transform, train_transform
from vireo.errors import DataError, DecodeError, UsageError
from vireo.model import create_model
from vireo.predict import find_videos
from vireo.scores import read_scores

H, W = 24, 32
LAYOUTS = {
    "flow_x_00001.jpg": lambda axis, i: f"flow_{axis}_{i:05d}",
    "x_00001.jpg": lambda axis, i: f"{axis}_{i:05d}",
    "u1.jpg": lambda axis, i: f"{'uv'['xy'.index(axis)]}{i}",  # 10 comes after 9, not after 1
    "x/00001.jpg": lambda axis, i: f"{axis}/{i:05d}",
    "u/frame7.jpg": lambda axis, i: f"{'uv'['xy'.index(axis)]}/frame{i}",
}


def fields(count: int, seed: int = 0, height: int = H, width: int = W) -> np.ndarray:
    """(F, 2, H, W) uint8; the value of the first pixel is 2 · its number, plus 1 for y."""
    values = np.random.default_rng(seed).integers(0, 256, (count, 2, height, width), dtype=np.uint8)
    values[:, :, 0, 0] = 2 * np.arange(count)[:, None] + np.arange(2)
    return values


def write_folder(path: Path, values: np.ndarray, layout: str = "flow_x_00001.jpg", ending: str = "png") -> Path:
    """Fields as images, numbered from 1; PNG keeps every value."""
    for i, field in enumerate(values, start=1):
        for axis, image in zip("xy", field, strict=True):
            file = path / f"{LAYOUTS[layout](axis, i)}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.from_numpy(image.copy())[None]
            file.write_bytes(bytes((encode_png(pixels) if ending == "png" else encode_jpeg(pixels, 95)).numpy()))
    return path


def write_array(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return path


def starts(*wanted: int) -> Callable[[int], np.ndarray]:
    return lambda count: np.array(wanted, dtype=np.int64)


def stacked(values: np.ndarray, wanted: list[list[int]]) -> Tensor:
    """The stacks of these fields, channel by channel."""
    stacks = [[values[i, axis] for i in row for axis in (0, 1)] for row in wanted]
    return torch.from_numpy(np.array(stacks))


# --- reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_are_read_in_the_order_of_their_numbers(tmp_path: Path, layout: str) -> None:
    values = fields(12)
    folder = write_folder(tmp_path / "clip", values, layout)
    (folder / "img_00001.jpg").write_bytes(b"the RGB frames beside it are not looked at")
    assert is_flow_clip(folder)
    found = read_flow(folder, starts(0, 4, 7), fields=5)
    assert found.dtype == torch.uint8 and found.shape == (3, 10, H, W)
    assert found.permute(0, 2, 3, 1).is_contiguous()
    assert torch.equal(found, stacked(values, [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [7, 8, 9, 10, 11]]))
    assert found[1, :, 0, 0].tolist() == list(range(8, 18))  # x5 y5 x6 y6 …


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_in_both_shapes(tmp_path: Path, last: bool, order: str) -> None:
    values = fields(9)
    held = values.transpose(0, 2, 3, 1) if last else values
    path = write_array(tmp_path / "clip.npy", np.array(held, order=order))
    assert is_flow_clip(path)
    found = read_flow(path, starts(1, 1, 3), fields=3)
    assert torch.equal(found, stacked(values, [[1, 2, 3], [1, 2, 3], [3, 4, 5]]))
    assert found.permute(0, 2, 3, 1).is_contiguous()


def test_pixels_become_the_images_that_tsn_makes() -> None:
    pixels = np.array([-1e30, -20.1, -20, -10, -0.01, 0, 0.07, 0.08, 10, 20, 25, 1e30], dtype=np.float32)
    # round(255 · (v + 20) / 40): 63.75 → 64, 127.44 → 127, 127.5 → 128 (to even), 127.95, 128.01, 191.25
    expected = [0, 0, 0, 64, 127, 128, 128, 128, 191, 255, 255, 255]
    assert to_uint8(pixels).tolist() == expected
    every = np.arange(256, dtype=np.uint8)  # what an image says in pixels gives the image back
    assert to_uint8(every.astype(np.float32) * np.float32(40 / 255) - np.float32(20)).tolist() == every.tolist()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.dtype(">f4")])
def test_arrays_in_pixels(tmp_path: Path, kind: object) -> None:
    pixels = np.random.default_rng(0).uniform(-25, 25, (6, 2, H, W)).astype(kind)
    found = read_flow(write_array(tmp_path / "a.npy", pixels), starts(2), fields=2)
    expected = np.rint((np.clip(pixels.astype(np.float64), -20, 20) + 20) * 255 / 40)
    assert (found[0].double() - torch.from_numpy(expected[2:4].reshape(4, H, W))).abs().max() <= 1  # of float32
    assert (found[0].double() == torch.from_numpy(expected[2:4].reshape(4, H, W))).double().mean() > 0.999


def test_the_plan_is_asked_for_starts_and_short_clips_repeat_in_order(tmp_path: Path) -> None:
    values, asked = fields(11), list[int]()

    def plan(count: int) -> np.ndarray:
        asked.append(count)
        return segment_indices(count, 4)

    path = write_array(tmp_path / "a.npy", values)
    found = read_flow(path, plan, fields=5)
    assert asked == [7]  # 11 - 5 + 1
    first = [0, 2, 4, 6]  # centres of four parts of seven: ⌊(2i + 1) · 7 / 8⌋
    assert torch.equal(found, stacked(values, [list(range(s, s + 5)) for s in first]))
    repeats = {1: [0, 0, 0, 0, 0], 2: [0, 0, 1, 1, 1], 3: [0, 0, 1, 2, 2], 4: [0, 1, 2, 2, 3], 5: [0, 1, 2, 3, 4]}
    for count, order in repeats.items():
        path = write_array(tmp_path / f"{count}.npy", values[:count])
        found = read_flow(path, plan, fields=5)
        assert asked[-1] == 1
        assert torch.equal(found, stacked(values, [order] * 4))
        found = read_flow(write_folder(tmp_path / f"f{count}", values[:count]), plan, fields=5)
        assert torch.equal(found, stacked(values, [order] * 4))


def test_only_what_is_wanted_is_decoded_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vireo.data.images as module

    folder = write_folder(tmp_path / "clip", fields(30), ending="jpg")
    opened: list[int] = []
    decode = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda *args, **options: opened.append(1) or decode(*args, **options))
    read_flow(folder, starts(3, 5, 20), fields=4)  # 3…8 and 20…23
    assert len(opened) == 2 * (6 + 4)


def test_jpegs_are_read_as_their_luminance(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(H) * 3, np.arange(W) * 4).astype(np.uint8)
    values = np.broadcast_to(smooth, (5, 2, H, W))
    found = read_flow(write_folder(tmp_path / "a", values, ending="jpg"), starts(0), fields=5)
    assert (found.int() - torch.from_numpy(smooth.copy()).int()).abs().max() <= 3
    for file in (tmp_path / "a").iterdir():  # three equal channels, as some tools write them
        file.write_bytes(bytes(encode_jpeg(torch.from_numpy(smooth.copy()).expand(3, -1, -1).contiguous(), 95).numpy()))
    colour = read_flow(tmp_path / "a", starts(0), fields=5)
    assert (colour.int() - found.int()).abs().max() <= 3


# --- hostile files --------------------------------------------------------------------------------------------


def npy_with_header(path: Path, header: str, body: bytes = b"") -> Path:
    text = header.encode("latin1")
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body)
    return path


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def hostile_arrays(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name → file, and words of the reason."""
    good = fields(6)
    header = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}\n"
    files = {
        "pickle": (folder / "pickle.npy", "not a .npy array"),
        "objects": (folder / "objects.npy", "values of type object"),
        "integers": (write_array(folder / "integers.npy", good.astype(np.int64)), "values of type int64"),
        "complex": (write_array(folder / "complex.npy", good.astype(np.complex64)), "values of type complex64"),
        "flat": (write_array(folder / "flat.npy", good[0]), "shape (2, 24, 32)"),
        "rgb": (write_array(folder / "rgb.npy", np.zeros((6, 3, H, W), np.uint8)), "shape (6, 3, 24, 32)"),
        "unclear": (write_array(folder / "unclear.npy", np.zeros((6, 2, H, 2), np.uint8)), "shape (6, 2, 24, 2)"),
        "none": (write_array(folder / "none.npy", good[:0]), "is empty"),
        "thin": (write_array(folder / "thin.npy", np.zeros((6, 2, 0, 9), np.uint8)), "is empty"),
        "nan": (write_array(folder / "nan.npy", np.full((6, 2, H, W), np.nan, np.float32)), "not a number"),
        "infinite": (write_array(folder / "inf.npy", np.full((6, 2, H, W), np.inf, np.float32)), "infinite"),
        "cut": (write_array(folder / "cut.npy", good), "cut short"),
        "empty": (folder / "empty.npy", "not a .npy array"),
        "text": (folder / "text.npy", "not a .npy array"),
        "huge": (npy_with_header(folder / "huge.npy", header.format("|u1", f"({1 << 40}, 2, 64, 64)")), "cut short"),
        "vast": (npy_with_header(folder / "vast.npy", header.format("|u1", f"({10**30}, 2, 64, 64)")), "cut short"),
        "wide": (
            npy_with_header(folder / "wide.npy", header.format("<f4", f"(1, 2, {1 << 40}, {1 << 40})")),
            "larger than any real flow",
        ),
        "negative": (npy_with_header(folder / "negative.npy", header.format("|u1", "(-6, 2, 64, 64)")), "empty"),
        **{
            f"truth{i}": (
                npy_with_header(folder / f"truth{i}.npy", header.format("|u1", shape), bytes(99)),
                "not of whole numbers",
            )
            for i, shape in enumerate(("(True, 2, 4, 4)", "(1, 2, True, 4)", "(1, 2, 4, True)", "(True, 4, 4, 2)"))
        },
        "deep": (npy_with_header(folder / "deep.npy", "(" * 9000), "header is damaged"),
        "unclosed": (npy_with_header(folder / "unclosed.npy", "{'descr': '''"), "header is damaged"),
        "code": (npy_with_header(folder / "code.npy", "__import__('os').mkdir('pwned')"), "header is damaged"),
        "type": (npy_with_header(folder / "type.npy", header.format("zz", "(1, 2, 3, 4)")), "header is damaged"),
        "version": (folder / "version.npy", "not a .npy array"),
        "other": (folder / "clip.mp4", "not a clip of flow"),
        "gone": (folder / "gone.npy", "no such file"),
        "pipe": (folder / "pipe.npy", "not a regular file"),
    }
    files["pickle"][0].write_bytes(pickle.dumps(Trap()))
    np.save(files["objects"][0], np.array([[[[Trap()]] * 2]], dtype=object), allow_pickle=True)
    files["cut"][0].write_bytes(files["cut"][0].read_bytes()[:-1])
    files["empty"][0].touch()
    files["text"][0].write_text("hello")
    files["version"][0].write_bytes(b"\x93NUMPY\x09\x00" + bytes(200))
    files["other"][0].write_bytes(b"a video")
    os.mkfifo(files["pipe"][0])
    return files


def test_hostile_arrays_are_refused_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (path, reason) in hostile_arrays(tmp_path).items():
        with pytest.raises(DecodeError) as caught:
            read_flow(path, lambda count: segment_indices(count, 2), fields=2)
        assert caught.value.path == str(path), name
        assert reason in caught.value.reason, (name, caught.value.reason)
    assert not (tmp_path / "pwned").exists()


def spoil(name: str, folder: Path) -> None:
    first = folder / "flow_x_00001.jpg"
    whole = first.read_bytes()
    if name == "counts":
        (folder / "flow_y_00006.jpg").unlink()
    elif name == "numbers":
        (folder / "flow_y_00006.jpg").rename(folder / "flow_y_00007.jpg")
    elif name == "twice":
        (folder / "flow_x_1.jpg").write_bytes(whole)
    elif name == "cut":
        first.write_bytes(whole[: len(whole) // 2])
    elif name == "empty":
        first.write_bytes(b"")
    elif name == "text":
        first.write_text("<html>404</html>")
    elif name == "header":
        first.write_bytes(whole[:20])
    elif name == "bomb":  # 65500 × 65500 by its header
        at = whole.index(b"\xff\xc0")
        first.write_bytes(whole[: at + 5] + b"\xff\xdc\xff\xdc" + whole[at + 9 :])
    elif name == "size":
        first.write_bytes(bytes(encode_jpeg(torch.zeros(1, H, W + 1, dtype=torch.uint8)).numpy()))
    elif name == "link":
        first.unlink()
        first.symlink_to("nowhere")
    elif name == "pipe":
        first.unlink()
        os.mkfifo(first)
    elif name == "no images":
        for file in folder.iterdir():
            file.unlink()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("counts", "6 x images and 5 y images"),
        ("numbers", "x image number 6 has no y image"),
        ("twice", "x image number 1 occurs twice"),
        ("cut", "flow_x_00001.jpg: damaged or cut short"),
        ("empty", "flow_x_00001.jpg: empty file"),
        ("text", "flow_x_00001.jpg: not a JPEG or PNG image"),
        ("header", "flow_x_00001.jpg: not a JPEG or PNG image, or its header is damaged"),
        ("bomb", "flow_x_00001.jpg: 65500×65500 pixels"),
        ("size", "pixels where others have"),
        ("link", "flow_x_00001.jpg: no such file"),
        ("pipe", "flow_x_00001.jpg: not a regular file"),
        ("no images", "holds no flow images"),
    ],
)
def test_a_damaged_folder_is_refused_with_a_reason(tmp_path: Path, fault: str, reason: str) -> None:
    folder = write_folder(tmp_path / "clip", fields(6), ending="jpg")
    spoil(fault, folder)
    with pytest.raises(DecodeError) as caught:
        read_flow(folder, starts(0), fields=5)
    assert caught.value.path == str(folder)
    assert reason in caught.value.reason
    assert MAX_PIXELS < 65500**2


def test_a_folder_of_too_many_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "clip", fields(6))
    (tmp_path / "texts").mkdir()
    for i in range(12):
        (tmp_path / "texts" / f"{i}.txt").touch()
    monkeypatch.setattr("vireo.data.images.MAX_ENTRIES", 11)
    with pytest.raises(DecodeError, match="holds more than 11 entries"):
        read_flow(folder, starts(0), fields=5)
    assert not is_flow_clip(tmp_path / "texts")
    monkeypatch.undo()
    assert len(read_flow(folder, starts(0), fields=5)) == 1 and not is_flow_clip(tmp_path / "texts")


# --- mirror images and other transforms -----------------------------------------------------------------------


def test_a_mirror_image_moves_the_other_way() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    stacks = every.view(1, 1, 16, 16).repeat(2, 4, 1, 1)  # x1 y1 x2 y2, all values each
    before = stacks.clone()
    mirrored = mirror_flow(stacks)
    assert torch.equal(stacks, before)  # no view of it is changed
    for channel in range(4):
        for row in range(16):
            for column in range(16):
                value = int(stacks[0, channel, row, 15 - column])
                expected = value if channel % 2 else min(256 - value, 255)
                assert int(mirrored[1, channel, row, column]) == expected
    # In the model's units, (q - 128), it is an exact negation; no motion stays no motion.
    q = every.int() - 128
    negated = mirrored[0, 0].flip(-1).flatten().int() - 128
    assert torch.equal(negated[1:], -q[1:]) and negated[128] == 0 and negated[0] == 127
    twice = mirror_flow(mirror_flow(stacks))
    assert torch.equal(twice.flatten(2)[..., 1:], stacks.flatten(2)[..., 1:])


def test_training_mirrors_half_of_the_flow_and_does_not_jitter_it() -> None:
    values = torch.from_numpy(fields(5).reshape(1, 10, H, W)[..., :H].copy()).contiguous(
        memory_format=torch.channels_last
    )
    view, augment = ViewConfig(size=H, short_side=H), AugmentConfig(scales=(1.0,), color_jitter=0.5)
    flips, both = 0, flip_rule(("a", "b"), "on")
    for seed in range(40):
        found, _ = train_transform(values, view, augment, np.random.default_rng(seed), both, 0, flow=True)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, values) or torch.equal(found, mirror_flow(values))
        flips += not torch.equal(found, values)
    assert 10 < flips < 30
    none = flip_rule(("a", "b"), "off")
    still, _ = train_transform(values, view, augment, np.random.default_rng(1), none, 0, flow=True)
    assert torch.equal(still, values)


def test_a_resize_treats_every_channel_alike() -> None:
    values = torch.from_numpy(fields(10, height=40, width=56).reshape(2, 10, 40, 56))
    whole = eval_transform(values.contiguous(memory_format=torch.channels_last), ViewConfig(size=32))
    assert whole.shape == (2, 10, 32, 32) and whole.is_contiguous(memory_format=torch.channels_last)
    for channel in range(10):
        alone = values[:, channel : channel + 1].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        assert torch.equal(eval_transform(alone, ViewConfig(size=32))[:, 0], whole[:, channel])


# --- data sets ------------------------------------------------------------------------------------------------


def write_classes(root: Path, clips: int = 4, count: int = 8, size: int = 36) -> Path:
    """Two classes of clips that move right or left; folders and arrays by turns."""
    rng = np.random.default_rng(0)
    for label, speed in (("right", 40), ("left", -40)):
        for i in range(clips):
            values = np.clip(128 + rng.normal(0, 10, (count, 2, size, size)), 0, 255)
            values[:, 0] += speed
            values = values.clip(0, 255).astype(np.uint8)
            if i % 2:
                write_array(root / label / f"{label}_{i}.npy", values)
            else:
                write_folder(root / label / f"{label}_{i}", values, ending="jpg")
    return root


def test_a_folder_per_class_holds_folders_and_arrays(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "flow", clips=2)
    write_folder(root / "left" / "day2" / "left_10", fields(6), "u/frame7.jpg")
    (root / "left" / "notes.txt").touch()
    (root / "left" / ".trash").mkdir()
    table = read_table(root, modality="flow")
    found = [Path(path).relative_to(root).as_posix() for path in table.paths]
    assert found == ["left/day2/left_10", "left/left_0", "left/left_1.npy", "right/right_0", "right/right_1.npy"]
    assert table.labels.tolist() == [0, 0, 0, 1, 1] and table.label_names == ("left", "right")
    assert table.notes == (f"{root}: ignored 1 file that is no clip of flow (1 × .txt)",)
    with pytest.raises(
        DataError, match=r"holds no videos.*there are clips of flow: a model of --modality flow takes them"
    ):
        read_table(root)
    write_array(root / "stray.npy", fields(6))
    assert "1 clip of flow lies beside the class folders" in read_table(root, modality="flow").notes[1]
    (root / "up").mkdir()
    with pytest.raises(DataError, match="no clips of flow in class folder 'up'"):
        read_table(root, modality="flow")


def test_a_tree_without_flow_says_what_a_clip_is(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "c.mp4").touch()
    with pytest.raises(DataError, match=r"no clips of flow in its 2 class folders \(only 2 × .mp4\).*`vireo flow`"):
        read_table(tmp_path, modality="flow")
    for label in "ab":
        (tmp_path / label / "c.mp4").rename(tmp_path / label / "c.txt")
    with pytest.raises(DataError, match=r"no clips of flow in its 2 class folders \(only 2 × .txt\).*flow_x_00001"):
        read_table(tmp_path, modality="flow")


def test_a_list_of_the_other_modality_is_told(tmp_path: Path) -> None:
    for i in range(3):
        write_folder(tmp_path / f"flow{i}", fields(6))
        (tmp_path / f"video{i}.mp4").touch()
    listed = {kind: tmp_path / f"{kind}.csv" for kind in ("flow", "video", "both")}
    rows = {kind: [f"{kind}{i}{'.mp4' * (kind == 'video')},{i % 2}" for i in range(3)] for kind in ("flow", "video")}
    rows["both"] = rows["flow"] + rows["video"]
    for kind, path in listed.items():
        path.write_text("\n".join(["path,label", *rows[kind]]) + "\n")
    with pytest.raises(UsageError, match=r"flow.csv lists clips of flow, where videos are wanted: .* --modality flow"):
        read_table(listed["flow"])
    with pytest.raises(UsageError, match=r"video.csv lists videos, where clips of flow are wanted: `vireo flow`"):
        read_table(listed["video"], modality="flow")
    assert len(read_table(listed["flow"], modality="flow")) == len(read_table(listed["video"])) == 3
    for modality in ("rgb", "flow"):  # reading the clips will tell which can't be used
        assert len(read_table(listed["both"], modality=modality)) == 6
    for i in range(3):  # frames and their flow in one folder are either
        (tmp_path / f"flow{i}/00001.jpg").touch()
    assert len(read_table(listed["flow"])) == len(read_table(listed["flow"], modality="flow")) == 3


@pytest.mark.parametrize("name", ["video.mp4", "frames"])
def test_a_video_given_for_flow_says_how_to_make_flow(tmp_path: Path, name: str) -> None:
    (tmp_path / "video.mp4").write_bytes(b"x")
    (tmp_path / "frames").mkdir()
    with pytest.raises(DecodeError, match="`vireo flow` computes the flow of videos and of folders of frames"):
        read_flow(tmp_path / name, starts(0), fields=5)


def test_samples_of_flow(tmp_path: Path) -> None:
    root = tmp_path / "flow"
    values = fields(9, height=H, width=H)
    write_folder(root / "a" / "1", values)
    write_array(root / "b" / "1.npy", values)
    write_array(root / "b" / "bad.npy", values[:, 0])
    table = read_table(root, modality="flow")
    view = ViewConfig(size=H, short_side=H)
    dataset = ClipDataset(table, view, 2, flow_fields=5)
    first, second, bad = (dataset[0, i] for i in range(3))
    assert isinstance(first, Sample) and isinstance(second, Sample)
    expected = stacked(values, [list(range(s, s + 5)) for s in segment_indices(5, 2)])
    assert torch.equal(first.clip, expected) and torch.equal(second.clip, expected)
    assert isinstance(bad, Failure) and "shape (9, 24, 24)" in bad.reason
    batch = collate([first, bad, second])
    assert batch.clips.shape == (2, 2, 10, H, H) and len(batch.failures) == 1
    assert batch.clips.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    flips = flip_rule(table.label_names, "on")
    training = ClipDataset(table, view, 2, AugmentConfig(color_jitter=0.3), flips, seed=3, flow_fields=5)
    drawn = [training[epoch, 0] for epoch in (0, 0, 1)]
    assert torch.equal(drawn[0].clip, drawn[1].clip)  # type: ignore[union-attr]
    assert not torch.equal(drawn[0].clip, drawn[2].clip)  # type: ignore[union-attr]


def test_a_csv_names_clips_of_flow_and_may_not_cut_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "1", fields(6))
    write_array(tmp_path / "2.npy", fields(6))
    (tmp_path / "d.csv").write_text("path,label\n1,a\n2.npy,b\n")
    dataset = ClipDataset(read_table(tmp_path / "d.csv", modality="flow"), ViewConfig(size=16), 2, flow_fields=5)
    assert all(isinstance(dataset[0, i], Sample) for i in range(2))
    cut = ClipTable(
        paths=StringColumn(["1"]),
        labels=np.zeros(1, dtype=np.int64),
        label_names=("a",),
        starts=np.array([np.nan]),
        ends=np.array([2.0]),
    )
    with pytest.raises(DataError, match="clips of flow have no times"):
        ClipDataset(cut, ViewConfig(size=16), 2, flow_fields=5)
    with pytest.raises(UsageError, match="flow_fields is -1"):
        ClipDataset(cut, ViewConfig(size=16), 2, flow_fields=-1)


def test_a_folder_of_flow_images_is_one_clip_for_predict(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "flow", clips=2)
    clip = root / "left" / "left_0"
    assert find_videos([clip], "flow") == [clip]
    assert find_videos([root / "left"], "flow") == [clip, root / "left" / "left_1.npy"]
    assert len(find_videos([root], "flow")) == 4
    with pytest.raises(DataError, match="no video files"):
        find_videos([clip])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no clips of flow"):
        find_videos([tmp_path / "empty"], "flow")


# --- the network ----------------------------------------------------------------------------------------------


def test_the_stem_is_the_mean_over_rgb_repeated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rgb = create_model("tsn", "resnet10t", num_classes=3, num_frames=2)
    path = tmp_path / "rgb.pth"
    torch.save(rgb.backbone.state_dict(), path)
    flow = create_model(
        "tsn", "resnet10t", num_classes=3, num_frames=2, modality="flow", flow_fields=3, pretrained=str(path)
    )
    stem, own = rgb.backbone.conv1[0].weight, flow.backbone.conv1[0].weight  # type: ignore[index, union-attr]
    assert own.shape == (stem.shape[0], 6, *stem.shape[2:])  # type: ignore[union-attr]
    for out in range(stem.shape[0]):  # type: ignore[union-attr]
        mean = (stem[out, 0] + stem[out, 1] + stem[out, 2]) / 3  # type: ignore[index]
        for channel in range(6):
            torch.testing.assert_close(own[out, channel], mean)  # type: ignore[index]
    for name, tensor in flow.backbone.state_dict().items():
        if name != "conv1.0.weight":
            assert torch.equal(tensor, rgb.backbone.state_dict()[name]), name


@pytest.mark.parametrize("kernel", [(3, 3), (2, 3, 3)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_the_stem_for_other_channels(kernel: tuple[int, ...], kind: torch.dtype) -> None:
    weight = torch.randn(4, 3, *kernel, generator=torch.Generator().manual_seed(0)).to(kind)
    red, green, blue = weight.float().unbind(1)
    expected = {
        1: [red + green + blue],
        2: [1.5 * red, 1.5 * green],
        4: [0.75 * red, 0.75 * green, 0.75 * blue, 0.75 * red],
        6: [red / 2, green / 2, blue / 2] * 2,
    }
    for channels, planes in expected.items():
        own = torch.empty(4, channels, *kernel)
        found = fit_stem(weight, own, average=False)
        assert found.dtype == kind and found.is_contiguous()
        torch.testing.assert_close(found, torch.stack(planes, dim=1).to(kind))
        if len(kernel) == 2:
            assert torch.equal(found, adapt_input_conv(channels, weight))
        mean = ((red + green + blue) / 3).to(kind)
        torch.testing.assert_close(fit_stem(weight, own, average=True), torch.stack([mean] * channels, dim=1))
    assert fit_stem(weight, torch.empty(4, 3, *kernel), average=True) is weight
    assert fit_stem(weight, torch.empty(5, 6, *kernel), average=False) is weight  # will be called misfit


@pytest.mark.parametrize("average", [False, True])
def test_a_3d_network_takes_weights_for_other_channels(average: bool) -> None:
    torch.manual_seed(0)
    rgb, flow = mfnet(4), mfnet(4, in_chans=6)
    fit_weights(flow, Weights(tensors=rgb.state_dict(), source="here"), average_stem=average)
    planes = rgb.stem.conv.weight.unbind(1)
    expected = [sum(planes) / 3] * 6 if average else [plane / 2 for plane in planes] * 2
    torch.testing.assert_close(flow.stem.conv.weight, torch.stack(expected, dim=1))


def test_a_flow_networks_logits_equal_a_slow_reference() -> None:
    torch.manual_seed(0)
    model = create_model("tsn", "resnet10t", num_classes=3, num_frames=2, modality="flow", flow_fields=5)
    torch.nn.init.normal_(model.classifier.weight)
    model = model.double().eval()
    clips = torch.from_numpy(fields(20, height=32, width=32)).view(2, 2, 10, 32, 32)
    backbone = model.backbone
    logits = torch.zeros(2, 3, dtype=torch.float64)
    with torch.no_grad():
        for n in range(2):
            for t in range(2):
                stack = (clips[n, t].double() - 128) / 255 / 0.226
                stem = backbone.conv1[0]  # type: ignore[index]
                first = torch.zeros(1, stem.out_channels, 16, 16, dtype=torch.float64)
                for channel in range(10):  # the stem, a channel at a time
                    kernel = stem.weight[:, channel : channel + 1]
                    first += conv2d(stack[None, channel : channel + 1], kernel, stride=stem.stride, padding=1)
                x = backbone.conv1[1:](first)  # type: ignore[index]
                x = backbone.maxpool(backbone.act1(backbone.bn1(x)))  # type: ignore[operator]
                for stage in ("layer1", "layer2", "layer3", "layer4"):
                    x = getattr(backbone, stage)(x)
                features = x.mean(dim=(2, 3))[0]
                logits[n] += (model.classifier.weight @ features + model.classifier.bias) / 2
        found = model(clips)
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-6)  # mean and deviation are held in float32
    assert logits.std() > 0.01


# --- end to end -----------------------------------------------------------------------------------------------


def test_a_temporal_stream_is_trained_scored_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = write_classes(tmp_path / "flow"), tmp_path / "run"
    write_array(data / "left" / "bad.npy", fields(4)[:, 0])
    words = [
        "train",
        "--modality",
        "flow",
        "--data",
        data,
        "--out",
        run,
        "--temporal",
        "tsm",
        "--backbone",
        "resnet10t",
    ]
    words += ["--pretrained", "false", "--size", "32", "--num-frames", "2", "--epochs", "1", "--batch-size", "4"]
    words += ["--workers", "0", "--precision", "32-true", "--val-fraction", "0.5", "--flip", "on"]
    assert cli.main([str(word) for word in words]) == 0
    assert "2 × 5 flow fields of 32²" in capsys.readouterr().out
    checkpoint = load_checkpoint(run / "best.safetensors")
    assert checkpoint.model.config.modality == "flow" and checkpoint.model.mean == (128 / 255,) * 10
    assert checkpoint.model.std == (0.226,) * 10

    assert cli.main(["eval", str(run / "best.safetensors"), "--data", str(data), "--split", "all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["expected"], found["scored"], found["failed"]) == (9, 8, 1)
    assert found["checkpoint"] == "tsm × resnet10t, 2 × 5 flow fields" and "flow" in found["decoder"]
    assert found["modality"] == read_scores(run / "best.eval").modality == "flow"
    rows = list(csv.DictReader((run / "best.eval" / "scores.csv").open()))
    assert len(rows) == 9 and [row["clip"] for row in rows if not row["left"]] == ["left/bad"]

    clips = [data / "left" / "left_0", data / "right" / "right_1.npy", data / "left" / "bad.npy"]
    assert cli.main(["predict", str(run / "best.safetensors"), *map(str, clips), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == list(map(str, clips))
    scores = {row["clip"]: torch.tensor([float(row["left"]), float(row["right"])]) for row in rows if row["left"]}
    for line, name in zip(lines, ("left/left_0", "right/right_1"), strict=False):
        top = {entry["label"]: entry["probability"] for entry in line["top"]}
        assert top["left"] == pytest.approx(float(scores[name].softmax(0)[0]), abs=1e-4)
    assert "shape (4, 24, 32)" in lines[2]["error"]
