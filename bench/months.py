"""Presto and Galileo nano in the engine against the plain network on padded batches, one core, in one run.

python -m bench.months [--side 32] [--repeats 3]; random weights of the published sizes, a clear and a cloudy season.
The plain network is what one would write first: all 84 tokens of every pixel, missing ones masked, torch's own
operations, its best batch size. Composites are in the time of both, and their share is told.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.months_reference import (  # type: ignore[import-not-found]  # noqa: E402  # of the tests
    MANIFEST,
    random_galileo,
    random_presto,
)

from bench.made_tile import made_tile  # noqa: E402
from infer.contract import Tile  # noqa: E402
from infer.contract.monthly import monthly_composites, season_start  # noqa: E402
from infer.device import Device  # noqa: E402
from infer.families import OVER_MONTHS  # noqa: E402
from infer.location import unit_vectors  # noqa: E402
from infer.model.months import HEADS, MonthsNetwork  # noqa: E402
from infer.monthly import MonthsEngine  # noqa: E402
from infer.weights import Checkpoint, load_checkpoint  # noqa: E402

STATES = {"presto": (random_presto, 2), "galileo-nano": (random_galileo, 4)}
BATCHES = (32, 128, 512)


def plain(network: MonthsNetwork, tile: Tile, batch: int) -> NDArray[np.float32]:
    """(P, d) of all pixels; `network` lends its parameters."""
    height, width = tile.shape_hw
    composites = monthly_composites(tile, slice(None), slice(None)).reshape(-1, 12, 12)
    rows, columns = np.divmod(np.arange(height * width), width)
    places = torch.from_numpy(unit_vectors(tile, rows, columns))
    table = network.table(season_start(tile.manifest.window).month - 1)
    found = [
        _plain(network, torch.from_numpy(composites[i : i + batch]), table, places[i : i + batch])
        for i in range(0, len(composites), batch)
    ]
    return torch.cat(found).numpy()


def _plain(n: Any, composites: torch.Tensor, table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    pixels, d = len(composites), n.width
    there = ~composites[..., [0, -1]].isnan()
    values = n.channels(composites).nan_to_num()
    optical = (values[..., 2:] @ n._optical).view(pixels, 12, -1, d) + table[1:].transpose(0, 1)
    radar = values[..., :2] @ n._sar + table[0]
    x = torch.cat([radar[:, :, None], optical], dim=2).view(pixels, -1, d)
    mask = torch.cat([there[..., 1:], there[..., :1].expand(-1, -1, 6)], dim=2).reshape(pixels, -1)
    if n._location is not None:
        x = torch.cat([F.linear(places, n._location.weight, n._location.bias)[:, None], x], dim=1)
        mask = torch.cat([torch.ones(pixels, 1, dtype=torch.bool), mask], dim=1)
    for layer in n.layers:
        q, k, v = F.linear(layer.norm1(x), layer.qkv.weight, layer.qkv.bias).chunk(3, dim=-1)
        q, k, v = (y.view(pixels, -1, HEADS, d // HEADS).transpose(1, 2) for y in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], scale=1.0)
        x = x + F.linear(mixed.transpose(1, 2).reshape(x.shape), layer.out.weight, layer.out.bias)
        hidden = F.gelu(F.linear(layer.norm2(x), layer.hidden.weight, layer.hidden.bias))
        x = x + F.linear(hidden, layer.back.weight, layer.back.bias)
    if n.norm_first:
        x = n.norm(x)
    pooled = (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return pooled if n.norm_first else n.norm(pooled)


def timed(work: Callable[[], object]) -> float:
    """Seconds of this process's processor time, in all its threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(season: str, checkpoint: Checkpoint, tile: Tile, repeats: int) -> None:
    """Measure one model on one tile and print it."""
    build, pixels = OVER_MONTHS[checkpoint.family], tile.masks_thw[0].size
    engine = MonthsEngine(checkpoint, Device(torch.device("cpu"), "float32", 1), build(checkpoint))
    network = build(checkpoint)
    first = engine.embed(tile)
    cut = {n: getattr(tile, n)[:, :12] for n in ("bands_thwb", "masks_thw", "sar_asc_thwp", "sar_desc_thwp")}
    small = replace(tile, **cut)
    best = min(BATCHES, key=lambda batch: timed(lambda: plain(network, small, batch)))
    ours, theirs, composing = [], [], []
    for _ in range(repeats):
        ours.append(timed(lambda: engine.embed(tile)))
        theirs.append(timed(lambda: plain(network, tile, best)))
        composing.append(timed(lambda: monthly_composites(tile, slice(None), slice(None))))
    engine.close()
    apart = np.nanmax(np.abs(first.values_hwc.reshape(pixels, -1) - plain(network, tile, best)))
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    share = 100 * statistics.median(composing) / statistics.median(ours)
    print(
        f"{checkpoint.family}, {season}: {pixels / statistics.median(ours):.0f} pixels/s a core, {ratio:.2f} x the "
        f"plain network ({best} pixels a batch); {first.tokens / pixels:.0f} of {7 * 12 + network.own_tokens} tokens "
        f"a pixel; composites {share:.0f} % of the time; they differ by {apart:.0e}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="pixels of the made tile's side")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tiles = {"clear": made_tile(options.side), "cloudy": made_tile(options.side, 30, 20, clear=0.2)}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for family, (state, depth) in STATES.items():
            path = Path(folder) / f"{family}.pt"
            torch.save(state(128, depth), path)
            for season, tile in tiles.items():
                measure(season, load_checkpoint(path), replace(tile, manifest=MANIFEST), options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
