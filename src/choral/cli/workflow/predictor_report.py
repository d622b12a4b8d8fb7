"""Computes all metrics of one predictor of a run, and its metrics by slices, from ledgers: `choral score --of`, `--by`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from choral.config import Config
from choral.core.errors import DataError
from choral.data.shards.index import Dataset, Index
from choral.inference.evaluation_plan import HELD_OUT
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import Predictor, load_predictor, open_evaluated_ledger
from choral.scoring.predictor_report import PredictorReport, build_predictor_report
from choral.scoring.scoreboard.test_set_uses import record_test_set_uses
from choral.scoring.slice_metrics import SliceReport, compute_slice_metrics
from choral.scoring.slices import split_by_column


def evaluate_predictor(folder: RunDir, split: str | None, name: str) -> PredictorReport:
    """Return all metrics of a predictor.

    Args:
        folder: of the run.
        split: None: `resolve_default_split`.
        name: of the predictor; "": the default one, see `load_predictor`.
    """
    config = folder.config()
    predictor = _load_predictor(folder, config, split, name)
    record_test_set_uses(folder, config, [predictor])
    return build_predictor_report(predictor)


def evaluate_slices(folder: RunDir, split: str | None, name: str, column: str, shards: str = "") -> SliceReport:
    """Return the metrics of a predictor by the values of a metadata column.

    Args:
        folder, split, name: as for `evaluate_predictor`.
        column: of the metadata.
        shards: the packed directory; "": data.shards.

    Raises:
        ConfigError: no such predictor or column.
        DataError: the split has not been evaluated, or the shards hold other data.
    """
    config = folder.config()
    predictor = _load_predictor(folder, config, split, name)
    found = load_slices(config, predictor.ledger, column, shards)
    record_test_set_uses(folder, config, [predictor])
    return compute_slice_metrics(predictor, found, column)


def load_slices(config: Config, ledger: Ledger, column: str, shards: str = "") -> dict[str, NDArray[np.bool_]]:
    """Return the slices of a ledger by the values of a metadata column, as (N,) masks; see `evaluate_slices`."""
    meta = ledger.meta
    dataset = Dataset.open(shards or config.data.shards)
    if dataset.fingerprint != meta.dataset:
        raise DataError(
            f"{ledger.path}: was made of other data than those in {dataset.folder}; name the evaluated packed directory: "
            "--data SHARDS"
        )
    packed = config.data.train_split if meta.split == HELD_OUT else meta.split.partition("@")[0]
    return split_by_column(Index.open(dataset, packed), ledger.keys, column)


def _load_predictor(folder: RunDir, config: Config, split: str | None, name: str) -> Predictor:
    return load_predictor(folder, config, open_evaluated_ledger(folder, config, split).path.stem, name)
