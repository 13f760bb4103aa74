"""The one way out: requests over the network, and the one rule for trying them again.

Catalogues, tokens, bytes of files, weights and the doctor's checks all go through `HttpTransport` (proxies, CA bundles,
redirects, stalls, user agent) and `persist` (which tries again what may succeed later, with exponential waits, jitter
and `Retry-After`). What an answer means is its caller's business.
"""

from __future__ import annotations

import functools
import os
import random
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

import certifi
import urllib3
from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import HTTPError

from infer.contract import EXIT_TRY_AGAIN, SOFTWARE, SmaltiError
from infer.contract.regular import MAX_DOCUMENT_BYTES

ATTEMPTS = 8
"""Tries of one request; with the waits below half a minute to a minute, and what the server asks for."""
BACKOFF_S = 0.5
"""Longest wait before the second try; doubled for each further one. The waits are drawn between 0 and that."""
LONGEST_WAIT_S = 60.0
LONGEST_ASKED_S = 120.0
"""A server that asks for a longer wait than this gets this one."""
CONNECT_S = 20.0
STALL_S = 30.0
"""A connection that gives fewer than SLOWEST bytes in this time has stalled: progress counts, not duration."""
THINKING_S = 120.0
"""The same for services that search before they answer."""
SLOWEST = 4096
_PIECE = 1 << 18
_REDIRECTS = 5
_POOL_S = 600.0
"""Seconds to wait for a free connection: each thread has its own, so this only ends what would wait for ever."""
_HEADERS = {"User-Agent": SOFTWARE.replace(" ", "/")}
_NONE: Mapping[str, str] = MappingProxyType({})

T = TypeVar("T")


class ServiceError(SmaltiError):
    """A service did not answer, or not as it should; later it may."""

    exit_code = EXIT_TRY_AGAIN


