"""Two processes score a list of clips as one does: on the CPU, started as torchrun starts them."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from tests.resume_tools import finish, together
from tests.video_tools import write_video
from vireo import cli
from vireo.checkpoint import save_checkpoint
from vireo.config import ViewConfig
from vireo.data.faults import Failure
from vireo.errors import UsageError
from vireo.evaluate import start_team
from vireo.evaluation import Scores, join_scores
from vireo.model import create_model
from vireo.scores import read_scores

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["vireo.evaluate", "tests.resume_tools"])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine clips of two classes, two of them broken."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(9):
        path = write_video(folder / "ab"[i % 2] / f"{i}.mp4", 5 + 4 * i)
        if i in (2, 5):
            path.write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("tsm", "resnet10t", num_classes=2, num_frames=4)
    torch.nn.init.normal_(model.classifier.weight)
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_checkpoint(path, model, labels=("a", "b"), view=ViewConfig(size=32), provenance={})
    return path


def _run(line: list[str], told: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with told.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os._exit(cli.main(line))


def run(line: list[str], told: Path, processes: int) -> list[int]:
    """Run the command in so many processes; their exit codes."""
    if processes == 1:
        variables: list[dict[str, str]] = [{}]
    else:
        variables, line = together(processes), [*line, "--devices", str(processes)]
    started = [_SERVER.Process(target=_run, args=(line, told, environment)) for environment in variables]
    for process in started:
        process.start()
    return [finish(process) for process in started]


@pytest.mark.parametrize(
    "options",
    [
        ["--batch-size", "1", "--shuffle-frames", "2", "--reverse-frames"],
        ["--batch-size", "4", "--protocol", "2x3-full", "--average", "probabilities"],
    ],
)
def test_two_processes_give_the_numbers_of_one(
    clips: Path, checkpoint: Path, tmp_path: Path, options: list[str]
) -> None:
    told, found = tmp_path / "told", []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        line = ["eval", str(checkpoint), "--data", str(clips), "--workers", "0", "--device", "cpu", "--out", str(out)]
        assert run([*line, "--max-failed", "5", *options], told, processes) == [0] * processes, told.read_text()
        found.append((json.loads((out / "evaluation.json").read_text()), read_scores(out)))
        slow = list(csv.DictReader((out / "slowest.csv").open()))
        assert sorted(Path(row["path"]).stem for row in slow) == list("0134678")  # all that could be read, once each
        assert [float(row["seconds"]) for row in slow] == sorted((float(row["seconds"]) for row in slow), reverse=True)
        assert all(Path(row["path"]).parent.name == row["label"] for row in slow)
    (one, own), (two, others) = found
    assert one.pop("processes") == 1 and two.pop("processes") == 2
    assert (two["expected"], two["scored"], two["failed"]) == (9, 7, 2)
    assert own.clips == others.clips and torch.equal(own.labels, others.labels)
    if "1" in options[1]:  # each clip alone is computed alike, to the last bit
        assert one == two
        assert torch.equal(own.scores.nan_to_num(7), others.scores.nan_to_num(7))
    else:
        torch.testing.assert_close(own.scores, others.scores, atol=1e-5, rtol=1e-5, equal_nan=True)
        assert one["top1"] == two["top1"] and one["confusion"] == two["confusion"]
    assert told.read_text().count("tsm × resnet10t") == 2  # the first process of each, and no other


def test_too_many_failures_end_both_and_are_said_once(clips: Path, checkpoint: Path, tmp_path: Path) -> None:
    line = ["eval", str(checkpoint), "--data", str(clips), "--workers", "0", "--out", str(tmp_path / "o")]
    told = tmp_path / "told"
    assert run([*line, "--device", "cpu", "--max-failed", "1"], told, 2) == [1, 1]
    assert told.read_text().count("error:") == 1 and "max_failed 1 allows" in told.read_text()
    assert len((tmp_path / "o" / "failed.csv").read_text().splitlines()) == 3
    assert not (tmp_path / "o" / "evaluation.json").exists()


def test_numbers_that_do_not_fit_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_team("auto", 1, 1) is None
    with pytest.raises(UsageError, match="devices is 0"):
        start_team("auto", 0, 1)
    with pytest.raises(UsageError, match="single one; with several give its kind, cuda"):
        start_team("cuda:1", 2, 1)
    for name, value in together(2)[0].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="2 processes were started, but devices is 1"):
        start_team("cpu", 1, 1)


def test_scores_of_processes_join_in_the_order_of_the_table() -> None:
    logits, labels = torch.rand(7, 3), torch.arange(7) % 3
    lost = Failure(7, "x.mp4", "broken")
    parts = [
        Scores(
            logits=logits[r::2],
            labels=labels[r::2],
            indices=torch.arange(7)[r::2],
            failures=(lost,) * r,
            moved=r,
            seconds=tuple(map(float, range(r, 7, 2))),
        )
        for r in range(2)
    ]
    joined = join_scores(parts)
    assert torch.equal(joined.logits, logits) and torch.equal(joined.labels, labels)
    assert joined.indices.tolist() == list(range(7)) and joined.failures == (lost,)
    assert joined.moved == pytest.approx(3 / 7)
    assert joined.seconds == (0, 1, 2, 3, 4, 5, 6)
