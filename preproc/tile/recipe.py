"""What a tile is made from, and the fingerprint of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import Inputs, PlannedTile, sha256_json
from preproc.catalogue.scene import Scene
from preproc.reader.hrefs import is_url, portable

if TYPE_CHECKING:
    from preproc.tile.same_day import OnMissing


@dataclass(frozen=True)
class TileJob:
    """Everything that decides a tile's bytes, and where they go."""

    tile: PlannedTile
    folder: Path
    """Where the tile will stand."""
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
    inputs: Inputs
    """Fingerprint for the manifest."""
    scratch: Path | None = None
    """Where the tile is made, if not beside its place."""
    keep: Callable[[Path, PlannedTile], None] | None = None
    """Keeps something more in the folder of the finished tile; no part of what the tile is made from."""


def data_source(scenes: Sequence[Scene]) -> str:
    """The archive that all scenes belong to; "other" when they differ or there are none."""
    sources = {scene.data_source for scene in scenes}
    return sources.pop() if len(sources) == 1 else "other"


def scene_record(scene: Scene, place: Callable[[str], str]) -> dict[str, Any]:
    """What of a scene decides a tile's pixels; `place` says by what an absolute href counts."""
    copy = {} if scene.copy is None else {"copy": [scene.copy.granule, scene.copy.number]}
    return {
        "id": scene.id,
        "acquired": scene.acquired.isoformat(),
        "assets": {name: place(href) for name, href in scene.assets.items()},
        "epsg": scene.epsg,
        "orbit": scene.orbit,
        "offset": scene.offset.value,
        "data_source": scene.data_source,
        **copy,
    }


class Fingerprints:
    """Fingerprints of lists of scenes; each scene is hashed once, however many tiles it touches."""

    def __init__(self, root: Path, moved: tuple[Path, Path] | None = None) -> None:
        """Fingerprints for the run in `root`; files beside it count by their place relative to it.

        Args:
            root: the run.
            moved: see `preproc.catalogue.items.archive_moved`: files count by the place that they were planned in.
        """
        self._root, self._moved = root, moved
        self._known: dict[tuple[str, str], str] = {}
        self._lists: dict[tuple[str, ...], str] = {}

    def of(self, scenes: Sequence[Scene]) -> str:
        """SHA-256 of the scenes, whatever their order."""
        one_by_one = tuple(sorted([self._one(scene) for scene in scenes]))
        if one_by_one not in self._lists:  # neighbours mostly have the same
            self._lists[one_by_one] = sha256_json(one_by_one)
        return self._lists[one_by_one]

    def _one(self, scene: Scene) -> str:
        key = (scene.modality, scene.id)
        if key not in self._known:
            self._known[key] = sha256_json(scene_record(scene, self._place))
        return self._known[key]

    def _place(self, href: str) -> str:
        if self._moved is not None and not is_url(href) and Path(href).is_relative_to(self._moved[1]):
            href = str(self._moved[0] / Path(href).relative_to(self._moved[1]))
        return portable(href, self._root, self._root)
