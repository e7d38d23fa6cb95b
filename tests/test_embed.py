"""Features of clips: what the classifier sees; scikit-learn's neighbours and components; what the command writes."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.metrics.pairwise import cosine_similarity

from tests.video_tools import write_class_folders, write_video
from vireo import cli
from vireo.checkpoint import load_checkpoint, save_checkpoint
from vireo.config import ViewConfig
from vireo.data.annotations import read_table
from vireo.data.faults import TooManyFailuresError
from vireo.data.table import ClipTable
from vireo.embed import (
    FeatureWriter,
    Query,
    embed_command,
    feature_file,
    find_queries,
    load_embeddings,
    nearest_rows,
    principal_components,
    tsne_map,
)
from vireo.errors import DataError, DecodeError, MissingDependencyError, StorageError, UnknownNameError, UsageError
from vireo.evaluate import evaluate
from vireo.model import create_model
from vireo.plots import map_png
from vireo.predict import load_clip
from vireo.scores import clip_names

LABELS = ("clap", "jump", "wave")


class Blocks:
    """Features that note how many rows were taken from them at a time."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows, self.largest = rows, 0
        self.shape, self.dtype = rows.shape, rows.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: Any) -> np.ndarray:
        found: np.ndarray = self._rows[at]
        self.largest = max(self.largest, len(found))
        return found


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("rows", [1, 12, 1003])
def test_rows_are_appended_to_a_file_that_numpy_reads(tmp_path: Path, rows: int, precision: Any) -> None:
    given = torch.randn(rows, 5)
    with feature_file(tmp_path / "f.npy", precision) as writer:
        for some in given.split(100):
            writer.append(some)
    found = np.load(tmp_path / "f.npy")
    assert found.dtype == precision and np.array_equal(found, given.numpy().astype(precision))
    assert np.array_equal(np.load(tmp_path / "f.npy", mmap_mode="r")[-1], found[-1])


@pytest.mark.parametrize(
    ("value", "precision"), [(float("nan"), "float32"), (float("inf"), "float32"), (1e5, "float16")]
)
def test_values_that_say_nothing_are_refused_and_leave_the_old_file(
    tmp_path: Path, value: float, precision: Any
) -> None:
    (tmp_path / "f.npy").write_text("old", encoding="utf-8")
    with (
        pytest.raises(DataError, match="infinite or not a number"),
        feature_file(tmp_path / "f.npy", precision) as writer,
    ):
        writer.append(torch.ones(2, 3))
        writer.append(torch.tensor([[1.0, value, 1.0]]))
    assert [path.name for path in tmp_path.iterdir()] == ["f.npy"]
    assert (tmp_path / "f.npy").read_text(encoding="utf-8") == "old"


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FeatureWriter, "append", full)
    says = r"f\.npy: could not be written: No space"
    with pytest.raises(StorageError, match=says), feature_file(tmp_path / "f.npy") as writer:
        writer.append(torch.ones(1, 1))
    assert not list(tmp_path.iterdir())


# --- neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_neighbours_are_scikit_learns(block: int, dtype: type) -> None:
    rng = np.random.default_rng(block)
    features = rng.normal(size=(200, 16)).astype(dtype)
    own = [3, 199, -1]
    queries = np.stack([features[3], features[199], rng.normal(size=16)])
    cosines = cosine_similarity(queries, features.astype(np.float64))
    cosines[0, 3] = cosines[1, 199] = -np.inf
    source = Blocks(features)
    found = nearest_rows(source, queries, 6, own=own, block=block)  # type: ignore[arg-type]
    assert np.array_equal(found.rows, np.argsort(-cosines, axis=1)[:, :6])
    assert np.allclose(found.similarities, np.sort(cosines, axis=1)[:, ::-1][:, :6], atol=1e-5)
    assert source.largest <= block


