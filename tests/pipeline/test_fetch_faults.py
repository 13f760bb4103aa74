"""A season fetched over HTTP from a server that fails in every way it can equals one fetched undisturbed."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.range_server import Faults, RangeServer, serve_folder
from support.runs import digest
from support.tiny import SIZE, WEST, TinyArchive

import preproc.reader.ranges
import preproc.reader.read
import preproc.reader.signing
from infer.contract import Run, Shard, SmaltiError, planned_tiles, read_tile
from preproc.reader.ranges import RangeClient
from preproc.reader.sparse_file import RemoteFile
from preproc.run.config import Config, load_config
from preproc.run.stage import StageFailedError, run_stage
from preproc.tile.stage import FetchStage


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> TinyArchive:
    """Two by two tiles, two granules that overlap, a dozen dates, clouds, two orbits."""
    rng = np.random.default_rng(5)
    archive = TinyArchive(tmp_path_factory.mktemp("season") / "archive")
    extent = 2 * SIZE * 10
    for index in range(12):
        day = f"2021-{6 + index // 4:02d}-{3 + 7 * (index % 4):02d}"
        for granule, west in (("a", WEST), ("b", WEST + SIZE * 10)):
            scl = rng.choice([4, 5, 8, 9, 3], (extent // 20, extent // 20), p=[0.4, 0.2, 0.2, 0.1, 0.1]).astype(
                np.uint8
            )
            bands = {
                band: rng.integers(1, 9000, (extent // step, extent // step), dtype=np.uint16)
                for band, step in (("B04", 10), ("B08", 10), ("B11", 20), ("B8A", 20))
            }
            archive.s2(f"{day}-{granule}", day, scl=scl if index % 3 else 9, bands=bands, west=west, extent=extent)
        orbit = ("ascending", "descending")[index % 2]
        power = rng.gamma(4, 0.03, (extent // 10, extent // 10)).astype(np.float32)
        archive.s1(f"{day}-r", day, vv=power, vh=power / 4, orbit=orbit, extent=extent)
    return archive


def stage(run: Run, config: Config, **options: object) -> None:
    run_stage(FetchStage(), run, config, **options)  # type: ignore[arg-type]  # any option


def prepared(season: TinyArchive, root: Path, base: str, archive: str = "") -> tuple[Run, Config]:
    return season.run(root, tiles=(2, 2), base=base, archive=archive)


def arrays(run: Run) -> dict[str, list[np.ndarray]]:
    """What does not depend on the server's port."""
    found = {}
    for planned in planned_tiles(run):
        tile = read_tile(run.tiles / planned.name, need_manifest=True)
        found[planned.name] = [tile.bands_thwb, tile.masks_thw, tile.doys_t, tile.sar_asc_thwp, tile.sar_asc_doys_t,
                               tile.sar_desc_thwp, tile.sar_desc_doys_t]  # fmt: skip
    return found


