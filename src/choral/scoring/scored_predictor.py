"""What stands behind a predictor's name: which members it hears, under which views, by which rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from choral.config import Average, Config
from choral.core.errors import ConfigError, DataError
from choral.ensembles.fitting_data import FittingData, fit_of, known_of, rule_names
from choral.ensembles.learned_views import learn_views
from choral.ensembles.member_predictions import LEARNED, MemberPredictions
from choral.ensembles.rules import Combiner, mean_rule
from choral.ensembles.score_rows import scored_views
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir, read_json
from choral.scoring.predictor import COMBINED, Predictor, predictor_of


@dataclass(frozen=True)
class ScoredPredictor:
    """How a predictor comes to what it says, fitted where it needs to be.

    Attributes:
        predictor: what it said about the split that is scored.
        known: what there is to fit on.
        members: that it hears.
        columns: views of the ledger that are averaged.
        rule: that combines the members.
        weights: of the columns; none: all alike.
    """

    predictor: Predictor
    known: FittingData
    members: tuple[str, ...]
    columns: tuple[str, ...]
    rule: Combiner
    weights: tuple[float, ...] = ()

    @property
    def views(self) -> dict[str, float]:
        """What each view counts, those that a column of the ledger averages one by one; the sum is 1."""
        meta = self.predictor.ledger.meta
        names = meta.tta_views if self.columns == ("tta",) else self.columns
        return dict(zip(names, self.weights or (1 / len(names),) * len(names), strict=True))

    @property
    def average(self) -> Average:
        """How views are averaged; see `EvaluateConfig.average`."""
        return cast(Average, self.predictor.ledger.meta.average) if self.columns == ("tta",) else "probabilities"

    def of(self, ledger: Ledger) -> NDArray[np.float32]:
        """Return what it says about the samples of another ledger of the same members and views, (N, classes) float32."""
        panel = MemberPredictions(ledger, self.members, self.columns, view_weights=self.weights)
        return np.concatenate([self.rule(stack).predictions for _, stack in panel.blocks()])


def recipe_of(folder: RunDir, config: Config, split: str, name: str) -> ScoredPredictor:
    """Return the recipe of a predictor of a split.

    Args:
        folder, config: of the run.
        split: that is scored; rules are fitted as `predictor_of` does.
        name: one of `predictor_names`.

    Raises:
        ConfigError: no such predictor, or a combination with other tools' predictions, which cannot be asked again.
        DataError: as `predictor_of`.
    """
    predictor = predictor_of(folder, config, split, name)
    ledger = predictor.ledger
    known = known_of(folder, config, ledger)
    if predictor.name.startswith(COMBINED):
        return _combination(folder, predictor, known)
    mean = Combiner(mean_rule(ledger.meta.task), ledger.meta.task)
    for view, suffix in scored_views(ledger):
        panel = MemberPredictions(ledger, ledger.members, (view,))
        for member in ledger.members:
            if predictor.name == f"member/{member}{suffix}":
                return ScoredPredictor(predictor, known, (member,), (view,), mean)
        for rule in rule_names(panel, known):
            if predictor.name == f"{rule}{suffix}":
                return ScoredPredictor(predictor, known, panel.members, (view,), fit_of(rule, panel, known).combiner)
    if predictor.name == f"{mean.rule}+{LEARNED}":
        learned = learn_views(ledger, ledger.members, known)
        return ScoredPredictor(predictor, known, ledger.members, learned.kept, mean, learned.kept_weights)
    raise ConfigError(
        f"--of {predictor.name}: is what was calibrated already; name what is to be calibrated, such as soft"
    )


def _combination(folder: RunDir, predictor: Predictor, known: FittingData) -> ScoredPredictor:
    """Return that of a combination that `choral combine` kept."""
    path = folder.path / predictor.name / "rule.json"
    content: Mapping[str, Any] = read_json(path) or {}
    try:
        members, fit = tuple(content["members"]), content["fit"]
        rule = Combiner(
            fit["rule"],
            content["task"],
            tuple(fit["weights"].values()),
            tuple(fit["biases"]),
            tuple(map(tuple, fit["groups"].values())),
            fit["temperature"],
        )
        columns = tuple(content["views"])
        given = content.get("view_weights") or {}
        weights = tuple(given[name] for name in columns) if given else ()
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error!r}); run `choral combine` again") from error
    others = [name for name in members if name not in predictor.ledger.members]
    if others:
        raise ConfigError(
            f"--of {predictor.name}: {', '.join(others)} came from another tool's file, and cannot be asked about new images"
        )
    return ScoredPredictor(predictor, known, members, columns, rule, weights)
