"""What five papers published of the networks in this package, and how to build each of them here.

One `Published` is one row of a paper's table (or of a figure, where the text gives the number): accuracy,
parameters and cost *as printed*, and the networks that the row is about. `vireo bench papers` prints them beside
what our networks have. Rows about other people's networks are left out, but for TSN and TSM, the common baselines.

    TEINet       Liu et al., TEINet: Towards an Efficient Architecture for Video Recognition, AAAI 2020
    TEFE         Jiang, Zhang, An Improved Action Recognition Network With Temporal Extraction and Feature
                 Enhancement, IEEE Access 10, 2022
    MSTSM-TFDEM  Wu, Chiu, Action Recognition Using Multi-Scale Temporal Shift Module and Temporal Feature
                 Difference Extraction Based on 2D CNN, JSEA 14, 2021
    STW          Cai, A Novel Spatio-Temporal-Wise Network for Action Recognition, IEEE Access 11, 2023
    KPSEM        Cao et al., Effective Action Recognition with Embedded Key Point Shifts, 2020

What these papers call FLOPs are multiply-accumulates. They counted in different ways (with norms or without, the
stages' stride in the 1×1 or the 3×3 convolution), and cut figures off as often as they rounded them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from vireo.model import Recognizer, create_model
from vireo.surgery import count_pruned, prunable_sites

SSV1, SSV2, KINETICS, MINI_KINETICS = (
    "Something-Something V1",
    "Something-Something V2",
    "Kinetics-400",
    "Mini-Kinetics",
)
UCF101, HMDB51, JESTER = "UCF101", "HMDB51", "Jester"

CLASSES: Mapping[str, int] = {
    SSV1: 174,
    SSV2: 174,
    KINETICS: 400,
    MINI_KINETICS: 200,
    UCF101: 101,
    HMDB51: 51,
    JESTER: 27,
}
"""Classes of each dataset."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Arguments of `create_model`, and the size of the frames."""

    temporal: str
    backbone: str = "resnet50"
    num_classes: int
    num_frames: int = 8
    size: tuple[int, int] = (224, 224)
    """Height and width of the frames, pixels."""
    modality: Literal["rgb", "flow"] = "rgb"
    pruned: float = 0.0
    """Share of outputs and inputs pruned from the layers after MSTSM (`vireo prune`); 0 = not pruned."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the temporal module."""
    backbone_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same text for the same network."""
        return json.dumps(asdict(self), sort_keys=True)

    def build(self, device: str = "meta") -> Recognizer:
        """The network; on the meta device it has shapes and no weights."""
        with torch.device(device):
            model = self._create({})
            return self._create(_any_channels(model, self.pruned)) if self.pruned else model

    def _create(self, pruned: Mapping[str, Any]) -> Recognizer:
        return create_model(
            self.temporal,
            self.backbone,
            num_classes=self.num_classes,
            num_frames=self.num_frames,
            modality=self.modality,
            backbone_options=self.backbone_options,
            pruned=pruned,
            **self.options,
        )


def _any_channels(model: Recognizer, ratio: float) -> dict[str, Any]:
    # What pruning leaves of each layer; which channels it would choose needs weights, but the sizes don't.
    found = {}
    for site in prunable_sites(model.backbone, model.sites):
        outputs = site.conv.out_channels
        merged, dropped = count_pruned(site.channels, outputs, ratio_in=ratio, ratio_out=ratio)
        found[site.path] = {"keep": list(range(outputs - dropped)), "merge": list(range(merged))}
    return found


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a paper; numbers that it doesn't give are None or empty."""

    paper: str
    table: str
    """Where it stands, e.g. ``Table 1a``."""
    row: str
    """Its label, as printed."""
    dataset: str = ""
    frames: str = ""
    """T as printed; 8+16 are two networks whose scores are averaged."""
    views: int = 1
    """Clips × crops over which the scores are averaged."""
    top1: float | None = None
    """Per cent, on the validation set; for UCF101 and HMDB51 the mean of three splits, or what the note says."""
    top5: float | None = None
    test_top1: float | None = None
    """On the test set whose labels are not public."""
    parameters: str = ""
    """Millions, as printed."""
    gflops: str = ""
    """Billions of multiply-accumulates, as printed."""
    per: Literal["frame", "view", "video"] = "view"
    """What `gflops` is the cost of: one frame, one view (a clip), or all views of a video."""
    latency_ms: float | None = None
    """At batch 1, in milliseconds."""
    videos_per_second: float | None = None
    """At batch 16."""
    networks: tuple[Network, ...] = ()
    """What it is about; several where scores of several networks are fused. None: a network that we don't build."""
    note: str = ""
    not_reproduced: str = ""
    """Which of its sizes our network does not have, and what is known of the reason."""


def resnet50(
    temporal: str, dataset: str, frames: int = 8, *, size: tuple[int, int] = (224, 224), **options: Any
) -> Network:
    """A module on ResNet-50 with the classes of a dataset."""
    return Network(temporal=temporal, num_classes=CLASSES[dataset], num_frames=frames, size=size, options=options)


