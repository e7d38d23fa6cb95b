"""One image of a clip: what it holds, and what is refused before memory is taken for it."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_image, encode_jpeg, encode_png

from vireo.data.images import MAX_FILE, MAX_PIXELS, list_folder, picture_size, read_image
from vireo.errors import DecodeError

H, W = 24, 32


def smooth(height: int = H, width: int = W) -> np.ndarray:
    """(H, W, 3) uint8; no two corners are alike, and JPEG changes it little."""
    rows, columns = np.mgrid[:height, :width]
    planes = [40 + 5 * rows, 30 + 6 * columns, 200 - 3 * rows - 2 * columns]
    return np.stack(planes, axis=2).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "jpeg", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95, "subsampling": 0} if kind == "jpeg" else {}) | options)
    return file.getvalue()


def read(folder: Path, content: bytes, name: str = "00001.jpg", **options: bool) -> np.ndarray:
    (folder / name).write_bytes(content)
    return read_image(str(folder / name), clip=str(folder), **options)


# --- what it holds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_kind_are_read_as_rgb(tmp_path: Path, mode: str, progressive: bool) -> None:
    content = encoded(Image.fromarray(smooth()).convert(mode), progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    found = read(tmp_path, content)
    assert found.shape == (H, W, 3) and found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.abs(found.astype(int) - expected).max() <= 2
    grey = np.asarray(Image.fromarray(smooth()).convert("L").convert("RGB")) if mode == "L" else smooth()
    assert np.abs(found.astype(int) - grey).max() <= 6


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1"])
def test_pngs_of_every_kind_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(smooth()).convert(mode)
    found = read(tmp_path, encoded(image, "png"), "00001.png")
    assert np.array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = smooth()
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    found = read(tmp_path, encoded(Image.fromarray(stored), exif=exif))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 6


def test_grey_is_the_luminance_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    content = encoded(Image.fromarray(smooth()).convert("L"), exif=exif)
    found = read(tmp_path, content, gray=True)
    assert found.shape == (H, W)
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("gray", [False, True])
def test_sixteen_bits_are_refused(tmp_path: Path, gray: bool) -> None:
    image = Image.fromarray(np.linspace(0, 65535, H * W).reshape(H, W).astype(np.uint16))
    with pytest.raises(DecodeError, match="16 bits"):
        read(tmp_path, encoded(image, "png"), "1.png", gray=gray)


# --- hostile files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_refused(tmp_path: Path, progressive: bool) -> None:
    whole = encoded(Image.fromarray(smooth()), progressive=progressive)
    for length in range(len(whole)):
        with pytest.raises(DecodeError) as caught:
            read(tmp_path, whole[:length])
        assert caught.value.path == str(tmp_path) and caught.value.reason.startswith("00001.jpg: ")


def test_random_bytes_never_do_worse_than_an_error(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(smooth()))
    rng = np.random.default_rng(0)
    read_ones = 0
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            content[at] = rng.integers(256)
        with contextlib.suppress(DecodeError):
            read_ones += read(tmp_path, bytes(content)).shape == (H, W, 3)
    assert 0 < read_ones < 300


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    (tmp_path / "gif.jpg").write_bytes(encoded(Image.fromarray(smooth()), "gif"))
    with (tmp_path / "vast.jpg").open("wb") as file:
        file.truncate(MAX_FILE + 1)  # takes no room on the disk
    reasons = {
        "folder": "not a regular file",
        "pipe": "not a regular file",
        "empty": r"empty file \(0 bytes\)",
        "link": "no such file",
        "gone": "no such file",
        "text": "not a JPEG or PNG",
        "gif": "not a JPEG or PNG",
        "vast": "too large for an image",
    }
    for name, reason in reasons.items():
        with pytest.raises(DecodeError, match=rf"{name}\.jpg: {reason}"):
            read_image(str(tmp_path / f"{name}.jpg"), clip=str(tmp_path))


SOF = b"\xff\xc0\x00\x0b\x08\x00\x10\x00\x10\x01\x01\x11\x00"  # 16 × 16, one channel


def jpeg_with(before: bytes, height: int = H, width: int = W) -> bytes:
    """A grey image with bytes after its first marker."""
    whole = bytes(encode_jpeg(torch.zeros(1, height, width, dtype=torch.uint8), 5).numpy())
    return whole[:2] + before + whole[2:]


def test_a_header_that_decoders_read_otherwise_does_not_pass_the_bound_on_size(tmp_path: Path) -> None:
    # A decoder skips FF 00 and what follows up to the next marker, a comment, which hides a small frame; whoever
    # takes FF 00 for a segment with a length lands on that frame.
    side = 8200
    comment = b"\xff\xfe" + (2 + len(SOF)).to_bytes(2, "big") + SOF
    content = jpeg_with(b"\xff\x00" + (2 + 4).to_bytes(2, "big") + comment, side, side)
    assert side**2 > MAX_PIXELS and content[4 + 2 + 4 :].startswith(SOF)
    decoded = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    assert decoded.shape == (1, side, side)  # what must not happen to a clip
    with pytest.raises(DecodeError, match=r"00001\.jpg: not a JPEG or PNG image, or its header is damaged"):
        read(tmp_path, content)


@pytest.mark.parametrize("height, width", [(8200, 8200), (20000, 8), (8, 20000)])
def test_pictures_larger_than_any_real_one_are_refused_by_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    monkeypatch.setattr("vireo.data.images.decode_image", lambda *args: pytest.fail("decoded"))
    content = bytearray(encode_png(torch.zeros(1, 8, 8, dtype=torch.uint8)).numpy())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    with pytest.raises(DecodeError, match=f"1.png: {width}×{height} pixels; no real video has such frames"):
        read(tmp_path, bytes(content), "1.png")


@pytest.mark.parametrize(
    "before",
    [
        b"\xff\x00" + SOF,
        b"\xff\x00\x00\x02" + SOF,
        b"\xff\xfe\x00\x00" + SOF,  # lengths count their own two bytes
        b"\xff\xfe\x00\x01" + SOF,
        b"\xff\xda\x00\x02" + SOF,  # pixels before a frame
        b"\xff\xd9\x00\x02" + SOF,  # the end before a frame
        b"\xff\xd8" + SOF,
        b"\x00" + SOF,
        b"\xff\xfe\xff\xff",  # past the end
    ],
)
def test_damage_before_the_frame_of_a_jpeg_is_refused(before: bytes) -> None:
    assert picture_size(jpeg_with(b"")) == (H, W)
    assert picture_size(jpeg_with(b"\xff\xfe\x00\x05abc\xff\xff\xff\x01\xff\xd0")) == (H, W)  # all allowed
    assert picture_size(jpeg_with(before)) is None


def test_a_png_must_begin_with_a_whole_header() -> None:
    whole = bytes(encode_png(torch.zeros(1, H, W, dtype=torch.uint8)).numpy())
    assert picture_size(whole) == (H, W)
    assert picture_size(whole[:23]) is None
    for length in (0, 12, 14):
        assert picture_size(whole[:8] + length.to_bytes(4, "big") + whole[12:]) is None
    assert picture_size(whole[:8] + b"\x00\x00\x00\x00tEXt\x00\x00\x00\x00" + whole[8:]) is None


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("gray", [False, True])
def test_what_is_decoded_must_be_what_the_header_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, gray: bool
) -> None:
    monkeypatch.setattr("vireo.data.images.picture_size", lambda data: (W, W))
    with pytest.raises(DecodeError, match=f"{W}×{H} pixels where its header says {W}×{W}"):
        read(tmp_path, encoded(Image.fromarray(smooth()), kind), gray=gray)


def test_a_folder_of_too_many_entries_is_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1.jpg", "2.jpg", ".hidden"):
        (tmp_path / name).touch()
    assert sorted(entry.name for entry in list_folder(tmp_path)) == ["1.jpg", "2.jpg"]
    monkeypatch.setattr("vireo.data.images.MAX_ENTRIES", 2)
    with pytest.raises(DecodeError, match="holds more than 2 entries"):
        list(list_folder(tmp_path))
