"""How fast a season is fetched: `python -m bench.fetch` prints ratios; see docs/fetch.md for what they were.

A made-up season is served from COGs over HTTP on loopback with 20 ms added to every answer: 100 Sentinel-2 dates, half
of them cloudy, and 100 Sentinel-1 dates. Compared in the same run, each in a process of its own:

    smalti    this repository: build_tiles with its own range client
    odc       odc-stac loading the same bands of the same dates (all of them: it cannot know which are cloudy)
    vsicurl   rasterio through GDAL's /vsicurl/, reading just what smalti reads
    obstore   as smalti, its requests carried by obstore instead of our own transport

    python -m bench.fetch                                 # one tile, 10 km COGs, against vsicurl and obstore
    python -m bench.fetch --odc-python .odc/bin/python    # and against odc-stac, in an environment that has it
    python -m bench.fetch --scaling                       # 1, 4 and 16 neighbouring tiles, 26 km COGs
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
TEN = ("B04", "B02", "B03", "B08")
TWENTY = ("B8A", "B05", "B06", "B07", "B11", "B12")
EPSG, WEST, NORTH, SIZE = 32631, 573440, 5626880, 512
MARGIN = 256
"""Pixels from the COGs' corner to the tile's: the tile cuts through four blocks of 512."""
LATENCY_S = 0.02
VARIANTS = 2
"""Different files; every date is one of them under its own name. The second one is cloudy."""


def make_cogs(folder: Path, pixels: int) -> None:
    """Write the variants: smooth fields with noise that DEFLATE takes down to two thirds, like the real thing."""
    import numpy as np
    from rasterio.io import MemoryFile
    from rasterio.shutil import copy
    from rasterio.transform import Affine

    def cog(name: str, values: Any, pixel: int, nodata: float, predictor: str) -> None:
        transform = Affine(pixel, 0, WEST - 10 * MARGIN, 0, -pixel, NORTH + 10 * MARGIN)
        height, width = values.shape
        profile = {"dtype": values.dtype, "count": 1, "height": height, "width": width, "crs": f"EPSG:{EPSG}"}
        with MemoryFile() as memory:
            with memory.open(driver="GTiff", transform=transform, nodata=nodata, tiled=True, **profile) as dataset:
                dataset.write(values, 1)
            with memory.open() as dataset:
                options = {"compress": "DEFLATE", "predictor": predictor, "blocksize": 512}
                copy(dataset, folder / name, driver="COG", **options)

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:pixels, :pixels] / 97.0
    for variant in range(VARIANTS):
        smooth = (np.sin(rows * (1 + variant)) * np.cos(columns) + 1) / 2
        for band in TEN:
            noise = rng.normal(size=smooth.shape) * 40
            cog(f"{band}_{variant}.tif", (300 + 3000 * smooth + noise).astype("u2"), 10, 0, "YES")
        coarse = smooth[::2, ::2]
        for band in TWENTY:
            noise = rng.normal(size=coarse.shape) * 40
            cog(f"{band}_{variant}.tif", (300 + 3000 * coarse + noise).astype("u2"), 20, 0, "YES")
        for band in ("vv", "vh"):
            power = (0.05 + 0.2 * smooth) * rng.gamma(4.4, 1 / 4.4, smooth.shape)
            cog(f"{band}_{variant}.tif", power.astype("f4"), 10, -32768, "YES")
        classes = np.where(coarse > 0.97, 8, 4) if variant == 0 else np.full(coarse.shape, 9)
        cog(f"SCL_{variant}.tif", classes.astype("u1"), 20, 0, "NO")


def when(date: int) -> datetime:
    """Acquisition of the date-th date."""
    return datetime(2021, 1, 1, 10, 30, tzinfo=UTC) + timedelta(days=2 * date + 1)


def hrefs(base: str, date: int) -> tuple[dict[str, str], dict[str, str]]:
    """Hrefs of one Sentinel-2 and one Sentinel-1 scene."""
    optical = {band: f"{base}/s2/{date}/{band}.tif" for band in (*TEN, *TWENTY, "SCL")}
    return optical, {band: f"{base}/s1/{date}/{band}.tif" for band in ("vv", "vh")}


def serve(folder: Path) -> None:
    """Server process: prints its port, then its tally for every line on standard input."""
    from support.range_server import RangeServer, Tally  # type: ignore[import-not-found]  # of the tests

    def resolve(path: str) -> Path:
        _, date, name = path.strip("/").split("/")
        return folder / f"{name.removesuffix('.tif')}_{int(date) % VARIANTS}.tif"

    server = RangeServer(resolve, latency_s=LATENCY_S)
    with server.running():
        print(server.port, flush=True)
        for _ in sys.stdin:
            tally, server.tally = server.tally, Tally()
            print(json.dumps([tally.body_bytes, sum(tally.requests.values())]), flush=True)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Any]]:
    """Address of a server process, and a function that gives bytes and requests since it was last called."""
    command = [sys.executable, "-m", "bench.fetch", "--serve", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        writer, reader = process.stdin, process.stdout
        port = int(reader.readline())

        def tally() -> tuple[int, int]:
            print(file=writer, flush=True)
            served_bytes, requests = json.loads(reader.readline())
            return served_bytes, requests

        try:
            yield f"http://127.0.0.1:{port}", tally
        finally:
            writer.close()


class _Obstore:
    """A preproc.reader.transport.Transport by obstore, with its own retries."""

    def __init__(self, base: str) -> None:
        import obstore

        self._get = obstore.get
        self._store = obstore.store.HTTPStore.from_url(base, client_options={"allow_http": True})

    def send(self, url: str, *, part: tuple[int, int] | None = None, **_: Any) -> Any:
        """The part of a file, as the server would answer."""
        from preproc.reader.transport import Answer

        got = self._get(self._store, urlsplit(url).path.lstrip("/"), options={"range": part} if part else None)
        span = f"bytes {got.range[0]}-{got.range[1] - 1}/{got.meta['size']}"
        return Answer(206, "", {"Content-Range": span}, bytes(got.bytes()))

    def close(self) -> None:
        """Nothing: the store closes its connections."""


def contend_obstore(base: str, dates: int, side: int, workers: int, out: Path) -> None:
    """The same by smalti with obstore's requests."""
    contend_smalti(base, dates, side, workers, out, _Obstore(base))


