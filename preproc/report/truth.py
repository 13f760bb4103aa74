"""The class map against the truth, pixel by pixel, where that is known: a simulated archive has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from infer.contract import FormatError, Run, child, read_json, sha256_file
from infer.contract.rasters import MapManifest

LEGEND = "legend.json"
"""Beside the truth: a list of {"code": 1..255, "crop": name}."""
_CODES = 256
_REMEDY = "correct [report] truth, or leave it out"


@dataclass(frozen=True)
class TrueClass:
    """What became of the pixels that truly are of one class."""

    name: str
    pixels: int
    """Truly of this class, and mapped as anything."""
    mapped: int
    """Mapped as this class, whatever they are."""
    right: int
    taught: bool
    """The labels have enough of the class for the map to show it."""
    taken_for: str | None
    """The other class that most of them were given."""
    taken: int
    """How many were."""

    @property
    def recall(self) -> float:
        """Share of what is so that was found (producer's accuracy)."""
        return self.right / self.pixels

    @property
    def precision(self) -> float | None:
        """Share of what was called so that is so (user's accuracy)."""
        return self.right / self.mapped if self.mapped else None


@dataclass(frozen=True)
class Truth:
    """The comparison; pixels outside the map or the truth do not count."""

    classes: tuple[TrueClass, ...]
    """Those that occur in the truth, the largest first."""

    @property
    def pixels(self) -> int:
        """Compared."""
        return sum(each.pixels for each in self.classes)

    @property
    def overall(self) -> float:
        """Share of them that is right."""
        return sum(each.right for each in self.classes) / self.pixels

    @property
    def taught_pixels(self) -> int:
        """Of a class that the labels taught."""
        return sum(each.pixels for each in self.classes if each.taught)

    @property
    def taught_overall(self) -> float | None:
        """Share of these that is right."""
        right = sum(each.right for each in self.classes if each.taught)
        return right / self.taught_pixels if self.taught_pixels else None


def truth_fingerprint(truth: Path) -> dict[str, str]:
    """SHA-256 of the truth and of its legend.

    Raises:
        FormatError: if one of them is missing or cannot be read.
    """
    digests = {}
    for name, path in (("truth", truth), ("legend", truth.with_name(LEGEND))):
        try:
            digests[name] = sha256_file(path)
        except OSError as error:
            raise FormatError(f"{path}: cannot be read ({error.strerror}): {_REMEDY}") from error
    return digests


def compare(run: Run, made: MapManifest, truth: Path) -> Truth:
    """Compare the class map with the truth, a block at a time.

    Args:
        run: the run, whose map is there.
        made: map.json.
        truth: raster of codes, 0 where nothing is known, in any CRS; its legend lies beside it.

    Raises:
        FormatError: if the truth or its legend cannot be read, a code has no name, or nothing of the map is known.
    """
    counts = np.zeros((_CODES, _CODES), dtype=np.int64)
    for _, zone in sorted(made.zones.items()):
        counts += _counted(child(run.map, zone.classes), truth)
    counts[0, :] = counts[:, 0] = 0
    if not counts.any():
        raise FormatError(f"{truth}: nothing of the map lies where it has a class: {_REMEDY}")
    legend = truth.with_name(LEGEND)
    names = _names(legend)
    unnamed = [code for code in np.flatnonzero(counts.sum(axis=0)).tolist() if code not in names]
    if unnamed:
        raise FormatError(f"{legend}: no name for code {unnamed[0]} of {truth.name}: {_REMEDY}")
    return summed_up(counts, {entry.code: entry.name for entry in made.classes}, names)


def summed_up(counts_mt: NDArray[np.int64], mapped: Mapping[int, str], true: Mapping[int, str]) -> Truth:
    """Figures by class; classes of the map and of the truth are the same where their names are. Pure.

    Args:
        counts_mt: (M, T) pixels by mapped code and true code; row and column 0 are empty.
        mapped: code -> name of the map's classes.
        true: code -> name of the truth's.
    """
    codes = {name: code for code, name in mapped.items()}
    found = []
    for code in np.flatnonzero(counts_mt.sum(axis=0)).tolist():
        name = true[code]
        own = codes.get(name, 0)  # row 0 is empty
        others = counts_mt[:, code].copy()
        right, others[own] = int(others[own]), 0
        most = int(others.argmax())
        found.append(
            TrueClass(
                name=name,
                pixels=int(counts_mt[:, code].sum()),
                mapped=int(counts_mt[own].sum()),
                right=right,
                taught=name in codes,
                taken_for=mapped[most] if others[most] else None,
                taken=int(others[most]),
            )
        )
    return Truth(tuple(sorted(found, key=lambda each: (-each.pixels, each.name))))


def _counted(classes: Path, truth: Path) -> NDArray[np.int64]:
    """(M, T) pixels of one zone by mapped code and true code."""
    counts = np.zeros(_CODES * _CODES, dtype=np.int64)
    try:
        with rasterio.open(classes) as mapped, rasterio.open(truth) as source:
            if source.crs is None or source.dtypes[0] != "uint8":
                raise FormatError(f"{truth}: not a map of codes 0..255 with a coordinate system: {_REMEDY}")
            grid = {"crs": mapped.crs, "transform": mapped.transform, "width": mapped.width, "height": mapped.height}
            with WarpedVRT(source, resampling=Resampling.nearest, nodata=0, **grid) as true:
                for _, window in mapped.block_windows(1):
                    pairs = mapped.read(1, window=window).astype(np.int64) * _CODES + true.read(1, window=window)
                    counts += np.bincount(pairs.ravel(), minlength=counts.size)
    except RasterioError as error:
        raise FormatError(f"{truth}: cannot be compared with {classes}: {error}: {_REMEDY}") from error
    return counts.reshape(_CODES, _CODES)


def _names(path: Path) -> dict[int, str]:
    content = read_json(path, what="the legend of the truth", remedy=_REMEDY)
    try:
        return {int(entry["code"]): str(entry["crop"]) for entry in content}
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f'{path}: not a list of {{"code": number, "crop": name}}: {_REMEDY}') from error