def test_where_there_are_no_more_neighbours() -> None:
    features = np.array([[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0], [3.0, 0.0]], np.float32)
    found = nearest_rows(features, features[:1], 9, own=[0])
    assert found.rows.tolist() == [[3, 1, 2] + [-1] * 6]
    assert found.similarities[0, :3].tolist() == [1, 0, -1] and np.isnan(found.similarities[0, 3:]).all()
    assert nearest_rows(features, features[:1], 2).rows.tolist() in ([[0, 3]], [[3, 0]])  # both look the same way


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "block"), [((300, 12), 64), ((300, 12), 1000), ((8, 40), 3)])
def test_principal_components_are_scikit_learns(shape: tuple[int, int], block: int) -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=shape) * np.linspace(3, 0.5, shape[1]) + 50).astype(np.float32)
    source = Blocks(features)
    found = principal_components(source, 3, block=block)  # type: ignore[arg-type]
    reference = PCA(3, svd_solver="full").fit(features.astype(np.float64))
    points = reference.transform(features.astype(np.float64))
    signs = np.sign((points * found.points).sum(0))
    assert np.allclose(found.points, points * signs, atol=1e-3)
    assert found.shares == pytest.approx(reference.explained_variance_ratio_, rel=1e-6)
    assert source.largest <= block


def test_the_direction_of_components_is_settled() -> None:
    features = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32) * [5, 1, 1, 1]
    found = principal_components(features.astype(np.float32))
    assert np.corrcoef(found.points[:, 0], features[:, 0])[0, 1] > 0.9  # its largest weight, positive
    some = np.arange(0, 50, 2)
    assert np.array_equal(principal_components(features, rows=some).points, principal_components(features[some]).points)


def test_components_of_small_spread_far_from_zero_are_exact() -> None:
    # 1000 ± 0.01: squares about zero would lose what matters. (scikit-learn's own choice here loses some.)
    rng = np.random.default_rng(2)
    features = (rng.normal(size=(400, 3)) * [1, 0.1, 0.01] + 1000).astype(np.float32)
    found = principal_components(features, 3)
    reference = PCA(3, svd_solver="full").fit(features.astype(np.float64))
    assert found.shares == pytest.approx(reference.explained_variance_ratio_, rel=1e-6)


@pytest.mark.parametrize("features", [np.ones((1, 4)), np.ones((6, 4)), np.zeros((3, 4))])
def test_a_map_of_clips_that_do_not_differ(features: np.ndarray) -> None:
    found = principal_components(features.astype(np.float32))
    assert not found.points.any() and not found.shares.any()
    if len(features) > 5:
        assert not tsne_map(features.astype(np.float32)).any()


def test_one_feature_gives_one_direction() -> None:
    found = principal_components(np.arange(5, dtype=np.float32)[:, None])
    assert found.points[:, 0].tolist() == [-2, -1, 0, 1, 2] and not found.points[:, 1].any()
    assert found.shares.tolist() == [1, 0]


def test_tsne_keeps_near_clips_near() -> None:
    features, groups = make_blobs(90, 60, centers=3, cluster_std=1.0, random_state=0)
    found = tsne_map(features.astype(np.float32), seed=3)
    assert trustworthiness(features, found, n_neighbors=8) > 0.9
    centres = np.stack([found[groups == g].mean(0) for g in range(3)])
    nearest = np.linalg.norm(found[:, None] - centres, axis=2).argmin(1)
    assert (nearest == groups).mean() > 0.95
    assert np.array_equal(found, tsne_map(features.astype(np.float32), seed=3))
    with pytest.raises(UsageError, match="t-SNE of 4 clips"):
        tsne_map(features[:4].astype(np.float32))


def test_tsne_without_scikit_learn_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install scikit-learn"):
        embed_command(tmp_path / "not even read", "data", map="tsne")
    with pytest.raises(MissingDependencyError, match="scikit-learn"):
        tsne_map(np.ones((9, 2), np.float32))


def test_maps_take_any_names_and_many_classes() -> None:
    rng = np.random.default_rng(0)
    names = ["$x$", "_hidden", "手を振る", *("pretending to " * 9 + str(i) for i in range(171))]
    png = map_png(
        rng.normal(size=(500, 2)),
        rng.integers(0, 174, 500),
        names,
        shown=range(12),
        title="$title$",
        marked=[("$a$", 0.0, 0.0)],
        note="note",
    )
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert map_png(np.zeros((1, 2)), np.zeros(1, np.int64), ["a"], shown=[0], title="")[:4] == b"\x89PNG"


