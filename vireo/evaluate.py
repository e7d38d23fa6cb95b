"""Score a checkpoint on labelled clips, and say honestly what the score rests on: the function and the command.

Scores flow as: ClipTable → `vireo.scoring.score_table` → Scores → `vireo.evaluation.measure` → Evaluation.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.text import Text
from torch import Tensor

from vireo.checkpoint import Checkpoint, load_checkpoint
from vireo.config import ReadConfig, Settings
from vireo.data.annotations import read_table
from vireo.data.faults import Failure, TooManyFailuresError
from vireo.data.table import ClipTable, counted
from vireo.data.unlabelled import UnlabelledTest, read_unlabelled
from vireo.distributed import Team, launch, make_fabric, peers_may_be_gone
from vireo.errors import DataError, UsageError, VireoError, writing
from vireo.evaluation import (
    ABORTED,
    FAILED,
    Evaluation,
    find_slowest,
    measure,
    print_evaluation,
    print_header,
    tabulate,
    write_evaluation,
)
from vireo.files import write_failures, write_json
from vireo.official_splits import SPLITS, SplitsResult, print_splits, read_splits, splits_of, write_splits
from vireo.probe import frame_orders, probe_order
from vireo.progress import make_console, printable
from vireo.run_files import CLIPS, check_results_folder
from vireo.scores import EVALUATION, SUBMISSION
from vireo.scoring import ScoreConfig, all_alike, choose_split, count_trained_on, score_table
from vireo.submission import write_submission

PREDICTIONS, UNANSWERED = "predictions.json", "predictions-failed.csv"


def evaluate(
    checkpoint: Checkpoint | str | Path,
    data: str | Path | ClipTable,
    *,
    split: str = "auto",
    batch_size: int = 8,
    workers: int = -1,
    shuffle_frames: int = 0,
    reverse_frames: bool = False,
    single_frame: bool = False,
    seed: int = 0,
    device: str = "auto",
    protocol: str = "",
    views: str = "auto",
    clips: int = 0,
    sampling: str = "auto",
    average: str = "logits",
    read: ReadConfig | None = None,
    team: Team | None = None,
) -> Evaluation:
    """Accuracy of a checkpoint on labelled clips, by the checkpoint's own protocol unless told otherwise.

    A video's scores are the mean over its clips and their views.

    Args:
        checkpoint: a file that `vireo train` wrote, or one already loaded.
        data: a folder per class, a CSV, or a table.
        split: ``test``, ``val``, ``train`` or ``all``. ``auto``: the data's test part if it names
            one, else its validation part; where the data names no split: the part that training on
            the same data set aside, and all clips of any other data.
        batch_size: clips per forward pass.
        workers: processes that decode; -1 = one per core, at most 8.
        shuffle_frames: how often to score the same clips again with their frames in random order.
        reverse_frames: score them again with their frames in reverse.
        single_frame: score them again with the middle frame at every position.
        seed: of the permutations, and of the bootstrap.
        device: ``auto``, ``cpu``, ``cuda``, ...; with ``team`` it is the team's.
        protocol: how often each video is looked at, see `vireo.protocols`; "": as the checkpoint says.
        views: pictures of each clip, one of `vireo.data.views.VIEWS`; ``auto``: the protocol's.
        clips: of each video, at places spread evenly; 0: as many as the protocol says.
        sampling: segment or dense; ``auto``: the protocol's.
        average: what is averaged over clips and views: ``logits`` or ``probabilities``.
        read: how clips are read, and how many may fail; None = the defaults.
        team: the processes that share the clips; each calls this, and each gets the whole result. None = this one.

    Raises:
        DataError: unusable data, a label the model does not know, or no readable clip.
        TooManyFailuresError: a DataError; more clips failed than ``read`` allows.
        CheckpointError: not a checkpoint.
        UsageError: a setting is wrong, or mirrored views of classes that have no mirror image.
    """
    config = ScoreConfig(
        batch_size=batch_size,
        workers=workers,
        shuffle_frames=shuffle_frames,
        reverse_frames=reverse_frames,
        single_frame=single_frame,
        seed=seed,
        device=device,
        protocol=protocol,
        views=views,
        clips=clips,
        sampling=sampling,
        average=average,
        read=read or ReadConfig(),
    )
    return evaluate_part(checkpoint, data, split, config, team)


def evaluate_part(
    checkpoint: Checkpoint | str | Path,
    data: str | Path | ClipTable,
    split: str,
    config: ScoreConfig,
    team: Team | None = None,
    *,
    run: Path | None = None,
) -> Evaluation:
    """As :func:`evaluate`; ``run`` is the folder of the run that a loaded checkpoint is from."""
    if not isinstance(checkpoint, Checkpoint):
        run = Path(checkpoint).parent
        checkpoint = load_checkpoint(checkpoint)
    model = checkpoint.model
    if isinstance(data, ClipTable):
        table = data
    else:
        table = read_table(data, label_names=checkpoint.labels, modality=model.config.modality)
    if table.label_names != checkpoint.labels:
        raise DataError(
            "The table's label names, or their order, are not the model's; read it with "
            "read_table(data, label_names=checkpoint.labels)"
        )
    notes, (table, part) = list(table.notes), choose_split(table, split, checkpoint.provenance, run)
    shuffle, reverse, single = config.shuffle_frames, config.reverse_frames, config.single_frame
    orders = frame_orders(model.num_frames, shuffle=shuffle, reverse=reverse, single=single, seed=config.seed)
    if orders and model.num_frames == 1:
        raise UsageError("the model sees one frame of a clip; there is no order to change")
    (straight, *others), header = score_table(
        checkpoint, table, config, team, orders=[None, *(order for _, order in orders)]
    )
    if run is not None and part != "train" and (seen := count_trained_on(table, run)):
        header["trained_on"] = seen
        notes.append(
            f"{seen} of the {counted(len(table), 'clip')} {'was' if seen == 1 else 'were'} trained on, so the figures "
            f"say little of new ones; --data "
            f"{run / CLIPS} --split val takes those that training set aside"
        )
    header |= {"split": part, "data_notes": notes}
    height, width = header["cost"]["frame_size"] if "cost" in header else (0, 0)
    if height and {height, width} != {checkpoint.view.size} and (config.protocol or config.views != "auto"):
        size = checkpoint.view.size
        notes.insert(0, f"the network sees {height} × {width} pixels here; it was trained on {size} × {size}")
    if not isinstance(data, ClipTable):
        header["data"] = str(data)
    with all_alike(team):
        found = measure(straight, checkpoint.labels, header, seed=config.seed)
    if orders:
        answers = [(name, scores.logits.argmax(1).numpy()) for (name, _), scores in zip(orders, others, strict=True)]
        own, truth = straight.logits.argmax(1).numpy(), straight.labels.numpy()
        found = replace(found, order=probe_order(own, answers, truth, checkpoint.labels, seed=config.seed))
    slowest = find_slowest(straight, table)
    return replace(found, clip_scores=tabulate(straight, table, model.config.modality), slowest=slowest)


# --- test sets whose labels a server keeps ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Answers to clips that have no labels."""

    test: UnlabelledTest
    header: dict[str, Any]
    """As of an `Evaluation`."""
    scores: Tensor
    """(N, K) float32 in the order of the test set's list, before softmax; a row of nan could not be read."""
    failures: tuple[Failure, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        failed = [{"path": f.path, "reason": f.reason} for f in self.failures]
        return {**self.header, "labelled": False, "failures": failed}


def predict_test(
    checkpoint: Checkpoint, test: UnlabelledTest, config: ScoreConfig, team: Team | None = None
) -> Predictions:
    """Score the clips of a test set without labels.

    Raises:
        TooManyFailuresError: more clips failed than the settings allow, or all.
    """
    [scores], header = score_table(checkpoint, test.table, config, team)
    if not len(scores.labels):
        with all_alike(team):
            raise TooManyFailuresError(f"None of {scores.expected} clips could be scored", scores.failures)
    rows = torch.full((len(test.ids), len(checkpoint.labels)), torch.nan)
    rows[scores.indices] = scores.logits
    counts = {"expected": scores.expected, "scored": len(scores.labels), "failed": len(scores.failures)}
    about = {"split": "test, without labels", "data_notes": list(test.table.notes), **counts}
    return Predictions(test=test, header={**header, **about}, scores=rows, failures=scores.failures)


def write_predictions(found: Predictions, labels: tuple[str, ...], out: Path) -> Path:
    """Write the server's file, and beside it what it rests on and which clips failed.

    Raises:
        StorageError: one can't be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    path = write_submission(
        out / SUBMISSION,
        found.test.ids,
        found.scores,
        labels,
        official=found.test.official,
        numbers=found.test.format == "ssv2",
    )
    write_json(out / PREDICTIONS, found.as_dict())
    # Not failed.csv, which is of the evaluation that may lie in the same folder.
    write_failures(out / UNANSWERED, [(failure.path, failure.reason) for failure in found.failures])
    write_failures(out / ABORTED, [])
    return path


# --- the command --------------------------------------------------------------------------------------


def start_team(device: str, devices: int, num_nodes: int) -> Team | None:
    """The processes that share the clips, started by torchrun, srun or here; None = this one alone.

    Raises:
        UsageError: the numbers don't fit, or the device is a single one.
    """
    if devices < 1 or num_nodes < 1:
        raise UsageError(f"devices is {devices} and num_nodes is {num_nodes}; each must be at least 1")
    if devices * num_nodes == 1 and not torch.distributed.is_torchelastic_launched():
        return None
    if ":" in device:
        raise UsageError(f"device {device!r} is a single one; with several give its kind, {device.split(':')[0]}")
    settings = Settings(
        accelerator=device, devices=devices, num_nodes=num_nodes, batch_size=devices * num_nodes, precision="32-true"
    )
    return launch(make_fabric(settings))


def evaluate_command(
    checkpoints: Path | Sequence[Path],
    data: str,
    *,
    out: Path | None = None,
    split: str = "auto",
    protocol: str = "",
    views: str = "auto",
    clips: int = 0,
    sampling: str = "auto",
    average: str = "logits",
    shuffle_frames: int = 0,
    reverse_frames: bool = False,
    single_frame: bool = False,
    batch_size: int = 8,
    workers: int = -1,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    read: ReadConfig | None = None,
    json: bool = False,
) -> int:
    """What `vireo eval` does: evaluate, print, write the files (default: ``NAME.eval/`` beside the checkpoint).

    Several checkpoints are those of the splits of the data: each is scored on its own, and the mean is the result.
    """
    paths = [Path(checkpoints)] if isinstance(checkpoints, str | Path) else list(checkpoints)
    config = ScoreConfig(
        batch_size=batch_size,
        workers=workers,
        shuffle_frames=shuffle_frames,
        reverse_frames=reverse_frames,
        single_frame=single_frame,
        seed=seed,
        device=device,
        protocol=protocol,
        views=views,
        clips=clips,
        sampling=sampling,
        average=average,
        read=read or ReadConfig(),
    )
    team = start_team(device, devices, num_nodes)
    try:
        with peers_may_be_gone() if team else nullcontext():
            if len(paths) > 1:
                return _command_of_splits(paths, data, split, config, team, out, json=json)
            return _command_of_one(paths[0], data, split, config, team, out, json=json)
    except VireoError as error:
        if team and error is team.agreed and not team.first:
            raise SystemExit(error.exit_code) from None  # the first process says it
        raise


def _command_of_one(
    path: Path, data: str, split: str, config: ScoreConfig, team: Team | None, out: Path | None, *, json: bool
) -> int:
    out, first = out or path.with_suffix(".eval"), team is None or team.first
    check_results_folder(out)
    checkpoint = load_checkpoint(path)
    test = None
    if split == "test":
        test = read_unlabelled(data, label_names=checkpoint.labels, modality=checkpoint.model.config.modality)
    with _failures_kept(out, first):
        if test is not None:
            found = predict_test(checkpoint, test, config, team)
            return tell_predictions(found, checkpoint.labels, out, json=json) if first else 0
        evaluation = evaluate_part(checkpoint, data, split, config, team, run=path.parent)
    if not first:
        return 0
    console = make_console()
    try:
        files = write_evaluation(evaluation, out)
    finally:  # a full disk does not take the figures along, nor `| head` the files
        if json:
            print(jsonlib.dumps(evaluation.as_dict(), ensure_ascii=False), flush=True)
        else:
            print_evaluation(evaluation, console)
    if not json:
        console.print(
            f"confusion matrix: {escape(printable(str(files['confusion'])))}", highlight=False, soft_wrap=True
        )
    return 0


def tell_predictions(found: Predictions, labels: tuple[str, ...], out: Path, *, json: bool) -> int:
    """Write the files, say where the server's lies, and return the exit code."""
    path = write_predictions(found, labels, out)
    if json:
        print(jsonlib.dumps({**found.as_dict(), "file": str(path)}, ensure_ascii=False), flush=True)
        return 0
    console = make_console()
    print_header(found.header, console)
    told = "\nThe clips have no labels, so nothing is scored; the file for the server: "
    console.print(Text.assemble(told, (printable(str(path)), "bold")), soft_wrap=True)
    if found.failures:
        console.print(
            f"[red]{counted(len(found.failures), 'clip')} without a line in it[/red], as they can't be read; "
            f"{UNANSWERED} names them",
            soft_wrap=True,
        )
    return 0


def _command_of_splits(
    paths: Sequence[Path],
    data: str,
    split: str,
    config: ScoreConfig,
    team: Team | None,
    out: Path | None,
    *,
    json: bool,
) -> int:
    out, first = out or paths[0].parent / "splits.eval", team is None or team.first
    check_results_folder(out)
    names = splits_of(data, len(paths))
    loaded = [load_checkpoint(path) for path in paths]
    tables = read_splits(names, loaded, [str(path) for path in paths])
    evaluations = []
    for number, (path, checkpoint, table) in enumerate(zip(paths, loaded, tables, strict=True), start=1):
        folder = out / f"split-{number}"
        with _failures_kept(folder, first):
            evaluations.append(evaluate_part(checkpoint, table, split, config, team, run=path.parent))
        checkpoint.model.cpu()  # its successor needs the room
        if first:
            write_evaluation(evaluations[-1], folder)
    if not first:
        return 0
    result = SplitsResult(data=names, checkpoints=tuple(map(str, paths)), evaluations=tuple(evaluations))
    try:
        write_splits(result, out / SPLITS)
    finally:
        if json:
            print(jsonlib.dumps(result.as_dict(), ensure_ascii=False), flush=True)
        else:
            print_splits(result, make_console())
    if not json:
        make_console().print(f"all results: {escape(printable(str(out)))}", highlight=False, soft_wrap=True)
    return 0


@contextmanager
def _failures_kept(out: Path, first: bool) -> Iterator[None]:
    """Name the clips that failed also where they are too many; in ``failed.csv``, if no earlier result lies there."""
    try:
        yield
    except TooManyFailuresError as error:
        if first:
            with writing(out):
                out.mkdir(parents=True, exist_ok=True)
            kept = any((out / name).exists() for name in (EVALUATION, PREDICTIONS))
            name = ABORTED if kept else FAILED
            write_failures(out / name, [(failure.path, failure.reason) for failure in error.failures])
        raise
