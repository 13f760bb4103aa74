"""A remote TIFF as a sparse local file: only the bytes that a window needs are fetched, each once; GDAL decodes them.

The file has no name: it vanishes with the process, however it ends.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from infer.contract import writing
from preproc.reader.ranges import RangeClient
from preproc.reader.tiff_layout import BlockLayout, LayoutError, read_layout

HEADER_BYTES = 16384
"""Fetched at open: the directories of most COGs. What lies beyond is fetched when it is needed."""
MERGE_GAP = 8192
"""Ranges so close together are fetched with one request: the bytes between cost less than another one."""
MOST_SIZE = 1 << 40
"""Bytes of a file."""
MOST_BYTES = 32 << 20
"""Of one request, so that a retry does not repeat too much."""


def merged(ranges: list[tuple[int, int]], gap: int = MERGE_GAP, most: int = MOST_BYTES) -> list[tuple[int, int]]:
    """Sorted ranges, those that nearly touch joined, none of them longer than `most` unless it was."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1] + gap and max(end, joined[-1][1]) - joined[-1][0] <= most:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


class RemoteFile:
    """One remote file, open; for one thread."""

    def __init__(self, client: RangeClient, href: str, header_bytes: int = HEADER_BYTES) -> None:
        self._client, self._href = client, href
        self._present: list[tuple[int, int]] = []
        content, self.size = client.get(href, 0, header_bytes)
        if self.size > MOST_SIZE:
            raise LayoutError(f"it has {self.size} bytes, as the server says: no raster is as large")
        with writing(Path(tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by close()
        self._descriptor = self._file.fileno()
        os.ftruncate(self._descriptor, self.size)
        self._store(0, content)

    @property
    def path(self) -> str:
        """Where GDAL can open it."""
        return f"/proc/self/fd/{self._descriptor}"

    def layout(self) -> BlockLayout:
        """The blocks of the file.

        Raises:
            LayoutError: if it is not a TIFF.
        """
        return read_layout(self)

    def read(self, start: int, end: int) -> bytes:
        """Some bytes, fetched if they are not here yet."""
        self.ensure([(start, end)])
        return os.pread(self._descriptor, end - start, start)

    def ensure(self, ranges: list[tuple[int, int]]) -> None:
        """Fetch what is not here yet.

        Raises:
            LayoutError: if the file is shorter than that, or another one by now.
        """
        within = [(start, min(end, self.size)) for start, end in ranges]
        if any(start >= end for start, end in within):
            raise LayoutError(f"it has {self.size} bytes and should have more: the file on the server is cut short")
        for start, end in merged([gap for part in within for gap in self._gaps(*part)]):
            content, size = self._client.get(self._href, start, end)
            if size != self.size:
                raise LayoutError("it changed on the server while it was read")
            self._store(start, content)

    def _gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of a range is not here."""
        gaps = []
        for first, last in self._present:  # sorted and apart
            if first > start:
                gaps.append((start, min(first, end)))
            start = max(start, last)
            if start >= end:
                break
        else:
            gaps.append((start, end))
        return [(left, right) for left, right in gaps if left < right]

    def _store(self, start: int, content: bytes) -> None:
        with writing(Path(tempfile.gettempdir())):
            os.pwrite(self._descriptor, content, start)
        self._present = merged([*self._present, (start, start + len(content))], gap=0, most=1 << 62)

    def close(self) -> None:
        """Give the space back."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
