"""Complexity, the papers' tables and times: what is counted adds up, and everything renders. No times are asserted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.model_tools import clips
from vireo import bench
from vireo.bench import (
    Ours,
    Speed,
    complexity_command,
    describe_machine,
    forward_of,
    measure_complexity,
    measure_published,
    measure_speed,
    papers_command,
    plain_network,
    print_accuracies,
    print_sizes,
    random_clips,
    speed_command,
    speed_rows,
)
from vireo.checkpoint import save_checkpoint
from vireo.config import ViewConfig
from vireo.errors import UsageError
from vireo.model import count_macs, count_parameters, create_model
from vireo.papers import PUBLISHED, Published
from vireo.prune import prune
from vireo.timing import time_in_turns

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    model = create_model("tei", "resnet10t", num_classes=3, num_frames=4, stages=(4, 5))
    save_checkpoint(path, model, labels=["a", "b", "c"], view=ViewConfig(size=64), provenance={})
    return path


@pytest.mark.parametrize(
    ("temporal", "backbone"), [("tei", "resnet10t"), ("mstsm_tfdem", "resnet10t"), ("tsn", "mobilenetv2_050")]
)
def test_parts_add_up(temporal: str, backbone: str) -> None:
    model = create_model(temporal, backbone, num_classes=7, num_frames=4)
    found = measure_complexity(model, (96, 112))
    assert found.parameters == count_parameters(model) == sum(p.parameters for p in found.parts)
    assert found.macs == count_macs(model, (96, 112)) == sum(p.macs for p in found.parts)
    parts = {part.name: part for part in found.parts}
    assert parts["classifier"].parameters == 7 * (model.classifier.in_features + 1)
    assert parts["classifier"].macs == 4 * 7 * model.classifier.in_features
    plain = plain_network(model)
    assert parts["backbone"].parameters == count_parameters(plain.backbone)
    assert parts["backbone"].macs == count_macs(plain, (96, 112)) - parts["classifier"].macs
    inserted = [m for name, m in model.named_modules() if name.endswith(".temporal")]
    if temporal == "tei":
        assert parts["temporal modules"].parameters == sum(count_parameters(m) for m in inserted) > 0
    assert (parts["temporal modules"].macs > 0) == (temporal != "tsn")
    branches = [part for name, part in parts.items() if name.startswith("branch: ")]
    assert [part.parameters for part in branches] == [count_parameters(b) for b in model.branches.values()]
    assert all(part.macs > 0 for part in branches)


@pytest.mark.parametrize(
    ("temporal", "backbone", "added"), [("mstsm_tfdem", "resnet26", True), ("tsm", "mobilenetv2_050", False)]
)
def test_parts_of_a_pruned_network_are_counted_as_they_are(temporal: str, backbone: str, added: bool) -> None:
    whole = create_model(temporal, backbone, num_classes=7, num_frames=4)
    model = prune(whole, ratio_in=0.2, ratio_out=0.2)
    sizes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    before, found = (measure_complexity(m, (96, 112)) for m in (whole, model))
    assert found.parameters == count_parameters(model) == sum(p.parameters for p in found.parts)
    assert found.macs == count_macs(model, (96, 112)) == sum(p.macs for p in found.parts)
    was, now = ({part.name: part for part in c.parts} for c in (before, found))
    assert list(now) == list(was)
    # What MSTSM adds are the columns of its copies.
    columns = 0
    for site in model.sites:
        conv = model.backbone.get_submodule(site.path)
        copies = getattr(conv.temporal, "added", 0)
        columns += copies * conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
    assert now["temporal modules"].parameters == columns and (columns > 0) == added
    assert (now["temporal modules"].macs > 0) == added
    assert 0 < now["backbone"].parameters < was["backbone"].parameters
    assert 0 < now["backbone"].macs < was["backbone"].macs
    for name in set(now) - {"backbone", "temporal modules"}:
        assert now[name] == was[name]
    assert (before.pruned_layers, found.pruned_layers) == (0, len(model.sites))
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == sizes


def test_the_layers_that_are_pruned_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = prune(create_model("mstsm", "resnet10t", num_classes=2, num_frames=2))
    save_checkpoint(tmp_path / "m.safetensors", model, labels=["a", "b"], view=ViewConfig(size=64), provenance={})
    assert complexity_command(checkpoint=tmp_path / "m.safetensors") == 0
    out = capsys.readouterr().out
    assert "4 layers pruned" in out and "\u2212" not in out and " -" not in out  # no part is less than nothing
    # Times are still compared with the whole backbone's.
    assert plain_network(model).config.pruned == {}
    assert count_parameters(plain_network(model).backbone) > count_parameters(model.backbone)


def test_norms_are_counted_by_elements_of_their_output() -> None:
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=3).eval()
    elements = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, i, o: elements.append(o.numel()))
    with torch.no_grad():
        model(clips(model, 1))
    by_hand = sum(elements)
    elements.clear()
    found = measure_complexity(model, (64, 64))
    assert found.macs_with_norms - found.macs == 2 * by_hand > 0
    assert sum(elements) == by_hand  # its own hooks are gone, others' stay
    assert all(len(m._forward_hooks) <= 1 for m in model.modules())


def test_macs_grow_with_height_and_width() -> None:
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=2)
    assert count_macs(model, 64) == count_macs(model, (64, 64))
    assert count_macs(model, (64, 128)) == count_macs(model, (128, 64))
    both = [count_macs(model, size) - 2 * 2 * 512 for size in ((64, 64), (64, 128))]  # but for the classifier
    assert both[1] == 2 * both[0]


def test_the_plain_network_has_the_same_backbone() -> None:
    model = create_model("tei", "resnet10t", num_classes=3, num_frames=4, modality="flow", mean=[0.5], std=[0.2])
    plain = plain_network(model, "cpu")
    assert plain.config.temporal == "tsn"
    assert (plain.num_classes, plain.num_frames, plain.mean, plain.std) == (3, 4, model.mean, model.std)
    assert plain(clips_of(plain)).shape == (2, 3)


def clips_of(model) -> torch.Tensor:
    return random_clips(model, 2, (64, 48), CPU)


def test_random_clips_are_as_decoders_give_them() -> None:
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=4)
    x = clips_of(model)
    assert x.shape == (2, 4, 3, 64, 48) and x.dtype == torch.uint8
    assert x.permute(0, 1, 3, 4, 2).is_contiguous()


def test_complexity_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert complexity_command(temporal="tei", backbone="resnet10t", num_classes=5, options={"stages": (5,)}) == 0
    out = capsys.readouterr().out
    assert "tei on resnet10t" in out and "temporal modules" in out and "with norms" in out
    assert "norms, activations, pooling" in out  # what is counted
    assert max(map(len, out.splitlines())) <= 120


def test_complexity_of_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert complexity_command(checkpoint=checkpoint, json=True) == 0
    found = json.loads(capsys.readouterr().out)
    expected = create_model("tei", "resnet10t", num_classes=3, num_frames=4, stages=(4, 5))
    assert found["parameters"] == count_parameters(expected) == sum(p["parameters"] for p in found["parts"])
    assert (found["height"], found["width"]) == (64, 64)  # the checkpoint's own
    assert found["macs"] == count_macs(expected, 64) and found["macs_per_frame"] == found["macs"] / 4
    assert complexity_command(checkpoint=checkpoint, size=(96, 64), json=True) == 0
    assert json.loads(capsys.readouterr().out)["macs"] == count_macs(expected, (96, 64))


def test_complexity_of_a_flow_model(capsys: pytest.CaptureFixture[str]) -> None:
    described = {"temporal": "tsm", "backbone": "resnet10t", "num_classes": 5, "modality": "flow"}
    for fields in (None, 3):
        assert complexity_command(**described, flow_fields=fields, size=(64, 64), json=True) == 0
        expected = create_model(**described, flow_fields=fields or 5)
        found = json.loads(capsys.readouterr().out)
        assert found["parameters"] == count_parameters(expected) and found["macs"] == count_macs(expected, 64)


def test_speed_of_a_flow_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed_command(
        temporal="tsn", backbone="resnet10t", num_frames=2, size=(32, 32), batch_sizes=(1,), device="cpu",
        modality="flow", flow_fields=2, repeats=2, json=True,
    ) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["modality"] == "flow" and found["results"][0]["median_ms"] > 0


@pytest.mark.parametrize("command", [complexity_command, speed_command])
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"temporal": "tei"}, "--temporal"),  # also where it is the default, or the checkpoint's own
        ({"backbone": "resnet50", "num_classes": 3}, "--backbone, --num-classes"),
        ({"num_frames": 8}, "--num-frames"),
        ({"modality": "rgb", "flow_fields": 5}, "--modality, --flow-fields"),
        ({"options": {"stages": (5,)}}, "--options"),
        ({"backbone_options": {"drop_path_rate": 0.1}}, "--backbone-options"),
    ],
)
def test_a_checkpoint_describes_its_own_network(
    command: Callable[..., int], given: dict[str, object], named: str, checkpoint: Path
) -> None:
    with pytest.raises(UsageError, match=rf"--checkpoint .*safetensors is a whole network, which {named} can't"):
        command(checkpoint=checkpoint, **given)


@pytest.mark.parametrize("command", [complexity_command, speed_command])
@pytest.mark.parametrize("modality", [None, "rgb"])
def test_flow_fields_are_for_flow(command: Callable[..., int], modality: str | None) -> None:
    with pytest.raises(UsageError, match="--flow-fields 3 is for --modality flow"):
        command(temporal="tsn", backbone="resnet10t", modality=modality, flow_fields=3)


def test_papers_table_fits_120_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(rows: Sequence[Published]) -> list[Ours | None]:
        found = Ours(parameters=30.356896, gmacs=1972.78, gmacs_with_norms=1983.45)
        return [found if row.networks and (row.parameters or row.gflops) else None for row in rows]

    monkeypatch.setattr(bench, "measure_published", figures)
    monkeypatch.setenv("COLUMNS", "120")
    assert papers_command() == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    for paper in ("TEINet", "TEFE", "MSTSM-TFDEM", "STW", "KPSEM"):
        assert f"{paper}  parameters" in out and f"{paper}  accuracies" in out
    assert "30.357" in out and "1983.45" in out and "not reproduced" in out
    assert "…" not in out  # nothing is cut off
    for row in PUBLISHED:
        assert row.table in out and (row.top1 is None or f"{row.top1}" in out)


def test_papers_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PUBLISHED", [row for row in PUBLISHED if row.paper == "TEINet"])
    assert papers_command(json=True) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    tei = next(r for r in rows if r["table"] == "Table 2" and r["row"] == "TEINet" and r["frames"] == "8")
    assert tei["parameters"] == "30.4" and tei["latency_ms"] == 36.5 and tei["videos_per_second"] == 46.9
    assert tei["ours"]["parameters"] == pytest.approx(30.356896)
    assert tei["networks"][0]["temporal"] == "tei"
    assert next(r for r in rows if r["table"] == "Table 1a")["ours"] is None  # it prints no size


def test_ensembles_are_summed_and_views_multiplied() -> None:
    rows = [r for r in PUBLISHED if r.paper == "TEINet" and r.table == "Table 3"]
    ours = dict(zip([(r.row, r.frames, r.views) for r in rows], measure_published(rows), strict=True))
    eight, sixteen = ours["TEINet-RGB", "8", 1], ours["TEINet-RGB", "16", 1]
    together, many = ours["TEINet_En-RGB", "8+16", 1], ours["TEINet-RGB", "8", 30]
    assert eight and sixteen and together and many
    assert together.gmacs == pytest.approx(eight.gmacs + sixteen.gmacs)
    assert together.parameters == pytest.approx(eight.parameters + sixteen.parameters)
    assert many.gmacs == pytest.approx(30 * eight.gmacs) and many.parameters == eight.parameters


def test_a_row_without_a_network_of_ours_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    row = next(r for r in PUBLISHED if not r.networks and r.gflops)
    console = Console(width=120)
    print_sizes(row.paper, [(row, None)], console)
    print_accuracies(row.paper, [row], console)
    out = capsys.readouterr().out
    assert "not built here" in out and row.gflops in out and f"{row.top1}" in out


def test_speed_prints_both_networks(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert speed_command(checkpoint=checkpoint, batch_sizes=(1, 2), device="cpu", repeats=2) == 0
    out = capsys.readouterr().out
    assert "tei on resnet10t" in out and "tsn" in out and "videos/s" in out and f"torch {torch.__version__}" in out
    assert speed_command(
        temporal="tsm", backbone="resnet10t", num_frames=2, size=(64, 48), batch_sizes=(2,), device="cpu",
        precision="bf16", repeats=2, json=True,
    ) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert [(r["network"], r["batch_size"]) for r in found["results"]] == [("tsm", 2), ("tsn", 2)]
    assert (found["precision"], found["compiled"], found["height"], found["width"]) == ("bf16", False, 64, 48)
    first = found["results"][0]
    assert first["p10_ms"] <= first["median_ms"] <= first["p90_ms"] and first["ratio_to_tsn"] > 0


def test_a_tsn_is_its_own_measure() -> None:
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=2)
    speeds = measure_speed(model, (32, 32), batch_sizes=(1,), device=CPU, repeats=2)
    assert [speed.name for speed in speeds] == ["tsn"] and speed_rows(speeds)[0]["ratio_to_tsn"] == 1.0


def test_speed_statistics() -> None:
    tsn = Speed(name="tsn", batch_size=4, seconds=(0.1,) * 5)
    tei = Speed(name="tei", batch_size=4, seconds=tuple(0.1 + 0.01 * i for i in range(11)))
    rows = speed_rows([tei, tsn])
    assert rows[0]["median_ms"] == pytest.approx(150) and rows[0]["ratio_to_tsn"] == pytest.approx(1.5)
    assert (rows[0]["p10_ms"], rows[0]["p90_ms"]) == (pytest.approx(110), pytest.approx(190))
    assert rows[0]["videos_per_second"] == pytest.approx(4 / 0.15)
    assert speed_rows([tei])[0]["ratio_to_tsn"] is None


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda n=name: order.append(n) for name in "abc"}
    times = time_in_turns(calls, repeats=3, device=CPU, warmup=1)
    assert order == list("abc" + "abc" + "cba" + "abc")
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_is_timed_is_the_network(precision: str) -> None:
    model = create_model("tei", "resnet10t", num_classes=3, num_frames=2).eval()
    nn.init.normal_(model.classifier.weight)
    x = clips(model, 2)
    logits = forward_of(model, precision=precision)(x)
    assert not logits.requires_grad
    expected = model(x).detach()
    assert torch.allclose(logits, expected, atol=1e-5 if precision == "float32" else 0.1 * float(expected.abs().max()))
    assert torch.equal(logits, expected) == (precision == "float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"repeats": 1}, "repeats is 1"),
        ({"batch_sizes": ()}, "batch_sizes"),
        ({"batch_sizes": (0,)}, "batch_sizes"),
        ({"size": (8, 64)}, "size is"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        speed_command(**{"temporal": "tsn", "backbone": "resnet10t", "device": "cpu", **arguments})
    if "size" in arguments:
        with pytest.raises(UsageError, match=message):
            complexity_command(temporal="tsn", backbone="resnet10t", **arguments)


def test_the_machine_is_named() -> None:
    named = describe_machine(CPU)
    assert f"{torch.get_num_threads()} threads used" in named and torch.__version__ in named
    assert not named.startswith(" ")
