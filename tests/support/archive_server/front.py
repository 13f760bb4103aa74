"""The stand-in's front: one HTTP server with files, tokens and the catalogue's API behind it, a log and faults.

Files are read in ranges and need a token, as Azure's do; the API's requests are passed on to a real STAC server.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import requests
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from support.archive_server.faults import Fault, Injector, Kind, Seen
from support.archive_server.tokens import Issuer

Containers: TypeAlias = Mapping[str, Path]
"""account/container -> folder with its blobs."""


@dataclass
class Exchange:
    """One request and what became of it."""

    seen: Seen
    started: float
    """time.monotonic() at its arrival."""
    status: int | None = None
    """Status that was sent; None while there is none, and for a reset connection."""
    sent: int = 0
    """Bytes of the body that were sent."""
    ended: float | None = None
    """time.monotonic() when it was over."""


class Front:
    """The ASGI application."""

    def __init__(self, containers: Containers, issuer: Issuer, faults: Injector | None) -> None:
        self.containers = dict(containers)
        self.issuer = issuer
        self.faults = faults
        self.api: str | None = None
        """Address of the STAC server behind, without a slash at the end."""
        self.base = ""
        """Own address, which the STAC server puts into its links."""
        self.log: list[Exchange] = []
        self.transports: dict[tuple[str, int], asyncio.Transport] = {}
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._attempts: Counter[tuple[str, str, str]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        exchange = self._note(request)
        fault = (self.faults(exchange.seen) if self.faults else None) or Fault()
        tap = _Tap(self, scope, send, exchange, fault)
        try:
            if fault.stall_s and not fault.stall_at:
                await self.pause(fault.stall_s)
            if fault.reset:
                tap.reset()
                return
            response = self._spoilt(fault) or await self._answer(request, exchange.seen.kind)
            await response(scope, receive, tap.send)
        finally:
            exchange.ended = time.monotonic()

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond the server's end."""
        if self._stopping is None:
            self._stopping, self._loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    def stop(self) -> None:
        """End all pauses; called from another thread when the server stops."""
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)

    def _note(self, request: Request) -> Exchange:
        path, wanted = request.url.path, request.headers.get("range", "")
        key = (request.method, path, wanted)
        seen = Seen(len(self.log), self._kind(path), request.method, path, wanted, self._attempts[key])
        self._attempts[key] += 1
        exchange = Exchange(seen, time.monotonic())
        self.log.append(exchange)
        return exchange

    def _kind(self, path: str) -> Kind:
        if path.startswith("/sas/"):
            return "token"
        return "blob" if any(path.startswith(f"/{container}/") for container in self.containers) else "stac"

    @staticmethod
    def _spoilt(fault: Fault) -> Response | None:
        if fault.status is None:
            return None
        headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
        return Response(fault.body, status_code=fault.status, headers=headers)

    async def _answer(self, request: Request, kind: Kind) -> Response:
        if kind == "token":
            container = request.url.path.removeprefix("/sas/").strip("/")
            if container not in self.containers:
                return JSONResponse({"detail": "no such container"}, status_code=404)
            return JSONResponse(self.issuer.issue(container))
        if kind == "blob":
            return self._blob(request)
        body = await request.body()
        return await run_in_threadpool(self._forward, request, body)

    def _blob(self, request: Request) -> Response:
        path = request.url.path
        container = next(name for name in self.containers if path.startswith(f"/{name}/"))
        refused = self.issuer.refusal(container, dict(request.query_params))
        if refused:
            return _azure_error(*refused)
        if request.method not in ("GET", "HEAD"):
            return _azure_error(405, "UnsupportedHttpVerb")
        root = self.containers[container].resolve()
        file = (root / path.removeprefix(f"/{container}/")).resolve()
        if not (file.is_relative_to(root) and file.is_file()):
            return _azure_error(404, "BlobNotFound")
        return FileResponse(file, media_type="image/tiff", headers={"x-ms-blob-type": "BlockBlob"})

    def _forward(self, request: Request, body: bytes) -> Response:
        """Pass a request on to the STAC server; it knows our address and links to it."""
        url = f"{self.api}{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")
        kept = {name: value for name, value in request.headers.items() if name in ("content-type", "accept")}
        try:
            answer = requests.request(request.method, url, data=body or None, headers=kept, timeout=60)
        except requests.RequestException as error:
            return JSONResponse({"detail": f"the STAC server does not answer: {error}"}, status_code=502)
        content_type = answer.headers.get("content-type", "application/json")
        return Response(answer.content, status_code=answer.status_code, media_type=content_type)


def _azure_error(status: int, code: str) -> Response:
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code></Error>'
    return Response(body, status_code=status, media_type="application/xml", headers={"x-ms-error-code": code})


class _Tap:
    """Between the application and the connection: counts what is sent, and spoils it."""

    def __init__(self, front: Front, scope: Scope, send: Send, exchange: Exchange, fault: Fault) -> None:
        self._front, self._scope, self._send = front, scope, send
        self._exchange, self._fault = exchange, fault
        self._over = False
        self._stalled = False

    async def send(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._exchange.status = message["status"]
        if message["type"] == "http.response.body":
            message = await self._spoil(message)
            if self._over:
                return
        await self._send(message)

    async def _spoil(self, message: Message) -> Message:
        body, fault = bytes(message.get("body", b"")), self._fault
        before = self._exchange.sent
        if fault.garble:
            body = bytes(byte ^ 0xA5 for byte in body)
        if fault.stall_s and fault.stall_at and not self._stalled and before + len(body) > fault.stall_at:
            head = body[: fault.stall_at - before]
            await self._pass(head)
            body = body[len(head) :]
            self._stalled = True
            await self._front.pause(fault.stall_s)
        if fault.keep is not None and before + len(body) > fault.keep:
            await self._pass(body[: fault.keep - before])
            self._close()
            return message
        self._exchange.sent += len(body)
        return {**message, "body": body}

    async def _pass(self, part: bytes) -> None:
        if part:
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
            self._exchange.sent += len(part)

    def _transport(self) -> asyncio.Transport | None:
        return self._front.transports.get(tuple(self._scope["client"]))

    def _close(self) -> None:
        """End the connection in order, but too early."""
        self._over = True
        transport = self._transport()
        if transport is not None:
            transport.close()

    def reset(self) -> None:
        """Make the peer see `connection reset`: lingering for no time at all sends RST instead of FIN."""
        self._over = True
        transport = self._transport()
        if transport is None:
            return
        peer: socket.socket | Any = transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def protocol_of(front: Front) -> type[H11Protocol]:
    """uvicorn's protocol, with its connections kept where faults can reach them."""

    class _Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if self.client is not None:
                front.transports[self.client] = transport

        def connection_lost(self, exc: Exception | None) -> None:
            if self.client is not None:
                front.transports.pop(self.client, None)
            super().connection_lost(exc)

    return _Protocol
