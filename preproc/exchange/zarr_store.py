"""Opening somebody else's Zarr v3 store to read: a folder, an address, or an Icechunk repository of either.

What it says of itself is not believed: an array's chunks, what is fetched of them and what they unpack to are bounded.
"""

from __future__ import annotations

import importlib.util
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.registry import register_codec
from zarr.storage import LocalStore, ObjectStore

from infer.contract import SmaltiError
from preproc.reader.buckets import first_line, open_bucket, split_address

_ENDING = ".icechunk"
"""Of an address: what is at the other end is not looked at before it is opened."""
_MOST_METADATA = 1 << 24
"""Bytes of a zarr.json; with the arrays of 60 zones it has some 200 000."""
_MOST_CHUNK = 1 << 28
"""Bytes of a chunk, which is held as a whole when any pixel of it is read; published are 128 KiB."""
_MOST_INDEX = 1 << 26
"""Bytes of the index of a shard, 16 a chunk; published are 256 KiB."""
_MOST_PIECES = 1 << 19
"""Chunks of a window of _WINDOW pixels along each side, which are asked for one by one."""
_WINDOW = 1024
_CODECS = {"bytes", "endian", "crc32c", "transpose", "sharding_indexed", "blosc", "gzip", "zstd"}
"""Those whose output can be foretold or measured."""
_CHECKSUMS = 64
"""Bytes that codecs add to those of the numbers."""


def open_group(source: str) -> tuple[zarr.Group, str | None]:
    """The root of a store; of an Icechunk repository its branch `main`, and which snapshot that is now.

    Raises:
        SmaltiError: if it is no store that can be read, or the package for it is not here.
    """
    try:
        if is_icechunk(source):
            store, snapshot = _icechunk(source)
            with bounded():
                return zarr.open_group(store, mode="r", zarr_format=3), snapshot
        plain: Any = (
            _Address(open_bucket(source), read_only=True) if "://" in source else _Folder(source, read_only=True)
        )
        with bounded():  # arrays of consolidated metadata are made here
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


class _Folder(LocalStore):
    """A folder, of whose files (there are those with holes, as long as you like) no more is read than fits."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As the base class."""
        path = Path(self.root) / key
        asked = _asked(byte_range)
        if asked is None and path.is_file():
            asked = path.stat().st_size
        if asked is not None and asked > _limit(key):
            raise _too_long(key, _limit(key))
        return await super().get(key, prototype, byte_range)


