"""Watching for collapse: how many directions the embeddings use, how far each number spreads, how steady they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Health:
    """Figures of an embedding matrix (P, D)."""

    effective_rank: float
    """exp(entropy of the normalised eigenvalues of the covariance), 1 to D (Roy & Vetterli 2007)."""
    spread_min: float
    """Smallest standard deviation of a dimension."""
    spread_median: float
    """Median standard deviation of a dimension."""

    @property
    def collapsed(self) -> bool:
        """Whether a dimension stands still, or nearly everything lies on one line."""
        return self.spread_min < 1e-3 or self.effective_rank < 1.5


def health(z_pd: torch.Tensor) -> Health:
    """Figures of embeddings (P, D)."""
    z = z_pd.detach().double().cpu()
    z = z - z.mean(dim=0)
    power = torch.linalg.svdvals(z).square()
    total = power.sum()
    if total <= 0:
        return Health(1.0, 0.0, 0.0)
    share = power / total
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    spread = z.std(dim=0, correction=0)
    return Health(float(entropy.exp()), float(spread.min()), float(spread.median()))


def steadiness(one_pd: torch.Tensor, two_pd: torch.Tensor) -> tuple[float, float]:
    """Mean cosine between rows of two embeddings of the same pixels: as they are, and with the common mean removed.

    The second is the stricter one: a mean that all pixels share makes any two embeddings look alike.
    """
    one, two = one_pd.double(), two_pd.double()
    plain = torch.cosine_similarity(one, two, dim=1).mean()
    mean = one.mean(dim=0)
    centred = torch.cosine_similarity(one - mean, two - mean, dim=1).mean()
    return float(plain), float(centred)
