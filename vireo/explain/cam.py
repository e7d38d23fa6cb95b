"""Heat maps: where in which frame a network sees what speaks for a class.

Grad-CAM: Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-Based Localization", ICCV 2017 (arXiv:1610.02391). Grad-CAM++: Chattopadhay, Sarkar, Howlader,
Balasubramanian: "Grad-CAM++: Generalized Gradient-Based Visual Explanations for Deep Convolutional Networks",
WACV 2018 (arXiv:1710.11063). HiResCAM: Draelos, Carin: "Use HiResCAM instead of Grad-CAM for faithful explanations of
convolutional neural networks", 2020 (arXiv:2011.08891).

Of a layer's features A, (T, C, h, w) of a clip, and the gradient g = ∂y/∂A of a class's logit y:

    Grad-CAM     w[t,c] = mean over i, j of g[t,c,i,j]
    Grad-CAM++   w[t,c] = Σ_ij α · relu(g[t,c,i,j]),  α = g² / (2 g² + S · g³),  S = Σ_ij A[t,c,i,j]
    HiResCAM     w[t,c,i,j] = g[t,c,i,j]: the same as Grad-CAM behind the last stage, sharper in earlier ones
    heat[t,i,j] = relu(Σ_c w[t,c] · A[t,c,i,j]), enlarged to the clip's size, divided by the clip's highest value

What the papers leave open for video, and deviations:
1. A channel has a weight in every frame. Where the frames' features are averaged afterwards, as behind the last
   stage, it is the same in all of them; before that, a temporal module or a branch may read a channel with opposite
   signs in two frames, which one weight for both would cancel.
2. One scale for all frames of a clip: a frame is dark if it says little.
3. α is 1 / (2 + S · g), and counts where g > 0. With the papers' features, which have passed a ReLU, S is not
   negative; others, like those of ConvNeXt, could make the denominator vanish: S is the sum of what is positive.
4. A network that has pooled time (MFNet, C2D) has a heat map for fewer frames; it is enlarged along time as well.

Libraries for Grad-CAM take layers that give (N, C, H, W), some also (N, C, T, H, W), with one weight per clip and today
not in Grad-CAM++; time folded into the batch, or channels last, would have to be unfolded around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireo.backbones import flow_of
from vireo.errors import UnknownNameError, UsageError
from vireo.model import Recognizer, evaluating

Method = Literal["gradcam", "gradcam++", "hirescam"]
METHODS: dict[str, str] = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "hirescam": "HiResCAM"}
"""Names and how they are written."""
_ROUNDING = 1e-5  # of a float32 sum of up to some thousand terms, as a share of what their sizes add up to


class NoMapsError(UsageError):
    """A network that has no maps of features, and so no heat maps.

    Attributes:
        reason: the first half of the message.
    """

    def __init__(self, backbone: str) -> None:
        self.reason = f"{backbone} has no feature maps (or takes one size only)"
        super().__init__(
            f"{self.reason}: no heat maps of it; `vireo explain --what occlusion` shows which frames count"
        )


class Heat(NamedTuple):
    """What :func:`grad_cam` gives, for N clips of T frames."""

    maps: Tensor
    """(N, T, H, W) float32 in [0, 1], of the clips' size. Each clip's highest value is 1; all are 0 where nothing
    speaks for the class, and where what does is no more than rounding."""
    targets: Tensor
    """(N,) int64: the class that is explained."""
    logits: Tensor
    """(N, K)."""


def grad_cam(
    model: Recognizer,
    clips: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    *,
    method: Method = "gradcam",
    layer: str | None = None,
) -> Heat:
    """Where, in which frame, a model sees what speaks for a class.

    The model is run in evaluation mode and left as it was: modes, gradients, hooks. No weight's gradient is computed,
    and nothing is kept of the layers before the one looked at, so it costs less than a step of training.

    Args:
        model: on any backbone with feature maps.
        clips: (N, T, C, H, W) as the model takes them, on its device.
        target: the class to explain, one for all clips or one each; None: the one with the highest score.
        method: gradcam; gradcam++, which shows more of several objects of a class; or hirescam, for early layers.
        layer: path in the backbone of the layer whose output is looked at, e.g. ``layer3``; None: the last features
            before the pooling. Layers further ahead give finer maps. What a branch (kpsem, tfdem) reads before the
            layer does not show.

    Raises:
        UsageError: no such layer or class, or a layer whose output is no map or has no part in the score.
        NoMapsError: no layer is named, and none of the network's gives a map.
    """
    if method not in METHODS:
        raise UsageError(f"method is {method!r}; use one of {', '.join(METHODS)}")
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        clips = clips.clone() if clips.is_inference() else clips.detach()
        path, channels_last = _find_layer(model, clips, layer)
        features, logits = _run_from(model, model.backbone.get_submodule(path), clips)
        targets = choose_targets(target, logits)
        score = logits.gather(1, targets[:, None]).sum()
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score, features, allow_unused=True)
    if gradient is None:
        raise UsageError(f"layer {path!r} has no part in the scores; name one that has")
    maps, slopes = (_per_frame(x.detach(), len(clips), channels_last) for x in (features, gradient))
    if method == "hirescam":
        weights = slopes
    else:
        weights = (slopes.mean(dim=(3, 4)) if method == "gradcam" else _plus_plus(maps, slopes))[..., None, None]
    terms = weights * maps
    heat = terms.sum(dim=2).relu()
    # Where all terms of a sum cancel, what is left is rounding: scaled up it would be a picture of noise.
    heat = torch.where(heat > _ROUNDING * terms.abs().sum(dim=2), heat, 0.0)
    size = (clips.shape[1], *clips.shape[-2:])
    heat = F.interpolate(heat.unsqueeze(1), size=size, mode="trilinear", align_corners=False).squeeze(1)
    peak = heat.amax(dim=(1, 2, 3), keepdim=True)
    return Heat(maps=torch.where(peak > 0, heat / peak, 0.0), targets=targets, logits=logits.detach())


def _plus_plus(maps: Tensor, slopes: Tensor) -> Tensor:
    """Grad-CAM++'s weights: A and g, (N, T, C, h, w) each → (N, T, C)."""
    total = maps.relu().sum(dim=(3, 4), keepdim=True)
    positive = slopes.relu()
    return (positive / (2 + total * positive)).sum(dim=(3, 4))


