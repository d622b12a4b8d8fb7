"""Scores predictors of a run from its ledgers, without a forward pass: calibration, decisions, slices, comparisons.

In: the ledgers of an evaluated run. Out: reports as plain JSON with their tables and figures, the prediction policy
(answer.json), and the scoreboard. Open `predictor.py` first: it loads one row of `choral score` by name. `policy.py` defines
what is applied to new images, `calibrate.py` fits it, `compare.py` compares two predictors on the same samples.
"""
