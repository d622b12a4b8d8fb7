"""models.json of an assembled run: which models it consists of, and where their checkpoints are.

    RUN/models.json    {"format": "choral-models-1", "targets": ["runs/a", ...], "models": [{"name": ..., "run": ...,
                        "checkpoint": ..., "weights": ..., "sha256": ...}, ...]}

Choral 0.1.0 wrote voices.json, with the format "choral-voices-1" and the key "voices"; it is still read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from choral.core.errors import ChoralError
from choral.inference.bundled_models import is_bundle, read_bundled_models
from choral.inference.trained_model import TrainedModel, read_trained_model
from choral.runs.run_dir import RunDir, read_json, write_json

MODELS_FILE = "models.json"
_FORMAT, _KEY = "choral-models-1", "models"
_OLD_FILE, _OLD_FORMAT, _OLD_KEY = "voices.json", "choral-voices-1", "voices"


def is_assembled(run_dir: RunDir) -> bool:
    """Return whether a run consists of models of other runs."""
    return _find(run_dir) is not None


def read_targets(run_dir: RunDir) -> list[str]:
    """Return the targets that a run was assembled from; [] if it was not assembled."""
    path = _find(run_dir)
    targets: list[str] = (read_json(path) or {}).get("targets", []) if path else []
    return targets


def read_member_run_dirs(run_dir: RunDir) -> dict[str, RunDir]:
    """Return the run directories of an assembled run's models, by name."""
    return {entry["name"]: RunDir(Path(entry["run"])) for entry in _read_entries(run_dir)}


def read_assembled_models(run_dir: RunDir) -> list[TrainedModel]:
    """Return the models of an assembled run.

    Raises:
        ChoralError: models.json is damaged, or a checkpoint is missing or holds other weights than when it was assembled.
    """
    models = []
    for entry in _read_entries(run_dir):
        model = _read_model(entry)
        if model.weights_hash != entry["sha256"]:
            raise ChoralError(
                f"{run_dir.path}: {model.name}: {model.checkpoint} holds other weights than when the run was assembled; "
                "evaluate the same targets again"
            )
        models.append(model)
    return models


def write_models_file(run_dir: RunDir, targets: Sequence[str], models: Sequence[TrainedModel]) -> None:
    """Write RUN/models.json.

    Args:
        run_dir: of the assembled run.
        targets: that it was assembled from, as `read_targets` returns them.
        models: with unique names.
    """
    entries = [
        {
            "name": model.name,
            "run": str(model.run_dir.path.absolute()),
            "checkpoint": str(model.checkpoint.absolute()),
            "weights": model.weights_file,
            "sha256": model.weights_hash,
        }
        for model in models
    ]
    write_json(run_dir.path / MODELS_FILE, {"format": _FORMAT, "targets": list(targets), _KEY: entries})


def _find(run_dir: RunDir) -> Path | None:
    paths = (run_dir.path / name for name in (MODELS_FILE, _OLD_FILE))
    return next((path for path in paths if path.is_file()), None)


def _read_entries(run_dir: RunDir) -> list[dict[str, str]]:
    path = _find(run_dir) or run_dir.path / MODELS_FILE
    content: dict[str, Any] = read_json(path) or {}
    key = {_FORMAT: _KEY, _OLD_FORMAT: _OLD_KEY}.get(content.get("format", ""), "")
    if key not in content:
        raise ChoralError(f"{path}: damaged; delete {run_dir.path} and evaluate its targets again")
    entries: list[dict[str, str]] = content[key]
    return entries


def _read_model(entry: Mapping[str, str]) -> TrainedModel:
    """Return the model of an entry: of a run, or of a bundle."""
    name, run, checkpoint = entry["name"], Path(entry["run"]), Path(entry["checkpoint"])
    if not is_bundle(run):
        return read_trained_model(name, name, RunDir(run), checkpoint, entry["weights"])
    for model in read_bundled_models(run):
        if model.checkpoint == checkpoint:
            return replace(model, name=name, member=name)
    raise ChoralError(f"{run}: no longer holds {checkpoint.name}; evaluate the same targets again")
