"""What `vireo explain` does."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.text import Text

from vireo import progress
from vireo.checkpoint import Checkpoint, load_checkpoint
from vireo.config import ModelConfig, ViewConfig
from vireo.data.outputs import shorter_names
from vireo.data.pool import Crash, map_in_processes
from vireo.devices import choose_device
from vireo.errors import DecodeError, UsageError
from vireo.explain.cam import Method
from vireo.explain.explanation import WHAT, Explanation, Seen, class_number, describe, explain, parts_of, read_seen
from vireo.explain.movie import heat_movie, write_mp4
from vireo.explain.pictures import features_png, gates_png, keypoints_png, strip_png
from vireo.plots import write_png
from vireo.predict import find_videos
from vireo.progress import printable

_Read = tuple[NDArray[np.uint8], tuple[int, ...], int]
"""A `Seen` on its way from another process."""


def explain_command(
    checkpoint: Path,
    inputs: list[Path],
    *,
    against: Path | None = None,
    out: Path | None = None,
    target: str | None = None,
    what: Sequence[str] = (),
    method: Method = "gradcam",
    layer: str | None = None,
    device: str = "auto",
    decode_timeout: float = 60.0,
    json: bool = False,
) -> int:
    """Draw pictures of what a model sees in videos, in a folder per video; exit code 1 if any could not be read.

    Args:
        checkpoint: of the model.
        inputs: what `vireo predict` takes.
        against: another checkpoint, to stand beside the first.
        out: folder for the pictures; None: NAME.explain beside the checkpoint NAME.safetensors.
        target: name of the class to explain; None: the most probable one of each video, by the first checkpoint.
        what: any of heat, occlusion, keypoints, gates, features; none: all that the models have.
        method: gradcam, gradcam++ or hirescam.
        layer: whose output the heat is of; None: the last one before the pooling.
        device: auto, cpu, cuda, ...
        decode_timeout: seconds after which the process that reads a video is replaced; 0 = none.
        json: print a JSON object per video.

    Raises:
        UsageError: wrong arguments, or models that see different things.
    """
    place = choose_device(device)
    paths = [checkpoint, *([against] if against is not None else [])]
    loaded = [load_checkpoint(path, device=place) for path in paths]
    parts = _parts(loaded, what)
    _check_alike(loaded, paths)
    for one in loaded:
        if target is not None:
            class_number(target, one.labels)
    names = _model_names(loaded, paths)
    videos = find_videos(inputs, loaded[0].model.config.modality)
    folder = out if out is not None else checkpoint.with_suffix(".explain")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; the pictures go to a folder")
    folders = _folders(videos, folder)
    failed, told = 0, set[str]()
    # One process reads ahead, so that a file may crash or keep busy a decoder.
    read = partial(_read, [(one.model.config, one.view) for one in loaded])
    reading = map_in_processes(read, map(str, videos), workers=1, timeout=decode_timeout)
    with progress.bar("explain", len(videos)) as advance:
        for number, found in reading:
            video, place_of = videos[number], folders[number]
            if isinstance(found, Crash):
                failed += 1
                if not json:
                    line = Text.assemble(("failed", "red"), printable(f"  {video}: {found.reason}"))
                    advance.errors.print(line, soft_wrap=True)
                record: dict[str, Any] = {"path": str(video), "error": found.reason}
            else:
                seen = [Seen(clip=torch.from_numpy(clip), positions=p, frame_count=count) for clip, p, count in found]
                both = _explain_all(loaded, names, video, seen, parts, target, method, layer, place)
                files = _draw(video.name, both, place_of)
                record = {"path": str(video), **both[0].as_dict(), "files": [str(file) for file in files]}
                if len(both) > 1:
                    record["against"] = both[1].as_dict()
                if not json:
                    _print(record, place_of, advance)
                    for reason in dict.fromkeys(e.no_heat for e in both if e.no_heat):
                        if reason not in told:
                            advance.errors.print(Text(printable(f"no heat maps: {reason}"), "yellow"), soft_wrap=True)
                        told.add(reason)
            if json:
                advance.output.print(Text(jsonlib.dumps(record, ensure_ascii=False)), soft_wrap=True)
                advance.output.file.flush()
            advance(1)
    if failed and not json:
        print(f"{failed} of {len(videos)} files could not be read", file=sys.stderr)
    return 1 if failed else 0


def _read(kinds: Sequence[tuple[ModelConfig, ViewConfig]], video: str) -> list[_Read] | Crash:
    """What each model sees of a video, or why it can't be read."""
    try:
        seen = [read_seen(config, view, video) for config, view in kinds]
    except DecodeError as error:
        return Crash(error.reason)
    return [(one.clip.numpy(), one.positions, one.frame_count) for one in seen]  # an array crosses the pipe by value


