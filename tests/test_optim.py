"""Optimizers, schedules, learning rate by batch size, frozen norms and balanced classes, against plain references."""

from __future__ import annotations

import csv
import importlib
import io
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.resume_tools import finish, small_run, start, together
from vireo import cli
from vireo.checkpoint import read_tensors
from vireo.config import Settings, TrainConfig, from_dict, to_dict
from vireo.data.order import OrderConfig, make_order
from vireo.errors import UsageError
from vireo.model import Outputs, create_model
from vireo.optim import (
    class_weights,
    freeze_norms,
    frozen_norms,
    lr_factor,
    make_optimizer,
    scaled_lr,
    set_learning_rate,
    train_mode,
)
from vireo.runs import read_metrics
from vireo.train import total_loss, train

QUIET = Console(quiet=True)
training = importlib.import_module("vireo.train")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training clips of one class and 5 of another, 3 of each to validate."""
    path = make_order(tmp_path_factory.mktemp("order"), OrderConfig(clips=32, size=32, pairs=("push",)), workers=0)
    by_label: dict[str, list[str]] = {}
    for row in csv.DictReader(path.open()):
        by_label.setdefault(row["label"], []).append(row["path"])
    with path.with_name("unequal.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for (label, paths), number in zip(sorted(by_label.items()), (12, 5), strict=True):
            writer.writerows([name, label, "train"] for name in paths[:number])
            writer.writerows([name, label, "val"] for name in paths[number : number + 3])
    return path.with_name("unequal.csv")


def config(clips: Path, out: Path, **changes: Any) -> TrainConfig:
    """One epoch of three steps with 6, 6 and 5 clips."""
    settings: dict[str, Any] = {"epochs": 1, "accelerator": "cpu", "optimizer": "sgd", "lr": 0.02, "flip": "off"}
    return small_run(clips, out, **settings | changes)


def weights(run: Path, name: str = "last.safetensors") -> dict[str, Tensor]:
    return read_tensors(run / name)[0]


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max()) for k in one)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- LAMB -----------------------------------------------------------------------------------------


def lamb_by_hand(x: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """Algorithm 2 of You et al., with phi(z) = z."""
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        r = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-6)
        update = r + decay * x
        ratio = x.norm() / update.norm() if decay else 1.0
        x = x - lr * ratio * update
    return x


def lamb(**changes: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = create_model("tsn", "test_resnet", num_classes=3, num_frames=2)
    settings = Settings(optimizer="lamb", lr=0.01, weight_decay=0.1, head_lr_scale=5, **changes)
    return model, make_optimizer(model, settings)


def test_lamb_is_the_paper_s_and_clips_no_gradients(double: None) -> None:
    model, optimizer = lamb()
    generator = torch.Generator().manual_seed(1)
    followed = {  # (parameter, learning rate, decay): of each group
        "weight": (model.backbone.conv1[0].weight, 0.01, 0.1),
        "norm": (model.backbone.bn1.weight, 0.01, 0.0),
        "head": (model.classifier.weight, 0.05, 0.1),
        "head bias": (model.classifier.bias, 0.1, 0.0),
    }
    first = {name: parameter.detach().clone() for name, (parameter, *_) in followed.items()}
    seen: dict[str, list[Tensor]] = {name: [] for name in followed}
    for size in (1e-3, 100.0, 3.0):  # a norm far above 1: what timm's own clipping would change
        for parameter in model.parameters():
            parameter.grad = size * torch.randn(parameter.shape, generator=generator)
        for name, (parameter, *_) in followed.items():
            assert parameter.grad is not None
            seen[name].append(parameter.grad.clone())
        optimizer.step()
    for name, (parameter, lr, decay) in followed.items():
        assert torch.allclose(parameter, lamb_by_hand(first[name], seen[name], lr, decay), rtol=0, atol=1e-12)
        assert not torch.allclose(parameter, first[name])


def test_lamb_s_state_has_its_steps() -> None:
    """As tensors alone, which is what a run saves."""
    model, optimizer = lamb()

    def go_on(number: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(number):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    go_on(3, 0)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {
        index: {name: tensor.clone() for name, tensor in own.items()}
        for index, own in optimizer.state_dict()["state"].items()
    }
    assert all(own["step"] == 3 and set(own) == {"step", "exp_avg", "exp_avg_sq"} for own in state.values())
    go_on(2, 1)
    whole = model.state_dict()
    model, optimizer = lamb()
    model.load_state_dict(kept)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    go_on(2, 1)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())


# --- learning rate --------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(10, 3.0, 4), (7, 0.5, 10), (20, 0.0, 5), (4, 1.0, 1)])
def test_one_cycle_is_torch_s(epochs: int, warmup: float, steps: int) -> None:
    """torch ends a cycle with its last step, we at the end of the run, one step later, and so is the peak."""
    settings = TrainConfig(data="d", out="o", epochs=epochs, warmup_epochs=warmup, schedule="one_cycle")
    rise = (warmup or 0.3 * epochs) * steps  # steps
    total = epochs * steps
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.5, total_steps=total + 1, pct_start=(rise + 1) / (total + 1), cycle_momentum=False
    )
    rates = []
    for step in range(total + 1):
        rates.append(0.5 * lr_factor(step / steps, settings))
        assert rates[-1] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        if step < total:
            cycle.step()
    assert rates[0] == pytest.approx(0.02) and rates[-1] == pytest.approx(0.5 / 250000)
    assert rates.index(max(rates)) == pytest.approx(rise, abs=1)


def test_one_cycle_that_only_rises() -> None:
    settings = TrainConfig(data="d", out="o", epochs=4, warmup_epochs=6.0, schedule="one_cycle")
    rates = [lr_factor(epoch, settings) for epoch in range(5)]
    assert rates == sorted(rates) and rates[-1] < 1
    assert lr_factor(4, replace(settings, warmup_epochs=4.0)) == 1


def test_the_learning_rate_follows_the_batch_size() -> None:
    settings = Settings(lr=0.4, batch_size=16)
    assert scaled_lr(settings) == 0.4
    assert scaled_lr(replace(settings, base_batch_size=16)) == 0.4
    assert scaled_lr(replace(settings, base_batch_size=64)) == pytest.approx(0.1)
    assert scaled_lr(replace(settings, base_batch_size=4)) == pytest.approx(1.6)
    model = create_model("tsn", "test_resnet", num_classes=3, num_frames=2)
    for name in ("sgd", "adamw", "lamb"):
        asked = replace(settings, optimizer=name, base_batch_size=64, head_lr_scale=5)
        optimizer = make_optimizer(model, asked)
        assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.1, 0.5, 1.0])
        set_learning_rate(optimizer, 0.5)
        set_learning_rate(optimizer, 0.1)  # of the highest, not of the one before
        assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.01, 0.05, 0.1])


def test_a_run_trains_with_and_tells_the_scaled_learning_rate(clips: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    scaled = config(clips, tmp_path / "scaled", lr=0.0625, base_batch_size=24, warmup_epochs=0.0)
    train(scaled, console=console)
    assert "learning rate 0.01562: 0.0625 × 6 / 24" in console.file.getvalue()  # type: ignore[attr-defined]
    by_hand = replace(scaled, out=str(tmp_path / "by_hand"), lr=0.015625, base_batch_size=0)
    console = Console(file=io.StringIO(), width=200)
    train(by_hand, console=console)
    assert "learning rate" not in console.file.getvalue()  # type: ignore[attr-defined]
    one, other = weights(tmp_path / "scaled"), weights(tmp_path / "by_hand")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert read_metrics(tmp_path / "scaled")[0]["lr"] == read_metrics(tmp_path / "by_hand")[0]["lr"] == 0.015625


# --- frozen norms ---------------------------------------------------------------------------------


def test_which_norms_are_frozen() -> None:
    model = create_model("tei+tfdem", "resnet10t", num_classes=3, num_frames=2)
    every = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    backbone = [m for m in model.backbone.modules() if isinstance(m, _BatchNorm)]
    assert len(every) > len(backbone) > 1
    assert frozen_norms(model, "none") == []
    assert frozen_norms(model, "partial") == backbone[1:]
    assert frozen_norms(model, "all") == every
    freeze_norms(model, "all")
    train_mode(model, freeze_norms="all")
    assert not any(norm.training or any(p.requires_grad for p in norm.parameters()) for norm in every)
    frozen = set(every)
    assert all(module.training for module in model.modules() if module not in frozen)
    groups = make_optimizer(model, Settings()).param_groups
    kept = {id(p) for norm in every for p in norm.parameters()}
    assert not any(id(p) in kept for group in groups for p in group["params"])


@pytest.mark.parametrize("which", ["none", "partial", "all"])
def test_a_run_leaves_frozen_norms_as_they_were(
    which: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: dict[str, Tensor] = {}
    frozen: set[str] = set()
    norms: set[str] = set()
    run = training.Session.run

    def noted(session: Any, *args: Any) -> bool:
        model = session.model
        before.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        still = set(frozen_norms(model, which))
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                (frozen if module in still else norms).update(f"{name}.{own}" for own in module.state_dict())
        return bool(run(session, *args))

    monkeypatch.setattr(training.Session, "run", noted)
    train(config(clips, tmp_path / "run", temporal="tsm+tfdem", freeze_norms=which, lr=0.1), console=QUIET)
    after = weights(tmp_path / "run", "resume.safetensors")
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[f"model.{name}"])}
    assert not moved & frozen
    assert {name for name in norms if name.endswith("running_mean")} <= moved
    assert bool(norms) == any(name in moved for name in norms if name.endswith("weight"))
    assert bool(frozen) == (which != "none") and bool(norms) == (which != "all")
    assert "classifier.weight" in moved and "backbone.conv1.0.weight" in moved


# --- balanced classes -----------------------------------------------------------------------------


def test_class_weights_are_inverse_and_one_on_average() -> None:
    labels = [0] * 6 + [1] * 3 + [3]
    found = class_weights(labels, (0, 1, 2, 3))
    assert found.tolist() == pytest.approx([10 / 3 / 6, 10 / 3 / 3, 0, 10 / 3])  # of 2 training has none
    assert float(found[torch.tensor(labels)].mean()) == pytest.approx(1)
    assert class_weights([1, 1, 2, 2], (None, None, None)).tolist() == pytest.approx([0, 1, 1])


def test_class_weights_count_mirror_images() -> None:
    """Classes 0 and 1 are each other's mirror images, 2 is its own, 3 has none; 4 is only seen as the mirror of 5."""
    listed = [8, 2, 5, 4, 0, 6]
    mirrored = (1, 0, 2, None, 5, 4)
    labels = [label for label, number in enumerate(listed) for _ in range(number)]
    found = class_weights(labels, mirrored)
    share: Counter[int] = (
        Counter()
    )  # of each class in the sum of weights, over all mirror images, each half of the time
    for label in labels:
        for shown in (label, label if mirrored[label] is None else mirrored[label]):
            assert shown is not None
            share[shown] += 0.5 * float(found[shown])
    assert [share[label] for label in range(6)] == pytest.approx([25 / 6] * 6)


