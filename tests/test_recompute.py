"""Blocks computed twice: the same losses, gradients and running statistics, bit for bit, and less that is kept."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from rich.console import Console
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.model_tools import CLASSES, OPTIONS, TEMPORAL_OPTIONS, clips, randomise
from tests.resume_tools import finish, small_run, start, stop_after, together
from vireo import recompute
from vireo.backbones import build_backbone
from vireo.checkpoint import load_checkpoint, read_tensors, save_checkpoint
from vireo.config import TrainConfig, ViewConfig
from vireo.data.order import OrderConfig, make_order
from vireo.errors import UsageError
from vireo.model import Recognizer, create_model
from vireo.recompute import find_blocks, recompute_blocks
from vireo.train import train

QUIET = Console(quiet=True)
PAIRS = [
    ("tsm", "resnet10t", 4),
    ("stw", "test_resnet", 4),
    ("tei", "mobilenetv2_035", 17),
    ("tefe", "mobilenetv3_small_050", 12),
    ("twm", "mobilenetv4_conv_small_035", 17),
    ("mstsm_tfdem", "regnety_002", 13),
    ("tsm", "tf_efficientnetv2_b0", 21),
    ("tei", "convnext_atto", 12),
    ("tsm+tfdem", "c2d_resnet50", 4),
    ("kpsem", "mfnet", 16),
    ("tsn", "densenet121", 4),
]
"""Module, backbone, and how many blocks it has."""


def network(temporal: str, backbone: str) -> Recognizer:
    """A randomised network in training mode, with all that draws numbers while it is computed."""
    torch.manual_seed(0)
    options: dict[str, Any] = dict(OPTIONS.get(backbone, {}))
    if backbone not in ("mfnet", "densenet121"):
        options["drop_path_rate"] = 0.3
    if backbone == "densenet121":
        options |= {"block_config": (2, 2, 2, 2), "drop_rate": 0.3, "proj_drop_rate": 0.3}
    model = create_model(
        temporal,
        backbone,
        num_classes=CLASSES,
        num_frames=4,
        dropout=0.3,
        backbone_options=options,
        **TEMPORAL_OPTIONS.get(temporal, {}),
    )
    return randomise(model).train()


class Step(NamedTuple):
    loss: Tensor
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


def take_step(model: Recognizer, seed: int = 0, *, autocast: bool = False) -> Step:
    """The gradients of a loss, and the network's state after it; the random numbers are those of the seed."""
    torch.manual_seed(seed)
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        outputs = model.forward_outputs(clips(model, 2, seed=seed, size=48))
    labels = torch.arange(2) % CLASSES
    loss = cross_entropy(outputs.logits.float(), labels)
    if outputs.auxiliary is not None:
        loss = loss + cross_entropy(outputs.auxiliary.float(), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return Step(loss.detach(), gradients, {name: t.clone() for name, t in model.state_dict().items()})


def differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def assert_same(a: Step, b: Step) -> None:
    assert torch.equal(a.loss, b.loss)
    assert differences(a.gradients, b.gradients) == []
    assert differences(a.state, b.state) == []


def recomputed(model: Recognizer) -> Recognizer:
    other = copy.deepcopy(model)
    recompute_blocks(other.backbone, other.config.backbone)
    return other


def norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def kept_bytes(model: Recognizer, count: int = 2, size: int = 48) -> int:
    """What waits for the gradients after the forward, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # held, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model.forward_outputs(clips(model, count, size=size))
    total = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)
    del outputs
    return total


@pytest.mark.parametrize(("temporal", "backbone", "blocks"), PAIRS)
def test_no_bit_of_loss_gradients_and_statistics_changes(temporal: str, backbone: str, blocks: int) -> None:
    plain = network(temporal, backbone)
    twice = copy.deepcopy(plain)
    paths = recompute_blocks(twice.backbone, backbone)
    assert len(paths) == blocks
    before = take_step(plain, 0).state
    take_step(twice, 0)
    ours, theirs = take_step(twice, 1), take_step(plain, 1)
    assert_same(ours, theirs)
    if norms(plain):
        assert differences(before, ours.state), "the statistics must move, or the comparison says nothing"
    assert all(bool(g.isfinite().all()) for g in ours.gradients.values())
    assert kept_bytes(twice) < 0.75 * kept_bytes(plain)


def test_dropped_paths_differ_from_step_to_step() -> None:
    model = recomputed(network("tsm", "resnet10t"))
    assert not torch.equal(take_step(model, 0).loss, take_step(model, 1).loss)
    first = take_step(model, 0)
    generator = torch.get_rng_state()
    torch.manual_seed(0)
    model.forward_outputs(clips(model, 2, size=48))
    assert torch.equal(generator, torch.get_rng_state())  # the second computation draws nothing of the run's numbers
    assert torch.isfinite(first.loss)


def test_a_fault_in_either_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What plain checkpointing does to batch norms, and without the stored random state to stochastic depth."""
    plain = network("tsm", "resnet10t")
    for norm in norms(plain):
        norm.num_batches_tracked.zero_()  # type: ignore[union-attr]
    right = take_step(copy.deepcopy(plain))
    assert {int(v) for k, v in right.state.items() if k.endswith("num_batches_tracked")} == {1}
    with monkeypatch.context() as patch:
        patch.setattr(recompute, "_contexts", lambda block: (nullcontext(), nullcontext()))
        wrong = take_step(recomputed(plain))
    assert differences(right.gradients, wrong.gradients) == []
    counts = {int(v) for k, v in wrong.state.items() if k.endswith("num_batches_tracked")}
    assert counts == {1, 2}  # the stem's, and that of most blocks
    with monkeypatch.context() as patch:
        real = recompute.checkpoint
        patch.setattr(recompute, "checkpoint", lambda *a, **k: real(*a, preserve_rng_state=False, **k))
        wrong = take_step(recomputed(plain))
    assert differences(right.gradients, wrong.gradients)


def test_norms_with_cumulative_averages_and_frozen_ones() -> None:
    plain = network("tsm", "resnet10t")
    for number, norm in enumerate(norms(plain)):
        if number % 2:
            norm.eval()
        else:
            norm.momentum = None
            norm.reset_running_stats()
    twice = recomputed(plain)
    for seed in range(3):
        ours, theirs = take_step(twice, seed), take_step(plain, seed)
        assert_same(ours, theirs)
    counts = [int(norm.num_batches_tracked) for norm in norms(twice)[::2]]  # type: ignore[arg-type]
    assert set(counts) == {3}


def test_two_backward_passes_through_one_forward() -> None:
    plain = network("tsm", "resnet10t")
    found = []
    for model in (plain, recomputed(plain)):
        torch.manual_seed(0)
        loss = model(clips(model, 2, size=48)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append(({k: p.grad for k, p in model.named_parameters()}, model.state_dict()))
    (gradients, state), (others, other_state) = found
    assert differences(gradients, others) == [] and differences(state, other_state) == []  # type: ignore[arg-type]


def test_an_error_on_the_second_pass_leaves_the_statistics_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = recomputed(network("tsm", "resnet10t"))
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    loss = model(clips(model, 2, size=48)).sum()

    def broken(self: object, x: Tensor) -> Tensor:
        raise RuntimeError("planted")

    monkeypatch.setattr(nn.ReLU, "forward", broken)
    with pytest.raises(RuntimeError, match="planted"):
        loss.backward()
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers


def test_bf16_autocast() -> None:
    plain = network("tei", "mobilenetv2_035")
    ours, theirs = take_step(recomputed(plain), autocast=True), take_step(plain, autocast=True)
    assert_same(ours, theirs)
    assert not torch.equal(take_step(plain).loss, ours.loss)  # it did compute in bf16


def test_names_copies_and_averages() -> None:
    plain = network("tsm", "resnet10t")
    twice = recomputed(plain)
    assert list(twice.state_dict()) == list(plain.state_dict())
    assert recompute_blocks(twice.backbone, "resnet10t") == find_blocks(plain.backbone)  # once more: no change
    before = {name: tensor.clone() for name, tensor in twice.state_dict().items()}
    other = copy.deepcopy(twice)
    assert_same(take_step(other), take_step(plain))
    assert differences(before, twice.state_dict()) == []  # type: ignore[arg-type]  # of the copy alone
    assert all(p.grad is None for p in twice.parameters())
    average = ModelEmaV3(twice, decay=0.5)
    average.update(other)
    x = clips(plain, 2, size=48)
    halves = copy.deepcopy(plain)
    halves.load_state_dict(average.module.state_dict())
    assert torch.equal(average.module.eval()(x), halves.eval()(x))


def test_where_no_gradients_are_wanted_nothing_is_stored_for_a_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = recomputed(network("tsm", "resnet10t"))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed with checkpoints")

    monkeypatch.setattr(recompute, "checkpoint", never)
    with torch.no_grad():
        model(clips(model, 2, size=48))
    model.eval()(clips(model, 2, size=48)).sum().backward()
    with pytest.raises(AssertionError, match="with checkpoints"):
        model.train()(clips(model, 2, size=48))


def test_exported_and_saved_after_training(tmp_path: Path) -> None:
    plain = network("tsm", "test_resnet")
    twice = recomputed(plain)
    take_step(twice), take_step(plain)
    x = clips(plain, 2, size=48)
    wanted = plain.eval()(x)
    exported = torch.export.export(twice.eval(), (x,))
    assert torch.allclose(exported.module()(x), wanted, atol=1e-5)
    view = ViewConfig(size=48)
    save_checkpoint(tmp_path / "x.safetensors", twice, labels=list("abcde"), view=view, provenance={})
    assert torch.equal(load_checkpoint(tmp_path / "x.safetensors").model(x), wanted)


class Block(nn.Module):
    """What a compiler could get wrong: batch norm, a ReLU in place, and random numbers at the end."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.last, self.drop = nn.Conv2d(8, 8, 1), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.last(self.act(self.norm(self.conv(x)))))  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_compiled(drop: float) -> None:
    """One graph; statistics move once; the second pass drops what the first one dropped; less is kept."""
    torch.manual_seed(0)
    eager = nn.Sequential(Block(0.0), Block(drop)).train()
    plain, twice = copy.deepcopy(eager), copy.deepcopy(eager)
    assert recompute_blocks(twice, "blocks") == ("0", "1")
    x, weights = torch.randn(4, 8, 24, 24), torch.rand(4, 8, 20, 20) + 0.5
    outputs, kept = [], []
    for model in (eager, plain, twice):
        run, tensors = (model if model is eager else torch.compile(model, fullgraph=True)), list[Tensor]()
        hold, give = tensors.append, lambda tensor: tensor
        with torch.autograd.graph.saved_tensors_hooks(lambda t, hold=hold: hold(t) or t, give):  # type: ignore[func-returns-value]
            outputs.append(run(x))
        kept.append(sum(t.untyped_storage().nbytes() for t in tensors))
        (outputs[-1] * weights).sum().backward()
    assert kept[2] < 0.75 * kept[1]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(eager.buffers(), twice.buffers(), strict=True))
    assert twice[0].norm.num_batches_tracked == 1
    if drop == 0:
        for one, other in zip(eager.parameters(), twice.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]
    else:  # the last bias: its gradient is the sum of weights where something passed, doubled
        passed = (outputs[2] != 0).float()
        assert 0.4 < float(passed.mean()) < 0.6
        assert torch.allclose(twice[1].last.bias.grad, 2 * (weights * passed).sum(dim=(0, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "kinds"),
    [
        ("resnet50", {"Bottleneck"}),
        ("efficientnet_b0", {"DepthwiseSeparableConv", "InvertedResidual"}),
        ("mobilenetv4_conv_medium", {"EdgeResidual", "UniversalInvertedResidual"}),
        ("regnetx_002", {"Bottleneck"}),
        ("convnext_tiny", {"ConvNeXtBlock"}),
        ("mfnet", {"MultiFiberUnit"}),
        ("vit_tiny_patch16_224", {"Block"}),  # no family that Vireo tests
        ("densenet121", {"DenseBlock"}),
    ],
)
def test_blocks_hold_most_of_a_network_and_none_holds_another(backbone: str, kinds: set[str]) -> None:
    with torch.device("meta"):
        net = build_backbone(backbone, {}, 8)
    paths = find_blocks(net)
    assert {type(net.get_submodule(path)).__name__ for path in paths} - {"ConvBnAct"} == kinds
    assert not [(a, b) for a in paths for b in paths if a != b and b.startswith(f"{a}.")]
    inside = sum(p.numel() for path in paths for p in net.get_submodule(path).parameters())
    assert inside > 0.7 * sum(p.numel() for p in net.parameters())


def test_a_network_without_blocks_is_refused() -> None:
    with torch.device("meta"):
        net = build_backbone("vgg11", {}, 8)
    with pytest.raises(UsageError, match=r"grad_checkpointing works block by block, and 'vgg11' has no blocks"):
        recompute_blocks(net, "vgg11")


# --- in training --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of two classes, 14 of them for training."""
    return make_order(tmp_path_factory.mktemp("order"), OrderConfig(clips=24, size=32, pairs=("push",)), workers=0)


def config(videos: Path, out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"optimizer": "sgd", "lr": 0.02, "ema_decay": 0.9, "accumulate": 2}
    settings |= {"backbone_options": {"drop_path_rate": 0.2}, "accelerator": "cpu"}
    return small_run(videos, out, **settings | changes)


def weights(run: Path) -> dict[str, Tensor]:
    return read_tensors(run / "resume.safetensors")[0]


def test_a_run_ends_with_the_same_weights_also_if_it_recomputes_from_some_step_on(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(config(videos, tmp_path / "plain"), console=QUIET)
    used: list[int] = []
    real = recompute.checkpoint

    def counted(*args: Any, **options: Any) -> Any:
        used.append(1)
        return real(*args, **options)

    monkeypatch.setattr(recompute, "checkpoint", counted)
    twice = train(config(videos, tmp_path / "twice", grad_checkpointing=True), console=QUIET)
    assert differences(weights(plain.run), weights(twice.run)) == []
    assert len(used) == 4 * 2 * 3 * 2  # blocks, parts of a step, steps, epochs
    part = config(videos, tmp_path / "part")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert train(part, console=QUIET).interrupted
    assert len(used) == 48
    train(replace(part, resume=True, grad_checkpointing=True), console=QUIET)
    assert len(used) == 48 + 16
    assert differences(weights(plain.run), weights(tmp_path / "part")) == []


def test_two_processes(videos: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    for name, on in (("plain", False), ("twice", True)):
        settings = config(videos, tmp_path / name, grad_checkpointing=on, devices=2, epochs=1)
        processes = [start(settings, told, environment=variables) for variables in together(2)]
        assert [finish(process) for process in processes] == [0, 0], told.read_text()
    assert differences(weights(tmp_path / "plain"), weights(tmp_path / "twice")) == []
