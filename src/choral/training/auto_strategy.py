"""finetune.strategy: auto. Chooses the strategy once, before the first step, and stores it in RUN/strategy.json."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from choral.config import Config
from choral.core.errors import DataError
from choral.core.process_group import Runtime
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import open_dataset, open_training_split
from choral.models.build import build_model, get_normalization
from choral.models.features.extract import FeatureExtractor
from choral.models.features.strategy_choice import (
    ChosenStrategy,
    LinearProbe,
    choose_strategy,
    measure_probe,
    select_probe_rows,
)
from choral.models.pretrained_weights import resolve_weights
from choral.runs.checkpoints import check_same_data
from choral.runs.run_dir import RunDir, read_json, write_json

STRATEGY_FILE = "strategy.json"
_STRATEGIES: tuple[ChosenStrategy, ...] = ("full", "partial", "linear", "lp_ft")
_log = logging.getLogger(__name__)


def resolve_strategy(config: Config, run_dir: RunDir, runtime: Runtime) -> Config:
    """Return the config with `strategy: auto` resolved, the same on all ranks and at every start of a run.

    Raises:
        ConfigError: the model does not end in one linear layer, so its features cannot be probed.
        DataError: samples cannot be read, strategy.json belongs to other data, or there are too few samples to choose by.
        Stopped: while features were computed; those already on disk are reused by the next start.
    """
    if config.finetune.strategy != "auto":
        return config
    stored = _read_stored(run_dir, config) if runtime.is_main else None
    index = _broadcast_int(runtime, _STRATEGIES.index(stored) if stored else -1)
    if index < 0:
        index = _broadcast_int(runtime, _STRATEGIES.index(_measure_and_choose(config, run_dir, runtime)))
    return config.replace(finetune=config.finetune.replace(strategy=_STRATEGIES[index]))


def _broadcast_int(runtime: Runtime, value: int) -> int:
    """Return the main rank's value on all ranks."""
    return int(runtime.broadcast(torch.tensor([value], device=runtime.device)).item())


def _read_stored(run_dir: RunDir, config: Config) -> ChosenStrategy | None:
    """Return the strategy that an earlier start chose with the same settings, if there is one."""
    content = read_json(run_dir.path / STRATEGY_FILE)
    if content is None or content.get("strategy") not in _STRATEGIES:
        return None
    if content.get("measured_with") != _settings(config):  # they may change until the first step
        _log.info("the strategy in %s was chosen with other settings: measuring again", run_dir.path / STRATEGY_FILE)
        return None
    check_same_data(open_dataset(config.data).fingerprint, str(content.get("dataset")), run_dir.path)
    chosen: ChosenStrategy = content["strategy"]
    _log.info("strategy %s, as chosen when the run began (%s)", chosen, run_dir.path / STRATEGY_FILE)
    return chosen


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings, besides the data, that the measurement depends on."""
    data = config.data
    return {
        "model.name": config.model.name,
        "model.weights": config.model.weights,
        "data.train_split": data.train_split,
        "data.resample": data.resample.model_dump(),
        "data.image_size": data.image_size,
        "data.resize": data.resize,
        "data.eval_crop": data.eval_crop,
        "data.crop_pct": data.crop_pct,
        "finetune.probe_samples": config.finetune.probe_samples,
        "train.precision": config.train.precision,
        "seed": config.seed,
    }


def _measure_and_choose(config: Config, run_dir: RunDir, runtime: Runtime) -> ChosenStrategy:
    """Fit a linear probe to features of the pretrained model, choose a strategy, and write both to strategy.json."""
    dataset = open_dataset(config.data)
    place = RankPlace.from_runtime(runtime)
    split = open_training_split(config, dataset, place)
    network = build_model(resolve_weights(config.model), len(dataset.classes), config.data.image_size, config.seed)
    source = FeatureExtractor(
        config,
        runtime,
        place,
        network.to(runtime.device).eval(),
        get_normalization(network),
        run_dir.bad_log,
    )
    labels = split.index.labels
    # Each sample once: a repeated one could be in both halves of the probe, and leak from training into validation.
    available = np.arange(len(split)) if split.training_rows is None else np.unique(split.training_rows)
    rows = available[select_probe_rows(labels[available], config.finetune.probe_samples, config.seed)]
    features = source.extract(split, rows)
    if features is None:  # not the main rank; its choice is broadcast
        return _STRATEGIES[0]
    counts = np.bincount(labels[available], minlength=len(dataset.classes))
    if (counts > 0).sum() < 2 or len(features.rows) < 2 * len(counts):
        raise DataError(
            f"{dataset.folder}: {len(features.rows)} samples of {int((counts > 0).sum())} classes are too few to choose a "
            "strategy by; set finetune.strategy"
        )
    probe = measure_probe(features.values, labels[features.rows], features.rows, counts, config.seed)
    chosen, reason = choose_strategy(probe)
    _log_choice(probe, chosen, reason)
    content = {"strategy": chosen, "reason": reason, "similarity": probe.similarity, **asdict(probe)}
    write_json(
        run_dir.path / STRATEGY_FILE, {**content, "dataset": dataset.fingerprint, "measured_with": _settings(config)}
    )
    return chosen


def _log_choice(probe: LinearProbe, chosen: ChosenStrategy, reason: str) -> None:
    _log.info(
        "auto: %.0f samples per class; a linear probe on frozen features of %d samples reaches a balanced accuracy of %.3f "
        "(chance %.3f): similarity %.2f of 1",
        probe.samples_per_class,
        probe.probed,
        probe.accuracy,
        probe.chance,
        probe.similarity,
    )
    _log.info("auto: strategy %s: %s", chosen, reason)
