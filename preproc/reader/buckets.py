"""Files in object stores: the web address of each request, presigned where the environment has credentials.

hrefs stay what they are (s3://bucket/key, gs://bucket/key, az://account/container/key). Signing is arithmetic without
a request, so that each address is made for one use and nothing is stored. Credentials and endpoint belong to the bucket
that holds the archive: files of other buckets that its items name are read from the address that everybody uses.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from infer.contract import SmaltiError
from preproc.reader.hrefs import is_bucket

INSTALL = "pip install 'smalti[mirror]'"
VALID_FOR = timedelta(hours=1)
"""Much longer than a request waits, so that a node's clock may be slow."""

_KEYS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    "gs": (
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY"),
}
"""Variables of which one is enough for obstore to sign."""
_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]+")
_SAS = ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")
_UNSIGNED = {"s3": "AWS_SKIP_SIGNATURE", "gs": "GOOGLE_SKIP_SIGNATURE", "az": "AZURE_SKIP_SIGNATURE"}
_ADVICE = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL for other stores than Amazon's",
    "gs": "GOOGLE_SERVICE_ACCOUNT, the file of a service account's key",
    "az": "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}


@dataclass(frozen=True)
class Bucket:
    """A bucket, or a container of a storage account."""

    scheme: str
    account: str
    """Azure's storage account; empty elsewhere."""
    name: str


def split_address(href: str) -> tuple[Bucket, str]:
    """The bucket of an address, and the path in it, as it is written there (it may be percent-encoded, or empty).

    Raises:
        SmaltiError: if it does not name a bucket.
    """
    parts = urlsplit(href)
    scheme, first, path = parts.scheme.lower(), parts.netloc, parts.path.lstrip("/")
    if scheme != "az":
        bucket = Bucket(scheme, "", first)
    else:
        name, _, path = path.partition("/")
        bucket = Bucket(scheme, first, name)
    if not first or not bucket.name:
        form = "az://account/container/path" if scheme == "az" else f"{scheme}://bucket/path"
        raise SmaltiError(f"{href}: not an address in an object store: write {form}")
    return bucket, path


def web_address(href: str) -> str:
    """The public HTTP address of an href, without regard to the environment."""
    if not is_bucket(href):
        return href
    bucket, path = split_address(href)
    if bucket.scheme == "s3":
        return f"https://{bucket.name}.s3.amazonaws.com/{path}"
    if bucket.scheme == "gs":
        return f"https://storage.googleapis.com/{bucket.name}/{path}"
    return f"https://{bucket.account}.blob.core.windows.net/{bucket.name}/{path}"


def open_bucket(address: str) -> Any:
    """obstore's store of an address: what lies under its path, with the environment's credentials and endpoint.

    Raises:
        SmaltiError: if obstore is not installed, or makes nothing of the address or the environment.
    """
    try:
        import obstore
    except ImportError as error:
        raise SmaltiError(f"{address}: a mirror in an object store needs obstore: {INSTALL}") from error
    options: Any = {"client_options": {"allow_http": True}} if address.startswith("http://") else {}
    try:
        if urlsplit(address).scheme != "az":
            return obstore.store.from_url(address, **options)
        bucket, path = split_address(address)  # obstore's own az:// has no place for the account
        named = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", bucket.account)
        if named != bucket.account:
            advice = "write az://account/container/path, or unset the variable"
            raise SmaltiError(f"{address}: AZURE_STORAGE_ACCOUNT_NAME names another account, {named}: {advice}")
        prefix = unquote(path).strip("/") or None
        return obstore.store.AzureStore(bucket.name, account_name=bucket.account, prefix=prefix)
    except (obstore.exceptions.BaseError, ValueError, OSError) as error:
        raise SmaltiError(f"{address}: not an address of an object store: {first_line(error)}") from error


