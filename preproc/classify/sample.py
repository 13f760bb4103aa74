"""The `sample` stage: labels and embeddings -> samples.parquet, one row a labelled pixel."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import (
    Inputs,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    Tile,
    array_paths,
    atomic_file,
    is_released,
    read_embedding,
    read_tile,
)
from infer.contract.classification import SampledClass, SamplesManifest
from infer.contract.monthly import MONTHLY_FAMILY
from preproc.classify.labels import LabelSet, assign_codes
from preproc.classify.picked import (
    Chosen,
    LabelledTiles,
    Parts,
    Picked,
    centres,
    joined,
    label_settings,
    sampling_inputs,
)
from preproc.classify.pixels import claim_pixels
from preproc.classify.probe.features import MOST_WORK, keep_medians, kept_medians
from preproc.classify.table import Samples, SampleWriter, Source, counted
from preproc.raster.provenance import embedded, embeddings_fingerprint, read_provenance
from preproc.run.config import Config, Labels
from preproc.run.progress import say
from preproc.run.stage import Built, Due, Session, Unit, one_by_one
from preproc.run.workers import in_order, worker_count


class SampleStage:
    """`smalti sample`."""

    name = "sample"
    noun = "sample tables"
    sharded = False
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The one table, and what it is made from."""
        embeddings = embeddings_fingerprint(run, gaps=config.stitch.missing == "nodata")
        inputs = {**sampling_inputs(run, config), "embeddings": embeddings}
        unit = Unit("samples", run.samples_manifest, SamplesManifest.kind, inputs)
        return Session([unit], lambda due: one_by_one(due.units, lambda _: write_samples(run, config, inputs)))


