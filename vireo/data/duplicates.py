"""Clips that show the same thing: copies, also at another size, quality or frame rate.

Every clip is reduced to a signature: 12 frames, evenly spaced, as 8 × 8 grey cells. Two of its parts count:

    change      the cells less their mean over time: what moves, where and when
    picture     the cells less each frame's mean: the scene, whatever its brightness

Clips of one fixed camera share the scene, so likeness of pictures alone proves nothing, and a clip played
backwards has the same frames as the clip: near-duplicates agree in *change*, frame by frame and in order, and in
picture too. Where nothing moves there is no change to compare; such clips count as copies only if their cells
are equal but for rounding. Clips that show one colour say nothing and are never near-duplicates.

Pairs are found without comparing all with all: signs of random projections of the change (SimHash: Charikar,
"Similarity estimation techniques from rounding algorithms", STOC 2002) are cut into bands, clips that agree in
all bits of a band are candidates, and candidates are compared by their signatures.

A part of a longer clip is not found, nor is a mirror image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

FRAMES = 12
"""Frames of a signature."""
CELLS = 8
"""Cells in each row and column of a frame of a signature."""
SAME_CHANGE = 0.8
"""Cosine of two clips' change from which they are near-duplicates."""
SAME_PICTURE = 0.93
"""Cosine of two clips' pictures from which they are near-duplicates."""
STILL = 1.2
"""Root mean square of a clip's change, grey levels, below which it is no more than noise and rounding."""
PLAIN = 2.0
"""Root mean square of a clip's picture, grey levels, below which it shows one colour."""

_EQUAL = 0.7  # root mean square difference of two still clips, grey levels: rounding and recompression
_BANDS = 32
_FEWEST_BITS, _MOST_BITS = 10, 18  # in a band: the more clips, the more, or all would be candidates
_NEIGHBOURS = 8  # compared with each clip in a band; buckets of that size or less are compared completely
_ROWS = 4096  # signatures worked on at a time, so that memory stays small


class Pairs(NamedTuple):
    """P pairs of clips."""

    first: Int64
    """(P,) indices, each smaller than the one in ``second``."""
    second: Int64
    """(P,)"""
    similarity: npt.NDArray[np.float64]
    """(P,) from 0 to 1: cosine of what is least alike."""


def signature(frames: Tensor) -> UInt8:
    """The signature of a clip.

    Args:
        frames: (FRAMES, 3, H, W) uint8 RGB, evenly spaced in the clip.

    Returns:
        (FRAMES, CELLS, CELLS) uint8.
    """
    cells = [adaptive_avg_pool2d(frame.float().mean(0, keepdim=True), CELLS) for frame in frames]  # one at a time: size
    return np.stack([cell[0].round().byte().numpy() for cell in cells])


def motion_of(signatures: UInt8) -> npt.NDArray[np.float64]:
    """(N,) root mean square of each clip's change, grey levels."""
    return _in_chunks(signatures, lambda part: _rms(_change(part)))


def contrast_of(signatures: UInt8) -> npt.NDArray[np.float64]:
    """(N,) root mean square of each clip's picture, grey levels."""
    return _in_chunks(signatures, lambda part: _rms(_picture(part)))


def near_duplicates(signatures: UInt8) -> Pairs:
    """Pairs of clips that show the same thing in the same order.

    Among more than a few copies of one clip not every pair is named, but enough to connect them all.

    Args:
        signatures: (N, FRAMES, CELLS, CELLS) uint8.
    """
    moves, contrast = motion_of(signatures), contrast_of(signatures)
    # Noise puts a clip and its copy on different sides of a limit: near it, both ways are tried.
    moving = np.flatnonzero(moves >= STILL)
    still = np.flatnonzero((moves < 1.5 * STILL) & (contrast >= PLAIN))
    found = [
        _verified(signatures, _candidates(signatures, moving, _change), _alike),
        _verified(signatures, _candidates(signatures, still, _mean_picture), _equal),
    ]
    first, second, similarity = (np.concatenate(columns) for columns in zip(*found, strict=True))
    _, once = np.unique(first * len(signatures) + second, return_index=True)
    return Pairs(first[once], second[once], similarity[once])


