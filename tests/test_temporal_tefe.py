"""TE and FE against the paper's equations, written out as loops; the placements of its Table 5."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from vireo.contracts import Anchor, ConvFacts, Site
from vireo.errors import UnsupportedPairError, UsageError
from vireo.model import Recognizer, count_macs, count_parameters, create_model
from vireo.temporal.tefe import FE, PLACEMENTS, TE, TEFE, FeatureEnhancement, TemporalExtraction


def affine(weight: Tensor, bias: Tensor, vector: list[float]) -> list[float]:
    rows = zip(weight.tolist(), bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, vector, strict=True)) + b for row, b in rows]


def te_by_loops(te: TemporalExtraction, x: Tensor, frames: int) -> Tensor:
    out = torch.zeros_like(x)
    channels = x.shape[1]
    reduce, expand = te.reduce.weight.tolist(), te.expand.weight.tolist()
    for clip in range(x.shape[0] // frames):
        features = x[clip * frames : (clip + 1) * frames]
        pooled = [[sum(m.flatten().tolist()) / m.numel() for m in frame] for frame in features]  # (1): [t][c]
        gated = torch.zeros_like(features)
        for t in range(frames):
            reduced = te.reduce.bias.tolist()  # (2)
            for r, c, i in product(range(len(reduced)), range(channels), (-1, 0, 1)):
                if 0 <= t + i < frames:
                    reduced[r] += reduce[r][c][i + 1] * pooled[t + i][c]
            for c in range(channels):
                value = te.expand.bias[c].item() + sum(expand[c][r][0] * reduced[r] for r in range(len(reduced)))
                gated[t, c] = features[t, c] / (1 + math.exp(-value))  # (3), (4)
        for c in range(channels):
            hidden = affine(te.fc1.weight, te.fc1.bias, [pooled[t][c] for t in range(frames)])
            scores = affine(te.fc2.weight, te.fc2.bias, [max(0.0, h) for h in hidden])
            kernel = [math.exp(s) / sum(math.exp(v) for v in scores) for s in scores]  # (5)
            for t, i in product(range(frames), (-1, 0, 1)):  # (6)
                if 0 <= t + i < frames:
                    out[clip * frames + t, c] += kernel[i + 1] * gated[t + i, c]
    return out


def convolve_by_loops(
    conv: nn.Conv3d, x: Tensor, frames: int, before: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """One 3×k×k convolution, `before` zeros above and left of the map, output of `size`."""
    rows, columns = x.shape[-2:]
    out_channels, per_group, _, height, width = conv.weight.shape
    out = torch.zeros(x.shape[0], out_channels, *size, dtype=x.dtype)
    for row, o, i, j, ky, kx in product(*map(range, (x.shape[0], out_channels, *size, height, width))):
        t = row % frames
        y = i * conv.stride[1] - before[0] + ky * conv.dilation[1]
        z = j * conv.stride[2] - before[1] + kx * conv.dilation[2]
        first = o // (out_channels // conv.groups) * per_group
        for d in (-1, 0, 1):
            if 0 <= t + d < frames and 0 <= y < rows and 0 <= z < columns:
                out[row, o, i, j] += conv.weight[o, :, d + 1, ky, kx] @ x[row + d, first : first + per_group, y, z]
    return out if conv.bias is None else out + conv.bias[:, None, None]


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_te_equals_equations_1_to_6(frames: int) -> None:
    torch.manual_seed(frames)
    te = randomised(TemporalExtraction(8, frames))
    x = torch.randn(6, 8, 3, 2, dtype=torch.float64)
    assert torch.allclose(te(x), te_by_loops(te, x, frames), atol=1e-10, rtol=0)


CONVOLUTIONS = {
    "dense": dict(in_channels=4, out_channels=6, kernel_size=3, padding=1, bias=False),
    "stride": dict(in_channels=4, out_channels=2, kernel_size=3, padding=1, stride=2),
    "groups": dict(in_channels=4, out_channels=6, kernel_size=3, padding=1, groups=2, bias=False),
    "depthwise": dict(in_channels=4, out_channels=4, kernel_size=3, padding=1, groups=4, bias=False),
    "depthwise, stride, bias": dict(in_channels=4, out_channels=4, kernel_size=5, padding=2, stride=2, groups=4),
    "depthwise, two each": dict(in_channels=3, out_channels=6, kernel_size=3, padding=1, groups=3, bias=False),
    "dilation": dict(in_channels=2, out_channels=2, kernel_size=3, padding=2, dilation=2, bias=False),
    "tall": dict(in_channels=2, out_channels=2, kernel_size=(3, 1), padding=(1, 0), stride=(1, 2)),
}
convolutions = pytest.mark.parametrize("kind", CONVOLUTIONS)


@torch.no_grad()
@convolutions
@pytest.mark.parametrize("frames", [1, 3])
def test_fe_equals_equation_10(kind: str, frames: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(**CONVOLUTIONS[kind])
    fe = randomised(FeatureEnhancement(conv, frames))
    x = torch.randn(3, conv.in_channels, 4, 5, dtype=torch.float64)
    size = conv.double()(x).shape[-2:]
    one, two = (convolve_by_loops(c, x, frames, conv.padding, size) for c in (fe.conv1, fe.conv2))
    assert torch.allclose(fe(x), one * two, atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 4])
def test_fe_pads_as_the_convolution_that_it_replaces(groups: int) -> None:
    conv = Conv2dSame(4, 4, 3, stride=2, groups=groups, bias=False)
    fe = randomised(FeatureEnhancement(conv, 3))
    x = torch.randn(6, 4, 6, 5, dtype=torch.float64)  # 6: one row of padding, below; 5: two columns, one each side
    one, two = (convolve_by_loops(c, x, 3, (0, 1), (3, 3)) for c in (fe.conv1, fe.conv2))
    assert torch.allclose(fe(x), one * two, atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("make", [nn.Conv2d, Conv2dSame])
@convolutions
def test_a_fresh_fe_is_the_convolution_that_it_replaces(kind: str, make: type[nn.Conv2d]) -> None:
    conv = make(**CONVOLUTIONS[kind]).double()
    x = torch.randn(6, conv.in_channels, 6, 5, dtype=torch.float64)
    fe = FeatureEnhancement(conv, 3)
    assert torch.allclose(fe(x), conv(x), atol=1e-12, rtol=0)
    assert fe.conv1.weight.shape == fe.conv2.weight.shape == (*conv.weight.shape[:2], 3, *conv.weight.shape[2:])


@pytest.mark.parametrize(
    ("module", "channels"),
    [
        (TemporalExtraction(4, 3), 4),
        (FeatureEnhancement(nn.Conv2d(2, 2, 3, padding=1), 3), 2),
        (FeatureEnhancement(nn.Conv2d(2, 2, 3, padding=1, groups=2), 3), 2),
    ],
    ids=["TE", "FE", "FE depthwise"],
)
def test_gradients(module: nn.Module, channels: int) -> None:
    torch.manual_seed(0)
    module = randomised(module)
    names = [n for n, _ in module.named_parameters()]
    x = torch.randn(6, channels, 2, 2, dtype=torch.float64, requires_grad=True)

    def apply(features: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (features,))

    assert torch.autograd.gradcheck(apply, (x, *module.parameters()))


MODULES = {
    "TE": lambda frames: TemporalExtraction(16, frames),
    "FE": lambda frames: FeatureEnhancement(nn.Conv2d(16, 16, 3, padding=1, bias=False), frames),
    "FE depthwise": lambda frames: FeatureEnhancement(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), frames),
}
modules = pytest.mark.parametrize("module", MODULES)


@torch.no_grad()
@modules
def test_channels_last_in_channels_last_out(module: str) -> None:
    made = randomised(MODULES[module](4)).float()
    x = torch.randn(8, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    assert made(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(made(x), made(x.contiguous()), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@modules
def test_clips_stay_apart_and_frames_see_what_they_should(module: str) -> None:
    made = randomised(MODULES[module](5))
    x = torch.randn(10, 16, 4, 4, dtype=torch.float64)
    y = x.clone()
    y[3] += 1
    touched = (made(y) - made(x)).flatten(1).abs().amax(dim=1).gt(1e-12).nonzero().flatten().tolist()
    # An FE sees its neighbours; TE's kernel is made from the whole clip.
    assert touched == ([0, 1, 2, 3, 4] if module == "TE" else [2, 3, 4])


@torch.no_grad()
@modules
def test_autocast_keeps_half_precision(module: str) -> None:
    made = randomised(MODULES[module](4)).float()
    x = torch.randn(8, 16, 6, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half = made(x)
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.float().flatten(), made(x.float()).flatten(), dim=0) > 0.99


@modules
def test_compiles_and_exports(module: str) -> None:
    made = randomised(MODULES[module](4)).float().eval()
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


# ------------------------------------------------------------------------------------------------ placement


def on_meta(temporal: str, backbone: str, **options: object) -> Recognizer:
    with torch.device("meta"):
        return create_model(temporal, backbone, num_classes=174, **options)


def placed(model: Recognizer) -> dict[int, str]:
    """By stage, what every block has that got something: T (TE) or F (FE), in order, - for neither."""
    sites = {(site.stage, site.block): site for site in model.sites}
    assert len(sites) == len(model.sites)
    found = {}
    for stage in {stage for stage, _ in sites}:
        last = max(block for s, block in sites if s == stage)
        kinds = []
        for block in range(last + 1):
            site = sites.get((stage, block))
            kinds.append("-" if site is None else "T" if site.anchor == Anchor.PROJECT_IN else "F")
            if site is not None:
                leaf = model.backbone.get_submodule(site.path)
                assert isinstance(getattr(leaf, "temporal", leaf), TemporalExtraction | FeatureEnhancement)
                assert isinstance(leaf, FeatureEnhancement) == (site.anchor == Anchor.SPATIAL)
        found[stage] = "".join(kinds)
    return found


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("te_only", {2: "TTT", 3: "TTTT", 4: "TTTTTT", 5: "TTT"}),
        ("fe_only", {3: "FFFF", 4: "FFFFFF", 5: "FFF"}),
        ("te3", {2: "TTT", 3: "TTTF", 4: "TTTFFF", 5: "TTT"}),
        ("te2", {2: "TT", 3: "TTFF", 4: "TTFFFF", 5: "TTF"}),
        ("te1", {2: "T", 3: "TFFF", 4: "TFFFFF", 5: "TFF"}),
    ],
)
def test_the_rows_of_table_5(placement: str, expected: dict[int, str]) -> None:
    assert placed(on_meta("tefe", "resnet50", placement=placement)) == expected
    if placement == "te1":
        assert placed(on_meta("tefe", "resnet50")) == expected
    assert {row for row in PLACEMENTS} == {"te_only", "fe_only", "te3", "te2", "te1"}


def test_te_and_fe_alone_are_the_first_two_rows() -> None:
    for alone, row in (("te", "te_only"), ("fe", "fe_only")):
        assert placed(on_meta(alone, "resnet50")) == placed(on_meta("tefe", "resnet50", placement=row))


def test_counts_of_ones_own_and_stages() -> None:
    counts = dict(te_blocks=(0, 2, 1, 9), fe_blocks=(1, 1, 0, 9))
    assert placed(on_meta("tefe", "resnet50", **counts)) == {2: "F", 3: "TTF", 4: "T", 5: "TTT"}
    assert placed(on_meta("tefe", "resnet50", **counts, stages=(3, 5))) == {3: "TTF", 5: "TTT"}
    assert placed(on_meta("tefe", "resnet50", te_blocks=(0, 0, 0, 0))) == {3: "FFF", 4: "FFFFF", 5: "FF"}
    assert placed(on_meta("tefe", "resnet18")) == {2: "T", 3: "TF", 4: "TF", 5: "TF"}  # two blocks a stage
    lists = create_model("tefe", "resnet10t", num_classes=2, te_blocks=[1, 0, 0, 0], fe_blocks=[0, 0, 0, 1])
    assert placed(lists) == {2: "T", 5: "F"}


def test_blocks_without_a_shortcut_count_for_nothing() -> None:
    model = on_meta("tefe", "mobilenetv2_100")
    assert all(site.has_skip for site in model.sites)
    assert placed(model)[3] == "-TF"  # its first block halves the resolution and has no shortcut


def test_sizes_that_follow_from_the_paper() -> None:
    eight, sixteen = on_meta("tefe", "resnet50"), on_meta("tefe", "resnet50", num_frames=16)
    macs = [count_macs(model, (224, 256)) / 1e9 for model in (eight, sixteen)]
    assert [round(m, 2) for m in (*macs, sum(macs))] == [90.22, 180.44, 270.67]  # the paper: 90, 181, 271
    # By hand: TSN 23,864,558; FE adds 5 kernels and a bias to each of 3, 5 and 2 convolutions; TE has
    # 3C²/4 + C/4, C²/4 + C, (T + 1)·2T and (2T + 1)·3 in a block of each stage.
    fe = sum(n * (5 * 9 * c * c + c) for n, c in ((3, 128), (5, 256), (2, 512)))
    for frames, model in ((8, eight), (16, sixteen)):
        fc = (frames + 1) * 2 * frames + (2 * frames + 1) * 3
        te = sum(c * c + c + c // 4 + fc for c in (64, 128, 256, 512))
        assert count_parameters(model) == 23_864_558 + fe + te
    assert count_parameters(eight) == 64_767_786
    assert count_parameters(on_meta("te", "resnet50")) == 25_129_870
    assert count_parameters(on_meta("fe", "resnet50")) == 79_901_422


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet10t", "mobilenetv2_035", "tf_efficientnetv2_b0"])
def test_a_network_with_fresh_fe_gives_the_logits_of_the_plain_one(backbone: str) -> None:
    torch.manual_seed(0)
    tsn = create_model("tsn", backbone, num_classes=3, num_frames=4).double().eval()
    fe = create_model("fe", backbone, num_classes=3, num_frames=4).double().eval()
    for parameter in tsn.parameters():
        if parameter.ndim == 1:
            parameter.uniform_(0.5, 1.5)  # or the blocks' last norms would be zero
    state = dict(tsn.state_dict())
    for site in fe.sites:
        made = fe.backbone.get_submodule(site.path)
        made.conv1.weight[:, :, 1] = state.pop(f"backbone.{site.path}.weight")
    left = fe.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and all(".conv2." in k or ".conv1." in k for k in left.missing_keys)
    x = torch.rand(2, 4, 3, 64, 64, dtype=torch.float64)
    assert torch.allclose(fe(x), tsn(x), rtol=1e-9, atol=0)
    # and the blocks matter: other weights, other logits
    for site in fe.sites:
        nn.init.normal_(fe.backbone.get_submodule(site.path).conv2.weight, std=0.1)
    assert not torch.allclose(fe(x), tsn(x), rtol=1e-2, atol=0)


def a_site(**facts: object) -> Site:
    conv = ConvFacts(in_channels=4, out_channels=4, kernel_size=(3, 3), stride=(1, 1), groups=1)
    given = dict(path="b.conv", anchor=Anchor.SPATIAL, channels=4, frames=2, stage=3, block=0, has_skip=True, conv=conv)
    return Site(**given | facts)


class Standardised(nn.Conv2d):
    """A convolution that does more than its class's name says."""


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (nn.Linear(4, 4), "a Linear"),
        (Standardised(4, 4, 3), "a Standardised"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.Conv2d(4, 4, 3, padding="same"), "padding is 'same'"),
    ],
)
@pytest.mark.parametrize("recipe", [FE(), TEFE()])
def test_fe_names_what_it_cannot_replace(recipe: FE | TEFE, leaf: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedPairError, match=message):
        recipe.insert(a_site(), leaf)


