"""Requests to images: bodies are counted while they arrive, held in memory within limits, and never written to disk."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from choral.deploy.serve.limits import Limits, size_text
from choral.deploy.serve.problems import Problem, busy

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # controls, and what turns text around
_LONGEST_NAME = 200
_BLOCK = 1 << 18  # bytes
_HOW = (
    "send an image as the body (Content-Type: image/jpeg, image/png ... or application/octet-stream),"
    " or as multipart/form-data"
)


class Blocks:
    """Bytes that come in pieces of any size.

    Pieces as they come would hold many times their size where they are single bytes, and one array that grows would be
    copied from place to place, which leaves memory in holes.
    """

    def __init__(self) -> None:
        self._full: list[bytes] = []
        self._last = bytearray()

    def __bool__(self) -> bool:
        """Whether there are any bytes."""
        return bool(self._full or self._last)

    def add(self, piece: bytes) -> None:
        """Put a piece to the end."""
        self._last += piece
        if len(self._last) >= _BLOCK:
            self._full.append(bytes(self._last))
            self._last.clear()

    def taken(self) -> bytes:
        """Return all of it, and keep nothing."""
        found = b"".join([*self._full, self._last])
        self._full.clear()
        self._last.clear()
        return found


@dataclass(frozen=True)
class Upload:
    """An image as it came.

    Attributes:
        name: of the file, as the client calls it, without folders and control characters.
        data: encoded; put together where it is decoded, so that two copies of few files alone exist at the same time.
    """

    name: str
    data: Blocks


class Buffer:
    """Bytes of uploads that are held at the same time; of one event loop."""

    def __init__(self, most: int) -> None:
        self._most, self.held = most, 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Give a request what it takes its bytes from; they are given back at the end, if not before."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back()

    def take(self, count: int) -> None:
        """Hold more; 503 where there is no room."""
        if self.held + count > self._most:
            raise busy(f"uploads hold {size_text(self._most)} already", {"buffer": self._most})
        self.held += count


class Share:
    """What one request holds of a buffer."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer, self.held = buffer, 0

    def take(self, count: int) -> None:
        """Hold more; 503 where there is no room."""
        self._buffer.take(count)
        self.held += count

    def give_back(self) -> None:
        """Hold nothing any more."""
        self._buffer.held -= self.held
        self.held = 0


async def read_uploads(request: Request, limits: Limits, share: Share) -> list[Upload]:
    """Return the images of a request, at least one.

    Raises:
        Problem: 400 no or damaged multipart, 408 too slow, 413 too many bytes or files, 415 another content type, 499 the
            client has gone, 503 no room for it at the moment.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Problem(415, f"Content-Encoding {encoding[:40]!r}: bodies are not decompressed; send the image as it is")
    if kind == b"multipart/form-data":
        parts: _Parts | _Raw = _Parts(options.get(b"boundary"), limits.max_files)
    elif kind in (b"", b"application/octet-stream") or kind.startswith(b"image/"):
        parts = _Raw(_plain_name(request.query_params.get("name", "image")))
    else:
        raise Problem(415, f"Content-Type {kind.decode('latin-1')[:80]!r}: {_HOW}")
    try:
        async with asyncio.timeout(limits.timeout_s):
            await _read(request, limits, share, parts)
    except TimeoutError:
        # Closed: what is still on its way would be taken for the next request.
        raise Problem(
            408,
            f"the body did not arrive within {limits.timeout_s:g} s",
            {"timeout_s": limits.timeout_s},
            {"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise Problem(499, "the client has gone") from None
    return parts.uploads()


async def _read(request: Request, limits: Limits, share: Share, parts: _Parts | _Raw) -> None:
    stated = request.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and int(stated[:20]) > limits.max_bytes:
        raise _too_large(limits)
    async for chunk in request.stream():
        if share.held + len(chunk) > limits.max_bytes:
            raise _too_large(limits)
        share.take(len(chunk))
        parts.write(chunk)


def _too_large(limits: Limits) -> Problem:
    detail = f"a body of more than {size_text(limits.max_bytes)} ({limits.max_bytes:,} bytes), all its files together"
    return Problem(413, detail, {"max_bytes": limits.max_bytes})


class _Raw:
    """A body that is one image."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._data = Blocks()

    def write(self, chunk: bytes) -> None:
        self._data.add(chunk)

    def uploads(self) -> list[Upload]:
        if not self._data:
            raise Problem(400, f"an empty body; {_HOW}")
        return [Upload(self._name, self._data)]


class _Parts:
    """A multipart body, each part of which is a file."""

    def __init__(self, boundary: bytes | None, max_files: int) -> None:
        if boundary is None:
            raise Problem(400, "multipart/form-data without a boundary in its Content-Type")
        self._max_files = max_files
        self._found: list[tuple[str, Blocks]] = []
        self._field, self._value, self._disposition = b"", b"", b""
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_part_data": self._data,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _damaged(error) from error

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _damaged(error) from error

    def uploads(self) -> list[Upload]:
        if not self._ended:
            raise Problem(400, "multipart/form-data that is cut short: its last boundary is missing")
        if not self._found:
            raise Problem(400, "multipart/form-data without a file; send each image as a part with a file name")
        return [Upload(name, data) for name, data in self._found]

    def _begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            field = _plain_name(options.get(b"name", b"").decode("utf-8", "replace"))
            raise Problem(400, f"the part '{field}' has no file name; each part must be an image, with a file name")
        if len(self._found) == self._max_files:
            raise Problem(413, f"more than {self._max_files} files in a request", {"max_files": self._max_files})
        self._found.append((_plain_name(options[b"filename"].decode("utf-8", "replace")), Blocks()))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._found[-1][1].add(data[start:end])

    def _end(self) -> None:
        self._ended = True


def _damaged(error: FormParserError) -> Problem:
    return Problem(400, f"multipart/form-data that cannot be read: {error}")


def _plain_name(text: str) -> str:
    """Return a file name without folders, and without what could change a terminal, a log or the order of letters."""
    last = re.split(r"[/\\]", text)[-1]
    return _UNPRINTABLE.sub("\ufffd", last)[:_LONGEST_NAME] or "image"
