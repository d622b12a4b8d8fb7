"""The experiment: every choice of a run, typed, validated and frozen. Imports no torch, so that a login node can read it.

Values come from the defaults below, then the files named by `base:`, then the file, then `key=value` overrides; the last
one wins. `choral.config.files` reads them; the checks that need more than one field stand in `__post_init__`.

A field declared with `tuning()` decides how fast or how visibly a run goes, not what it computes: it may differ when a
run is continued. All others may not.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from choral.config.analyze import AnalyzeConfig
from choral.config.augment import AugmentConfig
from choral.config.data import DataConfig, PackConfig, ResampleConfig, Task
from choral.config.ensemble import (
    LEGAL_NAME,
    Average,
    EnsembleConfig,
    EvaluateConfig,
    MemberConfig,
    Reference,
    TrackingConfig,
)
from choral.config.export import ExportConfig
from choral.config.fields import check, tuning
from choral.config.members import held_out_groups, members_of
from choral.config.model import FinetuneConfig, ModelConfig
from choral.config.train import TrainConfig
from choral.config.tune import TuneConfig
from choral.core.errors import ConfigError, did_you_mean

__all__ = [
    "STAGES",
    "AnalyzeConfig",
    "AugmentConfig",
    "Average",
    "Config",
    "DataConfig",
    "EnsembleConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FinetuneConfig",
    "MemberConfig",
    "ModelConfig",
    "PackConfig",
    "Reference",
    "ResampleConfig",
    "Task",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "binding_difference",
    "binding_values",
    "check_stages",
    "config_hash",
    "field_names",
    "held_out_groups",
    "members_of",
    "unknown_key",
]

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


STAGES = ("pack", "baseline", "analyze", "improve", "ensemble", "evaluate", "export")
"""Of `choral run`, in their order."""


def check_stages(stages: Sequence[str], key: str) -> None:
    """Raise ConfigError, naming the nearest stage, unless there is each of these, and at least one."""
    for stage in stages:
        known = (*STAGES, "all")
        check(
            stage in known,
            key,
            f"there is no stage '{stage}'.{did_you_mean(stage, known)} There are: {', '.join(known)}",
        )
    check(bool(stages), key, f"expected at least one of {', '.join(STAGES)}, or all")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: what `choral train`, `ensemble`, `evaluate`, `score` and `run` work on."""

    run: str = ""
    """Names the folder runs/NAME; by default the name of the config file."""
    seed: int = 0
    """Of everything random in training."""
    project: str = tuning("")
    """The scoreboard that the run's evaluations are appended to, see `choral scores`; "": the name of the data set."""
    step: str = tuning("")
    """What the run is called there: what was tried, such as baseline, +augment or +lp_ft; "": the run's name."""
    stages: tuple[str, ...] = tuning(("pack", "ensemble", "evaluate"))
    """What `choral run` does, always in this order: pack, baseline (one network of the config, the run NAME-baseline),
    analyze (probes, advice and the page of that one, on validation data), improve (the advice, tried), ensemble (the
    members, or the one network, with what improved), evaluate (the only look at the test split), export (RUN/bundle). all:
    each of them."""
    task: Task = "multiclass"
    """multiclass: one class an image; multilabel: any number of labels; regression: numbers."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    analyze: AnalyzeConfig = AnalyzeConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    tracking: TrackingConfig = TrackingConfig()
    tune: TuneConfig = TuneConfig()
    export: ExportConfig = ExportConfig()
    references: tuple[Reference, ...] = field(default=(), metadata={"tuning": True})

    def __post_init__(self) -> None:
        check(
            not self.run or LEGAL_NAME.fullmatch(self.run) is not None,
            "run",
            f"'{self.run}' is no run name: use letters, digits, '.', '_' and '-'",
        )
        check(self.run != "scoreboard", "run", "runs/scoreboard is where the scoreboards are: use another name")
        check(
            not self.project or LEGAL_NAME.fullmatch(self.project) is not None,
            "project",
            f"'{self.project}' is no name: use letters, digits, '.', '_' and '-'",
        )
        check(
            len(self.step) <= 64 and self.step.isprintable(),
            "step",
            "expected a few words of at most 64 characters in one line",
        )
        check_stages(self.stages, "stages")
        check(0 <= self.seed < 2**31, "seed", "expected 0 to 2147483647")
        check(bool(self.data.shards), "data.shards", "expected the folder that `choral pack SOURCE OUT` wrote")
        steps = self.train.accumulate_steps
        micro_batch = self.train.batch_size // (1 if steps == "auto" else steps)
        check(
            micro_batch % self.data.lanes == 0,
            "data.lanes",
            f"must divide the micro-batch: {micro_batch} samples cannot be shared by {self.data.lanes} lanes",
        )
        self._check_task()
        self._check_rounds_and_cycles()
        for member in members_of(self):
            for key in member.set:
                allowed = key.split(".")[0] in ("seed", "data", "model", "finetune", "augment", "train")
                check(
                    allowed,
                    f"ensemble.members.{member.name}.set.{key}",
                    "a member may set seed, data.*, model.*, finetune.*, augment.* or train.*",
                )

    @property
    def chosen_stages(self) -> tuple[str, ...]:
        """The stages of `choral run`, in their order."""
        return tuple(stage for stage in STAGES if stage in self.stages or "all" in self.stages)

    @property
    def best_metric(self) -> str:
        """What chooses the best checkpoint: `train.best_by`, with auto resolved."""
        if self.train.best_by != "auto":
            return self.train.best_by
        return "r2" if self.task == "regression" else "log_loss"

    def _check_rounds_and_cycles(self) -> None:
        strategy, cycles = self.finetune.strategy, self.train.cycles > 1 or self.ensemble.snapshots > 0
        check(
            not cycles or strategy not in ("linear", "svm", "auto"),
            "finetune.strategy",
            f"with train.cycles or ensemble.snapshots, expected one that makes steps, which {strategy} does not, or may not",
        )
        if self.data.resample.kind != "boost" and not self.ensemble.boosting:
            return
        check(self.task == "multiclass", "ensemble.boosting", "needs task: multiclass: SAMME goes by classes")
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
            "boosting by sampling reads everywhere: expected 1",
        )

    @property
    def test_views(self) -> tuple[str, ...]:
        """The test-time views as they are written in `evaluate.views`, or those that auto stands for: a network that has seen
        no mirror images, as of digits, is not asked about any."""
        if self.evaluate.views != ("auto",):
            return self.evaluate.views
        return ("identity", "hflip") if self.augment.hflip > 0 else ("identity",)

    def _check_task(self) -> None:
        train, task = self.train, self.task
        for key, value, known in (("loss", train.loss, _LOSSES[task]), ("best_by", train.best_by, _METRICS[task])):
            check(value in known, f"train.{key}", f"with task: {task}, expected one of {', '.join(known)}")
        check(task != "multiclass" or not self.data.targets, "data.targets", "needs task: regression or multilabel")
        check(
            task == "multiclass" or self.data.sampling == "shuffled",
            "data.sampling",
            "balanced needs task: multiclass, for it goes by classes",
        )
        check(task != "regression" or train.class_weights == "none", "train.class_weights", "regression has no classes")
        check(task != "regression" or not train.label_smoothing, "train.label_smoothing", "regression has no labels")
        check(
            task == "multiclass" or not train.label_probabilities,
            "train.label_probabilities",
            f"needs task: multiclass; {'numbers have no classes' if task == 'regression' else 'labels are 0 or 1'}",
        )
        check(
            task != "regression" or self.evaluate.average == "probabilities",
            "evaluate.average",
            f"{self.evaluate.average} is of probabilities, and with task: regression there are none: expected the default",
        )
        fitted = self.finetune.strategy in ("svm", "auto")
        check(
            task == "multiclass" or not fitted,
            "finetune.strategy",
            f"{self.finetune.strategy} needs task: multiclass; linear and lp_ft know the others",
        )
        own = self.finetune.strategy in ("linear", "svm", "auto")
        check(
            not own or train.loss in ("auto", _FITTED_LOSSES[task]),
            "train.loss",
            f"with finetune.strategy: {self.finetune.strategy}, whose head may be fitted to features by a loss of its own, "
            f"expected auto or {_FITTED_LOSSES[task]}, got {train.loss}",
        )


def binding_values(config: Config) -> dict[str, Any]:
    """Return what makes a config this experiment, by dotted key: all fields but those of `tuning` and the run's name."""
    values: dict[str, Any] = {}

    def walk(section: Any, prefix: str) -> None:
        for item in dataclasses.fields(section):
            value, key = getattr(section, item.name), prefix + item.name
            if item.metadata.get("tuning") or key == "run":
                continue
            if dataclasses.is_dataclass(value):
                walk(value, f"{key}.")
            else:
                values[key] = value

    walk(config, "")
    return values


