"""Calibrates a run, writes the report with its figure, and prints it: `choral calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from choral.cli.workflow.scores import print_test_set_uses
from choral.core.figures import write_figure
from choral.runs.run_dir import RunDir, write_json
from choral.scoring.calibrate import CalibrationRequest, calibrate_run
from choral.scoring.calibration_figure import draw_calibration
from choral.scoring.calibration_table import render_calibration
from choral.scoring.predictor import open_evaluated_ledger
from choral.scoring.scoreboard.recording import record_steps


def calibrate(folder: RunDir, split: str | None, request: CalibrationRequest) -> dict[str, Any]:
    """Calibrate a run and write its policy, the report and the figure; see `calibrate_run`.

    Args:
        folder: of the run.
        split: to evaluate on; None: `resolve_default_split`.
        request: what to fit.
    """
    config = folder.config()
    name = open_evaluated_ledger(folder, config, split).meta.split
    report = calibrate_run(folder, config, name, request)
    record_steps(folder, config, name, report["of"])
    write_json(folder.path / f"calibration-{name}.json", report)
    if "metrics" in report:
        write_figure(_figure_path(folder, name), draw_calibration(report))
    return report


def print_calibration(report: dict[str, Any], folder: RunDir, console: Console) -> None:
    """Print a report, and the paths of its figure and of the policy."""
    for part in render_calibration(report):
        console.print(part)
    print_test_set_uses(folder, report["split"], console)
    if "metrics" in report:
        console.print(f"Figure: {_figure_path(folder, report['split'])}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"Written: {report['file']}, which `choral predict` uses", markup=False, highlight=False, soft_wrap=True
    )


def _figure_path(folder: RunDir, split: str) -> Path:
    return folder.path / f"calibration-{split}.svg"
