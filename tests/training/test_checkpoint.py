"""Checkpoints are complete or absent, are verified, and never cause the loss of a run."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch

from choral.core.errors import ChoralError
from choral.models.checkpoint_tensors import load_model_tensors, load_optimizer, optimizer_state, save_tensors
from choral.runs.checkpoints import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    find_checkpoint,
    find_latest_intact,
    mark_best,
    read_checkpoint_state,
)


@pytest.fixture
def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.99))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(folder: Path, step: int, trained: tuple[torch.nn.Module, torch.optim.Optimizer], keep: int = 2) -> Path:
    model, optimizer = trained
    save_tensors(
        folder,
        step,
        {MODEL_FILE: model.state_dict()},
        optimizer_state(optimizer, model),
        {"state": {"step": step}},
        keep,
    )
    return folder / f"step-{step:08d}"


def test_save_and_load_round_trip(tmp_path: Path, trained: tuple[torch.nn.Module, torch.optim.Optimizer]) -> None:
    model, optimizer = trained
    path = save(tmp_path, 3, trained)
    twin = timm.create_model("test_resnet", num_classes=3).to(memory_format=torch.channels_last)
    twin_optimizer = torch.optim.AdamW(twin.parameters())
    twin.load_state_dict(load_model_tensors(path))
    load_optimizer(path, twin_optimizer, twin)
    assert read_checkpoint_state(path)["state"] == {"step": 3}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name])
    expected, found = optimizer.state_dict(), twin_optimizer.state_dict()
    assert found["param_groups"][0]["betas"] == [0.8, 0.99] or found["param_groups"][0]["betas"] == (0.8, 0.99)
    for index, entry in expected["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, found["state"][index][key])
            assert value.stride() == found["state"][index][key].stride(), "memory formats decide the order of sums"


def test_newest_and_best_checkpoints_are_kept(
    tmp_path: Path, trained: tuple[torch.nn.Module, torch.optim.Optimizer]
) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, trained)
        if step == 1:
            mark_best(tmp_path, 1, "accuracy", 0.5)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001", "step-00000003", "step-00000004"]
    assert find_checkpoint(tmp_path, "best").name == "step-00000001"
    assert find_checkpoint(tmp_path, "last").name == "step-00000004"


@pytest.mark.parametrize("name", [MODEL_FILE, OPTIMIZER_FILE, STATE_FILE])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted"])
def test_damaged_checkpoint_is_skipped(
    tmp_path: Path,
    trained: tuple[torch.nn.Module, torch.optim.Optimizer],
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: str,
) -> None:
    save(tmp_path, 1, trained)
    newest = save(tmp_path, 2, trained) / name
    content = newest.read_bytes()
    if damage == "truncated":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "deleted":
        newest.unlink()
    elif name == STATE_FILE:
        newest.write_bytes(content.replace(b'"sha256"', b'"sha257"'))
    else:
        newest.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    found = find_latest_intact(tmp_path)
    assert found is not None and found.name == "step-00000001"
    assert "step-00000002 is damaged" in caplog.text and name in caplog.text
    with pytest.raises(ChoralError, match="is damaged"):
        load_model_tensors(newest.parent)


def test_run_with_only_damaged_checkpoints_does_not_start_over(
    tmp_path: Path, trained: tuple[torch.nn.Module, torch.optim.Optimizer]
) -> None:
    (save(tmp_path, 1, trained) / MODEL_FILE).write_bytes(b"")
    with pytest.raises(ChoralError, match="all 1 checkpoints are damaged; delete the folder"):
        find_latest_intact(tmp_path)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 100 kB, as if the disk were full."""
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_keeps_the_old_checkpoint(
    tmp_path: Path, trained: tuple[torch.nn.Module, torch.optim.Optimizer], request: pytest.FixtureRequest
) -> None:
    save(tmp_path, 1, trained)
    request.getfixturevalue("small_disk")
    with pytest.raises(
        ChoralError, match="step-00000002: the checkpoint cannot be written .*earlier checkpoints are intact"
    ):
        save(tmp_path, 2, trained)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert find_latest_intact(tmp_path) == tmp_path / "step-00000001"


def test_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    assert find_latest_intact(tmp_path / "nothing") is None
    with pytest.raises(ChoralError, match="no best checkpoint; train the run first"):
        find_checkpoint(tmp_path, "best")
