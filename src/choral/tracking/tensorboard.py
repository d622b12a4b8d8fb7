"""Curves for TensorBoard in RUN/tensorboard, through Accelerate's tracker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from choral.core.errors import ConfigError

_log = logging.getLogger(__name__)


def check_installed() -> None:
    """Raise ConfigError unless TensorBoard, which is an extra, is installed."""
    if find_spec("tensorboard") is None:
        raise ConfigError("tracking.tensorboard: not installed; pip install 'choral[tensorboard]', or set it to false")


class TensorBoard:
    """Writes event files.

    Args:
        folder: of the run.
        start_step: where this start of the run begins; TensorBoard hides what an earlier one wrote of later steps.

    Raises:
        ConfigError: it is not installed. Whatever else goes wrong, then or later, is said once and left.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        check_installed()
        self._tracker: Any = None
        try:
            from accelerate.tracking import TensorBoardTracker

            self._tracker = TensorBoardTracker("tensorboard", str(folder), purge_step=start_step + 1)
            self._tracker.start()
        except Exception as error:
            self._give_up(error)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        if self._tracker is None:
            return
        try:
            self._tracker.log({f"{split}/{key}": value for key, value in values.items()}, step=step)
        except Exception as error:  # a tracker must never cost a training run
            self._give_up(error)

    def close(self, failed: bool) -> None:
        """Close the event file."""
        if self._tracker is None:
            return
        try:
            self._tracker.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._tracker = None
        _log.warning("TensorBoard failed (%s): no more is written for it", error)
