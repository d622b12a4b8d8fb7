"""Ensembles: training members side by side, combining their predictions, scores, and diversity. No forward pass is made here.

In: prediction ledgers of a run (`choral.inference.ledger`), and the run's config. Out: fitted combination rules, score
tables, RUN/combined/NAME/, and reports of what an ensemble gains over its members.

Read `rules.py` first: the rules as functions of a stack of predictions, and in five steps how to add one. Then:

- `member_predictions`: which members and views are combined; `external_predictions`: predictions of other tools.
- `fitting_data`, `rule_fitting`, `member_weights`, `stacking`, `temperature`: fit rules on data that is not scored.
- `score_run`, `score_rows`, `score_table` and one `*_scores` module a task: `choral score`.
- `saved_combination`, `combination_table`: `choral combine`. `learned_views`: learned weights of test-time views.
- `diversity*`, `regression_diversity`, `subsets`: what an ensemble gains, and why.
- `member_jobs`, `missing_members`: members as jobs of this machine, and which are missing from a result.
- `worst_samples`: images of the worst predictions.
"""
