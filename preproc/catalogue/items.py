"""One search a run: its items saved unsigned in RUN/items, and the scenes that all stages read from there.

Of many items the plan has an index too, plan_scenes.json: which lines of RUN/items are scenes, once copies are left
out, and where they lie. A task of a country then reads and parses the items of its own tiles.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import STRtree
from shapely.geometry.base import BaseGeometry

from infer.contract import (
    FormatError,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    atomic_dir,
    brief_name,
    child,
    name_for,
    one_line,
    open_regular,
    parse_json,
    read_json,
    write_bytes,
)
from preproc.catalogue.duplicates import Candidate, dedupe
from preproc.catalogue.scene import Copy, Scene
from preproc.catalogue.sources import (
    CATALOGUES,
    MARGIN_DEGREES,
    PRODUCTS,
    Item,
    Rejected,
    acquired_at,
    asset_href,
    footprint,
    parse_item,
)
from preproc.reader.hrefs import absolute, is_bucket, is_url, portable
from preproc.region.grid import tile_footprints
from preproc.region.region import Region
from preproc.run.config import Config

FOOTPRINT_MARGIN = 1000.0
"""Metres by which a tile is widened before it is compared with footprints, which are coarse."""

SCENES_FILE = "plan_scenes.json"
"""Beside plan.json: the index of the scenes."""
_INDEXED = 500
"""Items from which on there is an index: fewer are parsed in a second."""
_A_SHARE = 4096
"""Tiles for which the index is asked; for more of them all scenes are read."""

_TOGETHER = 2048
"""Tiles whose scenes are looked up together."""

_MAX_REASON = 300
"""Characters of a reason, which repeats what the item says."""

_USED_ASSETS = frozenset(key for product in PRODUCTS for key in product.assets.values())


@dataclass(frozen=True)
class ParsedItems:
    """What became of the items of a search."""

    scenes: tuple[Scene, ...]
    """Usable, without duplicates, by day and id."""
    rejected: Mapping[str, str]
    """Item id -> why it cannot be used."""
    duplicates: Mapping[str, str]
    """Item id -> which newer copies are used instead."""
    items: tuple[Item, ...] = field(default=(), repr=False, compare=False)
    """What each scene was parsed from."""


def search_scenes(config: Config, region: Region) -> list[Item]:
    """Search the archive once, for the whole region and window.

    Returns:
        The raw items that touch the region within the window, hrefs absolute and unsigned, in a fixed order.

    Raises:
        SmaltiError: if the archive cannot be searched, or nothing is found.
    """
    # here: only who searches talks to services, and what does that takes long to import
    from preproc.catalogue.header import with_headers
    from preproc.catalogue.search import search_api
    from preproc.catalogue.static import read_static
    from preproc.reader.buckets import BucketSigner
    from preproc.reader.ranges import RangeClient

    archive, window = config.archive, config.region
    if archive.source == "static":
        assert archive.href is not None  # the settings are validated
        origin, pairs = archive.href, read_static(archive.href, archive.folders)
    else:
        catalogue = CATALOGUES[archive.source]
        origin = archive.url or catalogue.url
        pairs = [(item, origin) for item in search_api(catalogue, archive.url, region, window.start, window.end)]
    near = [(item, base) for item, base in pairs if within(item, region, window.start, window.end)]
    signer = BucketSigner(archive.href) if archive.href is not None and is_bucket(archive.href) else None
    with RangeClient(signer, connections=1) as client:
        folders = archive.folders
        found = with_headers((stored(item, base, folders) for item, base in near), folders, client)
    if not found:
        raise SmaltiError(_nothing_found(origin, [item for item, _ in pairs], config, region))
    return sorted(found, key=_order)


def within(item: Item, region: Region, start: date, end: date) -> bool:
    """Whether an item was acquired in the window (UTC days, inclusive) and touches the region.

    What cannot be told, for want of a time or an outline, is kept: it is rejected by name later.
    """
    if not isinstance(item, Mapping) or not isinstance(item.get("properties"), Mapping):
        return False
    acquired = acquired_at(item)
    if acquired is not None and not start <= acquired.date() <= end:
        return False
    outline = footprint(item)
    return outline is None or bool(shapely.dwithin(region.geometry, outline, MARGIN_DEGREES))


def stored(item: Item, base: str, folders: Sequence[str]) -> Item:
    """An item as it is saved: links and assets that no stage reads are left out, hrefs are absolute and unsigned.

    Args:
        item: as it came.
        base: path or URL of the file that it stands in.
        folders: those that the archive's files may lie in; hrefs elsewhere are kept, and rejected by name later.
    """
    listed = item.get("assets")
    assets = {} if not isinstance(listed, Mapping) else {k: v for k, v in listed.items() if isinstance(v, Mapping)}
    used = {key: asset for key, asset in assets.items() if key in _USED_ASSETS} or assets
    kept = {key: value for key, value in item.items() if key not in ("links", "assets")}
    kept["links"] = []
    hrefs = {key: asset_href(asset, base, folders) for key, asset in used.items()}
    kept["assets"] = {
        key: {name: value for name, value in used[key].items() if name != "alternate"} | {"href": href}
        for key, href in hrefs.items()
        if href
    }
    return kept


def parse_items(items: Iterable[Item], config: Config, base: str = "") -> ParsedItems:
    """Parse items, set aside what cannot be used and drop duplicates.

    Args:
        items: as saved.
        config: section [archive] decides what the items are.
        base: what relative hrefs are relative to; saved items have none.
    """
    candidates, rejected = [], {}
    for item in items:
        scene = _parsed(item, base, config)
        if isinstance(scene, Rejected):
            rejected[scene.id] = one_line(" ".join(scene.reason.split()))[:_MAX_REASON]
        else:
            candidates.append(Candidate(item, scene))
    scenes, duplicates = dedupe(candidates)
    origins: defaultdict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        origins[candidate.scene.modality, candidate.scene.id].append(candidate)
    items = tuple(_origin(scene, origins[scene.modality, scene.id]) for scene in scenes)
    return ParsedItems(tuple(scenes), dict(sorted(rejected.items())), duplicates, items)


def _origin(scene: Scene, candidates: Sequence[Candidate]) -> Item:
    """The item that a scene was parsed from; an archive may have several of one id."""
    bare = replace(scene, copy=None)
    return next(other.item for other in candidates if len(candidates) == 1 or other.scene == bare)


def _parsed(item: Item, base: str, config: Config) -> Scene | Rejected:
    try:
        return parse_item(item, base, config.archive)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Any value of an item may be of any type; what is asked of good ones need not look at each.
        return Rejected(brief_name(item.get("id")), f"is not built like a STAC item ({error})")


def save_items(run: Run, items: Sequence[Item]) -> list[Path]:
    """Replace RUN/items as a whole: one item collection for each collection and month.

    Returns:
        The files, sorted.
    """
    groups = _by_file(items)
    with atomic_dir(run.items) as folder:
        for name, group in groups.items():
            saved = (_with_hrefs(item, lambda href: portable(href, run.items, run.root)) for item in group)
            lines = ",\n".join(json.dumps(item, sort_keys=True, separators=(",", ":")) for item in saved)
            (folder / name).write_text(f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n', encoding="utf-8")
    return sorted(run.items / name for name in groups)


def _by_file(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Name of a file in RUN/items -> its items, a line each."""
    groups: defaultdict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=_order):
        acquired = acquired_at(item)
        collection = name_for(str(item.get("collection") or "items"))
        groups[f"{collection}_{acquired:%Y-%m}.json" if acquired else f"{collection}.json"].append(item)
    return groups


