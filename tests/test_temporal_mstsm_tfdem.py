"""MSTSM and TFDEM against the paper, written out as loops; published sizes and temporal receptive fields."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from vireo.contracts import Anchor, ConvFacts, Site, Tap
from vireo.errors import UnsupportedPairError, UsageError
from vireo.model import count_macs, count_parameters, create_model
from vireo.shapes import Layout
from vireo.temporal.mstsm_tfdem import MSTSM, MSTSMTFDEM, TFDEM, MultiScaleShift, TemporalFeatureDifference, widen
from vireo.temporal.tsm import TSM, TemporalShift

STEM = Tap(path="maxpool", anchor=Anchor.STEM_OUT, channels=6, frames=3, stage=2)


def site(channels: int = 64, frames: int = 8, groups: int = 1, layout: Layout = Layout.NT_C_H_W) -> Site:
    facts = ConvFacts(in_channels=channels, out_channels=16, kernel_size=(1, 1), stride=(1, 1), groups=groups)
    return Site(
        path="layer1.0.conv1",
        anchor=Anchor.BRANCH_IN,
        channels=channels,
        frames=frames,
        stage=2,
        block=0,
        has_skip=True,
        conv=facts,
        layout=layout,
    )


# ------------------------------------------------------------------------------------------------- MSTSM


def shift_by_loops(x: Tensor, frames: int, one: int, two: int, scales: str) -> Tensor:
    count, channels = x.shape[0] // frames, x.shape[1]
    clips = x.view(count, frames, channels, *x.shape[2:])
    rows = []
    for clip in clips:
        shifted = torch.zeros_like(clip)  # the one-unit block, replacing
        for t in range(frames):
            for c in range(channels):
                source = t + 1 if c < one else t - 1 if c < 2 * one else t
                if 0 <= source < frames:
                    shifted[t, c] = clip[source, c]
        for t in range(frames):
            parts = [shifted[t]]
            for offset in (2, 3) if scales == "3" else (2,):  # concatenated
                for sign in (1, -1):
                    start = channels - 2 * two if sign > 0 else channels - two
                    for c in range(start, start + two):
                        source = t + sign * offset
                        if scales == "2var" and not 0 <= source < frames:
                            source = t - sign * 3
                        inside = 0 <= source < frames
                        parts.append((shifted[source, c] if inside else torch.zeros_like(shifted[t, c]))[None])
            rows.append(torch.cat(parts))
    return torch.stack(rows)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("scales", ["2", "2var", "3"])
def test_the_shift_equals_its_definition(scales: str, frames: int) -> None:
    torch.manual_seed(0)
    for channels, one_div, two_div, one, two in ((20, 8, 16, 2, 1), (16, 4, 4, 4, 4), (18, 20, 2, 0, 9)):
        x = torch.randn(2 * frames, channels, 2, 3, dtype=torch.float64)
        shift = MultiScaleShift(channels, frames, one_div=one_div, two_div=two_div, scales=scales)
        assert torch.equal(shift(x), shift_by_loops(x, frames, one, two, scales))


@pytest.mark.parametrize("frames", [1, 4, 8])
@pytest.mark.parametrize("scales", ["1", "2", "2var", "3"])
def test_channels_are_merged_before_they_are_shifted(scales: str, frames: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2 * frames, 21, 2, 2, dtype=torch.float64)
    # The mean stands in every part of the 19 channels: at both ends, on both sides of their borders, alone.
    for merge in (
        (0, 1, 2),
        (1, 5, 20),
        (2, 6, 7),
        (3, 9, 11),
        (4, 10, 12),
        (14, 15, 18),
        (16, 17, 18),
        (17, 19, 20),
        (18, 19, 20),
    ):
        shift = MultiScaleShift(21, frames, one_div=8, two_div=9, scales=scales, merge=merge)
        columns = []
        for c in range(21):
            if c == merge[0]:
                columns.append((x[:, merge[0]] + x[:, merge[1]] + x[:, merge[2]]) / 3)
            elif c not in merge:
                columns.append(x[:, c])
        merged = torch.stack(columns, dim=1)
        expected = shift_by_loops(merged, frames, 2, 0 if scales == "1" else 2, "2" if scales == "1" else scales)
        assert torch.allclose(shift(x), expected, atol=1e-12), merge
        with torch.no_grad():  # another way there
            assert torch.allclose(shift(x), expected, atol=1e-12), merge
            rows = x.contiguous(memory_format=torch.channels_last)
            assert torch.equal(shift(rows), shift(x)) and shift(rows).is_contiguous(memory_format=torch.channels_last)
        assert shift.width == 19 and shift.added == expected.shape[1] - 19


def test_copies_say_where_they_come_from() -> None:
    x = torch.arange(20.0).view(1, 20, 1, 1) + 100 * torch.arange(9.0).view(9, 1, 1, 1)
    for scales in ("1", "2", "2var", "3"):
        shift = MultiScaleShift(20, 9, one_div=8, two_div=6, scales=scales)
        copied = shift(x)[4, 20:].flatten().tolist()
        assert copied == [100.0 * (4 + way) + channel for channel, way in shift.copies()]
        assert len(copied) == {"1": 0, "2": 6, "2var": 6, "3": 12}[scales]


@pytest.mark.parametrize(
    ("scales", "fewest", "most"), [("1", 2, 3), ("2", 3, 5), ("2var", 4, 5), ("3", 4, 7)], ids=["1", "2", "2var", "3"]
)
def test_temporal_receptive_fields_of_table_3(scales: str, fewest: int, most: int) -> None:
    frames = 8
    seen = torch.zeros(frames, frames, dtype=torch.bool)  # seen[t, s]: the convolution at t reads frame s
    leaf = MSTSM(scales=scales).insert(site(), nn.Conv2d(64, 16, 1))
    for source in range(frames):
        x = torch.zeros(3 * frames, 64, 1, 1)
        x[frames + source] = 1  # an impulse in the middle one of three clips
        reached = leaf.temporal(x).flatten(1).any(dim=1)
        assert not reached[:frames].any() and not reached[2 * frames :].any()
        seen[:, source] = reached[frames : 2 * frames]
    counts = seen.sum(dim=1)
    assert (int(counts.min()), int(counts.max())) == (fewest, most)


def test_one_scale_is_tsm() -> None:
    conv = nn.Conv2d(64, 16, 1)
    ours, theirs = MSTSM(scales="1").insert(site(), copy.deepcopy(conv)), TSM().insert(site(), copy.deepcopy(conv))
    x = torch.randn(16, 64, 3, 3)
    assert torch.equal(ours(x), theirs(x))
    assert type(ours.temporal) is TemporalShift and ours.weight.shape == conv.weight.shape


def test_too_few_channels_for_a_copy_leave_the_one_unit_shift() -> None:
    leaf = MSTSM().insert(site(8), nn.Conv2d(8, 16, 1))
    assert type(leaf.temporal) is TemporalShift and leaf.in_channels == 8


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize("scales", ["2", "3"])
def test_the_convolution_keeps_its_columns_and_gets_their_mean(kind: type[nn.Conv2d], scales: str) -> None:
    conv = kind(64, 16, 3, stride=2, bias=True).double()
    conv.weight.requires_grad_(False)
    before = conv.weight.clone()
    leaf = MSTSM(scales=scales).insert(site(), conv)
    added = {"2": 8, "3": 16}[scales]
    assert type(leaf) is kind and leaf.in_channels == 64 + added and leaf.stride == (2, 2)
    assert not leaf.weight.requires_grad and leaf.bias.requires_grad
    assert torch.equal(leaf.weight[:, :64], before)
    mean = sum(before[:, c] for c in range(64)) / 64
    for column in range(64, 64 + added):
        assert torch.allclose(leaf.weight[:, column], mean, atol=1e-12)
    assert torch.equal(conv.weight, before) and conv.in_channels == 64  # a copy was widened
    x = torch.randn(8, 64, 7, 7, dtype=torch.float64)
    shifted = shift_by_loops(x, 8, 8, 4, scales)
    narrow = kind(1, 16, 3, stride=2, bias=False).double()
    narrow.weight = nn.Parameter(mean[:, None])
    expected = conv(shifted[:, :64]) + sum(narrow(channel) for channel in shifted[:, 64:].split(1, dim=1))
    assert torch.allclose(leaf(x), expected, atol=1e-10)


def test_it_refuses_what_it_cannot_widen() -> None:
    assert MSTSM().refuses(site()) is None
    assert "64 groups" in str(MSTSM().refuses(site(groups=64)))
    assert "N·T, H, W, C" in str(MSTSM().refuses(site(layout=Layout.NT_H_W_C)))
    assert MSTSM(scales="1").refuses(site(groups=64)) is None
    assert MSTSM().choose([site(groups=64), site()]) == (site(),)
    for leaf in (nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8, 8)):
        with pytest.raises(UnsupportedPairError, match="widens a dense"):
            widen(leaf, 2)


def test_gradients_of_the_shift() -> None:
    for scales in ("1", "2", "2var", "3"):
        x = torch.randn(8, 8, 1, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(MultiScaleShift(8, 4, one_div=8, two_div=8, scales=scales), (x,))
        merging = MultiScaleShift(8, 4, one_div=4, two_div=4, scales=scales, merge=(1, 4, 6))
        assert torch.autograd.gradcheck(merging, (x,))


@pytest.mark.parametrize("merge", [(), (3, 7)])
@pytest.mark.parametrize("scales", ["1", "2", "2var", "3"])
def test_the_shift_keeps_channels_last(scales: str, merge: tuple[int, ...]) -> None:
    x = torch.randn(8, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    shift = MultiScaleShift(16, 4, one_div=8, two_div=16, scales=scales, merge=merge)
    assert shift(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(shift(x), shift(x.contiguous()))


def test_scales_may_be_a_number() -> None:
    assert MSTSM(scales=2) == MSTSM() and MSTSM(scales="1").scales == 1


@pytest.mark.parametrize(
    "options",
    [
        {"scales": "4"},
        {"scales": 2.0},
        {"one_div": 1},
        {"one_div": 0},
        {"two_div": 2.5},
        {"two_div": -1},
        {"one_div": 3, "two_div": 4},
        {"stages": (1,)},
    ],
)
@pytest.mark.parametrize("recipe", [MSTSM, MSTSMTFDEM])
def test_options_that_make_no_sense(recipe: type[MSTSM], options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} is"):
        recipe(**options)


# ------------------------------------------------------------------------------------------------- TFDEM


def conv_by_loops(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    size = weight.shape[-1]
    height, width = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    out = torch.zeros(weight.shape[0], height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = (weight * window).sum(dim=(1, 2, 3))
    return out


def norm_by_loops(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    out = torch.zeros_like(x)
    for c in range(x.shape[0]):
        mean, var = norm.running_mean[c], norm.running_var[c]
        out[c] = (x[c] - mean) / torch.sqrt(var + norm.eps) * norm.weight[c] + norm.bias[c]
    return out


def double_by_loops(x: Tensor) -> Tensor:  # bilinear, pixel centres at half units
    height, width = x.shape[1], x.shape[2]
    out = torch.zeros(x.shape[0], 2 * height, 2 * width, dtype=x.dtype)
    for i in range(2 * height):
        for j in range(2 * width):
            y, z = max(0.0, (i + 0.5) / 2 - 0.5), max(0.0, (j + 0.5) / 2 - 0.5)
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, height - 1), min(z0 + 1, width - 1)
            fy, fz = y - y0, z - z0
            out[:, i, j] = (1 - fy) * ((1 - fz) * x[:, y0, z0] + fz * x[:, y0, z1])
            out[:, i, j] += fy * ((1 - fz) * x[:, y1, z0] + fz * x[:, y1, z1])
    return out


def quarter_by_loops(x: Tensor) -> Tensor:  # adaptive average pooling to 2×2
    height, width = x.shape[1], x.shape[2]
    out = torch.zeros(x.shape[0], 2, 2, dtype=x.dtype)
    for i in range(2):
        for j in range(2):
            rows = slice(i * height // 2, math.ceil((i + 1) * height / 2))
            columns = slice(j * width // 2, math.ceil((j + 1) * width / 2))
            out[:, i, j] = x[:, rows, columns].mean(dim=(1, 2))
    return out


def framed(x: Tensor) -> Tensor:  # a border of zeros, for the 3×3 convolutions
    wide = torch.zeros(x.shape[0], x.shape[1] + 2, x.shape[2] + 2, dtype=x.dtype)
    wide[:, 1:-1, 1:-1] = x
    return wide


def tfdem_by_loops(path: TemporalFeatureDifference, x: Tensor, frames: int, weights: Tensor) -> tuple[Tensor, Tensor]:
    logits, pictures = [], []
    for clip in x.view(-1, frames, *x.shape[1:]):
        features = []
        for frame in clip:
            y = conv_by_loops(framed(conv_by_loops(framed(frame), path.conv1.weight, 2)), path.conv2.weight, 2)
            features.append(double_by_loops(norm_by_loops(y, path.norm1)))
        scores = torch.zeros(path.classifier.out_features, dtype=x.dtype)
        for t in range(frames):
            d = torch.tanh(features[t] if t == 0 else features[t - 1] - features[t])
            pictures.append(d.abs().mean(dim=0))
            y = conv_by_loops(conv_by_loops(framed(d), path.conv3.weight, 1), path.conv4.weight, 1)
            y = quarter_by_loops(norm_by_loops(y, path.norm2).clamp(min=0)).flatten()
            scores += weights[t] * (path.classifier.weight @ y + path.classifier.bias)
        logits.append(scores)
    return torch.stack(logits), torch.stack(pictures)


def random_path(tap: Tap = STEM, fusion: str = "mean") -> TemporalFeatureDifference:
    torch.manual_seed(0)
    path = TemporalFeatureDifference(tap, 4, fusion).double().eval()
    with torch.no_grad():
        for norm in (path.norm1, path.norm2):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.uniform_(0.1, 0.6)
        path.classifier.weight.normal_()
        path.classifier.bias.normal_()
        if path.fusion is not None:
            path.fusion.normal_()
    return path


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["mean", "learned"])
@pytest.mark.parametrize("size", [(7, 7), (10, 13)])
def test_tfdem_equals_its_definition(size: tuple[int, int], fusion: str) -> None:
    path = random_path(fusion=fusion)
    x = torch.randn(2 * 3, 6, *size, dtype=torch.float64)
    weights = path.fusion if fusion == "learned" else torch.full((3,), 1 / 3, dtype=torch.float64)
    logits, pictures = tfdem_by_loops(path, x, 3, weights)
    outputs = path(x, visuals=True)
    assert torch.allclose(outputs.logits, logits, atol=1e-10, rtol=0)
    assert torch.allclose(outputs.visuals["differences"].flatten(0, 1), pictures, atol=1e-10, rtol=0)
    assert outputs.features is None and path(x).visuals is None and path.features == 0


@torch.no_grad()
def test_a_stem_at_half_resolution_is_pooled_first() -> None:
    half = Tap(path="bn1", anchor=Anchor.STEM_OUT, channels=6, frames=3, stage=1)
    x = torch.randn(3, 6, 24, 21, dtype=torch.float64)
    pooled = torch.stack(
        [
            torch.stack(
                [x[:, :, max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2].amax((2, 3)) for j in range(11)],
                -1,
            )
            for i in range(12)
        ],
        dim=2,
    )
    assert torch.allclose(random_path(half)(x).logits, random_path()(pooled).logits, atol=1e-12)


@torch.no_grad()
def test_a_3d_backbones_layout() -> None:
    volume = Tap(path="pool", anchor=Anchor.STEM_OUT, channels=6, frames=3, stage=2, layout=Layout.N_C_T_H_W)
    x = torch.randn(2, 6, 3, 12, 12, dtype=torch.float64)
    frames = x.transpose(1, 2).flatten(0, 1)
    assert torch.equal(random_path(volume)(x).logits, random_path()(frames).logits)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_no_clip_sees_another(frames: int) -> None:
    path = random_path(Tap(path="maxpool", anchor=Anchor.STEM_OUT, channels=6, frames=frames, stage=2))
    x = torch.randn(2 * frames, 6, 12, 12, dtype=torch.float64)
    y = x.clone()
    y[frames:] += 1
    before, after = path(x).logits, path(y).logits
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


@torch.no_grad()
def test_the_smallest_stem_output() -> None:
    x = torch.randn(3, 6, 1, 1, dtype=torch.float64)
    assert torch.allclose(random_path()(x).logits, tfdem_by_loops(random_path(), x, 3, torch.ones(3) / 3)[0], atol=1e-7)


def test_gradients_of_tfdem() -> None:
    path = random_path(fusion="learned")
    names = [n for n, _ in path.named_parameters()]
    x = torch.randn(3, 6, 11, 11, dtype=torch.float64, requires_grad=True)

    def loss(features: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(path, dict(zip(names, parameters, strict=True)), (features,)).logits

    assert torch.autograd.gradcheck(loss, (x, *path.parameters()), fast_mode=True)
    loss(x, *path.parameters()).square().sum().backward()
    assert all(bool(p.grad.any()) for p in path.parameters())


def test_tfdem_under_autocast_compiled_and_exported() -> None:
    torch.manual_seed(0)
    path = TemporalFeatureDifference(STEM, 4, "learned").eval()
    x = torch.randn(6, 7, 16, 16).contiguous(memory_format=torch.channels_last)
    shift = MultiScaleShift(7, 3, one_div=6, two_div=6, scales="2var", merge=(2, 5))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.path = path
            self.conv = nn.Conv2d(8, 6, 1)
            self.shift = shift

        def forward(self, clips: Tensor) -> Tensor:
            return self.path(self.conv(self.shift(clips.flatten(0, 1)))).logits

    both = Both().eval()
    clips = x.unflatten(0, (2, 3))
    with torch.no_grad():
        exact = both(clips)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = both(clips)
        assert rounded.dtype == torch.float32 and torch.allclose(rounded, exact, atol=0.05 * float(exact.abs().max()))
        torch._dynamo.reset()
        compiled = torch.compile(both, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(clips), exact, atol=1e-6)
        dynamic = {"clips": {0: torch.export.Dim("N", min=1, max=64)}}
        program = torch.export.export(both, (clips,), dynamic_shapes=dynamic).module()
        for count in (1, 4):
            more = torch.randn(count, 3, 7, 16, 16)
            assert torch.allclose(program(more), both(more), atol=1e-6)


def test_learned_fusion_starts_as_the_mean() -> None:
    learned, mean = TemporalFeatureDifference(STEM, 4, "learned"), TemporalFeatureDifference(STEM, 4, "mean")
    missing = learned.load_state_dict(mean.state_dict(), strict=False)
    assert missing.missing_keys == ["fusion"]
    x = torch.randn(6, 6, 12, 12)
    assert torch.allclose(learned(x).logits, mean(x).logits, atol=1e-6)


def test_losses_can_be_switched_off() -> None:
    assert TFDEM().loss_weights == (1.0, 1.0)
    assert TFDEM(tfdem_loss=False).loss_weights == (1.0, 0.0)
    assert MSTSMTFDEM(main_loss=False).loss_weights == (0.0, 1.0)
    assert MSTSM().loss_weights == (1.0, 1.0)


@pytest.mark.parametrize(
    "options",
    [{"consensus": "max"}, {"main_loss": 1}, {"tfdem_loss": "no"}],
)
@pytest.mark.parametrize("recipe", [TFDEM, MSTSMTFDEM])
def test_tfdem_options_that_make_no_sense(recipe: type[TFDEM], options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} is"):
        recipe(**options)
    with pytest.raises(UsageError, match="both false"):
        recipe(main_loss=False, tfdem_loss=False)


def test_tfdem_needs_a_stem() -> None:
    later = Tap(path="layer1", anchor=Anchor.STAGE_OUT, channels=8, frames=3, stage=2)
    assert TFDEM().branch([later, STEM], 5).tap == STEM
    with pytest.raises(UnsupportedPairError, match="layer1"):
        TFDEM().branch([later], 5)
    assert MSTSMTFDEM().choose([site()]) == (site(),)


# ------------------------------------------------------------------------------------ the published sizes


def parameters(temporal: str, backbone: str, **options: object) -> int:
    """Parameters of the whole network at 101 classes."""
    with torch.device("meta"):
        return count_parameters(create_model(temporal, backbone, num_classes=101, **options))


def test_published_sizes() -> None:
    for one_div, two_div, count in ((8, 16, 24_256_165), (16, 8, 24_797_349), (8, 12, 24_432_933), (8, 20, 24_145_189)):
        assert parameters("mstsm", "resnet50", one_div=one_div, two_div=two_div) == count
    assert parameters("mstsm", "efficientnet_b0") == 4_249_537
    assert parameters("tsm+tfdem", "resnet50") == 23_980_170
    assert parameters("mstsm_tfdem", "resnet50") == parameters("mstsm+tfdem", "resnet50") == 24_521_354
    assert parameters("mstsm_tfdem", "efficientnet_b0") == 4_496_294
    assert parameters("mstsm", "resnet50", scales="1") == 23_714_981
    assert parameters("mstsm", "resnet50", scales="3") == 2 * 24_256_165 - 23_714_981
    path = TemporalFeatureDifference(Tap(path="", anchor=Anchor.STEM_OUT, channels=64, frames=8, stage=2), 101, "mean")
    assert sum(p.numel() for p in path.parameters()) == 265_189


def test_macs_per_frame() -> None:
    macs = {}
    for temporal in ("tsm", "mstsm", "tsm+tfdem", "mstsm_tfdem"):
        with torch.device("meta"):
            macs[temporal] = count_macs(create_model(temporal, "resnet50", num_classes=101)) // 8
    path = 64 * 64 * 9 * (28**2 + 14**2) + 64 * 128 * 9 * 28**2 + 128 * 128 * 4 * 27**2 + 512 * 101
    assert macs["tsm+tfdem"] - macs["tsm"] == macs["mstsm_tfdem"] - macs["mstsm"] == path
    published = {"tsm": 4.09, "mstsm": 4.21, "tsm+tfdem": 4.23, "mstsm_tfdem": 4.35}
    assert {name: count / 1e9 for name, count in macs.items()} == pytest.approx(published, rel=0.0015)
    columns = 0  # 2·f2 more inputs of every block's first convolution, at the size of its input
    for first, width, count, rows in ((64, 64, 3, 56), (256, 128, 4, 28), (512, 256, 6, 14), (1024, 512, 3, 7)):
        before = 2 * rows if first > 64 else rows
        columns += width * (first // 8 * before**2 + (count - 1) * (4 * width // 8) * rows**2)
    assert macs["mstsm"] - macs["tsm"] == columns
