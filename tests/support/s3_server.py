"""The least of S3 for tests: private objects on loopback, every request's signature (version 4) reckoned anew.

Written from Amazon's description of the signature, apart from the library that signs; path-style addresses only.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

ACCESS_KEY, SECRET_KEY = "tester", "s3cret/key+"


class S3Server(ThreadingHTTPServer):
    """Objects by path (/bucket/key)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        """Uploads in parts that are not complete yet, by object: parts by number."""
        self.refuse = 0
        """Requests that will be refused (403) whatever their signature."""
        self.public = False
        self.lock = threading.Lock()
        self.answers: list[tuple[str, str, int]] = []
        """Method, path with query and status of every request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.serve_forever)
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def signature(method: str, path: str, query: list[tuple[str, str]], headers: list[tuple[str, str]], **of: str) -> str:
    """The signature that a request must have.

    Args:
        method: GET ...
        path: as it stands in the request.
        query: decoded, without the signature.
        headers: those that are signed, lower case, sorted.
        of: `payload` (its hash), `time` and `scope` (day/region/s3/aws4_request).
    """
    pairs = "&".join(f"{name}={value}" for name, value in sorted((_encoded(n), _encoded(v)) for n, v in query))
    lines = "".join(f"{name}:{' '.join(value.split())}\n" for name, value in headers)
    names = ";".join(name for name, _ in headers)
    canonical = f"{method}\n{quote(unquote(path), safe='/-_.~')}\n{pairs}\n{lines}\n{names}\n{of['payload']}"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{SECRET_KEY}".encode()
    for part in of["scope"].split("/"):
        key = _hmac(key, part)
    return _hmac(key, f"AWS4-HMAC-SHA256\n{of['time']}\n{of['scope']}\n{digest}").hex()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Server

    def _allowed(self) -> bool:
        parts = urlsplit(self.path)
        query = parse_qsl(parts.query, keep_blank_values=True)
        values = dict(query)
        if "X-Amz-Signature" in values:
            given, names = values["X-Amz-Signature"], values["X-Amz-SignedHeaders"].split(";")
            credential, time, payload = values["X-Amz-Credential"], values["X-Amz-Date"], "UNSIGNED-PAYLOAD"
            query = [(name, value) for name, value in query if name != "X-Amz-Signature"]
        else:
            found = re.findall(r"(Credential|SignedHeaders|Signature)=([^,\s]+)", self.headers.get("Authorization", ""))
            if len(found) != 3:
                return False
            credential, names, given = (dict(found)[k] for k in ("Credential", "SignedHeaders", "Signature"))
            names, time = names.split(";"), self.headers["x-amz-date"]
            payload = self.headers["x-amz-content-sha256"]
        user, _, scope = credential.partition("/")
        headers = [(name, self.headers[name]) for name in names]
        expected = signature(self.command, parts.path, query, headers, payload=payload, time=time, scope=scope)
        return user == ACCESS_KEY and hmac.compare_digest(expected, given)

    def _take(self, body: bytes = b"") -> None:
        path, server = unquote(urlsplit(self.path).path), self.server
        with server.lock:
            refused = server.refuse > 0
            server.refuse -= refused
        if refused or not (self._allowed() or (server.public and self.command in ("GET", "HEAD"))):
            return self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        if self.command == "POST" and "uploads" in query:
            server.parts[path] = {}
            return self._answer(200, b"<R><Bucket>b</Bucket><Key>k</Key><UploadId>1</UploadId></R>")
        if self.command == "POST":  # the parts that it names become the object
            numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
            parts = server.parts.pop(path)
            server.files[path] = b"".join(parts[number] for number in numbers)
            return self._answer(200, b"<R><ETag>1</ETag></R>")
        if self.command == "PUT":
            if "partNumber" in query:
                server.parts[path][int(query["partNumber"])] = body
            else:
                server.files[path] = body
            return self._answer(200, b"")
        content = server.files.get(path)
        if content is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        wanted = re.fullmatch(r"bytes=(\d*)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            return self._answer(200, content)
        start, end = int(wanted[1] or 0), min(int(wanted[2]) + 1, len(content))
        if not wanted[1]:  # the last ones
            start, end = max(0, len(content) - int(wanted[2])), len(content)
        return self._answer(206, content[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})

    def _answer(self, status: int, content: bytes, more: dict[str, str] | None = None) -> None:
        self.server.answers.append((self.command, self.path, status))
        self.send_response(status)
        stamps = {"ETag": '"1"', "Last-Modified": formatdate(0, usegmt=True)}
        for name, value in {"Content-Length": str(len(content)), **stamps, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_PUT(self) -> None:  # the names that the base class looks for
        self._take(self.rfile.read(int(self.headers["Content-Length"])))

    do_POST = do_PUT

    def do_GET(self) -> None:
        self._take()

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Nothing."""