class TransientError(Exception):
    """Worth another try.

    Args:
        reason: what happened, without tokens.
        after: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after
        self.attempt = 1
        """Which try this was, counted from 1."""


def usual_wait(fault: TransientError) -> float:
    """Seconds before the next try: what the server asks for, or exponential with full jitter."""
    jitter = random.uniform(0, min(BACKOFF_S * 2.0 ** (fault.attempt - 1), LONGEST_WAIT_S))
    return jitter if fault.after is None else min(fault.after, LONGEST_ASKED_S) + min(jitter, 2.0)


def persist(
    attempt: Callable[[], T], *, wait: Callable[[TransientError], float] = usual_wait, attempts: int = ATTEMPTS
) -> T:
    """What a function returns, called again as long as it raises TransientError.

    Raises:
        TransientError: that of the last try.
    """
    tried = 0
    while True:
        try:
            return attempt()
        except TransientError as fault:
            tried = fault.attempt = tried + 1
            if tried >= attempts:
                raise
            time.sleep(wait(fault))


def may_pass(status: int) -> bool:
    """Whether the same request may succeed after this answer."""
    return status in (408, 425, 429) or status >= 500


@dataclass(frozen=True)
class Answer:
    """What a server says in the end, redirects followed."""

    status: int
    reason: str
    headers: Mapping[str, str]
    """Whatever the case of a name."""
    body: bytes
    """Decompressed. Of a request for a part: as it is stored, and only if the server sends that part (206)."""

    @property
    def text(self) -> str:
        """The beginning of the body in one line, for messages."""
        return " ".join(self.body[:2000].decode(errors="replace").split())[:200]

    def fault(self) -> TransientError:
        """The answer as an error after which to try again, with the wait that it asks for."""
        return TransientError(f"the server answers {self.status} {self.text}".strip(), self._asked_wait())

    def _asked_wait(self) -> float | None:
        """In `Retry-After`, a number or an HTTP date, or in words ("Try again in 23 seconds")."""
        header = self.headers.get("Retry-After", "")
        if header.isdigit():
            return float(header)
        try:
            moment = parsedate_to_datetime(header)
        except (TypeError, ValueError):
            words = re.search(r"try again in (\d+) second", self.text, re.IGNORECASE)
            return float(words[1]) if words else None
        return max(0.0, (moment - datetime.now(moment.tzinfo)).total_seconds())


class Transport(Protocol):
    """What carries one request; safe for threads. `persist` tries again."""

    def send(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = _NONE,
        body: bytes | None = None,
        part: tuple[int, int] | None = None,
    ) -> Answer:
        """One request.

        Args:
            url: of http or https; a login in it is used.
            headers: for the server of this address, not for those that it redirects to.
            body: JSON to be posted; None to get.
            part: first byte and the one after the last that are wanted; None for the whole.

        Raises:
            TransientError: if it may succeed later: no answer, a broken one, or one of those of `may_pass`.
        """

    def close(self) -> None:
        """Close all connections."""


class _TooLargeError(Exception):
    """A whole answer, or what it says when unpacked, is larger than any document."""


class HttpTransport:
    """Transport by urllib3, whose requests cost a millisecond less than those of the requests package.

    Args:
        connections: threads that use it at once; each has one request in flight.
        stall_s: see STALL_S.
    """

    def __init__(self, connections: int = 1, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        trusted = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certifi.where()
        self._options: dict[str, Any] = {
            "num_pools": 16,
            "maxsize": connections,
            "block": True,
            "timeout": urllib3.Timeout(connect=CONNECT_S, read=stall_s),
            "retries": False,  # `persist` makes them, where a token can be renewed between two
            "ca_cert_dir" if Path(trusted).is_dir() else "ca_certs": trusted,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """See Transport."""
        for pool in self._pools.values():
            pool.clear()

    def send(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = _NONE,
        body: bytes | None = None,
        part: tuple[int, int] | None = None,
    ) -> Answer:
        """See Transport."""
        try:
            raw = self._open(url, dict(headers), body, part)
            try:
                answer = Answer(raw.status, raw.reason or "", raw.headers, self._body(raw, part))
            except BaseException:
                raw.close()  # what is left of the answer must not be taken for the next one
                raise
            finally:
                raw.release_conn()
        except _TooLargeError:
            limit = f"larger than {MAX_DOCUMENT_BYTES >> 20} MiB"
            raise SmaltiError(f"{_without_query(url)}: {limit}: not a document that smalti reads") from None
        except (HTTPError, OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: an address that is none
            raise TransientError(_without_query(brief(error))) from error
        if may_pass(answer.status):
            raise answer.fault()
        return answer

    def _open(
        self, url: str, headers: dict[str, str], body: bytes | None, part: tuple[int, int] | None
    ) -> urllib3.BaseHTTPResponse:
        """The answer to a request, its body unread; each redirect may go through another proxy."""
        fixed = {**_HEADERS, "Accept-Encoding": "gzip" if part is None else "identity"}
        if part is not None:
            fixed["Range"] = f"bytes={part[0]}-{part[1] - 1}"
        for _ in range(_REDIRECTS + 1):
            login = _login(url)
            answer = self._pool(url).request(
                "GET" if body is None else "POST",
                url,
                headers={
                    **fixed,
                    **({} if body is None else {"Content-Type": "application/json"}),
                    **({} if login is None else urllib3.make_headers(basic_auth=login)),
                    **headers,
                },
                body=body,
                preload_content=False,
                decode_content=False,  # Content-Range counts the bytes as they are stored
                redirect=False,
                pool_timeout=_POOL_S,
            )
            place = answer.get_redirect_location()
            if not place:
                return answer
            answer.close()
            answer.release_conn()
            if answer.status in (301, 302, 303):
                body = None
            before, url = url, urljoin(url, place)
            if urlsplit(before)[:2] != urlsplit(url)[:2]:
                headers = {}
        raise TransientError("too many redirects")

    def _body(self, answer: urllib3.BaseHTTPResponse, part: tuple[int, int] | None) -> bytes:
        """The body as far as it is wanted, as long as there is progress."""
        if part is not None and answer.status != 206:
            answer.close()
            return b""
        length = answer.length_remaining
        wanted = length if part is None else min(part[1] - part[0], length or 1 << 62)
        pieces: list[bytes] = []
        received, mark, deadline = 0, 0, time.monotonic() + self._stall_s
        while wanted is None or received < wanted:
            piece: bytes = answer.read1(_PIECE if wanted is None else min(_PIECE, wanted - received))
            if not piece and length is None:
                break
            if not piece:
                raise TransientError(f"the answer was cut off after {received} of {wanted} bytes")
            pieces.append(piece)
            received += len(piece)
            if part is None and received > MAX_DOCUMENT_BYTES:
                raise _TooLargeError
            now = time.monotonic()
            if now > deadline:
                if received - mark < SLOWEST:
                    raise TransientError(f"the connection stalled after {received} of {wanted or 'its'} bytes")
                mark, deadline = received, now + self._stall_s
        if part is not None and answer.length_remaining != 0:
            answer.close()  # more came than was asked for
        content = b"".join(pieces)
        return _gunzip(content) if part is None and _gzipped(answer) else content

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = _proxy(parts.scheme, parts.netloc)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = self._manager(proxy)
            return self._pools[proxy]

    def _manager(self, proxy: str | None) -> urllib3.PoolManager:
        if proxy is None:
            return urllib3.PoolManager(**self._options)
        try:
            login = urllib3.make_headers(proxy_basic_auth=_login(proxy))
            return urllib3.ProxyManager(proxy, proxy_headers=login, **self._options)
        except (HTTPError, ValueError) as error:  # its address may hold a password: not told
            scheme = proxy.partition("://")[0]
            advice = "set http_proxy and https_proxy (and unset all_proxy) to http://host:port, or to nothing"
            raise SmaltiError(f"the environment's {scheme} proxy cannot be used: {advice}") from error


def _gunzip(content: bytes) -> bytes:
    """A few kilobytes may claim to be gigabytes."""
    unpacking = zlib.decompressobj(wbits=31)
    plain = unpacking.decompress(content, MAX_DOCUMENT_BYTES)
    if unpacking.unconsumed_tail:
        raise _TooLargeError
    if not unpacking.eof:
        raise EOFError("the compressed answer was cut off")
    return plain


def fetch_bytes(transport: Transport, url: str, what: str, *, attempts: int = ATTEMPTS) -> bytes:
    """GET a small file.

    Raises:
        ServiceError: when the service fails even after the retries.
        SmaltiError: when it says that there is no such file, or that it must not be read.
    """
    try:
        answer = persist(lambda: transport.send(url), attempts=attempts)
    except TransientError as error:
        raise ServiceError(f"{url}: {what} cannot be read: {error}, {attempts} times: try again later") from error
    if answer.status != 200:
        raise SmaltiError(f"{url}: {what} cannot be read: {answer.status} {answer.reason}".rstrip())
    return answer.body


def brief(error: BaseException) -> str:
    """What a network error comes to, without the wrapping of three libraries."""
    inner = error
    while True:
        reason = getattr(inner, "reason", None)
        deeper = (
            reason
            if isinstance(reason, BaseException)
            else next((arg for arg in inner.args if isinstance(arg, BaseException)), None)
        )
        if deeper is None:
            break
        inner = deeper
    text = " ".join(str(inner).split())
    return text.rpartition("object at 0x")[2].partition(">: ")[2] or text or type(inner).__name__


def _without_query(text: str) -> str:
    """A message in which URLs have lost their query: tokens are never shown."""
    return re.sub(r"\?[^\s'\"]+", "", text)


def _gzipped(answer: urllib3.BaseHTTPResponse) -> bool:
    return answer.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip")


@functools.lru_cache(maxsize=256)
def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for a host (http_proxy, https_proxy, no_proxy)."""
    url = f"{scheme}://{host}/"
    proxy: str | None = select_proxy(url, get_environ_proxies(url))
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _login(url: str) -> str | None:
    """user:password of a URL."""
    parts = urlsplit(url)
    return f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