class _Address(ObjectStore):  # type: ignore[type-arg]  # of any of obstore's
    """A bucket or web server, from which no more is taken than was asked for, whatever it sends."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As the base class."""
        import obstore

        asked = _asked(byte_range)
        limit = _limit(key)
        if asked is not None and asked > limit:
            raise _too_long(key, limit)
        try:
            found = await obstore.get_async(self.store, key, options=_range(byte_range))
        except obstore.exceptions.NotSupportedError:  # Azure's, of the end of an object: the base class asks otherwise
            return await self._otherwise(key, prototype, byte_range)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        parts, held = [], 0
        async for part in found.stream():
            held += len(part)
            if held > (limit if asked is None else asked):
                raise _too_long(key, limit if asked is None else asked)
            parts.append(bytes(part))
        return prototype.buffer.from_bytes(b"".join(parts))

    async def _otherwise(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        import obstore

        try:
            return await super().get(key, prototype, byte_range)
        except obstore.exceptions.NotSupportedError as error:
            raise SmaltiError(
                "its server sends no parts of files (HTTP Range), which are all that is wanted of a shard: copy the "
                "store to a folder, or to another server"
            ) from error


def _asked(byte_range: ByteRequest | None) -> int | None:
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.end - byte_range.start
    return byte_range.suffix if isinstance(byte_range, SuffixByteRequest) else None


def _range(byte_range: ByteRequest | None) -> Any:
    """In obstore's words."""
    if isinstance(byte_range, RangeByteRequest):
        return {"range": (byte_range.start, byte_range.end)}
    if isinstance(byte_range, SuffixByteRequest):
        return {"range": {"suffix": byte_range.suffix}}
    return {"range": {"offset": byte_range.offset}} if isinstance(byte_range, OffsetByteRequest) else {}


def _limit(key: str) -> int:
    return _MOST_METADATA if key.endswith("zarr.json") else _MOST_CHUNK


def _too_long(key: str, limit: int) -> SmaltiError:
    return SmaltiError(f"{key} has more than {limit} bytes: name another store")


class _Zstd(ZstdCodec):
    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return _unpacked(chunk_bytes, chunk_spec, "zstd")


class _Gzip(GzipCodec):
    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return _unpacked(chunk_bytes, chunk_spec, "gzip")


class _Blosc(BloscCodec):
    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        head = bytes(chunk_bytes.as_numpy_array()[:16])
        if len(head) < 16 or struct.unpack_from("<I", head, 4)[0] > _room(chunk_spec):
            raise _bomb(chunk_spec)
        return super()._decode_sync(chunk_bytes, chunk_spec)


_BOUNDED = {"zstd": _Zstd, "gzip": _Gzip, "blosc": _Blosc}
for _name, _codec in _BOUNDED.items():
    register_codec(_name, _codec, qualname=f"{__name__}.{_codec.__name__}")


def _room(spec: ArraySpec) -> int:
    """Bytes that a chunk has when it is unpacked."""
    item: int = getattr(spec.dtype, "item_size", _CHECKSUMS)
    return math.prod(spec.shape) * item + _CHECKSUMS


def _unpacked(packed: Buffer, spec: ArraySpec, kind: str) -> Buffer:
    """No more of it than there is room for: a header need not say how much will come."""
    room = _room(spec)
    try:
        with pa.input_stream(pa.py_buffer(packed.to_bytes()), compression=kind) as stream:
            content = stream.read(room + 1)
    except OSError as error:
        raise ValueError(f"error during {kind} decompression: {error}") from error
    if len(content) > room:
        raise _bomb(spec)
    return spec.prototype.buffer.from_bytes(content)


def _bomb(spec: ArraySpec) -> SmaltiError:
    return SmaltiError(f"a chunk unpacks to more than the {_room(spec)} bytes of its numbers: name another store")


@contextmanager
def bounded() -> Iterator[None]:
    """Arrays that are opened here unpack no more of a chunk than its shape has room for."""
    with zarr.config.set({f"codecs.{name}": f"{__name__}.{codec.__name__}" for name, codec in _BOUNDED.items()}):
        yield


def check_array(array: Any) -> None:
    """Refuse an array of which a window cannot be read in bounded memory and time.

    Raises:
        SmaltiError: without the array's name.
    """
    chunks = tuple(int(side) for side in array.chunks)
    if math.prod(chunks) * array.dtype.itemsize > _MOST_CHUNK:
        raise SmaltiError(f"a chunk of its arrays takes more than {_MOST_CHUNK >> 20} MiB: name another store")
    if math.prod(array.shards or chunks) // math.prod(chunks) * 16 > _MOST_INDEX:
        raise SmaltiError("a shard of its arrays has more chunks than an index can hold: name another store")
    if (
        math.prod(-(-min(n, _WINDOW) // side) for n, side in zip(array.shape[1:], chunks[1:], strict=True))
        > _MOST_PIECES
    ):
        raise SmaltiError(f"its chunks, {chunks}, are too small to be read one by one: name another store")
    for name in sorted(_names(array.metadata.codecs) - _CODECS):
        raise SmaltiError(f"its arrays are packed by {name[:60]!r}, which may unpack to anything: name another store")


def _names(codecs: Any) -> set[str]:
    """Of codecs, and of those within a shard."""
    found: set[str] = set()
    for codec in codecs:
        found.add(str(codec.to_dict()["name"]))
        found |= _names([*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ())])
    return found


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
