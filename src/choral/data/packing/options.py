"""Options of `choral pack`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from choral.core.errors import ConfigError

TASKS = ("multiclass", "multilabel", "regression")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class PackOptions:
    """Options of `pack`.

    Raises:
        ConfigError: a value is out of range.
    """

    val: float | None = None
    """Fraction of all samples for validation; None: the default of the source."""
    test: float | None = None
    """Fraction of all samples for testing; None: the default of the source."""
    seed: int = 0
    """Of the splits, and of the order of samples in the shards."""
    stratify: tuple[str, ...] = ()
    """Metadata columns whose distribution is kept the same in all splits, as that of the label always is."""
    image_column: str = "image"
    """Manifest: the column of image paths."""
    label_column: str = "label"
    """The label: a column of a manifest, a field of the .json files in tars, a metadata column of other sources."""
    split_column: str = "split"
    group_column: str = "group"
    """Samples of the same group are always in the same split."""
    max_size: int | None = None
    """Longest side in pixels; larger images are scaled down and re-encoded."""
    quality: int | None = None
    """JPEG quality, 1 to 95. If set, every image is re-encoded; None: 90 for images that `max_size` scales."""
    samples_per_shard: int = 1000
    """Upper limit; small data sets get smaller shards."""
    processes: int = field(default_factory=_usable_cores)
    task: str = "multiclass"
    """multiclass, multilabel (labels separated by ; or |) or regression (of the columns `targets`)."""
    targets: tuple[str, ...] = ()
    """Regression: numeric metadata columns."""
    force: bool = False
    """Replace an earlier pack in the same directory."""
    root: str | None = None
    """torchvision: directory of its files, and where it downloads to."""

    def __post_init__(self) -> None:
        """Check the ranges of values."""
        for name, value in (("val", self.val), ("test", self.test)):
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name} is {value}, expected a fraction of all samples, at least 0 and below 1")
        if (self.val or 0) + (self.test or 0) >= 1:
            raise ConfigError(
                f"val ({self.val}) and test ({self.test}) leave no training samples: their sum must be below 1"
            )
        if self.task not in TASKS:
            raise ConfigError(f"task is {self.task!r}, expected one of {', '.join(TASKS)}")
        if (self.task == "regression") != bool(self.targets):
            raise ConfigError(
                "task regression needs a target: name a numeric column"
                if self.task == "regression"
                else f"targets apply to task regression only, but the task is {self.task}"
            )
        if len(set(self.targets)) < len(self.targets):
            raise ConfigError(f"a target is listed twice: {', '.join(self.targets)}")
        if self.max_size is not None and self.max_size < 1:
            raise ConfigError(f"max_size is {self.max_size}, expected at least 1 pixel")
        if self.quality is not None and not 1 <= self.quality <= 95:
            raise ConfigError(f"quality is {self.quality}, expected 1 to 95")
        for name, count in (("samples_per_shard", self.samples_per_shard), ("processes", self.processes)):
            if count < 1:
                raise ConfigError(f"{name} is {count}, expected at least 1")
