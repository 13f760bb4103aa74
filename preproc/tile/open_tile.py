"""One tile while it is made: its window, its files in a temporary folder, and what is known of its dates."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from infer.contract import (
    BANDS,
    MASK_POLARITY,
    PIXEL_SIZE,
    ROI_FILE,
    SAR_BANDS,
    TILE_ARRAYS,
    TILE_MANIFEST,
    SmaltiError,
    staged_dir,
)
from infer.contract.provenance import TileGrid, Window
from infer.contract.tile import LeftOutItem, TileManifest
from preproc.catalogue.scene import OffsetPolicy
from preproc.reader.placement import Target
from preproc.reader.ranges import MissingDataError
from preproc.tile.quality import QualityCounter, write_quality
from preproc.tile.recipe import TileJob, data_source
from preproc.tile.same_day import (
    STACKS,
    FailedRead,
    Observation,
    StackName,
    StackRecord,
    bounding_box,
    missing_assets,
    observations,
)
from preproc.tile.writer import StackWriter, write_doys, write_roi

_Pixel = TypeVar("_Pixel", bound=np.generic)

_ARRAYS: dict[StackName, tuple[str, ...]] = {
    "s2": ("bands_thwb", "masks_thw"),
    "s1_ascending": ("sar_asc_thwp",),
    "s1_descending": ("sar_desc_thwp",),
}
BY_PIXELS = "clear pixels"
"""In a manifest's `offset_basis`: what the catalogue says was checked with, or overruled by, the scene itself."""
_DOYS: dict[StackName, str] = {"s2": "doys_t", "s1_ascending": "sar_asc_doys_t", "s1_descending": "sar_desc_doys_t"}


