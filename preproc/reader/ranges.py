"""Bytes of remote files, with retries in this one place.

What may succeed later is tried again, with exponential waits, jitter and `Retry-After`: 408, 425, 429 and 5xx, broken
and cut-off answers, connections that stall. An expired token (403) is renewed. What cannot succeed is not tried
again: 400, 401, 404, 409, 410, 416.
"""

from __future__ import annotations

import functools
import gzip
import os
import re
import threading
import time
import zlib
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import unquote, urljoin, urlsplit

import certifi
import urllib3
from requests.utils import get_environ_proxies, select_proxy
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from urllib3.exceptions import HTTPError

from infer.contract import EXIT_FAILED, EXIT_TRY_AGAIN, SOFTWARE, SmaltiError
from preproc.reader.buckets import refusal_text, web_address
from preproc.reader.hrefs import BUCKET_SCHEMES
from preproc.reader.transport import TRANSIENT, brief

ATTEMPTS = 8
"""Tries of one request; with the waits below, about two minutes."""
RENEWALS = 2
"""Times that a request is tried with a new token after a 403: the second for a server that lags behind the issuer."""
LONGEST_WAIT_S = 60.0
CONNECT_S = 20.0
STALL_S = 30.0
"""A connection that gives fewer than SLOWEST bytes in this time has stalled: progress counts, not duration."""
SLOWEST = 4096
_PIECE = 1 << 18
_REDIRECTS = 5
_POOL_S = 600.0
"""Seconds to wait for a free connection: each thread has its own, so this only ends what would wait for ever."""
_WHOLE = 1 << 20
"""Bytes that the first request for a whole file asks for: most have fewer."""


class MissingDataError(SmaltiError):
    """A file that should be there is missing or unreadable for good; `[archive] on_missing` decides what follows."""

    exit_code = EXIT_FAILED


class RefusedError(SmaltiError):
    """A store wants credentials that the environment lacks: a matter of settings, never of `on_missing`."""

    exit_code = EXIT_FAILED


class UnreachableError(SmaltiError):
    """The server did not answer well enough this time; the same command may succeed later."""

    exit_code = EXIT_TRY_AGAIN


class Signs(Protocol):
    """What makes hrefs of a protected archive readable; safe for threads. See preproc.reader.signing.Signer."""

    def sign(self, href: str) -> str:
        """The href with a valid token, or as it is where none is needed."""

    def renew(self, href: str) -> str:
        """The href with a token that was issued just now."""


class Unsigned:
    """Signs nothing: public archives."""

    def sign(self, href: str) -> str:
        """The href as it is."""
        return href

    def renew(self, href: str) -> str:
        """The href as it is."""
        return href


class _TransientError(Exception):
    """Worth another try."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after
        """Seconds that the server asks to wait."""


class _RefusedError(_TransientError):
    """403: worth one more try with a new token."""


_GZIP = b"\x1f\x8b"
_REFUSED = "the server refuses it even with a new token (403)"


_BACKOFF = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_S)


def usual_wait(state: RetryCallState) -> float:
    """Seconds before the next try: what the server asks for, or exponential with full jitter."""
    error = state.outcome.exception() if state.outcome is not None else None
    jitter = float(_BACKOFF(state))
    if isinstance(error, _TransientError) and error.after is not None:
        return min(error.after, LONGEST_WAIT_S) + min(jitter, 2.0)
    return jitter


def is_remote(href: str) -> bool:
    """Whether an href leads over the network."""
    return urlsplit(href).scheme.lower() in ("http", "https", *BUCKET_SCHEMES)


@functools.lru_cache(maxsize=256)
def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for a host (http_proxy, https_proxy, no_proxy)."""
    url = f"{scheme}://{host}/"
    proxy: str | None = select_proxy(url, get_environ_proxies(url))
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


class _Pools:
    """Connections, by the proxy that they go through. urllib3 itself: requests costs a millisecond more a request."""

    def __init__(self, connections: int, stall_s: float) -> None:
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        trusted = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certifi.where()
        self._options: dict[str, Any] = {
            "num_pools": 16,
            "maxsize": connections,
            "block": True,
            "timeout": urllib3.Timeout(connect=CONNECT_S, read=stall_s),
            "retries": False,  # they are made here, where a token can be renewed
            "ca_cert_dir" if Path(trusted).is_dir() else "ca_certs": trusted,
        }

    def get(self, url: str) -> urllib3.PoolManager:
        """The connections for a URL."""
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

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            pool.clear()


def _login(url: str) -> str | None:
    """user:password of a URL."""
    parts = urlsplit(url)
    return f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None