def plain_loss(
    outputs: Outputs, labels: Tensor, weights: tuple[float, float], smoothing: float, by: list[float]
) -> Tensor:
    """The mean over clips of weight × loss, clip by clip and class by class."""
    number, classes = outputs.logits.shape
    total = outputs.logits.new_zeros(())
    for i in range(number):
        target = [float(labels[i] == c) for c in range(classes)] if labels.ndim == 1 else labels[i].tolist()
        weight = sum(share * by[c] for c, share in enumerate(target))
        for part, logits in zip(weights, (outputs.logits, outputs.auxiliary), strict=True):
            if logits is None:
                continue
            norm = logits[i].exp().sum().log()
            for c in range(classes):
                smooth = (1 - smoothing) * target[c] + smoothing / classes
                total = total - part * weight * smooth * (logits[i, c] - norm)
    return total / number


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_weighted_loss_is_the_plain_one(smoothing: float, soft: bool, auxiliary: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Tensor:
        return torch.randn(7, 4, generator=generator, dtype=torch.float64).requires_grad_()

    logits, own = drawn(), drawn()
    outputs = Outputs(logits=logits, auxiliary=own if auxiliary else None, features=logits, visuals={})
    labels = torch.rand(7, 4, generator=generator).softmax(1) if soft else torch.tensor([0, 1, 1, 2, 0, 0, 2])
    by = torch.tensor([0.5, 1.5, 2.5, 0.0])
    both = [
        total_loss(outputs, labels, (0.7, 0.4), smoothing, by),
        plain_loss(outputs, labels, (0.7, 0.4), smoothing, by.tolist()),
    ]
    assert both[0].item() == pytest.approx(both[1].item(), rel=1e-7)  # the shares are float32
    ours, plain = (torch.autograd.grad(loss, [logits, own], allow_unused=True) for loss in both)
    assert torch.allclose(ours[0], plain[0], atol=1e-8)
    assert (ours[1] is None) == (not auxiliary)
    if auxiliary:
        assert torch.allclose(ours[1], plain[1], atol=1e-8)
    alike = total_loss(outputs, labels, (0.7, 0.4), smoothing, torch.ones(4))
    assert alike.item() == pytest.approx(total_loss(outputs, labels, (0.7, 0.4), smoothing).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "near", "options"),
    [
        (torch.float64, 1e-12, {"backbone": "test_convnext", "accumulate": 4, "label_smoothing": 0.2}),
        (torch.float32, 1e-6, {"temporal": "tsm+tfdem", "mixup": 0.5, "freeze_norms": "all"}),  # mixed in float32 only
    ],
)
def test_a_run_with_class_weights_takes_the_plain_steps(
    kind: torch.dtype,
    near: float,
    options: dict[str, object],
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    double: None,
) -> None:
    torch.set_default_dtype(kind)
    settings = config(clips, tmp_path / "run", **options)
    train(replace(settings, class_balance="loss"), console=QUIET)
    by = [17 / 2 / 12, 17 / 2 / 5]
    monkeypatch.setattr(
        training,
        "total_loss",
        lambda outputs, labels, parts, smoothing, none=None: plain_loss(outputs, labels, parts, smoothing, by),
    )
    train(replace(settings, out=str(tmp_path / "plain")), console=QUIET)
    assert furthest(weights(tmp_path / "run"), weights(tmp_path / "plain")) < near
    monkeypatch.undo()
    train(replace(settings, out=str(tmp_path / "alike")), console=QUIET)
    assert furthest(weights(tmp_path / "run"), weights(tmp_path / "alike")) > 100 * near


