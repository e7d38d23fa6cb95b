"""What a test protocol costs beside its parts: evaluation against its forward passes and one decoding of every video.

    python benchmarks/evaluate.py --backbone resnet50 --videos 2 --rounds 5
    python benchmarks/evaluate.py CLIPS --protocol 10x3-dense --backbone mobilenetv2_100

Three things take turns: `vireo.scoring.score_table` over the videos, everything included, in one process without
others that decode; the same number of forward passes, in the same batches, over clips that are ready; and reading from
every video, once, the frames that the protocol wants. Evaluation with processes that decode beside it takes turns, too.

The ratio is that of the sums of all rounds: evaluation / (forward passes + one decoding). It is 1 where cropping,
copying, averaging and book-keeping cost nothing, and 10 times the decoding or more where every clip were decoded on its
own. Without CLIPS, videos like those of Kinetics are made: 10 s of 340 × 256 at 30 frames per second, in a temporary
folder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch

from vireo.bench import describe_machine
from vireo.checkpoint import Checkpoint
from vireo.config import ViewConfig
from vireo.data.clips import read_clip
from vireo.data.folders import VIDEO_EXTENSIONS
from vireo.data.sampling import clip_indices
from vireo.data.table import ClipTable, StringColumn
from vireo.devices import choose_device
from vireo.memory import keep_memory
from vireo.model import create_model
from vireo.protocols import choose_protocol, cost_of, many_views
from vireo.scoring import ScoreConfig, score_table
from vireo.timing import noise, time_in_turns

LABELS = ("one", "two")


def make_videos(folder: Path, count: int, frames: int = 300) -> Path:
    """Moving, softly textured pictures with some noise: about as hard to decode as filmed ones."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        big = np.kron(coarse, np.ones((16, 16, 1), dtype=np.uint8))
        path = folder / LABELS[number % 2] / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"crf": "23", "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
            for i in range(frames):
                shift = (i // 2) % 100
                picture = big[shift : shift + 256, shift : shift + 340].astype(np.int16)
                picture = np.clip(picture + rng.integers(-6, 7, picture.shape), 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    return folder


def table_of(folder: Path, most: int) -> ClipTable:
    """The first videos of a folder, whatever their classes."""
    paths = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in VIDEO_EXTENSIONS)[:most]
    if not paths:
        sys.exit(f"{folder} holds no videos")
    nowhere = np.full(len(paths), np.nan)
    return ClipTable(
        paths=StringColumn(paths),
        labels=np.zeros(len(paths), dtype=np.int64),
        label_names=LABELS,
        starts=nowhere,
        ends=nowhere,
    )


def contestants(table: ClipTable, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    device = choose_device(args.device)
    model = create_model(args.temporal, args.backbone, num_classes=2, num_frames=args.frames).to(device).eval()
    checkpoint = Checkpoint(model=model, labels=LABELS, view=ViewConfig(size=args.size))
    protocol = choose_protocol(checkpoint.view, args.protocol)
    view, many = protocol.view, many_views(protocol, LABELS, at_once=args.batch_size)
    pictures = many.pictures if many else 1
    height, width = cost_of(model, protocol).frame_size
    ready = noise((args.batch_size, args.frames, 3, height, width), torch.device("cpu"))
    options = {"batch_size": args.batch_size, "device": args.device, "protocol": args.protocol}

    def evaluate(workers: int) -> object:
        return score_table(checkpoint, table, ScoreConfig(**options, workers=workers))

    def forward() -> None:
        per_batch = pictures * (many.videos if many else args.batch_size)
        with torch.inference_mode():
            left = pictures * len(table)
            while left:  # batches end with the videos of a batch
                batch = min(left, per_batch)
                left -= batch
                while batch:
                    count = min(batch, args.batch_size)
                    model(ready[:count].to(device)).cpu()
                    batch -= count

    def decode() -> None:
        def plan(count: int) -> np.ndarray:
            return clip_indices(
                view.sampling, count, args.frames, view.clips, window=view.window, twice=protocol.twice
            )[0]

        for i in range(len(table)):
            read_clip(table.record(i), plan)

    calls: dict[str, Callable[[], object]] = {
        "evaluation": lambda: evaluate(0),
        "forward passes": forward,
        "one decoding": decode,
    }
    if args.workers:
        calls[f"evaluation, {args.workers} workers"] = lambda: evaluate(args.workers)
    print(f"{args.temporal} × {args.backbone}, {args.protocol}: {cost_of(model, protocol)}; {len(table)} videos")
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="?", type=Path, help="folder of videos [made]")
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--protocol", default="10x3")
    parser.add_argument("--temporal", default="tsm")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1, help="of the evaluation beside; 0: none")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_memory()  # as the command line does
    with tempfile.TemporaryDirectory() as scratch:
        table = table_of(args.clips or make_videos(Path(scratch), args.videos), args.videos)
        calls = contestants(table, args)
        device = choose_device(args.device)
        times = time_in_turns(calls, repeats=args.rounds, device=device, warmup=1)
    print(describe_machine(device))
    for name, seconds in times.items():
        print(f"{name:24} {statistics.median(seconds) / len(table):8.3f} s a video, median of {args.rounds}")
    parts = sum(times["forward passes"]) + sum(times["one decoding"])
    for name in times:
        if name.startswith("evaluation"):
            print(f"{name}: {sum(times[name]) / parts:.3f} × (forward passes + one decoding)")


if __name__ == "__main__":
    main()
