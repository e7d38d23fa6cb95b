"""Optical flow of a data set: known motion, what lies on the disk, runs that go on, and faults of single clips."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import vireo.data.extract as module
from tests.video_tools import FPS, write_video
from vireo import cli
from vireo.data.annotations import read_table
from vireo.data.extract import FlowReport, clip_folders, extract_flow, flow_command, gray_frames
from vireo.data.flow import mirror_flow, read_flow
from vireo.data.table import ClipRecord, ClipTable, StringColumn
from vireo.errors import DataError, DecodeError, MissingDependencyError, StorageError, UnknownNameError, UsageError
from vireo.scores import clip_names

cv2 = pytest.importorskip("cv2", reason="optical flow needs vireo[flow]")
W, H = 96, 64
SHARP = {"crf": "8"}


@pytest.fixture(autouse=True)
def cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("VIREO_CACHE", str(tmp_path_factory.mktemp("cache")))


def texture(seed: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: smooth, without a repetition."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 2.5)
    levels = (blurred - blurred.min()) / (blurred.max() - blurred.min()) * 255
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


def moving(across: int, down: int, count: int = 6, seed: int = 0) -> list[np.ndarray]:
    """Frames of a texture that moves by so many pixels per frame, to the right and down."""
    room = 8 * count
    whole = texture(seed, H + 2 * room, W + 2 * room)
    places = [(room - down * i, room - across * i) for i in range(count)]
    return [whole[top : top + H, left : left + W] for top, left in places]


def write_moving(path: Path, across: int, down: int, count: int = 6, **options: object) -> Path:
    return write_video(path, moving(across, down, count), size=(W, H), options=SHARP, **options)  # type: ignore[arg-type]


def write_set(root: Path, clips: int = 2, count: int = 4) -> Path:
    """Two classes, moving right and left."""
    for label, speed in (("left", -3), ("right", 3)):
        for i in range(clips):
            write_moving(root / label / f"{label}_{i}.mp4", speed, 0, count)
    return root


def table_of(*paths: Path, **columns: object) -> ClipTable:
    n = len(paths)
    plain = {"labels": np.zeros(n, dtype=np.int64), "starts": np.full(n, np.nan), "ends": np.full(n, np.nan)}
    return ClipTable(paths=StringColumn(map(str, paths)), label_names=("a",), **plain | columns)  # type: ignore[arg-type]


def run(table: ClipTable, out: Path, **options: object) -> FlowReport:
    options = {"method": "dis", "short_side": 0, "workers": 0} | options
    return extract_flow(table, out, **options)  # type: ignore[arg-type]


def pixels(clip: Path) -> np.ndarray:
    """(F - 1, 2, H, W) flow of a stored clip, in pixels, without its border."""
    count = len(list(clip.glob("flow_x_*.jpg")))
    stacks = read_flow(clip, lambda starts: np.arange(starts), fields=1)
    assert len(stacks) == count
    return (stacks.numpy().astype(np.float64) * 40 / 255 - 20)[..., 12:-12, 12:-12]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but those that belong to a run at work."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- the flow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tvl1", "dis"])
@pytest.mark.parametrize("across, down", [(3, 0), (-2, 1)])
def test_known_motion_is_found(tmp_path: Path, method: str, across: int, down: int) -> None:
    path = write_moving(tmp_path / "a" / "clip.mp4", across, down)
    report = run(table_of(path), tmp_path / "flow", method=method)
    found = pixels(tmp_path / "flow" / "clip")
    assert report.fields == len(found) == 5  # of six frames
    for field in found:
        assert abs(np.median(field[0]) - across) < 0.5
        assert abs(np.median(field[1]) - down) < 0.5
    assert report.saturated == 0.0


def test_flow_is_in_pixels_of_the_resized_frames(tmp_path: Path) -> None:
    path = write_moving(tmp_path / "a" / "clip.mp4", 4, 0)
    for side in (H // 2, 2 * H):
        run(table_of(path), tmp_path / str(side), short_side=side)
        clip = tmp_path / str(side) / "clip"
        facts = json.loads((clip / "flow.json").read_text())
        assert (facts["height"], facts["width"]) == (side, side * W // H)
        assert abs(np.median(pixels(clip)[:, 0]) - 4 * side / H) < 0.5


@pytest.mark.parametrize("method", ["tvl1", "dis"])
def test_a_mirrored_video_has_mirrored_flow_and_a_reversed_one_the_opposite(tmp_path: Path, method: str) -> None:
    frames = moving(3, 1)
    videos = {"as_it_is": frames, "mirrored": [f[:, ::-1] for f in frames], "reversed": frames[::-1]}
    paths = [
        write_video(
            tmp_path / "a" / f"{name}.mp4", list(map(np.ascontiguousarray, pictures)), size=(W, H), options=SHARP
        )
        for name, pictures in videos.items()
    ]
    run(table_of(*paths), tmp_path / "flow", method=method, quality=95)
    plan = np.arange
    plain, mirrored, backwards = (read_flow(tmp_path / "flow" / name, plan, fields=1) for name in videos)
    inside = np.s_[..., 12:-12, 12:-12]
    difference = (mirror_flow(plain).int() - mirrored.int()).abs()[inside]
    assert difference.double().median() <= 2  # of 255 levels for 40 pixels
    opposite = (256 - plain.int()).flip(0) - backwards.int()
    assert opposite.abs()[inside].double().median() <= 3
    assert (plain.int() - mirrored.int()).abs()[:, 0][inside].double().median() > 30


def test_a_rotated_video_has_upright_flow(tmp_path: Path) -> None:
    path = write_moving(tmp_path / "a" / "clip.mp4", 3, 0, rotation=90)
    run(table_of(path), tmp_path / "flow")
    found = pixels(tmp_path / "flow" / "clip")
    assert found.shape[2:] == (W - 24, H - 24)
    assert np.median(found[:, 1]) == pytest.approx(-3, abs=0.5)  # right, turned counterclockwise, is up
    assert np.median(found[:, 0]) == pytest.approx(0, abs=0.5)


def test_motion_beyond_the_bound_is_clipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fast:
        def calc(self, before: np.ndarray, after: np.ndarray, flow: None) -> np.ndarray:
            field = np.full((*before.shape, 2), 5, dtype=np.float32)
            field[: H // 4, :, 0] = 30
            return field

    monkeypatch.setattr(cv2, "DISOpticalFlow_create", lambda preset: Fast())
    path = write_moving(tmp_path / "a" / "clip.mp4", 0, 0)
    report = run(table_of(path), tmp_path / "flow")
    assert report.saturated == pytest.approx(1 / 8)
    stacks = read_flow(tmp_path / "flow" / "clip", lambda n: np.arange(1), fields=1)
    assert stacks[0, 0, 0, 0] >= 253 and abs(int(stacks[0, 0, -1, 0]) - 159) <= 2  # round(255 · 25 / 40)


# --- reading all frames ---------------------------------------------------------------------------------------


def test_every_frame_is_read_once_however_few_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", 23, options={"bf": "2", "g": "5"})
    record = ClipRecord(str(path), 0, None, None)
    whole = list(gray_frames(record, 0))
    assert len(whole) == 23
    monkeypatch.setattr(module, "_WINDOW", 5)
    monkeypatch.setattr(module, "_HELD", 4 * whole[0].size * 3)
    found = list(gray_frames(record, 0))
    assert len(found) == 23 and all(map(np.array_equal, found, whole))


def test_cuts_have_folders_and_names_of_their_own(tmp_path: Path) -> None:
    path = write_video(tmp_path / "data" / "clip.mp4", 20)
    table = table_of(path, path, starts=np.array([np.nan, 8 / FPS]), ends=np.array([4 / FPS, np.nan]))
    report = run(table, tmp_path / "flow")
    assert [len(pixels(tmp_path / "flow" / name)) for name in clip_folders(table)] == [3, 11]
    assert report.clips == 2 and report.fields == 14
    flow = read_table(report.csv, modality="flow", label_names=("a", "b"))
    assert clip_names(flow) == clip_names(table)


def test_folders_of_frames_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "a" / "17"
    folder.mkdir(parents=True)
    for i, image in enumerate(moving(3, 0)):
        cv2.imwrite(str(folder / f"{i + 1:05d}.png"), image)
    run(table_of(folder), tmp_path / "flow")
    assert np.median(pixels(tmp_path / "flow" / "17")[:, 0]) == pytest.approx(3, abs=0.5)


# --- the set --------------------------------------------------------------------------------------------------


def test_the_list_names_every_clip_with_its_label_split_and_group(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", clips=1)
    (tmp_path / "data.csv").write_text(
        "path,label,split,group\ndata/right/right_0.mp4,to the right,train,anna\ndata/left/left_0.mp4,left,test,ben\n"
    )
    table = read_table(tmp_path / "data.csv")
    report = run(table, tmp_path / "flow")
    rows = list(csv.DictReader(report.csv.open()))
    assert rows == [
        {"path": "right/right_0", "label": "to the right", "split": "train", "group": "anna"},
        {"path": "left/left_0", "label": "left", "split": "test", "group": "ben"},
    ]
    assert sorted(os.listdir(tmp_path / "flow")) == [".lock", "flow.csv", "flow.json", "left", "right"]
    assert sorted(os.listdir(tmp_path / "flow" / "left" / "left_0"))[:3] == [
        "flow.json",
        "flow_x_00001.jpg",
        "flow_x_00002.jpg",
    ]
    flow = read_table(tmp_path / "flow", modality="flow")  # the folder stands for its list
    assert len(flow) == 2 and clip_names(flow) == clip_names(table)
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "flow").rglob("*.jpg"))
    assert data.exists()


def test_names_that_would_be_taken_twice_keep_their_ending(tmp_path: Path) -> None:
    names = ["a/1.mp4", "a/1.avi", "a/2.mp4", "a/2/3.mp4", "b/wörld, x.mp4"]
    table = table_of(*(tmp_path / name for name in names))
    assert clip_folders(table) == ["a/1.mp4", "a/1.avi", "a/2.mp4", "a/2/3", "b/wörld, x"]
    inside = table_of(tmp_path / "frames", tmp_path / "frames" / "deeper", tmp_path / "other")
    with pytest.raises(DataError, match="frames is a clip and holds clips too"):
        clip_folders(inside)


def test_file_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9, 1.mp4")
    path = write_moving(tmp_path / "a" / "1.mp4", 1, 0, 3)
    path.rename(tmp_path / "a" / odd)
    report = run(table_of(tmp_path / "a" / odd), tmp_path / "flow")
    flow = read_table(report.csv, modality="flow", label_names=("a", "b"))
    assert len(read_flow(flow.paths[0], lambda n: np.arange(n), fields=1)) == 2


def test_names_that_are_not_utf8_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_moving(tmp_path / "data" / "a" / "1.mp4", 1, 0, 3)
    write_moving(tmp_path / "data" / "b" / "1.mp4", 1, 0, 3)
    odd = tmp_path / "data" / "a" / os.fsdecode(b"caf\xe9.mp4")
    odd.write_bytes(b"no video")
    (tmp_path / "data" / "b" / os.fsdecode(b"\xe9.txt")).touch()
    out = tmp_path / os.fsdecode(b"fl\xf6w")
    assert flow_command(str(tmp_path / "data"), out, method="dis", short_side=32, workers=0, json=True) == 0
    assert json.loads(capsys.readouterr().out)["failures"][0]["path"] == str(odd)
    assert flow_command(str(tmp_path / "data"), out, method="dis", short_side=32, workers=0) == 0
    capsys.readouterr().out.encode("utf-8")


def test_a_clip_listed_twice_is_computed_once(tmp_path: Path) -> None:
    path = write_moving(tmp_path / "a" / "1.mp4", 1, 0, 3)
    done: list[int] = []
    report = run(table_of(path, path), tmp_path / "flow", done=done.append)
    assert (report.clips, report.extracted, report.fields) == (2, 1, 2)
    assert done == [2]
    assert len(list(csv.reader(report.csv.open()))) == 3


# --- runs that go on ------------------------------------------------------------------------------------------


def test_a_second_run_keeps_what_is_there_and_mends_what_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_table(write_set(tmp_path / "data"))
    out = tmp_path / "flow"
    first = run(table, out)
    assert (first.extracted, first.kept) == (4, 0)
    before = contents(out)
    (out / "left" / "left_0" / "flow_x_00002.jpg").unlink()
    shutil.rmtree(out / "right" / "right_0")
    computed: list[str] = []
    read_clip = module.read_clip

    def watched(record: ClipRecord, *args: object, **options: object) -> object:
        computed.append(Path(record.path).stem)
        return read_clip(record, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_clip", watched)
    done: list[int] = []
    second = run(table, out, done=done.append)
    assert computed == ["left_0", "right_0"] and (second.extracted, second.kept) == (2, 2) and sum(done) == 4
    assert contents(out) == before
    assert (second.fields, second.bytes, second.saturated) == (first.fields, first.bytes, first.saturated)


def test_a_folder_of_unknown_origin_is_left_alone(tmp_path: Path) -> None:
    table = read_table(write_set(tmp_path / "data", clips=1))
    out = tmp_path / "flow"
    run(table, out)
    for text in ("{}", "[" * 9999, '{"source_bytes": 1}', "\x00"):
        (out / "left" / "left_0" / "flow.json").write_text(text)
        ((_, reason),) = run(table, out).failures
        assert reason == f"{out}/left/left_0 is in the way: no flow of an earlier run"
    shutil.rmtree(out / "left" / "left_0")
    assert run(table, out).extracted == 1


def test_a_video_that_changed_is_computed_again_and_another_one_is_not_put_in_its_place(tmp_path: Path) -> None:
    path = write_moving(tmp_path / "day1" / "clip.mp4", 3, 0, 3)
    out = tmp_path / "flow"
    run(table_of(path), out)
    os.utime(path, (1, 1))  # a copy of the data
    assert run(table_of(path), out).kept == 1
    write_moving(path, -3, 0, 5)
    assert run(table_of(path), out).extracted == 1
    assert np.median(pixels(out / "clip")[:, 0]) == pytest.approx(-3, abs=0.5)
    before = contents(out / "clip")
    other = write_moving(tmp_path / "day2" / "clip.mp4", 2, 0, 4)
    with pytest.raises(DataError, match=r"holds the flow of another clip, .*day1/clip\.mp4"):
        run(table_of(other), out)
    assert contents(out / "clip") == before


def extract_until_killed(paths: list[Path], out: Path) -> None:
    """In a process of its own: a run that is killed over the third field of the third clip."""
    fields = module._Extract._fields

    def deadly(self: object, record: ClipRecord) -> object:
        for count, field in enumerate(fields(self, record)):  # type: ignore[arg-type]
            if Path(record.path).stem == "2" and count == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield field

    module._Extract._fields = deadly  # type: ignore
    run(table_of(*paths), out)


def test_a_killed_run_leaves_no_half_clip_and_is_completed_by_the_next(tmp_path: Path) -> None:
    paths = [write_moving(tmp_path / "data" / f"{i}.mp4", 2, 0, 8) for i in range(4)]
    out = tmp_path / "flow"
    process = multiprocessing.get_context("fork").Process(target=extract_until_killed, args=(paths, out))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (part,) = (out / ".partial").iterdir()
    assert len(list(part.iterdir())) == 4  # of 14 images
    whole = [clip for clip in map(str, range(4)) if (out / clip).exists()]
    assert whole == ["0", "1"] and all(len(pixels(out / clip)) == 7 for clip in whole)
    assert not (out / "flow.csv").exists()
    report = run(table_of(*paths), out)
    assert (report.kept, report.extracted) == (2, 2)
    assert not (out / ".partial").exists()
    run(table_of(*paths), tmp_path / "in one go")
    assert contents(out) == contents(tmp_path / "in one go")


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    path = write_moving(tmp_path / "a" / "clip.mp4", 1, 0, 3)
    refused: list[str] = []

    def again(count: int) -> None:
        with pytest.raises(UsageError, match="another run is writing"):
            run(table_of(path), tmp_path / "flow")
        refused.append("yes")

    run(table_of(path), tmp_path / "flow", done=again)
    assert refused


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    path = write_moving(tmp_path / "a" / "clip.mp4", 1, 0, 3)
    out = tmp_path / "flow"
    run(table_of(path), out)
    for options, reason in (
        ({"method": "tvl1"}, "holds flow with method dis, not tvl1"),
        ({"short_side": 64}, "short side 0, not 64"),
        ({"quality": 50}, "quality 90, not 50"),
    ):
        with pytest.raises(UsageError, match=reason):
            run(table_of(path), out, **options)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    path = write_moving(tmp_path / "a" / "clip.mp4", 1, 0, 3)
    for name, text in {"thesis.txt": "years of work", "flow.json": "{}", "flow.csv": "path,label"}.items():
        out = tmp_path / name.replace(".", "_")
        out.mkdir()
        (out / name).write_text(text)
        with pytest.raises(UsageError, match="is not empty and holds no flow"):
            run(table_of(path), out)
        assert contents(out) == {name: text.encode()}
    with pytest.raises(UsageError, match="is not a folder"):
        run(table_of(path), path)
    (tmp_path / "empty").mkdir()
    assert run(table_of(path), tmp_path / "empty").extracted == 1


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path / "clip.mp4")
    for options, reason in (
        ({"short_side": 8}, "short_side is 8"),
        ({"short_side": -1}, "short_side is -1"),
        ({"quality": 0}, "quality is 0"),
        ({"workers": -2}, "workers is -2"),
        ({"timeout": float("nan")}, "timeout is nan"),
    ):
        with pytest.raises(UsageError, match=reason):
            run(table, tmp_path / "flow", **options)
    with pytest.raises(UnknownNameError, match="Did you mean 'tvl1'"):
        run(table, tmp_path / "flow", method="tv-l1")
    with pytest.raises(DataError, match="no clips"):
        run(table_of(), tmp_path / "flow")
    assert not (tmp_path / "flow").exists()


def test_without_opencv_the_message_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(tmp_path / "clip.mp4")
    monkeypatch.delattr(cv2.optflow, "DualTVL1OpticalFlow_create")
    with pytest.raises(MissingDependencyError, match=r"has no TV-L1.*pip install opencv-contrib"):
        run(table, tmp_path / "flow", method="tvl1")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependencyError, match="pip install opencv-contrib-python-headless"):
        run(table, tmp_path / "flow")
    assert not (tmp_path / "flow").exists()


# --- faults of single clips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_video_costs_itself_alone(tmp_path: Path, workers: int) -> None:
    data = write_set(tmp_path / "data")
    whole = (data / "left" / "left_0.mp4").read_bytes()
    (data / "left" / "left_0.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(data / "right" / "still.mp4", 1)
    (data / "right" / "gone.mp4").symlink_to("nowhere.mp4")
    done: list[int] = []
    report = run(read_table(data), tmp_path / "flow", workers=workers, done=done.append)
    assert (report.clips, report.extracted, len(report.failures), sum(done)) == (6, 3, 3, 6)
    failed = {
        Path(row["path"]).stem: row["reason"] for row in csv.DictReader((tmp_path / "flow" / "failed.csv").open())
    }
    assert failed.keys() == {"left_0", "still", "gone"}
    assert "one frame" in failed["still"] and "no such file" in failed["gone"]
    assert len(list(csv.DictReader(report.csv.open()))) == 6  # scores on the flow will count them as failed
    assert not (tmp_path / "flow" / "left" / "left_0").exists()
    (data / "left" / "left_0.mp4").write_bytes(whole)
    (data / "right" / "still.mp4").unlink()
    (data / "right" / "gone.mp4").unlink()
    mended = run(read_table(data), tmp_path / "flow", workers=workers)
    assert (mended.extracted, mended.kept, mended.failures) == (1, 3, ())
    assert not (tmp_path / "flow" / "failed.csv").exists()


def test_a_clip_is_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_moving(tmp_path / "a" / "clip.mp4", 1, 0, 3)
    tried: list[str] = []
    read_clip = module.read_clip

    def flaky(record: ClipRecord, *args: object, **options: object) -> object:
        tried.append(record.path)
        if len(tried) == 1:
            raise DecodeError(record.path, "the network was away")
        return read_clip(record, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_clip", flaky)
    assert run(table_of(path), tmp_path / "flow").failures == ()


@pytest.mark.parametrize("fault", ["killed", "stuck"])
def test_a_decoder_that_dies_or_hangs_costs_its_clip_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    paths = [write_moving(tmp_path / "data" / f"{name}.mp4", 1, 0, 3) for name in ("a", "bad", "c")]
    read_clip = module.read_clip

    def fatal(record: ClipRecord, *args: object, **options: object) -> object:
        if Path(record.path).stem == "bad":
            if fault == "stuck":
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        return read_clip(record, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_clip", fatal)
    report = run(table_of(*paths), tmp_path / "flow", workers=2, timeout=3 if fault == "stuck" else 0)
    assert report.extracted == 2
    ((path, reason),) = report.failures
    assert Path(path).stem == "bad" and ("SIGKILL" if fault == "killed" else "no frame within 3 s") in reason
    assert not (tmp_path / "flow" / ".partial").exists()


def test_a_long_clip_is_not_taken_for_a_stuck_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_moving(tmp_path / "a" / "clip.mp4", 1, 0, 8)
    fields = module._Extract._fields

    def slow(self: object, record: ClipRecord) -> object:
        for field in fields(self, record):  # type: ignore[arg-type]
            time.sleep(0.35)
            yield field

    monkeypatch.setattr(module._Extract, "_fields", slow)
    assert run(table_of(path), tmp_path / "flow", workers=1, timeout=2).fields == 7


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    table = read_table(write_set(tmp_path / "data"))
    run(table, tmp_path / "0")
    run(table, tmp_path / "2", workers=2)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_where_nothing_can_be_read_the_first_reason_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"no clip of 1 could be read; .*failed\.csv says why.*a\.mp4: not a video"):
        run(table_of(tmp_path / "a.mp4"), tmp_path / "flow")
    assert (tmp_path / "flow" / "failed.csv").exists() and not (tmp_path / "flow" / "flow.csv").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_cannot_be_written_ends_the_run(tmp_path: Path, workers: int) -> None:
    table = read_table(write_set(tmp_path / "data", clips=1))
    out = tmp_path / "flow"
    run(table, out)
    shutil.rmtree(out / "left")
    (out / "left").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="left_0: could not be written"):
        run(table, out, workers=workers)
    assert (out / "left").read_text() and not (out / ".partial").exists()


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_says_what_it_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(tmp_path / "data")
    (data / "left" / "bad.mp4").write_bytes(b"no video")
    assert flow_command(str(data), tmp_path / "flow", method="dis", short_side=0, workers=0) == 0
    printed = capsys.readouterr().out
    assert "flow of 4 clips by dis" in printed and "12 fields on disk" in printed and "1 clip could not be" in printed
    assert f"vireo train --modality flow --data {tmp_path}/flow/flow.csv" in printed
    again = flow_command(str(data), tmp_path / "flow", method="dis", short_side=0, workers=0, json=True)
    found = json.loads(capsys.readouterr().out)
    assert again == 0 and (found["clips"], found["extracted"], found["kept"], found["failed"]) == (5, 0, 4, 1)
    assert found["failures"][0]["path"] == str(data / "left" / "bad.mp4")
    assert found["method"] == "dis" and found["bound"] == 20 and found["fields"] == 12
    shutil.copytree(data, tmp_path / "other")
    with pytest.raises(UsageError, match=r"flow holds what was made from .*; choose another folder"):
        flow_command(str(tmp_path / "other"), tmp_path / "flow", method="dis", short_side=0, workers=0)


def test_flow_does_not_go_among_the_videos(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", clips=1)
    for out in (data, data / "flow", data / "left" / "flow", tmp_path / "data" / ".." / "data" / "x"):
        with pytest.raises(UsageError, match="lies in the data's own folder"):
            flow_command(str(data), out, method="dis")
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(UsageError, match="lies in the data's own folder"):
        flow_command(f"folder:{data}", tmp_path / "link" / "flow", method="dis")


def test_a_temporal_stream_is_trained_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(read_table(write_set(tmp_path / "data", clips=4, count=7)), tmp_path / "flow")
    words = ["train", "--modality", "flow", "--data", str(report.csv), "--out", str(tmp_path / "run")]
    words += ["--temporal", "tsm", "--backbone", "resnet10t", "--pretrained", "false", "--size", "32"]
    words += ["--num-frames", "2", "--epochs", "1", "--batch-size", "3", "--workers", "0", "--precision", "32-true"]
    assert cli.main([*words, "--val-fraction", "0.25", "--flip", "off"]) == 0
    assert "2 × 5 flow fields of 32²" in capsys.readouterr().out
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert not (tmp_path / "run" / "failed.csv").exists()
