"""Transformer encoder layers on packed tokens (N, d): no padding, attention within each pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from infer.model.architecture import LayerKind
from infer.model.attention import QK_EPSILON, Segment, attend
from infer.model.linear import NORM_EPSILON, AddNorm, Linear


class JoinedHeads(nn.Module):
    """The parameters of torch's nn.MultiheadAttention: queries, keys and values in one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)


class EncoderLayer(nn.Module):
    """One layer, post- or pre-LN, with or without RMSNorm on queries and keys; ReLU between its two linears.

    Parameters are named as the published checkpoints name them: with RMSNorm the projections lie in the layer itself.
    """

    self_attn: JoinedHeads
    """Without RMSNorm."""
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    out_proj: Linear
    q_norm: nn.RMSNorm
    k_norm: nn.RMSNorm

    def __init__(self, kind: LayerKind, width: int, heads: int, hidden: int) -> None:
        """Make the layer with torch's own initial parameters."""
        super().__init__()
        self.kind = kind
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        """Of the logits, moved into the queries."""
        if kind == "post":
            self.self_attn = JoinedHeads(width)
        else:
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                self.add_module(name, Linear(width, width))
            self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, QK_EPSILON) for _ in range(2))
        self.linear1, self.linear2 = Linear(width, hidden), Linear(hidden, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, NORM_EPSILON) for _ in range(2))
        self.qkv: Linear | None = None
        """Once folded: queries, keys and values in one product."""
        self.add_norm: AddNorm | None = None
        """Residual sum and LayerNorm in one kernel, where there is one."""

    def _projection(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(3d, d) and (3d,) of queries, keys and values; scaled unless the norms are."""
        if self.kind != "post":
            parts = (self.q_proj, self.k_proj, self.v_proj)
            return torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        weight, bias = self.self_attn.in_proj_weight, self.self_attn.in_proj_bias
        width = weight.shape[1]
        return (
            torch.cat([weight[:width] * self.scale, weight[width:]]),
            torch.cat([bias[:width] * self.scale, bias[width:]]),
        )

    def _norms(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Weights of the RMSNorm on queries (scaled) and on keys."""
        if self.kind == "post":
            return None
        query = self.q_norm.weight
        return (query * self.scale if self.qkv is None else query), self.k_norm.weight

    def fold(self) -> None:
        """Stack and scale the projections for good; takes no gradients from then on."""
        norms = self._norms()
        self.qkv = Linear.of(*self._projection())
        if norms is None:
            del self.self_attn.in_proj_weight, self.self_attn.in_proj_bias
        else:
            self.q_norm.weight = nn.Parameter(norms[0], requires_grad=False)
            del self.q_proj, self.k_proj, self.v_proj

    def _mixed(self, x_nd: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        qkv_nd = F.linear(x_nd, *self._projection()) if self.qkv is None else self.qkv(x_nd)
        return attend(qkv_nd, segments, self.heads, self._norms())

    def forward(self, x_nd: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """(N, d) packed tokens in and out."""
        out = self.self_attn.out_proj if self.kind == "post" else self.out_proj
        if self.kind == "pre-qk":
            x_nd = out.plus(self._mixed(self.norm1(x_nd), segments), x_nd)
            return self.linear2.plus(self.linear1.relu(self.norm2(x_nd)), x_nd)
        mixed = self._mixed(x_nd, segments)
        if self.add_norm is not None:
            x_nd = self.add_norm(out(mixed), x_nd, self.norm1.weight, self.norm1.bias)
            return self.add_norm(self.linear2(self.linear1.relu(x_nd)), x_nd, self.norm2.weight, self.norm2.bias)
        x_nd = self.norm1(out.plus(mixed, x_nd))
        normed: torch.Tensor = self.norm2(self.linear2.plus(self.linear1.relu(x_nd), x_nd))
        return normed
