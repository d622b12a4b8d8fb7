"""Errors of requests as JSON (RFC 9457, `application/problem+json`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

TYPE = "application/problem+json"
_OWN_WORDS = {
    413: "Content Too Large",
    499: "Client Closed Request",
}  # the one is new in Python 3.13, the other nginx's


class Problem(Exception):
    """A request or an image that is refused.

    Attributes:
        status: of HTTP.
        detail: what is wrong and what was expected, for people.
        limits: names of limits to their values, where one was exceeded.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        limits: Mapping[str, int | float] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.limits, self.headers = dict(limits or {}), dict(headers or {})

    def response(self) -> JSONResponse:
        """Return what is sent."""
        content = {"title": status_title(self.status), "status": self.status, "detail": self.detail}
        more = {"limits": self.limits} if self.limits else {}
        return JSONResponse(content | more, self.status, self.headers, media_type=TYPE)


def status_title(status: int) -> str:
    """Return the name of a status."""
    return _OWN_WORDS.get(status) or HTTPStatus(status).phrase


def busy(detail: str, limits: Mapping[str, int | float], seconds: float = 1) -> Problem:
    """Return the problem of an overloaded service (503), with the seconds after which to retry."""
    return Problem(503, f"{detail}; retry in a moment", limits, {"Retry-After": str(max(1, math.ceil(seconds)))})
