"""Accuracy of several temporal modules on one labelled folder, over several seeds or leaving out one group at a time.

    python benchmarks/accuracy.py --data FOLDER --pretrained WEIGHTS --out runs/gestures \
        --temporal tsn tsm tei --seeds 0 1 2 --leave-out unclassified -- --size 160 --epochs 15
    python benchmarks/accuracy.py --data FOLDER --pretrained WEIGHTS --out runs/interactions \
        --temporal tsn tsm tei --groups 'seq[0-9]+' -- --size 112

For each module and seed it runs ``vireo train`` (what follows ``--`` is passed on) with a stratified
80/20 split of its own, scores the **last** checkpoint on the 20 % (the best one would be chosen on
the very clips it is scored on), scores it again with the frames of each clip in random order, and
prints a Markdown table. With ``--groups PATTERN``, what the pattern finds in a file's name is its group, and each
group in turn is scored by a model trained on all the others, so that every clip is scored once.
A run that is already finished is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vireo.data.annotations import read_table
from vireo.statistics import wilson_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one subfolder per class, or a CSV")
    parser.add_argument("--pretrained", required=True, help="weights of the backbone")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--temporal", nargs="+", default=["tsn", "tsm", "tei"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--groups", help="a regular expression: leave out one group of file names at a time, one seed")
    parser.add_argument("--permutations", type=int, default=10)
    parser.add_argument("--leave-out", nargs="*", default=[], help="classes that are not used")
    parser.add_argument("options", nargs="*", help="after --: options for vireo train")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    clips = read_clips(args.data, args.leave_out)
    folds = group_folds(clips, args.groups) if args.groups else {}
    parts = list(folds) or [str(seed) for seed in args.seeds]

    results: dict[str, list[dict]] = {}
    for part in parts:  # modules inside: what the machine does meanwhile hits all of them alike
        seed = args.seeds[0] if folds else int(part)
        data = write_clips(args.out / (f"clips-{part}.csv" if folds else "clips.csv"), folds.get(part, clips))
        for temporal in args.temporal:
            run = args.out / f"{temporal}-{part}"
            results.setdefault(temporal, []).append(
                one_run(run, data, temporal, seed, args.pretrained, args.permutations, args.options)
            )
        (print_groups if folds else print_seeds)(results)


Clip = tuple[str, ...]
"""Path, label and, in a fold, train or val."""


def read_clips(data: Path, leave_out: Sequence[str]) -> list[Clip]:
    """All clips but those of the classes left out."""
    table = read_table(data)
    records = [table.record(index) for index in range(len(table))]
    clips = [(str(Path(record.path).resolve()), table.label_names[record.label]) for record in records]
    return [clip for clip in clips if clip[1] not in leave_out]


def group_folds(clips: Sequence[Clip], pattern: str) -> dict[str, list[Clip]]:
    """For each group, all clips, with its own as the part that is scored."""
    found = [re.search(pattern, Path(path).name) for path, _ in clips]
    if None in found:
        raise SystemExit(f"{clips[found.index(None)][0]}: {pattern} finds nothing in this name")
    groups = [match.group() for match in found if match]
    return {
        group: [(*clip, "val" if own == group else "train") for clip, own in zip(clips, groups, strict=True)]
        for group in sorted(set(groups))
    }


def write_clips(path: Path, clips: Sequence[Clip]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split")[: len(clips[0])])
        writer.writerows(clips)
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


def print_seeds(results: dict[str, list[dict]]) -> None:
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


def print_groups(results: dict[str, list[dict]]) -> None:
    print(
        "\n| module | top-1, % | 95 % interval, % | worst, median, best group, % | frames shuffled, % | training, min |"
    )
    print("|---|---|---|---|---|---|")
    for temporal, runs in results.items():
        clips = sum(r["scored"] for r in runs)
        hits = round(sum(r["top1"] * r["scored"] for r in runs))
        low, high = wilson_interval(hits, clips)
        groups = sorted(100 * r["top1"] for r in runs)
        shuffled = sum(statistics.mean(r["shuffled_top1"]) * r["scored"] for r in runs) / clips
        print(
            f"| {temporal} | {100 * hits / clips:.1f} ({hits} of {clips}) | {100 * low:.1f}–{100 * high:.1f} "
            f"| {groups[0]:.0f}, {statistics.median(groups):.0f}, {groups[-1]:.0f} | {100 * shuffled:.1f} "
            f"| {sum(r['minutes'] for r in runs):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
