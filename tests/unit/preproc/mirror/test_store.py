"""Where mirrors and exports are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

from preproc.mirror.store import open_store


def test_a_large_file_goes_to_a_bucket_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    server, content = S3Server(), np.random.default_rng(0).bytes(12_000_000)
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_ALLOW_HTTP": "true"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": server.url, "AWS_REGION": "test"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "large").write_bytes(content)
    with server.running():
        store = open_store("s3://bucket/folder")
        store.put("large", tmp_path / "large")
        store.put("large", tmp_path / "large")  # again, over it
        assert store.size("large") == len(content)
        assert store.read("large") == content
    puts = [path for method, path, _ in server.answers if method == "PUT"]
    assert len(puts) > 4, "each time in several requests, as a bucket takes no more than 5 GB in one"
    assert all("partNumber=" in path for path in puts)
    assert not server.parts
