"""The network that is trained: a v2 student in torch.nn, with the parameter names of the published checkpoints.

The engine runs its own form of the same network (infer.model); tests/unit/test_pretrain_network.py holds the two
together. Sequences here are padded by drawing with replacement, so no attention mask is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from infer.contract import BANDS, SAR_BANDS
from infer.pretrain.views import View

DAYS = 367
"""Rows of the day-of-year table: 0 for an empty modality, 1 to 366."""


@dataclass(frozen=True)
class Shape:
    """Size of a student."""

    latent_dim: int = 16
    """Width d is four times this."""
    num_layers: int = 2
    nhead: int = 4
    dim_feedforward: int = 128
    repr_dim: int = 128
    """Length of the embedding."""

    @property
    def width(self) -> int:
        """Width d of a backbone."""
        return 4 * self.latent_dim


def day_table(width: int) -> torch.Tensor:
    """(367, d) sinusoidal encoding of the raw day of year: even channels sin, odd cos."""
    days = torch.arange(DAYS, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-torch.log(torch.tensor(10000.0)) / width))
    table = torch.empty(DAYS, width, dtype=torch.float64)
    table[:, 0::2], table[:, 1::2] = torch.sin(days * rate), torch.cos(days * rate)
    return table.float()


class Attention(nn.Module):
    """Self-attention with the parameter names of nn.MultiheadAttention, without its fast path and masks."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_ptd: torch.Tensor) -> torch.Tensor:
        """(P, T, d) to (P, T, d)."""
        pixels, length, width = x_ptd.shape
        qkv = F.linear(x_ptd, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(pixels, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.out_proj(mixed.transpose(1, 2).reshape(pixels, length, width))
        return out


class Layer(nn.Module):
    """Post-LN encoder layer with ReLU; dropout is left out (the views are noise enough)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x_ptd: torch.Tensor) -> torch.Tensor:
        """(P, T, d) to (P, T, d)."""
        x_ptd = self.norm1(x_ptd + self.self_attn(x_ptd))
        out: torch.Tensor = self.norm2(x_ptd + self.linear2(F.relu(self.linear1(x_ptd))))
        return out


class Pool(nn.Module):
    """Softmax over time of one linear score."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, 1)

    def forward(self, x_ptd: torch.Tensor) -> torch.Tensor:
        """(P, T, d) to (P, d)."""
        weights_pt1 = torch.softmax(self.query(x_ptd).float(), dim=1).to(x_ptd.dtype)
        return (weights_pt1 * x_ptd).sum(dim=1)


class Backbone(nn.Module):
    """Bands and days of one modality to one vector a pixel."""

    days: torch.Tensor

    def __init__(self, bands: int, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.embedding = nn.Sequential(nn.Linear(bands, width), nn.ReLU(), nn.Linear(width, width))
        layers = [Layer(width, shape.nhead, shape.dim_feedforward) for _ in range(shape.num_layers)]
        self.transformer_encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.attn_pool = Pool(width)
        self.register_buffer("days", day_table(width), persistent=False)

    def forward(self, values_ptc: torch.Tensor, days_pt: torch.Tensor) -> torch.Tensor:
        """(P, T, C) standardised values and (P, T) days of year to (P, d)."""
        x_ptd = self.embedding(values_ptc) + self.days[days_pt]
        for layer in self.transformer_encoder["layers"].children():
            x_ptd = layer(x_ptd)
        pooled: torch.Tensor = self.attn_pool(x_ptd)
        return pooled


class Student(nn.Module):
    """Both backbones, the fusion and the final non-affine LayerNorm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.shape = shape
        self.s2_backbone = Backbone(len(BANDS), shape)
        self.s1_backbone = Backbone(len(SAR_BANDS), shape)
        # The published fusion has a Dropout at position 3; Identity keeps the numbering and nothing else.
        self.dim_reducer = nn.Sequential(
            nn.Linear(2 * width, 4 * width),
            nn.LayerNorm(4 * width),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(4 * width, shape.repr_dim),
        )

    def forward(self, view: View) -> torch.Tensor:
        """(P, out) embeddings of a view."""
        s2_pd = self.s2_backbone(view.s2_ptc, view.s2_days_pt)
        s1_pd = self.s1_backbone(view.s1_ptc, view.s1_days_pt)
        z = self.dim_reducer(torch.cat([s2_pd, s1_pd], dim=1))
        return F.layer_norm(z.float(), z.shape[-1:])


def published_args(shape: Shape, prefixes: tuple[int, ...]) -> dict[str, Any]:
    """The `args` of a v2 student checkpoint."""
    return {
        "repr_dim": shape.repr_dim,
        "latent_dim": shape.latent_dim,
        "num_layers": shape.num_layers,
        "nhead": shape.nhead,
        "dim_feedforward": shape.dim_feedforward,
        "matryoshka_dims": ",".join(str(size) for size in prefixes),
    }


def shape_of(args: Mapping[str, Any]) -> Shape:
    """The size that a checkpoint's `args` state."""
    names = ("latent_dim", "num_layers", "nhead", "dim_feedforward", "repr_dim")
    return Shape(**{name: int(args[name]) for name in names})
