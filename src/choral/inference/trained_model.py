"""A trained model that has not been loaded yet: checkpoint, preprocessing and outputs. Needs no torch until `load`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from choral.config import Config
from choral.core.errors import ChoralError
from choral.data.loading.crop import Crop
from choral.data.loading.input_spec import ImageSpec, InputSpec
from choral.models.output_spec import OutputSpec
from choral.runs.checkpoints import read_checkpoint_state
from choral.runs.run_dir import RunDir

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class TrainedModel:
    """A trained model that has not been loaded yet."""

    name: str
    """Name of its ledger column and table row: the member's name, or with snapshots MEMBER.1, MEMBER.2 and so on."""
    member: str
    """Member whose training it comes from."""
    config: Config
    checkpoint: Path
    outputs: OutputSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_file: str
    """Name of the file in the checkpoint that holds the weights."""
    weights_hash: str
    """SHA-256 of that file."""
    dataset_fingerprint: str
    """Fingerprint of the data set that it was trained on."""

    @property
    def run_dir(self) -> RunDir:
        """The run directory of its training."""
        return RunDir(self.checkpoint.parent.parent)

    @property
    def preprocessing(self) -> tuple[object, ...]:
        """The settings that decide how its images are prepared; their text is part of an evaluation's hash."""
        data = self.config.data
        return (data.image_size, data.resize, data.eval_crop, data.crop_pct, self.mean, self.std)

    @property
    def input_spec(self) -> InputSpec:
        """Size, crop and normalisation of its input; models with equal input specs share batches and views."""
        data = self.config.data
        crop = Crop(data.eval_crop, crop_pct=data.crop_pct)
        image_spec = ImageSpec(data.image_size, crop, data.resize)
        return InputSpec(image_spec, self.mean, self.std, self.config.model.channels_last)

    def load(self, device: torch.device) -> nn.Module:
        """Load the network in evaluation mode on `device`, after verifying the hashes of its checkpoint."""
        from choral.models.build import restore_model  # torch is imported only where a network is needed
        from choral.models.checkpoint_tensors import load_model_tensors

        tensors = load_model_tensors(self.checkpoint, self.weights_file)
        model = self.config.model.replace(weights="none")
        network = restore_model(model, len(self.outputs.names), self.config.data.image_size, tensors)
        return network.to(device).eval()


def read_trained_model(name: str, member: str, run_dir: RunDir, checkpoint: Path, weights_file: str) -> TrainedModel:
    """Return the model whose weights are in a file of a checkpoint.

    Args:
        name, member: of the model; see `TrainedModel`.
        run_dir: of its training, whose config defines the architecture and the preprocessing.
        checkpoint, weights_file: the checkpoint directory, and the name of the file in it.

    Raises:
        ChoralError: the checkpoint is missing or damaged.
    """
    content = read_checkpoint_state(checkpoint)
    return TrainedModel(
        name=name,
        member=member,
        config=run_dir.config(),
        checkpoint=checkpoint,
        outputs=OutputSpec.from_meta(content),
        mean=tuple(content["mean"]),
        std=tuple(content["std"]),
        weights_file=weights_file,
        weights_hash=str(content["sha256"][weights_file]),
        dataset_fingerprint=str(content["dataset"]),
    )


def check_same_outputs(where: str, models: Sequence[TrainedModel]) -> None:
    """Raise ChoralError, naming two of them, unless all models predict the same classes, labels or targets."""
    for model in models:
        if not model.outputs.agree(models[0].outputs):
            raise ChoralError(f"{where}: {model.name} and {models[0].name} were trained on different classes")
