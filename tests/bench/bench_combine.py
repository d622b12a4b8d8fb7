"""Rules of combination over a large ledger beside plain NumPy that loads everything, on this machine, in one go.

    python tests/bench/bench_combine.py        # 5 members x 50,000 samples x 1,000 classes: some minutes, 3 GB of disk
    python tests/bench/bench_combine.py --samples 2000 --classes 50

Synthetic probabilities are written as ledgers of a validation and a test split. Each rule is fitted on the first and
applied to the second, in a process of its own, whose seconds, CPU seconds and peak memory (above what it had after its
imports) are measured: by choral, block by block, from the files to the combined ledger; and by a reference in a few lines of
NumPy and SciPy, which holds the predictions of all members at once. The same numbers must come out. A column is the
predictions of one member. The last row is all that `choral combine --rule greedy` does: checksums, fit, temperature, scores
with intervals, and the ledger.
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


def make(folder: Path, members: int, samples: int, classes: int) -> None:
    """Write a run folder with ledgers of val and test; parts of the ranks one by one, so that memory stays small."""
    import numpy as np

    from choral.config.files import load_config
    from choral.data.shards.epoch_plan import slice_of
    from choral.inference.ledger import LedgerMeta, ledger_table, merge_parts, write_part
    from choral.runs.run_dir import RunDir

    (folder / "made.yaml").write_text("data: {shards: nowhere}\n")
    names = tuple(f"m{number}" for number in range(members))
    listed = ", ".join(f"{{name: {name}}}" for name in names)
    run = RunDir(folder / "run")
    run.claim(load_config(folder / "made.yaml", [f"ensemble.members=[{listed}]"]))
    rng, ranks = np.random.default_rng(0), 10
    for split in ("val", "test"):
        meta = LedgerMeta(tuple(f"class{number:04d}" for number in range(classes)), names, ("identity",), split, "d")
        keys = [f"{split}{number:06d}" for number in range(samples)]
        for rank in range(ranks):
            rows = slice_of(samples, rank, ranks)
            count = rows.stop - rows.start
            labels = rng.integers(0, classes, count)
            shared, columns = 1.5 * rng.standard_normal((count, classes), dtype=np.float32), {}
            shared[np.arange(count), labels] += 6
            for number, name in enumerate(names):
                logits = shared + (1 + 0.3 * number) * rng.standard_normal((count, classes), dtype=np.float32)
                powers = np.exp(logits)
                columns[name, "identity"] = powers / powers.sum(1, keepdims=True)
            write_part(folder / "parts", rank, rank + 1, ledger_table(meta, keys[rows], labels, columns))
        merge_parts(folder / "parts", ranks, keys, run.predictions / f"{split}.parquet", meta)


def by_choral(rule: str, folder: Path, out: Path) -> dict[str, Any]:
    """Fit a rule on val, apply it to test, and write the combined ledger."""
    from choral.ensembles import rule_fitting as fitting
    from choral.ensembles.member_predictions import MemberPredictions
    from choral.inference.ledger import Ledger, LedgerMeta, write_combined

    val, test = (Ledger.open(folder / "run" / "predictions" / f"{split}.parquet") for split in ("val", "test"))
    panel, scored = (
        MemberPredictions(val, val.members, ("identity",)),
        MemberPredictions(test, test.members, ("identity",)),
    )
    if rule in ("soft", "hard"):
        fit = fitting.plain(rule, "multiclass")
    elif rule == "temperature":
        fit = fitting.with_temperature(fitting.plain("soft", "multiclass"), panel)
    elif rule == "stack":  # each member a group of its own
        fit = fitting.fit_stacking(panel, test.members, {name: (name,) for name in val.members})
    else:
        by = "accuracy" if rule.endswith("accuracy") else "log_loss"
        evidence = fitting.evidence_of(panel, rivals=by == "accuracy")
        fit = fitting.fit_weights(rule.partition(" ")[0], evidence, by, PICKS)
    meta = LedgerMeta(test.classes, (rule,), ("identity",), "test", "d")
    write_combined(out, meta, test.keys, test.labels, (fit.combiner(stack).predictions for _, stack in scored.blocks()))
    return {
        **fit.weights,
        "temperature": fit.combiner.temperature,
        "strength": fit.strength,
        "biases": fit.combiner.biases,
    }


def by_numpy(rule: str, folder: Path, out: Path, found: dict[str, Any]) -> None:
    """The same in the shortest way; of a stack, the weights that choral found are taken and the scores are made anew."""
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
            weights = _weights_by_scipy(stack[:, rows, labels].T.astype(float))
        elif rule.startswith("greedy"):
            weights = _greedy(stack, labels, rule.endswith("accuracy"))
        else:
            mean = np.log(np.maximum(stack.mean(0), np.finfo(np.float32).eps))
        if rule == "temperature":
            from scipy.optimize import minimize_scalar

            def loss(temperature: float) -> float:
                scores = mean / np.float32(temperature)
                return float((np.log(np.exp(scores).sum(1)) - scores[rows, labels]).mean())

            found["temperature"] = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-5}).x
        del stack
    stack, _ = load("test")
    if rule == "hard":
        ballots = stack.argmax(2)
        said = np.zeros(stack.shape[1:], np.float32)
        for ballot in ballots:
            said[np.arange(len(ballot)), ballot] += np.float32(1 / len(stack))
    elif rule == "stack":
        said = np.tensordot(
            [found[name] for name in found if name.startswith("m")], np.log(np.maximum(stack, 1.2e-7)), 1
        )
        said = np.exp(said + found["biases"])
        said /= said.sum(1, keepdims=True)
    else:
        said = stack.mean(0) if weights is None else np.tensordot(weights, stack, 1)
    if rule == "temperature":
        said = np.maximum(said, np.finfo(np.float32).eps) ** (1 / found["temperature"])
        said /= said.sum(1, keepdims=True)
    np.save(out, said.astype(np.float32))


def _weights_by_scipy(truths: Any) -> Any:
    import numpy as np
    from scipy.optimize import minimize

    members = truths.shape[1]
    return minimize(
        lambda weights: -np.log(truths @ weights).mean(),
        np.full(members, 1 / members),
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    ).x


def _greedy(stack: Any, labels: Any, by_accuracy: bool) -> Any:
    """Caruana et al. 2004 in so many words, over all classes."""
    import numpy as np

    rows, total, taken, found = np.arange(len(labels)), np.zeros(stack.shape[1:], np.float32), [], []
    for _ in range(PICKS):
        candidates = []
        for values in stack:
            mean = (total + values) / (len(taken) + 1)
            loss = float(-np.log(mean[rows, labels].astype(float)).mean())
            candidates.append((-float((mean.argmax(1) == labels).mean()), loss) if by_accuracy else (loss,))
        taken.append(min(range(len(stack)), key=candidates.__getitem__))
        found.append(candidates[taken[-1]])
        total += stack[taken[-1]]
    best = min(range(PICKS), key=found.__getitem__)
    return np.bincount(taken[: best + 1], minlength=len(stack)) / (best + 1)


def everything(folder: Path) -> None:
    """All that the command does."""
    from choral.cli import workflow
    from choral.ensembles.saved_combination import Asked
    from choral.runs.run_dir import RunDir

    workflow.combine(RunDir(folder / "run"), "test", Asked(rule="greedy", picks=PICKS, name="all"))


def child(rule: str, way: str, folder: Path) -> None:
    """Do one piece of work, and print seconds and peak memory in bytes."""
    import scipy.optimize  # noqa: F401

    import choral.cli.workflow  # noqa: F401  imports are not measured

    Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is that of the work; also after a fork
    before, started, worked = peak(), time.perf_counter(), time.process_time()
    notes = folder / f"{rule}.json"
    if way == "all":
        everything(folder)
    elif way == "choral":
        notes.write_text(json.dumps(by_choral(rule, folder, folder / f"{rule}.parquet")))
    else:
        by_numpy(rule, folder, folder / f"{rule}.npy", json.loads(notes.read_text()))
    cpu = time.process_time() - worked  # of all threads; other work on the machine does not count
    print(json.dumps({"s": time.perf_counter() - started, "cpu": cpu, "bytes": peak() - before}))


def peak() -> int:
    """Return the highest memory in use since it was last reset, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measured(rule: str, way: str, folder: Path) -> dict[str, float]:
    """Run a child and return what it measured."""
    command = [sys.executable, __file__, "--child", rule, way, str(folder)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


def difference(rule: str, folder: Path) -> float:
    """Return the largest difference of the two combinations."""
    import numpy as np

    from choral.inference.ledger import Ledger

    reference, start, largest = np.load(folder / f"{rule}.npy", mmap_mode="r"), 0, 0.0
    for (block,) in Ledger.open(folder / f"{rule}.parquet").blocks():
        largest = max(largest, float(np.abs(block - reference[start : start + len(block)]).max()))
        start += len(block)
    return largest


def main() -> int:
    """Measure every rule both ways, print the table, and return 1 where results differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1], Path(options.child[2]))
        return 0
    column, worst = 4 * options.samples * options.classes, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.members, options.samples, options.classes)
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
            mine, theirs = measured(rule, "choral", folder), measured(rule, "numpy", folder)
            gap = difference(rule, folder)
            worst = max(worst, gap)
            (folder / f"{rule}.npy").unlink()
            print(
                f"{rule:20}{mine['s']:8.1f}{mine['cpu']:8.1f}{mine['bytes'] / column:9.2f}         "
                f"{theirs['cpu']:7.1f}{theirs['bytes'] / column:9.2f}   "
                f"{mine['cpu'] / theirs['cpu']:5.2f}{mine['bytes'] / theirs['bytes']:8.2f}  {gap:.0e}",
                flush=True,
            )
        mine = measured("greedy", "all", folder)
        print(f"{'choral combine':20}{mine['s']:8.1f}{mine['cpu']:8.1f}{mine['bytes'] / column:9.2f}")
    print(f"\nequal to within {worst:.1e}" if worst < 1e-3 else f"\nNOT EQUAL: {worst:.1e}")
    return int(worst >= 1e-3)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main())
