"""Probes: predictions of a run on perturbed images of a split, family by family and strength by strength.

In: a trained run and a split. Out: RUN/probes/SPLIT.parquet, a prediction ledger whose views are the perturbations. Open
`families.py` first; it, `plan.py` and `request.py` need no torch.

    families.py         the perturbations, their strengths, and the augmentation that applies the same in training
    plan.py             which samples are probed, and what the ledger will hold
    perturb.py, jpeg.py the perturbations as tensor operations
    feature_sketch.py   features of the networks, projected to a few numbers
    probe_pass.py       the forward passes, on all ranks
"""