class SampleTilesStage:
    """The labelled pixels alone, in shards of the tiles; `smalti sample` without --shard makes the table of them."""

    name = "sample"
    noun = "parts of the tiles"
    sharded = True
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The parts; the embeddings of each are looked at when it is asked for."""
        parts = Parts(run, config, Plan.read(run))
        divided = parts.units()
        return Session([unit for unit, _ in divided], lambda due: _pick_parts(parts, divided, due))


def _pick_parts(parts: Parts, divided: Sequence[tuple[Unit, range]], due: Due) -> Generator[Built]:
    tiles = {unit.name: tiles for unit, tiles in divided}
    labelled = LabelledTiles.of(parts.run, parts.config, parts.tiles)
    yield from one_by_one(due.units, lambda unit: parts.make(labelled, tiles[unit.name], unit))


@dataclass(frozen=True)
class Drawn:
    """What the table will hold."""

    tiles: Sequence[PlannedTile]
    labels: LabelSet
    chosen: Chosen
    codes: Mapping[Any, int]
    """Class -> code."""
    counts: Mapping[str, int]
    """What was dropped, repaired or kept in spite of something, by reason."""
    dim: int
    """Numbers of an embedding."""


def draw_samples(run: Run, config: Config, *, embedded_only: bool = True) -> Drawn:
    """Read the labels and choose the pixels.

    Args:
        run: the run.
        config: its settings.
        embedded_only: leave pixels without an embedding out; otherwise no embedding is looked at, nor has to be there.

    Raises:
        SmaltiError: if the labels are not usable, lie outside the region, or name one class only.
    """
    parts = Parts(run, config, Plan.read(run))
    labelled = LabelledTiles.of(run, config, parts.tiles)
    picked = _pick(parts, labelled) if embedded_only else [labelled.pick(range(len(parts.tiles)), embedded_only=False)]
    if not any(len(part.fates_m2) for part in picked):
        path = labelled.labels.path
        raise SmaltiError(f"{path}: no label lies in the region: check [labels] path, its CRS and [region]")
    found, counts, dim = joined(run, picked)
    chosen = _cap(labelled, found, counts)
    codes = _codes(labelled.labels, chosen, label_settings(run, config))
    told = {**labelled.labels.counts, **dict(sorted(counts.items()))}
    return Drawn(labelled.tiles, labelled.labels, chosen, codes, told, dim)


def _pick(parts: Parts, labelled: LabelledTiles) -> list[Picked]:
    """What tasks have picked, and of the other tiles what is picked now, in the order of the plan."""
    runs: list[range] = []
    found: dict[int, Picked] = {}
    for unit, tiles in parts.units():
        part = parts.read(labelled, tiles, unit)
        if part is not None:
            found[tiles.start] = part
        elif runs and runs[-1].stop == tiles.start:
            runs[-1] = range(runs[-1].start, tiles.stop)
        else:
            runs.append(tiles)
    found.update((tiles.start, labelled.pick(tiles)) for tiles in runs)
    return [found[start] for start in sorted(found)]


def write_samples(run: Run, config: Config, inputs: Inputs) -> None:
    """Write RUN/samples.parquet and its manifest."""
    plan, drawn = Plan.read(run), draw_samples(run, config)
    value = label_settings(run, config).value
    with atomic_file(run.samples) as temporary:
        writer = SampleWriter(
            temporary, drawn.dim, district=drawn.labels.districts_n is not None, value=value is not None
        )
        try:
            _write_rows(writer, run, drawn, value, worker_count(config))
        finally:
            writer.close()
        run.samples_manifest.unlink(missing_ok=True)  # from here on the old table is no longer whole
    about = SamplesManifest(
        rows=len(drawn.chosen.tile_n),
        dim=drawn.dim,
        classes=tuple(_legend(drawn) if value is None else _one_entry(drawn, value)),
        value=value,
        counts=drawn.counts,
        embedded=embedded(read_provenance(run, gaps=config.stitch.missing == "nodata"), plan),
    )
    about.write(run.samples_manifest, inputs=inputs, files=[run.samples])
    shutil.rmtree(Parts(run, config, plan).folder, ignore_errors=True)
    _tell(about)
    if value is None:
        _keep_medians(run, config, drawn)


def _keep_medians(run: Run, config: Config, drawn: Drawn) -> None:
    """While arrays are there: `validate` compares with them, also when they were let go meanwhile."""
    work = len(drawn.chosen.tile_n) * len(set(drawn.codes.values()))
    if not _compared(config) or (config.classify.baseline == "auto" and work > MOST_WORK):
        return
    chosen = drawn.chosen
    for index in np.unique(chosen.tile_n):
        here = chosen.tile_n == index
        folder, rows, cols = run.tiles / drawn.tiles[index].name, chosen.row_n[here], chosen.col_n[here]
        there = all(path.is_file() for path in array_paths(folder)) and not is_released(folder)
        if there and kept_medians(folder, rows, cols) is None:
            keep_medians(folder, read_tile(folder, need_manifest=True, checksums=False), rows, cols)


def _compared(config: Config) -> bool:
    """Whether `validate` may compare with monthly medians."""
    classes = config.labels is not None and config.labels.value is None
    return classes and config.classify.baseline is not False and config.model.name != MONTHLY_FAMILY


def median_keeper(run: Run, config: Config, tiles: Sequence[PlannedTile]) -> Callable[[Path, PlannedTile], None] | None:
    """What keeps the medians of a tile's labelled pixels where its arrays will go before `sample` can see them.

    Args:
        run: the run.
        config: its settings.
        tiles: that it will be asked to look at.

    Returns:
        A function of a folder with a whole tile, and of its place; None where nothing is compared, or labels cannot be
        read: `sample` will say why.
    """
    if not _compared(config) or not tiles:
        return None
    try:
        labelled = LabelledTiles.of(run, config, tiles)
    except SmaltiError as error:
        say(f"fetch: no monthly medians of labelled pixels are kept: {error}")
        return None
    shapes, alone = labelled.near(range(len(tiles)))[2], Lock()  # prepared outlines are not to be shared by threads

    def keep(folder: Path, planned: PlannedTile) -> None:
        with alone:
            claims = claim_pixels(planned, shapes[planned.epsg], labelled.class_n)
        rows, cols, features = claims.rows_m, claims.cols_m, claims.features_m
        if not len(rows):
            return
        tile = read_tile(folder, need_manifest=True, checksums=False)
        counts = _observations(tile, rows, cols)
        seen = counts.any(axis=1) & (counts[:, 0] >= config.model.min_clear_s2)
        rows, cols, features = rows[seen], cols[seen], features[seen]
        kept = labelled.capped(planned, rows, cols, features)
        if kept.any():
            keep_medians(folder, tile, rows[kept], cols[kept])

    return keep


def _observations(tile: Tile, rows: NDArray[np.int32], cols: NDArray[np.int32]) -> NDArray[np.int64]:
    """(N, 2) clear Sentinel-2 and Sentinel-1 observations of some pixels."""
    clear = (tile.masks_thw[:, rows, cols] == 1).sum(axis=0)
    radar = [(stack[:, rows, cols] != 0).any(axis=-1).sum(axis=0) for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp)]
    return np.column_stack([clear, radar[0] + radar[1]])


def _cap(labelled: LabelledTiles, found: Chosen, counts: Counter[str]) -> Chosen:
    """The table's pixels: at most `max_pixels` a group over all tiles."""
    path = labelled.labels.path
    if not len(found):
        conflicts = counts["pixels dropped: labels of different classes"]
        if conflicts and not counts["pixels dropped: no embedding there"]:
            raise SmaltiError(
                f"{path}: labels of different classes lie on all {conflicts} labelled pixels: correct them so "
                "that they do not overlap"
            )
        raise SmaltiError(
            f"{path}: no label covers a pixel that has an embedding: they lie outside the region, or where "
            "neither Sentinel-1 nor Sentinel-2 saw anything"
        )
    kept = labelled.capped_over_all(found)
    counts["pixels beyond the cap of a group"] += int((~kept).sum())
    return found.take(kept)