def both(temporal: str, dataset: str, *, size: tuple[int, int] = (224, 224), **options: Any) -> tuple[Network, ...]:
    """The networks of 8 and of 16 frames, whose scores are averaged."""
    return tuple(resnet50(temporal, dataset, frames, size=size, **options) for frames in (8, 16))


# ---------------------------------------------------------------------------------------------------- TEINet

_AT_400 = "sizes are those at 400 classes (Kinetics), the accuracy is Something-Something's"
_IMAGENET_KINETICS = "pretrained on ImageNet and Kinetics"


def _tei_ablation(
    table: str, row: str, top1: float, top5: float, temporal: str, note: str = "", **options: Any
) -> Published:
    return Published(
        paper="TEINet",
        table=table,
        row=row,
        dataset=SSV1,
        frames="8",
        top1=top1,
        top5=top5,
        networks=(resnet50(temporal, SSV1, **options),),
        note=note,
    )


def _tei_speed(
    row: str, temporal: str, frames: int, parameters: str, gflops: str, latency: float, videos: float, top1: float
) -> Published:
    return Published(
        paper="TEINet",
        table="Table 2",
        row=row,
        dataset=SSV1,
        frames=str(frames),
        top1=top1,
        parameters=parameters,
        gflops=gflops,
        latency_ms=latency,
        videos_per_second=videos,
        networks=(resnet50(temporal, KINETICS, frames),),
        note=f"{_AT_400}; timed on one Tesla P100",
    )


def _tei_ssv1(
    row: str,
    networks: tuple[Network, ...],
    frames: str,
    gflops: str,
    top1: float,
    test_top1: float | None = None,
    views: int = 1,
    note: str = "",
) -> Published:
    return Published(
        paper="TEINet",
        table="Table 3",
        row=row,
        dataset=SSV1,
        frames=frames,
        views=views,
        top1=top1,
        test_top1=test_top1,
        gflops=gflops,
        per="view" if views == 1 else "video",
        networks=networks,
        note=note,
    )


def _tei_ssv2(
    row: str,
    networks: tuple[Network, ...],
    frames: str,
    views: int,
    top1: float,
    test_top1: float | None,
    note: str = "",
) -> Published:
    return Published(
        paper="TEINet",
        table="Table 4",
        row=row,
        dataset=SSV2,
        frames=frames,
        views=views,
        top1=top1,
        test_top1=test_top1,
        networks=networks,
        note=note,
    )


def _tei_kinetics(row: str, temporal: str, frames: int, gflops: str, top1: float, top5: float) -> Published:
    return Published(
        paper="TEINet",
        table="Table 5",
        row=row,
        dataset=KINETICS,
        frames=str(frames),
        views=30,
        top1=top1,
        top5=top5,
        gflops=gflops,
        networks=(resnet50(temporal, KINETICS, frames),),
    )


def _tei_small(row: str, temporal: str, dataset: str, top1: float) -> Published:
    return Published(
        paper="TEINet",
        table="Table 6",
        row=row,
        dataset=dataset,
        frames="16",
        views=30,
        top1=top1,
        networks=(resnet50(temporal, dataset, 16),),
    )


_TWO_STREAM = "RGB and flow"

