"""Cleaning a map: each method against a slow, plain one, and blocks against the whole."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from scipy import ndimage
from support.embedded import write_vector
from support.mosaicked import CHAIN, EPSG, NAMES, NORTH, WEST, classified_run, config, crops

from infer.contract import Run, SmaltiError, planned_tiles, read_manifest
from preproc.classify import cleaned
from preproc.classify.cleaned import majority, minimum_unit, smoothed, unit_margin
from preproc.classify.predict import PredictStage
from preproc.classify.validate import ValidateStage
from preproc.report.stage import ReportStage
from preproc.run.stage import run_stage


def noisy(seed: int, size: int = 40, share: float = 0.25) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codes = np.kron(rng.integers(1, 5, (5, 5)), np.ones((size // 5, size // 5), int)).astype(np.uint8)
    speckle = rng.random(codes.shape) < share
    codes[speckle] = rng.integers(0, 5, int(speckle.sum()))
    return codes


def test_smoothing_is_that_of_sits_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    percent = np.rint(rng.dirichlet([1, 1, 1], (12, 14)) * 100).astype(np.uint8).transpose(2, 0, 1)
    percent[:, 3, 4] = 255
    made = smoothed(percent, 5, 10.0, 255)
    share = np.clip(percent / 100, 0.005, 0.995)
    logit = np.where(percent == 255, np.nan, np.log(share / (1 - share)))
    for row in range(12):
        for column in range(14):
            if percent[0, row, column] == 255:
                continue
            drawn = []
            for k in range(3):
                near = logit[k, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].ravel()
                near = np.sort(near[~np.isnan(near)])[::-1]
                near = near[: round(len(near) / 2)]
                s2 = near.var(ddof=1)
                drawn.append((s2 * logit[k, row, column] + 10.0 * near.mean()) / (s2 + 10.0))
            assert made[row, column] == int(np.argmax(drawn))


def test_smoothing_takes_away_a_doubtful_pixel_and_keeps_a_sure_region() -> None:
    percent = np.zeros((2, 20, 20), np.uint8)
    percent[0, :, :10], percent[1, :, 10:] = 90, 90
    percent[1, :, :10], percent[0, :, 10:] = 10, 10
    percent[:, 5, 4] = 45, 55
    made = smoothed(percent, 7, 20.0, 255)
    assert (made[:, :10] == 0).all()
    assert (made[:, 10:] == 1).all()  # the edge stays where it is


@pytest.mark.parametrize("side", [3, 5])
def test_the_majority_is_that_of_counting(side: int) -> None:
    codes, half = noisy(1), side // 2
    made = majority(codes, side)
    for row in range(40):
        for column in range(40):
            own = codes[row, column]
            near = codes[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
            counts = np.bincount(near[near > 0], minlength=5)
            expected = own if own == 0 or counts[own] == counts.max() else counts.argmax()
            assert made[row, column] == expected


def rounds(codes: np.ndarray, pixels: int) -> np.ndarray:
    while True:
        made = minimum_unit(codes, pixels)
        if (made == codes).all():
            return made
        codes = made


def test_no_patch_is_smaller_than_the_unit_unless_nothing_touches_it() -> None:
    codes = noisy(2)
    codes[:3, :3] = 0
    codes[1, 1] = 2  # an island
    made = rounds(codes, 12)
    assert ((made == 0) == (codes == 0)).all()
    for code in range(1, 5):
        labels, count = ndimage.label(made == code)
        for label in range(1, count + 1):
            patch = labels == label
            beside = ndimage.binary_dilation(patch) & ~patch
            assert patch.sum() >= 12 or (made[beside] == 0).all()
    assert made[1, 1] == 2
    assert (minimum_unit(codes, 1) == codes).all()


def test_a_patch_goes_to_whom_it_shares_most_border_with() -> None:
    codes = np.ones((9, 12), np.uint8)
    codes[:, 6:] = 2
    codes[4, 5:7] = 3  # one side of 3 pixels in each; of equal ones the lower
    codes[2, 8] = 3
    codes[6:8, 5] = 4  # 4 sides with class 1 (above, below, left twice), 2 with class 2
    made = minimum_unit(codes, 5)
    assert made[4, 5] == made[4, 6] == 1
    assert made[2, 8] == 2
    assert (made[6:8, 5] == 1).all()


@pytest.mark.parametrize("method", ["majority", "unit"])
def test_blocks_with_their_margin_are_the_whole(method: str) -> None:
    codes = noisy(3, 60, 0.5)

    def clean(part: np.ndarray) -> np.ndarray:
        return majority(part, 5) if method == "majority" else minimum_unit(part, 4)

    margin = 2 if method == "majority" else unit_margin(4)
    whole = clean(codes)
    for top in range(0, 60, 13):
        for left in range(0, 60, 17):
            rows = slice(max(0, top - margin), min(60, top + 13 + margin))
            columns = slice(max(0, left - margin), min(60, left + 17 + margin))
            part = clean(codes[rows, columns])
            core = part[top - rows.start : top - rows.start + 13, left - columns.start : left - columns.start + 17]
            assert (core == whole[top : top + 13, left : left + 17]).all()


# in a run

CLEAN = "[predict]\nprobabilities = true\n[clean]\nsmooth = 5\nmajority = 3\nminimum_unit = 0.12\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return classified_run(tmp_path_factory.mktemp("clean") / "run")[0]


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    shutil.copytree(made.root, tmp_path / "run")
    return Run(tmp_path / "run")


def raster(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    with rasterio.open(path) as opened:
        return opened.read(), opened.tags()


def test_the_cleaned_map_is_the_steps_in_order_and_the_map_stays(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage(PredictStage(), run, config(run, CHAIN + "[predict]\nprobabilities = true\n"))
    before = raster(run.map / "classes_31N.tif")[0][0]
    assert not (run.map / "cleaned").exists()
    monkeypatch.setattr(cleaned, "_BLOCK", 24)  # 64 pixels in nine blocks
    run_stage(PredictStage(), run, config(run, CHAIN + CLEAN))
    assert (raster(run.map / "classes_31N.tif")[0][0] == before).all()
    percent, _ = raster(run.map / "probabilities_31N.tif")
    codes = np.where(before > 0, smoothed(percent, 5, 20.0, 255) + 1, 0).astype(np.uint8)
    codes = rounds(majority(codes, 3), 12)
    made, tags = raster(run.map / "cleaned" / "classes_31N.tif")
    assert (made[0] == codes).all()
    assert tags["SMALTI_CLEANED"] == (
        "Bayesian smoothing over 5 x 5 pixels, smoothness 20; majority of 3 x 3 pixels; minimum mapping unit 0.12 ha"
    )
    assert tags["SMALTI_CLASS_2"] == NAMES[0]
    about = read_manifest(run.map / "cleaned" / "cleaned.json", "map-cleaned", remedy="")
    assert about["changed"] == int((made[0] != before).sum()) > 100
    assert [entry["pixels"] for entry in about["classes"]] == np.bincount(codes.ravel(), minlength=4)[1:].tolist()
    settings = config(run, CHAIN + CLEAN)
    assert all(unit.state().complete for unit in PredictStage().open(run, settings).units)
    other = config(run, CHAIN + CLEAN.replace("majority = 3", "majority = 5"))
    states = {unit.name: unit.state().complete for unit in PredictStage().open(run, other).units}
    assert [name for name, complete in states.items() if not complete] == ["cleaned map"]


def test_the_cleaned_map_is_validated_by_the_sample_of_the_map_and_reported(run: Run) -> None:
    """A census: whatever the strata, estimates are then what is true."""
    truth = np.empty((64, 64), int)
    for tile in planned_tiles(run):
        top, left = (NORTH - tile.north) // 10, (tile.west - WEST) // 10
        truth[top : top + 32, left : left + 32] = crops(tile)
    rows, columns = np.nonzero(raster(run.map / "classes_31N.tif")[0][0])
    names = np.array(NAMES, object)[truth[rows, columns]]
    import shapely

    where = shapely.points(WEST + columns * 10.0 + 5, NORTH - rows * 10.0 - 5)
    write_vector(run.root / "reference.gpkg", where, {"seen": names}, epsg=EPSG)
    sample = '[validate]\nreference = "reference.gpkg"\nclass = "seen"\ndesign = "stratified"\n'
    settings = config(run, CHAIN + CLEAN + sample)
    for stage in (PredictStage(), ValidateStage(), ReportStage()):
        run_stage(stage, run, settings)
    figures: dict[str, Any] = read_manifest(run.accuracy, "accuracy", remedy="")
    codes = {name: code for code, name in enumerate(sorted(NAMES), start=1)}
    true_n = np.array([codes[name] for name in names])
    shares = {}
    for key, path in (("map_accuracy", "classes_31N.tif"), ("cleaned_accuracy", "cleaned/classes_31N.tif")):
        mapped = raster(run.map / path)[0][0][rows, columns]
        shares[key] = float((mapped == true_n).mean())
        assert figures[key]["overall_accuracy"]["value"] == pytest.approx(shares[key])
        assert figures[key]["per_class"][0]["users_accuracy"]["value"] == pytest.approx(
            (true_n == 1)[mapped == 1].mean()
        )
    assert shares["cleaned_accuracy"] > shares["map_accuracy"]  # parcels of 64 pixels under noise
    assert figures["cleaned_accuracy"]["estimator"].startswith("Stehman 2014")
    assert figures["map_accuracy"]["estimator"].startswith("Olofsson")
    page = re.sub(r"\s+", " ", (run.report / "index.html").read_text())
    assert "Beside it stands a cleaned map" in page
    assert "minimum mapping unit 0.12 ha" in page
    assert "The cleaned map, by the same points (Stehman 2014" in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[clean]\nsmooth = 7\n", r"\[clean\] smooth needs the probabilities of classes: set \[predict\] prob"),
        ("[clean]\nmajority = 4\n", r"\[clean\] majority: 4 pixels: a square around a pixel has an odd side"),
        ("[clean]\nmajority = 1\n", "an odd side, 3 or more"),
        ("[clean]\nminimum_unit = -1\n", r"\[clean\] minimum_unit"),
        ("[clean]\nminimum_unit = nan\n", r"\[clean\] minimum_unit"),
        ("[clean]\nsieve = 3\n", r"\[clean\] sieve: unknown key"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(run: Run, settings: str, message: str) -> None:
    with pytest.raises(SmaltiError, match=message):
        config(run, CHAIN + settings)
