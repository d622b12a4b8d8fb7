"""The cure is tried: a baseline, the augmentation that its probes advise, the same training with it, and both compared.

    runs/NAME-baseline/                the baseline: one network of the config, or one for each of several seeds
      advice.yaml, advice.json         what its probes advise
      improved.json, improved.yaml     what came of it, and the config with what was kept
    runs/NAME-augment1/, NAME-augment2/   the same training with what was advised
      tried.json                       the advice that it was begun with, in which it goes on

Baseline and advised run have the same seeds and see the same samples in the same order. What is advised is kept only if the
interval of the paired difference on validation says that it helps; then the probes of the better run may advise more. The
test split is asked about once, at the end: the baseline and what was kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console

from choral.analysis.advice import Advice
from choral.cli.workflow.advice import advise, print_advice
from choral.cli.workflow.evaluation import evaluate
from choral.cli.workflow.training import pack_if_missing, train_all
from choral.config import Config, binding_difference
from choral.config.files import to_yaml, with_overrides
from choral.core.errors import ChoralError, Stopped
from choral.ensembles.member_jobs import solo_config
from choral.inference.evaluation_request import Request
from choral.runs.run_dir import RunDir, is_run, read_json, write_atomic, write_json
from choral.scoring.predictor import evaluated
from choral.scoring.scoreboard.test_set_uses import is_test
from choral.scoring.seed_comparison import SeedPair, compare_seeds, is_better

FORMAT = "choral-improved-1"
IMPROVED_JSON, IMPROVED_YAML, TRIED_JSON = "improved.json", "improved.yaml", "tried.json"


@dataclass(frozen=True)
class Round:
    """One piece of advice, tried.

    Attributes:
        number: from 1.
        run: that was trained with it; "" where nothing was advised.
        families: that were advised, best first.
        settings: keys of the augment section that it changed, with their values.
        validation: the run before and this one, by every metric of the task; the first decides.
        kept: whether the difference is better than 0 with its whole interval.
        reason: in a sentence.
    """

    number: int
    run: str
    families: tuple[str, ...]
    settings: Mapping[str, Any]
    validation: tuple[SeedPair, ...]
    kept: bool
    reason: str


@dataclass(frozen=True)
class Improved:
    """What came of trying advice.

    Attributes:
        run: name of the config.
        baseline, final: names of runs; the same where nothing was kept.
        seeds: networks of each run.
        split: that decided.
        rounds: in their order.
        settings: of the augment section, that were kept.
        test: test split to the baseline and the final run by every metric of the task; empty where it was not asked about,
            or where nothing was kept, so that there is nothing to compare.
    """

    run: str
    baseline: str
    final: str
    seeds: int
    split: str
    rounds: tuple[Round, ...]
    settings: Mapping[str, Any]
    test: Mapping[str, tuple[SeedPair, ...]]

    def config(self, config: Config) -> Config:
        """Return a config with what was kept."""
        changes = {f"augment.{key}": value for key, value in self.settings.items()}
        return with_overrides(config, changes, f"what {self.baseline} was improved by")

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Improved:
        """Read what `to_json` returned; KeyError, TypeError or ValueError where it is something else."""
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
    """Return the config of the baseline of a run: one network as its first member, or one for each of several seeds.

    It is evaluated on validation alone, without test-time views.

    Args:
        config: of the run, an ensemble or one network.
        seeds: the config's own and the following ones.
    """
    solo = solo_config(config, _name(config, "baseline", seeds))
    ensemble = replace(solo.ensemble, seeds=seeds) if seeds > 1 else solo.ensemble
    asked = replace(config.evaluate, splits=(config.data.val_split,), views=("identity",))
    return replace(solo, step="baseline", ensemble=ensemble, evaluate=asked)


def improve(config: Config, seeds: int, rounds: int, progress: Console, *, test: bool = True) -> Improved:
    """Train a baseline and what its probes advise, and keep what validation says helps; what is on disk is done.

    Args:
        config: of the run to be improved.
        seeds: how many networks each training is judged by.
        rounds: pieces of advice that are tried at most, each on top of the one before if that was kept.
        progress: what is going on is told there.
        test: whether the test splits of `evaluate.splits` are asked about at the end.

    Raises:
        ConfigError, DataError: found before anything is started.
        Stopped: the same again continues.
        ChoralError: a training or evaluation failed; the reason has been printed.
    """
    base = baseline_config(config, seeds)
    pack_if_missing(config, progress)
    first = last = _trained(base, progress)
    current = base
    tried: list[Round] = []
    while len(tried) < rounds:
        number = len(tried) + 1
        advice = _begun(config, current, number, seeds) or advise(last)
        print_advice(advice, progress)
        if not advice.lines:
            tried.append(_nothing_advised(number, advice))
            break
        candidate = advised_config(config, current, advice, number, seeds)
        RunDir.of(candidate).check_same(candidate)
        write_json(RunDir.of(candidate).path / TRIED_JSON, advice.to_json())
        folder = _trained(candidate, progress)
        tried.append(_tried(number, folder, last, advice))
        if not tried[-1].kept:
            break
        current, last = candidate, folder
    splits = [split for split in config.evaluate.splits if is_test(config, split)] if test else []
    found = Improved(
        run=config.run,
        baseline=first.name,
        final=last.name,
        seeds=seeds,
        split=config.data.val_split,
        rounds=tuple(tried),
        settings={key: value for one in tried if one.kept for key, value in one.settings.items()},
        test=_tested(first, last, splits),
    )
    write_json(first.path / IMPROVED_JSON, found.to_json())
    write_atomic(first.path / IMPROVED_YAML, to_yaml(found.config(config)))
    return found


def improved_of(folder: RunDir) -> Improved | None:
    """Return what came of trying the advice of a baseline; None: it has not been tried to the end, or the file is damaged."""
    content = read_json(folder.path / IMPROVED_JSON)
    try:
        return None if content is None else Improved.from_json(content)
    except (KeyError, TypeError, ValueError):
        return None


def advised_config(config: Config, current: Config, advice: Advice, number: int, seeds: int = 1) -> Config:
    """Return the config of the training that tries a piece of advice.

    Args:
        config: of the run to be improved.
        current: of the run that was probed.
        advice: of its probes.
        number: of the round, from 1.
        seeds: as of the baseline.
    """
    changes = {f"augment.{key}": value for key, value in advice.settings.items()}
    changed = with_overrides(current, changes, f"the advice of {advice.run}")
    step = "+augment" if number == 1 else f"+augment {number}"
    return replace(changed, run=_name(config, f"augment{number}", seeds), step=step)


def _begun(config: Config, current: Config, number: int, seeds: int) -> Advice | None:
    """Return the advice that the training of a round was begun with, as `advised_config` takes it; None: it is not begun.

    A round goes on with its own advice: made anew, by a later version or of further probes, it may be another one.
    """
    folder, before = RunDir.of(replace(config, run=_name(config, f"augment{number}", seeds))), RunDir.of(current)
    content = read_json(folder.path / TRIED_JSON)
    if content is None or not is_run(folder.path):
        return None
    try:
        advice = Advice.from_json(content)
        same = not binding_difference(folder.config(), advised_config(config, current, advice, number, seeds))
    except (ChoralError, KeyError, TypeError, ValueError):
        return None  # damaged, or of a version that knew other keys
    meta = evaluated(before, before.config(), config.data.val_split).meta
    return advice if same and (advice.dataset, advice.evaluation) == (meta.dataset, meta.evaluation) else None


def _name(config: Config, what: str, seeds: int) -> str:
    """Return the name of a run; those of several seeds are other runs than those of one."""
    return f"{config.run}-{what}" + (f"-{seeds}-seeds" if seeds > 1 else "")


def _trained(config: Config, progress: Console) -> RunDir:
    """Train a run and ask it about validation, whatever of it is not done yet."""
    folder = RunDir.of(config)
    _check(train_all(config, folder, progress), folder, "trained")
    _check(evaluate(Request(folder, split=config.data.val_split), processes=0), folder, "evaluated")
    return folder


def _check(code: int, folder: RunDir, done: str) -> None:
    if code == Stopped.exit_code:
        raise Stopped(f"{folder.path}: stopped; run the same command again to continue")
    if code:
        raise ChoralError(f"{folder.path}: could not be {done}: see above")


def _nothing_advised(number: int, advice: Advice) -> Round:
    return Round(number, "", (), {}, (), False, advice.note)


def _tried(number: int, folder: RunDir, before: RunDir, advice: Advice) -> Round:
    config = folder.config()
    split = config.data.val_split
    pairs = compare_seeds(evaluated(before, before.config(), split), evaluated(folder, config, split))
    kept = is_better(pairs[0])
    metric = pairs[0]["metric"]
    if kept:
        reason = f"kept: the whole interval of the paired difference in {metric} on {split} is better"
    else:
        reason = f"not kept: the interval of the paired difference in {metric} on {split} is not all on the better side"
    families = tuple(line.family for line in advice.lines)
    return Round(number, folder.name, families, advice.settings, tuple(pairs), kept, reason)


def _tested(first: RunDir, last: RunDir, splits: list[str]) -> dict[str, tuple[SeedPair, ...]]:
    """Ask the baseline and what was kept about test splits, the only time, and return how they differ."""
    for folder in (first, last) if splits and first != last else (first,) if splits else ():
        _check(evaluate(Request(folder, split=",".join(splits)), processes=0), folder, "evaluated")
    if first == last:
        return {}
    configs = first.config(), last.config()
    return {
        split: tuple(compare_seeds(evaluated(first, configs[0], split), evaluated(last, configs[1], split)))
        for split in splits
    }
