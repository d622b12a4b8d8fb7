"""One pass over the data with five members and eight views, compared with forty passes of one member and one view each.

    python tests/bench/bench_tta.py                              # some minutes on two cores
    python tests/bench/bench_tta.py --model resnet18 --size 128  # networks, not images, take most of the time

JPEGs of 500 x 400; members with random weights, three with one input size and two with another. The decoded cache is off,
because it would hide what is measured. "input" is bytes to float batches without a network; "all" is the evaluation as
`choral evaluate` does it in each process, including the ledger. The two variants alternate, so that ratios hold on a busy
machine; CPU seconds are those of all threads. The probabilities of both must agree to 1e-6.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VIEWS = ("identity", "hflip", "vflip", "rot90", "rot180", "rot270", "transpose", "antitranspose")


def made_run(place: Path, options: argparse.Namespace) -> Any:
    """Pack images, and return the run directory of five members with random weights."""
    from bench_stream import make_images

    from choral.config.files import load_config
    from choral.data.packing.options import PackOptions
    from choral.data.packing.pack import pack
    from made_members import made_members

    make_images(place / "images", options.images)
    pack(str(place / "images"), place / "shards", PackOptions(processes=1, val=0.1, test=0.8))
    larger = f"set: {{data.image_size: {options.size + 32}}}"
    members = ", ".join(f"{{name: m{number}, {larger if number > 3 else 'set: {}'}}}" for number in range(1, 6))
    (place / "bench.yaml").write_text(
        f"data: {{shards: '{place / 'shards'}', image_size: {options.size}, cache_gib: 0}}\n"
        f"model: {{name: {options.model}, weights: none}}\n"
        f"ensemble: {{members: [{members}]}}\n"
        "evaluate: {splits: [test], views: [d4], keep_views: true, checkpoint: last}\n"
    )
    return made_members(load_config(place / "bench.yaml"), place / "run")


Seconds = tuple[float, float]
"""Wall-clock and CPU seconds."""


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


def since(started: Seconds) -> Seconds:
    clock, cpu = now()
    return clock - started[0], cpu - started[1]


def measure_input(config: Any, groups: Sequence[Sequence[Any]], run: Any, place: Path) -> Seconds:
    """Return how long the batches of one pass take for each group of input specs."""
    import numpy as np

    from choral.data.loading.device_loader import DeviceLoader
    from choral.data.loading.host_loader import BatchRequest
    from choral.data.loading.host_stage import HostStage
    from choral.data.loading.input_spec import distinct_image_specs
    from choral.data.loading.rank_place import RankPlace
    from choral.data.loading.split import open_dataset, open_split
    from choral.inference.chunks import Chunks

    where = RankPlace(0, 1, run.device)
    split = open_split(config, open_dataset(config.data), "test", where)
    chunks = Chunks(np.arange(len(split)), 64)
    started = now()
    for input_specs in groups:
        requests = (BatchRequest(chunks.rows_in(chunk), 0, chunk) for chunk in range(len(chunks)))
        stage = HostStage(config.data, split, where, place / "bad.jsonl")
        host = stage.load(requests, distinct_image_specs(input_specs))
        with DeviceLoader(host, run.device, input_specs) as loader:
            for _ in loader:
                pass
    return since(started)


def warm_up(folder: Any, run: Any) -> None:
    """Evaluate without measuring the time."""
    from choral.inference.evaluation_pass import evaluate

    evaluate(folder.config(), folder, run, force=True)


def measure(place: Path, folder: Any, run: Any) -> tuple[dict[str, Seconds], float]:
    """Run both variants once; return seconds, and the largest difference of probabilities."""
    import numpy as np

    from choral.inference.evaluation_pass import evaluate
    from choral.inference.ledger import Ledger
    from choral.inference.run_models import find_trained_models

    config = folder.config()
    models, _ = find_trained_models(folder, config)
    input_specs = list(dict.fromkeys(model.input_spec for model in models))
    found = {"input, one": measure_input(config, [input_specs], run, place)}
    found["input, forty"] = measure_input(config, [[model.input_spec] for model in models for _ in VIEWS], run, place)
    started = now()
    evaluate(config, folder, run, force=True)
    found["all, one"] = since(started)
    together = Ledger.open(folder.predictions / "test.parquet")
    forty, worst = (0.0, 0.0), 0.0
    for model in models:
        alone = folder.member(model.name)
        for view in VIEWS:
            own = alone.config().replace(evaluate=config.evaluate.replace(views=(view,)))
            started = now()
            evaluate(own, alone, run, force=True)
            clock, cpu = since(started)
            forty = (forty[0] + clock, forty[1] + cpu)
            ledger = Ledger.open(alone.predictions / "test.parquet")
            difference = np.abs(ledger.predictions("model", view) - together.predictions(model.name, view)).max()
            worst = max(worst, float(difference))
    found["all, forty"] = forty
    return found, worst


def main() -> int:
    """Measure in rounds and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=200, help="number of images, of which 80 %% are evaluated (default: %(default)s)"
    )
    parser.add_argument("--model", default="test_efficientnet", help="timm model (default: %(default)s, a tiny one)")
    parser.add_argument(
        "--size",
        type=int,
        default=96,
        help="input size of three members; that of the others is 32 larger (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    from choral.core.process_group import Runtime

    with tempfile.TemporaryDirectory() as text:
        place = Path(text)
        folder = made_run(place, options)
        run = Runtime("no", 1, 600, place / "stop")
        warm_up(folder, run)  # imports, page cache
        rounds = [measure(place, folder, run) for _ in range(options.rounds)]
    print(
        f"5 members of {options.model} x 8 views, {options.size} and {options.size + 32} pixels, {options.rounds} rounds\n"
    )
    print(f"{'':18}{'one pass, s':>14}{'forty passes, s':>18}{'ratio':>24}")
    for part in ("input", "all"):
        for kind, unit in enumerate(("clock", "CPU")):
            one, forty = ([found[f"{part}, {arm}"][kind] for found, _ in rounds] for arm in ("one", "forty"))
            ratios = [after / before for before, after in zip(one, forty, strict=True)]
            spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
            name = f"{part}, {unit}"
            print(f"{name:18}{statistics.median(one):14.2f}{statistics.median(forty):18.2f}{spread:>24}")
    worst = max(difference for _, difference in rounds)
    print(f"\nlargest difference of a probability: {worst:.1e}")
    return 0 if worst <= 1e-6 else 1


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent / "support"), str(here.parents[1] / "src")]
    sys.exit(main())
