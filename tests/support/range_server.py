"""A range-capable HTTP server with added latency, counters and faults, in a process or thread of its own.

Plain asyncio, so that it takes little of the two cores that a benchmark has. What it serves: a folder, or a function
from a path to a file. Faults are drawn from a seeded generator, so that a campaign can be repeated.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

GATHER_S = 20.0
"""How long `RangeServer.gather` waits at most, all requests together."""
Resolve = Callable[[str], Path | None]


@dataclass
class Faults:
    """What goes wrong, and how often."""

    share: float = 0.0
    """Share of the requests that are spoilt."""
    kinds: tuple[str, ...] = ("429", "503", "503-after", "403", "reset", "truncate", "stall", "garble")
    seed: int = 0
    garbles: int = 2
    """Answers of one path that are garbled at most. Who asks first is up to threads, so a seed alone does not keep one
    file from coming wrong each of the `FETCHES` times that its reader tries."""
    stall_s: float = 3600.0
    """How long a stalled connection stays silent."""
    gone: frozenset[str] = frozenset()
    """Paths that answer 404 for good."""
    always: dict[str, str] = field(default_factory=dict)
    """Path -> kind: spoilt every time."""
    secret: str = ""
    """If set, requests need ?sig=TOKEN with a token that was issued by `token` and has not expired."""
    token_life_s: float = 1e9
    token_uses: float = float("inf")
    """Requests for which a token is good: an expiry that does not depend on how busy the machine is."""


@dataclass
class Tally:
    """What was asked and served."""

    requests: Counter[str] = field(default_factory=Counter)
    """Path -> requests."""
    faults: Counter[str] = field(default_factory=Counter)
    """Kind -> times."""
    ranges: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    """(path, first, last byte) -> times."""
    body_bytes: int = 0
    in_flight: int = 0
    most_in_flight: int = 0


class RangeServer:
    """Serves files; see the module."""

    def __init__(
        self, resolve: Resolve, *, latency_s: float = 0.0, faults: Faults | None = None, gather: int = 0
    ) -> None:
        self.resolve, self.latency_s, self.faults = resolve, latency_s, faults or Faults()
        self.gather = gather
        """The first answers wait until so many requests are there at once, or for GATHER_S."""
        self.tally = Tally()
        self.port = 0
        self._random = random.Random(self.faults.seed)
        self._garbled: Counter[str] = Counter()
        self._uses: Counter[str] = Counter()
        self._tokens = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        """Address without a final slash."""
        return f"http://127.0.0.1:{self.port}"

    def token(self, container: str) -> tuple[str, float]:
        """A token for a container and the moment it expires."""
        expires = round(time.time() + self.faults.token_life_s) + next(self._tokens) / 1000  # no two are the same
        digest = hashlib.sha256(f"{self.faults.secret}{container}{expires}".encode()).hexdigest()
        return f"se={expires}&sig={digest}", expires

    def _allowed(self, path: str, query: str) -> bool:
        if not self.faults.secret:
            return True
        values = {key: found[0] for key, found in parse_qs(query).items()}
        container = "/".join(path.strip("/").split("/")[:2])
        text = f"{self.faults.secret}{container}{values.get('se', '')}"
        good = hashlib.sha256(text.encode()).hexdigest() == values.get("sig")
        self._uses[text] += 1
        return good and float(values["se"]) > time.time() and self._uses[text] <= self.faults.token_uses

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the client or the server is leaving
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target = head.split(b" ", 2)[:2]
        parts = urlsplit(target.decode())
        self.tally.requests[parts.path] += 1
        self.tally.in_flight += 1
        self.tally.most_in_flight = max(self.tally.most_in_flight, self.tally.in_flight)
        try:
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            while self.tally.most_in_flight < self.gather and time.monotonic() < self._gathered_by:
                await asyncio.sleep(0.005)
            return await self._respond(writer, method.decode(), parts.path, parts.query, head.decode("latin-1"))
        finally:
            self.tally.in_flight -= 1

    async def _respond(self, writer: asyncio.StreamWriter, method: str, path: str, query: str, head: str) -> bool:
        kind = self.faults.always.get(path, "")
        if not kind and self._random.random() < self.faults.share:
            kind = self._random.choice(self.faults.kinds)
            if kind == "garble" and self._garbled[path] == self.faults.garbles:
                kind = "reset"
            self._garbled[path] += kind == "garble"
        if kind:
            self.tally.faults[kind] += 1
        if not self._allowed(path, query):
            self.tally.faults["no token"] += 1
            return self._status(writer, 403, "AuthenticationFailed")
        if kind in ("401", "403", "409", "429", "500", "503"):
            return self._status(writer, int(kind), "spoilt")
        if kind == "503-after":
            return self._status(writer, 503, "ServerBusy", {"Retry-After": "1"})
        if kind == "reset":
            writer.transport.abort()
            return False
        file = None if path in self.faults.gone else self.resolve(path)
        if file is None or not file.is_file():
            return self._status(writer, 404, "BlobNotFound")
        return await self._send(writer, method, path, file, head, kind)

    @staticmethod
    def _status(writer: asyncio.StreamWriter, code: int, text: str, more: dict[str, str] | None = None) -> bool:
        lines = [f"HTTP/1.1 {code} {text}", f"Content-Length: {len(text)}"]
        lines += [f"{key}: {value}" for key, value in (more or {}).items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n" + text).encode())
        return True

    async def _send(
        self, writer: asyncio.StreamWriter, method: str, path: str, file: Path, head: str, kind: str
    ) -> bool:
        size = file.stat().st_size
        first, last, status = 0, size - 1, "200 OK"
        asked = re.search(r"^range:\s*bytes=(\d+)-(\d*)", head, re.IGNORECASE | re.MULTILINE)
        if asked:
            first = int(asked[1])
            last = min(int(asked[2]), size - 1) if asked[2] else size - 1
            if first >= size:
                return self._status(writer, 416, "Range Not Satisfiable", {"Content-Range": f"bytes */{size}"})
            status = "206 Partial Content"
        length = last - first + 1
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}", "Accept-Ranges: bytes", "Content-Type: image/tiff"]
        if asked:
            lines.append(f"Content-Range: bytes {first}-{last}/{size}")
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if method == "HEAD":
            return True
        self.tally.ranges[path, first, last] += 1
        self.tally.body_bytes += length
        if kind in ("truncate", "stall", "garble"):
            return await self._spoil(writer, file, first, length, kind)
        await writer.drain()
        with file.open("rb") as stream:
            await asyncio.get_running_loop().sendfile(writer.transport, stream, first, length)
        return True

    async def _spoil(self, writer: asyncio.StreamWriter, file: Path, first: int, length: int, kind: str) -> bool:
        with file.open("rb") as stream:
            stream.seek(first)
            body = stream.read(length)
        if kind == "garble":
            writer.write(bytes(b ^ 0x5A for b in body))
            await writer.drain()
            return True
        writer.write(body[: length // 2])
        await writer.drain()
        if kind == "stall":
            await asyncio.sleep(self.faults.stall_s)
        return False

    async def _serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        self._gathered_by = time.monotonic() + GATHER_S
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    @contextmanager
    def running(self) -> Iterator[RangeServer]:
        """Serve from a thread while the block runs."""
        ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        thread.start()
        ready.wait()
        try:
            yield self
        finally:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()


def serve_folder(folder: Path) -> Resolve:
    """Paths are files of a folder."""

    def resolve(path: str) -> Path | None:
        file = (folder / path.lstrip("/")).resolve()
        return file if file.is_relative_to(folder.resolve()) else None

    return resolve