class BucketSigner:
    """Makes the addresses of the requests to one bucket; safe for threads. See preproc.reader.ranges.Signs.

    Args:
        archive: address of a file in the bucket.
    """

    def __init__(self, archive: str) -> None:
        self._bucket, _ = split_address(archive)
        self._store: Any = None
        self._lock = threading.Lock()

    def covers(self, href: str) -> bool:
        """Whether an href lies in the bucket."""
        return is_bucket(href) and split_address(href)[0] == self._bucket

    def sign(self, href: str) -> str:
        """The address of a request: presigned with credentials, public without; other hrefs stay as they are.

        Raises:
            SmaltiError: if the credentials cannot be used.
        """
        if not self.covers(href):
            return href
        _, path = split_address(href)
        token = _shared_access(self._bucket)
        if token:
            return f"{_own_address(self._bucket, path)}?{token}"
        if not (_has_obstore() and _has_key(self._bucket)):
            return _own_address(self._bucket, path)
        return self._presigned(href, unquote(path))

    def renew(self, href: str) -> str:
        """As `sign`: every address is new."""
        return self.sign(href)

    def _presigned(self, href: str, key: str) -> str:
        import obstore

        with self._lock:
            if self._store is None:
                bucket = self._bucket
                within = f"{bucket.account}/{bucket.name}" if bucket.account else bucket.name
                self._store = open_bucket(f"{bucket.scheme}://{within}")
        if self._bucket.scheme == "az" and not _PLAIN.fullmatch(key):
            # obstore signs the encoded path, Azure expects the signature of the decoded one.
            advice = "use a plain path, or AZURE_STORAGE_SAS_TOKEN instead of a key"
            raise SmaltiError(f"{href}: paths with blanks or other special characters cannot be signed: {advice}")
        try:
            return str(obstore.sign(self._store, "GET", key, VALID_FOR))
        except TypeError as error:  # empty or dotted parts
            raise SmaltiError(f"{href}: a path with //, . or .. in it cannot be signed: use a plain one") from error
        except (obstore.exceptions.BaseError, ValueError, OSError) as error:
            reason = f"the environment's credentials cannot sign ({first_line(error)})"
            raise SmaltiError(f"{href}: {reason}: set {_ADVICE[self._bucket.scheme]}") from error


def refusal_text(href: str, code: int) -> str:
    """What may be behind a server's answer for a file in an object store, to be appended to a message; or nothing."""
    if not is_bucket(href):
        return ""
    bucket, _ = split_address(href)
    if bucket.scheme == "s3" and code in (301, 400):
        return ": AWS_REGION must name the bucket's region, AWS_ENDPOINT_URL its store"
    signs = bool(_shared_access(bucket)) or (_has_obstore() and _has_key(bucket))
    # Azure hides private containers: 404, or 409 where the account has no public ones.
    if code in (401, 403) or (bucket.scheme == "az" and code in (404, 409) and not signs):
        if signs:
            known = "credentials are for the bucket of [archive] href, and those in the environment must open it"
            return f": {known}: look at {_ADVICE[bucket.scheme]}"
        missing = "" if _has_obstore() else f"obstore ({INSTALL}) and "
        return f": if the bucket is private, it takes {missing}{_ADVICE[bucket.scheme]} in the environment"
    return ""


def _own_address(bucket: Bucket, path: str) -> str:
    """Unsigned address of a file of the archive's bucket, at the endpoint that the environment names."""
    if bucket.scheme == "s3":
        endpoint = _first_set(("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    elif bucket.scheme == "az":
        endpoint = _first_set(("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"))
    else:
        endpoint = _first_set(("GOOGLE_BASE_URL",))
    if endpoint:
        return f"{endpoint.rstrip('/')}/{bucket.name}/{path}"
    within = f"{bucket.account}/{bucket.name}" if bucket.account else bucket.name
    return web_address(f"{bucket.scheme}://{within}/{path}")


def _has_key(bucket: Bucket) -> bool:
    return _may_sign(bucket) and _first_set(_KEYS[bucket.scheme]) is not None


def _shared_access(bucket: Bucket) -> str | None:
    """Azure's shared access signature, which is appended as it is."""
    token = _first_set(_SAS) if bucket.scheme == "az" and _may_sign(bucket) else None
    return None if token is None else token.lstrip("?")


def _may_sign(bucket: Bucket) -> bool:
    """Whether the environment's credentials are for this bucket, and wanted."""
    if os.environ.get(_UNSIGNED[bucket.scheme], "").lower() in ("1", "true", "yes", "on"):
        return False
    return bucket.scheme != "az" or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", bucket.account) == bucket.account


def _has_obstore() -> bool:
    return importlib.util.find_spec("obstore") is not None


def _first_set(names: Iterable[str]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def first_line(error: Exception) -> str:
    """What obstore says, without the inner structures that it prints after it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
