"""The network: two backbones that do not see each other, a pooling each, and one fusion.

One `nn.Module` with the parameter names of the published checkpoints. Pretraining trains it as it is; the engine folds
the projections, moves it and packs its products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from infer.contract import BANDS, SAR_BANDS
from infer.model.architecture import (
    FUSION_HEADS,
    Architecture,
    BackboneShape,
    LayerKind,
    PoolKind,
    StateReader,
    read_architecture,
)
from infer.model.attention import Segment, TokenBatch
from infer.model.layers import EncoderLayer
from infer.model.linear import NORM_EPSILON, AddNorm, Linear
from infer.model.pooling import GruPool, SoftmaxPool
from infer.sequence import encoding_table
from infer.torch_file import Saved
from infer.weights import Checkpoint

Modality = Literal["s2", "s1"]


class Stack(nn.ModuleList):
    """Encoder layers one after the other."""

    def forward(self, x_nd: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """(N, d) packed tokens in and out."""
        for layer in self:
            x_nd = layer(x_nd, segments)
        return x_nd


class Encoder(nn.Module):
    """A stack named as in checkpoints that nest it under `layers`."""

    def __init__(self, layers: Stack) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x_nd: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """(N, d) packed tokens in and out."""
        mixed: torch.Tensor = self.layers(x_nd, segments)
        return mixed


class Backbone(nn.Module):
    """Embedding, day-of-year encoding, encoder layers, pooling."""

    encodings: torch.Tensor
    """(367, d), one row a day of year."""

    def __init__(self, shape: BackboneShape, pool: PoolKind) -> None:
        super().__init__()
        width = shape.width
        self.embedding = nn.Sequential(Linear(shape.bands, width), nn.ReLU(), Linear(width, width))
        layers = Stack(EncoderLayer(shape.kind, width, shape.heads, shape.hidden) for _ in range(shape.layers))
        self.transformer_encoder = layers if shape.kind == "post-qk" else Encoder(layers)
        self.attn_pool: SoftmaxPool | GruPool
        if pool == "softmax":
            self.attn_pool = SoftmaxPool(width)
        else:
            self.attn_pool = GruPool(width, "hand" if pool == "gru-hand" else "torch")
        self.register_buffer("encodings", torch.from_numpy(encoding_table(width)), persistent=False)

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """(P, d) float32 pooled vectors of a batch."""
        first, second = cast("tuple[Linear, Linear]", (self.embedding[0], self.embedding[2]))
        hidden_nd = first.relu(batch.values_nc.to(self.encodings.dtype))
        x_nd = second.plus(hidden_nd, self.encodings.index_select(0, batch.days_n))
        pooled_pd: torch.Tensor = self.attn_pool(self.transformer_encoder(x_nd, batch.segments), batch)
        return pooled_pd


class Network(nn.Module):
    """A TESSERA network of any family."""

    fusion_modality_embed: nn.Parameter
    """(2, d) the teacher's learned modality embedding."""
    fusion_transformer: Encoder
    """The teacher's transformer over the two vectors."""

    def __init__(self, architecture: Architecture) -> None:
        """Make the network with torch's own initial parameters, in float32."""
        super().__init__()
        self.architecture = architecture
        width = architecture.s2.width
        self.s2_backbone = Backbone(architecture.s2, architecture.pool)
        self.s1_backbone = Backbone(architecture.s1, architecture.pool)
        if architecture.fusion_layers:
            self.fusion_modality_embed = nn.Parameter(torch.zeros(2, width))
            layers = range(architecture.fusion_layers)
            self.fusion_transformer = Encoder(
                Stack(EncoderLayer("pre-qk", width, FUSION_HEADS, 2 * width) for _ in layers)
            )
        if architecture.mlp_reducer:
            self.dim_reducer = nn.Sequential(
                Linear(2 * width, 4 * width),
                nn.LayerNorm(4 * width, NORM_EPSILON),
                nn.ReLU(inplace=True),
                nn.Identity(),  # a Dropout in the published fusion; it keeps the numbering
                Linear(4 * width, architecture.output),
            )
        else:
            self.dim_reducer = nn.Sequential(Linear(2 * width, architecture.output))

    def fold(self) -> Network:
        """Bring parameters into the form that is computed with fastest, for good; it takes no gradients after that."""
        self.requires_grad_(False)
        for module in list(self.modules()):
            if isinstance(module, EncoderLayer | GruPool):
                module.fold()
        return self

    def place(self, device: torch.device, dtype: torch.dtype, add_norm: AddNorm | None = None) -> Network:
        """Move a folded network to a device, for good.

        The backbones compute in `dtype` (with `add_norm` where there is one). The fusion stays in float32: it runs once
        a pixel, not once a token. On a CPU products are packed where that works.
        """
        self.to(device)
        for backbone in (self.s2_backbone, self.s1_backbone):
            backbone.to(dtype)
            for module in backbone.modules():
                if isinstance(module, EncoderLayer):
                    module.add_norm = add_norm
        if device.type == "cpu":
            for module in self.modules():
                if isinstance(module, Linear):
                    module.pack()
        return self

    def encode(self, modality: Modality, batch: TokenBatch) -> torch.Tensor:
        """(P, d) float32 pooled vectors of a batch of one modality."""
        pooled_pd: torch.Tensor = (self.s2_backbone if modality == "s2" else self.s1_backbone)(batch)
        return pooled_pd

    def fuse(self, s2_pd: torch.Tensor, s1_pd: torch.Tensor) -> torch.Tensor:
        """(P, out) float32 embeddings from (P, d) float32 vectors."""
        x: torch.Tensor = self.dim_reducer(self._mixed(s2_pd, s1_pd)).float()
        return F.layer_norm(x, x.shape[-1:]) if self.architecture.final_norm else x

    def _mixed(self, s2_pd: torch.Tensor, s1_pd: torch.Tensor) -> torch.Tensor:
        """(P, 2d): the concatenation, after the teacher's transformer where there is one."""
        if not self.architecture.fusion_layers:
            return torch.cat([s2_pd, s1_pd], dim=1)
        pixels, width = s2_pd.shape
        x_nd = (torch.stack([s2_pd, s1_pd], dim=1) + self.fusion_modality_embed).reshape(2 * pixels, width)
        mixed: torch.Tensor = self.fusion_transformer(x_nd, (Segment(0, 0, pixels, 2, None),))
        return mixed.view(pixels, 2 * width)

    def forward(self, s2: TokenBatch, s1: TokenBatch) -> torch.Tensor:
        """(P, out) float32 embeddings of the same pixels' two batches."""
        return self.fuse(self.encode("s2", s2), self.encode("s1", s1))


