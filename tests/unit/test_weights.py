"""Weights: fetched from a stand-in of the hub, recorded, and refused when they are not the same."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.service import Answer, Request, serve

from infer.contract import EXIT_TRY_AGAIN, SmaltiError
from infer.contract.registry import REGISTRY, cache_path
from preproc.weights import fetch_weights, list_weights, record_path, verify_weights, weights_state

NAME = "tessera-v2-nano"
FILE = "/geotessera/TESSERA-V-2.0-2B-N/resolve/main/ckpt/student_nano.pt"
CHECKPOINT = b"PK\x03\x04" + bytes(range(256)) * 4000
UNPINNED = "tessera-v1.1-aws"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    pin(monkeypatch, CHECKPOINT)


def pin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let the registry know the stand-in's file."""
    pinned = replace(REGISTRY[NAME], sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    monkeypatch.setitem(REGISTRY, NAME, pinned)


class Hub:
    """What the hub says of every file: its bytes, or a part of them."""

    def __init__(self, content: bytes, break_off: int = 0, etag: str = "") -> None:
        self.content = content
        self.break_off = break_off
        """The first so many answers end after half of the bytes."""
        self.etag = etag or hashlib.sha256(content).hexdigest()

    def __call__(self, request: Request) -> Answer:
        first = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        part = self.content[first:]
        headers = {"ETag": f'"{self.etag}"', "X-Repo-Commit": "c" * 40, "Content-Length": str(len(part))}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(self.content) - 1}/{len(self.content)}"
        if self.break_off and request.method == "GET":
            self.break_off -= 1
            return Answer(206 if first else 200, part[: len(part) // 2], {**headers, "Connection": "close"})
        return Answer(206 if first else 200, part, headers)


def test_a_checkpoint_is_fetched_once_and_recorded() -> None:
    with serve(Hub(CHECKPOINT)) as hub:
        path = fetch_weights(NAME, mirror=hub.url)
        assert path == cache_path(NAME)
        assert path.read_bytes() == CHECKPOINT
        assert {request.path for request in hub.requests} == {FILE}
        assert [request.method for request in hub.requests].count("GET") == 1
        seen = len(hub.requests)
        assert fetch_weights(NAME, mirror=hub.url) == path
        assert len(hub.requests) == seen, "what is there and whole is not fetched again"
    assert weights_state(NAME, checksums=True).complete
    assert verify_weights().splitlines()[-1].startswith(f"{NAME}: as fetched (1.02 MB)")
    assert [entry.suffix for entry in (path.parents[1] / ".partial").iterdir()] == [".lock"]


def test_a_file_on_github_comes_at_its_pinned_commit_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = replace(REGISTRY["presto"], sha256=hashlib.sha256(CHECKPOINT).hexdigest())
    monkeypatch.setitem(REGISTRY, "presto", pinned)
    assert pinned.url is not None
    assert (pinned.page, pinned.tessera) == ("https://github.com/nasaharvest/presto", False)
    assert str(REGISTRY[NAME].page).endswith("huggingface.co/geotessera/TESSERA-V-2.0-2B-N")
    assert REGISTRY[NAME].tessera
    assert pinned.url.endswith(f"/nasaharvest/presto/{pinned.revision}/data/default_model.pt")
    with serve(lambda request: Answer(200, CHECKPOINT + b"x")) as other:
        with pytest.raises(SmaltiError, match=r"default_model.pt: SHA-256 .*the registry says.*presto on GitHub"):
            fetch_weights("presto", mirror=other.url)
        assert not cache_path("presto").exists()
    with serve(lambda request: Answer(404, b"")) as other, pytest.raises(SmaltiError, match=r"404.*--from FILE"):
        fetch_weights("presto", mirror=other.url)
    with serve(lambda request: Answer(200, CHECKPOINT)) as github:
        assert fetch_weights("presto", mirror=github.url).read_bytes() == CHECKPOINT
        assert [request.path for request in github.requests] == [f"/nasaharvest/presto/{pinned.revision}/{pinned.file}"]
    assert weights_state("presto", checksums=True).complete
    assert pinned.revision in record_path("presto").read_text()


def test_the_endpoint_of_the_environment_is_a_mirror_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Hub(CHECKPOINT)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert fetch_weights(NAME).read_bytes() == CHECKPOINT
        assert hub.requests[0].headers["Authorization"] == "Bearer hf_secret"


def test_ones_token_is_not_shown_to_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve(Hub(CHECKPOINT)) as hub:
        fetch_weights(NAME, mirror=hub.url)
        assert not [request for request in hub.requests if "hf_secret" in str(request.headers)]


def test_a_download_that_breaks_off_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    large = CHECKPOINT * 24
    pin(monkeypatch, large)
    with serve(Hub(large, break_off=2)) as service:
        assert fetch_weights(NAME, mirror=service.url).read_bytes() == large
        starts = [request.headers.get("Range", "none") for request in service.requests if request.method == "GET"]
    assert starts == ["none", "bytes=10485760-", "bytes=10485760-"]  # the library writes 10 MiB at a time


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "copied.pt"
    file.write_bytes(CHECKPOINT)
    assert fetch_weights(NAME, source=file).read_bytes() == CHECKPOINT
    assert weights_state(NAME, checksums=True).complete


def test_models_without_an_address_can_only_come_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=r"tessera-v1.0: not on the hub.*--from FILE"):
        fetch_weights("tessera-v1.0")
    file = tmp_path / "best_model.pt"
    file.write_bytes(CHECKPOINT)
    assert fetch_weights("tessera-v1.0", source=file) == cache_path("tessera-v1.0")


def test_a_file_put_in_place_by_hand_needs_its_record() -> None:
    path = cache_path(NAME)
    path.parent.mkdir(parents=True)
    path.write_bytes(CHECKPOINT)
    assert weights_state(NAME).kind == "broken"
    assert "--from" in weights_state(NAME).reason
    fetch_weights(NAME, source=path)
    assert weights_state(NAME, checksums=True).complete
    assert path.read_bytes() == CHECKPOINT


def test_another_file_than_the_first_is_refused() -> None:
    """Where the registry pins none."""
    with serve(Hub(CHECKPOINT)) as hub:
        fetch_weights(UNPINNED, mirror=hub.url)
    cache_path(UNPINNED).unlink()
    with serve(Hub(CHECKPOINT + b"x")) as hub, pytest.raises(SmaltiError, match="another file than that of") as caught:
        fetch_weights(UNPINNED, mirror=hub.url)
    assert f"delete {record_path(UNPINNED)} first" in str(caught.value)
    assert not cache_path(UNPINNED).exists()


def test_another_file_than_the_published_one_is_not_even_downloaded() -> None:
    """The hub states the hash of large files before it sends them."""
    with (
        serve(Hub(CHECKPOINT + b"x")) as hub,
        pytest.raises(SmaltiError, match=r"student_nano.pt: SHA-256 .*the registry says.*name it as \[model\]"),
    ):
        fetch_weights(NAME, mirror=hub.url)
    assert [request.method for request in hub.requests] == ["HEAD"]


def test_bytes_that_are_not_those_which_the_hub_stated_are_refused(tmp_path: Path) -> None:
    """A cache on the way that serves another file; and one that was brought by hand."""
    with (
        serve(Hub(CHECKPOINT[:-1] + b"x", etag=hashlib.sha256(CHECKPOINT).hexdigest())) as hub,
        pytest.raises(
            SmaltiError, match=r"the registry says .*: another file than that of .*; fetch it again, or look"
        ),
    ):
        fetch_weights(NAME, mirror=hub.url)
    by_hand = tmp_path / "student_nano.pt"
    by_hand.write_bytes(CHECKPOINT + b"x")
    with pytest.raises(SmaltiError, match=r"name the right one, or use it as what it is: \[model\] checkpoint = '/"):
        fetch_weights(NAME, source=by_hand)
    assert weights_state(NAME).kind == "missing"
    with serve(Hub(CHECKPOINT)) as hub:
        assert fetch_weights(NAME, mirror=hub.url).read_bytes() == CHECKPOINT


def test_more_than_the_disk_holds_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with serve(Hub(CHECKPOINT)) as hub, pytest.raises(SmaltiError, match=r"takes 1.02 MB, 1 MB are free: make room"):
        fetch_weights(NAME, mirror=hub.url)
    assert [request.method for request in hub.requests] == ["HEAD"]


@pytest.mark.parametrize("damage", ["byte", "truncated"])
def test_a_changed_file_is_found_and_healed(damage: str) -> None:
    with serve(Hub(CHECKPOINT)) as hub:
        path = fetch_weights(NAME, mirror=hub.url)
        changed = bytearray(CHECKPOINT)
        changed[5000] ^= 1
        path.write_bytes(bytes(changed) if damage == "byte" else CHECKPOINT[:-1])
        with pytest.raises(SmaltiError, match=r"student_nano.pt: (its contents do not match|\d+ bytes)"):
            verify_weights()
        fetch_weights(NAME, mirror=hub.url)
        assert path.read_bytes() == CHECKPOINT


def test_an_error_page_is_not_a_checkpoint() -> None:
    page = Hub(b"<html>log in</html>", etag="page")
    with serve(page) as hub, pytest.raises(SmaltiError, match="not a PyTorch checkpoint"):
        fetch_weights(NAME, mirror=hub.url)
    assert not cache_path(NAME).exists()


def test_offline_by_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE, which the library reads once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with serve(Hub(CHECKPOINT)) as hub, pytest.raises(SmaltiError, match=r"HF_HUB_OFFLINE.*--from FILE") as caught:
        fetch_weights(NAME, mirror=hub.url)
    assert not hub.requests
    assert caught.value.exit_code == EXIT_TRY_AGAIN


def test_no_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SmaltiError, match=r"http://127.0.0.1:9/geotessera.*weights fetch tessera-v2-nano --from FILE"):
        fetch_weights(NAME, mirror="http://127.0.0.1:9")


