"""Predictions of trained models: test-time views, the evaluation on all ranks, and the prediction ledger.

In: run directories with checkpoints, and packed shards. Out: RUN/predictions/SPLIT.parquet, the ledgers.

Open `evaluation_pass.py` first: `evaluate` plans the ledgers (`evaluation_plan.py`), and predicts the samples that are not
predicted yet, chunk by chunk (`chunks.py`, `predict_chunk.py`). `ledger.py` defines the format of ledgers. A new test-time
view belongs in `views`, whose docstring says how to add one.

Importing this package does not import torch, so that ledgers can be read, scored and combined on a machine without it.
"""

from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table, merge_parts, write_part
from choral.inference.views import expand_views

__all__ = ["Ledger", "LedgerMeta", "build_ledger_table", "expand_views", "merge_parts", "write_part"]
