"""Write a simulated archive to a folder: COGs, STAC items, a static catalogue, labels and truth, then the manifest."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import box

from infer.contract import (
    SmaltiError,
    atomic_dir,
    output_state,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
    writing,
)
from infer.contract.atomic import json_bytes
from preproc.simulate import stac
from preproc.simulate.grid import Grid, write_cog
from preproc.simulate.labels import degrees, write_labels
from preproc.simulate.options import SimulationOptions
from preproc.simulate.schedule import S1Pass, S2Pass, s1_passes, s2_passes
from preproc.simulate.world import Granule, World

MANIFEST = "archive.json"
KIND = "archive"
ITEMS = "items.json"
_REMEDY = "simulate it again"
_WRONG = 2500
"""What a superseded processing adds to every number, so that choosing it shows."""


@dataclass(frozen=True)
class ArchiveSummary:
    """What an archive holds."""

    folder: Path
    """Where it is."""
    items: int
    """STAC items."""
    files: int
    """Files, without the manifest."""
    size: int
    """Bytes of all files."""
    parcels: int
    """Declared parcels."""
    written: bool
    """False when a complete and current archive was there already."""


def simulate(
    folder: Path,
    options: SimulationOptions,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ArchiveSummary:
    """Make a simulated archive, unless a complete one of the same options is there.

    Args:
        folder: where to; made as a whole or not at all. An older archive there is replaced.
        options: what to simulate.
        workers: processes; the bytes do not depend on it.
        progress: called with (passes done, passes in all).

    Raises:
        SmaltiError: if the folder holds something else, or cannot be written.
    """
    inputs = options.as_inputs()
    if output_state(folder / MANIFEST, KIND, inputs).complete:
        return _summary(folder, written=False)
    _refuse_strangers(folder)
    jobs: list[S2Pass | S1Pass] = [*s2_passes(options), *s1_passes(options)]
    with atomic_dir(folder) as temporary:
        items: list[dict[str, Any]] = []
        for number, made in enumerate(_rendered(temporary, options, jobs, workers), start=1):
            items.extend(made)
            if progress is not None:
                progress(number, len(jobs))
        _write_catalogue(temporary, items)
        write_labels(temporary, _world(options))
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        write_manifest(temporary / MANIFEST, KIND, inputs=inputs, files=files)
    return _summary(folder, written=True)


def open_world(folder: Path) -> World:
    """The truth behind an archive.

    Raises:
        SmaltiError: if the folder is not a simulated archive of this version.
    """
    manifest = read_manifest(folder / MANIFEST, KIND, remedy=_REMEDY)
    return World(SimulationOptions.from_inputs(manifest["inputs"]))


def _refuse_strangers(folder: Path) -> None:
    """Never replace a folder that is not an archive of ours."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise SmaltiError(f"{folder}: holds files that are not a simulated archive: name another folder")
    if folder.exists() and not folder.is_dir():
        raise SmaltiError(f"{folder}: is a file: name a folder for the simulated archive")


def _summary(folder: Path, *, written: bool) -> ArchiveSummary:
    manifest = read_manifest(folder / MANIFEST, KIND, remedy=_REMEDY)
    items = read_json(folder / ITEMS, what="the item collection", remedy=_REMEDY)
    parcels = read_json(folder / "parcels.geojson", what="the parcels", remedy=_REMEDY)
    return ArchiveSummary(
        folder=folder,
        items=len(items["features"]),
        files=len(manifest["files"]),
        size=sum(record["bytes"] for record in manifest["files"].values()),
        parcels=len(parcels["features"]),
        written=written,
    )


@lru_cache(maxsize=1)
def _world(options: SimulationOptions) -> World:
    return World(options)


