"""Where an exported network comes from: run, config, data and software, and who may do what with it."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from choral import __version__
from choral.config import Config
from choral.config.files import to_dict
from choral.core.errors import DataError
from choral.data.shards.index import Dataset
from choral.inference.trained_model import TrainedModel
from choral.models.pretrained_weights import LICENCES
from choral.runs.run_dir import RunDir

_log = logging.getLogger(__name__)
_SOFTWARE = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "simplejpeg")
_PACKAGE = "package:"


def find_licences(config: Config, models: Sequence[TrainedModel]) -> dict[str, str]:
    """Return the licences of data and of the weights that training began with; "": nobody has stated one.

    The config's `export` section counts first, then what packed data and Python packages state.
    """
    data = config.export.data_licence
    if not data:
        try:
            data = str(Dataset.open(config.data.shards).source.get("licence", ""))
        except DataError:  # the data may have been moved
            data = ""
    weights = config.export.weights_licence
    if not weights:
        sources = dict.fromkeys(model.config.model.weights for model in models)
        packages = [source.removeprefix(_PACKAGE) for source in sources if source.startswith(_PACKAGE)]
        weights = ", ".join(filter(None, map(_licence_of_package, packages)))
    return {"data": data, "weights": weights}


def describe_provenance(folder: RunDir, config: Config, models: Sequence[TrainedModel]) -> dict[str, Any]:
    """Return as plain JSON what was trained, on which data, by which software, and when it was exported."""
    data: dict[str, Any] = {"fingerprints": {model.name: model.dataset_fingerprint for model in models}}
    try:
        dataset = Dataset.open(config.data.shards)
    except DataError as error:
        _log.warning("the data are described by their fingerprint alone: %s", error)
    else:
        kept = {key: value for key, value in dataset.source.items() if key != "options"}
        data |= {"name": dataset.name, "source": kept}
        data["samples"] = {name: split.samples for name, split in dataset.splits.items()}
    return {
        "run": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": to_dict(config),
        "members": {model.name: to_dict(model.config) for model in models},
        "data": data,
        "software": {
            "choral": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _SOFTWARE if _installed(name)},
        },
    }


def _licence_of_package(module: str) -> str:
    """Return the licence that the Python distribution of a module states, else one from our table; "": none."""
    for name in metadata.packages_distributions().get(module.partition(".")[0], []):
        fields = metadata.metadata(name)
        stated = [fields[key].partition("\n")[0] for key in ("License-Expression", "License") if key in fields]
        licence = next((text for text in stated if text not in ("", "UNKNOWN")), LICENCES.get(module, ""))
        if licence:
            return f"{licence} ({name})"
    return ""


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
