"""Files in object stores: which address a request goes to, signed or not, and what is said of a refusal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

import preproc.reader.buckets as buckets
from infer.contract import Run, SmaltiError
from preproc.catalogue.static import read_static
from preproc.mirror.store import open_store
from preproc.reader.buckets import BucketSigner, open_bucket, refusal_text, split_address, web_address
from preproc.reader.hrefs import absolute
from preproc.reader.ranges import RangeClient, RefusedError
from preproc.reader.signing import make_signer
from preproc.run.config import load_config

AZURE_KEY = "c2VjcmV0"


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    made = S3Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    with made.running():
        yield made


def client(archive: str) -> RangeClient:
    return RangeClient(BucketSigner(archive), wait=lambda _: 0.0)


@pytest.mark.parametrize(
    ("href", "address"),
    [
        ("s3://bucket/a/b.tif", "https://bucket.s3.amazonaws.com/a/b.tif"),
        ("gs://bucket/a/b.tif", "https://storage.googleapis.com/bucket/a/b.tif"),
        ("az://account/box/a/b.tif", "https://account.blob.core.windows.net/box/a/b.tif"),
    ],
)
def test_without_credentials_the_public_address_is_read(href: str, address: str) -> None:
    assert web_address(href) == address
    assert BucketSigner(href).sign(href) == address


@pytest.mark.parametrize("href", ["s3:///a.tif", "gs://", "az://account", "az://account/"])
def test_an_address_without_a_bucket_is_refused(href: str) -> None:
    with pytest.raises(SmaltiError, match=re.escape(href) + r": not an address in an object store: write \w+://"):
        split_address(href)


@pytest.mark.parametrize(
    ("href", "base", "expected"),
    [
        ("./B02.tif", "s3://bucket/a/item.json", "s3://bucket/a/B02.tif"),
        ("../x/B02.tif", "gs://bucket/a/b/item.json", "gs://bucket/a/x/B02.tif"),
        ("B02.tif", "az://account/box/a/item.json", "az://account/box/a/B02.tif"),
        ("https://o.org/B02.tif", "s3://bucket/item.json", "https://o.org/B02.tif"),
    ],
)
def test_relative_hrefs_stay_in_the_store(href: str, base: str, expected: str) -> None:
    assert absolute(href, base) == expected


@pytest.mark.usefixtures("aws")
def test_requests_to_the_archives_bucket_are_presigned(monkeypatch: pytest.MonkeyPatch) -> None:
    signer = BucketSigner("s3://own/catalog.json")
    parts = urlsplit(signer.sign("s3://own/a%20b/B02.tif"))
    assert (parts.netloc, parts.path) == ("s3.us-east-1.amazonaws.com", "/own/a%20b/B02.tif")
    assert parse_qs(parts.query)["X-Amz-Credential"][0].startswith(f"{ACCESS_KEY}/")
    assert SECRET_KEY not in parts.query
    for other in ("s3://other/B02.tif", "gs://own/B02.tif", "https://own/B02.tif", "/own/B02.tif"):
        assert signer.sign(other) == other
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert signer.sign("s3://own/B02.tif") == "https://own.s3.amazonaws.com/B02.tif"


def test_azure_is_signed_for_the_account_that_the_address_names(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)
    href, address = "az://account/box/a/B02.tif", "https://account.blob.core.windows.net/box/a/B02.tif"
    signed, _, query = BucketSigner(href).sign(href).partition("?")
    assert signed == address
    assert parse_qs(query)["sp"] == ["r"]
    with pytest.raises(SmaltiError, match=r"special characters cannot be signed: .*AZURE_STORAGE_SAS_TOKEN"):
        BucketSigner(href).sign("az://account/box/a%20b/B02.tif")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "another")
    assert BucketSigner(href).sign(href) == address
    with pytest.raises(SmaltiError, match="AZURE_STORAGE_ACCOUNT_NAME names another account, another"):
        open_bucket("az://account/box/a")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "?sv=1&sig=x%3D")
    assert BucketSigner(href).sign(href) == f"{address}?sv=1&sig=x%3D"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a key")
def test_google_is_signed_with_a_service_accounts_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    made = subprocess.run(["openssl", "genpkey", "-algorithm", "RSA"], capture_output=True, text=True, check=True)
    account = {"type": "service_account", "client_email": "me@project.iam", "private_key_id": "1"}
    (tmp_path / "key.json").write_text(json.dumps({**account, "private_key": made.stdout}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    address, _, query = BucketSigner("gs://box/a.json").sign("gs://box/a/B02.tif").partition("?")
    assert address == "https://storage.googleapis.com/box/a/B02.tif"
    assert parse_qs(query)["X-Goog-Credential"][0].startswith("me@project.iam/")
    (tmp_path / "key.json").write_text("{}")
    with pytest.raises(SmaltiError, match=r"gs://box(/a\.json)?: "):
        BucketSigner("gs://box/a.json").sign("gs://box/a.json")


@pytest.mark.usefixtures("aws")
def test_a_private_file_is_read_and_a_refusal_is_tried_again_with_a_new_signature(server: S3Server) -> None:
    server.files["/own/my files/a+é.json"] = bytes(range(256)) * 5000
    href = "s3://own/my%20files/a+é.json"
    with client(href) as reader:
        assert reader.get(href, 3, 6) == (b"\3\4\5", 256 * 5000)
        server.refuse = 1
        assert reader.get_whole(href) == server.files["/own/my files/a+é.json"]
    assert [status for *_, status in server.answers] == [206, 403, 206, 206]
    assert all("X-Amz-Signature=" in path for _, path, _ in server.answers)


def test_a_public_bucket_of_another_store_is_read_without_credentials(server: S3Server) -> None:
    server.files["/own/a.json"] = b"[]"
    server.public = True
    with client("s3://own/a.json") as reader:
        assert reader.get_whole("s3://own/a.json") == b"[]"
    assert server.answers == [("GET", "/own/a.json", 206)]


@pytest.mark.usefixtures("server")
def test_a_refusal_without_credentials_says_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    href = "s3://own/a.json"
    with client(href) as reader, pytest.raises(RefusedError) as caught:
        reader.get_whole(href)
    assert str(caught.value).startswith(f"{href}: the server refuses it (403): if the bucket is private")
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    monkeypatch.setattr(buckets, "_has_obstore", lambda: False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    assert "pip install 'smalti[mirror]'" in refusal_text(href, 403)


@pytest.mark.usefixtures("aws", "server")
def test_wrong_credentials_are_said_without_a_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    href = "s3://own/a.json"
    with (
        client(href) as reader,
        pytest.raises(RefusedError, match="in the environment must open it") as caught,
    ):
        reader.get_whole(href)
    assert "X-Amz" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with client(href) as reader, pytest.raises(SmaltiError, match="try again later") as caught:
        reader.get_whole(href)
    assert "X-Amz" not in str(caught.value)


def test_hints_are_given_where_a_store_hides_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "AWS_REGION" in refusal_text("s3://own/a.tif", 301)
    assert "AZURE_STORAGE_ACCOUNT_KEY" in refusal_text("az://account/box/a.tif", 404)
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sig=x")
    assert refusal_text("az://account/box/a.tif", 404) == ""
    assert refusal_text("s3://own/a.tif", 404) == ""
    assert refusal_text("https://own/a.tif", 403) == ""


@pytest.mark.usefixtures("aws")
def test_a_catalogue_in_a_private_bucket_is_walked(server: S3Server) -> None:
    link = {"rel": "item", "href": "./x/item.json", "type": "application/geo+json"}
    catalogue = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "d", "links": [link]}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "i", "geometry": None, "links": [], "assets": {}}
    server.files["/own/a/catalog.json"] = json.dumps(catalogue).encode()
    server.files["/own/a/x/item.json"] = json.dumps(
        {**item, "properties": {"datetime": "2021-07-01T00:00:00Z"}, "assets": {"B02": {"href": "./B02.tif"}}}
    ).encode()
    [(found, base)] = read_static("s3://own/a/catalog.json")
    assert base == "s3://own/a/x/item.json"
    assert absolute(found["assets"]["B02"]["href"], base) == "s3://own/a/x/B02.tif"
    del server.files["/own/a/x/item.json"]
    with pytest.raises(
        SmaltiError, match=r"s3://own/a/catalog\.json: .*s3://own/a/x/item\.json: the server answers 404"
    ):
        read_static("s3://own/a/catalog.json")


def _run(tmp_path: Path, href: str) -> Run:
    text = '[region]\nbbox = [4.0, 52.0, 4.1, 52.1]\nstart = "2021-07-01"\nend = "2021-07-31"\n'
    (tmp_path / "run.toml").write_text(f'{text}[archive]\nsource = "static"\nhref = "{href}"\n')
    return Run(tmp_path)


@pytest.mark.parametrize("href", ["ftp://h/items.json", "az://box/", "file:///items.json"])
def test_an_href_that_cannot_be_read_is_refused_in_the_settings(tmp_path: Path, href: str) -> None:
    with pytest.raises(SmaltiError, match=r"href.*(must be a path, or begin with|write az://account/container/path)"):
        load_config(_run(tmp_path, href))


@pytest.mark.usefixtures("aws")
def test_a_runs_signer_signs_its_bucket_and_leaves_the_rest_to_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, "s3://own/catalog.json")
    signer = make_signer(run, load_config(run))
    for sign in (signer.sign, signer.renew):
        assert "X-Amz-Signature" in sign("s3://own/B02.tif")
        assert sign("s3://other/B02.tif") == "s3://other/B02.tif"
    run.logs.mkdir()
    monkeypatch.setattr("preproc.reader.signing.persist", lambda *_, **__: pytest.fail("asks for a token"))
    with pytest.raises(pytest.fail.Exception, match="asks for a token"):
        signer.sign("https://account.blob.core.windows.net/box/B02.tif")


@pytest.mark.usefixtures("aws")
def test_a_mirrors_store_and_its_reader_mean_the_same_file(server: S3Server, tmp_path: Path) -> None:
    store = open_store("s3://own/my%20files/mirror")
    store.put_bytes("a/catalog.json", b"{}")
    assert list(server.files) == ["/own/my files/mirror/a/catalog.json"]
    with client(store.address) as reader:
        assert reader.get_whole(f"{store.address}/a/catalog.json") == b"{}"
