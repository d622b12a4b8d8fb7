"""The trained models of a run: its members' run directories, and the model or models of each. Needs no torch."""

from __future__ import annotations

from choral.config import Config, resolve_members
from choral.core.errors import ChoralError
from choral.data.loading.boosting_weights import read_rounds
from choral.inference.models_file import is_assembled, read_assembled_models, read_member_run_dirs
from choral.inference.trained_model import TrainedModel, check_same_outputs, read_trained_model
from choral.runs.checkpoints import find_snapshots, find_weights
from choral.runs.run_dir import RunDir

SINGLE_MEMBER = "model"
"""Name of the only member of a run without an `ensemble:` section."""


def member_run_dirs(run_dir: RunDir, config: Config) -> dict[str, RunDir]:
    """Return the run directories of a run's members, by name; a run without an ensemble is its own only member.

    Leaves out the boosting members after the end of the chain, and a last one that was no better than chance.
    """
    if is_assembled(run_dir):
        return read_member_run_dirs(run_dir)
    members = resolve_members(config)
    if not members:
        return {SINGLE_MEMBER: run_dir}
    rounds = read_rounds(run_dir) if config.ensemble.boosting else None
    names = [member.name for member in members if rounds is None or not rounds.excludes(member.name)]
    return {name: run_dir.member(name) for name in names}


def find_trained_models(run_dir: RunDir, config: Config) -> tuple[list[TrainedModel], list[str]]:
    """Return the trained models of a run, and the names of the members whose training is not finished.

    A member has one model, which `evaluate.checkpoint` chooses; with `ensemble.snapshots` it has one for each cycle of its
    schedule.

    Raises:
        ChoralError: no member is finished, the models were trained on different classes, or boosting members are out of
            date (see `check_boosting_chain`).
    """
    if is_assembled(run_dir):
        return read_assembled_models(run_dir), []
    check_boosting_chain(run_dir, config)
    models: list[TrainedModel] = []
    unfinished: list[str] = []
    for name, member in member_run_dirs(run_dir, config).items():
        if member.result is None:
            unfinished.append(name)
            continue
        models += _find_member_models(name, member, config)
    if not models:
        reason = f"{', '.join(unfinished)}; train them first" if unfinished else _boosting_stop_reason(run_dir)
        raise ChoralError(f"{run_dir.path}: no member has finished training ({reason})")
    check_same_outputs(str(run_dir.path), models)
    return models, unfinished


def check_boosting_chain(run_dir: RunDir, config: Config) -> None:
    """Raise ChoralError, naming them, if boosting members were trained with sample weights that have changed since.

    A member's round is written before its result. It is removed when an earlier round is trained again and turns out
    differently.
    """
    if not config.ensemble.boosting:
        return
    rounds = read_rounds(run_dir)
    alphas = rounds.alphas if rounds is not None else {}
    stale = [
        name
        for name, member in member_run_dirs(run_dir, config).items()
        if member.result is not None and name not in alphas
    ]
    if stale:
        raise ChoralError(
            f"{run_dir.path}: {', '.join(stale)}: trained with the sample weights of an earlier version of the round "
            f"before; delete {', '.join(str(run_dir.member(name).path) for name in stale)} and start again to train them anew"
        )


def _find_member_models(name: str, member: RunDir, config: Config) -> list[TrainedModel]:
    """Return the models of a member whose training is finished."""
    cycles = config.ensemble.snapshots
    if not cycles:
        return [read_trained_model(name, name, member, *find_weights(member.checkpoints, config.evaluate.checkpoint))]
    snapshots = find_snapshots(member.checkpoints)
    if len(snapshots) != cycles:
        raise ChoralError(
            f"{member.path}: has {len(snapshots)} of {cycles} snapshots; delete its result.json and the checkpoints after "
            "the missing one, and train it again: it continues from there"
        )
    return [
        read_trained_model(f"{name}.{number}", name, member, *place) for number, place in enumerate(snapshots, start=1)
    ]


def _boosting_stop_reason(run_dir: RunDir) -> str:
    rounds = read_rounds(run_dir)
    assert rounds is not None, "a run without unfinished members and without models is a boosting chain that has ended"
    return rounds.ended
