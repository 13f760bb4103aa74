"""`smalti view`: an atlas in the browser, served to this machine alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from infer.contract import SmaltiError
from preproc.atlas.atlas import MARK


class _Handler(SimpleHTTPRequestHandler):
    """Files of the folder, and no word about each."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def list_directory(self, path: Any) -> None:  # noqa: ARG002  # the library's name for it
        """Folders are not listed."""
        self.send_error(404)


@contextmanager
def serving(folder: Path, port: int) -> Iterator[ThreadingHTTPServer]:
    """A server of an atlas on the loopback interface.

    Args:
        folder: of the atlas.
        port: 0 takes a free one.

    Raises:
        SmaltiError: if it is no atlas, or the port is taken.
    """
    if not (folder / MARK).is_file():
        raise SmaltiError(f"{folder}: not an atlas: make one with `smalti atlas RUN`")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise SmaltiError(f"port {port}: {error.strerror}: choose another with --port") from error
    try:
        yield server
    finally:
        server.server_close()
