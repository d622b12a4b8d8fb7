"""The trained networks of a run: which there are, what they need, and how they are loaded. torch comes with the first one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from choral.checkpoints import read_meta, weights_of
from choral.config import Config, members_of
from choral.errors import ChoralError
from choral.model.outputs import Outputs
from choral.runfolder import RunFolder

if TYPE_CHECKING:
    import torch
    from torch import nn

SINGLE = "model"
"""What the only member of a run without an `ensemble:` section is called."""


@dataclass(frozen=True)
class Voice:
    """A trained network that has not been loaded yet."""

    name: str
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
    def inputs(self) -> tuple[object, ...]:
        """What decides how its images are prepared: voices with equal inputs share their batches."""
        data = self.config.data
        return (data.image_size, data.resize, data.eval_crop, data.crop_pct, self.mean, self.std)

    def load(self, device: torch.device) -> nn.Module:
        """Return the network in evaluation mode on `device`; its checkpoint's hashes are verified."""
        from choral.model.build import restore_model  # torch only where a network is needed
        from choral.model.checkpoint import load_model_tensors

        tensors = load_model_tensors(self.checkpoint, self.weights)
        model = replace(self.config.model, weights="none")
        network = restore_model(model, len(self.outputs.names), self.config.data.image_size, tensors)
        return network.to(device).eval()


def member_folders(folder: RunFolder, config: Config) -> dict[str, RunFolder]:
    """Return where the members of a run live, by name; a run without members is its own only one."""
    members = members_of(config)
    return {member.name: folder.member(member.name) for member in members} if members else {SINGLE: folder}


def voices_of(folder: RunFolder, config: Config) -> tuple[list[Voice], list[str]]:
    """Return the trained members of a run, and the names of those whose training is not finished.

    Raises:
        ChoralError: none is finished, or they were trained on different classes.
    """
    voices: list[Voice] = []
    unfinished: list[str] = []
    for name, member in member_folders(folder, config).items():
        if member.result is None:
            unfinished.append(name)
            continue
        checkpoint, weights = weights_of(member.checkpoints, config.evaluate.checkpoint)
        meta = read_meta(checkpoint)
        voices.append(
            Voice(
                name=name,
                config=member.config(),
                checkpoint=checkpoint,
                outputs=Outputs.from_meta(meta),
                mean=tuple(meta["mean"]),
                std=tuple(meta["std"]),
                weights=weights,
                weights_hash=str(meta["sha256"][weights]),
                dataset=str(meta["dataset"]),
            )
        )
    if not voices:
        raise ChoralError(f"{folder.path}: no member has finished training ({', '.join(unfinished)}); train them first")
    for voice in voices:
        if not voice.outputs.agree(voices[0].outputs):
            raise ChoralError(f"{folder.path}: {voice.name} and {voices[0].name} were trained on different classes")
    return voices, unfinished
