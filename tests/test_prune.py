"""Pruning: which kernels are similar, what changes in the network, and that nothing else does."""

from __future__ import annotations

import copy
import importlib
import json
import math
import shlex
import sys
import types

import pytest
import torch
from torch import Tensor, nn

from tests.model_tools import (
    CLASSES,
    assert_clips_stay_apart,
    assert_every_parameter_counts,
    clips,
    distance,
    network,
    randomise,
)
from vireo import cli
from vireo.checkpoint import load_checkpoint, save_checkpoint
from vireo.config import TrainConfig, ViewConfig, to_dict
from vireo.errors import CheckpointError, StorageError, UsageError
from vireo.model import Recognizer, count_macs, count_parameters, create_model, from_config
from vireo.prune import choose_channels, measure_latency, prune, prune_command, similar_kernels
from vireo.surgery import CUTS, apply_pruning, count_pruned
from vireo.temporal.mstsm_tfdem import MultiScaleShift
from vireo.temporal.tsm import TemporalShift

prune_module = importlib.import_module("vireo.prune")  # `vireo.prune` may be the function


def similar_by_loops(kernels: Tensor, count: int) -> list[int]:
    rows = [kernel.flatten().tolist() for kernel in kernels]

    def apart(a: list[float], b: list[float]) -> float:
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))

    totals = [sum(apart(a, b) for b in rows) for a in rows]  # (5)
    median = totals.index(min(totals))  # (6)
    ranked = sorted(range(len(rows)), key=lambda i: (i != median, apart(rows[i], rows[median])))  # (7)
    return sorted(ranked[:count])


def model_of(temporal: str, backbone: str, *, frames: int = 4, **options: object) -> Recognizer:
    """Randomised, in float64 and evaluation mode."""
    torch.manual_seed(0)
    model = create_model(temporal, backbone, num_classes=CLASSES, num_frames=frames, dropout=0.0, **options)
    return randomise(model).double()