def as_double() -> None:
    torch.set_default_dtype(torch.float64)


def test_two_processes_weigh_classes_as_one_does(clips: Path, tmp_path: Path) -> None:
    settings = config(
        clips, tmp_path / "one", backbone="test_convnext", dropout=0.0, class_balance="loss", accumulate=2
    )
    told = tmp_path / "told"
    assert finish(start(settings, told, prepare=as_double)) == 0, told.read_text()
    two = replace(settings, out=str(tmp_path / "two"), devices=2)
    processes = [start(two, told, environment=variables, prepare=as_double) for variables in together(2)]
    assert [finish(process) for process in processes] == [0, 0], told.read_text()
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-10
    for row, other in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"), strict=True):
        assert (row["loss"], row["train_top1"]) == pytest.approx((other["loss"], other["train_top1"]), abs=1e-9)


def test_a_run_with_balanced_sampling_sees_classes_equally_often(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[int, int]]] = []
    step = training.Session.step

    def noted(session: Any, batch: Any, together: int) -> None:
        seen.append(list(zip(batch.labels.tolist(), batch.indices.tolist(), strict=True)))
        step(session, batch, together)

    monkeypatch.setattr(training.Session, "step", noted)
    console = Console(file=io.StringIO(), width=200)
    train(config(clips, tmp_path / "run", class_balance="sampling", epochs=4), console=console)
    assert [len(batch) for batch in seen] == [6, 6, 5] * 4
    assert Counter(label for batch in seen for label, _ in batch) == {0: 34, 1: 34}
    drawn = Counter(item for batch in seen for item in batch)
    assert {number for (label, _), number in drawn.items() if label == 0} == {2, 3}  # 34 draws of 12 clips
    assert {number for (label, _), number in drawn.items() if label == 1} == {6, 7}
    assert "each of 2 classes is drawn 8.5 times per epoch" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "lamb", "lr": 0.01, "schedule": "one_cycle", "class_balance": "sampling", "dropout": 0.5},
        {"class_balance": "loss", "freeze_norms": "partial", "mixup": 0.3, "base_batch_size": 4, "ema_decay": 0.9},
    ],
)
def test_resume_is_exact(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    settings = config(clips, tmp_path / "whole", epochs=2, color_jitter=0.3, **options)
    train(settings, console=QUIET)
    part, step, done = replace(settings, out=str(tmp_path / "part")), training.Session.step, 0

    def counted(*args: Any) -> None:
        nonlocal done
        step(*args)
        done += 1
        if done == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(training.Session, "step", counted)
        assert train(part, console=QUIET).interrupted
    train(replace(part, resume=True), console=QUIET)
    for name in ("last.safetensors", "resume.safetensors"):
        one, other = weights(tmp_path / "whole", name), weights(tmp_path / "part", name)
        assert one.keys() == other.keys() and [k for k in one if not torch.equal(one[k], other[k])] == []
    with pytest.raises(UsageError, match=r"class_balance \(was "):
        train(replace(part, resume=True, class_balance="none"), console=QUIET)


# --- what is wrong is said ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"optimizer": "lion"}, "optimizer is 'lion'; use sgd, adamw or lamb"),
        ({"schedule": "linear"}, "schedule is 'linear'; use cosine, steps, one_cycle"),
        ({"base_batch_size": -1}, "base_batch_size is -1; it must be positive, or 0"),
        ({"freeze_norms": True}, "freeze_norms is True; use none, partial or all"),
        ({"class_balance": "weights"}, "class_balance is 'weights'; use none, sampling or loss"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Settings(**wrong)


def test_unknown_fields_name_the_nearest_or_what_took_their_place() -> None:
    good = to_dict(TrainConfig(data="d", out="o"))
    with pytest.raises(UsageError, match=r"TrainConfig has no field 'batchsize' \(did you mean 'batch_size'\?\)$"):
        from_dict(TrainConfig, {**good, "batchsize": 3})
    with pytest.raises(UsageError, match=r"no field '@', 'optimiser' \(did you mean 'optimizer'\?\)$"):
        from_dict(TrainConfig, {**good, "optimiser": "sgd", "@": 1})
    with pytest.raises(
        UsageError, match=r"no field 'partial_bn' \(use freeze_norms: partial in place of true, none in"
    ):
        from_dict(TrainConfig, {**good, "partial_bn": True})
    with pytest.raises(UsageError, match=r"no field 'x00'.*, 'x04'.* and 46 more$"):
        from_dict(TrainConfig, {**good, "x" * 10**6: 1, **{f"x{i:02}": i for i in range(50)}})
    with pytest.raises(UsageError, match="no field '3'"):
        from_dict(TrainConfig, {**good, 3: 3})  # type: ignore[dict-item]  # YAML has such keys


@pytest.mark.parametrize("how", ["file", "option"])
def test_the_command_line_names_what_took_its_place(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: d\nout: o\n" + ("partial_bn: false\n" if how == "file" else ""), encoding="utf-8")
    line = ["train", "--config", str(file), *(["--partial-bn"] if how == "option" else [])]
    assert cli.main(line) == 2
    shown = capsys.readouterr().err
    assert "use freeze_norms: partial in place of true, none in place of false" in shown
    assert len(shown.splitlines()) <= 2


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["train", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "--base-batch-size N Batch size that lr is meant for",
        "--optimizer sgd|adamw|lamb adamw;",
        "One of: cosine, steps, one_cycle.",
        "--class-balance Where classes have unequal numbers of clips. sampling:",
        "--freeze-norms Batch norms that keep their statistics and weights.",
    ):
        assert text in shown
