"""What keeping freed memory is worth on a CPU: the same network in processes with and without `vireo.keep_memory`.

    python benchmarks/allocator.py

Processes take turns; every row gives the median time per clip of both, their ratio, and the largest size of each.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

import vireo
from vireo.bench import describe_machine
from vireo.memory import keep_memory

CASES = (  # module, backbone, size, clips, precision, training
    ("tsn", "resnet50", 224, 1, "float32", False),
    ("tei", "resnet50", 224, 1, "float32", False),
    ("tei", "resnet50", 224, 8, "float32", False),
    ("tei", "resnet50", 224, 8, "bf16", False),
    ("tei", "resnet50", 224, 8, "bf16", True),
    ("tei", "mobilenetv2_100", 160, 8, "bf16", True),
    ("tei", "mobilenetv2_100", 160, 8, "float32", True),
)


def measure(case: int, keep: bool, steps: int) -> dict[str, float]:
    """Seconds per clip after warm-up, and the process's largest size in MB."""
    if keep and not keep_memory():
        raise SystemExit("keep_memory has no effect here")
    temporal, backbone, size, clips, precision, training = CASES[case]
    model = vireo.create_model(temporal, backbone, num_classes=10, num_frames=8, pretrained=False).train(training)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randint(0, 256, (clips, 8, 3, size, size), dtype=torch.uint8)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(x)
        if training:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits.float(), torch.zeros(clips, dtype=torch.int64)).backward()
            optimizer.step()
        seconds.append((time.perf_counter() - began) / clips)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds[steps // 2 :]), "megabytes": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="processes of each kind")
    parser.add_argument("--steps", type=int, default=8, help="steps of each process, the first half warm-up")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], bool(args.one[1]), args.steps)))
        return
    print(f"Machine: {describe_machine(torch.device('cpu'))}. Command: `python {' '.join(sys.argv)}`\n")
    print("| network | input | clips | precision | pass | ms per clip, default | kept | ratio | MB, default | kept |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case, (temporal, backbone, size, clips, precision, training) in enumerate(CASES):
        runs: dict[int, list[dict[str, float]]] = {0: [], 1: []}
        for _ in range(args.rounds):
            for keep in (0, 1):
                command = [sys.executable, __file__, "--steps", str(args.steps), "--one", str(case), str(keep)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[keep].append(json.loads(done.stdout))
        plain, kept = (1e3 * statistics.median(r["seconds"] for r in runs[keep]) for keep in (0, 1))
        sizes = [max(r["megabytes"] for r in runs[keep]) for keep in (0, 1)]
        what = "training" if training else "inference"
        print(
            f"| {temporal} × {backbone} | 8 × {size}² | {clips} | {precision} | {what} "
            f"| {plain:.0f} | {kept:.0f} | {kept / plain:.2f} | {sizes[0]:.0f} | {sizes[1]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
