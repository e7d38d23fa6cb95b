"""The generated benchmark ``order``: pairs of actions that differ only in the order of their frames.

A scene is drawn once and written twice, forwards under one label and with its frames reversed under
the label of the opposite action. Both files hold the same pictures, bit for bit, so whatever ignores
the order of frames gives both the same answer and is right on exactly one of them at best.
docs/order.md has the argument step by step.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vireo.config import to_dict
from vireo.data.pool import Crash, map_in_processes, usable_cores
from vireo.data.table import counted
from vireo.errors import DataError, MissingDependencyError, StorageError, UnknownNameError, UsageError, writing

Floats = NDArray[np.floating[Any]]  # float32 wherever there are pixels
Rng = np.random.Generator

PAIRS: dict[str, tuple[str, str]] = {
    "push": ("push left to right", "push right to left"),
    "rise": ("rise", "fall"),
    "approach": ("approach", "recede"),
    "open": ("open", "close"),
    "turn": ("turn clockwise", "turn counterclockwise"),
    "put": ("put in", "take out"),
}
"""Name of each pair and the labels of its two actions; each is the other one played backwards."""

FORMAT = 1  # raise it whenever the same config would draw other pictures
QP = 23  # x264's constant quantiser: artefacts are hard to see, a 96-pixel frame takes about 3 kB
_SUMMARY = "order.json"
_TABLE = "order.csv"


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """Which clips are rendered."""

    clips: int = 120
    """Number of clips, even: each scene gives two. Scenes are spread evenly over the pairs."""
    size: int = 96
    """Height and width of the videos, pixels, even."""
    seed: int = 0
    """Seed of everything random. A scene depends on the seed, its pair, its number and the size alone."""
    pairs: tuple[str, ...] = tuple(PAIRS)
    """Pairs of actions: any of push, rise, approach, open, turn, put."""
    val_fraction: float = 0.15
    """Share of the scenes of each pair in the split val; 0 = none."""
    test_fraction: float = 0.25
    """Share of the scenes of each pair in the split test; 0 = none."""

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 1024 or self.size % 2:
            raise UsageError(f"size is {self.size}; it must be an even number of pixels from 32 to 1024")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it can't be negative")
        if not self.pairs or len(set(self.pairs)) < len(self.pairs):
            raise UsageError(f"pairs are {self.pairs}; give at least one of {', '.join(PAIRS)}, each once")
        for name in self.pairs:
            if name not in PAIRS:
                raise UnknownNameError("pair of actions", name, PAIRS)
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        splits = 1 + (self.val_fraction > 0) + (self.test_fraction > 0)
        least = 2 * splits * len(self.pairs)
        if self.clips < least or self.clips % 2:
            of = f"{counted(len(self.pairs), 'pair')} of actions in {counted(splits, 'split')}"
            raise UsageError(
                f"clips is {self.clips}; it must be even, as each scene gives two, and {of} need at least {least} clips"
            )
        scenes = self.clips // 2 // len(self.pairs)  # of the pair with the fewest
        if self.val_fraction + self.test_fraction >= 1 or _split_sizes(scenes, self)[0] < 1:
            raise UsageError(
                f"{self.clips} clips are {scenes} scenes per pair, and none is left to train on "
                f"(val {self.val_fraction:g}, test {self.test_fraction:g}); ask for more clips or smaller fractions"
            )


def make_order(
    out: str | Path,
    config: OrderConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int = -1,
) -> Path:
    """Render the benchmark into a folder.

    Written are ``videos/<label>/<scene>.mp4`` with ``<scene>.json`` beside it (label, split, the
    object's box in every frame), ``order.csv`` (path,label,split,group) and ``order.json`` (the
    config). A folder that holds the finished set already is left as it is; an interrupted one is
    completed.

    Args:
        out: the folder; made if missing.
        config: which clips; None = the defaults.
        progress: called with (clips done, clips in all) after every scene.
        workers: processes that render; -1 = one per core, 0 = none but this one. Doesn't change the files.

    Returns:
        The path of ``order.csv``.

    Raises:
        UsageError: the folder holds something else.
        StorageError: a file could not be written.
    """
    config = config or OrderConfig()
    if workers < -1:
        raise UsageError(f"workers is {workers}; it must be -1, 0 or more")
    out = Path(out)
    table, summary = out / _TABLE, out / _SUMMARY
    finished = _check_folder(out, config)
    jobs = list(_jobs(config))
    todo = [job for job in jobs if not all(_whole(out / p) for p in job.files())]
    if finished and not todo and _whole(table):
        return table
    if "libx264" not in av.codecs_available:
        raise MissingDependencyError("this build of PyAV has no libx264 encoder; `pip install av` brings one")
    about: dict[str, Any] = {
        "benchmark": "order",
        "format": FORMAT,
        "config": to_dict(config),
        "labels": [label for name in config.pairs for label in PAIRS[name]],
        "codec": f"H.264 (libx264), all-intra, constant QP {QP}",
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(summary, _json({**about, "finished": False}))
        for job in jobs:
            for path in job.files():
                (out / path).parent.mkdir(parents=True, exist_ok=True)
        done = len(jobs) - len(todo)
        for _ in _run(todo, out, config.size, _worker_count(workers, len(todo))):
            done += 1
            if progress is not None:
                progress(2 * done, 2 * len(jobs))
        _write(table, _csv(jobs).encode())
        _write(summary, _json({**about, "finished": True}))
    except OSError as error:
        raise StorageError(f"{error.filename or out}: cannot be made: {error.strerror or error}") from error
    return table


# --- which scenes, which splits, which files --------------------------------------------------------------------------


class _Job(NamedTuple):
    """One scene: two clips."""

    pair: str
    number: int
    seed: int
    split: str

    @property
    def group(self) -> str:
        return f"{self.pair}-{self.number:05d}"

    def files(self) -> Iterator[str]:
        """Paths below the set's folder: two videos, each followed by its boxes."""
        for label in PAIRS[self.pair]:
            for ending in ("mp4", "json"):
                yield f"videos/{label}/{self.group}.{ending}"


