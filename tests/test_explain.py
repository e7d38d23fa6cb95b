"""Heat maps, occlusion, gates and their pictures: slow definitions, known evidence, and what the command writes."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.model_tools import OPTIONS, randomise
from tests.video_tools import write_video
from vireo import cli
from vireo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vireo.config import ModelConfig, TrainConfig, ViewConfig
from vireo.data.annotations import read_table
from vireo.data.order import PAIRS, OrderConfig, make_order
from vireo.data.transforms import eval_size
from vireo.errors import StorageError, UnknownNameError, UsageError
from vireo.explain import command, pictures
from vireo.explain.cam import grad_cam
from vireo.explain.command import explain_command
from vireo.explain.explanation import Seen, explain, parts_of, read_seen
from vireo.explain.movie import write_mp4
from vireo.explain.occlude import occlusion
from vireo.explain.pictures import Sheet, choose_points, chosen, frames_of, overlay
from vireo.model import Recognizer, create_model, from_config
from vireo.shapes import split_time
from vireo.temporal.base import Gated
from vireo.temporal.mstsm_tfdem import TemporalFeatureDifference
from vireo.temporal.stw import SpatioTemporalWise
from vireo.temporal.tefe import TemporalExtraction
from vireo.train import train

FAMILIES = (
    *("resnet10t", "mobilenetv3_small_050", "efficientnet_b0", "convnext_atto"),
    *("c2d_resnet50", "mfnet", "densenet121"),  # time pooled twice, and one whose parts are not known
)


class Tiny(nn.Module):
    """Two convolutions with the frames mixed between them, (N·T, 3, H, W) → (N·T, 5)."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.early = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.late = nn.Conv2d(4, 5, 3, padding=1)
        self.unused = nn.Conv2d(4, 4, 1)

    def tail(self, x: Tensor) -> Tensor:
        x = split_time(torch.tanh(x), self.frames)
        x = (x + 0.5 * torch.cat((-x[:, 1:], x[:, -1:]), dim=1)).flatten(0, 1)
        return F.relu(self.late(x)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.early(x))


def recognizer(backbone: nn.Module, frames: int, *, features: int = 5, classes: int = 3) -> Recognizer:
    config = ModelConfig(temporal="tsn", backbone="tiny", num_frames=frames, mean=(0.4,) * 3, std=(0.3,) * 3)
    model = Recognizer(config, num_classes=classes, backbone=backbone, features=features, rows=frames)
    nn.init.normal_(model.classifier.weight)
    return model


def lively(model: Recognizer) -> Recognizer:
    """In evaluation mode, with a classifier for which much speaks for every class."""
    nn.init.uniform_(model.classifier.weight, -0.5, 1.0)
    return model.eval()


