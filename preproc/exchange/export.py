"""`smalti export`: the embeddings of a run for other programs, in a folder or an object store."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infer.contract import (
    EXIT_FAILED,
    FormatError,
    Inputs,
    JsonObject,
    PlannedTile,
    Run,
    SmaltiError,
    planned_tiles,
    sha256_file,
)
from infer.contract.atomic import json_bytes
from infer.contract.embedding import EmbeddingManifest
from infer.contract.provenance import Encoder
from infer.contract.rasters import MosaicManifest, MosaicSheet
from infer.contract.record import to_json
from preproc.exchange.npy_tiles import CellExport, cells_with_tiles, dataset_of, tables, tiff_tags
from preproc.exchange.points import Chosen, given, lattice, write_points
from preproc.mirror.store import Store, open_store
from preproc.mosaic.sheet import PREVIEWS
from preproc.raster.provenance import RunProvenance, missing_lines, read_provenance
from preproc.raster.vrt import INDEX
from preproc.region.vector import fingerprint
from preproc.run.progress import progress, say

Kind = Literal["zarr", "geotessera", "cog", "geoparquet", "stac", "torchgeo"]
CARD = "smalti-export.json"
"""At the root of a target: what it holds. Embeddings of another model are refused there."""
_CALLED = {"dim": "length", "window": "season"} | dict.fromkeys(("every", "points", "id", "layer"), "choice of points")
"""Fields of the card whose names say little."""
_CALLED_BEFORE = {"mosaic": "stac", "geotiff": "torchgeo"}
"""Kinds in cards of earlier versions."""
_COGS = (".tif", ".vrt", INDEX)
"""Endings of the mosaic's GeoTIFFs and of what joins those of a zone."""
_DONE = ".smalti"
"""Folder of the target with a small file a finished unit, so that an export goes on where it stopped."""


@dataclass(frozen=True)
class ExportUnit:
    """The smallest part of an export that is there or not."""

    name: str
    inputs: Inputs
    """What its files are made from."""
    write: Callable[[Path], None]
    """Writes its files under a folder, where they will be in the target."""


@dataclass(frozen=True)
class PointsWanted:
    """Which pixels become points."""

    every: int = 10
    """Every so many-th pixel in both directions."""
    path: Path | None = None
    """A file of points instead: the pixel under each."""
    name: str | None = None
    """Attribute of the file that names a point."""
    layer: str | None = None
    """Of the file."""

    def stated(self) -> dict[str, Any]:
        """For the target's card."""
        if self.path is None:
            return {"every": self.every}
        return {"points": fingerprint(self.path, section="--points"), "id": self.name, "layer": self.layer}


def export(
    run: Run, target: str, kind: Kind, *, points: PointsWanted | None = None, gaps: bool = False, force: bool = False
) -> str:
    """Export the embeddings of a run.

    Args:
        run: the run directory.
        target: a folder, or the address of one in an object store.
        kind: of the mosaic "zarr" (its store), "cog" (its GeoTIFFs) or "stac" (all of it: the collection, its items and
            what they name); of the embeddings "geotessera" (npy tiles of 0.1 degree), "torchgeo" (the same as float32
            GeoTIFFs) or "geoparquet" (points).
        points: for "geoparquet", which.
        gaps: tiles without an embedding are left out, and named in the target's card: [stitch] missing = "nodata".
        force: write again what is there.

    Returns:
        One line on what was done.

    Raises:
        SmaltiError: if the target holds other embeddings, or units failed; the others are there.
    """
    if points is not None and points.path is not None and kind != "geoparquet":
        raise SmaltiError(f"--points: points are written --as geoparquet, not --as {kind}")
    if points is not None and points.path is None and (points.name or points.layer):
        raise SmaltiError("--id, --layer: say something about a file of points: name it with --points")
    wanted = points or PointsWanted()
    if wanted.path is not None and not wanted.path.exists():
        raise SmaltiError(f"{wanted.path}: no such file: --points names it")
    store = open_store(target)
    if kind in ("zarr", "cog", "stac"):  # what it states counts: embeddings may have changed, or be missing, since
        made = MosaicManifest.read(run).verify(run, checksums=False)
        missing = made.missing
        card = _card(made.model, made.dim, [made.window.start.isoformat(), made.window.end.isoformat()], kind)
        units = list(_mosaic_units(run, made, kind))
    else:
        facts = read_provenance(run, gaps=gaps)
        missing = facts.missing
        card = _card(facts.encoder, facts.dim, facts.window, kind)
        card |= wanted.stated() if kind == "geoparquet" else {}
        units = list(_units(run, facts, kind, wanted))
    _claim(store, card, missing)
    written, failed = 0, {}
    with progress("export", len(units), "parts") as bar:
        for unit in units:
            try:
                written += _bring(store, unit, force=force)
            except SmaltiError as error:
                failed[unit.name] = str(error)
                say(f"export: {unit.name} failed: {error}")
            bar.advance(note=unit.name)
    if failed:
        lines = [f"  {name}: {reason}" for name, reason in failed.items()]
        text = "\n".join([f"export: {len(failed)} of {len(units)} parts failed; the others are there:", *lines])
        raise SmaltiError(text, exit_code=EXIT_FAILED)
    if kind == "geotessera":
        _index(store, units, facts)
    there = len(units) - written
    for line in missing_lines("export", run, missing):
        say(line)
    return f"export: {written} parts written to {store.address}{f', {there} were there' if there else ''}"


