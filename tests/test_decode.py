"""Decoding: the right frames, exact cuts, and a plain reason for everything that can't be read."""

from __future__ import annotations

import os
import random
import socket
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision.io import encode_png

from vireo.data import container, images, pictures, torchcodec
from vireo.data.decode import Frames, Plan, decoder_name, probe, read_frames
from vireo.data.index import VideoIndex
from vireo.data.sampling import Indices, segment_indices
from vireo.errors import DecodeError, MissingDependencyError

from .video_tools import FPS, number_of, numbers_of, picture, shared, write_sound, write_video


def eight(frame_count: int) -> Indices:
    return segment_indices(frame_count, 8)


def every(frame_count: int) -> Indices:
    return np.arange(frame_count)


def sequential(path: Path) -> list[np.ndarray]:
    """All frames by the plainest means: the reference."""
    with av.open(str(path)) as container:
        return [
            np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90)
            for frame in container.decode(container.streams.video[0])
        ]


def assert_equals_sequential(path: Path, plan: Plan) -> None:
    reference = sequential(path)
    frames = read_frames(path, plan)
    assert frames.frame_count == len(reference)
    assert frames.indices.tolist() == plan(len(reference)).tolist()
    for image, index in zip(frames.data, frames.indices, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), reference[index])


CODECS = [
    ("a.mp4", "libx264", {}),
    ("g12.mp4", "libx264", {"g": "12"}),
    ("open.mkv", "libx264", {"x264-params": "open-gop=1:keyint=8:bframes=3:log-level=none"}),
    ("intra.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=10:log-level=none"}),
    ("a.ts", "libx264", {"g": "12"}),
    ("a.avi", "libx264", {}),
    ("p.avi", "mpeg4", {}),
    ("b.avi", "mpeg4", {"bf": "2"}),
    ("m.mp4", "mpeg4", {"bf": "2"}),
    ("m.mpg", "mpeg2video", {"bf": "2"}),
    ("v8.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "8"}),
    ("v9.webm", "libvpx-vp9", {}),
    ("j.avi", "mjpeg", {}),
    ("f.flv", "flv", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), CODECS, ids=[c[0] for c in CODECS])
def test_frames_equal_those_of_full_decoding(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = write_video(tmp_path / name, 45, codec=codec, options=options)
    for plan in (eight, every, lambda count: np.array([count - 1])):
        assert_equals_sequential(path, plan)
    assert probe(path).frame_count == len(sequential(path))
    assert numbers_of(read_frames(path, eight).data) == eight(45).tolist()


@pytest.mark.parametrize(
    "name",
    [
        "arm_wrestling.mp4", "example.avi", "pancake.mkv", "part_0.mp4", "rotated_0.mov", "rotated_90.mov",
        "rotated_180.mov", "rotated_270.mov", "test_320x240.avi", "test_340x256.mp4",
    ],
)  # fmt: skip
def test_real_clips_equal_full_decoding(name: str) -> None:
    assert_equals_sequential(shared("clips", name), eight)


def test_packed_b_frames_give_fewer_frames_than_packets() -> None:
    path = shared("interactions", "kick", "seq06_030.avi")
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert packets > len(sequential(path))
    assert_equals_sequential(path, eight)


@pytest.mark.parametrize("limit", ["container._HELD_PACKETS", "decode._HELD_FRAMES"])
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("b.avi", "mpeg4")])
def test_files_too_large_to_keep_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, name: str, codec: str
) -> None:
    path = write_video(tmp_path / name, 100, codec=codec, options={"g": "12", "bf": "2"})
    monkeypatch.setattr(f"vireo.data.{limit}", 0)
    assert_equals_sequential(path, eight)
    assert numbers_of(read_frames(path, every, start=3.2, end=3.32).data) == [80, 81, 82]


