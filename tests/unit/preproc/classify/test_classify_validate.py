"""Figures of the classifier from its out-of-fold predictions, and of the map from a reference sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import Affine
from sklearn.metrics import confusion_matrix, f1_score
from support.embedded import EPSG, NORTH, TOML, WEST, embed, map_of, parcels, tiled_run, write_vector
from support.mosaicked import classified_run

from infer.contract import Run, SmaltiError, planned_tiles, read_manifest
from infer.contract.classification import AccuracyManifest, ClassEntry
from infer.contract.imported import ImportManifest
from preproc.classify.accuracy import olofsson
from preproc.classify.baseline import told
from preproc.classify.folds import assign_folds
from preproc.classify.out_of_fold import OutOfFold
from preproc.classify.performance import bootstrap, distances, majority, paired, performance
from preproc.classify.sample import SampleStage
from preproc.classify.train import TrainStage
from preproc.classify.validate import ValidateStage
from preproc.run.config import Config, parse_config
from preproc.run.stage import run_stage

CLASSES = [ClassEntry(1, "wheat", "#a87000"), ClassEntry(2, "maize", "#ffd300"), ClassEntry(7, "water", "#1f6fd0")]
CODES = np.array([1, 2, 7])


def out_of_fold(groups: int = 30, each: int = 6, seed: int = 0) -> OutOfFold:
    rng = np.random.default_rng(seed)
    group_n = np.repeat(np.arange(groups), each)
    code_n = CODES[rng.integers(0, 3, groups)][group_n].astype(np.int32)
    values = rng.random((len(group_n), 3)) + 0.8 * (code_n[:, None] == CODES)
    values /= values.sum(axis=1, keepdims=True)
    return OutOfFold(
        x_n=rng.uniform(0, 5000, len(group_n)),
        y_n=rng.uniform(0, 5000, len(group_n)),
        epsg_n=np.full(len(group_n), EPSG, np.int32),
        group_n=group_n.astype(str),
        code_n=code_n,
        fold_n=assign_folds(code_n, group_n, 3, 0).fold_n if groups > 6 else (group_n % 2).astype(np.int32),
        predicted_n=CODES[values.argmax(axis=1)].astype(np.int32),
        probabilities_nk=values.astype(np.float32),
    )


# performance


def test_pixel_figures_are_those_of_scikit_learn() -> None:
    oof = out_of_fold()
    made = performance(oof, CLASSES, 0)["pixels"]
    assert made["count_matrix"] == confusion_matrix(oof.code_n, oof.predicted_n, labels=CODES).T.tolist()
    assert made["macro_f1"]["value"] == pytest.approx(f1_score(oof.code_n, oof.predicted_n, average="macro"))
    assert made["weighted_f1"]["value"] == pytest.approx(f1_score(oof.code_n, oof.predicted_n, average="weighted"))
    assert made["overall_accuracy"]["value"] == pytest.approx((oof.code_n == oof.predicted_n).mean())
    for entry in made["per_class"]:
        there = oof.code_n == entry["code"]
        assert entry["n"] == there.sum()
        assert entry["n_groups"] == len(set(oof.group_n[there]))
    assert sum(entry["n_groups"] for entry in made["per_class"]) == made["n_groups"] == 30
    json.dumps(made, allow_nan=False)


@given(st.integers(0, 50))
def test_groups_vote(seed: int) -> None:
    oof = out_of_fold(12, 5, seed)
    predicted, true, groups = majority(oof, np.unique(oof.group_n, return_inverse=True)[1], CODES)
    names = np.unique(oof.group_n)
    for code, right, group in zip(predicted, true, groups, strict=True):
        rows = oof.group_n == names[group]
        votes = {c: (int((oof.predicted_n[rows] == c).sum()), float(oof.probabilities_nk[rows, k].sum()))
                 for k, c in enumerate(CODES)}  # fmt: skip
        assert votes[code] == max(votes.values())
        assert set(oof.code_n[rows]) == {right}


def test_a_group_of_two_classes_is_two_units() -> None:
    oof = out_of_fold(2, 4)
    code_n = np.array([1, 1, 2, 2, 7, 7, 7, 7], np.int32)
    mixed = OutOfFold(**{**vars(oof), "code_n": code_n})
    _, true, groups = majority(mixed, np.repeat([0, 1], 4), CODES)
    assert list(zip(groups.tolist(), true.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 7)]


def test_intervals_respect_groups() -> None:
    """Pixels of a group stand or fall together here: resampling pixels would make the interval far too narrow."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 50)
    code_n = np.repeat([1, 2], 1000)
    right = np.repeat(rng.random(40) < 0.8, 50)
    predicted_n = np.where(right, code_n, 3 - code_n)
    low, high = bootstrap(predicted_n, code_n, groups, np.array([1, 2]), 0)["overall_accuracy"] or (0, 0)
    standard_error = np.sqrt(0.8 * 0.2 / 40)
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.25)
    assert bootstrap(predicted_n, code_n, groups, np.array([1, 2]), 0)["overall_accuracy"] == [low, high]
    assert bootstrap(predicted_n[:50], code_n[:50], groups[:50], np.array([1, 2]), 0)["macro_f1"] is None


