"""Matrix products with what follows them: bias, ReLU, residual.

On a CPU they go to oneDNN with weights packed once and the rest fused into the product. torch's own `F.linear` in
float32 goes to MKL, which was 2.3 times slower on the machine of docs/engine.md. The packed operators are those that
torch.compile uses; they are not public, so they are tried on the actual weights first and left alone where they are
missing or differ. On an accelerator bias and ReLU are the product's epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from infer.model.state import StateReader

_PROBE_ROWS = 24
_PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b."""

    weight: torch.Tensor
    """(out, in)."""
    bias: torch.Tensor
    """(out,)."""
    packed: Any = field(default=None, repr=False)
    """The weights in oneDNN's layout, or None."""

    @classmethod
    def read(cls, state: StateReader, name: str, outputs: int, inputs: int) -> Linear:
        """Take `name.weight` and `name.bias`."""
        return cls(state.take(f"{name}.weight", outputs, inputs), state.take(f"{name}.bias", outputs))

    def to(self, device: torch.device, dtype: torch.dtype) -> Linear:
        """The same on a device in a precision; packed on a CPU where that works."""
        plain = Linear(self.weight.to(device, dtype), self.bias.to(device, dtype))
        packed = _pack(plain) if device.type == "cpu" else None
        return plain if packed is None else packed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in) -> (N, out)."""
        if self.packed is not None:
            return _operator()(x, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]  # a torch operator
        return F.linear(x, self.weight, self.bias)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        """max(y, 0)."""
        if self.packed is not None:
            return _operator()(x, self.packed, self.bias, "relu", [], "")  # type: ignore[no-any-return]  # as above
        if x.device.type == "cuda":  # CUDA and ROCm fuse it
            return torch._addmm_activation(self.bias, x, self.weight.t())
        return F.linear(x, self.weight, self.bias).relu_()

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """y + residual."""
        if self.packed is not None:
            return _operator().binary(x, residual, self.packed, self.bias, "add")  # type: ignore[no-any-return]  # as above
        return F.linear(x, self.weight, self.bias).add_(residual)


def _operator() -> Any:
    return torch.ops.mkldnn._linear_pointwise


def _pack(plain: Linear) -> Linear | None:
    """Pack the weights for oneDNN, or None where that is impossible or gives something else."""
    if plain.weight.dtype not in _PROBE_TOLERANCE:
        return None
    try:
        packed = Linear(
            plain.weight, plain.bias, torch.ops.mkldnn._reorder_linear_weight(plain.weight.contiguous(), None)
        )
        agrees = _agrees(plain, packed)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):  # another torch, another processor
        return None
    return packed if agrees else None


def _agrees(plain: Linear, packed: Linear) -> bool:
    """Whether the packed operators compute what the plain ones do, on these weights."""
    generator = torch.Generator().manual_seed(0)
    dtype = plain.weight.dtype
    with torch.inference_mode():
        x = torch.randn(_PROBE_ROWS, plain.weight.shape[1], generator=generator).to(dtype)
        residual = torch.randn(_PROBE_ROWS, plain.weight.shape[0], generator=generator).to(dtype)
        pairs = (
            (plain(x), packed(x)),
            (plain.relu(x), packed.relu(x)),
            (plain.plus(x, residual), packed.plus(x, residual)),
        )
        return all(
            bool((a.float() - b.float()).abs().max() <= _PROBE_TOLERANCE[dtype] * a.float().abs().max())
            for a, b in pairs
        )