def index_scenes(run: Run, items: Sequence[Item], found: ParsedItems) -> list[Path]:
    """Write the index of the scenes of many items, which were saved and parsed.

    Returns:
        The file; nothing for few items.
    """
    (run.root / SCENES_FILE).unlink(missing_ok=True)  # of an earlier plan
    if len(items) < _INDEXED:
        return []
    places: dict[int, tuple[str, int, int]] = {}
    for name, group in _by_file(items).items():
        start = 0
        with (run.items / name).open("rb") as stream:
            for number, line in enumerate(stream):
                if 0 < number <= len(group):
                    places[id(group[number - 1])] = name, start, len(line.rstrip(b",\n"))
                start += len(line)
    names = sorted({name for name, _, _ in places.values()})
    rows = []
    for scene, item in zip(found.scenes, found.items, strict=True):
        name, start, length = places[id(item)]
        copy = scene.copy
        told = None if copy is None else [copy.granule, copy.acquired.isoformat(), copy.number]
        box = shapely.bounds(shapely.from_wkt(scene.footprint)).tolist()
        rows.append([names.index(name), start, length, *box, told])
    path = run.root / SCENES_FILE
    write_bytes(path, json.dumps({"files": names, "scenes": rows}, separators=(",", ":")).encode())
    return [path]


