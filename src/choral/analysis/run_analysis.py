"""Analyses one split of a run, from its ledgers and from the images of its data set; no forward pass."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from choral.analysis.advice import read_advice
from choral.analysis.data_health import compute_data_health
from choral.analysis.duplicates import find_duplicates
from choral.analysis.groups import build_slices, compare_groups
from choral.analysis.image_survey import Survey, find_rows, survey_images
from choral.analysis.label_errors import find_label_errors
from choral.analysis.probe_curves import read_curves
from choral.analysis.results import Analysis
from choral.analysis.samples import build_sample_table
from choral.analysis.summary import compute_coverage, compute_reliability, compute_summary
from choral.config import Config
from choral.core.errors import DataError
from choral.data.shards.index import Dataset, Index
from choral.inference.evaluation_plan import HELD_OUT
from choral.inference.external_data import open_ledger_index
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import Predictor, load_predictor
from choral.scoring.scoreboard.test_set_uses import record_test_set_uses

SLICED_MEASURES = ("brightness", "contrast", "saturation", "sharpness", "height", "width", "aspect")
"""Measures of images by whose quartiles samples are sliced."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and its total."""


def run_analysis(
    folder: RunDir,
    config: Config,
    split: str,
    name: str = "",
    *,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Return the analysis of a run's predictions on a split, and of its data.

    The first analysis of a data set opens all its images, which takes minutes for 50,000; the survey is stored beside the
    shards. On a test split it counts as one use of the split, see `choral.scoring.scoreboard.test_set_uses`.

    Args:
        folder, config: of the run.
        split: a split that has been evaluated.
        name: of a predictor, see `load_predictor`; "": the default one.
        processes: worker processes that open images; None: one a core.
        progress: called while images are opened and compared.

    Raises:
        ConfigError: no such predictor.
        DataError: the split has not been evaluated, or the shards hold other data than were evaluated, or are damaged.
    """
    predictor = load_predictor(folder, config, split, name)
    ledger = predictor.ledger
    index = _open_index(folder, config, predictor)

    def stage(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    surveys = survey_images(index.dataset, processes=processes, progress=stage("images opened"))
    slices, left_out = build_slices(index, ledger.keys, _select_measures(surveys[index.split], ledger.keys))
    samples = build_sample_table(predictor, slices)
    record_test_set_uses(folder, config, [predictor])
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
        summary=compute_summary(predictor),
        samples=samples,
        groups=compare_groups(predictor, samples, left_out),
        reliability=compute_reliability(predictor),
        coverage=compute_coverage(predictor, samples),
        label_errors=find_label_errors(folder, config, predictor),
        duplicates=find_duplicates(
            surveys, train=train, processes=processes, progress=stage("candidate pairs compared")
        ),
        health=compute_data_health(surveys, train=train),
        probes=read_curves(folder, config, split),
        advice=read_advice(folder, config, split),
    )


def _open_index(folder: RunDir, config: Config, predictor: Predictor) -> Index:
    """Return the index of the samples that were predicted."""
    meta = predictor.ledger.meta
    if meta.split == HELD_OUT:
        index = Index.open(Dataset.open(config.data.shards), config.data.train_split)
    else:
        index = open_ledger_index(folder, config, meta.split)
    if index.dataset.fingerprint != meta.dataset:
        raise DataError(
            f"{predictor.ledger.path}: was made from other data than {index.dataset.folder} holds now; evaluate again, or "
            "set data.shards to the folder that was evaluated"
        )
    return index


def _select_measures(survey: Survey, keys: list[str]) -> dict[str, NDArray[np.float64]]:
    rows = find_rows(survey, keys)
    return {name: survey.measures[name][rows] for name in SLICED_MEASURES}