def clips_for(model: Recognizer, count: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randint(0, 256, (count, model.num_frames, 3, height, width), dtype=torch.uint8)


def normalised(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, h, w) → (T, H, W), each frame enlarged by itself; the highest value is 1."""
    large = torch.stack([F.interpolate(h[None, None], size=size, mode="bilinear")[0, 0] for h in heat])
    return large / large.max()


# --- Grad-CAM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam"])
def test_behind_the_last_stage_it_is_the_classifiers_own_map(method: str) -> None:
    # There y = mean over t of w · pooled features, so the gradient is w / (T·h·w) everywhere (Zhou et al., 2016).
    torch.manual_seed(0)
    model = lively(create_model("tsn", "resnet10t", num_classes=4, num_frames=3))
    clips = clips_for(model, 1)
    with torch.no_grad():
        maps = model.backbone.forward_features(model._images(clips)).double()  # (T, C, h, w)
    frames, channels, height, width = maps.shape
    slope = model.classifier.weight[2].detach().double() / (frames * height * width)
    heat = torch.zeros(frames, height, width, dtype=torch.float64)
    for t in range(frames):
        for c in range(channels):
            g = float(slope[c])
            total = float(maps[t, c].sum())
            if method != "gradcam++":  # HiResCAM is Grad-CAM where all slopes of a channel are equal
                weight = g
            else:  # the paper's α, before anything cancels
                alpha = g**2 / (2 * g**2 + total * g**3)
                weight = height * width * alpha * max(g, 0.0)
            heat[t] += weight * maps[t, c]
    found = grad_cam(model, clips, 2, method=method)  # type: ignore[arg-type]
    expected = normalised(heat.clamp_min(0), (64, 96)).float()
    assert torch.allclose(found.maps[0], expected, atol=2e-5)
    assert found.targets.tolist() == [2]
    assert torch.equal(found.logits, model(clips))


def test_inside_the_network_it_follows_finite_differences() -> None:
    torch.manual_seed(1)
    net = Tiny(frames=3).double()
    model = recognizer(net, 3).double().eval()
    clips = torch.rand(1, 3, 3, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        features = net.early(model._images(clips))  # (T, 4, 4, 6)

        def score(x: Tensor) -> float:
            return float(model.classifier(net.tail(x)).mean(dim=0)[1])

        slopes = torch.zeros_like(features)
        for place in np.ndindex(*features.shape):
            step = torch.zeros_like(features)
            step[place] = 1e-5
            slopes[place] = (score(features + step) - score(features - step)) / 2e-5
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    assert (
        float((weights[0] * weights[1]).min()) < 0
    )  # a channel speaks for the class in one frame, against it in another
    heat = (weights * features).sum(dim=1).clamp_min(0)
    found = grad_cam(model, clips, 1, layer="early")
    assert torch.allclose(found.maps[0], normalised(heat, (8, 12)).float(), atol=1e-4)
    total = features.clamp_min(0).sum(dim=(2, 3), keepdim=True)
    positive = slopes.clamp_min(0)
    heat = ((positive / (2 + total * positive)).sum(dim=(2, 3), keepdim=True) * features).sum(dim=1).clamp_min(0)
    found = grad_cam(model, clips, 1, layer="early", method="hirescam")
    assert torch.allclose(
        found.maps[0], normalised((slopes * features).sum(dim=1).clamp_min(0), (8, 12)).float(), atol=1e-4
    )
    found = grad_cam(model, clips, 1, layer="early", method="gradcam++")
    assert torch.allclose(found.maps[0], normalised(heat, (8, 12)).float(), atol=1e-4)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_backbone_has_heat_and_a_clips_heat_is_its_own(backbone: str) -> None:
    torch.manual_seed(0)
    options = (
        {"growth_rate": 8, "block_config": (1, 1, 1, 1)} if backbone == "densenet121" else OPTIONS.get(backbone, {})
    )
    model = lively(create_model("tsn", backbone, num_classes=3, num_frames=4, backbone_options=options))
    clips = clips_for(model, 2)
    both = grad_cam(model, clips)
    assert both.maps.shape == (2, 4, 64, 96) and both.maps.dtype == torch.float32
    assert both.targets.tolist() == model(clips).argmax(1).tolist()
    assert float(both.maps.min()) >= 0 and torch.allclose(both.maps.amax(dim=(1, 2, 3)), torch.ones(2))
    for n in range(2):
        alone = grad_cam(model, clips[n : n + 1], both.targets[n : n + 1])
        assert torch.allclose(alone.maps[0], both.maps[n], atol=1e-3)
    assert not torch.allclose(both.maps[0], both.maps[1], atol=0.05)


@pytest.mark.parametrize(
    ("temporal", "backbone"),
    [("tei", "resnet10t"), ("kpsem", "c2d_resnet50"), ("tsm+tfdem", "mobilenetv3_small_050"), ("tfdem", "mfnet")],
)
def test_modules_and_branches(temporal: str, backbone: str) -> None:
    torch.manual_seed(0)
    model = create_model(temporal, backbone, num_classes=3, num_frames=6, backbone_options=OPTIONS.get(backbone, {}))
    found = grad_cam(lively(model), clips_for(model, 1, 64, 64), 1)
    assert found.maps.shape == (1, 6, 64, 64) and bool(found.maps.isfinite().all())


def test_layers_with_channels_last_and_layers_with_time() -> None:
    torch.manual_seed(0)
    model = lively(
        create_model("tsn", "convnext_atto", num_classes=3, num_frames=2, backbone_options={"conv_mlp": False})
    )
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):  # they start at 1e-6: such gradients are mostly rounding
            nn.init.ones_(parameter)
    clips = clips_for(model, 1)
    caught: dict[str, Tensor] = {}
    layer = "stages.2.blocks.0.mlp.fc1"  # (N·T, h, w, C)
    module = model.backbone.get_submodule(layer)
    with torch.enable_grad():
        hook = module.register_forward_hook(lambda m, i, o: caught.update(x=o) or o.retain_grad())
        model(clips)[0, 1].backward()
        hook.remove()
    x, slope = caught["x"].detach(), caught["x"].grad
    assert slope is not None
    heat = (slope.mean(dim=(1, 2), keepdim=True) * x).sum(dim=3).clamp_min(0)
    assert torch.allclose(grad_cam(model, clips, 1, layer=layer).maps[0], normalised(heat, (64, 96)), atol=1e-3)

    fe = create_model("fe", "resnet10t", num_classes=3, num_frames=4).eval()
    assert grad_cam(fe, clips_for(fe, 1), layer="layer3.0.conv1.conv1").maps.shape == (1, 4, 64, 96)  # (N, C, T, h, w)


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_rounding_is_no_heat(method: str) -> None:
    # Three equal maps with weights 0.1, 0.2 and -0.3: nothing speaks for the class, but float32 does not add up to 0.
    torch.manual_seed(0)
    net = Tiny(frames=2)
    with torch.no_grad():
        net.late.weight[1:3], net.late.bias[1:3] = net.late.weight[:1], net.late.bias[:1]  # type: ignore[index]
    model = recognizer(net, 2, classes=2)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.weight[0, :3] = torch.tensor([0.1, 0.2, -0.3])
        model.classifier.weight[1, :3] = torch.tensor([0.1, 0.2, -0.299])
    clips = clips_for(model, 1, 32, 32)
    features = F.relu(net.late(torch.tanh(net.early(model._images(clips)))))
    assert float((features * model.classifier.weight[0][:, None, None]).sum(dim=1).detach().abs().max()) > 0
    assert float(grad_cam(model, clips, 0, layer="late", method=method).maps.max()) == 0  # type: ignore[arg-type]
    assert float(grad_cam(model, clips, 1, layer="late", method=method).maps.max()) == 1  # type: ignore[arg-type]


def test_targets() -> None:
    torch.manual_seed(0)
    model = create_model("tsn", "resnet10t", num_classes=3, num_frames=2).eval()
    nn.init.normal_(model.classifier.weight)
    clips = clips_for(model, 2, 48, 48)
    each = grad_cam(model, clips, [0, 2])
    assert torch.allclose(each.maps[0], grad_cam(model, clips, 0).maps[0])
    assert torch.allclose(each.maps[1], grad_cam(model, clips, torch.tensor(2)).maps[1])
    assert not torch.allclose(each.maps[0], grad_cam(model, clips, 1).maps[0], atol=0.05)
    for wrong in (3, -1, [0, 1, 2], 0.5, [True, False]):
        with pytest.raises(UsageError, match="target"):
            grad_cam(model, clips, wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="method"):
        grad_cam(model, clips, method="lime")  # type: ignore[arg-type]


def test_layers_that_are_none() -> None:
    model = recognizer(Tiny(2), 2)
    clips = clips_for(model, 1, 16, 16)
    assert grad_cam(model, clips).maps.shape == (1, 2, 16, 16)  # no one wrote down its parts: `late` is found
    with pytest.raises(UnknownNameError, match="Did you mean 'early'"):
        grad_cam(model, clips, layer="erly")
    with pytest.raises(UsageError, match="no map of features"):
        grad_cam(model, clips, layer="unused")
    resnet = create_model("tsn", "resnet10t", num_classes=3, num_frames=2)
    with pytest.raises(UsageError, match=r"no map of features; these are: conv1, .*layer4"):
        grad_cam(resnet, clips, layer="global_pool")
    vit = create_model("tsn", "vit_tiny_patch16_224", num_classes=3, num_frames=1, backbone_options={"depth": 1})
    with pytest.raises(UsageError, match="no feature maps"):
        grad_cam(vit, torch.zeros(1, 1, 3, 224, 224))


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(0)
    model = create_model("tei", "resnet10t", num_classes=3, num_frames=2)  # in training mode, but for one part
    model.backbone.layer2.eval()
    for p in model.backbone.layer1.parameters():
        p.requires_grad_(False)
    clips = clips_for(model, 1, 48, 48)
    modes = [m.training for m in model.modules()]
    frozen = [p.requires_grad for p in model.parameters()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    model.classifier.bias.grad = torch.ones(3)
    with torch.inference_mode():
        clip = clips.clone()  # an inference tensor
        first = grad_cam(model, clip).maps
        occlusion(model, clip[0])
        model.forward_outputs(clip, visuals=True)
    with pytest.raises(UsageError):
        grad_cam(model, clips, 7)
    assert not first.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == frozen
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["classifier.bias"]
    assert torch.equal(model.classifier.bias.grad, torch.ones(3))
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in values.items() if "num_batches" not in k and "running" not in k)


def seen_by(checkpoint: Checkpoint, video: str | Path) -> Seen:
    return read_seen(checkpoint.model.config, checkpoint.view, video)


class Reds(nn.Module):
    """Sees what is red and nothing else: (N·T, 3, H, W) → (N·T, 2), red things and their absence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)).mean(dim=(2, 3))