class RangeClient:
    """Fetches byte ranges; safe for threads. Each thread has one request in flight.

    Args:
        signer: makes hrefs readable.
        connections: threads that use it at once.
        wait: seconds before the next try (tests shorten it).
        stall_s: see STALL_S.
    """

    def __init__(
        self,
        signer: Signs | None = None,
        *,
        connections: int = 8,
        wait: Callable[[RetryCallState], float] = usual_wait,
        stall_s: float = STALL_S,
    ) -> None:
        self._signer = signer or Unsigned()
        self._wait = wait
        self._stall_s = stall_s
        self._pools = _Pools(connections, stall_s)
        self._headers = {"User-Agent": SOFTWARE.replace(" ", "/"), "Accept-Encoding": "identity"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pools.close()

    def get(self, href: str, start: int, end: int) -> tuple[bytes, int]:
        """Bytes `start` to `end` (exclusive) of a file, fewer at its end.

        Returns:
            The bytes, and the size of the whole file.

        Raises:
            MissingDataError: if the file is not there, or must not be read.
            UnreachableError: if the server does not deliver within the retry budget.
        """
        refusals = 0
        retrying = Retrying(
            retry=retry_if_exception_type(_TransientError),
            stop=stop_after_attempt(ATTEMPTS),
            wait=self._wait,
            reraise=True,
        )
        try:
            for attempt in retrying:
                with attempt:
                    signed = self._signer.renew(href) if refusals else self._signer.sign(href)
                    try:
                        return self._get_once(web_address(signed), href, start, end)
                    except _RefusedError as error:
                        refusals += 1
                        if refusals > RENEWALS:
                            hint = refusal_text(href, 403)
                            if hint:
                                raise RefusedError(f"{href}: the server refuses it (403){hint}") from error
                            raise MissingDataError(f"{href}: {_REFUSED}") from error
                        raise
        except _TransientError as error:
            raise UnreachableError(f"{href}: {error}, {ATTEMPTS} times: try again later") from error
        raise AssertionError("a retry loop ends by return or raise")

    def get_whole(self, href: str) -> bytes:
        """A small file; errors as those of `get`."""
        content, size = self.get(href, 0, _WHOLE)
        if len(content) < size:
            content += self.get(href, len(content), size)[0]
        if content.startswith(_GZIP) and not href.endswith(".gz"):  # stored with Content-Encoding: gzip
            try:
                return gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as error:
                raise MissingDataError(f"{href}: its gzip encoding is damaged: {error}") from error
        return content

    def _get_once(self, url: str, href: str, start: int, end: int) -> tuple[bytes, int]:
        try:
            answer = self._ask(url, start, end)
            try:
                _check_status(answer, href, start)
                first, last, size = _content_range(answer, href)
                if first != start or not start <= last < end or (last < end - 1 and last != size - 1):
                    raise _TransientError(f"bytes {first}-{last} were sent for {start}-{end - 1}")
                content = self._body(answer, last - first + 1)
            except BaseException:
                answer.close()  # what is left of the answer must not be taken for the next one
                raise
            finally:
                answer.release_conn()
        except (HTTPError, OSError, ValueError) as error:  # ValueError: an address that is none
            raise _TransientError(_without_query(brief(error))) from error
        return content, size

    def _ask(self, url: str, start: int, end: int) -> urllib3.BaseHTTPResponse:
        """The answer to a request, its body unread; each redirect may go through another proxy."""
        for _ in range(_REDIRECTS + 1):
            headers = {**self._headers, "Range": f"bytes={start}-{end - 1}"}
            login = _login(url)
            if login is not None:
                headers.update(urllib3.make_headers(basic_auth=login))
            answer = self._pools.get(url).request(
                "GET",
                url,
                headers=headers,
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
            url = urljoin(url, place)
        raise _TransientError("too many redirects")

    def _body(self, answer: urllib3.BaseHTTPResponse, length: int) -> bytes:
        """Exactly `length` bytes, as long as there is progress."""
        pieces: list[bytes] = []
        received, mark, deadline = 0, 0, time.monotonic() + self._stall_s
        while received < length:
            piece: bytes = answer.read1(min(_PIECE, length - received))
            if not piece:
                raise _TransientError(f"the answer was cut off after {received} of {length} bytes")
            pieces.append(piece)
            received += len(piece)
            now = time.monotonic()
            if now > deadline:
                if received - mark < SLOWEST:
                    raise _TransientError(f"the connection stalled after {received} of {length} bytes")
                mark, deadline = received, now + self._stall_s
        return b"".join(pieces)


def _check_status(answer: urllib3.BaseHTTPResponse, href: str, start: int) -> None:
    code = answer.status
    if code == 206:
        return
    if code == 200:
        raise MissingDataError(f"{href}: the server ignores byte ranges: use one that supports them, or a local copy")
    if code == 416:
        raise MissingDataError(f"{href}: it ends before byte {start}: the file on the server is cut short")
    if code == 403:
        raise _RefusedError("403")
    if code in TRANSIENT or code >= 500:
        raise _TransientError(f"the server answers {code}", _asked_wait(answer))
    reason = f"the server answers {code} {answer.reason or ''}".rstrip()
    hint = refusal_text(href, code)
    raise RefusedError(f"{href}: {reason}{hint}") if hint else MissingDataError(f"{href}: {reason}")


def _content_range(answer: urllib3.BaseHTTPResponse, href: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
    if match is None:
        raise MissingDataError(
            f"{href}: the server's Content-Range is not understood: use another one, or a local copy"
        )
    return int(match[1]), int(match[2]), int(match[3])


def _asked_wait(answer: Any) -> float | None:
    """Seconds that Retry-After asks to wait: a number, or an HTTP date."""
    header = answer.headers.get("Retry-After", "")
    if header.isdigit():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    return max(0.0, (moment - datetime.now(moment.tzinfo)).total_seconds())


def _without_query(text: str) -> str:
    """A message in which URLs have lost their query: tokens are never shown."""
    return re.sub(r"\?[^\s'\"]+", "", text)
