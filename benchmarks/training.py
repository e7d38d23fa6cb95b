"""What a training step costs beside a bare loop, what the loader adds, and how many clips per second that makes.

    python benchmarks/training.py step --repeats 20
    python benchmarks/training.py loader --data CLIPS --workers 0 1 2
    python benchmarks/training.py speed --device cuda --batch-size 64

**step**: the loop of `vireo train` (`Session.step`: mixing, loss, checks for NaN, gradient clipping, counting) and a
bare PyTorch loop of the same network, weights, optimizer and clips, in turns. Loading is not part of it.

**loader**: an epoch of `vireo train` with each number of workers: the share of its time spent waiting for clips,
and how many workers it calls enough.

**speed**: clips per second of training steps, in turns: Vireo's networks (eager and compiled, channels last), a loop
written as the TSM project trains (its shift, channels first, float32 or autocast), and the same backbone on as many
single images. The ratios are to the latter two.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from vireo import create_model
from vireo.bench import describe_machine
from vireo.config import TrainConfig
from vireo.data.dataset import Batch
from vireo.data.order import OrderConfig, make_order
from vireo.devices import choose_device
from vireo.memory import keep_memory
from vireo.optim import make_optimizer
from vireo.pace import verdict
from vireo.progress import make_progress
from vireo.timing import noise, synchronise, time_in_turns
from vireo.train import Session

QUIET = Console(quiet=True)
MODULES = ("tsn", "tsm", "tei", "stw", "mstsm", "tefe")


def main() -> None:
    keep_memory()
    args = parse_arguments()
    print(f"Machine: {describe_machine(choose_device(args.device))}, {torch.get_num_threads()} threads.")
    print(f"Command: `{shlex.join(['python', *sys.argv])}`\n", flush=True)
    {"step": compare_step, "loader": compare_workers, "speed": compare_speed}[args.what](args)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "loader", "speed"])
    parser.add_argument("--data", help="clips as in `vireo train`, for loader [48 rendered clips of 256²]")
    parser.add_argument("--module", default="tsm", help="for step and loader")
    parser.add_argument("--modules", nargs="+", default=MODULES, help="for speed")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", nargs="+", choices=["32-true", "bf16-mixed"], default=["32-true", "bf16-mixed"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--no-compiled", dest="compiled", action="store_false", help="for speed: eager only")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def median_ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """Time of one over that of another, turn by turn."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


# --- a step of ours and a bare one ---------------------------------------------------------------


def settings(args: argparse.Namespace, data: str, out: Path, **more: Any) -> TrainConfig:
    return TrainConfig(
        data=data,
        out=str(out),
        temporal=args.module,
        backbone=args.backbone,
        num_frames=args.frames,
        size=args.size,
        batch_size=args.batch_size,
        pretrained=False,
        dropout=0.0,
        accelerator=choose_device(args.device).type,
        **more,
    )


def rendered_clips(folder: Path, clips: int, size: int) -> str:
    return str(make_order(folder / "data", OrderConfig(clips=clips, size=size)))


def compare_step(args: argparse.Namespace) -> None:
    print("| precision | bare loop, ms | Vireo, ms | Vireo / bare |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = rendered_clips(Path(folder), 48 + 4 * args.batch_size, 64)
        for precision in args.precision:
            with closing(
                Session(settings(args, data, Path(folder) / precision, precision=precision), QUIET)
            ) as session:
                device = session.fabric.device
                clips = noise((args.batch_size, args.frames, 3, args.size, args.size), device)
                labels = torch.arange(args.batch_size) % len(session.labels)
                batch = Batch(clips, labels, labels, ())
                calls = {
                    "bare": bare_step(session, clips, labels.to(device)),
                    "vireo": partial(session.step, batch, len(batch.labels)),
                }
                session.model.train()
                times = time_in_turns(calls, repeats=args.repeats, warmup=args.warmup, device=device)
            bare_ms, vireo_ms = (1e3 * statistics.median(times[name]) for name in ("bare", "vireo"))
            ratio = median_ratio(times, "vireo", "bare")
            print(f"| {precision} | {bare_ms:.1f} | {vireo_ms:.1f} | {ratio:.3f} |", flush=True)


def bare_step(session: Session, clips: Tensor, labels: Tensor) -> Callable[[], object]:
    """A training step as anyone would write it."""
    model = deepcopy(session.model).train()
    optimizer = make_optimizer(model, session.config)
    half = session.config.precision == "bf16-mixed"

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=half):
            logits = model(clips)
        F.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), session.config.clip_grad)
        optimizer.step()

    return step


# --- the loader on ------------------------------------------------------------------------------