def test_heat_lies_on_the_evidence_and_random_weights_destroy_it() -> None:
    torch.manual_seed(0)
    frames, side, box = 6, 64, 16
    clip = torch.randint(0, 256, (frames, 3, side, side), dtype=torch.uint8)
    inside = torch.zeros(frames, side, side)
    for t in range(1, frames):  # a red square that wanders; it is not yet there in the first frame
        x, y = 8 * t, 4 * (t % 3) + 8
        clip[t, :, y : y + box, x : x + box] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
        inside[t, y : y + box, x : x + box] = 1
    net = Reds()
    model = recognizer(net, frames, features=2, classes=2).eval()
    with torch.no_grad():
        net.conv.weight.zero_()
        net.conv.weight[0, 0], net.conv.weight[0, 1:] = 1 / 16, -0.5 / 16
        net.conv.bias.fill_(-1.5)  # type: ignore[union-attr]
        model.classifier.weight.copy_(torch.eye(2))

    def concentration(heat: Tensor) -> float:
        return float((heat * inside).sum() / heat.sum() / inside.mean())

    for method in ("gradcam", "gradcam++"):
        maps = grad_cam(model, clip[None], 0, method=method).maps[0]  # type: ignore[arg-type]
        assert concentration(maps) >= 3
        assert float(maps[0].max()) < 0.05
    drops = occlusion(model, clip, 0, replace="grey").drops
    assert float(drops[1:].min()) > 5 * abs(float(drops[0]))
    found = []
    for seed in range(21):
        torch.manual_seed(seed)
        nn.init.normal_(net.conv.weight)
        nn.init.zeros_(net.conv.bias)  # type: ignore[arg-type]
        nn.init.normal_(model.classifier.weight)
        found.append(concentration(grad_cam(model, clip[None], 0).maps[0].add(1e-6)))
    assert float(np.median(found)) < 1.5


# --- occlusion --------------------------------------------------------------------------------------------------------


