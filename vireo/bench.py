"""What networks cost: parameters and multiply-accumulates counted, figures of papers compared, time measured."""

from __future__ import annotations

import json as jsonlib
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vireo import progress
from vireo.checkpoint import load_checkpoint
from vireo.contracts import prepend
from vireo.devices import choose_device
from vireo.errors import UsageError
from vireo.model import Recognizer, count_macs, count_parameters, create_model
from vireo.papers import PUBLISHED, Network, Published
from vireo.provenance import processor
from vireo.surgery import apply_pruning
from vireo.temporal.tsm import TemporalShift
from vireo.timing import noise, time_in_turns

COUNTED = (
    "MACs are multiply-accumulates (what papers call FLOPs) of convolutions, linear layers and matrix products, by "
    "torch's own counter; norms, activations, pooling, shifts and gates aren't counted. 'With norms' adds 2 for every "
    "element that a norm puts out."
)
NORM_MACS = 2
"""Per element of a norm's output: a product and a sum. So counted, ResNet-50 takes 32.88 G for 8 frames."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


# ------------------------------------------------------------------------------------------------ complexity


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a network; `macs` per clip, norms not counted."""

    name: str
    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """Size and cost of one network, the cost per clip."""

    temporal: str
    backbone: str
    num_classes: int
    num_frames: int
    height: int
    """Of the frames, pixels."""
    width: int
    parameters: int
    """Trainable or not, classifier included; running statistics of norms don't count."""
    macs: int
    macs_with_norms: int
    pruned_layers: int
    parts: tuple[Part, ...]
    """They add up to the whole. Temporal modules: all that the network has more than its backbone, which is counted as
    it stands in the network: pruned, if it is."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "macs_per_frame": self.macs / self.num_frames, "counted": COUNTED}


def measure_complexity(model: Recognizer, size: tuple[int, int] = (224, 224)) -> Complexity:
    """Count a network's parameters and multiply-accumulates, on any device; nothing is computed.

    Args:
        model: its weights aren't touched.
        size: height and width of the frames, pixels.
    """
    whole = _count(model, size)
    plain = plain_network(model)
    _prune_as(model, plain)
    plain_cost = _count(plain, size)
    classifier = Part(name="classifier", parameters=count_parameters(model.classifier), macs=whole.classifier)
    branches = [
        Part(name=f"branch: {name}", parameters=count_parameters(branch), macs=whole.branches[name])
        for name, branch in model.branches.items()
    ]
    backbone = Part(
        name="backbone", parameters=count_parameters(plain.backbone), macs=plain_cost.macs - plain_cost.classifier
    )
    parameters = count_parameters(model)
    known = [backbone, *branches, classifier]
    modules = Part(
        name="temporal modules",
        parameters=parameters - sum(p.parameters for p in known),
        macs=whole.macs - sum(p.macs for p in known),
    )
    return Complexity(
        temporal=model.config.temporal,
        backbone=model.config.backbone,
        num_classes=model.num_classes,
        num_frames=model.num_frames,
        height=size[0],
        width=size[1],
        parameters=parameters,
        macs=whole.macs,
        macs_with_norms=whole.macs + NORM_MACS * whole.norm_elements,
        pruned_layers=len(model.config.pruned),
        parts=(backbone, modules, *branches, classifier),
    )


def plain_network(model: Recognizer, device: str = "meta") -> Recognizer:
    """A TSN on the same backbone, whole, with fresh weights; on the meta device with none."""
    config = model.config
    with torch.device(device):
        return create_model(
            "tsn",
            config.backbone,
            num_classes=model.num_classes,
            num_frames=config.num_frames,
            modality=config.modality,
            flow_fields=config.flow_fields,
            mean=config.mean,
            std=config.std,
            backbone_options=config.backbone_options,
        )


def _prune_as(model: Recognizer, plain: Recognizer) -> None:
    # Takes from a plain network what is missing in a pruned one. Pruning works on layers behind a shift, so
    # they get one that moves nothing and costs nothing.
    sites = tuple(site for site in model.sites if site.path in model.config.pruned)
    for site in sites:
        prepend(site, plain.backbone.get_submodule(site.path), TemporalShift(site.frames, fold=0))
    apply_pruning(plain.backbone, sites, model.config.pruned)


@dataclass(frozen=True, kw_only=True)
class _Operations:
    macs: int
    norm_elements: int
    classifier: int
    branches: Mapping[str, int]


def _count(model: Recognizer, size: tuple[int, int]) -> _Operations:
    with _counted_norms(model) as norms, FlopCounterMode(display=False) as counter:
        macs = count_macs(model, size)
    by_module = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    root = type(model).__name__
    return _Operations(
        macs=macs,
        norm_elements=sum(norms),
        classifier=by_module.get(f"{root}.classifier", 0),
        branches={name: by_module.get(f"{root}.branches.{name}", 0) for name in model.branches},
    )


@contextmanager
def _counted_norms(model: nn.Module) -> Iterator[list[int]]:
    elements: list[int] = []

    def hook(norm: nn.Module, inputs: Any, output: Tensor) -> None:
        elements.append(output.numel())

    hooks = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, _NORMS)]
    try:
        yield elements
    finally:
        for handle in hooks:
            handle.remove()


def complexity_command(
    *,
    temporal: str | None = None,
    backbone: str | None = None,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    modality: Literal["rgb", "flow"] | None = None,
    flow_fields: int | None = None,
    options: Mapping[str, Any] | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    json: bool = False,
) -> int:
    """Print parameters and multiply-accumulates of a network, part by part.

    Args:
        temporal: name of the temporal module; None: tei.
        backbone: name of the backbone; None: resnet50.
        checkpoint: count this one's network instead; all that describes the network is then its own.
        num_classes: K; None: 400.
        num_frames: T; None: 8.
        size: height and width of the frames, pixels; by default the checkpoint's, else 224 × 224.
        modality: None: rgb.
        flow_fields: of modality flow, stacked at each of the T positions; None: 5.
        options: of the temporal module.
        backbone_options: of the backbone.
        json: print JSON.

    Raises:
        VireoError: a network that can't be built, a file that is no checkpoint, or one with options that describe
            another network.
    """
    model, size = _network(
        "meta",
        checkpoint,
        size,
        temporal=temporal,
        backbone=backbone,
        num_classes=num_classes,
        num_frames=num_frames,
        modality=modality,
        flow_fields=flow_fields,
        options=options,
        backbone_options=backbone_options,
    )
    found = measure_complexity(model, size)
    if json:
        print(jsonlib.dumps(found.as_dict(), ensure_ascii=False))
    else:
        print_complexity(found, progress.make_console(highlight=False))
    return 0


def print_complexity(found: Complexity, console: Console) -> None:
    """One line per part, then the whole."""
    title = f"{found.temporal} on {found.backbone}"
    setting = f"  {found.num_classes} classes, {found.num_frames} frames of {found.height}×{found.width}"
    if found.pruned_layers:
        setting += f", {found.pruned_layers} layers pruned"
    console.print(Text.assemble((title, "bold"), (setting, "dim")), soft_wrap=True)
    table = _table("", "parameters", "share", "GMACs/clip", "GMACs/frame", "share", left=1)
    for part in found.parts:
        table.add_row(*_cost_cells(part.name, part.parameters, part.macs, found))
    table.add_section()
    table.add_row(*_cost_cells("whole", found.parameters, found.macs, found), style="bold")
    table.add_row(*_cost_cells("with norms", found.parameters, found.macs_with_norms, found), style="dim")
    console.print(table)
    console.print(Text(COUNTED, "dim"))


def _cost_cells(name: str, parameters: int, macs: int, found: Complexity) -> tuple[str, ...]:
    return (
        name,
        f"{parameters:,}",
        f"{100 * parameters / found.parameters:.1f} %",
        f"{macs / 1e9:.3f}",
        f"{macs / 1e9 / found.num_frames:.3f}",
        f"{100 * macs / found.macs:.1f} %",
    )


# ---------------------------------------------------------------------------------------------------- papers


@dataclass(frozen=True, kw_only=True)
class Ours:
    """What our networks of one published row have, in the row's own units."""

    parameters: float
    """Millions."""
    gmacs: float
    """Of what the row's figure is the cost of: a frame, a view or a video."""
    gmacs_with_norms: float


