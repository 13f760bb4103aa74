"""int8 codes with one float32 scale a pixel: value = code * scale, nodata = code 0 and scale NaN."""

from __future__ import annotations

from typing import Literal

import torch

Rounding = Literal["v2", "v1"]


def quantise(values_pc: torch.Tensor, rounding: Rounding = "v2") -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise embeddings pixel by pixel, symmetrically.

    Args:
        values_pc: (P, C) float32; a row of NaN is nodata.
        rounding: "v2" clips codes to -127..127; "v1" (v1.0, v1.1) to -128..127 with scales of at least 1e-8.

    Returns:
        (P, C) int8 codes and (P,) float32 scales.
    """
    values_pc = values_pc.float()
    nodata_p = torch.isnan(values_pc).any(dim=1)
    clean_pc = torch.where(nodata_p[:, None], torch.zeros((), device=values_pc.device), values_pc)
    scales_p = clean_pc.abs().amax(dim=1) / 127.0
    if rounding == "v1":
        scales_p = scales_p.clamp(min=1e-8)
    divisors_p = torch.where(scales_p > 0, scales_p, torch.ones_like(scales_p))
    low = -127 if rounding == "v2" else -128
    codes_pc = torch.round(clean_pc / divisors_p[:, None]).clamp_(low, 127).to(torch.int8)
    return codes_pc, torch.where(nodata_p, torch.full_like(scales_p, float("nan")), scales_p)