def compare_workers(args: argparse.Namespace) -> None:
    precision = args.precision[-1]
    print("| workers | epoch, s | waiting for clips | enough workers | said |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or rendered_clips(Path(folder), 48, 256)
        for workers in args.workers:
            config = settings(args, data, Path(folder) / str(workers), precision=precision, workers=workers, epochs=2)
            with closing(Session(config, QUIET)) as session, make_progress() as bars:
                whole = bars.add_task("run", total=1, note="")
                for epoch in range(2):  # the first fills the cache of files and the index
                    session.place = replace(session.place, epoch=epoch, batch=0)
                    session.train_epoch(bars, whole, lambda: False)
                pace = session.pace
            told = verdict(pace, workers=workers, cores=os.cpu_count() or 1) or "nothing"
            share = f"{100 * pace.wait_share:.1f} %"
            print(f"| {workers} | {pace.seconds:.1f} | {share} | {pace.enough_workers} | {told} |", flush=True)


# --- clips per second ---------------------------------------------------------------------------


class PublishedShift(nn.Module):
    """The temporal shift as the TSM project's code does it: a new tensor of zeros, filled by three copies."""

    def __init__(self, layer: nn.Module, frames: int) -> None:
        super().__init__()
        self.layer, self.frames = layer, frames

    def forward(self, x: Tensor) -> Tensor:
        folded, channels, height, width = x.shape
        clips = x.view(folded // self.frames, self.frames, channels, height, width)
        eighth, out = channels // 8, torch.zeros_like(clips)
        out[:, :-1, :eighth] = clips[:, 1:, :eighth]
        out[:, 1:, eighth : 2 * eighth] = clips[:, :-1, eighth : 2 * eighth]
        out[:, :, 2 * eighth :] = clips[:, :, 2 * eighth :]
        return self.layer(out.view(folded, channels, height, width))


class PublishedNetwork(nn.Module):
    """A ResNet with shifts in all blocks, channels first, its clips normalised on the device."""

    def __init__(self, backbone: str, frames: int) -> None:
        super().__init__()
        self.net, self.frames = timm.create_model(backbone, num_classes=400), frames
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for block in getattr(self.net, stage):
                block.conv1 = PublishedShift(block.conv1, frames)

    def forward(self, clips: Tensor) -> Tensor:
        images = clips.flatten(0, 1).contiguous().float().div(255).sub(0.45).div(0.225)
        return self.net(images).view(-1, self.frames, 400).mean(1)


class Images(nn.Module):
    """The backbone as an image model, on every frame as an image of its own."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.net = timm.create_model(backbone, num_classes=400).to(memory_format=torch.channels_last)

    def forward(self, clips: Tensor) -> Tensor:
        return self.net(clips.flatten(0, 1).float().div(255).sub(0.45).div(0.225))


def compare_speed(args: argparse.Namespace) -> None:
    device, count = choose_device(args.device), args.batch_size
    clips = noise((count, args.frames, 3, args.size, args.size), device)
    memory: dict[str, float] = {}
    calls: dict[str, Callable[[], object]] = {}

    def add(name: str, model: nn.Module, precision: str, compiled: bool = False) -> None:
        labels = torch.randint(400, (count * args.frames if isinstance(model, Images) else count,), device=device)
        calls[name] = measured(name, step_of(model.to(device), clips, labels, precision, compiled), device, memory)

    precisions = {"float32": "32-true", "bf16": "bf16-mixed"}
    for short, precision in precisions.items():
        if precision in args.precision:
            add(f"as the TSM project, {short}", PublishedNetwork(args.backbone, args.frames), short)
    fast = "bf16" if "bf16-mixed" in args.precision else "float32"
    add(f"images, {fast}", Images(args.backbone), fast)
    for module in args.modules:
        for compiled in (False, True) if args.compiled else (False,):
            model = create_model(module, args.backbone, num_classes=400, num_frames=args.frames, pretrained=False)
            add(f"{module}, {fast}{', compiled' if compiled else ''}", model, fast, compiled)
    times = time_in_turns(calls, repeats=args.repeats, warmup=args.warmup, device=device)

    peers = [name for name in calls if name.startswith("as the TSM project")]
    print(f"{args.backbone}, training steps of {count} clips of {args.frames}×{args.size}², SGD.\n")
    print(f"| network | clips/s | {' | '.join('/ ' + name for name in peers)} | / images | peak memory |")
    print(f"|---|---|{'---|' * len(peers)}---|---|")
    for name, taken in times.items():
        ratios = " | ".join(f"{1 / median_ratio(times, name, other):.2f}" for other in [*peers, f"images, {fast}"])
        room = f"{memory[name] / 2**30:.2f} GiB" if memory else "–"
        print(f"| {name} | {count / statistics.median(taken):.2f} | {ratios} | {room} |", flush=True)


def step_of(model: nn.Module, clips: Tensor, labels: Tensor, precision: str, compiled: bool) -> Callable[[], object]:
    """A training step with SGD."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4, momentum=0.9)
    forward: Any = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with ExitStack() as stack:
            half = precision == "bf16"
            stack.enter_context(torch.autocast(clips.device.type, torch.bfloat16) if half else nullcontext())
            logits = forward(clips)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def measured(
    name: str, step: Callable[[], object], device: torch.device, memory: dict[str, float]
) -> Callable[[], object]:
    """The step, keeping a GPU's peak memory above what all the networks hold."""
    if device.type != "cuda":
        return step

    def run() -> None:
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        synchronise(device)
        memory[name] = max(memory.get(name, 0.0), torch.cuda.max_memory_allocated(device) - before)

    return run


if __name__ == "__main__":
    main()
