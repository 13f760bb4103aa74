"""Items with copied assets as a self-contained STAC catalogue: catalog.json, a collection each, relative hrefs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pystac
from pystac.layout import CustomLayoutStrategy

from infer.contract import FileRecord, Inputs, name_for
from preproc.catalogue.sources import Item, acquired_at
from preproc.reader.hrefs import is_url

CATALOGUE = "catalog.json"


class CopyRecord(FileRecord):
    """What a mirror says of the copy of an asset."""

    file: str
    """Its name in the item's folder."""
    inputs: Inputs


def item_folder(item: Item) -> str:
    """Where an item and its assets lie in the catalogue."""
    own = name_for(str(item["id"]))
    collection = item.get("collection")
    return f"{name_for(str(collection))}/{own}" if collection else own


def write_catalogue(items: Sequence[Item], folder: Path) -> Iterator[tuple[str, Path]]:
    """Write the JSON files of the catalogue into a folder.

    Args:
        items: with asset hrefs relative to their folders (`item_folder`), or absolute where they were not copied.
        folder: an empty one.

    Yields:
        Key and file, catalog.json last: without it there is no catalogue.
    """
    root = pystac.Catalog("smalti-mirror", "What a smalti run needs of an archive, copied by `smalti mirror`.")
    groups: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[str(item.get("collection") or "")].append(item)
    for name, members in sorted(groups.items()):
        parsed = [pystac.Item.from_dict(dict(item), preserve_dict=True) for item in members]
        if name:
            collection = pystac.Collection(name, f"Scenes of {name}.", _extent(members), license="other")
            root.add_child(collection)
            collection.add_items(parsed)
        else:
            root.add_items(parsed)
    layout = CustomLayoutStrategy(_catalogue_place, _collection_place, _item_place)
    root.normalize_hrefs(str(folder), strategy=layout)
    root.save(pystac.CatalogType.SELF_CONTAINED)
    files = sorted(path for path in folder.rglob("*.json") if path != folder / CATALOGUE)
    for path in [*files, folder / CATALOGUE]:
        yield path.relative_to(folder).as_posix(), path


def _catalogue_place(_catalogue: pystac.Catalog, parent: str, _is_root: bool) -> str:
    return f"{parent}/{CATALOGUE}"


def _collection_place(collection: pystac.Collection, parent: str, _is_root: bool) -> str:
    return f"{parent}/{name_for(collection.id)}/collection.json"


def _item_place(item: pystac.Item, parent: str) -> str:
    return f"{parent}/{name_for(item.id)}/{name_for(item.id)}.json"


def _extent(items: Sequence[Item]) -> pystac.Extent:
    boxes = [_flat(item["bbox"]) for item in items if item.get("bbox")] or [(-180.0, -90.0, 180.0, 90.0)]
    bounds = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
    times: list[datetime] = sorted(moment for moment in map(acquired_at, items) if moment is not None)
    interval: list[datetime | None] = [times[0], times[-1]] if times else [None, None]
    return pystac.Extent(pystac.SpatialExtent([bounds]), pystac.TemporalExtent([interval]))


def _flat(box: Sequence[Any]) -> tuple[float, float, float, float]:
    values = [float(value) for value in box]
    return (values[0], values[1], values[-2], values[-1]) if len(values) == 4 else (*values[:2], *values[3:5])  # type: ignore[return-value]  # four of six


def copied_item(item: Item, records: Mapping[str, CopyRecord]) -> dict[str, Any]:
    """An item as the mirror lists it.

    Args:
        item: of the plan, hrefs absolute and unsigned.
        records: asset key -> its copy. Assets without one keep the address they had.
    """
    assets = {}
    for key, asset in item["assets"].items():
        record = records.get(key)
        if record is None:  # a path would lead out of the mirror, which no item may: its place is left empty
            assets[key] = {**asset, "href": asset["href"] if is_url(str(asset["href"])) else f"./{key}.tif"}
            continue
        facts = {"file:size": record["bytes"], "file:checksum": f"1220{record['sha256']}"}
        assets[key] = {**asset, **facts, "href": f"./{record['file']}"}
    return {**item, "assets": assets, "links": []}
