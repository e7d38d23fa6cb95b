"""`vireo demo`: everything once, small, on data it makes itself.

Renders three pairs of actions that differ only in the order of their frames, trains TSN and TEI on
the same small backbone from random weights, evaluates both, predicts a clip and its reversed twin,
and writes a page that shows it all.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from vireo import progress
from vireo.checkpoint import Checkpoint, load_checkpoint
from vireo.config import TrainConfig
from vireo.data.annotations import read_table
from vireo.data.order import OrderConfig, make_order
from vireo.data.splits import split_table
from vireo.errors import UsageError
from vireo.evaluate import evaluate
from vireo.evaluation import print_evaluation, write_evaluation
from vireo.predict import classify, load_clip, print_prediction
from vireo.report import ModelSection, Strip, write_report
from vireo.runs import read_metrics
from vireo.train import train

PAIRS = ("push", "approach", "put")
MODELS = {
    "TSN": "A 2D network that averages its answers over the frames. It cannot know their order.",
    "TEI": "The same network with TEINet's two modules in every residual block.",
}


def demo(out: Path = Path("demo"), *, clips: int = 1440, size: int = 72, epochs: int = 12, seed: int = 0) -> int:
    """Run the demonstration; returns the exit code.

    Args:
        out: folder for data, runs and the report.
        clips: clips to render, training, validation and test together.
        size: side of the clips, pixels.
        epochs: passes over the training clips.
        seed: of everything.
    """
    console, began = progress.make_console(), time.monotonic()
    claim(out)

    rule(console, "[bold]1  Render the clips")
    config = OrderConfig(clips=clips, size=size, seed=seed, pairs=PAIRS, val_fraction=0.05, test_fraction=0.15)
    with progress.bar("render", clips) as advance:
        data = make_order(out / "data", config, progress=advance.reach)
    for run in runs_in(out):  # only now: had the clips been of other settings, nothing would be lost
        shutil.rmtree(run, ignore_errors=True)
    table = read_table(data)
    console.print(f"{len(table)} clips of {len(table.label_names)} actions in {time.monotonic() - began:.0f} s")

    sections, checkpoints = [], dict[str, Checkpoint]()
    for number, (name, about) in enumerate(MODELS.items(), start=2):
        rule(console, f"[bold]{number}  Train and test {name}")
        result = train(demo_config(name.lower(), data, out / name.lower(), epochs=epochs, seed=seed), console=console)
        if result.interrupted:
            return 130
        evaluation = evaluate(result.best, data, split="test")
        write_evaluation(evaluation, result.run / "eval")
        print_evaluation(evaluation, console)
        checkpoints[name] = load_checkpoint(result.best)
        sections.append(
            ModelSection(
                name=name,
                about=about,
                evaluation=evaluation,
                metrics=read_metrics(result.run),
                seconds=result.seconds,
            )
        )

    rule(console, "[bold]4  Predict a clip and its reversed twin")
    strips = make_strips(data, checkpoints)
    for strip in strips[:2]:
        print_prediction(strip.predictions["TEI"], console)
    report = write_report(
        out / "report.html",
        title="Does it see what happens, or only what is there?",
        intro=(
            "Every action here comes with its time reversal: the same scene, the same frames, in the opposite order. "
            "A model that ignores the order of frames gives both twins the same answer, so it is right at most once "
            "in two: 50 %, exactly (the red mark). What a model scores above that, it owes to temporal modelling.",
        ),
        models=sections,
        strips=strips,
        ceiling=0.5,
        commands=(
            f"vireo predict {out}/tei/best.safetensors CLIP.mp4      # any video of these actions",
            "vireo train --data FOLDER --out runs/mine         # FOLDER has one subfolder per class",
            "vireo eval runs/mine/best.safetensors --data FOLDER",
        ),
        provenance=(
            f"order benchmark: {clips} clips, {size}×{size}, seed {seed}; {epochs} epochs of "
            f"{demo_config('tei', data, out, epochs=epochs, seed=seed).backbone} from random weights",
            f"{platform.machine()}, {os.cpu_count()} cores; {time.monotonic() - began:.0f} s in all",
            "data {data_hash:.16}; decoder {decoder}".format(**sections[0].evaluation.header),
        ),
    )
    rule(console)
    tsn, tei = (s.evaluation.top1 for s in sections)
    console.print(
        f"TSN [bold]{100 * tsn:.1f} %[/bold]   TEI [bold]{100 * tei:.1f} %[/bold]   (without order: 50 % at most)"
    )
    console.print(
        f"Report: [bold]{escape(str(report))}[/bold]   {(time.monotonic() - began) / 60:.1f} min", highlight=False
    )
    return 0


def rule(console: Console, title: str = "") -> None:
    """Print a line that parts one step from the next, no longer than a screen is wide."""
    console.print(Rule(title), width=min(console.width, 80))


def demo_config(temporal: str, data: Path, out: Path, *, epochs: int, seed: int) -> TrainConfig:
    """The settings both models share."""
    return TrainConfig(
        temporal=temporal,
        backbone="resnet10t",
        backbone_options={"channels": [32, 64, 128, 256], "stem_width": 16},  # half as wide: fast, and wide enough
        pretrained=False,
        dropout=0.2,
        data=str(data),
        out=str(out),
        size=64,
        short_side=70,
        scales=(1.0, 0.875),
        optimizer="adamw",
        lr=3e-3,
        weight_decay=0.05,
        head_lr_scale=1.0,
        warmup_epochs=1.0,
        epochs=epochs,
        batch_size=8,  # small: learning order from nothing takes steps, some 500 before anything shows
        seed=seed,
        eval_every=2,
    )


def claim(out: Path) -> None:
    """Check that `out` holds nothing but what an earlier demonstration left there.

    Raises:
        UsageError: it holds something else.
    """
    ours = {out / "data", out / "report.html", *(run for run in runs_in(out) if is_ours(run, out))}
    strange = sorted(p.name for p in set(out.iterdir()) - ours) if out.is_dir() else []
    if strange:
        raise UsageError(f"{out} holds other things ({', '.join(strange[:3])}); choose another folder with --out")


def runs_in(out: Path) -> list[Path]:
    """The folders of the demonstration's runs."""
    return [out / name.lower() for name in MODELS]


