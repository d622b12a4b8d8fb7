"""`choral tune` from end to end: the search, its report, and a comparison of the best trial with the baseline.

    runs/NAME/tune/
      config.yaml        the base config of the search
      space.json         the search space
      study.log          Optuna's journal: every trial, its point, its validations
      trials/007/        each trial is an ordinary run; only the baseline and the best one keep their checkpoints
      best.yaml          the config of the best trial, to run or to build on (`base:`)
      tune.json          all trials, the best one, and the importance of each key

Trials are compared on the validation split. So is the best trial with the baseline, which favours the best of many trials.
The test split is never used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from choral.cli.workflow.comparison import compare_runs
from choral.cli.workflow.evaluation import evaluate
from choral.cli.workflow.launch import gpus
from choral.cli.workflow.training import check_run, pack_if_missing
from choral.config import Config, TuneConfig, binding_difference
from choral.config.files import load_config, to_dict, to_yaml, with_overrides
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.ensembles.member_jobs import build_device_slots, single_model_config
from choral.inference.evaluation_request import EvaluationRequest
from choral.jobs import run_jobs
from choral.runs.run_dir import RunDir, read_json, write_atomic, write_json
from choral.scoring.compare import MetricComparison
from choral.training.state import LOWER_IS_BETTER
from choral.tuning.space import Space, build_search_space, config_overrides
from choral.tuning.study import BASELINE, Study, Trial, trial_to_json
from choral.tuning.trials import TrialSource, file_lock, progress_of_trial

_GRACE_S = 110.0  # longer than the grace period of a trial's own launcher
_PREDICTOR = "member/model"  # name of the single model of a run in comparisons


@dataclass(frozen=True)
class Search:
    """A search.

    Attributes:
        root: RUN/tune.
        config: base config of the trials, of one model.
        full_config: the config as given, perhaps of an ensemble.
        space: the search space.
    """

    root: Path
    config: Config
    full_config: Config
    space: Space

    @property
    def metric(self) -> str:
        """Name of the metric that is optimised on the validation split."""
        return self.config.best_metric

    @property
    def space_description(self) -> dict[str, str]:
        """The search space as text, to compare it with the one in space.json."""
        return {key: str(axis) for key, axis in self.space.items()}

    @property
    def exists(self) -> bool:
        """Whether the search has been started."""
        return (self.root / "study.log").is_file()

    def study(self) -> Study:
        """Open the study, or create it."""
        if not (self.root / "space.json").is_file():
            write_atomic(self.root / "config.yaml", to_yaml(self.config))
            write_json(self.root / "space.json", self.space_description)
        with file_lock(self.root / ".lock"):
            larger = self.metric not in LOWER_IS_BETTER
            return Study(
                self.root / "study.log", self.config, self.space, larger, 1 / self.config.train.eval_every_epochs
            )


def prepare_search(config: Config) -> Search:
    """Return the search of a config after validating it; nothing is written.

    Raises:
        ConfigError: the space is empty or invalid, or RUN/tune holds a search of another config or space.
    """
    from choral.models.build import check_model_name, supported_drop_rates
    from choral.training.optimizer import check_optimizer

    solo = single_model_config(config, config.run)
    check_run(solo)
    check_model_name(solo.model.name)
    check_optimizer(solo.train.optimizer)
    root = RunDir.from_config(config).path / "tune"
    search = Search(
        root, solo, config, build_search_space(solo, supported_drop_rates(solo.model, solo.data.image_size))
    )
    stored = read_json(root / "space.json")
    if stored is None:
        return search
    space_description = search.space_description
    differences = binding_difference(load_config(root / "config.yaml"), solo)
    differences += [
        f"tune.space.{key}"
        for key in sorted({*stored, *space_description})
        if stored.get(key) != space_description.get(key)
    ]
    if differences:
        raise ConfigError(
            f"{root}: holds a search of another config ({'; '.join(differences[:3])}). Give this run another "
            "name with run=NAME, or delete that folder"
        )
    return search


def tune(config: Config, jobs: int, progress: Console) -> int:
    """Run the remaining trials as parallel jobs; then evaluate the best one and write best.yaml and tune.json.

    Args:
        config: of a run; for an ensemble its first member is tuned.
        jobs: trials at once; 0 for as many as the devices hold.
        progress: console for progress messages.

    Returns:
        0 done, 75 stopped.

    Raises:
        ConfigError, DataError: found before anything is started.
        ChoralError: no trial finished.
    """
    pack_if_missing(config, progress)
    search = prepare_search(config)
    study = search.study()
    trials = TrialSource(search.root, study, search.config, search.space, search.metric)
    slots = build_device_slots(search.config, gpus(), config.tune.trials, jobs or config.ensemble.max_parallel)
    outcomes = run_jobs(
        [],
        slots=slots,
        retries=0,  # a failure, for example a learning rate that is too high, would repeat
        progress=progress_of_trial,
        progress_token=lambda job: RunDir(job.folder).status.get("step"),
        grace_s=_GRACE_S,
        console=progress,
        label="trial",
        source=trials,
    )
    if trials.stopped:
        progress.print("stopped; run the same command again to continue")
        return Stopped.exit_code
    running = [trial.name for trial in study.trials() if trial.state == "running"]
    if running:
        progress.print(f"trials {', '.join(running)} are running in other processes", markup=False, highlight=False)
        return 0
    best = study.best()
    if best is None:
        reason = next((outcome.message for outcome in outcomes if outcome.state == "failed"), "all were ended early")
        raise ChoralError(f"{search.root}: none of {len(study.trials())} trials finished: {reason}")
    with file_lock(search.root / ".finish"):  # several processes may end at the same time
        _record_best(search, study, trials, best)
    return 0


def _record_best(search: Search, study: Study, trials: TrialSource, best: Trial) -> None:
    """Evaluate the baseline and the best trial on the validation split, add them to the scoreboard, and write the results."""
    changes = config_overrides(search.config, search.space, best.point) if best.number != BASELINE else {}
    write_atomic(search.root / "best.yaml", _render_best_yaml(search, best, len(study.trials()), changes))
    baseline = study.trials()[BASELINE]
    split = search.config.data.val_split
    for trial, step in ((baseline, "baseline"), (best, "+tune"))[: 1 if best.number == BASELINE else 2]:
        if trial.state == "done":
            _evaluate(trials.run_dir(trial), split, step)
    compared: list[MetricComparison] = []
    if best.number != BASELINE and baseline.state == "done":
        run_dirs = (trials.run_dir(baseline), trials.run_dir(best))
        compared = compare_runs(run_dirs, split, [_PREDICTOR])[0]["metrics"]
    write_json(search.root / "tune.json", build_search_report(search, study) | {"gain": compared})


def build_search_report(search: Search, study: Study) -> dict[str, Any]:
    """Return the trials so far as plain JSON; `gain` is empty until the best one is compared with the baseline."""
    best, stored = study.best(), read_json(search.root / "tune.json") or {}
    compared = best is not None and best.number == (stored.get("best") or {}).get("number")
    return {
        "run": search.config.run,
        "split": search.config.data.val_split,
        "metric": search.metric,
        "planned_trials": search.config.tune.trials,
        "trials": [_trial_report(search, trial) for trial in study.trials()],
        "best": None if best is None else _trial_report(search, best),
        "importance": study.importance(),
        "file": str(search.root / "best.yaml"),
        "gain": stored.get("gain", []) if compared else [],
    }


def _trial_report(search: Search, trial: Trial) -> dict[str, Any]:
    changes = {} if trial.number == BASELINE else config_overrides(search.config, search.space, trial.point)
    return {**trial_to_json(trial), "config": changes}


def _evaluate(run_dir: RunDir, split: str, step: str) -> None:
    """Evaluate a trial on the validation split, which adds it to the scoreboard as `step`.

    Raises:
        Stopped: the evaluation was stopped.
        ChoralError: the evaluation failed.
    """
    config = run_dir.config()
    if config.step != step:
        run_dir.store_config(config.replace(step=step))
    code = evaluate(EvaluationRequest(run_dir, split=split, views="identity"), processes=0)
    if code == Stopped.exit_code:
        raise Stopped(f"{run_dir.path}: the evaluation was stopped; run the same command again to continue")
    if code:
        raise ChoralError(f"{run_dir.path}: the evaluation failed; the reason is printed above")


def _render_best_yaml(search: Search, best: Trial, count: int, changes: dict[str, Any]) -> str:
    full_config = with_overrides(search.full_config, changes, "the best trial")
    full_config = full_config.replace(run=f"{search.config.run}-tuned"[:64], tune=TuneConfig())
    value = f"{best.value:.4f}" if best.value is not None else "-"
    header = [
        f"# choral tune: trial {best.number} of {count}, {search.metric} {value} on {search.config.data.val_split}.",
        "# To run, or to build on with `base:`. Changes from the base config of the search:",
        *(
            f"#   {key}: {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
            for key, value in changes.items()
        ),
    ]
    if not changes:
        header[-1] = "# No trial is better than the base config of the search, so this is the base config."
    values = to_dict(full_config)
    values.pop("tune")
    body: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return "".join(f"{line}\n" for line in header) + body
