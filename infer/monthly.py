"""Engines that start from monthly composites: the family `monthly`, which is those, and networks over them.

Composites are made on the host, also where there is an accelerator: sorting a few numbers a month takes less time than
reading them, and so they are the same everywhere, to the bit those that the venv side takes of labelled pixels.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from infer.contract import EXIT_FAILED, FormatError, SmaltiError, Tile
from infer.contract.embedding import MOST_OBSERVED
from infer.contract.monthly import MONTHLY_DIM, MONTHS, monthly_composites, season_start
from infer.device import Device, allotted_cores, choose_device, is_out_of_memory
from infer.due import Output
from infer.engine import TileResult, release_memory
from infer.location import unit_vectors
from infer.model.months import MonthsNetwork
from infer.prepare import LoadedTile
from infer.tilework import InterruptedTileError, Product, Watch, check_finite
from infer.weights import Checkpoint
from infer.workers import Workers

_OBSERVATIONS = 1 << 20
"""Of a block of pixels: some tens of megabytes while they are sorted."""
_BLOCK_PIXELS = 4096
"""Of a block that a network embeds: enough that pixels with the same months fill batches."""
_CPU_TOKENS = 4096
"""Of a batch on a CPU: some fifty pixels."""
_SMALLEST_BATCH = 8
"""Pixels, before memory is said not to suffice."""


@dataclass(frozen=True)
class Composed:
    """The composites of a block of pixels."""

    places_p: NDArray[np.int64]
    """Those of its pixels that get numbers, counted row by row in the tile."""
    values_pmf: NDArray[np.float32]
    """(P, 12, 12) of these, see `infer.contract.monthly`; NaN for months without an observation."""
    share: float
    """Of the tile that the block is."""


class _Composing(ABC):
    """What both engines do with a tile; see `infer.engine.Engine` for what each of them is asked."""

    budget = 0
    compiled = False
    draws = False
    _block_pixels = 1 << 30

    def __init__(self, checkpoint: Checkpoint, device: Device, *, min_clear_s2: int) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.min_clear_s2 = min_clear_s2
        self._workers = Workers(device)
        self._composers: ThreadPoolExecutor | None = None
        if not device.on_cpu:
            self._composers = ThreadPoolExecutor(allotted_cores(), thread_name_prefix="compose")

    def close(self) -> None:
        """End the threads."""
        self._workers.close()
        if self._composers is not None:
            self._composers.shutdown()

    @abstractmethod
    def dimensions(self, requested: int, output: Output) -> int:
        """Numbers a pixel that are written for a requested number of them (0 = all).

        Raises:
            FormatError: for what the family does not give.
        """

    @abstractmethod
    def _begin(self, tile: Tile, watch: Watch) -> Callable[[Composed, Product], int]:
        """What fills the product from a block, called from any worker; returns the tokens that it computed."""

    def load(self, tile: Tile) -> Tile:
        """Nothing goes to a device before its turn."""
        return tile

    def embed(
        self, tile: Tile | LoadedTile, *, output: Output = "float32", dim: int = 0, watch: Watch | None = None
    ) -> TileResult:
        """Numbers of every pixel of a tile; see `Engine.embed`.

        Raises:
            SmaltiError: for a tile that does not say what the family has to know.
        """
        tile = tile.tile if isinstance(tile, LoadedTile) else tile
        watch = watch or Watch()
        height, width = tile.shape_hw
        counts = np.zeros((height, width, 2), dtype=np.int64)
        product = Product.empty(height * width, self.dimensions(dim, output), output, self.device.torch_device)
        fill, lock, tokens = self._begin(tile, watch), threading.Lock(), 0

        def task(composed: Callable[[], Composed]) -> Callable[[], None]:
            def done() -> None:
                nonlocal tokens
                if watch.stop():
                    raise InterruptedTileError(f"{tile.name}: abandoned, asked to stop: run the same command again")
                computed = fill(composed(), product)
                with lock:
                    tokens += computed

            return done

        self._workers.run(task(composed) for composed in self._ahead(self._blocks(tile, counts)))
        active = counts.any(axis=-1) & (counts[..., 0] >= self.min_clear_s2)
        return TileResult(
            product.values_pc.view(height, width, -1),
            None if product.scales_p is None else product.scales_p.view(height, width),
            {"s2": _summary(counts[..., 0][active]), "s1": _summary(counts[..., 1][active])},
            int((~active).sum()),
            self._halvings(),
            tokens or int(counts[active].sum()),
            np.minimum(counts, MOST_OBSERVED).astype(np.uint8),
        )

    def _halvings(self) -> int:
        return 0

    def _blocks(self, tile: Tile, counts: NDArray[np.int64]) -> Iterator[Callable[[], Composed]]:
        """Blocks of rows, or of parts of a row; each takes memory when it is called, and fills its counts."""
        height, width = tile.shape_hw
        dates = max(1, len(tile.doys_t), len(tile.sar_asc_doys_t) + len(tile.sar_desc_doys_t))
        most = max(1, min(self._block_pixels, _OBSERVATIONS // dates))
        down, across = max(1, most // width), min(width, most)
        for top in range(0, height, down):
            for left in range(0, width, across):
                rows, columns = slice(top, min(top + down, height)), slice(left, min(left + across, width))
                yield lambda rows=rows, columns=columns: self._composed(tile, counts, rows, columns)  # type: ignore[misc]  # bound now

    def _composed(self, tile: Tile, counts: NDArray[np.int64], rows: slice, columns: slice) -> Composed:
        counts[rows, columns, 0] = (tile.masks_thw[:, rows, columns] == 1).sum(axis=0)
        for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp):
            counts[rows, columns, 1] += (stack[:, rows, columns] != 0).any(axis=-1).sum(axis=0)
        here = counts[rows, columns].reshape(-1, 2)
        active = here.any(axis=-1) & (here[:, 0] >= self.min_clear_s2)
        height, width = tile.shape_hw
        places = np.arange(rows.start, rows.stop)[:, None] * width + np.arange(columns.start, columns.stop)
        values = monthly_composites(tile, rows, columns)[active].reshape(-1, MONTHS, MONTHLY_DIM // MONTHS)
        return Composed(places.reshape(-1)[active], values, places.size / (height * width))

    def _ahead(self, blocks: Iterator[Callable[[], Composed]]) -> Iterator[Callable[[], Composed]]:
        """On an accelerator the host's cores make composites of the next blocks meanwhile."""
        if self._composers is None:
            yield from blocks
            return
        waiting: deque[Future[Composed]] = deque()
        try:
            for block in blocks:
                waiting.append(self._composers.submit(block))
                if len(waiting) > 2 * allotted_cores():
                    yield waiting.popleft().result
            while waiting:
                yield waiting.popleft().result
        finally:
            for future in waiting:
                future.cancel()


