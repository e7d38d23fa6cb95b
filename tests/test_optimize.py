"""Writing a data set again: the same frames at the same times, whatever the source, and nothing lost on the way."""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import shutil
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.frame import PictureType
from torch.nn.functional import interpolate

from tests.test_doctor import scene, snapshot
from tests.video_tools import numbers_of, picture, write_sound, write_video
from vireo.data import encode, optimize
from vireo.data.annotations import read_table
from vireo.data.decode import probe, read_frames
from vireo.data.encode import OptimizeConfig, encode_video, target_size
from vireo.data.optimize import optimize_command, optimize_data, target_names
from vireo.errors import DataError, DecodeError, StorageError, UsageError

SMALL = OptimizeConfig(short_side=32, gop=5)


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIREO_CACHE", str(tmp_path_factory.mktemp("cache")))


def every_frame(path: Path) -> torch.Tensor:
    return read_frames(path, np.arange).data


def times_of(path: Path) -> list[Fraction]:
    """Of all frames after the first, seconds, by decoding."""
    with av.open(str(path)) as container:
        stamps = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    return [stamp - stamps[0] for stamp in stamps]


def pictures_in(path: Path) -> tuple[str, list[bool]]:
    """Types of the frames, and whether each is a key frame, in the order in which they are shown."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return "".join(PictureType(frame.pict_type).name for frame in frames), [frame.key_frame for frame in frames]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean difference of coarse cells of frames of any two sizes, grey levels."""
    cells = [interpolate(frames.float(), (8, 8), mode="bilinear", antialias=True) for frames in (one, other)]
    return float((cells[0] - cells[1]).abs().mean())


UNEVEN = [0, 10, 25, 33, 50, 51, 70, 90, 95, 120, 150, 151, 152, 170, 200]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("b_frames.mp4", {"options": {"bf": "3", "g": "250"}}),
        ("open.mkv", {"options": {"bf": "2", "g": "10", "x264-params": "open-gop=1"}}),
        ("stream.ts", {}),
        ("old.avi", {"codec": "mpeg4"}),
        ("web.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
        ("images.avi", {"codec": "mjpeg"}),
        ("uneven.mp4", {"frames": 15, "times": UNEVEN}),
        ("uneven.mkv", {"frames": 15, "times": UNEVEN}),
    ],
)
def test_every_frame_keeps_its_number_its_time_and_its_look(tmp_path: Path, name: str, options: dict) -> None:
    source, target = write_video(tmp_path / name, **{"frames": 21, **options}), tmp_path / "new/x.mp4"
    written = encode_video(str(source), target, OptimizeConfig(gop=5))
    before, after = every_frame(source), every_frame(target)
    assert written.frames == len(before) == len(after) and written.bytes == target.stat().st_size
    assert numbers_of(after) == numbers_of(before) == list(range(len(before)))
    assert times_of(target) == times_of(source)
    assert (before.float() - after.float()).abs().mean() < 3  # colours and their range too
    kinds, keys = pictures_in(target)
    assert keys[0] and all(b - a <= 5 for a, b in itertools.pairwise([*np.flatnonzero(keys).tolist(), len(keys)]))
    assert kinds.count("B") >= len(kinds) // 2 and all(kinds[i] == "I" for i in np.flatnonzero(keys))
    assert all(kinds[i - 1] != "B" for i in np.flatnonzero(keys) if i)  # closed: nothing before leans on it
    with av.open(str(target)) as container:
        assert [s.type for s in container.streams] == ["video"]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    assert target.read_bytes().find(b"moov") < target.read_bytes().find(b"mdat")
    assert [path.name for path in target.parent.iterdir()] == ["x.mp4"]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_are_turned_upright_and_made_smaller(tmp_path: Path, rotation: int) -> None:
    source = write_video(tmp_path / "a.mp4", scene(1, 12, (120, 90)), size=(120, 90), rotation=rotation)
    encode_video(str(source), tmp_path / "b.mp4", OptimizeConfig(short_side=44))
    before, after = every_frame(source), every_frame(tmp_path / "b.mp4")
    assert after.shape[2:] == ((58, 44) if rotation % 180 else (44, 58))
    assert apart(before, after) < 3
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


