"""A connection that is cut off where its client takes too long; uvicorn by itself waits forever for the head of a request."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle


class Connection(H11Protocol):
    """HTTP/1.1 with limits on the time of everything that no application sees.

    Bodies have their own limit (`choral.deploy.serve.uploads`).
    """

    head_timeout_s: ClassVar[float] = 10.0
    """From the connection or the last response to the end of a request's head; and for the rest of a body after an early
    response such as 413, since closing at once would make many clients lose the response."""
    write_timeout_s: ClassVar[float] = 30.0
    """For a client to take what was sent to it."""

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._end_head_timer()
        self._end_write_timer()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        self._end_write_timer()
        self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Wait no more."""
        super().resume_writing()
        self._end_write_timer()

    def _watch(self) -> None:
        """Run the timer while no request is in progress; single bytes that trickle in do not restart it."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, despite uvicorn's types
        if cycle is not None and not cycle.response_complete:
            self._end_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
