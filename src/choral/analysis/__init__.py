"""Error analysis: what is wrong with a run's predictions and with its data, and which augmentation may help.

In: prediction ledgers, packed images, and the ledger of probes. Out: an `Analysis` (plain data, `choral analyze --json`), the
HTML page, and `Advice` (an `augment:` config). Nothing here runs a forward pass or imports torch, except `probes/`.

    run_analysis.py   run_analysis: one split of a run; open it first
    summary.py, samples.py, groups.py             metrics, one row a sample, classes and slices
    label_errors.py, duplicates.py, data_health.py   the data; image_survey.py opens every image once
    probe_curves.py, undo_probes.py, resemblance.py, advice_from_probes.py, advice.py   from probes to advice
    page/             the HTML page
    probes/           perturbed images and the forward passes over them
"""
