"""Heads fitted to features of the frozen model: the whole training of `linear` and `svm`, and the start of `lp_ft`."""

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
from choral.data.loading.split import Split
from choral.models.features.cache import Features
from choral.models.features.classifier import ClassifierLayer
from choral.models.features.extract import FeatureExtractor
from choral.models.features.linear_heads import HeadFit, HeadFitOptions, LabelledFeatures, Metric, fit_linear, fit_svm
from choral.models.trainable_table import TABLE_FILE, build_table, log_table
from choral.runs.run_dir import RunDir, write_json
from choral.training.boosting import finish_boosting_round
from choral.training.checkpointing import save_checkpoint, write_result
from choral.training.main_rank_work import run_on_main_rank
from choral.training.reporter import TrainingReporter
from choral.training.state import TrainState
from choral.training.trainer import Trainer

_log = logging.getLogger(__name__)
HEAD_FILE = "head.json"


def train_head(config: Config, run_dir: RunDir, runtime: Runtime) -> TrainState:
    """Fit the head of strategy `linear` or `svm`, and write the files of a training run, with a checkpoint of step 0.

    After a stop or a crash, the next start reuses the features already computed and fits the same head.

    Raises:
        ConfigError: the model does not end in one linear layer.
        DataError, ChoralError: as `train`.
        Stopped: while features were computed, which are kept, or between two regularisation strengths.
    """
    if runtime.is_main and (unused := _find_unused_settings(config)):
        _log.info("strategy %s makes no optimizer steps and ignores %s", config.finetune.strategy, ", ".join(unused))
    # Without optimizer steps, nothing that belongs to them may be prepared or saved.
    rate = 1.0 if config.train.lr == "auto" else config.train.lr
    config = config.replace(train=config.train.replace(lr=rate, ema_decay=0.0, soup="none"))
    started = time.perf_counter()
    trainer = Trainer(config, run_dir, runtime)
    state = TrainState()
    if runtime.is_main:
        rows = build_table(trainer.network, trainer.optimizer, peak_rate=0.0)
        log_table(rows, "fitted to features of the frozen layers", run_dir.path / TABLE_FILE)
    with TrainingReporter(config, run_dir, runtime, state, trainer.schedule.total_steps) as reporter:
        summary = fit_head(trainer)
        state = replace(state, seconds=time.perf_counter() - started)
        state = state.with_validation(trainer.validate(), config.best_metric)
        reporter.report_validation(state)
        save_checkpoint(trainer, state)
        reporter.send_best()
    if finish_boosting_round(trainer):
        write_result(trainer, state, {"stopped_early": False, **summary})
    return state


def fit_initial_head(trainer: Trainer) -> None:
    """Fit a linear head to features of the pretrained model and write it into the model, before fine-tuning.

    Fine-tuning from a random head distorts good features before the head fits them (Kumar et al. 2022,
    "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution"). The fit is deterministic, so a
    run that is restarted before its first checkpoint begins with the same head.

    Raises:
        ConfigError, DataError, ChoralError, Stopped: as `train_head`.
    """
    if trainer.runtime.is_main:
        _log.info("lp_ft: fitting a linear head first, then fine-tuning from there")
    fit_head(trainer)


