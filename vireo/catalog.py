"""What `vireo models` shows: temporal modules, backbones, and the size of networks made of both."""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vireo import progress
from vireo.backbones import FAMILIES
from vireo.contracts import TemporalModule
from vireo.errors import UnsupportedPairError, UsageError
from vireo.model import Pair, count_macs, count_parameters, create_model, supported_pairs
from vireo.temporal import build_temporal, temporal_modules


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network and its size.

    Attributes:
        family: the backbone's family; empty for one that is not in the list of tested ones.
        parameters: of the whole network, classifier included; None where the pair is not supported.
        macs: multiply-accumulates per clip.
        reason: why the pair is not supported.
    """

    temporal: str
    backbone: str
    family: str = ""
    parameters: int | None = None
    macs: int | None = None
    reason: str | None = None


def show_models(
    *, text: str, temporal: str | None, backbone: str | None, num_classes: int, num_frames: int, size: int, json: bool
) -> int:
    """Print temporal modules, and the sizes of networks; the options are those of `vireo models`."""
    if min(num_classes, num_frames) < 1 or size < 32:
        raise UsageError("num_classes and num_frames must be at least 1, size at least 32 pixels")
    if temporal is not None:
        build_temporal(temporal, {})
    families = choose_backbones(text, backbone)
    names = list(families)
    modules = [temporal] if temporal else list(temporal_modules) if backbone else ["tsn"]
    entries = []
    with progress.bar("measure", len(names) * len(modules), "networks") as advance:
        for name in names:
            for module in modules:
                entries.append(measure(module, name, families[name], num_classes, num_frames, size))
                advance(1)
    if json:
        found = {"temporal": describe_modules(), "networks": [asdict(e) for e in entries]}
        setting = {"num_classes": num_classes, "num_frames": num_frames, "size": size}
        print(jsonlib.dumps({**found, **setting}, ensure_ascii=False))
        return 0
    console = progress.make_console(highlight=False)
    if backbone is None:
        print_modules(console)
        console.print()
    print_entries(console, entries, f"{num_classes} classes, {num_frames} frames of {size}×{size}")
    if backbone is None:
        note = "  --backbone takes any timm name made of these families' blocks, not these alone."
        console.print(Text(note, "dim"), soft_wrap=True)
    return 0


def choose_backbones(text: str, backbone: str | None) -> dict[str, str]:
    """Names of backbones and, where they are in the list of tested ones, of their families.

    Args:
        text: only those whose name contains it.
        backbone: this one alone, any timm name.

    Raises:
        UsageError: both are given, or no name contains the text.
    """
    if text and backbone is not None:
        raise UsageError(f"--filter {text} and --backbone {backbone} exclude each other: --backbone names the only one")
    families = {name: family.name for family in FAMILIES for name in family.examples}
    if backbone is not None:
        return {backbone: families.get(backbone, "")}
    found = {name: family for name, family in families.items() if text.lower() in name.lower()}
    if not found:
        raise UsageError(f"no backbone in the list contains {text!r}; --backbone takes any timm name")
    return found


def show_pairs(*, text: str, temporal: str | None, backbone: str | None, num_frames: int, json: bool) -> int:
    """Print which temporal module works on which backbone; the options are those of `vireo models --pairs`."""
    if num_frames < 1:
        raise UsageError(f"num_frames is {num_frames}; it must be at least 1")
    if temporal is not None:
        build_temporal(temporal, {})
    modules = [temporal] if temporal else list(temporal_modules.names())
    columns: dict[str, str] = {}  # family → the first of its backbones
    for name, family in choose_backbones(text, backbone).items():
        columns.setdefault(family or name, name)
    pairs = []
    with progress.bar("build", len(columns) * len(modules), "networks") as advance:
        for pair in supported_pairs(list(columns.values()), modules, num_frames):
            pairs.append(pair)
            advance(1)
    if json:
        print(jsonlib.dumps([asdict(pair) for pair in pairs], ensure_ascii=False))
        return 0
    print_pairs(progress.make_console(highlight=False), columns, modules, pairs)
    return 0


def print_pairs(console: Console, columns: Mapping[str, str], modules: Sequence[str], pairs: Sequence[Pair]) -> None:
    """One line per module, one column per family; below, what stands for the families, and why pairs don't work.

    Args:
        console: 80 columns are enough for all families.
        columns: family → the backbone that stands for it.
        modules: names of temporal modules.
        pairs: all of these modules with all of these backbones.
    """
    works = {(pair.temporal, pair.backbone): pair.reason is None for pair in pairs}
    console.print(Text.assemble(("What works where", "bold"), ("  one backbone of each family stands for it", "dim")))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True, style="cyan")
    for family in columns:
        table.add_column(_in_two_lines(family), vertical="bottom", no_wrap=True)
    for module in modules:
        marks = (works[module, name] for name in columns.values())
        table.add_row(module, *(Text("✓", "green") if mark else Text("–", "dim") for mark in marks))
    console.print(table)
    stand_ins = ", ".join(f"{family}: {name}" for family, name in columns.items() if family != name)
    if stand_ins:
        console.print(Text(f"  {stand_ins}", "dim"))
    for (name, why), stopped in reasons(pairs).items():
        console.print(Text(f"  – {name} with {', '.join(stopped)}: {why}", "dim"))


def _in_two_lines(family: str) -> str:
    return re.sub(r"(?<=[a-z])(?=Ne[tX])|(?<=-)", "\n", family)  # Mobile-NetV2, MFNet-3D


def reasons(pairs: Iterable[Pair]) -> dict[tuple[str, str], list[str]]:
    """Why modules don't go into a backbone: (backbone, reason) → modules."""
    found: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        if pair.reason:
            why = pair.reason.split("\n")[0].partition(": ")[2]
            found.setdefault((pair.backbone, why), []).append(pair.temporal)
    return found


