"""The scoreboard: what is appended, what is compared, and that it survives renamed, moved and deleted runs."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from choral.cli import main
from choral.cli.workflow.calibration import calibrate
from choral.cli.workflow.scoreboard import print_board, project_scores
from choral.cli.workflow.scores import combine, score
from choral.config import Config, config_hash
from choral.config.files import load_config
from choral.core import files
from choral.core.errors import ConfigError
from choral.data.shards.index import Dataset
from choral.ensembles.saved_combination import CombinationRequest
from choral.metrics.intervals import paired_bootstrap
from choral.metrics.per_sample import correct, top_class
from choral.runs.run_dir import RunDir, write_json
from choral.scoring.calibrate import CalibrationRequest
from choral.scoring.predictor import list_predictors, load_predictor
from choral.scoring.scoreboard.board import Scoreboard
from choral.scoring.scoreboard.figure import draw_board
from choral.scoring.scoreboard.recording import record_steps, resolve_project
from choral.scoring.scoreboard.rows import BoardTable, build_board_tables
from choral.scoring.scoreboard.table import build_board_notes, render_board
from choral.scoring.scoreboard.test_set_uses import read_test_set_uses, resolve_scoreboard_root
from choral.scoring.stored_predictor import (
    StoredPredictions,
    compute_estimates,
    read_parquet_bytes,
    write_parquet_bytes,
)
from drawn_figures import misplaced_texts, svg_texts
from made_runs import made_run, numbers, predictions, write_ledger

SHARED = ["project=cells", "ensemble.members=[{name: a}, {name: b}, {name: c}]"]


def run_of(tmp_path: Path, name: str, seed: int, *overrides: str, **options: Any) -> tuple[RunDir, Config]:
    labels, columns = predictions(80, seed=7)
    noise = np.random.default_rng(seed)
    for key, values in columns.items():  # the same samples, other predictors
        mixed = values + noise.uniform(0, 0.5, values.shape).astype("f4")
        columns[key] = mixed / mixed.sum(1, keepdims=True)
    ledgers = {"test": (labels, columns), "val": predictions(60, seed=seed)}
    return made_run(tmp_path / "runs" / name, ledgers, [*SHARED, *overrides], **options)


def board(tmp_path: Path) -> Scoreboard:
    return Scoreboard.find(tmp_path / "runs" / "scoreboard", "cells")


def tables(tmp_path: Path, metric: str = "") -> list[BoardTable]:
    return build_board_tables(board(tmp_path), board(tmp_path).entries()[0], metric)


def test_steps_of_an_ensemble_are_appended_once(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, "first", 1, "step=baseline")
    write_json(run.member("b").path / "result.json", {"train_minutes": 2.5})
    write_json(run.member("a").path / "result.json", {"train_minutes": 1.25})
    for _ in range(2):
        record_steps(run, config, "test")
    (table,) = tables(tmp_path)
    assert [row["name"] for row in table["rows"]] == ["baseline", "baseline +ensemble", "baseline +tta"]
    first, vote, views = table["rows"]
    losses = {}
    for name in "abc":
        said = load_predictor(run, config, "val", f"member/{name}")
        losses[name] = -np.log(said.predictions[np.arange(60), said.ledger.labels]).mean()
    likeliest = min(losses, key=lambda name: losses[name])
    assert [row["predictor"] for row in table["rows"]] == [f"member/{likeliest}", "soft", "soft+tta"]
    assert (vote["minutes"], views["minutes"]) == (3.75, 3.75)
    assert first["minutes"] == {"a": 1.25, "b": 2.5, "c": None}[likeliest]
    assert first["config"] == config_hash(config) and first["there"] and first["to_before"] is None
    assert (table["project"], table["samples"], table["metric"]) == ("cells", 80, "accuracy")


def test_differences_are_those_of_the_predictions(tmp_path: Path) -> None:
    hits = {}
    for name, seed in (("first", 1), ("second", 2)):
        run, config = run_of(tmp_path, name, seed, f"step=+{name}")
        record_steps(run, config, "test")
        for predictor in ("soft", "soft+tta"):
            said = load_predictor(run, config, "test", predictor)
            hits[name, predictor] = correct(said.ledger.labels, top_class(said.predictions))
    (table,) = tables(tmp_path)
    rows = {row["name"]: row for row in table["rows"]}
    assert [row["before"] for row in table["rows"]] == [
        "",
        "+first",
        "+first +ensemble",
        "+first",
        "+second",
        "+second +ensemble",
    ]
    expected = paired_bootstrap(hits["second", "soft+tta"], hits["second", "soft"])
    found = rows["+second +tta"]["to_before"]
    assert found is not None and found["to"] == "+second +ensemble"
    assert (found["value"], found["low"], found["high"]) == pytest.approx((expected.value, expected.low, expected.high))
    best = max(table["rows"], key=lambda row: row["metrics"]["accuracy"]["value"])
    assert table["best"] == best["id"] and best["to_best"] is None
    others = [row["to_best"] for row in table["rows"] if row is not best]
    assert all(gain is not None and gain["to"] == best["name"] and gain["value"] <= 0 for gain in others)
    by_loss = tables(tmp_path, "log_loss")[0]
    assert by_loss["best"] == min(by_loss["rows"], key=lambda row: row["metrics"]["log_loss"]["value"])["id"]
    with pytest.raises(
        ConfigError, match=r"--metric: no 'acuracy'\. Did you mean accuracy\? There are: accuracy, log_loss"
    ):
        tables(tmp_path, "acuracy")


def test_no_interval_is_empty_where_all_are_right() -> None:
    labels = np.arange(180) % 3
    records = {
        "right": StoredPredictions(labels.astype(np.int32)),
        "wrong": StoredPredictions((labels + 1).astype(np.int32) % 3),
    }
    found = compute_estimates("multiclass", labels, records)["accuracy"]
    assert found["right"].interval.high == 1 and found["right"].interval.low == pytest.approx(0.97910, abs=1e-5)
    assert found["wrong"].interval.low == 0 and found["wrong"].interval.high == pytest.approx(0.02090, abs=1e-5)


def test_scoreboard_outlives_the_runs(tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("second", 2)):
        run, config = run_of(tmp_path, name, seed)
        record_steps(run, config, "test")
    before = tables(tmp_path)
    shutil.rmtree(tmp_path / "runs" / "first")
    after = tables(tmp_path)
    assert [row["there"] for row in after[0]["rows"]] == [False] * 3 + [True] * 3
    for row in (*before[0]["rows"], *after[0]["rows"]):
        row["there"] = True
    assert before == after


@pytest.mark.parametrize(
    "change", [{"dataset": "packed again"}, {"keys": [f"other{number:05d}" for number in range(80)]}, {"labels": 0}]
)
def test_other_samples_are_another_table(tmp_path: Path, change: dict[str, Any]) -> None:
    run, config = run_of(tmp_path, "first", 1)
    record_steps(run, config, "test")
    run, config = run_of(tmp_path, "second", 2)
    labels, columns = predictions(80, seed=7)
    if "labels" in change:
        labels[3] = (labels[3] + 1) % 3
        change = {}
    write_ledger(run.predictions / "test.parquet", labels, columns, **change)
    record_steps(run, config, "test")
    one, other = tables(tmp_path)
    assert one["data"] != other["data"]
    assert other["rows"][0]["to_before"] is None and other["rows"][0]["before"] == ""
    assert {row["run"] for row in one["rows"]} == {"first"} and {row["run"] for row in other["rows"]} == {"second"}
    names = {row["name"] for row in other["rows"]}
    assert all(row["to_best"]["to"] in names for row in other["rows"] if row["to_best"])


def test_damage_is_reported_and_repaired_by_evaluating_again(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, "first", 1)
    record_steps(run, config, "test")
    whole = tables(tmp_path)
    path = board(tmp_path).path
    one, other = (number for number, row in enumerate(whole[0]["rows"]) if row["id"] != whole[0]["best"])
    record = path / "records" / f"{whole[0]['rows'][one]['id']}.parquet"
    record.write_bytes(record.read_bytes()[:-3])
    (table,) = tables(tmp_path)
    damaged = table["rows"][one]
    assert "missing or damaged" in damaged["not_compared"] and damaged["to_before"] is damaged["to_best"] is None
    assert damaged["metrics"] == whole[0]["rows"][one]["metrics"], "as they were when it was evaluated"
    assert table["rows"][other]["to_best"] == whole[0]["rows"][other]["to_best"] is not None
    (path / "samples" / f"{table['data']}.parquet").unlink()
    assert all("not_compared" in row for row in tables(tmp_path)[0]["rows"])
    lines = (path / "entries.jsonl").read_text().splitlines()
    (path / "entries.jsonl").write_text("\n".join([lines[0], lines[1][:40], lines[2].replace("+tta", "", 1)[:-20]]))
    entries, count = board(tmp_path).entries()
    assert (len(entries), count) == (1, 2)
    shown = io.StringIO()
    found = project_scores(tmp_path / "runs" / "scoreboard", "cells")
    print_board(found, Console(file=shown, width=100))
    assert "2 damaged entries are left out; `choral score RUN` appends" in shown.getvalue()
    assert "not compared: " in shown.getvalue()
    record_steps(run, config, "test")
    assert {row["id"]: row["to_best"] for row in tables(tmp_path)[0]["rows"]} == {
        row["id"]: row["to_best"] for row in whole[0]["rows"]
    }


def test_entries_of_earlier_versions_are_read(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, "first", 1)
    record_steps(run, config, "test")
    before, path = tables(tmp_path), board(tmp_path).path
    lines = [json.loads(line) for line in (path / "entries.jsonl").read_text().splitlines()]
    for line in lines:
        record = path / "records" / f"{line['id']}.parquet"
        columns = read_parquet_bytes(record.read_bytes())
        old = write_parquet_bytes(
            {"said" if name == "prediction" else name: values for name, values in columns.items()}
        )
        record.write_bytes(old)
        line |= {"said": line.pop("content_id"), "record": hashlib.sha256(old).hexdigest()}
    (path / "entries.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert tables(tmp_path) == before
    record_steps(run, config, "test")
    assert tables(tmp_path) == before and len(board(tmp_path).entries()[0]) == 3, "nothing is appended twice"


def test_other_weights_are_another_step_and_another_name_is_not(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, "first", 1, "step=old")
    record_steps(run, config, "test")
    renamed = load_config(tmp_path / "runs" / "made.yaml", [*SHARED, "step=new"])
    record_steps(run, renamed, "test")
    assert [row["name"] for row in tables(tmp_path)[0]["rows"]] == ["new", "new +ensemble", "new +tta"]
    shutil.rmtree(run.path)
    run, config = run_of(tmp_path, "first", 5, "step=new", evaluation="other weights")
    record_steps(run, config, "test")
    rows = tables(tmp_path)[0]["rows"]
    assert [row["name"] for row in rows[3:]] == ["new #2", "new +ensemble #2", "new +tta #2"]
    assert rows[3]["before"] == "new"


def test_held_out_samples_are_a_table_of_their_own_and_no_use_of_a_test_split(tmp_path: Path) -> None:
    """Out-of-fold predictions: rows of the group, with the training minutes of all its members."""
    for name, seed in (("first", 1), ("second", 2)):
        ledgers = {"held-out": predictions(70, ("folds",), seed=3), "test": predictions(40, seed=seed)}
        overrides = ["project=cells", "ensemble.folds=2"]
        run, config = made_run(tmp_path / "runs" / name, ledgers, overrides)
        for number in (1, 2):
            write_json(run.member(f"fold{number}").path / "result.json", {"train_minutes": 1.5})
        record_steps(run, config, "held-out")
        assert score(run, "held-out")["n"] == 70
    (table,) = tables(tmp_path)
    names = ["first", "first +tta", "second", "second +tta"]
    assert table["split"] == "held-out" and [row["name"] for row in table["rows"]] == names
    assert {row["minutes"] for row in table["rows"]} == {3.0}
    assert table["rows"][2]["to_before"]["value"] == 0 and table["rows"][2]["before"] == "first"
    assert read_test_set_uses(resolve_scoreboard_root(run), "d", "held-out", "multiclass").predictors == 0


def test_the_last_digits_of_another_device_are_no_new_step_and_no_new_use(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, "first", 1)
    record_steps(run, config, "test")
    before = tables(tmp_path)
    labels, columns = predictions(80, seed=7)
    rng = np.random.default_rng(1)
    for key, values in columns.items():
        mixed = values + rng.uniform(0, 0.5, values.shape).astype("f4")
        columns[key] = np.nextafter(mixed / mixed.sum(1, keepdims=True), np.float32(1))
    write_ledger(run.predictions / "test.parquet", labels, columns)
    score(run, "test")
    count = read_test_set_uses(resolve_scoreboard_root(run), "d", "test", "multiclass").predictors
    assert tables(tmp_path) == before and count == len(list_predictors(run, config, "test"))


def test_combinations_and_scores_are_appended_too(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, "first", 1)
    score(run, "test")
    for _ in range(2):
        combine(run, "test", CombinationRequest(rule="weighted", weights={"a": 0.5, "b": 0.5, "c": 0.0}, name="pair"))
    parts = [row["part"] for row in tables(tmp_path)[0]["rows"]]
    assert parts == ["", "+ensemble", "+tta", "+pair"]


def test_one_model_without_and_with_views(tmp_path: Path) -> None:
    labels, columns = predictions(40, ("model",))
    run, config = made_run(tmp_path / "runs" / "alone", {"test": (labels, columns)}, ["project=cells", "step=one"])
    record_steps(run, config, "test")
    assert [row["name"] for row in tables(tmp_path)[0]["rows"]] == ["one", "one +tta"]
    assert [row["minutes"] for row in tables(tmp_path)[0]["rows"]] == [None, None]


@pytest.mark.parametrize(("task", "metric"), [("multilabel", "mean_ap"), ("regression", "rmse")])
def test_other_tasks(tmp_path: Path, task: str, metric: str) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (40, 2)).astype("f4")
    for name in ("first", "second"):
        run, config = made_run(tmp_path / "runs" / name, {}, SHARED)
        write_ledger(run.predictions / "test.parquet", labels, numbers(labels, task, seed=len(name)), ("u", "v"), task)
        record_steps(run, config, "test")
    (table,) = tables(tmp_path)
    assert table["metric"] == metric and [row["part"] for row in table["rows"]] == ["", "+ensemble"] * 2
    vote = table["rows"][1]
    said = load_predictor(*made_again(tmp_path), "test", vote["predictor"])
    if task == "regression":
        expected = np.sqrt(((said.predictions.astype("f8") - labels) ** 2).mean(axis=0)).mean()
        assert vote["metrics"]["rmse"]["value"] == pytest.approx(expected)
        assert table["best"] == min(table["rows"], key=lambda row: row["metrics"]["rmse"]["value"])["id"]
    else:
        from sklearn.metrics import average_precision_score

        assert vote["metrics"]["mean_ap"]["value"] == pytest.approx(average_precision_score(labels, said.predictions))
    gains = [row["to_before"] for row in table["rows"]]
    assert gains[0] is None and all(gain and gain["low"] <= gain["value"] <= gain["high"] for gain in gains[1:])


def made_again(tmp_path: Path) -> tuple[RunDir, Config]:
    run = RunDir(tmp_path / "runs" / "first")
    return run, run.config()


def test_table_fits_into_80_columns_and_figure_holds_all_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("first", 1), ("second", 2)):
        run, config = run_of(tmp_path, name, seed, f"step=+a_rather_long_{name}")
        record_steps(run, config, "test")
    scores = project_scores(tmp_path / "runs" / "scoreboard", "cells")
    shown = {}
    for width in (80, 120):
        output = io.StringIO()
        print_board(scores, Console(file=output, width=width))
        shown[width] = output.getvalue()
        lines = [line for line in output.getvalue().splitlines() if not line.startswith("Figure:")]
        assert max(map(len, lines)) <= width
    assert "6th use of this test split (test)" in shown[80] and shown[80].count("  +tta") == 2
    assert "●" in shown[120] and "●" not in shown[80]
    path = Path(scores["figures"][0])
    assert path.with_suffix(".png").is_file()
    content = path.read_bytes()
    texts = svg_texts(content)
    assert texts.count("+tta") == 2 and "+a_rather_long_first" in texts and misplaced_texts(content) == []
    figure = draw_board(scores["tables"][0])
    points = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert points == [pytest.approx(100 * row["metrics"]["accuracy"]["value"]) for row in scores["tables"][0]["rows"]]


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_a_narrow_terminal_costs_the_second_metric_before_the_names(tmp_path: Path, metric: str) -> None:
    for name, seed in (("first", 1), ("second", 9)):
        run, config = run_of(tmp_path, name, seed)
        record_steps(run, config, "test")
    scores = project_scores(tmp_path / "runs" / "scoreboard", "cells", metric=metric)
    other = {"accuracy": "log loss ", "log_loss": "accuracy"}[metric]
    for width in range(80, 131):
        output = io.StringIO()
        Console(file=output, width=width).print(render_board(scores["tables"][0], width))
        lines = [line.strip() for line in output.getvalue().splitlines()]
        whole = metric == "accuracy" or width >= 90  # of narrower columns there is nothing left to drop
        assert sum(line.startswith("+ensemble" if whole else "+ensem") for line in lines) == 2, output.getvalue()
        if width == 130 or (width == 80 and metric == "log_loss"):
            assert (other in f"{lines[1]} ") == (width == 130)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["scores"]) == 2
    assert "nothing has been evaluated yet" in capsys.readouterr().err
    run, config = run_of(tmp_path, "first", 1)
    record_steps(run, config, "test")
    record_steps(run, config, "val")
    assert main(["scores", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [table["split"] for table in found["tables"]] == ["test"] and found["test_set_uses"] == [3]
    assert main(["scores", "cells", "--split", "val"]) == 0
    shown = capsys.readouterr().out
    assert "cells, val: 60 samples" in shown and "use of" not in shown and "not a test split" in shown
    other, config = run_of(tmp_path, "second", 2, "project=leaves")
    record_steps(other, config, "test")
    assert main(["scores"]) == 0
    assert "leaves" in capsys.readouterr().out
    assert main(["scores", "cels"]) == 2
    assert "cels: no such project. Did you mean cells? There are: cells, leaves" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main(["scores", "cells", "--split", "tset"]) == 2
    assert "Did you mean test?" in capsys.readouterr().err


def test_only_the_main_rank_of_an_external_launcher_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from choral.inference import __main__ as evaluation

    run, _ = run_of(tmp_path, "first", 1)
    for code, rank, expected in ((0, "0", [run.path]), (0, "1", []), (75, "0", [])):
        monkeypatch.setattr(evaluation, "_evaluate", lambda request, config, code=code: code)
        monkeypatch.setenv("RANK", rank)
        asked: list[Path] = []
        assert (
            evaluation.main([str(run.path)], after=lambda request, asked=asked: asked.append(request.run_dir.path))
            == code
        )
        assert asked == expected


def test_the_project_is_the_data_set_unless_it_is_named(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "made.yaml").write_text(f"data: {{shards: '{shards}'}}\n")
    assert resolve_project(load_config(tmp_path / "made.yaml")) == Dataset.open(shards).name
    assert resolve_project(load_config(tmp_path / "made.yaml", ["project=mine"])) == "mine"
    assert resolve_project(load_config(tmp_path / "made.yaml", ["data.shards=/nowhere/my cells"])) == "my-cells"
    with pytest.raises(ConfigError, match=r"project: '\.\./up' is not a scoreboard name"):
        load_config(tmp_path / "made.yaml", ["project=../up"])
    with pytest.raises(ConfigError, match="run: runs/scoreboard holds the scoreboards"):
        load_config(tmp_path / "made.yaml", ["run=scoreboard"])


def test_config_hash_covers_what_changes_the_result(tmp_path: Path) -> None:
    (tmp_path / "made.yaml").write_text("data: {shards: s}\n")
    plain = load_config(tmp_path / "made.yaml")
    assert config_hash(load_config(tmp_path / "made.yaml", ["step=x", "run=y", "train.lr=1e-3"])) == config_hash(plain)
    assert config_hash(load_config(tmp_path / "made.yaml", ["train.lr=2e-3"])) != config_hash(plain)


def test_renamed_and_moved_runs_keep_their_entries(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, "first", 1)
    record_steps(run, config, "test")
    for name in ("second", "third"):
        run.path.rename(run.path.with_name(name))
        run = RunDir(run.path.with_name(name))
        for _ in range(2):
            record_steps(run, config, "test")
        (table,) = tables(tmp_path)
        assert [row["name"] for row in table["rows"]] == [name, f"{name} +ensemble", f"{name} +tta"]
        assert all(row["there"] and row["run"] == name for row in table["rows"])
    assert len(board(tmp_path).entries()[0]) == 3
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = Scoreboard(tmp_path / "moved" / "scoreboard" / "cells")
    assert all(row["there"] for row in build_board_tables(moved, moved.entries()[0])[0]["rows"])
    record_steps(RunDir(tmp_path / "moved" / "third"), config, "test")
    (table,) = build_board_tables(moved, moved.entries()[0])
    assert [row["name"] for row in table["rows"]] == ["third", "third +ensemble", "third +tta"]
    assert table["rows"][0]["folder"] == str(tmp_path / "moved" / "third")


def test_a_copy_of_a_run_is_a_step_of_its_own(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, "first", 1)
    record_steps(run, config, "test")
    shutil.copytree(run.path, run.path.with_name("second"))
    record_steps(RunDir(run.path.with_name("second")), config, "test")
    assert [row["run"] for row in tables(tmp_path)[0]["rows"]] == ["first"] * 3 + ["second"] * 3


def test_refitted_combinations_belong_to_the_same_run(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, "first", 1)
    for weight in (0.5, 0.25):
        combine(
            run,
            "test",
            CombinationRequest(rule="weighted", weights={"a": weight, "b": 1 - weight, "c": 0}, name="pair"),
        )
        record_steps(run, config, "test")
    (table,) = tables(tmp_path)
    assert [row["name"] for row in table["rows"]] == [
        "first",
        "first +pair",
        "first +ensemble",
        "first +tta",
        "first +pair #2",
    ]
    assert [row["before"] for row in table["rows"]] == ["", *(row["name"] for row in table["rows"][:-1])]


def test_a_member_evaluated_by_itself_is_on_the_scoreboard_of_its_ensemble(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, "first", 1)
    record_steps(run, config, "test")
    member, config = made_run(run.member("a").path, {"test": predictions(80, ("model",), seed=7)}, ["project=cells"])
    record_steps(member, config, "test")
    assert not (run.path / "members" / "scoreboard").exists()
    (table,) = tables(tmp_path)
    assert table["rows"][-1]["run"] == "first/members/a" and table["rows"][-1]["there"]
    assert read_test_set_uses(resolve_scoreboard_root(run), "d", "test", "multiclass").predictors == 5


def test_decisions_with_costs_are_a_step_of_their_own(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, "first", 1)
    names = []
    for costs in ("", "x->y=20", ""):
        calibrate(run, "test", CalibrationRequest(costs=costs))
        names.append([row["name"] for row in tables(tmp_path)[0]["rows"]][3:])
    assert names[0] == ["first +calibrated"] and names[1] == names[2] == ["first +calibrated", "first +decided"]
    plain, decided = tables(tmp_path)[0]["rows"][3:]
    said = load_predictor(run, config, "test")
    assert plain["metrics"]["accuracy"]["value"] == (said.decisions == said.ledger.labels).mean()
    assert decided["metrics"]["accuracy"]["value"] < plain["metrics"]["accuracy"]["value"]
    assert decided["metrics"]["log_loss"] == plain["metrics"]["log_loss"]
    assert any(note.startswith("+decided: with costs") for note in build_board_notes(tables(tmp_path)[0]))


def test_two_machines_may_write_a_file_at_once_under_the_same_process_id(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    with files.atomic_file(path) as one:
        one.write(b"first")
        with files.atomic_file(path) as other:
            other.write(b"other")
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]
