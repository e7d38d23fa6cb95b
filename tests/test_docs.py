"""What README and docs/ say: their commands parse, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vireo import cli
from vireo.parser import Parser

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def commands(text: str) -> list[str]:
    """The vireo commands in code blocks and in inline code with options, continued lines joined, without comments."""
    found = []
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if command := re.match(r"(?:.* -m )?(vireo \w.*)", line):
                found.append(command[1])
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found += [" ".join(code.split()) for code in re.findall(r"`(vireo [^`]*--[^`]*)`", prose)]
    return [re.split(r"\s#|\s\|\s", line)[0].strip() for line in found]


COMMANDS = sorted(
    {(str(page.relative_to(ROOT)), line) for page in PAGES for line in commands(page.read_text(encoding="utf-8"))}
)


def test_commands_are_found() -> None:
    assert {"README.md", "docs/guide.md", "docs/order.md", "docs/papers/tefe.md"} <= {page for page, _ in COMMANDS}
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: str(value)[:60])
def test_commands_parse(page: str, line: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: d\nout: o\n", encoding="utf-8")  # stands for the one that a run writes
    words = [str(config) if word.endswith(".yaml") else word for word in shlex.split(line)[1:]]
    if words == ["--help"]:
        return
    name = next((name for name in cli.VERBS if words[: len(name.split())] == name.split()), None)
    assert name is not None, f"{page}: no such command: {line}"
    args = words[len(name.split()) :]
    if args == ["--help"]:
        return
    parser = Parser.of(f"vireo {name}", cli.VERBS[name])
    values = vars(parser.parse_args(parser.canonical(args)))
    if parser.config:
        kind = parser.config[1]
        kind(**{field: values[field] for field in kind.__dataclass_fields__})  # type: ignore[attr-defined]


OTHERS = {"debug", "help", "strict", "nproc_per_node"}
"""Options of all commands, of mypy and of torchrun."""


def test_options_named_in_prose_exist() -> None:
    known = set(OTHERS)
    for name, verb in cli.VERBS.items():
        known.update(Parser.of(f"vireo {name}", verb).options())
    for script in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")):
        known.update(name.replace("-", "_") for name in re.findall(r'"--([a-z][a-z-]*)"', script.read_text("utf-8")))
    assert {"data", "batch_size", "endurance"} <= known and "nonsense" not in known
    named = {
        (str(page.relative_to(ROOT)), option)
        for page in PAGES
        for option in re.findall(r"(?<![\w-])--([a-z][a-z-]*)", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 100
    assert [(page, option) for page, option in sorted(named) if option.replace("-", "_") not in known] == []


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    missing = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            missing.append(target)
    assert missing == []