def _split_sizes(scenes: int, config: OrderConfig) -> tuple[int, int, int]:
    """Scenes of one pair in train, val and test; a split whose fraction isn't 0 gets at least one."""
    val, test = (max(1, round(scenes * f)) if f else 0 for f in (config.val_fraction, config.test_fraction))
    return scenes - val - test, val, test


def _jobs(config: OrderConfig) -> Iterator[_Job]:
    """All scenes, pair by pair."""
    for i, pair in enumerate(config.pairs):
        scenes, rest = divmod(config.clips // 2, len(config.pairs))
        scenes += i < rest
        counts = _split_sizes(scenes, config)
        splits = [name for name, count in zip(("train", "val", "test"), counts, strict=True) for _ in range(count)]
        np.random.default_rng((config.seed, list(PAIRS).index(pair))).shuffle(splits)
        for number, split in enumerate(splits):
            yield _Job(pair, number, config.seed, split)


def _csv(jobs: Sequence[_Job]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "split", "group"))
    for job in jobs:
        for label in PAIRS[job.pair]:
            rows.writerow((f"videos/{label}/{job.group}.mp4", label, job.split, job.group))
    return text.getvalue()


def _check_folder(out: Path, config: OrderConfig) -> bool:
    """Whether the set is there, finished. Raises UsageError if the folder holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise UsageError(f"{out} is a file; name a new folder")
    if not any(out.iterdir()):
        return False
    summary = out / _SUMMARY
    if not summary.is_file():
        raise UsageError(f"{out} is not empty and holds no {_SUMMARY}; name a new folder (nothing was changed)")
    try:
        found = json.loads(summary.read_text("utf-8"))
        old, version, finished = found["config"], found["format"], bool(found["finished"])
        if found["benchmark"] != "order" or not isinstance(old, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{summary} describes no generated set; name a new folder (nothing was changed)") from None
    except OSError as error:
        raise DataError(f"{summary}: cannot be read: {error.strerror}") from None
    new = to_dict(config)
    if version != FORMAT:
        raise UsageError(f"{out} holds a set made by another version of Vireo; name a new folder (nothing was changed)")
    changed = [f"{k} {old.get(k)} instead of {v}" for k, v in new.items() if old.get(k) != v]
    if changed:
        raise UsageError(f"{out} holds another set ({'; '.join(changed)}); name a new folder (nothing was changed)")
    return finished


def _whole(path: Path) -> bool:
    # Files appear under their names only when complete; a crash of the whole machine can leave an empty one.
    return path.is_file() and path.stat().st_size > 0


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    """Atomic: the file appears whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            part.write_bytes(content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


# --- processes --------------------------------------------------------------------------------------------------------


def _worker_count(workers: int, scenes: int) -> int:
    count = min(usable_cores() if workers == -1 else workers, scenes // 4)  # a process for less isn't worth its start
    return 0 if count < 2 else count


def _run(jobs: Sequence[_Job], out: Path, size: int, workers: int) -> Iterator[None]:
    """Render the scenes; yields once per scene that is on disk."""
    for _, result in map_in_processes(partial(_make_scene, out=out, size=size), jobs, workers=workers):
        if isinstance(result, Crash):
            raise DataError(f"while rendering {result.reason}; run again to go on, with fewer workers")
        yield


def _make_scene(job: _Job, out: Path, size: int) -> None:
    """Draw one scene and write both of its clips."""
    scene = render_scene(job.pair, job.number, seed=job.seed, size=size)
    # One conversion for both clips: the encoder sees identical pictures.
    plain = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in scene.frames)
    pictures = [frame.reformat(format="yuv420p", threads=1) for frame in plain]
    first, second = PAIRS[job.pair]
    for label in (first, second):
        step = 1 if label == scene.label else -1
        about = {
            "video": f"{job.group}.mp4",
            "label": label,
            "split": job.split,
            "group": job.group,
            "width": size,
            "height": size,
            "boxes": scene.boxes[::step].tolist(),
        }
        folder = out / "videos" / label
        _write(folder / f"{job.group}.mp4", _encode(pictures[::step], scene.fps, size))
        _write(folder / f"{job.group}.json", (json.dumps(about) + "\n").encode())


def _encode(pictures: Sequence[av.VideoFrame], fps: int, size: int) -> bytes:
    """An MP4 file in which every frame is coded by itself, at one quantiser.

    So a frame's decoded pixels depend on that frame alone and not on its neighbours or its place.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"qp": str(QP), "preset": "ultrafast", "x264-params": "keyint=1:bframes=0:threads=1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for i, picture in enumerate(pictures):
            picture.pts, picture.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


# --- scenes -----------------------------------------------------------------------------------------------------------
# Lengths and places are in units of the frame's side, x to the right, y down; angles are in radians, clockwise.


class Scene(NamedTuple):
    """A drawn scene; reversed as a whole it is an instance of the partner's label."""

    frames: NDArray[np.uint8]
    """(F, S, S, 3), RGB; F is odd, 25 to 71."""
    boxes: NDArray[np.int64]
    """(F, 4): x0, y0, x1, y1 of the object, pixels, the right and bottom edge exclusive, clipped to the frame."""
    label: str
    """What the object does in these frames, in this order."""
    fps: int


class _Placed(NamedTuple):
    """A sprite somewhere in the world."""

    sprite: _Sprite
    x: float
    y: float
    half: float  # half the sprite's side
    angle: float = 0.0
    is_object: bool = True


_Actor = Callable[[float], list[_Placed]]  # progress in [0, 1] -> what to draw, back to front


def render_scene(pair: str, number: int, *, seed: int, size: int, calm: bool = False) -> Scene:
    """Draw one scene.

    Args:
        pair: a key of `PAIRS`.
        number: of the scene within its pair.
        seed: of the set.
        size: height and width, pixels.
        calm: without camera shake, moving distractors, changes of light and grain (to test the rest).
    """
    rng = np.random.default_rng((seed, list(PAIRS).index(pair), number))
    count = 2 * int(rng.integers(12, 36)) + 1
    fps = int(rng.choice((24, 25, 30)))
    margin = round(0.09 * size)
    world = _background(rng, size + 2 * margin)
    tone = world.mean((0, 1))
    for _ in range(int(rng.integers(0, 5))):  # static clutter becomes part of the background
        small = _sprite(rng, size, _colours(rng))
        half = rng.uniform(0.05, 0.11)
        x, y = rng.uniform(0, 1, 2)
        at = (x * size + margin, y * size + margin)
        _draw(world, small, *at, half * size, rng.uniform(0, 2 * math.pi))
    movers = [_mover(rng, size, count) for _ in range(int(rng.integers(0, 3)))]
    actor = _ACTORS[pair](rng, size, tone)
    pace = _pace(rng, count)
    backwards = bool(rng.random() < 0.5)  # else any trait of the drawing would point to one of the two labels
    if backwards:
        pace = 1 - pace
    # Sums of waves with random phases: the same in law at every moment and in both directions of time.
    shake = rng.uniform(0.002, 0.009) * np.stack([_waves(rng, count, 0.04, 0.16) for _ in range(2)], 1)
    shake += rng.uniform(0, 0.012) * np.stack([_waves(rng, count, 0.003, 0.015) for _ in range(2)], 1)
    shake = np.clip(shake, -0.08, 0.08)
    light = _light(rng, size, count)
    grain = rng.uniform(0.004, 0.016)
    frames = np.empty((count, size, size, 3), np.uint8)
    boxes = np.empty((count, 4), np.int64)
    for i in range(count):
        dx, dy = (0.0, 0.0) if calm else shake[i]
        frame = _shifted(world, margin - dx * size, margin - dy * size, size)
        layers = [] if calm else [m(i) for m in movers]
        found: list[tuple[int, int, int, int]] = []
        for p in layers + actor(float(pace[i])):
            box = _draw(frame, p.sprite, (p.x + dx) * size, (p.y + dy) * size, p.half * size, p.angle)
            if box and p.is_object:
                found.append(box)
        edges = np.array(found)
        boxes[i] = (*edges[:, :2].min(0), *edges[:, 2:].max(0))
        if not calm:
            frame *= light(i)
            frame += grain * rng.standard_normal((size, size, 1), np.float32)
        frame *= 255
        frame += 0.5
        frames[i] = np.clip(frame, 0, 255, out=frame)
    return Scene(frames, boxes, PAIRS[pair][backwards], fps)


def _waves(rng: Rng, count: int, slow: float, fast: float) -> NDArray[np.float64]:
    """(count,) smooth noise of unit variance: waves of random frequency (cycles per frame) and phase."""
    rate, phase = rng.uniform(slow, fast, (4, 1)), rng.uniform(0, 2 * math.pi, (4, 1))
    weight = rng.dirichlet(np.ones(4))[:, None] ** 0.5
    return np.asarray((weight * np.sin(2 * math.pi * rate * np.arange(count) + phase)).sum(0) * 2**0.5)


def _pace(rng: Rng, count: int) -> NDArray[np.float64]:
    """(count,) progress of the action from 0 to 1, never back: pauses, then one of several easings."""
    before, after = rng.uniform(0, 0.15, 2)
    t = np.clip((np.linspace(0, 1, count) - before) / (1 - before - after), 0, 1)
    if rng.random() < 0.25:  # a halt on the way
        where, length = rng.uniform(0.3, 0.7), rng.uniform(0.08, 0.2)
        t = np.interp(t, (0, where - length / 2, where + length / 2, 1), (0, where, where, 1))
    power = rng.uniform(1, 1.7)
    ease: list[Callable[[], NDArray[np.float64]]] = [
        lambda: t,
        lambda: t * t * (3 - 2 * t),
        lambda: t**power,
        lambda: 1 - (1 - t) ** power,
    ]
    return ease[int(rng.integers(len(ease)))]()


def _light(rng: Rng, size: int, count: int) -> Callable[[int], Floats]:
    """Gain per frame, (S, S, 3) or what broadcasts to it: drift, flicker, tint, a moving vignette."""
    level = 1 + rng.uniform(0.02, 0.1) * _waves(rng, count, 0.002, 0.03)
    level += rng.uniform(0, 0.015) * rng.standard_normal(count)
    slope = rng.uniform(0, 0.12) * np.stack([_waves(rng, count, 0.002, 0.02) for _ in range(2)], 1)
    tint = (1 + 0.05 * rng.standard_normal(3)).astype(np.float32)
    depth = rng.uniform(0, 0.35)
    centre = 0.15 * np.stack([_waves(rng, count, 0.002, 0.01) for _ in range(2)], 1)
    axis = np.linspace(-1, 1, size, dtype=np.float32)

    def gain(i: int) -> Floats:
        across, down = (level[i] / 2 + slope[i, k] * axis - depth / 2 * (axis - centre[i, k]) ** 2 for k in range(2))
        field = (across[None, :] + down[:, None]).astype(np.float32)
        return np.asarray(field[:, :, None] * tint, np.float32)

    return gain


def _mover(rng: Rng, size: int, count: int) -> Callable[[int], _Placed]:
    """A small distractor with a motion of its own: it swings, wanders or spins."""
    sprite = _sprite(rng, size, _colours(rng))
    half = rng.uniform(0.05, 0.1)
    home = rng.uniform(0.1, 0.9, 2)
    kind = int(rng.integers(3))
    reach, heading = rng.uniform(0.05, 0.25), rng.uniform(0, 2 * math.pi)
    path = np.zeros((count, 2))
    turn = np.full(count, rng.uniform(0, 2 * math.pi))
    if kind == 0:
        swing = _waves(rng, count, 0.01, 0.04) * reach
        path = np.outer(swing, (math.cos(heading), math.sin(heading)))
    elif kind == 1:
        path = reach * np.stack([_waves(rng, count, 0.005, 0.03) for _ in range(2)], 1)
    else:
        turn = turn + rng.uniform(-0.15, 0.15) * np.arange(count)
    path += home
    return lambda i: _Placed(sprite, path[i, 0], path[i, 1], half, float(turn[i]), is_object=False)


# --- the six actions --------------------------------------------------------------------------------------------------


def _with_shadow(rng: Rng, actor: _Actor) -> _Actor:
    """Every other object casts a soft shadow."""
    if rng.random() < 0.5:
        return actor
    dx, dy = rng.uniform(-0.04, 0.04), rng.uniform(0.01, 0.05)

    def both(p: float) -> list[_Placed]:
        things = actor(p)
        shades = [
            t._replace(sprite=_shadow(t.sprite), x=t.x + dx, y=t.y + dy, is_object=False) for t in things if t.is_object
        ]
        return shades + things

    return both


def _travel(rng: Rng, size: int, tone: Floats, axis: int) -> _Actor:
    """Along one axis, with a little drift and sway across it."""
    sprite, half = _sprite(rng, size, _colours(rng, tone)), rng.uniform(0.18, 0.26)
    length = rng.uniform(0.38, 0.55)
    start = rng.uniform(0.2, 0.8 - length)
    across, drift = rng.uniform(0.3, 0.7), rng.uniform(-0.08, 0.08)
    angle, roll = rng.uniform(0, 2 * math.pi), rng.uniform(-0.5, 0.5)

    def actor(p: float) -> list[_Placed]:
        along, side = start + length * p, across + drift * (p - 0.5)
        x, y = (along, side) if axis == 0 else (side, 1 - along)
        return [_Placed(sprite, x, y, half, angle + roll * p)]

    return _with_shadow(rng, actor)


def _push(rng: Rng, size: int, tone: Floats) -> _Actor:
    return _travel(rng, size, tone, 0)


def _rise(rng: Rng, size: int, tone: Floats) -> _Actor:
    return _travel(rng, size, tone, 1)


def _approach(rng: Rng, size: int, tone: Floats) -> _Actor:
    """The object comes nearer: its size grows as one over a distance that shrinks evenly."""
    sprite = _sprite(rng, size, _colours(rng, tone))
    near = rng.uniform(0.27, 0.36)
    far = near / rng.uniform(2.0, 2.8)
    x, y = rng.uniform(0.36, 0.64, 2)
    drift = rng.uniform(-0.1, 0.1, 2)
    angle, roll = rng.uniform(0, 2 * math.pi), rng.uniform(-0.3, 0.3)

    def actor(p: float) -> list[_Placed]:
        half = 1 / ((1 - p) / far + p / near)
        return [_Placed(sprite, x + drift[0] * (p - 0.5), y + drift[1] * (p - 0.5), half, angle + roll * p)]

    return _with_shadow(rng, actor)


def _turn(rng: Rng, size: int, tone: Floats) -> _Actor:
    """Clockwise by less than half a turn, so that eight frames show the direction."""
    sprite, half = _sprite(rng, size, _colours(rng, tone), shapes=_LOPSIDED), rng.uniform(0.28, 0.38)
    x, y = rng.uniform(0.4, 0.6, 2)
    drift = rng.uniform(-0.06, 0.06, 2)
    start, sweep = rng.uniform(0, 2 * math.pi), rng.uniform(1.5, 3.0)

    def actor(p: float) -> list[_Placed]:
        return [_Placed(sprite, x + drift[0] * (p - 0.5), y + drift[1] * (p - 0.5), half, start + sweep * p)]

    return _with_shadow(rng, actor)


def _open(rng: Rng, size: int, tone: Floats) -> _Actor:
    """Two halves part: they slide, swing about a common hinge, or one is a lid."""
    whole = _sprite(rng, size, _colours(rng, tone), shapes=_SOLID)
    left, right = _cut(whole)
    inside = _sprite(rng, size, _colours(rng) * rng.choice((0.35, 1.0)), shapes=_SOLID[:1])
    half = rng.uniform(0.19, 0.26)
    x, y = rng.uniform(0.38, 0.62, 2)
    tilt = rng.uniform(0, 2 * math.pi)
    ahead = np.array((math.cos(tilt), math.sin(tilt)))  # the sprite's own x axis: across the cut
    down = np.array((-ahead[1], ahead[0]))
    kind = ("slide", "jaws", "lid")[int(rng.integers(3))]
    reach = rng.uniform(0.55, 0.85) * half if kind == "slide" else rng.uniform(0.6, 1.0)
    back = _Placed(inside, x, y, 0.72 * half, tilt, is_object=False)

    def slide(p: float) -> list[_Placed]:
        dx, dy = reach * p * ahead
        return [back, _Placed(left, x - dx, y - dy, half, tilt), _Placed(right, x + dx, y + dy, half, tilt)]

    def swing(p: float) -> list[_Placed]:
        arm = -0.8 * half * down  # from the hinge to the middle of the closed object
        things = [back]
        for sprite, sign in ((left, -1.0), (right, 1.0)):
            if kind == "lid":
                sign = 0.0 if sign < 0 else 1.7
            angle = sign * reach * p
            c, s = math.cos(angle), math.sin(angle)
            dx, dy = c * arm[0] - s * arm[1] - arm[0], s * arm[0] + c * arm[1] - arm[1]
            things.append(_Placed(sprite, x + dx, y + dy, half, tilt + angle))
        return things

    return _with_shadow(rng, slide if kind == "slide" else swing)


def _put(rng: Rng, size: int, tone: Floats) -> _Actor:
    """Over the rim of a container and down behind its front wall."""
    back, front = _container(rng, size, _colours(rng, tone))
    sprite = _sprite(rng, size, _colours(rng, tone))
    wide, half = rng.uniform(0.26, 0.32), rng.uniform(0.14, 0.17)
    tilt = rng.uniform(-0.5, 0.5)
    home = np.array((rng.uniform(0.4, 0.6), rng.uniform(0.64, 0.72)))
    c, s = math.cos(tilt), math.sin(tilt)

    def place(u: float, v: float) -> NDArray[np.float64]:  # container's own axes, in units of its half side
        return home + wide * np.array((c * u - s * v, s * u + c * v))

    side = rng.choice((-1.0, 1.0))
    start = place(side * rng.uniform(0, 0.9), rng.uniform(-1.75, -1.45))
    over, end = place(rng.uniform(-0.15, 0.15), -1.3), place(rng.uniform(-0.2, 0.2), rng.uniform(0.0, 0.25))
    start = np.clip(start, 0.14, 0.86)
    angle, roll = rng.uniform(0, 2 * math.pi), rng.uniform(-0.8, 0.8)

    def actor(p: float) -> list[_Placed]:
        x, y = (1 - p) ** 2 * start + 2 * p * (1 - p) * over + p**2 * end
        return [
            _Placed(back, home[0], home[1], wide, tilt, is_object=False),
            _Placed(sprite, x, y, half, angle + roll * p),
            _Placed(front, home[0], home[1], wide, tilt, is_object=False),
        ]

    return actor


_ACTORS: dict[str, Callable[[Rng, int, Floats], _Actor]] = {
    "push": _push,
    "rise": _rise,
    "approach": _approach,
    "open": _open,
    "turn": _turn,
    "put": _put,
}


# --- sprites: textured shapes -----------------------------------------------------------------------------------------


class _Sprite(NamedTuple):
    """A picture with transparency, at full, half, quarter ... size; (n, n, 4), colours times alpha."""

    levels: tuple[Floats, ...]


def _levels(picture: Floats) -> _Sprite:
    levels = [picture]
    while levels[-1].shape[0] >= 16:
        n = levels[-1].shape[0] // 2 * 2
        levels.append(levels[-1][:n, :n].reshape(n // 2, 2, n // 2, 2, 4).mean((1, 3)))
    return _Sprite(tuple(levels))


def _grid(n: int) -> tuple[Floats, Floats]:
    """Coordinates u (right) and v (down) of the centres of n by n pixels that cover [-1, 1]²."""
    axis = ((np.arange(n, dtype=np.float32) + 0.5) * 2 / n - 1).astype(np.float32)
    return np.broadcast_to(axis[None, :], (n, n)), np.broadcast_to(axis[:, None], (n, n))


# Shapes: (rng, u, v) -> about the distance to the edge, negative inside; they fit into a radius of 0.9.
def _disc(rng: Rng, u: Floats, v: Floats) -> Floats:
    return np.asarray(np.hypot(u, v) - 0.86)


def _box(rng: Rng, u: Floats, v: Floats) -> Floats:
    w, h = rng.uniform(0.55, 0.7, 2)
    corner = rng.uniform(0.05, 0.3)
    a, b = np.abs(u) - w + corner, np.abs(v) - h + corner
    return np.asarray(np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - corner)


def _slab(rng: Rng, u: Floats, v: Floats) -> Floats:
    return np.maximum(np.abs(u) - 0.82, np.abs(v) - rng.uniform(0.3, 0.42))


def _polygon(rng: Rng, u: Floats, v: Floats) -> Floats:
    corners = int(rng.integers(3, 7))
    step = 2 * math.pi / corners
    around = np.mod(np.arctan2(v, u), step) - step / 2
    return np.asarray(np.hypot(u, v) * np.cos(around) - 0.88 * math.cos(step / 2))


def _star(rng: Rng, u: Floats, v: Floats) -> Floats:
    points, depth = int(rng.integers(4, 7)), rng.uniform(0.35, 0.5)
    wave = np.abs(np.mod(np.arctan2(v, u) * points / (2 * math.pi), 1) * 2 - 1)
    return np.asarray((np.hypot(u, v) - 0.9 * (1 - depth * (1 - wave))) * 0.8)


def _ring(rng: Rng, u: Floats, v: Floats) -> Floats:
    width = rng.uniform(0.16, 0.24)
    return np.asarray(np.abs(np.hypot(u, v) - 0.87 + width) - width)


def _cross(rng: Rng, u: Floats, v: Floats) -> Floats:
    width = rng.uniform(0.22, 0.34)
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.82, b - width), np.maximum(a - width, b - 0.82))


def _bar(rng: Rng, u: Floats, v: Floats) -> Floats:
    width = rng.uniform(0.25, 0.38)
    return np.asarray(np.hypot(np.maximum(np.abs(u) - 0.88 + width, 0), v) - width)


def _wedge(rng: Rng, u: Floats, v: Floats) -> Floats:
    return np.asarray(np.maximum(np.abs(v) - 0.45 * (0.95 - u) / 1.4, np.abs(u) - 0.75))


def _angle(rng: Rng, u: Floats, v: Floats) -> Floats:
    width = rng.uniform(0.2, 0.28)
    long = np.maximum(np.abs(u + 0.55 - width), np.abs(v) - 0.72 + width)
    foot = np.maximum(np.abs(v - 0.62 + width), np.abs(u) - 0.68 + width)
    return np.asarray(np.minimum(long, foot) - width)


def _blob(rng: Rng, u: Floats, v: Floats) -> Floats:
    around = np.arctan2(v, u)
    radius = np.full_like(around, 0.66)
    for k in (1, 2, 3):
        radius = radius + 0.07 * np.cos(k * around + rng.uniform(0, 2 * math.pi))
    return np.asarray(np.hypot(u, v) - radius)


_Shape = Callable[[Rng, Floats, Floats], Floats]
_SOLID: tuple[_Shape, ...] = (_box, _disc, _polygon, _blob)
_LOPSIDED: tuple[_Shape, ...] = (_bar, _wedge, _angle, _slab)
_SHAPES: tuple[_Shape, ...] = (*_SOLID, _star, _ring, _cross, _bar, _wedge, _angle)


def _sprite(rng: Rng, size: int, colours: Floats, *, shapes: Sequence[_Shape] = _SHAPES) -> _Sprite:
    """A textured, shaded, outlined shape for videos of this size."""
    n = 2 * round(0.32 * size)
    u, v = _grid(n)
    edge = shapes[int(rng.integers(len(shapes)))](rng, u, v)
    paint = _texture(rng, n, colours)
    return _finish(rng, paint, edge, u, v)


def _finish(rng: Rng, paint: Floats, edge: Floats, u: Floats, v: Floats) -> _Sprite:
    n = len(edge)
    way, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.4)
    paint = paint * (1 + strength * (math.cos(way) * u + math.sin(way) * v))[:, :, None]
    if rng.random() < 0.6:  # an outline, darker or lighter
        rim = np.clip((edge + rng.uniform(0.06, 0.14)) * n / 2 + 0.5, 0, 1)[:, :, None]
        paint = paint * (1 - rim) + rim * np.float32(rng.choice((0.08, 0.92)))
    alpha = np.clip(0.5 - edge * n / 2, 0, 1)
    alpha[[0, -1]] = alpha[:, [0, -1]] = 0  # a clear border, so that sampling may clamp there
    return _levels(np.dstack((np.clip(paint, 0, 1) * alpha[:, :, None], alpha)).astype(np.float32))


