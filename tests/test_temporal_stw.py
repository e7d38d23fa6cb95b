"""STFM, TWM and STW against the paper's equations, written out as loops."""

from __future__ import annotations

import json
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireo.contracts import Anchor, ConvFacts, Site
from vireo.errors import UsageError
from vireo.model import Recognizer, count_macs, count_parameters, create_model, from_config
from vireo.temporal.base import Chain
from vireo.temporal.stw import (
    STFM,
    STW,
    TWM,
    FrameAverage,
    GroupedConv,
    SpatioTemporalFusion,
    SpatioTemporalWise,
    TemporalWise,
)
from vireo.temporal.tsm import TemporalShift


def convolve_by_loops(image: Tensor, kernel: Tensor) -> Tensor:
    """One channel, one kernel, zeros around the image."""
    height, width = image.shape
    half = kernel.shape[0] // 2
    out = torch.zeros_like(image)
    for y, x, i, j in product(range(height), range(width), *map(range, kernel.shape)):
        if 0 <= y + i - half < height and 0 <= x + j - half < width:
            out[y, x] += kernel[i, j] * image[y + i - half, x + j - half]
    return out


def stfm_by_loops(stfm: SpatioTemporalFusion, widths: tuple[int, int, int], x: Tensor, frames: int) -> Tensor:
    channels = x.shape[1]
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        first = 0
        for offset, outputs, conv in zip((-1, 0, 1), widths, (stfm.theta, stfm.phi, stfm.varphi), strict=True):
            groups = math.gcd(channels, outputs) if conv.groups > 1 else 1
            for j in range(outputs):  # (1); (2) places it at channel first + j
                for i in range(channels):
                    if 0 <= row % frames + offset < frames and i % groups == (first + j) % groups:
                        kernel = conv.weight[j, i] if groups == 1 else conv.weight[j // groups * channels + i, 0]
                        out[row, first + j] += convolve_by_loops(x[row + offset, i], kernel)
            first += outputs
    return out


def twm_by_loops(twm: TemporalWise, x: Tensor, frames: int) -> Tensor:
    weight = twm.weight[:, :, 0, 0]
    out = torch.zeros_like(x)
    for row, y, z in product(range(x.shape[0]), range(x.shape[2]), range(x.shape[3])):
        u = twm.bias.item()
        for i in (-1, 0, 1):  # (4)
            if 0 <= row % frames + i < frames:
                u += sum((weight[i + 1] * x[row + i, :, y, z]).tolist())
        s = 1 / (1 + math.exp(-u))
        for c in range(x.shape[1]):
            v = x[row, c, y, z] * s  # (5)
            out[row, c, y, z] = x[row, c, y, z] - v  # (6)
    return out


def shift_by_loops(x: Tensor, widths: tuple[int, int, int], frames: int) -> Tensor:
    """The first channels from t−1, the next from t, the last from t+1."""
    offsets = [-1] * widths[0] + [0] * widths[1] + [1] * widths[2]
    out = torch.zeros_like(x)
    for row, (channel, offset) in product(range(x.shape[0]), enumerate(offsets)):
        if 0 <= row % frames + offset < frames:
            out[row, channel] = x[row + offset, channel]
    return out


def fusion(
    frames: int, widths: tuple[int, int, int], kernel: int = 3, dense: bool = False, gain: float = 1.0
) -> SpatioTemporalFusion:
    return SpatioTemporalFusion(frames, widths, kernel=kernel, dense=dense, gain=gain)


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def noise(rows: int, channels: int, height: int = 3, width: int = 2) -> Tensor:
    torch.manual_seed(rows + channels)
    return torch.randn(rows, channels, height, width, dtype=torch.float64)


# 4:2:4, 8:4/3:8, 16:8/7:16, no whole shares, no common factor, an order that turns a round
WIDTHS = [(2, 4, 2), (2, 12, 2), (1, 14, 1), (2, 6, 2), (1, 4, 2), (4, 2, 2)]


@torch.no_grad()
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("widths", WIDTHS)
def test_stfm_equals_equations_1_and_2(widths: tuple[int, int, int], dense: bool) -> None:
    stfm = randomised(fusion(3, widths, dense=dense))
    x = noise(6, sum(widths))
    assert torch.allclose(stfm(x), stfm_by_loops(stfm, widths, x, 3), atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 6])
