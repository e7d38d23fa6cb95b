"""Several clips of a video and several views of a clip: which frames, which pictures, and the mean of their scores."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.video_tools import write_video
from vireo import cli
from vireo.checkpoint import load_checkpoint, read_tensors, save_checkpoint, write_tensors
from vireo.config import AugmentConfig, Settings, ViewConfig
from vireo.data.annotations import read_table
from vireo.data.clips import read_clip
from vireo.data.dataset import ClipDataset, Failure
from vireo.data.decode import read_frames
from vireo.data.flips import flip_rule
from vireo.data.sampling import clip_indices, dense_indices, sample_indices
from vireo.data.transforms import random_box, train_transform
from vireo.data.views import make_views
from vireo.errors import UnknownNameError, UsageError
from vireo.evaluate import evaluate
from vireo.model import count_macs, create_model
from vireo.predict import predict
from vireo.probe import shuffled_order
from vireo.protocols import Protocol, choose_protocol, cost_of, describe_protocol, many_views
from vireo.scoring import clip_loader, score_clips

LABELS = ("push left to right", "push right to left")  # each is the other's mirror image
VIEW = ViewConfig(size=32, short_side=36)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of each class, wide and high, of other lengths."""
    folder = tmp_path_factory.mktemp("clips")
    sizes = [(40, (64, 48)), (7, (48, 64)), (90, (96, 48)), (64, (64, 64))]
    for i, (frames, size) in enumerate(sizes):
        write_video(folder / LABELS[i // 2] / f"{i}.mp4", frames, size=size)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that sees the order of frames, with scores that differ from clip to clip."""
    torch.manual_seed(0)
    model = create_model("tsm", "resnet10t", num_classes=2, num_frames=4)
    torch.nn.init.normal_(model.classifier.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # some begin at 0, and then the shifted features don't count
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, model, labels=LABELS, view=VIEW, provenance={})
    return path


def with_view(checkpoint: Path, out: Path, **changes: Any) -> Path:
    """The same checkpoint with another view."""
    found = load_checkpoint(checkpoint)
    view = ViewConfig(**{**vars(VIEW), **changes})
    save_checkpoint(out, found.model, labels=found.labels, view=view, provenance={})
    return out


# --- which frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["segment", "dense"])
@pytest.mark.parametrize("frames", [1, 3, 16, 31, 64, 65, 300])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_the_frames_of_all_clips_as_one_sorted_list(sampling: str, frames: int, count: int) -> None:
    wanted, places = clip_indices(sampling, frames, 8, count, window=32)
    assert np.all(np.diff(wanted) >= 0) and sorted(places.ravel()) == list(range(8 * count))
    for k in range(count):
        assert np.array_equal(wanted[places[k]], sample_indices(sampling, frames, 8, clip=k, clips=count, window=32))


def test_no_clips_are_wrong() -> None:
    with pytest.raises(UsageError, match="clips is 0"):
        clip_indices("segment", 10, 4, 0)


def test_a_window_of_32_takes_every_second_of_16_frames() -> None:
    """As MFNet samples: 16 frames, an interval of 2, anywhere in the video."""
    firsts = set()
    for seed in range(200):
        found = sample_indices("dense", 100, 16, np.random.default_rng(seed), window=32)
        assert np.array_equal(np.diff(found), np.full(15, 2))
        firsts.add(int(found[0]))
    assert min(firsts) <= 3 and max(firsts) >= 66  # 1 … 69 are possible
    assert np.array_equal(sample_indices("dense", 100, 16, window=32), dense_indices(100, 16, window=32))


@pytest.mark.parametrize(("window", "step"), [(8, 2), (32, 8), (64, 16)])
def test_clips_come_from_the_view_s_window(
    window: int, step: int, clips: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def spy(record: Any, plan: Any, **options: Any) -> Any:
        asked.append(plan(90))
        return read_clip(record, plan, **options)

    for module in ("vireo.data.dataset", "vireo.predict"):
        monkeypatch.setattr(importlib.import_module(module), "read_clip", spy)
    view = ViewConfig(size=32, sampling="dense", window=window)
    for augment in (None, AugmentConfig()):
        sample = ClipDataset(read_table(clips), view, 4, augment=augment)[0, 0]
        assert not isinstance(sample, Failure)
    predict(
        with_view(checkpoint, tmp_path / "c.safetensors", sampling="dense", window=window), next(clips.rglob("2.mp4"))
    )
    assert len(asked) >= 3
    for wanted in asked:
        assert np.array_equal(np.diff(wanted), np.full(3, step))


def test_twice_takes_the_centres_and_the_starts() -> None:
    """As TSM's code: int(tick / 2 + tick · x) and int(tick · x), of tick = F / T."""
    for frames in (1, 3, 7, 40, 64, 101):
        tick = frames / 8
        wanted, places = clip_indices("segment", frames, 8, 2, twice=True)
        assert np.all(np.diff(wanted) >= 0)
        assert wanted[places[0]].tolist() == [int(tick / 2 + tick * x) for x in range(8)]
        assert wanted[places[1]].tolist() == [int(tick * x) for x in range(8)]
    for sampling, count in (("dense", 2), ("segment", 3)):
        with pytest.raises(UsageError, match="not the two of segment sampling"):
            clip_indices(sampling, 40, 8, count, twice=True)


# --- which pictures -------------------------------------------------------------------------------


def test_random_crops_have_the_size_asked_for_after_resizing() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(240, 320, 224, (256, 320), rng) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert np.array_equal(height, width) and top.min() == 0 and left.min() == 0
    assert (top + height).max() == 240 and (left + width).max() == 320
    assert height.max() == 210 and height.min() == 168  # 224 of 256 and of 320, of a short side of 240
    sizes = np.unique(height)
    assert np.array_equal(sizes, np.arange(168, 211))
    # The short side is what is drawn evenly: 1 / side is.
    assert np.mean(224 * 240 / height) == pytest.approx(288, abs=2)
    assert np.mean(left / (320 - width)) == pytest.approx(0.5, abs=0.02)
    assert np.mean(top / (240 - height)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 200), (200, 3), (31, 40)])
def test_random_crops_of_small_frames_stay_inside(height: int, width: int) -> None:
    for seed in range(20):
        top, left, h, w = random_box(height, width, 224, (224, 288), np.random.default_rng(seed))
        assert h == w >= 1 and 0 <= top <= height - h and 0 <= left <= width - w


def test_a_random_crop_is_that_of_the_resized_frame() -> None:
    """Cut and then resized is, but for the borders' interpolation, resized and then cut."""
    ramp = torch.linspace(0, 255, 160).round().to(torch.uint8)
    frames = ramp.expand(2, 3, 120, 160).contiguous(memory_format=torch.channels_last)
    augment = AugmentConfig(crop="random", short_range=(60, 60))
    rule = flip_rule(("a", "b"), "off")
    for seed in range(5):
        found, _ = train_transform(frames, ViewConfig(size=50), augment, np.random.default_rng(seed), rule, 0)
        assert found.shape == (2, 3, 50, 50)
        # 60 of 120: half as many pixels, so twice as steep.
        steps = found[0, 0, 0, 1:-1].float().diff()
        assert steps.mean() == pytest.approx(2 * 255 / 159, rel=0.02)


def test_random_crops_need_frames_as_large() -> None:
    with pytest.raises(UsageError, match="a crop of size 224 needs short sides of at least that"):
        Settings(crop="random", short_range=(200, 320))
    with pytest.raises(UsageError, match="two sizes in pixels"):
        AugmentConfig(short_range=(320, 256))
    with pytest.raises(UsageError, match="two sizes in pixels"):
        AugmentConfig(short_range=(256,))


def test_squeezed_frames_are_whole() -> None:
    frames = torch.zeros(2, 3, 60, 200, dtype=torch.uint8)
    frames[..., :, 100:] = 200
    [seen] = make_views("squeezed", frames, ViewConfig(size=32, short_side=40))
    assert seen.shape == (2, 3, 32, 40)
    assert (seen[..., :19] == 0).all() and (seen[..., 21:] == 200).all()


# --- the mean of the scores -----------------------------------------------------------------------


def slowly(checkpoint: Path, path: str, views: str, clips: int, sampling: str) -> Tensor:
    """Scores of a video, (2,): every clip read alone, every view scored alone."""
    loaded, scores = load_checkpoint(checkpoint), []
    for k in range(clips):
        frames = read_frames(path, lambda count, k=k: sample_indices(sampling, count, 4, clip=k, clips=clips)).data
        for v, view in enumerate(make_views(views, frames, VIEW)):
            with torch.inference_mode():
                [score] = loaded.model(view[None])
            scores.append(score[[1, 0]] if views == "10crop" and v >= 5 else score)
    return torch.stack(scores).double().mean(0)


@pytest.mark.parametrize(
    ("views", "count", "sampling", "protocol"),
    [
        ("center", 1, "segment", "1x1-center: 4 frames (segment), short side 36, centre crop 32²"),
        ("center", 3, "dense", "3x1-center: 4 frames (dense, 64), short side 36, centre crop 32²"),
        ("3crop", 10, "dense", "10x3-crop: 4 frames (dense, 64), short side 36, 3 crops 32² along the long side"),
        ("10crop", 2, "segment", "2x10-crop: 4 frames (segment), short side 36, crops 32² of corners and centre, and "),
        ("full", 2, "segment", "2x1-whole: 4 frames (segment), short side 36, whole frames"),
        ("squeezed", 1, "segment", "1x1-squeezed: 4 frames (segment), whole frames squeezed to 32 × 36"),
    ],
)
def test_scores_are_the_mean_over_clips_and_views(
    views: str, count: int, sampling: str, protocol: str, clips: Path, checkpoint: Path, tmp_path: Path
) -> None:
    table = read_table(clips, label_names=LABELS)
    expected = torch.stack(
        [slowly(checkpoint, table.record(i).path, views, count, sampling) for i in range(len(table))]
    )
    other = with_view(checkpoint, tmp_path / "other.safetensors", sampling=sampling)
    own = with_view(checkpoint, tmp_path / "own.safetensors", sampling=sampling, views=views, clips=count)
    for batch_size, workers in ((1, 0), (7, 1), (64, 0)):
        asked = evaluate(other, table, batch_size=batch_size, workers=workers, views=views, clips=count)
        stored = evaluate(own, table, batch_size=batch_size, workers=workers)
        for found in (asked, stored):
            assert found.header["protocol"].startswith(protocol)
            assert found.clip_scores is not None and found.header["scored"] == 4
            torch.testing.assert_close(found.clip_scores.scores.double(), expected, atol=2e-4, rtol=2e-4)


def test_a_shuffled_clip_is_shuffled_alike_in_all_views(checkpoint: Path, tmp_path: Path) -> None:
    """Of a square frame without room around the crop all three crops are the centre one."""
    for i in range(8):
        write_video(tmp_path / LABELS[i % 2] / f"{i}.mp4", 12 + 5 * i, size=(64, 64))
    table = read_table(tmp_path, label_names=LABELS)
    square = load_checkpoint(with_view(checkpoint, tmp_path / "square.safetensors", size=36))
    found = []
    for view in (square.view, replace(square.view, views="3crop")):
        protocol = Protocol(view=view)
        found.append(
            score_clips(
                square.model,
                clip_loader(square.model, square, table, batch_size=3, workers=0, protocol=protocol),
                num_classes=2,
                frame_orders=(None, shuffled_order(4, 0, 0)),
                many=many_views(protocol, LABELS, at_once=5),
            )
        )
    for plain, three in zip(*found, strict=True):
        torch.testing.assert_close(plain.logits, three.logits, atol=1e-4, rtol=1e-4)
    straight, shuffled = found[1]
    assert (straight.logits - shuffled.logits).abs().max() > 0.01  # the order matters, or this would show nothing


@pytest.mark.parametrize(("views", "count"), [("10crop", 2), ("center", 1)])
def test_probabilities_are_averaged_after_softmax(views: str, count: int, clips: Path, checkpoint: Path) -> None:
    labels, generator = LABELS, torch.Generator().manual_seed(0)
    many = many_views(
        Protocol(view=replace(VIEW, views=views, clips=count), average="probabilities"), labels, at_once=4
    )
    if many is None:  # one picture: nothing to average
        return
    scores = 8 * torch.randn(3, many.pictures, 2, generator=generator)
    mean = torch.zeros(3, 2, dtype=torch.float64)
    for picture in range(many.pictures):
        share = scores[:, picture].double().softmax(1)
        mean += (share[:, [1, 0]] if picture % 10 >= 5 else share) / many.pictures
    torch.testing.assert_close(many.average(scores).double().softmax(1), mean, atol=1e-6, rtol=1e-5)
    sure = torch.tensor([[[900.0, 0.0]] * many.pictures])
    assert many.average(sure).isfinite().all()
    table = read_table(clips, label_names=LABELS)
    found = evaluate(checkpoint, table, workers=0, views=views, clips=count, average="probabilities")
    assert found.header["protocol"].endswith("mean of probabilities")
    plain = evaluate(checkpoint, table, workers=0, views=views, clips=count)
    assert found.clip_scores is not None and plain.clip_scores is not None
    assert not torch.allclose(found.clip_scores.scores.softmax(1), plain.clip_scores.scores.softmax(1))


# --- protocols by name ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1x1-center", "1x1-center: 4 frames (segment), short side 36, centre crop 32²"),
        ("tefe", "1x1-squeezed: 4 frames (segment), whole frames squeezed to 32 × 37"),
        ("twice", "2x1-center: 4 frames (segment; centres and starts), short side 36, centre crop 32²"),
        (
            "2x3-full",
            "2x3-full: 4 frames (segment; centres and starts), short side 36, 3 crops 36² along the long side",
        ),
        ("10x3", "10x3-crop: 4 frames (segment), short side 36, 3 crops 32² along the long side"),
        ("10x3-dense", "10x3-crop: 4 frames (dense, 64), short side 36, 3 crops 32² along the long side"),
        ("10x3-full", "10x3-full: 4 frames (segment), short side 36, 3 crops 36² along the long side"),
        ("4x5", "4x5-crop: 4 frames (segment), short side 36, crops 32² of corners and centre"),
        (
            "25x10-segment",
            "25x10-crop: 4 frames (segment), short side 36, crops 32² of corners and centre, and mirrored",
        ),
    ],
)
def test_protocols_by_name(name: str, expected: str) -> None:
    found = choose_protocol(VIEW, name)
    assert describe_protocol(found, "4 frames") == expected


