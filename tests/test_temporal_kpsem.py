"""KPSEM against eqs 2 to 12, written out as loops over clips, frames, sets, channels, regions and pixels."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from vireo.contracts import Anchor, Tap
from vireo.errors import UnsupportedPairError, UsageError
from vireo.model import count_macs, count_parameters, create_model
from vireo.shapes import Layout
from vireo.temporal.kpsem import KPSEM, KeyPointShifts, _intervals, find_maxima


def tap_of(
    channels: int = 8, frames: int = 3, stage: int = 4, layout: Layout = Layout.NT_C_H_W, path: str = "layer3"
) -> Tap:
    return Tap(path=path, anchor=Anchor.STAGE_OUT, channels=channels, frames=frames, stage=stage, layout=layout)


def branch_of(tap: Tap | None = None, seed: int = 0, **options: object) -> KeyPointShifts:
    torch.manual_seed(seed)
    branch = KPSEM(**options).branch([tap or tap_of()], 5)
    assert isinstance(branch, KeyPointShifts)
    if branch.centre is not None:
        nn.init.normal_(branch.centre.weight, std=0.5)
    return branch


# ------------------------------------------------------------------------------------- the slow reference


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    parts = [math.exp(v - top) for v in values]
    return [p / sum(parts) for p in parts]


def averaged_to_14(image: list[list[float]]) -> list[float]:
    height, width = len(image), len(image[0])
    out = []
    for i in range(14):
        for j in range(14):
            rows = range(i * height // 14, math.ceil((i + 1) * height / 14))
            columns = range(j * width // 14, math.ceil((j + 1) * width / 14))
            out.append(sum(image[h][w] for h in rows for w in columns) / (len(rows) * len(columns)))
    return out


def centre_by_loops(branch: KeyPointShifts, frame: Tensor, g: int) -> tuple[float, float]:
    """(Δx, Δy) of set g, eq. 4."""
    channels, height, width = frame.shape
    k = branch.splits
    if k == 1:
        return 0.0, 0.0
    if branch.centre is None:
        raw = branch.fixed[g].tolist()
    else:
        mean = [[sum(frame[:, h, w].tolist()) / channels for w in range(width)] for h in range(height)]
        pixels = averaged_to_14(mean)
        raw = []
        for axis in (0, 1):
            weights, bias = branch.centre.weight[2 * g + axis].tolist(), float(branch.centre.bias[2 * g + axis])
            raw.append(math.tanh(sum(w * p for w, p in zip(weights, pixels, strict=True)) + bias))
    reach = [min(0.5 / k, 1 / k - 0.75 / size) for size in (width, height)]
    return raw[0] * reach[0], raw[1] * reach[1]


def share(position: int, size: int, lines: list[float], region: int) -> float:
    """What a pixel counts in a region along one axis: a line's border is a sigmoid, half a pixel wide."""
    after = [sigmoid((position + 0.5 - line * size) / 0.5) for line in lines]
    return ([1.0, *after])[region] - ([*after, 0.0])[region]


