"""Pruning: which similar kernels go, and what that saves.

Wu, Chiu: "Action Recognition Using Multi-Scale Temporal Shift Module and Temporal Feature Difference
Extraction Based on 2D CNN", Journal of Software Engineering and Applications 14, 2021, section 3.5. Written
from the paper's text; eq. numbers are its own.

Targets are the convolutions behind a temporal shift. With ratios of 1/10 of the channels (the text states none; the
published 22.4 M parameters come out with these):

    previous block                                        this block
    conv3 ──► norm ──(+)──► ReLU ──┬─► mean ──► shift ──► conv1 ──► norm ──► ReLU ──► conv2 ──► …
    its similar kernels say which  │   of C/10 channels   its similar kernels go, with their
    channels are averaged          │                      norm entries and conv2's inputs
                                   └─► shortcut: all C channels

What the paper leaves open, and deviations:
1. "Similar" are the ⌊C·ratio⌋ kernels nearest the layer's geometric median, the median itself included. Two
   inputs at least are averaged: where ⌊C·ratio⌋ < 2 the inputs stay.
2. The averaged channel stands where the first of its channels stood; its column of the weights is the sum of
   theirs, which changes nothing if they are equal. They are averaged before the shift, so its widths
   follow from C' = C − ⌊C·ratio⌋ + 1, and the shifted copies get fewer too.
3. Copies that were there before pruning keep their columns; where a border moves, a new copy starts as in
   a fresh network, with the mean of the kernel over its input channels.
4. Kernels are compared as they are, with the columns of MSTSM's copies. The shortcut is not pruned, and the
   block's input is the sum of the shortcut and of what the compared kernels give.
5. The producer of the first block's input is the stem's last convolution.
6. ResNet-50 with MSTSM and TFDEM has 22,486,626 parameters at 101 classes (paper: 22.4 M). The paper's
   GFLOPs, 3.6 of 4.0, are not reproduced.
"""

from __future__ import annotations

import copy
import json as jsonlib
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from vireo import progress
from vireo.backbones.timm_sites import BLOCKS
from vireo.checkpoint import load_checkpoint, save_checkpoint
from vireo.contracts import Site
from vireo.devices import choose_device
from vireo.errors import UsageError, writing
from vireo.model import Recognizer, count_macs, count_parameters, to_channels_last
from vireo.surgery import apply_pruning, count_pruned, prunable_sites
from vireo.timing import noise, time_in_turns

ROUNDS = 10
"""Clips timed with each model by `vireo prune`, in turns; the median counts."""


def prune(model: Recognizer, *, ratio_in: float = 0.1, ratio_out: float = 0.1) -> Recognizer:
    """A smaller copy of a model with temporal shifts; it should be fine-tuned.

    Args:
        model: with tsm, mstsm or mstsm_tfdem; stays as it is.
        ratio_in: share of the inputs of each shifted convolution that are averaged into one, in [0, 1).
        ratio_out: share of its kernels that go, in [0, 1).

    Returns:
        The pruned model, on the same device and in the same mode; its ``config`` says what was taken away.

    Raises:
        UsageError: a ratio out of range, a model without a temporal shift, with blocks that can't be pruned,
            or pruned already.
    """
    if model.config.pruned:
        raise UsageError("this model is pruned already; prune the one that it came from, with larger ratios")
    pruned = choose_channels(model.backbone, model.sites, ratio_in=ratio_in, ratio_out=ratio_out)
    smaller = copy.deepcopy(model)
    apply_pruning(smaller.backbone, smaller.sites, pruned)
    smaller.config = replace(model.config, pruned=pruned)
    return to_channels_last(smaller)


def choose_channels(
    network: nn.Module, sites: Sequence[Site], *, ratio_in: float, ratio_out: float
) -> dict[str, dict[str, list[int]]]:
    """What to take away, as ``vireo.surgery`` describes it; places where nothing changes are left out.

    Args:
        network: a backbone with temporal shifts, and its weights.
        sites: where temporal modules stand.
        ratio_in: see :func:`prune`.
        ratio_out: see :func:`prune`.

    Raises:
        UsageError: see :func:`prune`.
    """
    _check_ratios(ratio_in=ratio_in, ratio_out=ratio_out)
    pruned = {}
    for site in prunable_sites(network, sites):
        conv = network.get_submodule(site.path)
        assert isinstance(conv, nn.Conv2d)
        merged, dropped = count_pruned(site.channels, conv.out_channels, ratio_in=ratio_in, ratio_out=ratio_out)
        if dropped == conv.out_channels:
            raise UsageError(f"ratio_out is {ratio_out}; it would leave no kernel of {site.path}")
        similar = set(similar_kernels(conv.weight, dropped))
        keep = [c for c in range(conv.out_channels) if c not in similar]
        merge = similar_kernels(_producer(network, site).weight, merged) if merged else []
        if similar or merge:
            pruned[site.path] = {"keep": keep, "merge": merge}
    return pruned


def similar_kernels(kernels: Tensor, count: int) -> list[int]:
    """The ``count`` kernels nearest the geometric median of all, which is one of them; their indices, ascending.

    Args:
        kernels: (C_out, …).
        count: from 0 to C_out.
    """
    flat = kernels.detach().to(torch.float64).flatten(1)
    distances = torch.cdist(flat, flat)  # (C_out, C_out); in float64, as it squares and subtracts
    median = int(distances.sum(dim=1).argmin())  # (5), (6)
    from_median = distances[median].clone()
    from_median[median] = -1.0  # itself before any equal one
    return sorted(from_median.argsort(stable=True)[:count].tolist())  # (7)


