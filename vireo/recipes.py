"""Named training settings: one per paper and data set, as the papers trained, and two that are not theirs.

    recipe("teinet-ssv1-8f")                                           → Settings
    configure("teinet-ssv1-8f", data="ssv1:data/ssv1", out="runs/x")   → TrainConfig
    vireo train --recipe teinet-ssv1-8f --data ssv1:data/ssv1 --out runs/x

A name is PAPER-DATA-FRAMES. Every function below states where its figures stand in the paper, what the paper leaves
open, and what was chosen. Where they say "as TSN and TSM", that is what both have in common, by their papers and
TSM's public code: crops of four sizes at 13 places, dropout 0.5, five times the learning rate for the classifier,
gradients clipped at 20, mirror images where the labels allow them, and logits averaged over frames, clips and crops.

Learning rates are those of the batch size that stands beside them, and change in proportion to it (`base_batch_size`).
A recipe that starts from Kinetics has ``pretrained="kinetics"``: the file must be given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from vireo.config import Settings, TrainConfig, to_dict
from vireo.errors import UnknownNameError

PAPERS = {
    "tsn": "TSN",
    "tsm": "TSM",
    "teinet": "TEINet",
    "tefe": "TEFE",
    "mstsm_tfdem": "MSTSM-TFDEM",
    "stw": "STW",
    "mfkpsem": "MF-KPSEM",
}
"""By the first part of a recipe's name."""

DATA = {
    "ssv1": "Something-Something V1",
    "ssv2": "Something-Something V2",
    "jester": "Jester",
    "k400": "Kinetics-400",
    "mini_kinetics200": "Mini-Kinetics-200",
    "ucf101": "UCF101",
    "hmdb51": "HMDB51",
}
"""By the second part."""


def recipe(name: str) -> Settings:
    """The settings of a recipe.

    Args:
        name: one of `RECIPES`.

    Raises:
        UnknownNameError: there is none of that name; the message suggests the nearest.
    """
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES, lists="vireo recipes")
    return RECIPES[name]()


def configure(name: str, *, data: str, out: str, resume: bool = False, **changes: Any) -> TrainConfig:
    """A training run by a recipe.

    Args:
        name: one of `RECIPES`.
        data: the clips, as `TrainConfig` takes them.
        out: folder of the run.
        resume: go on with the run in that folder.
        **changes: other settings than the recipe's, e.g. ``lr=0.02``; mappings such as ``temporal_options`` replace
            the recipe's.

    Raises:
        UnknownNameError: no such recipe, or no such setting.
        UsageError: a setting is wrong, or Kinetics weights are needed and not given.
    """
    found = recipe(name)
    for change in changes:
        if change not in vars(found):
            raise UnknownNameError("setting", change, vars(found), lists="vireo train --help")
    return TrainConfig(**vars(replace(found, **changes)), data=data, out=out, recipe=name, resume=resume)


# --- shared parts ---------------------------------------------------------------------------------


def _sgd(temporal: str, num_frames: int, **changes: Any) -> Settings:
    """What TSN and TSM have in common; the weights are ImageNet's unless told otherwise."""
    common: dict[str, Any] = {
        "temporal": temporal,
        "backbone": "resnet50",
        "num_frames": num_frames,
        "dropout": 0.5,
        "size": 224,
        "short_side": 256,
        "scales": (1.0, 0.875, 0.75, 0.66),
        "optimizer": "sgd",
        "schedule": "steps",
        "warmup_epochs": 0.0,
        "head_lr_scale": 5.0,
        "clip_grad": 20.0,
        "batch_size": 64,
    }
    given = common | changes
    return Settings(**({"base_batch_size": given["batch_size"]} | given))


def _divided(lr: float, at: Sequence[int], epochs: int) -> dict[str, Any]:
    """A learning rate that is divided by ten after each of some epochs."""
    return {"lr": lr, "epochs": epochs, "lr_steps": tuple(epoch / epochs for epoch in at)}


