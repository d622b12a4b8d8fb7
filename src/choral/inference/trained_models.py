"""The trained networks of a run: which there are, what they need, and how they are loaded. torch comes with the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from choral.config import Config, members_of
from choral.core.errors import ChoralError
from choral.data.loading.boosting_weights import rounds_of
from choral.data.loading.crop import Crop
from choral.data.loading.input_spec import ImageSpec, InputSpec
from choral.models.output_spec import Outputs
from choral.runs.checkpoints import read_meta, snapshots_of, weights_of
from choral.runs.run_dir import RunDir, read_json

if TYPE_CHECKING:
    import torch
    from torch import nn

MODELS_FILE, MODELS_FORMAT = "voices.json", "choral-voices-1"
"""Of a run that is assembled of others: which networks are its, and where they lie."""
SINGLE = "model"
"""What the only member of a run without an `ensemble:` section is called."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained network that has not been loaded yet."""

    name: str
    """Of its column in ledgers and its row in tables: the member's, or with snapshots MEMBER.1, MEMBER.2 and so on."""
    member: str
    """Whose training it comes from."""
    config: Config
    checkpoint: Path
    outputs: Outputs
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str
    """Name of the checkpoint's file that holds them."""
    weights_hash: str
    """SHA-256 of that file."""
    dataset: str
    """Fingerprint of the data it was trained on."""

    @property
    def run(self) -> RunDir:
        """The folder of the training that it comes from."""
        return RunDir(self.checkpoint.parent.parent)

    @property
    def inputs(self) -> tuple[object, ...]:
        """What decides how its images are prepared: voices with equal inputs share their batches."""
        data = self.config.data
        return (data.image_size, data.resize, data.eval_crop, data.crop_pct, self.mean, self.std)

    @property
    def input_spec(self) -> InputSpec:
        """What it is shown; voices with equal looks share their batches, and their views."""
        data = self.config.data
        crop = Crop(data.eval_crop, crop_pct=data.crop_pct)
        form = ImageSpec(data.image_size, crop, data.resize)
        return InputSpec(form, self.mean, self.std, self.config.model.channels_last)

    def load(self, device: torch.device) -> nn.Module:
        """Return the network in evaluation mode on `device`; its checkpoint's hashes are verified."""
        from choral.models.build import restore_model  # torch only where a network is needed
        from choral.models.checkpoint_tensors import load_model_tensors

        tensors = load_model_tensors(self.checkpoint, self.weights)
        model = replace(self.config.model, weights="none")
        network = restore_model(model, len(self.outputs.names), self.config.data.image_size, tensors)
        return network.to(device).eval()


def is_assembled(folder: RunDir) -> bool:
    """Whether a run is made of networks of other runs."""
    return (folder.path / MODELS_FILE).is_file()


def member_run_dirs(folder: RunDir, config: Config) -> dict[str, RunDir]:
    """Return where the members of a run live, by name; a run without members is its own only one.

    Members that come after the end of a chain of boosting are none, nor is one that ended it by being no better than chance.
    """
    if is_assembled(folder):
        return {entry["name"]: RunDir(Path(entry["run"])) for entry in _entries(folder)}
    members = members_of(config)
    if not members:
        return {SINGLE: folder}
    rounds = rounds_of(folder) if config.ensemble.boosting else None
    names = [member.name for member in members if rounds is None or not rounds.leaves_out(member.name)]
    return {name: folder.member(name) for name in names}


def check_boosting_chain(folder: RunDir, config: Config) -> None:
    """Refuse members of boosting that were trained with the weights of a round that has come to something else since.

    A member's round is written before its result, and cut off when an earlier round is trained again with another outcome.

    Raises:
        ChoralError: naming them.
    """
    if not config.ensemble.boosting:
        return
    rounds = rounds_of(folder)
    alphas = rounds.alphas if rounds is not None else {}
    stale = [
        name
        for name, member in member_run_dirs(folder, config).items()
        if member.result is not None and name not in alphas
    ]
    if stale:
        raise ChoralError(
            f"{folder.path}: {', '.join(stale)}: trained after another round than the one that is there now; delete "
            f"{', '.join(str(folder.member(name).path) for name in stale)} and start again: they are trained anew"
        )


