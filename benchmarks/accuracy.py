"""Accuracy of several temporal modules on one labelled folder, over several seeds.

    python benchmarks/accuracy.py --data FOLDER --pretrained WEIGHTS --out runs/gestures \
        --temporal tsn tsm tei --seeds 0 1 2 --leave-out unclassified -- --size 160 --epochs 15

For each module and seed it runs ``vireo train`` (what follows ``--`` is passed on) with a stratified
80/20 split of its own, scores the **last** checkpoint on the 20 % (the best one would be chosen on
the very clips it is scored on), scores it again with the frames of each clip in random order, and
prints a Markdown table. A run that is already finished is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from vireo.data.annotations import read_table
from vireo.evaluate import wilson_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one subfolder per class, or a CSV")
    parser.add_argument("--pretrained", required=True, help="weights of the backbone")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--temporal", nargs="+", default=["tsn", "tsm", "tei"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--permutations", type=int, default=10)
    parser.add_argument("--leave-out", nargs="*", default=[], help="classes that are not used")
    parser.add_argument("options", nargs="*", help="after --: options for vireo train")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = without_classes(args.data, args.leave_out, args.out / "clips.csv")

    results: dict[str, list[dict]] = {}
    for seed in args.seeds:  # modules inside: what the machine does meanwhile hits all of them alike
        for temporal in args.temporal:
            run = args.out / f"{temporal}-{seed}"
            results.setdefault(temporal, []).append(
                one_run(run, data, temporal, seed, args.pretrained, args.permutations, args.options)
            )
            print_table(results)


def without_classes(data: Path, leave_out: list[str], path: Path) -> Path:
    """A CSV of all clips but those of the classes left out."""
    table = read_table(data)
    with path.open("w", encoding="utf-8") as file:
        file.write("path,label\n")
        for index in range(len(table)):
            record = table.record(index)
            label = table.label_names[record.label]
            if label not in leave_out:
                file.write(f'"{Path(record.path).resolve()}","{label}"\n')
    return path


def one_run(
    run: Path, data: Path, temporal: str, seed: int, pretrained: str, permutations: int, options: list[str]
) -> dict:
    summary = run / "accuracy.json"
    if summary.exists():
        return json.loads(summary.read_text())
    train = ["train", "--data", str(data), "--out", str(run), "--temporal", temporal, "--seed", str(seed)]
    train += ["--pretrained", pretrained, *options]
    began = time.monotonic()
    vireo(train)
    minutes = (time.monotonic() - began) / 60
    score = ["eval", str(run / "last.safetensors"), "--data", str(data), "--split", "val", "--json"]
    score += ["--shuffle-frames", str(permutations), "--seed", str(seed)]
    found = json.loads(vireo(score, capture=True))
    found["minutes"] = minutes
    summary.write_text(json.dumps(found))
    return found


def vireo(arguments: list[str], *, capture: bool = False) -> str:
    command = [sys.executable, "-m", "vireo", *arguments]
    print("$ vireo " + " ".join(arguments), file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None).stdout or ""


def print_table(results: dict[str, list[dict]]) -> None:
    print(
        "\n| module | top-1 per seed, % | mean ± deviation, % | 95 % interval, % | frames shuffled, % | training, min |"
    )
    print("|---|---|---|---|---|---|")
    for temporal, runs in results.items():
        top1 = [100 * r["top1"] for r in runs]
        # The seeds' test parts overlap, so their clips must not be added up: the interval is that of the
        # mean accuracy on as many clips as one part has.
        clips = min(r["scored"] for r in runs)
        low, high = wilson_interval(round(statistics.mean(top1) / 100 * clips), clips)
        shuffled = [100 * s for r in runs for s in r["shuffled_top1"]]
        minutes = [r["minutes"] for r in runs]
        deviation = statistics.stdev(top1) if len(top1) > 1 else float("nan")
        print(
            f"| {temporal} | {', '.join(f'{t:.1f}' for t in top1)} | {statistics.mean(top1):.1f} ± {deviation:.1f} "
            f"| {100 * low:.1f}–{100 * high:.1f} (n = {clips}) "
            f"| {statistics.mean(shuffled):.1f} ± {statistics.stdev(shuffled):.1f} "
            f"| {', '.join(f'{m:.1f}' for m in minutes)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
