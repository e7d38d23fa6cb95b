"""Reading with packets left out gives what reading everything gives; the index says where it may be done."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.codec import CodecContext

from vireo.data import bitstreams, container, decode, index, indexed, pictures
from vireo.data.bitstreams import DROP, HIDDEN, START, UnusualError
from vireo.data.decode import probe, read_frames
from vireo.data.index import FileKey, VideoIndex, load_index
from vireo.data.sampling import segment_indices
from vireo.errors import DecodeError

from .video_tools import FPS, shared, write_video

SIZE = (96, 80)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VIREO_CACHE", str(folder))
    return folder / "index.sqlite"


def moving(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Pictures in which every frame differs from all others everywhere, so that encoders use references."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    scene = rng.integers(0, 255, (height // 4, width, 3)).repeat(4, axis=0).repeat(2, axis=1).astype(np.int16)
    for i in range(count):
        if i % 37 == 36:
            scene = scene[::-1].copy()  # a cut
        part = np.roll(scene, (2 * i, i), axis=(0, 1))[:, :width]
        yield np.clip(part * 0.8 + 40 + rng.normal(0, 3, part.shape), 0, 255).astype(np.uint8)


def sequential(path: Path) -> list[np.ndarray]:
    """All frames by the plainest means: the reference."""
    with av.open(str(path)) as container:
        return [
            np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90)
            for frame in container.decode(container.streams.video[0])
        ]


def known(path: Path) -> VideoIndex:
    found = load_index(FileKey.of(str(path), os.stat(path)))
    assert found is not None
    return found


def some(rng: random.Random, count: int) -> list[int]:
    return sorted(rng.choices(range(count), k=rng.choice([1, 2, 8, 20])))


def assert_exact(path: Path, reference: list[np.ndarray], wanted: list[int]) -> None:
    frames = read_frames(path, lambda count: np.array(wanted))
    assert frames.frame_count == len(reference)
    assert frames.indices.tolist() == wanted and not frames.moved.any()
    for image, position in zip(frames.data.permute(0, 2, 3, 1).numpy(), wanted, strict=True):
        assert np.array_equal(image, reference[position]), position


def x264(options: str) -> dict[str, str]:
    return {"x264-params": options + ":log-level=none"}


def x265(options: str) -> dict[str, str]:
    return {"x265-params": options + ":log-level=none"}


# file, encoder, its options, fast?
ENCODES: list[tuple[str, str, dict[str, str], bool]] = [
    ("a.mp4", "libx264", {}, True),
    ("gop.mp4", "libx264", {"g": "12"}, True),
    ("intra.mkv", "libx264", {"g": "1"}, True),
    ("plain.mp4", "libx264", {"bf": "0", "g": "30"}, True),
    ("deep.mp4", "libx264", x264("bframes=8:b-pyramid=normal:ref=6:keyint=40"), True),
    ("strict.mp4", "libx264", x264("bframes=5:b-pyramid=strict:keyint=30"), True),
    ("open.mp4", "libx264", x264("open-gop=1:keyint=12:bframes=3:b-pyramid=normal"), True),
    ("open.mkv", "libx264", x264("open-gop=1:keyint=9:bframes=4:b-adapt=0"), True),
    ("weighted.mp4", "libx264", x264("weightp=2:weightb=1:direct=temporal:bframes=4:keyint=50"), True),
    ("slices.mp4", "libx264", x264("slices=4:keyint=20"), True),
    ("base.flv", "libx264", {"profile": "baseline", "g": "15"}, True),
    ("a.avi", "libx264", {"bf": "0", "g": "12"}, True),
    ("a.ts", "libx264", {"g": "12"}, True),
    ("frag.mp4", "libx264", {"g": "12"}, True),
    ("refresh.mp4", "libx264", x264("intra-refresh=1:keyint=20"), True),
    ("fields.mp4", "libx264", x264("interlaced=1:keyint=20"), False),
    ("raw.h264", "libx264", {"g": "12"}, False),
    ("h.mp4", "libx265", x265("keyint=12:bframes=4"), True),
    ("open.h.mp4", "libx265", x265("keyint=12:open-gop=1:bframes=4:b-adapt=0"), True),
    ("layers.mkv", "libx265", x265("keyint=24:temporal-layers=1:bframes=4"), True),
    ("h.ts", "libx265", x265("keyint=12:bframes=3"), True),
    ("v9.webm", "libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"}, True),
    ("alt.webm", "libvpx-vp9", {"g": "30", "lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "5"}, True),
    ("v8.webm", "libvpx", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "8", "cpu-used": "5"}, True),
    ("av1.mp4", "libsvtav1", {"g": "16", "preset": "12"}, True),
    ("av1.mkv", "libsvtav1", {"g": "24", "preset": "12", "svtav1-params": "pred-struct=1"}, True),
    ("j.avi", "mjpeg", {}, True),
    ("j.mov", "mjpeg", {}, True),
    ("m.mp4", "mpeg4", {"bf": "2", "g": "12"}, True),
    ("m.avi", "mpeg4", {"g": "12"}, True),
    ("b.avi", "mpeg4", {"bf": "2", "g": "25"}, True),
    ("q.avi", "mpeg4", {"bf": "1", "g": "25", "flags": "+qpel+mv4"}, True),
    ("m.mpg", "mpeg2video", {"bf": "2"}, False),
    ("f.flv", "flv", {}, False),
    ("w.wmv", "wmv2", {}, False),
    ("f.mkv", "ffv1", {}, False),
]


@pytest.mark.parametrize(("name", "codec", "options", "fast"), ENCODES, ids=[e[0] for e in ENCODES])
def test_any_frames_of_any_encode_equal_full_decoding(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], fast: bool
) -> None:
    container_options = {"movflags": "frag_keyframe+empty_moov"} if name == "frag.mp4" else {}
    path = write_video(
        tmp_path / name, moving(75), codec=codec, options=options, size=SIZE, container_options=container_options
    )
    reference = sequential(path)
    rng = random.Random(name)
    for turn in range(12):
        assert_exact(path, reference, some(rng, len(reference)))  # the first reading makes the index, others use it
        assert known(path).fast is fast, known(path).slow
        if turn == 5:
            os.utime(path, ns=(0, turn))
    info = probe(path)
    assert (info.frame_count, info.fast) == (len(reference), fast)
    assert_exact(path, reference, some(rng, len(reference)))
    pieces = name.split(".")[-1] not in ("ts", "mpg")
    assert not fast or (len(known(path).offsets) > 0) is pieces


def test_files_too_large_to_keep_in_memory_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_HELD_PACKETS", 0)
    for name in ("a.mp4", "a.ts"):
        path = write_video(tmp_path / name, moving(60), options={"g": "12"}, size=SIZE)
        reference = sequential(path)
        for seed in range(4):
            assert_exact(path, reference, some(random.Random(seed), 60))


@pytest.mark.parametrize(
    "name",
    [
        "arm_wrestling.mp4", "example.avi", "pancake.mkv", "part_0.mp4", "rotated_0.mov", "rotated_90.mov",
        "rotated_180.mov", "rotated_270.mov", "test_320x240.avi", "test_340x256.mp4",
    ],
)  # fmt: skip
def test_real_clips_are_read_fast_and_exactly(name: str) -> None:
    path = shared("clips", name)
    reference = sequential(path)
    for seed in range(4):
        assert_exact(path, reference, some(random.Random(seed), len(reference)))
    assert known(path).fast and len(known(path).offsets)


def test_packed_b_frames_are_taken_apart(tmp_path: Path) -> None:
    folder = shared("interactions", "kick")
    for path in sorted(folder.iterdir())[:4]:
        reference = sequential(path)
        for seed in range(4):
            assert_exact(path, reference, some(random.Random(seed), len(reference)))
        found = known(path)
        with av.open(str(path)) as container:
            packets = sum(packet.size > 0 for packet in container.demux(video=0))
        assert found.fast and found.frame_count == len(reference) < packets
        assert np.count_nonzero(found.roles & DROP) > found.frame_count / 3


def remux(source: Path, target: Path, seconds: float) -> Path:
    """The same packets so much earlier: what lies before 0 is cut off by an edit list."""
    with av.open(str(source)) as container, av.open(str(target), "w") as copy:
        stream = container.streams.video[0]
        out = copy.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.size:
                shift = round(seconds / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, out
                copy.mux(packet)
    return target


@pytest.mark.parametrize("frames", [5, 12, 20])
def test_edit_lists(tmp_path: Path, frames: int) -> None:
    whole = write_video(tmp_path / "a.mp4", moving(60), options={"g": "12"}, size=SIZE)
    path = remux(whole, tmp_path / "edited.mp4", frames / FPS)
    reference = sequential(path)
    assert len(reference) == 60 - frames
    for seed in range(8):
        assert_exact(path, reference, some(random.Random(seed), len(reference)))
    assert known(path).fast and (frames == 12 or len(known(path).roles) > len(reference))
    assert probe(path).frame_count == len(reference)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_variable_rates(tmp_path: Path, name: str) -> None:
    rng = random.Random(0)
    times = [0]
    while len(times) < 50:
        times.append(times[-1] + rng.choice([5, 10, 10, 10, 40]))  # in 1/250 s
    path = write_video(tmp_path / name, moving(50), times=times, options={"g": "12"}, size=SIZE)
    reference = sequential(path)
    for seed in range(4):
        assert_exact(path, reference, some(random.Random(seed), 50))
    assert known(path).fast
    for first, last in [(0, 3), (13, 31), (48, 50)]:
        start, end = (times[first] - 0.4) / 250, (times[last - 1] + 0.4) / 250
        frames = read_frames(path, lambda count: np.arange(count), start=max(0.0, start), end=end)
        assert frames.frame_count == last - first
        for image, expected in zip(frames.data.permute(0, 2, 3, 1).numpy(), reference[first:last], strict=True):
            assert np.array_equal(image, expected)
    info = probe(path)
    assert info.variable_rate and info.seconds == pytest.approx(times[-1] / 250 + 0.04, abs=0.005)


@pytest.mark.parametrize("angle", [0, 90, 180, -90])
def test_rotation_is_known_without_the_container(tmp_path: Path, angle: int) -> None:
    path = write_video(tmp_path / "r.mp4", moving(30), size=SIZE, rotation=angle)
    reference = sequential(path)
    for seed in range(3):
        assert_exact(path, reference, some(random.Random(seed), 30))
    found = known(path)
    assert found.picture is not None and found.picture.rotation % 360 == angle % 360 and len(found.offsets)


def test_only_what_is_needed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", moving(60), options=x264("keyint=20:bframes=3:b-adapt=0"), size=SIZE)
    read_frames(path, lambda count: np.array([0]))
    read: list[int] = []
    make = decode.packet_reader

    def spying(file: int, index: VideoIndex) -> Callable[[int], object]:
        get = make(file, index)
        return lambda number: read.append(number) or get(number)  # type: ignore[func-returns-value]

    monkeypatch.setattr(decode, "packet_reader", spying)
    monkeypatch.setattr(container, "open_video", lambda path: pytest.fail("the container was opened"))
    found = known(path)
    droppable = {k for k in range(60) if found.roles[k] & DROP}
    assert len(droppable) > 20
    for wanted in ([0], [19], [20], [27], [25, 59]):
        read.clear()
        read_frames(path, lambda count, wanted=wanted: np.array(wanted))
        asked = set(found.order[wanted].tolist())
        assert asked <= set(read) and not (set(read) & droppable) - asked
        # Nothing before the groups of pictures, and nothing behind the last packet wanted.
        assert all(any(k // 20 == w // 20 for w in wanted) for k in read) and max(read) == max(asked)


# Keyframe mode


def test_keyframe_mode_gives_the_nearest_keyframes_and_says_how_far(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(60), options=x264("keyint=12:scenecut=0"), size=SIZE)
    reference = sequential(path)
    wanted = [0, 5, 7, 19, 30, 59]
    for _ in range(2):
        frames = read_frames(path, lambda count: np.array(wanted), mode="keyframe")
        assert frames.indices.tolist() == [0, 0, 12, 24, 24, 48]
        assert frames.moved.tolist() == [0, -5, 5, 5, -6, -11]
        for image, position in zip(frames.data.permute(0, 2, 3, 1).numpy(), frames.indices, strict=True):
            assert np.array_equal(image, reference[position])
    # Within a cut; and exact where it holds no keyframe.
    frames = read_frames(path, lambda count: np.array([0, 9]), start=10 / FPS, end=20 / FPS, mode="keyframe")
    assert frames.indices.tolist() == [2, 2] and frames.moved.tolist() == [2, -7] and frames.frame_count == 10
    frames = read_frames(path, lambda count: np.array([0, 3]), start=14 / FPS, end=20 / FPS, mode="keyframe")
    assert frames.indices.tolist() == [0, 3] and not frames.moved.any()


def test_keyframe_mode_is_exact_where_videos_are_decoded_in_sequence(tmp_path: Path) -> None:
    path = write_video(tmp_path / "f.flv", moving(30), codec="flv", size=SIZE)
    for _ in range(2):
        frames = read_frames(path, lambda count: np.array([3, 17]), mode="keyframe")
        assert frames.indices.tolist() == [3, 17] and not frames.moved.any()


# What probe adds


def test_probe_counts_groups_of_pictures(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(50), options=x264("keyint=20:scenecut=0"), size=SIZE)
    info = probe(path)
    assert (info.keyframes, info.longest_gop, info.fast, info.variable_rate) == (3, 20, True, False)
    assert info.seconds == pytest.approx(2.0)
    one = probe(write_video(tmp_path / "one.mkv", moving(50), options=x264("keyint=250:scenecut=0"), size=SIZE))
    assert (one.keyframes, one.longest_gop) == (1, 50)
    slow = probe(write_video(tmp_path / "f.flv", moving(50), codec="flv", options={"g": "10"}, size=SIZE))
    assert not slow.fast and slow.keyframes >= 5 and slow.longest_gop == 10
    assert slow.seconds == pytest.approx(2, abs=0.01)


# The cache


def test_a_changed_file_is_indexed_again(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(40), size=SIZE)
    assert_exact(path, sequential(path), [1, 30])
    write_video(path, moving(30, seed=1), codec="mpeg4", size=SIZE)
    assert_exact(path, sequential(path), [1, 29])
    assert known(path).frame_count == 30 and known(path).coding.codec == "mpeg4"


def test_an_index_of_another_file_does_no_harm(tmp_path: Path) -> None:
    sources = [
        write_video(tmp_path / "a.mp4", moving(40), options={"g": "10"}, size=SIZE),
        write_video(tmp_path / "b.mp4", moving(44, seed=1), options={"g": "10"}, size=SIZE),
        write_video(tmp_path / "c.mkv", moving(30, seed=2), codec="libvpx-vp9", options={"cpu-used": "8"}, size=SIZE),
        write_video(tmp_path / "d.avi", moving(40, seed=3), codec="mpeg4", options={"bf": "2"}, size=SIZE),
    ]
    references = [sequential(path) for path in sources]
    for path in sources:
        read_frames(path, lambda count: np.array([0]))
    indexes = [known(path) for path in sources]
    for path, reference in zip(sources, references, strict=True):
        for other in indexes:
            index.store_index(FileKey.of(str(path), os.stat(path)), other)
            frames = read_frames(path, lambda count: np.array([3, 17, count - 1]))
            assert frames.frame_count == len(reference)
            for image, position in zip(frames.data.permute(0, 2, 3, 1).numpy(), frames.indices, strict=True):
                assert np.array_equal(image, reference[position])


def test_broken_rows_are_ignored(tmp_path: Path, cache: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(40), size=SIZE)
    reference = sequential(path)
    assert_exact(path, reference, [7])
    key = FileKey.of(str(path), os.stat(path))
    with sqlite3.connect(cache) as connection:
        (row,) = connection.execute("SELECT facts FROM videos").fetchone()
    rng = random.Random(0)
    bad: list[object] = [b"", b"x", None, "text", 5, row[:-3], row + b"x", row * 2]
    bad += [bytes(rng.randrange(256) for _ in range(len(row))) for _ in range(5)]
    for _ in range(60):
        damaged = bytearray(row)
        damaged[rng.randrange(len(row))] ^= 1 << rng.randrange(8)
        bad.append(bytes(damaged))
    for value in bad:
        with sqlite3.connect(cache) as connection:
            connection.execute("UPDATE videos SET facts = ?, size = ?, changed = ?", (value, key.size, key.changed))
        assert_exact(path, reference, [0, 20, 39])


def test_facts_that_cannot_be_true_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(40), options={"g": "10"}, size=SIZE)
    read_frames(path, lambda count: np.array([0]))
    good, size = known(path), path.stat().st_size
    good.check(size)
    changes: list[dict[str, object]] = [
        {"frame_count": 0},
        {"frame_count": 41},
        {"pts": good.pts[::-1]},
        {"order": good.order + 1},
        {"order": np.zeros_like(good.order)},
        {"order": -good.order},
        {"roles": good.roles * 0},
        {"roles": good.roles[:0]},
        {"offsets": good.offsets + size},
        {"offsets": good.offsets - size},
        {"sizes": good.sizes * 0},
        {"sizes": good.sizes[:-1]},
        {"sizes": good.sizes + size},
        {"picture": None},
    ]
    for change in changes:
        fields = {name: getattr(good, name) for name in VideoIndex.__dataclass_fields__}
        with pytest.raises(ValueError):
            VideoIndex(**(fields | change)).check(size)


@pytest.mark.parametrize("trouble", ["off", "text", "folder", "fifo", "read-only", "locked", "no table", "zeros"])
def test_trouble_with_the_cache_costs_nothing_but_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    path = write_video(tmp_path / "a.mp4", moving(40), size=SIZE)
    reference = sequential(path)
    blocker: sqlite3.Connection | None = None
    if trouble == "off":
        monkeypatch.setenv("VIREO_CACHE", "")
    elif trouble == "text":
        cache.write_text("this is no database\n" * 100)
    elif trouble == "folder":
        cache.mkdir()
    elif trouble == "fifo":
        os.mkfifo(cache)
    elif trouble == "read-only":
        monkeypatch.setenv("VIREO_CACHE", "/proc/1/vireo")
    elif trouble == "locked":
        assert_exact(path, reference, [3])
        blocker = sqlite3.connect(cache, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        os.utime(path, ns=(0, 0))
    elif trouble == "no table":
        assert_exact(path, reference, [3])
        with sqlite3.connect(cache) as connection:
            connection.execute("DROP TABLE videos")
    elif trouble == "zeros":
        assert_exact(path, reference, [3])
        for part in (cache, Path(f"{cache}-wal")):
            part.write_bytes(bytes(part.stat().st_size))
    for seed in range(3):
        assert_exact(path, reference, some(random.Random(seed), 40))
    if trouble in ("text", "zeros"):
        assert known(path).fast  # it was made anew
    if blocker is not None:
        blocker.close()


def test_a_cache_that_another_process_is_making_is_waited_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.mkdir(exist_ok=True)
    other = sqlite3.connect(cache, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            other.rollback()

    monkeypatch.setattr(index.time, "sleep", pause)
    assert index._connection() is not None and len(pauses) == 2
    other.close()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIREO_CACHE", "/a")
    assert index.cache_path() == Path("/a/index.sqlite")
    monkeypatch.setenv("VIREO_CACHE", "")
    assert index.cache_path() is None
    monkeypatch.delenv("VIREO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert index.cache_path() == Path("/b/vireo/index.sqlite")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    monkeypatch.setenv("HOME", "/c")
    assert index.cache_path() == Path("/c/.cache/vireo/index.sqlite")


def _read_many(paths: list[Path], seed: int, queue: multiprocessing.Queue[int]) -> None:
    rng = random.Random(seed)
    right = 0
    for _ in range(3):
        rng.shuffle(paths)
        for path in paths:
            wanted = some(rng, 30)
            frames = read_frames(path, lambda count, wanted=wanted: np.array(wanted))
            right += frames.indices.tolist() == wanted
    queue.put(right)


def test_processes_share_the_cache(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{i}.mp4", moving(30, seed=i), size=SIZE) for i in range(6)]
    read_frames(paths[0], lambda count: np.array([0]))  # the connection of this process must not be used by forks
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[int] = context.Queue()
    processes = [context.Process(target=_read_many, args=(list(paths), seed, queue)) for seed in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [18] * 4
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for path in paths:
        assert known(path).frame_count == 30


# Damage


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", x264("keyint=12:bframes=3:ref=3")),
        ("a.ts", "libx264", x264("keyint=12:bframes=3")),
        # Not HEVC: what its decoder can't decode it leaves as it found the memory; even full decoding does not repeat.
        ("b.avi", "mpeg4", {"bf": "2", "g": "15"}),
        ("v.webm", "libvpx-vp9", {"g": "15", "cpu-used": "8"}),
    ],
)
def test_damage_gives_an_error_or_what_full_decoding_gives(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    data = write_video(tmp_path / name, moving(40), codec=codec, options=options, size=SIZE).read_bytes()
    path = tmp_path / f"bad_{name}"
    refused = 0
    for seed in range(100):
        rng = random.Random(seed)
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 2, 5, 50])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            wanted = [read_frames(path, lambda count: segment_indices(count, 8)) for _ in range(2)]
        except DecodeError:
            refused += 1
            continue
        try:
            reference = sequential(path)
        except av.error.FFmpegError:
            continue  # behind the frames wanted
        for frames in wanted:
            assert frames.frame_count == len(reference), seed
            for image, position in zip(frames.data.permute(0, 2, 3, 1).numpy(), frames.indices, strict=True):
                assert np.array_equal(image, reference[position]), seed
    assert 5 < refused < 100


def test_nothing_waits_for_the_garbage_collector(tmp_path: Path) -> None:
    # A decoder holds megabytes that Python does not see: were it part of a cycle, memory would grow for long.
    paths = [
        write_video(tmp_path / "a.mp4", moving(20), size=SIZE),
        write_video(tmp_path / "b.avi", moving(20), codec="mpeg4", size=SIZE),
        write_video(tmp_path / "f.flv", moving(20), codec="flv", size=SIZE),
        tmp_path / "bad.mp4",
    ]
    paths[-1].write_bytes(paths[0].read_bytes()[:-3000])
    gc.collect()
    gc.disable()
    try:
        for path in paths:
            for _ in range(2):
                with contextlib.suppress(DecodeError):
                    read_frames(path, lambda count: np.array([0, count - 1]))
            with contextlib.suppress(DecodeError):
                probe(path)
        kinds = (container.Video, container.Scan, pictures.Pictures, VideoIndex)
        assert not [item for item in gc.get_objects() if isinstance(item, kinds)]
    finally:
        gc.enable()


# Packets


def test_readers_survive_any_bytes() -> None:
    rng = random.Random(0)
    for codec in ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg"):
        for _ in range(300):
            head = rng.choice([b"", b"\1d\0\x1f\xff\xe1", b"\0\0\0\1", b"\0\0\1\x67", b"\xff\xd8"])
            try:
                reader = bitstreams.reader(codec, head + rng.randbytes(rng.randrange(40)))
                assert reader is not None
                for _ in range(3):
                    role = reader.role(head + rng.randbytes(rng.randrange(1, 60)))
                    assert 0 <= role <= START | DROP | HIDDEN
            except (UnusualError, IndexError):
                pass
    with pytest.raises(UnusualError):
        bitstreams.mpeg4_units([b"\0\0\1\xb6\x00abc\0\0\1\xb6\x40def"], b"")


def test_formats_that_are_not_understood_have_no_reader() -> None:
    assert bitstreams.reader("wmv2", b"") is None


def test_mpeg4_frames_wait_for_the_next_that_is_no_b_frame() -> None:
    assert bitstreams.mpeg4_order([0, 1, 2, 2, 1, 2]) == [0, 2, 3, 1, 5, 4]
    assert bitstreams.mpeg4_order([0]) == [0] and bitstreams.mpeg4_order([]) == []


def test_a_decoder_is_told_all_that_the_container_says(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(10), size=SIZE)
    read_frames(path, lambda count: np.array([0]))
    coding = known(path).coding
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (coding.codec, coding.tag, coding.extradata) == (context.name, context.codec_tag, context.extradata)
        assert (coding.width, coding.height, coding.delay) == (*SIZE, context.reorder_depth)
    assert isinstance(indexed.new_context(coding), CodecContext)
    assert known(path).time_base == Fraction(1, 12800)