def contend_smalti(
    base: str, dates: int, side: int, workers: int, out: Path, transport: _Obstore | None = None
) -> None:
    """`side` x `side` tiles by smalti, arrays and manifests on disk."""
    import numpy as np

    from infer.contract import PlannedTile
    from preproc.catalogue.scene import Scene
    from preproc.reader.gdal import gdal_settings
    from preproc.reader.ranges import RangeClient
    from preproc.reader.read import Reader
    from preproc.tile.build import build_tiles
    from preproc.tile.recipe import TileJob

    scenes = []
    for date in range(dates):
        optical, radar = hrefs(base, date)
        scenes.append(Scene(f"s2-{date}", "s2", when(date), optical, "", EPSG))
        upper = {band.upper(): href for band, href in radar.items()}
        scenes.append(Scene(f"s1-{date}", "s1", when(date), upper, "", EPSG, ("ascending", "descending")[date % 2]))
    inside = np.ones((SIZE, SIZE), np.uint8)
    jobs = []
    for row in range(side):
        for column in range(side):
            west, north = WEST + 10 * SIZE * column, NORTH - 10 * SIZE * row
            tile = PlannedTile(f"tile-{row}-{column}", EPSG, west, north, SIZE)
            window = ("2021-01-01", "2021-12-31")
            jobs.append(TileJob(tile, out / tile.name, inside, scenes, window, 0.05, "fail", "static", {}))
    with (
        gdal_settings(),
        RangeClient(transport=transport, connections=workers) as client,
        ThreadPoolExecutor(workers) as pool,
    ):
        errors = build_tiles(jobs, Reader(client), pool, workers)
    if errors:
        raise SystemExit(str(errors))


