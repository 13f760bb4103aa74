"""The network: two backbones that do not see each other, a pooling each, and one fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from infer.model.architecture import FUSION_HEADS, Architecture, BackboneShape, layer_prefix, read_architecture
from infer.model.batch import Segment, TokenBatch
from infer.model.layers import EncoderLayer, Norm
from infer.model.linear import Linear
from infer.model.pointwise import AddNorm
from infer.model.pooling import GruPool, SoftmaxPool
from infer.model.state import StateReader
from infer.sequence import encoding_table
from infer.weights import Checkpoint

Modality = Literal["s2", "s1"]


@dataclass(frozen=True)
class Backbone:
    """Embedding, day-of-year encoding, encoder layers, pooling."""

    embed1: Linear
    embed2: Linear
    encodings: torch.Tensor
    """(367, d), one row a day of year."""
    layers: tuple[EncoderLayer, ...]
    pool: SoftmaxPool | GruPool

    @classmethod
    def read(cls, state: StateReader, name: str, prefix: str, shape: BackboneShape, pool: str) -> Backbone:
        """Take a backbone's parameters."""
        width = shape.width
        layers = tuple(
            EncoderLayer.read(state, f"{prefix}{i}.", shape.kind, width, shape.heads, shape.hidden)
            for i in range(shape.layers)
        )
        pooling: SoftmaxPool | GruPool
        if pool == "softmax":
            pooling = SoftmaxPool.read(state, f"{name}.attn_pool", width)
        else:
            pooling = GruPool.read(state, f"{name}.attn_pool", width, "hand" if pool == "gru-hand" else "torch")
        return cls(
            Linear.read(state, f"{name}.embedding.0", width, shape.bands),
            Linear.read(state, f"{name}.embedding.2", width, width),
            torch.from_numpy(encoding_table(width)),
            layers,
            pooling,
        )

    def to(self, device: torch.device, dtype: torch.dtype, add_norm: AddNorm | None) -> Backbone:
        """The same on a device in a precision."""
        return Backbone(
            self.embed1.to(device, dtype),
            self.embed2.to(device, dtype),
            self.encodings.to(device, dtype),
            tuple(layer.to(device, dtype, add_norm) for layer in self.layers),
            self.pool.to(device, dtype),
        )

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """(P, d) float32 pooled vectors of a batch."""
        hidden_nd = self.embed1.relu(batch.values_nc.to(self.encodings.dtype))
        x_nd = self.embed2.plus(hidden_nd, self.encodings.index_select(0, batch.days_n))
        for layer in self.layers:
            x_nd = layer(x_nd, batch.segments)
        return self.pool(x_nd, batch)