def papers_command(*, json: bool = False) -> int:
    """Print what the papers published beside what our networks have: sizes, cost, then accuracies."""
    measured = measure_published(PUBLISHED)
    if json:
        rows = [_published_dict(row, ours) for row, ours in zip(PUBLISHED, measured, strict=True)]
        print(jsonlib.dumps({"rows": rows, "counted": COUNTED}, ensure_ascii=False))
        return 0
    console = progress.make_console(highlight=False)
    pairs = list(zip(PUBLISHED, measured, strict=True))
    for paper in dict.fromkeys(row.paper for row in PUBLISHED):
        print_sizes(paper, [(row, ours) for row, ours in pairs if row.paper == paper], console)
    console.print(Text(f"{COUNTED} Differences are ours against the paper's figure as printed.\n", "dim"))
    for paper in dict.fromkeys(row.paper for row in PUBLISHED):
        print_accuracies(paper, [row for row in PUBLISHED if row.paper == paper], console)
    console.print(Text("Accuracies are the papers' own, for comparison with what you measure.", "dim"))
    return 0


def measure_published(rows: Sequence[Published]) -> list[Ours | None]:
    """Sizes of the networks of each row that prints one; None for the others, and where we build none."""
    wanted = [row for row in rows if row.networks and (row.parameters or row.gflops)]
    networks = {network.key: network for row in wanted for network in row.networks}
    found: dict[str, tuple[int, int, int]] = {}
    with progress.bar("count", len(networks), "networks") as advance:
        for key, network in networks.items():
            model = network.build()
            with _counted_norms(model) as norms:
                macs = count_macs(model, network.size)
            found[key] = count_parameters(model), macs, macs + NORM_MACS * sum(norms)
            advance(1)
    return [_sum(row, found) if row in wanted else None for row in rows]


