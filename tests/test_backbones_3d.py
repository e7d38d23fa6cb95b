"""MFNet-3D and C2D: sizes, units against slow references, what passes between frames and clips."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vireo.backbones.c2d import C2D, TemporalMaxPool, c2d_resnet50
from vireo.backbones.mfnet import MFNet3D, MultiFiberUnit, mfnet

# ------------------------------------------------------------------------------------------------ MFNet-3D


@pytest.fixture(scope="module")
def on_meta() -> MFNet3D:
    with torch.device("meta"):
        return mfnet(16)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shake(module: nn.Module) -> None:
    """Norms that do something, with statistics of their own."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)


def test_parameters_of_every_part(on_meta: MFNet3D) -> None:
    assert {name: count(part) for name, part in on_meta.named_children()} == {
        "stem": 3_632,
        "pool": 0,
        "conv2": 66_384,
        "conv3": 404_544,
        "conv4": 2_424_576,
        "conv5": 4_788_096,
        "tail": 1_536,
    }
    sizes = {classes: count(on_meta) + (768 + 1) * classes for classes in (400, 200, 101, 51)}
    assert sizes == {400: 7_996_368, 200: 7_842_568, 101: 7_766_437, 51: 7_727_987}
    assert [len(part) for name, part in on_meta.named_children() if name.startswith("conv")] == [3, 4, 6, 3]


def test_shapes_and_macs(on_meta: MFNet3D) -> None:
    x = torch.empty(1, 3, 16, 224, 224, device="meta")
    shapes = []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for part in on_meta.eval().children():
            x = part(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (16, 16, 112, 112),
        (16, 16, 56, 56),
        (96, 8, 56, 56),
        (192, 8, 28, 28),
        (384, 8, 14, 14),
        (768, 8, 7, 7),
        (768, 8, 7, 7),
    ]
    assert counter.get_total_flops() // 2 == 11_045_142_528


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 3, 4, 32, 40), (1, 3, 1, 33, 47), (1, 5, 3, 65, 32)])
def test_children_in_order_are_the_network(shape: tuple[int, ...]) -> None:
    model = mfnet(shape[2], in_chans=shape[1]).eval()
    shake(model)
    x = torch.randn(shape)
    y = x
    for part in model.children():
        y = part(y)
    assert y.shape[2:] == ((shape[2] + 1) // 2, math.ceil(shape[3] / 32), math.ceil(shape[4] / 32))
    expected = torch.stack([clip.flatten(1).sum(1) / clip[0].numel() for clip in y])
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert torch.equal(model.forward_head(y, pre_logits=True), model(x))


def conv_by_groups(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """Every fiber on its own."""
    ways_in, ways_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    return torch.cat(
        [
            F.conv3d(
                x[:, g * ways_in : (g + 1) * ways_in],
                conv.weight[g * ways_out : (g + 1) * ways_out],
                stride=conv.stride,
                padding=conv.padding,
            )
            for g in range(conv.groups)
        ],
        dim=1,
    )


def layer_by_hand(x: Tensor, layer: nn.Sequential) -> Tensor:
    norm, conv = layer.norm, layer.conv
    columns = []
    for c in range(x.shape[1]):
        scaled = (x[:, c] - norm.running_mean[c]) / torch.sqrt(norm.running_var[c] + norm.eps)
        columns.append((scaled * norm.weight[c] + norm.bias[c]).clamp(min=0))
    return conv_by_groups(torch.stack(columns, dim=1), conv)


@torch.no_grad()
@pytest.mark.parametrize(
    ("channels", "width", "stride"), [(16, 32, (2, 1, 1)), (32, 32, None), (32, 64, (1, 2, 2)), (32, 64, (1, 1, 1))]
)
def test_a_unit_equals_its_description(channels: int, width: int, stride: tuple[int, int, int] | None) -> None:
    torch.manual_seed(0)
    unit = MultiFiberUnit(channels, width, stride).double().eval()
    shake(unit)
    x = torch.randn(2, channels, 3, 6, 5, dtype=torch.float64)
    before = x.clone()
    multiplexed = x + layer_by_hand(layer_by_hand(x, unit.i1), unit.i2)
    shortcut = x if stride is None else layer_by_hand(x, unit.w1)
    expected = layer_by_hand(layer_by_hand(multiplexed, unit.m1), unit.m2) + shortcut
    assert torch.allclose(unit(x), expected, atol=1e-10, rtol=0)
    assert torch.equal(x, before)  # the ReLUs in place keep off it
    first = stride is not None
    assert unit.m1.conv.kernel_size == (3, 3, 3) and unit.m1.conv.groups == 16
    assert (unit.m2.conv.kernel_size, unit.m2.conv.groups) == (((1, 1, 1), 1) if first else ((1, 3, 3), 16))
    assert unit.i1.conv.out_channels == width // 4 and unit.i2.conv.out_channels == channels


def test_a_unit_has_gradients() -> None:
    torch.manual_seed(0)
    unit = MultiFiberUnit(16, 16).double().eval()
    shake(unit)
    x = torch.randn(1, 16, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, (x,))


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_gradients_in_bfloat16_are_those_of_float32(frames: int) -> None:
    torch.manual_seed(0)
    for conv in (mfnet(frames).stem.conv, MultiFiberUnit(32, 32).m1.conv, MultiFiberUnit(32, 64, (2, 1, 1)).m1.conv):
        x = torch.randn(2, conv.in_channels, frames, 8, 8).contiguous(memory_format=torch.channels_last_3d)
        exact = conv(x)
        weights = torch.randn_like(exact)
        (expected,) = torch.autograd.grad((exact * weights).sum(), conv.weight)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = conv(x)
        (found,) = torch.autograd.grad((rounded * weights).sum(), conv.weight)
        assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())
        plain = F.conv3d(x, conv.weight, stride=conv.stride, padding=conv.padding, groups=conv.groups)
        assert torch.allclose(exact, plain, atol=1e-5)


@torch.no_grad()
def test_mfnet_keeps_clips_apart() -> None:
    model = mfnet(4).eval()
    shake(model)
    x = torch.randn(3, 3, 4, 32, 32)
    y = x.clone()
    y[1] = -y[1]
    change = (model(y) - model(x)).abs().amax(1)
    assert float(change[1]) > 1e-3 and float(change[[0, 2]].max()) < 1e-6


def test_mfnet_starts_from_xavier_and_wants_its_own_normalisation(on_meta: MFNet3D) -> None:
    torch.manual_seed(0)
    conv = mfnet(2).conv3[1].m1.conv
    bound = math.sqrt(6 / (27 * 12 + 27 * 192))  # as torch counts: 192 / 16 inputs, all 192 outputs
    assert 0.95 * bound < float(conv.weight.detach().abs().max()) <= bound
    config = on_meta.pretrained_cfg
    levels = torch.tensor([124.0, 117.0, 104.0])
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    assert torch.allclose((levels / 255 - mean) / std, torch.zeros(3), atol=1e-6)
    assert torch.allclose(((levels + 10) / 255 - mean) / std, torch.full((3,), 0.167), atol=1e-5)
    assert on_meta.get_submodule(config["first_conv"]) is on_meta.stem.conv
    assert config["input_size"] == (3, 224, 224) and config["classifier"] == "classifier"


# ----------------------------------------------------------------------------------------------------- C2D


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("resnet50", num_classes=0).eval()
    shake(model)
    return model.double()


def c2d_of(resnet: nn.Module, frames: int) -> C2D:
    model = c2d_resnet50(frames).double().eval()
    model.load_state_dict(resnet.state_dict())  # timm's own names, all of them
    return model


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3, 8])
@pytest.mark.parametrize("last", [False, True])
def test_temporal_max_pool_equals_its_definition(frames: int, last: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3 * frames, 4, 5, 3)
    rows = []
    for clip in range(3):
        for t in range(0, frames, 2):
            pair = x[clip * frames + t : clip * frames + min(t + 2, frames)]
            rows.append(torch.tensor([[max(p[k] for p in pair.flatten(1).tolist()) for k in range(60)]]).view(4, 5, 3))
    given = x.contiguous(memory_format=torch.channels_last) if last else x
    pooled = TemporalMaxPool(frames)(given)
    assert torch.equal(pooled, torch.stack(rows))
    if last:
        assert pooled.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("frames", [2, 3])
