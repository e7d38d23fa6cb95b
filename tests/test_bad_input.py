"""Every fault a person meets, made for real, through the command line: an exit code and a line or two, no traceback."""

from __future__ import annotations

import csv
import importlib
import json
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.video_tools import write_class_folders, write_sound, write_video
from vireo import cli
from vireo.checkpoint import load_checkpoint, save_checkpoint
from vireo.config import ViewConfig
from vireo.data.order import OrderConfig, make_order
from vireo.errors import UsageError
from vireo.model import create_model

SMALL = [
    *("--temporal", "tsm", "--backbone", "resnet10t", "--pretrained", "false", "--size", "32", "--num-frames", "4"),
    *("--epochs", "1", "--workers", "0", "--batch-size", "4", "--precision", "32-true"),
]
LABELS = ("push left to right", "push right to left")


class Said(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str

    def fails(self, code: int, *names: str) -> None:
        """It failed with this code, and one or two lines on stderr that hold these words; nothing else."""
        assert self.code == code, self
        for name in names:
            assert name in self.err
        assert 1 <= len(self.err.splitlines()) <= 2, self.err
        assert "Traceback" not in self.out + self.err
        assert "internal error" not in self.err


Vireo = Callable[..., Said]


@pytest.fixture
def vireo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Vireo:
    """Runs a command."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words: object) -> Said:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_order(tmp_path_factory.mktemp("order"), OrderConfig(clips=12, size=32, pairs=("push",)), workers=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("tsm", "resnet10t", num_classes=2, num_frames=4)
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, model, labels=LABELS, view=ViewConfig(size=32), provenance={})
    return path


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind that can't be read."""
    folder = tmp_path_factory.mktemp("faulty")
    whole = write_video(folder / "whole.mp4", 30)
    files = {name: folder / f"{name}.mp4" for name in ("noise", "empty", "cut", "page", "sound")}
    files["noise"].write_bytes(bytes(range(256)) * 40)
    files["empty"].touch()
    files["cut"].write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    files["page"].write_text("<html>404</html>")
    write_sound(files["sound"])
    files["no_frames"] = folder / "no_frames.y4m"
    files["no_frames"].write_bytes(b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420jpeg\n")
    return files


# --- paths and names ---------------------------------------------------------------------------------------------


def test_a_missing_path_is_wrong_usage_everywhere(vireo: Vireo, clips: Path, checkpoint: Path, tmp_path: Path) -> None:
    gone, out = tmp_path / "gone", tmp_path / "run"
    vireo("train", "--data", gone, "--out", out, *SMALL).fails(2, f"{gone} does not exist", "give a folder")
    vireo("train", "--data", clips, "--out", out, *SMALL, "--pretrained", gone).fails(2, f"{gone}: no such file")
    vireo("train", "--config", gone).fails(2, f"--config: '{gone}' does not exist")
    vireo("eval", gone, "--data", clips).fails(2, f"{gone} does not exist")
    vireo("eval", checkpoint, "--data", gone).fails(2, f"{gone} does not exist", "give a folder")
    vireo("predict", gone, clips.parent).fails(2, f"{gone} does not exist")
    vireo("predict", checkpoint, clips.parent, gone).fails(2, f"{gone} does not exist", "give videos")


def test_unknown_names(vireo: Vireo, clips: Path, tmp_path: Path) -> None:
    train = ["train", "--data", clips, "--out", tmp_path / "run", *SMALL]
    vireo(*train, "--backbone", "resnet5O").fails(2, "'resnet5O'", "Did you mean 'resnet50")
    vireo(*train, "--temporal", "tie").fails(2, "temporal module 'tie'", "'tei'")
    vireo(*train, "--temporal-options.stage", "4").fails(2, "no option 'stage'", "Did you mean 'stages'")
    vireo(*train, "--temporal-options.stages", "7").fails(2, "stages is [7]", "[2, 3, 4, 5]")
    vireo(*train, "--pretrained", "").fails(2, "--pretrained is empty")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    vireo(*train, "--temporal", "tie").fails(2, "temporal module 'tie'")
    assert (tmp_path / "run").is_dir()  # which somebody else had made
    vireo("models", "--backbone", "mobilnetv2_100").fails(2, "'mobilnetv2_100'", "mobilenetv2_100")
    vireo("models", "--temporal", "tmi").fails(2, "'tmi'", "Did you mean", "'tim'")
    vireo("predcit", "x", "y").fails(2, "did you mean predict?")


# --- data sets ---------------------------------------------------------------------------------------------------


def test_class_folders_that_cannot_be_used(vireo: Vireo, tmp_path: Path) -> None:
    data, out = write_class_folders(tmp_path / "data", {"wave": 3, "clap": 3}), tmp_path / "run"
    (data / "jump").mkdir()
    train = ["train", "--data", data, "--out", out, *SMALL]
    vireo(*train).fails(1, str(data), "no videos in class folder 'jump'", "add some, or remove the folder")
    (data / "jump").rmdir()
    shutil.rmtree(data / "clap")
    vireo(*train).fails(1, f"{data} has one class only, 'wave'", "at least two")
    shutil.rmtree(data / "wave")
    vireo(*train).fails(1, str(data))
    assert not (out / "best.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,lable\na.mp4,x\n", ["unknown column 'lable'", "Did you mean 'label' for 'lable'?"]),
        ("path,label,fps\na.mp4,x,25\n", ["unknown column 'fps'", "known: path, label, split, group, start, end"]),
        ("a.mp4,x\nb.mp4,y\n", ["no header line", "path,label"]),
        ("path,label,split\na.mp4,x,trian\nb.mp4,y,val\n", ["line 2", "'trian'", "did you mean 'train'?"]),
        ("path,label,start,end\na.mp4,x,9,3\n", ["line 2", "end (3) is not after start (9)"]),
        ("path,label\n", ["lists no clips"]),
        ("", ["is empty", "path,label"]),
    ],
)
def test_label_files_that_cannot_be_used(vireo: Vireo, tmp_path: Path, text: str, says: list[str]) -> None:
    file = tmp_path / "clips.csv"
    file.write_text(text)
    vireo("train", "--data", file, "--out", tmp_path / "run", *SMALL).fails(1, str(file), *says)