def _sum(row: Published, found: Mapping[str, tuple[int, int, int]]) -> Ours:
    def giga(macs: int, network: Network) -> float:
        return macs / 1e9 * (row.views if row.per == "video" else 1) / (network.num_frames if row.per == "frame" else 1)

    counts = [(network, *found[network.key]) for network in row.networks]
    return Ours(
        parameters=sum(parameters for _, parameters, _, _ in counts) / 1e6,
        gmacs=sum(giga(macs, network) for network, _, macs, _ in counts),
        gmacs_with_norms=sum(giga(macs, network) for network, _, _, macs in counts),
    )


def agrees(ours: float, printed: str, times: int = 1) -> bool:
    """Whether a figure, rounded or cut off, may be printed so: less than one unit of the last digit, or 0.5 %, away.

    Args:
        ours: the figure.
        printed: as the paper has it.
        times: how often the paper added up a figure that it had rounded before.
    """
    unit = 10.0 ** -len(printed.partition(".")[2])
    return abs(ours - float(printed)) < max(unit * times, 0.005 * float(printed))


def print_sizes(paper: str, rows: Sequence[tuple[Published, Ours | None]], console: Console) -> None:
    """Parameters and cost of one paper's rows, ours beside them; notes below."""
    notes = _Notes()
    console.print(Text.assemble((paper, "bold"), ("  parameters in millions, cost in billions of MACs", "dim")))
    header = ("", "row", "frames", "params", "ours", "Δ", "GFLOPs", "ours", "Δ", "with norms", "Δ", "")
    table = _table(*header, left=2)
    for row, ours in rows:
        if not row.parameters and not row.gflops:
            continue
        parameters, gmacs, with_norms = (
            (None, None, None) if ours is None else (ours.parameters, ours.gmacs, ours.gmacs_with_norms)
        )
        cells = [Text(row.table, "dim"), Text(row.row), Text(row.frames)]
        cells += _compared(row.parameters, parameters, digits=3)
        times = row.views if row.per == "video" else 1
        cells += _compared(row.gflops, gmacs, digits=2, times=times)
        cells += _compared(row.gflops, with_norms, digits=2, times=times)[1:]
        missed = f"not reproduced: {row.not_reproduced}" if row.not_reproduced else ""
        table.add_row(*cells, notes.mark(missed, row.note, _unit(row), "" if row.networks else "not built here"))
    console.print(table)
    notes.print(console)


