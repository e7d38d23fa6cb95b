"""Clips as vectors: what the classifier sees of each, which clips are near which, and a map of them all.

    features.npy   (M, D), a row per clip: Outputs.features, the vector before the classifier, averaged over the frames,
                   and over the clips and views of the protocol
    clips.csv      clip,label,split,path of each row
    embed.json     what they rest on
    failed.csv     clips that could not be read; they have no row

``numpy.load("features.npy", mmap_mode="r")`` reads the features, `load_embeddings` all of it. Features go to the file
as they are made, and what works on them goes through them block by block: memory does not grow with their number.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json as jsonlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

import vireo
from vireo import plots, progress
from vireo.checkpoint import Checkpoint, load_checkpoint
from vireo.config import ReadConfig
from vireo.data.annotations import read_table
from vireo.data.clips import reader_name
from vireo.data.dataset import Batch
from vireo.data.faults import Failure, FailureCount, TooManyFailuresError
from vireo.data.table import ClipTable
from vireo.devices import choose_device
from vireo.errors import DataError, DecodeError, MissingDependencyError, UnknownNameError, UsageError, writing
from vireo.files import read_bounded, replacing, write_failures, write_json
from vireo.model import Recognizer
from vireo.progress import make_console, printable
from vireo.protocols import Protocol, choose_protocol, describe_protocol
from vireo.run_files import check_results_folder
from vireo.scores import clip_names
from vireo.scoring import apart, choose_split, clip_loader, describe, frames_of
from vireo.strips import Strip, clip_frames, strips_png

Precision = Literal["float32", "float16"]
Map = Literal["pca", "tsne", "none"]
Split = Literal["all", "auto", "train", "val", "test"]
Floats = npt.NDArray[np.floating[Any]]
Int64 = npt.NDArray[np.int64]

FEATURES, CLIPS, ABOUT, FAILED = "features.npy", "clips.csv", "embed.json", "failed.csv"
_PICTURES = re.compile(r"nearest-\d+\.png|map\.(png|csv)")
_COLUMNS = ["clip", "label", "split", "path"]
_BLOCK = 1 << 13  # rows that are in memory at a time
_DRAWN = 20_000  # dots on a map: more hide each other
_TSNE_LEAST, _TSNE_MOST = 5, 20_000  # clips: fewer have no neighbourhoods, and of these it takes minutes
_TSNE_SEED = (1 << 32) - 1  # the largest that scikit-learn takes
_TSNE_FROM = 50  # principal components, as van der Maaten and Hinton took
_MOST_ABOUT = 1 << 28  # bytes of an embed.json, which names what failed


# --- features, made and kept --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """The features of M clips."""

    features: Floats
    """(M, D) float32 or float16, left on disk until it is used."""
    clips: tuple[str, ...]
    """Their names."""
    labels: Int64
    """(M,) indices into ``label_names``."""
    label_names: tuple[str, ...]
    splits: tuple[str, ...]
    """Of each clip train, val or test; "" where the data names none."""
    paths: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    """What they rest on, as embed.json has it."""


def load_embeddings(folder: str | Path) -> Embeddings:
    """What `vireo embed` wrote.

    Raises:
        UsageError: the folder holds nothing of the kind.
        DataError: it is damaged.
    """
    folder = Path(folder)
    for name in (ABOUT, FEATURES, CLIPS):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} holds no {name}; give a folder that `vireo embed` wrote")
    about = _read_about(folder / ABOUT)
    label_names = tuple(about.get("labels", ()))
    index = {name: i for i, name in enumerate(label_names)}
    features = _open_features(folder / FEATURES)
    try:
        with (folder / CLIPS).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = csv.reader(file, strict=True)
    except (csv.Error, ValueError, OSError) as error:
        raise DataError(f"{folder / CLIPS} can't be read: {error}") from None
    if header != _COLUMNS or any(len(row) != len(_COLUMNS) or row[1] not in index for row in rows):
        raise DataError(f"{folder / CLIPS} is damaged: its rows are not {','.join(_COLUMNS)}, or a label is unknown")
    if len(rows) != len(features):
        raise DataError(f"{folder}: {len(features)} rows of features for {len(rows)} clips; embed them again")
    return Embeddings(
        features=features,
        clips=tuple(row[0] for row in rows),
        labels=np.fromiter((index[row[1]] for row in rows), dtype=np.int64, count=len(rows)),
        label_names=label_names,
        splits=tuple(row[2] for row in rows),
        paths=tuple(row[3] for row in rows),
        about=about,
    )


def _read_about(path: Path) -> dict[str, Any]:
    try:
        # Names of files need not be UTF-8, and have stood here as they are.
        about = jsonlib.loads(read_bounded(path, _MOST_ABOUT).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
    if isinstance(about, dict) and about.get("unfinished"):
        raise DataError(f"{path}: `vireo embed` was cut short here; embed the clips again")
    labels = about.get("labels") if isinstance(about, dict) else None
    if not isinstance(about, dict) or not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
        raise DataError(f"{path} was not written by `vireo embed`")
    return about


def _open_features(path: Path) -> Floats:
    try:
        features = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy reads the header as Python; objects, which would need pickle, are refused
        raise DataError(f"{path} can't be read: {' '.join(str(error).split()):.200}") from None
    if features.offset + features.nbytes != path.stat().st_size:
        raise DataError(f"{path} is damaged: its header says {features.shape}, which is not what follows")
    if features.ndim != 2 or features.dtype not in (np.float32, np.float16) or not features.shape[1]:
        raise DataError(f"{path} holds {features.dtype} of shape {features.shape}, not features of clips")
    return features


class FeatureWriter:
    """Appends rows to a .npy file whose number is not known before the end."""

    def __init__(self, file: BinaryIO, precision: Precision) -> None:
        self._file, self._dtype = file, np.dtype(precision)
        self.rows = self.width = 0

    def append(self, features: npt.ArrayLike) -> None:
        """Write (n, D) rows.

        Raises:
            DataError: a value is infinite, not a number, or too large for the type.
        """
        with np.errstate(over="ignore"):
            rows = np.asarray(features).astype(self._dtype)
        if not np.isfinite(rows).all():
            raise DataError(
                "The model's features are infinite or not a number"
                + (", or too large for float16; take float32" if self._dtype == np.float16 else "")
            )
        if not self.width:
            self.width = rows.shape[1]
            self._header()
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def finish(self) -> None:
        """Put the number of rows where a reader looks for it."""
        self._file.seek(0)
        self._header()

    def _header(self) -> None:
        # NumPy leaves room for the first axis to grow, so the header is as long at the end as at the beginning.
        shape = {"shape": (self.rows, self.width), "fortran_order": False, "descr": self._dtype.str}
        np.lib.format.write_array_header_1_0(self._file, shape)


@contextmanager
def feature_file(path: Path, precision: Precision = "float32") -> Iterator[FeatureWriter]:
    """A new .npy file that takes the place of `path` when the block ends well.

    Raises:
        StorageError: it can't be written; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("w+b") as file:
                writer = FeatureWriter(file, precision)
                yield writer
                writer.finish()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def embed_clips(
    model: Recognizer,
    batches: Iterable[Batch],
    writer: FeatureWriter,
    *,
    pictures: int = 1,
    at_once: int = 8,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = lambda clips: None,
    note: Callable[[tuple[Failure, ...]], None] = lambda failures: None,
) -> tuple[Int64, tuple[Failure, ...]]:
    """Run the model over all batches and write the features.

    Args:
        model: on ``device``, in evaluation mode.
        batches: of clips, each once.
        writer: where the rows go.
        pictures: clips × views of each video, which follow each other in a batch.
        at_once: pictures per forward pass.
        device: where the model is.
        advance: called with the number of clips done, for a progress bar.
        note: called with the failures of every batch; may raise to end it all.

    Returns:
        (M,) the table's row of each row written; and the clips that could not be read.

    Raises:
        DataError: features that are not finite.
    """
    rows, failures = [np.empty(0, dtype=np.int64)], list[Failure]()
    for batch in batches:
        failures.extend(batch.failures)
        note(batch.failures)
        if len(batch.labels):
            writer.append(_features(model, batch.clips, pictures, at_once, device))
            rows.append(batch.indices.numpy())
        advance(len(batch.labels) + len(batch.failures))
    return np.concatenate(rows), tuple(failures)


