"""All that is known of the errors of a run, from its ledgers and from the images of its data set: no forward pass."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from choral.analysis.advice import advice_of
from choral.analysis.data_health import health_of
from choral.analysis.duplicates import duplicates_of
from choral.analysis.groups import groups_of, slicings
from choral.analysis.image_survey import Survey, rows_of, survey
from choral.analysis.label_errors import label_errors_of
from choral.analysis.probe_curves import curves_of
from choral.analysis.results import Analysis
from choral.analysis.samples import sample_table
from choral.analysis.summary import coverage_of, reliability_of, summary_of
from choral.config import Config
from choral.core.errors import DataError
from choral.data.shards.index import Dataset, Index
from choral.inference.evaluation_plan import HELD_OUT
from choral.inference.external_data import index_of
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import Predictor, predictor_of
from choral.scoring.scoreboard.test_set_uses import look_at

MEASURED = ("brightness", "contrast", "saturation", "sharpness", "height", "width", "aspect")
"""Of images, by whose quartiles samples are sliced."""

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is, and all."""


def analysis_of(
    folder: RunDir,
    config: Config,
    split: str,
    name: str = "",
    *,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Return what is wrong with the predictions of a run about a split, and with its data.

    The first analysis of a data set opens all its images, which takes minutes for 50,000; what is found is kept beside the
    shards. Figures of a test split count as a look at it, see `choral.scoring.scoreboard.test_set_uses`.

    Args:
        folder, config: of the run.
        split: that has been evaluated.
        name: of a predictor, see `predictor_of`; "": the usual one.
        processes: that open images; None: one a core.
        progress: called as images are opened and compared.

    Raises:
        ConfigError: no such predictor.
        DataError: the split has not been evaluated, or the shards hold other data than were evaluated, or are damaged.
    """
    predictor = predictor_of(folder, config, split, name)
    ledger = predictor.ledger
    index = _index(folder, config, predictor)

    def told(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    surveys = survey(index.dataset, processes=processes, progress=told("images opened"))
    slices, left_out = slicings(index, ledger.keys, _measures(surveys[index.split], ledger.keys))
    samples = sample_table(predictor, slices)
    look_at(folder, config, [predictor])
    train = config.data.train_split
    return Analysis(
        run=folder.name,
        split=split,
        predictor=predictor.name,
        task=ledger.meta.task,
        classes=tuple(ledger.classes),
        members=tuple(ledger.members),
        n=len(ledger),
        skipped=ledger.meta.skipped,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=ledger.meta.dataset,
        evaluation=ledger.meta.evaluation,
        summary=summary_of(predictor),
        samples=samples,
        groups=groups_of(predictor, samples, left_out),
        reliability=reliability_of(predictor),
        coverage=coverage_of(predictor, samples),
        label_errors=label_errors_of(folder, config, predictor),
        duplicates=duplicates_of(surveys, train=train, processes=processes, progress=told("candidates compared")),
        health=health_of(surveys, train=train),
        probes=curves_of(folder, config, split),
        advice=advice_of(folder, config, split),
    )


def _index(folder: RunDir, config: Config, predictor: Predictor) -> Index:
    """Return the index of the samples that the predictions are about."""
    meta = predictor.ledger.meta
    if meta.split == HELD_OUT:
        index = Index.open(Dataset.open(config.data.shards), config.data.train_split)
    else:
        index = index_of(folder, config, meta.split)
    if index.dataset.fingerprint != meta.dataset:
        raise DataError(
            f"{predictor.ledger.path}: is about other data than are in {index.dataset.folder} now: evaluate again, or give "
            "the folder that was evaluated with data.shards"
        )
    return index


def _measures(found: Survey, keys: list[str]) -> dict[str, NDArray[np.float64]]:
    rows = rows_of(found, keys)
    return {name: found.measures[name][rows] for name in MEASURED}
