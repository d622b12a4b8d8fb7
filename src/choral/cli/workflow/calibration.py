"""How a run answers: calibrated and decided on validation data, judged on what is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from choral.cli.workflow.scores import print_looks
from choral.runs.run_dir import RunDir, write_atomic, write_json
from choral.scoring.calibrate import Asked, calibrate_run
from choral.scoring.calibration_figure import draw_calibration
from choral.scoring.calibration_table import render_calibration
from choral.scoring.predictor import evaluated
from choral.scoring.scoreboard.recording import record_steps


def calibrate(folder: RunDir, split: str | None, asked: Asked) -> dict[str, Any]:
    """Calibrate a run and keep how it answers, the report and its figure; see `calibrate_run`.

    Args:
        folder: of the run.
        split: that is scored; None: `assess.predictor.default_split`.
        asked: what is fitted and chosen.
    """
    config = folder.config()
    name = evaluated(folder, config, split).meta.split
    report = calibrate_run(folder, config, name, asked)
    record_steps(folder, config, name, report["of"])
    write_json(folder.path / f"calibration-{name}.json", report)
    if "metrics" in report:
        write_atomic(_figure(folder, name), draw_calibration(report))
    return report


def print_calibration(report: dict[str, Any], folder: RunDir, console: Console) -> None:
    """Print a report, where its figure is, and what was kept."""
    for part in render_calibration(report):
        console.print(part)
    print_looks(folder, report["split"], console)
    if "metrics" in report:
        console.print(f"Figure: {_figure(folder, report['split'])}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Kept: {report['file']}: `choral predict` answers so", markup=False, highlight=False, soft_wrap=True)


def _figure(folder: RunDir, split: str) -> Path:
    return folder.path / f"calibration-{split}.svg"
