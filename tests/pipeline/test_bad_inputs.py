"""Bad input gets one clear message that names the file or key, a non-zero exit code, and spoils nothing good."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fuzz.campaign import Campaign
from support.runs import RUN_TOML, digest, make_run, smalti

from infer.contract import Run, planned_tiles, stage_lock, write_manifest
from preproc.cli import main

GEOJSON = {"type": "FeatureCollection", "features": []}


@dataclass(frozen=True)
class Case:
    """What is done to a complete run, what is then asked for, and what must be said."""

    spoil: Callable[[Path], None]
    command: tuple[str, ...]
    message: str
    code: int


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    """A complete run with an archive of its own, both in one folder, so that both can be copied and spoilt."""
    folder = tmp_path_factory.mktemp("complete")
    shutil.copytree(archive, folder / "archive")
    root = make_run(folder / "run", archive, RUN_TOML.replace("{archive}", "../archive"))
    smalti("run", root)
    return folder


@pytest.fixture
def place(complete: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(complete, tmp_path / "place")
    return tmp_path / "place"


def edit(old: str, new: str) -> Callable[[Path], None]:
    """Change run.toml."""

    def apply(place: Path) -> None:
        path = place / "run" / "run.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return apply


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Replace a file of the archive."""

    def apply(place: Path) -> None:
        path = place / "archive" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return apply


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    """Several changes in a row."""

    def apply(place: Path) -> None:
        for change in changes:
            change(place)

    return apply


def first_tile(place: Path) -> str:
    """Name of a tile in the middle of the plan."""
    tiles = planned_tiles(Run(place / "run"))
    return tiles[len(tiles) // 2].name


def nothing(place: Path) -> None:
    """The run as it is."""


def remove(*names: str) -> Callable[[Path], None]:
    """Remove outputs of the run."""

    def apply(place: Path) -> None:
        for name in names:
            path = place / "run" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def refetch(place: Path) -> None:
    shutil.rmtree(place / "run" / "tiles")


def reinfer(place: Path) -> None:
    shutil.rmtree(place / "run" / "embeddings")


def tile_file(name: str, change: Callable[[bytes], bytes] | None) -> Callable[[Path], None]:
    """Change or remove a file of one tile; its embedding is asked for again."""

    def apply(place: Path) -> None:
        reinfer(place)
        path = place / "run" / "tiles" / first_tile(place) / name
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(path.read_bytes()))

    return apply


def nine_bands(place: Path) -> None:
    reinfer(place)
    folder = place / "run" / "tiles" / first_tile(place)
    manifest = json.loads((folder / "tile.json").read_text())
    np.save(folder / "bands.npy", np.load(folder / "bands.npy")[..., :9])
    fields = {k: v for k, v in manifest.items() if k not in ("files", "inputs", "format", "format_version", "software")}
    files = [folder / name for name in manifest["files"]]
    write_manifest(folder / "tile.json", "tile", inputs=manifest["inputs"], files=files, fields=fields)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def cogs(place: Path, name: str) -> list[Path]:
    """All rasters of one band in the archive."""
    found = sorted((place / "archive").rglob(f"*{name}*.tif*"))
    assert found, f"no raster of {name}"
    return found


def spoil_cogs(name: str, change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Spoil the rasters of one band; the tiles are asked for again."""

    def apply(place: Path) -> None:
        refetch(place)
        for path in cogs(place, name):
            change(path)

    return apply


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def two_bands(path: Path) -> None:
    import rasterio

    with rasterio.open(path) as source:
        profile, data = source.profile, source.read(1)
    profile.update(count=2, driver="GTiff")
    path.unlink()
    with rasterio.open(path, "w", **profile) as target:
        target.write(np.stack([data, data]))


def checkpoint(content: object | bytes) -> Callable[[Path], None]:
    """A checkpoint file with this content, named in run.toml."""

    def apply(place: Path) -> None:
        path = place / "run" / "mine.pt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            code = "import sys, torch, pickle; torch.save(pickle.loads(sys.stdin.buffer.read()), sys.argv[1])"
            subprocess.run([sys.executable, "-c", code, path], input=pickle.dumps(content), check=True)
        edit('name = "demo"', 'checkpoint = "mine.pt"')(place)

    return apply


class _RunsCode:
    """A pickle that would make a file when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/smalti-was-here",)


def geojson(*features: tuple[dict[str, object], dict[str, object] | None], crs: str | None = None) -> str:
    """GeoJSON text of (properties, geometry) pairs."""
    made: dict[str, object] = {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "properties": p, "geometry": g} for p, g in features],
    }
    if crs:
        made["crs"] = {"type": "name", "properties": {"name": crs}}
    return json.dumps(made)


