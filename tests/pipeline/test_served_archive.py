"""The stand-in for the live services: a real STAC API, real ranges, tokens that expire, and faults on demand."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import planetary_computer
import planetary_computer.sas
import pytest
import rasterio
import requests
from pystac_client import Client
from shapely.geometry import box, shape
from support.archive_server.faults import (
    BUSY,
    GARBLED,
    RESET,
    THROTTLED,
    Fault,
    always,
    each_first,
    first,
    sprinkled,
    stalled,
    truncated,
)
from support.archive_server.serve import CONTAINERS, Served, serve
from support.simulated import QUIRKY, items, pixels

from infer.contract import SmaltiError
from preproc.simulate import simulate

S2, S1 = "sentinel-2-l2a", "sentinel-1-rtc"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("served") / "archive"
    simulate(target, QUIRKY)
    return target


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Served]:
    with serve(folder) as served:
        yield served


@pytest.fixture
def served(running: Served) -> Iterator[Served]:
    running.forget()
    yield running
    running.spoil(None)
    running.live_for(2700)


def token(served: Served, collection: str = S2) -> str:
    return str(requests.get(f"{served.sas_url}/{CONTAINERS[collection]}", timeout=10).json()["token"])


def address(served: Served, item: dict[str, Any], asset: str) -> str:
    path = item["assets"][asset]["href"].removeprefix(f"./{item['collection']}/")
    return f"{served.url}/{CONTAINERS[item['collection']]}/{path}"


# --- the catalogue's API -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collections", "bounds", "dates", "limit"),
    [
        ([S2], None, None, 7),
        ([S1], None, None, 100),
        ([S2, S1], None, "2022-01-01/2022-06-30", 10),
        ([S2], (5.90, 50.79, 5.91, 50.80), "2021-10-01/2021-12-31", 3),
        ([S1], (0.0, 0.0, 1.0, 1.0), None, 10),
    ],
)
def test_searches_give_what_a_local_filter_gives(
    served: Served, folder: Path, collections: list[str], bounds: Any, dates: str | None, limit: int
) -> None:
    wanted = set()
    for item in (item for name in collections for item in items(folder, name)):
        first_day, last_day = (dates or "0001-01-01/9999-12-31").split("/")
        near = bounds is None or shape(item["geometry"]).intersects(box(*bounds))
        if near and first_day <= item["properties"]["datetime"][:10] <= last_day:
            wanted.add(item["id"])
    client = Client.open(served.url)
    search = client.search(collections=collections, bbox=bounds, datetime=dates, limit=limit)
    found = list(search.items_as_dicts())
    assert len(found) == len({item["id"] for item in found}), "an item came twice"
    assert {item["id"] for item in found} == wanted
    pages = len([e for e in served.requests("stac") if e.seen.path == "/search"])
    assert pages >= max(1, len(wanted) // limit)


def test_items_keep_their_properties_and_name_files_that_exist(served: Served, folder: Path) -> None:
    ours = {item["id"]: item for item in items(folder, S2)}
    query = {"sig": "?"}
    found = list(Client.open(served.url).search(collections=[S2], limit=100).items_as_dicts())
    assert len(found) == len(ours)
    for item in found:
        for key, value in ours[item["id"]]["properties"].items():
            if key not in ("datetime", "created"):
                assert item["properties"][key] == value, key
        assert set(item["assets"]) == set(ours[item["id"]]["assets"])
        for name, asset in item["assets"].items():
            assert asset["href"] == address(served, ours[item["id"]], name)
            assert asset["proj:transform"] == ours[item["id"]]["assets"][name]["proj:transform"]
    query = {**dict(pair.split("=") for pair in token(served).split("&") if pair.count("=") == 1)}
    assert query["sp"] == "rl"
    for name, asset in found[0]["assets"].items():
        assert requests.head(f"{asset['href']}?{token(served)}", timeout=10).status_code == 200, name


# --- files and tokens --------------------------------------------------------------------------------------------


def test_ranges_are_honoured(served: Served, folder: Path) -> None:
    item = items(folder, S1)[0]
    whole = (folder / item["assets"]["vv"]["href"]).read_bytes()
    url = f"{address(served, item, 'vv')}?{token(served, S1)}"
    for wanted, part in (("bytes=0-99", whole[:100]), ("bytes=500-", whole[500:]), ("bytes=-64", whole[-64:])):
        answer = requests.get(url, headers={"Range": wanted}, timeout=10)
        assert answer.status_code == 206
        assert answer.content == part
        assert answer.headers["Content-Range"].endswith(f"/{len(whole)}")
    assert requests.get(url, headers={"Range": f"bytes={len(whole)}-"}, timeout=10).status_code == 416
    answer = requests.get(url, timeout=10)
    assert (answer.status_code, answer.content) == (200, whole)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert served.bytes_sent("vv.tif") == {url.split("?")[0].removeprefix(served.url): 100 + 64 + 2 * len(whole) - 500}


def test_gdal_reads_a_window_in_ranges(served: Served, folder: Path) -> None:
    item = items(folder, S1)[0]
    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
        rasterio.open(f"/vsicurl/{address(served, item, 'vv')}?{token(served, S1)}") as source,
    ):
        values = source.read(1, window=((0, 8), (0, 8)))
    assert np.array_equal(values, pixels(folder, item, "vv")[:8, :8])
    exchanges = [exchange for exchange in served.requests("blob") if exchange.seen.method == "GET"]
    assert exchanges
    assert {e.status for e in exchanges} == {206}
    assert all(e.seen.range.startswith("bytes=") for e in exchanges)


def test_a_file_without_a_good_token_is_refused(served: Served, folder: Path) -> None:
    item = items(folder, S2)[0]
    url = address(served, item, "SCL")

    def status(query: str) -> tuple[int, str]:
        answer = requests.get(f"{url}?{query}", timeout=10)
        return answer.status_code, answer.headers.get("x-ms-error-code", "")

    good = token(served)
    assert status(good) == (200, "")
    assert status("") == (409, "PublicAccessNotPermitted")
    assert status(token(served, S1)) == (403, "AuthenticationFailed")
    assert status(good[:-6] + "AAAAAA") == (403, "AuthenticationFailed")
    assert status(good.replace("se=2", "se=3")) == (403, "AuthenticationFailed"), "nobody may prolong a token"
    served.revoke_tokens()
    assert status(good) == (403, "AuthenticationFailed")
    assert status(token(served)) == (200, "")
    served.live_for(0.0)
    assert status(token(served)) == (403, "AuthenticationFailed")


def test_missing_files_and_strange_paths_are_not_found(served: Served, folder: Path) -> None:
    base, query = f"{served.url}/{CONTAINERS[S2]}", token(served)
    assert requests.get(f"{base}/nothing.tif?{query}", timeout=10).headers["x-ms-error-code"] == "BlobNotFound"
    for path in ("..%2F..%2Farchive.json", "%2e%2e/archive.json", "..%2farchive.json"):
        answer = requests.get(f"{base}/{path}?{query}", timeout=10)
        assert answer.status_code in (404, 409)
        assert b"format_version" not in answer.content
    assert requests.get(f"{served.sas_url}/someone/else", timeout=10).status_code == 404


def test_the_planetary_computer_package_gets_its_tokens_here(
    served: Served, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PC_SDK_SAS_URL", served.environment["PC_SDK_SAS_URL"])
    monkeypatch.setattr(planetary_computer.sas, "TOKEN_CACHE", {})
    account, container = CONTAINERS[S2].split("/")
    planetary_computer.settings.Settings.get.cache_clear()
    try:
        signed = planetary_computer.sas.get_token(account, container)
    finally:
        planetary_computer.settings.Settings.get.cache_clear()
    assert 2600 < signed.ttl() <= 2700
    url = address(served, items(folder, S2)[0], "B04")
    assert requests.get(f"{url}?{signed.token}", timeout=10).status_code == 200
    assert len(served.requests("token")) == 1


# --- faults ------------------------------------------------------------------------------------------------------


def test_answers_can_be_refused_delayed_and_spoilt(served: Served, folder: Path) -> None:
    item = items(folder, S2)[0]
    whole = (folder / item["assets"]["B04"]["href"]).read_bytes()
    url = f"{address(served, item, 'B04')}?{token(served)}"

    served.spoil(first(1, THROTTLED, kind="blob"))
    answer = requests.get(url, timeout=10)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert requests.get(url, timeout=10).content == whole

    served.spoil(first(1, BUSY))
    answer = requests.get(url, timeout=10)
    assert (answer.status_code, b"ServerBusy" in answer.content) == (503, True)
    assert "Retry-After" not in answer.headers

    served.spoil(first(1, RESET))
    with pytest.raises(requests.ConnectionError, match="reset"):
        requests.get(url, timeout=10)
    assert requests.get(url, timeout=10).content == whole

    served.spoil(first(1, truncated(100)))
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        requests.get(url, timeout=10)
    assert served.log[-1].sent == 100

    served.spoil(first(1, GARBLED))
    wrong = requests.get(url, timeout=10).content
    assert len(wrong) == len(whole)
    assert wrong != whole

    served.spoil(first(1, stalled(60)))
    with pytest.raises(requests.ReadTimeout):
        requests.get(url, timeout=0.3)
    served.spoil(first(1, stalled(60, after=50)))
    answer = requests.get(url, timeout=0.3, stream=True)
    assert answer.status_code == 200
    with pytest.raises(requests.ConnectionError):
        answer.raw.read(50)
        assert answer.content
    served.spoil(None)
    assert requests.get(url, timeout=10).content == whole


def test_faults_reach_tokens_and_searches_too(served: Served) -> None:
    served.spoil(always(Fault(status=404), kind="token"))
    assert requests.get(f"{served.sas_url}/{CONTAINERS[S2]}", timeout=10).status_code == 404
    served.spoil(first(1, Fault(status=504), kind="stac", match="/search"))
    assert requests.post(f"{served.url}/search", json={"limit": 1}, timeout=10).status_code == 504
    assert requests.post(f"{served.url}/search", json={"limit": 1}, timeout=10).status_code == 200


def test_gdal_survives_what_it_may_retry(served: Served, folder: Path) -> None:
    item = items(folder, S2)[-1]
    served.spoil(each_first(2, BUSY, kind="blob"))
    with (
        rasterio.Env(GDAL_HTTP_MAX_RETRY=4, GDAL_HTTP_RETRY_DELAY="0.05", GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
        rasterio.open(f"/vsicurl/{address(served, item, 'B08')}?{token(served)}") as source,
    ):
        values = source.read(1)
    assert np.array_equal(values, pixels(folder, item, "B08"))
    assert {503, 206} <= {e.status for e in served.requests("blob", "B08")}


def test_sprinkled_faults_are_the_same_in_every_run() -> None:
    from support.archive_server.faults import Seen

    requests_seen = [Seen(n, "blob", "GET", f"/a/b/{n}.tif", "", 0) for n in range(4000)]
    chosen = [sprinkled(0.1, [BUSY, RESET], seed=3)(seen) for seen in requests_seen]
    assert chosen == [sprinkled(0.1, [BUSY, RESET], seed=3)(seen) for seen in requests_seen]
    hit = [fault for fault in chosen if fault]
    assert 300 < len(hit) < 500
    assert {BUSY, RESET} == set(hit)


# --- coming and going --------------------------------------------------------------------------------------------


def children() -> set[int]:
    """Our processes that serve items, by the kernel's own word (ps cuts long lines, and may not be there)."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and re.search(rb"rustac\x00serve", path.read_bytes()):
                found.add(int(path.parent.name))
    return found


