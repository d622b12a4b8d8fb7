"""The addresses of a service: a page, /predict, what describes it (/model, /docs, /openapi.json), /health and /metrics."""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from choral import __version__
from choral.deploy.serve import metrics, pages
from choral.deploy.serve.batching import Predicting
from choral.deploy.serve.docs import render_docs
from choral.deploy.serve.gate import Gate
from choral.deploy.serve.limits import Limits
from choral.deploy.serve.problems import TYPE, Problem, status_title
from choral.deploy.serve.schema import ProblemDetails, build_response_model
from choral.deploy.serve.service import Service
from choral.inference.prediction_types import Prediction
from choral.scoring.apply_policy import describe_policy

PATHS = ("/", "/predict", "/model", "/docs", "/openapi.json", "/health", "/health/live", "/metrics")
_IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")
_SHOWN, _LETTERS = 8, 120  # names of classes in a sentence, and how long they are together
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                "required": ["file"],
            }
        },
        **dict.fromkeys((*_IMAGE_TYPES, "application/octet-stream"), _BINARY),
    },
}


def build_app(service: Service, hosts: Collection[str] = ()) -> Gate:
    """Return a service as an ASGI application; `hosts` as for `Gate`."""
    predictor, limits = service.predictor, service.limits
    app = FastAPI(
        title=predictor.name,
        version=__version__,
        description=summarize_predictor(predictor),
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        exception_handlers={Problem: _problem, HTTPException: _http_error, Exception: _defect},
    )
    _add_predict(app, service)
    _add_state(app, service)
    page, style, script = pages.render_front_page(page_data(predictor, limits)), pages.style_sheet(), pages.script()

    async def front() -> Response:
        return HTMLResponse(page, headers=pages.HEADERS)

    async def docs(request: Request) -> Response:
        return HTMLResponse(render_docs(app.openapi(), str(request.base_url)), headers=pages.HEADERS)

    async def style_sheet() -> Response:
        return Response(style, media_type="text/css", headers={"Cache-Control": "no-cache"})

    async def scripts() -> Response:
        return Response(script, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    for path, function in (("/", front), ("/docs", docs), (pages.STYLE, style_sheet), (pages.SCRIPT, scripts)):
        app.add_api_route(path, function, methods=["GET"], include_in_schema=False)
    _correct(app.openapi())
    return Gate(app, service, hosts, PATHS)


def summarize_predictor(predictor: Predicting) -> str:
    """Return one or two sentences about the predictor and its classes."""
    policy, members, names = predictor.policy, len(predictor.members), predictor.classes
    kind = {"multilabel": "Any of", "regression": "Numbers:"}.get(predictor.task, "One of")
    room = accumulate(len(name) for name in names[:_SHOWN])
    count = max(1, sum(letters <= _LETTERS for letters in room))
    shown = ", ".join(names[:count]) + (f" ... ({len(names):,} in all)" if len(names) > count else "")
    parts = [f"{members} member{'s' if members > 1 else ''}"]
    if len(policy.views) > 1:
        parts.append(f"{len(policy.views)} views")
    # A predictor without calibration has no policy to describe.
    return f"{kind} {shown}. " + "; ".join([", ".join(parts), *([describe_policy(policy)] if policy.of else [])])


def page_data(predictor: Predicting, limits: Limits) -> dict[str, Any]:
    """Return the description of a predictor for the page and /model, as plain JSON."""
    policy = predictor.policy
    multilabel = predictor.task == "multilabel"
    return {
        "name": predictor.name,
        "task": predictor.task,
        "classes": list(predictor.classes),
        "members": list(policy.members),
        "about": summarize_predictor(predictor),
        "rule": policy.rule.rule,
        "views": list(policy.views),
        "thresholds": dict(zip(predictor.classes, policy.thresholds.tolist(), strict=True)) if multilabel else {},
        "coverage": policy.conformal.coverage if policy.conformal else None,
        "unsure_below": policy.unsure_below,
        "limits": {name: getattr(limits, name) for name in ("max_bytes", "max_pixels", "max_files", "timeout_s")},
    }


def _add_predict(app: FastAPI, service: Service) -> None:
    predictor = service.predictor

    async def predict(request: Request) -> Response:
        """Predict one or several images.

        Send an image as the body (optionally with its name as ?name=), or several as files of
        multipart/form-data. JPEG, PNG, WebP, GIF, BMP and TIFF are detected by content; no image is kept.
        """
        outcomes = await service.answer(request)
        problems = [one for _, one in outcomes if isinstance(one, Problem)]
        if len(problems) == len(outcomes):
            if len({one.status for one in problems}) == 1:
                raise problems[0]
            raise Problem(422, "; ".join(dict.fromkeys(one.detail for one in problems)))
        head = {"bundle": predictor.name, "task": predictor.task, "classes": list(predictor.classes)}
        return JSONResponse({**head, "answers": [_content(name, one) for name, one in outcomes]})

    app.add_api_route(
        "/predict",
        predict,
        methods=["POST"],
        responses={200: {"model": build_response_model(predictor.task)}, **_refusals(service.limits)},
        openapi_extra={
            "requestBody": _BODY,
            "parameters": [
                {
                    "name": "name",
                    "in": "query",
                    "schema": {"type": "string"},
                    "description": "of an image that is the body",
                }
            ],
        },
    )


def _content(name: str, outcome: Prediction | Problem) -> dict[str, Any]:
    if isinstance(outcome, Problem):
        return {"image": name, "error": outcome.detail, "status": outcome.status}
    content = outcome.content()
    del content["error"]  # there is none
    return content


def _add_state(app: FastAPI, service: Service) -> None:
    async def model() -> Response:
        """Describe the predictor: classes, members, their combination, and the limits of a request."""
        return JSONResponse(page_data(service.predictor, service.limits))

    async def health() -> Response:
        """Return whether requests are answered in time: 200 or 503."""
        ready = service.ready
        return JSONResponse({"live": service.live, "ready": ready}, 200 if ready else 503)

    async def live() -> Response:
        """Return whether the process is healthy: 200 or 503."""
        return JSONResponse({"live": service.live}, 200 if service.live else 503)

    async def figures() -> Response:
        """Return counts, latencies, sizes of batches and queues, as Prometheus reads them."""
        return PlainTextResponse(metrics.render_metrics(service.figures()), media_type=metrics.TYPE)

    for path, function in (("/model", model), ("/health", health), ("/health/live", live), ("/metrics", figures)):
        app.add_api_route(path, function, methods=["GET"])


def _refusals(limits: Limits) -> dict[int | str, dict[str, Any]]:
    """Return what each status of a refusal means, for the description of the service."""
    meanings = {
        400: "An empty body, or multipart/form-data that is damaged or holds something that is no file.",
        403: "Sent by a page of another site.",
        408: f"The body did not arrive within {limits.timeout_s:g} s.",
        413: f"More than {limits.max_bytes:,} bytes, {limits.max_files} files, or {limits.max_pixels:,} pixels in an image.",
        415: "Not an image, or of a kind that is not read.",
        421: "The Host header names another service.",
        422: "An image that is damaged, cut short, or has several frames.",
        503: "Overloaded; retry after the seconds in Retry-After.",
        504: f"No prediction within {limits.timeout_s:g} s.",
    }
    return {
        status: {"description": f"{status_title(status)}. {text}", "model": ProblemDetails}
        for status, text in meanings.items()
    }


def _correct(describe_policy: dict[str, Any]) -> None:
    """Set the content type of error responses, which FastAPI takes from the success model; the schema is cached."""
    for operation in (one for path in describe_policy["paths"].values() for one in path.values()):
        for status, response in operation["responses"].items():
            if status >= "400":
                response["content"] = {TYPE: response["content"]["application/json"]}


async def _problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = {404: "no such route; see /docs", 405: "method not allowed"}.get(error.status_code)
    return Problem(error.status_code, detail or error.detail, None, error.headers).response()


async def _defect(request: Request, error: Exception) -> Response:
    return Problem(500, "internal error; see the log of the service").response()