# ------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize("shape", [(9, 4, 3, 3), (40, 6, 1, 1)])
def test_similar_kernels_are_those_nearest_the_geometric_median(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kernels = torch.randn(shape) * torch.rand(shape[0], 1, 1, 1)
    for count in (0, 1, 3, shape[0]):
        assert similar_kernels(kernels, count) == similar_by_loops(kernels, count)


def test_the_median_goes_first_even_beside_its_equals() -> None:
    kernels = torch.tensor([[9.0], [1.0], [1.0], [1.0], [-9.0]])
    assert similar_kernels(kernels, 1) == [1] and similar_kernels(kernels, 3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("backbone", "producers"),
    [
        (
            "resnet18",
            {"layer1.0.conv1": "conv1", "layer1.1.conv1": "layer1.0.conv2", "layer3.0.conv1": "layer2.1.conv2"},
        ),
        ("resnet50d", {"layer1.0.conv1": "conv1.6", "layer1.1.conv1": "layer1.0.conv3"}),
        ("seresnet50", {"layer2.0.conv1": "layer1.2.conv3"}),
        ("efficientnet_b0", {"blocks.1.1.conv_pw": "blocks.1.0.conv_pwl", "blocks.4.1.conv_pw": "blocks.4.0.conv_pwl"}),
        ("efficientnetv2_rw_t", {"blocks.1.1.conv_exp": "blocks.1.0.conv_pwl"}),
    ],
)
def test_inputs_are_chosen_by_the_kernels_that_produce_them(backbone: str, producers: dict[str, str]) -> None:
    model = create_model("mstsm", backbone, num_classes=2)
    planted = {}
    for at, (site, producer) in enumerate(producers.items()):
        weight = model.backbone.get_submodule(producer).weight
        channels = weight.shape[0]
        count = channels // 10
        planted[site] = sorted((7 * i + at) % channels for i in range(count))
        with torch.no_grad():
            weight[planted[site]] = weight.mean(dim=0)
    chosen = choose_channels(model.backbone, model.sites, ratio_in=0.1, ratio_out=0.0)
    assert {site: chosen[site]["merge"] for site in producers} == planted
    assert all(len(entry["keep"]) == model.backbone.get_submodule(p).out_channels for p, entry in chosen.items())


def test_outputs_are_chosen_by_the_layers_own_kernels_and_rounded_down() -> None:
    model = network("mstsm", "resnet10t")
    chosen = choose_channels(model.backbone, model.sites, ratio_in=0.0, ratio_out=0.29)
    for site in model.sites:
        weight = model.backbone.get_submodule(site.path).weight
        dropped = similar_by_loops(weight, len(weight) * 29 // 100) if len(weight) <= 64 else None
        assert chosen[site.path]["merge"] == []
        if dropped is not None:
            assert chosen[site.path]["keep"] == [c for c in range(len(weight)) if c not in dropped]


@pytest.mark.parametrize(
    ("inputs", "outputs", "ratios", "counts"),
    [
        (100, 100, (0.29, 0.29), (29, 29)),
        (19, 19, (0.1, 0.1), (0, 1)),  # a single input isn't averaged
        (20, 9, (0.1, 0.1), (2, 0)),
        (64, 64, (0.0, 0.0), (0, 0)),
    ],
)
def test_shares_are_rounded_down(
    inputs: int, outputs: int, ratios: tuple[float, float], counts: tuple[int, int]
) -> None:
    assert count_pruned(inputs, outputs, ratio_in=ratios[0], ratio_out=ratios[1]) == counts


# ------------------------------------------------------------------------- what it does to a network


def test_published_size() -> None:
    model = create_model("mstsm_tfdem", "resnet50", num_classes=101)
    before = count_macs(model)
    smaller = prune(model)
    assert count_parameters(smaller) == 22_486_626
    assert count_macs(smaller) < 0.92 * before
    assert count_parameters(model) == 24_521_354 and count_macs(model) == before


@torch.no_grad()
def test_ratios_of_zero_change_nothing() -> None:
    model = network("mstsm", "resnet10t")
    same = prune(model, ratio_in=0, ratio_out=0)
    assert same.config.pruned == {}
    assert torch.equal(same(clips(model, 2)), model(clips(model, 2)))


def plant_redundancy(model: Recognizer, merge: list[int], drop: list[int]) -> None:
    """Make inputs of stage 2 of a ResNet-18 equal, and outputs of its first convolutions zero."""
    net = model.backbone
    with torch.no_grad():
        for conv, norm in ((net.conv1, net.bn1), (net.layer1[0].conv2, net.layer1[0].bn2)):
            others = [c for c in range(64) if c not in merge]
            conv.weight[merge] = conv.weight[others].mean(dim=0)
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor[merge] = tensor[merge[0]].clone()
        for block in net.layer1:
            block.conv1.weight[drop] = 0
            block.bn1.bias[drop] = -1e3


@torch.no_grad()
@pytest.mark.parametrize(
    ("temporal", "options"),
    [("mstsm", {"scales": "2"}), ("mstsm", {"scales": "2var"}), ("mstsm", {"scales": "3"}), ("mstsm_tfdem", {})],
)
def test_what_is_redundant_goes_without_a_trace(temporal: str, options: dict[str, str]) -> None:
    # 64 → 61 channels: with these divisors the shifts keep their widths, so every column keeps its meaning.
    model = model_of(temporal, "resnet18", stages=(2,), one_div=10, two_div=20, **options)
    merge, drop = [14, 20, 31, 57], [0, 3, 30, 62]
    plant_redundancy(model, merge, drop)
    x = clips(model, 2)
    before = model(x)
    smaller = prune(model, ratio_in=4 / 64, ratio_out=4 / 64)
    keep = [c for c in range(64) if c not in drop]
    expected = {"keep": keep, "merge": merge}
    assert smaller.config.pruned == {"layer1.0.conv1": expected, "layer1.1.conv1": expected}
    assert distance(smaller(x), before) < 1e-9
    conv = smaller.backbone.layer1[1].conv1
    added = {"2": 6, "2var": 6, "3": 12}[options.get("scales", "2")]
    assert conv.weight.shape == (60, 61 + added, 3, 3) and (conv.in_channels, conv.out_channels) == (61 + added, 60)
    assert smaller.backbone.layer1[1].conv2.weight.shape == (64, 60, 3, 3)
    # and with other channels it would be seen
    wrong = copy.deepcopy(model)
    apply_pruning(wrong.backbone, wrong.sites, {"layer1.1.conv1": {"keep": keep, "merge": [15, *merge[1:]]}})
    assert distance(wrong(x), before) > 1e-6


@torch.no_grad()
@pytest.mark.parametrize(
    ("temporal", "options"), [("tsm", {"fold_div": 10}), ("mstsm", {"one_div": 10, "scales": "1"})]
)
def test_a_shift_without_copies_is_pruned_too(temporal: str, options: dict[str, object]) -> None:
    model = model_of(temporal, "resnet18", stages=(2,), **options)
    merge, drop = [14, 20, 31, 63], [0, 3, 30, 62]
    plant_redundancy(model, merge, drop)
    x = clips(model, 2)
    before = model(x)
    smaller = prune(model, ratio_in=4 / 64, ratio_out=4 / 64)
    assert smaller.backbone.layer1[1].conv1.weight.shape == (60, 61, 3, 3)
    assert distance(smaller(x), before) < 1e-9


def zero_outputs(block: nn.Module, drop: list[int]) -> None:
    facts = CUTS[type(block)]
    block.get_submodule(facts.conv).weight[drop] = 0
    for path in facts.norms:  # what leaves every norm is 0, which SiLU, ReLU and ReLU6 keep
        norm = block.get_submodule(path)
        norm.running_mean[drop], norm.bias[drop] = 0, 0


@torch.no_grad()
@pytest.mark.parametrize(
    "backbone",
    [
        "resnet10t",
        "resnet26",
        "seresnet50",
        "mobilenetv2_035",
        "mobilenetv3_small_050",
        "efficientnet_b0",
        "efficientnetv2_rw_t",
    ],
)
def test_kernels_without_output_can_go_in_every_block(backbone: str) -> None:
    model = model_of("mstsm", backbone, frames=2)
    pruned = {}
    for site in model.sites[:3] + model.sites[-2:]:
        block = model.backbone.get_submodule(site.path.rpartition(".")[0])
        drop = [1, 4, site.conv.out_channels - 1]
        zero_outputs(block, drop)
        pruned[site.path] = {"keep": [c for c in range(site.conv.out_channels) if c not in drop], "merge": []}
    x = clips(model, 2)
    before, size = model(x), count_parameters(model)
    apply_pruning(model.backbone, model.sites, pruned)
    assert distance(model(x), before) < 1e-9
    assert count_parameters(model) < size


def test_every_block_that_can_be_cut_occurs_above() -> None:
    seen = {
        type(m) for b in ("resnet10t", "resnet26", "efficientnetv2_rw_t") for m in network("tsn", b).backbone.modules()
    }
    assert set(CUTS) <= seen


def test_columns_of_copies_follow_their_channels_or_start_anew() -> None:
    torch.manual_seed(0)
    model = create_model("mstsm", "resnet18", num_classes=2, num_frames=4, stages=(2,))
    leaf = model.backbone.layer1[0].conv1
    nn.init.normal_(leaf.weight)
    old = leaf.weight.detach().double().clone()
    leaf.double()
    assert old.shape[1] == 64 + 2 * 4
    merge = [2, 10, 47, 57, 61, 63]  # 64 → 59 channels, f2 4 → 3
    entry = {"keep": list(range(64)), "merge": merge}
    apply_pruning(model.backbone, model.sites, {"layer1.0.conv1": entry})
    kept = [c for c in range(64) if c not in merge[1:]]
    assert leaf.weight.shape[1] == 59 + 6
    for column, channel in enumerate(kept):
        expected = sum(old[:, c] for c in merge) if channel == merge[0] else old[:, channel]
        assert torch.allclose(leaf.weight[:, column], expected, atol=1e-12)
    mean = sum(leaf.weight[:, c] for c in range(59)) / 59
    # Copied are now 55 56 58 | 59 60 62: before, t+2 came from 56..59 and t−2 from 60..63.
    assert kept[-6:] == [55, 56, 58, 59, 60, 62]
    expected = [mean, old[:, 64], old[:, 66], mean, old[:, 68], old[:, 70]]
    for column, weights in enumerate(expected):
        assert torch.allclose(leaf.weight[:, 59 + column], weights, atol=1e-12), column
    assert isinstance(leaf.temporal, MultiScaleShift) and leaf.temporal.merge == tuple(merge)
    assert (leaf.temporal.one, leaf.temporal.two, leaf.temporal.width) == (59 // 8, 59 // 16, 59)


def test_a_merged_channel_that_is_copied_gets_the_sum_of_its_columns() -> None:
    model = create_model("mstsm", "resnet18", num_classes=2, num_frames=4, stages=(2,), two_div=8)
    leaf = model.backbone.layer1[0].conv1
    old = nn.init.normal_(leaf.weight).detach().clone()
    apply_pruning(model.backbone, model.sites, {"layer1.0.conv1": {"keep": [0], "merge": [60, 61]}})
    new = leaf.weight
    shift = leaf.temporal
    assert shift.width == 63 and shift.copies()[7:][3] == (59, -2)  # channels 56..62; 60 + 61 stand at 60
    at = 63 + shift.copies().index((60, -2))
    first = 64 + 8  # t−2 was copied from 56..63
    assert torch.allclose(new[0, at], old[0, first + 4] + old[0, first + 5], atol=1e-6)


@pytest.mark.parametrize(("temporal", "backbone"), [("mstsm_tfdem", "resnet10t"), ("tsm", "mobilenetv2_035")])
def test_a_pruned_network_keeps_the_contracts(temporal: str, backbone: str) -> None:
    model = randomise(prune(network(temporal, backbone), ratio_in=0.2, ratio_out=0.2))
    assert_clips_stay_apart(model)
    assert_every_parameter_counts(model)
    x = clips(model, 2)
    with torch.no_grad():
        exact = model(x)
        assert torch.equal(copy.deepcopy(model)(x), exact)
        torch._dynamo.reset()
        assert distance(torch.compile(model, fullgraph=True, backend="eager")(x), exact) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.cosine_similarity(model(x).flatten(), exact.flatten(), dim=0) > 0.97
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)


@torch.no_grad()
def test_the_model_it_came_from_stays_as_it_is() -> None:
    model = network("mstsm", "resnet10t")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = clips(model, 2)
    logits = model(x)
    smaller = prune(model)
    assert not smaller.training and prune(network("mstsm", "resnet10t").train()).training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(x), logits) and not torch.equal(smaller(x), logits)
    assert model.config.pruned == {} and type(model.backbone.layer1[0].conv1.temporal) in (
        TemporalShift,
        MultiScaleShift,
    )


def test_frozen_weights_stay_frozen() -> None:
    model = network("mstsm", "resnet10t")
    model.backbone.requires_grad_(False)
    assert not any(p.requires_grad for p in prune(model).backbone.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    ("temporal", "backbone"), [("mstsm_tfdem", "resnet10t"), ("mstsm", "efficientnet_b0"), ("tsm", "resnet10t")]
)
def test_a_checkpoint_loads_again(temporal: str, backbone: str, tmp_path) -> None:
    model = prune(network(temporal, backbone))
    assert json.loads(json.dumps(to_dict(model.config)))["pruned"] == model.config.pruned
    save_checkpoint(tmp_path / "m.safetensors", model, labels="abcde", view=ViewConfig(size=64), provenance={})
    loaded = load_checkpoint(tmp_path / "m.safetensors").model
    x = clips(model, 2)
    assert torch.equal(loaded(x), model(x))
    assert loaded.config == model.config and count_macs(loaded) == count_macs(model)
    fresh = from_config(model.config, num_classes=7)
    heads = [m for n, m in fresh.named_modules() if n.endswith("classifier") and isinstance(m, nn.Linear)]
    assert count_parameters(fresh) - count_parameters(model) == sum(2 * (head.in_features + 1) for head in heads)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, math.nan, math.inf, "0.1", True, None])
