"""The command line's parser: a typed function is a verb, its signature the options, its docstring the help.

jsonargparse reads types, dataclasses and YAML. What it leaves to wish is done here: options in
kebab-case, comma lists, flags without a value, one option per field of a dataclass in groups, the
nearest name for a misspelt one, errors of one or two lines, and help that fits on a screen.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import textwrap
import types
from argparse import Action
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vireo.config import RETIRED
from vireo.errors import UsageError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

_COMMA = re.compile(r",(?! (?:end|[\d.e+-]+)\) s\s*(?:,|$))")  # between texts


class CommandLineError(UsageError):
    """Arguments that a verb doesn't take.

    Attributes:
        prog: the verb as it was called, e.g. ``vireo train``.
    """

    def __init__(self, prog: str, message: str) -> None:
        super().__init__(message)
        self.prog = prog


class Parser(ArgumentParser):
    """Parser of one verb, made from its function by :meth:`of`."""

    verb: Callable[..., int]
    summary: str
    story: str
    example: str
    headings: dict[str, str]
    config: tuple[str, type] | None

    @classmethod
    def of(cls, prog: str, verb: Callable[..., int]) -> Parser:
        """The parser of a verb.

        Args:
            prog: how it is called, e.g. ``vireo train``.
            verb: a function. Its positional parameters without a default are positional arguments,
                the others options; a parameter whose type is a dataclass becomes one option per field, and
                ``--config FILE`` with them.
        """
        parser = cls(prog=prog)
        doc = docstring_parser.parse(inspect.getdoc(verb) or "", style=docstring_parser.DocstringStyle.GOOGLE)
        helps = {p.arg_name: " ".join((p.description or "").split()) for p in doc.params}
        parser.verb = verb
        parser.summary, parser.story = doc.short_description or "", doc.long_description or ""
        parser.example = "\n".join(e.description or "" for e in doc.examples)
        parser.headings, parser.config = {}, None
        hints = get_type_hints(verb)
        for name, parameter in inspect.signature(verb).parameters.items():
            kind = hints[name]
            taken = texts if kind == tuple[str, ...] else kind
            if dataclasses.is_dataclass(kind):
                assert isinstance(kind, type)
                parser.add_argument("--config", action="config", help="YAML file of options; options given win.")
                parser.add_class_arguments(kind)
                parser.headings |= headings(kind)
                parser.config = name, kind
            elif parameter.default is not inspect.Parameter.empty:
                parser.add_argument(f"--{name}", type=taken, default=parameter.default, help=helps.get(name, ""))
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                parser.add_argument(f"--{name}", type=taken, required=True, help=helps.get(name, ""))
            elif get_origin(kind) is list:
                parser.add_argument(name, type=get_args(kind)[0], nargs="+", help=helps.get(name, ""))
            else:
                parser.add_argument(name, type=kind, help=helps.get(name, ""))
        return parser

    def call(self, args: Sequence[str]) -> int:
        """Parse the arguments and run the verb.

        Raises:
            CommandLineError: an argument is wrong; the message is two lines.
        """
        if any(a in ("-h", "--help") for a in args):
            self.print_help()
            return 0
        values = vars(self.parse_args(self.canonical(args)).clone())
        values.pop("config", None)
        if self.config:
            name, kind = self.config
            fields = {f.name: values.pop(f.name) for f in dataclasses.fields(kind)}
            try:
                values[name] = kind(**fields)
            except ValueError as error:
                self.error(str(error))
        return self.verb(**values)

    # ---- what is typed → what jsonargparse takes

    def options(self) -> dict[str, Action]:
        """Options by their field name (underscores), in the order of definition."""
        return {a.option_strings[-1][2:]: a for a in self._actions if a.option_strings and a.dest != "print_shtab"}

    def positionals(self) -> list[Action]:
        """Positional arguments."""
        return [a for a in self._actions if not a.option_strings]

    def canonical(self, args: Sequence[str]) -> list[str]:
        """Arguments as ``--field_name=value``, ``--config`` first so that other options win over it."""
        known = self.options()
        configs: list[str] = []
        named: list[str] = []
        loose: list[str] = []
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            if arg == "--":
                loose += rest
                break
            if not arg.startswith("-") or arg == "-" or re.fullmatch(r"-[\d.]+", arg):
                loose.append(arg)
                continue
            given, has_value, value = arg.partition("=")
            name, _, item = given.lstrip("-").partition(".")
            name, item = name.replace("-", "_"), item.replace("-", "_")
            if name.startswith("no_") and is_flag(known.get(name[3:])) and not has_value:
                name, has_value, value = name[3:], "=", "false"
            if name not in known or not given.startswith("--"):
                self.error(f"unknown option {given}{nearest(kebab(name), map(kebab, known), '--')}")
            action = known[name]
            if name == "print_config":
                named.append("--print_config" + has_value + value)
                continue
            if not has_value:
                if is_flag(action):
                    value = rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "true"
                elif rest and (not rest[0].startswith("--")):
                    value = rest.pop(0)
                else:
                    self.error(f"{kebab(given)} needs a value: {metavar(action)}")
            of_texts = getattr(action, "type", None) is texts
            if not (texts(value) if of_texts else value) and action.default != "":
                self.error(f"{kebab(given)} is empty; it needs a value: {metavar(action)}")
            option = f"--{name}{'.' + item if item else ''}="
            if is_sequence(hint(action)) and any(other.startswith(option) for other in named):
                self.error(f"{kebab(given)} is given twice; give all values at once: {kebab(given)} {metavar(action)}")
            if not of_texts and (is_sequence(hint(action)) or (item and "," in value)):
                value = bracketed(value)
            (configs if name == "config" else named).append(option + value)
        self._check_loose(loose)
        self._take_recipe(configs, named)
        return [*configs, *named, *(["--", *loose] if loose else [])]

    def _take_recipe(self, configs: Sequence[str], named: Sequence[str]) -> None:
        """Make the settings of a recipe the defaults, whether the options name it or the file of --config."""
        if self.config is None or "recipe" not in self.options():
            return
        given = [arg.partition("=")[2] for arg in named if arg.startswith("--recipe=")]
        filed = [name for arg in configs if (name := recipe_in(Path(arg.partition("=")[2]))) is not None]
        if given and filed and given[-1] != filed[-1]:
            self.error(f"--recipe {given[-1]}: the file of --config has the settings of {filed[-1]}; leave one out")
        if not given and not filed:
            return
        from vireo.recipes import recipe

        try:
            self.set_defaults(vars(recipe((given or filed)[-1])))
        except UsageError as error:
            self.error(str(error))

    def _check_loose(self, loose: Sequence[str]) -> None:
        wanted = self.positionals()
        if "" in loose:
            self.error("an argument is empty")
        if len(loose) > len(wanted) and not any(a.nargs == "+" for a in wanted):
            extra = loose[len(wanted)]
            required = [name for name, action in self.options().items() if action.required]
            hint = f"; options have names: --{kebab(required[0])} {extra}" if required else ""
            self.error(f"unexpected argument {extra!r}{hint}")

    # ---- errors

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a CommandLineError of two lines: what is wrong, and where the options are explained."""
        raise CommandLineError(
            self.prog, f"{self._plain(message)}\n`{self.prog} --help` explains the options."
        ) from None

    def _plain(self, message: str) -> str:
        if found := re.match(r"the following arguments are required: (.*)", message):
            names = [n.strip() for n in found[1].split(",")]
            known = self.options()
            return "missing: " + ", ".join(
                f"--{kebab(n)} {metavar(known[n])}" if n in known else n.upper() for n in names
            )
        if found := re.match(r"Option '(.*)' is not accepted", message):
            return f"unknown field {found[1]!r} in --config{nearest(found[1], self.options())}"
        if found := re.match(r'Parser key "config": File does not exist: (.*)', message, re.DOTALL):
            return f"--config: {found[1]} does not exist"
        if found := re.match(r"(?:Problems parsing config|Unexpected config): ?(.*)", message, re.DOTALL):
            return f"--config: not a YAML file of options ({' '.join(found[1].split())[:200]})"
        if found := re.match(r'Parser key "([^".]*).*?":(.*)', message, re.DOTALL):
            name, reason = found[1], found[2]
            value = (re.search(r"(?:Got|Given) value: (.*)", reason, re.DOTALL) or [None, ""])[1]
            action = self.options().get(name)
            shown = f"--{kebab(name)}" if action else name.upper()
            if action is not None and value:
                return f"{shown}: {value!r} is not {expected(hint(action), value)}"
            return f"{shown}: {' '.join(reason.split())}"
        return " ".join(message.split())

    # ---- help

    def print_help(self, file: Any = None) -> None:
        """Print usage, what the verb does, examples, arguments, and the options in groups."""
        show = Console(file=file, highlight=False)
        usage = [self.prog]
        for action in self.positionals():
            usage.append(metavar(action) + (" ..." if action.nargs == "+" else ""))
        usage += [f"--{kebab(name)} {metavar(action)}" for name, action in self.options().items() if action.required]
        show.print(Text.assemble(("usage: ", "bold"), " ".join([*usage, "[options]"])))
        for paragraph in [self.summary, *self.story.split("\n\n")]:
            if paragraph:
                show.print("\n" + textwrap.fill(" ".join(paragraph.split()), show.width), markup=False)
        if self.example:
            show.print(Text("\nExamples" if "\n" in self.example else "\nExample", "bold"))
            for line in self.example.splitlines():
                show.print(Text(f"  {line}", "cyan"), soft_wrap=True)
        groups: dict[str, list[tuple[str, Action]]] = {"Arguments": [("", a) for a in self.positionals()]}
        groups |= {heading: [] for heading in self.headings.values()}
        hidden = (
            {f.name for f in dataclasses.fields(self.config[1]) if f.metadata.get("hidden")} if self.config else set()
        )
        for name, action in self.options().items():
            if name in hidden:
                continue
            groups.setdefault(self.headings.get(name, "Options"), []).append((name, action))
        groups["Options"].append(groups["Options"].pop(0))  # --help is the least of them
        for heading, actions in groups.items():
            if actions:
                show.print(Text(f"\n{heading}", "bold"))
                print_grid(show, [self._row(name, action) for name, action in actions])

    def format_help(self, formatter: Any = None) -> str:
        """The help as plain text; argparse's formatter is not used."""
        text = StringIO()
        self.print_help(text)
        return text.getvalue()

    def _row(self, name: str, action: Action) -> tuple[Text, Text]:
        left = Text(f"--{kebab(name)}" if name else metavar(action), "cyan")
        if name == "help":
            return left, Text("This help.")
        if name == "print_config":
            return left, Text("Print all options as YAML, for --config, and exit.")
        if name and not is_flag(action):
            left.append(f" {metavar(action)}", "not bold default")
        right = Text(" ".join(str(action.help or "").split()))  # docstrings have line breaks of their own
        kind = hint(action)
        if get_origin(kind) is Literal and metavar(action) == "NAME":
            right.append(f" One of: {', '.join(map(str, get_args(kind)))}.")
        if name and action.required:
            right.append(" (required)", "dim")
        elif shown := default(action):
            right.append(f" [{shown}]", "dim")
        return left, right