def test_distances_are_those_to_the_nearest_sample_of_other_folds() -> None:
    oof = out_of_fold()
    nearest = []
    for i in range(len(oof.x_n)):
        others = oof.fold_n != oof.fold_n[i]
        nearest.append(np.hypot(oof.x_n[others] - oof.x_n[i], oof.y_n[others] - oof.y_n[i]).min())
    made = distances(oof)
    assert made["median"] == pytest.approx(np.median(nearest))
    assert [made["minimum"], made["p95"]] == pytest.approx([min(nearest), np.percentile(nearest, 95)])


def test_distances_across_zones_are_on_the_ground() -> None:
    from pyproj import Transformer

    there = Transformer.from_crs(32631, 32632, always_xy=True).transform(832_000.0, 5_600_000.0)
    oof = out_of_fold(2, 1)
    pair = OutOfFold(
        **{**vars(oof), "x_n": np.array([832_300.0, there[0]]), "y_n": np.array([5_600_400.0, there[1]]),
           "epsg_n": np.array([32631, 32632]), "fold_n": np.array([0, 1])}
    )  # fmt: skip
    assert distances(pair)["median"] == pytest.approx(500.0, abs=0.1)


def test_folds_report_what_they_lack() -> None:
    oof = out_of_fold()
    odd = OutOfFold(**{**vars(oof), "fold_n": np.where(oof.code_n == 7, 0, oof.fold_n)})
    table = performance(odd, CLASSES, 0)["folds"]
    assert [row["absent_codes"] for row in table] == [[], [7], [7]]
    assert [row["untrained_codes"] for row in table] == [[7], [], []]
    assert sum(row["n"] for row in table) == len(oof.code_n)


# the stage


def test_a_paired_difference_is_narrower_than_that_of_two_intervals() -> None:
    oof = out_of_fold()
    rng = np.random.default_rng(3)
    worse_n = np.where(rng.random(len(oof.code_n)) < 0.2, rng.choice(CODES, len(oof.code_n)), oof.predicted_n)
    group_i = np.unique(oof.group_n, return_inverse=True)[1]
    one, other = (bootstrap(n, oof.code_n, group_i, CODES, 0)["macro_f1"] for n in (oof.predicted_n, worse_n))
    found = paired(oof.predicted_n, worse_n, oof.code_n, oof.group_n, CODES, 0)["macro_f1"]
    assert found["ci95"][0] <= found["value"] <= found["ci95"][1]
    assert found["ci95"][1] - found["ci95"][0] < (one[1] - one[0]) + (other[1] - other[0])
    same = paired(worse_n, worse_n, oof.code_n, oof.group_n, CODES, 0)
    assert same["overall_accuracy"] == {"value": 0.0, "ci95": [0.0, 0.0]}


def test_what_the_embedding_adds_in_words() -> None:
    assert told(0.031, [0.011, 0.049]) == "the embedding adds +0.03 (+0.01 to +0.05)"
    assert told(-0.05, [-0.08, -0.02]) == "the embedding loses against them: -0.05 (-0.08 to -0.02)"
    assert told(0.01, [-0.02, 0.03]).startswith("the embedding adds nothing that shows here: +0.01")


def settings(run: Run, extra: str = "") -> Config:
    text = (
        f'{TOML}[labels]\npath = "labels.gpkg"\nclass = "crop"\ngroup = "parcel"\n'
        f"[classify]\nfolds = 2\ntrials = 0\nmax_pixels = 12\n{extra}"
    )
    return parse_config(text, run.config)


REFERENCE = '[validate]\nreference = "reference.gpkg"\nclass = "seen"\ndesign = "stratified"\n'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = tiled_run(tmp_path_factory.mktemp("trained") / "run")
    embed(run, noise=1.5)
    shapes, names = parcels(run)
    fields = {"crop": np.array(names, dtype=object), "parcel": np.arange(len(shapes))}
    write_vector(run.root / "labels.gpkg", shapes, fields)
    for stage in (SampleStage(), TrainStage()):
        run_stage(stage, run, settings(run))
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    import shutil

    shutil.copytree(trained.root, tmp_path / "run")
    return Run(tmp_path / "run")


