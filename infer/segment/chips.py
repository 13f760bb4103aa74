"""What each step sees: chips of embeddings around labelled pixels, a pure function of recipe, step and place in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infer.contract import FormatError, Plan, Run
from infer.contract.segment import Ground, SegmentJob, job_files, read_arrays, standardised
from infer.device import open_cores
from infer.pretrain.batches import Place

_NOISE = 0.1
"""Standard deviation of what is added to standardised embeddings: sensors and skies differ from season to season."""
_REMEDY = "run `smalti train` again"
_Drawn = tuple[NDArray[np.float32], NDArray[np.float32]]
_Each = Callable[[Callable[[int], _Drawn], range], Iterable[_Drawn]]


@dataclass(frozen=True)
class Chips:
    """Part of a step's input (B)."""

    x_bchw: torch.Tensor
    """Embeddings and where they are."""
    share_bkhw: torch.Tensor
    """1 / (labelled pixels of the chip) at the class of each labelled pixel, 0 elsewhere: unlabelled ground, and labels
    that this network must not see, say nothing."""

    def to(self, device: torch.device) -> Chips:
        """The same on a device."""
        return Chips(self.x_bchw.to(device), self.share_bkhw.to(device))


class Labels:
    """The labelled pixels that one network is trained on, and the ground around them."""

    def __init__(self, folder: Path, job: SegmentJob, name: str) -> None:
        """Read a job's labels.

        Raises:
            FormatError: if they are not what the job says.
        """
        self.recipe, self.classes = job.recipe, len(job.codes)
        names = ("scene_n", "row_n", "col_n", "class_n", "group_n", "train_mn", "mean_mc", "scale_mc")
        path = job_files(folder)[1]
        stored = dict(read_arrays(path, names, _REMEDY))
        number = job.networks.index(name)
        train_n = stored["train_mn"][number]
        order = np.flatnonzero(train_n)
        if not len(order):
            raise FormatError(f"{path}: {name} has no pixels to be trained on: {_REMEDY}")
        columns = {key: stored[key][order].astype(np.int64) for key in names[:5]}
        order = np.lexsort((columns["col_n"], columns["row_n"], columns["scene_n"]))
        self._scene_n, self._row_n, self._col_n, self._class_n, group_n = (columns[key][order] for key in names[:5])
        self.mean_c, self.scale_c = stored["mean_mc"][number], stored["scale_mc"][number]
        self._begin_s = np.searchsorted(self._scene_n, np.arange(len(job.scenes) + 1))
        pairs = np.unique(np.column_stack([self._class_n, group_n]), axis=0, return_inverse=True)
        pair_n = pairs[1].ravel()
        rows = np.argsort(pair_n, kind="stable")
        ends = np.cumsum(np.bincount(pair_n))
        self._pixels = np.split(rows, ends[:-1])
        """Rows of each pair of class and group."""
        self._pairs = [np.flatnonzero(pairs[0][:, 0] == k) for k in np.unique(pairs[0][:, 0])]
        """Pairs of each class that is trained on."""
        self._scenes = job.scenes
        self._ground: dict[str, Ground] = {}
        self._reading = threading.Lock()

    def _around(self, scene: int) -> tuple[Ground, int]:
        about = self._scenes[scene]
        with self._reading:  # all threads begin at once, and a plan may have a million tiles
            if about.run not in self._ground:
                run = Run(Path(about.run))
                self._ground[about.run] = Ground(run, Plan.read(run).tiles, checksums=False)  # `sample` verified them
            return self._ground[about.run], about.zone

    def draw(self, step: int, place: int) -> _Drawn:
        """One chip (C + 1, h, w), (K, h, w): a class, one of its groups and one of its pixels, each as likely as any
        other; somewhere in a chip, turned and mirrored."""
        rng = np.random.default_rng([self.recipe.seed, step, place])
        side = self.recipe.chip
        pairs = self._pairs[rng.integers(len(self._pairs))]
        pixels = self._pixels[pairs[rng.integers(len(pairs))]]
        pixel = int(pixels[rng.integers(len(pixels))])
        top, left = (int(v[pixel] - rng.integers(side)) for v in (self._row_n, self._col_n))
        scene = int(self._scene_n[pixel])
        ground, zone = self._around(scene)
        values = ground.window(zone, top, left, side, side)
        if values is None:
            raise FormatError(f"{self._scenes[scene].run}: has no embedding where a label is: {_REMEDY}")
        seen_hwc = standardised(values, self.mean_c, self.scale_c)
        noise = rng.normal(0, _NOISE, seen_hwc.shape[2] - 1).astype(np.float32)  # alike for a chip: a season's shift
        seen_hwc[..., :-1] += noise * seen_hwc[..., -1:]
        share_hwk = self.shares(scene, top, left)
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        return _turned(seen_hwc, turns, mirror), _turned(share_hwk, turns, mirror)

    def shares(self, scene: int, top: int, left: int) -> NDArray[np.float32]:
        """(h, w, K) of a chip: 1 / (labelled pixels in it) at the class of each."""
        side = self.recipe.chip
        begin, end = self._begin_s[scene : scene + 2]
        first, last = begin + np.searchsorted(self._row_n[begin:end], [top, top + side])
        column = self._col_n[first:last] - left
        inside = np.flatnonzero((column >= 0) & (column < side))
        result = np.zeros((side, side, self.classes), dtype=np.float32)
        result[self._row_n[first:last][inside] - top, column[inside], self._class_n[first:last][inside]] = 1 / len(
            inside
        )
        return result

    def chips(self, step: int, place: Place, each: _Each = map) -> Chips:
        """One process's share of a step; `each` draws its chips, in their order."""
        mine = self.recipe.batch // place.world
        drawn = each(partial(self.draw, step), range(place.rank * mine, (place.rank + 1) * mine))
        return Chips(*(torch.from_numpy(np.stack(parts)) for parts in zip(*drawn, strict=True)))

    def stream(self, first: int, place: Place) -> Iterator[Chips]:
        """Steps from `first` to the end; the next is drawn on all cores while one is trained on: one core draws some
        300 chips of 64 x 64 pixels a second, and a GPU waits for more."""
        with ThreadPoolExecutor(_cores()) as cores, ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.chips, first, place, cores.map)
            for step in range(first, self.recipe.steps):
                chips = coming.result()
                if step + 1 < self.recipe.steps:
                    coming = ahead.submit(self.chips, step + 1, place, cores.map)
                yield chips


def _cores() -> int:
    """Cores of this process, one of those that torchrun started on this node (it sets their OMP_NUM_THREADS to 1)."""
    return max(1, open_cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _turned(values_hwc: NDArray[Any], turns: int, mirror: bool) -> NDArray[np.float32]:
    """(C, h, w), turned by quarters."""
    values = np.rot90(values_hwc[:, ::-1] if mirror else values_hwc, turns)
    return np.ascontiguousarray(values.transpose(2, 0, 1))
