"""What an analysis of a run says: plain data, of which the page is made and `--json` is printed.

Everything here is computed from ledgers and stored images by the other modules of this part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import Numbers
from choral.metrics.reliability import Bin

if TYPE_CHECKING:
    from choral.analysis.advice import Advice
    from choral.analysis.probe_curves import Curves


@dataclass(frozen=True)
class Figure:
    """A metric of all samples with its 95 % interval.

    Attributes:
        metric, name: as `choral.scoring.predictor_table.NAMES` has them: accuracy, and "accuracy %".
        value, low, high: of what `percent` says, fractions of 1.
        percent: whether people read it in percent.
    """

    metric: str
    name: str
    value: float
    low: float
    high: float
    percent: bool


@dataclass(frozen=True)
class Slicing:
    """The samples by one column of their metadata.

    Attributes:
        values: names of its slices.
        codes: (N,) int16 which of them a sample is in.
    """

    values: tuple[str, ...]
    codes: NDArray[np.int16]


@dataclass(frozen=True)
class SampleTable:
    """All N samples of the split, in the order of the ledger, which is that of their keys.

    M are the members of the run, L the labels of a multilabel task, T the targets of a regression.

    Attributes:
        keys: of the samples.
        labels: multiclass (N,) int32; multilabel (N, L) bool; regression (N, T) float32.
        predicted: the same of what the predictor answers.
        confidence: (N,) float32, higher is surer. Multiclass: the probability of the predicted class. Multilabel: the mean
            over labels of the probability of what is said about each. Regression: minus the standard deviation of the
            members, in standard deviations of each target, mean over targets; all 0 with one member.
        loss: (N,) float32 log loss in nats (of a label, multilabel), regression: absolute error in standard deviations of
            each target, their mean: as `choral.ensembles.worst_samples` has it. Of a hard vote: of its shares.
        right: (N,) bool whether the class, or all labels, are right; regression: all True.
        votes: what each member says by itself. Multiclass (N, M) int32; multilabel (N, M, L) bool; regression (N, M, T)
            float32.
        vote_confidence: (N, M) float32 as `confidence`; regression: (N, 0).
        top: (N, K) int32, K at most 3. Multiclass: the most probable classes, best first. Multilabel: the labels with the
            largest loss. Regression: (N, 0).
        top_probability: (N, K) float32 of these.
        slices: column to what it says of the samples.
    """

    keys: list[str]
    labels: NDArray[Any]
    predicted: NDArray[Any]
    confidence: NDArray[np.float32]
    loss: NDArray[np.float32]
    right: NDArray[np.bool_]
    votes: NDArray[Any]
    vote_confidence: NDArray[np.float32]
    top: NDArray[np.int32]
    top_probability: NDArray[np.float32]
    slices: dict[str, Slicing]

    def __len__(self) -> int:
        """Return N."""
        return len(self.keys)


@dataclass(frozen=True)
class Group:
    """Some samples, compared with all the others by the mean of one number a sample; see `Groups.metric`.

    Attributes:
        column: of metadata; "class", "label" or "target" of the table of classes.
        value: of the column, or the class.
        n: samples.
        score, rest: of the group and of all others; None where not defined.
        difference: score minus rest.
        p: that of no difference; None where nothing is compared.
        p_adjusted: after Holm's correction for all comparisons of the page.
        significant: whether that is below 0.05.
        details: of a class or label precision, recall, f1 and so on, of a target rmse, mae, r2: metric to figures.
    """

    column: str
    value: str
    n: int
    score: Numbers | None
    rest: Numbers | None
    difference: Numbers | None
    p: float | None
    p_adjusted: float | None
    significant: bool
    details: Mapping[str, Numbers | None]


@dataclass(frozen=True)
class Groups:
    """Classes and slices with what sets them apart.

    Attributes:
        metric: that is compared: accuracy (of classes that is the recall), loss with multilabel, error with regression: the
            mean of `SampleTable.right` or of `SampleTable.loss`.
        percent: whether it is read in percent.
        higher_is_better: of it.
        classes: a group for each class, label or target, in the order of the task; targets are not compared.
        slices: column to its groups.
        comparisons: how many groups are compared with the rest on the page; p values are adjusted for so many.
        left_out: columns that are not shown, and why.
        note: how it was tested, in a sentence.
    """

    metric: str
    percent: bool
    higher_is_better: bool
    classes: tuple[Group, ...]
    slices: dict[str, tuple[Group, ...]]
    comparisons: int
    left_out: dict[str, str]
    note: str


@dataclass(frozen=True)
class Coverage:
    """Accuracy of the surest predictions, with regression their mean error, over the share of samples answered.

    Attributes:
        coverage: (k,) rising to 1.
        value, low, high: (k,) each, with a pointwise 95 % band.
        area: under the curve of risk (AURC); None for regression.
    """

    coverage: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    area: float | None


@dataclass(frozen=True)
class Suspect:
    """A label that is probably wrong.

    Attributes:
        split, key: of the sample.
        label: that it has: a class, names of labels joined by ", ", or numbers.
        suggested: what the predictions say instead.
        quality: of the label, 0 (surely wrong) to 1.
        own, other: probability of its label and of what is suggested; with regression the values, of one target.
    """

    split: str
    key: str
    label: str
    suggested: str
    quality: float
    own: float
    other: float


@dataclass(frozen=True)
class LabelSource:
    """Predictions of networks that did not learn from the labels they are held against.

    Attributes:
        split: whose labels are looked at.
        source: "held-out": out of fold or out of bag; "evaluation": of the split, which the networks did not learn from.
        n: samples that were looked at.
        found: labels that are suspected; more than are listed, perhaps.
        expected_share: of wrong labels, as the joint distribution of labels and truths says; None where it is not estimated.
        note: what the figures rest on, in a sentence or two.
    """

    split: str
    source: str
    n: int
    found: int
    expected_share: float | None
    note: str


@dataclass(frozen=True)
class LabelErrors:
    """Probable label errors, most probable first.

    Attributes:
        suspects: those listed.
        sources: where they come from, one a split.
        note: what could not be looked at, and what to do; "" where nothing is missing.
    """

    suspects: tuple[Suspect, ...]
    sources: tuple[LabelSource, ...]
    note: str


@dataclass(frozen=True)
class Place:
    """A sample of the data set, with its label as text."""

    split: str
    key: str
    label: str


@dataclass(frozen=True)
class Twins:
    """Samples that show the same image.

    Attributes:
        places: two or more, train before val before test.
        kind: "bytes": the same file. "pixels": other files, the same pixels. "near": the same picture, saved, sized, cut or
            lit otherwise.
        difference: the largest between two that are linked, see `Duplicates.measure`; 0 for the first two kinds.
        turned: whether some are mirrored or turned by quarters.
        across: whether they lie in more than one split: what is learned from one is known about the other.
        conflict: whether their labels differ.
    """

    places: tuple[Place, ...]
    kind: str
    difference: float
    turned: bool
    across: bool
    conflict: bool


@dataclass(frozen=True)
class Duplicates:
    """Exact and near duplicates: label conflicts first, then across splits, then within.

    Attributes:
        twins: those listed.
        found: all.
        across, conflicts: of these.
        leaked: samples of each split but train that have a twin in train.
        compared: images of all splits that were compared with each other.
        measure: what `Twins.difference` is.
        note: how they were found, in a sentence.
    """

    twins: tuple[Twins, ...]
    found: int
    across: int
    conflicts: int
    leaked: dict[str, int]
    compared: int
    measure: str
    note: str


@dataclass(frozen=True)
class Histogram:
    """How a quantity is distributed in one split.

    Attributes:
        counts: (b,) images in each bin.
        quantiles: at 0, 5, 25, 50, 75, 95 and 100 %.
    """

    counts: NDArray[np.int64]
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Drift:
    """Whether a quantity is distributed in a split as in train: two-sample Kolmogorov-Smirnov.

    Attributes:
        split: compared with train.
        distance: the largest between the distribution functions, 0 to 1.
        p_adjusted: after Holm's correction for all splits and quantities.
        significant: whether that is below 0.05.
    """

    split: str
    distance: float
    p_adjusted: float
    significant: bool


@dataclass(frozen=True)
class Quantity:
    """Something measured of every image.

    Attributes:
        name, unit: such as brightness, and "0 to 1".
        edges: (b + 1,) of the bins, the same for all splits.
        splits: split to its distribution.
        drift: of each split but train; none where there is no train.
    """

    name: str
    unit: str
    edges: NDArray[np.float64]
    splits: dict[str, Histogram]
    drift: tuple[Drift, ...]


@dataclass(frozen=True)
class Outlier:
    """An image that is unlike the others by one quantity; low and high are the ends of what is usual."""

    split: str
    key: str
    quantity: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BadImage:
    """An image that is unreadable, or constant (all pixels alike), with the reason."""

    split: str
    key: str
    reason: str


@dataclass(frozen=True)
class Health:
    """What the images of a data set are like.

    Attributes:
        samples: split to its samples.
        class_counts: split to the samples of each class or label, in the order of the task; none of regression.
        formats: split to format (jpeg, png) to samples.
        quantities: sizes, brightness and the like.
        outliers: the most unusual of each quantity.
        unreadable, constant: those listed.
        unreadable_found, constant_found: all.
        measured: images that were looked at.
        notes: what stands out, each a sentence; such as all images being grey.
    """

    samples: dict[str, int]
    class_counts: dict[str, tuple[int, ...]]
    formats: dict[str, dict[str, int]]
    quantities: tuple[Quantity, ...]
    outliers: tuple[Outlier, ...]
    unreadable: tuple[BadImage, ...]
    constant: tuple[BadImage, ...]
    unreadable_found: int
    constant_found: int
    measured: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """What is known of the errors of one predictor on one split of a run, and of the data.

    Attributes:
        run: its name.
        split: whose predictions are judged.
        predictor: as `choral score` names its row: soft+tta and so on.
        task: multiclass, multilabel or regression.
        classes: names of the classes, labels or targets.
        members: of the run, in the order of votes.
        n: samples of the split that have predictions.
        skipped: that have none, since they could not be read.
        date: when it was made, ISO 8601.
        dataset, evaluation: fingerprints, as the ledger has them.
        summary: metrics of all samples.
        samples: one by one.
        groups: classes and slices.
        reliability: bins of equally many predictions by rising confidence; none where there are no probabilities.
        coverage: None where nothing says how sure predictions are, as of one network that predicts numbers.
        label_errors, duplicates, health: of the data.
        probes, advice: of the same weights, where there are some.
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
    summary: tuple[Figure, ...]
    samples: SampleTable
    groups: Groups
    reliability: tuple[Bin, ...]
    coverage: Coverage | None
    label_errors: LabelErrors
    duplicates: Duplicates
    health: Health
    probes: Curves | None = None
    advice: Advice | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON: arrays as lists, what is not finite as null."""
        found: dict[str, Any] = plain(self)
        return found


def plain(value: Any) -> Any:
    """Return a value made of dataclasses, containers, arrays and scalars as plain JSON; what is not finite is None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(own) for own in value]
    if isinstance(value, np.ndarray):
        listed = value.tolist()
        return listed if value.dtype.kind != "f" or np.isfinite(value).all() else plain(listed)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
