"""A run on disk and the processes that work on it: the run directory, checkpoint directories, memory limits.

In: a validated config. Out: paths, locks, intact checkpoints. Open `run_dir` first.
"""
