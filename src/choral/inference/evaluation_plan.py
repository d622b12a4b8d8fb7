"""The plan of an evaluation: which ledgers it writes, and which of them exist already. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from choral.config import Config, held_out_groups
from choral.core.errors import DataError
from choral.data.loading.targets import Targets
from choral.data.shards.index import Dataset, Index
from choral.inference.external_data import compute_ledger_suffix, split_from_ledger_name
from choral.inference.ledger import Ledger, LedgerMeta
from choral.inference.run_models import find_trained_models
from choral.inference.trained_model import TrainedModel
from choral.inference.views import expand_views
from choral.models.output_spec import OutputSpec
from choral.runs.checkpoints import check_same_data
from choral.runs.run_dir import RunDir

HELD_OUT = "held-out"
"""Name of the ledger of out-of-fold predictions: of each training sample, by the models not trained on it."""
KEEP_VIEWS_BELOW = 256 << 20
"""With evaluate.keep_views: auto, ledgers smaller than this (bytes, before compression) keep single views."""


@dataclass(frozen=True)
class EvaluationPlan:
    """The models, views and ledgers of an evaluation."""

    models: list[TrainedModel]
    unfinished: list[str]
    """Members that are not trained and therefore not evaluated."""
    views: tuple[str, ...]
    ledgers: dict[str, tuple[Path, LedgerMeta]]
    """Name (SPLIT, SPLIT@NAME or HELD_OUT) to the path and the metadata of its ledger."""
    suffix: str
    """Suffix of the ledgers' names; "" for the run's own data."""
    groups: dict[str, tuple[TrainedModel, ...]]
    """Column of the held-out ledger to the models whose mean it is; {}: there is no held-out ledger."""

    @property
    def common_ledgers(self) -> list[str]:
        """Names of the ledgers that contain all members: all but the held-out ledger."""
        return [name for name in self.ledgers if name != HELD_OUT]

    def missing(self) -> list[str]:
        """Return the names of ledgers that do not exist, or are of other weights, views or data."""
        return [name for name, (path, meta) in self.ledgers.items() if not _is_up_to_date(path, meta)]


def plan_evaluation(config: Config, run_dir: RunDir, dataset: Dataset, data_name: str = "") -> EvaluationPlan:
    """Plan the evaluation of a run.

    Args:
        config, run_dir: of the run.
        dataset: to evaluate on.
        data_name: name of the data set if it is not the run's own; "": the name of its folder.

    Raises:
        ConfigError: a view is unknown, or another data set has been evaluated under this name.
        ChoralError: no member has been trained.
        DataError: the data have other classes, labels or targets than the members were trained on.
    """
    views = expand_views(config.test_views)
    models, unfinished = find_trained_models(run_dir, config)
    outputs = models[0].outputs
    groups = _find_held_out_models(config, models, dataset)
    suffix = compute_ledger_suffix(run_dir, models, dataset, data_name)
    samples = {
        split: _check_split(config, dataset, split, outputs)
        for split in (*config.evaluate.splits, *([config.data.train_split] if groups else []))
    }
    for model in models:
        # Data at another path may be other data.
        if Path(model.config.data.shards).absolute() == dataset.folder:
            check_same_data(dataset.fingerprint, model.dataset_fingerprint, model.run_dir.path)
    several = len(views) > 1

    def plan_ledger(name: str, members: Sequence[str], evaluation: str) -> tuple[Path, LedgerMeta]:
        count = samples[config.data.train_split if name == HELD_OUT else split_from_ledger_name(name)]
        size = 4 * count * len(members) * len(outputs.names) * (len(views) + 1)
        keep = size < KEEP_VIEWS_BELOW if config.evaluate.keep_views == "auto" else config.evaluate.keep_views
        kept = views if keep or not several else tuple(view for view in views if view == "identity")
        meta = LedgerMeta(
            classes=outputs.names,
            members=tuple(members),
            views=(*kept, "tta") if several else kept,
            split=name,
            dataset=dataset.fingerprint,
            evaluation=evaluation,
            tta_views=views if several else (),
            task=outputs.task,
            average=config.evaluate.average if several else "probabilities",
        )
        return run_dir.predictions / f"{name}.parquet", meta

    precision = config.train.precision
    names = [model.name for model in models]
    evaluation = compute_evaluation_hash(models, precision)
    ledgers = {
        f"{split}{suffix}": plan_ledger(f"{split}{suffix}", names, evaluation) for split in config.evaluate.splits
    }
    if groups:
        ledgers[HELD_OUT] = plan_ledger(HELD_OUT, list(groups), _held_out_fingerprint(groups, models, precision))
    return EvaluationPlan(models, unfinished, views, ledgers, suffix, groups)


def _check_split(config: Config, dataset: Dataset, split: str, outputs: OutputSpec) -> int:
    """Check that a split has the classes that the models predict, and return its number of samples."""
    index = Index.open(dataset, split)
    targets = Targets.open(config, index)
    if not outputs.agree(OutputSpec(targets.task, targets.names)):
        raise DataError(
            f"{dataset.folder}: has other classes than the members were trained on; evaluate on data of the same classes"
        )
    return len(index)


def _find_held_out_models(
    config: Config, models: Sequence[TrainedModel], dataset: Dataset
) -> dict[str, tuple[TrainedModel, ...]]:
    """Return the models of each group of folds or bags that were trained on this data set, without empty groups."""
    if not config.evaluate.held_out:
        return {}
    split = config.data.train_split
    trained_here = [
        model
        for model in models
        if model.dataset_fingerprint == dataset.fingerprint and model.config.data.train_split == split
    ]
    groups = {
        group: tuple(model for model in trained_here if model.member in members)
        for group, members in held_out_groups(config).items()
    }
    return {group: members for group, members in groups.items() if members}


def compute_evaluation_hash(models: Sequence[TrainedModel], precision: str) -> str:
    """Return a hash of everything but the data that the predictions of a view depend on."""
    parts = [*(f"{model.name} {model.weights_hash} {model.preprocessing}" for model in models), precision]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _held_out_fingerprint(
    groups: Mapping[str, Sequence[TrainedModel]], models: Sequence[TrainedModel], precision: str
) -> str:
    """Return the hash of the run's other ledgers, which `same_weights` compares, and one of which model predicts what."""
    parts = [
        f"{group} {model.name} {model.config.data.resample!r}" for group, members in groups.items() for model in members
    ]
    tasks = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"{compute_evaluation_hash(models, precision)}-{tasks}"


def same_weights(held_out: LedgerMeta, other: LedgerMeta) -> bool:
    """Return whether a held-out ledger has the weights, inputs and views of another ledger of its run."""
    same_views = (held_out.tta_views, held_out.average) == (other.tta_views, other.average)
    return held_out.evaluation.partition("-")[0] == other.evaluation and same_views


def _is_up_to_date(path: Path, meta: LedgerMeta) -> bool:
    try:
        return path.is_file() and Ledger.open(path).meta == meta
    except DataError:
        return False