@pytest.mark.parametrize("name", ["ratio_in", "ratio_out"])
def test_ratios_that_make_no_sense(name: str, ratio: object) -> None:
    with pytest.raises(UsageError, match=f"{name} is"):
        prune(network("mstsm", "resnet10t"), **{name: ratio})


def test_a_ratio_that_leaves_no_kernel() -> None:
    with pytest.raises(UsageError, match=r"no kernel of layer1\.0\.conv1"):
        prune(network("mstsm", "resnet10t"), ratio_out=1 - 1e-12)


@pytest.mark.parametrize("temporal", ["tei", "tsn"])
def test_models_without_a_shift(temporal: str) -> None:
    with pytest.raises(UsageError, match="tsm, mstsm and mstsm_tfdem"):
        prune(network(temporal, "resnet10t"))


def test_blocks_that_cannot_be_pruned() -> None:
    for temporal, backbone, reason in (
        ("tsm", "convnext_atto", "conv_dw of a ConvNeXtBlock"),
        ("mstsm", "regnetx_002", "conv of a ConvNormAct"),
        ("mstsm", "resnext50_32x4d", "conv2 is not a plain dense convolution but Conv2d"),
    ):
        with torch.device("meta"):
            model = create_model(temporal, backbone, num_classes=2)
        with pytest.raises(UsageError, match=rf"can't be pruned: .*({reason})"):
            prune(model)


