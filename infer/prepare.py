"""On the device: from a tile's raw arrays to batches of standardised tokens.

The raw arrays go to the device once. Which observations are there, the gather and the z-scores are computed there,
block by block of pixels, so that memory does not grow with the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from infer import sequence
from infer.contract import BANDS, SAR_BANDS, SmaltiError, Tile
from infer.contract.embedding import MOST_OBSERVED, OBSERVED
from infer.device import Transfer
from infer.model import Modality, Segment, TokenBatch
from infer.normalisation import EPSILON, Normalisation, Statistics
from infer.sequence import MAX_BIN, Rule, padded_rows, unique_form


@dataclass(frozen=True)
class ModalityData:
    """One modality of a tile on the device."""

    modality: Modality
    stacks_xc: tuple[torch.Tensor, ...]
    """One or two stacks of dates, each (T * H * W, C) int16, dates first; unsigned bits for Sentinel-2."""
    valid_tp: torch.Tensor
    """(T, H * W) bool."""
    days_t: torch.Tensor
    """(T,) int64 day of year."""
    mean_tc: torch.Tensor
    """(T, C) or (1, C) float32."""
    std_tc: torch.Tensor
    """(T, C) or (1, C) float32, epsilon added."""

    @property
    def dates(self) -> int:
        """T, over all stacks."""
        return int(self.valid_tp.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.valid_tp.device

    @property
    def bands(self) -> int:
        """C."""
        return int(self.stacks_xc[0].shape[1])

    def _gather(self, dates_n: torch.Tensor, pixels_n: torch.Tensor) -> torch.Tensor:
        """(N, C) int16 of the observations; from two stacks without joining them, which would copy both."""
        pixels = self.valid_tp.shape[1]
        taken, before = None, 0
        for stack in self.stacks_xc:
            dates = len(stack) // pixels
            if dates == 0:
                continue
            inside = (dates_n - before).clamp_(0, dates - 1)
            found = stack.index_select(0, inside.mul_(pixels).add_(pixels_n))
            taken = found if taken is None else torch.where((dates_n < before)[:, None], taken, found)
            before += dates
        if taken is None:
            raise ValueError("observations of a modality that has no dates")
        return taken

    def batch(self, dates_n: torch.Tensor, pixels_n: torch.Tensor, segments: list[Segment], budget: int) -> TokenBatch:
        """The observations (date, pixel), standardised, padded to one of the sizes for this budget."""
        found, found_days = self._tokens(dates_n, pixels_n)
        rows = padded_rows(len(found), budget)
        values, days = found.new_zeros(rows, found.shape[1]), found_days.new_zeros(rows)
        values[: len(found)], days[: len(found)] = found, found_days
        return TokenBatch(values, days, tuple(segments), segments[-1].first + segments[-1].pixels)

    def _tokens(self, dates_n: torch.Tensor, pixels_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        taken = self._gather(dates_n, pixels_n)
        values = taken.to(torch.int32).bitwise_and_(0xFFFF).float() if self.modality == "s2" else taken.float()
        if self.mean_tc.shape[0] == 1:
            values = values.sub_(self.mean_tc).div_(self.std_tc)
        else:
            values = values.sub_(self.mean_tc.index_select(0, dates_n)).div_(self.std_tc.index_select(0, dates_n))
        return values, self.days_t.index_select(0, dates_n)


def _statistics(parts: list[tuple[Statistics, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, C) mean and std of dates from several stacks; one row when all share the same."""
    if len({statistics for statistics, _ in parts}) == 1:
        parts = [(parts[0][0], 1)]
    mean = np.concatenate([np.tile(np.asarray(s.mean, np.float32), (n, 1)) for s, n in parts])
    std = np.concatenate([np.tile(np.asarray(s.std, np.float32) + np.float32(EPSILON), (n, 1)) for s, n in parts])
    return torch.from_numpy(mean).to(device), torch.from_numpy(std).to(device)


def _load_modalities(
    tile: Tile, normalisation: Normalisation, transfer: Transfer, device: torch.device
) -> tuple[ModalityData, ModalityData]:
    dates, height, width = tile.masks_thw.shape
    pixels = height * width
    mean, std = _statistics([(normalisation.s2, dates)], device)
    s2 = ModalityData(
        "s2",
        (transfer.upload(tile.bands_thwb.view(np.int16)).view(dates * pixels, len(BANDS)),),
        transfer.upload(tile.masks_thw).view(torch.bool).view(dates, pixels),
        torch.from_numpy(tile.doys_t.astype(np.int64)).to(device),
        mean,
        std,
    )
    stacks = [transfer.upload(stack) for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp)]
    counts = [int(stack.shape[0]) for stack in stacks]
    mean, std = _statistics([(normalisation.asc, counts[0]), (normalisation.desc, counts[1])], device)
    days = np.concatenate([tile.sar_asc_doys_t, tile.sar_desc_doys_t]).astype(np.int64)
    flat = tuple(stack.view(n * pixels, len(SAR_BANDS)) for stack, n in zip(stacks, counts, strict=True))
    valid = torch.cat([stack.view(torch.int32).ne(0) for stack in flat])  # VV and VH are two halves of one int32
    return s2, ModalityData("s1", flat, valid.view(sum(counts), pixels), torch.from_numpy(days).to(device), mean, std)