def test_frames_are_upright_channels_last_and_check_themselves(tmp_path: Path) -> None:
    frames = read_frames(write_video(tmp_path / "a.mp4"), eight)
    assert frames.data.shape == (8, 3, 48, 64) and frames.data.dtype == torch.uint8
    assert frames.data.permute(0, 2, 3, 1).is_contiguous()
    good = {"data": frames.data, "indices": frames.indices, "frame_count": 20, "path": "a"}
    Frames(**good)
    wrong = [
        {"data": frames.data.float()},
        {"data": frames.data.contiguous()},
        {"indices": frames.indices[::-1]},
        {"indices": frames.indices[:3]},
        {"frame_count": 10},
        {"moved": np.zeros(3, np.int64)},
    ]
    assert Frames(**good).moved.tolist() == [0] * 8
    for change in wrong:
        with pytest.raises(ValueError):
            Frames(**(good | change))


def test_a_plan_that_asks_for_frames_that_are_not_there_is_a_bug_not_a_bad_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    for plan in ([20], [-1], [3, 2], []):
        with pytest.raises(ValueError, match="indices"):
            read_frames(path, lambda count, plan=plan: np.array(plan, dtype=np.int64))


@pytest.mark.parametrize("angle", [0, 90, 180, -90])
def test_rotation_flags_are_applied(tmp_path: Path, angle: int) -> None:
    path = write_video(tmp_path / "r.mp4", [picture(5)] * 6, rotation=angle)
    info = probe(path)
    assert info.rotation == angle % 360
    image = read_frames(path, eight).data[0].permute(1, 2, 0).numpy()
    assert image.shape[:2] == (info.height, info.width) == ((64, 48) if angle in (90, -90) else (48, 64))
    assert number_of(np.rot90(image, k=-angle // 90)) == 5


def test_probe_tells_what_a_video_is(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "a.mp4", 20))
    assert (info.frame_count, info.fps, info.width, info.height, info.rotation) == (20, FPS, 64, 48, 0)
    assert info.codec == "h264"


def test_fewer_frames_than_asked_for_repeat_in_order(tmp_path: Path) -> None:
    frames = read_frames(write_video(tmp_path / "a.mp4", 3), eight)
    assert numbers_of(frames.data) == [0, 0, 0, 1, 1, 2, 2, 2]
    assert frames.indices.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert numbers_of(read_frames(write_video(tmp_path / "b.mp4", 1), eight).data) == [0] * 8


def test_a_video_that_changes_its_size_has_that_of_the_first_wanted_frame(tmp_path: Path) -> None:
    path = tmp_path / "both.h264"
    for i, size in enumerate([(64, 48), (96, 72)]):
        part = write_video(tmp_path / f"{i}.h264", [picture(i, *size)] * 10, size=size)
        with path.open("ab") as file:
            file.write(part.read_bytes())
    assert {image.shape for image in sequential(path)} == {(48, 64, 3), (72, 96, 3)}
    frames = read_frames(path, eight)
    assert frames.data.shape == (8, 3, 48, 64) and frames.frame_count == 20
    assert numbers_of(frames.data) == [0] * 4 + [1] * 4


# Cuts


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"), ("b.avi", "mpeg4")]
)
@pytest.mark.parametrize("gop", [12, 250])
def test_a_cut_holds_the_frames_from_start_to_before_end(tmp_path: Path, name: str, codec: str, gop: int) -> None:
    path = write_video(tmp_path / name, 120, codec=codec, options={"g": str(gop)})
    for first, last in [(0, 10), (1, 2), (47, 60), (48, 49), (100, 120), (119, 120), (5, 115)]:
        frames = read_frames(path, every, start=first / FPS, end=last / FPS)
        assert frames.frame_count == last - first
        assert numbers_of(frames.data) == list(range(first, last))
    between = read_frames(path, every, start=9.5 / FPS, end=12.5 / FPS)
    assert numbers_of(between.data) == [10, 11, 12]
    assert numbers_of(read_frames(path, every, start=117 / FPS).data) == [117, 118, 119]
    assert numbers_of(read_frames(path, every, end=3 / FPS).data) == [0, 1, 2]
    assert read_frames(path, every, start=0, end=1000).frame_count == 120