def _unit(row: Published) -> str:
    if not row.gflops or row.per == "view":
        return ""
    return "cost per frame" if row.per == "frame" else f"cost of all {row.views} views"


class _Notes:
    """Numbered notes under a table, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, *notes: str) -> Text:
        numbers = sorted(self._numbers.setdefault(note, len(self._numbers) + 1) for note in notes if note)
        return Text(" ".join(map(str, numbers)), "dim")

    def print(self, console: Console) -> None:
        for note, number in self._numbers.items():
            console.print(Text(f"  {number}  {note}", "yellow" if note.startswith("not reproduced") else "dim"))
        console.print()


def _compared(printed: str, ours: float | None, digits: int, times: int = 1) -> list[Text]:
    if not printed:
        return [Text(), Text(), Text()]
    if ours is None:
        return [Text(printed), Text("–", "dim"), Text()]
    difference = 100 * (ours / float(printed) - 1)
    style = "green" if agrees(ours, printed, times) else "yellow"
    return [Text(printed), Text(f"{ours:.{digits}f}"), Text(f"{difference:+.1f} %", style)]


def print_accuracies(paper: str, rows: Sequence[Published], console: Console) -> None:
    """Accuracies of one paper's rows, in per cent, and the times it measured; notes below."""
    notes = _Notes()
    console.print(Text.assemble((paper, "bold"), ("  accuracies, %", "dim")))
    timed = any(row.latency_ms for row in rows)
    times = ("ms", "videos/s") if timed else ()
    table = _table("", "row", "data set", "frames", "views", "top-1", "top-5", "test top-1", *times, "", left=3)
    for row in rows:
        if row.top1 is None and row.parameters:
            continue  # a row about sizes
        cells = [row.row, row.dataset, row.frames, str(row.views)]
        cells += [_number(value) for value in (row.top1, row.top5, row.test_top1)]
        if timed:
            cells += [_number(row.latency_ms), _number(row.videos_per_second)]
        table.add_row(Text(row.table, "dim"), *cells, notes.mark(row.note))
    console.print(table)
    notes.print(console)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value}"


def _published_dict(row: Published, ours: Ours | None) -> dict[str, Any]:
    return {**asdict(row), "ours": asdict(ours) if ours else None}


# ----------------------------------------------------------------------------------------------------- speed


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Times of one network at one batch size, of whole forward passes; loading isn't in them."""

    name: str
    batch_size: int
    seconds: tuple[float, ...] = field(repr=False)
    """One per repeat."""

    @property
    def median(self) -> float:
        """Seconds per batch."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and the 90th percentile, seconds per batch."""
        tenths = torch.tensor(self.seconds, dtype=torch.float64).quantile(torch.tensor([0.1, 0.9], dtype=torch.float64))
        return float(tenths[0]), float(tenths[1])

    @property
    def videos_per_second(self) -> float:
        """Clips per second, by the median."""
        return self.batch_size / self.median