def test_tefe_is_224_by_256() -> None:
    found = choose_protocol(ViewConfig(size=224, short_side=320), "tefe")
    assert (found.view.size, found.view.resize_to, found.view.clips) == (224, 256, 1)
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=4)
    assert cost_of(model, found).macs == count_macs(model, (224, 256))
    full = choose_protocol(ViewConfig(), "10x3-full")
    assert (full.view.size, full.view.resize_to) == (256, 256)


def test_numbers_go_before_the_name_and_the_name_before_the_checkpoint() -> None:
    view = ViewConfig(size=32, sampling="dense", views="5crop", clips=7)
    assert choose_protocol(view).view == view
    named = choose_protocol(view, "10x3")
    assert (named.view.clips, named.view.views, named.view.sampling) == (10, "3crop", "dense")
    given = choose_protocol(view, "2x3-full", clips=3, views="center", sampling="dense")
    assert (given.view.clips, given.view.views, given.view.sampling, given.twice) == (3, "center", "dense", False)
    assert choose_protocol(view, "twice").twice and choose_protocol(view, "twice").view.sampling == "segment"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("10x4", "Did you mean '10x3'"),
        ("tefee", "Did you mean 'tefe'"),
        ("twise", "Did you mean 'twice'"),
        ("0x3", "Unknown protocol"),
        ("99999x3", "Unknown protocol"),
        ("5x3-center", "Unknown protocol"),
        ("1x1-crop", "Unknown protocol"),
        ("zzz", "Known: 10x3, 10x3-full, 1x1-center"),
    ],
)
def test_unknown_protocols(name: str, says: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        choose_protocol(VIEW, name)
    assert says in str(caught.value)
    with pytest.raises(UsageError, match="average is 'median'"):
        choose_protocol(VIEW, average="median")


def test_a_score_carries_its_cost(clips: Path, checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint).model
    found = evaluate(checkpoint, clips, workers=0, protocol="2x3-full")
    cost = found.header["cost"]
    assert cost["macs_per_view"] == count_macs(model, 36) and cost["frame_size"] == [36, 36]
    assert cost["macs"] == 6 * cost["macs_per_view"] == found.as_dict()["cost"]["macs"]
    assert cost["text"].endswith(f"× 2 clips × 3 views = {cost['macs'] / 1e9:.4g} GMACs a video")
    whole = evaluate(checkpoint, clips, workers=0, views="full").header["cost"]
    assert whole["frame_size"][0] == 36 or whole["frame_size"][1] == 36
    assert whole["macs"] == count_macs(model, tuple(whole["frame_size"]))


def test_twice_is_the_mean_of_both_clips(clips: Path, checkpoint: Path) -> None:
    table, loaded = read_table(clips, label_names=LABELS), load_checkpoint(checkpoint)
    found = evaluate(checkpoint, table, workers=0, protocol="twice")
    assert found.clip_scores is not None
    for i in range(len(table)):
        scores = []
        for shift in (0.5, 0.0):
            plan = lambda count, shift=shift: np.array([int((x + shift) * count / 4) for x in range(4)])  # noqa: E731
            [view] = make_views("center", read_frames(table.record(i).path, plan).data, VIEW)
            with torch.inference_mode():
                scores.append(loaded.model(view[None])[0])
        torch.testing.assert_close(found.clip_scores.scores[i], torch.stack(scores).mean(0), atol=2e-4, rtol=2e-4)


def test_unreadable_clips_are_counted_with_many_views_too(clips: Path, checkpoint: Path, tmp_path: Path) -> None:
    for i, label in enumerate(LABELS):
        write_video(tmp_path / label / f"{i}.mp4", 12)
    (tmp_path / LABELS[0] / "broken.mp4").write_bytes(b"no video")
    found = evaluate(checkpoint, tmp_path, workers=0, views="3crop", clips=2)
    assert (found.header["expected"], found.header["scored"], found.header["failed"]) == (3, 2, 1)
    assert found.failures[0].path.endswith("broken.mp4")


def test_mirrored_views_of_labels_that_cannot_be_mirrored_are_refused_at_once(tmp_path: Path) -> None:
    model = create_model("tsn", "resnet10t", num_classes=1, num_frames=2)
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, model, labels=("swipe left",), view=VIEW, provenance={})
    write_video(tmp_path / "clips" / "swipe left" / "0.mp4", 12)
    with pytest.raises(UsageError, match="10crop has mirrored views"):
        evaluate(path, tmp_path / "clips", views="10crop", workers=0)


