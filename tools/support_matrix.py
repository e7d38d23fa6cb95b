"""Write docs/support.md: which temporal module goes into which family of backbones.

    .venv/bin/python tools/support_matrix.py

Every network is built (on the meta device: no weights, no arithmetic); nothing is written by hand.
"""

from __future__ import annotations

from pathlib import Path

from vireo.backbones import FAMILIES
from vireo.catalog import reasons
from vireo.model import supported_pairs
from vireo.temporal import temporal_modules

PAGE = Path(__file__).parent.parent / "docs" / "support.md"

HEAD = """# What works where

Every temporal module on every family of backbones, found by building the networks (`vireo models --pairs`; this page is
written by `tools/support_matrix.py`). ✓ means that it passes the contract tests on the family's smallest network:
no frame of one clip reaches another, one clip and many give the same logits, every parameter has a gradient, saving and
loading, deep copies, bf16 autocast, `torch.compile(fullgraph=True)` and `torch.export` with any number of clips.

`vireo models --backbone NAME` says the same of any other timm backbone. Modules can be joined: `tsm+tfdem` is both. Any
two go together that don't want the same place.

"""


def main() -> None:
    """Build all pairs and write the page."""
    modules = temporal_modules.names()
    names = {family.examples[0]: family for family in FAMILIES}
    pairs = list(supported_pairs(list(names)))
    works = {(pair.temporal, pair.backbone) for pair in pairs if pair.reason is None}
    rows = [f"| | {' | '.join(f'`{module}`' for module in modules)} |", "|---|" + ":-:|" * len(modules)]
    for name, family in names.items():
        marks = " | ".join("✓" if (module, name) in works else "–" for module in modules)
        rows.append(f"| {family.name} | {marks} |")
    why = [
        f"- {names[name].name}, {', '.join(f'`{m}`' for m in without)}: {reason}"
        for (name, reason), without in reasons(pairs).items()
    ]
    examples = [f"| {family.name} | {', '.join(f'`{e}`' for e in family.examples)} |" for family in FAMILIES]
    parts = [*rows, "", *why, "", "| Family | Tried and listed by `vireo models` |", "|---|---|", *examples, ""]
    PAGE.write_text(HEAD + "\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
