"""`choral improve`: trains a baseline, trains it again with the advised augmentation, and keeps what helps.

    runs/NAME-baseline/                the baseline: one network of the config, or one per seed
      advice.yaml, advice.json         the advice from its probes
      improved.json, improved.yaml     the result, and the config with what was kept
    runs/NAME-augment1/, NAME-augment2/   the same training with the advised settings
      tried.json                       the advice that it was started with and resumes with

Baseline and advised run have the same seeds and see the same samples in the same order. Advice is kept only if the whole
interval of the paired difference on validation data is an improvement; then the better run is probed for further advice. The
test split is evaluated once, at the end, for the baseline and the final run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from choral.analysis.advice import Advice
from choral.cli.workflow.advice import advise, print_advice
from choral.cli.workflow.evaluation import evaluate
from choral.cli.workflow.training import pack_if_missing, train_all
from choral.config import Config, binding_difference
from choral.config.files import to_yaml, with_overrides
from choral.core.errors import ChoralError, Stopped
from choral.ensembles.member_jobs import single_model_config
from choral.inference.evaluation_request import EvaluationRequest
from choral.runs.run_dir import RunDir, is_run_dir, read_json, write_atomic, write_json
from choral.scoring.predictor import open_evaluated_ledger
from choral.scoring.scoreboard.test_set_uses import is_test_split
from choral.scoring.seed_comparison import SeedComparison, compare_seeds, is_better

FORMAT = "choral-improved-1"
IMPROVED_JSON, IMPROVED_YAML, TRIED_JSON = "improved.json", "improved.yaml", "tried.json"


@dataclass(frozen=True)
class Round:
    """One piece of advice and its result.

    Attributes:
        number: from 1.
        run: that was trained with it; "" where nothing was advised.
        families: that were advised, best first.
        settings: keys of the augment section that it changed, with their values.
        validation: comparison with the run before by every metric of the task; the first metric decides.
        kept: whether the whole interval of the difference is an improvement.
        reason: why it was kept or not, in a sentence.
    """

    number: int
    run: str
    families: tuple[str, ...]
    settings: Mapping[str, Any]
    validation: tuple[SeedComparison, ...]
    kept: bool
    reason: str


@dataclass(frozen=True)
class Improvement:
    """The result of `choral improve`.

    Attributes:
        run: name of the config.
        baseline, final: names of runs; the same where nothing was kept.
        seeds: networks of each run.
        split: the validation split.
        rounds: in their order.
        settings: of the augment section that were kept.
        test: test split to the comparison of baseline and final run by every metric of the task; empty where it was not
            evaluated, or where nothing was kept, so that there is nothing to compare.
    """

    run: str
    baseline: str
    final: str
    seeds: int
    split: str
    rounds: tuple[Round, ...]
    settings: Mapping[str, Any]
    test: Mapping[str, tuple[SeedComparison, ...]]

    def config(self, config: Config) -> Config:
        """Return a config with the kept settings."""
        changes = {f"augment.{key}": value for key, value in self.settings.items()}
        return with_overrides(config, changes, f"the improvement of {self.baseline}")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON that `from_json` reads."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Improvement:
        """Return the result that `to_json` wrote; KeyError, TypeError or ValueError for any other content."""
        values = dict(content)
        if values.pop("format") != FORMAT:
            raise ValueError(f"expected {FORMAT}")
        values["rounds"] = tuple(
            Round(**{**one, "families": tuple(one["families"]), "validation": tuple(one["validation"])})
            for one in values["rounds"]
        )
        values["test"] = {split: tuple(pairs) for split, pairs in values["test"].items()}
        return cls(**values)


def baseline_config(config: Config, seeds: int = 1) -> Config:
    """Return the config of a run's baseline: one network like its first member, or one per seed.

    It is evaluated on validation data only, without test-time views.

    Args:
        config: of the run, an ensemble or one network.
        seeds: how many, from the config's seed on.
    """
    solo = single_model_config(config, _run_name(config, "baseline", seeds))
    ensemble = solo.ensemble.replace(seeds=seeds) if seeds > 1 else solo.ensemble
    requested = config.evaluate.replace(splits=(config.data.val_split,), views=("identity",))
    return solo.replace(step="baseline", ensemble=ensemble, evaluate=requested)


def improve(config: Config, seeds: int, rounds: int, progress: Console, *, test: bool = True) -> Improvement:
    """Train a baseline, train it with the advice from its probes, and keep what helps on validation data.

    What is already on disk is not repeated.

    Args:
        config: of the run to be improved.
        seeds: networks per training.
        rounds: of advice, at most, each on top of the one before.
        progress: console for progress.
        test: whether to evaluate the test splits of `evaluate.splits` at the end.

    Raises:
        ConfigError, DataError: before anything is started.
        Stopped: the same call continues.
        ChoralError: a training or evaluation failed; the reason has been printed.
    """
    base = baseline_config(config, seeds)
    pack_if_missing(config, progress)
    first = last = _train_and_evaluate(base, progress)
    current = base
    finished: list[Round] = []
    while len(finished) < rounds:
        number = len(finished) + 1
        advice = _read_started_advice(config, current, number, seeds) or advise(last)
        print_advice(advice, progress)
        if not advice.lines:
            finished.append(Round(number, "", (), {}, (), False, advice.note))
            break
        candidate = advised_config(config, current, advice, number, seeds)
        RunDir.from_config(candidate).check_same_config(candidate)
        write_json(RunDir.from_config(candidate).path / TRIED_JSON, advice.to_json())
        folder = _train_and_evaluate(candidate, progress)
        finished.append(_compare_round(number, folder, last, advice))
        if not finished[-1].kept:
            break
        current, last = candidate, folder
    splits = [split for split in config.evaluate.splits if is_test_split(config, split)] if test else []
    result = Improvement(
        run=config.run,
        baseline=first.name,
        final=last.name,
        seeds=seeds,
        split=config.data.val_split,
        rounds=tuple(finished),
        settings={key: value for one in finished if one.kept for key, value in one.settings.items()},
        test=_evaluate_test(first, last, splits),
    )
    write_json(first.path / IMPROVED_JSON, result.to_json())
    write_atomic(first.path / IMPROVED_YAML, to_yaml(result.config(config)))
    return result


def read_improvement(folder: RunDir) -> Improvement | None:
    """Return the stored result for a baseline; None where it is not finished, or the file is damaged."""
    content = read_json(folder.path / IMPROVED_JSON)
    try:
        return None if content is None else Improvement.from_json(content)
    except (KeyError, TypeError, ValueError):
        return None


def advised_config(config: Config, current: Config, advice: Advice, number: int, seeds: int = 1) -> Config:
    """Return the config of the training with a piece of advice.

    Args:
        config: of the run to be improved.
        current: of the run that was probed.
        advice: of its probes.
        number: of the round, from 1.
        seeds: as for the baseline.
    """
    changes = {f"augment.{key}": value for key, value in advice.settings.items()}
    changed = with_overrides(current, changes, f"the advice of {advice.run}")
    step = "+augment" if number == 1 else f"+augment {number}"
    return changed.replace(run=_run_name(config, f"augment{number}", seeds), step=step)


def _read_started_advice(config: Config, current: Config, number: int, seeds: int) -> Advice | None:
    """Return the advice that the training of a round was started with; None where it was not started.

    A started round resumes with this advice, since advice derived again, by another version or from further probes, may
    differ. Arguments as of `advised_config`.
    """
    folder, before = (
        RunDir.from_config(config.replace(run=_run_name(config, f"augment{number}", seeds))),
        RunDir.from_config(current),
    )
    content = read_json(folder.path / TRIED_JSON)
    if content is None or not is_run_dir(folder.path):
        return None
    try:
        advice = Advice.from_json(content)
        same = not binding_difference(folder.config(), advised_config(config, current, advice, number, seeds))
    except (ChoralError, KeyError, TypeError, ValueError):
        return None  # damaged, or written by a version with other keys
    meta = open_evaluated_ledger(before, before.config(), config.data.val_split).meta
    return advice if same and (advice.dataset, advice.evaluation) == (meta.dataset, meta.evaluation) else None


def _run_name(config: Config, what: str, seeds: int) -> str:
    """Return the name of a run; with several seeds it differs from that with one."""
    return f"{config.run}-{what}" + (f"-{seeds}-seeds" if seeds > 1 else "")


def _train_and_evaluate(config: Config, progress: Console) -> RunDir:
    """Train a run and evaluate it on validation data, as far as that is not done."""
    folder = RunDir.from_config(config)
    _check(train_all(config, folder, progress), folder, "trained")
    _check(evaluate(EvaluationRequest(folder, split=config.data.val_split), processes=0), folder, "evaluated")
    return folder


def _check(code: int, folder: RunDir, done: str) -> None:
    if code == Stopped.exit_code:
        raise Stopped(f"{folder.path}: stopped; run the same command again to continue")
    if code:
        raise ChoralError(f"{folder.path}: could not be {done}, see above")


def _compare_round(number: int, folder: RunDir, before: RunDir, advice: Advice) -> Round:
    config = folder.config()
    split = config.data.val_split
    pairs = compare_seeds(
        open_evaluated_ledger(before, before.config(), split), open_evaluated_ledger(folder, config, split)
    )
    kept = is_better(pairs[0])
    metric = pairs[0]["metric"]
    interval = f"interval of the paired difference in {metric} on {split}"
    reason = f"kept: the whole {interval} is an improvement"
    if not kept:
        reason = f"not kept: the {interval} does not lie entirely on the better side"
    families = tuple(line.family for line in advice.lines)
    return Round(number, folder.name, families, advice.settings, tuple(pairs), kept, reason)


def _evaluate_test(first: RunDir, last: RunDir, splits: list[str]) -> dict[str, tuple[SeedComparison, ...]]:
    """Evaluate the baseline and the final run on test splits, and return how they differ."""
    for folder in (first, last) if splits and first != last else (first,) if splits else ():
        _check(evaluate(EvaluationRequest(folder, split=",".join(splits)), processes=0), folder, "evaluated")
    if first == last:
        return {}
    configs = first.config(), last.config()
    return {
        split: tuple(
            compare_seeds(
                open_evaluated_ledger(first, configs[0], split), open_evaluated_ledger(last, configs[1], split)
            )
        )
        for split in splits
    }
