"""HTTP with retries, in the one place where they belong: the transport. For catalogues and tokens, not for pixels."""

from __future__ import annotations

import random
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from infer.contract import EXIT_TRY_AGAIN, SOFTWARE, SmaltiError

ATTEMPTS = 6
"""Tries after the first one."""
BODY_ATTEMPTS = 4
"""Tries when an answer breaks off."""
BACKOFF_S = 0.5
"""Seconds before the second retry (the first comes at once); doubled for each further one, plus jitter."""
BACKOFF_MAX_S = 60.0
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""
TIMEOUT_S = (15.0, 120.0)
"""To connect, and between two bytes."""


class ServiceError(SmaltiError):
    """A service did not answer, or not as it should; later it may."""

    exit_code = EXIT_TRY_AGAIN


def retries() -> Retry:
    """The retry policy: exponential with jitter, `Retry-After` honoured, POST included (searches change nothing)."""
    return Retry(
        total=ATTEMPTS,
        backoff_factor=BACKOFF_S,
        backoff_max=BACKOFF_MAX_S,
        backoff_jitter=BACKOFF_S,
        status_forcelist=TRANSIENT,
        allowed_methods=None,
        respect_retry_after_header=True,
        raise_on_status=False,
    )


class _WholeAnswers(HTTPAdapter):
    """Reads an answer to its end before it hands it out, so that a broken or truncated body is retried as well."""

    def send(self, *arguments: Any, **options: Any) -> requests.Response:
        """As the base class does, and the whole body with it."""
        for attempt in range(BODY_ATTEMPTS, 0, -1):
            answer = super().send(*arguments, **options)
            try:
                _ = answer.content
                break
            except requests.RequestException:
                if attempt == 1:
                    raise
                time.sleep(BACKOFF_S * (1 + random.random()))
        return answer


def open_session() -> requests.Session:
    """A session with the retry policy; for small answers, which are held in memory. Close it after use."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _WholeAnswers(max_retries=retries()))
    session.headers["User-Agent"] = SOFTWARE.replace(" ", "/")
    return session


def fetch_bytes(session: requests.Session, url: str, what: str) -> bytes:
    """GET a small file.

    Raises:
        ServiceError: when the service fails even after the retries.
        SmaltiError: when it says that there is no such file, or that it must not be read.
    """
    try:
        with session.get(url, timeout=TIMEOUT_S) as answer:
            if answer.ok:
                return answer.content
            status = f"{answer.status_code} {answer.reason}".strip()
            transient = answer.status_code in TRANSIENT
    except requests.RequestException as error:
        raise ServiceError(f"{url}: {what} cannot be read: {brief(error)}") from error
    if transient:
        raise ServiceError(f"{url}: {what} cannot be read: {status}, {ATTEMPTS + 1} times: try again later")
    raise SmaltiError(f"{url}: {what} cannot be read: {status}")


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