TEINET = (
    _tei_ablation("Table 1a", "Res50+TSN", 19.7, 46.6, "tsn"),
    _tei_ablation("Table 1a", "Res50+TSM", 43.4, 73.2, "tsm"),
    _tei_ablation("Table 1a", "Res50+MEM", 33.5, 61.5, "mem"),
    _tei_ablation("Table 1a", "Res50+TIM", 46.1, 74.7, "tim"),
    _tei_ablation("Table 1a", "Res50+SE+TIM", 46.1, 75.2, "se_tim", "SE's reduction ratio isn't given; ours is 16"),
    _tei_ablation("Table 1a", "Res50+MEM+TIM", 47.4, 76.6, "tei", "top-5 differs from Table 1c's 75.8"),
    _tei_ablation("Table 1b", "res2", 41.6, 70.1, "tei", stages=(2,)),
    _tei_ablation("Table 1b", "res3", 43.1, 72.1, "tei", stages=(3,)),
    _tei_ablation("Table 1b", "res4", 45.4, 74.6, "tei", stages=(4,)),
    _tei_ablation("Table 1b", "res5", 45.3, 74.3, "tei", stages=(5,)),
    _tei_ablation("Table 1c", "res5, 3 blocks", 45.3, 74.3, "tei", stages=(5,)),
    _tei_ablation("Table 1c", "res4-5, 9 blocks", 46.7, 76.3, "tei", stages=(4, 5)),
    _tei_ablation("Table 1c", "res3-5, 13 blocks", 47.3, 75.2, "tei", stages=(3, 4, 5)),
    _tei_ablation("Table 1c", "res2-5, 16 blocks", 47.4, 75.8, "tei", "top-5 differs from Table 1a's 76.6"),
    _tei_speed("TSN", "tsn", 8, "24.3", "33", 15.5, 81.5, 19.7),
    _tei_speed("TSM", "tsm", 8, "24.3", "33", 17.4, 77.4, 43.4),
    _tei_speed("TSM", "tsm", 16, "24.3", "65", 29.0, 39.5, 44.8),
    _tei_speed("Res50+TIM", "tim", 8, "24.3", "33", 20.1, 61.6, 46.1),
    _tei_speed("TEINet", "tei", 8, "30.4", "33", 36.5, 46.9, 47.4),
    _tei_speed("Res50+TIM", "tim", 16, "24.3", "66", 34.9, 31.4, 48.5),
    _tei_speed("TEINet", "tei", 16, "30.4", "66", 49.5, 24.2, 49.9),
    _tei_ssv1("TSN-RGB", (resnet50("tsn", SSV1),), "8", "33", 19.7),
    _tei_ssv1("TSM-RGB", (resnet50("tsm", SSV1),), "8", "33", 43.4, note=_IMAGENET_KINETICS),
    _tei_ssv1("TSM-RGB", (resnet50("tsm", SSV1, 16),), "16", "65", 44.8, note=_IMAGENET_KINETICS),
    _tei_ssv1("TSM_En-RGB", both("tsm", SSV1), "8+16", "98", 46.8, note=_IMAGENET_KINETICS),
    _tei_ssv1("TSM-2Stream", (), "16+16", "", 50.2, 47.0, note=f"{_TWO_STREAM}; {_IMAGENET_KINETICS}"),
    _tei_ssv1("TEINet-RGB", (resnet50("tei", SSV1),), "8", "33", 47.4),
    _tei_ssv1("TEINet-RGB", (resnet50("tei", SSV1),), "8", "990", 48.8, views=30),
    _tei_ssv1("TEINet-RGB", (resnet50("tei", SSV1, 16),), "16", "66", 49.9),
    _tei_ssv1("TEINet-RGB", (resnet50("tei", SSV1, 16),), "16", "1980", 51.0, 44.7, views=30),
    _tei_ssv1("TEINet_En-RGB", both("tei", SSV1), "8+16", "99", 52.5, 46.1),
    _tei_ssv2("TSN", (resnet50("tsn", SSV2, 16),), "16", 30, 30.0, None),
    _tei_ssv2("TSM-RGB", (resnet50("tsm", SSV2),), "8", 30, 59.1, None),
    _tei_ssv2("TSM-RGB", (resnet50("tsm", SSV2, 16),), "16", 30, 59.4, 60.4),
    _tei_ssv2("TSM-2Stream", (), "16", 30, 64.0, 64.3, note=_TWO_STREAM),
    _tei_ssv2("TEINet-RGB", (resnet50("tei", SSV2),), "8", 1, 61.3, None),
    _tei_ssv2("TEINet-RGB", (resnet50("tei", SSV2),), "8", 30, 64.0, 62.7),
    _tei_ssv2("TEINet-RGB", (resnet50("tei", SSV2, 16),), "16", 1, 62.1, None),
    _tei_ssv2("TEINet-RGB", (resnet50("tei", SSV2, 16),), "16", 30, 64.7, 63.0),
    _tei_ssv2("TEINet-RGB", both("tei", SSV2), "8+16", 1, 66.5, 64.6, note="the number of views isn't stated"),
    Published(
        paper="TEINet",
        table="Table 5",
        row="TSN",
        dataset=KINETICS,
        views=250,
        top1=72.5,
        top5=90.2,
        gflops="3.2",
        note="Inception V3",
    ),
    _tei_kinetics("TSM", "tsm", 16, "65", 74.7, 91.4),
    _tei_kinetics("TEINet", "tei", 8, "33", 74.9, 91.8),
    _tei_kinetics("TEINet", "tei", 16, "66", 76.2, 92.5),
    Published(paper="TEINet", table="Table 6", row="TSN-RGB", dataset=UCF101, top1=93.2, note="backbone not stated"),
    _tei_small("TSM-RGB", "tsm", UCF101, 96.0),
    _tei_small("TSM-RGB", "tsm", HMDB51, 73.2),
    _tei_small("TEINet-RGB", "tei", UCF101, 96.7),
    _tei_small("TEINet-RGB", "tei", HMDB51, 72.1),
)


# ------------------------------------------------------------------------------------------------------ TEFE

_WIDE = (224, 256)  # the paper tests on whole frames of this size; TSN's and TSM's figures are for 224×224


def _tefe_ss(
    table: str,
    dataset: str,
    row: str,
    frames: str,
    gflops: str,
    top1: float,
    top5: float,
    networks: tuple[Network, ...],
    views: int = 1,
    note: str = "",
) -> Published:
    return Published(
        paper="TEFE",
        table=table,
        row=row,
        dataset=dataset,
        frames=frames,
        views=views,
        top1=top1,
        top5=top5,
        gflops=gflops,
        per="view" if views == 1 else "video",
        networks=networks,
        note=note,
    )


