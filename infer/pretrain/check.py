"""What can be said of embeddings without labels: collapse, steadiness when observations are missing, cloudiness.

python -m infer.pretrain.check CHECKPOINT --tiles DIR [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from infer.contract import EXIT_OK, SmaltiError, Tile, read_tile, write_json
from infer.device import choose_device
from infer.engine import Engine
from infer.pretrain.tiles import cut, tile_folders
from infer.progress import say
from infer.weights import load_checkpoint


@dataclass(frozen=True)
class Health:
    """Figures of an embedding matrix (P, D)."""

    effective_rank: float
    """exp(entropy of the normalised eigenvalues of the covariance), 1 to D (Roy & Vetterli 2007)."""
    spread_min: float
    """Smallest standard deviation of a dimension."""
    spread_median: float
    """Median standard deviation of a dimension."""

    @property
    def collapsed(self) -> bool:
        """Whether a dimension stands still, or nearly everything lies on one line."""
        return self.spread_min < 1e-3 or self.effective_rank < 1.5


def health(z_pd: torch.Tensor) -> Health:
    """Figures of embeddings (P, D)."""
    z = z_pd.detach().double().cpu()
    z = z - z.mean(dim=0)
    power = torch.linalg.svdvals(z).square()
    total = power.sum()
    if total <= 0:
        return Health(1.0, 0.0, 0.0)
    share = power / total
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    spread = z.std(dim=0, correction=0)
    return Health(float(entropy.exp()), float(spread.min()), float(spread.median()))


def steadiness(one_pd: torch.Tensor, two_pd: torch.Tensor) -> tuple[float, float]:
    """Mean cosine between rows of two embeddings of the same pixels: as they are, and with the common mean removed.

    The second is the stricter one: a mean that all pixels share makes any two embeddings look alike.
    """
    one, two = one_pd.double(), two_pd.double()
    plain = torch.cosine_similarity(one, two, dim=1).mean()
    mean = one.mean(dim=0)
    centred = torch.cosine_similarity(one - mean, two - mean, dim=1).mean()
    return float(plain), float(centred)


_MOST_PIXELS = 4096
"""Pixels looked at in each tile, evenly spread."""


def thinned(tile: Tile, share: float, rng: np.random.Generator) -> Tile:
    """The tile with this share of every pixel's observations missing at random, pixel by pixel."""
    masks = np.where(rng.random(tile.masks_thw.shape) < share, 0, tile.masks_thw).astype(np.uint8)
    radar = [
        np.where((rng.random(stack.shape[:3]) < share)[..., None], 0, stack).astype(np.int16)
        for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp)
    ]
    return replace(tile, masks_thw=masks, sar_asc_thwp=radar[0], sar_desc_thwp=radar[1])


def optical_count(tile: Tile) -> NDArray[np.int64]:
    """(H, W) clear Sentinel-2 observations."""
    return np.asarray(tile.masks_thw.sum(axis=0, dtype=np.int64))


def correlation_with_count(values_pd: NDArray[np.float32], count_p: NDArray[np.int64]) -> tuple[float, float]:
    """Largest and median |Pearson correlation| between a dimension and the number of clear observations.

    0 and 0 where all pixels have as many.
    """
    count = count_p - count_p.mean()
    centred = values_pd - values_pd.mean(axis=0)
    scale = np.sqrt((centred**2).sum(axis=0) * (count**2).sum())
    if not (scale > 0).any():
        return 0.0, 0.0
    correlation = np.abs((centred * count[:, None]).sum(axis=0) / np.maximum(scale, 1e-12))
    return float(correlation.max()), float(np.median(correlation))


def check_tile(engine: Engine, tile: Tile, seed: int = 0) -> dict[str, float]:
    """Figures of one tile."""
    seen = optical_count(tile).ravel()
    usable = np.flatnonzero(seen > 0)
    if len(usable) < 2:
        raise SmaltiError(f"{tile.name}: fewer than two pixels have a clear observation: check another tile")
    chosen = usable[np.linspace(0, len(usable) - 1, min(len(usable), _MOST_PIXELS)).astype(np.int64)]
    row = cut(tile, chosen)
    whole = engine.embed(row).values_hwc[0]
    part = engine.embed(thinned(row, 1 / 3, np.random.default_rng(seed))).values_hwc[0]
    both = np.isfinite(part).all(axis=1)
    state = health(torch.from_numpy(whole))
    plain, centred = steadiness(torch.from_numpy(whole[both]), torch.from_numpy(part[both]))
    largest, middle = correlation_with_count(whole, seen[chosen])
    return {
        "pixels": len(chosen),
        "effective_rank": state.effective_rank,
        "spread_min": state.spread_min,
        "spread_median": state.spread_median,
        "cosine_third_missing": plain,
        "cosine_third_missing_centred": centred,
        "count_correlation_max": largest,
        "count_correlation_median": middle,
    }


def check(checkpoint: Path, roots: Sequence[Path], device: str) -> dict[str, dict[str, float]]:
    """Figures of every tile, by name."""
    engine = Engine(load_checkpoint(checkpoint), choose_device(device, "float32"))
    try:
        folders = tile_folders(roots)
        return {f.name: check_tile(engine, read_tile(f, need_manifest=False, checksums=False)) for f in folders}
    finally:
        engine.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m infer.pretrain.check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tiles", type=Path, action="append", required=True, help="a tile or a folder of tiles")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args(argv)
    try:
        figures = check(arguments.checkpoint, arguments.tiles, arguments.device)
        if arguments.json is not None:
            write_json(arguments.json, figures)
    except SmaltiError as error:
        say(f"check: {error}")
        return error.exit_code
    for name, values in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