@pytest.mark.parametrize(("status", "said"), [(401, "401"), (404, "404"), (403, "403"), (200, "X-Repo-Commit")])
def test_what_a_mirror_refuses(status: int, said: str) -> None:
    with (
        serve(lambda request: Answer(status, b"no")) as hub,
        pytest.raises(SmaltiError, match=rf"student_nano.pt: cannot be fetched \(.*({said}).*--from FILE") as caught,
    ):
        fetch_weights(NAME, mirror=hub.url)
    assert "\n" not in str(caught.value)


def test_unknown_models_missing_files_and_forbidden_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SmaltiError, match=r"of several models: .*fetch demo` and `smalti weights fetch monthly`"):
        fetch_weights("demo+monthly")
    with pytest.raises(SmaltiError, match="'small' is not known: choose one of demo, "):
        fetch_weights("small")
    with pytest.raises(SmaltiError, match=r"gone.pt: cannot be read: No such file"):
        fetch_weights(NAME, source=tmp_path / "gone.pt")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path / "file" / "weights"))
    with pytest.raises(SmaltiError, match="name another folder in SMALTI_WEIGHTS"):
        fetch_weights(NAME, source=tmp_path / "gone.pt")


def test_the_list_tells_where_each_stands(tmp_path: Path) -> None:
    text = list_weights()
    assert "demo" in text
    assert "CC0-1.0" in text
    assert "  TESSERA v2, arXiv:2607.03949; Feng et al., TESSERA, arXiv:2506.20380: tessera-v2-nano, " in text
    assert f"`smalti weights fetch {NAME}`" in " ".join(text.split())
    assert str(tmp_path / "weights") in text
    file = tmp_path / "a.pt"
    file.write_bytes(CHECKPOINT)
    fetch_weights(NAME, source=file)
    assert [line for line in list_weights().splitlines() if NAME in line and "yes" in line]
