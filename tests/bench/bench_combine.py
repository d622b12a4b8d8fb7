"""Combination rules on a large ledger, against NumPy code that loads everything.

    python tests/bench/bench_combine.py        # 5 members x 50,000 samples x 1,000 classes: some minutes, 3 GB of disk
    python tests/bench/bench_combine.py --samples 2000 --classes 50

Synthetic probabilities are written as ledgers of a validation and a test split. Each rule is fitted on the first and applied
to the second, in a process of its own, which measures seconds, CPU seconds and peak memory (above that after its imports): by
choral, block by block, from the files to the combined ledger; and by a reference of a few lines of NumPy and SciPy, which
holds the predictions of all members at once. Both must give the same numbers. A column is the predictions of one member. The
last row is the whole of `choral combine --rule greedy`: checksums, fit, temperature, scores with intervals, and the ledger.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RULES = ("soft", "hard", "weighted", "greedy", "greedy by accuracy", "stack", "temperature")
PICKS = 25


def write_run(folder: Path, members: int, samples: int, classes: int) -> None:
    """Write a run directory with ledgers of val and test, one part after the other, so that memory stays small."""
    import numpy as np

    from choral.config.files import load_config
    from choral.data.shards.epoch_plan import rank_slice
    from choral.inference.ledger import LedgerMeta, build_ledger_table, merge_parts, write_part
    from choral.runs.run_dir import RunDir

    (folder / "made.yaml").write_text("data: {shards: nowhere}\n")
    names = tuple(f"m{number}" for number in range(members))
    listed = ", ".join(f"{{name: {name}}}" for name in names)
    run = RunDir(folder / "run")
    run.store_config(load_config(folder / "made.yaml", [f"ensemble.members=[{listed}]"]))
    rng, ranks = np.random.default_rng(0), 10
    for split in ("val", "test"):
        meta = LedgerMeta(tuple(f"class{number:04d}" for number in range(classes)), names, ("identity",), split, "d")
        keys = [f"{split}{number:06d}" for number in range(samples)]
        for rank in range(ranks):
            rows = rank_slice(samples, rank, ranks)
            count = rows.stop - rows.start
            labels = rng.integers(0, classes, count)
            shared, columns = 1.5 * rng.standard_normal((count, classes), dtype=np.float32), {}
            shared[np.arange(count), labels] += 6
            for number, name in enumerate(names):
                logits = shared + (1 + 0.3 * number) * rng.standard_normal((count, classes), dtype=np.float32)
                powers = np.exp(logits)
                columns[name, "identity"] = powers / powers.sum(1, keepdims=True)
            write_part(folder / "parts", rank, rank + 1, build_ledger_table(meta, keys[rows], labels, columns))
        merge_parts(folder / "parts", ranks, keys, run.predictions / f"{split}.parquet", meta)


def combine_with_choral(rule: str, folder: Path, out: Path) -> dict[str, Any]:
    """Fit a rule on val, apply it to test, and write the combined ledger."""
    from choral.ensembles import rule_fitting as fitting
    from choral.ensembles.member_predictions import MemberPredictions
    from choral.inference.ledger import Ledger, LedgerMeta, write_combined

    val, test = (Ledger.open(folder / "run" / "predictions" / f"{split}.parquet") for split in ("val", "test"))
    validation, scored = (
        MemberPredictions(val, val.members, ("identity",)),
        MemberPredictions(test, test.members, ("identity",)),
    )
    if rule in ("soft", "hard"):
        fit = fitting.unfitted_rule(rule, "multiclass")
    elif rule == "temperature":
        fit = fitting.fit_temperature(fitting.unfitted_rule("soft", "multiclass"), validation)
    elif rule == "stack":  # each member is a group
        fit = fitting.fit_stacking_rule(validation, test.members, {name: (name,) for name in val.members})
    else:
        by = "accuracy" if rule.endswith("accuracy") else "log_loss"
        statistics = fitting.compute_statistics(validation, candidates=by == "accuracy")
        fit = fitting.fit_weights(rule.partition(" ")[0], statistics, by, PICKS)
    meta = LedgerMeta(test.classes, (rule,), ("identity",), "test", "d")
    write_combined(out, meta, test.keys, test.labels, (fit.combiner(stack).predictions for _, stack in scored.blocks()))
    return {
        **fit.weights,
        "temperature": fit.combiner.temperature,
        "strength": fit.strength,
        "biases": fit.combiner.biases,
    }


def combine_with_numpy(rule: str, folder: Path, out: Path, fit: dict[str, Any]) -> None:
    """Do the same in as few lines as possible; a stack is only applied, with the weights that choral fitted."""
    import numpy as np
    import pyarrow.parquet as pq

    def load(split: str) -> tuple[Any, Any]:
        table = pq.read_table(folder / "run" / "predictions" / f"{split}.parquet")
        columns = [
            table[name].combine_chunks().flatten().to_numpy().reshape(len(table), -1) for name in table.column_names[2:]
        ]
        return np.stack(columns), table["label"].to_numpy()

    weights = None
    if rule in ("weighted", "greedy", "greedy by accuracy", "temperature"):
        stack, labels = load("val")
        rows = np.arange(len(labels))
        weights = np.full(len(stack), 1 / len(stack))
        if rule == "weighted":
            weights = _scipy_weights(stack[:, rows, labels].T.astype(float))
        elif rule.startswith("greedy"):
            weights = _greedy(stack, labels, rule.endswith("accuracy"))
        else:
            mean = np.log(np.maximum(stack.mean(0), np.finfo(np.float32).eps))
        if rule == "temperature":
            from scipy.optimize import minimize_scalar

            def loss(temperature: float) -> float:
                scores = mean / np.float32(temperature)
                return float((np.log(np.exp(scores).sum(1)) - scores[rows, labels]).mean())

            fit["temperature"] = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-5}).x
        del stack
    stack, _ = load("test")
    if rule == "hard":
        votes = stack.argmax(2)
        combined = np.zeros(stack.shape[1:], np.float32)
        for vote in votes:
            combined[np.arange(len(vote)), vote] += np.float32(1 / len(stack))
    elif rule == "stack":
        combined = np.tensordot(
            [fit[name] for name in fit if name.startswith("m")], np.log(np.maximum(stack, 1.2e-7)), 1
        )
        combined = np.exp(combined + fit["biases"])
        combined /= combined.sum(1, keepdims=True)
    else:
        combined = stack.mean(0) if weights is None else np.tensordot(weights, stack, 1)
    if rule == "temperature":
        combined = np.maximum(combined, np.finfo(np.float32).eps) ** (1 / fit["temperature"])
        combined /= combined.sum(1, keepdims=True)
    np.save(out, combined.astype(np.float32))


def _scipy_weights(true_probabilities: Any) -> Any:
    import numpy as np
    from scipy.optimize import minimize

    members = true_probabilities.shape[1]
    return minimize(
        lambda weights: -np.log(true_probabilities @ weights).mean(),
        np.full(members, 1 / members),
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    ).x


def _greedy(stack: Any, labels: Any, by_accuracy: bool) -> Any:
    """Return weights of greedy selection as in Caruana et al. 2004, over all classes."""
    import numpy as np

    rows, total, picks, found = np.arange(len(labels)), np.zeros(stack.shape[1:], np.float32), [], []
    for _ in range(PICKS):
        candidates = []
        for values in stack:
            mean = (total + values) / (len(picks) + 1)
            loss = float(-np.log(mean[rows, labels].astype(float)).mean())
            candidates.append((-float((mean.argmax(1) == labels).mean()), loss) if by_accuracy else (loss,))
        picks.append(min(range(len(stack)), key=candidates.__getitem__))
        found.append(candidates[picks[-1]])
        total += stack[picks[-1]]
    best = min(range(PICKS), key=found.__getitem__)
    return np.bincount(picks[: best + 1], minlength=len(stack)) / (best + 1)


def run_combine_command(folder: Path) -> None:
    """Run the whole of `choral combine`."""
    from choral.cli.workflow.scores import combine
    from choral.ensembles.saved_combination import CombinationRequest
    from choral.runs.run_dir import RunDir

    combine(RunDir(folder / "run"), "test", CombinationRequest(rule="greedy", picks=PICKS, name="all"))


def run_child(rule: str, implementation: str, folder: Path) -> None:
    """Run one implementation of a rule, and print seconds and peak memory in bytes."""
    import scipy.optimize  # noqa: F401

    import choral.cli.workflow  # noqa: F401  imports are not measured

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, also after a fork
    before, started, cpu_started = read_peak_memory(), time.perf_counter(), time.process_time()
    notes = folder / f"{rule}.json"
    if implementation == "all":
        run_combine_command(folder)
    elif implementation == "choral":
        notes.write_text(json.dumps(combine_with_choral(rule, folder, folder / f"{rule}.parquet")))
    else:
        combine_with_numpy(rule, folder, folder / f"{rule}.npy", json.loads(notes.read_text()))
    cpu = time.process_time() - cpu_started  # of all threads of this process
    print(json.dumps({"s": time.perf_counter() - started, "cpu": cpu, "bytes": read_peak_memory() - before}))


def read_peak_memory() -> int:
    """Return the peak memory since it was last reset, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measure(rule: str, implementation: str, folder: Path) -> dict[str, float]:
    """Run a child process and return its measurements."""
    command = [sys.executable, __file__, "--child", rule, implementation, str(folder)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


def max_difference(rule: str, folder: Path) -> float:
    """Return the largest difference between the two combinations."""
    import numpy as np

    from choral.inference.ledger import Ledger

    reference, start, largest = np.load(folder / f"{rule}.npy", mmap_mode="r"), 0, 0.0
    for (block,) in Ledger.open(folder / f"{rule}.parquet").blocks():
        largest = max(largest, float(np.abs(block - reference[start : start + len(block)]).max()))
        start += len(block)
    return largest


def main() -> int:
    """Measure both implementations of every rule, print the table, and return 1 if results differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.child[0], options.child[1], Path(options.child[2]))
        return 0
    column, worst = 4 * options.samples * options.classes, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder, options.members, options.samples, options.classes)
        size = (folder / "run" / "predictions" / "test.parquet").stat().st_size
        print(
            f"{options.members} members x {options.samples:,} samples x {options.classes:,} classes, "
            f"{size / 1e6:.0f} MB a ledger, a column is {column / 1e6:.0f} MB\n"
        )
        headings = (
            f"{'wall s':>8}{'CPU s':>8}{'columns':>9}   NumPy:{'CPU s':>7}{'columns':>9}   {'CPU':>5}{'memory':>8}"
        )
        print(f"{'':20}{headings}  differs")
        for rule in RULES:
            ours, reference = measure(rule, "choral", folder), measure(rule, "numpy", folder)
            gap = max_difference(rule, folder)
            worst = max(worst, gap)
            (folder / f"{rule}.npy").unlink()
            print(
                f"{rule:20}{ours['s']:8.1f}{ours['cpu']:8.1f}{ours['bytes'] / column:9.2f}         "
                f"{reference['cpu']:7.1f}{reference['bytes'] / column:9.2f}   "
                f"{ours['cpu'] / reference['cpu']:5.2f}{ours['bytes'] / reference['bytes']:8.2f}  {gap:.0e}",
                flush=True,
            )
        ours = measure("greedy", "all", folder)
        print(f"{'choral combine':20}{ours['s']:8.1f}{ours['cpu']:8.1f}{ours['bytes'] / column:9.2f}")
    print(f"\nequal to within {worst:.1e}" if worst < 1e-3 else f"\nNOT EQUAL: {worst:.1e}")
    return int(worst >= 1e-3)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main())
