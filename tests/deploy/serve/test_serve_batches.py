"""Which images are asked about together, and what becomes of them when an engine is slow, fails, or everything ends."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from choral.core.errors import ConfigError
from choral.deploy.serve.batching import Batcher, Prepared
from choral.deploy.serve.limits import Limits, parse_size, size_text
from made_service import MadePredictor, Running, picture, running

IMAGE = picture()
PREPARED = (np.zeros((8, 8, 3), np.uint8),)


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def predict_batch(service: Running) -> httpx.Response:
    return service.client.post("/predict", content=IMAGE)


def figure(service: Running, name: str) -> float:
    return float(service.client.get("/metrics").text.split(f"\n{name} ")[1].split("\n")[0])


def test_what_waits_becomes_one_batch() -> None:
    predictor = MadePredictor()
    with running(predictor, batch_size=8) as service, ThreadPoolExecutor(11) as pool:
        predictor.gate.clear()
        first = pool.submit(predict_batch, service)
        until(lambda: predictor.sizes == [1, 1])  # one dark image at the start, one that the engine holds
        others = [pool.submit(predict_batch, service) for _ in range(10)]
        until(lambda: figure(service, "choral_queue_images") == 10)
        predictor.gate.set()
        assert [one.result().status_code for one in (first, *others)] == [200] * 11
        assert predictor.sizes == [1, 1, 8, 2]
        assert figure(service, "choral_batch_images_sum") == 11


def batcher(predictor: MadePredictor, **options: Any) -> Batcher:
    return Batcher(predictor, options.get("batch_size", 4), options.get("wait_s", 20.0), lambda count, seconds: None)


def test_a_lone_image_waits_for_nothing_and_others_for_what_is_announced() -> None:
    predictor = MadePredictor()
    made = batcher(predictor)
    started = time.monotonic()
    made.announce(1)
    made.put("alone", PREPARED).result(10)
    assert time.monotonic() - started < 5 and predictor.sizes == [1]
    made.announce(3)
    first = made.put("first", PREPARED)
    second = made.put("second", PREPARED)
    time.sleep(0.1)
    assert not first.done()  # the third is on its way
    made.withdraw()  # and could not be read
    assert [one.result(10).image for one in (first, second)] == ["first", "second"]
    assert predictor.sizes == [1, 2]
    made.announce(9)
    waiting = [made.put(str(number), PREPARED) for number in range(4)]
    assert [one.result(10).image for one in waiting] == list("0123")  # a full batch waits for nobody
    made.close()


def test_no_image_waits_longer_than_it_may() -> None:
    predictor = MadePredictor()
    made = batcher(predictor, wait_s=0.2)
    made.announce(2)
    started = time.monotonic()
    made.put("one", PREPARED).result(10)
    assert 0.15 < time.monotonic() - started < 5 and predictor.sizes == [1]
    made.withdraw()
    made.close()


def test_cancelled_images_are_never_asked_about() -> None:
    predictor = MadePredictor()
    made = batcher(predictor)
    predictor.gate.clear()
    made.announce(4)
    for _ in range(3):
        made.withdraw()
    first = made.put("first", PREPARED)
    until(lambda: predictor.sizes == [1])
    made.announce(2)
    gone, kept = made.put("gone", PREPARED), made.put("kept", PREPARED)
    assert gone.cancel() and made.depth == 1
    predictor.gate.set()
    assert first.result(10).image == "first" and kept.result(10).image == "kept"
    assert predictor.sizes == [1, 1]
    made.close()


def test_an_engine_that_takes_too_long(caplog: pytest.LogCaptureFixture) -> None:
    predictor = MadePredictor()
    with running(predictor, timeout_s=0.5) as service:
        predictor.gate.clear()
        with ThreadPoolExecutor(2) as pool:
            late = [pool.submit(predict_batch, service) for _ in range(2)]
            found = [one.result() for one in late]
        assert [one.status_code for one in found] == [504, 504]
        assert found[0].json()["limits"] == {"timeout_s": 0.5}
        # What was given up while it waited is not kept, and never asked about.
        assert figure(service, "choral_queue_images") == 0
        asked_before = sum(predictor.sizes)
        behind = service.server.service
        behind.limits = replace(behind.limits, timeout_s=20)
        predictor.gate.set()
        assert predict_batch(service).status_code == 200
        assert sum(predictor.sizes) == asked_before + 1
        assert figure(service, "choral_images_in_flight") == 0
    gc.collect()
    assert not [record for record in caplog.records if record.name in ("asyncio", "uvicorn.error")]


def test_what_would_be_too_late_is_refused_at_once() -> None:
    predictor = MadePredictor()
    with running(predictor, timeout_s=20) as service, ThreadPoolExecutor(3) as pool:
        predictor.gate.clear()
        requested = [pool.submit(predict_batch, service) for _ in range(3)]
        until(lambda: figure(service, "choral_images_in_flight") == 3)
        times = service.server.service._batcher._lately
        times.clear()
        times += [50.0, 15.0, 30.0]
        refused = predict_batch(service)
        assert refused.status_code == 503 and refused.json()["limits"] == {"timeout_s": 20}
        assert "3 images wait already, which takes about 45 s" in refused.json()["detail"]
        assert refused.headers["Retry-After"] == "23"
        predictor.gate.set()
        assert [one.result().status_code for one in requested] == [200] * 3
        # With nothing before it an image is always taken, so that an engine that was slow once is found to be fast again.
        times.clear()
        times.append(1000.0)
        assert predict_batch(service).status_code == 200
        assert 0 < service.server.service._batcher.seconds_an_image < 10


def test_readiness_tells_that_an_engine_is_stuck() -> None:
    predictor = MadePredictor()
    with running(predictor, timeout_s=0.5) as service, ThreadPoolExecutor(3) as pool:
        predictor.gate.clear()
        requested = pool.submit(predict_batch, service)  # nothing waits behind it
        until(lambda: service.client.get("/health").status_code == 503)
        assert service.client.get("/health").json() == {"live": True, "ready": False}
        assert service.client.get("/health/live").status_code == 200
        predictor.gate.set()
        until(lambda: service.client.get("/health").status_code == 200)
        assert requested.result().status_code == 504


def test_without_memory_for_an_image_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, prepare = MadePredictor(), MadePredictor().prepare

    def short_of_memory(image: NDArray[np.uint8]) -> Prepared:
        if len(image) == 40:
            raise MemoryError
        return prepare(image)

    monkeypatch.setattr(predictor, "prepare", short_of_memory)
    with running(predictor) as service:
        files = [("file", ("large", IMAGE)), ("file", ("small", picture(side=20)))]
        large, small = service.client.post("/predict", files=files).json()["answers"]
        assert large["status"] == 503 and "not enough memory" in large["error"] and small["label"] == "red"
        alone = predict_batch(service)
        assert alone.status_code == 503 and alone.headers["Retry-After"] == "1"


def test_an_engine_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    predictor = MadePredictor()
    with running(predictor) as service:
        predictor.error = "out of order: /secret/path"
        found = predict_batch(service)
        assert found.status_code == 500 and found.headers["Content-Type"] == "application/problem+json"
        assert "log" in found.json()["detail"] and "secret" not in found.text
        assert "out of order" in caplog.text
        predictor.error = ""
        assert predict_batch(service).status_code == 200


def test_the_image_of_a_client_that_has_gone_is_not_asked_about(caplog: pytest.LogCaptureFixture) -> None:
    predictor = MadePredictor()
    with running(predictor) as service, ThreadPoolExecutor(1) as pool:
        predictor.gate.clear()
        first = pool.submit(predict_batch, service)
        until(lambda: len(predictor.sizes) == 2)
        with service.connect() as line:
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(IMAGE)}\r\n\r\n"
            line.sendall(head.encode() + IMAGE)
            until(lambda: figure(service, "choral_queue_images") == 1)
        until(lambda: figure(service, "choral_images_in_flight") == 1)
        predictor.gate.set()
        assert first.result().status_code == 200 and predict_batch(service).status_code == 200
        assert predictor.sizes == [1, 1, 1]
        gc.collect()
        assert not [record for record in caplog.records if record.name in ("asyncio", "uvicorn.error")]
        assert 'path="/predict",status="499"} 1' in service.client.get("/metrics").text


def test_what_was_taken_in_is_answered_before_the_end() -> None:
    predictor = MadePredictor()
    with ThreadPoolExecutor(5) as pool, running(predictor, batch_size=2) as service:
        predictor.gate.clear()
        requested = [pool.submit(predict_batch, service) for _ in range(5)]
        until(lambda: figure(service, "choral_images_in_flight") == 5)
        service.server.should_exit = True
        until(lambda: refused(service))
        threading.Timer(0.3, predictor.gate.set).start()
        assert [one.result().status_code for one in requested] == [200] * 5
    assert service.server.service.answered == 5
    assert not service.server.service.live


def refused(service: Running) -> bool:
    try:
        service.connect().close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"batch_size": 0}, "--batch-size: 0, expected at least 1"),
        ({"wait_ms": -1.0}, "--wait-ms: -1.0, expected 0 or more"),
        ({"timeout_s": 0.0}, "--timeout-s: 0.0, expected more than 0"),
        ({"timeout_s": float("nan")}, "--timeout-s: nan"),
        ({"queue": 4}, "--queue: 4, expected at least --max-files, which is 32"),
        ({"buffer": 1000}, "--buffer: 1000, expected at least --max-bytes, which is 20000000"),
    ],
    ids=["batch", "wait", "timeout", "nan", "queue", "buffer"],
)
def test_limits_that_make_no_sense(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Limits(**values)


def test_sizes() -> None:
    sizes = {"20MB": 20_000_000, "1.5kB": 1500, "512KiB": 524_288, "1 GiB": 2**30, "7": 7, "12b": 12}
    assert {text: parse_size(text) for text in sizes} == sizes
    for text in ("", "MB", "-1MB", "1TB", "1e6", "nan"):
        with pytest.raises(ConfigError, match="is no size"):
            parse_size(text)
    assert [size_text(count) for count in (20_000_000, 1500, 999, 2_500_000_000)] == [
        "20 MB",
        "1.5 kB",
        "999 bytes",
        "2.5 GB",
    ]