def _tefe_ablation(table: str, row: str, top1: float, temporal: str, note: str = "", **options: Any) -> Published:
    network = resnet50(temporal, SSV1, 16, size=_WIDE, **options)
    return Published(
        paper="TEFE", table=table, row=row, dataset=SSV1, frames="16", top1=top1, networks=(network,), note=note
    )


TEFE = (
    _tefe_ss("Table 1", SSV1, "TSN", "8", "33", 19.7, 46.6, (resnet50("tsn", SSV1),), note="pretrained on Kinetics"),
    _tefe_ss(
        "Table 1", SSV1, "TSN", "16", "66", 19.9, 47.3, (resnet50("tsn", SSV1, 16),), note="pretrained on Kinetics"
    ),
    _tefe_ss("Table 1", SSV1, "TSM", "8", "33", 45.6, 74.2, (resnet50("tsm", SSV1),)),
    _tefe_ss("Table 1", SSV1, "TSM", "16", "65", 47.2, 77.1, (resnet50("tsm", SSV1, 16),)),
    _tefe_ss("Table 1", SSV1, "TSM_En", "8+16", "98", 49.7, 78.5, both("tsm", SSV1)),
    _tefe_ss("Table 1", SSV1, "TEFE (Ours)", "8", "90", 46.7, 75.3, (resnet50("tefe", SSV1, size=_WIDE),)),
    _tefe_ss("Table 1", SSV1, "TEFE (Ours)", "16", "181", 50.4, 78.9, (resnet50("tefe", SSV1, 16, size=_WIDE),)),
    _tefe_ss("Table 1", SSV1, "TEFE (Ours)", "8+16", "271", 51.4, 79.6, both("tefe", SSV1, size=_WIDE)),
    _tefe_ss("Table 2", SSV2, "TSN", "8", "33", 27.8, 57.6, (resnet50("tsn", SSV2),)),
    _tefe_ss("Table 2", SSV2, "TSN", "16", "66", 30.0, 60.5, (resnet50("tsn", SSV2, 16),)),
    _tefe_ss("Table 2", SSV2, "TSM", "8", "198", 59.1, 85.6, (resnet50("tsm", SSV2),), views=6),
    _tefe_ss("Table 2", SSV2, "TSM", "16", "390", 63.4, 88.5, (resnet50("tsm", SSV2, 16),), views=6),
    _tefe_ss("Table 2", SSV2, "TEFE (Ours)", "8", "90", 59.6, 85.7, (resnet50("tefe", SSV2, size=_WIDE),)),
    _tefe_ss("Table 2", SSV2, "TEFE (Ours)", "16", "181", 61.8, 87.4, (resnet50("tefe", SSV2, 16, size=_WIDE),)),
    _tefe_ss("Table 2", SSV2, "TEFE (Ours)", "8+16", "271", 63.5, 88.7, both("tefe", SSV2, size=_WIDE)),
    _tefe_ss("Table 3", JESTER, "TSN", "8", "", 81.0, 99.0, (resnet50("tsn", JESTER),)),
    _tefe_ss("Table 3", JESTER, "TEFE (Ours)", "8", "", 96.7, 99.9, (resnet50("tefe", JESTER, size=_WIDE),)),
    _tefe_ablation("Table 4", "TSN", 19.9, "tsn"),
    _tefe_ablation("Table 4", "only TE", 43.8, "tefe", "Table 5 says 46.7", placement="te_only"),
    _tefe_ablation("Table 4", "only FE", 46.1, "tefe", "Table 5 says 46.3", placement="fe_only"),
    _tefe_ablation("Table 4", "TEFE", 50.4, "tefe", placement="te1"),
    _tefe_ablation("Table 5", "TE 3 4 6 3, FE 0 0 0 0", 46.7, "tefe", "Table 4 says 43.8", placement="te_only"),
    _tefe_ablation("Table 5", "TE 0 0 0 0, FE 0 4 6 3", 46.3, "tefe", "Table 4 says 46.1", placement="fe_only"),
    _tefe_ablation("Table 5", "TE 3 3 3 3, FE 0 1 3 0", 47.8, "tefe", placement="te3"),
    _tefe_ablation("Table 5", "TE 2 2 2 2, FE 0 2 4 1", 48.7, "tefe", placement="te2"),
    _tefe_ablation("Table 5", "TE 1 1 1 1, FE 0 3 5 2", 50.4, "tefe", placement="te1"),
)


# ----------------------------------------------------------------------------------------------- MSTSM-TFDEM

_EARLY = {"stride_in_1x1": True}
_EARLY_NOTE = "cost with the stages' stride in the 1×1 convolution"


def _early(temporal: str, **options: Any) -> Network:
    # Where the stride stands changes the cost and no size.
    return Network(temporal=temporal, num_classes=101, options=options, backbone_options=_EARLY)


