"""How byte ranges travel: through proxies and redirects, and on connections that are given back whatever comes."""

from __future__ import annotations

import base64
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infer.contract import SmaltiError
from preproc.reader import transport
from preproc.reader.ranges import MissingDataError, RangeClient, UnreachableError

CONTENT = bytes(range(256)) * 8
PACKED = gzip.compress(CONTENT)


class Server(ThreadingHTTPServer):
    """Answers ranges of CONTENT; /elsewhere redirects, /around for ever, /gone and /late refuse."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[tuple[str, dict[str, str]]] = []


class Answers(BaseHTTPRequestHandler):
    """See Server."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        code, more, body = 206, {}, b""
        if self.path == "/elsewhere":
            code, more = 302, {"Location": "/there?sig=SECRET"}
        elif self.path.startswith("/around"):
            code, more = 302, {"Location": "/around?sig=SECRET"}
        elif self.path == "/gone":
            code, body = 404, b"no such blob" * 1000
        elif self.path == "/late":
            code, body = 503, b"later"
        elif self.path == "/away":
            code, more = 302, {"Location": f"http://localhost:{self.server.server_port}/there"}
        elif self.path == "/broken":
            code, more = 302, {"Location": "http://[bad/"}
        elif self.path == "/nowhere":
            code, more = 302, {"Location": "gopher://x/"}
        else:
            stored = PACKED if self.path == "/packed" else CONTENT
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            last = min(last, len(stored) - 1)
            more, body = {"Content-Range": f"bytes {first}-{last}/{len(stored)}"}, stored[first : last + 1]
            if stored is PACKED:
                more["Content-Encoding"] = "gzip"
        self.send_response(code)
        for name, value in {**more, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was not given back fails its test instead of letting it wait."""
    monkeypatch.setattr(transport, "_POOL_S", 0.5)


@contextmanager
def served() -> Iterator[tuple[str, Server]]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server
        server.shutdown()


def test_connections_come_back_whatever_the_answer_was() -> None:
    """One connection for all: a refusal that kept it would let the next request wait for ever."""
    with served() as (url, _), RangeClient(connections=1, wait=lambda _: 0.0) as client:
        for _ in range(3):
            with pytest.raises(MissingDataError, match="404"):
                client.get(f"{url}/gone", 0, 10)
            with pytest.raises(UnreachableError, match="503, 8 times"):
                client.get(f"{url}/late", 0, 10)
            assert client.get(f"{url}/a", 5, 9) == (CONTENT[5:9], len(CONTENT))


def test_redirects_are_followed_with_the_range_and_told_without_their_query() -> None:
    with served() as (url, server), RangeClient(wait=lambda _: 0.0) as client:
        assert client.get(f"{url}/elsewhere", 7, 9) == (CONTENT[7:9], len(CONTENT))
        assert [path for path, _ in server.asked] == ["/elsewhere", "/there?sig=SECRET"]
        assert server.asked[1][1]["range"] == "bytes=7-8"
        with pytest.raises(UnreachableError, match="too many redirects") as caught:
            client.get(f"{url}/around", 0, 1)
        assert "SECRET" not in str(caught.value)


def test_the_proxy_of_the_environment_is_used_and_no_proxy_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as (url, server):
        address = url.removeprefix("http://")
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@{address}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with RangeClient(wait=lambda _: 0.0) as client:
            assert client.get("http://archive.example/a.tif", 0, 4)[0] == CONTENT[:4]
            path, headers = server.asked.pop()
            assert path == "http://archive.example/a.tif"  # that is how a proxy is asked
            login = base64.b64decode(headers["proxy-authorization"].removeprefix("Basic "))
            assert login == b"me:p@ss"
            assert client.get(f"{url}/b.tif", 0, 4)[0] == CONTENT[:4]
            path, headers = server.asked.pop()
            assert path == "/b.tif"
            assert "proxy-authorization" not in headers


def test_what_is_stored_compressed_comes_as_it_is_stored() -> None:
    """Content-Range counts stored bytes; only a whole small file (a catalogue) is unpacked."""
    with served() as (url, _), RangeClient(wait=lambda _: 0.0) as client:
        assert client.get(f"{url}/packed", 5, 20)[0] == PACKED[5:20]
        assert client.get_whole(f"{url}/packed") == CONTENT


def test_a_login_in_the_address_is_used_and_not_carried_elsewhere() -> None:
    with served() as (url, server), RangeClient(wait=lambda _: 0.0) as client:
        client.get(f"{url.replace('//', '//me:p%40ss@')}/away", 0, 1)
        first, second = (headers for _, headers in server.asked)
        assert base64.b64decode(first["authorization"].removeprefix("Basic ")) == b"me:p@ss"
        assert "authorization" not in second


@pytest.mark.parametrize("path", ["/broken", "/nowhere"])
def test_a_redirect_to_what_is_no_address_does_not_keep_the_connection(path: str) -> None:
    with served() as (url, _), RangeClient(connections=1, wait=lambda _: 0.0) as client:
        with pytest.raises(UnreachableError):
            client.get(f"{url}{path}", 0, 10)
        assert client.get(f"{url}/a", 0, 4)[0] == CONTENT[:4]


def test_a_proxy_that_cannot_be_used_is_said_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("https_proxy", "socks5h://me:SECRET@127.0.0.1:1")
    with (
        RangeClient(wait=lambda _: 0.0) as client,
        pytest.raises(SmaltiError, match="socks5h proxy cannot be used") as caught,
    ):
        client.get("https://socks.example/a", 0, 4)
    assert "SECRET" not in str(caught.value)
