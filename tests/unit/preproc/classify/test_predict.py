"""The predict stage: tiles, then the map with its legend, in one piece or in shards."""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from catboost import CatBoostClassifier
from matplotlib.image import imread
from numpy.typing import NDArray
from rio_cogeo import cog_validate
from support.mosaicked import (
    CENTRES,
    config,
    crops,
    embed_crops,
    far_run,
    looks,
    planned_run,
    put_together,
    write_tile,
)

from infer.contract import Run, Shard, SmaltiError, planned_tiles, read_embedding, read_manifest
from infer.contract.classification import ClassEntry, ClassifierManifest, FoldsUsed, Tuning
from preproc.classify.model import Classifier, load_classifier, save_classifier
from preproc.classify.predict import PredictSheetsStage, PredictStage, predict_strip
from preproc.raster.strips import Strip
from preproc.run.stage import StageFailedError, run_stage

CLASSES = (
    ClassEntry(2, "maize", "#ffd300"),
    ClassEntry(5, "winter wheat", "#a87000"),
    ClassEntry(200, "sugar beet", "#c2185b"),
)
CELLS = [(32631, 0, 0), (32631, 1, 0), (32631, 1, 1), (32632, 0, 0)]


def train(run: Run, *, dim: int = 6, seed: int = 0) -> None:
    tuning, folds = Tuning(0, 0, ""), FoldsUsed(2, 2, ())
    about = ClassifierManifest(classes=CLASSES, dim=dim, parameters={}, tuning=tuning, folds=folds, left_out=(), rows=0)
    generator = np.random.default_rng(seed)
    codes = np.repeat([entry.code for entry in CLASSES], 60)
    x = CENTRES[:, :dim].repeat(60, axis=0) + generator.normal(size=(180, dim)) * 0.5
    model = CatBoostClassifier(iterations=20, depth=3, random_seed=seed, verbose=False, allow_writing_files=False)
    model.fit(x.astype(np.float32), codes)
    run.model.mkdir(exist_ok=True)
    save_classifier(run.model, model, about, inputs={"seed": seed}, files=[])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = planned_run(tmp_path / "run", CELLS)
    embed_crops(run)
    train(run)
    return run


def digest(run: Run) -> dict[str, str]:
    return {
        path.relative_to(run.map).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.map.rglob("*"))
        if path.is_file()
    }


def read(path: Path) -> NDArray[np.uint8]:
    with rasterio.open(path) as raster:
        values: NDArray[np.uint8] = raster.read(1)
    return values


def test_every_pixel_has_the_class_and_confidence_of_its_embedding(run: Run) -> None:
    run_stage(PredictStage(), run, config(run))
    classifier = load_classifier(run.model)
    classes, confidence = read(run.map / "classes_31N.tif"), read(run.map / "confidence_31N.tif")
    assert classes.shape == (64, 64)
    origin = (573_440, 5_626_880)
    for tile in planned_tiles(run)[:3]:
        row, column = (origin[1] - tile.north) // 10, (tile.west - origin[0]) // 10
        values = read_embedding(run.embeddings, tile.name).window(slice(None), slice(None))
        valid = ~np.isnan(values).any(axis=2)
        shares = classifier.model.predict_proba(values[valid])  # row by row, with CatBoost itself
        window = (slice(row, row + 32), slice(column, column + 32))
        codes = np.array([2, 5, 200])[shares.argmax(axis=1)]
        np.testing.assert_array_equal(classes[window][valid], codes)
        np.testing.assert_allclose(confidence[window][valid], shares.max(axis=1) * 100, atol=0.51)
        assert not classes[window][~valid].any()
        assert not confidence[window][~valid].any()
        assert (codes == np.array([2, 5, 200])[crops(tile)[valid]]).mean() > 0.8, "and it is right, mostly"
    assert not classes[32:, :32].any(), "no tile, no class"


