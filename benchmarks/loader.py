"""Clips per second into ready batches: Vireo's loader, torch's over the same clips, and TorchCodec with torchvision.

    python benchmarks/loader.py CLIPS --count 50 --workers 1 2

Every loader gives batches of 8 clips of 8 segment-sampled frames, uint8, 224²; all take turns in one process. Training
is a multi-scale crop and mirror images (torchvision: RandomResizedCrop and RandomHorizontalFlip), evaluation is the
short side to 256 and the centre crop. The loader of torchvision over TorchCodec is written as their documentation
shows: one decoder per clip with one FFmpeg thread, get_frames_at with the wanted indices, transforms v2 on uint8.

The rate is that of the median round, divided by the number of workers. The other column is clips per second of
processor time of all processes together, which a busy machine changes less. Passes before the first round fill the
cache of files and Vireo's index. TorchCodec needs FFmpeg's libraries where the linker finds them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from vireo.bench import describe_machine
from vireo.config import AugmentConfig, ViewConfig
from vireo.data.dataset import ClipDataset, EpochBatches, collate
from vireo.data.flips import flip_rule
from vireo.data.folders import VIDEO_EXTENSIONS
from vireo.data.loader import make_loader
from vireo.data.sampling import segment_indices
from vireo.data.table import ClipTable, StringColumn

BATCH, FRAMES, SIZE = 8, 8, 224


class DocumentedDataset(Dataset[Tensor]):
    """TorchCodec and torchvision, as their documentation shows."""

    def __init__(self, paths: list[str], training: bool, seek_mode: str) -> None:
        self.paths, self.training, self.seek_mode = paths, training, seek_mode
        shown = [v2.Resize(256), v2.CenterCrop(SIZE)]
        self.transform = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()] if training else shown)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(self.paths[index], num_ffmpeg_threads=1, seek_mode=self.seek_mode)
        rng = np.random.default_rng() if self.training else None
        indices = segment_indices(decoder.metadata.num_frames, FRAMES, rng)
        return self.transform(decoder.get_frames_at(indices.tolist()).data)


def table_of(paths: list[str]) -> ClipTable:
    n = len(paths)
    nothing = np.full(n, np.nan)
    return ClipTable(
        paths=StringColumn(paths),
        labels=np.zeros(n, dtype=np.int64),
        label_names=("clip",),
        starts=nothing,
        ends=nothing,
    )


def torch_loader(dataset: Any, workers: int, **options: Any) -> Iterable[Any]:
    return DataLoader(dataset, num_workers=workers, persistent_workers=True, multiprocessing_context="fork", **options)


def contestants(paths: list[str], workers: int, training: bool) -> dict[str, Callable[[int], Iterator[Tensor]]]:
    """By name: a function from the epoch to its batches."""
    table, view = table_of(paths), ViewConfig(size=SIZE)
    augment = AugmentConfig(scales=(1.0, 0.875, 0.75, 0.66)) if training else None
    dataset = ClipDataset(table, view, FRAMES, augment, flip_rule(table.label_names, "on"))

    def ours(epoch: int) -> Iterator[Tensor]:
        batches.set_epoch(epoch)
        return (batch.clips for batch in loader)

    def old(epoch: int) -> Iterator[Tensor]:
        old_batches.set_epoch(epoch)
        return (batch.clips for batch in old_loader)

    batches, old_batches = (EpochBatches(len(paths), BATCH, shuffle=training, seed=0) for _ in range(2))
    loader = make_loader(dataset, batches, workers, timeout=60)
    old_loader = torch_loader(dataset, workers, batch_sampler=old_batches, collate_fn=collate)
    found = {"Vireo": ours, "torch's DataLoader over Vireo's clips": old}
    try:
        import torchcodec  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        print(f"TorchCodec is left out: {str(error).splitlines()[0]}", file=sys.stderr)
        return found
    for mode in ("exact", "approximate"):
        documented = torch_loader(DocumentedDataset(paths, training, mode), workers, batch_size=BATCH, shuffle=training)
        found[f"TorchCodec ({mode}) + torchvision"] = lambda epoch, documented=documented: iter(documented)
    return found


def processor_seconds() -> float:
    """Time that this process and its children have spent on a processor."""
    ticks = 0
    for pid in [os.getpid(), *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]:
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def one_round(batches: Iterator[Tensor], count: int) -> tuple[float, float]:
    """Clips per second, of the clock and of processor time."""
    clock, processor, clips = time.perf_counter(), processor_seconds(), 0
    for batch in batches:
        if batch.shape[1:] != (FRAMES, 3, SIZE, SIZE) or batch.dtype != torch.uint8:
            raise SystemExit(f"a batch of {tuple(batch.shape)} {batch.dtype}")
        clips += len(batch)
    if clips != count:
        raise SystemExit(f"{clips} of {count} clips were read")
    return clips / (time.perf_counter() - clock), clips / (processor_seconds() - processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of videos, searched at any depth")
    parser.add_argument("--count", type=int, default=50, help="clips, evenly spaced among those found")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--passes", type=int, default=2, help="passes over the clips in a round")
    parser.add_argument("--only", choices=("training", "evaluation"))
    args = parser.parse_args()
    files = sorted(str(p) for p in args.clips.rglob("*") if p.suffix.lower() in VIDEO_EXTENSIONS and p.is_file())
    if not files:
        parser.error(f"{args.clips} holds no videos")
    paths = [files[i] for i in np.linspace(0, len(files) - 1, min(args.count, len(files))).astype(int)] * args.passes
    torch.set_num_threads(1)
    print(f"{describe_machine(torch.device('cpu'))}; {len(set(paths))} clips, {args.rounds} rounds\n")
    print("| | workers | loader | clips/s per worker | ratio | clips per processor second | ratio |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for training in (True, False):
        what = "training" if training else "evaluation"
        if args.only and args.only != what:
            continue
        for workers in args.workers:
            runs = contestants(paths, workers, training)
            for run in runs.values():
                one_round(run(0), len(paths))
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
            for epoch in range(1, args.rounds + 1):
                for name, run in runs.items():
                    rates[name].append(one_round(run(epoch), len(paths)))
            wall, processor = (
                {name: statistics.median(pair[k] for pair in pairs) for name, pairs in rates.items()} for k in (0, 1)
            )
            for name in runs:
                ratios = [values["Vireo"] / values[name] for values in (wall, processor)]
                print(
                    f"| {what} | {workers} | {name} | {wall[name] / workers:.1f} | {ratios[0]:.2f} "
                    f"| {processor[name]:.1f} | {ratios[1]:.2f} |",
                    flush=True,
                )
            del runs, run


if __name__ == "__main__":
    main()