def _cut(sprite: _Sprite) -> tuple[_Sprite, _Sprite]:
    """The left and the right half of a sprite."""
    picture = sprite.levels[0]
    middle = picture.shape[1] // 2
    left, right = picture.copy(), picture.copy()
    left[:, middle:] = 0
    right[:, :middle] = 0
    return _levels(left), _levels(right)


def _shadow(sprite: _Sprite) -> _Sprite:
    small = sprite.levels[-1] * np.array((0, 0, 0, 0.4), np.float32)  # few pixels, drawn large: soft
    return _Sprite((small,))


def _container(rng: Rng, size: int, colours: Floats) -> tuple[_Sprite, _Sprite]:
    """Back wall with the dark inside, and the front wall that hides what is in it."""
    n = 2 * round(0.32 * size)
    u, v = _grid(n)
    taper, rim = rng.uniform(-0.15, 0.25), rng.uniform(-0.3, -0.15)
    sides = np.abs(u) - (0.78 - taper * (v + 0.5) / 1.4)
    front = np.maximum(sides, np.maximum(rim - v, v - 0.88))
    back = np.maximum(sides, np.maximum(rim - rng.uniform(0.15, 0.3) - v, v - 0.88))
    paint = _texture(rng, n, colours)
    shade = rng.uniform(0.25, 0.5)
    return _finish(rng, paint * np.float32(shade), back, u, v), _finish(rng, paint, front, u, v)


