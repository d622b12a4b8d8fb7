"""choral predict: every image answered for in order, as the ledger has it, by any number of ranks, in bounded memory."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from PIL import Image

from choral.cli import main
from choral.cli.workflow import prediction as answering_module
from choral.core.errors import DataError
from choral.data.loading.crop import Crop
from choral.data.loading.input_spec import ImageSpec, InputSpec
from choral.data.packing.sources.base import make_sample_key
from choral.deploy.bundle import ranks as ranks_module
from choral.deploy.bundle.engine import EnsemblePredictions, build_engine_inputs
from choral.deploy.bundle.image_pipeline import predict_images
from choral.deploy.bundle.image_sources import ImageSource, batch_images
from choral.deploy.bundle.predict_request import PredictRequest
from choral.deploy.bundle.predictor import Predictor
from choral.deploy.bundle.rank_shares import ImageCounts, predict_as_rank
from choral.deploy.bundle.read import read_bundle
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from choral.scoring.apply_policy import build_default_policy
from made_bundles import made_run
from thread_ranks import run_on_ranks
from toy_data import CLASSES, COUNTS

LIGHT = ("dark", "light")


class Brightness:
    """Says how light images are, and how many it was asked about at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict_batch(self, images: Sequence[NDArray[np.uint8]]) -> EnsemblePredictions:
        light = images[0].mean((1, 2, 3)).astype(np.float32) / 255
        self.sizes.append(len(light))
        own = np.stack([1 - light, light], axis=1)
        return EnsemblePredictions(own[None], own)


@pytest.fixture
def engine() -> Brightness:
    return Brightness()


@pytest.fixture
def predictor(engine: Brightness) -> Predictor:
    input_spec = InputSpec(ImageSpec(8, Crop("resized"), "fast"), (0.5,) * 3, (0.25,) * 3)
    return Predictor(
        "light",
        build_default_policy("multiclass", LIGHT, ["m"], ["identity"]),
        build_engine_inputs([input_spec]),
        10**6,
        engine,
    )


def grey(level: int, path: Path) -> ImageSource:
    """Leave an image of one level of grey."""
    Image.new("RGB", (9, 9), (level,) * 3).save(path, "PNG")
    return ImageSource(str(path), str(path))