def test_temporal_max_pool_has_gradients(frames: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2 * frames, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(TemporalMaxPool(frames), (x,))


@torch.no_grad()
def test_c2d_of_frames_in_twos_is_resnet50(resnet: nn.Module) -> None:
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    plain = resnet(x)
    pairs = x[[0, 0, 1, 1, 2, 2]]
    with_odd_ones = x[[0, 0, 1, 2, 2, 1]]  # clips of 3: the last frame stays alone
    for frames, clips, rows in ((1, x, [0, 1, 2]), (2, pairs, [0, 1, 2]), (3, with_odd_ones, [0, 1, 2, 1])):
        assert torch.allclose(c2d_of(resnet, frames)(clips), plain[rows], rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("frames", [2, 3])
def test_c2d_keeps_clips_apart_and_mixes_the_frames_of_a_pair(resnet: nn.Module, frames: int) -> None:
    model, x = c2d_of(resnet, frames), torch.randn(2 * frames, 3, 64, 64, dtype=torch.float64)
    y = x.clone()
    y[1] = -y[1]
    change = (model(y) - model(x)).abs().amax(1)
    assert float(change[0]) > 1e-3 and float(change[1:].max()) < 1e-9


def test_c2d_has_the_sizes_of_resnet50() -> None:
    with torch.device("meta"):
        model = c2d_resnet50(8)
        assert count(model) + 2049 * 400 == 24_327_632
        assert model(torch.empty(16, 3, 64, 64)).shape == (8, 2048)
        assert c2d_resnet50(8, in_chans=10).conv1.in_channels == 10
    assert model.pretrained_cfg["architecture"] == "resnet50" and model.pretrained_cfg["first_conv"] == "conv1"


def test_c2d_with_checkpointing_computes_the_same(resnet: nn.Module) -> None:
    model, x = c2d_of(resnet, 2), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    plain = model(x)
    model.set_grad_checkpointing(True)
    saved = model(x)
    assert torch.equal(plain, saved)
    saved.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