@torch.inference_mode()
def _features(
    model: Recognizer, clips: Tensor, pictures: int, at_once: int, device: torch.device | str
) -> npt.NDArray[np.float32]:
    """(N, D) of N videos: the mean over their pictures."""
    some = [
        model.forward_outputs(part.to(device, non_blocking=True)).features.float().cpu()
        for part in torch.split(apart(clips, pictures), at_once)
    ]
    joined = torch.cat(some)
    features: npt.NDArray[np.float32] = joined.view(-1, pictures, joined.shape[1]).mean(1).numpy()
    return features


# --- nearest ------------------------------------------------------------------------------------------


class Nearest(NamedTuple):
    """The rows nearest to each of Q queries."""

    rows: Int64
    """(Q, k), nearest first; -1 where there are no more."""
    similarities: npt.NDArray[np.float32]
    """(Q, k) cosines, in [-1, 1]; 0 where a vector is all 0, nan where there are no more rows."""


def nearest_rows(
    features: Floats, queries: npt.ArrayLike, k: int, *, own: Sequence[int] = (), block: int = _BLOCK
) -> Nearest:
    """The k rows whose cosine with each query is highest.

    Args:
        features: (M, D), may be on disk: read once, block by block.
        queries: (Q, D).
        k: rows per query.
        own: of each query the row it is itself, which is left out; -1: none.
        block: rows at a time.
    """
    directions = _directions(torch.from_numpy(np.array(queries, dtype=np.float32, ndmin=2)))
    count = len(directions)
    best, at = torch.full((count, k), -torch.inf), torch.full((count, k), -1)
    for begin, rows in _blocks(features, block):
        cosines = directions @ _directions(torch.from_numpy(rows.astype(np.float32))).T
        for query, row in enumerate(own):
            if begin <= row < begin + len(rows):
                cosines[query, row - begin] = -torch.inf
        best = torch.cat([best, cosines], dim=1)
        at = torch.cat([at, torch.arange(begin, begin + len(rows)).expand(count, -1)], dim=1)
        best, order = best.topk(k, dim=1)
        at = at.gather(1, order)
    none = best.isinf()  # also the query itself, which comes last
    return Nearest(at.masked_fill(none, -1).numpy(), best.clamp(-1, 1).masked_fill(none, torch.nan).numpy())


