"""Other people's readers open what smalti writes and give the engine's numbers. In environments of their own.

geotessera needs another Python (3.12) and other versions than smalti's environment has; odc-stac and rioxarray bring
much that smalti has no use for. An environment is made once, in ~/.cache/smalti-tests, and takes a minute and a
gigabyte. torchgeo's is six gigabytes and so is not made by itself: SMALTI_TORCHGEO names a Python that has it, or

    python3.12 -m venv ~/.cache/smalti-tests/torchgeo && ~/.cache/smalti-tests/torchgeo/bin/pip install torchgeo
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer
from support.mosaicked import config, embed_places, planned_run

from infer.contract import planned_tiles
from preproc.exchange.export import export
from preproc.mosaic.stage import StitchStage
from preproc.run.stage import run_stage

pytestmark = pytest.mark.slow

READ = """
import json, sys
import numpy as np
from geotessera.store import GeoTesseraZarr, open_zone

store, points, box, folder = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
reader = GeoTesseraZarr(store)
year = reader.years[0]
probed = reader.probe(*points[0], year=year)
whole, transform, crs = reader.read_region(tuple(box), year=year)
short, _, _ = reader.read_region(tuple(box), year=year, depth=16)
zone = open_zone(store, zone=31)
np.savez(
    folder + "/read.npz",
    sampled=np.asarray(reader.sample_points([tuple(p) for p in points], year=year)),
    sampled_short=np.asarray(reader.sample_points([tuple(p) for p in points], year=year, depth=16)),
    whole=whole,
    short=short,
    transform=np.array(transform)[:6],
    patch=np.asarray(reader.read_patch(*points[0], year=year, size_px=8)[0]),
)
exported = reader.export_geotiffs(tuple(box), year, folder)
print(json.dumps({
    "years": reader.years,
    "depths": {str(k): v for k, v in reader.depths.items()},
    "probed": str(probed),
    "crs": str(crs),
    "zone": {name: list(zone[name].shape) for name in ("embeddings", "scales")},
    "exported": [str(path) for path in exported],
}))
"""


def pythons() -> Iterator[str]:
    for version in ("3.12", "3.13"):
        found = shutil.which(f"python{version}")
        if found:
            yield found
        yield from map(str, sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python")))


def environments() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "smalti-tests"


def environment(name: str, requirements: Sequence[str], check: str, bases: Sequence[str]) -> Path:
    """A Python that has them, made if it is not there yet."""
    folder = environments() / name
    python = folder / "bin" / "python"
    if python.exists() and run_in(python, check).returncode == 0:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    for base in bases:
        if subprocess.run([base, "-m", "venv", str(folder)], capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip(f"no Python here that {name} can be installed for")
    done = run_in(python, "", "-m", "pip", "install", "-q", *requirements)
    if done.returncode != 0:
        pytest.skip(f"{', '.join(requirements)}: not to be had here: {done.stderr[-200:]}")
    return python


def run_in(python: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Code with arguments, or a module of that Python, which sees nothing of smalti."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python), *(["-c", code] if code else []), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=own, check=False)


@pytest.fixture(scope="module")
def geotessera() -> Path:
    return environment("geotessera", ["geotessera>=0.11"], "import geotessera.store", list(pythons()))


@pytest.fixture(scope="module")
def torchgeo() -> Path:
    python = Path(os.environ.get("SMALTI_TORCHGEO", environments() / "torchgeo" / "bin" / "python"))
    if not python.exists() or run_in(python, "import torchgeo").returncode != 0:
        pytest.skip("no Python with torchgeo here: this file's first lines tell how to make one")
    return python


@pytest.fixture(scope="module")
def stackers() -> Path:
    wanted = ["odc-stac>=0.5", "rioxarray>=0.19", "xarray", "zarr>=3.1.6", "dask"]
    return environment("stackers", wanted, "import odc.stac, rioxarray, zarr, dask", [sys.executable])


def test_geotessera_opens_the_store_and_gives_the_engines_numbers(tmp_path: Path, geotessera: Path) -> None:
    run = planned_run(tmp_path / "run", [(32631, c, r) for c in range(3) for r in range(2)], size=64)
    tiles = embed_places(run, dim=128, int8=True)
    run_stage(StitchStage(), run, config(run, "[stitch]\nsheet = 128"))
    back = Transformer.from_crs(32631, 4326, always_xy=True)
    planned = planned_tiles(run)
    places = [
        (planned[i], row, column) for i, row, column in [(0, 40, 50), (3, 63, 0), (5, 20, 33)]
    ]  # of nodata it looks around
    points = [back.transform(t.west + c * 10 + 5, t.north - r * 10 - 5) for t, r, c in places]
    west, north = planned[0].west, planned[0].north
    corners = [back.transform(west + x, north - y) for x in (300, 1500) for y in (250, 1100)]
    longitudes, latitudes = zip(*corners, strict=True)
    box = [min(longitudes), min(latitudes), max(longitudes), max(latitudes)]
    arguments = [str(run.mosaic / "embeddings.zarr"), json.dumps(points), json.dumps(box), str(tmp_path)]
    done = run_in(geotessera, READ, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["years"] == [2019]
    assert told["depths"] == {"4": "embeddings_d4", "16": "embeddings_d16", "128": "embeddings"}
    assert told["zone"] == {"embeddings": [1, 128, 128, 192], "scales": [1, 128, 192]}
    assert "32631" in told["crs"]
    wanted = np.array([tiles[tile.name][row, column] for tile, row, column in places])
    read = np.load(tmp_path / "read.npz")
    np.testing.assert_array_equal(read["sampled"], wanted)
    np.testing.assert_array_equal(read["sampled_short"], wanted[:, :16])
    left, top = read["transform"][2], read["transform"][5]
    whole = np.full((128, 192, 128), np.nan, dtype=np.float32)
    for tile in planned:
        row, column = (north - tile.north) // 10, (tile.west - west) // 10
        whole[row : row + 64, column : column + 64] = tiles[tile.name]
    row, column = round((north - top) / 10), round((left - west) / 10)
    height, width, _ = read["whole"].shape
    np.testing.assert_array_equal(read["whole"], whole[row : row + height, column : column + width])
    assert np.isnan(read["whole"]).any(), "nodata is nodata there too"
    np.testing.assert_array_equal(read["short"], read["whole"][..., :16])
    assert len(told["exported"]) == 1


READ_NPY = """
import sys
import numpy as np
from geotessera.registry import recorded_dataset
from geotessera.tiles import discover_tiles

