"""Converting public checkpoints: networks built here under each project's names, whose scores must come out."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vireo.checkpoint import load_checkpoint, save_checkpoint
from vireo.config import ViewConfig
from vireo.convert import FORMATS, convert_command, read_labels, recognise, rename, to_model, to_weights
from vireo.errors import StorageError, UsageError, WeightsError
from vireo.model import create_model

CLASSES, FRAMES, SIZE = 5, 4, 32
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOW_TSM = (0.5,) * 10, (0.226,) * 10
FLOW_MMACTION = (128 / 255,) * 10, (128 / 255,) * 10
MFNET = (124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3


# ---- the projects' networks, by their names


class Shift(nn.Module):
    """What stands in front of a convolution in TSM: an eighth from the next frame, an eighth from the one before."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        shifted = torch.zeros_like(x)
        fold = x.shape[1] // 8
        for i in range(len(x)):
            t = i % FRAMES
            if t + 1 < FRAMES:
                shifted[i, :fold] = x[i + 1, :fold]
            if t > 0:
                shifted[i, fold : 2 * fold] = x[i - 1, fold : 2 * fold]
            shifted[i, 2 * fold :] = x[i, 2 * fold :]
        return self.net(shifted)


class ConvModule(nn.Module):
    """MMCV's: children conv and bn."""

    def __init__(self, *args: int, relu: nn.Module | None = None, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*args, bias=False, **options)
        self.bn = nn.BatchNorm2d(args[1])
        self.act = relu or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class NestedBlock(nn.Module):
    """MMAction2's residual block."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool, early: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        first, second = (stride, 1) if early or not bottleneck else (1, stride)
        if bottleneck:
            self.conv1 = ConvModule(channels, width, 1, first, relu=nn.ReLU())
            self.conv2 = ConvModule(width, width, 3, second, 1, relu=nn.ReLU())
            self.conv3 = ConvModule(width, out, 1)
        else:
            self.conv1 = ConvModule(channels, width, 3, first, 1, relu=nn.ReLU())
            self.conv2 = ConvModule(width, out, 3, second, 1)
            self.conv3 = nn.Identity()
        self.downsample = ConvModule(channels, out, 1, stride) if stride > 1 or channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.downsample(x))


class NestedResNet(nn.Module):
    """MMAction2's ResNet."""

    def __init__(self, counts: tuple[int, ...], bottleneck: bool, early: bool = False, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = ConvModule(channels, 64, 7, 2, 3, relu=nn.ReLU())
        channels = 64
        for i, count in enumerate(counts):
            width, blocks = 64 * 2**i, []
            for b in range(count):
                blocks.append(NestedBlock(channels, width, 2 if i > 0 and b == 0 else 1, bottleneck, early))
                channels = 4 * width if bottleneck else width
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.num_features = channels

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


class Inverted(nn.Module):
    """An inverted residual; `style` says how its layers are nested and so named."""

    def __init__(self, channels: int, out: int, stride: int, expand: int, style: str) -> None:
        super().__init__()
        hidden, self.skip = channels * expand, stride == 1 and channels == out
        convs = [] if expand == 1 else [(channels, hidden, 1)]
        convs += [(hidden, hidden, 3), (hidden, out, 1)]
        layers: list[nn.Module] = []
        for i, (a, b, k) in enumerate(convs):
            options: dict[str, Any] = {"stride": stride, "padding": 1, "groups": hidden} if k == 3 else {}
            act = [] if i == len(convs) - 1 else [nn.ReLU6()]
            if style == "nested":
                layers.append(ConvModule(a, b, k, relu=act[0] if act else None, **options))
            else:
                triple = [nn.Conv2d(a, b, k, bias=False, **options), nn.BatchNorm2d(b), *act]
                layers += triple
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


MOBILENETV2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class FlatMobileNetV2(nn.Module):
    """tonylins': features.0 … features.18, layers of a block in a row."""

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        ]
        channels = 32
        for expand, out, count, stride in MOBILENETV2:
            for b in range(count):
                features.append(Inverted(channels, out, stride if b == 0 else 1, expand, "flat"))
                channels = out
        features.append(nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()))
        self.features = nn.Sequential(*features)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))


