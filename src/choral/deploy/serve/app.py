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
from choral.deploy.serve.docs import docs_page
from choral.deploy.serve.gate import Gate
from choral.deploy.serve.limits import Limits
from choral.deploy.serve.problems import TYPE, Problem, title_of
from choral.deploy.serve.schema import ProblemDetails, answers_model
from choral.deploy.serve.service import Service
from choral.inference.prediction_types import Answer
from choral.scoring.apply_policy import described

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


def made_app(service: Service, hosts: Collection[str] = ()) -> Gate:
    """Return a service as an ASGI application; `hosts` as for `Gate`."""
    predictor, limits = service.predictor, service.limits
    app = FastAPI(
        title=predictor.name,
        version=__version__,
        description=summary_of(predictor),
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        exception_handlers={Problem: _problem, HTTPException: _http_error, Exception: _defect},
    )
    _add_predict(app, service)
    _add_state(app, service)
    page, style, script = pages.front_page(page_data(predictor, limits)), pages.style(), pages.script()

    async def front() -> Response:
        return HTMLResponse(page, headers=pages.HEADERS)

    async def docs(request: Request) -> Response:
        return HTMLResponse(docs_page(app.openapi(), str(request.base_url)), headers=pages.HEADERS)

    async def style_sheet() -> Response:
        return Response(style, media_type="text/css", headers={"Cache-Control": "no-cache"})

    async def scripts() -> Response:
        return Response(script, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    for path, function in (("/", front), ("/docs", docs), (pages.STYLE, style_sheet), (pages.SCRIPT, scripts)):
        app.add_api_route(path, function, methods=["GET"], include_in_schema=False)
    _correct(app.openapi())
    return Gate(app, service, hosts, PATHS)


def summary_of(predictor: Predicting) -> str:
    """Return in a sentence or two what answers, and what it can say."""
    answering, members, names = predictor.answering, len(predictor.members), predictor.classes
    kind = {"multilabel": "Any of", "regression": "Numbers:"}.get(predictor.task, "One of")
    room = accumulate(len(name) for name in names[:_SHOWN])
    count = max(1, sum(letters <= _LETTERS for letters in room))
    shown = ", ".join(names[:count]) + (f" ... ({len(names):,} in all)" if len(names) > count else "")
    parts = [f"{members} member{'s' if members > 1 else ''}"]
    if len(answering.views) > 1:
        parts.append(f"{len(answering.views)} views")
    # Of a predictor that was never calibrated there is nothing more to tell.
    return f"{kind} {shown}. " + "; ".join([", ".join(parts), *([described(answering)] if answering.of else [])])


def page_data(predictor: Predicting, limits: Limits) -> dict[str, Any]:
    """Return what the page, and /model, say about a predictor, as plain JSON."""
    answering = predictor.answering
    multilabel = predictor.task == "multilabel"
    return {
        "name": predictor.name,
        "task": predictor.task,
        "classes": list(predictor.classes),
        "members": list(answering.members),
        "about": summary_of(predictor),
        "rule": answering.rule.rule,
        "views": list(answering.views),
        "thresholds": dict(zip(predictor.classes, answering.thresholds.tolist(), strict=True)) if multilabel else {},
        "coverage": answering.conformal.coverage if answering.conformal else None,
        "unsure_below": answering.unsure_below,
        "limits": {name: getattr(limits, name) for name in ("max_bytes", "max_pixels", "max_files", "timeout_s")},
    }


def _add_predict(app: FastAPI, service: Service) -> None:
    predictor = service.predictor

    async def predict(request: Request) -> Response:
        """Answer for one or several images.

        Send an image as the body (its name, for the answer, may be given as ?name=), or several as files of
        multipart/form-data. JPEG, PNG, WebP, GIF, BMP and TIFF are read, told by their content; none is kept.
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
        responses={200: {"model": answers_model(predictor.task)}, **_refusals(service.limits)},
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


def _content(name: str, outcome: Answer | Problem) -> dict[str, Any]:
    if isinstance(outcome, Problem):
        return {"image": name, "error": outcome.detail, "status": outcome.status}
    content = outcome.content()
    del content["error"]  # there is none
    return content


def _add_state(app: FastAPI, service: Service) -> None:
    async def model() -> Response:
        """Tell what answers: classes, members, how they are combined, and the limits of a request."""
        return JSONResponse(page_data(service.predictor, service.limits))

    async def health() -> Response:
        """Tell whether requests are answered in time: 200 or 503."""
        ready = service.ready
        return JSONResponse({"live": service.live, "ready": ready}, 200 if ready else 503)

    async def live() -> Response:
        """Tell whether the process is worth keeping: 200 or 503."""
        return JSONResponse({"live": service.live}, 200 if service.live else 503)

    async def figures() -> Response:
        """Return counts, latencies, sizes of batches and queues, as Prometheus reads them."""
        return PlainTextResponse(metrics.exposed(service.figures()), media_type=metrics.TYPE)

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
        503: "No room at the moment; Retry-After says when to ask again.",
        504: f"No answer within {limits.timeout_s:g} s.",
    }
    return {
        status: {"description": f"{title_of(status)}. {text}", "model": ProblemDetails}
        for status, text in meanings.items()
    }


def _correct(described: dict[str, Any]) -> None:
    """Name the content type of refusals: FastAPI gives models that of all answers. It keeps what it described once."""
    for operation in (one for path in described["paths"].values() for one in path.values()):
        for status, response in operation["responses"].items():
            if status >= "400":
                response["content"] = {TYPE: response["content"]["application/json"]}


async def _problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = {404: "no such address; /docs tells which there are", 405: "not with this method"}.get(error.status_code)
    return Problem(error.status_code, detail or error.detail, None, error.headers).response()


async def _defect(request: Request, error: Exception) -> Response:
    return Problem(500, "a defect of the service; its log says which").response()
