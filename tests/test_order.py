"""The generated benchmark: the ceiling of 50 % for whatever ignores order holds exactly, step by step."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vireo.data import order
from vireo.data.annotations import read_table
from vireo.data.order import PAIRS, OrderConfig, make_order, render_scene
from vireo.data.sampling import segment_indices
from vireo.data.splits import split_table
from vireo.errors import DataError, StorageError, UnknownNameError, UsageError

CONFIG = OrderConfig(clips=36, size=48, seed=3)  # three scenes per pair: one each for train, val and test
TINY = OrderConfig(clips=4, size=32, pairs=("push", "turn"), val_fraction=0, test_fraction=0)
Pixels = NDArray[np.uint8]
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("order") / "set"
    assert make_order(out, CONFIG, workers=0) == out / "order.csv"
    return out


@pytest.fixture(scope="module")
def rows(folder: Path) -> Rows:
    with open(folder / "order.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def decoded(folder: Path, rows: Rows) -> dict[str, Pixels]:
    return {row["path"]: decode(folder / row["path"]) for row in rows}


@pytest.fixture(scope="module")
def twins(rows: Rows) -> list[tuple[dict[str, str], dict[str, str]]]:
    groups: dict[str, Rows] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    assert all(len(group) == 2 for group in groups.values())
    return [(first, second) for first, second in groups.values()]


def decode(path: Path) -> Pixels:
    """(F, S, S, 3)"""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def boxes(folder: Path, row: dict[str, str]) -> NDArray[np.int64]:
    return np.array(json.loads((folder / row["path"]).with_suffix(".json").read_text())["boxes"])


# --- the ceiling ------------------------------------------------------------------------------------------------------


def test_twins_are_each_other_reversed_bit_for_bit(twins, decoded) -> None:
    seen = set()
    for first, second in twins:
        a, b = decoded[first["path"]], decoded[second["path"]]
        np.testing.assert_array_equal(a, b[::-1])
        assert not np.array_equal(a, b)  # nor is the scene its own mirror image in time
        seen.add((first["label"], second["label"]))
    assert seen == set(PAIRS.values())


def test_an_encoder_that_looks_at_neighbours_would_break_the_reversal() -> None:
    # The test above can fail: ordinary H.264 is not reversible.
    frames = render_scene("push", 0, seed=3, size=48).frames
    outcomes = []
    for reverse in (False, True):
        codec = av.CodecContext.create("libx264", "w")
        codec.width = codec.height = 48
        codec.pix_fmt, codec.framerate, codec.time_base = "yuv420p", 25, Fraction(1, 25)
        decoder = av.CodecContext.create("h264", "r")
        packets = []
        for frame in frames[::-1] if reverse else frames:
            packets += codec.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame)))
        shown = [f for p in [*packets, *codec.encode(None), None] for f in decoder.decode(p)]
        outcomes.append(np.stack([f.to_ndarray(format="rgb24") for f in shown]))
    assert not np.array_equal(outcomes[0], outcomes[1][::-1])


def test_twins_hold_the_same_pictures(twins, decoded) -> None:
    for first, second in twins:
        a, b = (Counter(f.tobytes() for f in decoded[row["path"]]) for row in (first, second))
        assert a == b


def test_twins_share_a_split_and_every_split_holds_every_label(twins, rows) -> None:
    assert all(first["split"] == second["split"] for first, second in twins)
    for split in ("train", "val", "test"):
        counts = Counter(row["label"] for row in rows if row["split"] == split)
        assert set(counts) == {label for pair in PAIRS.values() for label in pair}
        assert all(counts[a] == counts[b] for a, b in PAIRS.values())


def test_lengths_are_odd_and_vary() -> None:
    lengths = [len(render_scene("rise", k, seed=0, size=32).frames) for k in range(25)]
    assert all(length % 2 and 24 <= length <= 72 for length in lengths)
    assert len(set(lengths)) > 8


@pytest.mark.parametrize("count", range(25, 72, 2))
def test_segment_centres_are_symmetric_in_time(count: int) -> None:
    for parts in range(1, 17):
        chosen = segment_indices(count, parts)
        np.testing.assert_array_equal(chosen, [(2 * i + 1) * count // (2 * parts) for i in range(parts)])
        np.testing.assert_array_equal(chosen, count - 1 - chosen[::-1])


def test_segment_centres_of_even_lengths_would_not_be() -> None:
    chosen = segment_indices(48, 8)
    assert not np.array_equal(chosen, 47 - chosen[::-1])


def test_sampled_frames_of_twins_are_the_same(twins, decoded) -> None:
    for first, second in twins:
        for parts in (1, 3, 8, 16):
            a, b = (decoded[row["path"]] for row in (first, second))
            chosen = segment_indices(len(a), parts)
            np.testing.assert_array_equal(a[chosen], b[chosen][::-1])


BLIND: list[Callable[[Pixels], float]] = [  # any functions of the set of frames
    lambda f: float(f.astype(np.int64).sum()),
    lambda f: float(f.reshape(len(f), -1).astype(np.int64).sum(1).max()),
    lambda f: float(np.sort(f.astype(np.int64)[:, ::3, ::5].sum((1, 2, 3)))[len(f) // 3]),
    lambda f: math.fsum(hash(x.tobytes()) % 1013 for x in f),
]


@pytest.mark.parametrize("parts", [0, 8])
def test_whatever_ignores_order_is_right_on_half_of_the_clips_at_most(rows, decoded, twins, parts: int) -> None:
    """Even one that knows the test labels: it is fitted to them by majority, per value of the function."""
    for blind in BLIND:
        values = {}
        for path, frames in decoded.items():
            values[path] = blind(frames[segment_indices(len(frames), parts)] if parts else frames)
        votes: dict[float, Counter[str]] = defaultdict(Counter)
        for row in rows:
            votes[values[row["path"]]][row["label"]] += 1
        right = sum(votes[values[row["path"]]].most_common(1)[0][0] == row["label"] for row in rows)
        assert right <= len(rows) / 2
        if len(votes) == len(twins):
            assert right == len(rows) / 2  # tells every scene from every other, and no more


def test_one_look_at_order_breaks_the_ceiling(folder, rows) -> None:
    # So the bound above is not an accident of bad functions: where the object starts tells the twins apart.
    for row in rows:
        where, label = boxes(folder, row), row["label"]
        if label.startswith("push"):
            shift = where[-1, [0, 2]].sum() - where[0, [0, 2]].sum()
            assert label == PAIRS["push"][int(shift < 0)]


def test_which_action_was_drawn_is_a_coin() -> None:
    for pair, labels in PAIRS.items():
        drawn = Counter(render_scene(pair, k, seed=5, size=32).label for k in range(12))
        assert set(drawn) == set(labels)
        assert min(drawn.values()) >= 2  # fewer by chance: 1 in 160


# --- the actions ------------------------------------------------------------------------------------------------------


def size_of(box: NDArray[np.int64]) -> float:
    return float(np.hypot(box[2] - box[0], box[3] - box[1]))


MEASURES: dict[str, Callable[[NDArray[np.int64]], float]] = {  # grows while the pair's first action goes on
    "push": lambda b: float(b[0] + b[2]),
    "rise": lambda b: -float(b[1] + b[3]),
    "approach": size_of,
    "put": lambda b: float(b[1] + b[3]),
}


@pytest.mark.parametrize("pair", MEASURES)
def test_the_object_does_what_the_label_says(pair: str) -> None:
    for k in range(6):
        scene = render_scene(pair, k, seed=1, size=64, calm=True)
        change = MEASURES[pair](scene.boxes[-1]) - MEASURES[pair](scene.boxes[0])
        assert scene.label == PAIRS[pair][int(change < 0)]
        assert abs(change) > 0.15 * 64


def test_open_parts_the_halves() -> None:
    # Parted halves let more than one piece show: the box grows, or what was covered comes to light.
    for k in range(6):
        scene = render_scene("open", k, seed=1, size=64, calm=True)
        change = size_of(scene.boxes[-1]) - size_of(scene.boxes[0])
        assert scene.label == PAIRS["open"][int(change < 0)]


def test_clockwise_is_clockwise() -> None:
    right = 0
    for k in range(8):
        scene = render_scene("turn", k, seed=1, size=64, calm=True)
        x0, y0 = scene.boxes[:, :2].min(0)
        x1, y1 = scene.boxes[:, 2:].max(0)
        grey = scene.frames[:, y0:y1, x0:x1].astype(float).mean(-1)
        v, u = np.mgrid[: y1 - y0, : x1 - x0]
        u, v = u - u.mean(), v - v.mean()
        spin = 0.0
        for now, later in pairwise(grey):
            dy, dx = np.gradient((now + later) / 2)
            swirl = u * dy - v * dx  # brightness constancy: change = -angle · swirl; y down makes + clockwise
            spin -= float((swirl * (later - now)).sum() / ((swirl**2).sum() + 1e-9))
        right += scene.label == PAIRS["turn"][int(spin < 0)]
    assert right == 8


@pytest.mark.parametrize("pair", PAIRS)
def test_boxes_lie_in_the_frame_and_hold_the_change(pair: str) -> None:
    for k in range(3):
        frames, where, _, _ = render_scene(pair, k, seed=2, size=64, calm=True)
        assert where.shape == (len(frames), 4)
        assert (where >= 0).all() and (where <= 64).all()
        assert (where[:, 2:] - where[:, :2] >= 5).all()
        change = np.abs(np.diff(frames.astype(int), axis=0)).sum(-1)
        inside = np.zeros(change.shape, bool)
        for i in range(len(change)):  # around the object before or after the step, and its shadow
            for x0, y0, x1, y1 in where[i : i + 2]:
                inside[i, max(0, y0 - 6) : y1 + 6, max(0, x0 - 6) : x1 + 6] = True
        assert change[inside].sum() > 0.9 * change.sum() > 0


def test_boxes_of_twins_are_mirrored_in_time(folder, twins, decoded) -> None:
    for first, second in twins:
        a, b = boxes(folder, first), boxes(folder, second)
        np.testing.assert_array_equal(a, b[::-1])
        assert len(a) == len(decoded[first["path"]])
        assert (a >= 0).all() and (a <= CONFIG.size).all() and (a[:, :2] < a[:, 2:]).all()


def test_scenes_are_not_toys() -> None:
    for pair in PAIRS:
        scene = render_scene(pair, 0, seed=0, size=64)
        calm = render_scene(pair, 0, seed=0, size=64, calm=True)
        border = np.ones((64, 64), bool)
        border[6:-6, 6:-6] = False
        assert scene.frames[0].reshape(-1, 3).std(0).max() > 8  # a picture, not a flat field
        assert all((a[border] != b[border]).mean() > 0.2 for a, b in pairwise(scene.frames))
        assert (calm.frames[:, 0, 0] == calm.frames[0, 0, 0]).all()


# --- files ------------------------------------------------------------------------------------------------------------


def test_every_clip_is_an_all_intra_h264_video(folder, rows) -> None:
    for row in rows:
        with av.open(str(folder / row["path"])) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height) == (CONFIG.size, CONFIG.size)
            frames = list(container.decode(stream))
            assert len(frames) == stream.frames == len(boxes(folder, row))
            assert all(frame.key_frame for frame in frames)
            assert [frame.pts * frame.time_base * stream.average_rate for frame in frames] == list(range(len(frames)))


def test_what_lies_beside_the_clips(folder, rows) -> None:
    summary = json.loads((folder / "order.json").read_text())
    assert summary["finished"] is True and summary["config"]["seed"] == CONFIG.seed
    assert len(rows) == CONFIG.clips
    for row in rows:
        about = json.loads((folder / row["path"]).with_suffix(".json").read_text())
        assert {k: about[k] for k in ("label", "split", "group")} == {k: row[k] for k in ("label", "split", "group")}
        assert Path(row["path"]).parent.name == row["label"] and about["video"] == Path(row["path"]).name
    assert not list(folder.rglob("*.part"))


def test_the_table_is_read_as_announced(folder, rows) -> None:
    split = split_table(read_table(folder / "order.csv"), val_fraction=0.2, seed=0)
    assert split.test is not None
    for part, name in ((split.train, "train"), (split.val, "val"), (split.test, "test")):
        assert sorted(Path(p) for p in part.paths) == sorted(folder / r["path"] for r in rows if r["split"] == name)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    config = OrderConfig(clips=16, size=32, pairs=("push", "open"))
    make_order(tmp_path / "a", config, workers=0)
    make_order(tmp_path / "b", config, workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_seed_gives_other_clips(tmp_path: Path) -> None:
    make_order(tmp_path / "a", TINY, workers=0)
    make_order(tmp_path / "b", OrderConfig(**{**vars(TINY), "seed": 1}), workers=0)
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert set(a) == set(b)
    assert all(a[name] != b[name] for name in a if name.endswith((".mp4", ".json")))


def test_a_larger_set_keeps_the_scenes_of_a_smaller_one() -> None:
    a, b = (render_scene("put", 2, seed=9, size=32) for _ in range(2))
    np.testing.assert_array_equal(a.frames, b.frames)
    assert not np.array_equal(a.frames[0], render_scene("put", 3, seed=9, size=32).frames[0])


def test_a_finished_set_is_reused_and_an_interrupted_one_completed(tmp_path: Path) -> None:
    make_order(tmp_path / "a", TINY, workers=0)
    before = contents(tmp_path / "a")
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.mp4")}
    calls: list[tuple[int, int]] = []
    make_order(tmp_path / "a", TINY, workers=0, progress=lambda *c: calls.append(c))
    assert not calls and times == {p: p.stat().st_mtime_ns for p in times}
    next(iter(times)).unlink()
    (tmp_path / "a" / "order.csv").unlink()
    make_order(tmp_path / "a", TINY, workers=0, progress=lambda *c: calls.append(c))
    assert calls == [(4, 4)]
    assert contents(tmp_path / "a") == before


def test_an_interruption_leaves_whole_files_only(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_order(tmp_path / "a", TINY, workers=0, progress=stop)
    assert json.loads((tmp_path / "a" / "order.json").read_text())["finished"] is False
    make_order(tmp_path / "a", TINY, workers=0)
    make_order(tmp_path / "b", TINY, workers=0)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_full_disk_is_a_short_error_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        if str(target).endswith(".mp4"):
            raise OSError(28, "No space left on device", str(target))
        Path(source).rename(target)

    monkeypatch.setattr(order.os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        make_order(tmp_path / "a", TINY, workers=0)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".mp4", ".part")]


@pytest.mark.skipif(sys.platform != "linux", reason="processes that are not forked know nothing of the fault planted")
def test_a_process_that_is_killed_is_a_short_error_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OrderConfig(clips=16, size=32, pairs=("push", "open"))

    def deadly(pair: str, number: int, **options: int) -> order.Scene:
        if (pair, number) == ("open", 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return render_scene(pair, number, **options)

    with monkeypatch.context() as planted, pytest.raises(DataError, match=r"killed .*run again to go on"):
        planted.setattr(order, "render_scene", deadly)
        make_order(tmp_path / "a", config, workers=2)
    make_order(tmp_path / "a", config, workers=2)
    make_order(tmp_path / "b", config, workers=0)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# --- bad arguments ----------------------------------------------------------------------------------------------------


def test_a_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        make_order(tmp_path, TINY, workers=0)
    (tmp_path / "order.json").write_text("{}")
    with pytest.raises(UsageError, match=r"order\.json"):
        make_order(tmp_path, TINY, workers=0)
    assert contents(tmp_path) == {"thesis.txt": b"years of work", "order.json": b"{}"}
    with pytest.raises(UsageError, match="is a file"):
        make_order(tmp_path / "thesis.txt", TINY, workers=0)


def test_a_folder_with_another_set_says_what_differs(tmp_path: Path) -> None:
    make_order(tmp_path, TINY, workers=0)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="seed 0 instead of 1"):
        make_order(tmp_path, OrderConfig(**{**vars(TINY), "seed": 1}), workers=0)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clips": 119}, "even"),
        ({"clips": 0}, "even"),
        ({"clips": 0}, "6 pairs of actions in 3 splits need at least 36 clips"),
        ({"clips": 2, "pairs": ("push", "put"), "test_fraction": 0}, "2 pairs of actions in 2 splits need at least 8"),
        ({"clips": 24}, "at least 36 clips"),
        ({"size": 97}, "size is 97"),
        ({"size": 8}, "size is 8"),
        ({"seed": -1}, "negative"),
        ({"pairs": ()}, "at least one"),
        ({"pairs": ("push", "push")}, "each once"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "smaller fractions"),
        ({"clips": 36, "val_fraction": 0.4, "test_fraction": 0.5}, "smaller fractions"),
    ],
)
def test_bad_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OrderConfig(**arguments)  # type: ignore[arg-type]


def test_an_unknown_pair_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'push'"):
        OrderConfig(pairs=("psh",))
    with pytest.raises(UsageError, match="workers"):
        make_order("anywhere", TINY, workers=-2)
