"""Losses: Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230) tile by tile; what embeddings miss
of their pixels' months; the cosine of distillation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


def standardised(z: torch.Tensor, groups: int) -> torch.Tensor:
    """(P, D) to (groups, P / groups, D) with mean 0 and variance 1 within each of the equal runs of rows."""
    z = z.float().view(groups, -1, z.shape[1])
    var, mean = torch.var_mean(z, dim=1, keepdim=True, correction=0)
    return (z - mean) * (var + 1e-4).rsqrt()


def _unchanged(value: torch.Tensor) -> torch.Tensor:
    return value


def barlow_twins(
    one: torch.Tensor,
    two: torch.Tensor,
    weight: float,
    groups: int = 1,
    average: Callable[[torch.Tensor], torch.Tensor] = _unchanged,
) -> torch.Tensor:
    """Cross-correlation of two views (P, D) pulled to the identity; the sum over its elements divided by D.

    Args:
        one: first view.
        two: second view, row by row of pixels that should look alike.
        weight: of the off-diagonal elements.
        groups: equal runs of rows (tiles) that are standardised each by itself, so that what sets whole tiles apart
            (season, sun, sensor) earns nothing.
        average: mean of the correlation matrix over processes.
    """
    a, b = standardised(one, groups), standardised(two, groups)
    cross = average(torch.einsum("gpi,gpj->ij", a, b) / one.shape[0])
    diagonal = torch.diagonal(cross)
    on = (diagonal - 1).square().sum()
    off = cross.square().sum() - diagonal.square().sum()
    return (on + weight * off) / one.shape[1]


def missed(
    told_pd: torch.Tensor,
    wanted_pd: torch.Tensor,
    groups: int,
    average: Callable[[torch.Tensor], torch.Tensor] = _unchanged,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squares by which `told` misses `wanted` (P, D): among the rows of each tile, and of whole tiles.

    Within a tile both are taken from their means: what sets whole tiles apart (season, sun, sensor) need not be told.
    The second is how far the tiles' mean rows of `told` lie apart: what it costs to tell it all the same.
    """
    left = (wanted_pd - told_pd.float()).view(groups, -1, told_pd.shape[1])
    mean = told_pd.float().view(groups, -1, told_pd.shape[1]).mean(dim=1)
    apart = mean - average(mean.mean(dim=0))
    return (left - left.mean(dim=1, keepdim=True)).square().mean(), apart.square().mean()


def cosine_distance(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """1 - cosine of the rows of two (P, D), averaged."""
    return 1 - F.cosine_similarity(one.float(), two.float(), dim=1).mean()
