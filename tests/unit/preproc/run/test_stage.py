"""The manners that all stages share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infer.contract import EXIT_FAILED, BusyError, Run, Shard, SmaltiError, stage_lock, write_bytes, write_manifest
from preproc.run.chain import run_all
from preproc.run.config import Config, parse_config
from preproc.run.stage import Outcome, Session, StageFailedError, Unit, one_by_one, run_stage

TOML = """
[region]
bbox = [4.0, 50.0, 4.1, 50.1]
start = "2021-01-01"
end = "2021-12-31"
[archive]
source = "mpc"
"""


@dataclass
class Toy:
    """Writes one small file a unit; some units fail."""

    bad: frozenset[str] = frozenset()
    version: int = 1
    sharded: bool = True
    name: str = "toy"
    noun: str = "toys"
    built: list[str] = field(default_factory=list)

    apart: bool = False

    def open(self, run: Run, config: Config) -> Session:
        units = [Unit(n, run.root / f"{n}.json", "toy", {"version": self.version}) for n in "abcde"]
        return Session(units, lambda due: one_by_one(due.units, self.make))

    def make(self, unit: Unit) -> None:
        if unit.name in self.bad:
            raise SmaltiError(f"{unit.name} is bad")
        path = unit.manifest.with_suffix(".bin")
        write_bytes(path, unit.name.encode() * self.version)
        write_manifest(unit.manifest, unit.kind, inputs=unit.inputs, files=[path])
        self.built.append(unit.name)


@pytest.fixture
def config() -> Config:
    return parse_config(TOML, Path("run.toml"))


def test_complete_units_are_skipped_and_stale_ones_are_built_again(tmp_path: Path, config: Config) -> None:
    run = Run(tmp_path)
    toy = Toy()
    assert run_stage(toy, run, config).built == 5
    assert run_stage(toy, run, config).complete_before == 5
    (tmp_path / "c.bin").write_bytes(b"damaged")
    assert run_stage(toy, run, config).built == 1
    assert run_stage(Toy(version=2), run, config).built == 5


def test_one_failure_does_not_stop_the_others_and_is_listed(tmp_path: Path, config: Config) -> None:
    toy = Toy(bad=frozenset("bd"))
    with pytest.raises(StageFailedError) as caught:
        run_stage(toy, Run(tmp_path), config)
    assert toy.built == ["a", "c", "e"]
    assert str(caught.value).splitlines() == [
        "toy: 2 of the toys failed; the others are complete:",
        "  b: b is bad",
        "  d: d is bad",
    ]
    assert caught.value.exit_code == 1


def test_a_stage_that_works_on_the_whole_run_gives_its_failure_as_it_is(tmp_path: Path, config: Config) -> None:
    with pytest.raises(SmaltiError, match=r"^b is bad$") as caught:
        run_stage(Toy(sharded=False, bad=frozenset("b")), Run(tmp_path), config)
    assert caught.value.exit_code == 2


def test_a_bug_is_not_taken_for_bad_input(tmp_path: Path, config: Config) -> None:
    class Buggy(Toy):
        def make(self, unit: Unit) -> None:
            raise IndexError

    with pytest.raises(IndexError):
        run_stage(Buggy(), Run(tmp_path), config)


def test_shards_divide_the_units(tmp_path: Path, config: Config) -> None:
    toy = Toy()
    run_stage(toy, Run(tmp_path), config, shard=Shard(1, 2))
    assert toy.built == ["b", "d"]
    with pytest.raises(SmaltiError, match="works on the whole run"):
        run_stage(Toy(sharded=False), Run(tmp_path), config, shard=Shard(1, 2))


def test_a_busy_run_is_left_alone(tmp_path: Path, config: Config) -> None:
    with stage_lock(Run(tmp_path), "toy", Shard(0, 2)):
        with pytest.raises(BusyError):
            run_stage(Toy(), Run(tmp_path), config)
        run_stage(Toy(), Run(tmp_path), config, shard=Shard(1, 2))


def test_what_stands_in_the_way_is_named(tmp_path: Path, config: Config) -> None:
    class Foldered(Toy):
        def open(self, run: Run, config: Config) -> Session:
            unit = Unit("a", run.root / "toys" / "a.json", "toy", {})
            return Session([unit], lambda due: one_by_one(due.units, self.make))

    (tmp_path / "a.json").mkdir()
    with pytest.raises(SmaltiError, match=r"a.json: is a folder where a file is needed: remove or rename it"):
        run_stage(Toy(), Run(tmp_path), config)
    (tmp_path / "toys").write_text("")
    with pytest.raises(SmaltiError, match=r"toys: is a file where a folder is needed: remove or rename it"):
        run_stage(Foldered(), Run(tmp_path), config)


@pytest.mark.parametrize(("missing", "made"), [("refuse", ["plan", "infer"]), ("nodata", ["plan", "infer", "stitch"])])
def test_a_run_goes_on_after_tiles_failed_as_far_as_it_is_allowed(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, missing: str, made: list[str]
) -> None:
    done: list[str] = []

    def stage(stage: Any, *_: object, **__: object) -> Outcome:
        if stage.name == "fetch":
            raise StageFailedError("fetch: 1 of the tiles failed")
        done.append(stage.name)
        return Outcome(stage.name, stage.noun, built=1)

    monkeypatch.setattr("preproc.run.chain.run_stage", stage)
    config = config.model_copy(update={"stitch": config.stitch.model_copy(update={"missing": missing}), "labels": None})
    with pytest.raises(StageFailedError, match="1 of the tiles failed") as raised:
        run_all(Run(tmp_path), config)
    assert done == made
    assert raised.value.exit_code == EXIT_FAILED, "whatever was made without it"
