"""Addresses of files: absolute, and without signatures. Pure."""

from __future__ import annotations

import os.path
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

SAS_KEYS = frozenset(
    ("sv", "ss", "srt", "sp", "st", "se", "spr", "sig", "sr", "skoid", "sktid", "skt", "ske", "sks", "skv", "sip", "si")
)
"""Query parameters of an Azure shared access signature."""

BUCKET_SCHEMES = ("s3", "gs", "az")
"""Of addresses in object stores: s3://bucket/key, gs://bucket/key, az://account/container/key."""


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
    if href.startswith("file://"):
        return unquote(urlsplit(href).path)
    if is_url(href) or href.startswith("/vsi"):
        return unsigned(href)
    if is_bucket(base):  # urljoin joins nothing to schemes that it does not know
        scheme, _, place = base.partition("://")
        return unsigned(f"{scheme}://{urljoin(f'https://{place}', href).removeprefix('https://')}")
    if is_url(base):
        return unsigned(urljoin(base, href))
    return os.path.normpath(Path(base).absolute().parent / href)


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
