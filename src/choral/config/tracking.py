"""Where metrics are sent, in addition to `metrics.jsonl`."""

from __future__ import annotations

from typing import Literal

from choral.config.fields import NonBinding
from choral.config.section import Section


class TrackingConfig(Section, frozen=True):
    """Where metrics are sent, in addition to `metrics.jsonl` in the run directory."""

    wandb: NonBinding[Literal["auto", "online", "offline", "off"]] = "auto"
    """Weights & Biases. auto: online if a user is logged in, else offline."""
    project: NonBinding[str] = "choral"
    """W&B project."""
    entity: NonBinding[str | None] = None
    """W&B team or user; null: the default of the login."""
    group: NonBinding[str | None] = None
    """W&B group of related runs; null: the name of the ensemble."""
    artifact: NonBinding[bool] = False
    """Upload the best checkpoint to W&B as an artifact."""
    worst_images: NonBinding[int] = 16
    """Number of worst predictions of each evaluated split to save in worst-SPLIT/ in the run directory and to upload to W&B;
    0: none."""
    tensorboard: NonBinding[bool] = False
    """Also write TensorBoard event files to the run directory."""