def speed_command(
    *,
    temporal: str | None = None,
    backbone: str | None = None,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    modality: Literal["rgb", "flow"] | None = None,
    flow_fields: int | None = None,
    batch_sizes: Sequence[int] = (1, 16),
    device: str = "auto",
    precision: str = "float32",
    compile: bool = False,
    repeats: int = 20,
    options: Mapping[str, Any] | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    json: bool = False,
) -> int:
    """Time a network's forward pass, in turns with a TSN on the same backbone.

    Args:
        temporal: name of the temporal module; None: tei.
        backbone: name of the backbone; None: resnet50.
        checkpoint: time this one's network instead; all that describes the network is then its own.
        num_classes: K; None: 400.
        num_frames: T; None: 8.
        size: height and width of the frames, pixels; by default the checkpoint's, else 224 × 224.
        modality: None: rgb.
        flow_fields: of modality flow, stacked at each of the T positions; None: 5.
        batch_sizes: clips per batch; 1 gives the latency, a larger one the throughput.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``float32``, or ``bf16`` for autocast to bfloat16.
        compile: whether the networks are compiled first.
        repeats: times that each network is timed, at least 2; warm-up comes before.
        options: of the temporal module.
        backbone_options: of the backbone.
        json: print JSON.

    Raises:
        VireoError: a network that can't be built, a file that is no checkpoint, or one with options that describe
            another network; a device that isn't there.
    """
    if precision not in ("float32", "bf16"):
        raise UsageError(f"precision is {precision!r}; use float32 or bf16")
    if repeats < 2 or not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"repeats is {repeats} and batch_sizes {list(batch_sizes)}; it takes at least 2 and 1")
    target = choose_device(device)
    model, size = _network(
        "cpu",
        checkpoint,
        size,
        temporal=temporal,
        backbone=backbone,
        num_classes=num_classes,
        num_frames=num_frames,
        modality=modality,
        flow_fields=flow_fields,
        options=options,
        backbone_options=backbone_options,
    )
    speeds = measure_speed(
        model, size, batch_sizes=batch_sizes, device=target, precision=precision, compile=compile, repeats=repeats
    )
    setting = {
        "temporal": model.config.temporal,
        "backbone": model.config.backbone,
        "num_classes": model.num_classes,
        "num_frames": model.num_frames,
        "modality": model.config.modality,
        "height": size[0],
        "width": size[1],
        "precision": precision,
        "compiled": compile,
        "repeats": repeats,
        "machine": describe_machine(target),
    }
    if json:
        print(jsonlib.dumps({**setting, "results": speed_rows(speeds)}, ensure_ascii=False))
    else:
        print_speeds(speeds, setting, progress.make_console(highlight=False))
    return 0


def measure_speed(
    model: Recognizer,
    size: tuple[int, int],
    *,
    batch_sizes: Sequence[int] = (1, 16),
    device: torch.device,
    precision: str = "float32",
    compile: bool = False,
    repeats: int = 20,
) -> list[Speed]:
    """Times of a network and of a TSN on its backbone, taken in turns.

    The model ends on ``device``, in evaluation mode.

    Returns:
        For each batch size the network's and, unless it is itself a TSN, the TSN's.
    """
    name = model.config.temporal
    models = {name: model}
    if name != "tsn":
        models["tsn"] = plain_network(model, "cpu")
    runs = {n: forward_of(m.to(device).eval(), precision=precision, compile=compile) for n, m in models.items()}
    speeds: list[Speed] = []
    with progress.bar("time", len(batch_sizes) * repeats * len(models), "batches") as advance:
        for batch_size in batch_sizes:
            clips = random_clips(model, batch_size, size, device)
            calls = {n: _bound(run, clips) for n, run in runs.items()}
            times = time_in_turns(calls, repeats=repeats, device=device, done=advance)
            speeds += [Speed(name=n, batch_size=batch_size, seconds=tuple(times[n])) for n in models]
    return speeds


def _bound(run: Callable[[Tensor], Tensor], clips: Tensor) -> Callable[[], object]:
    return lambda: run(clips)


def forward_of(model: Recognizer, *, precision: str = "float32", compile: bool = False) -> Callable[[Tensor], Tensor]:
    """The forward pass alone, without gradients: clips to logits.

    Args:
        model: in evaluation mode, on the device of the clips.
        precision: ``float32`` or ``bf16``.
        compile: for every shape of clips anew. A network that doesn't compile whole is an error.
    """
    forward: Any = model
    if compile:
        # By default eight versions of one function are kept, and a ninth network would run uncompiled.
        torch._dynamo.config.recompile_limit = max(256, torch._dynamo.config.recompile_limit)
        forward = torch.compile(model, fullgraph=True, dynamic=False)

    @torch.inference_mode()
    def run(clips: Tensor) -> Tensor:
        with autocast(clips.device, precision):
            logits: Tensor = forward(clips)
        return logits

    return run


