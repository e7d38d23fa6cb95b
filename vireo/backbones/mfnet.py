"""MFNet-3D, the multi-fiber network: a light 3D CNN.

Chen, Kalantidis, Li, Yan, Feng: "Multi-Fiber Networks for Video Recognition", ECCV 2018
(arXiv:1807.11195). Written from the network's description: widths, kernels and strides.

Clips (N, 3, T, H, W), best in channels_last_3d memory, to pooled features (N, 768).

    part            kernel     channels   stride              16×224²      parameters
    stem            (3, 5, 5)        16   (1, 2, 2)         16×112²             3,632
    pool, max       (1, 3, 3)        16   (1, 2, 2)         16×56²                  0
    conv2, 3 units                   96   (2, 1, 1)          8×56²             66,384
    conv3, 4 units                  192   (1, 2, 2)          8×28²            404,544
    conv4, 6 units                  384   (1, 2, 2)          8×14²          2,424,576
    conv5, 3 units                  768   (1, 2, 2)          8×7²           4,788,096
    tail: norm, ReLU                768                      8×7²               1,536

With a classifier of 400 classes 7,996,368 parameters (published: 8.0 M), and 11.045 GMACs at 16×224²
(published: 11.1 G).

    x ──┬──────────────────────(+)─► m1: 3×3×3, 16 groups ─► m2: 1×3×3, 16 groups ──(+)──► a unit
        │                       │                                                    │
        ├─► i1: 1×1×1 ─► i2: 1×1×1                                                   │
        │   the multiplexer: the only way from one fiber (group) to another          │
        └────────────────────────────────────────────────────────────────────────────┘

Facts worth a line:
1. Every convolution comes after its own norm and ReLU, and has no bias.
2. In a stage's first unit m1 carries the stride, m2 is a dense 1×1×1, and the shortcut a 1×1×1 with the
   stride (w1). Elsewhere the shortcut is x itself, not the multiplexer's sum.
3. Inputs are normalised as the authors' trained weights want them: the means 124, 117, 104 of 255 are
   taken away, then it is multiplied by 0.0167 per level.
4. The pooling at the end is global, so other sizes and numbers of frames work.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 768
"""D, width of the pooled features."""
_FIBERS = 16
_STAGES = (  # channels, units, stride of the first
    (96, 3, (2, 1, 1)),
    (192, 4, (1, 2, 2)),
    (384, 6, (1, 2, 2)),
    (768, 3, (1, 2, 2)),
)


def mfnet(num_frames: int, *, in_chans: int = 3) -> MFNet3D:
    """MFNet-3D without a classifier and with random weights.

    Args:
        num_frames: T. The network takes any; no weight depends on it.
        in_chans: channels of the input.
    """
    return MFNet3D(in_chans=in_chans)


class MFNet3D(nn.Module):
    """(N, C, T, H, W) → (N, 768). Its parts run in the order in which they stand here."""

    def __init__(self, *, in_chans: int = 3) -> None:
        super().__init__()
        channels = 16
        self.stem = nn.Sequential()
        conv = TemporalConv3d(in_chans, channels, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2), bias=False)
        self.stem.add_module("conv", conv)
        self.stem.add_module("norm", nn.BatchNorm3d(channels))
        self.stem.add_module("act", nn.ReLU(inplace=True))
        self.pool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        stages = []
        for width, units, stride in _STAGES:
            first = MultiFiberUnit(channels, width, stride)
            stages.append(nn.Sequential(first, *(MultiFiberUnit(width, width) for _ in range(units - 1))))
            channels = width
        self.conv2, self.conv3, self.conv4, self.conv5 = stages
        self.tail = nn.Sequential()
        self.tail.add_module("norm", nn.BatchNorm3d(channels))
        self.tail.add_module("act", nn.ReLU(inplace=True))
        self.num_features = channels
        self.pretrained_cfg: dict[str, Any] = {
            "architecture": "mfnet",
            "input_size": (3, 224, 224),
            "mean": (124 / 255, 117 / 255, 104 / 255),
            "std": (1 / (0.0167 * 255),) * 3,
            "interpolation": "bilinear",
            "num_classes": 400,
            "classifier": "classifier",
            "first_conv": "stem.conv",
        }
        _initialise(self.modules())

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, 768, T / 2, H / 32, W / 32), sizes rounded up."""
        x = self.pool(self.stem(x))
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        return self.tail(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        """(N, 768, T', H', W') → (N, 768), the mean; without a classifier ``pre_logits`` changes nothing."""
        return x.mean(dim=(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, 768)."""
        return self.forward_head(self.forward_features(x))


class MultiFiberUnit(nn.Module):
    """(N, C, T, H, W) → (N, C', T', H', W'); with a stride, a stage's first unit: dense m2 and a convolved shortcut."""

    def __init__(self, channels: int, width: int, stride: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        first = stride is not None
        self.i1 = _norm_act_conv(channels, width // 4, (1, 1, 1))
        self.i2 = _norm_act_conv(width // 4, channels, (1, 1, 1))
        self.m1 = _norm_act_conv(channels, width, (3, 3, 3), stride=stride or (1, 1, 1), groups=_FIBERS)
        if first:
            self.m2 = _norm_act_conv(width, width, (1, 1, 1))
        else:
            self.m2 = _norm_act_conv(width, width, (1, 3, 3), groups=_FIBERS)
        self.w1 = _norm_act_conv(channels, width, (1, 1, 1), stride=stride) if stride is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', T', H', W')."""
        multiplexed = x + self.i2(self.i1(x))
        return self.w1(x) + self.m2(self.m1(multiplexed))  # type: ignore[no-any-return]


class TemporalConv3d(nn.Conv3d):
    """A 3D convolution with a kernel of 3 over time, padded by 1, that has the right gradient of two frames."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', T', H', W')."""
        # Two frames in bfloat16 on a CPU: oneDNN's gradient of the weights is garbage where it pads the time
        # itself (seen with torch 2.15; 1 frame, 3 and more are right). So they are padded before.
        if input.shape[2] != 2:
            return super().forward(input)
        padded = F.pad(input, (0, 0, 0, 0, 1, 1))
        padding = (0, *self.padding[1:])
        return F.conv3d(padded, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def _norm_act_conv(
    channels: int,
    width: int,
    kernel: tuple[int, int, int],
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    groups: int = 1,
) -> nn.Sequential:
    layer = nn.Sequential()
    layer.add_module("norm", nn.BatchNorm3d(channels))
    layer.add_module("act", nn.ReLU(inplace=True))
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    kind = TemporalConv3d if kernel[0] == 3 else nn.Conv3d
    layer.add_module("conv", kind(channels, width, kernel, stride, padding, groups=groups, bias=False))
    return layer


def _initialise(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        if isinstance(module, nn.Conv3d):
            nn.init.xavier_uniform_(module.weight)