def fit_head(trainer: Trainer) -> dict[str, Any]:
    """Compute features on all ranks, fit the configured head to them, and write it into the model of every rank.

    Returns:
        On the main rank, a summary of the fit, which is also written to RUN/head.json; {} on the others.
    """
    config, runtime, network = trainer.config, trainer.runtime, trainer.network
    source = FeatureExtractor(config, runtime, trainer.place, network, trainer.normalization, trainer.run_dir.bad_log)
    started = time.perf_counter()
    passes = [source.extract(trainer.train_split, number=number) for number in range(config.finetune.feature_passes)]
    val = source.extract(trainer.val_split)
    minutes = (time.perf_counter() - started) / 60
    classifier = ClassifierLayer(network)
    summary: dict[str, Any] = {}
    started = time.perf_counter()

    def work(check_stop: Callable[[], None]) -> tuple[HeadFit, int]:
        train_samples = _label_features(trainer, trainer.train_split, passes)
        val_samples = _label_features(trainer, trainer.val_split, [val])
        return _fit(trainer, train_samples, val_samples, check_stop), len(train_samples.values)

    result = run_on_main_rank(runtime, work, "fitting the head; features are kept")
    if result is not None:
        fit, samples = result
        classifier.write(fit.head.weight, fit.head.bias)
        summary = _summarize(config, fit, samples, minutes, (time.perf_counter() - started) / 60)
        write_json(trainer.run_dir.path / HEAD_FILE, summary)
    for tensor in classifier.tensors():
        runtime.broadcast(tensor)
    runtime.barrier()
    return summary


def _find_unused_settings(config: Config) -> list[str]:
    """Return the keys that the config sets, or inherits, and that only optimizer steps use."""
    train, augment = config.train, config.augment
    is_set = {
        "augment.mixup": augment.mixes and augment.mixup > 0,
        "augment.cutmix": augment.mixes and augment.cutmix > 0,
        "train.label_probabilities": bool(train.label_probabilities) and train.label_probabilities_as == "targets",
        "train.label_smoothing": train.label_smoothing > 0,
        "train.ema_decay": train.ema_decay > 0,
        "train.soup": train.soup != "none",
        "train.patience_epochs": train.patience_epochs > 0,
    }
    return [key for key, value in is_set.items() if value]


def _fit(trainer: Trainer, train: LabelledFeatures, val: LabelledFeatures, check_stop: Callable[[], None]) -> HeadFit:
    config, outputs = trainer.config, trainer.objective.num_outputs
    balanced = config.train.class_weights == "balanced" or config.data.sampling == "balanced"
    options = HeadFitOptions(config.finetune.regularization, balanced, _selection_metric(config), check_stop)
    if config.finetune.strategy == "svm":
        return fit_svm(outputs, train, val, options)
    return fit_linear(config.task, outputs, train, val, options)


def _selection_metric(config: Config) -> Metric | None:
    """Return the metric that chooses the regularisation strength; None: the default of the kind of head."""
    metric = config.train.best_by
    return metric if config.task == "multiclass" and (metric == "accuracy" or metric == "log_loss") else None


def _label_features(trainer: Trainer, split: Split, passes: list[Features | None]) -> LabelledFeatures:
    """Return the features of all passes with the targets and boosting weights of their samples."""
    computed = [features for features in passes if features is not None]
    positions = [_find_positions(features, split) for features in computed]
    rows = np.concatenate([features.rows[place] for features, place in zip(computed, positions, strict=True)])
    if not len(rows):
        raise DataError(f"{split.index.dataset.folder}: no sample of split '{split.index.split}' could be read")
    targets: NDArray[Any] = split.targets.take(rows)
    if trainer.config.task == "regression":
        output_spec = trainer.objective.output_spec
        targets = (targets - np.asarray(output_spec.target_mean)) / np.asarray(output_spec.target_std)
    parts = [features.values[place] for features, place in zip(computed, positions, strict=True)]
    # Of boosting. In expectation, fitting with the weights equals fitting to samples drawn by them.
    weights = None if split.weights is None else split.weights[rows]
    return LabelledFeatures(parts[0] if len(parts) == 1 else np.concatenate(parts), targets, weights)


def _find_positions(features: Features, split: Split) -> NDArray[np.int64] | slice:
    """Return the positions of a split's training samples in its features, each as often as the sample is drawn."""
    rows = split.training_rows
    if rows is None:
        return slice(None)
    rows = rows[np.isin(rows, features.rows)]  # the others could not be read
    return np.searchsorted(features.rows, rows)


def _summarize(
    config: Config, fit: HeadFit, samples: int, feature_minutes: float, fit_minutes: float
) -> dict[str, Any]:
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
