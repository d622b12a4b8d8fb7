"""Reads image bytes from local shards, by position."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any

from choral.core.errors import DataError
from choral.core.files import check_local_path
from choral.data.shards.index import Dataset

_MAX_OPEN_SHARDS = 64  # far below the usual limit of 1,024 descriptors a process; reopening takes 21 microseconds


class _OpenShard:
    """A file descriptor that closes with its last reference: a thread may still read a shard that another evicted."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1  # so that __del__ works if opening fails
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class LocalStore:
    """Reads from the shards of a data set on local disks. Thread-safe and picklable.

    Raises:
        ConfigError: the path of a shard is a command or a URL (`pipe:`, `::`, `scheme://`).
    """

    def __init__(self, dataset: Dataset) -> None:
        for shard in dataset.shards:
            check_local_path(shard.path)
        self._dataset = dataset
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without file descriptors: the receiving process opens the shards itself."""
        return (LocalStore, (self._dataset,))

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of shard number `shard`, starting at byte `offset`.

        Raises:
            DataError: the shard is missing or too short; the message has shard and offset.
        """
        opened = self._open_shard(shard)
        data = os.pread(opened.descriptor, length, offset)
        while len(data) < length:  # pread returns at most 2 GiB at once
            more = os.pread(opened.descriptor, length - len(data), offset + len(data))
            if not more:
                path = self._dataset.shard_path(shard)
                raise DataError(
                    f"{path}: truncated: ends at byte {offset + len(data)}, expected {length} bytes from byte {offset}"
                )
            data += more
        return data

    def _open_shard(self, shard: int) -> _OpenShard:
        with self._lock:
            found = self._open.get(shard)
            if found is not None:
                self._open.move_to_end(shard)
                return found
            path = self._dataset.shard_path(shard)
            try:
                opened = self._open[shard] = _OpenShard(str(path))
            except OSError as error:
                raise DataError(f"{path}: shard cannot be opened ({error.strerror})") from error
            if len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            return opened
