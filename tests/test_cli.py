"""The command line: what a person types and sees."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from vireo import cli
from vireo.config import ReadConfig, TrainConfig, from_dict, to_dict
from vireo.errors import CheckpointError, DecodeError
from vireo.parser import Parser
from vireo.progress import make_console

HEAVY = {"torch", "torchvision", "timm", "numpy", "av", "matplotlib", "lightning_fabric", "lightning", "torchmetrics"}


@pytest.fixture(autouse=True)
def wide_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


class Calls(list[tuple[tuple[Any, ...], dict[str, Any]]]):
    """Stands for a function: keeps its calls, returns or raises what it was told to."""

    def __init__(self, result: Any = 0) -> None:
        super().__init__()
        self.result = result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.append((args, kwargs))
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str, result: Any = 0) -> Calls:
    """Puts a module with one recording function in the place of a heavy one."""
    calls, fake = Calls(result), ModuleType(module)
    setattr(fake, name, calls)
    monkeypatch.setitem(sys.modules, module, fake)
    return calls


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The current folder holds c.safetensors and x.safetensors, both empty."""
    monkeypatch.chdir(tmp_path)
    for name in "cx":
        (tmp_path / f"{name}.safetensors").touch()


@dataclasses.dataclass(frozen=True)
class Result:
    best: Path = Path("runs/x/best.safetensors")
    top1: float = 0.5
    interrupted: bool = False


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The current folder holds empty ones called d and clips."""
    monkeypatch.chdir(tmp_path)
    for name in ("d", "clips"):
        (tmp_path / name).mkdir()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, data: None) -> Calls:
    return stand_in(monkeypatch, "vireo.train", "train", Result())


def config_of(calls: Calls) -> TrainConfig:
    [(args, _)] = calls
    assert isinstance(args[0], TrainConfig)
    return args[0]


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], *(name.split() for name in cli.VERBS)], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from vireo.cli import main; code = main([*sys.argv[1:], '--help']); "
        "print('IMPORTED', *sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("usage: vireo")
    assert not HEAVY & set(done.stderr.split())


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_has_help_with_an_example_that_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: vireo {name}" in shown
    assert "Example" in shown
    parser = Parser.of(f"vireo {name}", cli.VERBS[name])
    examples = [line for line in parser.example.splitlines() if line.startswith(f"vireo {name}")]
    assert examples
    for line in examples:
        args = line.split()[1 + len(name.split()) :]
        if "--config" not in args:  # its file exists only after the example before it
            parser.parse_args(parser.canonical(args))


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_option_is_explained(name: str) -> None:
    parser = Parser.of(f"vireo {name}", cli.VERBS[name])
    assert [k for k, a in parser.options().items() if not a.help] == []
    assert [a.dest for a in parser.positionals() if not a.help] == []


def test_help_shows_field_docstrings_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    order = ["--data DATA", "Which network", "--num-frames N", "T, frames per clip. [8]", "Optimizer", "--lr X"]
    places = [shown.index(text) for text in order]
    assert places == sorted(places)
    assert "num_frames" not in shown
    assert not [line for line in shown.splitlines() if line != line.rstrip()]


def test_the_list_of_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.VERBS)
    assert cli.main(["data"]) == 2  # a verb is missing
    assert "data make order" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import vireo

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vireo {vireo.__version__}\n"


# --- options --------------------------------------------------------------------------------------


def test_train_takes_every_field(trained: Calls) -> None:
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/resume.safetensors").touch()
    line = (
        "train --data clips --out runs/x --temporal tsm --backbone resnet18 --num-frames 4 --scales 1,0.875 "
        "--lr_steps [0.5] --temporal-options.stages 4,5 --pretrained false --resume --no-compile --workers -1 "
        "--freeze-norms all --base-batch-size 64 --schedule one_cycle --class-balance loss"
    )
    assert cli.main([*line.split(), "--backbone-options", "{drop_path_rate: 0.1}"]) == 0
    config = config_of(trained)
    assert config == TrainConfig(
        data="clips",
        out="runs/x",
        temporal="tsm",
        backbone="resnet18",
        num_frames=4,
        scales=(1.0, 0.875),
        lr_steps=(0.5,),
        freeze_norms="all",
        base_batch_size=64,
        schedule="one_cycle",
        class_balance="loss",
        temporal_options={"stages": [4, 5]},
        backbone_options={"drop_path_rate": 0.1},
        pretrained=False,
        resume=True,
    )
    assert isinstance(config.scales, tuple)


def test_train_needs_only_data_and_out(trained: Calls) -> None:
    assert cli.main(["train", "--data", "d", "--out=o"]) == 0
    assert config_of(trained) == TrainConfig(data="d", out="o")


@pytest.mark.parametrize(
    ("given", "pretrained"), [("true", True), ("false", False), ("w/resnet.pth", "w/resnet.pth"), ("1.pth", "1.pth")]
)
def test_pretrained_is_a_switch_or_a_path(trained: Calls, given: str, pretrained: bool | str) -> None:
    cli.main(["train", "--data", "d", "--out", "o", "--pretrained", given])
    assert config_of(trained).pretrained == pretrained
    assert type(config_of(trained).pretrained) is type(pretrained)


def test_config_file_round_trip(trained: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "d", "--out", "o", "--scales", "0.5", "--pretrained", "w.pth", "--temporal-options.a", "x,y"]
    assert cli.main(["train", *options, "--print-config"]) == 0
    assert not trained
    printed = capsys.readouterr().out
    file = tmp_path / "c.yaml"
    file.write_text(printed, encoding="utf-8")
    assert cli.main(["train", "--seed", "3", "--config", str(file)]) == 0
    expected = TrainConfig(
        data="d", out="o", scales=(0.5,), pretrained="w.pth", temporal_options={"a": ["x", "y"]}, seed=3
    )
    assert config_of(trained) == expected


def test_a_run_s_own_config_is_accepted(trained: Calls, tmp_path: Path) -> None:
    config = TrainConfig(data="d", out="o", sampling="dense", pretrained=False, backbone_options={"act": "relu"})
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)), encoding="utf-8")
    assert cli.main(["train", "--config", str(file)]) == 0
    assert config_of(trained) == config == from_dict(TrainConfig, yaml.safe_load(file.read_text(encoding="utf-8")))


@pytest.mark.usefixtures("checkpoints", "data")
def test_eval_and_predict_hand_their_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated = stand_in(monkeypatch, "vireo.evaluate", "evaluate_command")
    assert cli.main(["eval", "c.safetensors", "--data", "d", "--shuffle-frames", "10", "--json"]) == 0
    [(args, options)] = evaluated
    assert args == ([Path("c.safetensors")], "d")
    assert options["shuffle_frames"] == 10
    assert options["json"] is True
    assert options["out"] is None
    predicted = stand_in(monkeypatch, "vireo.predict", "predict_command")
    assert cli.main(["predict", "c.safetensors", "a.mp4", "--top-k", "2", "--", "-b.mp4", "[red]c.mp4", "null"]) == 0
    [(args, options)] = predicted
    assert args == (Path("c.safetensors"), ["a.mp4", "-b.mp4", "[red]c.mp4", "null"])
    assert options["top_k"] == 2


@pytest.mark.parametrize(
    ("verb", "module", "function", "own"),
    [
        ("eval", "vireo.evaluate", "evaluate_command", {f.name for f in dataclasses.fields(ReadConfig)}),
        ("predict", "vireo.predict", "predict_command", set()),
        ("data check", "vireo.data.doctor", "check_command", set()),
        ("data optimize", "vireo.data.optimize", "optimize_command", set()),
        ("flow", "vireo.data.extract", "flow_command", set()),
        ("demo", "vireo.demo", "demo", set()),
        ("data make order", "vireo.data.order", "OrderConfig", {"dir", "workers", "json"}),
    ],
)
def test_verbs_agree_with_what_they_call(verb: str, module: str, function: str, own: set[str]) -> None:
    called = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    shown = {k: p for k, p in inspect.signature(cli.VERBS[verb]).parameters.items() if k not in own}
    called = {k: p for k, p in called.items() if k != "read"}  # made of own options
    assert set(shown) == set(called)
    assert {k: p.default for k, p in shown.items()} == {k: p.default for k, p in called.items()}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        *((text, (text,)) for text in ("12345", "007", "1_000", "1e5", "true", "null", "no", "~", "#h", "x[1", "y]")),
        *((text, (text,)) for text in ("{k}", "@file", "a: b", "[x]", "'s'", 'quo"te', "-dash", "a\udcff", "é😀", "=")),
        *((text, (text,)) for text in ("wave/a [0.0, 0.08) s", "a [1e-05, end) s", __file__)),
        ("a [0.0, 1.5) s,b [1.5, end) s , c", ("a [0.0, 1.5) s", "b [1.5, end) s", "c")),
        ("yes,no, 1 ,", ("yes", "no", "1")),
        ("x[1,y]", ("x[1", "y]")),
        ("[1,2]", ("[1", "2]")),
        ('["a"', ('["a"',)),
        ('["a,b", " c "]', ("a,b", " c ")),
        ('["\\ud83d\\ude00"]', ("😀",)),
        ("[" * 9999, ("[" * 9999,)),
    ],
)
@pytest.mark.usefixtures("checkpoints", "data")
def test_texts_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch, given: str, taken: tuple[str, ...]) -> None:
    embedded = stand_in(monkeypatch, "vireo.embed", "embed_command")
    for line in (["--query", given, "--labels=" + given], ["--labels", given, "--query=" + given]):
        assert cli.main(["embed", "c.safetensors", "--data", "d", *line]) == 0
    for _, options in embedded:
        assert options["query"] == options["labels"] == taken


def test_texts_are_taken_as_they_are_by_every_verb() -> None:
    found = {}
    for name, verb in cli.VERBS.items():
        parser = Parser.of(f"vireo {name}", verb)
        for option, kind in inspect.get_annotations(verb, eval_str=True).items():
            if kind == tuple[str, ...]:
                [value] = (arg.partition("=")[2] for arg in parser.canonical([f"--{option}", "007, no"]))
                found[name, option] = parser.options()[option].type(value)
    assert found.keys() >= {("embed", "query"), ("embed", "labels"), ("explain", "what"), ("data make order", "pairs")}
    assert set(found.values()) == {("007", "no")}


# --- wrong usage: exit code 2, two lines, no traceback ----------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian", "unknown command 'vireo trian'; did you mean train?"),
        ("zzz", "there are demo, models, data, train"),
        ("data mak order x", "did you mean make?"),
        ("--zzz", "unknown option --zzz"),
        ("train", "missing: --data DATA, --out OUT"),
        ("train clips", "unexpected argument 'clips'; options have names: --data clips"),
        ("train --data d --out o --num-frame 4", "unknown option --num-frame; did you mean --num-frames?"),
        ("train --data d --out o -x", "unknown option -x"),
        ("train --data d --out o --lr fast", "--lr: 'fast' is not a number"),
        ("train --data d --out o --epochs 1.5", "--epochs: '1.5' is not a whole number"),
        ("train --data d --out o --epochs", "--epochs needs a value: N"),
        ("train --data d --out o --epochs --lr 1", "--epochs needs a value: N"),
        ("train --data d --out o --pretrained=", "--pretrained is empty; it needs a value"),
        ("train --data d --out=", "--out is empty; it needs a value: OUT"),
        ("eval c.safetensors --data d", "c.safetensors does not exist"),
        ("predict c.safetensors a.mp4", "c.safetensors does not exist"),
        ("train --data d --out o --optimizer sdg", "not one of sgd, adamw, lamb; did you mean sgd?"),
        ("train --data d --out o --scales 1,b", "--scales: 'b' is not a number"),
        ("train --data d --out o --resume=maybe", "--resume: 'maybe' is not true or false"),
        ("train --data d --out o --temporal-options 3", "--temporal-options: '3' is not a mapping"),
        ("train --data d --out o --num-frames 0", "num_frames is 0; it must be at least 1"),
        ("train --config nowhere.yaml", "does not exist"),
        ("predict c.safetensors", "missing: INPUTS"),
        ("eval c.safetensors d", "missing: --data DATA"),
        (
            "embed c.safetensors --data d --query a --query b",
            "--query is given twice; give all values at once: --query A",
        ),
        ("train --data d --out o --scales 1 --lr 1 --scales=0.5", "--scales is given twice"),
        ("embed c.safetensors --data d --query ,", "--query is empty; it needs a value: A,B,..."),
        ("embed c.safetensors --data d --query []", "--query is empty; it needs a value: A,B,..."),
    ],
)
def test_wrong_usage(trained: Calls, line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert len(shown.err.splitlines()) <= 2
    assert shown.out == ""
    assert not trained


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3", "unknown field 'epoch' in --config; did you mean epochs?"),
        ("epochs: abc", "--epochs: 'abc' is not a whole number"),
        ("a: [", "not a YAML file of options"),
        ("- a", "not a YAML file of options"),
    ],
)
def test_wrong_config_file(
    trained: Calls, text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert cli.main(["train", "--data", "d", "--out", "o", "--config", str(tmp_path / "c.yaml")]) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert len(shown.splitlines()) <= 2
    assert not trained


# --- failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (CheckpointError("x.safetensors is empty"), 1, "error: x.safetensors is empty\n"),
        (DecodeError("a/[red]x[/red] [link=y].mp4", "no video"), 1, "error: a/[red]x[/red] [link=y].mp4: no video\n"),
        (PermissionError(13, "Permission denied", "out/x"), 1, "error: out/x: Permission denied\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            RuntimeError("odd\nthing"),
            1,
            "internal error: RuntimeError: odd (run again with --debug for the traceback)\n",
        ),
        (ValueError("odd"), 1, "internal error: ValueError: odd"),
    ],
)
@pytest.mark.usefixtures("checkpoints")
def test_failures_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, says: str
) -> None:
    stand_in(monkeypatch, "vireo.predict", "predict_command", error)
    assert cli.main(["predict", "x.safetensors", "a.mp4"]) == code
    shown = capsys.readouterr()
    assert says in shown.err
    assert len(shown.err.splitlines()) == 1
    assert "Traceback" not in shown.err


@pytest.mark.usefixtures("checkpoints")
def test_a_long_file_name_is_not_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    name = "folder/" * 40 + "x.mp4"
    stand_in(monkeypatch, "vireo.predict", "predict_command", DecodeError(name, "empty"))
    cli.main(["predict", "x.safetensors", "a.mp4"])
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.usefixtures("checkpoints")
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: int
) -> None:
    stand_in(monkeypatch, "vireo.predict", "predict_command", CheckpointError("bad"))
    args = ["predict", "x.safetensors", "a.mp4"]
    assert cli.main([*args[:place], "--debug", *args[place:]]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("error: bad\n")


@pytest.mark.usefixtures("data")
def test_train_interrupted_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, "vireo.train", "train", Result(interrupted=True))
    assert cli.main(["train", "--data", "d", "--out", "o", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["best"] == "runs/x/best.safetensors"


def test_a_closed_pipe_is_no_error() -> None:
    command = f'"{sys.executable}" -m vireo train --help | head -n 1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("usage:")
    assert done.stderr == ""


def test_bytes_that_are_no_text_in_a_file_name() -> None:
    command = [sys.executable, "-m", "vireo", "train", b"clip\xff.mp4"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert b"unexpected argument" in done.stderr
    assert b"Traceback" not in done.stderr


WRONG_PATHS = [
    ("train --data nowhere --out o", "nowhere does not exist; give a folder with one subfolder per class, a CSV, or"),
    ("train --data ucf101:nowhere --out o", "error: nowhere does not exist"),
    ("train --data d --out full", "full is not empty (notes.txt, ...); choose another --out"),
    ("train --data d --out full/notes.txt", "full/notes.txt is a file; choose another --out"),
    ("train --data d --out run", "run holds a run already; go on with --resume"),
    ("train --data d --out o --resume", "o has no resume.safetensors to go on from"),
    ("train --data d --out o --init nowhere.safetensors", "nowhere.safetensors does not exist"),
    ("train --data d --out o --teacher nowhere.safetensors", "nowhere.safetensors does not exist"),
    ("train --data d --out o --recipe tsm-ssv1", "Unknown recipe 'tsm-ssv1'. Did you mean"),
    ("train --data d --out o --learning-rate 1", "unknown option --learning-rate"),
    ("train --data nowhere --out o --seeds 0,1", "nowhere does not exist"),
    ("eval run/best.safetensors --data nowhere", "nowhere does not exist"),
    ("fuse run/best.safetensors run/best.safetensors --data d --flow-data list:nowhere", "nowhere does not exist"),
    ("compare run run --data nowhere", "nowhere does not exist"),
    ("embed run/best.safetensors --data nowhere", "nowhere does not exist"),
    ("data check nowhere", "nowhere does not exist"),
    ("data optimize nowhere --out o", "nowhere does not exist"),
    ("flow nowhere --out o", "nowhere does not exist"),
]


@pytest.mark.usefixtures("data")
def test_a_wrong_path_is_found_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    for name in ("full/notes.txt", "run/best.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    code = (
        "import sys; from vireo.cli import main\n"
        "for line in sys.stdin.read().splitlines(): print(main(line.split()), file=sys.stderr)\n"
        "print(*sys.modules)"
    )
    lines = "\n".join(line for line, _ in WRONG_PATHS)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60, check=True)
    told = re.findall(r"(.*?)\n2$", done.stderr, re.DOTALL | re.MULTILINE)  # each ends with its exit code
    assert len(told) == len(WRONG_PATHS), done.stderr
    for (line, says), shown in zip(WRONG_PATHS, told, strict=True):
        assert says in shown, line
    assert not HEAVY & set(done.stdout.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "d", "full", "run"]


@pytest.mark.usefixtures("data")
def test_data_that_is_there_is_no_wrong_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a:b").touch()
    for name in ("d", "list:d", "a:b", "ucf101-split2:clips", "csv:~/d", str(tmp_path / "d")):
        cli.existing_data(name)


@pytest.mark.parametrize("stderr", [False, True])
def test_lines_are_wrapped_for_screens_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stderr: bool
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = "word " * 60 + "end"

    def printed() -> list[str]:
        make_console(stderr=stderr).print(text)
        return "".join(capsys.readouterr()).splitlines()

    monkeypatch.delenv("COLUMNS")
    monkeypatch.setenv("TERM", "dumb")
    assert printed() == [text]
    monkeypatch.setenv("COLUMNS", "40")  # whoever sets it wants it
    assert len(printed()) == 8
    monkeypatch.delenv("COLUMNS")
    screen = Screen()
    monkeypatch.setattr(sys, "stderr" if stderr else "stdout", screen)
    assert not printed() and len(screen.getvalue().splitlines()) == 4


# --- models -----------------------------------------------------------------------------------------


def test_models_measures_one_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--temporal", "tei", "--backbone", "resnet50", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    [network] = shown["networks"]
    assert network["parameters"] == 30_356_896
    assert network["macs"] == pytest.approx(33e9, rel=0.01)
    assert {"tsn", "tsm", "tei"} <= {module["name"] for module in shown["temporal"]}


def test_empty_arguments(trained: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--data", "d", "--out", "o"]
    assert cli.main([*train, "--pretrained", ""]) == 2
    assert "--pretrained is empty; it needs a value" in capsys.readouterr().err
    assert cli.main(["predict", "", "x.mp4"]) == 2  # Path("") is the current folder
    assert "an argument is empty" in capsys.readouterr().err
    (tmp_path / "c.yaml").write_text("pretrained: ''", encoding="utf-8")
    assert cli.main([*train, "--config", str(tmp_path / "c.yaml")]) == 2
    assert "pretrained is empty" in capsys.readouterr().err
    assert not trained


def test_make_order_interrupted_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import vireo.data.order

    made = vireo.data.order._make_scene

    def interrupted(*args: Any, **options: Any) -> Any:
        if list((tmp_path / "set").rglob("*.mp4")):
            raise KeyboardInterrupt
        return made(*args, **options)

    line = ["data", "make", "order", str(tmp_path / "set"), "--clips=6", "--size=32", "--pairs=push", "--workers=0"]
    with monkeypatch.context() as patch:
        patch.setattr(vireo.data.order, "_make_scene", interrupted)
        assert cli.main(line) == 130
    shown = capsys.readouterr()
    assert f"{tmp_path / 'set'} holds 2 of 6 clips; the same command again completes the set" in shown.err
    assert shown.out == ""
    assert cli.main(line) == 0
    assert len(list((tmp_path / "set").rglob("*.mp4"))) == 6


def test_models_shows_no_option_that_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--backbone", "resnet10t", "--json"]) == 0
    modules = {m["name"]: m["options"] for m in json.loads(capsys.readouterr().out)["temporal"]}
    assert modules["tsn"] == {}
    assert modules["tsm"]["stages"] == [2, 3, 4, 5]


def test_models_lists_and_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--filter", "MobileNetV2_0"]) == 0
    shown = capsys.readouterr().out
    assert "mobilenetv2_035" in shown
    assert "resnet18" not in shown
    assert "Temporal modules" in shown
    assert cli.main(["models", "--filter", "zzz"]) == 2
    assert cli.main(["models", "--temporal", "tie"]) == 2
    assert "Did you mean" in capsys.readouterr().err
    assert cli.main(["models", "--filter", "resnet", "--backbone", "resnet18"]) == 2
    assert "--filter resnet and --backbone resnet18 exclude each other" in capsys.readouterr().err


def test_pairs_are_shown_in_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from vireo import catalog
    from vireo.model import Pair

    def all_pairs(backbones: list[str], modules: list[str], num_frames: int) -> list[Pair]:  # building them takes long
        why = "Temporal module 'x' can't go into backbone 'mfnet': it is a 3D network.\n"
        return [
            Pair(temporal=m, backbone=b, reason=why if b == "mfnet" and m in ("tsm", "stw") else None)
            for b in backbones
            for m in modules
        ]

    monkeypatch.setattr(catalog, "supported_pairs", all_pairs)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["models", "--pairs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    rows = {line.split()[0]: line.split()[1:] for line in lines if "✓" in line}
    from vireo.backbones import FAMILIES
    from vireo.temporal import temporal_modules

    assert list(rows) == list(temporal_modules.names())
    assert rows["tei"] == ["✓"] * len(FAMILIES)
    assert rows["tsm"] == rows["stw"] == ["✓"] * (len(FAMILIES) - 1) + ["–"]
    first, second = (line.split() for line in lines[1:3])  # the names of families, in two lines
    assert first.count("Mobile") == 3 and {"NetV2", "NetV3", "NetV4", "NeXt", "C2D", "3D"} <= set(second)
    shown = " ".join(" ".join(lines).split())
    assert "– mfnet with tsm, stw: it is a 3D network" in shown and "ResNet: resnet10t" in shown


def test_pairs_of_some_modules_and_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    def pairs(*arguments: str) -> dict[tuple[str, str], bool]:
        assert cli.main(["models", "--pairs", "--json", *arguments]) == 0
        shown = json.loads(capsys.readouterr().out)
        return {(pair["temporal"], pair["backbone"]): pair["reason"] is None for pair in shown}

    assert pairs("--temporal", "mstsm", "--filter", "mobilenetv2_1") == {("mstsm", "mobilenetv2_100"): True}
    assert pairs("--temporal", "tsm+tfdem", "--backbone", "resnet26") == {("tsm+tfdem", "resnet26"): True}
    assert pairs("--temporal", "tei", "--filter", "MFNET", "--num-frames", "16") == {("tei", "mfnet"): False}
    assert cli.main(["models", "--pairs", "--temporal", "tei", "--backbone", "mfnet"]) == 0
    shown = capsys.readouterr().out
    assert "MFNet-" in shown and "– mfnet with tei: it is a 3D network" in shown


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--num-classes 400", "--num-classes 400: with --pairs no sizes are shown; leave it out"),
        ("--size 224", "--size 224: with --pairs no sizes are shown"),
        ("--temporal tie", "Did you mean"),
        ("--filter zzz", "no backbone in the list contains 'zzz'"),
        ("--filter resnet --backbone resnet18", "exclude each other"),
        ("--num-frames 0", "num_frames is 0"),
    ],
)
def test_pairs_refuse(options: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--pairs", *options.split()]) == 2
    shown = capsys.readouterr()
    assert says in shown.err and shown.out == ""


# --- bench ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["complexity", "speed"])
def test_bench_hands_its_options_on(verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = stand_in(monkeypatch, "vireo.bench", f"{verb}_command")
    assert cli.main(["bench", verb]) == 0
    assert cli.main(["bench", verb, "--temporal", "tsm", "--modality", "flow", "--flow-fields", "3"]) == 0
    (_, plain), (_, flow) = called
    described = ("temporal", "backbone", "checkpoint", "num_classes", "num_frames", "size", "modality", "flow_fields")
    assert {name: plain[name] for name in described} == dict.fromkeys(described)
    assert (flow["temporal"], flow["modality"], flow["flow_fields"]) == ("tsm", "flow", 3)


def test_bench_names_its_modalities(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "speed", "--modality", "depth"]) == 2
    assert "--modality: 'depth' is not one of rgb, flow" in capsys.readouterr().err
