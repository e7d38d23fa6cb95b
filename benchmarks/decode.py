"""How fast eight frames of a video are read: Vireo beside TorchCodec, decord, OpenCV and plain PyAV.

    python benchmarks/decode.py CLIP [CLIP …] --source CLIP --gestures FOLDER --count 50
    python benchmarks/decode.py CLIP [CLIP …] --endurance 10000
    python benchmarks/decode.py CLIP [CLIP …] --fuzz 2000

Of every file the middle frames of eight equal segments are read, ready as RGB in the file's size, by all readers in
turn, again and again, in one process with one thread each. Times are CPU time of the process (all its threads), the
median of the rounds; other work on the machine disturbs that less than time by the clock. A reader that gives other
frames than decoding everything with PyAV is marked with how many of its files are right.

`--source` makes two clips of 10 s of 340×256 H.264 from a real one: groups of 250 pictures, and of 12.
"cold" is the first reading of a file, which makes its index; "warm" has the index in the cache on disk. "floor" is
`ffmpeg -f null` with one thread over all packets from the first keyframe needed to the last frame wanted within each
group of pictures, without opening and without conversion; Vireo can fall below it because it leaves packets out.

TorchCodec needs FFmpeg's shared libraries; packages that are missing are named below the table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
import torch

from vireo.data import decode
from vireo.data.decode import probe, read_frames
from vireo.data.index import FileKey, VideoIndex, load_index
from vireo.data.pool import Crash, map_in_processes
from vireo.data.sampling import Indices, segment_indices
from vireo.errors import DecodeError

FRAMES = 8
RATE = 25
Reader = Callable[[str], np.ndarray]


def plan(frame_count: int) -> Indices:
    return segment_indices(frame_count, FRAMES)


# Readers: a path to (8, H, W, 3) uint8


def vireo_warm(path: str) -> np.ndarray:
    return read_frames(path, plan).data.permute(0, 2, 3, 1).numpy()


def vireo_cold(path: str) -> np.ndarray:
    load = decode.load_index
    decode.load_index = lambda key: None
    try:
        return vireo_warm(path)
    finally:
        decode.load_index = load


def vireo_keyframe(path: str) -> np.ndarray:
    return read_frames(path, plan, mode="keyframe").data.permute(0, 2, 3, 1).numpy()


def torchcodec(path: str, mode: str) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode=mode, dimension_order="NHWC")
    return decoder.get_frames_at(plan(decoder.metadata.num_frames).tolist()).data.numpy()


def decord(path: str) -> np.ndarray:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(plan(len(reader)).tolist()).asnumpy()


def opencv(path: str) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    reader = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = plan(int(reader.get(cv2.CAP_PROP_FRAME_COUNT)))
    images: dict[int, np.ndarray] = {}
    for position in range(wanted[-1] + 1):  # faster than its seeking, which also misses frames
        if not reader.grab():
            break
        if position in wanted:
            images[position] = cv2.cvtColor(reader.retrieve()[1], cv2.COLOR_BGR2RGB)
    reader.release()
    return np.stack([images[position] for position in wanted])


def plain_pyav(path: str) -> np.ndarray:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        frames = list(container.decode(stream))
    return np.stack([upright(frames[position]) for position in plan(len(frames))])


def frugal_pyav(path: str) -> np.ndarray:
    """The same with two threads, and without keeping frames, so that their memory is used again."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = 2
        images = [upright(frame).copy() for frame in container.decode(stream)]
    return np.stack([images[position] for position in plan(len(images))])


def upright(frame: av.VideoFrame) -> np.ndarray:
    image = frame.reformat(format="rgb24", threads=1).to_ndarray()
    return np.rot90(image, k=frame.rotation // 90)


OURS: dict[str, Reader] = {"Vireo, warm": vireo_warm, "Vireo, cold": vireo_cold, "Vireo, keyframe": vireo_keyframe}
PEERS: dict[str, Reader] = {
    "TorchCodec, exact": partial(torchcodec, mode="exact"),
    "TorchCodec, approximate": partial(torchcodec, mode="approximate"),
    "decord": decord,
    "OpenCV": opencv,
    "PyAV, all": plain_pyav,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, help="each a row of its own")
    parser.add_argument("--clips", dest="folder", type=Path, help="folder whose files are a row each")
    parser.add_argument("--source", type=Path, help="clip from which the two clips of 10 s are made")
    parser.add_argument("--gestures", type=Path, help="folder of class folders; its files share a row")
    parser.add_argument("--count", type=int, default=50, help="files of --gestures, spread evenly")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--endurance", type=int, metavar="READS", help="memory and open files over so many reads")
    parser.add_argument("--fuzz", type=int, metavar="FILES", help="read so many damaged variants of the clips")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips = args.clips + (sorted(p for p in args.folder.iterdir() if p.is_file()) if args.folder else [])
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["VIREO_CACHE"] = scratch
        if args.endurance:
            return endure(clips, args.endurance)
        if args.fuzz:
            return fuzz(clips, args.fuzz, Path(scratch))
        rows = {clip.name: [str(clip)] for clip in clips}
        if args.source:
            for gop in (12, 250):
                made = make_clip(args.source, Path(scratch) / f"gop_{gop}.mp4", gop)
                rows = {f"10 s, groups of {gop}": [str(made)]} | rows
        if args.gestures:
            files = sorted(str(p) for p in args.gestures.glob("*/*.mp4"))
            chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(args.count, len(files))).astype(int)]
            rows[f"{len(chosen)} gesture clips"] = chosen
        compare(rows, args.rounds, Path(scratch))
    return 0


