"""The networks of a bundle as members that an evaluation asks, in the same pass as those of runs.

Only what belongs to the networks is read of bundle.json here; how the bundle answers is `choral.deploy.bundle.read`'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choral.config import Config
from choral.config.files import from_values
from choral.core.checksums import check_sum, sums_of
from choral.core.errors import DataError
from choral.inference.trained_models import TrainedModel
from choral.models.output_spec import Outputs

if TYPE_CHECKING:
    import torch
    from torch import nn

FILE = "bundle.json"
WEIGHTS = "model.safetensors"
"""In the folder of each of its networks."""


@dataclass(frozen=True)
class BundledModel(TrainedModel):
    """A network of a bundle; `checkpoint` is its folder there, and its norms are folded into the layers before them."""

    def load(self, device: torch.device) -> nn.Module:
        """Return the network in evaluation mode on `device`; DataError where its weights are not what they were."""
        from safetensors.torch import load_file  # torch only where a network is needed

        from choral.models.build import restore_model

        path = self.checkpoint / self.weights
        check_sum(path, self.weights_hash)
        model = replace(self.config.model, weights="none")
        network = restore_model(model, len(self.outputs.names), self.config.data.image_size, load_file(path))
        return network.to(device).eval()


def is_bundle(path: Path) -> bool:
    """Return whether a folder is there and a bundle's."""
    return (path / FILE).is_file()


def read_bundled_models(bundle: Path) -> list[BundledModel]:
    """Return the networks of a bundle, in its order; weights are verified when they are loaded.

    Raises:
        DataError: bundle.json is damaged.
    """
    content, sums = _content_of(bundle)
    try:
        return [_voice_of(bundle, content, entry, sums) for entry in content["members"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{bundle / FILE}: is not understood ({error!r}); export the bundle again") from error


def read_bundle_config(bundle: Path) -> Config:
    """Return the config of the run that a bundle comes from, with its members and views those that the bundle hears."""
    content, _ = _content_of(bundle)
    answer = content["answer"]
    config = from_values(content["provenance"]["config"], where=str(bundle / FILE))
    even = len(set(answer["views"].values())) == 1
    asked = replace(
        config.evaluate,
        views=tuple(answer["views"]),
        average=answer["average"],
        keep_views=config.evaluate.keep_views if even else True,  # others are weighted after the evaluation
    )
    return replace(config, evaluate=asked)


def _content_of(bundle: Path) -> tuple[dict[str, Any], dict[str, str]]:
    sums = sums_of(bundle)
    if FILE not in sums:
        raise DataError(f"{bundle}: its checksums say nothing of {FILE}; export the bundle again")
    check_sum(bundle / FILE, sums[FILE])
    content: dict[str, Any] = json.loads((bundle / FILE).read_text(encoding="utf-8"))
    return content, sums


def _voice_of(bundle: Path, content: dict[str, Any], entry: dict[str, Any], sums: dict[str, str]) -> BundledModel:
    name, input_spec, provenance = str(entry["name"]), entry["look"], content["provenance"]
    config = from_values(provenance["members"][name], where=f"{bundle / FILE}: {name}")
    return BundledModel(
        name=name,
        member=name,
        config=config,
        checkpoint=bundle / entry["folder"],
        outputs=Outputs.from_meta(entry["outputs"]),
        mean=tuple(input_spec["mean"]),
        std=tuple(input_spec["std"]),
        weights=WEIGHTS,
        weights_hash=sums[f"{entry['folder']}/{WEIGHTS}"],
        dataset=str(provenance["data"]["fingerprints"][name]),
    )
