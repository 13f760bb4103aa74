"""Opening somebody else's Zarr v3 store to read: a folder, an address, or an Icechunk repository of either."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer.contract import SmaltiError
from preproc.reader.buckets import first_line, open_bucket, split_address

if TYPE_CHECKING:
    import zarr

_ENDING = ".icechunk"
"""Of an address: what is at the other end is not looked at before it is opened."""


def open_group(source: str) -> tuple[zarr.Group, str | None]:
    """The root of a store; of an Icechunk repository its branch `main`, and which snapshot that is now.

    Raises:
        SmaltiError: if it is no store that can be read, or the package for it is not here.
    """
    import zarr
    from zarr.storage import LocalStore, ObjectStore

    try:
        if is_icechunk(source):
            store, snapshot = _icechunk(source)
            return zarr.open_group(store, mode="r", zarr_format=3), snapshot
        plain = (
            ObjectStore(open_bucket(source), read_only=True) if "://" in source else LocalStore(source, read_only=True)
        )
        return zarr.open_group(plain, mode="r", zarr_format=3), None
    except store_errors() as error:
        said = first_line(error)
        raise SmaltiError(f"{source}: not a Zarr v3 store that can be read ({said}): check the address") from error


def is_icechunk(source: str) -> bool:
    """Whether a source is an Icechunk repository: a folder that looks so, or an address that ends so."""
    if "://" in source:
        return source.rstrip("/").endswith(_ENDING)
    return (Path(source) / "snapshots").is_dir() and not (Path(source) / "zarr.json").exists()


def _icechunk(source: str) -> tuple[Any, str]:
    if importlib.util.find_spec("icechunk") is None:
        raise SmaltiError(f"{source}: an Icechunk repository: pip install 'smalti[icechunk]' reads it")
    import icechunk

    icechunk.set_logs_filter("error")  # it warns of writers of local folders, which nobody is here
    session = icechunk.Repository.open(_storage(source)).readonly_session("main")
    return session.store, session.snapshot_id


def _storage(source: str) -> Any:
    """Where a repository lies; endpoint and credentials come from the environment, as for all buckets."""
    import icechunk

    if "://" not in source:
        return icechunk.local_filesystem_storage(source)
    bucket, path = split_address(source)
    if bucket.scheme == "gs":
        return icechunk.gcs_storage(bucket=bucket.name, prefix=path, from_env=True)
    if bucket.scheme != "s3":
        raise SmaltiError(f"{source}: Icechunk repositories are read from folders, s3:// and gs://: copy it to one")
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    unsigned = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("true", "1")
    return icechunk.s3_storage(
        bucket=bucket.name,
        prefix=path,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        endpoint_url=endpoint,
        allow_http=endpoint is not None and endpoint.startswith("http://"),
        force_path_style=endpoint is not None,
        anonymous=unsigned or None,
        from_env=None if unsigned else True,
    )


def store_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged or unreachable store raises."""
    found: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, KeyError, RuntimeError)
    if importlib.util.find_spec("obstore") is not None:
        import obstore

        found = (*found, obstore.exceptions.BaseError)
    if importlib.util.find_spec("icechunk") is not None:
        import icechunk

        found = (*found, icechunk.IcechunkError)
    return found
