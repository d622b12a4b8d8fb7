"""`choral serve` as it is typed: where it listens, what it says, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from choral import cli
from choral.deploy.bundle import open_predictor as target
from choral.deploy.serve.server import bound_socket, is_loopback, server_url
from choral.runs import memory
from made_service import MadePredictor, picture


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What predictors are loaded with; made up ones come back."""
    calls: list[Any] = []

    def load(target: str, device: str, form: str, say: object) -> MadePredictor:
        calls.append((target, device, form))
        predictor = MadePredictor()
        predictor.max_pixels = 10_000  # type: ignore[attr-defined]
        return predictor

    monkeypatch.setattr(target, "open_predictor", load)
    monkeypatch.setattr(memory, "retain_freed_memory", lambda: calls.append("memory"))
    loggers = [logging.getLogger(name) for name in ("choral.deploy.serve", "uvicorn.error")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    # Playwright, once it was used in a process, leaves a loop running in this thread, which alone may take signals.
    running = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield calls
    asyncio._set_running_loop(running)
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 10).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_host_that_others_reach_is_warned_of(
    loaded: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("choral.deploy.serve.server.Server.serve_until_told", lambda self: self.service.close() or 0)
    assert cli.main(["serve", "bundle", "--host", "0.0.0.0", "--port", "0"]) == 0
    assert "can reach 0.0.0.0" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_until_it_is_told_to_stop(
    loaded: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    port, found, predictor = free_port(), dict[str, Any](), MadePredictor()
    predictor.max_pixels = 10_000  # type: ignore[attr-defined]
    monkeypatch.setattr(target, "open_predictor", lambda *given: loaded.append(given[:3]) or predictor)

    def user() -> None:
        try:
            until(lambda: listens(port))
            predictor.gate.clear()
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", verify=False, timeout=60) as client:
                found["limits"] = client.get("/model").json()["limits"]
                found["answer"] = client.post("/predict", content=picture())
        except BaseException:
            os.kill(os.getpid(), signal.SIGTERM)  # or the service would be waited for without end
            raise

    def stop() -> None:
        try:
            until(lambda: predictor.sizes == [1, 1])  # in the middle of the answer
            os.kill(os.getpid(), number)
            until(lambda: not listens(port))
        finally:
            predictor.gate.set()

    asking, stopping = threading.Thread(target=user), threading.Thread(target=stop)
    asking.start()
    stopping.start()
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    status = cli.main(["serve", "bundle", "--port", str(port), "--max-bytes", "1MB", "--device", "cpu"])
    asking.join()
    stopping.join()
    assert status == 0 and loaded == ["memory", ("bundle", "cpu", "torch")]
    assert found["answer"].status_code == 200 and found["answer"].json()["answers"][0]["label"] == "red"
    # The bundle's own limit on pixels, where it is lower and none is given.
    assert found["limits"]["max_bytes"] == 1_000_000 and found["limits"]["max_pixels"] == 10_000
    said = capsys.readouterr()
    assert said.out == f"serving colours at http://127.0.0.1:{port} (Ctrl-C stops)\n"
    assert re.search(r'^[\d :,-]+ 127\.0\.0\.1 "POST /predict" 200 in \d+ ms$', said.err, re.MULTILINE)
    assert said.err.endswith("stopped; 1 image predicted\n") and "warning" not in said.err
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "70000"], "--port: 70000, expected 0 to 65535"),
        (["--max-bytes", "lots"], "'lots' is no size"),
        (["--batch-size", "0"], "--batch-size: 0, expected at least 1"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid --port 8000:"),
    ],
    ids=["port", "size", "batch", "host"],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(
    loaded: list[Any], capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert cli.main(["serve", "bundle", *arguments]) == 2
    assert told in capsys.readouterr().err.replace("\n", " ") and not loaded


def test_a_port_that_is_taken(loaded: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert cli.main(["serve", "bundle", "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use; choose another" in capsys.readouterr().err and not loaded


def test_a_port_that_another_bound_at_the_same_time(
    loaded: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with bound_socket("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(memory, "retain_freed_memory", lambda: other.listen())  # while this one loads
        assert cli.main(["serve", "bundle", "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use; choose another" in capsys.readouterr().err and loaded


def test_without_its_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "choral.deploy.serve.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["serve", "bundle"]) == 2
    assert "uvicorn is not installed; pip install 'choral[serve]'" in capsys.readouterr().err


def test_where_it_listens() -> None:
    with bound_socket("127.0.0.1", 0) as one, bound_socket("0.0.0.0", 0) as all_of_them:
        assert is_loopback(one) and not is_loopback(all_of_them)
        for bound in (one, all_of_them):
            assert server_url(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
