"""Made-up tiles for pretraining: many small seasons of many kinds, straight from parameters to TESSERA tiles.

    python -m preproc.simulate.seasons FOLDER --count 96 --seed 1

Each tile is its own region and year: climate, hemisphere, calendar, varieties of the crops, soil, the seasons of its
clouds, orbits, calibration, sharpness and speckle are drawn anew. Within a tile the ground is a patchwork of stands; a
stand has one kind of land, but its pixels are drawn as separate parcels (sowing date, vigour, soil, rows, catch crop
...), so that what neighbours share is the kind rather than the parcel. `truth.npy` and `stand.npy` beside the arrays
say what is where; training never opens them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import (
    BANDS,
    EXIT_OK,
    MASK_POLARITY,
    SAR_BANDS,
    TILE_ARRAYS,
    TILE_MANIFEST,
    SmaltiError,
    atomic_dir,
    output_state,
    write_npy,
)
from infer.contract.tile import TileManifest
from preproc.simulate.crops import CROPS, Crop, Growth, Leaf, Radar
from preproc.simulate.noise import fractal, seed_of
from preproc.simulate.options import Climate
from preproc.simulate.phenology import Fields, canopy, draw_fields
from preproc.simulate.schedule import cloud_fraction
from preproc.simulate.sensors import CLOUD, Orbit, backscatter, reflectance, speckle
from preproc.simulate.weather import Weather, weather

Floats = NDArray[np.float32]

SEASONS_VERSION = 2
"""Raised when the same seed gives other tiles."""
_MIN_CLEAR = 0.05
"""Dates with less clear area are dropped, as `smalti fetch` does with this `min_clear`."""


@dataclass(frozen=True)
class Season:
    """What one tile is made of."""

    seed: int
    start: date
    """First of 365 days."""
    climate: Climate
    s2_step: float
    """Mean days between Sentinel-2 passes."""
    s1_steps: dict[Orbit, int]
    """Days between Sentinel-1 passes of each orbit that there is."""
    looks: float
    """Equivalent number of looks of the speckle."""
    noise: float
    """Sensor noise of a pixel, reflectance."""
    gain_b: Floats
    """(10,) calibration factor of this tile's Sentinel-2 bands."""
    radar_db: Floats
    """(2, 2) offset of ascending and descending, VV and VH, dB."""
    leak: float
    """Chance that a pixel under thin cloud or shadow counts as clear."""
    own: float
    """How far pixels of a stand differ as parcels do, 0 (one parcel) to 1 (parcels of their own)."""
    crops: tuple[Crop, ...]
    """What the kinds are like in this region."""
    soil: float
    """Factor on the brightness of its soils."""
    blur: float
    """What a pixel takes from each of its four neighbours, 0 to 0.2."""
    wet: tuple[float, float]
    """Day of the year with most clouds, and by which part of the mean the cloudiness rises then and falls half a year
    later, beside what `cloud_fraction` does."""


def regional(strength: float, rng: np.random.Generator) -> tuple[Crop, ...]:
    """The kinds of `CROPS` as a region grows them.

    Args:
        strength: 0 (as they are) to 1 (other calendars, leaves and stalks: crops that are in no table).
        rng: the only source of chance.
    """
    return tuple(_variety(crop, strength, rng) for crop in CROPS)


def _variety(crop: Crop, strength: float, rng: np.random.Generator) -> Crop:
    def factor(spread: float) -> float:
        return float(np.exp(rng.normal(0, spread * strength)))

    def moved(spread: float) -> float:
        return float(rng.normal(0, spread * strength))

    late, stretch = moved(18), factor(0.16)
    middle = (crop.growth[0].start + crop.growth[0].end) / 2 if crop.growth else 180.0

    def when(day: float) -> float:
        return middle + (day - middle) * stretch + late

    growth = tuple(
        Growth(when(g.start), g.rise * factor(0.25), when(g.end), g.fall * factor(0.25), g.lai * factor(0.2))
        for g in crop.growth
    )
    harvest = None if crop.harvest is None else when(crop.harvest) + abs(moved(4))
    if harvest is not None and rng.random() < 0.25 * strength:  # a second crop in the same year
        start = harvest + float(rng.uniform(15, 45))
        second = Growth(start, 8 * factor(0.2), start + float(rng.uniform(45, 90)), 6 * factor(0.3), 3.5 * factor(0.3))
        growth, harvest = (*growth, second), None
    tone = moved(1.2)
    leaf, stalks = crop.leaf, crop.radar
    first, last, bloom = leaf.bloom
    if rng.random() < 0.15 * strength:
        first, last, bloom = middle - 8, middle + 8, float(rng.uniform(0.2, 0.8))
    return replace(
        crop,
        growth=growth,
        harvest=harvest,
        cover=None if crop.cover is None else (when(crop.cover[0]), when(crop.cover[1])),
        straw=float(np.clip(crop.straw * factor(0.4), 0, 0.9)),
        cuts=tuple(when(day) for day in crop.cuts),
        leaf=Leaf(
            leaf.chlorophyll * factor(0.12),
            leaf.nir * factor(0.07),
            leaf.water * factor(0.12),
            (when(first), when(last), bloom),
        ),
        radar=Radar(
            stalks.vv + tone + moved(0.7),
            stalks.vh + tone + moved(0.7),
            stalks.depth * factor(0.2),
            stalks.woody * factor(0.3),
            stalks.rough + moved(0.6),
        ),
    )


