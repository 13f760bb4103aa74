"""The picture of the README, from a run of the demonstration: `python docs/images/make.py demo`.

That of the atlas is a screenshot of its page, 1100 x 680 pixels, in 96 colours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import rasterio
from matplotlib.patches import Patch
from rasterio.windows import Window, from_bounds

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def rgb(codes: np.ndarray, colours: dict[int, str]) -> np.ndarray:
    """Codes -> (H, W, 3), white where there is no colour."""
    table = np.full((256, 3), 255, np.uint8)
    for code, colour in colours.items():
        table[code] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return table[codes]


def main(root: Path) -> None:
    """Truth, embeddings and map side by side."""
    (classes,), (mosaic,) = (root / "map").glob("classes_*.tif"), (root / "mosaic").glob("embeddings_*.tif")
    legend = {entry["name"]: entry for entry in json.loads((root / "map" / "map.json").read_text())["classes"]}
    with rasterio.open(classes) as source:
        codes = source.read(1)
        rows, columns = (np.flatnonzero((codes > 0).any(axis=axis)) for axis in (1, 0))
        window = Window(columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
        bounds = source.window_bounds(window)
        mapped = source.read(1, window=window)
    with rasterio.open(root / "archive" / "truth.tif") as source:
        truth = source.read(1, window=from_bounds(*bounds, source.transform), out_shape=mapped.shape)
    known = {entry["code"]: entry["crop"] for entry in json.loads((root / "archive" / "legend.json").read_text())}
    true_colours = {code: legend[name]["color"] if name in legend else "#e4e0d8" for code, name in known.items()}
    truth = np.where(mapped > 0, truth, 0)
    with rasterio.open(mosaic) as source:
        values = source.read(window=from_bounds(*bounds, source.transform), out_shape=(source.count, *mapped.shape))
    inside = mapped > 0
    pixels = values[:, inside].T - values[:, inside].mean(axis=1)
    axes = np.linalg.eigh(np.cov(pixels.T))[1][:, ::-1][:, :3]
    scores = pixels @ axes
    low, high = np.percentile(scores, (2, 98), axis=0)
    preview = np.ones((*mapped.shape, 3))
    preview[inside] = np.clip((scores - low) / (high - low), 0, 1)
    figure, plots = plt.subplots(1, 3, figsize=(13, 5.2), constrained_layout=True)
    panels = (("the simulated truth", rgb(truth, true_colours)), ("embeddings, three principal components", preview),
              ("the crop map", rgb(mapped, {e["code"]: e["color"] for e in legend.values()})))  # fmt: skip
    for plot, (title, image) in zip(plots, panels, strict=True):
        plot.imshow(image, interpolation="nearest")
        plot.set_title(title, fontsize=12)
        plot.axis("off")
    handles = [Patch(color=entry["color"], label=name) for name, entry in legend.items()]
    handles.append(Patch(color="#e4e0d8", label="no label: roads, field margins"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=10)
    figure.savefig(Path(__file__).with_name("demo.png"), dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
