"""`smalti view`: an atlas in the browser, served to this machine alone, with a run's curves, and labels saved.

Other pages that the browser has open, and other people of a login node, reach the port as well. Hence: the Host header
has to be this machine's own name (a foreign name that leads here is refused), and whoever sends labels has to come
from this page and know the key in the address that `smalti view` prints.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from infer.contract import Plan, Run, SmaltiError, write_bytes
from preproc.atlas.atlas import MARK
from preproc.atlas.drawn import MOST_BYTES, drawn_from, read_drawn
from preproc.survey.looks import curves_at

_STATIC = b'"live":false'
"""In the page as it lies in the folder: nobody but a file server answers it."""
_HERE = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
"""Any port: a tunnel may have another one at home. It is the name that tells a foreign page."""
_JSON = "application/json"


@dataclass(frozen=True)
class Viewing:
    """What a server knows beside the files of the atlas."""

    run: tuple[Run, Plan] | None = None
    """Whose tiles tell the curves of a pixel."""
    labels: Path | None = None
    """The GeoPackage that saved labels go to; without, the browser gets it as a download."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    """Those who know it may send labels."""
    lock: Any = field(default_factory=Lock)
    """Labels are written one after the other."""

    def told(self) -> dict[str, Any]:
        """For the page."""
        return {"curves": self.run is not None, "labels": None if self.labels is None else self.labels.name}

    def digest(self) -> str:
        """Of the file of labels as it is now; empty without one."""
        there = self.labels is not None and self.labels.exists()
        return hashlib.sha256(self.labels.read_bytes()).hexdigest() if self.labels is not None and there else ""


class _Handler(SimpleHTTPRequestHandler):
    """Files of the folder, and no word about each; `series?at=longitude,latitude` of a run; `labels`, both ways."""

    timeout = 60
    """Seconds of silence after which a connection is given up."""

    def __init__(self, *arguments: Any, viewing: Viewing, **named: Any) -> None:
        self._viewing = viewing
        super().__init__(*arguments, **named)

    def parse_request(self) -> bool:
        """Read the request's head; whether it is to be answered."""
        if not super().parse_request():
            return False
        named = self.headers.get_all("Host", [])
        if len(named) == 1 and _HERE.fullmatch(named[0]):
            return True
        self._refuse(403, "smalti view answers to localhost alone")
        return False

    def do_GET(self) -> None:  # the name that the base class looks for
        """Answer one request."""
        parts = urlsplit(self.path)
        if parts.path == "/series" and self._viewing.run is not None:
            self._series(parse_qs(parts.query), *self._viewing.run)
        elif parts.path == "/labels" and self._viewing.labels is not None:
            self._kept(self._viewing.labels)
        elif parts.path in ("/", "/index.html"):
            content = (Path(self.directory) / "index.html").read_bytes()
            live = b'"live":' + json.dumps(self._viewing.told()).replace("<", "\\u003c").encode()
            self._send(content.replace(_STATIC, live, 1), "text/html; charset=utf-8")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        """Take the labels of the page: into the file that was named, or back as one."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Origin") != f"http://{self.headers['Host']}" or not self._knows():
            self._refuse(403, "this page was opened without the key that smalti view printed")
        elif self.path != "/labels":
            self._refuse(404, "nothing is taken here but labels")
        elif not re.fullmatch(r"[0-9]{1,12}", length):
            self._refuse(411, "how long is it?")
        elif int(length) > MOST_BYTES:
            self._refuse(413, f"more than {MOST_BYTES >> 20} MB of labels")
        else:
            self._take(self.rfile.read(int(length)))

    def _knows(self) -> bool:
        return secrets.compare_digest(self.headers.get("X-Smalti-Key", "").encode(), self._viewing.key.encode())

    def _take(self, content: bytes) -> None:
        path = self._viewing.labels
        try:
            drawn = drawn_from(content)
            with self._viewing.lock:
                made = drawn.as_geopackage()
                if path is None:
                    self._send(made, "application/geopackage+sqlite3")
                    return
                if self.headers.get("If-Match", "") != self._viewing.digest():
                    self._refuse(412, f"{path.name} has changed since this page was opened: reload the page")
                    return
                if path.exists():
                    read_drawn(path)  # nobody else has it open
                write_bytes(path, made)
                told = {"labels": len(drawn.classes), "path": str(path.resolve()), "digest": self._viewing.digest()}
            self._send(json.dumps(told).encode(), _JSON)
        except SmaltiError as error:
            self._refuse(409 if path is not None else 400, str(error))
        except OSError as error:
            self._refuse(500, f"{path}: {error.strerror}")

    def _kept(self, path: Path) -> None:
        """The labels that are in the file already."""
        if not self._knows():
            self._refuse(403, "this page was opened without the key that smalti view printed")
            return
        try:
            with self._viewing.lock:
                features = read_drawn(path).as_geojson()["features"] if path.exists() else []
                told = {"features": features, "digest": self._viewing.digest()}
            self._send(json.dumps(told).encode(), _JSON)
        except SmaltiError as error:
            self._refuse(409, str(error))

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
        self._send(json.dumps(told).encode(), _JSON)

    def _send(self, content: bytes, kind: str, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, code: int, why: str) -> None:
        self.close_connection = True
        self._send(why.encode(errors="replace"), "text/plain; charset=utf-8", code)

    def end_headers(self) -> None:
        """No other page may use what is answered, nor show it in a frame."""
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def list_directory(self, path: Any) -> None:  # noqa: ARG002  # the library's name for it
        """Folders are not listed."""
        self.send_error(404)


@contextmanager
def serving(
    folder: Path, port: int, run: Run | None = None, labels: Path | None = None
) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """A server of an atlas on the loopback interface, and the address at which its page may save.

    Args:
        folder: of the atlas.
        port: 0 takes a free one.
        run: whose tiles tell the curves of a pixel; None tells none.
        labels: a GeoPackage, new or written here before, that saved labels go to; None gives it to the browser.

    Raises:
        SmaltiError: if it is no atlas, or no whole one, the labels cannot go there, or the port is taken.
    """
    if not ((folder / MARK).is_file() and (folder / "index.html").is_file()):
        raise SmaltiError(f"{folder}: not an atlas: make one with `smalti atlas RUN`")
    if labels is not None:
        if labels.suffix != ".gpkg" or not labels.parent.is_dir():
            raise SmaltiError(f"{labels}: --labels names a GeoPackage (.gpkg), new or not, in a folder that is there")
        if labels.exists():
            read_drawn(labels)
    viewing = Viewing(None if run is None else (run, Plan.read(run)), labels)
    handler = partial(_Handler, directory=str(folder), viewing=viewing)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise SmaltiError(f"port {port}: {error.strerror}: choose another with --port") from error
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/#{viewing.key}"
    finally:
        server.server_close()