def square(lon: float, lat: float, side: float = 0.001) -> dict[str, object]:
    ring = [[lon, lat], [lon + side, lat], [lon + side, lat + side], [lon, lat + side], [lon, lat]]
    return {"type": "Polygon", "coordinates": [ring]}


def one_class(place: Path) -> None:
    path = place / "archive" / "parcels.geojson"
    content = json.loads(path.read_text())
    for feature in content["features"]:
        feature["properties"]["crop"] = "maize"
    path.write_text(json.dumps(content))


def without_crs(source: str, key: str) -> Callable[[Path], None]:
    """Name a shapefile without .prj instead of the archive's vector file."""

    def apply(place: Path) -> None:
        import pyogrio

        folder = place / "archive"
        meta, _, geometry, fields = pyogrio.raw.read(folder / source)
        pyogrio.raw.write(
            folder / "bare.shp", geometry, fields, meta["fields"], crs="EPSG:4326", geometry_type="Polygon",
            driver="ESRI Shapefile",
        )  # fmt: skip
        (folder / "bare.prj").unlink()
        edit(f"{key}/{source}", f"{key}/bare.shp")(place)

    return apply


ITEM_COLLECTION = '{"type": "FeatureCollection", "features": []}'
TILES = ("fetch",)
CASES: dict[str, Case] = {
    # settings
    "no run directory": Case(lambda p: shutil.rmtree(p / "run"), ("plan",), r"no such run directory", 2),
    "no run.toml": Case(remove("run.toml"), ("plan",), r"run.toml: missing: write one with `smalti init", 2),
    "not TOML": Case(edit("[tiles]", "[tiles"), ("plan",), r"run.toml: not valid TOML", 2),
    "unknown key": Case(edit("size = 32", "sizes = 32"), ("plan",), r"\[tiles\] sizes: unknown key", 2),
    "unknown section": Case(edit("[tiles]", "[tile]"), ("plan",), r"\[tile\]: unknown section", 2),
    "wrong type": Case(edit("size = 32", 'size = "32"'), ("plan",), r"\[tiles\] size: .*integer.*'32'", 2),
    "impossible size": Case(edit("size = 32", "size = 7"), ("plan",), r"\[tiles\] size: ", 2),
    "end before start": Case(edit("2022-09-30", "2021-01-01"), ("plan",), r"end 2021-01-01 is before start", 2),
    "no date": Case(edit("2022-09-30", "2022-02-30"), ("plan",), r"\[region\] end: '2022-02-30' is not a date", 2),
    "unknown model": Case(edit('"demo"', '"prithvi"'), ("plan",), r"\[model\] name: unknown model 'prithvi'", 2),
    "no labels section": Case(
        lambda p: (p / "run/run.toml").write_text((p / "run/run.toml").read_text().split("[labels]")[0]),
        ("sample",), r"\[labels\]: missing", 2,
    ),
    "no shard": Case(nothing, ("fetch", "--shard", "2/2"), r"--shard 2/2: write I/N with 0 <= I < N", 2),
    "a gathering stage in shards": Case(nothing, ("validate", "--shard", "0/2"), r"[Nn]o such option", 2),
    # region and archive
    "no region file": Case(edit("region.geojson", "nowhere.geojson"), ("plan",), r"nowhere.geojson: ", 2),
    "region without CRS": Case(without_crs("region.geojson", "archive"), ("plan",), r"bare.shp: .*CRS", 2),
    "empty region": Case(write("region.geojson", json.dumps(GEOJSON)), ("plan",), r"region.geojson: ", 2),
    "region of points": Case(
        write("region.geojson", geojson(({}, {"type": "Point", "coordinates": [5.9, 50.8]}))), ("plan",),
        r"region.geojson: .*[Pp]olygon", 2,
    ),
    "no items file": Case(edit("items.json", "nothing.json"), ("plan",), r"nothing.json: ", 2),
    "items are no JSON": Case(write("items.json", "<html>"), ("plan", "--force"), r"items.json: ", 2),
    "no items at all": Case(write("items.json", ITEM_COLLECTION), ("plan", "--force"), r"items.json: no item of", 2),
    "no items in the window": Case(
        both(edit("2021-10-01", "2016-01-01"), edit("2022-09-30", "2016-02-01")), ("plan",), r"no .*2016-01-01", 2
    ),
    "a file that is no raster": Case(
        spoil_cogs("B04", lambda p: p.write_text("<html>")), TILES, r"B04.*: ", 1
    ),
    "a truncated raster": Case(spoil_cogs("B04", truncate), TILES, r"B04", 1),
    "a raster with two bands": Case(spoil_cogs("B04", two_bands), TILES, r"B04.*2 bands", 1),
    "rasters that are gone": Case(spoil_cogs("SCL", Path.unlink), TILES, r"SCL", 1),
    # tiles
    "no plan": Case(remove("plan.json"), ("fetch",), r"plan.json: the manifest of this plan is missing", 2),
    "a truncated array": Case(tile_file("bands.npy", lambda b: b[:-50]), ("infer",), r"bands.npy: \d+ bytes", 1),
    "a flipped bit": Case(tile_file("masks.npy", flipped), ("infer",), r"masks.npy: its contents do not match", 1),
    "a missing mask": Case(tile_file("masks.npy", None), ("infer",), r"masks.npy: missing", 1),
    "a missing manifest": Case(tile_file("tile.json", None), ("infer",), r"has not been fetched", 1),
    "nine bands": Case(nine_bands, ("infer",), r"bands.npy: axis 'b' has 9 entries", 1),
    # model
    "no such checkpoint": Case(checkpoint(None), ("infer",), r"mine.pt: ", 2),
    "a checkpoint of no family": Case(checkpoint({"weights": [1, 2]}), ("infer",), r"mine.pt: ", 2),
    "a truncated checkpoint": Case(checkpoint(b"PK\x03\x04 and no more"), ("infer",), r"mine.pt: ", 2),
    "a pickle that runs code": Case(checkpoint(pickle.dumps(_RunsCode())), ("infer",), r"mine.pt: ", 2),
    "not a Matryoshka prefix": Case(edit('name = "demo"', 'name = "demo"\ndim = 100'), ("infer",), r"100", 2),
    # gathering
    "no embeddings": Case(remove("embeddings"), ("stitch",), r"embedding.*`smalti infer", 2),
    "one embedding missing": Case(
        lambda p: (p / "run/embeddings" / f"{first_tile(p)}.json").unlink(), ("stitch",), r"1 of \d+ .*`smalti infer", 2
    ),
    "no samples": Case(remove("samples.parquet", "samples.json"), ("train",), r"`smalti sample", 2),
    "no classifier": Case(remove("model"), ("predict",), r"`smalti train", 2),
    # labels
    "no labels file": Case(edit("parcels.geojson", "none.gpkg"), ("sample",), r"none.gpkg: ", 2),
    "labels without CRS": Case(without_crs("parcels.geojson", "archive"), ("sample",), r"bare.shp: .*CRS", 2),
    "labels elsewhere": Case(
        write("parcels.geojson", geojson(*[({"crop": c, "parcel": c}, square(0, 0)) for c in "ab"])),
        ("sample",), r"parcels.geojson: .*region", 2,
    ),
    "labels of one class": Case(one_class, ("sample",), r"parcels.geojson: .*one class", 2),
    "no such attribute": Case(edit('class = "crop"', 'class = "croop"'), ("sample",), r"croop.*crop", 2),
    "no such group": Case(edit('group = "parcel"', 'group = "farm"'), ("sample",), r"farm.*parcel", 2),
}  # fmt: skip


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The command line in this process (quicker than a new one); the engine is a process of its own all the same."""
    monkeypatch.setattr(sys, "argv", ["smalti", *arguments])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(ended.value.code, int | None)
    return ended.value.code or 0


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import re

    case = CASES[name]
    case.spoil(place)
    good = digest(place / "run") if (place / "run").exists() else {}
    stage, *options = case.command
    code = call([stage, str(place / "run"), *options], monkeypatch)
    shown = capfd.readouterr().err
    assert code == case.code, shown
    assert re.search(case.message, shown, re.DOTALL), shown
    assert "Traceback" not in shown
    after = digest(place / "run") if (place / "run").exists() else {}
    assert {path: after.get(path) for path in good} == good or stage in ("fetch", "infer"), "good output was touched"
    assert not list((place / "run").rglob(".*.tmp"))


def test_no_code_ran_from_a_checkpoint() -> None:
    assert not Path("/tmp/smalti-was-here").exists()


def test_one_bad_tile_does_not_stop_the_others(place: Path) -> None:
    tile_file("masks.npy", None)(place)
    bad = first_tile(place)
    done = smalti("run", place / "run", check=False)
    # A tile that lost a file is fetched again, so the run heals itself.
    assert done.returncode == 0, done.stderr
    tile_file("masks.npy", flipped)(place)
    done = smalti("infer", place / "run", check=False)
    assert done.returncode == 1
    assert bad in done.stderr
    made = {path.stem for path in (place / "run" / "embeddings").glob("*.json")}
    assert made == {tile.name for tile in planned_tiles(Run(place / "run"))} - {bad}


def test_two_processes_on_one_run(place: Path) -> None:
    refetch(place)
    with stage_lock(Run(place / "run"), "fetch"):
        done = smalti("fetch", place / "run", check=False)
    assert done.returncode == 75
    assert "another process is working on `fetch`" in done.stderr
    with stage_lock(Run(place / "run"), "run"):
        assert smalti("run", place / "run", check=False).returncode == 75


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with the given options."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / "disk"
        path.mkdir(exist_ok=True)
        if (
            os.geteuid()
            or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=False).returncode
        ):
            pytest.skip("mounting a tmpfs needs root")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", path], check=True)


LATER = ("tiles", "embeddings", "mosaic", "model", "map", "report")
"""Folders of outputs, in the order in which they are made."""
MEDIANS = "/medians.npz"
"""Of a tile, which `sample` makes beside what `fetch` does."""


@pytest.mark.parametrize(("stage", "folder"), [("fetch", "tiles"), ("infer", "embeddings"), ("predict", "map")])
def test_a_full_disk(complete: Path, small_disk: Callable[[str], Path], stage: str, folder: str) -> None:
    disk = small_disk("size=500m")
    shutil.copytree(complete / "archive", disk / "archive")
    later = LATER[LATER.index(folder) :] if folder != "map" else ("map", "report")
    shutil.copytree(complete / "run", disk / "run", ignore=shutil.ignore_patterns(*later))
    needed = sum(path.stat().st_size for path in (complete / "run" / folder).rglob("*") if path.is_file())
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "ballast").write_bytes(bytes(free - needed // 2))
    done = smalti(stage, disk / "run", check=False)
    assert done.returncode == 1, done.stderr
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((disk / "run").rglob(".*.tmp"))
    (disk / "ballast").unlink()
    smalti(stage, disk / "run")
    made, expected = (
        {name: sha for name, sha in digest(root).items() if name.startswith(folder) and not name.endswith(MEDIANS)}
        for root in (disk / "run", complete / "run")
    )
    assert made == expected


def test_too_little_room_for_the_mosaic_is_said_before_it_is_begun(
    complete: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=500m")
    shutil.copytree(complete / "archive", disk / "archive")
    shutil.copytree(complete / "run", disk / "run", ignore=shutil.ignore_patterns("mosaic"))
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "ballast").write_bytes(bytes(free - 200_000))
    done = smalti("stitch", disk / "run", check=False)
    assert done.returncode in (1, 2)
    assert "free disk" in done.stderr
    assert not list((disk / "run" / "mosaic").glob("*")), "nothing was begun"


def test_a_read_only_run(complete: Path, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=500m")
    shutil.copytree(complete / "archive", disk / "archive")
    shutil.copytree(complete / "run", disk / "run")
    shutil.rmtree(disk / "run" / "map")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = smalti("predict", disk / "run", check=False)
    assert done.returncode == 1
    assert "read-only" in done.stderr
    assert "Traceback" not in done.stderr


def test_whatever_a_file_holds_a_command_answers(complete: Path, tmp_path: Path) -> None:
    campaign = Campaign(complete, tmp_path)
    assert [str(result) for result in map(campaign.case, range(1000, 1010)) if result.fault] == []