folder, out = sys.argv[1:]
(tile,) = discover_tiles(folder)
assert recorded_dataset(folder) == ("2.0", "smalti-abababababab"), recorded_dataset(folder)
np.savez(out, values=tile.load_embedding(), transform=np.array(tile.transform)[:6], year=tile.year, crs=str(tile.crs))
"""


def test_geotessera_finds_the_npy_tiles_that_were_exported_and_reads_the_engines_numbers(
    tmp_path: Path, geotessera: Path
) -> None:
    run = planned_run(tmp_path / "run", [(32631, c, 0) for c in range(2)], size=64)
    tiles = embed_places(run, dim=128, int8=True)
    export(run, str(tmp_path / "npy"), "geotessera")
    done = run_in(geotessera, READ_NPY, str(tmp_path / "npy"), str(tmp_path / "read.npz"))
    assert done.returncode == 0, done.stderr[-2000:]
    read = np.load(tmp_path / "read.npz")
    assert (int(read["year"]), str(read["crs"])) == (2019, "EPSG:32631")
    left, top = read["transform"][2], read["transform"][5]
    for tile in planned_tiles(run):
        row, column = round((top - tile.north) / 10), round((tile.west - left) / 10)
        np.testing.assert_array_equal(read["values"][row : row + 64, column : column + 64], tiles[tile.name])


READ_TORCHGEO = """
import sys
import numpy as np
from torchgeo.datasets import TesseraEmbeddings

