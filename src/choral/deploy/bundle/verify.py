"""Verifying a bundle: checksums, and the golden samples predicted again by its models and exported files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.deploy.bundle.engine import Engine, EnsemblePredictions
from choral.deploy.bundle.golden import FOLDER, read_golden
from choral.deploy.bundle.predictor import Predictor, resolve_device
from choral.deploy.bundle.read import Bundle, read_bundle
from choral.scoring.policy import PredictionPolicy

TOLERANCE, GPU_TOLERANCE = 1e-5, 2e-3
"""Tolerances of probabilities. A GPU multiplies in TF32, whose mantissa has 10 bits. Lower-precision files are compared with
their own reference; their rounding depends on the processor's instructions, so they have the tolerance of a GPU."""


@dataclass(frozen=True)
class Check:
    """The check of one form: the models, or an exported file.

    Attributes:
        form: "torch", or the name of an exported file.
        difference: the largest difference from the reference predictions, of a probability, or of a number relative to
            the largest one.
        same_decisions: whether all samples have the same decision.
        tolerance: the allowed difference.
    """

    form: str
    difference: float
    same_decisions: bool
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class VerificationReport:
    """What `verify_bundle` found.

    Attributes:
        bundle: the verified bundle.
        samples: golden ones.
        pixels: the largest difference, in levels of 255, of the prepared images from what they were; decoders of other
            versions may differ by a few.
        checks: one a form.
    """

    bundle: Bundle
    samples: int
    pixels: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether each form reproduces its reference predictions."""
        return self.pixels == 0 and all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        checks = [{**vars(check), "passed": check.passed} for check in self.checks]
        return {
            "bundle": str(self.bundle.path),
            "passed": self.passed,
            "samples": self.samples,
            "pixels": self.pixels,
            "checks": checks,
        }


def verify_bundle(path: Path, device: str = "auto", tolerance: float | None = None) -> VerificationReport:
    """Verify every checksum of a bundle, and predict the golden samples with every form.

    Args:
        path: of the folder.
        device: as of `Predictor.load`; exported files run on the CPU.
        tolerance: of probabilities; None: `TOLERANCE`, on a GPU and for lower precision `GPU_TOLERANCE`, times the steepness
            of the calibration, which enlarges what rounding leaves.

    Raises:
        ConfigError: there is no bundle.
        DataError: a file is damaged.
    """
    bundle = read_bundle(path)
    predictor = Predictor.from_bundle(bundle, device)
    usual = TOLERANCE if resolve_device(device).type == "cpu" else GPU_TOLERANCE
    golden = read_golden(path, len(bundle.inputs))
    images = [predictor.prepare(predictor.decode(path / FOLDER / name)) for name in golden.files]
    own = [np.stack(parts) for parts in zip(*images, strict=True)]
    pixels = max(int(np.abs(one.astype(np.int16) - other).max()) for one, other in zip(own, golden.pixels, strict=True))
    steep = bundle.policy.calibration.steepness
    engines: list[tuple[str, Engine, float]] = [("torch", predictor.engine, usual * steep)]
    for name, facts in bundle.forms.items():
        from choral.deploy.bundle.forms import open_form

        exact = facts["precision"] == "fp32"
        engines.append((name, open_form(path / name), (TOLERANCE if exact else GPU_TOLERANCE) * steep))
    checks = []
    for name, engine, allowed in engines:
        expected = read_golden(path, len(bundle.inputs), "" if name == "torch" else name).predicted
        found = engine.predict_batch(golden.pixels)
        checks.append(
            compare_with_reference(name, found, expected, bundle.policy, allowed if tolerance is None else tolerance)
        )
    return VerificationReport(bundle, len(golden.files), pixels, tuple(checks))


def compare_with_reference(
    form: str, found: EnsemblePredictions, expected: EnsemblePredictions, policy: PredictionPolicy, tolerance: float
) -> Check:
    """Compare predictions of the golden samples with their reference."""
    decided, should = (_decided(policy, predictions.combined) for predictions in (found, expected))
    difference = max(
        _difference(found.combined, expected.combined, policy.task),
        _difference(found.by_member, expected.by_member, policy.task),
    )
    return Check(form, difference, bool(np.array_equal(decided, should)), tolerance)


def _decided(policy: PredictionPolicy, predictions: NDArray[np.float32]) -> NDArray[Any]:
    """Return the decisions; numbers are none, and equal where the differences are within the tolerance."""
    return np.zeros(0) if policy.task == "regression" else policy.decide(predictions)


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32], task: str) -> float:
    """Return the largest difference; not finite numbers differ by infinity."""
    away = np.abs(found.astype(np.float64) - expected)
    if task == "regression":  # in the targets' own units, which may be anything
        away /= max(float(np.abs(expected).max()), 1e-12)
    return float(away.max()) if np.isfinite(away).all() else float("inf")


def render(verified: VerificationReport) -> Sequence[tuple[str, str, str, str]]:
    """Return the rows of a table: form, largest difference, decisions, verdict."""
    return [
        (
            check.form,
            f"{check.difference:.1e}",
            "the same" if check.same_decisions else "others",
            "as exported" if check.passed else f"NOT as exported (at most {check.tolerance:.0e})",
        )
        for check in verified.checks
    ]
