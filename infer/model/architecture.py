"""What a network looks like, read from its checkpoint: sizes from tensor shapes, heads from its settings; and its
parameters, taken out by name and shape."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from infer.contract import BANDS, SAR_BANDS, FormatError, brief_name, one_line
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
_MANY = 10_000
"""Of layers, heads or dimensions: more than any checkpoint has."""


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


def _matrix(checkpoint: Checkpoint, key: str) -> tuple[int, int]:
    """Rows and columns of a parameter."""
    shape = _shape(checkpoint, key, 2)
    return shape[0], shape[1]


def _shape(checkpoint: Checkpoint, key: str, axes: int) -> tuple[int, ...]:
    if key not in checkpoint.state:
        raise _unfit(checkpoint, f"parameter {key} is missing")
    shape = tuple(checkpoint.state[key].shape)
    if len(shape) != axes:
        raise _unfit(checkpoint, f"parameter {key} has {len(shape)} axes, not {axes}")
    return shape


def _unfit(checkpoint: Checkpoint, problem: str) -> FormatError:
    return FormatError(f"{checkpoint.path}: {problem}: use a whole {checkpoint.family} checkpoint")


def _setting(checkpoint: Checkpoint, key: str, default: int = 0) -> int:
    """A setting that is a number of things."""
    value = checkpoint.settings.get(key, default)
    if type(value) is not int or not 0 < value < _MANY:
        raise _unfit(checkpoint, f"its setting {key} is {brief_name(value)}, not a number of them")
    return value


def _layers(state: Collection[str], prefix: str) -> int:
    numbers = {key[len(prefix) :].split(".", 1)[0] for key in state if key.startswith(prefix)}
    return len({n for n in numbers if n.isdigit()})


def layer_prefix(state: Collection[str], backbone: str) -> str:
    """Where a backbone's layers are: `transformer_encoder.layers.` or `transformer_encoder.` (QK-norm students)."""
    nested = f"{backbone}.transformer_encoder.layers."
    return nested if any(key.startswith(nested) for key in state) else f"{backbone}.transformer_encoder."


def _heads(checkpoint: Checkpoint, modality: str, width: int, kind: LayerKind, first: str) -> int:
    if kind != "post":
        return width // _shape(checkpoint, f"{first}q_norm.weight", 1)[0]
    for key in ("nhead", f"{modality}_num_heads"):
        if key in checkpoint.settings:
            return _setting(checkpoint, key)
    if (checkpoint.family, width) in V1_HEADS:
        return V1_HEADS[checkpoint.family, width]
    raise FormatError(f"{checkpoint.path}: does not state its number of attention heads: give --heads")


def _backbone(checkpoint: Checkpoint, modality: str, bands: int) -> BackboneShape:
    state, name = checkpoint.state, f"{modality}_backbone"
    width, found = _matrix(checkpoint, f"{name}.embedding.0.weight")
    if found != bands:
        raise FormatError(
            f"{checkpoint.path}: {name} takes {found} channels, a tile has {bands}: use another checkpoint"
        )
    prefix = layer_prefix(state, name)
    layers = _layers(state, prefix)
    if not 0 < layers < _MANY:
        raise _unfit(checkpoint, f"{name} has {layers} transformer layers")
    if _matrix(checkpoint, f"{name}.embedding.2.weight") != (width, width):
        # All other parameters are about as large: whoever states an absurd width has to store it.
        raise _unfit(checkpoint, f"{name}.embedding.2.weight is not {width} x {width}")
    first = f"{prefix}0."
    kind: LayerKind = "post"
    if f"{first}q_norm.weight" in state:
        kind = "pre-qk" if checkpoint.family == "v2-teacher" else "post-qk"
    heads = _heads(checkpoint, modality, width, kind, first)
    if heads < 1 or width % heads:
        raise _unfit(checkpoint, f"{heads} heads do not divide the width {width}")
    hidden, _ = _matrix(checkpoint, f"{first}linear1.weight")
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
    output, _ = _matrix(checkpoint, "dim_reducer.4.weight" if mlp else "dim_reducer.0.weight")
    saved = output
    if family == "v1.1":
        saved = min(output, _setting(checkpoint, "save_embedding_dim", 128))
    pool: PoolKind = "softmax"
    if family in ("v1.1", "v1.0-qat"):
        pool = "gru-hand"
    elif family == "v1.0":
        pool = "gru-torch"
    final_norm = family == "v2-student" or (
        family == "v2-teacher" and checkpoint.settings.get("final_layernorm", False) in (True, 1)
    )
    fusion = _layers(state, "fusion_transformer.layers.")
    if fusion >= _MANY or (fusion and s2.width % FUSION_HEADS):
        raise _unfit(checkpoint, f"{fusion} fusion layers of {FUSION_HEADS} heads do not fit the width {s2.width}")
    return Architecture(family, s2, s1, pool, fusion, mlp, final_norm, output, saved)


_SHOWN = 6
_LENGTH = 120
"""Characters of a name or problem, which a file may make as long as it likes."""


def _some(names: list[str]) -> str:
    shown = ", ".join(one_line(name[:_LENGTH]) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


class StateReader:
    """Hands out parameters once each; `finish` complains about the rest."""

    def __init__(self, state: Mapping[str, torch.Tensor], path: Path) -> None:
        self._state = state
        self._path = path
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._wrong: list[str] = []

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The parameter `name` as float32. What is missing or misshapen is noted and reported by `finish`."""
        self._taken.add(name)
        tensor = self._state.get(name)
        if tensor is None:
            self._missing.append(name)
            return torch.zeros(shape)
        if tuple(tensor.shape) != shape:
            self._wrong.append(f"{name} {tuple(tensor.shape)}, expected {shape}")
            return torch.zeros(shape)
        return tensor.detach().float()

    def finish(self) -> None:
        """Check that every parameter was used and none was missing.

        Raises:
            FormatError: naming the keys.
        """
        problems = []
        if self._missing:
            problems.append(f"missing {_some(self._missing)}")
        if self._wrong:
            problems.append(f"of another shape {_some(self._wrong)}")
        left = sorted(set(self._state) - self._taken)
        if left:
            problems.append(f"left over {_some(left)}")
        if problems:
            raise FormatError(
                f"{self._path}: parameters do not fit the network: {'; '.join(problems)}: use another checkpoint"
            )