def find_trained_models(folder: RunDir, config: Config) -> tuple[list[TrainedModel], list[str]]:
    """Return the trained networks of a run, and the names of the members whose training is not finished.

    A member has one network, which `evaluate.checkpoint` chooses, or with `ensemble.snapshots` one from the end of each
    cycle of its schedule.

    Raises:
        ChoralError: none is finished, or they were trained on different classes; see `check_boosting_chain`, too.
    """
    if is_assembled(folder):
        return _assembled_voices(folder), []
    check_boosting_chain(folder, config)
    models: list[TrainedModel] = []
    unfinished: list[str] = []
    for name, member in member_run_dirs(folder, config).items():
        if member.result is None:
            unfinished.append(name)
            continue
        models += _voices_of_member(name, member, config)
    if not models:
        raise ChoralError(f"{folder.path}: no member has finished training ({_why_none(folder, unfinished)})")
    check_same_outputs(str(folder.path), models)
    return models, unfinished


def check_same_outputs(where: str, models: Sequence[TrainedModel]) -> None:
    """Raise ChoralError, naming two of them, unless all voices predict the same classes, labels or targets."""
    for model in models:
        if not model.outputs.agree(models[0].outputs):
            raise ChoralError(f"{where}: {model.name} and {models[0].name} were trained on different classes")


def _entries(folder: RunDir) -> list[dict[str, str]]:
    content = read_json(folder.path / MODELS_FILE) or {}
    if content.get("format") != MODELS_FORMAT:
        raise ChoralError(f"{folder.path / MODELS_FILE}: damaged; delete {folder.path} and evaluate its targets again")
    entries: list[dict[str, str]] = content["voices"]
    return entries


def _assembled_voices(folder: RunDir) -> list[TrainedModel]:
    models = []
    for entry in _entries(folder):
        model = _assembled_voice(entry)
        if model.weights_hash != entry["sha256"]:
            raise ChoralError(
                f"{folder.path}: {model.name}: {model.checkpoint} holds other weights than when it was assembled; evaluate "
                "the same targets again"
            )
        models.append(model)
    return models


def _assembled_voice(entry: Mapping[str, str]) -> TrainedModel:
    from choral.inference.bundled_models import is_bundle, read_bundled_models  # its voices are voices, too

    name, run, checkpoint = entry["name"], Path(entry["run"]), Path(entry["checkpoint"])
    if not is_bundle(run):
        return read_trained_model(name, name, RunDir(run), checkpoint, entry["weights"])
    for model in read_bundled_models(run):
        if model.checkpoint == checkpoint:
            return replace(model, name=name, member=name)
    raise ChoralError(f"{run}: holds no {checkpoint.name} any more; evaluate the same targets again")


def _voices_of_member(name: str, member: RunDir, config: Config) -> list[TrainedModel]:
    """Return the networks of a member whose training is finished."""
    cycles = config.ensemble.snapshots
    if not cycles:
        return [read_trained_model(name, name, member, *weights_of(member.checkpoints, config.evaluate.checkpoint))]
    found = snapshots_of(member.checkpoints)
    if len(found) != cycles:
        raise ChoralError(
            f"{member.path}: has {len(found)} of {cycles} snapshots; delete its result.json and the checkpoints behind the "
            "missing one, and train it again: it continues from there"
        )
    return [read_trained_model(f"{name}.{number}", name, member, *place) for number, place in enumerate(found, start=1)]


def read_trained_model(name: str, member: str, folder: RunDir, checkpoint: Path, weights: str) -> TrainedModel:
    """Return the network whose weights lie in a file of a checkpoint.

    Args:
        name, member: of the voice.
        folder: of the training, whose config says how images are prepared.
        checkpoint, weights: the folder, and the name of the file in it.

    Raises:
        ChoralError: the checkpoint is missing or damaged.
    """
    meta = read_meta(checkpoint)
    return TrainedModel(
        name=name,
        member=member,
        config=folder.config(),
        checkpoint=checkpoint,
        outputs=Outputs.from_meta(meta),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        weights=weights,
        weights_hash=str(meta["sha256"][weights]),
        dataset=str(meta["dataset"]),
    )


def _why_none(folder: RunDir, unfinished: list[str]) -> str:
    if unfinished:
        return f"{', '.join(unfinished)}; train them first"
    rounds = rounds_of(folder)
    assert rounds is not None, "without unfinished members, a chain has ended before the first"
    return rounds.ended
