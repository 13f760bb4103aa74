"""The atlas of a run: which layers there are, how they are coloured, and the page that shows them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rasterio
from jinja2 import Environment, PackageLoader, StrictUndefined

from infer.contract import (
    SOFTWARE,
    TILE_MANIFEST,
    FormatError,
    JsonObject,
    Plan,
    Run,
    SmaltiError,
    embedding_paths,
    read_json,
    sha256_json,
    write_bytes,
)
from infer.contract.explored import GroupsManifest, SimilarManifest
from infer.contract.imported import imported_tiles
from infer.contract.rasters import MapManifest, MosaicManifest, Provenance
from infer.contract.record import Record
from preproc.atlas.curves import step_of, write_curves
from preproc.atlas.pyramid import Grid, corners_of, grid_of, region_box, write_pyramid
from preproc.atlas.vectors import NUMBERS, write_short
from preproc.raster.observations import BANDS, NODATA, ORIGINS, REASONS
from preproc.run.progress import progress
from preproc.run.text import human_bytes

_VIRIDIS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
_GREYS = ("#5b2a86", "#c9b6d9", "#f4efe6")
_REASONS = ("#2e7d32", "#cfcfcf", "#ef6c00")
_ORIGINS = ("#2e7d32", "#1565c0")
_STATES = {
    "embedded": "#2e7d32",
    "imported": "#1565c0",
    "fetched, not embedded": "#ef6c00",
    "not fetched": "#c62828",
}
"""How far a tile is, and the colour of its outline."""
_MOST_SHORT_TILES = 6000
"""Of short embeddings: at half a megabyte each 3 GB before compression. Of more, the finest levels are left out."""
_FORMAT = "smalti/atlas"
_MOST_OUTLINES = 20_000
"""Tiles whose outlines and states are on the page: of more it would be too large to open."""
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

    def of_another(self, run: Run) -> AtlasLayer:
        """As a layer of a second run: beside the first one's."""
        return replace(self, key=f"other-{self.key}", title=f"{self.title}, {run.root.resolve().name}")

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
    ramp: dict[str, Any] = {"ramp": _VIRIDIS, "low": 0, "high": 60}
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


def write_atlas(run: Run, out: Path | None, *, beside: Run | None = None) -> str:
    """Write the atlas of a run into a folder of its own; an older one there is replaced.

    Args:
        run: the run directory.
        out: the folder; RUN/atlas if None.
        beside: a second run, whose layers are shown as well.

    Returns:
        One line on where it is and how to look at it.

    Raises:
        SmaltiError: if there is nothing to show, or the folder holds something else.
    """
    folder = out or run.root / "atlas"
    if folder.exists() and not _is_ours(folder) and any(folder.iterdir()):
        raise SmaltiError(f"{folder}: holds something that is no atlas: name an empty or a new folder")
    plan, layers = Plan.read(run), layers_of(run)
    tiles = list(plan.tiles)
    if beside is not None:
        layers += [layer.of_another(beside) for layer in layers_of(beside)]
        tiles += Plan.read(beside).tiles
    grid = grid_of(tiles, (plan.region.bbox[1] + plan.region.bbox[3]) / 2)
    if folder.exists():
        shutil.rmtree(folder)
    mark = json.dumps({"format": _FORMAT, "software": SOFTWARE}) + "\n"
    write_bytes(folder / MARK, mark.encode())  # first: what a killed process left may be written again
    total, work = 0, folder / ".short"
    short = write_short(run, work)
    own = grid_of(plan.tiles, (plan.region.bbox[1] + plan.region.bbox[3]) / 2, finest=grid.finest)
    own = own.within(_MOST_SHORT_TILES)
    step = None if len(plan.tiles) > _MOST_OUTLINES else step_of(plan.tiles)
    count = grid.tiles * len(layers) + (0 if short is None else own.tiles) + (0 if step is None else len(plan.tiles))
    curves: dict[str, Any] | None = None
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), progress("atlas", count, "tiles") as bar:
        shown: list[AtlasLayer] = []
        for layer in layers:

            def done(layer: AtlasLayer = layer) -> None:
                bar.advance(note=layer.title)

            size = write_pyramid(folder / layer.key, layer.rasters, [layer.band], layer.nodata, grid, done)
            if size:  # of embeddings that came without counts there are none to show
                shown.append(layer)
            total += size
        if short is not None:
            bands = list(range(1, NUMBERS + 1))
            total += write_pyramid(folder / "short", short[1], bands, 0, own, lambda: bar.advance(note="embeddings"))
            shutil.rmtree(work)
        if step is not None:
            names, size = write_curves(run, plan, folder, step, lambda: bar.advance(note="curves"))
            curves = {"step": step, "size": plan.tiles[0].size, "tiles": names} if names else None
            total += size
    vectors = None if short is None else {**short[0].described(), "levels": [own.coarsest, own.finest]}
    page = _page(run, plan, shown or layers[:1], grid, {"short": vectors, "curves": curves})
    write_bytes(folder / "index.html", page)
    whole = human_bytes(total + len(page))
    seen = len(shown) + (short is not None)
    return f"{folder}: {seen} layers, {whole}: look at it with `smalti view {folder}`, or from any web server"


def _is_ours(folder: Path) -> bool:
    """Whether a folder says that it is an atlas; other programs have files of that name."""
    try:
        content = read_json(folder / MARK, what="the mark of an atlas", remedy="")
    except FormatError:
        return False
    return isinstance(content, dict) and content.get("format") == _FORMAT


def _page(run: Run, plan: Plan, layers: Sequence[AtlasLayer], grid: Grid, parts: JsonObject) -> bytes:
    kinds = (MapManifest, MosaicManifest, GroupsManifest, SimilarManifest)
    facts = next(found for kind in kinds if (found := _read(kind, run)) is not None)
    data: JsonObject = {
        "layers": [layer.described() for layer in layers],
        "levels": [grid.coarsest, grid.finest],
        "box": list(grid.box),
        "region": list(region_box(grid, plan.region.bbox)),
        **parts,
        "tiles": _tiles(run, plan),
        "states": list(_STATES.items()),
        "days": (plan.window[1] - plan.window[0]).days + 1,
        "start": plan.window[0].isoformat(),
        "key": sha256_json([plan.region.fingerprint, plan.region.name]),
        "live": False,
    }
    environment = Environment(loader=PackageLoader("preproc.atlas", "."), autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("atlas.html.j2").render(
        region=plan.region.name,
        window=[day.isoformat() for day in plan.window],
        encoder=_encoder(facts),
        software=SOFTWARE,
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    return text.encode()


def _tiles(run: Run, plan: Plan) -> list[list[Any]]:
    """Name, state (its place in _STATES) and the corners of every tile, 0 to 1 over the world; none of very many."""
    if len(plan.tiles) > _MOST_OUTLINES:
        return []
    states, imported = list(_STATES), imported_tiles(run)

    def state(name: str) -> str:
        if embedding_paths(run.embeddings, name)[2].exists():
            return "imported" if name in imported else "embedded"
        return "fetched, not embedded" if (run.tiles / name / TILE_MANIFEST).exists() else "not fetched"

    return [[tile.name, states.index(state(tile.name)), corners_of(tile)] for tile in plan.tiles]


def _encoder(facts: Provenance) -> str:
    model = facts.model
    terms = f" ({model.licence}; {model.citation})" if model.licence and model.citation else ""
    return f"{model.label}{terms}"