def write_map(run: Run, codes_hw: np.ndarray) -> None:
    """A class map with a colour table, and a confidence raster that must not be taken for one."""
    run.map.mkdir(exist_ok=True)
    profile = {
        "driver": "GTiff", "height": codes_hw.shape[0], "width": codes_hw.shape[1], "count": 1, "dtype": "uint8",
        "crs": f"EPSG:{EPSG}", "transform": Affine(10, 0, WEST, 0, -10, NORTH), "nodata": 0,
    }  # fmt: skip
    with rasterio.open(run.map / "classes.tif", "w", **profile, photometric="palette") as raster:
        raster.write(codes_hw.astype(np.uint8), 1)
        raster.write_colormap(1, {1: (200, 100, 0, 255), 2: (0, 200, 0, 255), 3: (0, 0, 200, 255)})
    with rasterio.open(run.map / "confidence.tif", "w", **profile) as raster:
        raster.write(np.full_like(codes_hw, 200, dtype=np.uint8), 1)
    files = [run.map / "classes.tif", run.map / "confidence.tif"]
    map_of().write(run.map_manifest, inputs={}, files=files)


def map_and_truth(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A 64 x 64 map of three classes with a nodata strip, and a truth that differs from it in a known share."""
    rng = np.random.default_rng(seed)
    mapped = rng.choice([1, 2, 3], size=(64, 64), p=[0.6, 0.3, 0.1])
    truth = np.where(rng.random((64, 64)) < 0.2, rng.choice([1, 2, 3], size=(64, 64)), mapped)
    mapped[:4] = 0
    return mapped, truth


def points(rows: np.ndarray, cols: np.ndarray) -> Any:
    return shapely.points(WEST + 10.0 * cols + 3, NORTH - 10.0 * rows - 8)


def draw(mapped: np.ndarray, truth: np.ndarray, each: int, seed: int = 1) -> tuple[Any, np.ndarray, np.ndarray]:
    """A sample stratified by the map's classes: points, their map classes, their true classes."""
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.choice(np.flatnonzero(mapped == c), each, replace=False) for c in (1, 2, 3)])
    rows, cols = np.unravel_index(chosen, mapped.shape)
    return points(rows, cols), mapped[rows, cols], truth[rows, cols]


def names_of(codes: np.ndarray) -> np.ndarray:
    return np.array([f"crop {'abc'[code - 1]}" for code in codes], dtype=object)


def validate(run: Run, extra: str = "") -> dict[str, Any]:
    run_stage(ValidateStage(), run, settings(run, extra))
    return read_manifest(run.accuracy, "accuracy", remedy="")


def test_without_a_reference_only_performance_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    made = validate(run)
    assert made["map_accuracy"] is None
    assert "no reference sample" in made["map_accuracy_note"]
    assert made["headline"].startswith("model performance (cross-validated by group, not map accuracy): macro-F1 0.")
    assert made["performance"]["what"].startswith("model performance: grouped cross-validation on labels of conv")
    assert made["performance"]["groups"]["n"] == 64
    assert made["performance"]["pixels"]["n"] == 64 * 12
    assert made["performance"]["tuning"]["trials"] == 0
    assert made["performance"]["left_out"] == []
    assert "map accuracy omitted" in capsys.readouterr().err
    before = run.accuracy.read_bytes()
    run_stage(ValidateStage(), run, settings(run), force=True)
    assert run.accuracy.read_bytes() == before


def test_map_accuracy_is_that_of_the_formulas_on_the_points_drawn(run: Run) -> None:
    mapped, truth = map_and_truth()
    write_map(run, mapped)
    where, on_map, seen = draw(mapped, truth, 60)
    write_vector(run.root / "reference.gpkg", where, {"seen": names_of(seen)}, to=4326)
    made = validate(run, REFERENCE)["map_accuracy"]
    counts = confusion_matrix(seen, on_map, labels=[1, 2, 3]).T
    areas = np.array([(mapped == c).sum() for c in (1, 2, 3)])
    expected = olofsson(counts, areas)
    assert made["n"] == 180
    assert made["count_matrix"] == counts.tolist()
    assert made["overall_accuracy"]["value"] == pytest.approx(expected.overall.value)
    assert made["mapped_ha"] == pytest.approx(60 * 64 * 0.01)
    for k, entry in enumerate(made["per_class"]):
        assert entry["name"] == f"crop {'abc'[k]}"
        assert entry["mapped_ha"] == pytest.approx(areas[k] * 0.01)
        assert entry["area_ha"]["value"] == pytest.approx(expected.areas[k].value * 38.4)
        assert entry["users_accuracy"]["standard_error"] == pytest.approx(expected.users[k].error)


