"""The plain way to run TESSERA, to compare the engine with: padded sequences, batches by pair of bins, torch's layers.

Written apart from infer/ (only the tile reader, the checkpoint loader and the statistics are shared), so that it also
serves as an independent computation in the tests. numpy prepares every pixel's two sequences as the reference does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from infer.contract import Tile
from infer.normalisation import Statistics
from infer.weights import Checkpoint

F32 = NDArray[np.float32]


def pad_v2(n: int) -> NDArray[np.int64]:
    """Indices of the padded sequence of n observations, v2."""
    size = min(256, max(8, math.ceil(n / 8) * 8))
    if n >= size:
        return np.linspace(0, n - 1, size).astype(int)
    want = size - n
    if want <= n:
        fill = [group[len(group) // 2] for group in np.array_split(np.arange(n), want)]
    else:
        fill = [i % n for i in range(want)]
    return np.array([*range(n), *fill])


def pad_v11(n: int) -> NDArray[np.int64]:
    """Indices of the padded sequence of n observations, v1.1."""
    size = min(256, max(8, math.ceil(n / 8) * 8))
    if n > size:
        return np.array([group[len(group) // 2] for group in np.array_split(np.arange(n), size)])
    fill = np.rint(np.linspace(0, n - 1, size - n + 2)[1:-1]).astype(int)
    return np.concatenate([np.arange(n), fill]).astype(np.int64)


class DayEncoding(nn.Module):
    """Sinusoidal encoding of the raw day of year."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies: torch.Tensor
        steps = torch.arange(0, width, 2).float()
        self.register_buffer("frequencies", torch.exp(steps * -(math.log(10000.0) / width)), persistent=False)

    def forward(self, days_bt: torch.Tensor) -> torch.Tensor:
        angles = days_bt[..., None] * self.frequencies
        return torch.stack([torch.sin(angles), torch.cos(angles)], dim=-1).flatten(-2)


class QKLayer(nn.Module):
    """Encoder layer with RMSNorm on queries and keys, post- or pre-LN."""

    def __init__(self, width: int, heads: int, hidden: int, pre: bool) -> None:
        super().__init__()
        self.heads, self.pre = heads, pre
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.k_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.view(batch, length, self.heads, -1).transpose(1, 2)

        q, k = self.q_norm(split(self.q_proj(x))), self.k_norm(split(self.k_proj(x)))
        logits = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        mixed = logits.softmax(dim=-1) @ split(self.v_proj(x))
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]  # torch's modules are untyped callables

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(torch.relu(self.linear1(x)))  # type: ignore[no-any-return]  # torch's modules are untyped callables

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre:
            x = x + self._attend(self.norm1(x))
            return x + self._feed(self.norm2(x))
        x = self.norm1(x + self._attend(x))
        return self.norm2(x + self._feed(x))  # type: ignore[no-any-return]  # torch's modules are untyped callables


class Layers(nn.Module):
    """A stack named as in checkpoints that nest it under `layers`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class HandGruCell(nn.Module):
    """v1.1's own GRU: the reset gate acts before the matrix product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W_ir, self.W_iz, self.W_ih = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.W_hr, self.W_hz, self.W_hh = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.b_r, self.b_z, self.b_h = (nn.Parameter(torch.zeros(width)) for _ in range(3))

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        r = torch.sigmoid(self.W_ir(x) + self.W_hr(h) + self.b_r)
        z = torch.sigmoid(self.W_iz(x) + self.W_hz(h) + self.b_z)
        new = torch.tanh(self.W_ih(x) + self.W_hh(r * h) + self.b_h)
        return (1 - z) * h + z * new


