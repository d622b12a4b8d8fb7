"""Data that a run is evaluated on beside its own: the ledger is called SPLIT@NAME, and RUN/predictions/data.json says
where NAME lies."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from choral.config import Config
from choral.config.ensemble import LEGAL_NAME
from choral.core.errors import ConfigError, DataError
from choral.data.shards.index import Dataset, Index
from choral.inference.trained_models import TrainedModel, is_assembled
from choral.runs.run_dir import RunDir, read_json, write_json

_AT = "@"
_FILE = "data.json"


def split_of(ledger: str) -> str:
    """Return the split that a ledger is about, by the ledger's name: "test" of "test@customers"."""
    return ledger.partition(_AT)[0]


def named_data(text: str) -> tuple[str, str]:
    """Read [NAME=]FOLDER; without a name, the folder's."""
    name, equals, folder = text.partition("=")
    if equals and LEGAL_NAME.fullmatch(name) and not Path(text).exists():
        return name, folder
    return "", text


def suffix_of(folder: RunDir, models: Sequence[TrainedModel], dataset: Dataset, name: str) -> str:
    """Return what is appended to splits in the names of ledgers: nothing for the run's own data, "@NAME" for others.

    A run's own are the data that it was trained on, wherever they lie now; those of an assembled run, the data of its config.

    Args:
        folder, voices: of the run.
        dataset: that is evaluated on.
        name: that was asked for; "": the folder's.

    Raises:
        ConfigError: another data set has been evaluated under that name.
    """
    stored = Path(folder.config().data.shards).absolute()
    if dataset.folder == stored or dataset.fingerprint == _own_fingerprint(folder, stored, models):
        return ""
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", dataset.folder.name).strip("-._") or "data"
    known = (read_json(folder.predictions / _FILE) or {}).get(name)
    if known is not None and known["fingerprint"] != dataset.fingerprint:
        raise ConfigError(
            f"--data: '{name}' has been {known['shards']}, and holds other data; give these a name: "
            f"--data NAME={dataset.folder}"
        )
    return f"{_AT}{name}"


def _own_fingerprint(folder: RunDir, stored: Path, models: Sequence[TrainedModel]) -> str:
    if is_assembled(folder):  # its networks may have been trained on other data, each on its own
        with contextlib.suppress(DataError):  # they lie elsewhere by now
            return Dataset.open(str(stored)).fingerprint
    return models[0].dataset


def remember(folder: RunDir, dataset: Dataset, suffix: str) -> None:
    """Note where the data of ledgers with a suffix lie."""
    if suffix:
        path = folder.predictions / _FILE
        entry = {"shards": str(dataset.folder), "fingerprint": dataset.fingerprint}
        write_json(path, {**(read_json(path) or {}), suffix.removeprefix(_AT): entry})


def index_of(folder: RunDir, config: Config, ledger: str) -> Index:
    """Return the index of the samples that a ledger is about.

    Raises:
        DataError: the data are not where they were, or other data now.
    """
    split, _, name = ledger.partition(_AT)
    if not name:
        return Index.open(Dataset.open(config.data.shards), split)
    known = (read_json(folder.predictions / _FILE) or {}).get(name)
    if known is None:
        raise DataError(
            f"{folder.predictions / _FILE}: says nothing of '{name}'; evaluate again, with --data {name}=FOLDER"
        )
    dataset = Dataset.open(known["shards"])
    if dataset.fingerprint != known["fingerprint"]:
        raise DataError(f"{dataset.folder}: holds other data than those that were evaluated as '{name}'")
    return Index.open(dataset, split)
