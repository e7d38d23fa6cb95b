"""Distillation: the loss against slow loops, whose classes are whose, and runs that learn from a teacher."""

from __future__ import annotations

import copy
import csv
import importlib
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import encode_png

from tests.resume_tools import finish, small_run, start, stop_after, together
from vireo.checkpoint import load_checkpoint, read_tensors, save_checkpoint
from vireo.config import TrainConfig, ViewConfig
from vireo.data.order import OrderConfig, make_order
from vireo.distill import Teacher, divergence, load_teacher
from vireo.errors import CheckpointError, UsageError
from vireo.model import compile_outputs, create_model
from vireo.runs import read_metrics
from vireo.train import no_bars, train

QUIET = Console(quiet=True)
training = importlib.import_module("vireo.train")
LABELS = ("push left to right", "push right to left")


# --- the loss -----------------------------------------------------------------------------------


def slow_softmax(scores: Sequence[float], temperature: float) -> list[float]:
    powers = [math.exp(s / temperature) for s in scores]
    return [p / sum(powers) for p in powers]


def slow_divergence(student: Sequence[float], teacher: Sequence[float], temperature: float) -> float:
    """τ² · Σ_k p_k · (log p_k - log q_k), as the formula stands."""
    p, q = slow_softmax(teacher, temperature), slow_softmax(student, temperature)
    return temperature**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
