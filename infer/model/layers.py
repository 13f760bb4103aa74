"""Transformer encoder layers on packed tokens (N, d): no padding, attention within each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from infer.model.architecture import LayerKind
from infer.model.batch import Segment
from infer.model.linear import Linear
from infer.model.state import StateReader

NORM_EPSILON = 1e-5
QK_EPSILON = 1e-6


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


def attend(
    qkv_nd: torch.Tensor, segments: Sequence[Segment], heads: int, norms: tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    """Softmax attention of every pixel's tokens among themselves.

    Args:
        qkv_nd: (N, 3d) queries, keys, values.
        segments: runs of pixels of equal length; a token's log multiplicity is added to its logits as a key.
        heads: number of heads; d is divided among them.
        norms: weights (d / heads,) of the RMSNorm on queries and on keys, or None.

    Returns:
        (N, d) in the precision of `qkv_nd`.
    """
    tokens, width = qkv_nd.shape[0], qkv_nd.shape[1] // 3
    out_nd = qkv_nd.new_empty(tokens, width)
    for segment in segments:
        shape = (segment.pixels, segment.length, 3, heads, width // heads)
        q, k, v = qkv_nd[segment.start : segment.stop].view(shape).permute(2, 0, 3, 1, 4)
        if norms is not None:
            q = F.rms_norm(q, norms[0].shape, norms[0], QK_EPSILON)
            k = F.rms_norm(k, norms[1].shape, norms[1], QK_EPSILON)
        bias = None
        if segment.log_multiplicity is not None:
            bias = segment.log_multiplicity.to(q.dtype).reshape(-1, 1, 1, segment.length)
            bias = bias.expand(segment.pixels, heads, segment.length, segment.length)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out_nd[segment.start : segment.stop].view(segment.pixels, segment.length, heads, width // heads).copy_(
            mixed.transpose(1, 2)
        )
    return out_nd


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

    @classmethod
    def read(
        cls, state: StateReader, prefix: str, kind: LayerKind, width: int, heads: int, hidden: int
    ) -> EncoderLayer:
        """Take a layer's parameters; separate q, k and v are stacked."""
        qk = None
        if kind == "post":
            attention = f"{prefix}self_attn."
            weight = state.take(f"{attention}in_proj_weight", 3 * width, width)
            bias = state.take(f"{attention}in_proj_bias", 3 * width)
        else:
            attention = prefix
            weight = torch.cat([state.take(f"{prefix}{x}_proj.weight", width, width) for x in "qkv"])
            bias = torch.cat([state.take(f"{prefix}{x}_proj.bias", width) for x in "qkv"])
            head = width // heads
            qk = (state.take(f"{prefix}q_norm.weight", head), state.take(f"{prefix}k_norm.weight", head))
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

    def to(self, device: torch.device, dtype: torch.dtype) -> EncoderLayer:
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
        )

    def __call__(self, x_nd: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """(N, d) packed tokens in and out."""
        if self.kind == "pre-qk":
            mixed = attend(self.qkv(self.norm1(x_nd)), segments, self.heads, self.qk)
            x_nd = self.out.plus(mixed, x_nd)
            return self.down.plus(self.up.relu(self.norm2(x_nd)), x_nd)
        mixed = attend(self.qkv(x_nd), segments, self.heads, self.qk)
        x_nd = self.norm1(self.out.plus(mixed, x_nd))
        return self.norm2(self.down.plus(self.up.relu(x_nd), x_nd))
