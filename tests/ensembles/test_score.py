"""The score table: numbers against NumPy, the best member, identical digits at every call, and the layout."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from choral.core.errors import DataError
from choral.ensembles.score_run import Scores, score_run, to_json
from choral.ensembles.score_table import render_scores
from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table, merge_parts, write_part
from choral.metrics import bootstrap, paired_bootstrap

MEMBERS = ("a", "b [bold]", "c")
REFERENCES = [
    {"name": "SVM", "metric": "accuracy", "value": 0.8244, "source": "Deitsch et al. 2019 [table 3]"},
    {"name": "other", "metric": "macro_f1", "value": 0.9, "source": "somebody"},
]
Columns = dict[tuple[str, str], NDArray[np.float32]]


def predictions(count: int, members: tuple[str, ...] = MEMBERS, seed: int = 0) -> tuple[NDArray[np.int64], Columns]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    columns = {}
    for member in members:
        for view, noise in (("identity", 1.4), ("tta", 1.1)):
            logits = rng.normal(size=(count, 3)) * noise
            logits[np.arange(count), labels] += 1.5
            values = np.exp(logits)
            columns[member, view] = (values / values.sum(1, keepdims=True)).astype(np.float32)
    return labels, columns


def ledger(
    folder: Path,
    labels: NDArray[np.int64],
    columns: Columns,
    members: tuple[str, ...] = MEMBERS,
    views: tuple[str, ...] = ("identity", "tta"),
) -> Ledger:
    meta = LedgerMeta(("x", "y", "z"), members, views, "test", "d", "e", ("identity", "hflip"))
    keys = [f"k{number:05d}" for number in range(len(labels))]
    write_part(folder / "parts", 0, 1, build_ledger_table(meta, keys, labels, columns))
    merge_parts(folder / "parts", 1, keys, folder / "test.parquet", meta)
    return Ledger.open(folder / "test.parquet")


def rendered_lines(scores: Scores, width: int = 100) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=width).print(render_scores(scores))
    return output.getvalue().splitlines()


def test_rows_match_numpy(tmp_path: Path) -> None:
    labels, columns = predictions(400)
    scores = score_run(ledger(tmp_path, labels, columns))
    rows = {row["name"]: row for row in scores["rows"]}
    members = [f"member/{name}" for name in MEMBERS]
    expected = [*members, "soft", "hard", *(f"{name}+tta" for name in members), "soft+tta", "hard+tta"]
    assert [row["name"] for row in scores["rows"]] == expected
    hits = {}
    for view, suffix in (("identity", ""), ("tta", "+tta")):
        values = np.stack([columns[member, view] for member in MEMBERS])
        for member, name in zip(values, members, strict=True):
            hits[name + suffix] = (member.argmax(1) == labels).astype(float)
        hits["soft" + suffix] = (values.astype(float).mean(0).argmax(1) == labels).astype(float)
    best = max(members, key=lambda name: hits[name].sum())
    assert scores["best_member"] == best
    for name, hit in hits.items():
        row, interval = rows[name], bootstrap(hit)
        assert (row["metric"], row["n"], row["ties"]) == ("accuracy", 400, None)
        assert (row["value"], row["low"], row["high"]) == (interval.value, interval.low, interval.high)
        if name == best:
            assert row["difference"] is None
        else:
            gain = paired_bootstrap(hit, hits[best])
            assert row["difference"] is not None and row["difference"]["to"] == best
            assert row["difference"]["value"] == pytest.approx(gain.value)
            assert row["difference"]["low"] == pytest.approx(gain.low, abs=1e-9)
            assert row["difference"]["high"] == pytest.approx(gain.high, abs=1e-9)
    losses = -np.log(columns["a", "identity"][np.arange(400), labels].astype(float))
    loss = rows["member/a"]["log_loss"]
    assert loss is not None and loss["value"] == pytest.approx(losses.mean())
    assert loss["low"] < loss["value"] < loss["high"]
    assert rows["hard"]["log_loss"] is None and rows["hard"]["difference"] is not None
    ballots = np.stack([columns[member, "identity"].argmax(1) for member in MEMBERS])
    assert rows["hard"]["ties"] == sum(len(set(column)) == 3 for column in ballots.T)
    assert (scores["n"], scores["split"], scores["members"]) == (400, "test", list(MEMBERS))


def test_the_same_ledger_gives_the_same_text(tmp_path: Path) -> None:
    labels, columns = predictions(300)
    first = score_run(ledger(tmp_path / "1", labels, columns), REFERENCES)
    again = score_run(ledger(tmp_path / "2", labels, columns), REFERENCES)
    assert to_json(first) == to_json(again)
    assert rendered_lines(first) == rendered_lines(again)
    assert json.loads(to_json(first)) == first


def test_the_best_member_among_ties(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 0])
    sure, unsure = np.full((4, 3), 0.05, np.float32), np.full((4, 3), 0.3, np.float32)
    sure[np.arange(4), labels], unsure[np.arange(4), labels] = 0.9, 0.4
    for name, values in {"log loss": (unsure, sure, sure), "order": (sure, sure, sure)}.items():
        columns = {(member, "identity"): item for member, item in zip(MEMBERS, values, strict=True)}
        scores = score_run(ledger(tmp_path / name, labels, columns, views=("identity",)))
        assert scores["best_member"] == ("member/b [bold]" if name == "log loss" else "member/a")
        equal = scores["rows"][2]["difference"]
        assert equal is not None and (equal["value"], equal["low"], equal["high"]) == (0.0, 0.0, 0.0)


def test_one_member_without_views(tmp_path: Path) -> None:
    labels, columns = predictions(50, ("a",))
    scores = score_run(ledger(tmp_path, labels, columns, ("a",), ("identity",)))
    assert [row["name"] for row in scores["rows"]] == ["member/a", "soft", "hard"]
    assert len({(row["value"], row["low"], row["high"]) for row in scores["rows"]}) == 1
    assert not any("tta" in line for line in rendered_lines(scores))


def test_the_interval_has_a_width_if_every_prediction_is_correct(tmp_path: Path) -> None:
    labels = np.arange(180) % 3
    right = np.full((180, 3), 0.05, np.float32)
    right[np.arange(180), labels] = 0.9
    (row, *_) = score_run(ledger(tmp_path, labels, {("a", "identity"): right}, ("a",), ("identity",)))["rows"]
    assert (row["value"], row["high"]) == (1, 1) and row["low"] == pytest.approx(0.97910, abs=1e-5)


@pytest.mark.parametrize("view", ["tta", "hflip"])
def test_a_ledger_without_the_identity(tmp_path: Path, view: str) -> None:
    labels, columns = predictions(50)
    columns = {(member, view): columns[member, "tta"] for member in MEMBERS}
    scores = score_run(ledger(tmp_path, labels, columns, views=(view,)))
    assert [row["name"] for row in scores["rows"]][2:] == [f"member/c+{view}", f"soft+{view}", f"hard+{view}"]
    assert scores["best_member"].endswith(f"+{view}")


def test_table_at_100_columns(tmp_path: Path) -> None:
    labels, columns = predictions(400)
    scores = score_run(ledger(tmp_path, labels, columns), REFERENCES)
    lines = rendered_lines(scores)
    assert lines[0].strip() == "test: 400 samples"
    for row in scores["rows"]:
        (line,) = (line for line in lines if line.startswith(f"  {row['name']}  "))  # whole, on one line
        assert f"{100 * row['value']:.2f} [{100 * row['low']:.2f}, {100 * row['high']:.2f}]" in line
    (svm,) = (line for line in lines if line.startswith("  SVM"))
    assert "82.44 published" in svm and "[" not in svm
    assert any("other (macro_f1)" in line for line in lines)
    ties = next(row["ties"] for row in scores["rows"] if row["name"] == "hard")
    text = " ".join(" ".join(lines).split())
    assert "published: SVM: Deitsch et al. 2019 [table 3]" in text
    assert ties and f"tied votes, decided by mean probability: {ties} in hard" in text
    assert f"paired difference to {scores['best_member']}" in text
    assert "+tta: mean over the views identity, hflip" in text
    assert max(map(len, lines)) <= 100


def test_skipped_samples_are_reported(tmp_path: Path) -> None:
    labels, columns = predictions(5)
    meta = LedgerMeta(("x", "y", "z"), MEMBERS, ("identity",), "val", "d")
    keys = list("abcde")
    write_part(tmp_path / "parts", 0, 1, build_ledger_table(meta, keys, labels, columns), skipped=["f"])
    merge_parts(tmp_path / "parts", 1, [*keys, "f"], tmp_path / "val.parquet", meta)
    scores = score_run(Ledger.open(tmp_path / "val.parquet"))
    assert scores["skipped"] == 1
    assert rendered_lines(scores)[0].strip() == "val: 5 samples, 1 unreadable and left out"


def test_a_ledger_without_a_sample(tmp_path: Path) -> None:
    labels, columns = predictions(0)
    with pytest.raises(DataError, match=r"test\.parquet: holds no samples"):
        score_run(ledger(tmp_path, labels, columns))
