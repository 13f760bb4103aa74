"""`smalti view`: an atlas in the browser, served to this machine alone; of a run also the curves of its pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from infer.contract import Plan, Run, SmaltiError
from preproc.atlas.atlas import MARK
from preproc.survey.looks import curves_at

_STATIC, _LIVE = b'"live":false', b'"live":true'


class _Handler(SimpleHTTPRequestHandler):
    """Files of the folder, and no word about each; of a run `series?at=longitude,latitude`."""

    def __init__(self, *arguments: Any, run: tuple[Run, Plan] | None = None, **named: Any) -> None:
        self._run = run
        super().__init__(*arguments, **named)

    def do_GET(self) -> None:  # the name that the base class looks for
        """Answer one request."""
        parts = urlsplit(self.path)
        if self._run is None or parts.path not in ("/", "/index.html", "/series"):
            super().do_GET()
        elif parts.path == "/series":
            self._series(parse_qs(parts.query), *self._run)
        else:
            content = (Path(self.directory) / "index.html").read_bytes()
            self._send(content.replace(_STATIC, _LIVE, 1), "text/html; charset=utf-8")

    def _series(self, query: dict[str, list[str]], run: Run, plan: Plan) -> None:
        try:
            longitude, latitude = (float(part) for part in query["at"][0].split(","))
            if not (math.isfinite(longitude) and math.isfinite(latitude)):
                raise ValueError("not a place")
        except (KeyError, ValueError):
            self.send_error(400)
            return
        told: dict[str, Any]
        try:
            ndvi, radar = curves_at(run, plan, np.array([longitude, latitude]))
            told = {"ndvi": ndvi, "radar": radar}
        except SmaltiError as error:
            told = {"why": str(error)}
        self._send(json.dumps(told).encode(), "application/json")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def list_directory(self, path: Any) -> None:  # noqa: ARG002  # the library's name for it
        """Folders are not listed."""
        self.send_error(404)


@contextmanager
def serving(folder: Path, port: int, run: Run | None = None) -> Iterator[ThreadingHTTPServer]:
    """A server of an atlas on the loopback interface.

    Args:
        folder: of the atlas.
        port: 0 takes a free one.
        run: whose tiles tell the curves of a pixel; None serves files alone.

    Raises:
        SmaltiError: if it is no atlas, or no whole one, or the port is taken.
    """
    if not ((folder / MARK).is_file() and (folder / "index.html").is_file()):
        raise SmaltiError(f"{folder}: not an atlas: make one with `smalti atlas RUN`")
    handler = partial(_Handler, directory=str(folder), run=None if run is None else (run, Plan.read(run)))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise SmaltiError(f"port {port}: {error.strerror}: choose another with --port") from error
    try:
        yield server
    finally:
        server.server_close()