def _blocks(features: Floats, block: int) -> Iterator[tuple[int, Floats]]:
    for begin in range(0, len(features), block):
        yield begin, np.asarray(features[begin : begin + block])


def _directions(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


# --- maps ---------------------------------------------------------------------------------------------


class Principal(NamedTuple):
    """Features along their directions of largest variance."""

    points: npt.NDArray[np.float32]
    """(M, C)."""
    shares: npt.NDArray[np.float64]
    """(C,) of the variance that each direction has, in [0, 1]."""


def principal_components(
    features: Floats, components: int = 2, *, rows: Int64 | None = None, block: int = _BLOCK
) -> Principal:
    """Principal component analysis, by the eigenvectors of the covariance, which blocks of rows add up to.

    The sign of a direction is that by which its largest weight is positive. Where there are fewer directions than
    asked for, the others are 0.

    Args:
        features: (M, D), may be on disk: read twice, block by block.
        components: C.
        rows: those to look at; None: all.
        block: rows at a time.
    """
    count, width = len(features) if rows is None else len(rows), features.shape[1]

    def blocks() -> Iterator[tuple[int, Tensor]]:
        for begin in range(0, count, block):
            end = min(begin + block, count)
            chosen = features[begin:end] if rows is None else features[rows[begin:end]]
            yield begin, torch.from_numpy(np.asarray(chosen, dtype=np.float64))

    total, products = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    origin = torch.from_numpy(np.asarray(features[:1] if rows is None else features[rows[:1]], dtype=np.float64))
    for _, some in blocks():
        some = some - origin  # about the first row, as squares of what all share would drown the rest
        total += some.sum(0)
        products += some.T @ some
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - mean[:, None] * mean[None, :])
    values, kept = values.flip(0).clamp_min(0), min(components, width)
    directions = vectors.flip(1)[:, :kept]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    points, shares = np.zeros((count, components), dtype=np.float32), np.zeros(components)
    for begin, some in blocks():
        points[begin : begin + len(some), :kept] = (some - origin - mean) @ directions
    shares[:kept] = (values[:kept] / values.sum().clamp_min(torch.finfo(torch.float64).tiny)).numpy()
    return Principal(points, shares)


