"""A mirror holds what the tiles need, validates, works without the archive, and gives the same arrays bit for bit."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import numpy as np
import pystac
import pytest
import rasterio
from pyproj import Transformer
from support.range_server import RangeServer, serve_folder
from support.tiny import EPSG, NORTH, SIZE, WEST, TinyArchive

import preproc.mirror.mirror
from infer.contract import Run, SmaltiError, planned_tiles, read_tile
from preproc.mirror.mirror import RECORD, mirror
from preproc.plan.stage import PlanStage
from preproc.run.config import Config, load_config
from preproc.run.stage import StageFailedError, run_stage
from preproc.tile.stage import FetchStage

EXTENT = 8 * SIZE * 10


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> TinyArchive:
    """Granules far larger than the run's tiles, one of them in the neighbouring zone, and a radar scene."""
    rng = np.random.default_rng(11)
    made = TinyArchive(tmp_path_factory.mktemp("mirrored") / "archive")
    x, y = Transformer.from_crs(EPSG, 32632, always_xy=True).transform(WEST, NORTH)
    places = {32631: (WEST - SIZE * 30, NORTH + SIZE * 30), 32632: (round(x) - 900, round(y) + 900)}
    for day, epsg in (("2021-07-01", 32631), ("2021-07-11", 32632), ("2021-07-21", 32631)):
        shape = (EXTENT // 10, EXTENT // 10)
        bands = {"B04": rng.integers(1, 9000, shape, dtype=np.uint16)}
        bands["B11"] = rng.integers(0, 3, (shape[0] // 2, shape[1] // 2), dtype=np.uint16) * 1500
        scl = rng.choice([4, 5, 9], (shape[0] // 2, shape[1] // 2)).astype(np.uint8)
        west, north = places[epsg]
        made.s2(f"s2-{day}", day, scl=scl, bands=bands, west=west, north=north, extent=EXTENT, epsg=epsg)
    power = rng.gamma(4, 0.03, (EXTENT // 10, EXTENT // 10)).astype(np.float32)
    made.s1("s1,July", "2021-07-03", vv=power, vh=power / 3, west=WEST - SIZE * 30, north=NORTH + 960, extent=EXTENT)
    return made


def arrays(run: Run, config: Config) -> dict[str, list[np.ndarray]]:
    run_stage(FetchStage(), run, config)
    found = {}
    for planned in planned_tiles(run):
        tile = read_tile(run.tiles / planned.name, need_manifest=True)
        found[planned.name] = [tile.bands_thwb, tile.masks_thw, tile.doys_t, tile.sar_asc_thwp, tile.sar_asc_doys_t]
    return found


def offline(run: Run, root: Path, href: Path | str, more: str = "") -> tuple[Run, Config]:
    """The same run on another archive."""
    root.mkdir()
    shutil.copy(run.root / "region.geojson", root)
    lines = run.config.read_text().splitlines()
    lines = [f'href = "{href}"\n{more}' if line.startswith("href") else line for line in lines]
    (root / "run.toml").write_text("\n".join(lines))
    other = Run(root)
    config = load_config(other)
    run_stage(PlanStage(), other, config)
    return other, config


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("remote", [False, True])
def test_tiles_from_a_mirror_are_those_of_the_archive(
    archive: TinyArchive, tmp_path: Path, whole: bool, remote: bool
) -> None:
    server = RangeServer(serve_folder(archive.folder))
    with server.running():
        run, config = archive.run(tmp_path / "run", tiles=(1, 2), base=server.url if remote else "")
        said = mirror(run, config, str(tmp_path / "copy"), whole=whole)
        expected = arrays(run, config)
    assert f'href = "{tmp_path / "copy" / "catalog.json"}"' in said
    other, other_config = offline(run, tmp_path / "offline", tmp_path / "copy" / "catalog.json")
    found = arrays(other, other_config)
    assert found.keys() == expected.keys()
    for name, stacks in expected.items():
        assert stacks[0].shape[0] == 3
        assert stacks[3].any()
        for one, same in zip(stacks, found[name], strict=True):
            np.testing.assert_array_equal(one, same)


def test_a_mirror_holds_the_blocks_that_tiles_need_and_its_catalogue_validates(
    archive: TinyArchive, tmp_path: Path
) -> None:
    run, config = archive.run(tmp_path / "run")
    mirror(run, config, None)
    root = run.root / "mirror"
    catalogue = pystac.Catalog.from_file(root / "catalog.json")
    assert catalogue.validate_all() == 4
    assert all(not link.get_href().startswith("/") for link in catalogue.links if link.rel != "self")
    for item in catalogue.get_items(recursive=True):
        assert all(asset.href.startswith("./") for asset in item.assets.values())
    original, copied = archive.folder / "s2-2021-07-01" / "B04.tif", next(root.rglob("s2-2021-07-01/B04.tif"))
    assert copied.stat().st_size < original.stat().st_size / 4
    with rasterio.open(original) as before, rasterio.open(copied) as after:
        assert (before.transform, before.shape, before.crs) == (after.transform, after.shape, after.crs)


def test_a_mirror_goes_on_where_it_stopped_and_heals(archive: TinyArchive, tmp_path: Path) -> None:
    run, config = archive.run(tmp_path / "run")
    root = run.root / "mirror"
    mirror(run, config, None)
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}
    lost, cut, changed = sorted(path for path in files if path.suffix == ".tif")[:3]
    lost.unlink()
    cut.write_bytes(files[cut][0][:-9])
    changed.write_bytes(files[changed][0][:-1] + bytes([files[changed][0][-1] ^ 1]))
    mirror(run, config, None)
    assert lost.read_bytes() == files[lost][0]
    assert cut.read_bytes() == files[cut][0]
    assert changed.read_bytes() != files[changed][0], "sizes are compared, unless asked for more"
    mirror(run, config, None, deep=True)
    for path, (content, changed_ns) in files.items():
        assert path.read_bytes() == content
        assert path in (lost, cut, changed) or path.stat().st_mtime_ns == changed_ns or path.name == RECORD


def test_a_bad_asset_does_not_stop_the_others_and_fetch_notices(archive: TinyArchive, tmp_path: Path) -> None:
    own = TinyArchive(tmp_path / "archive")
    shutil.copytree(archive.folder, own.folder)
    own.items = archive.items
    run, config = own.run(tmp_path / "run")
    bad = own.folder / "s2-2021-07-01" / "B11.tif"
    bad.write_bytes(b"II*\0 not a TIFF")
    with pytest.raises(StageFailedError, match=r"1 of the assets failed(.|\n)*s2-2021-07-01/B11\.tif"):
        mirror(run, config, None)
    root = run.root / "mirror"
    assert len(list(root.rglob("*.tif"))) == 3 * 11 + 2 - 1
    assert list(json.loads((root / RECORD).read_bytes())["failed"]) == ["sentinel-2-l2a/s2-2021-07-01/B11.tif"]
    other, strict = offline(run, tmp_path / "strict", root / "catalog.json")
    with pytest.raises(StageFailedError, match=r"B11"):
        run_stage(FetchStage(), other, strict)
    other, lenient = offline(run, tmp_path / "lenient", root / "catalog.json", 'on_missing = "drop-date"')
    assert arrays(other, lenient)[planned_tiles(other)[0].name][0].shape[0] == 2
    shutil.copy(archive.folder / "s2-2021-07-01" / "B11.tif", bad)
    mirror(run, config, None)
    assert "failed" not in (root / RECORD).read_text() or not json.loads((root / RECORD).read_bytes())["failed"]


def test_a_target_that_cannot_be_written_is_said(archive: TinyArchive, tmp_path: Path) -> None:
    run, config = archive.run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(SmaltiError, match="is a file"):
        mirror(run, config, str(tmp_path / "file"))
    pytest.importorskip("obstore")
    with pytest.raises(SmaltiError, match="not an address of an object store"):
        mirror(run, config, "gopher://example/bucket")


def test_an_interrupted_mirror_is_no_catalogue(
    archive: TinyArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = archive.run(tmp_path / "run")
    calls = []
    real = preproc.mirror.mirror.copy_needed

    def stops(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) > 20:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(preproc.mirror.mirror, "copy_needed", stops)
    with pytest.raises(KeyboardInterrupt):
        mirror(run, config, None)
    assert not (run.root / "mirror" / "catalog.json").exists()
    assert not list((run.root / "mirror").rglob(".*.tmp"))
    monkeypatch.setattr(preproc.mirror.mirror, "copy_needed", real)
    mirror(run, config, None)
    assert pystac.Catalog.from_file(run.root / "mirror" / "catalog.json").validate_all() == 4


class _Dav(BaseHTTPRequestHandler):
    """The least of WebDAV: whole files are stored and handed out. Folders need not be made."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:  # the name that the base class looks for
        self.files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201, b"")

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        self._answer(404 if content is None else 200, content or b"")

    do_HEAD = do_GET

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Thu, 01 Jul 2021 00:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def test_a_mirror_on_a_webdav_server_holds_what_one_in_a_folder_holds(archive: TinyArchive, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    run, config = archive.run(tmp_path / "run")
    mirror(run, config, str(tmp_path / "copy"))
    _Dav.files.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Dav)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/season"
        said = mirror(run, config, address)
        first = dict(_Dav.files)
        name = next(name for name in first if name.endswith("B04.tif"))
        del _Dav.files[name]
        mirror(run, config, address)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert f'href = "{address}/catalog.json"' in said
    assert _Dav.files == first
    local = {path.relative_to(tmp_path / "copy").as_posix(): path for path in (tmp_path / "copy").rglob("*")}
    local = {name: path for name, path in local.items() if path.is_file()}
    assert {unquote(name.removeprefix("/season/")) for name in first} == set(local)
    for name, content in first.items():
        assert content == local[unquote(name.removeprefix("/season/"))].read_bytes()


@pytest.mark.parametrize("name", ["../..", "/etc", "x" * 300, "..", "a/../../b", ".hidden", "caf\u00e9"])
def test_collections_and_ids_of_any_text_stay_inside_the_mirror(
    archive: TinyArchive, tmp_path: Path, name: str
) -> None:
    own = TinyArchive(archive.folder)
    own.items = [{**item, "collection": name, "id": name} for item in archive.items[:1]]
    run, config = own.run(tmp_path / "deep" / "in" / "run")
    mirror(run, config, str(tmp_path / "deep" / "in" / "copy"))
    assert sorted(path.name for path in (tmp_path / "deep" / "in").iterdir()) == ["copy", "run"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert all(path.resolve().is_relative_to(run.items) for path in run.items.glob("*"))
    _, there = offline(run, tmp_path / "offline", tmp_path / "deep" / "in" / "copy" / "catalog.json")
    assert there.archive.source == "static"


@pytest.mark.parametrize("whole", [False, True])
def test_no_file_of_this_machine_is_copied_because_a_remote_catalogue_names_it(
    archive: TinyArchive, tmp_path: Path, whole: bool
) -> None:
    own = archive.folder / "s2-2021-07-01"
    run, _ = archive.run(tmp_path / "first")
    items = json.loads((archive.folder / "items.json").read_text())
    for asset in items["features"][0]["assets"].values():
        asset["href"] = (own / Path(asset["href"]).name).as_uri()
    served = tmp_path / "served"
    shutil.copytree(archive.folder, served)
    (served / "items.json").write_text(json.dumps(items))
    server = RangeServer(serve_folder(served))
    with server.running():
        other, config = offline(run, tmp_path / "run", f"{server.url}/items.json")
        (rejected,) = json.loads(other.plan.read_text())["scenes"]["rejected"]
        mirror(other, config, None, whole=whole)
    assert rejected["examples"] == ["s2-2021-07-01"]
    assert "a file of this machine, named by a catalogue that came over the network" in rejected["reason"]
    copied = {path.parent.name for path in (other.root / "mirror").rglob("B04.tif")}
    assert copied == {"s2-2021-07-11", "s2-2021-07-21"}
