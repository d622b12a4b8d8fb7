"""Runs of Weights & Biases: offline where nobody is logged in, and never the reason that a run of choral fails."""

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
from choral.config.files import to_values
from choral.runs.run_dir import RunDir, write_atomic
from choral.tracking.sweep import run_of_sweep

_log = logging.getLogger(__name__)

JobType = Literal["train", "member", "evaluation"]


@dataclass(frozen=True)
class Picture:
    """An image to be shown: (H, W, 3) uint8 RGB, and what is said of it."""

    image: NDArray[np.uint8]
    caption: str


class WandbRun:
    """A run of W&B; all that it cannot do is said once and then left.

    A run of choral has one for its training and one for its evaluations, each with the same id at every start, so that
    a continued run continues its curves. Members of an ensemble and its evaluation form a group.

    Args:
        config, folder: of the run of choral.
        job_type: "train", "member" or "evaluation".
    """

    def __init__(self, config: Config, folder: RunDir, job_type: JobType) -> None:
        self._run: Any = None
        tracking = config.tracking
        mode: str = tracking.wandb
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_MODE") != "offline" and _logged_in() else "offline"
        if mode == "off":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        if mode != "online":  # offline must mean it: wandb's own telemetry would still call home
            os.environ["WANDB_MODE"] = "offline"
            os.environ["WANDB_ERROR_REPORTING"] = "false"
        with _Forgiven(self, "could not start"):
            import wandb

            ensemble = folder.path.parent.parent if job_type == "member" else folder.path
            self._run = wandb.init(
                project=tracking.project,
                entity=tracking.entity,
                name=folder.name if job_type != "evaluation" else f"{folder.name} evaluation",
                group=tracking.group or RunDir(ensemble).name,
                job_type=job_type,
                dir=str(folder.path),
                mode="online" if mode == "online" else "offline",
                id=_id_of(folder, job_type),
                resume="allow" if mode == "online" else None,
                config=to_values(config),
                settings=wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True),
            )

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        with _Forgiven(self, "does not take reports"):
            if self._run is not None:
                self._run.log({f"{split}/{key}": value for key, value in values.items()}, step=step)

    def show(self, split: str, rows: Sequence[Mapping[str, Any]], pictures: Sequence[Picture]) -> None:
        """Send what an evaluation of a split came to: the table of scores, and images of the worst predictions."""
        with _Forgiven(self, "does not take the evaluation"):
            if self._run is None:
                return
            import wandb

            flat = [_flat(row) for row in rows]
            columns = list(dict.fromkeys(key for row in flat for key in row))
            table = wandb.Table(columns=columns, data=[[row.get(column) for column in columns] for row in flat])
            images = [wandb.Image(picture.image, caption=picture.caption) for picture in pictures]
            self._run.log({f"{split}/scores": table, f"{split}/worst": images})

    def send_checkpoint(self, path: Path, run_name: str) -> None:
        """Send the folder of a checkpoint as an artifact of type "model"."""
        with _Forgiven(self, "does not take the checkpoint"):
            if self._run is None:
                return
            import wandb

            artifact = wandb.Artifact(f"{run_name}-best", type="model")
            artifact.add_dir(str(path))
            self._run.log_artifact(artifact)

    def close(self, failed: bool) -> None:
        """Wait until all is written, or sent."""
        with _Forgiven(self, "could not finish"):
            if self._run is not None:
                self._run.finish(exit_code=int(failed))

    @property
    def took_all(self) -> bool:
        """Whether nothing has gone wrong so far."""
        return self._run is not None

    def _give_up(self, what: str, error: BaseException) -> None:
        self._run = None
        _log.warning("W&B %s (%s): nothing more goes there; all figures stand in the run folder", what, error)


class _Forgiven:
    """A context whose exceptions end the tracking, not the run."""

    def __init__(self, run: WandbRun, what: str) -> None:
        self._run, self._what = run, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._run._give_up(self._what, error)
        return True


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without nesting: "log_loss.low" and so on."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": innermost for inner, innermost in value.items()}
        else:
            flat[key] = value
    return flat


def _id_of(folder: RunDir, job_type: JobType) -> str:
    """Return the id that the folder keeps for its training, or its evaluations: the same at every start.

    That of a training that an agent of a sweep started is the agent's.
    """
    path = folder.path / ("wandb-id-evaluation" if job_type == "evaluation" else "wandb-id")
    if not path.is_file():
        given = run_of_sweep() if job_type == "train" else ""
        write_atomic(path, f"{given or uuid.uuid4().hex[:16]}\n")
    return path.read_text(encoding="utf-8").strip()


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
