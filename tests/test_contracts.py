"""Contracts of every temporal module on every backbone family, on networks where every path counts."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tests.model_tools import (
    BACKBONES,
    MODULES,
    SUPPORTED,
    added_parameters,
    assert_batch_size_is_irrelevant,
    assert_clips_stay_apart,
    assert_every_parameter_counts,
    clips,
    distance,
    network,
    order_matters,
    planted,
)
from vireo.config import ViewConfig
from vireo.contracts import Site, SiteModule, TemporalModule, prepend
from vireo.errors import UnsupportedPairError
from vireo.model import create_model, supported_pairs
from vireo.shapes import split_time
from vireo.temporal import temporal_modules

supported = pytest.mark.parametrize(("temporal", "backbone"), SUPPORTED)
modules = pytest.mark.parametrize("temporal", MODULES)


# One pair per module, and one per backbone: for what takes seconds a pair. The slow tests take all of them.
FEW = [*(("tei", backbone) for backbone in BACKBONES if backbone != "mfnet"), ("kpsem", "mfnet")]
FEW += [(temporal, "resnet10t") for temporal in MODULES if temporal != "tei"]
REST = [pair for pair in SUPPORTED if pair not in FEW]


def few_and_slowly_all(test):  # type: ignore[no-untyped-def]
    rest = (pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)
    return pytest.mark.parametrize(("temporal", "backbone"), [*FEW, *rest])(test)


def test_every_registered_module_is_tested() -> None:
    assert set(MODULES) == {*temporal_modules, "tsm+tfdem"}


def test_the_other_pairs_say_why_they_are_not_supported() -> None:
    for backbone in ("convnext_atto", "mfnet"):
        for pair in supported_pairs([backbone], MODULES, num_frames=4):
            assert (pair.reason is None) == ((pair.temporal, backbone) in SUPPORTED)
            if pair.reason is not None:
                assert ("3D network" if backbone == "mfnet" else "dense convolution") in pair.reason
                assert "'tsn' works" in pair.reason and len(pair.reason.splitlines()) == 2
                with pytest.raises(UnsupportedPairError, match="can't go into"):
                    create_model(pair.temporal, backbone, num_classes=2, num_frames=4)


@supported
def test_no_frame_of_one_clip_reaches_another(temporal: str, backbone: str) -> None:
    assert_clips_stay_apart(network(temporal, backbone))


@pytest.mark.parametrize("frames", [1, 2, 8, 16])
@modules
def test_no_frame_of_one_clip_reaches_another_whatever_t(temporal: str, frames: int) -> None:
    assert_clips_stay_apart(network(temporal, "mobilenetv2_035", frames))


@pytest.mark.parametrize("frames", [1, 3, 8])
@pytest.mark.parametrize("backbone", ["mfnet", "c2d_resnet50"])
def test_time_that_is_pooled_may_be_odd_or_one(backbone: str, frames: int) -> None:
    assert_clips_stay_apart(network("kpsem", backbone, frames))


@pytest.mark.parametrize("backbone", ["resnet10t", "mobilenetv2_035", "convnext_atto"])
@modules
def test_odd_sizes(temporal: str, backbone: str) -> None:
    if (temporal, backbone) not in SUPPORTED:
        return
    model = network(temporal, backbone, 3)
    x = clips(model, 2, size=96)[..., :75, :93]
    with torch.no_grad():
        logits, alone = model(x), model(x[1:])
    assert logits.shape == (2, 5) and bool(logits.isfinite().all())
    assert distance(alone, logits[1:]) < 1e-4


@modules
def test_at_two_frames_every_parameter_counts(temporal: str) -> None:
    assert_every_parameter_counts(network(temporal, "resnet10t", 2))


@supported
def test_one_clip_and_many_give_the_same_logits(temporal: str, backbone: str) -> None:
    assert_batch_size_is_irrelevant(network(temporal, backbone))


@supported
def test_forward_and_backward_touch_every_parameter(temporal: str, backbone: str) -> None:
    assert_every_parameter_counts(network(temporal, backbone))


def test_at_one_frame_only_the_motion_gate_has_no_gradient() -> None:
    model = network("tei", "resnet10t", 1)
    assert_every_parameter_counts(model, but=(".temporal.0.",))
    assert all(p.grad is None for n, p in model.named_parameters() if ".temporal.0." in n)


@supported
def test_order_matters_to_all_but_tsn(temporal: str, backbone: str) -> None:
    change = order_matters(network(temporal, backbone))
    if temporal == "tsn" and backbone != "mfnet":  # (which sees order by itself)
        assert change < 1e-5
    else:
        assert change > 1e-3


@few_and_slowly_all
def test_saving_and_loading_keeps_the_logits(temporal: str, backbone: str, tmp_path) -> None:
    from vireo import load_checkpoint, save_checkpoint

    model = network(temporal, backbone)
    save_checkpoint(tmp_path / "m.safetensors", model, labels="abcde", view=ViewConfig(size=64), provenance={})
    loaded = load_checkpoint(tmp_path / "m.safetensors").model
    with torch.no_grad():
        assert torch.equal(loaded(clips(model, 2)), model(clips(model, 2)))


@few_and_slowly_all
def test_a_deep_copy_has_temporal_modules_of_its_own(temporal: str, backbone: str) -> None:
    model = network(temporal, backbone)
    x = clips(model, 2)
    with torch.no_grad():
        before = model(x)
        average = copy.deepcopy(model)  # as a moving average of weights is made
        assert torch.equal(average(x), before)
        inserted = list(added_parameters(average).values())
        for parameter in inserted:
            parameter.mul_(torch.rand_like(parameter))
        if inserted:
            assert distance(average(x), before) > 1e-3
        assert torch.equal(model(x), before)


def angle(logits: torch.Tensor, exact: torch.Tensor) -> float:
    """1 − cosine."""
    return 1 - float(torch.cosine_similarity(logits.detach().flatten(), exact.flatten(), dim=0))


@torch.no_grad()
def rounded(model: torch.nn.Module, x: torch.Tensor, seed: int) -> torch.Tensor:
    """Logits in float32, with weights and the outputs of convolutions as inexact as bfloat16 has them."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter *= 1 + 2**-9 * (2 * torch.rand(parameter.shape, generator=generator) - 1)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: output.bfloat16().float())
    return model(x)


