"""Presto and Galileo in plain numpy and float64, token by token: written for the tests from the published formulae.

Composites are made here too (statistics.median, calendar dates), and places by pyproj: nothing is shared with the
engine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyproj import Transformer

from bench.made_tile import made_tile
from infer.contract import MASK_POLARITY, Tile
from infer.contract.provenance import TileGrid, Window
from infer.contract.tile import TileManifest

SIDE, WEST, NORTH = 6, 500_000.0, 8_000_000.0
BANDS = ("B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12")
MANIFEST = TileManifest(
    grid=TileGrid("EPSG:32733", (10.0, 0.0, WEST, 0.0, -10.0, NORTH), SIDE, SIDE),
    window=Window(date(2021, 10, 1), date(2022, 9, 30)),
    band_order=BANDS,
    mask_polarity=MASK_POLARITY,
)
GROUPS = {
    "S1": ("VV", "VH"), "S2_RGB": ("B02", "B03", "B04"), "S2_Red_Edge": ("B05", "B06", "B07"), "S2_NIR_10m": ("B08",),
    "S2_NIR_20m": ("B8A",), "S2_SWIR": ("B11", "B12"), "NDVI": ("NDVI",),
}  # fmt: skip
Vector = NDArray[np.float64]


def gappy_tile() -> Tile:
    """A season from October on the southern hemisphere; in row 0: no Sentinel-2, neither, no Sentinel-1, one date."""
    tile = made_tile(SIDE, 14, 9, seed=3)
    masks, asc, desc = (array.copy() for array in (tile.masks_thw, tile.sar_asc_thwp, tile.sar_desc_thwp))
    masks[:, 0, :3] = 0
    masks[:, 0, 4] = np.arange(len(masks)) == 5
    asc[:, 0, 2:5] = 0
    desc[:, 0, 2:5] = 0
    desc[2:, 3:] = 0
    return replace(tile, manifest=MANIFEST, masks_thw=masks, sar_asc_thwp=asc, sar_desc_thwp=desc)


def _month(doy: int) -> int:
    begins = date(2021, 10, 1)
    day = date(2021, 1, 1) + timedelta(days=doy - 1)
    if day < begins:
        day = date(2022, 1, 1) + timedelta(days=doy - 1)
    return min((day.year - begins.year) * 12 + day.month - begins.month, 11)


def composites(tile: Tile, row: int, column: int) -> list[dict[str, float]]:
    """Month by month: digital numbers and dB of the channels that were observed."""
    found: list[dict[str, float]] = []
    for month in range(12):
        here: dict[str, float] = {}
        clear = [
            tile.bands_thwb[number, row, column]
            for number, doy in enumerate(tile.doys_t)
            if tile.masks_thw[number, row, column] == 1 and _month(int(doy)) == month
        ]
        if clear:
            here |= {band: float(statistics.median(int(v[i]) for v in clear)) for i, band in enumerate(BANDS)}
            total = here["B08"] + here["B04"]
            here["NDVI"] = (here["B08"] - here["B04"]) / total if total > 0 else 0.0
        seen = [
            stack[number, row, column]
            for stack, doys in ((tile.sar_asc_thwp, tile.sar_asc_doys_t), (tile.sar_desc_thwp, tile.sar_desc_doys_t))
            for number, doy in enumerate(doys)
            if stack[number, row, column].any() and _month(int(doy)) == month
        ]
        if seen:
            here |= {p: statistics.median((int(v[i]) / 200 - 50) / 2 for v in seen) for i, p in enumerate(("VV", "VH"))}
        found.append(here)
    return found


def _norm(x: Vector, p: Mapping[str, Vector], name: str) -> Vector:
    z = (x - x.mean()) / math.sqrt(float(((x - x.mean()) ** 2).mean()) + 1e-5)
    return z * p[f"{name}.weight"] + p[f"{name}.bias"]


def _linear(x: Vector, p: Mapping[str, Vector], name: str) -> Vector:
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def _gelu(x: Vector) -> Vector:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def _attention(tokens: list[Vector], queries: list[Vector], keys: list[Vector], values: list[Vector]) -> list[Vector]:
    width, heads = len(tokens[0]), 8
    size, mixed = width // heads, [np.zeros(width) for _ in tokens]
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i, query in enumerate(queries):
            logits = np.array([query[part] @ key[part] / math.sqrt(size) for key in keys])
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            mixed[i][part] = sum(w * value[part] for w, value in zip(weights, values, strict=True))
    return mixed


def _blocks(
    tokens: list[Vector], p: Mapping[str, Vector], project: Callable[[Vector, str], tuple[Vector, Vector, Vector]]
) -> list[Vector]:
    depth = len({name.split(".")[1] for name in p if name.startswith("blocks.")})
    for number in range(depth):
        name = f"blocks.{number}"
        projected = [project(_norm(x, p, f"{name}.norm1"), f"{name}.attn") for x in tokens]
        queries, keys, values = ([part[i] for part in projected] for i in range(3))
        mixed = _attention(tokens, queries, keys, values)
        tokens = [x + _linear(m, p, f"{name}.attn.proj") for x, m in zip(tokens, mixed, strict=True)]
        tokens = [
            x + _linear(_gelu(_linear(_norm(x, p, f"{name}.norm2"), p, f"{name}.mlp.fc1")), p, f"{name}.mlp.fc2")
            for x in tokens
        ]
    return tokens


def presto(state: Mapping[str, torch.Tensor], tile: Tile, row: int, column: int) -> Vector | None:
    """The embedding of a pixel by a state of the published names; None where it was never observed."""
    p = {k.removeprefix("encoder."): v.double().numpy() for k, v in state.items() if k.startswith("encoder.")}
    rows = ["S1", "S2_RGB", "S2_Red_Edge", "S2_NIR_10m", "S2_NIR_20m", "S2_SWIR", "ERA5", "SRTM", "NDVI"]
    tokens = []
    for position, here in enumerate(composites(tile, row, column)):
        for group, channels in GROUPS.items():
            if channels[0] not in here:
                continue
            scaled = [
                (here[c] + 25) / 25 if c in ("VV", "VH") else here[c] if c == "NDVI" else here[c] / 10_000
                for c in channels
            ]
            mark = [
                p["month_embed.weight"][(9 + position) % 12],
                p["channel_embed.weight"][rows.index(group)],
                p["pos_embed"][0, position],
            ]
            tokens.append(_linear(np.array(scaled), p, f"eo_patch_embed.{group}") + np.concatenate(mark))
    if not tokens:
        return None
    easting, northing = WEST + 10 * (column + 0.5), NORTH - 10 * (row + 0.5)
    lon, lat = Transformer.from_crs(32733, 4326, always_xy=True).transform(easting, northing)
    a, b = math.radians(lat), math.radians(lon)
    sphere = np.array([math.cos(a) * math.cos(b), math.cos(a) * math.sin(b), math.sin(a)])
    tokens.insert(0, _linear(sphere, p, "latlon_embed"))

    def joined(x: Vector, name: str) -> tuple[Vector, Vector, Vector]:
        query, key, value = np.split(_linear(x, p, f"{name}.qkv"), 3)
        return query, key, value

    mixed = _blocks(tokens, p, joined)
    return _norm(sum(mixed[1:], mixed[0]) / len(mixed), p, "norm")


GALILEO_MEAN = (
    -11.728724389184965, -18.85558188024017, 1395.3408730676722, 1338.4026921784578, 1343.09883810357,
    1543.8607982512297, 2186.2022069512263, 2525.0932853316694, 2410.3377187373408, 2750.2854646886753,
    2234.911100061487, 1474.5311266077113,
)  # fmt: skip
GALILEO_STD = (
    4.887145774840316, 5.730270320384293, 917.7041440370853, 913.2988423581528, 1092.678723527555, 1047.2206083460424,
    1048.0101611156767, 1143.6903026819996, 1098.979177751649, 1204.472755085893, 1145.9774063078878, 980.2429840007796,
)  # fmt: skip
_FLAT = [channel for channels in GROUPS.values() for channel in channels][:-1]


def _cubic(x: float) -> float:
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def _one_pixel() -> Vector:
    """(8, 8) pseudo-inverse of the antialiased bicubic resizing of 8 x 8 pixels to one."""
    line = np.array([_cubic((i + 0.5 - 4) / 8) for i in range(8)])
    line /= line.sum()
    square: Vector = np.outer(line, line)
    return square / (square**2).sum()


def galileo(state: Mapping[str, torch.Tensor], tile: Tile, row: int, column: int) -> Vector | None:
    """The embedding of a pixel by a state of the published names; None where it was never observed."""
    p = {k: v.double().numpy() for k, v in state.items()}
    tokens, resized = [], _one_pixel()
    for position, here in enumerate(composites(tile, row, column)):
        for number, (group, channels) in enumerate(GROUPS.items()):
            if channels[0] not in here:
                continue
            token = p[f"space_time_embed.{group}.proj.bias"].copy()
            for place, channel in enumerate(channels):
                value = here[channel]
                if channel != "NDVI":
                    mean, std = GALILEO_MEAN[_FLAT.index(channel)], GALILEO_STD[_FLAT.index(channel)]
                    value = (value - (mean - 2 * std)) / (4 * std)
                token += (p[f"space_time_embed.{group}.proj.weight"][:, place] * resized).sum(axis=(1, 2)) * value
            quarter = len(token) // 4
            space = [math.sin(0.0)] * (quarter // 4) + [math.cos(0.0)] * (quarter // 4)
            mark = [
                p["s_t_channel_embed"][number],
                p["pos_embed"][position],
                p["month_embed.weight"][(9 + position) % 12],
                np.array(space + space),
            ]
            tokens.append(token + np.concatenate(mark))
    if not tokens:
        return None

    def apart(x: Vector, name: str) -> tuple[Vector, Vector, Vector]:
        return _linear(x, p, f"{name}.q"), _linear(x, p, f"{name}.k"), _linear(x, p, f"{name}.v")

    mixed = [_norm(x, p, "norm") for x in _blocks(tokens, p, apart)]
    return sum(mixed[1:], mixed[0]) / len(mixed)


def whole(one: Callable[..., Vector | None], state: Mapping[str, Any], tile: Tile, width: int) -> Vector:
    """(H, W, d) of a tile, NaN where nothing was observed."""
    height, across = tile.shape_hw
    made = np.full((height, across, width), np.nan)
    for row in range(height):
        for column in range(across):
            found = one(state, tile, row, column)
            if found is not None:
                made[row, column] = found
    return made


class _Random:
    """Parameters that are the same with every version of numpy and torch."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.RandomState(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        scale = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        return torch.from_numpy(self._rng.standard_normal(shape) * scale).float()