_THIRTY_VIEWS: dict[str, Any] = {"views": "3crop", "clips": 10}
_DENSE: dict[str, Any] = {"sampling": "dense", "window": 64}
_KINETICS: dict[str, Any] = {"pretrained": "kinetics"}


# --- TSN and TSM, the baselines -------------------------------------------------------------------


def shifted_something(temporal: str, num_frames: int) -> Settings:
    """TSN or TSM on Something-Something or Jester.

    TSM (Lin, Gan, Han, ICCV 2019), section 5.1 and its public code: SGD, learning rate 0.01 ÷10 at 20 and 40 of 50
    epochs, weight decay 5e-4, batch 64, dropout 0.5, from ImageNet; one centre crop of one clip. TSN is the same
    network without the shift, as the papers that follow train it. On Jester the paper gives no settings of its own
    but half of Kinetics' epochs, which these are.
    """
    return _sgd(temporal, num_frames, **_divided(0.01, (20, 40), 50), weight_decay=5e-4)


def shifted_kinetics(temporal: str, num_frames: int) -> Settings:
    """TSN or TSM on Kinetics-400.

    TSM, section 5.1: SGD, learning rate 0.01 ÷10 at 40 and 80 of 100 epochs, weight decay 1e-4, batch 64, dropout
    0.5, from ImageNet; frames from windows of 64; 10 clips × 3 crops. Its public code tests crops of 256²; here they
    have the size of training, 224².
    """
    schedule = _divided(0.01, (40, 80), 100)
    return _sgd(temporal, num_frames, **schedule, **_DENSE, **_THIRTY_VIEWS, weight_decay=1e-4)


def shifted_small(temporal: str, num_frames: int) -> Settings:
    """TSN or TSM on UCF101 or HMDB51, from Kinetics weights.

    TSM's public code for UCF101: SGD, learning rate 0.001 ÷10 at 10 and 20 of 25 epochs, weight decay 5e-4, batch
    64, dropout 0.8, norms frozen but the first, segment sampling. One centre crop of one clip; HMDB51 likewise.
    """
    schedule = _divided(0.001, (10, 20), 25)
    return _sgd(temporal, num_frames, **schedule, **_KINETICS, weight_decay=5e-4, dropout=0.8, freeze_norms="partial")


# --- TEINet ---------------------------------------------------------------------------------------


def teinet_something(num_frames: int) -> Settings:
    """TEINet on Something-Something.

    Section 4.2: SGD, learning rate 0.01 ÷10 at 30, 40 and 45 of 50 epochs, weight decay 1e-4, batch 64, segment
    sampling, from ImageNet, one centre crop of one clip (``views=3crop clips=10`` for the table's 8f × 10). Left
    open: dropout and the crops' sizes and places ("center cropping and scale-jittering"): as TSN and TSM.
    """
    return _sgd("tei", num_frames, **_divided(0.01, (30, 40, 45), 50), weight_decay=1e-4)


def teinet_kinetics(num_frames: int) -> Settings:
    """TEINet on Kinetics-400.

    Section 4.2: learning rate 0.01 ÷10 at 50, 75 and 90 of 100 epochs, frames from windows of 64, 10 clips × 3
    crops of frames with a short side of 256; the rest as on Something-Something. Table 5 counts 33 GFLOPs a view: 224².
    """
    schedule = _divided(0.01, (50, 75, 90), 100)
    return _sgd("tei", num_frames, **schedule, **_DENSE, **_THIRTY_VIEWS, weight_decay=1e-4)


def teinet_small(num_frames: int) -> Settings:
    """TEINet on UCF101 or HMDB51, from Kinetics weights.

    Section 4.4: fine-tuned from Kinetics, 16 frames, 10 clips × 3 crops, three splits. "For all experiments" batch 64
    and weight decay 1e-4 (4.2). The rest is left open: learning rate, epochs, dropout and frozen norms are TSM's on
    UCF101, the windows of 64 those of the Kinetics weights.
    """
    schedule = _divided(0.001, (10, 20), 25)
    more = {**_DENSE, **_THIRTY_VIEWS, **_KINETICS}
    return _sgd("tei", num_frames, **schedule, **more, weight_decay=1e-4, dropout=0.8, freeze_norms="partial")