def arese_by_loops(branch: KeyPointShifts, clip: Tensor, g: int) -> dict[str, list]:
    """Eqs 4 to 12 for one set: clip (T, C, H, W); everything by [t][region][channel]."""
    frames, channels, height, width = clip.shape
    k = branch.splits
    points, values, means, centres = [], [], [], []
    for t in range(frames):
        dx, dy = centre_by_loops(branch, clip[t], g)
        centres.append((0.5 + dx, 0.5 + dy))  # (5)
        xs = [i / k + dx for i in range(1, k)]
        ys = [i / k + dy for i in range(1, k)]
        frame = clip[t].tolist()
        points.append([[None] * channels for _ in range(k * k)])
        values.append([[-math.inf] * channels for _ in range(k * k)])
        means.append([[0.0] * channels for _ in range(k * k)])
        for c in range(channels):
            for h in range(height):
                for w in range(width):
                    row = sum((h + 0.5) / height >= y for y in ys)
                    column = sum((w + 0.5) / width >= x for x in xs)
                    region = row * k + column
                    if frame[c][h][w] > values[t][region][c]:
                        values[t][region][c] = frame[c][h][w]  # (7)
                        points[t][region][c] = ((w + 0.5) / width, (h + 0.5) / height)  # (6)
            for region in range(k * k):
                total = weight = 0.0
                for h in range(height):
                    for w in range(width):
                        part = share(h, height, ys, region // k) * share(w, width, xs, region % k)
                        total, weight = total + part * frame[c][h][w], weight + part
                means[t][region][c] = total / weight
    shifts, regional, rkps = [], [], []
    for t in range(frames - 1):
        shifts.append([[None] * channels for _ in range(k * k)])
        regional.append([[0.0] * channels for _ in range(k * k)])
        rkps.append([[None] * channels for _ in range(k * k)])
        for c in range(channels):
            attention = softmax([(means[t][r][c] + means[t + 1][r][c]) / 2 for r in range(k * k)])  # (11)
            for a in range(k * k):
                scores = [1 / (abs(values[t][a][c] - values[t + 1][b][c]) + 0.1) for b in range(k * k)]
                x = y = 0.0
                for b, weight in enumerate(softmax(scores)):  # (9)
                    x += weight * (points[t + 1][b][c][0] - points[t][a][c][0])  # (8), (10)
                    y += weight * (points[t + 1][b][c][1] - points[t][a][c][1])
                shifts[t][a][c] = (x, y)
                regional[t][a][c] = attention[a]
                rkps[t][a][c] = (attention[a] * x, attention[a] * y)  # (12)
    return {"key_points": points, "centres": centres, "shifts": shifts, "regional_weights": regional, "rkps": rkps}


def conv_by_loops(x: list[list[list[float]]], weight: Tensor) -> list[list[list[float]]]:
    """(1, 3), stride (1, 2), padding (0, 1): [channel][t][position]."""
    kernel = weight[:, :, 0].tolist()
    frames, length = len(x[0]), len(x[0][0])
    out = [[[0.0] * ((length + 1) // 2) for _ in range(frames)] for _ in kernel]
    for o, row in enumerate(kernel):
        for t in range(frames):
            for p in range((length + 1) // 2):
                for c, taps in enumerate(row):
                    for i in range(3):
                        if 0 <= 2 * p + i - 1 < length:
                            out[o][t][p] += taps[i] * x[c][t][2 * p + i - 1]
    return out


def kpsem_by_loops(branch: KeyPointShifts, clip: Tensor) -> tuple[list[float], list[dict[str, list]]]:
    sets = [arese_by_loops(branch, clip, g) for g in range(branch.sets)]  # (2)
    frames, channels = clip.shape[:2]
    width = branch.embed[0].out_features
    embedded = [[[0.0] * width for _ in range(frames - 1)] for _ in range(channels)]
    for layer, found in zip(branch.embed, sets, strict=True):
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        for c in range(channels):
            for t in range(frames - 1):
                flat = [v for region in found["rkps"][t] for v in region[c]]
                for d in range(width):  # (3)
                    embedded[c][t][d] += sum(w * v for w, v in zip(weight[d], flat, strict=True)) + bias[d]
    reduced = conv_by_loops(conv_by_loops(embedded, branch.reduce1.weight), branch.reduce2.weight)
    return [sum(row) / len(row) for channel in reduced for row in channel], sets


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "channels", "frames", "size"),
    [
        ({"regions": 4, "sets": 2, "embedding": 24}, 8, 3, (7, 6)),
        ({"regions": 9, "sets": 1, "embedding": 5}, 4, 2, (5, 8)),
        ({"regions": 16, "sets": 2, "embedding": 6}, 4, 2, (4, 9)),
        ({"regions": 1, "sets": 2, "embedding": 7}, 4, 3, (3, 5)),
        ({"regions": 4, "sets": 3, "embedding": 8, "adaptive": False}, 4, 3, (6, 5)),
        ({"regions": 4, "sets": 1, "embedding": 9}, 4, 2, (14, 14)),
        ({"regions": 4, "sets": 1, "embedding": 9}, 4, 2, (16, 15)),
    ],
)
def test_it_equals_the_equations(options: dict, channels: int, frames: int, size: tuple[int, int]) -> None:
    branch = branch_of(tap_of(channels, frames), **options).double()
    x = torch.randn(2 * frames, channels, *size, dtype=torch.float64)
    outputs = branch(x, visuals=True)
    for n in range(2):
        features, sets = kpsem_by_loops(branch, x[n * frames : (n + 1) * frames])
        assert len(features) == branch.features == channels // 4 * (frames - 1)
        expected = torch.tensor(features, dtype=torch.float64)
        assert torch.allclose(outputs.features[n], expected, atol=1e-10, rtol=0)
        for g, found in enumerate(sets):
            for name in ("key_points", "shifts", "regional_weights"):
                reference = torch.tensor(found[name], dtype=torch.float64)
                assert torch.allclose(outputs.visuals[name][n, :, g], reference, atol=1e-10, rtol=0), name
            reference = torch.tensor(found["centres"], dtype=torch.float64)
            assert torch.allclose(outputs.visuals["centres"][n, :, g], reference, atol=1e-10, rtol=0)


# --------------------------------------------------------------------------------------- maxima in regions


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (14, 14), (8, 16), (17, 4)])
@pytest.mark.parametrize("levels", [2, 10_000])  # few levels: many equal maxima
def test_maxima_are_exact_and_the_first_in_reading_order(size: tuple[int, int], levels: int) -> None:
    torch.manual_seed(0)
    height, width = size
    k = 1 if 1 in size else 2
    x = torch.randint(-levels, levels, (3, height, width, 5)).float()
    splits = [torch.randint(1, max(2, n), (3, 2, k - 1)) for n in size]
    intervals = [
        (nn.functional.pad(s, (1, 0)), nn.functional.pad(s, (0, 1), value=n)) for s, n in zip(splits, size, strict=True)
    ]
    row, column = find_maxima(x, *intervals)
    assert row.shape == column.shape == (3, 2, k, k, 5)
    (tops, bottoms), (lefts, rights) = intervals
    for b in range(3):
        for g in range(2):
            for i in range(k):
                for j in range(k):
                    part = x[b, tops[b, g, i] : bottoms[b, g, i], lefts[b, g, j] : rights[b, g, j]]
                    for c in range(5):
                        flat = part[..., c].flatten().tolist()
                        first = flat.index(max(flat))
                        there = (
                            int(tops[b, g, i]) + first // part.shape[1],
                            int(lefts[b, g, j]) + first % part.shape[1],
                        )
                        assert (int(row[b, g, i, j, c]), int(column[b, g, i, j, c])) == there


@pytest.mark.parametrize("regions", [4, 9, 16])
def test_no_region_is_ever_empty(regions: int) -> None:
    k = math.isqrt(regions)
    branch = branch_of(regions=regions, sets=4)
    for size in range(k, 30):
        x = torch.randn(3, size, 31, 8)
        for push in (-1e6, -1.0, 0.0, 1.0, 1e6):
            nn.init.constant_(branch.centre.bias, push)
            starts, ends = _intervals(branch._lines(branch._offsets(x)[..., 1], size), size)
            assert bool((ends > starts).all())
            assert bool((starts[..., 1:] == ends[..., :-1]).all()) and int(starts.min()) == 0
            assert int(ends.max()) == size


@torch.no_grad()
def test_with_more_sets_come_more_key_points() -> None:
    x = torch.randn(3, 8, 14, 14)
    points = branch_of(sets=8)(x, visuals=True).visuals["key_points"]
    assert len({tuple(p) for p in points[0, 0, :, :, 0].reshape(-1, 2).tolist()}) > 4


# ------------------------------------------------------------------------------------------- what it means


def moving(dx: int, dy: int, frames: int = 4, size: int = 14) -> Tensor:
    """One bright pixel that moves from near the middle, in every channel of (T, 8, size, size)."""
    x = torch.zeros(frames, 8, size, size)
    for t in range(frames):
        x[t, :, 5 + dy * t, 5 + dx * t] = 20.0
    return x


@torch.no_grad()
@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1)])
def test_a_moving_point_gives_its_shift(dx: int, dy: int) -> None:
    pictures = branch_of(tap_of(frames=4), regions=1, sets=1)(moving(dx, dy), visuals=True).visuals
    expected = torch.tensor([dx / 14, dy / 14]).expand(1, 3, 1, 1, 8, 2)
    assert torch.allclose(pictures["shifts"], expected, atol=1e-6)
    assert torch.allclose(pictures["key_points"][0, 0, 0, 0, 0], torch.tensor([5.5 / 14, 5.5 / 14]))