@dataclass(frozen=True)
class LoadedTile:
    """A tile on the device, and how many observations its pixels have."""

    tile: Tile
    data: dict[Modality, ModalityData]
    counts: dict[Modality, NDArray[np.int16]]
    """(H * W,) number of observations."""
    active_p: NDArray[np.bool_]
    """(H * W,) pixels with any observation, and enough of them; the others are nodata."""

    @property
    def observations_hwm(self) -> NDArray[np.uint8]:
        """(H, W, 2) observations a pixel as they are kept; see infer.contract.embedding."""
        counts_pm = np.stack([self.counts[modality] for modality in OBSERVED], axis=-1)
        return np.minimum(counts_pm, MOST_OBSERVED).astype(np.uint8).reshape(*self.tile.shape_hw, len(OBSERVED))


def load_tile(
    tile: Tile, normalisation: Normalisation, transfer: Transfer, device: torch.device, *, min_clear_s2: int = 0
) -> LoadedTile:
    """Bring a tile to the device; may run in another thread than the computation."""
    with torch.inference_mode(), transfer.loading():
        s2, s1 = _load_modalities(tile, normalisation, transfer, device)
        for data in (s2, s1):
            transfer.hand_over(*data.stacks_xc, data.valid_tp, data.days_t, data.mean_tc, data.std_tc)
        counts = {data.modality: data.valid_tp.sum(dim=0, dtype=torch.int16).cpu().numpy() for data in (s2, s1)}
    active_p = ((counts["s2"] > 0) | (counts["s1"] > 0)) & (counts["s2"] >= min_clear_s2)
    return LoadedTile(tile, {"s2": s2, "s1": s1}, counts, active_p)


class Multiplicities:
    """Log-multiplicities and expansions of every count, kept on the device."""

    def __init__(self, rule: Rule, device: torch.device, *, expand: bool) -> None:
        self._rule: Rule = rule
        self._device = device
        self._expand = expand
        self._kept: dict[int, tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]] = {}

    def get(self, n: int) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """For n: which observations (None = all), log-multiplicity (None = all once), expansion (None = no need)."""
        if n not in self._kept:
            form = unique_form(self._rule, n)
            log = None
            if (form.multiplicity_u > 1).any() and len(form.select_u) > 1:
                log = torch.from_numpy(np.log(form.multiplicity_u).astype(np.float32)).to(self._device)
            expand = torch.from_numpy(form.expand_b).to(self._device) if self._expand else None
            select = None if form.identity else torch.from_numpy(form.select_u).to(self._device)
            self._kept[n] = (select, log, expand)
        return self._kept[n]


@dataclass(frozen=True)
class BlockBatch:
    """A batch and where its pooled vectors go."""

    pixels_p: torch.Tensor
    """(P,) int64 positions within the block."""
    build: Callable[[], TokenBatch]
    """Gathers the tokens; called by whoever computes the batch."""
    tokens: int


