"""create_model and Recognizer: published sizes, inputs, outputs, errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

import vireo
from tests.model_tools import clips, distance, network
from vireo.errors import UnknownNameError, UnsupportedPairError, UsageError
from vireo.model import count_macs, count_parameters, create_model, from_config
from vireo.shapes import fold_time


@pytest.mark.parametrize(
    ("temporal", "classes", "parameters"),
    [
        ("tsn", 400, 24_327_632),
        ("tsn", 174, 23_864_558),
        ("tsn", 101, 23_714_981),
        ("tsm", 101, 23_714_981),
        ("tei", 400, 30_356_896),
        ("tim", 400, 24_366_992),
    ],
)
def test_published_parameter_counts(temporal: str, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(create_model(temporal, "resnet50", num_classes=classes)) == parameters


@pytest.mark.parametrize(("temporal", "giga"), [("tsn", 32.70), ("tsm", 32.70), ("tei", 32.88)])
def test_multiply_accumulates(temporal: str, giga: float) -> None:
    model = create_model(temporal, "resnet50", num_classes=400)
    model.backbone.layer1.eval()
    flags = [m.training for m in model.modules()]
    assert count_macs(model) / 1e9 == pytest.approx(giga, rel=0.005)
    assert [m.training for m in model.modules()] == flags  # partly frozen models stay so
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_any_subset_of_stages() -> None:
    model = create_model("tei", "resnet50", num_classes=2, stages=(4, 5))
    assert {s.stage for s in model.sites} == {4, 5} and len(model.sites) == 9
    assert create_model("tei", "resnet50", num_classes=2, stages=[3]).config.temporal_options["stages"] == [3]


def test_timms_names_and_weights_are_untouched() -> None:
    model = create_model("tei", "resnet10t", num_classes=2)
    plain = timm.create_model("resnet10t", num_classes=0)
    names = [n for n in model.backbone.state_dict() if ".temporal." not in n]
    assert names == list(plain.state_dict())


@torch.no_grad()
def test_tsn_is_the_mean_of_the_frames_scores() -> None:
    model = network("tsn", "mobilenetv2_035")
    x = clips(model, 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    frames = [[(frame / 255 - mean) / std for frame in clip.float()] for clip in x]
    scores = [torch.stack([model.classifier(model.backbone(f[None]))[0] for f in clip]).mean(0) for clip in frames]
    assert distance(model(x), torch.stack(scores)) < 1e-4


@torch.no_grad()
def test_uint8_and_unit_floats_are_the_same_input_in_any_memory() -> None:
    model = network("tei", "mobilenetv2_035")
    x = clips(model, 2)
    assert distance(model(x.float() / 255), model(x)) < 1e-4
    assert distance(model(x.contiguous()), model(x)) < 1e-4


def test_frames_fold_to_channels_last_without_a_copy() -> None:
    model = network("tsm", "resnet10t")
    x = clips(model, 2)
    folded = fold_time(x)
    assert folded.data_ptr() == x.data_ptr() and folded.is_contiguous(memory_format=torch.channels_last)
    formats: list[bool] = []
    for module in model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(
                lambda m, i, o: formats.append(
                    i[0].is_contiguous(memory_format=torch.channels_last)
                    and o.is_contiguous(memory_format=torch.channels_last)
                )
            )
    model(x)
    assert formats and all(formats)


@torch.no_grad()
def test_outputs() -> None:
    model = network("tei", "resnet10t")
    x = clips(model, 2)
    out = model.forward_outputs(x)
    assert torch.equal(out.logits, model(x))
    assert out.features.shape == (2, 512) and out.auxiliary is None and out.visuals is None
    assert distance(model.classifier(out.features), out.logits) < 1e-5  # without dropout the mean commutes
    gates = {f"layer{stage}.0.conv1.gates" for stage in (1, 2, 3, 4)}
    assert set(model.forward_outputs(x, visuals=True).visuals) == gates


def test_the_head_is_dropout_and_a_small_linear_layer() -> None:
    torch.manual_seed(0)
    model = create_model("tsn", "resnet18", num_classes=400, dropout=0.8)
    assert model.dropout.p == 0.8 and not model.classifier.bias.any()
    assert model.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert model.training


def test_the_config_describes_the_model() -> None:
    model = create_model(
        "tei", "resnet10t", num_classes=3, num_frames=4, stages=(3, 5), reduction=4, mean=[0.5], std=[0.2]
    )
    again = from_config(model.config, num_classes=3)
    assert again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert (again.mean, again.num_frames) == ((0.5,) * 3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temporal": "tie"}, UnknownNameError, "'tei'"),
        ({"backbone": "resnet_18"}, UnknownNameError, "'resnet18'"),
        ({"stage": 3}, UsageError, "'stages'"),
        ({"stages": (2, 7)}, UsageError, "subset"),
        ({"stages": "3"}, UsageError, "subset"),
        ({"num_classes": 0}, UsageError, "num_classes"),
        ({"num_frames": 0}, UsageError, "num_frames"),
        ({"num_frames": 2.0}, UsageError, "num_frames"),
        ({"dropout": 1.5}, UsageError, "dropout"),
        ({"std": [0.0]}, UsageError, "std"),
        (
            {"backbone": "mobilenetv3_small_050", "stages": (2,)},
            UnsupportedPairError,
            r"stages \[2\]; there is room in \[3, 4, 5\]",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_model(**{"temporal": "tei", "backbone": "resnet10t", "num_classes": 2, **arguments})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: x[:, :2], r"\(2, 2, 3, 64, 64\); this model takes \(N, 4, 3, H, W\)"),
        (lambda x: x[0], "this model takes"),
        (lambda x: x.permute(0, 1, 3, 4, 2), "this model takes"),
        (lambda x: x.int(), "int32"),
    ],
)
def test_wrong_clips(bad, message: str) -> None:
    model = network("tsm", "resnet10t")
    with pytest.raises(UsageError, match=message):
        model(bad(clips(model, 2)))


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, vireo; assert not {'torch', 'numpy', 'timm'} & set(sys.modules); "
        "from vireo import UsageError; assert 'torch' not in sys.modules; assert 'create_model' in dir(vireo)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve() -> None:
    from vireo.checkpoint import load_checkpoint

    assert vireo.create_model is create_model and vireo.load_checkpoint is load_checkpoint
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vireo.nonsense