folder, out, west, south, east, north = sys.argv[1:]
found = TesseraEmbeddings(folder)
sample = found[float(west) : float(east), float(south) : float(north)]
np.savez(
    out,
    values=np.moveaxis(sample["image"].numpy(), 0, -1),
    resolution=found.res,
    epsg=found.crs.to_epsg(),
    years=sorted({interval.left.year for interval in found.index.index} | {i.right.year for i in found.index.index}),
    files=len(found.index),
)
"""


def test_torchgeo_reads_the_engines_numbers_of_several_cells_as_one(tmp_path: Path, torchgeo: Path) -> None:
    run = planned_run(tmp_path / "run", [(32631, c, 0) for c in range(20)], size=64)
    tiles = embed_places(run, dim=128, int8=True)
    export(run, str(tmp_path / "tiffs"), "torchgeo")
    first, *_, last = planned = planned_tiles(run)
    box = (first.west, last.north - 640, last.west + 640, first.north)
    done = run_in(torchgeo, READ_TORCHGEO, str(tmp_path / "tiffs"), str(tmp_path / "read.npz"), *map(str, box))
    assert done.returncode == 0, done.stderr[-2000:]
    read = np.load(tmp_path / "read.npz")
    assert (read["resolution"].tolist(), int(read["epsg"]), read["years"].tolist()) == ([10, 10], 32631, [2019])
    assert read["files"] == len(list((tmp_path / "tiffs").glob("grid_*.tiff"))) > 1
    np.testing.assert_array_equal(read["values"], np.concatenate([tiles[tile.name] for tile in planned], axis=1))


READ_STACKS = """
import sys
from pathlib import Path
import numpy as np
import odc.stac, pystac, rioxarray, xarray

folder, out = Path(sys.argv[1]), sys.argv[2]
items = [pystac.Item.from_file(str(path)) for path in sorted(folder.glob("embeddings_31N_*.json"))]
cube = odc.stac.load(items, chunks={})
bands = [name for name in cube.data_vars if name.startswith("embeddings.")]
bands.sort(key=lambda name: int(name.split(".")[1]))
scene = cube.isel(time=0)
raster = rioxarray.open_rasterio(folder / "embeddings_31N.vrt")
zone = xarray.open_zarr(folder / "embeddings.zarr", group="utm31", consolidated=False).isel(time=0)
np.savez(
    out,
    odc=np.stack([scene[name].values for name in bands], axis=-1),
    odc_scales=scene["scales"].values,
    odc_corner=[float(cube.x[0]) - 5, float(cube.y[0]) + 5, cube.odc.crs.epsg],
    rio=np.moveaxis(raster.values, 0, -1),
    rio_scales=rioxarray.open_rasterio(folder / "embeddings_31N_scales.vrt").values[0],
    rio_corner=[float(raster.x[0]) - 5, float(raster.y[0]) + 5, raster.rio.crs.to_epsg()],
    zarr=zone["embeddings"].transpose("y", "x", "band").values,
    zarr_scales=zone["scales"].values,
    zarr_corner=[float(zone.x[0]) - 5, float(zone.y[0]) + 5, int(zone.attrs["proj:code"].split(":")[1])],
)
"""


def test_odc_stac_rioxarray_and_xarray_read_the_engines_numbers_at_their_places(tmp_path: Path, stackers: Path) -> None:
    run = planned_run(tmp_path / "run", [(32631, c, r) for c in range(3) for r in range(2)], size=64)
    tiles = embed_places(run, dim=16, int8=True)
    run_stage(StitchStage(), run, config(run, "[stitch]\nsheet = 128"))
    done = run_in(stackers, READ_STACKS, str(run.mosaic), str(tmp_path / "read.npz"))
    assert done.returncode == 0, done.stderr[-2000:]
    read = np.load(tmp_path / "read.npz")
    for reader in ("odc", "rio", "zarr"):
        west, north, epsg = read[f"{reader}_corner"]
        assert epsg == 32631
        assert read[reader].shape == (128, 192, 16)
        values = read[reader].astype(np.float32) * read[f"{reader}_scales"][..., None]
        for tile in planned_tiles(run):
            row, column = round((north - tile.north) / 10), round((tile.west - west) / 10)
            np.testing.assert_array_equal(values[row : row + 64, column : column + 64], tiles[tile.name])