# --- TEFE -----------------------------------------------------------------------------------------


def tefe_something(num_frames: int) -> Settings:
    """TEFE on Something-Something or Jester.

    Section IV-B: SGD, learning rate 0.001 ÷10 at 30, 40 and 45 of 50 epochs, weight decay 5e-4, batch 20 with 8
    frames and 10 with 16, from ImageNet; a random crop of 224² from a short side in [256, 320]; tested on one clip of
    whole frames resized to 224 × 256. Left open: dropout and the classifier's learning rate (as TSN and TSM), mirror
    images, and Jester's settings (the same). Its test draws frames at random; here they are the segments' centres.
    """
    return _sgd(
        "tefe",
        num_frames,
        **_divided(0.001, (30, 40, 45), 50),
        weight_decay=5e-4,
        batch_size=20 if num_frames <= 8 else 10,
        crop="random",
        short_range=(256, 320),
        views="squeezed",
    )


# --- MSTSM-TFDEM ----------------------------------------------------------------------------------


def mstsm_tfdem_small(num_frames: int) -> Settings:
    """MSTSM-TFDEM on UCF101 or HMDB51, from Kinetics weights.

    Sections 4.1 and 4.3: SGD, learning rate 2.5e-4 ÷10 every ten epochs, weight decay 5e-4, batch 16, norms frozen;
    crops of 256, 224, 192 and 168 of a short side of 256, half of them mirrored; 8 frames, segment sampling, three
    splits. Left open: the number of epochs (30), dropout and the classifier's learning rate (as TSN and TSM), crops
    in testing (one, centre). The first norm stays free, as in TSN, and so do TFDEM's, which are new. For the other
    rows of Table 1 give another backbone (``efficientnet_b0``) or ``modality=flow``.
    """
    return _sgd(
        "mstsm_tfdem",
        num_frames,
        **_divided(2.5e-4, (10, 20), 30),
        **_KINETICS,
        weight_decay=5e-4,
        batch_size=16,
        freeze_norms="partial",
        scales=(256 / 256, 224 / 256, 192 / 256, 168 / 256),
        flip="on",
    )


# --- STW ------------------------------------------------------------------------------------------


def stw_something(num_frames: int) -> Settings:
    """STW on Something-Something.

    Section IV-B: SGD, learning rate 0.01 ÷10 at 30, 40 and 45 of 50 epochs, weight decay 5e-4, batch 64, segment
    sampling, from ImageNet; one centre crop of one clip. Left open: dropout, the crops' sizes and places ("center
    cropping and scale-jittering"): as TSN, whose training it follows.
    """
    return _sgd("stw", num_frames, **_divided(0.01, (30, 40, 45), 50), weight_decay=5e-4)


def stw_kinetics(num_frames: int) -> Settings:
    """STW on Kinetics-400.

    Section IV-B: as on Something-Something, with 16 frames; 10 clips × 3 crops (left, middle, right). Frames come
    from segments here too, for the paper names no other sampling.
    """
    return _sgd("stw", num_frames, **_divided(0.01, (30, 40, 45), 50), **_THIRTY_VIEWS, weight_decay=5e-4)


def stw_small(num_frames: int) -> Settings:
    """STW on UCF101 or HMDB51, from Kinetics weights.

    Section IV-B: learning rate 0.001 ÷10 every 15 of 50 epochs, 16 frames, 10 clips × 3 crops, three splits; weight
    decay 5e-4 and batch 64 as everywhere. Left open: dropout (0.5) and frozen norms (all but the first, as TSM does
    on these sets).
    """
    schedule = _divided(0.001, (15, 30, 45), 50)
    return _sgd("stw", num_frames, **schedule, **_THIRTY_VIEWS, **_KINETICS, weight_decay=5e-4, freeze_norms="partial")


# --- KPSEM ----------------------------------------------------------------------------------------


