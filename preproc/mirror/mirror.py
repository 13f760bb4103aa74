"""`smalti mirror`: what a run needs of the archive, copied with a catalogue that works without internet.

Assets are copied one by one and recorded in a small JSON beside each item, so that a mirror that was interrupted goes
on where it stopped. The catalogue is written at the end. An asset that cannot be copied does not stop the others: the
catalogue then names its original address, so that `fetch` and `[archive] on_missing` see that it is lacking.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeGuard

from infer.contract import (
    FORMAT_VERSION,
    SOFTWARE,
    Inputs,
    PlannedTile,
    Run,
    SmaltiError,
    describes_file,
    parse_json,
    planned_tiles,
    sha256_file,
    sha256_json,
    stage_lock,
)
from infer.contract.atomic import json_bytes
from preproc.catalogue.items import SceneIndex, load_items, parse_items
from preproc.catalogue.sources import Item
from preproc.mirror.extract import copy_needed, copy_whole
from preproc.mirror.publish import CATALOGUE, CopyRecord, copied_item, item_folder, write_catalogue
from preproc.mirror.store import Store, open_store
from preproc.reader.gdal import gdal_settings
from preproc.reader.hrefs import is_bucket
from preproc.reader.ranges import RangeClient
from preproc.reader.read import BACKSCATTER, REFLECTANCE, SCENE_CLASSES, BandKind
from preproc.reader.signing import make_signer
from preproc.reader.whereabouts import Whereabouts
from preproc.run.chain import refuse_stale
from preproc.run.config import Config
from preproc.run.progress import progress, say
from preproc.run.stage import Outcome, StageFailedError, failure_table
from preproc.run.stages import stage_named
from preproc.run.status import Survey
from preproc.run.workers import read_ahead

RECORD = "mirror.json"
"""Beside each item: what of it was copied, and from what. At the root: the mirror as a whole, written last."""
_BAND_KINDS = {"SCL": SCENE_CLASSES, "VV": BACKSCATTER, "VH": BACKSCATTER}


@dataclass(frozen=True)
class _Asset:
    """One file to copy."""

    item: Item
    key: str
    """Of the asset in its item."""
    band: str
    href: str
    """Absolute, unsigned."""
    tiles: tuple[PlannedTile, ...]
    whole: bool
    said: Whereabouts | None
    """Where its item says that it lies."""

    @property
    def file(self) -> str:
        """Name in the item's folder."""
        return f"{self.band}.tif"

    @property
    def place(self) -> str:
        """Key in the store."""
        return f"{item_folder(self.item)}/{self.file}"

    @property
    def kind(self) -> BandKind:
        return _BAND_KINDS.get(self.band, REFLECTANCE)

    @property
    def inputs(self) -> Inputs:
        """What the copy depends on."""
        grids = [] if self.whole else [[t.epsg, t.west, t.north, t.size] for t in self.tiles]
        return {"href": self.href, "tiles": sha256_json(sorted(grids)), "whole": self.whole}


def mirror(run: Run, config: Config, target: str | None, *, whole: bool = False, deep: bool = False) -> str:
    """Copy what the tiles of a planned run need, and write a catalogue of it.

    Args:
        run: planned.
        config: its settings.
        target: a folder, or s3://, az://, gs:// or http(s):// (WebDAV); RUN/mirror by default.
        whole: copy whole files instead of the blocks that the tiles need.
        deep: read again what was copied before, and compare checksums.

    Returns:
        What to write into run.toml to use the mirror.

    Raises:
        StageFailedError: after everything was tried, if some assets could not be copied; the message lists them.
        SmaltiError: if there is no plan, it is stale, or the target cannot be written.
    """
    refuse_stale(stage_named("fetch"), Survey(run, config), "mirror")
    store = open_store(target or str(run.root / "mirror"))
    with stage_lock(run, "mirror"):
        assets = _wanted(run, config, whole)
        outcome = Outcome("mirror", "assets")
        records = _copy_all(run, config, store, assets, outcome, deep)
        _publish(store, assets, records, outcome, whole)
    say(outcome.message())
    if outcome.failed:
        raise StageFailedError(failure_table(outcome))
    return _advice(store, config, assets)


def _wanted(run: Run, config: Config, whole: bool) -> list[_Asset]:
    """The assets of all scenes that touch a tile, item by item in a fixed order."""
    items = load_items(run, config)
    scenes = parse_items(items, config).scenes
    index = SceneIndex(scenes)
    tiles: defaultdict[tuple[str, str], list[PlannedTile]] = defaultdict(list)
    for tile in planned_tiles(run):
        for scene in index.for_tile(tile):
            tiles[scene.modality, scene.id].append(tile)
    by_id: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_id[str(item["id"])].append(item)
    wanted = []
    for scene in scenes:
        touched = tuple(sorted(tiles[scene.modality, scene.id], key=lambda tile: tile.name))
        if not touched:
            continue
        bands = {href: band for band, href in scene.assets.items()}
        item = max(by_id[scene.id], key=lambda one: len(bands.keys() & _hrefs(one).keys()))
        keys = _hrefs(item)
        wanted += [
            _Asset(item, keys[href], band, href, touched, whole, scene.places.get(band))
            for href, band in bands.items()
            if href in keys
        ]
    return sorted(wanted, key=lambda asset: asset.place)


def _hrefs(item: Item) -> dict[str, str]:
    return {str(asset["href"]): key for key, asset in item["assets"].items()}


_Records = dict[str, dict[str, CopyRecord]]
"""Item's folder -> asset key -> its copy."""


