"""Sliding windows over a long video: memory, speed against a plain loop, and whether every second is covered.

    python benchmarks/stream.py --minutes 60 --rounds 5

Makes a video of 320×240 at 25 frames per second in a temporary folder: a minute of a moving block is encoded once and
its packets are repeated. Then, with a checkpoint of random weights (speed and memory don't depend on them):

- Speed: `predict_windows` over an excerpt, in turns with a plain loop: decode every frame with PyAV (one thread, as
  Vireo), convert it to RGB, keep those of one window, and at the end of each window resize and crop the T frames that
  the model looks at and run it. The plain loop must give the same probabilities. The ratio is the plain loop's time
  divided by Vireo's; above 1 Vireo is faster. Both have the same number of threads for the network.
- Memory: the whole video, with the resident memory after each window against that before the first.
- Coverage: each window begins before the one before it has ended, the first with the video; the last ends with it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from vireo.bench import describe_machine
from vireo.checkpoint import Checkpoint
from vireo.config import ViewConfig
from vireo.data.sampling import segment_indices
from vireo.data.transforms import eval_transform
from vireo.memory import keep_memory
from vireo.model import create_model
from vireo.stream.scoring import predict_windows

FPS, WIDTH, HEIGHT = 25, 320, 240


def make_video(path: Path, minutes: int) -> None:
    """A minute of moving blocks, its packets repeated."""
    minute = path.with_name("minute.mp4")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    with av.open(str(minute), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "bf": "0", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(60 * FPS):
            image = np.roll(noise, i // 2, axis=1)
            x, y = (7 * i) % (WIDTH - 40), (3 * i) % (HEIGHT - 40)
            image[y : y + 40, x : x + 40] = (230, 40 + i % 200, 60)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path), "w") as target:
        with av.open(str(minute)) as source:
            out = target.add_stream_from_template(source.streams.video[0])
        for repeat in range(minutes):
            with av.open(str(minute)) as source:
                video = source.streams.video[0]
                assert video.time_base
                shift = round(60 * repeat / video.time_base)
                for packet in source.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, out
                    target.mux(packet)


def plain(path: Path, checkpoint: Checkpoint, window: int, every: int, seconds: float) -> list[NDArray[np.float32]]:
    """The loop that one would write first; lengths are frames."""
    model, frames = checkpoint.model, checkpoint.model.num_frames
    kept: deque[NDArray[np.uint8]] = deque(maxlen=window)
    found = []
    picked = segment_indices(window, frames).tolist()
    with av.open(str(path)) as container, torch.inference_mode():
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number >= seconds * FPS:
                break
            kept.append(frame.to_ndarray(format="rgb24"))
            if number + 1 >= window and (number + 1 - window) % every == 0:
                clip = torch.from_numpy(np.stack([kept[i] for i in picked])).permute(0, 3, 1, 2)
                found.append(model(eval_transform(clip, checkpoint.view)[None]).softmax(1)[0].numpy())
    return found


def ours(path: Path, checkpoint: Checkpoint, window: int, every: int, seconds: float) -> list[NDArray[np.float32]]:
    """The same windows by Vireo."""
    with predict_windows(
        checkpoint, path, window=window / FPS, every=every / FPS, limit=seconds, device="cpu"
    ) as scores:
        return [score.probabilities for score in scores]


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - processor


def resident_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def speed(path: Path, checkpoint: Checkpoint, window: int, every: int, seconds: float, rounds: int) -> None:
    args = (path, checkpoint, window, every, seconds)
    runs = {"Vireo": lambda: ours(*args), "plain loop": lambda: plain(*args)}
    theirs, found = plain(*args), ours(*args)
    same = min(len(theirs), len(found))
    worst = max(float(np.abs(a - b).max()) for a, b in zip(theirs[:same], found[:same], strict=True))
    assert len(found) >= len(theirs) and worst < 1e-4, (len(found), len(theirs), worst)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(timed(runs[name]))
    print(f"{len(found)} windows of {seconds:g} s; probabilities differ by at most {worst:.1e}\n")
    print("| | s, median | s of processor time, median | video s per s |\n|---|---:|---:|---:|")
    for name, pairs in times.items():
        clock, processor = (statistics.median(pair[k] for pair in pairs) for k in (0, 1))
        print(f"| {name} | {clock:.2f} | {processor:.2f} | {seconds / clock:.1f} |")
    ratios = [
        statistics.median(b[k] / a[k] for a, b in zip(times["Vireo"], times["plain loop"], strict=True)) for k in (0, 1)
    ]
    print(f"\nplain loop / Vireo: {ratios[0]:.2f} of the clock, {ratios[1]:.2f} of processor time ({rounds} rounds)")


def whole(path: Path, checkpoint: Checkpoint, window: int, every: int, seconds: float, length: float) -> None:
    before, peak, end, windows = resident_mb(), 0.0, 0.0, 0
    began = time.perf_counter()
    quarters: list[float] = []
    limit = min(seconds, length)
    with predict_windows(checkpoint, path, window=window / FPS, every=every / FPS, limit=limit, device="cpu") as scores:
        for score in scores:
            assert score.start <= end + 1e-6 and score.end > end, f"no window covers {end:.3f} s to {score.start:.3f} s"
            end, windows = score.end, windows + 1
            peak = max(peak, resident_mb())
            if score.end >= limit * (len(quarters) + 1) / 4:
                quarters.append(resident_mb() - before)
    assert abs(end - limit) < 1.5 / FPS, f"the last window ends at {end:.3f} s, the video at {limit:.3f} s"
    took = time.perf_counter() - began
    print(f"\n{end / 60:.1f} minutes in {took:.0f} s ({end / took:.1f}× real time)")
    print(f"{windows} windows, every second covered")
    print(
        f"memory: {before:.0f} MB before; after each quarter {', '.join(f'{mb:+.1f}' for mb in quarters)} MB; "
        f"at most {peak - before:+.1f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60, help="length of the video")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds of it that are scored whole")
    parser.add_argument("--excerpt", type=float, default=60.0, help="seconds that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--window", type=int, default=64, help="frames")
    parser.add_argument("--every", type=int, default=16, help="frames")
    parser.add_argument("--threads", type=int, default=1, help="of the network")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    torch.manual_seed(0)
    model = create_model("tsm", args.backbone, num_classes=10, num_frames=8).eval()
    torch.nn.init.normal_(model.classifier.weight)
    labels = tuple(f"class {i}" for i in range(10))
    checkpoint = Checkpoint(model=model, labels=labels, view=ViewConfig(size=args.size))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        make_video(path, args.minutes)
        print(f"made {args.minutes} minutes, {path.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
        print(f"{describe_machine(torch.device('cpu'))}; tsm × {args.backbone}, 8 frames of {args.size}²")
        if args.rounds:
            speed(path, checkpoint, args.window, args.every, min(args.excerpt, 60.0 * args.minutes), args.rounds)
        whole(path, checkpoint, args.window, args.every, args.limit, 60.0 * args.minutes)


if __name__ == "__main__":
    main()