def make_clip(source: Path, path: Path, gop: int) -> Path:
    """10 s of 340×256 from a real clip, played back and forth, in H.264 with x264's defaults."""
    with av.open(str(source)) as container:
        frames = [f.reformat(340, 256, "yuv420p").to_ndarray() for f in container.decode(container.streams.video[0])]
    frames = (frames + frames[::-1]) * (10 * RATE // (2 * len(frames)) + 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": str(gop), "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for i, image in enumerate(frames[: 10 * RATE]):
            frame = av.VideoFrame.from_ndarray(image, format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# Comparing


def compare(rows: dict[str, list[str]], rounds: int, scratch: Path) -> None:
    readers, missing = dict(OURS), []
    for name, reader in PEERS.items():
        why = try_out(reader, next(iter(rows.values()))[0])
        if why:
            missing.append(f"{name}: {why}")
        else:
            readers[name] = reader
    print("| | " + " | ".join(readers) + " | floor | warm, times the best | keyframes off by |")
    print("|---" * (len(readers) + 4) + "|")
    for row, paths in rows.items():
        print(f"| {row} | " + " | ".join(measure(paths, readers, rounds, scratch)) + " |", flush=True)
    where = platform.processor() or machine()
    print(f"\nms of CPU time, median of {rounds} rounds; of several clips the sum. {where}.")
    packages = ("av", "torchcodec", "decord", "opencv-contrib-python-headless", "torch")
    versions = [f"{name} {found}" for name in packages if (found := version(name))]
    print(", ".join([*versions, f"Python {platform.python_version()}"]) + ".")
    for line in missing:
        print(f"Not measured: {line}")


def try_out(reader: Reader, path: str) -> str:
    try:
        reader(path)
    except ImportError as error:
        return f"not installed ({error.name})"
    except Exception as error:
        return str(error).strip().splitlines()[0][:80]
    return ""


def measure(paths: list[str], readers: dict[str, Reader], rounds: int, scratch: Path) -> list[str]:
    """A table's cells: time of each reader, the floor, ours against the best exact peer, distance of keyframes."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    right: dict[str, int] = {}
    failed: set[str] = set()
    for name, reader in readers.items():
        try:
            right[name] = sum(np.array_equal(reader(path), plain_pyav(path)) for path in paths)
        except Exception:  # whatever a peer raises
            failed.add(name)
    floor = []
    for _ in range(rounds):
        for name, reader in readers.items():
            if name in failed:
                continue
            begin = time.process_time()
            for path in paths:
                reader(path)
            times[name].append(1000 * (time.process_time() - begin))
        floor.append(sum(floor_of(path, scratch) for path in paths[:5]) * len(paths) / len(paths[:5]))
    cells = []
    for name in readers:
        if name in failed:
            cells.append("fails")
            continue
        wrong = "" if right[name] == len(paths) else " (other frames)" if len(paths) == 1 else f" ({right[name]} right)"
        cells.append(f"{median(times[name]):.1f}" + ("" if name == "Vireo, keyframe" else wrong))
    cells.append(f"{median(floor):.1f}" if median(floor) else "–")
    peers = [median(times[name]) for name in PEERS if times.get(name) and right[name] == len(paths)]
    everyone = [median(times[name]) for name in PEERS if times.get(name)]
    if "Vireo, warm" in failed or not everyone:
        return [*cells, "–", "–"]
    ours = median(times["Vireo, warm"])
    ratio = f"**{min(peers) / ours:.2f}**" if peers else "–"
    if min(everyone) < min(peers, default=float("inf")):
        ratio += f" ({min(everyone) / ours:.2f} with those that give other frames)"
    moved = np.mean([np.abs(read_frames(path, plan, mode="keyframe").moved).mean() for path in paths])
    return [*cells, ratio, f"{moved:.0f}"]


def floor_of(path: str, scratch: Path) -> float:
    """ms that FFmpeg needs to decode the groups of pictures with wanted frames, up to them; 0 = not known."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return 0.0
    copy = scratch / (f"{abs(hash(path))}.mkv")
    if not copy.exists():
        index = load_index(FileKey.of(path, os.stat(path)))
        if index is None or not index.fast or index.coding.codec == "mpeg4":  # whose packets are not its frames
            return 0.0
        copy_stretches(path, copy, index)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-benchmark", "-threads", "1", "-i", str(copy)]
    result = subprocess.run([*command, "-an", "-fps_mode", "passthrough", "-f", "null", "-"], capture_output=True)
    found = re.search(rb"bench: utime=([\d.]+)s stime=([\d.]+)s", result.stderr)
    return 1000 * (float(found[1]) + float(found[2])) if found else 0.0


def copy_stretches(path: str, target: Path, index: VideoIndex) -> None:
    stretches = index.stretches(np.unique(plan(index.frame_count)))
    with av.open(path) as container, av.open(str(target), "w") as copy:
        stream = container.streams.video[0]
        out = copy.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in container.demux(stream) if p.size):
            if any(first <= number <= last for first, last in stretches):
                packet.stream = out
                copy.mux(packet)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    return text.split("model name", 1)[-1].split(":", 1)[-1].splitlines()[0].strip()


# Endurance


def endure(clips: list[Path], reads: int) -> int:
    """Read the clips over and over; memory and open files must not grow."""
    readers: list[Reader] = [vireo_warm, vireo_warm, vireo_keyframe, vireo_cold]
    begin = (0, 0)
    start = time.perf_counter()
    for number in range(reads):
        path = str(clips[number % len(clips)])
        with contextlib.suppress(DecodeError):
            readers[number // len(clips) % len(readers)](path)
        if number == reads // 20:
            begin = (resident(), len(os.listdir("/proc/self/fd")))
        if number % max(1, reads // 10) == 0:
            print(f"{number} reads: {resident() / 1e6:.0f} MB", flush=True)
    end = (resident(), len(os.listdir("/proc/self/fd")))
    grown, left = (end[0] - begin[0]) / 1e6, end[1] - begin[1]
    seconds = time.perf_counter() - start
    print(f"{reads} reads in {seconds:.0f} s: {grown:+.1f} MB since read {reads // 20}, {left:+d} open files")
    return int(grown >= 50 or left != 0)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Damage


def fuzz(clips: list[Path], count: int, scratch: Path) -> int:
    """Read damaged variants of the clips, each in another process; none may harm this one or hang."""
    items = [(str(clips[i % len(clips)]), str(clips[(7 * i + 3) % len(clips)]), i, str(scratch)) for i in range(count)]
    results: Counter[str] = Counter()
    for number, result in map_in_processes(read_damaged, items, workers=2, timeout=60.0):
        kind = f"crash: {result.reason}" if isinstance(result, Crash) else result
        results[kind] += 1
        if isinstance(result, Crash) or result.startswith("WRONG"):
            print(f"variant {number} of {items[number][0]}: {kind}", flush=True)
    print("| damaged files | read as |\n|---|---|")
    for kind, number in results.most_common():
        print(f"| {number} | {kind} |")
    return int(sum(results.values()) != count)


def read_damaged(item: tuple[str, str, int, str]) -> str:
    source, other, seed, scratch = item
    path = Path(scratch) / f"{seed}{Path(source).suffix}"
    path.write_bytes(damage(Path(source).read_bytes(), Path(other).read_bytes(), random.Random(seed)))
    try:
        try:
            first, second = vireo_warm(str(path)), vireo_warm(str(path))
        except DecodeError:
            return "an error that names the file"
        except MemoryError:
            return "too little memory"
        try:
            probe(path)
            whole = plain_pyav(str(path))
        except (DecodeError, av.error.FFmpegError, ValueError, IndexError):
            return "frames; the damage lies elsewhere in the file"
        if np.array_equal(first, whole) and np.array_equal(second, whole):
            return "the frames of full decoding"
        if not np.array_equal(whole, frugal_pyav(str(path))):
            return "frames that full decoding does not repeat itself (the decoder shows what it finds in memory)"
        return "WRONG frames"
    finally:
        path.unlink()


def damage(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut off, cut out, overwritten by those of another file, or all of it."""
    result = bytearray(data)
    for kind in rng.sample(("flip", "cut", "remove", "splice", "zero"), rng.choice((1, 1, 1, 2))):
        at, size = rng.randrange(len(result)), rng.choice((1, 16, 500, 5000))
        if kind == "flip":
            for _ in range(rng.choice((1, 5, 50, 1000))):
                result[rng.randrange(len(result))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del result[max(1, at) :]
        elif kind == "remove":
            del result[at : at + size]
        elif kind == "splice":
            begin = rng.randrange(len(other))
            result[at : at + size] = other[begin : begin + size]
        else:
            result[at : at + size] = bytes(size)
        if not result:
            result = bytearray(b"\0")
    return bytes(result)


if __name__ == "__main__":
    sys.exit(main())
