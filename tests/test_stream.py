"""Windows over recorded video: what they look at, what is said of them, and the files that come of it."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from torch import Tensor, nn

from tests.video_tools import FPS, number_of, numbers_of, picture, write_sound, write_video
from vireo.checkpoint import Checkpoint, save_checkpoint
from vireo.config import ModelConfig, ViewConfig
from vireo.data.sampling import segment_indices
from vireo.errors import DecodeError, StorageError, UsageError
from vireo.model import create_model
from vireo.predict import predict, predict_command
from vireo.stream.overlay import caption, draw_labels
from vireo.stream.plan import SECOND, Window, WindowPlan, Windows
from vireo.stream.reading import with_times
from vireo.stream.scoring import SEGMENT_WINDOW, _Feed, _Inline, predict_windows
from vireo.stream.timeline import Moment, Segment, Segmenter, Smoother, WindowScore
from vireo.stream.writers import CsvWriter, SrtWriter, output_paths, srt_text, srt_time


class Watcher(nn.Module):
    """Notes the numbers on the frames that it is shown; its classes are parts of the video."""

    def __init__(self, frames: int = 4, **config: Any) -> None:
        super().__init__()
        self.config = ModelConfig(num_frames=frames, **config)
        self.seen: list[list[int]] = []
        self.batches: list[int] = []

    def forward(self, clips: Tensor) -> Tensor:
        assert clips.dtype == torch.uint8 and clips.shape[2:] == (3, 48, 48)
        assert clips.permute(0, 1, 3, 4, 2).is_contiguous()
        self.batches.append(len(clips))
        self.seen += [numbers_of(clip) for clip in clips]
        middle = torch.tensor([float(numbers_of(clip)[len(clip) // 2]) for clip in clips])
        return torch.stack([100 - middle, middle - 20], 1) / 10  # the second class from number 60 on


def checkpoint_of(model: nn.Module, **view: Any) -> Checkpoint:
    view = {"size": 48, "short_side": 48, **view}
    return Checkpoint(model=model, labels=("early", "late"), view=ViewConfig(**view))  # type: ignore[arg-type]


def square(count: int, **options: Any) -> dict[str, Any]:
    return {"frames": (picture(i, 48, 48) for i in range(count)), "size": (48, 48), **options}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds, 100 numbered frames."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", **square(100))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("tsm", "resnet10t", num_classes=3, num_frames=4)
    torch.nn.init.normal_(model.classifier.weight)
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    labels = ('wave, "big"', "<b>push</b> {left}", "日本 $x$")
    save_checkpoint(path, model, labels=labels, view=ViewConfig(size=48), provenance={})
    return path


# --- what windows look at ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "every", "frames"), [(1.0, 0.25, 4), (0.64, 0.64, 8), (1.28, 0.2, 5), (0.04, 0.04, 1)]
)
def test_windows_sample_as_training_does(clip: Path, window: float, every: float, frames: int) -> None:
    model = Watcher(frames)
    scores = list(predict_windows(checkpoint_of(model), clip, window=window, every=every))
    length = round(window * FPS)
    for score, seen in zip(scores[:-1], model.seen[:-1], strict=True):
        begin, whole = score.start * FPS, segment_indices(length, frames)
        if begin.is_integer():
            assert seen == [int(begin) + i for i in whole.tolist()]
        # Any other by the time of each moment, exactly.
        exact = [
            Fraction(score.start).limit_denominator(1000) * FPS + Fraction(2 * i + 1, 2 * frames) * length
            for i in range(frames)
        ]
        assert seen == [int(moment) for moment in exact]
    assert model.seen[-1] == [100 - length + i for i in segment_indices(length, frames).tolist()]  # ends with the video


def test_every_moment_is_covered_whatever_the_lengths(clip: Path) -> None:
    for window, every in itertools.product((0.3, 0.77, 3.9, 4.0), (0.3, 0.13)):
        scores = list(predict_windows(checkpoint_of(Watcher()), clip, window=window, every=every))
        assert scores[0].start == 0 and scores[-1].end == pytest.approx(4, abs=1e-5)
        assert all(b.start <= a.end and b.end > a.end for a, b in itertools.pairwise(scores))
        assert all(score.end - score.start == pytest.approx(window) for score in scores)


def test_each_frame_becomes_a_picture_once_at_most_and_only_if_it_is_looked_at() -> None:
    plan = WindowPlan.of(1.0, 0.25, 4)
    windows, made, looked = Windows(plan, seconds=40), [], set()
    for number in range(1000):
        begin = number * SECOND // FPS

        def make(number: int = number) -> Tensor:
            made.append(number)
            return torch.tensor(number)

        for window in windows.push(begin, begin + SECOND // FPS, make):
            looked.update(int(p) for p in window.pictures)
        assert len(windows._held) <= 2 * FPS  # however long it goes on
    looked.update(int(p) for window in windows.finish() for p in window.pictures)
    assert len(made) == len(set(made))
    assert set(made) - looked <= set(range(FPS))  # those of the first second are kept in case it is all there is
    assert len(made) < 1000 * 4 / FPS + FPS + 8


def test_variable_rates_go_by_time_stamps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.integers(1, 60, 100)) - 1  # in 1/250 s
    path = write_video(tmp_path / "vfr.mp4", **square(100, times=times.tolist()))
    with av.open(str(path)) as container:  # what is in the file, by another way
        shown = [(frame.pts * frame.time_base, number_of(frame.to_ndarray(format="rgb24"))) for frame in
                 container.decode(video=0)]  # fmt: skip
    first = shown[0][0]
    model = Watcher(5)
    scores = list(predict_windows(checkpoint_of(model), path, window=1.5, every=0.4))
    assert len(scores) > 15
    for score, seen in zip(scores[:-1], model.seen[:-1], strict=True):
        moments = [Fraction(round(score.start * SECOND) + (2 * i + 1) * 3 * SECOND // 20, SECOND) for i in range(5)]
        assert seen == [[n for t, n in shown if t - first <= moment][-1] for moment in moments]


@pytest.mark.parametrize("rate", ["24000/1001", "24", "25", "2997/100", "30000/1001", "30", "50", "60000/1001", "60"])
@pytest.mark.parametrize("unit", ["rate", "1/90000", "1/1000"])
def test_constant_rates_are_sampled_by_number_whatever_their_time_stamps(rate: str, unit: str) -> None:
    fps = Fraction(rate)
    base = 1 / fps if unit == "rate" else Fraction(unit)
    for frames, count in itertools.product((4, 8, 16), (*range(1, 100), 250)):
        model = Windows(WindowPlan.of(60.0, None, frames))
        shown = []
        for i in range(count):
            frame = VideoFrame(16, 16, "gray")
            frame.pts, frame.time_base = round(i / fps / base) + 5, base
            frame.duration = round(1 / fps / base)
            shown.append(frame)
        timed = list(with_times(iter(shown), fps, "x"))
        assert timed[-1].end == pytest.approx(count / fps * SECOND, abs=1)
        for i, (begin, end, _) in enumerate(timed):
            list(model.push(begin, end, lambda i=i: torch.tensor(i)))  # type: ignore[misc]
        (window,) = model.finish()
        assert [int(p) for p in window.pictures] == segment_indices(count, frames).tolist(), count


def test_time_stamps_that_leave_the_rate_count_from_there_on() -> None:
    stamps = [0, 33, 67, 100, 133, 160, 200, 233]  # ms; 30 frames a second but for one
    shown = []
    for stamp in stamps:
        frame = VideoFrame(16, 16, "gray")
        frame.pts, frame.time_base = stamp, Fraction(1, 1000)
        shown.append(frame)
    begins = [timed.begin for timed in with_times(iter(shown), Fraction(30), "x")]
    assert begins == [i * SECOND // 30 for i in range(5)] + [stamp * SECOND // 1000 for stamp in stamps[5:]]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 24, 60])
def test_a_video_shorter_than_the_window_is_one_window_sampled_whole(tmp_path: Path, saved: Path, count: int) -> None:
    for name in ("short.mp4", "short.h264"):  # the second doesn't say how long it is
        path = write_video(tmp_path / name, **square(count))
        model = Watcher(4)
        (score,) = predict_windows(checkpoint_of(model), path, window=10.0)
        assert model.seen == [segment_indices(count, 4).tolist()]
        assert (score.start, score.end) == (0, pytest.approx(count / FPS, abs=1e-3))
    (score,) = predict_windows(saved, path, window=10.0, device="cpu")
    whole = predict(saved, path, device="cpu")
    assert (score.label, score.probability) == (whole.label, pytest.approx(whole.probability, abs=1e-5))


def test_the_default_window_is_the_checkpoints(clip: Path) -> None:
    dense = predict_windows(checkpoint_of(Watcher(), sampling="dense", window=32), clip)
    assert dense.plan.window == 32 * SECOND // FPS and dense.plan.every == dense.plan.window // 4
    assert predict_windows(checkpoint_of(Watcher()), clip).plan.window == SEGMENT_WINDOW * SECOND


def test_batches_and_limits(clip: Path) -> None:
    one, many = Watcher(), Watcher()
    single = list(predict_windows(checkpoint_of(one), clip, window=1.0))
    batched = list(predict_windows(checkpoint_of(many), clip, window=1.0, batch_size=5))
    assert one.seen == many.seen and one.batches == [1] * 13 and many.batches == [5, 5, 3]
    assert [s.as_dict() for s in single] == [s.as_dict() for s in batched]
    scores = list(predict_windows(checkpoint_of(Watcher()), clip, window=1.0, limit=2.0))
    assert scores[-1].end == pytest.approx(2.0)


def test_a_limit_is_kept_to_while_a_frame_is_on_show(tmp_path: Path) -> None:
    path = write_video(tmp_path / "slow.mp4", **square(4, times=[i * 2500 for i in range(4)]))  # 10 s each
    scores = list(predict_windows(checkpoint_of(Watcher()), path, window=2.0, every=1.0, limit=15.0))
    assert scores[-1].end == 15 and len(scores) == 14


def test_rotated_video_is_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "turned.mp4", **square(30, rotation=180))
    model = Watcher(2)
    list(predict_windows(checkpoint_of(model), path, window=1.0))
    turned = [number_of(np.rot90(picture(i, 48, 48), 2)) for i in range(30)]
    assert model.seen[0] == [turned[6], turned[18]]


def test_closing_early_ends_it(clip: Path) -> None:
    with predict_windows(checkpoint_of(Watcher()), clip, window=0.1, every=0.01) as windows:
        next(windows)
    assert list(windows) == []


def endless() -> Iterator[Window]:
    for number in itertools.count():
        yield Window(number, number + 1, [], 3, float(number))


def test_the_reader_waits_for_a_recording_and_ends_when_told() -> None:
    closed: list[bool] = []
    feed = _Feed(endless(), lambda: closed.append(True), capacity=4, latency=None)
    assert [w.start for _ in range(5) for w in feed.get(3)] == list(range(15)) and feed.dropped == (0, 0)
    assert not closed
    feed.close()
    feed._thread.join(5)
    assert closed == [True] and feed.get(1) == []


def test_old_windows_of_a_live_source_are_dropped() -> None:
    ready = itertools.islice(endless(), 10)
    feed = _Feed(ready, lambda: None, capacity=1, latency=2.5)  # window k is ready at second k, long ago
    feed._thread.join(5)
    (window,) = feed.get(1)
    assert window.start == 9 and feed.dropped == (9, 27)
    assert feed.get(1) == []


@pytest.mark.parametrize("kind", [_Feed, _Inline])
def test_an_error_comes_behind_the_windows_before_it(kind: Any) -> None:
    def breaks() -> Iterator[Window]:
        yield from itertools.islice(endless(), 5)
        raise DecodeError("x", "broken")

    feed = kind(breaks(), lambda: None, **({"capacity": 9, "latency": None} if kind is _Feed else {}))
    assert [len(feed.get(3)), len(feed.get(3))] == [3, 2]
    with pytest.raises(DecodeError, match="broken"):
        feed.get(3)
    assert feed.get(3) == []


# --- bad input ------------------------------------------------------------------------------------------------------


def test_lengths_that_make_no_sense(clip: Path) -> None:
    model = checkpoint_of(Watcher())
    for options, says in [
        ({"window": 0.0}, "window is 0 seconds"),
        ({"window": -1.0}, "window is -1"),
        ({"window": float("nan")}, "window is nan"),
        ({"window": 1e9}, "window is 1e\\+09"),
        ({"window": 1.0, "every": 2.0}, "every is 2 seconds"),
        ({"window": 1.0, "every": 0.0}, "every is 0"),
        ({"limit": 0.0}, "limit is 0"),
        ({"latency": -1.0}, "latency is -1"),
        ({"retry": float("inf")}, "retry is inf"),
        ({"batch_size": 0}, "batch_size is 0"),
    ]:
        with pytest.raises(UsageError, match=says):
            predict_windows(model, clip, **options)
    with pytest.raises(UsageError, match="optical flow"):
        predict_windows(checkpoint_of(Watcher(modality="flow")), clip)


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello " * 1000)
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "fifo.mp4")
    write_sound(tmp_path / "sound.mp4")
    for name in ("text.mp4", "empty.mp4", "fifo.mp4", "sound.mp4", "missing.mp4", "."):
        with pytest.raises(DecodeError):
            predict_windows(checkpoint_of(Watcher()), tmp_path / name)


def broken(path: Path, whole: Path) -> Path:
    """A copy that breaks off after about two thirds."""
    data = whole.read_bytes()
    path.write_bytes(data[: 2 * len(data) // 3])
    return path


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_file_that_breaks_off_gives_what_was_read(tmp_path: Path, ending: str) -> None:
    options = {"container_options": {"movflags": "faststart"}} if ending == "mp4" else {}
    whole = write_video(tmp_path / f"whole.{ending}", **square(100, options={"g": "10"}, **options))
    model, expected = Watcher(), Watcher()
    all_scores = list(predict_windows(checkpoint_of(expected), whole, window=0.8))
    scores = []
    with pytest.raises(DecodeError):
        for score in predict_windows(checkpoint_of(model), broken(tmp_path / f"broken.{ending}", whole), window=0.8):
            scores.append(score)
    assert 3 < len(scores) < len(all_scores)
    assert model.seen[:-1] == expected.seen[: len(scores) - 1]
    assert 1.0 < scores[-1].end < 3.6


def test_a_trimmed_file_is_whole(tmp_path: Path) -> None:
    long = write_video(tmp_path / "long.mp4", **square(150, options={"g": "250", "bf": "0"}))
    path = tmp_path / "trimmed.mp4"
    with av.open(str(long)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        assert stream.time_base is not None
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                # Everything behind the only keyframe stays; an edit list hides what lies before the cut.
                packet.pts, packet.dts = packet.pts - int(4 / stream.time_base), packet.dts - int(4 / stream.time_base)
                packet.stream = copy
                target.mux(packet)
    with av.open(str(path)) as container:
        assert len(container.streams.video[0].index_entries) == 150
        assert sum(1 for _ in container.decode(video=0)) == 50
    model = Watcher(2)
    scores = list(predict_windows(checkpoint_of(model), path, window=1.0, every=1.0))
    assert [score.end for score in scores] == pytest.approx([1, 2])
    assert model.seen == [[106, 118], [131, 143]]


@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_sound_that_is_longer_than_the_picture_is_no_damage(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"sound.{ending}"
    codec, sound = ("libx264", "aac") if ending == "mkv" else ("libvpx", "libopus")
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream(codec, rate=FPS), container.add_stream(sound, rate=48000)
        video.width, video.height, video.pix_fmt = 48, 48, "yuv420p"
        for i in range(50):
            image = av.VideoFrame.from_ndarray(picture(i, 48, 48), format="rgb24").reformat(format="yuv420p")
            image.pts, image.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(image))
        container.mux(video.encode(None))
        for i in range(500):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts, silence.time_base = 48000, i * 960, Fraction(1, 48000)
            container.mux(audio.encode(silence))
        container.mux(audio.encode(None))
    with av.open(str(path)) as container:
        assert container.duration is not None and container.duration > 9e6
    windows = predict_windows(checkpoint_of(Watcher()), path, window=1.0)
    assert windows.seconds == pytest.approx(2, abs=0.1)
    assert list(windows)[-1].end == pytest.approx(2, abs=0.05)


def test_time_stamps_that_jump_are_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "jump.mp4", **square(4, times=[0, 10, 250 * 3700, 250 * 3700 + 10]))
    scores = []
    with pytest.raises(DecodeError, match="time stamps jump by 3700 s"):
        for score in predict_windows(checkpoint_of(Watcher()), path, window=1.0):
            scores.append(score)
    assert len(scores) == 1


# --- smoothing and segments -----------------------------------------------------------------------------------------


def scores_of(rows: np.ndarray, window: float, every: float) -> list[WindowScore]:
    labels = tuple("abc"[: rows.shape[1]])
    return [
        WindowScore(start=k * every, end=k * every + window, labels=labels, probabilities=row.astype(np.float32))
        for k, row in enumerate(rows)
    ]


@pytest.mark.parametrize("smooth", [0.0, 0.4, 1.0, 2.5])
def test_smoothing_is_the_triangular_mean(smooth: float) -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    window, every = 2.0, 0.5
    windows = scores_of(rows, window, every)
    smoother = Smoother(every, smooth)
    moments = [m for w in windows for m in smoother.add(w)]
    early = len(moments)
    moments += smoother.finish()
    end = windows[-1].end
    assert moments[0].start == 0 and moments[-1].end == pytest.approx(end)
    assert all(a.end == pytest.approx(b.start) for a, b in itertools.pairwise(moments))
    assert early >= len(moments) - (smooth + window) / every - 2  # they come as soon as they are known
    centres = np.arange(20) * every + window / 2
    for moment in moments:
        distance = np.abs(centres - (moment.start + moment.end) / 2)
        weights = np.maximum(0, 1 - distance / smooth) if smooth else np.zeros(20)
        if weights.sum() <= 0:
            weights = np.eye(20)[distance.argmin()]
        assert moment.probabilities == pytest.approx(weights @ rows / weights.sum(), abs=1e-5)


def test_the_smoother_keeps_few_windows() -> None:
    smoother = Smoother(0.5, 1.0)
    for window in scores_of(np.full((500, 2), 0.5), 2.0, 0.5):
        list(smoother.add(window))
        assert len(smoother._windows) <= 8


def test_a_live_timeline_waits_for_nothing() -> None:
    rows = np.random.default_rng(1).dirichlet(np.ones(2), 6)
    windows = scores_of(rows, 1.0, 0.5)
    gone = windows[:3] + [w for w in scores_of(np.vstack([rows, rows]), 1.0, 0.5) if w.start >= 4]
    smoother = Smoother(0.5, 1.0, live=True)
    moments = []
    for window in gone:
        (moment,) = smoother.add(window)
        assert moment.end == window.end
        moments.append(moment)
    assert [m.start for m in moments[:4]] == [0, 1.0, 1.5, 4.0]  # nothing is said of the gap
    assert moments[1].probabilities == pytest.approx((rows[1] + 0.5 * rows[0]) / 1.5, abs=1e-6)
    assert moments[3].probabilities == pytest.approx(gone[3].probabilities)  # what was before the gap doesn't count


@pytest.mark.parametrize("smooth", [0.0, 0.5])
@pytest.mark.parametrize("window", [1.0, 0.25])
@pytest.mark.parametrize("more", [0.0, 1e-7, 2e-6, 1e-4, 2.4e-4, 2.6e-4, 0.1, 0.2499, 0.249999])
def test_moments_follow_each_other_wherever_the_video_ends(more: float, window: float, smooth: float) -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(3), 9)
    windows = scores_of(rows[:8], window, 0.25)
    end = windows[-1].end + more
    if more:
        windows.append(WindowScore(start=end - window, end=end, labels=tuple("abc"), probabilities=rows[8]))
    smoother, segmenter = Smoother(0.25, smooth), Segmenter(tuple("abc"))
    moments = [m for w in windows for m in smoother.add(w)]
    moments += smoother.finish()
    segments = [s for m in moments for s in segmenter.add(m)] + list(segmenter.finish())
    assert (segments[0].start, segments[-1].end) == (0, pytest.approx(end, abs=1e-9))
    assert all(a.end == pytest.approx(b.start, abs=1e-9) for a, b in itertools.pairwise(segments))
    assert min(s.end - s.start for s in segments) >= 0.25e-3


def test_segments_merge_moments_of_one_label() -> None:
    def moments(*tops: float) -> list[Moment]:
        return [Moment(k, k + 1, np.array([p, 1 - p], np.float32)) for k, p in enumerate(tops)]

    segmenter = Segmenter(("a", "b"), 0.7)
    found = [s for m in moments(0.9, 0.8, 0.6, 0.4, 0.1, 0.95) for s in segmenter.add(m)] + list(segmenter.finish())
    assert [(s.start, s.end, s.label) for s in found] == [(0, 2, "a"), (2, 4, None), (4, 5, "b"), (5, 6, "a")]
    assert found[0].probability == pytest.approx(0.85) and found[1].probability == pytest.approx(0.6)
    assert list(segmenter.finish()) == []
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="threshold"):
            Segmenter(("a", "b"), threshold)
    with pytest.raises(UsageError, match="smooth"):
        Smoother(1.0, -1.0)


# --- files ----------------------------------------------------------------------------------------------------------


def test_labels_survive_csv_and_stay_one_subtitle(tmp_path: Path) -> None:
    labels = ['a, "b"\nc', "x\r\n\r\n99\n00:00:00,000 --> 00:00:01,000\nfake", "<i>x</i> {\\an8}", "=1+1", None]
    segments = [Segment(start=i, end=i + 1.0, label=label, probability=0.5) for i, label in enumerate(labels)]
    table, subtitles = CsvWriter(tmp_path / "x.csv"), SrtWriter(tmp_path / "x.srt")
    for segment in segments:
        table.segment(segment)
        subtitles.segment(segment)
    assert not (tmp_path / "x.csv").exists()  # until it is whole
    table.close()
    subtitles.close()
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [label or "" for label in labels]
    assert (rows[1]["start"], rows[1]["end"], rows[1]["probability"]) == ("1.000", "2.000", "0.5000")
    cues = (tmp_path / "x.srt").read_text(encoding="utf-8").strip().split("\n\n")
    assert [cue.split("\n")[0] for cue in cues] == ["1", "2", "3", "4"]
    assert all(len(cue.split("\n")) == 3 and cue.count("-->") == 1 for cue in cues)
    assert cues[0].split("\n")[1] == "00:00:00,000 --> 00:00:01,000"
    assert "<i>" not in cues[2] and "{\\" not in cues[2]


def test_times_of_subtitles() -> None:
    assert srt_time(0) == "00:00:00,000"
    assert srt_time(3723.9996) == "01:02:04,000"
    assert srt_time(360000.5) == "100:00:00,500"
    assert srt_text("  a \t b ") == "a b"


def test_where_files_go(tmp_path: Path) -> None:
    assert output_paths(["a"], ("csv", "mp4"), None) == [{"csv": Path("a.csv"), "mp4": Path("a.labels.mp4")}]
    assert output_paths(["a", "a"], ("srt",), tmp_path) == [{"srt": tmp_path / "a.srt"}, {"srt": tmp_path / "a-2.srt"}]
    assert output_paths(["a"], ("json",), tmp_path / "b.mp4") == [
        {"json": tmp_path / "b.jsonl", "mp4": tmp_path / "b.mp4"}
    ]
    with pytest.raises(UsageError, match="one file"):
        output_paths(["a", "b"], (), tmp_path / "b.srt")
    with pytest.raises(UsageError, match="which files"):
        output_paths(["a"], (), tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    with pytest.raises(UsageError, match="written over"):
        output_paths(["a"], (), tmp_path / "link.mp4", [tmp_path / "a.mp4"])


# --- labels drawn on the video ----------------------------------------------------------------------------------------


def test_the_drawn_video_keeps_frames_and_times(tmp_path: Path) -> None:
    times = [0, 5, 20, 40, 41, 60, 90, 100, 130, 180]
    grey = [np.full((200, 300, 3), 128, np.uint8)] * 10
    source = write_video(tmp_path / "in.mp4", grey, size=(300, 200), times=times)
    segments = [
        Segment(start=0, end=0.2, label="wave", probability=0.9),
        Segment(start=0.2, end=0.4, label=None, probability=0.2),
        Segment(start=0.4, end=9, label="push", probability=0.5),
    ]
    told: list[float] = []
    assert draw_labels(source, tmp_path / "out.mp4", segments, advance=told.append) == 10
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [float(f.time) for f in frames] == pytest.approx([t / 250 for t in times], abs=1e-4)
    assert (frames[0].width, frames[0].height) == (540, 360)  # enlarged
    assert told == sorted(told)
    images = [f.to_ndarray(format="rgb24").astype(int) for f in frames]
    assert all(np.abs(image[:180] - 128).max() < 8 for image in images)  # the picture above is left alone
    dark = [(image[180:].mean(2) < 90).sum() for image in images]
    assert min(dark) > 500
    wave, none = images[3], images[6]  # 0.16 s, 0.36 s
    blue = (wave[180:, :, 2] - wave[180:, :, 0]).max(), (none[180:, :, 2] - none[180:, :, 0]).max()
    assert blue[0] > 80 > 60 > blue[1]  # a bar for a label, none for "none of these"


_PATCHES = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (128, 128, 128), (235, 235, 235), (90, 160, 220)]


@pytest.mark.parametrize(
    ("size", "matrix", "space", "full", "told"),
    [
        ((720, 576), 5, 5, False, (5, 5, 6)),
        ((720, 576), 5, 2, False, (5, 5, 6)),  # 2: it does not say
        ((720, 576), 5, 5, True, (5, 5, 6)),
        ((720, 480), 5, 2, False, (6, 6, 6)),
        ((1280, 720), 1, 1, False, (1, 1, 1)),
        ((1280, 720), 1, 2, False, (1, 1, 1)),
        ((1280, 720), 5, 6, False, (6, 6, 6)),
        ((1280, 720), 9, 9, False, (9, 9, 14)),
    ],
)
def test_the_drawn_video_keeps_its_colours(
    tmp_path: Path, size: tuple[int, int], matrix: int, space: int, full: bool, told: tuple[int, int, int]
) -> None:
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    wide = width // len(_PATCHES)
    for i, colour in enumerate(_PATCHES):
        image[:, i * wide : (i + 1) * wide] = colour
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, 2 if full else 1
        for i in range(2):
            frame = VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=matrix, dst_color_range=2 if full else 1
            )
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    draw_labels(tmp_path / "in.mp4", tmp_path / "out.mp4", [Segment(start=0, end=9, label="a", probability=1)])
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (*told, 1)
    shown = frame.to_ndarray(format="rgb24").astype(int)[: height // 2]  # the caption is below
    for i, colour in enumerate(_PATCHES):
        patch = shown[8:-8, i * wide + 8 : (i + 1) * wide - 8].reshape(-1, 3)  # its borders are blurred
        assert np.abs(np.median(patch, axis=0) - colour).max() <= 5, colour


@pytest.mark.parametrize(
    ("stored", "aspect", "rotation", "shown"),
    [
        ((720, 576), "64/45", 0, (1024, 576)),
        ((720, 576), "64/45", 90, (576, 1024)),
        ((720, 576), "15/16", 180, (720, 614)),
        ((480, 480), "3/4", 270, (640, 480)),
        ((240, 240), "2", 0, (720, 360)),
    ],
)
def test_the_drawn_video_has_square_pixels(
    tmp_path: Path, stored: tuple[int, int], aspect: str, rotation: int, shown: tuple[int, int]
) -> None:
    width, height = stored
    image = np.full((height, width, 3), 30, np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = 220  # a quarter of each side
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if rotation:
            stream.set_display_rotation(rotation)
        frame = VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, FPS)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    draw_labels(tmp_path / "in.mp4", tmp_path / "out.mp4", [])
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio in (1, None)
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == shown and frame.rotation == 0
    bright = frame.to_ndarray(format="rgb24").mean(2) > 120
    assert bright.any(0).sum() == pytest.approx(shown[0] / 4, abs=3)
    assert bright.any(1).sum() == pytest.approx(shown[1] / 4, abs=3)


@pytest.mark.parametrize("label", ["a" * 500, "$\\frac$", "日本", "two\nlines", None])
@pytest.mark.parametrize("size", [(640, 360), (360, 1280), (362, 360)])
def test_captions_stay_inside_the_frame(size: tuple[int, int], label: str | None) -> None:
    found = caption(*size, label, 100)
    height, width = found.clear.shape[:2]
    assert found.top >= 0 and found.left > 0
    assert found.left + width < size[0] and found.top + height < size[1]
    assert height < 0.35 * size[1]
    assert 0 <= found.clear.min() < 0.35 and found.clear.max() <= 1


def test_a_disk_that_can_not_be_written(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "file").write_text("")
    segments = [Segment(start=0, end=9, label="a", probability=1)]
    with pytest.raises(StorageError):
        draw_labels(clip, tmp_path / "file" / "x.mp4", segments)
    with pytest.raises(StorageError):
        CsvWriter(tmp_path / "file" / "x.csv")


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_timeline(
    saved: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    options: dict[str, Any] = {"window": 1.0, "write": ("json", "csv", "srt", "mp4"), "out": out, "device": "cpu"}
    assert predict_command(saved, [clip], json=True, **options) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [json.loads(line) for line in (out / "clip.jsonl").read_text(encoding="utf-8").splitlines()]
    windows = [line for line in lines if line["kind"] == "window"]
    segments = [line for line in lines if line["kind"] == "segment"]
    summary = lines[-1]
    assert len(windows) == summary["windows"] == 13 and len(segments) == summary["segments"]
    assert segments[0]["start"] == 0 and segments[-1]["end"] == pytest.approx(4)
    assert all(a["end"] == pytest.approx(b["start"]) for a, b in itertools.pairwise(segments))
    assert set(summary["files"]) == {str(path) for path in out.iterdir()} and len(summary["files"]) == 4
    with (out / "clip.csv").open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [s["label"] for s in segments]
    assert predict_command(saved, [clip], threshold=1.0, **options) == 0
    shown = capsys.readouterr().out
    assert "0:00:00.0 – 0:00:04.0  none of these" in shown and "wrote" in shown
    assert (out / "clip.srt").read_text() == ""
    with (out / "clip.csv").open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [""]


def test_files_that_fail_are_lines_and_the_rest_go_on(
    saved: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "[red]text.mp4"
    text.write_text("hello")
    whole = write_video(tmp_path / "w.mkv", **square(100, options={"g": "10"}))
    cut = broken(tmp_path / "cut.mkv", whole)
    options: dict[str, Any] = {"window": 1.0, "write": ("csv",), "out": tmp_path, "device": "cpu"}
    assert predict_command(saved, [text, cut, clip], json=True, **options) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    errors = {line["path"]: line for line in lines if line["kind"] == "error"}
    assert set(errors) == {str(text), str(cut)}
    assert errors[str(text)]["seconds"] == 0 and 2 < errors[str(cut)]["seconds"] < 3.6
    assert [line["path"] for line in lines if line["kind"] == "summary"] == [str(cut), str(clip)]
    assert not (tmp_path / "[red]text.csv").exists()
    assert (tmp_path / "cut.csv").exists() and (tmp_path / "clip.csv").exists()
    assert predict_command(saved, [text, cut], **options) == 1
    shown = capsys.readouterr().err
    assert f"{text}: " in shown and "(after 0:00:0" in shown


def test_wrong_options_are_said_before_anything_is_read(saved: Path, clip: Path, tmp_path: Path) -> None:
    for options in ({"threshold": 1.5}, {"threshold": float("nan")}, {"smooth": -1.0}, {"window": 1.0, "top_k": 0}):
        with pytest.raises(UsageError):
            predict_command(tmp_path / "no checkpoint", [clip], **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="written over"):
        predict_command(saved, [clip], out=clip)
    assert predict(saved, clip, device="cpu").label


def test_an_interrupt_while_drawing_keeps_the_rest(
    saved: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("vireo.stream.command.draw_labels", interrupted)
    assert predict_command(saved, [clip, clip], window=1.0, out=tmp_path, write=("csv", "json", "mp4")) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.csv", "clip.jsonl"]  # and no second video
    summary = json.loads((tmp_path / "clip.jsonl").read_text().splitlines()[-1])
    assert (summary["kind"], summary["windows"]) == ("summary", 13)
    assert summary["files"] == [str(tmp_path / "clip.csv"), str(tmp_path / "clip.jsonl")]


def test_nothing_is_written_of_a_video_without_a_frame(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_video(tmp_path / "x.mp4", **square(30))
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 4
    length = int.from_bytes(data[at - 8 : at - 4], "big") - 8
    data[at : at + length] = bytes(length)  # its header is whole, its packets are not
    path.write_bytes(data)
    (tmp_path / "x.csv").write_text("before")
    assert predict_command(saved, [path], out=tmp_path, write=("csv", "srt"), json=True) == 1
    kinds = [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["error", "summary"]
    assert (tmp_path / "x.csv").read_text() == "before" and not (tmp_path / "x.srt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.csv", "x.mp4"]


def test_an_interrupt_before_the_first_window_leaves_earlier_files(
    saved: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(stream: Any) -> Any:
        raise KeyboardInterrupt

    (tmp_path / "clip.csv").write_text("before")
    monkeypatch.setattr("vireo.stream.scoring.WindowStream.__next__", interrupted)
    assert predict_command(saved, [clip], window=1.0, out=tmp_path, write=("csv", "srt"), json=True) == 130
    assert (tmp_path / "clip.csv").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["clip.csv"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["files"] == []


def test_a_step_too_long_for_one_videos_rate_is_that_ones_error(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=4)
    dense = tmp_path / "dense.safetensors"
    view = ViewConfig(size=48, sampling="dense", window=50)
    save_checkpoint(dense, model, labels=("a", "b"), view=view, provenance={})
    fast = tmp_path / "fast.mp4"
    with av.open(str(fast), "w") as container:
        stream = container.add_stream("libx264", rate=60)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for i in range(120):
            frame = VideoFrame.from_ndarray(picture(i, 48, 48), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 60)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert predict_command(dense, [clip, fast, clip], every=1.5, json=True, device="cpu") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (error,) = [line for line in lines if line["kind"] == "error"]
    assert error["path"] == str(fast) and "every is 1.5" in error["error"] and "--window" in error["error"]
    assert [line["path"] for line in lines if line["kind"] == "summary"] == [str(clip), str(clip)]
    with pytest.raises(UsageError, match=r"fast\.mp4: every is 1.5 seconds, longer than .* 0.833 \(50 frames at 60"):
        predict_windows(dense, fast, every=1.5)
    with pytest.raises(UsageError, match="every is 5 seconds"):  # not a matter of the video, which isn't opened
        predict_windows(checkpoint_of(Watcher()), tmp_path / "missing.mp4", every=5.0)


def test_an_interrupted_recording_keeps_what_there_is(
    saved: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vireo.stream import command

    class Interrupted:
        def __init__(self, stream: Any) -> None:
            self.stream, self.count = stream, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            self.stream.close()

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            self.count += 1
            if self.count == 6:
                raise KeyboardInterrupt
            return next(self.stream)

    real = command.predict_windows
    monkeypatch.setattr(command, "predict_windows", lambda *args, **options: Interrupted(real(*args, **options)))
    assert predict_command(saved, [clip, clip], window=1.0, out=tmp_path, write=("csv", "json", "mp4")) == 130
    with (tmp_path / "clip.csv").open(encoding="utf-8", newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["end"]) == pytest.approx(2.0)
    assert json.loads((tmp_path / "clip.jsonl").read_text().splitlines()[-1])["windows"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.csv", "clip.jsonl"]
