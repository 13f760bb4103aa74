"""Things that go wrong between a client and an archive, to be inserted into the stand-in's answers. Pure.

An injector is asked about every request and gives a `Fault` or None. Those below are deterministic: they count requests
or hash them, and never draw at random.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["stac", "token", "blob"]


@dataclass(frozen=True)
class Seen:
    """A request as the server saw it."""

    number: int
    """Counted from 0 over all requests."""
    kind: Kind
    """The catalogue's API, the token endpoint, or a file."""
    method: str
    path: str
    """Without the query (tokens are not logged)."""
    range: str
    """Range header, or an empty string."""
    attempt: int
    """How often this method, path and range was asked for before."""


@dataclass(frozen=True)
class Fault:
    """What to do instead of, or to, the answer. Fields combine: a stall may precede any of the others."""

    status: int | None = None
    """Answer with this status and no content."""
    retry_after: str | None = None
    """Retry-After header of that answer: seconds, or an HTTP date."""
    body: bytes = b""
    """Body of that answer."""
    reset: bool = False
    """Reset the TCP connection instead of answering."""
    keep: int | None = None
    """Close the connection after this many bytes of the body, though the header promised all of them."""
    garble: bool = False
    """Send as many bytes as promised, but wrong ones."""
    stall_s: float = 0.0
    """Wait this many seconds (or until the server stops) before the answer, or where `stall_at` says."""
    stall_at: int = 0
    """Bytes of the body that are sent before the stall."""


Injector = Callable[[Seen], Fault | None]

BUSY = Fault(status=503, body=b"<Error><Code>ServerBusy</Code></Error>")
"""Azure's answer under load."""
THROTTLED = Fault(status=429, retry_after="1")
"""Too many requests, with advice."""
FORBIDDEN = Fault(status=403, body=b"<Error><Code>AuthenticationFailed</Code></Error>")
RESET = Fault(reset=True)
GARBLED = Fault(garble=True)


def truncated(keep: int = 100) -> Fault:
    """The connection closes after `keep` bytes of the body."""
    return Fault(keep=keep)


def stalled(seconds: float, after: int = 0) -> Fault:
    """Nothing moves for a while, after `after` bytes of the body."""
    return Fault(stall_s=seconds, stall_at=after)


def _meant(seen: Seen, kind: Kind | None, match: str) -> bool:
    return (kind is None or seen.kind == kind) and match in seen.path


def first(count: int, fault: Fault, *, kind: Kind | None = None, match: str = "") -> Injector:
    """Spoil the first `count` requests of a kind whose path contains `match`."""
    left = [count]

    def inject(seen: Seen) -> Fault | None:
        if left[0] <= 0 or not _meant(seen, kind, match):
            return None
        left[0] -= 1
        return fault

    return inject


def each_first(count: int, fault: Fault, *, kind: Kind | None = None, match: str = "") -> Injector:
    """Spoil the first `count` attempts of every single request: a client that retries `count` times succeeds."""
    return lambda seen: fault if seen.attempt < count and _meant(seen, kind, match) else None


def always(fault: Fault, *, kind: Kind | None = None, match: str = "") -> Injector:
    """Spoil every such request."""
    return lambda seen: fault if _meant(seen, kind, match) else None


def sprinkled(share: float, faults: Sequence[Fault], *, seed: int = 0, kind: Kind | None = None) -> Injector:
    """Spoil about this share of the requests, chosen by their path, range and attempt: the same in every run."""

    def inject(seen: Seen) -> Fault | None:
        word = zlib.crc32(f"{seed} {seen.method} {seen.path} {seen.range} {seen.attempt}".encode())
        if not _meant(seen, kind, "") or word % 10_000 >= share * 10_000:
            return None
        return faults[(word // 10_000) % len(faults)]

    return inject