def _random_blocks(
    r: _Random, prefix: str, width: int, depth: int, projections: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    state = {}
    for number in range(depth):
        name = f"{prefix}blocks.{number}"
        for norm in ("norm1", "norm2"):
            state |= {f"{name}.{norm}.weight": 1 + r(width), f"{name}.{norm}.bias": r(width)}
        shapes = {f"attn.{part}": (3 if part == "qkv" else 1, 1) for part in projections}
        shapes |= {"attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for part, (outputs, inputs) in shapes.items():
            state[f"{name}.{part}.weight"] = r(outputs * width, inputs * width)
            state[f"{name}.{part}.bias"] = r(outputs * width)
    return state


def random_presto(width: int = 32, depth: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state of the published names and shapes, decoder's beginning included."""
    r, state = _Random(seed), {}
    state["encoder.pos_embed"] = r(1, 24, width // 2)
    sizes = {**{group: len(channels) for group, channels in GROUPS.items()}, "ERA5": 2, "SRTM": 2}
    for group, channels in sizes.items():
        state[f"encoder.eo_patch_embed.{group}.weight"] = r(width, channels)
        state[f"encoder.eo_patch_embed.{group}.bias"] = r(width)
    state["encoder.dw_embed.weight"] = r(10, width)
    state |= {"encoder.latlon_embed.weight": r(width, 3), "encoder.latlon_embed.bias": r(width)}
    state |= _random_blocks(r, "encoder.", width, depth, ("qkv",))
    state |= {"encoder.norm.weight": 1 + r(width), "encoder.norm.bias": r(width)}
    state |= {"encoder.month_embed.weight": r(12, width // 4), "encoder.channel_embed.weight": r(10, width // 4)}
    state |= {"decoder.mask_token": r(width), "decoder.decoder_embed.weight": r(width, width)}
    return state


def random_galileo(width: int = 32, depth: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    """A state of the published names and shapes, with some of what is left out."""
    r = _Random(seed)
    quarter = width // 4
    state = {"pos_embed": r(24, quarter), "s_t_channel_embed": r(7, quarter), "month_embed.weight": r(12, quarter)}
    for group, channels in GROUPS.items():
        state[f"space_time_embed.{group}.proj.weight"] = r(width, len(channels), 8, 8)
        state[f"space_time_embed.{group}.proj.bias"] = r(width)
    state |= _random_blocks(r, "", width, depth, ("q", "k", "v"))
    state |= {"norm.weight": 1 + r(width), "norm.bias": r(width), "st_channel_embed": r(4, quarter)}
    state |= {"space_embed.SRTM.proj.weight": r(width, 2, 8, 8), "static_embed.location.weight": r(width, 3)}
    return state