def mfkpsem(num_frames: int, batch_size: int) -> Settings:
    """MFNet with KPSEM, from Kinetics weights of MFNet.

    Section 4.1: SGD, learning rate 0.005, weight decay 1e-4, 16 frames of 224²; 4.3: batch 64 on Mini-Kinetics and
    Something-Something V1, 80 on UCF101, 128 on HMDB51. It follows MFNet, from whose public code the sampling is (a
    random clip with every second frame) and the crop (224² of a short side in [224, 288]; its distortions of shape
    and colour are left out). Left open: epochs and schedule (50, ÷10 at 30, 40 and 45, as the other papers), dropout
    (0.5), the classifier's learning rate (the same as the others'), the test (10 clips × 3 crops; MFNet averages
    many random ones).
    """
    return _sgd(
        "kpsem",
        num_frames,
        **_divided(0.005, (30, 40, 45), 50),
        **_THIRTY_VIEWS,
        **_KINETICS,
        backbone="mfnet",
        weight_decay=1e-4,
        batch_size=batch_size,
        head_lr_scale=1.0,
        sampling="dense",
        window=2 * num_frames,
        crop="random",
        short_range=(224, 288),
    )


# --- not from the papers --------------------------------------------------------------------------


def finetune() -> Settings:
    """A small data set of one's own, with a GPU or none: the defaults of `vireo train`.

    No paper's. TEI on MobileNetV2 from ImageNet, AdamW, a cosine over 20 epochs, crops of two sizes.
    """
    return Settings()


def modern() -> Settings:
    """A larger data set on a GPU, trained as image networks are today.

    No paper's: TEI on ResNet-50 from ImageNet with AdamW, a cosine after five epochs of warm-up, a moving average of
    the weights, MixUp and CutMix, label smoothing, RandAugment, random erasing and resized crops, in the strengths
    that are common for fine-tuning video transformers on Something-Something. Not compared with the papers' recipes.
    """
    return Settings(
        temporal="tei",
        backbone="resnet50",
        dropout=0.2,
        short_side=256,
        crop="resized",
        crop_area=(0.5, 1.0),
        rand_augment=7,
        random_erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=0.05,
        head_lr_scale=1.0,
        schedule="cosine",
        warmup_epochs=5.0,
        clip_grad=5.0,
        ema_decay=0.999,
        epochs=50,
        batch_size=64,
        base_batch_size=64,
    )


# --- the table ------------------------------------------------------------------------------------


def _each(
    paper: str, function: Callable[..., Settings], data: Sequence[str], frames: Sequence[int], *given: str
) -> dict[str, Callable[[], Settings]]:
    """A function under the names of data sets and numbers of frames; ``given`` are its first arguments."""
    return {f"{paper}-{name}-{count}f": partial(function, *given, count) for name in data for count in frames}


RECIPES: dict[str, Callable[[], Settings]] = {
    "finetune": finetune,
    "modern": modern,
    **_each("tsn", shifted_something, ["ssv1", "ssv2"], [8, 16], "tsn"),
    **_each("tsn", shifted_something, ["jester"], [8], "tsn"),
    **_each("tsn", shifted_kinetics, ["k400"], [8], "tsn"),
    **_each("tsn", shifted_small, ["ucf101", "hmdb51"], [8], "tsn"),
    **_each("tsm", shifted_something, ["ssv1", "ssv2"], [8, 16], "tsm"),
    **_each("tsm", shifted_something, ["jester"], [8], "tsm"),
    **_each("tsm", shifted_kinetics, ["k400"], [8, 16], "tsm"),
    **_each("tsm", shifted_small, ["ucf101", "hmdb51"], [8], "tsm"),
    **_each("teinet", teinet_something, ["ssv1", "ssv2"], [8, 16]),
    **_each("teinet", teinet_kinetics, ["k400"], [8, 16]),
    **_each("teinet", teinet_small, ["ucf101", "hmdb51"], [16]),
    **_each("tefe", tefe_something, ["ssv1", "ssv2"], [8, 16]),
    **_each("tefe", tefe_something, ["jester"], [8]),
    **_each("mstsm_tfdem", mstsm_tfdem_small, ["ucf101", "hmdb51"], [8]),
    **_each("stw", stw_something, ["ssv1", "ssv2"], [8, 16]),
    **_each("stw", stw_kinetics, ["k400"], [16]),
    **_each("stw", stw_small, ["ucf101", "hmdb51"], [16]),
    "mfkpsem-ssv1-16f": partial(mfkpsem, 16, 64),
    "mfkpsem-mini_kinetics200-16f": partial(mfkpsem, 16, 64),
    "mfkpsem-ucf101-16f": partial(mfkpsem, 16, 80),
    "mfkpsem-hmdb51-16f": partial(mfkpsem, 16, 128),
}
"""Functions that make the settings, by name."""


