"""MEM, TIM and SE against the paper's equations, written out as loops; TEI = MEM then TIM."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.model_tools import clips, network
from vireo.errors import UsageError
from vireo.model import create_model
from vireo.temporal.base import Chain
from vireo.temporal.tei import MEM, SETIM, TEI, MotionEnhanced, SqueezeExcitation, TemporalInteraction
from vireo.temporal.tsm import TemporalShift


def affine(layer: nn.Linear, vector: list[float]) -> list[float]:
    """A 1×1 convolution of a 1×1 map, with its bias."""
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, vector, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def pooled(frame: Tensor) -> list[float]:
    return [sum(channel.flatten().tolist()) / channel.numel() for channel in frame]


def mem_by_loops(mem: MotionEnhanced, x: Tensor, frames: int) -> Tensor:
    out = x.clone()  # u_T = x_T
    for row in range(x.shape[0]):
        if row % frames == frames - 1:
            continue
        this, following = affine(mem.conv1, pooled(x[row])), affine(mem.conv2, pooled(x[row + 1]))
        s = [a - b for a, b in zip(this, following, strict=True)]  # (1)
        weights = [sigmoid(v) for v in affine(mem.conv3, s)]  # (2)
        for channel, weight in enumerate(weights):
            out[row, channel] = weight * x[row, channel]  # (3)
    return out


def tim_by_loops(weight: Tensor, x: Tensor, frames: int) -> Tensor:
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        t = row % frames
        for channel in range(x.shape[1]):
            for i in (-1, 0, 1):  # (4)
                if 0 <= t + i < frames:
                    out[row, channel] += weight[channel, i + 1] * x[row + i, channel]
    return out


def se_by_loops(se: SqueezeExcitation, x: Tensor) -> Tensor:
    out = x.clone()
    for row in range(x.shape[0]):
        hidden = [max(0.0, v) for v in affine(se.squeeze, pooled(x[row]))]
        for channel, value in enumerate(affine(se.excite, hidden)):
            out[row, channel] *= sigmoid(value)
    return out


@pytest.fixture
def x(request: pytest.FixtureRequest) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3 * 4, 16, 3, 5, dtype=torch.float64)


@torch.no_grad()
def test_mem_equals_equations_1_to_3(x: Tensor) -> None:
    mem = MotionEnhanced(16, 4, 8).double()
    assert torch.allclose(mem(x), mem_by_loops(mem, x, 4), atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 4, 12])
def test_tim_equals_equation_4(x: Tensor, frames: int) -> None:
    tim = TemporalInteraction(16, frames).double()
    nn.init.normal_(tim.weight)
    expected = tim_by_loops(tim.weight[:, 0, :, 0], x, frames)
    assert torch.allclose(tim(x), expected, atol=1e-10, rtol=0)


@torch.no_grad()
def test_se_equals_its_definition(x: Tensor) -> None:
    se = SqueezeExcitation(16, 4).double()
    assert torch.allclose(se(x), se_by_loops(se, x), atol=1e-10, rtol=0)


@torch.no_grad()
def test_tei_is_mem_then_tim(x: Tensor) -> None:
    mem, tim = MotionEnhanced(16, 4, 8).double(), TemporalInteraction(16, 4).double()
    nn.init.normal_(tim.weight)
    expected = tim_by_loops(tim.weight[:, 0, :, 0], mem_by_loops(mem, x, 4), 4)
    assert torch.allclose(Chain(mem, tim)(x), expected, atol=1e-10, rtol=0)
    inserted = network("tei", "resnet10t").backbone.layer1[0].conv1.temporal
    assert [type(m) for m in inserted] == [MotionEnhanced, TemporalInteraction]
    inserted = network("se_tim", "resnet10t").backbone.layer1[0].conv1.temporal
    assert [type(m) for m in inserted] == [SqueezeExcitation, TemporalInteraction]


@pytest.mark.parametrize(
    "module",
    [MotionEnhanced(4, 3, 2), TemporalInteraction(4, 3), SqueezeExcitation(4, 2)],
    ids=lambda m: type(m).__name__,
)
def test_gradients(module: nn.Module) -> None:
    torch.manual_seed(0)
    module = module.double()
    names = [n for n, _ in module.named_parameters()]
    x = torch.randn(6, 4, 2, 2, dtype=torch.float64, requires_grad=True)

    def apply(features: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (features,))

    assert torch.autograd.gradcheck(apply, (x, *module.parameters()))


@pytest.mark.parametrize("channels", [16, 24, 20])
def test_tim_starts_as_the_shift(channels: int) -> None:
    x = torch.randn(12, channels, 3, 3)
    assert torch.equal(TemporalInteraction(channels, 4)(x), TemporalShift(4, channels // 8)(x))


@torch.no_grad()
def test_a_fresh_tim_network_gives_the_logits_of_tsm() -> None:
    tsm = network("tsm", "resnet10t")
    tim = create_model("tim", "resnet10t", num_classes=tsm.num_classes, num_frames=tsm.num_frames).eval()
    missing = tim.load_state_dict(tsm.state_dict(), strict=False)
    assert not missing.unexpected_keys and all("temporal" in key for key in missing.missing_keys)
    assert torch.allclose(tim(clips(tsm, 2)), tsm(clips(tsm, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [MotionEnhanced(16, 4, 8), TemporalInteraction(16, 4), SqueezeExcitation(16, 4)])
def test_channels_last_in_channels_last_out(module: nn.Module) -> None:
    x = torch.randn(8, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    assert module(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(module(x), module(x.contiguous()), atol=1e-6)


def test_mem_passes_a_single_frame_and_every_last_one() -> None:
    x = torch.randn(6, 16, 3, 3)
    assert torch.equal(MotionEnhanced(16, 1, 8)(x), x)
    out = MotionEnhanced(16, 3, 8)(x)
    assert torch.equal(out[2::3], x[2::3]) and not torch.equal(out[::3], x[::3])


def test_sums_in_half_precision_do_not_overflow() -> None:
    x = torch.full((2, 16, 56, 56), 100.0, dtype=torch.float16)  # its sum is 313,600; float16 ends at 65,504
    out = MotionEnhanced(16, 2, 8).half()(x)
    assert bool(out.isfinite().all())


def test_widths() -> None:
    mem = MotionEnhanced(64, 8, 8)
    assert mem.conv1.weight.shape == mem.conv2.weight.shape == (8, 64) and mem.conv3.weight.shape == (64, 8)
    assert TemporalInteraction(64, 8).weight.numel() == 3 * 64
    model = create_model("tei", "resnet10t", num_classes=2, reduction=4)
    assert model.backbone.layer1[0].conv1.temporal[0].conv1.out_features == model.sites[0].channels // 4
    model = create_model("se_tim", "resnet10t", num_classes=2, se_reduction=8)
    assert model.backbone.layer1[0].conv1.temporal[0].squeeze.out_features == model.sites[0].channels // 8


@pytest.mark.parametrize("make", [TEI, MEM])
def test_reduction_must_be_positive(make) -> None:
    with pytest.raises(UsageError, match="reduction is 0"):
        make(reduction=0)
    with pytest.raises(UsageError, match="se_reduction is -1"):
        SETIM(se_reduction=-1)
