"""Galileo nano (Tseng et al., arXiv:2502.09356) pixel by pixel: its parameters, how it standardises and marks tokens.

Facts: nasaharvest/galileo, `single_file_galileo.py` and `config/normalization.json`. Its patches of 8 x 8 pixels
collapse to one pixel by the pseudo-inverse of the resizing that it was trained with. What else it can take (weather,
elevation, land cover, lights, place) is left out: masked, as in training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from infer.contract import FormatError
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

_WIDEST = 128
"""Of nano. The larger ones have other numbers of heads, which their files do not state."""
_PATCH = 8
_POSITIONS = 24
_LEFT_OUT = ("sp_channel_embed", "t_channel_embed", "st_channel_embed")
_LEFT_OUT_MODULES = ("space_embed.", "time_embed.", "static_embed.")
_MEAN = (
    -11.728724389184965, -18.85558188024017, 1395.3408730676722, 1338.4026921784578, 1343.09883810357,
    1543.8607982512297, 2186.2022069512263, 2525.0932853316694, 2410.3377187373408, 2750.2854646886753,
    2234.911100061487, 1474.5311266077113,
)  # fmt: skip
"""Of its training data: dB of VV and VH, digital numbers of the optical bands, in the order of CHANNELS."""
_STD = (
    4.887145774840316, 5.730270320384293, 917.7041440370853, 913.2988423581528, 1092.678723527555, 1047.2206083460424,
    1048.0101611156767, 1143.6903026819996, 1098.979177751649, 1204.472755085893, 1145.9774063078878, 980.2429840007796,
)  # fmt: skip


def _standards() -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and divisor of composites: (x - (mean - 2 std)) / (4 std), and NDVI as it is."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (_MEAN, _STD))
    unit = torch.tensor([25.0] * 2 + [10_000.0] * (len(CHANNELS) - 3), dtype=torch.float64)  # of composites
    begin = torch.tensor([25.0] * 2 + [0.0] * (len(CHANNELS) - 3), dtype=torch.float64)
    shift, divisor = (mean - 2 * std + begin) / unit, 4 * std / unit
    one = torch.ones(1, dtype=torch.float64)
    return torch.cat([shift, 0 * one]).float(), torch.cat([divisor, one]).float()


def _one_pixel() -> torch.Tensor:
    """(64,) what a kernel of 8 x 8 pixels is multiplied by to become one of a single pixel."""
    basis = torch.eye(_PATCH**2).view(-1, 1, _PATCH, _PATCH)
    resized = F.interpolate(basis, (1, 1), mode="bicubic", antialias=True).flatten().double()
    return (resized / (resized @ resized)).float()


def galileo_network(checkpoint: Checkpoint) -> MonthsNetwork:
    """The network of a checkpoint, on the CPU in float32.

    Raises:
        FormatError: naming parameters that are missing, misshapen or left over.
    """
    width = width_of(checkpoint, "space_time_embed.S1.proj.weight")
    if width > _WIDEST:
        raise FormatError(f"{checkpoint.path}: a Galileo {width} wide, not nano ({_WIDEST}): use the nano checkpoint")
    used = {
        name: value
        for name, value in checkpoint.state.items()
        if name not in _LEFT_OUT and not name.startswith(_LEFT_OUT_MODULES)
    }
    state = StateReader(used, checkpoint.path)
    quarter = width // 4
    channel_gd = state.take("s_t_channel_embed", len(GROUPS), quarter)
    position_md = state.take("pos_embed", _POSITIONS, quarter)[:MONTHS]
    month_md = state.take("month_embed.weight", MONTHS, quarter)
    half = torch.cat([torch.zeros(quarter // 4), torch.ones(quarter // 4)])
    space_d = torch.cat([half, half])  # sine and cosine of the only pixel's row and column, 0

    def encoding(first_month: int) -> torch.Tensor:
        parts = (
            channel_gd[:, None].expand(-1, MONTHS, -1),
            position_md.expand(len(GROUPS), -1, -1),
            first_month_first(month_md, first_month).expand(len(GROUPS), -1, -1),
            space_d.expand(len(GROUPS), MONTHS, -1),
        )
        return torch.cat(parts, dim=-1)

    pixel, shape = _one_pixel(), (_PATCH, _PATCH)
    tokens = Tokens(
        {
            g: state.take(f"space_time_embed.{g}.proj.weight", width, len(channels), *shape).flatten(2) @ pixel
            for g, channels in GROUPS.items()
        },
        {g: state.take(f"space_time_embed.{g}.proj.bias", width) for g in GROUPS},
        encoding,
        *_standards(),
    )
    layers = read_layers(checkpoint, state, width, joined=False)
    norm = norm_of(state, "norm", width)
    state.finish()
    reason = "its tokens nearly cancel in the mean, and rounding moves pixels by 7 % of what tells them apart"
    return MonthsNetwork("galileo-nano", Needs(), tokens, layers, norm, norm_first=True, float32_only=reason)
