"""Scores as Parquet: every bit comes back, other libraries read it, and files that are no tables are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import vireo.scores as module
from vireo.errors import DataError, MissingDependencyError, StorageError, UsageError
from vireo.scores import ScoreTable, differing_lists, read_facts, read_scores, write_parquet, write_scores


def some_table(clips: tuple[str, ...] | None = None, classes: tuple[str, ...] = ("clap", "jump", "wave")) -> ScoreTable:
    generator = torch.Generator().manual_seed(0)
    clips = clips or tuple(f"wave/clip {i}" for i in range(40))
    scores = torch.randn(len(clips), len(classes), generator=generator)
    scores *= 10.0 ** torch.randint(-30, 30, (len(clips), 1), generator=generator)
    scores[3] = torch.nan
    labels = torch.randint(0, len(classes), (len(clips),), generator=generator)
    return ScoreTable(clips=clips, labels=labels, label_names=classes, scores=scores, modality="flow")


@pytest.mark.parametrize(
    "table",
    [
        some_table(),
        some_table(tuple(f"a, {i}/\udcff{i}" for i in range(9))),  # names of files need not be UTF-8
        some_table(classes=("clip", "label", 'say "a, b"', "日本\nx")),  # the columns' own names, too
    ],
)
def test_a_table_comes_back_from_parquet_bit_for_bit(tmp_path: Path, table: ScoreTable) -> None:
    found = read_scores(write_parquet(tmp_path / "scores.parquet", table))
    assert found.clips == table.clips and found.label_names == table.label_names
    assert torch.equal(found.labels, table.labels) and found.modality == "flow"
    assert found.scores.dtype == torch.float32 and found.read.tolist() == [i != 3 for i in range(len(table.clips))]
    assert torch.equal(found.scores.nan_to_num(7.5), table.scores.nan_to_num(7.5))
    same = read_scores(write_scores(tmp_path / "other.csv", table))
    assert torch.equal(found.scores.nan_to_num(7.5), same.scores.nan_to_num(7.5)) and found.clips == same.clips


def test_other_libraries_see_the_columns(tmp_path: Path) -> None:
    table = some_table()
    read = pq.read_table(write_parquet(tmp_path / "scores.parquet", table))
    assert read.column_names == ["clip", "label", "clap", "jump", "wave"]
    assert read.column("wave").type == pa.float32() and read.column("wave").null_count == 1
    assert read.column("label").to_pylist() == [table.label_names[i] for i in table.labels]
    assert read.column("clip").type == pa.string()


def test_a_folder_s_csv_goes_first(tmp_path: Path) -> None:
    write_parquet(tmp_path / "scores.parquet", some_table())
    assert len(read_scores(tmp_path).clips) == 40
    write_scores(tmp_path / "scores.csv", some_table(("a", "b", "c", "d")))
    assert len(read_scores(tmp_path).clips) == 4


def columns(**changes: object) -> dict[str, object]:
    return {"clip": ["x", "y"], "label": ["a", "b"], "a": [1.0, 2.0], "b": [0.5, 0.25], **changes}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"path": ["x"], "a": [1.0]}, "its columns must be clip, label, CLASS"),
        ({"clip": ["x"], "label": ["a"]}, "its columns must be clip, label, CLASS"),
        (columns(clip=["x", "x"]), "row 2: clip 'x' stands in row 1 already"),
        (columns(clip=["x", None]), "a clip or a label is empty or no text"),
        (columns(clip=[1, 2]), "a clip or a label is empty or no text"),
        (columns(label=["a", "c"]), "row 2: label 'c' is not among the classes"),
        (columns(a=["1", "2"]), "a column of scores holds string, not numbers"),
        (columns(a=[1.0, None]), "row 2: a score is infinite or not a number"),
        (columns(a=[1.0, float("nan")]), "row 2: a score is infinite or not a number"),
        (columns(a=[1.0, 1e300]), "row 2: a score is infinite or not a number"),
        (
            {name: [] for name in columns()} | {"a": pa.array([], pa.float32()), "b": pa.array([], pa.float32())},
            "lists no clips",
        ),
    ],
)
def test_parquet_files_that_are_no_tables(tmp_path: Path, content: dict[str, object], says: str) -> None:
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table(content), path)
    with pytest.raises(DataError, match=r"scores\.parquet") as caught:
        read_scores(path)
    assert says in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_damaged_and_huge_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "scores.parquet", some_table())
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], whole[:40] + b"\xff" * 200 + whole[240:], b"clip,label\n"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"scores\.parquet"):
            read_scores(path)
    path.write_bytes(whole)
    monkeypatch.setattr(module, "_MOST_CELLS", 100)
    with pytest.raises(DataError, match="40 rows of 5 columns; that is too large"):
        read_scores(path)
    with pytest.raises(StorageError, match="could not be written"):
        write_parquet(tmp_path / "gone" / "scores.parquet", some_table())
    with pytest.raises(UsageError, match="does not exist"):
        read_scores(tmp_path / "gone.parquet")


def test_without_pyarrow_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "scores.parquet", some_table())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        read_scores(path)
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        write_parquet(path, some_table())


def test_what_lies_beside_scores_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scores(tmp_path / "scores.csv", some_table())
    beside = tmp_path / "evaluation.json"
    beside.write_text(json.dumps({"modality": "flow", "checkpoint": "x", "scored": 3}), encoding="utf-8")
    assert read_scores(tmp_path).modality == "flow"
    assert read_facts(tmp_path) == read_facts(tmp_path / "scores.csv") == {"modality": "flow", "checkpoint": "x"}
    with monkeypatch.context() as patch:
        patch.setattr(module, "_MOST_FACTS", 20)
        assert read_scores(tmp_path).modality == "" and read_facts(tmp_path) == {}
    beside.unlink()
    os.mkfifo(beside)  # nobody writes to it: opening it would wait for ever
    assert read_scores(tmp_path).modality == "" and read_facts(tmp_path) == {}


def test_text_that_is_no_utf8_is_damage(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "scores.parquet", some_table(("clip_ä",) * 1 + tuple("bcde")))
    content = path.read_bytes()
    table = pa.table(
        {"clip": pa.array([b"\xff\xfe"], pa.binary()).cast(pa.string(), safe=False), "label": ["a"], "a": [1.0]}
    )
    pq.write_table(table, path)
    assert path.read_bytes() != content
    with pytest.raises(DataError, match="can't be read as Parquet"):
        read_scores(path)


def test_lists_that_differ_are_told() -> None:
    same = {"split": "val", "data_hash": "1", "modality": "rgb"}
    assert differing_lists([same, same]) == "" == differing_lists([same, {}])
    assert "parts of the data differ (val and test)" in differing_lists([same, {**same, "split": "test"}])
    assert "lists of clips differ (1 and 2)" in differing_lists([same, {**same, "data_hash": "2"}])
    assert differing_lists([same, {**same, "data_hash": "2", "modality": "flow"}]) == ""  # its files are others


def test_what_was_meant_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="is a checkpoint; score it with `vireo eval`"):
        read_scores(tmp_path / "best.safetensors")
    (tmp_path / "best.eval").mkdir()
    write_scores(tmp_path / "best.eval" / "scores.csv", some_table())
    for path in (tmp_path, tmp_path / "best.safetensors"):
        with pytest.raises(UsageError, match=r"did you mean .*best\.eval\?"):
            read_scores(path)
