"""The stages of `choral run`, and what the other verbs do: each skips what is already on disk.

In: a validated config or a run directory. Out: files in the run directory, and tables on a console. A stage learns of the
one before it from disk alone, so a run can be killed anywhere and started again. Only stages that compute import torch.
Open `run_stages` first.
"""
