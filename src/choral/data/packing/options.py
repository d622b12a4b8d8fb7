"""How a source is packed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from choral.core.errors import ConfigError

TASKS = ("multiclass", "multilabel", "regression")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class PackOptions:
    """Options of `pack`; what they mean to a source is said there.

    Raises:
        ConfigError: a value out of its range.
    """

    val: float | None = None  # fraction of ALL samples; None: the source's own default
    test: float | None = None
    seed: int = 0  # of splits and of the order in the shards
    stratify: tuple[str, ...] = ()  # metadata columns whose mix, beside the label's, is kept the same in all splits
    image_column: str = "image"  # of a manifest
    label_column: str = "label"  # of a manifest, or field of the .json in a tar; elsewhere a column of the metadata
    split_column: str = "split"
    group_column: str = "group"  # samples of one group never come into different splits
    max_size: int | None = None  # longest side in pixels; larger images are encoded again
    quality: int | None = (
        None  # of JPEG, 1 to 95; given, every image is encoded again; None: 90 where `max_size` asks for it
    )
    samples_per_shard: int = 1000  # at most; small data get smaller shards
    processes: int = field(default_factory=_usable_cores)
    task: str = "multiclass"  # multilabel: labels separated by ; or |; regression: the columns `targets`
    targets: tuple[str, ...] = ()  # with regression: metadata columns of numbers
    force: bool = False  # replace what choral packed into the same folder before
    root: str | None = None  # torchvision: where its files lie or are downloaded to

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, value in (("val", self.val), ("test", self.test)):
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name} is {value}, expected a fraction of all samples, at least 0 and below 1")
        if (self.val or 0) + (self.test or 0) >= 1:
            raise ConfigError(
                f"val ({self.val}) and test ({self.test}) leave nothing to train on: their sum must be below 1"
            )
        if self.task not in TASKS:
            raise ConfigError(f"task is {self.task!r}, expected one of {', '.join(TASKS)}")
        if (self.task == "regression") != bool(self.targets):
            raise ConfigError(
                "task regression needs a target: name a column of numbers"
                if self.task == "regression"
                else f"targets are of task regression, the task is {self.task}"
            )
        if len(set(self.targets)) < len(self.targets):
            raise ConfigError(f"a target stands twice: {', '.join(self.targets)}")
        if self.max_size is not None and self.max_size < 1:
            raise ConfigError(f"max_size is {self.max_size}, expected at least 1 pixel")
        if self.quality is not None and not 1 <= self.quality <= 95:
            raise ConfigError(f"quality is {self.quality}, expected 1 to 95")
        for name, count in (("samples_per_shard", self.samples_per_shard), ("processes", self.processes)):
            if count < 1:
                raise ConfigError(f"{name} is {count}, expected at least 1")
