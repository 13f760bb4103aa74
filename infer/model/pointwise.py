"""What stands between matrix products, residual sum and LayerNorm, in one kernel: `--compile` on an accelerator.

There these steps are bound by memory, not by arithmetic, and fusing them saves a pass over the activations. The
function is compiled once per process and tried on an example; where that fails (no Triton, no compiler) or gives
something else, torch's own operations are used. On CPUs the sum is part of the product already (infer.model.linear).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

NORM_EPSILON = 1e-5
_EXAMPLE_ROWS = 48
_TOLERANCE = 5e-2

AddNorm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def add_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """LayerNorm(x + residual) over the last axis."""
    return F.layer_norm(x + residual, weight.shape, weight, bias, NORM_EPSILON)


def compiled_add_norm(device: torch.device, dtype: torch.dtype, width: int, **options: Any) -> AddNorm | None:
    """`add_norm` as one kernel.

    Args:
        device: where it will run.
        dtype: of its tensors.
        width: of the last axis.
        options: for torch.compile.

    Returns:
        The compiled function, or None where compiling does not work.
    """
    try:
        compiled: AddNorm = torch.compile(add_norm, dynamic=True, **options)
        with torch.inference_mode():
            arguments = [torch.randn(_EXAMPLE_ROWS, width, device=device).to(dtype) for _ in range(2)]
            arguments += [torch.rand(width, device=device).to(dtype) for _ in range(2)]
            difference = (compiled(*arguments).float() - add_norm(*arguments).float()).abs().max()
    except (RuntimeError, ImportError, OSError, AssertionError) as error:  # what dynamo, inductor and Triton raise
        logging.getLogger(__name__).info("torch.compile does not work here (%s)", type(error).__name__)
        return None
    return compiled if bool(difference <= _TOLERANCE) else None
