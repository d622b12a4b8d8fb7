"""A combination of a run's members that is kept: RUN/combined/NAME/SPLIT.parquet, and rule.json, which says how it was made.

Everything is computed from ledgers, without a forward pass. Parameters are fitted on the validation split or on out-of-fold
predictions, or set by the user, never fitted on the scored split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config import Config
from choral.config.fields import NAME_PATTERN
from choral.core.errors import ConfigError, did_you_mean
from choral.core.files import compute_sha256
from choral.ensembles.external_predictions import ExternalPredictions, parse_predictions_path, read_external_predictions
from choral.ensembles.fitting_data import FittingData, load_fitting_data
from choral.ensembles.learned_views import LearnedViews, learn_views, view_gains
from choral.ensembles.member_predictions import LEARNED, MemberPredictions, select_members, select_views
from choral.ensembles.multiclass_scores import score_multiclass
from choral.ensembles.multilabel_scores import score_multilabel
from choral.ensembles.regression_scores import score_regression
from choral.ensembles.rule_fitting import (
    CRITERIA,
    MAX_PICKS,
    RULES,
    FittedRule,
    boosting_rule,
    compute_statistics,
    fit_stacking_rule,
    fit_temperature,
    fit_weights,
    unfitted_rule,
    weighted_rule,
)
from choral.ensembles.rules import Combiner, mean_rule_name
from choral.ensembles.score_rows import MulticlassRow, ScoreRow, Section, ViewGain
from choral.inference.ledger import Ledger, LedgerMeta, write_combined
from choral.runs.run_dir import RunDir, read_json, write_json

FORMAT = "choral-combination-1"
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class CombinationRequest:
    """The options of `choral combine`.

    Attributes:
        rule: one of `rule_fitting.RULES` of the task.
        members: of the run; empty: all.
        views: to average; empty: the mean over views if the ledger has it; "learned": weighted, learned on the validation
            split.
        files: predictions of other tools on the scored split, FILE or NAME=FILE.
        validation_files: of the same tools on the validation split, with the same names.
        weights: of the rule weighted, by member; empty: fitted.
        by: criterion of greedy selection; "": the log loss, for regression the squared error.
        picks: upper limit of members that greedy selects.
        temperature: fit, none or a number; "": fit if there is something to fit on.
        name: of the combination; "": the rule's.
    """

    rule: str
    members: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    validation_files: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    by: str = ""
    picks: int = MAX_PICKS
    temperature: str = ""
    name: str = ""

    @property
    def fits_weights(self) -> bool:
        """Whether member weights are fitted on validation data."""
        return self.rule == "greedy" or (self.rule == "weighted" and not self.weights)


def combine_run(run_dir: RunDir, config: Config, split: str, request: CombinationRequest) -> dict[str, Any]:
    """Combine, score and keep; an existing result of the same files is read instead.

    Args:
        run_dir, config: of the run.
        split: to combine and score.
        request: the options.

    Returns:
        The content of rule.json, with `scores` and `again` (whether it existed already), as plain JSON.

    Raises:
        ConfigError: an invalid rule, member, view, weight or temperature, or nothing to fit on except the scored split.
        DataError: predictions that a rule needs are missing, or files do not match.
    """
    scored = Ledger.open(run_dir.predictions / f"{split}.parquet")
    fitting_data = load_fitting_data(run_dir, config, scored)
    request = _validate(request, scored, fitting_data)
    folder = run_dir.path / "combined" / request.name
    sources = _sources(request, scored, fitting_data)
    kept = _read_rule(folder)
    entry = kept.get("splits", {}).get(split, {})
    out = folder / f"{split}.parquet"
    request_json = json.loads(json.dumps(asdict(request)))
    if kept.get("request") == request_json and entry.get("sources") == sources and _unchanged(out, entry):
        return {**_select_split(kept, split), "again": True}
    predictions, fit, learned = _fit(request, scored, fitting_data)
    rows = _score(request, predictions, fit)
    _write_ledger(out, request, predictions, fit)
    view_weights = learned.weights if learned is not None else {}
    made = json.loads(json.dumps({"request": request_json, "fit": _describe_fit(fit), "view_weights": view_weights}))
    same_rule = all(kept.get(key) == value for key, value in made.items())
    if not same_rule:  # remove the ledgers of another rule under this name
        for path in folder.glob("*.parquet"):
            if path != out:
                path.unlink()
    entry = {"sources": sources, "sha256": compute_sha256(out), "scores": rows, "n": len(scored)}
    if learned is not None:
        entry["view_gains"] = _view_gains(request, predictions, fit, learned)
    content = {
        "format": FORMAT,
        "name": request.name,
        "task": scored.meta.task,
        **made,
        "members": list(predictions.members),
        "views": list(predictions.views),
        "tta_views": list(scored.meta.tta_views) if predictions.views == ("tta",) else [],
        "learned_views": learned.to_json() if learned is not None else None,
        "fitted_on": fitting_data.validation.meta.split if fit.temperature_fit and fitting_data.validation else "",
        "splits": {**(kept.get("splits", {}) if same_rule else {}), split: entry},
    }
    write_json(folder / "rule.json", content)
    return {**_select_split(json.loads(json.dumps(content)), split), "again": False}


def fit_combination(
    request: CombinationRequest, ledger: Ledger, fitting_data: FittingData
) -> tuple[MemberPredictions, FittedRule]:
    """Return the member predictions and the fitted rule of a request; nothing is scored or kept.

    Raises:
        ConfigError, DataError: as `combine_run`.
    """
    predictions, fit, _ = _fit(_validate(request, ledger, fitting_data), ledger, fitting_data)
    return predictions, fit


def _validate(request: CombinationRequest, scored: Ledger, fitting_data: FittingData) -> CombinationRequest:
    """Return the request with defaults filled in; ConfigError if it is not possible for this run."""
    task = scored.meta.task
    aliases = {"mean": "soft"} if task != "regression" else {"soft": "mean"}
    request = replace(request, rule=aliases.get(request.rule, request.rule))
    _check_rule(request, task, fitting_data)
    if request.validation_files and not request.files:
        raise ConfigError("--with-val: requires --with, the same tool's predictions on the scored split")
    if request.weights and request.rule != "weighted":
        raise ConfigError("--weights: belong to --rule weighted")
    by = request.by or (CRITERIA[task][0] if request.fits_weights else "")
    if request.by and (request.rule != "greedy" or by not in CRITERIA[task]):
        raise ConfigError(f"--by: belongs to --rule greedy; for task {task} it is one of {', '.join(CRITERIA[task])}")
    if request.picks < 1:
        raise ConfigError("--picks: expected 1 or more")
    name = request.name or request.rule
    if NAME_PATTERN.fullmatch(name) is None:
        raise ConfigError(f"--name: '{name}' is not a valid name: use letters, digits, '.', '_' and '-'")
    request = replace(
        request,
        by=by,
        name=name,
        members=select_members(scored, request.members),
        views=select_views(scored, request.views),
    )
    return replace(request, temperature=_resolve_temperature(request, scored, fitting_data))


def _check_rule(request: CombinationRequest, task: str, fitting_data: FittingData) -> None:
    """Raise ConfigError if the rule does not exist for the task, or if the run lacks what it is fitted on."""
    rule = request.rule
    if rule not in RULES[task]:
        near = did_you_mean(rule, RULES[task])
        raise ConfigError(f"--rule: no rule '{rule}' for task {task}.{near} There are: {', '.join(RULES[task])}")
    if request.fits_weights and fitting_data.validation is None:
        alternative = "; or give --weights" if rule == "weighted" else ""
        raise ConfigError(f"--rule {rule}: nothing to fit it on: {fitting_data.no_validation_reason}{alternative}")
    if rule == "stack" and fitting_data.held_out is None:
        raise ConfigError(f"--rule stack: {fitting_data.no_stacking_reason}")
    if rule in ("stack", "boosting") and request.files:
        raise ConfigError(f"--rule {rule}: cannot combine predictions of other tools; use weighted or greedy")
    if rule == "boosting" and not fitting_data.alphas:
        raise ConfigError("--rule boosting: this run has no boosting rounds; train one with ensemble.boosting")


def _resolve_temperature(request: CombinationRequest, scored: Ledger, fitting_data: FittingData) -> str:
    """Return fit, none or a number; fitting needs validation predictions of every member."""
    possible = Combiner(request.rule, scored.meta.task).gives_probabilities
    if not request.temperature:
        complete = fitting_data.validation is not None and len(request.files) == len(request.validation_files)
        return "fit" if possible and complete else "none"
    if request.temperature == "none":
        return "none"
    if not possible:
        raise ConfigError(f"--temperature: {request.rule} gives no probabilities, so it cannot have a temperature")
    if request.temperature == "fit":
        if fitting_data.validation is None:
            raise ConfigError(f"--temperature fit: nothing to fit it on: {fitting_data.no_validation_reason}")
        return "fit"
    try:
        value = float(request.temperature)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 100:
        raise ConfigError(
            f"--temperature: expected fit, none or a number from 0.01 to 100, got '{request.temperature}'"
        )
    return str(value)


def _fit(
    request: CombinationRequest, scored: Ledger, fitting_data: FittingData
) -> tuple[MemberPredictions, FittedRule, LearnedViews | None]:
    """Return the predictions to combine, the fitted rule, and the learned views if requested."""
    views, view_weights, learned = request.views, tuple[float, ...](), None
    if request.views == (LEARNED,):
        learned = learn_views(scored, request.members, fitting_data)
        views, view_weights = learned.kept, learned.kept_weights
    external = _read_external(request.files, scored, views, view_weights)
    predictions = MemberPredictions(scored, request.members, views, external, view_weights)
    duplicates = [name for name in predictions.members if predictions.members.count(name) > 1]
    if duplicates:
        raise ConfigError(f"--with: two members are called '{duplicates[0]}'; name one with NAME=FILE")
    validation = None
    if request.fits_weights or request.temperature == "fit":
        validation = _validation_predictions(request, predictions, fitting_data)
    if request.rule == "stack":
        assert fitting_data.held_out is not None, "_check_rule checked this"
        held_out_views = select_views(fitting_data.held_out, predictions.views)
        groups = fitting_data.held_out.members
        held_out = MemberPredictions(fitting_data.held_out, groups, held_out_views, view_weights=view_weights)
        fit = fit_stacking_rule(held_out, predictions.members, fitting_data.groups)
    elif request.rule == "boosting":
        fit = boosting_rule(predictions.members, fitting_data.alphas, predictions.task)
    elif request.fits_weights:
        assert validation is not None, "_check_rule checked this"
        statistics = compute_statistics(validation, candidates=request.by == "accuracy")
        fit = fit_weights(request.rule, statistics, request.by, request.picks)
    elif request.rule == "weighted":
        weights = _check_weights(request.weights, predictions.members)
        fit = weighted_rule(predictions.members, weights, predictions.task)
    else:
        fit = unfitted_rule(request.rule, predictions.task)
    if request.temperature == "fit":
        assert validation is not None, "_resolve_temperature checked this"
        fit = fit_temperature(fit, validation)
    elif request.temperature != "none":
        fit = replace(fit, combiner=replace(fit.combiner, temperature=float(request.temperature)))
    return predictions, fit, learned


def _validation_predictions(
    request: CombinationRequest, scored: MemberPredictions, fitting_data: FittingData
) -> MemberPredictions:
    """Return the predictions of the same members on the validation split."""
    validation = fitting_data.validation
    assert validation is not None, "_check_rule and _resolve_temperature checked this"
    external = _read_external(request.validation_files, validation, scored.views, scored.view_weights)
    by_name = {member.name: member for member in external}
    for member in scored.external:
        if member.name not in by_name:
            raise ConfigError(
                f"--with {member.path}: fitting needs its predictions on '{validation.meta.split}' too: "
                f"--with-val {member.name}=FILE"
            )
    same_order = tuple(by_name[member.name] for member in scored.external)
    return MemberPredictions(validation, scored.ledger_members, scored.views, same_order, scored.view_weights)


def _read_external(
    files: Sequence[str], ledger: Ledger, views: Sequence[str], view_weights: Sequence[float] = ()
) -> tuple[ExternalPredictions, ...]:
    return tuple(member for file in files for member in read_external_predictions(file, ledger, views, view_weights))


def _check_weights(weights: Mapping[str, float], members: Sequence[str]) -> Mapping[str, float]:
    for name in weights:
        if name not in members:
            near = did_you_mean(name, members)
            raise ConfigError(f"--weights: no member '{name}'.{near} There are: {', '.join(members)}")
    missing = [name for name in members if name not in weights]
    if missing:
        raise ConfigError(f"--weights: none for {', '.join(missing)}; give every member one, 0 leaves it out")
    valid = all(0 <= weight < np.inf for weight in weights.values())
    if not valid or abs(sum(weights.values()) - 1) > _SUM_TOLERANCE:
        listed = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
        raise ConfigError(f"--weights: expected weights of 0 or more that sum to 1, got {listed}")
    return weights


def _score(request: CombinationRequest, predictions: MemberPredictions, fit: FittedRule) -> list[ScoreRow]:
    """Return the rows of the best member, the plain mean and the combination, with paired differences."""
    baseline = mean_rule_name(predictions.task)
    name = f"combined/{request.name}"
    rules = {baseline: Combiner(baseline, predictions.task), name: fit.combiner}
    sections = [Section(predictions, "", rules)]
    rows: Sequence[ScoreRow]
    if predictions.task == "multilabel":
        rows, best, _ = score_multilabel(sections, baseline)
    elif predictions.task == "regression":
        rows, best = score_regression(sections, baseline)
    else:
        multiclass_rows, best = score_multiclass(sections, baseline)
        rows = [*multiclass_rows, *filter(None, map(_log_loss_row, multiclass_rows))]
    return [row for row in rows if row["name"] in (best, baseline, name)]


def _view_gains(
    request: CombinationRequest, predictions: MemberPredictions, fit: FittedRule, learned: LearnedViews
) -> list[ViewGain]:
    """Return the gains of the learned view weights under the rule, without its temperature."""
    ledger = predictions.ledger
    baselines = {
        name: replace(predictions, views=views, view_weights=(), external=_read_external(request.files, ledger, views))
        for name, views in learned.baselines(ledger).items()
    }
    return view_gains(predictions, baselines, replace(fit.combiner, temperature=1.0))


def _log_loss_row(row: MulticlassRow) -> ScoreRow | None:
    """Return the log loss of a row as a row of its own; None if it has none."""
    loss = row["log_loss"]
    if loss is None:
        return None
    return ScoreRow(
        name=row["name"],
        metric="log_loss",
        value=loss["value"],
        low=loss["low"],
        high=loss["high"],
        n=row["n"],
        difference=row["log_loss_difference"],
        to_baseline=row["log_loss_to_baseline"],
    )


def _write_ledger(out: Path, request: CombinationRequest, predictions: MemberPredictions, fit: FittedRule) -> None:
    ledger, averaged = predictions.ledger, predictions.views == ("tta",)

    def blocks() -> Iterator[NDArray[np.float32]]:
        for _, stack in predictions.blocks():
            yield fit.combiner(stack).predictions

    several = len(predictions.views) > 1 or averaged
    mean = LEARNED if predictions.view_weights else "tta"
    meta = LedgerMeta(
        classes=ledger.classes,
        members=(request.name,),
        views=(mean,) if several else predictions.views,
        split=ledger.meta.split,
        dataset=ledger.meta.dataset,
        evaluation=ledger.meta.evaluation,
        tta_views=(ledger.meta.tta_views if averaged else predictions.views) if several else (),
        task=ledger.meta.task,
        average=ledger.meta.average if averaged else "probabilities",
        skipped=ledger.meta.skipped,
    )
    write_combined(out, meta, ledger.keys, ledger.labels, blocks())


def _sources(request: CombinationRequest, scored: Ledger, fitting_data: FittingData) -> dict[str, str]:
    """Return the checksum of every file that the combination is computed from."""
    files = [scored.path, *map(parse_predictions_path, (*request.files, *request.validation_files))]
    uses_validation = request.fits_weights or request.temperature == "fit" or request.views == (LEARNED,)
    if uses_validation and fitting_data.validation is not None:
        files.append(fitting_data.validation.path)
    if request.rule == "stack" and fitting_data.held_out is not None:
        files.append(fitting_data.held_out.path)
    sources = {str(path): compute_sha256(path) for path in files if path.is_file()}
    return {**sources, "rounds": json.dumps(fitting_data.alphas)} if request.rule == "boosting" else sources


def _unchanged(out: Path, entry: Mapping[str, Any]) -> bool:
    return out.is_file() and compute_sha256(out) == entry.get("sha256")


def _read_rule(folder: Path) -> dict[str, Any]:
    """Return the content of rule.json, empty if there is none; older files call the request "asked"."""
    content = read_json(folder / "rule.json") or {}
    if "asked" in content:
        content["request"] = content.pop("asked")
    return content


def _describe_fit(fit: FittedRule) -> dict[str, Any]:
    combiner = fit.combiner
    return {
        "rule": combiner.rule,
        "weights": fit.weights,
        "groups": {name: list(members) for name, members in zip(fit.names, combiner.groups, strict=False)},
        "biases": list(combiner.biases),
        "temperature": combiner.temperature,
        "on": fit.fitted_on,
        "samples": fit.samples,
        "by": fit.criterion,
        "loss": fit.loss,
        "strength": fit.strength,
        "calibrated": asdict(fit.temperature_fit) if fit.temperature_fit else None,
    }


def _select_split(content: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return the content of rule.json with the scores of one split."""
    entry = content["splits"][split]
    shared = {key: value for key, value in content.items() if key != "splits"}
    return {
        "view_weights": {},  # absent from rule.json files of earlier versions
        "learned_views": None,
        **shared,
        "split": split,
        "n": entry["n"],
        "scores": entry["scores"],
        "view_gains": entry.get("view_gains", []),
        "sources": entry["sources"],
    }