def _check_ratios(**ratios: object) -> None:
    for name, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, float | int) or not 0 <= ratio < 1:  # (nan neither)
            raise UsageError(f"{name} is {ratio!r}; it must be a share in [0, 1)")


def _producer(network: nn.Module, site: Site) -> nn.Conv2d:
    """The convolution whose kernels give the site's input, shortcuts aside."""
    block = site.path.rpartition(".")[0]
    last: nn.Module | None = None
    inside = ""  # path of the latest block
    for path, module in network.named_modules():  # timm registers modules in the order in which they run
        if path == block:
            break
        if type(module) in BLOCKS:
            inside = path + "."
            facts = BLOCKS[type(module)]
            last = module.get_submodule((facts.project_in or facts.branch_in)[-1])
        elif isinstance(module, nn.Conv2d) and not (inside and path.startswith(inside)):
            last = module
    if not isinstance(last, nn.Conv2d) or last.out_channels != site.channels:
        raise UsageError(f"{site.path} can't be pruned: no convolution was found whose output it reads; use ratio_in=0")
    return last


# --------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one model costs.

    Attributes:
        parameters: of the whole network.
        macs: multiply-accumulates of one clip.
        milliseconds: of one clip, alone; the median of `ROUNDS`.
    """

    parameters: int
    macs: int
    milliseconds: float


def prune_command(
    checkpoint: Path,
    out: Path,
    *,
    ratio_in: float = 0.1,
    ratio_out: float = 0.1,
    device: str = "auto",
    json: bool = False,
) -> int:
    """What `vireo prune` does: a smaller checkpoint, and what it saves."""
    _check_ratios(ratio_in=ratio_in, ratio_out=ratio_out)
    if ratio_in == ratio_out == 0:
        raise UsageError("--ratio-in and --ratio-out are both 0, which takes nothing away; 0.1 is the default of both")
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: what is written is a .safetensors file; give it that ending")
    if out.exists():
        raise UsageError(f"{out} exists already; give another file, or delete it")
    chosen = choose_device(device)
    loaded = load_checkpoint(checkpoint, device=chosen)
    size = loaded.view.size
    before = loaded.model
    after = prune(before, ratio_in=ratio_in, ratio_out=ratio_out)
    if not after.config.pruned:
        raise UsageError(
            f"ratio_in is {ratio_in} and ratio_out is {ratio_out}; these are shares of so few channels that nothing "
            "would go; give larger ones"
        )
    sizes = [(count_parameters(model), count_macs(model, size)) for model in (before, after)]
    run: dict[str, Any] = {key: loaded.provenance[key] for key in ("config", "data_hash") if key in loaded.provenance}
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        out,
        after,
        labels=loaded.labels,
        view=loaded.view,
        provenance={
            **run,  # so that eval knows its clips; the scores are those of the model it came from
            "pruned": {
                "from": str(checkpoint),
                "ratio_in": ratio_in,
                "ratio_out": ratio_out,
                "provenance": loaded.provenance,
            },
        },
    )
    with progress.bar("time", 2 * ROUNDS) as advance:
        latencies = measure_latency((before, after), size, done=advance)
    costs = [
        Costs(parameters=parameters, macs=macs, milliseconds=latency)
        for (parameters, macs), latency in zip(sizes, latencies, strict=True)
    ]
    if json:
        setting = {
            "size": size,
            "num_frames": before.num_frames,
            "device": str(chosen),
            "threads": torch.get_num_threads(),
        }
        print(
            jsonlib.dumps(
                {
                    "checkpoint": str(out),
                    "ratio_in": ratio_in,
                    "ratio_out": ratio_out,
                    "layers": len(after.config.pruned),
                    "before": asdict(costs[0]),
                    "after": asdict(costs[1]),
                    **setting,
                },
                ensure_ascii=False,
            )
        )
        return 0
    console = progress.make_console(highlight=False)
    setting_text = f"clip of {before.num_frames} × {size}², {chosen}, {torch.get_num_threads()} threads"
    console.print(Text.assemble(("Pruned", "bold"), f"  {len(after.config.pruned)} layers  ", (setting_text, "dim")))
    console.print(_table(*costs))
    console.print(Text(str(out)), soft_wrap=True)
    command = f"vireo train --init {shlex.quote(str(out))} --data DATA --out RUN"
    console.print(Text(f"next: {command}", "dim"), soft_wrap=True)
    return 0


def measure_latency(
    models: Sequence[Recognizer], size: int, *, done: Callable[[int], None] = lambda count: None
) -> list[float]:
    """Milliseconds per clip of each model, the median of `ROUNDS`; the models take turns, after a warm-up.

    Args:
        models: in evaluation mode, with equal inputs, on the same device.
        size: height and width of the clip, pixels.
        done: told of every timed clip.
    """
    device = next(models[0].parameters()).device
    clip = noise((1, models[0].num_frames, len(models[0].mean), size, size), device)
    calls = {str(i): partial(model, clip) for i, model in enumerate(models)}
    with torch.inference_mode():
        times = time_in_turns(calls, repeats=ROUNDS, device=device, warmup=1, done=done)
    return [1000 * statistics.median(taken) for taken in times.values()]


def _table(before: Costs, after: Costs) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    rows: list[tuple[str, float, float, Callable[[Any], str]]] = [
        ("parameters", before.parameters, after.parameters, "{:,}".format),
        ("GMACs/clip", before.macs / 1e9, after.macs / 1e9, "{:.2f}".format),
        ("ms/clip", before.milliseconds, after.milliseconds, "{:.1f}".format),
    ]
    for name, old, new, shown in rows:
        table.add_row(name, shown(old), shown(new), f"{100 * (new / old - 1):+.1f} %")
    return table