@torch.no_grad()
def test_a_point_is_followed_into_the_next_region() -> None:
    branch = branch_of(tap_of(frames=4), sets=1)
    nn.init.zeros_(branch.centre.weight)
    nn.init.zeros_(branch.centre.bias)  # lines in the middle: columns 5, 6 | 7, 8
    pictures = branch(moving(1, 0), visuals=True).visuals
    holds_it = [0, 0, 1]  # upper left at first, upper right after
    for t, region in enumerate(holds_it):
        found = pictures["shifts"][0, t, 0, region]
        assert torch.allclose(found, torch.tensor([1 / 14, 0.0]).expand(8, 2), atol=1e-3)
    # The region whose mean is highest over the two frames weighs most.
    assert pictures["regional_weights"][0, :, 0].argmax(1)[0].tolist() == [0] * 8
    assert torch.allclose(pictures["regional_weights"].sum(3), torch.ones(1, 3, 1, 8))


@torch.no_grad()
def test_clips_stay_apart_and_order_matters() -> None:
    branch, x = branch_of(), torch.randn(9, 8, 7, 7)
    y = x.clone()
    y[3:6] = -y[3:6]
    change = (branch(y).features - branch(x).features).abs().amax(1)
    assert float(change[1]) > 1e-4 and float(change[[0, 2]].max()) < 1e-6
    backwards = x.view(3, 3, 8, 7, 7).flip(1).flatten(0, 1)
    assert float((branch(backwards).features - branch(x).features).abs().max()) > 1e-4


