"""Several runs, checkpoints and bundles as one ensemble: a run directory of its own that lists their models.

    runs/NAME/
      config.yaml    of the first target, without members
      models.json    the targets, and where the checkpoint of each model is (see `models_file`)

Nothing is copied, so the runs must stay where they are. Scoring, combining and predicting read the models from models.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from choral.config import Config, EnsembleConfig, ResampleConfig
from choral.config.fields import NAME_PATTERN
from choral.core.errors import ConfigError
from choral.inference.bundled_models import BUNDLE_FILE, is_bundle, read_bundle_config, read_bundled_models
from choral.inference.models_file import is_assembled, read_targets, write_models_file
from choral.inference.run_models import find_trained_models
from choral.inference.trained_model import TrainedModel, check_same_outputs, read_trained_model
from choral.runs.checkpoints import EMA_FILE, MODEL_FILE, SOUP_FILE, STATE_FILE, read_checkpoint_state
from choral.runs.run_dir import RUNS_DIR, RunDir, read_json

_MAX_NAME_LENGTH = 64
_EXPECTED = (
    f"a run (a folder with config.yaml) nor a checkpoint (one with {STATE_FILE}) nor a bundle (one with {BUNDLE_FILE})"
)


@dataclass(frozen=True)
class _Target:
    """The models that an argument of the command line stands for."""

    title: str
    config: Config
    models: tuple[TrainedModel, ...]
    unfinished: tuple[str, ...]


def resolve_targets(targets: Sequence[str], name: str, shards: str) -> tuple[RunDir, list[str]]:
    """Return the run that the targets stand for: a run itself, or one assembled from runs, checkpoints and bundles.

    Args:
        targets: run directories, names of runs, config files of runs, checkpoint directories, bundles; at least one.
        name: of the assembled run; "": made from the targets' names.
        shards: data of a newly assembled run; "": those of the first target. Ignored for a single bundle.

    Returns:
        The run directory, and the members of the targets that are not trained and therefore missing in it.

    Raises:
        ConfigError: a target is neither a run nor a checkpoint nor a bundle, or the name is taken or not valid.
        ChoralError: a target has no trained model, or the models were trained on different classes.
    """
    is_bundle_alone = len(targets) == 1 and is_bundle(Path(targets[0]))
    if len(targets) == 1 and not (_is_checkpoint(targets[0]) or is_bundle_alone or name):
        return find_run(targets[0], _EXPECTED), []
    found = [_read_target(target) for target in targets]
    if is_bundle_alone:  # keeps the names that its policy uses; data given with --data have a ledger of their own
        models, shards = list(found[0].models), ""
    else:
        models = _make_names_unique([(target.title, model) for target in found for model in target.models])
    check_same_outputs(", ".join(targets), models)
    name = name or _join_titles([target.title for target in found])
    if NAME_PATTERN.fullmatch(name) is None:
        raise ConfigError(f"--name: '{name}' is not a valid run name: use letters, digits, '.', '_' and '-'")
    run_dir = RunDir(RUNS_DIR / name)
    _write_run(run_dir, targets, found[0].config, models, shards)
    return run_dir, [f"{target.title}: {member}" for target in found for member in target.unfinished]


def find_source_bundle(run_dir: RunDir) -> Path | None:
    """Return the bundle that a run was assembled from, if there was no other target."""
    targets = read_targets(run_dir)
    return Path(targets[0]) if len(targets) == 1 and is_bundle(Path(targets[0])) else None


def find_run(target: str, expected: str) -> RunDir:
    """Return the run directory that a target names.

    Raises:
        ConfigError: there is none. If the path exists, the message says that it is neither `expected`.
    """
    try:
        return RunDir.find(target)
    except ConfigError as error:
        if not Path(target).exists():
            raise
        raise ConfigError(f"{target}: neither {expected}") from error


def _write_run(
    run_dir: RunDir, targets: Sequence[str], config: Config, models: Sequence[TrainedModel], shards: str
) -> None:
    """Write models.json, then config.yaml, of an assembled run."""
    paths = [str(Path(target).absolute() if Path(target).exists() else target) for target in targets]
    if (run_dir.path / "config.yaml").is_file():
        if not is_assembled(run_dir):
            raise ConfigError(f"--name: {run_dir.path} is a run that was trained; choose another name")
        before = read_targets(run_dir)
        if before != paths:
            raise ConfigError(
                f"--name: {run_dir.path} was assembled from {', '.join(before)}; choose another name for "
                f"{', '.join(targets)}"
            )
        config = config.replace(data=config.data.replace(shards=run_dir.config().data.shards))
    elif shards:
        config = config.replace(data=config.data.replace(shards=shards))
    data = config.data.replace(resample=ResampleConfig())
    # In this order, because ranks assemble at the same time and a config alone would look like a trained run.
    write_models_file(run_dir, paths, models)
    run_dir.store_config(config.replace(run=run_dir.path.name, ensemble=EnsembleConfig(), data=data))


def _read_target(target: str) -> _Target:
    if is_bundle(Path(target)):
        return _read_bundle(Path(target).absolute())
    if _is_checkpoint(target):
        return _read_checkpoint(target)
    run_dir = find_run(target, _EXPECTED)
    config = run_dir.config()
    models, unfinished = find_trained_models(run_dir, config)
    return _Target(_make_title(run_dir), config, tuple(models), tuple(unfinished))


def _read_bundle(path: Path) -> _Target:
    config = read_bundle_config(path)
    return _Target(f"{config.run}-{path.resolve().name}", config, tuple(read_bundled_models(path)), ())


def _read_checkpoint(target: str) -> _Target:
    """Read a checkpoint with its best weights, if it is marked as best; else soup, EMA or model, the first that it has."""
    checkpoint = Path(target).absolute()
    run_dir = RunDir(checkpoint.parent.parent)
    if not (run_dir.path / "config.yaml").is_file():
        raise ConfigError(
            f"{target}: a checkpoint does not define its model's architecture; leave it in its run, RUN/checkpoints/, "
            f"beside RUN/config.yaml, which is not at {run_dir.path}"
        )
    best = read_json(checkpoint.parent / "best.json") or {}
    files = read_checkpoint_state(checkpoint)["sha256"]
    weights_file = next((name for name in (SOUP_FILE, EMA_FILE) if name in files), MODEL_FILE)
    if best.get("checkpoint") == checkpoint.name:
        weights_file = str(best.get("weights", MODEL_FILE))
    title = f"{_make_title(run_dir)}-{checkpoint.name}"
    model = read_trained_model(title, title, run_dir, checkpoint, weights_file)
    return _Target(title, run_dir.config(), (model,), ())


def _is_checkpoint(target: str) -> bool:
    return (Path(target) / STATE_FILE).is_file()


def _make_title(run_dir: RunDir) -> str:
    """Return a run's name; for a member, RUN-MEMBER."""
    path = run_dir.path.resolve()
    return f"{path.parent.parent.name}-{path.name}" if path.parent.name == "members" else path.name


def _make_names_unique(models: Sequence[tuple[str, TrainedModel]]) -> list[TrainedModel]:
    """Return the models with unique names: the target's title, followed by the model's name if the target has several."""
    titles = [title for title, _ in models]
    names: list[str] = []
    for title, model in models:
        name = title if titles.count(title) == 1 else f"{title}-{model.name}"
        number = next(number for number in count(1) if _add_number(name, number) not in names)
        names.append(_add_number(name, number))
    return [replace(model, name=name, member=name) for name, (_, model) in zip(names, models, strict=True)]


def _add_number(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _join_titles(titles: Sequence[str]) -> str:
    """Return the titles joined by "-"; a text that is too long is cut and ends with a hash."""
    name = "-".join(titles)
    if len(name) <= _MAX_NAME_LENGTH:
        return name
    return f"{name[: _MAX_NAME_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