class NestedMobileNetV2(nn.Module):
    """MMAction2's: conv1, layer1 … layer7, conv2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvModule(3, 32, 3, 2, 1, relu=nn.ReLU6())
        channels = 32
        for i, (expand, out, count, stride) in enumerate(MOBILENETV2):
            blocks = []
            for b in range(count):
                blocks.append(Inverted(channels, out, stride if b == 0 else 1, expand, "nested"))
                channels = out
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.conv2 = ConvModule(320, 1280, 1, relu=nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for i in range(7):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.conv2(x).mean((2, 3))


class MFLayer(nn.Module):
    """Norm, ReLU, convolution."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm3d(args[0]), nn.Conv3d(*args, bias=False, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.bn(x)))


class MFUnit(nn.Module):
    def __init__(self, channels: int, width: int, stride: tuple[int, ...] | None) -> None:
        super().__init__()
        self.conv_i1 = MFLayer(channels, width // 4, 1)
        self.conv_i2 = MFLayer(width // 4, channels, 1)
        self.conv_m1 = MFLayer(channels, width, 3, stride or 1, 1, groups=16)
        if stride:
            self.conv_m2 = MFLayer(width, width, 1)
            self.conv_w1 = MFLayer(channels, width, 1, stride)
        else:
            self.conv_m2 = MFLayer(width, width, (1, 3, 3), 1, (0, 1, 1), groups=16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_m2(self.conv_m1(x + self.conv_i2(self.conv_i1(x))))
        return y + (self.conv_w1(x) if hasattr(self, "conv_w1") else x)


class MFNet(nn.Module):
    """cypw's names: conv1.conv, conv2.B01.conv_i1.bn, tail.bn, classifier."""

    def __init__(self) -> None:
        super().__init__()

        def named(**layers: nn.Module) -> nn.Sequential:
            sequence = nn.Sequential()
            for name, layer in layers.items():
                sequence.add_module(name, layer)
            return sequence

        stem = nn.Conv3d(3, 16, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False)
        self.conv1 = named(conv=stem, bn=nn.BatchNorm3d(16), relu=nn.ReLU())
        channels = 16
        for stage, (width, count) in enumerate(((96, 3), (192, 4), (384, 6), (768, 3)), start=2):
            units = {}
            for u in range(count):
                stride = None if u else (2, 1, 1) if stage == 2 else (1, 2, 2)
                units[f"B{u + 1:02d}"] = MFUnit(channels, width, stride)
                channels = width
            setattr(self, f"conv{stage}", named(**units))
        self.tail = named(bn=nn.BatchNorm3d(768), relu=nn.ReLU())
        self.classifier = nn.Linear(768, CLASSES)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.unflatten(0, (-1, FRAMES)).transpose(1, 2)
        x = F.max_pool3d(self.conv1(x), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        x = self.tail(self.conv5(self.conv4(self.conv3(self.conv2(x)))))
        return self.classifier(x.mean((2, 3, 4)))


class Project(nn.Module):
    """Backbone and classifier under the project's names."""

    def __init__(self, backbone_name: str, backbone: nn.Module, classifier_name: str, classifier: nn.Module) -> None:
        super().__init__()
        self.add_module(backbone_name, backbone)
        head = self
        *folders, last = classifier_name.split(".")
        for name in folders:
            head.add_module(name, nn.Module())
            head = head.get_submodule(name)
        head.add_module(last, classifier)
        self.run: Callable[[Tensor], Tensor] = lambda frames: classifier(backbone(frames))

    def forward(self, frames: Tensor) -> Tensor:
        return self.run(frames)


def with_shifts(network: nn.Module, every: int = 1, stages: str = "1234") -> nn.Module:
    """TSM in front of conv1 (or the first convolution of a skipping inverted residual), in every n-th block."""
    for name, block in list(network.named_modules()):
        if isinstance(block, Inverted):
            if block.skip:
                block.conv[0] = Shift(block.conv[0])
            continue
        place = re.fullmatch(r"layer(\d)\.(\d+)", name)
        if place and place[1] in stages and int(place[2]) % every == 0:
            if isinstance(block.conv1, ConvModule):
                block.conv1.conv = Shift(block.conv1.conv)
            else:
                block.conv1 = Shift(block.conv1)
    return network


def torchvision_resnet(depth: int, channels: int = 3) -> nn.Module:
    network = getattr(torchvision.models, f"resnet{depth}")()
    network.fc = nn.Identity()
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return network


def tsm_project(backbone: nn.Module, features: int) -> Project:
    return Project("base_model", backbone, "new_fc", nn.Linear(features, CLASSES))


def mmaction_project(backbone: nn.Module, features: int) -> Project:
    return Project("backbone", backbone, "cls_head.fc_cls", nn.Linear(features, CLASSES))


@torch.no_grad()
def alive(network: nn.Module, channels: int = 3, seed: int = 0) -> nn.Module:
    """Random weights of which every one counts, and running statistics that fit."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            std = parameter[0].numel() ** -0.5
            parameter.normal_(std=std, generator=generator)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(torch.randn(2 * FRAMES, channels, SIZE, SIZE, generator=generator))
    return network.eval()


@torch.no_grad()
def scores(network: nn.Module, clips: Tensor, normalisation: tuple[tuple[float, ...], ...]) -> Tensor:
    """The project's scores: normalised frames one by one, their scores averaged."""
    mean, std = (torch.tensor(v, dtype=clips.dtype).view(-1, 1, 1) for v in normalisation)
    rows = network.double()(((clips - mean) / std).flatten(0, 1))
    return rows if len(rows) == len(clips) else rows.unflatten(0, (len(clips), -1)).mean(1)


def clips(channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, FRAMES, channels, SIZE, SIZE, dtype=torch.float64, generator=generator)


def labels_file(folder: Path, count: int = CLASSES) -> Path:
    path = folder / "labels.txt"
    path.write_text("".join(f"class {i}\n" for i in range(count)), encoding="utf-8")
    return path


def parallel(state: dict[str, Tensor]) -> dict[str, Any]:
    """As a training script with DataParallel saves it."""
    return {"epoch": 3, "arch": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 1.0}


Case = tuple[Callable[[], nn.Module], str, str, tuple[tuple[float, ...], ...], dict[str, Any]]
CASES: dict[str, Case] = {
    "tsn, ResNet-18": (lambda: tsm_project(torchvision_resnet(18), 512), "tsn", "resnet18", IMAGENET, {}),
    "tsm, ResNet-18": (lambda: tsm_project(with_shifts(torchvision_resnet(18)), 512), "tsm", "resnet18", IMAGENET, {}),
    "tsm, ResNet-50": (lambda: tsm_project(with_shifts(torchvision_resnet(50)), 2048), "tsm", "resnet50", IMAGENET, {}),
    "tsm in two stages": (
        lambda: tsm_project(with_shifts(torchvision_resnet(18), stages="34"), 512),
        *("tsm", "resnet18", IMAGENET, {}),
    ),
    "tsm, MobileNetV2": (
        lambda: tsm_project(with_shifts(FlatMobileNetV2()), 1280),
        *("tsm", "mobilenetv2_100", IMAGENET, {}),
    ),
    "tsm of flow": (
        lambda: tsm_project(with_shifts(torchvision_resnet(18, 10)), 512),
        *("tsm", "resnet18", FLOW_TSM, {}),
    ),
    "MMAction2 tsn, ResNet-18": (
        lambda: mmaction_project(NestedResNet((2, 2, 2, 2), False), 512),
        *("tsn", "resnet18", IMAGENET, {}),
    ),
    "MMAction2 tsm, ResNet-26": (
        lambda: mmaction_project(with_shifts(NestedResNet((2, 2, 2, 2), True)), 2048),
        *("tsm", "resnet26", IMAGENET, {}),
    ),
    "MMAction2 tsn of flow": (
        lambda: mmaction_project(NestedResNet((2, 2, 2, 2), False, channels=10), 512),
        *("tsn", "resnet18", FLOW_MMACTION, {}),
    ),
    "MMAction2 in Caffe's style": (
        lambda: mmaction_project(NestedResNet((2, 2, 2, 2), True, early=True), 2048),
        *("tsn", "resnet26", IMAGENET, {"stride_in_1x1": True}),
    ),
    "MMAction2 tsm, MobileNetV2": (
        lambda: mmaction_project(with_shifts(NestedMobileNetV2()), 1280),
        *("tsm", "mobilenetv2_100", IMAGENET, {}),
    ),
    "MMAction2 on MMPretrain's ResNet": (
        lambda: mmaction_project(torchvision_resnet(18), 512),
        *("tsn", "resnet18", IMAGENET, {}),
    ),
    "MFNet": (MFNet, "tsn", "mfnet", MFNET, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_converted_model_gives_the_projects_scores(name: str, tmp_path: Path) -> None:
    build, temporal, backbone, normalisation, options = CASES[name]
    channels = len(normalisation[0])
    torch.manual_seed(0)
    network = alive(build(), channels)
    source, out = tmp_path / "x.pth.tar", tmp_path / "runs" / "x.safetensors"
    torch.save(parallel(network.state_dict()), source)
    state = torch.get_rng_state()
    code = convert_command(source, out, labels=labels_file(tmp_path), num_frames=FRAMES, sampling="dense", **options)
    assert code == 0 and torch.equal(torch.get_rng_state(), state)
    checkpoint = load_checkpoint(out)
    config = checkpoint.model.config
    assert (config.temporal, config.backbone, config.num_frames) == (temporal, backbone, FRAMES)
    assert config.modality == ("rgb" if channels == 3 else "flow")
    assert checkpoint.labels == tuple(f"class {i}" for i in range(CLASSES))
    assert checkpoint.view == ViewConfig(size=224, sampling="dense") and checkpoint.view.resize_to == 256
    assert checkpoint.provenance["converted_from"] == "x.pth.tar" and len(checkpoint.provenance["sha256"]) == 64
    x = clips(channels)
    wanted = scores(network, x, normalisation)
    with torch.no_grad():
        found = checkpoint.model.double()(x)
        backwards = checkpoint.model(x.flip(1))
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() <= 1e-5 * scale
    assert wanted.std(0).max() > 1e-2 * scale, "the scores must depend on the clip"
    moved = (backwards - found).abs().max()
    assert moved < 1e-6 * scale if temporal == "tsn" and backbone != "mfnet" else moved > 1e-4 * scale
    assert [p.name for p in out.parent.iterdir()] == [out.name]


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return alive(torchvision_resnet(18))


def save(folder: Path, tensors: dict[str, Any], name: str = "x.pth") -> Path:
    path = folder / name
    torch.save(tensors, path)
    return path


def tsm_file(network: nn.Module) -> dict[str, Tensor]:
    state = {f"base_model.{k}": v for k, v in network.state_dict().items()}
    return state | {"new_fc.weight": torch.randn(CLASSES, 512), "new_fc.bias": torch.randn(CLASSES)}


def test_stages_without_shifts_become_an_option(resnet18: nn.Module, tmp_path: Path) -> None:
    tensors = tsm_file(resnet18)
    for name in [n for n in tensors if re.match(r"base_model\.layer[24]\.\d\.conv1\.weight", n)]:
        tensors[name.replace("conv1.", "conv1.net.")] = tensors.pop(name)
    model = to_model(rename(tensors))
    assert model.config.temporal_options["stages"] == [3, 5]
    assert {site.path.split(".")[0] for site in model.sites} == {"layer2", "layer4"}


def test_fold_div_and_frames(resnet18: nn.Module) -> None:
    tensors = {re.sub(r"(layer.*conv1)\.", r"\1.net.", k): v for k, v in tsm_file(resnet18).items()}
    model = to_model(rename(tensors), fold_div=4, num_frames=3)
    assert model.config.temporal_options["fold_div"] == 4 and model.num_frames == 3
    assert to_model(rename(tensors)).num_frames == 8
    with pytest.raises(UsageError, match="num_frames is 0"):
        to_model(rename(tensors), num_frames=0)


def test_shifts_in_every_second_block_are_refused(tmp_path: Path) -> None:
    # ResNet-101's shifts in front of every second block: 2 + 2 + 12 + 2 of 33.
    with torch.device("meta"):
        names = {k: v.shape for k, v in with_shifts(torchvision_resnet(101), every=2).state_dict().items()}
    tensors = {f"base_model.{k}": torch.zeros(s) for k, s in names.items()}
    tensors |= {"new_fc.weight": torch.zeros(CLASSES, 2048), "new_fc.bias": torch.zeros(CLASSES)}
    renamed = rename(tensors)
    assert (renamed.backbone, renamed.temporal, len(renamed.shifted)) == ("resnet101", "tsm", 18)
    with pytest.raises(WeightsError, match=r"18 of 33 blocks.*weights-only"):
        to_model(renamed)
    assert "layer1.0.conv1.weight" in to_weights(renamed)


# ---- weights files


def image_model(depth_or_network: Any, classifier: str, features: int, classes: int = 1000) -> dict[str, Tensor]:
    network = torchvision_resnet(depth_or_network) if isinstance(depth_or_network, int) else depth_or_network
    state = dict(alive(network).state_dict())
    return state | {f"{classifier}.weight": torch.randn(classes, features), f"{classifier}.bias": torch.randn(classes)}


def torchvision_mobilenetv2() -> nn.Module:
    network = torchvision.models.mobilenet_v2()
    network.classifier = nn.Identity()
    return network


@pytest.mark.parametrize(
    ("network", "classifier", "features", "backbone"),
    [
        (18, "fc", 512, "resnet18"),
        (torchvision_mobilenetv2, "classifier.1", 1280, "mobilenetv2_100"),
        (FlatMobileNetV2, "classifier", 1280, "mobilenetv2_100"),
    ],
)
def test_an_image_model_becomes_weights_for_pretrained(
    network: Any, classifier: str, features: int, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    plain = torchvision_resnet(network) if isinstance(network, int) else network()
    source = save(tmp_path, image_model(plain, classifier, features))
    out = tmp_path / "weights.safetensors"
    assert convert_command(source, out, json=True) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["backbone"], facts["left_out"]) == ("weights", backbone, ["its classifier"])
    model = create_model("tsn", backbone, num_classes=2, num_frames=FRAMES, pretrained=out).eval().double()
    assert model.mean == pytest.approx(IMAGENET[0]) and model.std == pytest.approx(IMAGENET[1])
    frames = clips().flatten(0, 1) - 0.5
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(frames), plain.double()(frames), rtol=1e-6, atol=1e-9)
    convert_command(source, tmp_path / "again.safetensors")
    shown = capsys.readouterr().out
    assert f"weights of the backbone {backbone}" in shown and "--pretrained" in shown


def test_normalisation_that_is_given_or_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = image_model(18, "fc", 512)
    stated = tmp_path / "stated.safetensors"
    save_file(tensors, stated, metadata={"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]"})
    convert_command(stated, tmp_path / "a.safetensors", json=True)
    assert json.loads(capsys.readouterr().out)["mean"] == [0.1, 0.2, 0.3]
    convert_command(stated, tmp_path / "b.safetensors", mean=(0.5, 0.5, 0.5), json=True)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["mean"], facts["std"]) == ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6])
    convert_command(
        stated, tmp_path / "c.safetensors", labels=labels_file(tmp_path, 1000), temporal="tsn", std=(1.0, 1.0, 1.0)
    )
    model = load_checkpoint(tmp_path / "c.safetensors").model
    assert (model.mean, model.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


def test_weights_only_of_a_video_model(resnet18: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {re.sub(r"(layer.*conv1)\.", r"\1.net.", k): v for k, v in tsm_file(resnet18).items()}
    source, out = save(tmp_path, tensors), tmp_path / "w.safetensors"
    convert_command(source, out, weights_only=True, json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "weights" and len(facts["left_out"]) == 2
    written = load_file(out)
    assert written.keys() == resnet18.state_dict().keys()
    assert all(torch.equal(written[k], v.to(written[k].dtype)) for k, v in resnet18.state_dict().items())
    with pytest.raises(UsageError, match="labels"):
        convert_command(source, out, weights_only=True, labels=labels_file(tmp_path))


def test_flow_weights_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = tsm_file(alive(torchvision_resnet(18, 10), 10))
    convert_command(save(tmp_path, tensors), tmp_path / "w.safetensors", weights_only=True)
    model = create_model(
        "tsn", "resnet18", num_classes=2, num_frames=2, modality="flow", pretrained=tmp_path / "w.safetensors"
    )
    assert torch.equal(model.backbone.conv1.weight, tensors["base_model.conv1.weight"])
    assert model.mean == (0.5,) * 10 and model.std == (0.226,) * 10


def test_safetensors_need_no_order_of_names(tmp_path: Path) -> None:
    tensors = tsm_file(alive(FlatMobileNetV2())) | {"new_fc.weight": torch.randn(CLASSES, 1280)}
    save_file({k: tensors[k].contiguous() for k in sorted(tensors, reverse=True)}, tmp_path / "x.safetensors")
    convert_command(tmp_path / "x.safetensors", tmp_path / "y.safetensors", labels=labels_file(tmp_path))
    assert load_checkpoint(tmp_path / "y.safetensors").model.config.modality == "rgb"


# ---- what can't be converted


def tam(name: str, width: int, frames: int = 8) -> dict[str, Tensor]:
    shapes = {
        "G.0": (2 * frames, frames),
        "G.3": (3, 2 * frames),
        "L.0": (width // 4, width, 3),
        "L.3": (width, width // 4, 1),
    }
    norms = {"G.1": 2 * frames, "L.1": width // 4}
    tensors = {f"{name}.tam.{k}.weight": torch.randn(s) for k, s in shapes.items()}
    for k, size in norms.items():
        tensors |= {
            f"{name}.tam.{k}.{leaf}": torch.ones(size) for leaf in ("weight", "bias", "running_mean", "running_var")
        }
    return tensors


def foreign_files(network: nn.Module, kind: str) -> dict[str, Tensor]:
    """ResNet-18 under the names of networks that Vireo lacks; the parts' tensors are only a few of theirs."""
    plain = {k: v for k, v in tsm_file(network).items()}
    in_block = re.compile(r"(layer\d\.\d)\.")
    if kind == "TAM":
        return {in_block.sub(r"\1.net.", k): v for k, v in plain.items()} | tam("base_model.layer1.0", 64)
    if kind == "TAM of MMAction2":
        nested = dict(mmaction_project(NestedResNet((2, 2, 2, 2), False), 512).state_dict())
        return {in_block.sub(r"\1.block.", k): v for k, v in nested.items()} | tam("backbone.layer1.0", 64)
    if kind == "whole blocks":
        return {in_block.sub(r"\1.net.", k): v for k, v in plain.items()}
    if kind == "pooling":
        return {k.replace("layer2.", "layer2.net."): v for k, v in plain.items()}
    assert kind == "non-local"
    wrapped = {re.sub(r"layer2\.0\.", "layer2.0.block.", k): v for k, v in plain.items()}
    return wrapped | {"base_model.layer2.0.nl.g.weight": torch.zeros(64, 128, 1, 1, 1)}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("TAM", r"\(TAM\)"),
        ("TAM of MMAction2", r"\(TAM\)"),
        ("whole blocks", "in front of whole blocks"),
        ("pooling", "pooling over time"),
        ("non-local", "non-local"),
    ],
)
def test_foreign_parts_are_named_and_the_backbone_can_be_had(
    resnet18: nn.Module, kind: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = save(tmp_path, foreign_files(resnet18, kind)), tmp_path / "y.safetensors"
    with pytest.raises(WeightsError, match=f"{message}.*weights-only") as caught:
        convert_command(source, out, labels=labels_file(tmp_path))
    assert ("(TAM)" in str(caught.value)) == kind.startswith("TAM")
    assert ("whole blocks" in str(caught.value)) == (kind == "whole blocks")
    assert not out.exists()
    convert_command(source, out, weights_only=True, json=True)
    facts = json.loads(capsys.readouterr().out)
    assert re.search(message, facts["left_out"][0]) and len(load_file(out)) == len(resnet18.state_dict())


def test_3d_networks_are_refused(resnet18: nn.Module) -> None:
    tensors = mmaction_project(NestedResNet((2, 2, 2, 2), False), 512).state_dict()
    inflated = {k: v[:, :, None] if v.ndim == 4 else v for k, v in tensors.items()}
    with pytest.raises(WeightsError, match="3D convolutions"):
        rename(inflated)


def test_unknown_names(tmp_path: Path) -> None:
    source = save(tmp_path, {f"encoder.{i}.w": torch.zeros(2) for i in range(9)})
    with pytest.raises(WeightsError) as caught:
        convert_command(source, tmp_path / "y.safetensors")
    text = str(caught.value)
    assert "encoder.0.w, encoder.1.w, encoder.2.w, ..." in text and "encoder.3.w" not in text
    assert all(known.name in text for known in FORMATS) and "--backbone" in text
    with pytest.raises(WeightsError, match="BN-Inception"):
        recognise({"base_model.conv1_7x7_s2.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="no known format"):
        recognise({})


def test_another_network_of_timm_by_its_name(tmp_path: Path) -> None:
    import timm

    network = timm.create_model("regnetx_002", num_classes=7)
    source, out = save(tmp_path, network.state_dict()), tmp_path / "y.safetensors"
    with pytest.raises(WeightsError, match="no known format"):
        convert_command(source, out)
    convert_command(source, out, backbone="regnetx_002", weights_only=True)
    assert "stem.conv.weight" in load_file(out)
    with pytest.raises(WeightsError, match="does not fit backbone"):
        convert_command(source, out, backbone="resnet18", weights_only=True)
    with pytest.raises(UsageError, match=r"Unknown backbone .regnetx_003.\. Did you mean"):
        convert_command(source, out, backbone="regnetx_003", weights_only=True)


def test_unusual_resnets_need_their_name(tmp_path: Path) -> None:
    import timm

    tensors = timm.create_model("resnet10t").state_dict()
    with pytest.raises(WeightsError, match="1, 1, 1, 1 blocks"):
        rename(tensors)
    assert to_weights(rename(tensors, backbone="resnet10t")).keys() == {k for k in tensors if not k.startswith("fc.")}


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("resnext50_32x4d", "resnext50_32x4d"), ("wide_resnet50_2", "wide_resnet50_2"), ("resnet34", "resnet34")],
)
def test_depth_and_width_are_inferred(name: str, backbone: str) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    assert rename({k: torch.zeros(()).expand(v.shape) for k, v in state.items()}).backbone == backbone


def test_labels(resnet18: nn.Module, tmp_path: Path) -> None:
    source, out = save(tmp_path, tsm_file(resnet18)), tmp_path / "y.safetensors"
    with pytest.raises(UsageError, match=r"4 labels for a classifier of 5 classes"):
        convert_command(source, out, labels=labels_file(tmp_path, 4))
    with pytest.raises(UsageError, match=r"5 classes.*--labels"):
        convert_command(source, out)
    path = tmp_path / "names.txt"
    path.write_bytes("﻿größer\r\ntwo words \r\n\r\n".encode())
    assert read_labels(path) == ("größer", "two words")
    for content, message in (
        (b"a\n\nb", "line 2 is empty"),
        (b"a\nb\na\n", "lines 1 and 3"),
        (b"\xff\xfe\x00", "UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_labels(path)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="line 1 is empty"):
        read_labels(path)
    for missing in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UsageError):
            read_labels(missing)
    assert not out.exists()


def test_tsn_or_tsm(resnet18: nn.Module, tmp_path: Path) -> None:
    out, names = tmp_path / "y.safetensors", labels_file(tmp_path)
    plain = {**resnet18.state_dict(), "fc.weight": torch.randn(CLASSES, 512), "fc.bias": torch.randn(CLASSES)}
    source = save(tmp_path, plain)
    with pytest.raises(UsageError, match="--labels"):  # five classes: not ImageNet's
        convert_command(source, out)
    with pytest.raises(UsageError, match="--temporal tsn or --temporal tsm"):
        convert_command(source, out, labels=names)
    for temporal in ("tsn", "tsm"):
        convert_command(source, out, labels=names, temporal=temporal)
        assert load_checkpoint(out).model.config.temporal == temporal
    shifted = {re.sub(r"(layer.*conv1)\.", r"\1.net.", k): v for k, v in plain.items()}
    assert rename(shifted).temporal == "tsm"
    with pytest.raises(UsageError, match="its names show shifts"):
        to_model(rename(shifted), temporal="tsn")
    with pytest.raises(UsageError, match="use auto, tsn or tsm"):
        to_model(rename(shifted), temporal="tei")
    with pytest.raises(UsageError, match="no classifier"):
        to_model(rename(dict(resnet18.state_dict())))


def test_older_and_half_precision_files(resnet18: nn.Module, tmp_path: Path) -> None:
    old = {k: v for k, v in tsm_file(resnet18).items() if not k.endswith("num_batches_tracked")}
    assert len(old) < len(tsm_file(resnet18))
    assert torch.equal(to_model(rename(old)).backbone.conv1.weight, resnet18.conv1.weight)
    assert to_weights(rename(old)).keys() == resnet18.state_dict().keys()
    half = to_model(rename({k: v.half() if v.is_floating_point() else v for k, v in old.items()}))
    assert half.backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(half.backbone.conv1.weight, resnet18.conv1.weight.half().float())


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"base_model.conv1.weight": t["base_model.conv1.weight"].to(torch.int8)}),
            "conv1.weight is int8",
        ),
        (lambda t: t.update({"base_model.bn1.bias": torch.full((64,), torch.nan)}), "bn1.bias holds values"),
        (
            lambda t: t.update({"new_fc.weight": torch.zeros(CLASSES, 512).to_sparse()}),
            "new_fc.weight is stored as sparse_coo; weights are dense",
        ),
        (
            lambda t: t.update({"new_fc.weight": torch.zeros(CLASSES, 512, device="meta")}),
            "new_fc.weight has a shape but no values",
        ),
        (
            lambda t: t.update({"new_fc.weight": torch.quantize_per_tensor(torch.zeros(5, 512), 1.0, 0, torch.qint8)}),
            "new_fc.weight is quantised",
        ),
        (lambda t: t.pop("base_model.bn1.bias"), r"1 missing \(backbone.bn1.bias"),
        (lambda t: t.update({"base_model.extra.weight": torch.zeros(2)}), r"1 left over \(backbone.extra.weight"),
        (lambda t: t.update({"other.weight": torch.zeros(2)}), r"1 left over \(other.weight"),
        (
            lambda t: t.update({"base_model.layer1.0.conv1.net.weight": torch.zeros(64, 64, 3, 3)}),
            "two tensors are layer1",
        ),
        (lambda t: t.update({"base_model.bn1.bias": torch.zeros(3)}), r"1 of another shape \(backbone.bn1.bias"),
        (lambda t: t.update({"base_model.conv1.weight": torch.zeros(64, 15, 7, 7)}), "15 channels"),
        (lambda t: t.update({"base_model.conv1.weight": torch.zeros(())}), "of another shape"),
        (lambda t: t.update({"new_fc.bias": torch.zeros(4)}), "of another shape"),
    ],
)
def test_tensors_that_do_not_fit(resnet18: nn.Module, change: Any, message: str, tmp_path: Path) -> None:
    tensors = tsm_file(resnet18)
    change(tensors)
    out = tmp_path / "y.safetensors"
    with pytest.raises(WeightsError, match=message):
        convert_command(save(tmp_path, tensors), out, labels=labels_file(tmp_path))
    assert not out.exists()


@pytest.mark.parametrize("name", ["new_fc.weight", "base_model.conv1.weight", "base_model.bn1.num_batches_tracked"])
@pytest.mark.parametrize(("change", "reason"), [(lambda t: t.to("meta"), "no values"), (Tensor.to_sparse, "sparse")])
def test_tensors_without_plain_values_are_refused(resnet18: nn.Module, name: str, change: Any, reason: str) -> None:
    tensors = tsm_file(resnet18)
    tensors[name] = change(tensors[name])
    with pytest.raises(WeightsError, match=f"{name.removeprefix('base_model.')} .*{reason}"):
        rename(tensors)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_file_is_not_run(write: Any, tmp_path: Path) -> None:
    source, trace = tmp_path / "x.pth", tmp_path / "trace"
    write({"state_dict": {"base_model.conv1.weight": torch.zeros(1)}, "extra": Malicious(trace)}, source)
    with pytest.raises(WeightsError, match="code"):
        convert_command(source, tmp_path / "y.safetensors")
    assert not trace.exists()


def test_damaged_files(resnet18: nn.Module, tmp_path: Path) -> None:
    whole = save(tmp_path, tsm_file(resnet18)).read_bytes()
    damaged, out = tmp_path / "damaged.pth", tmp_path / "y.safetensors"
    for content in (whole[: len(whole) // 2], whole[:100], b""):
        damaged.write_bytes(content)
        with pytest.raises(WeightsError):
            convert_command(damaged, out)
    tensor = torch.zeros(2)
    for content in ({"state_dict": [1, 2]}, [tensor], {0: tensor}, {"state_dict": {"a": tensor, 1: tensor}}, {}):
        with pytest.raises(WeightsError, match="no state_dict"):
            convert_command(save(tmp_path, content, "no.pth"), out)


def test_paths(resnet18: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = save(tmp_path, tsm_file(resnet18)), tmp_path / "y.safetensors"
    with pytest.raises(UsageError, match="no such file"):
        convert_command(tmp_path / "none.pth", out)
    with pytest.raises(UsageError, match="not a file"):
        convert_command(tmp_path, out)
    with pytest.raises(UsageError, match="that ending"):
        convert_command(source, tmp_path / "y.pth")
    model = create_model("tsn", "resnet10t", num_classes=2)
    save_checkpoint(out, model, labels=["a", "b"], view=ViewConfig(), provenance={})
    with pytest.raises(UsageError, match="Vireo checkpoint already"):
        convert_command(out, tmp_path / "z.safetensors")
    with pytest.raises(UsageError, match="own source"):
        convert_command(out, out)
    before = out.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in ("os.fsync", "os.replace"):
        for options in ({"weights_only": True}, {"labels": labels_file(tmp_path)}):
            with (
                monkeypatch.context() as patch,
                pytest.raises(StorageError, match=r"No space left on device. What was there before is intact"),
            ):
                patch.setattr(step, fail)
                convert_command(source, out, **options)
            assert out.read_bytes() == before and not list(tmp_path.glob(".*.tmp"))


def test_what_is_said(resnet18: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "y.safetensors"
    options: dict[str, Any] = {"labels": labels_file(tmp_path), "num_frames": 3}
    source = save(tmp_path, tsm_file(resnet18))
    convert_command(source, out, **options)
    shown = capsys.readouterr().out
    assert "tsn on resnet18, 5 classes, 3 frames" in shown and "mit-han-lab" in shown and "vireo predict" in shown
    convert_command(source, out, **options, json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "checkpoint" and facts["num_classes"] == 5 and facts["out"] == str(out)
