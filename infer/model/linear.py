"""Matrix products with what follows them: bias, ReLU, residual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from infer.model.state import StateReader


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b."""

    weight: torch.Tensor
    """(out, in)."""
    bias: torch.Tensor
    """(out,)."""

    @classmethod
    def read(cls, state: StateReader, name: str, outputs: int, inputs: int) -> Linear:
        """Take `name.weight` and `name.bias`."""
        return cls(state.take(f"{name}.weight", outputs, inputs), state.take(f"{name}.bias", outputs))

    def to(self, device: torch.device, dtype: torch.dtype) -> Linear:
        """The same on a device in a precision."""
        return Linear(self.weight.to(device, dtype), self.bias.to(device, dtype))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight, self.bias)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        """max(y, 0)."""
        return F.linear(x, self.weight, self.bias).relu_()

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """y + residual."""
        return F.linear(x, self.weight, self.bias).add_(residual)
