"""Which ledgers an evaluation is to leave, and which of them are there already. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from choral.config import Config, held_out_groups
from choral.core.errors import DataError
from choral.data.loading.targets import Targets
from choral.data.shards.index import Dataset, Index
from choral.inference.external_data import split_of, suffix_of
from choral.inference.ledger import Ledger, LedgerMeta
from choral.inference.trained_models import TrainedModel, find_trained_models
from choral.inference.views import expand
from choral.models.output_spec import Outputs
from choral.runs.checkpoints import check_same_data
from choral.runs.run_dir import RunDir

HELD_OUT = "held-out"
"""Names the ledger of the training split that holds, for each sample, what those say who were not trained on it."""
KEPT_BELOW = 256 << 20
"""With evaluate.keep_views: auto, single views are kept in ledgers of fewer bytes, before compression."""


@dataclass(frozen=True)
class Evaluation:
    """What is asked of whom."""

    models: list[TrainedModel]
    unfinished: list[str]
    """Members that are not trained, and not asked."""
    views: tuple[str, ...]
    ledgers: dict[str, tuple[Path, LedgerMeta]]
    """Split, SPLIT@NAME or HELD_OUT to its ledger's path and what the ledger will hold."""
    suffix: str
    """Of the names of ledgers about other data than the run's own."""
    groups: dict[str, tuple[TrainedModel, ...]]
    """The voices whose mean each column of the held-out ledger is; none: there is no such ledger."""

    @property
    def judged(self) -> list[str]:
        """The names of the ledgers that all members are in."""
        return [name for name in self.ledgers if name != HELD_OUT]

    def missing(self) -> list[str]:
        """Return the splits whose ledger is not there, or holds something else: other weights, views or data."""
        return [split for split, (path, meta) in self.ledgers.items() if not _holds(path, meta)]


def plan_evaluation(config: Config, folder: RunDir, dataset: Dataset, data_name: str = "") -> Evaluation:
    """Return what evaluating a run as its config says comes to.

    Args:
        config, folder: of the run.
        dataset: that it is evaluated on.
        data_name: what to call that where it is not the run's own; "": by its folder.

    Raises:
        ConfigError: an unknown view; another data set has been evaluated under this one's name.
        ChoralError: no member has been trained.
        DataError: the data hold other classes, labels or targets than the members were trained on.
    """
    views = expand(config.test_views)
    models, unfinished = find_trained_models(folder, config)
    outputs = models[0].outputs
    groups = _held_out_voices(config, models, dataset)
    suffix = suffix_of(folder, models, dataset, data_name)
    samples = {}
    for split in (*config.evaluate.splits, *([config.data.train_split] if groups else [])):
        index = Index.open(dataset, split)
        samples[split] = len(index)
        targets = Targets.open(config, index)
        if not outputs.agree(Outputs(targets.task, targets.names)):
            raise DataError(
                f"{dataset.folder}: holds other classes than the members were trained on; evaluate on data of the same "
                "classes"
            )
    for model in models:
        if Path(model.config.data.shards).absolute() == dataset.folder:  # other data are meant to be other data
            check_same_data(dataset.fingerprint, model.dataset, model.checkpoint.parent.parent)
    several = len(views) > 1

    def ledger(name: str, members: Sequence[str], evaluation: str) -> tuple[Path, LedgerMeta]:
        count = samples[config.data.train_split if name == HELD_OUT else split_of(name)]
        size = 4 * count * len(members) * len(outputs.names) * (len(views) + 1)
        keep = size < KEPT_BELOW if config.evaluate.keep_views == "auto" else config.evaluate.keep_views
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
        return folder.predictions / f"{name}.parquet", meta

    precision = config.train.precision
    names = [model.name for model in models]
    evaluation = evaluation_of(models, precision)
    ledgers = {f"{split}{suffix}": ledger(f"{split}{suffix}", names, evaluation) for split in config.evaluate.splits}
    if groups:
        ledgers[HELD_OUT] = ledger(HELD_OUT, list(groups), _held_out_fingerprint(groups, models, precision))
    return Evaluation(models, unfinished, views, ledgers, suffix, groups)


def _held_out_voices(
    config: Config, models: Sequence[TrainedModel], dataset: Dataset
) -> dict[str, tuple[TrainedModel, ...]]:
    """Return the trained voices of each group of folds or bags whose training split this is; groups without any are none."""
    if not config.evaluate.held_out:
        return {}
    split = config.data.train_split
    here = [
        model for model in models if model.dataset == dataset.fingerprint and model.config.data.train_split == split
    ]
    groups = {
        group: tuple(model for model in here if model.member in members)
        for group, members in held_out_groups(config).items()
    }
    return {group: found for group, found in groups.items() if found}


def evaluation_of(models: Sequence[TrainedModel], precision: str) -> str:
    """Return a hash of everything that decides the probabilities of a view, apart from the data."""
    parts = [*(f"{model.name} {model.weights_hash} {model.inputs}" for model in models), precision]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _held_out_fingerprint(
    groups: Mapping[str, Sequence[TrainedModel]], models: Sequence[TrainedModel], precision: str
) -> str:
    """Return that of the other ledgers, by which `same_weights` knows them, and a hash of who is asked about what."""
    parts = [f"{group} {model.name} {model.config.data.resample}" for group, own in groups.items() for model in own]
    asked = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"{evaluation_of(models, precision)}-{asked}"


def same_weights(held_out: LedgerMeta, other: LedgerMeta) -> bool:
    """Return whether the held-out ledger is of the weights, inputs and views that another ledger of its run is of."""
    same_views = (held_out.tta_views, held_out.average) == (other.tta_views, other.average)
    return held_out.evaluation.partition("-")[0] == other.evaluation and same_views


def _holds(path: Path, meta: LedgerMeta) -> bool:
    try:
        return path.is_file() and Ledger.open(path).meta == meta
    except DataError:
        return False