# ----------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "options", [{"regions": 4}, {"regions": 9}, {"regions": 4, "adaptive": False}], ids=lambda o: str(o)
)
def test_gradients(options: dict, monkeypatch) -> None:
    monkeypatch.setattr(KeyPointShifts, "grid", 3)  # fewer parameters to try one by one
    branch = branch_of(tap_of(4, 2), sets=2, embedding=3, **options).double()
    names = [n for n, _ in branch.named_parameters()]
    x = torch.randn(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)

    def apply(features: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(branch, given, (features,)).features

    assert torch.autograd.gradcheck(apply, (x, *branch.parameters()))


@pytest.mark.parametrize("size", [2, 7, 14])
def test_every_parameter_learns_and_so_do_the_features(size: int) -> None:
    branch = branch_of(tap_of(16, 2))
    x = torch.randn(4, 16, size, size, requires_grad=True)
    branch(x).features.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in branch.parameters())
    assert bool(x.grad.any()) and bool(x.grad.isfinite().all())


def test_fixed_regions_are_drawn_once_and_kept() -> None:
    branch = branch_of(adaptive=False)
    assert "fixed" in branch.state_dict() and not any("fixed" in n for n, _ in branch.named_parameters())
    centres = branch(torch.randn(6, 8, 7, 7), visuals=True).visuals["centres"]
    assert torch.equal(centres, centres[:1, :1].expand_as(centres))  # of every clip and frame alike
    assert len({tuple(c) for c in centres[0, 0].tolist()}) == 8
    other = branch_of(seed=1, adaptive=False)
    assert not torch.equal(other.fixed, branch.fixed)
    other.load_state_dict(branch.state_dict())
    assert torch.equal(other.fixed, branch.fixed)
    adaptive = branch_of()(torch.randn(6, 8, 7, 7), visuals=True).visuals["centres"]
    assert not torch.allclose(adaptive[0, 0], adaptive[0, 1])


