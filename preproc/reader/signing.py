"""Signatures: hrefs are stored unsigned and signed when they are opened. Here Planetary Computer's; see also buckets.

A token covers a container and lives about 45 minutes. All processes of all array tasks share the tokens through one
file in the run directory, under a file lock: one request a container and lifetime, however many tasks there are.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from planetary_computer.settings import DEFAULT_SAS_TOKEN_ENDPOINT, Settings

from infer.contract import Run, SmaltiError, parse_json, read_regular, temporary_path, writing
from preproc.reader.buckets import BucketSigner
from preproc.reader.hrefs import is_bucket, is_url, unsigned
from preproc.reader.transport import (
    ATTEMPTS,
    THINKING_S,
    Answer,
    HttpTransport,
    ServiceError,
    TransientError,
    persist,
    usual_wait,
)
from preproc.run.config import Config
from preproc.run.text import parse_time

BLOB_DOMAIN = ".blob.core.windows.net"
PUBLIC_ACCOUNTS = frozenset(("ai4edatasetspublicassets",))
"""Storage accounts that need no token."""
REFRESH_AHEAD_S = 300.0
"""A token is replaced this long before it expires (or a fifth of its life, if that is shorter) ..."""
REFRESH_JITTER_S = 120.0
"""... and up to so much earlier, so that many tasks do not ask at the same moment."""
JUST_ISSUED_S = 20.0
"""A token this young is not replaced when a server refuses it: another thread or task has just renewed it."""


@dataclass(frozen=True)
class Token:
    """A shared access signature of one container."""

    query: str
    """What is appended to an href after a question mark."""
    issued: float
    """When it was received, in seconds since the epoch by this machine's clock."""
    expires: float
    """Until when it is valid, by this machine's clock."""

    def fresh(self, now: float, jitter: float) -> bool:
        """Whether it may still be handed out; `jitter` is between 0 and 1."""
        life = max(self.expires - self.issued, 0.0)
        ahead = min(REFRESH_AHEAD_S + jitter * REFRESH_JITTER_S, life / 5)
        return self.expires - ahead > now