@few_and_slowly_all
def test_autocast_to_bfloat16(temporal: str, backbone: str) -> None:
    model = network(temporal, backbone)
    x = clips(model, 2)
    with torch.no_grad():
        exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.float32  # losses want it
    # Gates of random weights blow rounding up on some backbones: then what rounding alone does is the measure.
    error = angle(logits, exact)
    assert error < 0.03 or error < 3 * max(angle(rounded(model, x, seed), exact) for seed in range(4))
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@few_and_slowly_all
def test_compiles_without_graph_breaks(temporal: str, backbone: str) -> None:
    model = network(temporal, backbone)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert distance(compiled(clips(model, 2)), model(clips(model, 2))) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
@modules
def test_inductor_gives_the_same_logits(temporal: str) -> None:
    model = network(temporal, "resnet10t")
    torch._dynamo.reset()
    with torch.no_grad():
        assert distance(torch.compile(model, fullgraph=True)(clips(model, 2)), model(clips(model, 2))) < 1e-3


@few_and_slowly_all
def test_exports_with_any_number_of_clips(temporal: str, backbone: str) -> None:
    model = network(temporal, backbone)
    dynamic = {"clips": {0: torch.export.Dim("N", min=1, max=64)}}
    program = torch.export.export(model, (clips(model, 2),), dynamic_shapes=dynamic)
    with torch.no_grad():
        for count in (1, 3):
            assert distance(program.module()(clips(model, count)), model(clips(model, count))) < 1e-5


# ------------------------------------------------------------------ the tests above catch what they are for


class RollAcrossClips(nn.Module):
    """A shift that forgets where a clip ends."""

    def forward(self, x: Tensor) -> Tensor:
        fold = x.shape[1] // 8
        return torch.cat((x[:, :fold].roll(-1, 0), x[:, fold : 2 * fold].roll(1, 0), x[:, 2 * fold :]), dim=1)


class GateOverBatch(nn.Module):
    """A gate pooled over the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean(dim=(0, 2, 3), keepdim=True))


class Idle(nn.Module):
    """A module whose weight does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.weight


class Mean(nn.Module):
    """A module that is blind to order: every frame becomes the clip's mean."""

    def forward(self, x: Tensor) -> Tensor:
        clips = split_time(x, 4)
        return clips.mean(dim=1, keepdim=True).expand_as(clips).flatten(0, 1)


def recipe_of(module: type[nn.Module]) -> type[TemporalModule]:
    @dataclass(frozen=True, kw_only=True)
    class Planted(SiteModule):
        def insert(self, site: Site, leaf: nn.Module) -> nn.Module:
            return prepend(site, leaf, module())

    return Planted


@pytest.mark.parametrize("module", [RollAcrossClips, GateOverBatch])
@pytest.mark.parametrize("backbone", ["resnet10t", "mobilenetv2_035", "convnext_atto"])
def test_a_planted_leak_is_caught(module: type[nn.Module], backbone: str, monkeypatch) -> None:
    model = planted(monkeypatch, recipe_of(module), backbone)
    with pytest.raises(AssertionError, match="leak"):
        assert_clips_stay_apart(model)


def test_a_gate_over_the_batch_is_caught_by_comparing_with_single_clips(monkeypatch) -> None:
    with pytest.raises(AssertionError):
        assert_batch_size_is_irrelevant(planted(monkeypatch, recipe_of(GateOverBatch)))


def test_an_idle_parameter_is_caught(monkeypatch) -> None:
    with pytest.raises(AssertionError, match="without gradient"):
        assert_every_parameter_counts(planted(monkeypatch, recipe_of(Idle)))


def test_blindness_to_order_is_caught(monkeypatch) -> None:
    assert order_matters(planted(monkeypatch, recipe_of(Mean))) < 1e-5


def test_a_copy_that_shares_its_modules_would_be_caught() -> None:
    model = network("tim", "resnet10t")
    leaf = model.backbone.get_submodule(model.sites[0].path)
    shared = copy.deepcopy(model)
    shared.backbone.get_submodule(model.sites[0].path).temporal = leaf.temporal
    x = clips(model, 2)
    with torch.no_grad():
        before = model(x)
        leaf.temporal.weight.mul_(0.5)
        assert distance(shared(x), before) > 1e-3