# --------------------------------------------------------------------------------------------- sizes, taps


def test_mf_kpsem_has_the_published_size() -> None:
    with torch.device("meta"):
        model = create_model("kpsem", "mfnet", num_classes=200, num_frames=16)
    assert count_parameters(model) == 8_120_088
    branch = model.branches["kpsem"]
    assert (branch.tap.path, branch.tap.channels, branch.tap.frames, branch.features) == ("conv4", 384, 8, 672)
    assert model.classifier.in_features == 768 + 672
    assert 11.06e9 < count_macs(model) < 11.09e9


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 143_120),
        ({"regions": 1}, 8 * 3 * 24 + 138_240),  # no centre to find
        ({"regions": 9}, 8 * (394 + 19 * 24) + 138_240),
        ({"regions": 16}, 8 * (394 + 33 * 24) + 138_240),
        ({"sets": 1}, 394 + 9 * 24 + 138_240),
        ({"sets": 16}, 16 * (394 + 9 * 24) + 138_240),
        ({"embedding": 48}, 8 * (394 + 9 * 48) + 138_240),
        ({"adaptive": False}, 8 * 9 * 24 + 138_240),
    ],
    ids=str,
)
def test_sizes_of_the_variants(options: dict, size: int) -> None:
    with torch.device("meta"):
        branch = KPSEM(**options).branch([tap_of(384, 8)], 200)
    assert sum(p.numel() for p in branch.parameters()) == size
    assert branch.features == 672


def test_it_reads_the_stage_it_is_given() -> None:
    taps = [
        Tap(path="stem", anchor=Anchor.STEM_OUT, channels=4, frames=4, stage=3),
        *(tap_of(4 * stage, 4, stage, path=f"conv{stage}") for stage in (2, 3, 4, 5)),
    ]
    assert KPSEM().branch(taps, 5).tap.path == "conv4"
    for stage in (2, 3, 4, 5):
        branch = KPSEM(stage=stage).branch(taps, 5)
        assert branch.tap.path == f"conv{stage}" and branch.features == stage * 3
        assert branch.reduce1.weight.shape == (stage, 4 * stage, 1, 3)
    with pytest.raises(UnsupportedPairError, match=r"stage 4; this backbone publishes those of stages \[2, 3\]"):
        KPSEM().branch(taps[:3], 5)
    with pytest.raises(UnsupportedPairError, match="no stage"):
        KPSEM().branch([], 5)
    assert KPSEM().branch([tap_of(frames=1)], 5) is None