# --- colours and textures ---------------------------------------------------------------------------------------------


def _colours(rng: Rng, against: Floats | None = None, vivid: float = 0.8) -> Floats:
    """(3, 3): three colours; their mean keeps a distance from ``against``. vivid 0 = greys, 1 = anything."""
    while True:
        base = rng.uniform(0.08, 0.95, 3)
        spread = rng.uniform(0.1, 0.4)
        colours = base + spread * rng.standard_normal((3, 3))
        grey = colours.mean(1, keepdims=True)
        colours = np.asarray(np.clip(grey + vivid * (colours - grey), 0.04, 0.96), np.float32)
        if against is None or float(np.abs(colours.mean(0) - against).max()) > 0.28:
            return colours


def _noise(rng: Rng, n: int, cells: int, octaves: int) -> Floats:
    """(n, n) in [0, 1]: random values on ever finer lattices, smoothly joined."""
    total = np.zeros((n, n), np.float32)
    weight = 1.0
    for _ in range(octaves):
        at = np.linspace(0, cells, n, endpoint=False)
        cell = at.astype(int)
        f = at - cell
        f = f * f * (3 - 2 * f)
        mix = np.zeros((n, cells + 1), np.float32)
        mix[np.arange(n), cell] = 1 - f
        mix[np.arange(n), cell + 1] = f
        total += np.float32(weight) * (mix @ rng.random((cells + 1, cells + 1), np.float32) @ mix.T)
        weight *= 0.55
        cells *= 2
    low, high = total.min(), total.max()
    return np.asarray((total - low) / (high - low + 1e-6))


