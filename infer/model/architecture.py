"""What a network looks like, read from its checkpoint: sizes from tensor shapes, heads from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from infer.contract import BANDS, SAR_BANDS, FormatError
from infer.contract.registry import MATRYOSHKA, Family
from infer.sequence import Rule
from infer.weights import Checkpoint

LayerKind = Literal["post", "post-qk", "pre-qk"]
"""Post-LN (torch's default), post-LN with RMSNorm on q and k, pre-LN with RMSNorm on q and k."""
PoolKind = Literal["softmax", "gru-torch", "gru-hand"]

V1_HEADS: dict[tuple[Family, int], int] = {("v1.0", 512): 8, ("v1.0-qat", 512): 4}
"""(family, width) -> heads: v1.0 checkpoints do not state theirs, the reference's code does (published width)."""
FUSION_HEADS = 4
"""The teacher's fusion transformer."""


@dataclass(frozen=True)
class BackboneShape:
    """One modality's encoder."""

    bands: int
    width: int
    """d, the model dimension."""
    heads: int
    layers: int
    hidden: int
    """Width of the feed-forward layer."""
    kind: LayerKind


@dataclass(frozen=True)
class Architecture:
    """A whole network."""

    family: Family
    s2: BackboneShape
    s1: BackboneShape
    pool: PoolKind
    fusion_layers: int
    """Layers of the teacher's fusion transformer, else 0."""
    mlp_reducer: bool
    """Linear LayerNorm ReLU Linear; otherwise one Linear (v1.0)."""
    final_norm: bool
    """Non-affine LayerNorm at the very end."""
    output: int
    """Dimensions that the network gives."""
    saved: int
    """Leading dimensions that the family saves by default."""

    @property
    def rule(self) -> Rule | None:
        """Sequence rule; None for v1.0, which draws at random."""
        return {"v2-student": "v2", "v2-teacher": "v2", "v1.1": "v1.1"}.get(self.family)  # type: ignore[return-value]  # the literals above

    def dimensions(self, requested: int) -> int:
        """Number of leading dimensions to write for a requested one (0 = what the family saves).

        Raises:
            FormatError: for a prefix that this family does not have.
        """
        if requested in (0, self.saved):
            return self.saved
        if self.family == "v2-student" and requested in MATRYOSHKA and requested <= self.saved:
            return requested
        choices = [d for d in MATRYOSHKA if d < self.saved] if self.family == "v2-student" else []
        allowed = ", ".join(map(str, [*choices, self.saved]))
        raise FormatError(
            f"dim {requested}: this {self.family} checkpoint gives {allowed}: choose one of these (0 = {self.saved})"
        )


def _shape(checkpoint: Checkpoint, key: str) -> tuple[int, ...]:
    try:
        return tuple(checkpoint.state[key].shape)
    except KeyError:
        raise FormatError(
            f"{checkpoint.path}: parameter {key} is missing: use a whole {checkpoint.family} checkpoint"
        ) from None


def _layers(state: Mapping[str, Any], prefix: str) -> int:
    numbers = {key[len(prefix) :].split(".", 1)[0] for key in state if key.startswith(prefix)}
    return len({n for n in numbers if n.isdigit()})


def layer_prefix(state: Mapping[str, Any], backbone: str) -> str:
    """Where a backbone's layers are: `transformer_encoder.layers.` or `transformer_encoder.` (QK-norm students)."""
    nested = f"{backbone}.transformer_encoder.layers."
    return nested if any(key.startswith(nested) for key in state) else f"{backbone}.transformer_encoder."


def _heads(checkpoint: Checkpoint, modality: str, width: int, kind: LayerKind, first: str) -> int:
    if kind != "post":
        return width // _shape(checkpoint, f"{first}q_norm.weight")[0]
    for key in ("nhead", f"{modality}_num_heads"):
        if key in checkpoint.settings:
            return int(checkpoint.settings[key])
    if (checkpoint.family, width) in V1_HEADS:
        return V1_HEADS[checkpoint.family, width]
    raise FormatError(f"{checkpoint.path}: does not state its number of attention heads: give --heads")


def _backbone(checkpoint: Checkpoint, modality: str, bands: int) -> BackboneShape:
    state, name = checkpoint.state, f"{modality}_backbone"
    width, found = _shape(checkpoint, f"{name}.embedding.0.weight")
    if found != bands:
        raise FormatError(
            f"{checkpoint.path}: {name} takes {found} channels, a tile has {bands}: use another checkpoint"
        )
    prefix = layer_prefix(state, name)
    layers = _layers(state, prefix)
    if layers == 0:
        raise FormatError(f"{checkpoint.path}: {name} has no transformer layers: use another checkpoint")
    first = f"{prefix}0."
    kind: LayerKind = "post"
    if f"{first}q_norm.weight" in state:
        kind = "pre-qk" if checkpoint.family == "v2-teacher" else "post-qk"
    heads = _heads(checkpoint, modality, width, kind, first)
    if width % heads:
        raise FormatError(f"{checkpoint.path}: {heads} heads do not divide the width {width}: use another checkpoint")
    hidden = _shape(checkpoint, f"{first}linear1.weight")[0]
    return BackboneShape(bands, width, heads, layers, hidden, kind)


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """Derive the network from its checkpoint.

    Raises:
        FormatError: naming the parameter or setting that is missing or does not fit.
    """
    state, family = checkpoint.state, checkpoint.family
    s2 = _backbone(checkpoint, "s2", len(BANDS))
    s1 = _backbone(checkpoint, "s1", len(SAR_BANDS))
    if s1.width != s2.width:
        raise FormatError(f"{checkpoint.path}: backbones of width {s2.width} and {s1.width}: use another checkpoint")
    mlp = "dim_reducer.4.weight" in state
    output = _shape(checkpoint, "dim_reducer.4.weight" if mlp else "dim_reducer.0.weight")[0]
    saved = output
    if family == "v1.1":
        saved = min(output, int(checkpoint.settings.get("save_embedding_dim", 128)))
    pool: PoolKind = "softmax"
    if family in ("v1.1", "v1.0-qat"):
        pool = "gru-hand"
    elif family == "v1.0":
        pool = "gru-torch"
    final_norm = family == "v2-student" or (
        family == "v2-teacher" and bool(checkpoint.settings.get("final_layernorm", False))
    )
    return Architecture(
        family, s2, s1, pool, _layers(state, "fusion_transformer.layers."), mlp, final_norm, output, saved
    )
