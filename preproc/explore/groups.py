"""`smalti cluster`: the pixels of a run in groups that are alike, as a class map without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from infer.contract import PIXEL_SIZE, Run, SmaltiError, planned_tiles, write_bytes
from infer.contract.embedding import dequantise
from infer.contract.explored import Group, GroupsManifest
from infer.contract.mixing import GOLDEN, mix64
from infer.contract.record import to_json
from preproc.explore.strips import Strip, squares, strips, write_layer
from preproc.raster.cog import Layer
from preproc.raster.legend import (
    class_colours,
    colour_table,
    gdal_categories,
    legend_csv,
    legend_tags,
    palette,
    qgis_style,
)
from preproc.raster.preview import class_figure, picture
from preproc.raster.provenance import RunProvenance, missing_lines, read_provenance
from preproc.raster.stac import AssetRecord, write_item
from preproc.raster.zones import ZoneGrid, zone_grids
from preproc.run.config import Config
from preproc.run.progress import progress, say
from preproc.run.stage import Session, Unit, one_by_one, run_stage

MOST_GROUPS = 254
_SAMPLE = 1 << 16
"""Pixels that the centres are learnt from, about."""
_BATCH = 4096


@dataclass
class GroupsStage:
    """`smalti cluster RUN -k N`."""

    groups: int
    seed: int

    name: str = "cluster"
    noun: str = "maps of groups"
    sharded: bool = False
    apart: bool = False

    def open(self, run: Run, config: Config) -> Session:
        """One map of all zones."""
        facts = read_provenance(run, gaps=config.stitch.missing == "nodata")
        inputs = {"embeddings": facts.fingerprint, "groups": self.groups, "seed": self.seed}
        unit = Unit("groups", GroupsManifest.path(run), GroupsManifest.kind, inputs)
        after = partial(missing_lines, self.name, run, facts.missing)
        return Session(
            [unit], lambda due: one_by_one(due.units, lambda unit: self._make(run, facts, unit)), after=after
        )

    def _make(self, run: Run, facts: RunProvenance, unit: Unit) -> None:
        folder = unit.manifest.parent
        folder.mkdir(exist_ok=True)
        unit.manifest.unlink(missing_ok=True)
        sample_nc = draw_sample(run, facts, self.seed)
        centres_kc = learn_centres(sample_nc, self.groups, self.seed)
        names = [f"group {index}" for index in range(1, self.groups + 1)]
        legend = [Group(i, n, c, 0) for i, (n, c) in enumerate(zip(names, palette(names), strict=True), start=1)]
        counts = np.zeros(self.groups + 1, np.int64)

        def seen(_strip: Strip, codes_hw: NDArray[np.uint8]) -> None:
            np.add(counts, np.bincount(codes_hw.ravel(), minlength=len(counts)), out=counts)

        grids, files = zone_grids(planned_tiles(run)), []
        with progress("cluster", sum(len(squares(grid)) for grid in grids), "squares") as bar:
            for grid in grids:
                tags = {**facts.tags(), "SMALTI_CONTENT": "groups of like embeddings", **legend_tags(legend)}
                layer = Layer("uint8", 0, ("group",), "nearest", tags, colour_table(legend))
                path = folder / f"groups_{grid.label}.tif"
                write_layer(run, path, grid, layer, facts, lambda strip: assign(strip, centres_kc), seen, bar)
                files += [path, *_companions(path, grid, layer, facts, legend)]
        write_bytes(folder / "legend.csv", legend_csv(legend))
        made = GroupsManifest(
            **facts.stated(),
            groups=tuple(Group(e.code, e.name, e.color, int(counts[e.code])) for e in legend),
            centres=tuple(tuple(round(float(value), 6) for value in centre) for centre in centres_kc),
            sample=len(sample_nc),
            seed=self.seed,
            zones={grid.label: f"groups_{grid.label}.tif" for grid in grids},
        )
        made.write(unit.manifest, inputs=unit.inputs, files=[folder / "legend.csv", *files])


def draw_sample(run: Run, facts: RunProvenance, seed: int) -> NDArray[np.float32]:
    """(N, C) embeddings of pixels drawn by their places: the same ones whatever the tiles' size.

    Raises:
        SmaltiError: if no pixel has an embedding.
    """
    tiles = planned_tiles(run)
    share = min(1.0, _SAMPLE / sum(tile.size**2 for tile in facts.present(tiles)))
    parts = [(grid, square) for grid in zone_grids(tiles) for square in squares(grid)]
    found = []
    with progress("cluster: sample", len(parts), "squares") as bar:
        for grid, square in parts:
            for strip in strips(run, grid, square, facts):
                chosen_hw = _drawn(strip, seed, share) & strip.valid_hw
                if chosen_hw.any():
                    found.append(_values(strip, chosen_hw))
            bar.advance()
    if not found:
        raise SmaltiError(f"{run.embeddings}: no pixel has an embedding: look at `smalti status {run.quoted}`")
    return np.concatenate(found).reshape(-1, facts.dim)


def _drawn(strip: Strip, seed: int, share: float) -> NDArray[np.bool_]:
    """(h, W) where the hash of a pixel's place is among the `share` smallest."""
    grid, (height, width) = strip.grid, strip.values_hwc.shape[:2]
    rows = (grid.north // PIXEL_SIZE - strip.top - np.arange(height)).astype(np.uint64)  # below 0 they begin again
    columns = (grid.west // PIXEL_SIZE + strip.left + np.arange(width)).astype(np.uint64)
    start = mix64(np.array([(seed * GOLDEN + grid.epsg) % 2**64], np.uint64))
    hashes = mix64(mix64(start ^ rows[:, None]) ^ columns[None, :])
    drawn: NDArray[np.bool_] = hashes <= np.uint64(min(int(share * 2**64), 2**64 - 1))
    return drawn


def _values(strip: Strip, chosen_hw: NDArray[np.bool_]) -> NDArray[np.float32]:
    values = strip.values_hwc[chosen_hw]
    if strip.scales_hw is None:
        return np.asarray(values, np.float32)
    return dequantise(values, strip.scales_hw[chosen_hw])


def learn_centres(sample_nc: NDArray[np.float32], groups: int, seed: int) -> NDArray[np.float32]:
    """(k, C) centres by mini-batch k-means, the largest group of the sample first.

    Raises:
        SmaltiError: if there are fewer different pixels than groups.
    """
    if len(np.unique(sample_nc, axis=0)) < groups:
        raise SmaltiError(f"-k {groups}: only {len(sample_nc)} pixels were drawn: ask for fewer groups")
    with threadpool_limits(1):  # the order of additions, and so the last bits, would follow the number of threads
        fitted = MiniBatchKMeans(groups, random_state=seed, batch_size=_BATCH, n_init=3).fit(sample_nc)
    sizes = np.bincount(fitted.labels_, minlength=groups)
    order = np.argsort(-sizes, kind="stable")
    return np.asarray(fitted.cluster_centers_[order], np.float32)


def assign(strip: Strip, centres_kc: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(h, W) code 1..k of the nearest centre; 0 where there is no embedding, the lower code where two are as near."""
    valid_hw = strip.valid_hw
    codes_hw = np.zeros(valid_hw.shape, np.uint8)
    values_nc = _values(strip, valid_hw)
    half_k = 0.5 * np.einsum("kc,kc->k", centres_kc, centres_kc)
    codes_hw[valid_hw] = (half_k - values_nc @ centres_kc.T).argmin(axis=1) + 1
    return codes_hw


def _companions(path: Path, grid: ZoneGrid, layer: Layer, facts: RunProvenance, legend: Sequence[Group]) -> list[Path]:
    """Style, categories, picture and STAC item of a zone's map, beside it."""
    style, categories = path.with_suffix(".qml"), path.with_name(f"{path.name}.aux.xml")
    figure, item = path.with_suffix(".png"), path.with_suffix(".json")
    write_bytes(style, qgis_style(legend))
    write_bytes(categories, gdal_categories(legend))
    shown = picture([path], grid, lambda read: class_colours(read[0][..., 0], legend))
    window = f"{facts.window[0]} to {facts.window[1]}"
    note = f"{window} · encoder: {facts.label} · UTM zone {grid.label}: groups of like pixels, not classes"
    write_bytes(figure, class_figure(shown, legend, "Groups", note))
    classes = [{"value": e.code, "name": e.name.replace(" ", "-"), "color_hint": e.color[1:].upper()} for e in legend]
    assets = [
        AssetRecord("groups", path, "Groups of like embeddings", "data", layer, classes),
        AssetRecord("picture", figure, "Groups with their colours", "overview"),
    ]
    properties: dict[str, Any] = {
        "title": f"Groups of like embeddings, UTM zone {grid.label}, {window}",
        "smalti:model": to_json(facts.encoder),
    }
    write_item(item, grid, facts.window, assets, properties, of=(facts.region, facts.model))
    return [style, categories, figure, item]


def find_groups(run: Run, config: Config, groups: int, seed: int, *, force: bool = False) -> None:
    """Write RUN/groups; see `GroupsStage`.

    Raises:
        SmaltiError: if embeddings are missing, or there are fewer pixels than groups.
    """
    if not 2 <= groups <= MOST_GROUPS:
        raise SmaltiError(f"-k {groups}: from 2 to {MOST_GROUPS} groups")
    run_stage(GroupsStage(groups, seed), run, config, force=force)
    made = GroupsManifest.read(run)
    whole = sum(group.pixels for group in made.groups)
    for group in made.groups:
        say(f"cluster: {group.name}: {group.pixels:,} pixels ({100 * group.pixels / whole:.1f} %)")
