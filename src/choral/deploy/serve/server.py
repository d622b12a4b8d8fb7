"""A service on a socket that stops gracefully: accepted requests are finished first."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from types import FrameType

import uvicorn

from choral.core.errors import ConfigError
from choral.deploy.serve.app import build_app
from choral.deploy.serve.batching import Predicting
from choral.deploy.serve.connection import Connection
from choral.deploy.serve.limits import Limits
from choral.deploy.serve.service import Service

_MOST_CONNECTIONS = 900  # below 1,024, the usual limit on a process's open files
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def bound_socket(host: str, port: int) -> socket.socket:
    """Bind a socket, so that a port in use is found before a model is loaded.

    Raises:
        ConfigError: no such host, or a port that is taken or reserved.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}") from error
    found = socket.socket(family, kind)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise _no_port(port, error) from error
    return found


def _no_port(port: int, error: OSError) -> ConfigError:
    return ConfigError(f"--port {port}: {error.strerror}; choose another, or 0 for any that is free")


def is_loopback(bound: socket.socket) -> bool:
    """Whether only programs of this machine reach a socket."""
    return ip_address(bound.getsockname()[0].split("%")[0]).is_loopback


def server_url(bound: socket.socket) -> str:
    """Return the address that a browser on this machine opens."""
    host, port = bound.getsockname()[:2]
    if ip_address(host.split("%")[0]).is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """A predictor behind a socket.

    Args:
        predictor: predicts the images.
        limits: what is accepted.
        bound: where it listens; closed at the end.
        hosts: further accepted names in the Host header. On a loopback address its own names are accepted, others are not;
            elsewhere all are, unless some are given here.
        started: called once requests are accepted.
    """

    def __init__(
        self,
        predictor: Predicting,
        limits: Limits,
        bound: socket.socket,
        hosts: Collection[str] = (),
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self.service = Service(predictor, limits)
        self._bound, self._started = bound, started
        own = (*_LOOPBACK_NAMES, bound.getsockname()[0]) if is_loopback(bound) or hosts else ()
        super().__init__(
            uvicorn.Config(
                build_app(self.service, {*own, *hosts}),
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,  # the gate's own, to stderr
                proxy_headers=False,  # anybody could write them
                server_header=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=round(2 * limits.timeout_s) + 5,
            )
        )

    def serve_until_told(self) -> int:
        """Serve until SIGTERM or Ctrl-C, finish accepted requests, and return the number of predicted images."""
        try:
            self.run(sockets=[self._bound])
        finally:
            if self.force_exit:
                self.service.abandon()
            else:
                self.service.close()
        return self.service.answered

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and report it.

        Raises:
            ConfigError: another process bound the port at the same time, which is allowed, and listens already.
        """
        try:
            await super().startup(sockets)
        except OSError as error:
            raise _no_port(self._bound.getsockname()[1], error) from error
        self._started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Like uvicorn, but a stop signal is not raised again at the end, since stopping is not a failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.service.closing = True
        self.handle_exit(number, frame)


def log_to_stderr(quiet: bool) -> None:
    """Let requests and defects be logged to stderr; quiet: only what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in ("choral.deploy.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING if quiet or name.startswith("uvicorn") else logging.INFO)
