"""Say what happens in a video. A checkpoint carries all that this needs."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.text import Text
from torch import Tensor

from vireo import progress
from vireo.checkpoint import Checkpoint, load_checkpoint
from vireo.data.clips import read_clip
from vireo.data.dataset import ClipDataset, EpochBatches
from vireo.data.flow import is_flow_clip, read_flow
from vireo.data.folders import clips_below, clips_called
from vireo.data.frames import is_frame_folder
from vireo.data.loader import make_loader
from vireo.data.sampling import sample_indices
from vireo.data.table import ClipRecord, ClipTable
from vireo.data.transforms import eval_transform
from vireo.devices import choose_device
from vireo.errors import DataError, DecodeError, UsageError
from vireo.progress import printable
from vireo.stream.command import TimelineOptions, timeline_command
from vireo.stream.live import parse_source
from vireo.stream.writers import Format


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one video.

    Attributes:
        path: the video.
        label: the most probable class.
        probability: its softmax probability, in [0, 1].
        top: the most probable classes with their probabilities, best first.
    """

    path: str
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        top = [{"label": label, "probability": p} for label, p in self.top]
        return {"path": self.path, "label": self.label, "probability": self.probability, "top": top}


def predict(
    checkpoint: Checkpoint | str | Path, video: str | Path, *, top_k: int = 5, device: str = "auto"
) -> Prediction:
    """Classify one video file.

    Args:
        checkpoint: a file that `vireo train` wrote, or one already loaded (faster for many videos).
        video: any file FFmpeg reads; for a model of optical flow a folder of flow images, or a .npy array.
        top_k: how many classes `Prediction.top` holds.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        DecodeError: the video cannot be read.
        CheckpointError: not a checkpoint.
    """
    checkpoint, target = _ready(checkpoint, device)
    return classify(checkpoint, load_clip(checkpoint, video), str(video), top_k=top_k, device=target)


def predict_many(
    checkpoint: Checkpoint | str | Path,
    videos: Sequence[str | Path],
    *,
    top_k: int = 5,
    device: str = "auto",
    workers: int = -1,
    timeout: float = 60.0,
) -> Generator[Prediction | DecodeError]:
    """Classify many files, in order. A file that cannot be read yields its error; the rest go on.

    Args:
        checkpoint: a file that `vireo train` wrote, or one already loaded.
        videos: what `predict` takes.
        top_k: how many classes `Prediction.top` holds.
        device: ``auto``, ``cpu``, ``cuda``, ...
        workers: processes that decode, so that a file may crash a decoder; -1 = one per core, at most 8; 0 = none.
            For a single file there is none.
        timeout: seconds after which such a process is taken for stuck and its file for unreadable; 0 = none.
    """
    checkpoint, target = _ready(checkpoint, device)
    config, count = checkpoint.model.config, len(videos)
    fields = config.flow_fields if config.modality == "flow" else 0
    table = ClipTable.of_paths(map(str, videos))
    dataset = ClipDataset(table, checkpoint.view, config.num_frames, flow_fields=fields)
    batches = EpochBatches(count, batch_size=1, shuffle=False, seed=0)
    with closing(make_loader(dataset, batches, workers if count > 1 else 0, timeout=timeout)) as loader:
        for video, batch in zip(videos, loader, strict=True):
            if batch.failures:
                yield DecodeError(video, batch.failures[0].reason)
            else:
                yield classify(checkpoint, batch.clips[0], str(video), top_k=top_k, device=target)


def load_clip(checkpoint: Checkpoint, video: str | Path) -> Tensor:
    """A video, or a clip of flow, as the model's input, (T, C, S, S) uint8: the checkpoint's sampling and transform.

    Raises:
        DecodeError: the video cannot be read.
    """
    config = checkpoint.model.config
    view = checkpoint.view
    plan = partial(sample_indices, view.sampling, num_frames=config.num_frames, window=view.window)
    if config.modality == "flow":
        return eval_transform(read_flow(video, plan, fields=config.flow_fields), view)
    return eval_transform(read_clip(ClipRecord(str(video), 0, None, None), plan).data, view)


def classify(
    checkpoint: Checkpoint, clip: Tensor, path: str, *, top_k: int = 5, device: torch.device | str = "cpu"
) -> Prediction:
    """The prediction for one clip, (T, C, S, S) uint8."""
    if top_k < 1:
        raise UsageError(f"top_k is {top_k}; it must be at least 1")
    with torch.inference_mode():
        logits = checkpoint.model(clip[None].to(device))[0]
    return prediction_of(logits, checkpoint.labels, path, top_k=top_k)