def recipe_in(file: Path) -> str | None:
    """The recipe that a YAML file names; None where it names none, or is no such file (which is said later)."""
    try:
        if not file.is_file() or file.stat().st_size > 1 << 20:  # a pipe can be read but once
            return None
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return found["recipe"] if isinstance(found, dict) and isinstance(found.get("recipe"), str) else None


def print_grid(console: Console, rows: Iterable[tuple[Text, Text]], column: int = 26) -> None:
    """Print two columns, the second wrapped within itself, no line padded with spaces."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=column, overflow="fold")
    grid.add_column()
    for left, right in rows:
        grid.add_row(left, right)
    with console.capture() as text:
        console.print(Padding(grid, (0, 0, 0, 2)))
    for line in text.get().splitlines():
        console.print(Text.from_ansi(line.rstrip()), soft_wrap=True)


def headings(kind: type) -> dict[str, str]:
    """A heading for each field of a dataclass: the first clause of the docstring of the class that has it."""
    found: dict[str, str] = {}
    for owner in kind.__mro__:
        own = [name for name in getattr(owner, "__annotations__", {}) if name in kind.__dataclass_fields__]  # type: ignore[attr-defined]
        heading = re.split(r"[;.]", (owner.__doc__ or "").strip(), maxsplit=1)[0]
        for name in own:
            found.setdefault(name, heading)
    return found


def kebab(name: str) -> str:
    """``num_frames`` → ``num-frames``."""
    return name.replace("_", "-")


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean …?`` for a misspelt name, what has taken its place, or nothing where none is near."""
    if (old := name.replace("-", "_")) in RETIRED:
        return f"; use {RETIRED[old]}"
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.55)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def hint(action: Action | None) -> Any:
    """The type an action takes, without ``None``."""
    kind = getattr(action, "_typehint", None) or getattr(action, "type", None)
    if kind is texts:
        return tuple[str, ...]
    if get_origin(kind) in (Union, types.UnionType):
        parts = [a for a in get_args(kind) if a is not type(None)]
        if len(parts) == 1:
            return parts[0]
    return kind


