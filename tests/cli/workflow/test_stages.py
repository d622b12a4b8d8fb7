"""The stages of `choral run`: which are done, with what, and what the test split is asked by. Nothing is trained here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from choral.cli import main
from choral.cli.workflow import run_stages as steps
from choral.cli.workflow import stages, summary
from choral.cli.workflow.improvement import Improvement, baseline_config
from choral.config import STAGES, Config
from choral.config.files import load_config
from choral.core.errors import ConfigError, Stopped
from choral.inference.evaluation_request import EvaluationRequest
from choral.runs.run_dir import RunDir, write_json
from choral.scoring.scoreboard.recording import record_steps
from made_runs import predictions, write_ledger

MEMBERS = "ensemble.members=[{name: a}, {name: b}, {name: c}]"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.yaml").write_text("data: {shards: cells}\ntracking: {wandb: 'off'}\n", encoding="utf-8")
    return tmp_path


class Done:
    """Stands in for what trains and asks, and writes down what was wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any] | None = None) -> None:
        self.log: list[str] = []
        self.settings = settings or {}
        self.codes: dict[str, int] = {}
        for module in (steps, stages):
            monkeypatch.setattr(module, "train_all", self.train_all)
            monkeypatch.setattr(module, "evaluate", self.evaluate)
        monkeypatch.setattr(stages, "improve", self.improve)
        monkeypatch.setattr(stages, "_analyze_baseline", self.analyze)
        monkeypatch.setattr(steps, "analyze", lambda folder: self.log.append(f"page {folder.name}"))
        monkeypatch.setattr(steps, "pack_if_missing", lambda config, console: self.log.append("pack"))
        monkeypatch.setattr(steps, "score", lambda folder, split: self.log.append(f"score {folder.name}"))
        monkeypatch.setattr(steps, "print_scores", lambda *arguments: None)
        monkeypatch.setattr(steps, "export_stage", self.export)
        monkeypatch.setattr(stages, "print_improvement", lambda *arguments: None)

    def train_all(self, config: Config, folder: RunDir, console: Console) -> int:
        assert folder == RunDir.from_config(config)
        folder.store_config(config)
        write_json(folder.path / "result.json", {})
        self.log.append(f"train {config.run} rotate={config.augment.rotate:g}")
        return self.codes.get(config.run, 0)

    def evaluate(self, request: EvaluationRequest, processes: int) -> int:
        self.log.append(f"evaluate {request.run_dir.name} {request.split or 'all'}")
        for split, seed in (("val", 1), ("test", 2)):
            if split in (request.split or "val,test").split(","):
                names = ("a", "b", "c") if request.run_dir.name == "cells" else ("model",)
                labels, said = predictions(60, names, seed=seed)
                write_ledger(
                    request.run_dir.predictions / f"{split}.parquet", labels, said, evaluation=request.run_dir.name
                )
                record_steps(request.run_dir, request.run_dir.config(), split)
        return 0

    def export(self, folder: RunDir, config: Config, console: Console) -> Path:
        self.log.append(f"export {folder.name} rotate={config.augment.rotate:g}")
        return folder.path / "bundle"

    def analyze(self, folder: RunDir) -> stages.Step:
        self.log.append(f"analyze {folder.name}")
        return stages.Step(
            "analyze", "val is <b>darker</b> than train", (("../cells-baseline/advice.yaml", "The advice"),)
        )

    def improve(self, config: Config, seeds: int, rounds: int, progress: Console, test: bool) -> Improvement:
        assert not test, "the test split is for the end"
        self.log.append("improve")
        improved = improved_with(self.settings)
        write_json(RunDir.from_config(baseline_config(config)).path / "improved.json", improved.to_json())
        if self.settings:
            augmented = load_config("cells.yaml", ["run=cells-augment1", "step=+augment"])
            RunDir.from_config(augmented).store_config(augmented)
        return improved

    def run(self, *overrides: str) -> tuple[int, str]:
        output = io.StringIO()
        console = Console(file=output, width=100)
        return steps.run_all(load_config("cells.yaml", [MEMBERS, *overrides]), Console(file=io.StringIO()), console), (
            output.getvalue()
        )


def improved_with(settings: dict[str, Any]) -> Improvement:
    content: dict[str, Any] = {
        "format": "choral-improved-1",
        "run": "cells",
        "baseline": "cells-baseline",
        "seeds": 1,
        "split": "val",
        "final": "cells-augment1" if settings else "cells-baseline",
        "settings": settings,
        "test": {},
        "rounds": [],
    }
    if settings:
        tried = {"number": 1, "run": "cells-augment1", "families": ["rotation"], "settings": settings, "validation": []}
        content["rounds"] = [{**tried, "kept": True, "reason": "kept: the accuracy on val is better"}]
    return Improvement.from_json(content)


def test_by_itself_it_packs_trains_and_evaluates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Done(monkeypatch)
    code, output = done.run()
    assert code == 0
    assert done.log == ["pack", "train cells rotate=0", "evaluate cells all", "score cells"]
    assert [line.split(":")[0] for line in output.strip().splitlines()] == [
        "Run directory",
        "Classify images",
        "Compare with earlier steps",
        "Analyse errors",
    ]
    assert not (folder / "runs" / "cells" / "summary.html").exists()


