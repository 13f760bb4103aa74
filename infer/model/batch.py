"""A batch of tokens as the encoders take it: packed without padding, in runs of pixels of equal length."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Segment:
    """`pixels` consecutive pixels of `length` tokens each, starting at token `start` and pixel `first` of the batch."""

    start: int
    first: int
    pixels: int
    length: int
    log_multiplicity: torch.Tensor | None
    """Natural log of how often each token counts: (U,) for all pixels, or (P, U); float32; None when all count once."""
    expand: torch.Tensor | None = None
    """The full sequence as positions among a pixel's tokens, (B,) or (P, B) int64; for recurrent poolings only."""

    @property
    def stop(self) -> int:
        """One past its last token."""
        return self.start + self.pixels * self.length


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of one modality."""

    values_nc: torch.Tensor
    """(N, C) standardised bands, float32; rows beyond the last segment are padding (zeros)."""
    days_n: torch.Tensor
    """(N,) day of year, int64."""
    segments: tuple[Segment, ...]
    pixels: int
    """Number of pixels, the sum over the segments."""
