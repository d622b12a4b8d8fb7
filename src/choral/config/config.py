"""`Config`, the whole config of a run, and the checks across its sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from annotated_types import Ge, Le
from pydantic import Field, model_validator

from choral.config.analyze import AnalyzeConfig
from choral.config.augment import AugmentConfig
from choral.config.data import DataConfig, Task
from choral.config.ensemble import EnsembleConfig
from choral.config.evaluate import EvaluateConfig, Reference
from choral.config.export import ExportConfig
from choral.config.fields import NAME_PATTERN, NonBinding, check
from choral.config.members import resolve_members
from choral.config.model import FinetuneConfig, ModelConfig
from choral.config.section import Section
from choral.config.tracking import TrackingConfig
from choral.config.train import TrainConfig
from choral.config.tune import TuneConfig
from choral.core.errors import did_you_mean

STAGES = ("pack", "baseline", "analyze", "improve", "ensemble", "evaluate", "export")
"""The stages of `choral run`, in the order in which they run."""

_LOSSES = {
    "multiclass": ("auto", "cross_entropy", "bce", "focal"),
    "multilabel": ("auto", "bce", "focal"),
    "regression": ("auto", "mse", "l1", "huber"),
}
_FITTED_LOSSES = {"multiclass": "cross_entropy", "multilabel": "bce", "regression": "mse"}
_METRICS = {
    "multiclass": ("auto", "accuracy", "log_loss"),
    "multilabel": ("auto", "mean_ap", "f1", "log_loss"),
    "regression": ("auto", "mae", "rmse", "r2"),
}
_MEMBER_KEYS = ("seed", "data", "model", "finetune", "augment", "train")


class Config(Section, frozen=True):
    """One run: what `choral train`, `ensemble`, `evaluate`, `score` and `run` work on."""

    run: str = ""
    """Name of the run and of its directory, runs/NAME; default: the name of the config file."""
    seed: Annotated[int, Ge(0), Le(2**31 - 1)] = 0
    """Seed of everything random in training."""
    project: NonBinding[str] = ""
    """Scoreboard that the run's evaluations are added to, see `choral scores`; "": the name of the data set."""
    step: NonBinding[str] = ""
    """Label of the run on the scoreboard: what was tried, such as baseline, +augment or +lp_ft; "": the name of the run."""
    stages: NonBinding[tuple[str, ...]] = ("pack", "ensemble", "evaluate")
    """Stages of `choral run`, always in this order: pack; baseline (one model of this config, as the run NAME-baseline);
    analyze (probes, advice and the report of that model, on validation data); improve (trains with the advice, keeps it if
    it helps); ensemble (the members, or the single model, with the kept advice); evaluate (the only use of the test split);
    export (to RUN/bundle). all: every stage."""
    task: Task = "multiclass"
    """multiclass: one class an image. multilabel: any number of labels. regression: numbers."""
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    analyze: AnalyzeConfig = Field(default_factory=AnalyzeConfig)
    ensemble: EnsembleConfig = Field(default_factory=EnsembleConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    tune: TuneConfig = Field(default_factory=TuneConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    references: NonBinding[tuple[Reference, ...]] = ()
    """Published figures to list beside the run's scores."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for key, name, kind in (("run", self.run, "run name"), ("project", self.project, "scoreboard name")):
            legal = not name or NAME_PATTERN.fullmatch(name) is not None
            check(legal, key, f"'{name}' is not a {kind}: use letters, digits, '.', '_' and '-'")
        check(self.run != "scoreboard", "run", "runs/scoreboard holds the scoreboards: use another name")
        check(len(self.step) <= 64 and self.step.isprintable(), "step", "expected one line of at most 64 characters")
        check_stages(self.stages, "stages")
        return self

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        check(bool(self.data.shards), "data.shards", "expected the folder that `choral pack SOURCE OUT` wrote")
        steps = self.train.accumulate_steps
        micro_batch = self.train.batch_size // (1 if steps == "auto" else steps)
        check(
            micro_batch % self.data.lanes == 0,
            "data.lanes",
            f"must divide the micro-batch: {micro_batch} samples cannot be shared by {self.data.lanes} lanes",
        )
        return self

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        train, task = self.train, self.task
        for key, value, allowed in (("loss", train.loss, _LOSSES[task]), ("best_by", train.best_by, _METRICS[task])):
            check(value in allowed, f"train.{key}", f"with task: {task}, expected one of {', '.join(allowed)}")
        if task == "multiclass":
            check(not self.data.targets, "data.targets", "needs task: regression or multilabel")
        else:
            check(
                self.data.sampling == "shuffled",
                "data.sampling",
                "balanced needs task: multiclass: it balances classes",
            )
            check(
                not train.label_probabilities,
                "train.label_probabilities",
                f"needs task: multiclass; {'numbers have no classes' if task == 'regression' else 'labels are 0 or 1'}",
            )
        if task == "regression":
            check(train.class_weights == "none", "train.class_weights", "regression has no classes")
            check(not train.label_smoothing, "train.label_smoothing", "regression has no labels")
            check(
                self.evaluate.average == "probabilities",
                "evaluate.average",
                f"{self.evaluate.average} averages probabilities, which task: regression does not have: expected the default",
            )
        return self

    @model_validator(mode="after")
    def _check_strategy(self) -> Self:
        strategy, train = self.finetune.strategy, self.train
        check(
            self.task == "multiclass" or strategy not in ("svm", "auto"),
            "finetune.strategy",
            f"{strategy} needs task: multiclass; linear and lp_ft support all tasks",
        )
        check(
            strategy not in ("linear", "svm", "auto") or train.loss in ("auto", _FITTED_LOSSES[self.task]),
            "train.loss",
            f"with finetune.strategy: {strategy}, whose head may be fitted to features with a fixed loss, "
            f"expected auto or {_FITTED_LOSSES[self.task]}, got {train.loss}",
        )
        check(
            not (train.cycles > 1 or self.ensemble.snapshots) or strategy not in ("linear", "svm", "auto"),
            "finetune.strategy",
            f"with train.cycles or ensemble.snapshots, expected a strategy that trains in steps; {strategy} does not, or "
            "may not",
        )
        return self

    @model_validator(mode="after")
    def _check_boosting(self) -> Self:
        if self.data.resample.kind != "boost" and not self.ensemble.boosting:
            return self
        check(self.task == "multiclass", "ensemble.boosting", "needs task: multiclass: SAMME is defined for classes")
        check(
            self.train.class_weights == "none",
            "train.class_weights",
            "balanced and boosting both say how much a sample counts: choose one",
        )
        check(
            not self.train.label_probabilities or self.train.label_probabilities_as == "targets",
            "train.label_probabilities_as",
            "weights and boosting both say how much a sample counts: expected targets",
        )
        by = self.data.resample.by if self.data.resample.kind == "boost" else self.ensemble.boosting_by
        check(
            by == "loss" or self.data.lanes == 1,
            "data.lanes",
            "boosting by sampling reads from all shards: expected 1",
        )
        return self

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        for member in resolve_members(self):
            for key in member.set:
                check(
                    key.split(".")[0] in _MEMBER_KEYS,
                    f"ensemble.members.{member.name}.set.{key}",
                    "a member may set seed, data.*, model.*, finetune.*, augment.* or train.*",
                )
        return self

    @property
    def chosen_stages(self) -> tuple[str, ...]:
        """The stages of `choral run`, in the order in which they run."""
        return tuple(stage for stage in STAGES if stage in self.stages or "all" in self.stages)

    @property
    def best_metric(self) -> str:
        """The metric that selects the best checkpoint: `train.best_by`, with auto resolved."""
        if self.train.best_by != "auto":
            return self.train.best_by
        return "r2" if self.task == "regression" else "log_loss"

    @property
    def test_views(self) -> tuple[str, ...]:
        """The test-time views: `evaluate.views`, with auto resolved.

        auto includes hflip only if training flips images: a model of digits, say, has seen no mirrored ones.
        """
        if self.evaluate.views != ("auto",):
            return self.evaluate.views
        return ("identity", "hflip") if self.augment.hflip > 0 else ("identity",)


def check_stages(stages: Sequence[str], key: str) -> None:
    """Raise ConfigError unless there is at least one stage and every name is a stage; the message names the nearest."""
    names = (*STAGES, "all")
    for stage in stages:
        hint = did_you_mean(stage, names)
        check(stage in names, key, f"there is no stage '{stage}'.{hint} There are: {', '.join(names)}")
    check(bool(stages), key, f"expected at least one of {', '.join(STAGES)}, or all")