# --- videos ------------------------------------------------------------------------------------------------------


def test_predict_names_every_video_it_cannot_read(vireo: Vireo, checkpoint: Path, faulty: dict[str, Path]) -> None:
    good = write_video(faulty["noise"].parent / "good.mp4", 12)
    said = vireo("predict", checkpoint, *faulty.values(), good)
    assert said.code == 1
    lines = said.err.splitlines()
    assert lines[-1] == f"{len(faulty)} of {len(faulty) + 1} files could not be read"
    for line, path in zip(lines, faulty.values(), strict=False):
        assert line.startswith(f"failed  {path}: ") and len(line) > len(f"failed  {path}: ") + 5
    assert len(lines) == len(faulty) + 1
    assert str(good) in said.out  # the rest go on
    said = vireo("predict", checkpoint, *faulty.values(), good, "--json")
    found = [json.loads(line) for line in said.out.splitlines()]
    assert (said.code, said.err) == (1, "")
    assert [bool(line.get("error")) for line in found] == [True] * len(faulty) + [False]


def test_training_skips_counts_and_names_videos_it_cannot_read(
    vireo: Vireo, tmp_path: Path, faulty: dict[str, Path]
) -> None:
    data, run = write_class_folders(tmp_path / "data", {"wave": 5, "clap": 5}), tmp_path / "run"
    for path in faulty.values():
        shutil.copy(path, data / "wave" / path.name)
    said = vireo("train", "--data", data, "--out", run, *SMALL, "--max-failed", "50%", "--json")
    assert said.code == 0, said.err
    assert f"{len(faulty)} clips could not be read" in " ".join(said.err.split())
    with (run / "failed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["path"]).name for row in rows} == {path.name for path in faulty.values()}
    assert all(row["reason"] for row in rows)
    assert load_checkpoint(run / "best.safetensors").provenance["failed_clips"] == len(faulty)
    evaluate = ("eval", run / "best.safetensors", "--data", data, "--split", "all", "--out", tmp_path / "e", "--json")
    vireo(*evaluate).fails(1, f"of {10 + len(faulty)} evaluation clips could not be read", "max_failed 10%")
    said = vireo(*evaluate, "--max-failed", "50%")
    header = json.loads(said.out)
    assert (header["expected"], header["scored"], header["failed"]) == (10 + len(faulty), 10, len(faulty))


def test_no_video_can_be_read(vireo: Vireo, tmp_path: Path) -> None:
    for label in ("wave", "clap"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "data" / label / f"{i}.mp4").write_bytes(b"no video")
    said = vireo("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL, "--json")
    said = said._replace(err="\n".join(said.err.splitlines()[-1:]))  # after what it announced
    said.fails(1, "No training clip could be read", "the first:", ".mp4: ")


def test_fewer_frames_than_the_model_takes(vireo: Vireo, checkpoint: Path, tmp_path: Path) -> None:
    for frames in (1, 2, 3):
        path = write_video(tmp_path / f"{frames}.mp4", frames)
        said = vireo("predict", checkpoint, path, "--json")
        assert (said.code, said.err) == (0, "")
        assert json.loads(said.out)["label"] in LABELS
    data = write_class_folders(tmp_path / "data", {"wave": 3, "clap": 3}, frames=2)
    assert vireo("train", "--data", data, "--out", tmp_path / "run", *SMALL, "--json").code == 0


# --- checkpoints and weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "foreign", "video", "folder"])
def test_a_checkpoint_that_is_none(vireo: Vireo, clips: Path, checkpoint: Path, tmp_path: Path, kind: str) -> None:
    import safetensors.torch

    video = next(clips.parent.rglob("*.mp4"))
    path = tmp_path / "model.safetensors"
    content = {"empty": b"", "text": b"hello" * 99, "cut": checkpoint.read_bytes()[:-999], "video": video.read_bytes()}
    if kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(content[kind])
    vireo("predict", path, video).fails(1, str(path))
    vireo("eval", path, "--data", clips).fails(1, str(path))
    train = ["train", "--data", clips, "--out", tmp_path / "run", *SMALL]
    vireo(*train, "--pretrained", path).fails(1, str(path))


def test_one_stage_and_clips_of_other_types() -> None:
    model = create_model("tsm", "resnet10t", num_classes=2, num_frames=4, stages=4).eval()
    assert {site.stage for site in model.sites} == {4}
    assert model.config.temporal_options["stages"] == [4]
    clip = torch.rand(1, 4, 3, 32, 32)
    with torch.inference_mode():
        expected = model(clip)
        torch.testing.assert_close(model(clip.double()), expected)
        torch.testing.assert_close(model(clip.half()), expected, atol=1e-2, rtol=1e-2)
        assert model.double()(clip).dtype == torch.float64
    with pytest.raises(UsageError, match=r"torch\.int64; this model takes uint8"):
        model(clip.long())
    with pytest.raises(UsageError, match="pretrained is empty"):
        create_model("tsm", "resnet10t", num_classes=2, pretrained="")


# --- a full disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Sets the largest size of a file, in bytes: a longer write fails as on a full disk, in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_while_saving_loses_nothing(
    vireo: Vireo, clips: Path, tmp_path: Path, small_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = tmp_path / "run", dict[str, bytes]()
    session = importlib.import_module("vireo.train").Session
    train_epoch = session.train_epoch

    def fills(self: Any, *args: Any) -> Any:
        if self.place.epoch == 1:
            before.update({path.name: path.read_bytes() for path in run.glob("*.safetensors")})
            small_disk(100_000)
        return train_epoch(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(session, "train_epoch", fills)
        said = vireo("train", "--data", clips, "--out", run, *SMALL, "--epochs", 2, "--json")
    small_disk(resource.RLIM_INFINITY)
    said._replace(err=said.err.splitlines()[-1]).fails(
        1, str(run), ".safetensors: could not be written: File too large", "What was there before is intact"
    )
    assert set(before) >= {"best.safetensors", "last.safetensors", "resume.safetensors"}
    assert before == {path.name: path.read_bytes() for path in run.glob("*.safetensors")}
    assert not list(run.glob(".*.tmp"))
    said = vireo("train", "--config", run / "config.yaml", "--resume", "--json")
    assert (said.code, json.loads(said.out)["epochs"]) == (0, 2), said


def test_a_full_disk_in_a_new_run_and_elsewhere(
    vireo: Vireo, clips: Path, checkpoint: Path, tmp_path: Path, small_disk: Callable[[int], None]
) -> None:
    small_disk(100_000)
    said = vireo("train", "--data", clips, "--out", tmp_path / "run", *SMALL, "--json")
    assert said.code == 1 and "Traceback" not in said.err
    assert ".safetensors: could not be written: File too large" in said.err.splitlines()[-1]
    small_disk(500)
    made = vireo("data", "make", "order", tmp_path / "set", "--clips=6", "--size=32", "--pairs=push", "--workers=0")
    made.fails(1, str(tmp_path / "set"))
    said = vireo("eval", checkpoint, "--data", clips, "--workers", 0, "--out", tmp_path / "e", "--json")
    assert said.code == 1 and str(tmp_path / "e") in said.err and "Traceback" not in said.err
    small_disk(resource.RLIM_INFINITY)
    assert vireo("data", "make", "order", tmp_path / "set", "--clips=6", "--size=32", "--pairs=push").code == 0