def _texture(rng: Rng, n: int, colours: Floats, scale: float = 1.0) -> Floats:
    """(n, n, 3): one of six patterns in these colours; scale 1 suits an object, more is finer."""
    u, v = _grid(n)
    way = rng.uniform(0, 2 * math.pi)
    a, b = math.cos(way) * u + math.sin(way) * v, math.cos(way) * v - math.sin(way) * u
    rate = scale * rng.uniform(0.8, 1.8)
    kind = int(rng.integers(6))
    if kind == 0:
        mix = _noise(rng, n, max(2, round(2 * rate)), 3)
    elif kind == 1:  # stripes
        mix = 0.5 + 0.5 * np.clip(3 * np.sin(math.pi * rate * a + rng.uniform(0, 6)), -1, 1)
    elif kind == 2:  # checks
        mix = 0.5 + 0.5 * np.clip(6 * np.sin(math.pi * rate * a) * np.sin(math.pi * rate * b), -1, 1)
    elif kind == 3:  # dots
        mix = np.clip(4 * (np.cos(math.pi * rate * a * 1.3) * np.cos(math.pi * rate * b * 1.3) - 0.3), 0, 1)
    elif kind == 4:  # two halves, softly joined
        mix = np.clip(0.5 + rng.uniform(0.6, 6) * (a + rng.uniform(-0.2, 0.2)), 0, 1)
    else:  # patches around random points
        points = rng.uniform(-1, 1, (max(3, round(5 * rate**2)), 2)).astype(np.float32)
        nearest = np.argmin([(u - x) ** 2 + (v - y) ** 2 for x, y in points], 0)
        mix = rng.random(len(points))[nearest]
    mix = np.asarray(mix, np.float32)[:, :, None]
    fine = _noise(rng, n, max(3, round(5 * scale)), 2)[:, :, None]
    paint = colours[0] * (1 - mix) + colours[1] * mix
    return np.asarray(paint + rng.uniform(0.05, 0.35) * (fine - 0.5) * 2 * (colours[2] - paint), np.float32)


