"""One tile from its scenes: the seven arrays, the region mask, the quality summary and the manifest.

Memory: one byte a pixel and kept date for the mosaics, the reads in flight, and one date of bands: for a tile of 512
pixels and 200 dates with 8 workers about 0.2 GB, whatever the number of dates is streamed to disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from infer.contract import (
    BANDS,
    MASK_POLARITY,
    ROI_FILE,
    SAR_BANDS,
    TILE_ARRAYS,
    TILE_MANIFEST,
    PlannedTile,
    atomic_dir,
    sha256_json,
    write_manifest,
)
from preproc.archive.placement import Target
from preproc.archive.scene import Scene
from preproc.tile.mosaic import Observation, bounding_box, missing_assets, observations
from preproc.tile.quality import QualityCounter, write_quality
from preproc.tile.record import STACKS, OnMissing, StackName, StackRecord, dates_of
from preproc.tile.sentinel1 import read_orbit
from preproc.tile.sentinel2 import ReadsRasters, Workplace, read_bands, read_covers
from preproc.tile.writer import StackWriter, write_doys, write_roi

_Pixel = TypeVar("_Pixel", bound=np.generic)


@dataclass(frozen=True)
class TileJob:
    """Everything that a tile is made from."""

    tile: PlannedTile
    inside_hw: NDArray[np.uint8]
    """(H, W) region mask, 1 inside."""
    scenes: Sequence[Scene]
    """All that may touch the tile, both sensors, any order."""
    window: tuple[str, str]
    """First and last day, ISO."""
    min_clear: float
    on_missing: OnMissing
    source: str
    """[archive] source."""
    inputs: Mapping[str, Any]
    """Fingerprint for the manifest."""


def scene_record(scene: Scene) -> dict[str, Any]:
    """What of a scene decides a tile's pixels, for fingerprints."""
    return {
        "id": scene.id,
        "acquired": scene.acquired.isoformat(),
        "assets": dict(scene.assets),
        "epsg": scene.epsg,
        "orbit": scene.orbit,
        "offset": scene.offset.value,
        "data_source": scene.data_source,
    }


