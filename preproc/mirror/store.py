"""Where a mirror is written: a folder, or an object store through obstore (S3, Azure, GCS, WebDAV)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from infer.contract import EXIT_FAILED, SmaltiError, atomic_file, write_bytes
from preproc.reader.buckets import first_line, open_bucket
from preproc.reader.hrefs import is_url
from preproc.reader.transport import ServiceError


class Store(Protocol):
    """Files by key (a relative path with slashes); each is there as a whole or not at all. Safe for threads."""

    address: str
    """For people."""

    def size(self, key: str) -> int | None:
        """Bytes of a file, None if it is not there."""

    def read(self, key: str) -> bytes | None:
        """A file's bytes, None if it is not there."""

    def put(self, key: str, path: Path) -> None:
        """Store a local file."""

    def put_bytes(self, key: str, content: bytes) -> None:
        """Store a small file."""


class FolderStore:
    """A folder on any file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.address = str(root)
        if root.exists() and not root.is_dir():
            raise SmaltiError(f"{root}: is a file: name a folder")

    def size(self, key: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        path = self._root / key
        return path.stat().st_size if path.is_file() else None

    def read(self, key: str) -> bytes | None:
        """A file's bytes, None if it is not there."""
        path = self._root / key
        return path.read_bytes() if path.is_file() else None

    def put(self, key: str, path: Path) -> None:
        """Store a local file, atomically."""
        with self._telling(key), atomic_file(self._root / key) as temporary:
            shutil.copyfile(path, temporary)

    def put_bytes(self, key: str, content: bytes) -> None:
        """Store a small file, atomically."""
        with self._telling(key):
            write_bytes(self._root / key, content)

    @contextmanager
    def _telling(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            said = error.strerror or str(error)
            raise SmaltiError(
                f"{self._root / key}: cannot be written ({said}): name a folder that can, or make room",
                exit_code=EXIT_FAILED,
            ) from error


class ObjectStore:
    """A bucket, container or WebDAV folder; credentials come from the environment, as their own tools expect them."""

    def __init__(self, url: str) -> None:
        self.address = url.rstrip("/")
        self._store: Any = open_bucket(self.address)
        import obstore

        self._obstore = obstore

    def size(self, key: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        try:
            return int(self._obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            return None
        except (self._obstore.exceptions.BaseError, OSError) as error:
            raise self._failed(key, "cannot be looked at", error) from error

    def read(self, key: str) -> bytes | None:
        """A file's bytes, None if it is not there."""
        try:
            return bytes(self._obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            return None
        except (self._obstore.exceptions.BaseError, OSError) as error:
            raise self._failed(key, "cannot be read", error) from error

    def put(self, key: str, path: Path) -> None:
        """Store a local file: in parts when it is large; it appears when the last one is there."""
        self._put(key, path)

    def put_bytes(self, key: str, content: bytes) -> None:
        """Store a small file."""
        self._put(key, content)

    def _put(self, key: str, content: Path | bytes) -> None:
        # WebDAV knows no multipart upload.
        multipart = False if self.address.startswith(("http://", "https://")) else None
        try:
            self._obstore.put(self._store, key, content, use_multipart=multipart)
        except (self._obstore.exceptions.BaseError, OSError) as error:
            raise self._failed(key, "cannot be written", error) from error

    def _failed(self, key: str, what: str, error: Exception) -> ServiceError:
        return ServiceError(f"{self.address}/{key}: {what}: {first_line(error)}")


def open_store(target: str) -> Store:
    """The store of an address: s3://, az://, gs://, https:// (WebDAV), or a path.

    Raises:
        SmaltiError: if it is no usable address, or obstore is not installed.
    """
    return ObjectStore(target) if is_url(target) else FolderStore(Path(target).absolute())
