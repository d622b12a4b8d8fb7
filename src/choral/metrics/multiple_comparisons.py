"""P values of several comparisons that are looked at together."""

from __future__ import annotations

from collections.abc import Sequence


def holm(values: Sequence[float], comparisons: int | None = None) -> list[float]:
    """Return p values after Holm 1979, "A simple sequentially rejective multiple test procedure", in the same order.

    What is below a level then is significant at it: the chance of a single false alarm among all comparisons is below it.

    Args:
        values: p values, 0 to 1.
        comparisons: that were made; None: as many as there are values. Fewer where some are one and the same.
    """
    count = len(values) if comparisons is None else comparisons
    found, largest = [0.0] * len(values), 0.0
    for place, number in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, values[number] * max(1, count - place)))
        found[number] = largest
    return found