def test_on_c2d_it_goes_after_res3() -> None:
    with torch.device("meta"):
        model = create_model("kpsem", "c2d_resnet50", num_classes=51, num_frames=16, stage=3)
    branch = model.branches["kpsem"]
    assert (branch.tap.channels, branch.tap.frames, branch.tap.stage) == (512, 8, 3)
    assert model.classifier.in_features == 2048 + 128 * 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": 5}, "regions is 5; use 1, 4, 9 or 16"),
        ({"regions": True}, "regions is True"),
        ({"sets": 0}, "sets is 0"),
        ({"embedding": -1}, "embedding is -1"),
        ({"stage": 1}, "stage is 1; use one of 2, 3, 4, 5"),
        ({"adaptive": 1}, "adaptive is 1; it must be true or false"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        KPSEM(**options)


@pytest.mark.parametrize("size", [(3, 9), (9, 3)])
def test_maps_too_small_for_the_regions(size: tuple[int, int]) -> None:
    branch = branch_of(regions=16)
    with pytest.raises(UsageError, match=f"maps of {size[0]} × {size[1]} into 4 × 4 regions.*at least 64 × 64 pixels"):
        branch(torch.randn(3, 8, *size))
    branch(torch.randn(3, 8, 4, 4))


# ------------------------------------------------------------------------------------------ memory, tracing


@torch.no_grad()
def test_layouts_and_memory_formats_give_the_same() -> None:
    folded, whole = branch_of(), branch_of(tap_of(layout=Layout.N_C_T_H_W))
    x = torch.randn(6, 8, 7, 9)
    clips = x.view(2, 3, 8, 7, 9).transpose(1, 2)
    expected = folded(x).features
    assert torch.equal(folded(x.contiguous(memory_format=torch.channels_last)).features, expected)
    assert torch.equal(whole(clips.contiguous()).features, expected)
    assert torch.equal(whole(clips.contiguous(memory_format=torch.channels_last_3d)).features, expected)


@torch.no_grad()
def test_visuals_only_when_asked_for() -> None:
    branch, x = branch_of(regions=9, sets=5), torch.randn(6, 8, 7, 9)
    assert branch(x).visuals is None
    shapes = {name: tuple(value.shape) for name, value in branch(x, visuals=True).visuals.items()}
    assert shapes == {
        "key_points": (2, 3, 5, 9, 8, 2),
        "shifts": (2, 2, 5, 9, 8, 2),
        "centres": (2, 3, 5, 2),
        "regional_weights": (2, 2, 5, 9, 8),
    }
    assert torch.equal(branch(x).features, branch(x, visuals=True).features)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"regions": 1, "adaptive": False}], ids=str)
def test_compile_and_export_with_any_number_of_clips(options: dict) -> None:
    branch, x = branch_of(**options), torch.randn(6, 8, 7, 7)
    torch._dynamo.reset()
    compiled = torch.compile(branch, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x).features, branch(x).features, atol=1e-6)
    whole = branch_of(tap_of(layout=Layout.N_C_T_H_W), **options)
    clips = torch.randn(2, 8, 3, 7, 7)
    dynamic = ({0: torch.export.Dim("N", min=1, max=64)}, None)
    program = torch.export.export(whole, (clips, False), dynamic_shapes=dynamic)
    for count in (1, 5):
        given = torch.randn(count, 8, 3, 7, 7)
        assert torch.allclose(program.module()(given, False).features, whole(given).features, atol=1e-6)


def test_half_precision() -> None:
    branch = branch_of(tap_of(32, 3))
    x = torch.randn(6, 32, 14, 14).bfloat16()
    with torch.no_grad():
        exact = branch(x.float()).features
        low = copy.deepcopy(branch).bfloat16()(x)
    assert low.features.dtype == torch.bfloat16
    assert torch.cosine_similarity(low.features.float().flatten(), exact.flatten(), dim=0) > 0.98
    with torch.autocast("cpu", torch.bfloat16):
        outputs = branch(x, visuals=True)
    assert outputs.visuals["shifts"].dtype == outputs.visuals["regional_weights"].dtype == torch.float32
    assert torch.cosine_similarity(outputs.features.float().flatten(), exact.flatten(), dim=0) > 0.98
    outputs.features.float().square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in branch.parameters())


def test_features_that_are_no_numbers_give_no_error() -> None:
    model = create_model("kpsem", "resnet10t", num_classes=2, num_frames=3)
    assert bool(model(torch.full((1, 3, 3, 64, 64), torch.nan)).isnan().all())  # training then names the clips
