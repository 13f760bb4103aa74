"""Weights: fetched from a stand-in of the hub, recorded, and refused when they are not the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.service import Answer, Request, serve

from infer.contract import SmaltiError
from infer.contract.registry import cache_path
from preproc.weights import fetch_weights, list_weights, record_path, verify_weights, weights_state

NAME = "tessera-v2-nano"
FILE = "/geotessera/TESSERA-V-2.0-2B-N/resolve/main/ckpt/student_nano.pt"
CHECKPOINT = b"PK\x03\x04" + bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


class Hub:
    """What the hub says of one file: a part of its bytes."""

    def __init__(self, content: bytes, break_off: int = 0) -> None:
        self.content = content
        self.break_off = break_off
        """The first so many answers end after half of the bytes."""

    def __call__(self, request: Request) -> Answer:
        if request.path != FILE:
            return Answer(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        first, last = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
        part = self.content[first : last + 1]
        headers = {
            "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(self.content)}",
            "Content-Length": str(len(part)),
        }
        if self.break_off:
            self.break_off -= 1
            return Answer(206, part[: len(part) // 2], {**headers, "Connection": "close"})
        return Answer(206, part, headers)


def test_a_checkpoint_is_fetched_once_and_recorded() -> None:
    with serve(Hub(CHECKPOINT)) as hub:
        path = fetch_weights(NAME, mirror=hub.url)
        assert path == cache_path(NAME)
        assert path.read_bytes() == CHECKPOINT
        assert len(hub.requests) == 1
        assert fetch_weights(NAME, mirror=hub.url) == path
        assert len(hub.requests) == 1, "what is there and whole is not fetched again"
    assert weights_state(NAME, checksums=True).complete
    assert verify_weights().splitlines()[-1].startswith(f"{NAME}: as fetched (1.02 MB)")
    assert [entry.suffix for entry in (path.parents[1] / ".partial").iterdir()] == [".lock"]


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


def test_a_download_that_breaks_off_goes_on_where_it_stopped() -> None:
    large = CHECKPOINT * 24  # three requests
    hub = Hub(large, break_off=1)
    with serve(hub) as service:
        assert fetch_weights(NAME, mirror=service.url).read_bytes() == large
        starts = [request.headers["Range"].partition("-")[0] for request in service.requests]
    assert starts == ["bytes=0", "bytes=0", "bytes=8388608", "bytes=16777216"]


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "copied.pt"
    file.write_bytes(CHECKPOINT)
    assert fetch_weights(NAME, source=file).read_bytes() == CHECKPOINT
    assert weights_state(NAME, checksums=True).complete


def test_models_without_an_address_can_only_come_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=r"tessera-v1.1-mpc: .*Google Drive.*--from FILE"):
        fetch_weights("tessera-v1.1-mpc")
    file = tmp_path / "best_model.pt"
    file.write_bytes(CHECKPOINT)
    assert fetch_weights("tessera-v1.1-mpc", source=file) == cache_path("tessera-v1.1-mpc")


def test_a_file_put_in_place_by_hand_needs_its_record() -> None:
    path = cache_path(NAME)
    path.parent.mkdir(parents=True)
    path.write_bytes(CHECKPOINT)
    assert weights_state(NAME).kind == "broken"
    assert "--from" in weights_state(NAME).reason
    fetch_weights(NAME, source=path)
    assert weights_state(NAME, checksums=True).complete
    assert path.read_bytes() == CHECKPOINT


def test_another_file_under_the_same_name_is_refused(tmp_path: Path) -> None:
    with serve(Hub(CHECKPOINT)) as hub:
        fetch_weights(NAME, mirror=hub.url)
    cache_path(NAME).unlink()
    with serve(Hub(CHECKPOINT + b"x")) as hub, pytest.raises(SmaltiError, match="another file than that of") as caught:
        fetch_weights(NAME, mirror=hub.url)
    assert f"delete {record_path(NAME)} first" in str(caught.value)
    assert not cache_path(NAME).exists()


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
    with serve(Hub(b"<html>log in</html>")) as hub, pytest.raises(SmaltiError, match="not a PyTorch checkpoint"):
        fetch_weights(NAME, mirror=hub.url)
    assert not cache_path(NAME).exists()


def test_no_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SmaltiError, match=r"http://127.0.0.1:9/geotessera.*weights fetch tessera-v2-nano --from FILE"):
        fetch_weights(NAME, mirror="http://127.0.0.1:9")


@pytest.mark.parametrize("status", [401, 404, 403])
def test_what_a_mirror_refuses(status: int) -> None:
    with (
        serve(lambda request: Answer(status, b"no")) as hub,
        pytest.raises(SmaltiError, match=r"student_nano.pt: cannot be (fetched|reached).*--from FILE") as caught,
    ):
        fetch_weights(NAME, mirror=hub.url)
    assert "\n" not in str(caught.value)


def test_unknown_models_missing_files_and_forbidden_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert f"`smalti weights fetch {NAME}`" in " ".join(text.split())
    assert str(tmp_path / "weights") in text
    file = tmp_path / "a.pt"
    file.write_bytes(CHECKPOINT)
    fetch_weights(NAME, source=file)
    assert [line for line in list_weights().splitlines() if NAME in line and "yes" in line]
