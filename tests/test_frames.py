"""Folders of frames: naming patterns, order, gaps, announced counts, damaged images; only what is wanted is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import encode_jpeg, encode_png

from tests.video_tools import numbers_of, picture
from vireo.data import frames
from vireo.data.frames import is_frame_folder, read_all_frames, read_frame_folder
from vireo.data.sampling import segment_indices
from vireo.errors import DecodeError


def content(number: int, ending: str = "png", size: tuple[int, int] = (64, 48)) -> bytes:
    pixels = torch.from_numpy(picture(number, *size)).permute(2, 0, 1)
    return bytes((encode_png(pixels) if ending == "png" else encode_jpeg(pixels, 90)).numpy())


def write_frames(folder: Path, count: int, pattern: str = "{:05d}.jpg", first: int = 1) -> Path:
    """Frames that show their position, counted from 0."""
    folder.mkdir(parents=True)
    for i in range(count):
        name = pattern.format(first + i)
        (folder / name).write_bytes(content(i, name.rpartition(".")[2].lower()))
    return folder


def wanted(*indices: int) -> Callable[[int], np.ndarray]:
    return lambda count: np.array(indices, dtype=np.int64)


def everything(count: int) -> np.ndarray:
    return np.arange(count)


def reason_of(folder: Path, plan: Callable[[int], np.ndarray] = everything, **options: int) -> str:
    with pytest.raises(DecodeError) as caught:
        read_frame_folder(folder, plan, **options)
    assert caught.value.path == str(folder)
    return caught.value.reason


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "pattern",
    [
        "{:05d}.jpg",
        "{:06d}.jpg",
        "img_{:05d}.jpg",
        "frame_{:06d}.png",
        "{}.png",  # 10 comes after 9, not after 1
        "image-{}.JPEG",
        "v_Run_g01_c02_{:04d}.jpg",
        "größe {:03d}.jpg",
    ],
)
def test_every_naming_pattern_is_read_in_order(tmp_path: Path, pattern: str, first: int) -> None:
    folder = write_frames(tmp_path / "clip", 12, pattern, first)
    assert is_frame_folder(folder)
    frames = read_frame_folder(folder, wanted(0, 3, 3, 10, 11))
    assert numbers_of(frames.data) == [0, 3, 3, 10, 11]
    assert frames.indices.tolist() == [0, 3, 3, 10, 11] and frames.frame_count == 12
    assert frames.data.shape == (5, 3, 48, 64) and frames.data.dtype == torch.uint8
    assert frames.data.permute(0, 2, 3, 1).is_contiguous() and frames.path == str(folder)
    assert frames.moved.tolist() == [0] * 5 and frames.backend == "images"


def test_png_frames_are_read_exactly(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 5, "{:05d}.png")
    frames = read_frame_folder(folder, everything)
    assert np.array_equal(frames.data.permute(0, 2, 3, 1).numpy(), np.stack([picture(i) for i in range(5)]))


def test_the_plan_is_asked_for_the_number_of_images(tmp_path: Path) -> None:
    folder, asked = write_frames(tmp_path / "clip", 7), list[int]()

    def plan(count: int) -> np.ndarray:
        asked.append(count)
        return segment_indices(count, 16)

    frames = read_frame_folder(folder, plan)  # a clip shorter than T repeats frames
    assert asked == [7]
    assert numbers_of(frames.data) == segment_indices(7, 16).tolist()


def test_only_the_images_wanted_are_opened_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vireo.data.images as module

    folder = write_frames(tmp_path / "clip", 30)
    for number in (1, 2, 30):
        (folder / f"{number:05d}.jpg").write_bytes(b"damaged")
    opened: list[int] = []
    decode = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda *args, **options: opened.append(1) or decode(*args, **options))
    assert numbers_of(read_frame_folder(folder, wanted(2, 9, 9, 28)).data) == [2, 9, 9, 28]
    assert len(opened) == 3


def test_what_lies_beside_the_frames_is_left_alone(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 6, "img_{:05d}.jpg")
    for name in ("flow_x_00001.jpg", "flow_y_00001.jpg", "x_00001.jpg", "v12.png"):  # TSN kept flow here
        (folder / name).write_bytes(b"flow")
    for name in (".img_00003.jpg", "._img_00001.jpg", "thumbs.db", "cover.jpg", "img_00007.jpg.tmp", "audio_1.wav"):
        (folder / name).touch()
    (folder / "x").mkdir()
    assert numbers_of(read_frame_folder(folder, everything).data) == list(range(6))


def test_what_is_a_folder_of_frames(tmp_path: Path) -> None:
    assert is_frame_folder(write_frames(tmp_path / "clip", 1))
    others = {"flow": ["flow_x_00001.jpg", "flow_y_00001.jpg"], "videos": ["1.mp4"], "named": ["cover.jpg"], "none": []}
    for name, files in others.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        assert not is_frame_folder(tmp_path / name)
    assert is_frame_folder(write_frames(tmp_path / "letters" / "v", 1))
    assert not is_frame_folder(write_frames(tmp_path / "letters" / "u", 1))  # u and v are flow
    assert not is_frame_folder(tmp_path / "letters" / "v")
    assert not is_frame_folder(tmp_path / "clip" / "00001.jpg")
    assert not is_frame_folder(tmp_path / "gone")


# --- numbering ------------------------------------------------------------------------------------------------


def test_reading_all_frames_lists_the_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_frames(tmp_path / "clip", 70, "{:05d}.png")
    listed: list[str] = []
    real = frames.list_folder
    monkeypatch.setattr(frames, "list_folder", lambda path: listed.append(path) or real(path))
    parts = list(read_all_frames(folder))
    assert len(listed) == 1 and [len(part.data) for part in parts] == [32, 32, 6]
    assert torch.equal(torch.cat([part.data for part in parts]), read_frame_folder(folder, everything).data)
    assert np.concatenate([part.indices for part in parts]).tolist() == list(range(70))
    assert sum(len(part.data) for part in read_all_frames(folder, frame_count=40)) == 40
    for number in range(33, 65):  # a whole part
        (folder / f"{number:05d}.png").write_bytes(content(number - 1, size=(32, 24)))
    with pytest.raises(DecodeError, match=r"00033.png: 32×24 pixels where 00001.png has 64×48"):
        list(read_all_frames(folder))


def test_gaps_in_the_numbering_are_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 30)
    for number in (7, 12, 13, 14, 29):
        (folder / f"{number:05d}.jpg").unlink()
    assert reason_of(folder) == "missing frames: 7, 12–14, 29 (of 1 to 30)"
    for number in range(2, 30, 2):
        (folder / f"{number:05d}.jpg").unlink(missing_ok=True)
    assert reason_of(folder) == "missing frames: 2, 4, 6–8, 10, 12–14 and 7 more gaps (of 1 to 30)"


def test_a_clip_must_begin_at_its_beginning(tmp_path: Path) -> None:
    assert "begins at frame 2" in reason_of(write_frames(tmp_path / "clip", 5, first=2))


def test_numbers_that_are_there_twice_are_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 5)
    (folder / "3.jpg").write_bytes(content(2, "jpg"))
    assert reason_of(folder) == "frame 3 is there twice: 00003.jpg and 3.jpg"
    (folder / "3.jpg").rename(folder / "00003.png")
    assert reason_of(folder) == "frame 3 is there twice: 00003.jpg and 00003.png"


def test_two_rows_of_images_are_no_clip(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 1, "img_{:05d}.jpg")
    (folder / "mask_00001.jpg").write_bytes(content(0, "jpg"))
    assert reason_of(folder).startswith("holds images of two kinds, img_00001.jpg and mask_00001.jpg")


def test_an_announced_number_of_frames(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 10)
    assert read_frame_folder(folder, wanted(9), frame_count=10).frame_count == 10
    shorter = read_frame_folder(folder, everything, frame_count=4)
    assert numbers_of(shorter.data) == [0, 1, 2, 3] and shorter.frame_count == 4
    assert reason_of(folder, frame_count=11) == "11 frames announced, 10 images there"
    assert reason_of(folder, frame_count=0) == "0 frames announced, 10 images there"


def test_a_plan_outside_the_clip_is_the_callers_mistake(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 4)
    for indices in ((4,), (-1, 2), (2, 1)):
        with pytest.raises((ValueError, IndexError)):
            read_frame_folder(folder, wanted(*indices))


# --- hostile folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("cut", "00003.jpg: damaged or cut short"),
        ("empty", "00003.jpg: empty file"),
        ("text", "00003.jpg: not a JPEG or PNG image"),
        ("size", "00003.jpg: 80×48 pixels where 00001.jpg has 64×48"),
        ("pipe", "00003.jpg: not a regular file"),
        ("folder", "00003.jpg: not a regular file"),
        ("link", "00003.jpg: no such file"),
        ("bomb", "00003.jpg: 65500×65500 pixels"),
    ],
)
def test_a_wanted_image_that_is_damaged_costs_the_clip(tmp_path: Path, fault: str, reason: str) -> None:
    folder = write_frames(tmp_path / "clip", 6)
    file = folder / "00003.jpg"
    whole = file.read_bytes()
    file.unlink()
    if fault == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif fault == "empty":
        file.touch()
    elif fault == "text":
        file.write_text("<html>404</html>")
    elif fault == "size":
        file.write_bytes(content(2, "jpg", (80, 48)))
    elif fault == "pipe":
        os.mkfifo(file)
    elif fault == "folder":
        file.mkdir()
    elif fault == "link":
        file.symlink_to("nowhere")
    elif fault == "bomb":
        at = whole.index(b"\xff\xc0")
        file.write_bytes(whole[: at + 5] + b"\xff\xdc\xff\xdc" + whole[at + 9 :])
    assert reason in reason_of(folder)
    assert numbers_of(read_frame_folder(folder, wanted(0, 5)).data) == [0, 5]


def test_what_is_no_folder_of_frames_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no frames (00001.jpg" in reason_of(tmp_path / "empty")
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow/flow_x_00001.jpg").touch()
    assert "holds optical flow and no frames; a model of --modality flow takes it" in reason_of(tmp_path / "flow")
    (tmp_path / "empty" / f"{'9' * 40}.jpg").touch()  # no frame has such a number
    assert "holds no frames" in reason_of(tmp_path / "empty")
    assert reason_of(tmp_path / "gone") == "no such folder"
    (tmp_path / "video.mp4").touch()
    assert reason_of(tmp_path / "video.mp4") == "no such folder"
    folder = write_frames(tmp_path / "clip", 5)
    monkeypatch.setattr("vireo.data.images.MAX_ENTRIES", 4)
    assert "holds more than 4 entries" in reason_of(folder)
    (tmp_path / "many").mkdir()
    for i in range(5):
        (tmp_path / "many" / f"{i}.txt").touch()
    assert not is_frame_folder(tmp_path / "many")