class HandGru(nn.Module):
    """The cell over a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru_cell = HandGruCell(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros_like(x[:, 0])
        states = []
        for t in range(x.shape[1]):
            h = self.gru_cell(x[:, t], h)
            states.append(h)
        return torch.stack(states, dim=1)


class Pool(nn.Module):
    """Softmax over time."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.query = nn.Linear(width, 1)
        if kind == "gru-hand":
            self.temporal_context: nn.Module = HandGru(width)
            self.layer_norm = nn.LayerNorm(width)
        elif kind == "gru-torch":
            self.temporal_context = nn.GRU(width, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = x
        if self.kind == "gru-hand":
            states = self.layer_norm(self.temporal_context(x))
        elif self.kind == "gru-torch":
            states = self.temporal_context(x)[0]
        weights = torch.softmax(self.query(states), dim=1)
        return (weights * x).sum(dim=1)


class PlainBackbone(nn.Module):
    """Embedding, encoding, layers, pooling."""

    def __init__(self, bands: int, width: int, heads: int, layers: int, hidden: int, kind: str, pool: str) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(bands, width), nn.ReLU(), nn.Linear(width, width))
        self.days = DayEncoding(width)
        if kind == "post":
            layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, batch_first=True)
            self.transformer_encoder: nn.Module = nn.TransformerEncoder(layer, layers)
        else:
            stack: list[nn.Module] = [QKLayer(width, heads, hidden, kind == "pre-qk") for _ in range(layers)]
            self.transformer_encoder = Layers(stack) if kind == "pre-qk" else nn.Sequential(*stack)
        self.attn_pool = Pool(width, pool)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embedding(x[..., :-1]) + self.days(x[..., -1])
        return self.attn_pool(self.transformer_encoder(tokens))  # type: ignore[no-any-return]  # torch's modules are untyped callables


