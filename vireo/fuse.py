"""Late fusion: models that saw the same clips, as RGB and flow or as 8 and 16 frames, vote together.

Fused scores are the weighted sum of the streams' class scores before softmax, as in the code published with TSN
(Wang et al., ECCV 2016), which gives flow a weight of 1.5 beside RGB's 1: the default for one RGB and one flow
stream. All other streams weigh the same by default. Where probabilities are averaged instead, the fused scores are the
logarithms of their weighted mean. Clips are matched by name. A stream is a file of scores, or a checkpoint, which is
scored first.
"""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

import vireo
from vireo.checkpoint import Checkpoint, load_checkpoint
from vireo.data.unlabelled import UnlabelledTest, read_unlabelled
from vireo.errors import DataError, UsageError
from vireo.evaluate import Predictions, evaluate_part, predict_test, tell_predictions
from vireo.evaluation import Evaluation, Scores, measure, write_evaluation
from vireo.progress import make_console, printable
from vireo.run_files import check_results_folder
from vireo.scores import (
    EVALUATION,
    SUBMISSION,
    ScoreTable,
    differing_lists,
    match_keys,
    match_tables,
    read_facts,
    read_scores,
)
from vireo.scoring import ScoreConfig

_TSN = {"rgb": 1.0, "flow": 1.5}
_CALLED = {"rgb": "RGB", "flow": "flow"}
_ADDED = {"logits": "scores are added before softmax", "probabilities": "probabilities are averaged"}


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One model's part in a fusion.

    Attributes:
        name: where its scores are from.
        weight: of its scores.
        clips: clips it was to score.
        failed: those of them that could not be read.
        unmatched: clips it scored that another stream lacks or could not read; they are left out.
        evaluation: its accuracy on the clips that all streams scored.
    """

    name: str
    weight: float
    clips: int
    failed: int
    unmatched: int
    evaluation: Evaluation

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        e = self.evaluation
        accuracies = {"top1": e.top1, "top5": e.top5, "mean_class": e.mean_class}
        counts = {"clips": self.clips, "failed": self.failed, "unmatched": self.unmatched}
        return {"scores": self.name, "weight": self.weight, **counts, **accuracies}


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """What :func:`fuse_tables` gives."""

    streams: tuple[Stream, ...]
    weighting: str
    """Why the streams weigh what they do, for people."""
    evaluation: Evaluation
    """Of the fused scores; its header counts a clip as failed where any stream has no scores of it."""


def fuse_scores(scores: Sequence[Tensor], weights: Sequence[float] | None = None, *, average: str = "logits") -> Tensor:
    """The weighted sum of class scores, or the logarithms of the weighted mean of probabilities.

    Args:
        scores: one (..., K) tensor per stream, before softmax.
        weights: one per stream; by default all 1, as tensors don't tell RGB from flow. In TSN these have 1 and 1.5.
        average: logits: the scores are added as they are; probabilities: each stream's softmax.

    Returns:
        (..., K), a float type of the streams. Its softmax is the mean of the probabilities, if these are averaged.

    Raises:
        UsageError: no streams, shapes that differ, or weights that don't fit.
    """
    weights = check_weights(weights, len(scores))
    if average not in ("logits", "probabilities"):
        raise UsageError(f"average is {average!r}; use logits or probabilities")
    shapes = sorted({tuple(s.shape) for s in scores})
    if len(shapes) > 1:
        raise UsageError(f"scores of shapes {' and '.join(map(str, shapes))} can't be fused; all must have the same")
    if average == "probabilities":
        mean = sum(w * s.double().softmax(-1) for w, s in zip(weights, scores, strict=True)) / math.fsum(weights)
        return torch.as_tensor(mean).clamp_min(torch.finfo(torch.float64).tiny).log().to(scores[0].dtype)
    fused = scores[0] * weights[0]
    for score, weight in zip(scores[1:], weights[1:], strict=True):
        fused = fused + score * weight
    return fused


def check_weights(weights: Sequence[float] | None, streams: int) -> tuple[float, ...]:
    """One weight per stream.

    Raises:
        UsageError: no streams, another number of weights, one that is negative or not finite, or all 0.
    """
    if not streams:
        raise UsageError("there are no scores to fuse")
    if not weights:
        return (1.0,) * streams
    if len(weights) != streams:
        raise UsageError(f"weights are {list(weights)} for {streams} streams; give one for each, in their order")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise UsageError(f"weights are {list(weights)}; each must be 0 or more, and one above 0")
    return tuple(map(float, weights))


def default_weights(modalities: Sequence[str], names: Sequence[str]) -> tuple[tuple[float, ...], str]:
    """Weights where none are given, and why: TSN's for one RGB and one flow stream, otherwise all 1.

    Args:
        modalities: rgb, flow or "" (not known), one per stream.
        names: of the streams, for the reason.
    """
    if sorted(modalities) == ["flow", "rgb"]:
        return tuple(_TSN[modality] for modality in modalities), "TSN's for RGB and flow"
    if unknown := [name for name, modality in zip(names, modalities, strict=True) if not modality]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        why = f"no {EVALUATION} says whether {unknown[0]}{more} saw RGB or flow"
    elif len(set(modalities)) == 1:
        why = f"all saw {_CALLED[modalities[0]]}"
    else:
        why = "there are more than one RGB and one flow stream"
    return (1.0,) * len(modalities), f"equal, as {why}"


def fuse_tables(
    tables: Sequence[ScoreTable],
    weights: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    *,
    average: str = "logits",
) -> Fusion:
    """Fuse what several models said, clip by clip.

    Clips are matched as `vireo.scores.match_clips` says.

    Args:
        tables: one per stream.
        weights: one per stream; by default see :func:`default_weights`.
        names: of the streams, for messages.
        average: logits or probabilities, see :func:`fuse_scores`.

    Raises:
        UsageError: weights that don't fit.
        DataError: streams that don't fit together, see `vireo.scores.match_tables`; sums that float32 can't hold.
    """
    names = list(names or (f"stream {i + 1}" for i in range(len(tables))))
    modalities = [table.modality for table in tables]
    checked, weighting = check_weights(weights, len(tables)), "as given"
    if not weights:
        checked, weighting = default_weights(modalities, names)
    classes = tables[0].label_names
    rows, labels, scores = match_tables(tables, names)

    def evaluation(logits: Tensor) -> Evaluation:
        indices = torch.arange(len(logits))
        return measure(Scores(logits=logits, labels=labels, indices=indices, failures=()), classes, {})

    fused = fuse_scores(scores, checked, average=average)
    if not bool(fused.isfinite().all()):
        at = int((~fused.isfinite().all(dim=1)).nonzero()[0])
        clip = tables[0].clips[int(rows[0][at])]
        raise DataError(f"the fused scores of clip {clip!r} are too large for float32; give smaller weights")
    every = len(set().union(*match_keys(tables)))
    header = {
        "checkpoint": " + ".join(f"{w:g} × {n}" for w, n in zip(checked, names, strict=True)),
        "modality": " + ".join(dict.fromkeys(modalities)) if all(modalities) else "",
        "weights": list(checked),
        "weighting": weighting,
        "average": average,
        "vireo": vireo.__version__,
    }
    whole = evaluation(fused)
    return Fusion(
        streams=tuple(
            Stream(
                name=name,
                weight=weight,
                clips=len(table.clips),
                failed=int((~table.read).sum()),
                unmatched=int(table.read.sum()) - len(at),
                evaluation=evaluation(score),
            )
            for name, weight, table, at, score in zip(names, checked, tables, rows, scores, strict=True)
        ),
        weighting=weighting,
        evaluation=replace(
            whole,
            header={**header, "expected": every, "scored": len(fused), "failed": every - len(fused)},
            clip_scores=ScoreTable(
                clips=tuple(tables[0].clips[i] for i in rows[0].tolist()),
                labels=labels,
                label_names=classes,
                scores=fused,
                modality=modalities[0] if len(set(modalities)) == 1 else "",
            ),
        ),
    )


def fuse_command(
    scores: Sequence[Path],
    *,
    weights: Sequence[float] = (),
    average: str = "logits",
    data: str = "",
    flow_data: str = "",
    split: str = "auto",
    protocol: str = "",
    batch_size: int = 8,
    workers: int = -1,
    device: str = "auto",
    out: Path | None = None,
    json: bool = False,
) -> int:
    """What `vireo fuse` does: read or make the scores, fuse, print, and write the fused evaluation where asked."""
    if len(scores) < 2:
        raise UsageError("fusion needs the scores of two models or more")
    check_weights(weights, len(scores))  # before files are read
    config = ScoreConfig(protocol=protocol, batch_size=batch_size, workers=workers, device=device)
    loaded = [load_checkpoint(path) if is_checkpoint(path) else read_scores(path) for path in scores]
    if split == "test":
        tests = [
            read_unlabelled(
                data_for(path, stream, data, flow_data),
                label_names=stream.labels,
                modality=stream.model.config.modality,
            )
            for path, stream in zip(scores, loaded, strict=True)
            if isinstance(stream, Checkpoint)
        ]
        if any(tests):
            return _fuse_answers(scores, loaded, tests, weights, average, config, out, json=json)
    if out is not None:
        check_results_folder(out)
    tables, facts, notes = list[ScoreTable](), list[Mapping[str, Any]](), list[str]()
    for path, stream in zip(scores, loaded, strict=True):
        if isinstance(stream, Checkpoint):
            where = data_for(path, stream, data, flow_data)
            found = evaluate_part(stream, where, split, config, run=path.parent)
            assert found.clip_scores is not None
            tables.append(found.clip_scores)
            facts.append(found.header)
            if "trained_on" in found.header:
                notes.append(f"{path}: {found.header['data_notes'][-1]}")
            stream.model.cpu()  # its successor needs the room
        else:
            tables.append(stream)
            facts.append(read_facts(path))
    if lists := differing_lists(facts):
        notes.append(lists)
    fusion = fuse_tables(tables, weights, [str(path) for path in scores], average=average)
    try:
        if out is not None:
            write_evaluation(fusion.evaluation, out)
    finally:  # a full disk does not take the figures along, nor `| head` the files
        _tell(fusion, notes, json=json)
    return 0


def _tell(fusion: Fusion, notes: Sequence[str], *, json: bool) -> None:
    if json:
        streams = [stream.as_dict() for stream in fusion.streams]
        whole = {
            "streams": streams,
            "weighting": fusion.weighting,
            "fusion": fusion.evaluation.as_dict(),
            "notes": list(notes),
        }
        print(jsonlib.dumps(whole, ensure_ascii=False), flush=True)
        return
    console = make_console()
    print_fusion(fusion, console)
    for note in notes:
        console.print(Text(printable(note), "yellow"), soft_wrap=True)


def _fuse_answers(
    paths: Sequence[Path],
    loaded: Sequence[Checkpoint | ScoreTable],
    tests: Sequence[UnlabelledTest | None],
    weights: Sequence[float],
    average: str,
    config: ScoreConfig,
    out: Path | None,
    *,
    json: bool,
) -> int:
    """What `vireo fuse` does with a test set whose labels a server keeps."""
    for path, stream in zip(paths, loaded, strict=True):
        if not isinstance(stream, Checkpoint):
            raise UsageError(f"{path} holds scores; where clips have no labels, all models are given as checkpoints")
    if out is None:
        raise UsageError(f"the clips have no labels; say with --out where the answers, {SUBMISSION}, go")
    checkpoints = [stream for stream in loaded if isinstance(stream, Checkpoint)]
    sets = [test for test in tests if test is not None]
    if len(sets) < len(checkpoints) or any(test.ids != sets[0].ids for test in sets):
        raise DataError("--data and --flow-data are not the same test set; the lists of clips must be the same")
    names = [str(path) for path in paths]
    checked, weighting = check_weights(weights, len(paths)), "as given"
    if not weights:
        checked, weighting = default_weights([one.model.config.modality for one in checkpoints], names)
    found = []
    for checkpoint, test in zip(checkpoints, sets, strict=True):
        found.append(predict_test(checkpoint, test, config))
        checkpoint.model.cpu()  # its successor needs the room
    labels = checkpoints[0].labels  # all have the data set's, in orders of their own
    orders = [[one.labels.index(label) for label in labels] for one in checkpoints]
    fused = fuse_scores(
        [of.scores[:, order] for of, order in zip(found, orders, strict=True)], checked, average=average
    )
    if bool(fused.isinf().any()):
        raise DataError("the fused scores of a clip are too large for float32; give smaller weights")
    failures = {failure.index: failure for of in found for failure in of.failures}
    headers = [of.header for of in found]
    about = {
        "checkpoint": " + ".join(f"{w:g} × {name}" for w, name in zip(checked, names, strict=True)),
        "modality": " + ".join(dict.fromkeys(header["modality"] for header in headers)),
        "protocol": "; ".join(dict.fromkeys(header["protocol"] for header in headers)),
        "data_hash": " + ".join(dict.fromkeys(header["data_hash"] for header in headers)),
        "data_notes": list(dict.fromkeys(note for header in headers for note in header["data_notes"])),
        "weights": list(checked),
        "weighting": weighting,
        "average": average,
        "scored": len(fused) - len(failures),
        "failed": len(failures),
    }
    header = {key: value for key, value in headers[0].items() if key != "cost"} | about
    whole = Predictions(
        test=sets[0], header=header, scores=fused, failures=tuple(failures[index] for index in sorted(failures))
    )
    return tell_predictions(whole, labels, out, json=json)


def is_checkpoint(path: Path) -> bool:
    """Whether a stream is a model that has yet to be scored."""
    return path.suffix == ".safetensors"


def data_for(path: Path, checkpoint: Checkpoint, data: str, flow_data: str) -> str:
    """The clips to score a checkpoint on.

    Raises:
        UsageError: they are not given.
    """
    modality = checkpoint.model.config.modality
    found = flow_data or data if modality == "flow" else data
    if not found:
        option = "--flow-data" if modality == "flow" else "--data"
        raise UsageError(f"{path} is a checkpoint of {_CALLED[modality]}; give the clips to score it on with {option}")
    return found


def print_fusion(fusion: Fusion, console: Console) -> None:
    """A row per stream and one for all together, and what was left out."""
    count = min(5, len(fusion.evaluation.classes))
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("scores", "weight", "clips", "failed", "unmatched", "top-1", f"top-{count}", "mean-class"):
        table.add_column(title, justify="left" if title == "scores" else "right", overflow="fold")
    for s in fusion.streams:
        counts = str(s.clips), str(s.failed), str(s.unmatched)
        table.add_row(escape(printable(s.name)), f"{s.weight:g}", *counts, *_accuracies(s.evaluation))
    e = fusion.evaluation
    table.add_row("[bold]together[/bold]", "", str(e.header["scored"]), "", "", *_accuracies(e), style="bold")
    console.print(table)
    shares = " : ".join(f"{s.weight:g}" for s in fusion.streams)
    console.print(f"\nweights {shares}, {printable(fusion.weighting)}", markup=False, highlight=False, soft_wrap=True)
    low, high = e.interval
    console.print(
        f"top-1 on the {e.header['scored']} clips that all have scores of, 95 % interval "
        f"{100 * low:.1f}–{100 * high:.1f}; {_ADDED[e.header['average']]}",
        highlight=False,
    )
    if e.header["failed"]:
        console.print(f"[red]{e.header['failed']} of {e.header['expected']} clips left out[/red]: not scored by all")


def _accuracies(evaluation: Evaluation) -> tuple[str, str, str]:
    values = evaluation.top1, evaluation.top5, evaluation.mean_class
    return tuple(f"{100 * value:.1f} %" for value in values)  # type: ignore[return-value]
