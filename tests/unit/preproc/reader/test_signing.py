"""Tokens: asked for once, shared by all processes, renewed in time, and never stored with the items."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from support.service import Answer, Request, Service, json_answer, serve

from infer.contract import EXIT_TRY_AGAIN, Run, SmaltiError
from preproc.reader.signing import Signer, Token, make_signer
from preproc.reader.transport import ServiceError, TransientError
from preproc.run.config import Archive, Config

HREF = "https://account.blob.core.windows.net/container/a/B02.tif"
OTHER = "https://account.blob.core.windows.net/another/a/B02.tif"


def no_wait(fault: TransientError) -> float:
    return 0.0


def issued(number: int, life_s: float, **headers: str) -> Answer:
    expiry = datetime.now(UTC) + timedelta(seconds=life_s)
    return json_answer({"msft:expiry": expiry.isoformat(), "token": f"se=x&sig=token{number}"}, **headers)


@contextmanager
def tokens(life_s: float = 2700, before: Callable[[int], Answer | None] = lambda number: None) -> Iterator[Service]:
    """A token endpoint that numbers its tokens; `before` may answer something else to the n-th request."""
    count, lock = 0, threading.Lock()

    def answer(request: Request) -> Answer:
        nonlocal count
        with lock:
            count += 1
            number = count
        return before(number) or issued(number, life_s)

    with serve(answer) as service:
        yield service


def signer(service: Service, folder: Path, **more: object) -> Signer:
    return Signer(folder / "tokens.json", sas_url=service.url, wait=no_wait, **more)  # type: ignore[arg-type]  # a test's shortcut


def test_one_request_a_container(tmp_path: Path) -> None:
    with tokens() as service:
        sign = signer(service, tmp_path).sign
        assert sign(HREF) == f"{HREF}?se=x&sig=token1"
        assert sign(HREF.replace("B02", "B03")).endswith("sig=token1")
        assert sign(OTHER).endswith("sig=token2")
        assert service.paths() == ["/account/container", "/account/another"]


@pytest.mark.parametrize(
    "href",
    [
        "/data/B02.tif",
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com/a/b/B02.tif",
        "https://ai4edatasetspublicassets.blob.core.windows.net/assets/x.png",
        "s3://bucket/a/b.tif",
        "http://127.0.0.1:8000/only-one-segment.tif",
        "http://example.org/account/container/blob.tif",
    ],
)
def test_other_hrefs_stay_as_they_are(tmp_path: Path, href: str) -> None:
    with tokens() as service:
        assert signer(service, tmp_path).sign(href) == href
        assert signer(service, tmp_path).renew(href) == href
        assert service.requests == []
    assert list(tmp_path.iterdir()) == []


def test_path_style_on_loopback_is_signed_only_with_another_endpoint(tmp_path: Path) -> None:
    href = "http://127.0.0.1:10000/account/container/a/B02.tif"
    with tokens() as service:
        assert signer(service, tmp_path).sign(href) == f"{href}?se=x&sig=token1"
        assert service.paths() == ["/account/container"]
        assert signer(service, tmp_path / "x", emulated=False).sign(href) == href
    assert Signer(tmp_path / "tokens.json").sign(href) == href


def test_an_expired_signature_in_the_href_is_replaced(tmp_path: Path) -> None:
    with tokens() as service:
        assert signer(service, tmp_path).sign(f"{HREF}?se=old&sig=old") == f"{HREF}?se=x&sig=token1"
        assert signer(service, tmp_path).sign(f"{HREF}?versionId=3") == f"{HREF}?versionId=3&se=x&sig=token1"


def test_processes_share_the_tokens_through_a_private_file(tmp_path: Path) -> None:
    with tokens() as service:
        first, second = signer(service, tmp_path), signer(service, tmp_path)
        assert first.sign(HREF) == second.sign(HREF)
        assert len(service.requests) == 1
    cache = tmp_path / "tokens.json"
    assert cache.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tokens.json.lock").stat().st_mode & 0o777 == 0o600


def test_another_endpoints_tokens_are_not_used(tmp_path: Path) -> None:
    with tokens() as one, tokens() as two:
        signer(one, tmp_path).sign(HREF)
        signer(two, tmp_path).sign(HREF)
        assert len(two.requests) == 1


def _sign_in_process(url: str, folder: str, results: multiprocessing.Queue[str]) -> None:
    mine = Signer(Path(folder) / "tokens.json", sas_url=url)
    with ThreadPoolExecutor(4) as pool:
        for href in pool.map(mine.sign, [HREF] * 8):
            results.put(href)


def test_many_processes_and_threads_ask_once(tmp_path: Path) -> None:
    def slow(number: int) -> None:
        time.sleep(0.3)  # long enough for all to arrive while the first still waits

    with tokens(before=slow) as service:
        context = multiprocessing.get_context("spawn")
        results: multiprocessing.Queue[str] = context.Queue()
        workers = [
            context.Process(target=_sign_in_process, args=(service.url, str(tmp_path), results)) for _ in range(3)
        ]
        for worker in workers:
            worker.start()
        hrefs = {results.get(timeout=60) for _ in range(3 * 8)}
        for worker in workers:
            worker.join()
        assert hrefs == {f"{HREF}?se=x&sig=token1"}
        assert len(service.requests) == 1


def test_a_token_is_renewed_ahead_of_its_expiry(tmp_path: Path) -> None:
    with tokens(life_s=2.0) as service:
        one = signer(service, tmp_path)
        first = one.sign(HREF)
        assert one.sign(HREF) == first
        time.sleep(1.9)  # a fifth of its life before the end it is no longer handed out
        assert one.sign(HREF) == f"{HREF}?se=x&sig=token2"


@pytest.mark.parametrize(
    ("age", "life", "jitter", "fresh"),
    [
        (0, 2700, 0.0, True),
        (2399, 2700, 0.0, True),
        (2401, 2700, 0.0, False),
        (2281, 2700, 1.0, False),
        (2279, 2700, 1.0, True),
        (79, 100, 0.5, True),
        (81, 100, 0.5, False),
        (0, 0, 0.5, False),
    ],
)
def test_when_a_token_is_too_old(age: float, life: float, jitter: float, fresh: bool) -> None:
    assert Token("", 1000.0, 1000.0 + life).fresh(1000.0 + age, jitter) is fresh


def test_renew_replaces_a_token_that_a_server_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tokens() as service:
        one = signer(service, tmp_path)
        one.sign(HREF)
        later = time.time() + 60
        monkeypatch.setattr("preproc.reader.signing.time.time", lambda: later)
        assert one.renew(HREF).endswith("token2")
        assert one.renew(HREF).endswith("token2"), "a hundred threads that are refused at once need one new token"
        assert signer(service, tmp_path).renew(HREF).endswith("token2")
        assert one.sign(HREF).endswith("token2")
        assert len(service.requests) == 2


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]", '{"a": 1}', None])
def test_a_cache_that_is_not_readable_is_an_empty_one(tmp_path: Path, content: str | None) -> None:
    if content is None:
        os.mkfifo(tmp_path / "tokens.json")
    else:
        (tmp_path / "tokens.json").write_text(content)
    with tokens() as service:
        assert signer(service, tmp_path).sign(HREF).endswith("token1")
    assert json.loads((tmp_path / "tokens.json").read_text())


@pytest.mark.parametrize(
    "fault",
    [
        Answer(429, b"Rate limit is exceeded. Try again in 23 seconds."),
        Answer(404, b"Resource not found"),
        Answer(503, b"ServerBusy"),
        Answer(500),
        Answer(200, b"<html>maintenance</html>"),
        json_answer({"msft:expiry": "soon", "token": "x"}),
        json_answer({"token": "x"}),
    ],
    ids=lambda answer: f"{answer.status} {answer.body[:9].decode()}",
)
def test_passing_faults_are_retried(tmp_path: Path, fault: Answer) -> None:
    with tokens(before=lambda number: fault if number < 4 else None) as service:
        assert signer(service, tmp_path).sign(HREF).endswith("token4")
        assert len(service.requests) == 4


def test_the_wait_that_the_service_asks_for_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("preproc.reader.transport.time.sleep", waits.append)
    faults = {
        1: Answer(429, b'{"statusCode":429,"message":"Rate limit is exceeded. Try again in 23 seconds."}'),
        2: Answer(503, b"", {"Retry-After": "7"}),
        3: Answer(503, b"", {"Retry-After": "86400"}),
    }
    with tokens(before=faults.get) as service:
        Signer(tmp_path / "tokens.json", sas_url=service.url).sign(HREF)
    assert all(0 <= wait - asked <= 2 for wait, asked in zip(waits, (23, 7, 120), strict=True))


def test_a_service_that_stays_throttled_is_named_with_what_helps(tmp_path: Path) -> None:
    with tokens(before=lambda number: Answer(429, b"slow down")) as service:
        with pytest.raises(
            ServiceError,
            match=r"/account/container: no token, 8 tries: the server answers 429 slow down: try again later",
        ):
            signer(service, tmp_path).sign(HREF)
        with pytest.raises(ServiceError, match="PC_SDK_SUBSCRIPTION_KEY") as caught:
            signer(service, tmp_path).sign(HREF)
        assert caught.value.exit_code == EXIT_TRY_AGAIN


def test_a_refused_key_is_not_retried(tmp_path: Path) -> None:
    with tokens(before=lambda number: Answer(401, b"invalid subscription key")) as service:
        with pytest.raises(SmaltiError, match="401 invalid subscription key: check PC_SDK_SUBSCRIPTION_KEY"):
            signer(service, tmp_path, subscription_key="k").sign(HREF)
        assert len(service.requests) == 1


def test_no_service_at_all(tmp_path: Path) -> None:
    one = Signer(tmp_path / "tokens.json", sas_url="http://127.0.0.1:9", wait=no_wait)
    with pytest.raises(ServiceError, match=r"http://127.0.0.1:9/account/container: no token, 8 tries: .*refused"):
        one.sign(HREF)


@pytest.mark.parametrize("skew_h", [-1, 1])
def test_a_nodes_wrong_clock_does_not_change_a_tokens_life(tmp_path: Path, skew_h: int) -> None:
    """The service's clock is an hour off ours: its token has 45 minutes by both."""

    def answer(request: Request) -> Answer:
        there = datetime.now(UTC) + timedelta(hours=skew_h)
        expiry = (there + timedelta(minutes=45)).isoformat()
        return json_answer({"msft:expiry": expiry, "token": "se=x&sig=t"}, Date=format_datetime(there, usegmt=True))

    with serve(answer) as service:
        one = signer(service, tmp_path)
        assert one.sign(HREF) == one.sign(HREF)
        assert len(service.requests) == 1
    (record,) = json.loads((tmp_path / "tokens.json").read_text())[service.url].values()
    assert record["expires"] - time.time() == pytest.approx(2700, abs=10)


def test_settings_are_those_of_the_planetary_computer_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate(
        {
            "region": {"bbox": (4.0, 50.0, 5.0, 51.0), "start": "2021-01-01", "end": "2021-12-31"},
            "archive": Archive(source="mpc"),
        }
    )
    with tokens() as service:
        monkeypatch.setenv("PC_SDK_SAS_URL", service.url)
        monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "my-key")
        assert make_signer(Run(tmp_path), config).sign(HREF).endswith("token1")
        assert service.requests[0].headers["Ocp-Apim-Subscription-Key"] == "my-key"
    assert (tmp_path / "logs" / "tokens.json").exists()
    monkeypatch.delenv("PC_SDK_SAS_URL")
    assert make_signer(Run(tmp_path), config).container_of(HREF) == "account/container"
