"""Measures recall and precision of label error detection on planted errors.

    python tests/bench/bench_label_errors.py                 # digits: seconds
    python tests/bench/bench_label_errors.py --flipped 0.1 --seeds 5

Handwritten digits (scikit-learn's 1,797, as they ship with it), some of whose labels are changed to another class at random.
Predictions are out of fold, from five-fold cross-validation of a logistic regression on the pixels, written as the held-out
predictions of a run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))


def find_suspects(folder: Path, labels: NDArray[np.int64], predictions: NDArray[np.float32]) -> set[int]:
    """Return the samples whose labels are suspected, given held-out predictions."""
    from choral.analysis.label_errors import find_label_errors
    from choral.inference.ledger import Ledger
    from choral.scoring.predictor import Predictor
    from made_runs import made_run, write_ledger

    names = tuple(str(number) for number in range(predictions.shape[1]))
    keys = [f"{number:06d}" for number in range(len(labels))]
    few = slice(0, 50)  # a val split, whose suspects are ignored
    run, config = made_run(
        folder,
        {"val": (labels[few], {("a", "identity"): predictions[few]})},
        ["ensemble.folds=5", "ensemble.members=[{name: net}]"],
        classes=names,
    )
    write_ledger(
        run.predictions / "held-out.parquet",
        labels,
        {("net", "identity"): predictions},
        classes=names,
        keys=keys,
        evaluation="e-folds",
    )
    ledger = Ledger.open(run.predictions / "val.parquet")
    found = find_label_errors(run, config, Predictor("member/a", ledger, ledger.predictions("a"), True))
    return {int(one.key) for one in found.suspects if one.split == "train"}


def main() -> int:
    """Print one row per seed, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flipped", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    images, truth = load_digits(return_X_y=True)
    rows = []
    print("seed  planted  listed  found %  precision %")
    for seed in range(options.seeds):
        random = np.random.default_rng(seed)
        planted = random.choice(len(truth), round(options.flipped * len(truth)), replace=False)
        labels = truth.astype(np.int64)
        labels[planted] = (labels[planted] + random.integers(1, 10, len(planted))) % 10
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        model = LogisticRegression(C=0.1, max_iter=500)
        predictions = cross_val_predict(model, images / 16, labels, cv=folds, method="predict_proba").astype(np.float32)
        with tempfile.TemporaryDirectory() as name:
            listed = find_suspects(Path(name) / "runs" / "digits", labels, predictions)
        hits = len(listed & set(planted.tolist()))
        rows.append((100 * hits / len(planted), 100 * hits / max(1, len(listed))))
        print(f"{seed:4}  {len(planted):7}  {len(listed):6}  {rows[-1][0]:7.1f}  {rows[-1][1]:11.1f}")
    print("mean  found {:.1f} %, precision {:.1f} %".format(*np.mean(rows, axis=0)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
