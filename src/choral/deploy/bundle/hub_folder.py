"""Trained networks of a run as folders that timm and the Hugging Face Hub take: weights as they were trained, and a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from choral.config import Config
from choral.core.errors import ConfigError
from choral.deploy.bundle.hub_card import render_hub_card
from choral.deploy.bundle.output_dir import atomic_output_dir
from choral.deploy.bundle.provenance import describe_provenance, find_licences
from choral.deploy.bundle.scores import compute_bundle_scores
from choral.deploy.bundle.timm_folder import CONFIG, WEIGHTS, write_timm_folder
from choral.inference.bundled_models import BundledModel
from choral.inference.evaluation_plan import compute_evaluation_hash
from choral.inference.run_models import SINGLE_MEMBER
from choral.inference.trained_model import TrainedModel
from choral.runs.run_dir import RunDir, write_atomic
from choral.scoring.apply_policy import build_default_policy

CARD = "README.md"
_FILES = {CARD, CONFIG, WEIGHTS}


def write_hub_folders(
    folder: RunDir,
    config: Config,
    models: Sequence[TrainedModel],
    chosen: Sequence[TrainedModel],
    out: Path,
    force: bool = False,
) -> dict[str, Path]:
    """Write networks, each with a card of what it scores by itself; its BatchNorms are as they were trained.

    Args:
        folder, config: of the run.
        models: all models of the run, whose ledgers contain the scores of the chosen ones.
        chosen: that are written: one alone into `out`, several into a folder each below it.
        out: appears when it is complete.
        force: replace what an earlier call has left there.

    Returns:
        Name of a network to its folder.

    Raises:
        ConfigError: `out` holds something else, or is there without `force`; a network of a bundle.
        DataError, ChoralError: a checkpoint or a ledger is damaged, or the disk does not take it.
    """
    places = {model.name: out if len(chosen) == 1 else out / model.name for model in chosen}
    for model in chosen:
        if isinstance(model, BundledModel):
            raise ConfigError(
                f"{model.name}: comes from a bundle, {model.checkpoint.parent.parent}, whose norms are folded: such weights "
                "must not be trained further; write the folder from the run that it was exported from"
            )
        _check_place(places[model.name], force)
    evaluation = compute_evaluation_hash(models, config.train.precision)
    for model in chosen:
        content = _describe_model(folder, config, model, evaluation)
        with atomic_output_dir(places[model.name]) as aside:
            write_timm_folder(aside, model.load(torch.device("cpu")), model.input_spec, model.outputs)
            write_atomic(aside / CARD, render_hub_card(content))
            for path in aside.iterdir():
                path.chmod(0o644)  # safetensors writes for the owner alone
    return places


def _describe_model(folder: RunDir, config: Config, model: TrainedModel, evaluation: str) -> dict[str, Any]:
    """Return the facts about one model, under the keys of bundle.json."""
    outputs = model.outputs
    alone = replace(
        build_default_policy(outputs.task, outputs.names, [model.name], ("identity",)),
        of=model.name,
        evaluation=evaluation,
    )
    return {
        "name": folder.name if model.name == SINGLE_MEMBER else f"{folder.name}-{model.name}",
        "task": outputs.task,
        "classes": list(outputs.names),
        "answer": alone.to_json(),
        "members": [{"name": model.name, "architecture": model.config.model.name, "outputs": outputs.meta()}],
        "licences": find_licences(config, [model]),
        "scores": compute_bundle_scores(folder, config, alone),
        "provenance": describe_provenance(folder, config, [model]),
    }


def _check_place(place: Path, force: bool) -> None:
    """Raise ConfigError unless a folder may be written."""
    if not place.exists():
        return
    found = {path.name for path in place.iterdir()} if place.is_dir() else {""}
    if found and not found <= _FILES:
        raise ConfigError(f"{place}: is there already, and holds other things; choose another folder")
    if found and not force:
        raise ConfigError(f"{place}: is there already; --force replaces it")
