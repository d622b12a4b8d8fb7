"""Models loaded in groups: equal bits, one decode, and as many at once as fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from choral.config.files import load_config
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.core.process_group import Runtime
from choral.data.loading import sample_pipeline as sample
from choral.data.loading.decode import decode
from choral.data.loading.host_loader import BatchRequest, HostBatch, HostLoader
from choral.inference import model_groups
from choral.inference.evaluation_pass import evaluate
from choral.inference.ledger import Ledger
from choral.inference.prediction_tasks import PredictionTask
from made_members import made_members

MEMBERS = "ensemble.members=[{name: a}, {name: b, set: {data.image_size: 40}}, {name: c}, {name: d}]"
SETTINGS = ["data.cache_gib=0", "evaluate.batch_size=2", "evaluate.splits=[val]", "evaluate.checkpoint=last", MEMBERS]


def task(name: str, folder: Path | None = None, size: int = 0) -> PredictionTask:
    if folder is not None:
        (folder / name).write_bytes(bytes(size))
    return cast(PredictionTask, SimpleNamespace(model=SimpleNamespace(name=name, checkpoint=folder, weights_file=name)))


def test_grouping_changes_nothing(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counted(data: bytes, **options: Any) -> Any:
        decoded.append(len(data))
        return decode(data, **options)

    monkeypatch.setattr(sample, "decode", counted)
    config = load_config(config_file, [*SETTINGS, "evaluate.views=[hflip, rot90]"])
    folder = made_members(config, tmp_path / "run")
    path = folder.predictions / "val.parquet"
    found = {}
    for at_once in ("auto", 3, 1):
        decoded.clear()
        changed = config.replace(evaluate=config.evaluate.replace(members_at_once=at_once))  # type: ignore[arg-type]
        evaluate(changed, folder, run, force=True)
        assert len(decoded) == 13
        found[at_once] = path.read_bytes()
    assert found["auto"] == found[3] == found[1]
    assert len(Ledger.open(path)) == 13


def test_stop_within_a_window_loses_that_window(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    config = load_config(config_file, [*SETTINGS, "evaluate.views=[hflip]", "evaluate.members_at_once=2"])
    folder = made_members(config, tmp_path / "run")
    asked = 0

    class Told(Runtime):
        @property
        def stop_requested(
            self,
        ) -> bool:  # before each batch, 2 and 4 in windows of 1 and 2, and after each window
            nonlocal asked
            asked += 1
            return asked > 2 + 1 + 4 + 1 + 1

    told = object.__new__(Told)
    told.__dict__.update(run.__dict__)
    with pytest.raises(Stopped):
        evaluate(config, folder, told)
    (part,) = folder.predictions.glob(".val.parts/*/part-*")
    assert part.name == "part-000000000-000000003.arrow"


def test_groups_by_size(tmp_path: Path) -> None:
    tasks = [task(name, tmp_path, size) for name, size in (("a", 4), ("b", 3), ("c", 9), ("d", 1), ("e", 1))]
    names = [[one.model.name for one in group] for group in model_groups.group_by_size(tasks, 7)]
    assert names == [["a", "b"], ["c"], ["d", "e"]]
    assert len(model_groups.group_by_size(tasks, 18)) == 1 and len(model_groups.group_by_size(tasks, 0)) == 5


def test_groups_by_memory() -> None:
    room = {"a": 2, "b": 2, "c": 1}

    def attempt(one: PredictionTask, others: model_groups.Networks) -> nn.Module | None:
        return nn.Identity() if len(others) < room[one.model.name] else None

    groups, networks = model_groups.group_by_memory([task(name) for name in "abc"], attempt)
    assert [[one.model.name for one in group] for group in groups] == [["a", "b"], ["c"]]
    assert [one.model.name for one, _ in networks] == ["c"]
    room["b"] = 0
    with pytest.raises(ChoralError, match="b does not fit into the memory of the device, even alone"):
        model_groups.group_by_memory([task(name) for name in "abc"], attempt)


class Host:
    """A host loader with batches of one image of four bytes."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.released: list[int] = []

    def __iter__(self) -> Iterator[HostBatch]:
        for number in range(self._count):
            rows = np.array([number])
            order = BatchRequest(rows, 0, number)
            image = np.full((1, 2, 2, 1), number, np.uint8)
            yield HostBatch(image, rows, rows, rows >= 0, order, lambda number=number: self.released.append(number))  # type: ignore[misc]


def test_windows_grow_while_they_take_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def lengths(count: int) -> list[int]:
        host = Host(count)
        found = [
            [int(batch.images[0, 0, 0, 0]) for batch in window]
            for window in model_groups._iterate_windows(cast(HostLoader, host))
        ]
        assert [number for window in found for number in window] == host.released == list(range(count))
        return [len(window) for window in found]

    assert lengths(10) == [1, 2, 4, 3] and lengths(7) == [1, 2, 4] and lengths(0) == []
    with monkeypatch.context() as patch:
        patch.setattr(model_groups, "_WINDOW_BYTES", 12)
        assert lengths(9) == [1, 2, 3, 3]
    monkeypatch.setattr(model_groups, "_WINDOW_S", -1.0)
    assert lengths(3) == [1, 1, 1]


def test_zero_members_at_once_is_refused(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.members_at_once: expected 1 or more, or auto"):
        load_config(config_file, ["evaluate.members_at_once=0"])


@pytest.mark.gpu
def test_networks_beyond_the_memory_of_a_gpu(
    config_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a memory limit that fits two of four networks and their batches."""
    run = Runtime("no", 1, 60, tmp_path / "stop")
    members = "ensemble.members=[{name: a}, {name: b}, {name: c}, {name: d}]"
    config = load_config(config_file, [*SETTINGS[:-1], members, "model.name=resnet50", "evaluate.views=[hflip]"])
    folder = made_members(config, tmp_path / "run")
    evaluate(config, folder, run)
    path = folder.predictions / "val.parquet"
    together = path.read_bytes()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((260 << 20) / total)
    try:
        with caplog.at_level("INFO", "choral"):
            evaluate(config, folder, run, force=True)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "4 networks take turns" in caplog.text
    assert path.read_bytes() == together