def tsne_map(features: Floats, *, rows: Int64 | None = None, seed: int = 0) -> npt.NDArray[np.float32]:
    """A map on which near clips stay near: t-SNE (van der Maaten and Hinton, 2008) of the first 50 components.

    Args:
        features: (M, D).
        rows: those to look at; None: all.
        seed: of the optimisation.

    Returns:
        (M, 2).

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        UsageError: there are fewer than five clips.
    """
    _need_scikit_learn()
    from sklearn.manifold import TSNE

    count = len(features) if rows is None else len(rows)
    if count < _TSNE_LEAST:
        raise UsageError(f"t-SNE of {count} clips says nothing; take pca")
    start = principal_components(features, min(_TSNE_FROM, count, features.shape[1]), rows=rows).points
    if not start.any():  # all are alike; scikit-learn would divide by their deviation
        return np.zeros((count, 2), dtype=np.float32)
    found = TSNE(perplexity=min(30.0, (count - 1) / 3), init="pca", random_state=seed).fit_transform(start)
    return np.asarray(found, dtype=np.float32)


def _need_scikit_learn() -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise MissingDependencyError("t-SNE needs scikit-learn: pip install scikit-learn (or take --map pca)")


# --- the command --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Query:
    """A clip whose neighbours are wanted."""

    name: str
    """As it was asked for."""
    row: int | None
    """Of the table; None: a file outside the data."""