def test_the_whole_workflow_looks_at_test_data_once_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Done(monkeypatch, {"rotate": 15.0})
    code, output = done.run("stages=all")
    assert code == 0
    whole = [
        *("pack", "train cells-baseline rotate=0", "evaluate cells-baseline val", "analyze cells-baseline", "improve"),
        *("train cells rotate=15", "evaluate cells all"),
        *("evaluate cells-baseline val,test", "evaluate cells-augment1 val,test", "page cells", "score cells"),
        "export cells rotate=15",
    ]
    assert done.log == whole
    assert "choral predict runs/cells/bundle IMAGE" in output
    first, second = output.index("cells, val: 60 samples"), output.index("cells, test: 60 samples")
    assert first < second
    names = [line.split()[0] for line in output[first:second].splitlines() if " [" in line and "step" not in line]
    assert names[:4] == ["baseline", "+tta", "+augment", "+tta"]
    assert names[4].startswith("cells")
    assert "use of this test split" in output[second:]
    page = (folder / "runs" / "cells" / "summary.html").read_text(encoding="utf-8")
    assert "val is &lt;b&gt;darker&lt;/b&gt; than train" in page
    assert "rotation: kept: the accuracy on val is better" in page
    assert page.count('<img src="data:image/svg+xml;base64,') == 2
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    done.log.clear()
    assert done.run("stages=[evaluate]")[0] == 0
    assert done.log == ["evaluate cells all", *whole[-5:-3], "score cells"], "what was kept is known to a later call"


def test_where_nothing_is_kept_the_ensemble_is_that_of_the_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Done(monkeypatch)
    done.run("stages=all")
    assert "train cells rotate=0" in done.log
    assert "evaluate cells-baseline val,test" in done.log
    assert not any("augment1" in line for line in done.log)


def test_what_is_stopped_stops_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Done(monkeypatch)
    done.codes["cells-baseline"] = 75
    with pytest.raises(Stopped, match="runs/cells-baseline: stopped; run the same command again to continue"):
        done.run("stages=all")
    assert done.log == ["pack", "train cells-baseline rotate=0"]


def test_an_analysis_needs_a_baseline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Done(monkeypatch)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    with pytest.raises(
        ConfigError, match=r"stages: analyze needs runs/cells-baseline, which does not exist: add the stage base"
    ):
        stages.prepare_ensemble(load_config("cells.yaml", ["stages=[analyze]"]), Console(file=io.StringIO()))


@pytest.mark.parametrize("chosen", ["evaluate", "[baseline, evaluate]"])
def test_an_evaluation_needs_a_run_before_anything_is_trained(
    chosen: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Done(monkeypatch)
    with pytest.raises(
        ConfigError, match=r"stages: evaluate needs runs/cells, which does not exist: add the stage ensemble"
    ):
        done.run(f"stages={chosen}")
    assert done.log == []


def test_an_ensemble_without_what_was_found_to_help_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, told = Done(monkeypatch, {"rotate": 15.0}), io.StringIO()
    done.run("stages=[baseline, improve]")
    console = Console(file=told, width=100)
    stages.prepare_ensemble(load_config("cells.yaml", [MEMBERS, "stages=[evaluate, ensemble]"]), console)
    assert "the ensemble does not use the improvement of cells-baseline (augment.rotate: 15.0)" in told.getvalue()
    told.truncate(0)
    done.run("stages=[improve, ensemble]")
    assert done.log[-1] == "train cells rotate=15"
    stages.prepare_ensemble(load_config("cells.yaml", [MEMBERS, "stages=[ensemble, evaluate]"]), console)
    assert "without" not in told.getvalue(), "what the ensemble was trained with is used"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stages=all"], STAGES),
        (["stages=all", "--skip", "improve"], ("pack", "baseline", "analyze", "ensemble", "evaluate", "export")),
        (["stages=all", "--skip", "analyze, improve"], ("pack", "baseline", "ensemble", "evaluate", "export")),
        (["stages=all", "--until", "analyze"], ("pack", "baseline", "analyze")),
        (["--only", "evaluate"], ("evaluate",)),
        (["--only", "improve,baseline"], ("baseline", "improve")),
        (["stages=evaluate,pack"], ("pack", "evaluate")),
        ([], ("pack", "ensemble", "evaluate")),
    ],
)
def test_stages_are_chosen(
    words: list[str], expected: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Config] = []
    monkeypatch.setattr("choral.cli.run_verbs.run_all", lambda config, *consoles: seen.append(config) or 0)
    assert main(["run", "cells.yaml", *words]) == 0
    assert seen[0].chosen_stages == tuple(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stages=[pack, imrove]"], "stages: there is no stage 'imrove'. Did you mean improve?"),
        (["stages=exprot"], "stages: there is no stage 'exprot'. Did you mean export?"),
        (["stages=[]"], "stages: expected at least one of pack, baseline"),
        (["--skip", "tune"], "--skip: there is no stage 'tune'."),
        (
            ["--until", "pack", "--skip", "pack"],
            "stages: --only, --skip and --until leave none of pack, ensemble, evaluate",
        ),
        (["--until", "pack,analyze"], "--until: expected one stage"),
        (["--until", "all"], "--until: expected one stage"),
        (["--skip", "all"], "--skip: expected some of the stages, not all of them"),
    ],
)
def test_stages_that_there_are_not(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "cells.yaml", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_links_of_the_summary_lead_to_files_that_there_are(folder: Path) -> None:
    run = RunDir(folder / "runs" / "cells")
    run.path.mkdir(parents=True)
    (run.path / "here.html").touch()
    step = summary.Step("analyze", "done", (("here.html", "The analysis"), ("../cells-baseline/gone.html", "Gone")))
    page = summary.write_summary([], [step], run).read_text(encoding="utf-8")
    assert 'href="here.html"' in page
    assert "gone.html" not in page
