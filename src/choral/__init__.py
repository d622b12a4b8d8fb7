"""choral: fine-tune pretrained image models, combine them into ensembles, and measure how reliable they are.

The public Python API is what `__all__` lists; everything else may change between versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow

    from choral.deploy.bundle.predictor import Form, Predictor

__all__ = ["__version__", "load", "predictions"]
__version__ = "0.2.0"


def load(bundle: str | Path, device: str = "auto", form: Form = "torch") -> Predictor:
    """Load a bundle and return a predictor for images; see `choral.deploy.bundle.predictor.Predictor`.

    Args:
        bundle: the directory that `choral export` wrote.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" and so on.
        form: "torch" runs its models; "onnx" and "pt2" run the exported file of the whole ensemble, if there is one.

    Raises:
        choral.core.errors.ConfigError: there is no bundle, no such exported file, or no such device.
        choral.core.errors.DataError: a file is damaged.
    """
    from choral.deploy.bundle.predictor import Predictor  # imports torch, which `import choral` does not

    return Predictor.load(bundle, device, form)


def predictions(run: str | Path, split: str = "") -> pyarrow.Table:
    """Return the predictions of a run's last evaluation as an Arrow table, one row per sample.

    Args:
        run: a run directory, the name of one under runs/, or its config file.
        split: an evaluated split, such as "val" or "test@customers"; "": test if it was evaluated, else val.

    Returns:
        Columns `key`, `label`, and "MEMBER/VIEW" for each member and view; see
        `choral.inference.prediction_table.prediction_table`. `table.to_pandas()` makes a DataFrame of it, and
        `numpy.stack(table["model/identity"].to_numpy())` an (n, classes) array of one column.

    Raises:
        choral.core.errors.ConfigError: there is no such run.
        choral.core.errors.ChoralError: the split has not been evaluated, or its file is damaged.
    """
    from choral.inference.ledger import Ledger
    from choral.inference.prediction_table import prediction_table
    from choral.runs.run_dir import RunDir
    from choral.scoring.predictor import resolve_default_split

    found = RunDir.find(str(run))
    name = split or resolve_default_split(found, found.config())
    return prediction_table(Ledger.open(found.predictions / f"{name}.parquet"))
