"""`choral tune` from end to end: the search, what it has found, and what that is worth beside the config as it is.

    runs/NAME/tune/
      config.yaml        the network that the search began with, and what is searched
      study.log          Optuna's journal: every trial, its point, its validations
      trials/007/        an ordinary run each; checkpoints of the first and of the best alone
      best.yaml          the config with the best trial's keys, to build on (`base:`) or to run
      tune.json          all trials, the best one, and what each key explains

The trials are judged on the validation split, and so is the best of them beside the first: of many trials the best has been
lucky, too. The test split is never asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from choral.cli import workflow
from choral.cli.workflow.launch import gpus
from choral.config import Config, TuneConfig, binding_difference
from choral.config.files import load_config, to_values, to_yaml, with_overrides
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.ensembles.member_jobs import shared_out, solo_config
from choral.inference.evaluation_request import Request
from choral.jobs import run_jobs
from choral.runs.run_dir import RunDir, read_json, write_atomic, write_json
from choral.scoring.compare import Pair
from choral.training.state import LOWER_IS_BETTER
from choral.tuning.space import Space, changes_of, space_of
from choral.tuning.study import BASELINE, Study, Trial, as_json
from choral.tuning.trials import Trials, columns_of, exclusive

_GRACE_S = 110.0  # more than a trial's own launcher gives its ranks
_PREDICTOR = "member/model"  # what the one network of a run is called


@dataclass(frozen=True)
class Search:
    """A search: where it is, what it began with, what is searched."""

    root: Path
    config: Config
    whole: Config
    space: Space

    @property
    def metric(self) -> str:
        """What decides, on the validation split."""
        return self.config.best_metric

    @property
    def described(self) -> dict[str, str]:
        """What is searched, in words that are equal where it is."""
        return {key: str(axis) for key, axis in self.space.items()}

    @property
    def is_begun(self) -> bool:
        """Whether there is anything of it yet."""
        return (self.root / "study.log").is_file()

    def study(self) -> Study:
        """Open the journal; one is begun where there is none."""
        if not (self.root / "space.json").is_file():
            write_atomic(self.root / "config.yaml", to_yaml(self.config))
            write_json(self.root / "space.json", self.described)
        with exclusive(self.root / ".lock"):
            larger = self.metric not in LOWER_IS_BETTER
            return Study(
                self.root / "study.log", self.config, self.space, larger, 1 / self.config.train.eval_every_epochs
            )


def search_of(config: Config) -> Search:
    """Return the search of a config, after checking all that would fail later; nothing is written.

    Raises:
        ConfigError: nothing can be searched, or RUN/tune holds a search of another config or space.
    """
    from choral.models.build import check_name, drop_rates_of
    from choral.training.optimizer import check_optimizer

    solo = solo_config(config, config.run)
    workflow.check_run(solo)
    check_name(solo.model.name)
    check_optimizer(solo.train.optimizer)
    root = RunDir.of(config).path / "tune"
    search = Search(root, solo, config, space_of(solo, drop_rates_of(solo.model, solo.data.image_size)))
    before = read_json(root / "space.json")
    if before is None:
        return search
    described = search.described
    differences = binding_difference(load_config(root / "config.yaml"), solo)
    differences += [
        f"tune.space.{key}" for key in sorted({*before, *described}) if before.get(key) != described.get(key)
    ]
    if differences:
        raise ConfigError(
            f"{root}: holds a search of another config ({'; '.join(differences[:3])}). Give this one its own folder "
            "with run=NAME, or delete that one"
        )
    return search


def tune(config: Config, jobs: int, progress: Console) -> int:
    """Run the trials that are missing, as parallel jobs of this machine, and keep what came of it: see `report_of`.

    Args:
        config: of a run; of an ensemble its first member is searched.
        jobs: trials at once; 0: as many as the devices hold.
        progress: for what goes on.

    Returns:
        0 done, 75 stopped.

    Raises:
        ConfigError, DataError: found before anything is started.
        ChoralError: no trial could be trained.
    """
    workflow.pack_if_missing(config, progress)
    search = search_of(config)
    study = search.study()
    trials = Trials(search.root, study, search.config, search.space, search.metric)
    places = shared_out(search.config, gpus(), config.tune.trials, jobs or config.ensemble.max_parallel)
    outcomes = run_jobs(
        [],
        slots=places,
        retries=0,  # what fails, as with a rate that is too high, fails again
        progress=columns_of,
        progress_token=lambda job: RunDir(job.folder).status.get("step"),
        grace_s=_GRACE_S,
        console=progress,
        kind="trial",
        feed=trials,
    )
    if trials.stopped:
        progress.print("stopped; run the same command again to continue")
        return Stopped.exit_code
    running = [trial.name for trial in study.trials() if trial.state == "running"]
    if running:
        progress.print(f"trials {', '.join(running)} are worked on elsewhere", markup=False, highlight=False)
        return 0
    best = study.best()
    if best is None:
        why = next((outcome.message for outcome in outcomes if outcome.state == "failed"), "all were ended early")
        raise ChoralError(f"{search.root}: none of {len(study.trials())} trials has come to its end: {why}")
    with exclusive(search.root / ".finish"):  # of several processes that end at once, one after the other
        _finish(search, study, trials, best)
    return 0


def _finish(search: Search, study: Study, trials: Trials, best: Trial) -> None:
    """Evaluate the first and the best trial on validation data, put them on the scoreboard, and keep what was found."""
    changes = changes_of(search.config, search.space, best.point) if best.number != BASELINE else {}
    write_atomic(search.root / "best.yaml", _best_yaml(search, best, len(study.trials()), changes))
    first = study.trials()[BASELINE]
    split = search.config.data.val_split
    for trial, step in ((first, "baseline"), (best, "+tune"))[: 1 if best.number == BASELINE else 2]:
        if trial.state == "done":
            _evaluate(trials.folder(trial), split, step)
    compared: list[Pair] = []
    if best.number != BASELINE and first.state == "done":
        folders = (trials.folder(first), trials.folder(best))
        compared = workflow.compare_runs(folders, split, [_PREDICTOR])[0]["metrics"]
    write_json(search.root / "tune.json", report_of(search, study) | {"gain": compared})


def report_of(search: Search, study: Study) -> dict[str, Any]:
    """Return the trials so far, plain JSON; `gain` is empty until the best one has been compared with the first."""
    best, before = study.best(), read_json(search.root / "tune.json") or {}
    compared = best is not None and best.number == (before.get("best") or {}).get("number")
    return {
        "run": search.config.run,
        "split": search.config.data.val_split,
        "metric": search.metric,
        "wanted": search.config.tune.trials,
        "trials": [_told(search, trial) for trial in study.trials()],
        "best": None if best is None else _told(search, best),
        "importance": study.importance(),
        "file": str(search.root / "best.yaml"),
        "gain": before.get("gain", []) if compared else [],
    }


def _told(search: Search, trial: Trial) -> dict[str, Any]:
    changes = {} if trial.number == BASELINE else changes_of(search.config, search.space, trial.point)
    return {**as_json(trial), "config": changes}


def _evaluate(folder: RunDir, split: str, step: str) -> None:
    """Write the ledger of a trial for the validation split alone, and append it to the scoreboard as a step.

    Raises:
        ChoralError: it failed, or was stopped.
    """
    config = folder.config()
    if config.step != step:
        folder.claim(replace(config, step=step))
    code = workflow.evaluate(Request(folder, split=split, views="identity"), processes=0)
    if code == Stopped.exit_code:
        raise Stopped(f"{folder.path}: the evaluation was stopped; run the same command again to continue")
    if code:
        raise ChoralError(f"{folder.path}: could not be evaluated; the reason stands above")


def _best_yaml(search: Search, best: Trial, count: int, changes: dict[str, Any]) -> str:
    whole = with_overrides(search.whole, changes, "the best trial")
    whole = replace(whole, run=f"{search.config.run}-tuned"[:64], tune=TuneConfig())
    value = f"{best.value:.4f}" if best.value is not None else "-"
    head = [
        f"# choral tune: trial {best.number} of {count}, {search.metric} {value} on {search.config.data.val_split}.",
        "# To run as it is, or to build on with `base:`. What differs from the config that the search began with:",
        *(
            f"#   {key}: {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
            for key, value in changes.items()
        ),
    ]
    if not changes:
        head[-1] = "# Nothing that was tried is better than the config that the search began with: this is that one."
    values = to_values(whole)
    values.pop("tune")
    body: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return "".join(f"{line}\n" for line in head) + body
