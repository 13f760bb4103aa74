"""Two looks at the same pixels: random samples of their observations, with the noise that sensors and skies add.

Everything is drawn from one generator and done for the whole batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch

from infer.contract import BANDS
from infer.model import TokenBatch, uniform_batch
from infer.normalisation import NORMALISATIONS

_NORM = NORMALISATIONS["v2-student"]
_DB = 400.0
"""Scaled units of one decibel of power: 20 log10 of power times 200."""
_MONTHS = 12
_LONGEST_GAP = 4
"""Months in a row that a view may lack."""


class Chance:
    """A source of chance for some rows of a batch: numbers are drawn for all rows, whoever works on them.

    Processes that share out a batch thus draw what one process would.
    """

    def __init__(self, generator: torch.Generator, rows: slice, total: int) -> None:
        """Numbers come from `generator`, on its device, for `total` rows, of which `rows` are kept."""
        self.generator, self.rows, self.total = generator, rows, total
        self.count = len(range(*rows.indices(total)))

    def uniform(self, *shape: int) -> torch.Tensor:
        """(rows, *shape) in [0, 1)."""
        return torch.rand((self.total, *shape), generator=self.generator, device=self.generator.device)[self.rows]

    def normal(self, spread: float, *shape: int) -> torch.Tensor:
        """(rows, *shape) around 0."""
        numbers = torch.randn((self.total, *shape), generator=self.generator, device=self.generator.device)
        return numbers[self.rows] * spread


@dataclass(frozen=True)
class Pixels:
    """P pixels with all their observations: T dates of S2, U of S1, padded to the longest season."""

    bands_ptb: torch.Tensor
    """(P, T, 10) float32 digital numbers."""
    clear_pt: torch.Tensor
    """(P, T) bool."""
    doys_pt: torch.Tensor
    """(P, T) int64."""
    sar_pup: torch.Tensor
    """(P, U, 2) float32 scaled dB."""
    seen_pu: torch.Tensor
    """(P, U) bool: any polarisation is not zero."""
    sar_doys_pu: torch.Tensor
    """(P, U) int64."""
    up_pu: torch.Tensor
    """(P, U) bool: of an ascending orbit."""
    monthly_pf: torch.Tensor | None = None
    """(P, 144) float32 what the calendar's months were like (`tiles.months_of`), or None."""

    def thinned(self, share: float, chance: Chance) -> Pixels:
        """The same pixels with this share of their observations missing at random."""
        keep = [chance.uniform(mask.shape[1]) >= share for mask in (self.clear_pt, self.seen_pu)]
        return replace(self, clear_pt=self.clear_pt & keep[0], seen_pu=self.seen_pu & keep[1])


@dataclass(frozen=True)
class View:
    """Standardised sequences of P pixels; a modality without observations is one kind of token: all zeros, day 0."""

    s2_ptc: torch.Tensor
    s2_days_pt: torch.Tensor
    s1_ptc: torch.Tensor
    s1_days_pt: torch.Tensor

    def batches(self) -> tuple[TokenBatch, TokenBatch]:
        """Sentinel-2 and Sentinel-1 as the network takes them: drawn with replacement, so no length needs padding."""
        return uniform_batch(self.s2_ptc, self.s2_days_pt), uniform_batch(self.s1_ptc, self.s1_days_pt)


@dataclass(frozen=True)
class Noise:
    """How far two views of a pixel may differ beyond the choice of observations. All are standard deviations."""

    gain: float = 0.06
    """Factor on all bands of a view."""
    band_gain: float = 0.04
    """Factor on each band of a view."""
    date_gain: float = 0.04
    """Factor on each observation."""
    pixel: float = 60.0
    """Addition to each number, DN."""
    haze: float = 80.0
    """Addition to an observation, DN in the blue, less in longer waves."""
    radar: float = 1.0
    """Offset of each polarisation of a view, dB."""
    speckle: float = 1.0
    """Addition to each radar number, dB."""
    days: float = 4.0
    """Shift of the calendar of a view, days."""
    drop_s2: float = 0.1
    """Chance that a pixel of a view has no Sentinel-2."""
    drop_s1: float = 0.15
    """Chance that it has no Sentinel-1."""
    gap_s2: float = 0.5
    """Chance that a pixel of a view lacks all Sentinel-2 dates of one to four months in a row."""
    gap_s1: float = 0.2
    """The same of Sentinel-1."""