@dataclass(frozen=True)
class Fusion:
    """Two pooled vectors a pixel -> its embedding. Always float32: it runs once a pixel, not once a token."""

    modality_21d: torch.Tensor | None
    """The teacher's learned modality embedding."""
    layers: tuple[EncoderLayer, ...]
    """The teacher's transformer over the two vectors."""
    first: Linear
    norm: Norm | None
    last: Linear | None
    final_norm: bool

    @classmethod
    def read(cls, state: StateReader, architecture: Architecture) -> Fusion:
        """Take the fusion's parameters."""
        width = architecture.s2.width
        modality: torch.Tensor | None = None
        layers: tuple[EncoderLayer, ...] = ()
        if architecture.fusion_layers:
            modality = state.take("fusion_modality_embed", 2, width)
            layers = tuple(
                EncoderLayer.read(state, f"fusion_transformer.layers.{i}.", "pre-qk", width, FUSION_HEADS, 2 * width)
                for i in range(architecture.fusion_layers)
            )
        if not architecture.mlp_reducer:
            return cls(
                modality, layers, Linear.read(state, "dim_reducer.0", architecture.output, 2 * width), None, None, False
            )
        return cls(
            modality,
            layers,
            Linear.read(state, "dim_reducer.0", 4 * width, 2 * width),
            Norm.read(state, "dim_reducer.1", 4 * width),
            Linear.read(state, "dim_reducer.4", architecture.output, 4 * width),
            architecture.final_norm,
        )

    def to(self, device: torch.device) -> Fusion:
        """The same on a device."""
        dtype = torch.float32
        return Fusion(
            None if self.modality_21d is None else self.modality_21d.to(device, dtype),
            tuple(layer.to(device, dtype) for layer in self.layers),
            self.first.to(device, dtype),
            None if self.norm is None else self.norm.to(device, dtype),
            None if self.last is None else self.last.to(device, dtype),
            self.final_norm,
        )

    def _mix(self, s2_pd: torch.Tensor, s1_pd: torch.Tensor) -> torch.Tensor:
        """(P, 2d): the concatenation, after the teacher's transformer where there is one."""
        if self.modality_21d is None:
            return torch.cat([s2_pd, s1_pd], dim=1)
        pixels, width = s2_pd.shape
        x_nd = (torch.stack([s2_pd, s1_pd], dim=1) + self.modality_21d).reshape(2 * pixels, width)
        segments = (Segment(0, 0, pixels, 2, None),)
        for layer in self.layers:
            x_nd = layer(x_nd, segments)
        return x_nd.view(pixels, 2 * width)

    def __call__(self, s2_pd: torch.Tensor, s1_pd: torch.Tensor) -> torch.Tensor:
        """(P, out) float32 embeddings from (P, d) float32 vectors."""
        x = self.first(self._mix(s2_pd, s1_pd))
        if self.norm is not None and self.last is not None:
            x = self.last(self.norm(x).relu_())
        return F.layer_norm(x, x.shape[-1:]) if self.final_norm else x


@dataclass(frozen=True)
class Network:
    """A TESSERA network of any family on one device in one precision."""

    architecture: Architecture
    s2: Backbone
    s1: Backbone
    fusion: Fusion

    def to(self, device: torch.device, dtype: torch.dtype, add_norm: AddNorm | None = None) -> Network:
        """The same on a device; backbones in `dtype` (with `add_norm` where compiled), the fusion in float32."""
        s2, s1 = (backbone.to(device, dtype, add_norm) for backbone in (self.s2, self.s1))
        return Network(self.architecture, s2, s1, self.fusion.to(device))

    def encode(self, modality: Modality, batch: TokenBatch) -> torch.Tensor:
        """(P, d) float32 pooled vectors of a batch of one modality."""
        return self.s2(batch) if modality == "s2" else self.s1(batch)

    def fuse(self, s2_pd: torch.Tensor, s1_pd: torch.Tensor) -> torch.Tensor:
        """(P, out) float32 embeddings."""
        return self.fusion(s2_pd, s1_pd)


def uniform_batch(values_puc: torch.Tensor, days_pu: torch.Tensor, expand: Sequence[int] | None = None) -> TokenBatch:
    """A batch of pixels that all have the same number of tokens, each counted once."""
    pixels, length, bands = values_puc.shape
    positions = None if expand is None else torch.tensor(list(expand), device=values_puc.device)
    segment = Segment(0, 0, pixels, length, None, positions)
    return TokenBatch(values_puc.reshape(-1, bands), days_pu.reshape(-1).long(), (segment,), pixels)


def build_network(checkpoint: Checkpoint) -> Network:
    """Build the network of a checkpoint, on the CPU in float32.

    Raises:
        FormatError: naming parameters that are missing, misshapen or left over.
    """
    architecture = read_architecture(checkpoint)
    state = StateReader(checkpoint.state, checkpoint.path)
    backbones = {}
    for name, shape in (("s2_backbone", architecture.s2), ("s1_backbone", architecture.s1)):
        backbones[name] = Backbone.read(state, name, layer_prefix(checkpoint.state, name), shape, architecture.pool)
    network = Network(
        architecture, backbones["s2_backbone"], backbones["s1_backbone"], Fusion.read(state, architecture)
    )
    state.finish()
    return network