# --- which clips are meant --------------------------------------------------------------------------------------------


def test_queries_are_names_parts_of_names_or_files(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", {"clap": 2, "wave": 1}, frames=2)
    shutil.copy(data / "clap" / "clap_0.mp4", data / "wave" / "clap_0.mp4")
    new = write_video(tmp_path / "new.mp4", 2)
    table = read_table(data)
    names = ["clap/clap_0", "clap/clap_1", "wave/clap_0", "wave/wave_0"]
    wanted = ["wave/wave_0", "clap_1", str(data / "wave" / ".." / "wave" / "clap_0.mp4"), str(new)]
    cuts = ClipTable.of_paths([str(new), str(new), str(data / "clap" / "clap_0.mp4")])
    with pytest.raises(UsageError, match=r"2 clips are of '.*new\.mp4', e\.g\. 'a'; give the name of one"):
        find_queries([str(new)], ["a", "b", "c"], cuts)
    assert find_queries([wanted[2], str(data / "clap" / "clap_0.mp4")], ["a", "b", "c"], cuts)[1].row == 2
    assert find_queries(wanted, names, table) == [
        *(Query(name=name, row=row) for name, row in zip(wanted, (3, 1, 2, None), strict=True))
    ]
    with pytest.raises(UsageError, match=r"2 clips are called 'clap_0', e\.g\. 'clap/clap_0'"):
        find_queries(["clap_0"], names, table)
    with pytest.raises(UnknownNameError, match=r"Unknown clip 'clap/clap_2'\. Did you mean 'clap/clap_"):
        find_queries(["clap/clap_2"], names, table)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("a.avi", "a.mp4", "a.avi.mp4"), ("a.avi", "a.mp4", "a.avi.mp4")),
        (("a.avi", "a.avi.mp4"), ("a", "a.avi.mp4")),
        (("a", "a.mp4", "b.npy"), ("a", "a.mp4", "b")),
        (("x/a.mp4", "x/a.mp4.avi", "x/a.mp4.avi.mkv", "y/a.mp4"), ("x/a", "x/a.mp4.avi", "x/a.mp4.avi.mkv", "y/a")),
    ],
)
def test_no_two_clips_have_one_name(files: tuple[str, ...], names: tuple[str, ...]) -> None:
    for order in (1, -1):
        assert clip_names(ClipTable.of_paths(f"data/{file}" for file in files[::order])) == names[::order]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and data with a clip that can't be read."""
    folder = tmp_path_factory.mktemp("setting")
    torch.manual_seed(0)
    model = create_model("tsm", "resnet10t", num_classes=3, num_frames=2)
    torch.nn.init.normal_(model.classifier.weight)
    view = ViewConfig(size=32, short_side=32)
    save_checkpoint(folder / "net.safetensors", model, labels=LABELS, view=view, provenance={})
    data = folder / "data"
    rng = np.random.default_rng(0)
    for label, count in (("clap", 3), ("jump", 2), ("wave", 2)):
        for i in range(count):
            frames = np.repeat(rng.integers(0, 256, (6, 3, 4, 3)), 16, 1).repeat(16, 2).astype(np.uint8)
            write_video(data / label / f"{label}_{i}.mp4", frames)
    (data / "jump" / "jump_1.mp4").write_bytes(b"no video")
    return folder / "net.safetensors", data