def test_a_cut_of_a_stream_whose_keyframes_are_none(tmp_path: Path) -> None:
    options = {"x264-params": "intra-refresh=1:keyint=10:bframes=0:log-level=none"}
    path = write_video(tmp_path / "a.mp4", 100, options=options)
    reference = sequential(path)
    frames = read_frames(path, every, start=60 / FPS, end=64 / FPS)
    for image, expected in zip(frames.data, reference[60:64], strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_a_late_cut_is_decoded_from_the_keyframe_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 120, options={"g": "12"})
    found: list[tuple[int, int]] = []
    plain = VideoIndex.stretches

    def spying(self: VideoIndex, wanted: Indices) -> list[tuple[int, int]]:
        found.extend(plain(self, wanted))
        return plain(self, wanted)

    monkeypatch.setattr(VideoIndex, "stretches", spying)
    for _ in range(2):  # with the container, and without
        found.clear()
        read_frames(path, every, start=100 / FPS, end=102 / FPS)
        read_frames(path, lambda count: np.array([3]))
        assert len(found) == 2 and found[0][0] == 96 and found[0][1] < 108 and found[1][0] == 0 and found[1][1] < 6


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_cuts_go_by_time_stamps_where_the_rate_varies(tmp_path: Path, name: str) -> None:
    times = [0, 10, 12, 14, 50, 100, 101, 102, 200, 250]  # in 1/250 s
    path = write_video(tmp_path / name, 10, times=times)
    assert numbers_of(read_frames(path, every).data) == list(range(10))
    for first, last in [(0, 3), (3, 6), (5, 8), (8, 10)]:
        start, end = (times[first] - 0.4) / 250, (times[last - 1] + 0.4) / 250
        assert numbers_of(read_frames(path, every, start=max(0, start), end=end).data) == list(range(first, last))


def test_an_empty_cut_says_where_the_video_ends(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 25)
    with pytest.raises(DecodeError, match=r"no frame between 3 and 4 s \(its last frame is at 0.96 s\)"):
        read_frames(path, every, start=3, end=4)


# What can't be read


def reason_of(path: Path) -> str:
    with pytest.raises(DecodeError) as caught:
        read_frames(path, eight)
    assert caught.value.path == str(path) and str(caught.value) == f"{path}: {caught.value.reason}"
    with pytest.raises(DecodeError):
        probe(path)
    return caught.value.reason


def test_reasons_are_plain(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "missing.mp4") == "no such file"
    assert reason_of(write_video(tmp_path / "a.mp4") / "b.mp4") == "no such file"
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    assert reason_of(folder) == "a folder, not a video"
    fifo = tmp_path / "fifo.mp4"
    os.mkfifo(fifo)
    assert reason_of(fifo) == "not a regular file"
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the names of sockets are short
        server.bind("s.mp4")
        os.chdir(here)
        assert reason_of(tmp_path / "s.mp4") == "not a regular file"
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert reason_of(empty) == "empty file (0 bytes)"
    text = tmp_path / "text.mp4"
    text.write_text("not a video\n" * 100)
    assert "not a video" in reason_of(text)
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(random.Random(0).randbytes(50_000))
    assert "not a video" in reason_of(noise)
    assert reason_of(write_sound(tmp_path / "sound.mp4")) == "no video stream (sound only)"
    loop = tmp_path / "loop.mp4"
    loop.symlink_to(loop)
    assert reason_of(loop)


def test_a_video_of_no_frames(tmp_path: Path) -> None:
    assert reason_of(write_video(tmp_path / "none.mp4", 0))


