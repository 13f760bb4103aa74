"""How fast sheets of mosaic and map are made: `python -m bench.stitch` prints ratios; docs/country.md has some.

A made run of tiles of 512 pixels (smooth int8 codes of 128 numbers with noise, a scale each) goes through the real
stages, every way in a process of its own, in one run (by the clock, for a machine that does nothing else, and by
processor time, for one that does):

    store, 1 and 2 processes     smalti stitch, formats = ["zarr"]
    zarr-python                  the same shards from memory by zarr's own writer, one sheet at a time
    cog, 1 process               smalti stitch, formats = ["cog"]
    GDAL                         the same pixels from memory by GDAL's COG driver, with the overviews it makes itself
    predict, 1 and 2 processes   smalti predict with a small classifier
    CatBoost                     its predict_proba on the same pixels as float32 in memory, on one thread
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from catboost import CatBoostClassifier
from numpy.typing import NDArray

from infer.contract import Plan, PlannedTile, Run, planned_tiles, read_embedding, write_embedding
from infer.contract.classification import ClassEntry, ClassifierManifest, FoldsUsed, Tuning
from infer.contract.embedding import EmbeddingManifest, EmbeddingModel
from infer.contract.plan import Cost, FoundScenes, PlannedRegion, SampledTiles, SceneCount
from preproc.classify.model import save_classifier
from preproc.classify.predict import PredictSheetsStage
from preproc.mosaic.stage import StitchSheetsStage
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
    options = parser.parse_args()
    if options.way:
        before = cpu()
        took = way(options.way, Run(options.run), options.sheet)
        print(json.dumps([took, peak_mb(), cpu() - before]))
        return
    names = ["store-1", "store-2", "zarr", "cog-1", *([] if options.without_gdal else ["gdal"])]
    names += ["predict-1", "predict-2", "catboost"]
    total = (options.across * SIZE) ** 2
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make_run(run, options.across)
        seconds: dict[str, float] = {}
        computing: dict[str, float] = {}
        for name in names:
            command = [sys.executable, "-m", "bench.stitch", "--way", name, "--run", str(run), "--sheet"]
            done = subprocess.run(
                [*command, str(options.sheet)], stdout=subprocess.PIPE, text=True, check=True, env={**os.environ}
            )
            seconds[name], peak, computing[name] = json.loads(done.stdout.splitlines()[-1])
            speed = f"{total / seconds[name]:>10,.0f} pixels/s, {computing[name]:.1f} s of computing"
            print(f"{name:<10} {speed}, a process took at most {peak:.0f} MB", flush=True)
    for what, one, other in [
        ("two processes / one, store", "store-1", "store-2"),
        ("store / zarr-python from memory", "zarr", "store-1"),
        ("cog / GDAL from memory", "gdal", "cog-1"),
        ("two processes / one, predict", "predict-1", "predict-2"),
        ("predict / CatBoost from memory", "catboost", "predict-1"),
    ]:
        if one in seconds:
            ratio, computed = (found[one] / found[other] for found in (seconds, computing))
            print(f"{what}: {ratio:.2f} by the clock, {computed:.2f} by processor time")


if __name__ == "__main__":
    main()