class OpenTile:
    """A tile under construction; used by one thread.

    After an error it takes no more part (`alive` is False) and leaves nothing behind.
    """

    def __init__(self, job: TileJob) -> None:
        self.job = job
        self.name = job.tile.name
        self.epsg = job.tile.epsg
        self.error: SmaltiError | None = None
        size = job.tile.size
        self._shape_hw = (size, size)
        box = bounding_box(job.inside_hw)
        # Without a pixel of the region no scene is used, and one pixel of window costs nothing.
        self._box = box if box is not None else (slice(0, 1), slice(0, 1))
        rows, columns = self._box
        self.target = Target(
            job.tile.epsg,
            job.tile.west + PIXEL_SIZE * columns.start,
            job.tile.north - PIXEL_SIZE * rows.start,
            rows.stop - rows.start,
            columns.stop - columns.start,
        )
        """Smallest window that holds the region's pixels."""
        self.inside_hw: NDArray[np.bool_] = job.inside_hw[self._box] > 0
        """The region's pixels in that window."""
        self.region_pixels = int(np.count_nonzero(job.inside_hw))
        self.usable = [scene for scene in job.scenes if not missing_assets(scene)] if box is not None else []
        self.records: dict[StackName, StackRecord] = {name: StackRecord(name) for name in STACKS}
        self.offset_by_pixels: dict[str, OffsetPolicy] = {}
        """Scene -> what its pixels in this tile say, where the catalogue is not relied on."""
        self._quality = QualityCounter(self._shape_hw)
        self._stack = ExitStack()
        self._folder = Path()
        self._writers: dict[str, StackWriter] = {}

    @property
    def alive(self) -> bool:
        """Whether nothing has gone wrong so far."""
        return self.error is None

    def begin(self) -> None:
        """Make the temporary folder and start the files."""
        try:
            self._folder = self._stack.enter_context(staged_dir(self.job.folder, self.job.scratch))
            for names in _ARRAYS.values():
                for name in names:
                    spec = TILE_ARRAYS[name]
                    tail = (*self._shape_hw, *({"b": len(BANDS), "p": len(SAR_BANDS)}[a] for a in spec.axes[3:]))
                    writer = StackWriter(self._folder / spec.file, spec.dtype, tail)
                    self._writers[name] = self._stack.enter_context(writer)
        except SmaltiError as error:
            self.abandon(error)

    def observations(self, stack: StackName) -> list[Observation]:
        """The dates of a stack, ascending."""
        if stack == "s2":
            scenes = [scene for scene in self.usable if scene.modality == "s2"]
        else:
            orbit = stack.removeprefix("s1_")
            scenes = [scene for scene in self.usable if scene.modality == "s1" and scene.orbit == orbit]
        return observations(scenes, self.job.tile.epsg)

    def add(self, stack: StackName, observation: Observation, numbers: list[int], *arrays: NDArray[Any]) -> None:
        """Append one date: bands and mask, or VV and VH, on the window.

        Args:
            stack: which.
            observation: the date.
            numbers: of the scenes that give pixels, from 1.
            arrays: (h, w, 10) uint16 and (h, w) uint8, or (h, w, 2) int16.
        """
        try:
            for name, values in zip(_ARRAYS[stack], arrays, strict=True):
                self._writers[name].append(self._whole(values))
        except SmaltiError as error:
            self.abandon(error)
            return
        last = arrays[-1]
        has_value = last if stack == "s2" else ((last[..., 0] != 0) | (last[..., 1] != 0)).astype(np.uint8)
        self._quality.add(stack, self._whole(has_value))
        self.records[stack].keep(observation, numbers)

    def fail(self, stack: StackName, observation: Observation, failure: FailedRead) -> None:
        """A read failed: the policy decides whether the date or the tile is given up."""
        try:
            self.records[stack].fail(observation, failure, self.job.on_missing)
        except SmaltiError as error:
            self.abandon(error)

    def abandon(self, error: SmaltiError) -> None:
        """Give the tile up and remove what was written."""
        self.error = error
        self._stack.__exit__(type(error), error, error.__traceback__)

    def _check_sensors(self) -> None:
        """Make sure that leaving dates out ("drop-date") has not left a sensor out.

        Raises:
            MissingDataError: if files that cannot be read are why there is not one date of Sentinel-2, or of radar.
        """
        for sensor, names in (("Sentinel-2", STACKS[:1]), ("Sentinel-1", STACKS[1:])):
            records = [self.records[name] for name in names]
            failed = [entry for record in records for entry in record.failed]
            if failed and not any(record.kept for record in records):
                first = failed[0]
                raise MissingDataError(
                    f'no {sensor} date is left: on_missing = "drop-date" left out {len(failed)} whose files cannot be '
                    f"read, the first {first.date}, item {first.item}, asset {first.asset}: {first.reason}"
                )

    def finish(self) -> None:
        """Complete the files, write the manifest and put the folder in its place."""
        if not self.alive:
            return
        try:
            self._check_sensors()
            for name in STACKS:
                spec = TILE_ARRAYS[_DOYS[name]]
                days = [day.timetuple().tm_yday for day in self.records[name].kept]
                write_doys(self._folder / spec.file, days, spec.dtype)
            for writer in self._writers.values():
                writer.close()
            write_roi(self._folder / ROI_FILE, self.job.tile, self.job.inside_hw)
            gone = sorted(name for name, policy in self.offset_by_pixels.items() if policy is OffsetPolicy.NONE)
            write_quality(self._folder, self._quality, self.job.inside_hw, self.records, self.job.window, gone)
            files = [path for path in self._folder.iterdir() if path.name != TILE_MANIFEST]
            manifest = self._folder / TILE_MANIFEST
            self._about().write(manifest, inputs=self.job.inputs, files=files)
            if self.job.keep is not None:
                self.job.keep(self._folder, self.job.tile)
            self._stack.close()
        except SmaltiError as error:
            self.abandon(error)

    def discard(self) -> None:
        """Remove what was written, if the tile was not finished (an interrupt, a bug)."""
        self._stack.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    def _whole(self, values: NDArray[_Pixel]) -> NDArray[_Pixel]:
        """The window's values on the whole tile, 0 elsewhere."""
        if values.shape[:2] == self._shape_hw:
            return values
        whole = np.zeros((*self._shape_hw, *values.shape[2:]), values.dtype)
        whole[self._box] = values
        return whole

    def _about(self) -> TileManifest:
        job, tile = self.job, self.job.tile
        policies: dict[str, list[str]] = {}
        bases: dict[str, list[str]] = {}
        for scene in sorted(self.usable, key=lambda scene: scene.id):
            if scene.modality == "s2":
                policies.setdefault(self.offset_by_pixels.get(scene.id, scene.offset).value, []).append(scene.id)
                by_pixels = scene.id in self.offset_by_pixels
                basis = BY_PIXELS if by_pixels else scene.offset_basis
                bases.setdefault(str(basis), []).append(scene.id)
        left_out = sorted((scene.acquired, scene.id, missing_assets(scene)) for scene in job.scenes)
        records = self.records
        return TileManifest(
            grid=TileGrid(f"EPSG:{tile.epsg}", tile.transform, tile.size, tile.size),
            band_order=BANDS,
            sar_band_order=SAR_BANDS,
            mask_polarity=MASK_POLARITY,
            window=Window(*map(date.fromisoformat, job.window)),
            source=job.source,
            data_source=data_source(job.scenes),
            offset_policy={policy: tuple(ids) for policy, ids in policies.items()},
            offset_basis={basis: tuple(ids) for basis, ids in bases.items()},
            dates={name: tuple(record.kept) for name, record in records.items()},
            items={
                name: {day.isoformat(): tuple(ids) for day, ids in record.items.items()}
                for name, record in records.items()
            },
            dropped={name: tuple(record.dropped) for name, record in records.items()},
            failed={name: tuple(record.failed) for name, record in records.items()},
            left_out=tuple(
                LeftOutItem(item, f"the item has no asset {', '.join(missing)}")
                for _, item, missing in left_out
                if missing
            ),
            min_clear=job.min_clear,
            on_missing=job.on_missing,
            region_pixels=self.region_pixels,
        )