def test_the_divergence_and_its_gradient_are_the_formulas(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student = (3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    teacher = 3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    found = divergence(student, teacher, temperature)
    wanted = [slow_divergence(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    for grad, s, t in zip(student.grad.tolist(), student.tolist(), teacher.tolist(), strict=True):
        p, q = slow_softmax(t, temperature), slow_softmax(s, temperature)
        assert grad == pytest.approx([temperature * (b - a) for a, b in zip(p, q, strict=True)], abs=1e-12)


def test_equal_answers_cost_nothing_and_half_precision_is_computed_in_float32() -> None:
    scores = torch.tensor([[1.0, -2.0, 700.0], [0.5, 0.25, -3.0]])
    assert divergence(scores, scores + 5, 2.0).abs().max() < 1e-4  # whatever is added to all of a clip's
    assert divergence(scores.bfloat16(), scores.bfloat16(), 2.0).dtype == torch.float32
    assert bool(divergence(scores, -scores, 1.0).isfinite().all())


# --- who may teach ------------------------------------------------------------------------------


def make_teacher(path: Path, *, labels: Sequence[str] = ("other", *reversed(LABELS)), **changes: Any) -> Path:
    """A network with definite answers, of another backbone, module, size, mean and order of classes."""
    torch.manual_seed(7)
    options: dict[str, Any] = {"num_frames": 4, "mean": (0.3, 0.5, 0.1), "std": (0.2, 0.4, 0.3)}
    if changes.get("modality") == "flow":
        options |= {"mean": (0.5,), "std": (0.2,)}
    model = create_model("tsm", "test_convnext", num_classes=len(labels), **{**options, **changes})
    with torch.no_grad():
        model.classifier.weight.normal_()
    save_checkpoint(path, model, labels=labels, view=ViewConfig(size=48), provenance={})
    return path


def settings(teacher: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**{"data": "x", "out": "x", "num_frames": 4, "teacher": str(teacher), **changes})


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    path = make_teacher(tmp_path / "t.safetensors", labels=("c", "x", "a", "b", "y"))
    teacher = load_teacher(settings(path), ("a", "b", "c"))
    clips = torch.randint(0, 256, (3, 4, 3, 48, 48), dtype=torch.uint8)
    every = load_checkpoint(path).model(clips)
    assert torch.equal(teacher.answers(clips), torch.stack([every[:, 2], every[:, 3], every[:, 0]], dim=1))


def test_who_cannot_teach_is_told_why(tmp_path: Path) -> None:
    path = make_teacher(tmp_path / "t.safetensors", labels=("a", "b", "b"))
    with pytest.raises(UsageError, match=r"does not know 2 of the 3 classes: 'c', 'd'; it must have been"):
        load_teacher(settings(path), ("a", "c", "d"))
    with pytest.raises(UsageError, match=r"does not know 9 of the 9 classes: '0', '1', '2', '3', '4', …"):
        load_teacher(settings(path), list("012345678"))
    with pytest.raises(UsageError, match=r"several classes called 'b'"):
        load_teacher(settings(path), ("a", "b"))
    with pytest.raises(UsageError, match=r"t.safetensors was trained with num_frames 4, this run has 8"):
        load_teacher(settings(path, num_frames=8), ("a",))
    with pytest.raises(UsageError, match=r"trained with modality rgb, this run has flow"):
        load_teacher(settings(path, modality="flow"), ("a",))
    flow = make_teacher(tmp_path / "f.safetensors", labels=("a",), modality="flow", flow_fields=3)
    with pytest.raises(UsageError, match=r"trained with flow_fields 3, this run has 5"):
        load_teacher(settings(flow, modality="flow"), ("a",))
    assert load_teacher(settings(flow, modality="flow", flow_fields=3), ("a",)).columns.tolist() == [0]
    with pytest.raises(CheckpointError, match=r"nothing.safetensors: no such file"):
        load_teacher(settings(tmp_path / "nothing.safetensors"), ("a",))
    with pytest.raises(CheckpointError, match="not a file"):
        load_teacher(settings(tmp_path), ("a",))
    (tmp_path / "half").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"not a Vireo checkpoint, or a damaged one"):
        load_teacher(settings(tmp_path / "half"), ("a",))


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    for weight in (0.0, -1.0, 1.01, math.nan):
        with pytest.raises(UsageError, match="teacher_weight is"):
            settings(tmp_path, teacher_weight=weight)
    for temperature in (0.0, -2.0, 1e9, math.nan):
        with pytest.raises(UsageError, match="teacher_temperature is"):
            settings(tmp_path, teacher_temperature=temperature)


def test_it_sees_the_clips_in_its_own_size(tmp_path: Path) -> None:
    path = make_teacher(tmp_path / "t.safetensors", labels=("a", "b"))
    teacher = load_teacher(settings(path), ("a", "b"))
    seen: list[Tensor] = []
    teacher.model.register_forward_pre_hook(lambda model, given: seen.append(given[0]))
    generator = torch.Generator().manual_seed(0)
    for size in (32, 48, 80):
        clips = torch.randint(0, 256, (2, 4, size, size, 3), dtype=torch.uint8, generator=generator)
        clips = clips.permute(0, 1, 4, 2, 3)
        teacher.answers(clips)
        shown = seen.pop()
        assert shown.shape == (2, 4, 3, 48, 48) and shown.dtype == torch.uint8
        reference = torch.stack([interpolate(c.float(), size=(48, 48), mode="bilinear", antialias=True) for c in clips])
        assert float((shown.float() - reference).abs().max()) < 1.1  # rounded after rows and after columns


def test_it_is_only_looked_at(tmp_path: Path) -> None:
    path = make_teacher(tmp_path / "t.safetensors", labels=("a", "b"), dropout=0.9)
    state = torch.get_rng_state()
    teacher = load_teacher(settings(path, teacher_weight=0.25), ("a", "b"))
    before = copy.deepcopy(teacher.model.state_dict())
    clips = torch.randint(0, 256, (3, 4, 3, 48, 48), dtype=torch.uint8)
    torch.set_rng_state(state)
    logits = torch.randn(3, 2, requires_grad=True)
    torch.set_rng_state(state)
    assert torch.equal(teacher.answers(clips), teacher.answers(clips))  # no dropout
    assert torch.equal(state, torch.get_rng_state())
    loss = teacher.teach(logits.square().mean(), logits, clips)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and bool(logits.grad.any())
    assert not teacher.answers(clips).requires_grad
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    after = teacher.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    part = divergence(logits, teacher.answers(clips), 2.0).mean()
    wanted = 0.75 * logits.square().mean() + 0.25 * part
    assert loss.item() == pytest.approx(wanted.item())


# --- in training --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of two classes, 14 of them for training."""
    return make_order(tmp_path_factory.mktemp("order"), OrderConfig(clips=24, size=32, pairs=("push",)), workers=0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def config(videos: Path, out: Path, teacher: Path | str = "", **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"teacher": str(teacher), "accelerator": "cpu", "optimizer": "sgd", "lr": 0.02}
    settings |= {"ema_decay": 0.9, "mixup": 0.4, "label_smoothing": 0.1}
    return small_run(videos, out, **settings | changes)


def tensors(run: Path, name: str = "resume.safetensors") -> dict[str, Tensor]:
    return read_tensors(run / name)[0]


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("resume.safetensors", "last.safetensors"):
        one, other = tensors(a, name), tensors(b, name)
        assert one.keys() == other.keys()
        assert [k for k in one if not torch.equal(one[k], other[k])] == []


@pytest.mark.parametrize(("module", "weight"), [("tsm", 0.3), ("tsm+tfdem", 1.0)])
def test_a_steps_loss_is_the_mean_over_its_clips(
    videos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, weight: float
) -> None:
    mixed: list[Tensor] = []
    answered: list[tuple[Tensor, float]] = []
    mix, total = training.mix_clips, training.total_loss

    def mixing(*args: Any, **options: Any) -> Any:
        clips, targets = mix(*args, **options)
        mixed.append(clips)
        return clips, targets

    def noting(outputs: Any, *rest: Any) -> Tensor:
        loss: Tensor = total(outputs, *rest)
        answered.append((outputs.logits.detach(), loss.item()))
        return loss

    monkeypatch.setattr(training, "mix_clips", mixing)
    monkeypatch.setattr(training, "total_loss", noting)
    temperature = 3.0
    settings = config(
        videos, tmp_path / "run", teacher, temporal=module, teacher_weight=weight, teacher_temperature=temperature
    )
    result = train(replace(settings, epochs=1, accumulate=2, eval_every=1), console=QUIET)
    its = load_checkpoint(teacher)
    wanted, seen = 0.0, 0
    for clips in mixed:
        parts = [answered.pop(0) for _ in torch.tensor_split(clips, 2)]
        larger = interpolate(clips.flatten(0, 1), size=(48, 48), mode="bilinear", antialias=True)
        with torch.no_grad():
            taught = its.model(larger.unflatten(0, clips.shape[:2]))
        columns = [its.labels.index(label) for label in LABELS]
        rows = iter(taught[:, columns].tolist())
        for logits, loss in parts:
            for row in logits.tolist():
                wanted += (1 - weight) * loss + weight * slow_divergence(row, next(rows), temperature)
                seen += 1
    assert seen == 14 and not answered
    assert read_metrics(result.run)[0]["loss"] == pytest.approx(wanted / seen, rel=1e-5)


def test_a_run_says_who_taught_it_and_keeps_nothing_of_the_teacher(videos: Path, teacher: Path, tmp_path: Path) -> None:
    told = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115  # closed with the test
    taught = train(config(videos, tmp_path / "taught", teacher, epochs=1), console=told)
    alone = train(config(videos, tmp_path / "alone", epochs=1), console=QUIET)
    for name in ("resume.safetensors", "last.safetensors"):
        assert tensors(taught.run, name).keys() == tensors(alone.run, name).keys()
    assert any(
        not torch.equal(a, b) for a, b in zip(tensors(taught.run).values(), tensors(alone.run).values(), strict=True)
    )
    provenance = load_checkpoint(taught.best).provenance["teacher"]
    assert provenance["backbone"] == "test_convnext" and len(provenance["sha256"]) == 64
    assert "teacher" not in load_checkpoint(alone.best).provenance
    text = " ".join(told.export_text().split())
    assert "teacher: tsm × test_convnext of" in text
    assert "0.5 of the loss at temperature 2, which sees the clips resized from 32² to 48²" in text


def test_a_resumed_run_needs_the_same_teacher(
    videos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config(videos, tmp_path / "whole", teacher), console=QUIET)
    mine = tmp_path / "mine.safetensors"
    shutil.copy(teacher, mine)
    part = config(videos, tmp_path / "part", mine)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert train(part, console=QUIET).interrupted
    again = replace(part, resume=True)
    make_teacher(mine, labels=LABELS)
    with pytest.raises(UsageError, match=r"mine.safetensors is not what this run began with"):
        train(again, console=QUIET)
    mine.unlink()
    with pytest.raises(CheckpointError, match=r"mine.safetensors: no such file"):
        train(again, console=QUIET)
    with pytest.raises(UsageError, match="no teacher is given, but one is what this run began with"):
        train(replace(again, teacher=""), console=QUIET)
    with pytest.raises(UsageError, match=r"teacher_weight \(was 0.5, now 0.25\)"):
        train(replace(again, teacher=str(teacher), teacher_weight=0.25), console=QUIET)
    train(replace(again, teacher=str(teacher)), console=QUIET)  # elsewhere, and the same
    assert_same_run(whole.run, tmp_path / "part")
    with pytest.raises(UsageError, match="is not what this run began with"):  # that had none
        alone = train(config(videos, tmp_path / "alone", epochs=1), console=QUIET)
        train(config(videos, alone.run, teacher, epochs=1, resume=True), console=QUIET)


def double() -> None:
    torch.set_default_dtype(torch.float64)


def test_two_times_four_is_one_times_eight(videos: Path, teacher: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    plain = {"backbone": "test_convnext", "epochs": 1, "batch_size": 12, "dropout": 0.0, "mixup": 0.0}  # no batch norm
    one = config(videos, tmp_path / "one", teacher, **plain)
    assert finish(start(one, told, prepare=double)) == 0, told.read_text()
    two = replace(one, out=str(tmp_path / "two"), devices=2)
    processes = [start(two, told, environment=variables, prepare=double) for variables in together(2)]
    assert [finish(process) for process in processes] == [0, 0], told.read_text()
    a, b = tensors(tmp_path / "one", "last.safetensors"), tensors(tmp_path / "two", "last.safetensors")
    assert any(t.dtype == torch.float64 for t in a.values())
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-10


COLOURS = ("blue", "green", "red")


def write_colours(folder: Path, name: str, *, names: Sequence[str]) -> Path:
    """36 clips, each noise with a little blue, green or red, and a list that calls the colours by the names given."""
    generator = torch.Generator().manual_seed(1)
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for number in range(36):
            colour, clip = number % 3, folder / f"clip{number}"
            frames = torch.randint(0, 216, (2, 3, 36, 36), generator=generator, dtype=torch.uint8)
            frames[:, 2 - colour] += 40
            clip.mkdir(exist_ok=True)
            for i, frame in enumerate(frames):
                (clip / f"{i + 1:05d}.png").write_bytes(bytes(encode_png(frame).numpy()))
            writer.writerow([clip.name, names[colour], "train" if number < 27 else "val"])
    return path


def test_a_student_learns_a_teachers_answers_although_every_label_is_wrong(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"temporal": "tsn", "num_frames": 2, "ema_decay": 0.0, "mixup": 0.0, "dropout": 0.0}
    plain |= {"label_smoothing": 0.0, "lr": 0.05, "head_lr_scale": 5.0, "epochs": 8, "eval_every": 8, "batch_size": 9}
    true = write_colours(tmp_path, "true.csv", names=COLOURS)
    wrong = write_colours(tmp_path, "wrong.csv", names=(*COLOURS[1:], COLOURS[0]))
    good = train(config(true, tmp_path / "good", **plain), console=QUIET)
    taught = config(wrong, tmp_path / "taught", good.last, teacher_weight=1.0, **plain)
    for settings in (taught, replace(taught, out=str(tmp_path / "alone"), teacher="")):
        train(settings, console=QUIET)
    found = {}
    for name in ("good", "taught", "alone"):
        run = config(true, tmp_path / f"{name} again", init=str(tmp_path / name / "last.safetensors"), **plain)
        with closing(training.Session(run, QUIET)) as session:  # scored with the true labels, on clips that none saw
            found[name] = session.validate(no_bars()).top1
    assert found == {"good": 1, "taught": 1, "alone": 0}


@pytest.mark.slow
def test_compiled_it_answers_the_same(teacher: Path) -> None:
    its = load_teacher(settings(teacher), LABELS)
    clips = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    wanted = its.answers(clips)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compile_outputs(its.model)
    assert torch.allclose(its.answers(clips), wanted, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


def test_mixed_precision(videos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, load = set(), training.load_teacher

    def looked_at(*args: Any, **options: Any) -> Teacher:
        found: Teacher = load(*args, **options)
        found.model.classifier.register_forward_hook(lambda layer, given, scores: seen.add(scores.dtype))
        return found

    monkeypatch.setattr(training, "load_teacher", looked_at)
    train(config(videos, tmp_path / "run", teacher, epochs=1, precision="bf16-mixed"), console=QUIET)
    assert seen == {torch.bfloat16}
