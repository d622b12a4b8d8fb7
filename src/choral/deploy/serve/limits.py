"""How much of everything a service takes: whatever is sent to it, its memory and the time of a request are bounded."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

from choral.core.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MAX_PIXELS = 50_000_000
"""Default limit per image: 50 megapixels. A decoder may briefly need 16 bytes per pixel."""


@dataclass(frozen=True)
class Limits:
    """What a service accepts, and how it batches.

    Memory is at most about what the model itself needs, `buffer`, `max_bytes` for each of `workers`, 16 bytes for each of
    `max_pixels`, and `queue` prepared images.
    """

    batch_size: int = 32
    """Maximum images per batch of the engine."""
    wait_ms: float = 5.0
    """How long an image may wait for others that are being decoded; with nothing on its way it never waits."""
    queue: int = 256
    """Images in progress (decoding, waiting or predicted); more are refused with 503."""
    max_bytes: int = 20_000_000
    """Of a request's body, all its files together."""
    max_files: int = 32
    """Images a request."""
    max_pixels: int = MAX_PIXELS
    """Height x width of an image by its header, and of all images that are decoded at the same time."""
    buffer: int = 256_000_000
    """Bytes of all uploads that are held at the same time; more are refused with 503."""
    timeout_s: float = 30.0
    """Seconds for a body to arrive (408), and again for its prediction (504)."""
    workers: int = 4
    """Threads that decode."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            lowest = 0 if one.name == "wait_ms" else math.ulp(0) if one.name == "timeout_s" else 1
            if not lowest <= value < math.inf:
                expected = {"wait_ms": "0 or more", "timeout_s": "more than 0"}.get(one.name, "at least 1")
                raise ConfigError(f"--{one.name.replace('_', '-')}: {value}, expected {expected}")
        if self.max_files > self.queue:
            raise ConfigError(f"--queue: {self.queue}, expected at least --max-files, which is {self.max_files}")
        if self.max_bytes > self.buffer:
            raise ConfigError(f"--buffer: {self.buffer}, expected at least --max-bytes, which is {self.max_bytes}")


def parse_size(text: str) -> int:
    """Return the number of bytes that a text such as 20MB, 512KiB or 1000000 means.

    Raises:
        ConfigError: it means none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].lower() not in _UNITS:
        raise ConfigError(f"'{text}' is no size; expected one such as 20MB, 512KiB or 1000000")
    return round(float(found[1]) * _UNITS[found[2].lower()])


def size_text(count: int) -> str:
    """Return a number of bytes as people write it: 20 MB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count} bytes"
