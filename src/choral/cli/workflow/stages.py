"""The stages of `choral run` before the ensemble: a baseline, what it gets wrong, and what that teaches.

Each is skipped where its result is there, so that the same command continues. All of them look at validation data alone;
the test split is asked about all networks together, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from choral.analysis.advice import ADVICE_YAML
from choral.cli.workflow.advice import advise
from choral.cli.workflow.analysis import analyze
from choral.cli.workflow.evaluation import evaluate
from choral.cli.workflow.improvement import IMPROVED_YAML, Improved, baseline_config, improve, improved_of
from choral.cli.workflow.improvement_table import print_improved
from choral.cli.workflow.summary import Step
from choral.cli.workflow.training import train_all
from choral.config import Config, binding_difference
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.inference.evaluation_request import Request
from choral.runs.run_dir import RunDir, is_run

_ROUNDS = 2  # pieces of advice that are tried at most


@dataclass(frozen=True)
class Before:
    """What the stages before the ensemble came to.

    Attributes:
        config: of the ensemble, with the augmentation that was kept.
        runs: the baseline and what was kept, in the order in which they build on each other; none: there was no baseline.
        steps: what was done, in words.
    """

    config: Config
    runs: tuple[RunDir, ...] = ()
    steps: tuple[Step, ...] = ()


def before_ensemble(config: Config, progress: Console) -> Before:
    """Do the chosen ones of the stages baseline, analyze and improve.

    Raises:
        ConfigError, DataError: found before anything is started.
        Stopped: the same again continues.
        ChoralError: a training or an evaluation failed; the reason has been printed.
    """
    chosen, base = config.chosen_stages, baseline_config(config)
    folder = RunDir.of(base)
    ensemble = RunDir.of(config)
    for stage in ("evaluate", "export"):
        if stage in chosen and "ensemble" not in chosen and not is_run(ensemble.path):
            raise ConfigError(f"stages: {stage} is about {ensemble.path}, which is not there: choose ensemble as well")
    steps: list[Step] = []
    if "baseline" in chosen:
        say_stage("baseline", progress)
        steps.append(_train_baseline(base, folder, progress))
    if "analyze" in chosen:
        say_stage("analyze", progress)
        steps.append(_analyze(folder))
    if "improve" in chosen:
        say_stage("improve", progress)
        improved: Improved | None = improve(config, seeds=1, rounds=_ROUNDS, progress=progress, test=False)
        assert improved is not None
        print_improved(improved, progress)
    else:
        improved = _improved_before(config, folder)
        if improved is None and "ensemble" in chosen:
            _say_left_out(folder, progress)
    if improved is None:
        return Before(config, (folder,) if steps else (), tuple(steps))
    steps.append(_told(improved))
    names = dict.fromkeys((improved.baseline, *(one.run for one in improved.rounds if one.kept)))
    return Before(improved.config(config), tuple(RunDir(folder.path.parent / name) for name in names), tuple(steps))


def evaluate_steps(folders: Sequence[RunDir], config: Config) -> None:
    """Ask the networks of the steps before the ensemble about the splits of `evaluate.splits`, the test split among them.

    Raises:
        Stopped: the same again continues.
        ChoralError: it failed; the reason has been printed.
    """
    for folder in folders:
        _check(evaluate(Request(folder, split=",".join(config.evaluate.splits)), processes=0), folder, "evaluated")


def say_stage(stage: str, progress: Console) -> None:
    """Say on the console of what goes on that a stage begins."""
    progress.print(f"\n== {stage}", style="bold", markup=False, highlight=False)


def _improved_before(config: Config, baseline: RunDir) -> Improved | None:
    """Return what an earlier call found and trained the ensemble with; this one is about what comes after."""
    folder, improved = RunDir.of(config), improved_of(baseline)
    if improved is None or not is_run(folder.path):
        return None
    return None if binding_difference(folder.config(), improved.config(config)) else improved


def _say_left_out(baseline: RunDir, progress: Console) -> None:
    """Say that the ensemble does without what an earlier call found to help, if it did."""
    improved = improved_of(baseline)
    if improved is not None and improved.settings:
        kept = ", ".join(f"augment.{key}: {value}" for key, value in improved.settings.items())
        progress.print(
            f"without what improved {baseline.name} ({kept}), for improve is not among the stages: with it, that is used",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _train_baseline(base: Config, folder: RunDir, progress: Console) -> Step:
    _check(train_all(base, folder, progress), folder, "trained")
    _check(evaluate(Request(folder, split=base.data.val_split), processes=0), folder, "evaluated")
    return Step("baseline", f"{folder.name}: one network, {base.model.name}, without test-time views")


def _analyze(folder: RunDir) -> Step:
    """Probe the baseline, make the advice and the page."""
    if not is_run(folder.path):
        raise ConfigError(f"stages: analyze is about {folder.path}, which is not there: choose baseline as well")
    advice = advise(folder)
    path = analyze(folder)
    links = ((path.name, "What the baseline gets wrong"), (ADVICE_YAML, "What its probes advise, and what not"))
    return Step("analyze", advice.note, tuple((f"../{folder.name}/{name}", text) for name, text in links))


def _told(improved: Improved) -> Step:
    tried = [f"{', '.join(one.families)}: {one.reason}" if one.families else one.reason for one in improved.rounds]
    return Step(
        "improve", "; ".join(tried), ((f"../{improved.baseline}/{IMPROVED_YAML}", "The config with what was kept"),)
    )


def _check(code: int, folder: RunDir, done: str) -> None:
    if code == Stopped.exit_code:
        raise Stopped(f"{folder.path}: stopped; run the same command again to continue")
    if code:
        raise ChoralError(f"{folder.path}: could not be {done}: see above")