class Fingerprints:
    """Fingerprints of lists of scenes; each scene is hashed once, however many tiles it touches."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}

    def of(self, scenes: Sequence[Scene]) -> str:
        """SHA-256 of the scenes, whatever their order."""
        return sha256_json(sorted(self._one(scene) for scene in scenes))

    def _one(self, scene: Scene) -> str:
        key = (scene.modality, scene.id)
        if key not in self._known:
            self._known[key] = sha256_json(scene_record(scene))
        return self._known[key]


def build_tile(job: TileJob, reader: ReadsRasters, pool: ThreadPoolExecutor, workers: int, folder: Path) -> None:
    """Make one tile folder, atomically; the same bytes whatever the number of workers.

    Args:
        job: what to make.
        reader: safe for threads.
        pool: where reads run.
        workers: its threads; twice as many reads are begun or waiting to be used.
        folder: the tile's final folder.

    Raises:
        MissingDataError: if a file is missing for good and the policy is "fail"; nothing is written then.
        UnreachableError: if a server does not answer.
        SmaltiError: if the file system refuses.
    """
    with atomic_dir(folder) as temporary:
        _Builder(job, reader, pool, workers, temporary).run()


class _Builder:
    def __init__(
        self, job: TileJob, reader: ReadsRasters, pool: ThreadPoolExecutor, workers: int, folder: Path
    ) -> None:
        self.job, self.folder = job, folder
        size = job.tile.size
        self.shape_hw = (size, size)
        box = bounding_box(job.inside_hw)
        # Without a pixel of the region nothing is read, and one pixel of window costs nothing.
        self.box = box if box is not None else (slice(0, 1), slice(0, 1))
        rows, columns = self.box
        pixel = int(job.tile.transform[0])
        self.work = Workplace(
            tile=job.tile.name,
            target=Target(
                job.tile.epsg,
                job.tile.west + pixel * columns.start,
                job.tile.north - pixel * rows.start,
                rows.stop - rows.start,
                columns.stop - columns.start,
            ),
            inside_hw=job.inside_hw[self.box] > 0,
            reader=reader,
            pool=pool,
            ahead=2 * workers,
            min_clear=job.min_clear,
            on_missing=job.on_missing,
        )
        self.left_out = [
            {"item": scene.id, "reason": f"the item has no asset {', '.join(missing_assets(scene))}"}
            for scene in sorted(job.scenes, key=lambda scene: (scene.acquired, scene.id))
            if missing_assets(scene)
        ]
        usable = [scene for scene in job.scenes if not missing_assets(scene)] if box is not None else []
        self.usable = usable
        self.records: dict[StackName, StackRecord] = {name: StackRecord(name) for name in STACKS}
        self.quality = QualityCounter(self.shape_hw)

    def run(self) -> None:
        self._sentinel2()
        self._sentinel1("s1_ascending", "ascending", "sar_asc")
        self._sentinel1("s1_descending", "descending", "sar_desc")
        write_roi(self.folder / ROI_FILE, self.job.tile, self.job.inside_hw)
        write_quality(self.folder, self.quality, self.job.inside_hw, self.records, self.job.window)
        files = [path for path in self.folder.iterdir() if path.name != TILE_MANIFEST]
        write_manifest(self.folder / TILE_MANIFEST, "tile", inputs=self.job.inputs, files=files, fields=self._fields())

    def _whole(self, values: NDArray[_Pixel]) -> NDArray[_Pixel]:
        """The window's values on the whole tile, 0 elsewhere."""
        if values.shape[:2] == self.shape_hw:
            return values
        whole = np.zeros((*self.shape_hw, *values.shape[2:]), values.dtype)
        whole[self.box] = values
        return whole

    def _stack(self, name: str) -> StackWriter:
        spec = TILE_ARRAYS[name]
        tail = (*self.shape_hw, *({"b": len(BANDS), "p": len(SAR_BANDS)}[axis] for axis in spec.axes[3:]))
        return StackWriter(self.folder / spec.file, spec.dtype, tail)

    def _doys(self, name: str, record: StackRecord) -> None:
        spec = TILE_ARRAYS[name]
        write_doys(self.folder / spec.file, [day.timetuple().tm_yday for day in record.kept], spec.dtype)

    def _sentinel2(self) -> None:
        record = self.records["s2"]
        scenes = [scene for scene in self.usable if scene.modality == "s2"]
        covers = read_covers(self.work, observations(scenes, self.job.tile.epsg), record)
        with self._stack("bands_thwb") as bands, self._stack("masks_thw") as masks:

            def write(_: Observation, bands_hwb: NDArray[np.uint16], mask_hw: NDArray[np.uint8]) -> None:
                mask = self._whole(mask_hw)
                bands.append(self._whole(bands_hwb))
                masks.append(mask)
                self.quality.add("s2", mask)

            read_bands(self.work, covers, record, write)
        record.dropped.sort(key=lambda entry: str(entry["date"]))
        self._doys("doys_t", record)

    def _sentinel1(
        self, stack: StackName, orbit: Literal["ascending", "descending"], array: Literal["sar_asc", "sar_desc"]
    ) -> None:
        record = self.records[stack]
        scenes = [scene for scene in self.usable if scene.modality == "s1" and scene.orbit == orbit]
        with self._stack(f"{array}_thwp") as values:

            def write(_: Observation, values_hwp: NDArray[np.int16]) -> None:
                whole = self._whole(values_hwp)
                values.append(whole)
                self.quality.add(stack, (whole != 0).max(axis=-1).astype(np.uint8))

            read_orbit(self.work, observations(scenes, self.job.tile.epsg), record, write)
        self._doys(f"{array}_doys_t", record)

    def _fields(self) -> dict[str, Any]:
        job, tile = self.job, self.job.tile
        policies: dict[str, list[str]] = {}
        for scene in sorted(self.usable, key=lambda scene: scene.id):
            if scene.modality == "s2":
                policies.setdefault(scene.offset.value, []).append(scene.id)
        return {
            "grid": {
                "crs": f"EPSG:{tile.epsg}",
                "transform": list(tile.transform),
                "height": tile.size,
                "width": tile.size,
            },
            "band_order": list(BANDS),
            "sar_band_order": list(SAR_BANDS),
            "mask_polarity": MASK_POLARITY,
            "window": {"start": job.window[0], "end": job.window[1]},
            "source": job.source,
            "data_source": data_source(job.scenes),
            "offset_policy": policies,
            "dates": dates_of(self.records),
            "items": {
                name: {day.isoformat(): ids for day, ids in record.items.items()}
                for name, record in self.records.items()
            },
            "dropped": {name: record.dropped for name, record in self.records.items()},
            "failed": {name: record.failed for name, record in self.records.items()},
            "left_out": self.left_out,
            "min_clear": job.min_clear,
            "on_missing": job.on_missing,
            "region_pixels": int(np.count_nonzero(job.inside_hw)),
        }


def data_source(scenes: Sequence[Scene]) -> str:
    """The archive that all scenes belong to; "other" when they differ or there are none."""
    sources = {scene.data_source for scene in scenes}
    return sources.pop() if len(sources) == 1 else "other"
