"""Two looks at the same pixels: random samples of their observations, with the noise that sensors and skies add.

Everything is drawn from one generator and done for the whole batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from infer.contract import BANDS
from infer.model import TokenBatch, uniform_batch
from infer.normalisation import NORMALISATIONS

_NORM = NORMALISATIONS["v2-student"]
_DB = 400.0
"""Scaled units of one decibel of power: 20 log10 of power times 200."""


@dataclass(frozen=True)
class Pixels:
    """P pixels of one tile with all their observations (T dates of S2, A + D of S1)."""

    bands_ptb: torch.Tensor
    """(P, T, 10) float32 digital numbers."""
    clear_pt: torch.Tensor
    """(P, T) bool."""
    doys_t: torch.Tensor
    """(T,) int64."""
    sar_pup: torch.Tensor
    """(P, A + D, 2) float32 scaled dB, ascending first."""
    seen_pu: torch.Tensor
    """(P, A + D) bool: any polarisation is not zero."""
    sar_doys_u: torch.Tensor
    """(A + D,) int64."""
    ascending: int
    """A."""

    def thinned(self, share: float, generator: torch.Generator) -> Pixels:
        """The same pixels with this share of their observations missing at random."""
        keep = [torch.rand(mask.shape, generator=generator) >= share for mask in (self.clear_pt, self.seen_pu)]
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


NO_NOISE = Noise(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def _vector(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


_S2_MEAN, _S2_STD = _vector(_NORM.s2.mean), _vector(_NORM.s2.std)
_S1 = {name: (_vector(item.mean), _vector(item.std)) for name, item in (("asc", _NORM.asc), ("desc", _NORM.desc))}
_HAZE = _vector(tuple({"B02": 1.0, "B03": 0.7, "B04": 0.5, "B05": 0.4}.get(band, 0.15) for band in BANDS))


def choose(valid_pt: torch.Tensor, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw `length` observations a pixel at random: all different while there are enough, then again from the start.

    Returns:
        (P, length) positions in order of time, and (P,) whether the pixel has any.
    """
    keys = torch.rand(valid_pt.shape, generator=generator).masked_fill_(~valid_pt, 2.0)
    order = keys.argsort(dim=1)
    count_p1 = valid_pt.sum(dim=1, keepdim=True)
    places = torch.arange(length)[None, :] % count_p1.clamp(min=1)
    return order.gather(1, places).sort(dim=1).values, count_p1[:, 0] > 0


def _normal(shape: tuple[int, ...], spread: float, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * spread


def _emptied(
    values_ptc: torch.Tensor, days_pt: torch.Tensor, keep_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return values_ptc * keep_p[:, None, None], days_pt * keep_p[:, None]


def _optical(pixels: Pixels, length: int, noise: Noise, g: torch.Generator) -> tuple[torch.Tensor, ...]:
    index, some = choose(pixels.clear_pt, length, g)
    values = pixels.bands_ptb.gather(1, index[..., None].expand(-1, -1, len(BANDS)))
    count = len(values)
    values = values * (1 + _normal((count, 1, 1), noise.gain, g) + _normal((count, 1, len(BANDS)), noise.band_gain, g))
    values = values * (1 + _normal((count, length, 1), noise.date_gain, g))
    values = values + _normal((count, length, 1), noise.haze, g) * _HAZE + _normal(tuple(values.shape), noise.pixel, g)
    return (values - _S2_MEAN) / (_S2_STD + 1e-9), pixels.doys_t[index], some


def _radar(pixels: Pixels, length: int, noise: Noise, g: torch.Generator) -> tuple[torch.Tensor, ...]:
    if pixels.sar_pup.shape[1] == 0:
        count = len(pixels.sar_pup)
        return torch.zeros(count, length, 2), torch.zeros(count, length, dtype=torch.long), torch.zeros(count) > 0
    index, some = choose(pixels.seen_pu, length, g)
    values = pixels.sar_pup.gather(1, index[..., None].expand(-1, -1, 2))
    values = values + _normal((len(values), 1, 2), noise.radar * _DB, g)
    values = values + _normal(tuple(values.shape), noise.speckle * _DB, g)
    up = (index < pixels.ascending)[..., None]
    mean = torch.where(up, _S1["asc"][0], _S1["desc"][0])
    std = torch.where(up, _S1["asc"][1], _S1["desc"][1])
    return (values - mean) / (std + 1e-9), pixels.sar_doys_u[index], some


def draw_view(pixels: Pixels, lengths: tuple[int, int], noise: Noise, generator: torch.Generator) -> View:
    """One view of every pixel.

    Args:
        pixels: P pixels.
        lengths: observations drawn of Sentinel-2 and of Sentinel-1.
        noise: what else may differ.
        generator: the only source of chance.
    """
    s2, s2_days, s2_some = _optical(pixels, lengths[0], noise, generator)
    s1, s1_days, s1_some = _radar(pixels, lengths[1], noise, generator)
    shift = _normal((len(s2), 1), noise.days, generator).round().long()
    s2_days, s1_days = ((days - 1 + shift) % 366 + 1 for days in (s2_days, s1_days))
    lot = torch.rand(len(s2), generator=generator)
    # At most one modality is taken away, and never the only one.
    keep_s2 = s2_some & ~((lot < noise.drop_s2) & s1_some)
    keep_s1 = s1_some & ~((lot > 1 - noise.drop_s1) & s2_some)
    return View(*_emptied(s2, s2_days, keep_s2), *_emptied(s1, s1_days, keep_s1))