def choose_targets(target: int | Sequence[int] | Tensor | None, logits: Tensor) -> Tensor:
    """(N,) int64 classes out of what :func:`grad_cam` takes.

    Raises:
        UsageError: not one class for all clips or one each, or no such class.
    """
    count, classes = logits.shape
    if target is None:
        return logits.detach().argmax(dim=1)
    targets = torch.as_tensor(target, device=logits.device)
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.shape not in ((), (1,), (count,)):
        raise UsageError(f"target is {target!r}; give the number of a class, or one for each of the {count} clips")
    if bool(((targets < 0) | (targets >= classes)).any()):
        raise UsageError(f"target is {target!r}; the classes are 0 to {classes - 1}")
    return targets.long().expand(count)


def _run_from(model: Recognizer, module: nn.Module, clips: Tensor) -> tuple[Tensor, Tensor]:
    """The module's output, from which on gradients are recorded, and the logits."""
    caught: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1].clone()  # what comes next may write into it

    # Parameters without gradients: the passes before and behind the layer record no more than they must.
    state = {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}
    hook = module.register_forward_hook(cut)
    try:
        logits: Tensor = torch.func.functional_call(model, state, (clips,))
    finally:
        hook.remove()
    if len(caught) != 1:
        raise UsageError(f"the layer runs {len(caught)} times in a pass; name one that runs once")
    return caught[0], logits


def _per_frame(x: Tensor, clips: int, channels_last: bool) -> Tensor:
    """Features as the layer gives them → (N, T', C, h, w) float32."""
    if x.ndim == 5:  # (N, C, T', h, w)
        return x.float().transpose(1, 2)
    x = torch.unflatten(x.float(), 0, (clips, -1))
    return x.permute(0, 1, 4, 2, 3) if channels_last else x


# --- which layer ------------------------------------------------------------------------------------------------------


def _find_layer(model: Recognizer, clips: Tensor, layer: str | None) -> tuple[str, bool]:
    """Path of the layer in the backbone, and whether it holds channels last."""
    backbone = model.backbone
    parts = flow_of(backbone)  # what they hand on is channels first
    if layer is None and parts:
        return parts[-1], False
    if layer in parts:
        return layer, False
    known = dict(backbone.named_modules())
    if layer is not None and (layer not in known or not layer):
        raise UnknownNameError("layer", layer, parts or [name for name, _ in backbone.named_children()])
    maps = _find_maps(model, clips)
    if layer is None:
        if not maps:
            raise NoMapsError(model.config.backbone)
        layer = list(maps)[-1]
    if layer not in maps:
        raise UsageError(
            f"the output of layer {layer!r} is no map of features"
            + (f"; these are: {', '.join(parts)}" if parts else f"; {list(maps)[-1]!r} gives one" if maps else "")
        )
    return layer, maps[layer]


def _find_maps(model: Recognizer, clips: Tensor) -> dict[str, bool]:
    """Layers whose outputs are maps, in the order in which they end, and whether they hold channels last.

    Space is what grows with the images: two runs on the meta device show it.
    """
    height, width = clips.shape[-2:]
    small, large = _shapes(model, clips, height, width), _shapes(model, clips, 2 * height, 2 * width)
    found: dict[str, bool] = {}
    for path, shape in small.items():
        other = large.get(path, ())
        grown = [axis for axis in range(len(shape)) if len(other) == len(shape) and shape[axis] != other[axis]]
        if (len(shape), grown) in ((4, [2, 3]), (5, [3, 4])):
            found[path] = False
        elif (len(shape), grown) == (4, [1, 2]):
            found[path] = True
    return found


def _shapes(model: Recognizer, clips: Tensor, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what the backbone's layers give, in the order in which they end; none if it can't take the size."""
    shapes: dict[str, tuple[int, ...]] = {}

    def hook_for(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[path] = tuple(output.shape)

        return hook

    meta = {k: torch.empty_like(v, device="meta") for k, v in (*model.named_parameters(), *model.named_buffers())}
    clip = torch.empty(*clips.shape[:3], height, width, device="meta")
    hooks = [m.register_forward_hook(hook_for(path)) for path, m in model.backbone.named_modules() if path]
    try:
        with torch.no_grad():
            torch.func.functional_call(model, meta, (clip,))
    except (RuntimeError, AssertionError, ValueError):  # networks for one size say so in many ways
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
