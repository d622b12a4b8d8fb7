"""Trained networks of a run as folders that timm and the Hugging Face Hub take: weights as they were trained, and a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from choral.config import Config
from choral.core.errors import ConfigError
from choral.deploy.bundle.hub_card import hub_card_of
from choral.deploy.bundle.output_dir import new_folder
from choral.deploy.bundle.provenance import licences_of, provenance_of
from choral.deploy.bundle.scores import scores_of
from choral.deploy.bundle.timm_folder import CONFIG, WEIGHTS, write_timm_folder
from choral.inference.bundled_models import BundledModel
from choral.inference.evaluation_plan import evaluation_of
from choral.inference.trained_models import SINGLE, TrainedModel
from choral.runs.run_dir import RunDir, write_atomic
from choral.scoring.apply_policy import plain_answering

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
        voices: all of the run, in whose ledgers the chosen ones are scored.
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
    evaluation = evaluation_of(models, config.train.precision)
    for model in chosen:
        content = _content_of(folder, config, model, evaluation)
        with new_folder(places[model.name]) as aside:
            write_timm_folder(aside, model.load(torch.device("cpu")), model.input_spec, model.outputs)
            write_atomic(aside / CARD, hub_card_of(content))
            for path in aside.iterdir():
                path.chmod(0o644)  # safetensors writes for the owner alone
    return places


def _content_of(folder: RunDir, config: Config, model: TrainedModel, evaluation: str) -> dict[str, Any]:
    """Return what is known of one network, under the keys that a bundle has."""
    outputs = model.outputs
    alone = replace(
        plain_answering(outputs.task, outputs.names, [model.name], ("identity",)), of=model.name, evaluation=evaluation
    )
    return {
        "name": folder.name if model.name == SINGLE else f"{folder.name}-{model.name}",
        "task": outputs.task,
        "classes": list(outputs.names),
        "answer": alone.to_json(),
        "members": [{"name": model.name, "architecture": model.config.model.name, "outputs": outputs.meta()}],
        "licences": licences_of(config, [model]),
        "scores": scores_of(folder, config, alone),
        "provenance": provenance_of(folder, config, [model]),
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
