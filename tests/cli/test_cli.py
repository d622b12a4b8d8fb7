"""The command line as users meet it: help that opens with an example, and errors of one or two lines."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from choral.cli import VERBS, main, verb_parser
from toy_data import CLASSES, Choral, colour_image


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_tar_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_tar(path: Path, labels: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    colour_image((200, 60, 60), 0).save(buffer, "PNG")
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels):
            add_tar_member(tar, f"s{number}.png", buffer.getvalue())
            add_tar_member(tar, f"s{number}.cls", label.encode())


def missing_folder(here: Path) -> list[str]:
    return ["pack", "nowhere", "out"]


def empty_class(here: Path) -> list[str]:
    (here / "source" / "full").mkdir(parents=True)
    colour_image((1, 2, 3), 0).save(here / "source" / "full" / "a.png")
    (here / "source" / "hollow").mkdir()
    return ["pack", "source", "out"]


def text_named_jpg(here: Path) -> list[str]:
    for name in ("one", "two"):
        (here / "source" / name).mkdir(parents=True)
        for number in range(12):
            colour_image((1, 2, 3), number).save(here / "source" / name / f"{number}.png")
    (here / "source" / "two" / "poem.jpg").write_text("This is no photograph.")
    return ["pack", "source", "out"]


def manifest_with_a_missing_image(here: Path) -> list[str]:
    colour_image((1, 2, 3), 0).save(here / "a.png")
    (here / "list.csv").write_text("image,label\na.png,x\ngone.png,y\n")
    return ["pack", "list.csv", "out"]


def truncated_tar(here: Path) -> list[str]:
    write_tar(here / "tars" / "train-0.tar", ["0", "1", "0"])
    path = here / "tars" / "train-0.tar"
    path.write_bytes(path.read_bytes()[:3000])
    return ["pack", "tars", "out"]


def label_outside_the_classes(here: Path) -> list[str]:
    write_tar(here / "tars" / "train-0.tar", ["0", "1", "7"])
    (here / "tars" / "classes.txt").write_text("zero\none\n")
    return ["pack", "tars", "out"]


def misspelt_key(here: Path) -> list[str]:
    (here / "c.yaml").write_text("data: {shards: s}\ntrain: {learning_rate: 1}\n")
    return ["config", "c.yaml"]


def negative_rate(here: Path) -> list[str]:
    (here / "c.yaml").write_text("data: {shards: s}\n")
    return ["run", "c.yaml", "train.lr=-1"]


def shards_that_are_not_there(here: Path) -> list[str]:
    (here / "c.yaml").write_text("data: {shards: nowhere}\n")
    return ["train", "c.yaml"]


def run_of_another_config(here: Path) -> list[str]:
    (here / "c.yaml").write_text("data: {shards: nowhere}\n")
    (here / "runs" / "c" / "members" / "m" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (here / "runs" / "c" / "config.yaml").write_text("run: c\ndata: {shards: nowhere}\ntrain: {lr: 0.5}\n")
    return ["train", "c.yaml"]


@pytest.mark.parametrize(
    ("mistake", "words", "status"),
    [
        (missing_folder, ["nowhere"], {1, 2}),
        (empty_class, ["hollow"], {1}),
        (text_named_jpg, ["poem.jpg"], {1}),
        (manifest_with_a_missing_image, ["list.csv", "gone.png"], {1}),
        (truncated_tar, ["train-0.tar"], {1}),
        (label_outside_the_classes, ["train-0.tar", "s2", "7"], {1}),
        (misspelt_key, ["c.yaml", "train.learning_rate: unknown key"], {2}),
        (negative_rate, ["c.yaml", "train.lr: expected a learning rate above 0, got -1"], {2}),
        (shards_that_are_not_there, ["nowhere", "choral pack"], {1}),
        (run_of_another_config, ["runs/c", "train.lr: 0.5 -> 0.001", "run=NAME"], {2}),
        (lambda here: ["score", "nothing"], ["nothing: no such run"], {2}),
        (lambda here: ["pakc", "a", "b"], ["'pakc' is not a verb. Did you mean pack?"], {2}),
    ],
)
def test_a_mistake_gets_one_or_two_lines(
    here: Path, capsys: pytest.CaptureFixture[str], mistake: object, words: list[str], status: set[int]
) -> None:
    arguments = mistake(here)  # type: ignore[operator]
    assert main(arguments) in status
    printed = capsys.readouterr().err.strip()
    lines = [line for line in printed.splitlines() if line.strip()]
    assert 1 <= len(lines) <= 2, printed
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in printed
    left = {path.name for path in (here / "out").iterdir()} if (here / "out").exists() else set()
    assert not left, f"half-written: {left}"
    assert not list((here / "runs").glob("*/metrics.jsonl"))


def test_a_misspelt_model_is_told_the_nearest(config_file: Path, choral: Choral) -> None:
    result = choral("train", config_file, "model.name=resnet81")
    assert result.returncode in (1, 2)
    assert "timm has no model 'resnet81'. Did you mean resnet18" in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2, result.stderr
    mended = choral("train", config_file, "train.steps=1")  # in the same run folder: nothing was trained in it yet
    assert mended.returncode == 0, mended.stderr


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_each_verb_opens_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    first, example = capsys.readouterr().out.splitlines()[:2]
    assert first == "Example:"
    assert example.strip().startswith(f"choral {verb} ")
    verb_parser(verb).parse_intermixed_args(example.split()[2:])  # what stands there is accepted


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == status
        printed = capsys.readouterr().out
        assert printed.startswith("Example")
        assert all(f"\n  {verb} " in printed for verb in VERBS)


def test_wrong_usage_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["pack"])
    assert caught.value.code == 2
    assert "the following arguments are required: SOURCE, OUT" in capsys.readouterr().err


def test_ls_as_json(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(shards), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert sorted(summary["classes"]) == sorted(CLASSES)
    assert {name: split["samples"] for name, split in summary["splits"].items()} == {"train": 37, "val": 13, "test": 11}


def test_check_finds_a_flipped_bit(shards: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(shards, here / "copy")
    assert main(["check", str(copy)]) == 0
    shard = sorted(copy.glob("*.tar"))[0]
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert main(["check", str(copy)]) == 1
    assert shard.name in capsys.readouterr().out


def test_config_prints_what_runs(config_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", str(config_file), "train.lr=1e-4"]) == 0
    printed = capsys.readouterr().out
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert main(["config", str(again)]) == 0
    assert capsys.readouterr().out == printed
    assert "lr: 0.0001" in printed