def binding_difference(old: Config, new: Config) -> list[str]:
    """Return a line "key: old -> new" for each field that makes the two different experiments; the run's name is none."""
    before, after = binding_values(old), binding_values(new)
    return [f"{key}: {value} -> {after[key]}" for key, value in before.items() if after[key] != value]


def config_hash(config: Config) -> str:
    """Return 12 hexadecimal digits for what makes a config this experiment.

    Only values that are not the defaults count, so that configs keep their hash when there are new keys.
    """
    usual = binding_values(Config(data=DataConfig(shards="shards")))
    own = sorted(f"{key}: {value!r}" for key, value in binding_values(config).items() if value != usual[key])
    return hashlib.sha256("\n".join(own).encode()).hexdigest()[:12]


def field_names(config_type: type) -> list[str]:
    """Return the names of a config dataclass's fields in the order of their declaration."""
    return [item.name for item in dataclasses.fields(config_type)]


def unknown_key(key: str, prefix: str, config_type: type) -> ConfigError:
    """Return the error for a key that `config_type` does not have, with the nearest one that it has."""
    names = field_names(config_type)
    hint = did_you_mean(key, names)
    hint = hint.replace("Did you mean ", f"Did you mean {prefix}") if hint else f" Known keys: {', '.join(names)}."
    return ConfigError(f"{prefix}{key}: unknown key.{hint}")