def test_answers_come_in_order_and_bad_images_in_their_place(
    tmp_path: Path, predictor: Predictor, engine: Brightness, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [grey(10 * number, tmp_path / f"{number}.png") for number in range(20)]
    images[4:7] = [
        ImageSource("gone", str(tmp_path / "gone")),
        ImageSource("odd", str(tmp_path), problem="odd"),
        images[5],
    ]
    (tmp_path / "text.png").write_bytes(b"no image")
    images[12:16] = [ImageSource(f"text {number}", str(tmp_path / "text.png")) for number in range(4)]
    prepare = Predictor.prepare

    def slow_at_first(self: Predictor, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
        time.sleep(0.05 if image.mean() < 50 else 0)
        return prepare(self, image)

    monkeypatch.setattr(Predictor, "prepare", slow_at_first)
    found = list(predict_images(predictor, batch_images(images, 4), workers=3))
    answers = [answer for batch in found for answer in batch]
    assert [answer.image for answer in answers] == [image.name for image in images]
    assert engine.sizes == [4, 2, 4, 4]  # nobody is asked about the four that cannot be read
    assert answers[4].error == "No such file or directory" and answers[5].error == "odd"
    assert all("not an image" in answer.error for answer in answers[12:16])
    for answer, image in zip(answers, images, strict=True):
        if not answer.error:
            level = 10 * int(Path(image.path).stem)
            assert answer.probabilities[1] == pytest.approx(level / 255)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="gone: No such file or directory"):
        list(predict_images(predictor, batch_images(images, 4), workers=1, strict=True))


def test_images_are_drawn_as_answers_are(tmp_path: Path, predictor: Predictor) -> None:
    image, drawn, threads = grey(7, tmp_path / "a.png"), 0, threading.active_count()

    def endless() -> Iterator[ImageSource]:
        nonlocal drawn
        while True:
            drawn += 1
            yield image

    answers = predict_images(predictor, batch_images(endless(), 4), workers=2)
    for number in range(1, 30):
        assert len(next(answers)) == 4
        assert drawn <= 4 * (number + 2)  # two batches are on their way
    answers.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


@pytest.fixture(scope="module")
def trio(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of three networks of two sizes, evaluated, with a bundle."""
    return made_run(shards, tmp_path_factory.mktemp("trio"))


@pytest.fixture
def folder(trio: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for a test, in which runs/trio is the run and bundle its bundle."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/trio").symlink_to(trio.path)
    Path("bundle").symlink_to(trio.path / "bundle")
    return tmp_path


@pytest.mark.parametrize("target", ["bundle", "trio"])
def test_files_are_answered_for_as_the_ledger_has_it(
    folder: Path, target: str, photos: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, words = photos / "test", ["--batch-size", "4", "--workers", "2"]
    assert main(["predict", target, str(test), "-o", "out.parquet", *words]) == 0
    assert "out.parquet: 11 images" in capsys.readouterr().err
    rows = pyarrow.parquet.read_table("out.parquet").to_pylist()
    ledger = Ledger.open(Path("runs/trio/predictions/test.parquet"))
    how = build_default_policy(ledger.meta.task, ledger.classes, ledger.members, ["tta"])
    if target == "bundle":
        how = read_bundle(Path("bundle")).policy  # which is calibrated on val
        assert how.calibration.method != "none"
    expected = how.combine(np.stack([ledger.predictions(member, "tta") for member in how.members]))
    decided = dict(zip(ledger.keys, how.decide(expected).tolist(), strict=True))
    by_key = dict(zip(ledger.keys, expected, strict=True))
    assert [row["image"] for row in rows] == [str(path) for path in sorted(test.rglob("*.png"))]
    assert len(rows) == len(by_key) == COUNTS["test"]
    for row in rows:
        key = make_sample_key(str(Path(row["image"]).relative_to(photos)))
        np.testing.assert_allclose([row[f"p_{name}"] for name in ledger.classes], by_key[key], atol=1e-5)
        assert row["class"] == ledger.classes[decided[key]]
    # The same images out of their shards, where they lie in another order.
    assert main(["predict", target, str(shards / "test-*.tar"), "--json", *words]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["image"].rpartition(":")[2].removesuffix(".png"): line["probabilities"] for line in lines}
    assert set(found) == set(ledger.keys)
    np.testing.assert_allclose([found[key] for key in ledger.keys], expected, atol=1e-5)


@pytest.mark.parametrize(("name", "ranks"), [("out.csv", 1), ("out.jsonl", 2), ("out.parquet", 3)])
def test_any_number_of_ranks_writes_the_file_that_one_process_writes(
    folder: Path, photos: Path, name: str, ranks: int
) -> None:
    images = (str(photos / "test"), "gone.png", str(photos / "val"))
    request, tallies = PredictRequest("bundle", images, Path(name), batch_size=4, workers=1), list[ImageCounts | None]()
    run_on_ranks(lambda run: tallies.append(predict_as_rank(request, run)), ranks)
    (tally,) = (tally for tally in tallies if tally is not None)
    assert (tally.images, tally.bad) == (COUNTS["test"] + 1 + COUNTS["val"], 1)
    found = Path(name).read_bytes()
    assert not list(Path().glob(".out*"))
    assert main(["predict", "bundle", *images, "-o", name, "--batch-size", "4"]) == 1  # one could not be read
    assert found == Path(name).read_bytes()


def test_threads_end_however_soon(predictor: Predictor) -> None:
    for _ in range(500):  # those that start last may find that there is nothing to do any more
        (answers,) = predict_images(predictor, [[ImageSource("odd", "", problem="odd")]], workers=3)
        assert answers[0].error == "odd"


def test_ranks_that_are_stopped_or_see_other_images_leave_nothing(
    folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = PredictRequest("trio", (str(photos / "test"),), Path("out.csv"), batch_size=4, workers=1)
    raised = run_on_ranks(lambda run: predict_as_rank(request, run) and None, 2, stop_requested=lambda rank: rank == 0)
    assert raised and all("nothing was written" in str(error) for error in raised)  # the other rank may see it, too
    batches = PredictRequest.batches
    more = iter([[ImageSource("late", "late")], []])

    def grown(self: PredictRequest) -> tuple[int | None, Iterator[list[ImageSource]]]:
        total, found = batches(self)
        late = next(more)
        return total, (batch for batch in [*found, *([late] if late else [])])

    monkeypatch.setattr(PredictRequest, "batches", grown)
    with pytest.raises(
        AssertionError, match="the ranks did not find the same images"
    ):  # run_on_ranks takes it for a failure
        run_on_ranks(lambda run: predict_as_rank(request, run) and None, 2)
    assert not [path for path in Path().iterdir() if "out" in path.name]


def test_several_processes_are_started_through_the_launcher(
    folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from accelerate.state import AcceleratorState

    commands: list[list[str]] = []

    def here(command: list[str], env: dict[str, str], request_stop: object) -> tuple[int, bool]:
        commands.append(command)
        AcceleratorState._reset_state(reset_partial_state=True)
        return ranks_module.main(command[command.index("choral.deploy.bundle.ranks") + 1 :]), False

    monkeypatch.setattr(answering_module, "run_in_foreground", here)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{photos / 'val'}\n-odd.png".encode())))
    Path("-odd.png").write_bytes(b"")
    assert main(["predict", "trio", "-", "-o", "out.jsonl", "--processes", "2", "--json", "--batch-size", "5"]) == 1
    assert commands[0][commands[0].index("--num_processes") + 1] == "2"
    assert json.loads(capsys.readouterr().out) == {"out": "out.jsonl", "images": COUNTS["val"] + 1, "bad": 1}
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(lines) == COUNTS["val"] + 1 and lines[-1]["error"] == "the file is empty"
    assert set(lines[0]["votes"]) == {"a", "b", "c"} and lines[0]["label"] in CLASSES
    for words, told in (
        (["trio", "-", "-o", "a.csv"], "cannot share standard input"),
        (["trio", "a.png"], "several ranks need an output file"),
        (["trio", "a.png", "-o", "a.csv", "--device", "cpu"], "ranks have one each"),
    ):
        assert ranks_module.main(words) == 2
        assert told in capsys.readouterr().err


def test_the_command_line_says_what_cannot_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.png").write_bytes(b"<html>")
    cases = [
        (["trio", "https://x.org/a.png"], 2, "expected a local path"),
        (["trio", "bad.png", "-o", "out.txt"], 2, "ends with .csv, .jsonl, .parquet"),
        (["trio", "bad.png", "--processes", "2"], 2, "several processes need an output file: give -o FILE"),
        (["trio", "bad.png", "--processes", "-1"], 2, "expected a whole number from 0"),
        (["trio", "bad.png", "-o", "a.csv", "--processes", "2", "--device", "cuda:1"], 2, "use one GPU each"),
        (["trio", "bad.png", "--batch-size", "0"], 2, "--batch-size 0: expected a whole number from 1"),
        (["trio", "bad.png", "--form", "onnx"], 2, "trio is a run; `choral export` makes a bundle"),
        ([".", "bad.png"], 2, ".: neither a bundle (a folder with bundle.json) nor a run"),
        (["nothing", "bad.png"], 2, "nothing: no such run"),
        (["trio", "bad.png", "-o", "out.csv", "--strict"], 1, "bad.png: an HTML or XML document"),
    ]
    for words, code, told in cases:
        assert main(["predict", *words]) == code, words
        assert told in " ".join(capsys.readouterr().err.split()), words
    assert not Path("out.csv").exists() and not list(Path().glob(".out*"))
    name = "\x1b[31m[red]\u202e.png"  # must neither colour nor turn what follows
    Path(name).write_bytes(b"<html>")
    assert main(["predict", "trio", "bad.png", name]) == 1
    shown = capsys.readouterr().out
    assert "unreadable" in shown and "an HTML" in shown and "\\x1b[31m[red]\\u202e.png" in shown and "\x1b" not in shown
