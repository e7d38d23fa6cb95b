"""MixUp and CutMix: shares of pixels and of labels, against per-clip references and torchvision's CutMix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision import tv_tensors
from torchvision.transforms import v2

from vireo.data.mixing import cutmix_box, mix_clips
from vireo.errors import UsageError

K = 5


def batch(n: int = 4, frames: int = 3, height: int = 16, width: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random (N, T, 3, H, W) uint8 in N, T, H, W, 3 memory, and labels."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (n, frames, height, width, 3), dtype=torch.uint8, generator=generator)
    return clips.permute(0, 1, 4, 2, 3), torch.randint(0, K, (n,), generator=generator)


def mix(clips: Tensor, labels: Tensor, seed: int, *, mixup: float = 0.0, cutmix: float = 0.0) -> tuple[Tensor, Tensor]:
    """With a generator of its own."""
    rng = np.random.default_rng(seed)
    return mix_clips(clips, labels, num_classes=K, mixup=mixup, cutmix=cutmix, rng=rng)


def one_hot(label: int) -> Tensor:
    """(K,)."""
    return torch.tensor([float(k == label) for k in range(K)])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_blends_pixels_and_labels_by_one_share(alpha: float) -> None:
    clips, labels = batch()
    shares = []
    for seed in range(10):
        mixed, targets = mix(clips, labels, seed, mixup=alpha)
        share = np.random.default_rng(seed).beta(alpha, alpha)
        shares.append(share)
        for i in range(4):
            first, second = clips[i].double().numpy(), clips[i - 1].double().numpy()
            assert np.abs(share * first + (1 - share) * second - mixed[i].numpy()).max() <= 0.501
            expected = share * one_hot(int(labels[i])) + (1 - share) * one_hot(int(labels[i - 1]))
            assert torch.allclose(targets[i], expected.float(), atol=1e-6)
    assert max(shares) - min(shares) > 0.2


def test_cutmix_takes_one_box_in_all_frames_and_counts_its_pixels() -> None:
    clips, labels = batch()
    same = torch.tensor([0, 1, 2, 3])
    sizes = set()
    for seed in range(30):
        mixed, targets = mix(clips, same, seed, cutmix=1.0)
        kept = (mixed == clips).all(dim=2)  # (N, T, H, W)
        for i in range(4):
            taken = ~kept[i, 0]
            assert torch.equal(~kept[i], taken.expand(3, -1, -1))
            rows, columns = taken.any(1).nonzero().flatten(), taken.any(0).nonzero().flatten()
            assert int(taken.sum()) == len(rows) * len(columns)  # a box
            assert torch.equal(mixed[i][..., taken], clips[i - 1][..., taken])
            share = 1 - float(taken.sum()) / taken.numel()
            assert torch.allclose(targets[i], share * one_hot(i) + (1 - share) * one_hot((i - 1) % 4), atol=1e-6)
            sizes.add(int(taken.sum()))
    assert len(sizes) > 10 and labels.shape == (4,)


def test_cutmix_is_torchvisions_given_the_same_box() -> None:
    clips, labels = batch(seed=1)
    transform = v2.CutMix(alpha=1.0, num_classes=K)
    for seed in range(10):
        mixed, targets = mix(clips, labels, seed, cutmix=0.7)
        rng = np.random.default_rng(seed)
        top, left, bottom, right = cutmix_box(16, 24, rng.beta(0.7, 0.7), rng)
        share = 1 - (bottom - top) * (right - left) / (16 * 24)
        params = {"labels": labels, "batch_size": 4, "box": (left, top, right, bottom), "lam_adjusted": share}
        assert torch.equal(transform.transform(tv_tensors.Video(clips), params).as_subclass(Tensor), mixed)
        assert torch.allclose(transform.transform(labels, params), targets, atol=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_sum_to_one_and_inputs_stay(mixup: float, cutmix: float) -> None:
    clips, labels = batch(n=3)
    before = clips.clone()
    for seed in range(20):
        mixed, targets = mix(clips, labels, seed, mixup=mixup, cutmix=cutmix)
        assert mixed.shape == clips.shape and mixed.dtype == torch.uint8 and mixed.stride() == clips.stride()
        assert targets.shape == (3, K) and targets.dtype == torch.float32
        assert torch.allclose(targets.sum(1), torch.ones(3)) and bool((targets >= 0).all())
    assert torch.equal(clips, before)


def test_with_both_a_coin_decides() -> None:
    clips, labels = batch()
    results = [mix(clips, labels, seed, mixup=5.0, cutmix=5.0)[0] for seed in range(100)]
    untouched = [float((mixed == clips).all(dim=2).float().mean()) for mixed in results]
    cut = sum(share > 0.1 for share in untouched)  # blended pixels hardly ever keep all three colours
    assert 30 < cut < 70


def test_the_generator_alone_decides() -> None:
    clips, labels = batch()
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        torch.manual_seed(0)
        first = mix(clips, labels, 7, **options)
        torch.manual_seed(1)
        again = mix(clips, labels, 7, **options)
        other = mix(clips, labels, 8, **options)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])


def test_without_mixing_nothing_is_touched() -> None:
    clips, labels = batch()
    rng = np.random.default_rng(0)
    mixed, same = mix_clips(clips, labels, num_classes=K, mixup=0.0, cutmix=0.0, rng=rng)
    assert mixed is clips and same is labels
    assert rng.random() == np.random.default_rng(0).random()


def test_one_clip_is_mixed_with_itself() -> None:
    clips, labels = batch(n=1)
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixed, targets = mix(clips, labels, 0, **options)
        assert torch.equal(mixed, clips) and torch.equal(targets[0], one_hot(int(labels[0])))


def test_stacked_flow_is_mixed_too() -> None:
    clips = torch.full((2, 2, 10, 16, 16), 128, dtype=torch.uint8)
    clips[1] = 228
    mixed, targets = mix(clips, torch.tensor([0, 1]), 3, mixup=1.0)
    share = float(targets[0, 0])
    assert torch.equal(mixed[0], torch.full_like(mixed[0], round(128 * share + 228 * (1 - share))))


def test_soft_targets_are_what_cross_entropy_takes() -> None:
    clips, labels = batch()
    _, targets = mix(clips, labels, 0, mixup=1.0)
    logits = torch.randn(4, K, generator=torch.Generator().manual_seed(0))
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(cross_entropy(logits, targets), expected)


@pytest.mark.parametrize("alpha", [-1.0, float("nan")])
def test_alphas_are_checked(alpha: float) -> None:
    clips, labels = batch()
    with pytest.raises(UsageError, match="mixup"):
        mix(clips, labels, 0, mixup=alpha)
    with pytest.raises(UsageError, match="cutmix"):
        mix(clips, labels, 0, cutmix=alpha)