def _mstsm(
    table: str,
    row: str,
    top1: float,
    parameters: str = "",
    gflops: str = "",
    networks: tuple[Network, ...] = (),
    dataset: str = UCF101,
    note: str = "",
    not_reproduced: str = "",
) -> Published:
    return Published(
        paper="MSTSM-TFDEM",
        table=table,
        row=row,
        dataset=dataset,
        frames="8",
        top1=top1,
        parameters=parameters,
        gflops=gflops,
        per="frame",
        networks=networks,
        note=note,
        not_reproduced=not_reproduced,
    )


_FULL = _early("mstsm_tfdem")
_PRUNED = Network(temporal="mstsm_tfdem", num_classes=101, backbone_options=_EARLY, pruned=0.1)
_FLOW = Network(temporal="mstsm_tfdem", num_classes=101, backbone_options=_EARLY, modality="flow")
_B0 = Network(temporal="mstsm_tfdem", backbone="efficientnet_b0", num_classes=101)
_B0_COST = "0.7 GFLOPs: EfficientNet-B0 itself has 0.39 by any count"


def _on_hmdb(network: Network) -> Network:
    return replace(network, num_classes=CLASSES[HMDB51])


def _mstsm_ablation(
    table: str, row: str, top1: float, parameters: str = "", note: str = "", **options: Any
) -> Published:
    return _mstsm(table, row, top1, parameters, networks=(resnet50("mstsm", UCF101, **options),), note=note)


_SPLIT_1 = "probably split 1 alone: 95.72 is Table 3's figure for it, and Table 1's mean of three splits is 95.64"

MSTSM_TFDEM = (
    _mstsm("Table 1", "TSM (baseline)", 94.93, "23.7", "3.8", (_early("tsm"),), note=_EARLY_NOTE),
    _mstsm("Table 1", "MSTSM", 95.64, "24.2", "3.9", (_early("mstsm"),), note=_EARLY_NOTE),
    _mstsm("Table 1", "TSM + TFDEM", 95.71, "23.9", "3.9", (_early("tsm+tfdem"),), note=_EARLY_NOTE),
    _mstsm("Table 1", "MSTSM + TFDEM", 96.25, "24.5", "4.0", (_FULL,), note=_EARLY_NOTE),
    _mstsm(
        "Table 1",
        "MSTSM + TFDEM + pruning",
        95.57,
        "22.4",
        "3.6",
        (_PRUNED,),
        note=_EARLY_NOTE,
        not_reproduced="3.6 GFLOPs",
    ),
    _mstsm(
        "Table 1",
        "MSTSM-TFDEM-OF",
        97.98,
        "49.0",
        "7.9",
        (_FULL, _FLOW),
        note="RGB and flow, scores 1 : 1.5",
        not_reproduced="7.9 GFLOPs: less than twice the RGB network's",
    ),
    _mstsm(
        "Table 1",
        "EfficientNet-B0 MSTSM",
        95.60,
        "4.23",
        "0.7",
        (Network(temporal="mstsm", backbone="efficientnet_b0", num_classes=101),),
        not_reproduced=f"4.23 M parameters; {_B0_COST}",
    ),
    _mstsm("Table 1", "EfficientNet-B0 MSTSM + TFDEM", 96.08, "4.49", "0.7", (_B0,), not_reproduced=_B0_COST),
    _mstsm_ablation("Table 2", "R_one 1/16, R_two 1/8", 94.58, "24.79", _SPLIT_1, one_div=16, two_div=8),
    _mstsm_ablation("Table 2", "R_one 1/8, R_two 1/12", 95.79, "24.43", _SPLIT_1, two_div=12),
    _mstsm_ablation("Table 2", "R_one 1/8, R_two 1/16", 95.72, "24.25", _SPLIT_1, two_div=16),
    _mstsm_ablation("Table 2", "R_one 1/8, R_two 1/20", 95.26, "24.14", _SPLIT_1, two_div=20),
    _mstsm_ablation("Table 3", "MSTSM_1", 95.00, note="split 1; sees 2 to 3 frames", scales="1"),
    _mstsm_ablation("Table 3", "MSTSM_2", 95.72, note="split 1; sees 3 to 5 frames", scales="2"),
    _mstsm_ablation("Table 3", "MSTSM_2var", 95.20, note="split 1; sees 4 to 5 frames", scales="2var"),
    _mstsm_ablation("Table 3", "MSTSM_3", 95.16, note="split 1; sees 4 to 7 frames", scales="3"),
    _mstsm("Table 4", "w/ L_TFDEM", 96.25, networks=(resnet50("mstsm_tfdem", UCF101),)),
    _mstsm("Table 4", "w/o L_TFDEM", 95.59, networks=(resnet50("mstsm_tfdem", UCF101, tfdem_loss=False),)),
    _mstsm("Table 5", "TSM", 94.9, "23.7", networks=(resnet50("tsm", UCF101),)),
    _mstsm("Table 5", "TSM", 70.91, networks=(resnet50("tsm", HMDB51),), dataset=HMDB51),
    Published(
        paper="MSTSM-TFDEM",
        table="Table 5",
        row="TSN",
        dataset=UCF101,
        frames="25",
        top1=94.9,
        parameters="22.6",
        note="RGB and flow; backbone not stated",
    ),
    Published(
        paper="MSTSM-TFDEM",
        table="Table 5",
        row="TSN",
        dataset=HMDB51,
        frames="25",
        top1=71.0,
        note="RGB and flow; backbone not stated",
    ),
    _mstsm("Table 5", "MSTSM-TFDEM", 96.25, "24.5", networks=(_FULL,)),
    _mstsm("Table 5", "MSTSM-TFDEM", 72.83, networks=(_on_hmdb(_FULL),), dataset=HMDB51),
    _mstsm("Table 5", "MSTSM-TFDEM-p", 95.57, "22.4", networks=(_PRUNED,)),
    _mstsm("Table 5", "MSTSM-TFDEM-p", 72.19, networks=(_on_hmdb(_PRUNED),), dataset=HMDB51),
    _mstsm("Table 5", "MSTSM-TFDEM (EfficientNet)", 96.08, "4.5", networks=(_B0,)),
    _mstsm("Table 5", "MSTSM-TFDEM (EfficientNet)", 72.48, networks=(_on_hmdb(_B0),), dataset=HMDB51),
)


