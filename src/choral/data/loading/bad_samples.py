"""The policy for samples that cannot be read: fail at once, or skip and list them up to a limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from choral.core.errors import DataError


class BadSamples:
    """The policy of a run for samples that cannot be read; loaders of one split may share it.

    Args:
        mode: "fail" stops at the first one; "skip" continues with a zero image that is marked as not valid.
        max_fraction: with "skip", the largest allowed fraction of bad samples in the split.
        log: file to which a JSON line {"key", "shard", "offset", "reason"} is appended for each bad sample; None: no
            file.
    """

    def __init__(
        self, mode: Literal["fail", "skip"] = "fail", max_fraction: float = 0.01, log: Path | None = None
    ) -> None:
        self._mode, self._max_fraction, self._log = mode, max_fraction, log
        self._keys: set[str] = set()

    @property
    def count(self) -> int:
        """Number of distinct bad samples so far; one that occurs again in a later epoch counts once."""
        return len(self._keys)

    def record(self, key: str, shard: str, offset: int, reason: str, samples: int) -> None:
        """Record a bad sample.

        Args:
            key, shard, offset: its key, its shard, and the offset of its image in bytes.
            reason: why it cannot be read.
            samples: number of samples in the split, to which `max_fraction` refers.

        Raises:
            DataError: the mode is "fail", or more samples are bad than `max_fraction` allows.
        """
        where = f"{shard}: sample {key!r} at byte {offset}: {reason}"
        if self._mode == "fail":
            raise DataError(f"{where}. Set data.on_bad_sample: skip to continue without such samples")
        if key in self._keys:
            return
        self._keys.add(key)
        if self._log is not None:
            line = json.dumps({"key": key, "shard": shard, "offset": offset, "reason": reason}, ensure_ascii=False)
            with self._log.open("a", encoding="utf-8") as file:  # one write per line: ranks may share the file
                file.write(line + "\n")
        if self.count > self._max_fraction * samples:
            listed = f", listed in {self._log}" if self._log is not None else ""
            bound = f"more than max_bad_fraction {self._max_fraction:g}"
            raise DataError(f"{self.count} of {samples} samples cannot be read{listed}: {bound}. Last: {where}")
