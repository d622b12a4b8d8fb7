"""How much fits into memory: found by trying on a GPU, where too much is an error, and on a CPU, where it may be the end of
the process, by measuring what less of it took.

A trial is the work itself, forward and backward, with so many images. Sizes rise; the first that does not fit ends the
search. What was found is kept in RUN/batch.json and never looked for again: it decides the last bits of predictions, and in
training what BatchNorm averages over.
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
SHARE = 0.9
"""Of the memory that is free, that a trial may take: later batches meet fragments that the first one leaves."""
_CPU_SHARE = 0.7  # the process goes on to read images, and others live on the machine
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER = 2**31 - 1
_SAYS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "out of memory",
    "Cannot allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of the host or of the device, could not be had."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS)


@contextmanager
def explained(size: int, key: str, instead: str) -> Iterator[None]:
    """Turn running out of memory within the block into an `OutOfMemory` that says what to do.

    Args:
        size: images at a time.
        key: of the config that decides it, with its value.
        instead: what to set.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OutOfMemory(f"out of memory with {size} images at a time ({key}): {instead} ({first})") from error


def keep_freed() -> None:
    """Let this process keep memory that it frees, where its C library can (glibc): for processes that ask networks on a CPU.

    Large activations would otherwise be mapped and unmapped at every use: predicting takes 1.6 times the CPU time.
    `jobs.launcher` does the same for the processes that it starts, by their environment.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _NEVER)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back_freed() -> None:
    """Give the system all memory that is free in this process, where its C library can (glibc): after something large."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Return the last of the rising sizes that fit before the first that does not; 0: the first does not."""
    found = 0
    for size in sizes:
        if not fits(size):
            break
        found = size
    return found


def doubling(most: int) -> list[int]:
    """Return 1, 2, 4 and so on up to `most`, which is the last."""
    sizes = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*sizes, most]


class Trial:
    """Answers whether work on so many images fits into the memory of this rank's device.

    Args:
        work: does it on that many images, and lets go of all that it made.
        device: that it runs on.
        share: of the memory of the host that is this rank's, where the device is a CPU.
    """

    def __init__(self, work: Callable[[int], None], device: torch.device, share: float = 1.0) -> None:
        self._work, self._device, self._share = work, device, share
        self._taken: list[tuple[int, float]] = []  # images, and the bytes that they took beyond those before the first
        self._before, self._room = -1, 0.0

    def fits(self, size: int) -> bool:
        """Do the work on rising sizes; False: it ran out of memory, or would have."""
        if self._device.type == "cuda":
            return self._fits_device(size)
        if self._before < 0:
            self._before, self._room = _reset_peak(), _CPU_SHARE * self._share * available_bytes()
        if self._expected(size) > self._room:
            return False
        _reset_peak()
        try:
            self._work(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        self._taken.append((size, float(_peak_bytes() - self._before)))
        return self._taken[-1][1] <= self._room

    def _expected(self, size: int) -> float:
        """Return the bytes that so many images will take: a fixed part, and as many more an image as those before took."""
        if not self._taken:
            return 0.0
        last, taken = self._taken[-1]
        if len(self._taken) == 1:
            return taken * size / last
        before, less = self._taken[-2]
        return taken + (size - last) * max(0.0, taken - less) / (last - before)

    def _fits_device(self, size: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        mine = torch.cuda.memory_reserved(self._device)
        try:
            self._work(size)
            torch.cuda.synchronize(self._device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            torch.cuda.empty_cache()
        return torch.cuda.max_memory_reserved(self._device) <= SHARE * (free + mine)


def agreed(run: Runtime, fits: Callable[[int], bool]) -> Callable[[int], bool]:
    """Return whether so many fit on every rank, the same on all of them; all must ask about the same sizes."""

    def everywhere(size: int) -> bool:
        failed = torch.tensor([0.0 if fits(size) else 1.0], device=run.device)
        return run.sum(failed).item() == 0

    return everywhere


def host_share(run: Runtime) -> float:
    """Return the share of this machine's memory that is a rank's: as of its cores, of which members have a part each."""
    cores = int(os.environ.get("CHORAL_CORES", "0"))
    part = min(1.0, cores / len(os.sched_getaffinity(0))) if cores else 1.0
    return part / run.local_world_size


def remembered(folder: RunDir, run: Runtime, name: str, settings: Mapping[str, Any]) -> int:
    """Return what the main rank finds in batch.json under a name, on all ranks; 0: nothing, or for other settings."""
    found = 0
    if run.is_main:
        entry = (read_json(folder.path / BATCH_FILE) or {}).get(name, {})
        found = int(entry["found"]) if entry.get("settings") == settings else 0
    return int(run.broadcast(torch.tensor([found], device=run.device)).item())


def remember(folder: RunDir, run: Runtime, name: str, settings: Mapping[str, Any], found: int) -> None:
    """Keep on the main rank what was found."""
    if run.is_main:
        content = read_json(folder.path / BATCH_FILE) or {}
        write_json(folder.path / BATCH_FILE, {**content, name: {"found": found, "settings": dict(settings)}})


def device_name(run: Runtime) -> str:
    """Return what kind of memory a batch was measured against."""
    if run.device.type != "cuda":
        return run.device.type
    return str(torch.cuda.get_device_name(run.device))


def available_bytes() -> float:
    """Return how much memory of the host this process can still take: of the machine, its control group and its limit."""
    found = [_field("/proc/meminfo", "MemAvailable")]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).is_file() and (text := Path(limit).read_text().strip()).isdigit():
            found.append(float(text) - float(Path(used).read_text()))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(soft - _field("/proc/self/status", "VmSize"))
    return max(0.0, min(found))


def _reset_peak() -> int:
    """Let the process's peak begin at what it holds now, and return that in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(_field("/proc/self/status", "VmRSS"))


def _peak_bytes() -> int:
    return int(_field("/proc/self/status", "VmHWM"))


def _field(path: str, name: str) -> float:
    """Return a number of kB of a file of the kernel, in bytes."""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024.0 * int(value.split()[0])
    raise ChoralError(f"{path}: has no {name}; set evaluate.batch_size and train.accumulate_steps to numbers")