# ------------------------------------------------------------------------------------------------------- STW


def _stw_ss(
    table: str,
    dataset: str,
    row: str,
    networks: tuple[Network, ...],
    frames: str,
    gflops: str,
    top1: float,
    test_top1: float | None = None,
    views: int = 1,
    note: str = "",
) -> Published:
    return Published(
        paper="STW",
        table=table,
        row=row,
        dataset=dataset,
        frames=frames,
        views=views,
        top1=top1,
        test_top1=test_top1,
        gflops=gflops,
        per="view" if views == 1 else "video",
        networks=networks,
        note=note,
    )


def _stw_ablation(
    table: str, row: str, top1: float, top5: float, temporal: str, note: str = "", **options: Any
) -> Published:
    return Published(
        paper="STW",
        table=table,
        row=row,
        dataset=SSV1,
        frames="8",
        top1=top1,
        top5=top5,
        networks=(resnet50(temporal, SSV1, **options),),
        note=note,
    )


_STW_COST = "the text says 33.5"

STW = (
    _stw_ss("Table 1", SSV1, "TSN", (resnet50("tsn", SSV1),), "8", "33", 19.7),
    _stw_ss("Table 1", SSV1, "TSM", (resnet50("tsm", SSV1),), "8", "33", 43.4, note=_IMAGENET_KINETICS),
    _stw_ss("Table 1", SSV1, "TSM", (resnet50("tsm", SSV1, 16),), "16", "65", 44.8, note=_IMAGENET_KINETICS),
    _stw_ss("Table 1", SSV1, "TSM_En", both("tsm", SSV1), "8+16", "98", 46.8, note=_IMAGENET_KINETICS),
    _stw_ss("Table 1", SSV1, "STW", (resnet50("stw", SSV1),), "8", "34", 46.3, 41.7, note=_STW_COST),
    _stw_ss("Table 1", SSV1, "STW", (resnet50("stw", SSV1, 16),), "16", "67", 48.7, 43.9),
    _stw_ss("Table 1", SSV1, "STW", both("stw", SSV1), "8+16", "100", 49.9, 45.2),
    _stw_ss("Table 2", SSV2, "TSN", (resnet50("tsn", SSV2, 16),), "16", "1950", 30.0, views=30),
    _stw_ss("Table 2", SSV2, "TSM", (resnet50("tsm", SSV2),), "8", "990", 59.1, views=30),
    _stw_ss("Table 2", SSV2, "TSM", (resnet50("tsm", SSV2, 16),), "16", "1950", 59.4, 60.4, views=30),
    _stw_ss("Table 2", SSV2, "TEFE", (resnet50("tefe", SSV2, size=_WIDE),), "8", "90", 59.6),
    _stw_ss("Table 2", SSV2, "STW", (resnet50("stw", SSV2),), "8", "34", 61.7, 60.8, note=_STW_COST),
    _stw_ss("Table 2", SSV2, "STW", (resnet50("stw", SSV2, 16),), "16", "67", 63.0, 62.1),
    _stw_ss("Table 2", SSV2, "STW", both("stw", SSV2), "8+16", "100", 64.6, 63.7),
    Published(
        paper="STW",
        table="Table 3",
        row="TSN",
        dataset=KINETICS,
        views=250,
        top1=72.5,
        top5=90.2,
        gflops="3.2",
        note="Inception V3",
    ),
    Published(
        paper="STW",
        table="Table 3",
        row="STW",
        dataset=KINETICS,
        frames="16",
        views=30,
        top1=75.1,
        top5=91.7,
        gflops="67",
        networks=(resnet50("stw", KINETICS, 16),),
    ),
    Published(paper="STW", table="Table 4", row="TSN", dataset=UCF101, top1=93.2, note="backbone not stated"),
    Published(
        paper="STW",
        table="Table 4",
        row="STW",
        dataset=UCF101,
        frames="16",
        views=30,
        top1=96.2,
        networks=(resnet50("stw", UCF101, 16),),
    ),
    Published(
        paper="STW",
        table="Table 4",
        row="STW",
        dataset=HMDB51,
        frames="16",
        views=30,
        top1=73.3,
        networks=(resnet50("stw", HMDB51, 16),),
    ),
    _stw_ablation("Table 5", "Average Pooling", 32.8, 60.2, "stfm", fusion="average"),
    _stw_ablation("Table 5", "Conv2d (16 : 8/7 : 16) & Concat", 39.2, 68.9, "stfm", shares=(1 / 16, 7 / 8, 1 / 16)),
    _stw_ablation("Table 5", "Conv2d (8 : 4/3 : 8) & Concat", 41.5, 70.4, "stfm", shares=(1 / 8, 3 / 4, 1 / 8)),
    _stw_ablation("Table 5", "Conv2d (4 : 2 : 4) & Concat", 42.6, 73.5, "stfm"),
    _stw_ablation("Table 6", "TSN", 19.7, 46.6, "tsn"),
    _stw_ablation("Table 6", "TSM", 42.1, 72.7, "tsm", "Table 1 says 43.4"),
    _stw_ablation("Table 6", "STFM", 42.6, 73.5, "stfm"),
    _stw_ablation("Table 6", "TWM", 41.9, 72.3, "twm"),
    _stw_ablation("Table 6", "STW", 46.3, 76.6, "stw", "Table 7's top-5 is 76.7"),
    _stw_ablation("Table 7", "stage 2, 3 blocks", 40.0, 70.2, "stw", stages=(2,)),
    _stw_ablation("Table 7", "stage 3, 4 blocks", 41.1, 71.5, "stw", stages=(3,)),
    _stw_ablation("Table 7", "stage 4, 6 blocks", 43.9, 73.7, "stw", stages=(4,)),
    _stw_ablation("Table 7", "stage 5, 3 blocks", 43.1, 73.8, "stw", stages=(5,)),
    _stw_ablation("Table 7", "stages 2-5, 16 blocks", 46.3, 76.7, "stw", "Table 6's top-5 is 76.6"),
    _stw_ablation("Table 7", "stages 3-5, 13 blocks", 45.9, 76.1, "stw", stages=(3, 4, 5)),
    _stw_ablation("Table 7", "stages 4-5, 9 blocks", 45.6, 76.1, "stw", stages=(4, 5)),
    _stw_ablation("Table 8", "Parallel", 46.3, 76.6, "stw"),
    _stw_ablation("Table 8", "Vertical STFM ⇒ TWM", 42.1, 73.3, "stw", combine="stfm_first"),
    _stw_ablation("Table 8", "Vertical TWM ⇒ STFM", 41.8, 73.5, "stw", combine="twm_first"),
)


