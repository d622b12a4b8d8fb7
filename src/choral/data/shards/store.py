"""Bytes of images out of local shards, by position."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any

from choral.core.errors import DataError
from choral.core.files import local_only
from choral.data.shards.index import Dataset

_OPEN_SHARDS = 64  # well below the usual limit of 1,024 descriptors a process; opening one again takes 21 microseconds


class _Descriptor:
    """An open shard, closed when its last user lets go: a thread may still read what another one has evicted."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class LocalStore:
    """Reads from the shards of a data set on local disks; may be used by several threads, and be pickled.

    Raises:
        ConfigError: a shard's path is a command or an address (`pipe:`, `::`, `scheme://`).
    """

    def __init__(self, dataset: Dataset) -> None:
        for shard in dataset.shards:
            local_only(shard.path)
        self._dataset = dataset
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without descriptors: the other process opens its own."""
        return (LocalStore, (self._dataset,))

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of shard number `shard` from byte `offset` on.

        Raises:
            DataError: the shard is missing or ends before that, naming shard and offset.
        """
        descriptor = self._descriptor(shard)
        data = os.pread(descriptor.number, length, offset)
        while len(data) < length:  # pread returns at most 2 GiB at once
            more = os.pread(descriptor.number, length - len(data), offset + len(data))
            if not more:
                path = self._dataset.shard_path(shard)
                raise DataError(
                    f"{path}: ends at byte {offset + len(data)}, but {length} bytes from byte {offset} are needed: "
                    "cut short"
                )
            data += more
        return data

    def _descriptor(self, shard: int) -> _Descriptor:
        with self._lock:
            found = self._open.get(shard)
            if found is not None:
                self._open.move_to_end(shard)
                return found
            path = self._dataset.shard_path(shard)
            try:
                opened = self._open[shard] = _Descriptor(str(path))
            except OSError as error:
                raise DataError(f"{path}: shard cannot be opened ({error.strerror})") from error
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
            return opened