def _background(rng: Rng, n: int) -> Floats:
    """(n, n, 3): one texture, or two that meet at a line (a wall and a floor)."""
    colours = _colours(rng, vivid=rng.uniform(0.1, 0.6))
    contrast = rng.uniform(0.2, 0.7)
    colours = colours.mean(0) + contrast * (colours - colours.mean(0))
    world = _texture(rng, n, colours, rng.uniform(1.5, 5))
    if rng.random() < 0.4:
        u, v = _grid(n)
        tilt, height = rng.uniform(-0.3, 0.3), rng.uniform(-0.4, 0.5)
        floor = np.clip((v - height - tilt * u) * n / 4 + 0.5, 0, 1)[:, :, None]
        other = np.clip(colours + rng.uniform(-0.25, 0.25) + rng.uniform(-0.08, 0.08, 3), 0.05, 0.95).astype(np.float32)
        world = world * (1 - floor) + floor * _texture(rng, n, other, rng.uniform(1.5, 5))
    world = world * (1 + 0.25 * (_noise(rng, n, 2, 2)[:, :, None] - 0.5))
    return np.asarray(np.clip(world, 0, 1), np.float32)


# --- drawing ----------------------------------------------------------------------------------------------------------


def _shifted(world: Floats, x: float, y: float, size: int) -> Floats:
    """(size, size, 3): the part of the world whose corner is at (x, y), between pixels too."""
    i, j = math.floor(y), math.floor(x)
    fy, fx = np.float32(y - i), np.float32(x - j)
    part = world[i : i + size + 1, j : j + size + 1]
    rows = part[:-1] * (1 - fy) + part[1:] * fy
    return np.asarray(rows[:, :-1] * (1 - fx) + rows[:, 1:] * fx)