def measure(temporal: str, backbone: str, family: str, num_classes: int, num_frames: int, size: int) -> Entry:
    """The size of one network, found on the meta device: no weights are made, nothing is computed."""
    entry = Entry(temporal=temporal, backbone=backbone, family=family)
    try:
        with torch.device("meta"):
            model = create_model(temporal, backbone, num_classes=num_classes, num_frames=num_frames)
    except UnsupportedPairError as error:
        return Entry(**{**asdict(entry), "reason": str(error)})
    return Entry(**{**asdict(entry), "parameters": count_parameters(model), "macs": count_macs(model, size)})


def describe_modules() -> list[dict[str, Any]]:
    """Name, summary, source and options (with defaults) of every temporal module."""
    return [
        {"name": name, "summary": kind.summary, "source": kind.source, "options": defaults(kind)}
        for name in temporal_modules
        for kind in [temporal_modules.get(name)]
    ]


def defaults(kind: type[TemporalModule]) -> dict[str, Any]:
    """The options of a temporal module with their defaults."""
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING}


def print_modules(console: Console) -> None:
    """The temporal modules: what they do, where they come from, their options."""
    console.print(Text("Temporal modules", "bold"))
    table = Table.grid(padding=(0, 2, 0, 0))
    for module in describe_modules():
        options = " ".join(
            f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in module["options"].items()
        )
        about = Text(module["summary"])
        about.append(f"\n{module['source']}\noptions: {options or 'none'}", "dim")
        table.add_row("", Text(module["name"], "cyan"), about)
    console.print(table)


def print_entries(console: Console, entries: Sequence[Entry], title: str) -> None:
    """One line per network."""
    console.print(Text.assemble(("Networks", "bold"), (f"  {title}", "dim")))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("", "temporal", "backbone", "family"):
        table.add_column(name)
    table.add_column("parameters", justify="right")
    table.add_column("GMACs/clip", justify="right")
    for e in entries:
        if e.parameters is None or e.macs is None:
            size = Text("not supported", "dim"), Text("–", "dim")
        else:
            size = Text(f"{e.parameters:,}"), Text(f"{e.macs / 1e9:.2f}")
        table.add_row("", e.temporal, Text(e.backbone, "cyan"), e.family, *size)
    console.print(table)
    for e in entries:
        if e.reason and len(entries) <= 8:
            console.print(Text(f"  {e.temporal} × {e.backbone}: {e.reason}", "dim"))