def _parts(loaded: Sequence[Checkpoint], what: Sequence[str]) -> list[tuple[str, ...] | None]:
    """What is looked at of each model; None: all that it has.

    Raises:
        UsageError: something that there isn't, or that none of them has.
    """
    has = [parts_of(one.model) for one in loaded]
    for part in what:
        if part not in WHAT:
            raise UsageError(f"--what {part}: use any of {', '.join(WHAT)}")
        if not any(part in there for there in has):
            models = " and ".join(dict.fromkeys(describe(one.model) for one in loaded))
            there = [p for p in WHAT if any(p in h for h in has)]
            raise UsageError(f"--what {part}: {models} has nothing of the kind; there is {', '.join(there)}")
    return [tuple(part for part in there if part in what) if what else None for there in has]


def _check_alike(loaded: Sequence[Checkpoint], paths: Sequence[Path]) -> None:
    kinds = [one.model.config.modality for one in loaded]
    if len(set(kinds)) > 1:
        raise UsageError(f"{paths[0]} is a model of {kinds[0]} and {paths[1]} one of {kinds[1]}; they see other clips")


def _model_names(loaded: Sequence[Checkpoint], paths: Sequence[Path]) -> list[str]:
    """The models in words; where two are of one kind, with their files."""
    names = [describe(one.model) for one in loaded]
    if len(names) == 2 and names[0] == names[1]:
        short = shorter_names([str(path) for path in paths])
        return [f"{name} ({Path(path).with_suffix('')})" for name, path in zip(names, short, strict=True)]
    return names


def _folders(videos: Sequence[Path], out: Path) -> list[Path]:
    """A folder for each video's pictures, called as the video; where that is not unique, as its path."""
    paths = [Path(name) for name in shorter_names([str(video) for video in videos])]
    for short in ([path.stem for path in paths], [str(path.with_suffix("")) for path in paths]):
        if len(set(short)) == len(short):
            return [out / name for name in short]
    return [out / path for path in paths]


def _explain_all(
    loaded: Sequence[Checkpoint],
    names: Sequence[str],
    video: Path,
    seen: Sequence[Seen],
    parts: Sequence[tuple[str, ...] | None],
    target: str | None,
    method: Method,
    layer: str | None,
    device: torch.device,
) -> list[Explanation]:
    """What each model sees; the second explains the first one's class, if it knows it."""
    found: list[Explanation] = []
    for one, name, what, frames in zip(loaded, names, parts, seen, strict=True):
        wanted = target or (found[0].target if found and found[0].target in one.labels else None)
        look: dict[str, Any] = {"what": what, "method": method, "layer": layer, "device": device}
        found.append(explain(one, video, target=wanted, name=name, seen=frames, **look))
    return found


def _draw(name: str, both: Sequence[Explanation], folder: Path) -> list[Path]:
    """Draw what there is; returns the files."""
    files: list[Path] = []
    if any(e.heat is not None or e.drops is not None for e in both):
        files.append(write_png(folder / "strip.png", strip_png(name, *both)))
    with_heat = [e for e in both if e.heat is not None]
    if with_heat:
        files.append(write_mp4(folder / "heat.mp4", heat_movie(name, with_heat)))
    pictures = {"key_points": keypoints_png, "gates": gates_png, "differences": features_png}
    for e, ending in zip(both, ("", "-against"), strict=False):
        kinds = {visual.rpartition(".")[2] for visual in e.visuals}
        for kind, draw in pictures.items():
            if kind in kinds:
                file = {"key_points": "keypoints", "differences": "features"}.get(kind, kind)
                files.append(write_png(folder / f"{file}{ending}.png", draw(name, e)))
    return files


def _print(record: dict[str, Any], folder: Path, advance: progress.Bar) -> None:
    top = record["prediction"][0]
    answer = printable(f"{top['label']} {100 * top['probability']:.1f} %")
    line = Text.assemble((printable(record["path"]), "bold"), "  ", (answer, "cyan"), printable(f"  → {folder}/"))
    advance.output.print(line, soft_wrap=True, highlight=False)
