"""A service that asks about what waits together, beside the same service that asks about one image after the other.

    python tests/bench/bench_serve.py                                        # a minute or two on two cores
    python tests/bench/bench_serve.py --bundle bundles/cells --clients 64    # a bundle of your own
    python tests/bench/bench_serve.py --device cuda

JPEGs of 300 x 300 from clients in a process of their own, each sending the next image once it has the answer to the last.
Both services run at the same time in this process, and are asked in turn within a round; which goes first alternates. CPU
seconds are those of the services, all threads, without the clients: they hold on a busy machine, where the clock does not.
"together" is the default (--batch-size 32 --wait-ms 5), "alone" is --batch-size 1. With --threads 0 torch uses all cores.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def images(count: int) -> list[bytes]:
    """Return encoded photographs, as far as a decoder can tell."""
    import numpy as np
    from PIL import Image

    found = []
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((300, 300), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def seconds_of(port: int, clients: int, bodies: Sequence[bytes]) -> tuple[float, list[float]]:
    """Send all images and return how long that took, and each answer; in a process of its own."""

    def client(own: Sequence[bytes]) -> list[float]:
        line, waited = HTTPConnection("127.0.0.1", port, timeout=120), []
        for body in own:
            started = time.perf_counter()
            line.request("POST", "/predict", body, {"Content-Type": "image/jpeg"})
            answer = line.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            waited.append(time.perf_counter() - started)
        return waited

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        waited = [
            one for each in pool.map(client, [bodies[place::clients] for place in range(clients)]) for one in each
        ]
    return time.perf_counter() - started, waited


def made_predictor(options: argparse.Namespace) -> Any:
    """Return a bundle's predictor, or one of a single network with random weights."""
    from choral.deploy.bundle.predictor import Predictor

    if options.bundle:
        return Predictor.load(options.bundle, device=options.device, form=options.form)
    from choral.config import ModelConfig
    from choral.data.loading.crop import Crop
    from choral.data.loading.input_spec import ImageSpec, InputSpec
    from choral.deploy.bundle.engine import LoadedMember, build_engine_inputs
    from choral.deploy.bundle.fuse import find_foldable, fold, strip
    from choral.deploy.bundle.graph import TorchEngine
    from choral.deploy.bundle.predictor import resolve_device
    from choral.models.build import build_model
    from choral.models.output_spec import OutputSpec
    from choral.scoring.apply_policy import build_default_policy

    import torch  # isort: skip

    device = resolve_device(options.device)
    network = build_model(ModelConfig(name=options.model, weights="none"), 2, options.size, seed=0).eval()
    pairs = find_foldable(network, torch.zeros(1, 3, options.size, options.size))
    fold(network, pairs)
    strip(network, pairs)
    input_spec = InputSpec(ImageSpec(options.size, Crop("center"), "antialias"), (0.5,) * 3, (0.25,) * 3)
    policy = build_default_policy("multiclass", ("no", "yes"), ("model",), ("identity",))
    member = LoadedMember("model", network, input_spec, OutputSpec("multiclass", ("no", "yes"), (), ()))
    return Predictor(
        options.model, policy, build_engine_inputs([input_spec]), 10**7, TorchEngine([member], policy, device)
    )


def batches_of(service: Any) -> tuple[float, float]:
    """Return how many images and batches there have been."""
    lines = service.client.get("/metrics").text.splitlines()
    figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return float(figures["choral_batch_images_sum"]), float(figures["choral_batch_images_count"])


def main() -> int:
    """Measure in rounds and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="instead of a network with random weights")
    parser.add_argument("--form", default="torch", help="of the bundle (default: %(default)s)")
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="of timm (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="of its input (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=320, help="a round and service (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: as many as it likes)")
    options = parser.parse_args()
    import logging

    from made_service import running

    import torch  # isort: skip

    from choral.runs.memory import retain_freed_memory

    logging.getLogger("httpx").setLevel(logging.WARNING)
    if options.threads:
        torch.set_num_threads(options.threads)
    retain_freed_memory()  # as `choral serve` does
    predictor, arms = made_predictor(options), {"together": 32, "alone": 1}
    bodies, rounds = images(options.requests), []
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        services = {name: stack.enter_context(running(predictor, batch_size=size)) for name, size in arms.items()}
        for service in services.values():  # what each does for the first time is left out
            pool.submit(seconds_of, service.port, options.clients, bodies[: 2 * options.clients]).result()
        before = batches_of(services["together"])
        for number in range(options.rounds):
            found = {}
            for name in list(arms) if number % 2 == 0 else list(arms)[::-1]:
                cpu = time.process_time()
                clock, waited = pool.submit(seconds_of, services[name].port, options.clients, bodies).result()
                found[name] = (clock, time.process_time() - cpu, waited)
            rounds.append(found)
        after = batches_of(services["together"])
    what = f"{options.bundle} ({options.form})" if options.bundle else f"{options.model} at {options.size} pixels"
    print(
        f"{what} on {options.device}, {torch.get_num_threads()} threads, {options.clients} clients, {options.rounds} rounds\n"
    )
    print(f"{'':12}{'images/s':>10}{'CPU ms':>10}{'median ms':>12}{'95 % ms':>10}")
    for name in arms:
        waited = sorted(1000 * one for found in rounds for one in found[name][2])
        rate = statistics.median(options.requests / found[name][0] for found in rounds)
        cpu = 1000 * statistics.median(found[name][1] for found in rounds) / options.requests
        middle, late = statistics.median(waited), waited[int(0.95 * len(waited))]
        print(f"{name:12}{rate:10.1f}{cpu:10.1f}{middle:12.1f}{late:10.1f}")
    cells = []
    for kind in (0, 1):
        ratios = [found["alone"][kind] / found["together"][kind] for found in rounds]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"\ntogether is {cells[0]} times as fast by the clock, {cells[1]} by the CPU", end="")
    print(f"; {(after[0] - before[0]) / (after[1] - before[1]):.1f} images a batch")
    return 0


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent / "support"), str(here.parents[1] / "src")]
    sys.exit(main())
