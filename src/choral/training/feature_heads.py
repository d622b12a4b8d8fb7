"""Heads fitted to features of the frozen network: whole runs (`linear`, `svm`), and the start of one (`lp_ft`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config import Config
from choral.core.errors import DataError
from choral.core.process_group import Runtime
from choral.data.loading.input_pipeline import Split
from choral.models.features.cache import Features
from choral.models.features.classifier import Classifier
from choral.models.features.extract import FeatureSource
from choral.models.features.linear_heads import Fit, Metric, Samples, fit_linear, fit_svm
from choral.models.trainable_table import TABLE_FILE, table_of, tell
from choral.runs.run_dir import RunDir, write_json
from choral.training.boosting import end_round
from choral.training.checkpointing import finish, save
from choral.training.main_rank_work import on_main_rank
from choral.training.reporting import Tracker
from choral.training.state import TrainState
from choral.training.trainer import Trainer

_log = logging.getLogger(__name__)
HEAD_FILE = "head.json"


def train_head(config: Config, folder: RunDir, run: Runtime) -> TrainState:
    """Fit the head that `linear` or `svm` asks for, and leave what every training run leaves: the checkpoint of step 0.

    Started again after it was stopped or killed, it finds the features that were computed, and fits the same head.

    Raises:
        ConfigError: the network does not end in one linear layer.
        DataError, ChoralError: as `train`.
        Stopped: while features were computed, which are kept, or between two regularisations.
    """
    if run.is_main and (idle := _idle_settings(config)):
        _log.info("strategy %s makes no steps; this does not apply: %s", config.finetune.strategy, ", ".join(idle))
    # No optimizer step is made: what belongs to steps must neither be prepared nor saved.
    rate = 1.0 if config.train.lr == "auto" else config.train.lr
    config = replace(config, train=replace(config.train, lr=rate, ema_decay=0.0, soup="none"))
    started = time.perf_counter()
    trainer = Trainer(config, folder, run)
    state = TrainState()
    if run.is_main:
        rows = table_of(trainer.network, trainer.optimizer, peak_rate=0.0)
        tell(rows, "fitted to features of what is frozen", folder.path / TABLE_FILE)
    with Tracker(config, folder, run, state, trainer.schedule) as tracker:
        fitted = fit_into(trainer)
        state = replace(state, seconds=time.perf_counter() - started)
        state = state.validated(trainer.validate(), config.best_metric)
        tracker.report_validation(state)
        save(trainer, state)
        tracker.send_best()
    if end_round(trainer):
        finish(trainer, state, {"stopped_early": False, **fitted})
    return state


def initial_head(trainer: Trainer) -> None:
    """Write a linear head, fitted to features of the pretrained network, into a network about to be fine-tuned.

    Fine-tuning from a random head distorts good features before the head fits them (Kumar et al. 2022,
    "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution"). Nothing in it is random, so a
    run that is started again before its first checkpoint begins with the same head.

    Raises:
        ConfigError, DataError, ChoralError, Stopped: as `train_head`.
    """
    if trainer.run.is_main:
        _log.info("a linear head first, then everything from there")
    fit_into(trainer)


def fit_into(trainer: Trainer) -> dict[str, Any]:
    """Fit a head as the config says, on all ranks, and write it into the network.

    Returns:
        what was chosen, on the main rank; it is also kept in the run folder's head.json.
    """
    config, run, network = trainer.config, trainer.run, trainer.network
    source = FeatureSource(
        config, run, trainer.place, network, trainer.normalization, trainer.folder.path / "bad_samples.jsonl"
    )
    started = time.perf_counter()
    passes = [source.features(trainer.train_split, number=number) for number in range(config.finetune.feature_passes)]
    val = source.features(trainer.val_split)
    minutes = (time.perf_counter() - started) / 60
    classifier = Classifier(network)
    summary: dict[str, Any] = {}
    started = time.perf_counter()

    def work(between: Callable[[], None]) -> tuple[Fit, int]:
        train_samples = _samples(trainer, trainer.train_split, passes)
        val_samples = _samples(trainer, trainer.val_split, [val])
        return _fit(trainer, train_samples, val_samples, between), len(train_samples.values)

    done = on_main_rank(run, work, "fitting the head; features are kept")
    if done is not None:
        fit, samples = done
        classifier.write(fit.head.weight, fit.head.bias)
        summary = _summary(config, fit, samples, minutes, (time.perf_counter() - started) / 60)
        write_json(trainer.folder.path / HEAD_FILE, summary)
    for tensor in classifier.tensors():
        run.broadcast(tensor)
    run.barrier()
    return summary


def _idle_settings(config: Config) -> list[str]:
    """Return the keys of settings that a config, or one that it is based on, makes for optimizer steps."""
    train, augment = config.train, config.augment
    made = {
        "augment.mixup": augment.mixes and augment.mixup > 0,
        "augment.cutmix": augment.mixes and augment.cutmix > 0,
        "train.label_probabilities": bool(train.label_probabilities) and train.label_probabilities_as == "targets",
        "train.label_smoothing": train.label_smoothing > 0,
        "train.ema_decay": train.ema_decay > 0,
        "train.soup": train.soup != "none",
        "train.patience_epochs": train.patience_epochs > 0,
    }
    return [key for key, is_made in made.items() if is_made]


def _fit(trainer: Trainer, train: Samples, val: Samples, between: Callable[[], None]) -> Fit:
    config, outputs = trainer.config, trainer.objective.outputs
    regularization = config.finetune.regularization
    balanced = config.train.class_weights == "balanced" or config.data.sampling == "balanced"
    metric = _metric_of(config)
    if config.finetune.strategy == "svm":
        return fit_svm(outputs, train, val, regularization, balanced, metric, between)
    return fit_linear(config.task, outputs, train, val, regularization, balanced, metric, between)


def _metric_of(config: Config) -> Metric | None:
    """Return by what `train.best_by` lets a head's regularisation be chosen; None: by what its kind goes by."""
    by = config.train.best_by
    return by if config.task == "multiclass" and (by == "accuracy" or by == "log_loss") else None