# ----------------------------------------------------------------------------------------------------- KPSEM


def mfnet(temporal: str, dataset: str, **options: Any) -> Network:
    """A module on MFNet-3D, 16 frames, with the classes of a dataset."""
    return Network(temporal=temporal, backbone="mfnet", num_classes=CLASSES[dataset], num_frames=16, options=options)


def _c2d(temporal: str, **options: Any) -> Network:
    return Network(temporal=temporal, backbone="c2d_resnet50", num_classes=51, num_frames=16, options=options)


def _kpsem_main(
    row: str, dataset: str, top1: float, temporal: str, parameters: str = "", gflops: str = ""
) -> Published:
    return Published(
        paper="KPSEM",
        table="Table 1",
        row=row,
        dataset=dataset,
        frames="16",
        top1=top1,
        parameters=parameters,
        gflops=gflops,
        networks=(mfnet(temporal, dataset),),
    )


def _kpsem_tsm(dataset: str, top1: float, parameters: str = "", gflops: str = "") -> Published:
    networks = tuple(resnet50("tsm", KINETICS if parameters else dataset, frames) for frames in (8, 16))
    return Published(
        paper="KPSEM",
        table="Table 1",
        row="TSM",
        dataset=dataset,
        frames="8+16",
        top1=top1,
        parameters=parameters,
        gflops=gflops,
        networks=networks,
        note="sizes are those of two networks with 400 classes" if parameters else "",
    )


def _kpsem_tsn(dataset: str, top1: float, parameters: str = "", gflops: str = "") -> Published:
    return Published(
        paper="KPSEM",
        table="Table 1",
        row="TSN",
        dataset=dataset,
        top1=top1,
        parameters=parameters,
        gflops=gflops,
        note="backbone not stated",
    )


