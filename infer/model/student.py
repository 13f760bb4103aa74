"""The v2 student: its architecture from the settings that its checkpoint states, and one with random weights."""

from __future__ import annotations

import torch

from infer.contract import BANDS, SAR_BANDS
from infer.model.architecture import Architecture, BackboneShape, LayerKind
from infer.model.network import Network
from infer.torch_file import Saved


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
