"""Write the bundle of a run: its networks, fused, with all that is needed to ask them, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from choral.config import Config
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.data.shards.index import Dataset, Index
from choral.deploy.bundle.engine import inputs_of
from choral.deploy.bundle.fuse import find_foldable, fold
from choral.deploy.bundle.golden import chosen_images, made_images, write_golden
from choral.deploy.bundle.model_card import card_of
from choral.deploy.bundle.output_dir import check_place, new_folder
from choral.deploy.bundle.predictor import Predictor
from choral.deploy.bundle.provenance import licences_of, provenance_of
from choral.deploy.bundle.read import CARD, FILE, FORMAT, BundledMember, member_json, read_bundle, seal
from choral.deploy.bundle.scores import scores_of, slices_by_column
from choral.deploy.bundle.timm_folder import write_timm_folder
from choral.deploy.bundle.verify import Verified, verify_bundle
from choral.inference.trained_models import TrainedModel
from choral.runs.run_dir import RunDir, json_text
from choral.scoring.policy import PredictionPolicy


@dataclass(frozen=True)
class Written:
    """What came of an export.

    Attributes:
        verified: the golden samples, asked again.
        folded: of how many norms each member's network was rid, by name.
        megabytes: of the folder.
    """

    verified: Verified
    folded: Mapping[str, int]
    megabytes: float


def write_bundle(
    folder: RunDir,
    config: Config,
    models: Sequence[TrainedModel],
    answering: PredictionPolicy,
    out: Path,
    force: bool = False,
) -> Written:
    """Write a bundle, and check that it answers as the networks do that it was made of.

    Args:
        folder, config: of the run.
        voices: of the run; those that are heard are put in.
        answering: how they are to answer.
        out: the folder, which appears when it is complete.
        force: replace a bundle that is there.

    Raises:
        ConfigError: the folder is there.
        DataError: a checkpoint or the data are damaged.
        ChoralError: what was written answers otherwise than the run, or the disk does not take it; nothing is left.
    """
    check_place(out, force)
    by_name = {model.name: model for model in models}
    heard = [by_name[name] for name in answering.members]
    max_pixels = config.data.max_pixels
    plain = Predictor.of_voices(folder.name, heard, answering, max_pixels, device="cpu")
    with new_folder(out) as aside:
        members = [_write_member(model, aside) for model in heard]
        images = _golden_images(config, members, plain)
        pixels = [np.stack(parts) for parts in zip(*(plain.prepare(plain.decode(one)) for one in images), strict=True)]
        write_golden(aside, images, pixels, plain.engine.ask(pixels))
        content: dict[str, Any] = {
            "format": FORMAT,
            "name": folder.name,
            "task": answering.task,
            "classes": list(answering.classes),
            "answer": answering.to_json(),
            "members": [member_json(member) for member in members],
            "inputs": [
                {
                    "name": item.name,
                    "shape": ["batch", item.form.size, item.form.size, 3],
                    "dtype": "uint8",
                    "order": "RGB",
                }
                for item in inputs_of([member.input_spec for member in members])
            ],
            "max_pixels": max_pixels,
            "forms": {},
            "golden": len(images),
            "licences": licences_of(config, heard),
            "scores": scores_of(folder, config, answering),
            "slices": slices_by_column(folder, config, answering),
            "provenance": provenance_of(folder, config, heard),
        }
        seal(aside, {FILE: json_text(content).encode(), CARD: card_of(content).encode()})
        verified = verify_bundle(aside, device="cpu")
        if not verified.passed:
            (worst,) = verified.checks
            raise ChoralError(
                f"{out}: the fused networks say something else than those of {folder.path}: {worst.difference:.1e} apart "
                f"in a probability, expected at most {worst.tolerance:.0e}. Nothing was written; please report the "
                f"architecture: {', '.join(sorted({member.architecture for member in members}))}"
            )
        size = sum(file.stat().st_size for file in aside.rglob("*") if file.is_file()) / 1e6
    verified = Verified(read_bundle(out), verified.samples, verified.pixels, verified.checks)
    return Written(verified, {member.name: len(member.folded) for member in members}, size)


def _write_member(model: TrainedModel, bundle: Path) -> BundledMember:
    """Fold the norms of a network, and write it as a timm folder."""
    size = model.config.data.image_size
    network = model.load(torch.device("cpu"))
    pairs = find_foldable(network, torch.zeros(1, 3, size, size))
    fold(network, pairs)
    folder = bundle / "members" / model.name
    member = BundledMember(
        model.name, folder, model.config.model.name, model.input_spec, model.outputs, tuple(pairs), model.weights_hash
    )
    write_timm_folder(folder, network, model.input_spec, model.outputs)
    return member


def _golden_images(config: Config, members: Sequence[BundledMember], plain: Predictor) -> list[bytes]:
    """Return encoded images of the validation split that can be read, or made ones."""
    count, size = config.export.golden, max(member.input_spec.form.size for member in members)
    if not count:
        return made_images(size)
    try:
        dataset = Dataset.open(config.data.shards)
        found = list(islice(filter(plain.can_read, chosen_images(Index.open(dataset, config.data.val_split))), count))
    except (DataError, ConfigError) as error:
        raise DataError(
            f"golden samples come from split '{config.data.val_split}' of {config.data.shards}, which cannot be read: "
            f"{error}; with export.golden=0 they are made"
        ) from error
    return found or made_images(size)
