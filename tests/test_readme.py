"""The commands of the README, as they stand there, on a folder of a newcomer's own images."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from toy_data import CLASSES, REPOSITORY

GUIDES = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in [
        REPOSITORY / "README.md",
        *sorted(REPOSITORY.glob("configs/*.md")),
        *sorted(REPOSITORY.glob("*/README.md")),
        *sorted((REPOSITORY / "src" / "choral").rglob("README.md")),
        REPOSITORY / ".github" / "CONTRIBUTING.md",
    ]
}
README = GUIDES["README.md"]


def blocks_of(guide: str) -> list[list[str]]:
    """Return the commands of each fenced `sh` block of a guide, without comments."""
    found = re.findall(r"```sh\n(.*?)```", GUIDES[guide], re.DOTALL)
    return [re.sub(r"\s{2,}#.*", "", block).splitlines() for block in found]


BLOCKS = blocks_of("README.md")
# The same commands, made short: two steps on small images.
SHORT = ["train.steps=2", "data.image_size=32", "tracking.wandb=off"]


@pytest.fixture(scope="module")
def newcomer(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos/ in it, whose classes hold spaces, quotes and letters beyond ASCII, and the project's files."""
    folder = tmp_path_factory.mktemp("newcomer")
    for path in photos.glob("*/*/*.png"):
        target = folder / "photos" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name in ("configs", "launch"):
        shutil.copytree(REPOSITORY / name, folder / name)
    images = sorted(path.relative_to(folder) for path in folder.glob("photos/*/*.png"))
    for name, column in (("scenes", "label"), ("parcels", "weight")):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["image", column])
            for number, image in enumerate(images):
                labels = [label for label, every in (("sun", 2), ("beach", 3)) if number % every == 0]
                rows.writerow([image, ";".join(labels) if name == "scenes" else number / 8])
    yield folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    if "configs/default.yaml" in words:
        words += SHORT
    scripts = Path(sys.executable).parent
    env = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "NO_COLOR": "1",
    }
    if words[0] == "choral":
        words[:1] = [sys.executable, "-m", "choral"]
    elif words[:2] == ["accelerate", "launch"]:
        count = [] if "--num_processes" in words else ["--num_processes", "1"]
        words[:2] = [sys.executable, "-m", "accelerate.commands.launch", *count]
    output, words = (folder / words[-1], words[:-2]) if ">" in words else (None, words)
    # Otherwise the shell's only part in these commands is to expand photos/*/*.png.
    words = [name for word in words for name in (sorted(map(str, folder.glob(word))) if "*" in word else [word])]
    result = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    if output is not None:
        output.write_text(result.stdout)
    return result


@pytest.mark.demo
@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_commands_of_a_block_work_in_order(newcomer: Path, block: int) -> None:
    if block and not (newcomer / "runs" / "first").exists():
        pytest.fail("the first block did not leave the run that the others are about")
    for command in BLOCKS[block]:
        result = run(command, newcomer)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        if command.startswith("choral predict"):
            assert result.stdout.count(".png") >= 50
            answers = [line for line in result.stdout.splitlines() if "model:" in line]
            assert len(answers) >= 50
            assert all(any(label in line.split(".png")[-1] for label in CLASSES) for line in answers), result.stdout
        if command.startswith("choral score"):
            assert "member/model" in result.stdout and "95 %" in result.stdout


@pytest.mark.demo
@pytest.mark.parametrize("guide", [name for name in GUIDES if name != "README.md" and blocks_of(name)])
def test_commands_of_a_guide_work_in_order(guide: str, newcomer: Path, tmp_path: Path) -> None:
    """Each guide starts from what the first block of the README leaves, in a directory of its own."""
    if not (newcomer / "runs" / "first" / "scores-test.json").exists():
        for command in BLOCKS[0]:
            assert run(command, newcomer).returncode == 0, command
    for name in ("photos", "shards", "configs", "launch", "scenes.csv", "parcels.csv"):
        (tmp_path / name).symlink_to(newcomer / name)
    shutil.copytree(newcomer / "runs" / "first", tmp_path / "runs" / "first")
    for block in blocks_of(guide):
        for command in block:
            result = run(command, tmp_path)
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