@pytest.mark.parametrize(
    ("temporal", "backbone", "reason"),
    [
        ("tsm+twm", "resnet26", "conv2, which reads what conv1 gives, has a temporal module too"),
        ("tsm+stw", "resnet26", "conv2, which reads what conv1 gives, has a temporal module too"),
        ("tsm+stw", "mobilenetv2_035", "conv_dw, which reads what conv_pw gives, has a temporal module too"),
        ("mstsm+te", "mobilenetv2_035", "conv_pwl, which reads what conv_pw gives, has a temporal module too"),
        ("tsm+te", "mobilenetv2_035", "conv_pwl, which reads what conv_pw gives, has a temporal module too"),
        ("tsm+fe", "resnet26", "conv2 is not a plain dense convolution but FeatureEnhancement"),
        ("tsm+fe", "mobilenetv2_035", "conv_dw is not a plain depthwise convolution but FeatureEnhancement"),
    ],
)
def test_a_shift_before_another_module(temporal: str, backbone: str, reason: str) -> None:
    with torch.device("meta"):
        model = create_model(temporal, backbone, num_classes=2, num_frames=4, stages=(3, 4, 5))
    with pytest.raises(UsageError, match=rf"can't be pruned: {reason}") as caught:
        prune(model)
    assert "\n" not in str(caught.value)