def _with_hrefs(item: Item, change: Callable[[str], str]) -> Item:
    assets = {key: {**asset, "href": change(str(asset["href"]))} for key, asset in item["assets"].items()}
    return {**item, "assets": assets}


def load_items(run: Run, config: Config) -> list[Item]:
    """The items that the plan saved, verified against it, hrefs absolute."""
    remedy = f"run `smalti plan {run.quoted}` again"
    plan = Plan.read(run).verify(run)
    moved = archive_moved(run, config)
    items: list[Item] = []
    for name in sorted(plan.files):
        path = run.root / name
        if path.parent != run.items:
            continue
        features = read_json(path, what="a file of the plan's items", remedy=remedy)["features"]
        items += [_with_hrefs(item, partial(_loaded, base=str(path), moved=moved)) for item in features]
    return items


def archive_moved(run: Run, config: Config) -> tuple[Path, Path] | None:
    """The folder of the archive as the plan names it, seen from this run, and as run.toml does; None if they agree.

    They differ in a copy of a run that was planned beside its archive: what the plan says of places is relative to it.
    """
    known = (Plan.read(run).inputs.get("archive") or {}).get("href")
    if not isinstance(known, str) or is_url(known) or config.archive.href is None or is_url(config.archive.href):
        return None
    planned = Path(absolute(known, str(run.root / "x"))).parent
    now = Path(config.archive.href).parent
    return None if planned == now else (planned, now)


def _loaded(href: str, base: str, moved: tuple[Path, Path] | None) -> str:
    """An href of a saved item: what is an address stays what it was when it was saved."""
    if is_url(href):
        return href
    found = absolute(href, base)
    if moved is None or not Path(found).is_relative_to(moved[0]):
        return found
    return str(moved[1] / Path(found).relative_to(moved[0]))


def load_scenes(run: Run, config: Config) -> list[Scene]:
    """The scenes of a planned run, without duplicates, sorted by day and id.

    Raises:
        FormatError: if there is no plan, or its items are not those it was made with.
    """
    return list(parse_items(load_items(run, config), config).scenes)


def scenes_near(run: Run, config: Config, tiles: Sequence[PlannedTile]) -> list[Scene]:
    """Those of `load_scenes` that any of some tiles may touch, in the same order: others may be among them.

    Raises:
        FormatError: if there is no plan, or its items or their index are not those it was made with.
    """
    plan = Plan.read(run)
    if SCENES_FILE not in plan.files or len(tiles) > _A_SHARE:
        return load_scenes(run, config)
    plan.verify(run)
    path, remedy = run.root / SCENES_FILE, f"run `smalti plan {run.quoted} --force`"
    content = read_json(path, what="the index of the plan's scenes", remedy=remedy)
    try:
        rows = content["scenes"]
        boxes_n4 = np.array([row[3:7] for row in rows], dtype=float).reshape(-1, 4)
        near = _touching(boxes_n4, tiles)
        found = _read_indexed(run, config, content["files"], [rows[index] for index in near])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: the index of the plan's scenes cannot be read ({error}): {remedy}") from error
    return load_scenes(run, config) if found is None else found


def _touching(boxes_n4: NDArray[np.float64], tiles: Sequence[PlannedTile]) -> list[int]:
    tree = STRtree(shapely.box(*boxes_n4.T))
    _, hits = tree.query(tile_footprints(tiles, FOOTPRINT_MARGIN), predicate="intersects")
    return [int(index) for index in np.unique(hits)]


def _read_indexed(run: Run, config: Config, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Scene] | None:
    """The scenes of some rows of the index; None if one of them is no scene with the settings of now."""
    moved = archive_moved(run, config)
    found: dict[int, Scene] = {}
    files = Counter(int(row[0]) for row in rows)
    for number in files:
        path = child(run.items, names[number])
        with open_regular(path) as stream:
            for place, (file, start, length, *_, told) in enumerate(rows):
                if file != number:
                    continue
                stream.seek(start)
                item = _with_hrefs(parse_json(stream.read(length)), partial(_loaded, base=str(path), moved=moved))
                scene = _parsed(item, "", config)
                if isinstance(scene, Rejected):
                    return None
                copy = None if told is None else Copy(str(told[0]), datetime.fromisoformat(told[1]), int(told[2]))
                found[place] = replace(scene, copy=copy)
    return [found[place] for place in range(len(rows))]


