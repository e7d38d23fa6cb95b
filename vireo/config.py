"""Settings as frozen, keyword-only dataclasses; units stand in every field's docstring.

Each layer takes only the settings it needs (`ModelConfig`, `ViewConfig`, ...). `Settings` is all of them
together and what a recipe names, `TrainConfig` a run of them: flat, so that every field is one command line
option and one line of YAML.
This module imports nothing heavy: ``vireo --help`` reads it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from vireo.errors import UsageError

C = TypeVar("C")

RETIRED = {"partial_bn": "freeze_norms: partial in place of true, none in place of false"}
"""Settings that were, as old config.yaml files have them, and what has taken their place."""


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
    """segment: one frame from each of T equal parts of the video; dense: T frames of a window."""
    window: int = 64
    """Length of the window of dense sampling, frames. MFNet: 32, an interval of 2 for 16 frames."""
    views: Literal["center", "3crop", "5crop", "10crop", "full", "squeezed"] = "center"
    """Pictures of a clip whose scores `vireo eval` averages. squeezed: whole frames, size high, short_side wide."""
    clips: int = 1
    """Clips of a video whose scores `vireo eval` averages."""

    def __post_init__(self) -> None:
        _check(self.window >= 1, f"window is {self.window}; it must be at least 1 frame")
        views = ("center", "3crop", "5crop", "10crop", "full", "squeezed")
        _check(self.views in views, f"views is {self.views!r}; use {', '.join(views)}")
        _check(1 <= self.clips <= 1000, f"clips is {self.clips}; it must be from 1 to 1000")
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

    crop: Literal["multiscale", "resized", "random"] = "multiscale"
    """multiscale: sides from scales at one of 13 places, as in TSN; resized: any box of crop_area and crop_ratio;
    random: size pixels anywhere, of frames resized to a short side in short_range."""
    scales: tuple[float, ...] = (1.0, 0.875)
    """Multi-scale crop: sides as fractions of the short side. TSN and TSM: 1, 0.875, 0.75, 0.66."""
    crop_area: tuple[float, ...] = (0.08, 1.0)
    """Resized crop: smallest and largest share of the frame's area."""
    crop_ratio: tuple[float, ...] = (0.75, 1.333)
    """Resized crop: smallest and largest width over height."""
    short_range: tuple[int, ...] = (256, 320)
    """Random crop: smallest and largest short side before it, pixels, for the size given."""
    flip: Literal["auto", "on", "off"] = "auto"
    """Horizontal flip, half of the clips. auto: labels that differ in left/right, clockwise/ccw, ... are swapped."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation; 0 = none. Flow has none."""
    rand_augment: int = 0
    """Magnitude of RandAugment's two operations per clip, 1 to 30, often 7 or 9; 0 = none. Flow has none."""
    random_erasing: float = 0.0
    """Share of clips in which a random box, the same in all frames, is made grey (in flow: motionless)."""
    temporal_jitter: float = 0.0
    """Largest share of a clip that is cut away at random, at its ends, before frames are sampled from it."""
    mixup: float = 0.0
    """MixUp's alpha: clips of a batch are blended in pairs, by a share drawn from Beta(alpha, alpha); 0 = none."""
    cutmix: float = 0.0
    """CutMix's alpha: a box of each clip is taken from another; 0 = none. With mixup, each gets half of the steps."""

    def __post_init__(self) -> None:
        _check(
            self.crop in ("multiscale", "resized", "random"),
            f"crop is {self.crop!r}; use multiscale, resized or random",
        )
        _check(
            len(self.short_range) == 2 and 1 <= self.short_range[0] <= self.short_range[1],
            f"short_range is {self.short_range}; it must be two sizes in pixels, the smaller first",
        )
        _check(
            len(self.crop_area) == 2 and 0 < self.crop_area[0] <= self.crop_area[1] <= 1,
            f"crop_area is {self.crop_area}; it must be two numbers in (0, 1], the smaller first",
        )
        _check(
            len(self.crop_ratio) == 2 and 0 < self.crop_ratio[0] <= self.crop_ratio[1] < float("inf"),
            f"crop_ratio is {self.crop_ratio}; it must be two positive numbers, the smaller first",
        )
        _check(0 <= self.rand_augment <= 30, f"rand_augment is {self.rand_augment}; it must be from 0 to 30")
        _check(0 <= self.random_erasing <= 1, f"random_erasing is {self.random_erasing}; it must be in [0, 1]")
        _check(0 <= self.temporal_jitter < 1, f"temporal_jitter is {self.temporal_jitter}; it must be in [0, 1)")
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            _check(0 <= alpha <= 100, f"{name} is {alpha}; it must be from 0 to 100")
        _check(
            len(self.scales) > 0 and all(0 < s <= 1 for s in self.scales),
            f"scales are {self.scales}; each must be in (0, 1]",
        )
        _check(self.flip in ("auto", "on", "off"), f"flip is {self.flip!r}; use auto, on or off")
        _check(0 <= self.color_jitter < 1, f"color_jitter is {self.color_jitter}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How clips are read, and what happens when some can't be."""

    decoder: Literal["auto", "pyav", "torchcodec"] = "auto"
    """auto: PyAV, the faster one; torchcodec: TorchCodec for the videos of which both give the same frames."""
    decode: Literal["exact", "keyframe"] = "exact"
    """exact: the frames that decoding the whole video gives; keyframe: the keyframes nearest to them."""
    on_error: Literal["skip", "fail"] = "skip"
    """What a clip that can't be read (tried twice) does. skip: it is counted and named; fail: it ends the run."""
    max_failed: str = "10%"
    """Most clips of a part that may fail before the run stops: a share such as 1%, then two always may, or a number."""
    decode_timeout: float = 60.0
    """Seconds after which the process that decodes a clip is taken for stuck and replaced; 0 = none."""

    def __post_init__(self) -> None:
        _check(
            self.decoder in ("auto", "pyav", "torchcodec"),
            f"decoder is {self.decoder!r}; use auto, pyav or torchcodec",
        )
        _check(self.decode in ("exact", "keyframe"), f"decode is {self.decode!r}; use exact or keyframe")
        _check(self.on_error in ("skip", "fail"), f"on_error is {self.on_error!r}; use skip or fail")
        self.allowed_failures(0)
        _check(
            0 <= self.decode_timeout < float("inf"),
            f"decode_timeout is {self.decode_timeout}; it must be positive, or 0 for no limit",
        )

    def allowed_failures(self, clips: int) -> int:
        """How many of so many clips may fail.

        Of a share at least two may: in a small set that is more than the share, and no reason to stop.
        """
        match = re.fullmatch(r"(\d{1,18})|(\d{1,3}(?:\.\d*)?) ?%", self.max_failed.strip())
        _check(
            match is not None and float(match[2] or 0) <= 100,
            f"max_failed is {self.max_failed!r}; give a share of the clips such as 1%, or a number of clips",
        )
        assert match is not None
        if self.on_error == "fail":
            return 0
        if match[1]:
            return int(match[1])
        share = float(match[2]) / 100
        return max(2, int(clips * share)) if share else 0


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and schedule."""

    optimizer: Literal["sgd", "adamw", "lamb"] = "adamw"
    """adamw; sgd with momentum 0.9 (the papers'); lamb, for large batches."""
    lr: float = 1e-3
    """Highest learning rate, for batches of base_batch_size clips."""
    base_batch_size: int = 0
    """Batch size that lr is meant for: lr is multiplied by batch_size / base_batch_size. 0: it is meant for the batch
    size given."""
    weight_decay: float = 0.05
    """Weight decay of convolution and linear weights (norms and biases have none)."""
    head_lr_scale: float = 0.3
    """Learning rate of the classifier's weights, times lr (their biases: twice that). TSN and TSM: 5."""
    schedule: Literal["cosine", "steps", "one_cycle"] = "cosine"
    """cosine: down to 0; steps: ×0.1 after each of lr_steps; one_cycle: up from lr / 25 during warmup_epochs, then
    down to lr / 250000, both along a cosine."""
    lr_steps: tuple[float, ...] = (0.6, 0.8, 0.9)
    """Where the step schedule falls, as fractions of the epochs (the papers' 30, 40, 45 of 50)."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up from a tenth of lr. Of one_cycle: its rise; 0 = 30 % of the epochs."""
    clip_grad: float = 20.0
    """Largest norm of all gradients together; 0 = no clipping."""
    freeze_norms: Literal["none", "partial", "all"] = "none"
    """Batch norms that keep their statistics and weights. partial: all of the backbone but the first, as TSN on UCF101
    and HMDB51; all: every one of the network."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    ema_decay: float = 0.0
    """Decay of the moving average of weights that is evaluated and saved; 0 = none."""

    def __post_init__(self) -> None:
        _check(self.optimizer in ("sgd", "adamw", "lamb"), f"optimizer is {self.optimizer!r}; use sgd, adamw or lamb")
        schedules = ("cosine", "steps", "one_cycle")
        _check(self.schedule in schedules, f"schedule is {self.schedule!r}; use {', '.join(schedules)}")
        _check(
            self.freeze_norms in ("none", "partial", "all"),
            f"freeze_norms is {self.freeze_norms!r}; use none, partial or all",
        )
        _check(self.lr > 0, f"lr is {self.lr}; it must be positive")
        _check(
            self.base_batch_size >= 0,
            f"base_batch_size is {self.base_batch_size}; it must be positive, or 0 where lr is meant for batch_size",
        )
        _check(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; it can't be negative")
        _check(self.warmup_epochs >= 0, f"warmup_epochs is {self.warmup_epochs}; it can't be negative")
        _check(self.clip_grad >= 0, f"clip_grad is {self.clip_grad}; it can't be negative (0 = no clipping)")
        _check(0 <= self.label_smoothing < 1, f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        _check(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Settings(ModelConfig, ViewConfig, ReadConfig, AugmentConfig, OptimConfig):
    """Training; the defaults fine-tune on a small data set. What a recipe is: a run but for its data and folder."""

    pretrained: bool | str = True
    """true: timm's weights from the hub; a path: a .safetensors or .pth file; false: start from random weights.
    kinetics, in recipes: such a path must be given."""
    init: str = ""
    """A Vireo checkpoint to start from: its network (module, backbone, options, frames, pruning) and all weights."""
    reset_head: bool = False
    """With init: start the classifier anew, for other classes than the checkpoint's."""
    teacher: str = ""
    """A Vireo checkpoint whose answers to each clip are learnt beside its label (distillation). It must know all
    classes of the data, and take clips of the same modality and number of frames."""
    teacher_weight: float = 0.5
    """Share of the loss that is the teacher's, in (0, 1]; 1: labels don't count."""
    teacher_temperature: float = 2.0
    """Temperature at which both answers are compared: above 1, what the teacher holds for unlikely counts more."""
    epochs: int = 20
    """Passes over the training clips."""
    batch_size: int = 8
    """Clips per step, of all devices together: two devices take 4 each of 8."""
    class_balance: Literal["none", "sampling", "loss"] = "none"
    """Where classes have unequal numbers of clips. sampling: each class is drawn equally often, so clips of rare ones
    repeat; loss: each clip counts in inverse proportion to the clips of its class."""
    accumulate: int = 1
    """Parts in which a device's clips of a step are computed, one after the other, where memory is short."""
    grad_checkpointing: bool = False
    """Compute the backbone's blocks twice instead of keeping what is inside them: less memory, about a third more
    time."""
    val_fraction: float = 0.2
    """Share of clips of each class set aside for validation, where the data names no split."""
    seed: int = 0
    """Seed of the split, the initial weights, the order of clips and their augmentation."""
    workers: int = -1
    """Processes that decode, of each device; -1 = one per core, at most 8, shared by a machine's devices; 0 = none."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto: bf16-mixed where the processor or GPU computes in bf16, else 32-true."""
    accelerator: str = "auto"
    """Lightning Fabric's accelerator: auto, cpu, cuda, mps."""
    devices: int = 1
    """Devices of each machine that train together, a process each; torchrun and srun must start as many."""
    num_nodes: int = 1
    """Machines that train together; all must see the run's folder and the clips."""
    strategy: Literal["auto", "ddp"] = "auto"
    """Lightning Fabric's strategy; auto: ddp where there are several devices."""
    sync_bn: bool = False
    """Batch norm over the clips of all devices, not of each alone; GPUs only."""
    compile: bool = False
    """Compile the network with torch.compile: slow to start, then faster."""
    eval_every: int = 1
    """Epochs between validations (the last epoch is always validated)."""
    patience: int = 0
    """Epochs without a higher validation top-1 after which the run ends; 0 = none, all epochs are trained."""
    save_every: int = 0
    """Steps after which the run is saved within an epoch; 0 = at the ends of epochs only."""
    keep_last: int = 1
    """Newest checkpoints kept beside the best: last.safetensors, and with 2 or more also step-N.safetensors."""

    def __post_init__(self) -> None:
        for part in (ModelConfig, ViewConfig, ReadConfig, AugmentConfig, OptimConfig):
            part.__post_init__(self)
        _check(
            self.crop != "random" or self.short_range[0] >= self.size,
            f"short_range is {self.short_range}; a crop of size {self.size} needs short sides of at least that",
        )
        _check(self.seed >= 0, f"seed is {self.seed}; it can't be negative")
        _check(self.pretrained != "", "pretrained is empty; give true, false or the path of a weights file")
        _check(
            0 < self.teacher_weight <= 1,
            f"teacher_weight is {self.teacher_weight}; it must be above 0 and at most 1",
        )
        _check(
            0.1 <= self.teacher_temperature <= 100,
            f"teacher_temperature is {self.teacher_temperature}; it must be from 0.1 to 100",
        )
        _check(self.epochs >= 1, f"epochs is {self.epochs}; it must be at least 1")
        _check(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        _check(
            self.class_balance in ("none", "sampling", "loss"),
            f"class_balance is {self.class_balance!r}; use none, sampling or loss",
        )
        _check(0 < self.val_fraction < 1, f"val_fraction is {self.val_fraction}; it must lie between 0 and 1")
        _check(self.workers >= -1, f"workers is {self.workers}; it must be -1, 0 or more")
        _check(self.eval_every >= 1, f"eval_every is {self.eval_every}; it must be at least 1")
        for name in ("accumulate", "devices", "num_nodes", "keep_last"):
            _check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("patience", "save_every"):
            _check(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be 0 (none) or more")
        _check(self.strategy in ("auto", "ddp"), f"strategy is {self.strategy!r}; use auto or ddp")
        parts = self.devices * self.num_nodes
        _check(
            self.batch_size % parts == 0,
            f"batch_size is {self.batch_size}; it must be a multiple of devices × num_nodes, which is {parts}",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """A training run; its data and folder, and all settings."""

    data: str
    """A folder with one subfolder per class, a CSV with the header path,label[,split][,group][,start,end], or
    FORMAT:PATH: list, ssv1, ssv2, jester, kinetics400, mini_kinetics200, ucf101 (ucf101-split2, …), hmdb51.
    With modality flow the clips are folders of flow images, or .npy arrays."""
    out: str
    """Folder of the run: checkpoints, logs, config.yaml. Made if missing."""
    recipe: str = "finetune"
    """Whose settings are the defaults of all others on the command line; `vireo recipes` lists them. Here a note:
    `vireo.recipes.configure` fills the settings in."""
    resume: bool = False
    """Go on from the run's last checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            not self.reset_head or self.init != "",
            "reset_head starts the classifier of a checkpoint anew; give that checkpoint as init",
        )
        _check(
            self.pretrained != "kinetics" or self.init != "" or self.resume,
            f"recipe {self.recipe} starts from weights trained on Kinetics; give their file as pretrained "
            "(true: ImageNet's weights instead)",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A config's fields as plain data that JSON and YAML can hold (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of `to_dict`; fields of a newer or older version that `kind` lacks are an error.

    Raises:
        UsageError: an unknown field (the message names the nearest one, or what has taken its place), or an
            ill-valued one.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]  # kind is a dataclass
    extra = sorted(map(str, set(values) - set(known)))
    if extra:
        told = ", ".join(_unknown(name[:60], known) for name in extra[:5])
        more = f" and {len(extra) - 5} more" if len(extra) > 5 else ""
        raise UsageError(f"{kind.__name__} has no field {told}{more}")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise UsageError(f"{kind.__name__}: {error}") from None


def _unknown(name: str, known: Sequence[str]) -> str:
    if name in RETIRED:
        return f"{name!r} (use {RETIRED[name]})"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.55)
    return f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def part(kind: type[C], whole: Any) -> C:
    """The fields of `kind` out of a larger config, e.g. ``part(ViewConfig, train_config)``."""
    return kind(**{f.name: getattr(whole, f.name) for f in fields(kind)})  # type: ignore[arg-type]
