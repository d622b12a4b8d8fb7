"""The search for better settings: trials of one network as jobs, chosen and ended early by Optuna, kept in RUN/tune/."""