class TileScenes:
    """The scenes of a run's tiles: read when the first tiles are asked for, near these if they are few."""

    def __init__(self, run: Run, config: Config) -> None:
        self._run, self._config = run, config
        self._index: SceneIndex | None = None
        self._near: frozenset[str] | None = frozenset()
        """Tiles whose scenes are in the index; None: all."""

    def for_tiles(self, tiles: Sequence[PlannedTile]) -> Iterator[list[Scene]]:
        """See `SceneIndex.for_tiles`.

        Raises:
            FormatError: see `scenes_near`.
        """
        if not tiles:  # all are imported, or none has changed since it was looked at
            return iter(())
        names = frozenset(tile.name for tile in tiles)
        if self._index is None or (self._near is not None and not names <= self._near):
            again = self._index is not None
            scenes = load_scenes(self._run, self._config) if again else scenes_near(self._run, self._config, tiles)
            self._index, self._near = SceneIndex(scenes), None if again or len(tiles) > _A_SHARE else names
        return self._index.for_tiles(tiles)

    def for_tile(self, tile: PlannedTile) -> list[Scene]:
        """See `SceneIndex.for_tile`."""
        return next(self.for_tiles([tile]))


class SceneIndex:
    """Finds the scenes of a tile; built once, asked for every tile."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._scenes = tuple(scenes)
        self._outlines = shapely.from_wkt(np.array([scene.footprint for scene in scenes], dtype=object))
        self._tree = STRtree(self._outlines)

    def for_tile(self, tile: PlannedTile) -> list[Scene]:
        """The scenes whose footprint comes within FOOTPRINT_MARGIN of the tile, in the order they were given.

        Footprints are coarse: a scene that is given here may have no pixel in the tile after all.
        """
        return next(self.for_tiles([tile]))

    def for_tiles(self, tiles: Sequence[PlannedTile]) -> Iterator[list[Scene]]:
        """The same of many tiles, in their order; those of the same scenes, as neighbours mostly are, get one list."""
        lists: dict[bytes, list[Scene]] = {}
        for start in range(0, len(tiles), _TOGETHER):
            part = tiles[start : start + _TOGETHER]
            which, hits = self._meeting(tile_footprints(part, FOOTPRINT_MARGIN))
            order = np.lexsort((hits, which))
            hits, ends = hits[order], np.searchsorted(which[order], np.arange(len(part) + 1)).tolist()
            for first, last in pairwise(ends):
                key = hits[first:last].tobytes()
                if key not in lists:
                    if len(lists) == _TOGETHER:
                        lists.clear()
                    lists[key] = [self._scenes[index] for index in hits[first:last].tolist()]
                yield lists[key]

    def _meeting(self, tiles: Sequence[BaseGeometry]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Pairs of a tile and a scene that meet. Whatever asks is prepared once: of many tiles the scenes, if fewer."""
        if len(tiles) <= len(self._scenes):
            which, hits = self._tree.query(tiles, predicate="intersects")
        else:
            hits, which = STRtree(tiles).query(self._outlines, predicate="intersects")
        return which, hits


def count_reasons(reasons: Mapping[str, str]) -> list[tuple[str, int]]:
    """Reasons with the number of items each holds for, most frequent first."""
    return sorted(Counter(reasons.values()).items(), key=lambda pair: (-pair[1], pair[0]))


def _order(item: Item) -> tuple[str, str, str]:
    acquired = acquired_at(item)
    return str(item.get("collection") or ""), acquired.isoformat() if acquired else "", str(item.get("id"))


def _nothing_found(origin: str, items: Sequence[Any], config: Config, region: Region) -> str:
    window = config.region
    text = f"{origin}: no item of the region ({region.name}) from {window.start} to {window.end}"
    items = [item for item in items if isinstance(item, Mapping) and isinstance(item.get("properties"), Mapping)]
    days = sorted(acquired.date() for acquired in map(acquired_at, items) if acquired is not None)
    outlines = [outline for outline in map(footprint, items) if outline is not None]
    if config.archive.source != "static" or not days or not outlines:
        return f"{text}: check the dates, the region and the archive's address"
    west, south, east, north = shapely.total_bounds(outlines)
    place = ", ".join(f"{value:.2f}" for value in region.bounds)
    left, low, right, high = region.bounds
    swapped = shapely.box(low, left, high, right).intersects(shapely.box(west, south, east, north))
    return (
        f"{text}: it holds {len(items)} items from {days[0]} to {days[-1]}, between {west:.2f}, {south:.2f} and "
        f"{east:.2f}, {north:.2f} degrees; the region lies in {place}"
        f"{': longitude comes first, are they swapped?' if swapped else ''}"
    )