class Signer:
    """Signs hrefs of Azure blob storage; all others stay as they are. Safe for threads and processes.

    Args:
        cache: file that the processes share; made when the first token is needed, readable by its owner only.
        sas_url: token endpoint.
        subscription_key: Planetary Computer's key, or None.
        emulated: also sign loopback hrefs in path style (http://127.0.0.1:PORT/account/container/...), as storage
            emulators have them, if `sas_url` is not Planetary Computer's.
        wait: seconds before the next try of a token request (tests shorten it).
    """

    def __init__(
        self,
        cache: Path,
        *,
        sas_url: str = DEFAULT_SAS_TOKEN_ENDPOINT,
        subscription_key: str | None = None,
        emulated: bool = True,
        wait: Callable[[TransientError], float] = usual_wait,
    ) -> None:
        self._cache = cache
        self._sas_url = sas_url.rstrip("/")
        self._key = subscription_key
        self._emulated = emulated and self._sas_url != DEFAULT_SAS_TOKEN_ENDPOINT
        self._wait = wait
        self._lock = threading.Lock()
        self._tokens: dict[str, Token] = {}
        self._jitter = random.random()

    def sign(self, href: str) -> str:
        """The href with a valid token, or as it is where none is needed.

        Raises:
            ServiceError: if the token endpoint does not give one even after retries.
        """
        return self._signed(href, refused=False)

    def renew(self, href: str) -> str:
        """The href with a token that was issued just now: for a server that refused the last one (403)."""
        return self._signed(href, refused=True)

    def _signed(self, href: str, *, refused: bool) -> str:
        container = self.container_of(href)
        if container is None:
            return href
        plain = unsigned(href)
        return f"{plain}{'&' if '?' in plain else '?'}{self._token(container, refused=refused).query}"

    def container_of(self, href: str) -> str | None:
        """`account/container` of an href that needs a token, else None."""
        if not is_url(href):
            return None
        parts = urlsplit(href)
        host, path = parts.hostname or "", parts.path.strip("/").split("/")
        if host.endswith(BLOB_DOMAIN):
            account = host.removesuffix(BLOB_DOMAIN)
            return None if account in PUBLIC_ACCOUNTS or not path[0] else f"{account}/{path[0]}"
        if self._emulated and len(path) >= 3 and _is_loopback(host):
            return f"{path[0]}/{path[1]}"
        return None

    def _usable(self, token: Token | None, *, refused: bool) -> bool:
        now = time.time()
        if token is None or not token.fresh(now, self._jitter):
            return False
        return not refused or now - token.issued < min(JUST_ISSUED_S, (token.expires - token.issued) / 2)

    def _token(self, container: str, *, refused: bool) -> Token:
        with self._lock:
            token = self._tokens.get(container)
            if token is not None and self._usable(token, refused=refused):
                return token
            with self._locked():
                tokens = self._read()
                token = tokens.get(container)
                if token is None or not self._usable(token, refused=refused):
                    token = self._ask(container)
                    self._write({**tokens, container: token})
            self._tokens[container] = token
            return token

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._cache.with_name(self._cache.name + ".lock")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, Token]:
        """The shared tokens of this endpoint; a cache that cannot be read is an empty one."""
        try:
            records = parse_json(read_regular(self._cache))[self._sas_url].items()
            return {name: Token(str(r["query"]), float(r["issued"]), float(r["expires"])) for name, r in records}
        except (SmaltiError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return {}

    def _write(self, tokens: dict[str, Token]) -> None:
        now = time.time()
        live = {name: asdict(token) for name, token in sorted(tokens.items()) if token.expires > now}
        temporary = temporary_path(self._cache)
        with writing(self._cache):
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump({self._sas_url: live}, stream)
            temporary.replace(self._cache)

    def _ask(self, container: str) -> Token:
        url = f"{self._sas_url}/{container}"
        headers = {"Ocp-Apim-Subscription-Key": self._key} if self._key else {}
        try:
            with HttpTransport(stall_s=THINKING_S) as transport:
                return persist(lambda: _token_of(transport.send(url, headers=headers), url), wait=self._wait)
        except TransientError as error:
            advice = "" if self._key else "; a key in PC_SDK_SUBSCRIPTION_KEY raises the service's limits"
            raise ServiceError(f"{url}: no token, {ATTEMPTS} tries: {error}: try again later{advice}") from error


class ArchiveSigner:
    """Signs hrefs of the bucket that holds a static archive, and leaves all others to another signer."""

    def __init__(self, bucket: BucketSigner, others: Signer) -> None:
        self._bucket, self._others = bucket, others

    def sign(self, href: str) -> str:
        """The address of a request."""
        return self._bucket.sign(href) if self._bucket.covers(href) else self._others.sign(href)

    def renew(self, href: str) -> str:
        """The same, signed anew."""
        return self._bucket.renew(href) if self._bucket.covers(href) else self._others.renew(href)


def make_signer(run: Run, config: Config) -> Signer | ArchiveSigner:
    """The signer of a run, with the planetary-computer package's settings (PC_SDK_SAS_URL, PC_SDK_SUBSCRIPTION_KEY).

    Args:
        run: its logs/ holds the shared tokens.
        config: Earth Search's files are public, wherever they are served from; a bucket with a static archive is read
            with the environment's credentials.
    """
    settings = Settings()
    signer = Signer(
        run.logs / "tokens.json",
        sas_url=settings.sas_url or DEFAULT_SAS_TOKEN_ENDPOINT,
        subscription_key=settings.subscription_key,
        emulated=bool(settings.sas_url) and config.archive.source != "earth-search",
    )
    href = config.archive.href
    return ArchiveSigner(BucketSigner(href), signer) if href is not None and is_bucket(href) else signer


def _token_of(answer: Answer, url: str) -> Token:
    if answer.status == 404:  # so it answers at times when it throttles
        raise answer.fault()
    if answer.status in (401, 403):
        raise SmaltiError(f"{url}: no token: {answer.status} {answer.text}: check PC_SDK_SUBSCRIPTION_KEY")
    if answer.status != 200:
        raise SmaltiError(f"{url}: no token: {answer.status} {answer.text}")
    try:
        content: Any = json.loads(answer.body)
        query, expiry = str(content["token"]).lstrip("?"), parse_time(content["msft:expiry"])
    except (ValueError, KeyError, TypeError) as error:
        raise TransientError("its answer is not a token") from error
    if expiry is None or not query:
        raise TransientError("its answer is not a token")
    now = time.time()
    return Token(query, now, now + expiry.timestamp() - _server_time(answer, now))


def _server_time(answer: Answer, now: float) -> float:
    """The service's clock: a node's own may be minutes off, a token's life is measured by the issuer's."""
    try:
        served = parsedate_to_datetime(answer.headers["Date"])
    except (KeyError, ValueError, TypeError):
        return now
    moment = (served if served.tzinfo else served.replace(tzinfo=UTC)).timestamp()
    return now if abs(moment - now) < 2 else moment  # the header counts whole seconds


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
