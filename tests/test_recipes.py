"""Recipes: the papers' figures, overriding them field by field, and two steps of each."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests.video_tools import write_video
from vireo import cli
from vireo.config import Settings, TrainConfig, from_dict, to_dict
from vireo.errors import UnknownNameError, UsageError
from vireo.optim import lr_factor, scaled_lr
from vireo.recipes import RECIPES, configure, describe, markdown_table, recipe, recipes_command
from vireo.train import settings_of, train

ROOT = Path(__file__).parent.parent
training = importlib.import_module("vireo.train")
OWN = {"finetune", "modern"}

# As the papers have it (and, for TSN and TSM, TSM's public code), written down by hand: network, frames, start, highest
# learning rate, the epochs after which it is divided by ten, all epochs, batch, weight decay, sampling, clips × crops.
PUBLISHED = """
tsn-ssv1-8f                   tsn         resnet50  8   ImageNet  .01     20,40     50   64   5e-4  segment   1 center
tsn-ssv1-16f                  tsn         resnet50  16  ImageNet  .01     20,40     50   64   5e-4  segment   1 center
tsn-ssv2-8f                   tsn         resnet50  8   ImageNet  .01     20,40     50   64   5e-4  segment   1 center
tsn-ssv2-16f                  tsn         resnet50  16  ImageNet  .01     20,40     50   64   5e-4  segment   1 center
tsn-jester-8f                 tsn         resnet50  8   ImageNet  .01     20,40     50   64   5e-4  segment   1 center
tsn-k400-8f                   tsn         resnet50  8   ImageNet  .01     40,80     100  64   1e-4  dense-64  10 3crop
tsn-ucf101-8f                 tsn         resnet50  8   Kinetics  .001    10,20     25   64   5e-4  segment   1 center
tsn-hmdb51-8f                 tsn         resnet50  8   Kinetics  .001    10,20     25   64   5e-4  segment   1 center
tsm-ssv1-8f                   tsm         resnet50  8   ImageNet  .01     20,40     50   64   5e-4  segment   1 center
tsm-ssv1-16f                  tsm         resnet50  16  ImageNet  .01     20,40     50   64   5e-4  segment   1 center
tsm-ssv2-8f                   tsm         resnet50  8   ImageNet  .01     20,40     50   64   5e-4  segment   1 center
tsm-ssv2-16f                  tsm         resnet50  16  ImageNet  .01     20,40     50   64   5e-4  segment   1 center
tsm-jester-8f                 tsm         resnet50  8   ImageNet  .01     20,40     50   64   5e-4  segment   1 center
tsm-k400-8f                   tsm         resnet50  8   ImageNet  .01     40,80     100  64   1e-4  dense-64  10 3crop
tsm-k400-16f                  tsm         resnet50  16  ImageNet  .01     40,80     100  64   1e-4  dense-64  10 3crop
tsm-ucf101-8f                 tsm         resnet50  8   Kinetics  .001    10,20     25   64   5e-4  segment   1 center
tsm-hmdb51-8f                 tsm         resnet50  8   Kinetics  .001    10,20     25   64   5e-4  segment   1 center
teinet-ssv1-8f                tei         resnet50  8   ImageNet  .01     30,40,45  50   64   1e-4  segment   1 center
teinet-ssv1-16f               tei         resnet50  16  ImageNet  .01     30,40,45  50   64   1e-4  segment   1 center
teinet-ssv2-8f                tei         resnet50  8   ImageNet  .01     30,40,45  50   64   1e-4  segment   1 center
teinet-ssv2-16f               tei         resnet50  16  ImageNet  .01     30,40,45  50   64   1e-4  segment   1 center
teinet-k400-8f                tei         resnet50  8   ImageNet  .01     50,75,90  100  64   1e-4  dense-64  10 3crop
teinet-k400-16f               tei         resnet50  16  ImageNet  .01     50,75,90  100  64   1e-4  dense-64  10 3crop
teinet-ucf101-16f             tei         resnet50  16  Kinetics  ?       ?         ?    64   1e-4  ?         10 3crop
teinet-hmdb51-16f             tei         resnet50  16  Kinetics  ?       ?         ?    64   1e-4  ?         10 3crop
tefe-ssv1-8f                  tefe        resnet50  8   ImageNet  .001    30,40,45  50   20   5e-4  segment   1 squeezed
tefe-ssv1-16f                 tefe        resnet50  16  ImageNet  .001    30,40,45  50   10   5e-4  segment   1 squeezed
tefe-ssv2-8f                  tefe        resnet50  8   ImageNet  .001    30,40,45  50   20   5e-4  segment   1 squeezed
tefe-ssv2-16f                 tefe        resnet50  16  ImageNet  .001    30,40,45  50   10   5e-4  segment   1 squeezed
tefe-jester-8f                tefe        resnet50  8   ImageNet  ?       ?         ?    20   5e-4  segment   1 squeezed
mstsm_tfdem-ucf101-8f         mstsm_tfdem resnet50  8   Kinetics  2.5e-4  10,20     ?    16   5e-4  segment   ? ?
mstsm_tfdem-hmdb51-8f         mstsm_tfdem resnet50  8   Kinetics  2.5e-4  10,20     ?    16   5e-4  segment   ? ?
stw-ssv1-8f                   stw         resnet50  8   ImageNet  .01     30,40,45  50   64   5e-4  segment   1 center
stw-ssv1-16f                  stw         resnet50  16  ImageNet  .01     30,40,45  50   64   5e-4  segment   1 center
stw-ssv2-8f                   stw         resnet50  8   ImageNet  .01     30,40,45  50   64   5e-4  segment   1 center
stw-ssv2-16f                  stw         resnet50  16  ImageNet  .01     30,40,45  50   64   5e-4  segment   1 center
stw-k400-16f                  stw         resnet50  16  ImageNet  .01     30,40,45  50   64   5e-4  segment   10 3crop
stw-ucf101-16f                stw         resnet50  16  Kinetics  .001    15,30,45  50   64   5e-4  segment   10 3crop
stw-hmdb51-16f                stw         resnet50  16  Kinetics  .001    15,30,45  50   64   5e-4  segment   10 3crop
mfkpsem-ssv1-16f              kpsem       mfnet     16  Kinetics  .005    ?         ?    64   1e-4  dense-32  ? ?
mfkpsem-mini_kinetics200-16f  kpsem       mfnet     16  Kinetics  .005    ?         ?    64   1e-4  dense-32  ? ?
mfkpsem-ucf101-16f            kpsem       mfnet     16  Kinetics  .005    ?         ?    80   1e-4  dense-32  ? ?
mfkpsem-hmdb51-16f            kpsem       mfnet     16  Kinetics  .005    ?         ?    128  1e-4  dense-32  ? ?
"""
ROWS = {row.split()[0]: row.split()[1:] for row in PUBLISHED.strip().splitlines()}


def drops(settings: Settings) -> list[int]:
    """The epochs before whose first step the learning rate falls to a tenth."""
    config = TrainConfig(**{**vars(settings), "pretrained": False}, data="d", out="o")
    found = []
    for epoch in range(1, settings.epochs):
        before, after = lr_factor(epoch - 1e-6, config), lr_factor(epoch, config)
        if before != after:
            assert after == pytest.approx(before / 10)
            found.append(epoch)
    return found


def test_there_is_one_of_every_paper_and_data_set() -> None:
    assert set(RECIPES) == set(ROWS) | OWN


@pytest.mark.parametrize("name", ROWS)
def test_figures_are_the_papers(name: str) -> None:
    settings = recipe(name)
    dense = f"-{settings.window}" if settings.sampling == "dense" else ""
    start = {True: "ImageNet", "kinetics": "Kinetics"}[settings.pretrained]
    assert settings.optimizer == "sgd" and settings.schedule == "steps" and settings.warmup_epochs == 0
    mine: list[Any] = [settings.temporal, settings.backbone, settings.num_frames, start, settings.lr, drops(settings)]
    mine += [settings.epochs, settings.batch_size, settings.weight_decay, settings.sampling + dense]
    mine += [settings.clips, settings.views]
    for ours, theirs in zip(mine, ROWS[name], strict=True):
        if isinstance(ours, list):
            theirs = [int(epoch) for epoch in theirs.split(",")] if theirs != "?" else "?"
        elif not isinstance(ours, str) and theirs != "?":
            theirs = float(theirs)
        assert theirs in (ours, "?")


def test_crops_are_the_papers() -> None:
    for name, settings in ((name, recipe(name)) for name in ROWS):
        assert (settings.size, settings.resize_to) == (224, 256)
        if name.startswith("tefe"):
            assert (settings.crop, settings.short_range) == ("random", (256, 320))
        elif name.startswith("mfkpsem"):
            assert (settings.crop, settings.short_range) == ("random", (224, 288))
        else:
            sides = [256, 224, 192, 168] if name.startswith("mstsm") else [256, 224, 192, 0.66 * 256]
            assert settings.crop == "multiscale" and [256 * scale for scale in settings.scales] == sides
        assert settings.flip == ("on" if name.startswith("mstsm") else "auto")
        small = ("tsn", "tsm", "teinet", "mstsm", "stw")
        frozen = name.startswith(small) and ("ucf101" in name or "hmdb51" in name)
        assert settings.freeze_norms == ("partial" if frozen else "none")
        assert settings.dropout == (0.8 if re.match("(ts[nm]|teinet)-(ucf|hmdb)", name) else 0.5)
        assert (settings.label_smoothing, settings.mixup, settings.ema_decay, settings.rand_augment) == (0, 0, 0, 0)


def test_finetune_is_the_default() -> None:
    assert recipe("finetune") == Settings()
    assert configure("finetune", data="d", out="o") == TrainConfig(data="d", out="o")


def test_a_smaller_batch_lowers_the_learning_rate_alike() -> None:
    for name in set(RECIPES) - {"finetune"}:
        settings = recipe(name)
        assert settings.base_batch_size == settings.batch_size and scaled_lr(settings) == settings.lr
    half = configure("tefe-ssv1-8f", data="d", out="o", batch_size=10)
    assert scaled_lr(half) == pytest.approx(0.0005)


def test_modern_is() -> None:
    settings = recipe("modern")
    assert settings.optimizer == "adamw" and settings.schedule == "cosine" and settings.warmup_epochs > 0
    assert min(settings.mixup, settings.cutmix, settings.label_smoothing, settings.ema_decay) > 0
    assert settings.rand_augment > 0 and settings.random_erasing > 0


# --- names and overriding -------------------------------------------------------------------------


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown recipe 'teinet-ssv-8f'\. Did you mean 'teinet-ssv[12]-8f'"):
        recipe("teinet-ssv-8f")
    with pytest.raises(UnknownNameError, match="`vireo recipes` lists"):
        recipe("@@@")
    with pytest.raises(UnknownNameError, match=r"Unknown setting 'batchsize'\. Did you mean 'batch_size'"):
        configure("modern", data="d", out="o", batchsize=3)
    with pytest.raises(UsageError, match="batch_size is 0"):
        configure("modern", data="d", out="o", batch_size=0)


def test_configure_changes_what_it_is_told_and_nothing_else() -> None:
    changed = configure("stw-ssv2-16f", data="d", out="o", lr=0.5, size=112)
    expected = {**vars(recipe("stw-ssv2-16f")), "lr": 0.5, "size": 112, "data": "d", "out": "o", "resume": False}
    assert vars(changed) == expected | {"recipe": "stw-ssv2-16f"}


def test_kinetics_weights_must_be_given() -> None:
    name = "mstsm_tfdem-ucf101-8f"
    with pytest.raises(UsageError, match=f"{name} starts from weights trained on Kinetics; give their file"):
        configure(name, data="d", out="o")
    assert configure(name, data="d", out="o", pretrained="k.safetensors").pretrained == "k.safetensors"
    assert configure(name, data="d", out="o", pretrained=True).pretrained is True
    assert configure(name, data="d", out="o", init="k.safetensors").init
    assert configure(name, data="d", out="o", resume=True).resume  # goes on from its own weights


def test_a_recipe_keeps_its_view_when_it_starts_from_a_checkpoint() -> None:
    network, view = recipe("tsm-k400-8f"), recipe("tsm-k400-8f")
    started = settings_of(configure("tsm-ucf101-8f", data="d", out="o", init="x"), network, view)
    assert (started.sampling, started.views, started.clips) == ("segment", "center", 1)
    plain = TrainConfig(data="d", out="o", init="x", temporal="tsm", backbone="resnet50")
    assert settings_of(plain, network, view).sampling == "dense"  # nobody asked for another


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[TrainConfig]:
    """What `vireo train` was about to train; the data d is there."""
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    seen: list[TrainConfig] = []

    def stand_in(config: TrainConfig, **_: Any) -> Any:
        seen.append(config)
        return training.TrainResult(run=Path(), best=Path(), last=Path(), top1=0.0, epochs=0, seconds=0.0)

    monkeypatch.setattr(training, "train", stand_in)
    return seen


@pytest.mark.parametrize("name", RECIPES)
def test_printed_as_yaml_and_taken_back(
    name: str, trained: list[TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "--recipe", name, "--data", "d", "--out", "o", "--pretrained", "w.pth", "--epochs", "7"]
    assert cli.main([*line, "--print-config"]) == 0
    printed = capsys.readouterr().out
    file = tmp_path / "printed.yaml"
    file.write_text(printed, encoding="utf-8")
    assert not trained
    assert cli.main(["train", "--config", str(file)]) == 0
    expected = configure(name, data="d", out="o", pretrained="w.pth", epochs=7)
    assert trained == [expected]
    plain = {key: value for key, value in yaml.safe_load(printed).items() if key not in ("json", "seeds")}
    assert from_dict(TrainConfig, plain) == expected
    assert from_dict(TrainConfig, to_dict(expected)) == expected


def test_file_over_recipe_and_options_over_both(trained: list[TrainConfig], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("recipe: tefe-ssv1-16f\nlr: 0.5\nepochs: 9\ndata: d\nout: o\n", encoding="utf-8")
    assert cli.main(["train", "--epochs", "3", "--config", str(file)]) == 0
    assert trained.pop() == configure("tefe-ssv1-16f", data="d", out="o", lr=0.5, epochs=3)
    file.write_text("temporal_options: {stages: [4]}\nlr: 0.25\n", encoding="utf-8")
    options = ["--data", "d", "--out", "o", "--recipe", "tsm-ssv1-8f", "--temporal-options.fold_div", "4"]
    assert cli.main(["train", *options, "--config", str(file)]) == 0
    expected = configure("tsm-ssv1-8f", data="d", out="o", lr=0.25, temporal_options={"stages": [4], "fold_div": 4})
    assert trained.pop() == expected


def test_a_run_s_own_config_keeps_its_recipe(trained: list[TrainConfig], tmp_path: Path) -> None:
    config = configure("modern", data="d", out="o", lr=0.5, pretrained=False)
    Path("o").mkdir()
    Path("o/resume.safetensors").touch()
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)), encoding="utf-8")
    assert cli.main(["train", "--config", str(file), "--resume"]) == 0
    assert trained == [dataclasses.replace(config, resume=True)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--recipe tefe-ssv1-8", "Unknown recipe 'tefe-ssv1-8'. Did you mean 'tefe-ssv1-8f'"),
        ("--recipe", "--recipe needs a value"),
        ("--recipe modern --config FILE", "the file of --config has the settings of tsm-ssv1-8f; leave one out"),
        ("--recipe stw-ucf101-16f", "starts from weights trained on Kinetics"),
        ("--recipe tefe-ssv1-8f --size 300 --short-side 0", "a crop of size 300 needs short sides of at least that"),
    ],
)
def test_wrong_usage(
    trained: list[TrainConfig], line: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("recipe: tsm-ssv1-8f\n", encoding="utf-8")
    assert cli.main(["train", "--data", "d", "--out", "o", *line.replace("FILE", str(file)).split()]) == 2
    shown = capsys.readouterr().err
    assert says in shown and len(shown.splitlines()) <= 2
    assert not trained


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_read_but_once(trained: list[TrainConfig]) -> None:
    read, write = os.pipe()
    with open(write, "w", encoding="utf-8") as pipe:
        pipe.write("epochs: 3\ndata: d\nout: o\n")
    try:
        assert cli.main(["train", "--config", f"/dev/fd/{read}", "--recipe", "tsm-ssv1-8f"]) == 0
    finally:
        os.close(read)
    assert trained == [configure("tsm-ssv1-8f", data="d", out="o", epochs=3)]


# --- what a person sees ---------------------------------------------------------------------------


def test_the_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert recipes_command() == 0
    shown = capsys.readouterr().out
    for name in RECIPES:
        [line] = [line for line in shown.splitlines() if line.startswith(f"{name} ")]
        assert describe(name)["data"] in line and "…" not in line
    assert recipes_command(json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["recipe"] for row in found] == list(RECIPES)
    for row in found:
        assert from_dict(Settings, row["settings"]) == recipe(row["recipe"])


def test_the_page_has_the_table_and_every_source() -> None:
    assert markdown_table() in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for function in RECIPES.values():
        assert len((getattr(function, "func", function).__doc__ or "").splitlines()) >= 3


# --- two steps of each ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 40 frames in each of two classes: four train, two validate."""
    folder = tmp_path_factory.mktemp("clips")
    for label in ("put it down", "pick it up"):
        for i in range(3):
            write_video(folder / label / f"{i}.mp4", 40)
    return folder


