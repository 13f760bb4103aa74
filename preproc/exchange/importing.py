"""`smalti import`: embeddings that somebody published become the embeddings of a planned run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from infer.contract import (
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    embedding_paths,
    output_state,
    planned_tiles,
    sha256_file,
    stage_lock,
    write_embedding,
    write_model_job,
)
from infer.contract.embedding import EmbeddingManifest, EmbeddingModel, Origin, dequantise
from infer.contract.imported import ImportManifest
from infer.contract.registry import MATRYOSHKA, RegisteredModel, cache_path, registered_model
from preproc.exchange.geotessera import Published, identity, open_published, shown
from preproc.exchange.placement import Frame, Taken, take
from preproc.region.grid import region_mask
from preproc.region.region import Region, load_region
from preproc.run.config import Config
from preproc.run.progress import say
from preproc.run.stage import Built, Due, Session, Unit, run_stage

_FAMILIES = {"1.0": ("v1.0", "v1.0-qat"), "1.1": ("v1.1",), "2": ("v2-student", "v2-teacher")}
"""Version of a published dataset -> the families of registered models that it can be of."""


@dataclass
class ImportStage:
    """`smalti import RUN SOURCE`."""

    source: str
    fill: bool
    """Leave tiles that are not whole in the source to the engine, instead of taking what there is."""

    name: str = "import"
    noun: str = "tiles"
    sharded: bool = True
    apart: bool = False
    kept: list[str] = field(default_factory=list)
    """Tiles that the engine had computed, which are not overwritten."""
    left: list[str] = field(default_factory=list)
    """Tiles that are left to the engine."""
    counts: Counter[str] = field(default_factory=Counter)

    def open(self, run: Run, config: Config) -> Session:
        """One unit a planned tile.

        Raises:
            SmaltiError: if the source cannot be read, or is of another season or model than the run asks for.
        """
        plan = Plan.read(run)
        year = plan.window[1].year
        published = open_published(self.source, year)
        _check_season(run, plan, published)
        taker = _Taker(run, config, published, self, year)
        units = [taker.unit(tile) for tile in planned_tiles(run)]
        return Session(units, taker.build, after=lambda: self._afterwards(run, taker, len(units)))

    def _afterwards(self, run: Run, taker: _Taker, tiles: int) -> list[str]:
        found = tuple(tile.name for tile in planned_tiles(run) if taker.is_from_here(tile))
        made = ImportManifest(
            source=shown(self.source),
            dataset=str(taker.published.dataset),
            identity=taker.identity,
            fill=self.fill,
            tiles=found,
        )
        made.write(ImportManifest.path(run), inputs={"import": taker.identity}, files=[])
        lines = [f"import: {len(found)} of {tiles} tiles have embeddings of {made.dataset} from {made.source}"]
        lines += [f"import: {pixels:,} pixels {what}" for what, pixels in sorted(self.counts.items()) if pixels]
        if self.kept:
            lines.append(f"import: {len(self.kept)} tiles keep what the engine computed (--force overwrites it)")
        if self.left:
            then = f"`smalti fetch {run.quoted}` and `smalti infer {run.quoted}` compute them"
            lines.append(f"import: {len(self.left)} tiles are not whole there: {then}")
        return lines


class _Taker:
    """Takes tiles from a source."""

    def __init__(self, run: Run, config: Config, published: Published, stage: ImportStage, year: int) -> None:
        self.published = published
        self._run, self._config, self._stage = run, config, stage
        self._model = _fitting_model(run, config, published, fill=stage.fill)
        self._region: Region = load_region(config.region)
        self._tiles = {tile.name: tile for tile in planned_tiles(run)}
        source, model = identity(published, stage.source, year), config.model
        self._checkpoint = published.dataset.checkpoint or (_digest(self._model) if stage.fill else source)
        self._inputs = {
            "import": source,
            "checkpoint": self._checkpoint,
            "region": self._region.fingerprint,
            "model": self._model.name,
            "output": model.output,
            "dim": model.dim,
            **({"min_clear_s2": model.min_clear_s2} if model.min_clear_s2 else {}),
            "fill": stage.fill,
        }
        self.identity = source
        self._year = year

    def unit(self, tile: PlannedTile) -> Unit:
        """Its embedding, and what that has to be made from."""
        grid = [tile.epsg, tile.west, tile.north, tile.size]
        return Unit(tile.name, self._manifest(tile), "embedding", {**self._inputs, "grid": grid})

    def is_from_here(self, tile: PlannedTile) -> bool:
        """Whether a tile's embedding is complete and was taken from this source."""
        return output_state(self._manifest(tile), "embedding", {"import": self.identity}, partial=True).complete

    def _manifest(self, tile: PlannedTile) -> Any:
        return embedding_paths(self._run.embeddings, tile.name)[2]

    def build(self, due: Due) -> Generator[Built]:
        """Take what is due."""
        write_model_job(self._run, self._config.model.job())
        for unit in due.units:
            try:
                yield Built(unit, anew=self._take(unit, force=due.force))
            except SmaltiError as error:
                yield Built(unit, error)

    def _take(self, unit: Unit, *, force: bool) -> bool | None:
        """Whether the tile was taken; the engine's are not to be. None: it is left to the engine."""
        tile = self._tiles[unit.name]
        engines = _is_engines(unit)
        if engines and not force:
            self._stage.kept.append(tile.name)
            return False
        dim, patches = self._config.model.dim, self.published.patches(tile)
        inside_hw, least = region_mask(self._region, tile) > 0, self._config.model.min_clear_s2
        found = take(Frame.of(tile), inside_hw, patches, self.published.dataset.dim, min_clear_s2=least)
        if (found.absent or found.few) and self._stage.fill:
            self._stage.left.append(tile.name)
            if not engines:  # an earlier import's, without --fill
                unit.manifest.unlink(missing_ok=True)
            return None
        counted = {
            "are not published there: no data": found.absent,
            "are published as without data (water)": found.no_data,
            "have a scale that cannot be believed: no data": found.damaged,
            "have too few clear observations there: no data": found.few,
        }
        self._stage.counts.update(counted)
        codes_hwc = found.codes_hwc[..., :dim]
        as_codes = self._config.model.output == "int8"
        write_embedding(
            self._run.embeddings,
            tile.name,
            codes_hwc if as_codes else dequantise(codes_hwc, found.scales_hw),
            found.scales_hw if as_codes else None,
            observations_hwm=found.observations_hwm,
            inputs=unit.inputs,
            about=self._about(found, dim),
        )
        return True

    def _about(self, found: Taken, dim: int) -> EmbeddingManifest:
        model, dataset = self._model, self.published.dataset
        return EmbeddingManifest(
            model=EmbeddingModel(
                name=model.name,
                label=f"{dataset}, as published",
                trained=dataset.trained,
                family=model.family,
                data_source=model.data_source,
                normalisation=model.normalisation,
            ),
            dimensions=dim,
            data_source=model.data_source,
            min_clear_s2=self._config.model.min_clear_s2 or None,
            origin=Origin(
                source=shown(self._stage.source),
                dataset=str(dataset),
                year=self._year,
                parts=tuple(found.parts),
                placement="nearest pixels" if found.shift_m else "whole pixels",
                largest_shift_m=found.shift_m,
                pixels_absent=found.absent,
                pixels_without_data=found.no_data,
                pixels_damaged=found.damaged,
                pixels_too_thinly_observed=found.few,
            ),
        )