class PlainNetwork(nn.Module):
    """A network of any family with the checkpoint's own parameter names."""

    def __init__(self, family: str, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        width = state["s2_backbone.embedding.0.weight"].shape[0]
        heads = int(settings.get("nhead") or settings.get("s2_num_heads") or {"v1.0": 8}.get(family, 4))
        kind = "pre-qk" if family == "v2-teacher" else "post-qk" if settings.get("enable_qk_norm") else "post"
        pool = {"v1.1": "gru-hand", "v1.0-qat": "gru-hand", "v1.0": "gru-torch"}.get(family, "softmax")
        hidden = next(v.shape[0] for k, v in state.items() if k.endswith("0.linear1.weight") and "s2_" in k)
        layers = sum(k.startswith("s2_backbone.") and k.endswith("linear1.weight") for k in state)
        self.s2_backbone = PlainBackbone(10, width, heads, layers, hidden, kind, pool)
        self.s1_backbone = PlainBackbone(2, width, heads, layers, hidden, kind, pool)
        self.fusion = family == "v2-teacher"
        if self.fusion:
            self.fusion_modality_embed = nn.Parameter(torch.zeros(2, width))
            self.fusion_transformer = Layers([QKLayer(width, 4, 2 * width, True) for _ in range(2)])
        if "dim_reducer.4.weight" in state:
            out = state["dim_reducer.4.weight"].shape[0]
            self.dim_reducer = nn.Sequential(
                nn.Linear(2 * width, 4 * width),
                nn.LayerNorm(4 * width),
                nn.ReLU(),
                nn.Dropout(0),
                nn.Linear(4 * width, out),
            )
        else:
            self.dim_reducer = nn.Sequential(nn.Linear(2 * width, state["dim_reducer.0.weight"].shape[0]))
        self.output = int(
            state["dim_reducer.4.weight" if "dim_reducer.4.weight" in state else "dim_reducer.0.weight"].shape[0]
        )
        self.final = family == "v2-student" or bool(settings.get("final_layernorm"))

    def forward(self, s2: torch.Tensor, s1: torch.Tensor) -> torch.Tensor:
        pooled = [self.s2_backbone(s2), self.s1_backbone(s1)]
        if self.fusion:
            pooled = list(self.fusion_transformer(torch.stack(pooled, dim=1) + self.fusion_modality_embed).unbind(1))
        out = self.dim_reducer(torch.cat(pooled, dim=1))
        return nn.functional.layer_norm(out, out.shape[-1:]) if self.final else out


def plain_network(checkpoint: Checkpoint) -> PlainNetwork:
    """Build and load the network of a checkpoint, strictly."""
    network = PlainNetwork(checkpoint.family, checkpoint.settings, checkpoint.state)
    network.load_state_dict(dict(checkpoint.state), strict=True)
    return network.eval()


def _standardise(raw: NDArray[Any], statistics: Statistics) -> F32:
    mean, std = np.asarray(statistics.mean, np.float32), np.asarray(statistics.std, np.float32)
    return ((raw.astype(np.float32) - mean) / (std + np.float32(1e-9))).astype(np.float32)


def _padded(
    values_tpc: F32, days_t: NDArray[Any], valid_tp: NDArray[np.bool_], rule: str
) -> dict[int, tuple[Any, F32]]:
    """Bin -> (pixels, (P, bin, C + 1) sequences with the day in the last channel); bin 0 is the zero token of v2."""
    groups: dict[int, list[tuple[NDArray[np.int64], F32]]] = {}
    counts = valid_tp.sum(axis=0)
    for n in np.unique(counts):
        pixels = np.flatnonzero(counts == n)
        if n == 0:
            length = 1 if rule == "v2" else 8
            made = np.zeros((len(pixels), length, values_tpc.shape[2] + 1), np.float32)
        else:
            dates = np.nonzero(valid_tp[:, pixels].T)[1].reshape(len(pixels), n)
            dates = dates[:, pad_v2(int(n)) if rule == "v2" else pad_v11(int(n))]
            days = days_t[dates].astype(np.float32)[..., None]
            made = np.concatenate([values_tpc[dates, pixels[:, None]], days], axis=2)
        groups.setdefault(made.shape[1], []).append((pixels, made))
    return {b: (np.concatenate([p for p, _ in g]), np.concatenate([m for _, m in g])) for b, g in groups.items()}


def _pairs(s2: dict[int, tuple[Any, F32]], s1: dict[int, tuple[Any, F32]]) -> Iterator[tuple[Any, F32, F32]]:
    """Pixels, and both sequences, of every pair of bins."""
    for pixels2, made2 in s2.values():
        for pixels1, made1 in s1.values():
            pixels, rows2, rows1 = np.intersect1d(pixels2, pixels1, return_indices=True)
            if len(pixels):
                yield pixels, made2[rows2], made1[rows1]


def embed_plain(
    tile: Tile,
    checkpoint: Checkpoint,
    *,
    batch_pixels: int = 256,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    network: PlainNetwork | None = None,
) -> F32:
    """(H, W, C) float32 embedding of a tile, NaN where neither modality has an observation (v2 and v1.1)."""
    height, width = tile.shape_hw
    statistics = checkpoint.normalisation
    rule = "v1.1" if checkpoint.family == "v1.1" else "v2"
    s2_values = _standardise(tile.bands_thwb, statistics.s2).reshape(len(tile.doys_t), height * width, 10)
    asc, desc = _standardise(tile.sar_asc_thwp, statistics.asc), _standardise(tile.sar_desc_thwp, statistics.desc)
    s1_days = np.concatenate([tile.sar_asc_doys_t, tile.sar_desc_doys_t])
    s1_raw = np.concatenate([tile.sar_asc_thwp, tile.sar_desc_thwp])
    s1_values = np.concatenate([asc, desc]).reshape(len(s1_days), height * width, 2)
    s1_valid = (s1_raw != 0).any(axis=-1).reshape(len(s1_days), height * width)
    s2_valid = tile.masks_thw.reshape(len(tile.doys_t), height * width) != 0
    s2 = _padded(s2_values, tile.doys_t, s2_valid, rule)
    s1 = _padded(s1_values, s1_days, s1_valid, rule)
    network = (network or plain_network(checkpoint)).to(device, dtype)
    out = np.full((height * width, network.output), np.nan, np.float32)
    with torch.inference_mode():
        for pixels, x2, x1 in _pairs(s2, s1):
            for start in range(0, len(pixels), batch_pixels):
                part = slice(start, start + batch_pixels)
                batch = [torch.from_numpy(x[part]).to(device, dtype) for x in (x2, x1)]
                out[pixels[part]] = network(*batch).float().cpu().numpy()
    out[~(s2_valid.any(axis=0) | s1_valid.any(axis=0))] = np.nan
    embedding: F32 = out.reshape(height, width, network.output)
    return embedding
