"""The stages of `choral run` before the ensemble: baseline, analyze and improve.

A stage whose result exists is skipped, so that the same command continues. These stages use validation data only; the test
split is evaluated at the end, with all models together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from choral.analysis.advice import ADVICE_YAML
from choral.cli.workflow.advice import advise
from choral.cli.workflow.analysis import analyze
from choral.cli.workflow.evaluation import evaluate
from choral.cli.workflow.improvement import IMPROVED_YAML, Improvement, baseline_config, improve, read_improvement
from choral.cli.workflow.improvement_table import print_improvement
from choral.cli.workflow.summary import Step
from choral.cli.workflow.training import train_all
from choral.config import Config, binding_difference
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.inference.evaluation_request import EvaluationRequest
from choral.runs.run_dir import RunDir, is_run_dir

_ROUNDS = 2  # of retraining with advice, at most


@dataclass(frozen=True)
class EnsembleInputs:
    """The result of the stages before the ensemble.

    Attributes:
        config: the ensemble's config, with the augmentation that was kept.
        runs: the baseline and the improved runs that were kept, each based on the one before; empty without a baseline.
        steps: the stages that were done, for the summary page.
    """

    config: Config
    runs: tuple[RunDir, ...] = ()
    steps: tuple[Step, ...] = ()


def prepare_ensemble(config: Config, progress: Console) -> EnsembleInputs:
    """Run the selected stages among baseline, analyze and improve.

    Raises:
        ConfigError, DataError: raised before anything is started.
        Stopped: the same command continues.
        ChoralError: a training or an evaluation failed; the reason has been printed.
    """
    chosen, base = config.chosen_stages, baseline_config(config)
    folder = RunDir.from_config(base)
    ensemble = RunDir.from_config(config)
    for stage in ("evaluate", "export"):
        if stage in chosen and "ensemble" not in chosen and not is_run_dir(ensemble.path):
            raise ConfigError(f"stages: {stage} needs {ensemble.path}, which does not exist: add the stage ensemble")
    steps: list[Step] = []
    if "baseline" in chosen:
        print_stage("baseline", progress)
        steps.append(_train_baseline(base, folder, progress))
    if "analyze" in chosen:
        print_stage("analyze", progress)
        steps.append(_analyze_baseline(folder))
    if "improve" in chosen:
        print_stage("improve", progress)
        improved: Improvement | None = improve(config, seeds=1, rounds=_ROUNDS, progress=progress, test=False)
        assert improved is not None
        print_improvement(improved, progress)
    else:
        improved = _read_earlier_improvement(config, folder)
        if improved is None and "ensemble" in chosen:
            _warn_improvement_unused(folder, progress)
    if improved is None:
        return EnsembleInputs(config, (folder,) if steps else (), tuple(steps))
    steps.append(_improvement_step(improved))
    names = dict.fromkeys((improved.baseline, *(one.run for one in improved.rounds if one.kept)))
    return EnsembleInputs(
        improved.config(config), tuple(RunDir(folder.path.parent / name) for name in names), tuple(steps)
    )


def evaluate_earlier_models(folders: Sequence[RunDir], config: Config) -> None:
    """Evaluate the models of the stages before the ensemble on `evaluate.splits`, which include the test split.

    Raises:
        Stopped: the same command continues.
        ChoralError: an evaluation failed; the reason has been printed.
    """
    for folder in folders:
        _check_exit_status(
            evaluate(EvaluationRequest(folder, split=",".join(config.evaluate.splits)), processes=0),
            folder,
            "evaluated",
        )


def print_stage(stage: str, progress: Console) -> None:
    """Print on the progress console that a stage begins."""
    progress.print(f"\n== {stage}", style="bold", markup=False, highlight=False)


def _read_earlier_improvement(config: Config, baseline: RunDir) -> Improvement | None:
    """Return the improvement of an earlier call that the existing ensemble was trained with, or None."""
    folder, improved = RunDir.from_config(config), read_improvement(baseline)
    if improved is None or not is_run_dir(folder.path):
        return None
    return None if binding_difference(folder.config(), improved.config(config)) else improved


def _warn_improvement_unused(baseline: RunDir, progress: Console) -> None:
    """Warn that the ensemble does not use an improvement that an earlier call found, if there is one."""
    improved = read_improvement(baseline)
    if improved is not None and improved.settings:
        kept = ", ".join(f"augment.{key}: {value}" for key, value in improved.settings.items())
        progress.print(
            f"the ensemble does not use the improvement of {baseline.name} ({kept}): add the stage improve to use it",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _train_baseline(base: Config, folder: RunDir, progress: Console) -> Step:
    _check_exit_status(train_all(base, folder, progress), folder, "trained")
    _check_exit_status(evaluate(EvaluationRequest(folder, split=base.data.val_split), processes=0), folder, "evaluated")
    return Step("baseline", f"{folder.name}: one model, {base.model.name}, without test-time views")


def _analyze_baseline(folder: RunDir) -> Step:
    """Probe the baseline, and write the advice and the page."""
    if not is_run_dir(folder.path):
        raise ConfigError(f"stages: analyze needs {folder.path}, which does not exist: add the stage baseline")
    advice = advise(folder)
    path = analyze(folder)
    links = ((path.name, "Error analysis of the baseline"), (ADVICE_YAML, "Advice from its probes, with reasons"))
    return Step("analyze", advice.note, tuple((f"../{folder.name}/{name}", text) for name, text in links))


def _improvement_step(improved: Improvement) -> Step:
    rounds = [f"{', '.join(one.families)}: {one.reason}" if one.families else one.reason for one in improved.rounds]
    return Step(
        "improve", "; ".join(rounds), ((f"../{improved.baseline}/{IMPROVED_YAML}", "The config with what was kept"),)
    )


def _check_exit_status(code: int, folder: RunDir, done: str) -> None:
    if code == Stopped.exit_code:
        raise Stopped(f"{folder.path}: stopped; run the same command again to continue")
    if code:
        raise ChoralError(f"{folder.path}: could not be {done}: see above")
