"""Where the figures of a run go beside the terminal: a line of JSON, W&B, TensorBoard, each behind the same interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Sink(Protocol):
    """Takes reports; one that fails says so once and takes no more: a tracker must never cost a run."""

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Take the figures of a split ("train", "val") after `step` optimizer steps."""

    def close(self, failed: bool) -> None:
        """Write what is pending; nothing is logged afterwards."""