class MonthlyEngine(_Composing):
    """The family `monthly`."""

    def __init__(self, checkpoint: Checkpoint, *, min_clear_s2: int = 0) -> None:
        """Start the threads.

        Args:
            checkpoint: of the family `monthly`.
            min_clear_s2: leave pixels with fewer clear Sentinel-2 observations without numbers.
        """
        super().__init__(checkpoint, choose_device("cpu", "float32"), min_clear_s2=min_clear_s2)

    def dimensions(self, requested: int, output: Output) -> int:
        """Numbers a pixel.

        Raises:
            FormatError: for a part of them, or for codes, which have no way to say that a month is missing.
        """
        if requested not in (0, MONTHLY_DIM):
            raise FormatError(f"dim {requested}: monthly gives {MONTHLY_DIM} (0 = all)")
        if output != "float32":
            raise FormatError(
                "monthly leaves months without an observation missing, as codes cannot: use float32 "
                "([model] output, --dtype)"
            )
        return MONTHLY_DIM

    def _begin(self, tile: Tile, watch: Watch) -> Callable[[Composed, Product], int]:
        del tile

        def fill(composed: Composed, product: Product) -> int:
            product.values_pc[torch.from_numpy(composed.places_p)] = torch.from_numpy(
                composed.values_pmf.reshape(-1, MONTHLY_DIM)
            )
            watch.advance(composed.share)
            return 0

        return fill