def test_the_features_are_what_the_classifier_sees(setting: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, data = setting
    assert embed_command(checkpoint, str(data), out=tmp_path / "out", map="none", batch_size=3, workers=0) == 0
    found, loaded = load_embeddings(tmp_path / "out"), load_checkpoint(checkpoint)
    assert found.clips == ("clap/clap_0", "clap/clap_1", "clap/clap_2", "jump/jump_0", "wave/wave_0", "wave/wave_1")
    assert [found.label_names[i] for i in found.labels] == [name.split("/")[0] for name in found.clips]
    assert set(found.splits) == {""} and [Path(p).stem for p in found.paths] == [c[5:] for c in found.clips]
    assert found.features.shape == (6, loaded.model.classifier.in_features)
    for path, features in zip(found.paths, found.features, strict=True):
        with torch.no_grad():
            outputs = loaded.model.forward_outputs(load_clip(loaded, path)[None])
        assert np.allclose(outputs.features[0], features, atol=1e-5)
    # Through the classifier they are the scores that an evaluation finds.
    weight, bias = (of.detach().numpy() for of in loaded.model.classifier.parameters())
    scores = evaluate(loaded, data, split="all", workers=0).clip_scores
    assert scores is not None
    assert np.allclose(found.features @ weight.T + bias, scores.scores[scores.read], atol=1e-4)
    assert (found.about["expected"], found.about["embedded"], found.about["failed"]) == (7, 6, 1)
    with (tmp_path / "out" / "failed.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(data / "jump" / "jump_1.mp4")]


@pytest.mark.parametrize(("protocol", "batch_size"), [("2x3", 4), ("3x10-dense", 64), ("tefe", 2)])
def test_features_are_the_mean_over_clips_and_views(
    setting: tuple[Path, Path],
    tmp_path: Path,
    protocol: str,
    batch_size: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, data = setting
    loaded, out = load_checkpoint(checkpoint), tmp_path / "out"
    line = ["embed", str(checkpoint), "--data", str(data), "--out", str(out), "--workers", "0", "--map", "none"]
    shutil.copy(data / "wave" / "wave_0.mp4", tmp_path / "new.mp4")
    asked = ["--protocol", protocol, "--query", str(tmp_path / "new.mp4"), "--batch-size", str(batch_size), "--json"]
    assert cli.main([*line, *asked]) == 0
    told = json.loads(capsys.readouterr().out)
    # The classifier is linear: of the mean of the features it makes the mean of the scores.
    weight, bias = (of.detach().numpy() for of in loaded.model.classifier.parameters())
    found = load_embeddings(out).features
    scores = evaluate(loaded, data, split="all", workers=0, protocol=protocol).clip_scores
    assert scores is not None
    assert np.allclose(found @ weight.T + bias, scores.scores[scores.read], atol=1e-4)
    near = told["queries"][0]["nearest"][0]  # a file that is not in the data is looked at in the same way
    assert near["clip"] == "wave/wave_0" and near["similarity"] == pytest.approx(1, abs=1e-5)
    assert cli.main([*line, "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["reused"]  # those of another protocol are no use
    assert not np.allclose(found, load_embeddings(out).features, atol=1e-4)


def test_the_command(setting: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, data = setting
    out, new = tmp_path / "out", tmp_path / "new.mp4"
    shutil.copy(data / "wave" / "wave_0.mp4", new)
    args = ["embed", str(checkpoint), "--data", str(data), "--out", str(out), "--workers", "0"]
    assert cli.main([*args, "--query", f"wave_0,{new},jump_1", "--nearest", "2", "--json"]) == 1  # one can't be read
    told = json.loads(capsys.readouterr().out)
    assert (told["embedded"], told["failed"], told["reused"]) == (6, 1, False)
    inside, outside, broken = told["queries"]
    features = load_embeddings(out).features
    cosines = cosine_similarity(features[4:5], features)[0]
    order = [i for i in np.argsort(-cosines) if i != 4][:2]
    assert [near["clip"] for near in inside["nearest"]] == [load_embeddings(out).clips[i] for i in order]
    assert [near["similarity"] for near in inside["nearest"]] == pytest.approx(cosines[order], abs=1e-5)
    assert (inside["clip"], inside["label"]) == ("wave/wave_0", "wave")
    assert outside["nearest"][0]["clip"] == "wave/wave_0" and "label" not in outside  # a copy of it
    assert outside["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert set(broken) == {"query", "error"}
    names = {"features.npy", "clips.csv", "embed.json", "failed.csv", "map.png", "map.csv"}
    assert {Path(file).name for file in told["files"]} == names | {"nearest-1.png", "nearest-2.png"}
    assert {path.name for path in out.iterdir()} == names | {"nearest-1.png", "nearest-2.png"}
    with (out / "map.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    points = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    assert np.allclose(points, principal_components(features).points, rtol=1e-4, atol=1e-5)
    assert [row["clip"] for row in rows] == list(load_embeddings(out).clips)

    # Other queries take what is there, and pictures of the earlier ones go.
    (out / "nearest-9.txt").write_text("mine", encoding="utf-8")
    assert cli.main([*args, "--query", "clap_0", "--map", "none"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert (
        "kept from an earlier run" in words and "clap_0 (clap)" in words and "1 of 7 clips could not be read" in words
    )
    left = {"features.npy", "clips.csv", "embed.json", "failed.csv", "nearest-1.png", "nearest-9.txt"}
    assert {path.name for path in out.iterdir()} == left


def test_features_are_kept_only_where_nothing_changed(setting: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    checkpoint, data = setting
    mine = tmp_path / "net.safetensors"
    shutil.copy(checkpoint, mine)

    def reused(**given: Any) -> bool:
        assert embed_command(mine, str(data), map="none", workers=0, json=True, **given) == 0
        return bool(json.loads(capsys.readouterr().out)["reused"])

    assert not reused() and (tmp_path / "net.embed" / "features.npy").exists() and reused()
    assert not reused(precision="float16") and reused(precision="float16")
    assert load_embeddings(tmp_path / "net.embed").features.dtype == np.float16
    assert not reused() and not reused(fresh=True) and reused()
    for spoil in (b"", b"\x93NUMPY", (tmp_path / "net.embed" / "features.npy").read_bytes()[:-4]):
        (tmp_path / "net.embed" / "features.npy").write_bytes(spoil)
        assert not reused() and reused()
    loaded = load_checkpoint(mine)
    with torch.no_grad():
        loaded.model.classifier.bias += 1
    save_checkpoint(mine, loaded.model, labels=LABELS, view=loaded.view, provenance={})
    assert not reused()


def test_features_are_of_these_files(setting: tuple[Path, Path], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    checkpoint, out = setting[0], tmp_path / "out"
    one, two = (shutil.copytree(setting[1], tmp_path / name) for name in ("one", "two"))  # also the times of the files
    shutil.copy(two / "clap" / "clap_1.mp4", two / "wave" / "wave_0.mp4")

    def reused(data: Path | str, out: Path = out) -> bool:
        assert embed_command(checkpoint, str(data), out=out, map="none", workers=0, json=True) == 0
        return bool(json.loads(capsys.readouterr().out)["reused"])

    assert not reused(one) and reused(one)
    before = load_embeddings(out).features[:]
    assert not reused(two)  # the same list of clips elsewhere
    assert set(load_embeddings(out).paths) == {str(p) for p in two.rglob("*.mp4") if p.name != "jump_1.mp4"}
    assert not np.allclose(load_embeddings(out).features, before)
    monkeypatch.chdir(tmp_path)
    assert reused("two") and reused("one/../two/") and reused(two, out.rename(tmp_path / "moved"))
    out, clip = tmp_path / "moved", two / "wave" / "wave_1.mp4"
    times = clip.stat()
    os.utime(clip, ns=(times.st_atime_ns, times.st_mtime_ns + 1000))
    assert not reused(two, out) and reused(two, out)
    (two / "jump" / "jump_1.mp4").write_bytes(b"still no video")  # a clip that has no row
    os.utime(two / "jump" / "jump_1.mp4", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not reused(two, out) and reused(two, out)
    about = json.loads((out / "embed.json").read_text(encoding="utf-8"))
    del about["files_hash"]  # as it was written before there was one
    (out / "embed.json").write_text(json.dumps(about), encoding="utf-8")
    assert not reused(two, out) and reused(two, out)


def test_clips_of_other_classes_and_parts(setting: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, data = setting
    rows = ["path,label,split"]
    rows += [f"{data}/{x},walk,train" for x in ("clap/clap_0.mp4", "wave/wave_0.mp4")]
    rows += [f"{data}/jump/jump_0.mp4,run,test"]
    (tmp_path / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "out"
    assert embed_command(checkpoint, str(tmp_path / "list.csv"), out=out, workers=0, labels=["run"]) == 0
    found = load_embeddings(out)
    assert found.label_names == ("run", "walk") and found.splits == ("train", "train", "test")
    assert embed_command(checkpoint, str(tmp_path / "list.csv"), out=out, workers=0, split="test", nearest=3) == 0
    assert load_embeddings(out).clips == ("jump_0",)
    with pytest.raises(UsageError, match="t-SNE of 3 clips"):
        embed_command(checkpoint, str(tmp_path / "list.csv"), out=tmp_path / "other", map="tsne")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UnknownNameError, match="Unknown class 'clap'"):
        embed_command(checkpoint, str(tmp_path / "list.csv"), out=out, labels=["clap"])


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"nearest": 0}, UsageError, "nearest is 0"),
        ({"map": "tsne", "seed": 1 << 32}, UsageError, "seed is 4294967296; that of t-SNE is at most 4294967295"),
        ({"batch_size": 0}, UsageError, "batch_size 0"),
        ({"map": "umap"}, UsageError, "map is 'umap'"),
        ({"split": "test"}, DataError, "no part 'test'"),
        ({"labels": [str(i) for i in range(13)]}, UsageError, "labels are 13; no more than 12"),
        ({"query": ["gone"]}, UnknownNameError, "Unknown clip 'gone'"),
        ({"query": [__file__]}, DecodeError, "test_embed"),
    ],
)
def test_nothing_is_written_where_something_is_wrong(
    setting: tuple[Path, Path], tmp_path: Path, given: dict[str, Any], error: type[Exception], says: str
) -> None:
    checkpoint, data = setting
    with pytest.raises(error, match=says):
        embed_command(checkpoint, str(data), out=tmp_path / "out", workers=0, **given)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="out is a file"):
        embed_command(checkpoint, str(data), out=tmp_path / "out")


def test_too_many_failures_leave_no_features(setting: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, data = setting
    from vireo.config import ReadConfig

    with pytest.raises(TooManyFailuresError, match="1 of 7 embedding clips"):
        embed_command(checkpoint, str(data), out=tmp_path / "out", workers=0, read=ReadConfig(max_failed="0"))
    assert not list((tmp_path / "out").iterdir())


def test_without_a_clip_the_earlier_features_stay(setting: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, data, out = setting[0], shutil.copytree(setting[1] / "clap", tmp_path / "data" / "clap"), tmp_path / "o"
    shutil.copytree(setting[1] / "wave", tmp_path / "data" / "wave")
    assert embed_command(checkpoint, str(data.parent), out=out, workers=0) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for path in data.parent.rglob("*.mp4"):
        path.write_bytes(b"no video")
    from vireo.config import ReadConfig

    for folder in (out, tmp_path / "new"):
        says = r"None of 5 clips could be embedded; the first: .*clap_0\.mp4: not a video"
        with pytest.raises(TooManyFailuresError, match=says):
            embed_command(checkpoint, str(data.parent), out=folder, workers=0, read=ReadConfig(max_failed="100%"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("config.yaml", "is the folder of a training run"),
        ("metrics.csv", "is the folder of a training run"),
        *(
            (name, f"holds a {name} that is not of `vireo embed`")
            for name in ("clips.csv", "failed.csv", "features.npy")
        ),
        *((name, f"holds a {name} that is not of `vireo embed`") for name in ("map.png", "map.csv", "nearest-12.png")),
    ],
)
def test_files_of_something_else_are_left_alone(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    if name == "metrics.csv":
        (tmp_path / "embed.json").write_text("{}", encoding="utf-8")  # a run stays a run
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=says):
        embed_command(tmp_path / "not even read", "data", out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_embedding_is_made_again(
    setting: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    checkpoint, data = setting
    out = tmp_path / "out"

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    line: dict[str, Any] = {"out": out, "map": "none", "workers": 0, "json": True}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vireo.embed.write_failures", stopped)
        embed_command(checkpoint, str(data), **line)
    assert {path.name for path in out.iterdir()} == {"features.npy", "clips.csv", "embed.json"}
    with pytest.raises(DataError, match=r"embed\.json: `vireo embed` was cut short here"):
        load_embeddings(out)
    assert embed_command(checkpoint, str(data), **line) == 0
    assert not json.loads(capsys.readouterr().out)["reused"] and len(load_embeddings(out).clips) == 6


def test_names_that_are_no_text(setting: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    checkpoint, data, out = setting[0], shutil.copytree(setting[1], tmp_path / "data"), tmp_path / "out"
    os.rename(data / "wave", os.fsencode(data) + b"/wave\xff")
    (data / "clap" / "bad\udcff.mp4").write_bytes(b"no video")
    for reused in (False, True, True):
        assert embed_command(checkpoint, str(data), out=out, workers=0, map="none") == 0
        assert ("kept from an earlier run" in capsys.readouterr().out) is reused
        about = (out / "embed.json").read_bytes()
        (out / "embed.json").write_bytes(about.replace(rb"\udcff", b"\xff"))  # as earlier versions wrote it
    found = load_embeddings(out)
    assert found.label_names == ("clap", "jump", "wave\udcff") and found.clips[-1] == "wave\udcff/wave_1"
    assert [of["clip"] for of in found.about["failures"]] == ["clap/bad\udcff", "jump/jump_1"]


def test_more_neighbours_than_clips(setting: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    checkpoint, data = setting
    line: dict[str, Any] = {"out": tmp_path / "out", "map": "none", "workers": 0, "json": True}
    assert embed_command(checkpoint, str(data), query=["clap_0"], nearest=10**20, **line) == 0
    [answer] = json.loads(capsys.readouterr().out)["queries"]
    assert len(answer["nearest"]) == 5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"}", b" "),  # TokenError
        (b"<f4", b"<04"),  # SyntaxError
        (b"<f4", b"<f9"),
        (b"(6, 512)", b"(6,-512)"),  # OverflowError
        (b"(6, 512)", b"(6, 412)"),  # fewer than there are
    ],
)
def test_damaged_headers(setting: tuple[Path, Path], tmp_path: Path, capsys: Any, old: bytes, new: bytes) -> None:
    checkpoint, data = setting
    line: dict[str, Any] = {"out": tmp_path / "out", "map": "none", "workers": 0, "json": True}
    assert embed_command(checkpoint, str(data), **line) == 0
    path = tmp_path / "out" / "features.npy"
    whole = path.read_bytes()
    header, rest = whole[:128], whole[128:]
    assert old in header
    path.write_bytes(header.replace(old, new)[:127].ljust(127) + b"\n" + rest)
    with pytest.raises(DataError, match=r"features\.npy"):
        load_embeddings(tmp_path / "out")
    capsys.readouterr()
    assert embed_command(checkpoint, str(data), **line) == 0
    assert not json.loads(capsys.readouterr().out)["reused"] and path.read_bytes() == whole


def test_folders_that_hold_something_else(setting: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, data = setting
    out = tmp_path / "out"
    assert embed_command(checkpoint, str(data), out=out, workers=0, map="none") == 0
    whole = {name: (out / name).read_bytes() for name in ("features.npy", "clips.csv", "embed.json")}
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([[{}]], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros(6, np.float32))
    spoilt = {
        "features.npy": [pickled.read_bytes(), (tmp_path / "flat.npy").read_bytes(), b"PK\x03\x04"],
        "clips.csv": [
            b"",
            b"clip,label\n",
            whole["clips.csv"].rsplit(b",", 1)[0],
            whole["clips.csv"].replace(b",clap,", b",run,"),
        ],
        "embed.json": [b"{}", b"[]", b"[" * 100_000, b'{"labels": [1]}', b"\xff"],
    }
    for name, contents in spoilt.items():
        for content in contents:
            (out / name).write_bytes(content)
            with pytest.raises(DataError, match=r"out"):
                load_embeddings(out)
        (out / name).write_bytes(whole[name])
        load_embeddings(out)
    (out / "clips.csv").unlink()
    with pytest.raises(UsageError, match=r"holds no clips\.csv"):
        load_embeddings(out)
