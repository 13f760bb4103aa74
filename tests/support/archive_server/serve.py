"""Serve an archive as the live services do: a STAC API, files read in ranges with tokens, and a token endpoint.

`serve` is a context manager for tests; `python -m support.archive_server.serve ARCHIVE` serves until it is interrupted.
Needs the extra `smalti[serve]` (rustac, starlette, uvicorn). Everything listens on 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from infer.contract import SmaltiError, read_json
from support.archive_server.faults import Injector, Kind
from support.archive_server.tokens import Issuer

if TYPE_CHECKING:
    import uvicorn

    from support.archive_server.front import Exchange, Front

CONTAINERS = {
    "sentinel-2-l2a": "sentinel2l2a01/sentinel2-l2",
    "sentinel-1-rtc": "sentinel1euwestrtc/sentinel1-grd-rtc",
}
"""Collection -> account/container, named as Planetary Computer's; its files lie in ARCHIVE/<collection>."""
_INSTALL = "serving an archive needs `pip install 'smalti[serve]'`"
_START_S = 30.0


@dataclass(frozen=True)
class Served:
    """A served archive."""

    url: str
    """Address of the STAC API, which is also that of the server as a whole."""
    sas_url: str
    """Token endpoint: GET {sas_url}/{account}/{container}."""
    _front: Front

    @property
    def environment(self) -> dict[str, str]:
        """Variables that send the planetary-computer package to this server's tokens."""
        return {"PC_SDK_SAS_URL": self.sas_url}

    @property
    def log(self) -> list[Exchange]:
        """All requests so far, in the order of their arrival."""
        return list(self._front.log)

    def requests(self, kind: Kind | None = None, match: str = "") -> list[Exchange]:
        """Those of a kind whose path contains `match`."""
        return [e for e in self.log if (kind is None or e.seen.kind == kind) and match in e.seen.path]

    def bytes_sent(self, match: str = "") -> dict[str, int]:
        """Path of each file -> bytes of it that were sent."""
        sent: dict[str, int] = {}
        for exchange in self.requests("blob", match):
            sent[exchange.seen.path] = sent.get(exchange.seen.path, 0) + exchange.sent
        return sent

    def forget(self) -> None:
        """Empty the log."""
        self._front.log.clear()

    def spoil(self, faults: Injector | None) -> None:
        """Insert faults from now on, or none."""
        self._front.faults = faults

    def revoke_tokens(self) -> None:
        """Make all tokens issued so far worthless."""
        self._front.issuer.revoke()

    def live_for(self, seconds: float) -> None:
        """Issue tokens of this lifetime from now on."""
        self._front.issuer.lifetime_s = seconds


@contextmanager
def serve(
    folder: Path,
    *,
    token_lifetime_s: float = 2700.0,
    faults: Injector | None = None,
    port: int = 0,
) -> Iterator[Served]:
    """Serve an archive until the block ends; then every process, thread and port is gone.

    Args:
        folder: a simulated archive, or another one with items.json and a folder per collection.
        token_lifetime_s: how long tokens are good for.
        faults: asked about every request, see `faults`.
        port: of the front; 0 takes a free one.

    Raises:
        SmaltiError: if the folder is no archive, the extra is not installed, or a server does not start.
    """
    items = _items(folder)
    try:
        from support.archive_server.front import Front
    except ImportError as error:
        raise SmaltiError(f"{error.name} is not installed: {_INSTALL}") from error
    containers = {CONTAINERS[name]: folder / name for name in CONTAINERS if (folder / name).is_dir()}
    front = Front(containers, Issuer(token_lifetime_s), faults)
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(port))
        front.base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smalti-serve-")))
        (scratch / "items.json").write_text(json.dumps(_published(items, front.base)), encoding="utf-8")
        front.api = stack.enter_context(_stac_server(scratch, front.base))
        stack.enter_context(_http_server(front, listener))
        yield Served(front.base, f"{front.base}/sas", front)


def _items(folder: Path) -> dict[str, Any]:
    content = read_json(folder / "items.json", what="the item collection", remedy="name a folder with an archive")
    if not isinstance(content, dict) or not content.get("features"):
        raise SmaltiError(f"{folder / 'items.json'}: holds no items: name a folder with an archive")
    return content


