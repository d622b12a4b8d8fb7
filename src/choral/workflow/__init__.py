"""The steps of a run in order, each skipped where its result is there: pack, train the members, evaluate, score.

What a step left on disk is all that the next one knows of it, so a run can be killed anywhere and started again. torch is
imported only by the steps that compute.
"""

from __future__ import annotations

from choral.workflow.advising import advise, print_advice
from choral.workflow.analyzing import analysis_page, analyze, analyzed
from choral.workflow.answering import predict_to_file, predicting
from choral.workflow.assessing import card, slices
from choral.workflow.board import print_board, print_projects, project_scores, projects_as_json
from choral.workflow.calibrating import calibrate, print_calibration
from choral.workflow.comparing import compare_runs, print_comparison
from choral.workflow.evaluation import evaluate, show_evaluation, track_evaluation
from choral.workflow.exporting import (
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
from choral.workflow.forms import add_forms, check_forms, print_forms, print_split, verify_split
from choral.workflow.improved_table import print_improved
from choral.workflow.improving import improve
from choral.workflow.probing import print_curves, probe, probed_curves
from choral.workflow.scoring import combine, print_looks, print_scores, score, scores_as_json
from choral.workflow.steps import run_all
from choral.workflow.training import check_run, pack_if_missing, train_all, train_one

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
