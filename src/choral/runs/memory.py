"""The largest batch that fits into memory.

On a GPU, a `MemoryProbe` tries batches of rising size; a batch that is too large raises an error, which is caught. On a
CPU, where the system may kill the process instead, it extrapolates from the memory that smaller batches took. A probe runs
the real work, forward and backward passes.

The result is stored in RUN/batch.json and never measured again for that run: the batch size affects the last bits of
predictions, and in training the samples over which BatchNorm averages.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from choral.core.errors import ChoralError, OutOfMemory
from choral.core.process_group import Runtime
from choral.runs.run_dir import RunDir, read_json, write_json

BATCH_FILE = "batch.json"
GPU_MEMORY_FRACTION = 0.9
"""Share of the free GPU memory that a probe may take; fragmentation leaves less to later batches."""
_CPU_MEMORY_FRACTION = 0.7  # the rest is for reading images and for other processes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_MAX_THRESHOLD = 2**31 - 1
_OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "out of memory",
    "Cannot allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception reports that the host or the device is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _OUT_OF_MEMORY_MESSAGES)


@contextmanager
def explain_out_of_memory(size: int, key: str, instead: str) -> Iterator[None]:
    """Convert an out-of-memory error in the block to `OutOfMemory` with advice.

    Args:
        size: images in the batch.
        key: the config key that sets the batch size, with its value.
        instead: what to change.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OutOfMemory(f"out of memory with {size} images at a time ({key}): {instead} ({first})") from error


def retain_freed_memory() -> None:
    """Make malloc keep freed memory, with glibc; for processes that predict on a CPU.

    Otherwise malloc maps and unmaps large activations at every use: prediction then takes 1.6 times the CPU time.
    `jobs.launcher` does the same for the processes that it starts, with environment variables.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAX_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _MAX_THRESHOLD)


def trim_memory() -> None:
    """Return freed memory to the system, with glibc; call it after large temporary allocations."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def find_largest_fitting(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Return the largest of the ascending `sizes` before the first that does not fit; 0 if none fits."""
    largest = 0
    for size in sizes:
        if not fits(size):
            break
        largest = size
    return largest


def doubling_sizes(maximum: int) -> list[int]:
    """Return the powers of two below `maximum`, followed by `maximum`."""
    sizes = [1 << power for power in range(maximum.bit_length()) if 1 << power < maximum]
    return [*sizes, maximum]


class MemoryProbe:
    """Measures whether a batch of a given size fits into the memory of this rank's device.

    Args:
        work: processes a batch of the given size, and releases everything it allocated.
        device: on which `work` runs.
        share: of the host's memory that belongs to this rank, if the device is a CPU.
    """

    def __init__(self, work: Callable[[int], None], device: torch.device, share: float = 1.0) -> None:
        self._work, self._device, self._share = work, device, share
        self._measured: list[tuple[int, float]] = []  # (size, bytes beyond the baseline) of each batch so far
        self._baseline, self._budget = -1, 0.0

    def fits(self, size: int) -> bool:
        """Return whether a batch of `size` fits; call it with ascending sizes.

        On a CPU, a batch that is expected not to fit is not run.
        """
        if self._device.type == "cuda":
            return self._fits_on_gpu(size)
        if self._baseline < 0:
            self._baseline, self._budget = _reset_peak(), _CPU_MEMORY_FRACTION * self._share * available_bytes()
        if self._expected_bytes(size) > self._budget:
            return False
        _reset_peak()
        try:
            self._work(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        self._measured.append((size, float(_peak_bytes() - self._baseline)))
        return self._measured[-1][1] <= self._budget

    def _expected_bytes(self, size: int) -> float:
        """Extrapolate linearly from the last two measured batches."""
        if not self._measured:
            return 0.0
        last_size, last_bytes = self._measured[-1]
        if len(self._measured) == 1:
            return last_bytes * size / last_size
        previous_size, previous_bytes = self._measured[-2]
        rise = max(0.0, last_bytes - previous_bytes)
        return last_bytes + (size - last_size) * rise / (last_size - previous_size)

    def _fits_on_gpu(self, size: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        try:
            self._work(size)
            torch.cuda.synchronize(self._device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            torch.cuda.empty_cache()
        return torch.cuda.max_memory_reserved(self._device) <= GPU_MEMORY_FRACTION * (free + reserved)


def fits_on_all_ranks(runtime: Runtime, fits: Callable[[int], bool]) -> Callable[[int], bool]:
    """Return a function that returns whether a size fits on every rank; all ranks must call it with the same sizes."""

    def fits_everywhere(size: int) -> bool:
        failed = torch.tensor([0.0 if fits(size) else 1.0], device=runtime.device)
        return runtime.sum(failed).item() == 0

    return fits_everywhere


def host_memory_share(runtime: Runtime) -> float:
    """Return the share of this machine's memory that a rank may use: its share of the cores (CHORAL_CORES)."""
    cores = int(os.environ.get("CHORAL_CORES", "0"))
    share = min(1.0, cores / len(os.sched_getaffinity(0))) if cores else 1.0
    return share / runtime.local_world_size


def read_probe_result(run_dir: RunDir, runtime: Runtime, name: str, settings: Mapping[str, Any]) -> int:
    """Return the result stored in batch.json under `name`, on all ranks; 0 if there is none for these settings."""
    result = 0
    if runtime.is_main:
        entry = (read_json(run_dir.path / BATCH_FILE) or {}).get(name, {})
        result = int(entry["found"]) if entry.get("settings") == settings else 0
    return int(runtime.broadcast(torch.tensor([result], device=runtime.device)).item())


def write_probe_result(run_dir: RunDir, runtime: Runtime, name: str, settings: Mapping[str, Any], result: int) -> None:
    """Store a result in batch.json; only the main rank writes."""
    if runtime.is_main:
        content = read_json(run_dir.path / BATCH_FILE) or {}
        write_json(run_dir.path / BATCH_FILE, {**content, name: {"found": result, "settings": dict(settings)}})


def device_name(runtime: Runtime) -> str:
    """Return "cpu" or the name of the GPU; part of the settings of a stored result."""
    if runtime.device.type != "cuda":
        return runtime.device.type
    return str(torch.cuda.get_device_name(runtime.device))


def available_bytes() -> float:
    """Return how many bytes this process can still allocate: the minimum over the machine, the cgroup and RLIMIT_AS."""
    limits = [_read_kernel_field("/proc/meminfo", "MemAvailable")]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).is_file() and (text := Path(limit).read_text().strip()).isdigit():
            limits.append(float(text) - float(Path(used).read_text()))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - _read_kernel_field("/proc/self/status", "VmSize"))
    return max(0.0, min(limits))


def _reset_peak() -> int:
    """Reset the peak of the process's resident memory, and return its current value in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(_read_kernel_field("/proc/self/status", "VmRSS"))


def _peak_bytes() -> int:
    return int(_read_kernel_field("/proc/self/status", "VmHWM"))


def _read_kernel_field(path: str, name: str) -> float:
    """Read a field of a /proc file that is given in kB; return bytes."""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024.0 * int(value.split()[0])
    raise ChoralError(f"{path}: has no field {name}; set evaluate.batch_size and train.accumulate_steps to numbers")