def test_a_census_gives_the_truth_itself(run: Run) -> None:
    mapped, truth = map_and_truth()
    write_map(run, mapped)
    rows, cols = np.indices(mapped.shape).reshape(2, -1)
    fields = {"seen": names_of(truth.ravel())}
    write_vector(run.root / "reference.gpkg", points(rows, cols), fields, to=3035)
    made = validate(run, REFERENCE)["map_accuracy"]
    assert made["n"] == 60 * 64
    assert made["overall_accuracy"]["value"] == pytest.approx((truth == mapped)[4:].mean())
    for code, entry in enumerate(made["per_class"], start=1):
        assert entry["area_ha"]["value"] == pytest.approx((truth[4:] == code).sum() * 0.01)
        assert entry["producers_accuracy"]["value"] == pytest.approx((mapped[4:] == code)[truth[4:] == code].mean())


def test_the_two_results_have_different_names(run: Run) -> None:
    mapped, truth = map_and_truth()
    write_map(run, mapped)
    where, _, seen = draw(mapped, truth, 20)
    write_vector(run.root / "reference.gpkg", where, {"seen": names_of(seen)})
    made = validate(run, REFERENCE)
    assert made["map_accuracy"]["what"].startswith("map accuracy: design-based")
    assert "; map accuracy (60 reference points): overall 0." in made["headline"]


def test_points_off_the_map_are_dropped_and_counted(run: Run) -> None:
    mapped, truth = map_and_truth()
    write_map(run, mapped)
    where, _, seen = draw(mapped, truth, 20)
    extra = [*where, *points(np.array([0, 2]), np.array([5, 6])), shapely.Point(WEST - 500, NORTH + 500)]
    write_vector(run.root / "reference.gpkg", extra, {"seen": np.r_[names_of(seen), ["crop a"] * 3]})
    made = validate(run, REFERENCE)["map_accuracy"]
    assert made["n"] == 60
    assert made["dropped"]["dropped: not on the map"] == 3


def test_a_class_seen_only_in_the_field_is_kept(run: Run) -> None:
    mapped, truth = map_and_truth()
    write_map(run, mapped)
    where, _, seen = draw(mapped, truth, 20)
    names = names_of(seen)
    names[:4] = "orchard"
    write_vector(run.root / "reference.gpkg", where, {"seen": names})
    made = validate(run, REFERENCE)["map_accuracy"]
    assert made["classes_not_on_the_map"] == ["orchard"]
    orchard = made["per_class"][-1]
    assert orchard["users_accuracy"] is None
    assert orchard["producers_accuracy"]["value"] == 0.0
    assert orchard["f1"] == 0.0
    assert orchard["area_ha"]["value"] > 0