def _copy_all(
    run: Run, config: Config, store: Store, assets: Sequence[_Asset], outcome: Outcome, deep: bool
) -> _Records:
    workers = config.archive.workers
    records: _Records = {}
    with (
        gdal_settings(),
        tempfile.TemporaryDirectory(prefix="smalti-mirror-") as scratch,
        RangeClient(make_signer(run, config), connections=config.archive.connections) as client,
        ThreadPoolExecutor(workers, thread_name_prefix="mirror") as pool,
        progress("mirror", len(assets), "assets") as bar,
    ):
        groups = [list(group) for _, group in groupby(assets, key=lambda asset: item_folder(asset.item))]
        before = read_ahead(pool, partial(_known, store), groups, ahead=2 * workers)
        known = {item_folder(group[0].item): record for group, record in before}
        copy = partial(_copy_one, client, store, Path(scratch), known, deep)
        results = read_ahead(pool, copy, assets, ahead=2 * workers)
        for folder, of_item in groupby(results, key=lambda result: item_folder(result[0].item)):
            done: dict[str, CopyRecord] = {}
            for asset, result in of_item:
                bar.advance(note=asset.place)
                if isinstance(result, SmaltiError):
                    outcome.failed[asset.place] = str(result)
                    say(f"mirror: {asset.place} failed: {result}")
                    continue
                done[asset.key] = result
                same = known[folder].get(asset.key) == result
                outcome.complete_before += same
                outcome.built += not same
            records[folder] = done
            if done != known[folder]:
                store.put_bytes(f"{folder}/{RECORD}", json_bytes({"assets": done, **_header("mirror-item")}))
    return records


def _known(store: Store, group: Sequence[_Asset]) -> dict[str, CopyRecord]:
    """What an earlier run of this command recorded of an item; nothing if that cannot be read."""
    content = store.read(f"{item_folder(group[0].item)}/{RECORD}")
    if content is None:
        return {}
    try:
        record = parse_json(content)
    except ValueError:
        return {}
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        return {}
    assets = record.get("assets")
    return {key: one for key, one in assets.items() if _is_copy(one)} if isinstance(assets, dict) else {}


def _is_copy(record: Any) -> TypeGuard[CopyRecord]:
    return describes_file(record) and isinstance(record.get("file"), str) and isinstance(record.get("inputs"), dict)


def _copy_one(
    client: RangeClient, store: Store, scratch: Path, known: _Records, deep: bool, asset: _Asset
) -> CopyRecord | SmaltiError:
    """Copy one asset, unless its copy is there; gives its record, or what went wrong."""
    before = known[item_folder(asset.item)].get(asset.key)
    try:
        if before is not None and _intact(store, asset, before, deep):
            return before
        name = hashlib.sha256(asset.place.encode()).hexdigest()
        path = scratch / f"{name}.tif"
        try:
            if asset.whole:
                copy_whole(client, asset.href, path)
            else:
                copy_needed(client, asset.href, asset.tiles, asset.kind, path, asset.said)
            record: CopyRecord = {
                "inputs": asset.inputs,
                "file": asset.file,
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
            store.put(asset.place, path)
        finally:
            path.unlink(missing_ok=True)
    except SmaltiError as error:
        return error
    return record


def _intact(store: Store, asset: _Asset, record: CopyRecord, deep: bool) -> bool:
    if record["inputs"] != asset.inputs or record["file"] != asset.file:
        return False
    if store.size(asset.place) != record["bytes"]:
        return False
    if not deep:
        return True
    content = store.read(asset.place)
    return content is not None and hashlib.sha256(content).hexdigest() == record["sha256"]


def _publish(store: Store, assets: Sequence[_Asset], records: _Records, outcome: Outcome, whole: bool) -> None:
    items = {item_folder(asset.item): asset.item for asset in assets}
    listed = [copied_item(item, records[folder]) for folder, item in items.items()]
    with tempfile.TemporaryDirectory(prefix="smalti-mirror-") as scratch:
        for key, path in write_catalogue(listed, Path(scratch)):
            content = path.read_bytes()
            if store.size(key) != len(content) or store.read(key) != content:
                store.put_bytes(key, content)
    files = {
        f"{folder}/{record['file']}": {"bytes": record["bytes"], "sha256": record["sha256"]}
        for folder, done in records.items()
        for record in done.values()
    }
    summary = {"inputs": {"whole": whole}, "items": sorted(items), "files": files, "failed": outcome.failed}
    store.put_bytes(RECORD, json_bytes({**summary, **_header("mirror")}))


def _header(kind: str) -> dict[str, Any]:
    return {"format": f"smalti/{kind}", "format_version": FORMAT_VERSION, "software": SOFTWARE}


def _lines(store: Store, config: Config, source: str) -> Iterator[str]:
    place = f"{store.address}/{CATALOGUE}"
    yield "[archive]"
    yield 'source = "static"'
    yield f'href = "{place}"'
    if config.archive.data_source is not None or source != "other":
        yield f'data_source = "{config.archive.data_source or source}"'
    if is_bucket(place):
        yield "# a private bucket: plan and fetch take credentials from their environment, as this command did"


def _advice(store: Store, config: Config, assets: Sequence[_Asset]) -> str:
    sources = {scene.data_source for scene in parse_items([asset.item for asset in assets[:40]], config).scenes}
    source = sources.pop() if len(sources) == 1 else "other"
    return "\n".join(["To use it, in run.toml:", "", *_lines(store, config, source)])
