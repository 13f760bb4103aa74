"""Shared access signatures like Azure's: issued for a container, checked on every read."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

_FORM = "%Y-%m-%dT%H:%M:%SZ"


@dataclass
class Issuer:
    """Issues and checks tokens of one server."""

    lifetime_s: float = 2700.0
    """How long a token is good for, seconds; the service's are good for 45 minutes."""
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def issue(self, container: str) -> dict[str, str]:
        """A token for `account/container`, as Planetary Computer's endpoint answers: `msft:expiry` and `token`."""
        now = datetime.now(UTC)
        until = now + timedelta(seconds=self.lifetime_s)
        terms = {
            "st": (now - timedelta(days=1)).strftime(_FORM),
            "se": until.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "sp": "rl",
            "sv": "2024-05-04",
            "sr": "c",
        }
        return {"msft:expiry": terms["se"], "token": urlencode({**terms, "sig": self._signature(container, terms)})}

    def refusal(self, container: str, query: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and Azure's error code when a query does not open this container, or None when it does."""
        if "sig" not in query:
            return 409, "PublicAccessNotPermitted"
        terms = {name: query.get(name, "") for name in ("st", "se", "sp", "sv", "sr")}
        if not hmac.compare_digest(query["sig"], self._signature(container, terms)):
            return 403, "AuthenticationFailed"
        until = datetime.strptime(terms["se"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        return None if datetime.now(UTC) < until else (403, "AuthenticationFailed")

    def revoke(self) -> None:
        """Make all tokens so far worthless, as if they had expired early."""
        self._key = secrets.token_bytes(32)

    def _signature(self, container: str, terms: Mapping[str, Any]) -> str:
        text = "\n".join([container, *(f"{name}={terms[name]}" for name in sorted(terms))])
        return base64.b64encode(hmac.new(self._key, text.encode(), hashlib.sha256).digest()).decode()
