"""A mirror in a private bucket is an archive: the same arrays, and no signature is stored or shown.

Against a small server that reckons signatures itself, and against real ones where the environment names them:
SMALTI_S3_TEST (URL of an S3 endpoint, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY if it checks them) and
SMALTI_AZURE_TEST (URL of Azurite's blob service).
"""

from __future__ import annotations

import base64
import hmac
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
import requests
from support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from support.tiny import EPSG, NORTH, SIZE, WEST, TinyArchive

from infer.contract import Run, SmaltiError, planned_tiles, read_tile
from preproc.mirror.mirror import mirror
from preproc.plan.stage import PlanStage
from preproc.reader.buckets import open_bucket
from preproc.run.config import Config, load_config
from preproc.run.stage import run_stage
from preproc.tile.stage import FetchStage

obstore = pytest.importorskip("obstore")
EMULATED = "devstoreaccount1"
EMULATED_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's account and its key, as its documentation prints them."""


@dataclass(frozen=True)
class _Place:
    bucket: str
    """Address."""
    plain: str
    """HTTP address of the bucket."""
    secrets: tuple[str, ...]
    """Variables without which nothing can be read."""
    path: str = "my%20runs/mirror"


@pytest.fixture(params=["small", "s3", "azure"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Place]:
    name = f"smalti-{uuid.uuid4().hex[:8]}"
    given = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    for key in list(os.environ):
        if key.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(key)
    if request.param == "azure":
        yield _azure(monkeypatch, name)
        return
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    if request.param == "small":
        server = S3Server()
        with server.running():
            yield _s3(monkeypatch, name, server.url, ACCESS_KEY, SECRET_KEY)
        return
    url = os.environ.get("SMALTI_S3_TEST")
    if not url:
        pytest.skip("SMALTI_S3_TEST names no server")
    keys = (given.get("AWS_ACCESS_KEY_ID", "tester"), given.get("AWS_SECRET_ACCESS_KEY", "secret"))
    made = _s3(monkeypatch, name, url.rstrip("/"), *keys)
    address = obstore.sign(open_bucket(made.bucket), "PUT", "", timedelta(minutes=5))
    assert requests.put(address, timeout=30).status_code == 200
    yield made


def _s3(monkeypatch: pytest.MonkeyPatch, name: str, url: str, user: str, secret: str) -> _Place:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    return _Place(f"s3://{name}", f"{url}/{name}", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))


def _azure(monkeypatch: pytest.MonkeyPatch, name: str) -> _Place:
    url = os.environ.get("SMALTI_AZURE_TEST", "").rstrip("/")
    if not url:
        pytest.skip("SMALTI_AZURE_TEST names no server")
    account, key = EMULATED, EMULATED_KEY
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{url}/{account}")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", key)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2020-10-02"}
    lines = "".join(f"{header}:{value}\n" for header, value in sorted(headers.items()))
    empty = "\n" * 12
    text = f"PUT{empty}{lines}/{account}/{account}/{name}\nrestype:container"
    signed = base64.b64encode(hmac.digest(base64.b64decode(key), text.encode(), "sha256")).decode()
    headers["Authorization"] = f"SharedKey {account}:{signed}"
    address = f"{url}/{account}/{name}"
    assert requests.put(f"{address}?restype=container", headers=headers, timeout=30).status_code == 201
    return _Place(f"az://{account}/{name}", address, ("AZURE_STORAGE_ACCOUNT_KEY",), "runs/mirror")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> TinyArchive:
    rng = np.random.default_rng(5)
    made = TinyArchive(tmp_path_factory.mktemp("bucket") / "archive")
    extent = 4 * SIZE * 10
    for day in ("2021-07-01", "2021-07-21"):
        bands = {"B04": rng.integers(1, 9000, (extent // 10, extent // 10), dtype=np.uint16)}
        made.s2(f"s2-{day}", day, bands=bands, west=WEST - 320, north=NORTH + 320, extent=extent, epsg=EPSG)
    power = rng.gamma(4, 0.03, (extent // 10, extent // 10)).astype(np.float32)
    made.s1("s1,July", "2021-07-03", vv=power, vh=power / 3, west=WEST - 320, north=NORTH + 320, extent=extent)
    return made


def _arrays(run: Run, config: Config) -> list[np.ndarray]:
    run_stage(FetchStage(), run, config)
    [planned] = planned_tiles(run)
    tile = read_tile(run.tiles / planned.name, need_manifest=True)
    return [tile.bands_thwb, tile.masks_thw, tile.doys_t, tile.sar_asc_thwp, tile.sar_asc_doys_t]


def _with_archive(run: Run, root: Path, lines: list[str]) -> tuple[Run, Config]:
    """The same run, with the [archive] that a mirror has advised."""
    root.mkdir()
    (root / "region.geojson").write_bytes((run.root / "region.geojson").read_bytes())
    sections = run.config.read_text().split("\n[")
    kept = [part for part in sections if not part.startswith("archive]")]
    (root / "run.toml").write_text("\n[".join(kept) + "\n" + "\n".join(lines) + "\n")
    other = Run(root)
    return other, load_config(other)


def test_a_mirror_in_a_private_bucket_is_an_archive(
    archive: TinyArchive, place: _Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = archive.run(tmp_path / "run")
    target = f"{place.bucket}/{place.path}"
    advice = mirror(run, config, target).splitlines()
    expected = _arrays(run, config)
    assert f'href = "{target}/catalog.json"' in advice
    assert requests.get(f"{place.plain}/{place.path}/catalog.json", timeout=30).status_code in (403, 404)

    other, other_config = _with_archive(run, tmp_path / "other", advice[advice.index("[archive]") :])
    run_stage(PlanStage(), other, other_config)
    for one, same in zip(expected, _arrays(other, other_config), strict=True):
        assert one.size
        np.testing.assert_array_equal(one, same)
    saved = "".join(path.read_text() for path in other.root.rglob("*.json"))
    assert f"{target}/sentinel-2-l2a/s2-2021-07-01/B04.tif" in saved
    for mark in ("X-Amz", "sig=", "Signature", place.plain):
        assert mark not in saved

    mirror(other, other_config, str(tmp_path / "copy"))
    mirror(run, config, str(tmp_path / "direct"))
    files = sorted(path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*.tif"))
    assert len(files) == 2 * 11 + 2
    for name in files:
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()

    for secret in place.secrets:
        monkeypatch.delenv(secret)
    with pytest.raises(SmaltiError, match=rf"{target}/catalog\.json.*{place.secrets[0]}"):
        run_stage(PlanStage(), *_with_archive(run, tmp_path / "third", advice[advice.index("[archive]") :]))
