"""Hyperparameter search: trials of one model as jobs, chosen and ended early by Optuna, stored in RUN/tune/.

In: a config with a `tune` section. Out: trials, each an ordinary run, and the best config. Open `study` first.
"""
