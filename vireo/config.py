"""Settings as frozen, keyword-only dataclasses; units stand in every field's docstring.

Each layer takes only the settings it needs (`ModelConfig`, `ViewConfig`, ...). `TrainConfig` is all
of them together, flat, so that every field is one command line option and one line of YAML.
This module imports nothing heavy: ``vireo --help`` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from vireo.errors import UsageError

C = TypeVar("C")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network: a temporal module on a 2D backbone."""

    temporal: str = "tei"
    """Temporal module, or several joined by +, e.g. tsm+tfdem; `vireo models` lists them."""
    backbone: str = "mobilenetv2_100"
    """2D backbone, a timm name; `vireo models` lists the families that are tested."""
    num_frames: int = 8
    """T, frames per clip."""
    modality: Literal["rgb", "flow"] = "rgb"
    """rgb: frames; flow: stacked optical flow, the horizontal and vertical part of flow_fields successive fields."""
    flow_fields: int = 5
    """Flow fields stacked at each of the T positions: 2 × flow_fields input channels."""
    dropout: float = 0.2
    """Probability of dropping a feature before the classifier."""
    temporal_options: dict[str, Any] = field(default_factory=dict)
    """Options of the temporal module, e.g. {"stages": [4, 5]}."""
    backbone_options: dict[str, Any] = field(default_factory=dict)
    """Extra keyword arguments for timm's constructor, e.g. {"drop_path_rate": 0.1}."""
    mean: tuple[float, ...] | None = None
    """Channel means of the input, of [0, 1]; none: those that the pretrained weights (or timm) state."""
    std: tuple[float, ...] | None = None
    """Channel deviations of the input, of [0, 1]; none: those that the pretrained weights (or timm) state."""
    pruned: dict[str, Any] = field(default_factory=dict, metadata={"hidden": True})
    """What `vireo prune` took away, by site: kept outputs and merged inputs. Not for writing by hand."""

    def __post_init__(self) -> None:
        _check(self.modality in ("rgb", "flow"), f"modality is {self.modality!r}; use rgb or flow")
        _check(1 <= self.flow_fields <= 64, f"flow_fields is {self.flow_fields}; it must be from 1 to 64")
        _check(self.std is None or all(s > 0 for s in self.std), f"std is {self.std}; each must be positive")
        _check(self.num_frames >= 1, f"num_frames is {self.num_frames}; it must be at least 1")
        _check(0 <= self.dropout < 1, f"dropout is {self.dropout}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How a video becomes the model's input; stored in the checkpoint, so predict needs nothing else."""

    size: int = 224
    """Height and width of the model's input, pixels."""
    short_side: int = 0
    """Short side to which frames are resized before the crop, pixels; 0 = size × 256/224."""
    sampling: Literal["segment", "dense"] = "segment"
    """segment: one frame from each of T equal parts of the video; dense: T frames of a 64-frame window."""

    def __post_init__(self) -> None:
        _check(self.size >= 16, f"size is {self.size}; it must be at least 16 pixels")
        _check(
            self.short_side == 0 or self.short_side >= self.size,
            f"short_side is {self.short_side}; it must be 0 or at least size ({self.size})",
        )
        _check(self.sampling in ("segment", "dense"), f"sampling is {self.sampling!r}; use segment or dense")

    @property
    def resize_to(self) -> int:
        """Short side before the crop, pixels."""
        return self.short_side or round(self.size * 256 / 224)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training clips are varied; the same for all frames of a clip."""

    scales: tuple[float, ...] = (1.0, 0.875)
    """Multi-scale crop: sides as fractions of the short side. TSN and TSM: 1, 0.875, 0.75, 0.66."""
    flip: Literal["auto", "on", "off"] = "auto"
    """Horizontal flip, half of the clips. auto: off where label texts name a direction (left, clockwise, ...)."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation; 0 = none. Flow has none."""

    def __post_init__(self) -> None:
        _check(
            len(self.scales) > 0 and all(0 < s <= 1 for s in self.scales),
            f"scales are {self.scales}; each must be in (0, 1]",
        )
        _check(self.flip in ("auto", "on", "off"), f"flip is {self.flip!r}; use auto, on or off")
        _check(0 <= self.color_jitter < 1, f"color_jitter is {self.color_jitter}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and schedule."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """adamw, or sgd with momentum 0.9 (the papers')."""
    lr: float = 1e-3
    """Highest learning rate, for the batch size given."""
    weight_decay: float = 0.05
    """Weight decay of convolution and linear weights (norms and biases have none)."""
    head_lr_scale: float = 0.3
    """Learning rate of the classifier's weights, times lr (their biases: twice that). TSN and TSM: 5."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """cosine: down to 0; steps: ×0.1 after each of lr_steps."""
    lr_steps: tuple[float, ...] = (0.6, 0.8, 0.9)
    """Where the step schedule falls, as fractions of the epochs (the papers' 30, 40, 45 of 50)."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up from a tenth of lr."""
    clip_grad: float = 20.0
    """Largest norm of all gradients together; 0 = no clipping."""
    partial_bn: bool = False
    """Freeze every batch norm of the backbone but the first (for fine-tuning on UCF101, HMDB51)."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    ema_decay: float = 0.0
    """Decay of the moving average of weights that is evaluated and saved; 0 = none."""

    def __post_init__(self) -> None:
        _check(self.optimizer in ("sgd", "adamw"), f"optimizer is {self.optimizer!r}; use sgd or adamw")
        _check(self.schedule in ("cosine", "steps"), f"schedule is {self.schedule!r}; use cosine or steps")
        _check(self.lr > 0, f"lr is {self.lr}; it must be positive")
        _check(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; it can't be negative")
        _check(self.warmup_epochs >= 0, f"warmup_epochs is {self.warmup_epochs}; it can't be negative")
        _check(self.clip_grad >= 0, f"clip_grad is {self.clip_grad}; it can't be negative (0 = no clipping)")
        _check(0 <= self.label_smoothing < 1, f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        _check(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ModelConfig, ViewConfig, AugmentConfig, OptimConfig):
    """Everything a training run needs; the defaults fine-tune on a small data set."""

    data: str
    """A folder with one subfolder per class, or a CSV with the header path,label[,split][,group][,start,end].
    With modality flow the clips are folders of flow images, or .npy arrays."""
    out: str
    """Folder of the run: checkpoints, logs, config.yaml. Made if missing."""
    pretrained: bool | str = True
    """true: timm's weights from the hub; a path: a .safetensors or .pth file; false: start from random weights."""
    init: str = ""
    """A Vireo checkpoint to start from: its network (module, backbone, options, frames, pruning) and all weights."""
    epochs: int = 20
    """Passes over the training clips."""
    batch_size: int = 8
    """Clips per step."""
    val_fraction: float = 0.2
    """Share of clips of each class set aside for validation, where the data names no split."""
    seed: int = 0
    """Seed of the split, the initial weights, the order of clips and their augmentation."""
    workers: int = -1
    """Processes that decode; -1 = one per core, at most 8; 0 = none."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto: bf16-mixed where the processor or GPU computes in bf16, else 32-true."""
    accelerator: str = "auto"
    """Lightning Fabric's accelerator: auto, cpu, cuda, mps."""
    eval_every: int = 1
    """Epochs between validations (the last epoch is always validated)."""
    resume: bool = False
    """Go on from the run's last checkpoint."""

    def __post_init__(self) -> None:
        for part in (ModelConfig, ViewConfig, AugmentConfig, OptimConfig):
            part.__post_init__(self)
        _check(self.seed >= 0, f"seed is {self.seed}; it can't be negative")
        _check(self.pretrained != "", "pretrained is empty; give true, false or the path of a weights file")
        _check(self.epochs >= 1, f"epochs is {self.epochs}; it must be at least 1")
        _check(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        _check(0 < self.val_fraction < 1, f"val_fraction is {self.val_fraction}; it must lie between 0 and 1")
        _check(self.workers >= -1, f"workers is {self.workers}; it must be -1, 0 or more")
        _check(self.eval_every >= 1, f"eval_every is {self.eval_every}; it must be at least 1")


def to_dict(config: Any) -> dict[str, Any]:
    """A config's fields as plain data that JSON and YAML can hold (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of `to_dict`; fields of a newer or older version that `kind` lacks are an error.

    Raises:
        UsageError: an unknown or ill-valued field.
    """
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # kind is a dataclass
    extra = sorted(set(values) - known)
    if extra:
        raise UsageError(f"{kind.__name__} has no field {', '.join(map(repr, extra))}")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise UsageError(f"{kind.__name__}: {error}") from None


def part(kind: type[C], whole: Any) -> C:
    """The fields of `kind` out of a larger config, e.g. ``part(ViewConfig, train_config)``."""
    return kind(**{f.name: getattr(whole, f.name) for f in fields(kind)})  # type: ignore[arg-type]
