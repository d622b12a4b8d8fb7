"""Writing the bundle of a run: models with folded BatchNorm, preprocessing, policy, scores and provenance."""

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
from choral.deploy.bundle.engine import build_engine_inputs
from choral.deploy.bundle.fuse import find_foldable, fold
from choral.deploy.bundle.golden import iterate_golden_candidates, make_synthetic_images, write_golden
from choral.deploy.bundle.model_card import render_model_card
from choral.deploy.bundle.output_dir import atomic_output_dir, check_output_dir
from choral.deploy.bundle.predictor import Predictor
from choral.deploy.bundle.provenance import describe_provenance, find_licences
from choral.deploy.bundle.read import (
    BUNDLE_FILE,
    CARD,
    FORMAT,
    BundledMember,
    member_to_json,
    read_bundle,
    write_checksums,
)
from choral.deploy.bundle.scores import compute_bundle_scores, compute_bundle_slices
from choral.deploy.bundle.timm_folder import write_timm_folder
from choral.deploy.bundle.verify import VerificationReport, verify_bundle
from choral.inference.trained_model import TrainedModel
from choral.runs.run_dir import RunDir, format_json
from choral.scoring.policy import PredictionPolicy


@dataclass(frozen=True)
class ExportResult:
    """The result of an export.

    Attributes:
        verified: the check of the golden samples.
        folded: the number of folded BatchNorms of each member, by name.
        megabytes: size of the directory.
    """

    verified: VerificationReport
    folded: Mapping[str, int]
    megabytes: float


def write_bundle(
    folder: RunDir,
    config: Config,
    models: Sequence[TrainedModel],
    policy: PredictionPolicy,
    out: Path,
    force: bool = False,
) -> ExportResult:
    """Write a bundle, and check that it predicts as the models that it was made from.

    Args:
        folder, config: of the run.
        models: the models of the run; those of the policy are included.
        policy: combination, calibration and decision.
        out: the folder, which appears when it is complete.
        force: replace a bundle that is there.

    Raises:
        ConfigError: the folder is there.
        DataError: a checkpoint or the data are damaged.
        ChoralError: the bundle predicts otherwise than the run, or writing failed; nothing is left on disk.
    """
    check_output_dir(out, force)
    by_name = {model.name: model for model in models}
    selected = [by_name[name] for name in policy.members]
    max_pixels = config.data.max_pixels
    plain = Predictor.from_models(folder.name, selected, policy, max_pixels, device="cpu")
    with atomic_output_dir(out) as aside:
        members = [_write_member(model, aside) for model in selected]
        images = _golden_images(config, members, plain)
        pixels = [np.stack(parts) for parts in zip(*(plain.prepare(plain.decode(one)) for one in images), strict=True)]
        write_golden(aside, images, pixels, plain.engine.predict_batch(pixels))
        content: dict[str, Any] = {
            "format": FORMAT,
            "name": folder.name,
            "task": policy.task,
            "classes": list(policy.classes),
            "answer": policy.to_json(),
            "members": [member_to_json(member) for member in members],
            "inputs": [
                {
                    "name": item.name,
                    "shape": ["batch", item.image_spec.size, item.image_spec.size, 3],
                    "dtype": "uint8",
                    "order": "RGB",
                }
                for item in build_engine_inputs([member.input_spec for member in members])
            ],
            "max_pixels": max_pixels,
            "forms": {},
            "golden": len(images),
            "licences": find_licences(config, selected),
            "scores": compute_bundle_scores(folder, config, policy),
            "slices": compute_bundle_slices(folder, config, policy),
            "provenance": describe_provenance(folder, config, selected),
        }
        write_checksums(aside, {BUNDLE_FILE: format_json(content).encode(), CARD: render_model_card(content).encode()})
        verified = verify_bundle(aside, device="cpu")
        if not verified.passed:
            (worst,) = verified.checks
            raise ChoralError(
                f"{out}: predictions with folded BatchNorm differ from those of {folder.path} by {worst.difference:.1e} "
                f"in a probability, expected at most {worst.tolerance:.0e}. Nothing was written; please report the "
                f"architecture: {', '.join(sorted({member.architecture for member in members}))}"
            )
        size = sum(file.stat().st_size for file in aside.rglob("*") if file.is_file()) / 1e6
    verified = VerificationReport(read_bundle(out), verified.samples, verified.pixels, verified.checks)
    return ExportResult(verified, {member.name: len(member.folded) for member in members}, size)


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
    count, size = config.export.golden, max(member.input_spec.image_spec.size for member in members)
    if not count:
        return make_synthetic_images(size)
    try:
        dataset = Dataset.open(config.data.shards)
        found = list(
            islice(filter(plain.can_read, iterate_golden_candidates(Index.open(dataset, config.data.val_split))), count)
        )
    except (DataError, ConfigError) as error:
        raise DataError(
            f"golden samples come from split '{config.data.val_split}' of {config.data.shards}, which cannot be read: "
            f"{error}; with export.golden=0 they are made"
        ) from error
    return found or make_synthetic_images(size)