def _draw(
    frame: Floats, sprite: _Sprite, x: float, y: float, half: float, angle: float
) -> tuple[int, int, int, int] | None:
    """Lay a sprite over a frame (S, S, 3), centre (x, y), half its side, all in pixels.

    Returns:
        The box x0, y0, x1, y1 of what is more than half opaque, or None where nothing shows.
    """
    height, width = frame.shape[:2]
    c, s = math.cos(angle), math.sin(angle)
    reach = half * (abs(c) + abs(s))  # of the turned square
    x0, x1 = max(0, math.floor(x - reach)), min(width, math.ceil(x + reach))
    y0, y1 = max(0, math.floor(y - reach)), min(height, math.ceil(y + reach))
    if x0 >= x1 or y0 >= y1:
        return None
    picture = next((p for p in sprite.levels if len(p) <= 3 * half), sprite.levels[-1])
    n = len(picture)
    k = n / (2 * half)
    dx = (np.arange(x0, x1) + (0.5 - x)).astype(np.float32) * np.float32(k)
    dy = (np.arange(y0, y1) + (0.5 - y)).astype(np.float32)[:, None] * np.float32(k)
    u = np.clip(np.float32(c) * dx + np.float32(s) * dy + np.float32((n - 1) / 2), 0, n - 1.001)
    v = np.clip(np.float32(c) * dy - np.float32(s) * dx + np.float32((n - 1) / 2), 0, n - 1.001)
    iu, iv = u.astype(np.int32), v.astype(np.int32)
    fu, fv = (u - iu)[:, :, None], (v - iv)[:, :, None]
    flat, at = picture.reshape(-1, 4), iv * n + iu
    top, low = flat.take(at, 0), flat.take(at + n, 0)
    top += fu * (flat.take(at + 1, 0) - top)
    low += fu * (flat.take(at + n + 1, 0) - low)
    top += fv * (low - top)
    alpha = top[:, :, 3:]
    part = frame[y0:y1, x0:x1]
    part *= 1 - alpha
    part += top[:, :, :3]
    solid = alpha[:, :, 0] > 0.5
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    if not len(rows):
        return None
    return x0 + int(columns[0]), y0 + int(rows[0]), x0 + int(columns[-1]) + 1, y0 + int(rows[-1]) + 1
