"""`finetune.strategy: auto`: measured once, before the first step, and kept in the run folder's strategy.json."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from choral.config import Config
from choral.core.errors import DataError
from choral.core.process_group import Runtime
from choral.data.loading.input_pipeline import RankPlace, open_dataset, open_training_split
from choral.models.build import build_model, normalization_of
from choral.models.features.extract import FeatureSource
from choral.models.features.strategy_choice import Choice, Probe, choose, measure, probe_rows
from choral.models.pretrained_weights import resolve_weights
from choral.runs.checkpoints import check_same_data
from choral.runs.run_dir import RunDir, read_json, write_json

STRATEGY_FILE = "strategy.json"
_CHOICES: tuple[Choice, ...] = ("full", "partial", "linear", "lp_ft")
_log = logging.getLogger(__name__)


def resolve_strategy(config: Config, folder: RunDir, run: Runtime) -> Config:
    """Return the config with `auto` replaced by what fits the data, the same on all ranks and at every start of a run.

    Raises:
        ConfigError: the network does not end in one linear layer, so its features cannot be probed.
        DataError: samples that cannot be read; strategy.json was made for other data, or these are too few to choose by.
        Stopped: while features were computed; those that are there are kept.
    """
    if config.finetune.strategy != "auto":
        return config
    found = _stored(folder, config) if run.is_main else None
    number = _CHOICES.index(found) if found else -1
    number = int(run.broadcast(torch.tensor([number], device=run.device)).item())
    if number < 0:
        chosen = _measured(config, folder, run)
        number = int(run.broadcast(torch.tensor([_CHOICES.index(chosen)], device=run.device)).item())
    return replace(config, finetune=replace(config.finetune, strategy=_CHOICES[number]))


def _stored(folder: RunDir, config: Config) -> Choice | None:
    content = read_json(folder.path / STRATEGY_FILE)
    if content is None or content.get("strategy") not in _CHOICES:
        return None
    if content.get("measured_with") != _settings(config):  # which may change while nothing has been trained
        _log.info("the strategy in %s was chosen with other settings: measuring again", folder.path / STRATEGY_FILE)
        return None
    check_same_data(open_dataset(config.data).fingerprint, str(content.get("dataset")), folder.path)
    chosen: Choice = content["strategy"]
    _log.info("strategy %s, as chosen when the run began (%s)", chosen, folder.path / STRATEGY_FILE)
    return chosen


def _settings(config: Config) -> dict[str, Any]:
    """Return what the measurement depends on beside the data."""
    data = config.data
    return {
        "model.name": config.model.name,
        "model.weights": config.model.weights,
        "data.train_split": data.train_split,
        "data.resample": asdict(data.resample),
        "data.image_size": data.image_size,
        "data.resize": data.resize,
        "data.eval_crop": data.eval_crop,
        "data.crop_pct": data.crop_pct,
        "finetune.probe_samples": config.finetune.probe_samples,
        "train.precision": config.train.precision,
        "seed": config.seed,
    }


def _measured(config: Config, folder: RunDir, run: Runtime) -> Choice:
    """Probe features of the pretrained network, and write what was found and chosen."""
    dataset = open_dataset(config.data)
    place = RankPlace(run.rank, run.world_size, run.device, run.local_world_size)
    split = open_training_split(config, dataset, place)
    network = build_model(resolve_weights(config.model), len(dataset.classes), config.data.image_size, config.seed)
    source = FeatureSource(
        config, run, place, network.to(run.device).eval(), normalization_of(network), folder.path / "bad_samples.jsonl"
    )
    labels = split.index.labels
    # Each sample once: a repeated one in both halves of the probe would be judged by a head that knows it.
    mine = np.arange(len(split)) if split.training_rows is None else np.unique(split.training_rows)
    rows = mine[probe_rows(labels[mine], config.finetune.probe_samples, config.seed)]
    features = source.features(split, rows)
    if features is None:  # the main rank decides
        return _CHOICES[0]
    counts = np.bincount(labels[mine], minlength=len(dataset.classes))
    if (counts > 0).sum() < 2 or len(features.rows) < 2 * len(counts):
        raise DataError(
            f"{dataset.folder}: {len(features.rows)} samples of {int((counts > 0).sum())} classes are too few to choose a "
            "strategy by; set finetune.strategy"
        )
    probe = measure(features.values, labels[features.rows], features.rows, counts, config.seed)
    chosen, reason = choose(probe)
    _tell(probe, chosen, reason)
    content = {"strategy": chosen, "reason": reason, "similarity": probe.similarity, **asdict(probe)}
    write_json(
        folder.path / STRATEGY_FILE, {**content, "dataset": dataset.fingerprint, "measured_with": _settings(config)}
    )
    return chosen


def _tell(probe: Probe, chosen: Choice, reason: str) -> None:
    _log.info(
        "auto: %.0f samples a class; a linear probe on frozen features of %d of them has a balanced accuracy of %.3f "
        "(chance %.3f): similarity %.2f of 1",
        probe.samples_per_class,
        probe.probed,
        probe.accuracy,
        probe.chance,
        probe.similarity,
    )
    _log.info("auto: strategy %s: %s", chosen, reason)
