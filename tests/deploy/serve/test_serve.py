"""What a service answers, over a real connection: one image and several, of every task, beside its description of itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from choral.deploy.bundle.graph import TorchEngine
from choral.deploy.bundle.predictor import Predictor
from choral.deploy.serve.app import summarize_predictor
from choral.deploy.serve.schema import ProblemDetails, build_response_model
from choral.inference.prediction_types import Prediction
from made_ensembles import inputs, members, plain
from made_service import MadePredictor, Running, picture, running

RED, GREEN = picture((200, 40, 30)), picture((30, 180, 40))


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(MadePredictor()) as found:
        yield found


@pytest.fixture
def client(service: Running) -> httpx.Client:
    return service.client


def expected(predictor: MadePredictor, name: str, data: bytes) -> Prediction:
    from choral.data.loading.decode import decode

    (answer,) = predictor.build_predictions([name], predictor.predict_batch([predictor.prepare(decode(data))]))
    return answer


def as_json(answer: Prediction) -> dict[str, Any]:
    content = json.loads(json.dumps(answer.content()))
    assert content.pop("error") == ""
    return dict(content)


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", None])
def test_an_image_as_the_body(client: httpx.Client, kind: str | None) -> None:
    found = client.post("/predict?name=a.png", content=RED, headers={"Content-Type": kind} if kind else {})
    assert found.status_code == 200
    content = found.json()
    assert content["bundle"] == "colours" and content["task"] == "multiclass"
    assert content["classes"] == ["red", "green", "<b>blue</b>"]
    assert content["answers"] == [as_json(expected(MadePredictor(), "a.png", RED))]
    assert content["answers"][0]["label"] == "red"


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_several_files_of_every_task(task: str) -> None:
    predictor = MadePredictor(task)
    files = [("file", ("first.png", RED)), ("other", ("second.png", b"no image")), ("file", ("third.png", GREEN))]
    with running(predictor) as service:
        found = service.client.post("/predict", files=files)
        assert found.status_code == 200
        first, second, third = found.json()["answers"]
        assert first == as_json(expected(predictor, "first.png", RED))
        assert third == as_json(expected(predictor, "third.png", GREEN))
        assert second["image"] == "second.png" and second["status"] == 415 and "not an image" in second["error"]
        # What it says it sends is what it sends, to the last field.
        build_response_model(task).model_validate(found.json(), strict=False)
        described = service.client.get("/openapi.json").json()
        names = described["components"]["schemas"]["Answers"]["properties"]["answers"]["items"]["anyOf"]
        kinds = {"multiclass": "Class", "multilabel": "Multilabel", "regression": "Regression"}
        kind = f"{kinds[task]}Prediction"
        assert [one["$ref"].rsplit("/", 1)[1] for one in names] == [kind, "NoAnswer"]
        assert set(first) == set(described["components"]["schemas"][kind]["properties"]) - {"unsure"} | (
            {"unsure"} if task == "multiclass" else set()
        )


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_networks_answer_over_http_what_they_answer_in_python(task: str) -> None:
    own = members(task)
    engine = TorchEngine(own, plain(task), "cpu")
    predictor = Predictor("tiny", plain(task), inputs(own), 10_000, engine)
    photos = [picture((200, 40, 30), 33), picture((30, 180, 40), 47, "JPEG"), picture((3, 18, 240), 100, "WEBP")]
    with running(predictor) as service:
        found = service.client.post("/predict", files=[("file", (f"{at}", one)) for at, one in enumerate(photos)])
    direct = predictor.predict(photos)
    for answer, expected_answer in zip(found.json()["answers"], direct, strict=True):
        del answer["image"]
        content = as_json(expected_answer)
        del content["image"]
        assert flat(answer) == pytest.approx(flat(content), abs=1e-6)


def flat(content: Any, name: str = "") -> dict[str, Any]:
    """Return the numbers of nested JSON by where they stand; of texts, which."""
    if isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return {key: value for at, one in pairs for key, value in flat(one, f"{name}/{at}").items()}
    return {name: content} if isinstance(content, float) else {f"{name}={content}": 1.0}


def test_what_watches_services_may_ask_with_head(client: httpx.Client) -> None:
    for path, status in (("/health", 200), ("/", 200), ("/predict", 405), ("/nothing", 404)):
        found = client.head(path)
        assert found.status_code == status and found.content == b"" and int(found.headers["Content-Length"]) > 0


def test_the_summary_names_what_it_has_room_for() -> None:
    predictor = MadePredictor()
    assert summarize_predictor(predictor).startswith("One of red, green, <b>blue</b>. 3 members")
    predictor.policy = replace(predictor.policy, classes=("a" * 70, "b" * 49, "c"))
    assert summarize_predictor(predictor).startswith(f"One of {'a' * 70}, {'b' * 49}, c. ")
    predictor.policy = replace(predictor.policy, classes=("a" * 200, "b", "c"))
    assert summarize_predictor(predictor).startswith(f"One of {'a' * 200} ... (3 in all). ")


def test_several_files_none_of_which_can_be_read(client: httpx.Client) -> None:
    cut = RED[: len(RED) // 2]
    same = client.post("/predict", files=[("file", ("a", cut)), ("file", ("b", cut))])
    assert same.status_code == 422
    different = client.post("/predict", files=[("file", ("a", cut)), ("file", ("b", b"text"))])
    assert different.status_code == 422
    assert "damaged" in different.json()["detail"] and "not an image" in different.json()["detail"]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("photo.png", "photo.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\cat.png", "cat.png"),
        ("<script>alert(1)</script>.png", "script>.png"),
        ("a\x1b[31mred\u202egnp.exe", "a\ufffd[31mred\ufffdgnp.exe"),
        ("größe 数.png", "größe 数.png"),
        ("x" * 500, "x" * 200),
        ("", "image"),
    ],
    ids=["plain", "folders", "windows", "markup", "controls", "unicode", "long", "empty"],
)
def test_names_of_files_are_names_and_nothing_else(client: httpx.Client, sent: str, told: str) -> None:
    found = client.post("/predict", params={"name": sent}, content=RED, headers={"Content-Type": "image/png"})
    assert found.json()["answers"][0]["image"] == told


def test_names_in_a_form(client: httpx.Client) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="gr\xc3\xb6\xc3\x9fe\x07.png"\r\n\r\n'
        + RED
        + b"\r\n--b--\r\n"
    )
    found = client.post("/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert found.json()["answers"][0]["image"] == "größe\ufffd.png"


def test_what_it_tells_about_itself(client: httpx.Client) -> None:
    model = client.get("/model").json()
    assert model["members"] == ["first", "second", "third"] and model["coverage"] == 0.9
    assert model["limits"]["max_bytes"] == 20_000_000
    assert client.get("/health").json() == {"live": True, "ready": True}
    assert client.get("/health/live").json() == {"live": True}
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/model", "/health", "/health/live", "/metrics"}
    operation = described["paths"]["/predict"]["post"]
    assert set(operation["requestBody"]["content"]) >= {"multipart/form-data", "image/jpeg"}
    for status in ("400", "408", "413", "415", "422", "503", "504"):
        assert list(operation["responses"][status]["content"]) == ["application/problem+json"]
    docs = client.get("/docs").text
    for word in (
        "POST /predict",
        "GET /metrics",
        "ClassPrediction",
        "ProblemDetails",
        "20,000,000 bytes",
        "Retry-After",
    ):
        assert word in docs


def test_pages_need_nothing_from_elsewhere_and_run_nothing_inline(client: httpx.Client) -> None:
    for path in ("/", "/docs"):
        found = client.get(path)
        policy = dict(part.strip().split(" ", 1) for part in found.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        links = re.findall(r'(?:src|href)="([^"]*)"', found.text)
        assert links and all(link.startswith(("/", "#", "data:image/svg+xml,")) for link in links)
        assert not re.search(r"<style|style=| on[a-z]+=|javascript:", found.text)
        assert all(
            'src="/assets/' in tag or "application/json" in tag for tag in re.findall(r"<script[^>]*>", found.text)
        )
        assert "<b>blue</b>" not in found.text


def test_headers_and_refusals_of_every_address(client: httpx.Client) -> None:
    for path, status in (("/", 200), ("/model", 200), ("/nowhere", 404), ("/predict", 405)):
        found = client.get(path)
        assert found.status_code == status
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert "Content-Security-Policy" in found.headers
        assert not any(name.startswith("access-control") or name == "server" for name in found.headers)
        if status >= 400:
            assert found.headers["Content-Type"] == "application/problem+json"
            assert ProblemDetails.model_validate(found.json()).status == status
    assert client.get("/predict").headers["Allow"] == "POST"


def test_another_host_and_another_site_are_refused(client: httpx.Client, service: Running) -> None:
    image = {"content": RED, "headers": {"Content-Type": "image/png"}}
    for host in ("evil.example", f"evil.example:{service.port}", "127.0.0.1.evil.example", "[::1", ""):
        assert client.get("/model", headers={"Host": host}).status_code == 421
    for host in ("localhost", f"LOCALHOST:{service.port}", f"[::1]:{service.port}"):
        assert client.get("/model", headers={"Host": host}).status_code == 200
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        image["headers"] = {"Content-Type": "image/png", "Sec-Fetch-Site": site}
        assert client.post("/predict", **image).status_code == status  # type: ignore[arg-type]
    with running(MadePredictor(), hosts=["models.example.org"]) as other:
        assert other.client.get("/model", headers={"Host": "models.example.org"}).status_code == 200


def test_metrics_count_what_happened() -> None:
    with running(MadePredictor()) as service:
        for _ in range(3):
            service.client.post("/predict", content=RED)
        service.client.post("/predict", content=b"text")
        service.client.get("/no%0Awhere")
        lines = service.client.get("/metrics").text.splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert samples['choral_requests_total{path="/predict",status="200"}'] == "3"
    assert samples['choral_requests_total{path="/predict",status="415"}'] == "1"
    assert samples['choral_requests_total{path="other",status="404"}'] == "1"
    assert samples['choral_images_total{outcome="answered"}'] == "3"
    assert samples['choral_images_total{outcome="refused"}'] == "1"
    assert samples['choral_batch_images_bucket{le="+Inf"}'] == samples["choral_batch_images_count"] == "3"
    assert samples["choral_request_seconds_count"] == "4"
    assert samples["choral_images_in_flight"] == samples["choral_upload_bytes"] == "0"
    assert float(samples["process_resident_memory_bytes"]) > 1e7
    assert samples["choral_ready"] == "1"
    # As the format wants it: every sample belongs to a family whose kind is told before it.
    kinds = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    families = {re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", name) for name in samples}
    assert families <= kinds


def test_the_log_has_one_line_a_request_whatever_it_asks_for(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "choral.deploy.serve.access"):
        client.get("/a%0A%1b[31mb%22?secret=1")
        client.post("/predict?name=private.png", content=RED)
    first, second = [record.getMessage() for record in caplog.records if record.name == "choral.deploy.serve.access"]
    assert re.fullmatch(r'127\.0\.0\.1 "GET /a%0A%1B%5B31mb%22" 404 in \d+ ms', first)
    assert re.fullmatch(r'127\.0\.0\.1 "POST /predict" 200 in \d+ ms', second)