def _card(encoder: Encoder, dim: int, window: Sequence[str], kind: Kind) -> dict[str, Any]:
    return {
        "format": "smalti/export",
        "format_version": 1,
        "kind": kind,
        "model": to_json(encoder),
        "dim": dim,
        "window": list(window),
    }


def _claim(store: Store, card: JsonObject, missing: Sequence[str]) -> None:
    """Write the card, or compare it with the one that is there; the tiles that are missing may be others by now.

    Raises:
        SmaltiError: if it is of another model, season or kind.
    """
    content, written = store.read(CARD), json_bytes({**card, "missing": list(missing)} if missing else card)
    if content is None:
        store.put_bytes(CARD, written)
        return
    try:
        there = json.loads(content)
        there["kind"] = _CALLED_BEFORE.get(there["kind"], there["kind"])
        differing = sorted(key for key in {*card, *there} - {"missing"} if card.get(key) != there.get(key))
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{store.address}/{CARD}: cannot be read ({error}): name another target") from error
    if differing:
        told = ", ".join(dict.fromkeys(_CALLED.get(key, key) for key in differing))
        raise SmaltiError(f"{store.address}: holds an export of another {told}: they do not mix; name another target")
    if content != written:
        store.put_bytes(CARD, written)


def _units(run: Run, facts: RunProvenance, kind: Kind, wanted: PointsWanted) -> Iterator[ExportUnit]:
    planned = planned_tiles(run)
    tiles = facts.present(planned)
    digests = {tile.name: _digest(run, tile) for tile in tiles}
    if kind == "geoparquet":
        if wanted.path is not None:
            found = given(run, planned, wanted.path, missing=facts.missing, name=wanted.name, layer=wanted.layer)
            for tile, chosen in found.items():
                made_of = {"embedding": digests[tile.name], "points": chosen.fingerprint()}
                yield ExportUnit(tile.name, made_of, _points_writer(run, facts, tile, chosen))
            return
        for tile in tiles:
            inputs = {"embedding": digests[tile.name], "every": wanted.every}
            yield ExportUnit(tile.name, inputs, _points_writer(run, facts, tile, wanted.every))
        return
    if not facts.int8 or facts.dim != 128:
        raise SmaltiError(
            f"{run.config}: geotessera's tiles are made of int8 codes of 128 numbers, the run has {facts.dim} as "
            f"{'int8' if facts.int8 else 'float32'}: set [model] output and dim to that, or export as something else"
        )
    for cell, near in cells_with_tiles(tiles).items():
        tags = tiff_tags(facts, _year(facts)) if kind == "torchgeo" else None
        made = CellExport(run, cell, tuple(near), _year(facts), tags)
        yield ExportUnit(cell.name, {"embeddings": [digests[tile.name] for tile in near]}, made.write)