@pytest.mark.demo
@pytest.mark.parametrize(
    "launcher",
    [
        "accelerate launch --config_file launch/gpus.yaml --num_processes 8",
        "accelerate launch --multi_gpu --num_processes 2",
    ],
)
def test_ranks_through_accelerate_s_own_launcher(newcomer: Path, launcher: str) -> None:
    """As launch/README.md has it for GPUs; here, as it has it for CPUs, with ACCELERATE_USE_CPU=true, and two ranks."""
    assert launcher in GUIDES["launch/README.md"]
    command = (
        launcher.replace(" 8", " 2") + f" launch/train.py configs/default.yaml data.shards=shards/ run=r{len(launcher)}"
    )
    result = run(command, newcomer)
    assert result.returncode == 0, result.stderr
    assert (newcomer / "runs" / f"r{len(launcher)}" / "result.json").exists()


def test_the_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tests/bench/bench_stream.py"), "--images", "64", "--rounds", "1"]
    command += ["--only", "choral, antialias"]
    assert "python tests/bench/bench_stream.py" in GUIDES["src/choral/data/README.md"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert result.returncode == 0, result.stderr
    assert "imagefolder" in result.stdout.lower() and "choral, antialias" in result.stdout


def test_five_commands_lead_from_a_folder_to_predictions() -> None:
    verbs = [shlex.split(command)[1] for command in BLOCKS[0]]
    assert verbs == ["pack", "ls", "run", "score", "predict"]


def test_scripts_named_in_the_guides_exist_and_can_run() -> None:
    for guide, text in GUIDES.items():
        for name in set(re.findall(r"(?<![\w/])(?:\./)?((?:launch|configs|slurm|tests)/[\w./-]*\w)", text)):
            found = [base / name.rstrip("/.") for base in (REPOSITORY, (REPOSITORY / guide).parent)]
            assert any(path.exists() for path in found), f"{guide}: {name}"
    for name in ("launch/demo", "launch/test", ".ci/run"):
        assert os.access(REPOSITORY / name, os.X_OK), name


def test_links_between_guides_lead_somewhere() -> None:
    for guide, text in GUIDES.items():
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", text):
            assert ((REPOSITORY / guide).parent / target).exists(), f"{guide}: {target}"


def test_sections_that_links_name_exist() -> None:
    for guide, text in GUIDES.items():
        for target, section in re.findall(r"\]\(([^):\s#]*)#([\w-]+)\)", text):
            path = (REPOSITORY / guide).parent / target if target else REPOSITORY / guide
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            names = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert section in names, f"{guide}: {target}#{section}"


def test_guides_are_short() -> None:
    assert README.count("\n") <= 220
    long = {name: text.count("\n") for name, text in GUIDES.items() if name.endswith("README.md")}
    assert all(lines <= 220 if name == "README.md" else lines <= 200 for name, lines in long.items()), long


def test_rooms_named_in_the_file_tree_are_those_that_exist() -> None:
    tree = README.split("## What is where")[1].split("##")[0]
    named = {name.rstrip("/") for name in re.findall(r"^ {6}([\w./]+)", tree, re.MULTILINE)}
    rooms = {path.parent.name for path in (REPOSITORY / "src" / "choral").glob("*/__init__.py")}
    assert named == rooms


@pytest.mark.demo
def test_the_demo_runs_and_is_not_done_twice(tmp_path: Path) -> None:
    """What ./launch/demo runs, made short: pack, three members at once, votes, the published figures."""
    command = [sys.executable, "-m", "choral", "run", str(REPOSITORY / "configs" / "elpv-demo.yaml")]
    command += ["train.epochs=0.04", "data.image_size=32", "evaluate.views=identity,rot90", "tracking.wandb=off"]
    env = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}

    def call(*more: str) -> str:
        result = subprocess.run(
            [*command, *more], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.split("Run directory")[0]

    table = call()
    for name in ("member/first", "member/third+tta", "soft+tta", "hard+tta", "82.44", "88.42", "656 samples"):
        assert name in table
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert weights
    assert call() == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == weights
    score = [sys.executable, "-m", "choral", "score", "elpv-demo", "--json"]
    rows = json.loads(subprocess.run(score, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout)[
        "rows"
    ]
    assert [row["name"] for row in rows][:5] == ["member/first", "member/second", "member/third", "soft", "hard"]
    packed = json.loads((tmp_path / "data" / "elpv" / "dataset.json").read_text())["splits"]
    assert {name: split["samples"] for name, split in packed.items()} == {"train": 1706, "val": 262, "test": 656}