def uniform_batch(values_puc: torch.Tensor, days_pu: torch.Tensor, expand: Sequence[int] | None = None) -> TokenBatch:
    """A batch of pixels that all have the same number of tokens, each counted once."""
    pixels, length, bands = values_puc.shape
    positions = None if expand is None else torch.tensor(list(expand), device=values_puc.device)
    segment = Segment(0, 0, pixels, length, None, positions)
    return TokenBatch(values_puc.reshape(-1, bands), days_pu.reshape(-1).long(), (segment,), pixels)


def build_network(checkpoint: Checkpoint) -> Network:
    """Build the network of a checkpoint, folded, on the CPU in float32.

    Raises:
        FormatError: naming parameters that are missing, misshapen or left over.
    """
    architecture = read_architecture(checkpoint)
    with torch.device("meta"):  # neither memory nor random numbers for parameters that are replaced
        network = Network(architecture)
    state = StateReader(checkpoint.state, checkpoint.path)
    parameters = {name: state.take(name, *empty.shape) for name, empty in network.state_dict().items()}
    state.finish()
    network.load_state_dict(parameters, assign=True)
    return network.fold()


def student_architecture(args: Saved) -> Architecture:
    """The architecture that the `args` of a v2 student's checkpoint state; `enable_qk_norm` chooses the layer kind."""
    latent, heads, layers, hidden, output = (
        int(args[name]) for name in ("latent_dim", "nhead", "num_layers", "dim_feedforward", "repr_dim")
    )
    kind: LayerKind = "post-qk" if args.get("enable_qk_norm") else "post"
    s2, s1 = (BackboneShape(len(bands), 4 * latent, heads, layers, hidden, kind) for bands in (BANDS, SAR_BANDS))
    return Architecture("v2-student", s2, s1, "softmax", 0, True, True, output, output)


def random_student(args: Saved, seed: int) -> dict[str, torch.Tensor]:
    """Parameters of a freshly initialised v2 student, as torch's own modules initialise them.

    Args:
        args: as in a published checkpoint.
        seed: of torch's generator.

    Returns:
        A state dict with the names of the published format.
    """
    torch.manual_seed(seed)
    return Network(student_architecture(args)).state_dict()
