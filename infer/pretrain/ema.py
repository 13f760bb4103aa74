"""Exponential moving average of a module: parameters are averaged, buffers are copied."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """Follows a module; its copy never takes gradients."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start from the module as it is; `decay` is reached after a warm-up of about 10 / (1 - decay) steps."""
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.module.eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the module after step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
        for kept, current in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(current)
