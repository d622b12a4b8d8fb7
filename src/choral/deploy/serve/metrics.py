"""Metrics of a running service in the Prometheus text format: counters, histograms, and gauges read on request."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence

TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counter:
    """A number that only grows, for each combination of labels."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.text, self._labels = name, text, tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def add(self, *values: str, by: float = 1) -> None:
        """Count something with these labels."""
        with self._lock:
            self._values[values] = self._values.get(values, 0.0) + by

    def of(self, *values: str) -> float:
        """Return how much was counted with these labels."""
        return self._values.get(values, 0.0)

    def lines(self) -> list[str]:
        """Return its samples."""
        with self._lock:
            found = sorted(self._values.items())
        return [f"{self.name}{_labelled(self._labels, values)} {_number(value)}" for values, value in found]


class Histogram:
    """How often values were at most each bound; without labels."""

    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name, self.text, self._bounds = name, text, tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Count a value."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def lines(self) -> list[str]:
        """Return its samples: counts up to each bound, sum and count."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        found, seen = [], 0
        for bound, count in zip([*map(_number, self._bounds), "+Inf"], counts, strict=True):
            seen += count
            found.append(f'{self.name}_bucket{{le="{bound}"}} {seen}')
        return [*found, f"{self.name}_sum {_number(total)}", f"{self.name}_count {seen}"]


class Gauge:
    """A number that is read on request."""

    kind = "gauge"

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self.name, self.text, self._read = name, text, read

    def lines(self) -> list[str]:
        """Return its sample."""
        return [f"{self.name} {_number(self._read())}"]


def render_metrics(figures: Sequence[Counter | Histogram | Gauge]) -> str:
    """Return all figures as Prometheus reads them."""
    blocks = [[f"# HELP {one.name} {one.text}", f"# TYPE {one.name} {one.kind}", *one.lines()] for one in figures]
    return "\n".join(line for block in blocks for line in block) + "\n"


def _labelled(names: Sequence[str], values: Sequence[str]) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    pairs = ",".join(f'{name}="{escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
