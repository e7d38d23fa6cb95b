"""TSM against the definition, written out as loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.model_tools import network
from vireo.errors import UsageError
from vireo.model import create_model
from vireo.temporal.tsm import TSM, TemporalShift


def shift_by_loops(x: Tensor, frames: int, fold: int) -> Tensor:
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        clip, t = divmod(row, frames)
        for channel in range(x.shape[1]):
            source = t + 1 if channel < fold else t - 1 if channel < 2 * fold else t
            if 0 <= source < frames:
                out[row, channel] = x[clip * frames + source, channel]
    return out


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
@pytest.mark.parametrize("channels", [16, 20])
def test_shift_equals_its_definition(frames: int, channels: int) -> None:
    x = torch.randn(3 * frames, channels, 4, 5, dtype=torch.float64)
    assert torch.equal(TemporalShift(frames, channels // 8)(x), shift_by_loops(x, frames, channels // 8))


def test_an_eighth_moves_each_way_and_fold_div_changes_that() -> None:
    x = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 16, 1, 1).add(1).contiguous()  # frame t holds t + 1
    middle = TemporalShift(3, 2)(x)[1].flatten().tolist()
    assert middle == [3, 3, 1, 1] + [2] * 12
    model = create_model("tsm", "resnet10t", num_classes=2, fold_div=4)
    shift = model.backbone.layer1[0].conv1.temporal
    assert shift.fold == model.sites[0].channels // 4


def test_shift_keeps_channels_last() -> None:
    x = torch.randn(8, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    assert TemporalShift(4, 2)(x).is_contiguous(memory_format=torch.channels_last)
    assert TemporalShift(4, 2)(x.contiguous()).shape == x.shape


def test_gradient() -> None:
    x = torch.randn(6, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(TemporalShift(3, 1), (x,))


def test_an_impulse_reaches_only_its_neighbours() -> None:
    x = torch.zeros(7, 16, 1, 1)
    x[3] = 1
    touched = TemporalShift(7, 2)(x).flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert touched == [2, 3, 4]


def test_no_parameters() -> None:
    assert not [n for n, _ in network("tsm", "resnet10t").named_parameters() if "temporal" in n]


@pytest.mark.parametrize(
    "options",
    [{"fold_div": 1}, {"fold_div": 0}, {"fold_div": 2.5}, {"stages": (1,)}, {"stages": ()}, {"stages": (2, 2)}],
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        TSM(**options)