def draw_season(seed: int) -> Season:
    """Draw region, year and sensors of a tile."""
    rng = np.random.default_rng(seed_of(seed, 1))
    shift = rng.normal(0, 14) if rng.random() < 0.7 else rng.uniform(-60, 60)
    climate = Climate(
        season_shift=float(np.clip(shift, -60, 60)),
        dryness=float(rng.uniform(0, 0.7)),
        cloudiness=float(rng.uniform(0.15, 0.7)),
        snow=float(rng.uniform(0, 0.4)),
        southern=bool(rng.random() < 0.3),
    )
    choice = int(rng.choice(4, p=(0.4, 0.35, 0.15, 0.1)))
    step = int(rng.choice((6, 12)))
    orbits: dict[Orbit, int] = {}
    if choice in (0, 1):
        orbits["ascending"] = step
    if choice in (0, 2):
        orbits["descending"] = step
    return Season(
        seed=seed,
        start=date(int(rng.integers(2016, 2025)), 1, 1) + timedelta(days=int(rng.integers(0, 365))),
        climate=climate,
        s2_step=float(rng.choice((2.5, 5.0, 5.0, 10.0))),
        s1_steps=orbits,
        looks=float(rng.uniform(4, 25)),
        noise=float(rng.uniform(0.002, 0.008)),
        gain_b=rng.normal(1, 0.04, len(BANDS)).astype(np.float32),
        radar_db=rng.normal(0, 1.0, (2, 2)).astype(np.float32),
        leak=float(rng.uniform(0.0, 0.15)),
        own=float(rng.uniform(0.7, 1.0)),
        crops=regional(float(rng.uniform(0.2, 1.0)), np.random.default_rng(seed_of(seed, 5))),
        soil=float(np.clip(np.exp(rng.normal(0, 0.2)), 0.6, 1.7)),
        blur=float(rng.uniform(0.04, 0.16)),
        wet=(float(rng.uniform(0, 365)), float(rng.uniform(0, 0.8))),
    )


