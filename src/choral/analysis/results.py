"""The result of an analysis: plain data, rendered as the page or printed by `choral analyze --json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from choral.analysis.advice import Advice
from choral.analysis.data_health import DataHealth
from choral.analysis.duplicates import Duplicates
from choral.analysis.groups import Groups
from choral.analysis.json_values import to_plain_json
from choral.analysis.label_errors import LabelErrors
from choral.analysis.probe_curves import ProbeCurves
from choral.analysis.samples import SampleTable
from choral.analysis.summary import Coverage, SummaryMetric
from choral.metrics.reliability import ReliabilityBin


@dataclass(frozen=True)
class Analysis:
    """The errors of one predictor on one split of a run, and the state of its data.

    Attributes:
        run: name of the run.
        split: that was predicted.
        predictor: named as its row of `choral score`, such as soft+tta.
        task: multiclass, multilabel or regression.
        classes: names of the classes, labels or targets.
        members: of the run, in the order of `SampleTable.votes`.
        n: samples of the split that have predictions.
        skipped: samples without predictions, since their images could not be read.
        date: of the analysis, ISO 8601.
        dataset, evaluation: fingerprints, as in the ledger.
        summary: metrics over all samples.
        samples: one row a sample.
        groups: classes and slices.
        reliability: bins of equally many predictions by rising confidence; empty without probabilities.
        coverage: None where predictions have no confidence, as those of a single regression network.
        label_errors, duplicates, health: of the data.
        probes, advice: for the same weights; None where there are none.
    """

    run: str
    split: str
    predictor: str
    task: str
    classes: tuple[str, ...]
    members: tuple[str, ...]
    n: int
    skipped: int
    date: str
    dataset: str
    evaluation: str
    summary: tuple[SummaryMetric, ...]
    samples: SampleTable
    groups: Groups
    reliability: tuple[ReliabilityBin, ...]
    coverage: Coverage | None
    label_errors: LabelErrors
    duplicates: Duplicates
    health: DataHealth
    probes: ProbeCurves | None = None
    advice: Advice | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the whole analysis as plain JSON: arrays as lists, NaN and infinities as null."""
        content: dict[str, Any] = to_plain_json(self)
        return content
