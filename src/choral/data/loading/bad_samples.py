"""What happens with a sample that cannot be read: fail, or count it, list it, and fail when there are too many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from choral.core.errors import DataError


class BadSamples:
    """The policy of one run for samples that cannot be read; may be shared by loaders of one split.

    Args:
        mode: "fail" stops at the first one, "skip" goes on with a zero image that is marked as not valid.
        max_fraction: with "skip", the share of the split's samples that may be bad.
        log: a file to which one JSON line {"key", "shard", "offset", "reason"} is appended for each bad sample.
    """

    def __init__(
        self, mode: Literal["fail", "skip"] = "fail", max_fraction: float = 0.01, log: Path | None = None
    ) -> None:
        self._mode, self._max_fraction, self._log = mode, max_fraction, log
        self._seen: set[str] = set()

    @property
    def count(self) -> int:
        """Different bad samples so far; one that comes again in a later epoch counts once."""
        return len(self._seen)

    def record(self, key: str, shard: str, offset: int, reason: str, samples: int) -> None:
        """Take note of a bad sample.

        Args:
            key, shard, offset: which one, and where its bytes begin.
            reason: why it cannot be read.
            samples: size of the split, which `max_fraction` refers to.

        Raises:
            DataError: the policy is to fail, or more samples are bad than may be.
        """
        where = f"{shard}: sample {key!r} at byte {offset}: {reason}"
        if self._mode == "fail":
            raise DataError(f"{where}. To go on without such samples: on_bad_sample: skip")
        if key in self._seen:
            return
        self._seen.add(key)
        if self._log is not None:
            line = json.dumps({"key": key, "shard": shard, "offset": offset, "reason": reason}, ensure_ascii=False)
            with self._log.open("a", encoding="utf-8") as file:  # one write a line: ranks may share the file
                file.write(line + "\n")
        if self.count > self._max_fraction * samples:
            listed = f", listed in {self._log}" if self._log is not None else ""
            bound = f"more than max_bad_fraction {self._max_fraction:g}"
            raise DataError(f"{self.count} of {samples} samples cannot be read{listed}: {bound}. Last: {where}")