def prediction_of(logits: Tensor, labels: Sequence[str], path: str, *, top_k: int = 5) -> Prediction:
    """The prediction that a clip's logits, (K,), are."""
    values, classes = logits.float().softmax(0).cpu().topk(min(top_k, len(labels)))
    top = tuple((labels[int(c)], float(p)) for c, p in zip(classes, values, strict=True))
    return Prediction(path=path, label=top[0][0], probability=top[0][1], top=top)


def _ready(checkpoint: Checkpoint | str | Path, device: str) -> tuple[Checkpoint, torch.device]:
    target = choose_device(device)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    checkpoint.model.to(target).eval()
    return checkpoint, target


def find_videos(inputs: Sequence[str | Path], modality: str = "rgb") -> list[Path]:
    """The files named, and the videos in the folders named, at any depth, in natural order.

    A folder of numbered frames is one clip; in others, hidden files and folders are left out, as in a data set. With
    ``modality="flow"`` a folder of flow images is one clip, and clips of flow are taken from other folders.

    Raises:
        UsageError: a path that does not exist.
        DataError: a folder without videos, or without clips of flow.
    """
    kind = "video files" if modality == "rgb" else clips_called(modality)
    is_clip = is_flow_clip if modality == "flow" else is_frame_folder
    found: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir() and not is_clip(item):
            inside, _ = clips_below(item, modality)
            if not inside:
                raise DataError(f"{item} holds no {kind}")
            found += map(Path, inside)
        elif item.exists():
            found.append(item)
        else:
            raise UsageError(f"{item} does not exist; give {clips_called(modality)}, or folders that hold some")
    return found


def predict_command(
    checkpoint: Path,
    inputs: Sequence[str | Path],
    *,
    top_k: int = 5,
    window: float | None = None,
    every: float | None = None,
    smooth: float | None = None,
    threshold: float | None = None,
    write: tuple[Format, ...] = (),
    out: Path | None = None,
    limit: float | None = None,
    latency: float = 0.5,
    retry: float = 60.0,
    device: str = "auto",
    workers: int = -1,
    decode_timeout: float = 60.0,
    json: bool = False,
) -> int:
    """What `vireo predict` does; exit code 1 if any file could not be read.

    With ``json`` every file is one line as soon as it is done: its prediction, or its path and error. With a live
    source, or any of the options of a timeline, see `timeline_command`.
    """
    sources = [item for item in inputs if parse_source(str(item))]
    options = None
    if sources or write or any(value is not None for value in (window, every, smooth, threshold, out, limit)):
        options = TimelineOptions(
            window=window,
            every=every,
            smooth=smooth,
            threshold=threshold or 0.0,
            write=write,
            out=out,
            limit=limit,
            latency=latency,
            retry=retry,
            top_k=top_k,
        )
    loaded, _ = _ready(checkpoint, device)
    files = [item for item in inputs if item not in sources]
    videos = find_videos(files, loaded.model.config.modality)
    if options is not None:
        return timeline_command(loaded, [*sources, *videos], options, device=device, json=json)
    failed = 0
    results = predict_many(loaded, videos, top_k=top_k, device=device, workers=workers, timeout=decode_timeout)
    with closing(results), progress.bar("predict", len(videos)) as advance:
        for video, result in zip(videos, results, strict=True):
            advance(1)
            if isinstance(result, DecodeError):
                failed += 1
                line: dict[str, Any] = {"path": str(video), "error": result.reason}
            else:
                line = result.as_dict()
            if json:
                advance.output.print(Text(jsonlib.dumps(line, ensure_ascii=False)), soft_wrap=True)
                advance.output.file.flush()
            elif isinstance(result, DecodeError):
                told = printable(f"  {video}: {result.reason}")
                advance.errors.print(Text.assemble(("failed", "red"), told), soft_wrap=True)
            else:
                print_prediction(result, advance.output)
    if failed and not json:
        print(f"{failed} of {len(videos)} files could not be read", file=sys.stderr)
    return 1 if failed else 0


def print_prediction(prediction: Prediction, console: Console) -> None:
    """The path, the label, and a bar for each of the most probable classes."""
    console.print(f"[bold]{escape(printable(prediction.path))}[/bold]", highlight=False, soft_wrap=True)
    width = max(len(label) for label, _ in prediction.top)
    for rank, (label, probability) in enumerate(prediction.top):
        style = "bold cyan" if rank == 0 else "dim"
        filled = "█" * round(24 * probability)
        console.print(
            f"  [{style}]{escape(printable(label).ljust(width))}  {100 * probability:5.1f} %  {filled}[/{style}]",
            highlight=False,
        )
