"""Networks over monthly composites: what the families `presto` and `galileo-nano` have in common.

Both make tokens of the same seven groups of channels, month by month, and mix a pixel's tokens in pre-LN layers with
GELU. A family (a module beside this one) says how its checkpoint names the parameters, how channels are standardised,
what marks a token's channels, place and month, and whether the last LayerNorm comes before or after the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from infer.contract import FormatError
from infer.contract.monthly import MONTHS
from infer.contract.tile import BANDS, SAR_BANDS
from infer.model.architecture import StateReader
from infer.model.attention import Kernel, Segment, attend
from infer.model.linear import NORM_EPSILON, Linear
from infer.model.network import Modality
from infer.weights import Checkpoint

CHANNELS = ("VV", "VH", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12", "NDVI")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "S1": ("VV", "VH"),
    "S2_RGB": ("B02", "B03", "B04"),
    "S2_Red_Edge": ("B05", "B06", "B07"),
    "S2_NIR_10m": ("B08",),
    "S2_NIR_20m": ("B8A",),
    "S2_SWIR": ("B11", "B12"),
    "NDVI": ("NDVI",),
}
"""Names as checkpoints have them -> channels, in the order of the channel encodings; all but the first are optical."""
HEADS = 8
_SAR = len(SAR_BANDS)
_OPTICAL_TOKENS = len(GROUPS) - 1
_ORDER = [(*BANDS, *SAR_BANDS).index(name) for name in CHANNELS[:-1]]
_RED, _NIR = CHANNELS.index("B04"), CHANNELS.index("B08")


@dataclass(frozen=True)
class Needs:
    """What a tile must have."""

    season: bool = True
    """tile.json states the season: without it nobody knows which month is the first."""
    location: bool = False
    """tile.json states the grid, in a UTM zone."""
    modalities: tuple[Modality, ...] = ()
    """At least one date of each of these; empty: of any."""


@dataclass(frozen=True)
class Tokens:
    """How a family makes tokens."""

    weights: Mapping[str, torch.Tensor]
    """Group -> (d, channels)."""
    biases: Mapping[str, torch.Tensor]
    """Group -> (d,)."""
    encoding: Callable[[int], torch.Tensor]
    """First calendar month (0 = January) -> (7, 12, d): what is added to the token of a group and of the season's
    n-th month."""
    shift_c: torch.Tensor
    """(13,) subtracted from composites: reflectance, (dB + 25) / 25, NDVI."""
    divisor_c: torch.Tensor
    """(13,) then they are divided by it."""
    location: tuple[torch.Tensor, torch.Tensor] | None = None
    """(d, 3) and (d,): makes a token of the place on the unit sphere."""


class Layer(nn.Module):
    """Pre-LN attention and GELU, each with its residual."""

    def __init__(self, qkv: Linear, out: Linear, hidden: Linear, back: Linear, norms: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.qkv, self.out, self.hidden, self.back = qkv, out, hidden, back
        self.norm1, self.norm2 = norms

    def forward(self, x_nd: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """(N, d) packed tokens in and out."""
        kernel: Kernel | None = "bias" if x_nd.device.type == "cpu" else None  # torch's own: faster for 85 tokens
        x_nd = self.out.plus(attend(self.qkv(self.norm1(x_nd)), segments, HEADS, None, kernel), x_nd)
        return self.back.plus(self.hidden.gelu(self.norm2(x_nd)), x_nd)


def norm_of(state: StateReader, name: str, width: int) -> nn.LayerNorm:
    """A LayerNorm of a checkpoint."""
    with torch.device("meta"):
        norm = nn.LayerNorm(width, NORM_EPSILON)
    norm.weight, norm.bias = (
        nn.Parameter(state.take(f"{name}.{part}", width), requires_grad=False) for part in ("weight", "bias")
    )
    return norm


def read_layers(checkpoint: Checkpoint, state: StateReader, width: int, *, joined: bool) -> list[Layer]:
    """The layers `blocks.0` and so on.

    Args:
        checkpoint: whose parameters' names and shapes say how many there are, and how wide inside.
        state: hands them out.
        width: d.
        joined: queries, keys and values lie in one matrix (qkv), or in three.
    """
    layers: list[Layer] = []
    while any(name.startswith(f"blocks.{len(layers)}.") for name in checkpoint.state):
        name = f"blocks.{len(layers)}"
        inside = checkpoint.state.get(f"{name}.mlp.fc1.weight")
        hidden = inside.shape[0] if inside is not None and inside.ndim == 2 else 4 * width

        def linear(part: str, outputs: int, inputs: int, name: str = name) -> tuple[torch.Tensor, torch.Tensor]:
            return state.take(f"{name}.{part}.weight", outputs, inputs), state.take(f"{name}.{part}.bias", outputs)

        if joined:
            weight, bias = linear("attn.qkv", 3 * width, width)
        else:
            parts = [linear(f"attn.{part}", width, width) for part in "qkv"]
            weight, bias = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        scale = torch.ones(3 * width)
        scale[:width] = (width // HEADS) ** -0.5  # of the logits
        layers.append(
            Layer(
                Linear.of(weight * scale[:, None], bias * scale),
                Linear.of(*linear("attn.proj", width, width)),
                Linear.of(*linear("mlp.fc1", hidden, width)),
                Linear.of(*linear("mlp.fc2", width, hidden)),
                [norm_of(state, f"{name}.norm{number}", width) for number in (1, 2)],
            )
        )
    return layers


def width_of(checkpoint: Checkpoint, name: str) -> int:
    """d, from the shape of a parameter.

    Raises:
        FormatError: where it is missing or cannot be divided among the heads.
    """
    found = checkpoint.state.get(name)
    width = 0 if found is None or found.ndim == 0 else int(found.shape[0])
    if width == 0 or width % (4 * HEADS):
        raise FormatError(
            f"{checkpoint.path}: a network {width} wide cannot be divided among {HEADS} heads: use another checkpoint"
        )
    return width


class MonthsNetwork(nn.Module):
    """A network over the monthly composites of a pixel."""

    def __init__(
        self,
        name: str,
        needs: Needs,
        tokens: Tokens,
        layers: Sequence[Layer],
        norm: nn.LayerNorm,
        *,
        norm_first: bool,
        float32_only: str = "",
    ) -> None:
        """Put a family's parts together.

        Args:
            name: of the family, for messages.
            needs: what a tile must have.
            tokens: how tokens are made.
            layers: what mixes them.
            norm: the last LayerNorm.
            norm_first: it comes before the mean over a pixel's tokens, not after.
            float32_only: why bfloat16 will not do; empty where it does.
        """
        super().__init__()
        self.name, self.needs, self.float32_only = name, needs, float32_only
        self.width = int(norm.normalized_shape[0])
        self.layers, self.norm, self.norm_first = nn.ModuleList(layers), norm, norm_first
        self._encoding = tokens.encoding
        self._dtype = torch.float32
        self._bias = torch.stack([tokens.biases[group] for group in GROUPS])
        sar, optical = torch.zeros(_SAR, self.width), torch.zeros(len(CHANNELS) - _SAR, _OPTICAL_TOKENS, self.width)
        for number, (group, channels) in enumerate(GROUPS.items()):
            for place, channel in enumerate(channels):
                column = tokens.weights[group][:, place]
                if number == 0:
                    sar[CHANNELS.index(channel)] = column
                else:
                    optical[CHANNELS.index(channel) - _SAR, number - 1] = column
        self._sar: torch.Tensor
        self._optical: torch.Tensor
        self._shift: torch.Tensor
        self._divisor: torch.Tensor
        for part, value in (
            ("_sar", sar),
            ("_optical", optical.reshape(len(optical), -1)),
            ("_shift", tokens.shift_c),
            ("_divisor", tokens.divisor_c),
        ):
            self.register_buffer(part, value, persistent=False)
        self._location = None if tokens.location is None else Linear.of(*tokens.location)

    def place(self, device: torch.device, dtype: torch.dtype) -> MonthsNetwork:
        """Move the network to a device, for good; layers compute in `dtype`, tokens and the mean in float32."""
        self._dtype = dtype
        self.requires_grad_(False).to(device)
        self.layers.to(dtype)
        if device.type == "cpu":
            for module in self.modules():
                if isinstance(module, Linear):
                    module.pack()
        return self

    def table(self, first_month: int) -> torch.Tensor:
        """(7, 12, d) what is added to the tokens of a season that begins in this calendar month (0 = January)."""
        return (self._encoding(first_month) + self._bias[:, None]).to(self._sar.device)

    @property
    def own_tokens(self) -> int:
        """Of each pixel, besides those of its months."""
        return int(self._location is not None)

    def length(self, optical: int, radar: int) -> int:
        """Tokens of a pixel with so many months of each modality."""
        return self.own_tokens + optical * _OPTICAL_TOKENS + radar

    def channels(self, composites_pmf: torch.Tensor) -> torch.Tensor:
        """(P, 12, 13) standardised channels of (P, 12, 12) composites; NaN where there are none."""
        found = composites_pmf[..., _ORDER]
        red, nir = found[..., _RED], found[..., _NIR]
        total = red + nir
        index = torch.where(total <= 0, torch.zeros_like(total), (nir - red) / total)
        values: torch.Tensor = (torch.cat([found, index[..., None]], dim=-1) - self._shift) / self._divisor
        return values

    def forward(
        self,
        values_pmc: torch.Tensor,
        there_pm2: torch.Tensor,
        months: tuple[int, int],
        table_gmd: torch.Tensor,
        places_p3: torch.Tensor | None,
    ) -> torch.Tensor:
        """Embed pixels that have the same number of months of each modality.

        Args:
            values_pmc: (P, 12, 13) standardised channels.
            there_pm2: (P, 12, 2) bool, which months have Sentinel-2 and Sentinel-1.
            months: how many of each; not both 0.
            table_gmd: of the season, see `table`.
            places_p3: (P, 3) points of the unit sphere, where the family needs them.

        Returns:
            (P, d) float32.
        """
        pixels, width = len(values_pmc), self.width
        parts = []
        if self._location is not None:
            assert places_p3 is not None  # the engine has looked at what the family needs
            parts.append(self._location(places_p3)[:, None])
        optical, radar = (_first(there_pm2[..., number], count) for number, count in enumerate(months))
        if months[0]:
            taken = values_pmc[..., _SAR:].gather(1, optical[..., None].expand(-1, -1, len(CHANNELS) - _SAR))
            made = (taken @ self._optical).view(pixels, months[0], _OPTICAL_TOKENS, width)
            parts.append((made + table_gmd[1:].transpose(0, 1)[optical]).view(pixels, -1, width))
        if months[1]:
            taken = values_pmc[..., :_SAR].gather(1, radar[..., None].expand(-1, -1, _SAR))
            parts.append(taken @ self._sar + table_gmd[0][radar])
        x = torch.cat(parts, dim=1)
        length = x.shape[1]
        x_nd = x.view(pixels * length, width).to(self._dtype)
        segments = (Segment(0, 0, pixels, length, None),)
        for layer in self.layers:
            x_nd = layer(x_nd, segments)
        mixed = x_nd.view(pixels, length, width).float()
        if self.norm_first:
            mixed = self.norm(mixed)
        pooled = mixed.mean(dim=1)
        whole: torch.Tensor = pooled if self.norm_first else self.norm(pooled)
        return whole


def _first(there_pm: torch.Tensor, count: int) -> torch.Tensor:
    """(P, count) the months that are there, of which each pixel has so many."""
    return there_pm.int().argsort(dim=1, descending=True, stable=True)[:, :count]


def first_month_first(table_md: torch.Tensor, first_month: int) -> torch.Tensor:
    """(12, d) rows of calendar months, beginning with the season's first."""
    return torch.roll(table_md, -first_month, dims=0)[:MONTHS]