def _samples(trainer: Trainer, split: Split, passes: list[Features | None]) -> Samples:
    found = [features for features in passes if features is not None]
    places = [_places(features, split) for features in found]
    rows = np.concatenate([features.rows[place] for features, place in zip(found, places, strict=True)])
    if not len(rows):
        raise DataError(f"{split.index.dataset.folder}: no sample of split '{split.index.split}' could be read")
    targets: NDArray[Any] = split.targets.of(rows)
    if trainer.config.task == "regression":
        meaning = trainer.objective.meaning
        targets = (targets - np.asarray(meaning.target_mean)) / np.asarray(meaning.target_std)
    parts = [features.values[place] for features, place in zip(found, places, strict=True)]
    # Of boosting. Drawing samples by their weights, time and again, would come to fitting with the weights.
    weights = None if split.weights is None else split.weights[rows]
    return Samples(parts[0] if len(parts) == 1 else np.concatenate(parts), targets, weights)


def _places(features: Features, split: Split) -> NDArray[np.int64] | slice:
    """Return where the training samples of a split stand in its features, each as often as it is seen."""
    rows = split.training_rows
    if rows is None:
        return slice(None)
    rows = rows[np.isin(rows, features.rows)]  # others could not be read
    return np.searchsorted(features.rows, rows)


def _summary(config: Config, fit: Fit, samples: int, feature_minutes: float, fit_minutes: float) -> dict[str, Any]:
    kind = "svm" if config.finetune.strategy == "svm" else "linear"
    _log.info(
        "%s head on %d samples: regularization %.2g of %d tried, validation %s %.4f (features %.1f min, fit %.1f min)",
        kind,
        samples,
        fit.regularization,
        len(fit.trials),
        fit.metric.replace("_", " "),
        fit.value,
        feature_minutes,
        fit_minutes,
    )
    return {
        "head": kind,
        "head_samples": samples,
        "regularization": fit.regularization,
        f"head_val_{fit.metric}": fit.value,
        "feature_minutes": feature_minutes,
        "fit_minutes": fit_minutes,
        "trials": [{"regularization": weight, fit.metric: value} for weight, value in fit.trials],
    }