def _check_season(run: Run, plan: Plan, published: Published) -> None:
    """Refuse embeddings of another season: of a calendar year, where the source does not say otherwise.

    Raises:
        SmaltiError: with what to set.
    """
    start, end = plan.window
    there = published.dataset.window or (date(end.year, 1, 1).isoformat(), date(end.year, 12, 31).isoformat())
    if (start.isoformat(), end.isoformat()) != there:
        raise SmaltiError(
            f"{run.config}: the season is {start} to {end}, the source's {there[0]} to {there[1]}: set [region] start "
            f"and end to that, and plan again"
        )


def _fitting_model(run: Run, config: Config, published: Published, *, fill: bool) -> RegisteredModel:
    """The registered model of [model], if the source can be of it."""
    dataset, asked = published.dataset, config.model
    families = next((names for start, names in _FAMILIES.items() if dataset.version.startswith(start)), ())
    model = registered_model(asked.name) if asked.name is not None else None
    letter = dataset.variant.partition("~")[0].rpartition("-")[2]  # "2B-L~beta1": the large student
    sized = {"N": "nano", "S": "small", "M": "medium", "L": "large"}.get(letter)
    if dataset.model is not None:
        fits, families = asked.name == dataset.model, ()
    else:
        fits = model is not None and model.family in families and (sized is None or model.name.endswith(sized))
    if model is None or not fits:
        advice = f" of family {' or '.join(families)}" if families else ""
        raise SmaltiError(
            f"{run.config}: [model] asks for {asked.name or asked.checkpoint}, the source has {dataset}: set "
            f"[model] name to the registered model{advice} that it was made with"
        )
    shorter = asked.dim < dataset.dim and not (model.family == "v2-student" and asked.dim in MATRYOSHKA)
    if asked.dim > dataset.dim or shorter:
        raise SmaltiError(f"{run.config}: [model] dim is {asked.dim}, the source has {dataset.dim}: set it to that")
    if asked.min_clear_s2 and not dataset.counts:
        raise SmaltiError(
            f"{run.config}: [model] min_clear_s2 is {asked.min_clear_s2}, and the source does not say how often its "
            "pixels were seen: set it to 0"
        )
    if fill and dataset.checkpoint is None and model.sha256 is None and not cache_path(model.name).is_file():
        raise SmaltiError(
            f"{model.name}: --fill needs its weights, to know that both are of one model: run "
            f"`smalti weights fetch {model.name}`"
        )
    return model


def _digest(model: RegisteredModel) -> str:
    return model.sha256 or sha256_file(cache_path(model.name))


def _is_engines(unit: Unit) -> bool:
    """Whether there is a whole embedding that was computed for this run."""
    if not output_state(unit.manifest, "embedding").complete:
        return False
    return "import" not in EmbeddingManifest.read_at(unit.manifest, "run `smalti infer` again").inputs


def import_embeddings(run: Run, config: Config, source: str, *, fill: bool = False, force: bool = False) -> None:
    """Fill RUN/embeddings from a source; see `ImportStage`.

    Raises:
        BusyError: if the engine is at work on the run, which writes the same files.
        SmaltiError: if it cannot be used, or tiles of it cannot be read.
    """
    say(f"import: from {shown(source)}")
    with stage_lock(run, "infer"):
        run_stage(ImportStage(source, fill), run, config, force=force)
