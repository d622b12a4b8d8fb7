"""What is sent to a service to break it: it answers with the right status, holds no more than it says, and goes on."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from choral.deploy.serve.connection import Connection
from choral.deploy.serve.service import _Turnstile
from made_service import MadePredictor, Running, picture, running

GOOD = picture()
JPEG = picture(side=200, kind="JPEG")


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(MadePredictor(), max_bytes=1_000_000, max_files=3, max_pixels=1_000_000, timeout_s=5) as found:
        yield found


def well(service: Running) -> None:
    """Whether the service still answers, and holds nothing."""
    found = service.client.post("/predict", content=GOOD)
    assert found.status_code == 200 and found.json()["answers"][0]["label"] == "red"
    figures = service.client.get("/metrics").text
    assert "choral_upload_bytes 0\n" in figures and "choral_images_in_flight 0\n" in figures


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def animated() -> bytes:
    file, frames = io.BytesIO(), [Image.new("RGB", (8, 8), name) for name in ("red", "green", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def jpeg_of(height: int, width: int) -> bytes:
    """A JPEG whose frame header claims another size."""
    place = JPEG.index(b"\xff\xc0")
    return JPEG[: place + 5] + struct.pack(">HH", height, width) + JPEG[place + 9 :]


WEBP_BOMB = b"RIFF\x00\x01\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00" + b"\xff\x3f\x00" * 2 + bytes(200)
TIFF_BOMB = b"II*\x00\x08\x00\x00\x00\x03\x00" + b"".join(
    struct.pack("<HHII", tag, 4, 1, value) for tag, value in ((256, 90_000), (257, 90_000), (258, 8))
)
BODIES: dict[str, tuple[bytes, int, str]] = {
    "png bomb": (png_header(60_000, 60_000), 413, "60000 x 60000 pixels, more than the limit of 1,000,000"),
    "jpeg bomb": (jpeg_of(65_000, 65_000), 413, "65000 x 65000 pixels"),
    "webp bomb": (WEBP_BOMB, 413, "16384 x 16384 pixels"),
    "tiff bomb": (TIFF_BOMB + bytes(100), 422, "damaged"),
    "one pixel too many": (picture(side=1001, kind="JPEG"), 413, "1001 x 1001 pixels"),
    "cut png": (GOOD[:400], 422, "a PNG that is damaged or cut short"),
    "cut jpeg": (JPEG[:300], 422, "a JPEG"),
    "png without data": (GOOD[:33], 422, "a PNG that is damaged or cut short"),
    "animated": (animated(), 422, "several frames"),
    "text": (b"Lorem ipsum " * 100, 415, "not an image"),
    "html": (b"<!doctype html><script>alert(1)</script>", 415, "HTML"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "SVG"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0", 415, "PostScript"),
    "zip": (b"PK\x03\x04" + bytes(100), 415, "ZIP"),
    "pickle": (b"\x80\x04\x95cos\nsystem\n", 415, "not an image"),
    "nothing": (b"", 400, "an empty body"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_images(service: Running, name: str) -> None:
    body, status, reason = BODIES[name]
    found = service.client.post("/predict", content=body)
    assert found.status_code == status and reason in found.json()["detail"]
    assert (found.json().get("limits") == {"max_pixels": 1_000_000}) == (status == 413)
    well(service)


def part(name: str, data: bytes, disposition: str = 'form-data; name="file"; filename="a.png"') -> bytes:
    return f"--{name}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"


FORMS: dict[str, tuple[bytes, int, str]] = {
    "cut": (part("b", GOOD), 400, "cut short"),
    "no file": (b"--b--\r\n", 400, "without a file"),
    "field": (part("b", b"0.5", 'form-data; name="threshold"') + b"--b--\r\n", 400, "'threshold' has no file name"),
    "no disposition": (b"--b\r\n\r\nx\r\n--b--\r\n", 400, "no file name"),
    "not a form": (b"hello", 400, "cannot be read"),
    "endless header": (b"--b\r\nX: " + b"y" * 100_000, 400, "Maximum header size"),
    "many files": (part("b", GOOD) * 4 + b"--b--\r\n", 413, "more than 3 files"),
    "empty file": (part("b", b"") + b"--b--\r\n", 415, "the file is empty"),
}


@pytest.mark.parametrize("name", FORMS)
def test_bad_forms(service: Running, name: str) -> None:
    body, status, reason = FORMS[name]
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    found = service.client.post("/predict", content=body, headers=headers)
    assert found.status_code == status and reason in found.json()["detail"]
    well(service)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "multipart/form-data"}, 400),
        ({"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}, 400),
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
    ],
    ids=["no boundary", "long boundary", "json", "form", "gzip"],
)
def test_bodies_of_other_kinds(service: Running, headers: dict[str, str], status: int) -> None:
    found = service.client.post("/predict", content=GOOD, headers=headers)
    assert found.status_code == status
    well(service)


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "unstated"])
def test_fifty_megabytes_are_refused_and_never_held(service: Running, stated: bool) -> None:
    chunk, sent = bytes(65_536), 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(800):
            sent += len(chunk)
            yield chunk

    before = resident(service)
    headers = {"Content-Length": str(800 * len(chunk))} if stated else {}
    found = service.client.post("/predict", content=body(), headers=headers)
    assert found.status_code == 413 and found.json()["limits"] == {"max_bytes": 1_000_000}
    assert "1 MB (1,000,000 bytes)" in found.json()["detail"]
    assert resident(service) - before < 10_000_000
    well(service)


def resident(service: Running) -> float:
    return float(service.client.get("/metrics").text.split("process_resident_memory_bytes ")[-1])


def slowly(service: Running, head: bytes, body: bytes, pause_s: float) -> bytes:
    """Send a head, then a body byte by byte; return what came back until the connection was closed."""
    with service.connect() as line:
        line.sendall(head)
        line.settimeout(pause_s)
        for place in range(len(body)):
            try:
                line.sendall(body[place : place + 1])
            except OSError:
                break
            try:
                if received := line.recv(65_536):
                    line.settimeout(10)
                    while more := line.recv(65_536):
                        received += more
                    return received
                return b""
            except TimeoutError:
                continue
            except ConnectionResetError:
                return b""
        raise AssertionError("it was never cut off")


def test_a_slow_body_is_cut_off() -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode()
    with running(MadePredictor(), timeout_s=0.5) as service:
        answer = slowly(service, head, GOOD, 0.05)  # all of it would take a minute
        assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 0.5 s" in answer
        assert b"connection: close" in answer.lower()
        well(service)


@pytest.mark.parametrize("head", [b"", b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["first", "second"])
def test_a_slow_head_is_cut_off(service: Running, monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr(Connection, "head_timeout_s", 0.4)
    with service.connect() as line:
        line.sendall(head)
        time.sleep(0.1)
        if head:
            assert line.recv(65_536).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        line.settimeout(0.05)
        ended = False
        while not ended and time.monotonic() - started < 5:
            try:
                line.sendall(b"X")
                ended = line.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
    assert ended
    well(service)


def test_a_client_that_goes_on_after_a_refusal_is_cut_off(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_timeout_s", 0.4)
    with service.connect() as line:
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000000\r\n\r\n")
        assert line.recv(65_536).startswith(b"HTTP/1.1 413 ")
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - started < 5:
                line.sendall(b"x")
                time.sleep(0.05)
    well(service)


def test_a_client_that_does_not_read_is_cut_off(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "write_timeout_s", 0.3)
    with service.connect() as line, pytest.raises(ConnectionError):
        line.settimeout(5)
        started = time.monotonic()
        while time.monotonic() - started < 5:  # answers to thousands of requests, none of which is read
            line.sendall(b"GET /assets/page.css HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
    well(service)


def test_rubbish_instead_of_http(service: Running) -> None:
    for rubbish in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"A" * 100_000 + b"\r\n\r\n"):
        with service.connect() as line:
            line.sendall(rubbish)
            assert line.recv(65_536).startswith(b"HTTP/1.1 400 ")
    well(service)


async def many(service: Running, count: int, body: bytes) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=service.address, limits=limits, timeout=60, verify=False) as client:
        return await asyncio.gather(*(client.post("/predict", content=body) for _ in range(count)))


def test_two_hundred_at_once_are_answered_or_asked_to_come_again() -> None:
    predictor = MadePredictor()
    with running(predictor, queue=64, batch_size=16, max_files=1, timeout_s=60) as service:
        predictor.gate.clear()  # nothing is answered before all have come

        def release() -> None:
            try:
                until(lambda: 'status="503"} 136' in service.client.get("/metrics").text, 50)
            finally:
                predictor.gate.set()

        with ThreadPoolExecutor(2) as pool:
            released = pool.submit(release)
            # Not in this thread: Playwright, once it was used in a process, has a loop running there.
            found = pool.submit(lambda: asyncio.run(many(service, 200, GOOD))).result()
            released.result()
        statuses = [one.status_code for one in found]
        assert statuses.count(200) == 64 and statuses.count(503) == 136
        for one in found:
            if one.status_code == 503:
                assert one.headers["Retry-After"] == "1" and one.json()["limits"] == {"queue": 64}
        assert max(predictor.sizes) <= 16 and sum(predictor.sizes) == 1 + 64
        well(service)


def test_uploads_hold_no_more_than_their_buffer() -> None:
    size = 300_000
    with running(MadePredictor(), max_bytes=size, buffer=2 * size, timeout_s=20) as service:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
        lines = [service.connect() for _ in range(2)]
        for line in lines:
            line.sendall(head + bytes(size - 1))
        until(lambda: f"choral_upload_bytes {2 * size - 2}\n" in service.client.get("/metrics").text)
        found = service.client.post("/predict", content=GOOD)
        assert found.status_code == 503 and found.json()["limits"] == {"buffer": 2 * size}
        assert found.headers["Retry-After"] == "1"
        for line in lines:
            line.close()
        until(lambda: "choral_upload_bytes 0\n" in service.client.get("/metrics").text)
        well(service)


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_images_that_would_fill_memory_are_decoded_one_after_the_other() -> None:
    turnstile, inside, most = _Turnstile(100), [0], [0]
    lock = threading.Lock()

    def decode(pixels: int) -> None:
        with turnstile.hold(pixels):
            with lock:
                inside[0] += pixels
                most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            with lock:
                inside[0] -= pixels

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [100, 30, 30, 60, 100, 40, 1, 1, 99] * 3))
    assert most[0] <= 100 and inside[0] == 0
    # Together where there is room: two that meet inside.
    meeting = threading.Barrier(2)

    def meet(pixels: int) -> int:
        with turnstile.hold(pixels):
            return meeting.wait(10)

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(meet, [50, 50])) == [0, 1]


def test_what_a_large_image_took_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr("choral.deploy.serve.service.trim_memory", lambda: given.append(1))
    large = io.BytesIO()
    Image.new("L", (3000, 3000)).save(large, "PNG")
    with running(MadePredictor()) as service:
        assert service.client.post("/predict", content=GOOD).status_code == 200 and not given
        assert service.client.post("/predict", content=large.getvalue()).status_code == 200 and given == [1]