def ask(url: str) -> None:
    """A client that waits for long, and does not mind how that ends."""
    with suppress(requests.RequestException):
        requests.get(url, timeout=60)


def test_nothing_is_left_behind_even_after_a_failure(folder: Path) -> None:
    before, threads = children(), set(threading.enumerate())
    address_then = ""
    with pytest.raises(RuntimeError, match="on purpose"), serve(folder) as served:
        address_then = served.url
        served.spoil(always(stalled(600), kind="blob"))
        waiting = threading.Thread(target=ask, args=(f"{served.url}/{CONTAINERS[S2]}/x",))
        waiting.start()
        while not served.requests("blob"):
            pass
        assert len(children() - before) == 1
        raise RuntimeError("on purpose")
    waiting.join(20)
    assert not waiting.is_alive(), "a stalled client is let go"
    assert children() <= before
    assert {t for t in threading.enumerate() if t.name == "smalti-serve"} <= threads
    with pytest.raises(requests.ConnectionError):
        requests.get(address_then, timeout=2)


def test_two_archives_are_served_side_by_side(folder: Path) -> None:
    with serve(folder) as one, serve(folder, token_lifetime_s=60) as other:
        assert one.url != other.url
        good = token(one)
        item = items(folder, S2)[0]
        assert requests.get(f"{address(one, item, 'SCL')}?{good}", timeout=10).status_code == 200
        assert requests.get(f"{address(other, item, 'SCL')}?{good}", timeout=10).status_code == 403


def test_an_archive_of_real_scenes_is_served_too(shared: Path) -> None:
    with serve(shared / "data" / "flanders-2019") as served:
        found = list(Client.open(served.url).search(collections=[S2, S1], limit=50).items_as_dicts())
        assert len(found) == 112
        url = found[-1]["assets"][next(iter(found[-1]["assets"]))]["href"]
        collection = found[-1]["collection"]
        assert requests.head(f"{url}?{token(served, collection)}", timeout=10).status_code == 200


def test_a_folder_without_an_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=r"items\.json"), serve(tmp_path):
        pass
    (tmp_path / "items.json").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(SmaltiError, match="holds no items"), serve(tmp_path):
        pass


def test_the_command_serves_until_interrupted(folder: Path) -> None:
    command = [sys.executable, "-m", "support.archive_server.serve", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # support is no installed package
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process.stdout as lines:
        url = next(re.search(r"http://\S+", line) for line in lines if "STAC API" in line)
        assert url is not None
        assert requests.get(url[0], timeout=10).json()["type"] == "Catalog"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(url[0], timeout=2)
