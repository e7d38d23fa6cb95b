"""The command line: a table of verbs, each a typed function whose docstring is its help.

Heavy imports happen inside the verbs, so that ``vireo --help`` answers at once.
"""

from __future__ import annotations

import json as jsonlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from vireo.config import ReadConfig, TrainConfig
from vireo.errors import UsageError, VireoError
from vireo.memory import keep_memory


def demo(out: Path = Path("demo"), clips: int = 1440, size: int = 72, epochs: int = 12, seed: int = 0) -> int:
    """Everything once, small: make clips, train TSN and TEI, compare them, write a report.

    The clips differ only in the order of their frames, so a model that ignores order can't pass
    50 %. Takes some minutes without a GPU.

    Args:
        out: Folder for data, runs and report.html.
        clips: Clips to render: training, validation and test together.
        size: Height and width of the clips, pixels.
        epochs: Passes over the training clips.
        seed: Seed of everything random.

    Example:
        vireo demo --out demo
    """
    from vireo.demo import demo

    return demo(out, clips=clips, size=size, epochs=epochs, seed=seed)


def models(
    filter: str = "",
    temporal: str | None = None,
    backbone: str | None = None,
    num_classes: int | None = None,
    num_frames: int = 8,
    size: int | None = None,
    pairs: bool = False,
    json: bool = False,
) -> int:
    """List temporal modules and backbones, with the sizes of networks made of both.

    Without --backbone: one line per backbone; with it: one line per temporal module. With --pairs:
    which module works on which family of backbones, and why not on the others.

    Args:
        filter: Only backbones whose name contains this text.
        temporal: Only this temporal module [tsn; with --backbone or --pairs: all].
        backbone: Only this backbone, any timm name.
        num_classes: Classes of the networks [400].
        num_frames: T, frames per clip.
        size: Height and width of the input, pixels [224].
        pairs: Show what works where instead of sizes.
        json: Print JSON.

    Example:
        vireo models
        vireo models --pairs
        vireo models --filter mobilenet --temporal tei
        vireo models --temporal tei --backbone resnet50 --num-frames 8
    """
    from vireo.catalog import show_models, show_pairs

    if pairs:
        for name, value in (("--num-classes", num_classes), ("--size", size)):
            if value is not None:
                raise UsageError(f"{name} {value}: with --pairs no sizes are shown; leave it out")
        return show_pairs(text=filter, temporal=temporal, backbone=backbone, num_frames=num_frames, json=json)
    return show_models(
        text=filter,
        temporal=temporal,
        backbone=backbone,
        num_classes=400 if num_classes is None else num_classes,
        num_frames=num_frames,
        size=224 if size is None else size,
        json=json,
    )