def autocast(device: torch.device, precision: str) -> Any:
    """A context that computes in bfloat16 where `precision` is bf16."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def random_clips(model: Recognizer, count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """(count, T, C, height, width) uint8 noise for a model, in memory as decoders give it: N, T, H, W, C."""
    return noise((count, model.num_frames, len(model.mean), *size), device)


def speed_rows(speeds: Sequence[Speed]) -> list[dict[str, Any]]:
    """Plain data, with each time's ratio to the TSN's (None if that wasn't timed)."""
    reference = {speed.batch_size: speed.median for speed in speeds if speed.name == "tsn"}
    rows = []
    for speed in speeds:
        low, high = speed.spread
        base = reference.get(speed.batch_size)
        rows.append(
            {
                "network": speed.name,
                "batch_size": speed.batch_size,
                "median_ms": 1e3 * speed.median,
                "p10_ms": 1e3 * low,
                "p90_ms": 1e3 * high,
                "videos_per_second": speed.videos_per_second,
                "ratio_to_tsn": None if base is None else speed.median / base,
            }
        )
    return rows


def print_speeds(speeds: Sequence[Speed], setting: Mapping[str, Any], console: Console) -> None:
    """One line per network and batch size."""
    title = f"{setting['temporal']} on {setting['backbone']}"
    about = (
        f"  {setting['num_frames']} frames of {setting['height']}×{setting['width']}, {setting['precision']}, "
        f"{'compiled' if setting['compiled'] else 'eager'}, {setting['repeats']} repeats in turns"
    )
    console.print(Text.assemble((title, "bold"), (about, "dim")), soft_wrap=True)
    console.print(Text(str(setting["machine"]), "dim"), soft_wrap=True)
    table = _table("network", "batch", "median ms", "p10–p90 ms", "videos/s", "time / TSN's", left=1)
    for row in speed_rows(speeds):
        table.add_row(
            row["network"],
            str(row["batch_size"]),
            f"{row['median_ms']:.1f}",
            f"{row['p10_ms']:.1f}–{row['p90_ms']:.1f}",
            f"{row['videos_per_second']:.1f}",
            "" if row["ratio_to_tsn"] is None else f"{row['ratio_to_tsn']:.3f}",
        )
    console.print(table)
    console.print(
        Text("Forward passes alone: clips lie on the device, no gradients. Latency is the time at batch 1.", "dim")
    )


def describe_machine(device: torch.device) -> str:
    """Processor, threads, GPU and version of torch, in one line."""
    parts = [f"{processor()} ({os.cpu_count()} cores, {torch.get_num_threads()} threads used)"]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    elif device.type != "cpu":
        parts.insert(0, device.type)
    return ", ".join([*parts, f"torch {torch.__version__}"])


# ---------------------------------------------------------------------------------------------------- shared


_DEFAULTS: Mapping[str, Any] = {"temporal": "tei", "backbone": "resnet50", "num_classes": 400}  # others: create_model's


def _network(
    device: str,
    checkpoint: Path | None,
    size: tuple[int, int] | None,
    *,
    options: Mapping[str, Any] | None,
    backbone_options: Mapping[str, Any] | None,
    **described: Any,
) -> tuple[Recognizer, tuple[int, int]]:
    # The network that a command is about, and the size of its frames.
    if size is not None and (len(size) != 2 or min(size) < 16):
        raise UsageError(f"size is {list(size)}; it takes a height and a width of at least 16 pixels")
    given = {name: value for name, value in described.items() if value is not None}
    if checkpoint is not None:
        named = [*given, *(["options"] if options else []), *(["backbone_options"] if backbone_options else [])]
        if named:
            shown = ", ".join(f"--{name.replace('_', '-')}" for name in named)
            raise UsageError(f"--checkpoint {checkpoint} is a whole network, which {shown} can't change; leave one out")
        loaded = load_checkpoint(checkpoint)
        return loaded.model, size or (loaded.view.size, loaded.view.size)
    if "flow_fields" in given and given.get("modality") != "flow":
        raise UsageError(f"--flow-fields {given['flow_fields']} is for --modality flow; frames of rgb have none")
    with torch.device(device):
        model = create_model(**{**_DEFAULTS, **given}, backbone_options=backbone_options, **(options or {}))
    return model, size or (224, 224)


def _table(*header: str, left: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=index >= left)
    return table