def test_classes_written_otherwise_are_named_and_none_that_match_is_an_error(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    mapped, truth = map_and_truth()
    write_map(run, mapped)
    where, _, seen = draw(mapped, truth, 20)
    names = names_of(seen)
    names[:3] = "Crop A"
    write_vector(run.root / "reference.gpkg", where, {"seen": names})
    validate(run, REFERENCE)
    said = " ".join(capsys.readouterr().err.split())
    assert "3 of 60 reference points are of classes that the map does not have" in said
    assert "'Crop A' (the map has 'crop a')" in said
    write_vector(run.root / "reference.gpkg", where, {"seen": seen})
    with pytest.raises(SmaltiError, match=r"reference.gpkg: none of its classes .* is one of the map's .'crop a'"):
        validate(run, REFERENCE)


def test_a_random_sample_may_miss_a_class_and_a_stratified_one_may_not(run: Run) -> None:
    mapped, truth = map_and_truth()
    write_map(run, mapped)
    rows, cols = np.nonzero((mapped == 1) | (mapped == 2))
    rows, cols = rows[::40], cols[::40]
    write_vector(run.root / "reference.gpkg", points(rows, cols), {"seen": names_of(truth[rows, cols])})
    with pytest.raises(SmaltiError, match=r"fewer than two reference points lie on the map's crop c"):
        validate(run, REFERENCE)
    made = validate(run, REFERENCE.replace("stratified", "random"))["map_accuracy"]
    assert made["estimator"] == "simple random sampling"
    share = (mapped[rows, cols] == truth[rows, cols]).mean()
    assert made["overall_accuracy"]["value"] == pytest.approx(share)
    assert made["overall_accuracy"]["standard_error"] == pytest.approx(np.sqrt(share * (1 - share) / (len(rows) - 1)))


def test_strata_of_their_own_are_weighted_by_their_sizes(run: Run) -> None:
    mapped, truth = map_and_truth()
    write_map(run, mapped)
    rows, cols = np.nonzero(mapped)
    rng = np.random.default_rng(3)
    left, right = np.flatnonzero(cols < 16), np.flatnonzero(cols >= 16)
    chosen = np.r_[rng.choice(left, 90, replace=False), rng.choice(right, 30, replace=False)]
    rows, cols = rows[chosen], cols[chosen]
    side = np.array(["left"] * 90 + ["right"] * 30, dtype=object)
    fields = {"seen": names_of(truth[rows, cols]), "side": side}
    write_vector(run.root / "reference.gpkg", points(rows, cols), fields)
    extra = f'{REFERENCE}stratum = "side"\nstrata = {{ left = 16, right = 48 }}\n'
    made = validate(run, extra)["map_accuracy"]
    right_n = mapped[rows, cols] == truth[rows, cols]
    assert made["overall_accuracy"]["value"] == pytest.approx(0.25 * right_n[:90].mean() + 0.75 * right_n[90:].mean())
    assert made["estimator"].startswith("Stehman 2014")
    with pytest.raises(SmaltiError, match=r"the sample on the map has left, right; \[validate.strata\] has left, top"):
        validate(run, extra.replace("right", "top"))


def test_unusable_references_end_with_one_line(run: Run) -> None:
    with pytest.raises(SmaltiError, match="run `smalti predict"):
        validate(run, REFERENCE)
    mapped, truth = map_and_truth()
    write_map(run, mapped)
    with pytest.raises(SmaltiError, match=r"reference.gpkg: no such file: correct the path in \[validate\]"):
        validate(run, REFERENCE)
    where, _, seen = draw(mapped, truth, 20)
    path = run.root / "reference.gpkg"
    write_vector(path, where, {"sen": names_of(seen)})
    with pytest.raises(SmaltiError, match=r"no attribute 'seen', which \[validate\] names; it has: sen"):
        validate(run, REFERENCE)
    path.unlink()
    write_vector(path, [shapely.buffer(p, 10) for p in where], {"seen": names_of(seen)})
    with pytest.raises(SmaltiError, match="a reference sample is of points"):
        validate(run, REFERENCE)
    path.unlink()
    write_vector(path, [shapely.Point(WEST - 300, NORTH)], {"seen": names_of(seen[:1])})
    with pytest.raises(SmaltiError, match="no reference point lies on the map"):
        validate(run, REFERENCE)
    assert not run.accuracy.exists()
    with pytest.raises(SmaltiError, match=r"\[validate\]: stratum .* and strata .* go together"):
        settings(run, f'{REFERENCE}stratum = "x"\n')


def test_the_file_is_stale_when_model_map_or_reference_change(run: Run) -> None:
    mapped, truth = map_and_truth()
    write_map(run, mapped)
    where, _, seen = draw(mapped, truth, 20)
    write_vector(run.root / "reference.gpkg", where, {"seen": names_of(seen)})
    validate(run, REFERENCE)
    unit = ValidateStage().open(run, settings(run, REFERENCE)).units[0]
    assert unit.state().complete
    assert not ValidateStage().open(run, settings(run)).units[0].state().complete
    mapped[10, 10] = 4 - mapped[10, 10]
    write_map(run, mapped)
    assert "map" in ValidateStage().open(run, settings(run, REFERENCE)).units[0].state().reason


def test_imported_embeddings_are_not_compared_with_series_that_they_never_had(tmp_path: Path) -> None:
    run, settings = classified_run(tmp_path / "run")
    shutil.rmtree(run.tiles)
    names = tuple(tile.name for tile in planned_tiles(run))
    made = ImportManifest(source="store", dataset="TESSERA 1.1", identity="ab", fill=False, tiles=names)
    made.write(ImportManifest.path(run), inputs={}, files=[])
    run_stage(ValidateStage(), run, settings, force=True)
    told = AccuracyManifest.read(run).performance.baseline_note
    assert told == "imported embeddings come without the time series of their pixels", "not: run `smalti fetch`"
