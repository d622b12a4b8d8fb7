"""Several members, how they are asked, and where results are told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from choral.config.fields import check, tuning

LEGAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


Average = Literal["probabilities", "logits", "geometric"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How trained members are asked."""

    splits: tuple[str, ...] = tuning(("val", "test"))
    """Validation as well: what combines members (weights, temperature) is fitted there, and judged on test."""
    views: tuple[str, ...] = ("auto",)
    """Test-time views whose probabilities are averaged; d4 stands for the eight flips and rotations. auto: the image, and
    its mirror image if training shows mirrored ones (augment.hflip)."""
    average: Average = "probabilities"
    """Of a network's predictions under several views. logits: the mean of the outputs before softmax or sigmoid;
    geometric: of the logarithms of the probabilities, none below 1.2e-7, divided by their sum. For a softmax and for labels
    these two are the same but for that bound; for classes trained one against all (train.loss: bce) they are not.
    Numbers (task: regression) have the one mean."""
    batch_size: int | Literal["auto"] = tuning(64)
    """Images a forward pass and rank; views are passed one after the other. auto: as many as fit, at most 512, on a CPU 64,
    found once by trying and kept in batch.json of the run folder. Predictions depend on it in their last bits, so that on
    several machines a number gives equal ledgers. With auto, features and probes take 64, and validation while training no
    more than a micro-batch."""
    members_at_once: int | Literal["auto"] = tuning("auto")
    """Networks that are in memory together; the others take turns, and images are decoded once for all. auto: as many as
    have room, on a GPU by trying, on a CPU by the size of their weights. No prediction depends on it."""
    checkpoint: Literal["best", "last"] = "best"
    keep_views: bool | Literal["auto"] = "auto"
    """Keep each view's probabilities in the ledger, not only the identity and the mean; weights of views are learned from
    them. auto: where the ledger stays below 256 MiB, before compression."""
    held_out: bool = tuning(True)
    """With folds or bagging, ask members also about training samples they have not seen: predictions/held-out.parquet."""

    def __post_init__(self) -> None:
        check(len(self.splits) > 0, "evaluate.splits", "expected at least one split")
        check(
            self.members_at_once == "auto" or self.members_at_once > 0,
            "evaluate.members_at_once",
            "expected 1 or more, or auto",
        )
        check(len(self.views) > 0, "evaluate.views", "expected at least one view, such as identity")
        check(self.batch_size == "auto" or self.batch_size > 0, "evaluate.batch_size", "expected more than 0, or auto")

    @property
    def plain_batch_size(self) -> int:
        """Images a forward pass and rank where nothing is tried: auto is 64."""
        return 64 if self.batch_size == "auto" else self.batch_size


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
    """The members, trained as parallel jobs.

    Listed members and generators are multiplied: two architectures and five folds are ten members. `choral.config.members`
    says what each is called and sets. Without any of them the run is one network, called `model`.
    """

    members: tuple[MemberConfig, ...] = ()
    """Listed one by one, each with what it sets."""
    architectures: tuple[str, ...] = ()
    """Values of model.name, one member each."""
    resolutions: tuple[int, ...] = ()
    """Values of data.image_size."""
    grid: Mapping[str, Any] = field(default_factory=dict)
    """Any keys with the values they are to take, each with each: {train.lr: [1e-3, 3e-4], train.epochs: [5, 10]}."""
    seeds: int = 0
    """So many members that differ in the seed alone: that of the run, and those after it."""
    folds: int = 0
    """Parts of the training split, stratified by class, groups kept together; each member is trained on all but one of
    them, with a seed of its own, and asked about that one (out-of-fold predictions). All validate on the validation
    split, so that nothing of a fold reaches the member that it judges."""
    bagging: int = 0
    """Bootstrap samples of the training split, one a member, with a seed of its own (Breiman 1996); each member is asked
    about what it has not seen (out-of-bag predictions)."""
    bootstrap: Literal["poisson", "exact"] = "poisson"
    """poisson: a hash of each key says how often it occurs, Poisson distributed with mean 1 (Oza and Russell 2001); exact:
    as many draws with replacement as there are samples. Groups, where there are any, are drawn whole, as if each were one
    sample."""
    boosting: int = 0
    """Members trained one after the other, each on samples weighted by what the ones before got wrong (SAMME, Zhu et al.
    2009). Ends early at a member that is no better than chance. Not with other generators."""
    boosting_by: Literal["loss", "sampling"] = "loss"
    """Whether the weights multiply the losses, or are the probabilities that samples are drawn with."""
    snapshots: int = 0
    """Networks out of each training: its schedule is run through so many times within the same steps, and the weights at
    the end of each cycle are a voice (Huang et al. 2017)."""
    max_parallel: int = tuning(0)
    """Members trained at once; 0: as many as the devices (on a CPU: the cores) hold."""
    devices_per_member: int = tuning(1)
    """GPUs of each member, one rank each; on a CPU: ranks."""
    retries: int = tuning(1)
    """Further attempts of a member that fails."""

    def __post_init__(self) -> None:
        for key in ("seeds", "folds", "bagging", "boosting", "snapshots"):
            least = 2 if key in ("folds", "snapshots") else 1
            value = getattr(self, key)
            check(value == 0 or value >= least, f"ensemble.{key}", f"expected {least} or more, or 0: none")
        check(not (self.folds and self.bagging), "ensemble.bagging", "not together with folds: choose one")
        others = [
            key
            for key in ("members", "architectures", "resolutions", "grid", "seeds", "folds", "bagging", "snapshots")
            if getattr(self, key)
        ]
        check(
            not (self.boosting and others),
            "ensemble.boosting",
            f"is one chain of members, and goes with no other generator; remove {', '.join(others)}",
        )
        for key, values in self.grid.items():
            is_list = isinstance(values, list | tuple) and len(values) > 0
            check(is_list, f"ensemble.grid.{key}", f"expected a list of values, got '{values}'")
        check(not (self.seeds and "seed" in self.grid), "ensemble.grid.seed", "not together with seeds: choose one")
        for key in ("architectures", "resolutions"):
            values = getattr(self, key)
            check(len(set(values)) == len(values), f"ensemble.{key}", "a value stands twice")
        check(self.max_parallel >= 0, "ensemble.max_parallel", "expected 0 or more")
        check(self.devices_per_member >= 1, "ensemble.devices_per_member", "expected at least 1")
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
