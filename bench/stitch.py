"""How fast sheets of mosaic and map are made: `python -m bench.stitch` prints ratios; docs/country.md has some.

A made run of tiles of 512 pixels (smooth int8 codes of 128 numbers with noise, a scale each) goes through the real
stages, every way in a process of its own, in one run (by the clock, for a machine that does nothing else, and by
processor time, for one that does):

    store, 1 and 2 processes     smalti stitch, formats = ["zarr"]; one process on one core, and on all there are
    zarr-python                  the same shards from memory by zarr's own writer, one sheet at a time
    cog, 1 process               smalti stitch, formats = ["cog"]
    GDAL                         the same pixels from memory by GDAL's COG driver, with the overviews it makes itself
    predict, 1 and 2 processes   smalti predict with a small classifier, likewise
    CatBoost                     its predict_proba on the same pixels as float32 in memory, on one thread

With --reads it is reading that is timed: all numbers of 1 000 random points, and one number of every pixel, from

    tiles                        the embeddings as the engine wrote them (points only)
    store                        the Zarr store; of one number its array of four, and "whole", that of all numbers
    cog                          the GeoTIFFs of sheets, through the VRT
    float                        one float32 GeoTIFF of the whole zone, as the first mosaics were

All are in the machine's memory of files, in which they were just written, and give the same numbers, which is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from catboost import CatBoostClassifier
from numpy.typing import NDArray

from infer.contract import Plan, PlannedTile, Run, planned_tiles, read_embedding, write_embedding
from infer.contract.classification import ClassEntry, ClassifierManifest, FoldsUsed, Tuning
from infer.contract.embedding import EmbeddingManifest, EmbeddingModel
from infer.contract.plan import Cost, FoundScenes, PlannedRegion, SampledTiles, SceneCount
from preproc.classify.model import save_classifier
from preproc.classify.predict import PredictSheetsStage
from preproc.mosaic.reader import EmbeddingReader
from preproc.mosaic.stage import StitchSheetsStage, StitchStage
from preproc.mosaic.store import STORE, group_of
from preproc.raster.zones import zone_grids
from preproc.run.config import Config, parse_config
from preproc.run.stage import run_stage

DIM, SIZE = 128, 512
TOML = """
[region]
bbox = [4.0, 50.7, 4.1, 50.8]
start = "2021-01-01"
end = "2021-12-31"
[archive]
source = "mpc"
[labels]
path = "parcels.geojson"
class = "crop"
[stitch]
sheet = {sheet}
formats = {formats}
[site]
workers = {workers}
"""
ABOUT = EmbeddingManifest(
    model=EmbeddingModel("demo", "made codes", False, "v2-student", None, "v2-student"), data_source="mpc"
)
CLASSES = (ClassEntry(1, "a", "#ffd300"), ClassEntry(2, "b", "#a87000"), ClassEntry(3, "c", "#c2185b"))


def make_run(root: Path, across: int) -> None:
    run = Run(root)
    root.mkdir(parents=True)
    side = SIZE * 10
    tiles = tuple(
        PlannedTile(f"t{c}_{r}", 32631, 512_000 + c * side, 5_632_000 - r * side, SIZE)
        for r in range(across)
        for c in range(across)
    )
    none = SceneCount(0, {})
    Plan(
        tile_size=SIZE,
        tiles=tiles,
        zones={"32631": len(tiles)},
        region=PlannedRegion("made", "0", (4.0, 50.7, 4.1, 50.8), len(tiles) * SIZE**2),
        window=(date(2021, 1, 1), date(2021, 12, 31)),
        source="mpc",
        scenes=FoundScenes(none, none, none, 0, ()),
        season=SampledTiles(len(tiles), 0.0, 0.0, 0, ""),
        neighbours_in_shards_of=1,
        estimate={"fetch": Cost(1, 1, 1, 1, 1)},
        warnings=(),
    ).write(run.plan, inputs={}, files=[])
    for index, tile in enumerate(tiles):
        generator = np.random.default_rng(index)
        rough = generator.normal(size=(SIZE // 16, SIZE // 16, DIM)).astype(np.float32) * 40
        smooth = rough.repeat(16, axis=0).repeat(16, axis=1)  # parcels
        codes = np.clip(smooth + generator.normal(size=smooth.shape).astype(np.float32) * 6, -127, 127)
        scales = (0.01 + generator.random((SIZE, SIZE)) * 0.001).astype(np.float32)
        inputs = {"checkpoint": "ab" * 32}
        write_embedding(run.embeddings, tile.name, codes.astype(np.int8), scales, inputs=inputs, about=ABOUT)
    make_classifier(run, pixels(run, list(planned_tiles(run)[:1])).reshape(-1, DIM)[:3000])


def make_classifier(run: Run, values: NDArray[np.float32]) -> None:
    """A small classifier in RUN/model that was trained on some values (N, C)."""
    model = CatBoostClassifier(iterations=150, depth=6, verbose=False, allow_writing_files=False, thread_count=1)
    model.fit(values, np.arange(len(values)) % 3 + 1)
    run.model.mkdir()
    about = ClassifierManifest(
        classes=CLASSES,
        dim=DIM,
        parameters={},
        tuning=Tuning(0, 0, ""),
        folds=FoldsUsed(2, 2, ()),
        left_out=(),
        rows=len(values),
    )
    save_classifier(run.model, model, about, inputs={}, files=[])


def pixels(run: Run, tiles: list[PlannedTile]) -> NDArray[np.float32]:
    return np.stack(
        [read_embedding(run.embeddings, t.name, checksums=False).window(slice(None), slice(None)) for t in tiles]
    )


def settings(run: Run, sheet: int, formats: str, workers: int) -> Config:
    return parse_config(TOML.format(sheet=sheet, formats=json.dumps([formats]), workers=workers), run.config)


def one_sheet(run: Run, sheet: int) -> tuple[NDArray[np.int8], NDArray[np.float32], int]:
    """Codes (H, W, C) and scales of the first sheet, and how many sheets there are."""
    tiles = planned_tiles(run)
    codes = np.zeros((sheet, sheet, DIM), np.int8)
    scales = np.zeros((sheet, sheet), np.float32)
    for tile in tiles:
        row, column = (5_632_000 - tile.north) // 10, (tile.west - 512_000) // 10
        if row < sheet and column < sheet:
            embedding = read_embedding(run.embeddings, tile.name, checksums=False)
            codes[row : row + SIZE, column : column + SIZE] = embedding.values_hwc
            scales[row : row + SIZE, column : column + SIZE] = embedding.scales_hw
    return codes, scales, len(tiles) * SIZE**2 // sheet**2


def way(name: str, run: Run, sheet: int) -> float:
    """Seconds of one way."""
    what, _, workers = name.partition("-")
    if what.startswith("core:"):  # a process compresses in threads, which would use the second one's core
        what = what.removeprefix("core:")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    if what in ("store", "cog"):
        config = settings(run, sheet, "zarr" if what == "store" else "cog", int(workers))
        begun = time.monotonic()
        run_stage(StitchSheetsStage(), run, config, force=True)
        return time.monotonic() - begun
    if what == "predict":
        begun = time.monotonic()
        run_stage(PredictSheetsStage(), run, settings(run, sheet, "cog", int(workers)), force=True)
        return time.monotonic() - begun
    if what == "catboost":
        model = CatBoostClassifier()
        model.load_model(str(run.model / "classifier.cbm"))
        spent = 0.0
        for tile in planned_tiles(run):
            values = pixels(run, [tile]).reshape(-1, DIM)
            begun = time.monotonic()
            for start in range(0, len(values), 1 << 15):
                model.predict_proba(values[start : start + (1 << 15)], thread_count=1)
            spent += time.monotonic() - begun
        return spent
    codes, scales, sheets = one_sheet(run, sheet)
    return sheets * (by_zarr(codes, scales) if what == "zarr" else by_gdal(codes, scales))


READS = [f"points-{where}" for where in ("tiles", "store", "cog", "float")]
READS += [f"one-{where}" for where in ("store", "whole", "cog", "float")]
POINTS = 1000


def make_mosaics(run: Run, sheet: int) -> None:
    """Two runs beside it with the same embeddings: one with store and sheets, one with a single float32 GeoTIFF."""
    made = {"both": '["zarr", "cog"]', "single": '["cog"]\ndtype = "float32"'}
    for name, formats in made.items():
        other = Run(run.root.with_name(name))
        shutil.copytree(run.root, other.root, copy_function=os.link)
        text = TOML.format(sheet=sheet if name == "both" else 1 << 14, formats=formats, workers=1)
        run_stage(StitchStage(), other, parse_config(text, other.config))


def read(name: str, run: Run) -> tuple[float, float]:
    """Seconds of one way of reading, and the sum of what it read."""
    import rasterio
    import zarr

    what, _, where = name.partition("-")
    if where != "tiles":
        run = Run(run.root.with_name("single" if where == "float" else "both"))
    (grid,) = zone_grids(planned_tiles(run))
    stem = f"{run.mosaic}/embeddings_{grid.label}"
    suffix = ".vrt" if Path(f"{stem}.vrt").exists() else ".tif"
    pixel_n2 = np.random.default_rng(0).integers(0, grid.width, (POINTS, 2))
    begun = time.monotonic()
    if what == "points" and where in ("tiles", "store"):
        values = EmbeddingReader(run, Plan.read(run), gaps=False).pixels(grid, pixel_n2)
    elif where in ("store", "whole"):
        group: Any = zarr.open_group(f"{run.mosaic}/{STORE}/{group_of(grid)}", mode="r")
        array = group["embeddings_d4" if where == "store" else "embeddings"]
        values = array[0, 0] * group["scales"][0]
    else:
        with rasterio.open(f"{stem}{suffix}") as codes:
            values = _of_raster(codes, pixel_n2 if what == "points" else None)
        if where == "cog":
            with rasterio.open(f"{stem}_scales{suffix}") as scales:
                values = values * _of_raster(scales, pixel_n2 if what == "points" else None)
    return time.monotonic() - begun, round(float(values.sum(dtype=np.float64)), 2)


def _of_raster(raster: Any, pixel_n2: NDArray[np.int64] | None) -> NDArray[Any]:
    """(N, bands) of pixels, block by block, or (H, W) of the first band."""
    if pixel_n2 is None:
        return np.asarray(raster.read(1))
    values = np.empty((len(pixel_n2), raster.count), raster.dtypes[0])
    block = raster.block_shapes[0][0]
    for index in np.lexsort((pixel_n2 // block).T[::-1]).tolist():
        row, column = pixel_n2[index].tolist()
        values[index] = raster.read(window=((row, row + 1), (column, column + 1)))[:, 0, 0]
    return values


def by_zarr(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> float:
    import zarr
    from zarr.codecs import BloscCodec

    sheet = len(codes)
    cube = np.ascontiguousarray(np.moveaxis(codes, 2, 0))[None]
    with tempfile.TemporaryDirectory() as folder:
        root = zarr.create_group(folder)
        spent = 0.0
        for name, bands, chunk in (("embeddings_d4", 4, 128), ("embeddings_d16", 16, 64), ("embeddings", DIM, 32)):
            array = root.create_array(
                name,
                shape=(1, bands, sheet, sheet),
                chunks=(1, bands, chunk, chunk),
                shards=(1, bands, sheet, sheet),
                dtype="int8",
                compressors=BloscCodec(cname="zstd", clevel=3),
            )
            begun = time.monotonic()
            array[:] = cube[:, :bands]
            spent += time.monotonic() - begun
        array = root.create_array(
            "scales", shape=(1, sheet, sheet), chunks=(1, 32, 32), shards=(1, sheet, sheet), dtype="float32"
        )
        begun = time.monotonic()
        array[:] = scales[None]
        return spent + time.monotonic() - begun


def by_gdal(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> float:
    import rasterio
    import rasterio.shutil
    from rasterio.io import MemoryFile

    spent = 0.0
    for values in (codes, scales[..., None]):
        height, width, bands = values.shape
        profile = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": values.dtype}
        cube = np.ascontiguousarray(np.moveaxis(values, 2, 0))
        with tempfile.TemporaryDirectory() as folder, MemoryFile() as memory:
            with memory.open(**profile, tiled=True, interleave="pixel", crs="EPSG:32631", BIGTIFF="YES") as source:
                source.write(cube)
            begun = time.monotonic()
            with rasterio.Env(GDAL_CACHEMAX=512):
                rasterio.shutil.copy(
                    memory.name, f"{folder}/c.tif", driver="COG", COMPRESS="DEFLATE", PREDICTOR="YES", BLOCKSIZE=128
                )
            spent += time.monotonic() - begun
    return spent


def cpu() -> float:
    """Seconds that this process and those that it started have computed: what a busy machine leaves comparable."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_mb() -> float:
    """Of this process since it began, or of the largest that it started. (ru_maxrss of this one is its parent's.)"""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own = int(status["VmHWM"].split()[0])
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--across", type=int, default=8, help="tiles along the square")
    parser.add_argument("--sheet", type=int, default=1024)
    parser.add_argument("--without-gdal", action="store_true", help="its overviews of 128 bands take minutes")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reads", action="store_true", help="time reading")
    options = parser.parse_args()
    if options.way:
        before, run = cpu(), Run(options.run)
        took, total = read(options.way, run) if options.reads else (way(options.way, run, options.sheet), 0.0)
        print(json.dumps([took, peak_mb(), cpu() - before, total]))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        make_run(run.root, options.across)
        if options.reads:
            make_mosaics(run, options.sheet)
            compare_reads(run, options.sheet)
        else:
            compare_writes(run, options.sheet, options.across, without_gdal=options.without_gdal)


