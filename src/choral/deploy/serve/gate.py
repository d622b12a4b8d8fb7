"""What stands before all addresses of a service: who is let in, what each response carries, what is counted and logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from choral.deploy.serve.problems import Problem
from choral.deploy.serve.service import Service

_LONGEST_PATH = 200
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'"
_log = logging.getLogger("choral.deploy.serve.access")


class Gate:
    """The outermost application.

    A page of another site can make a browser send requests to a service on its user's machine, and by a name that is
    made to point there (DNS rebinding) even read the responses: requests under another host name, and uploads
    that a browser marks as coming from another site, are refused. There are no CORS headers, so no other site reads anything.

    Args:
        app: behind it.
        service: whose figures are counted.
        hosts: accepted names in the Host header, without ports; empty: all.
        paths: that are counted by name; others are counted as "other".
    """

    def __init__(self, app: ASGIApp, service: Service, hosts: Collection[str], paths: Collection[str]) -> None:
        self._app, self._service = app, service
        self._hosts = frozenset(host.lower() for host in hosts)
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", _NOTHING_ALLOWED)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            refused = self._refused(scope["method"], Headers(scope=scope))
            # Monitoring often sends HEAD: handled as GET, and the server drops the body.
            requested = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await (self._app if refused is None else refused.response())(requested, receive, sent)
        finally:
            self._note(scope, status, time.monotonic() - started)

    def _refused(self, method: str, headers: Headers) -> Problem | None:
        if self._hosts and _parse_host(headers.get("host", "")) not in self._hosts:
            return Problem(421, "Host: not a name of this service; add it with --allow-host, if it is one")
        if method not in ("GET", "HEAD", "OPTIONS") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return Problem(
                403, "sent by a page of another site; only the page of this service may upload from a browser"
            )
        return None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        self._service.requests.add(path if path in self._paths else "other", str(status))
        if path == "/predict":
            self._service.request_seconds.add(seconds)
        client = scope["client"][0] if scope.get("client") else "-"
        shown = quote(path, safe="/")[:_LONGEST_PATH]  # a path may hold anything, line ends included
        level = logging.WARNING if status >= 500 else logging.INFO
        _log.log(level, '%s "%s %s" %d in %.0f ms', client, scope["method"][:20], shown, status, 1000 * seconds)


def _parse_host(text: str) -> str:
    """Return the name in a Host header, without its port and brackets; "" where it holds none."""
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return ""