def test_names_need_not_be_tame(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4")
    for name in [
        "with space.mp4",
        "ümläut-動画.mp4",
        "http:__x.mp4",
        "a%03d.mp4",
        "-rf.mp4",
        "no_ending",
        "wrong.avi",
        "q'\"?.mp4",
    ]:
        path = tmp_path / name
        path.write_bytes(source.read_bytes())
        assert read_frames(path, eight).frame_count == 20
    undecodable = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\xfe.mp4")
    Path(undecodable).write_bytes(source.read_bytes())
    assert read_frames(undecodable, eight).frame_count == 20


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("network.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"),
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nx.ts\n#EXT-X-ENDLIST\n"),
        ("live.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nx.ts\n"),  # FFmpeg would wait for more
        ("list.mp4", "ffconcat version 1.0\nfile x.ts\n"),
        ("session.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
    ],
)
def test_no_other_file_is_read_than_the_one_given(tmp_path: Path, name: str, text: str) -> None:
    write_video(tmp_path / "x.ts")
    path = tmp_path / name
    path.write_text(text)
    assert "not a video" in reason_of(path)


def test_a_name_is_no_pattern_of_names(tmp_path: Path) -> None:
    for i in range(3):
        pixels = torch.from_numpy(picture(i)).permute(2, 0, 1).contiguous()
        (tmp_path / f"{i:03d}.png").write_bytes(bytes(encode_png(pixels).numpy()))
    assert reason_of(tmp_path / "%03d.png") == "no such file"
    (tmp_path / "%03d.png").write_bytes((tmp_path / "001.png").read_bytes())
    assert "not a video" in reason_of(tmp_path / "%03d.png")
    assert numbers_of(read_frames(tmp_path / "001.png", every).data) == [1]


def test_a_damaged_real_clip_is_not_passed_off_as_whole() -> None:
    assert "damaged" in reason_of(shared("clips", "corrupt_payload.mp4"))


def test_frames_of_absurd_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(images, "MAX_SIDE", 63)
    assert "64×48" in reason_of(path)


@pytest.mark.parametrize("size", [(2048, 16), (16, 2048)])
def test_frames_of_absurd_shape_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    # Resizing their short side would make pictures of gigabytes out of a few kilobytes.
    path = write_video(tmp_path / "a.mkv", 3, codec="ffv1", size=size)
    assert reason_of(path) == f"frames of {size[0]}×{size[1]} pixels; no real video has such frames"
    usual = write_video(tmp_path / "b.mkv", 3, codec="ffv1", size=(min(1024, size[0]), min(1024, size[1])))
    assert read_frames(usual, every).frame_count == 3


def test_frames_that_take_too_much_memory_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 20)
    slow = write_video(tmp_path / "b.flv", 20, codec="flv")
    monkeypatch.setattr(pictures, "MAX_BYTES", 8 * 64 * 48 * 3)
    for file in (path, path, slow, slow):  # without and with an index
        assert read_frames(file, eight).frame_count == 20
        with pytest.raises(DecodeError, match="20 frames of 64×48 pixels take more than"):
            read_frames(file, every)


def test_ffmpeg_takes_no_memory_for_frames_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 20)
    read_frames(path, eight)
    monkeypatch.setitem(container._OPTIONS, "max_pixels", str(64 * 48 - 1))
    monkeypatch.setattr(container, "check_size", lambda *size: None)  # which comes too late
    with pytest.raises(DecodeError):  # its index is known: neither way of decoding it may do it
        read_frames(path, eight)
    reason_of(write_video(tmp_path / "b.flv", 20, codec="flv"))


def test_pictures_that_cannot_be_converted_cost_the_clip_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.nut"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb4"  # which swscale writes and can't read
        for i in range(20):
            frame = av.VideoFrame(64, 48, "rgb4")
            frame.pts = i
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    for _ in range(2):
        with pytest.raises(DecodeError, match="can't be read"):
            read_frames(path, eight)