def contend_vsicurl(base: str, dates: int, side: int, workers: int, out: Path) -> None:
    """The windows that smalti reads, by rasterio over /vsicurl/; nothing is placed or written."""
    import rasterio
    from rasterio.windows import Window

    del side, out
    names = []
    for date in range(dates):
        optical, radar = hrefs(base, date)
        bands = (*TEN, *TWENTY, "SCL") if date % VARIANTS == 0 else ("SCL",)
        names += [(optical[band], 1 if band in TEN else 2) for band in bands]
        names += [(href, 1) for href in radar.values()]
    options = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
        "GDAL_HTTP_MULTIPLEX": "YES",
        "GDAL_INGESTED_BYTES_AT_OPEN": 32768,
        "GDAL_CACHEMAX": 64,
        "VSI_CACHE": "FALSE",
    }

    def read(task: tuple[str, int]) -> None:
        href, factor = task
        size, offset = SIZE // factor, MARGIN // factor
        with rasterio.open(f"/vsicurl/{href}") as dataset:
            dataset.read(1, window=Window(offset, offset, size, size))

    with rasterio.Env(**options), ThreadPoolExecutor(workers) as pool:
        list(pool.map(read, names))


def contend_odc(base: str, dates: int, side: int, workers: int, out: Path) -> None:
    """The same pixels by odc-stac, in memory."""
    import odc.stac  # type: ignore[import-not-found]  # of another environment, see --odc-python
    import pystac
    from odc.geo.geobox import GeoBox  # type: ignore[import-not-found]  # as above

    del out
    outline = {"type": "Polygon", "coordinates": [[[3.9, 50.5], [4.5, 50.5], [4.5, 50.9], [3.9, 50.9], [3.9, 50.5]]]}
    optical_items: list[Any] = []
    radar_items: list[Any] = []
    for date in range(dates):
        for items, assets in zip((optical_items, radar_items), hrefs(base, date), strict=True):
            item = pystac.Item(f"{len(items)}", outline, [3.9, 50.5, 4.5, 50.9], when(date), {"proj:epsg": EPSG})
            for band, href in assets.items():
                item.add_asset(band, pystac.Asset(href, media_type=pystac.MediaType.COG, roles=["data"]))
            items.append(item)
    odc.stac.configure_rio(cloud_defaults=True)
    extent = side * SIZE
    box = GeoBox.from_bbox((WEST, NORTH - 10 * extent, WEST + 10 * extent, NORTH), f"EPSG:{EPSG}", resolution=10)
    options = {"geobox": box, "groupby": "solar_day", "pool": workers, "fail_on_error": True}
    bands = (*TEN, *TWENTY)
    odc.stac.load(optical_items, bands=["SCL"], resampling="nearest", **options)
    odc.stac.load(optical_items, bands=list(bands), resampling="bilinear", **options)
    odc.stac.load(radar_items, bands=["vv", "vh"], resampling="nearest", **options)


CONTENDERS: dict[str, Callable[[str, int, int, int, Path], None]] = {
    "smalti": contend_smalti,
    "vsicurl": contend_vsicurl,
    "obstore": contend_obstore,
    "odc": contend_odc,
}


def contend(name: str, base: str, dates: int, side: int, workers: int) -> None:
    """Contender process: does the work and prints wall seconds, CPU seconds and peak memory."""
    out = Path(tempfile.mkdtemp(prefix="bench-fetch-"))
    try:
        started = time.monotonic()
        CONTENDERS[name](base, dates, side, workers, out)
        wall = time.monotonic() - started
    finally:
        shutil.rmtree(out)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))


