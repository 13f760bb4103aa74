"""Files that cannot be used and servers that misbehave: one clear line each, retries only where they can help."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import Affine
from support.range_server import Faults, RangeServer, serve_folder
from support.tiny import EPSG, NORTH, SIZE, WEST, write_raster

from infer.contract import SmaltiError
from preproc.reader.buckets import web_address
from preproc.reader.gdal import gdal_settings
from preproc.reader.placement import Target
from preproc.reader.ranges import MissingDataError, RangeClient, UnreachableError
from preproc.reader.read import BACKSCATTER, REFLECTANCE, SCENE_CLASSES, Reader
from preproc.reader.transport import ATTEMPTS, LONGEST_ASKED_S, TransientError, usual_wait

TARGET = Target(EPSG, WEST, NORTH, SIZE, SIZE)
WHOLE = Target(EPSG, WEST, NORTH, 256, 256)
VALUES = np.random.default_rng(0).integers(1, 10000, (256, 256), dtype=np.uint16)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with gdal_settings():
        yield


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "files" / "good.tif", VALUES, pixel=10)


def reader(**options: object) -> Reader:
    return Reader(RangeClient(wait=lambda _: 0.0, **options))  # type: ignore[arg-type]  # any option


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def several_bands(path: Path) -> None:
    with rasterio.open(path) as dataset:
        profile = {**dataset.profile, "count": 3}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(np.zeros((3, 256, 256), np.uint16))


def not_georeferenced(path: Path) -> None:
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(
            path, "w", driver="GTiff", count=1, height=256, width=256, dtype="uint16", crs="EPSG:32631"
        ) as dataset,
    ):
        dataset.write(VALUES, 1)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable GeoTIFF"),
    "text": (lambda path: path.write_text("<html>sign in</html>" * 99), "not a readable GeoTIFF"),
    "cut in the pixels": (lambda path: cut(path, 0.5), "not a readable GeoTIFF, damaged or cut short"),
    "cut in the header": (lambda path: cut(path, 0.001), "not a readable GeoTIFF"),
    "three bands": (several_bands, "has 3 bands, a Sentinel-2 band has one"),
    "float": (
        lambda p: write_raster(p, VALUES.astype("f4"), pixel=10),
        "has float32 pixels, a Sentinel-2 band has uint16",
    ),
    "no CRS": (lambda p: write_raster(p, VALUES, pixel=10, epsg=None), "has no coordinate reference system"),
    "no georeference": (not_georeferenced, "has no georeference"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_broken_local_file_is_named_in_one_line(good: Path, name: str) -> None:
    spoil, message = BROKEN[name]
    spoil(good)
    with pytest.raises(MissingDataError) as raised:
        reader().read(str(good), [WHOLE], REFLECTANCE)
    assert str(raised.value).startswith(f"{good}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "missing"])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_broken_file_on_a_server_is_named_in_one_line(good: Path, name: str) -> None:
    BROKEN[name][0](good)
    with RangeServer(serve_folder(good.parent)).running() as server:
        href = f"{server.url}/good.tif"
        with pytest.raises(MissingDataError) as raised:
            reader().read(href, [WHOLE], REFLECTANCE)
    assert str(raised.value).startswith(f"{href}: ")
    assert "\n" not in str(raised.value)


def test_a_kind_is_checked_against_the_file(good: Path) -> None:
    with pytest.raises(MissingDataError, match="has uint16 pixels, a scene classification has uint8"):
        reader().read(str(good), [TARGET], SCENE_CLASSES)
    with pytest.raises(MissingDataError, match="has uint16 pixels, a Sentinel-1 band has float32"):
        reader().read(str(good), [TARGET], BACKSCATTER)


def with_mask(path: Path, values: np.ndarray, missing: np.ndarray) -> None:
    write_raster(path, values, pixel=10)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(~missing)


@pytest.mark.parametrize("place", ["local", "served"])
@pytest.mark.parametrize("how", ["nodata 65535", "mask", "mask of a COG", "nodata 0", "no nodata"])
def test_what_a_file_declares_to_be_missing_is_0(tmp_path: Path, how: str, place: str) -> None:
    path, missing = tmp_path / "x.tif", np.zeros(VALUES.shape, bool)
    missing[:, :40] = missing[100:120] = True
    if how.startswith("mask"):
        with_mask(path, VALUES, missing)
        if how.endswith("COG"):
            rasterio.shutil.copy(path, tmp_path / "cog.tif", driver="COG", blocksize=128, overview_count=1)
            path = tmp_path / "cog.tif"
    else:
        fill, nodata = {"nodata 65535": (65535, 65535), "nodata 0": (0, 0), "no nodata": (0, None)}[how]
        write_raster(path, np.where(missing, fill, VALUES).astype("u2"), pixel=10, nodata=nodata)
    targets = [TARGET, WHOLE]
    if place == "local":
        placed = reader().read(str(path), targets, REFLECTANCE)
    else:
        with RangeServer(serve_folder(tmp_path)).running() as server:
            placed = reader().read(f"{server.url}/{path.name}", targets, REFLECTANCE)
    expected = np.where(missing, 0, VALUES)
    np.testing.assert_array_equal(placed[0].values_hw, expected[:SIZE, :SIZE])
    np.testing.assert_array_equal(placed[1].values_hw, expected)
    assert {one.gaps for one in placed} == {how not in ("nodata 0", "no nodata")}


def test_a_mask_counts_in_radar_and_scene_classes_too(tmp_path: Path) -> None:
    missing = np.arange(256 * 256).reshape(256, 256) % 3 == 0
    for kind in (BACKSCATTER, SCENE_CLASSES):
        with_mask(tmp_path / "x.tif", np.full((256, 256), 5, kind.dtype), missing)
        (placed,) = reader().read(str(tmp_path / "x.tif"), [WHOLE], kind)
        np.testing.assert_array_equal(placed.values_hw, np.where(missing, 0, 5))


def test_decibels_are_named(tmp_path: Path) -> None:
    power = np.random.default_rng(1).gamma(4, 0.03, (256, 256)).astype("f4")
    path = write_raster(tmp_path / "x.tif", power, pixel=10, nodata=0)
    reader().read(str(path), [WHOLE], BACKSCATTER)
    write_raster(path, (10 * np.log10(power)).astype("f4"), pixel=10, nodata=0)
    with pytest.raises(MissingDataError, match=r"holds decibels \(the median is -9\.\d\), .* linear power: convert it"):
        reader().read(str(path), [WHOLE], BACKSCATTER)


MOON = (
    'GEOGCS["Moon (2015)",DATUM["Moon",SPHEROID["Moon",1737400,0]],PRIMEM["Reference_Meridian",0],'
    'UNIT["degree",0.0174532925199433]]'
)
SITE = 'LOCAL_CS["A building site",UNIT["metre",1]]'
ABSURD: dict[str, tuple[dict[str, object], str]] = {
    "one strip": (
        {"tiled": False, "blockysize": 30000},
        "its blocks have 30000 x 30000 pixels, 1717 MiB at once, at most 64 are read",
    ),
    "one tile": ({"tiled": True, "blockxsize": 30000, "blockysize": 30000}, "its blocks have 30.* MiB at once"),
    "pixels of 2 cm": (
        {"transform": Affine(0.02, 0, WEST, 0, -0.02, NORTH)},
        r"its pixels are 0.02 x 0.02 .* 15502 x 15502 of them, 458 MiB at once, at most 64 are read: resample",
    ),
    "pixels of a millimetre": (
        {"transform": Affine(0.001, 0, WEST, 0, -0.001, NORTH)},
        r"its pixels are 0.001 x 0.001 .* 20003 x 20003 of them",
    ),
    "infinite": ({"transform": Affine(10, 0, np.inf, 0, -10, NORTH)}, "is no place on Earth"),
    "not a number": ({"transform": Affine(np.nan, 0, WEST, 0, -10, NORTH)}, "is no place on Earth|has no georeference"),
    "pixels of 1e300 m": ({"transform": Affine(1e300, 0, WEST, 0, -1e300, NORTH)}, "is no place on Earth"),
    "the Moon": ({"crs": MOON}, "no transformation between EPSG:32631 and Moon"),
    "a building site": ({"crs": SITE}, "no transformation between EPSG:32631 and A building site|reference system"),
    "heights": ({"crs": "EPSG:5773"}, "no transformation between EPSG:32631 and"),
}


@pytest.mark.parametrize("place", ["local", "served"])
@pytest.mark.parametrize("name", ABSURD)
def test_absurd_files_are_refused_with_their_numbers(tmp_path: Path, name: str, place: str) -> None:
    options, message = ABSURD[name]
    profile = {
        "dtype": "uint16", "count": 1, "width": 30000, "height": 30000, "crs": "EPSG:32631", "sparse_ok": True,
        "transform": Affine(10, 0, WEST, 0, -10, NORTH), "tiled": True, "blockxsize": 512, "blockysize": 512,
        "compress": "deflate",
    } | options  # fmt: skip
    with rasterio.open(tmp_path / "x.tif", "w", driver="GTiff", **profile):
        pass
    with RangeServer(serve_folder(tmp_path)).running() as server, pytest.raises(MissingDataError, match=message):
        href = str(tmp_path / "x.tif") if place == "local" else f"{server.url}/x.tif"
        reader().read(href, [TARGET], REFLECTANCE)


def test_whether_a_file_can_be_read_does_not_depend_on_the_neighbours(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [Target(EPSG, WEST + 10 * SIZE * k, NORTH, SIZE, SIZE) for k in range(4)]
    monkeypatch.setattr("preproc.reader.read.MOST_BYTES", 2 * SIZE * SIZE * 2)  # for two of the four
    for k, placed in enumerate(reader().read(str(good), targets, REFLECTANCE)):
        np.testing.assert_array_equal(placed.values_hw, VALUES[:SIZE, k * SIZE : (k + 1) * SIZE])


def test_a_file_name_may_hold_brackets(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a[1]*? #%20.tif", VALUES, pixel=10)
    (placed,) = reader().read(str(path), [WHOLE], REFLECTANCE)
    np.testing.assert_array_equal(placed.values_hw, VALUES)


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.tif"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(MissingDataError, match=r"x\.tif: is not a regular file"):
        reader().read(str(path), [WHOLE], REFLECTANCE)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(MissingDataError, match="smalti does not read ftp: addresses"):
        reader().read("ftp://example.org/x.tif", [TARGET], REFLECTANCE)


def test_public_buckets_are_read_over_https() -> None:
    assert web_address("s3://sentinel-cogs/a/B04.tif") == "https://sentinel-cogs.s3.amazonaws.com/a/B04.tif"
    assert web_address("gs://bucket/a.tif") == "https://storage.googleapis.com/bucket/a.tif"
    assert web_address("https://x.org/a.tif?b=c") == "https://x.org/a.tif?b=c"


def test_a_file_url_is_a_path(good: Path) -> None:
    (placed,) = reader().read(good.as_uri(), [TARGET], REFLECTANCE)
    np.testing.assert_array_equal(placed.values_hw, VALUES[:SIZE, :SIZE])


def test_several_targets_share_one_read(good: Path) -> None:
    targets = [Target(EPSG, WEST + 10 * SIZE * k, NORTH, SIZE, SIZE) for k in (0, 3, 20)]
    with RangeServer(serve_folder(good.parent)).running() as server:
        placed = reader().read(f"{server.url}/good.tif", targets, REFLECTANCE)
        assert sum(server.tally.ranges.values()) == len(server.tally.ranges)
    np.testing.assert_array_equal(placed[0].values_hw, VALUES[:SIZE, :SIZE])
    np.testing.assert_array_equal(placed[1].values_hw, VALUES[:SIZE, 3 * SIZE : 4 * SIZE])
    assert not placed[2].values_hw.any()


@pytest.mark.parametrize("code", ["401", "409"])
def test_what_cannot_succeed_is_asked_for_once(good: Path, code: str) -> None:
    with RangeServer(serve_folder(good.parent), faults=Faults(always={"/good.tif": code})).running() as server:
        with pytest.raises(MissingDataError, match=f"good.tif: the server answers {code}"):
            reader().read(f"{server.url}/good.tif", [TARGET], REFLECTANCE)
        assert server.tally.requests["/good.tif"] == 1


def test_a_missing_file_is_asked_for_once(good: Path) -> None:
    with RangeServer(serve_folder(good.parent)).running() as server:
        with pytest.raises(MissingDataError, match=r"none\.tif: the server answers 404"):
            reader().read(f"{server.url}/none.tif", [TARGET], REFLECTANCE)
        assert server.tally.requests["/none.tif"] == 1


@pytest.mark.parametrize("kind", ["429", "500", "503", "reset", "truncate", "stall"])
def test_a_server_that_never_recovers_is_given_up_after_the_budget(good: Path, kind: str) -> None:
    with RangeServer(serve_folder(good.parent), faults=Faults(always={"/good.tif": kind})).running() as server:
        started = time.monotonic()
        with pytest.raises(UnreachableError, match=rf"good.tif: .*, {ATTEMPTS} times: try again later"):
            reader(stall_s=0.1).read(f"{server.url}/good.tif", [TARGET], REFLECTANCE)
        assert server.tally.requests["/good.tif"] == ATTEMPTS
        assert time.monotonic() - started < 60  # a stall ends by lack of progress, not by the server


def test_a_server_that_only_sends_rubbish_is_given_up(good: Path) -> None:
    server = RangeServer(serve_folder(good.parent), faults=Faults(always={"/good.tif": "garble"}))
    message = r"it does not begin like a TIFF.*\(fetched 3 times\)"
    with server.running(), pytest.raises(MissingDataError, match=message):
        reader().read(f"{server.url}/good.tif", [TARGET], REFLECTANCE)


def test_a_server_without_ranges_is_refused(tmp_path: Path, good: Path) -> None:
    import http.server
    import threading

    handler = type("Plain", (http.server.BaseHTTPRequestHandler,), {
        "do_GET": lambda self: (self.send_response(200), self.end_headers(), self.wfile.write(b"x" * 50))[2],
        "log_message": lambda *_: None,
    })  # fmt: skip
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(MissingDataError, match="the server ignores byte ranges"):
            reader().read(f"http://127.0.0.1:{server.server_address[1]}/x.tif", [TARGET], REFLECTANCE)
        server.shutdown()


def test_a_connection_that_trickles_counts_as_stalled(good: Path) -> None:
    """A byte now and then keeps a socket's time-out from striking; the lack of progress is noticed all the same."""
    import socket
    import threading

    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def trickle() -> None:
        while not stop.is_set():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                try:
                    connection.sendall(
                        b"HTTP/1.1 206 Partial\r\nContent-Length: 16384\r\nContent-Range: bytes 0-16383/99999\r\n\r\n"
                    )
                    while not stop.wait(0.02):
                        connection.sendall(b"x")
                except OSError:
                    pass

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    try:
        with pytest.raises(UnreachableError, match="the connection stalled after"):
            reader(stall_s=0.1).read(f"http://127.0.0.1:{listener.getsockname()[1]}/x.tif", [TARGET], REFLECTANCE)
    finally:
        stop.set()
        listener.close()


