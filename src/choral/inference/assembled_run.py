"""Several runs, checkpoints and bundles as one ensemble: a run folder of its own that names their networks.

    runs/NAME/
      config.yaml    of the first of them, without members of its own
      voices.json    what it is assembled of, and where the checkpoint of each network lies

Nothing is copied: the runs must stay where they are. What combines, scores or predicts finds the networks in voices.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from choral.config import Config, EnsembleConfig, ResampleConfig
from choral.config.ensemble import LEGAL_NAME
from choral.core.errors import ConfigError
from choral.inference.bundled_models import FILE, is_bundle, read_bundle_config, read_bundled_models
from choral.inference.trained_models import (
    MODELS_FILE,
    MODELS_FORMAT,
    TrainedModel,
    check_same_outputs,
    find_trained_models,
    is_assembled,
    read_trained_model,
)
from choral.runs.checkpoints import EMA, MODEL, SOUP, STATE, read_meta
from choral.runs.run_dir import RUNS, RunDir, read_json, write_json

_LONGEST = 64  # of a run's name
_EXPECTED = f"a run (a folder with config.yaml) nor a checkpoint (one with {STATE}) nor a bundle (one with {FILE})"


@dataclass(frozen=True)
class _Target:
    """What a word of the command line stands for."""

    title: str
    config: Config
    models: tuple[TrainedModel, ...]
    unfinished: tuple[str, ...]


def folder_of(targets: Sequence[str], name: str, shards: str) -> tuple[RunDir, list[str]]:
    """Return the run that targets stand for: a run itself, or the one assembled of several runs and checkpoints.

    Args:
        targets: run folders, names of runs, config files of runs, checkpoint folders, bundles; at least one.
        name: of the assembled run; "": made of the targets' names.
        shards: the data of the assembled run where it is new; "", and of a bundle alone: those of the first target.

    Returns:
        The folder, and members of the targets that are not trained, and so not in it.

    Raises:
        ConfigError: a target is neither a run nor a checkpoint nor a bundle; the name is taken, or none.
        ChoralError: a target has no trained network, or they were trained on different classes.
    """
    alone = len(targets) == 1
    if alone and not (_is_checkpoint(targets[0]) or is_bundle(Path(targets[0])) or name):
        return run_named(targets[0], _EXPECTED), []
    found = [_read(target) for target in targets]
    models = _named([(target.title, model) for target in found for model in target.models])
    if alone and is_bundle(
        Path(targets[0])
    ):  # its networks keep their names, by which it answers, and others are other data
        models, shards = list(found[0].models), ""
    check_same_outputs(", ".join(targets), models)
    name = name or _joined([target.title for target in found])
    if LEGAL_NAME.fullmatch(name) is None:
        raise ConfigError(f"--name: '{name}' is no run name: use letters, digits, '.', '_' and '-'")
    return _write(RunDir(RUNS / name), targets, found[0].config, models, shards), [
        f"{target.title}: {member}" for target in found for member in target.unfinished
    ]


def _write(
    folder: RunDir, targets: Sequence[str], config: Config, models: Sequence[TrainedModel], shards: str
) -> RunDir:
    places = [str(Path(target).absolute() if Path(target).exists() else target) for target in targets]
    if (folder.path / "config.yaml").is_file():
        if not is_assembled(folder):
            raise ConfigError(f"--name: {folder.path} is a run that was trained; choose another name")
        before = (read_json(folder.path / MODELS_FILE) or {}).get("targets", [])
        if before != places:
            raise ConfigError(
                f"--name: {folder.path} is assembled of {', '.join(before)}; choose another name for {', '.join(targets)}"
            )
        config = replace(config, data=replace(config.data, shards=folder.config().data.shards))
    elif shards:
        config = replace(config, data=replace(config.data, shards=shards))
    data = replace(config.data, resample=ResampleConfig())
    content = [
        {
            "name": model.name,
            "run": str(model.run.path.absolute()),
            "checkpoint": str(model.checkpoint.absolute()),
            "weights": model.weights,
            "sha256": model.weights_hash,
        }
        for model in models
    ]
    # Before the config: ranks assemble at the same time, and a config alone would say that the run was trained.
    write_json(folder.path / MODELS_FILE, {"format": MODELS_FORMAT, "targets": places, "voices": content})
    folder.claim(replace(config, run=folder.path.name, ensemble=EnsembleConfig(), data=data))
    return folder


def bundle_of(folder: RunDir) -> Path | None:
    """Return the bundle that a run was assembled of, if that is all that it was assembled of."""
    targets = (read_json(folder.path / MODELS_FILE) or {}).get("targets", [])
    return Path(targets[0]) if len(targets) == 1 and is_bundle(Path(targets[0])) else None


def _read(target: str) -> _Target:
    if is_bundle(Path(target)):
        return _of_bundle(Path(target).absolute())
    if not _is_checkpoint(target):
        folder = run_named(target, _EXPECTED)
        config = folder.config()
        models, unfinished = find_trained_models(folder, config)
        return _Target(_title(folder), config, tuple(models), tuple(unfinished))
    checkpoint = Path(target).absolute()
    folder = RunDir(checkpoint.parent.parent)
    if not (folder.path / "config.yaml").is_file():
        raise ConfigError(
            f"{target}: a checkpoint says nothing of its network's architecture; leave it in its run, RUN/checkpoints/, "
            f"beside RUN/config.yaml, which is not at {folder.path}"
        )
    best = read_json(checkpoint.parent / "best.json") or {}
    held = read_meta(checkpoint)["sha256"]
    weights = next((name for name in (SOUP, EMA) if name in held), MODEL)
    if best.get("checkpoint") == checkpoint.name:
        weights = str(best.get("weights", MODEL))
    title = f"{_title(folder)}-{checkpoint.name}"
    return _Target(title, folder.config(), (read_trained_model(title, title, folder, checkpoint, weights),), ())


def _of_bundle(path: Path) -> _Target:
    config = read_bundle_config(path)
    return _Target(f"{config.run}-{path.resolve().name}", config, tuple(read_bundled_models(path)), ())


def run_named(target: str, expected: str) -> RunDir:
    """Return the run that a target stands for.

    Raises:
        ConfigError: it is none; of a folder that is there, that it is not what was `expected`.
    """
    try:
        return RunDir.find(target)
    except ConfigError as error:
        if not Path(target).exists():
            raise
        raise ConfigError(f"{target}: neither {expected}") from error


def _is_checkpoint(target: str) -> bool:
    return (Path(target) / STATE).is_file()


def _title(folder: RunDir) -> str:
    """Return a run's name, of a member's folder with that of its run."""
    path = folder.path.resolve()
    return f"{path.parent.parent.name}-{path.name}" if path.parent.name == "members" else path.name


def _named(models: Sequence[tuple[str, TrainedModel]]) -> list[TrainedModel]:
    """Return voices with names of their own: of the target, and of the network where the target has several."""
    titles = [title for title, _ in models]
    names: list[str] = []
    for title, model in models:
        name = title if titles.count(title) == 1 else f"{title}-{model.name}"
        number = next(number for number in count(1) if _numbered(name, number) not in names)
        names.append(_numbered(name, number))
    return [replace(model, name=name, member=name) for name, (_, model) in zip(names, models, strict=True)]


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _joined(titles: Sequence[str]) -> str:
    name = "-".join(titles)
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