SMALL: dict[str, Any] = {
    "pretrained": False,
    "size": 32,
    "short_side": 36,
    "epochs": 1,
    "batch_size": 2,
    "workers": 0,
    "precision": "32-true",
    "accelerator": "cpu",
}


def each_setting_once() -> Iterator[Any]:
    """The first recipe of each function, and slowly its others: with more frames, or for another data set."""
    functions: set[Any] = set()
    for name in {repr(recipe(name)): name for name in reversed(RECIPES)}.values():
        function = getattr(RECIPES[name], "func", RECIPES[name])
        yield pytest.param(name, marks=[pytest.mark.slow] if function in functions else [])
        functions.add(function)


@pytest.mark.parametrize("name", list(each_setting_once()))
def test_two_steps(name: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own network; checkpoints, which are large and none of a recipe's business, aren't written."""
    steps = []
    step = training.Session.step
    monkeypatch.setattr(training.Session, "step", lambda *args: steps.append(args) or step(*args))
    for method in ("save", "save_state"):
        monkeypatch.setattr(training.Session, method, lambda *args, **kwargs: None)
    result = train(configure(name, data=str(clips), out=str(tmp_path / "run"), **SMALL), console=Console(quiet=True))
    assert len(steps) == 2 and result.epochs == 1 and 0 <= result.top1 <= 1
