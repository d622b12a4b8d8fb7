"""Metric sinks: W&B offline, TensorBoard's event files, and sinks that fail."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from choral.cli.workflow.evaluation import publish_evaluation, upload_evaluation
from choral.cli.workflow.scores import score
from choral.config.files import load_config
from choral.core.errors import ConfigError, Stopped
from choral.core.process_group import Runtime
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore
from choral.ensembles.worst_samples import find_worst_predictions, load_worst_images
from choral.inference.evaluation_pass import evaluate
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from choral.tracking import wandb_run
from choral.tracking.tensorboard import TensorBoard, check_installed
from choral.tracking.wandb_run import CaptionedImage
from choral.training.loop import train
from toy_data import make_run_dir


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No W&B login, and connections to other machines fail."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path))


def read_wandb_records(folder: Path) -> list[Any]:
    """Return the records of an offline run, waiting until W&B's own process has written them."""
    path = next(folder.glob("wandb/offline-run-*/*.wandb"))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        records = _parse_records(path.read_bytes())
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.05)
    raise TimeoutError(f"{path}: W&B did not finish it")


def _parse_records(data: bytes) -> list[Any]:
    """Parse a log in LevelDB's format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    records, position, content = [], 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:  # too little of a block for a header
            position += left
        _, length, kind = struct.unpack_from("<IHB", data, position)
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            records.append(record)
            content = b""
    return records


@pytest.mark.usefixtures("no_network")
def test_wandb_offline_has_group_job_type_config_curves_and_checkpoint(
    config_file: Path, tmp_path: Path, run: Runtime
) -> None:
    overrides = ["tracking.wandb=auto", "tracking.artifact=true", "train.steps=2"]
    folder = RunDir(tmp_path / "runs" / "trio" / "members" / "a")
    folder.path.mkdir(parents=True)
    train(load_config(config_file, overrides), folder, run)
    records = read_wandb_records(folder.path)
    begun = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (begun.run_group, begun.job_type, begun.display_name) == ("trio", "member", "a")
    assert begun.run_id == (folder.path / "wandb-id").read_text().strip()
    assert {"train", "data", "model", "seed"} <= {item.key for item in begun.config.update}
    logged = {
        (item.key or "/".join(item.nested_key))
        for record in records
        if record.WhichOneof("record_type") == "history"
        for item in record.history.item
    }
    assert {"train/loss", "train/lr", "val/log_loss", "val/accuracy"} <= logged
    text = b"".join(record.SerializeToString() for record in records)
    assert b"a-best" in text and b"model.safetensors" in text


@pytest.mark.usefixtures("no_network")
def test_an_evaluation_logs_the_worst_predictions_and_the_scores(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(
        config_file,
        [
            "train.steps=2",
            "tracking.wandb=offline",
            "tracking.group=mine",
            "tracking.worst_images=3",
            "evaluate.splits=[test]",
        ],
    )
    folder = make_run_dir(tmp_path / "solo")
    folder.store_config(load_config(config_file, ["train.steps=2"]))
    train(folder.config(), folder, run)
    evaluate(folder.config(), folder, run, force=False)
    ledger = Ledger.open(folder.predictions / "test.parquet")
    rows = find_worst_predictions(ledger, 3)
    predicted = ledger.predictions("model", "tta")
    wrong = 1 - predicted[np.arange(len(predicted)), ledger.labels]
    assert [wrong.row for wrong in rows] == np.argsort(-wrong, kind="stable")[:3].tolist()
    pictures = load_worst_images(ledger, Index.open(Dataset.open(config.data.shards), "test"), 3, 10**6)
    assert [picture.image.shape for picture in pictures] == [(20, 24, 3)] * 3
    truth = ledger.classes[ledger.labels[rows[0].row]]
    assert pictures[0].caption.startswith(f"{ledger.keys[rows[0].row]}: label {truth}, predicted ")
    upload_evaluation(config, folder)
    records = read_wandb_records(folder.path)
    begun = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (begun.run_group, begun.job_type) == ("mine", "evaluation")
    media = next((folder.path / "wandb").glob("offline-run-*")) / "files" / "media"
    assert len(list(media.rglob("*.png"))) == 3
    table = json.loads(next(media.rglob("*.table.json")).read_text())
    assert {"name", "metric", "value", "low", "high", "log_loss.value"} <= set(table["columns"])
    marked = json.loads((folder.path / "wandb-evaluation.json").read_text())
    assert list(marked) == ["test"]
    with monkeypatch.context() as patched:
        patched.setattr(wandb_run, "WandbRun", lambda *arguments: pytest.fail("it was sent already"))
        upload_evaluation(config, folder)
    scores = score(folder, "test")["rows"]
    assert [row[0] for row in table["data"]] == [row["name"] for row in scores]
    assert [row[table["columns"].index("value")] for row in table["data"]] == [row["value"] for row in scores]


def test_the_worst_predictions_are_written_to_the_run_directory(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without W&B. Keys come from the data and may look like paths."""
    config = load_config(config_file, ["train.steps=1", "tracking.worst_images=3"])
    folder = make_run_dir(tmp_path / "solo")
    folder.store_config(config)
    train(config, folder, run)
    evaluate(config, folder, run, force=False)
    ledger = Ledger.open(folder.predictions / "test.parquet")
    index = Index.open(Dataset.open(config.data.shards), "test")
    publish_evaluation(config, folder)
    listing = json.loads((folder.path / "worst-test" / "worst.json").read_text())
    expected = find_worst_predictions(ledger, 3)
    assert [image["key"] for image in listing["images"]] == [ledger.keys[wrong.row] for wrong in expected]
    stored = {key: row for row, key in enumerate(index.keys(np.arange(len(index))))}
    for number, (image, wrong) in enumerate(zip(listing["images"], expected, strict=True), start=1):
        assert re.fullmatch(rf"00{number}-[A-Za-z0-9._-]+\.png", image["file"])
        record = index.row(stored[image["key"]])
        data = LocalStore(index.dataset).read(record.shard, record.offset, record.length)
        assert (folder.path / "worst-test" / image["file"]).read_bytes() == data
        assert image["label"] == ledger.classes[ledger.labels[wrong.row]]
        assert image["loss"] == pytest.approx(-np.log(image["prediction"][image["label"]]))
    assert {path.name for path in folder.path.glob(".worst*")} == set()
    before = (folder.path / "worst-test").stat().st_ino
    publish_evaluation(config, folder)
    assert (folder.path / "worst-test").stat().st_ino == before  # it is there
    evil = ["../../evil" if row == expected[0].row else key for row, key in enumerate(ledger.keys)]
    monkeypatch.setattr(Ledger, "keys", evil)
    keys = index.keys(np.arange(len(index)))
    renamed = ["../../evil" if key == listing["images"][0]["key"] else key for key in keys]
    monkeypatch.setattr(Index, "keys", lambda self, rows: renamed)
    publish_evaluation(load_config(config_file, ["tracking.worst_images=1"]), folder)
    assert sorted(path.name for path in (folder.path / "worst-test").iterdir()) == ["001-.._.._evil.png", "worst.json"]
    (folder.predictions / "test.parquet").write_bytes(b"broken")
    publish_evaluation(config, folder)
    assert "the images of the worst predictions of split test were not written" in capsys.readouterr().err


