"""Comparing all forms of a bundle and its run on every sample of a split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from choral.core.errors import ChoralError
from choral.deploy.bundle.engine import Engine, EnsemblePredictions
from choral.deploy.bundle.forms import open_form
from choral.deploy.bundle.predictor import Predictor, resolve_device
from choral.deploy.bundle.read import Bundle, read_bundle
from choral.deploy.bundle.split_predictions import max_difference, predict_split, predictions_from_ledger
from choral.deploy.bundle.verify import GPU_TOLERANCE, TOLERANCE
from choral.inference.ledger import Ledger
from choral.inference.run_models import find_trained_models
from choral.runs.run_dir import RunDir

LEDGER, UNFUSED, TORCH = "ledger", "unfused", "torch"


@dataclass(frozen=True)
class SplitRow:
    """The difference of one form from the reference.

    Attributes:
        form: "unfused": the run's networks as they were trained; "torch": those of the bundle; or a form's file.
        largest: difference of a probability, that of each member's included; of regression a share of the largest number.
        same: samples that are decided alike; None: numbers are no decisions.
        exact: whether it computes in full precision, so that it has to be within the tolerance.
    """

    form: str
    largest: float
    same: int | None
    exact: bool


@dataclass(frozen=True)
class SplitCheck:
    """What `verify_split` found.

    Attributes:
        split: its name.
        n: samples.
        reference: what all are held against: "ledger": what the run's evaluation has left; else "torch".
        why: there is no ledger; "" where there is.
        tolerance: of probabilities.
        rows: one per form.
    """

    split: str
    n: int
    reference: str
    why: str
    tolerance: float
    rows: tuple[SplitRow, ...]

    @property
    def passed(self) -> bool:
        """Whether all in full precision are within the tolerance, and decide alike."""
        exact = [row for row in self.rows if row.exact]
        return all(row.largest <= self.tolerance and row.same in (None, self.n) for row in exact)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {**asdict(self), "passed": self.passed}


def verify_split(
    path: Path, split: str = "", data: str = "", run: str = "", device: str = "cpu", tolerance: float | None = None
) -> SplitCheck:
    """Predict a whole split with every form of a bundle, and with the run that it comes from if it exists.

    Args:
        path: of the bundle.
        split: of the data; "": the validation split.
        data: folder of the shards; "": where the run had them.
        run: folder or name; "": the name that the bundle has, if there is such a run.
        device: device of the models; exported files run on the CPU.
        tolerance: of probabilities; None: as of `choral.deploy.bundle.verify.verify_bundle`.

    Raises:
        ConfigError, DataError: there is no such bundle, split or run, or it is damaged.
    """
    bundle = read_bundle(path)
    engines: dict[str, Engine] = {}
    folder, why = _find_source_run(bundle, run)
    if folder is not None:
        models, _ = find_trained_models(folder, folder.config())
        engines[UNFUSED] = Predictor.from_models(
            bundle.name, models, bundle.policy, bundle.max_pixels, device=device
        ).engine
    engines[TORCH] = Predictor.from_bundle(bundle, device).engine
    engines |= {name: open_form(path / name) for name in bundle.forms}
    split_predictions = predict_split(bundle, engines, split, data)
    reference, name = split_predictions.predictions_by_name[TORCH], TORCH
    if folder is not None:
        found, why = _read_reference(bundle, folder, split_predictions.split, split_predictions.keys)
        if found is not None:
            reference, name = found, LEDGER
    rows = []
    for form, predictions in split_predictions.predictions_by_name.items():
        largest, same = max_difference(bundle.policy, predictions, reference)
        exact = form not in bundle.forms or bundle.forms[form]["precision"] == "fp32"
        rows.append(SplitRow(form, largest, same, exact))
    usual = TOLERANCE if resolve_device(device).type == "cpu" else GPU_TOLERANCE
    usual *= bundle.policy.calibration.steepness
    return SplitCheck(
        split_predictions.split,
        len(split_predictions.keys),
        name,
        why,
        usual if tolerance is None else tolerance,
        tuple(rows),
    )


def _find_source_run(bundle: Bundle, run: str) -> tuple[RunDir | None, str]:
    """Return the run whose networks a bundle has; or None and why not."""
    try:
        folder = RunDir.find(run or bundle.name)
        models, _ = find_trained_models(folder, folder.config())
    except ChoralError as error:
        if run:
            raise
        return None, str(error)
    own = {model.name: model.weights_hash for model in models}
    if any(own.get(member.name) != member.weights_sha256 for member in bundle.members):
        return None, f"{folder.path} has other weights by now"
    return folder, ""


def _read_reference(
    bundle: Bundle, folder: RunDir, split: str, keys: list[str]
) -> tuple[EnsemblePredictions | None, str]:
    ledger = folder.predictions / f"{split}.parquet"
    if not ledger.is_file():
        return None, f"{folder.path} has not been evaluated on '{split}'"
    try:
        return predictions_from_ledger(bundle.policy, Ledger.open(ledger), keys), ""
    except ChoralError as error:
        return None, str(error)
