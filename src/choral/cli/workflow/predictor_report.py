"""What one predictor of a run is worth: all metrics, and by slices of the samples. From ledgers, without a forward pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from choral.config import Config
from choral.core.errors import DataError
from choral.data.shards.index import Dataset, Index
from choral.inference.evaluation_plan import HELD_OUT
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import Predictor, evaluated, predictor_of
from choral.scoring.predictor_report import CardJson, card_json
from choral.scoring.scoreboard.test_set_uses import look_at
from choral.scoring.slice_metrics import SlicesJson, slices_json
from choral.scoring.slices import slices_of


def card(folder: RunDir, split: str | None, name: str) -> CardJson:
    """Return all metrics of a predictor.

    Args:
        folder: of the run.
        split: None: `assess.predictor.default_split`.
        name: of the predictor, see `predictor_of`; "": the default one.
    """
    config = folder.config()
    predictor = _predictor(folder, config, split, name)
    look_at(folder, config, [predictor])
    return card_json(predictor)


def slices(folder: RunDir, split: str | None, name: str, column: str, shards: str = "") -> SlicesJson:
    """Return the metrics of a predictor by the values of a column of the index.

    Args:
        folder, split, name: as for `card`.
        column: of the metadata.
        shards: where the samples are packed; "": data.shards.

    Raises:
        ConfigError: no such predictor or column.
        DataError: the split has not been evaluated, or the shards hold other data than were evaluated.
    """
    config = folder.config()
    predictor = _predictor(folder, config, split, name)
    found = slice_masks(config, predictor.ledger, column, shards)
    look_at(folder, config, [predictor])
    return slices_json(predictor, found, column)


def slice_masks(config: Config, ledger: Ledger, column: str, shards: str = "") -> dict[str, NDArray[np.bool_]]:
    """Return the samples of a ledger by the values of a column of the index they were packed with; see `slices`."""
    meta = ledger.meta
    dataset = Dataset.open(shards or config.data.shards)
    if dataset.fingerprint != meta.dataset:
        raise DataError(
            f"{ledger.path}: is about other data than are in {dataset.folder}; name the packed folder that was evaluated: "
            "--data SHARDS"
        )
    packed = config.data.train_split if meta.split == HELD_OUT else meta.split.partition("@")[0]
    return slices_of(Index.open(dataset, packed), ledger.keys, column)


def _predictor(folder: RunDir, config: Config, split: str | None, name: str) -> Predictor:
    return predictor_of(folder, config, evaluated(folder, config, split).path.stem, name)