def make_order(
    dir: Path,
    *,
    clips: int = 120,
    size: int = 96,
    seed: int = 0,
    pairs: tuple[str, ...] = ("push", "rise", "approach", "open", "turn", "put"),
    val_fraction: float = 0.15,
    test_fraction: float = 0.25,
    workers: int = -1,
    json: bool = False,
) -> int:
    """Render the benchmark of actions that differ only in the order of their frames.

    Args:
        dir: Folder for videos/, order.csv and order.json. Made if missing.
        clips: Number of clips, even: each scene gives two, one the reverse of the other.
        size: Height and width of the videos, pixels, even.
        seed: Seed of everything random.
        pairs: Pairs of actions.
        val_fraction: Share of each pair's scenes in the split val; 0 = none.
        test_fraction: Share of each pair's scenes in the split test; 0 = none.
        workers: Processes that render; -1 = one per core, 0 = none but this one.
        json: Print JSON.

    Example:
        vireo data make order data/order --clips 480 --size 96
        vireo train --data data/order/order.csv --out runs/order
    """
    from vireo import progress
    from vireo.data.order import OrderConfig
    from vireo.data.order import make_order as render

    config = OrderConfig(
        clips=clips, size=size, seed=seed, pairs=pairs, val_fraction=val_fraction, test_fraction=test_fraction
    )
    with progress.bar("render", clips) as advance:
        try:
            path = render(dir, config, progress=advance.reach, workers=workers)
        except KeyboardInterrupt:
            advance.errors.print(
                f"{dir} holds {advance.done} of {clips} clips; the same command again completes the set",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            raise
    if json:
        print(jsonlib.dumps({"csv": str(path), **asdict(config)}, ensure_ascii=False))
    else:
        say(f"{clips} clips of {2 * len(pairs)} actions: {path}")
        say(f"next: vireo train --data {path} --out runs/order", style="dim")
    return 0


def check_data(
    data: str,
    *,
    out: Path | None = None,
    workers: int = -1,
    timeout: float = 300.0,
    num_frames: int = 8,
    modality: Literal["auto", "rgb", "flow"] = "auto",
    json: bool = False,
) -> int:
    """Examine a data set: every file decoded, duplicates found, labels compared. Nothing in it is changed.

    Finds files that are damaged, too short, rotated, of varying frame rate or slow to seek in; clips that occur
    twice, above all in two splits; labels that are misspelt, rare or empty. Writes check.json and check.html
    (check-FORMAT.json and .html of FORMAT:PATH).
    What is checked is kept: the same command again goes on where it stopped. Exit code 1 if something must be mended.

    Args:
        data: A folder with one subfolder per class, a CSV, or FORMAT:PATH, as in train.
        out: Folder for the results [NAME.check in the current folder, or NAME-2.check if that is another data set's].
        workers: Processes that decode; -1 = one per core, at most 8; 0 = none.
        timeout: Seconds after which a file's decoder is taken for stuck; 0 = none.
        num_frames: T of the models to come: clips with fewer frames are named.
        modality: What the clips are, videos or optical flow; auto = flow where nothing else is there.
        json: Print JSON.

    Example:
        vireo data check clips/
        vireo data check flow/flow.csv
        vireo data check ssv2:/data/ssv2 --out ssv2.check --workers 16
    """
    existing_data(data)
    from vireo.data.doctor import check_command

    return check_command(
        data, out, workers=workers, timeout=timeout, num_frames=num_frames, modality=modality, json=json
    )


def optimize_data(
    data: str,
    *,
    out: Path,
    short_side: int = 256,
    gop: int = 12,
    crf: int = 18,
    workers: int = -1,
    timeout: float = 600.0,
    json: bool = False,
) -> int:
    """Re-encode a data set for fast reading: H.264 with short groups of pictures, at a small size, without sound.

    Keeps every frame and its time. Writes the videos and clips.csv to a new folder and says how large and how fast
    both sets are. The same command again does what is left.

    Args:
        data: A folder with one subfolder per class, a CSV, or FORMAT:PATH, as in train.
        out: Folder for the new set, outside the old one.
        short_side: Short side of the new videos, pixels; smaller ones keep their size; 0 = all keep theirs.
        gop: Frames from one keyframe to the next.
        crf: x264's quality: 18 looks like the original, 23 is about half as large.
        workers: Processes that encode; -1 = one per core, at most 8; 0 = none.
        timeout: Seconds after which a file is given up; 0 = none.
        json: Print JSON.

    Example:
        vireo data optimize clips/ --out clips-fast
        vireo data optimize kinetics400:/data/k400 --out /fast/k400 --short-side 256 --gop 12
    """
    existing_data(data)
    from vireo.data.optimize import optimize_command

    return optimize_command(
        data, out, short_side=short_side, gop=gop, crf=crf, workers=workers, timeout=timeout, json=json
    )


def flow(
    data: str,
    *,
    out: Path,
    method: Literal["tvl1", "dis"] = "tvl1",
    short_side: int = 256,
    quality: int = 90,
    workers: int = -1,
    timeout: float = 300.0,
    json: bool = False,
) -> int:
    """Compute the optical flow of a data set's videos, for models with --modality flow. Needs OpenCV.

    Writes a folder of JPEGs per clip and flow.csv, which train takes. The same command again does what is left.

    Args:
        data: Videos or folders of frames: a folder with one subfolder per class, a CSV, or FORMAT:PATH, as in train.
        out: Folder for the flow, outside the data.
        method: tvl1, as TSN used it, about a second per frame; dis, a hundred times as fast and a little coarser.
        short_side: Short side to which frames are resized first, pixels; flow is in pixels of that size. 0 = none.
        quality: JPEG quality, 1 to 100.
        workers: Processes; -1 = one per core, at most 8; 0 = none.
        timeout: Seconds without a new frame after which a clip is given up; 0 = none.
        json: Print JSON.

    Example:
        vireo flow clips/ --out clips-flow --method dis
        vireo flow ucf101:/data/ucf101 --out /data/ucf101-flow --method dis --workers 16
        vireo train --data clips-flow/flow.csv --modality flow --out runs/flow
    """
    existing_data(data)
    from vireo.data.extract import flow_command

    return flow_command(
        data, out, method=method, short_side=short_side, quality=quality, workers=workers, timeout=timeout, json=json
    )


def train(config: TrainConfig, *, seeds: tuple[int, ...] = (), json: bool = False) -> int:
    """Train a model on a folder of clips, one subfolder per class, or on a CSV.

    Only --data and --out are needed. Ctrl-C saves and says how to go on. The run's folder gets
    best.safetensors, which is all that eval and predict need, and config.yaml, which --config takes.

    With --recipe NAME the defaults are those of a paper on a data set; a file of --config, then the options
    given, override them one by one. --print-config shows what comes out.

    Args:
        config: Every field is an option.
        seeds: Train a run for each of these seeds into OUT/seed-N, one after another, and print mean ± deviation.
        json: Print the result as JSON on stdout, everything else on stderr.

    Example:
        vireo train --data clips/ --out runs/gestures
        vireo train --data clips.csv --out runs/tsm --temporal tsm --backbone resnet18 --scales 1,0.875
        vireo train --data clips/ --out runs/late --temporal-options.stages 4,5
        vireo train --config runs/gestures/config.yaml --out runs/again --seed 1
        vireo train --recipe teinet-ssv1-8f --data ssv1:data/ssv1 --out runs/teinet --batch-size 32
        vireo train --data clips/ --out runs/three --seeds 0,1,2
    """
    from vireo.progress import make_console
    from vireo.run_files import check_folder

    existing_data(config.data)
    if config.init and not config.resume:
        existing(Path(config.init))
    if config.teacher:
        existing(Path(config.teacher))
    if seeds:
        from vireo.sweep import train_seeds_command

        return train_seeds_command(config, seeds, json=json)
    check_folder(Path(config.out), resume=config.resume)
    from vireo.train import train

    result = train(config, console=make_console(stderr=json))
    if json:
        print(jsonlib.dumps(asdict(result), default=str, ensure_ascii=False))
    return 130 if result.interrupted else 0


def compare_runs(runs: list[Path], *, out: Path | None = None, json: bool = False) -> int:
    """Compare training runs: the settings that differ, and the accuracies. Seeds are summed up as mean ± deviation.

    Takes every run in the folders, at any depth. Unfinished and broken runs are shown as such; runs on other clips
    are called not comparable.

    Args:
        runs: Folders of runs, or folders that hold such.
        out: Folder for compare.csv, compare.md and compare.png.
        json: Print JSON.

    Example:
        vireo compare-runs runs/
        vireo compare-runs runs/tsm runs/tei --out runs/compared
    """
    from vireo.compare_runs import compare_command

    return compare_command(runs, out=out, json=json)


def recipes(json: bool = False) -> int:
    """List the training recipes: one per paper and data set, as the paper trained.

    Args:
        json: Print JSON.

    Example:
        vireo recipes
        vireo train --recipe teinet-ssv1-8f --data ssv1:/data/ssv1 --out runs/teinet
    """
    from vireo.recipes import recipes_command

    return recipes_command(json=json)


def evaluate(
    checkpoints: list[Path],
    *,
    data: str,
    out: Path | None = None,
    split: str = "auto",
    protocol: str = "",
    views: Literal["auto", "center", "3crop", "5crop", "10crop", "full", "squeezed"] = "auto",
    clips: int = 0,
    sampling: Literal["auto", "segment", "dense"] = "auto",
    average: Literal["logits", "probabilities"] = "logits",
    shuffle_frames: int = 0,
    reverse_frames: bool = False,
    single_frame: bool = False,
    batch_size: int = 8,
    workers: int = -1,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    decoder: Literal["auto", "pyav", "torchcodec"] = "auto",
    decode: Literal["exact", "keyframe"] = "exact",
    on_error: Literal["skip", "fail"] = "skip",
    max_failed: str = "10%",
    decode_timeout: float = 60.0,
    json: bool = False,
) -> int:
    """Score a checkpoint on labelled clips: top-1, top-5, mean-class accuracy, calibration, confusion matrix.

    Clips that can't be read are counted and named, never replaced. The test sets of Something-Something and Jester
    have no labels: --split test writes the file of answers that their server takes.

    Three checkpoints, trained on the three splits of UCF101 or HMDB51, give the mean of the splits.

    Args:
        checkpoints: A file that train wrote; or one for each split of the data, in their order.
        data: A folder with one subfolder per class, a CSV, or FORMAT:PATH, as in train. With several checkpoints
            ucf101:PATH or hmdb51:PATH, or any data with {} in place of the split's number.
        out: Folder for the results [NAME.eval/ beside the checkpoint NAME.safetensors].
        split: train, val, test or all. auto: the test part if there is one, else what training set aside, else all.
        protocol: How often each video is looked at: 1x1-center, tefe, twice, 2x3-full, 10x3, or any other
            CLIPSxCROPS[-full][-dense] [the checkpoint's].
        views: Pictures of a clip whose scores are averaged: crops, whole frames. auto: what the protocol says.
        clips: Clips of a video whose scores are averaged; 0: as many as the protocol says.
        sampling: Where a clip's frames are from: all of the video, or a window. auto: what the protocol says.
        average: What is averaged over clips and views: scores before softmax, or after it.
        shuffle_frames: Also score with the frames of each clip in random order, this many times: what is lost comes
            from the order of frames.
        reverse_frames: Also score with the frames of each clip in reverse.
        single_frame: Also score with the middle frame of each clip in place of all its frames.
        batch_size: Clips per step.
        workers: Processes that decode; -1 = one per core, at most 8; 0 = none.
        seed: Seed of permutations and of bootstrap intervals.
        device: auto, cpu, cuda, cuda:1, mps.
        devices: Devices of each machine that share the clips, a process each; torchrun and srun must start as many.
        num_nodes: Machines that share the clips.
        decoder: auto: PyAV, the faster one; torchcodec: TorchCodec for the videos of which both give the same frames.
        decode: exact: the frames that decoding the whole video gives; keyframe: the keyframes nearest to them.
        on_error: What a clip that can't be read does. skip: it is counted and named; fail: it ends the evaluation.
        max_failed: Most clips that may fail: a share such as 1%, then two always may, or a number.
        decode_timeout: Seconds after which the process that decodes a clip is replaced; 0 = none.
        json: Print JSON.

    Example:
        vireo eval runs/gestures/best.safetensors --data clips/
        vireo eval runs/gestures/best.safetensors --data clips/ --shuffle-frames 10 --reverse-frames --single-frame
        vireo eval runs/teinet/best.safetensors --data ssv1:data/ssv1 --protocol 10x3
        vireo eval s1.safetensors s2.safetensors s3.safetensors --data ucf101:/data/ucf101
        torchrun --nproc-per-node 4 -m vireo eval best.safetensors --data clips/ --devices 4
    """
    for path in checkpoints:
        existing(path)
    if "{}" not in data:
        existing_data(data)
    from vireo.evaluate import evaluate_command

    return evaluate_command(
        checkpoints,
        data,
        out=out,
        split=split,
        protocol=protocol,
        views=views,
        clips=clips,
        sampling=sampling,
        average=average,
        shuffle_frames=shuffle_frames,
        reverse_frames=reverse_frames,
        single_frame=single_frame,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        device=device,
        devices=devices,
        num_nodes=num_nodes,
        read=ReadConfig(
            decoder=decoder,
            decode=decode,
            on_error=on_error,
            max_failed=max_failed,
            decode_timeout=decode_timeout,
        ),
        json=json,
    )


def fuse(
    scores: list[Path],
    *,
    weights: tuple[float, ...] = (),
    average: Literal["logits", "probabilities"] = "logits",
    data: str = "",
    flow_data: str = "",
    split: str = "auto",
    protocol: str = "",
    batch_size: int = 8,
    workers: int = -1,
    device: str = "auto",
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Add up the scores of models that saw the same clips: RGB and flow, or 8 and 16 frames.

    Each clip's class scores, before softmax, are summed with the weights. Prints the accuracy of every model
    and of all together, on the clips that all have scores of, and which weights were used. Models are given as
    the scores that eval wrote, or as checkpoints, which are scored first.

    Args:
        scores: Folders that eval wrote, scores.csv or scores.parquet files, and checkpoints, two or more in all. Clips
            are matched by name.
        weights: One per model, in their order [one RGB and one flow model: 1 and 1.5, as in TSN; otherwise
            all 1].
        average: What is added: scores before softmax, or after it.
        data: Clips for the checkpoints, as in eval.
        flow_data: Clips of flow, for checkpoints of flow.
        split: Of these clips, as in eval.
        protocol: For the checkpoints, as in eval.
        batch_size: Clips per step.
        workers: Processes that decode; -1 = one per core, at most 8; 0 = none.
        device: auto, cpu, cuda, cuda:1, mps.
        out: Folder for the evaluation of the sum, with its own scores.csv.
        json: Print JSON.

    Example:
        vireo eval runs/rgb/best.safetensors --data clips/
        vireo eval runs/flow/best.safetensors --data flow/
        vireo fuse runs/rgb/best.eval runs/flow/best.eval
        vireo fuse runs/rgb/best.eval runs/flow/best.eval --weights 1,1
        vireo fuse runs/8f/best.safetensors runs/16f/best.safetensors --data clips/
    """
    for path in scores:
        existing(path)
    for clips in (data, flow_data):
        existing_data(clips)
    from vireo.fuse import fuse_command

    return fuse_command(
        scores,
        weights=weights,
        average=average,
        data=data,
        flow_data=flow_data,
        split=split,
        protocol=protocol,
        batch_size=batch_size,
        workers=workers,
        device=device,
        out=out,
        json=json,
    )


def compare(
    a: Path,
    b: Path,
    *,
    data: str = "",
    out: Path | None = None,
    min_points: float = 0.0,
    most: int = 12,
    examples: int = 2,
    seed: int = 0,
    workers: int = 1,
    json: bool = False,
) -> int:
    """Compare two models on the same clips: is one better, or is it chance, and at which classes.

    Prints both accuracies on the clips that both scored, McNemar's test and a 95 % interval of the difference (B minus
    A), and the classes that gain and lose most. With --out it writes compare.json, classes.csv and gains.png; with
    --data too, examples.png: frames of clips that one model has right and the other wrong.

    Args:
        a: The model before: a folder that eval wrote, or a scores.csv or scores.parquet file.
        b: The model after, likewise. Clips are matched by name.
        data: The clips, as in eval, for pictures of examples.
        out: Folder for the results.
        min_points: Show all classes that change by at least so many points, in place of those that change most.
        most: Classes that gain, and classes that lose, to show.
        examples: Clips to show of each kind: right by A only, right by B only, wrong by both.
        seed: Seed of the interval's draws.
        workers: Processes that decode the examples; 0 = none.
        json: Print JSON.

    Example:
        vireo compare runs/tsn/best.eval runs/tei/best.eval
        vireo compare runs/tsn/best.eval runs/tei/best.eval --out compared --data clips/ --min-points 6
    """
    for path in (a, b):
        existing(path)
    existing_data(data)
    from vireo.compare import compare_command

    return compare_command(
        a,
        b,
        data=data,
        out=out,
        min_points=min_points,
        most=most,
        examples=examples,
        seed=seed,
        workers=workers,
        json=json,
    )


def write_report(run: Path, *, out: Path | None = None, data: str = "", workers: int = 1) -> int:
    """Write one HTML page about a run: accuracy with intervals, curves, confusion, classes, order of frames, failures.

    The page holds everything it needs, opens without a network, and has pictures of the clips that the most confused
    classes lose, where the clips can be reached. It shows the evaluations that lie in the run's folder.

    Args:
        run: Folder of a run that train wrote, or of one evaluation.
        out: The page [report.html in the folder]. An earlier page is replaced, no other file.
        data: The clips, as in eval, for the pictures [those that the run names].
        workers: Processes that decode the pictures; 0 = none.

    Example:
        vireo eval runs/mine/best.safetensors --data clips/ --shuffle-frames 10 --reverse-frames --single-frame
        vireo report runs/mine
    """
    existing(run)
    from vireo.report import report_command

    return report_command(run, out=out, data=data, workers=workers)


def embed(
    checkpoint: Path,
    *,
    data: str,
    out: Path | None = None,
    split: Literal["all", "auto", "train", "val", "test"] = "all",
    protocol: str = "1x1-center",
    query: tuple[str, ...] = (),
    nearest: int = 5,
    map: Literal["pca", "tsne", "none"] = "pca",
    labels: tuple[str, ...] = (),
    precision: Literal["float32", "float16"] = "float32",
    fresh: bool = False,
    batch_size: int = 8,
    workers: int = -1,
    seed: int = 0,
    device: str = "auto",
    max_failed: str = "10%",
    decode_timeout: float = 60.0,
    json: bool = False,
) -> int:
    """Write the features of clips: what the classifier sees of them. Find clips near others, and draw a map of all.

    Writes features.npy (a row per clip), clips.csv (its name, label, split, path) and map.png. The clips may be of
    other classes than the model's. The same command again, with other queries, takes the features that are there.

    Args:
        checkpoint: A file that train wrote.
        data: A folder with one subfolder per class, a CSV, or FORMAT:PATH, as in train.
        out: Folder for the results [NAME.embed/ beside the checkpoint NAME.safetensors].
        split: Of the clips, as in eval.
        protocol: How often each video is looked at, as in eval; its features are the mean.
        query: Clips whose nearest ones are wanted: names as in clips.csv, or files, in the data or not.
        nearest: How many of them.
        map: pca: directions of largest variance; tsne: near clips stay near, needs scikit-learn, takes minutes.
        labels: Classes in colour on the map, at most 12 [those with the most clips].
        precision: Of the features in the file.
        fresh: Embed again what is there already.
        batch_size: Clips per step.
        workers: Processes that decode; -1 = one per core, at most 8; 0 = none.
        seed: Seed of t-SNE, and of what is drawn on maps of more than 20,000 clips.
        device: auto, cpu, cuda, cuda:1, mps.
        max_failed: Most clips that may fail: a share such as 1%, then two always may, or a number.
        decode_timeout: Seconds after which the process that decodes a clip is replaced; 0 = none.
        json: Print JSON.

    Example:
        vireo embed runs/gestures/best.safetensors --data clips/
        vireo embed runs/gestures/best.safetensors --data clips/ --query wave/anna_3,new.mp4 --nearest 8
        vireo embed runs/gestures/best.safetensors --data clips/ --map tsne --labels wave,clap
    """
    existing(checkpoint)
    existing_data(data)
    from vireo.embed import embed_command

    return embed_command(
        checkpoint,
        data,
        out=out,
        split=split,
        protocol=protocol,
        query=query,
        nearest=nearest,
        map=map,
        labels=labels,
        precision=precision,
        fresh=fresh,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        device=device,
        read=ReadConfig(max_failed=max_failed, decode_timeout=decode_timeout),
        json=json,
    )


def predict(
    checkpoint: Path,
    inputs: list[str],
    *,
    top_k: int = 5,
    window: float | None = None,
    every: float | None = None,
    smooth: float | None = None,
    threshold: float | None = None,
    write: tuple[Literal["json", "csv", "srt", "mp4"], ...] = (),
    out: Path | None = None,
    limit: float | None = None,
    latency: float = 0.5,
    retry: float = 60.0,
    device: str = "auto",
    workers: int = -1,
    decode_timeout: float = 60.0,
    json: bool = False,
) -> int:
    """Say what happens in videos, live ones too, or in clips of optical flow. The checkpoint carries all it needs.

    A video gets one answer. With any of --window, --every, --smooth, --threshold, --write, --out and --limit, and for
    a live source, it gets a timeline: a window slides over it, and what it shows is said of every moment.

    Args:
        checkpoint: A file that train wrote.
        inputs: Videos, folders of numbered frames, and folders whose videos are taken at any depth. For a model of
            flow: folders of flow images, .npy arrays, and folders that hold such clips. Or one live source: camera:0,
            a URL (rtsp, rtsps, http, https), pipe:PATH.
        top_k: How many classes to show.
        window: Length of the windows, s [dense sampling: as trained; else 3].
        every: Time from one window to the next, s [window / 4].
        smooth: Scores of windows nearer than this to a moment count for it, s; 0 = the nearest only [window / 2].
        threshold: Probability below which a moment shows none of these [0].
        write: Files to write for each video: json (lines), csv, srt (subtitles), mp4 (labels drawn on it).
        out: Folder for these, or one such file for one video [current folder].
        limit: Seconds of each video after which it ends [all].
        latency: Live: age of frames above which they are dropped, s.
        retry: Live: how long a source that vanished is tried again, s.
        device: auto, cpu, cuda, cuda:1, mps.
        workers: Processes that decode where a video gets one answer; -1 = one per core, at most 8; 0 = none.
        decode_timeout: Seconds after which the process that decodes a file is replaced; 0 = none. A timeline has no
            such process: its video is decoded in order, while the windows are scored.
        json: Print one JSON object per line: for each video, or for each window and segment.

    Example:
        vireo predict runs/gestures/best.safetensors clip.mp4
        vireo predict runs/gestures/best.safetensors videos/ --top-k 1 --json
        vireo predict runs/gestures/best.safetensors match.mp4 --window 2 --threshold 0.5 --write srt,mp4
        vireo predict runs/gestures/best.safetensors camera:0 --latency 0.3 --json
        vireo predict runs/flow/best.safetensors flow/wave/anna_3 flow/wave/ben_1.npy
    """
    existing(checkpoint)
    from vireo.predict import predict_command

    return predict_command(
        checkpoint,
        inputs,
        top_k=top_k,
        window=window,
        every=every,
        smooth=smooth,
        threshold=threshold,
        write=write,
        out=out,
        limit=limit,
        latency=latency,
        retry=retry,
        device=device,
        workers=workers,
        decode_timeout=decode_timeout,
        json=json,
    )


def explain(
    checkpoint: Path,
    inputs: list[Path],
    *,
    against: Path | None = None,
    out: Path | None = None,
    target: str | None = None,
    what: tuple[str, ...] = (),
    method: Literal["gradcam", "gradcam++", "hirescam"] = "gradcam",
    layer: str | None = None,
    device: str = "auto",
    decode_timeout: float = 60.0,
    json: bool = False,
) -> int:
    """Draw what a model sees in videos, and what its answer rests on. The checkpoint carries all that this needs.

    Writes a folder of pictures per video: heat maps as a strip and as an MP4 beside the input, which frames the answer
    needs, and what the model's modules do: gates, key points and their shifts, features before and after subtraction.

    Args:
        checkpoint: A file that train wrote.
        inputs: What predict takes: videos, folders of frames, and folders that hold some.
        against: Another checkpoint, to stand beside the first; it may see other frames of another size.
        out: Folder for the pictures [NAME.explain/ beside the checkpoint NAME.safetensors].
        target: Class whose evidence is shown [the most probable one of each video].
        what: Any of heat, occlusion, keypoints (kpsem), gates (mem, tei, se_tim, te, tefe, twm, stw), features
            (tfdem) [all that the model has].
        method: Of the heat maps; hirescam is the sharpest with an early --layer.
        layer: Layer of the backbone whose output the heat maps show, e.g. layer3; earlier ones are finer [the last].
        device: auto, cpu, cuda, cuda:1, mps.
        decode_timeout: Seconds after which the process that decodes a file is replaced; 0 = none.
        json: Print one JSON object per video and line.

    Example:
        vireo explain runs/gestures/best.safetensors clip.mp4
        vireo explain runs/tei/best.safetensors videos/ --against runs/tsn/best.safetensors --out pictures
        vireo explain runs/gestures/best.safetensors clip.mp4 --target wave --what heat,occlusion --layer layer3
    """
    for path in (checkpoint, *([against] if against is not None else [])):
        existing(path)
    from vireo.explain.command import explain_command

    return explain_command(
        checkpoint,
        inputs,
        against=against,
        out=out,
        target=target,
        what=what,
        method=method,
        layer=layer,
        device=device,
        decode_timeout=decode_timeout,
        json=json,
    )


def prune(
    checkpoint: Path,
    *,
    out: Path,
    ratio_in: float = 0.1,
    ratio_out: float = 0.1,
    device: str = "auto",
    json: bool = False,
) -> int:
    """Make a checkpoint of a shifted network smaller: fewer parameters, fewer MACs, less time.

    In every layer behind a temporal shift (tsm, mstsm, mstsm_tfdem), kernels nearest to the geometric median
    are dropped, and input channels made by such kernels are averaged into one (Wu and Chiu, 2021). Fine-tune
    the result with `vireo train --init`.

    Args:
        checkpoint: A file that train wrote.
        out: The smaller checkpoint to write, a .safetensors file that isn't there yet; its folder is made if missing.
        ratio_in: Share of each layer's input channels that become one.
        ratio_out: Share of each layer's kernels that are dropped.
        device: Where time is measured: auto, cpu, cuda, cuda:1, mps.
        json: Print JSON.

    Example:
        vireo prune runs/ucf/best.safetensors --out runs/ucf/small.safetensors
        vireo train --init runs/ucf/small.safetensors --data clips/ --out runs/ucf-small --lr 0.0001
    """
    existing(checkpoint)
    from vireo.prune import prune_command

    return prune_command(checkpoint, out, ratio_in=ratio_in, ratio_out=ratio_out, device=device, json=json)


def convert(
    source: Path,
    *,
    out: Path,
    labels: Path | None = None,
    temporal: Literal["auto", "tsn", "tsm"] = "auto",
    backbone: str = "auto",
    num_frames: int | None = None,
    fold_div: int = 8,
    stride_in_1x1: bool = False,
    size: int = 224,
    short_side: int = 0,
    sampling: Literal["segment", "dense"] = "segment",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    weights_only: bool = False,
    json: bool = False,
) -> int:
    """Turn a public checkpoint of another project into one of Vireo's.

    Knows TSN and TSM of mit-han-lab and MMAction2, MFNet-3D, and the image models of torchvision and timm, by the
    names of their tensors. A video classifier becomes a checkpoint (its labels come from --labels), an image model
    a weights file for --pretrained. No code in the file is run.

    Args:
        source: A .pth, .pt, .pth.tar, .bin or .safetensors file.
        out: The .safetensors file to write.
        labels: Text file with the names of the classes, one per line, in the classifier's order.
        temporal: tsn or tsm; auto: what the names show.
        backbone: Backbone's name; auto: what names and shapes show.
        num_frames: T, frames per clip [8; MFNet-3D: 16].
        fold_div: Of tsm: one part in fold_div of the channels is shifted each way.
        stride_in_1x1: The stages' stride is in the 1×1 convolution (weights from Caffe).
        size: Height and width of the model's input, pixels.
        short_side: Short side of frames before the crop, pixels; 0 = size × 256/224.
        sampling: segment or dense.
        mean: Channel means of the input, of [0, 1] [the project's].
        std: Channel deviations, likewise.
        weights_only: Write the backbone's weights alone.
        json: Print JSON.

    Example:
        vireo convert TSM_kinetics.pth --out tsm.safetensors --labels kinetics400.txt --sampling dense
        vireo convert resnet50.pth --out resnet50.safetensors
    """
    existing(source)
    from vireo.convert import convert_command

    return convert_command(
        source,
        out,
        labels=labels,
        temporal=temporal,
        backbone=backbone,
        num_frames=num_frames,
        fold_div=fold_div,
        stride_in_1x1=stride_in_1x1,
        size=size,
        short_side=short_side,
        sampling=sampling,
        mean=mean,
        std=std,
        weights_only=weights_only,
        json=json,
    )


def bench_complexity(
    temporal: str | None = None,
    backbone: str | None = None,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    num_frames: int | None = None,
    size: tuple[int, ...] = (),
    modality: Literal["rgb", "flow"] | None = None,
    flow_fields: int | None = None,
    options: dict[str, Any] = {},  # noqa: B006  # read, never written
    backbone_options: dict[str, Any] = {},  # noqa: B006
    json: bool = False,
) -> int:
    """Count parameters and multiply-accumulates of a network, part by part.

    Args:
        temporal: Temporal module, or several joined by + [tei].
        backbone: Backbone [resnet50].
        checkpoint: Count this one's network instead; no other option but --size describes the network then.
        num_classes: Classes [400].
        num_frames: T, frames per clip [8].
        size: Height and width of the input, pixels, or one number for both [224; the checkpoint's].
        modality: rgb, or flow for stacked optical flow [rgb].
        flow_fields: Flow fields stacked at each of the T positions [5].
        options: Options of the temporal module, e.g. --options.stages 4,5.
        backbone_options: Options of the backbone.
        json: Print JSON.

    Example:
        vireo bench complexity --temporal tefe --backbone resnet50 --size 224,256
        vireo bench complexity --temporal tsm+tfdem --num-classes 101
        vireo bench complexity --checkpoint runs/gestures/best.safetensors
    """
    if checkpoint is not None:
        existing(checkpoint)
    from vireo.bench import complexity_command

    return complexity_command(
        temporal=temporal,
        backbone=backbone,
        checkpoint=checkpoint,
        num_classes=num_classes,
        num_frames=num_frames,
        size=height_and_width(size),
        modality=modality,
        flow_fields=flow_fields,
        options=options,
        backbone_options=backbone_options,
        json=json,
    )


def bench_papers(json: bool = False) -> int:
    """Print the five papers' published parameters and GFLOPs beside ours, and their accuracies.

    Args:
        json: Print JSON.

    Example:
        vireo bench papers
    """
    from vireo.bench import papers_command

    return papers_command(json=json)


def bench_speed(
    temporal: str | None = None,
    backbone: str | None = None,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    num_frames: int | None = None,
    size: tuple[int, ...] = (),
    modality: Literal["rgb", "flow"] | None = None,
    flow_fields: int | None = None,
    batch_sizes: tuple[int, ...] = (1, 16),
    device: str = "auto",
    precision: Literal["float32", "bf16"] = "float32",
    compile: bool = False,
    repeats: int = 20,
    options: dict[str, Any] = {},  # noqa: B006
    backbone_options: dict[str, Any] = {},  # noqa: B006
    json: bool = False,
) -> int:
    """Time a network: latency at batch 1 and videos per second at batch 16, in turns with TSN.

    What Table 2 of the TEINet paper measures; loading is left out.

    Args:
        temporal: Temporal module, or several joined by + [tei].
        backbone: Backbone [resnet50].
        checkpoint: Time this one's network instead; no other option but --size describes the network then.
        num_classes: Classes [400].
        num_frames: T, frames per clip [8].
        size: Height and width of the input, pixels, or one number for both [224; the checkpoint's].
        modality: rgb, or flow for stacked optical flow [rgb].
        flow_fields: Flow fields stacked at each of the T positions [5].
        batch_sizes: Clips per batch.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: float32, or bf16 for autocast.
        compile: Compile the networks first.
        repeats: How often each network is timed.
        options: Options of the temporal module, e.g. --options.stages 4,5.
        backbone_options: Options of the backbone.
        json: Print JSON.

    Example:
        vireo bench speed --temporal tei --backbone resnet50
        vireo bench speed --checkpoint runs/gestures/best.safetensors --batch-sizes 1
    """
    if checkpoint is not None:
        existing(checkpoint)
    from vireo.bench import speed_command

    return speed_command(
        temporal=temporal,
        backbone=backbone,
        checkpoint=checkpoint,
        num_classes=num_classes,
        num_frames=num_frames,
        size=height_and_width(size),
        modality=modality,
        flow_fields=flow_fields,
        batch_sizes=batch_sizes,
        device=device,
        precision=precision,
        compile=compile,
        repeats=repeats,
        options=options,
        backbone_options=backbone_options,
        json=json,
    )


def height_and_width(size: tuple[int, ...]) -> tuple[int, int] | None:
    """One number for both, or two; none: None.

    Raises:
        UsageError: more numbers, or sizes below 1.
    """
    if not size:
        return None
    if len(size) > 2 or min(size) < 1:
        raise UsageError(f"--size is {','.join(map(str, size))}; it takes one number, or height,width, in pixels")
    return size[0], size[-1]


VERBS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "models": models,
    "data make order": make_order,
    "data check": check_data,
    "data optimize": optimize_data,
    "train": train,
    "compare-runs": compare_runs,
    "recipes": recipes,
    "eval": evaluate,
    "flow": flow,
    "fuse": fuse,
    "compare": compare,
    "report": write_report,
    "embed": embed,
    "predict": predict,
    "explain": explain,
    "prune": prune,
    "convert": convert,
    "bench complexity": bench_complexity,
    "bench papers": bench_papers,
    "bench speed": bench_speed,
}


EXAMPLES = (
    "vireo train --data clips/ --out runs/gestures",
    "vireo predict runs/gestures/best.safetensors clip.mp4",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None = the process's.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold bytes the terminal's encoding lacks
    args = list(sys.argv[1:] if argv is None else argv)
    options = args[: args.index("--")] if "--" in args else args
    debug = "--debug" in options
    if debug:
        args.remove("--debug")
    keep_memory()
    try:
        with sigterm_interrupts():
            code = run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # jsonargparse after --print-config; rich where a pipe is closed
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains again when it flushes at exit
        return 1
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return report(error)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what is half written goes, and it is said."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()  # elsewhere, whoever runs us handles signals
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run(args: list[str]) -> int:
    """Find the verb and run it with the arguments after its name."""
    words: list[str] = []
    while args and not args[0].startswith("-") and " ".join(words) not in VERBS:
        words.append(args.pop(0))
        if not under(words):
            raise UsageError(unknown_verb(words))
    name = " ".join(words)
    if name in VERBS:
        from vireo.parser import CommandLineError, Parser

        if name == "train" and len(both := {"--seed", "--seeds"} & {arg.partition("=")[0] for arg in args}) == 2:
            raise CommandLineError("vireo train", f"{' and '.join(sorted(both))} exclude each other; leave one out")
        return Parser.of(f"vireo {name}", VERBS[name]).call(args)
    if args and args[0] in ("--version", "-V") and not words:
        from vireo import __version__

        print(f"vireo {__version__}")
        return 0
    if args and args[0] not in ("-h", "--help"):
        raise UsageError(f"unknown option {args[0]}; `vireo {' '.join([*words, '--help'])}` lists what there is")
    show_verbs(words)
    return 0 if args or not words else 2


def under(words: Sequence[str]) -> list[str]:
    """The verbs whose names begin with these words."""
    return [name for name in VERBS if name.split()[: len(words)] == list(words)]


def unknown_verb(words: Sequence[str]) -> str:
    """What to say of a verb that doesn't exist."""
    from vireo.parser import nearest

    *before, wrong = words
    known = list(dict.fromkeys(name.split()[len(before)] for name in under(before)))
    near = nearest(wrong, known) or f"; there are {', '.join(known)}"
    return f"unknown command {' '.join(['vireo', *words])!r}{near}"


def show_verbs(words: Sequence[str]) -> None:
    """Help of the whole command line, or of the verbs that begin with these words."""
    from vireo.parser import print_grid

    show = Console(highlight=False)

    def section(title: str, rows: dict[str, str]) -> None:
        show.print(Text(f"\n{title}", "bold"))
        print_grid(show, [(Text(name, "cyan"), Text(about)) for name, about in rows.items()], column=17)

    show.print(Text.assemble(("usage: ", "bold"), " ".join(["vireo", *words, "COMMAND [options]"])))
    if not words:
        show.print("\nAction recognition in video: any temporal module on any 2D backbone.")
    section("Commands", {name: (VERBS[name].__doc__ or "").split("\n")[0] for name in under(words)})
    section(
        "Options",
        {
            "COMMAND --help": "What a command does, its options, and examples.",
            "--version": "The version.",
            "--debug": "With any command: show the traceback of an error.",
        },
    )
    show.print(Text("\nExamples" if not words else "\nExample", "bold"))
    for example in EXAMPLES if not words else [f"vireo {under(words)[0]} --help"]:
        show.print(Text(f"  {example}", "cyan"), soft_wrap=True)


def existing(path: Path) -> None:
    """Check, before anything heavy is imported, that what an argument names is there.

    Raises:
        UsageError: it is not.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist")


def existing_data(data: str) -> None:
    """Likewise for clips, given as PATH or FORMAT:PATH; "" stands for none. What is heavy knows the formats.

    Raises:
        UsageError: the path is not there.
    """
    path = data if os.path.lexists(data) else os.path.expanduser(re.sub(r"^[A-Za-z][\w.-]+:", "", data))
    if data and not os.path.exists(path):
        raise UsageError(f"{path} does not exist; give a folder with one subfolder per class, a CSV, or FORMAT:PATH")


def say(message: str, style: str = "") -> None:
    """Print a line on stdout as it is: no markup, no wrapping."""
    Console().print(message, style=style, markup=False, highlight=False, soft_wrap=True)


def complain(message: str, title: str = "error") -> None:
    """Print an error on stderr as it is: file names are not markup."""
    from vireo.progress import printable

    lines = "\n".join(map(printable, message.split("\n")))
    text = Text.assemble((f"{title}: ", "bold red"), lines)
    Console(stderr=True).print(text, soft_wrap=True)


def report(error: Exception) -> int:
    """Print an exception in a line or two; returns the exit code."""
    if isinstance(error, VireoError):
        complain(str(error), getattr(error, "prog", "error"))  # CommandLineError says whose arguments are wrong
        return error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        complain(f"{error.filename}: {error.strerror}")
        return 1
    first = str(error).strip().split("\n")[0]
    if type(error).__name__ == "OutOfMemoryError":
        complain(f"the GPU's memory is full ({first}). Try a smaller --batch-size or --size")
        return 1
    complain(f"{type(error).__name__}: {first} (run again with --debug for the traceback)", "internal error")
    return 1
