"""Evaluation on other data than the run's own: their ledger is named SPLIT@NAME, and RUN/predictions/data.json stores where
the data NAME are."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from choral.config import Config
from choral.config.fields import NAME_PATTERN
from choral.core.errors import ConfigError, DataError
from choral.data.shards.index import Dataset, Index
from choral.inference.models_file import is_assembled
from choral.inference.trained_model import TrainedModel
from choral.runs.run_dir import RunDir, read_json, write_json

_SEPARATOR = "@"
_FILE = "data.json"


def split_from_ledger_name(ledger: str) -> str:
    """Return the split of a ledger by the ledger's name: "test" for "test@customers"."""
    return ledger.partition(_SEPARATOR)[0]


def parse_data_option(text: str) -> tuple[str, str]:
    """Return name and folder of the option --data [NAME=]FOLDER; name "" if it is not given."""
    name, equals, folder = text.partition("=")
    if equals and NAME_PATTERN.fullmatch(name) and not Path(text).exists():
        return name, folder
    return "", text


def compute_ledger_suffix(run_dir: RunDir, models: Sequence[TrainedModel], dataset: Dataset, name: str) -> str:
    """Return the suffix of ledger names: "" for the run's own data, "@NAME" for others.

    A run's own data are those that it was trained on, wherever they are now; for an assembled run, those of its config.

    Args:
        run_dir, models: of the run.
        dataset: to evaluate on.
        name: requested name; "": the name of the folder.

    Raises:
        ConfigError: another data set has been evaluated under that name.
    """
    stored = Path(run_dir.config().data.shards).absolute()
    if dataset.folder == stored or dataset.fingerprint == _own_fingerprint(run_dir, stored, models):
        return ""
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", dataset.folder.name).strip("-._") or "data"
    entry = (read_json(run_dir.predictions / _FILE) or {}).get(name)
    if entry is not None and entry["fingerprint"] != dataset.fingerprint:
        raise ConfigError(
            f"--data: the name '{name}' already stands for other data, {entry['shards']}; choose another one: "
            f"--data NAME={dataset.folder}"
        )
    return f"{_SEPARATOR}{name}"


def _own_fingerprint(run_dir: RunDir, stored: Path, models: Sequence[TrainedModel]) -> str:
    """Return the fingerprint of a run's own data.

    Args:
        run_dir, models: of the run.
        stored: where its config says the data are.
    """
    if is_assembled(run_dir):  # its models may have been trained on different data
        with contextlib.suppress(DataError):  # the data have been moved or deleted
            return Dataset.open(str(stored)).fingerprint
    return models[0].dataset_fingerprint


def write_data_location(run_dir: RunDir, dataset: Dataset, suffix: str) -> None:
    """Store in data.json where the data of ledgers with a suffix are; nothing for suffix ""."""
    if suffix:
        path = run_dir.predictions / _FILE
        entry = {"shards": str(dataset.folder), "fingerprint": dataset.fingerprint}
        write_json(path, {**(read_json(path) or {}), suffix.removeprefix(_SEPARATOR): entry})


def open_ledger_index(run_dir: RunDir, config: Config, ledger: str) -> Index:
    """Open the index of a ledger's samples.

    Raises:
        DataError: the data have been moved, deleted or replaced.
    """
    split, _, name = ledger.partition(_SEPARATOR)
    if not name:
        return Index.open(Dataset.open(config.data.shards), split)
    entry = (read_json(run_dir.predictions / _FILE) or {}).get(name)
    if entry is None:
        raise DataError(
            f"{run_dir.predictions / _FILE}: has no entry '{name}'; evaluate again, with --data {name}=FOLDER"
        )
    dataset = Dataset.open(entry["shards"])
    if dataset.fingerprint != entry["fingerprint"]:
        raise DataError(f"{dataset.folder}: holds other data than were evaluated as '{name}'")
    return Index.open(dataset, split)
