"""The models of an exported bundle, as members that an evaluation runs in the same pass as those of runs.

This module reads only what bundle.json says about the models; `choral.deploy.bundle.read` reads the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choral.config import Config
from choral.config.files import config_from_dict
from choral.core.checksums import read_checksums, verify_checksum
from choral.core.errors import DataError
from choral.inference.trained_model import TrainedModel
from choral.models.output_spec import OutputSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
"""In the folder of each model of a bundle."""


@dataclass(frozen=True)
class BundledModel(TrainedModel):
    """A model of a bundle. `checkpoint` is its folder in the bundle; its BatchNorm is fused into the layers before it."""

    def load(self, device: torch.device) -> nn.Module:
        """Load the network in evaluation mode on `device`; DataError if its weights do not match their checksum."""
        from safetensors.torch import load_file  # torch is imported only where a network is needed

        from choral.models.build import restore_model

        path = self.checkpoint / self.weights_file
        verify_checksum(path, self.weights_hash)
        model = self.config.model.replace(weights="none")
        network = restore_model(model, len(self.outputs.names), self.config.data.image_size, load_file(path))
        return network.to(device).eval()


def is_bundle(path: Path) -> bool:
    """Return whether a folder exists and is a bundle."""
    return (path / BUNDLE_FILE).is_file()


def read_bundled_models(bundle: Path) -> list[BundledModel]:
    """Return the models of a bundle, in its order; their weights are verified when they are loaded.

    Raises:
        DataError: bundle.json is damaged.
    """
    content, checksums = _read_content(bundle)
    try:
        return [_read_model(bundle, content, entry, checksums) for entry in content["members"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{bundle / BUNDLE_FILE}: cannot be read ({error!r}); export the bundle again") from error


def read_bundle_config(bundle: Path) -> Config:
    """Return the config of the run that a bundle was exported from, with the views and average that the bundle uses."""
    content, _ = _read_content(bundle)
    policy = content["answer"]
    config = config_from_dict(content["provenance"]["config"], where=str(bundle / BUNDLE_FILE))
    has_equal_weights = len(set(policy["views"].values())) == 1
    evaluate = config.evaluate.replace(
        views=tuple(policy["views"]),
        average=policy["average"],
        # Unequal weights are applied after the evaluation, to the predictions of single views.
        keep_views=config.evaluate.keep_views if has_equal_weights else True,
    )
    return config.replace(evaluate=evaluate)


def _read_content(bundle: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the verified content of bundle.json, and the checksums of the bundle's files."""
    checksums = read_checksums(bundle)
    if BUNDLE_FILE not in checksums:
        raise DataError(f"{bundle}: its checksums do not include {BUNDLE_FILE}; export the bundle again")
    verify_checksum(bundle / BUNDLE_FILE, checksums[BUNDLE_FILE])
    content: dict[str, Any] = json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))
    return content, checksums


def _read_model(
    bundle: Path, content: dict[str, Any], entry: dict[str, Any], checksums: dict[str, str]
) -> BundledModel:
    name, input_spec, provenance = str(entry["name"]), entry["look"], content["provenance"]
    config = config_from_dict(provenance["members"][name], where=f"{bundle / BUNDLE_FILE}: {name}")
    return BundledModel(
        name=name,
        member=name,
        config=config,
        checkpoint=bundle / entry["folder"],
        outputs=OutputSpec.from_meta(entry["outputs"]),
        mean=tuple(input_spec["mean"]),
        std=tuple(input_spec["std"]),
        weights_file=WEIGHTS_FILE,
        weights_hash=checksums[f"{entry['folder']}/{WEIGHTS_FILE}"],
        dataset_fingerprint=str(provenance["data"]["fingerprints"][name]),
    )