# --- for people -----------------------------------------------------------------------------------


def describe(name: str) -> dict[str, str]:
    """A recipe in a few words: recipe, paper, data, network, start, optimizer, schedule, crop and test.

    Raises:
        UnknownNameError: there is none.
    """
    settings = recipe(name)
    paper, _, rest = name.partition("-")
    steps = ", ".join(f"{share * settings.epochs:g}" for share in settings.lr_steps)
    crops = {
        "multiscale": f"{', '.join(f'{scale * settings.resize_to:.0f}' for scale in settings.scales)} of "
        f"{settings.resize_to}",
        "random": f"{settings.size} of {settings.short_range[0]}–{settings.short_range[-1]}",
        "resized": f"{settings.crop_area[0]:g}–{settings.crop_area[-1]:g} of the area",
    }
    views = {"center": "centre", "3crop": "3 crops", "squeezed": f"whole, {settings.size}×{settings.resize_to}"}
    many = f"{settings.clips} clips" if settings.clips > 1 else "1 clip"
    start = {True: "ImageNet", False: "nothing", "kinetics": "Kinetics"}
    return {
        "recipe": name,
        "paper": PAPERS.get(paper, "–"),
        "data": DATA.get(rest.rpartition("-")[0], "any"),
        "network": f"{settings.temporal} × {settings.backbone}",
        "frames": f"{settings.num_frames}, {settings.sampling}"
        + (f" of {settings.window}" if settings.sampling == "dense" else ""),
        "start": start.get(settings.pretrained, str(settings.pretrained)),
        "optimizer": f"{settings.optimizer} {settings.lr:g}, decay {settings.weight_decay:g}, "
        f"batch {settings.batch_size}",
        "epochs": f"{settings.epochs}, " + (f"÷10 at {steps}" if settings.schedule == "steps" else settings.schedule),
        "crop": crops[settings.crop],
        "test": f"{many}, {views.get(settings.views, settings.views)}",
    }


def markdown_table() -> str:
    """All recipes as a Markdown table, for the documentation."""
    rows = [describe(name) for name in RECIPES]
    shown = [key for key in rows[0] if key not in ("paper", "data")]
    lines = ["| " + " | ".join(key.capitalize() for key in shown) + " |", "|" + "---|" * len(shown)]
    for row in rows:
        lines.append("| " + " | ".join(f"`{row[key]}`" if key == "recipe" else row[key] for key in shown) + " |")
    return "\n".join(lines)


def recipes_command(*, json: bool = False) -> int:
    """What `vireo recipes` does: one line per recipe; as JSON also what each trains, and all settings."""
    if json:
        import json as jsonlib

        found = [{**describe(name), "settings": to_dict(recipe(name))} for name in RECIPES]
        print(jsonlib.dumps(found, ensure_ascii=False))
        return 0
    from rich.table import Table

    from vireo.progress import make_console

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("recipe", "paper", "data", "T", "start"):
        table.add_column(title, no_wrap=True)
    for name in RECIPES:
        row = describe(name)
        frames = row["frames"].partition(",")[0]
        table.add_row(*(frames if column.header == "T" else row[str(column.header)] for column in table.columns))
    console = make_console(highlight=False)
    console.print(table)
    console.print("\nAll settings of one: vireo train --recipe NAME --print-config", markup=False)
    console.print("Those that start from Kinetics need a file of such weights: --pretrained FILE", markup=False)
    return 0
