"""A bundle: one folder with everything that answers for an image, and nothing that is ever unpickled.

    BUNDLE/
      bundle.json            how it answers, of what members, on which inputs, where it comes from, what it scores
      README.md              the model card
      members/NAME/          model.safetensors and config.json: a timm folder
      golden/                a few images, and what was said about them when the bundle was made
      model.onnx, ...        the whole ensemble as one file, where asked for
      SHA256SUMS             of all the files above; `sha256sum -c SHA256SUMS` reads it, too

Reading a bundle computes every checksum again: a file that was damaged on its way, or changed by hand, is refused by name.
That tells accidents, not forgers, who would write new checksums.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from choral.config.ensemble import LEGAL_NAME
from choral.core.checksums import SUMS as SUMS
from choral.core.checksums import check_sums, leaves
from choral.core.checksums import seal as seal
from choral.core.errors import ConfigError, DataError
from choral.data.loading.crop import Crop
from choral.data.loading.input_spec import ImageSpec, InputSpec
from choral.data.loading.resize import Resize
from choral.deploy.bundle.engine import Input, inputs_of
from choral.deploy.bundle.model_card import card_of
from choral.inference.bundled_models import FILE as FILE  # as others know them
from choral.inference.bundled_models import WEIGHTS as WEIGHTS
from choral.inference.bundled_models import is_bundle as is_bundle
from choral.models.output_spec import Outputs
from choral.runs.run_dir import json_text
from choral.scoring.policy import PredictionPolicy

FORMAT = "choral-bundle-1"
CARD = "README.md"
_DAMAGED = "copy the bundle again, or export it again"


@dataclass(frozen=True)
class BundledMember:
    """A network of a bundle, as bundle.json describes it.

    Attributes:
        name: as answers call it.
        folder: with its files.
        architecture: timm's name of it.
        look: what it is shown.
        outputs: what its numbers mean.
        folded: (norm, layer) names of modules: the norm is nothing but a shift now, see `choral.deploy.bundle.fuse`.
        weights_sha256: of the checkpoint that it comes from.
    """

    name: str
    folder: Path
    architecture: str
    input_spec: InputSpec
    outputs: Outputs
    folded: tuple[tuple[str, str], ...]
    weights_sha256: str


@dataclass(frozen=True)
class Bundle:
    """What bundle.json says.

    Attributes:
        path: of the folder.
        name: of the run that it comes from.
        answering: how members are heard, and what is decided.
        members: in the order of `answering.members`.
        max_pixels: height x width above which no image is decoded.
        forms: file name to what is known of it: of the whole ensemble in one file.
        content: of bundle.json.
    """

    path: Path
    name: str
    answering: PredictionPolicy
    members: tuple[BundledMember, ...]
    max_pixels: int
    forms: Mapping[str, Mapping[str, Any]]
    content: Mapping[str, Any]

    @property
    def task(self) -> str:
        """Multiclass, multilabel or regression."""
        return self.answering.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, labels or targets."""
        return self.answering.classes

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What images are prepared for its members."""
        return inputs_of([member.input_spec for member in self.members])


def read_bundle(path: Path) -> Bundle:
    """Return what a bundle says, once every byte of it was found to be what it was when it was made.

    Raises:
        ConfigError: there is no bundle.
        DataError: a file is damaged or missing, or was written by another version of choral.
    """
    if not is_bundle(path):
        raise ConfigError(f"{path}: no bundle (no {FILE}); `choral export RUN {path}` makes one")
    sums = check_sums(path)
    try:
        content = json.loads((path / FILE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path / FILE}: format {content['format']!r}, expected {FORMAT!r}: export again")
        bundle = _bundle_of(path, content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path / FILE}: is not understood ({error!r}); {_DAMAGED}") from error
    folders = [member.folder.relative_to(path).as_posix() for member in bundle.members]
    for name in (FILE, *(f"{folder}/{WEIGHTS}" for folder in folders), *bundle.forms):
        if name not in sums:
            raise DataError(f"{path / SUMS}: is damaged: it says nothing of {name}; {_DAMAGED}")
    return bundle


def update(path: Path, changes: Mapping[str, Any]) -> None:
    """Replace keys of bundle.json, after files were added to the folder, with the card and the checksums in one moment."""
    content = {**json.loads((path / FILE).read_text(encoding="utf-8")), **changes}
    seal(path, {FILE: json_text(content).encode(), CARD: card_of(content).encode()})


def member_json(member: BundledMember) -> dict[str, Any]:
    """Return what bundle.json says of a member."""
    input_spec = member.input_spec
    return {
        "name": member.name,
        "folder": f"members/{member.folder.name}",
        "architecture": member.architecture,
        "weights_sha256": member.weights_sha256,
        "look": {
            "size": input_spec.form.size,
            "crop": input_spec.form.crop.kind,
            "crop_pct": input_spec.form.crop.crop_pct,
            "resize": input_spec.form.resize,
            "mean": list(input_spec.mean),
            "std": list(input_spec.std),
            "channels_last": input_spec.channels_last,
        },
        "outputs": member.outputs.meta(),
        "folded": [list(pair) for pair in member.folded],
    }


def _bundle_of(path: Path, content: Mapping[str, Any]) -> Bundle:
    answering = PredictionPolicy.from_json(content["answer"])
    members = tuple(_member_of(path, entry) for entry in content["members"])
    if [member.name for member in members] != list(answering.members):
        raise ValueError("members that are not those that are heard")
    if any((one.outputs.task, one.outputs.names) != (answering.task, answering.classes) for one in members):
        raise ValueError("members with other outputs than the bundle")
    if any(LEGAL_NAME.fullmatch(name) is None for name in content["forms"]):
        raise ValueError("forms that are no file names")
    return Bundle(path, str(content["name"]), answering, members, int(content["max_pixels"]), content["forms"], content)


def _member_of(path: Path, entry: Mapping[str, Any]) -> BundledMember:
    input_spec, folder = entry["look"], str(entry["folder"])
    if leaves(folder):
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
        outputs=Outputs.from_meta(entry["outputs"]),
        folded=tuple((str(norm), str(layer)) for norm, layer in entry["folded"]),
        weights_sha256=str(entry["weights_sha256"]),
    )
