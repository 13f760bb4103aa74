"""The atlas of a run: which layers there are, how they are coloured, and the page that shows them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio
from jinja2 import Environment, PackageLoader, StrictUndefined

from infer.contract import SOFTWARE, Plan, Run, SmaltiError, write_bytes
from infer.contract.explored import GroupsManifest, SimilarManifest
from infer.contract.rasters import MapManifest, MosaicManifest, Provenance
from infer.contract.record import Record
from preproc.atlas.pyramid import Grid, grid_of, write_pyramid
from preproc.raster.observations import BANDS, NODATA, ORIGINS, REASONS
from preproc.run.progress import progress
from preproc.run.text import human_bytes

_VIRIDIS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
_GREYS = ("#5b2a86", "#c9b6d9", "#f4efe6")
_REASONS = ("#2e7d32", "#cfcfcf", "#b9b3a9")
_ORIGINS = ("#2e7d32", "#1565c0")
MARK = "atlas.json"
"""In the folder: that it is an atlas, and so may be written again."""


@dataclass(frozen=True)
class AtlasLayer:
    """One layer: bytes a pixel, and what they mean."""

    key: str
    title: str
    rasters: tuple[Path, ...]
    band: int
    nodata: int
    classes: tuple[tuple[int, str, str], ...] = ()
    """Value, name, colour; or a ramp."""
    ramp: tuple[str, ...] = ()
    low: int = 0
    """Value at the ramp's beginning."""
    high: int = 0
    """And at its end."""
    unit: str = ""

    def described(self) -> dict[str, Any]:
        """For the page."""
        return {
            "key": self.key,
            "title": self.title,
            "nodata": self.nodata,
            "classes": [list(entry) for entry in self.classes],
            "ramp": list(self.ramp),
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
        }


def layers_of(run: Run) -> list[AtlasLayer]:
    """What a run has to show, the map first.

    Raises:
        SmaltiError: if it has nothing yet.
    """
    found: list[AtlasLayer] = []
    made = _read(MapManifest, run)
    if made is not None:
        classes = tuple((entry.code, entry.name, entry.color) for entry in made.classes)
        zones = made.zones.values()
        rasters = tuple(run.map / zone.classes for zone in zones)
        found.append(AtlasLayer("classes", "Classes", rasters, 1, 0, classes))
        rasters = tuple(run.map / zone.confidence for zone in zones)
        found.append(AtlasLayer("confidence", "Confidence", rasters, 1, 0, ramp=_GREYS, low=1, high=100, unit="%"))
    groups = _read(GroupsManifest, run)
    if groups is not None:
        rasters = tuple(GroupsManifest.path(run).parent / name for name in groups.zones.values())
        entries = tuple((entry.code, entry.name, entry.color) for entry in groups.groups)
        found.append(AtlasLayer("groups", "Groups without labels", rasters, 1, 0, entries))
    similar = _read(SimilarManifest, run)
    if similar is not None:
        rasters = tuple(SimilarManifest.path(run).parent / name for name in similar.zones.values())
        found.append(AtlasLayer("similar", "Similarity", rasters, 1, 255, ramp=_VIRIDIS, low=0, high=254, unit="/ 254"))
    mosaic = _read(MosaicManifest, run)
    if mosaic is not None:
        found += _observed(run, mosaic)
    if not found:
        raise SmaltiError(f"{run.root}: has no mosaic and no map yet: run `smalti run {run.quoted}`")
    return found


def _observed(run: Run, mosaic: MosaicManifest) -> list[AtlasLayer]:
    rasters = tuple(run.mosaic / zone.observations for zone in mosaic.zones.values() if zone.observations is not None)
    if not rasters:
        return []
    reasons = tuple((code, text, _REASONS[code]) for code, text in REASONS.items())
    origins = tuple((code, text, _ORIGINS[code]) for code, text in ORIGINS.items())
    numbers = {name: index for index, name in enumerate(BANDS, start=1)}
    ramp: dict[str, Any] = {"ramp": _VIRIDIS, "low": 0, "high": 60, "unit": "observations"}
    found = [
        AtlasLayer("clear_s2", "Clear Sentinel-2 observations", rasters, numbers["clear_s2"], NODATA, **ramp),
        AtlasLayer("s1", "Sentinel-1 observations", rasters, numbers["s1"], NODATA, **{**ramp, "high": 120}),
        AtlasLayer("reason", "Embedded or why not", rasters, numbers["reason"], NODATA, reasons),
    ]
    if mosaic.origins:
        found.append(AtlasLayer("origin", "Where it comes from", rasters, numbers["origin"], NODATA, origins))
    return found


def _read(kind: type[Any], run: Run) -> Any:
    """A manifest, if the run has one whose files are there."""
    if not kind.path(run).exists():
        return None
    made: Record = kind.read(run)
    return made.verify(run, checksums=False)


def write_atlas(run: Run, out: Path | None) -> str:
    """Write the atlas of a run into a folder of its own; an older one there is replaced.

    Returns:
        One line on where it is and how to look at it.

    Raises:
        SmaltiError: if there is nothing to show, or the folder holds something else.
    """
    folder = out or run.root / "atlas"
    if folder.exists() and not (folder / MARK).is_file() and any(folder.iterdir()):
        raise SmaltiError(f"{folder}: holds something that is no atlas: name an empty or a new folder")
    plan, layers = Plan.read(run), layers_of(run)
    grid = grid_of(plan.tiles, (plan.region.bbox[1] + plan.region.bbox[3]) / 2)
    if folder.exists():
        shutil.rmtree(folder)
    total = 0
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), progress("atlas", grid.tiles * len(layers), "tiles") as bar:
        for layer in layers:

            def done(layer: AtlasLayer = layer) -> None:
                bar.advance(note=layer.title)

            total += write_pyramid(folder / layer.key, layer.rasters, layer.band, layer.nodata, grid, done)
    page = _page(run, plan, layers, grid)
    write_bytes(folder / "index.html", page)
    write_bytes(folder / MARK, (json.dumps({"format": "smalti/atlas", "software": SOFTWARE}) + "\n").encode())
    size = human_bytes(total + len(page))
    return f"{folder}: {len(layers)} layers, {size}: look at it with `smalti view {folder}`, or from any web server"


def _page(run: Run, plan: Plan, layers: Sequence[AtlasLayer], grid: Grid) -> bytes:
    kinds = (MapManifest, MosaicManifest, GroupsManifest, SimilarManifest)
    facts = next(found for kind in kinds if (found := _read(kind, run)) is not None)
    data: Mapping[str, Any] = {
        "layers": [layer.described() for layer in layers],
        "levels": [grid.coarsest, grid.finest],
        "box": list(grid.box),
    }
    environment = Environment(loader=PackageLoader("preproc.atlas", "."), autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("atlas.html.j2").render(
        region=plan.region.name,
        window=[day.isoformat() for day in plan.window],
        encoder=_encoder(facts),
        software=SOFTWARE,
        data=json.dumps(data).replace("<", "\\u003c"),
    )
    return text.encode()


def _encoder(facts: Provenance) -> str:
    model = facts.model
    terms = f" ({model.licence}; {model.citation})" if model.licence and model.citation else ""
    return f"{model.label}{terms}"
