"""Which temporal modules learn the order of frames: each of them, trained from random weights on `order`.

    vireo data make order data/order --clips 1440 --size 72 --pairs push,approach,put \
        --val-fraction 0.05 --test-fraction 0.15
    python benchmarks/order.py --data data/order/order.csv --out runs/order --jobs 2

The clips come in pairs, one the time reversal of the other, so a model that ignores order scores 50 %
at most. Every module goes into the same half-width resnet10t, 8 frames of 64², the same recipe and seed.
Scores are those of the test part, straight and with the frames of each clip in random order. A run that
is already finished is not repeated. Each job has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MODULES = ["tsn", "tsm", "mem", "tim", "tei", "mstsm", "tfdem", "mstsm_tfdem"]
MODULES += ["te", "fe", "tefe", "stfm", "twm", "stw", "kpsem"]
NETWORK = ["--backbone", "resnet10t", "--backbone-options", "{channels: [32, 64, 128, 256], stem_width: 16}"]
RECIPE = ["--pretrained", "false", "--size", "64", "--short-side", "64", "--lr", "0.003"]
RECIPE += ["--head-lr-scale", "1", "--warmup-epochs", "1", "--eval-every", "4", "--workers", "1"]
OPTIONS = {
    "kpsem": ["--temporal-options", "{stage: 3}"],  # 8×8 maps of 64² images; stage 4 has 4×4
    # resnet10t has one block per stage, where the paper's placement gives TE alone.
    "tefe": ["--temporal-options", "{te_blocks: [1, 1, 0, 0], fe_blocks: [0, 0, 1, 1]}"],
}

PATIENCE = {"twm": 2}  # times the epochs: it learns order too, but later


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the order.csv that `vireo data make order` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--temporal", nargs="+", default=MODULES)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--permutations", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda name: one_run(name, args), args.temporal))
    print("| module | test top-1 | 95 % interval | frames shuffled | training, min |\n|---|---|---|---|---|")
    for name, row in zip(args.temporal, rows, strict=True):
        low, high = row["interval"]
        shuffled = sum(row["shuffled"]) / len(row["shuffled"])
        print(
            f"| {name} | {100 * row['top1']:.1f} % | {100 * low:.1f}–{100 * high:.1f} % "
            f"| {100 * shuffled:.1f} % | {row['minutes']:.1f} |"
        )


def one_run(name: str, args: argparse.Namespace) -> dict:
    """Train one module and score it; from its file, if that was done before."""
    run = args.out / name
    summary = run / "order.json"
    if summary.exists():
        return json.loads(summary.read_text())
    began = time.monotonic()
    place = ["--data", str(args.data), "--out", str(run), "--temporal", name]
    length = ["--epochs", str(args.epochs * PATIENCE.get(name, 1)), "--seed", str(args.seed)]
    vireo(["train", *place, *NETWORK, *RECIPE, *length, *OPTIONS.get(name, [])])
    minutes = (time.monotonic() - began) / 60
    score = ["eval", str(run / "last.safetensors"), "--data", str(args.data), "--split", "test", "--json"]
    score += ["--shuffle-frames", str(args.permutations), "--seed", str(args.seed), "--workers", "1"]
    found = json.loads(vireo(score))
    row = {
        "top1": found["top1"],
        "interval": found["interval95"],
        "shuffled": found["shuffled_top1"],
        "minutes": minutes,
    }
    summary.write_text(json.dumps(row))
    print(f"{name}: {100 * row['top1']:.1f} % in {minutes:.1f} min", file=sys.stderr, flush=True)
    return row


def vireo(arguments: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vireo", *arguments]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    return done.stdout


if __name__ == "__main__":
    main()
