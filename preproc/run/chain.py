"""Run one stage, or the whole chain in order on this machine (local mode), and say what came out of it."""

from __future__ import annotations

from infer.contract import EXIT_FAILED, Plan, Record, Run, Shard, SmaltiError, stage_lock
from infer.contract.classification import AccuracyManifest, ValueAccuracyManifest
from infer.contract.rasters import MapManifest, MosaicManifest, ValueMapManifest
from preproc.run.classifier import maps_number
from preproc.run.config import Config
from preproc.run.progress import say
from preproc.run.stage import Outcome, Stage, StageFailedError, run_stage
from preproc.run.stages import StageEntry, chain, stage_named
from preproc.run.status import Survey, stale_before
from preproc.run.waves import NO_ROOM, budget, fewest_shards, lying


def run_one(entry: StageEntry, run: Run, config: Config, *, shard: Shard | None = None, force: bool = False) -> Outcome:
    """Bring one stage up to date.

    Raises:
        SmaltiError: if a stage that it builds on is stale; or see `preproc.run.stage.run_stage`.
    """
    if entry not in chain(config):
        if entry.makes in ("samples", "classifier") and config.predict.model is not None:
            raise SmaltiError(
                f"{run.config}: [predict] model: the classifier is {config.predict.model}: `smalti {entry.name}` has "
                "nothing to do"
            )
        others = {"sample": "", "train": ", or [train] runs"}.get(entry.name, ", [train] runs or [predict] model")
        raise SmaltiError(
            f"{run.config}: [labels]: missing: `smalti {entry.name}` needs its path and class (or value){others}"
        )
    whole = shard is None or shard.whole
    refuse_stale(entry, Survey(run, config), entry.name, cheaply=not whole)
    return run_stage(entry.load(shard=not whole), run, config, shard=shard, force=force)


def refuse_stale(entry: StageEntry, survey: Survey, command: str, *, cheaply: bool = False) -> None:
    """Build on nothing that was made from something else than what is asked for now.

    Args:
        entry: the stage whose predecessors count.
        survey: of the run.
        command: that is refused.
        cheaply: see `stale_before`.

    Raises:
        SmaltiError: if a stage before it is stale, with the command that renews it.
    """
    stale = next(iter(stale_before(entry, survey, cheaply=cheaply)), None)
    if stale is not None:
        quoted = survey.run.quoted
        raise SmaltiError(
            f"{survey.run.root}: {stale.told()}: run `smalti {stale.stage} {quoted}` before `smalti {command}`, "
            f"or `smalti run {quoted}`, which renews whatever is stale"
        )


def run_all(run: Run, config: Config, *, force: bool = False) -> list[Outcome]:
    """Run every stage of the chain in order, whatever is complete being skipped.

    A tile that fails does not stop the tiles after it, in this stage or the next; stages that need all tiles are not
    begun unless [stitch] missing allows it, and the failures are raised at the end.

    Raises:
        StageFailedError: listing what failed.
        BusyError: if another process runs this chain.
    """
    outcomes: list[Outcome] = []
    failures: list[str] = []
    with stage_lock(run, "run"):
        entries = chain(config)
        shards = 1
        for number, entry in enumerate(entries, start=1):
            if failures and entry.gathers and config.stitch.missing == "refuse":
                say(f"[{number}/{len(entries)}] {entry.name}: not begun, because tiles failed before it")
                continue
            say(f"[{number}/{len(entries)}] {entry.name}")
            if entry.name == "fetch":
                shards = _shards(run, config)
                if shards > 1:
                    done, failures = _in_waves(run, config, shards, force=force)
                    outcomes += done
                    continue
            if entry.name == "infer" and shards > 1:
                continue  # the waves have done it
            try:
                outcomes.append(run_stage(entry.load(), run, config, force=force))
            except StageFailedError as error:
                if entry.gathers or entry.name == "plan":
                    raise
                failures.append(str(error))
    if failures:
        raise StageFailedError("\n".join(failures), exit_code=EXIT_FAILED)
    if not any(outcome.built for outcome in outcomes):
        say("everything is complete: nothing was to be done")
    if not config.maps:
        say("no [labels] in run.toml: the run ends with the mosaic of embeddings")
    return outcomes


def _shards(run: Run, config: Config) -> int:
    """How many waves the tiles need, each of which is a shard; 1: all can lie on disk."""
    if budget(config) is None:
        return 1
    plan = Plan.read(run)
    return fewest_shards(config, len(plan.tiles), plan.season.s2_days, plan.season.s1_days)


def _in_waves(run: Run, config: Config, shards: int, *, force: bool) -> tuple[list[Outcome], list[str]]:
    """Fetch and infer shard by shard: the tiles of one are let go before the next is begun.

    A wave that found the room taken by tiles of later waves (of a run that was stopped) is tried once more at the end.

    Returns:
        What was done, and what failed.
    """
    outcomes: list[Outcome] = []
    failures: dict[int, list[str]] = {}
    again: list[int] = []
    for wave in range(shards):
        failures[wave] = _wave(run, config, Shard(wave, shards), outcomes, force=force)
        if any(NO_ROOM in text for text in failures[wave]):
            again.append(wave)
    for wave in again:
        failures[wave] = _wave(run, config, Shard(wave, shards), outcomes, force=False)
    return outcomes, [text for texts in failures.values() for text in texts]


def _wave(run: Run, config: Config, shard: Shard, outcomes: list[Outcome], *, force: bool) -> list[str]:
    failures: list[str] = []
    say(f"wave {shard.index + 1} of {shard.count}")
    for name in ("fetch", "infer"):
        stage = stage_named(name).load(shard=True)
        if name == "infer" and not force and not failures and _complete(stage, run, config, shard):
            continue  # the engine is not started for nothing
        try:
            outcomes.append(run_stage(stage, run, config, shard=shard, force=force))
        except StageFailedError as error:
            failures.append(str(error))
    return failures


def _complete(stage: Stage, run: Run, config: Config, shard: Shard) -> bool:
    units = shard.take(stage.open(run, config).units)
    return all(unit.state().complete for unit in units) and not lying(run, [unit.name for unit in units])


def summarise(run: Run, config: Config) -> str:
    """Paths of what a person opens next, and the figures of the classifier.

    Raises:
        SmaltiError: if a manifest is not what it should be.
    """
    mosaic = MosaicManifest.read(run)
    stores = ["embeddings.zarr"] if any(zone.group is not None for zone in mosaic.zones.values()) else []
    names = [*stores, *(zone.raster for zone in mosaic.zones.values() if zone.raster is not None)]
    lines = [f"{'embeddings':<11} {run.mosaic / name}" for name in names]
    if maps_number(config):
        lines += _rasters("map", run, ValueMapManifest)
        lines.append(f"accuracy    {ValueAccuracyManifest.read(run).headline}  ({run.accuracy})")
    elif config.maps:
        lines += _rasters("map", run, MapManifest)
        lines.append(f"accuracy    {AccuracyManifest.read(run).headline}  ({run.accuracy})")
        lines.append(f"report      {run.report / 'index.html'}")
    return "\n".join(lines)


def _rasters(label: str, run: Run, kind: type[Record]) -> list[str]:
    names = [name for name in kind.read(run).files if name.endswith(".tif") and "/" not in name]
    return [f"{label:<11} {kind.path(run).parent / name}" for name in names]