def test_an_evaluation_that_was_not_logged_is_logged_by_the_next_call(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["tracking.wandb=offline", "tracking.worst_images=0", "evaluate.splits=[test]"]
    config = load_config(config_file, settings)
    folder = make_run_dir(tmp_path / "run")
    calls = []

    class Failing:
        is_healthy = False

        def __init__(self, *arguments: object) -> None:
            calls.append("start")

        def close(self, failed: bool) -> None: ...

        def log_evaluation(self, *arguments: object) -> None:
            raise RuntimeError("killed")

    class Working(Failing):
        is_healthy = True

        def log_evaluation(self, *arguments: object) -> None:
            calls.append("shown")

    folder.predictions.mkdir()
    (folder.predictions / "test.parquet").write_bytes(b"ledger")
    monkeypatch.setattr("choral.cli.workflow.evaluation.score", lambda folder, split: {"rows": []})
    monkeypatch.setattr(Ledger, "open", lambda path: None)
    monkeypatch.setattr("choral.ensembles.worst_samples.load_worst_images", lambda *arguments: [])
    monkeypatch.setattr(wandb_run, "WandbRun", Failing)
    upload_evaluation(config, folder)
    assert "the evaluation was not uploaded to W&B: RuntimeError: killed" in capsys.readouterr().err
    monkeypatch.setattr(wandb_run, "WandbRun", Working)
    for _ in range(2):
        upload_evaluation(config, folder)
    assert calls == ["start", "start", "shown"]
    (folder.predictions / "test.parquet").write_bytes(b"another")
    upload_evaluation(config, folder)
    assert calls[3:] == ["start", "shown"]


def test_worst_samples_of_regression_and_multilabel() -> None:
    class Fake:
        views, classes = ("identity",), ("x", "y")

        def __init__(self, task: str, labels: list[list[float]], predicted: list[list[float]]) -> None:
            self.meta = type("Meta", (), {"task": task})
            self.labels, self._said = np.array(labels, np.float32), np.array([predicted], np.float32)

        def blocks(self, view: str) -> list[np.ndarray]:
            return [self._said[:, :2], self._said[:, 2:]]

    numbers = Fake("regression", [[0, 0], [2, 200], [4, 400]], [[0, 10], [2, 200], [1, 400]])
    found = find_worst_predictions(numbers, 2)
    assert [(wrong.row, wrong.caption) for wrong in found] == [
        (2, "x 4, predicted 1; y 400, predicted 400"),
        (0, "x 0, predicted 0; y 0, predicted 10"),
    ]
    assert (found[0].label, found[0].prediction) == ({"x": 4, "y": 400}, {"x": 1, "y": 400})
    assert found[0].loss == pytest.approx(3 / np.std([0, 2, 4]) / 2)
    labels = Fake("multilabel", [[0, 1], [1, 1], [0, 0]], [[0.1, 0.8], [0.9, 0.2], [0.6, 0.1]])
    found = find_worst_predictions(labels, 3)
    assert [wrong.row for wrong in found] == [1, 2, 0]
    assert found[0].caption == "x yes, predicted 90%; y yes, predicted 20%" and found[0].label == ["x", "y"]
    assert found[0].loss == pytest.approx(-np.log([0.9, 0.2]).mean())


def test_tensorboard_has_the_curves_of_a_continued_run(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file, ["train.steps=6", "tracking.tensorboard=true"])
    folder = make_run_dir(tmp_path / "run")
    answers = iter([False] * 3 + [True] + [False] * 100)
    monkeypatch.setattr(run, "should_stop", lambda: next(answers))
    with pytest.raises(Stopped):
        train(config, folder, run)
    train(config, folder, run)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert {"train/loss", "train/lr", "val/log_loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)


@pytest.mark.parametrize("strategy", ["full", "linear"])
def test_training_is_done_only_after_everything_is_logged(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """If it is killed while logging, it continues and logs again."""
    folder, done = make_run_dir(tmp_path / "run"), []

    class Watched:
        def __init__(self, *arguments: object) -> None: ...

        def log(self, *arguments: object) -> None: ...

        def log_checkpoint(self, path: Path, name: str) -> None:
            done.append((path.name, (folder.path / "result.json").exists()))

        def close(self, failed: bool) -> None:
            done.append((failed, (folder.path / "result.json").exists()))

    monkeypatch.setattr("choral.training.reporter.WandbRun", Watched)
    overrides = ["train.steps=2", "tracking.artifact=true", f"finetune.strategy={strategy}"]
    train(load_config(config_file, overrides), folder, run)
    best = {"full": "step-00000002", "linear": "step-00000000"}[strategy]
    assert done == [(best, False), (False, False)]
    assert folder.result is not None


def test_missing_tensorboard_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choral.tracking.tensorboard.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking\.tensorboard: not installed; pip install 'choral\[tensorboard\]'"):
        check_installed()


@pytest.mark.parametrize("when", ["__init__", "start", "log", "finish"])
def test_a_tensorboard_failure_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    from accelerate.tracking import TensorBoardTracker

    def fails(*arguments: object, **named: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(TensorBoardTracker, when, fails)
    sink = TensorBoard(tmp_path, 0)
    for step in range(3):
        sink.log(step, "train", {"loss": 1.0})
    sink.close(failed=False)
    assert caplog.text.count("TensorBoard failed") == 1 and "disk full" in caplog.text


@pytest.mark.parametrize("when", ["start", "log", "show", "finish"])
def test_a_wandb_failure_does_not_fail_the_run(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    import wandb

    def fails(*arguments: object, **named: object) -> None:
        raise OSError("disk full")

    class Broken:
        log = fails if when in ("log", "show") else lambda self, *a, **k: None
        finish = fails if when == "finish" else lambda self, *a, **k: None

    monkeypatch.setattr(wandb, "init", fails if when == "start" else lambda **named: Broken())
    config = load_config(config_file, ["tracking.wandb=offline"])
    sink = wandb_run.WandbRun(config, make_run_dir(tmp_path / "run"), "train")
    if when == "show":
        sink.log_evaluation("test", [], [CaptionedImage(np.zeros((2, 2, 3), np.uint8), "black")])
    for step in range(3):
        sink.log(step, "train", {"loss": 1.0})
    sink.close(failed=False)
    assert caplog.text.count("W&B") == 1 and "disk full" in caplog.text
