"""Matrix products with what follows them: bias, ReLU, GELU, residual, LayerNorm.

On a CPU they go to oneDNN with weights packed once and the rest fused into the product. torch's own `F.linear` in
float32 goes to MKL, which was 2.3 times slower on the machine of docs/engine.md. The packed operators are those that
torch.compile uses; they are not public, so they are tried on the actual weights first and left alone where they are
missing or differ. On an accelerator bias and ReLU are the product's epilogue. While gradients are recorded everything
is torch's own, and no sum is done in place: under autocast a sum has to keep its residual's precision.
Residual sum and LayerNorm are one kernel of ours on an accelerator, which is tried before it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

AddNorm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

NORM_EPSILON = 1e-5
_EXAMPLE_ROWS = 50
_TOLERANCE = 5e-2
_PROBE_ROWS = 24
_PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Linear(nn.Linear):
    """y = x W^T + b, with the parameters and the initialisation of torch's own."""

    packed: Any = None
    """The weights in oneDNN's layout, or None."""

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        """One that computes with these, (out, in) and (out,), and takes no gradients."""
        with torch.device("meta"):
            made = cls(weight.shape[1], weight.shape[0])
        made.weight, made.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in) -> (N, out)."""
        if self.packed is not None:
            return _operator()(x, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]  # a torch operator
        return F.linear(x, self.weight, self.bias)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        """max(y, 0)."""
        if self.packed is not None:
            return _operator()(x, self.packed, self.bias, "relu", [], "")  # type: ignore[no-any-return]  # as above
        if x.device.type == "cuda" and not torch.is_grad_enabled():  # CUDA and ROCm fuse it
            return torch._addmm_activation(self.bias, x, self.weight.t())
        return F.linear(x, self.weight, self.bias).relu_()

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """GELU of y, by the error function."""
        if self.packed is not None:
            return _operator()(x, self.packed, self.bias, "gelu", [], "none")  # type: ignore[no-any-return]  # as above
        return F.gelu(F.linear(x, self.weight, self.bias))

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """y + residual."""
        if self.packed is not None:
            return _operator().binary(x, residual, self.packed, self.bias, "add")  # type: ignore[no-any-return]  # as above
        y = F.linear(x, self.weight, self.bias)
        return y + residual if torch.is_grad_enabled() else y.add_(residual)

    def pack(self) -> None:
        """From now on compute with oneDNN's packed weights, unless that is impossible here or gives something else."""
        tolerance = _PROBE_TOLERANCE.get(self.weight.dtype)
        if tolerance is None:
            return
        try:
            plain = self._probe()
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().contiguous(), None)
            same = all(
                bool((a.float() - b.float()).abs().max() <= tolerance * a.float().abs().max())
                for a, b in zip(plain, self._probe(), strict=True)
            )
        except (RuntimeError, AttributeError, TypeError, NotImplementedError):  # another torch, another processor
            same = False
        if not same:
            self.packed = None

    @torch.inference_mode()
    def _probe(self) -> tuple[torch.Tensor, ...]:
        """What each of the four products makes of numbers that are the same every time."""
        generator = torch.Generator().manual_seed(0)
        x, residual = (
            torch.randn(_PROBE_ROWS, size, generator=generator).to(self.weight.dtype)
            for size in (self.in_features, self.out_features)
        )
        return self(x), self.relu(x), self.gelu(x), self.plus(x, residual)


def _operator() -> Any:
    return torch.ops.mkldnn._linear_pointwise


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