class _Bytes:
    """A file in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def ensure(self, ranges: list[tuple[int, int]]) -> None:
        """All is here."""

    def read(self, start: int, end: int) -> bytes:
        """Some bytes."""
        return self.content[start:end]


def needed_bytes(folder: Path, dates: int, side: int) -> int:
    """Compressed size of the blocks that hold the pixels that smalti uses."""
    from preproc.reader.placement import SourceWindow
    from preproc.reader.tiff_layout import LEADER, read_layout

    total = 0
    for variant in range(VARIANTS):
        bands = ("vv", "vh", "SCL", *TEN, *TWENTY) if variant == 0 else ("vv", "vh", "SCL")
        for band in bands:
            content = (folder / f"{band}_{variant}.tif").read_bytes()
            factor = 2 if band in (*TWENTY, "SCL") else 1
            offset, size = MARGIN // factor, side * SIZE // factor
            ranges = read_layout(_Bytes(content)).ranges(SourceWindow(offset, offset, size, size))
            total += sum(end - start - 2 * LEADER for start, end in ranges) * (dates // VARIANTS)
    return total


def measure(python: str, name: str, folder: Path, dates: int, side: int, workers: int) -> dict[str, float]:
    """Run a contender; its figures."""
    with served(folder) as (base, tally):
        task = json.dumps([name, base, dates, side, workers])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [python, "-m", "bench.fetch", "--contend", task],
            env=environment,
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            sys.exit(f"bench/fetch: {name} failed, see above")
        wall, cpu, memory = json.loads(done.stdout.splitlines()[-1])
        received, requests = tally()
    return {"wall": wall, "cpu": cpu, "memory": memory, "bytes": received, "requests": requests}


def line(name: str, figures: dict[str, float]) -> str:
    """One line of the table."""
    return (
        f"{name:24s} {figures['wall']:7.1f} s wall {figures['cpu']:7.1f} s cpu {figures['memory']:7.0f} MB peak "
        f"{figures['bytes'] / 1e6:8.0f} MB {figures['requests']:6.0f} requests"
    )


def compare(folder: Path, dates: int, workers: int, odc_python: str | None) -> None:
    """One tile against the other readers, several times in turn; the fastest of each counts."""
    contenders = dict.fromkeys(("smalti", "vsicurl", "obstore"), sys.executable)
    if odc_python:
        contenders["odc"] = odc_python
    best: dict[str, dict[str, float]] = {}
    for _ in range(3):
        for name, python in contenders.items():
            figures = measure(python, name, folder, dates, 1, workers)
            print(line(name, figures), flush=True)
            if name not in best or figures["wall"] < best[name]["wall"]:
                best[name] = figures
    ours = best.pop("smalti")
    print(f"bytes served / compressed blocks needed: {ours['bytes'] / needed_bytes(folder, dates, 1):.3f}")
    for name, theirs in best.items():
        print(f"{name} / smalti: wall {theirs['wall'] / ours['wall']:.2f}, cpu {theirs['cpu'] / ours['cpu']:.2f}")


def scale(folder: Path, dates: int, workers: int) -> None:
    """1, 4 and 16 neighbouring tiles."""
    first = 0.0
    for side in (1, 2, 4):
        figures = measure(sys.executable, "smalti", folder, dates, side, workers)
        first = first or figures["wall"]
        tiles = side * side
        ratio = figures["bytes"] / needed_bytes(folder, dates, side)
        print(line(f"smalti, {tiles} tiles", figures))
        print(
            f"  wall {figures['wall'] / first:.2f} x that of one tile; bytes {ratio:.3f} x the blocks needed",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dates", type=int, default=100)
    parser.add_argument("--workers", type=int, default=16, help="[archive] workers, and the threads of the others")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--odc-python", help="interpreter of an environment with odc-stac")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--contend", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve)
    elif options.contend:
        contend(*json.loads(options.contend))
    else:
        with tempfile.TemporaryDirectory(prefix="bench-fetch-") as scratch:
            folder = Path(scratch) / "cogs"
            make_cogs(folder, 2560 + 2 * 64 if options.scaling else 1024)
            if options.scaling:
                scale(folder, options.dates, options.workers)
            else:
                compare(folder, options.dates, options.workers, options.odc_python)


if __name__ == "__main__":
    main()