def _published(items: dict[str, Any], base: str) -> dict[str, Any]:
    """The items with absolute, unsigned hrefs to this server's containers, and without links to files."""
    features = []
    for item in items["features"]:
        assets = {}
        for name, asset in item["assets"].items():
            collection, _, rest = str(asset["href"]).removeprefix("./").partition("/")
            if collection not in CONTAINERS:
                raise SmaltiError(f"item {item['id']}: asset {name} lies at {asset['href']}: cannot be served")
            assets[name] = {**asset, "href": f"{base}/{CONTAINERS[collection]}/{rest}"}
        features.append({**item, "assets": assets, "links": []})
    return {**items, "features": features}


@contextmanager
def _listen(port: int) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise SmaltiError(f"port {port}: cannot be listened on ({error.strerror}): choose another one") from error
        yield listener
    finally:
        listener.close()


@contextmanager
def _stac_server(scratch: Path, public: str) -> Iterator[str]:
    """A real STAC API over scratch/items.json, whose links point to `public`. Gives its own address."""
    program = shutil.which("rustac", path=str(Path(sys.executable).parent)) or shutil.which("rustac")
    if program is None:
        raise SmaltiError(f"rustac is not installed: {_INSTALL}")
    for _ in range(5):  # somebody else may take the free port between our look and rustac's bind
        with _listen(0) as probe:
            port = probe.getsockname()[1]
        command = [program, "serve", "--create-collections", "--addr", public, "--bind", f"127.0.0.1:{port}"]
        with (scratch / "rustac.log").open("wb") as output:
            process = subprocess.Popen([*command, str(scratch / "items.json")], stdout=output, stderr=output)
        try:
            if _answers(f"http://127.0.0.1:{port}/", process):
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    said = (scratch / "rustac.log").read_text(encoding="utf-8", errors="replace").strip()
    raise SmaltiError(f"rustac serve does not start: {said[-300:] or 'it says nothing'}")


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if requests.get(url, timeout=5).ok:
                return True
        except requests.ConnectionError:
            time.sleep(0.05)
    return False


@contextmanager
def _http_server(front: Front, listener: socket.socket) -> Iterator[None]:
    """The front in a thread of its own, until the block ends."""
    import uvicorn

    from support.archive_server.front import protocol_of

    config = uvicorn.Config(
        front,
        http=protocol_of(front),
        loop="asyncio",
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            server.run(sockets=[listener])
        except SystemExit as error:  # uvicorn's way to say that it could not start
            failed.append(error)

    thread = threading.Thread(target=work, name="smalti-serve", daemon=True)
    thread.start()
    try:
        _wait_started(server, thread)
        yield
    finally:
        server.should_exit = True
        front.stop()
        thread.join(15)
    if thread.is_alive() or failed:
        raise SmaltiError("the archive's HTTP server did not stop in order")


def _wait_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    until = time.monotonic() + _START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise SmaltiError("the archive's HTTP server does not start")
        time.sleep(0.01)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve an archive until interrupted, and say how to use it."""
    parser = argparse.ArgumentParser(prog="python -m support.archive_server.serve", description=serve.__doc__)
    parser.add_argument("archive", type=Path, help="folder of a simulated archive")
    parser.add_argument("--port", type=int, default=0, help="port of the server (default: a free one)")
    parser.add_argument("--token-lifetime", type=float, default=2700.0, help="seconds that a token is good for")
    chosen = parser.parse_args(arguments)
    # A shell starts what goes to the background (`make test &`) deaf to interrupts: this is for being interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with serve(chosen.archive, token_lifetime_s=chosen.token_lifetime, port=chosen.port) as served:
            print(f"STAC API and files: {served.url}\ntoken endpoint:     {served.sas_url}\n")
            print(f'in run.toml:  [archive] source = "mpc", url = "{served.url}"')
            print(f"and in the shell:  export PC_SDK_SAS_URL={served.sas_url}", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    except SmaltiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
