"""Where the metrics of a run are logged: metrics.jsonl, W&B, TensorBoard, the progress bar, all with one interface.

In: metrics of a step. Out: files, or requests to W&B. Open this file first, then `jsonl`, the simplest sink.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class MetricSink(Protocol):
    """Logs metrics. After its first failure it logs one warning and ignores all further calls: tracking never fails a run."""

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Log the metrics of a split ("train", "val") after `step` optimizer steps."""

    def close(self, failed: bool) -> None:
        """Flush; nothing is logged afterwards."""