def test_occlusion_equals_its_definition() -> None:
    torch.manual_seed(0)
    model = randomise(create_model("tsm", "resnet10t", num_classes=3, num_frames=4))
    clip = clips_for(model, 1, 48, 48)[0]

    def chance(frames: Tensor) -> float:
        with torch.no_grad():
            return float(model(frames[None]).softmax(1)[0, 1])

    def without(t: int, picture: Tensor) -> float:
        changed = clip.clone()
        changed[t] = picture
        return chance(changed)

    whole = chance(clip)
    for batch_size in (1, 3, 100):
        found = occlusion(model, clip, 1, batch_size=batch_size)
        assert found.target == 1 and found.probability == pytest.approx(whole, abs=1e-5)
        for t in range(4):
            others = [clip[s] for s in (t - 1, t + 1) if 0 <= s < 4]
            expected = whole - np.mean([without(t, other) for other in others])
            assert float(found.drops[t]) == pytest.approx(expected, abs=1e-4)
    grey = torch.tensor([round(255 * m) for m in model.mean], dtype=torch.uint8)[:, None, None].expand(3, 48, 48)
    found = occlusion(model, clip, 1, replace="grey")
    assert found.drops.tolist() == pytest.approx([whole - without(t, grey) for t in range(4)], abs=1e-4)
    floating = occlusion(model, clip / 255, 1, replace="grey")
    assert torch.allclose(floating.drops, found.drops, atol=5e-3)  # grey is rounded in uint8
    assert int(occlusion(model, clip).target) == int(model(clip[None]).argmax())


def test_occlusion_refuses() -> None:
    model = create_model("tsn", "resnet10t", num_classes=3, num_frames=1).eval()
    clip = clips_for(model, 1, 32, 32)[0]
    assert occlusion(model, clip, replace="grey").drops.shape == (1,)
    with pytest.raises(UsageError, match="grey"):
        occlusion(model, clip)
    with pytest.raises(UsageError, match="target"):
        occlusion(model, clip, 3, replace="grey")
    with pytest.raises(UsageError, match="replace"):
        occlusion(model, clip, replace="blur")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size"):
        occlusion(model, clip, replace="grey", batch_size=0)


# --- gates and differences --------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("temporal", ["mem", "tei", "se_tim", "te", "tefe", "twm", "stw"])
def test_gates_are_what_the_modules_multiply_with(temporal: str) -> None:
    torch.manual_seed(0)
    model = randomise(create_model(temporal, "resnet10t", num_classes=3, num_frames=4))
    clips = clips_for(model, 2, 48, 48)
    before: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda m, inputs, output: before.update({name: (inputs[0], output)})

    gated = {n: m for n, m in model.backbone.named_modules() if isinstance(m, Gated)}
    hooks = [m.register_forward_hook(keep(n)) for n, m in gated.items()]
    outputs = model.forward_outputs(clips, visuals=True)
    for hook in hooks:
        hook.remove()
    assert torch.equal(outputs.logits, model(clips))
    assert outputs.visuals is not None
    assert set(outputs.visuals) == {f"{name.partition('.temporal')[0]}.gates" for name in before}
    assert len(before) >= 2
    for name, (x, y) in before.items():
        gates = outputs.visuals[f"{name.partition('.temporal')[0]}.gates"]
        assert gates.shape == ((2, 4, x.shape[1]) if temporal not in ("twm", "stw") else (2, 4, *x.shape[2:]))
        assert float(gates.min()) >= 0 and float(gates.max()) <= 1 and float(gates.std()) > 0
        flat = gates.flatten(0, 1)
        module, weighed = gated[name], x * (flat[:, None] if flat.ndim == 3 else flat[:, :, None, None])
        if isinstance(module, SpatioTemporalWise):
            weighed = weighed + module.stfm(x)
        if isinstance(module, TemporalExtraction):  # then mixed over time by a kernel of the clip's own
            pooled = split_time(x.mean(dim=(2, 3)), 4).transpose(1, 2)
            kernel = torch.softmax(module.fc2(F.relu(module.fc1(pooled))), dim=-1)  # (N, C, 3)
            w, mixed = split_time(weighed, 4), torch.zeros(2, 4, *x.shape[1:])
            for t in range(4):
                for i in (-1, 0, 1):
                    if 0 <= t + i < 4:
                        mixed[:, t] += kernel[:, :, i + 1, None, None] * w[:, t + i]
            weighed = mixed.flatten(0, 1)
        assert torch.allclose(y, weighed, atol=1e-4), name


@torch.no_grad()
def test_features_before_the_subtraction() -> None:
    torch.manual_seed(0)
    model = randomise(create_model("tfdem", "resnet10t", num_classes=3, num_frames=3))
    branch = model.branches["tfdem"]
    assert isinstance(branch, TemporalFeatureDifference)
    clips = clips_for(model, 2)
    visuals = model.forward_outputs(clips, visuals=True).visuals
    assert visuals is not None and set(visuals) == {"tfdem.features", "tfdem.differences"}
    features, differences = visuals["tfdem.features"], visuals["tfdem.differences"]
    assert torch.allclose(features[:, 0], differences[:, 0], atol=1e-6)
    assert not torch.allclose(features[:, 1], differences[:, 1], atol=1e-2)
    still = clips[:, :1].expand(-1, 3, -1, -1, -1)  # what stands still has features and no differences
    visuals = model.forward_outputs(still, visuals=True).visuals
    assert visuals is not None
    assert torch.allclose(visuals["tfdem.features"], features[:, :1].expand(-1, 3, -1, -1), atol=1e-5)
    assert float(visuals["tfdem.differences"][:, 1:].max()) < 1e-5


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_flow_is_shown_by_the_colour_of_its_direction() -> None:
    still = torch.full((2, 10, 8, 8), 128, dtype=torch.uint8)
    assert float(frames_of(still).min()) >= 250
    moving = still.clone()
    moving[0, 4], moving[1, 4] = 200, 56  # x of the middle field: to the right, to the left
    right, left = frames_of(moving)[:, 4, 4].astype(int)
    assert right[0] > right[2] + 100 and left[2] > left[0] + 50  # red and blue, as in the Middlebury wheel


