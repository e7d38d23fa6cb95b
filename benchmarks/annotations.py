"""Seconds and memory that a long list of clips takes: `python benchmarks/annotations.py [--rows 1000000] [--files]`.

Writes a CSV with all columns, reads it in a process of its own, and prints processor time and resident memory of each
step, and what a forked worker adds by going through the list. With --files the files exist (empty, as many as there are
rows, in a temporary folder), so that looking for them takes its time as well; without, each is a cut of one of 1,000.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PER_FOLDER = 1000


def write(folder: Path, rows: int, files: bool) -> Path:
    path = folder / "clips.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("path,label,split,group,start,end,frames\n")
        for i in range(rows):
            clip = i if files else i % 1000
            place = f"videos/class_{clip // PER_FOLDER:04}"
            name = f"{place}/-0H3T2B{clip:07}_{clip % 300:06}_{clip % 300 + 10:06}.mp4"
            if i == clip:
                (folder / place).mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            split = ("train", "train", "val", "test")[clip // 4 % 4]
            cut = ",," if files else f",{i // 1000},{i // 1000 + 1}"
            file.write(
                f"{name},label of class {clip % 400},{split},scene{clip // 4 if files else clip}{cut},{i % 500 + 1}\n"
            )
    return path


def resident(key: str = "VmRSS") -> float:
    """Memory of this process in MB; VmHWM is the most there has been."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1000
    return 0.0


def private() -> float:
    """Memory in MB that this process does not share."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1000


def measure(path: Path) -> dict[str, float]:
    from vireo.data.annotations import read_table
    from vireo.data.splits import split_table

    found: dict[str, float] = {}
    before = resident()

    def timed(name: str, start: float) -> None:
        found[f"{name}, s"] = time.process_time() - start

    start = time.process_time()
    table = read_table(path)
    timed("read", start)
    found["rows"] = len(table)
    found["columns, MB"] = table.nbytes / 1e6
    found["resident after reading, MB"] = resident() - before
    found["peak while reading, MB"] = resident("VmHWM") - before
    start = time.process_time()
    table.digest()
    timed("digest", start)
    start = time.process_time()
    train = table.in_split("train")
    timed("in_split", start)
    start = time.process_time()
    split_table(train, val_fraction=0.1, seed=0)
    timed("split_table with a draw", start)
    found["peak of all, MB"] = resident("VmHWM") - before
    found["forked worker going through all rows, MB"] = worker(table)
    return found


def worker(table: object) -> float:
    """What a forked worker adds to memory by reading every row."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        before = private()
        for i in range(len(table)):  # type: ignore[arg-type]
            table.record(i)  # type: ignore[attr-defined]
        os.write(writing, str(private() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return float(os.read(reading, 100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", action="store_true", help="make the files")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), args.rows, args.files)
        command = [sys.executable, __file__, "--measure", str(path)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    for name, value in found.items():
        print(f"{name:<45}{value:12,.2f}")


if __name__ == "__main__":
    main()
