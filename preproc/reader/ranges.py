"""Bytes of remote files: each try signed anew where a server refuses a token, and checked to be what was asked for.

What may succeed later is tried again (see preproc.reader.transport). An expired token (403) is renewed. What cannot
succeed is not tried again: 400, 401, 404, 409, 410, 416.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlsplit

from infer.contract import EXIT_FAILED, SmaltiError
from preproc.reader.buckets import refusal_text, web_address
from preproc.reader.hrefs import BUCKET_SCHEMES
from preproc.reader.transport import (
    ATTEMPTS,
    STALL_S,
    Answer,
    HttpTransport,
    ServiceError,
    TransientError,
    Transport,
    persist,
    usual_wait,
)

RENEWALS = 2
"""Times that a request is tried with a new token after a 403: the second for a server that lags behind the issuer."""
_WHOLE = 1 << 20
"""Bytes that the first request for a whole file asks for: most have fewer."""
_PIECE = 8 << 20
"""Bytes that one request for a piece of a large file asks for."""


class MissingDataError(SmaltiError):
    """A file that should be there is missing or unreadable for good; `[archive] on_missing` decides what follows."""

    exit_code = EXIT_FAILED


class RefusedError(SmaltiError):
    """A store wants credentials that the environment lacks: a matter of settings, never of `on_missing`."""

    exit_code = EXIT_FAILED


class UnreachableError(ServiceError):
    """The server of a file did not answer well enough this time; the same command may succeed later."""


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


class _RefusedError(TransientError):
    """403: worth one more try with a new token."""


_GZIP = b"\x1f\x8b"
_REFUSED = "the server refuses it even with a new token (403)"


def is_remote(href: str) -> bool:
    """Whether an href leads over the network."""
    return urlsplit(href).scheme.lower() in ("http", "https", *BUCKET_SCHEMES)


class RangeClient:
    """Fetches byte ranges; safe for threads. Each thread has one request in flight.

    Args:
        signer: makes hrefs readable.
        transport: carries the requests; closed with the client. None: the usual one.
        connections: threads that use it at once.
        stall_s: see preproc.reader.transport.STALL_S.
        wait: seconds before the next try (tests shorten it).
        attempts: tries of one request.
        headers: for the server of each address, not for those that it redirects to.
    """

    def __init__(
        self,
        signer: Signs | None = None,
        *,
        transport: Transport | None = None,
        connections: int = 8,
        stall_s: float = STALL_S,
        wait: Callable[[TransientError], float] = usual_wait,
        attempts: int = ATTEMPTS,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._signer = signer or Unsigned()
        self._transport = transport or HttpTransport(connections, stall_s)
        self._wait, self._attempts, self._headers = wait, attempts, headers or {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.close()

    def get(self, href: str, start: int, end: int) -> tuple[bytes, int]:
        """Bytes `start` to `end` (exclusive) of a file, fewer at its end.

        Returns:
            The bytes, and the size of the whole file.

        Raises:
            MissingDataError: if the file is not there, or must not be read.
            RefusedError: if its store wants other credentials than the environment has.
            UnreachableError: if the server does not deliver within the retry budget.
        """
        refusals = 0

        def attempt() -> tuple[bytes, int]:
            nonlocal refusals
            signed = self._signer.renew(href) if refusals else self._signer.sign(href)
            try:
                answer = self._transport.send(web_address(signed), headers=self._headers, part=(start, end))
                return _content(answer, href, start, end)
            except _RefusedError as error:
                refusals += 1
                if refusals <= RENEWALS:
                    raise
                hint = refusal_text(href, 403)
                if hint:
                    raise RefusedError(f"{href}: the server refuses it (403){hint}") from error
                raise MissingDataError(f"{href}: {_REFUSED}") from error

        try:
            return persist(attempt, wait=self._wait, attempts=self._attempts)
        except TransientError as error:
            raise UnreachableError(f"{href}: {error}, {self._attempts} times: try again later") from error

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

    def pieces(self, href: str) -> Iterator[tuple[bytes, int]]:
        """A large file from its first byte to its last, piece by piece, each with the size of all.

        Raises:
            MissingDataError: as `get`, or if it changes in between.
            UnreachableError: as `get`.
        """
        start, size = 0, 1
        while start < size:
            piece, now = self.get(href, start, start + _PIECE)
            if start and now != size:
                raise MissingDataError(f"{href}: it changed on the server while it was read: run the command again")
            yield piece, now
            start, size = start + len(piece), now


def _content(answer: Answer, href: str, start: int, end: int) -> tuple[bytes, int]:
    """The bytes of an answer and the size of the file, once it is what was asked for."""
    _check_status(answer, href, start)
    first, last, size = _content_range(answer, href)
    if first != start or not start <= last < end or (last < end - 1 and last != size - 1):
        raise TransientError(f"bytes {first}-{last} were sent for {start}-{end - 1}")
    if len(answer.body) != last - first + 1:
        raise TransientError(f"the answer was cut off after {len(answer.body)} of {last - first + 1} bytes")
    return answer.body, size


def _check_status(answer: Answer, href: str, start: int) -> None:
    code = answer.status
    if code == 206:
        return
    if code == 200:
        raise MissingDataError(f"{href}: the server ignores byte ranges: use one that supports them, or a local copy")
    if code == 416:
        raise MissingDataError(f"{href}: it ends before byte {start}: the file on the server is cut short")
    if code == 403:
        raise _RefusedError("403")
    reason = f"the server answers {code} {answer.reason}".rstrip()
    hint = refusal_text(href, code)
    raise RefusedError(f"{href}: {reason}{hint}") if hint else MissingDataError(f"{href}: {reason}")


def _content_range(answer: Answer, href: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
    if match is None:
        raise MissingDataError(
            f"{href}: the server's Content-Range is not understood: use another one, or a local copy"
        )
    return int(match[1]), int(match[2]), int(match[3])
