"""C2D: ResNet-50 with one max-pooling over time.

Wang, Girshick, Gupta, He: "Non-local Neural Networks", CVPR 2018 (their 2D baseline): 1×k×k convolutions,
so nothing but pooling mixes frames. It is what Cao et al. 2020 (KPSEM) call R3D.

A 1×k×k convolution of a clip is a 2D convolution of its frames, so this is timm's ResNet on folded
frames, (N·T, C, H, W), and takes the ImageNet weights of ``resnet50`` by timm's own names.

    stem (7×7, stride 2; max-pool 3×3, stride 2) ─► layer1 ─► pool2 ─► layer2 ─► layer3 ─► layer4 ─► (N·T', 2048)
                                                T          T' = ⌈T / 2⌉

Deviations:
1. An odd T leaves the last frame alone instead of dropping it, so T = 1 works.
2. Features leave it frame by frame, T' per clip; their average over time is the caller's.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vireo.shapes import split_time


def c2d_resnet50(num_frames: int, **timm_options: Any) -> C2D:
    """C2D on ResNet-50, without a classifier and with random weights.

    Args:
        num_frames: T.
        **timm_options: further arguments of timm's ``ResNet``, e.g. ``drop_path_rate``.
    """
    options = {"block": Bottleneck, "layers": (3, 4, 6, 3), "num_classes": 0, **timm_options}
    network: C2D = build_model_with_cfg(C2D, "resnet50", False, num_frames=num_frames, **options)
    return network


class C2D(ResNet):
    """timm's ResNet with ``pool2`` after ``layer1``: (N·T, C, H, W) → (N·T', D), T' = ⌈T / 2⌉."""

    def __init__(self, *args: Any, num_frames: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pool2 = TemporalMaxPool(num_frames)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T', 2048, H / 32, W / 32)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        x = self.pool2(self._stage(self.layer1, x))
        for stage in (self.layer2, self.layer3, self.layer4):
            x = self._stage(stage, x)
        return x

    def _stage(self, stage: Any, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint(stage, x, use_reentrant=False)  # type: ignore[no-any-return]
        return stage(x)  # type: ignore[no-any-return]


class TemporalMaxPool(nn.Module):
    """(N·T, C, H, W) → (N·⌈T / 2⌉, C, H, W): the larger of every two frames of a clip."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, features: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·⌈T / 2⌉, C, H, W); channels_last in, channels_last out."""
        if self.frames == 1:
            return features
        if self.frames % 2 == 0:  # pairs of rows are pairs of frames of one clip
            return torch.maximum(*torch.unbind(torch.unflatten(features, 0, (-1, 2)), dim=1))
        x = split_time(features.permute(0, 2, 3, 1), self.frames)  # `cat` would not keep channels_last
        pairs, last = torch.split(x, [self.frames - 1, 1], dim=1)
        first, second = torch.unbind(torch.unflatten(pairs, 1, (-1, 2)), dim=2)
        return torch.cat((torch.maximum(first, second), last), dim=1).flatten(0, 1).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"frames={self.frames}"