def _rendered(
    folder: Path, options: SimulationOptions, jobs: list[S2Pass | S1Pass], workers: int
) -> Iterator[list[dict[str, Any]]]:
    """Render every pass, in order, here or in processes that know nothing of each other."""
    if workers <= 1:
        yield from (_render(folder, options, job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(_render, folder, options, job) for job in jobs]
        yield from (task.result() for task in tasks)


def _render(folder: Path, options: SimulationOptions, job: S2Pass | S1Pass) -> list[dict[str, Any]]:
    world = _world(options)
    return _render_s2(folder, world, job) if isinstance(job, S2Pass) else _render_s1(folder, world, job)


def _render_s2(folder: Path, world: World, item: S2Pass) -> list[dict[str, Any]]:
    items = []
    for number, granule in enumerate(world.granules(item)):
        stored, scl = world.s2_product(item, granule)
        if item.quirk == "duplicate":
            wrong = {
                band: np.where(values > 0, np.minimum(values, 65535 - _WRONG) + _WRONG, 0).astype(np.uint16)
                for band, values in stored.items()
            }
            naive = np.where(scl > 0, 4, 0).astype(np.uint8)
            items.append(_write_s2(folder, world, item, granule, stac.first_processing(item), wrong, naive))
            items.append(_write_s2(folder, world, item, granule, stac.second_processing(item), stored, scl))
            continue
        if item.quirk == "missing asset" and number == 0:
            del stored["B11"]
        strip = 1 if granule.part == "south" else 0
        items.append(_write_s2(folder, world, item, granule, stac.first_processing(item, strip), stored, scl))
    return items


def _write_s2(
    folder: Path,
    world: World,
    item: S2Pass,
    granule: Granule,
    processing: stac.Processing,
    stored: dict[str, NDArray[np.uint16]],
    scl: NDArray[np.uint8],
) -> dict[str, Any]:
    assets = [name for name in stac.S2_ASSETS if name in stored or name == "SCL"]
    described = stac.s2_item(
        item,
        granule.grid,
        granule.tile,
        processing,
        outline=_outline(granule.grid, scl > 0, 20),
        scl=scl,
        sun=world.sun(item),
        assets=assets,
    )
    for name in assets:
        values = scl if name == "SCL" else stored[name]
        write_cog(folder / described["assets"][name]["href"], values, granule.grid, nodata=0, average=name != "SCL")
    return described


def _render_s1(folder: Path, world: World, item: S1Pass) -> list[dict[str, Any]]:
    power, grid = world.s1_product(item), world.frame(item)
    beyond = ~world.surface(grid).inside
    items = []
    for part in range(item.slices):
        unseen = world.unseen(item, part)
        described = stac.s1_item(item, part, grid, outline=_outline(grid, ~(unseen | beyond), 10))
        for channel, name in enumerate(item.polarisations):
            values = np.where(unseen, 0, power[..., channel])
            values = np.where(beyond, np.float32(-32768), values).astype(np.float32)
            if len(item.polarisations) == 1:
                values = np.where(values > 0, values * 4, values).astype(np.float32)
            write_cog(folder / described["assets"][name.lower()]["href"], values, grid, nodata=-32768)
        items.append(described)
    return items


def _outline(grid: Grid, seen: NDArray[np.bool_], pixel: int) -> Any:
    """The outline of what was seen, in degrees: the hull of its pixels' corners, which is what swaths look like."""
    rows = np.flatnonzero(seen.any(axis=1))
    if rows.size == 0:
        return degrees(box(*grid.bounds), grid.epsg)
    first, last = seen[rows].argmax(axis=1), seen.shape[1] - seen[rows, ::-1].argmax(axis=1)
    x = grid.west + pixel * np.tile(np.concatenate([first, last]), 2)
    y = grid.north - pixel * np.concatenate([rows, rows, rows + 1, rows + 1])
    hull = shapely.convex_hull(shapely.multipoints(np.column_stack([x, y]).astype(np.float64)))
    return degrees(shapely.simplify(hull, 5.0), grid.epsg)


def _write_catalogue(folder: Path, items: list[dict[str, Any]]) -> None:
    """items.json, and the same as a static catalogue: catalog.json, a collection each, an item each."""
    write_json(folder / ITEMS, stac.item_collection(items))
    found = stac.collections(items)
    for collection in found:
        own = sorted(
            (item for item in items if item["collection"] == collection["id"]), key=lambda item: str(item["id"])
        )
        links = [{"rel": "item", "href": f"./{item['id']}/item.json", "type": "application/geo+json"} for item in own]
        upward = [{"rel": name, "href": "../catalog.json", "type": "application/json"} for name in ("root", "parent")]
        _write_text(folder / collection["id"] / "collection.json", {**collection, "links": upward + links})
        for item in own:
            _write_text(folder / collection["id"] / item["id"] / "item.json", _static(item))
    children = [
        {"rel": "child", "href": f"./{item['id']}/collection.json", "type": "application/json"} for item in found
    ]
    catalogue = {
        "type": "Catalog",
        "id": "smalti-simulated",
        "stac_version": "1.0.0",
        "description": "A simulated archive with known truth. Nothing here was measured.",
        "links": [{"rel": "root", "href": "./catalog.json", "type": "application/json"}, *children],
    }
    write_json(folder / "catalog.json", catalogue)


def _write_text(path: Path, content: Any) -> None:
    """JSON inside a folder that is itself temporary: no need to rename and fsync each of hundreds of files."""
    with writing(path):
        path.write_bytes(json_bytes(content))


def _static(item: dict[str, Any]) -> dict[str, Any]:
    """The item with hrefs relative to its own folder."""
    assets = {name: {**asset, "href": "./" + asset["href"].rsplit("/", 1)[1]} for name, asset in item["assets"].items()}
    links = [
        {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
        {"rel": "parent", "href": "../collection.json", "type": "application/json"},
        {"rel": "collection", "href": "../collection.json", "type": "application/json"},
    ]
    return {**item, "assets": assets, "links": links}
