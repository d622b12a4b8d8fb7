"""Worker processes: their death is detected and reported, and none outlives the loader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from choral.core.errors import DataError
from choral.data.loading.bad_samples import BadSamples
from choral.data.loading.crop import Crop
from choral.data.loading.host_loader import BatchRequest, HostLoader
from choral.data.loading.input_spec import ImageSpec
from choral.data.loading.sample_pipeline import SamplePipeline
from choral.data.loading.worker_process import ProcessWorkerPool, WorkerError
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore


class TroubledStore(LocalStore):
    """Calls `trouble` instead of reading the sample of `row`."""

    def __init__(self, index: Index, row: int, trouble: Callable[[], bytes]) -> None:
        super().__init__(index.dataset)
        record = index.row(row)
        self._arguments = index, row, trouble
        self._at, self._trouble = (record.shard, record.offset), trouble

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return TroubledStore, self._arguments

    def read(self, shard: int, offset: int, length: int) -> bytes:
        return self._trouble() if (shard, offset) == self._at else super().read(shard, offset, length)


def be_killed() -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def exit_silently() -> bytes:
    os._exit(3)


def fail() -> bytes:
    raise ZeroDivisionError("a bug")


def wait_for_ever() -> bytes:
    time.sleep(1000)
    raise AssertionError


def loader(index: Index, store: LocalStore, workers: int = 2, batches: int = 3) -> HostLoader:
    requests = [BatchRequest(np.arange(13), 0, step) for step in range(batches)]
    samples = SamplePipeline(index, store, [ImageSpec(24, Crop(), "fast")])
    return HostLoader(samples, requests, workers=workers, worker_kind="process", policy=BadSamples("fail"))


def pids(batches: HostLoader) -> list[int]:
    assert isinstance(batches._pool, ProcessWorkerPool)
    return [worker.pid for worker in batches._pool._workers]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(numbers: list[int], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while any(map(is_running, numbers)):
        assert time.monotonic() < deadline, "workers are still running"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("trouble", "how"),
    [(be_killed, r"was killed by SIGKILL \(out of memory\?\)"), (exit_silently, "ended with exit status 3")],
)
def test_a_dying_worker_is_reported_with_its_samples(index: Index, trouble: Callable[[], bytes], how: str) -> None:
    batches = loader(index, TroubledStore(index, 4, trouble))
    held, following = index.keys([4, 5])
    message = f"decoding process [01] {how} while it was decoding sample '{held}'(; next in its task: .*'{following}')?"
    with pytest.raises(DataError, match=message), batches:
        next(batches)


def test_an_idle_worker_that_is_killed_is_detected_soon(index: Index, store: LocalStore) -> None:
    with loader(index, store, batches=100) as batches:
        next(batches).release()
        os.kill(pids(batches)[1], signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(DataError, match="decoding process 1 was killed by SIGKILL"):
            while True:
                next(batches).release()
        assert time.monotonic() - started < 5


def test_a_killed_worker_is_detected_while_another_hangs(index: Index) -> None:
    with loader(index, TroubledStore(index, 0, wait_for_ever), workers=1) as batches:
        time.sleep(0.5)
        os.kill(pids(batches)[0], signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(DataError, match="killed by SIGKILL"):
            next(batches)
        assert time.monotonic() - started < 5


def test_a_bug_in_a_worker_is_raised_with_its_traceback(index: Index) -> None:
    batches = loader(index, TroubledStore(index, 4, fail))
    with pytest.raises(RuntimeError, match="decoding failed in epoch 0, step 0") as caught, batches:
        next(batches)
    assert isinstance(caught.value.__cause__, WorkerError)
    assert "in fail" in str(caught.value.__cause__) and "ZeroDivisionError: a bug" in str(caught.value.__cause__)


def test_closing_stops_even_hanging_workers(index: Index) -> None:
    batches = loader(index, TroubledStore(index, 4, wait_for_ever))
    workers = pids(batches)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    batches.close()
    batches.close()
    assert not any(map(is_running, workers))
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors - 3, "a pipe and two connections"
    assert list(batches) == []


def test_a_garbage_collected_loader_stops_its_workers(index: Index, store: LocalStore) -> None:
    batches = loader(index, store)
    workers = pids(batches)
    del batches
    assert not any(map(is_running, workers))


def test_signals_that_stop_a_job_do_not_stop_its_workers(index: Index, store: LocalStore) -> None:
    with loader(index, store, batches=6) as batches:
        next(batches).release()  # the workers have started and block signals
        for pid in pids(batches):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                os.kill(pid, number)
        for _ in range(5):
            next(batches).release()


PARENT = """
import sys, time
import numpy as np
from choral.data.loading.bad_samples import BadSamples
from choral.data.loading.crop import Crop
from choral.data.loading.host_loader import BatchRequest, HostLoader
from choral.data.loading.input_spec import ImageSpec
from choral.data.loading.sample_pipeline import SamplePipeline
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore

index = Index.open(Dataset.open(sys.argv[1]), "train")
requests = (BatchRequest(np.arange(13), 0, step) for step in range(10**9))
samples = SamplePipeline(index, LocalStore(index.dataset), [ImageSpec(24, Crop(), "fast")])
loader = HostLoader(samples, requests, workers=2, worker_kind="process", policy=BadSamples("fail"))
batch = next(loader)
print(*[worker.pid for worker in loader._pool._workers], flush=True)
if sys.argv[2] == "end":
    sys.exit()  # without closing, while holding a batch
while True:
    batch.release()
    batch = next(loader)
"""


def start_parent(packed: Path, what: str) -> tuple[subprocess.Popen[str], list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(packed), what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_killed_parent(packed: Path, number: int) -> None:
    process, workers = start_parent(packed, "run")
    assert len(workers) == 2
    process.send_signal(number)
    process.communicate(timeout=30)
    wait_until_gone(workers, 10)


def test_ctrl_c_stops_all_with_one_traceback(packed: Path) -> None:
    process, workers = start_parent(packed, "run")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    wait_until_gone(workers, 10)


def test_exit_without_closing_is_silent_and_leaves_nothing(packed: Path) -> None:
    before = set(Path("/dev/shm").iterdir())
    process, workers = start_parent(packed, "end")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and errors == ""
    wait_until_gone(workers, 10)
    assert set(Path("/dev/shm").iterdir()) <= before