def measured(name: str, run: Run, sheet: int, *more: str) -> list[float]:
    """Seconds by the clock, peak, seconds of computing and sum of a way, in a process of its own."""
    command = [sys.executable, "-m", "bench.stitch", "--way", name, "--run", str(run.root), "--sheet", str(sheet)]
    done = subprocess.run([*command, *more], stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare_reads(run: Run, sheet: int) -> None:
    taken: dict[str, list[float]] = {}
    for name in READS:
        taken[name] = measured(name, run, sheet, "--reads")
        took, peak, computed, _ = taken[name]
        print(f"{name:<13} {took:7.2f} s, {computed:7.2f} s of computing, at most {peak:.0f} MB", flush=True)
    for what, reference in (("points", "points-store"), ("one", "one-store")):
        ways = [name for name in READS if name.startswith(what)]
        assert len({taken[name][3] for name in ways}) == 1, f"{what}: not the same numbers"
        ratios = [f"{name.partition('-')[2]} {taken[name][0] / taken[reference][0]:.2f}" for name in ways]
        print(f"{what}, seconds / seconds of the store: {', '.join(ratios)}")


def compare_writes(run: Run, sheet: int, across: int, *, without_gdal: bool) -> None:
    names = ["core:store-1", "store-1", "store-2", "zarr", "cog-1", *([] if without_gdal else ["gdal"])]
    names += ["core:predict-1", "predict-1", "predict-2", "catboost"]
    total = (across * SIZE) ** 2
    seconds: dict[str, float] = {}
    computing: dict[str, float] = {}
    for name in names:
        seconds[name], peak, computing[name], _ = measured(name, run, sheet)
        speed = f"{total / seconds[name]:>10,.0f} pixels/s, {computing[name]:.1f} s of computing"
        print(f"{name:<14} {speed}, a process took at most {peak:.0f} MB", flush=True)
    for what, one, other in [
        ("two processes / one on one core, store", "core:store-1", "store-2"),
        ("two processes / one on all cores, store", "store-1", "store-2"),
        ("store / zarr-python from memory", "zarr", "store-1"),
        ("cog / GDAL from memory", "gdal", "cog-1"),
        ("two processes / one on one core, predict", "core:predict-1", "predict-2"),
        ("two processes / one on all cores, predict", "predict-1", "predict-2"),
        ("predict / CatBoost from memory", "catboost", "predict-1"),
    ]:
        if one in seconds:
            ratio, computed = (found[one] / found[other] for found in (seconds, computing))
            print(f"{what}: {ratio:.2f} by the clock, {computed:.2f} by processor time")


if __name__ == "__main__":
    main()
