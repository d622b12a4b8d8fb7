"""The study: which trials there are, what the next one is, and which ones are not worth finishing. Optuna decides; its
journal, RUN/tune/study.log, is a file of JSON lines that several processes and machines can append to.

Nothing is unpickled: Optuna would do that with snapshots of a journal in Redis, which a file does not have.
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
from choral.tuning.space import Choice, Range, Space, Value, own_point

if TYPE_CHECKING:
    import optuna

_NAME = "tune"
BASELINE = 0
"""Number of the trial that is the config as it is."""

State = Literal["running", "done", "ended early", "failed"]


@dataclass(frozen=True)
class Trial:
    """What is known of a trial.

    Attributes:
        number: from 0, the config as it is.
        point: the keys it sets.
        state: ended early: by the pruner, or because its loss was not finite.
        value: of the best validation so far, in the units of the metric; None: there was none.
        validations: so many so far.
    """

    number: int
    point: Mapping[str, Value]
    state: State
    value: float | None
    validations: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.number:03d}"


class Study:
    """The trials of one search, as the journal has them.

    Args:
        path: of the journal.
        config: of one network; its `tune` section says how is searched.
        space: what is searched.
        larger_is_better: of the metric.
        per_epoch: validations an epoch.
    """

    def __init__(self, path: Path, config: Config, space: Space, larger_is_better: bool, per_epoch: float) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it has to say, the table says
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()  # Optuna's lock is a link to it, which a relative path would not reach
        _drop_torn_line(path)
        self._config, self._space = config, space
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        with _quiet():
            self._study = optuna.create_study(
                storage=storage,
                study_name=_NAME,
                direction="maximize" if larger_is_better else "minimize",
                pruner=_pruner(config, per_epoch),
                load_if_exists=True,
            )
        self.larger_is_better = larger_is_better

    def trials(self) -> list[Trial]:
        """Return the trials, by number."""
        return [self._trial(frozen) for frozen in self._asked()]

    def ask(self) -> Trial:
        """Add a trial, running, and return it; call it while no other process does.

        The first is the config as it is. What comes next depends on the seed of the config, the number, and what the
        trials before have shown by now.
        """
        import optuna

        number = len(self._asked())
        own = own_point(self._config, self._space) if number == BASELINE else None
        seed = (self._config.seed * 1_000_003 + number) % 2**32
        tpe = self._config.tune.sampler == "tpe"
        with _quiet():
            self._study.sampler = (
                optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._startup, constant_liar=True)
                if tpe
                else optuna.samplers.RandomSampler(seed=seed)
            )
            if own is not None and not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(own)
            trial = self._study.ask()
            for key, axis in self._space.items():
                if own is None or key in own:
                    _suggest(trial, key, axis)
        return self._trial(self._frozen(trial.number))

    def report(self, number: int, values: Sequence[float]) -> bool:
        """Tell the validations of a running trial so far, first to last, and return whether it is not worth going on."""
        import optuna

        frozen = self._frozen(number)
        trial = optuna.trial.Trial(self._study, frozen._trial_id)
        best = math.inf
        for place, value in enumerate(values, start=1):
            signed = -value if self.larger_is_better else value
            best = min(best, signed) if math.isfinite(signed) else best
            if place not in frozen.intermediate_values and math.isfinite(best):
                trial.report(-best if self.larger_is_better else best, place)  # a worse epoch is no worse trial
        return number != BASELINE and bool(values) and trial.should_prune()

    def tell(self, number: int, state: State, value: float | None = None) -> None:
        """Note how a trial has ended; `value` of one that is done."""
        from optuna.trial import TrialState

        if self._trial(self._frozen(number)).state != "running":
            return  # another process was faster, or an earlier start of this one was killed right after
        states = {"done": TrialState.COMPLETE, "ended early": TrialState.PRUNED, "failed": TrialState.FAIL}
        with _quiet():
            self._study.tell(number, value if state == "done" else None, state=states[state])

    def best(self) -> Trial | None:
        """Return the best of the finished trials; the earliest of equals; None: none is finished."""
        done = [trial for trial in self.trials() if trial.state == "done" and trial.value is not None]
        sign = -1.0 if self.larger_is_better else 1.0
        return min(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)

    def importance(self) -> dict[str, float]:
        """Return how much of the differences between finished trials each key explains, by functional ANOVA (Hutter et al.
        2014), largest first; empty where fewer than `startup` trials are finished or all are equal."""
        import optuna

        done = [trial for trial in self.trials() if trial.state == "done" and set(trial.point) == set(self._space)]
        if len(done) < max(4, self._startup) or len({trial.value for trial in done}) < 2:
            return {}
        with _quiet():
            found = optuna.importance.get_param_importances(
                self._study,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=self._config.seed),
                params=list(self._space),
            )
        return {key: float(value) for key, value in found.items()}

    @property
    def _startup(self) -> int:
        """Trials that are drawn at random before anything is learned from them."""
        return max(3, min(10, self._config.tune.trials // 4))

    def _asked(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials, by number, without one that only waits to be asked for: whoever was about to was killed."""
        return [one for one in self._study.get_trials(deepcopy=False) if one.state.name != "WAITING"]

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
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


def _pruner(config: Config, per_epoch: float) -> optuna.pruners.BasePruner:
    """Return the pruner; its resource are validations."""
    import optuna

    tune = config.tune
    least = max(1, math.ceil(tune.min_epochs * per_epoch))
    if tune.pruner == "median":
        startup = max(3, min(10, tune.trials // 4))
        return optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=least)
    if tune.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=3)
    if tune.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=least, max_resource="auto", reduction_factor=3)
    return optuna.pruners.NopPruner()


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a full disk or a crash left without its end: Optuna could not read beyond it.

    Raises:
        DataError: the file is something else than a journal.
    """
    from optuna.storages.journal import JournalFileSymlinkLock

    if not path.is_file():
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()  # nobody is in the middle of a line
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
                f"{path}: line {number} is damaged; delete the folder {path.parent} to search anew"
            ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Optuna says about its own experimental parts, and about values at the edge of a range."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def as_json(trial: Trial) -> dict[str, Any]:
    """Return a trial as plain JSON; `value` is of the metric, None where there was no validation."""
    return {
        "number": trial.number,
        "state": trial.state,
        "value": trial.value,
        "validations": trial.validations,
        "set": dict(trial.point),
    }
