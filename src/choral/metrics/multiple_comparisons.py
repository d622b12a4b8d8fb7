"""P values corrected for several comparisons made at once."""

from __future__ import annotations

from collections.abc import Sequence


def holm(values: Sequence[float], comparisons: int | None = None) -> list[float]:
    """Return Holm-adjusted p values, in the order given.

    Holm 1979, "A simple sequentially rejective multiple test procedure". Rejecting all p values
    below a level keeps the probability of any false rejection below it.

    Args:
        values: p values, 0 to 1.
        comparisons: number of comparisons; None: as many as there are values. Fewer if some are identical.
    """
    count = len(values) if comparisons is None else comparisons
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, position in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, values[position] * max(1, count - rank)))
        adjusted[position] = largest
    return adjusted