@pytest.mark.parametrize(
    ("options", "says"), [({"views": "4crop"}, "views is '4crop'"), ({"clips": -1}, "clips is -1")]
)
def test_wrong_views_and_clips(options: dict[str, Any], says: str, clips: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=says):
        evaluate(checkpoint, clips, workers=0, **options)


def test_clips_drawn_at_random_have_one_view(clips: Path) -> None:
    with pytest.raises(UsageError, match="one view"):
        ClipDataset(read_table(clips), VIEW, 4, augment=AugmentConfig(), views="3crop")
    with pytest.raises(UsageError, match="unknown"):
        ClipDataset(read_table(clips), VIEW, 4, views="4crop")


def test_checkpoints_from_before_have_one_centre_crop(clips: Path, checkpoint: Path, tmp_path: Path) -> None:
    tensors, meta = read_tensors(checkpoint)
    for field in ("window", "views", "clips"):
        del meta["view"][field]
    old = tmp_path / "old.safetensors"
    write_tensors(old, tensors, meta)
    assert load_checkpoint(old).view == VIEW
    found, expected = evaluate(old, clips, workers=0), evaluate(checkpoint, clips, workers=0)
    assert found.header["protocol"].startswith("1x1-center:")
    assert found.clip_scores is not None and expected.clip_scores is not None
    assert torch.equal(found.clip_scores.scores, expected.clip_scores.scores)


def test_on_the_command_line(clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["eval", str(checkpoint), "--data", str(clips), "--workers", "0", "--out", str(tmp_path), "--json"]
    assert cli.main([*line, "--views", "3crop", "--clips", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"].startswith("2x3-crop: ")
    assert cli.main([*line, "--views", "3corp"]) == 2
    assert "did you mean 3crop" in capsys.readouterr().err
