"""The study: its trials, the next trial to run, and which trials to end early.

Optuna decides. Its journal, RUN/tune/study.log, is a JSON Lines file that several processes and machines can append to.
Nothing is unpickled: Optuna unpickles only snapshots of a journal in Redis, and a journal file has none.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from choral.config import Config
from choral.core.errors import DataError
from choral.tuning.space import Choice, Range, Space, Value, point_from_config

if TYPE_CHECKING:
    import optuna

_STUDY_NAME = "tune"
BASELINE = 0
"""Number of the trial with the unchanged config."""

State = Literal["running", "done", "ended early", "failed"]


@dataclass(frozen=True)
class Trial:
    """A trial of the study.

    Attributes:
        number: from 0, the trial with the unchanged config.
        point: value of each key of the space.
        state: "ended early" by the pruner, or because the loss was not finite.
        value: metric of the best validation so far; None without any validation.
        validations: how many there were so far.
    """

    number: int
    point: Mapping[str, Value]
    state: State
    value: float | None
    validations: int

    @property
    def name(self) -> str:
        """Name of its folder, such as "007"."""
        return f"{self.number:03d}"


class Study:
    """The trials of one search, with Optuna's ask-and-tell interface.

    Args:
        path: of the journal.
        config: of one model; its `tune` section has the sampler and the pruner.
        space: the search space.
        larger_is_better: for the metric.
        validations_per_epoch: may be below 1.
    """

    def __init__(
        self, path: Path, config: Config, space: Space, larger_is_better: bool, validations_per_epoch: float
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # the table shows the same information
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()  # Optuna's lock is a symbolic link to the journal, and would break with a relative path
        _truncate_incomplete_line(path)
        self._config, self._space = config, space
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        with _ignore_warnings():
            self._study = optuna.create_study(
                storage=storage,
                study_name=_STUDY_NAME,
                direction="maximize" if larger_is_better else "minimize",
                pruner=_make_pruner(config, validations_per_epoch),
                load_if_exists=True,
            )
        self.larger_is_better = larger_is_better

    def trials(self) -> list[Trial]:
        """Return the trials, ordered by number."""
        return [self._trial(frozen) for frozen in self._created()]

    def ask(self) -> Trial:
        """Create the next trial in state "running" and return it; no other process may call this at the same time.

        The first trial is the unchanged config. Later points depend on the seed of the config, the number of the trial,
        and the results so far.
        """
        import optuna

        number = len(self._created())
        baseline = point_from_config(self._config, self._space) if number == BASELINE else None
        seed = (self._config.seed * 1_000_003 + number) % 2**32
        tpe = self._config.tune.sampler == "tpe"
        with _ignore_warnings():
            self._study.sampler = (
                optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._startup, constant_liar=True)
                if tpe
                else optuna.samplers.RandomSampler(seed=seed)
            )
            if baseline is not None and not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(baseline)
            trial = self._study.ask()
            for key, axis in self._space.items():
                if baseline is None or key in baseline:
                    _suggest(trial, key, axis)
        return self._trial(self._optuna_trial(trial.number))

    def should_prune(self, number: int, values: Sequence[float]) -> bool:
        """Report all validations of a running trial so far, in order; return whether the trial should be ended early."""
        import optuna

        frozen = self._optuna_trial(number)
        trial = optuna.trial.Trial(self._study, frozen._trial_id)
        best = math.inf
        for validation, value in enumerate(values, start=1):
            signed = -value if self.larger_is_better else value
            best = min(best, signed) if math.isfinite(signed) else best
            # Reports the best value so far: a worse epoch does not make the trial worse.
            if validation not in frozen.intermediate_values and math.isfinite(best):
                trial.report(-best if self.larger_is_better else best, validation)
        return number != BASELINE and bool(values) and trial.should_prune()

    def tell(self, number: int, state: State, value: float | None = None) -> None:
        """Record how a trial ended; `value` is the metric of a trial that is done."""
        from optuna.trial import TrialState

        if self._trial(self._optuna_trial(number)).state != "running":
            return  # another process, or an earlier start of this one, has recorded it already
        states = {"done": TrialState.COMPLETE, "ended early": TrialState.PRUNED, "failed": TrialState.FAIL}
        with _ignore_warnings():
            self._study.tell(number, value if state == "done" else None, state=states[state])

    def best(self) -> Trial | None:
        """Return the best finished trial, the first one in case of ties; None if no trial is finished."""
        done = [trial for trial in self.trials() if trial.state == "done" and trial.value is not None]
        sign = -1.0 if self.larger_is_better else 1.0
        return min(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)

    def importance(self) -> dict[str, float]:
        """Return the importance of each key by functional ANOVA (Hutter et al. 2014), largest first.

        It is the share of the variance between finished trials that the key explains. Empty if fewer than `_startup`
        trials are finished or all are equal.
        """
        import optuna

        done = [trial for trial in self.trials() if trial.state == "done" and set(trial.point) == set(self._space)]
        if len(done) < max(4, self._startup) or len({trial.value for trial in done}) < 2:
            return {}
        with _ignore_warnings():
            importances = optuna.importance.get_param_importances(
                self._study,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=self._config.seed),
                params=list(self._space),
            )
        return {key: float(value) for key, value in importances.items()}

    @property
    def _startup(self) -> int:
        """Number of random trials before the sampler uses the results."""
        return max(3, min(10, self._config.tune.trials // 4))

    def _created(self) -> list[optuna.trial.FrozenTrial]:
        """Return the created trials by number, without an enqueued one whose process was killed before creating it."""
        return [one for one in self._study.get_trials(deepcopy=False) if one.state.name != "WAITING"]

    def _optuna_trial(self, number: int) -> optuna.trial.FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _trial(self, frozen: optuna.trial.FrozenTrial) -> Trial:
        states: dict[str, State] = {"COMPLETE": "done", "PRUNED": "ended early", "FAIL": "failed"}
        curve = frozen.intermediate_values
        value = frozen.value if frozen.state.name == "COMPLETE" else curve[max(curve)] if curve else None
        state: State = states.get(frozen.state.name, "running")
        return Trial(frozen.number, dict(frozen.params), state, value, len(curve))


def _suggest(trial: optuna.trial.Trial, key: str, axis: Range | Choice) -> None:
    if isinstance(axis, Choice):
        trial.suggest_categorical(key, list(axis.values))
    elif axis.whole:
        trial.suggest_int(key, int(axis.low), int(axis.high), step=int(axis.step or 1), log=axis.log)
    else:
        trial.suggest_float(key, axis.low, axis.high, step=axis.step, log=axis.log)


def _make_pruner(config: Config, validations_per_epoch: float) -> optuna.pruners.BasePruner:
    """Return the pruner of the config; its steps are validations."""
    import optuna

    tune = config.tune
    min_validations = max(1, math.ceil(tune.min_epochs * validations_per_epoch))
    if tune.pruner == "median":
        startup = max(3, min(10, tune.trials // 4))
        return optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=min_validations)
    if tune.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=min_validations, reduction_factor=3)
    if tune.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=min_validations, max_resource="auto", reduction_factor=3)
    return optuna.pruners.NopPruner()


def _truncate_incomplete_line(path: Path) -> None:
    """Truncate an incomplete last line, left by a full disk or a crash: Optuna could not read beyond it.

    Raises:
        DataError: a line of the file is not JSON.
    """
    from optuna.storages.journal import JournalFileSymlinkLock

    if not path.is_file():
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()  # no process is writing a line
    try:
        content = path.read_bytes()
        whole = content.rpartition(b"\n")[0]
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as stream:
                stream.truncate(len(whole) + 1 if whole else 0)
    finally:
        lock.release()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError:
            raise DataError(
                f"{path}: line {number} is damaged; delete the folder {path.parent} to start a new search"
            ) from None


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Ignore Optuna's warnings about its experimental features and about values at the end of a range."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trial_to_json(trial: Trial) -> dict[str, Any]:
    """Return a trial as plain JSON; `value` is None without any validation."""
    return {
        "number": trial.number,
        "state": trial.state,
        "value": trial.value,
        "validations": trial.validations,
        "set": dict(trial.point),
    }