def stands(size: int, rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """A patchwork of Voronoi cells: the number of each pixel's stand and its kind, both (size, size)."""
    count = int(rng.integers(24, 72))
    centres = rng.uniform(0, size, (count, 2))
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    metric = rng.uniform(0.5, 2.0)
    distance = (rows[..., None] - centres[:, 0]) ** 2 * metric + (columns[..., None] - centres[:, 1]) ** 2
    stand = distance.argmin(axis=-1).astype(np.int16)
    farmed = np.flatnonzero([crop.farmed for crop in CROPS])
    wild = np.flatnonzero([not crop.farmed for crop in CROPS])
    grown = rng.choice(farmed, size=int(rng.integers(4, 11)), replace=False)
    shares = rng.dirichlet(np.full(len(grown), 1.5))
    kind = np.where(rng.random(count) < 0.85, rng.choice(grown, count, p=shares), rng.choice(wild, count))
    return stand, kind[stand].astype(np.int16)


def pixel_fields(stand: NDArray[np.int16], kind: NDArray[np.int16], season: Season, rng: np.random.Generator) -> Fields:
    """Parameters of every pixel: those of its stand mixed with its own, moved by how the region farms each kind."""
    own = draw_fields(kind, rng)
    first = np.array([kind[stand == number][0] if (stand == number).any() else 0 for number in range(stand.max() + 1)])
    shared = draw_fields(first.astype(np.int16), rng).take(stand.astype(np.intp))
    weight = np.float32(season.own)
    mixed = {}
    for name in ("shift", "vigour", "harvest", "soil", "rough"):
        mixed[name] = (np.sqrt(1 - weight**2) * (getattr(shared, name) - _MEAN[name])) + weight * (
            getattr(own, name) - _MEAN[name]
        )
    takes_own = rng.random(kind.shape) < season.own
    habit = np.random.default_rng(seed_of(season.seed, 2))
    shift, harvest = habit.normal(0, 7, len(CROPS)), habit.normal(0, 8, len(CROPS))
    vigour = np.clip(habit.normal(1, 0.12, len(CROPS)), 0.6, 1.35)
    return replace(
        own,
        shift=(1.3 * mixed["shift"] + shift[kind]).astype(np.float32),
        vigour=np.clip((1 + 1.4 * mixed["vigour"]) * vigour[kind], 0.35, 1.6).astype(np.float32),
        harvest=(1.3 * mixed["harvest"] + harvest[kind]).astype(np.float32),
        soil=(season.soil * np.clip(1 + 1.6 * mixed["soil"], 0.5, 1.6)).astype(np.float32),
        rough=(1.4 * mixed["rough"]).astype(np.float32),
        catch=np.where(takes_own, own.catch, shared.catch),
        intensity=np.where(takes_own, own.intensity, shared.intensity),
        rows=np.where(takes_own, own.rows, shared.rows),
    )


_MEAN = {"shift": 0.0, "vigour": 1.0, "harvest": 0.0, "soil": 1.0, "rough": 0.0}


def _days(start: date, offsets: Sequence[int]) -> NDArray[np.datetime64]:
    return np.array([start + timedelta(days=int(offset)) for offset in offsets], "datetime64[D]")


def _doys(days: NDArray[np.datetime64]) -> NDArray[np.int64]:
    return np.asarray((days - days.astype("datetime64[Y]")).astype(np.int64) + 1)


def _blurred(values_hwtc: Floats, part: float) -> Floats:
    """A part of every neighbour: the point spread of the sensor, 20 m bands, and edges of parcels."""
    result = values_hwtc * np.float32(1 - 4 * part)
    for axis in (0, 1):
        for turn in (-1, 1):
            result += np.float32(part) * np.roll(values_hwtc, turn, axis=axis)
    return result


@dataclass(frozen=True)
class Optical:
    """Sentinel-2 of a tile: T dates."""

    bands_thwb: NDArray[np.uint16]
    masks_thw: NDArray[np.uint8]
    doys_t: NDArray[np.uint16]


def _sky(day: date, season: Season, size: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Opacity and shade (size, size) of a date, 0 to 1."""
    most, rise = season.wet
    swing = 1 + rise * np.cos(2 * np.pi * (day.timetuple().tm_yday - most) / 365.25)
    climate = replace(season.climate, cloudiness=float(np.clip(season.climate.cloudiness * swing, 0, 0.95)))
    cover = cloud_fraction(day, climate, season.seed)
    if cover <= 0:
        clear = np.zeros((size, size), np.float32)
        return clear, clear
    x, y = np.meshgrid(np.arange(size) * 10.0, np.arange(size) * 10.0)
    origin = rng.uniform(0, 1e5, 2)
    field = fractal(x + origin[0], y + origin[1], 900.0, seed_of(season.seed, 3, day.toordinal()), octaves=3)
    level = np.quantile(field, 1 - cover) if cover < 1 else -10.0
    opacity = np.clip((field - level) / 0.8, 0, 1).astype(np.float32)
    moved = np.roll(opacity, (int(rng.integers(4, 14)), int(rng.integers(-10, 10))), axis=(0, 1))
    return opacity, np.where(opacity > 0, 0, moved).astype(np.float32)


def optical(fields: Fields, season: Season, tint: Floats, rng: np.random.Generator) -> Optical:
    """The Sentinel-2 arrays of a tile.

    Args:
        fields: parameters of pixels (H, W).
        season: what to simulate.
        tint: (kinds, 10) factor on the reflectance of each kind in this region.
        rng: of the sensor and the sky.
    """
    size = fields.kind.shape[0]
    offsets = np.unique((rng.uniform(0, season.s2_step) + np.arange(0, 365, season.s2_step)).astype(int))
    skies = [(offset, *_sky(season.start + timedelta(days=int(offset)), season, size, rng)) for offset in offsets]
    leaked = [(rng.random((size, size)) < season.leak) for _ in skies]
    clear = [
        ((cloud < 0.1) & (shade < 0.15)) | (leak & (cloud < 0.35) & (shade < 0.5))
        for (_, cloud, shade), leak in zip(skies, leaked, strict=True)
    ]
    kept = [place for place, mask in enumerate(clear) if mask.mean() >= _MIN_CLEAR]
    days = _days(season.start, [skies[place][0] for place in kept])
    today = weather(days, season.climate, season.seed)
    wide = fields.expand()
    surface = _surface(wide, today, season.crops) * tint[fields.kind][:, :, None]
    surface = _blurred(surface * today.gain + today.haze, season.blur) * season.gain_b
    stack = np.moveaxis(surface, 2, 0)
    cloud, shade = (np.stack([skies[place][item] for place in kept])[..., None] for item in (1, 2))
    stack = stack * (1 - 0.5 * shade)
    stack = stack + (CLOUD - stack) * cloud
    stack += rng.standard_normal(stack.shape, np.float32) * np.float32(season.noise)
    numbers = np.clip(np.rint(stack * 10000), 1, 20000).astype(np.uint16)
    masks = np.stack([clear[place] for place in kept]).astype(np.uint8)
    return Optical(numbers * masks[..., None], masks, _doys(days).astype(np.uint16))


def _surface(wide: Fields, today: Weather, crops: tuple[Crop, ...]) -> Floats:
    lush = replace(wide, vigour=wide.vigour * today.lushness)
    return reflectance(wide, canopy(lush, today.day, crops), today.moisture, today.snow, crops)


def radar(
    fields: Fields, season: Season, orbit: Orbit, rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Scaled dB (T, H, W, 2) and days of year (T,) of one orbit; empty where the season has none."""
    size = fields.kind.shape[0]
    step = season.s1_steps.get(orbit)
    if step is None:
        return np.zeros((0, size, size, 2), np.int16), np.zeros(0, np.int16)
    offsets = np.arange(int(rng.integers(0, step)), 365, step)
    offsets = offsets[rng.random(len(offsets)) < 0.97]
    days = _days(season.start, offsets.tolist())
    today = weather(days, season.climate, season.seed)
    wide = fields.expand()
    lush = replace(wide, vigour=wide.vigour * today.lushness)
    power = backscatter(wide, canopy(lush, today.day, season.crops), today.moisture, today.snow, orbit, season.crops)
    power = _blurred(power, season.blur) * speckle(power.shape, season.looks, rng)
    offset_db = season.radar_db[0 if orbit == "ascending" else 1]
    scaled = (20 * np.log10(np.maximum(power, 1e-6)) + 2 * offset_db + 50) * 200
    values = np.clip(scaled, 1, 32767).astype(np.int16)
    return np.moveaxis(values, 2, 0), _doys(days).astype(np.int16)


def simulate_tile(seed: int, size: int) -> tuple[dict[str, NDArray[Any]], NDArray[np.int16], NDArray[np.int16]]:
    """All arrays of a made-up tile (by field name of `infer.contract.Tile`), its kinds and its stands (size, size)."""
    season = draw_season(seed)
    rng = np.random.default_rng(seed_of(seed, 4))
    stand, kind = stands(size, rng)
    fields = pixel_fields(stand, kind, season, rng)
    tint = np.clip(rng.normal(1, 0.05, (len(CROPS), len(BANDS))), 0.8, 1.2).astype(np.float32)
    seen = optical(fields, season, tint, rng)
    arrays: dict[str, NDArray[Any]] = {
        "bands_thwb": seen.bands_thwb,
        "masks_thw": seen.masks_thw,
        "doys_t": seen.doys_t,
    }
    for short, orbit in (("asc", "ascending"), ("desc", "descending")):
        arrays[f"sar_{short}_thwp"], arrays[f"sar_{short}_doys_t"] = radar(fields, season, orbit, rng)  # type: ignore[arg-type]  # a literal of the pair above
    return arrays, kind, stand


def write_tile(folder: Path, seed: int, size: int) -> None:
    """Make one tile, unless it is there and complete."""
    inputs = {"seed": seed, "size": size, "version": SEASONS_VERSION}
    if output_state(folder / TILE_MANIFEST, "tile", inputs).complete:
        return
    arrays, kind, stand = simulate_tile(seed, size)
    codes = np.array([crop.code for crop in CROPS], np.uint8)
    with atomic_dir(folder) as temporary:
        for name, spec in TILE_ARRAYS.items():
            write_npy(temporary / spec.file, arrays[name].astype(spec.dtype, copy=False))
        write_npy(temporary / "truth.npy", codes[kind])
        write_npy(temporary / "stand.npy", stand)
        about = TileManifest(
            band_order=BANDS,
            sar_band_order=SAR_BANDS,
            mask_polarity=MASK_POLARITY,
            source="simulated seasons",
            data_source="other",
            classes={str(crop.code): crop.name for crop in CROPS},
        )
        about.write(temporary / TILE_MANIFEST, inputs=inputs, files=sorted(temporary.glob("*.npy")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write tiles into a folder."""
    parser = argparse.ArgumentParser(prog="python -m preproc.simulate.seasons", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="tiles are written here, one folder each")
    parser.add_argument("--count", type=int, default=96, help="number of tiles (default 96)")
    parser.add_argument("--size", type=int, default=48, help="pixels a side (default 48)")
    parser.add_argument("--seed", type=int, default=1, help="of the first tile; others follow from it (default 1)")
    options = parser.parse_args(arguments)
    if options.count < 1 or options.size < 8 or options.seed < 0:
        raise SmaltiError("--count must be at least 1, --size at least 8 and --seed not negative")
    for number in range(options.count):
        write_tile(
            options.folder / f"season-{options.seed:03d}-{number:04d}", seed_of(options.seed, number), options.size
        )
    return EXIT_OK


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except SmaltiError as error:
        print(f"error: {error}")
        raise SystemExit(error.exit_code) from None
