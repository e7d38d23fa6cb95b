"""What each temporal module costs: its network's time divided by a TSN's, both measured in turns in one run.

    python benchmarks/module_overhead.py --precision float32 bf16 --mode eager compiled --batch-size 1 16
    python benchmarks/module_overhead.py --modules tsm tei --device cuda --training

Beside every ratio stand the ratio of multiply-accumulates and the floor that memory traffic sets:

    floor = (TSN's time + extra bytes / copy bandwidth) / TSN's time

The bandwidth is that of a large copy on the same device (bytes read + bytes written). The extra bytes of a module,
with feature maps of 4 bytes per number (float32) or 2 (bf16), are by this rule:

  1. each map of features that is put in front of a layer reads its input and writes its output once;
  2. one whose output depends on averages over whole frames (MEM, SE, TE) reads its input once more;
  3. where the output has more channels than the input (MSTSM), the layer behind it reads the difference as well;
  4. two convolutions in place of one (FE) write one map more, and their product reads it;
  5. a branch reads its tap, and each of its layers reads its input and writes its output;
  6. weights that the network has more than the TSN are read once per batch;
  7. training (--training) makes that 2.5 times as much: the backward pass reads a map's input and the gradient of its
     output, and writes the gradient of its input.

Shifts and gates take part in 1 alone: their arithmetic costs nothing. The goal is the larger one of the two ratios,
plus 5 % compiled or 10 % eager. Times are medians; on a GPU they are taken with CUDA events around several passes.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireo.bench import autocast, describe_machine, forward_of, random_clips
from vireo.devices import choose_device
from vireo.errors import UnsupportedPairError
from vireo.memory import keep_memory
from vireo.model import Recognizer, count_macs, count_parameters, create_model
from vireo.temporal import temporal_modules
from vireo.temporal.base import Chain
from vireo.timing import seconds_of, synchronise, time_in_turns

POOLED = ("MotionEnhanced", "SqueezeExcitation", "TemporalExtraction")
ENHANCED = ("FeatureEnhancement",)
NUMBER_BYTES = {"float32": 4, "bf16": 2}
MARGIN = {"eager": 1.10, "compiled": 1.05}


def main() -> None:
    args = parse_arguments()
    keep_memory()  # as the command line does
    device = choose_device(args.device)
    bandwidth = copy_bandwidth(device)
    print(f"Machine: {describe_machine(device)}. Command: `{shlex.join(['python', *sys.argv])}`\n")
    print(f"Copy bandwidth: {bandwidth / 1e9:.1f} GB/s (read + written).")
    models = build(args)
    for precision in args.precision:
        for mode in args.mode:
            for batch_size in args.batch_size:
                print_table(args, models, device, bandwidth, precision, mode, batch_size)
                torch._dynamo.reset()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--modules", nargs="+", help="temporal modules [all that go with the backbone]")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--precision", nargs="+", choices=list(NUMBER_BYTES), default=["float32"])
    parser.add_argument("--mode", nargs="+", choices=list(MARGIN), default=["eager"])
    parser.add_argument("--training", action="store_true", help="forward and backward pass, in training mode")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="height and width, pixels")
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--passes", type=int, default=5, help="passes between two CUDA events")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def build(args: argparse.Namespace) -> dict[str, Recognizer]:
    """The TSN and the others, with weights on the processor."""
    models: dict[str, Recognizer] = {}
    for name in dict.fromkeys(["tsn", *(args.modules or temporal_modules)]):
        try:
            models[name] = create_model(
                name, args.backbone, num_classes=args.classes, num_frames=args.frames, dropout=0.0
            )
        except UnsupportedPairError as error:
            print(f"\n{name} is left out: {error}")
    return models


def print_table(
    args: argparse.Namespace,
    models: dict[str, Recognizer],
    device: torch.device,
    bandwidth: float,
    precision: str,
    mode: str,
    batch_size: int,
) -> None:
    """Time all networks in one setting; one line per module."""
    steps = {name: step_of(model, args, device, precision, mode, batch_size) for name, model in models.items()}
    timer = events_timer(args.passes) if device.type == "cuda" else seconds_of
    times = time_in_turns(steps, repeats=args.repeats, device=device, warmup=args.warmup, timer=timer)
    for model in models.values():
        model.to("cpu")  # only one setting's networks and gradients occupy a GPU

    base = statistics.median(times["tsn"])
    macs = {name: count_macs(model, args.size) for name, model in models.items()}
    number_bytes = NUMBER_BYTES[precision]
    moved = traffic_of_leaves(models["tsn"], args.size, batch_size) * number_bytes
    what = "forward and backward" if args.training else "forward"
    print(
        f"\n### {args.backbone}, {what}, {args.frames} frames of {args.size}×{args.size}, batch {batch_size}, "
        f"{precision}, {mode}\n"
    )
    print(
        f"TSN: {1e3 * base:.2f} ms, {macs['tsn'] * batch_size / 1e9:.1f} GMACs; its layers read and write "
        f"{moved / 1e9:.2f} GB forward, {1e3 * moved / bandwidth:.2f} ms at copy bandwidth. {args.repeats} repeats.\n"
    )
    print("| module | median ms | time / TSN | MACs / TSN | extra MB | floor of traffic | goal | met |")
    print("|---|---|---|---|---|---|---|---|")
    for name, model in models.items():
        if name == "tsn":
            continue
        ratio = statistics.median(a / b for a, b in zip(times[name], times["tsn"], strict=True))  # turn by turn
        cost = macs[name] / macs["tsn"]
        extra = (
            extra_numbers(model, models["tsn"], args.size, batch_size) * number_bytes * (2.5 if args.training else 1)
        )
        floor = 1 + extra / bandwidth / base
        goal = max(cost, floor) * MARGIN[mode]
        print(
            f"| {name} | {1e3 * statistics.median(times[name]):.2f} | {ratio:.3f} | {cost:.3f} | {extra / 1e6:.0f} "
            f"| {floor:.3f} | {goal:.3f} | {'yes' if ratio <= goal else 'no'} |",
            flush=True,
        )


def step_of(
    model: Recognizer, args: argparse.Namespace, device: torch.device, precision: str, mode: str, batch_size: int
) -> Callable[[], object]:
    """What is timed: one forward pass, or one with its backward pass."""
    model.to(device).train(args.training)
    clips = random_clips(model, batch_size, (args.size, args.size), device)
    if not args.training:
        run = forward_of(model, precision=precision, compile=mode == "compiled")
        return lambda: run(clips)
    labels = torch.randint(0, model.num_classes, (batch_size,), device=device)
    forward: Any = model
    if mode == "compiled":
        torch._dynamo.config.recompile_limit = max(256, torch._dynamo.config.recompile_limit)
        forward = torch.compile(model, fullgraph=True, dynamic=False)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(device, precision):
            logits = forward(clips)
        F.cross_entropy(logits, labels).backward()

    return step


def events_timer(passes: int) -> Callable[[Callable[[], object], torch.device], float]:
    """Seconds per pass on a GPU, several passes queued between two events."""

    def timer(call: Callable[[], object], device: torch.device) -> float:
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        synchronise(device)
        began.record()
        for _ in range(passes):
            call()
        ended.record()
        synchronise(device)
        return began.elapsed_time(ended) / 1e3 / passes

    return timer


def copy_bandwidth(device: torch.device, repeats: int = 15) -> float:
    """Bytes per second, read and written, of a copy much larger than any cache."""
    count = (1 << 28) if device.type == "cuda" else (1 << 26)  # 1 GiB, 256 MiB of float32
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    target.copy_(source)
    times = [seconds_of(lambda: target.copy_(source), device) for _ in range(repeats)]
    return 2 * source.nbytes / statistics.median(times)


@dataclass
class Passage:
    """What passed through one submodule in one forward pass, in numbers (not bytes)."""

    module: nn.Module
    read: int
    written: int


def passages(model: Recognizer, size: int, batch_size: int, wanted: Callable[[str, nn.Module], bool]) -> list[Passage]:
    """Numbers in the first input and the output of the submodules wanted, by a pass on the meta device."""
    found: list[Passage] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            written = output.numel()
        else:
            written = sum(o.numel() for o in output if isinstance(o, Tensor))
        found.append(Passage(module, inputs[0].numel(), written))

    hooks = [m.register_forward_hook(hook) for name, m in model.named_modules() if wanted(name, m)]
    try:
        count_macs(model, size)  # runs one clip
    finally:
        for handle in hooks:
            handle.remove()
    return [Passage(p.module, p.read * batch_size, p.written * batch_size) for p in found]


def is_leaf(module: nn.Module) -> bool:
    """Whether it is a layer without layers in it (a map put in front of it apart)."""
    own = [name for name, child in module.named_children() if name != "temporal" and not isinstance(child, nn.Identity)]
    return not own and not isinstance(module, nn.Identity)


def traffic_of_leaves(model: Recognizer, size: int, batch_size: int) -> int:
    """Numbers that all layers read and write, weights left out."""
    return sum(p.read + p.written for p in passages(model, size, batch_size, lambda name, m: is_leaf(m)))


def extra_numbers(model: Recognizer, plain: Recognizer, size: int, batch_size: int) -> int:
    """Numbers that a module's network must read and write more than the TSN: rules 1 to 6 above."""

    def in_front(name: str, module: nn.Module) -> bool:
        parent, _, last = name.rpartition(".")
        if last == "temporal":
            return not isinstance(module, Chain)
        chained = parent.endswith(".temporal") and isinstance(model.get_submodule(parent), Chain)
        return chained or type(module).__name__ in ENHANCED

    total = max(0, count_parameters(model) - count_parameters(plain))
    for p in passages(model, size, batch_size, in_front):
        kind = type(p.module).__name__
        if kind in ENHANCED:
            total += 2 * p.written
        else:
            total += p.read + p.written + max(0, p.written - p.read) + (p.read if kind in POOLED else 0)
    for name, branch in model.branches.items():
        total += sum(p.read for p in passages(model, size, batch_size, lambda _, m, b=branch: m is b))
        inside = f"branches.{name}."
        layers = passages(model, size, batch_size, lambda path, m, i=inside: path.startswith(i) and is_leaf(m))
        total += sum(p.read + p.written for p in layers)
    return total


if __name__ == "__main__":
    main()