def test_the_map_carries_its_legend(run: Run) -> None:
    run_stage(PredictStage(), run, config(run))
    for zone in ("31N", "32N"):
        for name in (f"classes_{zone}.tif", f"confidence_{zone}.tif"):
            assert cog_validate(run.map / name, strict=True) == (True, [], [])
        with rasterio.open(run.map / f"classes_{zone}.tif") as raster:
            assert (raster.dtypes, raster.nodata) == (("uint8",), 0)
            assert raster.colormap(1)[200] == (0xC2, 0x18, 0x5B, 255)
            assert raster.tags()["SMALTI_CLASS_5"] == "winter wheat"
            assert raster.tags()["SMALTI_MODEL_TRAINED"] == "no"
        item = pystac.Item.from_file(str(run.map / f"map_{zone}.json"))
        found = item.assets["classes"].extra_fields["classification:classes"]
        assert [(entry["value"], entry["name"], entry["title"], entry["color_hint"]) for entry in found][1] == (
            5,
            "winter-wheat",
            "winter wheat",
            "A87000",
        )
    rows = list(csv.DictReader((run.map / "legend.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [entry.name for entry in CLASSES]


def test_counts_and_areas_are_those_of_the_raster_and_say_what_they_are(run: Run) -> None:
    run_stage(PredictStage(), run, config(run))
    made = read_manifest(run.map_manifest, "map", remedy="")
    pixels = np.concatenate([read(run.map / f"classes_{zone}.tif").ravel() for zone in ("31N", "32N")])
    trust = np.concatenate([read(run.map / f"confidence_{zone}.tif").ravel() for zone in ("31N", "32N")])
    for entry in made["classes"]:
        here = pixels == entry["code"]
        assert entry["pixels"] == here.sum()
        assert entry["hectares"] == pytest.approx(here.sum() * 0.01)
        assert entry["pixels_by_confidence"] == np.bincount(trust[here], minlength=101).tolist()
    assert made["pixels"] == (pixels > 0).sum() == 4 * (32 * 32 - 9)
    assert made["areas_are"] == "pixel counts, not an area estimate"
    assert "not calibrated" in made["confidence_is"]


def test_neither_shards_nor_threads_nor_interruptions_change_a_byte(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(PredictStage(), run, config(run))
    expected = digest(run)
    other = planned_run(tmp_path / "other", CELLS)
    embed_crops(other)
    train(other)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    for index in (2, 0, 1):
        run_stage(PredictSheetsStage(), other, config(other), shard=Shard(index, 3))
    assert not (other.map / "map.json").exists()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    lost = other.map / "sheet_31N.json"
    lost.unlink()
    outcome = run_stage(PredictStage(), other, config(other))
    assert (outcome.built, outcome.complete_before) == (2, 1), "the lost sheet and the map"
    assert digest(other) == expected
    assert run_stage(PredictStage(), other, config(other)).built == 0


def test_another_classifier_makes_everything_anew(run: Run) -> None:
    run_stage(PredictStage(), run, config(run))
    before = digest(run)
    train(run, seed=1)
    assert run_stage(PredictStage(), run, config(run)).built == 3
    assert digest(run)["classes_31N.tif"] != before["classes_31N.tif"]


def test_one_damaged_tile_stops_its_own_sheet_only(run: Run) -> None:
    path = run.embeddings / "t32631_1_0.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SmaltiError, match=r"t32631_1_0\.npy: its contents do not match"):
        run_stage(PredictStage(), run, config(run))
    assert not (run.map_manifest).exists()
    with pytest.raises(StageFailedError, match="1 of the sheets failed"):
        run_stage(PredictSheetsStage(), run, config(run))
    assert [path.name for path in run.map.glob("sheet_*.json")] == ["sheet_32N.json"]


def test_a_damaged_prediction_is_not_joined(run: Run) -> None:
    run_stage(PredictSheetsStage(), run, config(run))
    path = run.map / "confidence_31N.tif"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SmaltiError, match=r"confidence_31N\.tif: its contents do not match the checksum"):
        run_stage(PredictStage(), run, config(run))


def test_what_does_not_fit_is_said(tmp_path: Path, run: Run) -> None:
    bare = planned_run(tmp_path / "bare", CELLS)
    with pytest.raises(SmaltiError, match="4 of 4 tiles have no valid embedding"):
        run_stage(PredictStage(), bare, config(bare))
    embed_crops(bare)
    with pytest.raises(SmaltiError, match=r"model\.json: .* missing: run `smalti train"):
        run_stage(PredictStage(), bare, config(bare))
    train(run, dim=4)
    with pytest.raises(
        SmaltiError, match=r"trained on embeddings of 4 numbers, those in .* have 6: run `smalti sample"
    ):
        run_stage(PredictStage(), run, config(run))


def test_a_tile_without_a_valid_pixel_is_empty(run: Run) -> None:
    tile = planned_tiles(run)[0]
    write_tile(run, tile, np.full((32, 32, 6), np.nan, np.float32), int8=True)
    run_stage(PredictStage(), run, config(run))
    assert not read(run.map / "classes_31N.tif")[:32, :32].any()


def test_of_equally_probable_classes_the_lower_code_wins() -> None:
    class Undecided:
        def predict_proba(self, x: NDArray[np.float32], thread_count: int) -> NDArray[np.float64]:
            return np.full((len(x), 3), 1 / 3)

    found = predict_strip(strip(np.zeros((2, 2), np.float32) + 1), Classifier(CLASSES, 6, Undecided()))
    assert (found["classes"] == 2).all()
    assert (found["confidence"] == 33).all()


def strip(scales_hw: NDArray[np.float32]) -> Strip:
    observed = np.zeros((*scales_hw.shape, 4), np.uint8)
    return Strip(0, np.zeros((*scales_hw.shape, 6), np.int8), scales_hw, None, observed)


def test_confidence_of_a_valid_pixel_is_never_nodata() -> None:
    class Unsure:
        def predict_proba(self, x: NDArray[np.float32], thread_count: int) -> NDArray[np.float64]:
            return np.array([[0.0001, 0, 0], [0, 0, 1.0]])

    found = predict_strip(strip(np.array([[1, np.nan, 1]], np.float32)), Classifier(CLASSES, 6, Unsure()))
    assert found["classes"].ravel().tolist() == [2, 0, 200]
    assert found["confidence"].ravel().tolist() == [1, 0, 100]
    assert found["probabilities"][0].tolist() == [[0, 0, 0], [255, 255, 255], [0, 0, 100]]


def test_a_zone_of_many_sheets_is_the_same_map_as_of_one(tmp_path: Path) -> None:
    """Sheets of 128 pixels, which tiles of 48 do not fit, with probabilities, against one sheet."""
    cells = [(32631, c, r) for c, r in [(0, 0), (1, 0), (2, 0), (3, 1), (0, 3), (6, 5)]]
    read_back = []
    for name, side in (("one", 4096), ("many", 128)):
        run = planned_run(tmp_path / name, cells, size=48)
        embed_crops(run)
        train(run)
        settings = config(run, f"[stitch]\nsheet = {side}\n[predict]\nprobabilities = true\n[site]\nworkers = 1")
        run_stage(PredictStage(), run, settings)
        levels = {}
        for key in ("classes", "confidence", "probabilities"):
            path = run.map / f"{key}_31N.tif"
            assert cog_validate(path, strict=True) == (True, [], [])
            with rasterio.open(path) as raster:
                levels[key] = raster.read()
        made = read_manifest(run.map_manifest, "map", remedy="")
        read_back.append((levels, made["classes"], made["pixels"]))
    assert len(list((run.map / "sheets").glob("classes_*.tif"))) == 5
    for key, values in read_back[0][0].items():
        np.testing.assert_array_equal(values, read_back[1][0][key])
    assert read_back[0][1:] == read_back[1][1:]
    classes, shares = (read_back[1][0][key] for key in ("classes", "probabilities"))
    assert (np.array([2, 5, 200])[shares[:, classes[0] > 0].argmax(axis=0)] == classes[0][classes[0] > 0]).mean() > 0.99
    run_stage(PredictStage(), run, config(run))
    assert not (run.map / "sheets").exists(), "what another division left"
    assert not list(run.map.glob("probabilities*"))


def test_at_equator_and_antimeridian_every_class_is_in_its_place(tmp_path: Path) -> None:
    run, tiles = far_run(tmp_path / "run", dim=6)
    train(run)
    settings = config(run, '[stitch]\nsheet = 128\nmissing = "nodata"\n[site]\nworkers = 1')
    for index in (1, 0):
        run_stage(PredictSheetsStage(), run, settings, shard=Shard(index, 2))
    run_stage(PredictStage(), run, settings)
    classifier, expected = load_classifier(run.model), {}
    for name, values in tiles.items():
        valid = np.isfinite(values[..., 0])
        expected[name] = np.full((48, 48, 1), np.nan, np.float32)
        if valid.any():
            best = classifier.predict_proba(values[valid]).argmax(axis=1)
            expected[name][valid, 0] = np.array([2, 5, 200])[best]
    total = 0
    for label in ("60N", "01N"):
        wanted = np.nan_to_num(put_together(run, expected, label)[..., 0])
        np.testing.assert_array_equal(read(run.map / f"classes_{label}.tif"), wanted)
        total += np.count_nonzero(wanted)
    made = read_manifest(run.map_manifest, "map", remedy="")
    assert (made["pixels"], made["missing"]) == (total, ["n1_1_0"])


def test_a_map_of_the_last_version_is_made_anew_and_its_tiles_are_swept_up(run: Run) -> None:
    (run.map / "tiles").mkdir(parents=True)
    for suffix in (".npy", ".json"):
        (run.map / "tiles" / f"t32631_0_0{suffix}").write_bytes(b"old")
    run_stage(PredictStage(), run, config(run))
    assert not (run.map / "tiles").exists()


def test_pixels_that_were_refused_are_told_from_those_that_were_not_seen(tmp_path: Path) -> None:
    """[model] min_clear_s2: nodata in the classes, a reason beside them, counts and a grey of their own."""
    run = planned_run(tmp_path / "run", CELLS)
    embed_crops(run, min_clear_s2=15)
    train(run)
    run_stage(PredictStage(), run, config(run))
    classes, reasons = (read(run.map / f"{name}_32N.tif") for name in ("classes", "reasons"))
    few = looks(32)[..., 0] < 15
    few[:3, :3] = False
    np.testing.assert_array_equal(reasons == 2, few)
    assert (reasons[:3, :3] == 1).all()
    np.testing.assert_array_equal(reasons != 0, classes == 0)
    without = read_manifest(run.map_manifest, "map", remedy="")["without"]
    assert without == {
        "not observed, or outside the region": 4 * 9,
        "too few clear Sentinel-2 observations": 4 * int(few.sum()),
    }
    picture = (imread(run.map / "map_32N.png")[..., :3] * 255).round().astype(int)
    assert (picture == [0xB9, 0xB3, 0xA9]).all(axis=2).sum() > 1000
    asset = pystac.Item.from_file(run.map / "map_32N.json").assets["reasons"]
    assert [entry["value"] for entry in asset.extra_fields["classification:classes"]] == [0, 1, 2]


def test_missing_tiles_are_not_mapped_where_that_is_wished(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(PredictStage(), run, config(run))
    good = digest(run)
    manifest = run.embeddings / f"{planned_tiles(run)[1].name}.json"
    manifest.rename(run.root / "aside")
    with pytest.raises(SmaltiError, match=r"1 of 4 tiles have no valid embedding"):
        run_stage(PredictStage(), run, config(run))
    settings = config(run, '[stitch]\nmissing = "nodata"')
    run_stage(PredictStage(), run, settings)
    said = capsys.readouterr().err
    assert f"predict: 1 tile has no embedding and is nodata ([stitch] missing): {manifest.stem}: `smalti run" in said
    assert read_manifest(run.map_manifest, "map", remedy="")["missing"] == [manifest.stem]
    classes = read(run.map / "classes_31N.tif")
    assert not classes[:32, 32:].any()
    assert classes[:32, :32].any()
    (run.root / "aside").rename(manifest)
    run_stage(PredictStage(), run, settings)
    assert digest(run) == good
