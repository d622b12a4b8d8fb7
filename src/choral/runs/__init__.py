"""A run on disk and the processes that work on it: the run directory, its checkpoints, and how much fits into memory.

In: a validated config. Out: paths, locks, verified checkpoints, batch sizes. Open `run_dir` first.
"""
