"""The simulation's core: seasons, spectra, backscatter, weather, options and names, without rasters."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recorded import STAC_ITEMS

from infer.contract import BANDS, SmaltiError
from preproc.simulate import Climate, SimulationOptions
from preproc.simulate.crops import CROPS, crop_index
from preproc.simulate.grid import Grid, mgrs_square, neighbour_epsg, snapped, utm_epsg
from preproc.simulate.noise import fractal, white
from preproc.simulate.phenology import Fields, draw_fields
from preproc.simulate.schedule import s1_passes, s2_passes
from preproc.simulate.sensors import Orbit, backscatter, decibels, delivered, grow, reflectance, speckle
from preproc.simulate.weather import Weather, weather

YEAR = np.arange(np.datetime64("2022-01-01"), np.datetime64("2023-01-01"), 5)
CALM = Climate(snow=0.0)


def parcels(name: str, count: int = 40) -> Fields:
    return draw_fields(np.full(count, crop_index(name), np.int16), np.random.default_rng(5))


def s2_series(fields: Fields, sky: Weather) -> Any:
    """(N, T, 10) reflectance of parcels under a clear sky, as it would be delivered but for sensor noise."""
    wide = fields.expand()
    return delivered(reflectance(wide, grow(wide, sky), sky.moisture, sky.snow), sky)


def s1_series(fields: Fields, sky: Weather, orbit: Orbit) -> Any:
    """(N, T, 2) linear power of parcels without speckle."""
    wide = fields.expand()
    return backscatter(wide, grow(wide, sky), sky.moisture, sky.snow, orbit)


def band(values: Any, name: str) -> Any:
    return values[..., BANDS.index(name)]


def ndvi(name: str, climate: Climate = CALM) -> Any:
    values = s2_series(parcels(name), weather(YEAR, climate, 1))
    return ((band(values, "B08") - band(values, "B04")) / (band(values, "B08") + band(values, "B04"))).mean(axis=0)


def on(day: str) -> int:
    return int(np.argmin(np.abs(YEAR - np.datetime64(day))))


def test_crops_are_green_in_their_own_season() -> None:
    wheat, maize, beet = (ndvi(name) for name in ("winter wheat", "maize", "sugar beet"))
    assert wheat[on("2022-05-15")] > 0.8 > 0.5 > wheat[on("2022-08-15")]
    assert maize[on("2022-05-10")] < 0.45 < 0.8 < maize[on("2022-08-10")]
    assert beet[on("2022-09-25")] > 0.8 > maize[on("2022-10-15")]
    assert ndvi("winter barley")[on("2022-06-20")] < wheat[on("2022-06-20")] - 0.15, "barley ripens first"
    assert ndvi("coniferous forest")[on("2022-01-10")] > 0.7
    assert ndvi("water").max() < 0


def test_rapeseed_flowers_yellow_at_the_end_of_april() -> None:
    values = s2_series(parcels("rapeseed"), weather(YEAR, CALM, 1)).mean(axis=0)
    yellow = band(values, "B03") + band(values, "B04") - 2 * band(values, "B02")
    assert abs(int(np.argmax(yellow[on("2022-03-15") : on("2022-06-10")])) - 9) <= 3
    assert yellow[on("2022-05-01")] > 2 * yellow[on("2022-04-01")]


def test_leaves_differ_in_pigment_structure_and_water() -> None:
    sky = weather(YEAR[on("2022-07-20") : on("2022-07-20") + 1], CALM, 1)
    values = {crop.name: s2_series(parcels(crop.name), sky).mean(axis=(0, 1)) for crop in CROPS}
    assert band(values["sugar beet"], "B8A") > 1.1 * band(values["maize"], "B8A")
    assert band(values["sugar beet"], "B11") < band(values["maize"], "B11")
    assert band(values["coniferous forest"], "B03") < 0.85 * band(values["grassland"], "B03")
    assert band(values["coniferous forest"], "B08") < 0.75 * band(values["deciduous forest"], "B08")


def test_wheat_stalks_hide_the_soil_from_vv_and_maize_raises_vh() -> None:
    sky = weather(YEAR, CALM, 1)
    wheat = decibels(s1_series(parcels("winter wheat"), sky, "ascending")).mean(axis=0)
    maize = decibels(s1_series(parcels("maize"), sky, "ascending")).mean(axis=0)
    assert wheat[on("2022-05-25"), 0] < wheat[on("2022-02-25"), 0] - 2
    assert maize[on("2022-08-10"), 1] > maize[on("2022-04-25"), 1] + 1
    assert (decibels(s1_series(parcels("water"), sky, "descending"))[..., 0] < -16).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dryness=st.floats(0, 1),
    shift=st.floats(-60, 60),
    southern=st.booleans(),
    kind=st.integers(0, len(CROPS) - 1),
)
def test_values_are_physical_for_any_climate_and_kind(
    seed: int, dryness: float, shift: float, southern: bool, kind: int
) -> None:
    climate = Climate(season_shift=shift, dryness=dryness, southern=southern, snow=0.5)
    fields = draw_fields(np.full(7, kind, np.int16), np.random.default_rng(seed))
    sky = weather(YEAR[::6], climate, seed)
    optical = s2_series(fields, sky)
    assert optical.shape == (7, sky.day.size, 10)
    assert optical.dtype == np.float32
    assert np.isfinite(optical).all()
    assert optical.min() > -0.02
    assert optical.max() < 1.1
    for orbit in ("ascending", "descending"):
        power = s1_series(fields, sky, orbit)
        assert power.shape == (7, sky.day.size, 2)
        assert (decibels(power) > -35).all()
        assert (decibels(power) < 3).all()


def test_a_series_equals_its_parcels_and_days_one_by_one() -> None:
    fields = draw_fields(np.arange(len(CROPS), dtype=np.int16), np.random.default_rng(0))
    sky = weather(YEAR[::20], Climate(), 3)
    whole = s2_series(fields, sky)
    for place in range(len(CROPS)):
        for day in range(sky.day.size):
            alone = s2_series(fields.take(np.array([place])), sky.at(day))
            np.testing.assert_allclose(alone[0, 0], whole[place, day], atol=1e-6)


def test_weather_does_not_depend_on_the_window() -> None:
    long = weather(YEAR, Climate(), 4)
    short = weather(YEAR[30:33], Climate(), 4)
    for name in ("day", "moisture", "snow", "lushness", "gain", "haze"):
        np.testing.assert_array_equal(getattr(long, name)[30:33], getattr(short, name))
    assert not np.array_equal(long.moisture, weather(YEAR, Climate(), 5).moisture)


def test_climate_moves_and_dries_the_season() -> None:
    late = ndvi("maize", replace(CALM, season_shift=30.0))
    now = ndvi("maize")
    rise = [int(np.argmax(curve > 0.6)) for curve in (now, late)]
    assert 4 <= rise[1] - rise[0] <= 8, "thirty days are six steps"
    south = ndvi("winter wheat", replace(CALM, southern=True))
    assert south[on("2022-11-15")] > 0.8 > 0.5 > south[on("2022-02-15")]
    dry = weather(YEAR, Climate(dryness=1.0), 1).moisture.mean()
    assert dry < 0.6 * weather(YEAR, Climate(dryness=0.0), 1).moisture.mean()


def test_speckle_has_mean_one_and_its_number_of_looks() -> None:
    values = speckle((400, 400), 4.4, np.random.default_rng(0))
    assert values.mean() == pytest.approx(1, abs=0.01)
    assert 1 / values.var() == pytest.approx(4.4, rel=0.03)
    assert (speckle((3, 3), 0, np.random.default_rng(0)) == 1).all()


def test_noise_is_a_function_of_position() -> None:
    x, y = np.meshgrid(np.arange(0.0, 4000, 37), np.arange(0.0, 4000, 41))
    field = fractal(x, y, 300.0, 9)
    assert 0.6 < field.std() < 1.4
    assert abs(field.mean()) < 0.2
    np.testing.assert_array_equal(fractal(x[5:9, 7:9], y[5:9, 7:9], 300.0, 9), field[5:9, 7:9])
    assert np.abs(fractal(x + 1, y, 300.0, 9) - field).max() < 0.1, "smooth"
    cells = np.arange(100_000), np.arange(100_000)[::-1].copy()
    draws = white(*cells, 3)
    assert draws.std() == pytest.approx(1, abs=0.02)
    assert draws.mean() == pytest.approx(0, abs=0.02)
    assert abs(np.corrcoef(draws, white(*cells, 4))[0, 1]) < 0.02


# --- options, schedule, names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end": date(2020, 1, 1)}, "end"),
        ({"place": (200.0, 50.0)}, "place"),
        ({"extent_km": 0.0}, "extent_km"),
        ({"margin_m": 30}, "margin_m"),
        ({"s2_dates": 0}, "s2_dates"),
        ({"seed": -1}, "seed"),
        ({"noise": float("nan")}, "noise"),
        ({"crops": ()}, "crops"),
        ({"crops": (("winter weat", 1.0),)}, "winter weat"),
        ({"crops": (("water", 1.0),)}, "water"),
        ({"crops": (("maize", 0.0),)}, "maize"),
        ({"crops": (("maize", 0.5), ("maize", 0.5))}, "each kind once"),
    ],
)
def test_impossible_options_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SmaltiError, match=message) as caught:
        replace(SimulationOptions(), **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"dryness": 1.5}, {"cloudiness": -0.1}, {"snow": 2.0}, {"season_shift": 400.0}])
def test_impossible_climates_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(SmaltiError, match=next(iter(change))):
        replace(Climate(), **change)


def test_options_survive_the_manifest() -> None:
    options = SimulationOptions(seed=9, crops=(("maize", 0.5), ("soybean", 0.5)), climate=Climate(southern=True))
    inputs = json.loads(json.dumps(options.as_inputs()))
    assert SimulationOptions.from_inputs(inputs) == options
    with pytest.raises(SmaltiError, match="version"):
        SimulationOptions.from_inputs({**inputs, "version": 0})
    with pytest.raises(SmaltiError, match="cannot be read"):
        SimulationOptions.from_inputs({**inputs, "colour": "blue"})


@settings(max_examples=30, deadline=None)
@given(
    start=st.dates(date(2017, 1, 1), date(2024, 1, 1)),
    days=st.integers(0, 800),
    s2=st.integers(1, 90),
    s1=st.integers(0, 70),
    quirks=st.booleans(),
)
def test_schedules_stay_in_the_window(start: date, days: int, s2: int, s1: int, quirks: bool) -> None:
    end = date.fromordinal(start.toordinal() + days)
    options = SimulationOptions(start=start, end=end, s2_dates=s2, s1_dates=s1, quirks=quirks)
    optical, radar = s2_passes(options), s1_passes(options)
    assert len(optical) <= s2
    assert len({item.moment.date() for item in optical}) == len(optical)
    assert all(start <= item.moment.date() <= end for item in [*optical, *radar])
    assert all((item.offset == 1000) == (item.moment.date() > date(2022, 1, 25)) for item in optical)
    whole = [item for item in radar if len(item.polarisations) == 2]
    assert len({(item.moment.date(), item.orbit) for item in whole}) == len(whole) <= 2 * s1
    if not quirks:
        assert all(item.quirk is None and not item.edge for item in optical)


def test_the_default_season_is_about_as_large_as_promised() -> None:
    assert len(s2_passes(SimulationOptions())) == 30
    assert 60 <= len(s1_passes(SimulationOptions())) <= 66


def test_squares_are_named_as_sentinel_2_names_its_tiles() -> None:
    checked = set()
    for path in sorted(STAC_ITEMS.rglob("*.json")):
        content = json.loads(path.read_text())
        for item in _walk(content):
            properties = item.get("properties", {})
            boxes = [
                a["proj:bbox"] for a in item.get("assets", {}).values() if isinstance(a, dict) and "proj:bbox" in a
            ]
            if "s2:mgrs_tile" not in properties or not boxes or "proj:epsg" not in properties:
                continue
            west, _, _, north = boxes[0]
            latitude = (item["bbox"][1] + item["bbox"][3]) / 2
            name = mgrs_square(properties["proj:epsg"], west + 50_000, north - 50_000, latitude)
            tile = properties["s2:mgrs_tile"]
            assert (name[:2], name[3:]) == (tile[:2], tile[3:])  # the band's letter is that of the tile, not the scene
            checked.add(tile)
    assert len(checked) > 5


def _walk(content: Any) -> Any:
    if isinstance(content, dict) and content.get("type") == "Feature":
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _walk(value)
    elif isinstance(content, list):
        for value in content:
            yield from _walk(value)


def test_zones_and_their_neighbours() -> None:
    assert utm_epsg(5.9, 50.8) == 32631
    assert utm_epsg(5.9, -50.8) == 32731
    assert utm_epsg(180, 10) == 32660
    assert neighbour_epsg(32631, 5.9) == 32632
    assert neighbour_epsg(32631, 0.1) == 32630
    assert neighbour_epsg(32601, -179.9) == 32660
    assert neighbour_epsg(32760, 179.9) == 32701


@given(west=st.floats(1e5, 9e5), south=st.floats(0, 9e6), width=st.floats(1, 5e4), height=st.floats(1, 5e4))
def test_snapped_grids_cover_their_bounds_on_multiples_of_20(
    west: float, south: float, width: float, height: float
) -> None:
    grid = snapped(32631, (west, south, west + width, south + height))
    left, bottom, right, top = grid.bounds
    assert left <= west < left + 20
    assert bottom <= south < bottom + 20
    assert right - 20 < west + width <= right
    assert top - 20 < south + height <= top
    assert grid.width % 2 == grid.height % 2 == 0
    inner = grid.crop(0, grid.width, 0, grid.height)
    assert inner == grid


def test_windows_of_crops() -> None:
    grid = Grid(32631, 1000, 5000, 10, 8)
    inner = grid.crop(2, 6, 4, 8)
    assert inner == Grid(32631, 1020, 4960, 4, 4)
    rows, columns = grid.window(inner)
    x, y = grid.centres()
    inner_x, inner_y = inner.centres()
    np.testing.assert_array_equal(x[rows, columns], inner_x)
    np.testing.assert_array_equal(y[rows, columns], inner_y)
