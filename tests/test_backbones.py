"""Sites: where they are, that they are where features of the stated shape pass, and pretrained weights."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.model_tools import BACKBONES, OPTIONS, clips, network
from vireo.backbones import (
    FAMILIES,
    build_backbone,
    fit_weights,
    flow_of,
    hub_model,
    measure,
    publish_sites,
    read_weights,
    run,
)
from vireo.backbones.timm_sites import OWN
from vireo.config import ViewConfig
from vireo.contracts import Anchor, Site
from vireo.errors import UnknownNameError, UnsupportedPairError, UsageError, WeightsError
from vireo.model import create_model
from vireo.shapes import Layout

MORE = ("resnet50", "resnet50d", "seresnet50", "resnext50_32x4d", "efficientnetv2_rw_t", "mobilenetv4_conv_medium")
ROOT = Path(__file__).parents[1]


def sites_of(name: str) -> tuple[nn.Module, tuple[Site, ...]]:
    backbone = build_backbone(name, OPTIONS.get(name, {}), 8)
    return backbone, publish_sites(backbone, measure(backbone, name, 3, 8))


@pytest.mark.parametrize("name", [name for name in (*BACKBONES, *MORE) if name != "mfnet"])
def test_sites_state_the_features_that_pass_there(name: str) -> None:
    backbone, sites = sites_of(name)
    seen: dict[str, torch.Size] = {}
    hooks = [
        backbone.get_submodule(path).register_forward_pre_hook(
            lambda _m, inputs, path=path: seen.__setitem__(path, inputs[0].shape)
        )
        for path in {site.path for site in sites}
    ]
    size = 64
    with torch.no_grad():
        backbone.eval()(torch.zeros(8, 3, size, size))
    for hook in hooks:
        hook.remove()
    for site in sites:
        shape = seen[site.path]
        nhwc = site.layout == Layout.NT_H_W_C
        assert shape[-1 if nhwc else 1] == site.channels, site
        side = shape[1 if nhwc else 2]
        if site.anchor == Anchor.PROJECT_IN and not site.path.endswith("aa"):
            assert side == max(1, size >> site.stage), site
        if site.anchor == Anchor.BRANCH_IN:  # before the stride, if the block has one
            assert side in (max(1, size >> site.stage), size >> (site.stage - 1)), site
        assert site.frames == shape[0] == (4 if name == "c2d_resnet50" and site.stage > 2 else 8)
    assert {site.stage for site in sites if site.anchor == Anchor.BRANCH_IN} >= {3, 4, 5}
    for anchor in (Anchor.BRANCH_IN, Anchor.SPATIAL, Anchor.PROJECT_IN):
        paths = [site.path for site in sites if site.anchor == anchor]
        assert len(paths) == len(set(paths)) > 0


def test_the_sites_of_a_resnet() -> None:
    _, sites = sites_of("resnet50")
    first = [s for s in sites if s.anchor == Anchor.BRANCH_IN]
    assert Counter(s.stage for s in first) == {2: 3, 3: 4, 4: 6, 5: 3}
    assert all(s.path == f"layer{s.stage - 1}.{s.block}.conv1" and s.has_skip for s in first)
    assert [s.channels for s in first][:4] == [64, 256, 256, 256]
    spatial = next(s for s in sites if s.anchor == Anchor.SPATIAL and s.path.startswith("layer2.0"))
    assert spatial.conv.kernel_size == (3, 3) and spatial.conv.stride == (2, 2) and not spatial.conv.depthwise


def test_shortcuts_decide_which_blocks_are_shifted() -> None:
    _, sites = sites_of("mobilenetv2_100")
    skip = {s.path: s.has_skip for s in sites if s.anchor == Anchor.BRANCH_IN}
    assert not skip["blocks.0.0.conv_dw"] and not skip["blocks.1.0.conv_pw"] and skip["blocks.1.1.conv_pw"]
    model = network("tsm", "mobilenetv2_035")
    assert len(model.sites) == 10 and all(s.has_skip and s.stage >= 2 for s in model.sites)


def test_depthwise_facts_and_linear_layers() -> None:
    _, sites = sites_of("convnext_tiny")
    by_anchor = {s.anchor: s for s in sites}
    assert by_anchor[Anchor.BRANCH_IN].conv.depthwise
    assert by_anchor[Anchor.PROJECT_IN].layout == Layout.NT_H_W_C


def test_universal_inverted_blocks_begin_where_their_first_convolution_is() -> None:
    backbone, sites = sites_of("mobilenetv4_conv_small")
    for site in (s for s in sites if s.anchor == Anchor.BRANCH_IN and "pw_exp" in s.path):
        block = backbone.get_submodule(site.path.removesuffix(".pw_exp.conv"))
        assert isinstance(block.dw_start, nn.Identity)
    assert any(s.path.endswith("dw_start.conv") for s in sites)


def test_every_named_example_exists() -> None:
    assert all(timm.is_model(name) or name in OWN for family in FAMILIES for name in family.examples)


def test_an_unknown_backbone_is_answered_with_near_names() -> None:
    with pytest.raises(UnknownNameError, match="'resnet50'"):
        build_backbone("resnet_50", {}, 8)


def test_an_unknown_pretrained_tag_or_option_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="tag"):
        build_backbone("resnet50.nonsense", {}, 8)
    with pytest.raises(UsageError, match="no_such_option"):
        build_backbone("resnet18", {"no_such_option": 1}, 8)
    with pytest.raises(UsageError, match="num_classes"):
        build_backbone("resnet18", {"num_classes": 3}, 8)


@pytest.mark.parametrize("name", BACKBONES)
def test_running_part_by_part_is_running_at_once(name: str) -> None:
    model = network("tsn", name)
    network_of_images = model.backbone
    geometry = measure(network_of_images, name, 3, model.num_frames)
    images = model._images(clips(model, 2))
    with torch.no_grad():
        whole = network_of_images(images)
        parts, tapped = run(network_of_images, images, flow_of(network_of_images), [t.path for t in geometry.taps])
    assert torch.equal(whole, parts)
    assert geometry.taps[0].anchor == Anchor.STEM_OUT and len(geometry.taps) >= 5
    for tap, features in zip(geometry.taps, tapped, strict=True):
        assert features.shape[1] == tap.channels and features.shape[-1] == 64 >> tap.stage
        assert features.shape[0 if tap.layout == Layout.NT_C_H_W else 2] == tap.frames * (2 - (features.ndim - 4))


def test_the_stride_in_the_1x1_convolution_is_an_option() -> None:
    late, early = (
        create_model("tsn", "resnet50", num_classes=2, num_frames=1, backbone_options={"stride_in_1x1": flag}).backbone
        for flag in (False, True)
    )
    assert late.layer2[0].conv1.stride == (1, 1) and late.layer2[0].conv2.stride == (2, 2)
    assert early.layer2[0].conv1.stride == (2, 2) and early.layer2[0].conv2.stride == (1, 1)
    assert early.layer1[0].conv1.stride == (1, 1) and early.layer2[0].downsample[0].stride == (2, 2)
    with pytest.raises(UsageError, match="bottlenecks"):
        create_model("tsn", "resnet18", num_classes=2, backbone_options={"stride_in_1x1": True})


def test_a_backbone_without_known_blocks_takes_tsn_only() -> None:
    model = create_model("tsn", "test_vit", num_classes=3, num_frames=2).eval()
    assert model(clips(model, 2, size=160)).shape == (2, 3)
    with pytest.raises(UnsupportedPairError, match=r"Bottleneck(.|\n)*'tsn' works"):
        create_model("tsm", "test_vit", num_classes=3)


def test_backbone_options_reach_timm() -> None:
    model = create_model("tei", "resnet10t", num_classes=2, num_frames=2, backbone_options={"in_chans": 2})
    assert model(torch.rand(1, 2, 2, 32, 32)).shape == (1, 2)
    assert len(model.mean) == 2


# ------------------------------------------------------------------ pretrained weights


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("resnet10t", num_classes=7)


def same(model: Any, source: nn.Module) -> bool:
    own = model.backbone.state_dict()
    return all(torch.equal(own[k], v) for k, v in source.state_dict().items() if not k.startswith("fc."))


@pytest.mark.parametrize("temporal", ["tsn", "tei"])
def test_a_safetensors_file(temporal: str, source: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(source.state_dict(), path)
    model = create_model(temporal, "resnet10t", num_classes=3, pretrained=path)
    assert same(model, source)
    assert model.classifier.weight.shape == (3, 512)
    assert model.mean == (0.485, 0.456, 0.406)


def test_mean_and_std_come_from_the_argument_else_the_file_else_timm(source: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(source.state_dict(), path, metadata={"mean": json.dumps([0.5] * 3), "std": json.dumps([0.25] * 3)})
    model = create_model("tsn", "resnet10t", num_classes=3, pretrained=path)
    assert (model.mean, model.std) == ((0.5,) * 3, (0.25,) * 3)
    model = create_model("tsn", "resnet10t", num_classes=3, pretrained=path, mean=[0.1, 0.2, 0.3], std=[1])
    assert (model.mean, model.std) == ((0.1, 0.2, 0.3), (1.0,) * 3)
    with pytest.raises(UsageError, match="mean is"):
        create_model("tsn", "resnet10t", num_classes=3, mean=[0.5, 0.5])


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module."])
def test_a_pytorch_file(suffix: str, wrap: str, source: nn.Module, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(source.state_dict())
    if wrap == "module.":
        state = {f"module.{k}": v for k, v in state.items()}
    elif wrap != "plain":
        state = {wrap: state, "epoch": 3}
    torch.save(state, tmp_path / f"w{suffix}")
    assert same(create_model("tsm", "resnet10t", num_classes=3, pretrained=str(tmp_path / f"w{suffix}")), source)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_file_with_code_in_it_is_refused_and_not_run(write, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write({"w": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="refused"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 4096, b"PK\x03\x04" + b"0" * 100])
def test_rubbish(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        read_weights(tmp_path / name)


def test_missing_folder_or_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="not a file"):
        read_weights(tmp_path)
    (tmp_path / "w.onnx").touch()
    with pytest.raises(WeightsError, match="unknown kind"):
        read_weights(tmp_path / "w.onnx")
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no state_dict"):
        read_weights(tmp_path / "w.pth")


def test_tensors_that_do_not_fit_are_named(source: nn.Module, tmp_path: Path) -> None:
    backbone = build_backbone("resnet10t", {}, 8)
    before = backbone.conv1[0].weight.clone()
    state = dict(source.state_dict())
    del state["layer1.0.conv1.weight"]
    state["surplus"] = torch.zeros(1)
    state["layer2.0.conv1.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as error:
        fit_weights(backbone, read_weights(tmp_path / "w.safetensors"))
    for part in ("1 missing (layer1.0.conv1.weight)", "1 left over (surplus)", "layer2.0.conv1.weight (1,) instead"):
        assert part in str(error.value)
    assert torch.equal(backbone.conv1[0].weight, before)


def test_rgb_weights_serve_other_inputs(source: nn.Module, tmp_path: Path) -> None:
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    options = {"in_chans": 1}
    model = create_model(
        "tsn", "resnet10t", num_classes=3, pretrained=tmp_path / "w.safetensors", backbone_options=options
    )
    expected = source.conv1[0].weight.sum(dim=1, keepdim=True)
    assert torch.allclose(model.backbone.conv1[0].weight, expected, atol=1e-6)


def test_fine_tuning_from_a_checkpoint_keeps_backbone_and_temporal_weights(tmp_path: Path) -> None:
    from vireo import save_checkpoint

    trained = network("tei", "resnet10t")
    path = tmp_path / "kinetics.safetensors"
    save_checkpoint(path, trained, labels="abcde", view=ViewConfig(), provenance={})
    model = create_model("tei", "resnet10t", num_classes=2, num_frames=16, pretrained=path)
    own, old = model.backbone.state_dict(), trained.backbone.state_dict()
    assert all(torch.equal(own[k], old[k]) for k in old)
    assert create_model("tsm", "resnet10t", num_classes=2, pretrained=path).sites  # takes the backbone alone
    with pytest.raises(WeightsError, match=r"'tei' on 'resnet10t'; that does not fit 'tim'.*\n.*--init"):
        create_model("tim", "resnet10t", num_classes=2, pretrained=path)


@pytest.mark.parametrize("temporal", ["tsn", "tei", "mstsm", "mstsm_tfdem", "tefe", "fe", "stw", "kpsem", "tsm+tfdem"])
def test_any_module_starts_from_a_plain_models_backbone(temporal: str, tmp_path: Path) -> None:
    from vireo import save_checkpoint

    trained = network("tsm", "resnet10t")
    save_checkpoint(tmp_path / "tsm.safetensors", trained, labels="abcde", view=ViewConfig(), provenance={})
    model = create_model(temporal, "resnet10t", num_classes=2, num_frames=4, pretrained=tmp_path / "tsm.safetensors")
    own, old = model.backbone.state_dict(), trained.backbone.state_dict()
    same = [k for k in old if k in own and own[k].shape == old[k].shape]
    assert len(same) > 0.8 * len(old) and all(torch.equal(own[k], old[k]) for k in same)
    if "mstsm" in temporal:  # the widened kernels hold the old ones
        name = "layer1.0.conv1.weight"
        assert torch.equal(own[name][:, : old[name].shape[1]], old[name])


@pytest.mark.parametrize("temporal", ["mstsm_tfdem", "fe", "kpsem"])
def test_fine_tuning_from_the_same_network(temporal: str, tmp_path: Path) -> None:
    from vireo import save_checkpoint

    trained = network(temporal, "resnet10t")
    save_checkpoint(tmp_path / "x.safetensors", trained, labels="abcde", view=ViewConfig(), provenance={})
    model = create_model(temporal, "resnet10t", num_classes=2, num_frames=4, pretrained=tmp_path / "x.safetensors")
    own, old = model.state_dict(), trained.state_dict()
    kept = [k for k in own if "classifier" not in k]
    assert all(torch.equal(own[k], old[k]) for k in kept)
    with pytest.raises(WeightsError, match="--init"):
        create_model("tei", "resnet10t", num_classes=2, pretrained=tmp_path / "x.safetensors", stages=(2,))


def test_without_a_network_the_remedy_is_named_at_once(monkeypatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as hub

    from vireo.backbones import weights

    monkeypatch.setattr(weights, "_reachable", lambda address: False)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"--pretrained PATH.*--pretrained false") as error:
        create_model("tsn", "resnet10t", num_classes=2, pretrained=True)
    assert len(str(error.value).splitlines()) <= 2
    assert hub.HF_HUB_OFFLINE is False or "HF_HUB_OFFLINE" in __import__("os").environ


def test_whose_weights_the_hub_gives() -> None:
    networks = {name: build_backbone(name, {}, 4) for name in ("resnet18", "c2d_resnet50", "mfnet")}
    assert hub_model("resnet18", networks["resnet18"], {"stem_width": 8}) == ("resnet18", {"stem_width": 8})
    assert hub_model("c2d_resnet50", networks["c2d_resnet50"], {"stride_in_1x1": True}) == ("resnet50", {})
    with pytest.raises(WeightsError, match="--pretrained PATH"):
        hub_model("mfnet", networks["mfnet"], {})


def test_the_shared_mobilenet_weights() -> None:
    path = ROOT.parent / "shared" / "weights" / "mobilenetv2_100_imagenet1k.safetensors"
    if not path.exists():
        pytest.skip("the weights beside the project are absent")
    model = create_model("tei", "mobilenetv2_100", num_classes=10, pretrained=path, mean=[0.5], std=[0.5])
    assert same_stem(model, path)


def same_stem(model: Any, path: Path) -> bool:
    return torch.equal(model.backbone.conv_stem.weight, read_weights(path).tensors["conv_stem.weight"])