@pytest.mark.parametrize(
    "options",
    [
        {"placement": "te4"},
        {"placement": 1},
        {"te_blocks": (1, 2, 3)},
        {"te_blocks": (1, 2, 3, -1)},
        {"fe_blocks": (1, 2, 3, 1.0)},
        {"fe_blocks": 3},
        {"te_blocks": (0, 0, 0, 0), "fe_blocks": (0, 0, 0, 0)},
        {"stages": (1,)},
    ],
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        TEFE(**options)


def test_a_placement_without_blocks_in_its_stages() -> None:
    with pytest.raises(UsageError, match="not one block"):
        TEFE(placement="fe_only", stages=(2,))
    for recipe in (TE, FE):
        with pytest.raises(UsageError, match="stages"):
            recipe(stages=(6,))


def test_gradients_in_bfloat16_of_two_frames() -> None:
    torch.manual_seed(0)
    enhance = FeatureEnhancement(torch.nn.Conv2d(16, 16, 3, padding=1, bias=False), frames=2)
    torch.nn.init.normal_(enhance.conv2.weight, std=0.05)
    x = torch.randn(8, 16, 14, 14).contiguous(memory_format=torch.channels_last)
    upstream = torch.randn(8, 16, 14, 14)
    found = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = enhance(x)
        found.append(torch.autograd.grad((y.float() * upstream).sum(), [enhance.conv1.weight, enhance.conv2.weight]))
    for exact, rough in zip(*found, strict=True):
        assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.99
