"""Several members, how they are asked, and where results are told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from choral.config.fields import check, tuning

LEGAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How trained members are asked."""

    splits: tuple[str, ...] = ("test",)
    views: tuple[str, ...] = ("identity", "hflip")
    """Test-time views whose probabilities are averaged; d4 stands for the eight flips and rotations."""
    batch_size: int = tuning(64)
    """Images a forward pass and rank; views are passed one after the other."""
    checkpoint: Literal["best", "last"] = "best"
    keep_views: bool = False
    """Keep each view's probabilities in the ledger, not only the identity and the mean."""

    def __post_init__(self) -> None:
        check(len(self.splits) > 0, "evaluate.splits", "expected at least one split")
        check(len(self.views) > 0, "evaluate.views", "expected at least one view, such as identity")
        check(self.batch_size > 0, "evaluate.batch_size", "expected more than 0")


@dataclass(frozen=True, kw_only=True)
class MemberConfig:
    """One voice of the ensemble."""

    name: str
    """Names its folder and its row in tables: letters, digits, dot, dash, underscore."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the run's config, as dotted keys: {model.name: ..., seed: 1}."""

    def __post_init__(self) -> None:
        legal = LEGAL_NAME.fullmatch(self.name) is not None
        check(legal, "ensemble.members", f"'{self.name}' is no member name: use letters, digits, '.', '_' and '-'")


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """The members, trained as parallel jobs on this machine."""

    members: tuple[MemberConfig, ...] = ()
    """None: the run is one network, called `model`."""
    max_parallel: int = tuning(0)
    """Members trained at once; 0: as many as the devices (on a CPU: the cores) hold."""
    processes_per_member: int = tuning(1)
    """Ranks, and on a GPU machine devices, of each member."""
    retries: int = tuning(1)
    """Further attempts of a member that fails."""

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        for name in names:
            check(names.count(name) == 1, "ensemble.members", f"two members are called '{name}': names must differ")
        check(self.max_parallel >= 0, "ensemble.max_parallel", "expected 0 or more")
        check(self.processes_per_member >= 1, "ensemble.processes_per_member", "expected at least 1")
        check(self.retries >= 0, "ensemble.retries", "expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where curves go beside `metrics.jsonl` in the run folder."""

    wandb: Literal["auto", "online", "offline", "off"] = tuning("auto")
    """auto: online where somebody is logged in, offline elsewhere."""
    project: str = tuning("choral")
    entity: str | None = tuning(None)
    group: str | None = tuning(None)
    """Of the runs that belong together; null: the name of the ensemble."""
    artifact: bool = tuning(False)
    """Send the best checkpoint to W&B as an artifact."""
    worst_images: int = tuning(16)
    """Of each evaluated split, written to worst-SPLIT/ in the run folder and sent to W&B; 0: none."""
    tensorboard: bool = tuning(False)
    """Write curves for TensorBoard into the run folder, too."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A published figure, shown beside the run's own."""

    name: str
    metric: Literal["accuracy", "mean_ap", "mae", "rmse", "r2"] = "accuracy"
    value: float
    """In the unit of the metric: 0.8842, not 88.42."""
    source: str
    split: str = "test"
    """Whose table it stands in."""

    def __post_init__(self) -> None:
        share = self.metric in ("accuracy", "mean_ap")
        legal = not share or 0 <= self.value <= 1
        check(legal, "references", f"'{self.name}': expected a value from 0 to 1, such as 0.8842")
