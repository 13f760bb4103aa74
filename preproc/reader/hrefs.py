"""Addresses of files: absolute, and without signatures. Pure."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

SAS_KEYS = frozenset(
    ("sv", "ss", "srt", "sp", "st", "se", "spr", "sig", "sr", "skoid", "sktid", "skt", "ske", "sks", "skv", "sip", "si")
)
"""Query parameters of an Azure shared access signature."""

BUCKET_SCHEMES = ("s3", "gs", "az")
"""Of addresses in object stores: s3://bucket/key, gs://bucket/key, az://account/container/key."""

_SCHEMES = ("http", "https", *BUCKET_SCHEMES)
_FROM_NETWORK = "a file of this machine, named by a catalogue that came over the network"


def is_url(href: str) -> bool:
    """Whether an href has a scheme (http, https, s3 ...)."""
    return "://" in href


def is_bucket(href: str) -> bool:
    """Whether an href is an address in an object store."""
    return is_url(href) and urlsplit(href).scheme.lower() in BUCKET_SCHEMES


def unsigned(href: str) -> str:
    """The href without a shared access signature, should it carry one; other queries stay.

    A stored token would expire, and signing would then leave it as it is.
    """
    parts = urlsplit(href)
    if not is_url(href) or not parts.query:
        return href
    query = parse_qsl(parts.query, keep_blank_values=True)
    names = {name for name, _ in query}
    if not {"sig", "se"} <= names:
        return href
    kept = [(name, value) for name, value in query if name not in SAS_KEYS]
    return urlunsplit(parts._replace(query=urlencode(kept)))


def absolute(href: str, base: str) -> str:
    """An href made absolute and unsigned.

    Args:
        href: path or URL, perhaps relative.
        base: path or URL of the file that it stands in; what is relative is relative to its folder.
    """
    if href.lower().startswith("file://") and not is_url(base):
        return os.path.normpath(unquote(urlsplit(href).path))
    if is_url(href) or href.startswith("/vsi"):
        return unsigned(href)
    if is_bucket(base):  # urljoin joins nothing to schemes that it does not know
        scheme, _, place = base.partition("://")
        return unsigned(f"{scheme}://{urljoin(f'https://{place}', href).removeprefix('https://')}")
    if is_url(base):
        return unsigned(urljoin(base, href))
    return os.path.normpath(Path(base).absolute().parent / href)


def beyond(href: str, folders: Sequence[str]) -> str:
    """Why an archive's item may not name a file, or an empty text if it may.

    What came over the network may point to the network only, what came from a folder to that folder as well, and to
    those that the user named.

    Args:
        href: absolute.
        folders: absolute paths; none for an archive on the network.
    """
    if not href.startswith("/"):
        scheme = _scheme(href)
        if scheme in _SCHEMES:
            return ""
        return f"smalti does not read {scheme}: addresses" if scheme not in ("", "file") else _FROM_NETWORK
    if any(Path(href).is_relative_to(folder) for folder in folders):
        return ""
    if not folders:
        return _FROM_NETWORK
    return f"it lies outside {folders[0]}: name its folder in [archive] also, if it belongs to the archive"


def _scheme(href: str) -> str:
    try:
        parts = urlsplit(href)
        return parts.scheme.lower() if parts.netloc else ""
    except ValueError:  # http://[
        return "such"


def portable(href: str, folder: Path, root: Path) -> str:
    """An absolute href as it is best stored: relative to `folder` if it is a file at or beside the run.

    A run that is moved together with the archive beside it keeps its plan and its tiles.

    Args:
        href: absolute path or URL.
        folder: where the file that will hold the href lies.
        root: the run directory.
    """
    if is_url(href) or not Path(href).is_relative_to(root.absolute().parent):
        return href
    return os.path.relpath(href, folder.absolute())
