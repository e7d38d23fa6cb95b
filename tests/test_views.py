"""Test views: where the crops stand, mirrored ones and whose scores they give, sizes and memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vireo.config import ViewConfig
from vireo.data.flips import flip_rule
from vireo.data.flow import mirror_flow
from vireo.data.transforms import eval_transform
from vireo.data.views import VIEWS, average_views, make_views, view_set
from vireo.errors import UsageError

VIEW = ViewConfig(size=32, short_side=40)


def clip(height: int, width: int, channels: int = 3) -> Tensor:
    """Random (3, C, H, W) uint8 in T, H, W, C memory."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (3, height, width, channels), dtype=torch.uint8, generator=generator)
    return data.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (40, 40), (20, 200), (1, 1)])
def test_every_set_gives_its_views_of_any_clip(name: str, height: int, width: int) -> None:
    frames = clip(height, width)
    before = frames.clone()
    views = make_views(name, frames, VIEW)
    count = len(view_set(name).names)
    assert len(view_set(name).mirrored) == count and views.shape[:3] == (count, 3, 3) and views.dtype == torch.uint8
    assert views.permute(0, 1, 3, 4, 2).is_contiguous()
    if name == "full":
        assert min(views.shape[-2:]) == 40 and max(views.shape[-2:]) == 40 * max(height, width) // min(height, width)
    elif name == "squeezed":
        assert views.shape[-2:] == (32, 40)
    else:
        assert views.shape[-2:] == (32, 32)
    assert torch.equal(frames, before)


def test_the_centre_is_that_of_validation() -> None:
    for height, width in ((48, 64), (64, 48), (41, 57)):
        frames = clip(height, width)
        expected = eval_transform(frames, VIEW)
        for name, place in (("center", 0), ("3crop", 1), ("5crop", 4), ("10crop", 4)):
            assert torch.equal(make_views(name, frames, VIEW)[place], expected)


def test_three_crops_stand_along_the_long_side() -> None:
    wide = clip(40, 71)  # resized to itself: its short side is 40
    left, centre, right = make_views("3crop", wide, VIEW)
    assert torch.equal(left, wide[..., 4:36, :32]) and torch.equal(right, wide[..., 4:36, 39:])
    assert torch.equal(centre, wide[..., 4:36, 19:51])
    tall = clip(71, 40)
    top, _, bottom = make_views("3crop", tall, VIEW)
    assert torch.equal(top, tall[..., :32, 4:36]) and torch.equal(bottom, tall[..., 39:, 4:36])
    full = ViewConfig(size=40, short_side=40)
    assert torch.equal(make_views("3crop", wide, full)[2], wide[..., 31:])  # as high as the frame


def test_ten_crops_are_torchvisions() -> None:
    frames = clip(40, 72)  # spare room is even: no question of rounding
    expected = torch.stack(list(F.ten_crop(frames, [32, 32])))
    # It mirrors before it cuts, so that its second top left is our top right, mirrored.
    assert torch.equal(make_views("10crop", frames, VIEW), expected[[0, 1, 2, 3, 4, 6, 5, 8, 7, 9]])
    assert torch.equal(make_views("5crop", frames, VIEW), expected[:5])


def test_the_whole_frame_is_resized_only() -> None:
    frames = clip(80, 120)
    whole = make_views("full", frames, VIEW)
    assert whole.shape == (1, 3, 3, 40, 60)
    assert torch.equal(whole[0], F.resize(frames, [40, 60], antialias=True))
    assert torch.equal(make_views("full", clip(40, 60), VIEW)[0], clip(40, 60))


def test_mirrored_flow_moves_the_other_way() -> None:
    frames = clip(40, 60, channels=10)
    views = make_views("10crop", frames, VIEW, flow=True)
    assert views.permute(0, 1, 3, 4, 2).is_contiguous()
    for plain, mirrored in zip(views[:5], views[5:], strict=True):
        assert torch.equal(mirrored, mirror_flow(plain))


def test_scores_of_mirrored_views_go_to_the_labels_they_are_about() -> None:
    rule = flip_rule(["left", "up", "right"])
    scores = torch.rand(2, 10, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.empty(2, 3)
    for n in range(2):
        for label, mirrored in ((0, 2), (1, 1), (2, 0)):
            expected[n, label] = (scores[n, :5, label].sum() + scores[n, 5:, mirrored].sum()) / 10
    assert torch.allclose(average_views("10crop", scores, rule), expected)
    assert torch.allclose(average_views("10crop", scores[0], rule), expected[0])
    assert torch.allclose(average_views("5crop", scores[:, :5], rule), scores[:, :5].mean(1))
    assert torch.equal(average_views("full", scores[:, :1], rule), scores[:, 0])


def test_a_model_that_sees_directions_is_right_in_mirrored_views_as_well() -> None:
    rule = flip_rule(["left", "right"])
    bright_on_the_left = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    bright_on_the_left[..., :20] = 255
    views = make_views("10crop", bright_on_the_left, VIEW).float()
    sides = torch.stack([views[..., :16].mean((1, 2, 3, 4)), views[..., 16:].mean((1, 2, 3, 4))], dim=1)
    left, right = average_views("10crop", sides / 255, rule).tolist()
    assert left > 0.85 and right < 0.15
    assert sides.mean(0)[0] == pytest.approx(sides.mean(0)[1])  # without the swap it is a coin flip


def test_what_can_not_be_averaged_is_refused() -> None:
    scores = torch.rand(10, 2)
    with pytest.raises(UsageError, match="mirror image of 'left'; use 5crop"):
        average_views("10crop", scores, flip_rule(["left", "up"]))
    with pytest.raises(UsageError, match="not those of 3 views"):
        average_views("3crop", scores, flip_rule(["a", "b"]))
    with pytest.raises(UsageError, match="2 classes don't fit a flip rule of 3"):
        average_views("10crop", scores, flip_rule(["a", "b", "c"]))
    with pytest.raises(UsageError, match="'4crop' are unknown; use center, 3crop"):
        make_views("4crop", clip(40, 40), VIEW)
