"""Presto (Tseng et al., arXiv:2304.14065): its parameters, and how it standardises and marks tokens.

Facts: nasaharvest/presto, `single_file_presto.py`. Fine-tuned checkpoints (WorldCereal's) have the same encoder, and a
head in the place of the decoder. Weather, elevation and land cover, which it can take too, are left out: masked, as in
training.
"""

from __future__ import annotations

import torch

from infer.contract.monthly import MONTHS
from infer.model.architecture import StateReader
from infer.model.months import (
    CHANNELS,
    GROUPS,
    MonthsNetwork,
    Needs,
    Tokens,
    first_month_first,
    norm_of,
    read_layers,
    width_of,
)
from infer.weights import Checkpoint

_LEFT_OUT = ("eo_patch_embed.ERA5.", "eo_patch_embed.SRTM.", "dw_embed.")
_CHANNEL_ROWS = {name: row for row, name in enumerate([*list(GROUPS)[:-1], "ERA5", "SRTM", "NDVI", "dynamic_world"])}


def presto_network(checkpoint: Checkpoint) -> MonthsNetwork:
    """The network of a checkpoint, on the CPU in float32.

    Raises:
        FormatError: naming parameters that are missing, misshapen or left over.
    """
    width = width_of(checkpoint, "eo_patch_embed.S1.weight")
    used = {name: value for name, value in checkpoint.state.items() if not name.startswith(_LEFT_OUT)}
    state = StateReader(used, checkpoint.path)
    positions = checkpoint.state.get("pos_embed")
    longest = int(positions.shape[1]) if positions is not None and positions.ndim == 3 else 2 * MONTHS
    position_md = state.take("pos_embed", 1, max(longest, MONTHS), width // 2)[0, :MONTHS]
    month_md = state.take("month_embed.weight", MONTHS, width // 4)
    channel_gd = state.take("channel_embed.weight", len(_CHANNEL_ROWS), width // 4)[[_CHANNEL_ROWS[g] for g in GROUPS]]

    def encoding(first_month: int) -> torch.Tensor:
        parts = (
            first_month_first(month_md, first_month).expand(len(GROUPS), -1, -1),
            channel_gd[:, None].expand(-1, MONTHS, -1),
            position_md.expand(len(GROUPS), -1, -1),
        )
        return torch.cat(parts, dim=-1)

    tokens = Tokens(
        {g: state.take(f"eo_patch_embed.{g}.weight", width, len(channels)) for g, channels in GROUPS.items()},
        {g: state.take(f"eo_patch_embed.{g}.bias", width) for g in GROUPS},
        encoding,
        torch.zeros(len(CHANNELS)),  # composites are standardised in Presto's way
        torch.ones(len(CHANNELS)),
        (state.take("latlon_embed.weight", width, 3), state.take("latlon_embed.bias", width)),
    )
    layers = read_layers(checkpoint, state, width, joined=True)
    norm = norm_of(state, "norm", width)
    state.finish()
    return MonthsNetwork("presto", Needs(location=True), tokens, layers, norm, norm_first=False)