def is_ours(run: Path, out: Path) -> bool:
    """Whether a run was trained on the demonstration's own clips."""
    try:
        return f"data: {out / 'data'}" in (run / "config.yaml").read_text("utf-8")
    except (OSError, ValueError):
        return False


def make_strips(data: Path, checkpoints: dict[str, Checkpoint], pairs: int = 3) -> list[Strip]:
    """Both twins of the first test scene of each pair, with what each model says of them."""
    test = split_table(read_table(data), val_fraction=0.2, seed=0).test
    if test is None or test.groups is None:
        raise UsageError(f"{data} has no test part with groups")
    twins: dict[str, list[int]] = {}
    for index in range(len(test)):
        twins.setdefault(test.groups[index], []).append(index)
    chosen: dict[frozenset[int], list[int]] = {}
    for rows in twins.values():
        chosen.setdefault(frozenset(int(test.labels[i]) for i in rows), rows)
    strips = []
    for rows in list(chosen.values())[:pairs]:
        for index in rows:
            record = test.record(index)
            clips = {name: load_clip(checkpoint, record.path) for name, checkpoint in checkpoints.items()}
            strips.append(
                Strip(
                    title=Path(record.path).stem,
                    label=test.label_names[record.label],
                    clip=next(iter(clips.values())),
                    predictions={
                        name: classify(checkpoint, clips[name], record.path, top_k=3)
                        for name, checkpoint in checkpoints.items()
                    },
                )
            )
    return strips