class Tokens:
    """Signs with the server's tokens, as preproc.reader.signing does with a service's."""

    def __init__(self, server: RangeServer) -> None:
        self.server, self.signed, self.renewed = server, 0, 0
        self.current = "se=1.0&sig=expired"

    def sign(self, href: str) -> str:
        self.signed += 1
        return f"{href}?{self.current}"

    def renew(self, href: str) -> str:
        self.renewed += 1
        self.current = self.server.token("/".join(href.split("/")[3:5]))[0]
        return f"{href}?{self.current}"


def test_an_expired_token_is_renewed_once_and_the_read_goes_on(good: Path) -> None:
    server = RangeServer(lambda _: good, faults=Faults(secret="s"))
    with server.running():
        tokens = Tokens(server)
        (placed,) = reader(signer=tokens).read(f"{server.url}/account/container/good.tif", [TARGET], REFLECTANCE)
    np.testing.assert_array_equal(placed.values_hw, VALUES[:SIZE, :SIZE])
    assert tokens.renewed == 1


def test_a_token_that_stays_refused_is_an_error_that_does_not_show_it(good: Path) -> None:
    server = RangeServer(lambda _: good, faults=Faults(secret="s", token_life_s=-10))
    with server.running(), pytest.raises(MissingDataError, match="refuses it even with a new token") as raised:
        reader(signer=Tokens(server)).read(f"{server.url}/account/container/good.tif", [TARGET], REFLECTANCE)
    assert "sig=" not in str(raised.value)


@pytest.mark.parametrize("kind", ["503", "reset", "stall"])
def test_no_message_shows_a_token(good: Path, kind: str) -> None:
    server = RangeServer(lambda _: good, faults=Faults(always={"/a/b/good.tif": kind}))
    with server.running(), pytest.raises(SmaltiError) as raised:
        reader(signer=Tokens(server), stall_s=0.1).read(f"{server.url}/a/b/good.tif", [TARGET], REFLECTANCE)
    assert "sig=" not in str(raised.value)
    assert "object at 0x" not in str(raised.value)


def test_waits_honour_retry_after_and_grow_otherwise() -> None:
    def wait(attempt: int, after: float | None) -> float:
        fault = TransientError("busy", after)
        fault.attempt = attempt
        return usual_wait(fault)

    assert all(7 <= wait(1, 7.0) <= 9 for _ in range(20))
    assert all(wait(1, 1e6) <= LONGEST_ASKED_S + 2 for _ in range(20))
    assert all(wait(1, None) <= 0.5 for _ in range(20))
    assert max(wait(6, None) for _ in range(200)) > 4
