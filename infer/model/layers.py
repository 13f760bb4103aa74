"""Transformer encoder layers on packed tokens (N, d): no padding, attention within each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from infer.model.architecture import LayerKind
from infer.model.attention import attend
from infer.model.batch import Segment
from infer.model.linear import Linear
from infer.model.pointwise import NORM_EPSILON, AddNorm
from infer.model.state import StateReader


@dataclass(frozen=True)
class Norm:
    """Affine LayerNorm over the last axis."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def read(cls, state: StateReader, name: str, width: int) -> Norm:
        """Take `name.weight` and `name.bias`."""
        return cls(state.take(f"{name}.weight", width), state.take(f"{name}.bias", width))

    def to(self, device: torch.device, dtype: torch.dtype) -> Norm:
        """The same on a device in a precision."""
        return Norm(self.weight.to(device, dtype), self.bias.to(device, dtype))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, NORM_EPSILON)


@dataclass(frozen=True)
class EncoderLayer:
    """One layer, post- or pre-LN, with or without RMSNorm on queries and keys; ReLU between its two linears."""

    kind: LayerKind
    heads: int
    qkv: Linear
    out: Linear
    up: Linear
    down: Linear
    norm1: Norm
    norm2: Norm
    qk: tuple[torch.Tensor, torch.Tensor] | None
    add_norm: AddNorm | None = None
    """Residual sum and LayerNorm in one kernel, where there is one."""

    @classmethod
    def read(
        cls, state: StateReader, prefix: str, kind: LayerKind, width: int, heads: int, hidden: int
    ) -> EncoderLayer:
        """Take a layer's parameters; separate q, k and v are stacked."""
        qk = None
        scale = (width // heads) ** -0.5  # of the logits, moved into the queries once and for all
        if kind == "post":
            attention = f"{prefix}self_attn."
            weight = state.take(f"{attention}in_proj_weight", 3 * width, width)
            bias = state.take(f"{attention}in_proj_bias", 3 * width)
            weight = torch.cat([weight[:width] * scale, weight[width:]])
            bias = torch.cat([bias[:width] * scale, bias[width:]])
        else:
            attention = prefix
            weight = torch.cat([state.take(f"{prefix}{x}_proj.weight", width, width) for x in "qkv"])
            bias = torch.cat([state.take(f"{prefix}{x}_proj.bias", width) for x in "qkv"])
            head = width // heads
            qk = (state.take(f"{prefix}q_norm.weight", head) * scale, state.take(f"{prefix}k_norm.weight", head))
        return cls(
            kind,
            heads,
            Linear(weight, bias),
            Linear.read(state, f"{attention}out_proj", width, width),
            Linear.read(state, f"{prefix}linear1", hidden, width),
            Linear.read(state, f"{prefix}linear2", width, hidden),
            Norm.read(state, f"{prefix}norm1", width),
            Norm.read(state, f"{prefix}norm2", width),
            qk,
        )

    def to(self, device: torch.device, dtype: torch.dtype, add_norm: AddNorm | None = None) -> EncoderLayer:
        """The same on a device in a precision."""
        qk = None if self.qk is None else (self.qk[0].to(device, dtype), self.qk[1].to(device, dtype))
        return EncoderLayer(
            self.kind,
            self.heads,
            self.qkv.to(device, dtype),
            self.out.to(device, dtype),
            self.up.to(device, dtype),
            self.down.to(device, dtype),
            self.norm1.to(device, dtype),
            self.norm2.to(device, dtype),
            qk,
            add_norm,
        )

    def __call__(self, x_nd: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """(N, d) packed tokens in and out."""
        if self.kind == "pre-qk":
            mixed = attend(self.qkv(self.norm1(x_nd)), segments, self.heads, self.qk)
            x_nd = self.out.plus(mixed, x_nd)
            return self.down.plus(self.up.relu(self.norm2(x_nd)), x_nd)
        mixed = attend(self.qkv(x_nd), segments, self.heads, self.qk)
        if self.add_norm is not None:
            x_nd = self.add_norm(self.out(mixed), x_nd, self.norm1.weight, self.norm1.bias)
            return self.add_norm(self.down(self.up.relu(x_nd)), x_nd, self.norm2.weight, self.norm2.bias)
        x_nd = self.norm1(self.out.plus(mixed, x_nd))
        return self.norm2(self.down.plus(self.up.relu(x_nd), x_nd))
