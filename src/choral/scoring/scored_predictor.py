"""How a predictor is computed: its members, views and rule, so that it can be applied to another ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from choral.config import Average, Config
from choral.core.errors import ConfigError, DataError
from choral.ensembles.fitting_data import FittingData, available_rules, fit_rule, load_fitting_data
from choral.ensembles.learned_views import learn_views
from choral.ensembles.member_predictions import LEARNED, MemberPredictions
from choral.ensembles.rules import Combiner, mean_rule_name
from choral.ensembles.score_rows import scored_views
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir, read_json
from choral.scoring.predictor import COMBINED, Predictor, load_predictor


@dataclass(frozen=True)
class ScoredPredictor:
    """A predictor with the members, views and fitted rule that it is computed from.

    Attributes:
        predictor: its predictions on the scored split.
        fitting_data: the data that rules are fitted on.
        members: that it combines.
        columns: views of the ledger that are averaged.
        rule: combines the members.
        weights: of the columns; empty: equal weights.
    """

    predictor: Predictor
    fitting_data: FittingData
    members: tuple[str, ...]
    columns: tuple[str, ...]
    rule: Combiner
    weights: tuple[float, ...] = ()

    @property
    def views(self) -> dict[str, float]:
        """The weight of each view, which sum to 1; the views behind an averaged column are listed one by one."""
        meta = self.predictor.ledger.meta
        names = meta.tta_views if self.columns == ("tta",) else self.columns
        return dict(zip(names, self.weights or (1 / len(names),) * len(names), strict=True))

    @property
    def average(self) -> Average:
        """How views are averaged; see `EvaluateConfig.average`."""
        return cast(Average, self.predictor.ledger.meta.average) if self.columns == ("tta",) else "probabilities"

    def predict(self, ledger: Ledger) -> NDArray[np.float32]:
        """Return the (N, classes) float32 predictions on another ledger with the same members and views."""
        inputs = MemberPredictions(ledger, self.members, self.columns, view_weights=self.weights)
        return np.concatenate([self.rule(stack).predictions for _, stack in inputs.blocks()])


def load_scored_predictor(folder: RunDir, config: Config, split: str, name: str) -> ScoredPredictor:
    """Return a predictor of a split together with the way it is computed.

    Args:
        folder, config: of the run.
        split: the scored split; rules are fitted as in `load_predictor`.
        name: one of `list_predictors`.

    Raises:
        ConfigError: no such predictor, or a combination with predictions of other tools, which cannot be recomputed.
        DataError: as `load_predictor`.
    """
    predictor = load_predictor(folder, config, split, name)
    ledger = predictor.ledger
    fitting_data = load_fitting_data(folder, config, ledger)
    if predictor.name.startswith(COMBINED):
        return _load_combination(folder, predictor, fitting_data)
    mean = Combiner(mean_rule_name(ledger.meta.task), ledger.meta.task)
    for view, suffix in scored_views(ledger):
        inputs = MemberPredictions(ledger, ledger.members, (view,))
        for member in ledger.members:
            if predictor.name == f"member/{member}{suffix}":
                return ScoredPredictor(predictor, fitting_data, (member,), (view,), mean)
        for rule in available_rules(inputs, fitting_data):
            if predictor.name == f"{rule}{suffix}":
                return ScoredPredictor(
                    predictor,
                    fitting_data,
                    inputs.members,
                    (view,),
                    fit_rule(rule, inputs, fitting_data).combiner,
                )
    if predictor.name == f"{mean.rule}+{LEARNED}":
        learned = learn_views(ledger, ledger.members, fitting_data)
        return ScoredPredictor(predictor, fitting_data, ledger.members, learned.kept, mean, learned.kept_weights)
    raise ConfigError(f"--of {predictor.name}: is calibrated already; name the predictor to calibrate, such as soft")


def _load_combination(folder: RunDir, predictor: Predictor, fitting_data: FittingData) -> ScoredPredictor:
    """Return a combination that `choral combine` wrote."""
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
    external = [name for name in members if name not in predictor.ledger.members]
    if external:
        raise ConfigError(
            f"--of {predictor.name}: {', '.join(external)} came from the file of another tool, which cannot be evaluated "
            "on new images"
        )
    return ScoredPredictor(predictor, fitting_data, members, columns, rule, weights)
