"""Whether all forms of a bundle, and the run that it comes from, say the same about every sample of a split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from choral.core.errors import ChoralError
from choral.deploy.bundle.engine import Engine, Predicted
from choral.deploy.bundle.forms import open_form
from choral.deploy.bundle.predictor import Predictor, torch_device
from choral.deploy.bundle.read import Bundle, read_bundle
from choral.deploy.bundle.split_predictions import apart, hear, of_ledger
from choral.deploy.bundle.verify import GPU_TOLERANCE, TOLERANCE
from choral.inference.ledger import Ledger
from choral.inference.trained_models import find_trained_models
from choral.runs.run_dir import RunDir

LEDGER, UNFUSED, TORCH = "ledger", "unfused", "torch"


@dataclass(frozen=True)
class SplitRow:
    """How one way to ask differs from the reference.

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
        rows: one for each way to ask.
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
    """Ask a bundle in each of its forms about all of a split, and the run that it comes from where that is there.

    Args:
        path: of the bundle.
        split: of the data; "": the validation split.
        data: folder of the shards; "": where the run had them.
        run: folder or name; "": the name that the bundle has, if there is such a run.
        device: of networks; forms in one file are asked on the CPU.
        tolerance: of probabilities; None: as of `choral.deploy.bundle.verify.verify_bundle`.

    Raises:
        ConfigError, DataError: there is no such bundle, split or run, or it is damaged.
    """
    bundle = read_bundle(path)
    engines: dict[str, Engine] = {}
    folder, why = _run_of(bundle, run)
    if folder is not None:
        models, _ = find_trained_models(folder, folder.config())
        engines[UNFUSED] = Predictor.of_voices(
            bundle.name, models, bundle.answering, bundle.max_pixels, device=device
        ).engine
    engines[TORCH] = Predictor.of_bundle(bundle, device).engine
    engines |= {name: open_form(path / name) for name in bundle.forms}
    heard = hear(bundle, engines, split, data)
    reference, name = heard.said[TORCH], TORCH
    if folder is not None:
        found, why = _ledger_of(bundle, folder, heard.split, heard.keys)
        if found is not None:
            reference, name = found, LEDGER
    rows = []
    for form, said in heard.said.items():
        largest, same = apart(bundle.answering, said, reference)
        exact = form not in bundle.forms or bundle.forms[form]["precision"] == "fp32"
        rows.append(SplitRow(form, largest, same, exact))
    usual = TOLERANCE if torch_device(device).type == "cpu" else GPU_TOLERANCE
    usual *= bundle.answering.calibration.steepness
    return SplitCheck(heard.split, len(heard.keys), name, why, usual if tolerance is None else tolerance, tuple(rows))


def _run_of(bundle: Bundle, run: str) -> tuple[RunDir | None, str]:
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


def _ledger_of(bundle: Bundle, folder: RunDir, split: str, keys: list[str]) -> tuple[Predicted | None, str]:
    ledger = folder.predictions / f"{split}.parquet"
    if not ledger.is_file():
        return None, f"{folder.path} has not been evaluated on '{split}'"
    try:
        return of_ledger(bundle.answering, Ledger.open(ledger), keys), ""
    except ChoralError as error:
        return None, str(error)