def assert_same(first: dict[str, list[np.ndarray]], second: dict[str, list[np.ndarray]]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        for one, other in zip(first[name], second[name], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def clean(season: TinyArchive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    """The arrays from local files."""
    run, config = prepared(season, tmp_path_factory.mktemp("clean") / "run", "")
    stage(run, config)
    found = arrays(run)
    assert len(found) == 4
    assert all(tile[0].shape[0] > 4 for tile in found.values())
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, an early verdict on stalls, and so short a header that every file takes several requests."""
    monkeypatch.setattr(preproc.reader.read, "RemoteFile", functools.partial(RemoteFile, header_bytes=512))
    client = functools.partial(RangeClient, wait=lambda _: 0.0, stall_s=1.0)
    monkeypatch.setattr(preproc.reader.ranges, "RangeClient", client)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("quick")
def test_with_a_tenth_of_the_requests_spoilt_the_arrays_are_those_of_a_clean_run(
    season: TinyArchive, tmp_path: Path, clean: dict[str, list[np.ndarray]], seed: int
) -> None:
    server = RangeServer(serve_folder(season.folder), faults=Faults(share=0.1, seed=seed))
    with server.running():
        run, config = prepared(season, tmp_path / "run", server.url)
        stage(run, config)
    assert sum(server.tally.faults.values()) > 30
    assert len(server.tally.faults) >= 7
    assert_same(arrays(run), clean)


@pytest.mark.usefixtures("quick")
def test_tokens_that_expire_in_the_middle_are_renewed(
    season: TinyArchive, tmp_path: Path, clean: dict[str, list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signer:
        """Hands out a token until a server refuses it."""

        def __init__(self, server: RangeServer) -> None:
            self.server, self.query, self.renewals = server, server.token("season/archive")[0], 0

        def sign(self, href: str) -> str:
            return f"{href}?{self.query}"

        def renew(self, href: str) -> str:
            self.renewals += 1
            self.query = self.server.token("season/archive")[0]
            return f"{href}?{self.query}"

    files = serve_folder(season.folder)
    faults = Faults(secret="s", token_uses=40)
    server = RangeServer(lambda path: files(path.removeprefix("/season/archive")), latency_s=0.005, faults=faults)
    with server.running():
        signer = Signer(server)
        monkeypatch.setattr(preproc.reader.signing, "make_signer", lambda *_: signer)
        run, config = prepared(season, tmp_path / "run", f"{server.url}/season/archive")
        stage(run, config)
    assert signer.renewals >= 1
    assert_same(arrays(run), clean)


def test_each_byte_is_served_once_however_many_tiles_need_it(season: TinyArchive, tmp_path: Path) -> None:
    server = RangeServer(serve_folder(season.folder))
    with server.running():
        run, config = prepared(season, tmp_path / "run", server.url)
        stage(run, config)
    assert set(server.tally.ranges.values()) == {1}
    cloudy = [path for path in server.tally.requests if "2021-06-03-" in path]
    assert cloudy
    assert all(path.endswith(("SCL.tif", "vv.tif", "vh.tif")) for path in cloudy)


@pytest.mark.usefixtures("quick")
def test_a_file_that_is_gone_fails_the_tiles_that_need_it_and_no_others(season: TinyArchive, tmp_path: Path) -> None:
    gone = "/2021-06-10-b/B11.tif"
    server = RangeServer(serve_folder(season.folder), faults=Faults(gone=frozenset([gone])))
    with server.running():
        run, config = prepared(season, tmp_path / "run", server.url)
        with pytest.raises(StageFailedError) as raised:
            stage(run, config)
        needing = {tile.name for tile in planned_tiles(run) if not (run.tiles / tile.name).exists()}
        lines = str(raised.value).splitlines()[1:]
        assert {line.split(":")[0].strip() for line in lines} == needing
        assert all("2021-06-10, item 2021-06-10-b, asset B11:" in line and "answers 404" in line for line in lines)
        east = {tile.name for tile in planned_tiles(run) if tile.west > WEST}
        assert east <= needing < {tile.name for tile in planned_tiles(run)} | {"none"}
    with RangeServer(serve_folder(season.folder)).running():
        pass
    assert not list(run.tiles.glob(".*"))


@pytest.mark.usefixtures("quick")
def test_drop_date_drops_the_date_where_the_file_is_needed(
    season: TinyArchive, tmp_path: Path, clean: dict[str, list[np.ndarray]]
) -> None:
    gone = "/2021-06-10-b/B11.tif"
    server = RangeServer(serve_folder(season.folder), faults=Faults(gone=frozenset([gone])))
    with server.running():
        run, config = prepared(season, tmp_path / "run", server.url, 'on_missing = "drop-date"')
        stage(run, config)
    found = arrays(run)
    for planned in planned_tiles(run):
        manifest = read_tile(run.tiles / planned.name, need_manifest=True).manifest.as_json()
        whole, partial = clean[planned.name], found[planned.name]
        if not manifest["failed"]["s2"]:
            np.testing.assert_array_equal(partial[0], whole[0])
            continue
        day = 161  # 10 June
        np.testing.assert_array_equal(partial[0], whole[0][whole[2] != day])
        np.testing.assert_array_equal(partial[1], whole[1][whole[2] != day])
        assert day not in partial[2]
        assert [entry["date"] for entry in manifest["dropped"]["s2"] if "cannot be read" in entry["reason"]] == [
            "2021-06-10"
        ]
    failed = [read_tile(run.tiles / tile.name, need_manifest=True).manifest.failed or {} for tile in planned_tiles(run)]
    assert any(of_tile["s2"] for of_tile in failed)


@pytest.mark.usefixtures("quick")
def test_an_outage_is_never_taken_for_a_missing_file(season: TinyArchive, tmp_path: Path) -> None:
    server = RangeServer(serve_folder(season.folder), faults=Faults(always={"/2021-06-10-a/SCL.tif": "503"}))
    with server.running():
        run, config = prepared(season, tmp_path / "run", server.url, 'on_missing = "drop-date"')
        with pytest.raises(StageFailedError, match="the server answers 503, 8 times: try again later"):
            stage(run, config)


def test_workers_shards_and_groups_do_not_show_in_the_bytes(season: TinyArchive, tmp_path: Path) -> None:
    digests = []
    cases: list[tuple[str, list[Shard], int]] = [
        ("one worker", [Shard()], 1),
        ("eight workers", [Shard()], 8),
        ("three shards", [Shard(2, 3), Shard(0, 3), Shard(1, 3)], 3),
    ]
    for name, shards, workers in cases:
        run, config = prepared(season, tmp_path / name, "", f"workers = {workers}")
        for shard in shards:
            stage(run, config, shard=shard)
        digests.append(digest(run.tiles))
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) == 4 * 11


@pytest.mark.slow
def test_killed_at_random_moments_the_bytes_are_the_same(season: TinyArchive, tmp_path: Path) -> None:
    calm, _ = prepared(season, tmp_path / "calm", "")
    started = time.monotonic()
    command = [sys.executable, "-m", "preproc.cli", "fetch"]
    subprocess.run([*command, str(calm.root)], check=True, capture_output=True)
    duration = time.monotonic() - started
    run, _ = prepared(season, tmp_path / "killed", "")
    moments = random.Random(3)
    killed = 0
    for _ in range(40):
        if killed == 4:
            break
        process = subprocess.Popen([*command, str(run.root)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=duration * moments.uniform(0.5, 1.0))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        else:  # it was quicker than the calm one
            shutil.rmtree(run.tiles)
            duration *= 0.8
    subprocess.run([*command, str(run.root)], check=True, capture_output=True)
    assert killed == 4
    assert digest(run.tiles) == digest(calm.tiles)
    assert not list(run.tiles.glob(".*"))


def test_a_changed_plan_is_fetched_again_and_an_unchanged_one_is_not(season: TinyArchive, tmp_path: Path) -> None:
    run, config = prepared(season, tmp_path / "run", "")
    stage(run, config)
    before = {path: path.stat().st_mtime_ns for path in run.tiles.rglob("*.npy")}
    stage(run, config)
    assert before == {path: path.stat().st_mtime_ns for path in run.tiles.rglob("*.npy")}
    text = run.config.read_text()
    run.config.write_text(text.replace("min_clear = 0.05", "min_clear = 0.6"))
    changed = load_config(run)
    assert all(unit.state().kind == "stale" for unit in FetchStage().open(run, changed).units)
    stage(run, changed)
    assert all(unit.state().complete for unit in FetchStage().open(run, changed).units)


def test_a_full_disk_leaves_no_half_tile(season: TinyArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from preproc.tile.writer import StackWriter

    run, config = prepared(season, tmp_path / "run", "")
    append = StackWriter.append
    calls = [0]

    def full(self: StackWriter, values: np.ndarray) -> None:
        calls[0] += 1
        if calls[0] == 10:
            from infer.contract import writing

            with writing(Path("bands.npy")):
                raise OSError(errno.ENOSPC, "No space left on device")
        append(self, values)

    monkeypatch.setattr(StackWriter, "append", full)
    with pytest.raises(SmaltiError, match="no space left on the device"):
        stage(run, config)
    assert sum((run.tiles / tile.name).exists() for tile in planned_tiles(run)) == 3
    assert not list(run.tiles.glob(".*"))


def test_a_server_is_asked_for_no_more_at_once_than_it_may_be(
    season: TinyArchive, tmp_path: Path, clean: dict[str, list[np.ndarray]]
) -> None:
    for limit, archive in ((2, "workers = 8\nmax_per_host = 2"), (8, "workers = 8")):
        server = RangeServer(serve_folder(season.folder), gather=limit // 2 + 1)
        with server.running():
            run, config = prepared(season, tmp_path / f"run-{limit}", server.url, archive=archive)
            stage(run, config)
        assert server.tally.most_in_flight <= limit
        assert server.tally.most_in_flight > limit / 2, "a busy machine is given time for it"
        assert_same(arrays(run), clean)