NO_NOISE = Noise(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def _vector(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


_S2_MEAN, _S2_STD = _vector(_NORM.s2.mean), _vector(_NORM.s2.std)
_S1 = {name: (_vector(item.mean), _vector(item.std)) for name, item in (("asc", _NORM.asc), ("desc", _NORM.desc))}
_HAZE = _vector(tuple({"B02": 1.0, "B03": 0.7, "B04": 0.5, "B05": 0.4}.get(band, 0.15) for band in BANDS))


@cache
def _constants(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Mean, spread and haze of Sentinel-2, then mean and spread of ascending and of descending passes."""
    return tuple(value.to(device) for value in (_S2_MEAN, _S2_STD, _HAZE, *_S1["asc"], *_S1["desc"]))


def choose(valid_pt: torch.Tensor, length: int, chance: Chance) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw `length` observations a pixel at random: all different while there are enough, then again from the start.

    Returns:
        (P, length) positions in order of time, and (P,) whether the pixel has any.
    """
    keys = chance.uniform(valid_pt.shape[1]).masked_fill_(~valid_pt, 2.0)
    order = keys.argsort(dim=1)
    count_p1 = valid_pt.sum(dim=1, keepdim=True)
    places = torch.arange(length, device=valid_pt.device)[None, :] % count_p1.clamp(min=1)
    return order.gather(1, places).sort(dim=1).values, count_p1[:, 0] > 0


def without_some_months(
    valid_pt: torch.Tensor, doys_pt: torch.Tensor, often: float, longest: int, chance: Chance
) -> torch.Tensor:
    """(P, T) `valid_pt` without the observations of some months in a row, for a share `often` of the pixels.

    Where nothing would be left, nothing is taken away.
    """
    first = (chance.uniform() * _MONTHS).long()
    length = (chance.uniform() * longest).long() + 1
    hidden = (((doys_pt - 1) * _MONTHS // 366 - first[:, None]) % _MONTHS) < length[:, None]
    left = valid_pt & ~(hidden & (chance.uniform() < often)[:, None])
    return torch.where(left.any(dim=1, keepdim=True), left, valid_pt)


def _emptied(
    values_ptc: torch.Tensor, days_pt: torch.Tensor, keep_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return values_ptc * keep_p[:, None, None], days_pt * keep_p[:, None]


def _optical(pixels: Pixels, length: int, noise: Noise, chance: Chance) -> tuple[torch.Tensor, ...]:
    valid = without_some_months(pixels.clear_pt, pixels.doys_pt, noise.gap_s2, _LONGEST_GAP, chance)
    index, some = choose(valid, length, chance)
    mean, std, haze, *_ = _constants(index.device)
    values = pixels.bands_ptb.gather(1, index[..., None].expand(-1, -1, len(BANDS)))
    values = values * (1 + chance.normal(noise.gain, 1, 1) + chance.normal(noise.band_gain, 1, len(BANDS)))
    values = values * (1 + chance.normal(noise.date_gain, length, 1))
    values = values + chance.normal(noise.haze, length, 1) * haze + chance.normal(noise.pixel, length, len(BANDS))
    return (values - mean) / (std + 1e-9), pixels.doys_pt.gather(1, index), some


def _radar(pixels: Pixels, length: int, noise: Noise, chance: Chance) -> tuple[torch.Tensor, ...]:
    count, device = chance.count, pixels.sar_pup.device
    if pixels.sar_pup.shape[1] == 0:
        nothing = torch.zeros(count, length, device=device)
        return nothing[..., None].expand(-1, -1, 2), nothing.long(), nothing[:, 0] > 0
    valid = without_some_months(pixels.seen_pu, pixels.sar_doys_pu, noise.gap_s1, _LONGEST_GAP, chance)
    index, some = choose(valid, length, chance)
    _, _, _, up_mean, up_std, down_mean, down_std = _constants(device)
    values = pixels.sar_pup.gather(1, index[..., None].expand(-1, -1, 2))
    values = values + chance.normal(noise.radar * _DB, 1, 2) + chance.normal(noise.speckle * _DB, length, 2)
    up = pixels.up_pu.gather(1, index)[..., None]
    mean, std = torch.where(up, up_mean, down_mean), torch.where(up, up_std, down_std)
    return (values - mean) / (std + 1e-9), pixels.sar_doys_pu.gather(1, index), some


def draw_view(pixels: Pixels, lengths: tuple[int, int], noise: Noise, chance: Chance) -> View:
    """One view of every pixel, on the pixels' device.

    Args:
        pixels: P pixels.
        lengths: observations drawn of Sentinel-2 and of Sentinel-1.
        noise: what else may differ.
        chance: the only source of chance, of P rows.
    """
    s2, s2_days, s2_some = _optical(pixels, lengths[0], noise, chance)
    s1, s1_days, s1_some = _radar(pixels, lengths[1], noise, chance)
    shift = chance.normal(noise.days, 1).round().long()
    s2_days, s1_days = ((days - 1 + shift) % 366 + 1 for days in (s2_days, s1_days))
    lot = chance.uniform()
    # At most one modality is taken away, and never the only one.
    keep_s2 = s2_some & ~((lot < noise.drop_s2) & s1_some)
    keep_s1 = s1_some & ~((lot > 1 - noise.drop_s1) & s2_some)
    return View(*_emptied(s2, s2_days, keep_s2), *_emptied(s1, s1_days, keep_s1))
