"""A small v2 student of any size with random weights: what the self-test, the benchmark and the tests run."""

from __future__ import annotations

from typing import Any

import torch


def random_student(args: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Parameters of a freshly initialised v2 student, as torch's own modules initialise them.

    Args:
        args: as in a published checkpoint; `enable_qk_norm` chooses the other layer kind.
        seed: of torch's generator.

    Returns:
        A state dict with the names of the published format.
    """
    torch.manual_seed(seed)
    width, hidden = 4 * int(args["latent_dim"]), int(args["dim_feedforward"])
    state: dict[str, torch.Tensor] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        made = torch.nn.Linear(inputs, outputs)
        state[f"{name}.weight"], state[f"{name}.bias"] = made.weight.detach(), made.bias.detach()

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(size), torch.zeros(size)

    for modality, bands in (("s2", 10), ("s1", 2)):
        backbone = f"{modality}_backbone"
        linear(f"{backbone}.embedding.0", bands, width)
        linear(f"{backbone}.embedding.2", width, width)
        for index in range(int(args["num_layers"])):
            _layer(state, f"{backbone}.transformer_encoder", index, args, linear)
            prefix = _prefix(f"{backbone}.transformer_encoder", index, args)
            linear(f"{prefix}linear1", width, hidden)
            linear(f"{prefix}linear2", hidden, width)
            norm(f"{prefix}norm1", width)
            norm(f"{prefix}norm2", width)
        linear(f"{backbone}.attn_pool.query", width, 1)
    linear("dim_reducer.0", 2 * width, 4 * width)
    norm("dim_reducer.1", 4 * width)
    linear("dim_reducer.4", 4 * width, int(args["repr_dim"]))
    return state


def _prefix(encoder: str, index: int, args: dict[str, Any]) -> str:
    return f"{encoder}.{index}." if args.get("enable_qk_norm") else f"{encoder}.layers.{index}."


def _layer(state: dict[str, torch.Tensor], encoder: str, index: int, args: dict[str, Any], linear: Any) -> None:
    """Attention parameters of one layer."""
    width = 4 * int(args["latent_dim"])
    prefix = _prefix(encoder, index, args)
    if args.get("enable_qk_norm"):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{prefix}{name}", width, width)
        for name in ("q_norm", "k_norm"):
            state[f"{prefix}{name}.weight"] = torch.ones(width // int(args["nhead"]))
        return
    weight = torch.empty(3 * width, width)
    torch.nn.init.xavier_uniform_(weight)
    state[f"{prefix}self_attn.in_proj_weight"] = weight
    state[f"{prefix}self_attn.in_proj_bias"] = torch.zeros(3 * width)
    linear(f"{prefix}self_attn.out_proj", width, width)
