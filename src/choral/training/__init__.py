"""Training of one model on all ranks of a job.

In: a config and packed shards. Out: a run directory with checkpoints, metrics.jsonl, status.json and result.json.

Open `loop.py` first: `train` says what happens at which step. `__main__.py` reads the command line and checks the config
(`preflight.py`); `trainer.py` holds the model, the optimizer and one step; `checkpointing.py` saves and resumes. A new loss
belongs in `objective.py`, a new validation metric in `validation_metrics.py`, a new schedule in `optimizer.py`.
"""
