"""The page about a run: sound HTML that loads nothing, says what was found, and works in a browser."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torchvision.io import decode_jpeg

from tests.browser_tools import CHROMIUM, Browser
from tests.video_tools import write_video
from vireo import cli
from vireo.data.annotations import read_table
from vireo.data.faults import Failure
from vireo.errors import DataError, UsageError
from vireo.evaluation import Evaluation, Scores, Slow, measure, tabulate, write_evaluation
from vireo.parser import Parser
from vireo.probe import probe_order
from vireo.report import ModelSection, charts, write_report, write_run_report
from vireo.report.command import MARK
from vireo.report.pictures import EACH, FRAMES, PAIRS
from vireo.report.reading import EvaluationRecord, read_evaluation, read_folder, read_slowest
from vireo.report.sections import MOST_ROWS, MOST_SLOW, classes, confusion, figures

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=http://x.invalid/a.png onerror=alert(2)>',
    "wave & <b>go</b>",
)
LABELS = (*HOSTILE, "élan 手")
EACH_CLASS = 6
VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """Parses strictly: every element is closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)
        self.close()
        assert not self.stack, f"never closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> out of place"

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.stack and self.stack[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def data(self, identity: str) -> Any:
        return json.loads(next(text for attrs, text in self.scripts if attrs.get("id") == identity))


def check(text: str) -> Page:
    """A sound page that asks for nothing from outside and runs nothing but its own script."""
    page = Page(text)
    identities = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert [name for name, count in Counter(identities).items() if count > 1] == []
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not [name for name in attrs if name.startswith("on")], attrs
        assert (attrs.get("src") or "data:image/").startswith("data:image/"), attrs
        assert (attrs.get("href") or "#").startswith("#"), attrs
        if tag == "a":
            assert (attrs["href"] or "")[1:] in identities
        assert "url(" not in (attrs.get("style") or "")
    assert not re.search(r"url\(|@import", "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL)))
    code = [given for attrs, given in page.scripts if attrs.get("type") != "application/json"]
    assert len(code) == 1
    allowed = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    policy = next(attrs["content"] for _, attrs in page.elements if "http-equiv" in attrs)
    assert policy is not None and f"script-src 'sha256-{allowed}'" in policy and "default-src 'none'" in policy
    return page


def scores_of(seed: int, strength: float, truth: torch.Tensor, count: int) -> torch.Tensor:
    draw = torch.randn(len(truth), count, generator=torch.Generator().manual_seed(seed))
    draw[torch.arange(len(truth)), truth] += strength
    return draw


def write_run(root: Path, *, failed: int = 1) -> Path:
    """A run of hostile class names with two evaluations, the first with an order probe, and real clips."""
    run, data = root / "run", root / "data"
    run.mkdir(parents=True)
    rows = []
    for number, label in enumerate(LABELS):
        for i in range(EACH_CLASS):
            clip = write_video(data / f"{number}_{i}.mp4", 8)
            rows.append((clip.name, label, "test"))
    with (data / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    settings = {
        "data": str(data / "list.csv"),
        "out": str(run),
        "epochs": 4,
        "temporal": "tsm",
        "backbone": "resnet10t",
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (run / "metrics.csv").write_text(
        "epoch,lr,loss,train_top1,top1,seconds\n1,0.1,1.5,0.2,,60\n2,0.1,1.0,0.4,0.5,60\n3,0.1,0.8,0.6,,60\n"
        "4,0.1,0.7,0.7,0.625,60\n",
        encoding="utf-8",
    )
    for name in ("best", "last"):
        (run / f"{name}.safetensors").write_bytes(b"no weights")
        os.utime(run / f"{name}.safetensors", (1, 1))
    (run / "failed.csv").write_text("path,reason\n<i>lost.mp4,no video stream\n", encoding="utf-8")
    table = read_table(data / "list.csv", label_names=LABELS)
    kept = torch.arange(len(table) - failed)
    truth = torch.from_numpy(table.labels)[kept]
    failures = tuple(
        Failure(index=i, path=table.record(i).path, reason="<broken>") for i in range(len(kept), len(table))
    )
    for name, strength in (("best", 1.2), ("last", 0.4)):
        logits = scores_of(1, strength, truth, len(LABELS))
        scores = Scores(logits=logits, labels=truth, indices=kept, failures=failures)
        header = {
            **{"checkpoint": "tsm × resnet10t, 8 frames", "modality": "rgb", "protocol": "1x1-center", "split": "test"},
            **{"decoder": "PyAV", "precision": "32-true", "seed": 7, "data_hash": table.digest(), "vireo": "0.1.0"},
            "data_notes": [],
        }
        found = replace(measure(scores, LABELS, header), clip_scores=tabulate(scores, table, "rgb"))
        if name == "best":
            answers = [
                (order, scores_of(seed, 0.3, truth, len(LABELS)).argmax(1).numpy())
                for seed, order in enumerate(("shuffled", "shuffled", "reversed", "single"), start=5)
            ]
            probe = probe_order(logits.argmax(1).numpy(), answers, truth.numpy(), LABELS)  # type: ignore[arg-type]
            found = replace(found, order=probe)
        write_evaluation(found, run / f"{name}.eval")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = write_run(tmp_path_factory.mktemp("report"))
    assert write_run_report(found, workers=0).path == found / "report.html"
    return found


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The same folder, to be damaged; its clips stay where they were."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def stated(run: Path, name: str = "best") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"{name}.eval" / "evaluation.json").read_text("utf-8"))
    return found


# --- the page -----------------------------------------------------------------------------------------


def test_the_page_is_sound_and_says_what_was_found(run: Path) -> None:
    text = (run / "report.html").read_text("utf-8")
    page = check(text)
    for name in ("best", "last"):
        found = stated(run, name)
        assert f"{100 * found['top1']:.1f} %" in page.words and f"{100 * found['mean_class']:.1f}" in page.words
        low, high = found["interval95"]
        assert f"95 % interval {100 * low:.1f} to {100 * high:.1f} (Wilson)" in page.words
        assert found["data_hash"] in page.words
    assert "23 of 24 clips of the test part scored" in page.words and "1 could not be read" in page.words
    assert "4 of 4 epochs in 4.0 minutes" in page.words and "best: 62.5 %, epoch 4" in page.words
    for line in stated(run)["order"]["text"]:
        assert line[1:] in page.words
    assert "3_5.mp4" in page.words and "<broken>" in page.words  # the clip that the evaluation could not read
    assert "<i>lost.mp4" in page.words  # and the one that training could not
    for label in LABELS:
        assert label in page.words
    for hostile in HOSTILE:
        assert hostile not in text


def test_the_matrix_for_the_script_is_that_of_the_evaluation(run: Path) -> None:
    page = check((run / "report.html").read_text("utf-8"))
    for number, name in enumerate(("best", "last")):
        given = page.data(f"matrix-{number}")
        found = np.zeros((4, 4), int)
        for row, column, count in np.reshape(given["cells"], (-1, 3)):
            found[row, column] += count
        assert found.tolist() == stated(run, name)["confusion"] and tuple(given["labels"]) == LABELS
        assert given["totals"] == found.sum(axis=1).tolist()


def test_pictures_are_of_the_clips_that_the_model_is_most_certain_and_wrong_about(run: Path) -> None:
    with (run / "last.eval" / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row[LABELS[0]]]
    lost: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for row in rows:
        powers = {label: math.exp(float(row[label])) for label in LABELS}
        answer = max(powers, key=lambda label: powers[label])
        if answer != row["label"]:
            share = powers[answer] / sum(powers.values())
            lost.setdefault((row["label"], answer), []).append((share, row["clip"]))
    totals = Counter(row["label"] for row in rows)

    def rank(pair: tuple[str, str]) -> tuple[float, ...]:
        number = len(lost[pair])
        return -number, -number / totals[pair[0]], LABELS.index(pair[0]), LABELS.index(pair[1])

    listed = sorted(lost, key=rank)[:PAIRS]
    text = (run / "report.html").read_text("utf-8")
    part = text.split('id="confused-1"')[1].split("</section>")[0]
    page = Page(f"<section{part}</section>")
    shown = [text.strip() for text in re.findall(r"<figcaption>(.*?)<span>", part)]
    wanted = [clip for pair in listed for _, clip in sorted(lost[pair], reverse=True)[:EACH]]
    assert shown == wanted and len(wanted) > 2
    assert part.count("data:image/jpeg") == FRAMES * len(wanted)
    for pair in listed:
        assert f"{pair[0]} taken for {pair[1]}" in page.words
        assert f"{100 * max(lost[pair])[0]:.1f} % {pair[1]}" in page.words
    assert ("Clips are shown of the first 6 pairs." in page.words) == (len(lost) > PAIRS == 6)


def parsed(command: str) -> dict[str, Any]:
    """The options of a `vireo eval` command."""
    parser = Parser.of("vireo eval", cli.VERBS["eval"])
    return vars(parser.parse_args(parser.canonical(shlex.split(command)[2:])))


def test_a_run_that_was_not_evaluated_says_how(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("best.eval", "last.eval"):
        shutil.rmtree(copy / name)
    assert cli.main(["report", str(copy), "--workers", "0"]) == 0
    assert "report.html" in capsys.readouterr().out
    page = check((copy / "report.html").read_text("utf-8"))
    assert "no evaluation yet" in page.words and "Confusion" not in page.words
    typed = next(line for line in page.text if line.startswith("vireo eval")).splitlines()[0]
    values = parsed(typed)
    assert values["checkpoints"] == [copy / "best.safetensors"] and values["data"].endswith("list.csv")


def test_what_was_not_probed_says_how(run: Path) -> None:
    page = check((run / "report.html").read_text("utf-8"))
    typed = [line for line in page.text if line.startswith("vireo eval")]
    assert len(typed) == 1 and "last.safetensors" in typed[0] and "--shuffle-frames" in typed[0]
    assert parsed(typed[0])["shuffle_frames"] == 10


def test_an_evaluation_alone_is_enough(run: Path, tmp_path: Path) -> None:
    found = write_run_report(run / "best.eval", out=tmp_path / "one.html", workers=0)
    page = check(found.path.read_text("utf-8"))
    assert "Learning curves" not in page.words and "Confusion matrix" in page.words


def test_an_evaluation_of_earlier_weights_is_marked(copy: Path) -> None:
    os.utime(copy / "best.safetensors", (2e9, 2e9))
    assert [one.outdated for one in read_folder(copy).evaluations] == [True, False]
    page = check(write_run_report(copy, workers=0).path.read_text("utf-8"))
    assert page.words.count("may be of earlier weights") == 1


def test_clips_that_are_gone_leave_words_and_other_data_are_not_mistaken(copy: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((copy / "config.yaml").read_text("utf-8"))
    (copy / "config.yaml").write_text(yaml.safe_dump({**settings, "data": str(tmp_path / "gone")}), encoding="utf-8")
    written = write_run_report(copy, workers=0)
    text = written.path.read_text("utf-8")
    assert text.count("data:image/jpeg") == 0 and "say with --data" in check(text).words
    assert all("say with --data" in note for note in written.notes) and len(written.notes) == 2
    with pytest.raises(UsageError, match="does not exist"):
        write_run_report(copy, data=str(tmp_path / "gone"), workers=0)
    assert write_run_report(copy, data=settings["data"], workers=0).notes == ()


# --- clips that take long ------------------------------------------------------------------------------


def write_slowest(folder: Path, rows: list[tuple[str, str, str, str]]) -> None:
    with (folder / "slowest.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("path", "label", "seconds", "times_median"), *rows])


def test_the_slowest_clips_are_listed(copy: Path) -> None:
    assert "longest to read" not in check(write_run_report(copy, workers=0).path.read_text("utf-8")).words
    rows = [(f"{HOSTILE[1]}{i}.mp4", LABELS[0], f"{2.5 / (i + 1):.4g}", f"{50 / (i + 1):.3g}") for i in range(15)]
    rows[1] = ("caf\udce9\n.mp4", *rows[1][1:])  # no UTF-8, and a line break
    write_slowest(copy / "best.eval", rows)
    text = write_run_report(copy, workers=0).path.read_text("utf-8")
    page, part = check(text), text.split('id="slowest-0"')[1].split("</section>")[0]
    assert 'id="slowest-1"' not in text and 'href="#slowest-0"' in text
    shown = Page(f"<section{part}</section>").words
    assert shown.count(".mp4") == MOST_SLOW and "caf??.mp4" in shown and "The median of all clips is 50 ms." in shown
    end = "/".join(HOSTILE[1].split("/")[-3:])
    assert f"{end}0.mp4 {LABELS[0]} 2.5 s 50.0 ×" in page.words and " 250 ms 5.0 ×" in shown
    assert [float(width) for width in re.findall(r"width:([\d.]+)%", part)] == [
        pytest.approx(100 / (i + 1), abs=0.06) for i in range(MOST_SLOW)
    ]
    rows = [("/home/anna/clips/x/a.mp4", "x", "0", ""), ("b.mp4", "x", "0", "")]  # a clock that saw nothing
    write_slowest(copy / "best.eval", rows)
    words = check(write_run_report(copy, workers=0).path.read_text("utf-8")).words
    assert "clips/x/a.mp4 x 0 ms –" in words and "anna" not in words


def test_what_an_evaluation_writes_of_slow_clips_is_read(tmp_path: Path) -> None:
    rows = (Slow("caf\udce9\n.mp4", HOSTILE[0], 2.5, 50.0), Slow('b,"c".mp4', "élan 手", 0.0, math.nan))
    truth = torch.arange(8) % 4
    scores = Scores(logits=scores_of(1, 1.0, truth, 4), labels=truth, indices=torch.arange(8), failures=())
    found = measure(scores, LABELS, {"checkpoint": "tsn"})
    write_evaluation(replace(found, slowest=rows), tmp_path)
    assert repr(read_slowest(tmp_path / "slowest.csv")) == repr(rows)


@pytest.mark.parametrize("row", ["a.mp4,x,nan,1", "a.mp4,x,-1,1", "a.mp4,x,1,inf", "a.mp4,x,one,1", "a.mp4,x"])
def test_a_damaged_list_of_slow_clips_costs_that_list(copy: Path, row: str) -> None:
    path = copy / "best.eval" / "slowest.csv"
    path.write_text(f"path,label,seconds,times_median\n{row}\n", encoding="utf-8")
    found = read_folder(copy)
    assert [one.name for one in found.evaluations] == ["best", "last"] and found.evaluations[0].slowest == ()
    assert len(found.faults) == 1 and f"{path}: not a list of slow clips" in found.faults[0]
    path.write_text("path,reason\na,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="no 'seconds'"):
        read_slowest(path)


def test_the_fifth_best_of_five_classes_is_no_result(run: Path) -> None:
    one = read_evaluation(run / "best.eval")
    assert "Top-5" not in figures(one) and "Top-4" not in figures(one)
    labels, counts = tuple(map(str, range(6))), np.eye(6, dtype=np.int64)
    assert "Top-5 accuracy" in figures(replace(one, labels=labels, confusion=counts))


def test_clips_of_flow_are_shown_by_the_colour_of_their_motion(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for label, value in (("left", 60), ("right", 200)):
        (data / label).mkdir(parents=True)
        for i in range(3):
            fields = np.full((6, 2, 40, 60), 128, np.uint8)
            fields[:, 0, 10:30, 10:50] = value
            np.save(data / label / f"{i}.npy", fields)
    table = read_table(data, modality="flow")
    truth = torch.from_numpy(table.labels)
    scores = Scores(logits=torch.eye(2)[1 - truth], labels=truth, indices=torch.arange(6), failures=())
    found = measure(scores, table.label_names, {"checkpoint": "tsn", "split": "all"})
    write_evaluation(replace(found, clip_scores=tabulate(scores, table, "flow")), run / "best.eval")
    written = write_run_report(run, data=str(data), workers=0)
    assert written.notes == ()
    text = written.path.read_text("utf-8")
    check(text)
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert len(pictures) == 2 * EACH * FRAMES
    colours = []
    for picture in pictures:
        shown = decode_jpeg(torch.frombuffer(bytearray(base64.b64decode(picture)), dtype=torch.uint8)).float()
        assert shown[:, 2, 2].min() > 235 and shown.shape[-1] > shown.shape[-2]  # no motion is white
        middle = shown[:, shown.shape[1] // 2, shown.shape[2] // 2]
        colours.append("red" if middle[0] > middle[2] + 80 else "blue" if middle[2] > middle[0] + 40 else "?")
    assert sorted(set(colours)) == ["blue", "red"] and colours.count("red") == EACH * FRAMES


# --- models side by side ------------------------------------------------------------------------------


def test_models_side_by_side(tmp_path: Path) -> None:
    truth = torch.arange(24) % 4
    found = [
        measure(
            Scores(logits=scores_of(1, strength, truth, 4), labels=truth, indices=torch.arange(24), failures=()),
            LABELS,
            {"expected": 24, "scored": 24, "failed": 0},
        )
        for strength in (0.2, 3.0)
    ]

    def page_of(*results: Evaluation) -> str:
        rows = [[{"epoch": 1, "loss": 2.0, "top1": 0.1}, {"epoch": 2, "loss": 1.0}, {"epoch": 3, "top1": 0.4}], []]
        models = [
            ModelSection(name=name, about="<i>", evaluation=one, metrics=metrics, seconds=1)
            for name, one, metrics in zip(("<b>A", "B"), results, rows, strict=False)
        ]
        path = write_report(tmp_path / "page.html", title=HOSTILE[0], intro=(), models=models)
        return path.read_text("utf-8")

    text = page_of(*found)
    page = Page(text)
    assert not page.scripts and not any(hostile in text for hostile in HOSTILE)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    lines = [json.loads(attrs["data-lines"] or "") for _, attrs in page.elements if "data-lines" in attrs]
    assert lines == [
        {"<b>A": [[1, 0.0, 2.0], [2, 50.0, 1.0]]},
        {"<b>A": [[1, 0.0, 10.0], [3, 100.0, 40.0]]},
    ]
    assert text.count('<svg class="matrix') == 2 and "arrow keys" not in text
    assert text.count('class="card best"') == 1 and text.index('class="card best"') > text.index("&lt;b&gt;A</div>")
    assert page_of(found[1], found[1]).count('class="card best"') == 0  # neither is better
    assert page_of(found[0]).count('class="card best"') == 1


# --- bad input ----------------------------------------------------------------------------------------


def damaged(found: dict[str, Any], change: str) -> str:
    if change == "ragged":
        found["confusion"][0] = [1]
    elif change == "negative":
        found["confusion"][0][0] -= 100
        found["confusion"][0][1] += 100
    elif change == "counts":
        found["scored"] += 1
    elif change == "label":
        found["classes"][0]["label"] = 3
    elif change == "accuracy":
        found["top1"] = 1.5
    elif change == "nan":
        found["top5"] = math.nan
    elif change == "interval":
        found["interval95"] = [0.9]
    elif change == "order":
        found["order"]["orders"]["shuffled"]["lost"] = "much"
    elif change == "failures":
        found["failures"] = [{"path": 1}]
    elif change == "missing":
        del found["confusion"]
    return json.dumps(found)


DAMAGES = (
    *("ragged", "negative", "counts", "label", "accuracy", "nan", "interval", "order", "failures", "missing"),
    *("torn", "list", "deep"),
)


@pytest.mark.parametrize("change", DAMAGES)
def test_a_damaged_evaluation_is_named_and_the_rest_is_shown(copy: Path, change: str) -> None:
    path = copy / "best.eval" / "evaluation.json"
    plain = {"torn": path.read_text("utf-8")[:300], "list": "[]", "deep": "[" * 200_000}
    path.write_text(plain.get(change) or damaged(stated(copy), change), encoding="utf-8")
    with pytest.raises(DataError, match="not the result of an evaluation"):
        read_evaluation(path.parent)
    found = read_folder(copy)
    assert [one.name for one in found.evaluations] == ["last"] and len(found.faults) == 1
    assert str(path) in found.faults[0] and len(found.faults[0]) < 600


def test_pipes_are_not_waited_for(copy: Path) -> None:
    (copy / "failed.csv").unlink()
    os.mkfifo(copy / "failed.csv")
    (copy / "best.eval" / "evaluation.json").unlink()
    os.mkfifo(copy / "best.eval" / "evaluation.json")
    found = read_folder(copy)
    assert [one.name for one in found.evaluations] == ["last"] and "not a file" in found.faults[0]


def test_older_evaluations_are_read(copy: Path) -> None:
    path = copy / "best.eval" / "evaluation.json"
    older = {k: v for k, v in stated(copy).items() if k not in ("bootstrap95", "calibration", "most_confused", "order")}
    path.write_text(json.dumps(older), encoding="utf-8")
    found = read_evaluation(path.parent)
    assert found.trust is None and found.orders == () and found.top1 == older["top1"]
    check(write_run_report(copy, workers=0).path.read_text("utf-8"))


def test_only_an_earlier_page_is_replaced(copy: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.html"
    thesis.write_text(f"<p>all my work</p>{'x' * 1000}", encoding="utf-8")
    for out in (thesis, copy / "best.safetensors", tmp_path / "page.txt"):
        before = out.read_bytes() if out.exists() else None
        with pytest.raises(UsageError, match=re.escape(str(out))):
            write_run_report(copy, out=out, workers=0)
        assert (out.read_bytes() if out.exists() else None) == before
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UsageError, match="no file"):
        write_run_report(copy, out=tmp_path / "folder.html", workers=0)
    assert (copy / "report.html").read_text("utf-8").rstrip().endswith(MARK)
    (copy / "metrics.csv").write_text("epoch,loss,top1\n1,2.5,0.125\n", encoding="utf-8")
    assert "12.5 %" in check(write_run_report(copy, workers=0).path.read_text("utf-8")).words


def test_what_is_no_run(tmp_path: Path) -> None:
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    with pytest.raises(UsageError, match="no run's folder"):
        write_run_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- charts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 10, 41, 174])
def test_every_cell_of_a_matrix_is_drawn_once_in_its_colour(count: int) -> None:
    draw = np.random.default_rng(count)
    counts = draw.integers(0, 9, (count, count)) * (draw.random((count, count)) < 0.3)
    drawn = charts.matrix(counts, [f"class {i}" for i in range(count)])
    Page(drawn.svg)
    cell, places = drawn.data["cell"], Counter[tuple[int, int]]()
    for look, mix, steps in re.findall(r'<path class="(\w+)" style="--mix:(\d+)%" d="(.*?)"', drawn.svg):
        for x, y in re.findall(r"M([\d.]+) ([\d.]+)h", steps):
            row, column = round(float(y) / cell), round(float(x) / cell)
            places[row, column] += 1
            assert (look == "right") == (row == column)
            share = counts[row, column] / counts[row].sum()
            assert abs((int(mix) - 8) / 92 - math.sqrt(share)) <= 1 / charts.LEVELS + 0.011  # of the next shade above
    assert places == Counter({(int(r), int(c)): 1 for r, c in np.argwhere(counts)})


def test_of_many_classes_the_matrix_shows_those_that_err_most() -> None:
    counts = np.diag(np.full(charts.MOST_CLASSES + 50, 5))
    counts[-1, -2] = 3
    drawn = charts.matrix(counts, [str(i) for i in range(len(counts))])
    assert drawn.shown == charts.MOST_CLASSES == len(drawn.data["labels"])
    assert {"348", "349"} <= set(drawn.data["labels"]) and "[[348" not in drawn.data["labels"]


def test_ten_thousand_classes_stay_a_page_of_a_few_megabytes() -> None:
    count, names = 6000, 300  # a name of 300 characters is cut
    one = EvaluationRecord(
        folder=Path("best.eval"),
        facts={},
        expected=count,
        scored=count,
        failed=0,
        top1=0.5,
        top5=0.5,
        mean_class=0.5,
        interval=(0.4, 0.6),
        labels=tuple(f"{i:05d}{'<' * names}" for i in range(count)),
        confusion=np.roll(np.eye(count, dtype=np.int8), 1, axis=1).astype(np.int8),
    )
    table, drawn = classes(one, 0), confusion(one, 0)
    assert table.count("<tr>") == MOST_ROWS + 1 and "5,000 of 6,000 classes" in table
    assert len(table) + len(drawn) < 12 << 20  # of which each < takes four characters
    Page(table)
    Page(drawn)


def test_curves_skip_what_was_not_measured_and_stay_short() -> None:
    rows = [{"epoch": i, "loss": 1 / i, "top1": 0.5 if i % 2 else math.nan} for i in range(1, 5001)]
    drawn = charts.learning_curves(rows, 6000)
    page = Page(drawn)
    lines = [json.loads(attrs["data-lines"] or "") for _, attrs in page.elements if "data-lines" in attrs]
    assert list(lines[0]) == ["loss"] and list(lines[1]) == ["validation"]
    for of in (*lines[0].values(), *lines[1].values()):
        assert len(of) <= charts.MOST_POINTS + 1
    assert lines[0]["loss"][0] == [1, 0.0, 1.0] and lines[0]["loss"][-1][0] == 5000
    assert all(epoch % 2 for epoch, _, _ in lines[1]["validation"])
    for wild in ([], [{"epoch": 1, "loss": math.inf, "top1": math.nan}], [{"epoch": 3, "loss": 1e300, "top1": 1.0}]):
        Page(charts.learning_curves(wild, 1))


# --- in a browser -------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    found = Browser(tmp_path / "profile")
    yield found
    found.close()


def test_the_page_works_in_a_browser(run: Path, browser: Browser) -> None:
    browser.look(1280)
    browser.open(run / "report.html")
    best, last = stated(run), stated(run, "last")
    seen = "[...document.querySelectorAll('.figure .value')].filter(e => e.offsetParent).map(e => e.textContent)"
    assert browser.value(seen)[0] == f"{100 * best['top1']:.1f} %"

    browser.click("[data-tab='1']")
    assert browser.value(seen)[0] == f"{100 * last['top1']:.1f} %"
    assert browser.value("document.querySelector('[data-tab=\"1\"]').getAttribute('aria-pressed')") == "true"
    assert browser.value("document.querySelector('nav a[href^=\"#confusion\"]').hash") == "#confusion-1"
    browser.click("[data-tab='0']")

    names = (
        "[...document.querySelectorAll('#table-0 tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    )
    assert browser.value(names) == list(LABELS)
    accuracy = {row["label"]: row["accuracy"] for row in best["classes"]}
    browser.click("#table-0 th:nth-child(4) button")
    falling = [accuracy[name] for name in browser.value(names)]
    assert falling == sorted(falling, reverse=True)
    browser.click("#table-0 th:nth-child(4) button")
    rising = [accuracy[name] for name in browser.value(names)]
    assert rising == sorted(rising) and len(set(rising)) > 1
    assert browser.value("document.querySelector('#table-0 th:nth-child(4)').ariaSort") == "ascending"
    browser.click("#filter-0")
    browser.type("ÉLAN")
    assert browser.value(names) == [LABELS[3]]
    assert browser.value("document.querySelector('output[for=filter-0]').value") == "1 of 4 classes"

    matrix = np.array(best["confusion"])
    told = "document.querySelector('.told').textContent"
    x, y = browser.place("[data-evaluation='0'] svg.matrix .sheet")
    width = browser.value("document.querySelector('svg.matrix .sheet').getBoundingClientRect().width")
    for row, column in ((0, 0), (3, 1), (2, 3)):
        browser.point(x + (column - 1.5) * width / 4, y + (row - 1.5) * width / 4)
        answer = browser.value(told)
        assert answer.startswith(f"{matrix[row, column]} of {matrix[row].sum()}clips of “{LABELS[row]}”")
        assert (f"taken for “{LABELS[column]}”" in answer) == (row != column)
    browser.value("document.querySelector('svg.matrix').focus()")
    for key in ("ArrowUp", "ArrowLeft", "ArrowUp", "ArrowUp", "ArrowUp"):
        browser.key(key)
    assert browser.value(told).startswith(f"{matrix[0, 2]} of {matrix[0].sum()}clips of “{LABELS[0]}”")

    x, y = browser.place(".plot[data-lines]")
    browser.point(x + 2000, y)
    browser.point(x, y)
    assert re.fullmatch(r"epoch [23]\nloss (1|0\.8)", browser.value("document.querySelector('.tip').textContent"))

    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "about:"))] == []


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_telephone_and_its_text_can_be_read(run: Path, browser: Browser, dark: bool) -> None:
    browser.look(400, dark=dark)
    browser.open(run / "report.html")
    assert browser.value("document.documentElement.scrollWidth") <= 400
    colour = "getComputedStyle(document.querySelector({!r})).{}.match(/[0-9.]+/g).slice(0, 3).map(Number)"

    def luminance(query: str, what: str) -> float:
        parts = [part / 255 for part in browser.value(colour.format(query, what))]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [
        ("body", "body"),
        (".muted", "body"),
        (".figure h3", ".figure"),
        (".first .value", ".figure"),
        (".tag.bad", ".tag.bad"),
        (".tabs [aria-pressed=false]", ".tabs"),
        ("table td", "table"),
    ]
    for text, ground in pairs:  # WCAG 2, level AA
        light, deep = sorted((luminance(text, "color"), luminance(ground, "backgroundColor")), reverse=True)
        assert (light + 0.05) / (deep + 0.05) >= 4.5, (text, ground)
    assert (luminance("body", "backgroundColor") < 0.1) == dark
    assert browser.complaints == []


def test_an_evaluation_s_own_folder_and_data_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = write_run(tmp_path)
    path = found / "last.eval" / "evaluation.json"
    said = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**said, "data": str(tmp_path / "data" / "list.csv")}))
    moved = Path(shutil.move(found / "last.eval", tmp_path / "alone" / "last.eval"))
    monkeypatch.chdir(moved)
    written = write_run_report(Path(), workers=0)
    page = (moved / "report.html").read_text("utf-8")
    assert "last" in check(page).text and not written.notes and "data:image/jpeg" in page
