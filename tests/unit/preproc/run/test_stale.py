"""What builds on something stale is refused and shown as out of date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.tiny import TinyArchive

from infer.contract import Run, Shard, SmaltiError, State
from preproc.mirror.mirror import mirror
from preproc.run.chain import run_one
from preproc.run.config import Config, load_config, parse_config
from preproc.run.stage import Unit
from preproc.run.stages import STAGES, before, stage_named
from preproc.run.status import Looked, Survey, run_status, stale_before

LABELLED = """
[region]
bbox = [4.0, 50.0, 4.1, 50.1]
start = "2021-01-01"
end = "2021-12-31"
[archive]
source = "mpc"
[labels]
path = "labels.geojson"
class = "crop"
"""
REFERENCE = '[validate]\nreference = "points.geojson"\nclass = "crop"\ndesign = "random"\n'


@pytest.fixture
def planned(tmp_path: Path) -> Run:
    archive = TinyArchive(tmp_path / "archive")
    archive.s2("one", "2021-07-01")
    return archive.run(tmp_path / "run")[0]


def another_end(run: Run) -> Config:
    text = run.config.read_text()
    run.config.write_text(re.sub(r'end = "[0-9-]+"', 'end = "2021-12-24"', text))
    return load_config(run)


@pytest.mark.parametrize(("stage", "shard"), [("fetch", Shard()), ("fetch", Shard(0, 2)), ("stitch", Shard())])
def test_a_stale_plan_is_not_built_on(planned: Run, stage: str, shard: Shard) -> None:
    config = another_end(planned)
    with pytest.raises(
        SmaltiError, match=rf"plan is stale \(plan.json: .*window.*\): run `smalti plan .*before `smalti {stage}`"
    ):
        run_one(stage_named(stage), planned, config, shard=shard)
    assert not planned.tiles.exists()
    plan, fetch, *_ = run_status(Survey(planned, config))
    assert (plan.counts, plan.behind) == ({"stale": 1, "complete": 1}, ())
    assert (fetch.behind, fetch.complete) == (("plan",), False)
    run_one(stage_named("plan"), planned, config)
    run_one(stage_named("fetch"), planned, config)
    assert all(status.behind == () for status in run_status(Survey(planned, config)))


def test_another_model_needs_no_new_plan(planned: Run) -> None:
    planned.config.write_text(planned.config.read_text() + '[model]\nname = "demo"\noutput = "float32"\n')
    config = load_config(planned)
    assert run_status(Survey(planned, config))[0].problems.keys() == {"model.json"}
    run_one(stage_named("fetch"), planned, config)


def test_a_stale_stage_shows_in_everything_after_it(tmp_path: Path) -> None:
    config = parse_config(LABELLED, tmp_path / "run.toml")
    states = {entry.name: State("complete") for entry in STAGES} | {"sample": State("stale", "made from other inputs")}
    unit = Unit("it", tmp_path / "it.json", "it", {})
    survey = Survey(Run(tmp_path), config, _seen={name: Looked([unit], [state]) for name, state in states.items()})
    behind = [status.stage for status in run_status(survey) if status.behind]
    assert behind == ["train", "predict", "validate", "report"]
    (stale,) = stale_before(stage_named("report"), survey)
    assert stale.told() == "sample is stale (it: made from other inputs)"
    assert stale_before(stage_named("predict"), survey, cheaply=True) == [], "shards do not look at all embeddings"
    states["fetch"] = State("stale", "made from other inputs")
    survey = Survey(Run(tmp_path), config, _seen={name: Looked([unit], [state]) for name, state in states.items()})
    assert stale_before(stage_named("infer"), survey, cheaply=True) == [], "shards do not look at all tiles"


def test_a_stale_plan_is_not_mirrored(planned: Run) -> None:
    config = another_end(planned)
    with pytest.raises(SmaltiError, match=r"plan is stale .*: run `smalti plan .*before `smalti mirror`"):
        mirror(planned, config, None)
    assert not (planned.root / "mirror").exists()


def test_only_a_reference_makes_the_map_part_of_the_accuracy(tmp_path: Path) -> None:
    def needed(extra: str) -> list[str]:
        config = parse_config(LABELLED + extra, tmp_path / "run.toml")
        return [entry.name for entry in before(stage_named("validate"), config)]

    assert needed("") == ["plan", "fetch", "infer", "sample", "train"]
    assert needed(REFERENCE) == ["plan", "fetch", "infer", "sample", "train", "predict"]
