"""The one way out: what every request has in common, and the one rule for trying again."""

from __future__ import annotations

import gzip
from email.utils import formatdate
from pathlib import Path
from time import time

import pytest
from support.service import Answer, Request, serve

from infer.contract import SOFTWARE, SmaltiError
from preproc.reader.transport import ATTEMPTS, HttpTransport, ServiceError, TransientError, fetch_bytes, persist


def test_documents_travel_compressed_and_name_who_asks() -> None:
    def answer(request: Request) -> Answer:
        return Answer(200, gzip.compress(b"{}" * 500), {"Content-Encoding": "gzip"})

    with serve(answer) as service, HttpTransport() as transport:
        assert fetch_bytes(transport, service.url, "a page") == b"{}" * 500
        (request,) = service.requests
    assert request.headers["Accept-Encoding"] == "gzip"
    assert request.headers["User-Agent"] == SOFTWARE.replace(" ", "/")


@pytest.mark.parametrize("packed", [True, False])
def test_an_answer_without_an_end_is_refused(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preproc.reader.transport.MAX_DOCUMENT_BYTES", 1 << 20)
    body = bytes(5 << 20)
    answer = Answer(200, gzip.compress(body), {"Content-Encoding": "gzip"}) if packed else Answer(200, body)
    with (
        serve(lambda _: answer) as service,
        HttpTransport() as transport,
        pytest.raises(SmaltiError, match=r"http://[^?]*: larger than 1 MiB"),
    ):
        fetch_bytes(transport, f"{service.url}?sig=secret", "a page")


@pytest.mark.parametrize("body", [gzip.compress(b"{}" * 500)[:-9], b"no gzip"], ids=["cut", "no gzip"])
def test_a_damaged_encoding_may_pass(body: bytes) -> None:
    with (
        serve(lambda _: Answer(200, body, {"Content-Encoding": "gzip"})) as service,
        HttpTransport() as transport,
        pytest.raises(TransientError),
    ):
        transport.send(service.url)


def test_keys_are_for_the_server_that_was_meant() -> None:
    """A redirect within it keeps them, one to another loses them; a part is asked for all the way."""
    with serve(lambda _: Answer(200, b"there")) as other:

        def answer(request: Request) -> Answer:
            place = f"{other.url}/end?sig=secret" if request.path == "/second" else "/second"
            return Answer(302, b"", {"Location": place})

        with serve(answer) as service, HttpTransport() as transport:
            transport.send(f"{service.url}/first", headers={"Authorization": "Bearer x"}, part=(0, 9))
            assert [request.headers.get("Authorization") for request in service.requests] == ["Bearer x"] * 2
        (last,) = other.requests
    assert "Authorization" not in last.headers
    assert last.headers["Range"] == "bytes=0-8"


@pytest.mark.parametrize(("status", "method"), [(303, "GET"), (302, "GET"), (307, "POST")])
def test_what_is_posted_is_posted_again_only_where_the_redirect_says_so(status: int, method: str) -> None:
    def answer(request: Request) -> Answer:
        return Answer(status, b"", {"Location": "/b"}) if request.path == "/a" else Answer(200)

    with serve(answer) as service, HttpTransport() as transport:
        transport.send(f"{service.url}/a", body=b"{}")
        first, second = service.requests
    assert (first.method, first.headers["Content-Type"], first.body) == ("POST", "application/json", b"{}")
    assert second.method == method
    assert second.body == (b"{}" if method == "POST" else b"")


@pytest.mark.parametrize(
    ("answer", "low", "high"),
    [
        (Answer(503, b"", {"Retry-After": "7"}), 7, 7),
        (40, 20, 41),
        (-40, 0, 0),
        (Answer(429, b"Rate limit is exceeded. Try again in 23 seconds."), 23, 23),
    ],
)
def test_the_wait_that_is_asked_for(answer: Answer | int, low: float, high: float) -> None:
    if isinstance(answer, int):  # a time of day, so many seconds from now
        answer = Answer(503, b"", {"Retry-After": formatdate(time() + answer, usegmt=True)})
    with serve(lambda _: answer) as service, HttpTransport() as transport, pytest.raises(TransientError) as caught:
        transport.send(service.url)
    assert caught.value.after is not None
    assert low <= caught.value.after <= high


def test_what_may_pass_is_tried_again_and_what_cannot_is_not() -> None:
    calls = []

    def attempt() -> str:
        calls.append(None)
        if len(calls) < 3:
            raise TransientError("busy")
        return "done"

    def busy() -> str:
        raise TransientError("busy")

    waits: list[int] = []

    def wait(fault: TransientError) -> float:
        waits.append(fault.attempt)
        return 0.0

    assert persist(attempt, wait=wait) == "done"
    assert waits == [1, 2]
    with pytest.raises(TransientError):
        persist(busy, wait=wait, attempts=2)
    assert waits == [1, 2, 1]
    with pytest.raises(ZeroDivisionError):
        persist(lambda: 1 // 0, wait=wait)


def test_a_document_that_is_not_there_is_told_at_once_and_a_busy_server_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preproc.reader.transport.BACKOFF_S", 0.0)
    with (
        serve(lambda request: Answer(404 if request.path == "/gone" else 503)) as service,
        HttpTransport() as transport,
    ):
        with pytest.raises(SmaltiError, match="/gone: the page cannot be read: 404"):
            fetch_bytes(transport, f"{service.url}/gone", "the page")
        assert len(service.requests) == 1
        with pytest.raises(ServiceError, match=f"503, {ATTEMPTS} times: try again later"):
            fetch_bytes(transport, f"{service.url}/busy", "the page")
        assert len(service.requests) == 1 + ATTEMPTS


def test_nothing_else_opens_connections() -> None:
    """Of the preprocessing, this module alone knows HTTP libraries."""
    source = Path(__file__).parents[4] / "preproc"
    words = (
        "import requests",
        "from requests",
        "import urllib3",
        "from urllib3",
        "urllib.request",
        "/vsicurl",
        "http.client",
    )
    users = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in words)
    }
    assert users == {"reader/transport.py"}