class MonthsEngine(_Composing):
    """A network over monthly composites (`presto`, `galileo-nano`).

    Pixels with the same number of months of each modality make batches without padding: a month that is missing costs
    nothing.
    """

    _block_pixels = _BLOCK_PIXELS

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: Device,
        network: MonthsNetwork,
        *,
        token_budget: int | None = None,
        min_clear_s2: int = 0,
    ) -> None:
        """Move the network to its device and start the threads.

        Args:
            checkpoint: what the network was made from.
            device: where and how.
            network: on the CPU, in float32.
            token_budget: tokens of a batch, to override the device's.
            min_clear_s2: leave pixels with fewer clear Sentinel-2 observations without an embedding.

        Raises:
            SmaltiError: for a precision that the network does not bear.
        """
        if network.float32_only and device.precision != "float32":
            raise SmaltiError(
                f"{network.name} in {device.precision}: {network.float32_only}: use --precision float32 "
                '([model] precision = "float32")'
            )
        device.activate()
        super().__init__(checkpoint, device, min_clear_s2=min_clear_s2)
        most = _CPU_TOKENS if device.on_cpu else device.token_budget(network.width)
        self.budget = self._most = token_budget or most
        self._network = network.place(device.torch_device, device.dtype)
        self._halved = 0

    def dimensions(self, requested: int, output: Output) -> int:
        """Numbers a pixel.

        Raises:
            FormatError: for a part of them: they were not trained to be cut.
        """
        del output  # any
        if requested not in (0, self._network.width):
            raise FormatError(f"dim {requested}: {self._network.name} gives {self._network.width} (0 = all)")
        return self._network.width

    def load(self, tile: Tile) -> Tile:
        """Refuse, before anything is computed, a tile that the family cannot use."""
        self._check(tile)
        return tile

    def _halvings(self) -> int:
        return self._halved

    def _check(self, tile: Tile) -> None:
        name, needs = self._network.name, self._network.needs
        missing = []
        if needs.season and tile.manifest.window is None:
            missing.append("the season (window), to know which month is the first")
        if needs.location and (tile.manifest.grid is None or tile.manifest.grid.utm_epsg is None):
            missing.append("the place of its pixels (grid, in a UTM zone)")
        if missing:
            raise FormatError(
                f"{tile.name}: {name} needs {' and '.join(missing)}, which its tile.json does not state: fetch the "
                "tile with smalti, or use another model"
            )
        dates = {"s2": len(tile.doys_t), "s1": len(tile.sar_asc_doys_t) + len(tile.sar_desc_doys_t)}
        for modality in needs.modalities:
            if not dates[modality]:
                raise FormatError(
                    f"{tile.name}: {name} needs {modality.upper()}, of which it has no date: use another model"
                )

    def _begin(self, tile: Tile, watch: Watch) -> Callable[[Composed, Product], int]:
        self._check(tile)
        self.budget, self._halved = self._most, 0  # no tile depends on the memory that another found
        on, network = self.device.torch_device, self._network
        with torch.inference_mode():
            table = network.table(season_start(tile.manifest.window).month - 1)

        def fill(composed: Composed, product: Product) -> int:
            if not len(composed.places_p):
                watch.advance(composed.share)
                return 0
            there = ~np.isnan(composed.values_pmf[:, :, (0, -1)])
            months = there.sum(axis=1)
            order = np.lexsort((months[:, 1], months[:, 0]))
            places = composed.places_p[order]
            values = network.channels(torch.from_numpy(composed.values_pmf[order]).to(on))
            told = torch.from_numpy(there[order]).to(on)
            sphere = None
            if network.needs.location:
                sphere = torch.from_numpy(unit_vectors(tile, *tile.positions(places))).to(on)
            target, tokens = torch.from_numpy(places).to(on), 0
            for start, stop, count in _batches(months[order], network, lambda: self.budget):
                if watch.stop():
                    raise InterruptedTileError(f"{tile.name}: abandoned, asked to stop: run the same command again")
                part = slice(start, stop)
                spots = None if sphere is None else sphere[part]
                found = self._embedded(tile, values[part], told[part], count, table, spots)
                check_finite(tile, found, target[part])
                product.put(target[part], found, "v2")
                tokens += (stop - start) * network.length(*count)
                watch.advance(composed.share * (stop - start) / len(places))
            return tokens

        return fill

    def _embedded(
        self,
        tile: Tile,
        values: torch.Tensor,
        there: torch.Tensor,
        count: tuple[int, int],
        table: torch.Tensor,
        sphere: torch.Tensor | None,
    ) -> torch.Tensor:
        """A batch, in halves where memory does not suffice for the whole."""
        try:
            found: torch.Tensor = self._network(values, there, count, table, sphere)
            return found
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(values) < 2 * _SMALLEST_BATCH:
                raise SmaltiError(
                    f"{tile.name}: out of memory even with {len(values)} pixels a batch: use more memory",
                    exit_code=EXIT_FAILED,
                ) from error
        self.budget, self._halved = self.budget // 2, self._halved + 1
        release_memory(self.device.torch_device)
        half = len(values) // 2
        parts = [slice(0, half), slice(half, None)]
        spots = [None if sphere is None else sphere[part] for part in parts]
        return torch.cat(
            [self._embedded(tile, values[p], there[p], count, table, s) for p, s in zip(parts, spots, strict=True)]
        )


def _batches(
    months_p2: NDArray[np.int64], network: MonthsNetwork, budget: Callable[[], int]
) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """(start, stop, months) of runs of pixels, sorted by their months of each modality, that fit the budget."""
    edges = np.flatnonzero((months_p2[1:] != months_p2[:-1]).any(axis=1)) + 1
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(months_p2)], strict=True):
        count = int(months_p2[start, 0]), int(months_p2[start, 1])
        while start < stop:
            end = min(stop, start + max(1, budget() // network.length(*count)))
            yield start, end, count
            start = end  # walks through the run


def _summary(counts: NDArray[np.int64]) -> dict[str, float]:
    if not len(counts):
        return {"min": 0.0, "median": 0.0, "max": 0.0}
    return {"min": float(counts.min()), "median": float(np.median(counts)), "max": float(counts.max())}
