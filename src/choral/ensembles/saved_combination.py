"""One combination of a run's members, kept: RUN/combined/NAME/SPLIT.parquet, and rule.json, which says how it was made.

Everything is computed from ledgers: no forward pass, no network. What is fitted is fitted on the validation split, on
out-of-fold predictions or given by the user, never on the split that is scored.
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
from choral.config.ensemble import LEGAL_NAME
from choral.core.errors import ConfigError, did_you_mean
from choral.core.files import sha256_of
from choral.ensembles.class_scores import class_rows
from choral.ensembles.external_predictions import ExternalPredictions, path_of, read_external_predictions
from choral.ensembles.fitting_data import FittingData, known_of
from choral.ensembles.learned_views import LearnedViews, learn_views, view_gains
from choral.ensembles.member_predictions import LEARNED, MemberPredictions, chosen_members, chosen_views
from choral.ensembles.multilabel_scores import label_rows
from choral.ensembles.regression_scores import number_rows
from choral.ensembles.rule_fitting import (
    CRITERIA,
    PICKS,
    RULES,
    Fit,
    boosting_of,
    evidence_of,
    fit_stacking,
    fit_weights,
    given_weights,
    plain,
    with_temperature,
)
from choral.ensembles.rules import Combiner, mean_rule
from choral.ensembles.score_rows import ClassRow, Row, Section, ViewGain
from choral.inference.ledger import Ledger, LedgerMeta, write_combined
from choral.runs.run_dir import RunDir, read_json, write_json

FORMAT = "choral-combination-1"
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Asked:
    """What a user wants combined, and how.

    Attributes:
        rule: one of `fitting.RULES` of the task.
        members: of the run; none: all.
        views: that are averaged; none: the mean over views where the ledger has it; "learned": weighted by what is best on
            the validation split.
        files: predictions of other tools about the split that is scored, FILE or NAME=FILE.
        validation_files: of the same tools about the validation split, by the same names.
        weights: of the rule weighted, by member; none: fitted.
        by: what greedy selection goes by; "": the log loss, with regression the squared error.
        picks: of greedy selection.
        temperature: fit, none or a number; "": fit where there is something to fit on.
        name: of the combination; "": the rule's.
    """

    rule: str
    members: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    validation_files: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    by: str = ""
    picks: int = PICKS
    temperature: str = ""
    name: str = ""


def combine_run(folder: RunDir, config: Config, split: str, asked: Asked) -> dict[str, Any]:
    """Combine, score and keep; what is there already, from the same files, is read instead.

    Args:
        folder, config: of the run.
        split: that is combined and scored.
        asked: how.

    Returns:
        The content of rule.json, with `scores` and `again` (whether it was there), as plain JSON.

    Raises:
        ConfigError: a rule, member, view, weight or temperature that cannot be, or nothing but what is scored to fit on.
        DataError: predictions that a rule needs are missing, or files that do not fit.
    """
    scored = Ledger.open(folder.predictions / f"{split}.parquet")
    known = known_of(folder, config, scored)
    asked = _checked(asked, scored, known)
    place = folder.path / "combined" / asked.name
    sources = _sources(asked, scored, known)
    found = read_json(place / "rule.json") or {}
    entry = found.get("splits", {}).get(split, {})
    out = place / f"{split}.parquet"
    if found.get("asked") == _plain(asked) and entry.get("sources") == sources and _unchanged(out, entry):
        return {**_of_split(found, split), "again": True}
    panel, fit, learned = _fitted(asked, scored, known)
    rows = _scores(asked, panel, fit)
    _write(out, asked, panel, fit)
    made = json.loads(json.dumps({"asked": _plain(asked), "fit": _described(fit), "view_weights": _weights(learned)}))
    same = all(found.get(key) == value for key, value in made.items())
    if not same:  # ledgers of another rule under this name
        for path in place.glob("*.parquet"):
            if path != out:
                path.unlink()
    entry = {"sources": sources, "sha256": sha256_of(out), "scores": rows, "n": len(scored)}
    if learned is not None:
        entry["view_gains"] = _view_gains(asked, panel, fit, learned)
    content = {
        "format": FORMAT,
        "name": asked.name,
        "task": scored.meta.task,
        **made,
        "members": list(panel.members),
        "views": list(panel.views),
        "tta_views": list(scored.meta.tta_views) if panel.views == ("tta",) else [],
        "learned_views": learned.to_json() if learned is not None else None,
        "fitted_on": known.validation.meta.split if fit.calibrated and known.validation else "",
        "splits": {**(found.get("splits", {}) if same else {}), split: entry},
    }
    write_json(place / "rule.json", content)
    return {**_of_split(json.loads(json.dumps(content)), split), "again": False}


def fitted_rule(asked: Asked, ledger: Ledger, known: FittingData) -> tuple[MemberPredictions, Fit]:
    """Return who is heard in a ledger, and the rule, fitted on what is known; nothing is scored or kept.

    Raises:
        ConfigError, DataError: as `combine_run`.
    """
    panel, fit, _ = _fitted(_checked(asked, ledger, known), ledger, known)
    return panel, fit


def _checked(asked: Asked, scored: Ledger, known: FittingData) -> Asked:
    """Return what is asked with its defaults filled in; ConfigError where it cannot be done here."""
    task = scored.meta.task
    same = {"mean": "soft"} if task != "regression" else {"soft": "mean"}
    rule = same.get(asked.rule, asked.rule)
    if rule not in RULES[task]:
        near = did_you_mean(rule, RULES[task])
        raise ConfigError(f"--rule: no rule '{rule}' for task {task}.{near} There are: {', '.join(RULES[task])}")
    fitted = rule == "greedy" or (rule == "weighted" and not asked.weights)
    if fitted and known.validation is None:
        raise ConfigError(f"--rule {rule}: nothing to fit it on: {known.why_not}{_or_weights(rule)}")
    if rule == "stack" and known.held_out is None:
        raise ConfigError(f"--rule stack: {known.no_stack}")
    if rule in ("stack", "boosting") and asked.files:
        raise ConfigError(
            f"--rule {rule}: predictions of other tools cannot join: weighted and greedy can be fitted to them"
        )
    if asked.validation_files and not asked.files:
        raise ConfigError("--with-val: belongs to --with, which names the same tool's predictions about what is scored")
    if rule == "boosting" and not known.alphas:
        raise ConfigError("--rule boosting: this run has no rounds of boosting; train one with ensemble.boosting")
    if asked.weights and rule != "weighted":
        raise ConfigError("--weights: belong to --rule weighted")
    by = asked.by or (CRITERIA[task][0] if fitted else "")
    if asked.by and (rule != "greedy" or by not in CRITERIA[task]):
        raise ConfigError(f"--by: belongs to --rule greedy, and is for task {task} one of {', '.join(CRITERIA[task])}")
    if asked.picks < 1:
        raise ConfigError("--picks: expected 1 or more")
    name = asked.name or rule
    if LEGAL_NAME.fullmatch(name) is None:
        raise ConfigError(f"--name: '{name}' is no name: use letters, digits, '.', '_' and '-'")
    asked = replace(
        asked,
        rule=rule,
        by=by,
        name=name,
        members=chosen_members(scored, asked.members),
        views=chosen_views(scored, asked.views),
    )
    return replace(asked, temperature=_temperature(asked, scored, known))


def _temperature(asked: Asked, scored: Ledger, known: FittingData) -> str:
    """Return fit, none or a number; what is fitted to has to be there for everybody who is heard."""
    possible = Combiner(asked.rule, scored.meta.task).gives_probabilities
    if not asked.temperature:
        complete = known.validation is not None and len(asked.files) == len(asked.validation_files)
        return "fit" if possible and complete else "none"
    if asked.temperature == "none":
        return "none"
    if not possible:
        raise ConfigError(f"--temperature: {asked.rule} gives no probabilities that could have one")
    if asked.temperature == "fit":
        if known.validation is None:
            raise ConfigError(f"--temperature fit: nothing to fit it on: {known.why_not}")
        return "fit"
    try:
        value = float(asked.temperature)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 100:
        raise ConfigError(f"--temperature: expected fit, none or a number from 0.01 to 100, got '{asked.temperature}'")
    return str(value)


def _fitted(asked: Asked, scored: Ledger, known: FittingData) -> tuple[MemberPredictions, Fit, LearnedViews | None]:
    """Return who is heard, the rule, ready, and the views, where they were to be learned."""
    views, weights, views_learned = asked.views, tuple[float, ...](), None
    if asked.views == (LEARNED,):
        views_learned = learn_views(scored, asked.members, known)
        views, weights = views_learned.kept, views_learned.kept_weights
    panel = MemberPredictions(scored, asked.members, views, _joined(asked.files, scored, views, weights), weights)
    double = [name for name in panel.members if panel.members.count(name) > 1]
    if double:
        raise ConfigError(f"--with: two members are called '{double[0]}'; name one with NAME=FILE")
    learned = asked.rule == "greedy" or (asked.rule == "weighted" and not asked.weights)
    validation = _validation_panel(asked, panel, known) if learned or asked.temperature == "fit" else None
    if asked.rule == "stack":
        assert known.held_out is not None, "_checked saw to it"
        own = chosen_views(known.held_out, panel.views)
        held_out = MemberPredictions(known.held_out, known.held_out.members, own, view_weights=weights)
        fit = fit_stacking(held_out, panel.members, known.groups)
    elif asked.rule == "boosting":
        fit = boosting_of(panel.members, known.alphas, panel.task)
    elif learned:
        assert validation is not None, "_checked saw to it"
        fit = fit_weights(asked.rule, evidence_of(validation, rivals=asked.by == "accuracy"), asked.by, asked.picks)
    elif asked.rule == "weighted":
        fit = given_weights(panel.members, _given(asked.weights, panel.members), panel.task)
    else:
        fit = plain(asked.rule, panel.task)
    if asked.temperature == "fit":
        assert validation is not None, "_checked saw to it"
        return panel, with_temperature(fit, validation), views_learned
    if asked.temperature != "none":
        fit = replace(fit, combiner=replace(fit.combiner, temperature=float(asked.temperature)))
    return panel, fit, views_learned


def _validation_panel(asked: Asked, panel: MemberPredictions, known: FittingData) -> MemberPredictions:
    """Return the same members about the validation split."""
    assert known.validation is not None, "_checked saw to it"
    others = _joined(asked.validation_files, known.validation, panel.views, panel.view_weights)
    theirs = {other.name: other for other in others}
    for other in panel.others:
        if other.name not in theirs:
            raise ConfigError(
                f"--with {other.path}: what is fitted needs its predictions about '{known.validation.meta.split}' as well: "
                f"--with-val {other.name}=FILE"
            )
    joined = tuple(theirs[other.name] for other in panel.others)
    return MemberPredictions(known.validation, panel.own, panel.views, joined, panel.view_weights)


def _joined(
    files: Sequence[str], ledger: Ledger, views: Sequence[str], weights: Sequence[float] = ()
) -> tuple[ExternalPredictions, ...]:
    return tuple(member for file in files for member in read_external_predictions(file, ledger, views, weights))


def _given(weights: Mapping[str, float], members: Sequence[str]) -> Mapping[str, float]:
    for name in weights:
        if name not in members:
            near = did_you_mean(name, members)
            raise ConfigError(f"--weights: no member '{name}'.{near} There are: {', '.join(members)}")
    missing = [name for name in members if name not in weights]
    if missing:
        raise ConfigError(f"--weights: none for {', '.join(missing)}; give every member one, 0 leaves it out")
    if not all(0 <= weight < np.inf for weight in weights.values()) or abs(sum(weights.values()) - 1) > _SUM_TOLERANCE:
        raise ConfigError(f"--weights: expected 0 or more each, and 1 in all, not {sum(weights.values()):g}")
    return weights


def _or_weights(rule: str) -> str:
    return "; or give --weights" if rule == "weighted" else ""


def _scores(asked: Asked, panel: MemberPredictions, fit: Fit) -> list[Row]:
    """Return the rows of the best member, the plain mean and the combination, each compared with the others in pairs."""
    baseline = mean_rule(panel.task)
    name = f"combined/{asked.name}"
    sections = [Section(panel, "", {baseline: Combiner(baseline, panel.task), name: fit.combiner})]
    rows: Sequence[Row]
    if panel.task == "multilabel":
        rows, best, _ = label_rows(sections, baseline)
    elif panel.task == "regression":
        rows, best = number_rows(sections, baseline)
    else:
        found, best = class_rows(sections, baseline)
        rows = [*found, *filter(None, map(_loss_row, found))]
    return [row for row in rows if row["name"] in (best, baseline, name)]


def _view_gains(asked: Asked, panel: MemberPredictions, fit: Fit, learned: LearnedViews) -> list[ViewGain]:
    """Return what the learned weights of views gain by this rule, without its temperature."""
    rivals = {
        name: replace(panel, views=views, view_weights=(), others=_joined(asked.files, panel.ledger, views))
        for name, views in learned.rivals(panel.ledger).items()
    }
    return view_gains(panel, rivals, replace(fit.combiner, temperature=1.0))


def _loss_row(row: ClassRow) -> Row | None:
    """Return the log loss of a row as one of its own; None: it has none."""
    loss = row["log_loss"]
    if loss is None:
        return None
    return Row(
        name=row["name"],
        metric="log_loss",
        value=loss["value"],
        low=loss["low"],
        high=loss["high"],
        n=row["n"],
        difference=row["log_loss_difference"],
        to_baseline=row["log_loss_to_baseline"],
    )


def _write(out: Path, asked: Asked, panel: MemberPredictions, fit: Fit) -> None:
    ledger = panel.ledger

    def blocks() -> Iterator[NDArray[np.float32]]:
        for _, stack in panel.blocks():
            yield fit.combiner(stack).predictions

    several = len(panel.views) > 1 or panel.views == ("tta",)
    mean = LEARNED if panel.view_weights else "tta"
    meta = LedgerMeta(
        classes=ledger.classes,
        members=(asked.name,),
        views=(mean,) if several else panel.views,
        split=ledger.meta.split,
        dataset=ledger.meta.dataset,
        evaluation=ledger.meta.evaluation,
        tta_views=(ledger.meta.tta_views if panel.views == ("tta",) else panel.views) if several else (),
        task=ledger.meta.task,
        average=ledger.meta.average if panel.views == ("tta",) else "probabilities",
        skipped=ledger.meta.skipped,
    )
    write_combined(out, meta, ledger.keys, ledger.labels, blocks())


def _sources(asked: Asked, scored: Ledger, known: FittingData) -> dict[str, str]:
    """Return the checksum of every file that the combination is made of."""
    files = [scored.path, *map(path_of, (*asked.files, *asked.validation_files))]
    learned = (asked.rule == "greedy" or (asked.rule == "weighted" and not asked.weights)) or asked.temperature == "fit"
    if (learned or asked.views == (LEARNED,)) and known.validation is not None:
        files.append(known.validation.path)
    if asked.rule == "stack" and known.held_out is not None:
        files.append(known.held_out.path)
    sources = {str(path): sha256_of(path) for path in files if path.is_file()}
    return {**sources, "rounds": json.dumps(known.alphas)} if asked.rule == "boosting" else sources


def _unchanged(out: Path, entry: Mapping[str, Any]) -> bool:
    return out.is_file() and sha256_of(out) == entry.get("sha256")


def _weights(learned: LearnedViews | None) -> dict[str, float]:
    """Return view to weight; none where the views are averaged."""
    return learned.weights if learned is not None else {}


def _plain(asked: Asked) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(asdict(asked)))
    return content


def _described(fit: Fit) -> dict[str, Any]:
    combiner = fit.combiner
    return {
        "rule": combiner.rule,
        "weights": fit.weights,
        "groups": {name: list(own) for name, own in zip(fit.names, combiner.groups, strict=False)},
        "biases": list(combiner.biases),
        "temperature": combiner.temperature,
        "on": fit.on,
        "samples": fit.samples,
        "by": fit.by,
        "loss": fit.loss,
        "strength": fit.strength,
        "calibrated": asdict(fit.calibrated) if fit.calibrated else None,
    }


def _of_split(content: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return the content with the scores of one split."""
    entry = content["splits"][split]
    rest = {key: value for key, value in content.items() if key != "splits"}
    return {
        "view_weights": {},  # of combinations kept before there were any
        "learned_views": None,
        **rest,
        "split": split,
        "n": entry["n"],
        "scores": entry["scores"],
        "view_gains": entry.get("view_gains", []),
        "sources": entry["sources"],
    }