@pytest.mark.parametrize(
    ("name", "codec", "container_options"),
    [
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("end.mp4", "libx264", {}),
        ("frag.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", "libx264", {}),
        ("a.avi", "mpeg4", {}),
        ("a.ts", "libx264", {}),
    ],
)
def test_a_file_cut_at_every_tenth(tmp_path: Path, name: str, codec: str, container_options: dict[str, str]) -> None:
    path = write_video(tmp_path / name, 60, codec=codec, options={"g": "12"}, container_options=container_options)
    data = path.read_bytes()
    cut = tmp_path / f"cut_{name}"
    for tenths in range(1, 10):
        cut.write_bytes(data[: len(data) * tenths // 10])
        try:
            frames = read_frames(cut, eight)
        except DecodeError as error:
            assert error.reason and "\n" not in error.reason and len(error.reason) < 100
            continue
        assert set(numbers_of(frames.data)) <= set(range(60))
        # Formats that announce their length are not believed when most of it is missing.
        assert tenths == 9 or name in ("a.ts", "frag.mp4")


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("v.webm", "libvpx-vp9")]
)
def test_flipped_bytes_give_frames_or_an_error(tmp_path: Path, name: str, codec: str) -> None:
    data = write_video(tmp_path / name, 40, codec=codec).read_bytes()
    path = tmp_path / f"bad_{name}"
    refused = 0
    for seed in range(12):
        rng = random.Random(seed)
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 5, 50])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            frames = read_frames(path, eight)
            assert frames.data.shape[0] == 8
        except DecodeError as error:
            refused += 1
            assert error.reason
    assert refused


def test_no_file_stays_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here")
    good = write_video(tmp_path / "a.mp4")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[:-200])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read_frames(good, eight)
        read_frames(good, every, start=0.2)
        with pytest.raises(DecodeError):
            read_frames(bad, eight)
    assert len(os.listdir("/proc/self/fd")) == before


# Backends


def test_the_record_of_a_result_names_decoder_and_mode() -> None:
    assert decoder_name().startswith(f"PyAV {av.__version__} (libavcodec ") and decoder_name().endswith("exact")
    assert decoder_name("keyframe") != decoder_name()


def test_torchcodec_that_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")
    torchcodec.torchcodec_version.cache_clear()
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    for _ in range(2):  # without and with an index
        with pytest.raises(MissingDependencyError, match="pip install torchcodec"):
            read_frames(path, eight, backend="torchcodec")
        read_frames(path, eight)
    with pytest.raises(MissingDependencyError, match="pip install torchcodec"):
        decoder_name(backend="torchcodec")
    torchcodec.torchcodec_version.cache_clear()


@pytest.fixture
def working_torchcodec() -> None:
    try:
        torchcodec.torchcodec_version()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("working_torchcodec")
@pytest.mark.parametrize(
    ("name", "codec", "rotation", "taken"),
    [
        ("a.mp4", "libx264", 0, True),
        ("r.mp4", "libx264", 90, True),
        ("v.webm", "libvpx-vp9", 0, True),
        ("m.avi", "mpeg4", 0, False),
        ("f.flv", "flv", 0, False),
    ],
)
def test_torchcodec_gives_the_same_or_is_not_used(
    tmp_path: Path, name: str, codec: str, rotation: int, taken: bool
) -> None:
    path = write_video(tmp_path / name, 40, codec=codec, rotation=rotation, options={"g": "12"})
    first = read_frames(path, eight, backend="torchcodec")
    assert first.backend == "pyav"  # nothing was known of the file
    second = read_frames(path, eight, backend="torchcodec")
    assert second.backend == ("torchcodec" if taken else "pyav")
    assert torch.equal(first.data, second.data) and np.array_equal(first.indices, second.indices)
    cut = {"start": 10 / FPS, "end": 30 / FPS}
    assert torch.equal(read_frames(path, eight, backend="torchcodec", **cut).data, read_frames(path, eight, **cut).data)