def _points_writer(run: Run, facts: RunProvenance, tile: PlannedTile, wanted: Chosen | int) -> Callable[[Path], None]:
    """Of given points, or of every so many-th pixel."""

    def write(folder: Path) -> None:
        chosen = lattice(tile, wanted) if isinstance(wanted, int) else wanted
        write_points(folder / f"{tile.name}.parquet", run, facts, tile, chosen)

    return write


def _mosaic_units(run: Run, made: MosaicManifest, kind: Kind) -> Iterator[ExportUnit]:
    """The files of the mosaic as they are, all or those of one format; what describes the others comes last."""
    missing = {"zarr": made.store is None, "cog": all(zone.raster is None for zone in made.zones.values())}
    if missing.get(kind):
        raise SmaltiError(
            f'{run.mosaic}: has no {kind}: add "{kind}" to [stitch] formats in run.toml and run `smalti stitch` again'
        )
    manifests = sorted({name for zone in made.zones.values() for name in zone.sheets.values()})
    files: dict[str, str] = {}
    for name in manifests:
        sheet = MosaicSheet.read_file(run.mosaic / name, run)
        files.update(
            {file: record["sha256"] for file, record in sheet.files.items() if not file.startswith(f"{PREVIEWS}/")}
        )
    files.update({file: record["sha256"] for file, record in made.files.items()})
    if kind == "stac":
        files.update({name: sha256_file(run.mosaic / name) for name in [*manifests, run.mosaic_manifest.name]})
    for name, digest in files.items():
        if kind == "stac" or (kind == "cog" and name.endswith(_COGS)):
            yield ExportUnit(name, {"sha256": digest}, _copier(run.mosaic, name, name))
        elif kind == "zarr" and name.startswith(f"{made.store}/"):
            yield ExportUnit(name, {"sha256": digest}, _copier(run.mosaic, name, name.partition("/")[2]))


def _copier(source: Path, name: str, key: str) -> Callable[[Path], None]:
    def copy(folder: Path) -> None:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / key)

    return copy


def _digest(run: Run, tile: PlannedTile) -> str:
    return EmbeddingManifest.of_tile(run.embeddings, tile.name).files_fingerprint


def _bring(store: Store, unit: ExportUnit, *, force: bool) -> bool:
    """Write a unit's files unless they are there; whether that was to be done. Its mark is written last."""
    mark = f"{_DONE}/{unit.name}.json"
    if not force and _is_there(store, mark, unit):
        return False
    with _room() as folder:
        unit.write(folder)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        for key, path in files.items():
            store.put(key, path)
        sizes = {key: path.stat().st_size for key, path in files.items()}
        store.put_bytes(mark, json_bytes({"inputs": dict(unit.inputs), "files": sizes}))
    return True


def _is_there(store: Store, mark: str, unit: ExportUnit) -> bool:
    content = store.read(mark)
    if content is None:
        return False
    try:
        there = json.loads(content)
        files = dict(there["files"])
        same = there["inputs"] == dict(unit.inputs)
    except (ValueError, TypeError, KeyError):
        return False
    return same and all(store.size(key) == size for key, size in files.items())


@contextmanager
def _room() -> Iterator[Path]:
    """A folder for one unit's files on their way."""
    with tempfile.TemporaryDirectory(prefix="smalti-export-") as name:
        yield Path(name)


def _index(store: Store, units: Sequence[ExportUnit], facts: RunProvenance) -> None:
    """The tables and the note by which geotessera finds its tiles without a network."""
    sizes: dict[str, dict[str, int]] = {}
    for unit in units:
        content = store.read(f"{_DONE}/{unit.name}.json")
        if content is not None:
            sizes[unit.name] = json.loads(content)["files"]
    for name, table in tables(sizes, _year(facts)).items():
        store.put_bytes(name, table)
    store.put_bytes("tessera_metadata.json", json_bytes(dataset_of(facts)))


def _year(facts: RunProvenance) -> int:
    """The year of the season's last day: under it geotessera's layout has a season."""
    return int(facts.window[1][:4])