@pytest.mark.parametrize("rotation", [90, 270])
def test_turning_loses_nothing(rotation: int) -> None:
    grid = np.random.default_rng(0).integers(16, 236, (48 * 3 // 2, 64), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(grid, format="yuv420p")
    turned = encode._turned(frame, rotation // 90)
    assert (turned.width, turned.height) == (48, 64)
    rgb = [f.to_ndarray(format="yuv444p", interpolation="POINT") for f in (frame, turned)]
    for plane in range(3):
        assert np.array_equal(np.rot90(rgb[0][plane], k=rotation // 90), rgb[1][plane])


def test_sizes_are_even_of_the_same_shape_and_never_larger() -> None:
    assert target_size(1920, 1080, 256) == (456, 256)
    assert target_size(340, 256, 256) == (340, 256)
    assert target_size(341, 255, 256) == (340, 254)
    assert target_size(1080, 1920, 0) == (1080, 1920)
    for width in range(2, 200, 7):
        for height in range(2, 200, 11):
            for side in (0, 16, 57, 128, 500):
                new = target_size(width, height, side)
                assert new[0] % 2 == new[1] % 2 == 0 and 2 <= new[0] <= max(width, 2) and 2 <= new[1] <= max(height, 2)
                short = min(width, height, side or 9999)
                scale = short / min(width, height)
                assert abs(new[0] - width * scale) <= 2 and abs(new[1] - height * scale) <= 2


def test_names_stay_and_do_not_collide() -> None:
    names = ["a/x.avi", "a/x.mp4", "a/y.mov", "b/Y.MOV", "b/y.mov", "c/frames", "d/x.y.webm"]
    expected = ["a/x.avi.mp4", "a/x.mp4.mp4", "a/y.mp4", "b/Y.MOV.mp4", "b/y.mov.1.mp4", "c/frames.mp4", "d/x.y.mp4"]
    assert target_names(names) == expected
    for names in (["b/Y.MOV", "b/y.mov"], ["x.avi", "x.mp4", "x.mp4.mkv", "x.avi.mp4"], ["a", "A", "a.mp4.mp4"]):
        assert len({name.casefold() for name in target_names(names)}) == len(names)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for i in range(3):
        write_video(root / f"day 1/ä{i}.mp4", scene(i, 20), size=(96, 72))
        write_video(root / f"day2/{i}.avi", scene(10 + i, 20), size=(96, 72), codec="mpeg4")
    whole = (root / "day 1/ä0.mp4").read_bytes()
    (root / "day2/broken.mp4").write_bytes(whole[: len(whole) // 3])
    write_sound(root / "day2/sound.mp4")
    lines = ["path,label,split,group,start,end"]
    lines += [f"day 1/ä{i}.mp4,wave,train,anna,," for i in range(3)]
    lines += [f"day2/{i}.avi,clap,test,ben,," for i in range(3)]
    lines += ["day2/0.avi,wave,test,ben,0.1,0.5", "day2/broken.mp4,wave,test,ben,,", "day2/sound.mp4,clap,test,,0.5,"]
    (root / "list.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return root


def test_the_new_set_is_the_old_one_and_what_is_broken_counts_as_failed(data: Path, tmp_path: Path) -> None:
    before = snapshot(data)
    table = read_table(data / "list.csv")
    result = optimize_data(table, tmp_path / "out", SMALL, workers=2)
    assert (result.files, result.clips, result.frames) == (6, 9, 120)
    assert sorted(os.path.basename(path) for path, _ in result.failed) == ["broken.mp4", "sound.mp4"]
    rows = list(csv.reader((tmp_path / "out/failed.csv").open(encoding="utf-8")))
    assert rows[0] == ["path", "reason"] and [tuple(row) for row in rows[1:]] == list(result.failed)
    assert result.bytes_after == sum(p.stat().st_size for p in (tmp_path / "out").rglob("*.mp4"))
    assert result.bytes_before == sum(
        os.stat(p).st_size for p in set(table.paths) if "/day" in p and "o" not in Path(p).stem
    )
    assert result.ms_before > 0 and result.ms_after > 0 and result.sample == 6
    new = read_table(tmp_path / "out")  # its only list of clips
    assert (new.label_names, new.labels.tolist()) == (table.label_names, table.labels.tolist())
    assert (list(new.splits or ()), list(new.groups or ())) == (list(table.splits or ()), list(table.groups or ()))
    assert np.array_equal(new.starts, table.starts, equal_nan=True)
    assert np.array_equal(new.ends, table.ends, equal_nan=True)
    assert "2 of 9 files are missing and will count as failed: day2/broken.mp4" in new.notes[0]
    for i in range(7):
        old_record, record = table.record(i), new.record(i)
        cut = {"start": record.start, "end": record.end}
        old, now = read_frames(old_record.path, np.arange, **cut), read_frames(record.path, np.arange, **cut)
        assert old.frame_count == now.frame_count and now.data.shape[2:] == (32, 42)
        assert apart(old.data, now.data) < 3
    assert snapshot(data) == before


def test_a_second_run_writes_only_what_is_missing_or_changed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, out = read_table(data / "list.csv"), tmp_path / "out"
    first = optimize_data(table, out, SMALL, workers=0)
    assert len(first.failed) == 2
    encoded: list[str] = []
    real = optimize.encode_video

    def counting(source: str, target: Path, config: OptimizeConfig, **options: object) -> encode.Written:
        encoded.append(os.path.basename(source))
        return real(source, target, config, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(optimize, "encode_video", counting)
    again = optimize_data(table, out, SMALL, workers=0)
    assert sorted(encoded) == ["broken.mp4", "sound.mp4"]
    assert (again.files, again.frames, again.bytes_before) == (first.files, first.frames, first.bytes_before)
    encoded.clear()
    (out / "day 1/ä1.mp4").unlink()
    os.truncate(out / "day2/0.mp4", 100)
    write_video(data / "day2/broken.mp4", scene(20, 15), size=(96, 72))
    (out / "optimize.jsonl").write_bytes((out / "optimize.jsonl").read_bytes() + b'{"source": "cut of')
    last = optimize_data(table, out, SMALL, workers=0)
    assert sorted(encoded) == ["0.avi", "broken.mp4", "sound.mp4", "ä1.mp4"]
    assert [os.path.basename(path) for path, _ in last.failed] == ["sound.mp4"] and last.clips == 9
    assert read_frames(out / "day2/broken.mp4", np.arange).frame_count == 15
    # What was made of an earlier state of a file must not stand for it once it can't be read.
    os.truncate(data / "day2/broken.mp4", 50)
    failed = optimize_data(table, out, SMALL, workers=0).failed
    assert [os.path.basename(path) for path, _ in failed] == ["broken.mp4", "sound.mp4"]
    assert not (out / "day2/broken.mp4").exists()
    with pytest.raises(UsageError, match="other settings"):
        optimize_data(table, out, OptimizeConfig(short_side=32, gop=6), workers=0)


def test_a_run_that_is_killed_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    for i in range(12):
        write_video(tmp_path / f"data/{'ab'[i % 2]}/{i}.mp4", scene(i, 60, (160, 120)), size=(160, 120))
    out = tmp_path / "out"
    table = read_table(tmp_path / "data")
    process = multiprocessing.get_context("fork").Process(
        target=optimize_data, args=(table, out, OptimizeConfig()), kwargs={"workers": 1}
    )
    process.start()
    deadline = time.monotonic() + 60
    while len(list(out.rglob("*.mp4"))) < 3 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    time.sleep(0.5)  # the worker notices
    done = [path for path in out.rglob("*.mp4") if not path.name.startswith(".")]
    assert 3 <= len(done) < 12 and not (out / "clips.csv").exists()
    for path in done:
        assert len(every_frame(path)) == 60
    result = optimize_data(table, out, OptimizeConfig(), workers=0)
    assert result.files == 12 and [path.name for path in out.rglob(".*")] == [".lock"]
    assert [len(every_frame(Path(path))) for path in read_table(out).paths] == [60] * 12


def test_two_runs_do_not_write_to_one_folder(data: Path, tmp_path: Path) -> None:
    table, refused = read_table(data / "list.csv"), []

    def again(count: int) -> None:
        with pytest.raises(UsageError, match="another run is writing"):
            optimize_data(table, tmp_path / "out", SMALL, workers=0)
        refused.append(count)

    optimize_data(table, tmp_path / "out", SMALL, workers=0, done=again)
    assert len(refused) == 8


def test_a_journal_full_of_nonsense_is_passed_over(data: Path, tmp_path: Path) -> None:
    table, out = read_table(data / "list.csv"), tmp_path / "out"
    first = optimize_data(table, out, SMALL, workers=0)
    journal = out / "optimize.jsonl"
    line = json.loads(journal.read_text().splitlines()[-1])
    wrong = [{**line, "source": [1]}, {**line, "target": {}}, {**line, "bytes": "9"}, {**line, "stamp": 3}, {}, [], 7]
    journal.write_text(journal.read_text() + "".join(json.dumps(entry) + "\n" for entry in wrong))
    again = optimize_data(table, out, SMALL, workers=0)
    assert (again.files, again.frames, again.bytes_after) == (first.files, first.frames, first.bytes_after)


def test_a_folder_with_a_colon_is_no_protocol(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert optimize_data(read_table(data / "list.csv"), Path("2024:11"), SMALL, workers=0).files == 6
    assert len(every_frame(Path("2024:11/day 1/ä0.mp4"))) == 20


def test_files_that_take_too_much_memory_fail_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = optimize.encode_video

    def greedy(source: str, target: Path, config: OptimizeConfig, **options: object) -> encode.Written:
        if source.endswith("0.avi"):
            raise MemoryError
        return real(source, target, config, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(optimize, "encode_video", greedy)
    result = optimize_data(read_table(data / "list.csv"), tmp_path / "out", SMALL, workers=0)
    assert dict(result.failed)[str(data / "day2/0.avi")] == "not enough memory for its frames" and result.files == 5


def test_the_source_is_never_written_over(data: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    table = read_table(data / "list.csv")
    (tmp_path / "link").symlink_to(data)
    for out in (data, data / "day2", tmp_path / "link", tmp_path):
        with pytest.raises(UsageError):
            optimize_data(table, out, SMALL, workers=0)
        with pytest.raises(UsageError):
            optimize_command(str(data), out, workers=0)
    with pytest.raises(UsageError, match="own folder"):
        optimize_command(str(data), data / "new", workers=0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x").touch()
    with pytest.raises(UsageError, match="not empty"):
        optimize_data(table, tmp_path / "other", SMALL, workers=0)
    (tmp_path / "other/x").unlink()
    assert snapshot(tmp_path) == before


def test_folders_of_frames_become_videos(tmp_path: Path) -> None:
    from torchvision.io import write_jpeg

    for label in "ab":
        (tmp_path / f"data/{label}").mkdir(parents=True)
        for i in range(40):
            image = torch.from_numpy(picture(i, 96, 72)).permute(2, 0, 1)
            write_jpeg(image, str(tmp_path / f"data/{label}/{i + 1:05d}.jpg"), quality=95)
    (tmp_path / "data/list.csv").write_text("path,label\na,x\nb,y\n")
    result = optimize_data(read_table(tmp_path / "data/list.csv"), tmp_path / "out", OptimizeConfig(), workers=0)
    assert (result.files, result.frames, result.failed) == (2, 80, ())
    frames = every_frame(tmp_path / "out/a.mp4")
    assert numbers_of(frames) == list(range(40))
    assert times_of(tmp_path / "out/a.mp4")[:3] == [0, Fraction(1, 25), Fraction(2, 25)]
    (tmp_path / "data/list.csv").write_text("path,label,frames\na,x,33\nb,y,41\n")
    result = optimize_data(read_table(tmp_path / "data/list.csv"), tmp_path / "out", OptimizeConfig(), workers=0)
    assert (result.files, result.frames) == (1, 33) and "41 frames announced" in result.failed[0][1]
    original = np.stack([picture(i, 96, 72) for i in range(40)])
    assert np.abs(frames.permute(0, 2, 3, 1).numpy().astype(int) - original).mean() < 4


def test_every_frame_can_be_read_without_those_before_its_group(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", scene(3, 90), size=(96, 72), options={"g": "250"})
    encode_video(str(source), tmp_path / "b.mp4", OptimizeConfig(gop=12))
    info = probe(tmp_path / "b.mp4")
    assert (info.fast, info.longest_gop, info.frame_count) == (True, 12, 90) and info.keyframes >= 8
    whole = every_frame(tmp_path / "b.mp4")
    for i in range(0, 90, 7):
        assert torch.equal(read_frames(tmp_path / "b.mp4", lambda n, i=i: np.array([i])).data[0], whole[i])


def test_what_can_not_be_written_is_said(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", 10)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        encode_video(str(source), tmp_path / "file/x.mp4", SMALL)
    with pytest.raises(DecodeError, match="no such file"):
        encode_video(str(tmp_path / "gone.mp4"), tmp_path / "out/x.mp4", SMALL)
    assert list((tmp_path / "out").iterdir()) == []
    write_video(tmp_path / "d/a/0.mp4", 10)
    write_video(tmp_path / "d/b/0.mp4", 10)
    table = read_table(tmp_path / "d")
    for path in table.paths:
        os.truncate(path, 50)
    with pytest.raises(DataError, match="no file of 2 can be read"):
        optimize_data(table, tmp_path / "e", SMALL, workers=0)
    assert len((tmp_path / "e/failed.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("wrong", [{"short_side": 8}, {"short_side": -1}, {"gop": 0}, {"crf": 52}, {"crf": -1}])
def test_settings_that_make_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        OptimizeConfig(**wrong)


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (data / "list.csv").read_text().splitlines(keepends=True)
    (data / "list.csv").write_text("".join([*rows, rows[1]]))
    assert optimize_command(str(data / "list.csv"), tmp_path / "out", short_side=32, gop=1, workers=1) == 0
    printed, said = capsys.readouterr()
    assert "left out 1 row that repeats an earlier one (line 11)" in said
    assert "6 files, 9 clips" in printed and "broken.mp4: " in printed and "without sound" in printed
    assert optimize_command(str(data / "list.csv"), tmp_path / "out", short_side=32, gop=1, workers=1, json=True) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["files"] == 6 and len(plain["failed"]) == 2 and plain["gop"] == 1
    assert all(pictures_in(tmp_path / "out/day 1/ä0.mp4")[1])
    # Another data set would take the place of this one's list.
    shutil.copytree(data, tmp_path / "other")
    before = (tmp_path / "out/clips.csv").read_bytes()
    with pytest.raises(UsageError, match=r"out holds what was made from .*data/list\.csv; choose another folder"):
        optimize_command(str(tmp_path / "other/list.csv"), tmp_path / "out", short_side=32, gop=1, workers=1)
    assert (tmp_path / "out/clips.csv").read_bytes() == before
