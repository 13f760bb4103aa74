"""Residual sum and LayerNorm in one kernel on an accelerator, and how a kernel of ours is tried before it is used.

On CPUs the sum is part of the product already (infer.model.linear).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

NORM_EPSILON = 1e-5
_EXAMPLE_ROWS = 50
_TOLERANCE = 5e-2

AddNorm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def add_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """LayerNorm(x + residual) over the last axis."""
    return F.layer_norm(x + residual, weight.shape, weight, bias, NORM_EPSILON)


def agrees(kernel: Callable[[], torch.Tensor], plain: Callable[[], torch.Tensor]) -> bool:
    """Whether a kernel runs here and gives what torch's own operations give; nothing that it raises goes further."""
    try:
        with torch.inference_mode():
            difference = (kernel().float() - plain().float()).abs().max()
            return bool(difference <= _TOLERANCE)
    except Exception as error:  # noqa: BLE001  # Triton, its compiler and its driver raise what they like; torch's own operations remain
        logging.getLogger(__name__).info("no kernels of our own here (%s: %s)", type(error).__name__, error)
        return False


def fused_add_norm(device: torch.device, dtype: torch.dtype, width: int) -> AddNorm | None:
    """`add_norm` as one kernel, or None where torch's own operations are used.

    Args:
        device: where it will run.
        dtype: of its tensors.
        width: of the last axis.
    """
    if device.type != "cuda":  # CUDA and ROCm
        return None
    try:
        from infer.model import triton_kernels
    except ImportError:
        return None
    kernel = partial(triton_kernels.add_norm, epsilon=NORM_EPSILON)
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(_EXAMPLE_ROWS, width, generator=generator).to(device, dtype) for _ in range(2))
    weight, bias = (torch.rand(width, generator=generator).to(device, dtype) for _ in range(2))
    arguments = x, residual, weight, bias
    return kernel if agrees(partial(kernel, *arguments), partial(add_norm, *arguments)) else None
