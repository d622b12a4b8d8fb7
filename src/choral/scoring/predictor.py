"""Predictors by name: what one row of `choral score` said about every sample of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config import Config
from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.ensembles.fitting_data import FittingData, fit_of, known_of, rule_names
from choral.ensembles.learned_views import learn_views, learned_panel, why_not_learned
from choral.ensembles.member_predictions import LEARNED, MemberPredictions
from choral.ensembles.rules import Combiner, mean_rule
from choral.ensembles.score_rows import scored_views
from choral.inference.ledger import Ledger
from choral.metrics.metric_report import Metrics, measured
from choral.metrics.per_sample import top_class
from choral.runs.run_dir import RunDir, read_json
from choral.scoring.policy import answer_panel, answer_path, read_answer, reason_not_calibrated

COMBINED = "combined/"
ANSWER = "answer"
"""What a run says by its answer.json."""


@dataclass(frozen=True)
class Predictor:
    """A member, or a rule that combines members, and what it said.

    Attributes:
        name: of its row: member/first, member/first+tta, soft, weighted+tta, combined/NAME and so on.
        ledger: with keys (sorted), labels and what they mean; of the run, also for what was combined.
        predictions: (N, classes) float32 in the ledger's order; of a hard vote shares of votes.
        gives_probabilities: whether they are probabilities, so that there is a log loss; not so of a hard vote and of
            numbers.
        decided: (N,) classes, or (N, labels) labels, that thresholds or costs decided for; None: the most probable class,
            labels above one half.
    """

    name: str
    ledger: Ledger
    predictions: NDArray[np.float32]
    gives_probabilities: bool
    decided: NDArray[Any] | None = None

    @property
    def answers(self) -> NDArray[Any]:
        """What it answers: (N,) classes, (N, labels) bool, or (N, targets) numbers."""
        task = self.ledger.meta.task
        if self.decided is not None:
            return self.decided > 0 if task == "multilabel" else self.decided
        if task == "multiclass":
            return top_class(self.predictions)
        return self.predictions > 0.5 if task == "multilabel" else self.predictions

    def measured(self, mask: NDArray[np.bool_] | None = None) -> Metrics:
        """Return what is measured of it; of the samples of an (N,) mask, where there is one."""
        labels, predictions, decided = self.ledger.labels, self.predictions, self.decided
        if mask is not None:
            labels, predictions = labels[mask], predictions[mask]
            decided = None if decided is None else decided[mask]
        return measured(
            self.ledger.meta.task, labels, predictions, probabilities=self.gives_probabilities, decided=decided
        )


def predictor_of(folder: RunDir, config: Config, split: str, name: str = "") -> Predictor:
    """Return what a predictor said about a split; rules are fitted where `choral score` fits them, never on the split.

    Args:
        folder, config: of the run.
        split: that has been evaluated.
        name: one of `predictor_names`; "": what `choral calibrate` left, else `usual_name`.

    Raises:
        ConfigError: no such predictor; the nearest is shown.
        DataError: the split has not been evaluated, a ledger is damaged or holds no sample, or a combination was made of
            other predictions.
    """
    ledger = evaluated(folder, config, split)
    if not len(ledger):
        raise DataError(f"{ledger.path}: holds no sample, nothing can be assessed")
    known = known_of(folder, config, ledger)
    names = _names(folder, ledger, known)
    if not name:
        name = ANSWER if ANSWER in names else _usual_of(ledger, names)
    if name == ANSWER:
        return _answered(folder, ledger)
    if name not in names:
        raise ConfigError(f"no predictor '{name}'.{did_you_mean(name, names)} There are: {', '.join(names)}")
    if name.startswith(COMBINED):
        return _combined(folder, ledger, name)
    for view, suffix in scored_views(ledger):
        panel = MemberPredictions(ledger, ledger.members, (view,))
        for member in ledger.members:
            if name == f"member/{member}{suffix}":
                return Predictor(name, ledger, ledger.predictions(member, view), panel.task != "regression")
        for rule in rule_names(panel, known):
            if name == f"{rule}{suffix}":
                return _ruled(name, panel, fit_of(rule, panel, known).combiner)
    if name == _learned(ledger):
        panel = learned_panel(ledger, ledger.members, learn_views(ledger, ledger.members, known))
        return _ruled(name, panel, Combiner(mean_rule(ledger.meta.task), ledger.meta.task))
    raise AssertionError(f"{name} is a name, and of nothing")


def predictor_names(folder: RunDir, config: Config, split: str) -> list[str]:
    """Return the names of all predictors of an evaluated split, in the order of the table of scores, then combinations.

    Raises:
        DataError: the split has not been evaluated, or a ledger is damaged.
    """
    ledger = evaluated(folder, config, split)
    return _names(folder, ledger, known_of(folder, config, ledger))


def usual_name(folder: RunDir, config: Config, split: str) -> str:
    """Return the name of the soft vote of several members (of numbers their mean), of one member of that one.

    It is over all views where the ledger has their mean.

    Raises:
        DataError: the split has not been evaluated, or a ledger is damaged.
    """
    ledger = evaluated(folder, config, split)
    return _usual_of(ledger, _names(folder, ledger, known_of(folder, config, ledger)))


def evaluated(folder: RunDir, config: Config, split: str | None) -> Ledger:
    """Return the ledger of a split; None: `default_split`.

    Raises:
        DataError: the split has not been evaluated.
    """
    name = split or default_split(folder, config)
    path = folder.predictions / f"{name}.parquet"
    if not path.is_file():
        found = ", ".join(sorted(file.stem for file in folder.predictions.glob("*.parquet"))) or "none"
        raise DataError(
            f"{folder.path}: split '{name}' has not been evaluated (evaluated: {found}); run `choral evaluate {folder.name}`"
        )
    return Ledger.open(path)


def default_split(folder: RunDir, config: Config) -> str:
    """Return the split that is scored if none is named: test where it is evaluated, else the last of evaluate.splits."""
    return "test" if (folder.predictions / "test.parquet").is_file() else config.evaluate.splits[-1]


def _names(folder: RunDir, ledger: Ledger, known: FittingData) -> list[str]:
    names = []
    for view, suffix in scored_views(ledger):
        panel = MemberPredictions(ledger, ledger.members, (view,))
        names += [f"member/{member}{suffix}" for member in ledger.members]
        names += [f"{rule}{suffix}" for rule in rule_names(panel, known)]
    if not why_not_learned(ledger, known):
        names.append(_learned(ledger))
    names += sorted(_combinations(folder, ledger.meta.split))
    answering = read_answer(folder)
    return [*names, ANSWER] if answering is not None and not reason_not_calibrated(answering, ledger) else names


def _learned(ledger: Ledger) -> str:
    return f"{mean_rule(ledger.meta.task)}+{LEARNED}"


def _combinations(folder: RunDir, split: str) -> Iterator[str]:
    for path in (folder.path / "combined").glob(f"*/{split}.parquet"):
        yield f"{COMBINED}{path.parent.name}"


def _usual_of(ledger: Ledger, names: Sequence[str]) -> str:
    first = f"member/{ledger.members[0]}" if len(ledger.members) == 1 else mean_rule(ledger.meta.task)
    return next(one for one in (f"{first}+tta", first, names[0]) if one in names)


def _answered(folder: RunDir, ledger: Ledger) -> Predictor:
    """Return what the run answers since `choral calibrate`."""
    answering = read_answer(folder)
    if answering is None:
        raise ConfigError(f"no predictor '{ANSWER}': {folder.path} has none yet; run `choral calibrate {folder.name}`")
    if reason := reason_not_calibrated(answering, ledger):
        raise DataError(f"{answer_path(folder)}: {reason}")
    panel = answer_panel(answering, ledger)
    said = np.concatenate([answering.said(stack) for _, stack in panel.blocks()])
    chosen = answering.decision.kind == "costs" or answering.decision.thresholds
    decided = answering.decide(said) if chosen else None
    return Predictor(ANSWER, ledger, said, answering.gives_probabilities, decided)


def _ruled(name: str, panel: MemberPredictions, rule: Combiner) -> Predictor:
    said = np.concatenate([rule(stack).predictions for _, stack in panel.blocks()])
    return Predictor(name, panel.ledger, said, rule.gives_probabilities)


def _combined(folder: RunDir, ledger: Ledger, name: str) -> Predictor:
    """Return a combination that was kept, if it was made of the predictions that the run has now."""
    place = folder.path / name
    combined = Ledger.open(place / f"{ledger.meta.split}.parquet")
    same = (combined.meta.dataset, combined.meta.evaluation) == (ledger.meta.dataset, ledger.meta.evaluation)
    if not same or combined.keys != ledger.keys:
        raise DataError(
            f"{combined.path}: was made of other predictions than {ledger.path} holds now; run `choral combine` again"
        )
    rule = (read_json(place / "rule.json") or {}).get("fit", {}).get("rule", "")
    predictions = combined.predictions(combined.members[0], combined.views[0])
    return Predictor(name, ledger, predictions, ledger.meta.task != "regression" and rule != "hard")
