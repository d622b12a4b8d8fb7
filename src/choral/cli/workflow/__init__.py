"""The steps of a run in order, each skipped where its result is there: pack, train the members, evaluate, score.

What a step left on disk is all that the next one knows of it, so a run can be killed anywhere and started again. torch is
imported only by the steps that compute.
"""

from __future__ import annotations

from choral.cli.workflow.advice import advise, print_advice
from choral.cli.workflow.analysis import analysis_page, analyze, analyzed
from choral.cli.workflow.bundle_forms import add_forms, check_forms, print_forms, print_split, verify_split
from choral.cli.workflow.calibration import calibrate, print_calibration
from choral.cli.workflow.comparison import compare_runs, print_comparison
from choral.cli.workflow.evaluation import evaluate, show_evaluation, track_evaluation
from choral.cli.workflow.export import (
    BUNDLE,
    export,
    export_for_hub,
    export_stage,
    exported_config,
    print_exported,
    print_hub_folders,
    print_verified,
    verify,
)
from choral.cli.workflow.improvement import improve
from choral.cli.workflow.improvement_table import print_improved
from choral.cli.workflow.prediction import predict_to_file, predicting
from choral.cli.workflow.predictor_report import card, slices
from choral.cli.workflow.probes import print_curves, probe, probed_curves
from choral.cli.workflow.run_stages import run_all
from choral.cli.workflow.scoreboard import print_board, print_projects, project_scores, projects_as_json
from choral.cli.workflow.scores import combine, print_looks, print_scores, score, scores_as_json
from choral.cli.workflow.training import check_run, pack_if_missing, train_all, train_one

__all__ = [
    "BUNDLE",
    "add_forms",
    "advise",
    "analysis_page",
    "analyze",
    "analyzed",
    "calibrate",
    "card",
    "check_forms",
    "check_run",
    "combine",
    "compare_runs",
    "evaluate",
    "export",
    "export_for_hub",
    "export_stage",
    "exported_config",
    "improve",
    "pack_if_missing",
    "predict_to_file",
    "predicting",
    "print_advice",
    "print_board",
    "print_calibration",
    "print_comparison",
    "print_curves",
    "print_exported",
    "print_forms",
    "print_hub_folders",
    "print_improved",
    "print_looks",
    "print_projects",
    "print_scores",
    "print_split",
    "print_verified",
    "probe",
    "probed_curves",
    "project_scores",
    "projects_as_json",
    "run_all",
    "score",
    "scores_as_json",
    "show_evaluation",
    "slices",
    "track_evaluation",
    "train_all",
    "train_one",
    "verify",
    "verify_split",
]