def test_heat_covers_the_frame_only_where_it_is() -> None:
    frames = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8).numpy()
    heat = torch.zeros(2, 8, 8)
    heat[1, :4] = 1
    covered = overlay(frames, heat).astype(int)
    grey = 0.85 * (frames @ np.array([0.299, 0.587, 0.114]))
    assert (
        np.abs(covered[0] - grey[0, ..., None]).max() <= 1 and np.abs(covered[1, 4:] - grey[1, 4:, :, None]).max() <= 1
    )
    assert (covered[1, :4, :, 0] - covered[1, :4, :, 2] > 80).all()  # red


def test_long_clips_are_thinned_evenly() -> None:
    assert chosen(8) == list(range(8)) and chosen(1) == [0]
    assert chosen(64) == [3, 9, 16, 22, 28, 35, 41, 48, 54, 60] and chosen(16, 4) == [2, 6, 10, 14]


def test_the_points_drawn_move_farthest_of_those_whose_arrows_meet_a_point() -> None:
    frames, sets, regions, channels = 4, 2, 4, 24
    shifts = torch.full((frames - 1, sets, regions, channels, 2), 0.3)  # long, and leading nowhere
    points = torch.full((frames, sets, regions, channels, 2), 0.1)
    for channel, step in ((3, 0.1), (5, 0.2), (9, 0.05)):
        shifts[..., channel, :] = torch.tensor([step, 0.0])
        points[..., channel, 0] += step * torch.arange(frames)[:, None, None]
    centres = torch.full((frames, sets, 2), 0.5)
    centres[:, 0] = 0.3
    weights = torch.full((frames - 1, sets, regions, channels), 0.25)
    visuals = {"shifts": shifts, "centres": centres, "key_points": points, "regional_weights": weights}
    drawn = choose_points(visuals, 2)
    assert torch.equal(drawn["key_points"], points[:, 1][:, :, [5, 3]])  # of the set in the middle
    assert torch.equal(drawn["shifts"], shifts[:, 1][:, :, [5, 3]])
    assert torch.equal(drawn["centre"], centres[:, 1])