def _codes(labels: LabelSet, chosen: Chosen, settings: Labels) -> dict[Any, int]:
    classes = set(labels.classes_n[chosen.feature_n].tolist())
    if settings.value is not None:
        if len(classes) < 2:
            raise SmaltiError(
                f"{labels.path}: all labels in the region have the same number ({settings.value} = "
                f"{next(iter(classes))}): there is nothing to learn"
            )
        return dict.fromkeys(classes, 1)
    if len(classes) < 2:
        raise SmaltiError(
            f"{labels.path}: all labels in the region are of one class ({settings.attribute} = {next(iter(classes))}): "
            "a classifier needs two or more"
        )
    return assign_codes(classes)


def _write_rows(writer: SampleWriter, run: Run, drawn: Drawn, value: str | None, workers: int) -> None:
    """One row group a tile."""

    def vectors(item: tuple[dict[str, Any], PlannedTile]) -> NDArray[np.float32]:
        place, tile = item
        embedding = read_embedding(run.embeddings, tile.name, checksums=False)  # verified when the pixels were picked
        return embedding.points(place["row"], place["col"])

    for (place, _), vectors_nc in in_order(_places(drawn, value), vectors, workers):
        writer.write(place, vectors_nc)


def places_of(drawn: Drawn) -> Samples:
    """The labelled pixels with their classes, as a table without an embedding."""
    parts: dict[str, list[Any]] = {}
    for place, _tile in _places(drawn, None):
        for name, values in place.items():
            parts.setdefault(name, []).append(np.asarray(values))
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    count = len(columns["row"])
    return Samples(
        tile_n=columns["tile"],
        row_n=columns["row"],
        col_n=columns["col"],
        x_n=columns["x"],
        y_n=columns["y"],
        epsg_n=columns["epsg"],
        code_n=columns["code"].astype(np.int32),
        group_n=columns["group"],
        feature_n=columns["feature"],
        district_n=columns.get("district", np.full(count, "")),
        run_n=np.zeros(count, dtype=np.int16),
        value_n=np.full(count, np.nan),
        values_nc=np.zeros((count, 0), dtype=np.float32),
        legend={entry.code: entry.name for entry in _legend(drawn)},
        sources=(Source("this run", None, ""),),
    )


def _places(drawn: Drawn, value: str | None) -> Iterator[tuple[dict[str, Any], PlannedTile]]:
    """The columns before the embedding, tile by tile."""
    chosen, labels = drawn.chosen, drawn.labels
    ends = np.flatnonzero(np.diff(chosen.tile_n)) + 1  # the table is in the order of the tiles
    for here in np.split(np.arange(len(chosen.tile_n)), ends):
        tile = drawn.tiles[int(chosen.tile_n[here[0]])]
        rows, cols, features = chosen.row_n[here], chosen.col_n[here], chosen.feature_n[here]
        x, y = centres(tile.west, tile.north, rows, cols)
        place: dict[str, Any] = {
            "tile": [tile.name] * len(rows),
            "row": rows,
            "col": cols,
            "x": x,
            "y": y,
            "epsg": np.full(len(rows), tile.epsg, dtype=np.int32),
            "class": [str(name) if value is None else value for name in labels.classes_n[features]],
            "code": [drawn.codes[name] for name in labels.classes_n[features]],
            "group": [str(name) for name in labels.groups_n[features]],
            "feature": labels.fids_n[features],
        }
        if value is not None:
            place["value"] = labels.classes_n[features].astype(np.float64)
        if labels.districts_n is not None:
            place["district"] = labels.districts_n[features].tolist()
        yield place, tile


def _one_entry(drawn: Drawn, value: str) -> list[SampledClass]:
    groups = len(set(drawn.labels.groups_n[drawn.chosen.feature_n].tolist()))
    return [SampledClass(1, value, len(drawn.chosen.feature_n), groups)]


def _legend(drawn: Drawn) -> list[SampledClass]:
    classes = drawn.labels.classes_n[drawn.chosen.feature_n].tolist()
    groups = drawn.labels.groups_n[drawn.chosen.feature_n].tolist()
    pixels = Counter(classes)
    groups_of = Counter(value for value, _ in set(zip(classes, groups, strict=True)))
    return [
        SampledClass(code, str(value), pixels[value], groups_of[value])
        for value, code in sorted(drawn.codes.items(), key=lambda item: item[1])
    ]


def _tell(about: SamplesManifest) -> None:
    for reason, count in about.counts.items():
        if count and reason != "features read":
            say(f"sample: {count} {reason}")
    for entry in about.classes:
        pixels, groups = counted(entry.pixels, "pixel"), counted(entry.groups, "group")
        say(f"sample: {entry.name} (code {entry.code}): {pixels} in {groups}")