def embed_command(
    checkpoint: Path,
    data: str,
    *,
    out: Path | None = None,
    split: Split = "all",
    protocol: str = "1x1-center",
    query: Sequence[str] = (),
    nearest: int = 5,
    map: Map = "pca",
    labels: Sequence[str] = (),
    precision: Precision = "float32",
    fresh: bool = False,
    batch_size: int = 8,
    workers: int = -1,
    seed: int = 0,
    device: str = "auto",
    read: ReadConfig | None = None,
    json: bool = False,
) -> int:
    """What `vireo embed` does; exit code 1 if a query is among the clips that could not be read.

    Features that lie in the folder already are taken, if they are of the same checkpoint, protocol, clips and
    precision, and the clips' files have not changed since.

    Raises:
        UsageError: wrong arguments, or a folder that holds something else; nothing is written then.
        DataError: unusable data, or more clips failed than ``read`` allows.
        CheckpointError: not a checkpoint.
        MissingDependencyError: t-SNE without scikit-learn.
    """
    if nearest < 1 or batch_size < 1 or seed < 0:
        raise UsageError(f"nearest is {nearest}, batch_size {batch_size}, seed {seed}; at least 1, 1 and 0 are needed")
    if map not in get_args(Map) or precision not in get_args(Precision):
        raise UsageError(f"map is {map!r} and precision {precision!r}; use pca, tsne or none; float32 or float16")
    if map == "tsne":
        _need_scikit_learn()
        if seed > _TSNE_SEED:
            raise UsageError(f"seed is {seed}; that of t-SNE is at most {_TSNE_SEED}")
    out = out or checkpoint.with_suffix(".embed")
    _check_out(out)
    target = choose_device(device)
    loaded = load_checkpoint(checkpoint, device=target)
    modality = loaded.model.config.modality
    whole = read_table(data, modality=modality)
    notes, (table, part) = whole.notes, choose_split(whole, split, loaded.provenance, checkpoint.parent)
    if len(set(labels)) > len(plots.COLOURS):
        raise UsageError(f"labels are {len(set(labels))}; no more than {len(plots.COLOURS)} colours can be told apart")
    if map == "tsne" and len(table) < _TSNE_LEAST:
        raise UsageError(f"t-SNE of {len(table)} clips says nothing; take pca")
    for label in labels:
        if label not in table.label_names:
            raise UnknownNameError("class", label, table.label_names, lists="clips.csv")
    names = clip_names(table)
    queries = find_queries(query, names, table)
    looks = _Looks.of(choose_protocol(loaded.view, protocol), batch_size, target)
    outside = {q.name: _outside(loaded, q.name, looks) for q in queries if q.row is None}  # before the long work
    facts = {
        "checkpoint": describe(loaded),
        "checkpoint_sha256": _digest(checkpoint),
        "data_hash": table.digest(),
        "files_hash": _hash_files(table),
        "split": part,
        "precision": precision,
        "protocol": describe_protocol(looks.protocol, frames_of(loaded.model)),
        "vireo": vireo.__version__,
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    found = None if fresh else _reusable(out, facts)
    reused = found is not None
    if found is None:
        read = read or ReadConfig()
        _make(loaded, table, names, out, facts, notes, precision, looks, workers, read)
        found = load_embeddings(out)
    answers, code = _answer(queries, outside, found, names, nearest)
    files = _draw(answers, found, table, names, out, map, labels, seed, modality)
    result = {**found.about, "reused": reused, "queries": answers, "files": [str(file) for file in files]}
    if json:
        print(jsonlib.dumps(result, ensure_ascii=False), flush=True)
    else:
        _print(result, out, make_console())
    return code


def _check_out(out: Path) -> None:
    """Check that results may go to a folder, which need not be there.

    Raises:
        UsageError: it is a file, the folder of a run, or holds files of these names that are of something else.
    """
    check_results_folder(out)
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    foreign = sorted(name for name in found if name in (FEATURES, CLIPS, FAILED) or _PICTURES.fullmatch(name))
    if foreign and ABOUT not in found:
        raise UsageError(f"{out} holds a {foreign[0]} that is not of `vireo embed`; choose another --out")


def find_queries(wanted: Sequence[str], names: Sequence[str], table: ClipTable) -> list[Query]:
    """Which clips are meant: by name, by the last part of a name where that is clear, by path, or any other file.

    Raises:
        UnknownNameError: there is no such clip and no such file.
        UsageError: several clips are called so, or are of this file.
    """
    if not wanted:
        return []
    by_name = {name: i for i, name in enumerate(names)}
    by_path: dict[str, list[int]] = {}
    found = []
    for name in wanted:
        row = by_name.get(name)
        if row is None:
            last = [i for i, whole in enumerate(names) if whole.rsplit("/", 1)[-1] == name]
            if len(last) > 1:
                raise UsageError(f"{len(last)} clips are called {name!r}, e.g. {names[last[0]]!r}; give the whole name")
            row = last[0] if last else None
        if row is None and os.path.exists(name):
            if not by_path:
                for i, path in enumerate(table.paths):
                    by_path.setdefault(os.path.realpath(path), []).append(i)
            own = by_path.get(os.path.realpath(name), [])
            if len(own) > 1:
                raise UsageError(f"{len(own)} clips are of {name!r}, e.g. {names[own[0]]!r}; give the name of one")
            found.append(Query(name=name, row=own[0] if own else None))
            continue
        if row is None:
            near = [whole for whole in names if name.lower() in whole.lower()][:3]
            raise UnknownNameError("clip", name, near or names[:1000], lists="clips.csv")
        found.append(Query(name=name, row=row))
    return found


class _Looks(NamedTuple):
    """How often the network looks at a video, and where it runs."""

    protocol: Protocol
    pictures: int
    """Clips × views."""
    at_once: int
    """Pictures per forward pass."""
    videos: int
    """Per batch."""
    device: torch.device

    @classmethod
    def of(cls, protocol: Protocol, at_once: int, device: torch.device) -> _Looks:
        pictures = protocol.view.clips * protocol.views_per_clip
        # Whole frames of two videos may differ in size.
        videos = 1 if protocol.view.views == "full" else max(1, at_once // pictures)
        return cls(protocol, pictures, at_once, videos, device)


def _outside(checkpoint: Checkpoint, path: str, looks: _Looks) -> npt.NDArray[np.float32]:
    """The features of a file that is not in the data, (D,).

    Raises:
        DecodeError: it can't be read.
    """
    table, model = ClipTable.of_paths([path]), checkpoint.model
    [batch] = clip_loader(model, checkpoint, table, batch_size=1, workers=0, protocol=looks.protocol)
    if batch.failures:
        raise DecodeError(path, batch.failures[0].reason)
    features: npt.NDArray[np.float32] = _features(model, batch.clips, looks.pictures, looks.at_once, looks.device)[0]
    return features


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_files(table: ClipTable) -> str:
    """Names the files of a list, in any order: where they lie, how large they are, and when they last changed."""
    lines = []
    for path in table.paths:
        path = os.path.abspath(path)
        try:
            about = os.stat(path)
            lines.append(f"{path}\0{about.st_size}\0{about.st_mtime_ns}")
        except (OSError, ValueError):  # a clip that is counted as failed
            lines.append(path)
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _reusable(out: Path, facts: Mapping[str, Any]) -> Embeddings | None:
    """What an earlier run with the same facts left in a folder."""
    if not (out / ABOUT).is_file():
        return None
    try:
        found = load_embeddings(out)
    except (UsageError, DataError):
        return None
    return found if all(found.about.get(key) == value for key, value in facts.items()) else None


def _make(
    checkpoint: Checkpoint,
    table: ClipTable,
    names: Sequence[str],
    out: Path,
    facts: Mapping[str, Any],
    notes: Sequence[str],
    precision: Precision,
    looks: _Looks,
    workers: int,
    read: ReadConfig,
) -> None:
    """Embed all clips and write the files."""
    model = checkpoint.model
    loader = clip_loader(
        model, checkpoint, table, batch_size=looks.videos, workers=workers, read=read, protocol=looks.protocol
    )
    count = FailureCount("embedding", len(table), read)
    with (
        closing(loader),
        progress.bar("embed", len(table)) as advance,
        feature_file(out / FEATURES, precision) as writer,
    ):
        rows, failures = embed_clips(
            model,
            loader,
            writer,
            pictures=looks.pictures,
            at_once=looks.at_once,
            device=looks.device,
            advance=advance,
            note=count.note,
        )
        if not len(rows):  # in the block, so that what was there before stays
            first = failures[0]
            raise TooManyFailuresError(
                f"None of {len(table)} clips could be embedded; the first: {first.path}: {first.reason}", failures
            )
        # From here to the last file the folder holds no whole result, but nothing of anyone else either.
        write_json(out / ABOUT, {"unfinished": True})
        width = writer.width
    with replacing(out / CLIPS) as file:
        table_of = csv.writer(file)
        table_of.writerow(_COLUMNS)
        for row in rows.tolist():
            label = table.label_names[int(table.labels[row])]
            table_of.writerow([names[row], label, table.splits[row] if table.splits else "", table.paths[row]])
    write_failures(out / FAILED, [(failure.path, failure.reason) for failure in failures])
    failed = [{"clip": names[f.index], "path": f.path, "reason": f.reason} for f in failures]
    counts = {"expected": len(table), "embedded": len(rows), "failed": len(failures), "dimension": width}
    modality = model.config.modality
    decoder = reader_name(table, modality=modality, mode=read.decode, backend=read.decoder)
    about = {**facts, "modality": modality, "decoder": decoder, **counts}
    whole = {**about, "labels": list(table.label_names), "data_notes": list(notes), "failures": failed}
    write_json(out / ABOUT, whole)


def _answer(
    queries: Sequence[Query],
    outside: Mapping[str, npt.NDArray[np.float32]],
    found: Embeddings,
    names: Sequence[str],
    nearest: int,
) -> tuple[list[dict[str, Any]], int]:
    """The neighbours of every query as plain data, and the exit code."""
    if not queries:
        return [], 0
    reasons = {of["clip"]: of["reason"] for of in found.about["failures"]}
    place = {clip: i for i, clip in enumerate(found.clips)}
    own = [-1 if query.row is None else place.get(names[query.row], -1) for query in queries]
    good = [i for i, query in enumerate(queries) if query.row is None or own[i] >= 0]
    vectors = [outside[queries[i].name] if own[i] < 0 else found.features[own[i]] for i in good]
    most = min(nearest, len(found.features))
    near = nearest_rows(found.features, vectors, most, own=[own[i] for i in good]) if good else None
    answers: list[dict[str, Any]] = []
    for i, query in enumerate(queries):
        if near is None or i not in good:
            answers.append({"query": query.name, "error": reasons[names[query.row or 0]]})
            continue
        about = {"clip": found.clips[own[i]], "label": _label(found, own[i])} if own[i] >= 0 else {}
        rows, cosines = (of[good.index(i)].tolist() for of in near)
        neighbours = [_neighbour(found, row, cosine) for row, cosine in zip(rows, cosines, strict=True) if row >= 0]
        answers.append({"query": query.name, **about, "nearest": neighbours})
    return answers, int(len(good) < len(queries))


def _label(found: Embeddings, row: int) -> str:
    return found.label_names[int(found.labels[row])]


def _neighbour(found: Embeddings, row: int, cosine: float) -> dict[str, Any]:
    about = {"clip": found.clips[row], "label": _label(found, row), "split": found.splits[row]}
    return {**about, "similarity": cosine, "path": found.paths[row]}


def _draw(
    answers: Sequence[Mapping[str, Any]],
    found: Embeddings,
    table: ClipTable,
    names: Sequence[str],
    out: Path,
    map: Map,
    labels: Sequence[str],
    seed: int,
    modality: str,
) -> list[Path]:
    """Write the map and a picture per query; those of an earlier run go. Returns all files of the folder."""
    files = [out / FEATURES, out / CLIPS, out / ABOUT]
    if map != "none":
        files += _draw_map(answers, found, out, map, labels, seed)
    rows = {name: i for i, name in enumerate(names)} if answers else {}
    for number, answer in enumerate(answers, start=1):
        if "error" not in answer:
            png = _nearest_png(answer, table, rows, modality)
            files.append(plots.write_png(out / f"nearest-{number}.png", png))
    with writing(out):
        for path in out.iterdir():
            if _PICTURES.fullmatch(path.name) and path not in files:
                path.unlink()
    return files + [path for path in [out / FAILED] if path.exists()]


def _nearest_png(answer: Mapping[str, Any], table: ClipTable, rows: Mapping[str, int], modality: str) -> bytes:
    """The frames of a query and of its neighbours."""
    clips = table.select([rows[near["clip"]] for near in answer["nearest"]])
    asked = table.select([rows[answer["clip"]]]) if "clip" in answer else ClipTable.of_paths([answer["query"]])
    [own] = clip_frames(asked, modality=modality)
    label = answer.get("label", "")
    name = answer.get("clip") or os.path.basename(os.path.abspath(answer["query"]))
    strips = [Strip(title=name, about=label, frames=own, heading="Query")]
    for i, (near, frames) in enumerate(zip(answer["nearest"], clip_frames(clips, modality=modality), strict=True)):
        colour = plots.MUTED if not label else plots.ACCENT if near["label"] == label else plots.WORSE
        about = f"{near['similarity']:.3f} · {near['label']}"
        heading = "Nearest, by the cosine of their features" if i == 0 else ""
        strips.append(Strip(title=near["clip"], about=about, colour=colour, frames=frames, heading=heading))
    return strips_png(f"Clips near {name}", strips)


def _draw_map(
    answers: Sequence[Mapping[str, Any]], found: Embeddings, out: Path, map: Map, labels: Sequence[str], seed: int
) -> list[Path]:
    """Write map.csv with the place of every clip, and map.png."""
    count, rows = len(found.clips), None
    names, note = ("", ""), []
    if map == "tsne" and count > _TSNE_MOST:
        rows = np.sort(np.random.default_rng(seed).choice(count, _TSNE_MOST, replace=False)).astype(np.int64)
        note.append(f"t-SNE of {_TSNE_MOST:,} of {count:,} clips, drawn at random.")
    if map == "tsne":
        points = tsne_map(found.features, rows=rows, seed=seed)
        note.append("Near clips have like features; distances between groups, and their sizes, say little.")
    else:
        points, shares = principal_components(found.features)
        names = (f"1st component, {100 * shares[0]:.0f} % of the variance", f"2nd, {100 * shares[1]:.0f} %")
    at = np.arange(count) if rows is None else rows
    with replacing(out / "map.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "label", "x", "y"])
        for row, (x, y) in zip(at.tolist(), points.tolist(), strict=True):
            writer.writerow([found.clips[row], _label(found, row), f"{x:.6g}", f"{y:.6g}"])
    place = {found.clips[row]: i for i, row in enumerate(at.tolist())} if answers else {}
    asked = [answer["clip"] for answer in answers if answer.get("clip") in place]
    marked = [(clip.rsplit("/", 1)[-1], *points[place[clip]].tolist()) for clip in asked]
    drawn = np.arange(len(at))
    if len(at) > _DRAWN:
        drawn = np.random.default_rng(seed).choice(len(at), _DRAWN, replace=False)
        note.append(f"{_DRAWN:,} of {len(at):,} clips are drawn; map.csv has all.")
    title = f"{found.about['checkpoint']} · {count:,} clips, " + {"pca": "principal components", "tsne": "t-SNE"}[map]
    png = plots.map_png(
        points[drawn],
        found.labels[at[drawn]],
        found.label_names,
        shown=_shown(found, labels),
        title=title,
        axes_names=names,
        marked=marked,
        note=" ".join(note),
    )
    return [plots.write_png(out / "map.png", png), out / "map.csv"]


def _shown(found: Embeddings, labels: Sequence[str]) -> list[int]:
    """The classes that have a colour on the map: those asked for, else those with the most clips."""
    if labels:
        return [found.label_names.index(label) for label in dict.fromkeys(labels)]
    counts = np.bincount(found.labels, minlength=len(found.label_names))
    most = np.argsort(-counts, kind="stable")[: len(plots.COLOURS)]
    return sorted(int(number) for number in most if counts[number])


def _print(result: Mapping[str, Any], out: Path, console: Console) -> None:
    again = " (kept from an earlier run; --fresh makes them again)" if result["reused"] else ""
    console.print(
        f"[bold]{escape(result['checkpoint'])}[/bold]: {result['dimension']} features of each of "
        f"{result['embedded']} clips{again}",
        highlight=False,
        soft_wrap=True,
    )
    for note in result["data_notes"]:
        console.print(Text(printable(note), "dim"), soft_wrap=True)
    for failure in result["failures"][:10]:
        console.print(
            Text.assemble(("failed", "red"), printable(f" {failure['path']}: {failure['reason']}")), soft_wrap=True
        )
    if result["failed"]:
        console.print(f"[red]{result['failed']} of {result['expected']} clips could not be read[/red]; see failed.csv")
    for answer in result["queries"]:
        console.print()
        label = printable(f" ({answer['label']})") if "label" in answer else ""
        console.print(Text.assemble((printable(answer["query"]), "bold"), label), soft_wrap=True)
        if "error" in answer:
            console.print(Text.assemble(("failed", "red"), printable(f" {answer['error']}")), soft_wrap=True)
            continue
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
        table.add_column("similarity", justify="right")
        table.add_column("clip", overflow="fold")
        table.add_column("label", overflow="fold")
        for near in answer["nearest"]:
            style = "cyan" if near["label"] == answer.get("label") else ""
            about = Text(printable(near["clip"])), Text(printable(near["label"]), style)
            table.add_row(f"{near['similarity']:.3f}", *about)
        console.print(table)
    names = ", ".join(Path(file).name for file in result["files"])
    console.print(
        f"\n[dim]written to {escape(printable(str(out)))}: {names}[/dim]",
        highlight=False,
        soft_wrap=True,
    )