def test_stfm_whatever_t_and_kernel(frames: int, kernel: int) -> None:
    stfm = randomised(fusion(frames, (2, 4, 2), kernel=kernel))
    x = noise(6, 8)
    assert torch.allclose(stfm(x), stfm_by_loops(stfm, (2, 4, 2), x, frames), atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("channels", "outputs", "first"), [(16, 4, 0), (16, 8, 4), (16, 14, 1), (18, 10, 4)])
def test_a_part_is_a_grouped_convolution_of_reordered_channels(channels: int, outputs: int, first: int) -> None:
    part = randomised(GroupedConv(channels, outputs, first=first, kernel=3, dense=False, gain=1.0))
    groups = math.gcd(channels, outputs)
    size, rounds = channels // groups, outputs // groups
    assert part.weight.numel() == nn.Conv2d(channels, outputs, 3, groups=groups, bias=False).weight.numel()
    x = noise(2, channels, 4, 5)
    inputs = [g + m * groups for g in range(groups) for m in range(size)]  # group by group
    kernels = part.weight.view(rounds, size, groups, 3, 3).permute(2, 0, 1, 3, 4).flatten(0, 1)
    by_group = F.conv2d(x[:, inputs], kernels, padding=1, groups=groups)  # channel g·rounds + r
    order = [(first + j) % groups * rounds + j // groups for j in range(outputs)]
    assert torch.allclose(torch.cat(part(x), dim=-1).permute(0, 3, 1, 2), by_group[:, order], atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_twm_equals_equations_3_to_6(frames: int) -> None:
    twm = randomised(TemporalWise(4, frames))
    x = noise(6, 4)
    assert torch.allclose(twm(x), twm_by_loops(twm, x, frames), atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_average_of_three_frames(frames: int) -> None:
    x = noise(6, 4)
    out = torch.zeros_like(x)
    for row, i in product(range(6), (-1, 0, 1)):
        if 0 <= row % frames + i < frames:
            out[row] += x[row + i] / 3
    assert torch.allclose(FrameAverage(frames)(x), out, atol=1e-10, rtol=0)


@torch.no_grad()
def test_stw_is_the_sum_of_both_or_one_after_the_other() -> None:
    x = noise(6, 16)
    made = {combine: randomised(temporal_of(STW(combine=combine), 16)) for combine in ORDERS}
    assert isinstance(made["parallel"], SpatioTemporalWise)
    stfm, twm = made["parallel"].stfm, made["parallel"].twm
    expected = stfm_by_loops(stfm, (4, 8, 4), x, 3) + twm_by_loops(twm, x, 3)
    assert torch.allclose(made["parallel"](x), expected, atol=1e-10, rtol=0)
    stfm, twm = made["stfm_first"]
    expected = twm_by_loops(twm, stfm_by_loops(stfm, (4, 8, 4), x, 3), 3)
    assert torch.allclose(made["stfm_first"](x), expected, atol=1e-10, rtol=0)
    twm, stfm = made["twm_first"]
    expected = stfm_by_loops(stfm, (4, 8, 4), twm_by_loops(twm, x, 3), 3)
    assert torch.allclose(made["twm_first"](x), expected, atol=1e-10, rtol=0)


# ------------------------------------------------------------------------------------------------ the start


@torch.no_grad()
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("widths", WIDTHS)
def test_a_fresh_stfm_is_a_shift(widths: tuple[int, int, int], kernel: int, dense: bool) -> None:
    x = noise(6, sum(widths))
    stfm = fusion(3, widths, kernel=kernel, dense=dense).double()
    assert torch.equal(stfm(x), shift_by_loops(x, widths, 3))


@torch.no_grad()
def test_a_fresh_stfm_is_tsm_with_a_quarter_each_way() -> None:
    x = noise(8, 16)
    order = [*range(12, 16), *range(12)]  # TSM takes its first channels from t+1, the next from t−1
    assert torch.equal(fusion(4, (4, 8, 4)).double()(x)[:, order], TemporalShift(4, 4)(x[:, order]))


ORDERS = ("parallel", "stfm_first", "twm_first")


@torch.no_grad()
def test_a_fresh_stw_keeps_the_scale_of_the_features() -> None:
    x = noise(9, 16)
    shifted = shift_by_loops(x, (4, 8, 4), 3)
    fresh = {combine: temporal_of(STW(combine=combine), 16).double()(x) for combine in ORDERS}
    assert torch.allclose(fresh["parallel"], (shifted + x) / 2, atol=1e-12, rtol=0)
    assert torch.allclose(fresh["stfm_first"], shifted, atol=1e-12, rtol=0)
    assert torch.allclose(fresh["twm_first"], shifted, atol=1e-12, rtol=0)
    assert torch.equal(temporal_of(STFM(), 16).double()(x), shifted)
    assert torch.allclose(temporal_of(TWM(), 16).double()(x), x / 2, atol=1e-12, rtol=0)
    still = x[:1].repeat(3, 1, 1, 1)
    assert torch.allclose(temporal_of(STW(), 16).double()(still)[1], still[1], atol=1e-12, rtol=0)


# --------------------------------------------------------------------------------------------- what must hold

MODULES = {
    "STFM": lambda c, t: fusion(t, (c // 4, c // 2, c // 4)),
    "STFM dense": lambda c, t: fusion(t, (c // 4, c // 2, c // 4), dense=True),
    "TWM": lambda c, t: TemporalWise(c, t),
    "average": lambda c, t: FrameAverage(t),
    "STW": lambda c, t: SpatioTemporalWise(fusion(t, (c // 4, c // 2, c // 4)), TemporalWise(c, t)),
}
modules = pytest.mark.parametrize("module", MODULES)


@modules
def test_gradients(module: str) -> None:
    made = randomised(MODULES[module](4, 3))
    names = [n for n, _ in made.named_parameters()]
    x = noise(6, 4, 2, 2).requires_grad_()

    def apply(features: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (features,))

    assert torch.autograd.gradcheck(apply, (x, *made.parameters()))


@pytest.mark.parametrize("module", [name for name in MODULES if name != "average"])
def test_a_fresh_module_learns_in_every_part(module: str) -> None:
    made = MODULES[module](16, 3).double()
    made(noise(6, 16)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.ne(0).all()) for p in made.parameters())


def test_at_one_frame_only_the_neighbours_have_no_gradient() -> None:
    made = MODULES["STW"](16, 1).double()
    made(noise(2, 16)).square().sum().backward()
    idle = [n for n, p in made.named_parameters() if not bool(p.grad.any())]
    assert idle == ["stfm.theta.weight", "stfm.varphi.weight"]


@torch.no_grad()
@modules
def test_channels_last_in_channels_last_out(module: str) -> None:
    made = randomised(MODULES[module](16, 4)).float()
    x = torch.randn(8, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    assert made(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(made(x), made(x.contiguous()), atol=1e-5)


@torch.no_grad()
@modules
def test_an_impulse_reaches_its_neighbours_and_no_other_clip(module: str) -> None:
    made = randomised(MODULES[module](16, 5))
    for frame, expected in ((3, [2, 3, 4]), (4, [3, 4]), (5, [5, 6])):  # 5: the second clip's first
        x = noise(10, 16)
        y = x.clone()
        y[frame] += 1
        touched = (made(y) - made(x)).flatten(1).abs().amax(dim=1).gt(1e-12).nonzero().flatten().tolist()
        assert touched == expected


@torch.no_grad()
@modules
def test_autocast_keeps_half_precision(module: str) -> None:
    made = randomised(MODULES[module](16, 4)).float()
    x = torch.randn(8, 16, 6, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half = made(x)
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.float().flatten(), made(x.float()).flatten(), dim=0) > 0.99


@modules
def test_compiles_and_exports(module: str) -> None:
    made = randomised(MODULES[module](16, 4)).float().eval()
    x = torch.randn(8, 16, 6, 6).contiguous(memory_format=torch.channels_last)

    class Clips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.made = made

        def forward(self, clips: Tensor) -> Tensor:  # (N, T, C, H, W)
            return self.made(clips.flatten(0, 1))

    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.allclose(torch.compile(made, fullgraph=True, backend="eager")(x), made(x), atol=1e-5)
        clips = x.unflatten(0, (2, 4))
        dynamic = {"clips": {0: torch.export.Dim("N", min=1, max=64)}}
        program = torch.export.export(Clips(), (clips,), dynamic_shapes=dynamic)
        assert torch.allclose(program.module()(clips[:1]), made(x[:4]), atol=1e-5)


# ------------------------------------------------------------------------------------------------ in a network


def a_site(channels: int, frames: int = 3) -> Site:
    conv = ConvFacts(in_channels=channels, out_channels=channels, kernel_size=(3, 3), stride=(1, 1), groups=1)
    facts = dict(path="b.conv", anchor=Anchor.SPATIAL_IN, channels=channels, frames=frames)
    return Site(**facts, stage=3, block=0, has_skip=True, conv=conv)


def temporal_of(recipe: STW | STFM | TWM, channels: int) -> nn.Module:
    leaf = recipe.insert(a_site(channels), nn.Conv2d(channels, channels, 3))
    assert isinstance(leaf.temporal, nn.Module)
    return leaf.temporal


@pytest.mark.parametrize(
    ("shares", "channels", "widths"),
    [
        ((0.25, 0.5, 0.25), 64, (16, 32, 16)),
        ((0.0625, 0.875, 0.0625), 64, (4, 56, 4)),
        ((0.125, 0.75, 0.125), 64, (8, 48, 8)),
        ((0.1, 0.8, 0.1), 30, (3, 24, 3)),  # 0.1 · 30 is not quite 3 in floating point
        ((0.0625, 0.875, 0.0625), 8, (1, 6, 1)),
        ((0.25, 0.5, 0.25), 18, (4, 10, 4)),
        ((0.25, 0.5, 0.25), 3, (1, 1, 1)),
    ],
)
def test_shares_of_the_channels(shares: tuple[float, ...], channels: int, widths: tuple[int, ...]) -> None:
    stfm = temporal_of(STFM(shares=shares), channels)
    assert tuple(conv.rounds * conv.groups for conv in (stfm.theta, stfm.phi, stfm.varphi)) == widths
    assert [conv.groups for conv in (stfm.theta, stfm.phi, stfm.varphi)] == [math.gcd(channels, w) for w in widths]
    assert stfm(torch.randn(6, channels, 4, 4)).shape == (6, channels, 4, 4)


def on_meta(temporal: str, **options: object) -> Recognizer:
    with torch.device("meta"):
        return create_model(temporal, "resnet50", num_classes=174, **options)


def extra(temporal: str, **options: object) -> tuple[int, float]:
    """Parameters and GMACs more than TSN's."""
    model = on_meta(temporal, **options)
    return count_parameters(model) - 23_864_558, round(count_macs(model) / 1e9 - 32.699940864, 4)


def extra_parameters(**options: object) -> int:
    return count_parameters(on_meta("stfm", **options)) - 23_864_558


def test_sizes_that_follow_from_the_paper() -> None:
    macs = [count_macs(on_meta("stw", num_frames=frames)) / 1e9 for frames in (8, 16)]
    assert [round(m, 2) for m in (*macs, sum(macs))] == [33.16, 66.32, 99.47]  # the paper, with norms: 33.5, 67, 100
    # By hand: every output channel reads 4, 2 or 4 others through 9 numbers, 3 · 9 per channel in all.
    inner = 3 * 64 + 128 * 4 + 256 * 6 + 512 * 3
    outer = 64 + 256 * 3 + 512 * 4 + 1024 * 6 + 2048 * 2
    assert extra("stfm") == (27 * inner, 0.4118)
    assert extra("twm") == (3 * inner + 16, 0.0458)
    assert extra("stw") == (30 * inner + 16, 0.4576)
    assert extra("stw", site="branch_in") == (30 * outer + 16, 1.3487)
    assert extra("stw", site="branch_in", kernel=1) == (6 * outer + 16, 0.2697)
    assert extra("stw", fusion="average") == (3 * inner + 16, 0.0458)
    assert extra_parameters(stages=(5,), kernel=1) == 3 * 512 * 3
    dense = sum(n * c * c for n, c in ((3, 64), (4, 128), (6, 256), (3, 512)))
    assert extra_parameters(grouping="dense") == 9 * dense
    assert extra_parameters(shares=(0.125, 0.75, 0.125)) == (1 + 3 + 1) * 9 * inner
    assert extra_parameters(shares=(0.0625, 0.875, 0.0625)) == (1 + 7 + 1) * 9 * inner


def test_the_sites_that_the_option_names() -> None:
    for temporal in ("stw", "stfm", "twm"):
        assert [s.path for s in on_meta(temporal).sites][:2] == ["layer1.0.conv2", "layer1.1.conv2"]
        other = on_meta(temporal, site="branch_in", stages=(3, 5)).sites
        assert [s.path for s in other] == [f"layer{n}.{b}.conv1" for n, b in ((2, 0), (2, 1), (2, 2), (2, 3))] + [
            f"layer4.{b}.conv1" for b in range(3)
        ]


@torch.no_grad()
def test_options_survive_a_checkpoint() -> None:
    options = dict(combine="twm_first", shares=[0.125, 0.75, 0.125], kernel=1, site="branch_in", grouping="dense")
    model = create_model("stw", "resnet10t", num_classes=3, num_frames=2, **options).eval()
    assert json.loads(json.dumps(model.config.temporal_options)) == model.config.temporal_options
    assert {k: model.config.temporal_options[k] for k in options} == options
    again = from_config(model.config, num_classes=3).eval()
    again.load_state_dict(model.state_dict())
    x = torch.rand(1, 2, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    assert isinstance(again.backbone.layer1[0].conv1.temporal, Chain)


@pytest.mark.parametrize(
    "options",
    [
        {"shares": (0.5, 0.5)},
        {"shares": (0.5, 0.5, 0.5)},
        {"shares": (0.5, 0.0, 0.5)},
        {"shares": (float("nan"), 0.5, 0.5)},
        {"shares": "4:2:4"},
        {"fusion": "sum"},
        {"kernel": 2},
        {"kernel": 3.0},
        {"grouping": "depthwise"},
        {"site": "project_in"},
        {"stages": (1,)},
    ],
)
@pytest.mark.parametrize("recipe", [STW, STFM])
def test_options_that_make_no_sense(recipe: type[STW] | type[STFM], options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        recipe(**options)


def test_other_options_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="combine is 'series'; it must be one of parallel, stfm_first, twm_first"):
        STW(combine="series")
    with pytest.raises(UsageError, match="site is 'stem_out'"):
        TWM(site="stem_out")
    assert STFM().refuses(a_site(2)) and not STFM().refuses(a_site(3))
    assert STFM().choose([a_site(2), a_site(4)]) == (a_site(4),)