def test_a_subclass_of_a_convolution_is_not_pruned() -> None:
    class Standardised(nn.Conv2d):
        pass

    model = create_model("mstsm", "resnet10t", num_classes=2)
    model.backbone.layer2[0].conv2.__class__ = Standardised
    with pytest.raises(UsageError, match=r"layer2\.0\.conv1 can't be pruned: conv2 is not .* but Standardised"):
        prune(model)


@torch.no_grad()
@pytest.mark.parametrize("temporal", ["tsm+tfdem", "mstsm+tfdem", "tsm+te", "mstsm+te"])
def test_a_module_that_does_not_read_the_pruned_layer_is_no_obstacle(temporal: str) -> None:
    model = create_model(temporal, "resnet26", num_classes=CLASSES, num_frames=4).eval()
    smaller = prune(model, ratio_in=0.2, ratio_out=0.2)
    assert smaller(clips(model, 2)).shape == (2, CLASSES) and count_parameters(smaller) < count_parameters(model)


def test_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="pruned already"):
        prune(prune(network("mstsm", "resnet10t")))


@pytest.mark.parametrize(
    ("pruned", "reason"),
    [
        ({"layer9.conv": {"keep": [0], "merge": []}}, "names 'layer9.conv'"),
        ({"layer1.0.conv1": {"keep": [0]}}, "keep and merge"),
        ({"layer1.0.conv1": [0, 1]}, "keep and merge"),
        ({"layer1.0.conv1": {"keep": [], "merge": []}}, "keeps no output"),
        ({"layer1.0.conv1": {"keep": [0], "merge": [3]}}, "single input"),
        ({"layer1.0.conv1": {"keep": [1, 0], "merge": []}}, "ascending"),
        ({"layer1.0.conv1": {"keep": [0, 0], "merge": []}}, "ascending"),
        ({"layer1.0.conv1": {"keep": [0, 999], "merge": []}}, "from 0 to"),
        ({"layer1.0.conv1": {"keep": [0], "merge": [1, "2"]}}, "merge"),
        ({"layer1.0.conv1": {"keep": [0.0], "merge": []}}, "keep"),
    ],
)
def test_descriptions_that_do_not_fit(pruned: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        create_model("mstsm", "resnet10t", num_classes=2, pruned=pruned)


# --------------------------------------------------------------------------------------------- the command


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(prune_module, "ROUNDS", 2)
    path = tmp_path / "m.safetensors"
    provenance = {"data_hash": "abc", "config": {"val_fraction": 0.2}, "top1": 0.9}
    view = ViewConfig(size=64)
    save_checkpoint(path, network("mstsm", "resnet10t"), labels="abcde", view=view, provenance=provenance)
    return path


def test_the_command_writes_a_smaller_checkpoint(checkpoint, capsys) -> None:
    out = checkpoint.with_name("small.safetensors")
    assert prune_command(checkpoint, out, ratio_in=0.2, ratio_out=0.3, device="cpu", json=True) == 0
    said = json.loads(capsys.readouterr().out)
    small, whole = load_checkpoint(out), load_checkpoint(checkpoint)
    assert said["before"]["parameters"] == count_parameters(whole.model)
    assert said["after"]["parameters"] == count_parameters(small.model) < said["before"]["parameters"]
    assert said["after"]["macs"] == count_macs(small.model, 64) < said["before"]["macs"] == count_macs(whole.model, 64)
    assert said["before"]["milliseconds"] > 0 and said["after"]["milliseconds"] > 0
    assert said["checkpoint"] == str(out) and said["layers"] == len(small.model.config.pruned) == 4
    assert small.labels == whole.labels and small.view == whole.view
    assert small.provenance["data_hash"] == "abc" and "top1" not in small.provenance  # that was another model
    assert small.provenance["pruned"]["provenance"]["top1"] == 0.9 and small.provenance["pruned"]["ratio_out"] == 0.3
    with torch.no_grad():
        expected = prune(whole.model, ratio_in=0.2, ratio_out=0.3)
        assert torch.equal(small.model(clips(whole.model, 1)), expected(clips(whole.model, 1)))
    assert out.stat().st_size < checkpoint.stat().st_size


def test_the_command_prints_a_table(checkpoint, capsys) -> None:
    assert prune_command(checkpoint, checkpoint.with_name("small.safetensors"), device="cpu") == 0
    shown = capsys.readouterr().out
    for text in ("parameters", "GMACs/clip", "ms/clip", "4 layers", "small.safetensors"):
        assert text in shown


@pytest.mark.parametrize("name", ["small.safetensors", "my small one.safetensors"])
def test_the_command_says_how_to_go_on(checkpoint, capsys, monkeypatch, name: str) -> None:
    out = checkpoint.with_name(name)
    assert prune_command(checkpoint, out, device="cpu") == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ")
    assert shlex.split(command) == ["vireo", "train", "--init", str(out), "--data", "DATA", "--out", "RUN"]
    trained: list[TrainConfig] = []  # and the line is one that `vireo train` takes

    def train(config: TrainConfig, **_: object) -> types.SimpleNamespace:
        trained.append(config)
        return types.SimpleNamespace(interrupted=False)

    monkeypatch.setitem(sys.modules, "vireo.train", types.SimpleNamespace(train=train))
    monkeypatch.chdir(checkpoint.parent)
    (checkpoint.parent / "DATA").mkdir()
    assert cli.main(shlex.split(command)[1:]) == 0
    assert str(trained[0].init) == str(out)


def test_the_folder_of_the_output_is_made(checkpoint, capsys) -> None:
    out = checkpoint.parent / "new" / "folder" / "small.safetensors"
    assert prune_command(checkpoint, out, device="cpu") == 0
    assert load_checkpoint(out).model.config.pruned


def test_the_command_refuses_before_it_works(checkpoint, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"m\.safetensors exists already"):
        prune_command(checkpoint, checkpoint)
    (tmp_path / "other.safetensors").write_text("mine")
    with pytest.raises(UsageError, match=r"other\.safetensors exists already"):
        prune_command(checkpoint, tmp_path / "other.safetensors")
    assert (tmp_path / "other.safetensors").read_text() == "mine"
    for name in ("small.txt", "small"):
        with pytest.raises(UsageError, match=rf"{name}: what is written is a \.safetensors file"):
            prune_command(checkpoint, tmp_path / "missing" / name)
    with pytest.raises(UsageError, match="--ratio-in and --ratio-out are both 0"):
        prune_command(checkpoint, tmp_path / "missing" / "x.safetensors", ratio_in=0, ratio_out=0.0)
    with pytest.raises(UsageError, match=r"ratio_in is 0\.001 and ratio_out is 0; .* nothing would go"):
        prune_command(checkpoint, tmp_path / "missing" / "x.safetensors", ratio_in=0.001, ratio_out=0, device="cpu")
    with pytest.raises(StorageError, match="could not be written"):
        prune_command(checkpoint, tmp_path / "other.safetensors" / "x.safetensors", device="cpu")
    with pytest.raises(UsageError, match="ratio_in"):
        prune_command(checkpoint, tmp_path / "x.safetensors", ratio_in=2)
    with pytest.raises(CheckpointError, match="no such file"):
        prune_command(tmp_path / "none.safetensors", tmp_path / "x.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "other.safetensors"]


def test_models_take_turns(monkeypatch) -> None:
    monkeypatch.setattr(prune_module, "ROUNDS", 2)
    order: list[int] = []
    models = [network("mstsm", "resnet10t") for _ in range(2)]
    for i, model in enumerate(models):
        model.register_forward_hook(lambda *_, i=i: order.append(i))
    done: list[int] = []
    assert len(measure_latency(models, 64, done=done.append)) == 2
    assert order == [0, 1, 0, 1, 1, 0] and sum(done) == 4