def _cuts(lengths_p: NDArray[np.int64], budget: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of pixels whose tokens fit the budget (at least one pixel each)."""
    ends = np.cumsum(lengths_p)
    start = 0
    while start < len(lengths_p):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + budget, side="right")))
        yield start, stop
        start = stop


def _runs(values_p: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(first, count, value) of each run of equal values."""
    edges = np.flatnonzero(np.diff(values_p)) + 1
    starts = [0, *edges.tolist()]
    for first, stop in zip(starts, [*starts[1:], len(values_p)], strict=True):
        yield first, stop - first, int(values_p[first])


def zero_batch(data: ModalityData, tables: Multiplicities) -> TokenBatch:
    """The batch of one pixel without observations: its token is all zeros, day 0."""
    _, log, expand = tables.get(0)
    device = data.device
    values = torch.zeros(1, data.bands, device=device)
    segment = Segment(0, 0, 1, 1, log, expand)
    return TokenBatch(values, torch.zeros(1, dtype=torch.int64, device=device), (segment,), 1)


def counted_batches(
    data: ModalityData, first: int, counts_p: NDArray[np.int16], budget: int, tables: Multiplicities
) -> Iterator[BlockBatch]:
    """Batches of the pixels of a block that have observations, ordered by their number (v2, v1.1).

    Args:
        data: the modality.
        first: position of the block's first pixel in the tile.
        counts_p: (P,) number of observations of the block's pixels.
        budget: tokens of a batch.
        tables: multiplicities by count.
    """
    device = data.device
    order_p = np.argsort(counts_p, kind="stable")
    order_p = order_p[np.searchsorted(counts_p[order_p], 1) :]
    if not len(order_p):
        return
    sorted_p = counts_p[order_p].astype(np.int64)
    lengths_p = np.minimum(sorted_p, MAX_BIN)
    order = torch.from_numpy(order_p).to(device)
    valid_pt = data.valid_tp[:, first : first + len(counts_p)].t().index_select(0, order)
    observed = valid_pt.nonzero()  # every observation of the block, pixel by pixel in this order, dates ascending
    dates_n, pixels_n = observed[:, 1], order.index_select(0, observed[:, 0]).add_(first)
    offsets = np.concatenate([[0], np.cumsum(sorted_p)])
    for start, stop in _cuts(lengths_p, budget):
        low, high = int(offsets[start]), int(offsets[stop])
        runs = tuple(_runs(sorted_p[start:stop]))

        def build(low: int = low, high: int = high, runs: tuple[tuple[int, int, int], ...] = runs) -> TokenBatch:
            return _counted(data, dates_n[low:high], pixels_n[low:high], runs, tables, budget)

        yield BlockBatch(order[start:stop], build, int(lengths_p[start:stop].sum()))


def _counted(
    data: ModalityData,
    dates_n: torch.Tensor,
    pixels_n: torch.Tensor,
    runs: tuple[tuple[int, int, int], ...],
    tables: Multiplicities,
    budget: int,
) -> TokenBatch:
    segments, kept, start, taken = [], [], 0, 0
    for first, pixels, n in runs:
        select, log, expand = tables.get(n)
        length = n if select is None else len(select)
        if select is not None:
            places = torch.arange(pixels, device=dates_n.device)[:, None] * n + select[None, :]
            kept.append(taken + places.reshape(-1))
        else:
            kept.append(torch.arange(taken, taken + pixels * n, device=dates_n.device))
        segments.append(Segment(start, first, pixels, length, log, expand))
        start += pixels * length
        taken += pixels * n
    if start != taken:
        index = torch.cat(kept)
        dates_n, pixels_n = dates_n.index_select(0, index), pixels_n.index_select(0, index)
    return data.batch(dates_n, pixels_n, segments, budget)


def drawn_batches(
    data: ModalityData, first: int, active_p: NDArray[np.bool_], tile: Tile, seed: int, budget: int
) -> Iterator[BlockBatch]:
    """Batches of v1.0: 40 observations drawn a pixel, reproducibly (see `infer.sequence`), each computed once.

    Args:
        data: the modality.
        first: position of the block's first pixel in the tile.
        active_p: (P,) which of the block's pixels are computed.
        tile: which knows where its pixels are.
        seed: of the tile.
        budget: tokens of a batch.

    Raises:
        SmaltiError: if the modality has no date at all.
    """
    if data.dates == 0:
        raise SmaltiError(
            f"v1.0 draws 40 {data.modality.upper()} dates a pixel and this tile has none: use a v2 or v1.1 model"
        )
    device = data.device
    places = np.flatnonzero(active_p)
    valid_pt = data.valid_tp[:, first : first + len(active_p)].t().cpu().numpy()[places]
    valid_pt[~valid_pt.any(axis=1)] = True  # the reference draws from all dates where none is valid
    drawn = _draw_dates(valid_pt, data.modality, seed, *tile.positions(first + places))
    fresh = np.diff(drawn, axis=1, prepend=-1) > 0
    lengths = fresh.sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    for start, stop in _cuts(lengths[order], budget):
        rows = order[start:stop]

        def build(rows: NDArray[np.int64] = rows) -> TokenBatch:
            return _drawn(data, drawn[rows], fresh[rows], first + places[rows], budget)

        yield BlockBatch(torch.from_numpy(places[rows]).to(device), build, int(lengths[rows].sum()))


def _draw_dates(
    valid_pt: NDArray[np.bool_],
    modality: Modality,
    seed: int,
    rows_p: NDArray[np.int64],
    columns_p: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(P, 40) drawn dates, ascending."""
    counts = valid_pt.sum(axis=1)
    drawn = np.empty((len(counts), sequence.DRAWN), dtype=np.int64)
    for n in np.unique(counts):
        those = np.flatnonzero(counts == n)
        dates = np.nonzero(valid_pt[those])[1].reshape(len(those), int(n))
        picked = sequence.draw(seed, int(modality == "s1"), rows_p[those], columns_p[those], int(n))
        drawn[those] = np.take_along_axis(dates, picked, axis=1)
    return drawn


def _drawn(
    data: ModalityData,
    drawn_pb: NDArray[np.int64],
    fresh_pb: NDArray[np.bool_],
    pixels_p: NDArray[np.int64],
    budget: int,
) -> TokenBatch:
    device = data.device
    expand_pb = np.cumsum(fresh_pb, axis=1) - 1
    segments, start = [], 0
    for first, pixels, length in _runs(fresh_pb.sum(axis=1)):
        rows = slice(first, first + pixels)
        expand = torch.from_numpy(expand_pb[rows]).to(device)
        counted = np.apply_along_axis(np.bincount, 1, expand_pb[rows], minlength=length)
        log = torch.from_numpy(np.log(counted).astype(np.float32)).to(device)
        segments.append(Segment(start, first, pixels, length, log if (counted > 1).any() else None, expand))
        start += pixels * length
    dates = torch.from_numpy(drawn_pb[fresh_pb]).to(device)
    pixels_n = torch.from_numpy(np.repeat(pixels_p, fresh_pb.sum(axis=1))).to(device)
    return data.batch(dates, pixels_n, segments, budget)