def connected(n: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Groups of two or more of ``n`` things that pairs connect, directly or not; each sorted, by first member."""
    parent = list(range(n))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    touched: set[int] = set()
    for a, b in pairs:
        touched.update((a, b))
        roots = find(a), find(b)
        parent[max(roots)] = min(roots)
    groups: dict[int, list[int]] = {}
    for i in sorted(touched):
        groups.setdefault(find(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _in_chunks(signatures: UInt8, function: Callable[[UInt8], npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    parts = [function(signatures[i : i + _ROWS]) for i in range(0, len(signatures), _ROWS)]
    return np.concatenate(parts) if parts else np.empty(0)


def _picture(signatures: UInt8) -> Float32:
    """(n, FRAMES·CELLS²) cells less the mean of their frame."""
    cells = signatures.reshape(len(signatures), FRAMES, -1).astype(np.float32)
    cells -= cells.mean(axis=2, keepdims=True)
    return cells.reshape(len(signatures), -1)


def _change(signatures: UInt8) -> Float32:
    """(n, FRAMES·CELLS²) the picture less its mean over time."""
    cells = _picture(signatures).reshape(len(signatures), FRAMES, -1)
    cells -= cells.mean(axis=1, keepdims=True)
    return cells.reshape(len(signatures), -1)


def _mean_picture(signatures: UInt8) -> Float32:
    """(n, CELLS²) the picture's mean over time."""
    mean: Float32 = _picture(signatures).reshape(len(signatures), FRAMES, -1).mean(axis=1)
    return mean


def _rms(values: Float32) -> npt.NDArray[np.float64]:
    rms: npt.NDArray[np.float64] = np.sqrt(np.mean(values**2, axis=1, dtype=np.float64))
    return rms


def _cosine(a: Float32, b: Float32) -> npt.NDArray[np.float64]:
    dot: npt.NDArray[np.float64] = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", a, a, dtype=np.float64) * np.einsum("ij,ij->i", b, b, dtype=np.float64))
    cosine: npt.NDArray[np.float64] = np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)
    return cosine


def _alike(a: UInt8, b: UInt8) -> npt.NDArray[np.float64]:
    """(n,) similarity of pairs of moving clips; 0 = not duplicates."""
    change, picture = _cosine(_change(a), _change(b)), _cosine(_picture(a), _picture(b))
    return np.where((change >= SAME_CHANGE) & (picture >= SAME_PICTURE), np.minimum(change, picture), 0.0)


def _equal(a: UInt8, b: UInt8) -> npt.NDArray[np.float64]:
    """(n,) similarity of pairs of still clips; 0 = not duplicates."""
    one, other = _picture(a), _picture(b)
    return np.where(_rms(one - other) <= _EQUAL, _cosine(one, other), 0.0)


def _candidates(signatures: UInt8, chosen: Int64, describe: Callable[[UInt8], Float32]) -> tuple[Int64, Int64]:
    """Pairs among the ``chosen`` whose descriptions are equal in all signs of some band."""
    n = len(chosen)
    if n < 2:
        return chosen[:0], chosen[:0]
    width = describe(signatures[chosen[:1]]).shape[1]
    # Fixed, so that the same clips give the same pairs.
    bits = min(max(n.bit_length(), _FEWEST_BITS), _MOST_BITS)
    directions = np.random.default_rng(0).standard_normal((width, _BANDS * bits)).astype(np.float32)
    keys = np.empty((n, _BANDS), dtype=np.uint32)
    places = (1 << np.arange(bits)).astype(np.uint32)
    for i in range(0, n, _ROWS):
        signs = describe(signatures[chosen[i : i + _ROWS]]) @ directions > 0
        keys[i : i + _ROWS] = (signs.reshape(-1, _BANDS, bits) * places).sum(axis=2, dtype=np.uint32)
    # Bits that differ are binomial, with the angle's share of a half turn as probability: four deviations more than
    # what the least alike of copies are expected to differ in.
    share = float(np.arccos(SAME_CHANGE)) / np.pi
    most = _BANDS * bits * share + 4 * np.sqrt(_BANDS * bits * share * (1 - share))
    found: Int64 = np.empty(0, dtype=np.int64)
    for band in range(_BANDS):
        order = np.lexsort((keys[:, (band + 1) % _BANDS], keys[:, band]))
        key = keys[order, band]
        ids = [found]
        for apart in range(1, min(_NEIGHBOURS, n - 1) + 1):
            same = np.flatnonzero(key[:-apart] == key[apart:])
            if not len(same):
                break
            a, b = order[same], order[same + apart]
            near = _differing_bits(keys, a, b) <= most
            a, b = a[near], b[near]
            ids.append(np.minimum(a, b) * n + np.maximum(a, b))
        found = np.unique(np.concatenate(ids))
    first, second = chosen[found // n], chosen[found % n]
    return np.minimum(first, second), np.maximum(first, second)


def _differing_bits(keys: npt.NDArray[np.uint32], a: Int64, b: Int64) -> Int64:
    counts = [
        np.bitwise_count(keys[a[i : i + _ROWS]] ^ keys[b[i : i + _ROWS]]).sum(axis=1, dtype=np.int64)
        for i in range(0, len(a), _ROWS)
    ]
    return np.concatenate(counts)


def _verified(
    signatures: UInt8, pairs: tuple[Int64, Int64], compare: Callable[[UInt8, UInt8], npt.NDArray[np.float64]]
) -> Pairs:
    first, second = pairs
    parts = [
        compare(signatures[first[i : i + _ROWS]], signatures[second[i : i + _ROWS]])
        for i in range(0, len(first), _ROWS)
    ]
    similarity = np.concatenate(parts) if parts else np.empty(0)
    kept = similarity > 0
    return Pairs(first[kept], second[kept], similarity[kept])