def is_flag(action: Action | None) -> bool:
    """Whether the option stands for true without a value."""
    return hint(action) is bool


def is_sequence(kind: Any) -> bool:
    """Whether a type takes several values."""
    return get_origin(kind) in (tuple, list)


def texts(value: str | Sequence[str]) -> tuple[str, ...]:
    """``a, b`` → ``("a", "b")``, whatever the texts look like; ``["a,b"]``, JSON, → ``("a,b",)``.

    YAML would make numbers of clips called 007 and truth of classes called yes. The comma in a cut, as names of clips
    have it (``day1/a [12.5, 17.0) s``), parts nothing. What is a tuple already stays.
    """
    if not isinstance(value, str):
        return tuple(value)
    try:
        found = json.loads(value) if value.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and all(isinstance(text, str) for text in found):
        return tuple(found)
    return tuple(part.strip() for part in _COMMA.split(value) if part.strip())


def bracketed(value: str) -> str:
    """``1,0.875`` → ``[1, 0.875]``; what has brackets stays."""
    if value.startswith(("[", "{")):
        return value
    return f"[{', '.join(part.strip() for part in value.split(',') if part.strip())}]"


def metavar(action: Action) -> str:
    """How a value is named in help."""
    if not action.option_strings:
        return action.dest.upper()
    kind = hint(action)
    if action.dest == "config":
        return "FILE"
    if get_origin(kind) is Literal:
        choices = "|".join(map(str, get_args(kind)))
        return choices if len(choices) <= 18 else "NAME"
    if is_sequence(kind):
        return "A,B,..."
    if get_origin(kind) is dict or kind is dict:
        return "MAP"
    return {int: "N", float: "X", str: action.dest.upper(), Path: "PATH", bool: "true|false"}.get(kind, "VALUE")


def default(action: Action) -> str:
    """A default as one would type it; empty where there is none."""
    value = action.default
    if value is None or value == "" or value == {} or (value is False and is_flag(action)):
        return ""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def expected(kind: Any, value: str) -> str:
    """What a type expects, for ``--lr: 'fast' is not …``."""
    if get_origin(kind) is Literal:
        choices = [str(c) for c in get_args(kind)]
        return f"one of {', '.join(choices)}{nearest(value, choices)}"
    if is_sequence(kind):
        return f"{expected(get_args(kind)[0], value)} (a list is written 1,2)"
    if get_origin(kind) is dict or kind is dict:
        return 'a mapping, e.g. "{stages: [4, 5]}"'
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, f"valid ({kind})")