def _kpsem_ablation(
    table: str, row: str, network: Network, top1: float | None = None, note: str = "", frames: str = "16"
) -> Published:
    return Published(
        paper="KPSEM",
        table=table,
        row=row,
        dataset=HMDB51,
        frames=frames,
        top1=top1,
        networks=(network,),
        note=f"split 1, batch 16{'; ' if note else ''}{note}",
    )


_PLOTTED = "plotted; the text gives no number"

KPSEM = (
    _kpsem_main("MFNet", MINI_KINETICS, 78.35, "tsn"),
    Published(
        paper="KPSEM",
        table="Table 1",
        row="MFNet",
        frames="16",
        parameters="8.0",
        gflops="11.1",
        networks=(mfnet("tsn", KINETICS),),
        note="sizes are those at 400 classes",
    ),
    _kpsem_main("MFNet", UCF101, 96.0, "tsn"),
    _kpsem_main("MFNet", SSV1, 43.0, "tsn"),
    _kpsem_main("MFNet", HMDB51, 74.6, "tsn"),
    _kpsem_tsm(UCF101, 95.9),
    _kpsem_tsm(SSV1, 49.7, "48.6", "98"),
    _kpsem_tsm(HMDB51, 73.5),
    _kpsem_tsn(UCF101, 94.2),
    _kpsem_tsn(SSV1, 19.5, "10.7", "16"),
    _kpsem_tsn(HMDB51, 69.4),
    _kpsem_main("MF-KPSEM", MINI_KINETICS, 82.05, "kpsem", "8.11", "11.21"),
    _kpsem_main("MF-KPSEM", UCF101, 97.4, "kpsem"),
    _kpsem_main("MF-KPSEM", SSV1, 48.1, "kpsem"),
    _kpsem_main("MF-KPSEM", HMDB51, 77.7, "kpsem"),
    _kpsem_ablation("Fig. 5", "MFNet", mfnet("tsn", HMDB51), 70.8),
    _kpsem_ablation("Fig. 5a", "after conv2", mfnet("kpsem", HMDB51, stage=2), 72.5, "the text: 1.5 below conv4"),
    _kpsem_ablation("Fig. 5a", "after conv3", mfnet("kpsem", HMDB51, stage=3), note=_PLOTTED),
    _kpsem_ablation("Fig. 5a", "after conv4", mfnet("kpsem", HMDB51, stage=4), 74.0),
    _kpsem_ablation("Fig. 5a", "after conv5", mfnet("kpsem", HMDB51, stage=5), note="plotted; a sharp drop"),
    _kpsem_ablation("Fig. 5b", "K = 1", mfnet("kpsem", HMDB51, regions=1), 72.1),
    _kpsem_ablation("Fig. 5b", "K = 4", mfnet("kpsem", HMDB51), 74.0),
    _kpsem_ablation("Fig. 5b", "K = 9", mfnet("kpsem", HMDB51, regions=9), note="plotted; slightly below K = 4"),
    _kpsem_ablation("Fig. 5b", "K = 16", mfnet("kpsem", HMDB51, regions=16), note="plotted; slightly below K = 4"),
    _kpsem_ablation("Fig. 5c", "G = 1", mfnet("kpsem", HMDB51, sets=1), 72.4),
    _kpsem_ablation("Fig. 5c", "G = 2", mfnet("kpsem", HMDB51, sets=2), note=_PLOTTED),
    _kpsem_ablation("Fig. 5c", "G = 4", mfnet("kpsem", HMDB51, sets=4), note=_PLOTTED),
    _kpsem_ablation("Fig. 5c", "G = 8", mfnet("kpsem", HMDB51), 74.0),
    _kpsem_ablation("Fig. 5c", "G = 16", mfnet("kpsem", HMDB51, sets=16), note="plotted; no better than G = 8"),
    _kpsem_ablation("Fig. 5d", "d_e = 24", mfnet("kpsem", HMDB51), 74.0, "the only width that the text names"),
    _kpsem_ablation("Table 2a", "MFNet", mfnet("tsn", HMDB51), 70.8),
    _kpsem_ablation("Table 2a", "MF-KPSEM", mfnet("kpsem", HMDB51), 74.0),
    _kpsem_ablation("Table 2a", "Single Key Point", mfnet("kpsem", HMDB51, regions=1), 72.1),
    _kpsem_ablation("Table 2b", "Fixed Regions", mfnet("kpsem", HMDB51, adaptive=False), 72.5),
    _kpsem_ablation("Table 2c", "One Set of AReSE", mfnet("kpsem", HMDB51, sets=1), 72.4),
    _kpsem_ablation("Table 2d", "R3D", _c2d("tsn"), 62.0, "a C2D: ResNet-50 with 1×k×k kernels; frames not stated", ""),
    _kpsem_ablation("Table 2d", "R3D-KPSEM", _c2d("kpsem", stage=3), 65.8, "after res3; frames not stated", ""),
)

PUBLISHED: tuple[Published, ...] = TEINET + TEFE + MSTSM_TFDEM + STW + KPSEM
"""All rows, paper by paper, in the order of the tables."""
