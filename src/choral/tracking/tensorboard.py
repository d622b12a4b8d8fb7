"""Writes event files to RUN/tensorboard, with Accelerate's TensorBoard tracker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from choral.core.errors import ConfigError

_log = logging.getLogger(__name__)


def check_installed() -> None:
    """Raise ConfigError if TensorBoard, an optional dependency, is not installed."""
    if find_spec("tensorboard") is None:
        raise ConfigError("tracking.tensorboard: not installed; pip install 'choral[tensorboard]', or set it to false")


class TensorBoard:
    """A metric sink for TensorBoard.

    Args:
        folder: of the run.
        start_step: step at which this process continues; TensorBoard hides later steps that an earlier process logged.

    Raises:
        ConfigError: TensorBoard is not installed. Any other failure is logged once and disables this sink.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        check_installed()
        self._tracker: Any = None
        try:
            from accelerate.tracking import TensorBoardTracker

            self._tracker = TensorBoardTracker("tensorboard", str(folder), purge_step=start_step + 1)
            self._tracker.start()
        except Exception as error:
            self._disable(error)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        if self._tracker is None:
            return
        try:
            self._tracker.log({f"{split}/{key}": value for key, value in values.items()}, step=step)
        except Exception as error:  # tracking never fails a run
            self._disable(error)

    def close(self, failed: bool) -> None:
        """Close the event file."""
        if self._tracker is None:
            return
        try:
            self._tracker.finish()
        except Exception as error:
            self._disable(error)

    def _disable(self, error: Exception) -> None:
        self._tracker = None
        _log.warning("TensorBoard failed (%s): it is disabled for the rest of this run", error)
