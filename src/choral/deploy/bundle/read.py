"""A bundle: one directory with everything that is needed to predict images, and nothing that is ever unpickled.

    BUNDLE/
      bundle.json            policy, members, inputs, provenance and scores
      README.md              the model card
      members/NAME/          model.safetensors and config.json: a timm folder
      golden/                a few images and the reference predictions for them
      model.onnx, ...        the whole ensemble as one file, if exported
      SHA256SUMS             of all the files above; `sha256sum -c SHA256SUMS` reads it, too

Reading a bundle computes every checksum again: a file that was damaged on its way, or changed by hand, is refused by name.
That detects accidents, not forgery: a forger would write new checksums.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from choral.config.fields import NAME_PATTERN
from choral.core.checksums import CHECKSUMS_FILE as CHECKSUMS_FILE
from choral.core.checksums import escapes_folder, verify_checksums
from choral.core.checksums import write_checksums as write_checksums
from choral.core.errors import ConfigError, DataError
from choral.data.loading.crop import Crop
from choral.data.loading.input_spec import ImageSpec, InputSpec
from choral.data.loading.resize import Resize
from choral.deploy.bundle.engine import EngineInput, build_engine_inputs
from choral.deploy.bundle.model_card import render_model_card
from choral.inference.bundled_models import BUNDLE_FILE as BUNDLE_FILE  # as others know them
from choral.inference.bundled_models import WEIGHTS_FILE as WEIGHTS_FILE
from choral.inference.bundled_models import is_bundle as is_bundle
from choral.models.output_spec import OutputSpec
from choral.runs.run_dir import format_json
from choral.scoring.policy import PredictionPolicy

FORMAT = "choral-bundle-1"
CARD = "README.md"
_DAMAGED = "copy the bundle again, or export it again"


@dataclass(frozen=True)
class BundledMember:
    """A model of a bundle, as bundle.json describes it.

    Attributes:
        name: its name in predictions.
        folder: the directory of its files.
        architecture: timm's name of it.
        input_spec: size, crop, resize, mean and std of its input.
        outputs: the meaning of its outputs.
        folded: (norm, layer) names of modules: the norm is nothing but a shift now, see `choral.deploy.bundle.fuse`.
        weights_sha256: of the checkpoint that it comes from.
    """

    name: str
    folder: Path
    architecture: str
    input_spec: InputSpec
    outputs: OutputSpec
    folded: tuple[tuple[str, str], ...]
    weights_sha256: str


@dataclass(frozen=True)
class Bundle:
    """The content of bundle.json.

    Attributes:
        path: of the folder.
        name: of the run that it comes from.
        policy: combination, calibration and decision.
        members: in the order of `policy.members`.
        max_pixels: height x width above which no image is decoded.
        forms: the exported files of the whole ensemble, by name, with their facts.
        content: bundle.json as read.
    """

    path: Path
    name: str
    policy: PredictionPolicy
    members: tuple[BundledMember, ...]
    max_pixels: int
    forms: Mapping[str, Mapping[str, Any]]
    content: Mapping[str, Any]

    @property
    def task(self) -> str:
        """Multiclass, multilabel or regression."""
        return self.policy.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, labels or targets."""
        return self.policy.classes

    @property
    def inputs(self) -> tuple[EngineInput, ...]:
        """What images are prepared for its members."""
        return build_engine_inputs([member.input_spec for member in self.members])


def read_bundle(path: Path) -> Bundle:
    """Read a bundle after verifying the checksum of every file.

    Raises:
        ConfigError: there is no bundle.
        DataError: a file is damaged or missing, or was written by another version of choral.
    """
    if not is_bundle(path):
        raise ConfigError(f"{path}: no bundle (no {BUNDLE_FILE}); `choral export RUN {path}` makes one")
    sums = verify_checksums(path)
    try:
        content = json.loads((path / BUNDLE_FILE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path / BUNDLE_FILE}: format {content['format']!r}, expected {FORMAT!r}: export again")
        bundle = _parse_bundle(path, content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path / BUNDLE_FILE}: is not understood ({error!r}); {_DAMAGED}") from error
    folders = [member.folder.relative_to(path).as_posix() for member in bundle.members]
    for name in (BUNDLE_FILE, *(f"{folder}/{WEIGHTS_FILE}" for folder in folders), *bundle.forms):
        if name not in sums:
            raise DataError(f"{path / CHECKSUMS_FILE}: is damaged: it does not list {name}; {_DAMAGED}")
    return bundle


def update_bundle(path: Path, changes: Mapping[str, Any]) -> None:
    """Replace keys of bundle.json, after files were added to the folder, with the card and the checksums in one moment."""
    content = {**json.loads((path / BUNDLE_FILE).read_text(encoding="utf-8")), **changes}
    write_checksums(path, {BUNDLE_FILE: format_json(content).encode(), CARD: render_model_card(content).encode()})


def member_to_json(member: BundledMember) -> dict[str, Any]:
    """Return the entry of a member in bundle.json."""
    input_spec = member.input_spec
    return {
        "name": member.name,
        "folder": f"members/{member.folder.name}",
        "architecture": member.architecture,
        "weights_sha256": member.weights_sha256,
        "look": {
            "size": input_spec.image_spec.size,
            "crop": input_spec.image_spec.crop.kind,
            "crop_pct": input_spec.image_spec.crop.crop_pct,
            "resize": input_spec.image_spec.resize,
            "mean": list(input_spec.mean),
            "std": list(input_spec.std),
            "channels_last": input_spec.channels_last,
        },
        "outputs": member.outputs.meta(),
        "folded": [list(pair) for pair in member.folded],
    }


def _parse_bundle(path: Path, content: Mapping[str, Any]) -> Bundle:
    policy = PredictionPolicy.from_json(content["answer"])
    members = tuple(_parse_member(path, entry) for entry in content["members"])
    if [member.name for member in members] != list(policy.members):
        raise ValueError("its members differ from those of the policy")
    if any((one.outputs.task, one.outputs.names) != (policy.task, policy.classes) for one in members):
        raise ValueError("members with other outputs than the bundle")
    if any(NAME_PATTERN.fullmatch(name) is None for name in content["forms"]):
        raise ValueError("forms that are no file names")
    return Bundle(path, str(content["name"]), policy, members, int(content["max_pixels"]), content["forms"], content)


def _parse_member(path: Path, entry: Mapping[str, Any]) -> BundledMember:
    input_spec, folder = entry["look"], str(entry["folder"])
    if escapes_folder(folder):
        raise ValueError(f"a member's folder {folder!r}")
    if input_spec["resize"] not in ("antialias", "fast"):
        raise ValueError(f"resize {input_spec['resize']!r}")
    form = ImageSpec(
        int(input_spec["size"]),
        Crop(input_spec["crop"], crop_pct=float(input_spec["crop_pct"])),
        cast(Resize, input_spec["resize"]),
    )
    mean, std = tuple(map(float, input_spec["mean"])), tuple(map(float, input_spec["std"]))
    return BundledMember(
        name=str(entry["name"]),
        folder=path / folder,
        architecture=str(entry["architecture"]),
        input_spec=InputSpec(form, mean, std, bool(input_spec["channels_last"])),
        outputs=OutputSpec.from_meta(entry["outputs"]),
        folded=tuple((str(norm), str(layer)) for norm, layer in entry["folded"]),
        weights_sha256=str(entry["weights_sha256"]),
    )