def test_an_interrupted_film_leaves_nothing(tmp_path: Path) -> None:
    def pictures() -> Iterator[np.ndarray]:
        yield np.zeros((32, 48, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(tmp_path / "a.mp4", pictures())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b.mp4").mkdir()
    with pytest.raises(StorageError, match=r"b\.mp4"):
        write_mp4(tmp_path / "b.mp4", iter([np.zeros((32, 48, 3), np.uint8)]))


# --- the command ------------------------------------------------------------------------------------------------------

LABELS = ("push left to right", "push right to left")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = OrderConfig(clips=4, size=48, pairs=("push",), val_fraction=0, test_fraction=0)
    return make_order(tmp_path_factory.mktemp("order"), config, workers=0).parent / "videos"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    made: list[tuple[str, int, int, dict[str, Any]]] = [
        ("tsn", 4, 32, {}),
        ("tei", 4, 32, {}),
        ("stw+tfdem", 6, 48, {"stages": (5,)}),
        ("kpsem", 3, 64, {"sets": 2}),
    ]
    for temporal, frames, size, options in made:
        torch.manual_seed(0)
        model = create_model(temporal, "resnet10t", num_classes=2, num_frames=frames, **options)
        lively(model)
        save_checkpoint(
            folder / f"{temporal}.safetensors", model, labels=LABELS, view=ViewConfig(size=size), provenance={}
        )
    flow = create_model("tsn", "resnet10t", num_classes=2, num_frames=3, modality="flow", flow_fields=2)
    save_checkpoint(folder / "flow.safetensors", flow, labels=LABELS, view=ViewConfig(size=32), provenance={})
    return folder


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def film(path: Path) -> tuple[Any, list[np.ndarray]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return stream.codec_context, frames


def test_two_models_side_by_side(
    videos: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "in" / "broken.mp4"
    broken.parent.mkdir()
    whole = sorted(videos.rglob("*.mp4"))[0]
    broken.write_bytes(whole.read_bytes()[:900])
    code = explain_command(
        checkpoints / "tei.safetensors",
        [broken, whole],
        against=checkpoints / "stw+tfdem.safetensors",
        out=tmp_path / "out",
        device="cpu",
        json=True,
    )
    failed, record = map(json.loads, capsys.readouterr().out.splitlines())
    assert code == 1 and set(failed) == {"path", "error"} and failed["path"] == str(broken)
    folder = tmp_path / "out" / whole.stem
    names = {"strip.png", "heat.mp4", "gates.png", "gates-against.png", "features-against.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert record["files"] and all(Path(file).is_file() for file in record["files"])
    assert record["target"] == record["against"]["target"] == record["prediction"][0]["label"]
    assert len(record["heat"]) == len(record["occlusion"]) == 4 and len(record["against"]["heat"]) == 6
    assert sum(record["heat"]) == pytest.approx(1)
    assert record["frames"] == sorted(record["frames"]) and record["frames"][-1] < record["frame_count"]
    context, frames = film(folder / "heat.mp4")
    assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    assert context.width % 2 == context.height % 2 == 0 and len(frames) == 6 * 4  # six steps of a third of a second
    first = read_seen_picture(checkpoints / "tei.safetensors", whole)
    shown = frames[0][74 : 74 + 320, 16 : 16 + 320].reshape(32, 10, 32, 10, 3).mean(axis=(1, 3))
    assert np.corrcoef(shown.ravel(), first.ravel())[0, 1] > 0.97  # the clip itself stands on the left
    for name in names - {"heat.mp4"}:
        assert min(png_size(folder / name)) > 200


def read_seen_picture(checkpoint: Path, video: Path) -> np.ndarray:
    return frames_of(seen_by(load_checkpoint(checkpoint), video).clip)[0].astype(float)


def test_the_command_line(videos: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = videos / LABELS[0]
    out = tmp_path / "out"
    model = str(checkpoints / "kpsem.safetensors")
    assert (
        cli.main(["explain", model, str(folder), "--out", str(out), "--target", LABELS[1], "--what", "keypoints"]) == 0
    )
    shown = capsys.readouterr().out
    stems = sorted(path.stem for path in folder.glob("*.mp4"))
    assert sorted(path.name for path in out.iterdir()) == stems and all(stem in shown for stem in stems)
    assert all([p.name for p in (out / stem).iterdir()] == ["keypoints.png"] for stem in stems)

    def refused(*arguments: str) -> str:
        assert cli.main(["explain", *arguments]) == 2
        return capsys.readouterr().err

    tsn, video = str(checkpoints / "tsn.safetensors"), str(next(iter(folder.glob("*.mp4"))))
    said = refused(tsn, video, "--what", "gates")
    assert "--what gates" in said and "heat, occlusion" in said
    assert "--what colours" in refused(tsn, video, "--what", "colours")
    assert "Did you mean" in refused(tsn, video, "--target", "push left")
    assert "Did you mean 'layer3'" in refused(tsn, video, "--layer", "layer33", "--out", str(out))
    assert "model of rgb" in refused(tsn, video, "--against", str(checkpoints / "flow.safetensors"))
    assert "is a file" in refused(tsn, video, "--out", video)
    assert "does not exist" in refused(tsn, video, "--against", str(tmp_path / "none.safetensors"))


def test_videos_of_one_name_have_folders_of_their_own(videos: Path, checkpoints: Path, tmp_path: Path) -> None:
    inputs = [videos / LABELS[0], videos / LABELS[1]]  # twins: the same names in both folders
    assert (
        explain_command(checkpoints / "tsn.safetensors", inputs, out=tmp_path, what=("occlusion",), device="cpu") == 0
    )
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert len(found) == 4 and found[0].startswith(LABELS[0]) and found[-1].startswith(LABELS[1])


def test_flow_is_explained_too(checkpoints: Path, tmp_path: Path) -> None:
    clip = tmp_path / "wave.npy"
    fields = np.full((9, 2, 40, 40), 128, dtype=np.uint8)  # still, but for a square that goes to the right, then left
    fields[:5, 0, 10:30, 10:30], fields[5:, 0, 10:30, 10:30] = 190, 66
    np.save(clip, fields)
    model, out = checkpoints / "flow.safetensors", tmp_path / "out"
    assert explain_command(model, [clip], against=model, out=out, device="cpu") == 0
    assert {path.name for path in (out / "wave").iterdir()} == {"strip.png", "heat.mp4"}
    found = explain(load_checkpoint(model), clip)
    assert found.seen.frame_count == 8 and found.heat is not None and found.heat.shape == (3, 32, 32)
    shown = frames_of(found.seen.clip).astype(int)
    right, left = shown[0, 16, 16], shown[2, 16, 16]
    assert right[0] > right[2] + 100 and left[2] > left[0] + 50 and shown[:, 0, 0].min() > 240
    _, frames = film(out / "wave" / "heat.mp4")  # the square stands on the film's left, in its colour
    red, _, blue = frames[0][74 + 140 : 74 + 180, 16 + 140 : 16 + 180].reshape(-1, 3).mean(axis=0)
    assert red > blue + 80


@pytest.mark.parametrize("fields", [1, 2, 5])
def test_the_middle_field_of_a_stack_is_shown(fields: int) -> None:
    clip = torch.full((1, 2 * fields, 4, 4), 128, dtype=torch.uint8)
    for i in range(fields):
        clip[0, 2 * i] = 200 if i == fields // 2 else 56
    red, _, blue = frames_of(clip)[0, 2, 2].astype(int)
    assert red > blue + 100


def test_a_file_that_crashes_or_holds_up_the_decoder_costs_itself_alone(
    videos: Path, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = sorted(videos.rglob("*.mp4"))[0]
    for name in ("1_crash", "2_stuck", "3_whole"):
        (tmp_path / f"{name}.mp4").write_bytes(whole.read_bytes())

    def read(config: ModelConfig, view: ViewConfig, video: str) -> Seen:
        if Path(video).stem == "1_crash":
            os.kill(os.getpid(), signal.SIGUSR1)  # as quietly as a crash can be
        if Path(video).stem == "2_stuck":
            time.sleep(1000)
        return read_seen(config, view, video)

    monkeypatch.setattr(command, "read_seen", read)
    arguments = [str(checkpoints / "tsn.safetensors"), str(tmp_path), "--what", "occlusion", "--json"]
    assert cli.main(["explain", *arguments, "--out", str(tmp_path / "out"), "--decode-timeout", "2"]) == 1
    found = {Path(one["path"]).stem: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert "crashed" in found["1_crash"]["error"] and "2 s" in found["2_stuck"]["error"]
    assert found["3_whole"]["prediction"] and [path.name for path in (tmp_path / "out").iterdir()] == ["3_whole"]
    assert cli.main(["explain", *arguments, "--decode-timeout", "-1"]) == 2


def test_no_heat_is_said_and_not_drawn(
    videos: Path, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=4)
    nn.init.zeros_(model.classifier.weight)
    save_checkpoint(tmp_path / "cold.safetensors", model, labels=LABELS, view=ViewConfig(size=32), provenance={})
    written: list[str] = []
    write = Sheet.text
    monkeypatch.setattr(
        Sheet, "text", lambda self, x, y, text, **look: written.append(text) or write(self, x, y, text, **look)
    )
    drawn: list[Tensor] = []
    monkeypatch.setattr(pictures, "overlay", lambda frames, heat: drawn.append(heat) or overlay(frames, heat))
    video = sorted(videos.rglob("*.mp4"))[0]
    out = tmp_path / "out"
    warm = checkpoints / "tsn.safetensors"
    assert explain_command(tmp_path / "cold.safetensors", [video], against=warm, out=out, device="cpu") == 0
    said = [text for text in written if text.startswith("no heat")]
    assert len(said) == 2 and all(LABELS[0] in text for text in said)  # on the strip and on the film
    assert len(drawn) == 1 and float(drawn[0].max()) == 1  # of the strip's rows the other model's alone
    assert {path.name for path in (out / video.stem).iterdir()} == {"strip.png", "heat.mp4"}


@pytest.mark.parametrize("bias", [20.0, 2.0])
def test_the_strip_says_how_probable_a_class_is_that_was_asked_for(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bias: float
) -> None:
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=4)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([bias, 0.0]))
    checkpoint = Checkpoint(model=model, labels=LABELS, view=ViewConfig(size=32))
    written: list[str] = []
    write = Sheet.text
    monkeypatch.setattr(
        Sheet, "text", lambda self, x, y, text, **look: written.append(text) or write(self, x, y, text, **look)
    )
    video = sorted(videos.rglob("*.mp4"))[0]
    for target in (LABELS[1], None):
        found = explain(checkpoint, video, target=target)
        written.clear()
        pictures.strip_png("clip", found)
        footer = " ".join(written)
        asked = target is not None
        assert (f"({100 * found.probability:.1f} %)" in footer) == asked
        assert ("next to nothing to lose" in footer) == (asked and bias == 20)
        assert "no single frame is needed" not in footer or not asked or found.probability > 0.1


def test_what_a_model_has() -> None:
    def parts(temporal: str, frames: int = 2) -> tuple[str, ...]:
        return parts_of(create_model(temporal, "resnet10t", num_classes=2, num_frames=frames))

    assert parts("tsn") == parts("tsm") == ("heat", "occlusion")
    assert parts("tei") == parts("stw") == ("heat", "occlusion", "gates")
    assert parts("mem+kpsem") == ("heat", "occlusion", "keypoints", "gates")
    assert parts("kpsem", 1) == ("heat", "occlusion")  # one frame has no shifts: there is no branch
    assert parts("tfdem") == ("heat", "occlusion", "features")


def test_heat_is_left_out_where_there_is_none_unless_it_is_asked_for(
    videos: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = create_model("tsn", "vit_tiny_patch16_224", num_classes=2, num_frames=2)
    view = ViewConfig(size=224)
    vit = tmp_path / "vit.safetensors"
    save_checkpoint(vit, model, labels=LABELS, view=view, provenance={})
    video = sorted(videos.rglob("*.mp4"))[0]
    options: dict[str, Any] = {"device": "cpu", "out": tmp_path / "out"}
    assert explain_command(vit, [video, sorted(videos.rglob("*.mp4"))[1]], **options) == 0
    assert capsys.readouterr().err.count("no heat maps: vit_tiny_patch16_224") == 1  # of two videos
    folder = tmp_path / "out" / video.stem
    assert [path.name for path in folder.iterdir()] == ["strip.png"]
    assert explain_command(checkpoints / "tsn.safetensors", [video], against=vit, json=True, **options) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["heat"]) == len(record["occlusion"]) == 4 and "no_heat" not in record
    assert "heat" not in record["against"] and len(record["against"]["occlusion"]) == 2
    assert "no feature maps" in record["against"]["no_heat"]
    assert {path.name for path in folder.iterdir()} == {"strip.png", "heat.mp4"}
    for more in ({"what": ("heat",)}, {"what": ("occlusion", "heat"), "against": checkpoints / "tsn.safetensors"}):
        with pytest.raises(UsageError, match="no heat maps of it"):
            explain_command(vit, [video], **more, **options)  # type: ignore[arg-type]


def test_of_the_other_model_only_what_was_asked_for_is_drawn(
    videos: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = sorted(videos.rglob("*.mp4"))[0]
    tei, tsn = checkpoints / "tei.safetensors", checkpoints / "tsn.safetensors"
    options: dict[str, Any] = {"what": ("gates",), "out": tmp_path, "device": "cpu", "json": True}
    assert explain_command(tei, [video], against=tsn, **options) == 0
    assert [path.name for path in (tmp_path / video.stem).iterdir()] == ["gates.png"]
    record = json.loads(capsys.readouterr().out)
    assert not {"heat", "occlusion"} & {*record, *record["against"]}


def test_names_are_printed_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=2)
    labels = ("a\nb\x1b[31m", "c\rd\x07")
    checkpoint = tmp_path / "m.safetensors"
    save_checkpoint(checkpoint, model, labels=labels, view=ViewConfig(size=32), provenance={})
    bad, good = (tmp_path / os.fsdecode(name) for name in (b"\xff\n.mp4", b"\xfe\x1b[2J.mp4"))
    write_video(good, 4)
    bad.write_bytes(b"no video")
    assert explain_command(checkpoint, [good, bad], out=tmp_path / "out", what=("occlusion",), device="cpu") == 1
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in (*out.split("\n"), *err.split("\n")))
    assert "a?b?[31m" in out or "c?d?" in out
    assert "??.mp4" in err


def test_one_frame(videos: Path, tmp_path: Path) -> None:
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=1).eval()
    checkpoint = Checkpoint(model=model, labels=LABELS, view=ViewConfig(size=32))
    found = explain(checkpoint, sorted(videos.rglob("*.mp4"))[0])
    assert found.drops is not None and found.drops.shape == (1,)
    assert found.heat is not None and found.heat.shape == (1, 32, 32)


# --- a trained network on generated clips -----------------------------------------------------------------------------


def boxes_of(video: Path, seen: Seen, view: ViewConfig) -> Tensor:
    """(T, S, S): 1 inside the box of the object, as `vireo data make order` records it, in what the model sees."""
    about = json.loads(video.with_suffix(".json").read_text("utf-8"))
    assert about["width"] == about["height"]
    resized, _ = eval_size(about["height"], about["width"], view)
    inside = torch.zeros(seen.clip.shape[0], view.size, view.size)
    for picture, position in zip(inside, seen.positions, strict=True):
        x0, y0, x1, y1 = (
            max(0, round(v * resized / about["width"] - (resized - view.size) // 2)) for v in about["boxes"][position]
        )
        picture[y0:y1, x0:x1] = 1
    return inside


def test_the_boxes_hold_the_objects(tmp_path: Path) -> None:
    # Of a clip whose background moves little: what differs between its first and last frame is mostly in the boxes.
    config = OrderConfig(clips=8, size=64, pairs=("push",), val_fraction=0, test_fraction=0)
    view = ViewConfig(size=64, short_side=64)
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=2)
    checkpoint = Checkpoint(model=model, labels=LABELS, view=view)
    shares = []
    for video in sorted(make_order(tmp_path, config, workers=0).parent.rglob("*.mp4")):
        seen = seen_by(checkpoint, video)
        inside = boxes_of(video, seen, view).amax(dim=0).bool()
        change = (seen.clip[0].float() - seen.clip[1].float()).abs().mean(dim=0)
        shares.append(float(change[inside].mean() / change[~inside].mean()))
    assert np.median(shares) > 3


@pytest.mark.slow
def test_heat_follows_the_moving_object(tmp_path: Path) -> None:
    pairs = ("push", "approach", "put")
    data = make_order(
        tmp_path / "data", OrderConfig(clips=1440, size=96, pairs=pairs, val_fraction=0.05, test_fraction=0.15)
    )
    result = train(
        TrainConfig(
            **{"data": str(data), "out": str(tmp_path / "run"), "temporal": "tei", "backbone": "resnet10t"},
            backbone_options={"channels": [16, 32, 64, 128], "stem_width": 16, "output_stride": 8},
            **{"pretrained": False, "dropout": 0.2, "size": 64, "short_side": 70, "scales": (1.0, 0.875)},
            **{"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.05, "head_lr_scale": 1.0, "warmup_epochs": 1.0},
            **{"epochs": 10, "batch_size": 8, "seed": 0, "eval_every": 2},
        )
    )
    checkpoint = load_checkpoint(result.best)
    assert result.top1 > 0.9
    clips, inside, labels = [], [], []
    table = read_table(data)
    for index in range(len(table)):  # the container that things are put into is evidence, too: not those clips
        record = table.record(index)
        label = table.label_names[record.label]
        if label in PAIRS["push"] + PAIRS["approach"] and f"/{label}/" in record.path and index % 8 == 0:
            seen = seen_by(checkpoint, record.path)
            clips.append(seen.clip)
            inside.append(boxes_of(Path(record.path), seen, checkpoint.view))
            labels.append(checkpoint.labels.index(label))
    boxes = torch.stack(inside)

    def concentration(model: Recognizer) -> float:
        maps = grad_cam(model, torch.stack(clips), labels, method="hirescam", layer="layer2").maps
        energy = (maps * boxes).sum(dim=(1, 2, 3)) / maps.sum(dim=(1, 2, 3)).clamp_min(1e-9)
        return float(energy.mean() / boxes.mean())

    trained = concentration(checkpoint.model)
    torch.manual_seed(0)
    blank = from_config(checkpoint.model.config, num_classes=len(checkpoint.labels)).eval()
    random = concentration(blank)
    print(f"energy in the box over its share of the area: trained {trained:.2f}, random weights {random:.2f}")
    assert trained >= 3
    assert random < 2.5
