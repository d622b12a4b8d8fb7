"""Logging to Weights & Biases: offline without a login, and never the reason that a run fails."""

from __future__ import annotations

import logging
import netrc
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from choral.config import Config
from choral.config.files import to_dict
from choral.runs.run_dir import RunDir, write_atomic
from choral.tracking.sweep import sweep_run_id

_log = logging.getLogger(__name__)

JobType = Literal["train", "member", "evaluation"]


@dataclass(frozen=True)
class CaptionedImage:
    """An image, (H, W, 3) uint8 RGB, with its caption."""

    image: NDArray[np.uint8]
    caption: str


class WandbRun:
    """A metric sink for W&B. After its first failure it logs one warning and ignores all further calls.

    A run of choral has one W&B run for its training and one for its evaluations. Each keeps its id across restarts, so
    that a continued run continues its curves. The members of an ensemble and its evaluation form a group.

    Args:
        config: of the run.
        run_dir: of the run.
        job_type: "train", "member" or "evaluation".
    """

    def __init__(self, config: Config, run_dir: RunDir, job_type: JobType) -> None:
        self._run: Any = None
        tracking = config.tracking
        mode: str = tracking.wandb
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_MODE") != "offline" and _logged_in() else "offline"
        if mode == "off":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        if mode != "online":  # otherwise wandb's telemetry still connects to the network
            os.environ["WANDB_MODE"] = "offline"
            os.environ["WANDB_ERROR_REPORTING"] = "false"
        with _DisableOnError(self, "could not start"):
            import wandb

            ensemble = run_dir.path.parent.parent if job_type == "member" else run_dir.path
            self._run = wandb.init(
                project=tracking.project,
                entity=tracking.entity,
                name=run_dir.name if job_type != "evaluation" else f"{run_dir.name} evaluation",
                group=tracking.group or RunDir(ensemble).name,
                job_type=job_type,
                dir=str(run_dir.path),
                mode="online" if mode == "online" else "offline",
                id=_read_or_create_id(run_dir, job_type),
                resume="allow" if mode == "online" else None,
                config=to_dict(config),
                settings=wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True),
            )

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        with _DisableOnError(self, "could not log metrics"):
            if self._run is not None:
                self._run.log({f"{split}/{key}": value for key, value in values.items()}, step=step)

    def log_evaluation(self, split: str, rows: Sequence[Mapping[str, Any]], images: Sequence[CaptionedImage]) -> None:
        """Log the evaluation of a split: the table of scores, and the images with the largest losses."""
        with _DisableOnError(self, "could not log the evaluation"):
            if self._run is None:
                return
            import wandb

            flat = [_flatten(row) for row in rows]
            columns = list(dict.fromkeys(key for row in flat for key in row))
            table = wandb.Table(columns=columns, data=[[row.get(column) for column in columns] for row in flat])
            logged = [wandb.Image(image.image, caption=image.caption) for image in images]
            self._run.log({f"{split}/scores": table, f"{split}/worst": logged})

    def log_checkpoint(self, path: Path, run_name: str) -> None:
        """Log the folder of a checkpoint as an artifact of type "model"."""
        with _DisableOnError(self, "could not log the checkpoint"):
            if self._run is None:
                return
            import wandb

            artifact = wandb.Artifact(f"{run_name}-best", type="model")
            artifact.add_dir(str(path))
            self._run.log_artifact(artifact)

    def close(self, failed: bool) -> None:
        """Wait until everything is written or uploaded."""
        with _DisableOnError(self, "could not finish"):
            if self._run is not None:
                self._run.finish(exit_code=int(failed))

    @property
    def is_healthy(self) -> bool:
        """Whether W&B is enabled and nothing has failed so far."""
        return self._run is not None

    def _disable(self, problem: str, error: BaseException) -> None:
        self._run = None
        _log.warning(
            "W&B %s (%s): it is disabled for the rest of this run; all metrics are in the run directory", problem, error
        )


class _DisableOnError:
    """A context manager whose exceptions disable the tracking instead of failing the run."""

    def __init__(self, run: WandbRun, problem: str) -> None:
        self._run, self._problem = run, problem

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._run._disable(self._problem, error)
        return True


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with nested keys joined by dots, such as "log_loss.low"."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": innermost for inner, innermost in value.items()}
        else:
            flat[key] = value
    return flat


def _read_or_create_id(run_dir: RunDir, job_type: JobType) -> str:
    """Return the W&B run id of a run's training or evaluations, which is stored in the run directory.

    In a sweep, the training gets the id from the sweep agent.
    """
    path = run_dir.path / ("wandb-id-evaluation" if job_type == "evaluation" else "wandb-id")
    if not path.is_file():
        sweep_id = sweep_run_id() if job_type == "train" else ""
        write_atomic(path, f"{sweep_id or uuid.uuid4().hex[:16]}\n")
    return path.read_text(encoding="utf-8").strip()


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
